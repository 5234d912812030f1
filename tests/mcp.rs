//! The MCP endpoint and the comparison of traces, as a client of another project and as HTTP clients see them: over recorded traces, moved to the
//! present.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::harness::{Compression, Server, Transport, merge, nothing_is_cut, tests_dir, wait};
use crate::{otlp, tools};

const DATASET: &str = "nodedb";
const UNKNOWN: &str = "ffffffffffffffffffffffffffffffff";

/// Asks everything that a server offers, then makes the given calls; prints all answers as JSON.
const CLIENT: &str = r#"
import asyncio, json, sys
import httpx2
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

ask = json.loads(sys.argv[1])

def plain(model):
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)

async def tried(awaitable):
    try:
        return plain(await awaitable)
    except MCPError as error:
        return {"error": str(error)}

async def main():
    async with httpx2.AsyncClient(headers=ask["headers"], timeout=60) as http:
        async with Client(streamable_http_client(ask["url"], http_client=http), mode=ask["mode"]) as client:
            resources = plain(await client.list_resources())["resources"]
            told = {
                "version": client.protocol_version,
                "server": plain(client.server_info),
                "capabilities": plain(client.server_capabilities),
                "tools": plain(await client.list_tools())["tools"],
                "resources": resources,
                "texts": {r["uri"]: plain(await client.read_resource(r["uri"]))["contents"] for r in resources},
                "no_resource": await tried(client.read_resource("docs://traceql/none")),
                "prompts": await tried(client.list_prompts()),
                "calls": [await tried(client.call_tool(name, arguments)) for name, arguments in ask["calls"]],
            }
    print(json.dumps(told))

asyncio.run(main())
"#;

fn now_nanos() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

fn truth() -> Value {
    serde_json::from_slice(&std::fs::read(tests_dir().join(format!("data/{DATASET}.truth.json"))).unwrap()).unwrap()
}

/// A server with the recorded traces, as if they ended a minute ago.
fn server(overlay: Value) -> Server {
    let mut settings = nothing_is_cut();
    merge(&mut settings, json!({ "query_frontend": { "mcp_server": { "enabled": true } } }));
    merge(&mut settings, overlay);
    let server = Server::start(settings);
    let moved = now_nanos() - 60_000_000_000 - truth()["last_end_ns"].as_u64().unwrap();
    for mut request in otlp::requests(DATASET) {
        let scopes = request.resource_spans.iter_mut().flat_map(|resource| &mut resource.scope_spans);
        for span in scopes.flat_map(|scope| &mut scope.spans) {
            span.start_time_unix_nano += moved;
            span.end_time_unix_nano += moved;
            span.events.iter_mut().for_each(|event| event.time_unix_nano += moved);
        }
        wait(server.client().send(Transport::HttpProtobuf, Compression::None, DATASET, &request)).unwrap();
    }
    server
}

fn ask(python: &Path, server: &Server, tenant: &str, mode: &str, calls: Value) -> Value {
    let url = format!("http://{}/api/mcp", server.client().addresses.http);
    let ask = json!({ "url": url, "headers": { "X-Scope-OrgID": tenant }, "mode": mode, "calls": calls });
    serde_json::from_str(&tools::run_python(python, CLIENT, &[&ask.to_string()])).unwrap()
}

/// The text of a call that went well.
fn text<'a>(told: &'a Value, at: usize, meta: [&str; 3]) -> &'a str {
    let call = &told["calls"][at];
    assert_ne!(call["isError"], json!(true), "{call}");
    assert_eq!(call["content"].as_array().map(Vec::len), Some(1), "{call}");
    assert_eq!([&call["_meta"]["type"], &call["_meta"]["encoding"], &call["_meta"]["version"]], meta, "{call}");
    call["content"][0]["text"].as_str().unwrap()
}

/// The value of a call that went well with JSON.
fn result(told: &Value, at: usize, kind: &str, version: &str) -> Value {
    serde_json::from_str(text(told, at, [kind, "json", version])).unwrap()
}

/// Call `at` failed with a text that has all `parts`.
fn failed(told: &Value, at: usize, parts: &[&str]) {
    let call = &told["calls"][at];
    let text = call["content"][0]["text"].as_str().unwrap_or_default();
    assert_eq!(call["isError"], json!(true), "{call}");
    parts.iter().for_each(|part| assert!(text.contains(part), "`{part}` is not in `{text}`"));
}

