//! What spans take in memory as OTLP messages: estimated from their columns, and counted.

use arrow::{
    array::{Array, ArrayRef},
    record_batch::RecordBatch,
};
use skein_proto::otlp::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, ScopeSpans, Span, span},
};

use super::{
    read::Texts,
    schema::{Column, SpanSchema},
};
use crate::{error::Result, exec::memory::array_bytes};

/// What an allocation takes beside its bytes, roughly.
const ALLOCATION_BYTES: usize = 16;
/// The ids of a span, each an allocation.
const IDS_BYTES: usize = 16 + 8 + 8 + 3 * ALLOCATION_BYTES;
/// How much more a list of messages takes than the columns that it is read from.
const MESSAGES_PER_COLUMN: usize = 4;

/// Bytes that the spans of `batch`, which holds all columns of `schema`, will take as messages. An estimate: text in dictionaries counts with
/// its mean length. Cost: a few operations a column. Errors: `Data`.
pub fn assembled_bytes(batch: &RecordBatch, schema: &SpanSchema) -> Result<usize> {
    let column = |column: Column| batch.column_by_name(schema.field(column, &[]).name());
    let mut bytes = batch.num_rows() * (size_of::<Span>() + IDS_BYTES);
    for text in [Column::Name, Column::StatusMessage, Column::TraceState] {
        bytes += column(text).map_or(Ok(0), texts_bytes)?;
    }
    for (at, field) in schema.attributes.iter().enumerate() {
        let Some(values) = column(Column::Attribute(at as u32)) else { continue };
        let present = values.len() - values.null_count();
        bytes += present * (size_of::<KeyValue>() + field.column.key.len() + ALLOCATION_BYTES);
        bytes += if values.data_type().is_numeric() || values.data_type() == &arrow::datatypes::DataType::Boolean { 0 } else { texts_bytes(values)? };
    }
    let lists = [column(Column::Rest), batch.column_by_name("events"), batch.column_by_name("links")];
    Ok(bytes + lists.into_iter().flatten().map(|list| MESSAGES_PER_COLUMN * array_bytes(list)).sum::<usize>())
}

fn texts_bytes(array: &ArrayRef) -> Result<usize> {
    let present = array.len() - array.null_count();
    let text = match Texts::of(array)? {
        Texts::Dictionary(_, values) => values.values().len() * present / values.len().max(1),
        Texts::Plain(texts) => texts.value_offsets()[texts.len()].abs_diff(texts.value_offsets()[0]) as usize,
        Texts::View(texts) => texts.total_bytes_len(),
    };
    Ok(text + present * ALLOCATION_BYTES)
}

/// Bytes that a trace takes in memory. Cost: some ten nanoseconds for each span and attribute.
pub fn trace_bytes(trace: &[ResourceSpans]) -> usize {
    let scope =
        |scope: &ScopeSpans| size_of::<ScopeSpans>() + scope.spans.capacity() * size_of::<Span>() + scope.spans.iter().map(span_bytes).sum::<usize>();
    let resource = |resource: &ResourceSpans| {
        let attributes = resource.resource.as_ref().map_or(0, |resource| attributes_bytes(&resource.attributes));
        size_of::<ResourceSpans>() + attributes + resource.scope_spans.iter().map(scope).sum::<usize>()
    };
    trace.iter().map(resource).sum()
}

/// Bytes beside the message itself.
fn span_bytes(span: &Span) -> usize {
    let event = |event: &span::Event| size_of::<span::Event>() + allocated(event.name.capacity()) + attributes_bytes(&event.attributes);
    let link = |link: &span::Link| {
        let ids = allocated(link.trace_id.capacity()) + allocated(link.span_id.capacity()) + allocated(link.trace_state.capacity());
        size_of::<span::Link>() + ids + attributes_bytes(&link.attributes)
    };
    [span.trace_id.capacity(), span.span_id.capacity(), span.parent_span_id.capacity()].into_iter().map(allocated).sum::<usize>()
        + allocated(span.name.capacity())
        + allocated(span.trace_state.capacity())
        + span.status.as_ref().map_or(0, |status| allocated(status.message.capacity()))
        + attributes_bytes(&span.attributes)
        + span.events.iter().map(event).sum::<usize>()
        + span.links.iter().map(link).sum::<usize>()
}

fn attributes_bytes(attributes: &Vec<KeyValue>) -> usize {
    let own = |attribute: &KeyValue| allocated(attribute.key.capacity()) + attribute.value.as_ref().map_or(0, value_bytes);
    attributes.capacity() * size_of::<KeyValue>() + attributes.iter().map(own).sum::<usize>()
}

fn value_bytes(value: &AnyValue) -> usize {
    match &value.value {
        Some(Value::StringValue(text)) => allocated(text.capacity()),
        Some(Value::BytesValue(bytes)) => allocated(bytes.capacity()),
        Some(Value::ArrayValue(list)) => list.values.iter().map(|value| size_of::<AnyValue>() + value_bytes(value)).sum(),
        Some(Value::KvlistValue(list)) => attributes_bytes(&list.values),
        _ => 0,
    }
}

/// An empty string or list is no allocation.
fn allocated(bytes: usize) -> usize {
    if bytes == 0 { 0 } else { bytes + ALLOCATION_BYTES }
}
