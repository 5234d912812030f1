//! What an error is to an OTLP client: a gRPC code, an HTTP status and a `google.rpc.Status`. Follows Tempo's receivers, which differ from the product's other
//! endpoints: a missing tenant is `Unavailable`.

use std::time::Duration;

use axum::http::StatusCode;
use prost::Message;
use serde_json::json;
use tonic::Code;

use super::Refusal;
use crate::error::{Error, ErrorKind};

/// Type URL of `google.rpc.RetryInfo`.
const RETRY_INFO_URL: &str = "type.googleapis.com/google.rpc.RetryInfo";

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
pub struct RpcStatus {
    /// A gRPC code.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// For the client's log.
    #[prost(string, tag = "2")]
    pub message: String,
    /// At most one `google.rpc.RetryInfo`.
    #[prost(message, repeated, tag = "3")]
    pub details: Vec<RpcAny>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
pub struct RpcAny {
    /// What `value` is.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// A message.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
pub struct RetryInfo {
    /// How long to wait.
    #[prost(message, optional, tag = "1")]
    pub retry_delay: Option<RpcDuration>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct RpcDuration {
    /// Whole seconds.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// The rest.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl RpcStatus {
    /// The status of a refused request.
    pub fn of(refusal: &Refusal) -> Self {
        let details = refusal.retry_after.map(|after| RpcAny {
            type_url: RETRY_INFO_URL.into(),
            value: RetryInfo { retry_delay: Some(RpcDuration { seconds: after.as_secs() as i64, nanos: after.subsec_nanos() as i32 }) }
                .encode_to_vec(),
        });
        Self { code: code(&refusal.error) as i32, message: client_message(&refusal.error), details: details.into_iter().collect() }
    }

    /// As proto-JSON. `retry_after` is the content of `details`.
    pub(super) fn to_json(&self, retry_after: Option<Duration>) -> Vec<u8> {
        let mut status = json!({"code": self.code, "message": self.message});
        if let Some(after) = retry_after {
            let fraction = format!("{:09}", after.subsec_nanos());
            let fraction = fraction.trim_end_matches('0');
            let point = if fraction.is_empty() { "" } else { "." };
            status["details"] = json!([{"@type": RETRY_INFO_URL, "retryDelay": format!("{}{point}{fraction}s", after.as_secs())}]);
        }
        status.to_string().into_bytes()
    }
}

/// As gRPC status, with the whole [`RpcStatus`] in its details when there is a [`RetryInfo`].
pub(super) fn grpc(refusal: &Refusal) -> tonic::Status {
    let status = RpcStatus::of(refusal);
    let code = code(&refusal.error);
    if status.details.is_empty() {
        tonic::Status::new(code, status.message)
    } else {
        tonic::Status::with_details(code, status.message.clone(), status.encode_to_vec().into())
    }
}

/// The gRPC code of an error.
fn code(error: &Error) -> Code {
    match error.kind() {
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Denied => Code::PermissionDenied,
        ErrorKind::Exhausted => Code::ResourceExhausted,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::Data => Code::DataLoss,
        ErrorKind::Internal => Code::Internal,
        ErrorKind::Cancelled => Code::Cancelled,
    }
}

/// The HTTP status of an error: the OpenTelemetry collector's table from gRPC codes.
pub(super) fn http(error: &Error) -> StatusCode {
    match code(error) {
        Code::Cancelled | Code::Unavailable | Code::DataLoss => StatusCode::SERVICE_UNAVAILABLE,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// What the client may read: our own bugs and damaged files are logged instead.
fn client_message(error: &Error) -> String {
    match error.kind() {
        ErrorKind::Internal | ErrorKind::Data => {
            tracing::error!(%error, "request failed");
            "internal error".into()
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: ErrorKind, expected_code: Code, expected_http: u16) {
        let error = Error::new(kind, "why");
        assert_eq!((code(&error), http(&error).as_u16()), (expected_code, expected_http), "{kind:?}");
    }

    #[test]
    fn every_kind_has_its_answer() {
        check(ErrorKind::Invalid, Code::InvalidArgument, 400);
        check(ErrorKind::NotFound, Code::NotFound, 500);
        check(ErrorKind::Denied, Code::PermissionDenied, 403);
        check(ErrorKind::Exhausted, Code::ResourceExhausted, 429);
        check(ErrorKind::Unavailable, Code::Unavailable, 503);
        check(ErrorKind::Data, Code::DataLoss, 503);
        check(ErrorKind::Internal, Code::Internal, 500);
        check(ErrorKind::Cancelled, Code::Cancelled, 503);
    }

    #[test]
    fn internal_detail_stays_inside() {
        let status = RpcStatus::of(&Error::internal("secret path").into());
        assert_eq!(status.message, "internal error");
    }

    #[test]
    fn retry_delay_is_written_as_proto_json_does() {
        let json = |after| String::from_utf8_lossy(&RpcStatus::default().to_json(Some(after))).into_owned();
        assert!(json(Duration::from_secs(5)).contains(r#""retryDelay":"5s""#));
        assert!(json(Duration::from_millis(1500)).contains(r#""retryDelay":"1.5s""#));
    }
}
