//! Metrics queries: the engine against an evaluator that is written for reading, over the same random traces as searches, and what must hold
//! whatever is asked.
//!
//! | module | part |
//! |---|---|
//! | `times`, `queries`, `text` | random windows and steps, and the intervals they mean; random queries; a query as text |
//! | `series`, `functions`, `compared`, `stages` | the evaluator: series; functions from spans to series; `compare()`; whole queries |
//! | `answer` | what is right, and what an engine said |
//! | `shrink` | making a disagreement smaller |
//! | `invariants` | windows and their parts, spans that move while they are counted |
//! | `found` | cases that were answered wrong once |

mod answer;
mod compared;
mod found;
mod functions;
mod invariants;
mod queries;
mod series;
mod shrink;
mod stages;
mod text;
mod times;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use rand::{Rng, SeedableRng, rngs::StdRng};
use skein_engine::query::{MetricsRequest, QueryService};
use skein_engine::tenant::TenantId;
use skein_engine::traceql::{MetricsExpr, parse};

use crate::harness::wait;

use super::engines::Engines;
use super::traces::{World, once_in};
use super::{Question, Seen, check_forgetful, misread, run_with_environment, structure};
use answer::{Expected, Outcome};
use queries::MetricsQueries;
use times::Times;

/// Queries when `SKEIN_RANDOM_METRICS` does not say.
const QUERIES: usize = 1000;

/// One metrics question.
#[derive(Clone)]
pub struct MetricsCase {
    pub world: World,
    pub query: MetricsExpr,
    /// Whether the language refuses the query.
    pub refused: bool,
    /// Chooses among texts that mean the same.
    spelling: u64,
    pub times: Times,
}

impl MetricsCase {
    fn text(&self) -> String {
        text::text(&self.query, self.spelling)
    }

    fn request(&self) -> MetricsRequest {
        MetricsRequest::new(self.text(), self.times.intervals())
    }

    fn expected(&self) -> Expected {
        match self.refused {
            true => Expected::Refusal,
            false => Expected::new(&self.query, &structure::traces(self.world.all()), &self.times.grid()),
        }
    }
}

impl Question for MetricsCase {
    fn random(random: &mut StdRng, world: &World) -> Self {
        let refused = once_in(random, 20);
        let mut queries = MetricsQueries { random, world };
        let query = if refused { queries.refused() } else { queries.query() };
        let times = Times::random(random, world);
        Self { world: world.clone(), query, refused, spelling: random.random(), times }
    }

    fn world(&self) -> &World {
        &self.world
    }

    fn misread(&self) -> Option<String> {
        match self.refused {
            true => parse(&self.text()).is_ok().then(|| format!("not refused: {}", self.text())),
            false => misread(&self.text(), &self.query.to_string()),
        }
    }

    /// Every engine is asked twice: it may remember.
    fn disagrees(&self, engines: &Engines) -> bool {
        let expected = self.expected();
        let mut first: Option<Outcome> = None;
        engines.iter().flat_map(|(_, engine)| [engine, engine]).any(|engine| {
            let outcome = ask(engine, self.request());
            let is_right = expected.allows(&outcome) && outcome.is_in_order();
            let may_differ = matches!(outcome, Outcome::Refused(_)) || matches!(first, Some(Outcome::Refused(_)));
            let is_as_before = may_differ || first.as_ref().is_none_or(|first| first.is_like(&outcome));
            first.get_or_insert(outcome);
            !(is_right && is_as_before)
        })
    }

    fn smaller(&self) -> Vec<Self> {
        let mut cases = shrink::smaller_cases(self);
        cases.retain(|case| case.misread().is_none());
        cases
    }

    fn told(&self, engines: &Engines) -> String {
        let answers: String = engines.iter().map(|(name, engine)| format!("{name}:\n{}", ask(engine, self.request()))).collect();
        format!("query: {}\n{}\n{}expected:\n{}{answers}", self.text(), self.times, self.world, self.expected())
    }

