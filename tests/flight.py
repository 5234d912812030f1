"""Asks a server over Arrow Flight with clients of other projects.

Arguments: the gRPC address, the HTTP address, the tenant, and the spans that the tenant sent as a file of JSON:
[{trace_id, span_id, parent_span_id, name, start_nanos, duration_nanos, service}].
"""

import json
import sys

import adbc_driver_flightsql
import adbc_driver_flightsql.dbapi as flightsql
import adbc_driver_manager
import duckdb
import polars
import pyarrow
import pyarrow.flight as flight

GRPC, HTTP, TENANT, FILE = sys.argv[1:]
SPANS = json.load(open(FILE))
AUTH = [(b"x-scope-orgid", TENANT.encode())]
ERRORS = (flight.FlightError, pyarrow.ArrowException)
COLUMNS = "trace_id, span_id, parent_span_id, name, start_time, duration_nanos, \"resource.service.name\" AS service"


def options(*headers, **more):
    return flight.FlightCallOptions(headers=[*AUTH, *headers], **more)


def rows(table):
    """The rows of COLUMNS as what was sent, in order."""
    table = table.set_column(4, "start_nanos", table["start_time"].cast("int64"))
    names = ["trace_id", "span_id", "parent_span_id", "name", "start_nanos", "duration_nanos", "service"]
    return sorted((dict(zip(names, row.values())) for row in table.to_pylist()), key=lambda row: (row["trace_id"], row["span_id"]))


def refused(kind, what, *texts):
    try:
        what()
    except kind as error:
        assert all(text in str(error) for text in texts), f"{error!r} lacks {texts}"
        return
    raise AssertionError(f"not refused as {kind}: {texts}")


def message(value):
    """A protobuf message whose first field is `value`."""
    length, size = b"", len(value)
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return b"\x0a" + length + bytes([size]) + value


def everything_of(client, info):
    tables = [client.do_get(endpoint.ticket, options()).read_all() for endpoint in info.endpoints]
    assert all(table.schema == info.schema for table in tables), (info.schema, tables[0].schema)
    return pyarrow.concat_tables(tables)


