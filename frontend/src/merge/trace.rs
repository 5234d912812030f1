//! Parts of a trace joined (query-api 3.6), and cut to a size.
//! Ids stay as they were sent: Tempo's rewriting of ids that a client and a server span share is not done.

use std::collections::HashSet;

use prost::{Message, encoding::encoded_len_varint};
use skein_engine::query::TraceResult;
use skein_proto::otlp::trace::v1::{ResourceSpans, Span};

/// Joins parts of one trace. A span with the id and kind of one in an earlier part is dropped. Several parts are sorted by time; one part keeps
/// its order.
pub(crate) fn merge(results: Vec<TraceResult>) -> TraceResult {
    let mut merged = TraceResult::default();
    let mut known: HashSet<(Vec<u8>, i32)> = HashSet::new();
    let mut parts = 0;
    let only_one = results.iter().filter(|result| !result.resource_spans.is_empty()).count() < 2;
    for mut result in results {
        merged.stats = merged.stats.plus(&result.stats);
        merged.filtered |= result.filtered;
        merged.memory.absorb(std::mem::take(&mut result.memory));
        if result.resource_spans.is_empty() {
            continue;
        }
        parts += 1;
        if !only_one {
            // Within one part equal ids are the sender's and stay.
            let earlier = known.clone();
            retain_spans(&mut result.resource_spans, |span| {
                let identity = (span.span_id.clone(), span.kind);
                let new = !earlier.contains(&identity);
                known.insert(identity);
                new
            });
        }
        merged.resource_spans.append(&mut result.resource_spans);
    }
    if parts > 1 {
        sort(&mut merged.resource_spans);
    }
    merged
}

/// Keeps the spans that `keep` accepts, and drops what then is empty.
fn retain_spans(resource_spans: &mut Vec<ResourceSpans>, mut keep: impl FnMut(&Span) -> bool) {
    resource_spans.retain_mut(|resource| {
        resource.scope_spans.retain_mut(|scope| {
            scope.spans.retain(&mut keep);
            !scope.spans.is_empty()
        });
        !resource.scope_spans.is_empty()
    });
}

fn sort(resource_spans: &mut [ResourceSpans]) {
    let first = |spans: &[Span]| spans.first().map(|span| (span.start_time_unix_nano, span.span_id.clone()));
    for resource in resource_spans.iter_mut() {
        for scope in &mut resource.scope_spans {
            for span in &mut scope.spans {
                span.events.sort_by(|a, b| (a.time_unix_nano, &a.name).cmp(&(b.time_unix_nano, &b.name)));
                span.links.sort_by(|a, b| (&a.trace_id, &a.span_id).cmp(&(&b.trace_id, &b.span_id)));
            }
            scope.spans.sort_by(|a, b| (a.start_time_unix_nano, &a.span_id).cmp(&(b.start_time_unix_nano, &b.span_id)));
        }
        resource.scope_spans.sort_by_cached_key(|scope| first(&scope.spans));
    }
    resource_spans.sort_by_cached_key(|resource| resource.scope_spans.first().and_then(|scope| first(&scope.spans)));
}

/// Spans of a trace.
pub(crate) fn span_count(resource_spans: &[ResourceSpans]) -> usize {
    resource_spans.iter().flat_map(|resource| &resource.scope_spans).map(|scope| scope.spans.len()).sum()
}

/// Bytes of a trace as protobuf.
pub(crate) fn encoded_bytes(resource_spans: &[ResourceSpans]) -> usize {
    resource_spans.iter().map(field_bytes).sum()
}

/// Bytes of a message as a field with a number below 16.
fn field_bytes(message: &impl Message) -> usize {
    let bytes = message.encoded_len();
    1 + encoded_len_varint(bytes as u64) + bytes
}

/// Keeps the first spans that together stay within `bytes_max`, with their resources and scopes counted.
pub(crate) fn cut(resource_spans: &mut Vec<ResourceSpans>, bytes_max: usize) {
    let mut left = bytes_max;
    let mut full = false;
    resource_spans.retain_mut(|resource| {
        let mut outer = resource.resource.as_ref().map_or(0, field_bytes) + resource.schema_url.len() + 16;
        resource.scope_spans.retain_mut(|scope| {
            let mut header = outer + scope.scope.as_ref().map_or(0, field_bytes) + scope.schema_url.len() + 16;
            scope.spans.retain(|span| {
                let bytes = header + field_bytes(span);
                full |= bytes > left;
                if full {
                    return false;
                }
                left -= bytes;
                (header, outer) = (0, 0);
                true
            });
            !scope.spans.is_empty()
        });
        !resource.scope_spans.is_empty()
    });
}

#[cfg(test)]
mod tests {
    use skein_proto::otlp::trace::v1::ScopeSpans;

    use super::*;

    fn span(id: u8, kind: i32, start: u64) -> Span {
        Span { span_id: vec![id; 8], kind, start_time_unix_nano: start, name: format!("{id}"), ..Default::default() }
    }

    fn part(spans: Vec<Span>) -> TraceResult {
        let scope_spans = vec![ScopeSpans { spans, ..Default::default() }];
        TraceResult { resource_spans: vec![ResourceSpans { scope_spans, ..Default::default() }], ..Default::default() }
    }

    fn ids(trace: &[ResourceSpans]) -> Vec<Vec<u8>> {
        trace.iter().map(|resource| resource.scope_spans.iter().flat_map(|scope| &scope.spans).map(|span| span.span_id[0]).collect()).collect()
    }

    #[test]
    fn one_part_keeps_its_order_and_its_repeated_ids() {
        let merged = merge(vec![part(vec![span(2, 1, 9), span(1, 1, 5), span(2, 1, 7)]), TraceResult::default()]);
        assert_eq!(ids(&merged.resource_spans), [[2, 1, 2]]);
    }

    #[test]
    fn later_parts_add_only_new_spans_and_all_are_sorted() {
        let merged =
            merge(vec![part(vec![span(3, 1, 9), span(2, 2, 8)]), part(vec![span(3, 1, 1), span(3, 2, 7), span(1, 1, 2)]), part(vec![span(1, 1, 0)])]);
        assert_eq!(ids(&merged.resource_spans), [vec![1, 3], vec![2, 3]]);
    }

    #[test]
    fn a_cut_trace_stays_within_its_size() {
        let whole = part((0..50).map(|id| span(id, 1, u64::from(id))).collect()).resource_spans;
        for bytes_max in [0, 20, 100, 1000, 100_000] {
            let mut trace = whole.clone();
            cut(&mut trace, bytes_max);
            assert!(encoded_bytes(&trace) <= bytes_max);
        }
        let mut trace = whole.clone();
        cut(&mut trace, encoded_bytes(&whole) - 1);
        let kept = ids(&trace)[0].len();
        assert!((45..50).contains(&kept), "{kept}");
    }
}
