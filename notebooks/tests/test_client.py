"""The client against the real server, over each transport; figures are held against the recorded files."""

from __future__ import annotations

import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import duckdb
import polars
import pyarrow as pa
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

import recorded
import skein
from skein.transport import Parameters

Connect = Callable[[str], skein.Client]


def test_sql_counts_what_was_recorded(connect: Connect) -> None:
    found = connect("shellci").sql('SELECT "resource.service.name" AS service, status, count(*) AS spans FROM spans GROUP BY service, status')
    expected = Counter((span.service, span.status) for span in recorded.spans("shellci"))
    assert {(row["service"], row["status"]): row["spans"] for row in found.to_pylist()} == expected


def test_pandas_polars_and_duckdb_take_the_table(connect: Connect) -> None:
    found = connect("genai").sql('SELECT name, duration_nanos, start_time, "span.gen_ai.system" AS system FROM spans')
    expected = sum(span.duration for span in recorded.spans("genai"))
    assert found.to_pandas().duration_nanos.sum() == expected
    assert polars.from_arrow(found)["duration_nanos"].sum() == expected  # type: ignore[index]
    assert duckdb.sql("SELECT sum(duration_nanos), count(system) FROM found").fetchall() == [
        (expected, sum("gen_ai.system" in span.attributes for span in recorded.spans("genai")))
    ]


def test_parameters_stand_for_values(connect: Connect) -> None:
    server = connect("genai")
    expected = sum(span.duration > 1_000_000_000 and span.name != "it's" for span in recorded.spans("genai"))
    assert server.sql("SELECT name FROM spans WHERE duration_nanos > $1 AND name <> $2", [1_000_000_000, "it's"]).num_rows == expected
    assert server.sql("SELECT name FROM spans WHERE duration_nanos > $least", {"least": 1_000_000_000}).num_rows == expected


def test_a_tenant_sees_its_own(connect: Connect) -> None:
    assert connect("nobody").sql("SELECT count(*) AS spans FROM spans").to_pylist() == [{"spans": 0}]


def test_traceql_finds_all_matches(connect: Connect) -> None:
    found = connect("shellci").traceql("{ kind = client && status = error }", columns=["trace_id", "span_id"])
    expected = {(span.trace, span.id) for span in recorded.spans("shellci") if span.kind == "client" and span.status == "error"}
    assert {(row["trace_id"], row["span_id"]) for row in found.to_pylist()} == expected and found.num_rows == len(expected)


def test_traceql_looks_into_a_window(connect: Connect) -> None:
    server, times = connect("genai"), sorted(span.start for span in recorded.spans("genai"))
    middle = times[len(times) // 2]
    expected = {spans[0].trace for spans in recorded.traces("genai").values() if min(span.start for span in spans) < middle}
    for end in (middle / 1e9, datetime.fromtimestamp(middle / 1e9, timezone.utc), datetime.fromtimestamp(middle / 1e9, timezone.utc).isoformat()):
        found = server.traceql("{ }", times[0] // 10**9 - 1, end, ["trace_id"])
        assert set(found["trace_id"].to_pylist()) == expected


def test_text_with_quotes_stays_text(connect: Connect) -> None:
    assert connect("genai").traceql("""{ name = "it's \\"'; DROP" }""").num_rows == 0


def test_a_trace_has_all_its_spans_and_only_its_attributes(connect: Connect) -> None:
    trace, spans = max(recorded.traces("genai").items(), key=lambda item: len(item[1]))
    found = connect("genai").trace(trace)
    assert found["span_id"].to_pylist() == [span.id for span in sorted(spans, key=lambda span: (span.start, span.id))]
    scalar = {f"span.{key}" for span in spans for key, value in span.attributes.items() if not isinstance(value, list)}
    assert {name for name in found.column_names if name.startswith("span.")} == scalar
    tree = {span.span_id: (span.depth, len(span.children)) for span in skein.spans_of(found)}
    by_id = {span.id: span for span in spans}

    def depth(span: recorded.Span) -> int:
        return 1 + depth(by_id[span.parent]) if span.parent in by_id else 0

    assert tree == {span.id: (depth(span), len(span.children)) for span in spans}


def test_what_is_not_there_is_told(connect: Connect) -> None:
    with pytest.raises(skein.NotFound, match="no trace ff of this tenant"):
        connect("genai").trace("ff")
    with pytest.raises(skein.InvalidRequest, match="'xyz' is no trace id: it has up to 32 hexadecimal digits"):
        connect("genai").trace("xyz")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda server: server.sql("SELECT nonsense FROM spans"), "nonsense"),
        (lambda server: server.sql("DROP TABLE spans"), "only statements that read"),
        (lambda server: server.sql("SELECT $1"), "1"),
        (lambda server: server.traceql("{ nonsense"), "line 1"),
        (lambda server: server.traceql("{ }", 1), "a window needs both start and end"),
        (lambda server: server.traceql("{ }", -5, 1), "between 1970 and 2262"),
        (lambda server: server.traceql("{ }", "yesterday", "today"), "yesterday"),
        (lambda server: server.metrics("{ }", 0, 1), "not a metrics query"),
        (lambda server: server.metrics("{ } | rate()", step=60), "a step needs a window"),
    ],
)
def test_a_wrong_question_is_an_invalid_request(connect: Connect, ask: Callable[[skein.Client], Any], message: str) -> None:
    with pytest.raises(skein.InvalidRequest, match=message):
        ask(connect("genai"))


