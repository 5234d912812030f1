//! `MetricsScanExec`: the leaf of a metrics query. Spans of all sources into partial series.

use std::{fmt, sync::Arc};

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
    exec::{
        eval::Frame,
        memory::{Pool, Reservation},
        sources::{ScanUnit, SourceSet, active_rows, scan_units},
        spansets::SpansetPipeline,
        stats::{Pruned, ScanMetrics},
    },
    metrics::{detail::Detail, intervals::Intervals, observe::Observer, partial},
    parts::{Beat, Pace, mark, marked},
    stop,
    traceql::MetricsFunction,
};

/// Runs a spanset pipeline over row groups and adds the spans that it leaves to series, each span once.
///
/// **Shape**: one batch of [`partial::schema`] for each partition; in a run with a [`Pace`] several, which add up, each marked with the number
/// of the partition's row groups that are in it and those before ([`row_groups_in`]). Row groups, newest first, are dealt out to the partitions
/// in turn. **Memory**: the columns of a row group and all series, for each partition.
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
        let properties = properties(partial::schema(), partitions, EmissionType::Final);
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

/// What the stream of one partition needs.
struct Scan {
    sources: Arc<SourceSet>,
    pipeline: SpansetPipeline,
    observer: Observer,
    intervals: Intervals,
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
    beat: Option<Beat>,
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
            self.scan.observe(unit).await?;
            self.observed += 1;
            if self.beat.as_mut().is_some_and(Beat::is_due) {
                return self.output(watch).map(Some);
            }
        }
        self.ended = true;
        self.output(watch).map(Some)
    }

    fn output(&mut self, watch: Stopwatch) -> crate::error::Result<RecordBatch> {
        let batch = self.scan.observer.take_partial().to_batch()?;
        self.scan.metrics.busy(watch.elapsed());
        self.scan.metrics.output(batch.num_rows());
        if self.beat.is_some() { marked(batch, ROW_GROUPS, self.observed as u64) } else { Ok(batch) }
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

    async fn observe(&mut self, unit: ScanUnit) -> crate::error::Result<()> {
        let metrics = &*self.metrics;
        let source = self.sources.sources().await?[unit.source].clone();
        let mut frame = Frame::new(source, unit.group, None, &self.pool);
        let excluded = self.sources.excluded_rows(unit.source, frame.source());
        let active = active_rows(&mut frame, unit.group, None, excluded, metrics).await?;
        if active.count_set_bits() == 0 {
            frame.rule_out(Pruned::Joined);
        }
        let rows = self.pipeline.rows(&mut frame, unit.group, &active, metrics).await?;
        if rows.count_set_bits() > 0 {
            frame.load(&self.observer.needs(frame.source()), metrics).await?;
            self.observer.observe(&frame, &rows)?;
        }
        match frame.pruned() {
            Some(why) => metrics.pruned(why, 1),
            None => metrics.row_group(frame.len() as u64),
        }
        Ok(())
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
        let held = Reservation::new("series of a partition", context.memory_pool());
        let scan = Scan {
            sources: self.sources.clone(),
            pipeline: self.pipeline.clone(),
            observer: Observer::new(self.pipeline.pipeline(), self.function.clone(), self.intervals, &self.detail, held),
            intervals: self.intervals,
            metrics: self.metrics.clone(),
            pool: context.memory_pool().clone(),
        };
        let running = Running { scan, units: None, partition, partitions: self.partitions, beat: Pace::of(&context), observed: 0, ended: false };
        let batches = stream::try_unfold(running, |mut running| async move { Ok(running.next().await?.map(|batch| (batch, running))) });
        Ok(Box::pin(RecordBatchStreamAdapter::new(partial::schema(), batches)))
    }
}
