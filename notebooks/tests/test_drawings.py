"""Drawings: every bar where its span is."""

from __future__ import annotations

import io
import math
from typing import Any

import pyarrow as pa
import pytest
from matplotlib.colors import to_rgba

import skein
from skein import colors
from tables import MILLI, SHOP, spans


def bars(ax: Any) -> dict[str, tuple[float, float, float]]:
    """Left edge, width and row of each bar with an id."""
    return {bar.get_gid(): (bar.get_x(), bar.get_width(), round(bar.get_y() + bar.get_height() / 2, 3)) for bar in ax.patches}


def check(found: dict[str, tuple[float, float, float]], expected: dict[str, tuple[float, float, float]]) -> None:
    assert set(found) == set(expected)
    for gid, place in expected.items():
        assert found[gid] == pytest.approx(place), gid


def renders(ax: Any) -> None:
    """The drawing makes an image that is not blank."""
    file = io.BytesIO()
    ax.figure.savefig(file, format="png", dpi=40)
    image = ax.figure.canvas.buffer_rgba() if hasattr(ax.figure.canvas, "buffer_rgba") else b""
    assert file.getbuffer().nbytes > 1000 and len(set(bytes(image)[:: 97])) > 2


def test_waterfall_has_a_bar_for_each_span() -> None:
    ax = skein.waterfall(SHOP)
    check(bars(ax), {"a": (0, 100, 0), "b": (10, 30, 1), "c": (30, 30, 2), "d": (35, 20, 3), "e": (90, 40, 4)})
    assert ax.get_xlim() == (0, 130) and ax.get_xlabel() == "ms since the trace's start"
    renders(ax)


def test_waterfall_frames_failed_spans() -> None:
    ax = skein.waterfall(SHOP)
    failed = {bar.get_gid() for bar in ax.patches if to_rgba(bar.get_edgecolor()) == colors.ERROR}
    assert failed == {"d"}


def test_waterfall_says_what_it_leaves_out() -> None:
    ax = skein.waterfall(SHOP, spans_max=2)
    assert set(bars(ax)) == {"a", "b"} and "3 of 5 spans not shown" in ax.get_title(loc="left")


def test_waterfall_refuses_several_traces() -> None:
    both = pa.concat_tables([SHOP, spans(("a", "", "s", "a", 0, 1), trace="f" * 32)])
    with pytest.raises(skein.InvalidRequest, match="shows one trace, the table has 2"):
        skein.waterfall(both)
    with pytest.raises(skein.InvalidRequest, match="the table has 0"):
        skein.waterfall(SHOP.slice(0, 0))


def test_frames_add_up_by_path_per_trace() -> None:
    other = spans(("a", "", "web", "GET /", 0, 10), ("b", "a", "cart", "get", 2, 6), trace="f" * 32)
    found = skein.frames(pa.concat_tables([SHOP, other]))
    web, cart = ("web: GET /",), ("web: GET /", "cart: get")
    assert set(found) == {web, cart, (*cart, "db: select"), (*web, "mail: send")}
    assert (found[web].calls, found[web].self_nanos) == (1, (40 + 6) / 2 * MILLI)
    assert (found[cart].calls, found[cart].self_nanos, found[cart].total_nanos) == (1.5, 22 * MILLI, 32 * MILLI)
    assert found[web].total_nanos == (40 + 40 + 20 + 40 + 10) / 2 * MILLI


def test_flame_graph_stacks_frames() -> None:
    ax = skein.flame_graph(SHOP)
    root = "web: GET /"
    expected = {root: (0, 140, 0.5), f"{root} > cart: get": (0, 60, 1.5), f"{root} > cart: get > db: select": (0, 20, 2.5), f"{root} > mail: send": (60, 40, 1.5)}
    check(bars(ax), expected)
    assert ax.get_xlabel() == "ms per trace"
    renders(ax)


