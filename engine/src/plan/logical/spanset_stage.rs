//! `SpansetStage`: one stage of a spanset pipeline.

use std::fmt;

use datafusion::logical_expr::{LogicalPlan, UserDefinedLogicalNodeCore};

use super::{Comparable, logical_unary};
use crate::traceql::Stage;

/// Applies one stage to the spansets of its input, trace by trace: keeps spans, splits, merges or drops spansets. It has no physical form:
/// the optimiser moves it into the scan.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd)]
pub struct SpansetStage {
    /// What it is applied to.
    pub input: LogicalPlan,
    /// The stage.
    pub stage: Comparable<Stage>,
}

impl SpansetStage {
    const NAME: &str = "SpansetStage";

    /// `stage` over `input`.
    pub fn new(input: LogicalPlan, stage: Stage) -> Self {
        Self { input, stage: Comparable(stage) }
    }
}

impl UserDefinedLogicalNodeCore for SpansetStage {
    logical_unary!(SPANSETS);

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpansetStage: {}", self.stage.0)
    }
}
