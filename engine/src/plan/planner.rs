//! From our logical nodes to our physical ones.

use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use datafusion::{
    catalog::Session,
    common::{Result, internal_datafusion_err},
    execution::{SessionState, SessionStateBuilder},
    logical_expr::{LogicalPlan, UserDefinedLogicalNode, physical_planning_context::PhysicalPlanningContext},
    physical_plan::ExecutionPlan,
    physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner},
};
use futures::FutureExt;

use super::{
    logical::{MetricsMerge, MetricsObservation, MetricsScan, NewestTraces, SpansetScan, SpansetStages, TraceDetails, Traces},
    metrics_merge::MetricsMergeExec,
    metrics_scan::MetricsScanExec,
    newest_traces::NewestTracesExec,
    spanset_scan::SpansetScanExec,
    trace_details::TraceDetailsExec,
};

/// Plans every node of [`logical`](super::logical), to stand in the query planner of a session. Plans that have not been through
/// [`optimize::rules`](crate::optimize::rules) are refused as `Internal` errors.
#[derive(Debug, Clone, Copy, Default)]
pub struct NodePlanner {
    /// Partitions of a scan. None: as many as the session's target.
    pub partitions: Option<usize>,
}

#[async_trait]
impl ExtensionPlanner for NodePlanner {
    async fn plan_extension(
        &self,
        _: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _: &[&LogicalPlan],
        inputs: &[Arc<dyn ExecutionPlan>],
        session: &dyn Session,
        _: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let partitions = self.partitions.unwrap_or_else(|| session.config().target_partitions());
        physical_node(node, inputs, partitions)
    }
}

fn physical_node(node: &dyn UserDefinedLogicalNode, inputs: &[Arc<dyn ExecutionPlan>], partitions: usize) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let input = || match inputs {
        [input] => Ok(input.clone()),
        inputs => Err(internal_datafusion_err!("{} has one input, not {}", node.name(), inputs.len())),
    };
    let any = node.as_any();
    Ok(Some(if let Some(scan) = any.downcast_ref::<SpansetScan>() {
        Arc::new(SpansetScanExec::new(scan.sources.0.clone(), scan.pipeline.0.clone(), scan.limits.0, partitions))
    } else if let Some(newest) = any.downcast_ref::<NewestTraces>() {
        Arc::new(NewestTracesExec::new(input()?, newest.limit).with_first_row_group_alone(newest.first_row_group_alone))
    } else if let Some(details) = any.downcast_ref::<TraceDetails>() {
        Arc::new(TraceDetailsExec::new(input()?, details.sources.0.clone(), details.pipeline.0.clone()))
    } else if let Some(scan) = any.downcast_ref::<MetricsScan>() {
        let (pipeline, function) = (scan.pipeline.0.clone(), scan.function.0.clone());
        Arc::new(MetricsScanExec::new(scan.sources.0.clone(), pipeline, function, scan.intervals.0, scan.detail.0.clone(), partitions))
    } else if let Some(merge) = any.downcast_ref::<MetricsMerge>() {
        Arc::new(MetricsMergeExec::new(input()?, merge.kind.0, merge.intervals))
    } else if any.is::<Traces>() || any.is::<SpansetStages>() || any.is::<MetricsObservation>() {
        return Err(internal_datafusion_err!("{} was not moved into a scan: the session lacks our optimiser rules", node.name()));
    } else {
        return Ok(None);
    }))
}

/// The session in which plans that are all ours are made. It has no optimiser rules of DataFusion: none of them finds anything to do in
/// such a plan, and physical ones might put nodes between ours.
static SESSION: LazyLock<SessionState> = LazyLock::new(|| {
    SessionStateBuilder::new().with_analyzer_rules(Vec::new()).with_optimizer_rules(Vec::new()).with_physical_optimizer_rules(Vec::new()).build()
});

/// The physical form of an optimised plan of our nodes, its scans divided into `partitions`. Cost: does not grow with the sources.
/// Errors: `Internal` for a plan that is not optimised.
pub fn physical_plan(plan: &LogicalPlan, partitions: usize) -> crate::error::Result<Arc<dyn ExecutionPlan>> {
    let planner = DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(NodePlanner { partitions: Some(partitions) })]);
    // The planner is asynchronous for the sake of tables that have to be asked; there are none here.
    let planned = planner.create_physical_plan(plan, &*SESSION).now_or_never();
    Ok(planned.ok_or_else(|| internal_datafusion_err!("planning waits for something"))??)
}

#[cfg(test)]
mod tests;
