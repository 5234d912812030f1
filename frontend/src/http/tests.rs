//! The HTTP and gRPC API against a query service that answers from a script.
// The test macro enters a runtime.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

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

#[tokio::test]
async fn trace_ids_are_read_as_tempo_reads_them() {
    let api = Api::new();
    api.asks("/api/v2/traces/abc", "single-tenant: trace 00000000000000000000000000000abc in any time").await;
    api.asks("/api/v2/traces/0AF7651916cd43dd8448eb211c80319c", &format!("single-tenant: trace {KNOWN_ID} in any time")).await;
    let odd = "0047ac2c027451d89e3f3ba6d2a6b7b";
    api.asks(&format!("/api/v2/traces/{odd}"), &format!("single-tenant: trace 0{odd} in any time")).await;
    for version in ["/api/traces", "/api/v2/traces"] {
        api.check(&format!("{version}/12x"), 400, "trace IDs can only contain hex characters: invalid character 'x' at position 3").await;
        api.check(&format!("{version}/{KNOWN_ID}00"), 400, "trace IDs can't be larger than 128 bits").await;
    }
}

#[tokio::test]
async fn trace_parameters_are_checked() {
    let api = Api::new();
    let uri = |query: &str| format!("/api/v2/traces/{KNOWN_ID}?{query}");
    let asked = |window: &str| format!("single-tenant: trace {KNOWN_ID} in {window}");
    api.asks(&uri("start=10&end=20"), &asked("10-20")).await;
    api.asks(&uri("start=10"), &asked("10-4294967295")).await;
    api.asks(&uri("end=20"), &asked("0-20")).await;
    api.asks(&uri("mode=ingesters&start=x&blockStart=y"), &asked("any time")).await;
    api.asks(&uri("mode=blocks&blockStart=00000000-0000-0000-0000-000000000000"), &asked("any time")).await;
    api.refused(&uri("start=1.5"), 400, "invalid start: ").await;
    api.refused(&uri("end=now"), 400, "invalid end: ").await;
    api.check(&uri("start=20&end=20"), 400, "http parameter start must be before end. received start=20 end=20").await;
    api.check(&uri("mode=fast"), 400, "invalid value for mode fast").await;
    api.refused(&uri("mode=external"), 400, "invalid value for mode external").await;
    api.refused(&uri("blockStart=1"), 400, "invalid value for blockstart: ").await;
    api.refused(&uri("blockEnd=1"), 400, "invalid value for blockEnd: ").await;
}

#[tokio::test]
async fn the_span_filter_of_a_trace_is_checked() {
    let api = Api::new();
    let uri = |query: &str| format!("/api/v2/traces/{KNOWN_ID}?{query}");
    api.refused(&uri("q=%7B%20.a%20%3D%20%7D"), 400, "invalid TraceQL filter: parse error at line 1, col 8").await;
    for not_one_filter in ["%7B%7D%7Ccount()%3E1", "%7B%7D%26%26%7B%7D", "%7B%7D%3E%7B%7D", "%7B%7D%7Crate()", "%7BrootName%3D%22a%22%7D"] {
        api.refused(&uri(&format!("q={not_one_filter}")), 400, "invalid TraceQL filter: ").await;
    }
    api.check(&uri("q=%7B%7D&match_depth=-2"), 400, "invalid value for match_depth: must be >= -1").await;
    api.refused(&uri("q=%7B%7D&match_depth=abc"), 400, "invalid value for match_depth: ").await;
    api.check(&uri("q=%7B%7D&keep_hierarchy=true&ancestor_depth=-2"), 400, "invalid value for ancestor_depth: must be >= -1").await;
    api.refused(&uri("q=%7B%7D&keep_hierarchy=perhaps"), 400, "invalid value for keep_hierarchy: ").await;
}

#[tokio::test]
async fn the_span_filter_of_a_trace_is_asked_with_its_levels() {
    let api = Api::new();
    let check = async |query: &str, filter: &str| {
        api.asks(&format!("/api/v2/traces/{KNOWN_ID}?{query}"), &format!("single-tenant: trace {KNOWN_ID} in {filter}")).await;
    };
    let where_error = "any time where status = error";
    check("q=%7Bstatus=error%7D", &format!("{where_error} below Some(0) above Some(0)")).await;
    check("q=%7Bstatus=error%7D&match_depth=2&ancestor_depth=-2", &format!("{where_error} below Some(2) above Some(0)")).await;
    check("q=%7Bstatus=error%7D&match_depth=-1&keep_hierarchy=true", &format!("{where_error} below None above None")).await;
    check("q=%7Bstatus=error%7D&keep_hierarchy=1&ancestor_depth=3", &format!("{where_error} below Some(0) above Some(3)")).await;
    check("q=%7Bstatus=error%7D&start=10&end=20", "10-20 where status = error below Some(0) above Some(0)").await;
    check("q=%20&match_depth=-2&keep_hierarchy=x", "any time").await;
    check("match_depth=abc", "any time").await;
}

#[tokio::test]
async fn a_filtered_trace_says_so() {
    let api = Api::new();
    let message = "Trace filtered, only a subset of spans matching the filter is returned";
    let ask = async |query: &str| -> serde_json::Value {
        serde_json::from_slice(&api.ask(&format!("/api/v2/traces/{KNOWN_ID}?q={query}"), &[]).await.body).unwrap()
    };
    let some = ask("%7Bstatus=error%7D").await;
    assert_eq!((&some["status"], &some["message"]), (&"PARTIAL".into(), &message.into()));
    let all = ask("%7B%7D").await;
    assert_eq!((all.get("status"), all.get("message")), (None, None));

    let cut = Api::with(false, FrontendSettings::default(), QueryLimits { max_bytes_per_trace: 100, ..Default::default() });
    let answer = cut.ask(&format!("/api/v2/traces/{KNOWN_ID}?q=%7Bstatus=error%7D"), &[]).await;
    let both = format!("Trace exceeds maximum size of 100 bytes, a partial trace is returned; {message}");
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&answer.body).unwrap()["message"], both);
}

/// The answer to a body sent to the endpoint that compares traces.
async fn diff(api: &Api, body: &str) -> (u16, String) {
    let request = Request::post("/api/v2/traces/diff").body(Body::from(body.to_owned())).unwrap();
    let response = api.router.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    (status, String::from_utf8(to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec()).unwrap())
}

