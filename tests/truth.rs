//! The truth files of `data/`: each figure is asked of the process and must come back, whatever way the spans came in and wherever they are.
//!
//! The truth was computed from the sources of the recordings; `recorded_requests_hold_the_truth` shows that the requests of this folder hold it too,
//! so that a difference elsewhere is the product's.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures::StreamExt;
use serde_json::{Value, json};
use skein_proto::otlp::trace::v1::{ResourceSpans, Span};

use crate::harness::{Client, Findings, Server, Transport, nothing_is_cut, tests_dir, wait};
use crate::otlp::{self, DATASETS, TraceId};
use crate::sha256;

/// How much is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Totals, services, kinds, statuses, slowest and sample traces, edges between services, the list of queries, the attributes' keys.
    Figures,
    /// The same, and each attribute value, operation, name and the durations per service.
    Everything,
}

const INTRINSIC_KINDS: [&str; 6] = ["unspecified", "internal", "server", "client", "producer", "consumer"];
const STATUSES: [&str; 3] = ["unset", "ok", "error"];
/// Questions asked at the same time.
const PARALLEL: usize = 3;

#[test]
fn http_protobuf_live_flushed_and_restarted() {
    // Everything stays live until it is flushed, so that the first pass sees no block.
    let mut server = Server::start(nothing_is_cut());
    load_all(&server, Transport::HttpProtobuf);
    let mut findings = Findings::new();
    check_all(&mut findings, server.client(), "HTTP protobuf, live", Depth::Everything);
    server.client().flush();
    check_all(&mut findings, server.client(), "HTTP protobuf, flushed", Depth::Everything);
    server.stop();
    server.restart();
    check_all(&mut findings, server.client(), "HTTP protobuf, restarted", Depth::Everything);
    check_every_trace(&mut findings, server.client());
    findings.finish();
}

#[test]
fn grpc_live_replayed_flushed_and_restarted() {
    // Traces are cut while they arrive: the first pass sees live data and blocks.
    let mut server = Server::start(json!({ "ingester": { "trace_idle_period": "1s", "flush_check_period": "1s" } }));
    load_all(&server, Transport::Grpc);
    let mut findings = Findings::new();
    check_all(&mut findings, server.client(), "gRPC, live", Depth::Figures);
    server.kill();
    server.restart();
    check_all(&mut findings, server.client(), "gRPC, killed and replayed", Depth::Figures);
    server.client().flush();
    check_all(&mut findings, server.client(), "gRPC, flushed", Depth::Figures);
    server.stop();
    server.restart();
    check_all(&mut findings, server.client(), "gRPC, restarted", Depth::Figures);
    findings.finish();
}

#[test]
fn http_json_live_flushed_and_restarted() {
    // Small blocks: many of them, and merges beneath the questions.
    let mut server = Server::start(json!({
        "ingester": { "trace_idle_period": "500ms", "flush_check_period": "500ms", "max_block_bytes": 8_388_608 },
        "compactor": { "compaction": { "compaction_cycle": "1s" } },
    }));
    load_all(&server, Transport::HttpJson);
    let mut findings = Findings::new();
    check_all(&mut findings, server.client(), "HTTP JSON, live", Depth::Figures);
    server.client().flush();
    check_all(&mut findings, server.client(), "HTTP JSON, flushed", Depth::Figures);
    server.stop();
    server.restart();
    check_all(&mut findings, server.client(), "HTTP JSON, restarted", Depth::Figures);
    findings.finish();
}

fn load_all(server: &Server, transport: Transport) {
    for dataset in DATASETS {
        server.client().load(transport, dataset);
    }
}

fn check_all(findings: &mut Findings, client: &Client, phase: &str, depth: Depth) {
    for dataset in DATASETS {
        check(findings, client, dataset, phase, depth);
    }
}

