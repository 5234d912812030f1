//! What SQL says of whole traces against the definitions of `docs/sql.md`, written down plainly: self times, critical paths, span trees, the service
//! graph, traces and services. Over random worlds, and over the recorded datasets.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::TryStreamExt;
use prost::Message;
use rand::{SeedableRng, rngs::StdRng};
use skein_engine::exec::engine::Engine;
use skein_engine::spans::builder::SpanBuilder;
use skein_engine::sql::SqlService;
use skein_engine::tenant::TenantId;
use skein_proto::otlp::common::v1::any_value;

use super::engines::{engine_of, local_engines};
use super::fields;
use super::model::{Span, Value};
use super::structure::{Trace, traces};
use super::traces::World;
use crate::harness::{self, wait};
use crate::otlp::{DATASETS, Messages, requests};

/// Worlds that are asked about.
const WORLDS: u64 = 60;

const SERVER: i32 = 2;
const PRODUCER: i32 = 4;
const CONSUMER: i32 = 5;
const ERROR: i32 = 2;

/// Rows as text, sorted.
type Rows = Vec<Vec<String>>;

async fn rows(engine: &Engine, query: &str) -> Rows {
    let statement = engine.prepare(&TenantId::single(), query).await.unwrap_or_else(|error| panic!("{query}: {error}"));
    let run = statement.run(None).await.unwrap_or_else(|error| panic!("{query}: {error}"));
    let mut rows = Vec::new();
    let batches: Vec<_> = run.batches.try_collect().await.unwrap_or_else(|error| panic!("{query}: {error}"));
    for batch in batches {
        let options = FormatOptions::default();
        let columns: Vec<_> = batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
        rows.extend((0..batch.num_rows()).map(|row| columns.iter().map(|column| column.value(row).to_string()).collect()));
    }
    rows.sort();
    rows
}

fn assert_rows(what: &str, query: &str, found: &Rows, mut expected: Rows) {
    expected.sort();
    let difference = found.iter().zip(&expected).find(|(found, expected)| found != expected);
    assert!(*found == expected, "{what}\n{query}\n{} rows, expected {}; the first that differ: {difference:?}", found.len(), expected.len());
}

fn duration(span: &Span) -> u64 {
    (span.end.wrapping_sub(span.start) as i64).max(0) as u64
}

fn end(span: &Span) -> u64 {
    span.start + duration(span)
}

fn is_error(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|(code, _)| *code == ERROR)
}

/// The `service.name` as TraceQL sees it, if it is text.
fn service(span: &Span) -> Option<String> {
    match fields::of_key(span.resource.as_ref(), "service.name") {
        fields::Value::Text(text) => Some(text),
        _ => None,
    }
}

fn trace_id(trace: &Trace<'_>) -> String {
    format!("{:032x}", trace.id)
}

/// The parts of the children of span `at` that lie within `from..until`: start, end, position.
fn parts(trace: &Trace<'_>, at: usize, from: u64, until: u64) -> Vec<(u64, u64, usize)> {
    let children = trace.nodes[at].children.iter().map(|&child| (child, trace.nodes[child].span));
    let parts = children.map(|(child, span)| (span.start.max(from), end(span).min(until), child));
    parts.filter(|(start, end, _)| start < end).collect()
}

/// Adds up what lies in `from..until` and in no child, piece by piece between all starts and ends.
fn self_nanos(trace: &Trace<'_>, at: usize) -> u64 {
    let (from, until) = (trace.nodes[at].span.start, end(trace.nodes[at].span));
    let parts = parts(trace, at, from, until);
    let edges: BTreeSet<u64> = parts.iter().flat_map(|(start, end, _)| [*start, *end]).chain([from, until]).collect();
    let edges: Vec<u64> = edges.into_iter().collect();
    let is_free = |piece: &&[u64]| !parts.iter().any(|(start, end, _)| *start <= piece[0] && piece[1] <= *end);
    edges.windows(2).filter(is_free).map(|piece| piece[1] - piece[0]).sum()
}

/// Walks back from `until` to `from` through span `at`, into the child that ends last at or before the point reached; of several the one
/// that starts first.
fn walk(trace: &Trace<'_>, at: usize, from: u64, until: u64, nanos: &mut [u64]) {
    let parts = parts(trace, at, from, until);
    let mut point = until;
    while let Some(&(start, end, child)) = parts.iter().filter(|part| part.1 <= point).max_by_key(|part| (part.1, Reverse(part.0), Reverse(part.2))) {
        nanos[at] += point - end;
        walk(trace, child, start, end, nanos);
        point = start;
    }
    nanos[at] += point - from;
}

