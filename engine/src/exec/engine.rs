//! The engine of one process: catalog, caches and live spans, and the answers to queries. `remote` is what it tells other processes of its
//! live spans, and how it plans over theirs; `told` tells parts of names and values;
//! `watch` follows what arrives.

mod remote;
mod told;
mod watch;

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashSet},
    pin::pin,
    sync::Arc,
};

use async_trait::async_trait;
use datafusion::{
    execution::{TaskContext, runtime_env::RuntimeEnv},
    physical_plan::{ExecutionPlan, display::DisplayableExecutionPlan},
    prelude::{SessionConfig, SessionContext},
};
use futures::{StreamExt, TryStreamExt, future::try_join_all};
use moka::{policy::EvictionPolicy, sync::Cache};
use object_store::{ObjectStore, ObjectStoreExt};
use prometheus::Registry;

pub use self::remote::{LocalListing, Survey};
pub use self::watch::{ChangedTraces, Watch};
use super::{
    history::{Language, QueryLog},
    live::{LiveGeneration, LiveSpans},
    memory::{Pool, QueryMemory, Reservation, batch_bytes},
    metrics::{FoundSeries, metrics_over, row_groups_of},
    source::{MemorySource, SourceRef},
    sources::{LiveAt, SourceName, SourceResolver, SourceSet},
    split::{common, join_traces, split_ids},
    stats::{ScanMetrics, stats_of_plan},
    tags,
    trace::trace_in,
};
use crate::{
    block::{
        bloom::{BloomShard, shard_of},
        reader::BlockReader,
    },
    catalog::{
        Catalog,
        meta::{BlockMeta, bloom_name},
    },
    error::Result,
    lower::{SearchPlan, lower_search},
    metrics::{cache::PartialCache, series::to_proto},
    parts::{Part, Parts, is_last},
    plan::trace_details::search_results,
    query::{
        MetricsRequest, MetricsResult, QueryService, ScanStats, SearchRequest, SearchResult, TagNames, TagNamesRequest, TagScope, TagValues,
        TagValuesRequest, TraceRequest, TraceResult, Window,
    },
    spans::{BlockId, TraceId, set::SpanSet},
    sql::{SqlLimits, SqlService, SqlStatement, Tail, TailPass, TailRequest, session::SessionParts},
    tenant::TenantId,
    traceql,
};

/// Blocks opened at the same time.
const OPENS_AT_ONCE: usize = 8;

/// How far outside a window a trace's other spans are looked for.
const SPLIT_SLACK_SECONDS: u32 = 3600;

/// Bounds of the engine's caches and of its parallelism.
#[derive(Debug, Clone, Copy)]
pub struct EngineSettings {
    /// Memory for footers and indexes of blocks.
    pub block_cache_bytes: u64,
    /// Memory for bloom filters.
    pub bloom_cache_bytes: u64,
    /// Memory for ordered live spans and traces that lie in several places.
    pub memory_source_bytes: u64,
    /// Memory for partial series of metrics queries; 0 keeps none.
    pub partial_cache_bytes: u64,
    /// Partitions of a scan.
    pub partitions: usize,
    /// Memory that queries may take together, beside the caches.
    pub query_memory_bytes: usize,
}

impl Default for EngineSettings {
    fn default() -> Self {
        let partitions = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            block_cache_bytes: 256 << 20,
            bloom_cache_bytes: 64 << 20,
            memory_source_bytes: 256 << 20,
            partial_cache_bytes: 128 << 20,
            partitions,
            query_memory_bytes: 2 << 30,
        }
    }
}

/// How many times its size as protobuf a result of a search takes in memory.
pub const MESSAGE_FORMS: usize = 2;

/// Rough size of a span in memory.
const SPAN_BYTES: usize = 400;

/// What live spans and split traces depend on: blocks, and generations with their versions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct SourceKey {
    tenant: TenantId,
    blocks: Vec<BlockId>,
    live: Vec<(BlockId, u64)>,
}

/// Traces in several places, by id, and the source that has them whole.
type Joined = Arc<(BTreeSet<u128>, Option<Arc<MemorySource>>)>;

/// Answers queries over the blocks of a store and the live spans of this process.
#[derive(Debug)]
pub struct Engine {
    core: Arc<Core>,
    memory: Arc<QueryMemory>,
    context: Arc<TaskContext>,
    settings: EngineSettings,
    log: Arc<QueryLog>,
}