/// Compares every span of every trace with what was sent.
fn check_every_trace(findings: &mut Findings, client: &Client) {
    for dataset in DATASETS {
        findings.within(format!("{dataset}, every trace by id"));
        let sent = otlp::digests(dataset);
        let fetches = sent.iter().map(|(id, expected)| async move {
            let returned = client.trace(dataset, *id).await.unwrap_or_default();
            let mut found: Vec<u64> = otlp::canonical(&returned).iter().map(otlp::digest).collect();
            found.sort_unstable();
            (*id, expected.len(), found.len(), *expected == found)
        });
        let results = wait(futures::stream::iter(fetches).buffer_unordered(4).collect::<Vec<_>>());
        for (id, sent, returned, same) in results {
            findings.holds(&otlp::hex(&id), same, || format!("{sent} spans sent, {returned} returned, or some that differ"));
        }
    }
}

/// One TraceQL query with the figures it must give.
#[derive(Clone, Debug)]
struct Question {
    what: String,
    q: String,
    spans: Option<u64>,
    traces: Option<u64>,
}

/// A truth file.
struct Truth {
    dataset: String,
    figures: Value,
}

impl Truth {
    fn read(dataset: &str) -> Self {
        let text = std::fs::read(tests_dir().join(format!("data/{dataset}.truth.json"))).unwrap();
        Self { dataset: dataset.to_owned(), figures: serde_json::from_slice(&text).unwrap() }
    }

    fn number(&self, key: &str) -> u64 {
        number(&self.figures, key)
    }

    fn members(&self, key: &str) -> impl Iterator<Item = (&str, &Value)> {
        self.figures[key].as_object().unwrap_or_else(|| panic!("no object {key}")).iter().map(|(key, value)| (key.as_str(), value))
    }

    fn items(&self, key: &str) -> &[Value] {
        self.figures[key].as_array().unwrap_or_else(|| panic!("no list {key}"))
    }

    /// From the first start to the last end, in whole seconds around it.
    fn seconds(&self) -> (u64, u64) {
        (self.number("first_start_ns") / 1_000_000_000, self.number("last_end_ns") / 1_000_000_000 + 1)
    }

