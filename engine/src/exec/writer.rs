//! Writing spans as tables, as whoever takes tables from clients sees it. The ingest side implements it; the engine knows neither.

use std::time::Duration;

use async_trait::async_trait;

use crate::{error::Error, spans::written::RecordBatch, tenant::TenantId};

/// Takes tables of spans.
#[async_trait]
pub trait SpanWriter: Send + Sync + 'static {
    /// Keeps the spans of `batch`, which has the columns that [`SpanTable`](crate::spans::written::SpanTable) takes, and returns how many, after they are
    /// durable and visible to queries. All of it or, on an error, none. Once the batch is on its way to the log, dropping this does not stop it.
    /// Errors: `Invalid` with column and row; `Exhausted` for a limit; `Unavailable` for a full disk or a stopping process.
    async fn write(&self, tenant: &TenantId, batch: RecordBatch) -> Result<u64, WriteRefusal>;
}

/// Why a batch was refused, and when to send it again.
#[derive(Debug)]
pub struct WriteRefusal {
    /// Why.
    pub error: Error,
    /// What the client should be told to wait; None: nothing.
    pub retry_after: Option<Duration>,
}

impl From<Error> for WriteRefusal {
    fn from(error: Error) -> Self {
        Self { error, retry_after: None }
    }
}
