//! Plans before and after a rule, as explain shows them, and what holds for all rules.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use async_trait::async_trait;

use super::*;
use crate::{
    error::Result as EngineResult,
    exec::{
        source::SourceRef,
        sources::{SourceName, SourceResolver, SourceSet},
    },
    lower::{logical_metrics, logical_search},
    metrics::{detail::Detail, intervals::Intervals},
    query::{SearchRequest, Window},
    spans::BlockId,
    tenant::TenantId,
    traceql::{self, MetricsExpr, QueryBody, SpansetExpr, Stage},
};

/// The limit of the searches below.
pub(super) const LIMIT: usize = 20;

#[derive(Debug)]
struct Nothing;

#[async_trait]
impl SourceResolver for Nothing {
    async fn resolve(&self, _: &TenantId, _: &[SourceName]) -> EngineResult<Vec<SourceRef>> {
        Ok(Vec::new())
    }
}

fn sources() -> Arc<SourceSet> {
    Arc::new(SourceSet::new(TenantId::single(), vec![SourceName::Block { id: BlockId::from_u128(1) }], Arc::new(Nothing)))
}

fn search(query: &str, limit: usize) -> LogicalPlan {
    let QueryBody::Search(pipeline) = traceql::parse(query).unwrap().body else { panic!("{query} is no search") };
    let window = Some(Window { start_seconds: 10, end_seconds: 20 });
    logical_search(&pipeline, &sources(), &SearchRequest { query: query.into(), limit, spans_per_spanset: 3, window })
}

fn metrics(query: &str) -> LogicalPlan {
    let QueryBody::Metrics(MetricsExpr::Pipeline { pipeline, function }) = traceql::parse(query).unwrap().body else {
        panic!("{query} is not one operand")
    };
    let intervals = Intervals::of_range(60_000_000_000, 120_000_000_000, 60_000_000_000).unwrap();
    logical_metrics(&pipeline, &function, &sources(), intervals, &Detail::default())
}

fn shown(plan: &LogicalPlan) -> Vec<String> {
    plan.display_indent().to_string().lines().map(str::to_owned).collect()
}

/// `plan` before and after the rule `name`, the rules before it applied.
fn around(name: &str, plan: LogicalPlan) -> (LogicalPlan, LogicalPlan) {
    let at = rules().iter().position(|rule| rule.name() == name).unwrap();
    let apply = |plan, rules| Optimizer::with_rules(rules).optimize(plan, &OptimizerContext::new().with_max_passes(1), |_, _| {}).unwrap();
    let before = apply(plan, rules()[..at].to_vec());
    (before.clone(), apply(before, vec![rules()[at].clone()]))
}

/// Holds the plan of a search before and after the rule `name` against what is expected.
pub(super) fn check(name: &str, query: &str, before: &[&str], after: &[&str]) {
    let found = around(name, search(query, LIMIT));
    assert_eq!((shown(&found.0), shown(&found.1)), (before.iter().map(<_>::to_string).collect(), after.iter().map(<_>::to_string).collect()));
}

/// Holds the plan of a metrics query before and after the rule `name` against what is expected.
pub(super) fn check_metrics(name: &str, query: &str, before: &[&str], after: &[&str]) {
    let found = around(name, metrics(query));
    assert_eq!((shown(&found.0), shown(&found.1)), (before.iter().map(<_>::to_string).collect(), after.iter().map(<_>::to_string).collect()));
}

/// Holds the filters of a search's scan before and after the rule `name` against what is expected.
pub(super) fn check_filters(name: &str, query: &str, before: &str, after: &str) {
    let filters = |plan: &LogicalPlan| shown(plan)[2].split_once("filters=[").unwrap().1.strip_suffix(']').unwrap().to_owned();
    let found = around(name, search(query, LIMIT));
    assert_eq!((filters(&found.0).as_str(), filters(&found.1).as_str()), (before, after));
}

/// The plan of a search for `limit` traces after the rule `name`.
pub(super) fn check_limit(name: &str, query: &str, limit: usize) -> Vec<String> {
    shown(&around(name, search(query, limit)).1)
}

/// The plan of a search after all rules.
pub(super) fn optimized(query: &str) -> Vec<String> {
    shown(&optimize(search(query, LIMIT)).unwrap())
}

const QUERIES: [&str; 6] = [
    "{ }",
    "{ event.a = 1 && span.b = 2 && event.c = 3 && resource.service.name = `x` } | select(span.d)",
    "({ span.a > 1 }) >> ({ status = error } | by(name) | count() > 2)",
    "{ false } || { name = `x` && name = `y` }",
    "select(span.a)",
    "{ name = `x` } | { duration > 1s || .a = nil } | avg(duration) > 1s",
];

/// A worker parses each term, and the parser takes trees of a certain depth.
#[test]
fn many_terms_over_events_make_no_deep_tree() {
    let terms: Vec<String> = (0..1000).map(|number| format!("event.a{number} = {number}")).collect();
    let QueryBody::Search(pipeline) = traceql::parse(&format!("{{ {} }}", terms.join(" && "))).unwrap().body else { panic!("it is a search") };
    let [Stage::Spansets(SpansetExpr::Filter(filter))] = pipeline.stages.as_slice() else { panic!("it is one filter") };
    let planned = filter_terms(filter);
    assert_eq!(planned.terms.len(), 1);
    assert!(traceql::parse(&format!("{{ {planned} }}")).is_ok());
}

#[test]
fn one_pass_is_enough() {
    let again = |plan: LogicalPlan| Optimizer::with_rules(rules()).optimize(plan, &OptimizerContext::new().with_max_passes(3), |_, _| {}).unwrap();
    for query in QUERIES {
        let once = optimize(search(query, LIMIT)).unwrap();
        assert_eq!(again(once.clone()), once, "{query}");
    }
    let once = optimize(metrics("{ span.a = 1 && name = `x` } | quantile_over_time(duration, .5) by (.b)")).unwrap();
    assert_eq!(again(once.clone()), once);
}

#[test]
fn rules_of_datafusion_change_nothing_of_ours() {
    for query in QUERIES {
        let plan = search(query, LIMIT);
        let mixed: Vec<_> = Optimizer::new().rules.into_iter().chain(rules()).collect();
        let with = Optimizer::with_rules(mixed).optimize(plan.clone(), &OptimizerContext::new(), |_, _| {}).unwrap();
        assert_eq!(shown(&with), shown(&optimize(plan).unwrap()), "{query}");
    }
}
