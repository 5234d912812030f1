//! Metrics queries with and without the cache of partial series: the answers are the same, whatever the window and the step, while spans are
//! written, flushed and merged; and what is known is not read again.

use std::sync::{Arc, Mutex};

use object_store::{ObjectStore, memory::InMemory};
use prometheus::Registry;
use prost::Message;
use rand::{Rng, SeedableRng, rngs::StdRng};
use skein_engine::{
    block::{put::put_block, writer::write_block},
    catalog::{BlockMeta, Catalog, CatalogMetrics},
    compact::{BlockMerger, Merger},
    exec::{
        engine::{Engine, EngineSettings},
        live::{LiveGeneration, LiveSpans},
    },
    metrics::intervals::Intervals,
    query::{MetricsRequest, MetricsResult, QueryService},
    spans::{
        BlockId,
        builder::SpanBuilder,
        gather::OrderedSpans,
        schema::{ColumnPolicy, SpanSchema},
        tree::order_spans,
    },
    tenant::TenantId,
};
use skein_proto::otlp::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, TracesData, span::Event},
};

use crate::harness::{self, wait};

const SECOND: u64 = 1_000_000_000;
/// Spans begin in this many seconds from here.
const BASE_SECONDS: u64 = 1000;
const LENGTH_SECONDS: u64 = 100;
/// Histories, and questions about each of their states.
const WORLDS: u64 = 12;
const QUESTIONS: usize = 12;

const QUERIES: [&str; 14] = [
    "{ } | rate()",
    "{ } | rate() by (resource.service.name)",
    "{ } | count_over_time() by (span.n, name)",
    "{ span.n > 3 } | count_over_time() by (span.text)",
    "{ name = `a` } >> { } | count_over_time() by (name)",
    "{ } | count() > 2 | rate() by (resource.service.name)",
    "{ } | min_over_time(duration) by (name)",
    "{ } | max_over_time(span.n)",
    "{ } | sum_over_time(span.n) by (name)",
    "{ } | avg_over_time(span.n)",
    "{ } | quantile_over_time(duration, .5, .9) by (name)",
    "{ status = error } | histogram_over_time(duration)",
    "{ } | compare({ status = error })",
    "({ status = error } | rate()) / ({ } | rate())",
];

#[derive(Debug, Default)]
struct Live(Mutex<Vec<LiveGeneration>>);

impl LiveSpans for Live {
    fn live(&self, _: &TenantId) -> Vec<LiveGeneration> {
        self.0.lock().unwrap().clone()
    }

    fn tenants(&self) -> Vec<TenantId> {
        vec![TenantId::single()]
    }
}

/// Two engines over the same spans, and the spans' way from memory into blocks.
struct World {
    random: StdRng,
    store: Arc<dyn ObjectStore>,
    catalog: Arc<Catalog>,
    live: Arc<Live>,
    /// Spans that are not in a block yet.
    head: (BlockId, Vec<ResourceSpans>),
    /// How often something was flushed.
    flushes: u64,
    /// One of how many spans belongs to a trace that may have spans in other blocks.
    split_in: u64,
    cached: Engine,
    registry: Registry,
    plain: Engine,
}

impl World {
    fn new(seed: u64, split_in: u64) -> Self {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let catalog = Arc::new(Catalog::new(CatalogMetrics::new(&Registry::new()).unwrap()));
        let live = Arc::new(Live::default());
        let engine = |partial_cache_bytes| {
            let settings = EngineSettings { partitions: 2, partial_cache_bytes, ..EngineSettings::default() };
            Engine::new(store.clone(), catalog.clone(), live.clone(), settings)
        };
        let (cached, plain, registry) = (engine(64 << 20), engine(0), Registry::new());
        cached.register(&registry).unwrap();
        let head = (BlockId::random(), Vec::new());
        Self { random: StdRng::seed_from_u64(seed), store, catalog, live, head, flushes: 0, split_in, cached, registry, plain }
    }

    /// New spans of new and old traces.
    fn write(&mut self) {
        let count = self.random.random_range(1..60);
        let own = 100 * (self.flushes + 1);
        let spans: Vec<_> = (0..count)
            .map(|_| {
                let first = if self.random.random_range(0..self.split_in) == 0 { 0 } else { own };
                let trace = first + self.random.random_range(1..20);
                random_span(&mut self.random, u128::from(trace))
            })
            .collect();
        self.head.1.extend(spans);
        let generation = LiveGeneration { block: self.head.0, set: set_of(&self.head.1) };
        *self.live.0.lock().unwrap() = vec![generation];
    }

    /// What is live becomes a block.
    async fn flush(&mut self) {
        let (id, spans) = std::mem::replace(&mut self.head, (BlockId::random(), Vec::new()));
        if spans.is_empty() {
            return;
        }
        let set = set_of(&spans);
        let (order, schema) = (order_spans(&set), SpanSchema::of(&set, ColumnPolicy::BLOCK));
        let objects = write_block(&OrderedSpans::new(set, order, schema)).unwrap();
        self.catalog.add_block(put_block(&*self.store, &TenantId::single(), id, objects).await.unwrap());
        self.live.0.lock().unwrap().clear();
        self.flushes += 1;
    }

