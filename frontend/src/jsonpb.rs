//! Messages as the JSON that Tempo writes: lowerCamelCase keys in the order of the fields, 64-bit integers as strings, bytes as base64,
//! zero values left out, members of a oneof always printed, `<`, `>` and `&` escaped, no white space.

use std::{collections::BTreeMap, fmt::Write};

use base64::{Engine, engine::general_purpose::STANDARD};
use skein_engine::stop;
use skein_proto::{
    otlp::{
        common::v1::{AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList, any_value::Value},
        resource::v1::Resource,
        trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span, status},
    },
    tempo,
};

/// A message that can be written as JSON.
pub(crate) trait ToJson {
    /// Writes the fields of the message into an object that is already open.
    fn fields(&self, object: &mut Object<'_>);
}

/// The JSON of a message.
pub(crate) fn to_json(message: &impl ToJson) -> String {
    let mut out = String::new();
    write_message(&mut out, message);
    out
}

pub(crate) fn write_message(out: &mut String, message: &impl ToJson) {
    out.push('{');
    message.fields(&mut Object::open(out));
    out.push('}');
}

/// An open JSON object. Each method writes one field, or nothing when the field has its zero value.
pub(crate) struct Object<'a> {
    out: &'a mut String,
    first: bool,
}

impl<'a> Object<'a> {
    /// An object whose brace is written.
    pub(crate) fn open(out: &'a mut String) -> Self {
        Self { out, first: true }
    }

    /// Begins a field; its value is to be written to the text that this gives.
    pub(crate) fn begin(&mut self, key: &str) -> &mut String {
        self.key(key);
        self.out
    }

    fn key(&mut self, key: &str) {
        if !self.first {
            self.out.push(',');
        }
        self.first = false;
        write_string(self.out, key);
        self.out.push(':');
    }

    pub(crate) fn string(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.key(key);
            write_string(self.out, value);
        }
    }

    fn bytes(&mut self, key: &str, value: &[u8]) {
        if !value.is_empty() {
            self.key(key);
            write_base64(self.out, value);
        }
    }

    /// A 32-bit integer.
    fn number(&mut self, key: &str, value: impl Into<i64>) {
        let value = value.into();
        if value != 0 {
            self.key(key);
            push(self.out, format_args!("{value}"));
        }
    }

    /// A 64-bit integer.
    fn long(&mut self, key: &str, value: u64) {
        if value != 0 {
            self.key(key);
            write_long(self.out, value);
        }
    }

    /// A signed 64-bit integer, written even if it is 0: a time is never left out.
    fn signed_long(&mut self, key: &str, value: i64) {
        self.key(key);
        write_long(self.out, value);
    }

    /// A double.
    fn double(&mut self, key: &str, value: f64) {
        if value != 0.0 {
            self.key(key);
            write_double(self.out, value);
        }
    }

    /// An enum by its name, or by its number when it has none.
    fn symbol(&mut self, key: &str, value: i32, name: Option<&str>) {
        match name {
            Some(name) if value != 0 => self.string(key, name),
            _ => self.number(key, value),
        }
    }

    pub(crate) fn message(&mut self, key: &str, value: Option<&impl ToJson>) {
        if let Some(value) = value {
            self.key(key);
            write_message(self.out, value);
        }
    }

    /// A list that is left out when it is empty.
    fn list(&mut self, key: &str, values: &[impl ToJson]) {
        if !values.is_empty() {
            self.whole_list(key, values);
        }
    }

    /// A list that is `[]` when it is empty.
    fn whole_list(&mut self, key: &str, values: &[impl ToJson]) {
        self.key(key);
        self.out.push('[');
        for (index, value) in values.iter().enumerate() {
            if index > 0 {
                self.out.push(',');
            }
            // Nobody reads what is left incomplete.
            if index % stop::ROWS_BETWEEN_CHECKS == 0 && stop::is_stopped() {
                break;
            }
            write_message(self.out, value);
        }
        self.out.push(']');
    }

    fn strings(&mut self, key: &str, values: &[String]) {
        self.key(key);
        self.out.push('[');
        for (index, value) in values.iter().enumerate() {
            if index > 0 {
                self.out.push(',');
            }
            write_string(self.out, value);
        }
        self.out.push(']');
    }

    fn longs_by_name(&mut self, key: &str, values: &BTreeMap<String, i64>) {
        if values.is_empty() {
            return;
        }
        self.key(key);
        self.out.push('{');
        for (index, (name, value)) in values.iter().enumerate() {
            if index > 0 {
                self.out.push(',');
            }
            write_string(self.out, name);
            self.out.push(':');
            write_long(self.out, *value);
        }
        self.out.push('}');
    }
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a string cannot fail");
}

