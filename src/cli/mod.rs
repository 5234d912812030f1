//! The command line: one subcommand a file. Without a subcommand the process is the server, see [`serve`].

pub mod bench;
pub mod child;
pub mod demo;
pub mod http;
pub mod inspect;
pub mod load;
pub mod otlp;
pub mod query;
pub mod serve;
pub mod sql;
pub mod table;
pub mod trace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use skein_engine::error::Result;

const AFTER_HELP: &str = "Without a subcommand, skein is the server and takes Tempo's flags: skein -config.file=tempo.yaml (all flags: skein -help)";

/// Skein: traces in, durable, columnar, searchable, with Grafana Tempo's interfaces.
#[derive(Parser)]
#[command(name = "skein", after_help = AFTER_HELP, disable_version_flag = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start everything on a local folder, load real traces and ask three questions.
    Demo(demo::Arguments),
    /// Send files of spans to an OTLP endpoint.
    Load(load::Arguments),
    /// Run a TraceQL search and show what matched.
    Query(query::Arguments),
    /// Run a SQL statement over spans.
    Sql(sql::Arguments),
    /// Show one trace as a waterfall.
    Trace(trace::Arguments),
    /// Show the columns of a block, and what they cost.
    Inspect(inspect::Arguments),
    /// Measure what a span or a query costs.
    Bench(bench::Arguments),
}

/// Runs the process. Errors are printed here and nowhere else.
pub fn run() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    // `-help` lists the server's flags, as Go programs do; `--help` the subcommands.
    let is_server = args.get(1).is_none_or(|first| first.starts_with('-') && first != "-h" && first != "--help");
    let result = if is_server { serve::run(&args[1..]) } else { subcommand(&args) };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("skein: {error}");
            ExitCode::FAILURE
        }
    }
}

fn subcommand(args: &[String]) -> Result<ExitCode> {
    let arguments = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        // Prints help to stdout and mistakes to stderr.
        Err(error) => error.exit(),
    };
    match arguments.command {
        Command::Demo(arguments) => demo::run(arguments),
        Command::Load(arguments) => block_on(load::run(arguments)),
        Command::Query(arguments) => block_on(query::run(arguments)),
        Command::Sql(arguments) => block_on(sql::run(arguments)),
        Command::Trace(arguments) => block_on(trace::run(arguments)),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Bench(arguments) => bench::run(arguments),
    }
}

/// Runs a client's future on a small runtime of its own.
#[allow(clippy::disallowed_methods, reason = "the client commands have no runtime but this")]
fn block_on(future: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    crate::runtime::client()?.block_on(future)
}
