//! What the catalog counts.

use std::collections::HashSet;

use parking_lot::Mutex;
use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGaugeVec, Opts, Registry};

use crate::{
    catalog::{BlockMeta, Blocklist},
    error::{Error, Result},
    tenant::TenantId,
};

/// Tenants with series of their own; further ones share [`OTHER_TENANTS`] in counters and have no gauges.
const TENANT_LABELS_MAX: usize = 1_000;
const OTHER_TENANTS: &str = "other-tenants";

/// Counters and gauges of a catalog and its polls.
#[derive(Debug)]
pub struct CatalogMetrics {
    length: IntGaugeVec,
    traces: IntGaugeVec,
    bytes: IntGaugeVec,
    poll_errors: IntCounterVec,
    unreadable: IntGaugeVec,
    poll_seconds: Histogram,
    tenants: Mutex<HashSet<TenantId>>,
}

impl CatalogMetrics {
    /// Registers the metrics. Errors: `Internal` when the registry has them already.
    pub fn new(registry: &Registry) -> Result<Self> {
        Self::register(registry).map_err(|e| Error::internal("registering the catalog's metrics").with_source(e))
    }

    fn register(registry: &Registry) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str, labels: &[&str]| IntGaugeVec::new(Opts::new(name, help), labels);
        let metrics = Self {
            length: gauge("tempodb_blocklist_length", "Live blocks", &["tenant"])?,
            traces: gauge("tempodb_backend_objects_total", "Traces in blocks", &["tenant", "status"])?,
            bytes: gauge("tempodb_backend_bytes_total", "Bytes of the blocks' data", &["tenant", "status"])?,
            poll_errors: IntCounterVec::new(
                Opts::new("tempodb_blocklist_poll_errors_total", "Failed listings of a tenant's blocks, and unreadable metas found"),
                &["tenant"],
            )?,
            unreadable: gauge("skein_catalog_unreadable_blocks", "Folders whose meta cannot be read", &["tenant"])?,
            poll_seconds: Histogram::with_opts(
                HistogramOpts::new("tempodb_blocklist_poll_duration_seconds", "Time of a poll of all tenants, in seconds")
                    .buckets(vec![0.1, 0.5, 1., 5., 15., 30., 60., 120., 300.]),
            )?,
            tenants: Mutex::default(),
        };
        registry.register(Box::new(metrics.length.clone()))?;
        registry.register(Box::new(metrics.traces.clone()))?;
        registry.register(Box::new(metrics.bytes.clone()))?;
        registry.register(Box::new(metrics.poll_errors.clone()))?;
        registry.register(Box::new(metrics.unreadable.clone()))?;
        registry.register(Box::new(metrics.poll_seconds.clone()))?;
        Ok(metrics)
    }

    /// The label of a tenant, unless there are too many.
    fn label<'a>(&self, tenant: &'a TenantId) -> Option<&'a str> {
        let mut tenants = self.tenants.lock();
        let known = tenants.contains(tenant) || (tenants.len() < TENANT_LABELS_MAX && tenants.insert(tenant.clone()));
        known.then_some(tenant.as_str())
    }

    pub(super) fn set_blocks(&self, tenant: &TenantId, list: &Blocklist) {
        let Some(label) = self.label(tenant) else { return };
        if list.is_empty() {
            self.tenants.lock().remove(tenant);
            // An error only says that there is no such series.
            let _ = self.length.remove_label_values(&[label]);
            for status in ["live", "compacted"] {
                let _ = self.traces.remove_label_values(&[label, status]);
                let _ = self.bytes.remove_label_values(&[label, status]);
            }
            return;
        }
        self.length.with_label_values(&[label]).set(list.live().len() as i64);
        self.set_sizes(label, "live", list.live().iter().map(AsRef::as_ref));
        self.set_sizes(label, "compacted", list.superseded().iter().chain(list.compacted().iter().map(|block| &block.meta)).map(AsRef::as_ref));
    }

    fn set_sizes<'a>(&self, tenant: &str, status: &str, blocks: impl Iterator<Item = &'a BlockMeta>) {
        let (traces, bytes) = blocks.fold((0, 0), |(traces, bytes), block| (traces + block.total_traces, bytes + block.data_bytes));
        self.traces.with_label_values(&[tenant, status]).set(traces as i64);
        self.bytes.with_label_values(&[tenant, status]).set(bytes as i64);
    }

    /// Counts a failed listing or a newly found unreadable meta; None is the listing of the tenants.
    pub(super) fn add_poll_error(&self, tenant: Option<&TenantId>) {
        let label = tenant.map_or("", |tenant| self.label(tenant).unwrap_or(OTHER_TENANTS));
        self.poll_errors.with_label_values(&[label]).inc();
    }

    pub(super) fn set_unreadable(&self, tenant: &TenantId, blocks: usize) {
        if let Some(label) = self.label(tenant) {
            self.unreadable.with_label_values(&[label]).set(blocks as i64);
        }
    }

    pub(super) fn observe_poll(&self, seconds: f64) {
        self.poll_seconds.observe(seconds);
    }

    /// Failed listings and unreadable metas of a tenant so far.
    pub fn poll_errors(&self, tenant: &TenantId) -> u64 {
        self.poll_errors.with_label_values(&[self.label(tenant).unwrap_or(OTHER_TENANTS)]).get()
    }
}
