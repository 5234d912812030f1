"""A trace over time, a bar a span."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from matplotlib import pyplot
from matplotlib.patches import Patch

from . import colors, errors
from .tree import spans_of

ROW_INCHES = 0.2


def waterfall(trace: pa.Table, ax: Any = None, *, spans_max: int = 100) -> Any:
    """Draws one trace: a bar for each span from its start to its end, below its parent, in its service's color, framed in red if it failed.

    `trace` is what `Client.trace` gives. At most `spans_max` spans are drawn, the rest is counted in the title. Bars have the span's id as `gid`.
    Gives matplotlib's `Axes`. Raises `InvalidRequest` for no spans, or spans of several traces.
    """
    spans = spans_of(trace)
    ids = {span.trace_id for span in spans}
    if len(ids) != 1:
        raise errors.InvalidRequest(f"a waterfall shows one trace, the table has {len(ids)}: pass trace(id), or filter by trace_id")
    shown = spans[:spans_max]
    begin = min(span.start_unix_nano for span in spans)
    end = max(span.end_unix_nano for span in spans)
    unit, unit_name = colors.unit_of(end - begin)
    if ax is None:
        ax = pyplot.figure(figsize=(10, 0.9 + ROW_INCHES * len(shown)), layout="constrained").subplots()
    for row, span in enumerate(shown):
        color = colors.of_service(span.service)
        start, width = (span.start_unix_nano - begin) / unit, span.duration_nanos / unit
        edge = colors.ERROR if span.status == "error" else color
        ax.barh(row, width, left=start, height=0.8, color=color, edgecolor=edge, linewidth=1.5 if span.status == "error" else 0.5, gid=span.span_id)
        own_unit, own_unit_name = colors.unit_of(span.duration_nanos)
        text = f"{span.name} {span.duration_nanos / own_unit:.3g} {own_unit_name}"
        _label(ax, row, start, width, (end - begin) / unit, text, color)
    ax.set(xlim=(0, (end - begin) / unit or 1), ylim=(len(shown) - 0.5, -0.5), xlabel=f"{unit_name} since the trace's start", yticks=[])
    left_out = f", {len(spans) - len(shown)} of {len(spans)} spans not shown" if len(shown) < len(spans) else ""
    ax.set_title(f"trace {spans[0].trace_id}{left_out}", fontsize=9, loc="left")
    services = sorted({span.service for span in shown})
    handles = [Patch(color=colors.of_service(name), label=name) for name in services]
    ax.legend(handles=handles, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0.2, frameon=False)
    return ax


def _label(ax: Any, row: int, start: float, width: float, whole: float, text: str, color: colors.Color) -> None:
    """In a long bar, else beside it, on the side where there is room."""
    place = {"textcoords": "offset points", "va": "center", "fontsize": 6.5, "clip_on": True}
    if width > whole / 2:
        ax.annotate(text, (start, row), xytext=(3, 0), ha="left", color=colors.readable_on(color), **place)
    elif start + width / 2 < whole / 2:
        ax.annotate(text, (start + width, row), xytext=(3, 0), ha="left", **place)
    else:
        ax.annotate(text, (start, row), xytext=(-3, 0), ha="right", **place)
