//! `SelectLeavesScan`: see [`SelectLeavesScan`].

use datafusion::{
    common::{Result, tree_node::Transformed},
    logical_expr::LogicalPlan,
    optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule},
};

use crate::{
    plan::logical::{self, SpansetStage, head},
    traceql::{SpansetExpr, Stage},
};

/// Takes `select()` out of the stages, those in parentheses included. It keeps every span, and the details have the whole pipeline to see
/// what is to be shown.
/// ```text
/// TraceDetails: shown=[name, span.a]         TraceDetails: shown=[name, span.a]
///   NewestTraces: limit=20                     NewestTraces: limit=20
///     SpansetStage: select(span.a)        →      SpansetStage: { name = `x` }
///       SpansetStage: { name = `x` }               Traces
///         Traces
/// ```
#[derive(Debug)]
pub struct SelectLeavesScan;

impl OptimizerRule for SelectLeavesScan {
    fn name(&self) -> &str {
        "select_leaves_scan"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let Some(SpansetStage { input, stage }) = head(&plan) else { return Ok(Transformed::no(plan)) };
        if let Stage::Select(_) = stage.0 {
            return Ok(Transformed::yes(input.clone()));
        }
        let mut stage = stage.0.clone();
        Ok(match remove_from_stage(&mut stage) {
            true => Transformed::yes(logical::plan(SpansetStage::new(input.clone(), stage))),
            false => Transformed::no(plan),
        })
    }
}

/// Whether there was something to remove.
fn remove_from_stage(stage: &mut Stage) -> bool {
    match stage {
        Stage::Spansets(expr) => remove_from_spansets(expr),
        Stage::Aggregate(_) | Stage::By(_) | Stage::Coalesce | Stage::Select(_) => false,
    }
}

fn remove_from_spansets(expr: &mut SpansetExpr) -> bool {
    match expr {
        SpansetExpr::Filter(_) => false,
        SpansetExpr::Pipeline(pipeline) => {
            let before = pipeline.stages.len();
            // A pipeline has at least one stage.
            if pipeline.stages.iter().any(|stage| !matches!(stage, Stage::Select(_))) {
                pipeline.stages.retain(|stage| !matches!(stage, Stage::Select(_)));
            }
            let removed = pipeline.stages.len() < before;
            pipeline.stages.iter_mut().fold(removed, |removed, stage| remove_from_stage(stage) | removed)
        }
        SpansetExpr::Binary { lhs, rhs, .. } => remove_from_spansets(lhs) | remove_from_spansets(rhs),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;

    #[test]
    fn select_leaves_the_stages_and_stays_in_what_is_shown() {
        check(
            "select_leaves_scan",
            "({ name = `x` } | select(span.b)) && { } | select(span.a)",
            &[
                "TraceDetails: shown=[span.b, span.a], spans_per_spanset=3",
                "  NewestTraces: limit=20",
                "    SpansetStage: select(span.a)",
                "      SpansetStage: ({ name = `x` } | select(span.b)) && { true }",
                "        Traces: sources=[blocks=1, live=0, traces in several=0], window=10 to 20 s",
            ],
            &[
                "TraceDetails: shown=[span.b, span.a], spans_per_spanset=3",
                "  NewestTraces: limit=20",
                "    SpansetStage: ({ name = `x` }) && { true }",
                "      Traces: sources=[blocks=1, live=0, traces in several=0], window=10 to 20 s",
            ],
        );
    }
}
