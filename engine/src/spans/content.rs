//! What a span holds, in a form in which spans can be told apart and put in order wherever their columns came from.

use std::{ops::Range, sync::Arc};

use arrow::array::StringArray;

use super::{
    attributes::AttributeChunk,
    columns::{AttributeColumn, BytesColumn},
    gather::any_value,
    set::{RARE_FIELDS, RareColumn, SpanChunk, SpanSet, entries_of},
    wire::{Fields, KeyValue},
};

/// Keys and `AnyValue` messages, sorted.
type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// Everything of a span but its trace, id and start. Equal contents make spans of equal id and start copies; different ones are ordered
/// by the fields from the first to the last.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SpanContent {
    duration_nanos: i64,
    kind: i32,
    name: String,
    status_code: i32,
    status_message: Option<Vec<u8>>,
    parent_span_id: u64,
    resource: Vec<u8>,
    scope: Vec<u8>,
    attributes: Attributes,
    events: Vec<EventContent>,
    links: Vec<LinkContent>,
    trace_state: Option<Vec<u8>>,
    rare: [Option<i64>; RARE_FIELDS],
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct EventContent {
    time_unix_nano: u64,
    name: String,
    attributes: Attributes,
    dropped_attributes: Option<i64>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct LinkContent {
    trace_id: (u64, u64),
    span_id: u64,
    other: Vec<u8>,
}

impl SpanSet {
    /// The content of a row, given as chunk and row in it. Cost: a binary search for each column of the chunk, and a copy of the span.
    pub fn content(&self, (chunk, row): (u32, u32)) -> SpanContent {
        let (chunk, at) = (&*self.chunks[chunk as usize], row as usize);
        SpanContent {
            duration_nanos: chunk.duration_nanos[at],
            kind: chunk.kind[at],
            name: self.names.value(chunk.name[at] as usize).to_owned(),
            status_code: chunk.status_code[at],
            status_message: bytes_at(&chunk.status_message, row),
            parent_span_id: chunk.parent_span_id[at] as u64,
            resource: self.resources.entries()[chunk.resource[at] as usize].to_vec(),
            scope: self.scopes.entries()[chunk.scope[at] as usize].to_vec(),
            attributes: attributes_at(&self.attributes, &chunk.attributes, row),
            events: entries_of(&chunk.events.spans, row).map(|at| self.event_content(chunk, at)).collect(),
            links: entries_of(&chunk.links.spans, row).map(|at| link_content(chunk, at)).collect(),
            trace_state: bytes_at(&chunk.trace_state, row),
            rare: std::array::from_fn(|field| rare_at(&chunk.rare[field], row)),
        }
    }

    fn event_content(&self, chunk: &SpanChunk, at: usize) -> EventContent {
        EventContent {
            time_unix_nano: chunk.events.time_unix_nano[at] as u64,
            name: self.event_names.value(chunk.events.name[at] as usize).to_owned(),
            attributes: attributes_at(&self.event_attributes, &chunk.events.attributes, at as u32),
            dropped_attributes: rare_at(&chunk.events.dropped_attributes, at as u32),
        }
    }
}

fn link_content(chunk: &SpanChunk, at: usize) -> LinkContent {
    let links = &chunk.links;
    let other: Range<usize> = if at == 0 { 0 } else { links.other_ends[at - 1] as usize }..links.other_ends[at] as usize;
    LinkContent {
        trace_id: (links.trace_id_high[at] as u64, links.trace_id_low[at] as u64),
        span_id: links.span_id[at] as u64,
        other: links.other[other].to_vec(),
    }
}

fn bytes_at(column: &BytesColumn, row: u32) -> Option<Vec<u8>> {
    column.rows.binary_search(&row).ok().map(|at| column.get(at).to_vec())
}

fn rare_at(column: &RareColumn, row: u32) -> Option<i64> {
    column.rows.binary_search(&row).ok().map(|at| column.values[at])
}

/// The attributes of a row, from columns and rest alike. The order of values under one key is that in which they were sent.
fn attributes_at(columns: &[(AttributeColumn, Arc<StringArray>)], chunk: &AttributeChunk, row: u32) -> Attributes {
    let mut attributes = Attributes::new();
    for column in &chunk.columns {
        if let Ok(at) = column.rows.binary_search(&row) {
            let (attribute, strings) = &columns[column.id as usize];
            attributes.push((attribute.key.as_bytes().to_vec(), any_value(column, at, strings)));
        }
    }
    let rest = bytes_at(&chunk.rest, row).unwrap_or_default();
    let mut fields = Fields::new(&rest);
    while let Ok(Some((_, field))) = fields.next_field() {
        if let Ok(pair) = field.bytes().and_then(KeyValue::parse) {
            attributes.push((pair.key.to_vec(), pair.value.unwrap_or_default().to_vec()));
        }
    }
    attributes.sort_by(|(a, _), (b, _)| a.cmp(b));
    attributes
}