fn critical_path(trace: &Trace<'_>) -> Vec<u64> {
    let mut nanos = vec![0; trace.nodes.len()];
    for (at, node) in trace.nodes.iter().enumerate().filter(|(_, node)| node.parent.is_none()) {
        walk(trace, at, node.span.start, end(node.span), &mut nanos);
    }
    nanos
}

/// The spans from the root down to `at`.
fn way<'a>(trace: &Trace<'a>, at: usize) -> Vec<&'a Span> {
    let mut way: Vec<&Span> = std::iter::successors(Some(at), |at| trace.nodes[*at].parent).map(|at| trace.nodes[at].span).collect();
    way.reverse();
    way
}

const TREE: &str = "SELECT trace_id, ordinal, span_id, depth, path, service, self_time_nanos, critical_path_nanos FROM span_tree()";

fn tree(traces: &[Trace<'_>]) -> Rows {
    let of_trace = |trace: &Trace<'_>| -> Rows {
        let critical = critical_path(trace);
        let row = |at: usize| {
            let span = trace.nodes[at].span;
            let way = way(trace, at);
            let path: Vec<String> = way.iter().map(|span| span.name.replace(';', ",")).collect();
            vec![
                trace_id(trace),
                at.to_string(),
                format!("{:016x}", span.id),
                (way.len() - 1).to_string(),
                path.join(";"),
                service(span).unwrap_or_default(),
                self_nanos(trace, at).to_string(),
                critical[at].to_string(),
            ]
        };
        (0..trace.nodes.len()).map(row).collect()
    };
    traces.iter().flat_map(of_trace).collect()
}

const PATHS: &str = "SELECT span_id, name, self_time_nanos, critical_path_nanos FROM critical_path('{ status = error }')";

fn paths_of_failures(traces: &[Trace<'_>]) -> Rows {
    let of_trace = |trace: &Trace<'_>| -> Rows {
        let critical = critical_path(trace);
        let row = |at: usize| {
            let span = trace.nodes[at].span;
            vec![format!("{:016x}", span.id), span.name.clone(), self_nanos(trace, at).to_string(), critical[at].to_string()]
        };
        (0..trace.nodes.len()).map(row).collect()
    };
    traces.iter().filter(|trace| trace.nodes.iter().any(|node| is_error(node.span))).flat_map(of_trace).collect()
}

const TRACES: &str = "SELECT trace_id, arrow_cast(start_time, 'Int64'), duration_nanos, span_count, error_count, services FROM traces";

fn trace_rows(traces: &[Trace<'_>]) -> Rows {
    let row = |trace: &Trace<'_>| {
        let spans: Vec<&Span> = trace.nodes.iter().map(|node| node.span).collect();
        let services: BTreeSet<String> = spans.iter().filter_map(|span| service(span)).collect();
        vec![
            trace_id(trace),
            trace.start().to_string(),
            trace.duration().to_string(),
            spans.len().to_string(),
            spans.iter().filter(|span| is_error(span)).count().to_string(),
            format!("[{}]", services.into_iter().collect::<Vec<_>>().join(", ")),
        ]
    };
    traces.iter().map(row).collect()
}

const SERVICES: &str =
    "SELECT coalesce(service, '<none>'), spans, errors, traces, arrow_cast(first_seen, 'Int64'), arrow_cast(last_seen, 'Int64') FROM services";

