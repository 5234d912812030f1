//! `NewestTracesExec`: the newest traces of all partitions.

use std::{collections::BTreeMap, fmt, sync::Arc};

use arrow::record_batch::RecordBatch;
use datafusion::{
    common::Result,
    execution::TaskContext,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties, SendableRecordBatchStream, coop::CooperativeExec,
        execution_plan::EmissionType, stream::RecordBatchStreamAdapter,
    },
};
use futures::{StreamExt, stream};

use super::{
    matches::{self, MatchedTrace},
    node::{counted_node, unary_node},
    properties,
    spanset_scan::{NewestBound, SpansetScanExec},
};
use crate::{
    exec::{memory::Reservation, stats::ScanMetrics},
    spans::TraceId,
    stop,
};

/// Keeps the newest `limit` traces of its input's partitions.
///
/// **Shape**: one partition, one batch of [`matches::schema`], newest trace first, ties by trace id. **Memory**: `limit` matches.
/// When its input is a scan in the same process, it tells the scan what can no longer win.
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

/// The newest traces so far.
struct Newest {
    traces: BTreeMap<(std::cmp::Reverse<u64>, TraceId), MatchedTrace>,
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
        let bound = scan_below(&self.input).map(|scan| scan.bound().clone());
        let held = Reservation::new("the newest traces", context.memory_pool());
        let mut newest = Newest { traces: BTreeMap::new(), limit: self.limit, bound, held, bytes: 0 };
        let (input, metrics, alone) = (self.input.clone(), self.metrics.clone(), self.first_row_group_alone);
        let result = async move {
            let mut first = input.execute(0, context.clone())?;
            if alone && let Some(batch) = first.next().await {
                newest.add_all(&batch?)?;
            }
            let mut inputs = stream::SelectAll::new();
            inputs.push(spawn_buffered(stop::inherited(first)));
            for partition in 1..input.output_partitioning().partition_count() {
                inputs.push(spawn_buffered(stop::inherited(input.execute(partition, context.clone())?)));
            }
            while let Some(batch) = inputs.next().await {
                newest.add_all(&batch?)?;
            }
            let traces: Vec<MatchedTrace> = newest.traces.into_values().collect();
            let batch = newest.held.attach(matches::to_batch(&traces)?)?;
            metrics.output(batch.num_rows());
            Ok(batch)
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(matches::schema(), stream::once(result))))
    }
}

/// The scan that `input` is, perhaps inside the node that DataFusion puts around leaves so that they take turns.
fn scan_below(input: &Arc<dyn ExecutionPlan>) -> Option<&SpansetScanExec> {
    match input.downcast_ref::<CooperativeExec>() {
        Some(turns) => scan_below(turns.input()),
        None => input.downcast_ref(),
    }
}

/// Drives a partition in a task of its own, so that partitions use all CPUs; the task ends when the stream is dropped.
fn spawn_buffered(input: SendableRecordBatchStream) -> SendableRecordBatchStream {
    datafusion::physical_plan::common::spawn_buffered(input, 1)
}