fn write_base64(out: &mut String, value: &[u8]) {
    out.push('"');
    STANDARD.encode_string(value, out);
    out.push('"');
}

/// Bytes at which a character may begin that is escaped: controls, quotes, what HTML gives a meaning, and the first byte of U+2028.
const LOOK_AT: [bool; 256] = {
    let mut look_at = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        look_at[byte] = true;
        byte += 1;
    }
    let others = *b"\"\\<>&\xe2";
    let mut at = 0;
    while at < others.len() {
        look_at[others[at] as usize] = true;
        at += 1;
    }
    look_at
};

fn write_string(out: &mut String, value: &str) {
    out.push('"');
    let mut rest = value;
    while let Some(at) = rest.bytes().position(|byte| LOOK_AT[byte as usize]) {
        out.push_str(&rest[..at]);
        let Some(c) = rest[at..].chars().next() else { break };
        write_char(out, c);
        rest = &rest[at + c.len_utf8()..];
    }
    out.push_str(rest);
    out.push('"');
}

/// Writes one character of a string, escaped as Go does.
fn write_char(out: &mut String, c: char) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\u{8}' => out.push_str("\\b"),
        '\u{c}' => out.push_str("\\f"),
        '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => push(out, format_args!("\\u{:04x}", u32::from(c))),
        c => out.push(c),
    }
}

/// Writes the shortest decimal that reads back as `value`, with an exponent below 1e-6 and from 1e21 on, as Go does.
fn write_double(out: &mut String, value: f64) {
    let magnitude = value.abs();
    if value.is_nan() {
        out.push_str("\"NaN\"");
    } else if value.is_infinite() {
        out.push_str(if value > 0.0 { "\"Infinity\"" } else { "\"-Infinity\"" });
    } else if magnitude != 0.0 && !(1e-6..1e21).contains(&magnitude) {
        let text = format!("{value:e}");
        match text.split_once('e') {
            Some((digits, exponent)) if !exponent.starts_with('-') => push(out, format_args!("{digits}e+{exponent}")),
            _ => out.push_str(&text),
        }
    } else if (1e-5..1e15).contains(&magnitude) {
        // Sooner than the standard library, which has the odd one of two that are as near.
        let mut buffer = ryu::Buffer::new();
        let text = buffer.format_finite(value);
        out.push_str(text.strip_suffix(".0").unwrap_or(text));
    } else {
        push(out, format_args!("{value}"));
    }
}

/// Writes a 64-bit integer, which the API has as text.
fn write_long(out: &mut String, value: impl itoa::Integer) {
    out.push('"');
    out.push_str(itoa::Buffer::new().format(value));
    out.push('"');
}

impl ToJson for AnyValue {
    fn fields(&self, object: &mut Object<'_>) {
        let Some(value) = &self.value else { return };
        match value {
            Value::StringValue(text) => {
                object.key("stringValue");
                write_string(object.out, text);
            }
            Value::BoolValue(value) => {
                object.key("boolValue");
                push(object.out, format_args!("{value}"));
            }
            Value::IntValue(value) => {
                object.key("intValue");
                write_long(object.out, *value);
            }
            Value::DoubleValue(value) => {
                object.key("doubleValue");
                write_double(object.out, *value);
            }
            Value::ArrayValue(array) => object.message("arrayValue", Some(array)),
            Value::KvlistValue(list) => object.message("kvlistValue", Some(list)),
            Value::BytesValue(bytes) => {
                object.key("bytesValue");
                write_base64(object.out, bytes);
            }
            Value::StringValueStrindex(index) => {
                object.key("stringValueStrindex");
                push(object.out, format_args!("{index}"));
            }
        }
    }
}

