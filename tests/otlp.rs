//! OTLP requests for tests: the recorded datasets, and a canonical form in which two traces can be compared.

use std::collections::HashMap;
use std::io::{BufReader, Read};

use prost::Message;
use prost::bytes::Bytes;
use skein_proto::otlp::collector::trace::v1::ExportTraceServiceRequest;
use skein_proto::otlp::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value};
use skein_proto::otlp::resource::v1::Resource;
use skein_proto::otlp::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};

use crate::harness;

pub type TraceId = [u8; 16];

pub const DATASETS: [&str; 6] = ["nodedb", "genai", "shellci", "trainticket", "deathstar", "onlineboutique"];

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads a trace id as the APIs write it: leading zeros may be missing.
pub fn trace_id(text: &str) -> TraceId {
    u128::from_str_radix(text, 16).unwrap_or_else(|_| panic!("not a trace id: {text}")).to_be_bytes()
}

/// The messages of one dataset, in order: a zstd stream of messages, each after its length in four bytes, big-endian.
pub struct Messages {
    stream: Box<dyn Read + Send>,
}

impl Messages {
    pub fn open(dataset: &str) -> Self {
        let path = harness::tests_dir().join(format!("data/{dataset}.otlp.zst"));
        let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { stream: Box::new(BufReader::with_capacity(1 << 20, zstd::Decoder::new(file).unwrap())) }
    }
}

impl Iterator for Messages {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut length = [0; 4];
        match self.stream.read_exact(&mut length) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return None,
            read => read.unwrap(),
        }
        let mut message = vec![0; u32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut message).unwrap();
        Some(message.into())
    }
}

/// The requests of one dataset.
pub fn requests(dataset: &str) -> impl Iterator<Item = ExportTraceServiceRequest> {
    Messages::open(dataset).map(|message| ExportTraceServiceRequest::decode(message).unwrap())
}

pub fn of_value(value: Value) -> AnyValue {
    AnyValue { value: Some(value) }
}

pub fn text(value: &str) -> Value {
    Value::StringValue(value.to_owned())
}

pub fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(of_value(value)), ..Default::default() }
}

/// A request of one resource and one scope.
pub fn request(service: &str, spans: Vec<Span>) -> ExportTraceServiceRequest {
    let resource = Resource { attributes: vec![attribute("service.name", text(service))], ..Default::default() };
    let scope = InstrumentationScope { name: "tests".to_owned(), ..Default::default() };
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, ..Default::default() }];
    ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { resource: Some(resource), scope_spans, ..Default::default() }] }
}

/// A plain span.
pub fn span(trace: TraceId, id: u64, parent: u64, name: &str, start: u64, duration: u64) -> Span {
    Span {
        trace_id: trace.to_vec(),
        span_id: id.to_be_bytes().to_vec(),
        parent_span_id: if parent == 0 { Vec::new() } else { parent.to_be_bytes().to_vec() },
        name: name.to_owned(),
        kind: 1,
        start_time_unix_nano: start,
        end_time_unix_nano: start + duration,
        ..Default::default()
    }
}

/// A span with the resource and the scope it came with, every choice of encoding settled: attributes, events and links are sorted; an absent
/// resource, scope, status or value is an empty one. The values themselves, and lists inside values, stay as they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Canonical(pub ResourceSpans);

impl Canonical {
    pub fn span(&self) -> &Span {
        &self.0.scope_spans[0].spans[0]
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.0.encode_to_vec()
    }
}

/// All spans in canonical form, sorted by it.
pub fn canonical(resource_spans: &[ResourceSpans]) -> Vec<Canonical> {
    let mut all = Vec::new();
    for of_resource in resource_spans {
        let mut resource = of_resource.resource.clone().unwrap_or_default();
        settle(&mut resource.attributes);
        for of_scope in &of_resource.scope_spans {
            let mut scope = of_scope.scope.clone().unwrap_or_default();
            settle(&mut scope.attributes);
            for span in &of_scope.spans {
                all.push(Canonical(ResourceSpans {
                    resource: Some(resource.clone()),
                    schema_url: of_resource.schema_url.clone(),
                    scope_spans: vec![ScopeSpans {
                        scope: Some(scope.clone()),
                        schema_url: of_scope.schema_url.clone(),
                        spans: vec![settled_span(span.clone())],
                    }],
                }));
            }
        }
    }
    all.sort_by_cached_key(Canonical::bytes);
    all
}

