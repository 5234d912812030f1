//! `compare()` against counting that is written for reading: every value of every attribute of random spans, by group and interval, wherever
//! the spans lie and in whatever form their attributes are stored.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use object_store::{ObjectStore, memory::InMemory};
use parquet::file::metadata::ParquetMetaDataReader;
use prometheus::Registry;
use prost::Message;
use rand::{Rng, SeedableRng, rngs::StdRng};
use skein_engine::{
    block::{
        put::put_block,
        writer::{BlockObjects, write_block},
    },
    catalog::{Catalog, CatalogMetrics},
    exec::{
        engine::{Engine, EngineSettings},
        live::{LiveGeneration, LiveSpans},
    },
    metrics::intervals::Intervals,
    query::{MetricsRequest, QueryService},
    spans::{
        BlockId,
        builder::SpanBuilder,
        gather::OrderedSpans,
        schema::{ColumnPolicy, SpanSchema},
        set::SpanSet,
        tree::order_spans,
    },
    tenant::TenantId,
};
use skein_proto::otlp::{
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, TracesData, span::Event, span::Link},
};

use crate::harness::{self, wait};

const SECOND: u64 = 1_000_000_000;
const START_SECONDS: u64 = 1000;
const STEP_SECONDS: u64 = 10;
const INTERVALS: u64 = 6;

/// Counts by group, attribute, and value as text with its type; for each the spans by interval.
type Counts = BTreeMap<(String, String, String), Vec<f64>>;
/// A value, and how often it occurs in each interval.
type Counted = (String, Vec<f64>);

/// One span with all that its message does not say.
struct Known {
    span: Span,
    resource: Vec<KeyValue>,
    scope: InstrumentationScope,
    root: (String, String),
    children: i64,
}

