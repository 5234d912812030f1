//! The parts of the process: built in order, served, stopped in order. One role a file.
//!
//! | module | role |
//! |---|---|
//! | [`storage`] | the object store, the list of blocks and its polling |
//! | [`ingester`] | the log, live traces, cutting and flushing; and the engine over them |
//! | [`distributor`] | the OTLP receivers and the checks behind them |
//! | [`query_frontend`] | the HTTP and gRPC API |
//! | [`compactor`] | merging and retention |
//! | [`memory`] | how much memory queries may take |
//! | [`process`] | readiness, signals, `/flush` and `/shutdown` |
//! | [`overrides`] | the limits of each tenant |
//!
//! Start: ports of the API are bound (a taken one fails at once), the store is listed, the log is replayed, receivers and API are
//! served, and only then is the process ready. Stop: `/ready` says no for `shutdown_delay`, receivers end, background work ends, live
//! spans are flushed or left to the log, and the API ends last, so that nothing acknowledged is ever unanswerable while it answers.

pub mod compactor;
pub mod distributor;
pub mod ingester;
pub mod memory;
pub mod overrides;
pub mod process;
pub mod query_frontend;
pub mod storage;

use std::{net::SocketAddr, sync::Arc};

use prometheus::Registry;
use skein_engine::{
    clock::{Clock, SystemClock},
    error::{Error, Result},
};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    config::{Loaded, Settings},
    runtime,
};
use overrides::Overrides;
use process::{Process, StopHandle};

/// What every role is given.
pub struct Shared {
    /// The settings.
    pub settings: Settings,
    /// Where metrics are registered.
    pub registry: Registry,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// Everyone's limits.
    pub overrides: Arc<Overrides>,
    /// Threads for queries, block writing and compaction. The caller's own are for the network.
    pub query: tokio::runtime::Handle,
}

/// Where the process listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// The query API: HTTP, and gRPC beside it.
    pub http: SocketAddr,
    /// gRPC.
    pub grpc: SocketAddr,
    /// OTLP over gRPC.
    pub otlp_grpc: Option<SocketAddr>,
    /// OTLP over HTTP.
    pub otlp_http: Option<SocketAddr>,
}

impl Addresses {
    /// Each listener with its name.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> {
        let all = [("http", Some(self.http)), ("grpc", Some(self.grpc)), ("otlp grpc", self.otlp_grpc), ("otlp http", self.otlp_http)];
        all.into_iter().filter_map(|(name, address)| Some((name, address?)))
    }
}

/// Runs all roles until the process is told to stop. `ready` is called once everything is served; it must not block.
#[allow(clippy::disallowed_methods, reason = "the one place where the server's runtimes are entered")]
pub fn run(loaded: Loaded, ready: impl FnOnce(Addresses, StopHandle)) -> Result<()> {
    let io = runtime::io()?;
    let query = runtime::query()?;
    let result = io.block_on(serve(loaded, query.handle().clone(), ready));
    // What still runs was cancelled or has nothing left to say.
    query.shutdown_background();
    io.shutdown_background();
    result
}

