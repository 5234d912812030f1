//! `compare()`: how often each value of each attribute occurs in a selection of the spans and in the others.

use std::cmp::Reverse;

use skein_engine::traceql::{AttributeScope as Scope, FieldExpr, FieldRef, Intrinsic};

use super::functions::{Choice, Counted, Result, field_value, grouped, series};
use super::series::{Labels, Point, Series, label_value};
use super::times::Grid;
use crate::naive::fields::{Failure, Value, takes};
use crate::naive::model::Attributes;

const META: &str = "__meta_type";
/// The intrinsics that are compared.
const INTRINSICS: [Intrinsic; 12] = [
    Intrinsic::Name,
    Intrinsic::Status,
    Intrinsic::StatusMessage,
    Intrinsic::Kind,
    Intrinsic::ChildCount,
    Intrinsic::RootName,
    Intrinsic::RootService,
    Intrinsic::EventName,
    Intrinsic::LinkTraceId,
    Intrinsic::LinkSpanId,
    Intrinsic::InstrumentationName,
    Intrinsic::InstrumentationVersion,
];

/// Of each attribute the `top_n` most frequent values among the selected spans, the same among the others, and both totals.
pub fn compare(
    selection: &FieldExpr,
    top_n: usize,
    window: Option<(i64, i64)>,
    spans: &[Counted<'_>],
    grid: &Grid,
) -> std::result::Result<Result, Failure> {
    let (mut selected, mut others) = (Vec::new(), Vec::new());
    for span in spans {
        let start = i128::from(span.trace.nodes[span.at].span.start);
        let within = window.is_none_or(|(after, until)| start > i128::from(after) && start <= i128::from(until));
        let side = if takes(selection, span.trace, span.at)? && within { &mut selected } else { &mut others };
        side.push(*span);
    }
    let mut result = Result { series: Vec::new(), choices: Vec::new() };
    for (side, spans) in [("selection", selected), ("baseline", others)] {
        let mut fields: Vec<FieldRef> = spans.iter().flat_map(fields_of).collect();
        fields.sort_by_key(FieldRef::to_string);
        fields.dedup();
        for field in fields {
            compare_field(&field, side, top_n, &spans, grid, &mut result);
        }
    }
    Ok(result)
}

fn compare_field(field: &FieldRef, side: &str, top_n: usize, spans: &[Counted<'_>], grid: &Grid, result: &mut Result) {
    let count = |spans: &[()]| Some(Point::exact(spans.len() as f64));
    let total = |_: &Counted<'_>| (labels(&format!("{side}_total"), field, Value::Nil), ());
    let value = |span: &Counted<'_>| match field_value(field, span) {
        Value::Nil => None,
        value => Some((labels(side, field, label_value(value)), ())),
    };
    result.series.extend(series(grouped(spans, grid, |span| value(span).map(|_| total(span)).into_iter().collect()), count));
    let mut values = series(grouped(spans, grid, |span| value(span).into_iter().collect()), count);
    values.sort_by_key(|series| Reverse(sum(series)));
    if values.len() <= top_n {
        result.series.extend(values);
        return;
    }
    let last = sum(&values[top_n - 1]);
    let (certain, others): (Vec<Series>, Vec<Series>) = values.into_iter().partition(|series| sum(series) > last);
    let equal = others.into_iter().filter(|series| sum(series) == last).collect();
    result.choices.push(Choice { count: top_n - certain.len(), among: equal });
    result.series.extend(certain);
}

fn sum(series: &Series) -> u64 {
    series.points.iter().flatten().map(|point| point.value as u64).sum()
}

fn labels(side: &str, field: &FieldRef, value: Value) -> Labels {
    let mut labels = vec![(META.to_owned(), Value::Text(side.to_owned())), (field.to_string(), value)];
    labels.sort_by(|(a, _), (b, _)| a.cmp(b));
    labels
}

/// What a span may have to compare.
fn fields_of(span: &Counted<'_>) -> Vec<FieldRef> {
    let sent = span.trace.nodes[span.at].span;
    let mut fields: Vec<FieldRef> = INTRINSICS.into_iter().map(FieldRef::Intrinsic).collect();
    let mut add = |scope: Scope, attributes: &Attributes| {
        fields.extend(attributes.iter().map(|(key, _)| FieldRef::Attribute { scope, name: key.clone() }));
    };
    add(Scope::Span, &sent.attributes);
    sent.resource.iter().for_each(|attributes| add(Scope::Resource, attributes));
    sent.scope.iter().for_each(|scope| add(Scope::Instrumentation, &scope.attributes));
    sent.events.iter().for_each(|event| add(Scope::Event, &event.attributes));
    sent.links.iter().for_each(|link| add(Scope::Link, &link.attributes));
    fields
}
