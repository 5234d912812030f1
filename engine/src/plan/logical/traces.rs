//! `Traces`: the leaf of a query as it is written.

use std::{fmt, sync::Arc};

use datafusion::logical_expr::UserDefinedLogicalNodeCore;

use super::{Comparable, Sources, logical_leaf};
use crate::{exec::sources::SourceSet, plan::spanset_scan::ScanLimits, query::Window};

/// The traces of some sources, each as one spanset with all its spans. It has no physical form: the optimiser makes a scan of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd)]
pub struct Traces {
    /// Where the spans are.
    pub sources: Sources,
    /// Which traces; None takes all.
    pub window: Comparable<Option<Window>>,
}

impl Traces {
    const NAME: &str = "Traces";

    /// The traces of `sources` in `window`.
    pub fn new(sources: Arc<SourceSet>, window: Option<Window>) -> Self {
        Self { sources: Sources(sources), window: Comparable(window) }
    }
}

impl UserDefinedLogicalNodeCore for Traces {
    logical_leaf!(SPANSETS);

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Traces: sources=[{}], {}", self.sources.0, ScanLimits { window: self.window.0, ..ScanLimits::NONE })
    }
}
