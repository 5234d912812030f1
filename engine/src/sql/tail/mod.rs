//! Tails: the matches of a TraceQL search as they arrive.
//!
//! | file | owns |
//! |---|---|
//! | `columns` | which columns a tail has, fixed when it begins |
//! | `sent` | which spans were told, bounded |
//!
//! A tail goes by passes. Each takes the traces that got spans since the last one ([`Watch`]), whole, so that a match is found whose other spans came
//! earlier; runs the search over these alone, as a statement; and tells the rows that were not told before. So what a pass costs depends on what
//! changed. Knows nothing of Flight, and nothing of when passes are made.
//!
//! Invariant TA-1: a span is told in one pass only, once for each spanset that it is in there, unless its trace was forgotten (see `sent`) and got
//! spans again.

mod columns;
mod sent;
#[cfg(test)]
mod tests;

use std::{collections::HashSet, sync::Arc};

use arrow::{
    array::{AsArray, BooleanArray, Int64Array, StringArray},
    compute::{concat_batches, filter_record_batch},
    datatypes::{Int32Type, Schema, SchemaRef, TimestampNanosecondType},
    record_batch::RecordBatch,
};
use datafusion::execution::runtime_env::RuntimeEnv;
use futures::TryStreamExt;

use self::sent::{Sent, SpanKey};
use super::{
    arrays::only_used,
    columns::{SqlColumn, span_columns},
    limits::SqlLimits,
    session::{SessionParts, SqlStatement},
    table::SpanTable,
};
use crate::{
    error::{Error, Result},
    exec::{
        engine::{ChangedTraces, Engine, Watch},
        eval::frame::FieldLevel,
        history::{Language, QueryLog},
        memory::{Reservation, batch_bytes},
        sources::SourceSet,
    },
    query::Window,
    tenant::TenantId,
    traceql::{self, Pipeline, QueryBody},
};

/// What a tail is asked for.
#[derive(Debug, Clone)]
pub struct TailRequest {
    /// A TraceQL search.
    pub query: String,
    /// The columns; None: the fixed ones of `spans`, `resource.service.name` and `spanset`.
    pub columns: Option<Vec<String>>,
    /// Matches among the traces that overlap it come first.
    pub window: Option<Window>,
}

/// A tail between two passes.
#[derive(Debug)]
pub struct Tail {
    watch: Watch,
    query: String,
    pipeline: Pipeline,
    /// Those that are told, then those that are only needed to know spans again.
    columns: Vec<SqlColumn>,
    schema: SchemaRef,
    keys: KeyColumns,
    sent: Sent,
    /// What is remembered of spans that were told.
    memory: Reservation,
    runtime: Arc<RuntimeEnv>,
    partitions: usize,
    log: Arc<QueryLog>,
}

/// What one pass has found.
#[derive(Debug, Default)]
pub struct TailPass {
    /// The rows, at least one, if there are any. They hold their memory.
    pub rows: Option<RecordBatch>,
    /// Spans that were looked at; none in a pass that found no trace to look at.
    pub spans: u64,
    /// There was more to look at when it began.
    pub is_behind: bool,
}

impl Tail {
    /// Begins; see [`SqlService::tail`](super::SqlService::tail).
    pub(crate) async fn open(engine: &Engine, tenant: &TenantId, request: TailRequest, partitions: usize) -> Result<Self> {
        let running = engine.query_log().begin(tenant, Language::Traceql, &request.query);
        let tail = Self::opened(engine, tenant, request, partitions).await;
        match &tail {
            Ok(_) => running.forget(),
            Err(error) => running.end(Some(error)),
        }
        tail
    }

    async fn opened(engine: &Engine, tenant: &TenantId, request: TailRequest, partitions: usize) -> Result<Self> {
        let TailRequest { query, columns, window } = request;
        let QueryBody::Search(pipeline) = traceql::parse(&query)?.body else {
            return Err(Error::invalid("a tail takes a search: ask for the values of a metrics query again and again, with traceql_metrics()"));
        };
        let known = match &columns {
            // What types attributes have is found in the data.
            Some(names) if names.iter().any(|name| name.contains('.')) => span_columns(&engine.sources_apart(tenant).await?),
            _ => span_columns(&[]),
        };
        let mut columns = columns::named(columns.as_deref(), known)?;
        let schema = Arc::new(Schema::new(columns.iter().map(SqlColumn::field).collect::<Vec<_>>()));
        let keys = KeyColumns::among(&mut columns)?;
        let memory = engine.hold("what a tail has told");
        let watch = engine.watch(tenant, window).await?;
        let (runtime, log) = (engine.runtime(), engine.query_log().clone());
        Ok(Self { watch, query, pipeline, columns, schema, keys, sent: Sent::default(), memory, runtime, partitions, log })
    }

    /// The columns of its rows.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// Whose spans it tells.
    pub fn tenant(&self) -> &TenantId {
        self.watch.tenant()
    }

    /// Whether there may be something to tell: if not, no pass is needed. Cost: a look at numbers.
    pub fn is_behind(&mut self) -> bool {
        self.watch.is_behind()
    }

