//! `NewestTracesExec`: the newest traces of all partitions.

use std::{collections::BTreeMap, fmt, sync::Arc};

use arrow::record_batch::RecordBatch;
use datafusion::{
    common::Result,
    execution::TaskContext,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties, SendableRecordBatchStream,
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
    metrics: Arc<ScanMetrics>,
    properties: Arc<PlanProperties>,
}

impl NewestTracesExec {
    /// Keeps `limit` traces of `input`.
    pub fn new(input: Arc<dyn ExecutionPlan>, limit: usize) -> Self {
        let properties = properties(matches::schema(), 1, EmissionType::Final);
        Self { input, limit, metrics: Arc::default(), properties }
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
        write!(f, "NewestTracesExec: limit={}", self.limit)
    }
}

impl ExecutionPlan for NewestTracesExec {
    unary_node!(node, input => Self::new(input, node.limit));
    counted_node!();

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let bound = self.input.downcast_ref::<SpansetScanExec>().map(|scan| scan.bound().clone());
        let held = Reservation::new("the newest traces", context.memory_pool());
        let mut newest = Newest { traces: BTreeMap::new(), limit: self.limit, bound, held, bytes: 0 };
        let (input, metrics) = (self.input.clone(), self.metrics.clone());
        let result = async move {
            let mut first = input.execute(0, context.clone())?;
            // The newest row group alone often has all that is wanted: the other partitions begin after it.
            if let Some(batch) = first.next().await {
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

/// Drives a partition in a task of its own, so that partitions use all CPUs; the task ends when the stream is dropped.
fn spawn_buffered(input: SendableRecordBatchStream) -> SendableRecordBatchStream {
    datafusion::physical_plan::common::spawn_buffered(input, 1)
}
