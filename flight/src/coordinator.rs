//! Queries over the blocks of the store and the live spans of all workers.
//!
//! A query asks every worker what is live, looks at the blocklist, finds the traces that lie in several places, and brings just these
//! together here; then each worker reads its share, where its data are, and leaves those traces out. So invariant EX-1 holds across
//! processes: every source holds whole traces, and each trace is in one source.
//! ```text
//! DistributedExec                 datafusion-distributed: sends each worker its task
//!   NewestResultsExec             here: the newest of all shares; for metrics MetricsMergeExec, the sum of all
//!     ShareResultsExec            here: the results of all shares; counts what they read
//!       UnionExec
//!         NetworkCoalesceExec     the network
//!           DistributedLeafExec   one ShareExec for each worker: details, newest traces, scan; or metrics merge, metrics scan
//!         ShareExec               here: the traces that lie in several places
//! ```

use std::{
    collections::HashSet,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use datafusion::{
    arrow::record_batch::RecordBatch,
    catalog::Session,
    common::{DFSchema, DataFusionError, Result as DataFusionResult, internal_datafusion_err},
    execution::{
        SessionStateBuilder,
        context::{QueryPlanner, SessionState},
    },
    logical_expr::{EmptyRelation, LogicalPlan},
    physical_plan::{ExecutionPlan, SendableRecordBatchStream, execute_stream, union::UnionExec},
};
use datafusion_distributed::{DistributedExt, DistributedLeafExec, NetworkCoalesceExec, SessionStateBuilderExt, WorkerResolver};
use futures::{StreamExt, TryStreamExt};
use skein_engine::{
    error::{Error, ErrorKind, Result},
    exec::{
        engine::{Engine, MESSAGE_FORMS, Survey},
        memory::{Reservation, batch_bytes},
        shares::{Share, deal},
        source::SourceRef,
        sources::{SourceName, SourceSet},
    },
    lower::{lower_metrics, lower_search},
    metrics::{
        detail::Detail,
        evaluate::{self, Operands, distinct_operands},
        told::{Operand, ToldMetrics},
    },
    parts::{Pace, Part, Parts, is_last},
    plan::{
        metrics_merge::MetricsMergeExec,
        newest_results::NewestResultsExec,
        share::{ShareExec, sources_of},
        share_results::{ShareResultsExec, read_by_shares},
        trace_details::search_results,
    },
    query::{
        MetricsRequest, MetricsResult, QueryService, ScanStats, SearchRequest, SearchResult, TagNames, TagNamesRequest, TagValues, TagValuesRequest,
        TraceRequest, TraceResult, Window,
    },
    sql::{
        SqlService, SqlStatement, Tail, TailPass, TailRequest,
        session::{Distribution, SessionParts},
    },
    tenant::TenantId,
    traceql::{self, MetricsExpr, MetricsFunction},
};
use skein_proto::tempo::TraceSearchMetadata;
use url::Url;

use crate::{
    codec::PlanCodec,
    explain::explained,
    live_client::LiveClient,
    metrics::CoordinatorMetrics,
    peers::{Peers, Workers, worker_names, worker_url},
    resolver::PeerResolver,
    spread,
};

/// How often a query is planned when what was listed is gone before it is read: live spans grow and become blocks all the time.
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
    distribution: Distribution,
    metrics: CoordinatorMetrics,
}

impl Coordinator {
    /// A coordinator of `workers`, reached over `peers`. `engine` has the catalog of the same store; live spans of its own are not looked at.
    pub fn new(engine: Arc<Engine>, workers: Arc<dyn Workers>, peers: Peers, metrics: CoordinatorMetrics) -> Self {
        let remote = Arc::new(LiveClient::new(workers.clone(), peers.clone(), engine.pool().clone()));
        let resolver = Arc::new(PeerResolver::new(&engine, None, remote.clone()));
        let distribution = distribution(workers.clone(), peers, resolver.clone());
        let session = SessionStateBuilder::new().with_default_features().with_runtime_env(engine.runtime()).with_query_planner(Arc::new(MadePlan));
        let session = (distribution.0)(session).build();
        Self { engine, workers, remote, resolver, session, distribution, metrics }
    }

