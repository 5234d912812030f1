//! `/api/search/tag/{tag}/values` and `/api/v2/search/tag/{tag}/values`: values of an attribute, query-api 5.3.
//! The tag is everything up to the last `/values`, decoded once, so that it may hold slashes.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Path, State},
    http::HeaderMap,
    response::Response,
};
use skein_proto::tempo;

use super::{
    HttpError,
    format::{self, Format},
    params::Params,
};
use crate::{Frontend, asks::ValuesAsk, llm, merge, tenancy::Tenants};

pub(super) async fn v1(
    State(frontend): State<Arc<Frontend>>,
    Extension(tenants): Extension<Tenants>,
    Path(rest): Path<String>,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, HttpError> {
    let answer = frontend.flat_tag_values(&tenants, ask(&rest, &params)?).await?;
    Ok(Format::of(&headers).write(&answer))
}

pub(super) async fn v2(
    State(frontend): State<Arc<Frontend>>,
    Extension(tenants): Extension<Tenants>,
    Path(rest): Path<String>,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, HttpError> {
    let values = frontend.tag_values(&tenants, ask(&rest, &params)?).await?;
    Ok(match Format::of(&headers) {
        Format::Llm => format::body(format::LLM, llm::tag_values(&values.values, &values.stats)),
        format => {
            let metrics = Some(merge::stats::metadata_metrics(&values.stats));
            format.write(&tempo::SearchTagValuesV2Response { tag_values: values.values, metrics })
        }
    })
}

fn ask(rest: &str, params: &Params) -> Result<ValuesAsk, HttpError> {
    let tag = rest.strip_suffix("/values").or((rest == "values").then_some("")).ok_or_else(HttpError::page_not_found)?;
    // Checked, though an answer is always complete.
    params.number("maxStaleValues")?;
    Ok(ValuesAsk { tag: tag.to_owned(), filter: params.get("q").map(str::to_owned), times: params.tag_times()?, limit: params.number("limit")? })
}