def plain_flight(address):
    client = flight.connect(f"grpc://{address}")
    ticket = lambda **ask: flight.Ticket(json.dumps(ask))
    read = lambda *headers, **ask: client.do_get(ticket(**ask), options(*headers)).read_all()

    table = read(sql=f"SELECT {COLUMNS} FROM spans")
    assert rows(table) == SPANS, (rows(table)[:2], SPANS[:2])
    assert pyarrow.types.is_dictionary(table.schema.field("name").type), table.schema
    for compression in (b"lz4", b"zstd", b"none"):
        assert rows(read((b"x-skein-compression", compression), sql=f"SELECT {COLUMNS} FROM spans")) == SPANS
    refused(pyarrow.ArrowInvalid, lambda: read((b"x-skein-compression", b"rar"), sql="SELECT 1"), "lz4, zstd or none")

    by_name = read(sql="SELECT count(*) AS n FROM spans WHERE name = $1", parameters=["op-3"])
    assert by_name["n"].to_pylist() == [sum(span["name"] == "op-3" for span in SPANS)]
    one = SPANS[0]["trace_id"]
    assert read(trace=one).num_rows == sum(span["trace_id"] == one for span in SPANS)
    roots = read(traceql="{ name = `op-0` }", limit=1000)
    assert roots.num_rows == sum(span["name"] == "op-0" for span in SPANS)
    assert read(traceql="{ }", limit=7).num_rows == 7
    metrics = "{ } | count_over_time() by (resource.service.name)"
    starts = [span["start_nanos"] for span in SPANS]
    window = {"start": min(starts) // 10**9 - 10, "end": max(starts) // 10**9 + 10}
    series = read(metrics=metrics, step="10s", **window)
    table_function = f"SELECT * FROM traceql_metrics('{metrics}', {window['start']}, {window['end']}, '10s')"
    by_service = [("time", "ascending"), ("resource.service.name", "ascending")]
    assert series.num_rows and series.sort_by(by_service).to_pylist() == read(sql=table_function).sort_by(by_service).to_pylist(), series
    counts = {}
    for sample in series.to_pylist():
        counts[sample["resource.service.name"]] = counts.get(sample["resource.service.name"], 0) + sample["value"]
    assert counts == {service: sum(span["service"] == service for span in SPANS) for service in counts} and sum(counts.values()) == len(SPANS), counts
    refused(pyarrow.ArrowInvalid, lambda: read(metrics="{ }"), "metrics")

    for descriptor in (flight.FlightDescriptor.for_path("spans"), flight.FlightDescriptor.for_command(json.dumps({"sql": "SELECT * FROM spans"}))):
        info = client.get_flight_info(descriptor, options())
        assert everything_of(client, info).num_rows == len(SPANS)
        assert client.get_schema(descriptor, options()).schema == info.schema
    listed = {tuple(path.decode() for path in info.descriptor.path): info for info in client.list_flights(options=options())}
    assert ("spans",) in listed and ("events",) in listed, list(listed)
    assert "duration_nanos" in listed[("spans",)].schema.names
    assert everything_of(client, listed[("spans",)]).num_rows == len(SPANS)

    actions = {action.type for action in client.list_actions(options())}
    assert {"flush", "explain", "CancelFlightInfo", "CreatePreparedStatement"} <= actions, actions
    plan = b"".join(bytes(result.body) for result in client.do_action(("explain", b"SELECT name FROM spans WHERE name = 'op-3'"), options()))
    assert b"SqlScanExec" in plan and b"op-3" in plan, plan
    assert list(client.do_action(("flush", b""), options())) == []
    assert rows(read(sql=f"SELECT {COLUMNS} FROM spans")) == SPANS, "after the flush"

    # A ticket is over the spans of its moment, however often it is brought.
    info = client.get_flight_info(flight.FlightDescriptor.for_path("spans"), options())
    for _ in range(2):
        assert everything_of(client, info).num_rows == len(SPANS)
    cancelled = list(client.do_action(("CancelFlightInfo", message(info.serialize())), options()))
    assert [bytes(result.body) for result in cancelled] == [b"\x08\x01"], "CANCEL_STATUS_CANCELLED"
    refused(ERRORS, lambda: everything_of(client, info), "no such ticket")

    # Whoever stops reading stops the work.
    reader = client.do_get(ticket(sql="SELECT a.name FROM spans a, spans b, spans c"), options())
    reader.read_chunk()
    reader.cancel()

    # User and password where no header can be sent: the user is the tenant.
    token = client.authenticate_basic_token(TENANT, "whatever")
    only_token = flight.FlightCallOptions(headers=[token])
    assert client.do_get(ticket(sql="SELECT count(*) AS n FROM spans"), only_token).read_all()["n"].to_pylist() == [len(SPANS)]
    refused(flight.FlightUnauthenticatedError, lambda: client.do_get(ticket(sql="SELECT 1")).read_all(), "no org id")
    other = flight.FlightCallOptions(headers=[(b"x-scope-orgid", b"stranger")])
    assert client.do_get(ticket(sql="SELECT count(*) AS n FROM spans"), other).read_all()["n"].to_pylist() == [0]
    info = client.get_flight_info(flight.FlightDescriptor.for_path("spans"), options())
    refused(ERRORS, lambda: client.do_get(info.endpoints[0].ticket, other).read_all(), "no such ticket")
    client.close()


def adbc():
    header = adbc_driver_flightsql.DatabaseOptions.RPC_CALL_HEADER_PREFIX.value + "x-scope-orgid"
    with flightsql.connect(f"grpc://{GRPC}", db_kwargs={header: TENANT}, autocommit=True) as connection:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {COLUMNS} FROM spans")
            assert rows(cursor.fetch_arrow_table()) == SPANS

            cursor.execute("SELECT count(*), max(duration_nanos) FROM spans WHERE name = $1 AND duration_nanos >= $2", ("op-2", 2000))
            expected = [span["duration_nanos"] for span in SPANS if span["name"] == "op-2" and span["duration_nanos"] >= 2000]
            assert cursor.fetchone() == (len(expected), max(expected))
            for name in ("op-1", "op-4", "no such"):
                cursor.execute("SELECT count(*) FROM spans WHERE name = ?".replace("?", "$1"), (name,))
                assert cursor.fetchone() == (sum(span["name"] == name for span in SPANS),), name

            cursor.execute("SELECT name, count(*) AS n FROM spans GROUP BY name ORDER BY name")
            frame = cursor.fetch_df()
            names = sorted({span["name"] for span in SPANS})
            assert list(frame["name"]) == names and list(frame["n"]) == [sum(span["name"] == name for span in SPANS) for name in names]
            # Both columns have values that repeat: their dictionaries do not, so that pandas makes categories of them.
            cursor.execute('SELECT "resource.service.name" AS service, name, count(*) AS n FROM spans GROUP BY 1, 2')
            frame = cursor.fetch_df()
            pairs = {(span["service"], span["name"]) for span in SPANS}
            assert str(frame.dtypes["service"]) == str(frame.dtypes["name"]) == "category", frame.dtypes
            assert len(frame) == len(pairs) and set(zip(frame["service"], frame["name"])) == pairs, frame
            assert sorted(frame["service"].cat.categories) == sorted({service for service, _ in pairs}), frame["service"]
            cursor.execute("SELECT name, duration_nanos FROM spans")
            assert cursor.fetch_polars()["duration_nanos"].sum() == sum(span["duration_nanos"] for span in SPANS)
            cursor.execute("EXPLAIN SELECT 1")
            assert cursor.fetchall()
            refused(adbc_driver_manager.Error, lambda: cursor.execute("SELECT nam FROM spans").fetchall(), "nam")
            refused(adbc_driver_manager.Error, lambda: cursor.execute("DROP TABLE spans"), "only statements that read")
            refused(adbc_driver_manager.Error, lambda: cursor.execute("SELECT count(*) FROM spans WHERE name = $1", ("a", "b")), "1 parameters, 2 were bound")
        info = connection.adbc_get_info()
        assert info["vendor_name"] == "skein", info
        assert "BASE TABLE" in connection.adbc_get_table_types()
        schema = connection.adbc_get_table_schema("spans")
        assert schema.field("duration_nanos").type == pyarrow.int64(), schema
        objects = connection.adbc_get_objects(depth="all").read_all().to_pylist()
        [catalog] = [found for found in objects if found["catalog_name"] == "skein"]
        [own] = [found for found in catalog["catalog_db_schemas"] if found["db_schema_name"] == TENANT]
        tables = {table["table_name"]: [column["column_name"] for column in table["table_columns"]] for table in own["db_schema_tables"]}
        assert "spans" in tables and "events" in tables and "trace_id" in tables["spans"], tables
    # The same with user and password.
    kwargs = {adbc_driver_manager.DatabaseOptions.USERNAME.value: TENANT, adbc_driver_manager.DatabaseOptions.PASSWORD.value: "x"}
    with flightsql.connect(f"grpc://{GRPC}", db_kwargs=kwargs, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM spans")
        assert cursor.fetchone() == (len(SPANS),)


def other_engines():
    """DuckDB and Polars take the tables as they come, dictionaries and all."""
    client = flight.connect(f"grpc://{GRPC}")
    spans = client.do_get(flight.Ticket(json.dumps({"sql": "SELECT *, \"resource.service.name\" AS service FROM spans"})), options()).read_all()
    expected = {}
    for span in SPANS:
        expected[span["name"]] = expected.get(span["name"], 0) + span["duration_nanos"]
    found = duckdb.sql("SELECT name, sum(duration_nanos)::BIGINT FROM spans GROUP BY name").fetchall()
    assert dict(found) == expected, found
    children = duckdb.sql("SELECT count(*) FROM spans c JOIN spans p ON c.trace_id = p.trace_id AND c.parent_span_id = p.span_id").fetchall()
    assert children == [(sum(span["parent_span_id"] is not None for span in SPANS),)], children
    frame = polars.from_arrow(spans)
    sums = frame.group_by("name").agg(polars.col("duration_nanos").sum())
    assert dict(sums.rows()) == expected, sums
    client.close()


plain_flight(GRPC)
plain_flight(HTTP)
adbc()
other_engines()
print("all right")
