//! TraceQL metrics: checks what is asked (query-api 6.2), lays out the grid of samples (6.3), and writes the answer (6.4 to 6.7).

use skein_engine::{
    clock::{format_duration, nanos},
    error::{Error, Result},
    metrics::{detail::exemplars_of, intervals::Intervals},
    query::{MetricsRequest, MetricsResult},
    traceql::{self, Hint, ast::QueryBody},
};
use skein_proto::tempo::{InstantSeries, PartialStatus, QueryInstantResponse, QueryRangeResponse, TimeSeries};
use tokio::sync::mpsc;

use crate::{
    Frontend,
    asks::own_or,
    listening::{Listening, Progress},
    merge,
    tenancy::Tenants,
};

const SECOND: u64 = 1_000_000_000;

/// What is asked; times are Unix nanoseconds.
#[derive(Debug, Clone)]
pub(crate) struct MetricsAsk {
    pub(crate) query: String,
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// None chooses one by the length of the window. Instant queries have none.
    pub(crate) step: Option<u64>,
    /// Most series; 0 is no limit of the request's own.
    pub(crate) max_series: u32,
    /// Most exemplars, unless the query has a hint; 0 is the most that the settings allow. Instant queries have none.
    pub(crate) exemplars: u32,
}

impl Frontend {
    /// A value for each step.
    pub(crate) async fn query_range(&self, tenants: &Tenants, ask: MetricsAsk) -> Result<QueryRangeResponse> {
        self.query_range_telling(tenants, ask, None).await
    }

    /// The same, with parts of the answer for `client`.
    pub(crate) async fn query_range_telling(
        &self,
        tenants: &Tenants,
        ask: MetricsAsk,
        client: Option<mpsc::Sender<QueryRangeResponse>>,
    ) -> Result<QueryRangeResponse> {
        let hints = self.check_metrics(tenants, &ask, true)?;
        let exemplars = exemplars_of(&hints, ask.exemplars, self.settings.metrics.max_exemplars);
        let step = ask.step.unwrap_or_else(|| default_step(ask.end - ask.start));
        let end = match self.metrics_cutoff() {
            Some(cutoff) if ask.end > cutoff => cutoff - cutoff % step,
            _ => ask.end,
        };
        let intervals = Intervals::of_range(ask.start, end, step)?;
        let part = |found: MetricsResult, progress: Progress| QueryRangeResponse {
            series: found.series,
            metrics: Some(merge::stats::partial_metrics(&progress)),
            ..Default::default()
        };
        let listening = client.map(|client| self.listening(tenants, client, part));
        let (result, message) = self.run_metrics(tenants, ask, intervals, exemplars, listening).await?;
        let metrics = Some(merge::stats::search_metrics(&result.stats));
        Ok(QueryRangeResponse { series: result.series, metrics, status: partial_status(&message), message })
    }

    /// One value for the whole window.
    pub(crate) async fn query_instant(&self, tenants: &Tenants, ask: MetricsAsk) -> Result<QueryInstantResponse> {
        self.query_instant_telling(tenants, ask, None).await
    }

    /// The same, with parts of the answer for `client`.
    pub(crate) async fn query_instant_telling(
        &self,
        tenants: &Tenants,
        ask: MetricsAsk,
        client: Option<mpsc::Sender<QueryInstantResponse>>,
    ) -> Result<QueryInstantResponse> {
        self.check_metrics(tenants, &ask, false)?;
        let end = match self.metrics_cutoff() {
            Some(cutoff) if ask.end > cutoff => ask.end - (ask.end - cutoff).div_ceil(SECOND) * SECOND,
            _ => ask.end,
        };
        let intervals = Intervals::of_instant(ask.start, end)?;
        let part = |found: MetricsResult, progress: Progress| QueryInstantResponse {
            series: instant_series(found.series),
            metrics: Some(merge::stats::partial_metrics(&progress)),
            ..Default::default()
        };
        let listening = client.map(|client| self.listening(tenants, client, part));
        let (result, message) = self.run_metrics(tenants, MetricsAsk { end, ..ask }, intervals, 0, listening).await?;
        let metrics = Some(merge::stats::search_metrics(&result.stats));
        Ok(QueryInstantResponse { series: instant_series(result.series), metrics, status: partial_status(&message), message })
    }

    /// Where a window that reaches into the present is cut, if it is.
    fn metrics_cutoff(&self) -> Option<u64> {
        let cutoff = self.settings.query_end_cutoff;
        (!cutoff.is_zero()).then(|| self.clock.now_unix_nano().saturating_sub(nanos(cutoff)))
    }

