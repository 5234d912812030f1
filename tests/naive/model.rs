//! Spans as plain structs, and the OTLP that says them.

use prost::Message;
use skein_proto::otlp::collector::trace::v1::ExportTraceServiceRequest;
use skein_proto::otlp::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList, any_value};
use skein_proto::otlp::resource::v1::Resource;
use skein_proto::otlp::trace::v1::{ResourceSpans, ScopeSpans, Span as OtlpSpan, Status, span};

/// The value of an attribute.
#[derive(Clone, Debug)]
pub enum Value {
    Text(String),
    Int(i64),
    Double(f64),
    Bool(bool),
    Array(Vec<Value>),
    Map(Attributes),
    Bytes(Vec<u8>),
    /// A value message without a value.
    Empty,
}

/// Keys and values as sent; a key may occur twice.
pub type Attributes = Vec<(String, Value)>;

/// Attributes by key, each value as an OTLP message; those of one key as sent.
type Sorted = Vec<(String, Vec<u8>)>;

/// Duration, kind, name, status code and message, parent id, resource, scope, attributes, events, links, and what was sent although it
/// means nothing.
pub type Content = (i64, i32, String, i32, String, u64, Vec<u8>, Vec<u8>, Sorted, Vec<(u64, String, Sorted)>, (Vec<(u128, u64, Vec<u8>)>, i64));

fn sorted(attributes: &Attributes) -> Sorted {
    let mut sorted: Sorted = attributes.iter().map(|(key, value)| (key.clone(), value.to_otlp().encode_to_vec())).collect();
    sorted.sort_by(|(a, _), (b, _)| a.cmp(b));
    sorted
}

#[derive(Clone, Debug)]
pub struct Event {
    pub time: u64,
    pub name: String,
    pub attributes: Attributes,
}

#[derive(Clone, Debug)]
pub struct Link {
    pub trace: u128,
    pub span: u64,
    pub attributes: Attributes,
}

/// An instrumentation scope.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    pub name: String,
    pub version: String,
    pub attributes: Attributes,
}

#[derive(Clone, Debug)]
pub struct Span {
    pub trace: u128,
    pub id: u64,
    /// As sent: nothing, or an id, perhaps of eight zero bytes.
    pub parent: Option<u64>,
    pub name: String,
    /// The number on the wire, perhaps one that means nothing.
    pub kind: i32,
    pub start: u64,
    pub end: u64,
    /// Code and message.
    pub status: Option<(i32, String)>,
    pub attributes: Attributes,
    pub events: Vec<Event>,
    pub links: Vec<Link>,
    pub resource: Option<Attributes>,
    pub scope: Option<Scope>,
}

impl Span {
    /// The span with its resource and scope as OTLP.
    pub fn to_otlp(&self) -> ResourceSpans {
        let scope = self.scope.as_ref().map(|scope| InstrumentationScope {
            name: scope.name.clone(),
            version: scope.version.clone(),
            attributes: key_values(&scope.attributes),
            ..Default::default()
        });
        let resource = self.resource.as_ref().map(|attributes| Resource { attributes: key_values(attributes), ..Default::default() });
        ResourceSpans {
            resource,
            scope_spans: vec![ScopeSpans { scope, spans: vec![self.span_message()], ..Default::default() }],
            ..Default::default()
        }
    }

    /// All that the span is beside trace, id and start. Spans of equal content are copies; others are in the order of their contents.
    pub fn content(&self) -> Content {
        let (code, message) = self.status.clone().unwrap_or_default();
        let resource = ResourceSpans { resource: self.to_otlp().resource, ..Default::default() };
        let scope = self.to_otlp().scope_spans.remove(0).scope;
        let odd_parent = i64::from(self.parent == Some(0));
        let odd_status = if self.status.is_some() && code == 0 && message.is_empty() { 2 } else { 0 };
        (
            self.end.wrapping_sub(self.start) as i64,
            self.kind,
            self.name.clone(),
            code,
            message,
            self.parent.unwrap_or(0),
            resource.encode_to_vec(),
            ScopeSpans { scope, ..Default::default() }.encode_to_vec(),
            sorted(&self.attributes),
            self.events.iter().map(|event| (event.time, event.name.clone(), sorted(&event.attributes))).collect(),
            (self.links.iter().map(|link| (link.trace, link.span, link.attributes_message())).collect(), odd_parent | odd_status),
        )
    }

    fn span_message(&self) -> OtlpSpan {
        OtlpSpan {
            trace_id: self.trace.to_be_bytes().to_vec(),
            span_id: self.id.to_be_bytes().to_vec(),
            parent_span_id: self.parent.map(|id| id.to_be_bytes().to_vec()).unwrap_or_default(),
            name: self.name.clone(),
            kind: self.kind,
            start_time_unix_nano: self.start,
            end_time_unix_nano: self.end,
            attributes: key_values(&self.attributes),
            events: self.events.iter().map(Event::to_otlp).collect(),
            links: self.links.iter().map(Link::to_otlp).collect(),
            status: self.status.as_ref().map(|(code, message)| Status { code: *code, message: message.clone() }),
            ..Default::default()
        }
    }
}

impl Event {
    fn to_otlp(&self) -> span::Event {
        span::Event { time_unix_nano: self.time, name: self.name.clone(), attributes: key_values(&self.attributes), ..Default::default() }
    }
}

impl Link {
    fn attributes_message(&self) -> Vec<u8> {
        span::Link { attributes: key_values(&self.attributes), ..Default::default() }.encode_to_vec()
    }

    fn to_otlp(&self) -> span::Link {
        span::Link {
            trace_id: self.trace.to_be_bytes().to_vec(),
            span_id: self.span.to_be_bytes().to_vec(),
            attributes: key_values(&self.attributes),
            ..Default::default()
        }
    }
}

/// The request that sends `spans`, each under a resource and a scope of its own.
pub fn request<'a>(spans: impl IntoIterator<Item = &'a Span>) -> Vec<u8> {
    ExportTraceServiceRequest { resource_spans: spans.into_iter().map(Span::to_otlp).collect() }.encode_to_vec()
}

fn key_values(attributes: &Attributes) -> Vec<KeyValue> {
    attributes.iter().map(|(key, value)| KeyValue { key: key.clone(), value: Some(value.to_otlp()), ..Default::default() }).collect()
}

impl Value {
    fn to_otlp(&self) -> AnyValue {
        use any_value::Value as Wire;
        let value = match self {
            Self::Text(text) => Wire::StringValue(text.clone()),
            Self::Int(value) => Wire::IntValue(*value),
            Self::Double(value) => Wire::DoubleValue(*value),
            Self::Bool(value) => Wire::BoolValue(*value),
            Self::Array(values) => Wire::ArrayValue(ArrayValue { values: values.iter().map(Self::to_otlp).collect() }),
            Self::Map(entries) => Wire::KvlistValue(KeyValueList { values: key_values(entries) }),
            Self::Bytes(bytes) => Wire::BytesValue(bytes.clone()),
            Self::Empty => return AnyValue { value: None },
        };
        AnyValue { value: Some(value) }
    }
}
