//! `SpansetScanExec`: the leaf of a search. Filters and spanset pipeline over the row groups of all sources.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use arrow::datatypes::SchemaRef;
use datafusion::{
    common::Result,
    execution::TaskContext,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, SendableRecordBatchStream, execution_plan::EmissionType,
        stream::RecordBatchStreamAdapter,
    },
};
use futures::{TryStreamExt, stream};

use super::{
    matches::{self, MatchedSpanset, MatchedTrace, key_value},
    node::{counted_node, leaf_node},
    properties,
};
use crate::{
    clock::Stopwatch,
    exec::{
        eval::{ColumnNeeds, Frame},
        memory::{Pool, Reservation},
        source::SourceRef,
        sources::{ScanUnit, SourceSet, active_rows, scan_units},
        spansets::{Spanset, SpansetPipeline, TraceMatch},
        stats::{Pruned, ScanMetrics},
    },
    query::Window,
    spans::{TraceId, schema::Column},
    stop,
};

/// The start of the oldest trace that still counts. The node that keeps the newest traces raises it; scans below it end early. Starts at
/// zero, so a scan alone reads everything; across processes it is not shared, which costs time and changes no answer.
#[derive(Debug, Default)]
pub struct NewestBound(AtomicU64);

impl NewestBound {
    /// Says that nothing that starts before `start_unix_nano` counts.
    pub fn raise(&self, start_unix_nano: u64) {
        self.0.fetch_max(start_unix_nano, Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What is wanted of the traces of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanLimits {
    /// Which traces; None takes all.
    pub window: Option<Window>,
    /// Most traces of a row group; rows lie newest first, so these are its newest.
    pub traces: usize,
    /// Most spans kept of a spanset.
    pub spans_per_spanset: usize,
}

impl ScanLimits {
    /// All spans of all traces.
    pub const NONE: Self = Self { window: None, traces: usize::MAX, spans_per_spanset: usize::MAX };
}

/// What is wanted, in words; without a word on what has no limit.
impl fmt::Display for ScanLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.window {
            Some(Window { start_seconds, end_seconds }) => write!(f, "window={start_seconds} to {end_seconds} s")?,
            None => f.write_str("window=all")?,
        }
        for (name, limit) in [("traces_per_row_group", self.traces), ("spans_per_spanset", self.spans_per_spanset)] {
            if limit < usize::MAX {
                write!(f, ", {name}={limit}")?;
            }
        }
        Ok(())
    }
}

/// Runs a spanset pipeline over row groups, newest first.
///
/// **Shape**: batches of [`matches::schema`], one for each row group, empty where nothing matches, newest row group first; traces whole. Row groups are
/// dealt out to the partitions in turn. **Memory**: the columns of a row group and its matches, for each partition.
#[derive(Debug)]
pub struct SpansetScanExec {
    sources: Arc<SourceSet>,
    pipeline: SpansetPipeline,
    limits: ScanLimits,
    partitions: usize,
    bound: Arc<NewestBound>,
    metrics: Arc<ScanMetrics>,
    properties: Arc<PlanProperties>,
}

impl SpansetScanExec {
    /// A scan of `sources` by `partitions` partitions. A plain pipeline is evaluated as it is written.
    pub fn new(sources: Arc<SourceSet>, pipeline: impl Into<SpansetPipeline>, limits: ScanLimits, partitions: usize) -> Self {
        let properties = properties(matches::schema(), partitions, EmissionType::Incremental);
        Self { sources, pipeline: pipeline.into(), limits, partitions, bound: Arc::default(), metrics: Arc::default(), properties }
    }

    /// The sources.
    pub fn sources(&self) -> &Arc<SourceSet> {
        &self.sources
    }

    /// The pipeline and how its filters are evaluated.
    pub fn pipeline(&self) -> &SpansetPipeline {
        &self.pipeline
    }

    /// What is wanted.
    pub fn limits(&self) -> ScanLimits {
        self.limits
    }

    /// Partitions.
    pub fn partitions(&self) -> usize {
        self.partitions
    }

    /// The newest start of each row group in the window, descending. Batches come in this order, partitions taking turns.
    /// Errors: as of opening the sources.
    pub async fn newest_starts(&self) -> crate::error::Result<Vec<u64>> {
        let (units, _) = scan_units(self.sources.sources().await?, self.limits.window);
        Ok(units.into_iter().map(|unit| unit.newest).collect())
    }

