//! `skein query`: a TraceQL search, as a table, JSON or Arrow.

use std::{io::Write, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use arrow::{
    array::{ArrayRef, BooleanArray, FixedSizeBinaryArray, Float64Array, Int64Array, StringArray, UInt64Array},
    datatypes::{DataType, Field, Schema},
    ipc::writer::StreamWriter,
    record_batch::RecordBatch,
};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use serde_json::Value;
use skein_engine::{
    clock::{Clock, SystemClock, parse_duration, parse_rfc3339},
    error::{Error, Result},
    spans::TraceId,
};

use super::{
    http::Api,
    table::{self, Align},
};

/// Arguments of `skein query`.
#[derive(Args)]
pub struct Arguments {
    /// The TraceQL query, such as '{ status = error && duration > 1s }'.
    query: String,
    /// The server.
    #[arg(long, default_value = "http://127.0.0.1:3200")]
    url: String,
    /// Sent as X-Scope-OrgID.
    #[arg(long)]
    tenant: Option<String>,
    /// First time: Unix seconds, RFC 3339, or an age such as 1h. Default: the beginning of time.
    #[arg(long)]
    start: Option<String>,
    /// Last time, in the same forms. Default: in an hour.
    #[arg(long)]
    end: Option<String>,
    /// Most traces.
    #[arg(long)]
    limit: Option<u32>,
    /// Most spans per spanset.
    #[arg(long)]
    spss: Option<u32>,
    /// How to show the answer.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Show the plan instead of the answer: what is looked for, then how; `--explain=analyze` runs it and shows what each node read.
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "plan")]
    explain: Option<Explain>,
    /// Write to a file instead of the terminal.
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// How an answer is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Rows for reading.
    #[default]
    Table,
    /// What the server answered.
    Json,
    /// An Arrow IPC stream, a row per matched span.
    Arrow,
}

/// How a plan is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Explain {
    /// As it would run.
    Plan,
    /// As it ran, with figures.
    Analyze,
}

/// A search over a window in Unix seconds.
#[derive(Debug, Clone, Default)]
pub struct Search {
    /// TraceQL.
    pub query: String,
    /// First and last second.
    pub window: (u64, u64),
    /// Most traces; the server's default when None.
    pub limit: Option<u32>,
    /// Most spans per spanset; the server's default when None.
    pub spans_per_spanset: Option<u32>,
}

impl Search {
    /// A search over all time.
    pub fn everywhere(query: impl Into<String>) -> Self {
        Self { query: query.into(), window: (EPOCH, now_seconds() + AN_HOUR), limit: None, spans_per_spanset: None }
    }

    /// Asks `api`; the answer as JSON.
    pub async fn ask(&self, api: &Api) -> Result<Bytes> {
        api.get("/api/search", &self.parameters(), "application/json").await
    }

    /// Asks `api` for the plan.
    async fn explain(&self, api: &Api, how: Explain) -> Result<Bytes> {
        let mut parameters = self.parameters();
        parameters.push(("explain", if how == Explain::Analyze { "analyze" } else { "plan" }.to_owned()));
        api.get("/api/search", &parameters, "text/plain").await
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        let (start, end) = self.window;
        let mut parameters = vec![("q", self.query.clone()), ("start", start.to_string()), ("end", end.to_string())];
        parameters.extend(self.limit.map(|limit| ("limit", limit.to_string())));
        parameters.extend(self.spans_per_spanset.map(|spans| ("spss", spans.to_string())));
        parameters
    }
}

/// The second after the epoch: the API takes 0 for no start.
const EPOCH: u64 = 1;
const AN_HOUR: u64 = 3_600;

fn now_seconds() -> u64 {
    SystemClock.now_unix_nano() / 1_000_000_000
}

/// Runs the search and shows the answer.
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let api = Api::new(&arguments.url, arguments.tenant)?;
    let now = now_seconds();
    let time = |text: &Option<String>, default| text.as_deref().map_or(Ok(default), |text| parse_time(text, now));
    let search = Search {
        window: (time(&arguments.start, EPOCH)?, time(&arguments.end, now + AN_HOUR)?),
        query: arguments.query,
        limit: arguments.limit,
        spans_per_spanset: arguments.spss,
    };
    if let Some(how) = arguments.explain {
        return show(arguments.output, &search.explain(&api, how).await?);
    }
    let body = search.ask(&api).await?;
    let parse = || serde_json::from_slice::<Value>(&body).map_err(|error| Error::data("reading the server's answer").with_source(error));
    let shown = match arguments.format {
        Format::Json => {
            let mut json = body.to_vec();
            json.push(b'\n');
            json
        }
        Format::Table => render(&parse()?, table::width()).into_bytes(),
        Format::Arrow => to_arrow_stream(&spans_of(&parse()?))?,
    };
    show(arguments.output, &shown)
}

