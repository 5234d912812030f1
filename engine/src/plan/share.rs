//! `ShareExec`: the results of what one worker reads, and what it cost.

use std::{fmt, sync::Arc, time::Duration};

use arrow::{
    array::{Array, ArrayRef, AsArray, BinaryArray, StructArray},
    compute::{concat_batches, filter, is_null},
    datatypes::{DataType, Field, Fields, Schema, SchemaRef},
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
use serde::{Deserialize, Serialize};

use super::{metrics_scan::MetricsScanExec, node::unary_node, properties, spanset_scan::SpansetScanExec, trace_details::TraceDetailsExec};
use crate::{
    error::{Error, Result},
    exec::{engine::add_blocks, sources::SourceSet, stats::stats_of_plan},
    parts::{Pace, reached},
    query::ScanStats,
    sql::scan::SqlScanExec,
    stop::{self, Stop},
};

const RESULT: &str = "result";
const REPORT: &str = "report";

/// What a share read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareReport {
    /// In all.
    pub read: ScanStats,
    /// The counts of each node below the share, as DataFusion shows them, in the order in which it shows the nodes; empty with a part.
    pub nodes: Vec<String>,
    /// With a part, how far the share is ([`reached`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached: Option<u64>,
}

/// The schema of the results of shares whose plans have the schema `results`. A row has a `result`, a struct with these columns; or, the
/// last one of a share and of each part, a `report` ([`ShareReport`] as JSON).
pub fn schema(results: &SchemaRef) -> SchemaRef {
    schema_of_fields(results.fields().clone())
}

fn schema_of_fields(results: Fields) -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new(RESULT, DataType::Struct(results), true), Field::new(REPORT, DataType::Binary, true)]))
}

/// The schema of the plans of shares whose results have the schema `shares`. Errors: `Internal` when they are no shares' results.
pub fn schema_of_results(shares: &SchemaRef) -> Result<SchemaRef> {
    match shares.field_with_name(RESULT).map(Field::data_type) {
        Ok(DataType::Struct(fields)) if schema_of_fields(fields.clone()).fields() == shares.fields() => Ok(Arc::new(Schema::new(fields.clone()))),
        _ => Err(Error::internal("a plan does not have the results of shares")),
    }
}

/// `results` as a share gives them. Errors: `Internal`.
pub fn of_results(results: RecordBatch) -> Result<RecordBatch> {
    let (schema, rows) = (schema(&results.schema()), results.num_rows());
    let columns: Vec<ArrayRef> = vec![Arc::new(StructArray::from(results)), Arc::new(BinaryArray::new_null(rows))];
    Ok(RecordBatch::try_new(schema, columns)?)
}

/// The last row of a share, or of a part, whose plan has the schema `results`. Errors: `Internal`.
pub fn of_report(results: &SchemaRef, report: &ShareReport) -> Result<RecordBatch> {
    let json = serde_json::to_vec(report).map_err(|e| Error::internal("writing what a share read").with_source(e))?;
    let columns: Vec<ArrayRef> =
        vec![Arc::new(StructArray::new_null(results.fields().clone(), 1)), Arc::new(BinaryArray::from_vec(vec![json.as_slice()]))];
    Ok(RecordBatch::try_new(schema(results), columns)?)
}

/// The results in a batch of a share, and the last report that is in it. Errors: `Internal` when it is no such batch.
pub fn from_batch(batch: &RecordBatch) -> Result<(RecordBatch, Option<ShareReport>)> {
    let wrong = || Error::internal("a batch is not one of a share's results");
    schema_of_results(batch.schema_ref()).map_err(|_| wrong())?;
    let (results, reports) = (batch.column(0).as_struct(), batch.column(1).as_binary::<i32>());
    let is_result = is_null(reports)?;
    let results = filter(results, &is_result)?;
    if results.null_count() > 0 {
        return Err(wrong());
    }
    let json = reports.iter().flatten().next_back();
    let report = json.map(serde_json::from_slice).transpose().map_err(|e| Error::internal("reading what a share read").with_source(e))?;
    Ok((results.as_struct().clone().into(), report))
}

/// The sources of the search or scan at the head of `plan`.
pub fn sources_of(plan: &Arc<dyn ExecutionPlan>) -> Option<&Arc<SourceSet>> {
    if let Some(details) = plan.downcast_ref::<TraceDetailsExec>() {
        return Some(details.sources());
    }
    if let Some(scan) = plan.downcast_ref::<SpansetScanExec>() {
        return Some(scan.sources());
    }
    if let Some(scan) = plan.downcast_ref::<MetricsScanExec>() {
        return Some(scan.sources());
    }
    if let Some(scan) = plan.downcast_ref::<SqlScanExec>() {
        return Some(&scan.scan().sources);
    }
    match plan.children().as_slice() {
        [only] => sources_of(only),
        _ => None,
    }
}

/// Runs a search, or an operand of a metrics query, over one share of the sources, where its data are.
///
/// **Shape**: one partition of [`schema`]: the input's rows, in its order, then one row that says what the share read. One that tells parts has such
/// a row after each of them.
#[derive(Debug)]
pub struct ShareExec {
    input: Arc<dyn ExecutionPlan>,
    worker: Arc<str>,
    parts: Option<(Duration, Duration)>,
    sources: Arc<SourceSet>,
    properties: Arc<PlanProperties>,
}

