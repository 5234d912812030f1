//! Answers in parts, of random traces: what a part says the whole answer says too, each thing is said once, and the whole answer is the one that
//! is given without parts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use prost::Message;
use rand::{SeedableRng, rngs::StdRng};
use skein_engine::metrics::intervals::Intervals;
use skein_engine::parts::{Pace, Part, Parts};
use skein_engine::query::{MetricsRequest, MetricsResult, QueryService, SearchResult, TagNames, TagNamesRequest, TagValues, TagValuesRequest};
use skein_engine::tenant::TenantId;
use skein_proto::tempo::{TimeSeries, TraceSearchMetadata};

use super::traces::{BASE_SECONDS, PLACES, SECONDS_OF_A_TURN, World};
use super::{
    Case,
    engines::{engines, slow_engine},
};
use crate::harness::{self, wait};

const WORLDS: u64 = 40;
const SEARCHES_PER_WORLD: usize = 10;

/// What a listener has heard.
type Heard<T> = Arc<Mutex<Vec<Part<T>>>>;

/// A listener that keeps everything. Parts come whenever something was read.
fn listener<T: Send + 'static>() -> (Parts<T>, Heard<T>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let kept = heard.clone();
    let parts = Parts::new(Pace::start(Duration::ZERO, Duration::ZERO), move |part| {
        kept.lock().unwrap().push(part);
        futures::future::ready(()).boxed()
    });
    (parts, heard)
}

fn taken<T>(heard: &Mutex<Vec<Part<T>>>) -> Vec<Part<T>> {
    std::mem::take(&mut *heard.lock().unwrap())
}

/// How many parts had something in them.
#[derive(Debug, Default)]
struct Told {
    searches: usize,
    metrics: usize,
    names: usize,
    values: usize,
}

#[test]
fn parts_say_what_the_whole_says_and_once() {
    let seed = harness::seed("parts");
    let mut all = BTreeMap::<&str, Told>::new();
    let mut told_slowly = 0;
    for number in 0..WORLDS {
        let mut random = StdRng::seed_from_u64(seed.wrapping_add(number));
        let world = World::random(&mut random);
        for (name, engine) in wait(engines(&world)) {
            let context = format!("SKEIN_TEST_SEED={} {name}", seed.wrapping_add(number));
            let told = all.entry(name).or_default();
            for _ in 0..SEARCHES_PER_WORLD {
                told.searches += search(&context, &*engine, &Case::random(&mut random, &world));
            }
            told.metrics += METRICS.iter().map(|query| metrics(&context, &*engine, query, 25)).sum::<usize>();
            told.names += names(&context, &*engine);
            told.values += values(&context, &*engine);
        }
        // An interval is told early only where what is read later cannot have spans in it.
        let engine = wait(slow_engine(&world.in_turn()));
        let context = format!("SKEIN_TEST_SEED={} slowly", seed.wrapping_add(number));
        let seconds = SECONDS_OF_A_TURN * PLACES as u64;
        told_slowly += METRICS.iter().map(|query| metrics(&context, &*engine, query, seconds)).sum::<usize>();
    }
    println!("parts: {all:#?}, of metrics slowly {told_slowly}");
    let several = &all["two blocks and live"];
    assert!([several.searches, several.names, several.values, told_slowly].iter().all(|&parts| parts > 10), "{several:?}, {told_slowly}");
    assert!(all["three workers and a block"].searches > 10, "workers tell parts");
}

fn search(context: &str, engine: &dyn QueryService, case: &Case) -> usize {
    let (parts, heard) = listener::<SearchResult>();
    let tenant = TenantId::single();
    let whole = wait(engine.search_in_parts(&tenant, case.request(), parts));
    let without = wait(engine.search(&tenant, case.request()));
    let context = format!("{context}: {}", case.text());
    let (Ok(whole), Ok(without)) = (&whole, &without) else {
        assert_eq!(whole.is_ok(), without.is_ok(), "{context}");
        return 0;
    };
    // By bytes, so that NaN equals itself.
    let encoded = |traces: &[TraceSearchMetadata]| traces.iter().map(Message::encode_to_vec).collect::<Vec<_>>();
    assert_eq!(encoded(&whole.traces), encoded(&without.traces), "{context}: {whole:?}\n{without:?}");
    let parts = taken(&heard);
    let filled = parts.iter().filter(|part| !part.found.traces.is_empty()).count();
    let looked = |stats: &skein_engine::query::ScanStats| stats.row_groups + stats.row_groups_skipped;
    assert!(parts.iter().all(|part| looked(&part.found.stats) <= looked(&whole.stats)), "{context}");
    let said: Vec<_> = parts.into_iter().flat_map(|part| part.found.traces).collect();
    assert!(
        said.len() <= whole.traces.len() && encoded(&said) == encoded(&whole.traces[..said.len()]),
        "{context}: {said:?} is not the beginning of {:?}",
        whole.traces
    );
    filled
}

