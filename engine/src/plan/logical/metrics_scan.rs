//! `MetricsScan`: spans into series where the data are.

use std::fmt;

use datafusion::logical_expr::UserDefinedLogicalNodeCore;

use super::{Comparable, Sources, logical_leaf};
use crate::{
    exec::spansets::SpansetPipeline,
    metrics::{detail::Detail, intervals::Intervals},
    traceql::MetricsFunction,
};

/// The partial series of the spans that a pipeline leaves of some sources; only row groups that overlap the intervals are looked at. The
/// physical form is [`MetricsScanExec`](crate::plan::metrics_scan::MetricsScanExec).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd)]
pub struct MetricsScan {
    /// Where the spans are.
    pub sources: Sources,
    /// The pipeline and how its filters are evaluated.
    pub pipeline: Comparable<SpansetPipeline>,
    /// What is computed.
    pub function: Comparable<MetricsFunction>,
    /// The grid of samples.
    pub intervals: Comparable<Intervals>,
    /// What is kept beside the function's own cells.
    pub detail: Comparable<Detail>,
}

impl MetricsScan {
    const NAME: &str = "MetricsScan";
}

impl UserDefinedLogicalNodeCore for MetricsScan {
    logical_leaf!(SERIES);

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, step) = (self.intervals.count(), self.intervals.step());
        write!(f, "MetricsScan: query=[{} | {}], intervals={count} of {step} ns{}", self.pipeline.0, self.function.0, self.detail.0)?;
        let traces = if self.pipeline.by_rows() { ", without traces" } else { "" };
        write!(f, ", sources=[{}]{traces}, filters=[{}]", self.sources.0, self.pipeline.describe_filters())
    }
}
