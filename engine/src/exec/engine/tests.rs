//! The memory of queries: whoever holds some is refused once, and in the end nothing is held, however a query ends.

#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use datafusion::{
    common::{DataFusionError, Result as DataFusionResult},
    execution::memory_pool::{MemoryPool, MemoryReservation, UnboundedMemoryPool},
};
use futures::{FutureExt, future::BoxFuture};
use object_store::memory::InMemory;
use prometheus::Registry;
use prost::Message;
use skein_proto::otlp::common::v1::{AnyValue, KeyValue, any_value};

use super::*;
use crate::{
    block::{put::put_block, writer::write_block},
    catalog::{CatalogMetrics, meta::INDEX_NAME},
    clock::Stopwatch,
    error::ErrorKind,
    metrics::intervals::Intervals,
    spans::{
        builder::{SpanBuilder, SpanFields},
        gather::OrderedSpans,
        schema::{ColumnPolicy, SpanSchema},
        tree::order_spans,
    },
};

const SECOND: u64 = 1_000_000_000;
const TRACES: u64 = 24;
const SPANS: u64 = 20;
/// A trace in both blocks, and one that is live.
const SPLIT: u64 = 4;
const LIVE: u64 = 3;

/// Where a span lies: in block 0 or 1, or live (2). Every fourth trace lies in both blocks.
fn place(trace: u64, span: u64) -> u64 {
    match trace {
        trace if trace.is_multiple_of(4) => span % 2,
        trace if trace.is_multiple_of(3) => 2,
        trace => trace % 2,
    }
}

/// A root, the others its children, each with two attributes.
fn spans(at: u64) -> SpanSet {
    let mut builder = SpanBuilder::default();
    let (resource, scope) = (builder.resource(None, b""), builder.scope(None, b""));
    for (trace, span) in (1..=TRACES).flat_map(|trace| (1..=SPANS).map(move |span| (trace, span))).filter(|&(trace, span)| place(trace, span) == at) {
        builder.begin_span();
        for (key, value) in [("http.route", format!("/route/{}", span % 7)), ("user", format!("user {trace} {span}"))] {
            let value = Some(AnyValue { value: Some(any_value::Value::StringValue(value)) });
            builder.attribute(&KeyValue { key: key.into(), value, ..KeyValue::default() }.encode_to_vec()).unwrap();
        }
        let fields = SpanFields {
            trace_id: u128::from(trace).to_be_bytes(),
            span_id: span.to_be_bytes(),
            parent_span_id: u64::from(span > 1).to_be_bytes(),
            start_unix_nano: trace * SECOND + span,
            end_unix_nano: trace * SECOND + span * 1000,
            name: if span == 1 { b"root" } else { b"child" },
            ..SpanFields::default()
        };
        builder.finish_span(resource, scope, &fields);
    }
    builder.snapshot()
}

#[derive(Debug)]
struct Live(BlockId, SpanSet);

impl LiveSpans for Live {
    fn live(&self, _: &TenantId) -> Vec<LiveGeneration> {
        vec![LiveGeneration { block: self.0, set: self.1.clone() }]
    }

    fn tenants(&self) -> Vec<TenantId> {
        vec![TenantId::single()]
    }
}

/// A pool without a limit that refuses once: growth number `refuse`.
#[derive(Debug)]
struct RefusesOnce {
    inner: UnboundedMemoryPool,
    grown: AtomicUsize,
    refuse: usize,
    refused: Mutex<Option<String>>,
}

impl std::fmt::Display for RefusesOnce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl MemoryPool for RefusesOnce {
    fn name(&self) -> &str {
        "refuses once"
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.inner.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.inner.shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> DataFusionResult<()> {
        if self.grown.fetch_add(1, SeqCst) == self.refuse {
            *self.refused.lock().unwrap() = Some(reservation.consumer().name().to_owned());
            return Err(DataFusionError::ResourcesExhausted("refused".into()));
        }
        self.inner.try_grow(reservation, additional)
    }

    fn reserved(&self) -> usize {
        self.inner.reserved()
    }
}

/// The spans, stored once for many engines.
struct World {
    store: Arc<dyn ObjectStore>,
    catalog: Arc<Catalog>,
    live: Arc<Live>,
}

impl World {
    async fn new() -> Self {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let catalog = Arc::new(Catalog::new(CatalogMetrics::new(&Registry::new()).unwrap()));
        for at in 0..2 {
            let set = spans(at);
            let (order, schema) = (order_spans(&set), SpanSchema::of(&set, ColumnPolicy::BLOCK));
            let objects = write_block(&OrderedSpans::new(set, order, schema)).unwrap();
            catalog.add_block(put_block(&*store, &TenantId::single(), BlockId::random(), objects).await.unwrap());
        }
        Self { store, catalog, live: Arc::new(Live(BlockId::random(), spans(2))) }
    }