    /// The sources of a query and the shares in which they are dealt out. Cost: a question to every worker, and reading the split traces
    /// unless they are known. Errors: `Unavailable` when a worker does not answer, else as the store's.
    pub async fn survey(&self, tenant: &TenantId, window: Option<Window>) -> Result<(Survey, Vec<Share>)> {
        let survey = self.engine.survey(tenant, window, &*self.remote).await?;
        let blocks: Vec<_> = survey.blocks.iter().map(|block| (block.meta().id, block.meta().data_bytes)).collect();
        let shares = deal(&worker_names(&*self.workers)?, &survey.live, &blocks)?;
        Ok((survey, shares))
    }

    /// The plan of a search, ready to [`run`](Self::run) once; None when there is nothing to search.
    /// Errors: `Invalid` for a query that does not parse or validate, else as [`survey`](Self::survey).
    pub async fn plan_search(&self, tenant: &TenantId, request: &SearchRequest) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        Ok(self.plan_search_at(tenant, request, None).await?.map(|(plan, _)| plan))
    }

    /// The same with shares that tell parts at `pace`, and the number of row groups.
    async fn plan_search_at(&self, tenant: &TenantId, request: &SearchRequest, pace: Option<Pace>) -> Result<Option<(Arc<dyn ExecutionPlan>, u64)>> {
        let query = traceql::parse(&request.query)?;
        let (survey, shares) = self.survey(tenant, request.window).await?;
        let partitions = self.engine.partitions();
        let lower = |sources| Ok(lower_search(query.clone(), sources, request, partitions)?.plan);
        let Some(results) = self.share_results(tenant, &survey, &shares, pace, lower)? else { return Ok(None) };
        let plan = self.distribute(Arc::new(NewestResultsExec::new(results, request.limit))).await?;
        Ok(Some((plan, survey.row_groups())))
    }

    /// The plans of a metrics query, one for each operand, all over the same versions of the same sources, to [`run`](Self::run) once.
    /// Errors: `Invalid` for a query that does not parse or validate, or is no metrics query; else as [`survey`](Self::survey).
    pub async fn plan_metrics(&self, tenant: &TenantId, request: &MetricsRequest) -> Result<MetricsPlan> {
        self.plan_metrics_at(tenant, request, None).await
    }

    /// The same with shares that tell parts at `pace`.
    async fn plan_metrics_at(&self, tenant: &TenantId, request: &MetricsRequest, pace: Option<Pace>) -> Result<MetricsPlan> {
        let (query, detail) = evaluate::checked(request)?;
        let (survey, shares) = self.survey(tenant, Some(request.intervals.window())).await?;
        let (intervals, partitions) = (request.intervals, self.engine.partitions());
        let mut operands: Vec<OperandPlan> = Vec::new();
        for (key, (pipeline, function)) in distinct_operands(&query) {
            let lower = |sources| lower_metrics(pipeline, function, sources, intervals, &detail, partitions);
            let plan = match self.share_results(tenant, &survey, &shares, pace, lower)? {
                Some(partials) => {
                    let sum = MetricsMergeExec::new(partials, detail.cell_kind(function), intervals.count());
                    Some(self.distribute(Arc::new(sum)).await?)
                }
                None => None,
            };
            operands.push(OperandPlan { key, function: function.clone(), plan });
        }
        let row_groups = survey.row_groups() * operands.len() as u64;
        Ok(MetricsPlan { query, detail, operands, row_groups, read: survey.read })
    }

    /// The results of all shares: of each worker's, and of the split traces. `lower` makes the plan of a share of its sources. None when
    /// there are no sources. Errors: those of `lower`, `Internal`.
    fn share_results(
        &self,
        tenant: &TenantId,
        survey: &Survey,
        shares: &[Share],
        pace: Option<Pace>,
        lower: impl Fn(Arc<SourceSet>) -> Result<Arc<dyn ExecutionPlan>>,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        // A plan that reads no source finds nothing, whatever is stored.
        let share = |worker: &Arc<str>, sources: SourceSet| -> Result<Option<Arc<dyn ExecutionPlan>>> {
            let plan = lower(Arc::new(sources))?;
            if sources_of(&plan).is_none() {
                return Ok(None);
            }
            let share = ShareExec::new(plan, worker.clone())?.telling(pace.map(|pace| pace.durations()));
            Ok(Some(Arc::new(share)))
        };
        let mut inputs: Vec<Arc<dyn ExecutionPlan>> = Vec::with_capacity(2);
        if let Some(Share { worker, .. }) = shares.first() {
            let of_worker = |own: &Share| share(&own.worker, self.sources(tenant, own.names.clone()).leaving_out(survey.split.clone()));
            let missing = (shares.len()..TASKS_MIN).map(|_| share(worker, self.sources(tenant, Vec::new())));
            let Some(variants) = shares.iter().map(of_worker).chain(missing).collect::<Result<Option<Vec<_>>>>()? else { return Ok(None) };
            let tasks = variants.len();
            let leaf = DistributedLeafExec::try_new(variants[0].clone(), variants)?;
            inputs.push(Arc::new(NetworkCoalesceExec::try_new(Arc::new(leaf), tasks, 1)?));
        }
        if let Some(joined) = &survey.joined {
            let name = SourceName::Joined { traces: survey.split.to_vec() };
            let sources = SourceSet::opened(tenant.clone(), vec![(name, joined.clone())], self.resolver.clone());
            let Some(joined) = share(&HERE.into(), sources)? else { return Ok(None) };
            inputs.push(joined);
        }
        let input = match inputs.len() {
            0 => return Ok(None),
            1 => inputs.remove(0),
            _ => UnionExec::try_new(inputs)?,
        };
        Ok(Some(Arc::new(ShareResultsExec::new(input)?)))
    }

    fn sources(&self, tenant: &TenantId, names: Vec<SourceName>) -> SourceSet {
        SourceSet::new(tenant.clone(), names, self.resolver.clone())
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

    /// One attempt at planning a statement.
    async fn prepare_once(&self, tenant: &TenantId, text: &str) -> Result<SqlStatement> {
        let (sources, survey) = self.scan_sources(tenant, None).await?;
        let joined = match survey.joined {
            Some(joined) => {
                let own = sources.names().iter().cloned().zip(sources.sources().await?.iter().cloned());
                let joined = (SourceName::Joined { traces: survey.split.to_vec() }, joined as SourceRef);
                Some(SourceSet::opened(tenant.clone(), own.chain([joined]).collect(), self.resolver.clone()))
            }
            None => None,
        };
        let (runtime, partitions) = (self.engine.runtime(), self.engine.partitions());
        let sources = Arc::new(sources.with_joined(joined));
        let parts =
            SessionParts { sources, runtime, partitions, distribution: Some(self.distribution.clone()), log: self.engine.query_log().clone() };
        SqlStatement::prepare(tenant, parts, text).await
    }

    /// Starts a plan; its nodes here tell parts at `pace`.
    fn start(&self, plan: &Arc<dyn ExecutionPlan>, pace: Option<Pace>) -> Result<SendableRecordBatchStream> {
        let mut session = self.session.clone();
        if let Some(pace) = pace {
            session.config_mut().set_extension(Arc::new(pace));
        }
        Ok(execute_stream(plan.clone(), session.task_ctx())?)
    }

    /// Runs a plan to its end. Dropping the future stops the work of all workers. Errors: as the nodes', naming the worker.
    pub async fn run(&self, plan: &Arc<dyn ExecutionPlan>) -> Result<Vec<RecordBatch>> {
        Ok(self.start(plan, None)?.try_collect().await?)
    }

    /// One attempt at a search; tells `parts`, if there are some, of traces that are not among those `told` before.
    async fn search_once(
        &self,
        tenant: &TenantId,
        request: &SearchRequest,
        parts: Option<&Parts<SearchResult>>,
        told: &Mutex<HashSet<String>>,
    ) -> Result<SearchResult> {
        let pace = parts.map(Parts::pace);
        let Some((plan, row_groups)) = self.plan_search_at(tenant, request, pace).await? else { return Ok(SearchResult::default()) };
        let (mut whole, memory) = (Vec::new(), Reservation::new("results of a search", self.engine.pool()));
        let mut batches = pin!(self.start(&plan, pace)?.peekable());
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            memory.grow(MESSAGE_FORMS * batch_bytes(&batch, true))?;
            let traces = search_results(&batch)?;
            if let Some(parts) = parts
                && !is_last(batches.as_mut())
            {
                let new = |trace: &&TraceSearchMetadata| told.lock().unwrap_or_else(PoisonError::into_inner).insert(trace.trace_id.clone());
                let traces = traces.iter().filter(new).cloned().collect();
                let found = SearchResult { traces, stats: read_by_shares(&plan), ..SearchResult::default() };
                parts.tell(Part { found, row_groups }).await;
            }
            whole.extend(traces);
        }
        Ok(SearchResult { traces: whole, stats: read_by_shares(&plan), memory })
    }

    async fn search_telling(&self, tenant: &TenantId, request: &SearchRequest, parts: Option<&Parts<SearchResult>>) -> Result<SearchResult> {
        let told = Mutex::default();
        self.planning_again(tenant, || self.search_once(tenant, request, parts, &told)).await
    }

    async fn explain_once(&self, tenant: &TenantId, request: &SearchRequest, analyze: bool) -> Result<String> {
        let Some(plan) = self.plan_search(tenant, request).await? else { return Ok("nothing to search\n".into()) };
        if analyze {
            self.run(&plan).await?;
        }
        explained(&plan, analyze)
    }

    /// One attempt at a metrics query; tells parts, if somebody hears them.
    async fn metrics_once(&self, tenant: &TenantId, request: &MetricsRequest, telling: Option<&ToldMetrics<'_>>) -> Result<MetricsResult> {
        let pace = telling.map(|telling| telling.parts().pace());
        let MetricsPlan { query, detail, operands: planned, row_groups, read } = self.plan_metrics_at(tenant, request, pace).await?;
        let (mut operands, mut stats) = (Operands::new(), read);
        for OperandPlan { key, function, plan } in planned {
            let mut given = Vec::new();
            if let Some(plan) = plan {
                let mut batches = pin!(self.start(&plan, pace)?.peekable());
                while let Some(batch) = batches.next().await {
                    let batch = batch?;
                    if let Some(telling) = telling
                        && !is_last(batches.as_mut())
                    {
                        let operand = Operand { query: &query, key: &key, function: &function, detail: &detail, finished: &operands, row_groups };
                        telling.tell(operand, &batch, stats.plus_of_same_blocks(&read_by_shares(&plan))).await?;
                    }
                    given.push(batch);
                }
                stats = stats.plus_of_same_blocks(&read_by_shares(&plan));
            }
            let held = self.engine.hold("series of the answer");
            operands.insert(key, evaluate::finish_operand((&query, &function), request, &detail, &given, held)?);
        }
        Ok(evaluate::finish(&query, operands, request, stats))
    }

    async fn metrics_telling(&self, tenant: &TenantId, request: &MetricsRequest, parts: Option<&Parts<MetricsResult>>) -> Result<MetricsResult> {
        let telling = parts.map(|parts| ToldMetrics::new(parts, request, self.engine.hold("series of a part")));
        self.planning_again(tenant, || self.metrics_once(tenant, request, telling.as_ref())).await
    }

    /// The first answer of `attempt` that does not fail for what a new plan may heal: live spans of which the listed version is gone, a
    /// block that was replaced and deleted, a worker that is away. Errors: as the last attempt's, `Unavailable` for what is not found.
    async fn planning_again<T, F: Future<Output = Result<T>>>(&self, tenant: &TenantId, attempt: impl Fn() -> F) -> Result<T> {
        for _ in 1..PLANS_MAX {
            match attempt().await {
                Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::NotFound) => {
                    tracing::debug!(%tenant, %error, "a query is planned again");
                    self.metrics.planned_again();
                }
                result => return result,
            }
        }
        attempt().await.map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::unavailable(error.to_string()),
            _ => error,
        })
    }
}