    fn questions(&self, depth: Depth) -> Vec<Question> {
        let mut all = Vec::new();
        let mut ask = |what: &str, q: String, spans: Option<u64>, traces: Option<u64>| all.push(Question { what: what.to_owned(), q, spans, traces });
        for query in self.items("queries") {
            // An int literal finds doubles of the same value too.
            let expected = query.get("or_with_doubles").unwrap_or(query);
            ask("queries", text(query, "q").to_owned(), expected["spans"].as_u64(), expected["traces"].as_u64());
        }
        for kind in INTRINSIC_KINDS {
            ask("spans_per_kind", format!("{{ kind = {kind} }}"), Some(self.figures["spans_per_kind"][kind].as_u64().unwrap_or(0)), None);
        }
        for status in STATUSES {
            ask("spans_per_status", format!("{{ status = {status} }}"), Some(self.figures["spans_per_status"][status].as_u64().unwrap_or(0)), None);
        }
        ask("errors", "{ status = error }".to_owned(), Some(self.number("error_spans")), Some(self.number("traces_with_error")));
        ask("root_spans", r#"{ span:parentID = "0000000000000000" }"#.to_owned(), Some(self.number("root_spans")), None);
        for (service, spans) in self.members("spans_per_service") {
            ask("spans_per_service", format!("{{ {} }}", is_service(service)), spans.as_u64(), None);
        }
        for edge in self.items("service_edges") {
            let (parent, child) = (is_service(text(edge, "parent")), is_service(text(edge, "child")));
            ask("service_edges", format!("{{ {parent} }} > {{ {child} }}"), edge["calls"].as_u64(), None);
        }
        for scope in ["span", "resource"] {
            for (key, figures) in self.members(&format!("{scope}_attributes")) {
                ask("spans with attribute", format!("{{ {} != nil }}", reference(scope, key)), figures["spans"].as_u64(), None);
            }
        }
        if depth == Depth::Everything {
            self.deep_questions(&mut ask);
        }
        all
    }

    fn deep_questions(&self, ask: &mut impl FnMut(&str, String, Option<u64>, Option<u64>)) {
        for scope in ["span", "resource"] {
            for (key, figures) in self.members(&format!("{scope}_attributes")) {
                // The truth writes arrays as text of another language.
                if figures["types"].get("array").is_some() {
                    continue;
                }
                for pair in figures["values"].as_array().into_iter().flatten() {
                    ask("spans with value", format!("{{ {} = {} }}", reference(scope, key), literal(&pair[0])), pair[1].as_u64(), None);
                }
            }
        }
        for operation in self.items("operations_top20") {
            let q = format!("{{ {} && name = {} }}", is_service(text(operation, "service")), literal(&operation["name"]));
            ask("operations_top20", q, operation["spans"].as_u64(), None);
        }
        for name in self.items("names_top20") {
            ask("names_top20", format!("{{ name = {} }}", literal(&name["name"])), name["spans"].as_u64(), None);
        }
        for (service, figures) in self.members("duration_ns_per_service") {
            let mut of = |condition: String, spans: Option<u64>| {
                ask("duration_ns_per_service", format!("{{ {} && {condition} }}", is_service(service)), spans, None)
            };
            of(format!("duration > {}ns", number(figures, "max")), Some(0));
            of(format!("duration < {}ns", number(figures, "min")), Some(0));
            of(format!("duration >= {}ns && duration <= {}ns", number(figures, "min"), number(figures, "max")), figures["count"].as_u64());
        }
    }
}

fn is_service(service: &str) -> String {
    format!("resource.service.name = {}", literal(&json!(service)))
}

/// A scoped attribute, its name quoted.
fn reference(scope: &str, key: &str) -> String {
    format!("{scope}.{}", literal(&json!(key)))
}

/// A TraceQL literal; JSON's escapes are Go's.
fn literal(value: &Value) -> String {
    value.to_string()
}

fn number(of: &Value, key: &str) -> u64 {
    of[key].as_u64().unwrap_or_else(|| panic!("no number `{key}` in {of}"))
}

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_else(|| panic!("no text `{key}` in {of}"))
}

/// Asks all figures of one dataset, which lies in the tenant of its name.
pub fn check(findings: &mut Findings, client: &Client, dataset: &str, phase: &str, depth: Depth) {
    let truth = Truth::read(dataset);
    findings.within(format!("{phase}, {dataset}"));
    check_questions(findings, client, &truth, depth);
    check_overview(findings, client, &truth);
    check_durations(findings, client, &truth);
    check_samples(findings, client, &truth);
    check_attributes(findings, client, &truth);
}

fn check_questions(findings: &mut Findings, client: &Client, truth: &Truth, depth: Depth) {
    let asked = truth.questions(depth).into_iter().map(|question| async move {
        let reply = client.search(&truth.dataset, &question.q, truth.seconds(), 1).await;
        (question, reply)
    });
    for (question, reply) in wait(futures::stream::iter(asked).buffered(PARALLEL).collect::<Vec<_>>()) {
        let what = format!("{} {}", question.what, question.q);
        if reply.status != 200 {
            findings.holds(&what, false, || format!("{} {}", reply.status, reply.text()));
            continue;
        }
        let answer = reply.json();
        let traces = answer["traces"].as_array().map(Vec::as_slice).unwrap_or_default();
        if let Some(expected) = question.spans {
            findings.equal(&format!("{what}, spans"), expected, traces.iter().map(matched).sum());
        }
        if let Some(expected) = question.traces {
            findings.equal(&format!("{what}, traces"), expected, traces.len() as u64);
        }
    }
}

