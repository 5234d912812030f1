//! What the OTLP receivers refuse, and that what they accept comes back as it was sent.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use prost::Message;
use serde_json::json;
use skein_proto::otlp::collector::trace::v1::ExportTraceServiceRequest;
use skein_proto::otlp::common::v1::{AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList, any_value::Value};
use skein_proto::otlp::resource::v1::Resource;
use skein_proto::otlp::trace::v1::span::{Event, Link};
use skein_proto::otlp::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};

use crate::harness::{self, Client, Compression, Server, Transport, gzip, wait};
use crate::otlp::{self, TraceId, assert_same, attribute, of_value, text};

const TENANT: &str = "received";
const START: u64 = 1_650_000_000_000_000_000;
const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";
const TRANSPORTS: [Transport; 3] = [Transport::Grpc, Transport::HttpProtobuf, Transport::HttpJson];

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

const INVALID_ARGUMENT: i32 = 3;

fn good() -> ExportTraceServiceRequest {
    otlp::request("good", vec![otlp::span([7; 16], 1, 0, "work", START, 10)])
}

fn with_ids(trace: &[u8], span: &[u8]) -> ExportTraceServiceRequest {
    let mut request = good();
    let only = &mut request.resource_spans[0].scope_spans[0].spans[0];
    (only.trace_id, only.span_id) = (trace.to_vec(), span.to_vec());
    request
}

/// One line of the table: headers and body, and the statuses that are right.
fn check_post(client: &Client, what: &str, headers: &[(&str, &str)], body: Vec<u8>, statuses: &[u16]) -> harness::Reply {
    let mut all = vec![("X-Scope-OrgID", TENANT)];
    all.extend_from_slice(headers);
    let reply = wait(client.post(&all, body)).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(statuses.contains(&reply.status), "{what}: expected {statuses:?}, found {} {}", reply.status, reply.text());
    reply
}

#[test]
fn bad_http_requests_are_refused_with_the_right_status() {
    let server = Server::start(json!({}));
    let client = server.client();
    let body = good().encode_to_vec();
    let check = |what: &str, headers: &[(&str, &str)], body: Vec<u8>, statuses: &[u16]| check_post(client, what, headers, body, statuses);

    check("no content type", &[], body.clone(), &[415]);
    check("content type of text", &[("Content-Type", "text/plain")], body.clone(), &[415]);
    check("content type of another protobuf", &[("Content-Type", "application/protobuf")], body.clone(), &[415]);
    check("garbage as protobuf", &[("Content-Type", PROTOBUF)], b"\xFF\xFF\xFFgarbage".to_vec(), &[400]);
    check("protobuf that ends early", &[("Content-Type", PROTOBUF)], body[..body.len() - 3].to_vec(), &[400]);
    check("garbage as JSON", &[("Content-Type", JSON)], b"{\"resourceSpans\": [".to_vec(), &[400]);
    check("JSON of another shape", &[("Content-Type", JSON)], b"{\"resourceSpans\": 5}".to_vec(), &[400]);
    check("protobuf as JSON", &[("Content-Type", JSON)], body.clone(), &[400]);

    let packed = gzip(&body);
    check("gzip that ends early", &[("Content-Type", PROTOBUF), ("Content-Encoding", "gzip")], packed[..packed.len() - 6].to_vec(), &[400]);
    check("plain body said to be gzip", &[("Content-Type", PROTOBUF), ("Content-Encoding", "gzip")], body.clone(), &[400]);
    let packed = zstd::encode_all(body.as_slice(), 1).unwrap();
    check("zstd that ends early", &[("Content-Type", PROTOBUF), ("Content-Encoding", "zstd")], packed[..packed.len() - 4].to_vec(), &[400]);
    check("unknown encoding", &[("Content-Type", PROTOBUF), ("Content-Encoding", "br")], body.clone(), &[400]);

    // The limit of 20 MiB holds for the body on the wire and for what it unpacks to.
    let mut large = good();
    large.resource_spans[0].scope_spans[0].spans[0].attributes = vec![attribute("large", Value::BytesValue(vec![1; 21 << 20]))];
    check("body over the limit", &[("Content-Type", PROTOBUF)], large.encode_to_vec(), &[400, 413]);
    check("body that unpacks over the limit", &[("Content-Type", PROTOBUF), ("Content-Encoding", "gzip")], gzip(&large.encode_to_vec()), &[400, 413]);

    for (what, trace, span) in [
        ("trace id of 15 bytes", &[1; 15][..], &[1; 8][..]),
        ("trace id of 17 bytes", &[1; 17], &[1; 8]),
        ("no trace id", &[], &[1; 8]),
        ("span id of 7 bytes", &[1; 16], &[1; 7]),
        ("span id of 9 bytes", &[1; 16], &[1; 9]),
        ("no span id", &[1; 16], &[]),
    ] {
        let request = with_ids(trace, span);
        check(&format!("{what}, protobuf"), &[("Content-Type", PROTOBUF)], request.encode_to_vec(), &[400]);
        check(&format!("{what}, JSON"), &[("Content-Type", JSON)], crate::otlp_json::encode(&request).into_bytes(), &[400]);
    }

    for method in ["GET", "PUT", "DELETE"] {
        let reply =
            wait(client.try_request(client.addresses.otlp_http, method, "/v1/traces", &[], &[("X-Scope-OrgID", TENANT)], Vec::new())).unwrap();
        assert_eq!((reply.status, reply.text().trim()), (405, "405 method not allowed, supported: [POST]"), "{method}");
    }
    let headers = [("X-Scope-OrgID", TENANT), ("Content-Type", PROTOBUF)];
    let reply = wait(client.try_request(client.addresses.otlp_http, "POST", "/v1/metrics", &[], &headers, Vec::new())).unwrap();
    assert_eq!(reply.status, 404, "there is no receiver of metrics");

    assert_eq!(wait(client.get(TENANT, "/ready", &[])).status, 200, "the process is well after all this");
    assert!(wait(client.trace(TENANT, [1; 16])).is_none(), "nothing of a refused request is kept");
}

