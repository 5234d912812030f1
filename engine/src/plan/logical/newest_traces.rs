//! `NewestTraces`: the newest of the traces found.

use std::fmt;

use datafusion::logical_expr::{LogicalPlan, UserDefinedLogicalNodeCore};

use super::logical_unary;

/// The newest `limit` traces of its input, ties by id. The physical form is
/// [`NewestTracesExec`](crate::plan::newest_traces::NewestTracesExec).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd)]
pub struct NewestTraces {
    /// Where they come from.
    pub input: LogicalPlan,
    /// Traces kept.
    pub limit: usize,
    /// Whether the newest row group of the scan below is read before all others begin.
    pub first_row_group_alone: bool,
}

impl NewestTraces {
    const NAME: &str = "NewestTraces";

    /// The newest `limit` traces of `input`.
    pub fn new(input: LogicalPlan, limit: usize) -> Self {
        Self { input, limit, first_row_group_alone: false }
    }
}

impl UserDefinedLogicalNodeCore for NewestTraces {
    logical_unary!(SPANSETS);

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let alone = if self.first_row_group_alone { ", first row group alone" } else { "" };
        write!(f, "NewestTraces: limit={}{alone}", self.limit)
    }
}
