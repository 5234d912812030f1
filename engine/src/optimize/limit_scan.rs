//! `LimitScan`: see [`LimitScan`].

use datafusion::{
    common::{Result, tree_node::Transformed},
    logical_expr::LogicalPlan,
    optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule},
};

use crate::{
    block::writer::ROW_GROUP_ROWS,
    plan::{
        logical::{self, Comparable, NewestTraces, SpansetScan, TraceDetails, head},
        spanset_scan::ScanLimits,
    },
};

/// Tells the scan under the newest traces, and under their details, what is wanted of it:
/// - rows lie newest first, so of each row group the first `limit` traces are enough;
/// - of each spanset, the spans that are shown are enough, beside their number;
/// - the newest row group alone often has `limit` traces, and all others are then skipped: it is scanned before they begin. Not where the
///   limit is more traces than a row group has rows.
/// ```text
/// TraceDetails: spans_per_spanset=3         TraceDetails: spans_per_spanset=3
///   NewestTraces: limit=20             →      NewestTraces: limit=20, first row group alone
///     SpansetScan                               SpansetScan: traces_per_row_group=20, spans_per_spanset=3
/// ```
#[derive(Debug)]
pub struct LimitScan;

impl OptimizerRule for LimitScan {
    fn name(&self) -> &str {
        "limit_scan"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let limited = if let Some(newest) = head::<NewestTraces>(&plan) {
            limit_traces(newest)
        } else if let Some(details) = head::<TraceDetails>(&plan) {
            limit_spans(details)
        } else {
            None
        };
        Ok(match limited {
            Some(limited) => Transformed::yes(limited),
            None => Transformed::no(plan),
        })
    }
}

fn limit_traces(newest: &NewestTraces) -> Option<LogicalPlan> {
    let scan = head::<SpansetScan>(&newest.input).filter(|scan| scan.limits.traces > newest.limit)?;
    let limits = Comparable(ScanLimits { traces: newest.limit, ..scan.limits.0 });
    Some(logical::plan(NewestTraces {
        input: logical::plan(SpansetScan { limits, ..scan.clone() }),
        limit: newest.limit,
        first_row_group_alone: newest.limit <= ROW_GROUP_ROWS,
    }))
}

fn limit_spans(details: &TraceDetails) -> Option<LogicalPlan> {
    let newest = head::<NewestTraces>(&details.input)?;
    let scan = head::<SpansetScan>(&newest.input).filter(|scan| scan.limits.spans_per_spanset > details.spans_per_spanset)?;
    let limits = Comparable(ScanLimits { spans_per_spanset: details.spans_per_spanset, ..scan.limits.0 });
    let newest = NewestTraces { input: logical::plan(SpansetScan { limits, ..scan.clone() }), ..newest.clone() };
    Some(logical::plan(TraceDetails { input: logical::plan(newest), ..details.clone() }))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{LIMIT, check, check_limit};
    use super::*;

    #[test]
    fn a_scan_knows_what_is_wanted_of_it() {
        assert_eq!(LIMIT, 20);
        check(
            "limit_scan",
            "{ name = `x` } | count() > 1",
            &[
                "TraceDetails: shown=[name], spans_per_spanset=3",
                "  NewestTraces: limit=20",
                "    SpansetScan: query=[{ name = `x` } | count() > 1], sources=[blocks=1, live=0, traces in several=0], window=10 to 20 s, \
                 filters=[name = `x`]",
            ],
            &[
                "TraceDetails: shown=[name], spans_per_spanset=3",
                "  NewestTraces: limit=20, first row group alone",
                "    SpansetScan: query=[{ name = `x` } | count() > 1], sources=[blocks=1, live=0, traces in several=0], window=10 to 20 s, \
                 traces_per_row_group=20, spans_per_spanset=3, filters=[name = `x`]",
            ],
        );
    }

    #[test]
    fn no_row_group_is_scanned_alone_that_cannot_have_enough() {
        let newest = |limit| check_limit("limit_scan", "{ }", limit)[1].clone();
        assert_eq!(newest(ROW_GROUP_ROWS), format!("  NewestTraces: limit={ROW_GROUP_ROWS}, first row group alone"));
        assert_eq!(newest(ROW_GROUP_ROWS + 1), format!("  NewestTraces: limit={}", ROW_GROUP_ROWS + 1));
    }
}
