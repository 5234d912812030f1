//! `FuseStages`: see [`FuseStages`].

use datafusion::{
    common::{Result, tree_node::Transformed},
    logical_expr::LogicalPlan,
    optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule},
};

use crate::{
    plan::{
        logical::{self, Comparable, MetricsObservation, MetricsScan, SpansetScan, SpansetStages, Traces, head},
        spanset_scan::ScanLimits,
    },
    traceql::{Pipeline, Stage},
};

/// Moves the stages of a pipeline, and what observes its spans, into one scan: so filters reach the row groups, and the traces that no
/// filter touches are never put together.
/// ```text
/// NewestTraces: limit=20                     NewestTraces: limit=20
///   SpansetStages: { name = `x` } |     →      SpansetScan: query=[{ name = `x` } | count() > 2], filters=[name = `x`]
///                  count() > 2
///     Traces
///
/// MetricsMerge: cells=Counts                 MetricsMerge: cells=Counts
///   MetricsObservation: rate()          →      MetricsScan: query=[{ name = `x` } | rate()], filters=[name = `x`]
///     SpansetStages: { name = `x` }
///       Traces
/// ```
#[derive(Debug)]
pub struct FuseStages;

impl OptimizerRule for FuseStages {
    fn name(&self) -> &str {
        "fuse_stages"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::TopDown)
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let fused = if let Some(MetricsObservation { input, function, intervals, detail }) = head(&plan) {
            stages_over_traces(input).filter(|(_, traces)| traces.window.is_none()).map(|(pipeline, traces)| {
                logical::plan(MetricsScan {
                    sources: traces.sources.clone(),
                    pipeline: Comparable(pipeline.into()),
                    function: function.clone(),
                    intervals: intervals.clone(),
                    detail: detail.clone(),
                })
            })
        } else {
            stages_over_traces(&plan).map(|(pipeline, traces)| {
                logical::plan(SpansetScan {
                    sources: traces.sources.clone(),
                    pipeline: Comparable(pipeline.into()),
                    limits: Comparable(ScanLimits { window: traces.window.0, ..ScanLimits::NONE }),
                })
            })
        };
        Ok(match fused {
            Some(fused) => Transformed::yes(fused),
            None => Transformed::no(plan),
        })
    }
}

/// The pipeline at the head of `plan` and the traces right below it. Traces without a stage are `{ }`.
fn stages_over_traces(plan: &LogicalPlan) -> Option<(Pipeline, &Traces)> {
    match head::<SpansetStages>(plan) {
        Some(SpansetStages { input, pipeline }) => Some((pipeline.0.clone(), head(input)?)),
        None => Some((Pipeline { stages: vec![Stage::ALL_SPANS] }, head(plan)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{check, check_metrics};

    #[test]
    fn stages_become_a_scan() {
        check(
            "fuse_stages",
            "{ span.a = 1 && name = `x` } >> { status = error } | by(name) | count() > 2",
            &[
                "TraceDetails: shown=[span.a, name, status], spans_per_spanset=3",
                "  NewestTraces: limit=20",
                "    SpansetStages: { (span.a = 1) && (name = `x`) } >> { status = error } | by(name) | count() > 2",
                "      Traces: sources=[blocks=1, live=0, traces in several=0], window=10 to 20 s",
            ],
            &[
                "TraceDetails: shown=[span.a, name, status], spans_per_spanset=3",
                "  NewestTraces: limit=20",
                "    SpansetScan: query=[{ (span.a = 1) && (name = `x`) } >> { status = error } | by(name) | count() > 2], \
                 sources=[blocks=1, live=0, traces in several=0], window=10 to 20 s, \
                 filters=[(span.a = 1) && (name = `x`); status = error]",
            ],
        );
    }

    #[test]
    fn a_pipeline_that_only_selects_scans_all_spans() {
        check(
            "fuse_stages",
            "select(span.a)",
            &[
                "TraceDetails: shown=[span.a], spans_per_spanset=3",
                "  NewestTraces: limit=20",
                "    Traces: sources=[blocks=1, live=0, traces in several=0], window=10 to 20 s",
            ],
            &[
                "TraceDetails: shown=[span.a], spans_per_spanset=3",
                "  NewestTraces: limit=20",
                "    SpansetScan: query=[{ true }], sources=[blocks=1, live=0, traces in several=0], window=10 to 20 s, filters=[true]",
            ],
        );
    }

    #[test]
    fn observation_and_stages_become_one_scan() {
        check_metrics(
            "fuse_stages",
            "{ name = `x` } | { span.a = 1 } | rate() by (span.b)",
            &[
                "MetricsMerge: cells=Counts",
                "  MetricsObservation: rate() by (span.b), intervals=2 of 60000000000 ns",
                "    SpansetStages: { name = `x` } | { span.a = 1 }",
                "      Traces: sources=[blocks=1, live=0, traces in several=0], window=all",
            ],
            &[
                "MetricsMerge: cells=Counts",
                "  MetricsScan: query=[{ name = `x` } | { span.a = 1 } | rate() by (span.b)], intervals=2 of 60000000000 ns, \
                 sources=[blocks=1, live=0, traces in several=0], filters=[name = `x`; span.a = 1]",
            ],
        );
    }
}
