//! The HTTP API: one endpoint a file.

mod diff;
mod echo;
mod error;
mod format;
mod frames;
mod gzip;
mod layers;
mod mcp;
mod metrics;
mod metrics_query;
mod params;
mod process;
mod rings;
mod search;
mod sql;
mod status;
mod tags;
#[cfg(test)]
mod tests;
mod trace;
mod values;

use std::sync::Arc;

use axum::{
    Router,
    middleware::{from_fn, from_fn_with_state},
    routing::{any, get},
};
pub(crate) use error::HttpError;
pub(crate) use format::LLM_ASKED;

use crate::{Frontend, mcp::service};

/// All endpoints of the HTTP port. Each query is answered for the tenants of its `X-Scope-OrgID`.
pub fn router(frontend: Arc<Frontend>) -> Router {
    let prefix = frontend.http_api_prefix.as_str();
    let at = |path: &str| format!("{prefix}{path}");
    let queries = Router::new()
        .route(&at("/api/traces/{traceID}"), any(trace::v1))
        .route(&at("/api/v2/traces/{traceID}"), any(trace::v2))
        .route(&at("/api/v2/traces/diff"), any(diff::diff))
        .route(&at("/api/search"), any(search::search))
        .route(&at("/api/search/tags"), any(tags::v1))
        .route(&at("/api/v2/search/tags"), any(tags::v2))
        .route(&at("/api/search/tag/{*rest}"), any(values::v1))
        .route(&at("/api/v2/search/tag/{*rest}"), any(values::v2))
        .route(&at("/api/metrics/query_range"), any(metrics_query::range))
        .route(&at("/api/metrics/query"), any(metrics_query::instant))
        .layer(from_fn_with_state(frontend.clone(), layers::time_limit))
        .layer(from_fn(gzip::whole));
    // Its answers are sent while they are made.
    let sql = Router::new()
        .route(&at("/api/sql"), get(sql::sql).post(sql::sql))
        .layer(from_fn_with_state(frontend.clone(), layers::time_limit))
        .layer(from_fn(gzip::streamed));
    let queries = queries.merge(sql).layer(from_fn_with_state(frontend.clone(), layers::tenants));
    let others = Router::new()
        .route(&at("/api/echo"), any(echo::echo))
        .route(&at("/api/status/buildinfo"), get(status::build_info))
        .route(&at("/status/usage-stats"), any(status::usage_stats))
        .route("/ready", any(process::ready))
        .route("/flush", any(process::flush))
        .route("/shutdown", any(process::shutdown))
        .route("/ingester/shutdown", any(process::shutdown))
        .route("/metrics", get(metrics::metrics))
        .route("/status", get(status::all))
        .route("/status/overrides", get(status::overrides))
        .route("/status/overrides/{tenant}", get(status::overrides_of))
        .route("/status/backendscheduler", any(rings::scheduler))
        .route("/status/{section}", get(status::section));
    let others = rings::PAGES.iter().fold(others, |router, page| router.route(page.path, any(move |headers| rings::page(page, headers))));
    let mcp = if frontend.settings.mcp_server.enabled {
        // Its tools ask the routes above, which have the time limit.
        Router::new()
            .route(&at("/api/mcp"), any(mcp::mcp))
            .with_state(service(frontend.clone(), queries.clone().with_state(frontend.clone())))
            .layer(from_fn(gzip::whole))
            .layer(from_fn_with_state(frontend.clone(), layers::tenants))
    } else {
        Router::new().route(&at("/api/mcp"), any(not_found))
    };
    queries.merge(others).merge(mcp).fallback(not_found).layer(from_fn_with_state(frontend.clone(), layers::count)).with_state(frontend)
}

async fn not_found() -> HttpError {
    HttpError::page_not_found()
}
