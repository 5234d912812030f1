//! TraceQL metrics over sources that are there: the plans of a query's operands, run one after another, and what is made of their results.

use std::{pin::pin, sync::Arc};

use datafusion::execution::TaskContext;
use futures::StreamExt;

use super::{engine::add_blocks, memory::Reservation, source::SourceRef, sources::SourceSet, stats::stats_of_plan};
use crate::{
    error::Result,
    lower::lower_metrics,
    metrics::{
        evaluate::{self, Operands, distinct_operands},
        series::Series,
        told::{Operand, ToldMetrics},
    },
    parts::{Parts, is_last},
    query::{MetricsRequest, MetricsResult, ScanStats},
};

/// Bytes of a value of a series, as it is computed and as it is answered.
const VALUE_BYTES: usize = 24;

/// The series that a metrics query finds, and what it cost.
#[derive(Debug)]
pub struct FoundSeries {
    /// At most as many as the request allows, in order.
    pub series: Vec<Series>,
    /// Whether there are more.
    pub truncated: bool,
    /// What it cost.
    pub stats: ScanStats,
}

/// Runs a metrics query over `sources` by scans of `partitions` partitions in `context`; tells `parts` of it, if there are some.
///
/// Errors: as [`QueryService::metrics`](crate::query::QueryService::metrics).
pub async fn metrics_over(
    sources: Arc<SourceSet>,
    request: &MetricsRequest,
    parts: Option<&Parts<MetricsResult>>,
    partitions: usize,
    context: &Arc<TaskContext>,
) -> Result<FoundSeries> {
    let (query, detail) = evaluate::checked(request)?;
    let hold = |what| Reservation::new(what, context.memory_pool());
    let telling = parts.map(|parts| ToldMetrics::new(parts, request, hold("series of a part")));
    let context_of_plans = parts.map_or_else(|| context.clone(), |parts| parts.pace().within(context));
    let opened = sources.sources().await?;
    let mut stats = ScanStats::default();
    let mut operands = Operands::new();
    let distinct = distinct_operands(&query);
    let row_groups = row_groups_of(opened) * distinct.len() as u64;
    let values = hold("values of series");
    for (key, (pipeline, function)) in distinct {
        let plan = lower_metrics(pipeline, function, sources.clone(), request.intervals, &detail, partitions)?;
        let mut given = Vec::new();
        let mut batches = pin!(plan.execute(0, context_of_plans.clone())?.peekable());
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            if let Some(telling) = &telling
                && !is_last(batches.as_mut())
            {
                let operand = Operand { query: &query, key: &key, function, detail: &detail, finished: &operands, row_groups };
                let mut so_far = stats.plus(&stats_of_plan(&plan)).plus(&sources.metrics.snapshot());
                add_blocks(&mut so_far, opened);
                telling.tell(operand, &batch, so_far).await?;
            }
            given.push(batch);
        }
        stats = stats.plus(&stats_of_plan(&plan));
        let series = evaluate::finish_operand((&query, function), request, &detail, &given, hold("series of the answer"))?;
        values.grow(series.len() * request.intervals.count() * VALUE_BYTES)?;
        operands.insert(key, series);
    }
    add_blocks(&mut stats, opened);
    let (series, truncated) = evaluate::finish_series(&query, operands, request);
    Ok(FoundSeries { series, truncated, stats: stats.plus(&sources.metrics.snapshot()) })
}

/// The row groups of `sources`.
pub fn row_groups_of(sources: &[SourceRef]) -> u64 {
    sources.iter().map(|source| source.row_groups().len() as u64).sum()
}
