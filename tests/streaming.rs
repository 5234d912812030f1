//! Answers in parts over gRPC. A store that holds one block back keeps a query in the middle, so that what comes before the end does not depend on
//! how fast anything is.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use prost::Message;
use serde_json::{Value, json};
use skein_proto::otlp::common::v1::any_value;
use skein_proto::otlp::trace::v1::Span;
use skein_proto::tempo::streaming_querier_client::StreamingQuerierClient;
use skein_proto::tempo::{
    QueryInstantRequest, QueryRangeRequest, QueryRangeResponse, SearchRequest, SearchResponse, SearchTagValuesRequest, SearchTagsRequest, TagValue,
    TimeSeries,
};
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::harness::{Compression, PATIENCE, Server, Transport, merge, nothing_is_cut, spawn, until, wait};
use crate::otlp;
use crate::stalling_store::StallingStore;
use crate::tools::{or_skip, python, run_python};

const TENANT: &str = "shop";
/// Traces of the older block begin here, those of the newer one ten minutes later.
const OLD: u64 = 1_700_000_000;
const NEW: u64 = OLD + 600;
const SECONDS: (u32, u32) = (OLD as u32 - 60, NEW as u32 + 600);
const TRACES: u64 = 5;
/// Finds everything, and has to read it.
const QUERY: &str = "{ name != `other` }";

fn nanos(seconds: u64) -> u64 {
    seconds * 1_000_000_000
}

/// Parts as often as something was read, and everything is read each time.
fn parts_at_once() -> Value {
    let metrics = json!({ "partial_cache_bytes": 0 });
    json!({ "query_frontend": { "stream_first_after": "0s", "stream_interval": "0s", "metrics": metrics }, "compactor": { "compaction": { "compaction_cycle": "24h" } } })
}

/// A process over a store with two blocks, of which the older one can be held back.
struct Held {
    server: Server,
    store: StallingStore,
    old_block: String,
}

fn traces(start: u64, name: &str) -> Vec<Span> {
    let trace = |number: u64| otlp::span(u128::from(start + number).to_be_bytes(), number + 1, 0, name, nanos(start + number * 30), 1_000_000_000);
    (0..TRACES).map(trace).collect()
}

fn send(server: &Server, spans: Vec<Span>) {
    wait(server.client().send(Transport::Grpc, Compression::None, TENANT, &otlp::request("shop", spans))).unwrap();
}

fn block_names(server: &Server) -> Vec<String> {
    let folder = server.blocks().join(TENANT);
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    names.filter(|entry| entry.path().join("data.parquet").exists()).map(|entry| entry.file_name().into_string().unwrap()).collect()
}

impl Held {
    fn start() -> Self {
        let mut settings = nothing_is_cut();
        merge(&mut settings, parts_at_once());
        let mut server = Server::start(settings);
        send(&server, traces(OLD, "old"));
        server.client().flush();
        let [old_block] = <[String; 1]>::try_from(block_names(&server)).unwrap();
        send(&server, traces(NEW, "new"));
        server.client().flush();
        assert_eq!(block_names(&server).len(), 2);
        server.stop();
        let store = StallingStore::start(&server.blocks());
        server.configure(store.settings());
        server.restart();
        let held = Self { server, store, old_block };
        // Everything but spans is in memory from here on.
        assert_eq!(held.http_search().traces.len() as u64, 2 * TRACES);
        held
    }

    fn hold(&self) {
        self.store.stall_block(&self.old_block);
    }

    fn running(&self) -> f64 {
        self.server.client().metric("skein_frontend_queries_running").unwrap()
    }

    fn ports(&self) -> [SocketAddr; 2] {
        [self.server.client().addresses.http, self.server.client().addresses.grpc]
    }

    fn http(&self, path: &str, params: &[(&str, &str)]) -> crate::harness::Reply {
        let (start, end) = (SECONDS.0.to_string(), SECONDS.1.to_string());
        let params: Vec<(&str, &str)> = params.iter().copied().chain([("start", start.as_str()), ("end", end.as_str())]).collect();
        let headers = [("X-Scope-OrgID", TENANT), ("Accept", "application/protobuf")];
        let reply = wait(self.server.client().request("GET", path, &params, &headers, Vec::new()));
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        reply
    }

    fn http_search(&self) -> SearchResponse {
        SearchResponse::decode(self.http("/api/search", &[("q", QUERY), ("limit", "20")]).body).unwrap()
    }
}