const TOOLS: [(&str, &[&str], &[&str]); 9] = [
    ("traceql-search", &["query"], &["end", "start"]),
    ("traceql-metrics-instant", &["query"], &["end", "start"]),
    ("traceql-metrics-range", &["query"], &["end", "start"]),
    ("get-trace", &["trace_id"], &[]),
    ("trace-diff", &["base_trace_id", "compare_trace_id"], &["base_end", "base_start", "compare_end", "compare_start", "format"]),
    ("get-attribute-names", &[], &["scope"]),
    ("get-attribute-values", &["name"], &["filter-query"]),
    ("docs-traceql", &["name"], &[]),
    ("docs-config", &["name"], &[]),
];

const RESOURCES: [&str; 7] = [
    "docs://traceql/query",
    "docs://traceql/basic",
    "docs://traceql/aggregates",
    "docs://traceql/structural",
    "docs://traceql/metrics",
    "docs://config/overview",
    "docs://config/reference",
];

fn check_offers(told: &Value) {
    assert_eq!((&told["server"]["name"], &told["server"]["version"]), (&json!("tempo"), &json!("0.1.0")));
    let mut capabilities: Vec<&String> = told["capabilities"].as_object().unwrap().keys().collect();
    capabilities.sort_unstable();
    assert_eq!(capabilities, ["resources", "tools"]);

    let tools: BTreeMap<&str, &Value> = told["tools"].as_array().unwrap().iter().map(|tool| (tool["name"].as_str().unwrap(), tool)).collect();
    assert_eq!(tools.len(), TOOLS.len());
    for (name, required, optional) in TOOLS {
        let (tool, schema) = (tools[name], &tools[name]["inputSchema"]);
        let mut arguments: Vec<&str> = required.iter().chain(optional).copied().collect();
        arguments.sort_unstable();
        let mut listed: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
        listed.sort_unstable();
        assert_eq!(listed, arguments, "{name}");
        assert_eq!(schema.get("required").cloned().unwrap_or(json!([])), json!(required), "{name}");
        let hints = ["readOnlyHint", "destructiveHint", "openWorldHint"].map(|hint| tool["annotations"][hint].clone());
        assert_eq!(hints, [json!(true), json!(false), json!(false)], "{name}");
        assert!(tool["description"].as_str().is_some_and(|text| text.len() > 20), "{name}");
    }

    let uris: Vec<&str> = told["resources"].as_array().unwrap().iter().map(|resource| resource["uri"].as_str().unwrap()).collect();
    assert_eq!(uris, RESOURCES);
    for uri in RESOURCES {
        let contents = &told["texts"][uri][0];
        assert_eq!((&contents["mimeType"], &contents["uri"]), (&json!("text/markdown"), &json!(uri)));
        assert!(contents["text"].as_str().unwrap().starts_with("# "), "{uri}");
    }
    assert!(told["no_resource"]["error"].as_str().unwrap().contains("docs://traceql/basic"), "{}", told["no_resource"]);
    assert!(told["prompts"]["error"].is_string() || told["prompts"]["prompts"] == json!([]), "{}", told["prompts"]);
}

