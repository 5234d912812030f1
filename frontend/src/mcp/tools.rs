//! The tools: what they are called, what they take, and which request to the query API each becomes.

use axum::{body::Body, http::Request};
use rmcp::model::{JsonObject, Tool, ToolAnnotations};
use serde_json::{Value as Json, json};
use skein_engine::{
    clock::parse_rfc3339,
    error::ErrorKind,
    spans::TraceId,
    traceql::{self, QueryBody},
};

use super::documents::{CONFIG_TOOL, TRACEQL_TOOL, names_of, text_of};
use crate::diff::DiffFormat;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// The window of a query that names none.
const WINDOW_NANOS: u64 = 3600 * NANOS_PER_SECOND;

const SEARCH: &str = "traceql-search";
const INSTANT: &str = "traceql-metrics-instant";
const RANGE: &str = "traceql-metrics-range";

/// What a tool does.
#[derive(Debug, Clone, Copy)]
enum Action {
    Search,
    MetricsInstant,
    MetricsRange,
    Trace,
    Diff,
    Names,
    Values,
    Document,
}

/// One argument; all are texts.
#[derive(Debug)]
struct Argument {
    name: &'static str,
    description: &'static str,
    required: bool,
}

/// One tool.
#[derive(Debug)]
pub(super) struct ToolSpec {
    pub(super) name: &'static str,
    description: &'static str,
    arguments: &'static [Argument],
    action: Action,
    /// Kind, encoding and version of its results.
    result: (&'static str, &'static str, &'static str),
}

/// What a call becomes.
pub(super) enum Call {
    /// A request to the query API.
    Request(Box<Request<Body>>),
    /// A text at hand.
    Document(&'static str),
}

const fn required(name: &'static str, description: &'static str) -> Argument {
    Argument { name, description, required: true }
}

const fn optional(name: &'static str, description: &'static str) -> Argument {
    Argument { name, description, required: false }
}

const START: Argument = optional("start", "Start of the window, RFC 3339; an hour before the end if missing");
const END: Argument = optional("end", "End of the window, RFC 3339; now if missing");

/// All tools.
pub(super) const TOOLS: [ToolSpec; 9] = [
    ToolSpec {
        name: SEARCH,
        description: "Finds traces by a TraceQL query and shows the spans that match. For numbers use the metrics tools, which are cheaper. Read \
                      docs-traceql before writing a query.",
        arguments: &[required("query", "A TraceQL search, such as { status = error && duration > 1s }"), START, END],
        action: Action::Search,
        result: ("search-results", "json", "1"),
    },
    ToolSpec {
        name: INSTANT,
        description: "Computes one value for each series over the whole window from a TraceQL metrics query. Prefer it to traceql-metrics-range unless \
                      the course over time matters.",
        arguments: &[
            required("query", "A TraceQL metrics query, such as { status = error } | count_over_time() by (resource.service.name)"),
            START,
            END,
        ],
        action: Action::MetricsInstant,
        result: ("metrics-instant", "json", "1"),
    },
    ToolSpec {
        name: RANGE,
        description: "Computes values over time, step by step, from a TraceQL metrics query.",
        arguments: &[required("query", "A TraceQL metrics query, such as { kind = server } | rate()"), START, END],
        action: Action::MetricsRange,
        result: ("metrics-range", "json", "1"),
    },
    ToolSpec {
        name: "get-trace",
        description: "Reads all spans of one trace, by service.",
        arguments: &[required("trace_id", "Hexadecimal trace id, such as a search shows it")],
        action: Action::Trace,
        result: ("trace", "json", "2"),
    },
    ToolSpec {
        name: "trace-diff",
        description: "Compares two traces span by span: what came, went, became slower or failed. The composed format has a summary, and the changes of \
                      every span while they are few.",
        arguments: &[
            required("base_trace_id", "Hexadecimal id of the trace that is compared with"),
            required("compare_trace_id", "Hexadecimal id of the trace that is looked at"),
            optional("base_start", "Start of the window in which the base is looked for, RFC 3339; together with base_end"),
            optional("base_end", "End of that window"),
            optional("compare_start", "Start of the window in which the other trace is looked for, RFC 3339; together with compare_end"),
            optional("compare_end", "End of that window"),
            optional("format", "trace-summary-v0-composed (default), trace-summary-v0-native or trace-patch-v0"),
        ],
        action: Action::Diff,
        result: ("trace-diff", "json", "2"),
    },
    ToolSpec {
        name: "get-attribute-names",
        description: "Lists the names of attributes that recent spans have, by scope. Use it before writing queries.",
        arguments: &[optional("scope", "Only this scope: resource, span, event, link, instrumentation or intrinsic")],
        action: Action::Names,
        result: ("attribute-names", "json", "2"),
    },
    ToolSpec {
        name: "get-attribute-values",
        description: "Lists the values that an attribute has on recent spans.",
        arguments: &[
            required("name", "Attribute with its scope, such as resource.service.name or span.http.route, or an intrinsic such as name"),
            optional("filter-query", "Only of spans that pass this filter, such as { resource.service.name = \"cart\" }"),
        ],
        action: Action::Values,
        result: ("attribute-values", "json", "2"),
    },
    ToolSpec {
        name: TRACEQL_TOOL,
        description: "Documentation of TraceQL: basic (fields and operators), aggregates (groups of spans), structural (parents and children), metrics \
                      (numbers).",
        arguments: &[required("name", "basic, aggregates, structural or metrics")],
        action: Action::Document,
        result: ("documentation", "markdown", "1"),
    },
    ToolSpec {
        name: CONFIG_TOOL,
        description: "Documentation of the server's configuration: config-overview, config-reference.",
        arguments: &[required("name", "config-overview or config-reference")],
        action: Action::Document,
        result: ("documentation", "markdown", "1"),
    },
];

/// The texts given for a tool's arguments. Every error names what to change.
struct Given<'a>(&'a JsonObject);

impl<'a> Given<'a> {
    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).and_then(Json::as_str).filter(|text| !text.trim().is_empty())
    }

    fn required(&self, name: &str) -> Result<&'a str, String> {
        self.get(name).ok_or_else(|| format!("argument {name} is required"))
    }

    /// A time in Unix nanoseconds.
    fn time(&self, name: &str, shown: &str) -> Result<Option<u64>, String> {
        let parse =
            |text: &str| parse_rfc3339(text).ok_or_else(|| format!("invalid {shown} time: {text:?} is not RFC 3339, as 2026-01-31T12:00:00Z is"));
        self.get(name).map(parse).transpose()
    }

    /// The window, in Unix nanoseconds.
    fn window(&self, now_unix_nano: u64) -> Result<(u64, u64), String> {
        let end = self.time("end", "end")?.unwrap_or(now_unix_nano);
        let start = self.time("start", "start")?.unwrap_or(end.saturating_sub(WINDOW_NANOS));
        if start < end { Ok((start, end)) } else { Err("invalid start time: start must be before end".to_owned()) }
    }
}

