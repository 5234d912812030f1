//! `skein demo`: everything on a local folder, with real traces, and three questions with their answers.

use std::{fs, io::Cursor, path::PathBuf, process::ExitCode};

use clap::Args;
use skein_engine::error::{Error, Result};
use skein_ingest::receivers::server::OtlpSettings;

use super::{
    http::Api,
    load,
    otlp::{self, Compression, Payload, Protocol, Sender},
    query::{self, Search},
    serve, table,
};
use crate::{
    config::{Loaded, Settings},
    roles::{self, Addresses, process::StopHandle},
};

/// Recorded traces: a name for reading, and an `.otlp.zst` stream. Sources and licences: `demo-data/README.md`.
const SAMPLES: [(&str, &[u8]); 4] = [
    ("a train ticket shop on Kubernetes, 28 services", include_bytes!("demo-data/trainticket.otlp.zst")),
    ("shell scripts, CI runners and the programs they start", include_bytes!("../../tests/data/shellci.otlp.zst")),
    ("agents that call language models", include_bytes!("../../tests/data/genai.otlp.zst")),
    ("a Node.js server and its database", include_bytes!("../../tests/data/nodedb.otlp.zst")),
];

/// The questions, with how they are told in words.
const QUESTIONS: [(&str, &str); 3] = [
    ("Which commands failed?", r#"{ status = error && span.shell.command.exit_code > 0 }"#),
    (
        "Which requests were slow at the gateway and went through the order service?",
        r#"{ resource.service.name = "ts-gateway-service" && duration > 1s } >> { resource.service.name = "ts-order-service" }"#,
    ),
    ("Which language models did agents call?", r#"{ span.openinference.span.kind = "LLM" } | select(span.llm.model_name)"#),
];

/// Present in the folder once the sample has been taken in.
const LOADED_MARK: &str = "sample-loaded";

/// Arguments of `skein demo`.
#[derive(Args)]
pub struct Arguments {
    /// Where the data go.
    #[arg(long, default_value = "skein-data/demo")]
    dir: PathBuf,
    /// Port of the query API.
    #[arg(long, default_value_t = 3200)]
    http_port: u16,
    /// Port of gRPC.
    #[arg(long, default_value_t = 9095)]
    grpc_port: u16,
    /// Port of OTLP over gRPC.
    #[arg(long, default_value_t = 4317)]
    otlp_grpc_port: u16,
    /// Port of OTLP over HTTP.
    #[arg(long, default_value_t = 4318)]
    otlp_http_port: u16,
    /// Answer the questions and stop.
    #[arg(long)]
    once: bool,
}

/// Runs the demo until Ctrl-C.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let loaded = settings(&arguments)?;
    serve::start_logging("warn");
    let (report, failed) = std::sync::mpsc::channel();
    roles::run(loaded, |addresses, stop| {
        // Not on the server's threads: this blocks, and talks to the server as any client does.
        std::thread::spawn(move || {
            let shown = super::block_on(show(arguments, addresses, stop.clone()));
            if let Err(error) = shown {
                // Only fails when `run` has ended already.
                drop(report.send(error));
                stop.stop();
            }
        });
    })?;
    match failed.try_recv() {
        Ok(error) => Err(error),
        Err(_) => Ok(ExitCode::SUCCESS),
    }
}

fn settings(arguments: &Arguments) -> Result<Loaded> {
    let dir = &arguments.dir;
    fs::create_dir_all(dir).map_err(|error| Error::unavailable(format!("making {}", dir.display())).with_source(error))?;
    let mut settings = Settings::default();
    settings.server.http_listen_address = "127.0.0.1".into();
    settings.server.http_listen_port = arguments.http_port;
    settings.server.grpc_listen_address = "127.0.0.1".into();
    settings.server.grpc_listen_port = arguments.grpc_port;
    settings.storage.trace.store.local.path = dir.join("blocks").display().to_string();
    settings.storage.trace.wal.path = dir.join("wal");
    let otlp = OtlpSettings {
        grpc_endpoint: Some(format!("127.0.0.1:{}", arguments.otlp_grpc_port)),
        http_endpoint: Some(format!("127.0.0.1:{}", arguments.otlp_http_port)),
        ..OtlpSettings::default()
    };
    Ok(Loaded { settings, otlp, tenant_file: None, warnings: Vec::new() })
}

async fn show(arguments: Arguments, addresses: Addresses, stop: StopHandle) -> Result<ExitCode> {
    let url = format!("http://{}", addresses.http);
    let api = Api::new(&url, None)?;
    let mark = arguments.dir.join(LOADED_MARK);
    if mark.exists() {
        println!("The sample is there from before, in {}.", arguments.dir.display());
    } else {
        let endpoint = addresses.otlp_http.map(|address| address.to_string()).unwrap_or_default();
        load_samples(&endpoint).await?;
        fs::write(&mark, "").map_err(|error| Error::unavailable(format!("writing {}", mark.display())).with_source(error))?;
    }
    let mut first_trace = None;
    for (question, traceql) in QUESTIONS {
        println!("\n{question}\n  {traceql}\n");
        let search = Search { limit: Some(5), spans_per_spanset: Some(1), ..Search::everywhere(traceql) };
        let answer: serde_json::Value =
            serde_json::from_slice(&search.ask(&api).await?).map_err(|error| Error::data("reading the server's answer").with_source(error))?;
        print!("{}", query::render(&answer, table::width()));
        first_trace = first_trace.or_else(|| answer["traces"][0]["traceID"].as_str().map(str::to_owned));
    }
    println!("\nGo on:");
    println!("  skein query '{{ duration > 1s }}'{}", if addresses.http.port() == 3200 { String::new() } else { format!(" --url {url}") });
    if let Some(trace) = first_trace {
        println!("  skein trace {trace}{}", if addresses.http.port() == 3200 { String::new() } else { format!(" --url {url}") });
    }
    println!("  curl -G {url}/api/search --data-urlencode 'q={{ status = error }}' -d start=1 -d end=4000000000");
    println!("\nGrafana: add a data source of type Tempo with the URL {url}");
    for (name, address) in addresses.named().filter(|(name, _)| name.starts_with("otlp")) {
        println!("Your own spans: {name} on {address}");
    }
    if arguments.once {
        stop.stop();
    } else {
        println!("\nRunning until Ctrl-C. The data stay in {}.", arguments.dir.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Sends the samples, each moved in time so that its last span ends now.
async fn load_samples(endpoint: &str) -> Result<()> {
    let sender = Sender::new(endpoint, Some(Protocol::Http), None, Compression::None)?;
    let mut requests = 0;
    let mut samples = Vec::new();
    for (name, stream) in SAMPLES {
        let payloads = otlp::read_stream(Cursor::new(stream))?.collect::<Result<Vec<Payload>>>()?;
        let mut last = 0;
        for payload in &payloads {
            last = last.max(otlp::last_end(&payload.decode()?.resource_spans));
        }
        requests += payloads.len() as u64;
        samples.push((name, payloads, load::nanos_to_now(last)));
    }
    println!("Loading recorded traces, moved to end now:");
    let bar = load::progress(requests);
    for (name, payloads, shift) in samples {
        let before = bar.position();
        let summary = load::send(&sender, payloads.into_iter().map(Ok), 2, None, Some(shift), &|progress| {
            bar.set_position(before + progress.requests);
            bar.set_message(format!("{name}: {} spans", table::grouped(progress.spans)));
        })
        .await?;
        bar.suspend(|| println!("  {:>8} spans  {name}", table::grouped(summary.spans)));
    }
    bar.finish_and_clear();
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_samples_are_whole() {
        let spans: u64 =
            SAMPLES.iter().flat_map(|(_, stream)| otlp::read_stream(Cursor::new(*stream)).unwrap()).map(|p| p.unwrap().span_count()).sum();
        // 20,108 + 26,751 + 47 + 292, as the READMEs of the data say.
        assert_eq!(spans, 47_198);
    }
}
