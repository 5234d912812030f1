//! The HTTP and gRPC API against a query service that answers from a script.
// The test macro enters a runtime.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod bounds;
mod mcp;
mod metrics;
mod process;
mod searches;
mod tags;
mod tenants;
mod traces;

use std::{collections::BTreeMap, io::Read, sync::Arc, time::Duration};

use async_trait::async_trait;
use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, header},
};
use flate2::read::GzDecoder;
use parking_lot::Mutex;
use prost::Message;
use skein_engine::{
    clock::TestClock,
    error::{Error, ErrorKind, Result},
    query::{
        MetricsRequest, MetricsResult, QueryService, ScanStats, SearchRequest, SearchResult, TagNames, TagNamesRequest, TagScope, TagValues,
        TagValuesRequest, TraceRequest, TraceResult, Window,
    },
    sql::{SqlService, SqlStatement, Tail, TailPass, TailRequest},
    tenant::TenantId,
};
use skein_proto::{
    otlp::{
        common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
        resource::v1::Resource,
        trace::v1::{ResourceSpans, ScopeSpans, Span},
    },
    tempo,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};
use tower::ServiceExt;

use super::router;
use crate::{
    Frontend, FrontendParts, grpc,
    operations::{BuildInfo, ConfigMode, Operations},
    server::{ServeOptions, serve},
    settings::{FrontendSettings, McpSettings, QueryLimits},
};

const NOW_SECONDS: u64 = 1_700_000_000;
const KNOWN_ID: &str = "0af7651916cd43dd8448eb211c80319c";
/// The same trace with another first span.
const OTHER_ID: &str = "0af7651916cd43dd8448eb211c80319d";

/// Answers by tenant: `empty` knows nothing, `broken` fails, `slow` never answers; all others know the same data.
#[derive(Default)]
struct FakeQueries {
    asked: Mutex<Vec<String>>,
    started: Notify,
    dropped: Arc<Notify>,
}

impl FakeQueries {
    async fn note(&self, tenant: &TenantId, what: String) -> Result<bool> {
        self.asked.lock().push(format!("{tenant}: {what}"));
        match tenant.as_str() {
            "empty" => Ok(false),
            "broken" => Err(Error::internal("the secret reason")),
            "slow" => {
                let _dropped = NotifyOnDrop(self.dropped.clone());
                self.started.notify_one();
                std::future::pending().await
            }
            _ => Ok(true),
        }
    }
}

/// Runs no SQL: its statements need an engine.
#[async_trait]
impl SqlService for FakeQueries {
    async fn prepare(&self, tenant: &TenantId, text: &str) -> Result<SqlStatement> {
        self.note(tenant, format!("sql {text}")).await?;
        Err(Error::invalid("not today"))
    }

    async fn tail(&self, tenant: &TenantId, request: TailRequest) -> Result<Tail> {
        self.note(tenant, format!("tail {}", request.query)).await?;
        Err(Error::invalid("not today"))
    }

    async fn tail_pass(&self, _: Tail) -> Result<(Tail, TailPass)> {
        Err(Error::invalid("there is no tail"))
    }
}

struct NotifyOnDrop(Arc<Notify>);

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

fn shown(window: Option<Window>) -> String {
    window.map_or("any time".into(), |window| format!("{}-{}", window.start_seconds, window.end_seconds))
}

fn attribute(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(Value::StringValue(value.into())) }), ..Default::default() }
}

fn trace_of(tenant: &TenantId) -> Vec<ResourceSpans> {
    let span = |id: u8, name: &str| Span {
        trace_id: KNOWN_ID.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect(),
        span_id: vec![id; 8],
        name: name.into(),
        kind: 2,
        start_time_unix_nano: 1_000_000_000,
        end_time_unix_nano: 2_500_000_000,
        attributes: vec![attribute("http.method", "GET")],
        ..Default::default()
    };
    let own = if tenant.as_str() == "b" { 3 } else { 2 };
    vec![ResourceSpans {
        resource: Some(Resource { attributes: vec![attribute("service.name", "shop"), attribute("host", "h")], ..Default::default() }),
        scope_spans: vec![ScopeSpans {
            scope: Some(InstrumentationScope { name: "lib".into(), ..Default::default() }),
            spans: vec![span(1, "resourceSpans"), span(own, "child")],
            ..Default::default()
        }],
        ..Default::default()
    }]
}

