//! `/api/metrics/query_range` and `/api/metrics/query`: query-api 6. Always JSON, whatever `Accept` says.

use std::{sync::Arc, time::Duration};

use axum::{Extension, extract::State, response::Response};
use skein_engine::{
    clock::{nanos, parse_duration},
    error::{Error, Result},
};

use super::{HttpError, format::Format, params::Params};
use crate::{Frontend, metrics_asks::MetricsAsk, tenancy::Tenants, window::parse_time};

const SINCE: Duration = Duration::from_secs(3600);

pub(super) async fn range(
    State(frontend): State<Arc<Frontend>>,
    Extension(tenants): Extension<Tenants>,
    params: Params,
) -> Result<Response, HttpError> {
    let step = params.get("step").map(parse_step).transpose()?.map(nanos);
    let answer = frontend.query_range(&tenants, ask(&frontend, &params, step)?).await?;
    Ok(Format::Json.write(&answer))
}

pub(super) async fn instant(
    State(frontend): State<Arc<Frontend>>,
    Extension(tenants): Extension<Tenants>,
    params: Params,
) -> Result<Response, HttpError> {
    let answer = frontend.query_instant(&tenants, ask(&frontend, &params, None)?).await?;
    Ok(Format::Json.write(&answer))
}

fn ask(frontend: &Frontend, params: &Params, step: Option<u64>) -> Result<MetricsAsk> {
    let now = frontend.clock.now_unix_nano();
    let bad_time = |what: &str| Error::invalid(format!("rpc error: code = Code(400) desc = {what}"));
    let time = |name| params.get(name).map(|text| parse_time(name, text).map_err(|e| bad_time(e.message()))).transpose();
    let bad_since = |text: &str| bad_time(&format!("could not parse 'since' parameter: not a valid duration string: {text:?}"));
    let since = params.get("since").map_or(Ok(SINCE), |text| parse_duration(text).ok_or_else(|| bad_since(text)))?;
    let end = time("end")?.unwrap_or(now);
    let start = time("start")?.unwrap_or_else(|| end.min(now).saturating_sub(nanos(since)));
    let query = params.get("q").or(params.get("query")).unwrap_or_default().to_owned();
    // What is no number is as good as none.
    let exemplars = params.number("exemplars").unwrap_or_default();
    Ok(MetricsAsk { query, start, end, step, max_series: params.number("maxSeries")?, exemplars })
}

/// Fractional seconds, or a duration.
fn parse_step(text: &str) -> Result<Duration> {
    if text.starts_with('-') {
        return Err(Error::invalid(format!("cannot parse {text:?}: step must be positive")));
    }
    match text.parse::<f64>() {
        Ok(seconds) if seconds.is_finite() && seconds < 1e9 => Ok(Duration::from_secs_f64(seconds)),
        _ => parse_duration(text).ok_or_else(|| Error::invalid(format!("cannot parse {text:?} to a valid duration"))),
    }
}
