//! What compaction and retention count.

use std::collections::HashSet;

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};

use crate::{
    catalog::BlockMeta,
    error::{Error, Result},
    tenant::TenantId,
};

/// Tenants with a gauge of their own.
const TENANT_LABELS_MAX: usize = 1_000;

/// Counters and gauges of compaction and retention. `level` is the highest level among the inputs.
#[derive(Debug)]
pub struct CompactionMetrics {
    blocks: IntCounterVec,
    traces_written: IntCounterVec,
    bytes_written: IntCounterVec,
    traces_combined: IntCounterVec,
    errors: IntCounter,
    outstanding: IntGaugeVec,
    outstanding_tenants: HashSet<TenantId>,
    pub(super) retention_seconds: Histogram,
    pub(super) retention_errors: IntCounter,
    pub(super) marked: IntCounter,
    pub(super) deleted: IntCounter,
}

impl CompactionMetrics {
    /// Registers the metrics. Errors: `Internal` when the registry has them already.
    pub fn new(registry: &Registry) -> Result<Self> {
        Self::register(registry).map_err(|e| Error::internal("registering compaction's metrics").with_source(e))
    }

    fn register(registry: &Registry) -> prometheus::Result<Self> {
        let by_level = |name: &str, help: &str| {
            let counter = IntCounterVec::new(Opts::new(name, help), &["level"])?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        let outstanding = IntGaugeVec::new(Opts::new("tempodb_compaction_outstanding_blocks", "Blocks that wait to be merged"), &["tenant"])?;
        registry.register(Box::new(outstanding.clone()))?;
        let retention_seconds = Histogram::with_opts(
            HistogramOpts::new("tempodb_retention_duration_seconds", "Time of a retention pass that had something to do, in seconds")
                .buckets(vec![0.1, 0.5, 1., 5., 15., 30., 60., 120., 300.]),
        )?;
        registry.register(Box::new(retention_seconds.clone()))?;
        Ok(Self {
            blocks: by_level("tempodb_compaction_blocks_total", "Blocks merged into others")?,
            traces_written: by_level("tempodb_compaction_objects_written_total", "Traces written by merges")?,
            bytes_written: by_level("tempodb_compaction_bytes_written_total", "Bytes written by merges")?,
            traces_combined: by_level("tempodb_compaction_objects_combined_total", "Traces that were in several inputs and are now in one block")?,
            errors: counter("tempodb_compaction_errors_total", "Merges that failed")?,
            outstanding,
            outstanding_tenants: HashSet::new(),
            retention_seconds,
            retention_errors: counter("tempodb_retention_errors_total", "Blocks that could not be marked or deleted")?,
            marked: counter("tempodb_retention_marked_for_deletion_total", "Blocks marked because of their age")?,
            deleted: counter("tempodb_retention_deleted_total", "Blocks deleted")?,
        })
    }

    pub(super) fn add_merge(&self, inputs: &[impl AsRef<BlockMeta>], output: &BlockMeta) {
        let level = inputs.iter().map(|input| input.as_ref().compaction_level).max().unwrap_or_default().to_string();
        let input_traces: u64 = inputs.iter().map(|input| input.as_ref().total_traces).sum();
        let level = [level.as_str()];
        self.blocks.with_label_values(&level).inc_by(inputs.len() as u64);
        self.traces_written.with_label_values(&level).inc_by(output.total_traces);
        self.bytes_written.with_label_values(&level).inc_by(output.data_bytes);
        self.traces_combined.with_label_values(&level).inc_by(input_traces.saturating_sub(output.total_traces));
    }

    pub(super) fn add_error(&self) {
        self.errors.inc();
    }

    /// Merges that failed so far.
    pub fn errors(&self) -> u64 {
        self.errors.get()
    }

    pub(super) fn set_outstanding(&mut self, tenant: &TenantId, blocks: usize) {
        let known = self.outstanding_tenants.contains(tenant)
            || (self.outstanding_tenants.len() < TENANT_LABELS_MAX && self.outstanding_tenants.insert(tenant.clone()));
        if known {
            self.outstanding.with_label_values(&[tenant.as_str()]).set(blocks as i64);
        }
    }

    /// Drops the gauges of tenants that have no blocks any more.
    pub(super) fn keep_tenants(&mut self, tenants: &[TenantId]) {
        let outstanding = &self.outstanding;
        self.outstanding_tenants.retain(|tenant| {
            let keep = tenants.contains(tenant);
            if !keep {
                // An error only says that there is no such series.
                let _ = outstanding.remove_label_values(&[tenant.as_str()]);
            }
            keep
        });
    }
}
