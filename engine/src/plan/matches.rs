//! The batches between the nodes of a search: a row for each spanset, the spansets of a trace one after another.

use std::sync::{Arc, LazyLock};

use arrow::{
    array::{ArrayRef, AsArray, BinaryBuilder, FixedSizeBinaryBuilder, ListBuilder, UInt32Array, UInt32Builder, UInt64Array},
    datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type, UInt64Type},
    record_batch::RecordBatch,
};
use prost::Message;
use skein_proto::otlp::common::v1::{KeyValue, KeyValueList};

use crate::{
    error::{Error, Result},
    spans::{TraceId, value::Value},
};

/// One trace that matched, and where its rows lie.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct MatchedTrace {
    pub start_unix_nano: u64,
    pub id: TraceId,
    /// Number of the source in the plan.
    pub source: u32,
    pub group: u32,
    /// Position of the trace's first row in its row group.
    pub first_row: u32,
    pub rows: u32,
    pub spansets: Vec<MatchedSpanset>,
}

/// One spanset of a matched trace.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct MatchedSpanset {
    pub matched: u32,
    /// Positions of its first spans in the row group.
    pub span_rows: Vec<u32>,
    pub attributes: Vec<KeyValue>,
}

impl MatchedTrace {
    /// Bytes in memory, roughly.
    pub fn memory_bytes(&self) -> usize {
        let spanset = |spanset: &MatchedSpanset| {
            let attributes: usize = spanset.attributes.iter().map(|attribute| size_of::<KeyValue>() + attribute.encoded_len()).sum();
            size_of::<MatchedSpanset>() + spanset.span_rows.len() * size_of::<u32>() + attributes
        };
        size_of::<Self>() + self.spansets.iter().map(spanset).sum::<usize>()
    }

    /// Orders matches newest first, ties by id.
    pub fn rank(&self) -> (std::cmp::Reverse<u64>, TraceId) {
        (std::cmp::Reverse(self.start_unix_nano), self.id)
    }
}

/// `key`, `value` as OTLP.
pub fn key_value(key: &str, value: &Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(value.to_otlp()), ..Default::default() }
}

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let number = |name| Field::new(name, DataType::UInt32, false);
    Arc::new(Schema::new(vec![
        Field::new("trace_start_unix_nano", DataType::UInt64, false),
        Field::new("trace_id", DataType::FixedSizeBinary(16), false),
        number("source"),
        number("row_group"),
        number("first_row"),
        number("rows"),
        number("matched"),
        Field::new("span_rows", DataType::List(Arc::new(Field::new("item", DataType::UInt32, true))), false),
        Field::new("attributes", DataType::Binary, false),
    ]))
});

/// The schema of match batches.
pub fn schema() -> SchemaRef {
    SCHEMA.clone()
}

/// Writes matches as a batch. Errors: `Internal`.
pub fn to_batch(traces: &[MatchedTrace]) -> Result<RecordBatch> {
    let mut starts = Vec::new();
    let mut ids = FixedSizeBinaryBuilder::new(16);
    let mut numbers: [Vec<u32>; 5] = Default::default();
    let mut span_rows = ListBuilder::new(UInt32Builder::new());
    let mut attributes = BinaryBuilder::new();
    for trace in traces {
        for spanset in &trace.spansets {
            starts.push(trace.start_unix_nano);
            ids.append_value(trace.id.0)?;
            for (column, value) in numbers.iter_mut().zip([trace.source, trace.group, trace.first_row, trace.rows, spanset.matched]) {
                column.push(value);
            }
            span_rows.append_value(spanset.span_rows.iter().map(|&row| Some(row)));
            attributes.append_value(KeyValueList { values: spanset.attributes.clone() }.encode_to_vec());
        }
    }
    let mut columns: Vec<ArrayRef> = vec![Arc::new(UInt64Array::from(starts)), Arc::new(ids.finish())];
    columns.extend(numbers.into_iter().map(|column| Arc::new(UInt32Array::from(column)) as ArrayRef));
    columns.push(Arc::new(span_rows.finish()));
    columns.push(Arc::new(attributes.finish()));
    Ok(RecordBatch::try_new(schema(), columns)?)
}

/// Reads matches from a batch. Errors: `Internal` when it is not one.
pub fn from_batch(batch: &RecordBatch) -> Result<Vec<MatchedTrace>> {
    if batch.schema_ref().fields() != SCHEMA.fields() {
        return Err(Error::internal("a batch is not one of matches"));
    }
    let starts = batch.column(0).as_primitive::<UInt64Type>();
    let ids = batch.column(1).as_fixed_size_binary();
    let number = |column: usize| batch.column(column).as_primitive::<UInt32Type>();
    let (span_rows, attributes) = (batch.column(7).as_list::<i32>(), batch.column(8).as_binary::<i32>());
    let mut traces: Vec<MatchedTrace> = Vec::new();
    for row in 0..batch.num_rows() {
        let id = TraceId(ids.value(row).try_into().map_err(|_| Error::internal("a trace id is not 16 bytes long"))?);
        let spanset = MatchedSpanset {
            matched: number(6).value(row),
            span_rows: span_rows.value(row).as_primitive::<UInt32Type>().values().to_vec(),
            attributes: KeyValueList::decode(attributes.value(row)).map_err(|e| Error::internal("reading attributes").with_source(e))?.values,
        };
        match traces.last_mut().filter(|last| last.id == id) {
            Some(last) => last.spansets.push(spanset),
            None => traces.push(MatchedTrace {
                start_unix_nano: starts.value(row),
                id,
                source: number(2).value(row),
                group: number(3).value(row),
                first_row: number(4).value(row),
                rows: number(5).value(row),
                spansets: vec![spanset],
            }),
        }
    }
    Ok(traces)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn matches_survive_the_batch() {
        let spanset = |matched| MatchedSpanset { matched, span_rows: vec![7, 9], attributes: vec![key_value("by(name)", &Value::from("x"))] };
        let trace = |n: u128, spansets| MatchedTrace {
            start_unix_nano: u64::MAX - 1,
            id: TraceId(n.to_be_bytes()),
            source: 1,
            group: 2,
            first_row: 3,
            rows: 4,
            spansets,
        };
        let traces = vec![trace(1, vec![spanset(2), spanset(5)]), trace(2, vec![spanset(1)])];
        assert_eq!(from_batch(&to_batch(&traces).unwrap()).unwrap(), traces);
        assert_eq!(from_batch(&to_batch(&[]).unwrap()).unwrap(), []);
    }
}
