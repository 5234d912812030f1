//! A coordinator and three workers over real sockets, each worker with live spans of its own, all over one store: the answers are those of
//! one process with the same spans, every row arrives once, errors name their worker, and a query that is dropped leaves nothing running.
//! `metrics` has what concerns TraceQL metrics alone, `sql` what concerns SQL.

mod metrics;
mod sql;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use datafusion::{
    arrow::{
        array::{AsArray, RecordBatch},
        compute::SortOptions,
        datatypes::Int64Type,
    },
    functions_aggregate::count::count_udaf,
    physical_expr::{LexOrdering, Partitioning, PhysicalExpr, PhysicalSortExpr, aggregate::AggregateExprBuilder, expressions},
    physical_plan::{
        ExecutionPlan,
        aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy},
        coalesce_partitions::CoalescePartitionsExec,
        displayable,
        limit::GlobalLimitExec,
        repartition::RepartitionExec,
        sorts::{sort::SortExec, sort_preserving_merge::SortPreservingMergeExec},
        union::UnionExec,
    },
};
use futures::stream::BoxStream;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    memory::InMemory, path::Path,
};
use prometheus::Registry;
use prost::Message;
use skein_engine::{
    block::{put::put_block, writer::write_block},
    catalog::{
        BlockMeta, Catalog, CatalogMetrics,
        meta::{mark_compacted, write_meta},
    },
    error::{ErrorKind, Result},
    exec::{
        engine::{Engine, EngineSettings},
        live::{LiveGeneration, LiveSpans},
        sources::{SourceName, SourceSet},
    },
    metrics::intervals::Intervals,
    parts::Parts,
    plan::spanset_scan::{ScanLimits, SpansetScanExec},
    query::{
        MetricsRequest, MetricsResult, QueryService, SearchRequest, SearchResult, TagNames, TagNamesRequest, TagValues, TagValuesRequest,
        TraceRequest, TraceResult, Window,
    },
    spans::{
        BlockId, TraceId,
        builder::SpanBuilder,
        gather::OrderedSpans,
        schema::{ColumnPolicy, SpanSchema},
        set::SpanSet,
        tree::order_spans,
    },
    store::{MeteredStore, StoreMetrics},
    tenant::TenantId,
    traceql::{self, QueryBody},
};
use skein_flight::{
    coordinator::Coordinator,
    metrics::{CoordinatorMetrics, WorkerMetrics},
    peers::Peers,
    ticket::IDS_PER_MESSAGE,
    worker::WorkerNode,
};
use skein_proto::{
    otlp::{
        common::v1::{AnyValue, KeyValue, any_value::Value},
        resource::v1::Resource,
        trace::v1::{ResourceSpans, ScopeSpans, Span, Status, TracesData},
    },
    tempo::{TimeSeries, TraceSearchMetadata},
};
use tokio::{net::TcpListener, runtime::Runtime};

/// A deadline for what must happen soon.
const SOON: Duration = Duration::from_secs(30);
const SECOND: u64 = 1_000_000_000;

/// Live spans that a test can change.
#[derive(Debug, Default)]
pub struct TestLive(Mutex<Vec<LiveGeneration>>);

impl TestLive {
    fn new(sets: impl IntoIterator<Item = SpanSet>) -> Arc<Self> {
        let generations = sets.into_iter().map(|set| LiveGeneration { block: BlockId::random(), set });
        Arc::new(Self(Mutex::new(generations.collect())))
    }

    fn replace(&self, generations: Vec<LiveGeneration>) {
        *self.0.lock().unwrap() = generations;
    }
}

impl LiveSpans for TestLive {
    fn live(&self, _: &TenantId) -> Vec<LiveGeneration> {
        self.0.lock().unwrap().clone()
    }

    fn tenants(&self) -> Vec<TenantId> {
        vec![TenantId::single()]
    }
}

/// A worker on a runtime of its own, so that it can die with all its connections.
struct Node {
    url: Arc<str>,
    live: Arc<TestLive>,
    catalog: Arc<Catalog>,
    registry: Registry,
    reads: StoreMetrics,
    runtime: Option<Runtime>,
}

impl Node {
    /// How often it was asked for spans.
    fn fetches(&self) -> u64 {
        let families = self.registry.gather();
        let answers = families.iter().filter(|family| family.name() == "skein_worker_live_answers_total");
        let of_traces = |metric: &&prometheus::proto::Metric| metric.get_label().iter().any(|label| label.value() == "skein.traces");
        let metrics = answers.flat_map(|family| family.get_metric());
        metrics.filter(of_traces).map(|metric| metric.get_counter().get_value() as u64).sum()
    }

    fn die(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.die();
    }
}

/// A coordinator and its workers. Answers queries as one process does, on the runtime on which it was started.
pub struct TestCluster {
    coordinator: Arc<Coordinator>,
    catalog: Arc<Catalog>,
    nodes: Vec<Node>,
    store: Arc<dyn ObjectStore>,
    /// What the coordinator reads.
    reads: StoreMetrics,
}

fn catalog() -> Arc<Catalog> {
    Arc::new(Catalog::new(CatalogMetrics::new(&Registry::new()).unwrap()))
}

/// `store`, and what is read through it.
fn metered(store: &Arc<dyn ObjectStore>) -> (Arc<dyn ObjectStore>, StoreMetrics) {
    let metrics = StoreMetrics::new(&Registry::new()).unwrap();
    (Arc::new(MeteredStore::local(store.clone(), metrics.clone())), metrics)
}

fn settings() -> EngineSettings {
    EngineSettings { partitions: 2, ..EngineSettings::default() }
}

/// Writes a block with its meta and adds it to `catalogs`.
async fn add_block(store: &dyn ObjectStore, id: BlockId, set: SpanSet, catalogs: &[Arc<Catalog>]) -> BlockMeta {
    add_block_for(store, id, set, Vec::new(), catalogs).await
}

