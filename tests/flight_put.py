"""Writes spans to a server over Arrow Flight with clients of other projects.

Arguments: the gRPC address, `write` or `compare`, tenants that have spans. `write` copies the spans of each tenant to the tenant `<name>-again`, compares
the two, and then sees what is refused; `compare` only compares.
"""

import json
import sys
import uuid

import adbc_driver_flightsql
import adbc_driver_flightsql.dbapi as flightsql
import adbc_driver_manager
import pandas
import polars
import pyarrow as pa
import pyarrow.flight as flight

GRPC, WHAT, *TENANTS = sys.argv[1:]
CLIENT = flight.connect(f"grpc://{GRPC}")
SPANS = flight.FlightDescriptor.for_path("spans")
QUERIES = [
    "{ }",
    "{ status = error }",
    "{ kind = server }",
    "{ duration > 1ms }",
    "{ nestedSetParent < 0 }",
    "{ kind = server } >> { kind = client }",
    "{ kind = client } ~ { kind = client }",
    "{ event:name != `` }",
    "{ link:spanID != `` }",
    "{ resource.service.name =~ `.*a.*` } | count() > 1",
    "{ span.http.status_code >= 200 || span.http.response.status_code >= 200 }",
    "{ rootServiceName != `` && rootName != `` } | avg(duration) > 1us",
]


def options(tenant):
    return flight.FlightCallOptions(headers=[(b"x-scope-orgid", tenant.encode())])


def ask(tenant, sql):
    return CLIENT.do_get(flight.Ticket(json.dumps({"sql": sql})), options(tenant)).read_all()


def put(tenant, batches, descriptor=SPANS):
    """Writes batches one after another; what was acknowledged after each."""
    told = []
    writer, answers = CLIENT.do_put(descriptor, batches[0].schema, options(tenant))
    with writer:
        for batch in batches:
            writer.write_batch(batch)
            answer = answers.read()
            if answer is None:
                break
            told.append(json.loads(answer.to_pybytes())["spans"])
        writer.done_writing()
    return told


def plain(column):
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def nested(table, scope, names):
    """Entries of a table of events or links by their span, as structs."""
    wanted = [name for name in table.column_names if name in names or name.startswith(f"{scope}.")]
    columns = {name: plain(table[name]) for name in wanted}
    kind = pa.struct([(name, column.type) for name, column in columns.items()])
    rows = pa.table(columns).to_pylist() if columns else []
    found = {}
    for trace, span, row in zip(table["trace_id"].to_pylist(), table["span_id"].to_pylist(), rows):
        found.setdefault((trace, span), []).append(row)
    return kind, found


def with_entries(tenant, spans):
    for name, scope, names in (("events", "event", ["time", "event_name"]), ("links", "link", ["linked_trace_id", "linked_span_id"])):
        kind, found = nested(ask(tenant, f"SELECT * FROM {name}"), scope, names)
        lists = [found.get(key) for key in zip(spans["trace_id"].to_pylist(), spans["span_id"].to_pylist())]
        if any(lists):
            # Text of a column of mixed types is what its values are shown as.
            spans = spans.append_column(name, pa.array(lists, pa.list_(kind)))
    return spans


def rows_of(tenant, table):
    found = ask(tenant, f"SELECT * FROM {table}")
    rows = sorted(json.dumps(row, default=str, sort_keys=True) for row in found.to_pylist())
    return sorted(found.column_names), rows


def same(tenant, again):
    for table in ("spans", "events", "links", "traces", "services"):
        (names, rows), (other_names, other_rows) = rows_of(tenant, table), rows_of(again, table)
        assert names == other_names, (tenant, table, set(names) ^ set(other_names))
        assert len(rows) == len(other_rows), (tenant, table, len(rows), len(other_rows))
        differing = [(one, other) for one, other in zip(rows, other_rows) if one != other]
        assert not differing, (tenant, table, len(differing), differing[0])
    for query in QUERIES:
        count = "SELECT count(*) AS spans, count(DISTINCT trace_id) AS traces FROM traceql($1)".replace("$1", "'" + query.replace("'", "''") + "'")
        one, other = ask(tenant, count).to_pylist(), ask(again, count).to_pylist()
        assert one == other, (tenant, query, one, other)
    assert ask(again, "SELECT count(*) AS n FROM spans")["n"].to_pylist()[0] > 0


def copy(tenant):
    spans = with_entries(tenant, ask(tenant, "SELECT * FROM spans").unify_dictionaries())
    batches = spans.to_batches(max_chunksize=5000)
    told = put(f"{tenant}-again", batches)
    assert told == [sum(batch.num_rows for batch in batches[: at + 1]) for at in range(len(batches))], told
    # What is written twice is there once.
    put(f"{tenant}-again", batches[:1])


def table_of(count, **more):
    columns = {
        "trace_id": [f"{at // 3 + 1:032x}" for at in range(count)],
        "span_id": [f"{at + 1:016x}" for at in range(count)],
        "name": [f"op-{at}" for at in range(count)],
        "start_time": pa.array([1_700_000_000_000_000_000 + at for at in range(count)], pa.timestamp("ns")),
        "duration_nanos": [at for at in range(count)],
        "resource.service.name": ["made"] * count,
        **more,
    }
    return pa.table({name: column for name, column in columns.items() if column is not None})


def refused(kind, what, *texts):
    try:
        what()
    except kind as error:
        assert all(text in str(error) for text in texts), f"{error!r} lacks {texts}"
        return
    raise AssertionError(f"not refused as {kind}: {texts}")