/// A metrics query, planned.
pub struct MetricsPlan {
    query: MetricsExpr,
    /// What is kept beside the functions' own cells.
    detail: Detail,
    /// The parts of the query that spans are read for, each once.
    pub operands: Vec<OperandPlan>,
    /// Row groups of all operands, as far as they are known.
    row_groups: u64,
    /// What planning has read.
    read: ScanStats,
}

/// One operand of a metrics query.
pub struct OperandPlan {
    key: String,
    function: MetricsFunction,
    /// Gives partial series; None when there is nothing to read.
    pub plan: Option<Arc<dyn ExecutionPlan>>,
}

#[async_trait]
impl QueryService for Coordinator {
    async fn trace_by_id(&self, tenant: &TenantId, request: TraceRequest) -> Result<TraceResult> {
        self.engine.trace_with(tenant, &request, &*self.remote).await
    }

    async fn search(&self, tenant: &TenantId, request: SearchRequest) -> Result<SearchResult> {
        self.search_telling(tenant, &request, None).await
    }

    async fn search_in_parts(&self, tenant: &TenantId, request: SearchRequest, parts: Parts<SearchResult>) -> Result<SearchResult> {
        self.search_telling(tenant, &request, Some(&parts)).await
    }

    /// What runs here, then what each worker runs; after `analyze` with what each node has read and given.
    async fn explain_search(&self, tenant: &TenantId, request: SearchRequest, analyze: bool) -> Result<String> {
        self.planning_again(tenant, || self.explain_once(tenant, &request, analyze)).await
    }

