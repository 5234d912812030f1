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
    query::Window,
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
const LLM_FORMS: usize = 8;

/// Most spans that are written where the request is served: some milliseconds of work.
const SPANS_WRITTEN_HERE: usize = 5_000;

pub(super) async fn v1(
    State(frontend): State<Arc<Frontend>>,
    Extension(tenants): Extension<Tenants>,
    Path(id): Path<String>,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, HttpError> {
    let id = TraceId::parse_hex(&id)?;
    let (found, _turn) = frontend.trace(&tenants, id, window(&params)?).await?;
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
    let window = window(&params)?;
    check_filter(&params)?;
    let (mut found, _turn) = frontend.trace(&tenants, id, window).await?;
    let bytes_max = frontend.strictest(&tenants, |limits| limits.max_bytes_per_trace);
    let (mut status, mut message) = (PartialStatus::Complete, String::new());
    if bytes_max > 0 && merge::trace::encoded_bytes(&found.resource_spans) > bytes_max {
        merge::trace::cut(&mut found.resource_spans, bytes_max);
        status = PartialStatus::Partial;
        message = format!("Trace exceeds maximum size of {bytes_max} bytes, a partial trace is returned");
    }
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
async fn write_elsewhere(write: impl FnOnce() -> Response + Send + 'static) -> Result<Response, HttpError> {
    let stop = Stop::default();
    let _waiting = stop.on_drop();
    let written = tokio::task::spawn_blocking(move || stop.sync_scope(write)).await;
    Ok(written.map_err(|error| Error::internal("writing a trace").with_source(error))?)
}

/// Checks the parameters of 3.2. The window only says which blocks are looked at; a bound that is missing is open.
fn window(params: &Params) -> Result<Option<Window>> {
    match params.get("mode") {
        None | Some("all" | "blocks") => {}
        Some("ingesters") => return Ok(None),
        Some(mode) => return Err(Error::invalid(format!("invalid value for mode {mode}"))),
    }
    for (param, shown) in [("blockStart", "blockstart"), ("blockEnd", "blockEnd")] {
        params.get(param).map(BlockId::parse).transpose().map_err(|e| e.context(format!("invalid value for {shown}")))?;
    }
    let bound = |name| Ok::<_, Error>(params.signed(name)?.filter(|seconds| *seconds != 0));
    let (start, end) = (bound("start")?, bound("end")?);
    if let (Some(start), Some(end)) = (start, end)
        && end <= start
    {
        return Err(Error::invalid(format!("http parameter start must be before end. received start={start} end={end}")));
    }
    if start.is_none() && end.is_none() {
        return Ok(None);
    }
    let seconds = |bound: i64| u32::try_from(bound.max(0)).unwrap_or(u32::MAX);
    Ok(Some(Window { start_seconds: start.map_or(0, seconds), end_seconds: end.map_or(u32::MAX, seconds) }))
}

/// Checks the span filter `q` and its parameters, which count only together with it; a good one is refused as not supported.
fn check_filter(params: &Params) -> Result<()> {
    let Some(filter) = params.get("q").map(str::trim).filter(|filter| !filter.is_empty()) else { return Ok(()) };
    traceql::parse(filter).map_err(|e| if e.kind() == ErrorKind::Invalid { e.context("invalid TraceQL filter") } else { e })?;
    let depth = |name: &str| match params.get(name) {
        None => Ok(()),
        Some(text) => match text.parse::<i64>() {
            Ok(-1..) => Ok(()),
            Ok(_) => Err(Error::invalid(format!("invalid value for {name}: must be >= -1"))),
            Err(e) => Err(Error::invalid(format!("invalid value for {name}: {e}"))),
        },
    };
    depth("match_depth")?;
    match params.get("keep_hierarchy") {
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => depth("ancestor_depth")?,
        None | Some("0" | "f" | "F" | "false" | "FALSE" | "False") => {}
        Some(text) => return Err(Error::invalid(format!("invalid value for keep_hierarchy: {text:?} is not a boolean"))),
    }
    Err(Error::invalid("q: filtering the spans of a trace is not supported yet"))
}
