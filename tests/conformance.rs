//! The answers of `golden/conformance/tempo.json.zst`, recorded from Grafana Tempo: asked over live data, over blocks, after a restart, and
//! with traces that lie half in a block and half live.
//!
//! An entry is `{id, dataset, kind, params, expect}` with `q`, `tag` or `trace`. Answers are compared in a normal form: lists without an order of
//! their own are sorted, beyond 20 traces only ids and matched counts are kept, numbers agree within one part in 10^9. For refused queries only the
//! status counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures::StreamExt;
use serde_json::{Value, json};
use skein_proto::otlp::collector::trace::v1::ExportTraceServiceRequest;
use skein_proto::otlp::trace::v1::Span;

use crate::harness::{Client, Compression, Findings, Server, Transport, nothing_is_cut, tests_dir, wait};
use crate::otlp;

/// Traces of a search kept with all their spans.
const WHOLE_TRACES: usize = 20;

#[test]
fn recorded_answers_agree_live_flushed_and_restarted() {
    let entries = entries();
    let datasets = datasets(&entries);
    assert_eq!(datasets, BTreeSet::from(["deathstar", "genai", "nodedb", "shellci"]));
    let mut server = Server::start(nothing_is_cut());
    for dataset in datasets {
        server.client().load(Transport::HttpProtobuf, dataset);
    }
    let mut findings = Findings::new();
    check(&mut findings, "live", server.client(), &entries, Standard::Complete);
    server.client().flush();
    check(&mut findings, "flushed", server.client(), &entries, Standard::Complete);
    server.stop();
    server.configure(json!({ "query_frontend": { "tempo_parity": true } }));
    server.restart();
    check(&mut findings, "restarted for parity", server.client(), &entries, Standard::Parity);
    findings.finish();
}

/// Every second span of every tenth trace is live while the rest of its trace lies in a block.
#[test]
fn recorded_answers_agree_where_traces_are_split() {
    let entries = entries();
    let server = Server::start(nothing_is_cut());
    let mut late = Vec::new();
    for dataset in datasets(&entries) {
        let (early, others): (Vec<_>, Vec<_>) = split(otlp::requests(dataset)).into_iter().unzip();
        send_all(server.client(), dataset, early);
        late.push((dataset, others));
    }
    server.client().flush();
    late.into_iter().for_each(|(dataset, requests)| send_all(server.client(), dataset, requests));
    let mut findings = Findings::new();
    check(&mut findings, "split", server.client(), &entries, Standard::Complete);
    findings.finish();
}

fn datasets(entries: &[Value]) -> BTreeSet<&str> {
    entries.iter().map(|entry| string(entry, "dataset")).collect()
}

/// Each request as two: what is sent early, and every second span of every tenth trace.
fn split(requests: impl Iterator<Item = ExportTraceServiceRequest>) -> Vec<(ExportTraceServiceRequest, ExportTraceServiceRequest)> {
    let mut seen = HashMap::<Vec<u8>, (usize, usize)>::new();
    let mut is_late = move |span: &Span| {
        let known = seen.len();
        let (trace, spans) = seen.entry(span.trace_id.clone()).or_insert((known, 0));
        *spans += 1;
        trace.is_multiple_of(10) && spans.is_multiple_of(2)
    };
    let mut halves = |early: ExportTraceServiceRequest| {
        let mut late = early.clone();
        let mut early = early;
        for (early, late) in early.resource_spans.iter_mut().zip(&mut late.resource_spans) {
            for (early, late) in early.scope_spans.iter_mut().zip(&mut late.scope_spans) {
                (late.spans, early.spans) = std::mem::take(&mut early.spans).into_iter().partition(&mut is_late);
            }
        }
        (early, late)
    };
    requests.map(&mut halves).collect()
}

fn send_all(client: &Client, dataset: &str, requests: Vec<ExportTraceServiceRequest>) {
    let sends = requests.into_iter().map(|request| async move {
        client.send(Transport::HttpProtobuf, Compression::None, dataset, &request).await.unwrap_or_else(|refused| panic!("{dataset}: {refused:?}"));
    });
    wait(futures::stream::iter(sends).buffer_unordered(4).collect::<Vec<()>>());
}

/// What recorded answers are held against.
#[derive(Clone, Copy, PartialEq)]
enum Standard {
    /// Answers of the standard settings, which may hold more than was recorded, see [`without_known_differences`].
    Complete,
    /// Answers under `tempo_parity`, which may not.
    Parity,
}

pub fn entries() -> Vec<Value> {
    let packed = std::fs::read(tests_dir().join("golden/conformance/tempo.json.zst")).unwrap();
    serde_json::from_slice(&zstd::decode_all(packed.as_slice()).unwrap()).unwrap()
}

