//! `SqlScanExec`: the leaf of a SQL query over spans, events or links.

use std::{
    fmt,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use arrow::{
    array::{Int64Array, UInt32Array},
    buffer::BooleanBuffer,
    datatypes::SchemaRef,
    record_batch::{RecordBatch, RecordBatchOptions},
};
use datafusion::{
    common::Result as DataFusionResult,
    execution::TaskContext,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, SendableRecordBatchStream, execution_plan::EmissionType,
        stream::RecordBatchStreamAdapter,
    },
};
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

use super::{
    calls::{CALLS, Calls},
    columns::{Selection, SqlColumn},
    groups::Groups,
    pushdown::ScanBounds,
};
use crate::{
    clock::Stopwatch,
    error::Result,
    exec::{
        eval::{ColumnNeeds, Frame, frame::FieldLevel},
        memory::{Pool, Reservation},
        source::SourceRef,
        sources::{ScanUnit, SourceSet, active_rows, scan_units},
        spansets::{SpansetPipeline, TraceMatch, filter_rows},
        stats::{Pruned, ScanMetrics},
    },
    optimize::filter_terms,
    plan::{
        node::{counted_node, leaf_node},
        properties,
    },
    query::Window,
    spans::schema::Column,
    stop,
    traceql::{FieldRef, Intrinsic, Pipeline},
};

/// Which spans are rows, of those that a scan of spans looks at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SpanRows {
    /// With a query those of its spansets, as often as they are in one; else all.
    #[default]
    Matches,
    /// All of the traces in which the query finds something; else all.
    WholeTraces,
    /// Of these the ones that a span of another service called.
    Calls,
    /// The first of each trace, for the whole trace.
    Traces,
    /// The first of each service in each trace, for all of them.
    Services,
}

/// What a scan reads.
#[derive(Debug, Clone)]
pub struct SqlScan {
    /// Where.
    pub sources: Arc<SourceSet>,
    /// What a row is.
    pub level: FieldLevel,
    /// The columns of its batches.
    pub columns: Vec<SqlColumn>,
    /// Which spans are rows, where rows are spans.
    pub rows: SpanRows,
    /// The query that finds spansets; None: all spans.
    pub pipeline: Option<Pipeline>,
    /// The window that traces must overlap; None: all.
    pub window: Option<Window>,
    /// What need not be read.
    pub bounds: ScanBounds,
    /// Most rows that anybody wants.
    pub limit: Option<usize>,
}

/// Runs a [`SqlScan`].
///
/// **Shape**: batches of the columns, at most a row group each and at most `batch_size` rows; row groups newest first, dealt out to the
/// partitions in turn. Rows in block order: traces whole, spans in pre-order.
#[derive(Debug)]
pub struct SqlScanExec {
    scan: Arc<SqlScan>,
    schema: SchemaRef,
    partitions: usize,
    metrics: Arc<ScanMetrics>,
    properties: Arc<PlanProperties>,
}

impl SqlScanExec {
    /// A scan by `partitions` partitions.
    pub fn new(scan: SqlScan, partitions: usize) -> Self {
        let fields: Vec<_> = scan.columns.iter().map(SqlColumn::field).collect();
        let schema: SchemaRef = Arc::new(arrow::datatypes::Schema::new(fields));
        let properties = properties(schema.clone(), partitions, EmissionType::Incremental);
        Self { scan: Arc::new(scan), schema, partitions, metrics: Arc::default(), properties }
    }

    /// What it reads.
    pub fn scan(&self) -> &SqlScan {
        &self.scan
    }

    /// Partitions.
    pub fn partitions(&self) -> usize {
        self.partitions
    }
}

impl SqlScan {
    async fn units(&self, partition: usize, partitions: usize, metrics: &ScanMetrics) -> Result<Vec<ScanUnit>> {
        let sources = self.sources.sources().await?;
        let window = match (self.window, self.bounds.window()) {
            (Some(one), Some(other)) => {
                Some(Window { start_seconds: one.start_seconds.max(other.start_seconds), end_seconds: one.end_seconds.min(other.end_seconds) })
            }
            (one, other) => one.or(other),
        };
        let (units, outside) = scan_units(sources, window);
        if partition == 0 {
            metrics.pruned(Pruned::Window, outside);
        }
        Ok(units.into_iter().skip(partition).step_by(partitions).collect())
    }

    async fn run(&self, unit: ScanUnit, schema: &SchemaRef, metrics: &ScanMetrics, pool: &Pool) -> Result<Option<RecordBatch>> {
        stop::check()?;
        let source = self.sources.sources().await?[unit.source].clone();
        let wanted = self.wanted_rows(&source, unit.group);
        if wanted.as_ref().is_some_and(Vec::is_empty) {
            metrics.pruned(Pruned::Columns, 1);
            return Ok(None);
        }
        let mut frame = Frame::new(source, unit.group, None, pool);
        let excluded = self.sources.excluded_rows(unit.source, frame.source());
        let mut active = active_rows(&mut frame, unit.group, self.window, excluded, metrics).await?;
        if let Some(wanted) = wanted {
            active = &active & &bits_of(&wanted, frame.len());
        }
        let mut kept = active.clone();
        if let Some(filter) = &self.bounds.filter {
            kept = filter_rows(&filter_terms(filter), &mut frame, unit.group, &active, metrics).await?;
        }
        let batch = match kept.count_set_bits() {
            0 => None,
            _ => {
                let selected = self.selected(&mut frame, unit.group, &active, kept, metrics).await?;
                self.batch(&mut frame, unit.group, selected, schema, metrics, pool).await?
            }
        };
        match frame.pruned() {
            Some(why) if batch.is_none() => metrics.pruned(why, 1),
            _ => metrics.row_group(frame.len() as u64),
        }
        Ok(batch)
    }

