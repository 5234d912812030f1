//! `skein bench flight`: how fast spans leave over Arrow Flight, and what that costs the server.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use serde_json::{Value, json};
use skein_engine::{
    clock::Stopwatch,
    error::{Error, Result},
};
use skein_flight::sql::export::{Export, Exported, export};

use super::{
    super::{
        child::{self, Server},
        http::Api,
        table,
    },
    put,
};

/// Ten columns that all spans have.
const COLUMNS: &str = "trace_id, span_id, parent_span_id, name, kind, status, start_time, duration_nanos, \"resource.service.name\", scope_name";

/// Arguments of `skein bench flight`.
#[derive(Args)]
pub(super) struct Arguments {
    /// `host:port` of the gRPC port of a server to ask.
    #[arg(long, conflicts_with = "data", required_unless_present_any = ["data", "put"])]
    address: Option<String>,
    /// With --address: the server's process, to measure its CPU and memory.
    #[arg(long, requires = "address")]
    pid: Option<u32>,
    /// Start a server on this folder (with `blocks` and `wal`, as `bench ingest --dir` leaves it) and ask it.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Write instead: send these files of spans, as for `skein load`, to a server over OTLP, and what they become as tables to others.
    #[arg(long, num_args = 1.., conflicts_with_all = ["address", "data", "tenant", "sql", "compression"])]
    put: Vec<PathBuf>,
    /// With --put: spans in a batch.
    #[arg(long, requires = "put", default_value_t = 8192)]
    batch: usize,
    /// Sent as X-Scope-OrgID.
    #[arg(long)]
    tenant: Option<String>,
    /// A statement instead of ten columns of all spans.
    #[arg(long)]
    sql: Option<String>,
    /// Ask for compressed batches: lz4 or zstd.
    #[arg(long)]
    compression: Option<String>,
    /// Times that it is asked after a first, which does not count.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// One export and its costs.
struct Run {
    exported: Exported,
    seconds: f64,
    cpu_micros: Option<u64>,
}

/// Runs the measurement.
pub(super) async fn run(arguments: Arguments) -> Result<ExitCode> {
    if !arguments.put.is_empty() {
        return put::run(&arguments.put, arguments.batch.max(1), arguments.runs.max(1), arguments.json).await;
    }
    let server = match &arguments.data {
        Some(dir) => Some(Server::start(dir, "")?),
        None => None,
    };
    let address = server.as_ref().map(|server| server.grpc.clone()).or(arguments.address.clone());
    let address = address.ok_or_else(|| Error::invalid("name a server with --address, or a folder with --data"))?;
    let pid = server.as_ref().map(Server::pid).or(arguments.pid);
    let sql = arguments.sql.clone().unwrap_or_else(|| format!("SELECT {COLUMNS} FROM spans"));
    let ask = Export { address: &address, tenant: arguments.tenant.as_deref(), compression: arguments.compression.as_deref(), sql: &sql };
    measure(ask, pid).await?;
    let mut runs = Vec::new();
    for _ in 0..arguments.runs.max(1) {
        runs.push(measure(ask, pid).await?);
    }
    let report = report(&runs, pid.map(child::peak_resident_bytes).transpose()?);
    if let Some(server) = server {
        Api::new(&server.http, None)?.get("/shutdown", &[], "*/*").await?;
        server.wait()?;
    }
    match arguments.json {
        true => println!("{report}"),
        false => print(&report),
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure(ask: Export<'_>, pid: Option<u32>) -> Result<Run> {
    let before = pid.map(child::cpu_micros).transpose()?;
    let watch = Stopwatch::start();
    let exported = export(ask).await?;
    let seconds = watch.seconds();
    let after = pid.map(child::cpu_micros).transpose()?;
    Ok(Run { exported, seconds, cpu_micros: after.zip(before).map(|(after, before)| after - before) })
}

fn report(runs: &[Run], peak_resident_bytes: Option<u64>) -> Value {
    let mut seconds: Vec<f64> = runs.iter().map(|run| run.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    let median = seconds.get(seconds.len() / 2).copied().unwrap_or_default();
    let exported = runs.last().map(|run| run.exported).unwrap_or_default();
    let rows: u64 = runs.iter().map(|run| run.exported.rows).sum();
    let cpu_micros: Option<u64> = runs.iter().map(|run| run.cpu_micros).sum();
    json!({
        "rows": exported.rows,
        "batches": exported.batches,
        "bytes": exported.bytes,
        "seconds_median": median,
        "seconds_best": seconds.first(),
        "rows_per_second": exported.rows as f64 / median.max(1e-9),
        "server_cpu_nanos_per_row": cpu_micros.map(|micros| micros as f64 * 1e3 / rows.max(1) as f64),
        "server_peak_resident_bytes": peak_resident_bytes,
    })
}

fn print(report: &Value) {
    let number = |key: &str| report[key].as_f64().unwrap_or(0.0);
    println!("rows              {:>12} in {} batches", table::grouped(number("rows") as u64), report["batches"]);
    println!("on the wire       {:>12.1} bytes/row", number("bytes") / number("rows").max(1.0));
    println!("wall              {:>12.3} s (median; best {:.3} s)", number("seconds_median"), number("seconds_best"));
    println!("rows/s            {:>12}", table::grouped(number("rows_per_second") as u64));
    if !report["server_cpu_nanos_per_row"].is_null() {
        println!("server's CPU      {:>12.0} ns/row", number("server_cpu_nanos_per_row"));
        println!("server's memory   {:>12} at most", table::bytes(number("server_peak_resident_bytes") as u64));
    }
}
