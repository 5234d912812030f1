"""Where time is spent, added up over traces by the path of calls; and how that differs between two sets of traces."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from matplotlib import pyplot

from . import colors, errors
from .tree import Span, spans_of

Path = tuple[str, ...]

ROW_INCHES = 0.24
#: Frames narrower than this part of the whole are not drawn.
VISIBLE = 0.001


@dataclass
class Frame:
    """A path of calls, each `service: name`, from the root down, with what all spans on it have spent. Nanoseconds, per trace."""

    path: Path
    service: str
    #: Spans on exactly this path, per trace.
    calls: float = 0.0
    #: What these spans spent themselves, in no child.
    self_nanos: float = 0.0
    #: The same with all paths below. Work at the same time counts as often as it is done, so this may exceed the time that passed.
    total_nanos: float = 0.0
    children: list[Path] = field(default_factory=list, repr=False)


def frames(spans: pa.Table) -> dict[Path, Frame]:
    """The frames of a table of spans (of whole traces), by path; those before their children.

    Per trace: sums are divided by the number of traces. Raises `InvalidRequest` where a column is missing.
    """
    found: dict[Path, Frame] = {}
    traces: set[str] = set()
    above: list[Path] = []
    for span in spans_of(spans):
        traces.add(span.trace_id)
        del above[span.depth :]
        path = (*(above[-1] if above else ()), _call(span))
        above.append(path)
        frame = found.get(path)
        if frame is None:
            frame = found[path] = Frame(path, span.service)
            if len(path) > 1:
                found[path[:-1]].children.append(path)
        frame.calls += 1
        frame.self_nanos += span.self_nanos
    for frame in reversed(found.values()):
        frame.calls /= len(traces)
        frame.self_nanos /= len(traces)
        frame.total_nanos += frame.self_nanos
        if len(frame.path) > 1:
            found[frame.path[:-1]].total_nanos += frame.total_nanos
    return found


def _call(span: Span) -> str:
    return f"{span.service}: {span.name}" if span.service else span.name


def flame_graph(spans: pa.Table, ax: Any = None) -> Any:
    """Draws where time goes: a row a level of calls, as wide as the time spent in it and below, per trace; colors are services.

    `spans` has the spans of one or many whole traces. Rectangles have their path, joined by ` > `, as `gid`. Gives matplotlib's `Axes`.
    """
    found = frames(spans)
    ax = _draw(found, {path: colors.of_service(frame.service) for path, frame in found.items()}, ax)
    ax.set_title("time by path of calls", fontsize=9, loc="left")
    return ax


def flame_diff(before: pa.Table, after: pa.Table, ax: Any = None) -> Any:
    """Draws where time goes in `after`, and by color what changed since `before`: red is time won, blue is time lost, per trace.

    A rectangle is colored by the change of what its spans spent *themselves*, so the culprit is red and its callers are not. What is not in `after`
    any more is not shown. The change in nanoseconds is `flame_diff`'s second result, by path, largest first.

    Gives `(Axes, changes)`.
    """
    old, new = frames(before), frames(after)
    changes = {path: (new[path].self_nanos if path in new else 0.0) - (old[path].self_nanos if path in old else 0.0) for path in {**old, **new}}
    largest = max((abs(change) for change in changes.values()), default=0.0) or 1.0
    ax = _draw(new, {path: _change_color(changes[path] / largest) for path in new}, ax)
    whole = sum(changes.values())
    unit, name = colors.unit_of(abs(whole))
    ax.set_title(f"time by path of calls; red: more than before ({whole / unit:+.3g} {name} per trace in all)", fontsize=9, loc="left")
    return ax, dict(sorted(changes.items(), key=lambda item: -item[1]))


def _change_color(change: float) -> colors.Color:
    """White for no change, to red for +1 and blue for -1; small changes are seen."""
    strength = min(1.0, abs(change)) ** 0.5
    return (1.0, 1.0 - strength, 1.0 - strength, 1.0) if change > 0 else (1.0 - strength, 1.0 - strength, 1.0, 1.0)


def _draw(found: dict[Path, Frame], color_of: dict[Path, colors.Color], ax: Any) -> Any:
    if not found:
        raise errors.InvalidRequest("there are no spans to draw: is the window right?")
    roots = [frame for frame in found.values() if len(frame.path) == 1]
    whole = sum(frame.total_nanos for frame in roots) or 1.0
    unit, unit_name = colors.unit_of(whole)
    places = _places(found, roots)
    visible = [frame for frame in found.values() if frame.total_nanos >= VISIBLE * whole]
    depth = max((len(frame.path) for frame in visible), default=1)
    if ax is None:
        ax = pyplot.figure(figsize=(11, 0.8 + ROW_INCHES * depth), layout="constrained").subplots()
    for frame in visible:
        color, left, row = color_of[frame.path], places[frame.path] / unit, len(frame.path) - 1
        width = frame.total_nanos / unit
        ax.barh(row, width, left=left, height=1.0, align="edge", color=color, edgecolor="grey", linewidth=0.3, gid=" > ".join(frame.path))
        letters = int(width * unit / whole * 150)
        if letters >= 4:
            text = frame.path[-1] if len(frame.path[-1]) <= letters else frame.path[-1][: letters - 1] + "…"
            ax.text(left + width / 2, row + 0.5, text, fontsize=6.5, ha="center", va="center", color=colors.readable_on(color), clip_on=True)
    ax.set(xlim=(0, whole / unit), ylim=(depth, 0), yticks=[], xlabel=f"{unit_name} per trace")
    return ax


def _places(found: dict[Path, Frame], roots: list[Frame]) -> dict[Path, float]:
    """The left edge of each frame: children stand side by side below their parent, widest first."""
    places: dict[Path, float] = {}

    def side_by_side(frames: list[Frame], left: float) -> None:
        for frame in sorted(frames, key=lambda frame: (-frame.total_nanos, frame.path)):
            places[frame.path] = left
            left += frame.total_nanos

    side_by_side(roots, 0.0)
    for path, frame in found.items():
        side_by_side([found[child] for child in frame.children], places[path])
    return places
