//! A whole metrics query from its operands: second stages, arithmetic, order and limit.

use std::collections::HashMap;

use arrow::record_batch::RecordBatch;

use super::{
    intervals::Intervals,
    observe::cell_kind,
    partial::Partial,
    series::{self, Series},
    stages::{self, Operand},
};
use crate::{
    error::Result,
    exec::memory::Reservation,
    query::{MetricsRequest, MetricsResult, ScanStats},
    spans::value::Value,
    traceql::{MetricsExpr, MetricsFunction, Pipeline},
};

/// Finished series by operand.
pub type Operands = HashMap<String, Vec<Series>>;

/// The parts of a query that spans are scanned for.
pub fn operands_of(query: &MetricsExpr) -> Vec<(&Pipeline, &MetricsFunction)> {
    match query {
        MetricsExpr::Pipeline { pipeline, function } => vec![(pipeline, function)],
        MetricsExpr::Scalar(_) => Vec::new(),
        MetricsExpr::Binary { lhs, rhs, .. } => [operands_of(lhs), operands_of(rhs)].concat(),
        MetricsExpr::SecondStages { input, .. } => operands_of(input),
    }
}

/// Equal operands are computed once.
pub fn operand_key(pipeline: &Pipeline, function: &MetricsFunction) -> String {
    format!("{pipeline} | {function}")
}

/// The series of one operand from what its plan gave. `held` is for the series while they are added up. Errors: `Internal` for batches that are not partial
/// series, `Exhausted`.
pub fn finish_operand(function: &MetricsFunction, intervals: &Intervals, batches: &[RecordBatch], held: Reservation) -> Result<Vec<Series>> {
    let mut partial = Partial::new(cell_kind(function), intervals.count(), held);
    batches.iter().try_for_each(|batch| partial.merge_batch(batch))?;
    series::finish(function, intervals, partial)
}

/// The answer to `query`.
pub fn finish(query: &MetricsExpr, operands: &Operands, request: &MetricsRequest, stats: ScanStats) -> MetricsResult {
    let mut all = match evaluate(query, operands) {
        Operand::Series(series) => series,
        Operand::Scalar(_) => Vec::new(),
    };
    series::sort(&mut all);
    let truncated = request.max_series > 0 && all.len() > request.max_series;
    if truncated {
        all.truncate(request.max_series);
    }
    let intervals: &Intervals = &request.intervals;
    MetricsResult { series: all.into_iter().map(|series| series::to_proto(series, intervals)).collect(), truncated, stats }
}

fn evaluate(query: &MetricsExpr, operands: &Operands) -> Operand {
    match query {
        MetricsExpr::Pipeline { pipeline, function } => Operand::Series(operands.get(&operand_key(pipeline, function)).cloned().unwrap_or_default()),
        MetricsExpr::Scalar(value) => Operand::Scalar(Value::from(value).as_f64().unwrap_or(f64::NAN)),
        MetricsExpr::Binary { op, lhs, rhs } => stages::arithmetic(*op, evaluate(lhs, operands), evaluate(rhs, operands)),
        MetricsExpr::SecondStages { input, stages } => match evaluate(input, operands) {
            Operand::Series(series) => Operand::Series(stages.iter().fold(series, |series, stage| stages::apply(stage, series))),
            scalar => scalar,
        },
    }
}
