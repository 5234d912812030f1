"""Traces as trees."""

from __future__ import annotations

import pytest

import skein
from tables import MILLI, SHOP, spans


def test_parents_come_before_children_and_children_by_start() -> None:
    found = skein.spans_of(SHOP)
    assert [(span.span_id, span.depth) for span in found] == [("a", 0), ("b", 1), ("c", 1), ("d", 2), ("e", 1)]


def test_self_time_counts_overlapping_children_once_and_clips_them() -> None:
    # a: 100 ms, children cover 10-60 and 90-100.
    assert {span.span_id: span.self_nanos / MILLI for span in skein.spans_of(SHOP)} == {"a": 40, "b": 30, "c": 10, "d": 20, "e": 40}


def test_a_child_inside_another_takes_nothing_twice() -> None:
    found = skein.spans_of(spans(("a", "", "s", "a", 0, 10), ("b", "a", "s", "b", 1, 9), ("c", "a", "s", "c", 2, 3), ("d", "a", "s", "d", 8, 9.5)))
    assert found[0].self_nanos == 1.5 * MILLI


def test_an_orphan_stands_beside_the_root() -> None:
    found = skein.spans_of(spans(("a", "", "s", "a", 5, 10), ("b", "missing", "s", "b", 1, 9), ("c", "b", "s", "c", 2, 3)))
    assert [(span.span_id, span.depth) for span in found] == [("b", 0), ("c", 1), ("a", 0)]


def test_a_span_sent_twice_is_there_once() -> None:
    found = skein.spans_of(spans(("a", "", "s", "a", 0, 10), ("b", "a", "s", "b", 1, 9), ("b", "a", "s", "b", 1, 9)))
    assert [span.span_id for span in found] == ["a", "b"]


def test_a_circle_of_parents_ends() -> None:
    found = skein.spans_of(spans(("a", "b", "s", "a", 0, 10), ("b", "a", "s", "b", 1, 9), ("c", "c", "s", "c", 2, 3), ("d", "b", "s", "d", 4, 5)))
    assert [(span.span_id, span.depth) for span in found] == [("a", 0), ("b", 1), ("d", 2), ("c", 0)]


def test_a_missing_column_is_named() -> None:
    with pytest.raises(skein.InvalidRequest, match="lacks span_id, duration_nanos: select them too"):
        skein.spans_of(SHOP.drop_columns(["span_id", "duration_nanos"]))
