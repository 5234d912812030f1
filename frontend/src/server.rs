//! One TCP port that speaks HTTP/1.1, HTTP/2 without TLS, and gRPC.

use std::{io, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{Request, Version, header},
};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use prometheus::IntGauge;
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet, time::timeout};
use tower::ServiceExt;

use crate::Frontend;

/// How long a client may take to send the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// HTTP/2 connections whose client does not answer a ping are closed.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(60);
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 1000;
/// Most bytes of an HTTP/2 frame: a message with a table of spans has some megabytes, and comes in fewer pieces. What a client may send ahead is
/// bounded by the windows, which are larger.
const FRAME_BYTES: u32 = 256 << 10;
/// Pause after the system had no file or memory for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How a port is served.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Connections at once; further ones wait in the system's queue.
    pub connections_max: usize,
    /// How long running requests may take after the shutdown has begun.
    pub grace: Duration,
    /// Shows the open connections.
    pub connections: IntGauge,
}

impl ServeOptions {
    /// The usual bounds, counted in the frontend's `tempo_tcp_connections`.
    pub fn of(frontend: &Frontend) -> Self {
        Self { connections_max: 10_000, grace: Duration::from_secs(30), connections: frontend.metrics.connections.clone() }
    }
}

/// Serves `http` on `listener`, and `grpc`, when given, to HTTP/2 requests whose content type begins with `application/grpc`. When `shutdown` ends,
/// no connection is accepted any more, running requests have `options.grace` to end, and what still runs then is cut off. Errors: none but the
/// listener's own.
pub async fn serve(
    listener: TcpListener,
    http: Router,
    grpc: Option<Router>,
    options: ServeOptions,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE_INTERVAL).max_concurrent_streams(STREAMS_MAX).max_frame_size(FRAME_BYTES);
    let service = tower::service_fn(move |request: Request<Incoming>| {
        let router = grpc.as_ref().filter(|_| is_grpc(&request)).unwrap_or(&http).clone();
        router.oneshot(request.map(Body::new))
    });

    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(options.connections_max));
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
            listener.accept().await.map(|(stream, _)| (stream, place))
        };
        let (stream, place) = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = accepted => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection");
                    if timeout(ACCEPT_PAUSE, &mut shutdown).await.is_ok() {
                        break;
                    }
                    continue;
                }
            },
        };
        // Answers are small and waited for.
        let _ = stream.set_nodelay(true);
        let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service.clone())).into_owned();
        let connection = graceful.watch(connection);
        let counted = Counted::new(options.connections.clone());
        connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
            drop((counted, place));
        });
    }

    drop(listener);
    if timeout(options.grace, graceful.shutdown()).await.is_err() {
        tracing::warn!(connections = connections.len(), "cutting off requests that still run");
    }
    connections.shutdown().await;
    Ok(())
}

fn is_grpc(request: &Request<Incoming>) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE).map(|value| value.as_bytes());
    request.version() == Version::HTTP_2 && content_type.is_some_and(|value| value.starts_with(b"application/grpc"))
}

/// Holds a gauge one higher until it is dropped.
struct Counted(IntGauge);

impl Counted {
    fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