impl ToJson for ArrayValue {
    fn fields(&self, object: &mut Object<'_>) {
        object.list("values", &self.values);
    }
}

impl ToJson for KeyValueList {
    fn fields(&self, object: &mut Object<'_>) {
        object.list("values", &self.values);
    }
}

impl ToJson for KeyValue {
    fn fields(&self, object: &mut Object<'_>) {
        object.string("key", &self.key);
        object.message("value", self.value.as_ref());
        object.number("keyStrindex", self.key_strindex);
    }
}

impl ToJson for EntityRef {
    fn fields(&self, object: &mut Object<'_>) {
        object.string("schemaUrl", &self.schema_url);
        object.string("type", &self.r#type);
        if !self.id_keys.is_empty() {
            object.strings("idKeys", &self.id_keys);
        }
        if !self.description_keys.is_empty() {
            object.strings("descriptionKeys", &self.description_keys);
        }
    }
}

impl ToJson for Resource {
    fn fields(&self, object: &mut Object<'_>) {
        object.list("attributes", &self.attributes);
        object.number("droppedAttributesCount", self.dropped_attributes_count);
        object.list("entityRefs", &self.entity_refs);
    }
}

impl ToJson for InstrumentationScope {
    fn fields(&self, object: &mut Object<'_>) {
        object.string("name", &self.name);
        object.string("version", &self.version);
        object.list("attributes", &self.attributes);
        object.number("droppedAttributesCount", self.dropped_attributes_count);
    }
}

impl ToJson for ResourceSpans {
    fn fields(&self, object: &mut Object<'_>) {
        object.message("resource", self.resource.as_ref());
        object.list("scopeSpans", &self.scope_spans);
        object.string("schemaUrl", &self.schema_url);
    }
}

impl ToJson for ScopeSpans {
    fn fields(&self, object: &mut Object<'_>) {
        object.message("scope", self.scope.as_ref());
        object.list("spans", &self.spans);
        object.string("schemaUrl", &self.schema_url);
    }
}

impl ToJson for Span {
    fn fields(&self, object: &mut Object<'_>) {
        object.bytes("traceId", &self.trace_id);
        object.bytes("spanId", &self.span_id);
        object.string("traceState", &self.trace_state);
        object.bytes("parentSpanId", &self.parent_span_id);
        object.number("flags", self.flags);
        object.string("name", &self.name);
        object.symbol("kind", self.kind, span::SpanKind::try_from(self.kind).ok().map(|kind| kind.as_str_name()));
        object.long("startTimeUnixNano", self.start_time_unix_nano);
        object.long("endTimeUnixNano", self.end_time_unix_nano);
        object.list("attributes", &self.attributes);
        object.number("droppedAttributesCount", self.dropped_attributes_count);
        object.list("events", &self.events);
        object.number("droppedEventsCount", self.dropped_events_count);
        object.list("links", &self.links);
        object.number("droppedLinksCount", self.dropped_links_count);
        object.message("status", self.status.as_ref());
    }
}

impl ToJson for span::Event {
    fn fields(&self, object: &mut Object<'_>) {
        object.long("timeUnixNano", self.time_unix_nano);
        object.string("name", &self.name);
        object.list("attributes", &self.attributes);
        object.number("droppedAttributesCount", self.dropped_attributes_count);
    }
}

impl ToJson for span::Link {
    fn fields(&self, object: &mut Object<'_>) {
        object.bytes("traceId", &self.trace_id);
        object.bytes("spanId", &self.span_id);
        object.string("traceState", &self.trace_state);
        object.list("attributes", &self.attributes);
        object.number("droppedAttributesCount", self.dropped_attributes_count);
        object.number("flags", self.flags);
    }
}

impl ToJson for Status {
    fn fields(&self, object: &mut Object<'_>) {
        object.string("message", &self.message);
        object.symbol("code", self.code, status::StatusCode::try_from(self.code).ok().map(|code| code.as_str_name()));
    }
}

impl ToJson for tempo::Trace {
    fn fields(&self, object: &mut Object<'_>) {
        object.list("resourceSpans", &self.resource_spans);
    }
}

/// A trace as the first version of its endpoint names it.
pub(crate) struct Batches<'a>(pub(crate) &'a [ResourceSpans]);