#[async_trait]
impl QueryService for FakeQueries {
    /// Of a known trace a filter keeps one span, unless it is `{ true }`.
    async fn trace_by_id(&self, tenant: &TenantId, request: TraceRequest) -> Result<TraceResult> {
        let stats = ScanStats { bytes: 123, ..Default::default() };
        let filter = request
            .filter
            .map_or_else(String::new, |filter| format!(" where {} below {:?} above {:?}", filter.matches, filter.levels_below, filter.levels_above));
        let id = request.id.to_string();
        let known =
            self.note(tenant, format!("trace {id} in {}{filter}", shown(request.window))).await? && [KNOWN_ID, OTHER_ID].contains(&id.as_str());
        let mut resource_spans = if known { trace_of(tenant) } else { Vec::new() };
        let filtered = known && !filter.is_empty() && !filter.starts_with(" where true");
        let spans = resource_spans.iter_mut().flat_map(|resource| &mut resource.scope_spans).map(|scope| &mut scope.spans);
        for spans in spans {
            if filtered {
                spans.truncate(1);
            }
            if id == OTHER_ID {
                spans[0].name.push('2');
            }
        }
        Ok(TraceResult { resource_spans, filtered, stats, ..TraceResult::default() })
    }

    async fn search(&self, tenant: &TenantId, request: SearchRequest) -> Result<SearchResult> {
        let SearchRequest { query, limit, spans_per_spanset, window } = request;
        let known = self.note(tenant, format!("search {query} limit {limit} spss {spans_per_spanset} in {}", shown(window))).await?;
        let set = tempo::SpanSet {
            spans: vec![tempo::Span { span_id: "00000000000000aa".into(), start_time_unix_nano: 5, duration_nanos: 7, ..Default::default() }],
            matched: 1,
            ..Default::default()
        };
        let trace = tempo::TraceSearchMetadata {
            trace_id: "abc".into(),
            root_service_name: "<root span not yet received>".into(),
            start_time_unix_nano: 5,
            duration_ms: 1,
            span_sets: vec![set],
            service_stats: [("shop".to_owned(), tempo::ServiceStats { span_count: 2, error_count: 0 })].into(),
            ..Default::default()
        };
        let stats = ScanStats {
            traces: 3,
            spans: 9,
            bytes: 10,
            reads: 2,
            blocks: 1,
            block_bytes: 1000,
            row_groups: 1,
            row_groups_skipped: 4,
            ..Default::default()
        };
        Ok(if known { SearchResult { traces: vec![trace], stats, ..SearchResult::default() } } else { SearchResult::default() })
    }

    async fn explain_search(&self, tenant: &TenantId, request: SearchRequest, analyze: bool) -> Result<String> {
        self.note(tenant, format!("explain {} analyze {analyze}", request.query)).await?;
        Ok("SpansetScanExec\n".to_owned())
    }

    async fn metrics(&self, tenant: &TenantId, request: MetricsRequest) -> Result<MetricsResult> {
        let MetricsRequest { query, intervals, max_series, exemplars, sampling_attribute } = request;
        let (start, step, count) = (intervals.start(), intervals.step(), intervals.count());
        let known = self
            .note(
                tenant,
                format!("metrics {query} max {max_series} exemplars {exemplars} by {sampling_attribute:?} from {start} by {step} count {count}"),
            )
            .await?;
        let series = tempo::TimeSeries {
            labels: vec![skein_engine::plan::matches::key_value("__name__", &"rate".into())],
            samples: [(0.0, 0), (1.5, 1)].map(|(value, at)| tempo::Sample { value, timestamp_ms: intervals.timestamp_ms(at) }).to_vec(),
            exemplars: Vec::new(),
        };
        Ok(MetricsResult { series: if known { vec![series] } else { Vec::new() }, ..MetricsResult::default() })
    }

    async fn tag_names(&self, tenant: &TenantId, request: TagNamesRequest) -> Result<TagNames> {
        let TagNamesRequest { scope, filter, window } = request;
        let known = self.note(tenant, format!("names {scope:?} {filter:?} in {}", shown(window))).await?;
        let all =
            [(TagScope::Resource, vec!["host".to_owned(), "service.name".into()]), (TagScope::Span, vec!["a".into(), "host".into(), "z".into()])];
        let scopes = all.into_iter().filter(|(known, _)| scope.is_none_or(|scope| scope == *known)).collect();
        Ok(if known { TagNames { scopes, stats: ScanStats { bytes: 7, ..Default::default() } } } else { TagNames::default() })
    }

    async fn tag_values(&self, tenant: &TenantId, request: TagValuesRequest) -> Result<TagValues> {
        let TagValuesRequest { tag, filter, window } = request;
        let known = self.note(tenant, format!("values {tag} {filter:?} in {}", shown(window))).await?;
        let value = |kind: &str, value: &str| tempo::TagValue { r#type: kind.into(), value: value.into() };
        let values = vec![value("int", "1"), value("string", "a"), value("string", "b<")];
        Ok(if known { TagValues { values, stats: ScanStats::default() } } else { TagValues::default() })
    }
}

#[derive(Default)]
struct FakeOperations {
    limits: QueryLimits,
    own_limits: BTreeMap<&'static str, QueryLimits>,
    stopping: Mutex<bool>,
    flushed: Mutex<Vec<Option<TenantId>>>,
}

#[async_trait]
impl Operations for FakeOperations {
    async fn flush(&self, tenant: Option<TenantId>) -> Result<()> {
        if tenant.as_ref().is_some_and(|tenant| tenant.as_str() == "unknown") {
            return Err(Error::not_found("tenant unknown"));
        }
        self.flushed.lock().push(tenant);
        Ok(())
    }

