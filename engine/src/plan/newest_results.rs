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
use futures::{StreamExt, stream, stream::BoxStream};

use super::{node::unary_node, properties};
use crate::{
    error::{Error, Result},
    exec::memory::Reservation,
    parts::{Beat, Pace, reached, reaching},
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
/// **Shape**: one partition, batches of start, id and `metadata`: newest trace first, ties by trace id, as
/// [`NewestTracesExec`](super::newest_traces::NewestTracesExec) orders them; one batch, or parts as there. **Memory**: `limit` results.
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

/// Results by rank.
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

/// A batch and the partition that it came from; None at the end of a partition.
type Heading = (usize, Option<DataFusionResult<RecordBatch>>);

/// The run of the node.
struct Merging {
    inputs: stream::SelectAll<BoxStream<'static, Heading>>,
    newest: Newest,
    /// Of which so many more are wanted.
    limit: usize,
    held: Reservation,
    beat: Option<Beat>,
    /// For each partition, the latest start that may still come.
    unread: Vec<u64>,
    ended: bool,
}

impl Merging {
    /// The next part, or the rest; None after it.
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        if self.ended {
            return Ok(None);
        }
        while let Some((partition, batch)) = self.inputs.next().await {
            match batch.transpose()? {
                Some(batch) => {
                    self.held.grow(batch.get_array_memory_size())?;
                    add(&mut self.newest, &batch, self.limit)?;
                    self.held.settle(self.newest.values().map(|metadata| RESULT_BYTES + metadata.len()).sum())?;
                    self.unread[partition] = reached(&batch).unwrap_or(self.unread[partition]);
                }
                None => self.unread[partition] = 0,
            }
            let unread = self.unread.iter().copied().max().unwrap_or(0);
            let has_certain = self.newest.first_key_value().is_some_and(|((start, _), _)| start.0 > unread);
            if self.beat.as_mut().is_some_and(|beat| beat.is_due_if(has_certain)) {
                let rest = self.newest.split_off(&(Reverse(unread), TraceId::default()));
                let certain = std::mem::replace(&mut self.newest, rest);
                self.limit -= certain.len();
                return Ok(Some(reaching(self.held.another().attach(to_batch(certain)?)?, unread)?));
            }
        }
        self.ended = true;
        Ok(Some(std::mem::take(&mut self.held).attach(to_batch(std::mem::take(&mut self.newest))?)?))
    }
}

impl DisplayAs for NewestResultsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewestResultsExec: limit={}", self.limit)
    }
}

impl ExecutionPlan for NewestResultsExec {
    unary_node!(node, input => Self::new(input, node.limit));

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> DataFusionResult<SendableRecordBatchStream> {
        let partitions = self.input.output_partitioning().partition_count();
        let mut inputs = stream::SelectAll::new();
        for partition in 0..partitions {
            let driven = spawn_buffered(self.input.execute(partition, context.clone())?, 1);
            let end = stream::once(std::future::ready((partition, None)));
            inputs.push(driven.map(move |batch| (partition, Some(batch))).chain(end).boxed());
        }
        let (beat, held) = (Pace::of(&context), Reservation::new("results of all shares", context.memory_pool()));
        let merging = Merging { inputs, newest: Newest::new(), limit: self.limit, held, beat, unread: vec![u64::MAX; partitions], ended: false };
        let batches = stream::try_unfold(merging, |mut merging| async move { Ok(merging.next().await?.map(|batch| (batch, merging))) });
        Ok(Box::pin(RecordBatchStreamAdapter::new(SCHEMA.clone(), batches)))
    }
}