/// The same for a block that replaces others.
async fn add_block_for(store: &dyn ObjectStore, id: BlockId, set: SpanSet, replaces: Vec<BlockId>, catalogs: &[Arc<Catalog>]) -> BlockMeta {
    let order = order_spans(&set);
    let schema = SpanSchema::of(&set, ColumnPolicy::BLOCK);
    let objects = write_block(&OrderedSpans::new(set, order, schema)).unwrap();
    let mut meta = put_block(store, &TenantId::single(), id, objects).await.unwrap();
    meta.replaces = replaces;
    write_meta(store, &meta).await.unwrap();
    catalogs.iter().for_each(|catalog| catalog.add_block(meta.clone()));
    meta
}

impl TestCluster {
    /// A cluster of a worker for each of `live`, with these live spans, over a store with `blocks`. All is of the single tenant.
    pub async fn start(live: Vec<SpanSet>, blocks: Vec<SpanSet>) -> Arc<Self> {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        Arc::new(Self::over(store.clone(), store, settings(), live.into_iter().map(|set| vec![set]).collect(), blocks).await)
    }

    /// The same with any number of generations a worker. Workers read through `worker_store`.
    async fn over(
        store: Arc<dyn ObjectStore>,
        worker_store: Arc<dyn ObjectStore>,
        settings: EngineSettings,
        live: Vec<Vec<SpanSet>>,
        blocks: Vec<SpanSet>,
    ) -> Self {
        let mut listeners = Vec::new();
        for _ in &live {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap().into_std().unwrap());
        }
        let urls: Vec<Arc<str>> = listeners.iter().map(|listener| format!("http://{}", listener.local_addr().unwrap()).into()).collect();
        let workers = Arc::new(urls.clone());
        let nodes: Vec<Node> = listeners
            .into_iter()
            .zip(&urls)
            .zip(live)
            .map(|((listener, url), sets)| {
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
                let (live, catalog) = (TestLive::new(sets), catalog());
                let (store, reads) = metered(&worker_store);
                let engine = Arc::new(Engine::new(store, catalog.clone(), live.clone(), settings));
                let registry = Registry::new();
                let node = WorkerNode::new(engine, url, workers.clone(), WorkerMetrics::new(&registry).unwrap()).unwrap();
                runtime.spawn(async move { node.serve(TcpListener::from_std(listener).unwrap(), std::future::pending()).await });
                Node { url: url.clone(), live, catalog, registry, reads, runtime: Some(runtime) }
            })
            .collect();
        let own = catalog();
        let mut catalogs: Vec<Arc<Catalog>> = nodes.iter().map(|node| node.catalog.clone()).collect();
        catalogs.push(own.clone());
        for set in blocks {
            add_block(&*store, BlockId::random(), set, &catalogs).await;
        }
        let (metered_store, reads) = metered(&store);
        let engine = Arc::new(Engine::new(metered_store, own.clone(), Arc::new(skein_engine::exec::live::NoLiveSpans), settings));
        let metrics = CoordinatorMetrics::new(&Registry::new()).unwrap();
        Self { coordinator: Arc::new(Coordinator::new(engine, workers, Peers::default(), metrics)), catalog: own, nodes, store, reads }
    }
}

#[async_trait]
impl QueryService for TestCluster {
    async fn trace_by_id(&self, tenant: &TenantId, request: TraceRequest) -> Result<TraceResult> {
        self.coordinator.trace_by_id(tenant, request).await
    }

    async fn search(&self, tenant: &TenantId, request: SearchRequest) -> Result<SearchResult> {
        self.coordinator.search(tenant, request).await
    }

    async fn explain_search(&self, tenant: &TenantId, request: SearchRequest, analyze: bool) -> Result<String> {
        self.coordinator.explain_search(tenant, request, analyze).await
    }

    async fn metrics(&self, tenant: &TenantId, request: MetricsRequest) -> Result<MetricsResult> {
        self.coordinator.metrics(tenant, request).await
    }

    async fn tag_names(&self, tenant: &TenantId, request: TagNamesRequest) -> Result<TagNames> {
        self.coordinator.tag_names(tenant, request).await
    }

    async fn tag_values(&self, tenant: &TenantId, request: TagValuesRequest) -> Result<TagValues> {
        self.coordinator.tag_values(tenant, request).await
    }

    async fn search_in_parts(&self, tenant: &TenantId, request: SearchRequest, parts: Parts<SearchResult>) -> Result<SearchResult> {
        self.coordinator.search_in_parts(tenant, request, parts).await
    }

    async fn metrics_in_parts(&self, tenant: &TenantId, request: MetricsRequest, parts: Parts<MetricsResult>) -> Result<MetricsResult> {
        self.coordinator.metrics_in_parts(tenant, request, parts).await
    }

    async fn tag_names_in_parts(&self, tenant: &TenantId, request: TagNamesRequest, parts: Parts<TagNames>) -> Result<TagNames> {
        self.coordinator.tag_names_in_parts(tenant, request, parts).await
    }

    async fn tag_values_in_parts(&self, tenant: &TenantId, request: TagValuesRequest, parts: Parts<TagValues>) -> Result<TagValues> {
        self.coordinator.tag_values_in_parts(tenant, request, parts).await
    }
}

/// One process with the same live spans, a generation each, and the same blocks.
async fn one_process(live: Vec<SpanSet>, blocks: Vec<SpanSet>) -> Engine {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let catalog = catalog();
    for set in blocks {
        add_block(&*store, BlockId::random(), set, std::slice::from_ref(&catalog)).await;
    }
    Engine::new(store, catalog, TestLive::new(live), settings())
}

const TRACES: u64 = 60;
const SPANS: u64 = 5;

/// Where spans lie: live at one of three workers, or in one of two blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Live(usize),
    Block(usize),
}

