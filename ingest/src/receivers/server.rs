//! Both OTLP listeners: bound first, so that a taken port is an error at the start, then served until told to stop.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use axum::serve::ListenerExt;
use tokio::{net::TcpListener, sync::watch};
use tonic::transport::server::TcpIncoming;

use super::{OtlpReceiver, otlp_grpc::OtlpGrpc, otlp_http};
use crate::{
    distributor::Distributor,
    error::{Error, Result},
};

/// Where and how OTLP is received.
#[derive(Debug, Clone)]
pub struct OtlpSettings {
    /// `host:port` of the gRPC listener; `None` for no gRPC. Port 0 takes a free one.
    pub grpc_endpoint: Option<String>,
    /// `host:port` of the HTTP listener; `None` for no HTTP.
    pub http_endpoint: Option<String>,
    /// Largest gRPC message, uncompressed.
    pub grpc_message_bytes_max: usize,
    /// Largest HTTP body, compressed and uncompressed.
    pub http_body_bytes_max: usize,
    /// Whether the tenant comes from `X-Scope-OrgID`.
    pub multitenancy_enabled: bool,
    /// How long requests under way may take once the server is told to stop.
    pub stop_timeout: Duration,
}

impl Default for OtlpSettings {
    /// The collector's ports and limits, and Tempo's stop timeout.
    fn default() -> Self {
        Self {
            grpc_endpoint: Some("localhost:4317".into()),
            http_endpoint: Some("localhost:4318".into()),
            grpc_message_bytes_max: 4 << 20,
            http_body_bytes_max: 20 << 20,
            multitenancy_enabled: false,
            stop_timeout: Duration::from_secs(30),
        }
    }
}

/// Bound listeners, not yet served.
pub struct OtlpServer {
    grpc: Option<TcpListener>,
    http: Option<TcpListener>,
    receiver: Arc<OtlpReceiver>,
    settings: OtlpSettings,
}

impl OtlpServer {
    /// Binds the listeners. Errors: `Unavailable`, naming the endpoint, when one cannot be bound.
    pub async fn bind(settings: OtlpSettings, distributor: Arc<Distributor>) -> Result<Self> {
        let grpc = bind(settings.grpc_endpoint.as_deref()).await?;
        let http = bind(settings.http_endpoint.as_deref()).await?;
        let receiver = Arc::new(OtlpReceiver::new(distributor, settings.multitenancy_enabled));
        Ok(Self { grpc, http, receiver, settings })
    }

    /// The bound address of the gRPC listener.
    pub fn grpc_address(&self) -> Option<SocketAddr> {
        self.grpc.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// The bound address of the HTTP listener.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Serves until `stop` resolves, then takes no new connections and returns when the requests under way are answered or the stop timeout is over.
    /// Errors: `Unavailable` when a listener fails.
    pub async fn serve(self, stop: impl Future<Output = ()> + Send) -> Result<()> {
        let Self { grpc, http, receiver, settings } = self;
        let (stopping, stopped) = watch::channel(false);
        let signal = |mut stopped: watch::Receiver<bool>| async move {
            // An error means that the sender is gone, which is the end as well.
            drop(stopped.wait_for(|stopped| *stopped).await);
        };
        let (grpc_signal, http_signal) = (signal(stopped.clone()), signal(stopped));
        let serve_grpc = async {
            let Some(listener) = grpc else { return Ok(()) };
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            let service = OtlpGrpc::new(receiver.clone(), settings.grpc_message_bytes_max);
            let served = tonic::transport::Server::builder().serve_with_incoming_shutdown(service, incoming, grpc_signal).await;
            served.map_err(|error| Error::unavailable("serving OTLP gRPC").with_source(error))
        };
        let serve_http = async {
            let Some(listener) = http else { return Ok(()) };
            let listener = listener.tap_io(|connection| {
                if let Err(error) = connection.set_nodelay(true) {
                    tracing::debug!(%error, "setting TCP_NODELAY");
                }
            });
            let router = otlp_http::router(receiver.clone(), settings.http_body_bytes_max);
            let served = axum::serve(listener, router).with_graceful_shutdown(http_signal).await;
            served.map_err(|error| Error::unavailable("serving OTLP HTTP").with_source(error))
        };
        let servers = async { tokio::try_join!(serve_grpc, serve_http).map(drop) };
        tokio::pin!(servers, stop);
        tokio::select! {
            served = &mut servers, if !settings_are_empty(&settings) => return served,
            () = &mut stop => {}
        }
        stopping.send_replace(true);
        match tokio::time::timeout(settings.stop_timeout, servers).await {
            Ok(served) => served,
            Err(_) => {
                tracing::warn!(timeout = ?settings.stop_timeout, "OTLP requests still under way after the stop timeout");
                Ok(())
            }
        }
    }
}

/// Nothing to serve: then only the stop ends it.
fn settings_are_empty(settings: &OtlpSettings) -> bool {
    settings.grpc_endpoint.is_none() && settings.http_endpoint.is_none()
}

async fn bind(endpoint: Option<&str>) -> Result<Option<TcpListener>> {
    let Some(endpoint) = endpoint else { return Ok(None) };
    let bound = TcpListener::bind(endpoint).await;
    bound.map(Some).map_err(|error| Error::unavailable(format!("binding OTLP endpoint {endpoint}")).with_source(error))
}
