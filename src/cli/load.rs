//! `skein load`: sends files of spans to any OTLP endpoint.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use clap::Args;
use futures::{StreamExt, TryStreamExt};
use indicatif::{ProgressBar, ProgressStyle};
use prost::Message;
use skein_engine::{
    clock::{Clock, Stopwatch, SystemClock},
    error::Result,
};

use super::{
    otlp::{self, Compression, Payload, Protocol, Sender},
    table,
};

/// Arguments of `skein load`.
#[derive(Args)]
pub struct Arguments {
    /// Files: .otlp.zst (a zstd stream of length-prefixed requests), .json or .jsonl (OTLP JSON).
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Where to send: http://HOST:PORT or grpc://HOST:PORT.
    #[arg(long, default_value = "http://127.0.0.1:4318")]
    endpoint: String,
    /// Overrides what the endpoint's scheme says.
    #[arg(long)]
    protocol: Option<Protocol>,
    /// Sent as X-Scope-OrgID.
    #[arg(long)]
    tenant: Option<String>,
    /// Move all times by the same amount, so that the last span ends now.
    #[arg(long)]
    shift_to_now: bool,
    /// Requests at the same time.
    #[arg(long, default_value_t = 2)]
    connections: usize,
    /// Compression of requests.
    #[arg(long, value_enum, default_value_t)]
    compress: Compression,
    /// Most spans per second.
    #[arg(long)]
    rate: Option<u64>,
}

/// Sends the files and prints a summary.
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let sender = Sender::new(&arguments.endpoint, arguments.protocol, arguments.tenant, arguments.compress)?;
    let shift_nanos = if arguments.shift_to_now { Some(shift_to_now(&arguments.files)?) } else { None };
    let bytes_total = arguments.files.iter().filter_map(|path| std::fs::metadata(path).ok()).map(|meta| meta.len()).sum();
    let bar = progress(bytes_total);
    let read = Arc::new(AtomicU64::new(0));
    let mut files = Vec::new();
    for path in &arguments.files {
        files.push(otlp::read_file(path, read.clone())?);
    }
    let summary = send(&sender, files.into_iter().flatten(), arguments.connections, arguments.rate, shift_nanos, &|progress| {
        bar.set_position(read.load(Relaxed));
        bar.set_message(progress.to_string());
    })
    .await;
    bar.finish_and_clear();
    println!("{}", summary?);
    Ok(ExitCode::SUCCESS)
}

/// A bar over the bytes of the input.
pub fn progress(bytes_total: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes_total);
    let style = ProgressStyle::with_template("{bar:30} {percent:>3}%  {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style);
    bar
}

/// By how much to move the files' times so that the last span ends now.
fn shift_to_now(files: &[PathBuf]) -> Result<i64> {
    let mut last = 0;
    for path in files {
        for payload in otlp::read_file(path, Arc::default())? {
            last = last.max(otlp::last_end(&payload?.decode()?.resource_spans));
        }
    }
    Ok(nanos_to_now(last))
}

/// The distance from `unix_nano` to now.
pub fn nanos_to_now(unix_nano: u64) -> i64 {
    SystemClock.now_unix_nano() as i64 - unix_nano as i64
}

/// What was sent.
#[derive(Debug, Clone, Copy)]
pub struct Summary {
    /// Spans acknowledged.
    pub spans: u64,
    /// Requests acknowledged.
    pub requests: u64,
    /// Uncompressed bytes of these.
    pub bytes: u64,
    /// Attempts that were refused and repeated.
    pub retries: u64,
    /// Time since the first.
    pub elapsed: Duration,
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.elapsed.as_secs_f64().max(1e-9);
        write!(
            f,
            "{} spans in {} requests ({}), {} spans/s, {}",
            table::grouped(self.spans),
            table::grouped(self.requests),
            table::bytes(self.bytes),
            table::grouped((self.spans as f64 / seconds) as u64),
            table::duration(self.elapsed)
        )?;
        match self.retries {
            0 => Ok(()),
            retries => write!(f, ", {} retries", table::grouped(retries)),
        }
    }
}

/// Sends `payloads`, `connections` at a time, and tells `report` after each answer. Ends at the first request that is refused for good.
pub async fn send(
    sender: &Sender,
    payloads: impl Iterator<Item = Result<Payload>>,
    connections: usize,
    rate: Option<u64>,
    shift_nanos: Option<i64>,
    report: &(dyn Fn(&Summary) + Sync),
) -> Result<Summary> {
    let watch = Stopwatch::start();
    let mut scheduled = 0;
    let sends = payloads.map(|payload| {
        let payload = payload.and_then(|payload| match shift_nanos {
            Some(nanos) => shifted(&payload, nanos),
            None => Ok(payload),
        });
        let due = rate.map(|rate| Duration::from_secs_f64(scheduled as f64 / rate.max(1) as f64));
        let spans = payload.as_ref().map_or(0, Payload::span_count);
        scheduled += spans;
        async move {
            let payload = payload?;
            if let Some(wait) = due.and_then(|due| due.checked_sub(watch.elapsed())) {
                otlp::pause(wait).await;
            }
            let sent = sender.send(&payload).await?;
            Ok((spans, payload.len() as u64, sent.retries))
        }
    });
    let none = Summary { spans: 0, requests: 0, bytes: 0, retries: 0, elapsed: Duration::ZERO };
    futures::stream::iter(sends)
        .buffer_unordered(connections.max(1))
        .try_fold(none, |mut summary, (spans, bytes, retries)| {
            summary.spans += spans;
            summary.requests += 1;
            summary.bytes += bytes;
            summary.retries += retries;
            summary.elapsed = watch.elapsed();
            report(&summary);
            async move { Ok(summary) }
        })
        .await
}

fn shifted(payload: &Payload, nanos: i64) -> Result<Payload> {
    let mut request = payload.decode()?;
    otlp::shift(&mut request.resource_spans, nanos);
    Ok(Payload::Protobuf(request.encode_to_vec().into()))
}
