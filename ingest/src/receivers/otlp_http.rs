//! OTLP over HTTP: `POST /v1/traces`, protobuf or JSON, over HTTP/1.1 and HTTP/2. Status codes and texts are those of Tempo's receiver (the OpenTelemetry
//! collector's), also where others would be as good: a body that is too large is a 400.

use std::sync::Arc;

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::any,
};
use bytes::Bytes;
use http_body_util::LengthLimitError;
use prost::Message;

use super::{
    OtlpReceiver, Refusal, encoding, json,
    otlp_grpc::SUCCESS,
    status::{self, RpcStatus},
    tenant::ORG_ID,
};
use crate::{
    distributor::Source,
    error::{Error, Result},
};

const SOURCE: Source = Source { receiver: "otlp/otlp_receiver", transport: "http" };

/// Compressed and JSON bodies from this size on are worked on off the network threads.
const BLOCKING_BYTES_MIN: usize = 64 << 10;

/// The router of the OTLP HTTP port. Bodies may be of up to `body_bytes_max` bytes, compressed and not.
pub fn router(receiver: Arc<OtlpReceiver>, body_bytes_max: usize) -> Router {
    Router::new().route("/v1/traces", any(traces)).with_state(Arc::new(Traces { receiver, body_bytes_max }))
}

struct Traces {
    receiver: Arc<OtlpReceiver>,
    body_bytes_max: usize,
}

/// What a request's body is, and so what its answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MediaType {
    Protobuf,
    Json,
}

impl MediaType {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
        let media_type = value.split(';').next().unwrap_or_default().trim();
        [Self::Protobuf, Self::Json].into_iter().find(|known| media_type.eq_ignore_ascii_case(known.name()))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Protobuf => "application/x-protobuf",
            Self::Json => "application/json",
        }
    }
}

async fn traces(State(traces): State<Arc<Traces>>, request: Request) -> Response {
    if request.method() != Method::POST {
        return text(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed, supported: [POST]");
    }
    let Some(media_type) = MediaType::of(request.headers()) else {
        return text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "415 unsupported media type, supported: [application/json, application/x-protobuf]");
    };
    match receive(&traces, media_type, request).await {
        Ok(()) => {
            let body = match media_type {
                MediaType::Protobuf => SUCCESS,
                MediaType::Json => br#"{"partialSuccess":{}}"#,
            };
            respond(StatusCode::OK, media_type, body)
        }
        Err(refusal) => refused(media_type, &refusal),
    }
}

async fn receive(traces: &Traces, media_type: MediaType, request: Request) -> Result<(), Refusal> {
    let (parts, body) = request.into_parts();
    let message = message(media_type, &parts.headers, body, traces.body_bytes_max).await?;
    let org_ids = parts.headers.get_all(ORG_ID).iter().map(HeaderValue::as_bytes);
    traces.receiver.receive(SOURCE, org_ids, message).await
}

/// The protobuf request inside a body.
async fn message(media_type: MediaType, headers: &HeaderMap, body: Body, body_bytes_max: usize) -> Result<Bytes> {
    let body = to_bytes(body, body_bytes_max).await.map_err(|error| {
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            if inner.is::<LengthLimitError>() {
                return Error::invalid(encoding::TOO_LARGE);
            }
            cause = inner.source();
        }
        Error::invalid("reading the request body").with_source(error)
    })?;
    let content_encoding = match headers.get(header::CONTENT_ENCODING) {
        Some(value) => String::from_utf8_lossy(value.as_bytes()).into_owned(),
        None => String::new(),
    };
    let plain = content_encoding.is_empty() && media_type == MediaType::Protobuf;
    let blocking = !plain && body.len() >= BLOCKING_BYTES_MIN;
    let work = move || {
        let body = encoding::inflate(&content_encoding, body, body_bytes_max)?;
        match media_type {
            MediaType::Protobuf => Ok(body),
            MediaType::Json => json::to_protobuf(&body),
        }
    };
    if blocking {
        tokio::task::spawn_blocking(work).await.map_err(|error| Error::internal("decoding a request body").with_source(error))?
    } else {
        work()
    }
}

fn refused(media_type: MediaType, refusal: &Refusal) -> Response {
    let status = RpcStatus::of(refusal);
    let body = match media_type {
        MediaType::Protobuf => status.encode_to_vec(),
        MediaType::Json => status.to_json(refusal.retry_after),
    };
    let mut response = respond(status::http(&refusal.error), media_type, body);
    if let Some(after) = refusal.retry_after
        && matches!(response.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
    {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs()));
    }
    response
}

fn respond(status: StatusCode, media_type: MediaType, body: impl Into<Body>) -> Response {
    (status, [(header::CONTENT_TYPE, media_type.name())], body.into()).into_response()
}

fn text(status: StatusCode, body: &'static str) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain")], body).into_response()
}
