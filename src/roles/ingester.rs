//! The ingester and the engine over it: the log, live traces, flushing, and the queries that see live spans and blocks as one.

use std::sync::Arc;

use async_trait::async_trait;
use skein_engine::{
    compact::{BlockMerger, Merger},
    error::{Error, Result},
    exec::engine::{Engine, EngineSettings},
    parts::Parts,
    query::{
        MetricsRequest, MetricsResult, QueryService, SearchRequest, SearchResult, TagNames, TagNamesRequest, TagValues, TagValuesRequest,
        TraceRequest, TraceResult,
    },
    sql::{SqlService, SqlStatement, Tail, TailPass, TailRequest},
    stop::Stop,
    tenant::TenantId,
};
use skein_ingest::{
    identity::log_id,
    ingester::{Ingester as SpanIngester, IngesterHandle, IngesterSettings},
    ingester_metrics::IngesterMetrics,
    metrics::Metrics,
    sink::TraceSink,
    wal::{SegmentId, Wal, WalSettings},
};
use tokio::{runtime::Handle, task::JoinSet};

use super::{Shared, Task, memory, overrides::Overrides, storage::Storage};

/// What the process needs of the ingester besides spans going in.
#[async_trait]
pub trait Lifecycle: Send + Sync + 'static {
    /// Cuts and writes what is live, of one tenant or of all; returns when the blocks are durable and queryable.
    /// Errors: `NotFound` for a tenant that nothing is known of.
    async fn flush(&self, tenant: Option<TenantId>) -> Result<()>;

    /// Takes no spans any more and ends. With `flush_all` everything live is written to blocks first, else it stays in the log.
    async fn stop(&self, flush_all: bool) -> Result<()>;
}

/// The parts that the other roles are joined to.
pub struct Ingester {
    /// Takes requests.
    pub sink: Arc<dyn TraceSink>,
    /// Answers questions over live spans and blocks.
    pub queries: Arc<dyn QueryService>,
    /// Runs SQL over the same.
    pub sql: Arc<dyn SqlService>,
    /// Merges blocks.
    pub merger: Arc<dyn Merger>,
    /// Flushes and ends.
    pub lifecycle: Arc<dyn Lifecycle>,
    /// Cuts by age.
    pub cutting: Task,
}

/// Opens the log, brings back what no block holds, and puts the engine over both.
/// Errors: `Unavailable` when the log's folder cannot be used.
pub async fn open(shared: &Shared, storage: &Storage, metrics: Arc<Metrics>) -> Result<Ingester> {
    let (wal, segments, id) = open_log(shared, &metrics).await?;
    let ingester = Arc::new(SpanIngester::new(
        Arc::new(wal),
        storage.store.clone(),
        storage.catalog.clone(),
        shared.clock.clone(),
        ingester_settings(shared, id),
        IngesterMetrics::new(&shared.registry)?,
        metrics,
    ));
    let replayed = ingester.replay(segments).await?;
    tracing::info!(?replayed, "log replayed");
    let handle = IngesterHandle(ingester.clone());
    let engine = Engine::new(storage.store.clone(), storage.catalog.clone(), Arc::new(handle.clone()), engine_settings(shared));
    engine.register(&shared.registry)?;
    engine.memory().register(&shared.registry)?;
    let engine = Arc::new(engine);
    shared.query.spawn({
        let engine = engine.clone();
        async move { engine.warm().await }
    });
    let cutting = Task::spawn_watching("cutting", &Handle::current(), {
        let ingester = ingester.clone();
        |stop| async move {
            ingester.run(stop).await;
            Ok(())
        }
    });
    let queries = Arc::new(OnQueryThreads { engine, threads: shared.query.clone(), overrides: shared.overrides.clone() });
    Ok(Ingester {
        sink: Arc::new(handle.clone()),
        sql: queries.clone(),
        queries,
        merger: Arc::new(BlockMerger::new(storage.store.clone())),
        lifecycle: Arc::new(IngesterLifecycle { ingester, storage_tenants: storage.catalog.clone() }),
        cutting,
    })
}

async fn open_log(shared: &Shared, metrics: &Metrics) -> Result<(Wal, Vec<SegmentId>, String)> {
    let section = &shared.settings.storage.trace.wal;
    let settings = WalSettings { sync: section.sync, ..WalSettings::new(&section.path) };
    let metrics = metrics.wal.clone();
    let open = move || {
        let id = log_id(&settings.dir)?;
        Wal::open(settings, metrics).map(|(wal, segments)| (wal, segments, id))
    };
    tokio::task::spawn_blocking(open).await.map_err(|e| Error::internal("opening the log").with_source(e))?
}

fn ingester_settings(shared: &Shared, id: String) -> IngesterSettings {
    let section = &shared.settings.ingester;
    IngesterSettings {
        id,
        max_block_duration: section.max_block_duration,
        max_block_bytes: section.max_block_bytes,
        flush_check_period: section.flush_check_period,
        ..IngesterSettings::default()
    }
}

fn engine_settings(shared: &Shared) -> EngineSettings {
    let settings = &shared.settings.query_frontend;
    EngineSettings {
        query_memory_bytes: memory::query_bytes(settings.max_memory_bytes),
        partial_cache_bytes: settings.metrics.partial_cache_bytes,
        ..EngineSettings::default()
    }
}

