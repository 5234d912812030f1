//! `SpansetScan`: a spanset pipeline where the data are.

use std::fmt;

use datafusion::logical_expr::UserDefinedLogicalNodeCore;

use super::{Comparable, Sources, logical_leaf};
use crate::{exec::spansets::SpansetPipeline, plan::spanset_scan::ScanLimits};

/// The traces of some sources after a pipeline, its filters applied to row groups. The physical form is
/// [`SpansetScanExec`](crate::plan::spanset_scan::SpansetScanExec).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd)]
pub struct SpansetScan {
    /// Where the spans are.
    pub sources: Sources,
    /// The pipeline and how its filters are evaluated.
    pub pipeline: Comparable<SpansetPipeline>,
    /// What is wanted of it.
    pub limits: Comparable<ScanLimits>,
}

impl SpansetScan {
    const NAME: &str = "SpansetScan";
}

impl UserDefinedLogicalNodeCore for SpansetScan {
    logical_leaf!(SPANSETS);

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpansetScan: query=[{}], sources=[{}], {}", self.pipeline.0, self.sources.0, self.limits.0)?;
        write!(f, ", filters=[{}]", self.pipeline.describe_filters())
    }
}
