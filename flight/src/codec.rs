//! Our plan nodes as bytes, so that a plan runs in another process. Queries travel as TraceQL text, sources by name.

use std::{sync::Arc, time::Duration};

use datafusion::{
    common::{DataFusionError, Result, internal_datafusion_err},
    execution::TaskContext,
    physical_plan::ExecutionPlan,
};
use datafusion_proto::physical_plan::{PhysicalExtensionCodec, PhysicalProtoConverterExtension};
use serde::{Deserialize, Serialize};
use skein_engine::{
    exec::{
        eval::frame::FieldLevel,
        prune::Evidence,
        sources::{SourceName, SourceResolver, SourceSet},
        spansets::{FilterTerm, FilterTerms, SpansetPipeline},
    },
    metrics::{cells::CellKind, detail::Detail, intervals::Intervals},
    plan::{
        metrics_merge::MetricsMergeExec,
        metrics_scan::MetricsScanExec,
        newest_results::NewestResultsExec,
        newest_traces::NewestTracesExec,
        share::{ShareExec, sources_of},
        share_results::ShareResultsExec,
        spanset_scan::{ScanLimits, SpansetScanExec},
        trace_details::TraceDetailsExec,
    },
    query::{MetricsRequest, Window},
    spans::TraceId,
    sql::{
        columns::SqlColumn,
        grouping::GroupByCodesExec,
        metrics_scan::{MetricsColumn, SqlMetrics, SqlMetricsExec},
        pushdown::ScanBounds,
        scan::{SpanRows, SqlScan, SqlScanExec},
    },
    tenant::TenantId,
    traceql::{self, FieldExpr, MetricsExpr, MetricsFunction, Pipeline, QueryBody, SpansetExpr, Stage},
};

/// One node, without its inputs.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Node {
    SpansetScan {
        sources: Sources,
        query: String,
        window: Option<(u32, u32)>,
        traces: usize,
        spans_per_spanset: usize,
        partitions: usize,
        /// What the optimiser decided; none: the query as it is written.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        planned: Option<Planned>,
    },
    NewestTraces {
        limit: usize,
        #[serde(default)]
        first_row_group_alone: bool,
    },
    TraceDetails {
        /// None: those of the scan below, which are then opened and counted once for both.
        sources: Option<Sources>,
        query: String,
    },
    Share {
        worker: Arc<str>,
        /// When parts are told, as [`ShareExec::parts`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parts: Option<(Duration, Duration)>,
    },
    ShareResults {},
    NewestResults {
        limit: usize,
    },
    MetricsScan {
        sources: Sources,
        query: String,
        intervals: Intervals,
        detail: Detail,
        partitions: usize,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        planned: Option<Planned>,
    },
    MetricsMerge {
        kind: CellKind,
        intervals: usize,
    },
    SqlScan {
        sources: Sources,
        level: FieldLevel,
        columns: Vec<SqlColumn>,
        rows: SpanRows,
        query: Option<String>,
        window: Option<(u32, u32)>,
        times: (Option<i64>, Option<i64>),
        traces: Option<Vec<TraceId>>,
        filter: Option<String>,
        limit: Option<usize>,
        partitions: usize,
    },
    GroupByCodes {},
    SqlMetrics {
        sources: Sources,
        query: String,
        intervals: Intervals,
        columns: Vec<MetricsColumn>,
        partitions: usize,
    },
}

/// How a pipeline is evaluated.
#[derive(Debug, Serialize, Deserialize)]
struct Planned {
    /// The terms of each filter, in the order in which they are tried.
    filters: Vec<Vec<Term>>,
    /// Whether traces are not needed.
    #[serde(default)]
    by_rows: bool,
}

/// A term of a filter, as TraceQL.
#[derive(Debug, Serialize, Deserialize)]
struct Term {
    expr: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prunes_by: Option<Evidence>,
}

impl From<&SpansetPipeline> for Planned {
    fn from(pipeline: &SpansetPipeline) -> Self {
        let term = |term: &FilterTerm| Term { expr: term.expr.to_string(), prunes_by: term.prunes_by };
        let filters = pipeline.filters().iter().map(|filter| filter.terms.iter().map(term).collect());
        Self { filters: filters.collect(), by_rows: pipeline.by_rows() }
    }
}

/// A source set by name.
#[derive(Debug, Serialize, Deserialize)]
struct Sources {
    tenant: String,
    names: Vec<SourceName>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    left_out: Vec<TraceId>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    joined_only: bool,
}

impl From<&SourceSet> for Sources {
    fn from(set: &SourceSet) -> Self {
        Self { tenant: set.tenant().to_string(), names: set.names().to_vec(), left_out: set.left_out().to_vec(), joined_only: set.is_joined_only() }
    }
}