    /// An engine that has seen nothing yet, and its pool.
    fn refusing(&self, refuse: usize) -> (Engine, Arc<RefusesOnce>) {
        let inner = UnboundedMemoryPool::default();
        let pool = Arc::new(RefusesOnce { inner, grown: AtomicUsize::new(0), refuse, refused: Mutex::default() });
        // What the cache of partial series is refused is computed without it.
        let settings = EngineSettings { partitions: 2, partial_cache_bytes: 0, ..EngineSettings::default() };
        let memory = Arc::new(QueryMemory::new(0));
        (Engine::with_memory(self.store.clone(), self.catalog.clone(), self.live.clone(), settings, (memory, pool.clone())), pool)
    }

    fn limited(&self, query_memory_bytes: usize) -> Engine {
        let settings = EngineSettings { partitions: 2, query_memory_bytes, ..EngineSettings::default() };
        Engine::new(self.store.clone(), self.catalog.clone(), self.live.clone(), settings)
    }
}

/// A question; the answer is thrown away.
#[derive(Debug, Clone, Copy)]
enum Ask {
    Search(&'static str),
    Metrics(&'static str),
    Trace(u64),
    Names,
    Values(&'static str, Option<&'static str>),
}

const ASKS: [Ask; 14] = [
    Ask::Search("{ }"),
    Ask::Search("{ span.user =~ `.*1` && name = `child` } | select(span.http.route)"),
    Ask::Search("{ name = `root` } > { name = `child` } | by(span:id) | count() = 1"),
    Ask::Search("{ name = `child` } ~ { name = `child` } | max(duration) > 2ns"),
    Ask::Search("{ span:parentID != `` && nestedSetLeft > 1 }"),
    Ask::Metrics("{ } | rate() by (span.user)"),
    Ask::Metrics("{ } | quantile_over_time(duration, .9)"),
    Ask::Metrics("{ } | max_over_time(duration) by (name)"),
    Ask::Metrics("{ } | compare({ name = `root` })"),
    Ask::Trace(1),
    Ask::Trace(SPLIT),
    Ask::Trace(LIVE),
    Ask::Names,
    Ask::Values("span.user", Some("{ name = `child` }")),
];

impl Ask {
    /// Asks, and drops the answer.
    fn of(self, engine: &Engine) -> BoxFuture<'_, Result<()>> {
        let tenant = TenantId::single();
        let search = |query: &str| SearchRequest { query: query.into(), limit: 5, spans_per_spanset: 3, window: None };
        let intervals = Intervals::of_range(SECOND, (TRACES + 1) * SECOND, SECOND).unwrap();
        async move {
            match self {
                Self::Search(query) => drop(engine.search(&tenant, search(query)).await?),
                Self::Metrics(query) => drop(
                    engine
                        .metrics(&tenant, MetricsRequest { query: query.into(), intervals, max_series: 0, exemplars: 100, sampling_attribute: None })
                        .await?,
                ),
                Self::Trace(id) => {
                    let found = engine.trace_by_id(&tenant, TraceRequest::whole(TraceId(u128::from(id).to_be_bytes()))).await?;
                    let spans: usize = found.resource_spans.iter().flat_map(|resource| &resource.scope_spans).map(|scope| scope.spans.len()).sum();
                    assert_eq!(spans as u64, SPANS, "{self:?}");
                    assert!(found.memory.bytes() > 0, "an answer keeps its memory");
                }
                Self::Names => {
                    let filter = Some("{ name = `root` }".into());
                    drop(engine.tag_names(&tenant, TagNamesRequest { filter, ..TagNamesRequest::default() }).await?);
                }
                Self::Values(tag, filter) => {
                    drop(engine.tag_values(&tenant, TagValuesRequest { tag: tag.into(), filter: filter.map(str::to_owned), window: None }).await?);
                }
            }
            Ok(())
        }
        .boxed()
    }
}

/// Lets the tasks of dropped partitions end, and waits until nothing is held.
async fn nothing_is_held(pool: &dyn MemoryPool, what: &str) {
    let watch = Stopwatch::start();
    while pool.reserved() > 0 {
        assert!(watch.elapsed() < Duration::from_secs(20), "{what}: {} bytes are still held", pool.reserved());
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn whoever_holds_memory_can_be_refused_and_nothing_is_left() {
    let world = World::new().await;
    let mut refused = BTreeSet::new();
    for ask in ASKS {
        for refuse in 0.. {
            let (engine, pool) = world.refusing(refuse);
            let result = ask.of(&engine).await;
            nothing_is_held(&*pool, &format!("{ask:?}, refused at {refuse}")).await;
            match pool.refused.lock().unwrap().take() {
                Some(holder) => {
                    let error = result.expect_err(&holder);
                    assert_eq!((error.kind(), error.to_string().contains("refused")), (ErrorKind::Exhausted, true), "{ask:?}: {holder}: {error}");
                    refused.insert(holder);
                }
                None => {
                    result.unwrap();
                    assert!(refuse > 0, "{ask:?} holds nothing");
                    break;
                }
            }
        }
    }
    let holders = [
        "a trace",
        "columns of a row group",
        "details of traces",
        "distinct values",
        "matches of a row group",
        "results of a search",
        "series of a partition",
        "series of all partitions",
        "series of the answer",
        "the live spans of a trace",
        "the newest traces",
        "traces that lie in several places",
        "values of series",
    ];
    assert_eq!(refused.into_iter().collect::<Vec<_>>(), holders);
}

/// On several threads, without which DataFusion runs partitions where they are polled, and no query would wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_that_is_dropped_gives_its_memory_back() {
    const POLLS: usize = 4;
    let world = World::new().await;
    let mut dropped_with_memory = 0;
    for ask in ASKS {
        for polls in 1..=POLLS {
            let (engine, pool) = world.refusing(usize::MAX);
            let mut asking = ask.of(&engine);
            let waits = (0..polls).all(|_| asking.as_mut().now_or_never().is_none());
            dropped_with_memory += usize::from(waits && pool.reserved() > 0);
            drop(asking);
            nothing_is_held(&*pool, &format!("{ask:?}, dropped after {polls}")).await;
        }
    }
    assert!(dropped_with_memory > 0, "no query was dropped while it held memory");
}

#[tokio::test]
async fn a_pool_that_is_too_small_refuses_what_is_large_and_answers_what_is_small() {
    let world = World::new().await;
    let peak_of = async |ask: Ask| {
        let engine = world.limited(1 << 30);
        ask.of(&engine).await.unwrap();
        engine.memory().peak()
    };
    let (small, large) = (peak_of(Ask::Values("name", None)).await, peak_of(Ask::Metrics("{ } | rate() by (span.user)")).await);
    assert!(small * 2 < large, "{small} {large}");
    let tight = world.limited(small * 2);
    let refused = Ask::Metrics("{ } | rate() by (span.user)").of(&tight).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Exhausted);
    let text = refused.to_string();
    assert!(text.contains("query_frontend.max_memory_bytes"), "{text}");
    nothing_is_held(&**tight.memory(), "a refused query").await;
    Ask::Values("name", None).of(&tight).await.unwrap();
    nothing_is_held(&**tight.memory(), "an answered query").await;
    assert!(tight.memory().refused() > 0 && tight.memory().peak() <= small * 2);
}

#[tokio::test]
async fn blocks_are_opened_ahead_of_queries_the_newest_first() {
    let world = World::new().await;
    let opened = |engine: &Engine| {
        engine.core.blocks.run_pending_tasks();
        let mut ids: Vec<BlockId> = engine.core.blocks.iter().map(|(id, _)| *id).collect();
        ids.sort();
        ids
    };
    let mut metas = world.catalog.snapshot(&TenantId::single()).blocklist.live().to_vec();
    let engine = world.limited(1 << 30);
    engine.warm().await;
    let mut all: Vec<BlockId> = metas.iter().map(|meta| meta.id).collect();
    all.sort();
    assert_eq!(opened(&engine), all);
    engine.core.joined.run_pending_tasks();
    assert_eq!(engine.core.joined.entry_count(), 1, "what the first query over them needs");

    metas.sort_by_key(|meta| meta.max_end_unix_nano);
    let newest = metas.pop().unwrap();
    let one = engine.core.blocks.get(&newest.id).unwrap().memory_bytes() as u64;
    let settings = EngineSettings { block_cache_bytes: 2 * one, ..EngineSettings::default() };
    let small = Engine::new(world.store.clone(), world.catalog.clone(), world.live.clone(), settings);
    small.warm().await;
    assert_eq!(opened(&small), [newest.id], "half the cache is for queries");
    small.core.joined.run_pending_tasks();
    assert_eq!(small.core.joined.entry_count(), 0, "traces may lie in blocks that are not open");

    world.store.delete(&newest.object_path(INDEX_NAME)).await.unwrap();
    let damaged = world.limited(1 << 30);
    damaged.warm().await;
    assert_eq!(opened(&damaged), [metas[0].id], "the others are opened all the same");
}
