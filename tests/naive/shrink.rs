//! Making a case smaller: a part is taken away, and stays away while engine and evaluator still disagree.

use skein_engine::traceql::{Aggregate, FieldExpr as E, FieldRef, Pipeline, SpansetExpr, Stage, Static};

use super::model::Span;
use super::traces::World;
use super::{Case, Question};

/// Most cases tried.
const TRIES_MAX: usize = 3000;

/// The smallest question found, from `question`, on which `disagrees` holds.
pub fn shrink<Q: Question>(question: Q, mut disagrees: impl FnMut(&Q) -> bool) -> Q {
    let mut best = question;
    let mut tries = 0;
    'again: loop {
        for smaller in best.smaller() {
            if tries == TRIES_MAX {
                return best;
            }
            tries += 1;
            if disagrees(&smaller) {
                best = smaller;
                continue 'again;
            }
        }
        return best;
    }
}

/// Searches with one thing less, those with much less first.
pub fn smaller_cases(case: &Case) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |change: &dyn Fn(&mut Case)| {
        let mut smaller = case.clone();
        change(&mut smaller);
        cases.push(smaller);
    };
    for world in smaller_worlds(&case.world) {
        add(&|case| case.world = world.clone());
    }
    for query in smaller_pipelines(&case.query) {
        add(&|case| case.query = query.clone());
    }
    if case.window.is_some() {
        add(&|case| case.window = None);
    }
    if case.limit < 100 {
        add(&|case| case.limit = 100);
    }
    if case.spans_per_spanset < 100 {
        add(&|case| case.spans_per_spanset = 100);
    }
    cases
}

pub fn smaller_worlds(world: &World) -> Vec<World> {
    let mut worlds = Vec::new();
    let mut traces: Vec<u128> = world.all().map(|span| span.trace).collect();
    traces.sort_unstable();
    traces.dedup();
    let without = |keep: &dyn Fn(usize, &Span) -> bool| {
        let spans = world.spans.iter().enumerate().filter(|(at, (span, _))| keep(*at, span)).map(|(_, entry)| entry.clone());
        World { spans: spans.collect() }
    };
    if traces.len() > 1 {
        worlds.extend(traces.iter().map(|trace| without(&|_, span| span.trace != *trace)));
    }
    worlds.extend((0..world.spans.len()).map(|gone| without(&|at, _| at != gone)));
    for (at, (span, places)) in world.spans.iter().enumerate() {
        let mut replace = |span: Span, places: u8| {
            let mut spans = world.spans.clone();
            spans[at] = (span, places);
            worlds.push(World { spans });
        };
        for place in (0..3).map(|place| 1 << place).filter(|place| places & place != 0 && places != place) {
            replace(span.clone(), place);
        }
        for smaller in smaller_spans(span) {
            replace(smaller, *places);
        }
    }
    worlds.retain(|world| !world.spans.is_empty());
    worlds
}

fn smaller_spans(span: &Span) -> Vec<Span> {
    let mut spans = Vec::new();
    let mut add = |is_there: bool, change: &dyn Fn(&mut Span)| {
        if is_there {
            let mut smaller = span.clone();
            change(&mut smaller);
            spans.push(smaller);
        }
    };
    add(!span.attributes.is_empty(), &|span| span.attributes.clear());
    add(!span.events.is_empty(), &|span| span.events.clear());
    add(!span.links.is_empty(), &|span| span.links.clear());
    add(span.resource.is_some(), &|span| span.resource = None);
    add(span.scope.is_some(), &|span| span.scope = None);
    add(span.status.is_some(), &|span| span.status = None);
    add(span.parent.is_some(), &|span| span.parent = None);
    add(span.kind != 0, &|span| span.kind = 0);
    add(span.end != span.start, &|span| span.end = span.start);
    add(!span.name.is_empty(), &|span| span.name.clear());
    for at in 0..span.attributes.len() {
        add(true, &|span| drop(span.attributes.remove(at)));
    }
    for at in 0..span.events.len() {
        add(true, &|span| drop(span.events.remove(at)));
        add(!span.events[at].attributes.is_empty(), &|span| span.events[at].attributes.clear());
        for attribute in 0..span.events[at].attributes.len() {
            add(true, &|span| drop(span.events[at].attributes.remove(attribute)));
        }
    }
    for at in 0..span.links.len() {
        add(true, &|span| drop(span.links.remove(at)));
        add(!span.links[at].attributes.is_empty(), &|span| span.links[at].attributes.clear());
    }
    for at in 0..span.resource.as_ref().map_or(0, Vec::len) {
        add(true, &|span| drop(span.resource.as_mut().expect("it is there").remove(at)));
    }
    add(span.scope.as_ref().is_some_and(|scope| !scope.attributes.is_empty()), &|span| {
        span.scope.as_mut().expect("it is there").attributes.clear();
    });
    spans
}

pub fn smaller_pipelines(pipeline: &Pipeline) -> Vec<Pipeline> {
    let mut pipelines = Vec::new();
    // The sides of an operator between pipelines, alone.
    if let [Stage::Spansets(spansets)] = pipeline.stages.as_slice() {
        inner_pipelines(spansets, &mut pipelines);
    }
    for at in 0..pipeline.stages.len() {
        if pipeline.stages.len() > 1 {
            let mut stages = pipeline.stages.clone();
            stages.remove(at);
            pipelines.push(Pipeline { stages });
        }
        for stage in smaller_stages(&pipeline.stages[at]) {
            let mut stages = pipeline.stages.clone();
            stages[at] = stage;
            pipelines.push(Pipeline { stages });
        }
    }
    pipelines
}

