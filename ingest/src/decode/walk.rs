//! The walk over an `ExportTraceServiceRequest`, once without and once with a builder. OTLP: opentelemetry/proto/trace/v1/trace.proto.

use std::fmt;

use skein_engine::spans::{
    builder::{SpanBuilder, SpanFields},
    wire::{Field, Fields, KeyValue, WireError, check_any_value, write_bytes_field, write_varint},
};

/// What a request holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestSummary {
    /// Spans in the request.
    pub spans: u64,
    /// Runs of spans with the same trace id: the number of traces if each trace's spans lie together, more if not.
    pub trace_runs: u64,
    /// Start of the earliest span.
    pub start_unix_nano_min: u64,
}

/// Why a request is refused as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// Not an OTLP request.
    Wire(WireError),
    /// A trace id is not 16 bytes long.
    TraceId {
        /// Its length in bits.
        bits: usize,
    },
    /// A span id, or a parent's, is not 8 bytes long.
    SpanId {
        /// Its length in bits.
        bits: usize,
    },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wire(error) => write!(f, "request is not an OTLP ExportTraceServiceRequest: {error}"),
            Self::TraceId { bits } => write!(f, "trace ids must be 128 bit, received {bits} bits"),
            Self::SpanId { bits } => write!(f, "span ids must be 64 bit, received {bits} bits"),
        }
    }
}

impl std::error::Error for DecodeError {}