    /// Two blocks become one.
    async fn merge(&mut self) {
        let tenant = TenantId::single();
        let blocks: Vec<Arc<BlockMeta>> = self.catalog.snapshot(&tenant).blocklist.overlapping(None).take(2).cloned().collect();
        if blocks.len() == 2 {
            let merged = BlockMerger::new(self.store.clone()).merge(&tenant, &blocks).await.unwrap();
            self.catalog.add_block(merged);
        }
    }

    /// Asks both engines, the one with the cache twice.
    async fn check(&mut self) {
        for _ in 0..QUESTIONS {
            let query = QUERIES[self.random.random_range(0..QUERIES.len())];
            let hints = ["", " with (extrapolate=true)", " with (exact=true)"][self.random.random_range(0..3)];
            // Two are from the whole window, thirty from some of its intervals.
            let exemplars = [0, 0, 2, 30][self.random.random_range(0..4)];
            let request = MetricsRequest { exemplars, ..request(&format!("{query}{hints}"), self.intervals()) };
            let expected = ask(&self.plain, &request).await;
            for time in ["first", "second"] {
                assert_eq!(ask(&self.cached, &request).await.series, expected.series, "{time} time: {request:?}");
            }
        }
    }

    /// A window of a dashboard, mostly: of few steps, some with a phase of their own, some at one instant.
    fn intervals(&mut self) -> Intervals {
        let random = &mut self.random;
        let mut time = || random.random_range(0..LENGTH_SECONDS + 20) * SECOND;
        let (a, b) = (time(), time() + SECOND);
        let start = (BASE_SECONDS - 10) * SECOND + a.min(b);
        let end = start + a.abs_diff(b) + SECOND;
        match random.random_range(0..4) {
            0 => Intervals::of_instant(start + random.random_range(0..SECOND), end + SECOND).unwrap(),
            1 => Intervals::of_instant((BASE_SECONDS - 1) * SECOND, (BASE_SECONDS + LENGTH_SECONDS + 10) * SECOND).unwrap(),
            _ => Intervals::of_range(start, end, [1, 2, 7, 10, 60][random.random_range(0..5)] * SECOND).unwrap(),
        }
    }

    /// A counter or gauge of the cache; of requests those with this result.
    fn metric(&self, name: &str, result: Option<&str>) -> u64 {
        let families = self.registry.gather();
        let metrics = families.iter().filter(|family| family.name() == name).flat_map(|family| family.get_metric());
        let wanted = metrics.filter(|metric| result.is_none_or(|result| metric.get_label().iter().any(|label| label.value() == result)));
        wanted.map(|metric| (metric.get_counter().get_value() + metric.get_gauge().get_value()) as u64).sum()
    }

    fn requests(&self, result: &str) -> u64 {
        self.metric("skein_engine_partial_cache_requests_total", Some(result))
    }
}

/// Without exemplars.
fn request(query: &str, intervals: Intervals) -> MetricsRequest {
    MetricsRequest { query: query.to_owned(), intervals, max_series: 0, exemplars: 0, sampling_attribute: Some("n".into()) }
}

async fn ask(engine: &Engine, request: &MetricsRequest) -> MetricsResult {
    engine.metrics(&TenantId::single(), request.clone()).await.unwrap_or_else(|error| panic!("{}: {error}", request.query))
}

fn set_of(spans: &[ResourceSpans]) -> skein_engine::spans::set::SpanSet {
    let mut builder = SpanBuilder::default();
    skein_ingest::decode::decode(&TracesData { resource_spans: spans.to_vec() }.encode_to_vec(), &mut builder).unwrap();
    builder.snapshot()
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// A span; some begin exactly on the edge of an interval.
fn random_span(random: &mut StdRng, trace: u128) -> ResourceSpans {
    let id = random.random_range(1..6u64);
    let nanos = if random.random_range(0..4) == 0 { 0 } else { random.random_range(0..SECOND) };
    let start = (BASE_SECONDS + random.random_range(0..LENGTH_SECONDS)) * SECOND + nanos;
    let pick = |random: &mut StdRng, texts: &[&str]| texts[random.random_range(0..texts.len())].to_owned();
    let mut attributes = Vec::new();
    match random.random_range(0..4) {
        0 => {}
        1 => attributes.push(attribute("n", Value::StringValue("5".into()))),
        _ => attributes.push(attribute("n", Value::IntValue(random.random_range(0..9)))),
    }
    if random.random() {
        attributes.push(attribute("text", Value::StringValue(pick(random, &["x", "y", "", "z"]))));
        attributes.push(attribute("flag", Value::BoolValue(random.random())));
    }
    let event = |name: String| Event { name, attributes: vec![attribute("e", Value::DoubleValue(0.5))], ..Event::default() };
    let span = Span {
        trace_id: trace.to_be_bytes().to_vec(),
        span_id: id.to_be_bytes().to_vec(),
        parent_span_id: if id == 1 { Vec::new() } else { (id / 2).to_be_bytes().to_vec() },
        name: pick(random, &["a", "b", "c"]),
        start_time_unix_nano: start,
        end_time_unix_nano: start + random.random_range(0..3 * SECOND),
        status: Some(Status { code: random.random_range(0..3), message: String::new() }),
        events: (0..random.random_range(0..3)).map(|_| event(pick(random, &["e1", "e2"]))).collect(),
        attributes,
        ..Span::default()
    };
    let service = attribute("service.name", Value::StringValue(pick(random, &["shop", "store"])));
    let resource = Resource { attributes: vec![service], ..Resource::default() };
    let scope_spans = vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }];
    ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() }
}