#[test]
fn errors_are_told_in_the_encoding_of_the_request() {
    let server = Server::start(json!({}));
    let request = with_ids(&[1; 15], &[1; 8]);
    let reply = check_post(server.client(), "protobuf", &[("Content-Type", PROTOBUF)], request.encode_to_vec(), &[400]);
    let status = RpcStatus::decode(reply.body.clone()).unwrap();
    assert_eq!((reply.header("content-type"), status.code), (PROTOBUF, INVALID_ARGUMENT));
    assert!(status.message.contains("120 bit"), "the message names what was received: {}", status.message);
    let reply = check_post(server.client(), "JSON", &[("Content-Type", JSON)], crate::otlp_json::encode(&request).into_bytes(), &[400]);
    assert_eq!((reply.header("content-type"), reply.json()["code"].as_i64()), (JSON, Some(i64::from(INVALID_ARGUMENT))));
}

#[test]
fn good_http_requests_are_accepted_in_every_encoding() {
    let server = Server::start(json!({}));
    let client = server.client();
    let body = good().encode_to_vec();
    let accepted_protobuf = |what: &str, headers: &[(&str, &str)], body: Vec<u8>| {
        let reply = check_post(client, what, headers, body, &[200]);
        assert_eq!((reply.header("content-type"), &reply.body[..]), (PROTOBUF, &[0x0A, 0x00][..]), "{what}");
    };
    let accepted_json = |what: &str, headers: &[(&str, &str)], body: &str| {
        let reply = check_post(client, what, headers, body.as_bytes().to_vec(), &[200]);
        assert_eq!((reply.header("content-type"), reply.text().as_str()), (JSON, r#"{"partialSuccess":{}}"#), "{what}");
    };
    accepted_protobuf("plain", &[("Content-Type", PROTOBUF)], body.clone());
    accepted_protobuf("with a parameter", &[("Content-Type", "application/x-protobuf; charset=utf-8")], body.clone());
    accepted_protobuf("gzip", &[("Content-Type", PROTOBUF), ("Content-Encoding", "gzip")], gzip(&body));
    accepted_protobuf("zstd", &[("Content-Type", PROTOBUF), ("Content-Encoding", "zstd")], zstd::encode_all(body.as_slice(), 3).unwrap());
    accepted_protobuf("empty", &[("Content-Type", PROTOBUF)], Vec::new());
    accepted_json("empty", &[("Content-Type", JSON)], "{}");
    accepted_json("empty list", &[("Content-Type", JSON)], r#"{"resourceSpans":[]}"#);
    for encoding in ["zlib", "deflate"] {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &body).unwrap();
        accepted_protobuf(encoding, &[("Content-Type", PROTOBUF), ("Content-Encoding", encoding)], encoder.finish().unwrap());
    }
    // snake_case, numbers for 64-bit integers, names of enums, upper-case ids, unknown fields.
    let unusual = r#"{"resource_spans":[{"unknown":[1,{"a":null}],"resource":{"attributes":[{"key":"service.name","value":{"string_value":"good"}}]},
        "scope_spans":[{"scope":{"name":"tests"},"spans":[{"trace_id":"0707070707070707070707070707070A","span_id":"0000000000000001","name":"work",
        "kind":"SPAN_KIND_INTERNAL","start_time_unix_nano":1650000000000000000,"end_time_unix_nano":"1650000000000000010",
        "attributes":[{"key":"n","value":{"int_value":-5}}],"status":{"code":"STATUS_CODE_ERROR"}}]}]}]}"#;
    accepted_json("unusual JSON", &[("Content-Type", "application/json; charset=utf-8")], unusual);
    let mut expected = good();
    let span = &mut expected.resource_spans[0].scope_spans[0].spans[0];
    span.trace_id[15] = 0x0A;
    span.attributes = vec![attribute("n", Value::IntValue(-5))];
    span.status = Some(Status { code: 2, ..Default::default() });
    let id: TraceId = span.trace_id.as_slice().try_into().unwrap();
    assert_same("unusual JSON", &expected.resource_spans, &wait(client.trace(TENANT, id)).unwrap());
    // The same span five times, by five encodings, is one span.
    assert_same("repeated requests", &good().resource_spans, &wait(client.trace(TENANT, [7; 16])).unwrap());
}

