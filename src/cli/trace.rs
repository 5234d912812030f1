//! `skein trace`: one trace as a waterfall.

use std::{collections::HashMap, fmt::Write, process::ExitCode, time::Duration};

use clap::Args;
use prost::Message;
use skein_engine::error::{Error, Result};
use skein_proto::otlp::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, Span, TracesData, status::StatusCode},
};

use super::{
    http::Api,
    table::{duration, is_terminal, shortened, time, width},
};

/// Arguments of `skein trace`.
#[derive(Args)]
pub struct Arguments {
    /// The trace id, in hexadecimal.
    id: String,
    /// The server.
    #[arg(long, default_value = "http://127.0.0.1:3200")]
    url: String,
    /// Sent as X-Scope-OrgID.
    #[arg(long)]
    tenant: Option<String>,
    /// Show attributes, events and links too.
    #[arg(short, long)]
    verbose: bool,
}

/// Fetches the trace and shows it.
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let api = Api::new(&arguments.url, arguments.tenant)?;
    let body = api.get(&format!("/api/traces/{}", arguments.id), &[], "application/protobuf").await?;
    // The API's trace has the same one field as OTLP's traces data.
    let trace = TracesData::decode(body).map_err(|error| Error::data("reading the server's answer").with_source(error))?;
    print!("{}", render(&trace.resource_spans, &Style { width: width(), colour: is_terminal(), verbose: arguments.verbose }));
    Ok(ExitCode::SUCCESS)
}

/// How a waterfall is drawn.
pub struct Style {
    /// Columns of the terminal.
    pub width: usize,
    /// ANSI colours.
    pub colour: bool,
    /// Attributes, events and links below each span.
    pub verbose: bool,
}

struct Row<'a> {
    span: &'a Span,
    service: &'a str,
    resource: &'a [KeyValue],
    depth: usize,
}

/// Draws the spans as a tree, parents first, siblings by start, each with a bar on the trace's time line. A span whose parent is absent
/// stands at the top; spans that name each other as parents come last.
pub fn render(resource_spans: &[ResourceSpans], style: &Style) -> String {
    let rows = in_tree_order(resource_spans);
    let Some(first) = rows.iter().map(|row| row.span.start_time_unix_nano).min() else { return "no spans\n".to_owned() };
    let last = rows.iter().map(|row| row.span.end_time_unix_nano.max(row.span.start_time_unix_nano)).max().unwrap_or(first);
    let total = (last - first).max(1);
    let errors = rows.iter().filter(|row| is_error(row.span)).count();
    let services: std::collections::BTreeSet<&str> = rows.iter().map(|row| row.service).collect();

    let bar_width = (style.width / 3).clamp(10, 60);
    let label_width = style.width.saturating_sub(bar_width + 14).max(20);
    let mut out = String::new();
    let id: String = rows[0].span.trace_id.iter().map(|byte| format!("{byte:02x}")).collect();
    let _ = writeln!(
        out,
        "trace {id}  {} UTC  {}  {} spans, {} services, {errors} errors",
        time(first),
        duration(Duration::from_nanos(total)),
        rows.len(),
        services.len()
    );
    for row in &rows {
        let mark = if is_error(row.span) { "✗ " } else { "" };
        let label = shortened(&format!("{}{mark}{} · {}", "  ".repeat(row.depth), row.service, row.span.name), label_width);
        let length = row.span.end_time_unix_nano.saturating_sub(row.span.start_time_unix_nano);
        let bar = bar(row.span.start_time_unix_nano - first, length, total, bar_width);
        let (on, off) = match (style.colour, is_error(row.span)) {
            (false, _) => ("", ""),
            (true, true) => ("\x1b[31m", "\x1b[0m"),
            (true, false) => ("\x1b[36m", "\x1b[0m"),
        };
        let _ = writeln!(out, "{label:<label_width$} {on}{bar}{off} {:>10}", duration(Duration::from_nanos(length)));
        if style.verbose {
            details(&mut out, row);
        }
    }
    out
}