fn check(findings: &mut Findings, phase: &str, client: &Client, entries: &[Value], standard: Standard) {
    let answers = futures::stream::iter(entries.iter().map(|entry| async move { (entry, ask(client, entry).await) }));
    let mut agreed = BTreeMap::<&str, (usize, usize)>::new();
    for (entry, found) in wait(answers.buffered(3).collect::<Vec<_>>()) {
        let (kind, expected) = (string(entry, "kind"), &entry["expect"]);
        let same = if expected["status"] == 200 {
            let answers = (expected["answer"].clone(), found["answer"].clone());
            let (wanted, found) = match standard {
                Standard::Complete => without_known_differences(entry, answers.0, answers.1),
                Standard::Parity => answers,
            };
            first_difference(&sorted_answer(kind, wanted), &found, "")
        } else {
            (expected["status"] != found["status"]).then(|| format!("expected status {}, found {found}", expected["status"]))
        };
        let (same, detail) = (same.is_none(), same.unwrap_or_default());
        let counts = agreed.entry(kind).or_default();
        counts.0 += usize::from(same);
        counts.1 += 1;
        findings.within(phase);
        let label = ["q", "tag", "trace"].iter().find_map(|key| entry[key].as_str()).unwrap_or("");
        findings.holds(&format!("{} {label}", string(entry, "id")), same, || {
            format!("{detail}{}", if found["status"] == 200 { String::new() } else { format!(" (answered {found})") })
        });
    }
    println!("{phase}: agreed of asked {agreed:?}");
}

/// Attributes that Tempo keeps in columns of their own and so leaves out of the names of stored blocks.
const UNLISTED: [&str; 8] =
    ["http.method", "http.request.method", "http.response.status_code", "http.status_code", "http.url", "server.address", "server.port", "url.path"];

/// Where the recorded answers lack what was sent, Skein's are complete (`docs/differences.md`, "Results"): span flags, the names of
/// well-known attributes, and `status` and `kind` by their names instead of their numbers. Takes these differences, and no others, out.
fn without_known_differences(entry: &Value, mut wanted: Value, mut found: Value) -> (Value, Value) {
    match string(entry, "kind") {
        "trace" => {
            for span in found.as_array_mut().into_iter().flatten() {
                for link in span["links"].as_array_mut().into_iter().flatten() {
                    link.as_object_mut().and_then(|link| link.remove("flags"));
                }
                span.as_object_mut().and_then(|span| span.remove("flags"));
            }
        }
        "tags" => {
            let recorded: Vec<Value> = wanted["span"].as_array().cloned().unwrap_or_default();
            if let Some(names) = found.get_mut("span").and_then(Value::as_array_mut) {
                names.retain(|name| recorded.contains(name) || !UNLISTED.iter().any(|unlisted| name == unlisted));
            }
        }
        "values" if entry["q"].is_null() => {
            let keywords = |words: &[&str]| Value::from_iter(words.iter().map(|word| json!(["keyword", word])));
            match string(entry, "tag") {
                "status" => wanted = keywords(&["error", "ok", "unset"]),
                "kind" => wanted = keywords(&["client", "consumer", "internal", "producer", "server", "unspecified"]),
                _ => {}
            }
        }
        _ => {}
    }
    (wanted, found)
}

