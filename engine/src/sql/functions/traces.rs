//! Functions over whole traces, chosen by a TraceQL query, by id, or all: `critical_path()`, `span_tree()`, and the calls of
//! `service_graph()`.

use std::sync::Arc;

use datafusion::{
    catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider},
    common::{Result, ScalarValue},
};

use super::{
    super::{
        columns::{self, SqlColumn},
        scan::SpanRows,
        table::SpanTable,
    },
    arguments,
};
use crate::{
    exec::{eval::frame::FieldLevel, sources::SourceSet},
    spans::TraceId,
};

/// The spans, or some, of the traces that the arguments choose.
#[derive(Debug)]
pub(crate) struct TracesFunction {
    name: &'static str,
    sources: Arc<SourceSet>,
    columns: Vec<SqlColumn>,
    rows: SpanRows,
}

impl TracesFunction {
    /// `critical_path([query or id [, start, end]])` over `sources`, whose spans have `columns`.
    pub(crate) fn critical_path(sources: Arc<SourceSet>, mut columns: Vec<SqlColumn>) -> Self {
        columns.push(SqlColumn::critical_path());
        Self { name: "critical_path", sources, columns, rows: SpanRows::WholeTraces }
    }

    /// `span_tree([query or id [, start, end]])`.
    pub(crate) fn span_tree(sources: Arc<SourceSet>) -> Self {
        Self { name: "span_tree", sources, columns: columns::tree_columns(), rows: SpanRows::WholeTraces }
    }

    /// What `service_graph([query or id [, start, end]])` adds up: a row a call.
    pub(crate) fn calls(sources: Arc<SourceSet>) -> Self {
        Self { name: "service_graph", sources, columns: columns::call_columns(), rows: SpanRows::Calls }
    }

    /// The table that the call `args` asks for. Errors: `Plan`.
    pub(crate) fn table(&self, args: &TableFunctionArgs<'_, '_>) -> Result<SpanTable> {
        let given = arguments::constants(self.name, args, 0, 3)?;
        let table = SpanTable::new(self.sources.clone(), FieldLevel::Span, self.columns.clone()).rows(self.rows);
        let Some((chosen, times)) = given.split_first() else { return Ok(table) };
        let table = table.within(arguments::optional_window(self.name, times)?);
        if *chosen == ScalarValue::Null {
            return Ok(table);
        }
        let text = arguments::text(self.name, "a TraceQL query or a trace id", chosen)?;
        Ok(match TraceId::parse_hex(&text) {
            Ok(id) => table.only(vec![id]),
            Err(_) => table.found_by(arguments::search(self.name, &text)?),
        })
    }
}

impl TableFunctionImpl for TracesFunction {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        Ok(Arc::new(self.table(&args)?))
    }
}
