//! Metrics of whole engines: exemplars, extrapolation and exact quantiles over blocks and live spans.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, sync::Arc};

use object_store::{ObjectStore, memory::InMemory};
use prometheus::Registry;
use prost::Message;
use skein_proto::{
    otlp::common::v1::{AnyValue, KeyValue, any_value},
    tempo::TimeSeries,
};

use super::{intervals::Intervals, series::label_text, sketch};
use crate::{
    block::{put::put_block, writer::write_block},
    catalog::{Catalog, CatalogMetrics},
    error::ErrorKind,
    exec::{
        engine::{Engine, EngineSettings},
        live::{LiveGeneration, LiveSpans},
    },
    query::{MetricsRequest, QueryService},
    spans::{
        BlockId,
        builder::{SpanBuilder, SpanFields},
        gather::OrderedSpans,
        schema::{ColumnPolicy, SpanSchema},
        set::SpanSet,
        tree::order_spans,
    },
    tenant::TenantId,
};

const SECOND: u64 = 1_000_000_000;

/// A span; those of one trace form a flat list below the first.
#[derive(Debug, Clone, Default)]
struct Span {
    trace: u128,
    start: u64,
    duration: u64,
    name: &'static str,
    error: bool,
    state: String,
    attributes: Vec<(&'static str, any_value::Value)>,
}

fn set_of(spans: &[Span]) -> SpanSet {
    let mut builder = SpanBuilder::default();
    let (resource, scope) = (builder.resource(None, b""), builder.scope(None, b""));
    let mut ids: BTreeMap<u128, u64> = BTreeMap::new();
    for span in spans {
        let id = ids.entry(span.trace).or_default();
        *id += 1;
        builder.begin_span();
        for (key, value) in &span.attributes {
            let value = Some(AnyValue { value: Some(value.clone()) });
            builder.attribute(&KeyValue { key: (*key).into(), value, ..KeyValue::default() }.encode_to_vec()).unwrap();
        }
        builder.finish_span(
            resource,
            scope,
            &SpanFields {
                trace_id: span.trace.to_be_bytes(),
                span_id: id.to_be_bytes(),
                parent_span_id: u64::from(*id > 1).to_be_bytes(),
                start_unix_nano: span.start,
                end_unix_nano: span.start + span.duration,
                name: span.name.as_bytes(),
                trace_state: span.state.as_bytes(),
                status_code: if span.error { 2 } else { 0 },
                ..SpanFields::default()
            },
        );
    }
    builder.snapshot()
}

#[derive(Debug)]
struct Live(SpanSet);

impl LiveSpans for Live {
    fn live(&self, _: &TenantId) -> Vec<LiveGeneration> {
        if self.0.is_empty() { Vec::new() } else { vec![LiveGeneration { block: BlockId::random(), set: self.0.clone() }] }
    }

