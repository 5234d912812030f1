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

use super::{
    memory::{Reservation, least_width},
    stats::ScanMetrics,
};
use crate::{
    block::{
        index::{RowGroup, TraceIndex},
        reader::BlockReader,
        writer::{row_groups, rows_of},
    },
    error::Result,
    spans::{
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
    /// Bytes that such a [`read`](Self::read) will take, what it only needs while it reads included; text in memory and text that a file
    /// repeats are not known before.
    fn read_bytes(&self, group: usize, columns: &[Column], events: &[EventColumn], rows: Option<&[Range<usize>]>) -> usize;
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
    /// The block that it is, if it is one.
    fn block(&self) -> Option<&BlockReader> {
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

    fn read_bytes(&self, group: usize, columns: &[Column], events: &[EventColumn], rows: Option<&[Range<usize>]>) -> usize {
        BlockReader::read_bytes(self, group, columns, events, rows)
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

    fn block(&self) -> Option<&BlockReader> {
        Some(self)
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
    spans: Arc<OrderedSpans>,
    groups: Arc<[RowGroup]>,
    traces: Arc<TraceIndex>,
    _memory: Reservation,
}

impl MemorySource {
    /// Orders `set`. Cost: some 200 ns a span.
    pub fn new(set: SpanSet) -> Self {
        let order = order_spans(&set);
        let schema = SpanSchema::of(&set, ColumnPolicy::MEMORY);
        let groups = if order.rows.is_empty() { Vec::new() } else { row_groups(&order.traces) };
        let traces = TraceIndex::of(&order.traces);
        Self {
            spans: Arc::new(OrderedSpans::new(set, order, schema)),
            groups: groups.into(),
            traces: Arc::new(traces),
            _memory: Reservation::default(),
        }
    }

    /// The same, with the memory that it takes: that is given back with the source.
    pub fn holding(self, memory: Reservation) -> Self {
        Self { _memory: memory, ..self }
    }

    /// The same spans for a cache, whose memory has a bound of its own.
    pub fn for_cache(&self) -> Self {
        Self { spans: self.spans.clone(), groups: self.groups.clone(), traces: self.traces.clone(), _memory: Reservation::default() }
    }

    /// Its traces, for who does not need its spans.
    pub fn trace_index(&self) -> &Arc<TraceIndex> {
        &self.traces
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

    /// The columns are made for the whole row group, then cut. In the least case, of text that is no dictionary, only the places are known.
    fn read_bytes(&self, group: usize, columns: &[Column], events: &[EventColumn], _rows: Option<&[Range<usize>]>) -> usize {
        let own = columns.iter().filter(|&&column| self.spans.schema.has(column));
        let made = |column: Column| if let Column::Presence(at) = column { Column::Attribute(at) } else { column };
        let width: usize = own.map(|&column| least_width(self.spans.schema.field(made(column), events).data_type())).sum();
        self.groups[group].rows as usize * width
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
        // A slice keeps all of the batch in memory.
        [only] if only.len() * 2 >= batch.num_rows() => Ok(batch.slice(only.start, only.len())),
        _ => {
            let indices = arrow::array::UInt32Array::from_iter_values(rows.iter().cloned().flatten().map(|row| row as u32));
            Ok(arrow::compute::take_record_batch(batch, &indices)?)
        }
    }
}

/// A shared source.
pub type SourceRef = Arc<dyn SpanSource>;
