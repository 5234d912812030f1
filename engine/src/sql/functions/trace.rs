//! `trace('id')`: the spans of one trace.

use std::sync::Arc;

use datafusion::{
    catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider},
    common::Result,
};

use super::{
    super::{columns::SqlColumn, table::SpanTable},
    arguments,
};
use crate::{
    exec::{eval::frame::FieldLevel, sources::SourceSet},
    spans::TraceId,
};

const NAME: &str = "trace";

/// The function over the sources of one statement.
#[derive(Debug)]
pub(crate) struct TraceFunction {
    sources: Arc<SourceSet>,
    columns: Vec<SqlColumn>,
}

impl TraceFunction {
    /// The function over `sources`, whose spans have `columns`.
    pub(crate) fn new(sources: Arc<SourceSet>, columns: Vec<SqlColumn>) -> Self {
        Self { sources, columns }
    }
}

impl TableFunctionImpl for TraceFunction {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let given = arguments::constants(NAME, &args, 1, 1)?;
        let id = TraceId::parse_hex(&arguments::text(NAME, "a trace id", &given[0])?)?;
        Ok(Arc::new(SpanTable::new(self.sources.clone(), FieldLevel::Span, self.columns.clone()).only(vec![id])))
    }
}
