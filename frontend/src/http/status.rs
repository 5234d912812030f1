//! `/status`, `/status/{section}`, `/status/overrides`, `/status/usage-stats`, `/api/status/buildinfo`.

use std::{fmt::Write, sync::Arc};

use axum::{
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use skein_engine::tenant::TenantId;

use super::{HttpError, format, params::Params, rings};
use crate::{Frontend, operations::ConfigMode};

const SECTIONS: [&str; 5] = ["version", "services", "endpoints", "runtime_config", "config"];

/// Paths that `/status/endpoints` lists; those of the first list have the prefix.
const API_PATHS: [&str; 12] = [
    "/api/traces/{traceID}",
    "/api/v2/traces/{traceID}",
    "/api/search",
    "/api/search/tags",
    "/api/v2/search/tags",
    "/api/search/tag/{tagName}/values",
    "/api/v2/search/tag/{tagName}/values",
    "/api/metrics/query_range",
    "/api/metrics/query",
    "/api/echo",
    "/api/status/buildinfo",
    "/status/usage-stats",
];
const OTHER_PATHS: [&str; 9] = [
    "/ready",
    "/metrics",
    "/flush",
    "/shutdown",
    "/ingester/shutdown",
    "/status",
    "/status/{section}",
    "/status/overrides",
    "/status/overrides/{tenant}",
];

pub(super) async fn build_info(State(frontend): State<Arc<Frontend>>) -> Result<Response, HttpError> {
    match serde_json::to_string(&frontend.build) {
        Ok(json) => Ok(format::body(format::JSON, json)),
        Err(error) => Err(HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

pub(super) async fn usage_stats() -> &'static str {
    "usage-stats is not enabled"
}

pub(super) async fn all(State(frontend): State<Arc<Frontend>>) -> Result<String, HttpError> {
    let mut text = String::new();
    for name in SECTIONS {
        text.push_str(&section_text(&frontend, name, &Params::default())?);
        text.push('\n');
    }
    Ok(text)
}

pub(super) async fn section(State(frontend): State<Arc<Frontend>>, Path(name): Path<String>, params: Params) -> Result<String, HttpError> {
    section_text(&frontend, &name, &params)
}

fn section_text(frontend: &Frontend, name: &str, params: &Params) -> Result<String, HttpError> {
    let mode = params.get("mode");
    let unknown_mode =
        || HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("unknown value for mode query parameter: {:?}", mode.unwrap_or("")));
    let text = match name {
        "version" => {
            let build = &frontend.build;
            format!("version: {}\nrevision: {}\nbranch: {}\nbuild date: {}\n", build.version, build.revision, build.branch, build.build_date)
        }
        "services" => frontend.operations.services().into_iter().fold(String::new(), |mut text, (service, state)| {
            let _ = writeln!(text, "{service:<24} {state}");
            text
        }),
        "endpoints" => {
            let api = API_PATHS.iter().map(|path| format!("{}{path}\n", frontend.http_api_prefix));
            let rings = rings::PAGES.iter().map(|page| format!("{}\n", page.path));
            api.chain(OTHER_PATHS.iter().map(|path| format!("{path}\n"))).chain(rings).collect()
        }
        "runtime_config" => match mode {
            None => frontend.operations.runtime_config_yaml(false),
            Some("diff") => frontend.operations.runtime_config_yaml(true),
            Some(_) => return Err(unknown_mode()),
        },
        "config" => match mode {
            None => frontend.operations.config_yaml(ConfigMode::Effective),
            Some("diff") => frontend.operations.config_yaml(ConfigMode::Diff),
            Some("defaults") => frontend.operations.config_yaml(ConfigMode::Defaults),
            Some(_) => return Err(unknown_mode()),
        },
        _ => return Err(HttpError::page_not_found()),
    };
    Ok(format!("GET /status/{name}\n{text}"))
}

pub(super) async fn overrides(State(frontend): State<Arc<Frontend>>, headers: HeaderMap) -> Response {
    let tenants: Vec<String> = frontend.operations.tenants_with_overrides().iter().map(TenantId::to_string).collect();
    if headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).is_some_and(|accept| accept.contains(format::JSON)) {
        return format::body(format::JSON, serde_json::json!({ "tenants": tenants }).to_string());
    }
    tenants.into_iter().fold(String::new(), |text, tenant| text + &tenant + "\n").into_response()
}

pub(super) async fn overrides_of(State(frontend): State<Arc<Frontend>>, Path(tenant): Path<String>) -> Result<String, HttpError> {
    Ok(frontend.operations.limits_yaml(&TenantId::parse(&tenant)?))
}
