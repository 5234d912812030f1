//! Tails beside spans that arrive, blocks that are made of them, and blocks that are merged, in random order, against `traceql()` over everything in the
//! end.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use arrow::util::display::{ArrayFormatter, FormatOptions};
use object_store::{ObjectStore, memory::InMemory};
use prometheus::Registry;
use prost::Message;
use skein_proto::otlp::common::v1::{AnyValue, KeyValue, any_value::Value as Otlp};

use super::*;
use crate::{
    block::{put::put_block, writer::write_block},
    catalog::{Catalog, CatalogMetrics},
    compact::{BlockMerger, Merger},
    error::ErrorKind,
    exec::{
        engine::EngineSettings,
        live::{GenerationSize, LiveGeneration, LiveSpans},
    },
    spans::{
        BlockId,
        builder::{SpanBuilder, SpanFields},
        gather::OrderedSpans,
        schema::{ColumnPolicy, SpanSchema},
        set::SpanSet,
        tree::order_spans,
    },
    sql::SqlService,
};

const SECOND: u64 = 1_000_000_000;
const BASE: u64 = 1_700_000_000;

/// One span.
#[derive(Debug, Clone)]
struct Span {
    trace: u64,
    id: u64,
    parent: u64,
    name: &'static str,
    code: Otlp,
}

fn span(trace: u64, id: u64, parent: u64, name: &'static str) -> Span {
    Span { trace, id, parent, name, code: Otlp::IntValue(id as i64) }
}

fn push(builder: &mut SpanBuilder, span: &Span) {
    let (resource, scope) = (builder.resource(None, b""), builder.scope(None, b""));
    builder.begin_span();
    let pair = KeyValue { key: "code".into(), value: Some(AnyValue { value: Some(span.code.clone()) }), ..KeyValue::default() };
    builder.attribute(&pair.encode_to_vec()).unwrap();
    let start_unix_nano = (BASE + span.trace) * SECOND + span.id;
    let fields = SpanFields {
        trace_id: u128::from(span.trace).to_be_bytes(),
        span_id: span.id.to_be_bytes(),
        parent_span_id: span.parent.to_be_bytes(),
        start_unix_nano,
        end_unix_nano: start_unix_nano + 100,
        name: span.name.as_bytes(),
        ..SpanFields::default()
    };
    builder.finish_span(resource, scope, &fields);
}

#[derive(Debug)]
struct State {
    block: BlockId,
    head: SpanBuilder,
    sealed: Vec<LiveGeneration>,
}

/// Live spans that go the way of the ingester's, step by step.
#[derive(Debug)]
struct Live(Mutex<State>);

impl LiveSpans for Live {
    fn live(&self, _: &TenantId) -> Vec<LiveGeneration> {
        let mut state = self.0.lock().unwrap();
        let head = LiveGeneration { block: state.block, set: state.head.snapshot() };
        state.sealed.iter().cloned().chain([head]).collect()
    }

    fn tenants(&self) -> Vec<TenantId> {
        vec![TenantId::single()]
    }

    fn sizes(&self, _: &TenantId) -> Vec<GenerationSize> {
        let state = self.0.lock().unwrap();
        let sealed = |live: &LiveGeneration| GenerationSize { block: live.block, spans: live.set.len(), is_sealed: true };
        let head = GenerationSize { block: state.block, spans: state.head.len(), is_sealed: false };
        state.sealed.iter().map(sealed).chain([head]).filter(|size| size.spans > 0).collect()
    }
}

/// Spans that arrive, and an engine over them.
struct World {
    store: Arc<dyn ObjectStore>,
    catalog: Arc<Catalog>,
    live: Arc<Live>,
    engine: Engine,
}

impl World {
    fn new() -> Self {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let catalog = Arc::new(Catalog::new(CatalogMetrics::new(&Registry::new()).unwrap()));
        let live = Arc::new(Live(Mutex::new(State { block: BlockId::random(), head: SpanBuilder::default(), sealed: Vec::new() })));
        let settings = EngineSettings { partitions: 2, ..EngineSettings::default() };
        let engine = Engine::new(store.clone(), catalog.clone(), live.clone(), settings);
        Self { store, catalog, live, engine }
    }

