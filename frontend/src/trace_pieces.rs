//! A large trace as text or protobuf, written piece by piece: each span is dropped when it is written, so that a trace and its answer are
//! never in memory together. The pieces put together are what [`jsonpb`](crate::jsonpb) and prost write of the whole.

use std::{mem::take, vec};

use bytes::Bytes;
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, message},
};
use skein_proto::{
    otlp::trace::v1::{ResourceSpans, ScopeSpans, Span},
    tempo::TraceByIdResponse,
};

use crate::{
    jsonpb::{Object, to_json, write_message},
    merge::trace::encoded_bytes,
};

/// A piece is at least this large, but for the last one.
const PIECE_BYTES: usize = 256 << 10;

/// Field numbers of OTLP and of Tempo's messages.
const TRACE: u32 = 1;
const RESOURCE_SPANS: u32 = 1;
const SCOPE_SPANS: u32 = 2;
const SPANS: u32 = 2;

/// The next part of an answer.
enum Part {
    Bytes(Vec<u8>),
    Spans(Vec<Span>),
}

/// How spans are written.
#[derive(Clone, Copy)]
enum Form {
    Json,
    Protobuf,
}

/// The pieces of an answer, in order.
pub(crate) struct TracePieces {
    parts: Box<dyn Iterator<Item = Part> + Send>,
    spans: vec::IntoIter<Span>,
    /// Whether the next span is the first of its list.
    first: bool,
    form: Form,
}

impl TracePieces {
    /// As the first version of the endpoint answers.
    pub(crate) fn json(trace: Vec<ResourceSpans>) -> Self {
        Self::json_between("{\"batches\":[", trace, "]}".to_owned())
    }

    /// As the second version answers: with the fields of `rest`, which has no trace of its own.
    pub(crate) fn wrapped_json(trace: Vec<ResourceSpans>, rest: &TraceByIdResponse) -> Self {
        let rest = to_json(rest);
        let end = if rest == "{}" { "]}}".to_owned() } else { format!("]}},{}", &rest[1..]) };
        Self::json_between("{\"trace\":{\"resourceSpans\":[", trace, end)
    }

    /// A `Trace` message.
    pub(crate) fn protobuf(trace: Vec<ResourceSpans>) -> Self {
        Self::protobuf_between(Vec::new(), trace, Vec::new())
    }

    /// The message `rest`, which has no trace of its own, with `trace`.
    pub(crate) fn wrapped_protobuf(trace: Vec<ResourceSpans>, rest: &TraceByIdResponse) -> Self {
        let begin = header(TRACE, encoded_bytes(&trace));
        Self::protobuf_between(begin, trace, rest.encode_to_vec())
    }

    fn json_between(begin: &str, trace: Vec<ResourceSpans>, end: String) -> Self {
        let resources = trace.into_iter().enumerate().flat_map(|(at, resource)| json_parts(at, resource));
        Self::between(begin.into(), resources, end.into(), Form::Json)
    }

    fn protobuf_between(begin: Vec<u8>, trace: Vec<ResourceSpans>, end: Vec<u8>) -> Self {
        Self::between(begin, trace.into_iter().flat_map(protobuf_parts), end, Form::Protobuf)
    }

    fn between(begin: Vec<u8>, parts: impl Iterator<Item = Part> + Send + 'static, end: Vec<u8>, form: Form) -> Self {
        let parts = [Part::Bytes(begin)].into_iter().chain(parts).chain([Part::Bytes(end)]);
        Self { parts: Box::new(parts), spans: Vec::new().into_iter(), first: true, form }
    }

    fn write(&mut self, span: &Span, out: &mut Vec<u8>) {
        match self.form {
            Form::Json => {
                let mut text = String::new();
                write_message(&mut text, span);
                if !take(&mut self.first) {
                    out.push(b',');
                }
                out.extend_from_slice(text.as_bytes());
            }
            Form::Protobuf => message::encode(SPANS, span, out),
        }
    }
}

impl Iterator for TracePieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::with_capacity(PIECE_BYTES + PIECE_BYTES / 8);
        while out.len() < PIECE_BYTES {
            if let Some(span) = self.spans.next() {
                self.write(&span, &mut out);
                continue;
            }
            match self.parts.next() {
                Some(Part::Bytes(bytes)) => out.extend_from_slice(&bytes),
                Some(Part::Spans(spans)) => (self.spans, self.first) = (spans.into_iter(), true),
                None => break,
            }
        }
        (!out.is_empty()).then(|| out.into())
    }
}

/// The spans of a resource, number `at` of its list, and what stands around them.
fn json_parts(at: usize, mut resource: ResourceSpans) -> Vec<Part> {
    let scopes = take(&mut resource.scope_spans);
    let (mut parts, mut text) = (Vec::with_capacity(2 * scopes.len() + 1), String::new());
    text.push_str(if at == 0 { "{" } else { ",{" });
    let mut object = Object::open(&mut text);
    object.message("resource", resource.resource.as_ref());
    if !scopes.is_empty() {
        object.begin("scopeSpans").push('[');
        for (at, scope) in scopes.into_iter().enumerate() {
            json_scope(at, scope, &mut text, &mut parts);
        }
        text.push(']');
    }
    end_of_json(&resource.schema_url, &mut text);
    parts.push(Part::Bytes(text.into_bytes()));
    parts
}

