//! Table functions, one a file.

mod arguments;
mod trace;
mod traceql;

use std::sync::Arc;

use datafusion::prelude::SessionContext;

use super::columns::SqlColumn;
use crate::exec::sources::SourceSet;

/// Makes the functions known to `context`, over `sources`, whose spans have the columns `spans`.
pub fn register(context: &SessionContext, sources: &Arc<SourceSet>, spans: &[SqlColumn]) {
    context.register_udtf("traceql", Arc::new(traceql::TraceqlFunction::new(sources.clone(), spans.to_vec())));
    context.register_udtf("trace", Arc::new(trace::TraceFunction::new(sources.clone(), spans.to_vec())));
}
