//! Pipelines: from the spans of a trace to spansets.

use std::collections::BTreeSet;

use skein_engine::traceql::{Aggregate, AggregateFilter, Form, Pipeline, QueryBody, Relation, SpansetExpr, SpansetOp, Stage, Static, parse};

use super::fields::{Failure, Value, compare, number, takes, value};
use super::structure::Trace;

/// Spans of a trace, by their position, and what was computed for them.
#[derive(Clone, Debug)]
pub struct Spanset {
    pub spans: BTreeSet<usize>,
    pub attributes: Vec<(String, Value)>,
}

/// The spansets of a trace that come out of `pipeline`.
pub fn run(pipeline: &Pipeline, trace: &Trace<'_>) -> Result<Vec<Spanset>, Failure> {
    run_on(pipeline, trace, (0..trace.nodes.len()).collect())
}

/// The same of some of its spans.
pub fn run_on(pipeline: &Pipeline, trace: &Trace<'_>, spans: BTreeSet<usize>) -> Result<Vec<Spanset>, Failure> {
    let mut spansets = vec![Spanset { spans, attributes: Vec::new() }];
    for stage in &pipeline.stages {
        spansets.retain(|spanset| !spanset.spans.is_empty());
        spansets = run_stage(stage, trace, spansets)?;
    }
    spansets.retain(|spanset| !spanset.spans.is_empty());
    Ok(spansets)
}

fn run_stage(stage: &Stage, trace: &Trace<'_>, spansets: Vec<Spanset>) -> Result<Vec<Spanset>, Failure> {
    match stage {
        Stage::Spansets(expr) => {
            spansets.into_iter().map(|spanset| Ok(Spanset { spans: select(expr, trace, &spanset.spans)?, attributes: spanset.attributes })).collect()
        }
        Stage::Aggregate(filter) => {
            let mut kept = Vec::new();
            for spanset in spansets {
                kept.extend(aggregate(filter, stage, trace, spanset)?);
            }
            Ok(kept)
        }
        Stage::By(expr) => {
            let mut groups = Vec::new();
            for spanset in spansets {
                groups.extend(split(|at| value(expr, trace, at), &printed(stage), spanset)?);
            }
            Ok(groups)
        }
        Stage::Coalesce if spansets.is_empty() => Ok(spansets),
        Stage::Coalesce => {
            let spans = spansets.into_iter().flat_map(|spanset| spanset.spans).collect();
            Ok(vec![Spanset { spans, attributes: Vec::new() }])
        }
        Stage::Select(_) => Ok(spansets),
    }
}

/// The canonical text of a `by` or an aggregate, which names the attribute that it sets.
fn printed(stage: &Stage) -> String {
    let query = parse(&stage.to_string()).expect("a stage is a query");
    let QueryBody::Search(pipeline) = query.body else { unreachable!("no metrics") };
    match &pipeline.stages[0] {
        Stage::Aggregate(filter) => filter.aggregate.to_string(),
        stage => stage.to_string(),
    }
}

fn split(value: impl Fn(usize) -> Result<Value, Failure>, name: &str, spanset: Spanset) -> Result<Vec<Spanset>, Failure> {
    let mut groups: Vec<(String, Spanset)> = Vec::new();
    for at in spanset.spans {
        let value = value(at)?;
        let identity = value.identity();
        match groups.iter_mut().find(|(other, _)| *other == identity) {
            Some((_, group)) => drop(group.spans.insert(at)),
            None => {
                let mut attributes = spanset.attributes.clone();
                attributes.push((name.to_owned(), value));
                groups.push((identity, Spanset { spans: BTreeSet::from([at]), attributes }));
            }
        }
    }
    Ok(groups.into_iter().map(|(_, group)| group).collect())
}

// ---- spansets

/// The spans that `expr` selects of `spans`.
fn select(expr: &SpansetExpr, trace: &Trace<'_>, spans: &BTreeSet<usize>) -> Result<BTreeSet<usize>, Failure> {
    match expr {
        SpansetExpr::Filter(filter) => {
            let mut taken = BTreeSet::new();
            for at in spans {
                if takes(filter, trace, *at)? {
                    taken.insert(*at);
                }
            }
            Ok(taken)
        }
        SpansetExpr::Pipeline(pipeline) => Ok(run_on(pipeline, trace, spans.clone())?.into_iter().flat_map(|spanset| spanset.spans).collect()),
        SpansetExpr::Binary { op, lhs, rhs } => {
            let (left, right) = (operand(*op, lhs, trace, spans), operand(*op, rhs, trace, spans));
            combine(*op, left, right, trace)
        }
    }
}

/// A side of an operator. Structural operators want one spanset.
fn operand(op: SpansetOp, expr: &SpansetExpr, trace: &Trace<'_>, spans: &BTreeSet<usize>) -> Result<BTreeSet<usize>, Failure> {
    if let (SpansetOp::Structural { .. }, SpansetExpr::Pipeline(pipeline)) = (op, expr)
        && run_on(pipeline, trace, spans.clone())?.len() > 1
    {
        return Err(Failure);
    }
    select(expr, trace, spans)
}