fn inner_pipelines(spansets: &SpansetExpr, pipelines: &mut Vec<Pipeline>) {
    match spansets {
        SpansetExpr::Filter(_) => {}
        SpansetExpr::Pipeline(pipeline) => pipelines.push((**pipeline).clone()),
        SpansetExpr::Binary { lhs, rhs, .. } => {
            inner_pipelines(lhs, pipelines);
            inner_pipelines(rhs, pipelines);
        }
    }
}

fn smaller_stages(stage: &Stage) -> Vec<Stage> {
    match stage {
        Stage::Spansets(spansets) => smaller_spansets(spansets).into_iter().map(Stage::Spansets).collect(),
        Stage::By(expr) => smaller_exprs(expr).into_iter().map(Stage::By).collect(),
        Stage::Coalesce => Vec::new(),
        Stage::Select(fields) if fields.len() > 1 => fields.iter().map(|field: &FieldRef| Stage::Select(vec![field.clone()])).collect(),
        Stage::Select(_) => Vec::new(),
        Stage::Aggregate(filter) => {
            let rebuild: fn(E) -> Aggregate = match &filter.aggregate {
                Aggregate::Count => return Vec::new(),
                Aggregate::Min(_) => Aggregate::Min,
                Aggregate::Max(_) => Aggregate::Max,
                Aggregate::Avg(_) => Aggregate::Avg,
                Aggregate::Sum(_) => Aggregate::Sum,
            };
            let (Aggregate::Min(expr) | Aggregate::Max(expr) | Aggregate::Avg(expr) | Aggregate::Sum(expr)) = &filter.aggregate else {
                return Vec::new();
            };
            let smaller = |expr| {
                let mut filter = filter.clone();
                filter.aggregate = rebuild(expr);
                Stage::Aggregate(filter)
            };
            smaller_exprs(expr).into_iter().map(smaller).collect()
        }
    }
}

fn smaller_spansets(spansets: &SpansetExpr) -> Vec<SpansetExpr> {
    match spansets {
        SpansetExpr::Filter(expr) => smaller_exprs(expr).into_iter().map(SpansetExpr::Filter).collect(),
        SpansetExpr::Pipeline(pipeline) => {
            smaller_pipelines(pipeline).into_iter().map(|pipeline| SpansetExpr::Pipeline(Box::new(pipeline))).collect()
        }
        SpansetExpr::Binary { op, lhs, rhs } => {
            let mut smaller = vec![(**lhs).clone(), (**rhs).clone()];
            smaller.extend(smaller_spansets(lhs).into_iter().map(|lhs| SpansetExpr::Binary { op: *op, lhs: Box::new(lhs), rhs: rhs.clone() }));
            smaller.extend(smaller_spansets(rhs).into_iter().map(|rhs| SpansetExpr::Binary { op: *op, lhs: lhs.clone(), rhs: Box::new(rhs) }));
            smaller
        }
    }
}

/// `true`, the parts of `expr`, and `expr` with a smaller part. Some are of the wrong type; those are refused when they are parsed.
pub fn smaller_exprs(expr: &E) -> Vec<E> {
    let mut smaller = Vec::new();
    if !matches!(expr, E::Literal(_)) {
        smaller.push(E::Literal(Static::Bool(true)));
    }
    let one = |inner: &E, rebuild: fn(Box<E>) -> E, smaller: &mut Vec<E>| {
        smaller.push(inner.clone());
        smaller.extend(smaller_exprs(inner).into_iter().map(|inner| rebuild(Box::new(inner))));
    };
    let two = |lhs: &E, rhs: &E, rebuild: &dyn Fn(E, E) -> E, smaller: &mut Vec<E>| {
        smaller.extend([lhs.clone(), rhs.clone()]);
        smaller.extend(smaller_exprs(lhs).into_iter().map(|lhs| rebuild(lhs, rhs.clone())));
        smaller.extend(smaller_exprs(rhs).into_iter().map(|rhs| rebuild(lhs.clone(), rhs)));
    };
    match expr {
        E::Literal(_) | E::Field(_) => {}
        E::Not(inner) => one(inner, E::Not, &mut smaller),
        E::Negate(inner) => one(inner, E::Negate, &mut smaller),
        E::Exists(inner) => one(inner, E::Exists, &mut smaller),
        E::Missing(inner) => one(inner, E::Missing, &mut smaller),
        E::Match { negated, lhs, pattern } => {
            smaller.push((**lhs).clone());
            smaller.extend(smaller_exprs(lhs).into_iter().map(|lhs| E::Match { negated: *negated, lhs: Box::new(lhs), pattern: pattern.clone() }));
        }
        E::Compare { op, lhs, rhs } => {
            two(lhs, rhs, &|lhs, rhs| E::Compare { op: *op, lhs: Box::new(lhs), rhs: Box::new(rhs) }, &mut smaller);
        }
        E::Arith { op, lhs, rhs } => two(lhs, rhs, &|lhs, rhs| E::Arith { op: *op, lhs: Box::new(lhs), rhs: Box::new(rhs) }, &mut smaller),
        E::And(lhs, rhs) => two(lhs, rhs, &|lhs, rhs| E::And(Box::new(lhs), Box::new(rhs)), &mut smaller),
        E::Or(lhs, rhs) => two(lhs, rhs, &|lhs, rhs| E::Or(Box::new(lhs), Box::new(rhs)), &mut smaller),
    }
    smaller
}
