//! What is told of answers while they are computed.

use std::ops::Range;

use arrow::record_batch::RecordBatch;
use futures::future::BoxFuture;

use super::{add_blocks, cost_of_tags, row_groups_of};
use crate::{
    error::Result,
    exec::{
        source::SourceRef,
        sources::SourceSet,
        stats::ScanMetrics,
        tags::{FoundValues, NamesByScope, to_tag_values},
    },
    metrics::{
        evaluate::{self, Operands, distinct_operands, is_by_interval},
        observe::cell_kind,
        partial::Partial,
        series,
    },
    parts::{Beat, Part, Parts},
    plan::metrics_merge::complete_from,
    query::{MetricsRequest, MetricsResult, ScanStats, TagNames, TagScope, TagValues},
    traceql::{MetricsExpr, MetricsFunction},
};

/// The parts of a metrics query: the samples of intervals that are complete, each once.
pub(super) struct ToldMetrics<'a> {
    parts: &'a Parts<MetricsResult>,
    query: &'a MetricsExpr,
    request: &'a MetricsRequest,
    sources: &'a [SourceRef],
    opening: &'a ScanMetrics,
    row_groups: u64,
    /// The operand that is computed last, if its samples can be told at all.
    last_operand: Option<String>,
    told_from: usize,
}

impl<'a> ToldMetrics<'a> {
    /// Errors: as of opening the sources.
    pub(super) async fn new(
        parts: &'a Parts<MetricsResult>,
        query: &'a MetricsExpr,
        request: &'a MetricsRequest,
        sources: &'a SourceSet,
    ) -> Result<Self> {
        let opened = sources.sources().await?;
        let operands = distinct_operands(query);
        Ok(Self {
            parts,
            query,
            request,
            sources: opened,
            opening: &sources.metrics,
            row_groups: row_groups_of(opened) * operands.len() as u64,
            last_operand: operands.into_iter().next_back().map(|(key, _)| key).filter(|_| is_by_interval(query)),
            told_from: request.intervals.count(),
        })
    }

    /// Tells what `batch` adds, which is of operand `key` with `function`, after the `operands` that are finished. Errors: as of series.
    pub(super) async fn tell(
        &mut self,
        key: &str,
        function: &MetricsFunction,
        batch: &RecordBatch,
        operands: &Operands,
        stats: ScanStats,
    ) -> Result<()> {
        let mut found = MetricsResult { stats: stats.plus(&self.opening.snapshot()), ..MetricsResult::default() };
        add_blocks(&mut found.stats, self.sources);
        if let Some(from) = complete_from(batch)
            && self.last_operand.as_deref() == Some(key)
            && from < self.told_from
        {
            let until = std::mem::replace(&mut self.told_from, from);
            let mut partial = Partial::new(cell_kind(function), self.request.intervals.count());
            partial.merge_batch(batch)?;
            let mut operands = operands.clone();
            operands.insert(key.to_owned(), series::finish(function, &self.request.intervals, partial));
            let whole = evaluate::finish(self.query, &operands, self.request, found.stats);
            found.series = self.cut(whole, from..until).series;
        }
        self.parts.tell(Part { found, row_groups: self.row_groups }).await;
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

/// A teller as [`tags`](crate::exec::tags) calls it; None tells nothing.
pub(super) fn telling<F, T: Tells<F> + Send>(teller: &mut Option<T>) -> impl FnMut(&F) -> Option<BoxFuture<'static, ()>> + Send {
    move |found| teller.as_mut().and_then(|teller| teller.part(found))
}

/// Tells what was found since it was last asked, when that is due.
pub(super) trait Tells<F> {
    /// A part, being told.
    fn part(&mut self, found: &F) -> Option<BoxFuture<'static, ()>>;
}

/// The parts of a request for names.
pub(super) struct ToldNames<'a> {
    parts: &'a Parts<TagNames>,
    beat: Beat,
    scope: Option<TagScope>,
    sources: &'a [SourceRef],
    metrics: &'a ScanMetrics,
    told: NamesByScope,
}

impl<'a> ToldNames<'a> {
    pub(super) fn new(parts: &'a Parts<TagNames>, scope: Option<TagScope>, sources: &'a [SourceRef], metrics: &'a ScanMetrics) -> Self {
        Self { parts, beat: parts.pace().beat(), scope, sources, metrics, told: NamesByScope::new() }
    }
}

impl Tells<NamesByScope> for ToldNames<'_> {
    fn part(&mut self, found: &NamesByScope) -> Option<BoxFuture<'static, ()>> {
        if !self.beat.is_due() {
            return None;
        }
        let mut scopes = Vec::new();
        for (&scope, names) in found.iter().filter(|(scope, _)| self.scope.is_none_or(|only| only == **scope)) {
            let told = self.told.entry(scope).or_default();
            let new: Vec<String> = names.difference(told).cloned().collect();
            told.extend(new.iter().cloned());
            if !new.is_empty() {
                scopes.push((scope, new));
            }
        }
        let found = TagNames { scopes, stats: cost_of_tags(self.sources, self.metrics) };
        Some(self.parts.tell(Part { found, row_groups: row_groups_of(self.sources) }))
    }
}

/// The parts of a request for values.
pub(super) struct ToldValues<'a> {
    parts: &'a Parts<TagValues>,
    beat: Beat,
    sources: &'a [SourceRef],
    metrics: &'a ScanMetrics,
    told: FoundValues,
}

impl<'a> ToldValues<'a> {
    pub(super) fn new(parts: &'a Parts<TagValues>, sources: &'a [SourceRef], metrics: &'a ScanMetrics) -> Self {
        Self { parts, beat: parts.pace().beat(), sources, metrics, told: FoundValues::new() }
    }
}

impl Tells<FoundValues> for ToldValues<'_> {
    fn part(&mut self, found: &FoundValues) -> Option<BoxFuture<'static, ()>> {
        if !self.beat.is_due() {
            return None;
        }
        let new: Vec<_> = found.difference(&self.told).cloned().collect();
        self.told.extend(new.iter().cloned());
        let found = TagValues { values: to_tag_values(new), stats: cost_of_tags(self.sources, self.metrics) };
        Some(self.parts.tell(Part { found, row_groups: row_groups_of(self.sources) }))
    }
}
