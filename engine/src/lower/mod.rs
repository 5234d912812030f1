//! From a checked query to a plan. Pure functions.

use std::sync::Arc;

use datafusion::physical_plan::ExecutionPlan;

use crate::{
    error::{Error, Result},
    exec::sources::SourceSet,
    metrics::{detail::Detail, intervals::Intervals},
    plan::{
        metrics_merge::MetricsMergeExec,
        metrics_scan::MetricsScanExec,
        newest_traces::NewestTracesExec,
        spanset_scan::{ScanLimits, SpansetScanExec},
        trace_details::TraceDetailsExec,
    },
    query::SearchRequest,
    traceql::{MetricsExpr, MetricsFunction, Pipeline, Query, QueryBody},
};

/// A search, ready to run.
#[derive(Debug)]
pub struct SearchPlan {
    /// One partition; its batches are read by [`search_results`](crate::plan::trace_details::search_results).
    pub plan: Arc<dyn ExecutionPlan>,
    /// What it reads.
    pub sources: Arc<SourceSet>,
}

/// Lowers a search over `sources` to scan, newest traces, details. Of a metrics query only the spans are searched.
/// Errors: `Invalid` for arithmetic on metrics.
pub fn lower_search(query: Query, sources: Arc<SourceSet>, request: &SearchRequest, partitions: usize) -> Result<SearchPlan> {
    let pipeline = match query.body {
        QueryBody::Search(pipeline) => pipeline,
        QueryBody::Metrics(metrics) => spans_of_metrics(metrics)?,
    };
    let limits = ScanLimits { window: request.window, traces: request.limit, spans_per_spanset: request.spans_per_spanset };
    let scan = SpansetScanExec::new(sources.clone(), pipeline.clone(), limits, partitions);
    let newest = NewestTracesExec::new(Arc::new(scan), request.limit);
    let plan = Arc::new(TraceDetailsExec::new(Arc::new(newest), sources.clone(), pipeline));
    Ok(SearchPlan { plan, sources })
}

/// Lowers one operand of a metrics query over `sources` to scan and merge; `detail` is that of the query.
pub fn lower_metrics(
    pipeline: &Pipeline,
    function: &MetricsFunction,
    sources: Arc<SourceSet>,
    intervals: Intervals,
    detail: &Detail,
    partitions: usize,
) -> Arc<dyn ExecutionPlan> {
    let detail = detail.for_function(function);
    let kind = detail.cell_kind(function);
    let scan = MetricsScanExec::new(sources, pipeline.clone(), function.clone(), intervals, detail, partitions);
    Arc::new(MetricsMergeExec::new(Arc::new(scan), kind, intervals.count()))
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
