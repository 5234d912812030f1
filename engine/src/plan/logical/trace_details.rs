//! `TraceDetails`: what a search shows of its traces.

use std::{fmt, sync::Arc};

use datafusion::logical_expr::{LogicalPlan, UserDefinedLogicalNodeCore};

use super::{Comparable, Sources, logical_unary};
use crate::{exec::sources::SourceSet, plan::trace_details::describe_shown, traceql::Pipeline};

/// Names, times, spans and attributes of the traces of its input. The physical form is
/// [`TraceDetailsExec`](crate::plan::trace_details::TraceDetailsExec).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd)]
pub struct TraceDetails {
    /// The traces.
    pub input: LogicalPlan,
    /// Where their spans are.
    pub sources: Sources,
    /// The whole pipeline of the search: which attributes are shown depends on every mention of them, `select()` included.
    pub pipeline: Comparable<Pipeline>,
    /// Most spans shown of each spanset.
    pub spans_per_spanset: usize,
}

impl TraceDetails {
    const NAME: &str = "TraceDetails";

    /// Details of the traces of `input`, which come from `sources`, for a search with `pipeline`.
    pub fn new(input: LogicalPlan, sources: Arc<SourceSet>, pipeline: Pipeline, spans_per_spanset: usize) -> Self {
        Self { input, sources: Sources(sources), pipeline: Comparable(pipeline), spans_per_spanset }
    }
}

impl UserDefinedLogicalNodeCore for TraceDetails {
    logical_unary!(RESULTS);

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceDetails: shown=[{}], spans_per_spanset={}", describe_shown(&self.pipeline), self.spans_per_spanset)
    }
}
