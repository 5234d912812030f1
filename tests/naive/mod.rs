//! The engine against an evaluator that is written for reading: random queries over random small traces, asked of both.
//!
//! | module | part |
//! |---|---|
//! | `model` | spans as plain structs, and as OTLP |
//! | `traces`, `queries`, `text` | random traces; random queries; a query as text |
//! | `structure`, `fields`, `pipeline`, `shown`, `answer` | the evaluator: a trace as a tree; expressions over one span; pipelines; which attributes an answer shows; the answer |
//! | `engines` | the engines, with the spans in various places |
//! | `shrink` | making a disagreement smaller |
//! | `metrics` | the same for metrics queries |
//! | `tables` | what SQL says of whole traces, against its definitions |
//! | `found` | cases that were answered wrong once |
//! | `parts` | answers in parts against whole ones |
//!
//! The evaluator follows the rules of TraceQL and `docs/differences.md`. It evaluates the tree that was generated, not the one that was parsed, so that parsing
//! and folding are tested too.

mod answer;
mod engines;
mod fields;
mod found;
mod metrics;
mod model;
mod parts;
mod pipeline;
mod queries;
mod shown;
mod shrink;
mod structure;
mod tables;
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

    fn request(&self) -> SearchRequest {
        SearchRequest { query: self.text(), limit: self.limit, spans_per_spanset: self.spans_per_spanset, window: self.window }
    }

    fn expected(&self) -> Expected {
        Expected::new(&self.query, &self.request(), &structure::traces(self.world.all()))
    }
}

/// Something to ask about a world, which engines answer right or wrong.
pub trait Question: Clone {
    fn random(random: &mut StdRng, world: &World) -> Self;
    fn world(&self) -> &World;
    /// What is wrong with how the language reads the text, if anything is.
    fn misread(&self) -> Option<String>;
    /// Whether some engine is wrong.
    fn disagrees(&self, engines: &Engines) -> bool;
    /// Questions with one thing less that are not misread, those with much less first.
    fn smaller(&self) -> Vec<Self>;
    /// The question, what is expected and what the engines say, for reading.
    fn told(&self, engines: &Engines) -> String;
    /// Adds what the question shows when it is answered right.
    fn count(&self, seen: &mut Seen);
}

impl Question for Case {
    fn random(random: &mut StdRng, world: &World) -> Self {
        Self::random(random, world)
    }

    fn world(&self) -> &World {
        &self.world
    }

    fn misread(&self) -> Option<String> {
        misread(&self.text(), &self.query.to_string())
    }

    fn disagrees(&self, engines: &Engines) -> bool {
        let expected = self.expected();
        engines.iter().any(|(_, engine)| !expected.allows(&ask(engine, self.request())))
    }

    fn smaller(&self) -> Vec<Self> {
        let mut cases = shrink::smaller_cases(self);
        cases.retain(|case| case.misread().is_none());
        cases
    }

    fn told(&self, engines: &Engines) -> String {
        let asked = format!("query: {}\nlimit {}, {} spans a spanset, window {:?}", self.text(), self.limit, self.spans_per_spanset, self.window);
        let answers: String = engines.iter().map(|(name, engine)| format!("{name}:\n{}", ask(engine, self.request()))).collect();
        format!("{asked}\n{}expected:\n{}{answers}", self.world, self.expected())
    }

    fn count(&self, seen: &mut Seen) {
        let expected = self.expected();
        seen.selective += usize::from(expected.is_selective(self.world.spans.len()));
        seen.failing += usize::from(expected.may_fail());
    }
}

