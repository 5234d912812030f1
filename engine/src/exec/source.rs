//! Sources of spans: blocks and memory behind one trait. A source holds whole traces in block order (newest first), in row groups that
//! end at trace ends.

use std::{
    collections::BTreeSet,
    fmt::Debug,
    ops::{Range, RangeInclusive},
    sync::Arc,
};

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;

use super::stats::ScanMetrics;
use crate::{
    block::{
        index::{RowGroup, TraceIndex},
        reader::BlockReader,
        writer::{row_groups, rows_of},
    },
    error::Result,
    spans::{
        TraceId,
        gather::OrderedSpans,
        schema::{Column, ColumnPolicy, EventColumn, SpanSchema},
        set::SpanSet,
        tables::Shared,
        tree::order_spans,
    },
};

/// Keys that have no column of their own in a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum RestScope {
    Span,
    Event,
    Link,
}

/// Spans of one tenant in block order.
#[async_trait]
pub trait SpanSource: Debug + Send + Sync {
    /// The columns.
    fn schema(&self) -> &SpanSchema;
    /// What resource ids mean.
    fn resources(&self) -> &Shared;
    /// What scope ids mean.
    fn scopes(&self) -> &Shared;
    /// The row groups, newest first.
    fn row_groups(&self) -> &[RowGroup];
    /// Which traces it has and where.
    fn traces(&self) -> &TraceIndex;
    /// Whether `key` may occur among the attributes without a column.
    fn rest_may_have(&self, scope: RestScope, key: &str) -> bool;
    /// All keys without a column.
    fn rest_keys(&self, scope: RestScope) -> BTreeSet<Box<str>>;
    /// Reads columns of a row group, all rows or those of `rows`, ascending and without overlap. Columns that the source lacks are
    /// left out. Errors: `Data`, `Unavailable`.
    async fn read(
        &self,
        group: usize,
        columns: &[Column],
        events: &[EventColumn],
        rows: Option<&[Range<usize>]>,
        metrics: &ScanMetrics,
    ) -> Result<RecordBatch>;
    /// False when string column `column` of row group `group` certainly lacks `text`.
    async fn may_contain(&self, group: usize, column: Column, text: &str, metrics: &ScanMetrics) -> Result<bool>;
    /// From the smallest to the largest number in integer column `column` of row group `group`, where that is known without reading.
    fn int_range(&self, _group: usize, _column: Column) -> Option<RangeInclusive<i64>> {
        None
    }
    /// Compressed size of the source's data, zero for memory.
    fn data_bytes(&self) -> u64;
}

#[async_trait]
impl SpanSource for BlockReader {
    fn schema(&self) -> &SpanSchema {
        BlockReader::schema(self)
    }

    fn resources(&self) -> &Shared {
        &self.index().resources
    }

    fn scopes(&self) -> &Shared {
        &self.index().scopes
    }

    fn row_groups(&self) -> &[RowGroup] {
        &self.index().row_groups
    }

    fn traces(&self) -> &TraceIndex {
        &self.index().traces
    }

    fn rest_may_have(&self, scope: RestScope, key: &str) -> bool {
        rest_set(self, scope).contains(key)
    }

    fn rest_keys(&self, scope: RestScope) -> BTreeSet<Box<str>> {
        rest_set(self, scope).clone()
    }

    async fn read(
        &self,
        group: usize,
        columns: &[Column],
        events: &[EventColumn],
        rows: Option<&[Range<usize>]>,
        metrics: &ScanMetrics,
    ) -> Result<RecordBatch> {
        let (batch, bytes) = BlockReader::read(self, group, columns, events, rows).await?;
        metrics.read(bytes);
        Ok(batch)
    }

    async fn may_contain(&self, group: usize, column: Column, text: &str, metrics: &ScanMetrics) -> Result<bool> {
        let (may, bytes) = BlockReader::may_contain(self, group, column, text).await?;
        if bytes > 0 {
            metrics.read(bytes);
        }
        Ok(may)
    }