/// Spans of a trace that a search matched.
fn matched(trace: &Value) -> u64 {
    trace["spanSets"].as_array().into_iter().flatten().map(|set| set["matched"].as_u64().unwrap_or(0)).sum()
}

/// One search over everything gives totals and the spans of each trace, and is ordered.
fn check_overview(findings: &mut Findings, client: &Client, truth: &Truth) {
    let answer = wait(client.search(&truth.dataset, "{ }", truth.seconds(), 1)).json();
    let traces = answer["traces"].as_array().unwrap();
    findings.equal("traces", truth.number("traces"), traces.len() as u64);
    findings.equal("spans", truth.number("spans"), traces.iter().map(matched).sum());
    let mut sizes: Vec<u64> = traces.iter().map(matched).collect();
    sizes.sort_unstable();
    let figures = &truth.figures["spans_per_trace"];
    if !sizes.is_empty() {
        let rank = |q: f64| sizes[((q * sizes.len() as f64).ceil() as usize).max(1) - 1];
        findings.equal("spans_per_trace.min", number(figures, "min"), sizes[0]);
        findings.equal("spans_per_trace.p50", number(figures, "p50"), rank(0.50));
        findings.equal("spans_per_trace.p99", number(figures, "p99"), rank(0.99));
        findings.equal("spans_per_trace.max", number(figures, "max"), sizes[sizes.len() - 1]);
    }
    let starts: Vec<u64> = traces.iter().map(|trace| text(trace, "startTimeUnixNano").parse().unwrap()).collect();
    findings.holds("most recent first", starts.is_sorted_by(|a, b| a >= b), || "the traces are in another order".to_owned());
    findings.equal("first_start_ns", Some(truth.number("first_start_ns")), starts.iter().min().copied());
}

/// The slowest traces are found as such, with their root, start and duration.
fn check_durations(findings: &mut Findings, client: &Client, truth: &Truth) {
    let slowest = truth.items("slowest_traces");
    let least = slowest.iter().map(|trace| number(trace, "duration_ns")).min().unwrap();
    let answer = wait(client.search(&truth.dataset, &format!("{{ trace:duration >= {least}ns }}"), truth.seconds(), 1)).json();
    let found: HashMap<TraceId, &Value> =
        answer["traces"].as_array().into_iter().flatten().map(|trace| (otlp::trace_id(text(trace, "traceID")), trace)).collect();
    findings.holds("slowest_traces", found.len() >= slowest.len(), || format!("{} traces of at least {least} ns", found.len()));
    for expected in slowest {
        let what = format!("slowest trace {}", text(expected, "traceID"));
        let Some(trace) = found.get(&otlp::trace_id(text(expected, "traceID"))) else {
            findings.holds(&what, false, || "not found by its duration".to_owned());
            continue;
        };
        let described = |root: &str, name: &str, start: u64, ms: u64, spans: u64| format!("{root} / {name} at {start}, {ms} ms, {spans} spans");
        findings.equal(
            &what,
            described(
                text(expected, "root_service"),
                text(expected, "root_name"),
                number(expected, "start_ns"),
                number(expected, "duration_ns") / 1_000_000,
                number(expected, "spans"),
            ),
            described(
                trace["rootServiceName"].as_str().unwrap_or(""),
                trace["rootTraceName"].as_str().unwrap_or(""),
                text(trace, "startTimeUnixNano").parse().unwrap(),
                trace["durationMs"].as_u64().unwrap_or(0),
                matched(trace),
            ),
        );
    }
}

fn check_samples(findings: &mut Findings, client: &Client, truth: &Truth) {
    for expected in truth.items("sample_traces") {
        let id = text(expected, "traceID");
        let returned = wait(client.trace(&truth.dataset, otlp::trace_id(id))).unwrap_or_default();
        check_sample(findings, expected, &returned);
    }
}