    fn push<'a>(&self, spans: impl IntoIterator<Item = &'a Span>) {
        let mut state = self.live.0.lock().unwrap();
        spans.into_iter().for_each(|span| push(&mut state.head, span));
    }

    fn seal(&self) {
        let mut state = self.live.0.lock().unwrap();
        if !state.head.is_empty() {
            let mut head = std::mem::take(&mut state.head);
            let block = std::mem::replace(&mut state.block, BlockId::random());
            state.sealed.push(LiveGeneration { block, set: head.snapshot() });
        }
    }

    fn oldest_sealed(&self) -> Option<LiveGeneration> {
        self.live.0.lock().unwrap().sealed.first().cloned()
    }

    async fn add_block(&self, block: BlockId, set: SpanSet) {
        if self.catalog.snapshot(&TenantId::single()).blocklist.known().any(|meta| meta.id == block) {
            return;
        }
        let order = order_spans(&set);
        let schema = SpanSchema::of(&set, ColumnPolicy::BLOCK);
        let objects = write_block(&OrderedSpans::new(set, order, schema)).unwrap();
        self.catalog.add_block(put_block(&*self.store, &TenantId::single(), block, objects).await.unwrap());
    }

    /// The oldest sealed generation becomes a block, which is there while it still is live.
    async fn write(&self) {
        if let Some(sealed) = self.oldest_sealed() {
            self.add_block(sealed.block, sealed.set).await;
        }
    }

    /// The same, and is live no more.
    async fn flush(&self) {
        if let Some(sealed) = self.oldest_sealed() {
            self.add_block(sealed.block, sealed.set).await;
            self.live.0.lock().unwrap().sealed.remove(0);
        }
    }

    async fn merge(&self) {
        let is_live = |id| self.live.0.lock().unwrap().sealed.iter().any(|live| live.block == id);
        let blocks = self.catalog.snapshot(&TenantId::single()).blocklist.live().iter().filter(|meta| !is_live(meta.id)).cloned().collect::<Vec<_>>();
        if blocks.len() > 1 {
            let mut merged = BlockMerger::new(self.store.clone()).merge(&TenantId::single(), &blocks[..2]).await.unwrap();
            merged.replaces = blocks[..2].iter().map(|meta| meta.id).collect();
            self.catalog.add_block(merged);
        }
    }

    async fn tail(&self, query: &str, columns: &[&str], window: Option<Window>) -> Result<Tail> {
        let columns = Some(columns.iter().map(|name| (*name).to_owned()).collect());
        self.engine.tail(&TenantId::single(), TailRequest { query: query.into(), columns, window }).await
    }

    /// What `traceql()` finds over everything, a row a line, sorted.
    async fn everything(&self, query: &str, columns: &[&str]) -> Vec<String> {
        let columns: Vec<String> = columns.iter().map(|name| format!("\"{name}\"")).collect();
        let statement = format!("SELECT {} FROM traceql('{query}')", columns.join(", "));
        let rows = self.engine.prepare(&TenantId::single(), &statement).await.unwrap().run(None).await.unwrap();
        let batches: Vec<RecordBatch> = rows.batches.try_collect().await.unwrap();
        let mut lines: Vec<String> = batches.iter().flat_map(lines_of).collect();
        lines.sort();
        lines
    }

    /// Passes until all is looked at, adding the rows to `told`.
    async fn pass(&self, mut tail: Tail, told: &mut Vec<String>) -> Tail {
        for _ in 0..1000 {
            if !tail.is_behind() {
                return tail;
            }
            let (next, pass) = self.engine.tail_pass(tail).await.unwrap();
            tail = next;
            assert!(pass.rows.as_ref().is_none_or(|rows| rows.num_rows() > 0 && rows.schema() == tail.schema()));
            told.extend(pass.rows.iter().flat_map(lines_of));
        }
        panic!("a tail that is behind after a thousand passes");
    }
}

fn lines_of(batch: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::default().with_null("null");
    let columns: Vec<_> = batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
    (0..batch.num_rows()).map(|row| columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join(" ")).collect()
}

/// Numbers that look random (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// Spans of ten traces, shuffled, so that children come before parents and traces go on for long.
fn random_spans(random: &mut Random) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for trace in 1..=10 {
        let first = spans.len() as u64 + 1;
        for id in first..first + 1 + random.below(12) {
            let parent = if id == first { 0 } else { first + random.below(id - first) };
            let name = ["a", "b", "c", "d"][random.below(4) as usize];
            spans.push(span(trace, id, parent, name));
        }
    }
    for at in (1..spans.len()).rev() {
        spans.swap(at, random.below(at as u64 + 1) as usize);
    }
    spans
}

/// What finds more when there are more spans, and never less.
const GROWING: [&str; 7] = [
    r#"{ name = "b" }"#,
    "{ }",
    r#"{ name = "a" } >> { name = "b" }"#,
    r#"{ name = "a" } > { name = "c" }"#,
    r#"{ name = "a" } ~ { name = "b" }"#,
    r#"{ name = "a" } && { name = "d" }"#,
    r#"{ name != "d" } | count() > 2"#,
];