/// Runs queries on the query threads, so that they never hold up the network's. Dropping an answer's future stops the work.
struct OnQueryThreads {
    engine: Arc<Engine>,
    threads: Handle,
    overrides: Arc<Overrides>,
}

impl OnQueryThreads {
    async fn run<T: Send + 'static>(&self, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        let stop = Stop::default();
        let _waiting = stop.on_drop();
        let mut task = JoinSet::new();
        task.spawn_on(stop.scope(work), &self.threads);
        match task.join_next().await {
            Some(Ok(result)) => result,
            Some(Err(error)) => Err(Error::internal("running a query").with_source(error)),
            None => Err(Error::internal("a query vanished")),
        }
    }
}

#[async_trait]
impl QueryService for OnQueryThreads {
    async fn trace_by_id(&self, tenant: &TenantId, request: TraceRequest) -> Result<TraceResult> {
        let (engine, tenant) = (self.engine.clone(), tenant.clone());
        self.run(async move { engine.trace_by_id(&tenant, request).await }).await
    }

    async fn search(&self, tenant: &TenantId, request: SearchRequest) -> Result<SearchResult> {
        let (engine, tenant) = (self.engine.clone(), tenant.clone());
        self.run(async move { engine.search(&tenant, request).await }).await
    }

    async fn explain_search(&self, tenant: &TenantId, request: SearchRequest, analyze: bool) -> Result<String> {
        let (engine, tenant) = (self.engine.clone(), tenant.clone());
        self.run(async move { engine.explain_search(&tenant, request, analyze).await }).await
    }

    async fn metrics(&self, tenant: &TenantId, request: MetricsRequest) -> Result<MetricsResult> {
        let (engine, tenant) = (self.engine.clone(), tenant.clone());
        self.run(async move { engine.metrics(&tenant, request).await }).await
    }

    async fn tag_names(&self, tenant: &TenantId, request: TagNamesRequest) -> Result<TagNames> {
        let (engine, tenant) = (self.engine.clone(), tenant.clone());
        self.run(async move { engine.tag_names(&tenant, request).await }).await
    }

    async fn tag_values(&self, tenant: &TenantId, request: TagValuesRequest) -> Result<TagValues> {
        let (engine, tenant) = (self.engine.clone(), tenant.clone());
        self.run(async move { engine.tag_values(&tenant, request).await }).await
    }

    async fn search_in_parts(&self, tenant: &TenantId, request: SearchRequest, parts: Parts<SearchResult>) -> Result<SearchResult> {
        let (engine, tenant) = (self.engine.clone(), tenant.clone());
        self.run(async move { engine.search_in_parts(&tenant, request, parts).await }).await
    }

    async fn metrics_in_parts(&self, tenant: &TenantId, request: MetricsRequest, parts: Parts<MetricsResult>) -> Result<MetricsResult> {
        let (engine, tenant) = (self.engine.clone(), tenant.clone());
        self.run(async move { engine.metrics_in_parts(&tenant, request, parts).await }).await
    }

    async fn tag_names_in_parts(&self, tenant: &TenantId, request: TagNamesRequest, parts: Parts<TagNames>) -> Result<TagNames> {
        let (engine, tenant) = (self.engine.clone(), tenant.clone());
        self.run(async move { engine.tag_names_in_parts(&tenant, request, parts).await }).await
    }

    async fn tag_values_in_parts(&self, tenant: &TenantId, request: TagValuesRequest, parts: Parts<TagValues>) -> Result<TagValues> {
        let (engine, tenant) = (self.engine.clone(), tenant.clone());
        self.run(async move { engine.tag_values_in_parts(&tenant, request, parts).await }).await
    }
}

#[async_trait]
impl SqlService for OnQueryThreads {
    async fn prepare(&self, tenant: &TenantId, text: &str) -> Result<SqlStatement> {
        let limits = self.overrides.limits(tenant).sql_limits();
        let (engine, tenant, text) = (self.engine.clone(), tenant.clone(), text.to_owned());
        let statement = limits.within_time(self.run(async move { engine.prepare(&tenant, &text).await })).await?;
        Ok(statement.on(self.threads.clone()).within(limits))
    }

    async fn tail(&self, tenant: &TenantId, request: TailRequest) -> Result<Tail> {
        let limits = self.overrides.limits(tenant).sql_limits();
        let (engine, tenant) = (self.engine.clone(), tenant.clone());
        limits.within_time(self.run(async move { engine.tail(&tenant, request).await })).await
    }

    async fn tail_pass(&self, tail: Tail) -> Result<(Tail, TailPass)> {
        let limits = self.overrides.limits(tail.tenant()).sql_limits();
        limits.within_time(self.run(async move { tail.pass(limits).await })).await
    }
}

struct IngesterLifecycle {
    ingester: Arc<SpanIngester>,
    storage_tenants: Arc<skein_engine::catalog::Catalog>,
}

#[async_trait]
impl Lifecycle for IngesterLifecycle {
    async fn flush(&self, tenant: Option<TenantId>) -> Result<()> {
        match &tenant {
            // Nothing of it is live, but it is no stranger.
            Some(tenant) if !self.ingester.knows(tenant) && self.storage_tenants.tenants().contains(tenant) => Ok(()),
            tenant => self.ingester.flush(tenant.as_ref()).await,
        }
    }

    async fn stop(&self, flush_all: bool) -> Result<()> {
        self.ingester.stop(flush_all).await
    }
}
