//! From a checked query to a plan. Pure functions.
//!
//! [`logical_search`] and [`logical_metrics`] write a query as a logical plan, without a thought of how it runs;
//! [`optimize`](crate::optimize) and [`planner`](crate::plan::planner) do the rest. [`lower_search`] and [`lower_metrics`] go all the way.

use std::sync::Arc;

use datafusion::{logical_expr::LogicalPlan, physical_plan::ExecutionPlan};

use crate::{
    error::{Error, Result},
    exec::sources::SourceSet,
    metrics::{detail::Detail, intervals::Intervals},
    optimize::optimize,
    plan::{
        logical::{self, MetricsMerge, MetricsObservation, NewestTraces, SpansetStages, TraceDetails, Traces},
        planner::physical_plan,
    },
    query::SearchRequest,
    traceql::{MetricsExpr, MetricsFunction, Pipeline, Query, QueryBody},
};

/// A search, ready to run.
#[derive(Debug)]
pub struct SearchPlan {
    /// What it does, as the optimiser left it.
    pub logical: LogicalPlan,
    /// How: one partition; its batches are read by [`search_results`](crate::plan::trace_details::search_results).
    pub plan: Arc<dyn ExecutionPlan>,
    /// What it reads.
    pub sources: Arc<SourceSet>,
}

/// The logical plan of a search with `pipeline` over `sources`: details of the newest traces of what its stages leave.
pub fn logical_search(pipeline: &Pipeline, sources: &Arc<SourceSet>, request: &SearchRequest) -> LogicalPlan {
    let traces = Traces::new(sources.clone(), request.window);
    let spansets = SpansetStages::new(logical::plan(traces), pipeline.clone());
    let newest = NewestTraces::new(logical::plan(spansets), request.limit);
    logical::plan(TraceDetails::new(logical::plan(newest), sources.clone(), pipeline.clone(), request.spans_per_spanset))
}

/// The logical plan of one operand of a metrics query over `sources`: the series of the spans that its stages leave. All traces are looked
/// at: it is the times of spans that decide.
pub fn logical_metrics(
    pipeline: &Pipeline,
    function: &MetricsFunction,
    sources: &Arc<SourceSet>,
    intervals: Intervals,
    detail: &Detail,
) -> LogicalPlan {
    let spansets = SpansetStages::new(logical::plan(Traces::new(sources.clone(), None)), pipeline.clone());
    let series = MetricsObservation::new(logical::plan(spansets), function.clone(), intervals, detail.for_function(function));
    logical::plan(MetricsMerge::new(logical::plan(series), detail.cell_kind(function), intervals.count()))
}

/// Lowers a search over `sources` to scan, newest traces, details. Of a metrics query only the spans are searched.
/// Errors: `Invalid` for arithmetic on metrics.
pub fn lower_search(query: Query, sources: Arc<SourceSet>, request: &SearchRequest, partitions: usize) -> Result<SearchPlan> {
    let pipeline = match query.body {
        QueryBody::Search(pipeline) => pipeline,
        QueryBody::Metrics(metrics) => spans_of_metrics(metrics)?,
    };
    let logical = optimize(logical_search(&pipeline, &sources, request))?;
    let plan = physical_plan(&logical, partitions)?;
    Ok(SearchPlan { logical, plan, sources })
}

/// Lowers one operand of a metrics query over `sources` to scan and merge; `detail` is that of the query. Errors: `Internal`.
pub fn lower_metrics(
    pipeline: &Pipeline,
    function: &MetricsFunction,
    sources: Arc<SourceSet>,
    intervals: Intervals,
    detail: &Detail,
    partitions: usize,
) -> Result<Arc<dyn ExecutionPlan>> {
    physical_plan(&optimize(logical_metrics(pipeline, function, &sources, intervals, detail))?, partitions)
}

fn spans_of_metrics(metrics: MetricsExpr) -> Result<Pipeline> {
    match metrics {
        MetricsExpr::Pipeline { pipeline, .. } => Ok(pipeline),
        MetricsExpr::SecondStages { input, .. } => spans_of_metrics(*input),
        MetricsExpr::Binary { .. } | MetricsExpr::Scalar(_) => Err(Error::invalid("invalid TraceQL query: math expressions not supported in search")),
    }
}

#[cfg(test)]
mod tests;
