//! `NewestTracesExec`: the newest traces of all partitions.

use std::{cmp::Reverse, collections::BTreeMap, fmt, sync::Arc};

use arrow::record_batch::RecordBatch;
use datafusion::{
    common::Result,
    execution::TaskContext,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties, SendableRecordBatchStream,
        execution_plan::EmissionType, stream::RecordBatchStreamAdapter,
    },
};
use futures::{StreamExt, stream, stream::BoxStream};

use super::{
    leaf,
    matches::{self, MatchedTrace},
    node::{counted_node, unary_node},
    properties,
    spanset_scan::{NewestBound, SpansetScanExec},
};
use crate::{
    exec::{memory::Reservation, stats::ScanMetrics},
    parts::{Beat, Pace, reaching},
    spans::TraceId,
    stop,
};

/// Keeps the newest `limit` traces of its input's partitions.
///
/// **Shape**: one partition, batches of [`matches::schema`], newest trace first, ties by trace id. One batch; in a run with a
/// [`Pace`] and over a scan several: when a part is due, the traces that nothing unread can be newer than (perhaps none),
/// marked with the latest start among the unread ([`reached`](crate::parts::reached)); at the end the rest.
/// **Memory**: `limit` matches. When its input is a scan in the same process, it tells the scan what can no longer win.
#[derive(Debug)]
pub struct NewestTracesExec {
    input: Arc<dyn ExecutionPlan>,
    limit: usize,
    first_row_group_alone: bool,
    metrics: Arc<ScanMetrics>,
    properties: Arc<PlanProperties>,
}

impl NewestTracesExec {
    /// Keeps `limit` traces of `input`.
    pub fn new(input: Arc<dyn ExecutionPlan>, limit: usize) -> Self {
        let properties = properties(matches::schema(), 1, EmissionType::Final);
        Self { input, limit, first_row_group_alone: false, metrics: Arc::default(), properties }
    }

    /// The same node; `alone` says that it waits for the first batch of the first partition before the others begin.
    pub fn with_first_row_group_alone(self, alone: bool) -> Self {
        Self { first_row_group_alone: alone, ..self }
    }

    /// Whether the first batch of the first partition, the newest row group of a scan, is waited for before the other partitions begin.
    pub fn first_row_group_alone(&self) -> bool {
        self.first_row_group_alone
    }

    /// Traces kept.
    pub fn limit(&self) -> usize {
        self.limit
    }
}

/// The newest traces so far, without those that were handed on.
struct Newest {
    traces: BTreeMap<(Reverse<u64>, TraceId), MatchedTrace>,
    limit: usize,
    bound: Option<Arc<NewestBound>>,
    held: Reservation,
    bytes: usize,
}

impl Newest {
    fn add_all(&mut self, batch: &RecordBatch) -> crate::error::Result<()> {
        matches::from_batch(batch)?.into_iter().for_each(|trace| self.add(trace));
        self.held.settle(self.bytes)
    }

    fn add(&mut self, trace: MatchedTrace) {
        self.bytes += trace.memory_bytes();
        let replaced = self.traces.insert(trace.rank(), trace);
        let over = if self.traces.len() > self.limit { self.traces.pop_last() } else { None };
        self.bytes -= replaced.iter().chain(over.iter().map(|(_, last)| last)).map(MatchedTrace::memory_bytes).sum::<usize>();
        if self.traces.len() == self.limit
            && let (Some(bound), Some(last)) = (&self.bound, self.traces.last_key_value())
        {
            bound.raise(last.1.start_unix_nano);
        }
    }

    /// Whether some traces start after `unread`.
    fn has_certain(&self, unread: u64) -> bool {
        self.traces.first_key_value().is_some_and(|((start, _), _)| start.0 > unread)
    }

    /// Takes the traces that start after `unread`, the latest start that may still come. They keep their places in the limit.
    fn take_certain(&mut self, unread: u64) -> Vec<MatchedTrace> {
        let rest = self.traces.split_off(&(Reverse(unread), TraceId::default()));
        let certain = std::mem::replace(&mut self.traces, rest);
        self.limit -= certain.len();
        self.bytes -= certain.values().map(MatchedTrace::memory_bytes).sum::<usize>();
        certain.into_values().collect()
    }
}

/// Which row groups of a scan have been heard of: each partition gives a batch for each of its own, in order.
struct Heard {
    /// The newest start of each row group, descending. Partitions take turns.
    starts: Vec<u64>,
    /// Batches of each partition.
    batches: Vec<usize>,
}

impl Heard {
    /// The latest start among the row groups that have not been heard of; zero when all have.
    fn latest_unread(&self) -> u64 {
        let next = |(partition, batches): (usize, &usize)| partition + batches * self.batches.len();
        let first = self.batches.iter().enumerate().map(next).min().unwrap_or(0);
        self.starts.get(first).copied().unwrap_or(0)
    }
}

/// Parts under way.
struct Telling {
    beat: Beat,
    heard: Heard,
}

/// A batch and the partition that it came from.
type Heading = (usize, Result<RecordBatch>);

/// The run of the node.
struct Merging {
    input: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
    /// Whether the newest row group is read before the other partitions begin.
    alone: bool,
    /// Empty before the start.
    inputs: Option<stream::SelectAll<BoxStream<'static, Heading>>>,
    newest: Newest,
    telling: Option<Telling>,
    metrics: Arc<ScanMetrics>,
    ended: bool,
}