/// What outlives a query.
#[derive(Debug)]
struct Core {
    store: Arc<dyn ObjectStore>,
    catalog: Arc<Catalog>,
    live: Arc<dyn LiveSpans>,
    blocks: Cache<BlockId, Arc<BlockReader>>,
    blooms: Cache<(BlockId, u32), Arc<BloomShard>>,
    ordered: Cache<(TenantId, BlockId, u64), Arc<MemorySource>>,
    block_splits: Cache<(TenantId, Vec<BlockId>), Arc<BTreeSet<u128>>>,
    joined: Cache<SourceKey, Joined>,
    partials: PartialCache,
    pool: Pool,
}

impl Engine {
    /// An engine over `store` and its `catalog`, with the `live` spans of this process.
    pub fn new(store: Arc<dyn ObjectStore>, catalog: Arc<Catalog>, live: Arc<dyn LiveSpans>, settings: EngineSettings) -> Self {
        let memory = Arc::new(QueryMemory::new(settings.query_memory_bytes));
        Self::with_memory(store, catalog, live, settings, (memory.clone(), memory))
    }

    /// The same whose queries take memory of a pool that is not that of [`memory`](Self::memory).
    fn with_memory(
        store: Arc<dyn ObjectStore>,
        catalog: Arc<Catalog>,
        live: Arc<dyn LiveSpans>,
        settings: EngineSettings,
        (memory, pool): (Arc<QueryMemory>, Pool),
    ) -> Self {
        let weight = |source: &Arc<MemorySource>| u32::try_from(source.spans().len() * SPAN_BYTES).unwrap_or(u32::MAX);
        let core = Core {
            store,
            catalog,
            live,
            blocks: Cache::builder()
                .weigher(|_, block: &Arc<BlockReader>| u32::try_from(block.memory_bytes()).unwrap_or(u32::MAX))
                .max_capacity(settings.block_cache_bytes)
                .build(),
            blooms: Cache::builder().weigher(|_, _| 128 << 10).max_capacity(settings.bloom_cache_bytes).build(),
            // The least recently used goes, never the newest: what was listed for a plan is asked for in a moment.
            ordered: Cache::builder()
                .weigher(move |_, source| weight(source))
                .max_capacity(settings.memory_source_bytes)
                .eviction_policy(EvictionPolicy::lru())
                .build(),
            block_splits: Cache::new(64),
            joined: Cache::builder()
                .weigher(move |_, joined: &Joined| joined.1.as_ref().map_or(64, weight))
                .max_capacity(settings.memory_source_bytes)
                .build(),
            partials: PartialCache::new(settings.partial_cache_bytes),
            pool: pool.clone(),
        };
        let runtime = RuntimeEnv { memory_pool: pool, ..RuntimeEnv::default() };
        let context = SessionContext::new_with_config_rt(SessionConfig::new(), Arc::new(runtime)).task_ctx();
        Self { core: Arc::new(core), memory, context, settings, log: Arc::default() }
    }

    /// The plan of a search and its sources. Errors: `Invalid` for a query that does not parse or validate.
    pub async fn plan_search(&self, tenant: &TenantId, request: &SearchRequest) -> Result<SearchPlan> {
        let query = traceql::parse(&request.query)?;
        let metrics = ScanMetrics::default();
        let sources = self.core.sources(tenant, request.window, &metrics).await?;
        let sources = Arc::new(SourceSet::opened(tenant.clone(), sources, self.core.clone()));
        lower_search(query, sources, request, self.settings.partitions)
    }

    /// Where plans run; for an answer in parts, at their pace.
    fn context_of<T>(&self, parts: Option<&Parts<T>>) -> Arc<TaskContext> {
        parts.map_or_else(|| self.context.clone(), |parts| parts.pace().within(&self.context))
    }