/// Where span `span` of trace `trace` lies; in two places, it is there twice.
fn places(trace: u64, span: u64) -> Vec<Place> {
    let early = span <= 2;
    match trace % 8 {
        0 => vec![Place::Live(0)],
        1 => vec![Place::Live(1)],
        2 => vec![Place::Block(0)],
        3 => vec![Place::Live(if early { 0 } else { 2 })],
        4 => vec![if early { Place::Block(1) } else { Place::Live(1) }],
        5 if early => vec![Place::Live(2), Place::Live(0)],
        5 => vec![Place::Live(2)],
        6 => vec![Place::Block(usize::from(early))],
        _ if early => vec![Place::Block(0), Place::Live(2)],
        _ => vec![Place::Live(2)],
    }
}

fn is_split(trace: u64) -> bool {
    let places: Vec<Place> = (1..=SPANS).flat_map(|span| places(trace, span)).collect();
    places.iter().any(|place| *place != places[0])
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// Span 1 is the root, 2 and 3 its children, 4 and 5 the children of 3.
fn span(trace: u64, span: u64) -> ResourceSpans {
    let start = (1000 + trace * 10) * SECOND + span * 1_000_000;
    let parent = [0, 1, 1, 3, 3][span as usize - 1];
    let name = ["root", "auth", "work", "leaf", "leaf"][span as usize - 1];
    let service = ["shop", "auth", "shop", "store", "store"][span as usize - 1];
    let attributes = vec![
        attribute("http.status_code", Value::IntValue(if (trace + span).is_multiple_of(7) { 500 } else { 200 })),
        attribute("region", Value::StringValue(["north", "south", "west"][(trace % 3) as usize].into())),
    ];
    let otlp = Span {
        trace_id: u128::from(trace).to_be_bytes().to_vec(),
        span_id: span.to_be_bytes().to_vec(),
        parent_span_id: if parent == 0 { Vec::new() } else { u64::to_be_bytes(parent).to_vec() },
        name: name.into(),
        start_time_unix_nano: start,
        end_time_unix_nano: start + trace * span * 1_000_000,
        status: Some(Status { code: if (trace * span).is_multiple_of(11) { 2 } else { 0 }, message: String::new() }),
        attributes,
        ..Span::default()
    };
    let resource = Resource { attributes: vec![attribute("service.name", Value::StringValue(service.into()))], ..Resource::default() };
    let scope_spans = vec![ScopeSpans { spans: vec![otlp], ..ScopeSpans::default() }];
    ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() }
}

fn set_of(spans: impl IntoIterator<Item = (u64, u64)>) -> SpanSet {
    let mut builder = SpanBuilder::default();
    let resource_spans = spans.into_iter().map(|(trace, number)| span(trace, number)).collect();
    skein_ingest::decode::decode(&TracesData { resource_spans }.encode_to_vec(), &mut builder).unwrap();
    builder.snapshot()
}

fn all_spans() -> impl Iterator<Item = (u64, u64)> {
    (1..=TRACES).flat_map(|trace| (1..=SPANS).map(move |span| (trace, span)))
}

fn at(place: Place) -> SpanSet {
    set_of(all_spans().filter(|&(trace, span)| places(trace, span).contains(&place)))
}

fn live() -> Vec<SpanSet> {
    (0..3).map(|worker| at(Place::Live(worker))).collect()
}

fn blocks() -> Vec<SpanSet> {
    (0..2).map(|block| at(Place::Block(block))).collect()
}

fn request(query: &str, limit: usize, window: Option<(u32, u32)>) -> SearchRequest {
    let window = window.map(|(start_seconds, end_seconds)| Window { start_seconds, end_seconds });
    SearchRequest { query: query.into(), limit, spans_per_spanset: 3, window }
}

async fn search(queries: &dyn QueryService, query: &str, limit: usize, window: Option<(u32, u32)>) -> Vec<TraceSearchMetadata> {
    let result = queries.search(&TenantId::single(), request(query, limit, window)).await;
    result.unwrap_or_else(|error| panic!("{query}: {error}")).traces
}

/// Queries of every kind, each with a match among traces that lie in one place and among those that lie in several.
const QUERIES: [&str; 22] = [
    "{ }",
    "{ name = `leaf` }",
    "{ span.http.status_code >= 500 }",
    "{ resource.service.name = `store` && status = error }",
    "{ .region = `north` || duration > 100ms }",
    "{ name = `auth` } && { status = error }",
    "{ name = `nothing` } || { name = `work` && .region != `west` }",
    "{ name = `root` } >> { status = error }",
    "{ name = `work` } > { name = `leaf` && span.http.status_code = 500 }",
    "{ name = `leaf` } << { name = `root` }",
    "{ name = `leaf` } < { resource.service.name = `shop` }",
    "{ name = `auth` } ~ { name = `work` }",
    "{ status = error } !>> { name = `leaf` }",
    "{ } | count() = 5",
    "{ status = error } | count() > 1",
    "{ } | avg(duration) > 90ms",
    "{ name = `leaf` } | max(duration) > 200ms",
    "{ } | by(resource.service.name) | count() > 1",
    "{ status = error } | select(span.region, resource.service.name)",
    "{ traceDuration > 150ms && rootName = `root` }",
    "{ nestedSetParent < 0 && rootServiceName = `shop` }",
    "{ span:childCount > 1 }",
];

#[tokio::test]
async fn a_cluster_answers_as_one_process_does() {
    let (cluster, one) = (TestCluster::start(live(), blocks()).await, one_process(live(), blocks()).await);
    let mut answered = 0;
    for query in QUERIES {
        for (limit, window) in [(1000, None), (3, None), (1000, Some((1100, 1300))), (7, Some((1205, 1205)))] {
            let (ours, expected) = (search(&*cluster, query, limit, window).await, search(&one, query, limit, window).await);
            assert_eq!(ours, expected, "{query}, limit {limit}, window {window:?}");
            answered += ours.len();
        }
    }
    assert!(answered > 500, "the queries find {answered} traces: too few to show much");
    assert_eq!(search(&*cluster, "{ } | count() = 5", 1000, None).await.len(), TRACES as usize, "every trace is whole");
}