def what_is_refused():
    tenant = f"refused-{uuid.uuid4().hex}"
    count = lambda: ask(tenant, "SELECT count(*) AS n FROM spans")["n"].to_pylist()[0]
    bad = lambda *texts, **columns: refused(pa.ArrowInvalid, lambda: put(tenant, table_of(3, **columns).to_batches()), "batch 0", *texts, "0 spans")
    bad('no column "span_id"', span_id=None)
    bad('column "trace_id", row 1', "32 hexadecimal digits", "abc", trace_id=["0" * 31 + "1", "abc", "0" * 31 + "1"])
    bad('column "span_id", row 2', "null", span_id=["0" * 15 + "1", "0" * 15 + "2", None])
    bad('unknown column "service"', "resource.<key>", service=["a"] * 3)
    bad('column "status", row 0', "unset, ok, error", "ERROR", status=["ERROR", "ok", "ok"])
    bad('column "duration_nanos"', "whole numbers", duration_nanos=[0.5] * 3)
    bad('column "events", row 1, entry 0', "time", events=pa.array([None, [{"time": -1}], []], pa.list_(pa.struct([("time", pa.int64())]))))
    assert count() == 0
    # What came before in the same call is written, and the status says how much.
    first, second = table_of(3), table_of(3, kind=["server", "x", "y"])
    both = [first.append_column("kind", pa.array(["client"] * 3)).to_batches()[0], second.to_batches()[0]]
    refused(pa.ArrowInvalid, lambda: put(tenant, both), "batch 1", 'column "kind", row 1', "3 spans of the batches before")
    assert count() == 3
    for descriptor in (flight.FlightDescriptor.for_path("events"), flight.FlightDescriptor.for_path("system", "blocks"), flight.FlightDescriptor.for_command(b'{"put": "traces"}')):
        refused(pa.ArrowInvalid, lambda: put(tenant, table_of(1).to_batches(), descriptor), '["spans"]')
    large = table_of(3, **{"span.large": ["x" * (9 << 20)] * 3})
    refused(pa.ArrowInvalid, lambda: put(tenant, large.to_batches()), "longer than 16 MiB", "smaller batches")
    compressed = pa.ipc.IpcWriteOptions(compression="lz4")
    with_options = flight.FlightCallOptions(headers=[(b"x-scope-orgid", tenant.encode())], write_options=compressed)

    def put_compressed():
        writer, answers = CLIENT.do_put(SPANS, table_of(3).schema, with_options)
        with writer:
            writer.write_table(table_of(3, **{"span.long": ["x" * 1000] * 3}).select(table_of(3).column_names))
            answers.read()

    refused(pa.ArrowInvalid, put_compressed, "without IPC compression")
    refused(flight.FlightUnauthenticatedError, lambda: CLIENT.do_put(SPANS, table_of(1).schema)[0].close(), "no org id")
    assert count() == 3


def other_clients():
    tenant = f"clients-{uuid.uuid4().hex}"
    count = lambda: ask(tenant, "SELECT count(*) AS n FROM spans")["n"].to_pylist()[0]
    frame = table_of(10).to_pandas()
    assert put(tenant, pa.Table.from_pandas(frame).to_batches()) == [10]
    frame = pandas.DataFrame({"trace_id": [f"{at + 100:032x}" for at in range(4)], "span_id": [f"{at + 100:016x}" for at in range(4)]})
    frame["start_time"] = pandas.Timestamp("2026-01-01", tz="Europe/Berlin")
    frame["end_time"] = frame["start_time"] + pandas.Timedelta("1s")
    frame["span.half"] = [0.5, None, 1.5, None]
    frame["name"] = pandas.Categorical(["a", "b", "a", "b"])
    assert put(tenant, pa.Table.from_pandas(frame).to_batches()) == [4]
    assert ask(tenant, 'SELECT sum("span.half") AS n FROM spans')["n"].to_pylist() == [2.0]
    made = polars.DataFrame(frame.assign(span_id=[f"{at + 200:016x}" for at in range(4)]).to_dict("list")).to_arrow()
    assert put(tenant, made.to_batches(), flight.FlightDescriptor.for_command(b'{"put": "spans"}'))[-1] == 4
    assert count() == 18

    header = adbc_driver_flightsql.DatabaseOptions.RPC_CALL_HEADER_PREFIX.value + "x-scope-orgid"
    with flightsql.connect(f"grpc://{GRPC}", db_kwargs={header: tenant}, autocommit=True) as connection, connection.cursor() as cursor:
        fresh = table_of(5, span_id=[f"{at + 300:016x}" for at in range(5)])
        assert cursor.adbc_ingest("spans", fresh, mode="append") == 5
        assert count() == 23
        refuse = lambda mode, *texts: refused(adbc_driver_manager.Error, lambda: cursor.adbc_ingest("spans", fresh, mode=mode), *texts)
        refuse("create", "mode append")
        refuse("replace", "mode append")
        refused(adbc_driver_manager.Error, lambda: cursor.adbc_ingest("traces", fresh, mode="append"), '["spans"]')
        broken = fresh.append_column("kind", pa.array(["server"] * 4 + ["sever"]))
        refused(adbc_driver_manager.Error, lambda: cursor.adbc_ingest("spans", broken, mode="append"), 'column "kind", row 4')
        cursor.execute("SELECT count(*) FROM spans")
        assert cursor.fetchone() == (23,)


if WHAT == "write":
    for tenant in TENANTS:
        copy(tenant)
    what_is_refused()
    other_clients()
for tenant in TENANTS:
    same(tenant, f"{tenant}-again")
print("all right")
