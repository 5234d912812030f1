//! What queries cost, added up and shown.

use std::collections::BTreeMap;

use skein_engine::query::ScanStats;
use skein_proto::tempo;

fn additional(stats: &ScanStats) -> BTreeMap<String, i64> {
    let counts =
        [("rowGroupsInspected", stats.row_groups), ("rowGroupsCached", stats.row_groups_cached), ("rowGroupsSkipped", stats.row_groups_skipped)];
    counts.into_iter().filter(|(_, count)| *count > 0).map(|(name, count)| (name.to_owned(), i64::try_from(count).unwrap_or(i64::MAX))).collect()
}

fn narrow(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The `metrics` of a search; `jobs` were run, and all have ended.
pub(crate) fn search_metrics(stats: &ScanStats, jobs: usize) -> tempo::SearchMetrics {
    tempo::SearchMetrics {
        inspected_traces: narrow(stats.traces),
        inspected_bytes: stats.bytes,
        total_blocks: narrow(stats.blocks),
        completed_jobs: narrow(jobs as u64),
        total_jobs: narrow(jobs as u64),
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
