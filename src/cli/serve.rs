//! The server: what the process is without a subcommand.

use std::process::ExitCode;

use skein_engine::error::{Error, Result};
use tracing_subscriber::EnvFilter;

use crate::{
    config::{self, flags},
    roles,
};

/// Reads flags and configuration, then serves until told to stop.
pub fn run(args: &[String]) -> Result<ExitCode> {
    let flags = flags::parse(args).map_err(Error::invalid)?;
    if flags.help {
        println!("Usage: skein [flags]\n\nFlags (a file sets the same keys, -config.file):\n{}\n\nSubcommands: skein help", flags::help());
        return Ok(ExitCode::SUCCESS);
    }
    if flags.version {
        println!("skein, version {}", env!("CARGO_PKG_VERSION"));
        return Ok(ExitCode::SUCCESS);
    }
    let loaded = config::load(&flags)?;
    if flags.verify {
        for warning in &loaded.warnings {
            eprintln!("warning: {warning}");
        }
        // As Tempo: warnings make the check fail.
        return Ok(if loaded.warnings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    start_logging(&loaded.settings.server.log_level);
    for warning in &loaded.warnings {
        tracing::warn!("configuration: {warning}");
    }
    roles::run(loaded, |addresses, _| {
        for (name, address) in addresses.named() {
            println!("skein: {name} listening on {address}");
        }
        println!("skein: ready");
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Text on stderr, from `level` on; the libraries below only when something is wrong.
pub fn start_logging(level: &str) {
    let filter = EnvFilter::new(format!("{level},h2=warn,hyper=warn,hyper_util=warn,tower=warn,tonic=warn,reqwest=warn,datafusion=warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).with_target(false).init();
}