impl From<WireError> for DecodeError {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

/// Checks a request down to its last value. Cost: some 100 to 200 ns a span, no allocation.
/// Errors: [`DecodeError`] for the first thing that is wrong.
pub fn check(request: &[u8]) -> Result<RequestSummary, DecodeError> {
    let mut checker = Checker { summary: RequestSummary { start_unix_nano_min: u64::MAX, ..RequestSummary::default() }, last_trace: [0; 16] };
    walk_request(request, &mut checker)?;
    Ok(checker.summary)
}

/// Appends the spans of a request that [`check`] accepted. Errors: as [`check`]; the spans before the error stay.
pub fn decode(request: &[u8], builder: &mut SpanBuilder) -> Result<(), DecodeError> {
    walk_request(request, &mut Decoder { builder, resource: 0, scope: 0 })
}

/// What is done with the parts of a request. Calls come in the order resource, scope, then for each span its attributes, events and
/// links in any order and the span itself.
trait Visitor {
    fn resource(&mut self, message: Option<&[u8]>, schema_url: &[u8]) -> Result<(), WireError>;
    fn scope(&mut self, message: Option<&[u8]>, schema_url: &[u8]) -> Result<(), WireError>;
    fn begin_span(&mut self);
    fn attribute(&mut self, message: &[u8]) -> Result<(), WireError>;
    fn event(&mut self, message: &[u8]) -> Result<(), WireError>;
    fn link(&mut self, message: &[u8]) -> Result<(), WireError>;
    fn span(&mut self, fields: &SpanFields<'_>);
}

fn walk_request<V: Visitor>(request: &[u8], visitor: &mut V) -> Result<(), DecodeError> {
    let mut fields = Fields::new(request);
    while let Some((number, field)) = fields.next_field()? {
        if number == 1 {
            walk_resource_spans(field.bytes()?, visitor)?;
        }
    }
    Ok(())
}

/// The message in field 1 and the text in field 3 of a `ResourceSpans` or `ScopeSpans`, which may come after the spans. Field 1 sent in
/// several parts is put together in `scratch`: parts of a message merge by concatenation.
fn shared_parts<'a>(message: &'a [u8], scratch: &'a mut Vec<u8>) -> Result<(Option<&'a [u8]>, &'a [u8]), WireError> {
    let (mut first, mut parts, mut schema_url) = (None, 0, &[][..]);
    let mut fields = Fields::new(message);
    while let Some((number, field)) = fields.next_field()? {
        match number {
            1 => {
                parts += 1;
                if parts > 1 {
                    if let (2, Some(first)) = (parts, first) {
                        scratch.extend_from_slice(first);
                    }
                    scratch.extend_from_slice(field.bytes()?);
                } else {
                    first = Some(field.bytes()?);
                }
            }
            3 => schema_url = field.bytes()?,
            _ => {}
        }
    }
    Ok((if parts > 1 { Some(scratch) } else { first }, schema_url))
}

fn walk_resource_spans<V: Visitor>(message: &[u8], visitor: &mut V) -> Result<(), DecodeError> {
    let mut scratch = Vec::new();
    let (resource, schema_url) = shared_parts(message, &mut scratch)?;
    visitor.resource(resource, schema_url)?;
    let mut fields = Fields::new(message);
    while let Some((number, field)) = fields.next_field()? {
        if number == 2 {
            walk_scope_spans(field.bytes()?, visitor)?;
        }
    }
    Ok(())
}

fn walk_scope_spans<V: Visitor>(message: &[u8], visitor: &mut V) -> Result<(), DecodeError> {
    let mut scratch = Vec::new();
    let (scope, schema_url) = shared_parts(message, &mut scratch)?;
    visitor.scope(scope, schema_url)?;
    let mut fields = Fields::new(message);
    while let Some((number, field)) = fields.next_field()? {
        if number == 2 {
            walk_span(field.bytes()?, visitor)?;
        }
    }
    Ok(())
}

#[inline]
fn walk_span<V: Visitor>(message: &[u8], visitor: &mut V) -> Result<(), DecodeError> {
    let mut span = SpanFields { wire_bytes: message.len(), ..SpanFields::default() };
    let (mut trace_id, mut span_id): (&[u8], &[u8]) = (&[], &[]);
    let mut parent_id: &[u8] = &[];
    let mut has_status = false;
    visitor.begin_span();
    let mut fields = Fields::new(message);
    while let Some((number, field)) = fields.next_field()? {
        match number {
            1 => trace_id = field.bytes()?,
            2 => span_id = field.bytes()?,
            3 => span.trace_state = field.bytes()?,
            4 => parent_id = field.bytes()?,
            5 => span.name = field.bytes()?,
            6 => span.kind = field.varint()? as i32,
            7 => span.start_unix_nano = field.fixed64()?,
            8 => span.end_unix_nano = field.fixed64()?,
            9 => visitor.attribute(field.bytes()?)?,
            10 => span.dropped_attributes = field.varint()? as u32,
            11 => visitor.event(field.bytes()?)?,
            12 => span.dropped_events = field.varint()? as u32,
            13 => visitor.link(field.bytes()?)?,
            14 => span.dropped_links = field.varint()? as u32,
            15 => {
                has_status = true;
                walk_status(field.bytes()?, &mut span)?;
            }
            16 => span.flags = field.fixed32()?,
            _ => {}
        }
    }
    span.trace_id = trace_id.try_into().map_err(|_| DecodeError::TraceId { bits: trace_id.len() * 8 })?;
    span.span_id = span_id.try_into().map_err(|_| DecodeError::SpanId { bits: span_id.len() * 8 })?;
    if !parent_id.is_empty() {
        span.parent_span_id = parent_id.try_into().map_err(|_| DecodeError::SpanId { bits: parent_id.len() * 8 })?;
        span.parent_is_zero = span.parent_span_id == [0; 8];
    }
    span.status_is_empty = has_status && span.status_code == 0 && span.status_message.is_empty();
    visitor.span(&span);
    Ok(())
}

fn walk_status<'a>(message: &'a [u8], span: &mut SpanFields<'a>) -> Result<(), WireError> {
    let mut fields = Fields::new(message);
    while let Some((number, field)) = fields.next_field()? {
        match number {
            2 => span.status_message = field.bytes()?,
            3 => span.status_code = field.varint()? as i32,
            _ => {}
        }
    }
    Ok(())
}

struct Checker {
    summary: RequestSummary,
    last_trace: [u8; 16],
}

fn check_key_value(message: &[u8]) -> Result<(), WireError> {
    match KeyValue::parse(message)?.value {
        Some(value) => check_any_value(value, 0),
        None => Ok(()),
    }
}

/// Checks the `KeyValue`s in field `number` of `message` and the framing of everything else.
fn check_attributes(message: &[u8], number: u32) -> Result<(), WireError> {
    let mut fields = Fields::new(message);
    while let Some((at, field)) = fields.next_field()? {
        if at == number {
            check_key_value(field.bytes()?)?;
        }
    }
    Ok(())
}

impl Visitor for Checker {
    fn resource(&mut self, message: Option<&[u8]>, _: &[u8]) -> Result<(), WireError> {
        check_attributes(message.unwrap_or_default(), 1)
    }

    fn scope(&mut self, message: Option<&[u8]>, _: &[u8]) -> Result<(), WireError> {
        check_attributes(message.unwrap_or_default(), 3)
    }

    fn begin_span(&mut self) {}

    #[inline]
    fn attribute(&mut self, message: &[u8]) -> Result<(), WireError> {
        check_key_value(message)
    }

