"""What the engine and the package compute, once more, written from the definitions and for reading."""

from __future__ import annotations

from collections import defaultdict

from recorded import Span


def critical_path(spans: list[Span]) -> dict[str, int]:
    """Nanoseconds of each span of a trace on the critical path, as docs/sql.md defines it: each root by itself."""
    nanos = {span.id: 0 for span in spans}
    ids = {span.id for span in spans}
    for root in spans:
        if root.parent not in ids:
            _walk(root, root.start, root.end, nanos)
    return nanos


def _walk(span: Span, begin: int, end: int, nanos: dict[str, int]) -> None:
    """Shares out the time from `begin` to `end`, in which the trace waits for `span`: from its end backwards, each time to the child that ends last
    before the point that is reached; what is between is the span's own."""
    point = end
    while True:
        parts = [(min(child.end, end), max(child.start, begin), child) for child in span.children]
        before = [part for part in parts if part[1] < part[0] <= point]
        if not before:
            nanos[span.id] += point - begin
            return
        until, since, child = max(before, key=lambda part: (part[0], -part[1], -part[2].start))
        nanos[span.id] += point - until
        _walk(child, since, until, nanos)
        point = since


def self_time_by_path(traces: list[list[Span]]) -> dict[tuple[str, ...], float]:
    """Time in no child, per trace, added up by the path of calls from the root."""
    found: dict[tuple[str, ...], float] = defaultdict(float)
    for spans in traces:
        by_id = {span.id: span for span in spans}
        for span in by_id.values():
            path, above = [span], span
            while above := by_id.get(above.parent):  # type: ignore[assignment]
                path.append(above)
            found[tuple(f"{span.service}: {span.name}" for span in reversed(path))] += _self_time(span)
    return {path: nanos / len(traces) for path, nanos in found.items()}


def _self_time(span: Span) -> int:
    """Cut at every start and end of a child: a piece counts if no child covers it."""
    cuts = {span.start, span.end}
    for child in span.children:
        cuts.update(min(max(time, span.start), span.end) for time in (child.start, child.end))
    places = sorted(cuts)
    pieces = zip(places, places[1:])
    return sum(end - start for start, end in pieces if not any(child.start <= start and end <= child.end for child in span.children))
