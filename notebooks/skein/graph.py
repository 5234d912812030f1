"""The graph of services, drawn from its edges."""

from __future__ import annotations

from collections import defaultdict
from math import log10
from typing import Any

import pyarrow as pa
from matplotlib import pyplot

from . import colors, errors


def draw_service_graph(edges: pa.Table, ax: Any = None) -> Any:
    """Draws services and who calls whom: callers left of those they call, arrows as thick as there are calls (logarithmically), red where calls fail.

    `edges` is what `SELECT * FROM service_graph()` gives: `client`, `server`, `calls`, and `errors` if there. Arrows have `client > server` as
    `gid`, services their name. Gives matplotlib's `Axes`. Raises `InvalidRequest` for a table without edges.
    """
    missing = [name for name in ("client", "server", "calls") if name not in edges.column_names]
    if missing or edges.num_rows == 0:
        what = f"lacks {', '.join(missing)}" if missing else "has no rows"
        raise errors.InvalidRequest(f"the table of edges {what}: pass SELECT * FROM service_graph(…) over a window with calls between services")
    calls = _calls(edges)
    places = _places(list(calls))
    columns = max(x for x, _ in places.values()) + 1
    rows = max(sum(1 for x, _ in places.values() if x == column) for column in range(columns))
    if ax is None:
        ax = pyplot.figure(figsize=(2.4 * columns, 0.9 + 0.5 * rows), layout="constrained").subplots()
    most = max(count for count, _ in calls.values())
    for (client, server), (count, failed) in calls.items():
        _arrow(ax, client, server, places, 0.5 + 3.0 * log10(1 + count) / log10(1 + most), failed / count if count else 0.0)
    for service, (x, y) in places.items():
        color = colors.of_service(service)
        box = {"boxstyle": "round,pad=0.35", "facecolor": color, "edgecolor": "none"}
        ax.text(x, y, service, ha="center", va="center", fontsize=7, color=colors.readable_on(color), bbox=box, gid=service, zorder=3)
    ax.set(xlim=(-0.6, columns - 0.4), ylim=(min(y for _, y in places.values()) - 0.8, max(y for _, y in places.values()) + 0.8))
    ax.axis("off")
    ax.set_title(f"{len(places)} services, {sum(count for count, _ in calls.values()):,} calls", fontsize=9, loc="left")
    return ax


def _calls(edges: pa.Table) -> dict[tuple[str, str], tuple[int, int]]:
    """Calls and failed ones of each edge."""
    failed = edges.column("errors").to_pylist() if "errors" in edges.column_names else [0] * edges.num_rows
    rows = zip(edges.column("client").to_pylist(), edges.column("server").to_pylist(), edges.column("calls").to_pylist(), failed)
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for client, server, count, bad in rows:
        before = found.get((client, server), (0, 0))
        found[client, server] = (before[0] + count, before[1] + bad)
    return found


def _arrow(ax: Any, client: str, server: str, places: dict[str, tuple[int, float]], width: float, failing: float) -> None:
    color = colors.ERROR if failing > 0 else (0.45, 0.45, 0.45, 0.8)
    # Neighbours in a column, and calls back, bow out so that they do not run through other services.
    bow = 0.12 if places[client][0] < places[server][0] else 0.35
    style = {"arrowstyle": "-|>", "color": color, "linewidth": width, "connectionstyle": f"arc3,rad={bow}", "shrinkA": 22, "shrinkB": 22, "alpha": 0.8}
    if client != server:
        ax.annotate("", xy=places[server], xytext=places[client], arrowprops=style, gid=f"{client} > {server}", zorder=1)


def _places(edges: list[tuple[str, str]]) -> dict[str, tuple[int, float]]:
    """A column for each service, right of all that call it as far as calls do not go in circles; in a column, near to its callers."""
    callers = defaultdict(set)
    called = defaultdict(set)
    services = sorted({service for edge in edges for service in edge})
    for client, server in edges:
        if client != server:
            callers[server].add(client)
            called[client].add(server)
    column = _columns(services, called)
    places: dict[str, tuple[int, float]] = {}
    for at in range(max(column.values()) + 1):
        members = [service for service in services if column[service] == at]

        def height(service: str) -> float:
            heights = [places[caller][1] for caller in callers[service] if caller in places]
            return sum(heights) / len(heights) if heights else 0.0

        members.sort(key=lambda service: (-height(service), service))
        for row, service in enumerate(members):
            places[service] = (at, (len(members) - 1) / 2 - row)
    return places


def _columns(services: list[str], called: dict[str, set[str]]) -> dict[str, int]:
    """The longest way from a service that nobody calls, not counting calls that close a circle (found depth first)."""
    order: list[str] = []
    back: set[tuple[str, str]] = set()
    done: set[str] = set()
    starts = [service for service in services if not any(service in below for below in called.values())]
    for start in starts + services:
        if start in done:
            continue
        path, open_ = [(start, iter(sorted(called[start])))], {start}
        done.add(start)
        while path:
            service, below = path[-1]
            step = next(below, None)
            if step is None:
                path.pop()
                open_.discard(service)
                order.append(service)
            elif step in open_:
                back.add((service, step))
            elif step not in done:
                done.add(step)
                open_.add(step)
                path.append((step, iter(sorted(called[step]))))
    column = dict.fromkeys(services, 0)
    for service in reversed(order):
        for callee in called[service]:
            if (service, callee) not in back:
                column[callee] = max(column[callee], column[service] + 1)
    return column