    fn int_range(&self, group: usize, column: Column) -> Option<RangeInclusive<i64>> {
        BlockReader::int_range(self, group, column)
    }

    fn data_bytes(&self) -> u64 {
        self.meta().data_bytes
    }
}

fn rest_set(block: &BlockReader, scope: RestScope) -> &BTreeSet<Box<str>> {
    match scope {
        RestScope::Span => &block.index().span_rest_keys,
        RestScope::Event => &block.index().event_rest_keys,
        RestScope::Link => &block.index().link_keys,
    }
}

/// Spans in memory: live ones, or those of traces that lie in several places.
#[derive(Debug)]
pub struct MemorySource {
    spans: OrderedSpans,
    groups: Vec<RowGroup>,
    traces: TraceIndex,
}

impl MemorySource {
    /// Orders `set`. Cost: some 200 ns a span.
    pub fn new(set: SpanSet) -> Self {
        let order = order_spans(&set);
        let schema = SpanSchema::of(&set, ColumnPolicy::MEMORY);
        let groups = if order.rows.is_empty() { Vec::new() } else { row_groups(&order.traces) };
        let id = |trace: &crate::spans::tree::TraceRows| TraceId::from_halves(trace.id_high, trace.id_low);
        let traces = TraceIndex::new(order.traces.iter().map(|trace| (id(trace), trace.first, trace.rows)).collect());
        Self { spans: OrderedSpans::new(set, order, schema), groups, traces }
    }

    /// The spans.
    pub fn spans(&self) -> &OrderedSpans {
        &self.spans
    }
}

#[async_trait]
impl SpanSource for MemorySource {
    fn schema(&self) -> &SpanSchema {
        &self.spans.schema
    }

    fn resources(&self) -> &Shared {
        &self.spans.set.resources
    }

    fn scopes(&self) -> &Shared {
        &self.spans.set.scopes
    }

    fn row_groups(&self) -> &[RowGroup] {
        &self.groups
    }

    fn traces(&self) -> &TraceIndex {
        &self.traces
    }

    fn rest_may_have(&self, scope: RestScope, _key: &str) -> bool {
        match scope {
            RestScope::Span => self.spans.schema.has(Column::Rest),
            RestScope::Event => self.spans.schema.event_rest,
            RestScope::Link => self.spans.schema.has(Column::Links),
        }
    }

    fn rest_keys(&self, scope: RestScope) -> BTreeSet<Box<str>> {
        self.spans.rest_keys(scope)
    }

    async fn read(
        &self,
        group: usize,
        columns: &[Column],
        events: &[EventColumn],
        rows: Option<&[Range<usize>]>,
        _metrics: &ScanMetrics,
    ) -> Result<RecordBatch> {
        let own: Vec<Column> = columns.iter().copied().filter(|&column| self.spans.schema.has(column)).collect();
        let batch = self.spans.batch(rows_of(&self.groups[group]), &own, events)?;
        match rows {
            None => Ok(batch),
            Some(rows) => select_rows(&batch, rows),
        }
    }

    async fn may_contain(&self, _group: usize, _column: Column, _text: &str, _metrics: &ScanMetrics) -> Result<bool> {
        Ok(true)
    }

    fn data_bytes(&self) -> u64 {
        0
    }
}

fn select_rows(batch: &RecordBatch, rows: &[Range<usize>]) -> Result<RecordBatch> {
    match rows {
        [only] => Ok(batch.slice(only.start, only.len())),
        _ => {
            let indices = arrow::array::UInt32Array::from_iter_values(rows.iter().cloned().flatten().map(|row| row as u32));
            Ok(arrow::compute::take_record_batch(batch, &indices)?)
        }
    }
}

/// A shared source.
pub type SourceRef = Arc<dyn SpanSource>;