    fn event(&mut self, message: &[u8]) -> Result<(), WireError> {
        let mut fields = Fields::new(message);
        while let Some((number, field)) = fields.next_field()? {
            match number {
                1 => drop(field.fixed64()?),
                2 => drop(field.bytes()?),
                3 => check_key_value(field.bytes()?)?,
                4 => drop(field.varint()?),
                _ => {}
            }
        }
        Ok(())
    }

    fn link(&mut self, message: &[u8]) -> Result<(), WireError> {
        let mut fields = Fields::new(message);
        while let Some((number, field)) = fields.next_field()? {
            match number {
                1..=3 => drop(field.bytes()?),
                4 => check_key_value(field.bytes()?)?,
                5 => drop(field.varint()?),
                6 => drop(field.fixed32()?),
                _ => {}
            }
        }
        Ok(())
    }

    #[inline]
    fn span(&mut self, fields: &SpanFields<'_>) {
        let summary = &mut self.summary;
        summary.trace_runs += u64::from(summary.spans == 0 || fields.trace_id != self.last_trace);
        summary.spans += 1;
        summary.start_unix_nano_min = summary.start_unix_nano_min.min(fields.start_unix_nano);
        self.last_trace = fields.trace_id;
    }
}

struct Decoder<'a> {
    builder: &'a mut SpanBuilder,
    resource: u32,
    scope: u32,
}

impl Visitor for Decoder<'_> {
    fn resource(&mut self, message: Option<&[u8]>, schema_url: &[u8]) -> Result<(), WireError> {
        self.resource = self.builder.resource(message, schema_url);
        Ok(())
    }

    fn scope(&mut self, message: Option<&[u8]>, schema_url: &[u8]) -> Result<(), WireError> {
        self.scope = self.builder.scope(message, schema_url);
        Ok(())
    }

    #[inline]
    fn begin_span(&mut self) {
        self.builder.begin_span();
    }

    #[inline]
    fn attribute(&mut self, message: &[u8]) -> Result<(), WireError> {
        self.builder.attribute(message)
    }

    fn event(&mut self, message: &[u8]) -> Result<(), WireError> {
        let (mut time, mut name, mut dropped) = (0, &[][..], 0);
        self.builder.begin_event();
        let mut fields = Fields::new(message);
        while let Some((number, field)) = fields.next_field()? {
            match number {
                1 => time = field.fixed64()?,
                2 => name = field.bytes()?,
                3 => self.builder.event_attribute(field.bytes()?)?,
                4 => dropped = field.varint()? as u32,
                _ => {}
            }
        }
        self.builder.finish_event(time, name, dropped);
        Ok(())
    }

    fn link(&mut self, message: &[u8]) -> Result<(), WireError> {
        let (mut trace_id, mut span_id): (&[u8], &[u8]) = (&[], &[]);
        let mut fields = Fields::new(message);
        while let Some((number, field)) = fields.next_field()? {
            match number {
                1 => trace_id = field.bytes()?,
                2 => span_id = field.bytes()?,
                _ => {}
            }
        }
        let usual_trace_id: Option<[u8; 16]> = trace_id.try_into().ok();
        let usual_span_id: Option<[u8; 8]> = span_id.try_into().ok();
        self.builder.link(usual_trace_id.unwrap_or_default(), usual_span_id.unwrap_or_default(), |out| {
            if usual_trace_id.is_none() {
                write_bytes_field(out, 1, trace_id);
            }
            if usual_span_id.is_none() {
                write_bytes_field(out, 2, span_id);
            }
            copy_fields_after(out, message, 2);
        });
        Ok(())
    }

    #[inline]
    fn span(&mut self, fields: &SpanFields<'_>) {
        self.builder.finish_span(self.resource, self.scope, fields);
    }
}

/// Copies the fields of `message` whose number is above `number`.
fn copy_fields_after(out: &mut Vec<u8>, message: &[u8], number: u32) {
    let mut fields = Fields::new(message);
    while let Ok(Some((at, field))) = fields.next_field() {
        if at <= number {
            continue;
        }
        let tag = u64::from(at) << 3;
        match field {
            Field::Varint(value) => {
                write_varint(out, tag);
                write_varint(out, value);
            }
            Field::Fixed64(value) => {
                write_varint(out, tag | 1);
                out.extend_from_slice(&value.to_le_bytes());
            }
            Field::Bytes(bytes) => write_bytes_field(out, at, bytes),
            Field::Fixed32(value) => {
                write_varint(out, tag | 5);
                out.extend_from_slice(&value.to_le_bytes());
            }
        }
    }
}