fn text(text: &str) -> Value {
    Value::StringValue(text.to_owned())
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// A key of few values, or of many, of several types.
fn random_value(random: &mut StdRng, key: &str) -> Value {
    match key {
        "few" => text(["x", "y", ""][random.random_range(0..3)]),
        "many" => text(&format!("v{}", random.random_range(0..1000))),
        "int" => Value::IntValue(random.random_range(-3..3)),
        "far" => Value::IntValue(random.random::<i64>()),
        "double" => Value::DoubleValue([0.0, -0.0, 1.0, 2.5][random.random_range(0..4)]),
        "bool" => Value::BoolValue(random.random()),
        "array" => Value::ArrayValue(ArrayValue { values: ["x", "y"].map(|value| AnyValue { value: Some(text(value)) }).to_vec() }),
        // The same key with several types.
        _ => [text("1"), Value::IntValue(2), Value::DoubleValue(3.5), Value::BoolValue(true)][random.random_range(0..4)].clone(),
    }
}

fn random_attributes(random: &mut StdRng) -> Vec<KeyValue> {
    let keys = ["few", "many", "int", "far", "double", "bool", "array", "mixed"];
    let present: Vec<&str> = keys.into_iter().filter(|_| random.random_range(0..3) > 0).collect();
    present.into_iter().map(|key| attribute(key, random_value(random, key))).collect()
}

fn random_trace(random: &mut StdRng, id: u128) -> Vec<Known> {
    let children = random.random_range(0..4);
    let service = |number: usize| ["shop", "store"][number % 2];
    let root = (format!("root{}", random.random_range(0..2)), service(id as usize).to_owned());
    let name = |at: i64| if at == 0 { root.0.clone() } else { "child".to_owned() };
    (0..=children)
        .map(|at| {
            let start = (START_SECONDS + random.random_range(0..STEP_SECONDS * INTERVALS)) * SECOND + random.random_range(1..SECOND);
            let event = |random: &mut StdRng| Event {
                name: ["", "e"][random.random_range(0..2)].into(),
                attributes: random_attributes(random),
                ..Event::default()
            };
            let link =
                |random: &mut StdRng| Link { trace_id: vec![7; 16], span_id: vec![7; 8], attributes: random_attributes(random), ..Link::default() };
            let span = Span {
                trace_id: id.to_be_bytes().to_vec(),
                span_id: (at as u64 + 1).to_be_bytes().to_vec(),
                parent_span_id: if at == 0 { Vec::new() } else { 1u64.to_be_bytes().to_vec() },
                name: name(at),
                kind: random.random_range(0..6),
                start_time_unix_nano: start,
                end_time_unix_nano: start + 1,
                attributes: random_attributes(random),
                events: (0..random.random_range(0..3)).map(|_| event(random)).collect(),
                links: (0..random.random_range(0..2)).map(|_| link(random)).collect(),
                status: Some(Status { code: random.random_range(0..3), message: ["", "bad"][random.random_range(0..2)].into() }),
                ..Span::default()
            };
            let resource = vec![attribute("service.name", text(service(id as usize + at as usize))), attribute("few", text("x"))];
            let scope = InstrumentationScope {
                name: format!("s{}", at % 2),
                attributes: vec![attribute("int", Value::IntValue(at % 2))],
                ..Default::default()
            };
            Known { span, resource, scope, root: root.clone(), children: if at == 0 { children } else { 0 } }
        })
        .collect()
}

/// A value that counts, with its type: missing ones do not. All arrays here are equal; as text they are empty.
fn shown(value: &Value) -> Option<String> {
    match value {
        Value::StringValue(text) => Some(format!("text {text}")),
        Value::IntValue(value) => Some(format!("int {value}")),
        Value::DoubleValue(value) => Some(format!("double {value:?}")),
        Value::BoolValue(value) => Some(format!("bool {value}")),
        Value::ArrayValue(_) => Some("array ".to_owned()),
        _ => None,
    }
}

/// All attributes of a span, each with one value. Of events and links the last that has one counts.
fn values_of(known: &Known) -> BTreeMap<String, String> {
    let span = &known.span;
    let status = span.status.as_ref().unwrap();
    let mut found = BTreeMap::new();
    let mut set = |name: String, value: &Value| {
        if let Some(value) = shown(value) {
            found.insert(name, value);
        }
    };
    let kind = ["unspecified", "internal", "server", "client", "producer", "consumer"][span.kind as usize];
    for (name, value) in [
        ("name", &*span.name),
        ("kind", kind),
        ("status", ["unset", "ok", "error"][status.code as usize]),
        ("statusMessage", &status.message),
        ("rootName", &known.root.0),
        ("rootServiceName", &known.root.1),
        ("instrumentation:name", &known.scope.name),
        ("instrumentation:version", &known.scope.version),
    ] {
        set(name.to_owned(), &text(value));
    }
    set("span:childCount".to_owned(), &Value::IntValue(known.children));
    let mut all = |scope: &str, attributes: &[KeyValue]| {
        for attribute in attributes {
            set(format!("{scope}.{}", attribute.key), attribute.value.as_ref().and_then(|value| value.value.as_ref()).unwrap());
        }
    };
    all("span", &span.attributes);
    all("resource", &known.resource);
    all("instrumentation", &known.scope.attributes);
    span.events.iter().for_each(|event| all("event", &event.attributes));
    span.links.iter().for_each(|link| all("link", &link.attributes));
    span.events.iter().for_each(|event| set("event:name".to_owned(), &text(&event.name)));
    for _ in &span.links {
        // Trace ids are told without leading zeros.
        set("link:traceID".to_owned(), &text(&"07".repeat(16)[1..]));
        set("link:spanID".to_owned(), &text(&"07".repeat(8)));
    }
    found
}

/// What `compare({ status = error }, top_n)` of all spans is.
fn expected(spans: &[Known], top_n: usize) -> Counts {
    let mut all = Counts::new();
    let mut totals = Counts::new();
    for known in spans {
        let group = if known.span.status.as_ref().unwrap().code == 2 { "selection" } else { "baseline" };
        let at = (known.span.start_time_unix_nano - START_SECONDS * SECOND - 1) / (STEP_SECONDS * SECOND);
        // The first sample stands at the start, so that it is one interval later.
        let add = |counts: &mut Counts, key| counts.entry(key).or_insert_with(|| vec![0.0; INTERVALS as usize + 1])[at as usize + 1] += 1.0;
        for (name, value) in values_of(known) {
            add(&mut all, (group.to_owned(), name.clone(), value));
            add(&mut totals, (format!("{group}_total"), name, "text nil".to_owned()));
        }
    }
    let mut by_attribute: BTreeMap<(String, String), Vec<Counted>> = BTreeMap::new();
    for ((group, name, value), counts) in all {
        by_attribute.entry((group, name)).or_default().push((value, counts));
    }
    for ((group, name), mut values) in by_attribute {
        let text = |value: &str| value.split_once(' ').unwrap().1.to_owned();
        values.sort_by_key(|(value, counts)| (Reverse(counts.iter().sum::<f64>() as u64), text(value)));
        totals.extend(values.into_iter().take(top_n).map(|(value, counts)| ((group.clone(), name.clone(), value), counts)));
    }
    totals
}

fn request(top_n: usize) -> MetricsRequest {
    let end = START_SECONDS + STEP_SECONDS * INTERVALS;
    let intervals = Intervals::of_range(START_SECONDS * SECOND, end * SECOND, STEP_SECONDS * SECOND).unwrap();
    let query = format!("{{ }} | compare({{ status = error }}, {top_n})");
    MetricsRequest { query, intervals, max_series: 0, exemplars: 0, sampling_attribute: None }
}

async fn answer(engine: &Engine, top_n: usize) -> Counts {
    let series = engine.metrics(&TenantId::single(), request(top_n)).await.unwrap().series;
    let count = series.len();
    let key = |label: &KeyValue| shown(label.value.as_ref().and_then(|value| value.value.as_ref()).unwrap()).unwrap();
    let found: Counts = series
        .iter()
        .map(|series| {
            let [meta, attribute] = &*series.labels else { panic!("{:?}", series.labels) };
            assert_eq!(meta.key, "__meta_type");
            let group = key(meta).split_once(' ').unwrap().1.to_owned();
            ((group, attribute.key.clone(), key(attribute)), series.samples.iter().map(|sample| sample.value).collect())
        })
        .collect();
    assert_eq!(found.len(), count, "a series twice");
    found
}

fn set_of<'a>(spans: impl Iterator<Item = &'a Known>) -> SpanSet {
    let resource_spans = spans.map(|known| ResourceSpans {
        resource: Some(Resource { attributes: known.resource.clone(), ..Resource::default() }),
        scope_spans: vec![ScopeSpans { scope: Some(known.scope.clone()), spans: vec![known.span.clone()], ..ScopeSpans::default() }],
        ..ResourceSpans::default()
    });
    let mut builder = SpanBuilder::default();
    skein_ingest::decode::decode(&TracesData { resource_spans: resource_spans.collect() }.encode_to_vec(), &mut builder).unwrap();
    builder.snapshot()
}

