//! `NewestResultsExec`: the newest results of all shares of a search.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    fmt,
    sync::{Arc, LazyLock},
};

use arrow::{
    array::{ArrayRef, AsArray, BinaryArray, FixedSizeBinaryBuilder, UInt64Array},
    datatypes::{DataType, Field, Schema, SchemaRef, UInt64Type},
    record_batch::RecordBatch,
};
use datafusion::{
    common::Result as DataFusionResult,
    execution::TaskContext,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties, SendableRecordBatchStream, common::spawn_buffered,
        execution_plan::EmissionType, stream::RecordBatchStreamAdapter,
    },
};
use futures::{StreamExt, stream};

use super::{node::unary_node, properties};
use crate::{
    error::{Error, Result},
    exec::memory::Reservation,
    spans::TraceId,
};

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("trace_start_unix_nano", DataType::UInt64, false),
        Field::new("trace_id", DataType::FixedSizeBinary(16), false),
        Field::new("metadata", DataType::Binary, false),
    ]))
});

/// Keeps the newest `limit` results of all partitions of its input, which are those of a
/// [`TraceDetailsExec`](super::trace_details::TraceDetailsExec).
///
/// **Shape**: one partition, one batch of start, id and `metadata`: newest trace first, ties by trace id, as
/// [`NewestTracesExec`](super::newest_traces::NewestTracesExec) orders them. **Memory**: `limit` results.
#[derive(Debug)]
pub struct NewestResultsExec {
    input: Arc<dyn ExecutionPlan>,
    limit: usize,
    properties: Arc<PlanProperties>,
}

impl NewestResultsExec {
    /// Keeps `limit` results of `input`.
    pub fn new(input: Arc<dyn ExecutionPlan>, limit: usize) -> Self {
        Self { input, limit, properties: properties(SCHEMA.clone(), 1, EmissionType::Final) }
    }

    /// Results kept.
    pub fn limit(&self) -> usize {
        self.limit
    }
}

/// Bytes of a result without its message.
const RESULT_BYTES: usize = size_of::<(Reverse<u64>, TraceId, Vec<u8>)>();

/// Rank, and the message.
type Newest = BTreeMap<(Reverse<u64>, TraceId), Vec<u8>>;

/// Adds the results of a batch, and forgets what is beyond `limit`. Errors: `Internal` when it has no results.
fn add(newest: &mut Newest, batch: &RecordBatch, limit: usize) -> Result<()> {
    let column = |name| batch.column_by_name(name).ok_or_else(|| Error::internal(format!("results lack column {name}")));
    let wrong = || Error::internal("a column of results has another type");
    let starts = column("trace_start_unix_nano")?.as_primitive_opt::<UInt64Type>().ok_or_else(wrong)?;
    let ids = column("trace_id")?.as_fixed_size_binary_opt().ok_or_else(wrong)?;
    let metadata: &BinaryArray = column("metadata")?.as_binary_opt().ok_or_else(wrong)?;
    for row in 0..batch.num_rows() {
        let id = TraceId(ids.value(row).try_into().map_err(|_| wrong())?);
        newest.insert((Reverse(starts.value(row)), id), metadata.value(row).to_vec());
        if newest.len() > limit {
            newest.pop_last();
        }
    }
    Ok(())
}

fn to_batch(newest: Newest) -> Result<RecordBatch> {
    let mut ids = FixedSizeBinaryBuilder::with_capacity(newest.len(), 16);
    newest.keys().try_for_each(|(_, id)| ids.append_value(id.0))?;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::from_iter_values(newest.keys().map(|(start, _)| start.0))),
        Arc::new(ids.finish()),
        Arc::new(BinaryArray::from_iter_values(newest.into_values())),
    ];
    Ok(RecordBatch::try_new(SCHEMA.clone(), columns)?)
}

impl DisplayAs for NewestResultsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewestResultsExec: limit={}", self.limit)
    }
}

impl ExecutionPlan for NewestResultsExec {
    unary_node!(node, input => Self::new(input, node.limit));

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> DataFusionResult<SendableRecordBatchStream> {
        let mut inputs = stream::SelectAll::new();
        for partition in 0..self.input.output_partitioning().partition_count() {
            inputs.push(spawn_buffered(self.input.execute(partition, context.clone())?, 1));
        }
        let (limit, held) = (self.limit, Reservation::new("results of all shares", context.memory_pool()));
        let result = async move {
            let mut newest = Newest::new();
            while let Some(batch) = inputs.next().await {
                let batch = batch?;
                held.grow(batch.get_array_memory_size())?;
                add(&mut newest, &batch, limit)?;
                held.settle(newest.values().map(|metadata| RESULT_BYTES + metadata.len()).sum())?;
            }
            Ok(held.attach(to_batch(newest)?)?)
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(SCHEMA.clone(), stream::once(result))))
    }
}