fn service_rows(traces: &[Trace<'_>]) -> Rows {
    let mut services = BTreeMap::<String, (BTreeSet<u128>, Vec<&Span>)>::new();
    for (trace, node) in traces.iter().flat_map(|trace| trace.nodes.iter().map(move |node| (trace, node))) {
        let known = services.entry(service(node.span).unwrap_or_else(|| "<none>".into())).or_default();
        known.0.insert(trace.id);
        known.1.push(node.span);
    }
    let row = |(service, (traces, spans)): (String, (BTreeSet<u128>, Vec<&Span>))| {
        vec![
            service,
            spans.len().to_string(),
            spans.iter().filter(|span| is_error(span)).count().to_string(),
            traces.len().to_string(),
            spans.iter().map(|span| span.start).min().unwrap_or_default().to_string(),
            spans.iter().map(|span| end(span)).max().unwrap_or_default().to_string(),
        ]
    };
    services.into_iter().map(row).collect()
}

const GRAPH: &str = "SELECT client, server, connection_type, calls, errors, p50_nanos, p95_nanos, p99_nanos FROM service_graph()";

/// Client, server and kind of connection; whether each call failed and how long it took.
type Edges = BTreeMap<[String; 3], Vec<(bool, i64)>>;

fn edges(traces: &[Trace<'_>]) -> Edges {
    let mut edges = Edges::new();
    for trace in traces {
        for node in &trace.nodes {
            let Some(caller) = node.parent.map(|parent| trace.nodes[parent].span) else { continue };
            let (Some(client), Some(server)) = (service(caller), service(node.span)) else { continue };
            if client == server {
                continue;
            }
            let messaging = caller.kind == PRODUCER || node.span.kind == CONSUMER;
            let connection = if messaging { "messaging_system" } else { "" };
            let call = (is_error(caller) || is_error(node.span), node.span.end.wrapping_sub(node.span.start) as i64);
            edges.entry([client, server, connection.to_owned()]).or_default().push(call);
        }
    }
    edges
}

/// Where `q` of the sorted `values` lies, between two of them in proportion, and how far apart these are.
fn quantile(values: &[i64], q: f64) -> (f64, f64) {
    let place = q * (values.len() - 1) as f64;
    let (below, above) = (values[place.floor() as usize] as f64, values[place.ceil() as usize] as f64);
    (below + (above - below) * place.fract(), above - below)
}

fn check_graph(what: &str, found: &Rows, traces: &[Trace<'_>]) {
    let edges = edges(traces);
    assert_eq!(found.len(), edges.len(), "{what}: edges");
    for (row, (edge, calls)) in found.iter().zip(&edges) {
        let errors = calls.iter().filter(|(failed, _)| *failed).count();
        assert_eq!(row[..5], [edge.to_vec(), vec![calls.len().to_string(), errors.to_string()]].concat(), "{what}");
        let mut nanos: Vec<i64> = calls.iter().map(|(_, nanos)| *nanos).collect();
        nanos.sort_unstable();
        for (q, shown) in [0.5, 0.95, 0.99].into_iter().zip(&row[5..]) {
            let ((expected, apart), shown) = (quantile(&nanos, q), shown.parse::<f64>().unwrap());
            // Proportions are known to a millionth, and shown is a whole number.
            assert!((shown - expected).abs() <= 1.0 + apart * 1e-6 + expected.abs() * 1e-12, "{what} {edge:?}: {q}: {shown}, expected {expected}");
        }
    }
}

async fn check(what: &str, engine: &Engine, traces: &[Trace<'_>]) {
    let expected = [(TREE, tree(traces)), (PATHS, paths_of_failures(traces)), (TRACES, trace_rows(traces)), (SERVICES, service_rows(traces))];
    for (query, expected) in expected {
        assert_rows(what, query, &rows(engine, query).await, expected);
    }
    check_graph(what, &rows(engine, GRAPH).await, traces);
}

#[test]
fn tables_of_random_traces_are_as_defined() {
    let seed = harness::seed("tables");
    let (mut on_path, mut edges_seen) = (0, 0);
    for own_seed in seed..seed + WORLDS {
        let world = World::random(&mut StdRng::seed_from_u64(own_seed));
        let traces = traces(world.all());
        on_path += traces
            .iter()
            .flat_map(critical_path)
            .zip(traces.iter().flat_map(|trace| &trace.nodes))
            .filter(|(nanos, node)| *nanos > 0 && node.parent.is_some())
            .count();
        edges_seen += edges(&traces).len();
        for (name, engine) in wait(local_engines(&world)) {
            wait(check(&format!("SKEIN_TEST_SEED={own_seed} {name}\n{world}"), &engine, &traces));
        }
    }
    assert!(on_path > WORLDS as usize && edges_seen > WORLDS as usize, "the worlds show little: {on_path} children on paths, {edges_seen} edges");
}

#[test]
fn tables_of_recorded_traces_are_as_defined() {
    for dataset in DATASETS {
        let spans = recorded(dataset);
        let traces = traces(spans.iter());
        let engine = wait(recorded_engine(dataset));
        wait(check(dataset, &engine, &traces));
        // Nothing of a root's time is lost on the path.
        let total = |nanos: &dyn Fn(&Trace<'_>) -> u64| traces.iter().map(nanos).sum::<u64>();
        let of_roots = total(&|trace| trace.nodes.iter().filter(|node| node.parent.is_none()).map(|node| duration(node.span)).sum());
        let on_paths = wait(rows(&engine, "SELECT sum(critical_path_nanos) FROM critical_path()"));
        assert_eq!(on_paths, [[of_roots.to_string()]], "{dataset}");
    }
}

/// The first half of the requests in a block, the others live, so that some traces lie in both.
async fn recorded_engine(dataset: &str) -> Arc<Engine> {
    let requests: Vec<_> = Messages::open(dataset).collect();
    let set = |requests: &[prost::bytes::Bytes]| {
        let mut builder = SpanBuilder::default();
        requests.iter().for_each(|request| skein_ingest::decode::decode(request, &mut builder).unwrap());
        builder.snapshot()
    };
    let (stored, live) = requests.split_at(requests.len().div_ceil(2));
    engine_of(&[set(live)], &[(set(stored), skein_engine::spans::schema::ColumnPolicy::BLOCK)], false).await
}

/// The spans as plain structs. All that the tables do not speak of is one attribute, so that no two spans look like copies that are none.
fn recorded(dataset: &str) -> Vec<Span> {
    let mut spans = Vec::new();
    for resource_spans in requests(dataset).flat_map(|request| request.resource_spans) {
        let attributes = resource_spans.resource.iter().flat_map(|resource| &resource.attributes);
        let service =
            attributes.filter(|attribute| attribute.key == "service.name").find_map(|attribute| match attribute.value.as_ref()?.value.as_ref()? {
                any_value::Value::StringValue(text) => Some(("service.name".to_owned(), Value::Text(text.clone()))),
                _ => None,
            });
        for span in resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let parent: Option<[u8; 8]> = span.parent_span_id.as_slice().try_into().ok();
            spans.push(Span {
                trace: u128::from_be_bytes(span.trace_id.as_slice().try_into().unwrap()),
                id: u64::from_be_bytes(span.span_id.as_slice().try_into().unwrap()),
                parent: parent.map(u64::from_be_bytes),
                name: span.name.clone(),
                kind: span.kind,
                start: span.start_time_unix_nano,
                end: span.end_time_unix_nano,
                status: span.status.as_ref().map(|status| (status.code, status.message.clone())),
                attributes: vec![(String::new(), Value::Bytes(span.encode_to_vec()))],
                events: Vec::new(),
                links: Vec::new(),
                resource: Some(service.clone().into_iter().collect()),
                scope: None,
            });
        }
    }
    spans
}

/// An example with the numbers of `docs/sql.md`.
#[test]
fn a_critical_path_goes_through_the_children_that_end_last() {
    let span = |id: u64, parent: Option<u64>, start: u64, end: u64| Span {
        trace: 1,
        id,
        parent,
        name: format!("{id}"),
        kind: SERVER,
        start: 1_000 + start,
        end: 1_000 + end,
        status: None,
        attributes: Vec::new(),
        events: Vec::new(),
        links: Vec::new(),
        resource: None,
        scope: None,
    };
    let spans = [
        span(1, None, 0, 100),
        span(2, Some(1), 10, 40),
        span(3, Some(1), 20, 60),
        span(4, Some(1), 70, 130),
        span(5, Some(4), 90, 130),
        span(6, Some(9), 0, 7),
        span(7, Some(1), 200, 300),
    ];
    let trace = &traces(spans.iter())[0];
    let nanos: BTreeMap<u64, u64> = trace.nodes.iter().map(|node| node.span.id).zip(critical_path(trace)).collect();
    assert_eq!(nanos, BTreeMap::from([(1, 30), (2, 0), (3, 40), (4, 20), (5, 10), (6, 7), (7, 0)]));
    let world = World { spans: spans.into_iter().map(|span| (span, 1)).collect() };
    for (name, engine) in wait(local_engines(&world)) {
        let found = wait(rows(&engine, "SELECT name, critical_path_nanos FROM critical_path('1')"));
        assert_eq!(found, [["1", "30"], ["2", "0"], ["3", "40"], ["4", "20"], ["5", "10"], ["6", "7"], ["7", "0"]], "{name}");
    }
}
