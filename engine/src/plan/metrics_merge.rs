//! `MetricsMergeExec`: partial series of all partitions, added up.

use std::{fmt, sync::Arc};

use datafusion::{
    common::Result,
    execution::TaskContext,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties, SendableRecordBatchStream, common::spawn_buffered,
        execution_plan::EmissionType, stream::RecordBatchStreamAdapter,
    },
};
use futures::{StreamExt, stream};

use super::{
    node::{counted_node, unary_node},
    properties,
};
use crate::{
    exec::{memory::Reservation, stats::ScanMetrics},
    metrics::{
        cells::CellKind,
        partial::{self, Partial},
    },
    stop,
};

/// Adds up the partial series of its input's partitions.
///
/// **Shape**: one partition, one batch of [`partial::schema`]. **Memory**: all series.
#[derive(Debug)]
pub struct MetricsMergeExec {
    input: Arc<dyn ExecutionPlan>,
    kind: CellKind,
    intervals: usize,
    metrics: Arc<ScanMetrics>,
    properties: Arc<PlanProperties>,
}

impl MetricsMergeExec {
    /// The sum of the series of `input`, which have cells of one kind, one for each of `intervals` intervals.
    pub fn new(input: Arc<dyn ExecutionPlan>, kind: CellKind, intervals: usize) -> Self {
        let properties = properties(partial::schema(), 1, EmissionType::Final);
        Self { input, kind, intervals, metrics: Arc::default(), properties }
    }

    /// The kind of the cells.
    pub fn kind(&self) -> CellKind {
        self.kind
    }

    /// How many cells a series has.
    pub fn intervals(&self) -> usize {
        self.intervals
    }
}

impl DisplayAs for MetricsMergeExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MetricsMergeExec: cells={:?}", self.kind)
    }
}

impl ExecutionPlan for MetricsMergeExec {
    unary_node!(node, input => Self::new(input, node.kind, node.intervals));
    counted_node!();

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let mut inputs = stream::SelectAll::new();
        for partition in 0..self.input.output_partitioning().partition_count() {
            // A task for each partition, so that they use all CPUs; it ends when the stream is dropped.
            inputs.push(spawn_buffered(stop::inherited(self.input.execute(partition, context.clone())?), 1));
        }
        let held = Reservation::new("series of all partitions", context.memory_pool());
        let (mut all, metrics) = (Partial::new(self.kind, self.intervals, held), self.metrics.clone());
        let result = async move {
            while let Some(batch) = inputs.next().await {
                all.merge_batch(&batch?)?;
            }
            let batch = all.to_batch()?;
            metrics.output(batch.num_rows());
            Ok(batch)
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(partial::schema(), stream::once(result))))
    }
}