    async fn metrics(&self, tenant: &TenantId, request: MetricsRequest) -> Result<MetricsResult> {
        self.metrics_telling(tenant, &request, None).await
    }

    async fn metrics_in_parts(&self, tenant: &TenantId, request: MetricsRequest, parts: Parts<MetricsResult>) -> Result<MetricsResult> {
        self.metrics_telling(tenant, &request, Some(&parts)).await
    }

    async fn tag_names(&self, tenant: &TenantId, request: TagNamesRequest) -> Result<TagNames> {
        self.engine.tag_names_with(tenant, &request, &*self.remote, None).await
    }

    async fn tag_names_in_parts(&self, tenant: &TenantId, request: TagNamesRequest, parts: Parts<TagNames>) -> Result<TagNames> {
        self.engine.tag_names_with(tenant, &request, &*self.remote, Some(&parts)).await
    }

    async fn tag_values(&self, tenant: &TenantId, request: TagValuesRequest) -> Result<TagValues> {
        traceql::parse_identifier(&request.tag)?;
        self.engine.tag_values_with(tenant, &request, &*self.remote, None).await
    }

    async fn tag_values_in_parts(&self, tenant: &TenantId, request: TagValuesRequest, parts: Parts<TagValues>) -> Result<TagValues> {
        traceql::parse_identifier(&request.tag)?;
        self.engine.tag_values_with(tenant, &request, &*self.remote, Some(&parts)).await
    }
}