#[test]
fn answers_with_and_without_the_cache_are_equal_while_spans_move() {
    let seed = harness::seed("partial_cache");
    let mut hits = 0;
    for number in 0..WORLDS {
        let mut world = World::new(seed.wrapping_add(number), 8);
        wait(async {
            for step in 0..6 {
                world.write();
                world.check().await;
                world.flush().await;
                world.check().await;
                if step % 2 == 1 {
                    world.merge().await;
                    world.check().await;
                }
            }
        });
        hits += world.requests("hit");
    }
    assert!(hits > 1000, "too few answers came from the cache: {hits}");
}

#[test]
fn a_window_that_has_moved_on_reads_only_what_is_new() {
    let (mut world, mut kept) = (World::new(1, u64::MAX), 0);
    wait(async {
        for _ in 0..3 {
            world.write();
            world.flush().await;
        }
        let of_dashboard = |query: &str, start: u64| {
            let intervals = Intervals::of_range(start * SECOND, (start + 200) * SECOND, 10 * SECOND).unwrap();
            MetricsRequest { exemplars: 100, ..request(query, intervals) }
        };
        for query in QUERIES.into_iter().filter(|query| !query.contains('/')) {
            let first = ask(&world.cached, &of_dashboard(query, 960)).await.stats;
            let moved = ask(&world.cached, &of_dashboard(query, 970)).await.stats;
            // A row group in which no trace has enough spans is known to have no match without being read.
            assert_eq!((first.row_groups + first.row_groups_skipped, first.row_groups_cached), (3, 0), "{query}");
            assert!(first.bytes > 0 && first.spans > 0, "{query}");
            assert_eq!((moved.row_groups, moved.row_groups_cached), (0, first.row_groups), "{query}");
            assert_eq!((moved.bytes, moved.reads, moved.spans), (0, 0, 0), "{query}");
            kept += first.row_groups;
        }
    });
    assert_eq!(world.requests("hit"), kept);
    assert!(world.metric("skein_engine_partial_cache_bytes", None) > kept * 256);
}

#[test]
fn other_hints_are_not_taken_for_the_same() {
    let mut world = World::new(3, u64::MAX);
    let intervals = Intervals::of_range(1_000 * SECOND, 1_100 * SECOND, SECOND).unwrap();
    let mut asked = 0;
    wait(async {
        world.write();
        world.flush().await;
        // Stretches of exemplars last for the hundred seconds, for 8 s, and for one.
        for exemplars in [0, 2, 30, 1000] {
            for hints in ["", " with (extrapolate=true)", " with (exact=true)", " with (exact=true, extrapolate=true)"] {
                let request = MetricsRequest { exemplars, ..request(&format!("{{ }} | quantile_over_time(duration, .5){hints}"), intervals) };
                let expected = ask(&world.plain, &request).await.series;
                assert_eq!(expected.iter().any(|series| !series.exemplars.is_empty()), exemplars > 0, "{request:?}");
                for time in ["first", "second"] {
                    assert_eq!(ask(&world.cached, &request).await.series, expected, "{time} time: {request:?}");
                }
                asked += 1;
            }
        }
    });
    assert_eq!((world.requests("hit"), world.requests("miss")), (asked, asked));
}

#[test]
fn another_phase_or_step_or_query_is_not_taken_for_the_same() {
    let mut world = World::new(2, u64::MAX);
    wait(async {
        world.write();
        world.flush().await;
        for intervals in [
            Intervals::of_range(1_000 * SECOND, 1_100 * SECOND, 7 * SECOND).unwrap(),
            Intervals::of_range(1_000 * SECOND, 1_100 * SECOND, 9 * SECOND).unwrap(),
            Intervals::of_instant(990 * SECOND, 1_200 * SECOND).unwrap(),
            Intervals::of_instant(1_050 * SECOND, 1_200 * SECOND).unwrap(),
        ] {
            for query in ["{ } | count_over_time()", "{ } | count_over_time() by (name)", "{ name != `a` } | count_over_time() by (name)"] {
                let request = request(query, intervals);
                let expected = ask(&world.plain, &request).await.series;
                for time in ["first", "again"] {
                    assert_eq!(ask(&world.cached, &request).await.series, expected, "{time} {query} in {intervals:?}");
                }
            }
        }
    });
    assert_eq!((world.requests("hit"), world.requests("miss")), (12, 12), "an instant whose window cuts the block has an entry of its own");
}
