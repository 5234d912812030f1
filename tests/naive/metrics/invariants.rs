//! What holds whatever is asked: a window and its parts, fewer series, spans that move while they are counted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;
use skein_engine::metrics::intervals::Intervals;
use skein_engine::query::MetricsRequest;
use skein_engine::traceql::{MetricsExpr, MetricsFunction, OverTime};
use skein_proto::otlp::collector::trace::v1::ExportTraceServiceRequest;

use super::answer::{Outcome, Sent};
use super::queries::MetricsQueries;
use super::{ask, text};
use crate::harness::{self, Client, Compression, Server, Transport, until, wait};
use crate::naive::engines::{Engines, engines};
use crate::naive::model::{Span, Value};
use crate::naive::traces::{BASE_SECONDS, World, once_in, one};

const SECOND: u64 = 1_000_000_000;
const MILLI: u64 = 1_000_000;
/// Worlds that each property is tried on, and queries on each.
const WORLDS: u64 = 12;
const QUERIES_PER_WORLD: usize = 12;

/// Relative difference of sums of floats that were added up in other groups.
const SUMS_DIFFER: f64 = 1e-9;

/// Tries a property of answers on random functions, grids and placements; it says whether there was anything to see.
fn on_random_functions(test: &str, holds: impl Fn(&dyn Fn(Intervals, usize) -> Option<Asked>, &MetricsFunction, Grid) -> bool) {
    let seed = harness::seed(test);
    let mut seen = 0;
    for number in 0..WORLDS {
        let mut random = StdRng::seed_from_u64(seed.wrapping_add(number));
        let world = World::random(&mut random);
        let engines: Engines = wait(engines(&world));
        for _ in 0..QUERIES_PER_WORLD {
            let MetricsExpr::Pipeline { pipeline, function } = MetricsQueries { random: &mut random, world: &world }.query() else { continue };
            let function = match function {
                MetricsFunction::Compare { selection, window, .. } => MetricsFunction::Compare { selection, top_n: 1000, window },
                other => other,
            };
            let query = text::text(&MetricsExpr::Pipeline { pipeline, function: function.clone() }, random.random());
            let grid = Grid::random(&mut random, &world);
            let (name, engine) = &engines[random.random_range(0..engines.len())];
            let asked = |intervals: Intervals, max_series: usize| match ask(
                engine,
                MetricsRequest { max_series, ..MetricsRequest::new(&query, intervals) },
            ) {
                Outcome::Series(series) => Asked::new(series),
                Outcome::Refused(_) => None,
                Outcome::Broken(message) => panic!("{name}: {query}: {message}"),
            };
            println!("{name}: {query} {grid:?}");
            seen += usize::from(holds(&asked, &function, grid));
        }
    }
    assert!(seen >= 10, "there was little to see: {seen}");
}

/// Aligned times that hold starts of spans.
#[derive(Clone, Copy, Debug)]
struct Grid {
    start: u64,
    step: u64,
    count: u64,
}

impl Grid {
    fn random(random: &mut StdRng, world: &World) -> Self {
        let (span, _) = &world.spans[random.random_range(0..world.spans.len())];
        let step = one(random, &[MILLI, 3 * MILLI, 250 * MILLI, SECOND, 60 * SECOND]);
        let start = span.start / step * step - random.random_range(0..6) * step;
        Self { start, step, count: random.random_range(3..20) }
    }

    fn end(&self) -> u64 {
        self.start + self.count * self.step
    }

    fn range(&self, start: u64, end: u64) -> Intervals {
        Intervals::of_range(start, end, self.step).unwrap()
    }
}

/// An answer: samples by labels and time.
struct Asked {
    order: Vec<Vec<(String, String)>>,
    series: BTreeMap<Vec<(String, String)>, BTreeMap<i64, f64>>,
}

impl Asked {
    /// Nothing where two series look alike: one of text `nil`, and one of what is missing.
    fn new(series: Vec<Sent>) -> Option<Self> {
        let order: Vec<_> = series.iter().map(|sent| sent.labels.clone()).collect();
        let count = series.len();
        let series: BTreeMap<_, _> = series.into_iter().map(|sent| (sent.labels, sent.samples.into_iter().collect())).collect();
        (series.len() == count).then_some(Self { order, series })
    }

