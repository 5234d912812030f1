//! The short JSON for language models: query-api 10.2.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Number, Value as Json, json};
use skein_engine::{query::ScanStats, spans::TraceId};
use skein_proto::{
    otlp::{
        common::v1::{AnyValue, KeyValue, any_value::Value},
        trace::v1::{ResourceSpans, Span, span::SpanKind, status::StatusCode},
    },
    tempo::{PartialStatus, TagValue},
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LlmSpan<'a> {
    span_id: String,
    name: &'a str,
    #[serde(skip_serializing_if = "String::is_empty")]
    parent_span_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    start_time_unix_nano: String,
    end_time_unix_nano: String,
    duration_ms: f64,
    #[serde(skip_serializing_if = "Map::is_empty")]
    attributes: Map<String, Json>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    events: Vec<Json>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    links: Vec<Json>,
    status: Json,
}

/// A trace with its spans by service and scope. Empty is `{}`.
pub(crate) fn trace(id: TraceId, resource_spans: &[ResourceSpans], stats: &ScanStats, status: PartialStatus, message: &str) -> String {
    if resource_spans.is_empty() {
        return "{}".into();
    }
    let services: Vec<Json> = resource_spans.iter().map(service).collect();
    let mut answer = Map::new();
    answer.insert("trace".into(), json!({ "traceId": id.to_string(), "services": services }));
    let metrics = metrics(stats);
    if !metrics.is_empty() {
        answer.insert("metrics".into(), metrics.into());
    }
    answer.insert("status".into(), status.as_str_name().into());
    if !message.is_empty() {
        answer.insert("message".into(), message.into());
    }
    Json::Object(answer).to_string()
}

/// Values by their type.
pub(crate) fn tag_values(values: &[TagValue], stats: &ScanStats) -> String {
    let mut by_type: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for value in values {
        by_type.entry(&value.r#type).or_default().push(&value.value);
    }
    json!({ "tagValues": by_type, "metrics": metrics(stats) }).to_string()
}

fn metrics(stats: &ScanStats) -> Map<String, Json> {
    [("inspectedBytes", stats.bytes), ("backendReads", stats.reads), ("backendBytes", stats.bytes)]
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| (name.to_owned(), count.into()))
        .collect()
}

fn service(resource_spans: &ResourceSpans) -> Json {
    let mut resource = resource_spans.resource.as_ref().map_or_else(Map::new, |resource| flat(&resource.attributes));
    let name = match resource.remove("service.name") {
        Some(Json::String(name)) => name,
        other => other.map_or_else(String::new, |name| name.to_string()),
    };
    let scopes: Vec<Json> = resource_spans
        .scope_spans
        .iter()
        .map(|scope_spans| {
            let (name, version) = scope_spans.scope.as_ref().map_or(("", ""), |scope| (&scope.name, &scope.version));
            let spans: Vec<LlmSpan<'_>> = scope_spans.spans.iter().map(span).collect();
            json!({ "name": name, "version": version, "spans": spans })
        })
        .collect();
    json!({ "serviceName": name, "resource": resource, "scopes": scopes })
}

fn span(span: &Span) -> LlmSpan<'_> {
    let status = span.status.as_ref();
    let code = status.and_then(|status| StatusCode::try_from(status.code).ok()).unwrap_or(StatusCode::Unset);
    LlmSpan {
        span_id: hex(&span.span_id),
        name: &span.name,
        parent_span_id: hex(&span.parent_span_id),
        kind: SpanKind::try_from(span.kind).ok().filter(|kind| *kind != SpanKind::Unspecified).map(|kind| kind.as_str_name()),
        start_time_unix_nano: span.start_time_unix_nano.to_string(),
        end_time_unix_nano: span.end_time_unix_nano.to_string(),
        duration_ms: span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano) as f64 / 1e6,
        attributes: flat(&span.attributes),
        events: span
            .events
            .iter()
            .map(|event| json!({ "name": event.name, "timeUnixNano": event.time_unix_nano.to_string(), "attributes": flat(&event.attributes) }))
            .collect(),
        links: span
            .links
            .iter()
            .map(|link| json!({ "traceId": hex(&link.trace_id), "spanId": hex(&link.span_id), "attributes": flat(&link.attributes) }))
            .collect(),
        status: json!({ "code": code.as_str_name(), "message": status.map_or("", |status| status.message.as_str()) }),
    }
}

/// Attributes as one object, with JSON's own types.
pub(crate) fn flat(attributes: &[KeyValue]) -> Map<String, Json> {
    attributes.iter().map(|attribute| (attribute.key.clone(), attribute.value.as_ref().map_or(Json::Null, native))).collect()
}

fn native(value: &AnyValue) -> Json {
    match &value.value {
        None => Json::Null,
        Some(Value::StringValue(text)) => text.as_str().into(),
        Some(Value::BoolValue(value)) => (*value).into(),
        Some(Value::IntValue(value)) => (*value).into(),
        Some(Value::DoubleValue(value)) => Number::from_f64(*value).map_or_else(|| value.to_string().into(), Json::Number),
        Some(Value::ArrayValue(array)) => array.values.iter().map(native).collect(),
        Some(Value::KvlistValue(list)) => flat(&list.values).into(),
        Some(Value::BytesValue(bytes)) => hex(bytes).into(),
        Some(Value::StringValueStrindex(index)) => (*index).into(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
