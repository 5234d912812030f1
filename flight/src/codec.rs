//! Our plan nodes as bytes, so that a plan runs in another process. Queries travel as TraceQL text, sources by name.

use std::sync::Arc;

use datafusion::{
    common::{DataFusionError, Result, internal_datafusion_err},
    execution::TaskContext,
    physical_plan::ExecutionPlan,
};
use datafusion_proto::physical_plan::{PhysicalExtensionCodec, PhysicalProtoConverterExtension};
use serde::{Deserialize, Serialize};
use skein_engine::{
    exec::sources::{SourceName, SourceResolver, SourceSet},
    metrics::{cells::CellKind, intervals::Intervals},
    plan::{
        metrics_merge::MetricsMergeExec,
        metrics_scan::MetricsScanExec,
        newest_traces::NewestTracesExec,
        spanset_scan::{ScanLimits, SpansetScanExec},
        trace_details::TraceDetailsExec,
    },
    query::Window,
    tenant::TenantId,
    traceql::{self, MetricsExpr, MetricsFunction, Pipeline, QueryBody},
};

/// One node, without its inputs.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Node {
    SpansetScan {
        tenant: String,
        sources: Vec<SourceName>,
        query: String,
        window: Option<(u32, u32)>,
        traces: usize,
        spans_per_spanset: usize,
        partitions: usize,
    },
    NewestTraces {
        limit: usize,
    },
    TraceDetails {
        tenant: String,
        sources: Vec<SourceName>,
        query: String,
    },
    MetricsScan {
        tenant: String,
        sources: Vec<SourceName>,
        query: String,
        intervals: Intervals,
        partitions: usize,
    },
    MetricsMerge {
        kind: CellKind,
        intervals: usize,
    },
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

    fn sources(&self, tenant: &str, names: Vec<SourceName>) -> Result<Arc<SourceSet>> {
        Ok(Arc::new(SourceSet::new(TenantId::parse(tenant)?, names, self.resolver.clone())))
    }
}

fn pipeline(query: &str) -> Result<Pipeline> {
    match traceql::parse(query)?.body {
        QueryBody::Search(pipeline) => Ok(pipeline),
        QueryBody::Metrics(_) => Err(internal_datafusion_err!("a search node holds the metrics query {query}")),
    }
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
            Node::SpansetScan { tenant, sources, query, window, traces, spans_per_spanset, partitions } => {
                let window = window.map(|(start_seconds, end_seconds)| Window { start_seconds, end_seconds });
                let sources = self.sources(&tenant, sources)?;
                let limits = ScanLimits { window, traces, spans_per_spanset };
                Arc::new(SpansetScanExec::new(sources, pipeline(&query)?, limits, partitions))
            }
            Node::NewestTraces { limit } => Arc::new(NewestTracesExec::new(only_input(inputs)?, limit)),
            Node::TraceDetails { tenant, sources, query } => {
                Arc::new(TraceDetailsExec::new(only_input(inputs)?, self.sources(&tenant, sources)?, pipeline(&query)?))
            }
            Node::MetricsScan { tenant, sources, query, intervals, partitions } => {
                let (pipeline, function) = operand(&query)?;
                Arc::new(MetricsScanExec::new(self.sources(&tenant, sources)?, pipeline, function, intervals, partitions))
            }
            Node::MetricsMerge { kind, intervals } => Arc::new(MetricsMergeExec::new(only_input(inputs)?, kind, intervals)),
        })
    }

    fn try_encode(&self, node: Arc<dyn ExecutionPlan>, buf: &mut Vec<u8>, _converter: &dyn PhysicalProtoConverterExtension) -> Result<()> {
        let described = if let Some(scan) = node.downcast_ref::<SpansetScanExec>() {
            Node::SpansetScan {
                tenant: scan.sources().tenant().to_string(),
                sources: scan.sources().names().to_vec(),
                query: scan.pipeline().to_string(),
                window: scan.limits().window.map(|window| (window.start_seconds, window.end_seconds)),
                traces: scan.limits().traces,
                spans_per_spanset: scan.limits().spans_per_spanset,
                partitions: scan.partitions(),
            }
        } else if let Some(newest) = node.downcast_ref::<NewestTracesExec>() {
            Node::NewestTraces { limit: newest.limit() }
        } else if let Some(details) = node.downcast_ref::<TraceDetailsExec>() {
            Node::TraceDetails {
                tenant: details.sources().tenant().to_string(),
                sources: details.sources().names().to_vec(),
                query: details.pipeline().to_string(),
            }
        } else if let Some(scan) = node.downcast_ref::<MetricsScanExec>() {
            Node::MetricsScan {
                tenant: scan.sources().tenant().to_string(),
                sources: scan.sources().names().to_vec(),
                query: format!("{} | {}", scan.pipeline(), scan.function()),
                intervals: *scan.intervals(),
                partitions: scan.partitions(),
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