const METRICS: [&str; 8] = [
    "{ } | rate()",
    "{ } | count_over_time() by (resource.service.name)",
    "{ } | max_over_time(duration) by (name)",
    "{ } | quantile_over_time(duration, .5, .9)",
    "{ status = error } | count_over_time() by (name) > 1",
    "({ status = error } | rate() by (name)) / ({ } | rate() by (name))",
    "{ } | count_over_time() by (name) | bottomk(2)",
    "{ } | compare({ status = error })",
];

/// Asks for 60 intervals from 5 seconds before the first span to `seconds` after it.
fn metrics(context: &str, engine: &dyn QueryService, query: &str, seconds: u64) -> usize {
    let base = BASE_SECONDS * 1_000_000_000;
    let step = (seconds + 5) * 1_000_000_000 / 60;
    let intervals = Intervals::of_range(base - 5_000_000_000, base + seconds * 1_000_000_000, step).unwrap();
    let request = MetricsRequest::new(query, intervals);
    let (parts, heard) = listener::<MetricsResult>();
    let whole = wait(engine.metrics_in_parts(&TenantId::single(), request.clone(), parts)).unwrap();
    let without = wait(engine.metrics(&TenantId::single(), request)).unwrap();
    let context = format!("{context}: {query}");
    assert_eq!(samples(&whole.series), samples(&without.series), "{context}");
    let parts = taken(&heard);
    let filled = parts.iter().filter(|part| !part.found.series.is_empty()).count();
    // Each so often: a service may be called "nil", as the series of spans without one is.
    let mut left = BTreeMap::<_, usize>::new();
    samples(&whole.series).into_iter().for_each(|point| *left.entry(point).or_default() += 1);
    for point in parts.iter().flat_map(|part| samples(&part.found.series)) {
        let count = left.get_mut(&point).unwrap_or_else(|| panic!("{context}: the whole has no {point:?}"));
        assert!(*count > 0, "{context}: {point:?} is said again");
        *count -= 1;
    }
    filled
}

/// Series as labels, time, and value as text.
fn samples(series: &[TimeSeries]) -> Vec<(String, i64, String)> {
    let of = |series: &TimeSeries| {
        let labels = format!("{:?}", series.labels);
        series.samples.iter().map(move |sample| (labels.clone(), sample.timestamp_ms, format!("{:.9e}", sample.value))).collect::<Vec<_>>()
    };
    series.iter().flat_map(of).collect()
}

fn names(context: &str, engine: &dyn QueryService) -> usize {
    let request = TagNamesRequest { filter: Some("{ duration >= 0s }".into()), ..TagNamesRequest::default() };
    let (parts, heard) = listener::<TagNames>();
    let whole = wait(engine.tag_names_in_parts(&TenantId::single(), request.clone(), parts)).unwrap();
    assert_eq!(whole.scopes, wait(engine.tag_names(&TenantId::single(), request)).unwrap().scopes, "{context}");
    let parts = taken(&heard);
    let filled = parts.iter().filter(|part| !part.found.scopes.is_empty()).count();
    let flat = |names: &TagNames| -> Vec<_> {
        names.scopes.iter().flat_map(|(scope, names)| names.iter().map(move |name| (*scope, name.clone()))).collect()
    };
    check_once(context, parts.iter().flat_map(|part| flat(&part.found)), &flat(&whole));
    filled
}

fn values(context: &str, engine: &dyn QueryService) -> usize {
    let request = TagValuesRequest { tag: "name".into(), filter: None, window: None };
    let (parts, heard) = listener::<TagValues>();
    let whole = wait(engine.tag_values_in_parts(&TenantId::single(), request.clone(), parts)).unwrap();
    assert_eq!(whole.values, wait(engine.tag_values(&TenantId::single(), request)).unwrap().values, "{context}");
    let parts = taken(&heard);
    let filled = parts.iter().filter(|part| !part.found.values.is_empty()).count();
    check_once(context, parts.into_iter().flat_map(|part| part.found.values), &whole.values);
    filled
}

fn check_once<T: PartialEq + std::fmt::Debug>(context: &str, said: impl Iterator<Item = T>, whole: &[T]) {
    let said: Vec<T> = said.collect();
    for (at, item) in said.iter().enumerate() {
        assert!(whole.contains(item), "{context}: {item:?} is not in the whole");
        assert!(!said[..at].contains(item), "{context}: {item:?} is said again");
    }
}
