//! `NeverMatches`: see [`NeverMatches`].

use std::collections::HashMap;

use datafusion::{
    common::{Result, tree_node::Transformed},
    logical_expr::{Extension, LogicalPlan},
    optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule},
};

use crate::{
    exec::eval::value::compare,
    plan::logical::{MetricsObservation, NewestTraces, SpansetStages, TraceDetails, head, is_nothing, nothing},
    spans::value::Value,
    traceql::{Aggregate, AggregateFilter, CompareOp, FieldExpr, FieldRef, Form, Intrinsic, Pipeline, SpansetExpr, SpansetOp, Stage, Static},
};

/// Comparisons of one field in one `&&` that are held against each other. More are not looked at: their number grows with the square.
const COMPARISONS_MAX: usize = 16;

/// Puts an empty relation in the place of stages that keep nothing, whatever is stored, and of what stands above them: nothing is read. Such
/// are filters that are constant, that compare a field with what it cannot be, or whose terms exclude each other; operators one side of which
/// is needed and empty; and `count()` below one, since no spanset is empty. Not where a stage before may fail: whether a query is an error
/// must not depend on what stands after its mistake. [`MetricsMerge`](crate::plan::logical::MetricsMerge) stays: the sum of no series is an
/// answer.
/// ```text
/// TraceDetails                                                →   EmptyRelation
///   NewestTraces
///     SpansetStages: { duration > 2s && duration < 1s } > { }
///       Traces
/// ```
#[derive(Debug)]
pub struct NeverMatches;

impl OptimizerRule for NeverMatches {
    fn name(&self) -> &str {
        "never_matches"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        Ok(if has_no_rows(&plan) { Transformed::yes(nothing(plan.schema())) } else { Transformed::no(plan) })
    }
}

fn has_no_rows(plan: &LogicalPlan) -> bool {
    let LogicalPlan::Extension(Extension { node }) = plan else { return false };
    let any = node.as_any();
    let of_input = any.is::<SpansetStages>() || any.is::<NewestTraces>() || any.is::<TraceDetails>() || any.is::<MetricsObservation>();
    let stages_keep_nothing = || head::<SpansetStages>(plan).is_some_and(|stages| gives_nothing(&stages.pipeline));
    of_input && (node.inputs().into_iter().all(is_nothing) || stages_keep_nothing())
}

fn gives_nothing(pipeline: &Pipeline) -> bool {
    for stage in &pipeline.stages {
        if keeps_nothing(stage) {
            return true;
        }
        if stage_may_fail(stage) {
            return false;
        }
    }
    false
}

/// Whether some spans can make a stage an error. Says yes rather too often.
fn stage_may_fail(stage: &Stage) -> bool {
    match stage {
        Stage::Spansets(expr) => spansets_may_fail(expr),
        Stage::By(expr) => may_fail(expr),
        Stage::Aggregate(filter) => match &filter.aggregate {
            Aggregate::Count => false,
            Aggregate::Min(expr) | Aggregate::Max(expr) | Aggregate::Avg(expr) | Aggregate::Sum(expr) => may_fail(expr),
        },
        Stage::Coalesce | Stage::Select(_) => false,
    }
}

fn spansets_may_fail(expr: &SpansetExpr) -> bool {
    match expr {
        SpansetExpr::Filter(filter) => may_fail(filter),
        SpansetExpr::Pipeline(pipeline) => pipeline.stages.iter().any(stage_may_fail),
        // Which refuses several spansets on one side.
        SpansetExpr::Binary { op: SpansetOp::Structural { .. }, lhs, rhs } => {
            let several = |side: &SpansetExpr| matches!(side, SpansetExpr::Pipeline(_));
            several(lhs) || several(rhs) || spansets_may_fail(lhs) || spansets_may_fail(rhs)
        }
        SpansetExpr::Binary { lhs, rhs, .. } => spansets_may_fail(lhs) || spansets_may_fail(rhs),
    }
}

/// `!` and `-` fail on values of some types, arithmetic on a zero divisor.
fn may_fail(expr: &FieldExpr) -> bool {
    match expr {
        FieldExpr::Not(_) | FieldExpr::Negate(_) | FieldExpr::Arith { .. } => true,
        FieldExpr::Literal(_) | FieldExpr::Field(_) => false,
        FieldExpr::Exists(inner) | FieldExpr::Missing(inner) | FieldExpr::Match { lhs: inner, .. } => may_fail(inner),
        FieldExpr::Compare { lhs, rhs, .. } | FieldExpr::And(lhs, rhs) | FieldExpr::Or(lhs, rhs) => may_fail(lhs) || may_fail(rhs),
    }
}

