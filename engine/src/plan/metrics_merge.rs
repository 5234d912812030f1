//! `MetricsMergeExec`: partial series of all partitions, added up.

use std::{fmt, sync::Arc};

use arrow::record_batch::RecordBatch;
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
    leaf,
    metrics_scan::{self, MetricsScanExec},
    node::{counted_node, unary_node},
    properties,
    share_results::ShareResultsExec,
};
use crate::{
    exec::{memory::Reservation, stats::ScanMetrics},
    metrics::{batch, cells::CellKind, intervals::Intervals, partial::Partial},
    parts::{Beat, Pace, reached, reaching},
    stop,
};

/// Adds up the partial series of its input's partitions.
///
/// **Shape**: one partition, one batch of [`batch::schema`]. In a run with a [`Pace`], over a scan or over shares, several: when a part is due,
/// the cells of the intervals that became complete since the last one, marked with the first of these ([`reached`]); at the end the others.
/// **Memory**: all series.
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
        let properties = properties(batch::schema(), 1, EmissionType::Final);
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

/// Batches that a partition may be ahead: those of row groups whose series are kept are small and come faster than they are added.
const BATCHES_AHEAD: usize = 8;

/// What of the input has been added.
enum Heard {
    /// A scan.
    Scan {
        /// For each row group the latest end of a trace in it and in those after it of the same partition. Partitions take turns.
        latest_ends: Vec<u64>,
        /// Row groups of each partition.
        row_groups: Vec<usize>,
        intervals: Intervals,
    },
    /// Other nodes of this kind: for each, the first interval that is complete.
    Shares(Vec<usize>),
}

impl Heard {
    /// Nothing of a scan whose row groups have these latest ends.
    fn scan(mut ends: Vec<u64>, partitions: usize, intervals: Intervals) -> Self {
        for at in (0..ends.len().saturating_sub(partitions)).rev() {
            ends[at] = ends[at].max(ends[at + partitions]);
        }
        Self::Scan { latest_ends: ends, row_groups: vec![0; partitions], intervals }
    }

    /// Notes a batch of a partition; None is its end.
    fn hear(&mut self, partition: usize, batch: Option<&RecordBatch>) {
        match self {
            Self::Scan { row_groups, .. } => {
                if let Some(heard) = batch.and_then(metrics_scan::row_groups_in) {
                    row_groups[partition] = heard;
                }
            }
            Self::Shares(complete_from) => match batch {
                Some(batch) => {
                    if let Some(from) = reached(batch).and_then(|from| usize::try_from(from).ok()) {
                        complete_from[partition] = from.min(complete_from[partition]);
                    }
                }
                None => complete_from[partition] = 0,
            },
        }
    }

    /// The first interval from which on all are complete.
    fn complete_from(&self) -> usize {
        match self {
            Self::Scan { latest_ends, row_groups, intervals } => {
                let next = |(partition, heard): (usize, &usize)| latest_ends.get(partition + heard * row_groups.len());
                intervals.first_after(row_groups.iter().enumerate().filter_map(next).copied().max().unwrap_or(0))
            }
            Self::Shares(complete_from) => complete_from.iter().copied().max().unwrap_or(0),
        }
    }
}

/// Nothing of `input`; None for one that does not say how far it is.
async fn nothing_heard(input: &Arc<dyn ExecutionPlan>, intervals: usize) -> Result<Option<Heard>> {
    if let Some(scan) = leaf::<MetricsScanExec>(input) {
        return Ok(Some(Heard::scan(scan.latest_ends().await?, scan.partitions(), *scan.intervals())));
    }
    let partitions = input.output_partitioning().partition_count();
    Ok(input.is::<ShareResultsExec>().then(|| Heard::Shares(vec![intervals; partitions])))
}

/// Parts under way.
struct Telling {
    beat: Beat,
    heard: Heard,
}