def test_without_a_tenant_nothing_is_told(server_url: str) -> None:
    with pytest.raises(skein.Denied, match=r"connect\(…, tenant=…\)"):
        skein.connect(server_url).sql("SELECT 1")


def test_metrics_count_spans_by_service(connect: Connect) -> None:
    spans = recorded.spans("trainticket")
    first = min(span.start for span in spans) // 60_000_000_000 * 60
    last = max(span.end for span in spans) // 60_000_000_000 * 60 + 60
    expected = Counter((span.service, -(-span.start // 60_000_000_000) * 60) for span in spans)
    for step in (60, "1m"):
        found = connect("trainticket").metrics("{ } | count_over_time() by (resource.service.name)", first, last, step)
        assert found.column_names == ["time", "resource.service.name", "value"]
        times = found["time"].cast(pa.timestamp("s", "UTC")).cast(pa.int64()).to_pylist()
        counted = dict(zip(zip(found["resource.service.name"].to_pylist(), times), found["value"].to_pylist()))
        assert {key: value for key, value in counted.items() if value} == expected
    whole = connect("trainticket").metrics("{ } | count_over_time()")
    assert whole["value"].to_pylist() == [len(spans)]


def send(otlp_url: str, tenant: str, number: int, name: str) -> None:
    """Sends a span that has just ended."""
    request = ExportTraceServiceRequest()
    now = time.time_ns()
    request.resource_spans.add().scope_spans.add().spans.add(
        trace_id=number.to_bytes(16, "big"), span_id=number.to_bytes(8, "big"), name=name, start_time_unix_nano=now - 1000, end_time_unix_nano=now
    )
    headers = {"X-Scope-OrgID": tenant, "Content-Type": "application/x-protobuf"}
    with urllib.request.urlopen(urllib.request.Request(f"{otlp_url}/v1/traces", request.SerializeToString(), headers), timeout=60) as response:
        assert response.status == 200


def test_tail_sees_spans_arrive(connect: Connect, otlp_url: str) -> None:
    # A tenant of its own for each run: both transports, and whoever runs this again.
    tenant = f"tail-{time.time_ns()}"
    send(otlp_url, tenant, 1, "first")
    found = connect(tenant).tail("{ name != `noise` }", columns=["name"], interval=0.05, patience=60)
    assert next(found).to_pylist() == [{"name": "first"}]
    send(otlp_url, tenant, 2, "noise")
    send(otlp_url, tenant, 3, "second")
    assert next(found).to_pylist() == [{"name": "second"}]
    found.close()  # type: ignore[attr-defined]


def test_tail_ends_without_new_matches(connect: Connect, otlp_url: str) -> None:
    tenant = f"tail-{time.time_ns()}"
    send(otlp_url, tenant, 1, "only")
    told = list(connect(tenant).tail(columns=["name"], interval=0.05, patience=1.5))
    assert [table["name"].to_pylist() for table in told] == [["only"]]


def test_a_wrong_tail_is_refused(connect: Connect) -> None:
    with pytest.raises(skein.InvalidRequest, match="nam"):
        next(connect("shop").tail("{ nam = }"))


class Growing:
    """A transport to spans that arrive while somebody asks."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = iter(answers)
        self.asked: list[str] = []

    def batches(self, sql: str, parameters: Parameters | None) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        self.asked.append(sql)
        ids = next(self.answers, [])
        batch = pa.record_batch({"trace_id": ["t"] * len(ids), "span_id": ids, "spanset": [0] * len(ids), "name": [f"span {id}" for id in ids]})
        return batch.schema, iter([batch])

    def close(self) -> None:
        pass


def test_tail_tells_each_match_once() -> None:
    transport = Growing(["a"], ["a", "b", "c"], [], ["c", "b"], ["b", "d"])
    client = skein.connect(transport=transport)
    told = [table.to_pylist() for table in client.tail("{ status = error }", columns=["name"], interval=0.01, patience=0.2)]
    assert told == [[{"name": "span a"}], [{"name": "span b"}, {"name": "span c"}], [{"name": "span d"}]]
    assert all(asked.startswith('SELECT "name", "trace_id", "span_id", "spanset" FROM traceql(\'{ status = error }\', ') for asked in transport.asked)


class Fixed:
    """A transport with one answer."""

    def __init__(self, *batches: pa.RecordBatch) -> None:
        self.answer = batches

    def batches(self, sql: str, parameters: Parameters | None) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        return self.answer[0].schema, iter(self.answer)

    def close(self) -> None:
        pass


def test_dictionaries_that_pandas_refuses_are_made_distinct() -> None:
    def batch(codes: list[int | None], names: list[str]) -> pa.RecordBatch:
        column = pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), names)
        return pa.record_batch({"name": column, "view": pa.array(["x"] * len(codes), pa.string_view())})

    found = skein.connect(transport=Fixed(batch([2, None, 0], ["a", "b", "a"]), batch([1, 0], ["c", "a"]))).sql("SELECT name")
    assert found["name"].to_pylist() == ["a", None, "a", "a", "c"]
    assert sorted(found.to_pandas().name.cat.categories)[0] == "a"
    assert found.schema.field("view").type == pa.string()


def test_tail_forgets_what_is_long_gone() -> None:
    transport = Growing(["a"], *[[]] * 20, ["a"])
    told = list(skein.connect(transport=transport).tail(interval=0.01, lookback=0.01, patience=1))
    assert [table["span_id"].to_pylist() for table in told] == [["a"], ["a"]]
