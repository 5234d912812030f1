//! The engine against an evaluator that is written for reading: random queries over random small traces, asked of both.
//!
//! | module | part |
//! |---|---|
//! | `model` | spans as plain structs, and as OTLP |
//! | `traces`, `queries`, `text` | random traces; random queries; a query as text |
//! | `structure`, `fields`, `pipeline`, `shown`, `answer` | the evaluator: a trace as a tree; expressions over one span; pipelines; which attributes an answer shows; the answer |
//! | `engines` | the engines, with the spans in various places |
//! | `shrink` | making a disagreement smaller |
//! | `found` | cases that were answered wrong once |
//!
//! The evaluator follows the rules of TraceQL and `docs/differences.md`. It evaluates the tree that was generated, not the one that was parsed, so that parsing
//! and folding are tested too.

mod answer;
mod engines;
mod fields;
mod found;
mod model;
mod pipeline;
mod queries;
mod shown;
mod shrink;
mod structure;
mod text;
mod traces;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt;
use rand::{Rng, SeedableRng, rngs::StdRng};
use skein_engine::error::Result;
use skein_engine::query::{
    MetricsRequest, MetricsResult, QueryService, SearchRequest, SearchResult, TagNames, TagNamesRequest, TagValues, TagValuesRequest, TraceRequest,
    TraceResult, Window,
};
use skein_engine::tenant::TenantId;
use skein_engine::traceql::{Pipeline, parse};

use crate::harness::{self, wait};

use answer::{Expected, Outcome};
use engines::{Engines, engines};
use queries::Queries;
use traces::{BASE_SECONDS, World, once_in};

/// Queries when `SKEIN_RANDOM_QUERIES` does not say.
const QUERIES: usize = 2000;
/// Queries asked about the same traces.
const QUERIES_PER_WORLD: usize = 20;

/// One question.
#[derive(Clone)]
pub struct Case {
    pub world: World,
    pub query: Pipeline,
    /// Chooses among texts that mean the same.
    spelling: u64,
    pub limit: usize,
    pub spans_per_spanset: usize,
    pub window: Option<Window>,
}

impl Case {
    fn random(random: &mut StdRng, world: &World) -> Self {
        let query = Queries { random, world }.query();
        let window = once_in(random, 3).then(|| {
            let start = BASE_SECONDS as u32 + random.random_range(0..=12) - 2;
            Window { start_seconds: start, end_seconds: start + random.random_range(0..=10) }
        });
        Self {
            world: world.clone(),
            query,
            spelling: random.random(),
            limit: if random.random() { 100 } else { random.random_range(1..=3) },
            spans_per_spanset: if random.random() { 100 } else { random.random_range(1..=4) },
            window,
        }
    }

    fn text(&self) -> String {
        text::text(&self.query, self.spelling)
    }

    /// Whether the language has the query: it parses, and to what the canonical text of the tree parses to. Long chains of `&&` and `||` may
    /// become another tree of the same meaning.
    pub fn is_valid(&self) -> bool {
        let canonical = |text: &str| parse(text).map(|query| query.body_text());
        match (canonical(&self.text()), canonical(&self.query.to_string())) {
            (Ok(spelt), Ok(plain)) => spelt == plain || plain.matches("&&").count() + plain.matches("||").count() >= 16,
            _ => false,
        }
    }

    fn request(&self) -> SearchRequest {
        SearchRequest { query: self.text(), limit: self.limit, spans_per_spanset: self.spans_per_spanset, window: self.window }
    }

    fn expected(&self) -> Expected {
        Expected::new(&self.query, &self.request(), &structure::traces(self.world.all()))
    }

    /// The first of `engines` that is wrong, with its answer.
    fn disagreement(&self, engines: &Engines) -> Option<(&'static str, Outcome)> {
        let expected = self.expected();
        engines.iter().find_map(|(name, engine)| {
            let outcome = ask(engine, self.request());
            (!expected.allows(&outcome)).then_some((*name, outcome))
        })
    }
}

trait BodyText {
    fn body_text(&self) -> String;
}

impl BodyText for skein_engine::traceql::Query {
    fn body_text(&self) -> String {
        Self { body: self.body.clone(), hints: Vec::new() }.to_string()
    }
}

fn ask(engine: &Arc<dyn QueryService>, request: SearchRequest) -> Outcome {
    let asked = AssertUnwindSafe(async { engine.search(&TenantId::single(), request).await });
    match wait(asked.catch_unwind()) {
        Ok(result) => Outcome::new(result),
        Err(_) => Outcome::Broken("it panicked".to_owned()),
    }
}

/// What was seen while engine and evaluator agreed.
#[derive(Debug, Default)]
struct Seen {
    queries: usize,
    /// Queries that some traces match, but not all spans of all.
    selective: usize,
    /// Queries that must or may fail.
    failing: usize,
}

/// Asks random queries until `count` are answered right, or `told_max` are not: then the smallest such cases are told.
fn run(seed: u64, count: usize, told_max: usize, engines_of: impl Fn(&World) -> Engines) -> std::result::Result<Seen, String> {
    let (mut seen, mut wrong) = (Seen::default(), Vec::new());
    for number in 0.. {
        let own_seed = seed.wrapping_add(number);
        let mut random = StdRng::seed_from_u64(own_seed);
        let world = World::random(&mut random);
        let engines = engines_of(&world);
        for _ in 0..QUERIES_PER_WORLD {
            let case = Case::random(&mut random, &world);
            if !case.is_valid() {
                wrong.push(format!(
                    "SKEIN_TEST_SEED={own_seed}\nrefused, or read as another query: {}\n{}\n{:?}",
                    case.text(),
                    case.query,
                    parse(&case.text())
                ));
            } else if case.disagreement(&engines).is_some() {
                wrong.push(told(own_seed, case, &engines_of));
            } else {
                seen.count(&case);
                continue;
            }
            // One for each world: others there are often the same fault.
            break;
        }
        if wrong.len() >= told_max || (seen.queries >= count && !wrong.is_empty()) {
            return Err(wrong.join("\n"));
        }
        if seen.queries >= count {
            return Ok(seen);
        }
    }
    unreachable!("there is always another seed")
}

