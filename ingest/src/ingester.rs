//! The ingester: requests and tables into the log, then into live spans; live spans into blocks.
//!
//! Lock order: a tenant's gate, then its state, then [`SegmentUse`]. None is held across a write to the object store.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use object_store::ObjectStore;
use parking_lot::RwLock;
use skein_engine::{
    catalog::Catalog,
    clock::Clock,
    error::{Error, ErrorKind, Result},
    exec::live::{GenerationSize, LiveGeneration, LiveSpans},
    tenant::TenantId,
};
use tokio::sync::{Notify, Semaphore};

use crate::{
    decode::DecodeError,
    ingester_metrics::IngesterMetrics,
    live::{HeadSize, SealedGeneration, TenantLive},
    metrics::Metrics,
    payload::Payload,
    segments::SegmentUse,
    sink::{PushSummary, TraceSink},
    wal::{SegmentId, Wal},
};

/// When live spans become blocks.
#[derive(Debug, Clone)]
pub struct IngesterSettings {
    /// Names this ingester's log in the metas of its blocks.
    pub id: String,
    /// Age of the oldest live span at which a block is cut.
    pub max_block_duration: Duration,
    /// Bytes of live spans (as sent) at which a block is cut.
    pub max_block_bytes: u64,
    /// Live spans at which a block is cut.
    pub max_block_spans: usize,
    /// How often ages are looked at.
    pub flush_check_period: Duration,
    /// Generations of a tenant that may wait for their block. A full head is not cut, and pushes to it wait, while there are as many: this
    /// bounds what is in memory to one generation more.
    pub sealed_max: usize,
    /// How long a push waits for that before it is refused.
    pub sealed_wait: Duration,
    /// Blocks written at the same time.
    pub concurrent_flushes: usize,
}

impl Default for IngesterSettings {
    fn default() -> Self {
        Self {
            id: "ingester".to_owned(),
            max_block_duration: Duration::from_secs(30 * 60),
            max_block_bytes: 500 << 20,
            max_block_spans: 8 * skein_engine::block::writer::ROW_GROUP_ROWS,
            flush_check_period: Duration::from_secs(10),
            sealed_max: 1,
            sealed_wait: Duration::from_secs(20),
            concurrent_flushes: 1,
        }
    }
}

/// Takes spans and keeps them until they are in blocks. Share it in an `Arc`.
pub struct Ingester {
    pub(crate) wal: Arc<Wal>,
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) settings: IngesterSettings,
    pub(crate) metrics: IngesterMetrics,
    discards: Arc<Metrics>,
    pub(crate) segments: SegmentUse,
    pub(crate) flushes: Semaphore,
    /// Woken when a generation has become a block.
    pub(crate) flushed: Notify,
    tenants: RwLock<HashMap<TenantId, Arc<TenantLive>>>,
    stopping: AtomicBool,
}

impl std::fmt::Debug for Ingester {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ingester").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Ingester {
    /// An ingester without live spans. [`Ingester::replay`] brings back those of earlier runs and comes before the first push.
    pub fn new(
        wal: Arc<Wal>,
        store: Arc<dyn ObjectStore>,
        catalog: Arc<Catalog>,
        clock: Arc<dyn Clock>,
        settings: IngesterSettings,
        metrics: IngesterMetrics,
        discards: Arc<Metrics>,
    ) -> Self {
        let flushes = Semaphore::new(settings.concurrent_flushes.max(1));
        Self {
            wal,
            store,
            catalog,
            clock,
            settings,
            metrics,
            discards,
            segments: SegmentUse::default(),
            flushes,
            flushed: Notify::new(),
            tenants: RwLock::default(),
            stopping: AtomicBool::new(false),
        }
    }

    /// The live spans of a tenant, made if there are none.
    pub(crate) fn tenant(&self, tenant: &TenantId) -> Arc<TenantLive> {
        if let Some(live) = self.tenants.read().get(tenant) {
            return live.clone();
        }
        self.tenants.write().entry(tenant.clone()).or_default().clone()
    }

    pub(crate) fn tenants(&self) -> Vec<(TenantId, Arc<TenantLive>)> {
        self.tenants.read().iter().map(|(tenant, live)| (tenant.clone(), live.clone())).collect()
    }