#[tokio::test]
async fn memory_that_a_worker_lacks_is_refused_in_its_name() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let settings = EngineSettings { query_memory_bytes: 1, ..settings() };
    let live = (0..3).map(|worker| vec![set_of(all_spans().filter(|(trace, _)| trace % 3 == worker))]).collect();
    let cluster = TestCluster::over(store.clone(), store, settings, live, Vec::new()).await;
    let refused = |error: skein_engine::error::Error, holder: &str| {
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Exhausted, "{text}");
        for part in ["worker http://127.0.0.1:", holder, "query_frontend.max_memory_bytes"] {
            assert!(text.contains(part), "{text} lacks {part}");
        }
    };
    let tenant = TenantId::single();
    refused(cluster.search(&tenant, request("{ name = `leaf` }", 10, None)).await.unwrap_err(), "columns of a row group");
    refused(cluster.trace_by_id(&tenant, TraceRequest::whole(TraceId(1u128.to_be_bytes()))).await.unwrap_err(), "the live spans of a trace");
    let intervals = Intervals::of_instant(999 * SECOND, 2000 * SECOND).unwrap();
    let metrics = MetricsRequest::new("{ } | rate()", intervals);
    refused(cluster.metrics(&tenant, metrics).await.unwrap_err(), "columns of a row group");
}

#[tokio::test]
async fn the_figures_of_a_search_are_those_of_one_process() {
    let (cluster, one) = (TestCluster::start(live(), blocks()).await, one_process(live(), blocks()).await);
    for query in ["{ }", "{ span.http.status_code >= 500 }", "{ name = `work` } > { name = `leaf` }"] {
        let stats = async |queries: &dyn QueryService| queries.search(&TenantId::single(), request(query, 1000, None)).await.unwrap().stats;
        let (ours, expected) = (stats(&*cluster).await, stats(&one).await);
        assert_eq!(ours, expected, "{query}");
        assert_eq!(ours.blocks, 2);
    }
}

#[tokio::test]
async fn metrics_are_those_of_one_process_and_count_each_span_once() {
    let (cluster, one) = (TestCluster::start(live(), blocks()).await, one_process(live(), blocks()).await);
    let whole = Intervals::of_instant(999 * SECOND, 2000 * SECOND).unwrap();
    let steps = Intervals::of_range(1000 * SECOND, 2000 * SECOND, 60 * SECOND).unwrap();
    let series = async |queries: &dyn QueryService, query: &str, intervals: Intervals| {
        let request = MetricsRequest { query: query.into(), intervals, max_series: 0, exemplars: 100, sampling_attribute: None };
        queries.metrics(&TenantId::single(), request).await.unwrap_or_else(|error| panic!("{query}: {error}")).series
    };
    for query in [
        "{ } | count_over_time()",
        "{ } | rate() by (resource.service.name, name)",
        "{ name = `root` } >> { status = error } | count_over_time() by (span.region)",
        "{ } | avg_over_time(duration) by (name)",
        "{ } | sum_over_time(span.http.status_code)",
        "{ } | quantile_over_time(duration, .5, .9) by (name)",
        "{ } | histogram_over_time(duration)",
        "{ } | compare({ status = error })",
        "{ } | count_over_time() by (name) | topk(2)",
        "({ status = error } | rate()) / ({ } | rate())",
    ] {
        for intervals in [whole, steps] {
            let (ours, expected) = (series(&*cluster, query, intervals).await, series(&one, query, intervals).await);
            assert_eq!(ours, expected, "{query}");
            assert!(!ours.is_empty(), "{query}");
        }
    }
    let total = |series: Vec<TimeSeries>| series.iter().flat_map(|series| &series.samples).map(|sample| sample.value).sum::<f64>();
    for intervals in [whole, steps] {
        let counted = total(series(&*cluster, "{ } | count_over_time() by (name)", intervals).await);
        assert_eq!(counted, (TRACES * SPANS) as f64, "each span once, over all and step by step");
    }
}

#[tokio::test]
async fn traces_names_and_values_are_those_of_one_process() {
    let (cluster, one) = (TestCluster::start(live(), blocks()).await, one_process(live(), blocks()).await);
    let tenant = TenantId::single();
    for trace in 0..=TRACES + 1 {
        let id = TraceId(u128::from(trace).to_be_bytes());
        let spans = async |queries: &dyn QueryService| queries.trace_by_id(&tenant, TraceRequest::whole(id)).await.unwrap().resource_spans;
        let (ours, expected) = (spans(&*cluster).await, spans(&one).await);
        assert_eq!(ours, expected, "trace {trace}");
        assert_eq!(ours.is_empty(), trace == 0 || trace > TRACES);
    }
    for filter in [None, Some("{ name = `leaf` }".to_owned())] {
        let names = TagNamesRequest { filter: filter.clone(), ..TagNamesRequest::default() };
        let ours = cluster.tag_names(&tenant, names.clone()).await.unwrap().scopes;
        assert_eq!(ours, one.tag_names(&tenant, names).await.unwrap().scopes);
        assert!(!ours.is_empty());
        for tag in ["name", "span.region", "resource.service.name", "span.http.status_code", "status"] {
            let values = TagValuesRequest { tag: tag.into(), filter: filter.clone(), window: None };
            let ours = cluster.tag_values(&tenant, values.clone()).await.unwrap().values;
            assert_eq!(ours, one.tag_values(&tenant, values).await.unwrap().values, "{tag}");
            assert!(!ours.is_empty(), "{tag}");
        }
    }
}

