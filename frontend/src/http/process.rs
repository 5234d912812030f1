//! `/ready`, `/flush`, `/shutdown`, `/ingester/shutdown`: the process as its operator drives it.

use std::sync::Arc;

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use skein_engine::tenant::TenantId;

use super::{HttpError, params::Params};
use crate::Frontend;

pub(super) async fn ready(State(frontend): State<Arc<Frontend>>) -> Response {
    match frontend.operations.readiness() {
        Ok(()) => "ready\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason).into_response(),
    }
}

pub(super) async fn flush(State(frontend): State<Arc<Frontend>>, params: Params) -> Result<StatusCode, HttpError> {
    let tenant = params.get("tenant").map(TenantId::parse).transpose()?;
    frontend.operations.flush(tenant).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn shutdown(State(frontend): State<Arc<Frontend>>) -> &'static str {
    frontend.operations.shutdown();
    "shutdown job acknowledged"
}
