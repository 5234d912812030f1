//! `MetricsScanExec`: the leaf of a metrics query. Spans of all sources into partial series.

use std::{fmt, ops::Range, sync::Arc};

use arrow::record_batch::RecordBatch;
use datafusion::{
    common::Result,
    execution::TaskContext,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, SendableRecordBatchStream, execution_plan::EmissionType,
        stream::RecordBatchStreamAdapter,
    },
};
use futures::stream;

use super::{
    node::{counted_node, leaf_node},
    properties,
};
use crate::{
    clock::Stopwatch,
    error::ErrorKind,
    exec::{
        eval::Frame,
        memory::{Pool, Reservation},
        source::SourceRef,
        sources::{ScanUnit, SourceName, SourceSet, active_rows, of_row_group, scan_units},
        spansets::SpansetPipeline,
        stats::{Pruned, ScanMetrics},
    },
    metrics::{
        batch,
        cache::{Found, Part, PartialCache, Slot},
        detail::Detail,
        intervals::Intervals,
        observe::{Observer, Reuse},
    },
    parts::{Beat, Pace, mark, marked},
    stop,
    traceql::MetricsFunction,
};

/// Runs a spanset pipeline over row groups and adds the spans that it leaves to series, each span once.
///
/// **Shape**: batches of [`batch::schema`], which add up: one for each row group whose series are in the [`PartialCache`], found there and not read
/// again or put there now, and one for all others of a partition. In a run with a [`Pace`] these come in several, and each batch is marked with the number
/// of the partition's row groups that are in it and those before ([`row_groups_in`]). `compare()` has one batch for each partition, and at a pace
/// empty ones before it, which say 0. Row groups, newest first, are dealt out to the partitions in turn.
/// **Memory**: the columns of a row group and all series, for each partition.
#[derive(Debug)]
pub struct MetricsScanExec {
    sources: Arc<SourceSet>,
    pipeline: SpansetPipeline,
    function: MetricsFunction,
    intervals: Intervals,
    detail: Detail,
    partitions: usize,
    metrics: Arc<ScanMetrics>,
    properties: Arc<PlanProperties>,
}

impl MetricsScanExec {
    /// A scan of `sources` by `partitions` partitions. A plain pipeline is evaluated as it is written.
    pub fn new(
        sources: Arc<SourceSet>,
        pipeline: impl Into<SpansetPipeline>,
        function: MetricsFunction,
        intervals: Intervals,
        detail: Detail,
        partitions: usize,
    ) -> Self {
        let properties = properties(batch::schema(), partitions, EmissionType::Final);
        Self { sources, pipeline: pipeline.into(), function, intervals, detail, partitions, metrics: Arc::default(), properties }
    }

    /// The sources.
    pub fn sources(&self) -> &Arc<SourceSet> {
        &self.sources
    }

    /// The pipeline and how its filters are evaluated.
    pub fn pipeline(&self) -> &SpansetPipeline {
        &self.pipeline
    }

    /// The function.
    pub fn function(&self) -> &MetricsFunction {
        &self.function
    }

    /// The intervals.
    pub fn intervals(&self) -> &Intervals {
        &self.intervals
    }

    /// The latest end of a trace in each row group. Row groups are heard of in this order, partitions taking turns.
    /// Errors: as of opening the sources.
    pub async fn latest_ends(&self) -> crate::error::Result<Vec<u64>> {
        let sources = self.sources.sources().await?;
        let (units, _) = scan_units(sources, Some(self.intervals.window()));
        Ok(units.into_iter().map(|unit| sources[unit.source].row_groups()[unit.group].trace_end_max).collect())
    }

    /// What is kept beside the function's own cells.
    pub fn detail(&self) -> &Detail {
        &self.detail
    }

    /// Partitions.
    pub fn partitions(&self) -> usize {
        self.partitions
    }
}

/// What the memory of a partition is for.
const HELD: &str = "series of a partition";

/// What the stream of one partition needs.
struct Scan {
    sources: Arc<SourceSet>,
    pipeline: SpansetPipeline,
    intervals: Intervals,
    /// How the partial series of a row group may be shared.
    reuse: Option<Reuse>,
    metrics: Arc<ScanMetrics>,
    pool: Pool,
}

/// The mark of how many row groups of its partition a batch and those before it are of.
const ROW_GROUPS: &str = "row_groups";