/// Writes and reads every node of [`skein_engine::plan`].
///
/// **Errors**: an `Internal` DataFusion error for a node it does not know and for bytes that are no node; the engine's `Invalid` for a
/// query or tenant that does not parse.
#[derive(Debug)]
pub struct PlanCodec {
    resolver: Arc<dyn SourceResolver>,
}

impl PlanCodec {
    /// A codec whose decoded plans open their sources with `resolver`.
    pub fn new(resolver: Arc<dyn SourceResolver>) -> Self {
        Self { resolver }
    }

    fn sources(&self, sources: Sources) -> Result<Arc<SourceSet>> {
        let set = SourceSet::new(TenantId::parse(&sources.tenant)?, sources.names, self.resolver.clone());
        Ok(Arc::new(set.leaving_out(sources.left_out.into()).joined_only(sources.joined_only)))
    }
}

fn pipeline(query: &str) -> Result<Pipeline> {
    match traceql::parse(query)?.body {
        QueryBody::Search(pipeline) => Ok(pipeline),
        QueryBody::Metrics(_) => Err(internal_datafusion_err!("a search node holds the metrics query {query}")),
    }
}

/// `pipeline` as it was planned.
fn planned(pipeline: Pipeline, planned: Option<Planned>) -> Result<SpansetPipeline> {
    let Some(Planned { filters, by_rows }) = planned else { return Ok(pipeline.into()) };
    let term = |Term { expr, prunes_by }| Ok(FilterTerm { expr: filter(&expr)?, prunes_by });
    let terms = |terms: Vec<Term>| Ok(FilterTerms { terms: terms.into_iter().map(term).collect::<Result<_>>()? });
    Ok(SpansetPipeline::planned(pipeline, filters.into_iter().map(terms).collect::<Result<_>>()?, by_rows)?)
}

fn filter(expr: &str) -> Result<FieldExpr> {
    match pipeline(&format!("{{ {expr} }}"))?.stages.as_slice() {
        [Stage::Spansets(SpansetExpr::Filter(filter))] => Ok(filter.clone()),
        _ => Err(internal_datafusion_err!("{expr} is no term of a filter")),
    }
}

fn window_of((start_seconds, end_seconds): (u32, u32)) -> Window {
    Window { start_seconds, end_seconds }
}

fn bounds_of(window: Window) -> (u32, u32) {
    (window.start_seconds, window.end_seconds)
}

/// The one operand that a metrics node computes.
fn operand(query: &str) -> Result<(Pipeline, MetricsFunction)> {
    match traceql::parse(query)?.body {
        QueryBody::Metrics(MetricsExpr::Pipeline { pipeline, function }) => Ok((pipeline, function)),
        _ => Err(internal_datafusion_err!("a metrics node holds the query {query}")),
    }
}

fn json_error(error: serde_json::Error) -> DataFusionError {
    internal_datafusion_err!("a plan node: {error}")
}

fn only_input(inputs: &[Arc<dyn ExecutionPlan>]) -> Result<Arc<dyn ExecutionPlan>> {
    match inputs {
        [input] => Ok(input.clone()),
        inputs => Err(internal_datafusion_err!("a plan node needs one input and has {}", inputs.len())),
    }
}

impl PhysicalExtensionCodec for PlanCodec {
    fn try_decode(
        &self,
        buf: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        _ctx: &TaskContext,
        _converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(match serde_json::from_slice(buf).map_err(json_error)? {
            Node::SpansetScan { sources, query, window, traces, spans_per_spanset, partitions, planned: how } => {
                let limits = ScanLimits { window: window.map(window_of), traces, spans_per_spanset };
                let pipeline = planned(pipeline(&query)?, how)?;
                Arc::new(SpansetScanExec::new(self.sources(sources)?, pipeline, limits, partitions))
            }
            Node::NewestTraces { limit, first_row_group_alone } => {
                Arc::new(NewestTracesExec::new(only_input(inputs)?, limit).with_first_row_group_alone(first_row_group_alone))
            }
            Node::TraceDetails { sources, query } => {
                let input = only_input(inputs)?;
                let sources = match sources {
                    Some(sources) => self.sources(sources)?,
                    None => sources_of(&input).ok_or_else(|| internal_datafusion_err!("trace details have no sources"))?.clone(),
                };
                Arc::new(TraceDetailsExec::new(input, sources, pipeline(&query)?))
            }
            Node::Share { worker, parts } => Arc::new(ShareExec::new(only_input(inputs)?, worker)?.telling(parts)),
            Node::ShareResults {} => Arc::new(ShareResultsExec::new(only_input(inputs)?)?),
            Node::NewestResults { limit } => Arc::new(NewestResultsExec::new(only_input(inputs)?, limit)),
            Node::MetricsScan { sources, query, intervals, detail, partitions, planned: how } => {
                let (pipeline, function) = operand(&query)?;
                Arc::new(MetricsScanExec::new(self.sources(sources)?, planned(pipeline, how)?, function, intervals, detail, partitions))
            }
            Node::SqlScan { sources, level, columns, rows, query, window, times, traces, filter: kept, limit, partitions } => {
                let bounds = ScanBounds { times, traces, filter: kept.as_deref().map(filter).transpose()? };
                let pipeline = query.as_deref().map(pipeline).transpose()?;
                let sources = self.sources(sources)?;
                let scan = SqlScan { sources, level, columns, rows, pipeline, window: window.map(window_of), bounds, limit };
                Arc::new(SqlScanExec::new(scan, partitions))
            }
            Node::GroupByCodes {} => Arc::new(GroupByCodesExec::new(only_input(inputs)?)),
            Node::SqlMetrics { sources, query, intervals, columns, partitions } => {
                let request = MetricsRequest::new(query, intervals);
                Arc::new(SqlMetricsExec::new(SqlMetrics { sources: self.sources(sources)?, request, columns, partitions }))
            }
            Node::MetricsMerge { kind, intervals } => Arc::new(MetricsMergeExec::new(only_input(inputs)?, kind, intervals)),
        })
    }

