//! `RowsWithoutTraces`: see [`RowsWithoutTraces`].

use datafusion::{
    common::{Result, tree_node::Transformed},
    logical_expr::LogicalPlan,
    optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule},
};

use super::rewrite_pipeline;
use crate::plan::logical::{MetricsScan, head};

/// Lets a metric over a pipeline that is one filter take the rows that pass it as they are: which traces they belong to makes no
/// difference, so traces are not put together.
/// ```text
/// MetricsScan: query=[{ name = `x` } | rate()]
///   ↓
/// MetricsScan: query=[{ name = `x` } | rate()], without traces
/// ```
#[derive(Debug)]
pub struct RowsWithoutTraces;

impl OptimizerRule for RowsWithoutTraces {
    fn name(&self) -> &str {
        "rows_without_traces"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        match head::<MetricsScan>(&plan) {
            Some(_) => rewrite_pipeline(plan, |pipeline| pipeline.without_traces()),
            None => Ok(Transformed::no(plan)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::check_metrics;

    #[test]
    fn one_filter_needs_no_traces() {
        let scan = |traces| {
            let head = "  MetricsScan: query=[{ status = error } | rate()], intervals=2 of 60000000000 ns";
            format!("{head}, sources=[blocks=1, live=0, traces in several=0]{traces}, filters=[status = error (prunes by statistics)]")
        };
        check_metrics(
            "rows_without_traces",
            "{ status = error } | select(span.a) | rate()",
            &["MetricsMerge: cells=Counts", &scan("")],
            &["MetricsMerge: cells=Counts", &scan(", without traces")],
        );
    }

    #[test]
    fn all_other_pipelines_do() {
        let plan = [
            "MetricsMerge: cells=Counts",
            "  MetricsScan: query=[{ status = error } && { name = `x` } | rate()], intervals=2 of 60000000000 ns, \
             sources=[blocks=1, live=0, traces in several=0], filters=[status = error (prunes by statistics); name = `x`]",
        ];
        check_metrics("rows_without_traces", "{ status = error } && { name = `x` } | rate()", &plan, &plan);
    }
}