type Querier = StreamingQuerierClient<Channel>;

async fn querier(port: SocketAddr) -> Querier {
    StreamingQuerierClient::connect(format!("http://{port}")).await.unwrap()
}

fn of_tenant<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("x-scope-orgid", TENANT.parse().unwrap());
    request
}

fn search_request() -> SearchRequest {
    SearchRequest { query: QUERY.into(), start: SECONDS.0, end: SECONDS.1, limit: 20, ..Default::default() }
}

fn range_request(query: &str) -> QueryRangeRequest {
    let step = nanos(60);
    QueryRangeRequest { query: query.into(), start: nanos(SECONDS.0.into()), end: nanos(SECONDS.1.into()), step, ..Default::default() }
}

async fn rest<T>(mut stream: Streaming<T>) -> Vec<T> {
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        messages.push(message);
    }
    messages
}

/// The message that comes while the older block is held back, and the last one, after it was let go.
fn first_and_last<T>(held: &Held, ask: impl AsyncFnOnce() -> Result<tonic::Response<Streaming<T>>, Status>) -> (T, T) {
    held.hold();
    let (first, stream) = wait(async {
        let mut stream = ask().await.unwrap().into_inner();
        (stream.message().await.unwrap().expect("a part"), stream)
    });
    until("the query to read the older block", PATIENCE, || held.store.waiting() > 0);
    assert_eq!(held.running(), 1.0);
    held.store.stall(false);
    let last = wait(rest(stream)).pop().expect("the whole answer");
    (first, last)
}

#[test]
fn what_is_certain_comes_while_older_spans_are_still_read() {
    let held = Held::start();
    for port in held.ports() {
        let (part, whole) = first_and_last(&held, async || querier(port).await.search(of_tenant(search_request())).await);
        let expected = held.http_search();
        assert_eq!(whole.traces, expected.traces);
        assert_eq!(part.traces, expected.traces[..TRACES as usize], "the newest come first");
        let (progress, end) = (part.metrics.unwrap(), whole.metrics.unwrap());
        assert_eq!((progress.completed_jobs, progress.total_jobs), (1, 2));
        assert_eq!((end.completed_jobs, end.total_jobs, end.inspected_spans), (2, 2, expected.metrics.unwrap().inspected_spans));

        let query = "{ } | count_over_time() by (name)";
        let (part, whole) = first_and_last(&held, async || querier(port).await.metrics_query_range(of_tenant(range_request(query))).await);
        let reply = held.http("/api/metrics/query_range", &[("q", query), ("step", "60s"), ("exemplars", "0")]);
        assert_eq!(samples_of(&whole), samples_in_json(&serde_json::from_slice(&reply.body).unwrap()));
        check_range_part(&part, &whole);

        // Values are told apart by all of them: before the end there is only how far it is.
        let request = range_request("{ } | compare({ name = \"new\" })");
        let (part, whole) = first_and_last(&held, async || querier(port).await.metrics_query_range(of_tenant(request)).await);
        let (progress, end) = (part.metrics.unwrap(), whole.metrics.unwrap());
        assert_eq!((part.series.len(), progress.completed_jobs, progress.total_jobs), (0, 1, 2));
        assert_eq!((whole.series.is_empty(), end.completed_jobs, end.total_jobs), (false, 2, 2));

        let names = |values: &[TagValue]| values.iter().map(|value| value.value.clone()).collect::<Vec<_>>();
        let request = || SearchTagValuesRequest { tag_name: "name".into(), start: SECONDS.0, end: SECONDS.1, ..Default::default() };
        let (part, whole) = first_and_last(&held, async || querier(port).await.search_tag_values_v2(of_tenant(request())).await);
        assert_eq!((names(&part.tag_values), names(&whole.tag_values)), (vec!["new".into()], vec!["new".into(), "old".into()]));
        let (part, whole) = first_and_last(&held, async || querier(port).await.search_tag_values(of_tenant(request())).await);
        assert_eq!((part.tag_values, whole.tag_values), (vec!["new".into()], vec!["new".into(), "old".into()]));

        let request = SearchTagsRequest { query: "{ duration > 0s }".into(), start: SECONDS.0, end: SECONDS.1, ..Default::default() };
        let (part, whole) = first_and_last(&held, async || querier(port).await.search_tags_v2(of_tenant(request)).await);
        assert_eq!(part.scopes.iter().map(|scope| scope.name.as_str()).collect::<Vec<_>>(), ["resource"]);
        assert!(whole.scopes.len() > part.scopes.len() && whole.scopes[..1] == part.scopes[..]);
    }
}