#[derive(Debug)]
struct Live(Option<LiveGeneration>);

impl LiveSpans for Live {
    fn live(&self, _: &TenantId) -> Vec<LiveGeneration> {
        self.0.clone().into_iter().collect()
    }

    fn tenants(&self) -> Vec<TenantId> {
        vec![TenantId::single()]
    }
}

async fn engine(live: Option<SpanSet>, blocks: Vec<(SpanSet, ColumnPolicy)>) -> Engine {
    let blocks = blocks.into_iter().map(|(set, policy)| objects_of(set, policy)).collect();
    engine_over(EngineSettings { partitions: 2, ..EngineSettings::default() }, live, blocks).await
}

fn objects_of(set: SpanSet, policy: ColumnPolicy) -> BlockObjects {
    let (order, schema) = (order_spans(&set), SpanSchema::of(&set, policy));
    write_block(&OrderedSpans::new(set, order, schema)).unwrap()
}

async fn engine_over(settings: EngineSettings, live: Option<SpanSet>, blocks: Vec<BlockObjects>) -> Engine {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let catalog = Arc::new(Catalog::new(CatalogMetrics::new(&Registry::new()).unwrap()));
    for objects in blocks {
        catalog.add_block(put_block(&*store, &TenantId::single(), BlockId::random(), objects).await.unwrap());
    }
    let live = Live(live.map(|set| LiveGeneration { block: BlockId::random(), set }));
    Engine::new(store, catalog, Arc::new(live), settings)
}

#[test]
fn every_value_is_counted_wherever_it_is_stored() {
    let seed = harness::seed("compare");
    for number in 0..8 {
        let mut random = StdRng::seed_from_u64(seed.wrapping_add(number));
        let spans: Vec<Known> = (1..random.random_range(2..80)).flat_map(|id| random_trace(&mut random, id)).collect();
        let all = || set_of(spans.iter());
        let part = |odd: u8| set_of(spans.iter().filter(move |known| known.span.trace_id[15] % 2 == odd));
        let few_columns = ColumnPolicy { rows_per_mille_min: 150, columns_max: 4 };
        let no_columns = ColumnPolicy { rows_per_mille_min: 1000, columns_max: 0 };
        wait(async {
            for (place, engine) in [
                ("live", engine(Some(all()), Vec::new()).await),
                ("a block", engine(None, vec![(all(), ColumnPolicy::BLOCK)]).await),
                ("a block of few columns", engine(None, vec![(all(), few_columns)]).await),
                ("a block without columns", engine(None, vec![(all(), no_columns)]).await),
                ("two blocks", engine(None, vec![(part(0), ColumnPolicy::BLOCK), (part(1), few_columns)]).await),
                ("live and a block", engine(Some(part(0)), vec![(part(1), ColumnPolicy::BLOCK)]).await),
            ] {
                for top_n in [1000, 3, 1] {
                    let expected = expected(&spans, top_n);
                    for time in ["first", "second"] {
                        assert_eq!(answer(&engine, top_n).await, expected, "{place}, top {top_n}, {time} time");
                    }
                }
            }
        });
    }
}