/// The digest of the truth: spans in the order of their ids, one line each.
fn check_sample(findings: &mut Findings, expected: &Value, trace: &[ResourceSpans]) {
    let what = format!("sample trace {}", text(expected, "traceID"));
    let mut lines = BTreeMap::new();
    let (mut start, mut end, mut spans) = (u64::MAX, 0, 0);
    let mut roots: Vec<(u64, &str, &str)> = Vec::new();
    for of_resource in trace {
        let service = otlp::resource_text(of_resource, "service.name");
        for span in of_resource.scope_spans.iter().flat_map(|scope| &scope.spans) {
            lines.insert(span.span_id.clone(), line(span, service));
            (start, end, spans) = (start.min(span.start_time_unix_nano), end.max(span.end_time_unix_nano), spans + 1);
            if span.parent_span_id.is_empty() {
                roots.push((span.start_time_unix_nano, service, &span.name));
            }
        }
    }
    let whole: String = lines.into_values().collect();
    findings.equal(&format!("{what}, spans"), number(expected, "spans"), spans);
    findings.equal(&format!("{what}, sha256"), text(expected, "sha256"), sha256::hex_digest(whole.as_bytes()).as_str());
    findings.equal(&format!("{what}, start"), number(expected, "start_ns"), start);
    findings.equal(&format!("{what}, duration"), number(expected, "duration_ns"), end.saturating_sub(start));
    findings.equal(&format!("{what}, root spans"), number(expected, "root_spans"), roots.len() as u64);
    let root = roots.iter().min_by_key(|root| root.0).map(|(_, service, name)| (*service, *name));
    findings.equal(&format!("{what}, root"), expected["root_service"].as_str().zip(expected["root_name"].as_str()), root);
}

fn line(span: &Span, service: &str) -> String {
    let kind = INTRINSIC_KINDS[usize::try_from(span.kind).unwrap()];
    let status = STATUSES[span.status.as_ref().map_or(0, |status| usize::try_from(status.code).unwrap())];
    format!(
        "{}|{}|{}|{}|{kind}|{status}|{service}|{}|{}|{}|{}\n",
        otlp::hex(&span.span_id),
        otlp::hex(&span.parent_span_id),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.name,
        span.attributes.len(),
        span.events.len(),
        span.links.len(),
    )
}