impl ToJson for Batches<'_> {
    fn fields(&self, object: &mut Object<'_>) {
        object.list("batches", self.0);
    }
}

impl ToJson for tempo::TraceByIdResponse {
    fn fields(&self, object: &mut Object<'_>) {
        object.message("trace", self.trace.as_ref());
        object.message("metrics", self.metrics.as_ref());
        object.symbol("status", self.status, tempo::PartialStatus::try_from(self.status).ok().map(|status| status.as_str_name()));
        object.string("message", &self.message);
    }
}

impl ToJson for tempo::TraceByIdMetrics {
    fn fields(&self, object: &mut Object<'_>) {
        object.long("inspectedBytes", self.inspected_bytes);
        object.long("backendReads", self.backend_reads);
        object.long("backendBytes", self.backend_bytes);
        object.longs_by_name("additionalMetrics", &self.additional_metrics);
    }
}

impl ToJson for tempo::SearchResponse {
    fn fields(&self, object: &mut Object<'_>) {
        object.whole_list("traces", &self.traces);
        object.message("metrics", self.metrics.as_ref());
    }
}

impl ToJson for tempo::TraceSearchMetadata {
    fn fields(&self, object: &mut Object<'_>) {
        object.string("traceID", &self.trace_id);
        object.string("rootServiceName", &self.root_service_name);
        object.string("rootTraceName", &self.root_trace_name);
        object.long("startTimeUnixNano", self.start_time_unix_nano);
        object.number("durationMs", self.duration_ms);
        object.message("spanSet", self.span_set.as_ref());
        object.list("spanSets", &self.span_sets);
        if !self.service_stats.is_empty() {
            object.message("serviceStats", Some(&ByName(&self.service_stats)));
        }
    }
}

/// A map to messages.
struct ByName<'a, M>(&'a BTreeMap<String, M>);

impl<M: ToJson> ToJson for ByName<'_, M> {
    fn fields(&self, object: &mut Object<'_>) {
        for (name, message) in self.0 {
            object.message(name, Some(message));
        }
    }
}

impl ToJson for tempo::ServiceStats {
    fn fields(&self, object: &mut Object<'_>) {
        object.number("spanCount", self.span_count);
        object.number("errorCount", self.error_count);
    }
}

impl ToJson for tempo::SpanSet {
    fn fields(&self, object: &mut Object<'_>) {
        object.list("spans", &self.spans);
        object.number("matched", self.matched);
        object.list("attributes", &self.attributes);
    }
}

impl ToJson for tempo::Span {
    fn fields(&self, object: &mut Object<'_>) {
        object.string("spanID", &self.span_id);
        object.string("name", &self.name);
        object.long("startTimeUnixNano", self.start_time_unix_nano);
        object.long("durationNanos", self.duration_nanos);
        object.list("attributes", &self.attributes);
    }
}

impl ToJson for tempo::SearchMetrics {
    fn fields(&self, object: &mut Object<'_>) {
        object.number("inspectedTraces", self.inspected_traces);
        object.long("inspectedBytes", self.inspected_bytes);
        object.number("totalBlocks", self.total_blocks);
        object.number("completedJobs", self.completed_jobs);
        object.number("totalJobs", self.total_jobs);
        object.long("totalBlockBytes", self.total_block_bytes);
        object.long("inspectedSpans", self.inspected_spans);
        object.long("backendReads", self.backend_reads);
        object.long("backendBytes", self.backend_bytes);
        object.longs_by_name("additionalMetrics", &self.additional_metrics);
    }
}

impl ToJson for tempo::QueryRangeResponse {
    fn fields(&self, object: &mut Object<'_>) {
        object.whole_list("series", &self.series);
        object.message("metrics", self.metrics.as_ref());
        partial_status(object, self.status);
        object.string("message", &self.message);
    }
}

impl ToJson for tempo::QueryInstantResponse {
    fn fields(&self, object: &mut Object<'_>) {
        object.list("series", &self.series);
        object.message("metrics", self.metrics.as_ref());
        partial_status(object, self.status);
        object.string("message", &self.message);
    }
}

