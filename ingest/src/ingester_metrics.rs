//! Metrics of the ingester, under Tempo's names where Tempo has them.

use std::sync::Arc;

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, exponential_buckets};
use skein_engine::{
    error::{Error, Result},
    tenant::TenantId,
};

use crate::metrics::TenantLabels;

/// Tenants with labels of their own.
const TENANTS_MAX: usize = 1000;

/// Metrics of [`crate::ingester::Ingester`]. Clones share their values.
#[derive(Debug, Clone)]
pub struct IngesterMetrics {
    tenants: Arc<TenantLabels>,
    live_traces: IntGaugeVec,
    live_trace_bytes: IntGaugeVec,
    traces_created: IntCounterVec,
    bytes_received: IntCounterVec,
    blocks_flushed: IntCounter,
    failed_flushes: IntCounter,
    flush_duration_seconds: Histogram,
    flush_size_bytes: Histogram,
    replayed_requests: IntCounter,
    replay_errors: IntCounter,
}

fn register<C: prometheus::core::Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> Result<C> {
    let collector = made.map_err(|e| Error::internal("making a metric").with_source(e))?;
    registry.register(Box::new(collector.clone())).map_err(|e| Error::internal("registering a metric").with_source(e))?;
    Ok(collector)
}

impl IngesterMetrics {
    /// Registers the metrics. Errors: `Internal` when one is there already.
    pub fn new(registry: &Registry) -> Result<Self> {
        let by_tenant = |name, help| register(registry, IntCounterVec::new(Opts::new(name, help), &["tenant"]));
        let gauge = |name, help| register(registry, IntGaugeVec::new(Opts::new(name, help), &["tenant"]));
        let counter = |name, help| register(registry, IntCounter::new(name, help));
        let histogram = |name, help, first, factor| {
            let buckets = exponential_buckets(first, factor, 10).map_err(|e| Error::internal("buckets").with_source(e))?;
            register(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)))
        };
        Ok(Self {
            tenants: Arc::new(TenantLabels::new(TENANTS_MAX)),
            live_traces: gauge("tempo_ingester_live_traces", "Traces with live spans")?,
            live_trace_bytes: gauge("tempo_ingester_live_trace_bytes", "Bytes of live spans, as they were sent")?,
            traces_created: by_tenant("tempo_ingester_traces_created_total", "Runs of spans of one trace in requests")?,
            bytes_received: register(
                registry,
                IntCounterVec::new(Opts::new("tempo_ingester_bytes_received_total", "Bytes of requests kept"), &["tenant", "data_type"]),
            )?,
            blocks_flushed: counter("tempo_ingester_blocks_flushed_total", "Blocks written")?,
            failed_flushes: counter("tempo_ingester_failed_flushes_total", "Tries to write a block that failed")?,
            flush_duration_seconds: histogram("tempo_ingester_flush_duration_seconds", "Time to write a block", 1.0, 2.0)?,
            flush_size_bytes: histogram("tempo_ingester_flush_size_bytes", "Size of blocks written", f64::from(1 << 20), 2.0)?,
            replayed_requests: counter("skein_ingester_replayed_requests_total", "Requests read back from the log at start")?,
            replay_errors: counter("tempo_ingester_replay_errors_total", "Log segments that ended in damage")?,
        })
    }

    /// Sets what is live of a tenant.
    pub fn live(&self, tenant: &TenantId, traces: u64, bytes: u64) {
        let label = &[self.tenants.label(tenant)];
        self.live_traces.with_label_values(label).set(traces as i64);
        self.live_trace_bytes.with_label_values(label).set(bytes as i64);
    }

    /// Counts a request that was kept.
    pub fn received(&self, tenant: &TenantId, bytes: u64, traces: u64) {
        let label = self.tenants.label(tenant);
        self.bytes_received.with_label_values(&[label, "trace"]).inc_by(bytes);
        self.traces_created.with_label_values(&[label]).inc_by(traces);
    }

    /// Counts a block.
    pub fn block_flushed(&self, bytes: u64, duration_nanos: u64) {
        self.blocks_flushed.inc();
        self.flush_size_bytes.observe(bytes as f64);
        self.flush_duration_seconds.observe(duration_nanos as f64 / 1e9);
    }

    /// Counts a try that failed.
    pub fn failed_flush(&self) {
        self.failed_flushes.inc();
    }

    /// Counts what a replay found.
    pub fn replayed(&self, requests: u64, damaged_segments: u64) {
        self.replayed_requests.inc_by(requests);
        self.replay_errors.inc_by(damaged_segments);
    }
}