fn json_scope(at: usize, scope: ScopeSpans, text: &mut String, parts: &mut Vec<Part>) {
    text.push_str(if at == 0 { "{" } else { ",{" });
    let mut object = Object::open(text);
    object.message("scope", scope.scope.as_ref());
    if !scope.spans.is_empty() {
        object.begin("spans").push('[');
        parts.push(Part::Bytes(take(text).into_bytes()));
        parts.push(Part::Spans(scope.spans));
        text.push(']');
    }
    end_of_json(&scope.schema_url, text);
}

/// The last field of an object, and its brace.
fn end_of_json(schema_url: &str, text: &mut String) {
    if !schema_url.is_empty() {
        let mut field = String::new();
        Object::open(&mut field).string("schemaUrl", schema_url);
        if !text.ends_with('{') {
            text.push(',');
        }
        text.push_str(&field);
    }
    text.push('}');
}

/// The key and length of a message that follows.
fn header(field: u32, bytes: usize) -> Vec<u8> {
    let mut out = Vec::new();
    encode_key(field, WireType::LengthDelimited, &mut out);
    encode_varint(bytes as u64, &mut out);
    out
}

fn protobuf_parts(mut resource: ResourceSpans) -> Vec<Part> {
    let mut begin = header(RESOURCE_SPANS, resource.encoded_len());
    let (scopes, end) = (take(&mut resource.scope_spans), ResourceSpans { schema_url: take(&mut resource.schema_url), ..Default::default() });
    begin.extend(resource.encode_to_vec());
    let mut parts = vec![Part::Bytes(begin)];
    for mut scope in scopes {
        let mut begin = header(SCOPE_SPANS, scope.encoded_len());
        let (spans, end) = (take(&mut scope.spans), ScopeSpans { schema_url: take(&mut scope.schema_url), ..Default::default() });
        begin.extend(scope.encode_to_vec());
        parts.extend([Part::Bytes(begin), Part::Spans(spans), Part::Bytes(end.encode_to_vec())]);
    }
    parts.push(Part::Bytes(end.encode_to_vec()));
    parts
}

#[cfg(test)]
mod tests {
    use skein_proto::{
        otlp::{
            common::v1::{InstrumentationScope, KeyValue},
            resource::v1::Resource,
        },
        tempo::{PartialStatus, Trace, TraceByIdMetrics},
    };

    use super::*;
    use crate::jsonpb::Batches;

    /// Resources and scopes with and without each of their fields, and more spans than go into a piece.
    fn trace() -> Vec<ResourceSpans> {
        let span = |id: usize| Span { span_id: id.to_be_bytes().to_vec(), name: "a \"name\"".repeat(1 + id % 3), ..Default::default() };
        let scope = |spans: usize, schema_url: &str| ScopeSpans {
            scope: (spans > 1).then(|| InstrumentationScope { name: "lib".into(), ..Default::default() }),
            spans: (0..spans).map(span).collect(),
            schema_url: schema_url.into(),
        };
        let resource = |scope_spans, schema_url: &str| ResourceSpans {
            resource: (!schema_url.is_empty()).then(|| Resource { attributes: vec![KeyValue::default()], ..Default::default() }),
            scope_spans,
            schema_url: schema_url.into(),
        };
        vec![
            resource(vec![scope(0, ""), scope(1, ""), scope(0, "u")], ""),
            resource(vec![scope(10_000, "https://schema"), scope(2, "")], "https://other"),
            resource(Vec::new(), "u"),
            resource(Vec::new(), ""),
        ]
    }

    fn rest(message: &str) -> TraceByIdResponse {
        let metrics = TraceByIdMetrics { inspected_bytes: 7, ..Default::default() };
        TraceByIdResponse { trace: None, metrics: Some(metrics), status: PartialStatus::Partial.into(), message: message.into() }
    }

    fn check(pieces: TracePieces, whole: &[u8]) {
        let pieces: Vec<Bytes> = pieces.collect();
        assert!(pieces.concat() == whole, "{} bytes, expected {}", pieces.concat().len(), whole.len());
        let (last, others) = pieces.split_last().expect("there is a piece");
        assert!(!last.is_empty() && !others.is_empty() && others.iter().all(|piece| piece.len() >= PIECE_BYTES), "{}", others.len());
    }

    #[test]
    fn pieces_are_those_of_the_whole() {
        let whole = |rest: TraceByIdResponse| TraceByIdResponse { trace: Some(Trace { resource_spans: trace() }), ..rest };
        check(TracePieces::json(trace()), to_json(&Batches(&trace())).as_bytes());
        check(TracePieces::protobuf(trace()), &Trace { resource_spans: trace() }.encode_to_vec());
        for rest in [rest("it is cut"), rest(""), TraceByIdResponse::default()] {
            check(TracePieces::wrapped_json(trace(), &rest), to_json(&whole(rest.clone())).as_bytes());
            check(TracePieces::wrapped_protobuf(trace(), &rest), &whole(rest).encode_to_vec());
        }
    }
}