/// How many row groups of its partition `batch` and those before it are of; None when it does not say.
pub fn row_groups_in(batch: &RecordBatch) -> Option<usize> {
    usize::try_from(mark(batch, ROW_GROUPS)?).ok()
}

/// The run of one partition.
struct Running {
    scan: Scan,
    /// The row groups left; None before the start.
    units: Option<std::vec::IntoIter<ScanUnit>>,
    partition: usize,
    partitions: usize,
    observer: Observer,
    beat: Option<Beat>,
    /// Whether nothing is said but how far it is before everything was read.
    whole_only: bool,
    observed: usize,
    ended: bool,
}

impl Running {
    /// The series of the next row groups, up to where a part is due, or of all that are left; None after these.
    async fn next(&mut self) -> crate::error::Result<Option<RecordBatch>> {
        if self.ended {
            return Ok(None);
        }
        let watch = Stopwatch::start();
        if self.units.is_none() {
            self.units = Some(self.scan.units(self.partition, self.partitions).await?.into_iter());
        }
        while let Some(unit) = self.units.as_mut().and_then(Iterator::next) {
            stop::check()?;
            let known = self.scan.observe(unit, &mut self.observer).await?;
            self.observed += 1;
            match known {
                Some(series) if self.whole_only => self.observer.merge_compared(&series)?,
                Some(series) => return self.hand_on(series, watch).map(Some),
                None => {}
            }
            if self.beat.as_mut().is_some_and(|beat| beat.is_due_if(!self.whole_only)) {
                return if self.whole_only { self.nothing_yet(watch) } else { self.output(watch) }.map(Some);
            }
        }
        self.ended = true;
        self.output(watch).map(Some)
    }

    fn output(&mut self, watch: Stopwatch) -> crate::error::Result<RecordBatch> {
        let batch = self.observer.take_partial()?.to_batch()?;
        self.hand_on(batch, watch)
    }

    fn hand_on(&self, batch: RecordBatch, watch: Stopwatch) -> crate::error::Result<RecordBatch> {
        self.scan.metrics.busy(watch.elapsed());
        self.scan.metrics.output(batch.num_rows());
        // While others wait to be handed on, nobody is told how far that is.
        let told = self.beat.is_some() && !self.whole_only && self.observer.is_empty();
        if told { marked(batch, ROW_GROUPS, self.observed as u64) } else { Ok(batch) }
    }

    /// Lets those above tell how far the query is.
    fn nothing_yet(&self, watch: Stopwatch) -> crate::error::Result<RecordBatch> {
        self.scan.metrics.busy(watch.elapsed());
        marked(RecordBatch::new_empty(batch::schema()), ROW_GROUPS, 0)
    }
}

impl Scan {
    async fn units(&self, partition: usize, partitions: usize) -> crate::error::Result<Vec<ScanUnit>> {
        let (units, outside) = scan_units(self.sources.sources().await?, Some(self.intervals.window()));
        if partition == 0 {
            self.metrics.pruned(Pruned::Window, outside);
        }
        Ok(units.into_iter().skip(partition).step_by(partitions).collect())
    }

