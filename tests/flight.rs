//! Arrow Flight and Flight SQL, asked by the clients of other projects: pyarrow, ADBC, DuckDB and Polars.

use skein_proto::otlp::trace::v1::Span;

use crate::harness::{Compression, Server, Transport, nothing_is_cut, seed, wait};
use crate::otlp::{self, hex};
use crate::tools::{or_skip, python, run_python};

const TENANT: &str = "shop";
const START: u64 = 1_700_000_000_000_000_000;
const TRACES: u64 = 40;
const SPANS_PER_TRACE: u64 = 5;
/// More than the server may take for refusing: bodies and messages of some megabytes, one at a time.
const GROWTH_MAX: u64 = 256 << 20;

/// Trace `number`: a root and its children, one second after the trace before.
fn trace(number: u64) -> Vec<Span> {
    let start = START + number * 1_000_000_000;
    let span = |at: u64| {
        let parent = if at == 0 { 0 } else { number * 100 + 1 };
        otlp::span(
            u128::from(number + 1).to_be_bytes(),
            number * 100 + at + 1,
            parent,
            &format!("op-{at}"),
            start + at * 1000,
            (number + 1) * 100 + at,
        )
    };
    (0..SPANS_PER_TRACE).map(span).collect()
}

fn service(number: u64) -> &'static str {
    ["cart", "shop", "stock"][(number % 3) as usize]
}

/// The spans as the clients are to see them, by trace and span.
fn expected() -> serde_json::Value {
    let row = |number: u64, span: &Span| {
        serde_json::json!({
            "trace_id": hex(&span.trace_id),
            "span_id": hex(&span.span_id),
            "parent_span_id": (!span.parent_span_id.is_empty()).then(|| hex(&span.parent_span_id)),
            "name": span.name,
            "start_nanos": span.start_time_unix_nano,
            "duration_nanos": span.end_time_unix_nano - span.start_time_unix_nano,
            "service": service(number),
        })
    };
    (0..TRACES).flat_map(|number| trace(number).iter().map(|span| row(number, span)).collect::<Vec<_>>()).collect()
}

fn loaded() -> Server {
    let server = Server::start(nothing_is_cut());
    for number in 0..TRACES {
        wait(server.client().send(Transport::Grpc, Compression::None, TENANT, &otlp::request(service(number), trace(number)))).unwrap();
    }
    server
}

#[test]
fn clients_of_other_projects_read_spans() {
    let Some(python) = or_skip("clients_of_other_projects_read_spans", python()) else { return };
    let server = loaded();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), expected().to_string()).unwrap();
    let [grpc, http] = [server.client().addresses.grpc, server.client().addresses.http].map(|address| address.to_string());
    let told = run_python(&python, include_str!("flight.py"), &[&grpc, &http, TENANT, file.path().to_str().unwrap()]);
    assert_eq!(told.trim(), "all right");
}

/// Recordings of which every span is to be the same after it was read as a table and written as one.
const WRITTEN: [&str; 3] = ["genai", "nodedb", "shellci"];

#[test]
fn spans_that_are_read_can_be_written_back() {
    let Some(python) = or_skip("spans_that_are_read_can_be_written_back", python()) else { return };
    let mut server = Server::start(nothing_is_cut());
    for dataset in WRITTEN {
        server.client().load(Transport::HttpProtobuf, dataset);
    }
    let grpc = server.client().addresses.grpc.to_string();
    let told = run_python(&python, include_str!("flight_put.py"), &[&[&grpc[..], "write"][..], &WRITTEN[..]].concat());
    assert_eq!(told.trim(), "all right");
    let metrics = wait(server.client().get("", "/metrics", &[])).text();
    for metric in ["tempo_receiver_accepted_spans", "tempo_receiver_refused_spans"] {
        let series = format!("{metric}{{receiver=\"arrow/flight\",transport=\"grpc\"}} ");
        assert!(metrics.lines().any(|line| line.strip_prefix(&series).is_some_and(|spans| spans != "0")), "{metric}");
    }
    // From the log, and then from blocks, they are the same still.
    server.kill();
    server.restart();
    let grpc = server.client().addresses.grpc.to_string();
    let compare = [&[&grpc[..], "compare"][..], &WRITTEN[..]].concat();
    assert_eq!(run_python(&python, include_str!("flight_put.py"), &compare).trim(), "all right");
    server.client().flush();
    assert_eq!(run_python(&python, include_str!("flight_put.py"), &compare).trim(), "all right");
}

/// A plain export of more spans than this has several endpoints.
const ONE_STREAM_SPANS: u64 = 262_144;

#[test]
fn a_large_export_has_several_endpoints_that_are_the_answer_together() {
    let Some(python) = or_skip("a_large_export_has_several_endpoints_that_are_the_answer_together", python()) else { return };
    let server = Server::start(nothing_is_cut());
    let (spans, in_request, in_trace) = (ONE_STREAM_SPANS + 10_000, 5_000, 100);
    for first in (1..=spans).step_by(in_request) {
        let span = |id: u64| {
            let start = START + id * 1_000;
            otlp::span(u128::from(id / in_trace + 1).to_be_bytes(), id, 0, ["GET /", "query"][(id % 2) as usize], start, id)
        };
        let batch = (first..=spans.min(first + in_request as u64 - 1)).map(span).collect();
        wait(server.client().send(Transport::Grpc, Compression::None, TENANT, &otlp::request("shop", batch))).unwrap();
    }
    server.client().flush();
    let endpoints = std::thread::available_parallelism().map_or(2, usize::from);
    let grpc = server.client().addresses.grpc.to_string();
    let told = run_python(&python, include_str!("flight_parts.py"), &[&grpc, TENANT, &spans.to_string(), &endpoints.to_string()]);
    assert_eq!(told.trim(), "all right");
}

#[test]
fn hostile_messages_are_refused_and_cost_nothing() {
    let Some(python) = or_skip("hostile_messages_are_refused_and_cost_nothing", python()) else { return };
    let server = loaded();
    let before = server.peak_bytes().unwrap();
    let grpc = server.client().addresses.grpc.to_string();
    let told = run_python(&python, include_str!("flight_hostile.py"), &[&grpc, TENANT, &seed("hostile Flight messages").to_string()]);
    let refused: u64 = told.trim().parse().unwrap();
    assert!(refused > 200, "{refused} refused");
    let grown = server.peak_bytes().unwrap() - before;
    assert!(grown < GROWTH_MAX, "the process grew by {grown} bytes");
    assert_eq!(server.client().metric("skein_frontend_queries_running"), Some(0.0));
}