fn two_ids(base: &str, compare: &str, more: &str) -> String {
    format!(r#"{{"base":{{"traceId":"{base}"{more}}},"compare":{{"traceId":"{compare}"}}}}"#)
}

#[tokio::test]
async fn wrong_comparisons_are_named() {
    let api = Api::new();
    let check = async |body: &str, status: u16, expected: &str| {
        let (found, text) = diff(&api, body).await;
        assert_eq!(found, status, "{body}: {text}");
        assert!(text.starts_with(expected), "{body}: {text}");
    };
    check("no JSON", 400, "invalid trace diff request body: ").await;
    check("{}", 400, "base.traceId is required").await;
    check(r#"{"base":{"traceId":"1"}}"#, 400, "compare.traceId is required").await;
    check(&two_ids("1x", "1", ""), 400, "invalid base.traceId: trace IDs can only contain hex characters").await;
    check(&two_ids("1", "1", r#","start":20,"end":10"#), 400, "base.start must be before base.end. received start=20 end=10").await;
    check(r#"{"base":{"traceId":"1"},"compare":{"traceId":"2"},"format":"html"}"#, 400, r#"invalid format "html": must be one of trace-patch-v0, "#)
        .await;
    assert!(api.queries.asked.lock().is_empty());
    check(&two_ids(KNOWN_ID, "1", ""), 404, "Not Found").await;
    api.check("/api/v2/traces/diff", 405, "Method Not Allowed").await;
    check(&" ".repeat(3 << 20), 413, "").await;

    let limited = |max_bytes_per_trace| Api::with(false, FrontendSettings::default(), QueryLimits { max_bytes_per_trace, ..Default::default() });
    let (status, text) = diff(&limited(180), &two_ids(KNOWN_ID, OTHER_ID, "")).await;
    assert_eq!((status, text.contains("partial traces cannot be diffed")), (422, true), "{text}");
    let (status, text) = diff(&limited(400), &two_ids(KNOWN_ID, OTHER_ID, "")).await;
    assert_eq!((status, text.contains("max bytes: 400")), (429, true), "{text}");
}

#[tokio::test]
async fn two_traces_are_compared_in_one_turn() {
    // With one turn in all, a second one would never come.
    let settings = FrontendSettings { max_concurrent_queries: 1, ..Default::default() };
    let api = Api::with(false, settings, QueryLimits::default());
    let (status, text) = diff(&api, &two_ids(KNOWN_ID, OTHER_ID, r#","start":5"#)).await;
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &document["version"]), (200, &"trace-patch-v0".into()));
    assert_eq!((&document["base"]["traceId"], &document["stats"]["spanCountB"]), (&KNOWN_ID.into(), &2.into()));
    assert_eq!(document["added"][0]["span"]["name"], "resourceSpans2");
    let asked = [format!("single-tenant: trace {KNOWN_ID} in 5-4294967295"), format!("single-tenant: trace {OTHER_ID} in any time")];
    assert_eq!(*api.queries.asked.lock(), asked);
}

#[tokio::test]
async fn a_trace_comes_in_every_form() {
    let api = Api::new();
    let spans = concat!(
        r#"[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}},{"key":"host","value":{"stringValue":"h"}}]},"#,
        r#""scopeSpans":[{"scope":{"name":"lib"},"spans":["#,
        r#"{"traceId":"CvdlGRbNQ92ESOshHIAxnA==","spanId":"AQEBAQEBAQE=","name":"resourceSpans","kind":"SPAN_KIND_SERVER","#,
        r#""startTimeUnixNano":"1000000000","endTimeUnixNano":"2500000000","#,
        r#""attributes":[{"key":"http.method","value":{"stringValue":"GET"}}]},"#,
        r#"{"traceId":"CvdlGRbNQ92ESOshHIAxnA==","spanId":"AgICAgICAgI=","name":"child","kind":"SPAN_KIND_SERVER","#,
        r#""startTimeUnixNano":"1000000000","endTimeUnixNano":"2500000000","#,
        r#""attributes":[{"key":"http.method","value":{"stringValue":"GET"}}]}]}]}]"#,
    );
    let (v1, v2) = (format!("/api/traces/{KNOWN_ID}"), format!("/api/v2/traces/{KNOWN_ID}"));
    api.check(&v1, 200, &format!(r#"{{"batches":{spans}}}"#)).await;
    api.check(&v2, 200, &format!(r#"{{"trace":{{"resourceSpans":{spans}}},"metrics":{{"inspectedBytes":"123","backendBytes":"123"}}}}"#)).await;

    let single = TenantId::single();
    let answer = api.ask(&v1, &[("accept", "application/protobuf")]).await;
    assert_eq!(answer.content_type, "application/protobuf");
    assert_eq!(tempo::Trace::decode(answer.body.as_slice()).unwrap().resource_spans, trace_of(&single));
    let answer = api.ask(&v2, &[("accept", "application/protobuf")]).await;
    let answer = tempo::TraceByIdResponse::decode(answer.body.as_slice()).unwrap();
    assert_eq!(answer.trace.unwrap().resource_spans, trace_of(&single));

    let answer = api.ask(&v2, &[("accept", "application/vnd.grafana.llm")]).await;
    assert_eq!(answer.content_type, "application/vnd.grafana.llm+json");
    let llm: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let span = |id: &str, name: &str| {
        serde_json::json!({
            "spanId": id, "name": name, "kind": "SPAN_KIND_SERVER", "startTimeUnixNano": "1000000000", "endTimeUnixNano": "2500000000",
            "durationMs": 1500.0, "attributes": { "http.method": "GET" }, "status": { "code": "STATUS_CODE_UNSET", "message": "" },
        })
    };
    let spans = [span("0101010101010101", "resourceSpans"), span("0202020202020202", "child")];
    let scopes = serde_json::json!([{ "name": "lib", "version": "", "spans": spans }]);
    let expected = serde_json::json!({
        "trace": { "traceId": KNOWN_ID, "services": [{ "serviceName": "shop", "resource": { "host": "h" }, "scopes": scopes }] },
        "metrics": { "inspectedBytes": 123, "backendBytes": 123 },
        "status": "COMPLETE",
    });
    assert_eq!(llm, expected);
}

#[tokio::test]
async fn an_unknown_trace_is_404_in_v1_and_empty_in_v2() {
    let api = Api::new();
    api.check("/api/traces/1", 404, "").await;
    api.check("/api/v2/traces/1", 200, r#"{"trace":{},"metrics":{"inspectedBytes":"123","backendBytes":"123"}}"#).await;
    let answer = api.ask("/api/v2/traces/1", &[("accept", "application/protobuf")]).await;
    assert!(tempo::TraceByIdResponse::decode(answer.body.as_slice()).unwrap().trace.is_some());
    assert_eq!(api.ask("/api/v2/traces/1", &[("accept", "application/vnd.grafana.llm")]).await.text(), "{}");
}

#[tokio::test]
async fn a_trace_above_its_size_is_422_in_v1_and_partial_in_v2() {
    let limits = QueryLimits { max_bytes_per_trace: 180, ..Default::default() };
    let api = Api::with(false, FrontendSettings::default(), limits);
    api.check(&format!("/api/traces/{KNOWN_ID}"), 422, "trace exceeds max size (max bytes: 180)").await;
    let answer = api.ask(&format!("/api/v2/traces/{KNOWN_ID}"), &[]).await;
    let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((answer.status, &json["status"]), (200, &"PARTIAL".into()));
    assert_eq!(json["message"], "Trace exceeds maximum size of 180 bytes, a partial trace is returned");
    assert_eq!(json["trace"]["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_search_has_its_defaults() {
    let api = Api::new();
    let asked = |rest: &str| format!("single-tenant: search {rest}");
    api.asks("/api/search?q=%7B%7D", &asked(&format!("{{}} limit 20 spss 3 in {DEFAULT_WINDOW}"))).await;
    api.asks("/api/search", &asked(&format!("{{ }} limit 20 spss 1 in {DEFAULT_WINDOW}"))).await;
    api.asks("/api/search?q=%7B%7D&limit=5&spss=0&start=10&end=20", &asked("{} limit 5 spss 3 in 10-20")).await;
    api.asks("/api/search?q=%7B%7D&spss=100&since=1m", &asked("{} limit 20 spss 100 in 1699999940-1700000000")).await;
    api.asks(
        "/api/search?tags=service.name%3Dshop%20a%3D1&minDuration=100ms&maxDuration=1.5s&start=10&end=20",
        &asked(concat!(
            r#"{ resource.service.name =~ "(?s).*shop.*" } && { span."a" = "1" || resource."a" = "1" || span."a" = 1 || resource."a" = 1 } && "#,
            "{ traceDuration >= 100ms } && { traceDuration <= 1500ms } limit 20 spss 1 in 10-20"
        )),
    )
    .await;
}

#[tokio::test]
async fn wrong_search_parameters_are_named() {
    let api = Api::new();
    let check = async |query: &str, expected: &str| api.check(&format!("/api/search?{query}"), 400, expected).await;
    check("limit=0", "invalid limit: must be a positive number").await;
    check("limit=262145", "limit 262145 exceeds max limit 262144").await;
    check("spss=101", "spans per span set exceeds 100. received 101").await;
    check("start=20&end=10", "http parameter start must be before end. received start=20 end=10").await;
    check("start=20&end=20", "http parameter start must be before end. received start=20 end=20").await;
    check("start=20", "http parameter start must be before end. received start=20 end=0").await;
    check("end=20", "error parsing date range: only one of start and end provided: must provide both or neither").await;
    check("start=1&end=604802", "range specified by start and end exceeds 168h0m0s. received start=1 end=604802").await;
    check("q=%7B%7D&tags=a%3Db", "invalid request: can't specify tags and q in the same query").await;
    check("tags=a%3D1%20a%3D2", "invalid tags: tag a has been set twice").await;
    check("tags=%3D1", "invalid tags: unexpected '=' at pos 1").await;
    check("minDuration=2s&maxDuration=1s", "invalid maxDuration: must be greater than minDuration").await;
    for (query, part) in [
        ("limit=-5", "invalid limit: "),
        ("limit=five", "invalid limit: "),
        ("limit=4294967298", "invalid limit: "),
        ("spss=-2", "invalid spss: "),
        ("spss=four", "invalid spss: "),
        ("spss=4294967296", "invalid spss: "),
        ("start=1.5&end=2", "invalid start: "),
        ("start=1&end=2023-11-14T22:13:20Z", "invalid end: "),
        ("start=1700000000000000000&end=2", "invalid start: "),
        ("since=soon", "error parsing date range: could not parse 'since' parameter: "),
        ("minDuration=1d", "invalid minDuration: "),
        ("maxDuration=x", "invalid maxDuration: "),
        ("q=%7B%20foo%20%7D", "invalid TraceQL query: parse error at line 1, col 3: unknown identifier: foo"),
        ("q=%7B%20span.a%20%3D%20%7D", "invalid TraceQL query: parse error at line 1, col 12: "),
        ("q=%7Bresource.service.name%3Darticle%7D", "invalid TraceQL query: parse error at line 1, "),
    ] {
        api.refused(&format!("/api/search?{query}"), 400, part).await;
    }
    assert!(api.queries.asked.lock().is_empty());
}

#[tokio::test]
async fn the_size_of_a_query_is_checked_before_it_is_parsed() {
    let settings = FrontendSettings { max_query_expression_size_bytes: 1000, ..Default::default() };
    let api = Api::with(false, settings, QueryLimits::default());
    let text = "TraceQL expression exceeds the configured maximum size of 1000 bytes";
    let long = "x".repeat(1001);
    for path in ["search?q=", "v2/traces/1?q=", "metrics/query_range?query=", "v2/search/tags?q=", "v2/search/tag/.a/values?q="] {
        api.check(&format!("/api/{path}{long}"), 400, text).await;
    }
}

#[tokio::test]
async fn limits_can_be_switched_off() {
    let mut settings = FrontendSettings::default();
    settings.search.max_duration = Duration::ZERO;
    settings.search.max_spans_per_span_set = 0;
    settings.search.max_result_limit = 0;
    let api = Api::with(false, settings, QueryLimits::default());
    api.asks(
        "/api/search?q=%7B%7D&spss=5000&limit=1000000&start=1&end=1700000000",
        "single-tenant: search {} limit 1000000 spss 5000 in 1-1700000000",
    )
    .await;
}

#[tokio::test]
async fn a_search_answer_has_these_bytes() {
    let api = Api::new();
    let metrics = concat!(
        r#""metrics":{"inspectedTraces":3,"inspectedBytes":"10","totalBlocks":1,"completedJobs":5,"totalJobs":5,"totalBlockBytes":"1000","#,
        r#""inspectedSpans":"9","backendReads":"2","backendBytes":"10","additionalMetrics":{"rowGroupsInspected":"1","rowGroupsSkipped":"4"}}"#,
    );
    let set = r#"{"spans":[{"spanID":"00000000000000aa","startTimeUnixNano":"5","durationNanos":"7"}],"matched":1}"#;
    let trace = r#""traceID":"abc","rootServiceName":"\u003croot span not yet received\u003e","startTimeUnixNano":"5","durationMs":1"#;
    let expected = format!(r#"{{"traces":[{{{trace},"spanSet":{set},"spanSets":[{set}],"serviceStats":{{"shop":{{"spanCount":2}}}}}}],{metrics}}}"#);
    api.check("/api/search?q=%7B%7D", 200, &expected).await;
    api.check("/api/search", 200, &format!(r#"{{"traces":[{{{trace}}}],{metrics}}}"#)).await;

    let answer = api.ask("/api/search?q=%7B%7D", &[("accept", "application/vnd.grafana.llm")]).await;
    assert_eq!(answer.content_type, "application/json");
    let answer = api.ask("/api/search?q=%7B%7D", &[("accept", "application/protobuf")]).await;
    assert_eq!(tempo::SearchResponse::decode(answer.body.as_slice()).unwrap().traces[0].trace_id, "abc");

    let padded = Api::with(false, FrontendSettings::default(), QueryLimits { left_pad_trace_ids: true, ..Default::default() });
    let answer = padded.ask("/api/search", &[]).await;
    assert!(answer.text().contains(&format!(r#""traceID":"{:0>32}""#, "abc")));

    let empty = Api::multi_tenant().ask("/api/search?q=%7B%7D", &[("x-scope-orgid", "empty")]).await;
    assert_eq!(empty.text(), r#"{"traces":[],"metrics":{"completedJobs":1,"totalJobs":1}}"#);
}

#[tokio::test]
async fn names_come_by_scope_and_flat() {
    let api = Api::new();
    let intrinsics = crate::asks::INTRINSICS.map(|name| format!("\"{name}\"")).join(",");
    let metrics = r#""metrics":{"inspectedBytes":"7","backendBytes":"7"}"#;
    let resource = r#"{"name":"resource","tags":["host","service.name"]}"#;
    let intrinsic = format!(r#"{{"name":"intrinsic","tags":[{intrinsics}]}}"#);
    let span = r#"{"name":"span","tags":["a","host","z"]}"#;
    for all in ["", "?scope=none", "?limit=five"] {
        api.check(&format!("/api/v2/search/tags{all}"), 200, &format!(r#"{{"scopes":[{resource},{span},{intrinsic}],{metrics}}}"#)).await;
    }
    api.check("/api/v2/search/tags?scope=span", 200, &format!(r#"{{"scopes":[{span}],{metrics}}}"#)).await;
    api.check("/api/v2/search/tags?scope=span&limit=1&maxStaleValues=3", 200, &format!(r#"{{"scopes":[{{"name":"span","tags":["a"]}}],{metrics}}}"#))
        .await;
    api.check("/api/v2/search/tags?scope=intrinsic&limit=1", 200, &format!(r#"{{"scopes":[{intrinsic}],"metrics":{{}}}}"#)).await;
    api.check("/api/v2/search/tags?scope=trace", 200, r#"{"scopes":[],"metrics":{}}"#).await;
    api.check("/api/v2/search/tags?scope=attribute", 400, "invalid scope: attribute").await;

    api.check("/api/search/tags", 200, &format!(r#"{{"tagNames":["a","host","service.name","z"],{metrics}}}"#)).await;
    api.check("/api/search/tags?limit=2", 200, &format!(r#"{{"tagNames":["a","host"],{metrics}}}"#)).await;
    api.check("/api/search/tags?scope=intrinsic", 200, &format!(r#"{{"tagNames":[{intrinsics}],"metrics":{{}}}}"#)).await;
    api.check("/api/search/tags?scope=x", 400, "invalid scope: x").await;
}

#[tokio::test]
async fn names_are_asked_with_filter_and_window() {
    let api = Api::new();
    let asked = |rest: &str| format!("single-tenant: names {rest}");
    api.asks("/api/v2/search/tags?q=%7B%7D", &asked(&format!("None Some(\"{{}}\") in {DEFAULT_WINDOW}"))).await;
    api.asks("/api/search/tags?q=%7B%7D", &asked(&format!("None None in {DEFAULT_WINDOW}"))).await;
    api.asks("/api/v2/search/tags?scope=event&start=10&end=20", &asked("Some(Event) None in 10-20")).await;
    api.asks("/api/v2/search/tags?start=1699990000.5&end=2023-11-14T22:13:20Z", &asked("None None in 1699990000-1700000000")).await;
    api.asks("/api/v2/search/tags?start=1699990000000000000&end=1700000000", &asked("None None in 1699990000-1700000000")).await;
    api.refused("/api/v2/search/tags?start=10", 400, "http parameter start must be before end. received start=10 end=0").await;
    api.refused("/api/v2/search/tags?end=10", 400, "must provide both or neither").await;
    api.refused("/api/v2/search/tags?start=x&end=10", 400, "could not parse 'start' parameter: ").await;
    api.refused("/api/search/tags?start=1&end=1000000", 400, "range specified by start and end exceeds 168h0m0s").await;
    let groups = |count: usize| {
        let conditions = vec!["span.a=1"; count].join("||").replace('=', "%3D").replace('|', "%7C");
        format!("/api/v2/search/tags?q=%7B{conditions}%7D")
    };
    assert_eq!(api.ask(&groups(100), &[]).await.status, 200);
    let text = "maximum condition groups reached (limit: 100). Reduce the number of OR conditions in the query";
    api.check(&groups(101), 400, text).await;
}

#[tokio::test]
async fn names_and_values_are_cut_at_their_bytes() {
    let limits = QueryLimits { max_bytes_per_tag_values_query: 5, ..Default::default() };
    let api = Api::with(false, FrontendSettings::default(), limits);
    let metrics = r#""metrics":{"inspectedBytes":"7","backendBytes":"7"}"#;
    api.check("/api/v2/search/tags?scope=resource", 200, &format!(r#"{{"scopes":[{{"name":"resource","tags":["host"]}}],{metrics}}}"#)).await;
    let limits = QueryLimits { max_bytes_per_tag_values_query: 2, ..Default::default() };
    let api = Api::with(false, FrontendSettings::default(), limits);
    api.check("/api/search/tag/x/values", 200, r#"{"tagValues":["1","a"],"metrics":{}}"#).await;
}

#[tokio::test]
async fn values_come_typed_and_flat() {
    let api = Api::new();
    let typed = r#"[{"type":"int","value":"1"},{"type":"string","value":"a"},{"type":"string","value":"b\u003c"}]"#;
    api.check("/api/v2/search/tag/span.x/values", 200, &format!(r#"{{"tagValues":{typed},"metrics":{{}}}}"#)).await;
    api.check("/api/v2/search/tag/span.x/values?limit=1", 200, r#"{"tagValues":[{"type":"int","value":"1"}],"metrics":{}}"#).await;
    api.check("/api/search/tag/x/values", 200, r#"{"tagValues":["1","a","b\u003c"],"metrics":{}}"#).await;
    api.check("/api/search/tag/x/values?limit=2", 200, r#"{"tagValues":["1","a"],"metrics":{}}"#).await;
    api.check("/api/search/tag/status.code/values", 200, r#"{"tagValues":["error","ok","unset"],"metrics":{}}"#).await;
    api.check("/api/search/tag/error/values", 200, r#"{"tagValues":["true"],"metrics":{}}"#).await;
    let answer = api.ask("/api/v2/search/tag/span.x/values", &[("accept", "application/vnd.grafana.llm")]).await;
    assert_eq!(answer.text(), r#"{"metrics":{},"tagValues":{"int":["1"],"string":["a","b<"]}}"#);
    let empty = Api::multi_tenant().ask("/api/v2/search/tag/.foo/values", &[("x-scope-orgid", "empty")]).await;
    assert_eq!(empty.text(), r#"{"tagValues":[],"metrics":{}}"#);
}

#[tokio::test]
async fn tags_in_the_path_are_decoded_once() {
    let api = Api::new();
    let check = async |path: &str, tag: &str| {
        api.asks(&format!("/api/v2/search/tag/{path}/values?start=10&end=20"), &format!("single-tenant: values {tag} None in 10-20")).await;
    };
    check("resource.service.name", "resource.service.name").await;
    check("span:name", "span:name").await;
    check("span.%22a%20b%22", "span.\"a b\"").await;
    check("span.%22a%2520b%22", "span.\"a%20b\"").await;
    check("span.%22a%2Fb%22", "span.\"a/b\"").await;
    check("span.a/values", "span.a/values").await;
    api.asks("/api/search/tag/a%20b/values?q=x", &format!("single-tenant: values .\"a b\" None in {DEFAULT_WINDOW}")).await;
    api.asks("/api/search/tag/service.name/values", &format!("single-tenant: values .\"service.name\" None in {DEFAULT_WINDOW}")).await;
    api.asks("/api/search/tag/name/values", &format!("single-tenant: values name None in {DEFAULT_WINDOW}")).await;
    api.asks("/api/v2/search/tag/.a/values?q=%7B%7D", &format!("single-tenant: values .a Some(\"{{}}\") in {DEFAULT_WINDOW}")).await;
}

#[tokio::test]
async fn wrong_value_requests_are_named() {
    let api = Api::new();
    api.refused(
        "/api/v2/search/tag/app.user.id/values",
        400,
        "please provide a valid tagName: failed to parse identifier app.user.id: parse error at line 1, col 2: unknown identifier: app",
    )
    .await;
    api.check("/api/v2/search/tag//values", 400, "please provide a non-empty tagName").await;
    api.check("/api/search/tag//values", 400, "please provide a non-empty tagName").await;
    api.refused("/api/v2/search/tag/.a/values?limit=x", 400, "invalid limit: ").await;
    api.refused("/api/search/tag/a/values?maxStaleValues=-1", 400, "invalid maxStaleValues: ").await;
    api.check("/api/v2/search/tag/.a/value", 404, "404 page not found\n").await;
}

#[tokio::test]
async fn metrics_queries_are_checked_in_order_and_laid_out() {
    let api = Api::new();
    let check = async |query: &str, status: u16, expected: &str| {
        api.refused(&format!("/api/metrics/query_range?{query}"), status, expected).await;
    };
    let rate = "q=%7B%7D%7Crate()";
    // The window is widened to whole steps, and by one step to the left.
    let asked = "single-tenant: metrics {}|rate() max 0 exemplars 100 by None from 999936000000 by 36000000 count 10002";
    api.asks(&format!("/api/metrics/query_range?{rate}&start=1000&end=1360&step=36ms"), asked).await;
    let asked = "single-tenant: metrics {}|rate() max 7 exemplars 100 by None from 1699999999500000000 by 500000000 count 3";
    api.asks("/api/metrics/query_range?query=%7B%7D%7Crate()&start=2023-11-14T22:13:20Z&end=1700000000.6&step=0.5&maxSeries=7", asked).await;
    api.check(
        &format!("/api/metrics/query_range?{rate}&start=1000&end=1060&step=60s"),
        200,
        r#"{"series":[{"labels":[{"key":"__name__","value":{"stringValue":"rate"}}],"samples":[{"timestampMs":"960000"},{"timestampMs":"1020000","value":1.5}]}],"metrics":{"completedJobs":1,"totalJobs":1}}"#,
    )
    .await;
    check(&format!("{rate}&start=x"), 400, "rpc error: code = Code(400) desc = could not parse 'start' parameter: ").await;
    check(&format!("{rate}&start=1741398200&end=1741397000"), 400, "end must be greater than start").await;
    check(&format!("{rate}&start=1&end=90000"), 400, "metrics query time range exceeds the maximum allowed duration of 24h0m0s").await;
    check(&format!("{rate}&start=1000&end=1360&step=35ms"), 400, "step of 35ms is too small, minimum step for given range is 36ms").await;
    check(&format!("{rate}&step=0"), 400, "step of 0s is too small, ").await;
    check(&format!("{rate}&step=0s"), 400, "step of 0s is too small, ").await;
    check(&format!("{rate}&step=-5s"), 400, "cannot parse \"-5s\": step must be positive").await;
    check(&format!("{rate}&step=often"), 400, "cannot parse \"often\" to a valid duration").await;
    check("q=%7B%20%7D", 400, "not a metrics query").await;
    check("q=%7B.%20a%7D", 400, "unexpected END_ATTRIBUTE, expecting IDENTIFIER").await;
    let text = api.ask("/api/metrics/query_range?q=%7B", &[]).await;
    assert!(text.text().starts_with("parse error at line 1"), "{}", text.text());
    let text = api.ask("/api/metrics/query?q=%7B", &[]).await;
    assert!(text.text().starts_with("compiling query: parse error at line 1"), "{}", text.text());
    api.check("/api/metrics/query?q=%7B%20%7D", 400, "not a metrics query").await;
    api.queries.asked.lock().clear();
    let asked = "single-tenant: metrics {}|rate() max 0 exemplars 0 by None from 1000000000000 by 360000000000 count 1";
    api.asks(&format!("/api/metrics/query?{rate}&start=1000&end=1360"), asked).await;

    for accept in ["application/protobuf", "application/vnd.grafana.llm"] {
        let answer = api.ask(&format!("/api/metrics/query?{rate}"), &[("accept", accept)]).await;
        assert_eq!((answer.status, answer.content_type.as_str(), answer.body[0]), (200, "application/json", b'{'), "{accept}");
    }

    let settings = FrontendSettings { query_end_cutoff: Duration::from_secs(30), ..Default::default() };
    let api = Api::with(false, settings, QueryLimits::default());
    let recent = format!("/api/metrics/query_range?{rate}&start={}&end={}", NOW_SECONDS - 20, NOW_SECONDS);
    api.check(&recent, 400, "query window falls entirely within query_end_cutoff").await;
}

#[tokio::test]
async fn exemplars_and_sampling_are_asked_for_as_documented() {
    let mut settings = FrontendSettings::default();
    settings.metrics.max_exemplars = 50;
    settings.metrics.sampling_attribute = "sampling.rate".into();
    let api = Api::with(false, settings, QueryLimits::default());
    let check = async |query: &str, hint: &str, parameter: &str, expected: u32| {
        api.queries.asked.lock().clear();
        let uri = format!("/api/metrics/query_range?q=%7B%7D%7Crate(){hint}&start=1000&end=1060&step=60s{parameter}");
        let asked =
            format!("single-tenant: metrics {query} max 0 exemplars {expected} by Some(\"sampling.rate\") from 900000000000 by 60000000000 count 3");
        api.asks(&uri, &asked).await;
    };
    for (parameter, expected) in
        [("", 50), ("&exemplars=0", 50), ("&exemplars=x", 50), ("&exemplars=-1", 50), ("&exemplars=7", 7), ("&exemplars=900", 50)]
    {
        check("{}|rate()", "", parameter, expected).await;
    }
    check("{}|rate()with(exemplars=false)", "with(exemplars%3Dfalse)", "&exemplars=7", 0).await;
    check("{}|rate()with(exemplars=3)", "with(exemplars%3D3)", "&exemplars=7", 3).await;
    check("{}|rate()with(exemplars=`3`)", "with(exemplars%3D%603%60)", "&exemplars=7", 7).await;
}

const TENANT_PATHS: [&str; 9] = [
    "/api/traces/1",
    "/api/v2/traces/1",
    "/api/search",
    "/api/search/tags",
    "/api/v2/search/tags",
    "/api/search/tag/a/values",
    "/api/v2/search/tag/.a/values",
    "/api/metrics/query_range",
    "/api/metrics/query",
];

#[tokio::test]
async fn tenants_are_needed_and_checked_everywhere() {
    let api = Api::multi_tenant();
    for path in TENANT_PATHS {
        api.check(path, 401, "no org id\n").await;
        for (header, status, part) in [
            ("", 401, "no org id\n"),
            ("a||b", 400, "no org id"),
            ("a b", 400, "unsupported character"),
            ("..", 400, "tenant ID is '.' or '..'"),
            (&"x".repeat(151), 400, "tenant ID is too long"),
        ] {
            let answer = api.ask(path, &[("x-scope-orgid", header)]).await;
            assert_eq!(answer.status, status, "{path} {header}");
            assert!(answer.text().contains(part), "{path} {header}: {}", answer.text());
        }
    }
    api.check("/api/echo", 200, "echo\n").await;
    let single = Api::new();
    single.ask("/api/search/tags", &[("x-scope-orgid", "a||b")]).await;
    assert!(single.queries.asked.lock()[0].starts_with("single-tenant: "));
}

#[tokio::test]
async fn several_tenants_are_asked_and_joined() {
    let api = Api::multi_tenant();
    let tenants = [("x-scope-orgid", "b|a|empty:x=y|a")];
    let answer = api.ask(&format!("/api/v2/traces/{KNOWN_ID}"), &tenants).await;
    let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let spans = |resource: usize| json["trace"]["resourceSpans"][resource]["scopeSpans"][0]["spans"].as_array().unwrap().len();
    assert_eq!((spans(0), spans(1)), (2, 1));
    assert_eq!(json["metrics"]["inspectedBytes"], "369");
    let asked: Vec<String> = api.queries.asked.lock().drain(..).map(|asked| asked.split(':').next().unwrap().to_owned()).collect();
    assert_eq!(asked, ["a", "b", "empty"]);

    let answer = api.ask("/api/search?q=%7B%7D", &tenants).await;
    let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((json["traces"].as_array().unwrap().len(), &json["metrics"]["completedJobs"]), (1, &10.into()));
    let answer = api.ask("/api/search/tags", &tenants).await;
    assert!(answer.text().starts_with(r#"{"tagNames":["a","host","service.name","z"],"#));
    let answer = api.ask("/api/search?q=%7B%7D", &[("x-scope-orgid", "a|broken")]).await;
    assert_eq!((answer.status, answer.text()), (500, "internal error"));

    let settings = FrontendSettings { multi_tenant_queries_enabled: false, ..Default::default() };
    let api = Api::with(true, settings, QueryLimits::default());
    assert_eq!(api.ask("/api/search", &[("x-scope-orgid", "a|b")]).await.status, 400);
    assert_eq!(api.ask("/api/search", &[("x-scope-orgid", "a")]).await.status, 200);
}

#[tokio::test]
async fn long_answers_are_compressed_on_request() {
    let api = Api::new();
    let uri = format!("/api/v2/traces/{KNOWN_ID}");
    let plain = api.ask(&uri, &[]).await;
    let packed = api.ask(&uri, &[("accept-encoding", "gzip")]).await;
    assert!(plain.body.len() < 1024 && packed.encoding.is_none());

    let plain = api.ask("/api/v2/search/tags", &[]).await;
    assert!(plain.body.len() < 1024);
    let tenants = ("x-scope-orgid", "a|b");
    let api = Api::multi_tenant();
    let plain = api.ask(&uri, &[tenants]).await;
    assert!(plain.body.len() > 1024 && plain.encoding.is_none(), "{}", plain.body.len());
    let packed = api.ask(&uri, &[tenants, ("accept-encoding", "deflate, gzip")]).await;
    assert_eq!((packed.encoding.as_deref(), packed.content_type.as_str()), (Some("gzip"), "application/json"));
    let mut unpacked = Vec::new();
    GzDecoder::new(packed.body.as_slice()).read_to_end(&mut unpacked).unwrap();
    assert_eq!(unpacked, plain.body);
}

#[tokio::test]
async fn a_full_queue_is_429_and_a_client_that_leaves_stops_the_query() {
    let settings = FrontendSettings { max_concurrent_queries: 1, max_outstanding_per_tenant: 0, ..Default::default() };
    let api = Api::with(true, settings, QueryLimits::default());
    let router = api.router.clone();
    let request = Request::get("/api/search").header("x-scope-orgid", "slow").body(Body::empty()).unwrap();
    let slow = tokio::spawn(router.oneshot(request));
    api.queries.started.notified().await;
    for path in [&format!("/api/traces/{KNOWN_ID}"), "/api/search"] {
        let answer = api.ask(path, &[("x-scope-orgid", "a")]).await;
        assert_eq!((answer.status, answer.text()), (429, "job queue full"));
    }
    assert!(api.metrics().contains(r#"tempo_query_frontend_discarded_requests_total{user="a"} 2"#));

    slow.abort();
    api.queries.dropped.notified().await;
    assert!(slow.await.is_err());
    assert_eq!(api.ask("/api/search", &[("x-scope-orgid", "a")]).await.status, 200);
    assert!(api.metrics().contains(r#"tempo_request_duration_seconds_count{method="GET",route="api_search",status_code="499",ws="false"} 1"#));
}

#[tokio::test]
async fn a_request_ends_at_the_configured_time() {
    let settings = FrontendSettings { api_timeout: Duration::from_millis(1), ..Default::default() };
    let api = Api::with(true, settings, QueryLimits::default());
    let answer = api.ask("/api/search", &[("x-scope-orgid", "slow")]).await;
    assert_eq!((answer.status, answer.text()), (503, "unable to process request in the configured timeout"));
}

fn with_mcp(settings: FrontendSettings) -> FrontendSettings {
    FrontendSettings { mcp_server: McpSettings { enabled: true }, ..settings }
}

/// A request that calls a tool, as the tenant.
fn calling(path: &str, tenant: &str, tool: &str, arguments: serde_json::Value) -> Request<Body> {
    let params = serde_json::json!({ "name": tool, "arguments": arguments });
    let message = serde_json::json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params });
    let request = Request::post(path).header("content-type", "application/json").header("x-scope-orgid", tenant).header("host", "skein.example");
    request.body(Body::from(message.to_string())).unwrap()
}

/// Whether a tool failed, and its text.
async fn called(api: &Api, path: &str, tenant: &str, tool: &str, arguments: serde_json::Value) -> (bool, String) {
    let response = api.router.clone().oneshot(calling(path, tenant, tool, arguments)).await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    let body: serde_json::Value = serde_json::from_slice(&to_bytes(response.into_body(), usize::MAX).await.unwrap()).unwrap();
    let result = &body["result"];
    (result["isError"] == true, result["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{body}")).to_owned())
}

#[tokio::test]
async fn tools_ask_as_the_caller_and_answer_for_language_models() {
    let api = Api::with(true, with_mcp(FrontendSettings::default()), QueryLimits::default());
    let (failed, text) = called(&api, "/api/mcp", "a|b", "get-trace", serde_json::json!({ "trace_id": KNOWN_ID })).await;
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((failed, &answer["trace"]["traceId"], &answer["status"]), (false, &KNOWN_ID.into(), &"COMPLETE".into()));
    assert_eq!(*api.queries.asked.lock(), ["a", "b"].map(|tenant| format!("{tenant}: trace {KNOWN_ID} in any time")));
    let (failed, text) = called(&api, "/api/mcp", "a", "get-attribute-values", serde_json::json!({ "name": "span.x" })).await;
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((failed, &answer["tagValues"]), (false, &serde_json::json!({ "int": ["1"], "string": ["a", "b<"] })));

    // The texts of HTTP's errors, and none of an error of ours.
    let query = serde_json::json!({ "query": "{}" });
    let (failed, text) = called(&api, "/api/mcp", "broken", "traceql-search", query.clone()).await;
    assert_eq!((failed, text.as_str()), (true, "tool failed with http status code 500 and reason internal error"));
    let (failed, text) = called(&api, "/api/mcp", "a", "get-trace", serde_json::json!({ "trace_id": "1" })).await;
    assert_eq!((failed, text.contains("no such trace")), (true, true));
    assert!(api.metrics().contains(r#"tempo_query_frontend_mcp_calls_total{tool="get-trace"} 2"#));

    let prefixed = Api::at("/tempo", false, with_mcp(FrontendSettings::default()), QueryLimits::default());
    assert!(!called(&prefixed, "/tempo/api/mcp", "", "traceql-search", query).await.0);
    prefixed.check("/api/mcp", 404, "404 page not found\n").await;
}

#[tokio::test]
async fn tools_obey_limits_and_stop_when_the_client_leaves() {
    let settings = FrontendSettings {
        max_concurrent_queries: 1,
        max_outstanding_per_tenant: 0,
        max_query_expression_size_bytes: 30,
        url_deny_list: vec!["needle".into()],
        ..Default::default()
    };
    let api = Api::with(true, with_mcp(settings), QueryLimits::default());
    let slow = tokio::spawn(api.router.clone().oneshot(calling("/api/mcp", "slow", "traceql-search", serde_json::json!({ "query": "{}" }))));
    api.queries.started.notified().await;
    let check = async |query: &str, expected: &str| {
        let (failed, text) = called(&api, "/api/mcp", "a", "traceql-search", serde_json::json!({ "query": query })).await;
        assert_eq!((failed, text.contains(expected)), (true, true), "{text}");
    };
    check("{}", "tool failed with http status code 429 and reason job queue full").await;
    check("{ .a = 1 && .b = 2 && .c = 3 && .d = 4 }", "code 400 and reason TraceQL expression exceeds the configured maximum size").await;
    check("{ .needle = 1 }", "code 400 and reason Invalid request /api/search?q=").await;
    slow.abort();
    api.queries.dropped.notified().await;

    let timed = Api::with(true, with_mcp(FrontendSettings { api_timeout: Duration::from_millis(1), ..Default::default() }), QueryLimits::default());
    let (failed, text) = called(&timed, "/api/mcp", "slow", "traceql-search", serde_json::json!({ "query": "{}" })).await;
    assert_eq!((failed, text.contains("code 503 and reason unable to process request in the configured timeout")), (true, true), "{text}");
}

#[tokio::test]
async fn limits_are_each_tenants_own() {
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let own = |limits: fn(&mut QueryLimits)| {
        let mut changed = QueryLimits::default();
        limits(&mut changed);
        changed
    };
    let short = own(|limits| (limits.max_search_duration, limits.max_metrics_duration) = (Duration::from_secs(3600), Duration::from_secs(60)));
    let long = QueryLimits { max_search_duration: hours(200), ..Default::default() };
    let few_groups = own(|limits| limits.max_condition_groups_per_tag_query = 2);
    let small = own(|limits| limits.max_bytes_per_trace = 50);
    let tenants = [("short", short), ("long", long), ("groups", few_groups), ("small", small)];
    let api = Api::with_own_limits(FrontendSettings::default(), tenants);
    let check = |tenant: &'static str, uri: String, status: u16, part: &'static str| {
        let api = &api;
        async move {
            let answer = api.ask(&uri, &[("x-scope-orgid", tenant)]).await;
            assert_eq!(answer.status, status, "{tenant} {uri}: {}", answer.text());
            assert!(answer.text().contains(part), "{tenant} {uri}: {}", answer.text());
        }
    };
    let search = |length: Duration| format!("/api/search?q=%7B%7D&start=1000&end={}", 1000 + length.as_secs());
    check("short", search(hours(1)), 200, "").await;
    check("short", search(hours(2)), 400, "range specified by start and end exceeds 1h0m0s. received start=1000 end=8200").await;
    check("long", search(hours(200)), 200, "").await;
    check("anyone", search(hours(169)), 400, "range specified by start and end exceeds 168h0m0s").await;
    check("long|anyone", search(hours(169)), 400, "range specified by start and end exceeds 168h0m0s").await;
    check("long|short", "/api/v2/search/tags?start=1000&end=9000".into(), 400, "exceeds 1h0m0s").await;

    let metrics = |tenant, length: u64, part| {
        let uri = format!("/api/metrics/query_range?q=%7B%7D%7Crate()&start={}&end={NOW_SECONDS}&step=60s", NOW_SECONDS - length);
        let api = &api;
        async move {
            let answer = api.ask(&uri, &[("x-scope-orgid", tenant)]).await;
            assert_eq!(answer.text().contains(part), length > 60, "{tenant}: {}", answer.text());
        }
    };
    metrics("short", 61, "metrics query time range exceeds the maximum allowed duration of 1m0s").await;
    metrics("short", 60, "exceeds the maximum allowed duration").await;

    let names = "/api/v2/search/tags?q=%7Bspan.a%3D1%7C%7Cspan.b%3D1%7C%7Cspan.c%3D1%7D";
    check("groups", names.into(), 400, "maximum condition groups reached (limit: 2)").await;
    check("anyone", names.into(), 200, "").await;

    let trace = format!("/api/traces/{KNOWN_ID}");
    check("small", trace.clone(), 422, "trace exceeds max size (max bytes: 50)").await;
    check("anyone", trace, 200, "").await;
    check("", "/status/overrides".into(), 200, "groups\nlong\nshort\nsmall\n").await;
    check("", "/status/overrides/small".into(), 200, "max_bytes_per_trace: 50\n").await;
    check("", "/status/overrides/anyone".into(), 200, "max_bytes_per_trace: 0\n").await;
}

/// A client of the gRPC API, which is served for as long as the runtime lives.
async fn grpc_client(api: &Api) -> tempo::streaming_querier_client::StreamingQuerierClient<tonic::transport::Channel> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (router, grpc, options) = (api.router.clone(), grpc::routes(api.frontend.clone()), ServeOptions::of(&api.frontend));
    tokio::spawn(serve(listener, router, Some(grpc), options, std::future::pending()));
    let channel = tonic::transport::Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    tempo::streaming_querier_client::StreamingQuerierClient::new(channel)
}

fn as_tenant<T>(tenant: &str, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("x-scope-orgid", tenant.parse().unwrap());
    request
}

#[tokio::test]
async fn bounds_have_their_grpc_codes() {
    let settings =
        FrontendSettings { max_concurrent_queries: 1, max_outstanding_per_tenant: 0, max_query_expression_size_bytes: 10, ..Default::default() };
    let long = QueryLimits { max_search_duration: Duration::from_secs(60), ..Default::default() };
    let api = Api::with_own_limits(settings, [("a", long)]);
    let mut client = grpc_client(&api).await;
    let search = |query: &str, limit, spss, end| tempo::SearchRequest {
        query: query.into(),
        limit,
        spans_per_span_set: spss,
        start: 1000,
        end,
        ..Default::default()
    };
    let mut refused = async |message: tempo::SearchRequest| {
        let status = client.search(as_tenant("a", message)).await.unwrap_err();
        (status.code(), status.message().to_owned())
    };
    let invalid = |text: &str| (tonic::Code::InvalidArgument, text.to_owned());
    assert_eq!(refused(search("{}", 0, 0, 1061)).await, invalid("range specified by start and end exceeds 1m0s. received start=1000 end=1061"));
    assert_eq!(refused(search("{}", 262_145, 0, 1060)).await, invalid("limit 262145 exceeds max limit 262144"));
    assert_eq!(refused(search("{}", 0, 101, 1060)).await, invalid("spans per span set exceeds 100. received 101"));
    assert_eq!(refused(search("{ .a = 1 } ", 0, 0, 1060)).await, invalid("TraceQL expression exceeds the configured maximum size of 10 bytes"));
    let slow = tokio::spawn({
        let mut client = grpc_client(&api).await;
        let message = search("{}", 0, 0, 1060);
        async move { client.search(as_tenant("slow", message)).await.is_ok() }
    });
    api.queries.started.notified().await;
    assert_eq!(refused(search("{}", 0, 0, 1060)).await, (tonic::Code::ResourceExhausted, "job queue full".to_owned()));
    assert!(api.metrics().contains("skein_frontend_queries_running 1\n"));
    slow.abort();
    api.queries.dropped.notified().await;

    let settings = FrontendSettings { api_timeout: Duration::from_millis(1), ..Default::default() };
    let api = Api::with(true, settings, QueryLimits::default());
    let late = grpc_client(&api).await.search(as_tenant("slow", search("{}", 0, 0, 1060))).await.unwrap_err();
    let text = "unable to process request in the configured timeout";
    assert_eq!((late.code(), late.message()), (tonic::Code::DeadlineExceeded, text));
    assert!(api.metrics().contains("skein_frontend_queries_running 0\n"), "the query ended with the request");
}

#[tokio::test]
async fn urls_can_be_denied() {
    let settings = FrontendSettings { url_deny_list: vec![r"limit=\d{6}".into()], ..Default::default() };
    let api = Api::with(false, settings, QueryLimits::default());
    api.refused("/api/search?limit=123456", 400, "Invalid request /api/search?limit=123456. This query has been identified").await;
    assert_eq!(api.ask("/api/search?limit=12345", &[]).await.status, 200);
}

#[tokio::test]
async fn wrong_settings_are_refused_with_their_key() {
    let check = |settings: FrontendSettings, part: &str| {
        let error = settings.validate().unwrap_err();
        assert!(error.kind() == ErrorKind::Invalid && error.message().contains(part), "{error}");
    };
    check(FrontendSettings { max_concurrent_queries: 0, ..Default::default() }, "query_frontend.max_concurrent_queries");
    let mut settings = FrontendSettings::default();
    settings.search.default_result_limit = 0;
    check(settings, "query_frontend.search.default_result_limit");
    let mut settings = FrontendSettings::default();
    settings.metrics.max_exemplars = 10_001;
    check(settings, "query_frontend.metrics.max_exemplars must be at most 10000");
    let json = r#"{"search":{"max_duration":"0s","default_result_limit":5},"query_end_cutoff":"30s"}"#;
    let settings: FrontendSettings = serde_json::from_str(json).unwrap();
    assert_eq!((settings.search.default_result_limit, settings.search.max_result_limit), (5, 262_144));
    assert!(serde_json::from_str::<FrontendSettings>(r#"{"serach":{}}"#).is_err());
}

#[tokio::test]
async fn the_process_is_driven_over_http() {
    let api = Api::new();
    api.check("/api/echo", 200, "echo\n").await;
    api.check("/ready", 200, "ready\n").await;
    api.check("/flush", 204, "").await;
    api.check("/flush?tenant=a", 204, "").await;
    api.refused("/flush?tenant=unknown", 404, "tenant unknown").await;
    api.refused("/flush?tenant=a%20b", 400, "unsupported character").await;
    assert_eq!(*api.operations.flushed.lock(), [None, Some(TenantId::parse("a").unwrap())]);
    for path in ["/shutdown", "/ingester/shutdown"] {
        *api.operations.stopping.lock() = false;
        api.check(path, 200, "shutdown job acknowledged").await;
        api.check("/ready", 503, "Application is stopping").await;
    }
}

#[tokio::test]
async fn status_pages_answer() {
    let api = Api::new();
    let build = r#"{"version":"3.1.0","revision":"","branch":"","buildUser":"","buildDate":"","goVersion":""}"#;
    api.check("/api/status/buildinfo", 200, build).await;
    api.check("/status/usage-stats", 200, "usage-stats is not enabled").await;
    api.check("/status/config", 200, "GET /status/config\nmode: Effective\n").await;
    api.check("/status/config?mode=diff", 200, "GET /status/config\nmode: Diff\n").await;
    api.check("/status/config?mode=defaults", 200, "GET /status/config\nmode: Defaults\n").await;
    api.refused("/status/config?mode=all", 500, "mode").await;
    api.check("/status/runtime_config?mode=diff", 200, "GET /status/runtime_config\ndiff: true\n").await;
    api.check("/status/services", 200, &format!("GET /status/services\n{:<24} Running\n", "ingester")).await;
    api.check("/status/nothing", 404, "404 page not found\n").await;
    let all = api.ask("/status", &[]).await;
    assert!(all.content_type.starts_with("text/plain"));
    for section in ["version", "services", "endpoints", "runtime_config", "config"] {
        assert!(all.text().contains(&format!("GET /status/{section}\n")), "{section}");
        assert_eq!(api.ask(&format!("/status/{section}"), &[]).await.status, 200);
    }
    api.refused("/status/overrides/a", 200, "max_bytes_per_trace: 0\n").await;
    let pages = ["/distributor/ring", "/ingester/ring", "/live-store/ring", "/partition-ring", "/memberlist", "/metrics-generator/ring"];
    for page in pages {
        api.refused(page, 200, "one in-memory instance").await;
    }
    assert_eq!(api.ask("/status/backendscheduler", &[]).await.status, 200);
    assert_eq!(api.ask("/ingester/ring", &[("accept", "application/json")]).await.content_type, "application/json");
}

#[tokio::test]
async fn unknown_paths_and_later_features_are_404() {
    let api = Api::new();
    for path in ["/", "/api/mcp", "/api/nothing", "/api/metrics/summary"] {
        api.check(path, 404, "404 page not found\n").await;
    }
}

#[tokio::test]
async fn the_prefix_goes_before_the_api_only() {
    let api = Api::at("/tempo", false, FrontendSettings::default(), QueryLimits::default());
    api.check("/tempo/api/echo", 200, "echo\n").await;
    api.check("/tempo/api/search/tag/error/values", 200, r#"{"tagValues":["true"],"metrics":{}}"#).await;
    api.check("/tempo/status/usage-stats", 200, "usage-stats is not enabled").await;
    api.check("/ready", 200, "ready\n").await;
    assert_eq!(api.ask("/api/echo", &[]).await.status, 404);
}

#[tokio::test]
async fn requests_are_counted_by_route() {
    let api = Api::new();
    api.ask("/api/traces/1", &[]).await;
    api.ask("/api/v2/search/tag/.a/values", &[]).await;
    api.ask("/nothing", &[]).await;
    let metrics = api.ask("/metrics", &[]).await;
    for (route, status) in [("api_traces_traceid", 404), ("api_v2_search_tag_tagname_values", 200), ("notfound", 404)] {
        let line = format!(r#"tempo_request_duration_seconds_count{{method="GET",route="{route}",status_code="{status}",ws="false"}} 1"#);
        assert!(metrics.text().contains(&line), "{line}");
    }
    assert!(metrics.text().contains(r#"tempo_build_info{branch="","#));
    assert!(metrics.text().contains(r#"tempo_inflight_requests{method="GET",route="metrics"} 1"#));
}

#[tokio::test]
async fn one_port_speaks_http_and_grpc_and_stops_gracefully() {
    use tempo::streaming_querier_client::StreamingQuerierClient;
    let api = Api::multi_tenant();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = Arc::new(Notify::new());
    let stopped = stop.clone();
    let grpc = Some(grpc::routes(api.frontend.clone()));
    let options = ServeOptions::of(&api.frontend);
    let router = api.router.clone();
    let server = tokio::spawn(async move { serve(listener, router, grpc, options, async move { stopped.notified().await }).await });

    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"GET /api/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\necho\n"), "{answer}");

    let channel = tonic::transport::Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut client = StreamingQuerierClient::new(channel.clone());
    let with_tenant = |tenant: &str, message| {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("x-scope-orgid", tenant.parse().unwrap());
        request
    };
    let search = |query: &str| tempo::SearchRequest { query: query.into(), start: 10, end: 20, ..Default::default() };
    let mut stream = client.search(with_tenant("a|b", search("{}"))).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().traces[0].trace_id, "abc");
    assert!(stream.message().await.unwrap().is_none());
    assert_eq!(api.queries.asked.lock()[0], "a: search {} limit 20 spss 3 in 10-20");

    let wrong = client.search(with_tenant("a", search("{resource.service.name=article}"))).await.unwrap_err();
    assert_eq!(wrong.code(), tonic::Code::InvalidArgument);
    assert!(wrong.message().starts_with("invalid TraceQL query: "), "{}", wrong.message());
    let long = client.search(with_tenant("a", search(&"x".repeat(131_073)))).await.unwrap_err();
    assert_eq!(long.message(), "TraceQL expression exceeds the configured maximum size of 131072 bytes");
    let missing = client.search(search("{}")).await.unwrap_err();
    assert_eq!((missing.code(), missing.message()), (tonic::Code::Unauthenticated, "no org id"));
    let broken = client.search(with_tenant("broken", search("{}"))).await.unwrap_err();
    assert_eq!((broken.code(), broken.message()), (tonic::Code::Internal, "internal error"));

    let mut request = tonic::Request::new(tempo::SearchTagsRequest { scope: "span".into(), max_tags_per_scope: 2, ..Default::default() });
    request.metadata_mut().insert("x-scope-orgid", "a".parse().unwrap());
    let names = client.search_tags_v2(request).await.unwrap().into_inner().message().await.unwrap().unwrap();
    assert_eq!(names.scopes, [tempo::SearchTagsV2Scope { name: "span".into(), tags: vec!["a".into(), "host".into()] }]);
    let mut request = tonic::Request::new(tempo::SearchTagValuesRequest { tag_name: "app.user.id".into(), ..Default::default() });
    request.metadata_mut().insert("x-scope-orgid", "a".parse().unwrap());
    let refused = client.search_tag_values_v2(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    let mut request = tonic::Request::new(tempo::QueryRangeRequest {
        query: "{}|rate()".into(),
        start: 1_000_000_000_000,
        end: 1_060_000_000_000,
        step: 60_000_000_000,
        exemplars: 9,
        ..Default::default()
    });
    request.metadata_mut().insert("x-scope-orgid", "a".parse().unwrap());
    let metrics = client.metrics_query_range(request).await.unwrap().into_inner().message().await.unwrap().unwrap();
    assert_eq!(
        metrics.series[0].samples,
        [tempo::Sample { value: 0.0, timestamp_ms: 960_000 }, tempo::Sample { value: 1.5, timestamp_ms: 1_020_000 }]
    );
    assert!(api.queries.asked.lock().iter().any(|asked| asked.contains("exemplars 9 by None")));
    let refused = client.metrics_query_instant(tempo::QueryInstantRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);

    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    for service in ["", "tempopb.StreamingQuerier"] {
        let status = health.check(tonic_health::pb::HealthCheckRequest { service: service.into() }).await.unwrap().into_inner().status;
        assert_eq!(status, 1, "{service}");
    }
    let line = r#"tempo_request_duration_seconds_count{method="gRPC",route="/tempopb.StreamingQuerier/Search",status_code="success",ws="false"} 1"#;
    assert!(api.metrics().contains(line));

    let slow = tokio::spawn(async move { client.search(with_tenant("slow", search("{}"))).await.is_err() });
    api.queries.started.notified().await;
    slow.abort();
    api.queries.dropped.notified().await;

    drop(health);
    stop.notify_one();
    tokio::time::timeout(Duration::from_secs(10), server).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
    assert!(api.metrics().contains(r#"tempo_tcp_connections{protocol="http"} 0"#));
}