    /// The series of a row group that the cache has, or takes now; None for others, whose spans are added to `observer`.
    async fn observe(&self, unit: ScanUnit, observer: &mut Observer) -> crate::error::Result<Option<RecordBatch>> {
        let source = &self.sources.sources().await?[unit.source];
        let excluded = self.sources.excluded_rows(unit.source, source);
        let Some((cache, slot)) = self.cache_slot(unit, source, excluded) else {
            return self.scan(unit, source, excluded, observer).await.map(|_| None);
        };
        match cache.get(&slot)? {
            Found::Series(series) => {
                self.metrics.row_group_cached();
                Ok(Some(series))
            }
            Found::TooLarge => self.scan(unit, source, excluded, observer).await.map(|_| None),
            Found::Nothing => {
                let mut own = observer.in_intervals(*slot.own(), Reservation::new(HELD, &self.pool));
                match self.scan(unit, source, excluded, &mut own).await {
                    // Known without reading: not worth its place.
                    Ok(Some(Pruned::Window | Pruned::Resources | Pruned::Columns | Pruned::Limit | Pruned::Joined)) => Ok(None),
                    Ok(Some(Pruned::Bloom) | None) => Ok(Some(cache.put(slot, &own.take_partial()?.to_batch()?)?)),
                    Err(error) if error.kind() == ErrorKind::Exhausted => {
                        cache.put_too_large(slot);
                        self.scan(unit, source, excluded, observer).await.map(|_| None)
                    }
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// Where the series of a row group are kept; None where they may change, or where nothing of it is left.
    fn cache_slot(&self, unit: ScanUnit, source: &SourceRef, excluded: &[Range<usize>]) -> Option<(&PartialCache, Slot)> {
        let cache = self.sources.resolver().partial_cache()?;
        let SourceName::Block { id: block } = self.sources.names()[unit.source] else { return None };
        let rows = &source.row_groups()[unit.group];
        let own = |row: usize| (row - rows.first_row as usize) as u32;
        let excluded: Vec<_> = of_row_group(excluded, rows).iter().map(|range| (own(range.start), own(range.end))).collect();
        if excluded.iter().map(|(start, end)| end - start).sum::<u32>() == rows.rows {
            return None;
        }
        let Reuse { shape, by_window } = self.reuse.as_ref()?;
        let slot = cache.slot(Part { block, group: unit.group, rows, excluded }, shape, &self.intervals, *by_window)?;
        Some((cache, slot))
    }

    /// Reads a row group and adds its spans. Tells why nothing was read.
    async fn scan(
        &self,
        unit: ScanUnit,
        source: &SourceRef,
        excluded: &[Range<usize>],
        observer: &mut Observer,
    ) -> crate::error::Result<Option<Pruned>> {
        let metrics = &*self.metrics;
        let mut frame = Frame::new(source.clone(), unit.group, None, &self.pool);
        let active = active_rows(&mut frame, unit.group, None, excluded, metrics).await?;
        if active.count_set_bits() == 0 {
            frame.rule_out(Pruned::Joined);
        }
        let rows = self.pipeline.rows(&mut frame, unit.group, &active, metrics).await?;
        if rows.count_set_bits() > 0 {
            frame.load(&observer.needs(frame.source()), metrics).await?;
            match observer.compared(&frame, &rows)? {
                Some(mut compared) => {
                    compared.load(&mut frame, metrics).await?;
                    observer.compare(&frame, &compared)?;
                }
                None => observer.observe(&frame, &rows)?,
            }
        }
        match frame.pruned() {
            Some(why) => metrics.pruned(why, 1),
            None => metrics.row_group(frame.len() as u64),
        }
        Ok(frame.pruned())
    }
}

impl DisplayAs for MetricsScanExec {
    fn fmt_as(&self, form: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, step) = (self.intervals.count(), self.intervals.step());
        write!(f, "MetricsScanExec: query=[{} | {}], intervals={count} of {step} ns", self.pipeline, self.function)?;
        write!(f, "{}, sources=[{}], partitions={}", self.detail, self.sources, self.partitions)?;
        match form {
            DisplayFormatType::Verbose => {
                let traces = if self.pipeline.by_rows() { ", without traces" } else { "" };
                write!(f, "{traces}, filters=[{}]", self.pipeline.describe_filters())
            }
            _ => Ok(()),
        }
    }
}

impl ExecutionPlan for MetricsScanExec {
    leaf_node!();
    counted_node!();

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let held = Reservation::new(HELD, context.memory_pool());
        let observer = Observer::new(self.pipeline.pipeline(), self.function.clone(), self.intervals, &self.detail, held);
        let reuse = observer.reuse().map(|Reuse { shape, by_window }| Reuse { shape: format!("{} | {shape}", self.pipeline).into(), by_window });
        let scan = Scan {
            sources: self.sources.clone(),
            pipeline: self.pipeline.clone(),
            intervals: self.intervals,
            reuse,
            metrics: self.metrics.clone(),
            pool: context.memory_pool().clone(),
        };
        // Values of an attribute are told apart while they are few in all that a partition has read: taken in parts, they would count again.
        let whole_only = matches!(self.function, MetricsFunction::Compare { .. });
        let (beat, partitions) = (Pace::of(&context), self.partitions);
        let running = Running { scan, units: None, partition, partitions, observer, beat, whole_only, observed: 0, ended: false };
        let batches = stream::try_unfold(running, |mut running| async move { Ok(running.next().await?.map(|batch| (batch, running))) });
        Ok(Box::pin(RecordBatchStreamAdapter::new(batch::schema(), batches)))
    }
}