fn settled_span(mut span: Span) -> Span {
    settle(&mut span.attributes);
    span.status.get_or_insert_with(Status::default);
    for event in &mut span.events {
        settle(&mut event.attributes);
    }
    for link in &mut span.links {
        settle(&mut link.attributes);
    }
    span.events.sort_by_cached_key(Message::encode_to_vec);
    span.links.sort_by_cached_key(Message::encode_to_vec);
    span
}

fn settle(attributes: &mut [KeyValue]) {
    for attribute in attributes.iter_mut() {
        settle_value(attribute.value.get_or_insert_with(AnyValue::default));
    }
    attributes.sort_by_cached_key(Message::encode_to_vec);
}

fn settle_value(value: &mut AnyValue) {
    match &mut value.value {
        Some(Value::ArrayValue(array)) => array.values.iter_mut().for_each(settle_value),
        Some(Value::KvlistValue(list)) => list.values.iter_mut().for_each(|entry| settle_value(entry.value.get_or_insert_with(AnyValue::default))),
        _ => {}
    }
}

/// Fails with the spans that differ.
pub fn assert_same(what: &str, sent: &[ResourceSpans], returned: &[ResourceSpans]) {
    if let Some(difference) = difference(&canonical(sent), &canonical(returned)) {
        panic!("{what}: {difference}");
    }
}

/// What two sorted lists of spans do not share.
pub fn difference(sent: &[Canonical], returned: &[Canonical]) -> Option<String> {
    // By bytes, so that NaN equals itself.
    let count = |spans: &[Canonical]| {
        let mut counts = HashMap::<Vec<u8>, usize>::new();
        spans.iter().for_each(|span| *counts.entry(span.bytes()).or_default() += 1);
        counts
    };
    let (in_sent, in_returned) = (count(sent), count(returned));
    let only = |spans: &[Canonical], other: &HashMap<Vec<u8>, usize>, own: &HashMap<Vec<u8>, usize>| -> Vec<String> {
        let differs = |span: &&Canonical| own[&span.bytes()] != other.get(&span.bytes()).copied().unwrap_or(0);
        spans.iter().filter(differs).take(3).map(|span| format!("{:#?}", span.0)).collect()
    };
    let (lost, added) = (only(sent, &in_returned, &in_sent), only(returned, &in_sent, &in_returned));
    (!lost.is_empty() || !added.is_empty())
        .then(|| format!("{} spans sent, {} returned\nsent:\n{}\nreturned:\n{}", sent.len(), returned.len(), lost.join("\n"), added.join("\n")))
}

/// Digests of the spans of every trace of a dataset, sorted: small enough to hold for all.
pub fn digests(dataset: &str) -> HashMap<TraceId, Vec<u64>> {
    let mut traces = HashMap::<TraceId, Vec<u64>>::new();
    for request in requests(dataset) {
        for span in canonical(&request.resource_spans) {
            let id = span.span().trace_id.as_slice().try_into().unwrap();
            traces.entry(id).or_default().push(digest(&span));
        }
    }
    traces.values_mut().for_each(|spans| spans.sort_unstable());
    traces
}

pub fn digest(span: &Canonical) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    hasher.write(&span.bytes());
    hasher.finish()
}

/// The text value of a resource attribute.
pub fn resource_text<'a>(resource_spans: &'a ResourceSpans, key: &str) -> &'a str {
    let attributes = resource_spans.resource.as_ref().map(|resource| resource.attributes.as_slice()).unwrap_or_default();
    attributes
        .iter()
        .find(|attribute| attribute.key == key)
        .and_then(|attribute| match &attribute.value.as_ref()?.value {
            Some(Value::StringValue(text)) => Some(text.as_str()),
            _ => None,
        })
        .unwrap_or("")
}
