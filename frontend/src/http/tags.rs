//! `/api/search/tags` and `/api/v2/search/tags`: attribute names, query-api 5.1 and 5.2.

use std::sync::Arc;

use axum::{Extension, extract::State, http::HeaderMap, response::Response};
use skein_engine::error::Result;

use super::{HttpError, format::Format, params::Params};
use crate::{Frontend, asks::NamesAsk, tenancy::Tenants};

pub(super) async fn v1(
    State(frontend): State<Arc<Frontend>>,
    Extension(tenants): Extension<Tenants>,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, HttpError> {
    let answer = frontend.flat_tag_names(&tenants, ask(&params)?).await?;
    Ok(Format::of(&headers).write(&answer))
}

pub(super) async fn v2(
    State(frontend): State<Arc<Frontend>>,
    Extension(tenants): Extension<Tenants>,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, HttpError> {
    let answer = frontend.tag_names(&tenants, ask(&params)?).await?;
    Ok(Format::of(&headers).write(&answer))
}

/// A limit that cannot be read is none, as in Tempo. `maxStaleValues` may be given and changes nothing: an answer is always complete.
fn ask(params: &Params) -> Result<NamesAsk> {
    Ok(NamesAsk {
        scope: params.get("scope").unwrap_or_default().to_owned(),
        filter: params.get("q").map(str::to_owned),
        times: params.tag_times()?,
        limit: params.number("limit").unwrap_or(0),
    })
}