async fn ask(client: &Client, entry: &Value) -> Value {
    let mut params = BTreeMap::<String, String>::new();
    for (key, value) in entry["params"].as_object().unwrap() {
        params.insert(key.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    }
    if let Some(q) = entry["q"].as_str() {
        params.insert("q".to_owned(), q.to_owned());
    }
    let kind = string(entry, "kind");
    let path = match kind {
        "search" => {
            params.entry("limit".to_owned()).or_insert("20000".to_owned());
            params.entry("spss".to_owned()).or_insert("100000".to_owned());
            "/api/search".to_owned()
        }
        "range" => {
            params.entry("exemplars".to_owned()).or_insert("0".to_owned());
            "/api/metrics/query_range".to_owned()
        }
        "instant" => "/api/metrics/query".to_owned(),
        "trace" => format!("/api/v2/traces/{}", string(entry, "trace")),
        "tags" => "/api/v2/search/tags".to_owned(),
        "values" => format!("/api/v2/search/tag/{}/values", string(entry, "tag")),
        "error" => entry["path"].as_str().unwrap_or("/api/search").to_owned(),
        other => panic!("unknown kind {other}"),
    };
    let params: Vec<(&str, &str)> = params.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let reply = client.get(string(entry, "dataset"), &path, &params).await;
    if reply.status != 200 || kind == "error" {
        return json!({ "status": reply.status, "body": reply.text() });
    }
    let answer = reply.json();
    let normal = match kind {
        "search" => normal_search(&answer),
        "range" => normal_series(&answer, normal_samples),
        "instant" => normal_series(&answer, |series| json!({ "labels": normal_labels(series), "value": or(series, "value", 0) })),
        "trace" => normal_trace(&answer),
        "tags" => list(&answer, "scopes").iter().map(|scope| (string(scope, "name").to_owned(), scope["tags"].clone())).collect(),
        _ => list(&answer, "tagValues").iter().map(|value| json!([value["type"], or(value, "value", "")])).collect(),
    };
    json!({ "status": 200, "answer": sorted_answer(kind, normal) })
}

fn normal_series(answer: &Value, normal: impl Fn(&Value) -> Value) -> Value {
    let mut series: Vec<Value> = list(answer, "series").iter().map(normal).collect();
    series.sort_by_key(|series| series["labels"].to_string());
    json!({ "series": series })
}

fn normal_samples(series: &Value) -> Value {
    let time = |sample: &Value| string(sample, "timestampMs").parse::<i64>().unwrap();
    let samples: Vec<Value> = list(series, "samples").iter().map(|sample| json!([time(sample), or(sample, "value", 0)])).collect();
    json!({ "labels": normal_labels(series), "samples": samples })
}

fn normal_labels(series: &Value) -> Value {
    let mut labels: Vec<Value> = list(series, "labels").iter().map(|label| json!([label["key"], label["value"]])).collect();
    labels.sort_by_key(Value::to_string);
    Value::from(labels)
}

fn normal_search(answer: &Value) -> Value {
    let mut traces: Vec<Value> = list(answer, "traces").iter().map(normal_search_trace).collect();
    traces.sort_by(|a, b| string(a, "traceID").cmp(string(b, "traceID")));
    let matched = |trace: &Value| list(trace, "spanSets").iter().map(|set| set["matched"].as_u64().unwrap_or(0)).sum::<u64>();
    let rest: Vec<_> = traces.iter().skip(WHOLE_TRACES).map(|trace| json!([trace["traceID"], matched(trace)])).collect();
    let (count, all_matched) = (traces.len(), traces.iter().map(matched).sum::<u64>());
    traces.truncate(WHOLE_TRACES);
    json!({ "count": count, "matched": all_matched, "traces": traces, "rest": rest })
}

fn normal_search_trace(trace: &Value) -> Value {
    let sets = match list(trace, "spanSets") {
        [] => trace.get("spanSet").map(std::slice::from_ref).unwrap_or_default(),
        sets => sets,
    };
    let sets: Vec<Value> = sets.iter().map(normal_spanset).collect();
    json!({
        "traceID": trace["traceID"],
        "rootServiceName": or(trace, "rootServiceName", ""),
        "rootTraceName": or(trace, "rootTraceName", ""),
        "startTimeUnixNano": or(trace, "startTimeUnixNano", "0"),
        "durationMs": or(trace, "durationMs", 0),
        "spanSets": sets,
    })
}

fn normal_spanset(set: &Value) -> Value {
    let spans: Vec<Value> = list(set, "spans")
        .iter()
        .map(|span| {
            json!({
                "spanID": span["spanID"],
                "start": or(span, "startTimeUnixNano", "0"),
                "dur": or(span, "durationNanos", "0"),
                "name": or(span, "name", ""),
                "attributes": pairs(span, "attributes"),
            })
        })
        .collect();
    let mut normal = json!({ "matched": or(set, "matched", 0), "spans": spans });
    if !list(set, "attributes").is_empty() {
        normal["attributes"] = pairs(set, "attributes");
    }
    normal
}

fn normal_trace(answer: &Value) -> Value {
    let mut spans = Vec::new();
    for of_resource in list(&answer["trace"], "resourceSpans") {
        for of_scope in list(of_resource, "scopeSpans") {
            for span in list(of_scope, "spans") {
                let mut normal = span.clone();
                let with_pairs = |items: &[Value]| -> Vec<Value> {
                    let replaced = items.iter().cloned().map(|mut item| {
                        item["attributes"] = pairs(&item, "attributes");
                        item
                    });
                    replaced.collect()
                };
                normal["attributes"] = pairs(span, "attributes");
                normal["resource"] = pairs(&of_resource["resource"], "attributes");
                normal["scope"] = json!([or(&of_scope["scope"], "name", ""), or(&of_scope["scope"], "version", "")]);
                normal["events"] = with_pairs(list(span, "events")).into();
                normal["links"] = with_pairs(list(span, "links")).into();
                normal["status"] = or(span, "status", json!({}));
                spans.push(normal);
            }
        }
    }
    spans.into()
}

/// `[key, value]` of every attribute.
fn pairs(of: &Value, key: &str) -> Value {
    list(of, key).iter().map(|attribute| json!([attribute["key"], or(attribute, "value", json!({}))])).collect()
}

fn list<'a>(of: &'a Value, key: &str) -> &'a [Value] {
    of[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn string<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_else(|| panic!("no text `{key}` in {of}"))
}

