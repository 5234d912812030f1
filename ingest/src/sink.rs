//! Where a checked request goes. The distributor calls it, the ingester is it.

use async_trait::async_trait;
use skein_engine::tenant::TenantId;

use crate::{error::Result, payload::Payload};

/// Takes spans and keeps them.
#[async_trait]
pub trait TraceSink: Send + Sync + 'static {
    /// Keeps `payload` and returns after it is durable and visible to queries. All of it or, on an error, none.
    /// Errors: `Invalid` for requests with undecodable bytes and bad ids; `Exhausted` for a limit; `Unavailable` for a full disk or a stopping process.
    async fn push(&self, tenant: &TenantId, payload: Payload) -> Result<PushSummary>;
}

/// What a push held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PushSummary {
    /// Spans in it.
    pub spans: u64,
    /// Runs of spans with the same trace id.
    pub traces: u64,
}
