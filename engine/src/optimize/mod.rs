//! Optimiser rules over our logical nodes ([`plan::logical`](crate::plan::logical)), one a file: what a query asks for becomes where and in
//! which order it is looked for. What a rule decides stands in the plan, for explain to show and for the scan to do.
//!
//! | rule, in order | what it does |
//! |---|---|
//! | [`SelectLeavesScan`] | `select()` matters to what is shown only |
//! | [`NeverMatches`] | stages that keep nothing, whatever is stored, become an empty relation |
//! | [`FuseStages`] | stages move into the scan, so that filters reach the row groups |
//! | [`OrderTerms`] | the terms of each `&&` are tried cheapest first |
//! | [`PruneRowGroups`] | which terms rule row groups out before they are read |
//! | [`LimitScan`] | a scan stops at what is wanted of it |
//! | [`RowsWithoutTraces`] | a metric of one filter needs no traces |
//!
//! Each rule is idempotent, and one pass in this order is enough. DataFusion's own rules may run before, after or between: they know
//! nothing of the insides of our nodes.

use std::sync::{Arc, LazyLock};

use datafusion::{
    common::{Result, tree_node::Transformed},
    logical_expr::LogicalPlan,
    optimizer::{Optimizer, OptimizerContext, OptimizerRule},
};

mod fuse_stages;
mod limit_scan;
mod never_matches;
mod order_terms;
mod prune_row_groups;
mod rows_without_traces;
mod select_leaves_scan;

pub use self::{
    fuse_stages::FuseStages, limit_scan::LimitScan, never_matches::NeverMatches, order_terms::OrderTerms, prune_row_groups::PruneRowGroups,
    rows_without_traces::RowsWithoutTraces, select_leaves_scan::SelectLeavesScan,
};
use crate::{
    exec::spansets::{FilterTerms, SpansetPipeline},
    plan::logical::{self, Comparable, MetricsScan, SpansetScan, head},
    traceql::FieldExpr,
};

/// All rules, in the order in which they are to run.
pub fn rules() -> Vec<Arc<dyn OptimizerRule + Send + Sync>> {
    vec![
        Arc::new(SelectLeavesScan),
        Arc::new(NeverMatches),
        Arc::new(FuseStages),
        Arc::new(OrderTerms),
        Arc::new(PruneRowGroups),
        Arc::new(LimitScan),
        Arc::new(RowsWithoutTraces),
    ]
}

static OPTIMIZER: LazyLock<(Optimizer, OptimizerContext)> =
    LazyLock::new(|| (Optimizer::with_rules(rules()), OptimizerContext::new().with_max_passes(1)));

/// A plan of our nodes after all rules. Cost: grows with the length of the query, not with the sources. Errors: `Internal`.
pub fn optimize(plan: LogicalPlan) -> crate::error::Result<LogicalPlan> {
    let (optimizer, context) = &*OPTIMIZER;
    Ok(optimizer.optimize(plan, context, |_, _| {})?)
}

/// `filter` as scans evaluate it, for what looks at spans without a plan.
pub fn filter_terms(filter: &FieldExpr) -> FilterTerms {
    prune_row_groups::with_evidence(order_terms::in_order(FilterTerms::as_written(filter.clone())))
}

/// `plan` with the pipeline of the scan at its head changed, if it is a scan and there is something to change.
fn rewrite_pipeline(plan: LogicalPlan, change: impl FnOnce(SpansetPipeline) -> SpansetPipeline) -> Result<Transformed<LogicalPlan>> {
    let changed = |before: &SpansetPipeline| Some(change(before.clone())).filter(|after| after != before).map(Comparable);
    let after = if let Some(scan) = head::<SpansetScan>(&plan) {
        changed(&scan.pipeline).map(|pipeline| logical::plan(SpansetScan { pipeline, ..scan.clone() }))
    } else if let Some(scan) = head::<MetricsScan>(&plan) {
        changed(&scan.pipeline).map(|pipeline| logical::plan(MetricsScan { pipeline, ..scan.clone() }))
    } else {
        None
    };
    Ok(match after {
        Some(after) => Transformed::yes(after),
        None => Transformed::no(plan),
    })
}

#[cfg(test)]
mod tests;