fn partial_status(object: &mut Object<'_>, status: i32) {
    if status == tempo::PartialStatus::Partial as i32 {
        object.string("status", "PARTIAL");
    }
}

impl ToJson for tempo::TimeSeries {
    fn fields(&self, object: &mut Object<'_>) {
        object.list("labels", &self.labels);
        object.list("samples", &self.samples);
        object.list("exemplars", &self.exemplars);
    }
}

impl ToJson for tempo::InstantSeries {
    fn fields(&self, object: &mut Object<'_>) {
        object.list("labels", &self.labels);
        object.double("value", self.value);
    }
}

impl ToJson for tempo::Sample {
    fn fields(&self, object: &mut Object<'_>) {
        object.signed_long("timestampMs", self.timestamp_ms);
        object.double("value", self.value);
    }
}

impl ToJson for tempo::Exemplar {
    fn fields(&self, object: &mut Object<'_>) {
        object.list("labels", &self.labels);
        object.double("value", self.value);
        object.signed_long("timestampMs", self.timestamp_ms);
    }
}

impl ToJson for tempo::MetadataMetrics {
    fn fields(&self, object: &mut Object<'_>) {
        object.long("inspectedBytes", self.inspected_bytes);
        object.number("totalJobs", self.total_jobs);
        object.number("completedJobs", self.completed_jobs);
        object.number("totalBlocks", self.total_blocks);
        object.long("totalBlockBytes", self.total_block_bytes);
        object.long("backendReads", self.backend_reads);
        object.long("backendBytes", self.backend_bytes);
        object.longs_by_name("additionalMetrics", &self.additional_metrics);
    }
}

impl ToJson for tempo::SearchTagsResponse {
    fn fields(&self, object: &mut Object<'_>) {
        object.strings("tagNames", &self.tag_names);
        object.message("metrics", self.metrics.as_ref());
    }
}

impl ToJson for tempo::SearchTagsV2Response {
    fn fields(&self, object: &mut Object<'_>) {
        object.whole_list("scopes", &self.scopes);
        object.message("metrics", self.metrics.as_ref());
    }
}

impl ToJson for tempo::SearchTagsV2Scope {
    fn fields(&self, object: &mut Object<'_>) {
        object.string("name", &self.name);
        object.strings("tags", &self.tags);
    }
}

impl ToJson for tempo::SearchTagValuesResponse {
    fn fields(&self, object: &mut Object<'_>) {
        object.strings("tagValues", &self.tag_values);
        object.message("metrics", self.metrics.as_ref());
    }
}

impl ToJson for tempo::SearchTagValuesV2Response {
    fn fields(&self, object: &mut Object<'_>) {
        object.whole_list("tagValues", &self.tag_values);
        object.message("metrics", self.metrics.as_ref());
    }
}