#[test]
fn bad_grpc_requests_are_refused_with_the_right_code() {
    let server = Server::start(json!({}));
    let client = server.client();
    let code = |tenant: &str, request| {
        wait(client.export(Compression::None, tenant, request)).map_err(|status| (status.code(), status.message().to_owned()))
    };
    let (refused, message) = code(TENANT, with_ids(&[1; 15], &[1; 8])).unwrap_err();
    assert_eq!(refused, tonic::Code::InvalidArgument, "{message}");
    assert_eq!(code(TENANT, with_ids(&[1; 16], &[])).unwrap_err().0, tonic::Code::InvalidArgument);
    assert_eq!(code("a/b", good()).unwrap_err().0, tonic::Code::InvalidArgument, "a tenant with a slash");
    let (refused, message) = code("", good()).unwrap_err();
    assert_eq!((refused, message.as_str()), (tonic::Code::Unavailable, "no org id"));
    let mut large = good();
    large.resource_spans[0].scope_spans[0].spans[0].attributes = vec![attribute("large", Value::BytesValue(vec![1; 5 << 20]))];
    assert!(code(TENANT, large).is_err(), "over the limit of 4 MiB");
    assert_eq!(code(TENANT, ExportTraceServiceRequest::default()), Ok(()), "nothing is accepted");
    assert!(wait(client.trace(TENANT, [1; 16])).is_none(), "nothing of a refused request is kept");
}

#[test]
fn the_tenant_of_a_request_is_checked() {
    let server = Server::start(json!({}));
    let client = server.client();
    let post = |tenant: Option<&str>| {
        let mut headers = vec![("Content-Type", PROTOBUF)];
        headers.extend(tenant.map(|tenant| ("X-Scope-OrgID", tenant)));
        wait(client.post(&headers, good().encode_to_vec())).unwrap().status
    };
    assert_eq!(post(None), 503, "not 401 on this path");
    assert_eq!(post(Some("a/b")), 400);
    assert_eq!(post(Some("a|b")), 400, "several tenants are for reading");
    assert_eq!(post(Some("..")), 400);
    assert_eq!(post(Some(&"x".repeat(151))), 400);
    assert_eq!(post(Some(&"x".repeat(150))), 200);
    assert_eq!(post(Some("it's_(a)*tenant-1.!")), 200);
    assert!(wait(client.trace("it's_(a)*tenant-1.!", [7; 16])).is_some());
    assert!(wait(client.trace("other", [7; 16])).is_none(), "tenants do not see each other");
}

