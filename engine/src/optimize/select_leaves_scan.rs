//! `SelectLeavesScan`: see [`SelectLeavesScan`].

use datafusion::{
    common::{Result, tree_node::Transformed},
    logical_expr::LogicalPlan,
    optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule},
};

use crate::{
    plan::logical::{self, SpansetStages, head},
    traceql::{Pipeline, SpansetExpr, Stage},
};

/// Takes `select()` out of the stages, those in parentheses included. It keeps every span, and the details have the whole pipeline to see
/// what is to be shown.
/// ```text
/// TraceDetails: shown=[name, span.a]         TraceDetails: shown=[name, span.a]
///   NewestTraces: limit=20                     NewestTraces: limit=20
///     SpansetStages: { name = `x` } |     →      SpansetStages: { name = `x` }
///                    select(span.a)                Traces
///       Traces
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
        let Some(SpansetStages { input, pipeline }) = head(&plan) else { return Ok(Transformed::no(plan)) };
        let mut pipeline = pipeline.0.clone();
        Ok(match remove(&mut pipeline) {
            false => Transformed::no(plan),
            true if pipeline.stages.is_empty() => Transformed::yes(input.clone()),
            true => Transformed::yes(logical::plan(SpansetStages::new(input.clone(), pipeline))),
        })
    }
}

/// Whether there was something to remove; perhaps no stage is left.
fn remove(pipeline: &mut Pipeline) -> bool {
    let before = pipeline.stages.len();
    pipeline.stages.retain(|stage| !matches!(stage, Stage::Select(_)));
    let removed = pipeline.stages.len() < before;
    // A trace begins as one spanset, so `coalesce()` does nothing there; the language, in which plans travel, does not know it there.
    while removed && matches!(pipeline.stages.first(), Some(Stage::Coalesce)) {
        pipeline.stages.remove(0);
    }
    pipeline.stages.iter_mut().fold(removed, |removed, stage| match stage {
        Stage::Spansets(expr) => remove_from_spansets(expr) | removed,
        Stage::Aggregate(_) | Stage::By(_) | Stage::Coalesce | Stage::Select(_) => removed,
    })
}

fn remove_from_spansets(expr: &mut SpansetExpr) -> bool {
    match expr {
        SpansetExpr::Filter(_) => false,
        SpansetExpr::Pipeline(pipeline) => {
            let removed = remove(pipeline);
            if pipeline.stages.is_empty() {
                pipeline.stages.push(Stage::ALL_SPANS);
            }
            removed
        }
        SpansetExpr::Binary { lhs, rhs, .. } => remove_from_spansets(lhs) | remove_from_spansets(rhs),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;

    /// The plan of a search that shows `shown`, with `stages` over the traces.
    fn plan(shown: &str, stages: &str) -> [String; 4] {
        [
            format!("TraceDetails: shown=[{shown}], spans_per_spanset=3"),
            "  NewestTraces: limit=20".to_owned(),
            format!("    SpansetStages: {stages}"),
            "      Traces: sources=[blocks=1, live=0, traces in several=0], window=10 to 20 s".to_owned(),
        ]
    }

    #[test]
    fn select_leaves_the_stages_and_stays_in_what_is_shown() {
        for (query, shown, before, after) in [
            ("{ name = `x` } | select(span.a)", "name, span.a", "{ name = `x` } | select(span.a)", "{ name = `x` }"),
            (
                "({ name = `x` } | select(span.a) | count() > 1) && ({ } | select(span.b))",
                "name, span.a, span.b",
                "({ name = `x` } | select(span.a) | count() > 1) && ({ true } | select(span.b))",
                "({ name = `x` } | count() > 1) && ({ true })",
            ),
            ("select(span.a) | coalesce() | count() > 1", "span.a", "select(span.a) | coalesce() | count() > 1", "count() > 1"),
            ("(select(span.a)) > ({ })", "span.a", "(select(span.a)) > ({ true })", "({ true }) > ({ true })"),
        ] {
            let (before, after) = (plan(shown, before), plan(shown, after));
            check("select_leaves_scan", query, &before.each_ref().map(String::as_str), &after.each_ref().map(String::as_str));
        }
    }
}