#[tokio::test]
async fn a_cluster_of_one_worker_and_an_empty_one_answer() {
    let everything = || vec![set_of(all_spans())];
    let cluster = TestCluster::start(everything(), Vec::new()).await;
    assert_eq!(search(&*cluster, "{ name = `leaf` }", 1000, None).await.len(), TRACES as usize);
    let cluster = TestCluster::start(vec![set_of([])], everything()).await;
    assert_eq!(search(&*cluster, "{ name = `leaf` }", 1000, None).await.len(), TRACES as usize);
    let cluster = TestCluster::start(vec![set_of([]), set_of([])], Vec::new()).await;
    assert_eq!(search(&*cluster, "{ }", 1000, None).await, []);
    let everything_twice = TestCluster::start([everything(), everything()].concat(), everything()).await;
    let one = one_process(everything(), Vec::new()).await;
    let query = "{ } | count() = 5";
    assert_eq!(search(&*everything_twice, query, 1000, None).await, search(&one, query, 1000, None).await);
}

#[tokio::test]
async fn lists_and_traces_beyond_one_message_are_whole() {
    let most = u64::try_from(IDS_PER_MESSAGE).unwrap() + 500;
    let set = |traces: u64| set_of((1..=traces).map(|trace| (trace, 1)));
    let cluster = TestCluster::start(vec![set(most + 3000), set(most), set_of([])], Vec::new()).await;
    let result = cluster.search(&TenantId::single(), request("{ } | count() = 1", usize::MAX, None)).await.unwrap();
    let found: BTreeSet<String> = result.traces.iter().map(|trace| trace.trace_id.clone()).collect();
    assert_eq!((found.len() as u64, result.traces.len() as u64), (most + 3000, most + 3000));
    assert_eq!(cluster.nodes.iter().map(Node::fetches).collect::<Vec<_>>(), [2, 2, 0]);
}

#[tokio::test]
async fn a_wrong_query_is_the_users_mistake() {
    let cluster = TestCluster::start(live(), blocks()).await;
    let error = cluster.search(&TenantId::single(), request("{ name = }", 1, None)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let values = TagValuesRequest { tag: "{".into(), filter: None, window: None };
    assert_eq!(cluster.tag_values(&TenantId::single(), values).await.unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn what_becomes_a_block_meanwhile_is_neither_lost_nor_doubled() {
    let cluster = TestCluster::start(live(), blocks()).await;
    let one = one_process(live(), blocks()).await;
    let before = cluster.coordinator.plan_search(&TenantId::single(), &request("{ }", 1000, None)).await.unwrap().unwrap();
    let node = &cluster.nodes[0];
    let flushed = node.live.live(&TenantId::single()).remove(0);
    let meta = add_block(&*cluster.store, flushed.block, flushed.set.clone(), std::slice::from_ref(&node.catalog)).await;
    let expected = search(&one, "{ }", 1000, None).await;
    assert_eq!(search(&*cluster, "{ }", 1000, None).await, expected, "both a block and live");
    node.live.replace(Vec::new());
    assert_eq!(search(&*cluster, "{ }", 1000, None).await, expected, "a block that no other process has polled");
    let id = TraceId(8u128.to_be_bytes());
    assert!(!cluster.trace_by_id(&TenantId::single(), TraceRequest::whole(id)).await.unwrap().resource_spans.is_empty());
    let batches = cluster.coordinator.run(&before).await.unwrap();
    let found: usize = batches.iter().map(|batch| skein_engine::plan::trace_details::search_results(batch).unwrap().len()).sum();
    assert_eq!(found, expected.len(), "a plan from before reads the version that it listed");

    let other = &cluster.nodes[2];
    let replaced = other.live.live(&TenantId::single()).remove(0);
    let replaced = add_block(&*cluster.store, replaced.block, replaced.set, std::slice::from_ref(&other.catalog)).await;
    mark_compacted(&*cluster.store, &replaced).await.unwrap();
    mark_compacted(&*cluster.store, &meta).await.unwrap();
    other.live.replace(Vec::new());
    assert_eq!(search(&*cluster, "{ }", 1000, None).await, expected, "blocks that were replaced before anyone else had polled them");
    add_block_for(&*cluster.store, BlockId::random(), flushed.set, vec![flushed.block], std::slice::from_ref(&cluster.catalog)).await;
    assert_eq!(search(&*cluster, "{ }", 1000, None).await, expected, "its successor, of which its worker does not know");
    let spans = cluster.search(&TenantId::single(), request("{ }", 1000, None)).await.unwrap().stats.spans;
    assert_eq!(spans, one.search(&TenantId::single(), request("{ }", 1000, None)).await.unwrap().stats.spans, "each span is looked at once");
}

/// Each span of the first `complete` traces counts once, and of later ones none twice.
async fn check_counts(cluster: &TestCluster, complete: u64) {
    let request = MetricsRequest::new("{ } | count_over_time() by (trace:id)", Intervals::of_instant(SECOND, 10_000 * SECOND).unwrap());
    let series = cluster.metrics(&TenantId::single(), request).await.unwrap().series;
    let id = |series: &TimeSeries| match &series.labels[0].value {
        Some(AnyValue { value: Some(Value::StringValue(id)) }) => id.clone(),
        other => panic!("no trace id: {other:?}"),
    };
    let counts: BTreeMap<String, f64> = series.iter().map(|series| (id(series), series.samples[0].value)).collect();
    for trace in 1..=complete {
        assert_eq!(counts.get(&format!("{trace:x}")), Some(&(SPANS as f64)), "trace {trace} of {complete}");
    }
    assert!(counts.values().all(|count| *count <= SPANS as f64), "a span counts twice: {counts:?}");
}

/// Traces come, a part of their spans at another worker, and become blocks that the coordinator learns of late or not at all, and that are
/// merged. Every search finds every trace that was there when it began, whole, once, and every count has each of its spans once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_that_move_while_they_are_searched_are_seen_once() {
    const COMING: u64 = 90;
    let cluster = TestCluster::start(vec![set_of([]), set_of([]), set_of([])], Vec::new()).await;
    let complete = AtomicU64::new(0);
    let moving = async {
        let mut live: Vec<(BlockId, Vec<(u64, u64)>)> = (0..3).map(|_| (BlockId::random(), Vec::new())).collect();
        let mut flushed: Vec<(BlockMeta, Vec<(u64, u64)>)> = Vec::new();
        for trace in 1..=COMING {
            let (home, other) = ((trace % 3) as usize, ((trace / 3) % 3) as usize);
            live[home].1.extend((1..=3).map(|span| (trace, span)));
            live[other].1.extend((3..=SPANS).map(|span| (trace, span)));
            for at in [home, other] {
                let set = set_of(live[at].1.iter().copied());
                cluster.nodes[at].live.replace(vec![LiveGeneration { block: live[at].0, set }]);
            }
            complete.store(trace, SeqCst);
            if trace % 4 == 0 {
                let catalogs: &[Arc<Catalog>] = &[cluster.nodes[home].catalog.clone(), cluster.catalog.clone()];
                let known = &catalogs[..if trace % 8 == 0 { 1 } else { 2 }];
                let (block, spans) = std::mem::replace(&mut live[home], (BlockId::random(), Vec::new()));
                let meta = add_block(&*cluster.store, block, set_of(spans.iter().copied()), known).await;
                cluster.nodes[home].live.replace(Vec::new());
                flushed.push((meta, spans));
            }
            if let [(first, _), (second, _), ..] = flushed.as_slice() {
                let inputs = [first.clone(), second.clone()];
                let spans: Vec<(u64, u64)> = flushed.drain(..2).flat_map(|(_, spans)| spans).collect();
                let replaces = inputs.iter().map(|meta| meta.id).collect();
                add_block_for(&*cluster.store, BlockId::random(), set_of(spans), replaces, std::slice::from_ref(&cluster.catalog)).await;
                for meta in &inputs {
                    mark_compacted(&*cluster.store, meta).await.unwrap();
                }
            }
            tokio::task::yield_now().await;
        }
    };
    let mut searches = 0;
    let searching = async {
        loop {
            let before = complete.load(SeqCst);
            let found: Vec<String> = search(&*cluster, "{ } | count() = 5", 1000, None).await.into_iter().map(|trace| trace.trace_id).collect();
            let once: BTreeSet<&String> = found.iter().collect();
            assert_eq!(once.len(), found.len(), "a trace twice");
            for trace in 1..=before {
                assert!(once.contains(&format!("{trace:x}")), "trace {trace} of {before} is missing or torn");
            }
            check_counts(&cluster, complete.load(SeqCst)).await;
            searches += 1;
            if before == COMING {
                break;
            }
        }
    };
    tokio::join!(moving, searching);
    assert!(searches > 1, "no search ran meanwhile");
}

#[tokio::test]
async fn a_listed_version_that_is_gone_is_an_error_and_a_search_plans_again() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let settings = EngineSettings { memory_source_bytes: 0, ..settings() };
    let cluster = TestCluster::over(store.clone(), store, settings, live().into_iter().map(|set| vec![set]).collect(), blocks()).await;
    let plan = cluster.coordinator.plan_search(&TenantId::single(), &request("{ }", 1000, None)).await.unwrap().unwrap();
    let node = &cluster.nodes[1];
    let mut grown = node.live.live(&TenantId::single());
    grown[0].set = set_of(all_spans().filter(|&(trace, span)| places(trace, span).contains(&Place::Live(1))).chain([(TRACES + 1, 1)]));
    node.live.replace(grown);
    let error = cluster.coordinator.run(&plan).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.message().contains(&*node.url) && error.message().contains("is gone"), "{error}");
    assert_eq!(search(&cluster, "{ }", 1000, None).await.len(), TRACES as usize + 1);
}

