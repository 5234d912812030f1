//! `MetricsMerge`: partial series, added up.

use std::fmt;

use datafusion::logical_expr::{LogicalPlan, UserDefinedLogicalNodeCore};

use super::{Comparable, logical_unary};
use crate::metrics::cells::CellKind;

/// The sum of the partial series of its input. The physical form is [`MetricsMergeExec`](crate::plan::metrics_merge::MetricsMergeExec).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd)]
pub struct MetricsMerge {
    /// The series.
    pub input: LogicalPlan,
    /// What their cells hold.
    pub kind: Comparable<CellKind>,
    /// How many cells each has.
    pub intervals: usize,
}

impl MetricsMerge {
    const NAME: &str = "MetricsMerge";

    /// The sum of the series of `input`, which have cells of one kind, one for each of `intervals` intervals.
    pub fn new(input: LogicalPlan, kind: CellKind, intervals: usize) -> Self {
        Self { input, kind: Comparable(kind), intervals }
    }
}

impl UserDefinedLogicalNodeCore for MetricsMerge {
    logical_unary!(SERIES);

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MetricsMerge: cells={:?}", self.kind.0)
    }
}
