//! Two traces written as lists of spans, and what their comparison says.
#![allow(clippy::unwrap_used)]

use serde_json::{Value as Json, json};
use skein_proto::otlp::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span::Event},
};

use super::*;

/// Identifier, parent (0 is none), service, name; starts at its identifier in milliseconds and takes 100 ms.
fn span(id: u8, parent: u8, service: &str, name: &str) -> (String, Span) {
    let start = u64::from(id) * 1_000_000;
    let span = Span {
        span_id: vec![id; 8],
        parent_span_id: if parent == 0 { Vec::new() } else { vec![parent; 8] },
        name: name.into(),
        kind: 2,
        start_time_unix_nano: start,
        end_time_unix_nano: start + 100_000_000,
        ..Default::default()
    };
    (service.into(), span)
}

fn text(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(Value::StringValue(value.into())) }), ..Default::default() }
}

fn trace(spans: impl IntoIterator<Item = (String, Span)>) -> Vec<ResourceSpans> {
    let one = |(service, span): (String, Span)| ResourceSpans {
        resource: Some(Resource { attributes: vec![text("service.name", &service)], ..Default::default() }),
        scope_spans: vec![ScopeSpans { spans: vec![span], ..Default::default() }],
        ..Default::default()
    };
    spans.into_iter().map(one).collect()
}

fn compare(base: &[ResourceSpans], other: &[ResourceSpans], format: DiffFormat) -> Json {
    let side = |id: u8, resource_spans| Side { id: TraceId([id; 16]), resource_spans };
    serde_json::from_str(&document(side(1, base), side(2, other), format).unwrap()).unwrap()
}

fn shop() -> Vec<(String, Span)> {
    vec![span(1, 0, "shop", "GET /"), span(2, 1, "cart", "list"), span(3, 2, "db", "SELECT"), span(4, 1, "ads", "pick")]
}

#[test]
fn a_trace_equals_itself_whatever_its_order_and_ids() {
    let mut other: Vec<(String, Span)> = shop().into_iter().rev().collect();
    for (_, span) in &mut other {
        span.span_id[0] += 100;
        span.parent_span_id.iter_mut().take(1).for_each(|byte| *byte += 100);
        // Within a tenth of 100 ms.
        span.end_time_unix_nano += 9_000_000;
    }
    let patch = compare(&trace(shop()), &trace(other.clone()), DiffFormat::Patch);
    let stats = json!({
        "spanCountA": 4, "spanCountB": 4, "matchedSpans": 4, "modifiedSpans": 0, "addedSpans": 0, "removedSpans": 0, "fieldChanges": 0,
        "attributeChanges": 0, "eventChanges": 0, "truncated": false,
    });
    let expected = json!({
        "version": "trace-patch-v0", "base": { "traceId": "01".repeat(16), "spanCount": 4 },
        "compare": { "traceId": "02".repeat(16), "spanCount": 4 }, "stats": stats, "modified": [], "added": [], "removed": [], "warnings": [],
    });
    assert_eq!(patch, expected);
    let summary = compare(&trace(shop()), &trace(other), DiffFormat::Native);
    let signals = json!({ "traceLatency": "unchanged", "sumSpanDuration": "unchanged", "errors": "unchanged", "spanCount": "unchanged",
        "structure": "unchanged" });
    assert_eq!((&summary["signals"], &summary["changedServices"]), (&signals, &json!([])));
    assert_eq!(summary["trust"], json!({ "matchedSpanRatio": 1.0, "structureOverlap": 1.0 }));
}

#[test]
fn changes_of_a_span_are_listed() {
    let (mut base, mut other) = (shop(), shop());
    base[2].1.attributes = vec![text("db.name", "a"), text("old", "x"), text("same", "s")];
    other[2].1.attributes = vec![text("same", "s"), text("new", "y"), text("db.name", "b")];
    other[2].1.status = Some(Status { code: 2, message: "timeout".into() });
    other[2].1.end_time_unix_nano += 400_000_000;
    base[2].1.events = vec![Event { name: "sent".into(), ..Default::default() }];
    other[2].1.events = vec![
        Event { name: "exception".into(), attributes: vec![text("exception.type", "T")], ..Default::default() },
        Event { name: "sent".into(), attributes: vec![text("bytes", "1")], ..Default::default() },
    ];
    let patch = compare(&trace(base), &trace(other), DiffFormat::Patch);
    let field = |name: &str, before: Json, after: Json| json!({ "op": "modify", "target": { "type": "field", "name": name }, "before": before, "after": after });
    let attribute = |op: &str, key: &str, before: Json, after: Json| json!({ "op": op, "target": { "type": "attribute", "scope": "span", "key": key }, "before": before, "after": after });
    let event = |op: &str, name: &str, before: Json, after: Json| json!({ "op": op, "target": { "type": "event", "name": name }, "before": before, "after": after });
    let expected = json!([{
        "span": { "path": [0, 0, 0], "service": "db", "name": "SELECT", "kind": "SPAN_KIND_SERVER" },
        "changes": [
            field("duration_nanos", 100_000_000.into(), 500_000_000.into()),
            field("status", "STATUS_CODE_UNSET".into(), "STATUS_CODE_ERROR".into()),
            field("status_message", "".into(), "timeout".into()),
            attribute("modify", "db.name", "a".into(), "b".into()),
            attribute("add", "new", Json::Null, "y".into()),
            attribute("remove", "old", "x".into(), Json::Null),
            event("add", "exception", Json::Null, json!({ "exception.type": "T" })),
            event("modify", "sent", json!({}), json!({ "bytes": "1" })),
        ],
    }]);
    assert_eq!(patch["modified"], expected);
    let stats = &patch["stats"];
    assert_eq!([&stats["fieldChanges"], &stats["attributeChanges"], &stats["eventChanges"]], [&json!(3), &json!(3), &json!(2)]);
}