type Side = Result<BTreeSet<usize>, Failure>;

fn combine(op: SpansetOp, left: Side, right: Side, trace: &Trace<'_>) -> Side {
    let is_empty = |side: &Side| side.as_ref().is_ok_and(BTreeSet::is_empty);
    match op {
        SpansetOp::Or => Ok(&left? | &right?),
        // One empty side decides, whatever the other one is.
        SpansetOp::And if is_empty(&left) || is_empty(&right) => Ok(BTreeSet::new()),
        SpansetOp::And => Ok(&left? | &right?),
        SpansetOp::Structural { .. } if is_empty(&right) => Ok(BTreeSet::new()),
        SpansetOp::Structural { form: Form::Plain | Form::Union, .. } if is_empty(&left) => Ok(BTreeSet::new()),
        SpansetOp::Structural { relation, form } => {
            let (left, right) = (left?, right?);
            let related = |l: usize, r: usize| match relation {
                Relation::Child => trace.is_parent(l, r),
                Relation::Descendant => trace.is_ancestor(l, r),
                Relation::Parent => trace.is_parent(r, l),
                Relation::Ancestor => trace.is_ancestor(r, l),
                Relation::Sibling => trace.are_siblings(l, r),
            };
            let has_left = |r: &usize| left.iter().any(|l| related(*l, *r));
            let has_right = |l: &usize| right.iter().any(|r| related(*l, *r));
            Ok(match form {
                Form::Plain => right.iter().copied().filter(has_left).collect(),
                Form::Negated => right.iter().copied().filter(|r| !has_left(r)).collect(),
                Form::Union => right.iter().copied().filter(has_left).chain(left.iter().copied().filter(has_right)).collect(),
            })
        }
    }
}

// ---- aggregates

/// The spanset with the value, if the value fits.
fn aggregate(filter: &AggregateFilter, stage: &Stage, trace: &Trace<'_>, mut spanset: Spanset) -> Result<Option<Spanset>, Failure> {
    let expr = match &filter.aggregate {
        Aggregate::Count => None,
        Aggregate::Min(expr) | Aggregate::Max(expr) | Aggregate::Avg(expr) | Aggregate::Sum(expr) => Some(expr),
    };
    let mut values = Vec::new();
    for at in &spanset.spans {
        if let Some(expr) = expr {
            values.push(value(expr, trace, *at)?);
        }
    }
    values.retain(|value| !matches!(value, Value::Nil));
    let result = match &filter.aggregate {
        Aggregate::Count => Some(Value::Int(spanset.spans.len() as i64)),
        Aggregate::Min(_) => values.into_iter().reduce(|a, b| if is_above(&a, &b) { b } else { a }),
        Aggregate::Max(_) => values.into_iter().reduce(|a, b| if is_above(&b, &a) { b } else { a }),
        Aggregate::Sum(_) => sum(&values),
        Aggregate::Avg(_) => average(&values),
    };
    let threshold = match filter.value {
        Static::Int(value) => Value::Int(value),
        Static::Duration(value) => Value::Duration(value),
        Static::Float(value) => Value::Float(value),
        _ => unreachable!("thresholds are numbers"),
    };
    Ok(result.filter(|value| number(value).is_some() && compare(filter.op, value, &threshold)).map(|value| {
        spanset.attributes.push((printed(stage), value));
        spanset
    }))
}

/// Numbers are in their order, all else is above them.
fn is_above(a: &Value, b: &Value) -> bool {
    match (number(a), number(b)) {
        (Some(_), Some(_)) => compare(skein_engine::traceql::CompareOp::Gt, a, b),
        (None, Some(_)) => true,
        _ => false,
    }
}

/// The sum of those values that have the type of the first: of integers and durations as it wraps.
fn sum(values: &[Value]) -> Option<Value> {
    Some(match values.first()? {
        Value::Int(_) => Value::Int(whole_sum(values) as i64),
        Value::Duration(_) => Value::Duration(whole_sum(values) as i64),
        Value::Float(_) => Value::Float(float_sum(values)),
        _ => return None,
    })
}

/// The sum, as it does not wrap, divided by the number of all values: a float for integers, a duration for durations.
fn average(values: &[Value]) -> Option<Value> {
    let count = values.len();
    Some(match values.first()? {
        Value::Int(_) => Value::Float(whole_sum(values) as f64 / count as f64),
        Value::Duration(_) => Value::Duration((whole_sum(values) / count as i128) as i64),
        Value::Float(_) => Value::Float(float_sum(values) / count as f64),
        _ => return None,
    })
}

fn of_first_type(values: &[Value]) -> impl Iterator<Item = &Value> {
    values.iter().filter(|value| std::mem::discriminant(*value) == std::mem::discriminant(&values[0]))
}

fn whole_sum(values: &[Value]) -> i128 {
    let whole = |value: &Value| match value {
        Value::Int(value) | Value::Duration(value) => i128::from(*value),
        _ => 0,
    };
    of_first_type(values).map(whole).sum()
}

fn float_sum(values: &[Value]) -> f64 {
    of_first_type(values).filter_map(number).sum()
}
