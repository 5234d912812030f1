//! Which log segments are still needed, and by whom.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use skein_engine::tenant::TenantId;

use crate::live::SegmentRange;

/// Knows of every log segment which tenants have spans in it that are in no block yet.
///
/// A segment may go when no tenant needs it, it is closed, and no request is under way that may have been logged in it without being
/// noted yet.
#[derive(Debug, Default)]
pub struct SegmentUse {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    needed_by: BTreeMap<u64, BTreeSet<TenantId>>,
    /// Requests being logged, by the lowest segment they may land in.
    under_way: BTreeMap<u64, usize>,
    /// Segments below this are closed.
    open: u64,
}

/// A request being logged. Dropped when its segment is noted, or when it failed.
#[derive(Debug)]
pub struct UnderWay<'a> {
    segments: &'a SegmentUse,
    floor: u64,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut state = self.segments.state.lock();
        if let Some(count) = state.under_way.get_mut(&self.floor) {
            *count -= 1;
            if *count == 0 {
                state.under_way.remove(&self.floor);
            }
        }
    }
}

impl SegmentUse {
    /// Says that a request is about to be logged.
    pub fn begin(&self) -> UnderWay<'_> {
        let mut state = self.state.lock();
        let floor = state.open;
        *state.under_way.entry(floor).or_default() += 1;
        UnderWay { segments: self, floor }
    }

    /// Says that `segment` holds spans of `tenant`.
    pub fn note(&self, tenant: &TenantId, segment: u64) {
        let mut state = self.state.lock();
        state.open = state.open.max(segment);
        let tenants = state.needed_by.entry(segment).or_default();
        if !tenants.contains(tenant) {
            tenants.insert(tenant.clone());
        }
    }

    /// Says that `segment` exists, perhaps without any spans that are needed.
    pub fn exists(&self, segment: u64) {
        self.state.lock().needed_by.entry(segment).or_default();
    }

    /// Says that segments up to `segment` are closed.
    pub fn closed(&self, segment: u64) {
        let mut state = self.state.lock();
        state.open = state.open.max(segment + 1);
    }

    /// Says that the spans of `tenant` in `range` are in a block, if a block is what they went into.
    pub fn flushed(&self, tenant: &TenantId, range: SegmentRange) {
        for (_, tenants) in self.state.lock().needed_by.range_mut(range.first..=range.last) {
            tenants.remove(tenant);
        }
    }

    /// Takes out the segments that may go now.
    pub fn take_unneeded(&self) -> Vec<u64> {
        let mut state = self.state.lock();
        let limit = state.under_way.keys().next().copied().unwrap_or(state.open).min(state.open);
        let unneeded: Vec<u64> = state.needed_by.range(..limit).filter(|(_, tenants)| tenants.is_empty()).map(|(&segment, _)| segment).collect();
        unneeded.iter().for_each(|segment| drop(state.needed_by.remove(segment)));
        unneeded
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_segment_goes_when_nobody_needs_it_and_it_is_closed() {
        let (a, b) = (TenantId::parse("a").unwrap(), TenantId::parse("b").unwrap());
        let segments = SegmentUse::default();
        segments.note(&a, 1);
        segments.note(&b, 1);
        segments.note(&a, 2);
        segments.flushed(&a, SegmentRange { first: 1, last: 2 });
        assert_eq!(segments.take_unneeded(), [0u64; 0], "b needs segment 1, segment 2 is open");
        segments.flushed(&b, SegmentRange { first: 1, last: 1 });
        assert_eq!(segments.take_unneeded(), [1]);
        segments.closed(2);
        assert_eq!(segments.take_unneeded(), [2]);
    }

    #[test]
    fn a_request_under_way_keeps_what_it_may_be_in() {
        let tenant = TenantId::single();
        let segments = SegmentUse::default();
        segments.note(&tenant, 5);
        let request = segments.begin();
        segments.closed(5);
        segments.flushed(&tenant, SegmentRange { first: 5, last: 5 });
        assert_eq!(segments.take_unneeded(), [0u64; 0], "the request may be in segment 5");
        drop(request);
        assert_eq!(segments.take_unneeded(), [5]);
    }
}
