//! Errors as HTTP answers: a status, and a bare text that Grafana shows as it is.

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use skein_engine::error::{Error, ErrorKind};

/// An answer that is an error.
#[derive(Debug)]
pub(crate) struct HttpError {
    pub(crate) status: StatusCode,
    pub(crate) body: String,
}

impl HttpError {
    pub(crate) fn new(status: StatusCode, body: impl Into<String>) -> Self {
        Self { status, body: body.into() }
    }

    pub(crate) fn bad_request(body: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, body)
    }

    /// What the router of Tempo says of a path that it does not know.
    pub(crate) fn page_not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "404 page not found\n")
    }
}

impl From<Error> for HttpError {
    fn from(error: Error) -> Self {
        let status = match error.kind() {
            ErrorKind::Invalid => StatusCode::BAD_REQUEST,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            // Without a tenant the answer ends with a line break, as that of Tempo's authentication does.
            ErrorKind::Denied if error.message() == "no org id" => return Self::new(StatusCode::UNAUTHORIZED, "no org id\n"),
            ErrorKind::Denied => StatusCode::FORBIDDEN,
            ErrorKind::Exhausted => StatusCode::TOO_MANY_REQUESTS,
            ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Data => {
                tracing::error!(%error, "stored data is wrong");
                StatusCode::INTERNAL_SERVER_ERROR
            }
            ErrorKind::Internal => {
                tracing::error!(%error, "request failed");
                return Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error");
            }
            ErrorKind::Cancelled => {
                let left = StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST);
                return Self::new(left, "context canceled");
            }
        };
        if status == StatusCode::SERVICE_UNAVAILABLE {
            tracing::warn!(%error, "request failed");
        }
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        (self.status, self.body).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_status() {
        let check = |kind, message: &str, status: u16, body: &str| {
            let error = HttpError::from(Error::new(kind, message));
            assert_eq!((error.status.as_u16(), error.body.as_str()), (status, body), "{kind:?}");
        };
        check(ErrorKind::Invalid, "bad", 400, "bad");
        check(ErrorKind::NotFound, "none", 404, "none");
        check(ErrorKind::Denied, "no org id", 401, "no org id\n");
        check(ErrorKind::Denied, "not yours", 403, "not yours");
        check(ErrorKind::Exhausted, "job queue full", 429, "job queue full");
        check(ErrorKind::Unavailable, "stopping", 503, "stopping");
        check(ErrorKind::Data, "object a/b", 500, "object a/b");
        check(ErrorKind::Internal, "secret", 500, "internal error");
        check(ErrorKind::Cancelled, "x", 499, "context canceled");
    }
}
