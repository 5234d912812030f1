//! Tables of spans: from a record batch to [`Distributor::push`]. The frontend takes them from clients over Arrow Flight and knows this as a
//! [`SpanWriter`].

use std::sync::Arc;

use async_trait::async_trait;
use skein_engine::{
    buffers::Buffers,
    exec::writer::{SpanWriter, WriteRefusal},
    spans::written::{RecordBatch, SpanTable},
    tenant::TenantId,
};

use crate::{
    distributor::{Distributor, Source},
    payload::Payload,
};

const SOURCE: Source = Source { receiver: "arrow/flight", transport: "grpc" };

/// Takes tables for a distributor.
pub struct TableReceiver {
    distributor: Arc<Distributor>,
    /// For what the log holds of tables.
    records: Buffers,
}

impl TableReceiver {
    /// A receiver in front of `distributor`.
    pub fn new(distributor: Arc<Distributor>) -> Self {
        Self { distributor, records: Buffers::default() }
    }
}

#[async_trait]
impl SpanWriter for TableReceiver {
    async fn write(&self, tenant: &TenantId, batch: RecordBatch) -> Result<u64, WriteRefusal> {
        let spans = batch.num_rows() as u64;
        let checked = SpanTable::try_new(&batch).inspect_err(|_| self.distributor.refuse(SOURCE, tenant, "invalid_table", spans))?;
        // What a client sent may be larger than what is kept of it.
        drop(batch);
        let pushed = self.distributor.push(SOURCE, tenant, Payload::of_table(checked, &self.records)?, spans).await;
        match pushed {
            Ok(_) => Ok(spans),
            Err(error) => Err(WriteRefusal { retry_after: self.distributor.retry_after(tenant, &error), error }),
        }
    }
}
