//! The edges of the query API: parameters, statuses, texts, tenants, pages of state.

use std::sync::{Arc, Mutex, Weak};

use serde_json::{Value, json};
use skein_proto::otlp::common::v1::any_value;
use skein_proto::otlp::trace::v1::Status;
use skein_proto::tempo::{SearchRequest, SearchResponse};
use tonic::codegen::http::uri::PathAndQuery;

use crate::harness::{Client, Compression, PATIENCE, Reply, Server, Transport, until, wait};
use crate::otlp::{self, TraceId, attribute, text};
use crate::truth::path_segment;

const TENANT: &str = "shop";
const START: u64 = 1_700_000_000_000_000_000;
const START_SECONDS: u64 = 1_700_000_000;
const WINDOW: [(&str, &str); 2] = [("start", "1699999000"), ("end", "1700001000")];
const SHORT: TraceId = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x0A, 0xBC];
const ODD: &str = "0047ac2c027451d89e3f3ba6d2a6b7b";
const UNKNOWN: &str = "ffffffffffffffffffffffffffffffff";
const STRANGE_NAMES: [&str; 14] =
    ["sp ace", "sl/ash", "per%cent", "%20", "quo\"te", "a[0]", "col:on", "a&b", "at@x#y", "<a>{b}|c", "back\\slash", "*=?+.~", "(,;'", "emoji 🧵"];

/// One process for all questions that change nothing: two services, two traces. It lives as long as a test holds it.
struct Shop(Arc<Server>);

impl Shop {
    fn open() -> Self {
        static OPEN: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        // A test that panicked with the lock held could not start the process; neither can the others.
        let mut open = OPEN.lock().expect("the process for the questions starts");
        if let Some(server) = open.upgrade() {
            return Self(server);
        }
        let server = Arc::new(Server::start(json!({})));
        load(server.client(), TENANT);
        *open = Arc::downgrade(&server);
        Self(server)
    }

    fn client(&self) -> &Client {
        self.0.client()
    }

    fn get(&self, path: &str, params: &[(&str, &str)]) -> Reply {
        wait(self.client().get(TENANT, path, params))
    }

    /// The status is this, and the body contains that.
    fn check(&self, path: &str, params: &[(&str, &str)], status: u16, part: &str) {
        let reply = self.get(path, params);
        assert_eq!(reply.status, status, "{path} {params:?}: {}", reply.text());
        assert!(reply.text().contains(part), "{path} {params:?}: `{part}` is not in `{}`", reply.text());
    }

    fn search(&self, params: &[(&str, &str)]) -> Value {
        let reply = self.get("/api/search", &with_window(params));
        assert_eq!(reply.status, 200, "{params:?}: {}", reply.text());
        reply.json()
    }
}

/// A trace of three spans over two services, one of them broken, and a later trace of one span.
fn load(client: &Client, tenant: &str) {
    let mut root = otlp::span(SHORT, 1, 0, "GET /", START, 3_000_000);
    root.kind = 2;
    root.attributes = vec![attribute("http.status_code", any_value::Value::IntValue(500)), attribute("http.url", text("/a?b=<c>&d"))];
    let mut call = otlp::span(SHORT, 2, 1, "call", START + 1_000_000, 1_500_000);
    call.kind = 3;
    let mut work = otlp::span(SHORT, 3, 2, "work", START + 1_200_000, 1_000_000);
    work.kind = 2;
    work.status = Some(Status { code: 2, message: "no stock".to_owned() });
    work.attributes = STRANGE_NAMES.iter().map(|name| attribute(name, text("strange"))).collect();
    let odd = otlp::trace_id(ODD);
    let later = otlp::span(odd, 4, 0, "later", START + 60_000_000_000, 5_000_000);
    for request in [otlp::request("frontend", vec![root, call, later]), otlp::request("stock", vec![work])] {
        wait(client.send(Transport::HttpProtobuf, Compression::None, tenant, &request)).unwrap();
    }
}

fn with_window<'a>(params: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    WINDOW.iter().chain(params).copied().collect()
}