const SHOWN: [&str; 4] = ["trace_id", "span_id", "name", "span.code"];

async fn check_world(seed: u64) -> usize {
    let (mut random, world) = (Random(seed), World::new());
    let spans = random_spans(&mut random);
    let (mut at, mut tails, mut after) = (0, Vec::new(), BTreeSet::new());
    let begin = random.below(spans.len() as u64) as usize;
    while at < spans.len() {
        let portion = &spans[at..spans.len().min(at + 1 + random.below(8) as usize)];
        if at >= begin && tails.is_empty() {
            for query in GROWING {
                let mut tail = world.tail(query, &SHOWN, None).await.unwrap();
                tail.watch.in_portions_of(1 + random.below(9) as usize);
                tails.push((query, tail, Vec::new()));
            }
        }
        at += portion.len();
        world.push(portion);
        if !tails.is_empty() {
            after.extend(portion.iter().map(|span| span.trace));
            // Copies, which count once.
            let again = &portion[random.below(portion.len() as u64) as usize..];
            if random.below(3) == 0 {
                world.push(again);
            }
        }
        for _ in 0..random.below(5) {
            match random.below(6) {
                0 => world.seal(),
                1 => world.write().await,
                2 => world.flush().await,
                3 => world.merge().await,
                _ => {
                    let some = random.below(1 << GROWING.len());
                    let mut passed = Vec::new();
                    for (number, (query, mut tail, mut told)) in tails.into_iter().enumerate() {
                        if some & (1 << number) != 0 {
                            tail = world.pass(tail, &mut told).await;
                        }
                        passed.push((query, tail, told));
                    }
                    tails = passed;
                }
            }
        }
    }
    let mut checked = 0;
    for (query, tail, mut told) in tails {
        world.pass(tail, &mut told).await;
        told.sort();
        let of_changed = |line: &String| after.contains(&u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap());
        let expected: Vec<String> = world.everything(query, &SHOWN).await.into_iter().filter(of_changed).collect();
        assert_eq!(told, expected, "{query}, seed {seed}");
        if query == GROWING[0] {
            assert_eq!(told, named_b(&spans, &after), "seed {seed}");
        }
        checked += told.len();
    }
    checked
}

/// The spans named `b` of the traces `after`, found plainly.
fn named_b(spans: &[Span], after: &BTreeSet<u64>) -> Vec<String> {
    let wanted = spans.iter().filter(|span| span.name == "b" && after.contains(&span.trace));
    let mut lines: Vec<String> = wanted.map(|span| format!("{:032x} {:016x} b {}", span.trace, span.id, span.id)).collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn a_tail_tells_what_a_search_finds_in_the_traces_that_got_spans() {
    let mut checked = 0;
    for seed in 0..50 {
        checked += check_world(seed).await;
    }
    assert!(checked > 3_000, "{checked}");
}

async fn told(world: &World, tail: &mut Option<Tail>) -> Vec<String> {
    let mut lines = Vec::new();
    *tail = Some(world.pass(tail.take().unwrap(), &mut lines).await);
    lines.sort();
    lines
}

#[tokio::test]
async fn a_tail_begins_with_what_comes_after_it_unless_it_looks_back() {
    let world = World::new();
    world.push(&[span(1, 1, 0, "stored")]);
    world.seal();
    world.flush().await;
    world.push(&[span(2, 2, 0, "live"), span(50, 3, 0, "later")]);
    let window = |start: u64, end: u64| Some(Window { start_seconds: (BASE + start) as u32, end_seconds: (BASE + end) as u32 });
    let mut plain = Some(world.tail("{ }", &["name"], None).await.unwrap());
    let mut back = Some(world.tail("{ }", &["name"], window(0, 10)).await.unwrap());
    let mut none = Some(world.tail("{ }", &["name"], window(100, 110)).await.unwrap());
    assert!(!plain.as_mut().unwrap().is_behind());
    assert_eq!(told(&world, &mut plain).await, [""; 0]);
    assert_eq!(told(&world, &mut back).await, ["live", "stored"]);
    assert_eq!(told(&world, &mut none).await, [""; 0]);
    // Outside of the window, and of a trace that was told of.
    world.push(&[span(60, 4, 0, "new"), span(1, 5, 1, "late")]);
    assert_eq!(told(&world, &mut plain).await, ["late", "new", "stored"]);
    assert_eq!(told(&world, &mut back).await, ["late", "new"]);
    assert_eq!(told(&world, &mut none).await, ["late", "new", "stored"]);
}

#[tokio::test]
async fn generations_that_no_pass_has_seen_are_told_of() {
    let world = World::new();
    world.push(&[span(1, 1, 0, "before"), span(2, 2, 0, "untouched")]);
    let mut tail = Some(world.tail("{ }", &["name"], None).await.unwrap());
    world.push(&[span(1, 3, 1, "within")]);
    for name in ["second", "third"] {
        world.seal();
        world.flush().await;
        world.push(&[span(3, name.len() as u64, 0, name)]);
    }
    world.seal();
    world.flush().await;
    world.merge().await;
    assert_eq!(told(&world, &mut tail).await, ["before", "second", "third", "within"]);
    // Blocks that are merged are nothing new.
    world.merge().await;
    assert_eq!(told(&world, &mut tail).await, [""; 0]);
}

#[tokio::test]
async fn a_generation_that_was_looked_at_is_not_looked_at_again_as_a_block() {
    let world = World::new();
    let mut tail = Some(world.tail("{ }", &["name"], None).await.unwrap());
    world.push(&[span(1, 1, 0, "a")]);
    assert_eq!(told(&world, &mut tail).await, ["a"]);
    world.seal();
    assert!(!tail.as_mut().unwrap().is_behind());
    world.flush().await;
    let (_, pass) = world.engine.tail_pass(tail.take().unwrap()).await.unwrap();
    assert!(pass.spans == 0 && pass.rows.is_none() && !pass.is_behind);
}

#[tokio::test]
async fn a_block_that_is_gone_before_it_was_looked_at_ends_the_tail() {
    let world = World::new();
    world.push(&[span(1, 1, 0, "a")]);
    let tail = world.tail("{ }", &["name"], None).await.unwrap();
    world.push(&[span(1, 2, 0, "b")]);
    world.seal();
    let block = world.oldest_sealed().unwrap().block;
    world.flush().await;
    world.catalog.remove(&TenantId::single(), block);
    let error = world.engine.tail_pass(tail).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && error.to_string().contains("begin again with a lookback"), "{error}");
}

