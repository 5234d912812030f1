//! Sealed generations to blocks.

use std::{sync::Arc, time::Duration};

use skein_engine::{
    block::{
        put::put_block,
        writer::{BlockObjects, write_block},
    },
    catalog::meta::{BlockMeta, WalRange, write_meta},
    error::{Error, Result},
    spans::{
        gather::OrderedSpans,
        schema::{ColumnPolicy, SpanSchema},
        set::SpanSet,
        tree::order_spans,
    },
    tenant::TenantId,
};

use crate::{
    ingester::Ingester,
    live::{SealedGeneration, TenantLive},
};

/// Waiting time after a failed flush; doubles with each further one.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

impl Ingester {
    /// Writes a sealed generation as a block in the background, again and again until it is done: its spans stay live and in the log
    /// meanwhile.
    pub(crate) fn spawn_flush(self: Arc<Self>, tenant: TenantId, live: Arc<TenantLive>, sealed: Arc<SealedGeneration>) {
        tokio::spawn(async move {
            let mut pause = RETRY_FIRST;
            while let Err(error) = self.flush_once(&tenant, &live, &sealed).await {
                self.metrics.failed_flush();
                tracing::warn!(%tenant, block = %sealed.block, %error, retry_in = ?pause, "a block could not be written");
                pause = retry_pause(pause).await;
            }
        });
    }

    async fn flush_once(&self, tenant: &TenantId, live: &TenantLive, sealed: &SealedGeneration) -> Result<()> {
        let _permit = self.flushes.acquire().await.map_err(|e| Error::unavailable("flushing has ended").with_source(e))?;
        let began = self.clock.now_unix_nano();
        let set = sealed.set.clone();
        let objects =
            tokio::task::spawn_blocking(move || block_objects(set)).await.map_err(|e| Error::internal("writing a block").with_source(e))??;
        let mut meta = put_block(&*self.store, tenant, sealed.block, objects).await?;
        self.describe(&mut meta, sealed);
        write_meta(&*self.store, &meta).await?;
        self.metrics.block_flushed(meta.data_bytes, self.clock.now_unix_nano().saturating_sub(began));
        self.catalog.add_block(meta);
        live.forget(sealed.block);
        self.segments.flushed(tenant, sealed.segments);
        self.remove_segments();
        self.flushed.notify_waiters();
        Ok(())
    }

    fn describe(&self, meta: &mut BlockMeta, sealed: &SealedGeneration) {
        meta.created_unix_nano = self.clock.now_unix_nano();
        meta.replication_factor = 1;
        meta.wal = vec![WalRange { ingester: self.settings.id.clone(), first: sealed.segments.first, last: sealed.segments.last }];
    }
}

/// Waits `pause` and returns the next one.
#[allow(clippy::disallowed_methods, reason = "the pause between two tries of a flush; nothing waits for it in tests")]
async fn retry_pause(pause: Duration) -> Duration {
    tokio::time::sleep(pause).await;
    (pause * 2).min(RETRY_MAX)
}

/// Orders and writes a set. Cost: see [`order_spans`] and [`write_block`].
fn block_objects(set: SpanSet) -> Result<BlockObjects> {
    let order = order_spans(&set);
    let schema = SpanSchema::of(&set, ColumnPolicy::BLOCK);
    write_block(&OrderedSpans::new(set, order, schema))
}
