//! The API that people and Grafana call: Tempo's HTTP and gRPC query API over a [`QueryService`](skein_engine::query::QueryService).
//!
//! | module | what |
//! |---|---|
//! | [`http`] | one endpoint a file; parameters in, Tempo's bytes out |
//! | [`grpc`] | `tempopb.StreamingQuerier`, Arrow Flight and the health service |
//! | [`server`] | one port for HTTP/1, HTTP/2 and gRPC |
//! | [`settings`], [`operations`] | what the binary passes in: settings, and the process around the API |
//! | `asks` | requests as HTTP and gRPC share them: checks, defaults, fan-out over tenants |
//! | `metrics_asks` | TraceQL metrics: checks, the grid of samples, answers |
//! | `listening`, `packets` | parts of answers to gRPC clients; messages of a bounded size |
//! | `parity` | answers no richer than Tempo's, when asked for |
//! | `queue` | how many queries run and wait |
//! | `merge` | answers of several tenants made one |
//! | `diff` | two traces compared |
//! | `mcp` | tools and documentation for language models |
//! | `jsonpb`, `llm` | answers as JSON |
//! | `trace_pieces` | large traces written piece by piece |
//! | `window`, `logfmt`, `tenancy` | parts of a request |
//!
//! Path of a search: `http::search` reads the parameters → `tenancy` → `asks` checks them and the TraceQL text → `queue` → one
//! `QueryService::search` for each tenant → `merge` → `jsonpb`. A client that leaves drops all of it.
//!
//! Knows nothing of blocks, the log and plans.

mod asks;
mod diff;
pub mod grpc;
pub mod http;
mod jsonpb;
mod listening;
mod llm;
mod logfmt;
mod mcp;
mod merge;
mod metrics;
mod metrics_asks;
pub mod operations;
mod packets;
mod parity;
mod queue;
pub mod server;
pub mod settings;
mod tenancy;
mod trace_pieces;
mod window;

use std::sync::Arc;

pub use metrics::Metrics;
use prometheus::{IntGaugeVec, Opts, Registry};
use regex::RegexSet;
use skein_engine::{
    clock::Clock,
    error::{Error, Result},
    exec::writer::SpanWriter,
    query::QueryService,
    sql::SqlService,
};
use skein_flight::sql::FlightState;
pub use tenancy::TENANT_HEADER;

use crate::{
    operations::{BuildInfo, Operations},
    parity::TempoParity,
    queue::Queue,
    settings::FrontendSettings,
};

/// What a [`Frontend`] is made of.
pub struct FrontendParts {
    /// Answers the questions.
    pub queries: Arc<dyn QueryService>,
    /// Runs SQL.
    pub sql: Arc<dyn SqlService>,
    /// Takes spans as tables; None in a process that takes none.
    pub writer: Option<Arc<dyn SpanWriter>>,
    /// The process around the API.
    pub operations: Arc<dyn Operations>,
    /// The `query_frontend` section.
    pub settings: FrontendSettings,
    /// Takes tenants from `X-Scope-OrgID`.
    pub multitenancy_enabled: bool,
    /// Goes before `/api/…` and `/status/usage-stats`.
    pub http_api_prefix: String,
    /// Shown by the build information.
    pub build: BuildInfo,
    /// Where the metrics are registered and what `/metrics` shows.
    pub registry: Registry,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
}

/// The query API of one process. Shared by all connections.
pub struct Frontend {
    queries: Arc<dyn QueryService>,
    sql: Arc<dyn SqlService>,
    writer: Option<Arc<dyn SpanWriter>>,
    operations: Arc<dyn Operations>,
    settings: FrontendSettings,
    multitenancy_enabled: bool,
    http_api_prefix: String,
    build: BuildInfo,
    registry: Registry,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    queue: Arc<Queue>,
    flight: Arc<FlightState>,
    url_deny_list: RegexSet,
}

impl Frontend {
    /// Checks the settings and registers the metrics. Errors: `Invalid` with the key's name; `Internal` when the registry has the metrics already.
    pub fn new(parts: FrontendParts) -> Result<Arc<Self>> {
        parts.settings.validate()?;
        let prefix = parts.http_api_prefix.trim_end_matches('/');
        if !prefix.is_empty() && (!prefix.starts_with('/') || prefix.contains(['{', '}'])) {
            return Err(Error::invalid(format!("http_api_prefix '{prefix}' must begin with / and have no braces")));
        }
        let url_deny_list =
            RegexSet::new(&parts.settings.url_deny_list).map_err(|e| Error::invalid("query_frontend.url_deny_list").with_source(e))?;
        let metrics = Arc::new(Metrics::new(&parts.registry)?);
        register_build_info(&parts.registry, &parts.build)?;
        Ok(Arc::new(Self {
            queue: Arc::new(Queue::new(&parts.settings, metrics.clone())),
            flight: Arc::new(FlightState::new(&parts.registry)?),
            http_api_prefix: prefix.to_owned(),
            queries: if parts.settings.tempo_parity { Arc::new(TempoParity(parts.queries)) } else { parts.queries },
            sql: parts.sql,
            writer: parts.writer,
            operations: parts.operations,
            settings: parts.settings,
            multitenancy_enabled: parts.multitenancy_enabled,
            build: parts.build,
            registry: parts.registry,
            clock: parts.clock,
            metrics,
            url_deny_list,
        }))
    }

    /// Ends answers that would never end by themselves: the process is stopping.
    pub fn end_tails(&self) {
        self.flight.close();
    }
}

fn register_build_info(registry: &Registry, build: &BuildInfo) -> Result<()> {
    let failed = |e: prometheus::Error| Error::internal("registering tempo_build_info").with_source(e);
    let labels = ["version", "revision", "branch", "goversion", "goos", "goarch", "tags"];
    let info = IntGaugeVec::new(Opts::new("tempo_build_info", "What is running; always 1"), &labels).map_err(failed)?;
    let values = [&build.version, &build.revision, &build.branch, &build.go_version];
    let [version, revision, branch, go_version] = values.map(String::as_str);
    info.with_label_values(&[version, revision, branch, go_version, std::env::consts::OS, std::env::consts::ARCH, ""]).set(1);
    registry.register(Box::new(info)).map_err(failed)
}
