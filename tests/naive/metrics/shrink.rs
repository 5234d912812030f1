//! Smaller metrics questions.

use skein_engine::traceql::{FieldRef, MetricsExpr, MetricsFunction};

use super::MetricsCase;
use crate::naive::shrink::{smaller_exprs, smaller_pipelines, smaller_worlds};

/// Cases with one thing less, those with much less first.
pub fn smaller_cases(case: &MetricsCase) -> Vec<MetricsCase> {
    let mut cases: Vec<MetricsCase> = smaller_worlds(&case.world).into_iter().map(|world| MetricsCase { world, ..case.clone() }).collect();
    // Of what is refused, a part may be fine.
    if !case.refused {
        cases.extend(smaller_queries(&case.query).into_iter().map(|query| MetricsCase { query, ..case.clone() }));
    }
    cases.extend(case.times.smaller().into_iter().map(|times| MetricsCase { times, ..case.clone() }));
    cases
}

fn smaller_queries(query: &MetricsExpr) -> Vec<MetricsExpr> {
    match query {
        MetricsExpr::Scalar(_) => Vec::new(),
        MetricsExpr::SecondStages { input, stages } => {
            let mut smaller = vec![(**input).clone()];
            let with = |input: MetricsExpr, stages: Vec<_>| MetricsExpr::SecondStages { input: Box::new(input), stages };
            if stages.len() > 1 {
                smaller.extend((0..stages.len()).map(|at| with((**input).clone(), [&stages[..at], &stages[at + 1..]].concat())));
            }
            smaller.extend(smaller_queries(input).into_iter().filter(is_input).map(|input| with(input, stages.clone())));
            smaller
        }
        MetricsExpr::Binary { op, lhs, rhs } => {
            let mut smaller: Vec<MetricsExpr> = [lhs, rhs].into_iter().filter(|side| !is_scalar(side)).map(|side| (**side).clone()).collect();
            let with = |lhs: MetricsExpr, rhs: MetricsExpr| MetricsExpr::Binary { op: *op, lhs: Box::new(lhs), rhs: Box::new(rhs) };
            smaller.extend(smaller_queries(lhs).into_iter().map(|lhs| with(lhs, (**rhs).clone())));
            smaller.extend(smaller_queries(rhs).into_iter().map(|rhs| with((**lhs).clone(), rhs)));
            smaller
        }
        MetricsExpr::Pipeline { pipeline, function } => {
            let with_pipeline = |pipeline| MetricsExpr::Pipeline { pipeline, function: function.clone() };
            let with_function = |function| MetricsExpr::Pipeline { pipeline: pipeline.clone(), function };
            let mut smaller: Vec<MetricsExpr> = smaller_pipelines(pipeline).into_iter().map(with_pipeline).collect();
            smaller.extend(smaller_functions(function).into_iter().map(with_function));
            smaller
        }
    }
}

/// Second stages stand once, at the end.
fn is_input(query: &MetricsExpr) -> bool {
    !matches!(query, MetricsExpr::SecondStages { .. } | MetricsExpr::Scalar(_))
}

fn is_scalar(query: &MetricsExpr) -> bool {
    matches!(query, MetricsExpr::Scalar(_))
}

fn smaller_functions(function: &MetricsFunction) -> Vec<MetricsFunction> {
    let mut smaller: Vec<MetricsFunction> = (0..function.by().len()).map(|gone| without_grouping(function, gone)).collect();
    match function {
        MetricsFunction::CountOverTime { .. } => {}
        MetricsFunction::Compare { selection, top_n, window } => {
            let with = |selection| MetricsFunction::Compare { selection, top_n: *top_n, window: *window };
            smaller.extend(smaller_exprs(selection).into_iter().map(with));
            if window.is_some() {
                smaller.push(MetricsFunction::Compare { selection: selection.clone(), top_n: *top_n, window: None });
            }
        }
        MetricsFunction::QuantileOverTime { field, quantiles, by } if quantiles.len() > 1 => {
            let one = |quantile: &f64| MetricsFunction::QuantileOverTime { field: field.clone(), quantiles: vec![*quantile], by: by.clone() };
            smaller.extend(quantiles.iter().map(one));
        }
        other => smaller.push(MetricsFunction::CountOverTime { by: other.by().to_vec() }),
    }
    smaller
}

fn without_grouping(function: &MetricsFunction, gone: usize) -> MetricsFunction {
    let mut smaller = function.clone();
    let by: &mut Vec<FieldRef> = match &mut smaller {
        MetricsFunction::Rate { by }
        | MetricsFunction::CountOverTime { by }
        | MetricsFunction::OverTime { by, .. }
        | MetricsFunction::QuantileOverTime { by, .. } => by,
        MetricsFunction::Compare { .. } => unreachable!("it has no grouping"),
    };
    by.remove(gone);
    smaller
}
