//! A whole metrics query from its operands: second stages, arithmetic, order and limit.

use std::collections::HashMap;

use arrow::record_batch::RecordBatch;

use super::{
    detail::Detail,
    partial::Partial,
    series::{self, Series},
    stages::{self, Operand},
};
use crate::{
    error::{Error, Result},
    exec::memory::Reservation,
    query::{MetricsRequest, MetricsResult, ScanStats},
    spans::value::Value,
    traceql::{self, FieldRef, MetricsExpr, MetricsFunction, Pipeline, Query, QueryBody, SecondStage},
};

/// Finished series by operand.
pub type Operands = HashMap<String, Vec<Series>>;

/// The parts of a query that spans are scanned for, by what tells them apart: equal operands are computed once.
pub fn distinct_operands(query: &MetricsExpr) -> Vec<(String, (&Pipeline, &MetricsFunction))> {
    let mut distinct: Vec<(String, (&Pipeline, &MetricsFunction))> = Vec::new();
    for (pipeline, function) in operands_of(query) {
        let key = operand_key(pipeline, function);
        if distinct.iter().all(|(known, _)| *known != key) {
            distinct.push((key, (pipeline, function)));
        }
    }
    distinct
}

fn operands_of(query: &MetricsExpr) -> Vec<(&Pipeline, &MetricsFunction)> {
    match query {
        MetricsExpr::Pipeline { pipeline, function } => vec![(pipeline, function)],
        MetricsExpr::Scalar(_) => Vec::new(),
        MetricsExpr::Binary { lhs, rhs, .. } => [operands_of(lhs), operands_of(rhs)].concat(),
        MetricsExpr::SecondStages { input, .. } => operands_of(input),
    }
}

fn operand_key(pipeline: &Pipeline, function: &MetricsFunction) -> String {
    format!("{pipeline} | {function}")
}

/// The fields that the series of `query` are grouped by, in order; those of all operands of arithmetic.
pub fn grouping(query: &MetricsExpr) -> Vec<&FieldRef> {
    let mut fields: Vec<&FieldRef> = Vec::new();
    for field in operands_of(query).into_iter().flat_map(|(_, function)| function.by()) {
        if !fields.contains(&field) {
            fields.push(field);
        }
    }
    fields
}

/// The functions of the operands of `query`.
pub fn functions(query: &MetricsExpr) -> impl Iterator<Item = &MetricsFunction> {
    operands_of(query).into_iter().map(|(_, function)| function)
}

/// Whether the answer at a time depends on nothing but the spans of its interval. Not so for `compare()`, whose values are chosen by their
/// totals, for `topk` and `bottomk`: a series that has no span in the interval counts as zero there, wherever it has some; and for 95 %
/// intervals, which learn from all points of a series how its traces vary.
pub fn is_by_interval(query: &MetricsExpr, detail: &Detail) -> bool {
    let by_interval = |query| is_by_interval(query, detail);
    !detail.extrapolation.as_ref().is_some_and(|extrapolation| extrapolation.confidence)
        && match query {
            MetricsExpr::Pipeline { function, .. } => !matches!(function, MetricsFunction::Compare { .. }),
            MetricsExpr::Scalar(_) => true,
            MetricsExpr::Binary { lhs, rhs, .. } => by_interval(lhs) && by_interval(rhs),
            MetricsExpr::SecondStages { input, stages } => {
                by_interval(input) && !stages.iter().any(|stage| matches!(stage, SecondStage::TopK(_) | SecondStage::BottomK(_)))
            }
        }
}

/// The query of a request, and what it keeps. Errors: `Invalid` for a query that does not parse or validate, is no metrics query, or asks for
/// intervals that there are not.
pub fn checked(request: &MetricsRequest) -> Result<(MetricsExpr, Detail)> {
    let Query { body: QueryBody::Metrics(query), hints } = traceql::parse(&request.query)? else { return Err(Error::invalid("not a metrics query")) };
    let detail = Detail::of(&query, &hints, request.exemplars, request.sampling_attribute.as_deref())?;
    Ok((query, detail))
}

