//! Table functions, one a file, and what `attr()` is where it is no column.

mod arguments;
mod attr;
mod service_graph;
mod trace;
mod traceql;
mod traceql_metrics;
mod traces;

use std::sync::Arc;

use datafusion::{logical_expr::ScalarUDF, prelude::SessionContext};

use super::{columns::SqlColumn, session::SessionParts};

/// Makes the functions known to `context`, over the sources of `parts`, which lie in `times` and whose spans have the columns `spans`.
pub(crate) fn register(context: &SessionContext, parts: &SessionParts, times: Option<(u64, u64)>, spans: &[SqlColumn]) {
    let sources = &parts.sources;
    context.register_udf(ScalarUDF::new_from_impl(attr::AttrFunction::new()));
    context.register_udtf("traceql", Arc::new(traceql::TraceqlFunction::new(sources.clone(), spans.to_vec())));
    let metrics = traceql_metrics::TraceqlMetricsFunction::new(sources.clone(), times, parts.partitions);
    context.register_udtf("traceql_metrics", Arc::new(metrics));
    context.register_udtf("trace", Arc::new(trace::TraceFunction::new(sources.clone(), spans.to_vec())));
    context.register_udtf("critical_path", Arc::new(traces::TracesFunction::critical_path(sources.clone(), spans.to_vec())));
    context.register_udtf("span_tree", Arc::new(traces::TracesFunction::span_tree(sources.clone())));
    context.register_udtf("service_graph", Arc::new(service_graph::ServiceGraphFunction::new(sources.clone())));
}
