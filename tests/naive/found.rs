//! What the random queries have found: each a case that was answered wrong once, or differently in different places.

use skein_engine::traceql::{QueryBody, parse};

use crate::harness::wait;

use super::engines::engines;
use super::model::{Attributes, Event, Link, Span, Value};
use super::traces::{BASE_SECONDS, World};
use super::{Case, ask};

pub const START: u64 = BASE_SECONDS * 1_000_000_000;
/// Places of a span: live, the block with few columns, the other block.
pub const LIVE: u8 = 1;
pub const BLOCK: u8 = 2;
pub const OTHER_BLOCK: u8 = 4;

pub fn span(id: u64, attributes: Attributes) -> Span {
    Span {
        trace: 0xabc,
        id,
        parent: None,
        name: String::new(),
        kind: 0,
        start: START,
        end: START,
        status: None,
        attributes,
        events: Vec::new(),
        links: Vec::new(),
        resource: None,
        scope: None,
    }
}

pub fn with_event(id: u64, attributes: Attributes) -> Span {
    Span { events: vec![Event { time: START, name: "e".to_owned(), attributes }], ..span(id, Vec::new()) }
}

pub fn attribute(key: &str, value: Value) -> (String, Value) {
    (key.to_owned(), value)
}

/// Checks that every engine answers `query` right, and that this is spansets of so many spans, newest trace first.
#[track_caller]
fn check(spans: &[(Span, u8)], query: &str, matched: &[u32]) {
    let QueryBody::Search(pipeline) = parse(query).unwrap().body else { panic!("no search: {query}") };
    let world = World { spans: spans.to_vec() };
    for spans_per_spanset in [1, 100] {
        let case = Case { world: world.clone(), query: pipeline.clone(), spelling: 0, limit: 20, spans_per_spanset, window: None };
        let expected = case.expected();
        let answer = expected.answer().unwrap();
        assert_eq!(answer.iter().flat_map(|trace| trace.matched()).collect::<Vec<_>>(), matched, "{query}");
        for (name, engine) in wait(engines(&world)) {
            let outcome = ask(&engine, case.request());
            assert!(expected.allows(&outcome), "{name}: {query}\nexpected:\n{expected}answered:\n{outcome}");
        }
    }
}

#[test]
fn values_of_expressions_over_events_come_from_the_events_of_the_span() {
    let spans = [
        (with_event(1, vec![attribute("n", Value::Int(3)), attribute("flag", Value::Bool(true))]), LIVE),
        (span(2, Vec::new()), LIVE),
        (span(3, Vec::new()), BLOCK),
    ];
    check(&spans, "{ } | by(event.flag = true)", &[1, 2]);
    check(&spans, "{ } | max(event.n + 1) = 4", &[]);
    check(&spans, "{ event.n != nil } | max(event.n + 1) = 4", &[1]);
    check(&spans, "{ } | by(event:name !~ `x`)", &[1, 2]);
}

#[test]
fn of_several_events_any_makes_a_grouping_true() {
    let link = |span| Link { trace: 1, span, attributes: Vec::new() };
    let spans = [(Span { links: vec![link(1), link(2), link(3)], ..span(1, Vec::new()) }, LIVE), (span(2, Vec::new()), BLOCK)];
    check(&spans, "{ } | by(link:spanID = `0000000000000002`)", &[1, 1]);
}

#[test]
fn events_lack_a_key_that_no_event_has() {
    let spans = [(with_event(1, Vec::new()), LIVE), (span(2, Vec::new()), BLOCK), (with_event(3, Vec::new()), OTHER_BLOCK)];
    check(&spans, "{ event.k = nil }", &[2]);
    check(&spans, "{ event.k = 1 }", &[]);
    check(&spans, "{ event.k != 1 || event:name = `e` }", &[2]);
}

#[test]
fn of_the_events_that_fit_the_last_is_shown() {
    let link = |span| Link { trace: 1, span, attributes: Vec::new() };
    let spans = [(Span { links: vec![link(1), link(0)], ..span(1, Vec::new()) }, LIVE)];
    check(&spans, "{ link:spanID = `0000000000000000` || link:spanID = `0000000000000001` }", &[1]);
}

