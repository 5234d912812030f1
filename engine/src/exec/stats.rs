//! What a query reads, counted while it runs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use datafusion::physical_plan::{
    ExecutionPlan, Metric,
    metrics::{Count, MetricValue, MetricsSet, Time},
};

use crate::query::ScanStats;

/// Why a row group was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pruned {
    /// It lies outside the time window.
    Window,
    /// None of the resources in its range has the value asked for.
    Resources,
    /// No column of the row group can hold the value asked for, by its type or its statistics.
    Columns,
    /// The bloom filter of the only column that could hold it rules the value out.
    Bloom,
    /// Enough newer traces were found.
    Limit,
    /// All its traces lie in other places too and are read there.
    Joined,
}

/// Names of the metrics by reason, in the order of [`Pruned`].
const PRUNED: [&str; 6] = [
    "row_groups_pruned_window",
    "row_groups_pruned_resources",
    "row_groups_pruned_columns",
    "row_groups_pruned_bloom",
    "row_groups_pruned_limit",
    "row_groups_pruned_joined",
];

/// Counters of a plan node, or of the opening of its sources.
#[derive(Debug, Default)]
pub struct ScanMetrics {
    rows: AtomicU64,
    traces: AtomicU64,
    spans: AtomicU64,
    bytes: AtomicU64,
    reads: AtomicU64,
    row_groups: AtomicU64,
    row_groups_cached: AtomicU64,
    pruned: [AtomicU64; PRUNED.len()],
    busy_nanos: AtomicU64,
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

    /// Counts a row group of which the result was known.
    pub fn row_group_cached(&self) {
        self.row_groups_cached.fetch_add(1, Relaxed);
    }

    /// Counts row groups that were not.
    pub fn pruned(&self, why: Pruned, row_groups: u64) {
        self.pruned[why as usize].fetch_add(row_groups, Relaxed);
    }

    /// Counts traces that had a match.
    pub fn traces(&self, traces: u64) {
        self.traces.fetch_add(traces, Relaxed);
    }

    /// Counts rows that went to the next node.
    pub fn output(&self, rows: usize) {
        self.rows.fetch_add(rows as u64, Relaxed);
    }

    /// Adds time spent, reading included.
    pub fn busy(&self, time: Duration) {
        self.busy_nanos.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Counts what another plan has read for this node. Row groups that it skipped, for whatever reason, count as outside the window.
    pub fn add(&self, stats: &ScanStats) {
        let counters = [
            (&self.traces, stats.traces),
            (&self.spans, stats.spans),
            (&self.bytes, stats.bytes),
            (&self.reads, stats.reads),
            (&self.row_groups, stats.row_groups),
            (&self.row_groups_cached, stats.row_groups_cached),
            (&self.pruned[Pruned::Window as usize], stats.row_groups_skipped),
        ];
        for (counter, count) in counters {
            counter.fetch_add(count, Relaxed);
        }
    }

    /// The counts so far, as DataFusion shows them beside a node.
    pub fn to_set(&self) -> MetricsSet {
        let counters = [
            ("row_groups_read", &self.row_groups),
            ("row_groups_cached", &self.row_groups_cached),
            ("spans_scanned", &self.spans),
            ("traces_matched", &self.traces),
            ("bytes_read", &self.bytes),
            ("requests", &self.reads),
        ];
        let mut set = MetricsSet::new();
        let rows = Count::new();
        rows.add(self.rows.load(Relaxed) as usize);
        set.push(Arc::new(Metric::new(MetricValue::OutputRows(rows), None)));
        let time = Time::new();
        time.add_duration(Duration::from_nanos(self.busy_nanos.load(Relaxed)));
        set.push(Arc::new(Metric::new(MetricValue::Time { name: "busy".into(), time }, None)));
        let counters = counters.into_iter().chain(PRUNED.into_iter().zip(&self.pruned)).map(|(name, counter)| (name, counter.load(Relaxed)));
        for (name, total) in counters.filter(|(_, total)| *total > 0) {
            let count = Count::new();
            count.add(total as usize);
            set.push(Arc::new(Metric::new(MetricValue::Count { name: name.into(), count }, None)));
        }
        set
    }

    /// The counts so far.
    pub fn snapshot(&self) -> ScanStats {
        stats_of_set(&self.to_set())
    }
}

fn stats_of_set(set: &MetricsSet) -> ScanStats {
    let count = |name: &str| set.sum_by_name(name).map_or(0, |value| value.as_usize() as u64);
    ScanStats {
        traces: count("traces_matched"),
        spans: count("spans_scanned"),
        bytes: count("bytes_read"),
        reads: count("requests"),
        row_groups: count("row_groups_read"),
        row_groups_cached: count("row_groups_cached"),
        row_groups_skipped: PRUNED.into_iter().map(count).sum(),
        ..ScanStats::default()
    }
}

/// What the nodes of `plan` have read so far, added up.
pub fn stats_of_plan(plan: &Arc<dyn ExecutionPlan>) -> ScanStats {
    let own = plan.metrics().map(|set| stats_of_set(&set)).unwrap_or_default();
    plan.children().into_iter().fold(own, |sum, child| sum.plus(&stats_of_plan(child)))
}