fn or(of: &Value, key: &str, default: impl Into<Value>) -> Value {
    of.get(key).cloned().unwrap_or_else(|| default.into())
}

/// Sorts the lists that have no order of their own; applied to both sides, so that only one order has to exist.
fn sorted_answer(kind: &str, mut answer: Value) -> Value {
    fn sort_inside(value: &mut Value) {
        match value {
            Value::Array(items) => items.iter_mut().for_each(sort_inside),
            Value::Object(members) => {
                for (key, member) in members.iter_mut() {
                    sort_inside(member);
                    if matches!(key.as_str(), "attributes" | "resource" | "spanSets" | "spans") {
                        sort(member);
                    }
                }
            }
            _ => {}
        }
    }
    sort_inside(&mut answer);
    match kind {
        "values" | "trace" => sort(&mut answer),
        "tags" => answer.as_object_mut().unwrap().values_mut().for_each(sort),
        _ => {}
    }
    answer
}

fn sort(value: &mut Value) {
    if let Value::Array(items) = value {
        items.sort_by_cached_key(|item| (item.get("spanID").or(item.get("spanId")).map(Value::to_string), in_order(item)));
    }
}

/// The value as text with the members of objects in order of their keys.
fn in_order(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(in_order).collect::<Vec<_>>().join(",")),
        Value::Object(members) => {
            let sorted: BTreeMap<_, _> = members.iter().map(|(key, member)| (key, in_order(member))).collect();
            format!("{sorted:?}")
        }
        other => other.to_string(),
    }
}

fn close(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            a == b || (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
        }
        (a, b) => a == b,
    }
}

/// The path of the first value that differs, and both values; `None` when they agree.
fn first_difference(expected: &Value, found: &Value, path: &str) -> Option<String> {
    match (expected, found) {
        (Value::Array(expected), Value::Array(found)) => {
            let inside =
                expected.iter().zip(found).enumerate().find_map(|(i, (expected, found))| first_difference(expected, found, &format!("{path}[{i}]")));
            let length = (expected.len() != found.len()).then(|| format!("{path}: expected {} items, found {}", expected.len(), found.len()));
            inside.or(length)
        }
        (Value::Object(expected), Value::Object(found)) => {
            let keys: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
            keys.into_iter().find_map(|key| {
                let of = |members: &serde_json::Map<String, Value>| members.get(key).cloned().unwrap_or(json!("(absent)"));
                first_difference(&of(expected), &of(found), &format!("{path}.{key}"))
            })
        }
        (expected, found) => (!close(expected, found)).then(|| {
            let short = |value: &Value| value.to_string().chars().take(200).collect::<String>();
            format!("{path}: expected {}, found {}", short(expected), short(found))
        }),
    }
}

#[test]
fn the_comparison_sees_differences_and_ignores_order() {
    let search = json!({ "traces": [
        { "traceID": "b", "spanSets": [{ "matched": 2, "spans": [
            { "spanID": "02" },
            { "spanID": "01", "attributes": [{ "key": "k", "value": { "intValue": "1" } }] },
        ] }] },
        { "traceID": "a", "spanSet": { "matched": 1, "spans": [] } },
    ] });
    let normal = sorted_answer("search", normal_search(&search));
    assert_eq!((&normal["count"], &normal["matched"]), (&json!(2), &json!(3)));
    assert_eq!(normal["traces"][1]["spanSets"][0]["spans"][0]["attributes"], json!([["k", { "intValue": "1" }]]));
    assert_eq!(first_difference(&normal, &normal, ""), None);
    let mut other = normal.clone();
    other["traces"][1]["spanSets"][0]["spans"][0]["spanID"] = json!("03");
    assert_eq!(first_difference(&normal, &other, "").unwrap(), r#".traces[1].spanSets[0].spans[0].spanID: expected "01", found "03""#);
    assert_eq!(first_difference(&json!([1.0, 2.0]), &json!([1.0, 2.000_000_000_1]), ""), None);
    assert!(first_difference(&json!([1.0, 2.0]), &json!([1.0, 2.000_001]), "").is_some());
    assert!(first_difference(&json!([1]), &json!([1, 2]), "").is_some());
}
