//! Spans to columns: what a tenant's spans become while they are live.
//!
//! A builder takes spans one after another and allocates nothing for each. What has come in since the last [`SpanBuilder::snapshot`]
//! is the head; a snapshot seals it into an immutable chunk and hands out all chunks. Strings, resources, scopes and attribute
//! columns keep their numbers over all chunks of a builder, so that chunks are put together without translating anything.

use std::{mem, sync::Arc};

use hashbrown::HashMap;

use super::{
    TraceId,
    attributes::AttributeTable,
    columns::BytesColumn,
    pool::{Pool, utf8},
    set::{Rare, RareColumn, SpanChunk, SpanSet},
    tables::{SharedKind, SharedTable},
    wire::WireError,
};

/// Rows after which the head is sealed by itself, which bounds what one snapshot has to do.
const CHUNK_ROWS: usize = 65_536;

/// Bytes of text after which the head is sealed: chunks keep 32-bit offsets.
pub(super) const CHUNK_TEXT_BYTES: usize = 256 << 20;

/// The fixed fields of a span, borrowed from the wire.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs)]
pub struct SpanFields<'a> {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
    pub parent_span_id: [u8; 8],
    /// A parent id of eight zero bytes was sent, where none is meant.
    pub parent_is_zero: bool,
    pub start_unix_nano: u64,
    pub end_unix_nano: u64,
    pub name: &'a [u8],
    pub kind: i32,
    pub trace_state: &'a [u8],
    pub flags: u32,
    pub status_code: i32,
    pub status_message: &'a [u8],
    /// A status was sent although it says nothing.
    pub status_is_empty: bool,
    pub dropped_attributes: u32,
    pub dropped_events: u32,
    pub dropped_links: u32,
    /// Bytes of the span on the wire.
    pub wire_bytes: usize,
}

/// Bit of [`Rare::Oddities`]: see [`SpanFields::parent_is_zero`].
pub const ODD_PARENT_IS_ZERO: i64 = 1;
/// Bit of [`Rare::Oddities`]: see [`SpanFields::status_is_empty`].
pub const ODD_STATUS_IS_EMPTY: i64 = 2;

/// The traces of a builder.
#[derive(Debug, Default)]
pub(super) struct Traces {
    by_id: HashMap<TraceId, u32, foldhash::fast::FixedState>,
    last_id: Option<(TraceId, u32)>,
}

impl Traces {
    #[inline]
    pub(super) fn number(&mut self, id: TraceId) -> u32 {
        if let Some((last, number)) = self.last_id
            && last == id
        {
            return number;
        }
        let next = self.by_id.len() as u32;
        let number = *self.by_id.entry(id).or_insert(next);
        self.last_id = Some((id, number));
        number
    }
}

/// Builds the spans of one tenant and one generation.
#[derive(Debug)]
pub struct SpanBuilder {
    pub(super) head: SpanChunk,
    pub(super) attributes: AttributeTable,
    pub(super) event_attributes: AttributeTable,
    pub(super) names: Pool,
    pub(super) event_names: Pool,
    resources: SharedTable,
    scopes: SharedTable,
    pub(super) traces: Traces,
    sealed: Vec<Arc<SpanChunk>>,
    pub(super) spans: usize,
    pub(super) wire_bytes: u64,
    pub(super) head_bytes: usize,
    pub(super) version: u64,
}

impl Default for SpanBuilder {
    fn default() -> Self {
        Self {
            head: SpanChunk::default(),
            attributes: AttributeTable::default(),
            event_attributes: AttributeTable::default(),
            names: Pool::default(),
            event_names: Pool::default(),
            resources: SharedTable::new(SharedKind::Resource),
            scopes: SharedTable::new(SharedKind::Scope),
            traces: Traces::default(),
            sealed: Vec::new(),
            spans: 0,
            wire_bytes: 0,
            head_bytes: 0,
            version: 0,
        }
    }
}

impl SpanBuilder {
    /// Spans taken so far.
    pub fn len(&self) -> usize {
        self.spans
    }