/// Writes to a file, or to the terminal.
fn show(output: Option<PathBuf>, shown: &[u8]) -> Result<ExitCode> {
    let doing = "writing the answer";
    match output {
        Some(path) => {
            std::fs::write(&path, shown).map_err(|error| Error::unavailable(format!("{doing} to {}", path.display())).with_source(error))?
        }
        None => match std::io::stdout().write_all(shown) {
            // Whoever read has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            result => result.map_err(|error| Error::unavailable(doing).with_source(error))?,
        },
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads Unix seconds, RFC 3339, `now`, or an age, to Unix seconds.
fn parse_time(text: &str, now: u64) -> Result<u64> {
    if text == "now" {
        return Ok(now);
    }
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    if let Some(nanos) = parse_rfc3339(text) {
        return Ok(nanos / 1_000_000_000);
    }
    let age = parse_duration(text.trim_start_matches('-'));
    age.map(|age| now.saturating_sub(age.as_secs()))
        .ok_or_else(|| Error::invalid(format!("time '{text}': expected Unix seconds, RFC 3339 such as 2026-01-31T12:00:00Z, or an age such as 1h")))
}

/// One matched span of an answer.
#[derive(Debug, Clone, Default, PartialEq)]
struct MatchedSpan {
    trace_id: String,
    root_service: String,
    root_name: String,
    trace_start_unix_nano: u64,
    trace_duration_ms: u64,
    span_id: String,
    name: Option<String>,
    start_unix_nano: u64,
    duration_nanos: u64,
    attributes: Vec<(String, Value)>,
}

/// The spans of every spanset of every trace; a trace without spansets (a tag search) is one row without a span id.
fn spans_of(answer: &Value) -> Vec<MatchedSpan> {
    let mut found = Vec::new();
    for trace in list(answer, "traces") {
        let of_trace = MatchedSpan {
            trace_id: text(trace, "traceID"),
            root_service: text(trace, "rootServiceName"),
            root_name: text(trace, "rootTraceName"),
            trace_start_unix_nano: number(trace, "startTimeUnixNano"),
            trace_duration_ms: number(trace, "durationMs"),
            ..MatchedSpan::default()
        };
        let before = found.len();
        for span in list(trace, "spanSets").iter().flat_map(|set| list(set, "spans")) {
            found.push(MatchedSpan {
                span_id: text(span, "spanID"),
                name: span.get("name").and_then(Value::as_str).map(str::to_owned),
                start_unix_nano: number(span, "startTimeUnixNano"),
                duration_nanos: number(span, "durationNanos"),
                attributes: attributes_of(span),
                ..of_trace.clone()
            });
        }
        if found.len() == before {
            found.push(of_trace);
        }
    }
    found
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// A number of protobuf's JSON: 64-bit ones are text.
fn number(value: &Value, key: &str) -> u64 {
    match value.get(key) {
        Some(Value::String(text)) => text.parse().unwrap_or(0),
        Some(value) => value.as_u64().unwrap_or(0),
        None => 0,
    }
}

/// Attributes with plain values.
fn attributes_of(span: &Value) -> Vec<(String, Value)> {
    list(span, "attributes").iter().map(|attribute| (text(attribute, "key"), plain(attribute.get("value").unwrap_or(&Value::Null)))).collect()
}

/// The value of an `AnyValue` without its type.
fn plain(value: &Value) -> Value {
    let Some((kind, value)) = value.as_object().and_then(|object| object.iter().next()) else { return Value::Null };
    match (kind.as_str(), value) {
        ("intValue", Value::String(text)) => text.parse::<i64>().map_or(Value::Null, Value::from),
        ("arrayValue", value) => list(value, "values").iter().map(plain).collect(),
        ("kvlistValue", value) => {
            list(value, "values").iter().map(|entry| (text(entry, "key"), plain(entry.get("value").unwrap_or(&Value::Null)))).collect()
        }
        (_, value) => value.clone(),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The answer as a table: a row per trace, and below it its matched spans.
pub fn render(answer: &Value, width: usize) -> String {
    let traces = list(answer, "traces");
    let heading = [
        ("trace", Align::Left),
        ("root service", Align::Left),
        ("root", Align::Left),
        ("start (UTC)", Align::Left),
        ("duration", Align::Right),
        ("matched", Align::Right),
        ("matching spans", Align::Left),
    ];
    let mut rows = Vec::new();
    for trace in traces {
        let spansets = list(trace, "spanSets");
        let matched: u64 = spansets.iter().map(|set| number(set, "matched")).sum();
        let mut spans = spansets.iter().flat_map(|set| list(set, "spans")).map(|span| {
            let name = span.get("name").and_then(Value::as_str).map(|name| format!("{name} ")).unwrap_or_default();
            let duration = table::duration(Duration::from_nanos(number(span, "durationNanos")));
            let attributes: String = attributes_of(span).iter().map(|(key, value)| format!(" {key}={}", shown(value))).collect();
            format!("{name}{duration}{attributes}")
        });
        rows.push(vec![
            text(trace, "traceID"),
            table::shortened(&text(trace, "rootServiceName"), 28),
            table::shortened(&text(trace, "rootTraceName"), 36),
            table::time(number(trace, "startTimeUnixNano")),
            table::duration(Duration::from_millis(number(trace, "durationMs"))),
            table::grouped(matched),
            spans.next().unwrap_or_default(),
        ]);
        rows.extend(spans.map(|span| {
            let mut row = vec![String::new(); heading.len() - 1];
            row.push(span);
            row
        }));
    }
    let metrics = answer.get("metrics").unwrap_or(&Value::Null);
    let mut out = if traces.is_empty() { String::new() } else { table::render(&heading, &rows, width) };
    let plural = if traces.len() == 1 { "" } else { "s" };
    out.push_str(&format!(
        "{} trace{plural}; looked at {} spans, {}\n",
        table::grouped(traces.len() as u64),
        table::grouped(number(metrics, "inspectedSpans")),
        table::bytes(number(metrics, "inspectedBytes")),
    ));
    out
}

/// A column per field and per attribute key; an attribute's column has the type of its values, or text when they differ.
fn to_arrow_stream(spans: &[MatchedSpan]) -> Result<Vec<u8>> {
    let failed = |error: arrow::error::ArrowError| Error::from(error).context("writing Arrow");
    let mut fields: Vec<Field> = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    let mut add = |name: &str, array: ArrayRef| {
        fields.push(Field::new(name, array.data_type().clone(), true));
        columns.push(array);
    };
    let ids = spans.iter().map(|span| TraceId::parse_hex(&span.trace_id).map(|id| id.0)).collect::<Result<Vec<_>>>()?;
    add("trace_id", Arc::new(FixedSizeBinaryArray::try_from_iter(ids.into_iter()).unwrap_or_else(|_| FixedSizeBinaryArray::new_null(16, 0))));
    add("root_service_name", Arc::new(StringArray::from_iter_values(spans.iter().map(|span| &span.root_service))));
    add("root_trace_name", Arc::new(StringArray::from_iter_values(spans.iter().map(|span| &span.root_name))));
    add("trace_start_unix_nano", Arc::new(UInt64Array::from_iter_values(spans.iter().map(|span| span.trace_start_unix_nano))));
    add("trace_duration_ms", Arc::new(UInt64Array::from_iter_values(spans.iter().map(|span| span.trace_duration_ms))));
    add("span_id", Arc::new(StringArray::from_iter_values(spans.iter().map(|span| &span.span_id))));
    add("name", Arc::new(spans.iter().map(|span| span.name.as_deref()).collect::<StringArray>()));
    add("start_unix_nano", Arc::new(UInt64Array::from_iter_values(spans.iter().map(|span| span.start_unix_nano))));
    add("duration_nanos", Arc::new(UInt64Array::from_iter_values(spans.iter().map(|span| span.duration_nanos))));
    let keys: std::collections::BTreeSet<&str> = spans.iter().flat_map(|span| &span.attributes).map(|(key, _)| key.as_str()).collect();
    for key in keys {
        let values: Vec<Option<&Value>> =
            spans.iter().map(|span| span.attributes.iter().find(|(name, _)| name == key).map(|(_, value)| value)).collect();
        add(&format!("attributes.{key}"), attribute_column(&values));
    }
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(failed)?;
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).map_err(failed)?;
    writer.write(&batch).map_err(failed)?;
    writer.into_inner().map_err(failed)
}

fn attribute_column(values: &[Option<&Value>]) -> ArrayRef {
    let all = |fits: fn(&Value) -> bool| values.iter().flatten().all(|value| fits(value));
    let data_type = if all(Value::is_i64) {
        DataType::Int64
    } else if all(Value::is_number) {
        DataType::Float64
    } else if all(Value::is_boolean) {
        DataType::Boolean
    } else {
        DataType::Utf8
    };
    let present = values.iter().copied();
    match data_type {
        DataType::Int64 => Arc::new(present.map(|value| value.and_then(Value::as_i64)).collect::<Int64Array>()),
        DataType::Float64 => Arc::new(present.map(|value| value.and_then(Value::as_f64)).collect::<Float64Array>()),
        DataType::Boolean => Arc::new(present.map(|value| value.and_then(Value::as_bool)).collect::<BooleanArray>()),
        _ => Arc::new(present.map(|value| value.map(shown)).collect::<StringArray>()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use arrow::{array::AsArray, ipc::reader::StreamReader};
    use serde_json::json;

    use super::*;

    fn answer() -> Value {
        json!({
            "traces": [{
                "traceID": "2f3e0cee77ae5dc9c17ade3689eb2e54", "rootServiceName": "shop", "rootTraceName": "GET /cart",
                "startTimeUnixNano": "1661140300123456789", "durationMs": 557,
                "spanSets": [{ "matched": 5, "spans": [
                    { "spanID": "563d623c76514f8e", "name": "pay", "startTimeUnixNano": "1661140300123456789", "durationNanos": "1500000",
                      "attributes": [{ "key": "n", "value": { "intValue": "7" } }, { "key": "mixed", "value": { "stringValue": "x" } }] },
                    { "spanID": "0000000000000001", "startTimeUnixNano": "1", "durationNanos": "2",
                      "attributes": [{ "key": "mixed", "value": { "doubleValue": 1.5 } }] },
                ]}],
            }],
            "metrics": { "inspectedSpans": "1234", "inspectedBytes": "99" },
        })
    }

    #[test]
    fn a_table_has_a_row_per_matched_span() {
        let text = render(&answer(), 200);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        for part in ["2f3e0cee77ae5dc9c17ade3689eb2e54", "shop", "GET /cart", "2022-08-22 03:51:40.123", "557.0 ms", "5", "pay 1.5 ms n=7 mixed=x"] {
            assert!(lines[1].contains(part), "{part} in {}", lines[1]);
        }
        assert_eq!(lines[2].trim(), "2 ns mixed=1.5");
        assert_eq!(lines[3], "1 trace; looked at 1,234 spans, 99 B");
        assert_eq!(render(&json!({"traces": [], "metrics": {}}), 80), "0 traces; looked at 0 spans, 0 B\n");
    }

    #[test]
    fn arrow_has_typed_attribute_columns() {
        let stream = to_arrow_stream(&spans_of(&answer())).unwrap();
        let batch = StreamReader::try_new(stream.as_slice(), None).unwrap().next().unwrap().unwrap();
        assert_eq!(batch.num_rows(), 2);
        let n = batch.column_by_name("attributes.n").unwrap().as_primitive::<arrow::datatypes::Int64Type>();
        assert_eq!(n.iter().collect::<Vec<_>>(), [Some(7), None]);
        let mixed = batch.column_by_name("attributes.mixed").unwrap().as_string::<i32>();
        assert_eq!(mixed.iter().collect::<Vec<_>>(), [Some("x"), Some("1.5")]);
        assert_eq!(batch.column_by_name("trace_id").unwrap().as_fixed_size_binary().value(0)[..2], [0x2f, 0x3e]);
        let empty = to_arrow_stream(&[]).unwrap();
        assert_eq!(StreamReader::try_new(empty.as_slice(), None).unwrap().next().unwrap().unwrap().num_rows(), 0);
    }

    #[test]
    fn times_are_read_in_every_form() {
        let check = |text: &str, expected: u64| assert_eq!(parse_time(text, 10_000).unwrap(), expected, "{text}");
        check("1661140300", 1_661_140_300);
        check("2022-08-22T03:51:40Z", 1_661_140_300);
        check("1h", 6_400);
        check("-30s", 9_970);
        check("now", 10_000);
        assert!(parse_time("yesterday", 10_000).is_err());
    }
}
