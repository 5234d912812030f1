//! `PruneRowGroups`: see [`PruneRowGroups`].

use datafusion::{
    common::{Result, tree_node::Transformed},
    logical_expr::LogicalPlan,
    optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule},
};

use super::rewrite_pipeline;
use crate::exec::{
    prune::evidence,
    spansets::{FilterTerm, FilterTerms},
};

/// Marks the terms of a scan's filters by which row groups can be ruled out before anything is read, and by what. All that are marked are
/// tried before the first column of a filter is read.
/// ```text
/// filters=[resource.service.name = `x`, then span.a > 1, then name = `y`]
///   ↓
/// filters=[resource.service.name = `x` (prunes by resources), then span.a > 1 (prunes by column types, …), then name = `y`]
/// ```
#[derive(Debug)]
pub struct PruneRowGroups;

impl OptimizerRule for PruneRowGroups {
    fn name(&self) -> &str {
        "prune_row_groups"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        rewrite_pipeline(plan, |pipeline| pipeline.with_filters(with_evidence))
    }
}

/// `filter` with what is known beforehand of its terms.
pub(super) fn with_evidence(filter: FilterTerms) -> FilterTerms {
    let terms = filter.terms.into_iter().map(|FilterTerm { expr, .. }| FilterTerm { prunes_by: evidence(&expr), expr });
    FilterTerms { terms: terms.collect() }
}

#[cfg(test)]
mod tests {
    use super::super::tests::check_filters;

    #[test]
    fn comparisons_with_literals_rule_row_groups_out() {
        check_filters(
            "prune_row_groups",
            "{ resource.service.name = `x` && status = error && duration > 1s && span.a > 1 && event.b = 2 } > { .c = 3 && kind != client }",
            "resource.service.name = `x`, then status = error, then duration > 1s, then span.a > 1, then event.b = 2; kind != client, then .c = 3",
            "resource.service.name = `x` (prunes by resources), then status = error (prunes by statistics), \
             then duration > 1s (prunes by statistics), then span.a > 1 (prunes by column types, statistics and bloom filters), \
             then event.b = 2 (prunes by keys of events); kind != client, then .c = 3",
        );
    }
}