    fn shutdown(&self) {
        *self.stopping.lock() = true;
    }

    fn readiness(&self) -> Result<(), String> {
        if *self.stopping.lock() { Err("Application is stopping".into()) } else { Ok(()) }
    }

    fn config_yaml(&self, mode: ConfigMode) -> String {
        format!("mode: {mode:?}\n")
    }

    fn runtime_config_yaml(&self, diff: bool) -> String {
        format!("diff: {diff}\n")
    }

    fn services(&self) -> Vec<(String, String)> {
        vec![("ingester".into(), "Running".into())]
    }

    fn tenants_with_overrides(&self) -> Vec<TenantId> {
        self.own_limits.keys().map(|tenant| TenantId::parse(tenant).unwrap()).collect()
    }

    fn limits(&self, tenant: &TenantId) -> QueryLimits {
        self.own_limits.get(tenant.as_str()).copied().unwrap_or(self.limits)
    }

    fn limits_yaml(&self, tenant: &TenantId) -> String {
        format!("max_bytes_per_trace: {}\n", self.limits(tenant).max_bytes_per_trace)
    }
}

struct Api {
    frontend: Arc<Frontend>,
    queries: Arc<FakeQueries>,
    operations: Arc<FakeOperations>,
    router: Router,
}

struct Answer {
    status: u16,
    content_type: String,
    encoding: Option<String>,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Api {
    fn new() -> Self {
        Self::with(false, FrontendSettings::default(), QueryLimits::default())
    }

    fn multi_tenant() -> Self {
        Self::with(true, FrontendSettings::default(), QueryLimits::default())
    }

    fn with(multitenancy_enabled: bool, settings: FrontendSettings, limits: QueryLimits) -> Self {
        Self::at("", multitenancy_enabled, settings, limits)
    }

    fn at(prefix: &str, multitenancy_enabled: bool, settings: FrontendSettings, limits: QueryLimits) -> Self {
        Self::over(prefix, multitenancy_enabled, settings, FakeOperations { limits, ..Default::default() })
    }

    /// An API whose tenants have limits of their own.
    fn with_own_limits(settings: FrontendSettings, own_limits: impl IntoIterator<Item = (&'static str, QueryLimits)>) -> Self {
        Self::over("", true, settings, FakeOperations { own_limits: own_limits.into_iter().collect(), ..Default::default() })
    }

    fn over(prefix: &str, multitenancy_enabled: bool, settings: FrontendSettings, operations: FakeOperations) -> Self {
        let queries = Arc::new(FakeQueries::default());
        let operations = Arc::new(operations);
        let parts = FrontendParts {
            queries: queries.clone(),
            sql: queries.clone(),
            writer: None,
            operations: operations.clone(),
            settings,
            multitenancy_enabled,
            http_api_prefix: prefix.into(),
            build: BuildInfo { version: "3.1.0".into(), ..Default::default() },
            registry: prometheus::Registry::new(),
            clock: Arc::new(TestClock::new(NOW_SECONDS * 1_000_000_000)),
        };
        let frontend = Frontend::new(parts).unwrap();
        Self { router: router(frontend.clone()), frontend, queries, operations }
    }

    async fn ask(&self, uri: &str, headers: &[(&str, &str)]) -> Answer {
        let request = headers.iter().fold(Request::get(uri), |request, (name, value)| request.header(*name, *value));
        let response = self.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let header = |name| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let (content_type, encoding) = (header(header::CONTENT_TYPE).unwrap_or_default(), header(header::CONTENT_ENCODING));
        let status = response.status().as_u16();
        Answer { status, content_type, encoding, body: to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec() }
    }

    async fn check(&self, uri: &str, status: u16, body: &str) {
        let answer = self.ask(uri, &[]).await;
        assert_eq!((answer.status, answer.text()), (status, body), "{uri}");
    }

    /// Checks that a request is refused with a text that contains `part`.
    async fn refused(&self, uri: &str, status: u16, part: &str) {
        let answer = self.ask(uri, &[]).await;
        assert_eq!(answer.status, status, "{uri}: {}", answer.text());
        assert!(answer.text().contains(part), "{uri}: {}", answer.text());
    }

    /// Checks what the query service was asked for the request.
    async fn asks(&self, uri: &str, expected: &str) {
        let answer = self.ask(uri, &[]).await;
        assert_eq!(answer.status, 200, "{uri}: {}", answer.text());
        assert_eq!(self.queries.asked.lock().drain(..).collect::<Vec<_>>().join("; "), expected, "{uri}");
    }

    fn metrics(&self) -> String {
        prometheus::TextEncoder::new().encode_to_string(&self.frontend.registry.gather()).unwrap()
    }
}

const DEFAULT_WINDOW: &str = "1699999100-1700000000";