    /// The rows of the wanted traces in row group `group`; None: all.
    fn wanted_rows(&self, source: &SourceRef, group: usize) -> Option<Vec<Range<usize>>> {
        let rows = source.row_groups()[group];
        let own = rows.first_row as usize..(rows.first_row + rows.rows) as usize;
        let of_trace = |id: &crate::spans::TraceId| source.traces().rows_of(u128::from_be_bytes(id.0)).filter(|rows| own.contains(&rows.start));
        let mut wanted: Vec<Range<usize>> = self.bounds.traces.as_ref()?.iter().filter_map(of_trace).collect();
        wanted.iter_mut().for_each(|rows| *rows = rows.start - own.start..rows.end - own.start);
        wanted.sort_unstable_by_key(|rows| rows.start);
        wanted.dedup();
        Some(wanted)
    }

    /// The rows, of those in `kept`. `active` has all spans of the traces that are looked at.
    async fn selected(
        &self,
        frame: &mut Frame,
        group: usize,
        active: &BooleanBuffer,
        mut kept: BooleanBuffer,
        metrics: &ScanMetrics,
    ) -> Result<Selection> {
        if let Some(pipeline) = &self.pipeline {
            let found = SpansetPipeline::from(pipeline.clone()).run(frame, group, active, usize::MAX, metrics).await?;
            metrics.traces(found.len() as u64);
            if self.rows == SpanRows::Matches {
                return Ok(spanset_rows(&found));
            }
            let traces: Vec<Range<usize>> = found.iter().map(|trace| trace.rows.start as usize..trace.rows.end as usize).collect();
            kept = &kept & &bits_of(&traces, frame.len());
        }
        match self.level {
            FieldLevel::Span => self.span_rows(frame, group, &kept, metrics).await,
            level => entry_rows(frame, level, &kept, metrics).await,
        }
    }

    async fn span_rows(&self, frame: &mut Frame, group: usize, kept: &BooleanBuffer, metrics: &ScanMetrics) -> Result<Selection> {
        let load = |columns: &[Column]| ColumnNeeds { columns: columns.to_vec(), events: Vec::new() };
        let groups = match self.rows {
            SpanRows::Matches | SpanRows::WholeTraces => return Ok(Selection::of(rows_of(kept))),
            SpanRows::Calls => {
                frame.load(&load(&CALLS), metrics).await?;
                let calls = Calls::of(frame)?;
                return Ok(Selection::of(Some(chosen(kept, |row| calls.is_call(row)))));
            }
            SpanRows::Traces => Groups::of_traces(frame, group)?,
            SpanRows::Services => {
                frame.load(&load(&[Column::Service]), metrics).await?;
                Groups::of_services(frame, group)?
            }
        };
        let firsts = chosen(kept, |row| groups.is_first(row));
        Ok(Selection { groups: Some(groups), ..Selection::of(Some(firsts)) })
    }

    async fn batch(
        &self,
        frame: &mut Frame,
        group: usize,
        selected: Selection,
        schema: &SchemaRef,
        metrics: &ScanMetrics,
        pool: &Pool,
    ) -> Result<Option<RecordBatch>> {
        let rows = selected.len(frame.len());
        if rows == 0 {
            return Ok(None);
        }
        let mut needs = ColumnNeeds::default();
        self.columns.iter().for_each(|column| column.add_needs(&mut needs, frame.source()));
        frame.load(&needs, metrics).await?;
        let arrays = self.columns.iter().map(|column| column.values(frame, group, &selected)).collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(schema.clone(), arrays, &options)?;
        Ok(Some(Reservation::new("rows of a SQL scan", pool).attach(batch)?))
    }
}

fn bits_of(ranges: &[Range<usize>], length: usize) -> BooleanBuffer {
    let mut bits = arrow::array::BooleanBufferBuilder::new(length);
    for range in ranges {
        bits.append_n(range.start - bits.len(), false);
        bits.append_n(range.len(), true);
    }
    bits.append_n(length - bits.len(), false);
    bits.finish()
}

/// The rows that are kept; None when they are all.
fn rows_of(kept: &BooleanBuffer) -> Option<UInt32Array> {
    (kept.count_set_bits() < kept.len()).then(|| chosen(kept, |_| true))
}

fn chosen(kept: &BooleanBuffer, choose: impl Fn(usize) -> bool) -> UInt32Array {
    UInt32Array::from_iter_values(kept.set_indices().filter(|&row| choose(row)).map(|row| row as u32))
}

