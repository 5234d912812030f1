//! This role's metrics: Tempo's names where Tempo has the metric, else `skein_ingest_…`. Built once, passed in, so that tests can read them.

use std::collections::HashSet;

use parking_lot::RwLock;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, core::Collector, exponential_buckets};
use skein_engine::tenant::TenantId;

use crate::error::{Error, Result};

/// Tenants with a label value of their own; the rest share [`TENANT_OVERFLOW`].
const TENANT_LABELS_MAX: usize = 1000;

/// The label value of tenants beyond the cap. Not a valid tenant id of anyone's choosing: Tempo uses the same word for overflown labels.
const TENANT_OVERFLOW: &str = "__overflow__";

/// Seconds that a log sync may take, from a page cache that lies to a busy disk.
const SYNC_SECONDS_BUCKETS: [f64; 12] = [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

/// Everything [`crate`] counts.
#[derive(Debug)]
pub struct Metrics {
    /// Caps the `tenant` label.
    pub tenants: TenantLabels,
    ingress_bytes: IntCounterVec,
    spans_received: IntCounterVec,
    bytes_received: IntCounterVec,
    discarded_spans: IntCounterVec,
    accepted_spans: IntCounterVec,
    refused_spans: IntCounterVec,
    /// `tempo_distributor_traces_per_batch`.
    pub traces_per_batch: Histogram,
    /// `tempo_distributor_push_duration_seconds`.
    pub push_duration_seconds: Histogram,
    /// `skein_ingest_inflight_bytes`: request bytes accepted and not yet answered.
    pub inflight_bytes: IntGauge,
    /// The write-ahead log's share.
    pub wal: WalMetrics,
}

impl Metrics {
    /// Builds and registers all of them. Errors: `Internal` when `registry` already has one.
    pub fn new(registry: &Registry) -> Result<Self> {
        let tenant = &["tenant"];
        Ok(Self {
            tenants: TenantLabels::new(TENANT_LABELS_MAX),
            ingress_bytes: counters(registry, "tempo_distributor_ingress_bytes_total", "Bytes received, before limits", tenant)?,
            spans_received: counters(registry, "tempo_distributor_spans_received_total", "Spans received, after the rate limit", tenant)?,
            bytes_received: counters(
                registry,
                "tempo_distributor_bytes_received_total",
                "Uncompressed bytes received, after the rate limit",
                tenant,
            )?,
            discarded_spans: counters(registry, "tempo_discarded_spans_total", "Spans refused, by reason", &["reason", "tenant"])?,
            accepted_spans: counters(registry, "tempo_receiver_accepted_spans", "Spans taken from clients", &["receiver", "transport"])?,
            refused_spans: counters(registry, "tempo_receiver_refused_spans", "Spans that clients were refused", &["receiver", "transport"])?,
            traces_per_batch: histogram(
                registry,
                "tempo_distributor_traces_per_batch",
                "Distinct traces of a request",
                exponential_buckets(2.0, 2.0, 10).map_err(|error| Error::internal("buckets").with_source(error))?,
            )?,
            push_duration_seconds: histogram(
                registry,
                "tempo_distributor_push_duration_seconds",
                "Time from a request's bytes to its answer",
                prometheus::DEFAULT_BUCKETS.to_vec(),
            )?,
            inflight_bytes: gauge(registry, "skein_ingest_inflight_bytes", "Request bytes accepted and not yet answered")?,
            wal: WalMetrics::new(registry)?,
        })
    }

    /// `tempo_distributor_ingress_bytes_total` of `tenant`.
    pub fn ingress_bytes(&self, tenant: &TenantId) -> IntCounter {
        self.ingress_bytes.with_label_values(&[self.tenants.label(tenant)])
    }

    /// `tempo_distributor_spans_received_total` of `tenant`.
    pub fn spans_received(&self, tenant: &TenantId) -> IntCounter {
        self.spans_received.with_label_values(&[self.tenants.label(tenant)])
    }

    /// `tempo_distributor_bytes_received_total` of `tenant`.
    pub fn bytes_received(&self, tenant: &TenantId) -> IntCounter {
        self.bytes_received.with_label_values(&[self.tenants.label(tenant)])
    }

    /// `tempo_discarded_spans_total` of `tenant` for `reason`, one of Tempo's words: `rate_limited`, `invalid_trace_id`, `invalid_span_id`, ….
    pub fn discarded_spans(&self, reason: &str, tenant: &TenantId) -> IntCounter {
        self.discarded_spans.with_label_values(&[reason, self.tenants.label(tenant)])
    }

    /// `tempo_receiver_accepted_spans` of a receiver (`otlp/otlp_receiver`) and transport (`grpc`, `http`).
    pub fn accepted_spans(&self, receiver: &str, transport: &str) -> IntCounter {
        self.accepted_spans.with_label_values(&[receiver, transport])
    }

    /// `tempo_receiver_refused_spans` of a receiver and transport.
    pub fn refused_spans(&self, receiver: &str, transport: &str) -> IntCounter {
        self.refused_spans.with_label_values(&[receiver, transport])
    }
}

/// Gives each tenant a label value, up to a cap, so that no client can grow the metrics without bound.
#[derive(Debug)]
pub struct TenantLabels {
    seen: RwLock<HashSet<TenantId>>,
    tenants_max: usize,
}

impl TenantLabels {
    /// Labels for the first `tenants_max` tenants.
    pub fn new(tenants_max: usize) -> Self {
        Self { seen: RwLock::default(), tenants_max }
    }

    /// The label value of `tenant`: its id, or the overflow word once the cap is reached.
    pub fn label<'a>(&self, tenant: &'a TenantId) -> &'a str {
        if self.seen.read().contains(tenant) {
            return tenant.as_str();
        }
        let mut seen = self.seen.write();
        if seen.len() >= self.tenants_max && !seen.contains(tenant) {
            return TENANT_OVERFLOW;
        }
        seen.insert(tenant.clone());
        tenant.as_str()
    }
}