impl Merging {
    /// The next part, or the rest; None after it.
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        if self.ended {
            return Ok(None);
        }
        if self.inputs.is_none()
            && let Some(part) = self.begin().await?
        {
            return Ok(Some(part));
        }
        while let Some((partition, batch)) = self.inputs.as_mut().expect("they were begun").next().await {
            if let Some(part) = self.hear(partition, &batch?)? {
                return Ok(Some(part));
            }
        }
        self.ended = true;
        let rest: Vec<MatchedTrace> = std::mem::take(&mut self.newest.traces).into_values().collect();
        let held = std::mem::take(&mut self.newest.held);
        self.output(&rest, held).map(Some)
    }

    /// Starts the partitions, perhaps after the newest row group was read: alone it often has all that is wanted.
    async fn begin(&mut self) -> Result<Option<RecordBatch>> {
        if let Some(scan) = leaf::<SpansetScanExec>(&self.input)
            && let Some(beat) = Pace::of(&self.context)
        {
            self.telling = Some(Telling { beat, heard: Heard { starts: scan.newest_starts().await?, batches: vec![0; scan.partitions()] } });
        }
        let mut first = self.input.execute(0, self.context.clone())?;
        let batch = if self.alone { first.next().await } else { None };
        let mut inputs = stream::SelectAll::new();
        inputs.push(spawned(0, first));
        for partition in 1..self.input.output_partitioning().partition_count() {
            inputs.push(spawned(partition, self.input.execute(partition, self.context.clone())?));
        }
        self.inputs = Some(inputs);
        match batch {
            Some(batch) => self.hear(0, &batch?),
            None => Ok(None),
        }
    }

    /// Takes in a batch; a part, if one is due.
    fn hear(&mut self, partition: usize, batch: &RecordBatch) -> Result<Option<RecordBatch>> {
        self.newest.add_all(batch)?;
        let Some(telling) = &mut self.telling else { return Ok(None) };
        telling.heard.batches[partition] += 1;
        let unread = telling.heard.latest_unread();
        if !telling.beat.is_due_if(self.newest.has_certain(unread)) {
            return Ok(None);
        }
        let certain = self.newest.take_certain(unread);
        Ok(Some(reaching(self.output(&certain, self.newest.held.another())?, unread)?))
    }

    fn output(&self, traces: &[MatchedTrace], held: Reservation) -> Result<RecordBatch> {
        let batch = held.attach(matches::to_batch(traces)?)?;
        self.metrics.output(batch.num_rows());
        Ok(batch)
    }
}

impl DisplayAs for NewestTracesExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let alone = if self.first_row_group_alone { ", first row group alone" } else { "" };
        write!(f, "NewestTracesExec: limit={}{alone}", self.limit)
    }
}

impl ExecutionPlan for NewestTracesExec {
    unary_node!(node, input => Self::new(input, node.limit).with_first_row_group_alone(node.first_row_group_alone));
    counted_node!();

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let bound = leaf::<SpansetScanExec>(&self.input).map(|scan| scan.bound().clone());
        let held = Reservation::new("the newest traces", context.memory_pool());
        let merging = Merging {
            input: self.input.clone(),
            context,
            alone: self.first_row_group_alone,
            inputs: None,
            newest: Newest { traces: BTreeMap::new(), limit: self.limit, bound, held, bytes: 0 },
            telling: None,
            metrics: self.metrics.clone(),
            ended: false,
        };
        let batches = stream::try_unfold(merging, |mut merging| async move { Ok(merging.next().await?.map(|batch| (batch, merging))) });
        Ok(Box::pin(RecordBatchStreamAdapter::new(matches::schema(), batches)))
    }
}

/// Drives a partition in a task of its own, so that partitions use all CPUs; the task ends when the stream is dropped.
fn spawned(partition: usize, input: SendableRecordBatchStream) -> BoxStream<'static, Heading> {
    let driven = datafusion::physical_plan::common::spawn_buffered(stop::inherited(input), 1);
    driven.map(move |batch| (partition, batch)).boxed()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn found(start: u64, id: u128) -> MatchedTrace {
        MatchedTrace { start_unix_nano: start, id: TraceId(id.to_be_bytes()), source: 0, group: 0, first_row: 0, rows: 1, spansets: Vec::new() }
    }

    fn starts(traces: &[MatchedTrace]) -> Vec<u64> {
        traces.iter().map(|trace| trace.start_unix_nano).collect()
    }

    #[test]
    fn the_row_group_that_lags_decides_what_is_certain() {
        let mut heard = Heard { starts: vec![90, 80, 70, 60, 50], batches: vec![0, 0] };
        assert_eq!(heard.latest_unread(), 90);
        heard.batches = vec![1, 0];
        assert_eq!(heard.latest_unread(), 80);
        heard.batches = vec![3, 0];
        assert_eq!(heard.latest_unread(), 80, "the other partition has not begun");
        heard.batches = vec![1, 2];
        assert_eq!(heard.latest_unread(), 70);
        heard.batches = vec![3, 2];
        assert_eq!(heard.latest_unread(), 0);
    }

    #[test]
    fn what_was_handed_on_counts_and_nothing_comes_before_it() {
        let pool = TaskContext::default().memory_pool().clone();
        let mut newest = Newest { traces: BTreeMap::new(), limit: 4, bound: None, held: Reservation::new("a test", &pool), bytes: 0 };
        [95, 85, 80, 65].into_iter().for_each(|start| newest.add(found(start, u128::from(start))));
        // One that starts with the newest of the unread may have a smaller id than theirs.
        assert_eq!(starts(&newest.take_certain(80)), [95, 85]);
        assert_eq!(starts(&newest.take_certain(80)), [] as [u64; 0]);
        newest.add(found(80, 1));
        newest.add(found(75, 75));
        assert_eq!(starts(&newest.take_certain(0)), [80, 80]);
        newest.add(found(70, 70));
        assert!(newest.traces.is_empty(), "four were wanted");
    }
}
