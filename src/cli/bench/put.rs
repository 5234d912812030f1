//! `skein bench flight --put`: what a span costs the server that is written as a table, beside the same span over OTLP and gRPC.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use arrow::{datatypes::SchemaRef, record_batch::RecordBatch};
use serde_json::{Value, json};
use skein_engine::{
    clock::Stopwatch,
    error::{Error, Result},
    spans::written::for_the_wire,
};
use skein_flight::sql::export::{Export, put, receive};

use super::super::{
    child::{self, Server},
    http::Api,
    load,
    otlp::{self, Compression, Payload, Protocol, Sender},
    table,
};

/// No limit on what one tenant may send, nor on what a statement takes that makes tables of all of it: it is the server that is measured.
/// Blocks are not merged meanwhile.
const SETTINGS: &str = "overrides: {defaults: {ingestion: {rate_limit_bytes: 100000000000, burst_size_bytes: 100000000000}, \
                        read: {max_sql_memory_bytes: 0}}}\ncompactor: {compaction: {compaction_cycle: 1h}}\n";

/// What one way of sending all spans cost.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    spans: u64,
    /// On the wire.
    bytes: u64,
    seconds: f64,
    /// Until the last acknowledgement.
    cpu_micros: u64,
    /// The same of the first time, on a server that has just started.
    first_cpu_micros: u64,
    /// Until all of it is in blocks.
    cpu_micros_with_blocks: u64,
}

impl Cost {
    /// The same, with what it cost the first time.
    fn after(self, first: Self) -> Self {
        Self { first_cpu_micros: first.cpu_micros, ..self }
    }
}

