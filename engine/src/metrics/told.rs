//! Parts of a metrics query: the samples of intervals that are complete, each once.

use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use arrow::record_batch::RecordBatch;

use super::{
    detail::Detail,
    evaluate::{self, Operands, distinct_operands, finish_operand, is_by_interval},
};
use crate::{
    error::Result,
    exec::memory::Reservation,
    parts::{Part, Parts, reached},
    query::{MetricsRequest, MetricsResult, ScanStats},
    traceql::{MetricsExpr, MetricsFunction},
};

/// Tells parts of a metrics query. One that is planned again goes on where it was.
#[derive(Debug)]
pub struct ToldMetrics<'a> {
    parts: &'a Parts<MetricsResult>,
    request: &'a MetricsRequest,
    memory: Reservation,
    told_from: AtomicUsize,
}

/// What is under way.
#[derive(Debug, Clone, Copy)]
pub struct Operand<'a> {
    /// The whole query.
    pub query: &'a MetricsExpr,
    /// The operand that is computed, as [`distinct_operands`] names it.
    pub key: &'a str,
    /// Its function.
    pub function: &'a MetricsFunction,
    /// What is kept beside the function's own cells.
    pub detail: &'a Detail,
    /// The operands before it.
    pub finished: &'a Operands,
    /// Row groups of all operands, as far as that is known.
    pub row_groups: u64,
}

impl<'a> ToldMetrics<'a> {
    /// Nothing told yet. `memory` is for the series of a part.
    pub fn new(parts: &'a Parts<MetricsResult>, request: &'a MetricsRequest, memory: Reservation) -> Self {
        Self { parts, request, memory, told_from: AtomicUsize::new(request.intervals.count()) }
    }

    /// Who is told.
    pub fn parts(&self) -> &'a Parts<MetricsResult> {
        self.parts
    }

    /// Tells what `batch` of an operand's [`MetricsMergeExec`](crate::plan::metrics_merge::MetricsMergeExec) adds. Only of the last operand
    /// there are samples: the query needs all. Tells nothing once everything was read: the whole is about to come. Errors: as of
    /// [`finish_operand`].
    pub async fn tell(&self, operand: Operand<'_>, batch: &RecordBatch, stats: ScanStats) -> Result<()> {
        let Operand { query, key, function, detail, finished, row_groups } = operand;
        if stats.row_groups + stats.row_groups_skipped >= row_groups {
            return Ok(());
        }
        let mut found = MetricsResult { stats, ..MetricsResult::default() };
        let is_last = || distinct_operands(query).last().is_some_and(|(last, _)| last == key);
        if let Some(from) = reached(batch).and_then(|from| usize::try_from(from).ok())
            && is_by_interval(query, detail)
            && is_last()
        {
            let until = self.told_from.fetch_min(from, Relaxed);
            if from < until {
                let mut operands = finished.clone();
                let batch = std::slice::from_ref(batch);
                // Exemplars come with the whole.
                let detail = Detail { exemplars: 0, ..detail.clone() };
                operands.insert(key.to_owned(), finish_operand((query, function), self.request, &detail, batch, self.memory.another())?);
                found.series = self.cut(evaluate::finish(query, operands, self.request, stats), from..until).series;
            }
        }
        self.parts.tell(Part { found, row_groups }).await;
        Ok(())
    }

    /// Only the samples of `intervals`, which are not empty, and no exemplars.
    fn cut(&self, mut result: MetricsResult, intervals: Range<usize>) -> MetricsResult {
        let stamp = |at| self.request.intervals.timestamp_ms(at);
        let stamps = stamp(intervals.start)..=stamp(intervals.end - 1);
        for series in &mut result.series {
            series.samples.retain(|sample| stamps.contains(&sample.timestamp_ms));
            series.exemplars.clear();
        }
        result.series.retain(|series| !series.samples.is_empty());
        result
    }
}