#[tokio::test]
async fn a_worker_that_dies_is_named() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let live = live().into_iter().map(|set| vec![set]).collect();
    let mut cluster = TestCluster::over(store.clone(), store, settings(), live, blocks()).await;
    let plan = cluster.coordinator.plan_search(&TenantId::single(), &request("{ }", 1000, None)).await.unwrap().unwrap();
    cluster.nodes[1].die();
    let url = cluster.nodes[1].url.clone();
    let check = |error: skein_engine::error::Error| {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.message().contains(&*url), "{error}");
    };
    check(cluster.coordinator.run(&plan).await.unwrap_err());
    check(cluster.search(&TenantId::single(), request("{ }", 1000, None)).await.unwrap_err());
    check(cluster.trace_by_id(&TenantId::single(), TraceRequest::whole(TraceId::default())).await.unwrap_err());
    check(cluster.tag_names(&TenantId::single(), TagNamesRequest::default()).await.unwrap_err());
}

#[tokio::test]
async fn a_worker_that_hangs_is_named() {
    let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: Arc<str> = format!("http://{}", deaf.local_addr().unwrap()).into();
    let engine = one_process(Vec::new(), blocks()).await;
    let metrics = CoordinatorMetrics::new(&Registry::new()).unwrap();
    let peers = Peers::with_keep_alive(Duration::from_millis(50));
    let coordinator = Coordinator::new(Arc::new(engine), Arc::new(vec![url.clone()]), peers, metrics);
    let answer = tokio::time::timeout(SOON, coordinator.search(&TenantId::single(), request("{ }", 1000, None))).await;
    let error = answer.expect("a worker that hangs is given up").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.message().contains(&*url), "{error}");
}

/// A store whose reads of data files never end, and which counts those that wait.
#[derive(Debug)]
struct StuckStore {
    inner: Arc<dyn ObjectStore>,
    waiting: Arc<AtomicUsize>,
}

/// One that waits.
struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl fmt::Display for StuckStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stuck")
    }
}

#[async_trait]
impl ObjectStore for StuckStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> object_store::Result<PutResult> {
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, _: &Path, _: &[std::ops::Range<u64>]) -> object_store::Result<Vec<bytes::Bytes>> {
        self.waiting.fetch_add(1, SeqCst);
        let _waiting = Waiting(self.waiting.clone());
        std::future::pending().await
    }

    fn delete_stream(&self, locations: BoxStream<'static, object_store::Result<Path>>) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// Waits until `condition` holds, at most [`SOON`].
async fn until(what: &str, condition: impl Fn() -> bool) {
    let met = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, met).await.unwrap_or_else(|_| panic!("{what} did not happen"));
}

