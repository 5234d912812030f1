//! `trace('id')`: the spans of one trace.

use std::sync::Arc;

use datafusion::{
    catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider},
    common::{Result, plan_err},
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
        let text = arguments::text(NAME, "a trace id", &given[0])?;
        if text.is_empty() {
            return plan_err!("{NAME}() needs a trace id: 1 to 32 hexadecimal digits");
        }
        let id = TraceId::parse_hex(&text)?;
        Ok(Arc::new(SpanTable::new(self.sources.clone(), FieldLevel::Span, self.columns.clone()).only(vec![id])))
    }
}