/// A span for each of `numbers`, with the number as its attribute `id`, all of them without error.
fn numbered(numbers: std::ops::Range<i64>) -> Vec<Known> {
    let span = |number: i64| Span {
        trace_id: (number as u128 + 1).to_be_bytes().to_vec(),
        span_id: 1u64.to_be_bytes().to_vec(),
        name: "a".into(),
        start_time_unix_nano: START_SECONDS * SECOND + 1,
        end_time_unix_nano: START_SECONDS * SECOND + 2,
        attributes: vec![attribute("id", text(&format!("v{number:05}")))],
        status: Some(Status::default()),
        ..Span::default()
    };
    let known = |span: Span| Known {
        root: (span.name.clone(), "shop".to_owned()),
        span,
        resource: vec![attribute("service.name", text("shop"))],
        scope: InstrumentationScope::default(),
        children: 0,
    };
    numbers.map(|number| known(span(number))).collect()
}

#[test]
fn of_too_many_values_only_the_totals_are_told() {
    for (count, told) in [(10_000, true), (10_001, false)] {
        let half = count / 2;
        let (all, first, second) = (numbered(0..count), numbered(0..half), numbered(half..count));
        let mut expected = expected(&all, 2);
        if !told {
            expected.retain(|(_, name, value), _| name != "span.id" || value == "text nil");
        }
        let block = |spans: &[Known]| (set_of(spans.iter()), ColumnPolicy::BLOCK);
        wait(async {
            for engine in [engine(None, vec![block(&all)]).await, engine(None, vec![block(&first), block(&second)]).await] {
                for time in ["first", "second"] {
                    assert_eq!(answer(&engine, 2).await, expected, "{count} values, {time} time");
                }
            }
        });
    }
}

#[test]
fn values_are_not_read_where_there_are_too_many_already() {
    // Those of either block are too many; the second block is the newer one, and read first.
    let mut all = numbered(0..34_000);
    for (number, known) in all.iter_mut().enumerate() {
        known.span.start_time_unix_nano += if number < 17_000 { 0 } else { SECOND };
        known.span.end_time_unix_nano += SECOND;
        let has_none = number.is_multiple_of(3) || (5_000..5_500).contains(&number);
        let value = || attribute("id", text(&format!("{number:050}")));
        known.span.attributes = if has_none { Vec::new() } else { vec![value()] };
    }
    let mut expected = expected(&all, 2);
    expected.retain(|(_, name, value), _| name != "span.id" || value == "text nil");
    let objects = |spans: &[Known]| objects_of(set_of(spans.iter()), ColumnPolicy::BLOCK);
    let (mut older, newer) = (objects(&all[..17_000]), objects(&all[17_000..]));
    older.data = with_damaged_values(&older.data, "span.id");
    let settings = || EngineSettings { partitions: 1, partial_cache_bytes: 0, ..EngineSettings::default() };
    wait(async {
        let alone = engine_over(settings(), None, vec![older.clone()]).await;
        assert!(alone.metrics(&TenantId::single(), request(2)).await.is_err(), "the values can be read");
        assert_eq!(answer(&engine_over(settings(), None, vec![older, newer]).await, 2).await, expected);
    });
}

/// The file `data` with damage behind the first half of a column.
fn with_damaged_values(data: &Bytes, column: &str) -> Bytes {
    let metadata = ParquetMetaDataReader::new().parse_and_finish(data).unwrap();
    let chunk = metadata.row_group(0).columns().iter().find(|chunk| chunk.column_path().parts() == [column]).unwrap();
    let (start, length) = chunk.byte_range();
    let mut bytes = data.to_vec();
    bytes[(start + length / 2) as usize..(start + length) as usize].fill(0xff);
    bytes.into()
}
