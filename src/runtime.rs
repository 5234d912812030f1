//! The runtimes. Network and storage run on one, queries on another, so that a heavy query does not delay an acknowledgement.

use skein_engine::error::{Error, Result};
use tokio::runtime::{Builder, Runtime};

/// Receivers, HTTP and gRPC servers, the log, object storage.
pub fn io() -> Result<Runtime> {
    build("io", std::thread::available_parallelism().map_or(2, usize::from))
}

/// Query plans, block writing, compaction.
pub fn query() -> Result<Runtime> {
    build("query", std::thread::available_parallelism().map_or(2, usize::from))
}

/// The client subcommands.
pub fn client() -> Result<Runtime> {
    build("client", 2)
}

fn build(name: &str, threads: usize) -> Result<Runtime> {
    let name = format!("skein-{name}");
    let runtime = Builder::new_multi_thread().worker_threads(threads).thread_name(&name).enable_all().build();
    runtime.map_err(|error| Error::internal(format!("starting the runtime {name}")).with_source(error))
}