/// The series of an operand with `function` of `query` from what its plan gave. `held` is for the series while they are added up.
/// Errors: `Internal` for batches that are not partial series, `Exhausted`.
pub fn finish_operand(
    (query, function): (&MetricsExpr, &MetricsFunction),
    request: &MetricsRequest,
    detail: &Detail,
    batches: &[RecordBatch],
    held: Reservation,
) -> Result<Vec<Series>> {
    let mut partial = Partial::new(detail.cell_kind(function), request.intervals.count(), held);
    batches.iter().try_for_each(|batch| partial.merge_batch(batch))?;
    // Nothing is done to the exemplars before they are taken in turn, nor is a series left out.
    let in_turn = matches!(query, MetricsExpr::Pipeline { .. }) && (request.max_series == 0 || partial.len() <= request.max_series);
    series::finish(function, &request.intervals, detail, partial, in_turn)
}

/// The answer to `query`, with at most `request.exemplars` exemplars, as many of each series.
pub fn finish(query: &MetricsExpr, operands: Operands, request: &MetricsRequest, stats: ScanStats) -> MetricsResult {
    let (series, truncated) = finish_series(query, operands, request);
    MetricsResult { series: series.into_iter().map(|series| series::to_proto(series, &request.intervals)).collect(), truncated, stats }
}

/// The same series before they are put into the form of the API, and whether there are more.
pub fn finish_series(query: &MetricsExpr, operands: Operands, request: &MetricsRequest) -> (Vec<Series>, bool) {
    let mut all = match evaluate(query, &mut Uses::of(query, operands)) {
        Operand::Series(series) => series,
        Operand::Scalar(_) => Vec::new(),
    };
    all.extend(all.iter().flat_map(series::of_bounds).collect::<Vec<_>>());
    series::sort(&mut all);
    let truncated = request.max_series > 0 && all.len() > request.max_series;
    if truncated {
        all.truncate(request.max_series);
    }
    let exemplars = all.iter_mut().map(|series| std::mem::take(&mut series.exemplars)).collect();
    for (number, exemplar) in series::in_turn(exemplars, request.exemplars as usize) {
        all[number].exemplars.push(exemplar);
    }
    (all, truncated)
}

/// The operands of a query while it is evaluated: series are copied only for those that are needed again.
struct Uses {
    operands: Operands,
    /// How often each is still needed.
    left: HashMap<String, usize>,
}

impl Uses {
    fn of(query: &MetricsExpr, operands: Operands) -> Self {
        let mut left = HashMap::new();
        operands_of(query).into_iter().for_each(|(pipeline, function)| *left.entry(operand_key(pipeline, function)).or_default() += 1);
        Self { operands, left }
    }

    fn take(&mut self, key: &str) -> Vec<Series> {
        let left = self.left.get_mut(key).map_or(0, |left| {
            *left -= 1;
            *left
        });
        let series = if left == 0 { self.operands.remove(key) } else { self.operands.get(key).cloned() };
        series.unwrap_or_default()
    }
}

fn evaluate(query: &MetricsExpr, operands: &mut Uses) -> Operand {
    match query {
        MetricsExpr::Pipeline { pipeline, function } => Operand::Series(operands.take(&operand_key(pipeline, function))),
        MetricsExpr::Scalar(value) => Operand::Scalar(Value::from(value).as_f64().unwrap_or(f64::NAN)),
        MetricsExpr::Binary { op, lhs, rhs } => stages::arithmetic(*op, evaluate(lhs, operands), evaluate(rhs, operands)),
        MetricsExpr::SecondStages { input, stages } => match evaluate(input, operands) {
            Operand::Series(series) => Operand::Series(stages.iter().fold(series, |series, stage| stages::apply(stage, series))),
            scalar => scalar,
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_operand_serves_each_of_its_uses() {
        let check = |text: &str, expected: f64| {
            let Query { body: QueryBody::Metrics(query), .. } = traceql::parse(text).unwrap() else { panic!("not a metrics query: {text}") };
            let series = Series { values: vec![3.0, 5.0], ..Series::default() };
            let operands = distinct_operands(&query).into_iter().map(|(key, _)| (key, vec![series.clone()])).collect();
            let Operand::Series(found) = evaluate(&query, &mut Uses::of(&query, operands)) else { panic!("no series: {text}") };
            assert_eq!(found.iter().map(|series| series.values[0]).collect::<Vec<_>>(), [expected], "{text}");
        };
        check("{ } | rate()", 3.0);
        check("({ } | rate()) / ({ } | rate())", 1.0);
        check("(({ } | rate()) + ({ } | rate())) * ({ } | rate())", 18.0);
        check("({ } | rate()) + (({ kind = server } | rate()) - ({ } | rate()))", 3.0);
    }
}
