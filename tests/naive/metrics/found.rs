//! What random metrics queries have found: each a case that was answered wrong once, or differently in different places.

use skein_engine::traceql::{QueryBody, parse};

use super::answer::Outcome;
use super::times::Times;
use super::{MetricsCase, ask};
use crate::harness::wait;
use crate::naive::Question;
use crate::naive::engines::engines;
use crate::naive::found::{BLOCK, LIVE, OTHER_BLOCK, START, attribute, span};
use crate::naive::model::{Link, Span, Value};
use crate::naive::traces::World;

/// Checks that every engine answers `query` over the second around the spans as the evaluator does, and that there are series of these
/// values, in order.
#[track_caller]
fn check(spans: &[(Span, u8)], query: &str, values: &[f64]) {
    let QueryBody::Metrics(tree) = parse(query).unwrap().body else { panic!("no metrics: {query}") };
    let world = World { spans: spans.to_vec() };
    let times = Times::Instant { start: START - 500_000_000, end: START + 500_000_000 };
    let case = MetricsCase { world: world.clone(), query: tree, refused: false, spelling: 0, times };
    let engines = wait(engines(&world));
    assert!(!case.disagrees(&engines), "{}", case.told(&engines));
    let Outcome::Series(series) = ask(&engines[0].1, case.request()) else { panic!("{}", case.told(&engines)) };
    let found: Vec<f64> = series.iter().flat_map(|sent| sent.samples.iter().map(|(_, value)| *value)).collect();
    assert_eq!(found, values, "{query}\n{}", case.told(&engines));
}

fn of_kind(id: u64, kind: i32, places: u8) -> (Span, u8) {
    (Span { kind, ..span(id, Vec::new()) }, places)
}

fn text(value: &str) -> Value {
    Value::Text(value.to_owned())
}

#[test]
fn a_kind_that_nobody_defined_is_unspecified() {
    check(&[of_kind(1, -1, LIVE), of_kind(2, 0, BLOCK), of_kind(3, 77, OTHER_BLOCK), of_kind(4, 2, LIVE)], "{ } | rate() by (kind)", &[1.0, 3.0]);
}

#[test]
fn a_grouping_by_the_parent_reads_the_span_itself() {
    let resource = Some(vec![attribute("a", text("resource"))]);
    let spans = [(Span { resource, ..span(1, Vec::new()) }, LIVE), (span(2, vec![attribute("a", text("span"))]), BLOCK)];
    check(&spans, "{ } | rate() by (parent.a)", &[1.0, 1.0]);
    check(&spans, "{ } | rate() by (parent.span.a, parent.resource.a)", &[1.0, 1.0]);
}

#[test]
fn a_list_is_missing_in_a_grouping_whatever_the_resource_has() {
    let list = Value::Array(vec![Value::Int(1), Value::Int(2)]);
    let resource = Some(vec![attribute("a", text("resource"))]);
    let spans =
        [(Span { resource: resource.clone(), ..span(1, vec![attribute("a", list)]) }, BLOCK), (Span { resource, ..span(2, Vec::new()) }, LIVE)];
    check(&spans, "{ } | count_over_time() by (.a)", &[1.0, 1.0]);
}

#[test]
fn what_is_missing_is_not_the_text_nil() {
    let spans = [(span(1, vec![attribute("a", text("nil"))]), LIVE), (span(2, Vec::new()), BLOCK), (span(3, Vec::new()), OTHER_BLOCK)];
    check(&spans, "({ } | count_over_time() by (span.a)) * ({ span.a = nil } | count_over_time() by (span.a))", &[4.0]);
    check(&spans, "({ } | count_over_time() by (span.a)) * ({ span.a = `nil` } | count_over_time() by (span.a))", &[1.0]);
}

#[test]
fn a_coalesce_after_a_select_reaches_the_workers() {
    let spans = [(span(1, Vec::new()), LIVE), (span(2, Vec::new()), BLOCK), (span(3, Vec::new()), OTHER_BLOCK)];
    check(&spans, "select(span.a) | coalesce() | count_over_time()", &[3.0]);
    check(&spans, "select(span.a) | coalesce() | select(span.b) | coalesce() | { true } | count_over_time()", &[3.0]);
}

#[test]
fn what_is_not_a_number_has_no_least_value() {
    let spans = [(span(1, vec![attribute("f", Value::Double(f64::NAN))]), LIVE), (span(2, vec![attribute("n", Value::Int(3))]), BLOCK)];
    check(&spans, "{ } | min_over_time(span.f)", &[]);
    check(&spans, "{ } | max_over_time(span.f) by (name)", &[]);
}

#[test]
fn lists_and_links_are_compared() {
    let list = || Value::Array(vec![Value::Int(1), Value::Int(2)]);
    let links = vec![Link { trace: 1, span: 2, attributes: Vec::new() }];
    let mut spans: Vec<(Span, u8)> = (1..=8).map(|id| (span(id, Vec::new()), BLOCK)).collect();
    spans.push((Span { links, ..span(9, vec![attribute("a", list()), attribute("a", Value::Int(1))]) }, BLOCK));
    spans.push((span(10, vec![attribute("a", list())]), LIVE));
    // By name: three intrinsics, the link's two ids, three intrinsics, the list, three more; the totals are the same.
    let values = [10.0, 10.0, 10.0, 1.0, 1.0, 10.0, 10.0, 10.0, 2.0, 10.0, 10.0, 10.0];
    check(&spans, "{ } | compare({ true })", &[values, values].concat());
}