    /// Checks what is asked and returns the query's hints.
    fn check_metrics(&self, tenants: &Tenants, ask: &MetricsAsk, is_range: bool) -> Result<Vec<Hint>> {
        let settings = &self.settings;
        if ask.start >= ask.end {
            return Err(Error::invalid("end must be greater than start"));
        }
        if self.metrics_cutoff().is_some_and(|cutoff| ask.start >= cutoff) {
            return Err(Error::invalid("query window falls entirely within query_end_cutoff"));
        }
        let duration_max = self.strictest(tenants, |limits| own_or(limits.max_metrics_duration, settings.metrics.max_duration));
        let length = ask.end - ask.start;
        if !duration_max.is_zero() && length > nanos(duration_max) {
            let shown = format_duration(duration_max);
            return Err(Error::invalid(format!("metrics query time range exceeds the maximum allowed duration of {shown}")));
        }
        if let Some(step) = ask.step {
            let intervals_max = settings.metrics.max_intervals;
            if step == 0 || intervals_max > 0 && length / step > intervals_max {
                let least = std::time::Duration::from_nanos(length / intervals_max.max(1));
                let step = format_duration(std::time::Duration::from_nanos(step));
                return Err(Error::invalid(format!("step of {step} is too small, minimum step for given range is {}", format_duration(least))));
            }
        }
        let parsed = traceql::parse(&ask.query).map_err(|e| if is_range { e } else { e.context("compiling query") })?;
        match parsed.body {
            QueryBody::Metrics(_) => Ok(parsed.hints),
            QueryBody::Search(_) => Err(Error::invalid("not a metrics query")),
        }
    }

    /// The series, and the message that says that there are more.
    async fn run_metrics(
        &self,
        tenants: &Tenants,
        ask: MetricsAsk,
        intervals: Intervals,
        exemplars: u32,
        listening: Option<Listening<MetricsResult>>,
    ) -> Result<(MetricsResult, String)> {
        if tenants.ids().len() > 1 {
            return Err(Error::invalid("a metrics query takes one tenant: values of several cannot be told apart"));
        }
        let own = self.settings.metrics.max_response_series;
        let max_series = if own > 0 && (ask.max_series == 0 || ask.max_series > own) { own } else { ask.max_series };
        let sampling_attribute = Some(self.settings.metrics.sampling_attribute.clone()).filter(|name| !name.is_empty());
        let request = MetricsRequest { query: ask.query, intervals, max_series: max_series as usize, exemplars, sampling_attribute };
        let results = self
            .for_each_tenant(tenants, |tenant| {
                let (request, parts) = (request.clone(), listening.as_ref().map(|listening| listening.parts_of(&tenant)));
                async move {
                    match parts {
                        Some(parts) => self.queries.metrics_in_parts(&tenant, request, parts).await,
                        None => self.queries.metrics(&tenant, request).await,
                    }
                }
            })
            .await?;
        let result = results.into_iter().next().unwrap_or_default();
        let message = if result.truncated {
            format!(
                "Response exceeds maximum series limit of {max_series}, a partial response is returned. Warning: the accuracy of each individual \
                 value is not guaranteed."
            )
        } else {
            String::new()
        };
        Ok((result, message))
    }
}

/// The first sample of each series.
fn instant_series(series: Vec<TimeSeries>) -> Vec<InstantSeries> {
    let value = |series: TimeSeries| Some(InstantSeries { value: series.samples.first()?.value, labels: series.labels });
    series.into_iter().filter_map(value).collect()
}

fn partial_status(message: &str) -> i32 {
    if message.is_empty() { PartialStatus::Complete as i32 } else { PartialStatus::Partial as i32 }
}

/// The step for a window whose request names none: some 240 samples, at a round distance.
fn default_step(length: u64) -> u64 {
    const SAMPLES: u64 = 240;
    const FINE: u64 = 50_000_000;
    let wanted = length / SAMPLES;
    if length < 60 * SECOND {
        return (wanted - wanted % FINE).max(FINE);
    }
    let round = [3600, 300, 60, 15, 5, 1].map(|seconds| seconds * SECOND).into_iter().find(|&round| round < wanted);
    round.map_or(SECOND, |round| wanted - wanted % round)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_chosen_as_documented() {
        let hours = |hours: u64| default_step(hours * 3600 * SECOND);
        assert_eq!([hours(1), hours(6), hours(24)], [15 * SECOND, 60 * SECOND, 300 * SECOND]);
        assert_eq!(default_step(120 * SECOND), SECOND);
        assert_eq!(default_step(30 * SECOND), 100_000_000);
        assert_eq!(default_step(5 * SECOND), 50_000_000);
    }
}