/// What is wrong with how the language reads `text`, if anything is: it has to parse, and to what the canonical text of the tree parses to.
/// Long chains of `&&` and `||` may become another tree of the same meaning.
fn misread(text: &str, tree: &str) -> Option<String> {
    let canonical = |text: &str| parse(text).map(|query| query.body_text());
    match (canonical(text), canonical(tree)) {
        (Ok(spelt), Ok(plain)) if spelt == plain || plain.matches("&&").count() + plain.matches("||").count() >= 16 => None,
        (spelt, _) => Some(format!("refused, or read as another query: {text}\n{tree}\n{spelt:?}")),
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
pub struct Seen {
    queries: usize,
    /// Queries that some spans match, but not all.
    selective: usize,
    /// Queries that must or may fail.
    failing: usize,
    /// Metrics queries of which the rules do not say the answer.
    open: usize,
}

/// Asks random questions until `count` are answered right, or `told_max` are not: then the smallest such questions are told.
fn run<Q: Question>(seed: u64, count: usize, told_max: usize, engines_of: impl Fn(&World) -> Engines) -> std::result::Result<Seen, String> {
    let (mut seen, mut wrong) = (Seen::default(), Vec::new());
    for number in 0.. {
        let own_seed = seed.wrapping_add(number);
        let mut random = StdRng::seed_from_u64(own_seed);
        let world = World::random(&mut random);
        let engines = engines_of(&world);
        for _ in 0..QUERIES_PER_WORLD {
            let question = Q::random(&mut random, &world);
            if let Some(misread) = question.misread() {
                wrong.push(format!("SKEIN_TEST_SEED={own_seed}\n{misread}"));
            } else if question.disagrees(&engines) {
                let smallest = shrink::shrink(question, |question| question.disagrees(&engines_of(question.world())));
                wrong.push(format!("SKEIN_TEST_SEED={own_seed}\n{}", smallest.told(&engines_of(smallest.world()))));
            } else {
                seen.queries += 1;
                question.count(&mut seen);
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

/// The number that an environment variable gives.
fn number_of(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// Asks as many questions as `variable` says, or `otherwise`, with a new seed or the one that is given.
fn run_with_environment<Q: Question>(test: &str, variable: &str, otherwise: usize) -> Seen {
    let seed = harness::seed(test);
    // More than one, to see at once what a change breaks.
    let told_max = number_of("SKEIN_RANDOM_TOLD", 1);
    let seen = run::<Q>(seed, number_of(variable, otherwise), told_max, |world| wait(engines(world))).unwrap_or_else(|told| panic!("{told}"));
    println!("{test}: {seen:?}");
    seen
}

#[test]
fn the_engine_agrees_with_the_naive_evaluator() {
    let seen = run_with_environment::<Case>("naive", "SKEIN_RANDOM_QUERIES", QUERIES);
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

/// Forgets the newest trace, or the first series, when it is asked about events.
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
        let forgets = request.query.contains("event");
        let mut result = self.0.metrics(tenant, request).await?;
        if forgets && !result.series.is_empty() {
            result.series.remove(0);
        }
        Ok(result)
    }

    async fn tag_names(&self, tenant: &TenantId, request: TagNamesRequest) -> Result<TagNames> {
        self.0.tag_names(tenant, request).await
    }

    async fn tag_values(&self, tenant: &TenantId, request: TagValuesRequest) -> Result<TagValues> {
        self.0.tag_values(tenant, request).await
    }
}

/// Checks that random questions find out that an engine forgets, and that the one told is small.
fn check_forgetful<Q: Question>(count: usize, text_max: usize) {
    let forgetful = |world: &World| -> Engines {
        wait(engines(world)).into_iter().take(1).map(|(name, engine)| (name, Arc::new(Forgetful(engine)) as Arc<dyn QueryService>)).collect()
    };
    let told = run::<Q>(1, count, 1, forgetful).expect_err("an engine that forgets is found");
    let spans = told.matches(" parent ").count();
    let query = told.lines().find(|line| line.starts_with("query: ")).unwrap();
    assert!(query.contains("event"), "{told}");
    assert!(spans <= 1 && query.len() < text_max, "it does not shrink: {told}");
}

#[test]
fn a_wrong_engine_is_found_and_the_case_shrinks() {
    check_forgetful::<Case>(QUERIES, 60);
}