impl ToolSpec {
    /// As clients see it.
    pub(super) fn described(&self) -> Tool {
        let property = |argument: &Argument| {
            let mut schema = json!({ "type": "string", "description": argument.description });
            if matches!(self.action, Action::Document) {
                schema["enum"] = names_of(self.name).collect();
            }
            (argument.name.to_owned(), schema)
        };
        let properties: JsonObject = self.arguments.iter().map(property).collect();
        let required: Vec<Json> = self.arguments.iter().filter(|argument| argument.required).map(|argument| argument.name.into()).collect();
        let mut schema = JsonObject::from_iter([("type".to_owned(), "object".into()), ("properties".to_owned(), properties.into())]);
        if !required.is_empty() {
            schema.insert("required".to_owned(), required.into());
        }
        let annotations = ToolAnnotations::new().read_only(true).destructive(false).open_world(false);
        Tool::new(self.name, self.description, schema).with_annotations(annotations)
    }

    /// `_meta` of its results.
    pub(super) fn meta(&self) -> JsonObject {
        let (kind, encoding, version) = self.result;
        [("type", kind), ("encoding", encoding), ("version", version)].into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect()
    }

    /// The call with `arguments`. Errors: a text for the model, which names the fix.
    pub(super) fn call(&self, arguments: &JsonObject, now_unix_nano: u64) -> Result<Call, String> {
        self.check(arguments)?;
        let given = Given(arguments);
        match self.action {
            Action::Search => {
                self.check_query(given.required("query")?)?;
                let (start, end) = given.window(now_unix_nano)?;
                let (start, end) = (start / NANOS_PER_SECOND, end.div_ceil(NANOS_PER_SECOND));
                get("/api/search", &[("q", given.required("query")?), ("start", &start.to_string()), ("end", &end.to_string())])
            }
            Action::MetricsInstant | Action::MetricsRange => {
                self.check_query(given.required("query")?)?;
                let (start, end) = given.window(now_unix_nano)?;
                let path = if matches!(self.action, Action::MetricsRange) { "/api/metrics/query_range" } else { "/api/metrics/query" };
                get(path, &[("q", given.required("query")?), ("start", &start.to_string()), ("end", &end.to_string())])
            }
            Action::Trace => get(&format!("/api/v2/traces/{}", trace_id(&given, "trace_id")?), &[]),
            Action::Diff => diff(&given),
            Action::Names => {
                let scope = given.get("scope").map(|scope| ("scope", scope));
                get("/api/v2/search/tags", scope.as_slice())
            }
            Action::Values => values(&given),
            Action::Document => {
                let name = given.required("name")?;
                let unknown = || format!("unknown document {name:?}: name must be one of {}", names_of(self.name).collect::<Vec<_>>().join(", "));
                text_of(self.name, name).map(Call::Document).ok_or_else(unknown)
            }
        }
    }