    /// The samples that are not zeros, which stand only where the series has other samples.
    fn nonzero(&self) -> BTreeMap<(Vec<(String, String)>, i64), f64> {
        let of_series = |(labels, samples): (&Vec<(String, String)>, &BTreeMap<i64, f64>)| {
            samples.iter().map(|(time, value)| ((labels.clone(), *time), *value)).collect::<Vec<_>>()
        };
        self.series.iter().flat_map(of_series).filter(|(_, value)| *value != 0.0).collect()
    }
}

fn is_near(a: f64, b: f64) -> bool {
    a == b || (a - b).abs() <= SUMS_DIFFER * a.abs().max(b.abs())
}

/// How the values of parts of a window make that of the whole, where they do.
fn adding_up(function: &MetricsFunction) -> Option<fn(f64, f64) -> f64> {
    match function {
        MetricsFunction::CountOverTime { .. } | MetricsFunction::OverTime { function: OverTime::Histogram, .. } | MetricsFunction::Compare { .. } => {
            Some(|a, b| a + b)
        }
        MetricsFunction::OverTime { function: OverTime::Min, .. } => Some(f64::min),
        MetricsFunction::OverTime { function: OverTime::Max, .. } => Some(f64::max),
        _ => None,
    }
}

#[test]
fn an_instant_count_is_the_sum_of_the_range() {
    on_random_functions("instant", |ask, function, grid| {
        let Some(add) = adding_up(function) else { return false };
        // The first sample of a range stands at its start, for the step before it.
        let whole = Intervals::of_instant(grid.start - grid.step, grid.end()).unwrap();
        let (Some(range), Some(instant)) = (ask(grid.range(grid.start, grid.end()), 0), ask(whole, 0)) else { return false };
        let sums: BTreeMap<_, _> =
            range.series.iter().filter_map(|(labels, samples)| Some((labels, samples.values().copied().reduce(add)?))).collect();
        let values: BTreeMap<_, _> = instant.series.iter().map(|(labels, samples)| (labels, *samples.values().next().unwrap())).collect();
        assert_eq!(sums, values);
        values.values().any(|value| *value != 0.0)
    });
}

#[test]
fn a_range_is_its_parts_put_together() {
    on_random_functions("parts", |ask, _, grid| {
        let middle = grid.start + grid.count / 2 * grid.step;
        let whole = ask(grid.range(grid.start, grid.end()), 0);
        let parts = [ask(grid.range(grid.start, middle), 0), ask(grid.range(middle + grid.step, grid.end()), 0)];
        let (Some(whole), [Some(first), Some(last)]) = (whole, parts) else { return false };
        let together: BTreeMap<_, _> = first.nonzero().into_iter().chain(last.nonzero()).collect();
        let whole = whole.nonzero();
        assert_eq!(whole.keys().collect::<Vec<_>>(), together.keys().collect::<Vec<_>>());
        assert!(whole.values().zip(together.values()).all(|(a, b)| is_near(*a, *b)), "{whole:?}\n{together:?}");
        !whole.is_empty()
    });
}

#[test]
fn a_limit_of_series_keeps_the_first() {
    on_random_functions("limit", |ask, _, grid| {
        let all = ask(grid.range(grid.start, grid.end()), 0);
        let Some(all) = all.filter(|all| all.order.len() > 1) else { return false };
        assert_eq!(ask(grid.range(grid.start, grid.end()), all.order.len()).unwrap().order, all.order);
        true
    });
}

// ---- spans that move

/// Traces of five spans, sent in random parts, some parts twice.
struct Sending {
    random: StdRng,
    sent: u64,
}

const SPANS_PER_TRACE: u64 = 5;
const TENANT: &str = "moving";

impl Sending {
    fn span(trace: u64, number: u64) -> Span {
        let start = BASE_SECONDS * SECOND + trace * 100 * MILLI + number * MILLI;
        Span {
            trace: u128::from(trace),
            id: number,
            parent: (number > 1).then_some(1),
            name: format!("span {number}"),
            kind: 0,
            start,
            end: start + trace * MILLI,
            status: None,
            attributes: vec![("n".to_owned(), Value::Int(trace as i64))],
            events: Vec::new(),
            links: Vec::new(),
            resource: Some(vec![("service.name".to_owned(), Value::Text(format!("service {}", trace % 3)))]),
            scope: None,
        }
    }

