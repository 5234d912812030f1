//! A worker: an engine whose live spans and whose CPUs other processes use. One port serves datafusion-distributed's worker service, which
//! runs stages of plans, and [`LiveService`], which answers for the live spans.

use std::{future::Future, sync::Arc};

use datafusion_distributed::{DistributedExt, Worker, WorkerQueryContext};
use skein_engine::{
    error::{Error, Result},
    exec::engine::Engine,
};
use tokio::net::TcpListener;
use tonic::transport::{Server, server::TcpIncoming};

use crate::{
    codec::PlanCodec,
    live_client::LiveClient,
    live_service::LiveService,
    metrics::WorkerMetrics,
    peer_errors::keep_kinds,
    peers::{Peers, Workers, worker_name, worker_url},
    resolver::PeerResolver,
};

/// A worker, not yet served.
pub struct WorkerNode {
    engine: Arc<Engine>,
    worker: Worker,
    metrics: WorkerMetrics,
}

impl WorkerNode {
    /// The worker that others reach as `url`, with the blocks and live spans of `engine`; `workers` are all of the cluster, for plans
    /// whose stages ask one another. Errors: `Invalid` when `url` is no address.
    pub fn new(engine: Arc<Engine>, url: &str, workers: Arc<dyn Workers>, metrics: WorkerMetrics) -> Result<Self> {
        let peers = Peers::default();
        let remote = Arc::new(LiveClient::new(workers, peers.clone(), engine.pool().clone()));
        let resolver = Arc::new(PeerResolver::new(&engine, Some(worker_name(&worker_url(url)?)), remote));
        let codec = Arc::new(PlanCodec::new(resolver));
        let worker = Worker::from_session_builder(move |context: WorkerQueryContext| {
            let builder = context.builder.with_distributed_user_codec_arc(codec.clone());
            let builder = builder.with_distributed_channel_resolver(peers.clone()).with_distributed_worker_plan_rewrite_handler(keep_kinds);
            async move { Ok(builder.build()) }
        });
        let worker = worker.with_runtime_env(engine.runtime());
        Ok(Self { engine, worker, metrics })
    }

    /// Serves until `stop` resolves and the requests under way have ended. Errors: `Unavailable` when the listener fails.
    pub async fn serve(self, listener: TcpListener, stop: impl Future<Output = ()>) -> Result<()> {
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let services = Server::builder().add_service(self.worker.into_worker_server()).add_service(LiveService::server(self.engine, self.metrics));
        let served = services.serve_with_incoming_shutdown(incoming, stop).await;
        served.map_err(|e| Error::unavailable("serving a worker").with_source(e))
    }
}
