//! What surrounds every handler: counting, tenants, the time limit.

use std::sync::Arc;

use axum::{
    body::HttpBody,
    extract::{MatchedPath, Request, State},
    http::{Method, StatusCode},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{HttpError, params::Params};
use crate::{Frontend, tenancy::TENANT_HEADER};

/// Counts a request under its route.
pub(super) async fn count(State(frontend): State<Arc<Frontend>>, request: Request, next: Next) -> Response {
    let matched = request.extensions().get::<MatchedPath>().map(|path| route_name(path.as_str()));
    let request_bytes = request.body().size_hint().exact();
    let timer = frontend.metrics.request(method_name(request.method()), matched.as_deref().unwrap_or("notfound"));
    let response = next.run(request).await;
    timer.answered(response.status().as_str(), request_bytes, response.body().size_hint().exact());
    response
}

fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// The name of a route in metrics: Tempo's path in lower case, everything else than letters and digits as `_`.
fn route_name(path: &str) -> String {
    let path = path.replace("tag/{*rest}", "tag/tagname/values").to_lowercase();
    let words: Vec<&str> = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    if words.is_empty() { "root".into() } else { words.join("_") }
}

/// Around the query endpoints: finds the tenants, and refuses what is denied or too long.
pub(super) async fn tenants(State(frontend): State<Arc<Frontend>>, mut request: Request, next: Next) -> Response {
    let header = request.headers().get(TENANT_HEADER).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let tenants = match frontend.tenants(header.as_deref()) {
        Ok(tenants) => tenants,
        Err(error) => return HttpError::from(error).into_response(),
    };
    if let Err(refused) = check_url(&frontend, &request) {
        return refused.into_response();
    }
    request.extensions_mut().insert(tenants);
    next.run(request).await
}

/// Ends what takes longer than `api_timeout`.
pub(super) async fn time_limit(State(frontend): State<Arc<Frontend>>, request: Request, next: Next) -> Response {
    let limit = frontend.settings.api_timeout;
    if limit.is_zero() {
        return next.run(request).await;
    }
    let ended = || HttpError::new(StatusCode::SERVICE_UNAVAILABLE, "unable to process request in the configured timeout").into_response();
    tokio::time::timeout(limit, next.run(request)).await.unwrap_or_else(|_| ended())
}

fn check_url(frontend: &Frontend, request: &Request) -> Result<(), HttpError> {
    let url = request.uri().path_and_query().map_or("", |url| url.as_str());
    if frontend.url_deny_list.is_match(url) {
        return Err(HttpError::bad_request(format!(
            "Invalid request {url}. This query has been identified as one that destabilizes our system. Contact your system administrator for \
             more information"
        )));
    }
    let params = Params::of(request.uri());
    for query in params.all("q").chain(params.all("query")) {
        frontend.check_query_size(query)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_have_tempos_names() {
        let check = |path: &str, expected: &str| assert_eq!(route_name(path), expected);
        check("/api/traces/{traceID}", "api_traces_traceid");
        check("/api/v2/search/tag/{*rest}", "api_v2_search_tag_tagname_values");
        check("/status/usage-stats", "status_usage_stats");
        check("/", "root");
    }
}