fn details(out: &mut String, row: &Row<'_>) {
    let indent = "  ".repeat(row.depth + 2);
    let mut line = |text: String| {
        let _ = writeln!(out, "{indent}{}", text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>());
    };
    if let Some(status) = row.span.status.as_ref().filter(|status| !status.message.is_empty()) {
        line(format!("status: {}", status.message));
    }
    for attribute in &row.span.attributes {
        line(format!("{} = {}", attribute.key, shown(attribute.value.as_ref())));
    }
    for attribute in row.resource {
        line(format!("resource.{} = {}", attribute.key, shown(attribute.value.as_ref())));
    }
    for event in &row.span.events {
        let after = Duration::from_nanos(event.time_unix_nano.saturating_sub(row.span.start_time_unix_nano));
        let attributes: String = event.attributes.iter().map(|a| format!(" {}={}", a.key, shown(a.value.as_ref()))).collect();
        line(format!("event +{} {}{attributes}", duration(after), event.name));
    }
    for link in &row.span.links {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        line(format!("link {} {}", hex(&link.trace_id), hex(&link.span_id)));
    }
}

fn in_tree_order(resource_spans: &[ResourceSpans]) -> Vec<Row<'_>> {
    let mut spans: Vec<Row<'_>> = Vec::new();
    for resource_span in resource_spans {
        let resource = resource_span.resource.as_ref().map_or(&[][..], |resource| &resource.attributes);
        let service = resource.iter().find(|attribute| attribute.key == "service.name").and_then(|attribute| attribute.value.as_ref());
        let service = match service.and_then(|value| value.value.as_ref()) {
            Some(Value::StringValue(name)) => name.as_str(),
            _ => "?",
        };
        for span in resource_span.scope_spans.iter().flat_map(|scope| &scope.spans) {
            spans.push(Row { span, service, resource, depth: 0 });
        }
    }
    spans.sort_by_key(|row| (row.span.start_time_unix_nano, std::cmp::Reverse(row.span.end_time_unix_nano)));
    let mut by_id: HashMap<&[u8], usize> = HashMap::new();
    for (index, row) in spans.iter().enumerate() {
        by_id.entry(&row.span.span_id).or_insert(index);
    }
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); spans.len()];
    let mut tops = Vec::new();
    for (index, row) in spans.iter().enumerate() {
        match by_id.get(row.span.parent_span_id.as_slice()) {
            Some(parent) if *parent != index => children[*parent].push(index),
            _ => tops.push(index),
        }
    }
    // A stack instead of recursion: traces can be thousands deep. `seen` breaks cycles.
    let mut order = Vec::with_capacity(spans.len());
    let mut seen = vec![false; spans.len()];
    for start in tops.into_iter().chain(0..spans.len()) {
        let mut stack = vec![(start, 0)];
        while let Some((index, depth)) = stack.pop() {
            if std::mem::replace(&mut seen[index], true) {
                continue;
            }
            order.push((index, depth));
            stack.extend(children[index].iter().rev().map(|child| (*child, depth + 1)));
        }
    }
    order.into_iter().map(|(index, depth)| Row { depth, ..spans[index] }).collect()
}

/// `#` from start to end on a line of `width`; never less than one.
fn bar(start: u64, length: u64, total: u64, width: usize) -> String {
    let at = |time: u64| (time as u128 * width as u128 / u128::from(total)) as usize;
    let from = at(start).min(width - 1);
    let to = at(start.saturating_add(length)).clamp(from + 1, width.max(from + 1));
    format!("{}{}{}", " ".repeat(from), "█".repeat(to - from), " ".repeat(width.saturating_sub(to)))
}

fn is_error(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code == StatusCode::Error as i32)
}