#[test]
fn spans_that_came_and_went_are_located() {
    let mut other = shop();
    other.remove(3);
    other.push(span(9, 2, "cache", "get"));
    let patch = compare(&trace(shop()), &trace(other), DiffFormat::Patch);
    let snapshot = |path: Json, service: &str, name: &str| {
        json!({ "path": path, "service": service, "name": name, "kind": "SPAN_KIND_SERVER", "duration_nanos": 100_000_000,
            "status": "STATUS_CODE_UNSET" })
    };
    let added = json!([{ "target": { "type": "span", "parentPath": [0, 0], "index": 1 }, "span": snapshot(json!([0, 0, 1]), "cache", "get") }]);
    let removed = json!([{ "target": { "type": "span", "path": [0, 1] }, "span": snapshot(json!([0, 1]), "ads", "pick") }]);
    assert_eq!((&patch["added"], &patch["removed"], &patch["modified"]), (&added, &removed, &json!([])));
}

#[test]
fn a_span_in_between_moves_what_hangs_from_it() {
    let mut other = shop();
    // All that hung from the first span now hangs from a new one.
    other.iter_mut().filter(|(_, span)| span.parent_span_id == [1; 8]).for_each(|(_, span)| span.parent_span_id = vec![9; 8]);
    other.push(span(9, 1, "gateway", "route"));
    let patch = compare(&trace(shop()), &trace(other.clone()), DiffFormat::Patch);
    assert_eq!((&patch["stats"]["matchedSpans"], &patch["stats"]["addedSpans"], &patch["stats"]["removedSpans"]), (&json!(4), &json!(1), &json!(0)));
    let path =
        |before: Json, after: Json| json!([{ "op": "modify", "target": { "type": "field", "name": "path" }, "before": before, "after": after }]);
    let moved: Vec<&Json> = patch["modified"].as_array().unwrap().iter().map(|span| &span["changes"]).collect();
    // The spans below the moved ones stay where they were.
    assert_eq!(moved, [&path(json!([0, 0]), json!([0, 0, 0])), &path(json!([0, 1]), json!([0, 0, 1]))]);
    assert_eq!(compare(&trace(shop()), &trace(other), DiffFormat::Native)["signals"]["structure"], "changed");
}

#[test]
fn repeated_siblings_are_told_apart_by_their_attributes() {
    let query = |id: u8, statement: &str| {
        let (service, mut span) = span(id, 1, "db", "query");
        span.attributes = vec![text("db.statement", statement)];
        (service, span)
    };
    let base = [span(1, 0, "shop", "GET /"), query(2, "a"), query(3, "b"), query(4, "c")];
    let other = [span(1, 0, "shop", "GET /"), query(2, "c"), query(3, "a")];
    let patch = compare(&trace(base), &trace(other), DiffFormat::Patch);
    assert_eq!((&patch["modified"], &patch["removed"][0]["span"]["path"]), (&json!([]), &json!([0, 1])));
    assert_eq!(patch["warnings"], json!([]));

    let base = [span(1, 0, "shop", "GET /"), query(2, "a"), query(3, "b")];
    let other = [span(1, 0, "shop", "GET /"), query(2, "x")];
    let patch = compare(&trace(base), &trace(other), DiffFormat::Patch);
    assert_eq!(patch["warnings"][0]["code"], "ambiguous_span_match");
    assert_eq!((&patch["stats"]["modifiedSpans"], &patch["stats"]["removedSpans"]), (&json!(1), &json!(1)));
}

