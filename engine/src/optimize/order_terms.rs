//! `OrderTerms`: see [`OrderTerms`].

use datafusion::{
    common::{Result, tree_node::Transformed},
    logical_expr::LogicalPlan,
    optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule},
};

use super::rewrite_pipeline;
use crate::{
    exec::{
        eval::frame::{FieldLevel, level_of},
        spansets::{FilterTerm, FilterTerms},
    },
    traceql::{AttributeScope, FieldExpr, FieldRef, Intrinsic},
};

/// Splits each filter of a scan at its `&&` and puts the terms in the order of what their columns cost to read: the columns of a term are
/// read only if the terms before it left some rows. Terms over events stay together, since they must hold for the same event, and so do
/// those over links, and those over both; they come last.
/// ```text
/// filters=[event.a = 1 && span.b = 2 && event.c = 3 && resource.d = 4]
///   ↓
/// filters=[resource.d = 4, then span.b = 2, then event.a = 1 && event.c = 3]
/// ```
#[derive(Debug)]
pub struct OrderTerms;

impl OptimizerRule for OrderTerms {
    fn name(&self) -> &str {
        "order_terms"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        rewrite_pipeline(plan, |pipeline| pipeline.with_filters(in_order))
    }
}

/// The terms of `filter`, cheapest first.
pub(super) fn in_order(filter: FilterTerms) -> FilterTerms {
    let mut ordered = conjuncts(filter.terms.iter().map(|term| &term.expr));
    ordered.sort_by_key(cost_of);
    if ordered.iter().eq(filter.terms.iter().map(|term| &term.expr)) {
        return filter;
    }
    FilterTerms { terms: ordered.into_iter().map(FilterTerm::from).collect() }
}

/// Splits chains of `&&` into their terms. Terms over events or links stay together.
fn conjuncts<'a>(exprs: impl Iterator<Item = &'a FieldExpr>) -> Vec<FieldExpr> {
    fn split<'a>(expr: &'a FieldExpr, out: &mut Vec<&'a FieldExpr>) {
        match expr {
            FieldExpr::And(lhs, rhs) => {
                split(lhs, out);
                split(rhs, out);
            }
            term => out.push(term),
        }
    }
    let mut terms = Vec::new();
    exprs.for_each(|expr| split(expr, &mut terms));
    let (bound, plain): (Vec<&FieldExpr>, Vec<&FieldExpr>) = terms.into_iter().partition(|term| reads_events_or_links(term));
    plain.into_iter().cloned().chain(all_of(bound.into_iter().cloned().collect())).collect()
}

/// The conjunction of `terms` as a tree that is no deeper than it has to be.
fn all_of(mut terms: Vec<FieldExpr>) -> Option<FieldExpr> {
    while terms.len() > 1 {
        let mut terms_left = terms.into_iter();
        terms = Vec::new();
        while let Some(lhs) = terms_left.next() {
            terms.push(match terms_left.next() {
                Some(rhs) => FieldExpr::And(Box::new(lhs), Box::new(rhs)),
                None => lhs,
            });
        }
    }
    terms.pop()
}

fn reads_events_or_links(term: &FieldExpr) -> bool {
    let mut found = false;
    term.visit_fields(&mut |field| found |= level_of(field) != FieldLevel::Span);
    found
}

/// How dear the columns of a term are to read and test.
fn cost_of(expr: &FieldExpr) -> u32 {
    let mut cost = 0;
    expr.visit_fields(&mut |field| {
        cost += match field {
            FieldRef::Attribute { scope: AttributeScope::Resource | AttributeScope::Instrumentation, .. } => 1,
            FieldRef::Intrinsic(Intrinsic::Status | Intrinsic::Kind) => 1,
            FieldRef::Intrinsic(Intrinsic::Duration | Intrinsic::Name | Intrinsic::RootName | Intrinsic::RootService) => 2,
            FieldRef::Intrinsic(Intrinsic::TraceDuration | Intrinsic::TraceId) => 2,
            FieldRef::Attribute { scope: AttributeScope::Event | AttributeScope::Link, .. } => 40,
            FieldRef::Intrinsic(Intrinsic::EventName | Intrinsic::EventTimeSinceStart | Intrinsic::LinkTraceId | Intrinsic::LinkSpanId) => 40,
            FieldRef::Intrinsic(_) => 6,
            FieldRef::Attribute { .. } => 4,
        }
    });
    if matches!(expr, FieldExpr::Compare { .. } | FieldExpr::Exists(_) | FieldExpr::Missing(_)) { cost } else { cost * 2 }
}

#[cfg(test)]
mod tests {
    use super::super::tests::check_filters;

    #[test]
    fn cheap_terms_come_first_and_terms_over_events_stay_together() {
        check_filters(
            "order_terms",
            "{ event.a = 1 && span.b = 2 && event.c = 3 && resource.d = 4 } > { name =~ `x.*` && duration > 1s || span.e = 5 }",
            "(((event.a = 1) && (span.b = 2)) && (event.c = 3)) && (resource.d = 4); ((name =~ `x.*`) && (duration > 1s)) || (span.e = 5)",
            "resource.d = 4, then span.b = 2, then (event.a = 1) && (event.c = 3); ((name =~ `x.*`) && (duration > 1s)) || (span.e = 5)",
        );
    }

    #[test]
    fn a_condition_over_an_event_and_a_link_binds_with_all_others() {
        check_filters(
            "order_terms",
            "{ link.a = event.b && span.c = 1 && event.d = 2 }",
            "((link.a = event.b) && (span.c = 1)) && (event.d = 2)",
            "span.c = 1, then (link.a = event.b) && (event.d = 2)",
        );
    }

    #[test]
    fn an_expression_costs_twice_what_it_reads() {
        check_filters(
            "order_terms",
            "{ span.flag && span.a = 1 && (status = error || kind = client) }",
            "(span.flag && (span.a = 1)) && ((status = error) || (kind = client))",
            "span.a = 1, then (status = error) || (kind = client), then span.flag",
        );
    }
}
