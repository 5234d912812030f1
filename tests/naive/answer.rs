//! The answer to a search, from the evaluator and from an engine, in one form that can be compared and read.

use std::collections::BTreeMap;

use skein_engine::error::{Error, ErrorKind};
use skein_engine::query::{SearchRequest, SearchResult, Window};
use skein_engine::traceql::{FieldRef, Intrinsic, Pipeline};
use skein_proto::otlp::common::v1::{AnyValue, KeyValue, any_value};
use skein_proto::tempo;

use super::fields::{Failure, some_part_fails};
use super::pipeline::{Spanset, run};
use super::shown::{Look, has_a_place_of_its_own, looks, shown};
use super::structure::{Trace, service};

const NO_ROOT: &str = "<root span not yet received>";

#[derive(Clone, Debug, PartialEq)]
pub struct TraceAnswer {
    id: String,
    root_service: String,
    root_name: String,
    start: u64,
    duration_ms: u32,
    /// Spans and errors.
    services: BTreeMap<String, (u32, u32)>,
    spansets: Vec<SpansetAnswer>,
}

#[derive(Clone, Debug, PartialEq)]
struct SpansetAnswer {
    /// Key and value, in order.
    attributes: Vec<(String, String)>,
    matched: u32,
    spans: Vec<SpanAnswer>,
}

#[derive(Clone, Debug, PartialEq)]
struct SpanAnswer {
    id: String,
    name: String,
    start: u64,
    duration: u64,
    /// Key and value, sorted.
    attributes: Vec<(String, String)>,
}

/// What the specification has an engine answer.
pub struct Expected {
    /// The matching traces, newest first, `limit` or not; those on which the query fails are marked.
    traces: Vec<Result<TraceAnswer, Failure>>,
    limit: usize,
    /// Whether an engine may fail: some part of the query fails on some span, needed or not.
    may_fail: bool,
}

impl Expected {
    pub fn new(pipeline: &Pipeline, request: &SearchRequest, traces: &[Trace<'_>]) -> Self {
        let looks = looks(pipeline);
        let found = traces.iter().filter(|trace| overlaps(trace, request.window)).filter_map(|trace| match run(pipeline, trace) {
            Ok(spansets) if spansets.is_empty() => None,
            Ok(spansets) => Some(Ok(answer_of(trace, &spansets, &looks, request.spans_per_spanset))),
            Err(failure) => Some(Err(failure)),
        });
        Self { traces: found.collect(), limit: request.limit, may_fail: may_fail(pipeline, traces) }
    }

    /// Whether `answer` is right. Where only some part of the query fails, or only on traces that the limit leaves out, failing is right too.
    pub fn allows(&self, outcome: &Outcome) -> bool {
        match (self.answer(), outcome) {
            (Some(expected), Outcome::Traces(traces)) => expected == *traces,
            (None, Outcome::Traces(_)) | (_, Outcome::Broken(_)) => false,
            (None, Outcome::Refused(_)) => true,
            (Some(_), Outcome::Refused(_)) => self.may_fail,
        }
    }

    /// Whether some of the spans are found, not all.
    pub fn is_selective(&self, spans: usize) -> bool {
        let found: u32 = self.traces.iter().flatten().flat_map(TraceAnswer::matched).sum();
        found > 0 && (found as usize) < spans
    }

    /// Whether an engine may fail: some part of the query fails on some span, needed or not.
    pub fn may_fail(&self) -> bool {
        self.may_fail
    }

    /// The traces of the answer, if no failure has to be met on the way.
    pub fn answer(&self) -> Option<Vec<TraceAnswer>> {
        self.traces.iter().take(self.limit).cloned().collect::<Result<_, _>>().ok()
    }
}

/// Both ends of the window count.
fn overlaps(trace: &Trace<'_>, window: Option<Window>) -> bool {
    const SECOND: u64 = 1_000_000_000;
    window.is_none_or(|window| trace.start() <= u64::from(window.end_seconds) * SECOND && trace.end() >= u64::from(window.start_seconds) * SECOND)
}

/// Whether some part of `pipeline` fails on some span, needed or not.
pub fn may_fail(pipeline: &Pipeline, traces: &[Trace<'_>]) -> bool {
    let mut exprs = Vec::new();
    super::queries::expressions(pipeline, &mut exprs);
    let on_some_span = exprs.iter().any(|expr| traces.iter().any(|trace| (0..trace.nodes.len()).any(|at| some_part_fails(expr, trace, at))));
    on_some_span || super::queries::relates_groups(pipeline)
}

fn answer_of(trace: &Trace<'_>, spansets: &[Spanset], looks: &[Look<'_>], most: usize) -> TraceAnswer {
    let mut services = BTreeMap::<String, (u32, u32)>::new();
    for node in &trace.nodes {
        let entry = services.entry(service(node.span)).or_default();
        entry.0 += 1;
        entry.1 += u32::from(matches!(node.span.status, Some((2, _))));
    }
    TraceAnswer {
        id: super::fields::short_hex(trace.id),
        root_service: trace.root().map_or(NO_ROOT.to_owned(), service),
        root_name: trace.root().map_or("", |root| &root.name).to_owned(),
        start: trace.start(),
        duration_ms: u32::try_from(trace.duration() / 1_000_000).unwrap_or(u32::MAX),
        services,
        spansets: spansets.iter().map(|spanset| spanset_answer(trace, spanset, looks, most)).collect(),
    }
}

fn spanset_answer(trace: &Trace<'_>, spanset: &Spanset, looks: &[Look<'_>], most: usize) -> SpansetAnswer {
    SpansetAnswer {
        attributes: spanset.attributes.iter().map(|(key, value)| (key.clone(), value.shown())).collect(),
        matched: spanset.spans.len() as u32,
        spans: spanset.spans.iter().take(most).map(|at| span_answer(trace, *at, looks)).collect(),
    }
}