#[tokio::test]
async fn columns_keep_the_type_that_they_had_in_the_beginning() {
    let world = World::new();
    world.push(&[span(1, 1, 0, "a")]);
    let columns = ["name", "span.code", "span.later", "resource.service.name", "spanset"];
    let mut tail = Some(world.tail("{ }", &columns, None).await.unwrap());
    let types: BTreeMap<String, String> =
        tail.as_ref().unwrap().schema().fields().iter().map(|field| (field.name().clone(), field.data_type().to_string())).collect();
    assert_eq!((types["span.code"].as_str(), types["span.later"].as_str()), ("Int64", "Utf8View"));
    let coded = |id, code| Span { code, ..span(2, id, 0, "b") };
    world.push(&[coded(2, Otlp::IntValue(7)), coded(3, Otlp::StringValue("seven".into())), coded(4, Otlp::DoubleValue(7.5))]);
    assert_eq!(told(&world, &mut tail).await, ["b 7 null null 0", "b null null null 0", "b null null null 0"]);
}

#[tokio::test]
async fn what_cannot_be_tailed_is_refused() {
    let world = World::new();
    let refused = |query: &'static str, columns: &'static [&'static str]| world.tail(query, columns, None);
    for (query, columns, part) in [
        ("{ } | rate()", &["name"][..], "a tail takes a search"),
        ("{ nam = }", &["name"], "line 1, col 3"),
        ("{ }", &["nam"], "there is no column"),
        ("{ }", &[], "names 0 columns"),
    ] {
        let error = refused(query, columns).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains(part), "{query}: {error} lacks {part}");
    }
    let log = world.engine.query_log().latest(&TenantId::single());
    assert_eq!(log.len(), 4, "what was refused is in the log");
}

#[tokio::test]
async fn passes_are_in_the_log_and_give_their_memory_back() {
    let world = World::new();
    let tail = world.tail(GROWING[0], &["name"], None).await.unwrap();
    world.push(&[span(1, 1, 0, "b"), span(1, 2, 1, "c")]);
    let (tail, pass) = world.engine.tail_pass(tail).await.unwrap();
    let log = world.engine.query_log().latest(&TenantId::single());
    let [query] = log.as_slice() else { panic!("{log:?}") };
    assert_eq!((query.text.as_str(), query.language, query.error.as_deref()), (GROWING[0], Language::Traceql, None));
    assert_eq!((query.stats.spans, pass.spans), (2, 2));
    drop((tail, pass));
    assert_eq!(datafusion::execution::memory_pool::MemoryPool::reserved(&**world.engine.memory()), 0);
}