#[test]
fn an_mcp_client_lists_calls_and_reads_everything() {
    let Some(python) = tools::or_skip("an_mcp_client_lists_calls_and_reads_everything", tools::python()) else { return };
    let mut server = server(json!({}));
    let truth = truth();
    let (base, compare) = (truth["slowest_traces"][0].clone(), truth["slowest_traces"][1].clone());
    let (base_id, compare_id) = (base["traceID"].as_str().unwrap(), compare["traceID"].as_str().unwrap());
    let calls = json!([
        ["traceql-search", { "query": "{ span.preflight.library = \"http\" }" }],
        ["traceql-metrics-instant", { "query": "{ } | count_over_time() by (span.preflight.library)" }],
        ["traceql-metrics-range", { "query": "{ kind = client } | count_over_time()" }],
        ["get-trace", { "trace_id": base_id }],
        ["trace-diff", { "base_trace_id": base_id, "compare_trace_id": compare_id }],
        ["get-attribute-names", { "scope": "span" }],
        ["get-attribute-values", { "name": "span.preflight.library" }],
        ["get-attribute-values", { "name": "span.preflight.library", "filter-query": "{ kind = client }" }],
        ["docs-traceql", { "name": "structural" }],
        ["docs-config", { "name": "config-reference" }],
        // What goes wrong.
        ["traceql-search", { "query": "{ status = }" }],
        ["traceql-search", { "query": "{ } | rate()" }],
        ["traceql-metrics-instant", { "query": "{ }" }],
        ["traceql-search", { "query": "{ }", "start": "today" }],
        ["traceql-search", { "query": "{ }", "start": "2020-01-01T00:00:00Z" }],
        ["get-trace", { "trace_id": UNKNOWN }],
        ["get-trace", { "trace_id": "x" }],
        ["trace-diff", { "base_trace_id": base_id, "compare_trace_id": UNKNOWN }],
        ["get-attribute-names", { "scope": "attribute" }],
        ["get-attribute-values", { "name": "span.a", "filter-query": "{ }" }],
        ["docs-traceql", { "name": "advanced" }],
        ["get-trace", {}],
        ["no-such-tool", {}],
    ]);
    for mode in ["legacy", "auto"] {
        let told = ask(&python, &server, DATASET, mode, calls.clone());
        check_offers(&told);

        let found = result(&told, 0, "search-results", "1");
        assert_eq!(found["traces"].as_array().unwrap().len(), 1, "{found}");
        let instant = result(&told, 1, "metrics-instant", "1");
        let counts: BTreeMap<&str, f64> = instant["series"]
            .as_array()
            .unwrap()
            .iter()
            .map(|series| (series["labels"][0]["value"]["stringValue"].as_str().unwrap(), series["value"].as_f64().unwrap()))
            .collect();
        let libraries = &truth["span_attributes"]["preflight.library"]["values"];
        let expected: BTreeMap<&str, f64> =
            libraries.as_array().unwrap().iter().map(|pair| (pair[0].as_str().unwrap(), pair[1].as_f64().unwrap())).collect();
        assert_eq!(counts, expected);
        let range = result(&told, 2, "metrics-range", "1");
        let sum: f64 = range["series"][0]["samples"].as_array().unwrap().iter().filter_map(|sample| sample["value"].as_f64()).sum();
        assert_eq!(Some(sum), truth["spans_per_kind"]["client"].as_f64());

        let trace = result(&told, 3, "trace", "2");
        assert_eq!(trace["trace"]["traceId"], base_id);
        let spans = trace["trace"]["services"].as_array().unwrap().iter().flat_map(|service| service["scopes"].as_array().unwrap());
        assert_eq!(spans.map(|scope| scope["spans"].as_array().unwrap().len() as u64).sum::<u64>(), base["spans"].as_u64().unwrap());
        let diff = result(&told, 4, "trace-diff", "2");
        assert_eq!((&diff["version"], &diff["summary"]["base"]["traceId"]), (&json!("trace-summary-v0-composed"), &json!(base_id)));
        assert_eq!((&diff["patch"]["stats"]["spanCountA"], &diff["patch"]["stats"]["spanCountB"]), (&base["spans"], &compare["spans"]));

        let names = result(&told, 5, "attribute-names", "2");
        let mut keys: Vec<&str> = truth["span_attributes"].as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        let mut listed: Vec<&str> = names["scopes"][0]["tags"].as_array().unwrap().iter().map(|tag| tag.as_str().unwrap()).collect();
        listed.sort_unstable();
        assert_eq!(listed, keys);
        let mut values: Vec<&str> = expected.keys().copied().collect();
        values.sort_unstable();
        assert_eq!(result(&told, 6, "attribute-values", "2")["tagValues"], json!({ "string": values }));
        assert_eq!(result(&told, 7, "attribute-values", "2")["tagValues"], json!({ "string": ["pg"] }));
        assert!(text(&told, 8, ["documentation", "markdown", "1"]).contains("siblings"));
        assert!(text(&told, 9, ["documentation", "markdown", "1"]).contains("query_frontend.mcp_server.enabled"));

        failed(&told, 10, &["query parse error. Consult TraceQL docs tools: ", "line 1, col "]);
        failed(&told, 11, &["traceql-metrics-instant"]);
        failed(&told, 12, &["use traceql-search"]);
        failed(&told, 13, &["invalid start time: "]);
        assert_eq!(result(&told, 14, "search-results", "1")["traces"].as_array().unwrap().len(), 20);
        failed(&told, 15, &["no such trace", "trace_id"]);
        failed(&told, 16, &["invalid trace_id: "]);
        failed(&told, 17, &["tool failed with http status code 404 and reason Not Found"]);
        failed(&told, 18, &["tool failed with http status code 400 and reason invalid scope: attribute"]);
        failed(&told, 19, &["filter-query invalid. "]);
        failed(&told, 20, &["basic, aggregates, structural, metrics"]);
        failed(&told, 21, &["argument trace_id is required"]);
        assert!(told["calls"][22]["error"].as_str().unwrap().contains("unknown tool 'no-such-tool'"), "{}", told["calls"][22]);
    }

    let other = ask(&python, &server, "other", "auto", calls);
    assert_eq!(result(&other, 0, "search-results", "1")["traces"], json!([]));
    assert_eq!(result(&other, 6, "attribute-values", "2")["tagValues"], json!({}));
    failed(&other, 3, &["no such trace"]);
    failed(&other, 4, &["tool failed with http status code 404 and reason Not Found"]);
    assert_eq!(server.client().metric("tempo_query_frontend_mcp_calls_total"), Some(3.0 * 22.0));
    server.stop();
}