#[test]
fn one_bad_span_refuses_the_whole_request() {
    let server = Server::start(json!({}));
    let mut request = otlp::request("mixed", vec![otlp::span([8; 16], 1, 0, "good", START, 10), otlp::span([9; 16], 2, 0, "bad", START, 10)]);
    request.resource_spans[0].scope_spans[0].spans[1].span_id = vec![1; 5];
    for transport in TRANSPORTS {
        let refused = wait(server.client().send(transport, Compression::None, TENANT, &request)).unwrap_err();
        assert!(!refused.retryable, "{transport:?}: {refused:?}");
    }
    assert!(wait(server.client().trace(TENANT, [8; 16])).is_none());
    assert!(server.client().metric("tempo_discarded_spans_total").is_some_and(|count| count >= 6.0), "refused spans are counted");
}

/// A span id of zeros names no span: Tempo refuses it. Whoever accepts it must give it back.
#[test]
fn a_span_id_of_zeros_is_refused_or_kept() {
    let server = Server::start(json!({}));
    let request = with_ids(&[6; 16], &[0; 8]);
    match wait(server.client().send(Transport::HttpProtobuf, Compression::None, TENANT, &request)) {
        Ok(()) => assert_same("zeros", &request.resource_spans, &wait(server.client().trace(TENANT, [6; 16])).unwrap()),
        Err(refused) => assert!(!refused.retryable && refused.reason.starts_with("400"), "{refused:?}"),
    }
}

#[test]
fn a_trace_id_of_zeros_is_a_trace() {
    let mut server = Server::start(json!({}));
    let request = otlp::request("zero", vec![otlp::span([0; 16], 1, 0, "work", START, 10)]);
    wait(server.client().send(Transport::Grpc, Compression::None, TENANT, &request)).unwrap();
    check_returns(&mut server, "zero trace id", &[([0; 16], request.resource_spans)]);
}

/// Looks traces up live, flushed and restarted.
fn check_returns(server: &mut Server, what: &str, traces: &[(TraceId, Vec<ResourceSpans>)]) {
    let check = |server: &Server, phase: &str| {
        for (id, sent) in traces {
            let returned = wait(server.client().trace(TENANT, *id)).unwrap_or_default();
            assert_same(&format!("{what}, {phase}, trace {}", otlp::hex(id)), sent, &returned);
        }
    };
    check(server, "live");
    server.kill();
    server.restart();
    check(server, "replayed");
    server.client().flush();
    check(server, "flushed");
    server.stop();
    server.restart();
    check(server, "restarted");
}

fn list(values: Vec<Value>) -> Value {
    Value::ArrayValue(ArrayValue { values: values.into_iter().map(of_value).collect() })
}

fn map(entries: Vec<KeyValue>) -> Value {
    Value::KvlistValue(KeyValueList { values: entries })
}