#[test]
fn an_attribute_read_in_two_ways_is_shown_once() {
    let spans = [(span(1, vec![attribute("f", Value::Double(f64::NAN)), attribute("a", Value::Int(1))]), LIVE)];
    check(&spans, "{ } | select(.a, span.a, .f, span.f)", &[1]);
}

#[test]
fn a_span_that_ends_before_it_starts_takes_no_time() {
    check(&[(Span { end: START - 1, ..span(1, Vec::new()) }, BLOCK), (Span { end: 0, ..span(2, Vec::new()) }, LIVE)], "{ }", &[2]);
}

#[test]
fn the_first_visible_value_of_a_key_counts() {
    let list = || Value::Array(vec![Value::Int(1), Value::Int(2)]);
    let spans = [
        (span(1, vec![attribute("a", list()), attribute("a", Value::Int(3))]), LIVE),
        (span(2, vec![attribute("a", Value::Bytes(vec![1])), attribute("a", Value::Int(3))]), BLOCK),
        (span(3, vec![attribute("a", Value::Int(3)), attribute("a", list())]), OTHER_BLOCK),
        (with_event(4, vec![attribute("a", list()), attribute("a", Value::Int(3))]), BLOCK),
    ];
    check(&spans, "{ span.a = 2 }", &[1]);
    check(&spans, "{ span.a = 3 }", &[2]);
    check(&spans, "{ event.a = 3 }", &[]);
}

#[test]
fn a_span_in_two_places_is_one_whatever_columns_they_have() {
    let mut spans: Vec<(Span, u8)> = (1..=20).map(|id| (span(id, vec![attribute("a", Value::Text("x".to_owned()))]), BLOCK)).collect();
    spans.push((span(21, vec![attribute("a", Value::Int(1))]), LIVE | BLOCK));
    spans.push((with_event(22, vec![attribute("a", Value::Int(1)), attribute("b", Value::Int(1))]), LIVE | BLOCK | OTHER_BLOCK));
    check(&spans, "{ }", &[22]);
    check(&spans, "{ span.a = 1 || event.a = 1 }", &[2]);
}

#[test]
fn spans_of_one_start_and_id_have_an_order_of_their_own() {
    let spans = [
        (span(1, vec![attribute("a", Value::Text("b".to_owned()))]), LIVE),
        (span(1, vec![attribute("a", Value::Text("a".to_owned()))]), BLOCK),
        (Span { end: START + 1, ..span(1, Vec::new()) }, LIVE | OTHER_BLOCK),
        (Span { parent: Some(1), ..span(2, Vec::new()) }, OTHER_BLOCK),
    ];
    check(&spans, "{ } | select(.a)", &[4]);
    check(&spans, "{ } > { }", &[1]);
    check(&spans, "{ span.a = `a` } > { }", &[1]);
    check(&spans, "{ span.a = `b` } > { }", &[]);
}

#[test]
fn an_average_does_not_overflow_and_an_aggregate_is_a_number() {
    let spans = [(span(1, vec![attribute("n", Value::Int(i64::MAX))]), LIVE), (span(2, vec![attribute("n", Value::Int(i64::MAX))]), BLOCK)];
    check(&spans, "{ } | avg(span.n) > 1", &[2]);
    check(&spans, "{ } | sum(span.n) = -2", &[2]);
    let list = Value::Array(vec![Value::Int(1), Value::Int(2)]);
    check(&[(span(1, vec![attribute("n", list)]), LIVE)], "{ } | sum(span.n) = 1", &[]);
}

#[test]
fn what_has_no_value_is_not_unlike_an_empty_array() {
    check(&[(span(1, vec![attribute("a", Value::Array(Vec::new()))]), LIVE)], "{ span.b != span.a }", &[]);
    check(&[(span(1, vec![attribute("a", Value::Array(Vec::new()))]), LIVE)], "{ span.a != 1 }", &[1]);
}

#[test]
fn integers_and_durations_compare_exactly() {
    let spans = [(Span { end: START + (1 << 53) + 1, ..span(1, vec![attribute("n", Value::Int(1 << 53))]) }, LIVE)];
    check(&spans, "{ span.n < duration && 9007199254740992 < 9007199254740993ns }", &[1]);
}
