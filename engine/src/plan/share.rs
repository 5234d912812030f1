//! `ShareExec`: the results of what one worker reads, and what it cost.

use std::{
    fmt,
    sync::{Arc, LazyLock},
};

use arrow::{
    array::{Array, ArrayRef, AsArray, BinaryArray, FixedSizeBinaryBuilder, UInt64Array},
    datatypes::{DataType, Field, Schema, SchemaRef, UInt64Type},
    record_batch::RecordBatch,
};
use datafusion::{
    common::Result as DataFusionResult,
    execution::TaskContext,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties, SendableRecordBatchStream,
        execution_plan::EmissionType, stream::RecordBatchStreamAdapter,
    },
};
use futures::{StreamExt, stream};

use super::{node::unary_node, properties, spanset_scan::SpansetScanExec, trace_details::TraceDetailsExec};
use crate::{
    error::{Error, Result},
    exec::{engine::add_blocks, memory::Reservation, sources::SourceSet, stats::stats_of_plan},
    query::ScanStats,
    spans::TraceId,
    stop::{self, Stop},
};

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("trace_start_unix_nano", DataType::UInt64, false),
        Field::new("trace_id", DataType::FixedSizeBinary(16), false),
        Field::new("metadata", DataType::Binary, true),
        Field::new("scanned", DataType::Binary, true),
    ]))
});

/// The schema of the results of shares. A row is a result, with `metadata` (a `tempopb.TraceSearchMetadata` message), or the last one of a
/// share or of all, with `scanned` ([`ScanStats`] as JSON).
pub fn schema() -> SchemaRef {
    SCHEMA.clone()
}

/// One result: what decides its rank, and the message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ShareResult {
    pub start_unix_nano: u64,
    pub id: TraceId,
    pub metadata: Vec<u8>,
}

impl ShareResult {
    /// Bytes in memory.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.metadata.len()
    }
}

/// Writes results, and in a last row what was read. Errors: `Internal`.
pub fn to_batch(results: &[ShareResult], scanned: Option<ScanStats>) -> Result<RecordBatch> {
    let scanned =
        scanned.map(|stats| serde_json::to_vec(&stats)).transpose().map_err(|e| Error::internal("writing scan statistics").with_source(e))?;
    let last = usize::from(scanned.is_some());
    let mut ids = FixedSizeBinaryBuilder::with_capacity(results.len() + last, 16);
    for result in results {
        ids.append_value(result.id.0)?;
    }
    if last > 0 {
        ids.append_value(TraceId::default().0)?;
    }
    let starts = results.iter().map(|result| result.start_unix_nano).chain(std::iter::repeat_n(0, last));
    let metadata = results.iter().map(|result| Some(result.metadata.as_slice())).chain(std::iter::repeat_n(None, last));
    let scanned = std::iter::repeat_n(None, results.len()).chain(scanned.as_deref().map(Some));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::from_iter_values(starts)),
        Arc::new(ids.finish()),
        Arc::new(BinaryArray::from_iter(metadata)),
        Arc::new(BinaryArray::from_iter(scanned)),
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}

/// Reads results and what was read. Errors: `Internal` when it is no such batch.
pub fn from_batch(batch: &RecordBatch) -> Result<(Vec<ShareResult>, ScanStats)> {
    if batch.schema_ref().fields() != SCHEMA.fields() {
        return Err(Error::internal("a batch is not one of a share's results"));
    }
    let scanned = batch.column(3).as_binary::<i32>();
    let mut stats = ScanStats::default();
    for json in scanned.iter().flatten() {
        let more: ScanStats = serde_json::from_slice(json).map_err(|e| Error::internal("reading scan statistics").with_source(e))?;
        stats = stats.plus(&more);
    }
    let rows = (0..batch.num_rows()).filter(|&row| scanned.is_null(row));
    Ok((rows.map(|row| result_at(batch, row)).collect::<Result<_>>()?, stats))
}

fn result_at(batch: &RecordBatch, row: usize) -> Result<ShareResult> {
    let column = |name| batch.column_by_name(name).ok_or_else(|| Error::internal(format!("results lack column {name}")));
    let wrong = || Error::internal("a column of results has another type");
    let starts = column("trace_start_unix_nano")?.as_primitive_opt::<UInt64Type>().ok_or_else(wrong)?;
    let ids = column("trace_id")?.as_fixed_size_binary_opt().ok_or_else(wrong)?;
    let metadata: &BinaryArray = column("metadata")?.as_binary_opt().ok_or_else(wrong)?;
    let id = TraceId(ids.value(row).try_into().map_err(|_| wrong())?);
    Ok(ShareResult { start_unix_nano: starts.value(row), id, metadata: metadata.value(row).to_vec() })
}