/// Attributes with each type of value, at each depth.
fn every_value(prefix: &str) -> Vec<KeyValue> {
    let deep = (0..20).fold(text("deepest"), |inner, depth| match depth % 2 {
        0 => list(vec![inner, Value::IntValue(depth)]),
        _ => map(vec![attribute("inner", inner), attribute("depth", Value::IntValue(depth))]),
    });
    let values = [
        ("text", text("plain")),
        ("text.empty", text("")),
        ("text.unicode", text("päivää 🧵 \u{0} \u{7f} \u{2028} \"quoted\" \\ \n\t</script>")),
        ("text.large", Value::StringValue("0123456789abcdef".repeat(4096))),
        ("bool.true", Value::BoolValue(true)),
        ("bool.false", Value::BoolValue(false)),
        ("int.zero", Value::IntValue(0)),
        ("int.least", Value::IntValue(i64::MIN)),
        ("int.most", Value::IntValue(i64::MAX)),
        ("double.zero", Value::DoubleValue(0.0)),
        ("double.minus.zero", Value::DoubleValue(-0.0)),
        ("double.nan", Value::DoubleValue(f64::NAN)),
        ("double.infinite", Value::DoubleValue(f64::INFINITY)),
        ("double.minus.infinite", Value::DoubleValue(f64::NEG_INFINITY)),
        ("double.least", Value::DoubleValue(f64::MIN_POSITIVE / 2.0)),
        ("double.whole", Value::DoubleValue(200.0)),
        ("bytes", Value::BytesValue((0..=255).collect())),
        ("bytes.empty", Value::BytesValue(Vec::new())),
        ("bytes.large", Value::BytesValue(vec![0xC3; 64 << 10])),
        ("list.empty", list(Vec::new())),
        ("list.of.one", list(vec![text("one")])),
        ("list.of.texts", list(vec![text("b"), text("a"), text("b")])),
        ("list.mixed", list(vec![text("1"), Value::IntValue(1), Value::DoubleValue(1.0), Value::BoolValue(true), Value::BytesValue(vec![1])])),
        ("map.empty", map(Vec::new())),
        ("map", map(vec![attribute("z", text("last first")), attribute("a", Value::IntValue(1)), attribute("a", Value::IntValue(1))])),
        ("deep", deep),
        ("", text("the key is empty")),
        ("key with spaces, \"quotes\" and 🧵", text("odd key")),
    ];
    let mut attributes: Vec<KeyValue> = values.into_iter().map(|(key, value)| attribute(&format!("{prefix}{key}"), value)).collect();
    let empty = AnyValue { value: None };
    attributes.push(KeyValue { key: format!("{prefix}value.missing"), value: None, ..Default::default() });
    attributes.push(KeyValue { key: format!("{prefix}value.empty"), value: Some(empty.clone()), ..Default::default() });
    attributes.push(attribute(
        &format!("{prefix}list.of.empty"),
        Value::ArrayValue(ArrayValue { values: vec![empty.clone(), of_value(text("x")), empty] }),
    ));
    // The same key again: with another value, another type, and the same value.
    attributes.push(attribute(&format!("{prefix}text"), text("second")));
    attributes.push(attribute(&format!("{prefix}text"), Value::IntValue(3)));
    attributes.push(attribute(&format!("{prefix}text"), text("plain")));
    attributes
}

fn everything(id: TraceId) -> ExportTraceServiceRequest {
    let base = |n: u64| otlp::span(id, n, 1, &format!("span {n}"), START + n, 100);
    let full = Span {
        trace_state: "vendor=value,other=1".to_owned(),
        flags: 0x0000_0301,
        kind: 3,
        attributes: every_value("s."),
        dropped_attributes_count: 5,
        dropped_events_count: u32::MAX,
        dropped_links_count: 7,
        events: vec![
            Event { time_unix_nano: START + 3, name: "event".to_owned(), attributes: every_value("e."), dropped_attributes_count: 2 },
            Event { time_unix_nano: START + 3, name: String::new(), ..Default::default() },
            Event { time_unix_nano: 0, name: "before everything".to_owned(), ..Default::default() },
            Event::default(),
        ],
        links: vec![
            Link {
                trace_id: vec![0xAA; 16],
                span_id: vec![0xBB; 8],
                trace_state: "linked=1".to_owned(),
                attributes: every_value("l."),
                dropped_attributes_count: 9,
                flags: 0x100,
            },
            Link { trace_id: id.to_vec(), span_id: vec![1; 8], ..Default::default() },
            Link::default(),
        ],
        status: Some(Status { message: "it broke".to_owned(), code: 2 }),
        ..base(2)
    };
    let spans = vec![
        Span { parent_span_id: Vec::new(), ..base(1) },
        full,
        Span { parent_span_id: vec![0; 8], ..base(3) },
        Span { start_time_unix_nano: START + 50, end_time_unix_nano: START, ..base(4) },
        Span { start_time_unix_nano: 0, end_time_unix_nano: START, ..base(5) },
        Span { start_time_unix_nano: START, end_time_unix_nano: 0, ..base(6) },
        Span { kind: 99, status: Some(Status { code: 77, message: String::new() }), ..base(7) },
        Span { kind: -5, status: Some(Status { code: -1, message: "odd".to_owned() }), ..base(8) },
        Span { name: String::new(), kind: 0, status: Some(Status::default()), ..base(9) },
        Span { status: Some(Status { code: 1, message: "a message with ok".to_owned() }), ..base(10) },
        // One id, three spans that differ.
        Span { name: "first with id 11".to_owned(), ..base(11) },
        Span { name: "second with id 11".to_owned(), ..base(11) },
        Span { attributes: vec![attribute("third", Value::BoolValue(true))], ..base(11) },
        // An absent parent, and a span that is its own.
        Span { parent_span_id: vec![0xEE; 8], ..base(12) },
        Span { parent_span_id: 13_u64.to_be_bytes().to_vec(), ..base(13) },
        Span { name: "n".repeat(64 << 10), trace_state: "t".repeat(600), ..base(14) },
    ];
    let scope =
        InstrumentationScope { name: "library".to_owned(), version: "1.2.3".to_owned(), attributes: every_value("c."), dropped_attributes_count: 4 };
    let resource = Resource { attributes: every_value("r."), dropped_attributes_count: 3, ..Default::default() };
    let of_scope = |scope, schema_url: &str, spans| ScopeSpans { scope, schema_url: schema_url.to_owned(), spans };
    ExportTraceServiceRequest {
        resource_spans: vec![
            ResourceSpans {
                resource: Some(resource.clone()),
                schema_url: "https://example.org/resource/1".to_owned(),
                scope_spans: vec![
                    of_scope(Some(scope.clone()), "https://example.org/scope/1", spans),
                    // The same scope but for its schema; a scope without a name; no scope.
                    of_scope(Some(scope), "https://example.org/scope/2", vec![base(21)]),
                    of_scope(Some(InstrumentationScope { version: "only".to_owned(), ..Default::default() }), "", vec![base(22)]),
                    of_scope(None, "", vec![base(23)]),
                ],
            },
            // The same resource but for its schema; a resource without attributes; no resource.
            ResourceSpans { resource: Some(resource), scope_spans: vec![of_scope(None, "", vec![base(31)])], schema_url: String::new() },
            ResourceSpans {
                resource: Some(Resource { dropped_attributes_count: 8, ..Default::default() }),
                scope_spans: vec![of_scope(None, "", vec![base(32)])],
                schema_url: String::new(),
            },
            ResourceSpans { resource: None, scope_spans: vec![of_scope(None, "", vec![base(33)])], schema_url: String::new() },
            ResourceSpans::default(),
        ],
    }
}