    /// Whether no span was taken.
    pub fn is_empty(&self) -> bool {
        self.spans == 0
    }

    /// Traces seen so far.
    pub fn traces_len(&self) -> usize {
        self.traces.by_id.len()
    }

    /// Bytes the spans had on the wire.
    pub fn wire_bytes(&self) -> u64 {
        self.wire_bytes
    }

    /// Whether a span of `id` was taken.
    pub fn has_trace(&self, id: TraceId) -> bool {
        self.traces.by_id.contains_key(&id)
    }

    /// The number of a resource: the bytes of its `Resource` message, if one was sent, and its schema URL.
    pub fn resource(&mut self, message: Option<&[u8]>, schema_url: &[u8]) -> u32 {
        self.resources.intern(message, schema_url)
    }

    /// The number of an instrumentation scope: the bytes of its message, if one was sent, and its schema URL.
    pub fn scope(&mut self, message: Option<&[u8]>, schema_url: &[u8]) -> u32 {
        self.scopes.intern(message, schema_url)
    }

    /// Starts a span. Its attributes, events and links follow in any order, then [`SpanBuilder::finish_span`].
    #[inline]
    pub fn begin_span(&mut self) {
        self.attributes.begin_row();
    }

    #[inline]
    fn row(&self) -> u32 {
        self.head.span_id.len() as u32
    }

    /// Takes an attribute of the span, a `KeyValue` message. Errors: every [`WireError`] but `Nesting`.
    #[inline]
    pub fn attribute(&mut self, message: &[u8]) -> Result<(), WireError> {
        self.attributes.push(self.row(), message)
    }

    /// Starts an event of the span. Its attributes follow, then [`SpanBuilder::finish_event`].
    #[inline]
    pub fn begin_event(&mut self) {
        self.event_attributes.begin_row();
    }

    /// Takes an attribute of the event. Errors: every [`WireError`] but `Nesting`.
    #[inline]
    pub fn event_attribute(&mut self, message: &[u8]) -> Result<(), WireError> {
        self.event_attributes.push(self.head.events.spans.len() as u32, message)
    }

    /// Ends the event.
    pub fn finish_event(&mut self, time_unix_nano: u64, name: &[u8], dropped_attributes: u32) {
        let span = self.row();
        let events = &mut self.head.events;
        events.dropped_attributes.push_nonzero(events.spans.len() as u32, dropped_attributes.into());
        events.spans.push(span);
        events.time_unix_nano.push(time_unix_nano as i64);
        events.name.push(intern_utf8(&mut self.event_names, name));
    }

    /// Takes a link of the span: its ids and the bytes of its other fields. An id of another length than usual, or none, is among
    /// the other fields, and zero here.
    pub fn link(&mut self, trace_id: [u8; 16], span_id: [u8; 8], other: impl FnOnce(&mut Vec<u8>)) {
        let span = self.row();
        let (high, low) = TraceId(trace_id).halves();
        let links = &mut self.head.links;
        links.spans.push(span);
        links.trace_id_high.push(high);
        links.trace_id_low.push(low);
        links.span_id.push(i64::from_be_bytes(span_id));
        other(&mut links.other);
        links.other_ends.push(links.other.len() as u32);
    }

    /// Ends the span.
    pub fn finish_span(&mut self, resource: u32, scope: u32, span: &SpanFields<'_>) {
        self.push_fields(resource, scope, span);
        self.seal_if_full();
    }