    fn count(&self, seen: &mut Seen) {
        match self.expected() {
            Expected::Refusal | Expected::Failure => seen.failing += 1,
            Expected::Open { .. } => seen.open += 1,
            expected => seen.selective += usize::from(expected.is_selective()),
        }
    }
}

fn ask(engine: &Arc<dyn QueryService>, request: MetricsRequest) -> Outcome {
    let asked = AssertUnwindSafe(async { engine.metrics(&TenantId::single(), request).await });
    match wait(asked.catch_unwind()) {
        Ok(result) => Outcome::new(result),
        Err(_) => Outcome::Broken("it panicked".to_owned()),
    }
}

#[test]
fn the_engine_agrees_with_the_naive_evaluator() {
    let seen = run_with_environment::<MetricsCase>("naive metrics", "SKEIN_RANDOM_METRICS", QUERIES);
    assert!(seen.selective * 4 > seen.queries, "too few queries have series that are not all zeros: {seen:?}");
    assert!(seen.open * 8 < seen.queries, "too many queries without a certain answer: {seen:?}");
}

#[test]
fn a_wrong_engine_is_found_and_the_case_shrinks() {
    check_forgetful::<MetricsCase>(QUERIES, 120);
}

/// What every construct looks like in canonical text.
const CONSTRUCTS: &str = "rate() count_over_time() min_over_time( max_over_time( sum_over_time( avg_over_time( histogram_over_time( \
    quantile_over_time( compare({ topk( bottomk( by( by (duration by (name by (status by (kind by (rootName by (resource.service.name by (.a by (parent. \
    > >= < <= != = ) +  -  *  /  && || >> !~ &> count() coalesce() select( event: link: instrumentation: span:childCount traceDuration";

#[test]
fn every_construct_is_asked_for() {
    let mut random = StdRng::seed_from_u64(1);
    let queries: Vec<String> = (0..2 * QUERIES)
        .map(|_| {
            let world = World::random(&mut random);
            MetricsCase::random(&mut random, &world).query.to_string()
        })
        .collect();
    for construct in CONSTRUCTS.split_whitespace() {
        let asked = queries.iter().filter(|query| query.contains(construct)).count();
        assert!(asked >= 10, "{construct} is in {asked} of {} queries", queries.len());
    }
}

/// Queries that the language does not have, beside those that are made at random.
const REFUSED: [&str; 24] = [
    "{ } | rate() | { .a }",
    "{ } | rate() | rate()",
    "{ } | topk(2)",
    "{ } | RATE()",
    "{ } | rate(duration)",
    "{ } | min_over_time()",
    "{ } | quantile_over_time(duration)",
    "{ } | quantile_over_time(duration, -0.1)",
    "{ } | rate() by ()",
    "{ } | rate() by (duration + 1)",
    "{ } | rate() by (parent)",
    "{ } | rate() | topk(1) by (name)",
    "{ } | rate() | > 5",
    "{ } | rate() =~ 5",
    "({ } | rate()) % 2",
    "({ } | rate()) ^ 2",
    "({ } | rate()) > ({ } | rate())",
    "-({ } | rate())",
    "({ } | rate()) + 1s",
    "(({ } | rate()) > 5) * 2",
    "({ } | rate() with (a=1)) * 2",
    "({ .a } | count() > 1) | rate()",
    "{ duration = `2s` } | rate()",
    "{ } | max(name) > 1 | rate()",
];

#[test]
fn what_the_language_does_not_have_is_refused() {
    let world = World::random(&mut StdRng::seed_from_u64(1));
    let times = Times::random(&mut StdRng::seed_from_u64(1), &world);
    let engines = wait(super::engines::engines(&world));
    for query in REFUSED.into_iter().chain(["{ }", "", "rate()"]) {
        for (name, engine) in &engines {
            let outcome = ask(engine, MetricsRequest::new(query, times.intervals()));
            assert!(matches!(outcome, Outcome::Refused(_)), "{name}: {query}\n{outcome}");
        }
    }
}