fn span_answer(trace: &Trace<'_>, at: usize, looks: &[Look<'_>]) -> SpanAnswer {
    let span = trace.nodes[at].span;
    let mut fields: Vec<&FieldRef> = Vec::new();
    for look in looks.iter().filter(|look| !has_a_place_of_its_own(look.field)) {
        if !fields.contains(&look.field) {
            fields.push(look.field);
        }
    }
    let mut attributes: Vec<(String, String)> =
        fields.into_iter().filter_map(|field| Some((field.attribute_key().to_owned(), shown(field, looks, trace, at)?.shown()))).collect();
    attributes.sort();
    attributes.dedup();
    let name = shown(&FieldRef::Intrinsic(Intrinsic::Name), looks, trace, at);
    SpanAnswer {
        id: format!("{:016x}", span.id),
        name: name.map(|_| span.name.clone()).unwrap_or_default(),
        start: span.start,
        duration: span.end.saturating_sub(span.start),
        attributes,
    }
}

impl TraceAnswer {
    /// How many spans each spanset has.
    pub fn matched(&self) -> impl Iterator<Item = u32> {
        self.spansets.iter().map(|spanset| spanset.matched)
    }
}

/// What came of asking an engine.
#[derive(Clone, Debug)]
pub enum Outcome {
    Traces(Vec<TraceAnswer>),
    /// The query is the user's mistake on these spans.
    Refused(String),
    /// Another error, or a panic.
    Broken(String),
}

impl Outcome {
    pub fn new(result: Result<SearchResult, Error>) -> Self {
        match result {
            Ok(result) => Self::Traces(result.traces.into_iter().map(of_trace).collect()),
            Err(error) if error.kind() == ErrorKind::Invalid => Self::Refused(error.to_string()),
            Err(error) => Self::Broken(format!("{:?}: {error}", error.kind())),
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Traces(traces) => f.write_str(&listed(traces)),
            Self::Refused(message) => writeln!(f, "    refused: {message}"),
            Self::Broken(message) => writeln!(f, "    broken: {message}"),
        }
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.answer() {
            Some(traces) => f.write_str(&listed(&traces))?,
            None => writeln!(f, "    an error")?,
        }
        if self.may_fail { writeln!(f, "    (an error is allowed)") } else { Ok(()) }
    }
}

fn of_trace(trace: tempo::TraceSearchMetadata) -> TraceAnswer {
    TraceAnswer {
        id: trace.trace_id,
        root_service: trace.root_service_name,
        root_name: trace.root_trace_name,
        start: trace.start_time_unix_nano,
        duration_ms: trace.duration_ms,
        services: trace.service_stats.into_iter().map(|(name, stats)| (name, (stats.span_count, stats.error_count))).collect(),
        spansets: trace
            .span_sets
            .into_iter()
            .map(|spanset| SpansetAnswer {
                attributes: spanset.attributes.into_iter().map(of_key_value).collect(),
                matched: spanset.matched,
                spans: spanset.spans.into_iter().map(of_span).collect(),
            })
            .collect(),
    }
}

fn of_span(span: tempo::Span) -> SpanAnswer {
    let mut attributes: Vec<(String, String)> = span.attributes.into_iter().map(of_key_value).collect();
    attributes.sort();
    SpanAnswer { id: span.span_id, name: span.name, start: span.start_time_unix_nano, duration: span.duration_nanos, attributes }
}

/// Key and value, with its type.
pub fn of_key_value(attribute: KeyValue) -> (String, String) {
    (attribute.key, attribute.value.as_ref().map_or_else(|| "no value".to_owned(), of_value))
}

fn of_value(value: &AnyValue) -> String {
    use any_value::Value as Wire;
    match &value.value {
        Some(Wire::StringValue(text)) => format!("text {text}"),
        Some(Wire::IntValue(value)) => format!("int {value}"),
        Some(Wire::DoubleValue(value)) => format!("double {value:?}"),
        Some(Wire::BoolValue(value)) => format!("bool {value}"),
        Some(Wire::ArrayValue(array)) => format!("[{}]", array.values.iter().map(of_value).collect::<Vec<_>>().join(", ")),
        other => format!("{other:?}"),
    }
}

impl std::fmt::Display for TraceAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "trace {} root {:?} {:?} start {} {} ms {:?}",
            self.id, self.root_service, self.root_name, self.start, self.duration_ms, self.services
        )?;
        for spanset in &self.spansets {
            writeln!(f, "    {} spans {:?}", spanset.matched, spanset.attributes)?;
            for span in &spanset.spans {
                writeln!(f, "        {} {:?} start {} for {} {:?}", span.id, span.name, span.start, span.duration, span.attributes)?;
            }
        }
        Ok(())
    }
}

/// Traces for reading.
fn listed(traces: &[TraceAnswer]) -> String {
    if traces.is_empty() {
        return "    no traces\n".to_owned();
    }
    traces.iter().map(|trace| trace.to_string().replace(&"x".repeat(64 << 10), "[64 KiB]")).collect()
}
