//! `/metrics`: the metrics of the process in Prometheus' text format.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode, response::Response};
use prometheus::TextEncoder;

use super::{HttpError, format};
use crate::Frontend;

pub(super) async fn metrics(State(frontend): State<Arc<Frontend>>) -> Result<Response, HttpError> {
    match TextEncoder::new().encode_to_string(&frontend.registry.gather()) {
        Ok(text) => Ok(format::body(prometheus::TEXT_FORMAT, text)),
        Err(error) => Err(HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}