#[tokio::test]
async fn dropping_a_search_stops_the_workers() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let waiting = Arc::new(AtomicUsize::new(0));
    let stuck = Arc::new(StuckStore { inner: store.clone(), waiting: waiting.clone() });
    let whole_blocks = (0..6u64).map(|block| set_of(all_spans().filter(|&(trace, _)| trace % 6 == block))).collect();
    let cluster = Arc::new(TestCluster::over(store, stuck, settings(), vec![Vec::new(), Vec::new(), Vec::new()], whole_blocks).await);
    let searching = tokio::spawn({
        let cluster = cluster.clone();
        async move { cluster.search(&TenantId::single(), request("{ name = `leaf` }", 10, None)).await.map(|result| result.traces.len()) }
    });
    until("reading on all workers", || waiting.load(SeqCst) >= 3).await;
    searching.abort();
    assert!(searching.await.unwrap_err().is_cancelled());
    until("the end of all reads", || waiting.load(SeqCst) == 0).await;
}

/// A scan of the sources of the cluster that `wanted` takes, in `partitions` partitions.
async fn scan(cluster: &TestCluster, partitions: usize, wanted: impl Fn(&SourceName) -> bool) -> Arc<dyn ExecutionPlan> {
    let (sources, _) = cluster.coordinator.scan_sources(&TenantId::single(), None).await.unwrap();
    let names = sources.names().iter().filter(|name| wanted(name)).cloned().collect();
    let sources = SourceSet::new(sources.tenant().clone(), names, sources.resolver().clone()).leaving_out(sources.left_out().clone());
    let QueryBody::Search(pipeline) = traceql::parse("{ }").unwrap().body else { panic!("not a search") };
    let limits = ScanLimits { window: None, traces: 1000, spans_per_spanset: 1 };
    Arc::new(SpansetScanExec::new(Arc::new(sources), pipeline, limits, partitions))
}

async fn rows(cluster: &TestCluster, what: &str, plan: Arc<dyn ExecutionPlan>) -> Vec<RecordBatch> {
    let plan = cluster.coordinator.distribute(plan).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    let shown = displayable(plan.as_ref()).indent(false).to_string();
    cluster.coordinator.run(&plan).await.unwrap_or_else(|error| panic!("{what}: {error}\n{shown}"))
}

/// How often each trace came.
fn counts(batches: &[RecordBatch]) -> BTreeMap<u64, usize> {
    let mut counts = BTreeMap::new();
    for batch in batches {
        let ids = batch.column_by_name("trace_id").unwrap().as_fixed_size_binary();
        for id in ids.iter().flatten() {
            *counts.entry(u64::from_be_bytes(id[8..].try_into().unwrap())).or_default() += 1;
        }
    }
    counts
}

/// The traces that lie in one place, `times` times each.
fn each(times: usize) -> BTreeMap<u64, usize> {
    (1..=TRACES).filter(|&trace| !is_split(trace)).map(|trace| (trace, times)).collect()
}

fn by_trace(plan: &Arc<dyn ExecutionPlan>) -> Arc<dyn PhysicalExpr> {
    expressions::col("trace_id", &plan.schema()).unwrap()
}

fn group_by(
    mode: AggregateMode,
    keys: Vec<(Arc<dyn PhysicalExpr>, String)>,
    input: Arc<dyn ExecutionPlan>,
    schema: &Arc<dyn ExecutionPlan>,
) -> Arc<dyn ExecutionPlan> {
    let count = AggregateExprBuilder::new(count_udaf(), vec![expressions::lit(1i64)]).schema(schema.schema()).alias("n").build().unwrap();
    Arc::new(AggregateExec::try_new(mode, PhysicalGroupBy::new_single(keys), vec![Arc::new(count)], vec![None], input, schema.schema()).unwrap())
}

fn numbers(batches: &[RecordBatch]) -> Vec<i64> {
    batches.iter().flat_map(|batch| batch.column_by_name("n").unwrap().as_primitive::<Int64Type>().values().to_vec()).collect()
}

fn everywhere(_: &SourceName) -> bool {
    true
}

fn is_live(name: &SourceName) -> bool {
    matches!(name, SourceName::Live { .. })
}

#[tokio::test]
async fn every_row_of_a_scan_arrives_once() {
    let cluster = TestCluster::start(live(), blocks()).await;
    for partitions in [1, 2, 3] {
        let batches = rows(&cluster, "bare scan", scan(&cluster, partitions, everywhere).await).await;
        assert_eq!(counts(&batches), each(1), "{partitions} partitions");
    }
}

#[tokio::test]
async fn every_row_arrives_once_through_sort_and_limit() {
    let cluster = TestCluster::start(live(), blocks()).await;
    for partitions in [1, 2] {
        let scan = scan(&cluster, partitions, everywhere).await;
        let order = LexOrdering::new([PhysicalSortExpr::new(by_trace(&scan), SortOptions::default())]).unwrap();
        let sort = Arc::new(SortExec::new(order.clone(), scan.clone()).with_preserve_partitioning(true));
        let sorted = rows(&cluster, "sort", Arc::new(SortPreservingMergeExec::new(order, sort))).await;
        assert_eq!(counts(&sorted), each(1));
        let ids: Vec<Vec<u8>> = sorted
            .iter()
            .flat_map(|batch| batch.column_by_name("trace_id").unwrap().as_fixed_size_binary().iter().flatten().map(<[u8]>::to_vec))
            .collect();
        assert!(ids.is_sorted());
        for (limit, expected) in [(1000, each(1).len()), (7, 7), (0, 0)] {
            let one = Arc::new(CoalescePartitionsExec::new(scan.clone()));
            let limited = rows(&cluster, "limit", Arc::new(GlobalLimitExec::new(one, 0, Some(limit)))).await;
            let counted = counts(&limited);
            assert_eq!((counted.len(), counted.values().sum::<usize>()), (expected, expected), "limit {limit}");
        }
    }
}