/// Statements whose scans are divided by [`spread`] where datafusion-distributed sees fit; the traces that lie in several places are read here.
#[async_trait]
impl SqlService for Coordinator {
    async fn prepare(&self, tenant: &TenantId, text: &str) -> Result<SqlStatement> {
        self.planning_again(tenant, || self.prepare_once(tenant, text)).await
    }

    async fn tail(&self, _: &TenantId, _: TailRequest) -> Result<Tail> {
        Err(no_tail())
    }

    async fn tail_pass(&self, _: Tail) -> Result<(Tail, TailPass)> {
        Err(no_tail())
    }
}

/// Workers do not tell what of their live spans is new.
fn no_tail() -> Error {
    Error::invalid("there are no tails where live spans are spread over processes: ask for the newest matches again and again, with DoGet")
}

/// What makes a session divide its plans between `workers`.
fn distribution(workers: Arc<dyn Workers>, peers: Peers, resolver: Arc<PeerResolver>) -> Distribution {
    Distribution(Arc::new(move |session| {
        session
            .with_distributed_worker_resolver(Urls(workers.clone()))
            .with_distributed_channel_resolver(peers.clone())
            .with_distributed_user_codec(PlanCodec::new(resolver.clone()))
            .with_distributed_desired_task_count_handler(spread::desired_task_count)
            .with_distributed_scale_up_leaf_node_handler(spread::scale_up_leaf)
            .with_distributed_route_tasks_handler(spread::route_tasks)
            .with_distributed_planner()
    }))
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