#[test]
fn mcp_needs_a_tenant_and_keeps_no_session() {
    let server = server(json!({}));
    let post = |headers: &[(&str, &str)], body: Value| wait(server.client().request("POST", "/api/mcp", &[], headers, body.to_string().into_bytes()));
    let tenant = [("X-Scope-OrgID", DATASET), ("Content-Type", "application/json")];
    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": { "name": "get-attribute-names", "arguments": {} } });
    let refused = post(&tenant[1..], call.clone());
    assert_eq!((refused.status, refused.text().as_str()), (401, "no org id\n"));
    // Without a session, without having said hello, without an `Accept`.
    let answer = post(&tenant, call);
    assert_eq!((answer.status, answer.header("content-type"), answer.header("mcp-session-id")), (200, "application/json", ""));
    assert!(answer.json()["result"]["content"][0]["text"].as_str().unwrap().contains("preflight.library"));
    let noted = post(&tenant, json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }));
    assert_eq!((noted.status, noted.body.len()), (202, 0));
    let get = |method: &str| wait(server.client().request(method, "/api/mcp", &[], &[tenant[0], ("Accept", "text/event-stream")], Vec::new())).status;
    assert_eq!((get("GET"), get("DELETE")), (405, 405));
    assert_eq!(post(&tenant, json!({ "no": "message" })).status / 100, 4);
}

/// How many spans a trace answer has.
fn span_count(answer: &Value) -> usize {
    let scopes = answer["trace"]["resourceSpans"].as_array().into_iter().flatten().flat_map(|resource| resource["scopeSpans"].as_array().unwrap());
    scopes.map(|scope| scope["spans"].as_array().unwrap().len()).sum()
}

