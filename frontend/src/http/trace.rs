//! `/api/traces/{traceID}` and `/api/v2/traces/{traceID}`: query-api 3.

use std::sync::Arc;

use axum::{
    Extension,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use futures::stream;
use prost::Message;
use skein_engine::{
    error::{Error, ErrorKind, Result},
    exec::memory::Reservation,
    query::{TraceFilter, TraceRequest, Window},
    spans::{BlockId, TraceId},
    stop::Stop,
    traceql,
};
use skein_proto::tempo::{PartialStatus, Trace, TraceByIdResponse};

use super::{
    HttpError,
    format::{self, Format},
    params::Params,
};
use crate::{Frontend, jsonpb, llm, merge, tenancy::Tenants, trace_pieces::TracePieces};

/// How many times its size as protobuf a trace takes in its form for language models, as values and as text.
pub(super) const LLM_FORMS: usize = 8;

/// Most spans that are written where the request is served: some milliseconds of work.
pub(super) const SPANS_WRITTEN_HERE: usize = 5_000;

pub(super) async fn v1(
    State(frontend): State<Arc<Frontend>>,
    Extension(tenants): Extension<Tenants>,
    Path(id): Path<String>,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, HttpError> {
    let id = TraceId::parse_hex(&id)?;
    let request = TraceRequest { id, window: window(&params)?, filter: None };
    let (found, _turn) = frontend.trace(&tenants, request).await?;
    if found.resource_spans.is_empty() {
        return Ok(StatusCode::NOT_FOUND.into_response());
    }
    let bytes_max = frontend.strictest(&tenants, |limits| limits.max_bytes_per_trace);
    if bytes_max > 0 && merge::trace::encoded_bytes(&found.resource_spans) > bytes_max {
        return Err(HttpError::new(StatusCode::UNPROCESSABLE_ENTITY, format!("trace exceeds max size (max bytes: {bytes_max})")));
    }
    let (spans, memory) = (found.resource_spans, found.memory);
    let is_large = merge::trace::span_count(&spans) > SPANS_WRITTEN_HERE;
    Ok(match Format::of(&headers) {
        Format::Protobuf if is_large => streamed(format::PROTOBUF, TracePieces::protobuf(spans), memory),
        Format::Json if is_large => streamed(format::JSON, TracePieces::json(spans), memory),
        Format::Llm if is_large => streamed(format::LLM, TracePieces::json(spans), memory),
        Format::Protobuf => format::body(format::PROTOBUF, Trace { resource_spans: spans }.encode_to_vec()),
        Format::Json => format::body(format::JSON, jsonpb::to_json(&jsonpb::Batches(&spans))),
        Format::Llm => format::body(format::LLM, jsonpb::to_json(&jsonpb::Batches(&spans))),
    })
}

pub(super) async fn v2(
    State(frontend): State<Arc<Frontend>>,
    Extension(tenants): Extension<Tenants>,
    Path(id): Path<String>,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, HttpError> {
    let id = TraceId::parse_hex(&id)?;
    let request = TraceRequest { id, window: window(&params)?, filter: filter(&params)? };
    let (mut found, _turn) = frontend.trace(&tenants, request).await?;
    let bytes_max = frontend.strictest(&tenants, |limits| limits.max_bytes_per_trace);
    let mut left_out = Vec::new();
    if bytes_max > 0 && merge::trace::encoded_bytes(&found.resource_spans) > bytes_max {
        merge::trace::cut(&mut found.resource_spans, bytes_max);
        left_out.push(format!("Trace exceeds maximum size of {bytes_max} bytes, a partial trace is returned"));
    }
    if found.filtered {
        left_out.push("Trace filtered, only a subset of spans matching the filter is returned".to_owned());
    }
    let status = if left_out.is_empty() { PartialStatus::Complete } else { PartialStatus::Partial };
    let message = left_out.join("; ");
    let is_large = merge::trace::span_count(&found.resource_spans) > SPANS_WRITTEN_HERE;
    let (spans, memory) = (found.resource_spans, found.memory);
    let rest = TraceByIdResponse { trace: None, metrics: Some(merge::stats::trace_metrics(&found.stats)), status: status.into(), message };
    Ok(match Format::of(&headers) {
        Format::Llm if is_large => {
            memory.grow(merge::trace::encoded_bytes(&spans) * LLM_FORMS)?;
            write_elsewhere(move || {
                let _held = memory;
                format::body(format::LLM, llm::trace(id, &spans, &found.stats, status, &rest.message))
            })
            .await?
        }
        Format::Protobuf if is_large => streamed(format::PROTOBUF, TracePieces::wrapped_protobuf(spans, &rest), memory),
        Format::Json if is_large => streamed(format::JSON, TracePieces::wrapped_json(spans, &rest), memory),
        Format::Llm => format::body(format::LLM, llm::trace(id, &spans, &found.stats, status, &rest.message)),
        format => format.write(&TraceByIdResponse { trace: Some(Trace { resource_spans: spans }), ..rest }),
    })
}

/// An answer that is written while it is sent: the trace is in memory once, as spans, and `memory` is given back with the last of them, or when
/// the client leaves.
fn streamed(content_type: &'static str, pieces: TracePieces, memory: Reservation) -> Response {
    let written = stream::unfold(Some((pieces, memory)), |state| async move {
        let (mut pieces, memory) = state?;
        // Some milliseconds of work each, kept from the network's threads.
        match tokio::task::spawn_blocking(move || (pieces.next(), pieces)).await {
            Ok((Some(piece), pieces)) => Some((Ok(piece), Some((pieces, memory)))),
            Ok((None, _)) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    format::body(content_type, Body::from_stream(written))
}

/// Runs `write` on a thread of its own, so that the network's threads go on. A client that leaves stops it.
pub(super) async fn write_elsewhere(write: impl FnOnce() -> Response + Send + 'static) -> Result<Response, HttpError> {
    let stop = Stop::default();
    let _waiting = stop.on_drop();
    let written = tokio::task::spawn_blocking(move || stop.sync_scope(write)).await;
    Ok(written.map_err(|error| Error::internal("writing a trace").with_source(error))?)
}

/// Checks the parameters of 3.2. The window only says which blocks are looked at.
fn window(params: &Params) -> Result<Option<Window>> {
    match params.get("mode") {
        None | Some("all" | "blocks") => {}
        Some("ingesters") => return Ok(None),
        Some(mode) => return Err(Error::invalid(format!("invalid value for mode {mode}"))),
    }
    for (param, shown) in [("blockStart", "blockstart"), ("blockEnd", "blockEnd")] {
        params.get(param).map(BlockId::parse).transpose().map_err(|e| e.context(format!("invalid value for {shown}")))?;
    }
    window_between(params.signed("start")?, params.signed("end")?, |start, end| {
        Error::invalid(format!("http parameter start must be before end. received start={start} end={end}"))
    })
}

/// The window between two seconds; a bound that is missing or 0 is open. Errors: `reversed`.
pub(super) fn window_between(start: Option<i64>, end: Option<i64>, reversed: impl FnOnce(i64, i64) -> Error) -> Result<Option<Window>> {
    let (start, end) = (start.filter(|&start| start != 0), end.filter(|&end| end != 0));
    if let (Some(start), Some(end)) = (start, end)
        && end <= start
    {
        return Err(reversed(start, end));
    }
    if start.is_none() && end.is_none() {
        return Ok(None);
    }
    let seconds = |bound: i64| u32::try_from(bound.max(0)).unwrap_or(u32::MAX);
    Ok(Some(Window { start_seconds: start.map_or(0, seconds), end_seconds: end.map_or(u32::MAX, seconds) }))
}

/// The span filter `q` with its parameters, which count only together with it.
fn filter(params: &Params) -> Result<Option<TraceFilter>> {
    let Some(text) = params.get("q").map(str::trim).filter(|text| !text.is_empty()) else { return Ok(None) };
    let refused = |e: Error| if e.kind() == ErrorKind::Invalid { e.context("invalid TraceQL filter") } else { e };
    let matches = traceql::parse_span_filter(text).map_err(refused)?;
    let levels_below = levels(params, "match_depth", Some(0))?;
    let levels_above = match params.get("keep_hierarchy") {
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => levels(params, "ancestor_depth", None)?,
        None | Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Some(0),
        Some(text) => return Err(Error::invalid(format!("invalid value for keep_hierarchy: {text:?} is not a boolean"))),
    };
    Ok(Some(TraceFilter { matches, levels_below, levels_above }))
}

/// A number of levels; -1 is all.
fn levels(params: &Params, name: &str, default: Option<u32>) -> Result<Option<u32>> {
    let Some(text) = params.get(name) else { return Ok(default) };
    match text.parse::<i64>() {
        Ok(-1) => Ok(None),
        Ok(levels @ 0..) => Ok(Some(u32::try_from(levels).unwrap_or(u32::MAX))),
        Ok(_) => Err(Error::invalid(format!("invalid value for {name}: must be >= -1"))),
        Err(e) => Err(Error::invalid(format!("invalid value for {name}: {e}"))),
    }
}
