"""Reads an answer that has several endpoints with pyarrow, all at once, and with ADBC.

Arguments: the gRPC address, the tenant, the number of spans, and how many endpoints there should be. Span `n`, counted from 1, has the id `n` and
the duration `n`.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import adbc_driver_flightsql
import adbc_driver_flightsql.dbapi as flightsql
import pyarrow
import pyarrow.flight as flight

GRPC, TENANT, SPANS, ENDPOINTS = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
AUTH = flight.FlightCallOptions(headers=[(b"x-scope-orgid", TENANT.encode())])
SQL = "SELECT span_id, name, duration_nanos FROM spans"
HALF = SQL + f" WHERE duration_nanos > {SPANS // 2}"


def info_of(client, sql):
    return client.get_flight_info(flight.FlightDescriptor.for_command(json.dumps({"sql": sql})), AUTH)


def read(ticket):
    """A stream on a connection of its own."""
    with flight.connect(f"grpc://{GRPC}") as client:
        return client.do_get(ticket, AUTH).read_all()


def in_order(table):
    """The rows by duration, their dictionaries as text."""
    plain = lambda column: column.cast(column.type.value_type) if pyarrow.types.is_dictionary(column.type) else column
    return pyarrow.table({name: plain(table[name]) for name in table.schema.names}).sort_by("duration_nanos").combine_chunks()


def check(table, first):
    """Every span from `first` on, once."""
    durations = table["duration_nanos"].to_pylist()
    assert durations == list(range(first, SPANS + 1)), (len(durations), durations[:3], durations[-3:])
    assert table["span_id"].to_pylist() == [f"{span:016x}" for span in range(first, SPANS + 1)]


client = flight.connect(f"grpc://{GRPC}")
for sql, first in ((SQL, 1), (HALF, SPANS // 2 + 1)):
    info = info_of(client, sql)
    assert len(info.endpoints) == ENDPOINTS, len(info.endpoints)
    assert info.ordered == (ENDPOINTS == 1)
    tickets = [endpoint.ticket for endpoint in info.endpoints]
    with ThreadPoolExecutor(len(tickets)) as readers:
        parts = list(readers.map(read, tickets))
    assert all(part.schema == info.schema for part in parts)
    if sql is SQL and ENDPOINTS == 2:
        assert all(part.num_rows for part in parts), "the rows are dealt out"
    whole = in_order(pyarrow.concat_tables(parts))
    check(whole, first)
    one = client.do_get(flight.Ticket(json.dumps({"sql": sql})), AUTH).read_all()
    assert whole.equals(in_order(one)), "the same as over one stream"

# What must come in one order, or is one number, comes over one stream.
for sql in (SQL + " ORDER BY duration_nanos", SQL + " LIMIT 10", "SELECT count(*) FROM spans", "SELECT name, count(*) FROM spans GROUP BY name"):
    assert len(info_of(client, sql).endpoints) == 1, sql
client.close()

header = adbc_driver_flightsql.DatabaseOptions.RPC_CALL_HEADER_PREFIX.value + "x-scope-orgid"
with flightsql.connect(f"grpc://{GRPC}", db_kwargs={header: TENANT}, autocommit=True) as connection, connection.cursor() as cursor:
    cursor.execute(SQL)
    check(in_order(cursor.fetch_arrow_table()), 1)
    partitions, schema = cursor.adbc_execute_partitions(SQL)
    assert len(partitions) == ENDPOINTS, len(partitions)
    rows = 0
    for partition in partitions:
        cursor.adbc_read_partition(partition)
        rows += cursor.fetch_arrow_table().num_rows
    assert rows == SPANS, rows
print("all right")
