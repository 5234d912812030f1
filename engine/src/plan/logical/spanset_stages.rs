//! `SpansetStages`: the stages of a spanset pipeline.

use std::fmt;

use datafusion::logical_expr::{LogicalPlan, UserDefinedLogicalNodeCore};

use super::{Comparable, logical_unary};
use crate::traceql::Pipeline;

/// Applies the stages of a pipeline to the spansets of its input, trace by trace: keeps spans, splits, merges or drops spansets. One node for
/// all stages, so that the depth of a plan does not grow with its query. It has no physical form: the optimiser moves it into the scan.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd)]
pub struct SpansetStages {
    /// What they are applied to.
    pub input: LogicalPlan,
    /// The stages.
    pub pipeline: Comparable<Pipeline>,
}

impl SpansetStages {
    const NAME: &str = "SpansetStages";

    /// `pipeline` over `input`.
    pub fn new(input: LogicalPlan, pipeline: Pipeline) -> Self {
        Self { input, pipeline: Comparable(pipeline) }
    }
}

impl UserDefinedLogicalNodeCore for SpansetStages {
    logical_unary!(SPANSETS);

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpansetStages: {}", self.pipeline.0)
    }
}