/// By the first label: times and values.
type Samples = Vec<(String, Vec<(i64, f64)>)>;

fn samples_of(answer: &QueryRangeResponse) -> Samples {
    let name = |series: &TimeSeries| match series.labels[0].value.as_ref().and_then(|value| value.value.clone()) {
        Some(any_value::Value::StringValue(name)) => name,
        other => panic!("{other:?}"),
    };
    let samples = |series: &TimeSeries| series.samples.iter().map(|sample| (sample.timestamp_ms, sample.value)).collect();
    answer.series.iter().map(|series| (name(series), samples(series))).collect()
}

fn samples_in_json(answer: &Value) -> Samples {
    let sample = |sample: &Value| (sample["timestampMs"].as_str().unwrap().parse().unwrap(), sample["value"].as_f64().unwrap_or_default());
    let series = |series: &Value| {
        let name = series["labels"][0]["value"]["stringValue"].as_str().unwrap().to_owned();
        (name, series["samples"].as_array().unwrap().iter().map(sample).collect())
    };
    answer["series"].as_array().unwrap().iter().map(series).collect()
}

/// A part has the samples of the last minutes, and those as they are in the whole.
fn check_range_part(part: &QueryRangeResponse, whole: &QueryRangeResponse) {
    let [series] = part.series.as_slice() else { panic!("only spans of one name were read: {:?}", part.series) };
    let whole = whole.series.iter().find(|other| other.labels == series.labels).expect("the series is in the whole");
    let told = series.samples.len();
    assert_eq!(series.samples, whole.samples[whole.samples.len() - told..]);
    // The older traces end at 121 seconds; the intervals after these are complete.
    let complete = |stamp: i64| stamp >= (OLD as i64 + 121 + 60) * 1000;
    assert_eq!(whole.samples.iter().filter(|sample| complete(sample.timestamp_ms)).count(), told);
    assert_eq!(series.samples.iter().map(|sample| sample.value).sum::<f64>(), TRACES as f64);
}

#[test]
fn a_client_that_leaves_in_the_middle_stops_the_query() {
    let held = Held::start();
    held.hold();
    let check = |what: &str, stream: Box<dyn std::any::Any>| {
        until("the query to read the older block", PATIENCE, || held.store.waiting() > 0);
        assert_eq!(held.running(), 1.0, "{what}");
        let (reads, left) = (held.store.reads(), Instant::now());
        wait(async { drop(stream) });
        until("the reads to end", PATIENCE, || held.store.waiting() == 0);
        println!("{what}: the store saw the end {:?} after the client had left", left.elapsed());
        until("the query to end", PATIENCE, || held.running() == 0.0);
        assert_eq!(held.store.reads(), reads, "{what}: nothing more is read");
    };
    for port in held.ports() {
        check("search", wait(async { Box::new(taken(querier(port).await.search(of_tenant(search_request())).await).await) }));
        let request = of_tenant(range_request("{ } | rate()"));
        check("range", wait(async { Box::new(taken(querier(port).await.metrics_query_range(request).await).await) }));
        let request = QueryInstantRequest { query: "{ } | rate()".into(), start: nanos(SECONDS.0.into()), end: nanos(SECONDS.1.into()) };
        check("instant", wait(async { Box::new(taken(querier(port).await.metrics_query_instant(of_tenant(request)).await).await) }));
    }
}

/// The queries would compute for a minute without ever waiting for anything: many live spans, thousands of conditions.
#[test]
fn a_client_that_leaves_stops_a_computing_query() {
    const SPANS: u64 = 60_000;
    const REQUEST_SPANS: u64 = 10_000;
    let server = Server::start(nothing_is_cut());
    for first in (0..SPANS).step_by(REQUEST_SPANS as usize) {
        let span = |number: u64| otlp::span(u128::from(number / 10 + 1).to_be_bytes(), number + 1, 0, "work", nanos(OLD) + number, 10);
        send(&server, (first..first + REQUEST_SPANS).map(span).collect());
    }
    if server.processor_ticks().is_none() {
        return;
    }
    let grpc = server.client().addresses.grpc;
    let conditions: Vec<String> = (1..=3500).map(|number| format!("duration*{number}=0")).collect();
    let query = format!("{{{}}}", conditions.join("||"));
    let search = of_tenant(SearchRequest { query: query.clone(), ..search_request() });
    let range = of_tenant(range_request(&format!("{query} | rate()")));
    check_computing(&server, "search", async move { to_the_end(querier(grpc).await.search(search).await?).await });
    check_computing(&server, "range", async move { to_the_end(querier(grpc).await.metrics_query_range(range).await?).await });
}