/// Metrics of [`crate::wal::Wal`]. Clones share their values.
#[derive(Debug, Clone)]
pub struct WalMetrics {
    /// `skein_ingest_wal_appended_bytes_total`: bytes written, record headers included.
    pub appended_bytes: IntCounter,
    /// `skein_ingest_wal_records_total`: records acknowledged.
    pub records: IntCounter,
    /// `skein_ingest_wal_refused_records_total`: records that could not be written or synced, each refused to its client.
    pub refused_records: IntCounter,
    /// `skein_ingest_wal_batches_total`: writes, each of one or more records.
    pub batches: IntCounter,
    /// `skein_ingest_wal_syncs_total`.
    pub syncs: IntCounter,
    /// `skein_ingest_wal_sync_failures_total`.
    pub sync_failures: IntCounter,
    /// `skein_ingest_wal_write_failures_total`.
    pub write_failures: IntCounter,
    /// `skein_ingest_wal_sync_duration_seconds`.
    pub sync_duration_seconds: Histogram,
    /// `skein_ingest_wal_replayed_records_total`.
    pub replayed_records: IntCounter,
    /// `skein_ingest_wal_truncated_records_total`: segments whose replay ended at a damaged record.
    pub truncated_records: IntCounter,
    /// `skein_ingest_wal_truncated_bytes_total`: bytes after such an end.
    pub truncated_bytes: IntCounter,
    /// `skein_ingest_wal_segments`: segment files on disk.
    pub segments: IntGauge,
    /// `skein_ingest_wal_queue_records`: records that wait for the writer.
    pub queue_records: IntGauge,
}

impl WalMetrics {
    /// Builds and registers them. Errors: `Internal` when `registry` already has one.
    pub fn new(registry: &Registry) -> Result<Self> {
        Ok(Self {
            appended_bytes: counter(registry, "skein_ingest_wal_appended_bytes_total", "Bytes written to the log")?,
            records: counter(registry, "skein_ingest_wal_records_total", "Records acknowledged by the log")?,
            refused_records: counter(registry, "skein_ingest_wal_refused_records_total", "Records that the log could not keep")?,
            batches: counter(registry, "skein_ingest_wal_batches_total", "Writes to the log, each of one or more records")?,
            syncs: counter(registry, "skein_ingest_wal_syncs_total", "Syncs of log segments")?,
            sync_failures: counter(registry, "skein_ingest_wal_sync_failures_total", "Failed syncs of log segments")?,
            write_failures: counter(registry, "skein_ingest_wal_write_failures_total", "Failed writes to the log")?,
            sync_duration_seconds: histogram(
                registry,
                "skein_ingest_wal_sync_duration_seconds",
                "Time of one sync of a log segment",
                SYNC_SECONDS_BUCKETS.to_vec(),
            )?,
            replayed_records: counter(registry, "skein_ingest_wal_replayed_records_total", "Records read back at start")?,
            truncated_records: counter(registry, "skein_ingest_wal_truncated_records_total", "Segments whose replay ended at a damaged record")?,
            truncated_bytes: counter(registry, "skein_ingest_wal_truncated_bytes_total", "Bytes given up after a damaged record")?,
            segments: gauge(registry, "skein_ingest_wal_segments", "Log segments on disk")?,
            queue_records: gauge(registry, "skein_ingest_wal_queue_records", "Records that wait for the log writer")?,
        })
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, name: &str, metric: prometheus::Result<C>) -> Result<C> {
    let metric = metric.map_err(|error| Error::internal(format!("building metric {name}")).with_source(error))?;
    registry.register(Box::new(metric.clone())).map_err(|error| Error::internal(format!("registering metric {name}")).with_source(error))?;
    Ok(metric)
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
    register(registry, name, IntCounterVec::new(Opts::new(name, help), labels))
}

fn counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter> {
    register(registry, name, IntCounter::new(name, help))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge> {
    register(registry, name, IntGauge::new(name, help))
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: Vec<f64>) -> Result<Histogram> {
    register(registry, name, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn second_registration_is_an_error_not_a_panic() {
        let registry = Registry::new();
        Metrics::new(&registry).unwrap();
        assert!(Metrics::new(&registry).is_err());
    }

    #[test]
    fn tenants_beyond_the_cap_share_a_label() {
        let labels = TenantLabels::new(2);
        let tenants = ["a", "b", "c", "a"].map(|id| TenantId::parse(id).unwrap());
        assert_eq!(tenants.each_ref().map(|tenant| labels.label(tenant)), ["a", "b", TENANT_OVERFLOW, "a"]);
    }
}