    /// Runs a search; tells `parts` of it, if there are some.
    async fn search_telling(&self, tenant: &TenantId, request: &SearchRequest, parts: Option<&Parts<SearchResult>>) -> Result<SearchResult> {
        let plan = self.plan_search(tenant, request).await?;
        let sources = plan.sources.sources().await?;
        let cost = || {
            let mut stats = plan.sources.metrics.snapshot().plus(&stats_of_plan(&plan.plan));
            add_blocks(&mut stats, sources);
            stats
        };
        let (mut whole, memory) = (Vec::new(), self.hold("results of a search"));
        let mut batches = pin!(plan.plan.execute(0, self.context_of(parts))?.peekable());
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            memory.grow(MESSAGE_FORMS * batch_bytes(&batch, true))?;
            let traces = search_results(&batch)?;
            if let Some(parts) = parts
                && !is_last(batches.as_mut())
            {
                let found = SearchResult { traces: traces.clone(), stats: cost(), ..SearchResult::default() };
                parts.tell(Part { found, row_groups: row_groups_of(sources) }).await;
            }
            whole.extend(traces);
        }
        Ok(SearchResult { traces: whole, stats: cost(), memory })
    }

    /// Shows what the engine counts in `registry`. Errors: `Internal` when it has that already.
    pub fn register(&self, registry: &Registry) -> Result<()> {
        self.core.partials.register(registry)
    }

    /// The memory of this process's queries.
    pub fn memory(&self) -> &Arc<QueryMemory> {
        &self.memory
    }

    /// The same as a pool, for what is not part of a plan.
    pub fn pool(&self) -> &Pool {
        &self.core.pool
    }

    /// DataFusion's surroundings of this process's plans: its memory is [`memory`](Self::memory).
    pub fn runtime(&self) -> Arc<RuntimeEnv> {
        self.context.runtime_env()
    }

    /// What ran lately.
    pub fn query_log(&self) -> &Arc<QueryLog> {
        &self.log
    }

    /// Opens the newest blocks of all tenants, as many as half the cache of opened blocks takes, and of tenants of which that is all,
    /// brings together the traces that lie in several of them: so that the first query finds that done. What fails is left to the query that needs it.
    pub async fn warm(&self) {
        let opened = self.open_newest().await;
        for tenant in self.core.catalog.tenants() {
            let blocks = self.core.catalog.snapshot(&tenant);
            if !blocks.blocklist.live().iter().all(|meta| opened.contains(&meta.id)) {
                continue;
            }
            if let Err(error) = self.core.sources(&tenant, None, &ScanMetrics::default()).await {
                tracing::warn!(%tenant, %error, "traces in several blocks could not be brought together ahead of queries");
            }
        }
    }

    async fn open_newest(&self) -> HashSet<BlockId> {
        let catalog = &self.core.catalog;
        let of_tenant = |tenant: TenantId| catalog.snapshot(&tenant).blocklist.live().to_vec();
        let mut metas: Vec<Arc<BlockMeta>> = catalog.tenants().into_iter().flat_map(of_tenant).collect();
        metas.sort_by_key(|meta| Reverse(meta.max_end_unix_nano));
        let (mut bytes, mut opened) = (0, HashSet::new());
        for meta in metas {
            match self.core.open(&meta).await {
                Ok(block) => {
                    bytes += block.memory_bytes() as u64;
                    opened.insert(meta.id);
                }
                Err(error) => tracing::warn!(block = %meta.id, tenant = %meta.tenant, %error, "a block could not be opened ahead of queries"),
            }
            if bytes >= self.settings.block_cache_bytes / 2 {
                break;
            }
        }
        tracing::debug!(opened = opened.len(), bytes, "blocks opened ahead of queries");
        opened
    }

    /// Opens sources by name, for plans that come from elsewhere.
    pub fn resolver(&self) -> Arc<dyn SourceResolver> {
        self.core.clone()
    }

    /// A reservation in the memory of queries, empty yet.
    pub fn hold(&self, what: &str) -> Reservation {
        Reservation::new(what, &self.core.pool)
    }

    /// Runs a plan to its end. Dropping the future stops it. Errors: as the nodes'.
    pub async fn execute(&self, plan: &Arc<dyn ExecutionPlan>) -> Result<Vec<arrow::record_batch::RecordBatch>> {
        let stream = plan.execute(0, self.context.clone())?;
        Ok(stream.try_collect().await?)
    }
}

impl Core {
    async fn open(&self, meta: &Arc<BlockMeta>) -> Result<Arc<BlockReader>> {
        if let Some(block) = self.blocks.get(&meta.id) {
            return Ok(block);
        }
        let block = Arc::new(BlockReader::open(self.store.clone(), meta.clone()).await?);
        self.blocks.insert(meta.id, block.clone());
        Ok(block)
    }

