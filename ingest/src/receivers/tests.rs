#![allow(clippy::unwrap_used)]
use std::{io::Write, net::SocketAddr};

use async_trait::async_trait;
use axum::{
    body::{Body, to_bytes},
    http::{self, Method, StatusCode},
};
use parking_lot::Mutex;
use prometheus::Registry;
use prost::Message;
use skein_engine::tenant::TenantId;
use tokio::sync::{Semaphore, oneshot};
use tonic::{
    Code,
    codec::CompressionEncoding,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};
use tower::ServiceExt;

use self::otlp::{ExportTraceServiceRequest, ResourceSpans, ScopeSpans, Span};
use super::{
    otlp_grpc::RawCodec,
    server::{OtlpServer, OtlpSettings},
    status::{RetryInfo, RpcDuration, RpcStatus},
    *,
};
use crate::{
    distributor::{DistributorSettings, monotonic_clock},
    limits::IngestionLimits,
    metrics::Metrics,
    payload::Payload,
    sink::{PushSummary, TraceSink},
};

/// OTLP's structs, for tests that build requests.
pub(super) mod otlp {
    pub(crate) use skein_proto::otlp::{
        collector::trace::v1::ExportTraceServiceRequest,
        trace::v1::{ResourceSpans, ScopeSpans, Span},
    };
}

/// Remembers what it was sent, or fails.
struct Recorder {
    requests: Mutex<Vec<(TenantId, Bytes)>>,
    error: Mutex<Option<Error>>,
    gate: Semaphore,
}

#[async_trait]
impl TraceSink for Recorder {
    async fn push(&self, tenant: &TenantId, payload: Payload) -> Result<PushSummary> {
        drop(self.gate.acquire().await.unwrap());
        if let Some(error) = self.error.lock().take() {
            return Err(error);
        }
        self.requests.lock().push((tenant.clone(), payload.parts().concat().into()));
        Ok(PushSummary { spans: 1, traces: 1 })
    }
}

struct Fixture {
    sink: Arc<Recorder>,
    metrics: Arc<Metrics>,
    grpc: SocketAddr,
    http: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    server: tokio::task::JoinHandle<Result<()>>,
}

async fn serve(multitenancy_enabled: bool) -> Fixture {
    serve_with(OtlpSettings { multitenancy_enabled, ..OtlpSettings::default() }, IngestionLimits::default()).await
}

async fn serve_with(settings: OtlpSettings, limits: IngestionLimits) -> Fixture {
    let sink = Arc::new(Recorder { requests: Mutex::default(), error: Mutex::default(), gate: Semaphore::new(1) });
    let metrics = Arc::new(Metrics::new(&Registry::new()).unwrap());
    let distributor = Distributor::new(sink.clone(), Arc::new(limits), metrics.clone(), DistributorSettings::default(), monotonic_clock());
    let any_port = Some("127.0.0.1:0".to_string());
    let settings = OtlpSettings { grpc_endpoint: any_port.clone(), http_endpoint: any_port, ..settings };
    let server = OtlpServer::bind(settings, Arc::new(distributor)).await.unwrap();
    let (grpc, http) = (server.grpc_address().unwrap(), server.http_address().unwrap());
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(server.serve(async move { drop(stopped.await) }));
    Fixture { sink, metrics, grpc, http, stop: Some(stop), server }
}

impl Fixture {
    fn requests(&self) -> Vec<(String, Bytes)> {
        self.sink.requests.lock().iter().map(|(tenant, request)| (tenant.to_string(), request.clone())).collect()
    }

    fn fail_next(&self, error: Error) {
        *self.sink.error.lock() = Some(error);
    }

