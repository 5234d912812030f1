//! The metrics of the query frontend, under Tempo's names.

use std::{collections::HashSet, sync::Arc, time::Duration};

use parking_lot::Mutex;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, core::Collector};
use skein_engine::{
    clock::Stopwatch,
    error::{Error, Result},
};

/// Buckets of `tempo_request_duration_seconds`: operations 4.1.
const REQUEST_SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0];

/// Most tenants that have series of their own; the rest share the label `other`.
const TENANTS_LABELLED_MAX: usize = 1000;

/// The frontend's metrics; made once for a registry.
#[derive(Debug)]
pub struct Metrics {
    request_seconds: HistogramVec,
    inflight: IntGaugeVec,
    request_bytes: HistogramVec,
    response_bytes: HistogramVec,
    /// Open connections of the HTTP port.
    pub(crate) connections: IntGauge,
    pub(crate) queue_length: IntGaugeVec,
    pub(crate) discarded: IntCounterVec,
    pub(crate) queue_seconds: prometheus::Histogram,
    /// Queries that have a turn: `queue`.
    pub(crate) queries_running: IntGauge,
    /// Calls of tools: `mcp`.
    pub(crate) mcp_calls: IntCounterVec,
    tenants: Mutex<HashSet<String>>,
}

impl Metrics {
    /// Makes the metrics and registers them. Errors: `Internal` when one of them is registered already.
    pub fn new(registry: &Registry) -> Result<Self> {
        let seconds = |name, help| HistogramOpts::new(name, help).buckets(REQUEST_SECONDS.to_vec());
        let bytes = |name, help| HistogramOpts::new(name, help).buckets((0..8).map(|n| 1024.0 * 8f64.powi(n)).collect());
        let request_labels = ["method", "route"];
        let tcp = IntGaugeVec::new(Opts::new("tempo_tcp_connections", "Open TCP connections"), &["protocol"]);
        Ok(Self {
            request_seconds: add(
                registry,
                HistogramVec::new(seconds("tempo_request_duration_seconds", "Time to serve a request"), &["method", "route", "status_code", "ws"]),
            )?,
            inflight: add(registry, IntGaugeVec::new(Opts::new("tempo_inflight_requests", "Requests being served"), &request_labels))?,
            request_bytes: add(registry, HistogramVec::new(bytes("tempo_request_message_bytes", "Size of request bodies"), &request_labels))?,
            response_bytes: add(registry, HistogramVec::new(bytes("tempo_response_message_bytes", "Size of response bodies"), &request_labels))?,
            connections: add(registry, tcp)?.with_label_values(&["http"]),
            queue_length: add(registry, IntGaugeVec::new(Opts::new("tempo_query_frontend_queue_length", "Queries that wait"), &["user"]))?,
            discarded: add(
                registry,
                IntCounterVec::new(
                    Opts::new("tempo_query_frontend_discarded_requests_total", "Queries refused because the queue was full"),
                    &["user"],
                ),
            )?,
            queue_seconds: add(
                registry,
                prometheus::Histogram::with_opts(seconds("tempo_query_frontend_queue_duration_seconds", "Time that queries waited")),
            )?,
            queries_running: add(
                registry,
                IntGauge::with_opts(Opts::new("skein_frontend_queries_running", "Queries that run, at most max_concurrent_queries")),
            )?,
            mcp_calls: add(registry, IntCounterVec::new(Opts::new("tempo_query_frontend_mcp_calls_total", "Calls of MCP tools"), &["tool"]))?,
            tenants: Mutex::default(),
        })
    }

    /// The label for a tenant: its id, or `other` once there are too many.
    pub(crate) fn tenant_label<'a>(&self, tenant: &'a str) -> &'a str {
        let mut tenants = self.tenants.lock();
        if tenants.contains(tenant) {
            return tenant;
        }
        if tenants.len() >= TENANTS_LABELLED_MAX {
            return "other";
        }
        tenants.insert(tenant.to_owned());
        tenant
    }

    /// Counts a request from now until the returned guard is dropped.
    pub(crate) fn request(self: &Arc<Self>, method: &str, route: &str) -> RequestTimer {
        self.inflight.with_label_values(&[method, route]).inc();
        RequestTimer { metrics: self.clone(), method: method.to_owned(), route: route.to_owned(), status: None, watch: Stopwatch::start() }
    }
}

fn add<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> Result<C> {
    let failed = |error: prometheus::Error| Error::internal("registering a metric of the query frontend").with_source(error);
    let collector = made.map_err(failed)?;
    registry.register(Box::new(collector.clone())).map_err(failed)?;
    Ok(collector)
}

/// One running request. When dropped without an answer, the client has left.
pub(crate) struct RequestTimer {
    metrics: Arc<Metrics>,
    method: String,
    route: String,
    status: Option<String>,
    watch: Stopwatch,
}

impl RequestTimer {
    /// Notes the answer.
    pub(crate) fn answered(mut self, status: impl Into<String>, request_bytes: Option<u64>, response_bytes: Option<u64>) {
        let labels = [self.method.as_str(), self.route.as_str()];
        if let Some(bytes) = request_bytes {
            self.metrics.request_bytes.with_label_values(&labels).observe(bytes as f64);
        }
        if let Some(bytes) = response_bytes {
            self.metrics.response_bytes.with_label_values(&labels).observe(bytes as f64);
        }
        self.status = Some(status.into());
    }
}

impl Drop for RequestTimer {
    fn drop(&mut self) {
        let (method, route) = (self.method.as_str(), self.route.as_str());
        let left = if method == "gRPC" { "cancel" } else { "499" };
        let status = self.status.as_deref().unwrap_or(left);
        let elapsed: Duration = self.watch.elapsed();
        self.metrics.inflight.with_label_values(&[method, route]).dec();
        self.metrics.request_seconds.with_label_values(&[method, route, status, "false"]).observe(elapsed.as_secs_f64());
    }
}
