//! The document `trace-summary-v0-native`: what a comparison amounts to, by trace and by service.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{DiffFormat, Warning, differs, pairs::Pairs, patch::Patch, tree::Tree};

const NANOS_PER_MS: i128 = 1_000_000;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Summary<'a> {
    version: &'static str,
    base: TraceSummary<'a>,
    compare: TraceSummary<'a>,
    signals: Signals,
    trust: Trust,
    stats: SummaryStats,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    warnings: &'a [Warning],
    changed_services: Vec<&'a str>,
    services: Vec<Service<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TraceSummary<'a> {
    trace_id: String,
    root_service: &'a str,
    root_name: &'a str,
    span_count: usize,
    error_span_count: usize,
    duration_ms: i64,
    sum_span_duration_ms: i64,
}

/// Directions, without a judgement.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Signals {
    trace_latency: &'static str,
    sum_span_duration: &'static str,
    errors: &'static str,
    span_count: &'static str,
    structure: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Trust {
    /// Pairs by the spans of the larger trace.
    matched_span_ratio: f64,
    /// Pairs by the spans of the smaller trace.
    structure_overlap: f64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SummaryStats {
    trace_latency_delta_ms: i64,
    sum_span_duration_delta_ms: i64,
    span_count_delta: i64,
    error_span_delta: i64,
    matched_spans: usize,
    modified_spans: usize,
    added_spans: usize,
    removed_spans: usize,
    field_changes: usize,
    attribute_changes: usize,
    event_changes: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Service<'a> {
    name: &'a str,
    sum_span_duration_delta_ms: i64,
    modified: usize,
    added: usize,
    removed: usize,
    new_errors: usize,
    resolved_errors: usize,
}

/// What is counted of one service.
#[derive(Default)]
struct Tally {
    before_nanos: u64,
    after_nanos: u64,
    modified: usize,
    added: usize,
    removed: usize,
    new_errors: usize,
    resolved_errors: usize,
}

impl<'a> Summary<'a> {
    pub(super) fn of(base: &Tree<'a>, compare: &Tree<'a>, pairs: &Pairs, patch: &'a Patch<'a>) -> Self {
        let stats = &patch.stats;
        let services = services(base, compare, pairs, patch);
        let changed: BTreeSet<&str> = services.iter().map(|service| service.name).collect();
        let moved = base.pre_order.iter().any(|&a| pairs.of_base[a].is_some_and(|b| pairs.moved(base, compare, a, b)));
        let same_structure = !moved && stats.added_spans == 0 && stats.removed_spans == 0;
        let (spans_before, spans_after) = (base.nodes.len(), compare.nodes.len());
        let (errors_before, errors_after) = (base.error_count(), compare.error_count());
        let ratio = |of: usize| if of == 0 { 0.0 } else { stats.matched_spans as f64 / of as f64 };
        Self {
            version: DiffFormat::Native.name(),
            base: trace_summary(base),
            compare: trace_summary(compare),
            signals: Signals {
                trace_latency: tolerant_direction(base.duration_nanos(), compare.duration_nanos()),
                sum_span_duration: tolerant_direction(base.sum_nanos(), compare.sum_nanos()),
                errors: direction(errors_before, errors_after),
                span_count: direction(spans_before, spans_after),
                structure: if same_structure { "unchanged" } else { "changed" },
            },
            trust: Trust { matched_span_ratio: ratio(spans_before.max(spans_after)), structure_overlap: ratio(spans_before.min(spans_after)) },
            stats: SummaryStats {
                trace_latency_delta_ms: delta_ms(base.duration_nanos(), compare.duration_nanos()),
                sum_span_duration_delta_ms: delta_ms(base.sum_nanos(), compare.sum_nanos()),
                span_count_delta: spans_after as i64 - spans_before as i64,
                error_span_delta: errors_after as i64 - errors_before as i64,
                matched_spans: stats.matched_spans,
                modified_spans: stats.modified_spans,
                added_spans: stats.added_spans,
                removed_spans: stats.removed_spans,
                field_changes: stats.field_changes,
                attribute_changes: stats.attribute_changes,
                event_changes: stats.event_changes,
            },
            warnings: &patch.warnings,
            changed_services: changed.into_iter().collect(),
            services,
        }
    }
}

fn trace_summary<'a>(tree: &Tree<'a>) -> TraceSummary<'a> {
    let (root_service, root_name) = tree.roots.first().map_or(("", ""), |&root| (tree.nodes[root].service, tree.nodes[root].span.name.as_str()));
    TraceSummary {
        trace_id: tree.id.to_string(),
        root_service,
        root_name,
        span_count: tree.nodes.len(),
        error_span_count: tree.error_count(),
        duration_ms: delta_ms(0, tree.duration_nanos()),
        sum_span_duration_ms: delta_ms(0, tree.sum_nanos()),
    }
}