    /// Looks at traces that got spans, some tens of thousands of new spans at most, within `limits`. Errors: `Exhausted`; `Unavailable` when the
    /// tail has fallen so far behind that spans would be missed; else as the sources'.
    pub async fn pass(mut self, limits: SqlLimits) -> Result<(Self, TailPass)> {
        let Some(ChangedTraces { sources, ids, window, has_more }) = self.watch.changed().await? else { return Ok((self, TailPass::default())) };
        let statement = self.statement(sources, window)?.within(limits);
        let found = statement.run(None).await?;
        let (mut rows, mut told, held) = (Vec::new(), Vec::new(), self.memory.another());
        let mut batches = found.batches;
        while let Some(batch) = batches.try_next().await? {
            let fresh = self.fresh(&batch, &mut told)?;
            held.grow(batch_bytes(&fresh, true))?;
            rows.push(fresh);
        }
        drop(batches);
        self.remember(&ids, told)?;
        let spans = found.cost.stats().await?.spans;
        let rows = concat_batches(&self.schema, &rows)?;
        let rows = if rows.num_rows() > 0 { Some(held.attach(compact(&rows)?)?) } else { None };
        Ok((self, TailPass { rows, spans, is_behind: has_more }))
    }

    /// The search over `sources`, as a statement.
    fn statement(&self, sources: SourceSet, window: Option<Window>) -> Result<SqlStatement> {
        let sources = Arc::new(sources);
        let table = SpanTable::new(sources.clone(), FieldLevel::Span, self.columns.clone()).found_by(self.pipeline.clone()).within(window);
        let (runtime, partitions, log) = (self.runtime.clone(), self.partitions, self.log.clone());
        let parts = SessionParts { sources, runtime, partitions, distribution: None, log };
        SqlStatement::of_search(self.watch.tenant(), parts, &self.query, table)
    }

    /// The rows of `batch` whose spans no earlier pass has told, in the columns of the tail. Adds what they are to `told`.
    fn fresh(&self, batch: &RecordBatch, told: &mut Vec<SpanKey>) -> Result<RecordBatch> {
        let keys = self.keys.of(batch)?;
        let is_new: BooleanArray = keys.iter().map(|key| Some(!self.sent.has(key))).collect();
        told.extend(keys.into_iter().zip(is_new.values()).filter(|(_, is_new)| *is_new).map(|(key, _)| key));
        let wanted = batch.project(&(0..self.schema.fields().len()).collect::<Vec<_>>())?;
        Ok(filter_record_batch(&wanted, &is_new)?.with_schema(self.schema.clone())?)
    }

    fn remember(&mut self, changed: &HashSet<u128>, told: Vec<SpanKey>) -> Result<()> {
        self.sent.note(changed, told);
        self.memory.settle(self.sent.bytes())
    }
}

/// The same rows with dictionaries of what is in them: those of live spans have the values of all that is live, and are sent with each batch.
fn compact(batch: &RecordBatch) -> Result<RecordBatch> {
    let columns = batch.columns().iter().map(only_used).collect::<Result<_>>()?;
    Ok(RecordBatch::try_new(batch.schema(), columns)?)
}

/// Where the columns are that spans are known by.
#[derive(Debug)]
struct KeyColumns {
    trace_id: usize,
    span_id: usize,
    start_time: usize,
    duration: usize,
}

impl KeyColumns {
    /// Finds them among `columns`, adding those that are not there. Errors: `Internal`.
    fn among(columns: &mut Vec<SqlColumn>) -> Result<Self> {
        let fixed = span_columns(&[]);
        let mut place = |name: &str| {
            if let Some(at) = columns.iter().position(|column| column.name == name) {
                return Ok(at);
            }
            let missing = fixed.iter().find(|column| column.name == name).ok_or_else(|| Error::internal(format!("there is no column {name}")))?;
            columns.push(missing.clone());
            Ok::<_, Error>(columns.len() - 1)
        };
        Ok(Self { trace_id: place("trace_id")?, span_id: place("span_id")?, start_time: place("start_time")?, duration: place("duration_nanos")? })
    }

    /// What the spans of `batch` are known by. Errors: `Internal` where columns have other types than they always have.
    fn of(&self, batch: &RecordBatch) -> Result<Vec<SpanKey>> {
        let trace_ids = batch.column(self.trace_id).as_dictionary_opt::<Int32Type>().ok_or_else(other_type)?;
        let traces: &StringArray = trace_ids.values().as_string_opt().ok_or_else(other_type)?;
        let traces =
            traces.iter().map(|id| u128::from_str_radix(id.unwrap_or_default(), 16)).collect::<Result<Vec<u128>, _>>().map_err(|_| other_type())?;
        let spans: &StringArray = batch.column(self.span_id).as_string_opt().ok_or_else(other_type)?;
        let starts = batch.column(self.start_time).as_primitive_opt::<TimestampNanosecondType>().ok_or_else(other_type)?;
        let durations: &Int64Array = batch.column(self.duration).as_primitive_opt().ok_or_else(other_type)?;
        let key = |row: usize| {
            let span_id = u64::from_str_radix(spans.value(row), 16).map_err(|_| other_type())?;
            Ok(SpanKey::new(traces[trace_ids.keys().value(row) as usize], span_id, starts.value(row), durations.value(row)))
        };
        (0..batch.num_rows()).map(key).collect()
    }
}

fn other_type() -> Error {
    Error::internal("a column that spans are known by has another type")
}