    async fn open_all(&self, metas: &[Arc<BlockMeta>]) -> Result<Vec<Arc<BlockReader>>> {
        let mut blocks = Vec::with_capacity(metas.len());
        for some in metas.chunks(OPENS_AT_ONCE) {
            let opening: Vec<_> = some.iter().map(|meta| self.open(meta)).collect();
            blocks.extend(try_join_all(opening).await?);
        }
        Ok(blocks)
    }

    /// The blocks whose filter does not rule the trace out.
    async fn candidates(&self, metas: &[Arc<BlockMeta>], id: TraceId, metrics: &ScanMetrics) -> Result<Vec<Arc<BlockMeta>>> {
        let mut candidates = Vec::new();
        for some in metas.chunks(OPENS_AT_ONCE) {
            let asking: Vec<_> = some.iter().map(|meta| self.may_hold(meta, id, metrics)).collect();
            let answers = try_join_all(asking).await?;
            candidates.extend(some.iter().zip(answers).filter(|(_, may)| *may).map(|(meta, _)| meta.clone()));
        }
        Ok(candidates)
    }

    fn order(&self, tenant: &TenantId, generation: &LiveGeneration) -> Arc<MemorySource> {
        let key = (tenant.clone(), generation.block, generation.set.version);
        self.ordered.get_with(key, || Arc::new(MemorySource::new(generation.set.clone())))
    }

    /// Live spans first, then the blocks that are not among them: in this order nothing is missed and nothing is seen twice.
    fn snapshot(&self, tenant: &TenantId, window: Option<Window>) -> (Vec<LiveGeneration>, Vec<Arc<BlockMeta>>) {
        let live: Vec<LiveGeneration> = self.live.live(tenant).into_iter().filter(|generation| !generation.set.is_empty()).collect();
        let blocks = self.catalog.snapshot(tenant);
        let is_live = |id: BlockId| live.iter().any(|generation| generation.block == id);
        let blocks = blocks.blocklist.overlapping(window).filter(|meta| !is_live(meta.id)).cloned().collect();
        (live, blocks)
    }

    /// All sources of a tenant, opened; the joined one last, if there is one.
    async fn sources(&self, tenant: &TenantId, window: Option<Window>, metrics: &ScanMetrics) -> Result<Vec<(SourceName, SourceRef)>> {
        let (live, metas) = self.snapshot(tenant, widened(window));
        let blocks = self.open_all(&metas).await?;
        let mut sources: Vec<(SourceName, SourceRef)> = Vec::with_capacity(live.len() + blocks.len() + 1);
        for generation in &live {
            sources.push((SourceName::Live { id: generation.block, at: None }, self.order(tenant, generation)));
        }
        for block in blocks {
            sources.push((SourceName::Block { id: block.meta().id }, block));
        }
        let key = SourceKey {
            tenant: tenant.clone(),
            blocks: metas.iter().map(|meta| meta.id).collect(),
            live: live.iter().map(|generation| (generation.block, generation.set.version)).collect(),
        };
        let joined = self.joined(key, live.len(), &sources, metrics).await?;
        if let Some(source) = &joined.1 {
            let traces = joined.0.iter().map(|id| TraceId(id.to_be_bytes())).collect();
            sources.push((SourceName::Joined { traces }, source.clone()));
        }
        Ok(sources)
    }

    async fn joined(&self, key: SourceKey, live: usize, sources: &[(SourceName, SourceRef)], metrics: &ScanMetrics) -> Result<Joined> {
        if let Some(joined) = self.joined.get(&key) {
            return Ok(joined);
        }
        let lists: Vec<&[u128]> = sources.iter().map(|(_, source)| source.traces().ids()).collect();
        let split = self.split(&key, live, &lists);
        let source = if split.is_empty() {
            None
        } else {
            let sources: Vec<SourceRef> = sources.iter().map(|(_, source)| source.clone()).collect();
            Some(join_traces(&split, &sources, metrics, &self.pool).await?)
        };
        Ok(self.keep_joined(key, split, source))
    }

    /// Puts split traces into the cache. What the query holds is in the pool until it ends, what the cache holds is bounded by the cache.
    fn keep_joined(&self, key: SourceKey, split: BTreeSet<u128>, source: Option<Arc<MemorySource>>) -> Joined {
        let cached = source.as_ref().map(|source| Arc::new(source.for_cache()));
        self.joined.insert(key, Arc::new((split.clone(), cached)));
        Arc::new((split, source))
    }

