//! The runtimes. Network and storage run on one, queries on another, so that a heavy query does not delay an acknowledgement.

use skein_engine::error::{Error, Result};
use tokio::runtime::{Builder, Runtime};

/// Stack of a thread that plans and runs queries: syntax trees and plans of SQL are walked from node to node. Only what is used is memory.
const QUERY_STACK_BYTES: usize = 64 << 20;
/// Stack of any other thread: tokio's default.
const STACK_BYTES: usize = 2 << 20;

/// Receivers, HTTP and gRPC servers, the log, object storage.
pub fn io() -> Result<Runtime> {
    build("io", std::thread::available_parallelism().map_or(2, usize::from), STACK_BYTES)
}

/// Query plans, block writing, compaction.
pub fn query() -> Result<Runtime> {
    build("query", std::thread::available_parallelism().map_or(2, usize::from), QUERY_STACK_BYTES)
}

/// The client subcommands.
pub fn client() -> Result<Runtime> {
    build("client", 2, STACK_BYTES)
}

fn build(name: &str, threads: usize, stack_bytes: usize) -> Result<Runtime> {
    let name = format!("skein-{name}");
    let runtime = Builder::new_multi_thread().worker_threads(threads).thread_name(&name).thread_stack_size(stack_bytes).enable_all().build();
    runtime.map_err(|error| Error::internal(format!("starting the runtime {name}")).with_source(error))
}
