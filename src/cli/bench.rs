//! `skein bench`: what a span costs to take in, what queries and statements cost to answer, and how fast spans leave as Arrow.

mod flight;
mod put;
mod sql;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use skein_engine::{
    catalog::meta::META_NAME,
    clock::{Clock, Stopwatch, SystemClock},
    error::{Error, Result},
};

use super::{
    child::{self, Server},
    http::Api,
    load,
    otlp::{self, Compression, Protocol, Sender},
    table::{self, Align},
};

/// The queries of `skein bench query`.
const QUERIES: &str = include_str!("../../docs/bench-queries.txt");

/// Passes over the blocks while they are merged; short, so that the end of merging is seen soon.
const CYCLE: Duration = Duration::from_secs(1);
/// The server has nothing more to do when it used less CPU than this during [`IDLE_PERIOD`].
const IDLE_CPU_MICROS: u64 = 60_000;
const IDLE_PERIOD: Duration = Duration::from_secs(3);
/// Longest time to wait for the last block.
const SETTLE_MAX: Duration = Duration::from_secs(600);

/// Arguments of `skein bench`.
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Take in files, until every span is in a block and merging has ended.
    Ingest(Ingest),
    /// Ask a list of queries again and again.
    Query(Query),
    /// Receive all spans over Arrow Flight, or write spans and compare that with OTLP.
    Flight(flight::Arguments),
    /// Ask SQL over all spans; and DuckDB, over the same blocks.
    Sql(sql::Arguments),
}

#[derive(Args)]
struct Ingest {
    /// Files of spans, as for `skein load`.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Requests at the same time.
    #[arg(long, default_value_t = 2)]
    connections: usize,
    /// Work in this folder and leave it; the default is a temporary one.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Query {
    /// Ask this server.
    #[arg(long, conflicts_with = "data")]
    url: Option<String>,
    /// Start a server on this folder (with `blocks` and `wal`, as `bench ingest --dir` leaves it) and ask it.
    #[arg(long)]
    data: Option<PathBuf>,
    /// With --url: the server's process, to measure its CPU.
    #[arg(long, requires = "url")]
    pid: Option<u32>,
    /// Ask this server too, a Tempo with the same spans, say, and show its figures beside.
    #[arg(long)]
    against: Option<String>,
    /// With --against: that server's process, to measure its CPU.
    #[arg(long, requires = "against")]
    against_pid: Option<u32>,
    /// Sent as X-Scope-OrgID.
    #[arg(long)]
    tenant: Option<String>,
    /// A list of queries instead of the one built in.
    #[arg(long)]
    queries: Option<PathBuf>,
    /// Only queries that contain this text.
    #[arg(long)]
    only: Option<String>,
    /// With --data: without the cache of partial series, so that every metrics query reads its blocks.
    #[arg(long, requires = "data")]
    cold: bool,
    /// Times that each is asked after a first, which does not count.
    #[arg(long, default_value_t = 10)]
    runs: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the measurement.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.what {
        What::Ingest(ingest) => super::block_on(run_ingest(ingest)),
        What::Query(query) => super::block_on(run_query(query)),
        What::Flight(flight) => super::block_on(flight::run(flight)),
        What::Sql(sql) => super::block_on(sql::run(sql)),
    }
}

/// A folder of that name does not exist yet.
fn temporary_folder() -> PathBuf {
    std::env::temp_dir().join(format!("skein-bench-{}-{}", std::process::id(), SystemClock.now_unix_nano()))
}

fn make_folder(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|error| Error::unavailable(format!("making {}", dir.display())).with_source(error))
}