async fn serve(loaded: Loaded, query: tokio::runtime::Handle, ready: impl FnOnce(Addresses, StopHandle)) -> Result<()> {
    let Loaded { settings, otlp, tenant_file, .. } = loaded;
    let registry = Registry::new();
    let overrides = Arc::new(Overrides::open(settings.overrides.defaults, tenant_file, &registry)?);
    let shared = Arc::new(Shared { settings, registry, clock: Arc::new(SystemClock), overrides, query });
    process::register_metrics(&shared.registry)?;
    let (stop, stop_asked) = StopHandle::new();
    process::stop_on_signals(stop.clone())?;

    let listeners = query_frontend::bind(&shared.settings.server).await?;
    let storage = storage::open(&shared).await?;
    let ingest_metrics = Arc::new(skein_ingest::metrics::Metrics::new(&shared.registry)?);
    let ingester = ingester::open(&shared, &storage, ingest_metrics.clone()).await?;
    let process = Arc::new(Process::new(shared.clone(), ingester.lifecycle.clone(), stop.clone()));
    let (receivers, tables) = distributor::open(&shared, otlp, ingester.sink.clone(), ingest_metrics).await?;
    let api = query_frontend::open(&shared, (ingester.queries.clone(), ingester.sql.clone()), tables, process.clone())?;

    let addresses = Addresses {
        http: listeners.http_address,
        grpc: listeners.grpc_address,
        otlp_grpc: receivers.grpc_address(),
        otlp_http: receivers.http_address(),
    };
    let receiving = Task::spawn("receivers", |stopped| stopping_if_it_fails(stop.clone(), async move { receivers.serve(stopped).await }));
    let polling = storage.spawn_polling();
    let reloading = overrides::spawn(&shared);
    let compacting = compactor::spawn(&shared, &storage, ingester.merger.clone())?;
    let serving = Task::spawn("API", {
        let settings = shared.settings.clone();
        let stop = stop.clone();
        move |stopped| stopping_if_it_fails(stop, api.serve(listeners, settings, stopped))
    });
    process.set_running();
    ready(addresses, stop);

    let flush_all = stop_asked.wait().await || shared.settings.ingester.flush_all_on_shutdown;
    process.set_stopping();
    tracing::info!("stopping");
    process::pause(shared.settings.shutdown_delay).await;
    // The order matters: see the module. Each is stopped even if one before it failed; the first failure is told.
    let mut result = receiving.stop().await;
    result = result.and(compacting.stop().await);
    result = result.and(polling.stop().await);
    result = result.and(reloading.stop().await);
    result = result.and(ingester.cutting.stop().await);
    result = result.and(ingester.lifecycle.stop(flush_all).await);
    result = result.and(serving.stop().await);
    tracing::info!("stopped");
    result
}

/// A process that no longer serves has to end, so that someone starts it again.
async fn stopping_if_it_fails(stop: StopHandle, work: impl Future<Output = Result<()>>) -> Result<()> {
    let result = work.await;
    if result.is_err() {
        stop.stop();
    }
    result
}

/// A piece of background work that ends when it is told to.
pub struct Task {
    name: &'static str,
    stop: watch::Sender<bool>,
    handle: JoinHandle<Result<()>>,
}

/// Resolves when a [`Task`] is told to stop.
pub async fn stopped(mut stop: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is the end as well.
    drop(stop.wait_for(|stop| *stop).await);
}

impl Task {
    /// Starts work on the current runtime. It gets a future that resolves when it is to stop.
    pub fn spawn<F>(name: &'static str, work: impl FnOnce(std::pin::Pin<Box<dyn Future<Output = ()> + Send>>) -> F) -> Self
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        Self::spawn_watching(name, &tokio::runtime::Handle::current(), |stop| work(Box::pin(stopped(stop))))
    }

    /// Starts work on `runtime`. It gets a watch that becomes true when it is to stop.
    pub fn spawn_watching<F>(name: &'static str, runtime: &tokio::runtime::Handle, work: impl FnOnce(watch::Receiver<bool>) -> F) -> Self
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let (stop, watched) = watch::channel(false);
        let work = work(watched);
        let handle = runtime.spawn(async move {
            let result = work.await;
            if let Err(error) = &result {
                tracing::error!(%error, "{name} failed");
            }
            result
        });
        Self { name, stop, handle }
    }

    /// Tells the work to stop and waits for its end. Errors: the work's, and `Internal` when it panicked.
    pub async fn stop(self) -> Result<()> {
        self.stop.send_replace(true);
        self.handle.await.map_err(|error| Error::internal(format!("{} ended early", self.name)).with_source(error))?
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_task_ends_when_it_is_told_and_reports_how() {
        let quiet = Task::spawn("quiet", |stop| async move {
            stop.await;
            Ok(())
        });
        quiet.stop().await.unwrap();
        let failing = Task::spawn("failing", |_| async { Err(Error::unavailable("no")) });
        assert_eq!(failing.stop().await.unwrap_err().message(), "no");
        let panicking = Task::spawn("panicking", |_| async { panic!("on purpose") });
        assert!(panicking.stop().await.unwrap_err().message().contains("panicking"));
    }
}
