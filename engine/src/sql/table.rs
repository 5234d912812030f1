//! Tables of spans, events and links, as DataFusion asks for them.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::Result,
    logical_expr::{Expr, TableProviderFilterPushDown, TableType},
    physical_plan::{ExecutionPlan, union::UnionExec},
};

use super::{
    columns::SqlColumn,
    pushdown::ScanBounds,
    scan::{SpanRows, SqlScan, SqlScanExec},
};
use crate::{
    exec::{eval::frame::FieldLevel, sources::SourceSet},
    query::Window,
    spans::TraceId,
    traceql::Pipeline,
};

/// A table over the sources of one query.
#[derive(Debug)]
pub struct SpanTable {
    sources: Arc<SourceSet>,
    level: FieldLevel,
    columns: Vec<SqlColumn>,
    schema: SchemaRef,
    rows: SpanRows,
    pipeline: Option<Pipeline>,
    window: Option<Window>,
    traces: Option<Vec<TraceId>>,
}

impl SpanTable {
    /// All spans, events or links, as `level` says, with `columns`.
    pub fn new(sources: Arc<SourceSet>, level: FieldLevel, columns: Vec<SqlColumn>) -> Self {
        let schema = Arc::new(Schema::new(columns.iter().map(SqlColumn::field).collect::<Vec<_>>()));
        Self { sources, level, columns, schema, rows: SpanRows::default(), pipeline: None, window: None, traces: None }
    }

    /// Only what `pipeline` finds.
    pub fn found_by(self, pipeline: Pipeline) -> Self {
        Self { pipeline: Some(pipeline), ..self }
    }

    /// These of the spans.
    pub fn rows(self, rows: SpanRows) -> Self {
        Self { rows, ..self }
    }

    /// Only traces that overlap `window`.
    pub fn within(self, window: Option<Window>) -> Self {
        Self { window, ..self }
    }

    /// Only these traces.
    pub fn only(self, traces: Vec<TraceId>) -> Self {
        Self { traces: Some(traces), ..self }
    }
}

#[async_trait]
impl TableProvider for SpanTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let columns = match projection {
            Some(wanted) => wanted.iter().map(|&at| self.columns[at].clone()).collect(),
            None => self.columns.clone(),
        };
        let mut bounds = match (&self.pipeline, self.rows) {
            // A spanset is what it is whatever SQL asks of its spans: only whole traces can be left out.
            (Some(_), SpanRows::Matches) => ScanBounds { filter: None, ..ScanBounds::of(filters, &self.columns) },
            _ => ScanBounds::of(filters, &self.columns),
        };
        if let Some(traces) = &self.traces {
            let known = bounds.traces.take();
            bounds.traces = Some(traces.iter().filter(|id| known.as_ref().is_none_or(|known| known.contains(id))).copied().collect());
        }
        let (sources, level, rows, pipeline) = (self.sources.clone(), self.level, self.rows, self.pipeline.clone());
        let scan = SqlScan { sources, level, columns, rows, pipeline, window: self.window, bounds, limit };
        let partitions = state.config().target_partitions();
        let Some(joined) = self.sources.apart().cloned() else { return Ok(Arc::new(SqlScanExec::new(scan, partitions))) };
        let joined = SqlScanExec::new(SqlScan { sources: joined, ..scan.clone() }, partitions);
        UnionExec::try_new(vec![Arc::new(SqlScanExec::new(scan, partitions)), Arc::new(joined)])
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let rows_are_spans = self.level == FieldLevel::Span && self.rows == SpanRows::Matches && self.pipeline.is_none();
        let support = |filter: &&Expr| match () {
            () if rows_are_spans && ScanBounds::replace(filter, &self.columns) => TableProviderFilterPushDown::Exact,
            () if ScanBounds::uses(filter, &self.columns) => TableProviderFilterPushDown::Inexact,
            () => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(support).collect())
    }
}
