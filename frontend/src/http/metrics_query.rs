//! `/api/metrics/query_range` and `/api/metrics/query`: checks a TraceQL metrics query as Tempo does (query-api 6.2). Metrics are not executed
//! yet: a good query is answered 501.

use std::{sync::Arc, time::Duration};

use axum::{Extension, extract::State, http::StatusCode};
use skein_engine::{
    clock::{format_duration, nanos, parse_duration},
    error::{Error, Result},
    traceql::{self, ast::QueryBody},
};

use super::{HttpError, params::Params};
use crate::{Frontend, asks::own_or, tenancy::Tenants, window::parse_time};

const SINCE: Duration = Duration::from_secs(3600);

/// What a metrics query that cannot run yet is told, over HTTP and over gRPC.
pub(crate) const NOT_EXECUTED: &str = "TraceQL metrics queries are not executed yet";

pub(super) async fn range(State(frontend): State<Arc<Frontend>>, Extension(tenants): Extension<Tenants>, params: Params) -> Result<(), HttpError> {
    answer(check(&frontend, &tenants, &params, true))
}

pub(super) async fn instant(State(frontend): State<Arc<Frontend>>, Extension(tenants): Extension<Tenants>, params: Params) -> Result<(), HttpError> {
    answer(check(&frontend, &tenants, &params, false))
}

fn answer(checked: Result<()>) -> Result<(), HttpError> {
    checked?;
    Err(HttpError::new(StatusCode::NOT_IMPLEMENTED, NOT_EXECUTED))
}

fn check(frontend: &Frontend, tenants: &Tenants, params: &Params, is_range: bool) -> Result<()> {
    let settings = &frontend.settings;
    let now = frontend.clock.now_unix_nano();
    let bad_time = |what: &str| Error::invalid(format!("rpc error: code = Code(400) desc = {what}"));
    let time = |name| params.get(name).map(|text| parse_time(name, text).map_err(|e| bad_time(e.message()))).transpose();
    let bad_since = |text: &str| bad_time(&format!("could not parse 'since' parameter: not a valid duration string: {text:?}"));
    let since = params.get("since").map_or(Ok(SINCE), |text| parse_duration(text).ok_or_else(|| bad_since(text)))?;
    let end = time("end")?.unwrap_or(now);
    let start = time("start")?.unwrap_or_else(|| end.min(now).saturating_sub(nanos(since)));
    let step = if is_range { params.get("step").map(parse_step).transpose()? } else { None };

    if start >= end {
        return Err(Error::invalid("end must be greater than start"));
    }
    if !settings.query_end_cutoff.is_zero() && start >= now.saturating_sub(nanos(settings.query_end_cutoff)) {
        return Err(Error::invalid("query window falls entirely within query_end_cutoff"));
    }
    let duration_max = frontend.strictest(tenants, |limits| own_or(limits.max_metrics_duration, settings.metrics.max_duration));
    let length = end - start;
    if !duration_max.is_zero() && length > nanos(duration_max) {
        let shown = format_duration(duration_max);
        return Err(Error::invalid(format!("metrics query time range exceeds the maximum allowed duration of {shown}")));
    }
    if let Some(step) = step {
        let step_nanos = nanos(step);
        let intervals_max = settings.metrics.max_intervals;
        if step_nanos == 0 || intervals_max > 0 && length / step_nanos > intervals_max {
            let least = Duration::from_nanos(length / intervals_max.max(1));
            return Err(Error::invalid(format!(
                "step of {} is too small, minimum step for given range is {}",
                format_duration(step),
                format_duration(least)
            )));
        }
    }
    let query = params.get("q").or(params.get("query")).unwrap_or_default();
    let parsed = traceql::parse(query).map_err(|e| if is_range { e } else { e.context("compiling query") })?;
    match parsed.body {
        QueryBody::Metrics(_) => Ok(()),
        QueryBody::Search(_) => Err(Error::invalid("not a metrics query")),
    }
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
