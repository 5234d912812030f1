//! `MetricsObservation`: spans into series.

use std::fmt;

use datafusion::logical_expr::{LogicalPlan, UserDefinedLogicalNodeCore};

use super::{Comparable, logical_unary};
use crate::{
    metrics::{detail::Detail, intervals::Intervals},
    traceql::MetricsFunction,
};

/// Adds each span of the spansets of its input once to partial series. It has no physical form: the optimiser makes one scan of it and all
/// below.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd)]
pub struct MetricsObservation {
    /// The spans.
    pub input: LogicalPlan,
    /// What is computed.
    pub function: Comparable<MetricsFunction>,
    /// The grid of samples.
    pub intervals: Comparable<Intervals>,
    /// What is kept beside the function's own cells.
    pub detail: Comparable<Detail>,
}

impl MetricsObservation {
    const NAME: &str = "MetricsObservation";

    /// `function` of the spans of `input` in each interval.
    pub fn new(input: LogicalPlan, function: MetricsFunction, intervals: Intervals, detail: Detail) -> Self {
        Self { input, function: Comparable(function), intervals: Comparable(intervals), detail: Comparable(detail) }
    }
}

impl UserDefinedLogicalNodeCore for MetricsObservation {
    logical_unary!(SERIES);

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, step) = (self.intervals.count(), self.intervals.step());
        write!(f, "MetricsObservation: {}, intervals={count} of {step} ns{}", self.function.0, self.detail.0)
    }
}
