//! The functions from spans to series: each span counts once, in the interval of its start.

use std::collections::{BTreeMap, BTreeSet};

use skein_engine::traceql::{AttributeScope, FieldExpr, FieldRef, Intrinsic, MetricsFunction, OverTime, Pipeline, SpansetExpr, Stage};

use super::compared;
use super::series::{Labels, NAME, Point, Series, identity, label_value, labels_of};
use super::times::Grid;
use crate::naive::fields::{Failure, Value, number, value};
use crate::naive::pipeline::run_on;
use crate::naive::structure::Trace;

/// A span that a function looks at, and the interval that holds its start.
#[derive(Clone, Copy)]
pub struct Counted<'a> {
    pub trace: &'a Trace<'a>,
    pub at: usize,
    pub interval: usize,
}

/// The series of a function, and series of which an engine may choose.
pub struct Result {
    pub series: Vec<Series>,
    pub choices: Vec<Choice>,
}

/// Series of equal rank of which so many are in the answer.
pub struct Choice {
    pub count: usize,
    pub among: Vec<Series>,
}

/// The spans in the result of `pipeline` that start within the grid, each once, whatever the number of its spansets.
pub fn counted<'a>(pipeline: &Pipeline, traces: &'a [Trace<'a>], grid: &Grid) -> std::result::Result<Vec<Counted<'a>>, Failure> {
    let mut counted = Vec::new();
    for trace in traces {
        let interval = |at: usize| grid.interval(trace.nodes[at].span.start);
        let within: BTreeSet<usize> = (0..trace.nodes.len()).filter(|at| interval(*at).is_some()).collect();
        if within.is_empty() {
            continue;
        }
        let looked_at = if looks_at_single_spans(pipeline) { within } else { (0..trace.nodes.len()).collect() };
        let spans: BTreeSet<usize> = run_on(pipeline, trace, looked_at)?.into_iter().flat_map(|spanset| spanset.spans).collect();
        counted.extend(spans.into_iter().filter_map(|at| Some(Counted { trace, at, interval: interval(at)? })));
    }
    Ok(counted)
}

/// Whether each span is taken for what it is itself, so that the others of its trace do not matter.
fn looks_at_single_spans(pipeline: &Pipeline) -> bool {
    pipeline.stages.iter().all(|stage| matches!(stage, Stage::Spansets(SpansetExpr::Filter(_)) | Stage::Select(_)))
}

/// The series of `function` over `spans`.
pub fn apply(function: &MetricsFunction, spans: &[Counted<'_>], grid: &Grid) -> std::result::Result<Result, Failure> {
    let by = function.by();
    let bare = || if by.is_empty() { vec![(NAME.to_owned(), Value::Text(function.name().to_owned()))] } else { Vec::new() };
    let group = |span: &Counted<'_>| labels_of(grouping(by, span).into_iter().chain(bare()).collect());
    let series = match function {
        MetricsFunction::Rate { .. } | MetricsFunction::CountOverTime { .. } => {
            let mut groups = grouped(spans, grid, |span| vec![(group(span), ())]);
            if by.is_empty() && groups.is_empty() {
                groups.push((bare(), vec![Vec::new(); grid.count()]));
            }
            let unit = if matches!(function, MetricsFunction::Rate { .. }) { grid.seconds() } else { 1.0 };
            series(groups, |spans| Some(Point::exact(spans.len() as f64 / unit)))
        }
        MetricsFunction::OverTime { function: OverTime::Histogram, field, .. } => {
            let with_bucket = |span: &Counted<'_>, bucket: u32| {
                let mut values = grouping(by, span);
                values.push(("__bucket".to_owned(), Value::Float(bound(f64::from(bucket), field))));
                labels_of(values)
            };
            let groups = grouped(spans, grid, |span| bucket(field, span).map(|bucket| (with_bucket(span, bucket), ())).into_iter().collect());
            series(groups, |spans| Some(Point::exact(spans.len() as f64)))
        }
        MetricsFunction::OverTime { function, field, .. } => {
            let groups = grouped(spans, grid, |span| number_of(field, span).map(|number| (group(span), number)).into_iter().collect());
            series(groups, |numbers| over_time(*function, numbers))
        }
        MetricsFunction::QuantileOverTime { field, quantiles, .. } => {
            let buckets = |span: &Counted<'_>| bucket(field, span).map(|bucket| (grouping_labels(by, span), bucket)).into_iter().collect();
            let groups = grouped(spans, grid, buckets);
            let of_one = |quantile: &f64| {
                let with_quantile = |(mut labels, cells): (Labels, Vec<Vec<u32>>)| {
                    labels.push(("p".to_owned(), Value::Float(*quantile)));
                    (labels_of(labels), cells)
                };
                series(groups.iter().cloned().map(with_quantile).collect(), |buckets| Some(quantile_of(*quantile, buckets, field)))
            };
            quantiles.iter().flat_map(of_one).collect()
        }
        MetricsFunction::Compare { selection, top_n, window } => return compared::compare(selection, *top_n as usize, *window, spans, grid),
    };
    Ok(Result { series, choices: Vec::new() })
}

/// Names and values of the attributes that spans are grouped by. Lists count as missing; without any event or link, its name or id is empty.
fn grouping(by: &[FieldRef], span: &Counted<'_>) -> Vec<(String, Value)> {
    let of_field = |field: &FieldRef| {
        let value = match field_value(&of_own_span(field), span) {
            Value::Array(_) => Value::Nil,
            Value::Nil if matches!(field, FieldRef::Intrinsic(Intrinsic::EventName | Intrinsic::LinkTraceId | Intrinsic::LinkSpanId)) => {
                Value::Text(String::new())
            }
            value => label_value(value),
        };
        (field.to_string(), value)
    };
    by.iter().map(of_field).collect()
}

/// The same without what is missing, before a label that is always there is added.
fn grouping_labels(by: &[FieldRef], span: &Counted<'_>) -> Labels {
    grouping(by, span).into_iter().filter(|(_, value)| !matches!(value, Value::Nil)).collect()
}

/// `parent.a` in a grouping is the span's own.
fn of_own_span(field: &FieldRef) -> FieldRef {
    match field {
        FieldRef::Attribute { scope, name } => {
            let scope = match scope {
                AttributeScope::Parent => AttributeScope::Any,
                AttributeScope::ParentSpan => AttributeScope::Span,
                AttributeScope::ParentResource => AttributeScope::Resource,
                own => *own,
            };
            FieldRef::Attribute { scope, name: name.clone() }
        }
        intrinsic => intrinsic.clone(),
    }
}

/// The value of a field on a span: of several events or links, that of the last that has one.
pub fn field_value(field: &FieldRef, span: &Counted<'_>) -> Value {
    value(&FieldExpr::Field(field.clone()), span.trace, span.at).expect("reading cannot fail")
}

/// Groups of what `of` makes of the spans, with what they have in each interval.
pub fn grouped<T: Clone>(spans: &[Counted<'_>], grid: &Grid, of: impl Fn(&Counted<'_>) -> Vec<(Labels, T)>) -> Vec<(Labels, Vec<Vec<T>>)> {
    let mut groups = BTreeMap::<String, (Labels, Vec<Vec<T>>)>::new();
    for span in spans {
        for (labels, item) in of(span) {
            let group = groups.entry(identity(&labels)).or_insert_with(|| (labels, vec![Vec::new(); grid.count()]));
            group.1[span.interval].push(item);
        }
    }
    groups.into_values().collect()
}

/// A series for each group.
pub fn series<T>(groups: Vec<(Labels, Vec<Vec<T>>)>, point: impl Fn(&[T]) -> Option<Point>) -> Vec<Series> {
    groups.into_iter().map(|(labels, cells)| Series { labels, points: cells.iter().map(|cell| point(cell)).collect() }).collect()
}

// ---- numbers

/// The number that a span gives to a function: `duration` in seconds, all other durations in nanoseconds.
fn number_of(field: &FieldRef, span: &Counted<'_>) -> Option<f64> {
    let number = number(&field_value(field, span))?;
    Some(if *field == FieldRef::Intrinsic(Intrinsic::Duration) { number / 1e9 } else { number })
}

fn over_time(function: OverTime, numbers: &[f64]) -> Option<Point> {
    if numbers.is_empty() {
        return None;
    }
    let sum: f64 = numbers.iter().sum();
    let comparable = || numbers.iter().copied().filter(|number| !number.is_nan());
    match function {
        OverTime::Min => comparable().reduce(f64::min).map(Point::exact),
        OverTime::Max => comparable().reduce(f64::max).map(Point::exact),
        OverTime::Sum => Point::summed(sum, numbers).if_number(),
        OverTime::Avg => Point::summed(sum / numbers.len() as f64, numbers).if_number(),
        OverTime::Histogram => unreachable!("a series for each bucket"),
    }
}

// ---- powers of two

/// The power of two at or above the value of the span, as its exponent: integers and durations from 2 up have one.
fn bucket(field: &FieldRef, span: &Counted<'_>) -> Option<u32> {
    match field_value(field, span) {
        Value::Int(value) | Value::Duration(value) if value >= 2 => Some((0..64).find(|exponent| 1u128 << exponent >= value as u128).unwrap_or(63)),
        _ => None,
    }
}

/// Two to the power of `exponent`, in seconds if the field is a duration.
fn bound(exponent: f64, field: &FieldRef) -> f64 {
    let is_duration = matches!(field, FieldRef::Intrinsic(Intrinsic::Duration | Intrinsic::TraceDuration | Intrinsic::EventTimeSinceStart));
    exponent.exp2() / if is_duration { 1e9 } else { 1.0 }
}

/// The quantile of values of which only the powers of two above them are known.
fn quantile_of(quantile: f64, buckets: &[u32], field: &FieldRef) -> Point {
    let mut counts = BTreeMap::<u32, f64>::new();
    for bucket in buckets {
        *counts.entry(*bucket).or_default() += 1.0;
    }
    let need = (quantile * buckets.len() as f64).ceil().max(1.0);
    let (mut passed, mut previous) = (0.0, None);
    for (bucket, count) in counts {
        if passed + count > need {
            let low = f64::from(previous.unwrap_or(bucket - 1));
            let value = bound(low + (f64::from(bucket) - low) * (need - passed) / count, field);
            return Point::with_slack(value, 1e-12 * value);
        }
        passed += count;
        if passed == need {
            return Point::exact(bound(f64::from(bucket), field));
        }
        previous = Some(bucket);
    }
    Point::exact(0.0)
}