    /// Ends the span and leaves the head open, for callers that appended the attributes of further rows already.
    pub(super) fn push_fields(&mut self, resource: u32, scope: u32, span: &SpanFields<'_>) {
        let row = self.row();
        let id = TraceId(span.trace_id);
        let (high, low) = id.halves();
        let head = &mut self.head;
        head.trace.push(self.traces.number(id));
        head.trace_id_high.push(high);
        head.trace_id_low.push(low);
        head.parent_span_id.push(i64::from_be_bytes(span.parent_span_id));
        head.start_unix_nano.push(span.start_unix_nano as i64);
        head.duration_nanos.push(span.end_unix_nano.wrapping_sub(span.start_unix_nano) as i64);
        head.kind.push(span.kind);
        head.status_code.push(span.status_code);
        head.name.push(intern_utf8(&mut self.names, span.name));
        head.resource.push(resource);
        head.scope.push(scope);
        head.wire_bytes.push(u32::try_from(span.wire_bytes).unwrap_or(u32::MAX));
        head.push_rare(row, span);
        head.span_id.push(i64::from_be_bytes(span.span_id));
        self.spans += 1;
        self.version += 1;
        self.wire_bytes += span.wire_bytes as u64;
        self.head_bytes += span.wire_bytes;
    }

    /// Seals the head when it is long enough.
    pub(super) fn seal_if_full(&mut self) {
        if self.head.span_id.len() >= CHUNK_ROWS || self.head_bytes >= CHUNK_TEXT_BYTES {
            self.seal();
        }
    }

    fn seal(&mut self) {
        if self.head.span_id.is_empty() {
            return;
        }
        let mut chunk = mem::take(&mut self.head);
        chunk.attributes = self.attributes.seal();
        chunk.events.attributes = self.event_attributes.seal();
        self.head_bytes = 0;
        self.sealed.push(Arc::new(chunk));
    }

    /// Seals the head and returns everything so far as an immutable set. Cost: copies the pools that grew, shares the rest.
    pub fn snapshot(&mut self) -> SpanSet {
        self.seal();
        SpanSet {
            chunks: self.sealed.clone(),
            attributes: self.attributes.dictionary(),
            event_attributes: self.event_attributes.dictionary(),
            names: self.names.strings(),
            event_names: self.event_names.strings(),
            resources: self.resources.snapshot(),
            scopes: self.scopes.snapshot(),
            traces: self.traces.by_id.len(),
            version: self.version,
        }
    }

    /// Row the next span gets in the head.
    pub(super) fn next_row(&self) -> u32 {
        self.row()
    }

    /// Row the next event gets in the head.
    pub(super) fn next_event_row(&self) -> u32 {
        self.head.events.spans.len() as u32
    }

    /// Seals the head if `rows` more, with `text_bytes` of text, would make it too long.
    pub(super) fn make_room(&mut self, rows: usize, text_bytes: usize) {
        if self.head.span_id.len() + rows > CHUNK_ROWS || self.head_bytes + text_bytes > CHUNK_TEXT_BYTES {
            self.seal();
        }
    }
}

fn intern_utf8(pool: &mut Pool, text: &[u8]) -> u32 {
    match std::str::from_utf8(text) {
        Ok(_) => pool.intern(text),
        Err(_) => pool.intern(utf8(text).as_bytes()),
    }
}

impl SpanChunk {
    fn push_rare(&mut self, row: u32, span: &SpanFields<'_>) {
        let oddities = if span.parent_is_zero { ODD_PARENT_IS_ZERO } else { 0 } | if span.status_is_empty { ODD_STATUS_IS_EMPTY } else { 0 };
        for (rare, value) in [
            (Rare::Flags, i64::from(span.flags)),
            (Rare::DroppedAttributes, i64::from(span.dropped_attributes)),
            (Rare::DroppedEvents, i64::from(span.dropped_events)),
            (Rare::DroppedLinks, i64::from(span.dropped_links)),
            (Rare::Oddities, oddities),
        ] {
            self.rare[rare as usize].push_nonzero(row, value);
        }
        push_text(&mut self.status_message, row, span.status_message);
        push_text(&mut self.trace_state, row, span.trace_state);
    }
}

fn push_text(column: &mut BytesColumn, row: u32, text: &[u8]) {
    if !text.is_empty() {
        column.append(row, |out| out.extend_from_slice(utf8(text).as_bytes()));
    }
}

impl RareColumn {
    #[inline]
    pub(super) fn push_nonzero(&mut self, row: u32, value: i64) {
        if value != 0 {
            self.rows.push(row);
            self.values.push(value);
        }
    }
}