#[test]
fn trace_ids_are_read_leniently_and_checked() {
    let shop = Shop::open();
    for version in ["/api/traces/", "/api/v2/traces/"] {
        for id in ["abc", "ABC", "0abc", "00000000000000000000000000000abc", ODD] {
            let reply = shop.get(&format!("{version}{id}"), &[]);
            assert_eq!(reply.status, 200, "{version}{id}: {}", reply.text());
            assert!(reply.text().contains("spanId"), "{version}{id}: {}", reply.text());
        }
        shop.check(&format!("{version}xyz"), &[], 400, "trace IDs can only contain hex characters: invalid character 'x' at position 1");
        shop.check(&format!("{version}12g4"), &[], 400, "invalid character 'g' at position 3");
        shop.check(&format!("{version}{UNKNOWN}ff"), &[], 400, "trace IDs can't be larger than 128 bits");
        let path = format!("{version}abc");
        shop.check(&path, &[("start", "yesterday")], 400, "invalid start");
        shop.check(&path, &[("end", "1.5")], 400, "invalid end");
        shop.check(&path, &[("start", "20"), ("end", "10")], 400, "http parameter start must be before end. received start=20 end=10");
        shop.check(&path, &[("mode", "sideways")], 400, "invalid value for mode sideways");
        for mode in ["all", "ingesters"] {
            shop.check(&path, &[("mode", mode)], 200, "spanId");
        }
        // The window chooses blocks; recent spans are found whatever it says.
        shop.check(&path, &[("start", "10"), ("end", "20")], 200, "spanId");
        shop.check(&path, &[("start", "10")], 200, "spanId");
    }
}

#[test]
fn an_unknown_trace_is_404_in_v1_and_empty_in_v2() {
    let shop = Shop::open();
    let reply = shop.get(&format!("/api/traces/{UNKNOWN}"), &[]);
    assert_eq!((reply.status, reply.text().as_str()), (404, ""));
    let reply = shop.get(&format!("/api/v2/traces/{UNKNOWN}"), &[]);
    assert_eq!((reply.status, &reply.json()["trace"]), (200, &json!({})));
}

#[test]
fn traces_are_told_in_tempos_json() {
    let shop = Shop::open();
    let v2 = shop.get("/api/v2/traces/abc", &[]);
    assert_eq!(v2.header("content-type"), "application/json");
    let v2 = v2.json();
    assert!(v2["trace"]["resourceSpans"].is_array(), "{v2}");
    assert!(v2.get("status").is_none() && v2.get("message").is_none(), "complete: {v2}");
    let v1 = shop.get("/api/traces/abc", &[]).json();
    let spans = |resources: &Value| -> Vec<Value> {
        let of = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
        let scopes = resources.as_array().unwrap().iter().flat_map(|resource| of(resource, "scopeSpans"));
        let mut spans: Vec<Value> = scopes.flat_map(|scope| of(&scope, "spans")).collect();
        spans.sort_by_key(|span| span["startTimeUnixNano"].to_string());
        spans
    };
    let spans_v2 = spans(&v2["trace"]["resourceSpans"]);
    assert_eq!(spans(&v1["batches"]), spans_v2);
    assert_eq!(spans_v2.len(), 3);
    let root = &spans_v2[0];
    assert_eq!(root["traceId"], "AAAAAAAAAAAAAAAAAAAKvA==", "base64");
    assert_eq!(root["spanId"], "AAAAAAAAAAE=");
    assert_eq!((&root["kind"], &root["name"]), (&json!("SPAN_KIND_SERVER"), &json!("GET /")));
    assert_eq!((&root["startTimeUnixNano"], &root["endTimeUnixNano"]), (&json!("1700000000000000000"), &json!("1700000000003000000")));
    assert!(root["attributes"].as_array().unwrap().contains(&json!({ "key": "http.status_code", "value": { "intValue": "500" } })), "{root}");
    assert!(root.get("parentSpanId").is_none() && root.get("droppedLinksCount").is_none(), "defaults are left out: {root}");
    assert_eq!(spans_v2[2]["status"], json!({ "message": "no stock", "code": "STATUS_CODE_ERROR" }));
    // HTML is escaped as Go does it.
    assert!(shop.get("/api/v2/traces/abc", &[]).text().contains(r"/a?b=\u003cc\u003e\u0026d"));
}