/// Services with spans that changed, came or went, or whose time differs; those whose time differs most first.
fn services<'a>(base: &Tree<'a>, compare: &Tree<'a>, pairs: &Pairs, patch: &Patch<'_>) -> Vec<Service<'a>> {
    let mut tallies: BTreeMap<&'a str, Tally> = BTreeMap::new();
    for (a, node) in base.nodes.iter().enumerate() {
        let tally = tallies.entry(node.service).or_default();
        tally.before_nanos = tally.before_nanos.saturating_add(node.duration_nanos());
        tally.removed += usize::from(pairs.of_base[a].is_none());
        let still = pairs.of_base[a].is_some_and(|b| compare.nodes[b].is_error());
        tally.resolved_errors += usize::from(node.is_error() && !still);
    }
    for (b, node) in compare.nodes.iter().enumerate() {
        let tally = tallies.entry(node.service).or_default();
        tally.after_nanos = tally.after_nanos.saturating_add(node.duration_nanos());
        tally.added += usize::from(pairs.of_compare[b].is_none());
        let before = pairs.of_compare[b].is_some_and(|a| base.nodes[a].is_error());
        tally.new_errors += usize::from(node.is_error() && !before);
    }
    for &a in &patch.modified_spans {
        tallies.entry(base.nodes[a].service).or_default().modified += 1;
    }
    tallies.retain(|_, tally| tally.modified + tally.added + tally.removed > 0 || differs(tally.before_nanos, tally.after_nanos));
    let mut services: Vec<Service<'a>> = tallies
        .into_iter()
        .map(|(name, tally)| Service {
            name,
            sum_span_duration_delta_ms: delta_ms(tally.before_nanos, tally.after_nanos),
            modified: tally.modified,
            added: tally.added,
            removed: tally.removed,
            new_errors: tally.new_errors,
            resolved_errors: tally.resolved_errors,
        })
        .collect();
    services.sort_by_key(|service| std::cmp::Reverse(service.sum_span_duration_delta_ms.unsigned_abs()));
    services
}

/// Whole milliseconds, towards zero.
fn delta_ms(before_nanos: u64, after_nanos: u64) -> i64 {
    let delta = (i128::from(after_nanos) - i128::from(before_nanos)) / NANOS_PER_MS;
    // A difference of two 64-bit numbers of nanoseconds in milliseconds fits.
    i64::try_from(delta).unwrap_or(i64::MAX)
}

fn tolerant_direction(before_nanos: u64, after_nanos: u64) -> &'static str {
    if differs(before_nanos, after_nanos) { direction(before_nanos, after_nanos) } else { "unchanged" }
}

fn direction<T: Ord>(before: T, after: T) -> &'static str {
    match after.cmp(&before) {
        std::cmp::Ordering::Greater => "increased",
        std::cmp::Ordering::Less => "decreased",
        std::cmp::Ordering::Equal => "unchanged",
    }
}