/// The sources of the search or scan at the head of `plan`.
pub fn sources_of(plan: &Arc<dyn ExecutionPlan>) -> Option<&Arc<SourceSet>> {
    if let Some(details) = plan.downcast_ref::<TraceDetailsExec>() {
        return Some(details.sources());
    }
    if let Some(scan) = plan.downcast_ref::<SpansetScanExec>() {
        return Some(scan.sources());
    }
    match plan.children().as_slice() {
        [only] => sources_of(only),
        _ => None,
    }
}

/// Runs the search of one share, where its data are.
///
/// **Shape**: one partition of [`schema`]: the results in input order, then one row that says what the share read.
#[derive(Debug)]
pub struct ShareExec {
    input: Arc<dyn ExecutionPlan>,
    worker: Arc<str>,
    sources: Arc<SourceSet>,
    properties: Arc<PlanProperties>,
}

impl ShareExec {
    /// The search `input`, whose head is a [`TraceDetailsExec`], to be run by `worker`. Errors: `Internal` for another input.
    pub fn new(input: Arc<dyn ExecutionPlan>, worker: Arc<str>) -> Result<Self> {
        if input.output_partitioning().partition_count() != 1 {
            return Err(Error::internal("a share has one partition"));
        }
        let sources = sources_of(&input).ok_or_else(|| Error::internal("a share is a search"))?.clone();
        Ok(Self { input, worker, sources, properties: properties(schema(), 1, EmissionType::Incremental) })
    }

    /// Who runs it.
    pub fn worker(&self) -> &Arc<str> {
        &self.worker
    }
}

/// What the search `plan` over `sources` has read so far. Errors: as of opening them.
pub async fn scanned(plan: &Arc<dyn ExecutionPlan>, sources: &SourceSet) -> Result<ScanStats> {
    let mut stats = sources.metrics.snapshot().plus(&stats_of_plan(plan));
    add_blocks(&mut stats, sources.sources().await?);
    Ok(stats)
}

impl DisplayAs for ShareExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShareExec: worker={}, sources={}, left_out={}", self.worker, self.sources.names().len(), self.sources.left_out().len())
    }
}

impl ExecutionPlan for ShareExec {
    unary_node!(node, input => Self::new(input, node.worker.clone())?);

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> DataFusionResult<SendableRecordBatchStream> {
        // In a worker nobody else tells the work that its client has left: dropping the stream does.
        let (stop, guard) = match Stop::current() {
            Some(stop) => (stop, None),
            None => {
                let stop = Stop::default();
                (stop.clone(), Some(stop.on_drop()))
            }
        };
        let pool = context.memory_pool().clone();
        let input = stop.sync_scope(|| self.input.execute(0, context).map(stop::inherited))?;
        let results = input.map(move |batch| {
            let (batch, _guard) = (batch?, &guard);
            let results: Vec<ShareResult> = (0..batch.num_rows()).map(|row| result_at(&batch, row)).collect::<Result<_>>()?;
            Ok(Reservation::new("results of a share", &pool).attach(to_batch(&results, None)?)?)
        });
        let (plan, sources) = (self.input.clone(), self.sources.clone());
        let last = stream::once(async move { Ok(to_batch(&[], Some(scanned(&plan, &sources).await?))?) });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema(), results.chain(last))))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn results_and_statistics_survive_the_batch() {
        let result = |n: u128| ShareResult { start_unix_nano: u64::MAX, id: TraceId(n.to_be_bytes()), metadata: vec![n as u8; 3] };
        let stats = ScanStats { traces: 1, spans: u64::MAX, block_bytes: 3, ..ScanStats::default() };
        let results = vec![result(1), result(2)];
        assert_eq!(from_batch(&to_batch(&results, Some(stats)).unwrap()).unwrap(), (results.clone(), stats));
        assert_eq!(from_batch(&to_batch(&results, None).unwrap()).unwrap(), (results, ScanStats::default()));
        assert_eq!(from_batch(&to_batch(&[], None).unwrap()).unwrap(), (Vec::new(), ScanStats::default()));
    }
}
