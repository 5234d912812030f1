//! Which spans a tail has told.
//!
//! Invariant TS-1: what is remembered weighs at most [`WEIGHT_MAX`]. Beyond that the traces are forgotten that did not change for longest: when one
//! of them gets spans again, its matches may be told again.

use std::collections::{BTreeSet, HashMap, HashSet};

/// Most that is remembered: a span weighs 1, a trace [`TRACE_WEIGHT`]. That is a million spans of large traces, in some 20 MB at most.
const WEIGHT_MAX: usize = 1_000_000;
const TRACE_WEIGHT: usize = 8;

/// Bytes of a unit of weight: a key with the room that a list leaves, or an eighth of what a trace takes in the two tables.
const WEIGHT_BYTES: usize = 20;

/// What a span is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SpanKey {
    trace: u128,
    span: u64,
}

impl SpanKey {
    /// Beside ids, start and duration count: in Zipkin's traces client and server have one id. They are mixed into it, since equal sums are too
    /// rare to matter within a trace.
    pub(super) fn new(trace: u128, span_id: u64, start_unix_nano: i64, duration_nanos: i64) -> Self {
        const START: u64 = 0x9e37_79b9_7f4a_7c15;
        const DURATION: u64 = 0xc2b2_ae3d_27d4_eb4f;
        let span = span_id ^ (start_unix_nano as u64).wrapping_mul(START) ^ (duration_nanos as u64).wrapping_mul(DURATION).rotate_left(29);
        Self { trace, span }
    }
}

#[derive(Debug, Default)]
struct SentTrace {
    /// Ascending.
    spans: Vec<u64>,
    /// The pass in which it last changed.
    changed: u64,
}

/// The spans that were told, by trace.
#[derive(Debug)]
pub(super) struct Sent {
    traces: HashMap<u128, SentTrace>,
    /// The traces with the pass in which they last changed, in the order of these.
    by_change: BTreeSet<(u64, u128)>,
    passes: u64,
    weight: usize,
    weight_max: usize,
}

impl Default for Sent {
    fn default() -> Self {
        Self::up_to(WEIGHT_MAX)
    }
}

impl Sent {
    fn up_to(weight_max: usize) -> Self {
        Self { traces: HashMap::new(), by_change: BTreeSet::new(), passes: 0, weight: 0, weight_max }
    }

    /// Whether a pass has told the span.
    pub(super) fn has(&self, key: &SpanKey) -> bool {
        self.traces.get(&key.trace).is_some_and(|trace| trace.spans.binary_search(&key.span).is_ok())
    }

    /// A pass has ended that looked at the traces `changed` and told the spans `told`, perhaps several times, none of which was told before.
    pub(super) fn note(&mut self, changed: &HashSet<u128>, mut told: Vec<SpanKey>) {
        self.passes += 1;
        for &trace in changed {
            if let Some(known) = self.traces.get_mut(&trace) {
                self.by_change.remove(&(known.changed, trace));
                known.changed = self.passes;
                self.by_change.insert((known.changed, trace));
            }
        }
        told.sort_unstable();
        told.dedup();
        for keys in told.chunk_by(|one, other| one.trace == other.trace) {
            self.add(keys[0].trace, keys.iter().map(|key| key.span));
        }
        while self.weight > self.weight_max && self.forget_oldest() {}
    }

    fn add(&mut self, trace: u128, spans: impl Iterator<Item = u64>) {
        let passes = self.passes;
        let known = self.traces.entry(trace).or_insert_with(|| {
            self.by_change.insert((passes, trace));
            self.weight += TRACE_WEIGHT;
            SentTrace { spans: Vec::new(), changed: passes }
        });
        let before = known.spans.len();
        known.spans.extend(spans);
        known.spans.sort_unstable();
        self.weight += known.spans.len() - before;
    }

    fn forget_oldest(&mut self) -> bool {
        let Some((_, trace)) = self.by_change.pop_first() else { return false };
        let spans = self.traces.remove(&trace).map_or(0, |trace| trace.spans.len());
        self.weight -= TRACE_WEIGHT + spans;
        true
    }

    /// About what it takes of memory.
    pub(super) fn bytes(&self) -> usize {
        self.weight * WEIGHT_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(trace: u128, span: u64) -> SpanKey {
        SpanKey::new(trace, span, 1_700_000_000_000_000_000, 5)
    }

    #[test]
    fn a_span_is_told_from_those_of_other_traces_times_and_durations() {
        let mut sent = Sent::default();
        assert!(!sent.has(&key(1, 1)));
        sent.note(&[1].into(), vec![key(1, 1), key(1, 2), key(1, 1)]);
        sent.note(&[1, 3].into(), vec![key(1, 0), key(3, 1)]);
        assert!([key(1, 0), key(1, 1), key(1, 2), key(3, 1)].iter().all(|key| sent.has(key)));
        let others = [key(2, 1), key(1, 3), SpanKey::new(1, 1, 1_700_000_000_000_000_001, 5), SpanKey::new(1, 1, 1_700_000_000_000_000_000, 6)];
        assert!(!others.iter().any(|key| sent.has(key)));
        assert_eq!(sent.weight, 4 + 2 * TRACE_WEIGHT);
    }

    #[test]
    fn traces_that_did_not_change_for_longest_are_forgotten() {
        let mut sent = Sent::up_to(3 * (TRACE_WEIGHT + 1));
        for trace in 1..=3 {
            sent.note(&[trace].into(), vec![key(trace, 1)]);
        }
        // Nothing of it is told, but it is looked at.
        sent.note(&[1].into(), Vec::new());
        sent.note(&[4].into(), vec![key(4, 1)]);
        let known: Vec<u128> = (1..=4).filter(|&trace| sent.has(&key(trace, 1))).collect();
        assert_eq!(known, [1, 3, 4]);
        sent.note(&[5].into(), (0..100).map(|span| key(5, span)).collect());
        assert!(sent.weight == 0 && sent.traces.is_empty() && sent.by_change.is_empty(), "a trace that is larger than the bound is not kept");
    }
}