def test_a_frame_lies_on_its_parent() -> None:
    """Property: each frame is within its parent, and frames of a row do not overlap."""
    rows = [("0", "", "s", "r", 0.0, 64.0)]
    for at in range(1, 60):
        parent = (at - 1) // 3
        rows.append((str(at), str(parent), f"s{at % 4}", f"n{at % 5}", at * 0.5, at * 0.5 + 64 / (1 + at)))
    found = bars(skein.flame_graph(spans(*rows)))
    by_row: dict[float, list[tuple[float, float]]] = {}
    for gid, (left, width, row) in found.items():
        by_row.setdefault(row, []).append((left, left + width))
        above = found.get(gid.rpartition(" > ")[0])
        assert above is None or (left >= above[0] - 1e-9 and left + width <= above[0] + above[1] + 1e-9), gid
    for places in by_row.values():
        places.sort()
        assert all(one[1] <= other[0] + 1e-9 for one, other in zip(places, places[1:]))


def test_flame_diff_blames_the_span_that_became_slow_and_not_its_callers() -> None:
    before = spans(("a", "", "web", "GET /", 0, 20), ("b", "a", "cart", "get", 5, 15), ("c", "b", "db", "select", 6, 10))
    after = spans(("a", "", "web", "GET /", 0, 50), ("b", "a", "cart", "get", 5, 45), ("c", "b", "db", "select", 6, 42))
    ax, changes = skein.flame_diff(before, after)
    web, cart, db = ("web: GET /",), ("web: GET /", "cart: get"), ("web: GET /", "cart: get", "db: select")
    assert changes == {db: 32 * MILLI, web: 0, cart: -2 * MILLI}
    assert next(iter(changes)) == db
    face = {bar.get_gid(): bar.get_facecolor() for bar in ax.patches}
    assert face[" > ".join(db)] == (1, 0, 0, 1) and face[web[0]] == (1, 1, 1, 1)
    red, green, blue, _ = face[" > ".join(cart)]
    assert blue == 1 and red == green == pytest.approx(1 - math.sqrt(2 / 32))
    assert "+30 ms per trace" in ax.get_title(loc="left")
    renders(ax)


def test_flame_graph_of_nothing_says_so() -> None:
    with pytest.raises(skein.InvalidRequest, match="no spans to draw: is the window right"):
        skein.flame_graph(SHOP.slice(0, 0))


EDGES = pa.table({"client": ["web", "web", "cart", "mail"], "server": ["cart", "mail", "db", "web"], "calls": [100, 10, 1000, 1], "errors": [0, 2, 0, 0]})


def arrows(ax: Any) -> dict[str, Any]:
    return {text.get_gid(): text.arrow_patch for text in ax.texts if getattr(text, "arrow_patch", None) is not None}


def test_service_graph_points_to_the_right_though_there_is_a_circle() -> None:
    ax = skein.draw_service_graph(EDGES)
    place = {text.get_gid(): text.get_position()[0] for text in ax.texts if getattr(text, "arrow_patch", None) is None}
    assert set(place) == {"web", "cart", "mail", "db"}
    # Of the two that call each other, one is left: everything else follows.
    assert place["mail"] != place["web"]
    assert place["web"] < place["cart"] < place["db"]
    assert "4 services, 1,111 calls" in ax.get_title(loc="left")
    renders(ax)


def test_service_graph_arrows_tell_calls_and_errors() -> None:
    found = arrows(skein.draw_service_graph(EDGES))
    assert set(found) == {"web > cart", "web > mail", "cart > db", "mail > web"}
    widths = {gid: arrow.get_linewidth() for gid, arrow in found.items()}
    assert widths["cart > db"] > widths["web > cart"] > widths["web > mail"] > widths["mail > web"]
    red = {gid for gid, arrow in found.items() if to_rgba(arrow.get_edgecolor())[:3] == colors.ERROR[:3]}
    assert red == {"web > mail"}


def test_service_graph_needs_edges() -> None:
    with pytest.raises(skein.InvalidRequest, match="lacks server, calls: pass SELECT"):
        skein.draw_service_graph(pa.table({"client": ["web"]}))
    with pytest.raises(skein.InvalidRequest, match="has no rows"):
        skein.draw_service_graph(EDGES.slice(0, 0))
