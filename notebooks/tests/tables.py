"""Tables of spans, made by hand."""

from __future__ import annotations

import pyarrow as pa

MILLI = 1_000_000
START = 1_700_000_000_000_000_000


def spans(*rows: tuple[str, str, str, str, float, float], trace: str = "0" * 31 + "1", status: dict[str, str] | None = None) -> pa.Table:
    """Rows are (id, parent, service, name, start in ms, end in ms)."""
    ids, parents, services, names, starts, ends = zip(*rows)
    dictionary = pa.dictionary(pa.int32(), pa.string())
    return pa.table(
        {
            "trace_id": pa.array([trace] * len(rows)).cast(dictionary),
            "span_id": pa.array(ids),
            "parent_span_id": pa.array([parent or None for parent in parents], pa.string()),
            "name": pa.array(names).cast(dictionary),
            "status": pa.array([(status or {}).get(id, "unset") for id in ids]).cast(dictionary),
            "start_time": pa.array([START + int(start * MILLI) for start in starts], pa.timestamp("ns", "UTC")),
            "duration_nanos": pa.array([int((end - start) * MILLI) for start, end in zip(starts, ends)], pa.int64()),
            "resource.service.name": pa.array(services).cast(dictionary),
        }
    )


#: A root with two children that overlap, a grandchild, and a child that outlives its parent.
SHOP = spans(
    ("b", "a", "cart", "get", 10, 40),
    ("a", "", "web", "GET /", 0, 100),
    ("c", "a", "cart", "get", 30, 60),
    ("e", "a", "mail", "send", 90, 130),
    ("d", "c", "db", "select", 35, 55),
    status={"d": "error"},
)
