//! `traceql('query' [, start, end])`: the spans of the spansets of a TraceQL search, a row each.

use std::sync::Arc;

use datafusion::{
    catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider},
    common::Result,
};

use super::{
    super::{columns::SqlColumn, table::SpanTable},
    arguments,
};
use crate::exec::{eval::frame::FieldLevel, sources::SourceSet};

const NAME: &str = "traceql";

/// The function over the sources of one statement.
#[derive(Debug)]
pub(crate) struct TraceqlFunction {
    sources: Arc<SourceSet>,
    columns: Vec<SqlColumn>,
}

impl TraceqlFunction {
    /// The function over `sources`, whose spans have `columns`.
    pub(crate) fn new(sources: Arc<SourceSet>, mut columns: Vec<SqlColumn>) -> Self {
        columns.push(SqlColumn::spanset());
        Self { sources, columns }
    }
}

impl TableFunctionImpl for TraceqlFunction {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let given = arguments::constants(NAME, &args, 1, 3)?;
        let pipeline = arguments::search(NAME, &arguments::text(NAME, "the query", &given[0])?)?;
        let window = arguments::optional_window(NAME, &given[1..])?;
        let table = SpanTable::new(self.sources.clone(), FieldLevel::Span, self.columns.clone());
        Ok(Arc::new(table.found_by(pipeline).within(window)))
    }
}