    /// The ids in more than one of `lists`, of which the first `live` are of live spans, the others of the blocks of `key`.
    fn split(&self, key: &SourceKey, live: usize, lists: &[&[u128]]) -> BTreeSet<u128> {
        let of_blocks = self.block_splits.get_with((key.tenant.clone(), key.blocks.clone()), || Arc::new(split_ids(&lists[live..])));
        let mut split = BTreeSet::clone(&of_blocks);
        for at in 0..live {
            lists[at + 1..].iter().for_each(|other| common(lists[at], other, &mut split));
        }
        split
    }

    /// False when the block certainly lacks the trace.
    async fn may_hold(&self, meta: &BlockMeta, id: TraceId, metrics: &ScanMetrics) -> Result<bool> {
        if meta.bloom_shards == 0 {
            return Ok(true);
        }
        let shard = shard_of(id, meta.bloom_shards as usize) as u32;
        if let Some(bloom) = self.blooms.get(&(meta.id, shard)) {
            return Ok(bloom.may_contain(id));
        }
        let path = meta.object_path(&bloom_name(shard));
        let bytes = self.store.get(&path).await?.bytes().await?;
        metrics.read(bytes.len() as u64);
        let bloom = Arc::new(BloomShard::parse(&bytes).map_err(|e| e.context(path))?);
        self.blooms.insert((meta.id, shard), bloom.clone());
        Ok(bloom.may_contain(id))
    }

    /// The sources that hold spans of a trace.
    async fn sources_of_trace(&self, tenant: &TenantId, id: TraceId, window: Option<Window>, metrics: &ScanMetrics) -> Result<Vec<SourceRef>> {
        let (live, metas) = self.snapshot(tenant, window);
        let mut sources: Vec<SourceRef> = Vec::new();
        for generation in &live {
            sources.extend(live_trace(&generation.set, id, &self.pool)?.map(|source| source as SourceRef));
        }
        let number = u128::from_be_bytes(id.0);
        for meta in self.candidates(&metas, id, metrics).await? {
            let block = self.open(&meta).await?;
            if block.index().traces.rows_of(number).is_some() {
                sources.push(block);
            }
        }
        Ok(sources)
    }
}

/// The window in which other spans of the traces of `window` are looked for.
fn widened(window: Option<Window>) -> Option<Window> {
    window.map(|window| Window {
        start_seconds: window.start_seconds.saturating_sub(SPLIT_SLACK_SECONDS),
        end_seconds: window.end_seconds.saturating_add(SPLIT_SLACK_SECONDS),
    })
}

/// The spans of one trace in a live set, as a source of their own: the whole set is not ordered for it.
/// Errors: `Exhausted`.
fn live_trace(set: &SpanSet, id: TraceId, pool: &Pool) -> Result<Option<Arc<MemorySource>>> {
    let Some(set) = set.only_trace(id) else { return Ok(None) };
    let memory = Reservation::new("the live spans of a trace", pool);
    memory.grow(set.len() * SPAN_BYTES)?;
    Ok(Some(Arc::new(MemorySource::new(set).holding(memory))))
}

#[async_trait]
impl SourceResolver for Core {
    async fn resolve(&self, tenant: &TenantId, names: &[SourceName]) -> Result<Vec<SourceRef>> {
        let live = self.live.live(tenant);
        let blocks = self.catalog.snapshot(tenant);
        let mut sources: Vec<SourceRef> = Vec::with_capacity(names.len());
        for name in names {
            match name {
                SourceName::Live { id, at: Some(LiveAt { version, .. }) } => sources.push(self.listed(tenant, &live, *id, *version)?),
                SourceName::Block { id } | SourceName::Live { id, at: None } => {
                    let generation = live.iter().find(|generation| generation.block == *id);
                    match (generation, blocks.blocklist.known().find(|meta| meta.id == *id)) {
                        (Some(generation), _) if matches!(name, SourceName::Live { .. }) => sources.push(self.order(tenant, generation)),
                        (_, Some(meta)) => sources.push(self.open(meta).await?),
                        _ => sources.push(self.open(&self.meta_in_store(tenant, *id).await?).await?),
                    }
                }
                SourceName::Joined { traces } => {
                    let ids = traces.iter().map(|id| u128::from_be_bytes(id.0)).collect();
                    sources.push(join_traces(&ids, &sources, &ScanMetrics::default(), &self.pool).await?);
                }
            }
        }
        Ok(sources)
    }

    fn partial_cache(&self) -> Option<&PartialCache> {
        Some(&self.partials)
    }
}

