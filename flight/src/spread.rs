//! Which task of a stage reads which sources, and on which worker it runs: handlers for datafusion-distributed.
//!
//! A search or a metrics query is divided by the coordinator, which makes a [`ShareExec`] for each worker. A [`SpansetScanExec`] under other
//! nodes, and a [`SqlScanExec`], is divided here, when datafusion-distributed has decided how many tasks its stage has. Either way a scan names the workers of its
//! live spans, and its tasks run there; what runs elsewhere fetches its spans (see [`resolver`](crate::resolver)), so no row depends on where.

use std::sync::Arc;

use datafusion::{
    common::{
        Result,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    execution::TaskContext,
    physical_plan::ExecutionPlan,
    prelude::SessionConfig,
};
use datafusion_distributed::{
    DesiredTaskCountEvent, DesiredTaskCountEventResponse, DistributedLeafExec, RouteTasksEvent, RouteTasksEventResponse, ScaleUpLeafNodeEvent,
    ScaleUpLeafNodeEventResponse, get_distributed_worker_resolver,
};
use skein_engine::{
    exec::sources::{SourceName, SourceSet},
    plan::{
        share::{ShareExec, sources_of},
        spanset_scan::SpansetScanExec,
    },
    sql::scan::{SqlScan, SqlScanExec},
};
use url::Url;

use crate::peers::{worker_name, worker_url};

/// One task for each worker that a scan may use; one task for a scan of sources that only this process has.
pub fn desired_task_count(event: DesiredTaskCountEvent) -> Option<Result<DesiredTaskCountEventResponse>> {
    let sources = scanned(event.plan)?;
    if !is_divisible(sources) {
        return Some(Ok(DesiredTaskCountEventResponse::maximum(1)));
    }
    Some(workers(event.session_config).map(|workers| DesiredTaskCountEventResponse::desired(workers.len().max(1))))
}

/// Divides a scan: live spans to their workers, blocks evenly.
pub fn scale_up_leaf(event: ScaleUpLeafNodeEvent) -> Option<Result<ScaleUpLeafNodeEventResponse>> {
    let sources = scanned(event.plan)?;
    (event.task_count > 1 && is_divisible(sources)).then(|| {
        let parts = divide(sources, &workers(event.session_config)?, event.task_count);
        let variants = parts.into_iter().filter_map(|names| {
            let part = SourceSet::new(sources.tenant().clone(), names, sources.resolver().clone());
            scan_of(event.plan, Arc::new(part.leaving_out(sources.left_out().clone())))
        });
        let leaf = DistributedLeafExec::try_new(event.plan.clone(), variants)?;
        Ok(ScaleUpLeafNodeEventResponse::new(Arc::new(leaf)))
    })
}

/// The sources of a scan that can be divided.
fn scanned(plan: &Arc<dyn ExecutionPlan>) -> Option<&Arc<SourceSet>> {
    let of_spansets = plan.downcast_ref::<SpansetScanExec>().map(SpansetScanExec::sources);
    of_spansets.or_else(|| plan.downcast_ref::<SqlScanExec>().map(|scan| &scan.scan().sources))
}

/// The same scan of other sources.
fn scan_of(plan: &Arc<dyn ExecutionPlan>, sources: Arc<SourceSet>) -> Option<Arc<dyn ExecutionPlan>> {
    if let Some(scan) = plan.downcast_ref::<SpansetScanExec>() {
        return Some(Arc::new(SpansetScanExec::new(sources, scan.pipeline().clone(), scan.limits(), scan.partitions())));
    }
    let scan = plan.downcast_ref::<SqlScanExec>()?;
    Some(Arc::new(SqlScanExec::new(SqlScan { sources, ..scan.scan().clone() }, scan.partitions())))
}

/// Sends the tasks of a stage with a divided leaf to the workers that have their live spans. Other stages are left to other handlers.
pub fn route_tasks(event: RouteTasksEvent) -> Option<Result<RouteTasksEventResponse>> {
    route(event.plan, &event.task_ctx, event.task_count).transpose()
}

/// Blocks, and live spans of which it is known where they are.
fn is_divisible(sources: &SourceSet) -> bool {
    sources.names().iter().all(|name| matches!(name, SourceName::Block { .. } | SourceName::Live { at: Some(_), .. }))
}

/// All workers, sorted, each once.
fn workers(config: &SessionConfig) -> Result<Vec<Arc<str>>> {
    let mut workers: Vec<Arc<str>> = get_distributed_worker_resolver(config)?.get_urls()?.iter().map(worker_name).collect();
    workers.sort();
    workers.dedup();
    Ok(workers)
}

/// The names that each of `tasks` tasks reads. With a task for each worker, task i is the i-th worker's, in all leaves of a stage alike;
/// with fewer tasks, workers with live spans come first.
fn divide(sources: &SourceSet, workers: &[Arc<str>], tasks: usize) -> Vec<Vec<SourceName>> {
    let has_live = |worker: &Arc<str>| sources.names().iter().any(|name| live_worker(name) == Some(worker));
    let mut order: Vec<&Arc<str>> = workers.iter().collect();
    if tasks < workers.len() {
        order.sort_by_key(|worker| !has_live(worker));
    }
    let mut parts = vec![Vec::new(); tasks];
    let (live, blocks): (Vec<&SourceName>, Vec<&SourceName>) = sources.names().iter().partition(|name| live_worker(name).is_some());
    for name in live {
        let at = order.iter().position(|worker| Some(*worker) == live_worker(name)).unwrap_or(0);
        parts[at.min(tasks - 1)].push(name.clone());
    }
    for name in blocks {
        if let Some(smallest) = parts.iter_mut().min_by_key(|part| part.len()) {
            smallest.push(name.clone());
        }
    }
    parts
}

fn live_worker(name: &SourceName) -> Option<&Arc<str>> {
    match name {
        SourceName::Live { at: Some(at), .. } => Some(&at.worker),
        _ => None,
    }
}

/// None when the stage has no divided leaf of ours with as many parts as tasks.
fn route(stage: &Arc<dyn ExecutionPlan>, context: &TaskContext, tasks: usize) -> Result<Option<RouteTasksEventResponse>> {
    let mut wanted: Option<Vec<Option<Arc<str>>>> = None;
    stage.apply(|node| {
        if let Some(leaf) = node.downcast_ref::<DistributedLeafExec>().filter(|leaf| leaf.variants().len() == tasks) {
            let homes: Vec<Option<Arc<str>>> = leaf.variants().iter().map(home).collect();
            let ours = leaf.variants().iter().all(|variant| sources_of(variant).is_some());
            if ours {
                match &mut wanted {
                    None => wanted = Some(homes),
                    Some(wanted) => wanted.iter_mut().zip(homes).for_each(|(wanted, home)| *wanted = wanted.take().or(home)),
                }
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    let Some(wanted) = wanted else { return Ok(None) };
    let workers = workers(context.session_config())?;
    let free: Vec<&Arc<str>> = workers.iter().filter(|worker| !wanted.iter().flatten().any(|taken| taken == *worker)).collect();
    let mut next = free.iter().copied().chain(workers.iter().cycle().take(tasks));
    let urls = wanted.into_iter().map(|home| match home.or_else(|| next.next().cloned()) {
        Some(worker) => Ok(worker_url(&worker)?),
        None => Err(skein_engine::error::Error::unavailable("there are no workers").into()),
    });
    Ok(Some(RouteTasksEventResponse::new(urls.collect::<Result<Vec<Url>>>()?)))
}

/// The worker on which a variant is at home; None if any will do.
fn home(variant: &Arc<dyn ExecutionPlan>) -> Option<Arc<str>> {
    match variant.downcast_ref::<ShareExec>() {
        Some(share) => Some(share.worker().clone()),
        None => sources_of(variant)?.names().iter().find_map(live_worker).cloned(),
    }
}
