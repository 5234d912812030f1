//! Replay: what the log holds and no block does becomes live again.

use std::sync::Arc;

use skein_engine::{
    error::{Error, Result},
    tenant::TenantId,
};

use crate::{ingester::Ingester, payload::Payload, wal::SegmentId};

/// What a replay found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplaySummary {
    /// Requests that are live again.
    pub requests: u64,
    /// Requests whose spans are in a block already.
    pub in_blocks: u64,
    /// Segments that ended in damage.
    pub damaged_segments: u64,
    /// Bytes behind the damage.
    pub lost_bytes: u64,
}

impl Ingester {
    /// Reads `segments`, oldest first. A tenant's records of a segment that a known block covers are skipped: the process ended between
    /// writing that block and removing the segment. The catalog must have been polled before. Damage is reported, and no error.
    /// Errors: `Internal` when live spans cannot be cut on the way; `Data` for a table that cannot be read though its checksum matches.
    pub async fn replay(self: &Arc<Self>, segments: Vec<SegmentId>) -> Result<ReplaySummary> {
        let mut summary = ReplaySummary::default();
        for segment in segments {
            let this = self.clone();
            let part = tokio::task::spawn_blocking(move || this.replay_segment(segment))
                .await
                .map_err(|e| Error::internal("replaying the log").with_source(e))??;
            summary.requests += part.requests;
            summary.in_blocks += part.in_blocks;
            summary.damaged_segments += part.damaged_segments;
            summary.lost_bytes += part.lost_bytes;
            self.segments.closed(segment.get());
            self.cut_full_heads().await?;
        }
        self.remove_segments();
        if summary.lost_bytes > 0 {
            tracing::warn!(?summary, "the log had a damaged tail, which was never acknowledged unless the disk lied");
        }
        self.metrics.replayed(summary.requests, summary.damaged_segments);
        Ok(summary)
    }

    fn replay_segment(&self, segment: SegmentId) -> Result<ReplaySummary> {
        let mut summary = ReplaySummary::default();
        self.segments.exists(segment.get());
        let now = self.clock.now_unix_nano();
        let report = self.wal.replay(segment, |tenant, record| {
            if self.is_in_a_block(tenant, segment) {
                summary.in_blocks += 1;
                return Ok(());
            }
            self.segments.note(tenant, segment.get());
            self.tenant(tenant).add(&Payload::of_record(record)?, segment.get(), now)?;
            summary.requests += 1;
            Ok(())
        })?;
        summary.damaged_segments = u64::from(report.damage.is_some());
        summary.lost_bytes = report.lost_bytes;
        Ok(summary)
    }

    fn is_in_a_block(&self, tenant: &TenantId, segment: SegmentId) -> bool {
        let blocks = self.catalog.snapshot(tenant);
        let covers = |ranges: &[skein_engine::catalog::meta::WalRange]| ranges.iter().any(|range| range.contains(&self.settings.id, segment.get()));
        blocks.blocklist.known().any(|meta| covers(&meta.wal))
    }

    async fn cut_full_heads(self: &Arc<Self>) -> Result<()> {
        for (tenant, live) in self.tenants() {
            if self.is_full(&live.head_size())
                && let Some(sealed) = self.seal(&tenant, &live, |_| true).await?
            {
                self.clone().spawn_flush(tenant, live, sealed);
            }
        }
        Ok(())
    }
}