#[test]
fn a_summary_says_what_changed_where() {
    let mut other = shop();
    // The database takes 900 ms more and fails, and so do the spans above it.
    for at in [0, 1, 2] {
        other[at].1.end_time_unix_nano += 900_000_000;
    }
    other[2].1.status = Some(Status { code: 2, ..Default::default() });
    other.remove(3);
    let summary = compare(&trace(shop()), &trace(other), DiffFormat::Native);
    let side = |id: &str, spans: u64, errors: u64, duration: u64, sum: u64| {
        json!({ "traceId": id.repeat(16), "rootService": "shop", "rootName": "GET /", "spanCount": spans, "errorSpanCount": errors,
            "durationMs": duration, "sumSpanDurationMs": sum })
    };
    let service = |name: &str, delta: i64, modified: u64, removed: u64, new_errors: u64| {
        json!({ "name": name, "sumSpanDurationDeltaMs": delta, "modified": modified, "added": 0, "removed": removed, "newErrors": new_errors,
            "resolvedErrors": 0 })
    };
    let expected = json!({
        "version": "trace-summary-v0-native",
        // Starts at 1 ms; ends at 104 ms, then at 3 + 100 + 900 ms.
        "base": side("01", 4, 0, 103, 400), "compare": side("02", 3, 1, 1002, 3000),
        "signals": { "traceLatency": "increased", "sumSpanDuration": "increased", "errors": "increased", "spanCount": "decreased",
            "structure": "changed" },
        "trust": { "matchedSpanRatio": 0.75, "structureOverlap": 1.0 },
        "stats": { "traceLatencyDeltaMs": 899, "sumSpanDurationDeltaMs": 2600, "spanCountDelta": -1, "errorSpanDelta": 1, "matchedSpans": 3,
            "modifiedSpans": 3, "addedSpans": 0, "removedSpans": 1, "fieldChanges": 4, "attributeChanges": 0, "eventChanges": 0 },
        "changedServices": ["ads", "cart", "db", "shop"],
        "services": [service("cart", 900, 1, 0, 0), service("db", 900, 1, 0, 1), service("shop", 900, 1, 0, 0), service("ads", -100, 0, 1, 0)],
    });
    assert_eq!(summary, expected);
}

#[test]
fn the_composed_document_has_the_patch_while_it_is_small() {
    let small = compare(&trace(shop()), &trace(shop()), DiffFormat::Composed);
    assert_eq!((&small["version"], &small["summary"]["version"]), (&json!("trace-summary-v0-composed"), &json!("trace-summary-v0-native")));
    assert_eq!((&small["patch"]["version"], small.get("patchOmitted")), (&json!("trace-patch-v0"), None));

    let large: Vec<_> = shop().into_iter().chain((5..=255).map(|id| span(id, 1, "batch", &"x".repeat(300)))).collect();
    let patch_bytes = {
        let side = |id: u8, resource_spans| Side { id: TraceId([id; 16]), resource_spans };
        document(side(1, &trace(shop())), side(2, &trace(large.clone())), DiffFormat::Patch).unwrap().len()
    };
    let omitted = compare(&trace(shop()), &trace(large), DiffFormat::Composed);
    assert_eq!((omitted.get("patch"), &omitted["patchOmitted"]), (None, &json!({ "bytes": patch_bytes, "reason": "over_budget" })));
}

#[test]
fn odd_traces_end_and_are_warned_of() {
    let circle = [span(1, 2, "a", "x"), span(2, 1, "a", "y"), span(3, 3, "a", "z"), span(4, 9, "a", "orphan")];
    let patch = compare(&trace(circle.clone()), &trace(circle), DiffFormat::Patch);
    assert_eq!((&patch["stats"]["matchedSpans"], &patch["stats"]["modifiedSpans"]), (&json!(4), &json!(0)));

    let mut odd = shop();
    odd[3].1.end_time_unix_nano = 0;
    odd.push(span(3, 1, "db", "again"));
    let warnings = compare(&trace(odd), &trace(shop()), DiffFormat::Patch)["warnings"].clone();
    let codes: Vec<&str> = warnings.as_array().unwrap().iter().map(|warning| warning["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["duplicate_span_id", "invalid_duration"]);
}

#[test]
fn a_deep_chain_does_not_need_the_square_of_its_length() {
    let chain: Vec<ResourceSpans> = {
        let spans = (0..5000u64).map(|at| Span {
            span_id: (at + 1).to_be_bytes().to_vec(),
            parent_span_id: if at == 0 { Vec::new() } else { at.to_be_bytes().to_vec() },
            name: "deep".into(),
            start_time_unix_nano: at,
            end_time_unix_nano: at,
            ..Default::default()
        });
        vec![ResourceSpans { scope_spans: vec![ScopeSpans { spans: spans.collect(), ..Default::default() }], ..Default::default() }]
    };
    let patch = compare(&trace(shop()), &chain, DiffFormat::Patch);
    assert_eq!((&patch["stats"]["addedSpans"], &patch["stats"]["truncated"]), (&json!(5000), &json!(true)));
    // 1 + 2 + … numbers, twice each span, fit in 2^20 up to the 1023rd.
    assert_eq!(patch["added"].as_array().unwrap().len(), 1023);
}
