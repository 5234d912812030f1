"""Spans written as tables, against the real server."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pandas
import pyarrow as pa
import pytest

import skein
from skein import client, outgoing

START = 1_700_000_000_000_000_000


@pytest.fixture
def server() -> Iterator[skein.Client]:
    """A tenant of its own, over Flight."""
    url = os.environ.get("SKEIN_FLIGHT_URL")
    if not url:
        pytest.skip("SKEIN_FLIGHT_URL names no server; `python3 notebooks/open.py -- python -m pytest notebooks/tests` starts one")
    with skein.connect(url, tenant=f"written-{uuid.uuid4().hex}", timeout=120) as client:
        yield client


def spans(count: int, **more: list[object]) -> pa.Table:
    return pa.table(
        {
            "trace_id": [f"{at // 4 + 1:032x}" for at in range(count)],
            "span_id": [f"{at + 1:016x}" for at in range(count)],
            "name": [f"op-{at % 5}" for at in range(count)],
            "start_time": pa.array([START + at for at in range(count)], pa.timestamp("ns")),
            "duration_nanos": [at * 10 for at in range(count)],
            "resource.service.name": [f"service-{at % 3}" for at in range(count)],
            "span.number": list(range(count)),
            **more,
        }
    )


def count(server: skein.Client) -> int:
    [row] = server.sql("SELECT count(*) AS spans FROM spans").to_pylist()
    return int(row["spans"])


def test_what_is_written_is_there(server: skein.Client) -> None:
    assert server.write(spans(1000)) == 1000
    found = server.sql('SELECT name, sum("span.number") AS total FROM spans WHERE "resource.service.name" = $1 GROUP BY name ORDER BY name', ["service-2"])
    expected = {f"op-{name}": sum(at for at in range(1000) if at % 3 == 2 and at % 5 == name) for name in range(5)}
    assert {row["name"]: row["total"] for row in found.to_pylist()} == expected


def test_a_data_frame_is_written(server: skein.Client) -> None:
    frame = pandas.DataFrame(
        {
            "trace_id": ["0af7651916cd43dd8448eb211c80319c"] * 2,
            "span_id": ["b7ad6b7169203331", "b7ad6b7169203332"],
            "parent_span_id": [None, "b7ad6b7169203331"],
            "name": pandas.Categorical(["GET /", "SELECT"]),
            "kind": ["server", "client"],
            "start_time": pandas.to_datetime(["2026-01-01T00:00:00.000000001Z", "2026-01-01T00:00:00.5Z"], format="ISO8601"),
            "end_time": pandas.to_datetime(["2026-01-01T00:00:01Z", "2026-01-01T00:00:00.75Z"], format="ISO8601"),
            "span.rows": pandas.array([None, 7], dtype="Int64"),
            "span.empty": [None, None],
        }
    )
    assert server.write(pa.Table.from_pandas(frame)) == 2
    found = server.traceql("{ kind = server } >> { span.rows = 7 }", columns=["span_id", "duration_nanos"]).to_pylist()
    assert found == [{"span_id": "b7ad6b7169203332", "duration_nanos": 250_000_000}]
    with pytest.raises(skein.InvalidRequest, match="from_pandas"):
        server.write(frame)


def test_large_tables_are_cut_into_messages(server: skein.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    # A few rows are most of the bytes, and a dictionary is longer than a message may be.
    long = ["x" * 3_000_000 if 100 <= at < 108 else "y" for at in range(1000)]
    rare = pa.array([f"{at}-" + "z" * 20_000 for at in range(1000)]).dictionary_encode()
    table = spans(1000).append_column("span.long", pa.array(long)).append_column("span.rare", rare)
    assert server.write(table) == 1000
    found = server.sql("SELECT sum(length(attr('long'))) AS long, sum(length(attr('rare'))) AS rare FROM spans").to_pylist()
    assert found == [{"long": 24_000_992, "rare": sum(len(f"{at}-") + 20_000 for at in range(1000))}]
    monkeypatch.setattr(outgoing, "BATCH_BYTES", 1)
    assert [batch.num_rows for batch in outgoing.cut(spans(3))] == [1, 1, 1]


def test_batches_are_short_when_dictionaries_are_spelled_out(server: skein.Client) -> None:
    # Few texts, each long and in many rows: together far more than a server takes in a batch.
    texts = [f"{at % 100}-" + "s" * 5_000 for at in range(16_000)]
    assert server.write(spans(16_000).append_column("span.stack", pa.array(texts))) == 16_000
    def sizes(name: str, column: pa.Array) -> list[int]:
        return [batch.num_rows for batch in outgoing.cut(outgoing.shortest(spans(16_000).append_column(name, column)))]

    assert sizes("span.stack", pa.array(texts)) == [4_000] * 4
    coded = pa.array(texts, pa.large_string()).dictionary_encode()
    assert sizes("span.stack", coded) == [4_000] * 4
    assert sizes("events", pa.array([[]] * 16_000, pa.list_(pa.int8()))) == [16_000]
    one_each = pa.array(range(16_001), pa.int32())
    assert sizes("events", pa.ListArray.from_arrays(one_each, pa.StructArray.from_arrays([coded], ["event.stack"]))) == [4_000] * 4
    assert sizes("resource.stack", pa.array(texts)) == [16_000], "a resource's text counts once"
    found = server.sql("SELECT sum(length(attr('stack'))) AS stack FROM spans").to_pylist()
    assert found == [{"stack": sum(map(len, texts))}]


def test_dictionaries_are_few_when_they_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({f"span.{name}": pa.array([f"{at}-" + name * 90 for at in range(100)] * 2) for name in "abc"})
    kinds = [str(kind) for kind in outgoing.shortest(table).schema.types]
    assert kinds == ["dictionary<values=string, indices=int8, ordered=0>"] * 3
    monkeypatch.setattr(outgoing, "ALL_DICTIONARIES_BYTES", 20_000)
    sent = outgoing.shortest(table)
    assert [str(kind) for kind in sent.schema.types] == [kinds[0]] * 2 + ["string"]
    assert sent.to_pydict() == table.to_pydict()


def test_large_strings_are_text_too() -> None:
    ids = ["b7ad6b7169203331", "b7ad6b7169203332"]
    table = pa.table({"span_id": pa.array(ids, pa.large_string()), "name": pa.array(["a", "a"], pa.large_string())})
    assert [str(kind) for kind in outgoing.shortest(table).schema.types] == ["fixed_size_binary[8]", "dictionary<values=string, indices=int8, ordered=0>"]


def test_little_is_sent_that_says_nothing() -> None:
    few = pa.chunked_array([pa.array(["a", None, "b"]).dictionary_encode(), pa.array(["c", "a", "b"]).dictionary_encode()])
    many = pa.array([f"value-{at}" for at in range(40_000)])
    table = client._plain(pa.table({"span.few": few}))
    for column, values, index in (("few", 128, "int8"), ("some", 129, "int16"), ("more", 1 << 15, "int16"), ("most", (1 << 15) + 1, "int32")):
        coded = many.slice(0, values).dictionary_encode().take(pa.array([values - 1, None, 0]))
        table = table.append_column(f"span.{column}s", pa.chunked_array([coded, coded]))
        narrow = outgoing._with_narrow_keys(table)
        assert str(narrow.schema.field(f"span.{column}s").type.index_type) == index
        assert narrow.to_pydict() == table.to_pydict()
    assert str(narrow.schema.field("span.few").type.index_type) == "int8"


def test_text_that_repeats_is_sent_once() -> None:
    repeated, distinct = ["a", "b", "a", None, "b", "a"], ["a", "b", "c", "d", None, "a"]
    table = pa.table({"name": pa.chunked_array([repeated[:2], repeated[2:]]), "span.distinct": distinct, "parent_span_id": repeated})
    sent = outgoing.shortest(table)
    assert [str(kind) for kind in sent.schema.types] == ["dictionary<values=string, indices=int8, ordered=0>", "string", "string"]
    assert sent.to_pydict() == table.to_pydict()
    assert outgoing.shortest(table.slice(0, 0)).schema.types[:2] == table.schema.types[:2], "of nothing, nothing repeats"


@pytest.mark.parametrize(
    ("numbers", "kind"),
    [
        ([-128, None, 127], pa.int8()),
        ([-129, 127], pa.int16()),
        ([0, 32_768], pa.uint16()),
        ([-1, 32_768], pa.int32()),
        ([0, 4_294_967_295], pa.uint32()),
        ([-1, 4_294_967_295], pa.int64()),
        ([None, None], pa.int8()),
    ],
)
def test_numbers_are_sent_in_few_bytes(numbers: list[int | None], kind: pa.DataType) -> None:
    table = pa.table({"span.number": pa.chunked_array([numbers[:1], numbers[1:]], pa.int64())})
    sent = outgoing.shortest(table)
    assert sent.schema.types == [kind]
    assert sent.to_pydict() == table.to_pydict()


def test_ids_are_sent_as_bytes() -> None:
    ids = ["b7ad6b7169203331", None, "B7AD6B71692033fF"]
    sent = outgoing._with_bytes_of_ids(pa.table({"span_id": pa.chunked_array([ids[:1], ids[1:], []], pa.string()), "name": ids}))
    assert sent.column("span_id").to_pylist() == [None if id is None else bytes.fromhex(id) for id in ids]
    assert sent.column("name").to_pylist() == ids
    for wrong in ("b7ad6b716920333", "b7ad6b716920333x", "b7ad6b71 6920333", "b7ad 6b7169203 3", "", "é7ad6b716920333"):
        table = pa.table({"span_id": ids, "parent_span_id": [wrong, *ids[1:]]})
        assert outgoing._with_bytes_of_ids(table).column("parent_span_id") == table.column("parent_span_id"), wrong


def test_what_a_server_ignores_is_not_sent(server: skein.Client) -> None:
    assert server.write(spans(3, root_name=["a"] * 3, critical_path_nanos=["no number"] * 3)) == 3
    assert server.write(server.sql("SELECT * FROM spans")) == 3
    assert count(server) == 3, "what is written twice is kept once"


def test_a_refusal_says_where_and_what_was_written(server: skein.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "BATCH_SPANS", 10)
    bad = spans(30, kind=["server"] * 24 + ["sever"] + ["server"] * 5)
    with pytest.raises(skein.InvalidRequest, match=r'batch 2: column "kind", row 4: expected one of .*"sever" \(20 spans'):
        server.write(bad)
    assert count(server) == 20
    with pytest.raises(skein.InvalidRequest, match='unknown column "service"'):
        server.write(spans(1, service=["a"]))
    assert server.write(spans(0)) == 0


def test_http_says_where_to_write(server_url: str) -> None:
    with skein.connect(server_url, tenant="written") as client, pytest.raises(skein.InvalidRequest, match="grpc://"):
        client.write(spans(1))