/// Runs the measurement: each way `runs` times, in turns, each time on a server that has written the same spans into blocks once, which is told by
/// itself: what a process does for the first time costs as much as some ten thousand spans.
pub(super) async fn run(files: &[PathBuf], batch: usize, runs: usize, as_json: bool) -> Result<ExitCode> {
    let dir = super::temporary_folder();
    let result = measure(files, batch, runs, &dir).await;
    // What cannot be removed is in the folder for temporary files.
    drop(fs::remove_dir_all(&dir));
    let report = result?;
    match as_json {
        true => println!("{report}"),
        false => print(&report),
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure(files: &[PathBuf], batch: usize, runs: usize, dir: &Path) -> Result<Value> {
    let mut payloads = Vec::new();
    for path in files {
        payloads.extend(otlp::read_file(path, Arc::default())?.collect::<Result<Vec<_>>>()?);
    }
    let server = start(&dir.join("export"))?;
    send(&server, &payloads).await?;
    let batches = for_the_wire(&cut(&exported(&server).await?, batch)?)?;
    stop(server).await?;
    let (mut by_otlp, mut by_table) = (Vec::new(), Vec::new());
    for run in 0..runs {
        let server = start(&dir.join(format!("otlp-{run}")))?;
        let first = send(&server, &payloads).await?;
        by_otlp.push(send(&server, &payloads).await?.after(first));
        stop(server).await?;
        let server = start(&dir.join(format!("table-{run}")))?;
        let first = write(&server, &batches).await?;
        by_table.push(write(&server, &batches).await?.after(first));
        stop(server).await?;
    }
    let columns = batches.first().map_or(0, RecordBatch::num_columns);
    let (otlp, tables) = (figures(&by_otlp), figures(&by_table));
    let ratio = |key: &str| tables[key].as_f64().unwrap_or(0.0) / otlp[key].as_f64().unwrap_or(0.0).max(1e-9);
    let [cpu, first, with_blocks] = ["", "_first", "_with_blocks"].map(|which| ratio(&format!("server_cpu_nanos_per_span{which}")));
    Ok(json!({ "runs": runs, "batch": batch, "columns": columns, "otlp": otlp, "table": tables, "cpu_ratio": cpu, "cpu_ratio_first": first,
                "cpu_ratio_with_blocks": with_blocks }))
}

fn start(dir: &Path) -> Result<Server> {
    super::make_folder(dir)?;
    Server::start(dir, SETTINGS)
}

async fn stop(server: Server) -> Result<()> {
    Api::new(&server.http, None)?.get("/shutdown", &[], "*/*").await?;
    server.wait()
}

/// Sends all over OTLP, two requests at a time.
async fn send(server: &Server, payloads: &[Payload]) -> Result<Cost> {
    let sender = Sender::new(&server.otlp_grpc, Some(Protocol::Grpc), None, Compression::None)?;
    let sending = load::send(&sender, payloads.iter().cloned().map(Ok), 2, None, None, &|_| {});
    let sent = async { sending.await.map(|sent| (sent.spans, sent.bytes)) };
    cost(server, sent).await
}

/// Writes all as tables, two calls at a time.
async fn write(server: &Server, batches: &[RecordBatch]) -> Result<Cost> {
    let (first, second) = batches.split_at(batches.len() / 2);
    let written = async {
        let (first, second) = tokio::try_join!(put(&server.grpc, None, first.to_vec()), put(&server.grpc, None, second.to_vec()))?;
        Ok((first.0 + second.0, first.1 + second.1))
    };
    cost(server, written).await
}

/// What `work`, which gives spans and bytes, costs the server, and then the blocks of it.
async fn cost(server: &Server, work: impl Future<Output = Result<(u64, u64)>>) -> Result<Cost> {
    let before = child::cpu_micros(server.pid())?;
    let watch = Stopwatch::start();
    let (spans, bytes) = work.await?;
    let seconds = watch.seconds();
    let cpu_micros = child::cpu_micros(server.pid())? - before;
    Api::new(&server.http, None)?.post("/flush").await?;
    Ok(Cost { spans, bytes, seconds, cpu_micros, cpu_micros_with_blocks: child::cpu_micros(server.pid())? - before, ..Cost::default() })
}

/// All spans as a table, with their events and links where there are any. In parts by trace: a join has one of its sides in memory.
async fn exported(server: &Server) -> Result<Vec<RecordBatch>> {
    let events = entries(server, "events", &["time", "event_name"]).await?;
    let links = entries(server, "links", &["linked_trace_id", "linked_span_id"]).await?;
    let lists: Vec<(&str, String)> = [("events", events), ("links", links)].into_iter().filter_map(|(list, named)| Some((list, named?))).collect();
    let mut batches = Vec::new();
    for digit in "0123456789abcdef".chars() {
        let sql = all_spans(&lists, digit);
        receive(Export { address: &server.grpc, tenant: None, compression: None, sql: &sql }, |batch| batches.push(batch)).await?;
    }
    Ok(batches)
}

/// The statement for all spans of the traces whose id begins with `digit`; `lists` has the tables whose entries go with them, and the struct
/// that each becomes.
fn all_spans(lists: &[(&str, String)], digit: char) -> String {
    let names: String = lists.iter().map(|(list, _)| format!(", {list}.{list}")).collect();
    let joins: String = lists
        .iter()
        .map(|(list, named)| {
            format!(
                " LEFT JOIN (SELECT trace_id t, span_id s, array_agg({named}) AS {list} FROM {list} WHERE trace_id LIKE '{digit}%' GROUP BY 1, 2) {list} \
                 ON trace_id = {list}.t AND span_id = {list}.s"
            )
        })
        .collect();
    format!("SELECT spans.*{names} FROM spans{joins} WHERE trace_id LIKE '{digit}%'")
}

/// The struct that an entry of a table of events or links becomes; None where it is empty.
async fn entries(server: &Server, name: &str, fields: &[&str]) -> Result<Option<String>> {
    let mut schema: Option<SchemaRef> = None;
    let sql = format!("SELECT * FROM {name} LIMIT 1");
    receive(Export { address: &server.grpc, tenant: None, compression: None, sql: &sql }, |batch| {
        if batch.num_rows() > 0 {
            schema = Some(batch.schema());
        }
    })
    .await?;
    let scope = format!("{}.", name.trim_end_matches('s'));
    let wanted = |field: &&str| fields.contains(field) || field.starts_with(&scope);
    Ok(schema.map(|schema| {
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).filter(wanted).collect();
        let parts: Vec<String> = names.iter().map(|name| format!("'{}', \"{}\"", name.replace('\'', "''"), name.replace('"', "\"\""))).collect();
        format!("named_struct({})", parts.join(", "))
    }))
}

/// The same rows in batches of `rows`.
fn cut(batches: &[RecordBatch], rows: usize) -> Result<Vec<RecordBatch>> {
    let slices = batches.iter().flat_map(|batch| (0..batch.num_rows()).step_by(rows).map(move |at| batch.slice(at, rows.min(batch.num_rows() - at))));
    let mut cut = Vec::new();
    let (mut waiting, mut waiting_rows) = (Vec::new(), 0);
    for slice in slices {
        waiting_rows += slice.num_rows();
        waiting.push(slice);
        if waiting_rows >= rows {
            cut.push(together(&waiting)?);
            (waiting, waiting_rows) = (Vec::new(), 0);
        }
    }
    if !waiting.is_empty() {
        cut.push(together(&waiting)?);
    }
    Ok(cut)
}

fn together(batches: &[RecordBatch]) -> Result<RecordBatch> {
    let schema = batches.first().map(RecordBatch::schema).ok_or_else(|| Error::internal("no batches to put together"))?;
    Ok(arrow::compute::concat_batches(&schema, batches)?)
}

fn figures(costs: &[Cost]) -> Value {
    let sum = |of: fn(&Cost) -> u64| costs.iter().map(of).sum::<u64>() as f64;
    let spans = sum(|cost| cost.spans).max(1.0);
    json!({
        "spans": costs.last().map_or(0, |cost| cost.spans),
        "bytes_per_span": sum(|cost| cost.bytes) / spans,
        "spans_per_second": spans / costs.iter().map(|cost| cost.seconds).sum::<f64>().max(1e-9),
        "server_cpu_nanos_per_span": sum(|cost| cost.cpu_micros) * 1e3 / spans,
        "server_cpu_nanos_per_span_first": sum(|cost| cost.first_cpu_micros) * 1e3 / spans,
        "server_cpu_nanos_per_span_with_blocks": sum(|cost| cost.cpu_micros_with_blocks) * 1e3 / spans,
    })
}

fn print(report: &Value) {
    let number = |way: &str, key: &str| report[way][key].as_f64().unwrap_or(0.0);
    println!("{:<28}{:>16}{:>16}{:>8}", "", "OTLP over gRPC", "tables", "ratio");
    let row = |name: &str, key: &str, digits: usize| {
        let (otlp, table) = (number("otlp", key), number("table", key));
        let shown = |value: f64| if digits == 0 { table::grouped(value as u64) } else { format!("{value:.digits$}") };
        println!("{name:<28}{:>16}{:>16}{:>8.2}", shown(otlp), shown(table), table / otlp.max(1e-9));
    };
    row("spans", "spans", 0);
    row("bytes/span on the wire", "bytes_per_span", 1);
    row("spans/s", "spans_per_second", 0);
    row("server's CPU, ns/span", "server_cpu_nanos_per_span", 0);
    row("the first time, ns/span", "server_cpu_nanos_per_span_first", 0);
    row("with blocks, ns/span", "server_cpu_nanos_per_span_with_blocks", 0);
    println!("{} runs each; tables in batches of {} spans with {} columns", report["runs"], report["batch"], report["columns"]);
}
