//! `NewestResultsExec`: the newest results of all shares of a search.

use std::{cmp::Reverse, collections::BTreeMap, fmt, sync::Arc};

use datafusion::{
    common::Result,
    execution::TaskContext,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties, SendableRecordBatchStream, common::spawn_buffered,
        execution_plan::EmissionType, stream::RecordBatchStreamAdapter,
    },
};
use futures::{StreamExt, stream};

use super::{node::unary_node, properties, share};
use crate::exec::memory::Reservation;

/// Keeps the newest `limit` results of all partitions of its input, which are of [`share::schema`].
///
/// **Shape**: one partition, one batch of [`share::schema`]: newest trace first, ties by trace id, as
/// [`NewestTracesExec`](super::newest_traces::NewestTracesExec) orders them, then one row with the sum of what the shares read.
/// **Memory**: `limit` results.
#[derive(Debug)]
pub struct NewestResultsExec {
    input: Arc<dyn ExecutionPlan>,
    limit: usize,
    properties: Arc<PlanProperties>,
}

impl NewestResultsExec {
    /// Keeps `limit` results of `input`.
    pub fn new(input: Arc<dyn ExecutionPlan>, limit: usize) -> Self {
        Self { input, limit, properties: properties(share::schema(), 1, EmissionType::Final) }
    }

    /// Results kept.
    pub fn limit(&self) -> usize {
        self.limit
    }
}

impl DisplayAs for NewestResultsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewestResultsExec: limit={}", self.limit)
    }
}

impl ExecutionPlan for NewestResultsExec {
    unary_node!(node, input => Self::new(input, node.limit));

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let mut inputs = stream::SelectAll::new();
        for partition in 0..self.input.output_partitioning().partition_count() {
            inputs.push(spawn_buffered(self.input.execute(partition, context.clone())?, 1));
        }
        let (limit, held) = (self.limit, Reservation::new("results of all shares", context.memory_pool()));
        let result = async move {
            let (mut newest, mut scanned) = (BTreeMap::new(), crate::query::ScanStats::default());
            while let Some(batch) = inputs.next().await {
                let (results, stats) = share::from_batch(&batch?)?;
                held.grow(results.iter().map(share::ShareResult::memory_bytes).sum())?;
                scanned = scanned.plus(&stats);
                for result in results {
                    newest.insert((Reverse(result.start_unix_nano), result.id), result);
                    if newest.len() > limit {
                        newest.pop_last();
                    }
                }
                held.settle(newest.values().map(share::ShareResult::memory_bytes).sum())?;
            }
            let results: Vec<share::ShareResult> = newest.into_values().collect();
            Ok(held.attach(share::to_batch(&results, Some(scanned))?)?)
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(share::schema(), stream::once(result))))
    }
}