#[test]
fn everything_otlp_can_say_comes_back() {
    let mut server = Server::start(json!({}));
    let traces: Vec<_> = TRANSPORTS.into_iter().zip(1..).map(|(transport, n)| (transport, [n; 16])).collect();
    let mut sent = Vec::new();
    for (transport, id) in traces {
        let request = everything(id);
        wait(server.client().send(transport, Compression::None, TENANT, &request)).unwrap();
        sent.push((id, request.resource_spans));
    }
    check_returns(&mut server, "everything", &sent);
}

#[test]
fn entity_references_of_a_resource_come_back() {
    let mut server = Server::start(json!({}));
    let mut request = otlp::request("entities", vec![otlp::span([5; 16], 1, 0, "work", START, 10)]);
    let reference = EntityRef {
        schema_url: "https://example.org/entity".to_owned(),
        r#type: "service".to_owned(),
        id_keys: vec!["service.name".to_owned()],
        description_keys: vec!["service.version".to_owned()],
    };
    request.resource_spans[0].resource.as_mut().unwrap().entity_refs = vec![reference];
    wait(server.client().send(Transport::HttpProtobuf, Compression::None, TENANT, &request)).unwrap();
    check_returns(&mut server, "entity references", &[([5; 16], request.resource_spans)]);
}

#[test]
fn a_trace_sent_in_parts_is_joined() {
    let mut server = Server::start(json!({}));
    let id = [4; 16];
    let mut sent = Vec::new();
    for n in 1..=6_u64 {
        // Resources alternate; some parts lie in a block before the next arrives.
        let request = otlp::request(if n % 2 == 0 { "even" } else { "odd" }, vec![otlp::span(id, n, n - 1, &format!("part {n}"), START + n, 10)]);
        wait(server.client().send(TRANSPORTS[n as usize % 3], Compression::Gzip, TENANT, &request)).unwrap();
        sent.extend(request.resource_spans);
        if n == 2 || n == 4 {
            server.client().flush();
        }
    }
    check_returns(&mut server, "parts", &[(id, sent)]);
}

/// Cases of the property test.
const CASES: u32 = 400;

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[a-z.]{0,12}", 1 => any::<String>(), 1 => Just(String::new())]
}

