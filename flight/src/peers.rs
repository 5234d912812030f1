//! Connections to workers: one for each address, shared by all queries, and what datafusion-distributed reaches workers through.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use datafusion::{
    arrow::record_batch::RecordBatch, common::Result as DataFusionResult, execution::TaskContext, physical_plan::metrics::ExecutionPlanMetricsSet,
};
use datafusion_distributed::{
    ChannelResolver, CoordinatorToWorkerMsg, ExecuteTaskRequest, GetWorkerInfoRequest, GetWorkerInfoResponse, SetPlanRequest, WorkerChannel,
    WorkerToCoordinatorMsg,
    grpc::{BoxCloneSyncChannel, create_worker_client},
};
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use skein_engine::error::{Error, Result};
use tonic::{
    codegen::http::HeaderMap,
    transport::{Channel, Endpoint},
};
use url::Url;

use crate::peer_errors::from_peer;

/// A worker that does not take a connection for so long is away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Short enough that a query does not wait long for a worker that is gone, long enough for one that is busy.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Addresses kept. Far more than a cluster has; beyond it the connections begin anew.
const CHANNELS_MAX: usize = 1024;

/// The workers of a cluster. Whoever knows membership implements it.
pub trait Workers: fmt::Debug + Send + Sync + 'static {
    /// Addresses (`http://host:port`) of the workers that queries must ask now: all that may have live spans.
    fn urls(&self) -> Vec<Arc<str>>;
}

impl Workers for Vec<Arc<str>> {
    fn urls(&self) -> Vec<Arc<str>> {
        self.clone()
    }
}

/// The address as workers are named: without a slash at the end, which [`Url`] adds.
pub fn worker_name(url: &Url) -> Arc<str> {
    url.as_str().trim_end_matches('/').into()
}

/// The names of all workers, each once. Errors: `Invalid` for what is no address.
pub fn worker_names(workers: &dyn Workers) -> Result<Vec<Arc<str>>> {
    let mut names = workers.urls().iter().map(|url| Ok(worker_name(&worker_url(url)?))).collect::<Result<Vec<_>>>()?;
    names.sort();
    names.dedup();
    Ok(names)
}

/// The address of a worker. Errors: `Invalid`.
pub fn worker_url(worker: &str) -> Result<Url> {
    Url::parse(worker).map_err(|e| Error::invalid(format!("the address '{worker}' of a worker")).with_source(e))
}

/// Connections, made when they are first needed and again when they are lost. A clone shares them.
#[derive(Debug, Clone)]
pub struct Peers {
    channels: Arc<Mutex<HashMap<Url, Channel>>>,
    keep_alive: Duration,
}

impl Default for Peers {
    fn default() -> Self {
        Self::with_keep_alive(KEEP_ALIVE)
    }
}

impl Peers {
    /// Connections whose workers are asked so often, while a request is under way, whether they are still there, and are given up when
    /// they do not say so for as long again.
    pub fn with_keep_alive(keep_alive: Duration) -> Self {
        Self { channels: Arc::default(), keep_alive }
    }

    /// The connection to a worker. Does not wait for it. Errors: `Invalid` when `url` is no address.
    pub fn channel(&self, url: &Url) -> Result<Channel> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(url) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(url.to_string()).map_err(|e| Error::invalid(format!("the address {url} of a worker")).with_source(e))?;
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(self.keep_alive)
            .keep_alive_timeout(self.keep_alive)
            .connect_lazy();
        if channels.len() >= CHANNELS_MAX {
            channels.clear();
        }
        channels.insert(url.clone(), channel.clone());
        Ok(channel)
    }
}

#[async_trait]
impl ChannelResolver for Peers {
    async fn get_worker_client_for_url(&self, url: &Url) -> DataFusionResult<Box<dyn WorkerChannel>> {
        let inner = create_worker_client(BoxCloneSyncChannel::new(self.channel(url)?));
        Ok(Box::new(NamedChannel { inner, worker: worker_name(url) }))
    }
}

/// A connection whose errors name the worker and have the engine's kinds.
struct NamedChannel {
    inner: Box<dyn WorkerChannel>,
    worker: Arc<str>,
}

impl NamedChannel {
    fn name_errors<T>(&self, stream: BoxStream<'static, DataFusionResult<T>>) -> BoxStream<'static, DataFusionResult<T>>
    where
        T: Send + 'static,
    {
        let worker = self.worker.clone();
        stream.map_err(move |error| from_peer(&worker, &error)).boxed()
    }
}

#[async_trait]
impl WorkerChannel for NamedChannel {
    async fn coordinator_channel(
        &mut self,
        headers: HeaderMap,
        set_plan_request: SetPlanRequest,
        messages: BoxStream<'static, CoordinatorToWorkerMsg>,
        metrics: ExecutionPlanMetricsSet,
        context: &Arc<TaskContext>,
    ) -> DataFusionResult<BoxStream<'static, DataFusionResult<WorkerToCoordinatorMsg>>> {
        let answers = self.inner.coordinator_channel(headers, set_plan_request, messages, metrics, context).await;
        answers.map(|answers| self.name_errors(answers)).map_err(|error| from_peer(&self.worker, &error))
    }

    async fn execute_task(
        &mut self,
        headers: HeaderMap,
        request: ExecuteTaskRequest,
        metrics: ExecutionPlanMetricsSet,
        context: &Arc<TaskContext>,
    ) -> DataFusionResult<Vec<BoxStream<'static, DataFusionResult<RecordBatch>>>> {
        let partitions = self.inner.execute_task(headers, request, metrics, context).await.map_err(|error| from_peer(&self.worker, &error))?;
        Ok(partitions.into_iter().map(|partition| self.name_errors(partition)).collect())
    }

    async fn get_worker_info(&mut self, request: GetWorkerInfoRequest) -> DataFusionResult<GetWorkerInfoResponse> {
        self.inner.get_worker_info(request).await.map_err(|error| from_peer(&self.worker, &error))
    }
}