/// Takes all messages: a stream that is dropped stops its query.
async fn to_the_end<T>(answer: tonic::Response<Streaming<T>>) -> Result<(), Status> {
    let mut stream = answer.into_inner();
    while stream.message().await?.is_some() {}
    Ok(())
}

/// Starts a call, lets the client leave while it computes, and waits until nothing does.
fn check_computing(server: &Server, what: &str, call: impl Future<Output = Result<(), Status>> + Send + 'static) {
    const LONGEST: Duration = Duration::from_secs(10);
    let ticks = || server.processor_ticks().unwrap();
    let before = ticks();
    let task = spawn(call);
    until("the query to compute", PATIENCE, || ticks() > before + 50);
    assert!(!task.is_finished(), "{what}");
    task.abort();
    let left = Instant::now();
    let (mut used, mut worked) = (ticks(), Duration::ZERO);
    until("the threads to rest", LONGEST, || {
        if ticks() > used {
            (used, worked) = (ticks(), left.elapsed());
        }
        left.elapsed() > worked + Duration::from_millis(300)
    });
    println!("{what}: the threads worked for {worked:?} after the client had left");
    assert_eq!(server.client().metric("skein_frontend_queries_running"), Some(0.0), "{what}");
}

/// The stream after its first message.
async fn taken<T>(answer: Result<tonic::Response<Streaming<T>>, Status>) -> Streaming<T> {
    let mut stream = answer.unwrap().into_inner();
    stream.message().await.unwrap().expect("a part");
    stream
}

#[test]
fn a_quick_answer_is_one_message_and_a_large_one_comes_in_packets() {
    let settings = json!({ "query_frontend": { "stream_first_after": "1h", "max_grpc_streaming_packet_size": 400 } });
    let server = Server::start(settings);
    send(&server, traces(OLD, "old"));
    let grpc = server.client().addresses.grpc;
    let search = |limit| {
        wait(async { rest(querier(grpc).await.search(of_tenant(SearchRequest { limit, ..search_request() })).await.unwrap().into_inner()).await })
    };
    assert_eq!(search(1).len(), 1);
    let packets = search(20);
    assert!(packets.len() > 1 && packets.iter().all(|packet| packet.encoded_len() <= 400 && packet.metrics == packets[0].metrics));
    assert_eq!(packets.iter().map(|packet| packet.traces.len()).sum::<usize>() as u64, TRACES);
}

/// Blocks that the bundled dataset is cut into: each is at least one row group.
const BLOCKS: usize = 6;
const DATASET: &str = "onlineboutique";

#[test]
fn a_python_client_streams_what_http_answers() {
    let Some(python) = or_skip("streaming to Python", python()) else { return };
    let mut settings = nothing_is_cut();
    merge(&mut settings, parts_at_once());
    // The last message is the whole answer.
    merge(&mut settings, json!({ "query_frontend": { "max_grpc_streaming_packet_size": 0 } }));
    let server = Server::start(settings);
    let requests: Vec<_> = otlp::requests(DATASET).collect();
    for some in requests.chunks(requests.len().div_ceil(BLOCKS)) {
        for request in some {
            wait(server.client().send(Transport::Grpc, Compression::None, TENANT, request)).unwrap();
        }
        server.client().flush();
    }
    let spans =
        || requests.iter().flat_map(|request| &request.resource_spans).flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans);
    let start = spans().map(|span| span.start_time_unix_nano).min().unwrap() / 1_000_000_000;
    let end = spans().map(|span| span.end_time_unix_nano).max().unwrap() / 1_000_000_000 + 1;
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/proto");
    let (http, start, end) = (server.client().addresses.http.to_string(), start.to_string(), end.to_string());
    let told = run_python(&python, include_str!("streaming.py"), &[proto.to_str().unwrap(), &http, TENANT, &start, &end]);
    println!("{told}");
    assert!(told.ends_with("all equal\n"), "{told}");
}