fn any_value() -> impl Strategy<Value = Option<Value>> {
    let leaf = prop_oneof![
        1 => Just(None),
        4 => any_text().prop_map(|text| Some(Value::StringValue(text))),
        1 => any::<bool>().prop_map(|value| Some(Value::BoolValue(value))),
        2 => any::<i64>().prop_map(|value| Some(Value::IntValue(value))),
        1 => (-3_i64..3).prop_map(|value| Some(Value::IntValue(value))),
        // Any bits but those of a NaN that JSON cannot tell from another.
        2 => any::<f64>().prop_map(|value| Some(Value::DoubleValue(if value.is_nan() { f64::NAN } else { value }))),
        1 => vec(any::<u8>(), 0..20).prop_map(|bytes| Some(Value::BytesValue(bytes))),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let values = vec(inner.clone(), 0..4)
            .prop_map(|values| Some(Value::ArrayValue(ArrayValue { values: values.into_iter().map(|value| AnyValue { value }).collect() })));
        let entries = vec((any_text(), inner), 0..4).prop_map(|entries| {
            Some(Value::KvlistValue(KeyValueList { values: entries.into_iter().map(|(key, value)| key_value(key, value)).collect() }))
        });
        prop_oneof![values, entries]
    })
}

fn key_value(key: String, value: Option<Value>) -> KeyValue {
    KeyValue { key, value: Some(AnyValue { value }), ..Default::default() }
}

/// Few keys, so that they repeat between spans with values of other types, and some that occur once.
fn any_attributes(most: usize) -> impl Strategy<Value = Vec<KeyValue>> {
    vec((prop_oneof![5 => "[abc]", 1 => any_text()], any_value()), 0..most)
        .prop_map(|entries| entries.into_iter().map(|(key, value)| key_value(key, value)).collect())
}

fn any_count() -> impl Strategy<Value = u32> {
    prop_oneof![3 => Just(0), 1 => 1..5_u32, 1 => any::<u32>()]
}

fn any_time() -> impl Strategy<Value = u64> {
    prop_oneof![6 => START..START + 1_000_000, 1 => Just(0), 1 => any::<u64>()]
}

fn any_event() -> impl Strategy<Value = Event> {
    (any_time(), any_text(), any_attributes(3), any_count()).prop_map(|(time_unix_nano, name, attributes, dropped_attributes_count)| Event {
        time_unix_nano,
        name,
        attributes,
        dropped_attributes_count,
    })
}

fn any_link() -> impl Strategy<Value = Link> {
    let ids = prop_oneof![4 => (vec(any::<u8>(), 16), vec(any::<u8>(), 8)), 1 => Just((Vec::new(), Vec::new()))];
    (ids, any_text(), any_attributes(3), any_count(), any_count()).prop_map(|((trace_id, span_id), trace_state, attributes, dropped, flags)| Link {
        trace_id,
        span_id,
        trace_state,
        attributes,
        dropped_attributes_count: dropped,
        flags,
    })
}

fn any_span() -> impl Strategy<Value = Span> {
    let ids = (
        0..3_u8,
        prop_oneof![4 => any::<u64>(), 1 => 1..4_u64],
        prop_oneof![2 => Just(None), 1 => any::<u64>().prop_map(Some), 2 => (1..4_u64).prop_map(Some)],
    );
    let head = (ids, any_text(), any_text(), prop_oneof![5 => 0..6_i32, 1 => any::<i32>()], any_time(), any_time(), any_count());
    let lists = (any_attributes(6), vec(any_event(), 0..3), vec(any_link(), 0..3), any_count(), any_count(), any_count());
    let status = prop_oneof![
        1 => Just(None),
        1 => (any_text(), prop_oneof![4 => 0..3_i32, 1 => any::<i32>()]).prop_map(|(message, code)| Some(Status { message, code })),
    ];
    (head, lists, status).prop_map(|(((trace, id, parent), name, trace_state, kind, start, end, flags), lists, status)| {
        let (attributes, events, links, dropped_attributes_count, dropped_events_count, dropped_links_count) = lists;
        Span {
            trace_id: vec![trace; 16],
            span_id: id.max(1).to_be_bytes().to_vec(),
            parent_span_id: parent.map_or_else(Vec::new, |parent| parent.max(1).to_be_bytes().to_vec()),
            trace_state,
            flags,
            name,
            kind,
            start_time_unix_nano: start,
            end_time_unix_nano: end,
            attributes,
            dropped_attributes_count,
            events,
            dropped_events_count,
            links,
            dropped_links_count,
            status,
        }
    })
}