#[async_trait]
impl SqlService for Engine {
    async fn prepare(&self, tenant: &TenantId, text: &str) -> Result<SqlStatement> {
        let opening = ScanMetrics::default();
        let sources = self.core.sources(tenant, None, &opening).await?;
        let sources = Arc::new(SourceSet::opened(tenant.clone(), sources, self.core.clone()));
        let (runtime, partitions) = (self.context.runtime_env(), self.settings.partitions);
        let parts = SessionParts { sources, runtime, partitions, distribution: None, log: self.log.clone() };
        SqlStatement::prepare(tenant, parts, text).await
    }

    async fn tail(&self, tenant: &TenantId, request: TailRequest) -> Result<Tail> {
        Tail::open(self, tenant, request, self.settings.partitions).await
    }

    async fn tail_pass(&self, tail: Tail) -> Result<(Tail, TailPass)> {
        tail.pass(SqlLimits::default()).await
    }
}

#[async_trait]
impl QueryService for Engine {
    async fn trace_by_id(&self, tenant: &TenantId, request: TraceRequest) -> Result<TraceResult> {
        let metrics = ScanMetrics::default();
        let sources = self.core.sources_of_trace(tenant, request.id, request.window, &metrics).await?;
        trace_in(&sources, &request, &metrics, &self.core.pool).await
    }

    async fn search(&self, tenant: &TenantId, request: SearchRequest) -> Result<SearchResult> {
        self.search_noted(tenant, &request, None).await
    }

    async fn search_in_parts(&self, tenant: &TenantId, request: SearchRequest, parts: Parts<SearchResult>) -> Result<SearchResult> {
        self.search_noted(tenant, &request, Some(&parts)).await
    }

    /// What is looked for, as the optimiser decided it, then how: the second part has the counts after `analyze`.
    async fn explain_search(&self, tenant: &TenantId, request: SearchRequest, analyze: bool) -> Result<String> {
        let SearchPlan { logical, plan, .. } = self.plan_search(tenant, &request).await?;
        let logical = logical.display_indent();
        if !analyze {
            return Ok(format!("{logical}\n\n{}", DisplayableExecutionPlan::new(&*plan).indent(true)));
        }
        self.execute(&plan).await?;
        Ok(format!("{logical}\n\n{}", DisplayableExecutionPlan::with_metrics(&*plan).indent(true)))
    }

    async fn metrics(&self, tenant: &TenantId, request: MetricsRequest) -> Result<MetricsResult> {
        self.metrics_noted(tenant, &request, None).await
    }

    async fn metrics_in_parts(&self, tenant: &TenantId, request: MetricsRequest, parts: Parts<MetricsResult>) -> Result<MetricsResult> {
        self.metrics_noted(tenant, &request, Some(&parts)).await
    }

    async fn tag_names(&self, tenant: &TenantId, request: TagNamesRequest) -> Result<TagNames> {
        self.names_telling(tenant, &request, None).await
    }

    async fn tag_names_in_parts(&self, tenant: &TenantId, request: TagNamesRequest, parts: Parts<TagNames>) -> Result<TagNames> {
        self.names_telling(tenant, &request, Some(&parts)).await
    }

    async fn tag_values(&self, tenant: &TenantId, request: TagValuesRequest) -> Result<TagValues> {
        self.values_telling(tenant, &request, None).await
    }

    async fn tag_values_in_parts(&self, tenant: &TenantId, request: TagValuesRequest, parts: Parts<TagValues>) -> Result<TagValues> {
        self.values_telling(tenant, &request, Some(&parts)).await
    }
}

impl Engine {
    async fn search_noted(&self, tenant: &TenantId, request: &SearchRequest, parts: Option<&Parts<SearchResult>>) -> Result<SearchResult> {
        let running = self.log.begin(tenant, Language::Traceql, &request.query);
        let result = self.search_telling(tenant, request, parts).await;
        running.end_with(&result, |found| (found.traces.len(), found.stats));
        result
    }

    async fn metrics_noted(&self, tenant: &TenantId, request: &MetricsRequest, parts: Option<&Parts<MetricsResult>>) -> Result<MetricsResult> {
        let running = self.log.begin(tenant, Language::Traceql, &request.query);
        let result = self.metrics_telling(tenant, request, parts).await;
        running.end_with(&result, |found| (found.series.len(), found.stats));
        result
    }

