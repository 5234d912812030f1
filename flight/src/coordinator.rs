//! Queries over the blocks of the store and the live spans of all workers.
//!
//! A search asks every worker what is live, looks at the blocklist, finds the traces that lie in several places, and brings just these
//! together here; then each worker searches its share, where its data are, and leaves those traces out. So invariant EX-1 holds across
//! processes: every source holds whole traces, and each trace is in one source.
//! ```text
//! DistributedExec                 datafusion-distributed: sends each worker its task
//!   NewestResultsExec             here: the newest of all shares, and what they read in all
//!     UnionExec
//!       NetworkCoalesceExec       the network
//!         DistributedLeafExec     one ShareExec for each worker: details, newest traces, scan
//!       ShareExec                 here: the traces that lie in several places
//! ```

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::{
    arrow::record_batch::RecordBatch,
    catalog::Session,
    common::{
        DFSchema, DataFusionError, Result as DataFusionResult, internal_datafusion_err,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    execution::{
        SessionStateBuilder,
        context::{QueryPlanner, SessionState},
    },
    logical_expr::{EmptyRelation, LogicalPlan},
    physical_plan::{ExecutionPlan, displayable, execute_stream, union::UnionExec},
};
use datafusion_distributed::{DistributedExt, DistributedLeafExec, NetworkCoalesceExec, SessionStateBuilderExt, WorkerResolver};
use futures::TryStreamExt;
use skein_engine::{
    error::{Error, ErrorKind, Result},
    exec::{
        engine::{Engine, Survey},
        shares::{Share, deal},
        sources::{SourceName, SourceSet},
    },
    lower::lower_search,
    plan::{
        newest_results::NewestResultsExec,
        share::{self, ShareExec},
        trace_details::search_results,
    },
    query::{
        MetricsRequest, MetricsResult, QueryService, SearchRequest, SearchResult, TagNames, TagNamesRequest, TagValues, TagValuesRequest,
        TraceRequest, TraceResult, Window,
    },
    tenant::TenantId,
    traceql::{self, Query},
};
use url::Url;

use crate::{
    codec::PlanCodec,
    live_client::LiveClient,
    metrics::CoordinatorMetrics,
    peers::{Peers, Workers, worker_names, worker_url},
    resolver::PeerResolver,
    spread,
};

/// How often a search is planned when what was listed is gone before it is read: live spans grow and become blocks all the time.
const PLANS_MAX: usize = 3;
/// A stage of one task would not be sent anywhere: datafusion-distributed runs it where it is planned.
const TASKS_MIN: usize = 2;
/// The name of this process in plans.
const HERE: &str = "coordinator";

/// Answers queries with the help of workers.
pub struct Coordinator {
    engine: Arc<Engine>,
    workers: Arc<dyn Workers>,
    remote: Arc<LiveClient>,
    resolver: Arc<PeerResolver>,
    session: SessionState,
    metrics: CoordinatorMetrics,
}

impl Coordinator {
    /// A coordinator of `workers`, reached over `peers`. `engine` has the catalog of the same store; live spans of its own are not looked at.
    pub fn new(engine: Arc<Engine>, workers: Arc<dyn Workers>, peers: Peers, metrics: CoordinatorMetrics) -> Self {
        let remote = Arc::new(LiveClient::new(workers.clone(), peers.clone()));
        let resolver = Arc::new(PeerResolver::new(engine.resolver(), None, remote.clone()));
        let session = SessionStateBuilder::new()
            .with_default_features()
            .with_query_planner(Arc::new(MadePlan))
            .with_distributed_worker_resolver(Urls(workers.clone()))
            .with_distributed_channel_resolver(peers)
            .with_distributed_user_codec(PlanCodec::new(resolver.clone()))
            .with_distributed_desired_task_count_handler(spread::desired_task_count)
            .with_distributed_scale_up_leaf_node_handler(spread::scale_up_leaf)
            .with_distributed_route_tasks_handler(spread::route_tasks)
            .with_distributed_planner()
            .build();
        Self { engine, workers, remote, resolver, session, metrics }
    }

    /// The sources of a query and the shares in which they are dealt out. Cost: a question to every worker, and reading the split traces
    /// unless they are known. Errors: `Unavailable` when a worker does not answer, else as the store's.
    pub async fn survey(&self, tenant: &TenantId, window: Option<Window>) -> Result<(Survey, Vec<Share>)> {
        let survey = self.engine.survey(tenant, window, &*self.remote).await?;
        let blocks: Vec<_> = survey.blocks.iter().map(|block| (block.meta().id, block.meta().data_bytes)).collect();
        let shares = deal(&worker_names(&*self.workers)?, &survey.live, &blocks)?;
        Ok((survey, shares))
    }

    /// The plan of a search, ready to [`run`](Self::run); None when there is nothing to search.
    /// Errors: `Invalid` for a query that does not parse or validate, else as [`survey`](Self::survey).
    pub async fn plan_search(&self, tenant: &TenantId, request: &SearchRequest) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let query = traceql::parse(&request.query)?;
        let (survey, shares) = self.survey(tenant, request.window).await?;
        let shares = shares.into_iter().map(|share| {
            let sources = self.sources(tenant, share.names).leaving_out(survey.split.clone());
            self.share(share.worker, &query, sources, request)
        });
        let mut shares = shares.collect::<Result<Vec<_>>>()?;
        let mut inputs: Vec<Arc<dyn ExecutionPlan>> = Vec::with_capacity(2);
        if let Some(worker) = shares.first().and_then(|first| first.downcast_ref::<ShareExec>()).map(|first| first.worker().clone()) {
            while shares.len() < TASKS_MIN {
                shares.push(self.share(worker.clone(), &query, self.sources(tenant, Vec::new()), request)?);
            }
            let tasks = shares.len();
            let leaf = DistributedLeafExec::try_new(shares[0].clone(), shares)?;
            inputs.push(Arc::new(NetworkCoalesceExec::try_new(Arc::new(leaf), tasks, 1)?));
        }
        if let Some(joined) = survey.joined {
            let name = SourceName::Joined { traces: survey.split.to_vec() };
            let sources = SourceSet::opened(tenant.clone(), vec![(name, joined)], self.resolver.clone());
            inputs.push(self.share(HERE.into(), &query, sources, request)?);
        }
        let input = match inputs.len() {
            0 => return Ok(None),
            1 => inputs.remove(0),
            _ => UnionExec::try_new(inputs)?,
        };
        self.distribute(Arc::new(NewestResultsExec::new(input, request.limit))).await.map(Some)
    }

    fn sources(&self, tenant: &TenantId, names: Vec<SourceName>) -> SourceSet {
        SourceSet::new(tenant.clone(), names, self.resolver.clone())
    }

    fn share(&self, worker: Arc<str>, query: &Query, sources: SourceSet, request: &SearchRequest) -> Result<Arc<dyn ExecutionPlan>> {
        let search = lower_search(query.clone(), Arc::new(sources), request, self.engine.partitions())?;
        Ok(Arc::new(ShareExec::new(search.plan, worker)?))
    }

    /// Lets datafusion-distributed divide a plan: its boundaries if it has some, else where it sees fit.
    /// Errors: `Internal`.
    pub async fn distribute(&self, plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        let mut session = self.session.clone();
        session.config_mut().set_extension(Arc::new(Made(plan)));
        let nothing = LogicalPlan::EmptyRelation(EmptyRelation { produce_one_row: false, schema: Arc::new(DFSchema::empty()) });
        Ok(self.session.query_planner().create_physical_plan(&nothing, &session).await?)
    }

    /// A scan of all sources but the split traces, which names its workers, to stand under nodes of other makers.
    /// Errors: as [`survey`](Self::survey).
    pub async fn scan_sources(&self, tenant: &TenantId, window: Option<Window>) -> Result<(SourceSet, Survey)> {
        let (survey, shares) = self.survey(tenant, window).await?;
        let names = shares.into_iter().flat_map(|share| share.names).collect();
        Ok((self.sources(tenant, names).leaving_out(survey.split.clone()), survey))
    }

    /// Runs a plan to its end. Dropping the future stops the work of all workers. Errors: as the nodes', naming the worker.
    pub async fn run(&self, plan: &Arc<dyn ExecutionPlan>) -> Result<Vec<RecordBatch>> {
        let stream = execute_stream(plan.clone(), self.session.task_ctx())?;
        Ok(stream.try_collect().await?)
    }

    async fn search_once(&self, tenant: &TenantId, request: &SearchRequest) -> Result<SearchResult> {
        let Some(plan) = self.plan_search(tenant, request).await? else { return Ok(SearchResult::default()) };
        let mut result = SearchResult::default();
        for batch in self.run(&plan).await? {
            result.stats = result.stats.plus(&share::from_batch(&batch)?.1);
            result.traces.extend(search_results(&batch)?);
        }
        Ok(result)
    }
}

