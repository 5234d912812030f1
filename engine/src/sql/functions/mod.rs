//! Table functions, one a file.

mod arguments;
mod service_graph;
mod trace;
mod traceql;
mod traces;

use std::sync::Arc;

use datafusion::prelude::SessionContext;

use super::columns::SqlColumn;
use crate::exec::sources::SourceSet;

/// Makes the functions known to `context`, over `sources`, whose spans have the columns `spans`.
pub fn register(context: &SessionContext, sources: &Arc<SourceSet>, spans: &[SqlColumn]) {
    context.register_udtf("traceql", Arc::new(traceql::TraceqlFunction::new(sources.clone(), spans.to_vec())));
    context.register_udtf("critical_path", Arc::new(traces::TracesFunction::critical_path(sources.clone(), spans.to_vec())));
    context.register_udtf("span_tree", Arc::new(traces::TracesFunction::span_tree(sources.clone())));
    context.register_udtf("service_graph", Arc::new(service_graph::ServiceGraphFunction::new(sources.clone())));
    context.register_udtf("trace", Arc::new(trace::TraceFunction::new(sources.clone(), spans.to_vec())));
}