    fn try_encode(&self, node: Arc<dyn ExecutionPlan>, buf: &mut Vec<u8>, _converter: &dyn PhysicalProtoConverterExtension) -> Result<()> {
        let described = if let Some(scan) = node.downcast_ref::<SpansetScanExec>() {
            Node::SpansetScan {
                sources: Sources::from(&**scan.sources()),
                query: scan.pipeline().to_string(),
                window: scan.limits().window.map(bounds_of),
                traces: scan.limits().traces,
                spans_per_spanset: scan.limits().spans_per_spanset,
                partitions: scan.partitions(),
                planned: Some(scan.pipeline().into()),
            }
        } else if let Some(newest) = node.downcast_ref::<NewestTracesExec>() {
            Node::NewestTraces { limit: newest.limit(), first_row_group_alone: newest.first_row_group_alone() }
        } else if let Some(details) = node.downcast_ref::<TraceDetailsExec>() {
            let below = node.children().first().and_then(|input| sources_of(input)).is_some_and(|below| Arc::ptr_eq(below, details.sources()));
            let sources = (!below).then(|| Sources::from(&**details.sources()));
            Node::TraceDetails { sources, query: details.pipeline().to_string() }
        } else if let Some(share) = node.downcast_ref::<ShareExec>() {
            Node::Share { worker: share.worker().clone(), parts: share.parts() }
        } else if node.is::<ShareResultsExec>() {
            Node::ShareResults {}
        } else if let Some(newest) = node.downcast_ref::<NewestResultsExec>() {
            Node::NewestResults { limit: newest.limit() }
        } else if let Some(scan) = node.downcast_ref::<MetricsScanExec>() {
            Node::MetricsScan {
                sources: Sources::from(&**scan.sources()),
                query: format!("{} | {}", scan.pipeline(), scan.function()),
                intervals: *scan.intervals(),
                detail: scan.detail().clone(),
                partitions: scan.partitions(),
                planned: Some(scan.pipeline().into()),
            }
        } else if let Some(node) = node.downcast_ref::<SqlScanExec>() {
            let scan = node.scan();
            Node::SqlScan {
                sources: Sources::from(&*scan.sources),
                level: scan.level,
                columns: scan.columns.clone(),
                rows: scan.rows,
                query: scan.pipeline.as_ref().map(Pipeline::to_string),
                window: scan.window.map(bounds_of),
                times: scan.bounds.times,
                traces: scan.bounds.traces.clone(),
                filter: scan.bounds.filter.as_ref().map(FieldExpr::to_string),
                limit: scan.limit,
                partitions: node.partitions(),
            }
        } else if node.is::<GroupByCodesExec>() {
            Node::GroupByCodes {}
        } else if let Some(node) = node.downcast_ref::<SqlMetricsExec>() {
            let asked = node.asked();
            Node::SqlMetrics {
                sources: Sources::from(&*asked.sources),
                query: asked.request.query.clone(),
                intervals: asked.request.intervals,
                columns: asked.columns.clone(),
                partitions: asked.partitions,
            }
        } else if let Some(merge) = node.downcast_ref::<MetricsMergeExec>() {
            Node::MetricsMerge { kind: merge.kind(), intervals: merge.intervals() }
        } else {
            return Err(internal_datafusion_err!("{} is no node of this engine", node.name()));
        };
        serde_json::to_writer(buf, &described).map_err(json_error)
    }
}

#[cfg(test)]
mod tests;