impl ShareExec {
    /// The plan `input` with all its sources, to be run by `worker`. Errors: `Internal` for a plan of several partitions, or of no sources.
    pub fn new(input: Arc<dyn ExecutionPlan>, worker: Arc<str>) -> Result<Self> {
        if input.output_partitioning().partition_count() != 1 {
            return Err(Error::internal("a share has one partition"));
        }
        let sources = sources_of(&input).ok_or_else(|| Error::internal("a share reads sources"))?.clone();
        let properties = properties(schema(&input.schema()), 1, EmissionType::Incremental);
        Ok(Self { input, worker, parts: None, sources, properties })
    }

    /// The same, telling parts: when the first is due, and how long after it the next. None tells none.
    pub fn telling(self, parts: Option<(Duration, Duration)>) -> Self {
        Self { parts, ..self }
    }

    /// When parts are told.
    pub fn parts(&self) -> Option<(Duration, Duration)> {
        self.parts
    }

    /// Who runs it.
    pub fn worker(&self) -> &Arc<str> {
        &self.worker
    }
}

/// What `plan` over `sources` has read so far. Errors: as of opening them.
async fn report(plan: &Arc<dyn ExecutionPlan>, sources: &SourceSet) -> Result<ShareReport> {
    let read = read_by(plan, sources).await?;
    let mut nodes = Vec::new();
    counts_of(plan, &mut nodes);
    Ok(ShareReport { read, nodes, reached: None })
}

async fn read_by(plan: &Arc<dyn ExecutionPlan>, sources: &SourceSet) -> Result<ScanStats> {
    let mut read = sources.metrics.snapshot().plus(&stats_of_plan(plan));
    add_blocks(&mut read, sources.sources().await?);
    Ok(read)
}

fn counts_of(plan: &Arc<dyn ExecutionPlan>, counts: &mut Vec<String>) {
    let set = plan.metrics().map(|set| set.aggregate_by_name().sorted_for_display().timestamps_removed());
    counts.push(set.unwrap_or_default().to_string());
    plan.children().into_iter().for_each(|child| counts_of(child, counts));
}

impl DisplayAs for ShareExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShareExec: worker={}, sources={}, left_out={}", self.worker, self.sources.names().len(), self.sources.left_out().len())
    }
}

impl ExecutionPlan for ShareExec {
    unary_node!(node, input => Self::new(input, node.worker.clone())?.telling(node.parts));

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> DataFusionResult<SendableRecordBatchStream> {
        // In a worker nobody else tells the work that its client has left: dropping the stream does.
        let (stop, guard) = match Stop::current() {
            Some(stop) => (stop, None),
            None => {
                let stop = Stop::default();
                (stop.clone(), Some(stop.on_drop()))
            }
        };
        let context = match self.parts {
            Some((first_after, interval)) => Pace::start(first_after, interval).within(&context),
            None => context,
        };
        let input = stop.sync_scope(|| self.input.execute(0, context).map(stop::inherited))?;
        let (plan, sources) = (self.input.clone(), self.sources.clone());
        let results = input.then(move |batch| {
            let _guard = &guard;
            let (plan, sources) = (plan.clone(), sources.clone());
            async move {
                let batch = batch?;
                let Some(reached) = reached(&batch) else { return Ok(of_results(batch)?) };
                let report = ShareReport { read: read_by(&plan, &sources).await?, nodes: Vec::new(), reached: Some(reached) };
                let (results, report) = (of_results(batch)?, of_report(&plan.schema(), &report)?);
                Ok(concat_batches(&results.schema(), [&results, &report])?)
            }
        });
        let (plan, sources) = (self.input.clone(), self.sources.clone());
        let last = stream::once(async move { Ok(of_report(&plan.schema(), &report(&plan, &sources).await?)?) });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), results.chain(last))))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use arrow::array::UInt64Array;

    use super::*;

    /// Columns that may not be null, as results have.
    fn results(numbers: &[u64]) -> RecordBatch {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::UInt64, false)]));
        RecordBatch::try_new(schema, vec![Arc::new(UInt64Array::from(numbers.to_vec()))]).unwrap()
    }

    #[test]
    fn results_and_the_report_survive_the_batch() {
        let report =
            ShareReport { read: ScanStats { traces: 1, spans: u64::MAX, ..ScanStats::default() }, nodes: vec!["rows=3".into()], reached: None };
        for numbers in [&[][..], &[1, 2, 3]] {
            let (some, last) = (of_results(results(numbers)).unwrap(), of_report(&results(&[]).schema(), &report).unwrap());
            assert_eq!(schema_of_results(&some.schema()).unwrap(), results(&[]).schema());
            assert_eq!(from_batch(&some).unwrap(), (results(numbers), None));
            assert_eq!(from_batch(&last).unwrap(), (results(&[]), Some(report.clone())));
            let both = concat_batches(&some.schema(), [&some, &last]).unwrap();
            assert_eq!(from_batch(&both).unwrap(), (results(numbers), Some(report.clone())), "batches may be put together on the way");
            let part = of_report(&results(&[]).schema(), &ShareReport { reached: Some(7), ..ShareReport::default() }).unwrap();
            let parts = concat_batches(&some.schema(), [&part, &some, &last]).unwrap();
            assert_eq!(from_batch(&parts).unwrap(), (results(numbers), Some(report.clone())), "the last report counts");
        }
    }

    #[test]
    fn other_batches_are_errors() {
        let (some, last) = (of_results(results(&[1])).unwrap(), of_report(&results(&[]).schema(), &ShareReport::default()).unwrap());
        let neither = RecordBatch::try_new(some.schema(), vec![last.column(0).clone(), some.column(1).clone()]).unwrap();
        for wrong in [results(&[1]), neither] {
            assert!(from_batch(&wrong).is_err());
        }
        assert!(schema_of_results(&results(&[]).schema()).is_err());
    }
}
