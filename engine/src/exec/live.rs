//! Live spans as the engine sees them: those of this process, and those that other processes list. The ingester implements the first
//! trait, whoever speaks to other processes the second; the engine knows neither.

use std::sync::Arc;

use async_trait::async_trait;

use super::{source::SourceRef, sources::LiveAt};
use crate::{
    error::Result,
    query::{TagNames, TagNamesRequest, TagValues, TagValuesRequest},
    spans::{BlockId, TraceId, set::SpanSet},
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

/// How large a live generation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GenerationSize {
    /// The block it will become.
    pub block: BlockId,
    /// Its spans, repeated ones included.
    pub spans: usize,
    /// It takes no more spans.
    pub is_sealed: bool,
}

/// Where live spans come from.
pub trait LiveSpans: std::fmt::Debug + Send + Sync + 'static {
    /// The live spans of a tenant now. A reader that takes these first and the blocklist second misses nothing.
    fn live(&self, tenant: &TenantId) -> Vec<LiveGeneration>;
    /// The tenants that have live spans.
    fn tenants(&self) -> Vec<TenantId>;
    /// How large the live generations are; those without spans are left out. Where it can, an implementation answers without making the
    /// chunk that [`live`](Self::live) makes.
    fn sizes(&self, tenant: &TenantId) -> Vec<GenerationSize> {
        let size = |live: &LiveGeneration| GenerationSize { block: live.block, spans: live.set.len(), is_sealed: false };
        self.live(tenant).iter().map(size).filter(|size| size.spans > 0).collect()
    }
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

/// A live generation of another process as it was listed.
#[derive(Debug, Clone)]
pub struct ListedGeneration {
    /// The block it will become.
    pub block: BlockId,
    /// Whose it is, and its version.
    pub at: LiveAt,
    /// Its traces, ascending, each once.
    pub trace_ids: Arc<Vec<u128>>,
    /// Its spans.
    pub spans: u64,
}

/// The live spans of all other processes.
#[derive(Debug, Default, Clone)]
pub struct LiveListing {
    /// The generations; none is empty.
    pub generations: Vec<ListedGeneration>,
    /// Blocks that the processes have known of since before they listed their live spans: what was live a moment ago is among them, though
    /// a catalog that polls the store may not have it yet.
    pub recent_blocks: Vec<BlockId>,
}

/// Spans of one trace that are live in other processes.
#[derive(Debug, Default)]
pub struct LiveTrace {
    /// A source for each process that has some.
    pub sources: Vec<SourceRef>,
    /// As in [`LiveListing`].
    pub recent_blocks: Vec<BlockId>,
}

/// Live spans of other processes. Every call asks all it concerns and fails when one does not answer: the answer is complete or an error,
/// which names the process.
#[async_trait]
pub trait RemoteLive: std::fmt::Debug + Send + Sync + 'static {
    /// What is live. Errors: `Unavailable`.
    async fn list(&self, tenant: &TenantId) -> Result<LiveListing>;
    /// The spans of the traces `ids` of a listed generation, or all of it as one source.
    /// Errors: `Unavailable`, also when the listed version is gone.
    async fn traces(&self, tenant: &TenantId, block: BlockId, at: &LiveAt, ids: Option<&[u128]>) -> Result<Vec<SourceRef>>;
    /// The spans of one trace. Errors: `Unavailable`.
    async fn trace(&self, tenant: &TenantId, id: TraceId) -> Result<LiveTrace>;
    /// Attribute names of live spans, one answer for each process, and blocks as in [`LiveListing`]. Errors: `Unavailable`.
    async fn tag_names(&self, tenant: &TenantId, request: &TagNamesRequest) -> Result<(Vec<TagNames>, Vec<BlockId>)>;
    /// Values of an attribute of live spans, one answer for each process, and blocks as in [`LiveListing`]. Errors: `Unavailable`.
    async fn tag_values(&self, tenant: &TenantId, request: &TagValuesRequest) -> Result<(Vec<TagValues>, Vec<BlockId>)>;
}
