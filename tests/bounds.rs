//! What one question may cost, and that nobody works for a client that has gone.

use std::path::Path;
use std::time::{Duration, Instant};

use futures::future;
use serde_json::{Value, json};
use skein_proto::otlp::trace::v1::Span;
use skein_proto::tempo::{QueryRangeRequest, SearchRequest, streaming_querier_client::StreamingQuerierClient};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::harness::{Client, Compression, PATIENCE, Reply, Server, Transport, merge, nothing_is_cut, until, wait};
use crate::otlp::{self, TraceId};
use crate::stalling_store::StallingStore;

const START: u64 = 1_700_000_000_000_000_000;
const SECONDS: (u64, u64) = (1_699_999_000, 1_700_001_000);

fn send(client: &Client, tenant: &str, spans: Vec<Span>) {
    let sent = wait(client.send(Transport::HttpProtobuf, Compression::None, tenant, &otlp::request("shop", spans)));
    sent.unwrap_or_else(|refused| panic!("{refused:?}"));
}

fn metrics(client: &Client) -> String {
    wait(client.get("", "/metrics", &[])).text()
}

/// The value of one series, named as `/metrics` shows it.
fn series(client: &Client, name: &str) -> Option<f64> {
    let text = metrics(client);
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

// Limits of tenants.

/// Writes the file of limits per tenant at once, as a mounted one changes.
fn write_limits(path: &Path, limits: &Value) {
    let new = path.with_extension("new");
    std::fs::write(&new, serde_yaml_ng::to_string(limits).unwrap()).unwrap();
    std::fs::rename(new, path).unwrap();
}

fn search_of(client: &Client, tenant: &str, length: u64) -> Reply {
    let (start, end) = (1000.to_string(), (1000 + length).to_string());
    wait(client.get(tenant, "/api/search", &[("q", "{}"), ("start", &start), ("end", &end)]))
}

#[test]
fn a_tenant_has_its_own_limits_and_they_change_while_the_process_runs() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("overrides.yaml");
    write_limits(
        &file,
        &json!({ "overrides": {
            "scoped": { "read": { "max_search_duration": "1h" }, "ingestion": { "rate_limit_bytes": 1, "burst_size_bytes": 1 } },
            "flat": { "max_search_duration": "2h", "max_bytes_per_trace": 50 },
        } }),
    );
    let overrides = json!({
        "defaults": { "read": { "max_search_duration": "24h" } },
        "per_tenant_override_config": file, "per_tenant_override_period": "50ms",
    });
    let server = Server::start(json!({ "overrides": overrides }));
    let client = server.client();
    let exceeds = |tenant: &str, length: u64, shown: &str| {
        let reply = search_of(client, tenant, length);
        let text = format!("range specified by start and end exceeds {shown}. received start=1000 end={}", 1000 + length);
        assert_eq!((reply.status, reply.text()), (400, text), "{tenant}");
        assert_eq!(search_of(client, tenant, length - 1).status, 200, "{tenant}");
    };
    exceeds("scoped", 3601, "1h0m0s");
    exceeds("flat", 7201, "2h0m0s");
    exceeds("other", 86_401, "24h0m0s");

    let span = || vec![otlp::span([7; 16], 1, 0, "a span whose name is longer than the trace may be", START, 10)];
    let request = otlp::request("shop", span());
    let refused = wait(client.send(Transport::HttpProtobuf, Compression::None, "scoped", &request)).unwrap_err();
    assert!(refused.retryable && refused.reason.contains("RATE_LIMITED"), "{refused:?}");
    send(client, "flat", span());
    send(client, "other", span());
    let trace = format!("/api/traces/{}", otlp::hex(&[7; 16]));
    assert_eq!(wait(client.get("flat", &trace, &[])).status, 422);
    assert_eq!(wait(client.get("other", &trace, &[])).status, 200);

    let status = |path: &str| wait(client.get("", path, &[])).text();
    assert_eq!(status("/status/overrides"), "flat\nscoped\n");
    assert!(status("/status/overrides/scoped").contains("max_search_duration: 1h0m0s"));
    assert!(status("/status/overrides/other").contains("max_search_duration: 24h0m0s"));
    let shown: Value = serde_yaml_ng::from_str(status("/status/runtime_config?mode=diff").split_once('\n').unwrap().1).unwrap();
    assert_eq!(shown["overrides"]["flat"]["global"]["max_bytes_per_trace"], 50);
    assert_eq!(shown["defaults"], json!({ "read": { "max_search_duration": "24h0m0s" } }));

    write_limits(&file, &json!({ "overrides": { "*": { "read": { "max_search_duration": "10m" } } } }));
    until("the new limits", PATIENCE, || search_of(client, "other", 601).status == 400);
    exceeds("scoped", 601, "10m0s");
    send(client, "scoped", span());

    write_limits(&file, &json!({ "overrides": { "*": { "read": { "max_serch_duration": "10h" } } } }));
    until("the broken file to be read", PATIENCE, || client.metric("skein_overrides_reload_failures_total").unwrap() > 0.0);
    assert_eq!(series(client, r#"tempo_runtime_config_last_reload_successful{config="overrides"}"#), Some(0.0));
    exceeds("other", 601, "10m0s");

    write_limits(&file, &json!({ "overrides": {} }));
    until("the good file to be read", PATIENCE, || search_of(client, "other", 601).status == 200);
    assert_eq!(series(client, r#"tempo_runtime_config_last_reload_successful{config="overrides"}"#), Some(1.0));
    exceeds("other", 86_401, "24h0m0s");
}

// Clients that leave.

/// A process whose blocks lie in a store that stalls.
struct Stalled {
    server: Server,
    store: StallingStore,
}

/// Sends a request over a connection of its own.
fn ask(client: &Client, path: &str) -> TcpStream {
    let address = client.addresses.http;
    wait(async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nX-Scope-OrgID: {TENANT}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    })
}

const TENANT: &str = "shop";
const TRACE: TraceId = [9; 16];

impl Stalled {
    /// One query runs at a time.
    fn start() -> Self {
        let mut server = Server::start(json!({ "query_frontend": { "max_concurrent_queries": 1 } }));
        send(server.client(), TENANT, (1..=100).map(|id| otlp::span(TRACE, id, id - 1, "work", START + id, 10)).collect());
        server.client().flush();
        server.stop();
        let store = StallingStore::start(&server.blocks());
        server.configure(store.settings());
        server.restart();
        let stalled = Self { server, store };
        assert!(stalled.answers(), "the store is read");
        stalled
    }

    fn answers(&self) -> bool {
        let reply = wait(self.server.client().search(TENANT, "{}", SECONDS, 3));
        reply.status == 200 && reply.json()["traces"][0]["spanSets"][0]["matched"] == 100
    }

    fn running(&self) -> f64 {
        self.server.client().metric("skein_frontend_queries_running").unwrap()
    }

    fn ask(&self, path: &str) -> TcpStream {
        ask(self.server.client(), path)
    }

    /// Lets `ask` start a query, waits until it reads from the store, lets the client leave, and waits until nothing is left of the query.
    fn check<T>(&self, what: &str, ask: impl FnOnce() -> T, leave: impl FnOnce(T)) {
        self.store.stall(true);
        let asking = ask();
        until("the query to read", PATIENCE, || self.store.waiting() > 0);
        assert_eq!(self.running(), 1.0, "{what}");
        let reads = self.store.reads();
        let left = Instant::now();
        leave(asking);
        until("the reads to end", PATIENCE, || self.store.waiting() == 0);
        println!("{what}: the store saw the end {:?} after the client had left", left.elapsed());
        until("the query to end", PATIENCE, || self.running() == 0.0);
        assert_eq!(self.store.reads(), reads, "{what}: nothing more is read");
        self.store.stall(false);
        assert!(self.answers(), "{what}: the next one has its turn");
    }
}

#[test]
fn a_client_that_leaves_stops_its_query() {
    let stalled = Stalled::start();
    let client = stalled.server.client();
    let window = format!("start={}&end={}", SECONDS.0, SECONDS.1);
    let paths = [
        format!("/api/search?q=%7B%7D&{window}"),
        format!("/api/traces/{}", otlp::hex(&TRACE)),
        format!("/api/v2/traces/{}", otlp::hex(&TRACE)),
        format!("/api/v2/search/tag/name/values?{window}"),
        format!("/api/v2/search/tags?q=%7Bname%3D%22work%22%7D&{window}"),
    ];
    for path in &paths {
        stalled.check(path, || stalled.ask(path), drop);
    }
    let left = r#"tempo_request_duration_seconds_count{method="GET",route="api_search",status_code="499",ws="false"}"#;
    assert_eq!(series(client, left), Some(1.0));

    // The task drops the call and its connection when it is told to.
    let grpc = client.addresses.grpc;
    let call = || {
        let asking = async move {
            let mut querier = StreamingQuerierClient::connect(format!("http://{grpc}")).await.unwrap();
            let message = SearchRequest { query: "{}".into(), start: SECONDS.0 as u32, end: SECONDS.1 as u32, ..Default::default() };
            let mut request = tonic::Request::new(message);
            request.metadata_mut().insert("x-scope-orgid", TENANT.parse().unwrap());
            querier.search(request).await.map(drop)
        };
        wait(future::lazy(|_| tokio::spawn(asking)))
    };
    stalled.check("gRPC", call, |call| call.abort());
    let left = r#"tempo_request_duration_seconds_count{method="gRPC",route="/tempopb.StreamingQuerier/Search",status_code="cancel",ws="false"}"#;
    assert_eq!(series(client, left), Some(1.0));
}

/// The query would compute for a minute without ever waiting for anything: a hundred thousand live spans, thousands of conditions.
#[test]
fn a_client_that_leaves_stops_a_long_computation() {
    const LONGEST: Duration = Duration::from_secs(10);
    let server = Server::start(nothing_is_cut());
    for first in (1..=100_000).step_by(REQUEST_SPANS as usize) {
        send(server.client(), TENANT, (first..first + REQUEST_SPANS).map(|id| large_span(id, 100_000)).collect());
    }
    let Some(before) = server.processor_ticks() else { return };
    let conditions: Vec<String> = (1..=3500).map(|number| format!("duration*{number}=0")).collect();
    let asking = ask(server.client(), &format!("/api/search?q={{{}}}&start={}&end={}", conditions.join("||"), SECONDS.0, SECONDS.1));
    let ticks = || server.processor_ticks().unwrap();
    until("the query to compute", PATIENCE, || ticks() > before + 50);
    drop(asking);
    let (left, at_leaving) = (Instant::now(), ticks());
    until("the threads to rest", LONGEST, || {
        let (used, since) = (ticks(), left.elapsed());
        std::thread::park_timeout(Duration::from_millis(300));
        println!("{} ticks in the {since:?} after the client had left", used - at_leaving);
        ticks() == used
    });
    assert_eq!(server.client().metric("skein_frontend_queries_running"), Some(0.0));
}

#[test]
fn a_client_that_leaves_the_queue_frees_its_place() {
    let stalled = Stalled::start();
    let path = format!("/api/search?q=%7B%7D&start={}&end={}", SECONDS.0, SECONDS.1);
    let length = || series(stalled.server.client(), &format!(r#"tempo_query_frontend_queue_length{{user="{TENANT}"}}"#));
    stalled.check(
        "two queries",
        || {
            let running = stalled.ask(&path);
            until("the first to read", PATIENCE, || stalled.store.waiting() > 0);
            let waiting = stalled.ask(&path);
            until("the second to wait", PATIENCE, || length() == Some(1.0));
            (running, waiting)
        },
        |(running, waiting)| {
            drop(waiting);
            until("the place to be free", PATIENCE, || length() == Some(0.0));
            drop(running);
        },
    );
}

#[test]
fn a_query_ends_at_the_time_limit_and_a_full_queue_turns_away() {
    let mut stalled = Stalled::start();
    stalled.server.stop();
    stalled.server.configure(json!({ "query_frontend": { "max_outstanding_per_tenant": 0 } }));
    stalled.server.restart();
    let client = stalled.server.client();
    stalled.store.stall(true);
    let running = stalled.ask(&format!("/api/traces/{}", otlp::hex(&TRACE)));
    until("the query to read", PATIENCE, || stalled.store.waiting() > 0);
    let refused = wait(client.search(TENANT, "{}", SECONDS, 3));
    assert_eq!((refused.status, refused.text().as_str()), (429, "job queue full"));
    drop(running);

    stalled.server.stop();
    stalled.server.configure(json!({ "query_frontend": { "api_timeout": "200ms" } }));
    stalled.server.restart();
    let client = stalled.server.client();
    let late = wait(client.search(TENANT, "{}", SECONDS, 3));
    assert_eq!((late.status, late.text().as_str()), (503, "unable to process request in the configured timeout"));
    until("the reads to end", PATIENCE, || stalled.store.waiting() == 0);
    assert_eq!(stalled.running(), 0.0);
}

// A large trace.

const LARGE: TraceId = [5; 16];
const REQUEST_SPANS: u64 = 10_000;

/// A root, half of the other spans its children, the other half one below the other.
fn large_span(id: u64, spans: u64) -> Span {
    let half = spans / 2;
    match id {
        1 => otlp::span(LARGE, 1, 0, "root", START, 1),
        id if id <= half => otlp::span(LARGE, id, 1, "wide", START + id, 1),
        id => otlp::span(LARGE, id, if id == half + 1 { 1 } else { id - 1 }, "deep", START + id, 1),
    }
}

/// The pool in which a large trace is answered: for the columns of a row group, and for each span as columns and as a message.
const POOL_BYTES: u64 = 32 << 20;
const POOL_BYTES_PER_SPAN: u64 = 1000;

fn large_trace_size() -> u64 {
    std::env::var("SKEIN_TEST_TRACE_SPANS").map_or(100_000, |text| text.parse().expect("SKEIN_TEST_TRACE_SPANS is a number"))
}

#[test]
fn a_large_trace_is_answered() {
    let spans = large_trace_size();
    let mut settings = nothing_is_cut();
    let pool = (POOL_BYTES + spans * POOL_BYTES_PER_SPAN) as i64;
    merge(&mut settings, json!({ "query_frontend": { "max_memory_bytes": pool, "search": { "max_spans_per_span_set": 100 } } }));
    let mut server = Server::start(settings);
    let requests: Vec<u64> = (0..spans.div_ceil(REQUEST_SPANS)).collect();
    for (sent, at) in requests.iter().rev().enumerate() {
        let ids = at * REQUEST_SPANS + 1..=((at + 1) * REQUEST_SPANS).min(spans);
        send(server.client(), TENANT, ids.map(|id| large_span(id, spans)).collect());
        if sent == requests.len() / 2 {
            // From here on the trace lies in a block and in memory.
            server.client().flush();
        }
    }
    check_large(&server, spans, "block and live");
    server.client().flush();
    check_large(&server, spans, "two blocks");
    server.stop();
    server.restart();
    check_large(&server, spans, "restarted");
}

fn check_large(server: &Server, spans: u64, phase: &str) {
    let client = server.client();
    let (wide, deep) = (spans / 2 - 1, spans - spans / 2);
    let check = |query: &str, matched: u64| {
        let began = Instant::now();
        let reply = wait(client.search(TENANT, query, SECONDS, 3));
        assert_eq!(reply.status, 200, "{phase}: {query}: {}", reply.text());
        println!("{phase}: {query}: {:?}, peak {:?} MiB", began.elapsed(), server.peak_bytes().map(|bytes| bytes >> 20));
        let found = reply.json()["traces"].clone();
        match matched {
            0 => assert_eq!(found, json!([]), "{phase}: {query}"),
            matched => assert_eq!((found.as_array().unwrap().len(), &found[0]["spanSets"][0]["matched"]), (1, &json!(matched)), "{phase}: {query}"),
        }
    };
    check(&format!("{{ }} | count() = {spans}"), spans);
    check(&format!("{{ }} | count() > {spans}"), 0);
    check(r#"{ name = "root" } >> { name = "deep" }"#, deep);
    check(r#"{ name = "deep" } > { name = "deep" }"#, deep - 1);
    check(r#"{ name = "deep" } << { }"#, deep);
    check(r#"{ name = "root" } > { }"#, wide + 1);
    check(r#"{ name = "wide" } ~ { name = "wide" }"#, wide);
    check(r#"{ name = "deep" } !> { name = "deep" }"#, 1);
    check("{ } | by(name) | count() = 1", 1);

    let began = Instant::now();
    let trace = wait(client.trace(TENANT, LARGE)).expect("the trace is known");
    println!("{phase}: the trace as protobuf: {:?}, peak {:?} MiB", began.elapsed(), server.peak_bytes().map(|bytes| bytes >> 20));
    let mut found: Vec<(Vec<u8>, Vec<u8>)> = trace
        .into_iter()
        .flat_map(|resource| resource.scope_spans)
        .flat_map(|scope| scope.spans)
        .map(|span| (span.span_id, span.parent_span_id))
        .collect();
    found.sort_unstable();
    let sent = (1..=spans).map(|id| large_span(id, spans)).map(|span| (span.span_id, span.parent_span_id));
    assert!(found.iter().cloned().eq(sent), "{phase}: every span comes back once");
    for version in ["/api/traces/", "/api/v2/traces/"] {
        let began = Instant::now();
        let reply = wait(client.get(TENANT, &format!("{version}{}", otlp::hex(&LARGE)), &[]));
        println!("{phase}: {version} as JSON: {:?}, peak {:?} MiB", began.elapsed(), server.peak_bytes().map(|bytes| bytes >> 20));
        assert_eq!((reply.status, reply.text().matches("\"spanId\"").count() as u64), (200, spans), "{phase}: {version}");
    }
    until("all memory to be given back", PATIENCE, || client.metric("skein_engine_memory_reserved_bytes") == Some(0.0));
    println!("{phase}: pool: {:?} bytes at the peak", client.metric("skein_engine_memory_peak_bytes"));
    // Measured: some 800 bytes a span while the trace is answered.
    if let Some(peak) = server.peak_bytes() {
        let bound = (192 << 20) + 1200 * spans;
        assert!(peak < bound, "{phase}: {peak} bytes at the peak, more than {bound}");
    }
}

// Memory.

const SMALL_POOL: u64 = 16 << 20;
const OTHER: &str = "other";

fn reserved(client: &Client) -> Option<f64> {
    client.metric("skein_engine_memory_reserved_bytes")
}

#[test]
fn what_is_too_large_for_memory_is_refused_and_everything_else_goes_on() {
    let spans = 50_000;
    let mut settings = nothing_is_cut();
    merge(&mut settings, json!({ "query_frontend": { "max_memory_bytes": SMALL_POOL } }));
    let mut server = Server::start(settings);
    for first in (1..=spans).step_by(REQUEST_SPANS as usize) {
        send(server.client(), TENANT, (first..first + REQUEST_SPANS).map(|id| large_span(id, spans)).collect());
    }
    send(server.client(), OTHER, (1..=20).map(|id| otlp::span(TRACE, id, id - 1, "work", START + id, 10)).collect());
    for phase in ["live", "flushed"] {
        let client = server.client();
        let refused = |path: &str, parameters: &[(&str, &str)], asked: &str| {
            let reply = wait(client.get(TENANT, path, parameters));
            let text = reply.text();
            assert_eq!(reply.status, 429, "{phase}: {path}: {text}");
            assert!(
                text.contains("the memory of queries is full") && text.contains("query_frontend.max_memory_bytes") && text.contains(asked),
                "{text}"
            );
        };
        let before = client.metric("skein_engine_memory_refused_total").unwrap();
        std::thread::scope(|scope| {
            let small = scope.spawn(|| {
                for _ in 0..20 {
                    let reply = wait(client.search(OTHER, r#"{ name = "work" }"#, SECONDS, 3));
                    assert_eq!((reply.status, &reply.json()["traces"][0]["spanSets"][0]["matched"]), (200, &json!(20)), "{phase}: {}", reply.text());
                }
            });
            refused(&format!("/api/traces/{}", otlp::hex(&LARGE)), &[], "trace");
            refused(&format!("/api/v2/traces/{}", otlp::hex(&LARGE)), &[], "trace");
            let (start, end) = (SECONDS.0.to_string(), SECONDS.1.to_string());
            let by_span = [("q", "{} | rate() by (span:id)"), ("start", &*start), ("end", &*end), ("step", "60s")];
            refused("/api/metrics/query_range", &by_span, "series: group by fewer values");
            small.join().unwrap();
        });
        assert!(client.metric("skein_engine_memory_refused_total").unwrap() >= before + 3.0);
        until("all memory to be given back", PATIENCE, || reserved(client) == Some(0.0));
        assert_eq!(client.metric("skein_engine_memory_limit_bytes"), Some(SMALL_POOL as f64));
        assert!(client.metric("skein_engine_memory_peak_bytes").unwrap() <= SMALL_POOL as f64);
        let found = wait(client.search(TENANT, r#"{ name = "root" }"#, SECONDS, 3));
        assert_eq!(
            (found.status, &found.json()["traces"][0]["spanSets"][0]["matched"]),
            (200, &json!(1)),
            "{phase}: a search for little is answered"
        );
        client.flush();
    }

    // The same over gRPC.
    let grpc = server.client().addresses.grpc;
    let status = wait(async move {
        let mut querier = StreamingQuerierClient::connect(format!("http://{grpc}")).await.unwrap();
        let (start, end) = (SECONDS.0 * 1_000_000_000, SECONDS.1 * 1_000_000_000);
        let message = QueryRangeRequest { query: "{} | rate() by (span:id)".into(), start, end, step: 60_000_000_000, ..Default::default() };
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("x-scope-orgid", TENANT.parse().unwrap());
        match querier.metrics_query_range(request).await {
            Err(status) => status,
            Ok(answer) => answer.into_inner().message().await.expect_err("it is refused"),
        }
    });
    assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("query_frontend.max_memory_bytes"), "{status:?}");

    server.stop();
    server.configure(json!({ "query_frontend": { "max_memory_bytes": POOL_BYTES + spans * POOL_BYTES_PER_SPAN } }));
    server.restart();
    let whole = wait(server.client().get(TENANT, &format!("/api/traces/{}", otlp::hex(&LARGE)), &[]));
    assert_eq!((whole.status, whole.text().matches("\"spanId\"").count() as u64), (200, spans));
    until("all memory to be given back", PATIENCE, || reserved(server.client()) == Some(0.0));
}

/// The answer is written while it is sent, so a client that does not read keeps a part of the memory, and one that leaves gives it back.
#[test]
fn a_client_that_leaves_in_the_middle_of_a_large_answer_frees_its_memory() {
    let spans = 100_000;
    let server = Server::start(nothing_is_cut());
    for first in (1..=spans).step_by(REQUEST_SPANS as usize) {
        send(server.client(), TENANT, (first..first + REQUEST_SPANS).map(|id| large_span(id, spans)).collect());
    }
    let client = server.client();
    let asking = ask(client, &format!("/api/traces/{}", otlp::hex(&LARGE)));
    until("the answer to begin", PATIENCE, || wait(asking.readable()).is_ok());
    assert!(reserved(client).unwrap() > 1e6, "the trace is still held");
    assert_eq!(client.metric("skein_frontend_queries_running"), Some(0.0), "its turn is over");
    drop(asking);
    until("all memory to be given back", PATIENCE, || reserved(client) == Some(0.0));
}