#[async_trait]
impl QueryService for Coordinator {
    async fn trace_by_id(&self, tenant: &TenantId, request: TraceRequest) -> Result<TraceResult> {
        self.engine.trace_with(tenant, &request, &*self.remote).await
    }

    async fn search(&self, tenant: &TenantId, request: SearchRequest) -> Result<SearchResult> {
        for _ in 1..PLANS_MAX {
            match self.search_once(tenant, &request).await {
                // Live spans of which the listed version is gone, or a block that was replaced and deleted: a new plan has what is there now.
                Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::NotFound) => {
                    tracing::debug!(%tenant, %error, "a search is planned again");
                    self.metrics.planned_again();
                }
                result => return result,
            }
        }
        let result = self.search_once(tenant, &request).await;
        result.map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::unavailable(error.to_string()),
            _ => error,
        })
    }

    /// What runs here, then what each worker runs; the last line after `analyze` says what all of them read.
    async fn explain_search(&self, tenant: &TenantId, request: SearchRequest, analyze: bool) -> Result<String> {
        let Some(plan) = self.plan_search(tenant, &request).await? else { return Ok("nothing to search\n".into()) };
        let mut text = displayable(&*plan).indent(true).to_string();
        plan.apply(|node| {
            if let Some(leaf) = node.downcast_ref::<DistributedLeafExec>() {
                text.extend(leaf.variants().iter().map(|share| format!("\n{}", displayable(&**share).indent(true))));
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        if analyze {
            for batch in self.run(&plan).await? {
                text.push_str(&format!("\n{:?}\n", share::from_batch(&batch)?.1));
            }
        }
        Ok(text)
    }

    /// Runs here, over blocks and the live spans that workers send: right, and not yet divided among them.
    async fn metrics(&self, tenant: &TenantId, request: MetricsRequest) -> Result<MetricsResult> {
        let (survey, shares) = self.survey(tenant, Some(request.intervals.window())).await?;
        let set = self.sources(tenant, shares.into_iter().flat_map(|share| share.names).collect());
        let opened = set.sources().await?.iter().cloned();
        let mut sources: Vec<_> = set.names().iter().cloned().zip(opened).collect();
        if let Some(joined) = survey.joined {
            sources.push((SourceName::Joined { traces: survey.split.to_vec() }, joined));
        }
        self.engine.metrics_over(SourceSet::opened(tenant.clone(), sources, self.resolver.clone()), &request).await
    }

    async fn tag_names(&self, tenant: &TenantId, request: TagNamesRequest) -> Result<TagNames> {
        self.engine.tag_names_with(tenant, &request, &*self.remote).await
    }

    async fn tag_values(&self, tenant: &TenantId, request: TagValuesRequest) -> Result<TagValues> {
        traceql::parse_identifier(&request.tag)?;
        self.engine.tag_values_with(tenant, &request, &*self.remote).await
    }
}

/// The workers as datafusion-distributed asks for them.
struct Urls(Arc<dyn Workers>);

impl WorkerResolver for Urls {
    fn get_urls(&self) -> DataFusionResult<Vec<Url>> {
        self.0.urls().iter().map(|url| worker_url(url).map_err(DataFusionError::from)).collect()
    }
}

/// A plan that is made already, in the session's configuration: datafusion-distributed divides plans in its query planner only.
struct Made(Arc<dyn ExecutionPlan>);

/// "Plans" the plan that is made already.
#[derive(Debug)]
struct MadePlan;

#[async_trait]
impl QueryPlanner for MadePlan {
    async fn create_physical_plan(&self, _: &LogicalPlan, session: &dyn Session) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let made = session.config().get_extension::<Made>();
        made.map(|made| made.0.clone()).ok_or_else(|| internal_datafusion_err!("there is no plan to divide"))
    }
}