    fn check(&self, arguments: &JsonObject) -> Result<(), String> {
        for (name, value) in arguments {
            if !self.arguments.iter().any(|argument| argument.name == name) {
                let known: Vec<&str> = self.arguments.iter().map(|argument| argument.name).collect();
                return Err(format!("unknown argument {name}: {} takes {}", self.name, known.join(", ")));
            }
            if !value.is_string() && !value.is_null() {
                return Err(format!("argument {name} must be a text"));
            }
        }
        match self.arguments.iter().find(|argument| argument.required && Given(arguments).get(argument.name).is_none()) {
            Some(missing) => Err(format!("argument {} is required: {}", missing.name, missing.description)),
            None => Ok(()),
        }
    }

    /// Refuses a query that does not parse, or that is of the other kind.
    fn check_query(&self, query: &str) -> Result<(), String> {
        let parsed = match traceql::parse(query) {
            Ok(parsed) => parsed,
            Err(error) if error.kind() == ErrorKind::Invalid => {
                return Err(format!("query parse error. Consult TraceQL docs tools: {TRACEQL_TOOL} with name basic. {error}"));
            }
            // Too long, for one: the endpoint says so.
            Err(_) => return Ok(()),
        };
        match (parsed.body, self.action) {
            (QueryBody::Metrics(_), Action::Search) => {
                Err(format!("{SEARCH} takes searches, and this is a TraceQL metrics query: use {INSTANT} or {RANGE}, or leave the function out"))
            }
            (QueryBody::Search(_), Action::MetricsInstant | Action::MetricsRange) => Err(format!(
                "{} takes TraceQL metrics queries, and this is a search: use {SEARCH}, or add a function such as | rate() or | count_over_time()",
                self.name
            )),
            _ => Ok(()),
        }
    }
}

fn trace_id(given: &Given<'_>, name: &str) -> Result<TraceId, String> {
    TraceId::parse_hex(given.required(name)?).map_err(|error| format!("invalid {name}: {error}"))
}

fn diff(given: &Given<'_>) -> Result<Call, String> {
    let side = |side: &str| {
        let id = trace_id(given, &format!("{side}_trace_id"))?;
        let (start, end) = (format!("{side}_start"), format!("{side}_end"));
        let bounds = (given.time(&start, &start)?, given.time(&end, &end)?);
        match bounds {
            (None, None) => Ok(json!({ "traceId": id.to_string() })),
            (Some(start), Some(end)) => {
                Ok(json!({ "traceId": id.to_string(), "start": start / NANOS_PER_SECOND, "end": end.div_ceil(NANOS_PER_SECOND) }))
            }
            _ => Err(format!("{start} and {end} must be given together")),
        }
    };
    let format = given.get("format").unwrap_or(DiffFormat::Composed.name());
    let body = json!({ "base": side("base")?, "compare": side("compare")?, "format": format });
    Request::post("/api/v2/traces/diff")
        .body(Body::from(body.to_string()))
        .map(|request| Call::Request(Box::new(request)))
        .map_err(|error| error.to_string())
}

fn values(given: &Given<'_>) -> Result<Call, String> {
    let filter = given.get("filter-query");
    if let Some(filter) = filter
        && traceql::tag_filter(filter).is_none()
    {
        return Err(format!(
            "filter-query invalid. It must be one filter with conditions on scoped attributes or intrinsics, such as \
             {{ resource.service.name = \"cart\" }}, and {filter:?} has none that can be used"
        ));
    }
    let path = format!("/api/v2/search/tag/{}/values", encoded(given.required("name")?));
    get(&path, filter.map(|filter| ("q", filter)).as_slice())
}

fn get(path: &str, params: &[(&str, &str)]) -> Result<Call, String> {
    let query: Vec<String> = params.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    let uri = if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) };
    // A URI has at most 64 KiB, so that a longer query ends here.
    Request::get(uri)
        .body(Body::empty())
        .map(|request| Call::Request(Box::new(request)))
        .map_err(|error| format!("the arguments are too long: {error}"))
}