/// The rows of the spansets of all traces, with the number of the spanset in its trace. A span in several spansets comes several times.
fn spanset_rows(found: &[TraceMatch]) -> Selection {
    let (mut spans, mut numbers) = (Vec::new(), Vec::new());
    for (number, spanset) in found.iter().flat_map(|trace| trace.spansets.iter().enumerate()) {
        spans.extend_from_slice(&spanset.rows);
        numbers.resize(spans.len(), number as i64);
    }
    Selection { spansets: Some(Int64Array::from(numbers)), ..Selection::of(Some(spans.into())) }
}

/// All events or links of the spans that are kept.
async fn entry_rows(frame: &mut Frame, level: FieldLevel, kept: &BooleanBuffer, metrics: &ScanMetrics) -> Result<Selection> {
    let mut needs = ColumnNeeds::default();
    match level {
        FieldLevel::Event => needs.add_field(&FieldRef::Intrinsic(Intrinsic::EventTimeSinceStart), frame.source()),
        _ => needs.add(Column::Links),
    }
    frame.load(&needs, metrics).await?;
    let bindings = frame.bindings(kept, level == FieldLevel::Event, level == FieldLevel::Link)?;
    let chosen = if level == FieldLevel::Event { &bindings.events } else { &bindings.links };
    let found: Vec<(u32, u32)> = bindings.spans.values().iter().zip(chosen).filter_map(|(&span, entry)| Some((span, entry?))).collect();
    let (spans, entries): (Vec<u32>, Vec<u32>) = found.into_iter().unzip();
    Ok(Selection { level, entries: Some(entries.into()), ..Selection::of(Some(spans.into())) })
}

impl DisplayAs for SqlScanExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scan = &self.scan;
        let names: Vec<&str> = scan.columns.iter().map(|column| column.name.as_str()).collect();
        let rows = match (scan.level, scan.rows) {
            (FieldLevel::Span, SpanRows::Matches) => "Spans".to_owned(),
            (FieldLevel::Span, rows) => format!("{rows:?}"),
            (level, _) => format!("{level:?}s"),
        };
        write!(f, "SqlScanExec: rows={rows}, columns=[{}], sources=[{}]", names.join(", "), scan.sources)?;
        if let Some(pipeline) = &scan.pipeline {
            write!(f, ", query=[{pipeline}]")?;
        }
        if let Some(filter) = &scan.bounds.filter {
            write!(f, ", filter=[{filter}]")?;
        }
        if let Some(traces) = &scan.bounds.traces {
            write!(f, ", traces={}", traces.len())?;
        }
        if let Some(window) = scan.bounds.window().or(scan.window) {
            write!(f, ", window={}..{}", window.start_seconds, window.end_seconds)?;
        }
        match scan.limit {
            Some(limit) => write!(f, ", limit={limit}"),
            None => Ok(()),
        }
    }
}

impl ExecutionPlan for SqlScanExec {
    leaf_node!();
    counted_node!();

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> DataFusionResult<SendableRecordBatchStream> {
        let (scan, schema, metrics) = (self.scan.clone(), self.schema.clone(), self.metrics.clone());
        let pool = context.memory_pool().clone();
        let batch_size = context.session_config().batch_size().max(1);
        let partitions = self.partitions;
        let units = {
            let (scan, metrics) = (scan.clone(), metrics.clone());
            stream::once(async move { scan.units(partition, partitions, &metrics).await })
                .map_ok(|units| stream::iter(units.into_iter().map(Ok::<_, crate::error::Error>)))
                .try_flatten()
        };
        let left = Arc::new(AtomicUsize::new(scan.limit.unwrap_or(usize::MAX)));
        let wanted = left.clone();
        let batches = units
            .try_take_while(move |_| futures::future::ready(Ok(wanted.load(Relaxed) > 0)))
            .and_then(move |unit| {
                let (scan, schema, metrics, pool, left) = (scan.clone(), schema.clone(), metrics.clone(), pool.clone(), left.clone());
                async move {
                    let watch = Stopwatch::start();
                    let batch = scan.run(unit, &schema, &metrics, &pool).await?;
                    let rows = batch.as_ref().map_or(0, RecordBatch::num_rows);
                    left.store(left.load(Relaxed).saturating_sub(rows), Relaxed);
                    metrics.busy(watch.elapsed());
                    metrics.output(rows);
                    Ok(batch)
                }
            })
            .map_ok(move |batch| stream::iter(slices(batch, batch_size).map(Ok::<_, crate::error::Error>)))
            .try_flatten()
            .map(|batch: Result<RecordBatch>| Ok(batch?));
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), batches)))
    }
}

/// `batch` in parts of at most `size` rows; nothing is copied.
pub(super) fn slices(batch: Option<RecordBatch>, size: usize) -> impl Iterator<Item = RecordBatch> {
    batch.into_iter().flat_map(move |batch| {
        (0..batch.num_rows()).step_by(size).map(move |from| batch.slice(from, size.min(batch.num_rows() - from))).collect::<Vec<_>>()
    })
}