async fn run_ingest(arguments: Ingest) -> Result<ExitCode> {
    let temporary = temporary_folder();
    let dir = arguments.dir.clone().unwrap_or_else(|| temporary.clone());
    make_folder(&dir)?;
    if live_blocks(&dir.join("blocks"))?.spans > 0 {
        return Err(Error::invalid(format!("{} has blocks already; take an empty folder", dir.display())));
    }
    let result = measure_ingest(&arguments, &dir).await;
    if arguments.dir.is_none() {
        // What cannot be removed is in the folder for temporary files.
        drop(fs::remove_dir_all(&temporary));
    }
    let report = result?;
    if arguments.json {
        println!("{report}");
        return Ok(ExitCode::SUCCESS);
    }
    let number = |key: &str| report[key].as_f64().unwrap_or(0.0);
    println!("spans             {:>12}", table::grouped(number("spans") as u64));
    println!("CPU               {:>12.2} s", number("cpu_seconds"));
    println!("CPU per span      {:>12.2} µs", number("cpu_micros_per_span"));
    println!("spans/s per core  {:>12}", table::grouped(number("spans_per_second_per_core") as u64));
    println!("on disk           {:>12.1} bytes/span in {} blocks", number("bytes_per_span"), report["blocks"]);
    println!("peak memory       {:>12}", table::bytes(number("peak_resident_bytes") as u64));
    println!("wall              {:>12.2} s to the last acknowledgement, {:.2} s to the last block", number("send_seconds"), number("wall_seconds"));
    if report["spans"] != report["spans_in_blocks"] {
        println!("note: {} spans were sent, {} are in blocks (repeated spans are stored once)", report["spans"], report["spans_in_blocks"]);
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure_ingest(arguments: &Ingest, dir: &Path) -> Result<Value> {
    let server = Server::start(dir, &format!("compactor: {{compaction: {{compaction_cycle: {}s}}}}\n", CYCLE.as_secs()))?;
    let api = Api::new(&server.http, None)?;
    let sender = Sender::new(&server.otlp_http, Some(Protocol::Http), None, Compression::None)?;
    let mut files = Vec::new();
    let read = Arc::new(AtomicU64::new(0));
    for path in &arguments.files {
        files.push(otlp::read_file(path, read.clone())?);
    }
    let cpu_before = child::cpu_micros(server.pid())?;
    let watch = Stopwatch::start();
    let sent = load::send(&sender, files.into_iter().flatten(), arguments.connections, None, None, &|_| {}).await?;
    let send_seconds = watch.seconds();
    api.post("/flush").await?;
    let (blocks, wall_seconds) = settle(&server, &dir.join("blocks"), sent.spans, watch).await?;
    let cpu_micros = child::cpu_micros(server.pid())? - cpu_before;
    let peak_resident_bytes = child::peak_resident_bytes(server.pid())?;
    api.get("/shutdown", &[], "*/*").await?;
    server.wait()?;
    let per_span = |total: u64| total as f64 / sent.spans.max(1) as f64;
    Ok(json!({
        "spans": sent.spans,
        "spans_in_blocks": blocks.spans,
        "otlp_bytes": sent.bytes,
        "retries": sent.retries,
        "cpu_seconds": cpu_micros as f64 / 1e6,
        "cpu_micros_per_span": per_span(cpu_micros),
        "spans_per_second_per_core": sent.spans as f64 / (cpu_micros.max(1) as f64 / 1e6),
        "bytes_per_span": per_span(blocks.bytes),
        "blocks": blocks.count,
        "peak_resident_bytes": peak_resident_bytes,
        "send_seconds": send_seconds,
        "wall_seconds": wall_seconds,
    }))
}

/// Waits until the spans are in blocks and the server rests. Returns what is on disk, and the time at which nothing changed any more.
async fn settle(server: &Server, blocks: &Path, spans: u64, watch: Stopwatch) -> Result<(Blocks, f64)> {
    loop {
        let began = watch.seconds();
        let before = (live_blocks(blocks)?, child::cpu_micros(server.pid())?);
        otlp::pause(IDLE_PERIOD).await;
        let after = (live_blocks(blocks)?, child::cpu_micros(server.pid())?);
        let is_idle = before.0 == after.0 && after.1 - before.1 < IDLE_CPU_MICROS;
        // Repeated spans are stored once, so that fewer can be right: then rest alone decides.
        if is_idle && after.0.spans > 0 {
            return Ok((after.0, began));
        }
        if watch.elapsed() > SETTLE_MAX {
            return Err(Error::unavailable(format!("{} of {spans} spans are in blocks after {SETTLE_MAX:?}", after.0.spans)));
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Blocks {
    count: u64,
    spans: u64,
    bytes: u64,
}

/// The blocks of all tenants that count.
fn live_blocks(folder: &Path) -> Result<Blocks> {
    let mut sum = Blocks::default();
    for tenant in entries(folder) {
        for block in blocks_that_count(&tenant)? {
            let bytes: u64 = entries(&block.folder).iter().filter_map(|file| fs::metadata(file).ok()).map(|meta| meta.len()).sum();
            sum = Blocks { count: sum.count + 1, spans: sum.spans + block.spans, bytes: sum.bytes + bytes };
        }
    }
    Ok(sum)
}

/// A block on local disk.
struct BlockFolder {
    folder: PathBuf,
    spans: u64,
}

/// The blocks in a tenant's folder that count: those with a meta that no other block's meta names as replaced.
fn blocks_that_count(tenant: &Path) -> Result<Vec<BlockFolder>> {
    let mut found: BTreeMap<String, BlockFolder> = BTreeMap::new();
    let mut replaced: BTreeSet<String> = BTreeSet::new();
    for folder in entries(tenant) {
        // A block can go between the listing and the reading.
        let Ok(meta) = fs::read(folder.join(META_NAME)) else { continue };
        let meta: Value =
            serde_json::from_slice(&meta).map_err(|error| Error::data(format!("reading {}", folder.join(META_NAME).display())).with_source(error))?;
        let id = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        found.insert(id, BlockFolder { folder, spans: meta["totalSpans"].as_u64().unwrap_or(0) });
        replaced.extend(meta["replaces"].as_array().into_iter().flatten().filter_map(|id| id.as_str().map(str::to_owned)));
    }
    found.retain(|id, _| !replaced.contains(id));
    Ok(found.into_values().collect())
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

/// A line of the list: `search START END LIMIT QUERY`, `metrics START END STEP QUERY` or `trace ID`; `now` and `0` are times too.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Question {
    path: String,
    parameters: Vec<(&'static str, String)>,
    text: String,
}

fn parse_questions(list: &str) -> Result<Vec<Question>> {
    let lines = list.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    lines.map(|(index, line)| parse_question(line).ok_or_else(|| Error::invalid(format!("line {}: '{line}' is no question", index + 1)))).collect()
}

fn parse_question(line: &str) -> Option<Question> {
    let (kind, rest) = line.trim().split_once(' ')?;
    if kind == "trace" {
        let path = format!("/api/v2/traces/{rest}");
        return Some(Question { path, parameters: Vec::new(), text: line.to_owned() });
    }
    let mut parts = rest.splitn(4, ' ');
    let (start, end, third, query) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let window = [("q", query.to_owned()), ("start", start.to_owned()), ("end", end.to_owned())];
    let (path, extra) = match kind {
        "search" => ("/api/search", vec![("limit", third.to_owned())]),
        "metrics" => ("/api/metrics/query_range", vec![("step", third.to_owned()), ("exemplars", "0".to_owned())]),
        _ => return None,
    };
    let parameters = window.into_iter().chain(extra).collect();
    Some(Question { path: path.to_owned(), parameters, text: query.to_owned() })
}

async fn run_query(arguments: Query) -> Result<ExitCode> {
    let list = match &arguments.queries {
        Some(path) => fs::read_to_string(path).map_err(|error| Error::invalid(format!("reading {}", path.display())).with_source(error))?,
        None => QUERIES.to_owned(),
    };
    let questions: Vec<Question> =
        parse_questions(&list)?.into_iter().filter(|question| arguments.only.as_deref().is_none_or(|only| question.text.contains(only))).collect();
    let cold = if arguments.cold { ", partial_cache_bytes: 0" } else { "" };
    let server = match &arguments.data {
        Some(dir) => Some(Server::start(dir, &format!("query_frontend: {{metrics: {{max_duration: 0s{cold}}}}}\n"))?),
        None => None,
    };
    let url = server.as_ref().map(|server| server.http.clone()).or(arguments.url);
    let asked = Asked {
        api: Api::new(url.as_deref().unwrap_or("http://127.0.0.1:3200"), arguments.tenant.clone())?,
        pid: server.as_ref().map(Server::pid).or(arguments.pid),
    };
    let against = match &arguments.against {
        Some(url) => Some(Asked { api: Api::new(url, arguments.tenant)?, pid: arguments.against_pid }),
        None => None,
    };
    let mut answers = Vec::new();
    for question in questions {
        let mut answer = asked.measure(&question, arguments.runs.max(1)).await?;
        if let Some(against) = &against {
            answer["against"] = against.measure(&question, arguments.runs.max(1)).await?;
        }
        answers.push(answer);
    }
    if let Some(server) = server {
        asked.api.get("/shutdown", &[], "*/*").await?;
        server.wait()?;
    }
    match arguments.json {
        true => println!("{}", Value::from(answers)),
        false => print!("{}", render_answers(&answers, against.is_some())),
    }
    Ok(ExitCode::SUCCESS)
}

/// The figures of each question; beside them those of the other server and how many times its CPU is ours.
fn render_answers(answers: &[Value], compared: bool) -> String {
    let number = |value: &Value| value.as_f64().map_or("-".to_owned(), |number| format!("{number:.1}"));
    let figures = |answer: &Value| {
        let result = answer["error"].as_str().map_or_else(|| format!("{} B", answer["bytes"]), |error| table::shortened(error, 40));
        vec![number(&answer["wall_ms_median"]), number(&answer["cpu_ms_mean"]), result]
    };
    let mut heading = vec![("wall ms", Align::Right), ("CPU ms", Align::Right), ("answer", Align::Right)];
    if compared {
        heading.extend([("its wall ms", Align::Right), ("its CPU ms", Align::Right), ("its answer", Align::Right), ("times", Align::Right)]);
    }
    heading.push(("query", Align::Left));
    let row = |answer: &Value| {
        let mut row = figures(answer);
        if compared {
            row.extend(figures(&answer["against"]));
            let times = answer["against"]["cpu_ms_mean"].as_f64().zip(answer["cpu_ms_mean"].as_f64()).map(|(its, ours)| its / ours.max(0.1));
            row.push(times.map_or("-".to_owned(), |times| format!("{times:.1}")));
        }
        row.push(answer["query"].as_str().unwrap_or("").to_owned());
        row
    };
    table::render(&heading, &answers.iter().map(row).collect::<Vec<_>>(), table::width())
}

/// A server that is asked, and its process where its CPU is to be measured.
struct Asked {
    api: Api,
    pid: Option<u32>,
}

impl Asked {
    /// Asks once to warm up and `runs` times for the figures. A question that the server refuses is part of the result.
    async fn measure(&self, question: &Question, runs: usize) -> Result<Value> {
        let parameters: Vec<(&str, String)> = question.parameters.iter().map(|(name, value)| (*name, value.clone())).collect();
        let first = match self.api.get(&question.path, &parameters, "application/json").await {
            Ok(body) => body,
            Err(error) => return Ok(json!({ "query": question.text, "error": error.message() })),
        };
        let cpu = || self.pid.map(child::cpu_micros).transpose();
        let before = cpu()?;
        let mut walls = Vec::with_capacity(runs);
        for _ in 0..runs {
            let watch = Stopwatch::start();
            self.api.get(&question.path, &parameters, "application/json").await?;
            walls.push(watch.seconds() * 1e3);
        }
        let used = cpu()?.zip(before).map(|(after, before)| (after - before) as f64 / 1e3 / runs as f64);
        walls.sort_by(f64::total_cmp);
        Ok(json!({ "query": question.text, "wall_ms_median": walls[runs / 2], "cpu_ms_mean": used, "bytes": first.len() }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_built_in_list_is_well_formed() {
        let questions = parse_questions(QUERIES).unwrap();
        assert!(questions.len() > 20);
        let search = parse_question("search 1 2 20 { name = \"a b\" } | count() > 1").unwrap();
        assert_eq!(search.text, "{ name = \"a b\" } | count() > 1");
        assert_eq!(search.parameters.last().unwrap(), &("limit", "20".to_owned()));
        assert!(parse_questions("serach 1 2 3 { }").is_err());
        assert!(parse_questions("search 1 2").is_err());
    }

    #[test]
    fn replaced_blocks_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let block = |id: &str, spans: u64, replaces: &[&str]| {
            let folder = dir.path().join("single-tenant").join(id);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(META_NAME), json!({ "totalSpans": spans, "replaces": replaces }).to_string()).unwrap();
            fs::write(folder.join("data.parquet"), vec![0; 100]).unwrap();
        };
        block("a", 5, &[]);
        block("b", 7, &[]);
        block("c", 12, &["a", "b"]);
        block("d", 1, &[]);
        fs::create_dir_all(dir.path().join("single-tenant/unfinished")).unwrap();
        let live = live_blocks(dir.path()).unwrap();
        assert_eq!((live.count, live.spans), (2, 13));
        assert_eq!(live_blocks(Path::new("/nowhere/at/all")).unwrap(), Blocks::default());
    }
}