/// Percent-encoded: all but letters, digits and `-_.~`.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NOW: u64 = 1_700_000_000_500_000_000;

    fn call(tool: &str, arguments: Json) -> Result<Call, String> {
        TOOLS.iter().find(|spec| spec.name == tool).unwrap().call(arguments.as_object().unwrap(), NOW)
    }

    fn check(tool: &str, arguments: Json, expected: &str) {
        let Ok(Call::Request(request)) = call(tool, arguments) else { panic!("{tool} makes no request") };
        assert_eq!(format!("{} {}", request.method(), request.uri()), expected);
    }

    fn refused(tool: &str, arguments: Json, expected: &str) {
        let Err(text) = call(tool, arguments.clone()) else { panic!("{tool} takes {arguments}") };
        assert!(text.contains(expected), "{tool} {arguments}: {text}");
    }

    #[test]
    fn calls_become_requests() {
        let hour = "1699996400500000000&end=1700000000500000000";
        check(
            SEARCH,
            json!({ "query": "{ .a = \"ä&b\" }" }),
            "GET /api/search?q=%7B%20.a%20%3D%20%22%C3%A4%26b%22%20%7D&start=1699996400&end=1700000001",
        );
        check(INSTANT, json!({ "query": "{}|rate()" }), &format!("GET /api/metrics/query?q=%7B%7D%7Crate%28%29&start={hour}"));
        check(RANGE, json!({ "query": "{}|rate()" }), &format!("GET /api/metrics/query_range?q=%7B%7D%7Crate%28%29&start={hour}"));
        let window = json!({ "query": "{}", "start": "2023-11-14T22:00:00Z", "end": "2023-11-14T23:13:20+01:00" });
        check(SEARCH, window, "GET /api/search?q=%7B%7D&start=1699999200&end=1700000000");
        check(
            SEARCH,
            json!({ "query": "{}", "end": "2023-11-14T22:00:00Z", "start": null }),
            "GET /api/search?q=%7B%7D&start=1699995600&end=1699999200",
        );
        check("get-trace", json!({ "trace_id": "AB" }), "GET /api/v2/traces/000000000000000000000000000000ab");
        check("get-attribute-names", json!({}), "GET /api/v2/search/tags");
        check("get-attribute-names", json!({ "scope": "span" }), "GET /api/v2/search/tags?scope=span");
        let filtered = json!({ "name": "span.a/b c", "filter-query": "{ span.x = 1 }" });
        check("get-attribute-values", filtered, "GET /api/v2/search/tag/span.a%2Fb%20c/values?q=%7B%20span.x%20%3D%201%20%7D");
        check("trace-diff", json!({ "base_trace_id": "1", "compare_trace_id": "2" }), "POST /api/v2/traces/diff");
    }

    #[test]
    fn wrong_arguments_are_told_how_to_be_right() {
        refused(SEARCH, json!({}), "argument query is required: A TraceQL search, such as");
        refused(SEARCH, json!({ "query": " " }), "argument query is required");
        refused(SEARCH, json!({ "query": 5 }), "argument query must be a text");
        refused(SEARCH, json!({ "q": "{}" }), "unknown argument q: traceql-search takes query, start, end");
        refused(SEARCH, json!({ "query": "{ status = }" }), "query parse error. Consult TraceQL docs tools: docs-traceql");
        refused(SEARCH, json!({ "query": "{} | rate()" }), "use traceql-metrics-instant or traceql-metrics-range");
        refused(INSTANT, json!({ "query": "{}" }), "use traceql-search, or add a function");
        refused(RANGE, json!({ "query": "{} | count() > 1" }), "use traceql-search, or add a function");
        refused(SEARCH, json!({ "query": "{}", "start": "yesterday" }), "invalid start time: \"yesterday\" is not RFC 3339");
        refused(SEARCH, json!({ "query": "{}", "end": "1700000000" }), "invalid end time: ");
        let reversed = json!({ "query": "{}", "start": "2023-11-14T22:00:00Z", "end": "2023-11-14T21:00:00Z" });
        refused(SEARCH, reversed, "start must be before end");
        refused("get-trace", json!({ "trace_id": "xyz" }), "invalid trace_id: trace IDs can only contain hex characters");
        refused("trace-diff", json!({ "base_trace_id": "1" }), "argument compare_trace_id is required");
        let half = json!({ "base_trace_id": "1", "compare_trace_id": "2", "base_end": "2023-11-14T22:00:00Z" });
        refused("trace-diff", half, "base_start and base_end must be given together");
        refused("get-attribute-values", json!({ "name": "name", "filter-query": "{ }" }), "filter-query invalid. ");
        refused("get-attribute-values", json!({ "name": "name", "filter-query": "status" }), "filter-query invalid. ");
        refused(TRACEQL_TOOL, json!({ "name": "advanced" }), "name must be one of basic, aggregates, structural, metrics");
        refused(CONFIG_TOOL, json!({ "name": "basic" }), "name must be one of config-overview, config-reference");
        refused(SEARCH, json!({ "query": format!("{{ .a = \"{}\" }}", "x".repeat(70_000)) }), "the arguments are too long");
    }
}