#[tokio::test]
async fn every_row_arrives_once_through_a_union() {
    let cluster = TestCluster::start(live(), blocks()).await;
    for partitions in [1, 2] {
        let (live, blocks) = (scan(&cluster, partitions, is_live).await, scan(&cluster, partitions, |name| !is_live(name)).await);
        let both = UnionExec::try_new(vec![live, blocks]).unwrap();
        assert_eq!(counts(&rows(&cluster, "union of live and blocks", both).await), each(1));
        let twice = UnionExec::try_new(vec![scan(&cluster, partitions, everywhere).await, scan(&cluster, partitions, everywhere).await]).unwrap();
        assert_eq!(counts(&rows(&cluster, "union with itself", twice).await), each(2));
    }
}

#[tokio::test]
async fn every_row_arrives_once_in_an_aggregate() {
    let cluster = TestCluster::start(live(), blocks()).await;
    for partitions in [1, 2] {
        let scan = scan(&cluster, partitions, everywhere).await;
        let partial = group_by(AggregateMode::Partial, Vec::new(), scan.clone(), &scan);
        let one = Arc::new(CoalescePartitionsExec::new(partial));
        let total = rows(&cluster, "count", group_by(AggregateMode::Final, Vec::new(), one, &scan)).await;
        assert_eq!(numbers(&total), [each(1).len() as i64]);

        let keys = |expr| vec![(expr, "trace_id".to_owned())];
        let partial = group_by(AggregateMode::Partial, keys(by_trace(&scan)), scan.clone(), &scan);
        let hashed = Partitioning::Hash(vec![by_trace(&partial)], 4);
        let shuffled: Arc<dyn ExecutionPlan> = Arc::new(RepartitionExec::try_new(partial, hashed).unwrap());
        let grouped = group_by(AggregateMode::FinalPartitioned, keys(by_trace(&shuffled)), shuffled.clone(), &scan);
        let grouped = rows(&cluster, "count by trace", grouped).await;
        assert_eq!(counts(&grouped), each(1));
        assert!(numbers(&grouped).iter().all(|&n| n == 1));
    }
}

#[tokio::test]
async fn scans_run_where_their_live_spans_are() {
    let cluster = TestCluster::start(live(), blocks()).await;
    let fetches = || cluster.nodes.iter().map(Node::fetches).sum::<u64>();
    let plan = cluster.coordinator.distribute(scan(&cluster, 2, is_live).await).await.unwrap();
    assert!(displayable(plan.as_ref()).indent(false).to_string().contains("DistributedExec"), "a scan of two partitions is divided");
    let for_split_traces = fetches();
    assert!(for_split_traces > 0);
    cluster.coordinator.run(&plan).await.unwrap();
    search(&*cluster, "{ }", 1000, None).await;
    assert_eq!(fetches(), for_split_traces, "only split traces are fetched, and they are kept");
    rows(&cluster, "bare scan", scan(&cluster, 1, is_live).await).await;
    assert!(fetches() > for_split_traces, "what nothing divides is fetched");
    let text = cluster.coordinator.explain_search(&TenantId::single(), request("{ }", 5, None), true).await.unwrap();
    assert_eq!(text.matches("SpansetScanExec").count(), 4, "three workers and the coordinator:\n{text}");

    let search = cluster.coordinator.plan_search(&TenantId::single(), &request("{ }", 5, None)).await.unwrap().unwrap();
    let shown = displayable(search.as_ref()).indent(false).to_string();
    for node in
        ["DistributedExec", "NewestResultsExec: limit=5", "ShareResultsExec", "UnionExec", "NetworkCoalesceExec", "ShareExec: worker=coordinator"]
    {
        assert!(shown.contains(node), "{node} is missing in\n{shown}");
    }
    let (survey, shares) = cluster.coordinator.survey(&TenantId::single(), None).await.unwrap();
    let split: BTreeSet<u64> = survey.split.iter().map(|id| u128::from_be_bytes(id.0) as u64).collect();
    assert_eq!(split, (1..=TRACES).filter(|&trace| is_split(trace)).collect());
    for share in shares {
        for name in share.names.iter().filter(|name| is_live(name)) {
            assert!(matches!(name, SourceName::Live { at: Some(at), .. } if at.worker == share.worker), "{name:?} at {}", share.worker);
        }
    }
}

#[tokio::test]
async fn explain_shows_what_each_node_of_each_worker_read() {
    let cluster = TestCluster::start(live(), blocks()).await;
    let explain = async |analyze| cluster.coordinator.explain_search(&TenantId::single(), request("{ }", 1000, None), analyze).await.unwrap();
    let plan = explain(false).await;
    assert!(!plan.contains("metrics="), "{plan}");
    let text = explain(true).await;
    let counts = |text: &str, count: &str| -> Vec<u64> {
        let found = text.split(count).skip(1).map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>());
        found.map(|digits| digits.parse().unwrap()).collect()
    };
    let scans: Vec<&str> = text.lines().filter(|line| line.contains("SpansetScanExec")).collect();
    let scanned: Vec<u64> = scans.iter().flat_map(|line| counts(line, "spans_scanned=")).collect();
    assert_eq!(scans.len(), 4, "three workers and the coordinator:\n{text}");
    assert_eq!(counts(&text, " spans: "), [scanned.iter().sum::<u64>()], "the sum of all\n{text}");
    for worker in 0..3 {
        let at_least = (1..=TRACES).filter(|&trace| !is_split(trace) && places(trace, 1) == [Place::Live(worker)]).count() as u64 * SPANS;
        let share = text.split("\n\n").find(|share| share.starts_with(&format!("ShareExec: worker={}", cluster.nodes[worker].url))).unwrap();
        // Nothing is said of a scan that read nothing.
        let read = counts(share, "spans_scanned=").first().copied().unwrap_or_default();
        assert!(read >= at_least, "its live spans\n{text}");
    }
}
