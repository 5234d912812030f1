//! `/api/v2/traces/diff`: two traces compared, query-api 3.7.

use std::sync::Arc;

use axum::{
    Extension,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use skein_engine::{
    error::{Error, Result},
    query::{TraceRequest, TraceResult},
    spans::TraceId,
};

use super::{
    HttpError,
    format::{self, JSON},
    trace::{LLM_FORMS, SPANS_WRITTEN_HERE, window_between, write_elsewhere},
};
use crate::{
    Frontend,
    diff::{self, DiffFormat, Side},
    merge::trace::{encoded_bytes, span_count},
    tenancy::Tenants,
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    #[serde(default)]
    base: TraceRef,
    #[serde(default)]
    compare: TraceRef,
    #[serde(default)]
    format: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TraceRef {
    trace_id: String,
    start: Option<i64>,
    end: Option<i64>,
}

pub(super) async fn diff(
    State(frontend): State<Arc<Frontend>>,
    Extension(tenants): Extension<Tenants>,
    method: Method,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, HttpError> {
    if method != Method::POST {
        return Err(HttpError::new(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"));
    }
    let body = body.map_err(|rejected| HttpError::new(rejected.status(), rejected.body_text()))?;
    let body: Body = serde_json::from_slice(&body).map_err(|e| HttpError::bad_request(format!("invalid trace diff request body: {e}")))?;
    let format = format_of(&body.format)?;
    let requests = [request("base", &body.base)?, request("compare", &body.compare)?];
    let ids = [requests[0].id, requests[1].id];

    let (found, _turn) = frontend.two_traces(&tenants, requests).await?;
    check_found(&found, frontend.strictest(&tenants, |limits| limits.max_bytes_per_trace))?;
    let spans: usize = found.iter().map(|trace| span_count(&trace.resource_spans)).sum();
    let bytes: usize = found.iter().map(|trace| encoded_bytes(&trace.resource_spans)).sum();
    // Attributes become values, changes and text, as they do for language models.
    found[0].memory.grow(bytes * LLM_FORMS)?;
    let write = move || {
        let [base, compare] = [0, 1].map(|side| Side { id: ids[side], resource_spans: &found[side].resource_spans });
        match diff::document(base, compare, format) {
            Ok(document) => format::body(JSON, document),
            Err(error) => HttpError::from(error).into_response(),
        }
    };
    if spans > SPANS_WRITTEN_HERE { write_elsewhere(write).await } else { Ok(write()) }
}

fn format_of(name: &str) -> Result<DiffFormat> {
    if name.is_empty() {
        return Ok(DiffFormat::default());
    }
    DiffFormat::parse(name).ok_or_else(|| Error::invalid(format!("invalid format {name:?}: must be one of {}", DiffFormat::names())))
}

fn request(side: &str, trace: &TraceRef) -> Result<TraceRequest> {
    if trace.trace_id.is_empty() {
        return Err(Error::invalid(format!("{side}.traceId is required")));
    }
    let id = TraceId::parse_hex(&trace.trace_id).map_err(|e| e.context(format!("invalid {side}.traceId")))?;
    let window = window_between(trace.start, trace.end, |start, end| {
        Error::invalid(format!("{side}.start must be before {side}.end. received start={start} end={end}"))
    })?;
    Ok(TraceRequest { id, window, filter: None })
}

/// A comparison needs both traces whole, and both together within the size of one.
fn check_found(found: &[TraceResult; 2], bytes_max: usize) -> Result<(), HttpError> {
    if found.iter().any(|trace| trace.resource_spans.is_empty()) {
        return Err(HttpError::new(StatusCode::NOT_FOUND, "Not Found"));
    }
    let bytes = found.each_ref().map(|trace| encoded_bytes(&trace.resource_spans));
    if bytes_max > 0 && bytes.iter().any(|&bytes| bytes > bytes_max) {
        let text = format!("partial traces cannot be diffed: a trace exceeds max size (max bytes: {bytes_max})");
        return Err(HttpError::new(StatusCode::UNPROCESSABLE_ENTITY, text));
    }
    if bytes_max > 0 && bytes.iter().sum::<usize>() > bytes_max {
        return Err(Error::exhausted(format!("the two traces together exceed max size (max bytes: {bytes_max})")).into());
    }
    Ok(())
}