impl Telling {
    /// Notes a batch, or the end of a partition. When a part is due, the first interval from which on all are complete; at most `told_from`.
    fn hear(&mut self, partition: usize, batch: Option<&RecordBatch>, told_from: usize) -> Option<usize> {
        self.heard.hear(partition, batch);
        let from = self.heard.complete_from().min(told_from);
        self.beat.is_due_if(from < told_from).then_some(from)
    }
}

/// A batch and the partition that it came from; None at the end of a partition.
type Heading = (usize, Option<Result<RecordBatch>>);

/// The run of the node.
struct Merging {
    input: Arc<dyn ExecutionPlan>,
    /// A pace, before the start.
    beat: Option<Beat>,
    telling: Option<Telling>,
    inputs: stream::SelectAll<BoxStream<'static, Heading>>,
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
        if let Some(beat) = self.beat.take() {
            self.telling = nothing_heard(&self.input, self.all.intervals()).await?.map(|heard| Telling { beat, heard });
        }
        while let Some((partition, batch)) = self.inputs.next().await {
            let batch = batch.transpose()?;
            if let Some(batch) = &batch {
                self.all.merge_batch(batch)?;
            }
            if let Some(from) = self.telling.as_mut().and_then(|telling| telling.hear(partition, batch.as_ref(), self.told_from)) {
                return Ok(Some(reaching(self.cells_from(from)?, from as u64)?));
            }
        }
        self.ended = true;
        Ok(Some(self.cells_from(0)?))
    }

    /// The cells of the intervals from `from` on that were not handed on yet.
    fn cells_from(&mut self, from: usize) -> Result<RecordBatch> {
        let until = std::mem::replace(&mut self.told_from, from);
        let batch = self.all.to_batch_of(from..until)?;
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
            let driven = spawn_buffered(stop::inherited(self.input.execute(partition, context.clone())?), BATCHES_AHEAD);
            let end = stream::once(std::future::ready((partition, None)));
            inputs.push(driven.map(move |batch| (partition, Some(batch))).chain(end).boxed());
        }
        let merging = Merging {
            input: self.input.clone(),
            beat: Pace::of(&context),
            telling: None,
            inputs,
            all: Partial::new(self.kind, self.intervals, Reservation::new("series of all partitions", context.memory_pool())),
            told_from: self.intervals,
            metrics: self.metrics.clone(),
            ended: false,
        };
        let batches = stream::try_unfold(merging, |mut merging| async move { Ok(merging.next().await?.map(|batch| (batch, merging))) });
        Ok(Box::pin(RecordBatchStreamAdapter::new(batch::schema(), batches)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_the_unread_row_groups_reach_is_not_complete() {
        // Intervals of 10 from 0 to 130; row groups 0 to 4 of two partitions; the last but one has a trace that lasts long.
        let intervals = Intervals::of_range(10, 130, 10).unwrap();
        let check = |heard: [usize; 2], expected: usize| {
            let mut scan = Heard::scan(vec![100, 95, 80, 120, 60], 2, intervals);
            if let Heard::Scan { row_groups, .. } = &mut scan {
                *row_groups = heard.to_vec();
            }
            assert_eq!(scan.complete_from(), expected, "{heard:?}");
        };
        check([0, 0], 12);
        check([1, 2], 8);
        check([2, 1], 12);
        check([3, 2], 0);
        assert_eq!(Heard::scan(Vec::new(), 2, intervals).complete_from(), 0);
    }

    #[test]
    fn the_share_that_lags_decides_what_is_complete() {
        let batch = |from| reaching(RecordBatch::new_empty(batch::schema()), from).unwrap();
        let mut shares = Heard::Shares(vec![9; 3]);
        shares.hear(0, Some(&batch(4)));
        shares.hear(1, None);
        assert_eq!(shares.complete_from(), 9);
        shares.hear(2, Some(&batch(6)));
        assert_eq!(shares.complete_from(), 6);
        shares.hear(2, Some(&RecordBatch::new_empty(batch::schema())));
        assert_eq!(shares.complete_from(), 6, "the last batch of a share says nothing");
        shares.hear(2, None);
        assert_eq!(shares.complete_from(), 4);
    }
}