impl ToJson for tempo::TagValue {
    fn fields(&self, object: &mut Object<'_>) {
        object.string("type", &self.r#type);
        object.string("value", &self.value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(value: Value) -> AnyValue {
        AnyValue { value: Some(value) }
    }

    fn attribute(key: &str, value: Option<AnyValue>) -> KeyValue {
        KeyValue { key: key.into(), value, ..Default::default() }
    }

    #[test]
    fn a_span_with_every_type_of_value_has_these_bytes() {
        let span = Span {
            trace_id: (0..16).collect(),
            span_id: vec![0xff; 8],
            trace_state: "a=b".into(),
            parent_span_id: vec![1, 2, 3, 4, 5, 6, 7, 8],
            flags: 257,
            name: "GET <a>&\"b\"".into(),
            kind: 2,
            start_time_unix_nano: 1_700_000_000_000_000_001,
            end_time_unix_nano: 1_700_000_000_000_000_002,
            attributes: vec![
                attribute("s", Some(any(Value::StringValue("é\u{2028}\n\u{1}".into())))),
                attribute("s0", Some(any(Value::StringValue(String::new())))),
                attribute("b", Some(any(Value::BoolValue(true)))),
                attribute("b0", Some(any(Value::BoolValue(false)))),
                attribute("i", Some(any(Value::IntValue(i64::MIN)))),
                attribute("i0", Some(any(Value::IntValue(0)))),
                attribute("d", Some(any(Value::DoubleValue(1.5)))),
                attribute("d0", Some(any(Value::DoubleValue(0.0)))),
                attribute("dn", Some(any(Value::DoubleValue(f64::NAN)))),
                attribute("di", Some(any(Value::DoubleValue(f64::NEG_INFINITY)))),
                attribute("a", Some(any(Value::ArrayValue(ArrayValue { values: vec![any(Value::IntValue(1)), AnyValue { value: None }] })))),
                attribute("a0", Some(any(Value::ArrayValue(ArrayValue::default())))),
                attribute("k", Some(any(Value::KvlistValue(KeyValueList { values: vec![attribute("x", Some(any(Value::BoolValue(true))))] })))),
                attribute("y", Some(any(Value::BytesValue(vec![1, 2, 3, 4])))),
                attribute("y0", Some(any(Value::BytesValue(vec![])))),
                attribute("empty", Some(AnyValue { value: None })),
                attribute("none", None),
            ],
            dropped_attributes_count: 1,
            events: vec![span::Event {
                time_unix_nano: 5,
                name: "e".into(),
                attributes: vec![attribute("x", Some(any(Value::IntValue(7))))],
                dropped_attributes_count: 2,
            }],
            dropped_events_count: 3,
            links: vec![span::Link {
                trace_id: vec![0; 16],
                span_id: vec![0; 8],
                trace_state: "l=1".into(),
                attributes: vec![],
                dropped_attributes_count: 4,
                flags: 1,
            }],
            dropped_links_count: 5,
            status: Some(Status { message: "bad".into(), code: 2 }),
        };
        let expected = concat!(
            r#"{"traceId":"AAECAwQFBgcICQoLDA0ODw==","spanId":"//////////8=","traceState":"a=b","parentSpanId":"AQIDBAUGBwg=","flags":257,"#,
            r#""name":"GET \u003ca\u003e\u0026\"b\"","kind":"SPAN_KIND_SERVER","startTimeUnixNano":"1700000000000000001","#,
            r#""endTimeUnixNano":"1700000000000000002","attributes":["#,
            r#"{"key":"s","value":{"stringValue":"é\u2028\n\u0001"}},{"key":"s0","value":{"stringValue":""}},"#,
            r#"{"key":"b","value":{"boolValue":true}},{"key":"b0","value":{"boolValue":false}},"#,
            r#"{"key":"i","value":{"intValue":"-9223372036854775808"}},{"key":"i0","value":{"intValue":"0"}},"#,
            r#"{"key":"d","value":{"doubleValue":1.5}},{"key":"d0","value":{"doubleValue":0}},"#,
            r#"{"key":"dn","value":{"doubleValue":"NaN"}},{"key":"di","value":{"doubleValue":"-Infinity"}},"#,
            r#"{"key":"a","value":{"arrayValue":{"values":[{"intValue":"1"},{}]}}},{"key":"a0","value":{"arrayValue":{}}},"#,
            r#"{"key":"k","value":{"kvlistValue":{"values":[{"key":"x","value":{"boolValue":true}}]}}},"#,
            r#"{"key":"y","value":{"bytesValue":"AQIDBA=="}},{"key":"y0","value":{"bytesValue":""}},"#,
            r#"{"key":"empty","value":{}},{"key":"none"}],"droppedAttributesCount":1,"#,
            r#""events":[{"timeUnixNano":"5","name":"e","attributes":[{"key":"x","value":{"intValue":"7"}}],"droppedAttributesCount":2}],"#,
            r#""droppedEventsCount":3,"links":[{"traceId":"AAAAAAAAAAAAAAAAAAAAAA==","spanId":"AAAAAAAAAAA=","traceState":"l=1","#,
            r#""droppedAttributesCount":4,"flags":1}],"droppedLinksCount":5,"status":{"message":"bad","code":"STATUS_CODE_ERROR"}}"#,
        );
        assert_eq!(to_json(&span), expected);
    }

    #[test]
    fn zero_values_are_left_out_and_unknown_enum_numbers_are_numbers() {
        assert_eq!(to_json(&Span::default()), "{}");
        assert_eq!(
            to_json(&Span { kind: 99, status: Some(Status { code: 7, ..Default::default() }), ..Default::default() }),
            r#"{"kind":99,"status":{"code":7}}"#
        );
        assert_eq!(to_json(&Span { status: Some(Status::default()), ..Default::default() }), r#"{"status":{}}"#);
        assert_eq!(to_json(&ResourceSpans { resource: Some(Resource::default()), ..Default::default() }), r#"{"resource":{}}"#);
    }

    #[test]
    fn doubles_are_written_as_go_writes_them() {
        let check = |value: f64, expected: &str| {
            let mut out = String::new();
            write_double(&mut out, value);
            assert_eq!(out, expected);
        };
        check(0.1, "0.1");
        check(100.0, "100");
        check(1e20, "100000000000000000000");
        check(1e21, "1e+21");
        check(1.5e300, "1.5e+300");
        check(0.000001, "0.000001");
        check(1e-7, "1e-7");
        check(-2.5e-9, "-2.5e-9");
        check(f64::INFINITY, "\"Infinity\"");
        for value in [1e-5, 9.999_999_999_999_999e-6, 1e15, 999_999_999_999_999.9, -0.0, f64::MIN_POSITIVE] {
            check(value, &if value == f64::MIN_POSITIVE { format!("{value:e}") } else { value.to_string() });
        }
        // Between two that are as near, the even one, as Go has it.
        check(137_218_052_300_924.0 + 0.125, "137218052300924.12");
        // All sizes that are written without an exponent, with long and short digits.
        let mut bits = 0x9e37_79b9_7f4a_7c15_u64;
        for exponent in (1023 - 19)..(1023 + 69) {
            for _ in 0..50 {
                bits = bits.wrapping_mul(0x2545_f491_4f6c_dd1d).rotate_left(17);
                let value = f64::from_bits(exponent << 52 | bits >> 12);
                for value in [value, -value, (value * 1000.0).round() / 1000.0, value.trunc()] {
                    let mut out = String::new();
                    write_double(&mut out, value);
                    let same_digits = out.len() == value.to_string().len() && !out.contains(['e', '+']);
                    assert!(out.parse() == Ok(value) && same_digits, "{out}, not {value}");
                }
            }
        }
    }

    #[test]
    fn exemplars_are_written_beside_samples() {
        let label = attribute("trace:id", Some(any(Value::StringValue("abc1".into()))));
        let exemplar = |value| tempo::Exemplar { labels: vec![label.clone()], value, timestamp_ms: 1_700_000_012_345 };
        let series = tempo::TimeSeries {
            labels: vec![],
            samples: vec![tempo::Sample { value: 1.5, timestamp_ms: 1_700_000_000_000 }],
            exemplars: vec![exemplar(0.2), exemplar(0.0)],
        };
        let labels = r#""labels":[{"key":"trace:id","value":{"stringValue":"abc1"}}]"#;
        let samples = r#""samples":[{"timestampMs":"1700000000000","value":1.5}]"#;
        let expected = format!(
            r#"{{{samples},"exemplars":[{{{labels},"value":0.2,"timestampMs":"1700000012345"}},{{{labels},"timestampMs":"1700000012345"}}]}}"#
        );
        assert_eq!(to_json(&series), expected);
    }

    #[test]
    fn empty_answers_keep_their_lists() {
        let search = tempo::SearchResponse { traces: vec![], metrics: Some(tempo::SearchMetrics::default()) };
        assert_eq!(to_json(&search), r#"{"traces":[],"metrics":{}}"#);
        let values = tempo::SearchTagValuesV2Response { tag_values: vec![], metrics: Some(tempo::MetadataMetrics::default()) };
        assert_eq!(to_json(&values), r#"{"tagValues":[],"metrics":{}}"#);
        let trace = tempo::TraceByIdResponse {
            trace: Some(tempo::Trace::default()),
            metrics: Some(tempo::TraceByIdMetrics { inspected_bytes: 5, ..Default::default() }),
            ..Default::default()
        };
        assert_eq!(to_json(&trace), r#"{"trace":{},"metrics":{"inspectedBytes":"5"}}"#);
    }
}
