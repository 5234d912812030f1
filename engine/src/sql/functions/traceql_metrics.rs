//! `traceql_metrics('query' [, start, end [, step]])`: the samples of a TraceQL metrics query, a row each.

use std::sync::Arc;

use datafusion::{
    catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider},
    common::{Result, ScalarValue, plan_err},
};

use super::{
    super::metrics_scan::{MetricsColumn, SqlMetrics},
    arguments,
};
use crate::{
    exec::sources::SourceSet,
    metrics::{evaluate, intervals::Intervals},
    query::MetricsRequest,
};

const NAME: &str = "traceql_metrics";

/// The function over the sources of one statement.
#[derive(Debug)]
pub(crate) struct TraceqlMetricsFunction {
    sources: Arc<SourceSet>,
    /// From the first start to the last end of all traces, in Unix nanoseconds.
    times: Option<(u64, u64)>,
    partitions: usize,
}

impl TraceqlMetricsFunction {
    /// The function over `sources`, whose traces lie in `times`, with scans of `partitions` partitions.
    pub(crate) fn new(sources: Arc<SourceSet>, times: Option<(u64, u64)>, partitions: usize) -> Self {
        Self { sources, times, partitions }
    }

    /// One interval over all that there is, or over the window that is asked for, or intervals of a step.
    fn intervals(&self, times: &[ScalarValue]) -> Result<Intervals> {
        let nanos = |what, value| arguments::unix_nanos(NAME, what, value).map(|nanos| nanos as u64);
        Ok(match times {
            [] => {
                // An interval does not hold its own start.
                let (start, end) = self.times.unwrap_or((1, 1));
                Intervals::of_instant(start.saturating_sub(1), end.max(start))?
            }
            [start, end] => Intervals::of_instant(nanos("the start", start)?, nanos("the end", end)?)?,
            [start, end, step] => {
                Intervals::of_range(nanos("the start", start)?, nanos("the end", end)?, arguments::duration_nanos(NAME, "the step", step)?)?
            }
            _ => return plan_err!("{NAME}() takes a query, or a query, a start and an end, or these and a step"),
        })
    }
}

impl TableFunctionImpl for TraceqlMetricsFunction {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let given = arguments::constants(NAME, &args, 1, 4)?;
        let query = arguments::text(NAME, "the query", &given[0])?;
        let request = MetricsRequest::new(query, self.intervals(&given[1..])?);
        let (query, detail) = evaluate::checked(&request)?;
        let columns = MetricsColumn::of(&query, detail.confidence());
        Ok(Arc::new(SqlMetrics { sources: self.sources.clone(), request, columns, partitions: self.partitions }))
    }
}
