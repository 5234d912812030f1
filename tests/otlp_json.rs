//! OTLP as JSON (OTLP specification, "JSON Protobuf Encoding"): hexadecimal ids, 64-bit integers as text, enums as numbers, bytes in base64.
//! Written here so that the product is not tested with its own code.

use base64::Engine;
use skein_proto::otlp::collector::trace::v1::ExportTraceServiceRequest;
use skein_proto::otlp::common::v1::{AnyValue, EntityRef, InstrumentationScope, KeyValue, any_value::Value};
use skein_proto::otlp::resource::v1::Resource;
use skein_proto::otlp::trace::v1::span::{Event, Link};
use skein_proto::otlp::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};

use crate::otlp::hex;

/// The request as JSON text. Fields that hold their default are left out, as encoders do.
pub fn encode(request: &ExportTraceServiceRequest) -> String {
    let mut out = String::with_capacity(1 << 16);
    object(&mut out, |o| o.list("resourceSpans", &request.resource_spans, resource_spans));
    out
}

/// Writes the members of one object.
struct Members<'a> {
    out: &'a mut String,
    first: bool,
}

fn object(out: &mut String, write: impl FnOnce(&mut Members)) {
    out.push('{');
    write(&mut Members { out, first: true });
    out.push('}');
}

impl Members<'_> {
    fn key(&mut self, key: &str) {
        if !self.first {
            self.out.push(',');
        }
        self.first = false;
        self.out.push('"');
        self.out.push_str(key);
        self.out.push_str("\":");
    }

    fn text(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.key(key);
            quoted(self.out, value);
        }
    }

    fn id(&mut self, key: &str, bytes: &[u8]) {
        self.text(key, &hex(bytes));
    }

    fn number(&mut self, key: &str, value: impl Into<i64>) {
        let value = value.into();
        if value != 0 {
            self.key(key);
            self.out.push_str(&value.to_string());
        }
    }

    fn long(&mut self, key: &str, value: u64) {
        if value != 0 {
            self.text(key, &value.to_string());
        }
    }

    fn list<T>(&mut self, key: &str, items: &[T], write: impl Fn(&mut String, &T)) {
        if !items.is_empty() {
            self.key(key);
            array(self.out, items, write);
        }
    }

    fn maybe<T>(&mut self, key: &str, item: Option<&T>, write: impl Fn(&mut String, &T)) {
        if let Some(item) = item {
            self.key(key);
            write(self.out, item);
        }
    }
}

fn array<T>(out: &mut String, items: &[T], write: impl Fn(&mut String, &T)) {
    out.push('[');
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        write(out, item);
    }
    out.push(']');
}

fn quoted(out: &mut String, value: &str) {
    out.push_str(&serde_json::to_string(value).unwrap());
}

fn resource_spans(out: &mut String, item: &ResourceSpans) {
    object(out, |o| {
        o.maybe("resource", item.resource.as_ref(), resource);
        o.list("scopeSpans", &item.scope_spans, scope_spans);
        o.text("schemaUrl", &item.schema_url);
    });
}

fn resource(out: &mut String, item: &Resource) {
    object(out, |o| {
        o.list("attributes", &item.attributes, key_value);
        o.number("droppedAttributesCount", item.dropped_attributes_count);
        o.list("entityRefs", &item.entity_refs, entity_ref);
    });
}

