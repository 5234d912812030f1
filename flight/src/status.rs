//! Engine errors as gRPC statuses and back.
//!
//! The kind travels as a `google.rpc.ErrorInfo` in the status details, the form that all gRPC libraries read, so that it survives a hop.

use std::time::Duration;

use prost::Message;
use skein_engine::error::{Error, ErrorKind};
use tonic::{Code, Status};

const ERROR_INFO_TYPE: &str = "type.googleapis.com/google.rpc.ErrorInfo";
const RETRY_INFO_TYPE: &str = "type.googleapis.com/google.rpc.RetryInfo";
const ERROR_DOMAIN: &str = "skein";

/// Kinds, the code each has on the wire, and the name in the details. The first kind of a code is what a foreign status of it becomes.
const KINDS: [(ErrorKind, Code, &str); 8] = [
    (ErrorKind::Invalid, Code::InvalidArgument, "INVALID"),
    (ErrorKind::NotFound, Code::NotFound, "NOT_FOUND"),
    (ErrorKind::Denied, Code::PermissionDenied, "DENIED"),
    (ErrorKind::Exhausted, Code::ResourceExhausted, "EXHAUSTED"),
    (ErrorKind::Unavailable, Code::Unavailable, "UNAVAILABLE"),
    (ErrorKind::Data, Code::DataLoss, "DATA"),
    (ErrorKind::Internal, Code::Internal, "INTERNAL"),
    (ErrorKind::Cancelled, Code::Cancelled, "CANCELLED"),
];

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.ErrorInfo` without its metadata.
#[derive(Clone, PartialEq, Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

/// The status that tells `error` to the other side. The message is the error's text with its causes; whoever answers strangers replaces that
/// of an `Internal` error.
pub fn to_status(error: &Error) -> Status {
    status_of(error.kind(), error.to_string(), None)
}

/// The status that tells a stranger that something was refused, and when to try again. `told` makes the message of the error's text, which is
/// left out for an `Internal` error.
pub fn refusal_status(error: &Error, retry_after: Option<Duration>, told: impl FnOnce(&str) -> String) -> Status {
    let text = match error.kind() {
        ErrorKind::Internal => {
            tracing::error!(%error, "gRPC request failed");
            "internal error".to_owned()
        }
        _ => error.to_string(),
    };
    status_of(error.kind(), told(&text), retry_after)
}

fn status_of(kind: ErrorKind, message: String, retry_after: Option<Duration>) -> Status {
    let (code, reason) = KINDS.iter().find(|(known, ..)| *known == kind).map_or((Code::Internal, "INTERNAL"), |(_, code, reason)| (*code, *reason));
    let info = ErrorInfo { reason: reason.into(), domain: ERROR_DOMAIN.into() };
    let mut details = vec![Any { type_url: ERROR_INFO_TYPE.into(), value: info.encode_to_vec() }];
    if let Some(after) = retry_after {
        let retry_delay = prost_types::Duration { seconds: after.as_secs() as i64, nanos: after.subsec_nanos() as i32 };
        details.push(Any { type_url: RETRY_INFO_TYPE.into(), value: RetryInfo { retry_delay: Some(retry_delay) }.encode_to_vec() });
    }
    let details = RpcStatus { code: code as i32, message: message.clone(), details }.encode_to_vec();
    Status::with_details(code, message, details.into())
}

/// The status that a stranger sees: as [`to_status`], but without the text of an `Internal` error, which is logged.
pub fn client_status(error: &Error) -> Status {
    match error.kind() {
        ErrorKind::Internal => {
            tracing::error!(%error, "gRPC request failed");
            Status::internal("internal error")
        }
        ErrorKind::Denied if error.message() == "no org id" => Status::unauthenticated(error.message()),
        _ => to_status(error),
    }
}

/// The error that a status tells: of the kind in its details when one of ours sent it, else of the kind nearest to its code.
pub fn from_status(status: &Status) -> Error {
    let kind = kind_in_details(status.details()).unwrap_or_else(|| kind_of_code(status.code()));
    Error::new(kind, status.message())
}

/// The name of a kind where it travels as text.
pub(crate) fn name_of_kind(kind: ErrorKind) -> &'static str {
    KINDS.iter().find(|(known, ..)| *known == kind).map_or("INTERNAL", |(.., name)| name)
}

/// The kind of a name.
pub(crate) fn kind_of_name(name: &str) -> Option<ErrorKind> {
    KINDS.iter().find(|(.., known)| *known == name).map(|(kind, ..)| *kind)
}

fn kind_in_details(details: &[u8]) -> Option<ErrorKind> {
    let details = RpcStatus::decode(details).ok()?.details;
    let info = details.iter().find(|any| any.type_url == ERROR_INFO_TYPE)?;
    let info = ErrorInfo::decode(info.value.as_slice()).ok().filter(|info| info.domain == ERROR_DOMAIN)?;
    KINDS.iter().find(|(.., reason)| *reason == info.reason).map(|(kind, ..)| *kind)
}

fn kind_of_code(code: Code) -> ErrorKind {
    match code {
        Code::FailedPrecondition | Code::OutOfRange => ErrorKind::Invalid,
        Code::Unauthenticated => ErrorKind::Denied,
        Code::DeadlineExceeded | Code::Aborted => ErrorKind::Unavailable,
        _ => KINDS.iter().find(|(_, known, _)| *known == code).map_or(ErrorKind::Internal, |(kind, ..)| *kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_a_hop() {
        for (kind, code, _) in KINDS {
            let status = to_status(&Error::new(kind, "reading footer of block b"));
            let back = from_status(&status);
            assert_eq!(status.code(), code);
            assert_eq!((back.kind(), back.message()), (kind, "reading footer of block b"));
        }
    }

    #[test]
    fn the_details_decide_over_the_code() {
        let sent = to_status(&Error::data("block b"));
        let relayed = Status::with_details(Code::Unknown, sent.message(), sent.details().to_vec().into());
        assert_eq!(from_status(&relayed).kind(), ErrorKind::Data);
    }

    #[test]
    fn a_foreign_status_gets_the_nearest_kind() {
        let check = |code, expected| assert_eq!(from_status(&Status::new(code, "x")).kind(), expected, "{code:?}");
        check(Code::InvalidArgument, ErrorKind::Invalid);
        check(Code::OutOfRange, ErrorKind::Invalid);
        check(Code::Unauthenticated, ErrorKind::Denied);
        check(Code::DeadlineExceeded, ErrorKind::Unavailable);
        check(Code::Unknown, ErrorKind::Internal);
        let garbage = Status::with_details(Code::NotFound, "x", vec![0xff, 0xff, 0xff].into());
        assert_eq!(from_status(&garbage).kind(), ErrorKind::NotFound);
    }

    #[test]
    fn the_causes_are_part_of_the_message() {
        let error = Error::unavailable("object store").with_source(std::io::Error::other("reset"));
        assert_eq!(to_status(&error).message(), "object store: reset");
    }
}