    fn tenants(&self) -> Vec<TenantId> {
        vec![TenantId::single()]
    }
}

/// An engine with `live` spans and a block for each of `blocks`.
async fn engine_of(live: &[Span], blocks: &[&[Span]], partitions: usize) -> Engine {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let catalog = Arc::new(Catalog::new(CatalogMetrics::new(&Registry::new()).unwrap()));
    for spans in blocks {
        let set = set_of(spans);
        let order = order_spans(&set);
        let schema = SpanSchema::of(&set, ColumnPolicy::BLOCK);
        let objects = write_block(&OrderedSpans::new(set, order, schema)).unwrap();
        catalog.add_block(put_block(&*store, &TenantId::single(), BlockId::random(), objects).await.unwrap());
    }
    Engine::new(store, catalog, Arc::new(Live(set_of(live))), EngineSettings { partitions, ..EngineSettings::default() })
}

fn request(query: &str, intervals: Intervals, exemplars: u32) -> MetricsRequest {
    MetricsRequest { query: query.into(), intervals, max_series: 0, exemplars, sampling_attribute: Some("rate".into()) }
}

async fn ask(engine: &Engine, query: &str, intervals: Intervals, exemplars: u32) -> Vec<TimeSeries> {
    let result = engine.metrics(&TenantId::single(), request(query, intervals, exemplars)).await;
    result.unwrap_or_else(|error| panic!("{query}: {error}")).series
}

/// `label=text,…: value value …` of each series.
fn shown(series: &[TimeSeries]) -> Vec<String> {
    let labels = |labels: &[KeyValue]| labels.iter().map(|label| format!("{}={}", label.key, label_text(label.value.as_ref()))).collect::<Vec<_>>();
    let values = |series: &TimeSeries| series.samples.iter().map(|sample| sample.value.to_string()).collect::<Vec<_>>().join(" ");
    series.iter().map(|series| format!("{}: {}", labels(&series.labels).join(","), values(series))).collect()
}

/// Weights 2 (three spans), 4 (one), 5 by attribute (one), and 1 (two: one without a tracestate, one with a broken one).
fn sampled() -> Vec<Span> {
    let span = |trace: u128, duration: u64, state: &str| Span {
        trace,
        start: 1001 * SECOND,
        duration,
        name: "x",
        state: state.into(),
        attributes: vec![("n", any_value::Value::IntValue(duration as i64 / 1000))],
        ..Span::default()
    };
    let mut spans = vec![
        span(1, 1000, "a=b,ot=th:8"),
        span(1, 3000, "a=b,ot=th:8"),
        span(1, 8000, "ot=rv:ffffffffffffff;th:8"),
        span(2, 8000, "ot=th:c"),
        span(3, 16_000, ""),
        span(4, 1000, ""),
        span(5, 2000, "ot=th:no"),
    ];
    spans[2].error = true;
    spans[4].attributes.push(("rate", any_value::Value::DoubleValue(0.2)));
    spans
}

#[tokio::test]
async fn extrapolated_numbers_are_those_of_hand() {
    let intervals = Intervals::of_instant(1000 * SECOND, 1010 * SECOND).unwrap();
    let spans = sampled();
    for engine in [engine_of(&spans, &[], 2).await, engine_of(&spans[3..5], &[&spans[..3], &spans[5..]], 2).await] {
        let check = async |query: &str, expected: &[&str]| {
            assert_eq!(shown(&ask(&engine, &format!("{query} with (extrapolate=true)"), intervals, 0).await), expected, "{query}");
        };
        // 3·2 + 4 + 5 + 1 + 1.
        check("{ } | count_over_time()", &["__name__=count_over_time: 17"]).await;
        check("{ } | rate()", &["__name__=rate: 1.7"]).await;
        check("{ } | count_over_time() by (status)", &["status=error: 2", "status=unset: 15"]).await;
        // 2·(1 + 3 + 8) + 4·8 + 5·16 + 1 + 2.
        check("{ } | sum_over_time(span.n)", &["__name__=sum_over_time: 139"]).await;
        check("({ } | avg_over_time(span.n)) * 17", &["__name__=avg_over_time: 139"]).await;
        check("{ } | min_over_time(span.n)", &["__name__=min_over_time: 1"]).await;
        check("{ } | max_over_time(span.n)", &["__name__=max_over_time: 16"]).await;
        check("{ } | histogram_over_time(span.n)", &["__bucket=16: 5", "__bucket=2: 1", "__bucket=4: 2", "__bucket=8: 6"]).await;
        // Of 14 spans the seventh lies 4 of 6 into bucket 8, the last bound before which is 4.
        let median = 2f64.powf(2.0 + 4.0 / 6.0);
        check("{ } | quantile_over_time(span.n, .5)", &[&format!("p=0.5: {median}")]).await;
        let compared = async |filter: &str, expected: &[&str]| {
            let query = format!("{filter} | compare({{ status = error }}) with (extrapolate=true)");
            let compared = shown(&ask(&engine, &query, intervals, 0).await);
            for expected in expected {
                assert!(compared.iter().any(|series| series == expected), "{expected} of {query}: {compared:#?}");
            }
        };
        compared("{ }", &["__meta_type=baseline,name=x: 15", "__meta_type=selection,name=x: 2", "__meta_type=baseline,span.n=8: 4"]).await;
        // Few of the spans: of the others nothing is read, but for whose children they are.
        compared("{ span.n > 4 }", &["__meta_type=baseline,name=x: 9", "__meta_type=selection,span.n=8: 2", "__meta_type=baseline,span.n=16: 5"])
            .await;
        compared(
            "{ span.n < 3 }",
            &["__meta_type=baseline,span:childCount=2: 2", "__meta_type=baseline,span:childCount=0: 2", "__meta_type=baseline,span.n=1: 3"],
        )
        .await;
    }
}

const FUNCTIONS: [&str; 10] = [
    "{ } | rate()",
    "{ } | count_over_time() by (name, status)",
    "{ status = error } | rate()",
    "{ } | sum_over_time(duration)",
    "{ } | avg_over_time(span.n) by (name)",
    "{ } | min_over_time(duration)",
    "{ } | histogram_over_time(duration) by (status)",
    "{ } | quantile_over_time(duration, .1, .5, .99)",
    "{ name = `root` } >> { status = error } | count_over_time()",
    "{ } | compare({ status = error })",
];

#[tokio::test]
async fn extrapolating_what_was_not_sampled_changes_nothing() {
    let spans = corpus(200, 1, |_| Some(String::new()));
    let engine = engine_of(&spans, &[], 2).await;
    for query in FUNCTIONS {
        let plain = ask(&engine, query, hour(), 0).await;
        assert!(!plain.is_empty());
        assert_eq!(ask(&engine, &format!("{query} with (extrapolate=true)"), hour(), 0).await, plain, "{query}");
    }
    let with_bounds = ask(&engine, "{ } | rate() with (extrapolate=true, confidence=true)", hour(), 0).await;
    let [value, lower, upper] = with_bounds.try_into().unwrap();
    assert_eq!((&lower.samples, &upper.samples), (&value.samples, &value.samples));
    assert_eq!(shown(&[lower])[0].split(':').next(), Some("__name__=rate,__bound=lower"));
}

/// A number below `1 << 53` for each `seed`, evenly spread.
fn random(seed: u64) -> u64 {
    let seed = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let seed = (seed ^ seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let seed = (seed ^ seed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (seed ^ seed >> 31) >> 11
}

/// Evenly spread in 0 to 1.
fn part(seed: u64) -> f64 {
    (random(seed) as f64 + 0.5) / (1u64 << 53) as f64
}

/// The hour that [`corpus`] lies in, in steps of ten minutes.
fn hour() -> Intervals {
    Intervals::of_range(7800 * SECOND, 10_800 * SECOND, 600 * SECOND).unwrap()
}

/// Traces of one span to some hundred, of which few have most of the errors; that of trace `id` has the tracestate that `keep` says, if any.
/// Ids depend on `seed`, everything else does not.
fn corpus(traces: u64, seed: u64, keep: impl Fn(u128) -> Option<String>) -> Vec<Span> {
    let mut spans = Vec::new();
    for number in 0..traces {
        let trace = u128::from(random(seed << 32 | number)) << 64 | u128::from(random(seed << 32 | number | 1 << 31)) << 11 | u128::from(number);
        let Some(state) = keep(trace) else { continue };
        // Log-normal, with a median of three spans and a mean of five.
        let normal = (-2.0 * part(number * 4).ln()).sqrt() * (std::f64::consts::TAU * part(number * 4 + 1)).cos();
        let size = (1.1 + normal).exp().clamp(1.0, 150.0) as u64;
        let start = 7200 * SECOND + random(number * 4 + 2) % (3600 * SECOND);
        let errors = if part(number * 4 + 3) < 0.2 { 0.4 } else { 0.02 };
        for at in 0..size {
            let own = 1 << 40 | number << 10 | at;
            let duration = (part(own) * 20.0).exp() as u64;
            spans.push(Span {
                trace,
                start: start + at,
                duration,
                name: if at == 0 { "root" } else { ["a", "b"][(random(own) % 2) as usize] },
                error: part(own + (1 << 50)) < errors,
                state: state.clone(),
                attributes: vec![("n", any_value::Value::IntValue(at as i64))],
            });
        }
    }
    spans
}

/// Values by labels without the bound, and time.
type Points = BTreeMap<(String, i64), f64>;

fn points(series: &[TimeSeries], bound: &str) -> Points {
    let mut points = Points::new();
    for series in series {
        let (bounds, labels): (Vec<_>, Vec<_>) = series.labels.iter().partition(|label| label.key == "__bound");
        if bounds.first().map_or(String::new(), |label| label_text(label.value.as_ref())) == bound {
            let key = labels.iter().map(|label| format!("{}={} ", label.key, label_text(label.value.as_ref()))).collect::<String>();
            points.extend(series.samples.iter().map(|sample| ((key.clone(), sample.timestamp_ms), sample.value)));
        }
    }
    points
}

/// A tracestate of threshold `threshold` for a trace whose randomness, the low 56 bits of its id, is not below it.
fn kept(trace: u128, threshold: u64) -> Option<String> {
    let randomness = trace as u64 & ((1 << 56) - 1);
    (randomness >= threshold).then(|| format!("ot=th:{threshold:014x}"))
}

#[tokio::test]
async fn intervals_cover_the_true_values_in_95_of_100_samplings() {
    const SAMPLINGS: u64 = 1000;
    const TRACES: u64 = 1500;
    let queries = [
        "{ } | rate()",
        "{ status = error } | rate()",
        "{ } | count_over_time() by (name)",
        "{ } | sum_over_time(duration) by (name)",
        "{ } | avg_over_time(duration)",
    ];
    let whole = engine_of(&corpus(TRACES, 0, |_| Some(String::new())), &[], 1).await;
    let mut truths = Vec::new();
    for query in queries {
        truths.push(points(&ask(&whole, query, hour(), 0).await, ""));
    }
    let mut covered = vec![(0, 0); queries.len()];
    for sampling in 1..=SAMPLINGS {
        // 1 % to 50 %, as many below 7 % as above.
        let probability = 0.01 * 50f64.powf(part(sampling));
        let threshold = ((1.0 - probability) * (1u64 << 56) as f64) as u64;
        let engine = engine_of(&corpus(TRACES, sampling, |trace| kept(trace, threshold)), &[], 1).await;
        for (at, query) in queries.iter().enumerate() {
            let series = ask(&engine, &format!("{query} with (extrapolate=true, confidence=true)"), hour(), 0).await;
            let (lower, upper) = (points(&series, "lower"), points(&series, "upper"));
            for (key, truth) in &truths[at] {
                // A series of which nothing was sampled is not there, and says nothing.
                let Some(lower) = lower.get(key) else { continue };
                covered[at].0 += u32::from(lower <= truth && *truth <= upper[key]);
                covered[at].1 += 1;
            }
        }
    }
    for (query, (covered, all)) in queries.iter().zip(covered) {
        let share = f64::from(covered) / f64::from(all);
        eprintln!("{query}: {:.2} % of {all}", share * 100.0);
        assert!(all >= 5000 && (0.93..=0.97).contains(&share), "{query}: {share} of {all}");
    }
}

#[tokio::test]
async fn intervals_are_refused_where_there_are_none() {
    let engine = engine_of(&sampled(), &[], 1).await;
    let refused = request("{ } | quantile_over_time(duration, .5) with (extrapolate=true, confidence=true)", hour(), 0);
    let error = engine.metrics(&TenantId::single(), refused).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

#[tokio::test]
async fn exact_quantiles_are_within_their_error() {
    let spans = corpus(300, 1, |_| Some(String::new()));
    let engine = engine_of(&spans[..700], &[&spans[700..]], 2).await;
    let whole = Intervals::of_instant(7000 * SECOND, 12_000 * SECOND).unwrap();
    let mut durations: Vec<u64> = spans.iter().map(|span| span.duration).collect();
    durations.sort_unstable();
    let series = ask(&engine, "{ } | quantile_over_time(duration, 0, .25, .5, .9, .99, 1) with (exact=true)", whole, 0).await;
    assert_eq!(series.len(), 6);
    for (series, quantile) in series.iter().zip([0usize, 25, 50, 90, 99, 100]) {
        let rank = (quantile * durations.len()).div_ceil(100).max(1);
        let (found, expected) = (series.samples[0].value, durations[rank - 1] as f64 / 1e9);
        assert!((found - expected).abs() <= expected * sketch::RELATIVE_ERROR * 1.000001, "{quantile}: {found}, not {expected}");
    }
    // Tempo's buckets leave out floats, zeros and negative values; a sketch does not. Weights move the median from 0 to 2.5.
    let number = |trace: u128, value: f64, state: &str| Span {
        trace,
        start: 7300 * SECOND,
        state: state.into(),
        attributes: vec![("f", any_value::Value::DoubleValue(value))],
        ..Span::default()
    };
    let engine = engine_of(&[number(1, -4.0, ""), number(2, 0.0, ""), number(3, 2.5, "ot=th:c")], &[], 1).await;
    let median = async |hints: &str| {
        let series = ask(&engine, &format!("{{ }} | quantile_over_time(span.f, 0, .5){hints}"), whole, 0).await;
        series.iter().map(|series| series.samples[0].value).collect::<Vec<_>>()
    };
    let near = |found: Vec<f64>, expected: [f64; 2]| {
        assert_eq!(found.len(), 2);
        found.iter().zip(expected).for_each(|(found, expected)| assert!((found - expected).abs() <= expected.abs() * 0.0051, "{found} {expected}"));
    };
    near(median(" with (exact=true)").await, [-4.0, 0.0]);
    near(median(" with (exact=true, extrapolate=true)").await, [-4.0, 2.5]);
    assert!(median("").await.is_empty());
    let with_exemplars = ask(&engine, "{ } | quantile_over_time(span.f, .5)", whole, 9).await;
    assert!(with_exemplars.is_empty(), "nor do spans that do not count become exemplars");
}

/// Trace id and text of a label.
fn told(exemplar: &skein_proto::tempo::Exemplar, key: &str) -> String {
    exemplar.labels.iter().find(|label| label.key == key).map(|label| label_text(label.value.as_ref())).unwrap_or_default()
}

#[tokio::test]
async fn exemplars_are_spans_of_their_series_spread_over_time_and_values() {
    let spans = corpus(800, 1, |_| Some(String::new()));
    let fine = Intervals::of_range(7201 * SECOND, 10_800 * SECOND, 60 * SECOND).unwrap();
    let engine = engine_of(&spans, &[], 2).await;
    let series = ask(&engine, "{ name != `b` } | avg_over_time(duration) by (name)", fine, 40).await;
    let all: Vec<_> = series.iter().flat_map(|series| series.exemplars.iter().map(move |exemplar| (series, exemplar))).collect();
    assert_eq!(all.len(), 40, "there are spans enough for all");
    assert!(series.iter().all(|series| series.exemplars.len() == 20), "two series share them");
    for (series, exemplar) in &all {
        let name = label_text(series.labels[0].value.as_ref());
        let own = |span: &&Span| {
            format!("{:x}", span.trace) == told(exemplar, "trace:id") && span.name == name && span.start / 1_000_000 == exemplar.timestamp_ms as u64
        };
        let span = spans.iter().filter(own).find(|span| span.duration as f64 / 1e9 == exemplar.value);
        assert!(span.is_some(), "{exemplar:?} is a span of the series");
        assert_eq!(told(exemplar, "name"), name);
    }
    for series in &series {
        let quarters: std::collections::BTreeSet<i64> =
            series.exemplars.iter().map(|exemplar| (exemplar.timestamp_ms - 7_200_000) / 900_000).collect();
        assert_eq!(quarters.len(), 4, "all quarters of the hour");
        // Durations are spread evenly over e^0 to e^20 ns; the slowest and the fastest of twenty are far apart.
        let values: Vec<f64> = series.exemplars.iter().map(|exemplar| exemplar.value).collect();
        let (least, most) = (values.iter().copied().fold(f64::MAX, f64::min), values.iter().copied().fold(0.0, f64::max));
        assert!(most > 0.1 && least < 1e-6, "{least} to {most}");
        let traces: std::collections::BTreeSet<String> = series.exemplars.iter().map(|exemplar| told(exemplar, "trace:id")).collect();
        assert_eq!(traces.len(), 20, "each of another trace");
    }
}

#[tokio::test]
async fn exemplars_are_the_same_wherever_the_spans_lie() {
    let spans = corpus(500, 1, |_| Some(String::new()));
    let traces: Vec<&[Span]> = spans.chunk_by(|a, b| a.trace == b.trace).collect();
    let third = |number: usize| traces.iter().skip(number).step_by(3).flat_map(|spans| spans.to_vec()).collect::<Vec<_>>();
    let (one, two, three) = (third(0), third(1), third(2));
    let layouts = [engine_of(&spans, &[], 1).await, engine_of(&[], &[&spans], 3).await, engine_of(&one, &[&two, &three], 2).await];
    for query in FUNCTIONS {
        let expected = ask(&layouts[0], query, hour(), 30).await;
        let count: usize = expected.iter().map(|series| series.exemplars.len()).sum();
        assert!((1..=30).contains(&count), "{query}: {count}");
        for engine in &layouts[1..] {
            assert_eq!(ask(engine, query, hour(), 30).await, expected, "{query}");
        }
        let none = ask(&layouts[2], query, hour(), 0).await;
        assert!(none.iter().all(|series| series.exemplars.is_empty()), "{query}");
        let without = |series: &[TimeSeries]| series.iter().map(|series| TimeSeries { exemplars: Vec::new(), ..series.clone() }).collect::<Vec<_>>();
        assert_eq!(without(&expected), none, "{query}");
    }
}

#[tokio::test]
async fn exemplars_take_the_values_that_the_specification_says() {
    let engine = engine_of(&corpus(100, 1, |_| Some(String::new())), &[], 2).await;
    let exemplars = async |query: &str, most: u32| {
        let all = ask(&engine, query, hour(), most).await;
        let list = |series: TimeSeries| series.exemplars.clone().into_iter().map(move |exemplar| (series.clone(), exemplar)).collect::<Vec<_>>();
        all.into_iter().flat_map(list).collect::<Vec<_>>()
    };
    // Of rates the value of the series in that interval.
    let of_rates = exemplars("({ status = error } | rate()) * 2", 10).await;
    assert!(!of_rates.is_empty());
    for (series, exemplar) in of_rates {
        let sample = series.samples.iter().find(|sample| sample.timestamp_ms >= exemplar.timestamp_ms).unwrap();
        assert_eq!(exemplar.value, sample.value);
        assert_eq!(told(&exemplar, "status"), "error", "what the filter reads is told");
    }
    // Of histograms those of the bucket.
    for (series, exemplar) in exemplars("{ } | histogram_over_time(duration)", 50).await {
        let bucket: f64 = label_text(series.labels[0].value.as_ref()).parse().unwrap();
        assert!(exemplar.value <= bucket && exemplar.value > bucket / 2.0, "{} in {bucket}", exemplar.value);
    }
    // Of quantiles those that are nearest.
    let quantiles = exemplars("{ } | quantile_over_time(duration, 0, 1)", 50).await;
    let slow = |p: f64| {
        quantiles.iter().filter(move |(series, _)| label_text(series.labels[0].value.as_ref()).parse() == Ok(p)).map(|(_, exemplar)| exemplar.value)
    };
    assert!(slow(0.0).count() > 0 && slow(1.0).count() > 0);
    assert!(slow(0.0).fold(0.0, f64::max) < slow(1.0).fold(0.0, f64::max));
    // Of comparisons those of the totals.
    let compared = exemplars("{ } | compare({ status = error })", 20).await;
    let of = |meta: &str| compared.iter().filter(|(series, _)| label_text(series.labels[0].value.as_ref()) == meta).count();
    assert_eq!((of("selection_total") + of("baseline_total"), of("selection_total")), (20, 10));
    // Filters take exemplars away with their points, and by their own values.
    assert!(exemplars("{ } | rate() > 1000", 10).await.is_empty());
    let fast = exemplars("{ } | avg_over_time(duration) < 1h", 10).await;
    assert_eq!(fast.len(), 10);
    let slower = exemplars("{ } | max_over_time(duration) > 100ms", 10).await;
    assert!(!slower.is_empty() && slower.iter().all(|(_, exemplar)| exemplar.value > 0.1));
}
