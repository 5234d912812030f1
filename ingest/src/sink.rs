//! Where a checked request goes. The distributor calls it, the ingester is it.

use async_trait::async_trait;
use bytes::Bytes;
use skein_engine::tenant::TenantId;

use crate::error::Result;

/// Takes OTLP requests and keeps them.
#[async_trait]
pub trait TraceSink: Send + Sync + 'static {
    /// Keeps `request`, an uncompressed protobuf `ExportTraceServiceRequest`, and returns after it is durable and visible to queries. All of it or, on an
    /// error, none.
    /// Errors: `Invalid` for undecodable bytes and bad ids; `Exhausted` for a limit; `Unavailable` for a full disk or a stopping process.
    async fn push(&self, tenant: &TenantId, request: Bytes) -> Result<PushSummary>;
}

/// What a push held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PushSummary {
    /// Spans in the request.
    pub spans: u64,
    /// Distinct trace ids in the request.
    pub traces: u64,
}