#[test]
fn traces_are_told_in_protobuf_and_for_language_models() {
    let shop = Shop::open();
    let of = |path: &str, accept: &str| wait(shop.client().request("GET", path, &[], &[("X-Scope-OrgID", TENANT), ("Accept", accept)], Vec::new()));
    for path in ["/api/traces/abc", "/api/v2/traces/abc"] {
        assert_eq!(of(path, "application/protobuf").header("content-type"), "application/protobuf");
        assert_eq!(of(path, "text/html, application/protobuf;q=0.1, application/json").header("content-type"), "application/protobuf");
        assert_eq!(of(path, "text/html").header("content-type"), "application/json");
    }
    let reply = of("/api/v2/traces/abc", "application/vnd.grafana.llm");
    assert_eq!(reply.header("content-type"), "application/vnd.grafana.llm+json");
    let trace = reply.json()["trace"].clone();
    assert_eq!(trace["traceId"], "00000000000000000000000000000abc");
    let services: Vec<&str> = trace["services"].as_array().unwrap().iter().map(|service| service["serviceName"].as_str().unwrap()).collect();
    assert!(services.contains(&"frontend") && services.contains(&"stock"), "{services:?}");
    assert!(reply.text().contains(r#""http.status_code":500"#), "attributes are plain JSON: {}", reply.text());
}

#[test]
fn a_search_answers_in_tempos_json() {
    let shop = Shop::open();
    let answer = shop.search(&[("q", r#"{ resource.service.name = "frontend" }"#)]);
    let traces = answer["traces"].as_array().unwrap();
    assert_eq!(traces.len(), 2);
    assert_eq!(traces[0]["rootTraceName"], "later", "most recent first");
    let trace = &traces[1];
    assert_eq!(trace["traceID"], "abc", "leading zeros are left out");
    assert_eq!((&trace["rootServiceName"], &trace["rootTraceName"]), (&json!("frontend"), &json!("GET /")));
    assert_eq!((&trace["startTimeUnixNano"], &trace["durationMs"]), (&json!("1700000000000000000"), &json!(3)));
    assert_eq!(trace["spanSet"], trace["spanSets"][0]);
    assert_eq!(trace["spanSets"][0]["matched"], 2);
    assert_eq!(trace["serviceStats"], json!({ "frontend": { "spanCount": 2 }, "stock": { "spanCount": 1, "errorCount": 1 } }));
    let ids: Vec<&Value> = trace["spanSets"][0]["spans"].as_array().unwrap().iter().map(|span| &span["spanID"]).collect();
    assert_eq!(ids, ["0000000000000001", "0000000000000002"]);
    assert_eq!(shop.search(&[("q", "{ .nothing = 1 }")])["traces"], json!([]));
    assert!(shop.search(&[("q", "{ .nothing = 1 }")])["metrics"].is_object());
}

#[test]
fn search_parameters_are_checked() {
    let shop = Shop::open();
    let check = |params: &[(&str, &str)], part: &str| shop.check("/api/search", &with_window(params), 400, part);
    check(&[("q", "{"), ("limit", "3")], "invalid TraceQL query: parse error at line 1");
    for limit in ["0", "-5", "five", "4294967298"] {
        check(&[("q", "{}"), ("limit", limit)], "invalid limit");
    }
    for spss in ["-2", "four", "4294967296"] {
        check(&[("q", "{}"), ("spss", spss)], "invalid spss");
    }
    check(&[("q", "{}"), ("tags", "a=b")], "invalid request: can't specify tags and q in the same query");
    check(&[("tags", "a=b a=c")], "invalid tags: tag a has been set twice");
    check(&[("tags", "a=b"), ("minDuration", "long")], "invalid minDuration");
    check(&[("tags", "a=b"), ("minDuration", "2s"), ("maxDuration", "1s")], "invalid maxDuration: must be greater than minDuration");
    check(&[("q", "{ . a}")], "unexpected END_ATTRIBUTE, expecting IDENTIFIER");
    check(&[("q", "{}"), ("explain", "please")], "invalid explain");
    let times = |start: &str, end: &str, part: &str| shop.check("/api/search", &[("q", "{}"), ("start", start), ("end", end)], 400, part);
    times("20", "10", "http parameter start must be before end. received start=20 end=10");
    times("10", "10", "http parameter start must be before end. received start=10 end=10");
    times("1700000000000000000", "1700000001000000000", "invalid start");
    times("1.5", "3", "invalid start");
    assert_eq!(shop.search(&[("q", "{}"), ("spss", "0")])["traces"].as_array().unwrap().len(), 2, "zero spans a spanset is accepted");
    assert_eq!(shop.search(&[("q", "{}"), ("limit", "1")])["traces"].as_array().unwrap().len(), 1);
    assert_eq!(shop.search(&[("q", "{}"), ("limit", "1")])["traces"][0]["rootTraceName"], "later", "the limit keeps the most recent");
}

#[test]
fn a_search_without_query_is_a_tag_search() {
    let shop = Shop::open();
    assert_eq!(shop.search(&[])["traces"].as_array().unwrap().len(), 2, "everything matches");
    let names = |params: &[(&str, &str)]| -> Vec<String> {
        shop.search(params)["traces"].as_array().unwrap().iter().map(|trace| trace["rootTraceName"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&[("tags", "service.name=stock")]), ["GET /"]);
    assert_eq!(names(&[("tags", "service.name=nobody")]), [""; 0]);
    assert_eq!(names(&[("tags", "service.name=stock name=GET")]), ["GET /"], "all hold within the trace");
    assert_eq!(names(&[("tags", "name=lat")]), ["later"], "part of a name");
    assert_eq!(names(&[("tags", "status.code=error")]), ["GET /"]);
    assert_eq!(names(&[("minDuration", "4ms")]), ["later"]);
    assert_eq!(names(&[("maxDuration", "4ms")]), ["GET /"]);
    assert!(shop.search(&[])["traces"][0].get("spanSets").is_none(), "no spans are told");
}

#[test]
fn the_window_of_a_search_holds() {
    let shop = Shop::open();
    let traces = |start: u64, end: u64| {
        let reply = wait(shop.client().search(TENANT, "{}", (start, end), 1));
        reply.json()["traces"].as_array().unwrap().len()
    };
    assert_eq!(traces(START_SECONDS - 100, START_SECONDS + 100), 2);
    assert_eq!(traces(START_SECONDS - 100, START_SECONDS + 30), 1);
    assert_eq!(traces(START_SECONDS + 30, START_SECONDS + 100), 1);
    assert_eq!(traces(START_SECONDS + 100, START_SECONDS + 200), 0);
}

#[test]
fn tag_names_are_told_by_scope() {
    let shop = Shop::open();
    let v2 = shop.get("/api/v2/search/tags", &WINDOW).json();
    let scope = |answer: &Value, name: &str| -> Vec<String> {
        let scopes = answer["scopes"].as_array().unwrap();
        let tags = scopes.iter().find(|scope| scope["name"] == name).and_then(|scope| scope["tags"].as_array());
        tags.into_iter().flatten().map(|tag| tag.as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(scope(&v2, "resource"), ["service.name"]);
    let mut names: Vec<&str> = STRANGE_NAMES.iter().copied().chain(["http.status_code", "http.url"]).collect();
    names.sort_unstable();
    assert_eq!(scope(&v2, "span"), names);
    assert!(scope(&v2, "intrinsic").contains(&"span:duration".to_owned()));
    assert!(scope(&v2, "event").is_empty());

    let v1 = shop.get("/api/search/tags", &WINDOW).json();
    let mut flat: Vec<&str> = names.iter().copied().chain(["service.name"]).collect();
    flat.sort_unstable();
    assert_eq!(v1["tagNames"], json!(flat));

    let only = shop.get("/api/v2/search/tags", &with_window(&[("scope", "resource")])).json();
    assert_eq!(only["scopes"], json!([{ "name": "resource", "tags": ["service.name"] }]));
    shop.check("/api/v2/search/tags", &with_window(&[("scope", "sideways")]), 400, "invalid scope: sideways");
    let limited = shop.get("/api/v2/search/tags", &with_window(&[("scope", "span"), ("limit", "2")])).json();
    assert_eq!(scope(&limited, "span").len(), 2);
    shop.check("/api/v2/search/tags", &with_window(&[("limit", "many")]), 200, "service.name");
    shop.check("/api/v2/search/tags", &[("start", "10")], 400, "");
}

#[test]
fn the_filter_of_tag_names_is_lenient() {
    let shop = Shop::open();
    let spans = |q: &str| -> usize {
        let answer = shop.get("/api/v2/search/tags", &with_window(&[("scope", "span"), ("q", q)])).json();
        answer["scopes"].as_array().into_iter().flatten().map(|scope| scope["tags"].as_array().unwrap().len()).sum()
    };
    let all = STRANGE_NAMES.len() + 2;
    assert_eq!(spans("{}"), all);
    assert_eq!(spans("{"), all, "what does not parse is ignored");
    assert_eq!(spans("{ .http.url = 5 }"), all, "so is what has no scope");
    assert_eq!(spans(r#"{ resource.service.name = "frontend" }"#), 2);
    assert_eq!(spans(r#"{ span.x = && resource.service.name = "frontend" }"#), 2, "the complete part is applied");
    assert_eq!(spans(r#"{ resource.service.name = "stock" || resource.service.name = "frontend" }"#), all);
    let restrictive = shop.get("/api/v2/search/tags", &with_window(&[("q", r#"{ resource.service.name = "nobody" }"#)])).json();
    let scopes: Vec<&Value> = restrictive["scopes"].as_array().unwrap().iter().filter(|scope| scope["name"] != "intrinsic").collect();
    assert_eq!(scopes, [&json!({ "name": "resource", "tags": ["service.name"] })]);
}

#[test]
fn tag_values_are_told_with_their_types() {
    let shop = Shop::open();
    let values = |tag: &str, params: &[(&str, &str)]| -> Vec<(String, String)> {
        let reply = shop.get(&format!("/api/v2/search/tag/{}/values", path_segment(tag)), &with_window(params));
        assert_eq!(reply.status, 200, "{tag}: {}", reply.text());
        let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let mut values: Vec<_> =
            reply.json()["tagValues"].as_array().unwrap().iter().map(|value| (text(value, "type"), text(value, "value"))).collect();
        values.sort();
        values
    };
    let one = |of_type: &str, value: &str| vec![(of_type.to_owned(), value.to_owned())];
    let services = vec![("string".to_owned(), "frontend".to_owned()), ("string".to_owned(), "stock".to_owned())];
    assert_eq!(values("resource.service.name", &[]), services);
    assert_eq!(values(".service.name", &[]), services);
    assert_eq!(values("span.http.status_code", &[]), one("int", "500"));
    assert_eq!(values("statusMessage", &[]).iter().filter(|(_, value)| !value.is_empty()).count(), 1);
    assert_eq!(values("resource.service.name", &[("q", "{ status = error }")]), one("string", "stock"));
    assert_eq!(values("name", &[("q", r#"{ resource.service.name = "stock" }"#)]), one("string", "work"));
    assert_eq!(values("name", &[("q", r#"{ resource.service.name = "nobody" }"#)]), []);
    assert_eq!(values("resource.service.name", &[("limit", "1")]).len(), 1);
    for tag in ["duration", "span:duration", "traceDuration", "trace:duration", "span.unknown"] {
        assert_eq!(values(tag, &[]), [], "{tag}");
    }
    let bad = "please provide a valid tagName: failed to parse identifier app.user.id: parse error at line 1, col 2: unknown identifier: app";
    shop.check("/api/v2/search/tag/app.user.id/values", &WINDOW, 400, bad);
    shop.check("/api/v2/search/tag/name/values", &with_window(&[("limit", "many")]), 400, "invalid limit");
    let v1 = shop.get("/api/search/tag/service.name/values", &WINDOW).json();
    assert_eq!(v1["tagValues"], json!(["frontend", "stock"]));
    assert_eq!(shop.get("/api/search/tag/status.code/values", &WINDOW).json()["tagValues"].as_array().unwrap().len(), 3);
}

#[test]
fn attributes_of_any_name_have_values_live_and_flushed() {
    let server = Server::start(json!({}));
    load(server.client(), TENANT);
    for phase in ["live", "flushed"] {
        for name in STRANGE_NAMES {
            let quoted = format!("span.\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""));
            let path = format!("/api/v2/search/tag/{}/values", path_segment(&quoted));
            let reply = wait(server.client().get(TENANT, &path, &WINDOW));
            assert_eq!(reply.status, 200, "{phase}, {quoted}: {}", reply.text());
            assert_eq!(reply.json()["tagValues"], json!([{ "type": "string", "value": "strange" }]), "{phase}, {quoted}");
            let found = wait(server.client().search(TENANT, &format!("{{ {quoted} = \"strange\" }}"), (START_SECONDS - 10, START_SECONDS + 10), 1));
            assert_eq!(found.json()["traces"].as_array().map(Vec::len), Some(1), "{phase}, {quoted}: {}", found.text());
        }
        server.client().flush();
    }
}

#[test]
fn a_slash_in_a_tag_needs_no_escape() {
    let shop = Shop::open();
    let reply = shop.get("/api/v2/search/tag/span.%22sl/ash%22/values", &WINDOW);
    assert_eq!((reply.status, &reply.json()["tagValues"]), (200, &json!([{ "type": "string", "value": "strange" }])));
}

#[test]
fn tenants_are_checked_on_every_endpoint() {
    let shop = Shop::open();
    let (id, values) = (format!("/api/traces/{ODD}"), "/api/search/tag/service.name/values");
    let (id_v2, values_v2) = (format!("/api/v2/traces/{ODD}"), "/api/v2/search/tag/resource.service.name/values");
    for path in [id.as_str(), &id_v2, "/api/search", "/api/search/tags", "/api/v2/search/tags", values, values_v2] {
        let ask = |tenant: Option<&str>| {
            let headers: Vec<_> = tenant.map(|tenant| ("X-Scope-OrgID", tenant)).into_iter().collect();
            let reply = wait(shop.client().request("GET", path, &WINDOW, &headers, Vec::new()));
            (reply.status, reply.text())
        };
        assert_eq!(ask(None), (401, "no org id\n".to_owned()), "{path}");
        assert_eq!(ask(Some("")), (401, "no org id\n".to_owned()), "{path}");
        let refused = |tenant: &str, part: &str| {
            let (status, body) = ask(Some(tenant));
            assert!(status == 400 && body.contains(part), "{path}, tenant {tenant}: {status} {body}");
        };
        refused("a/b", "unsupported character");
        refused("..", "tenant ID is '.' or '..'");
        refused(".", "tenant ID is '.' or '..'");
        refused(&"x".repeat(151), "tenant ID is too long");
        refused("a||b", "no org id");
        refused("|a", "no org id");
        let (status, _) = ask(Some("nobody"));
        assert_eq!(status, if path == id { 404 } else { 200 }, "{path} of a tenant without data");
        assert_eq!(ask(Some(&format!("nobody|{TENANT}"))).0, 200, "{path} of two tenants");
        assert_eq!(ask(Some(&format!("{TENANT}:key=value"))), ask(Some(TENANT)), "{path}: what follows a colon is left out");
    }
}

#[test]
fn several_tenants_are_read_together() {
    let server = Server::start(json!({}));
    let client = server.client();
    for (n, tenant) in (1..).zip(["one", "two", "three", "*"]) {
        let span = otlp::span([n; 16], u64::from(n), 0, tenant, START, 10);
        wait(client.send(Transport::HttpProtobuf, Compression::None, tenant, &otlp::request(tenant, vec![span]))).unwrap();
    }
    let traces =
        |tenant: &str| wait(client.search(tenant, "{}", (START_SECONDS - 10, START_SECONDS + 10), 1)).json()["traces"].as_array().unwrap().len();
    assert_eq!(traces("one"), 1);
    assert_eq!(traces("one|two|three"), 3);
    assert_eq!(traces("two|two|one"), 2, "each tenant once");
    assert_eq!(traces("*"), 1, "an ordinary tenant");
    assert!(wait(client.trace("one|two|three", [2; 16])).is_some());
    assert!(wait(client.trace("one|three", [2; 16])).is_none());
    let tags = wait(client.get("one|two|three", "/api/v2/search/tag/resource.service.name/values", &WINDOW)).json();
    assert_eq!(tags["tagValues"].as_array().unwrap().len(), 3);
}

#[test]
fn without_multitenancy_the_header_is_ignored() {
    let server = Server::start(json!({ "multitenancy_enabled": false }));
    load(server.client(), "anyone");
    let ask = |headers: &[(&str, &str)]| {
        let reply = wait(server.client().request("GET", "/api/search", &with_window(&[("q", "{}")]), headers, Vec::new()));
        reply.json()["traces"].as_array().unwrap().len()
    };
    assert_eq!(ask(&[]), 2);
    assert_eq!(ask(&[("X-Scope-OrgID", "somebody/else")]), 2);
    server.client().flush();
    assert!(server.blocks().join("single-tenant").is_dir());
    assert_eq!(ask(&[]), 2);
}

#[test]
fn limits_of_a_search_come_from_the_settings() {
    let search = json!({ "max_duration": "168h", "max_spans_per_span_set": 100, "max_result_limit": 1000 });
    let server = Server::start(json!({ "query_frontend": { "search": search } }));
    let ask = |params: &[(&str, &str)], part: &str| {
        let reply = wait(server.client().get(TENANT, "/api/search", params));
        assert!(reply.status == 400 && reply.text().contains(part), "{params:?}: {} {}", reply.status, reply.text());
    };
    ask(
        &[("q", "{}"), ("start", "1000000"), ("end", "2000000")],
        "range specified by start and end exceeds 168h0m0s. received start=1000000 end=2000000",
    );
    ask(&[("q", "{}"), ("start", "1000"), ("end", "2000"), ("limit", "1001")], "limit 1001 exceeds max limit 1000");
    ask(&[("q", "{}"), ("start", "1000"), ("end", "2000"), ("spss", "101")], "spans per span set exceeds 100. received 101");
}

#[test]
fn a_trace_over_the_size_limit_is_refused_in_v1_and_partial_in_v2() {
    let mut server = Server::start(json!({}));
    for part in 1..=4_u64 {
        let mut span = otlp::span([3; 16], part, 0, "large", START + part, 10);
        span.attributes = vec![attribute("filler", text(&"x".repeat(9000)))];
        wait(server.client().send(Transport::HttpProtobuf, Compression::None, TENANT, &otlp::request("s", vec![span]))).unwrap();
    }
    // A limit that is lowered later holds for what is there already, be it recent or stored.
    server.kill();
    server.configure(json!({ "overrides": { "defaults": { "global": { "max_bytes_per_trace": 20_000 } } } }));
    server.restart();
    let id = otlp::hex(&[3; 16]);
    for phase in ["live", "flushed"] {
        let v1 = wait(server.client().get(TENANT, &format!("/api/traces/{id}"), &[]));
        assert_eq!(v1.status, 422, "{phase}: {}", v1.text());
        assert!(v1.text().contains("trace exceeds max size (max bytes: 20000)"), "{phase}: {}", v1.text());
        let v2 = wait(server.client().get(TENANT, &format!("/api/v2/traces/{id}"), &[]));
        assert_eq!((v2.status, &v2.json()["status"]), (200, &json!("PARTIAL")), "{phase}");
        assert_eq!(v2.json()["message"], "Trace exceeds maximum size of 20000 bytes, a partial trace is returned", "{phase}");
        server.client().flush();
    }
}

#[test]
fn pages_of_state_answer() {
    let shop = Shop::open();
    shop.check("/ready", &[], 200, "ready");
    let echo = shop.get("/api/echo", &[]);
    assert_eq!((echo.status, echo.text().as_str()), (200, "echo\n"));
    let info = shop.get("/api/status/buildinfo", &[]).json();
    let version = info["version"].as_str().unwrap();
    assert!(version.trim_start_matches('v').split('.').count() >= 3, "a version as semver: {version}");
    for path in ["/status", "/status/version", "/status/services", "/status/endpoints", "/status/config", "/status/runtime_config"] {
        let reply = shop.get(path, &[]);
        assert!(reply.status == 200 && !reply.body.is_empty(), "{path}: {} {}", reply.status, reply.text());
    }
    assert!(shop.get("/status/config", &[]).text().contains("trace_idle_period"), "the settings in force");
    assert_eq!(shop.get("/status/overrides", &[]).status, 200);
    assert_eq!(shop.get("/nowhere", &[]).status, 404);
    assert_eq!(shop.get("/api/mcp", &[]).status, 404);
    // None of these needs a tenant.
    for path in ["/ready", "/metrics", "/status", "/api/status/buildinfo", "/api/echo"] {
        assert_eq!(wait(shop.client().request("GET", path, &[], &[], Vec::new())).status, 200, "{path}");
    }
}

#[test]
fn metrics_have_tempos_names() {
    let server = Server::start(crate::harness::nothing_is_cut());
    let client = server.client();
    load(client, TENANT);
    assert_eq!(client.metric("tempo_distributor_spans_received_total"), Some(4.0));
    assert!(client.metric("tempo_distributor_bytes_received_total").is_some_and(|bytes| bytes > 100.0));
    assert_eq!(client.metric("tempo_ingester_live_traces"), Some(2.0));
    assert_eq!(client.metric("tempo_receiver_accepted_spans"), Some(4.0));
    client.flush();
    assert_eq!(client.metric("tempo_ingester_live_traces"), Some(0.0));
    assert!(client.metric("tempo_build_info").is_some());
}

#[test]
fn a_flush_makes_blocks_and_keeps_answers() {
    let server = Server::start(crate::harness::nothing_is_cut());
    load(server.client(), TENANT);
    let blocks = || crate::formats::block_files(&server.blocks(), "meta.json").len();
    assert_eq!(blocks(), 0);
    server.client().flush();
    assert!(blocks() > 0);
    assert_eq!(
        wait(server.client().search(TENANT, "{}", (START_SECONDS - 10, START_SECONDS + 100), 1)).json()["traces"].as_array().unwrap().len(),
        2
    );
    server.client().flush();
    let of_tenant = |tenant: &str| wait(server.client().request("GET", "/flush", &[("tenant", tenant)], &[], Vec::new())).status;
    assert_eq!(of_tenant(TENANT), 204);
    assert_eq!(of_tenant("nobody"), 404);
}

#[test]
fn shutdown_by_http_flushes_and_ends_well() {
    for path in ["/shutdown", "/ingester/shutdown"] {
        let mut server = Server::start(crate::harness::nothing_is_cut());
        load(server.client(), TENANT);
        let reply = wait(server.client().request("POST", path, &[], &[], Vec::new()));
        assert!(matches!(reply.status, 200 | 204), "{path}: {} {}", reply.status, reply.text());
        let status = server.wait_for_exit();
        assert!(status.success(), "{path}: {status}");
        assert!(!crate::formats::block_files(&server.blocks(), "meta.json").is_empty(), "{path}: everything is flushed");
        server.restart();
        assert!(wait(server.client().trace(TENANT, SHORT)).is_some(), "{path}");
    }
}

#[test]
fn sigterm_ends_well_and_keeps_everything() {
    let mut server = Server::start(crate::harness::nothing_is_cut());
    load(server.client(), TENANT);
    server.stop();
    server.restart();
    assert!(wait(server.client().trace(TENANT, SHORT)).is_some());
}

#[test]
fn the_prefix_goes_before_the_api_only() {
    let server = Server::start(json!({ "http_api_prefix": "/tempo" }));
    load(server.client(), TENANT);
    let status = |path: &str| wait(server.client().get(TENANT, path, &[])).status;
    assert_eq!((status("/tempo/api/traces/abc"), status("/api/traces/abc")), (200, 404));
    assert_eq!((status("/tempo/api/echo"), status("/api/echo")), (200, 404));
    assert_eq!((status("/ready"), status("/metrics"), status("/status")), (200, 200, 200));
}

#[test]
fn the_same_question_has_the_same_answer() {
    let shop = Shop::open();
    let ask = || shop.get("/api/search", &with_window(&[("q", "{ kind = server || kind = client }")])).json()["traces"].clone();
    let first = ask();
    assert_eq!(first.as_array().unwrap().len(), 1);
    for _ in 0..20 {
        assert_eq!(ask(), first);
    }
}

#[test]
fn large_answers_are_compressed_on_request() {
    let server = Server::start(json!({}));
    let spans = (1..=200).map(|n| otlp::span([2; 16], n, 0, "one of many", START + n, 10)).collect();
    wait(server.client().send(Transport::HttpProtobuf, Compression::None, TENANT, &otlp::request("s", spans))).unwrap();
    let path = format!("/api/v2/traces/{}", otlp::hex(&[2; 16]));
    let ask = |headers: &[(&str, &str)]| wait(server.client().request("GET", &path, &[], headers, Vec::new()));
    let plain = ask(&[("X-Scope-OrgID", TENANT)]);
    let packed = ask(&[("X-Scope-OrgID", TENANT), ("Accept-Encoding", "gzip")]);
    assert_eq!((plain.header("content-encoding"), packed.header("content-encoding")), ("", "gzip"));
    let mut unpacked = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed.body[..]), &mut unpacked).unwrap();
    let spans = |body: &[u8]| serde_json::from_slice::<Value>(body).unwrap()["trace"].clone();
    assert_eq!(spans(&unpacked), spans(&plain.body));
}

#[test]
fn grpc_answers_on_the_http_port_when_asked_to() {
    let server = Server::start(json!({ "stream_over_http_enabled": true }));
    load(server.client(), TENANT);
    assert_eq!(wait(server.client().get(TENANT, "/api/echo", &[])).status, 200, "HTTP/1.1 still answers there");
    for address in [server.client().addresses.http, server.client().addresses.grpc] {
        let search = |q: &str| {
            let request = SearchRequest {
                query: q.to_owned(),
                limit: 20,
                start: (START_SECONDS - 10) as u32,
                end: (START_SECONDS + 100) as u32,
                ..Default::default()
            };
            wait(streamed_search(address, request))
        };
        let answers = search("{ }").unwrap_or_else(|status| panic!("{address}: {status:?}"));
        let ids: std::collections::BTreeSet<String> = answers.into_iter().flat_map(|answer| answer.traces).map(|trace| trace.trace_id).collect();
        assert_eq!(ids.len(), 2, "{address}: {ids:?}");
        // An error is told by the first answer, not by opening the stream.
        assert_eq!(search("{resource.service.name=article}").unwrap_err().code(), tonic::Code::InvalidArgument, "{address}");
    }
}

async fn streamed_search(address: std::net::SocketAddr, request: SearchRequest) -> Result<Vec<SearchResponse>, tonic::Status> {
    let channel = tonic::transport::Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let mut request = tonic::Request::new(request);
    request.metadata_mut().insert("x-scope-orgid", TENANT.parse().unwrap());
    let codec = tonic_prost::ProstCodec::<SearchRequest, SearchResponse>::default();
    let path = PathAndQuery::from_static("/tempopb.StreamingQuerier/Search");
    let mut stream = client.server_streaming(request, path, codec).await?.into_inner();
    let mut answers = Vec::new();
    while let Some(answer) = stream.message().await? {
        answers.push(answer);
    }
    Ok(answers)
}

#[test]
fn idle_traces_become_blocks_by_themselves() {
    let server = Server::start(json!({ "ingester": { "trace_idle_period": "100ms", "flush_check_period": "100ms", "max_block_duration": "200ms" } }));
    load(server.client(), TENANT);
    until("a block", PATIENCE, || !crate::formats::block_files(&server.blocks(), "meta.json").is_empty());
    until("no live trace", PATIENCE, || server.client().metric("tempo_ingester_live_traces") == Some(0.0));
    assert!(wait(server.client().trace(TENANT, SHORT)).is_some());
    let mut late = otlp::span(SHORT, 9, 1, "late", START + 10, 10);
    late.kind = 5;
    wait(server.client().send(Transport::HttpProtobuf, Compression::None, TENANT, &otlp::request("frontend", vec![late]))).unwrap();
    let found = wait(server.client().search(TENANT, "{ kind = consumer }", (START_SECONDS - 10, START_SECONDS + 100), 5)).json();
    assert_eq!(found["traces"][0]["rootTraceName"], "GET /", "a late span is joined to its trace: {found}");
}
