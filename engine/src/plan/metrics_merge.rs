//! `MetricsMergeExec`: partial series of all partitions, added up.

use std::{fmt, sync::Arc};

use arrow::{
    array::{AsArray, BooleanArray},
    compute::filter_record_batch,
    datatypes::UInt32Type,
    record_batch::RecordBatch,
};
use datafusion::{
    common::Result,
    execution::TaskContext,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties, SendableRecordBatchStream, common::spawn_buffered,
        execution_plan::EmissionType, stream::RecordBatchStreamAdapter,
    },
};
use futures::{StreamExt, stream, stream::BoxStream};

use super::{
    metrics_scan::{self, MetricsScanExec},
    node::{counted_node, unary_node},
    properties,
};
use crate::{
    error::Error,
    exec::stats::ScanMetrics,
    metrics::{
        cells::CellKind,
        intervals::Intervals,
        partial::{self, Partial},
    },
    parts::{Beat, Pace, mark, marked},
    stop,
};

/// Adds up the partial series of its input's partitions.
///
/// **Shape**: one partition, one batch of [`partial::schema`]. In a run with a [`Pace`] and over a scan several: when a part is due, the cells of
/// the intervals that became complete since the last one, marked with the first of these ([`complete_from`]); at the end the cells of the others.
/// **Memory**: all series, bounded by [`Partial`].
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

/// The mark of the first interval whose cells a part has.
const COMPLETE_FROM: &str = "complete_from";

/// The first interval that is complete with `batch`, whose cells are of this one and later ones; None for the last batch.
pub fn complete_from(batch: &RecordBatch) -> Option<usize> {
    mark(batch, COMPLETE_FROM)
}

/// Which row groups of a scan have been added.
struct Heard {
    /// For each row group the latest end of a trace in it and in those after it of the same partition. Partitions take turns.
    latest_ends: Vec<u64>,
    /// Row groups of each partition.
    row_groups: Vec<usize>,
}

impl Heard {
    fn new(mut ends: Vec<u64>, partitions: usize) -> Self {
        for at in (0..ends.len().saturating_sub(partitions)).rev() {
            ends[at] = ends[at].max(ends[at + partitions]);
        }
        Self { latest_ends: ends, row_groups: vec![0; partitions] }
    }

    /// The latest end of a trace that has not been added; zero when all have.
    fn latest_unread(&self) -> u64 {
        let next = |(partition, row_groups): (usize, &usize)| self.latest_ends.get(partition + row_groups * self.row_groups.len());
        self.row_groups.iter().enumerate().filter_map(next).copied().max().unwrap_or(0)
    }
}

/// Parts under way.
struct Telling {
    beat: Beat,
    heard: Heard,
    intervals: Intervals,
}

impl Telling {
    /// Notes a batch. When a part is due, the first interval from which on all are complete; at most `told_from`.
    fn hear(&mut self, partition: usize, batch: &RecordBatch, told_from: usize) -> Option<usize> {
        if let Some(row_groups) = metrics_scan::row_groups_in(batch) {
            self.heard.row_groups[partition] = row_groups;
        }
        let from = self.intervals.first_after(self.heard.latest_unread()).min(told_from);
        self.beat.is_due_if(from < told_from).then_some(from)
    }
}

/// The run of the node.
struct Merging {
    input: Arc<dyn ExecutionPlan>,
    /// A pace, before the start.
    beat: Option<Beat>,
    telling: Option<Telling>,
    inputs: stream::SelectAll<BoxStream<'static, (usize, Result<RecordBatch>)>>,
    all: Partial,
    /// The first of the intervals whose cells were handed on.
    told_from: usize,
    metrics: Arc<ScanMetrics>,
    ended: bool,
}

impl Merging {
    /// The next part, or the rest; None after it.
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        if self.ended {
            return Ok(None);
        }
        if let Some(beat) = self.beat.take()
            && let Some(scan) = self.input.downcast_ref::<MetricsScanExec>()
        {
            let heard = Heard::new(scan.latest_ends().await?, scan.partitions());
            self.telling = Some(Telling { beat, heard, intervals: *scan.intervals() });
        }
        while let Some((partition, batch)) = self.inputs.next().await {
            let batch = batch?;
            self.all.merge_batch(&batch)?;
            if let Some(from) = self.telling.as_mut().and_then(|telling| telling.hear(partition, &batch, self.told_from)) {
                return Ok(Some(marked(self.cells_from(from)?, COMPLETE_FROM, from)?));
            }
        }
        self.ended = true;
        Ok(Some(self.cells_from(0)?))
    }

    /// The cells of the intervals from `from` on that were not handed on yet.
    fn cells_from(&mut self, from: usize) -> Result<RecordBatch> {
        let until = std::mem::replace(&mut self.told_from, from);
        let mut batch = self.all.to_batch()?;
        if until < self.all.intervals() || from > 0 {
            let wrong = || Error::internal("partial series have no intervals");
            let column = batch.column_by_name("interval").and_then(|column| column.as_primitive_opt::<UInt32Type>()).ok_or_else(wrong)?;
            let wanted = BooleanArray::from_unary(column, |at| (from..until).contains(&(at as usize)));
            batch = filter_record_batch(&batch, &wanted)?;
        }
        self.metrics.output(batch.num_rows());
        Ok(batch)
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
            let driven = spawn_buffered(stop::inherited(self.input.execute(partition, context.clone())?), 1);
            inputs.push(driven.map(move |batch| (partition, batch)).boxed());
        }
        let merging = Merging {
            input: self.input.clone(),
            beat: Pace::of(&context),
            telling: None,
            inputs,
            all: Partial::new(self.kind, self.intervals),
            told_from: self.intervals,
            metrics: self.metrics.clone(),
            ended: false,
        };
        let batches = stream::try_unfold(merging, |mut merging| async move { Ok(merging.next().await?.map(|batch| (batch, merging))) });
        Ok(Box::pin(RecordBatchStreamAdapter::new(partial::schema(), batches)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_unread_row_groups_reach_is_not_complete() {
        // Row groups 0 to 4 of two partitions; the last but one has a trace that lasts long.
        let mut heard = Heard::new(vec![100, 95, 80, 120, 60], 2);
        assert_eq!(heard.latest_unread(), 120);
        heard.row_groups = vec![1, 2];
        assert_eq!(heard.latest_unread(), 80);
        heard.row_groups = vec![2, 1];
        assert_eq!(heard.latest_unread(), 120);
        heard.row_groups = vec![3, 2];
        assert_eq!(heard.latest_unread(), 0);
        assert_eq!(Heard::new(Vec::new(), 2).latest_unread(), 0);
    }
}
