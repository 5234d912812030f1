//! The query frontend: the HTTP and gRPC API on its two ports.

use std::{net::SocketAddr, sync::Arc};

use skein_engine::{
    error::{Error, Result},
    exec::writer::SpanWriter,
    query::QueryService,
    sql::SqlService,
};
use skein_frontend::{
    Frontend, FrontendParts, grpc, http,
    operations::{BuildInfo, Operations},
    server::{ServeOptions, serve},
};
use tokio::net::TcpListener;

use super::Shared;
use crate::config::{ServerSettings, Settings};

/// The version of Tempo whose API this is: Grafana switches its features by it.
const TEMPO_VERSION: &str = "2.9.0";

/// Bound ports, not yet served.
pub struct Listeners {
    http: TcpListener,
    grpc: TcpListener,
    /// Where HTTP is bound.
    pub http_address: SocketAddr,
    /// Where gRPC is bound.
    pub grpc_address: SocketAddr,
}

/// Binds both ports. Errors: `Unavailable`, naming the address.
pub async fn bind(settings: &ServerSettings) -> Result<Listeners> {
    let (http, http_address) = listen(&settings.http_endpoint()).await?;
    let (grpc, grpc_address) = listen(&settings.grpc_endpoint()).await?;
    Ok(Listeners { http, grpc, http_address, grpc_address })
}

async fn listen(endpoint: &str) -> Result<(TcpListener, SocketAddr)> {
    let failed = |error: std::io::Error| Error::unavailable(format!("listening on {endpoint}")).with_source(error);
    let listener = TcpListener::bind(endpoint).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// The API over `queries`.
pub struct Api(Arc<Frontend>);

/// Builds the API over what answers queries and what takes spans. Errors: `Invalid` for settings that cannot work.
pub fn open(
    shared: &Shared,
    (queries, sql): (Arc<dyn QueryService>, Arc<dyn SqlService>),
    writer: Arc<dyn SpanWriter>,
    operations: Arc<dyn Operations>,
) -> Result<Api> {
    let settings = &shared.settings;
    let build = BuildInfo { version: TEMPO_VERSION.into(), revision: format!("skein-{}", env!("CARGO_PKG_VERSION")), ..BuildInfo::default() };
    let parts = FrontendParts {
        queries,
        sql,
        writer: Some(writer),
        operations,
        settings: settings.query_frontend.clone(),
        multitenancy_enabled: settings.multitenancy_enabled,
        http_api_prefix: settings.http_api_prefix.clone(),
        build,
        registry: shared.registry.clone(),
        clock: shared.clock.clone(),
    };
    Frontend::new(parts).map(Api)
}

impl Api {
    /// Serves both ports until `stop` resolves and the requests under way have ended.
    pub async fn serve(self, listeners: Listeners, settings: Settings, stop: impl Future<Output = ()> + Send) -> Result<()> {
        let options = || ServeOptions { grace: settings.server.graceful_shutdown_timeout, ..ServeOptions::of(&self.0) };
        let (stopping, watched) = tokio::sync::watch::channel(false);
        let pages = http::router(self.0.clone());
        let rpc = || grpc::routes(self.0.clone());
        let beside_pages = settings.stream_over_http_enabled.then(rpc);
        let http_port = serve(listeners.http, pages.clone(), beside_pages, options(), super::stopped(watched.clone()));
        let grpc_port = serve(listeners.grpc, pages, Some(rpc()), options(), super::stopped(watched));
        let told = async {
            stop.await;
            stopping.send_replace(true);
            self.0.end_tails();
            Ok(())
        };
        let served = tokio::try_join!(http_port, grpc_port, told);
        served.map(drop).map_err(|error| Error::unavailable("serving the API").with_source(error))
    }
}
