//! `TraceDetailsExec`: what a search shows of the traces that won.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, LazyLock},
};

use arrow::{
    array::{ArrayRef, BinaryArray, FixedSizeBinaryBuilder, Int64Array, StringArray, UInt64Array},
    datatypes::{DataType, Field, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use datafusion::{
    common::Result as DataFusionResult,
    execution::TaskContext,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, SendableRecordBatchStream, execution_plan::EmissionType,
        stream::RecordBatchStreamAdapter,
    },
};
use futures::StreamExt;
use prost::Message;
use skein_proto::{otlp::common::v1::KeyValue, tempo};

use super::{
    matches::{self, MatchedTrace, key_value},
    node::{counted_node, unary_node},
    properties,
};
use crate::{
    clock::Stopwatch,
    error::{Error, Result},
    exec::{
        eval::{ColumnNeeds, Frame},
        memory::{Pool, Reservation},
        shown::{ShownField, shown_fields},
        sources::SourceSet,
        stats::ScanMetrics,
    },
    parts::{reached, reaching},
    spans::{SpanId, schema::Column},
    traceql::{FieldRef, Intrinsic, Pipeline},
};

/// A result is there as a message, and written, of which the message takes more.
const FORMS: usize = 3;

/// Shown as root service where no root span is known.
const NO_ROOT: &str = "<root span not yet received>";

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("trace_id", DataType::FixedSizeBinary(16), false),
        Field::new("root_service_name", DataType::Utf8, false),
        Field::new("root_name", DataType::Utf8, false),
        Field::new("trace_start_unix_nano", DataType::UInt64, false),
        Field::new("trace_duration_nanos", DataType::Int64, false),
        Field::new("metadata", DataType::Binary, false),
    ]))
});

/// Fetches root names, times, service counts, and the spans and attributes of spansets, only for the traces of its input.
///
/// **Shape**: a batch for each of the input, with a row for each of its traces, in input order; `metadata` is a
/// `tempopb.TraceSearchMetadata` message; parts stay parts ([`reached`]). **Cost**: for each batch, one request for each row group with a winner. **Memory**: the results of a
/// batch.
#[derive(Debug)]
pub struct TraceDetailsExec {
    input: Arc<dyn ExecutionPlan>,
    sources: Arc<SourceSet>,
    pipeline: Pipeline,
    metrics: Arc<ScanMetrics>,
    properties: Arc<PlanProperties>,
}

impl TraceDetailsExec {
    /// Details of the traces of `input`, which come from `sources`, for a search with `pipeline`.
    pub fn new(input: Arc<dyn ExecutionPlan>, sources: Arc<SourceSet>, pipeline: Pipeline) -> Self {
        Self { input, sources, pipeline, metrics: Arc::default(), properties: properties(SCHEMA.clone(), 1, EmissionType::Final) }
    }

    /// The sources.
    pub fn sources(&self) -> &Arc<SourceSet> {
        &self.sources
    }

    /// The pipeline.
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }
}

/// The schema of what is shown: a row for each trace.
pub fn schema() -> SchemaRef {
    SCHEMA.clone()
}

/// The fields that a search with `pipeline` shows, in words.
pub fn describe_shown(pipeline: &Pipeline) -> String {
    shown_fields(pipeline).iter().map(|shown| shown.field.to_string()).collect::<Vec<_>>().join(", ")
}

/// The rows of a result batch as search results. Errors: `Internal` when it is not one.
pub fn search_results(batch: &RecordBatch) -> Result<Vec<tempo::TraceSearchMetadata>> {
    let column = batch.column_by_name("metadata").ok_or_else(|| Error::internal("a batch has no search results"))?;
    let messages: &BinaryArray = arrow::array::AsArray::as_binary_opt(column).ok_or_else(|| Error::internal("search results are not messages"))?;
    let decode = |message| tempo::TraceSearchMetadata::decode(message).map_err(|e| Error::internal("reading search results").with_source(e));
    messages.iter().flatten().map(decode).collect()
}