fn any_scope_spans() -> impl Strategy<Value = ScopeSpans> {
    let scope = (any_text(), any_text(), any_attributes(3), any_count()).prop_map(|(name, version, attributes, dropped_attributes_count)| {
        InstrumentationScope { name, version, attributes, dropped_attributes_count }
    });
    (proptest::option::of(scope), any_text(), vec(any_span(), 0..6)).prop_map(|(scope, schema_url, spans)| ScopeSpans { scope, schema_url, spans })
}

fn any_request() -> impl Strategy<Value = ExportTraceServiceRequest> {
    let resource = (any_attributes(5), any_count()).prop_map(|(attributes, dropped_attributes_count)| Resource {
        attributes,
        dropped_attributes_count,
        ..Default::default()
    });
    let of_resource = (proptest::option::of(resource), any_text(), vec(any_scope_spans(), 0..3))
        .prop_map(|(resource, schema_url, scope_spans)| ResourceSpans { resource, schema_url, scope_spans });
    vec(of_resource, 1..3).prop_map(|resource_spans| ExportTraceServiceRequest { resource_spans })
}

/// Gives the traces of a request ids that no other case has, and leaves out what need not come back twice: a span repeated with everything equal,
/// and the pair of a client's and a server's span with one id, which the API tells apart by a new id.
fn made_unique(mut request: ExportTraceServiceRequest) -> ExportTraceServiceRequest {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let case = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut seen = std::collections::HashSet::new();
    let mut kinds = std::collections::HashMap::new();
    for of_scope in request.resource_spans.iter_mut().flat_map(|resource| &mut resource.scope_spans) {
        of_scope.spans.retain_mut(|span| {
            let trace = u128::from(case) << 64 | u128::from(span.trace_id[0]);
            span.trace_id = trace.to_be_bytes().to_vec();
            span.kind = *kinds.entry((trace, span.span_id.clone())).or_insert(span.kind);
            seen.insert(span.encode_to_vec())
        });
    }
    request
}

/// The spans of a request by trace.
fn by_trace(request: &ExportTraceServiceRequest) -> std::collections::BTreeMap<TraceId, Vec<ResourceSpans>> {
    let mut traces = std::collections::BTreeMap::<TraceId, Vec<ResourceSpans>>::new();
    for span in otlp::canonical(&request.resource_spans) {
        traces.entry(span.span().trace_id.as_slice().try_into().unwrap()).or_default().push(span.0);
    }
    traces
}

fn check_traces(client: &Client, phase: &str, traces: &std::collections::BTreeMap<TraceId, Vec<ResourceSpans>>) -> Result<(), TestCaseError> {
    for (id, sent) in traces {
        let returned = wait(client.trace(TENANT, *id)).unwrap_or_default();
        if let Some(difference) = otlp::difference(&otlp::canonical(sent), &otlp::canonical(&returned)) {
            return Err(TestCaseError::fail(format!("{phase}, trace {}: {difference}", otlp::hex(id))));
        }
    }
    Ok(())
}

#[test]
fn arbitrary_otlp_comes_back() {
    static SENT: LazyLock<Mutex<std::collections::BTreeMap<TraceId, Vec<ResourceSpans>>>> = LazyLock::new(Mutex::default);
    let seed = harness::seed("arbitrary_otlp_comes_back");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut server = Server::start(json!({}));
    let client = server.client().clone();
    let config = Config { cases: CASES, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let outcome = runner.run(&(any_request(), 0..TRANSPORTS.len(), 0..Compression::ALL.len()), |(request, transport, compression)| {
        let request = made_unique(request);
        let sent = wait(client.send(TRANSPORTS[transport], Compression::ALL[compression], TENANT, &request));
        prop_assert!(sent.is_ok(), "refused: {:?}", sent);
        let traces = by_trace(&request);
        check_traces(&client, "live", &traces)?;
        SENT.lock().unwrap().extend(traces);
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    let sent = SENT.lock().unwrap();
    server.client().flush();
    check_traces(server.client(), "flushed", &sent).unwrap();
    server.stop();
    server.restart();
    check_traces(server.client(), "restarted", &sent).unwrap();
    println!("{} traces of {CASES} requests", sent.len());
}
