"""Traces as trees: what the drawings are made from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from . import errors

SERVICE = "resource.service.name"
_NEEDED = ["trace_id", "span_id", "parent_span_id", "name", "start_time", "duration_nanos", SERVICE]


@dataclass
class Span:
    """One span in its trace. Times in nanoseconds."""

    trace_id: str
    span_id: str
    name: str
    service: str
    status: str
    start_unix_nano: int
    duration_nanos: int
    #: 0 for a root and for a span whose parent is not there.
    depth: int = 0
    #: By start.
    children: list[Span] = field(default_factory=list, repr=False)

    @property
    def end_unix_nano(self) -> int:
        """Start and duration added up."""
        return self.start_unix_nano + self.duration_nanos

    @property
    def self_nanos(self) -> int:
        """The time that no child covers; where children overlap, it is taken off once, and what a child does outside of its parent does not count."""
        covered, reached = 0, self.start_unix_nano
        for child in self.children:
            end = min(child.end_unix_nano, self.end_unix_nano)
            covered += max(0, end - max(child.start_unix_nano, reached))
            reached = max(reached, end)
        return self.duration_nanos - covered


def spans_of(table: pa.Table) -> list[Span]:
    """The spans of `table` (rows of `spans`, `trace()` or `traceql()`), each before its children, children by start, traces by start.

    A span that is there twice is taken once; one whose parent is missing stands beside the roots, and so does the first of a circle of parents.
    Raises `InvalidRequest` where a column is missing.
    """
    spans, roots = _linked(table)
    ordered: list[Span] = []
    reached: set[int] = set()
    # After the roots, what cannot be reached from one: circles.
    for start in [*sorted(roots, key=_by_start), *sorted(spans, key=_by_start)]:
        waiting = [start]
        while waiting:
            span = waiting.pop()
            if id(span) in reached:
                continue
            reached.add(id(span))
            ordered.append(span)
            span.children = [child for child in sorted(span.children, key=_by_start) if id(child) not in reached]
            for child in reversed(span.children):
                child.depth = span.depth + 1
                waiting.append(child)
    return ordered


def _by_start(span: Span) -> tuple[int, str]:
    return span.start_unix_nano, span.span_id


def _read(table: pa.Table) -> Iterator[tuple[Span, str | None]]:
    missing = [name for name in _NEEDED if name not in table.column_names]
    if missing:
        raise errors.InvalidRequest(f"the table lacks {', '.join(missing)}: select them too, or all with SELECT *")
    columns = [table.column(name) for name in _NEEDED]
    columns[4] = columns[4].cast(pa.timestamp("ns", "UTC")).cast(pa.int64())
    statuses = table.column("status").to_pylist() if "status" in table.column_names else ["unset"] * table.num_rows
    for trace_id, span_id, parent, name, start, duration, service, status in zip(*(column.to_pylist() for column in columns), statuses):
        yield Span(trace_id, span_id, name, service or "", status, start, duration), parent


def _linked(table: pa.Table) -> tuple[list[Span], list[Span]]:
    """All spans, with their children, and those whose parent is not there."""
    found: dict[tuple[str, str], tuple[Span, str | None]] = {}
    for span, parent in _read(table):
        found.setdefault((span.trace_id, span.span_id), (span, parent))
    roots: list[Span] = []
    for span, parent in found.values():
        above = found.get((span.trace_id, parent or ""))
        (above[0].children if above else roots).append(span)
    return [span for span, _ in found.values()], roots