    /// A request over HTTP/2, without TLS and upgrade.
    async fn http(&self, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        let uri = format!("http://{}{path}", self.http);
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = tonic::body::Body::new(http_body_util::Full::new(body.into()));
        let response = connect(self.http).await.oneshot(request.body(body).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let header = |name| parts.headers.get(name).map(|value: &http::HeaderValue| value.to_str().unwrap().to_string());
        Answer {
            status: parts.status,
            content_type: header(http::header::CONTENT_TYPE),
            retry_after: header(http::header::RETRY_AFTER),
            body: to_bytes(Body::new(body), usize::MAX).await.unwrap(),
        }
    }

    async fn post(&self, content_type: &str, body: impl Into<Bytes>) -> Answer {
        self.http(Method::POST, "/v1/traces", &[("content-type", content_type)], body).await
    }

    async fn export(&self, message: Vec<u8>, org_ids: &[&str], compression: Option<CompressionEncoding>) -> Result<Bytes, tonic::Status> {
        let mut grpc = tonic::client::Grpc::new(connect(self.grpc).await);
        if let Some(compression) = compression {
            grpc = grpc.send_compressed(compression);
        }
        grpc.ready().await.unwrap();
        let mut request = tonic::Request::new(Bytes::from(message));
        for id in org_ids {
            request.metadata_mut().append("x-scope-orgid", MetadataValue::try_from(*id).unwrap());
        }
        let path = http::uri::PathAndQuery::from_static("/opentelemetry.proto.collector.trace.v1.TraceService/Export");
        grpc.unary(request, path, RawCodec).await.map(tonic::Response::into_inner)
    }
}

#[derive(Debug, PartialEq)]
struct Answer {
    status: StatusCode,
    content_type: Option<String>,
    retry_after: Option<String>,
    body: Bytes,
}

impl Answer {
    fn text(status: u16, content_type: &str, body: &'static [u8]) -> Self {
        Self {
            status: StatusCode::from_u16(status).unwrap(),
            content_type: Some(content_type.into()),
            retry_after: None,
            body: Bytes::from_static(body),
        }
    }

    /// HTTP status, and code and message of the protobuf status in the body.
    fn proto_status(&self) -> (u16, i32, String) {
        assert_eq!(self.content_type.as_deref(), Some(PROTOBUF));
        let status = RpcStatus::decode(self.body.clone()).unwrap();
        (self.status.as_u16(), status.code, status.message)
    }
}

async fn connect(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";

fn request() -> Vec<u8> {
    request_named("GET /")
}

fn request_named(name: &str) -> Vec<u8> {
    let span = Span { trace_id: vec![1; 16], span_id: vec![2; 8], name: name.into(), ..Span::default() };
    let scope_spans = vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }];
    ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }] }.encode_to_vec()
}

fn request_json() -> String {
    format!(
        r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{"traceId":"{}","spanId":"{}","name":"GET /"}}]}}]}}]}}"#,
        "01".repeat(16),
        "02".repeat(8)
    )
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn single(request: Vec<u8>) -> Vec<(String, Bytes)> {
    vec![("single-tenant".into(), request.into())]
}

// --- gRPC ---

#[tokio::test]
async fn grpc_bytes_arrive_as_they_were_sent() {
    for compression in [None, Some(CompressionEncoding::Gzip), Some(CompressionEncoding::Zstd)] {
        let fixture = serve(false).await;
        assert_eq!(fixture.export(request(), &["ignored"], compression).await.unwrap(), &[0x0A, 0][..]);
        assert_eq!(fixture.requests(), single(request()));
        assert_eq!(fixture.metrics.accepted_spans("otlp/otlp_receiver", "grpc").get(), 1);
    }
}

#[tokio::test]
async fn grpc_tenant_comes_from_metadata() {
    let fixture = serve(true).await;
    fixture.export(request(), &["a"], None).await.unwrap();
    assert_eq!(fixture.requests()[0].0, "a");
    let refused = |org_ids: &'static [&'static str]| {
        let fixture = &fixture;
        async move {
            let status = fixture.export(request(), org_ids, None).await.unwrap_err();
            (status.code(), status.message().to_string())
        }
    };
    assert_eq!(refused(&[]).await, (Code::Unavailable, "no org id".into()));
    assert_eq!(refused(&["a", "b"]).await, (Code::Unavailable, "no org id".into()));
    assert_eq!(refused(&["a/b"]).await.0, Code::InvalidArgument);
    assert_eq!(fixture.requests().len(), 1);
}

#[tokio::test]
async fn grpc_request_without_spans_succeeds_without_tenant() {
    let fixture = serve(true).await;
    fixture.export(Vec::new(), &[], None).await.unwrap();
    fixture.export(ExportTraceServiceRequest { resource_spans: vec![ResourceSpans::default()] }.encode_to_vec(), &[], None).await.unwrap();
    assert_eq!(fixture.requests(), []);
}

#[tokio::test]
async fn grpc_message_above_the_limit_is_exhausted_also_when_compressed() {
    let settings = OtlpSettings { grpc_message_bytes_max: 1000, ..OtlpSettings::default() };
    let fixture = serve_with(settings, IngestionLimits::default()).await;
    for compression in [None, Some(CompressionEncoding::Gzip), Some(CompressionEncoding::Zstd)] {
        let status = fixture.export(request_named(&"x".repeat(2000)), &[], compression).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.details().is_empty(), "no retry is promised");
    }
    fixture.export(request(), &[], None).await.unwrap();
}