    /// Whether a tenant has ever sent spans here, in this run.
    pub fn knows(&self, tenant: &TenantId) -> bool {
        self.tenants.read().contains_key(tenant)
    }

    pub(crate) fn is_full(&self, size: &HeadSize) -> bool {
        size.spans >= self.settings.max_block_spans || size.wire_bytes >= self.settings.max_block_bytes
    }

    /// Looks at the age of live spans again and again, until `stop` is true or its sender is gone.
    pub async fn run(self: Arc<Self>, mut stop: tokio::sync::watch::Receiver<bool>) {
        while tokio::time::timeout(self.settings.flush_check_period, stop.wait_for(|stop| *stop)).await.is_err() {
            let now = self.clock.now_unix_nano();
            let age_max = u64::try_from(self.settings.max_block_duration.as_nanos()).unwrap_or(u64::MAX);
            for (tenant, live) in self.tenants() {
                let size = live.head_size();
                self.metrics.live(&tenant, size.traces as u64, size.wire_bytes);
                let is_old = move |size: &HeadSize| size.spans > 0 && now.saturating_sub(size.since_unix_nano) >= age_max;
                if is_old(&size) && self.may_seal(&live) {
                    self.clone().spawn_cut(tenant, live, is_old);
                }
            }
        }
    }

    /// Cuts and writes what is live, of one tenant or of all; returns when the blocks are durable and in the catalog.
    /// Errors: `NotFound` for a tenant without live spans in this run, else the store's.
    pub async fn flush(self: &Arc<Self>, tenant: Option<&TenantId>) -> Result<()> {
        let all = match tenant {
            Some(tenant) if !self.knows(tenant) => return Err(Error::not_found(format!("tenant {tenant} has no live spans here"))),
            Some(tenant) => vec![(tenant.clone(), self.tenant(tenant))],
            None => self.tenants(),
        };
        for (tenant, live) in &all {
            if let Some(sealed) = self.seal(tenant, live, |_| true).await? {
                self.clone().spawn_flush(tenant.clone(), live.clone(), sealed);
            }
        }
        for (_, live) in all {
            let waiting = live.sealed_blocks();
            self.wait_until(|| live.sealed_blocks().iter().all(|block| !waiting.contains(block))).await;
        }
        Ok(())
    }

    /// Waits until `done`, which is looked at after every flush.
    async fn wait_until(&self, done: impl Fn() -> bool) {
        loop {
            let flushed = self.flushed.notified();
            tokio::pin!(flushed);
            flushed.as_mut().enable();
            if done() {
                return;
            }
            flushed.await;
        }
    }

    /// Takes no more spans. With `flush_all` everything live is written to blocks first; without, it stays in the log.
    /// Errors: as [`Ingester::flush`].
    pub async fn stop(self: &Arc<Self>, flush_all: bool) -> Result<()> {
        self.stopping.store(true, SeqCst);
        let flushed = if flush_all { self.flush(None).await } else { Ok(()) };
        let wal = self.wal.clone();
        tokio::task::spawn_blocking(move || wal.close()).await.map_err(|e| Error::internal("closing the log").with_source(e))?;
        flushed
    }

    /// Ends the head of a tenant if it has spans and `wanted` says so once no push is under way. Pushes of this tenant wait for the log
    /// to begin a new segment.
    pub(crate) async fn seal(
        &self,
        tenant: &TenantId,
        live: &TenantLive,
        wanted: impl Fn(&HeadSize) -> bool,
    ) -> Result<Option<Arc<SealedGeneration>>> {
        let _gate = live.gate.write().await;
        let size = live.head_size();
        if size.spans == 0 || !wanted(&size) {
            return Ok(None);
        }
        let wal = self.wal.clone();
        let closed = tokio::task::spawn_blocking(move || wal.rotate()).await.map_err(|e| Error::internal("rotating the log").with_source(e))??;
        self.segments.closed(closed.get());
        let sealed = live.seal();
        self.metrics.live(tenant, 0, 0);
        Ok(sealed)
    }

