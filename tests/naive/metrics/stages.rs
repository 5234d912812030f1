//! A whole metrics query: functions over pipelines, what is done to their series afterwards, and arithmetic between them.

use std::cmp::Ordering;

use skein_engine::traceql::{ArithOp, CompareOp, MetricsExpr, MetricsFunction, SecondStage, Static};

use super::functions::{Choice, apply, counted};
use super::series::{Labels, NAME, Point, Series};
use super::times::Grid;
use crate::naive::fields::{Failure, Value};
use crate::naive::structure::Trace;

/// Why there is no one right answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// The query fails on the data.
    Fails,
    /// The rules do not say what is right, or it hangs on the last digits of a sum.
    Silent(&'static str),
}

impl From<Failure> for Open {
    fn from(_: Failure) -> Self {
        Self::Fails
    }
}

type Evaluated = Result<Vec<Series>, Open>;

/// The answer to a query, and what an engine may choose to add to it.
pub fn answer(query: &MetricsExpr, traces: &[Trace<'_>], grid: &Grid) -> Result<(Vec<Series>, Vec<Choice>), Open> {
    if let MetricsExpr::Pipeline { pipeline, function: function @ MetricsFunction::Compare { .. } } = query {
        let result = apply(function, &counted(pipeline, traces, grid)?, grid)?;
        return Ok((result.series, result.choices));
    }
    let mut series = evaluate(query, traces, grid)?;
    series.retain(|series| !series.is_empty());
    Ok((series, Vec::new()))
}

fn evaluate(query: &MetricsExpr, traces: &[Trace<'_>], grid: &Grid) -> Evaluated {
    match query {
        MetricsExpr::Pipeline { pipeline, function } => {
            let spans = counted(pipeline, traces, grid)?;
            Ok(apply(function, &spans, grid)?.series)
        }
        MetricsExpr::SecondStages { input, stages } => {
            let input = evaluate(input, traces, grid);
            stages.iter().fold(input, |series, stage| second_stage(stage, without_empty(series?)))
        }
        MetricsExpr::Binary { op, lhs, rhs } => {
            let side = |side: &MetricsExpr| evaluate(side, traces, grid).map(without_empty);
            match (&**lhs, &**rhs) {
                (MetricsExpr::Scalar(scalar), series) => Ok(with_scalar(side(series)?, |point| calculate(*op, of_scalar(scalar), point))),
                (series, MetricsExpr::Scalar(scalar)) => Ok(with_scalar(side(series)?, |point| calculate(*op, point, of_scalar(scalar)))),
                (lhs, rhs) => match (side(lhs), side(rhs)) {
                    (Err(Open::Fails), _) | (_, Err(Open::Fails)) => Err(Open::Fails),
                    (lhs, rhs) => Ok(combine(*op, lhs?, rhs?)),
                },
            }
        }
        MetricsExpr::Scalar(_) => unreachable!("a query has series"),
    }
}

fn without_empty(mut series: Vec<Series>) -> Vec<Series> {
    series.retain(|series| !series.is_empty());
    series
}

// ---- second stages

fn second_stage(stage: &SecondStage, series: Vec<Series>) -> Evaluated {
    match stage {
        SecondStage::TopK(limit) => best(series, *limit as usize, Ordering::Greater),
        SecondStage::BottomK(limit) => best(series, *limit as usize, Ordering::Less),
        SecondStage::Filter { op, value } => {
            let threshold = of_scalar(value).value;
            let passes = |point: Point| match point.slack > 0.0 && point.is_about(threshold) {
                true => Err(Open::Silent("a sum is too close to a threshold")),
                false => Ok(holds(*op, point.value, threshold)),
            };
            map_points(series, |point| Ok(passes(point)?.then_some(point)))
        }
    }
}

fn map_points(series: Vec<Series>, change: impl Fn(Point) -> Result<Option<Point>, Open>) -> Evaluated {
    let mut changed = Vec::new();
    for mut series in series {
        for point in &mut series.points {
            if let Some(value) = *point {
                *point = change(value)?;
            }
        }
        changed.push(series);
    }
    Ok(changed)
}

fn holds(op: CompareOp, value: f64, threshold: f64) -> bool {
    match op {
        CompareOp::Eq => value == threshold,
        CompareOp::Ne => value != threshold,
        CompareOp::Lt => value < threshold,
        CompareOp::Le => value <= threshold,
        CompareOp::Gt => value > threshold,
        CompareOp::Ge => value >= threshold,
    }
}

/// At each time the `limit` points that are most `wanted` of all; the others become missing.
fn best(mut series: Vec<Series>, limit: usize, wanted: Ordering) -> Evaluated {
    if series.len() <= limit {
        return Ok(series);
    }
    for at in 0..series[0].points.len() {
        let candidates: Vec<(usize, Point)> = (0..series.len()).filter_map(|which| Some((which, series[which].points[at]?))).collect();
        let rank = |a: &(usize, Point), b: &(usize, Point)| {
            let by_value = compare_points(a.1, b.1).map(|order| if wanted == Ordering::Greater { order.reverse() } else { order });
            match by_value {
                Ok(Ordering::Equal) => {
                    let by_labels = compare_labels(&series[a.0].labels, &series[b.0].labels);
                    by_labels.map(|order| if wanted == Ordering::Greater { order } else { order.reverse() })
                }
                other => other,
            }
        };
        let mut dropped = Vec::new();
        for candidate in &candidates {
            let (mut before, mut unsure) = (0, None);
            for other in candidates.iter().filter(|other| other.0 != candidate.0) {
                match rank(other, candidate) {
                    Ok(order) => before += usize::from(order == Ordering::Less),
                    Err(open) => unsure = Some((open, unsure.map_or(1, |(_, count)| count + 1))),
                }
            }
            match unsure {
                _ if before >= limit => dropped.push(candidate.0),
                Some((open, count)) if before + count >= limit => return Err(open),
                _ => {}
            }
        }
        dropped.into_iter().for_each(|which| series[which].points[at] = None);
    }
    Ok(series)
}

fn compare_points(a: Point, b: Point) -> Result<Ordering, Open> {
    let slack = a.slack + b.slack;
    if slack > 0.0 && (a.value - b.value).abs() <= slack {
        return Err(Open::Silent("sums are too close to rank them"));
    }
    Ok(a.value.partial_cmp(&b.value).expect("points are numbers"))
}

/// Which of two series of equal value `topk` takes first: of texts the smaller, of integers the larger.
fn compare_labels(a: &Labels, b: &Labels) -> Result<Ordering, Open> {
    let same_names = a.len() == b.len() && a.iter().zip(b).all(|((a, _), (b, _))| a == b);
    let different: Vec<_> = a.iter().zip(b).filter(|((_, a), (_, b))| a.identity() != b.identity()).collect();
    match different.as_slice() {
        [((_, Value::Text(a)), (_, Value::Text(b)))] if same_names => Ok(a.as_bytes().cmp(b.as_bytes())),
        [((_, Value::Int(a)), (_, Value::Int(b)))] if same_names => Ok(b.cmp(a)),
        _ => Err(Open::Silent("ties between such labels")),
    }
}

// ---- arithmetic

/// A number of the query; a duration in seconds.
fn of_scalar(scalar: &Static) -> Point {
    Point::exact(match scalar {
        Static::Int(value) => *value as f64,
        Static::Float(value) => *value,
        Static::Duration(nanos) => *nanos as f64 / 1e9,
        _ => unreachable!("scalars are numbers"),
    })
}

fn with_scalar(series: Vec<Series>, calculate: impl Fn(Point) -> Option<Point>) -> Vec<Series> {
    let points = |series: &Series| series.points.iter().map(|point| calculate((*point)?)).collect();
    series.into_iter().map(|series| Series { points: points(&series), labels: series.labels }).collect()
}

/// Two sides point by point: series of the same labels, or a single one without labels with each of the other side.
fn combine(op: ArithOp, lhs: Vec<Series>, rhs: Vec<Series>) -> Vec<Series> {
    let bare = |side: &[Series]| side.len() == 1 && side[0].bare_name().is_some();
    let mut combined = Vec::new();
    for left in &lhs {
        for right in &rhs {
            let labels = match (left.bare_name(), right.bare_name()) {
                (Some(a), Some(b)) => vec![(NAME.to_owned(), Value::Text(format!("({a} {} {b})", op.as_str())))],
                _ if bare(&rhs) => left.labels.clone(),
                _ if bare(&lhs) => right.labels.clone(),
                _ if left.joining_identity() == right.joining_identity() => left.labels.clone(),
                _ => continue,
            };
            let points = left.points.iter().zip(&right.points).map(|(a, b)| calculate(op, (*a)?, (*b)?)).collect();
            combined.push(Series { labels, points });
        }
    }
    combined
}

/// `a op b`; division by zero gives nothing.
fn calculate(op: ArithOp, a: Point, b: Point) -> Option<Point> {
    let (value, slack) = match op {
        ArithOp::Add => (a.value + b.value, a.slack + b.slack),
        ArithOp::Sub => (a.value - b.value, a.slack + b.slack),
        ArithOp::Mul => (a.value * b.value, a.value.abs() * b.slack + b.value.abs() * a.slack + a.slack * b.slack),
        ArithOp::Div if b.value == 0.0 => return None,
        ArithOp::Div => {
            let quotient = a.value / b.value;
            (quotient, (a.slack + quotient.abs() * b.slack) / (b.value.abs() - b.slack).max(f64::MIN_POSITIVE))
        }
        ArithOp::Mod | ArithOp::Pow => unreachable!("not between metrics"),
    };
    Point::with_slack(value, slack).if_number()
}