fn keeps_nothing(stage: &Stage) -> bool {
    match stage {
        Stage::Spansets(expr) => is_empty(expr),
        Stage::Aggregate(filter) => is_below_one(filter),
        Stage::By(_) | Stage::Coalesce | Stage::Select(_) => false,
    }
}

fn is_empty(expr: &SpansetExpr) -> bool {
    match expr {
        SpansetExpr::Filter(filter) => is_never_true(filter),
        SpansetExpr::Pipeline(pipeline) => gives_nothing(pipeline),
        SpansetExpr::Binary { op, lhs, rhs } => match op {
            SpansetOp::Or => is_empty(lhs) && is_empty(rhs),
            // Spans without a partner, where there are no partners, are all spans.
            SpansetOp::Structural { form: Form::Negated, .. } => is_empty(rhs),
            SpansetOp::And | SpansetOp::Structural { .. } => is_empty(lhs) || is_empty(rhs),
        },
    }
}

/// Whether a filter wants an aggregate `count()` that only an empty spanset has.
fn is_below_one(filter: &AggregateFilter) -> bool {
    match (&filter.aggregate, filter.op, &filter.value) {
        (Aggregate::Count, CompareOp::Eq | CompareOp::Le, Static::Int(value)) => *value < 1,
        (Aggregate::Count, CompareOp::Lt, Static::Int(value)) => *value <= 1,
        _ => false,
    }
}

fn is_never_true(expr: &FieldExpr) -> bool {
    match expr {
        FieldExpr::Literal(value) => *value != Static::Bool(true),
        FieldExpr::Or(lhs, rhs) => is_never_true(lhs) && is_never_true(rhs),
        FieldExpr::And(..) => {
            let mut terms = Vec::new();
            split(expr, &mut terms);
            terms.iter().any(|term| is_never_true(term)) || exclude_each_other(&terms)
        }
        FieldExpr::Compare { .. } => comparison(expr).is_some_and(|(field, _, literal)| is_of_another_type(field, literal)),
        _ => false,
    }
}

fn split<'a>(expr: &'a FieldExpr, terms: &mut Vec<&'a FieldExpr>) {
    match expr {
        FieldExpr::And(lhs, rhs) => {
            split(lhs, terms);
            split(rhs, terms);
        }
        term => terms.push(term),
    }
}

/// The comparison of a field with a literal that `term` is.
fn comparison(term: &FieldExpr) -> Option<(&FieldRef, CompareOp, &Static)> {
    let FieldExpr::Compare { op, lhs, rhs } = term else { return None };
    match (&**lhs, &**rhs) {
        (FieldExpr::Field(field), FieldExpr::Literal(literal)) => Some((field, *op, literal)),
        (FieldExpr::Literal(literal), FieldExpr::Field(field)) => Some((field, op.mirrored(), literal)),
        _ => None,
    }
}

/// Only these two have a type that validation does not hold against what they are compared with.
fn is_of_another_type(field: &FieldRef, literal: &Static) -> bool {
    let text = matches!(field, FieldRef::Intrinsic(Intrinsic::InstrumentationName | Intrinsic::InstrumentationVersion));
    text && !matches!(literal, Static::String(_))
}

/// Whether no value satisfies all of `terms`, which must hold for one span, and for one event or link of it.
fn exclude_each_other(terms: &[&FieldExpr]) -> bool {
    let missing = |wanted: &FieldRef| {
        terms.iter().any(|term| matches!(term, FieldExpr::Missing(inner) if matches!(&**inner, FieldExpr::Field(field) if field == wanted)))
    };
    let mut by_intrinsic: HashMap<&FieldRef, Vec<(CompareOp, Value)>> = HashMap::new();
    for (field, op, literal) in terms.iter().filter_map(|term| comparison(term)) {
        // What is missing compares with nothing.
        if missing(field) {
            return true;
        }
        // An attribute can be an array, which equals each of its elements.
        if let FieldRef::Intrinsic(_) = field {
            by_intrinsic.entry(field).or_default().push((op, literal.into()));
        }
    }
    by_intrinsic.into_values().any(|mut comparisons| {
        comparisons.truncate(COMPARISONS_MAX);
        comparisons.iter().enumerate().any(|(at, a)| comparisons[at + 1..].iter().any(|b| exclude(a, b)))
    })
}