async fn details(traces: Vec<MatchedTrace>, sources: &SourceSet, pipeline: &Pipeline, metrics: &ScanMetrics, pool: &Pool) -> Result<RecordBatch> {
    let held = Reservation::new("details of traces", pool);
    held.grow(traces.iter().map(MatchedTrace::memory_bytes).sum())?;
    let shown = shown_fields(pipeline);
    let mut by_group: BTreeMap<(u32, u32), Vec<usize>> = BTreeMap::new();
    for (at, trace) in traces.iter().enumerate() {
        by_group.entry((trace.source, trace.group)).or_default().push(at);
    }
    let mut rows: Vec<Option<TraceRow>> = (0..traces.len()).map(|_| None).collect();
    for ((source, group), mut members) in by_group {
        members.sort_by_key(|&at| traces[at].first_row);
        let ranges = members.iter().map(|&at| traces[at].first_row as usize..(traces[at].first_row + traces[at].rows) as usize).collect();
        let source = sources.sources().await?[source as usize].clone();
        let mut frame = Frame::new(source, group as usize, Some(ranges), pool);
        let mut needs = ColumnNeeds::default();
        for column in [
            Column::TraceDuration,
            Column::RootService,
            Column::RootName,
            Column::SpanId,
            Column::StartOffset,
            Column::Duration,
            Column::Service,
            Column::StatusCode,
        ] {
            needs.add(column);
        }
        shown.iter().for_each(|shown| needs.add_field(&shown.field, frame.source()));
        frame.load(&needs, metrics).await?;
        let bases: Vec<u32> = members
            .iter()
            .scan(0, |next, &at| {
                *next += traces[at].rows;
                Some(*next - traces[at].rows)
            })
            .collect();
        let placed = || members.iter().zip(&bases).map(|(&at, &base)| (&traces[at], base));
        let mut spans = all_spans(&frame, placed().flat_map(|(trace, base)| span_rows(trace, base)).collect(), &shown)?.into_iter();
        for (&at, &base) in members.iter().zip(&bases) {
            rows[at] = Some(describe(&frame, base, &traces[at], &mut spans)?);
        }
        let described = members.iter().filter_map(|&at| rows[at].as_ref());
        held.grow(described.map(|row| row.metadata.encoded_len() * FORMS).sum())?;
    }
    held.attach(to_batch(traces.iter().zip(rows.into_iter().flatten()))?)
}

struct TraceRow {
    duration_nanos: i64,
    metadata: tempo::TraceSearchMetadata,
}

/// The rows of the spans shown of a trace whose first row stands at `base` in the frame, spanset by spanset, and the trace's start.
fn span_rows(trace: &MatchedTrace, base: u32) -> impl Iterator<Item = (u32, u64)> + '_ {
    trace.spansets.iter().flat_map(move |spanset| spanset.span_rows.iter().map(move |row| (row - trace.first_row + base, trace.start_unix_nano)))
}

/// Describes a trace whose first row stands at `base` in the frame; its shown spans are the next of `spans`.
fn describe(frame: &Frame, base: u32, trace: &MatchedTrace, spans: &mut impl Iterator<Item = tempo::Span>) -> Result<TraceRow> {
    let first = base as usize;
    let duration_nanos = frame.ints(Column::TraceDuration)?.value(first);
    let root_name = frame.texts(Column::RootName)?;
    let has_root = root_name.get(first).is_some();
    let root_service = frame.texts(Column::RootService)?.get(first).unwrap_or_default().to_owned();
    let mut span_sets = Vec::with_capacity(trace.spansets.len());
    for spanset in &trace.spansets {
        span_sets.push(tempo::SpanSet {
            spans: spans.take(spanset.span_rows.len()).collect(),
            matched: spanset.matched,
            attributes: spanset.attributes.clone(),
        });
    }
    let metadata = tempo::TraceSearchMetadata {
        trace_id: trace.id.to_short_hex(),
        root_service_name: if has_root { root_service } else { NO_ROOT.to_owned() },
        root_trace_name: root_name.get(first).unwrap_or_default().to_owned(),
        start_time_unix_nano: trace.start_unix_nano,
        duration_ms: u32::try_from(duration_nanos / 1_000_000).unwrap_or(u32::MAX),
        // The API repeats the first one here.
        span_set: None,
        span_sets,
        service_stats: service_stats(frame, first..first + trace.rows as usize)?,
    };
    Ok(TraceRow { duration_nanos, metadata })
}