#[tokio::test]
async fn grpc_default_limit_is_four_mebibytes() {
    let fixture = serve(false).await;
    fixture.export(request_named(&"x".repeat((4 << 20) - 100)), &[], None).await.unwrap();
    assert_eq!(fixture.export(request_named(&"x".repeat(4 << 20)), &[], None).await.unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn grpc_errors_carry_their_code() {
    let fixture = serve(false).await;
    assert_eq!(fixture.export(vec![0x0A, 9], &[], None).await.unwrap_err().code(), Code::InvalidArgument);
    for (error, code) in [
        (Error::invalid("trace ids must be 128 bit, received 8 bits"), Code::InvalidArgument),
        (Error::unavailable("write-ahead log: no space left on device"), Code::Unavailable),
    ] {
        let message = error.message().to_string();
        fixture.fail_next(error);
        let status = fixture.export(request(), &[], None).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (code, message.as_str()));
    }
    assert_eq!(fixture.metrics.refused_spans("otlp/otlp_receiver", "grpc").get(), 2);
}

#[tokio::test]
async fn grpc_retry_info_comes_with_exhausted() {
    let fixture = serve(false).await;
    fixture.fail_next(Error::exhausted("slow down"));
    let status = fixture.export(request(), &[], None).await.unwrap_err();
    let details = RpcStatus::decode(status.details()).unwrap();
    assert_eq!((status.code(), details.code, details.message.as_str()), (Code::ResourceExhausted, 8, "slow down"));
    assert_eq!(details.details[0].type_url, "type.googleapis.com/google.rpc.RetryInfo");
    let retry = RetryInfo::decode(&details.details[0].value[..]).unwrap();
    assert_eq!(retry.retry_delay, Some(RpcDuration { seconds: 5, nanos: 0 }));
}

#[tokio::test]
async fn grpc_unknown_method_is_unimplemented() {
    let fixture = serve(false).await;
    let mut grpc = tonic::client::Grpc::new(connect(fixture.grpc).await);
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/opentelemetry.proto.collector.metrics.v1.MetricsService/Export");
    assert_eq!(grpc.unary(tonic::Request::new(Bytes::new()), path, RawCodec).await.unwrap_err().code(), Code::Unimplemented);
}

// --- HTTP ---

#[tokio::test]
async fn http_protobuf_is_answered_in_protobuf() {
    let fixture = serve(false).await;
    assert_eq!(fixture.post(PROTOBUF, request()).await, Answer::text(200, PROTOBUF, &[0x0A, 0]));
    assert_eq!(fixture.requests(), single(request()));
    assert_eq!(fixture.metrics.accepted_spans("otlp/otlp_receiver", "http").get(), 1);
}

#[tokio::test]
async fn http_json_is_answered_in_json() {
    let fixture = serve(false).await;
    let answer = fixture.post("Application/JSON; charset=utf-8", request_json()).await;
    assert_eq!(answer, Answer::text(200, JSON, br#"{"partialSuccess":{}}"#));
    assert_eq!(fixture.requests(), single(request()));
}

#[tokio::test]
async fn http_one_dot_one_works_on_the_same_port() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let fixture = serve(false).await;
    let body = request();
    let mut connection = tokio::net::TcpStream::connect(fixture.http).await.unwrap();
    let head =
        format!("POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: {PROTOBUF}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.write_all(&body).await.unwrap();
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&answer));
    assert!(answer.ends_with(b"\r\n\r\n\x0A\x00"));
    assert_eq!(fixture.requests(), single(body));
}

#[tokio::test]
async fn http_other_methods_paths_and_media_types() {
    let fixture = serve(false).await;
    let headers = [("content-type", PROTOBUF)];
    for method in [Method::GET, Method::PUT, Method::OPTIONS] {
        let answer = fixture.http(method, "/v1/traces", &headers, "").await;
        assert_eq!(answer, Answer::text(405, "text/plain", b"405 method not allowed, supported: [POST]"));
    }
    let unsupported = || Answer::text(415, "text/plain", b"415 unsupported media type, supported: [application/json, application/x-protobuf]");
    assert_eq!(fixture.post("text/plain", request()).await, unsupported());
    assert_eq!(fixture.post("application/x-protobufx", request()).await, unsupported());
    assert_eq!(fixture.http(Method::POST, "/v1/traces", &[], request()).await, unsupported());
    assert_eq!(fixture.http(Method::POST, "/v1/metrics", &headers, "").await.status, StatusCode::NOT_FOUND);
    assert_eq!(fixture.requests(), []);
}

#[tokio::test]
async fn http_encodings_are_inflated() {
    let fixture = serve(false).await;
    let large = request_named(&"y".repeat(1 << 20));
    for (encoding, body, expected) in [
        ("gzip", gzip(&request()), request()),
        ("zstd", zstd::encode_all(&large[..], 1).unwrap(), large.clone()),
        ("snappy", snap::raw::Encoder::new().compress_vec(&large).unwrap(), large.clone()),
    ] {
        let answer = fixture.http(Method::POST, "/v1/traces", &[("content-type", PROTOBUF), ("content-encoding", encoding)], body).await;
        assert_eq!(answer.status, StatusCode::OK, "{encoding}");
        assert_eq!(fixture.sink.requests.lock().pop().unwrap().1, expected, "{encoding}");
    }
    let headers = [("content-type", JSON), ("content-encoding", "gzip")];
    assert_eq!(fixture.http(Method::POST, "/v1/traces", &headers, gzip(request_json().as_bytes())).await.status, StatusCode::OK);
    assert_eq!(fixture.requests(), single(request()));
}

#[tokio::test]
async fn http_unknown_encoding_and_undecodable_bodies_are_400() {
    let fixture = serve(false).await;
    let headers = [("content-type", PROTOBUF), ("content-encoding", "br")];
    let (status, code, message) = fixture.http(Method::POST, "/v1/traces", &headers, "").await.proto_status();
    assert_eq!((status, code), (400, 3));
    assert!(message.starts_with("unsupported Content-Encoding: br, supported: gzip, zstd"), "{message}");
    let headers = [("content-type", PROTOBUF), ("content-encoding", "gzip")];
    assert_eq!(fixture.http(Method::POST, "/v1/traces", &headers, "not gzip").await.proto_status().0, 400);
    assert_eq!(fixture.post(PROTOBUF, vec![0x0A, 9]).await.proto_status().0, 400);
    let answer = fixture.post(JSON, "{").await;
    assert_eq!((answer.status.as_u16(), answer.content_type.as_deref()), (400, Some(JSON)));
    let status: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(status["code"], 3);
    assert!(status["message"].as_str().unwrap().starts_with("malformed OTLP JSON"));
    assert_eq!(fixture.requests(), []);
}

/// Tempo's answer; 413 would say it better.
#[tokio::test]
async fn http_body_above_the_limit_is_400_compressed_or_not() {
    let settings = OtlpSettings { http_body_bytes_max: 10_000, ..OtlpSettings::default() };
    let fixture = serve_with(settings, IngestionLimits::default()).await;
    let too_large = request_named(&"x".repeat(10_000));
    let expected = (400, 3, "http: request body too large".to_string());
    assert_eq!(fixture.post(PROTOBUF, too_large.clone()).await.proto_status(), expected);
    let headers = [("content-type", PROTOBUF), ("content-encoding", "gzip")];
    assert_eq!(fixture.http(Method::POST, "/v1/traces", &headers, gzip(&too_large)).await.proto_status(), expected);
    let bomb = gzip(&vec![0; 50 << 20]);
    assert!(bomb.len() > 10_000, "above the limit already while compressed");
    assert_eq!(fixture.http(Method::POST, "/v1/traces", &headers, bomb).await.proto_status(), expected);
    fixture.post(PROTOBUF, request()).await;
    assert_eq!(fixture.requests(), single(request()));
}

#[tokio::test]
async fn http_default_limit_is_twenty_mebibytes() {
    let fixture = serve(false).await;
    assert_eq!(fixture.post(PROTOBUF, request_named(&"x".repeat((20 << 20) - 100))).await.status, StatusCode::OK);
    assert_eq!(fixture.post(PROTOBUF, request_named(&"x".repeat(20 << 20))).await.status, StatusCode::BAD_REQUEST);
}

/// Tempo's answer on the write path; elsewhere it is 401.
#[tokio::test]
async fn http_missing_tenant_is_503() {
    let fixture = serve(true).await;
    assert_eq!(fixture.post(PROTOBUF, request()).await.proto_status(), (503, 14, "no org id".into()));
    let answer = fixture.post(JSON, request_json()).await;
    assert_eq!(answer.body, &br#"{"code":14,"message":"no org id"}"#[..]);
    let with = |id| [("content-type", PROTOBUF), ("X-Scope-OrgID", id)];
    assert_eq!(fixture.http(Method::POST, "/v1/traces", &with("a/b"), request()).await.proto_status().0, 400);
    assert_eq!(fixture.http(Method::POST, "/v1/traces", &with("team-a"), request()).await.status, StatusCode::OK);
    assert_eq!(fixture.requests()[0].0, "team-a");
}

#[tokio::test]
async fn http_empty_requests_succeed_without_tenant() {
    let fixture = serve(true).await;
    assert_eq!(fixture.post(PROTOBUF, "").await, Answer::text(200, PROTOBUF, &[0x0A, 0]));
    assert_eq!(fixture.post(JSON, "{}").await, Answer::text(200, JSON, br#"{"partialSuccess":{}}"#));
}

#[tokio::test]
async fn http_rate_limit_is_429_with_retry_after_where_it_is_switched_on() {
    for (retry_info_enabled, retry_after) in [(true, Some("5".to_string())), (false, None)] {
        let limits = IngestionLimits { rate_limit_bytes: 1, burst_size_bytes: 1, retry_info_enabled };
        let fixture = serve_with(OtlpSettings::default(), limits).await;
        let answer = fixture.post(PROTOBUF, request()).await;
        assert_eq!(answer.retry_after, retry_after);
        let (status, code, message) = answer.proto_status();
        assert_eq!((status, code), (429, 8));
        assert!(message.starts_with("RATE_LIMITED: batch size"), "{message}");
        let json: serde_json::Value = serde_json::from_slice(&fixture.post(JSON, request_json()).await.body).unwrap();
        assert_eq!(json["details"][0]["retryDelay"].as_str(), retry_info_enabled.then_some("5s"));
    }
}

#[tokio::test]
async fn http_full_disk_is_503_without_retry_after() {
    let fixture = serve(false).await;
    fixture.fail_next(Error::unavailable("write-ahead log: no space left on device"));
    let answer = fixture.post(PROTOBUF, request()).await;
    assert_eq!(answer.retry_after, None);
    assert_eq!(answer.proto_status().0, 503);
}

// --- Stopping and starting ---

#[tokio::test]
async fn stop_answers_what_is_under_way_and_takes_no_more() {
    let mut fixture = serve(false).await;
    let held = fixture.sink.gate.acquire().await.unwrap();
    let mut grpc = tonic::client::Grpc::new(connect(fixture.grpc).await);
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/opentelemetry.proto.collector.trace.v1.TraceService/Export");
    let under_way = tokio::spawn(async move { grpc.unary(tonic::Request::new(Bytes::from(request())), path, RawCodec).await });
    while fixture.metrics.inflight_bytes.get() == 0 {
        tokio::task::yield_now().await;
    }
    fixture.stop.take().unwrap().send(()).unwrap();
    tokio::task::yield_now().await;
    assert!(!fixture.server.is_finished());
    drop(held);
    under_way.await.unwrap().unwrap();
    (&mut fixture.server).await.unwrap().unwrap();
    assert_eq!(fixture.requests().len(), 1);
    assert!(tokio::net::TcpStream::connect(fixture.grpc).await.is_err());
    assert!(tokio::net::TcpStream::connect(fixture.http).await.is_err());
}

#[tokio::test]
async fn stop_does_not_wait_for_ever() {
    let settings = OtlpSettings { stop_timeout: Duration::from_millis(10), ..OtlpSettings::default() };
    let mut fixture = serve_with(settings, IngestionLimits::default()).await;
    let sink = fixture.sink.clone();
    let _held = sink.gate.acquire().await.unwrap();
    let address = fixture.http;
    let stuck = tokio::spawn(async move {
        let request = http::Request::post(format!("http://{address}/v1/traces")).header("content-type", PROTOBUF);
        let body = tonic::body::Body::new(http_body_util::Full::new(Bytes::from(request_named("stuck"))));
        connect(address).await.oneshot(request.body(body).unwrap()).await
    });
    while fixture.metrics.inflight_bytes.get() == 0 {
        tokio::task::yield_now().await;
    }
    fixture.stop.take().unwrap().send(()).unwrap();
    (&mut fixture.server).await.unwrap().unwrap();
    stuck.abort();
}

#[tokio::test]
async fn taken_port_is_named() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = taken.local_addr().unwrap().to_string();
    let sink = Arc::new(Recorder { requests: Mutex::default(), error: Mutex::default(), gate: Semaphore::new(1) });
    let metrics = Arc::new(Metrics::new(&Registry::new()).unwrap());
    let limits = Arc::new(IngestionLimits::default());
    let distributor = Arc::new(Distributor::new(sink, limits, metrics, DistributorSettings::default(), monotonic_clock()));
    let settings = OtlpSettings { grpc_endpoint: Some(endpoint.clone()), http_endpoint: None, ..OtlpSettings::default() };
    let error = OtlpServer::bind(settings, distributor).await.err().unwrap();
    assert!(error.message().contains(&endpoint), "{error}");
}
