//! Live spans as the engine sees them. The ingester implements the trait; the engine knows no ingester.

use crate::{
    spans::{BlockId, set::SpanSet},
    tenant::TenantId,
};

/// Spans that are durable in the log and not yet in a block that can be read.
#[derive(Debug, Clone)]
pub struct LiveGeneration {
    /// The block they will become. Once that block is in the catalog, one of the two is to be left out.
    pub block: BlockId,
    /// The spans so far.
    pub set: SpanSet,
}

/// Where live spans come from.
pub trait LiveSpans: std::fmt::Debug + Send + Sync + 'static {
    /// The live spans of a tenant now. A reader that takes these first and the blocklist second misses nothing.
    fn live(&self, tenant: &TenantId) -> Vec<LiveGeneration>;
    /// The tenants that have live spans.
    fn tenants(&self) -> Vec<TenantId>;
}

/// No live spans: a process that only reads blocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoLiveSpans;

impl LiveSpans for NoLiveSpans {
    fn live(&self, _tenant: &TenantId) -> Vec<LiveGeneration> {
        Vec::new()
    }

    fn tenants(&self) -> Vec<TenantId> {
        Vec::new()
    }
}