impl Seen {
    fn count(&mut self, case: &Case) {
        let expected = case.expected();
        self.queries += 1;
        self.selective += usize::from(expected.is_selective(case.world.spans.len()));
        self.failing += usize::from(expected.may_fail());
    }
}

fn told(seed: u64, case: Case, engines_of: &impl Fn(&World) -> Engines) -> String {
    let case = shrink::shrink(case, |case| case.disagreement(&engines_of(&case.world)).is_some());
    let mut answers = String::new();
    for (name, engine) in engines_of(&case.world) {
        answers.push_str(&format!("{name}:\n{}", ask(&engine, case.request())));
    }
    format!(
        "SKEIN_TEST_SEED={seed}\nquery: {}\nlimit {}, {} spans a spanset, window {:?}\n{}expected:\n{}{answers}",
        case.text(),
        case.limit,
        case.spans_per_spanset,
        case.window,
        case.world,
        case.expected(),
    )
}

#[test]
fn the_engine_agrees_with_the_naive_evaluator() {
    let seed = harness::seed("naive");
    let count = std::env::var("SKEIN_RANDOM_QUERIES").map_or(QUERIES, |text| text.parse().expect("SKEIN_RANDOM_QUERIES is a number"));
    // More than one, to see at once what a change breaks.
    let told_max = std::env::var("SKEIN_RANDOM_TOLD").map_or(1, |text| text.parse().expect("SKEIN_RANDOM_TOLD is a number"));
    let seen = run(seed, count, told_max, |world| wait(engines(world))).unwrap_or_else(|told| panic!("{told}"));
    println!("naive: {seen:?}");
    assert!(seen.selective * 4 > seen.queries, "too few queries match some spans but not all: {seen:?}");
}

/// What every construct looks like in canonical text.
const CONSTRUCTS: &str = "{ true } && || > >> < << ~ !> !>> !< !<< !~ &> &>> &< &<< &~ | ( count() min( max( avg( sum( by( coalesce() select( \
    = != <= >= =~ nil + - * / % ^ ! . span. resource. event. link. instrumentation. minInt true false error ok unset unspecified internal client \
    server producer consumer name duration status kind span:id span:parentID span:childCount statusMessage trace:id traceDuration rootName \
    rootServiceName event:name event:timeSinceStart link:traceID link:spanID instrumentation:name instrumentation:version nestedSetLeft \
    nestedSetRight nestedSetParent 0.5 1ms 5000000 1e+300 ` \" \"\"";

#[test]
fn every_construct_is_asked_for() {
    let mut random = StdRng::seed_from_u64(1);
    let queries: Vec<String> = (0..QUERIES)
        .map(|_| {
            let world = World::random(&mut random);
            Case::random(&mut random, &world).query.to_string()
        })
        .collect();
    for construct in CONSTRUCTS.split_whitespace() {
        let asked = queries.iter().filter(|query| query.contains(construct)).count();
        assert!(asked >= 10, "{construct} is in {asked} of {QUERIES} queries");
    }
}

/// Forgets the newest trace when it is asked about events.
struct Forgetful(Arc<dyn QueryService>);

#[async_trait]
impl QueryService for Forgetful {
    async fn trace_by_id(&self, tenant: &TenantId, request: TraceRequest) -> Result<TraceResult> {
        self.0.trace_by_id(tenant, request).await
    }

    async fn search(&self, tenant: &TenantId, request: SearchRequest) -> Result<SearchResult> {
        let forgets = request.query.contains("event");
        let mut result = self.0.search(tenant, request).await?;
        if forgets && !result.traces.is_empty() {
            result.traces.remove(0);
        }
        Ok(result)
    }

    async fn explain_search(&self, tenant: &TenantId, request: SearchRequest, analyze: bool) -> Result<String> {
        self.0.explain_search(tenant, request, analyze).await
    }

    async fn metrics(&self, tenant: &TenantId, request: MetricsRequest) -> Result<MetricsResult> {
        self.0.metrics(tenant, request).await
    }

    async fn tag_names(&self, tenant: &TenantId, request: TagNamesRequest) -> Result<TagNames> {
        self.0.tag_names(tenant, request).await
    }

    async fn tag_values(&self, tenant: &TenantId, request: TagValuesRequest) -> Result<TagValues> {
        self.0.tag_values(tenant, request).await
    }
}

#[test]
fn a_wrong_engine_is_found_and_the_case_shrinks() {
    let forgetful = |world: &World| -> Engines {
        wait(engines(world)).into_iter().take(1).map(|(name, engine)| (name, Arc::new(Forgetful(engine)) as Arc<dyn QueryService>)).collect()
    };
    let told = run(1, QUERIES, 1, forgetful).expect_err("an engine that forgets traces is found");
    let spans = told.matches(" parent ").count();
    let query = told.lines().find(|line| line.starts_with("query: ")).unwrap();
    assert!(query.contains("event"), "{told}");
    assert!(spans <= 1 && query.len() < 60, "it does not shrink: {told}");
}
