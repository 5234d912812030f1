//! `/api/search`: query-api 4.

use std::sync::Arc;

use axum::{Extension, extract::State, http::HeaderMap, response::Response};
use skein_engine::error::{Error, Result};

use super::{
    HttpError,
    format::{Format, TEXT, body},
    params::Params,
};
use crate::{Frontend, asks::SearchAsk, logfmt, tenancy::Tenants};

pub(super) async fn search(
    State(frontend): State<Arc<Frontend>>,
    Extension(tenants): Extension<Tenants>,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, HttpError> {
    if let Some(analyze) = explain(&params)? {
        return Ok(body(TEXT, frontend.explain_search(&tenants, ask(&params)?, analyze).await?));
    }
    let answer = frontend.search(&tenants, ask(&params)?).await?;
    Ok(Format::of(&headers).write(&answer))
}

/// `explain=plan` shows the plan, `explain=analyze` runs it first (true).
fn explain(params: &Params) -> Result<Option<bool>> {
    match params.get("explain") {
        None => Ok(None),
        Some("plan") => Ok(Some(false)),
        Some("analyze") => Ok(Some(true)),
        Some(other) => Err(Error::invalid(format!("invalid explain: {other} is neither plan nor analyze"))),
    }
}

fn ask(params: &Params) -> Result<SearchAsk> {
    let times = params.search_times()?;
    let query = params.get("q").unwrap_or_default().to_owned();
    let tags = params.get("tags").map(logfmt::parse_tags).transpose()?.unwrap_or_default();
    let min_duration_ms = params.milliseconds("minDuration")?;
    let max_duration_ms = params.milliseconds("maxDuration")?;
    if max_duration_ms > 0 && max_duration_ms <= min_duration_ms {
        return Err(Error::invalid("invalid maxDuration: must be greater than minDuration"));
    }
    let limit = params.number("limit")?;
    if limit == 0 && params.get("limit").is_some() {
        return Err(Error::invalid("invalid limit: must be a positive number"));
    }
    Ok(SearchAsk { query, tags, min_duration_ms, max_duration_ms, limit, spans_per_span_set: params.number("spss")?, times })
}