/// Whether no single value satisfies both comparisons. Floats are left alone: integers equal them after rounding only.
fn exclude((a_op, a): &(CompareOp, Value), (b_op, b): &(CompareOp, Value)) -> bool {
    use CompareOp::{Eq, Ge, Gt, Le, Lt};
    let is_whole = |value: &Value| matches!(value, Value::Int(_) | Value::Duration(_));
    if !(is_whole(a) && is_whole(b)) && (matches!(a, Value::Float(_)) || std::mem::discriminant(a) != std::mem::discriminant(b)) {
        return false;
    }
    match (a_op, b_op) {
        (Eq, op) => !compare(*op, a, b),
        (op, Eq) => !compare(*op, b, a),
        (Ge, Le) => !compare(Le, a, b),
        (Le, Ge) => !compare(Le, b, a),
        (Gt | Ge, Lt | Le) => !compare(Lt, a, b),
        (Lt | Le, Gt | Ge) => !compare(Lt, b, a),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{check, check_metrics, optimized};

    #[test]
    fn a_search_that_finds_nothing_reads_nothing() {
        check(
            "never_matches",
            "{ duration > 2s && duration < 1s } > { name = `x` } | count() > 1",
            &[
                "TraceDetails: shown=[name], spans_per_spanset=3",
                "  NewestTraces: limit=20",
                "    SpansetStages: { (duration > 2s) && (duration < 1s) } > { name = `x` } | count() > 1",
                "      Traces: sources=[blocks=1, live=0, traces in several=0], window=10 to 20 s",
            ],
            &["EmptyRelation: rows=0"],
        );
    }

    #[test]
    fn a_metric_of_nothing_is_still_a_sum() {
        check_metrics(
            "never_matches",
            "{ false } | rate()",
            &[
                "MetricsMerge: cells=Counts",
                "  MetricsObservation: rate(), intervals=2 of 60000000000 ns",
                "    SpansetStages: { false }",
                "      Traces: sources=[blocks=1, live=0, traces in several=0], window=all",
            ],
            &["MetricsMerge: cells=Counts", "  EmptyRelation: rows=0"],
        );
    }

    #[test]
    fn what_cannot_be_is_found() {
        for query in [
            "{ name = `x` && false }",
            "{ 1 = 2 || 3 < 2 }",
            "{ name = `x` && kind = client && name = `y` }",
            "{ name = `x` && name != `x` }",
            "{ `x` > name && name >= `x` }",
            "{ status = error && status = ok }",
            "{ duration = 1s && duration > 2000ms }",
            "{ span:childCount >= 2 && span:childCount < 2 }",
            "{ (event:name = `a` && span.b = 1) && event:name = `c` }",
            "{ instrumentation:name = 1 }",
            "{ .a = nil && .a = 1 }",
            "{ false } >> { }",
            "{ } !>> { false }",
            "{ } && { false }",
            "{ false } || { false }",
            "({ }) &> ({ } | count() = 0)",
            "{ } | count() < 1",
            "{ } | by(name) | count() <= 0 | coalesce()",
            "{ false } | { 1 / .a = 1 }",
            "{ 1 / .a = 1 } && { false }",
        ] {
            assert_eq!(optimized(query), ["EmptyRelation: rows=0"], "{query}");
        }
    }

    #[test]
    fn what_can_be_stays() {
        for query in [
            "{ }",
            "{ name = `x` || false }",
            "{ span.a = 1 && span.a = 2 }",
            "{ .a = nil && .b = 1 }",
            "{ .a = nil || .a = 1 }",
            "{ name = `x` && rootName = `y` }",
            "{ name != `x` && name != `y` }",
            "{ duration >= 1s && duration <= 1000ms }",
            "{ duration = 1s && duration >= 1.0 }",
            "{ !(name = `x` && name = `y`) }",
            "{ event:name = `a` } && { event:name = `b` }",
            "{ event.a = 1 && link.a = 2 }",
            "{ instrumentation:name = `1` }",
            "{ false } !>> { }",
            "{ false } || { }",
            "{ } | count() < 2",
            "{ } | count() >= 0",
            "{ } | min(span.a) = 0",
            "{ 1 / .a = 1 } | { false }",
            "({ }) && ({ !.a } | { false })",
        ] {
            assert_ne!(optimized(query), ["EmptyRelation: rows=0"], "{query}");
        }
    }
}
