//! `traceql('query' [, start, end])`: the spans of the spansets of a TraceQL search, a row each.

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
    traceql::{self, QueryBody},
};

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
        let window = match given.as_slice() {
            [_] => None,
            [_, start, end] => {
                let (start, end) = (arguments::unix_nanos(NAME, "the start", start)?, arguments::unix_nanos(NAME, "the end", end)?);
                Some(arguments::window(NAME, start, end)?)
            }
            _ => return plan_err!("{NAME}() takes a query, or a query, a start and an end"),
        };
        let query = traceql::parse(&arguments::text(NAME, "the query", &given[0])?)?;
        let QueryBody::Search(pipeline) = query.body else {
            return plan_err!("{NAME}() takes a search; for metrics there is traceql_metrics()");
        };
        Ok(Arc::new(SpanTable::new(self.sources.clone(), FieldLevel::Span, self.columns.clone()).spansets(pipeline, window)))
    }
}
