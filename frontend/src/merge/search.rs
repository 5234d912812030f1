//! Search answers joined: query-api 4.3.

use std::collections::HashMap;

use skein_engine::query::SearchResult;
use skein_proto::tempo::{SpanSet, TraceSearchMetadata};

/// Joins answers, keeps the newest `limit` traces, newest first, ties by trace id.
pub(crate) fn merge(results: Vec<SearchResult>, limit: usize) -> SearchResult {
    let mut merged = SearchResult::default();
    let mut places: HashMap<String, usize> = HashMap::new();
    for result in results {
        merged.stats = merged.stats.plus(&result.stats);
        merged.memory.absorb(result.memory);
        for trace in result.traces {
            match places.get(&trace.trace_id) {
                Some(&place) => join(&mut merged.traces[place], trace),
                None => {
                    places.insert(trace.trace_id.clone(), merged.traces.len());
                    merged.traces.push(trace);
                }
            }
        }
    }
    merged.traces.sort_by(|a, b| b.start_time_unix_nano.cmp(&a.start_time_unix_nano).then_with(|| a.trace_id.cmp(&b.trace_id)));
    merged.traces.truncate(limit);
    for trace in &mut merged.traces {
        trace.span_set = trace.span_sets.first().cloned();
    }
    merged
}

/// Joins what two sources know of one trace.
fn join(kept: &mut TraceSearchMetadata, other: TraceSearchMetadata) {
    if kept.root_service_name.is_empty() {
        kept.root_service_name = other.root_service_name;
    }
    if kept.root_trace_name.is_empty() {
        kept.root_trace_name = other.root_trace_name;
    }
    kept.start_time_unix_nano = match (kept.start_time_unix_nano, other.start_time_unix_nano) {
        (0, start) | (start, 0) => start,
        (a, b) => a.min(b),
    };
    kept.duration_ms = kept.duration_ms.max(other.duration_ms);
    for (service, stats) in other.service_stats {
        let known = kept.service_stats.entry(service).or_default();
        known.span_count = known.span_count.max(stats.span_count);
        known.error_count = known.error_count.max(stats.error_count);
    }
    for set in other.span_sets {
        match kept.span_sets.iter_mut().find(|known| same_group(known, &set)) {
            Some(known) if set.matched > known.matched => *known = set,
            Some(_) => {}
            None => kept.span_sets.push(set),
        }
    }
}

/// True when both are the same group of a `by(…)`, or both are no group.
fn same_group(a: &SpanSet, b: &SpanSet) -> bool {
    let group = |set: &'_ SpanSet| set.attributes.iter().filter(|attribute| attribute.key.starts_with("by")).cloned().collect::<Vec<_>>();
    group(a) == group(b)
}

#[cfg(test)]
mod tests {
    use skein_proto::{
        otlp::common::v1::{AnyValue, KeyValue, any_value::Value},
        tempo::{ServiceStats, Span},
    };

    use super::*;

    fn set(group: &str, matched: u32) -> SpanSet {
        let value = AnyValue { value: Some(Value::StringValue(group.into())) };
        let attributes = vec![KeyValue { key: "by(.a)".into(), value: Some(value), ..Default::default() }];
        SpanSet { spans: vec![Span { span_id: format!("{group}{matched}"), ..Default::default() }], matched, attributes }
    }

    fn found(id: &str, start: u64) -> TraceSearchMetadata {
        TraceSearchMetadata { trace_id: id.into(), start_time_unix_nano: start, ..Default::default() }
    }

    fn result(traces: Vec<TraceSearchMetadata>) -> SearchResult {
        SearchResult { traces, ..Default::default() }
    }

    #[test]
    fn the_newest_come_first_and_ties_go_by_id() {
        let merged = merge(vec![result(vec![found("c", 5), found("a", 1)]), result(vec![found("d", 9), found("b", 5)])], 3);
        assert_eq!(merged.traces.iter().map(|trace| trace.trace_id.as_str()).collect::<Vec<_>>(), ["d", "b", "c"]);
    }

    #[test]
    fn one_trace_of_two_sources_is_joined() {
        let stats = |spans, errors| [("svc".to_owned(), ServiceStats { span_count: spans, error_count: errors })].into();
        let one = TraceSearchMetadata {
            root_trace_name: "root".into(),
            duration_ms: 5,
            span_sets: vec![set("x", 2), set("y", 1)],
            service_stats: stats(3, 0),
            ..found("a", 100)
        };
        let other = TraceSearchMetadata {
            root_service_name: "svc".into(),
            root_trace_name: "late".into(),
            duration_ms: 9,
            span_sets: vec![set("x", 4), set("z", 1)],
            service_stats: stats(2, 1),
            ..found("a", 50)
        };
        let merged = merge(vec![result(vec![one]), result(vec![other])], 10).traces.remove(0);
        assert_eq!((merged.root_service_name.as_str(), merged.root_trace_name.as_str()), ("svc", "root"));
        assert_eq!((merged.start_time_unix_nano, merged.duration_ms), (50, 9));
        assert_eq!(merged.span_sets, [set("x", 4), set("y", 1), set("z", 1)]);
        assert_eq!(merged.span_set, Some(set("x", 4)));
        assert_eq!(merged.service_stats, stats(3, 1));
    }
}