/// The spans in `rows`, each with the start of its trace, with what is shown of them: each field is evaluated once for all of them.
fn all_spans(frame: &Frame, rows: Vec<(u32, u64)>, shown: &[ShownField]) -> Result<Vec<tempo::Span>> {
    let (ids, durations) = (frame.ints(Column::SpanId)?, frame.ints(Column::Duration)?);
    let offsets = frame.ints(Column::StartOffset)?;
    let span = |&(row, trace_start): &(u32, u64)| {
        let row = row as usize;
        tempo::Span {
            span_id: SpanId::from_i64(ids.value(row)).to_string(),
            start_time_unix_nano: trace_start.wrapping_add(offsets.value(row) as u64),
            // A span that ends before it starts has none.
            duration_nanos: u64::try_from(durations.value(row)).unwrap_or(0),
            ..Default::default()
        }
    };
    let mut spans: Vec<tempo::Span> = rows.iter().map(span).collect();
    let rows: Vec<u32> = rows.into_iter().map(|(row, _)| row).collect();
    for shown in shown {
        for (span, value) in spans.iter_mut().zip(shown.values(frame, &rows)?) {
            match value {
                Some(value) if shown.field == FieldRef::Intrinsic(Intrinsic::Name) => span.name = value.to_string(),
                Some(value) => add_attribute(&mut span.attributes, key_value(shown.field.attribute_key(), &value)),
                None => {}
            }
        }
    }
    Ok(spans)
}

/// Adds an attribute unless it is there: two fields of the query may be one, such as `.a` and `span.a`.
fn add_attribute(attributes: &mut Vec<KeyValue>, attribute: KeyValue) {
    // By bytes, so that NaN equals itself.
    let same = |other: &KeyValue| other.key == attribute.key && other.encode_to_vec() == attribute.encode_to_vec();
    if !attributes.iter().any(same) {
        attributes.push(attribute);
    }
}

fn service_stats(frame: &Frame, rows: std::ops::Range<usize>) -> Result<BTreeMap<String, tempo::ServiceStats>> {
    const ERROR: i32 = 2;
    let (services, status) = (frame.texts(Column::Service)?, frame.small_ints(Column::StatusCode)?);
    let mut stats: BTreeMap<String, tempo::ServiceStats> = BTreeMap::new();
    for row in rows {
        let service = services.get(row).unwrap_or_default();
        let entry = match stats.get_mut(service) {
            Some(entry) => entry,
            None => stats.entry(service.to_owned()).or_default(),
        };
        entry.span_count += 1;
        entry.error_count += u32::from(status.value(row) == ERROR);
    }
    Ok(stats)
}

fn to_batch<'a>(rows: impl Iterator<Item = (&'a MatchedTrace, TraceRow)>) -> Result<RecordBatch> {
    let mut ids = FixedSizeBinaryBuilder::new(16);
    let (mut services, mut names, mut starts, mut durations, mut messages) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (trace, row) in rows {
        ids.append_value(trace.id.0)?;
        messages.push(row.metadata.encode_to_vec());
        services.push(row.metadata.root_service_name);
        names.push(row.metadata.root_trace_name);
        starts.push(trace.start_unix_nano);
        durations.push(row.duration_nanos);
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(ids.finish()),
        Arc::new(StringArray::from(services)),
        Arc::new(StringArray::from(names)),
        Arc::new(UInt64Array::from(starts)),
        Arc::new(Int64Array::from(durations)),
        Arc::new(BinaryArray::from_iter_values(messages)),
    ];
    Ok(RecordBatch::try_new(SCHEMA.clone(), columns)?)
}

impl DisplayAs for TraceDetailsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceDetailsExec: shown=[{}]", describe_shown(&self.pipeline))
    }
}

impl ExecutionPlan for TraceDetailsExec {
    unary_node!(node, input => Self::new(input, node.sources.clone(), node.pipeline.clone()));
    counted_node!();

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> DataFusionResult<SendableRecordBatchStream> {
        let pool = context.memory_pool().clone();
        let (sources, pipeline, metrics) = (self.sources.clone(), Arc::new(self.pipeline.clone()), self.metrics.clone());
        let batches = self.input.execute(0, context)?.then(move |batch| {
            let (sources, pipeline, metrics, pool) = (sources.clone(), pipeline.clone(), metrics.clone(), pool.clone());
            async move {
                let batch = batch?;
                let watch = Stopwatch::start();
                let described = details(matches::from_batch(&batch)?, &sources, &pipeline, &metrics, &pool).await?;
                metrics.busy(watch.elapsed());
                metrics.output(described.num_rows());
                match reached(&batch) {
                    Some(reached) => Ok(reaching(described, reached)?),
                    None => Ok(described),
                }
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(SCHEMA.clone(), batches)))
    }
}