    fn may_seal(&self, live: &TenantLive) -> bool {
        live.sealed_len() < self.settings.sealed_max.max(1)
    }

    /// Cuts a head that is `wanted` still when its turn comes, and writes its block, in the background.
    fn spawn_cut(self: Arc<Self>, tenant: TenantId, live: Arc<TenantLive>, wanted: impl Fn(&HeadSize) -> bool + Send + Sync + 'static) {
        tokio::spawn(async move {
            self.wait_until(|| self.may_seal(&live)).await;
            match self.seal(&tenant, &live, wanted).await {
                Ok(Some(sealed)) => self.spawn_flush(tenant, live, sealed),
                Ok(None) => {}
                Err(error) => tracing::warn!(%tenant, %error, "live spans could not be cut; they stay live"),
            }
        });
    }

    /// Removes the log segments that nobody needs.
    pub(crate) fn remove_segments(&self) {
        for segment in self.segments.take_unneeded() {
            if let Err(error) = self.wal.remove(SegmentId::new(segment)) {
                self.segments.exists(segment);
                tracing::warn!(segment, %error, "a log segment could not be removed");
            }
        }
    }

    async fn keep(self: Arc<Self>, tenant: TenantId, payload: Payload) -> Result<PushSummary> {
        let summary = payload.checked().map_err(|e| self.refuse(&tenant, &payload, &e))?;
        let live = self.tenant(&tenant);
        if self.is_full(&live.head_size()) {
            let room = self.wait_until(|| self.may_seal(&live));
            if tokio::time::timeout(self.settings.sealed_wait, room).await.is_err() {
                return Err(Error::unavailable("blocks cannot be written as fast as spans arrive; retry later"));
            }
        }
        let size = {
            let _gate = live.gate.read().await;
            let under_way = self.segments.begin();
            let segment = self.wal.append(&tenant, payload.parts().to_vec()).await?.get();
            self.segments.note(&tenant, segment);
            drop(under_way);
            live.add(&payload, segment, self.clock.now_unix_nano())?
        };
        self.metrics.live(&tenant, size.traces as u64, size.wire_bytes);
        self.metrics.received(&tenant, payload.bytes() as u64, summary.traces);
        if self.is_full(&size) {
            let this = self.clone();
            self.spawn_cut(tenant, live, move |size| this.is_full(size));
        }
        Ok(summary)
    }

    fn refuse(&self, tenant: &TenantId, payload: &Payload, error: &DecodeError) -> Error {
        let reason = match error {
            DecodeError::Wire(_) => "undecodable",
            DecodeError::TraceId { .. } => "invalid_trace_id",
            DecodeError::SpanId { .. } => "invalid_span_id",
        };
        let spans = match payload {
            Payload::Otlp(request) => crate::receivers::count::spans(request).unwrap_or(0),
            // Tables were checked when they were made.
            Payload::Table { table, .. } => table.len() as u64,
        };
        self.discards.discarded_spans(reason, tenant).inc_by(spans);
        Error::new(ErrorKind::Invalid, error.to_string())
    }
}

/// The ingester as the distributor and the engine see it.
#[derive(Debug, Clone)]
pub struct IngesterHandle(pub Arc<Ingester>);

#[async_trait]
impl TraceSink for IngesterHandle {
    async fn push(&self, tenant: &TenantId, payload: Payload) -> Result<PushSummary> {
        if self.0.stopping.load(SeqCst) {
            return Err(Error::unavailable("Ingester is shutting down"));
        }
        self.0.clone().keep(tenant.clone(), payload).await
    }
}

impl LiveSpans for IngesterHandle {
    fn live(&self, tenant: &TenantId) -> Vec<LiveGeneration> {
        match self.0.tenants.read().get(tenant).cloned() {
            Some(live) => live.snapshot(),
            None => Vec::new(),
        }
    }

    fn tenants(&self) -> Vec<TenantId> {
        self.0.tenants.read().keys().cloned().collect()
    }

    fn sizes(&self, tenant: &TenantId) -> Vec<GenerationSize> {
        self.0.tenants.read().get(tenant).cloned().map_or_else(Vec::new, |live| live.sizes())
    }
}