fn shown(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        None => "(empty)".to_owned(),
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::BoolValue(value)) => value.to_string(),
        Some(Value::IntValue(value)) => value.to_string(),
        Some(Value::DoubleValue(value)) => value.to_string(),
        Some(Value::BytesValue(bytes)) => format!("{} bytes", bytes.len()),
        Some(Value::ArrayValue(array)) => {
            format!("[{}]", array.values.iter().map(|value| shown(Some(value))).collect::<Vec<_>>().join(", "))
        }
        Some(Value::KvlistValue(list)) => {
            let entries: Vec<String> = list.values.iter().map(|entry| format!("{}: {}", entry.key, shown(entry.value.as_ref()))).collect();
            format!("{{{}}}", entries.join(", "))
        }
        Some(_) => "(unknown)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use skein_proto::otlp::{
        resource::v1::Resource,
        trace::v1::{ScopeSpans, Status},
    };

    use super::*;

    fn span(id: u8, parent: u8, start: u64, end: u64, name: &str) -> Span {
        Span {
            trace_id: vec![0xab; 16],
            span_id: vec![id; 8],
            parent_span_id: if parent == 0 { Vec::new() } else { vec![parent; 8] },
            start_time_unix_nano: start,
            end_time_unix_nano: end,
            name: name.to_owned(),
            ..Span::default()
        }
    }

    fn string(key: &str, value: &str) -> KeyValue {
        let value = AnyValue { value: Some(Value::StringValue(value.to_owned())) };
        KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
    }

    fn trace(spans: Vec<Span>) -> Vec<ResourceSpans> {
        let resource = Some(Resource { attributes: vec![string("service.name", "shop")], ..Resource::default() });
        vec![ResourceSpans { resource, scope_spans: vec![ScopeSpans { spans, ..ScopeSpans::default() }], ..ResourceSpans::default() }]
    }

    fn lines(spans: Vec<Span>, verbose: bool) -> Vec<String> {
        render(&trace(spans), &Style { width: 80, colour: false, verbose }).lines().map(str::to_owned).collect()
    }

    #[test]
    fn children_stand_below_their_parent_by_start() {
        let shown =
            lines(vec![span(3, 1, 50, 100, "second"), span(2, 1, 10, 20, "first"), span(1, 0, 0, 100, "root"), span(4, 2, 11, 12, "deep")], false);
        let names: Vec<&str> = shown[1..].iter().map(|line| line.split('█').next().unwrap_or("").trim_end()).collect();
        assert_eq!(names, ["shop · root", "  shop · first", "    shop · deep", "  shop · second"]);
        assert!(shown[0].contains(&"ab".repeat(16)) && shown[0].contains("4 spans, 1 services, 0 errors"), "{}", shown[0]);
    }

    #[test]
    fn bars_lie_on_the_time_line() {
        assert_eq!(bar(0, 100, 100, 10), "██████████");
        assert_eq!(bar(50, 25, 100, 10), "     ██   ");
        assert_eq!(bar(100, 0, 100, 10), "         █");
        assert_eq!(bar(0, 0, 1, 10), "█         ");
    }

    #[test]
    fn broken_trees_are_shown_whole() {
        assert_eq!(lines(vec![span(1, 2, 0, 1, "a"), span(2, 1, 0, 1, "b"), span(3, 3, 0, 1, "self"), span(4, 9, 0, 1, "orphan")], false).len(), 5);
        assert_eq!(render(&[], &Style { width: 80, colour: false, verbose: false }), "no spans\n");
        // Ends before it starts.
        assert_eq!(lines(vec![span(1, 0, 100, 50, "x")], false).len(), 2);
    }

    #[test]
    fn errors_and_attributes_are_shown() {
        let mut failed = span(1, 0, 0, 1, "pay");
        failed.status = Some(Status { code: StatusCode::Error as i32, message: "no\nmoney".to_owned() });
        failed.attributes = vec![string("user.id", "u1")];
        let shown = lines(vec![failed], true);
        assert!(shown[1].starts_with("✗ shop · pay"), "{}", shown[1]);
        assert_eq!(
            shown[2..].iter().map(|line| line.trim()).collect::<Vec<_>>(),
            ["status: no money", "user.id = u1", "resource.service.name = shop"]
        );
    }
}
