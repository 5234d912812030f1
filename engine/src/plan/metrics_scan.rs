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
    metrics::{
        compare,
        intervals::Intervals,
        observe::{self, Observer},
        partial,
    },
    stop,
    traceql::MetricsFunction,
};

/// Runs a spanset pipeline over row groups and adds the spans that it leaves to series, each span once.
///
/// **Shape**: one batch of [`partial::schema`] for each partition. Row groups are dealt out to the partitions in turn. **Memory**: the
/// columns of a row group and all series, for each partition.
#[derive(Debug)]
pub struct MetricsScanExec {
    sources: Arc<SourceSet>,
    pipeline: SpansetPipeline,
    function: MetricsFunction,
    intervals: Intervals,
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
        partitions: usize,
    ) -> Self {
        let properties = properties(partial::schema(), partitions, EmissionType::Final);
        Self { sources, pipeline: pipeline.into(), function, intervals, partitions, metrics: Arc::default(), properties }
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

    /// Partitions.
    pub fn partitions(&self) -> usize {
        self.partitions
    }
}

/// What the stream of one partition needs.
struct Scan {
    sources: Arc<SourceSet>,
    pipeline: SpansetPipeline,
    function: MetricsFunction,
    intervals: Intervals,
    metrics: Arc<ScanMetrics>,
    pool: Pool,
}

impl Scan {
    async fn run(self, partition: usize, partitions: usize) -> crate::error::Result<RecordBatch> {
        let watch = Stopwatch::start();
        let (units, outside) = scan_units(self.sources.sources().await?, Some(self.intervals.window()));
        if partition == 0 {
            self.metrics.pruned(Pruned::Window, outside);
        }
        let mut observer = Observer::new(self.function.clone(), self.intervals, Reservation::new("series of a partition", &self.pool));
        for unit in units.into_iter().skip(partition).step_by(partitions) {
            stop::check()?;
            self.observe(unit, &mut observer).await?;
        }
        let batch = observer.into_partial().to_batch()?;
        self.metrics.busy(watch.elapsed());
        self.metrics.output(batch.num_rows());
        Ok(batch)
    }

    async fn observe(&self, unit: ScanUnit, observer: &mut Observer) -> crate::error::Result<()> {
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
            let needs = match &self.function {
                MetricsFunction::Compare { selection, .. } => compare::needs(selection, frame.source()),
                function => observe::needs(function, frame.source()),
            };
            frame.load(&needs, metrics).await?;
            observer.observe(&frame, &rows)?;
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
        write!(f, ", sources=[{}], partitions={}", self.sources, self.partitions)?;
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
        let scan = Scan {
            sources: self.sources.clone(),
            pipeline: self.pipeline.clone(),
            function: self.function.clone(),
            intervals: self.intervals,
            metrics: self.metrics.clone(),
            pool: context.memory_pool().clone(),
        };
        let partitions = self.partitions;
        let batch = async move { Ok(scan.run(partition, partitions).await?) };
        Ok(Box::pin(RecordBatchStreamAdapter::new(partial::schema(), stream::once(batch))))
    }
}
