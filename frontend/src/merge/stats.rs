//! What queries cost, added up and shown.

use std::collections::BTreeMap;

use skein_engine::query::ScanStats;
use skein_proto::tempo;

use crate::listening::Progress;

fn additional(stats: &ScanStats) -> BTreeMap<String, i64> {
    let counts =
        [("rowGroupsInspected", stats.row_groups), ("rowGroupsCached", stats.row_groups_cached), ("rowGroupsSkipped", stats.row_groups_skipped)];
    counts.into_iter().filter(|(_, count)| *count > 0).map(|(name, count)| (name.to_owned(), i64::try_from(count).unwrap_or(i64::MAX))).collect()
}

fn narrow(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The `metrics` of a search or a metrics query that has ended. A job is a row group that was read or left out; there is at least one.
pub(crate) fn search_metrics(stats: &ScanStats) -> tempo::SearchMetrics {
    progress_metrics(&Progress { stats: *stats, row_groups: 0 }, jobs_done(stats).max(1))
}

/// The same while it runs.
pub(crate) fn partial_metrics(progress: &Progress) -> tempo::SearchMetrics {
    progress_metrics(progress, jobs_done(&progress.stats))
}

fn jobs_done(stats: &ScanStats) -> u64 {
    stats.row_groups + stats.row_groups_skipped
}

fn progress_metrics(progress: &Progress, completed: u64) -> tempo::SearchMetrics {
    let stats = &progress.stats;
    tempo::SearchMetrics {
        inspected_traces: narrow(stats.traces),
        inspected_bytes: stats.bytes,
        total_blocks: narrow(stats.blocks),
        completed_jobs: narrow(completed),
        total_jobs: narrow(completed.max(progress.row_groups)),
        total_block_bytes: stats.block_bytes,
        inspected_spans: stats.spans,
        backend_reads: stats.reads,
        backend_bytes: stats.bytes,
        additional_metrics: additional(stats),
    }
}

/// The `metrics` of a request for names or values. Tempo fills only these.
pub(crate) fn metadata_metrics(stats: &ScanStats) -> tempo::MetadataMetrics {
    tempo::MetadataMetrics {
        inspected_bytes: stats.bytes,
        backend_reads: stats.reads,
        backend_bytes: stats.bytes,
        additional_metrics: additional(stats),
        ..Default::default()
    }
}

/// The `metrics` of a trace by ID.
pub(crate) fn trace_metrics(stats: &ScanStats) -> tempo::TraceByIdMetrics {
    tempo::TraceByIdMetrics {
        inspected_bytes: stats.bytes,
        backend_reads: stats.reads,
        backend_bytes: stats.bytes,
        additional_metrics: additional(stats),
    }
}