/// Attribute keys, their types and their distinct values, as the tag endpoints tell them.
fn check_attributes(findings: &mut Findings, client: &Client, truth: &Truth) {
    let (start, end) = truth.seconds();
    let (start, end) = (start.to_string(), end.to_string());
    let window = [("start", start.as_str()), ("end", end.as_str())];
    let services: BTreeSet<&str> = truth.items("service_names").iter().map(|name| name.as_str().unwrap()).collect();
    findings.equal("services", truth.number("services"), services.len() as u64);
    let flat = wait(client.get(&truth.dataset, "/api/search/tag/service.name/values", &window)).json();
    let found: BTreeSet<&str> = flat["tagValues"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    findings.equal("service_names by v1", services.clone(), found);

    let tags = wait(client.get(&truth.dataset, "/api/v2/search/tags", &window)).json();
    for scope in ["span", "resource"] {
        let found: BTreeSet<&str> = tags["scopes"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|found| found["name"] == scope)
            .flat_map(|found| found["tags"].as_array().into_iter().flatten().filter_map(Value::as_str))
            .collect();
        let keys: Vec<(&str, &Value)> = match truth.figures[format!("{scope}_attributes")].as_object() {
            Some(keys) => keys.iter().map(|(key, figures)| (key.as_str(), figures)).collect(),
            None => Vec::new(),
        };
        for (key, _) in &keys {
            findings.holds(&format!("tag {scope}.{key}"), found.contains(key), || "not among the tags".to_owned());
        }
        let asked = keys.into_iter().map(|(key, figures)| {
            let path = format!("/api/v2/search/tag/{}/values", path_segment(&reference(scope, key)));
            async move { (key, figures, client.get(&truth.dataset, &path, &window).await) }
        });
        for (key, figures, reply) in wait(futures::stream::iter(asked).buffered(PARALLEL).collect::<Vec<_>>()) {
            let what = format!("values of {scope}.{key}");
            if reply.status != 200 {
                findings.holds(&what, false, || format!("{} {}", reply.status, reply.text()));
                continue;
            }
            check_values(findings, &what, figures, &reply.json());
        }
    }
}

fn check_values(findings: &mut Findings, what: &str, figures: &Value, answer: &Value) {
    let found: BTreeSet<(&str, &str)> = answer["tagValues"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|value| (value["type"].as_str().unwrap_or(""), value["value"].as_str().unwrap_or("")))
        .collect();
    let types: BTreeSet<&str> = figures["types"].as_object().unwrap().keys().map(|name| if name == "double" { "float" } else { name }).collect();
    // Arrays have no place in the answer's list of types.
    if types.contains("array") {
        return;
    }
    findings.equal(&format!("{what}, types"), types, found.iter().map(|(of_type, _)| *of_type).collect());
    // The truth counts 200 and 200.0 as one value.
    let plain = |of_type: &str, value: &str| match of_type {
        "int" | "float" => format!("{:?}", value.parse::<f64>().unwrap_or(f64::NAN)),
        "bool" => format!("bool {value}"),
        _ => format!("text {value}"),
    };
    let distinct: BTreeSet<String> = found.iter().map(|(of_type, value)| plain(of_type, value)).collect();
    findings.equal(&format!("{what}, distinct"), number(figures, "distinct"), distinct.len() as u64);
    if let Some(values) = figures["values"].as_array() {
        let expected: BTreeSet<String> = values
            .iter()
            .map(|pair| match &pair[0] {
                Value::String(text) => plain("string", text),
                Value::Bool(value) => plain("bool", &value.to_string()),
                other => plain("float", &other.to_string()),
            })
            .collect();
        findings.equal(&format!("{what}, the values"), expected, distinct);
    }
}

/// Percent-encodes all but the unreserved characters.
pub fn path_segment(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    text.bytes().map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[test]
fn recorded_requests_hold_the_truth() {
    let mut findings = Findings::new();
    for dataset in DATASETS {
        let truth = Truth::read(dataset);
        findings.within(dataset);
        let samples: HashMap<TraceId, &Value> =
            truth.items("sample_traces").iter().map(|sample| (otlp::trace_id(text(sample, "traceID")), sample)).collect();
        let mut sampled = HashMap::<TraceId, Vec<ResourceSpans>>::new();
        let (mut spans, mut traces, mut services) = (0, BTreeSet::<TraceId>::new(), BTreeMap::<String, u64>::new());
        for of_resource in otlp::requests(dataset).flat_map(|request| request.resource_spans) {
            for span in of_resource.scope_spans.iter().flat_map(|scope| &scope.spans) {
                let id: TraceId = span.trace_id.as_slice().try_into().unwrap();
                spans += 1;
                traces.insert(id);
                *services.entry(otlp::resource_text(&of_resource, "service.name").to_owned()).or_default() += 1;
                if samples.contains_key(&id) {
                    let mut one = of_resource.clone();
                    one.scope_spans
                        .iter_mut()
                        .for_each(|scope| scope.spans.retain(|other| other.trace_id == span.trace_id && other.span_id == span.span_id));
                    sampled.entry(id).or_default().push(one);
                }
            }
        }
        findings.equal("spans", truth.number("spans"), spans);
        findings.equal("traces", truth.number("traces"), traces.len() as u64);
        let expected = truth.members("spans_per_service").map(|(service, count)| (service.to_owned(), count.as_u64().unwrap())).collect();
        findings.equal("spans_per_service", expected, services);
        for (id, sample) in samples {
            check_sample(&mut findings, sample, &sampled[&id]);
        }
    }
    findings.finish();
}