    /// Sends the next trace in two parts, and a part of an older one once more.
    fn send_next(&mut self, client: &Client) {
        let trace = self.sent + 1;
        let cut = self.random.random_range(1..SPANS_PER_TRACE);
        let mut parts = vec![(trace, 1..=cut), (trace, cut..=SPANS_PER_TRACE)];
        if once_in(&mut self.random, 3) {
            parts.push((self.random.random_range(1..=trace), 2..=3));
        }
        for (trace, numbers) in parts {
            let resource_spans = numbers.map(|number| Self::span(trace, number).to_otlp()).collect();
            let request = ExportTraceServiceRequest { resource_spans };
            wait(client.send(Transport::Grpc, Compression::None, TENANT, &request)).expect("the request is acknowledged");
        }
        self.sent = trace;
    }
}

/// Ends what runs beside a test, also when the test fails.
struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// The values of an instant query over everything, by the value of its one label.
fn instant(client: &Client, query: &str) -> BTreeMap<String, f64> {
    let (start, end) = ((BASE_SECONDS - 1).to_string(), (BASE_SECONDS + 3600).to_string());
    let reply = wait(client.get(TENANT, "/api/metrics/query", &[("q", query), ("start", &start), ("end", &end)]));
    assert_eq!(reply.status, 200, "{query}: {}", reply.text());
    let json = reply.json();
    let series = json["series"].as_array().cloned().unwrap_or_default();
    let value = |series: &serde_json::Value| {
        let label = series["labels"][0]["value"]["stringValue"].as_str().unwrap().to_owned();
        (label, series["value"].as_f64().unwrap_or(0.0))
    };
    series.iter().map(value).collect()
}

/// Spans are sent, cut, flushed and compacted all the time; every answer counts each span once that was acknowledged before the question,
/// and none twice.
#[test]
fn spans_count_once_while_they_are_flushed_and_compacted() {
    const TRACES: u64 = 150;
    let server = Server::start(json!({
        "ingester": { "trace_idle_period": "100ms", "flush_check_period": "50ms", "max_block_duration": "300ms", "max_block_bytes": 65_536 },
        "compactor": { "compaction": { "compaction_cycle": "100ms" } },
    }));
    let client = server.client();
    let (acknowledged, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let asked = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut asked = 0;
            while !done.load(SeqCst) {
                check_counts(client, &acknowledged);
                asked += 1;
            }
            asked
        });
        let asking_ends = SetWhenDropped(&done);
        let mut sending = Sending { random: StdRng::seed_from_u64(harness::seed("moving")), sent: 0 };
        while sending.sent < TRACES {
            sending.send_next(client);
            acknowledged.store(sending.sent, SeqCst);
        }
        let merged = || client.metric("tempodb_compaction_blocks_total").unwrap_or(0.0) > 0.0;
        until("blocks are compacted", harness::PATIENCE, || merged() || asking.is_finished());
        drop(asking_ends);
        asking.join().expect("every answer is right")
    });
    assert!(asked > 3, "{asked} questions were answered meanwhile");
    check_counts(client, &acknowledged);
    client.flush();
    check_counts(client, &acknowledged);
    let expected: f64 = (1..=TRACES).map(|trace| (trace * SPANS_PER_TRACE) as f64).sum();
    assert_eq!(instant(client, "{ } | sum_over_time(span.n)"), BTreeMap::from([("sum_over_time".to_owned(), expected)]));
}

fn check_counts(client: &Client, acknowledged: &AtomicU64) {
    let before = acknowledged.load(SeqCst);
    let by_trace = instant(client, "{ } | count_over_time() by (trace:id)");
    let after = acknowledged.load(SeqCst) + 1;
    let whole = SPANS_PER_TRACE as f64;
    for trace in 1..=before {
        assert_eq!(by_trace.get(&format!("{trace:x}")), Some(&whole), "trace {trace} of {before}");
    }
    assert!(by_trace.len() as u64 <= after && by_trace.values().all(|count| *count <= whole), "{by_trace:?}");
    let related = instant(client, "{ name = `span 1` } > { } | count_over_time()");
    let fewest = before as f64 * (whole - 1.0);
    assert!(related["count_over_time"] >= fewest, "{related:?}, at least {fewest}");
}
