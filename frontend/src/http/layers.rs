//! What surrounds every handler: counting, tenants, compression, the time limit.

use std::{
    io::{self, Write},
    sync::Arc,
};

use axum::{
    body::{Body, BodyDataStream, HttpBody},
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures::StreamExt;

use super::{HttpError, params::Params};
use crate::{Frontend, tenancy::TENANT_HEADER};

/// Bodies below this size are not compressed (query-api 1.1).
const GZIP_BYTES_MIN: u64 = 1024;

/// Compressed in one go: some ten milliseconds.
const GZIP_PIECE_BYTES: usize = 1 << 20;

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

/// Compresses long answers for clients that ask for it.
pub(super) async fn gzip(request: Request, next: Next) -> Response {
    let wanted = accepts_gzip(request.headers());
    let response = next.run(request).await;
    if wanted { compressed(response).await } else { response }
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

fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).any(|coding| {
        let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
        let refused = parameters.trim().strip_prefix("q=").and_then(|q| q.parse::<f32>().ok()) == Some(0.0);
        name.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

async fn compressed(response: Response) -> Response {
    let size = response.body().size_hint();
    if size.upper().is_some_and(|bytes| bytes < GZIP_BYTES_MIN) || response.headers().contains_key(header::CONTENT_ENCODING) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    match gzipped(body.into_data_stream()).await {
        Ok(bytes) => {
            parts.headers.remove(header::CONTENT_LENGTH);
            parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            parts.headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
            Response::from_parts(parts, Body::from(bytes))
        }
        _ => HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error").into_response(),
    }
}

/// Compresses piece by piece, so that a client that leaves stops it and what is written piece by piece is never there as a whole.
async fn gzipped(mut body: BodyDataStream) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    while let Some(plain) = body.next().await {
        let mut plain: Bytes = plain.map_err(io::Error::other)?;
        while !plain.is_empty() {
            let piece = plain.split_to(plain.len().min(GZIP_PIECE_BYTES));
            let written = tokio::task::spawn_blocking(move || encoder.write_all(&piece).map(|()| encoder));
            encoder = written.await.map_err(io::Error::other)??;
        }
    }
    encoder.finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn routes_have_tempos_names() {
        let check = |path: &str, expected: &str| assert_eq!(route_name(path), expected);
        check("/api/traces/{traceID}", "api_traces_traceid");
        check("/api/v2/search/tag/{*rest}", "api_v2_search_tag_tagname_values");
        check("/status/usage-stats", "status_usage_stats");
        check("/", "root");
    }

    #[test]
    fn gzip_is_asked_for_by_name_and_can_be_refused() {
        let check = |value: &str, expected: bool| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, value.parse().unwrap());
            assert_eq!(accepts_gzip(&headers), expected, "{value}");
        };
        check("gzip", true);
        check("deflate, GZIP;q=0.5", true);
        check("gzip;q=0", false);
        check("br", false);
        check("x-gzip-2", false);
    }
}