    /// What ends the scan early.
    pub fn bound(&self) -> &Arc<NewestBound> {
        &self.bound
    }
}

/// Matches described between two reservations.
const TRACES_AT_ONCE: usize = 256;

/// What the stream of one partition needs.
struct Scan {
    sources: Arc<SourceSet>,
    pipeline: SpansetPipeline,
    limits: ScanLimits,
    bound: Arc<NewestBound>,
    metrics: Arc<ScanMetrics>,
    pool: Pool,
}

impl Scan {
    async fn units(&self, partition: usize, partitions: usize) -> crate::error::Result<Vec<ScanUnit>> {
        let (units, outside) = scan_units(self.sources.sources().await?, self.limits.window);
        if partition == 0 {
            self.metrics.pruned(Pruned::Window, outside);
        }
        Ok(units.into_iter().skip(partition).step_by(partitions).collect())
    }

    /// The matches of a row group, whose memory `held` is.
    async fn run(&self, unit: ScanUnit, held: &Reservation) -> crate::error::Result<Vec<MatchedTrace>> {
        stop::check()?;
        let metrics = &*self.metrics;
        if unit.newest < self.bound.get() {
            metrics.pruned(Pruned::Limit, 1);
            return Ok(Vec::new());
        }
        let source: SourceRef = self.sources.sources().await?[unit.source].clone();
        let mut frame = Frame::new(source, unit.group, None, &self.pool);
        let excluded = self.sources.excluded_rows(unit.source, frame.source());
        let active = active_rows(&mut frame, unit.group, self.limits.window, excluded, metrics).await?;
        if active.count_set_bits() == 0 {
            frame.rule_out(Pruned::Joined);
        }
        let found = self.pipeline.run(&mut frame, unit.group, &active, self.limits.traces, metrics).await?;
        match frame.pruned() {
            Some(why) if found.is_empty() => metrics.pruned(why, 1),
            _ => metrics.row_group(frame.len() as u64),
        }
        if found.is_empty() {
            return Ok(Vec::new());
        }
        metrics.traces(found.len() as u64);
        let needs = ColumnNeeds { columns: vec![Column::TraceStart], events: Vec::new() };
        frame.load(&needs, metrics).await?;
        let bound = self.bound.get();
        let mut traces = Vec::with_capacity(found.len());
        for found in found.chunks(TRACES_AT_ONCE) {
            let described = found.iter().map(|found| self.describe(&frame, unit, found)).collect::<crate::error::Result<Vec<_>>>()?;
            let described = described.into_iter().filter(|trace| trace.start_unix_nano >= bound);
            let before = traces.len();
            traces.extend(described);
            held.grow(traces[before..].iter().map(MatchedTrace::memory_bytes).sum())?;
        }
        Ok(traces)
    }

    fn describe(&self, frame: &Frame, unit: ScanUnit, found: &TraceMatch) -> crate::error::Result<MatchedTrace> {
        let first = found.rows.start as usize;
        let spanset = |spanset: &Spanset| MatchedSpanset {
            matched: spanset.rows.len() as u32,
            span_rows: spanset.rows.iter().copied().take(self.limits.spans_per_spanset).collect(),
            attributes: spanset.attributes.iter().map(|(key, value)| key_value(key, value)).collect(),
        };
        Ok(MatchedTrace {
            start_unix_nano: frame.ints(Column::TraceStart)?.value(first) as u64,
            id: TraceId(found.id.to_be_bytes()),
            source: unit.source as u32,
            group: unit.group as u32,
            first_row: found.rows.start,
            rows: found.rows.len() as u32,
            spansets: found.spansets.iter().map(spanset).collect(),
        })
    }
}

impl DisplayAs for SpansetScanExec {
    fn fmt_as(&self, form: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpansetScanExec: query=[{}], sources=[{}], partitions={}", self.pipeline, self.sources, self.partitions)?;
        match form {
            DisplayFormatType::Verbose => write!(f, ", {}, filters=[{}]", self.limits, self.pipeline.describe_filters()),
            _ => Ok(()),
        }
    }
}

impl ExecutionPlan for SpansetScanExec {
    leaf_node!();
    counted_node!();

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let scan = Arc::new(Scan {
            sources: self.sources.clone(),
            pipeline: self.pipeline.clone(),
            limits: self.limits,
            bound: self.bound.clone(),
            metrics: self.metrics.clone(),
            pool: context.memory_pool().clone(),
        });
        let partitions = self.partitions;
        let units = {
            let scan = scan.clone();
            stream::once(async move { scan.units(partition, partitions).await })
                .map_ok(|units| stream::iter(units.into_iter().map(Ok::<_, crate::error::Error>)))
                .try_flatten()
        };
        let batches = units
            .and_then(move |unit| {
                let scan = scan.clone();
                async move {
                    let watch = Stopwatch::start();
                    let held = Reservation::new("matches of a row group", &scan.pool);
                    let batch = matches::to_batch(&scan.run(unit, &held).await?)?;
                    let batch = held.attach(batch)?;
                    scan.metrics.busy(watch.elapsed());
                    scan.metrics.output(batch.num_rows());
                    Ok(batch)
                }
            })
            .map_err(Into::into);
        let schema: SchemaRef = matches::schema();
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }
}