fn entity_ref(out: &mut String, item: &EntityRef) {
    object(out, |o| {
        o.text("schemaUrl", &item.schema_url);
        o.text("type", &item.r#type);
        o.list("idKeys", &item.id_keys, |out, key| quoted(out, key));
        o.list("descriptionKeys", &item.description_keys, |out, key| quoted(out, key));
    });
}

fn scope_spans(out: &mut String, item: &ScopeSpans) {
    object(out, |o| {
        o.maybe("scope", item.scope.as_ref(), scope);
        o.list("spans", &item.spans, span);
        o.text("schemaUrl", &item.schema_url);
    });
}

fn scope(out: &mut String, item: &InstrumentationScope) {
    object(out, |o| {
        o.text("name", &item.name);
        o.text("version", &item.version);
        o.list("attributes", &item.attributes, key_value);
        o.number("droppedAttributesCount", item.dropped_attributes_count);
    });
}

fn span(out: &mut String, item: &Span) {
    object(out, |o| {
        o.id("traceId", &item.trace_id);
        o.id("spanId", &item.span_id);
        o.text("traceState", &item.trace_state);
        o.id("parentSpanId", &item.parent_span_id);
        o.number("flags", item.flags);
        o.text("name", &item.name);
        o.number("kind", item.kind);
        o.long("startTimeUnixNano", item.start_time_unix_nano);
        o.long("endTimeUnixNano", item.end_time_unix_nano);
        o.list("attributes", &item.attributes, key_value);
        o.number("droppedAttributesCount", item.dropped_attributes_count);
        o.list("events", &item.events, event);
        o.number("droppedEventsCount", item.dropped_events_count);
        o.list("links", &item.links, link);
        o.number("droppedLinksCount", item.dropped_links_count);
        o.maybe("status", item.status.as_ref(), status);
    });
}

fn status(out: &mut String, item: &Status) {
    object(out, |o| {
        o.text("message", &item.message);
        o.number("code", item.code);
    });
}

fn event(out: &mut String, item: &Event) {
    object(out, |o| {
        o.long("timeUnixNano", item.time_unix_nano);
        o.text("name", &item.name);
        o.list("attributes", &item.attributes, key_value);
        o.number("droppedAttributesCount", item.dropped_attributes_count);
    });
}

fn link(out: &mut String, item: &Link) {
    object(out, |o| {
        o.id("traceId", &item.trace_id);
        o.id("spanId", &item.span_id);
        o.text("traceState", &item.trace_state);
        o.list("attributes", &item.attributes, key_value);
        o.number("droppedAttributesCount", item.dropped_attributes_count);
        o.number("flags", item.flags);
    });
}

fn key_value(out: &mut String, item: &KeyValue) {
    object(out, |o| {
        o.text("key", &item.key);
        o.maybe("value", item.value.as_ref(), any_value);
    });
}

fn any_value(out: &mut String, item: &AnyValue) {
    object(out, |o| {
        let Some(value) = &item.value else { return };
        match value {
            Value::StringValue(text) => {
                o.key("stringValue");
                quoted(o.out, text);
            }
            Value::BoolValue(value) => {
                o.key("boolValue");
                o.out.push_str(if *value { "true" } else { "false" });
            }
            Value::IntValue(value) => {
                o.key("intValue");
                quoted(o.out, &value.to_string());
            }
            Value::DoubleValue(value) => {
                o.key("doubleValue");
                o.out.push_str(&double(*value));
            }
            Value::ArrayValue(values) => {
                o.key("arrayValue");
                object(o.out, |o| o.list("values", &values.values, any_value));
            }
            Value::KvlistValue(values) => {
                o.key("kvlistValue");
                object(o.out, |o| o.list("values", &values.values, key_value));
            }
            Value::BytesValue(bytes) => {
                o.key("bytesValue");
                quoted(o.out, &base64::engine::general_purpose::STANDARD.encode(bytes));
            }
            Value::StringValueStrindex(_) => unreachable!("of profiles only"),
        }
    });
}

fn double(value: f64) -> String {
    match value {
        value if value.is_nan() => "\"NaN\"".to_owned(),
        f64::INFINITY => "\"Infinity\"".to_owned(),
        f64::NEG_INFINITY => "\"-Infinity\"".to_owned(),
        value => format!("{value:?}"),
    }
}

#[test]
fn the_encoder_follows_the_specification() {
    let mut span = crate::otlp::span([0xAB; 16], 1, 0, "a \"name\"", 5, 7);
    span.attributes = vec![
        crate::otlp::attribute("i", Value::IntValue(-3)),
        crate::otlp::attribute("b", Value::BytesValue(vec![0xFF])),
        crate::otlp::attribute("d", Value::DoubleValue(f64::NAN)),
        KeyValue { key: "none".to_owned(), ..Default::default() },
    ];
    let expected = concat!(
        r#"{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"s"}}]},"#,
        r#""scopeSpans":[{"scope":{"name":"tests"},"spans":[{"traceId":"abababababababababababababababab","spanId":"0000000000000001","#,
        r#""name":"a \"name\"","kind":1,"startTimeUnixNano":"5","endTimeUnixNano":"12","attributes":[{"key":"i","value":{"intValue":"-3"}},"#,
        r#"{"key":"b","value":{"bytesValue":"/w=="}},{"key":"d","value":{"doubleValue":"NaN"}},{"key":"none"}]}]}]}]}"#,
    );
    assert_eq!(encode(&crate::otlp::request("s", vec![span])), expected);
}
