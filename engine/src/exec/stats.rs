//! What a query reads, counted while it runs.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::query::ScanStats;

/// Counters of one query, shared by all its parts.
#[derive(Debug, Default)]
pub struct ScanMetrics {
    traces: AtomicU64,
    spans: AtomicU64,
    bytes: AtomicU64,
    reads: AtomicU64,
    row_groups: AtomicU64,
    row_groups_skipped: AtomicU64,
}

impl ScanMetrics {
    /// Counts a request of `bytes`.
    pub fn read(&self, bytes: u64) {
        self.reads.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }

    /// Counts a row group that was looked at.
    pub fn row_group(&self, spans: u64) {
        self.row_groups.fetch_add(1, Relaxed);
        self.spans.fetch_add(spans, Relaxed);
    }

    /// Counts row groups that were not.
    pub fn skipped(&self, row_groups: u64) {
        self.row_groups_skipped.fetch_add(row_groups, Relaxed);
    }

    /// Counts traces that had a match.
    pub fn traces(&self, traces: u64) {
        self.traces.fetch_add(traces, Relaxed);
    }

    /// The counts so far.
    pub fn snapshot(&self) -> ScanStats {
        ScanStats {
            traces: self.traces.load(Relaxed),
            spans: self.spans.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            reads: self.reads.load(Relaxed),
            row_groups: self.row_groups.load(Relaxed),
            row_groups_skipped: self.row_groups_skipped.load(Relaxed),
            ..ScanStats::default()
        }
    }
}