    async fn metrics_telling(&self, tenant: &TenantId, request: &MetricsRequest, parts: Option<&Parts<MetricsResult>>) -> Result<MetricsResult> {
        let opening = ScanMetrics::default();
        let sources = self.core.sources(tenant, Some(request.intervals.window()), &opening).await?;
        let sources = Arc::new(SourceSet::opened(tenant.clone(), sources, self.core.clone()));
        let FoundSeries { series, truncated, stats } = metrics_over(sources, request, parts, self.settings.partitions, &self.context).await?;
        let series = series.into_iter().map(|series| to_proto(series, &request.intervals)).collect();
        Ok(MetricsResult { series, truncated, stats: stats.plus(&opening.snapshot()) })
    }

    async fn names_telling(&self, tenant: &TenantId, request: &TagNamesRequest, parts: Option<&Parts<TagNames>>) -> Result<TagNames> {
        let sources = self.plain_sources(tenant, request.window).await?;
        self.names_in(&sources, request, &ScanMetrics::default(), parts).await
    }

    async fn values_telling(&self, tenant: &TenantId, request: &TagValuesRequest, parts: Option<&Parts<TagValues>>) -> Result<TagValues> {
        traceql::parse_identifier(&request.tag)?;
        let sources = self.plain_sources(tenant, request.window).await?;
        self.values_in(&sources, request, &ScanMetrics::default(), parts).await
    }

    async fn names_in(
        &self,
        sources: &[SourceRef],
        request: &TagNamesRequest,
        metrics: &ScanMetrics,
        parts: Option<&Parts<TagNames>>,
    ) -> Result<TagNames> {
        let filter = request.filter.as_deref().and_then(traceql::tag_filter).filter(|filter| !tags::is_trivial(filter));
        let mut names = match filter {
            Some(filter) => {
                let mut telling = parts.map(|parts| told::ToldNames::new(parts, request.scope, sources, metrics));
                tags::names_where(sources, &filter, request.window, (metrics, &self.core.pool), &mut told::telling(&mut telling)).await?
            }
            None => tags::all_names(sources),
        };
        if !sources.is_empty() {
            names.entry(TagScope::Resource).or_default().insert("service.name".to_owned());
        }
        if let Some(scope) = request.scope {
            names.retain(|&other, _| other == scope);
        }
        let scopes = names.into_iter().map(|(scope, names)| (scope, names.into_iter().collect())).collect();
        Ok(TagNames { scopes, stats: cost_of_tags(sources, metrics) })
    }

    async fn values_in(
        &self,
        sources: &[SourceRef],
        request: &TagValuesRequest,
        metrics: &ScanMetrics,
        parts: Option<&Parts<TagValues>>,
    ) -> Result<TagValues> {
        let field = traceql::parse_identifier(&request.tag)?;
        let filter = request.filter.as_deref().and_then(traceql::tag_filter).filter(|filter| !tags::is_trivial(filter));
        let mut telling = parts.map(|parts| told::ToldValues::new(parts, sources, metrics));
        let values =
            tags::values_of(sources, &field, filter.as_ref(), request.window, (metrics, &self.core.pool), &mut told::telling(&mut telling)).await?;
        Ok(TagValues { values, stats: cost_of_tags(sources, metrics) })
    }

    /// Sources as they are: what is said of single spans needs no trace to be whole.
    async fn plain_sources(&self, tenant: &TenantId, window: Option<Window>) -> Result<Vec<SourceRef>> {
        let (live, metas) = self.core.snapshot(tenant, window);
        let mut sources: Vec<SourceRef> = live.iter().map(|generation| self.core.order(tenant, generation) as SourceRef).collect();
        sources.extend(self.core.open_all(&metas).await?.into_iter().map(|block| block as SourceRef));
        Ok(sources)
    }
}

fn cost_of_tags(sources: &[SourceRef], metrics: &ScanMetrics) -> ScanStats {
    let mut stats = metrics.snapshot();
    add_blocks(&mut stats, sources);
    stats
}

pub(crate) fn add_blocks(stats: &mut ScanStats, sources: &[SourceRef]) {
    let blocks = sources.iter().map(|source| source.data_bytes()).filter(|&bytes| bytes > 0);
    (stats.blocks, stats.block_bytes) = blocks.fold((0, 0), |(count, sum), bytes| (count + 1, sum + bytes));
}

#[cfg(test)]
mod tests;