#[test]
fn a_trace_is_filtered_live_and_in_blocks() {
    let server = server(json!({}));
    let truth = truth();
    let trace = &truth["slowest_traces"][0];
    let path = format!("/api/v2/traces/{}", trace["traceID"].as_str().unwrap());
    let ask = |params: &[(&str, &str)]| wait(server.client().get(DATASET, &path, params)).json();
    let mut passes = Vec::new();
    for place in ["live", "in blocks"] {
        let whole = ask(&[]);
        assert_eq!((span_count(&whole) as u64, whole.get("status")), (trace["spans"].as_u64().unwrap(), None), "{place}");
        let spans: Vec<&Value> = whole["trace"]["resourceSpans"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|resource| resource["scopeSpans"].as_array().unwrap())
            .flat_map(|scope| scope["spans"].as_array().unwrap())
            .collect();
        // The root by itself, with its children, with all.
        let root = spans.iter().find(|span| span.get("parentSpanId").is_none()).unwrap();
        let children = spans.iter().filter(|span| span["parentSpanId"] == root["spanId"]).count();
        let q = "{ nestedSetParent < 0 }";
        let one = ask(&[("q", q)]);
        assert_eq!((span_count(&one), &one["status"]), (1, &json!("PARTIAL")), "{place}");
        assert_eq!(one["message"], "Trace filtered, only a subset of spans matching the filter is returned");
        assert_eq!(&one["trace"]["resourceSpans"][0]["scopeSpans"][0]["spans"][0], *root, "{place}");
        assert_eq!(span_count(&ask(&[("q", q), ("match_depth", "1")])), 1 + children, "{place}");
        let all = ask(&[("q", q), ("match_depth", "-1")]);
        assert_eq!((span_count(&all), all.get("status"), all.get("message")), (spans.len(), None, None), "{place}");
        // Spans without children, with the way up to the root; parents are ids in what comes back, although some are left out.
        let leaves = ask(&[("q", "{ span:childCount = 0 }")]);
        let parents: std::collections::BTreeSet<&str> = spans.iter().filter_map(|span| span["parentSpanId"].as_str()).collect();
        let leaf_count = spans.iter().filter(|span| !parents.contains(span["spanId"].as_str().unwrap())).count();
        assert_eq!(span_count(&leaves), leaf_count, "{place}");
        assert_eq!(span_count(&ask(&[("q", "{ span:childCount = 0 }"), ("keep_hierarchy", "true")])), spans.len(), "{place}");
        let one_up = ask(&[("q", "{ span:childCount = 0 }"), ("keep_hierarchy", "true"), ("ancestor_depth", "0")]);
        assert_eq!(span_count(&one_up), leaf_count, "{place}");
        let none = ask(&[("q", "{ name = `nobody` }"), ("start", "1"), ("end", "4000000000")]);
        assert_eq!((span_count(&none), &none["status"], &none["trace"]), (0, &json!("PARTIAL"), &json!({})), "{place}");
        passes.push((one["trace"].clone(), leaves["trace"].clone(), leaf_count));
        server.client().flush();
    }
    assert_eq!(passes[0], passes[1]);
    let unknown = wait(server.client().get(DATASET, &format!("/api/v2/traces/{UNKNOWN}"), &[("q", "{ }")])).json();
    assert_eq!((&unknown["trace"], unknown.get("status")), (&json!({}), None));
    for (params, part) in [
        ([("q", "{ .a = }"), ("x", "")], "invalid TraceQL filter: parse error at line 1, col 8"),
        ([("q", "{ } | count() > 1"), ("x", "")], "invalid TraceQL filter: "),
        ([("q", "{ rootName = `a` }"), ("x", "")], "invalid TraceQL filter: "),
        ([("q", "{ }"), ("match_depth", "-2")], "invalid value for match_depth: must be >= -1"),
    ] {
        let reply = wait(server.client().get(DATASET, &path, &params));
        assert_eq!(reply.status, 400, "{params:?}: {}", reply.text());
        assert!(reply.text().contains(part), "{params:?}: {}", reply.text());
    }
}

#[test]
fn two_traces_are_compared_over_http() {
    let server = server(json!({}));
    let truth = truth();
    let [base, compare] = [0, 1].map(|at| truth["slowest_traces"][at].clone());
    let post = |tenant: &str, body: Value| {
        let headers = [("X-Scope-OrgID", tenant), ("Content-Type", "application/json")];
        wait(server.client().request("POST", "/api/v2/traces/diff", &[], &headers, body.to_string().into_bytes()))
    };
    let body =
        |base: &Value, compare: &Value, format: &str| json!({ "base": { "traceId": base }, "compare": { "traceId": compare }, "format": format });
    let patch = post(DATASET, body(&base["traceID"], &compare["traceID"], "")).json();
    let stats = &patch["stats"];
    let count = |name: &str| stats[name].as_u64().unwrap();
    assert_eq!((&stats["spanCountA"], &stats["spanCountB"]), (&base["spans"], &compare["spans"]));
    assert_eq!(count("matchedSpans") + count("removedSpans"), count("spanCountA"));
    assert_eq!(count("matchedSpans") + count("addedSpans"), count("spanCountB"));
    assert_eq!(patch["removed"].as_array().unwrap().len() as u64, count("removedSpans"));
    let same = post(DATASET, body(&base["traceID"], &base["traceID"], "trace-summary-v0-native")).json();
    assert_eq!((&same["changedServices"], &same["trust"]["matchedSpanRatio"]), (&json!([]), &json!(1.0)));
    let other = post("other", body(&base["traceID"], &compare["traceID"], ""));
    assert_eq!((other.status, other.text().as_str()), (404, "Not Found"));
}
