//! The slots of exemplars that the spans of a frame fall in, and in each slot the span whose trace has the smallest hash.

use std::ops::Range;

use hashbrown::HashMap;

use super::{
    exemplars::{Stretches, class_of, hash_in, hash_of_start},
    grid::Grid,
    observe::{Chosen, ChosenTrace, Number, Numbers},
    traces::FrameTraces,
    weighted::BucketOf,
};

/// Slots of a frame are kept in one table up to this size.
const TABLE_MAX: usize = 1 << 16;

/// The chosen spans of a frame by group.
pub struct Grouped<'a> {
    /// The spans.
    pub chosen: &'a Chosen,
    /// The group of each.
    pub groups: &'a [u32],
    /// The place of each group's series, if it has one.
    pub places: &'a [Option<usize>],
    /// Their cells, where these are not too many.
    pub grid: Option<Grid>,
}

/// A span that is the best of its slot.
pub struct Winner {
    /// The group that its slot is of.
    pub group: usize,
    /// The stretch of time of the slot.
    pub stretch: u64,
    /// The class of values of the slot.
    pub class: i32,
    /// The hash of its trace in the slot.
    pub hash: u64,
    /// Which of the chosen spans it is.
    pub at: usize,
}

/// The best spans of those that are `grouped`, in their order, but for those whose hash is above `ceiling`. `traces` are those of the frame;
/// `values` those that the function takes, and their buckets, for functions that count by buckets: what has none does not count.
pub fn winners(
    stretches: &Stretches,
    (grouped, traces): (&Grouped<'_>, &FrameTraces<'_>),
    values: Option<(&Numbers, Option<BucketOf>)>,
    ceiling: u64,
) -> Vec<Winner> {
    let classes = values.map(|(values, bucket_of)| Classes::of(grouped.chosen, values, bucket_of));
    let slots = Slots::of(stretches, grouped.chosen, classes.as_ref());
    let of_group = slots.salts.len();
    let mut heard = Heard::new(grouped.places.len() * of_group);
    let offers = Offers { slots: &slots, grouped, traces };
    match &classes {
        Some(classes) => offers.by_class(&mut heard, classes, ceiling),
        None => offers.by_trace(&mut heard, ceiling),
    }
    let winner = |(slot, hash, at): (usize, u64, u32)| {
        let (stretch, class) = slots.meaning(slot % of_group);
        Winner { group: slot / of_group, stretch, class, hash, at: at as usize }
    };
    heard.by_row().into_iter().map(winner).collect()
}

/// The slots that the chosen spans of a frame fall in, for each series the same: classes by stretch.
struct Slots {
    /// The first slot of each interval's stretch, from interval `first_interval` on.
    by_interval: Vec<u32>,
    first_interval: u32,
    first_stretch: u64,
    least_class: i32,
    classes: usize,
    /// What makes each slot prefer other traces.
    salts: Vec<u64>,
}

/// Classes of spans without values: two, so that there are two spans of a stretch.
const PARITIES: usize = 2;

impl Slots {
    fn of(stretches: &Stretches, chosen: &Chosen, classes: Option<&Classes>) -> Self {
        let (least_class, classes) = classes.map_or((0, PARITIES), |classes| (classes.least, classes.count));
        // The rows of a frame are close in time: few of the query's stretches have any.
        let (first_interval, width) = chosen.range();
        let last_interval = first_interval + width.saturating_sub(1) as u32;
        let [first_stretch, last_stretch] = [first_interval, last_interval].map(|at| stretches.of_interval(at));
        let slot_of = |at: u32| (stretches.of_interval(at) - first_stretch) as u32 * classes as u32;
        let salt = |at: usize| hash_in(0, first_stretch + (at / classes) as u64, least_class + (at % classes) as i32);
        let salts = (0..((last_stretch - first_stretch) as usize + 1) * classes).map(salt).collect();
        Self { by_interval: (first_interval..=last_interval).map(slot_of).collect(), first_interval, first_stretch, least_class, classes, salts }
    }

    /// The first slot of the stretch of an interval.
    #[inline]
    fn of_interval(&self, at: u32) -> usize {
        self.by_interval[(at - self.first_interval) as usize] as usize
    }

    /// The stretch and class of a slot.
    fn meaning(&self, slot: usize) -> (u64, i32) {
        (self.first_stretch + (slot / self.classes) as u64, self.least_class + (slot % self.classes) as i32)
    }
}

/// The chosen spans of a frame, as they are offered.
struct Offers<'a> {
    slots: &'a Slots,
    grouped: &'a Grouped<'a>,
    /// Those of the frame.
    traces: &'a FrameTraces<'a>,
}

/// Spans that are looked at for each slot, on average, before the others are; and traces for each slot of a group that all of them have.
const SPANS_FIRST: usize = 12;
const TRACES_FIRST: usize = 8;

impl Offers<'_> {
    /// The hash of each trace, its spans, and the interval that all of them are in, if that is known.
    fn traces(&self) -> impl Iterator<Item = (u64, Range<usize>, Option<u32>)> {
        let traces = self.grouped.chosen.traces(self.traces);
        traces.map(|ChosenTrace { start, spans, interval }| (hash_of_start(start), spans, interval))
    }

    /// Offers spans that have `classes`.
    fn by_class(&self, heard: &mut Heard, classes: &Classes, ceiling: u64) {
        for (trace, spans, _) in self.traces() {
            for at in spans {
                if let Some(class) = classes.class(at) {
                    self.offer(heard, at, trace, class, ceiling);
                }
            }
        }
    }

    /// Offers spans whose class is that of their trace. Those with larger hashes are not looked at where slots have others, as they mostly have.
    fn by_trace(&self, heard: &mut Heard, ceiling: u64) {
        let spans = self.grouped.groups.len() / (heard.slots() * SPANS_FIRST).max(1);
        let traces = self.traces.count() / (self.slots.salts.len() * TRACES_FIRST);
        // One in so many.
        let one_in = spans.min(traces) as u64;
        let Some(grid) = self.grouped.grid.as_ref().filter(|_| one_in >= 4) else { return self.by_trace_below(heard, ceiling) };
        let bound = u64::MAX / one_in;
        self.by_trace_below(heard, ceiling.min(bound));
        if bound < ceiling {
            self.by_open_cell(heard, grid, ceiling);
        }
    }

    fn by_trace_below(&self, heard: &mut Heard, bound: u64) {
        let intervals = &self.grouped.chosen.intervals;
        for (trace, spans, interval) in self.traces() {
            let class = trace as usize % PARITIES;
            let is_below = |interval: u32| trace ^ self.slots.salts[self.slots.of_interval(interval) + class] <= bound;
            // A trace is mostly in one interval.
            let may_win = match interval {
                Some(interval) => is_below(interval),
                None => intervals[spans.clone()].iter().any(|&interval| is_below(interval)),
            };
            if may_win {
                spans.for_each(|at| self.offer(heard, at, trace, class, bound));
            }
        }
    }

    /// Offers the spans in cells of slots that have none yet.
    fn by_open_cell(&self, heard: &mut Heard, grid: &Grid, ceiling: u64) {
        let of_group = self.slots.salts.len();
        let is_open = |group: usize, slot: u32| (0..PARITIES).any(|class| !heard.has(group * of_group + slot as usize + class));
        let by_interval = &self.slots.by_interval;
        let groups = 0..self.grouped.places.len();
        let open: Vec<bool> = groups.flat_map(|group| by_interval.iter().map(move |&slot| is_open(group, slot))).collect();
        if !open.contains(&true) {
            return;
        }
        let (mut traces, mut trace, mut until) = (self.traces(), 0, 0);
        for at in grid.spans_in(&open) {
            let at = at as usize;
            while until <= at {
                let Some((next, spans, _)) = traces.next() else { return };
                (trace, until) = (next, spans.end);
            }
            self.offer(heard, at, trace, trace as usize % PARITIES, ceiling);
        }
    }

    #[inline]
    fn offer(&self, heard: &mut Heard, at: usize, trace: u64, class: usize, bound: u64) {
        let slot = self.slots.of_interval(self.grouped.chosen.intervals[at]) + class;
        let hash = trace ^ self.slots.salts[slot];
        if hash <= bound {
            heard.hear(self.grouped.groups[at] as usize * self.slots.salts.len() + slot, hash, at as u32);
        }
    }
}

/// The classes of the chosen spans' values.
struct Classes {
    rows: Vec<i16>,
    least: i32,
    count: usize,
}

/// Stands for the class of a span that has no value.
const NO_CLASS: i16 = i16::MAX;

impl Classes {
    fn of(chosen: &Chosen, values: &Numbers, bucket_of: Option<BucketOf>) -> Self {
        let counts = |number: &Number| bucket_of.is_none_or(|bucket_of| bucket_of(*number).is_some());
        let class = |row: &u32| values.get(*row as usize).filter(counts).map_or(NO_CLASS, |number| class_of(number.as_f64()) as i16);
        let rows: Vec<i16> = chosen.rows.iter().map(class).collect();
        let present = || rows.iter().copied().filter(|&class| class != NO_CLASS);
        let (least, greatest) = (present().min().unwrap_or(0), present().max().unwrap_or(0));
        Self { rows, least: least.into(), count: (greatest - least) as usize + 1 }
    }

    /// That of a span, counted from the least.
    #[inline]
    fn class(&self, at: usize) -> Option<usize> {
        let class = self.rows[at];
        (class != NO_CLASS).then(|| (i32::from(class) - self.least) as usize)
    }
}

/// The smallest hash of each slot of each group, and where it is from.
enum Heard {
    Table(Vec<(u64, u32)>),
    Map { slots: usize, found: HashMap<usize, (u64, u32)> },
}

/// What is in a slot of a table that has no span.
const NOTHING: (u64, u32) = (u64::MAX, 0);

impl Heard {
    fn new(slots: usize) -> Self {
        if slots <= TABLE_MAX { Self::Table(vec![NOTHING; slots]) } else { Self::Map { slots, found: HashMap::new() } }
    }

    /// How many slots there are.
    fn slots(&self) -> usize {
        match self {
            Self::Table(slots) => slots.len(),
            Self::Map { slots, .. } => *slots,
        }
    }

    fn has(&self, slot: usize) -> bool {
        match self {
            Self::Table(slots) => slots[slot].0 < NOTHING.0,
            Self::Map { found, .. } => found.contains_key(&slot),
        }
    }

    /// Takes a span's hash, if it is the smallest of its slot.
    #[inline]
    fn hear(&mut self, slot: usize, hash: u64, at: u32) {
        let known = match self {
            Self::Table(slots) => &mut slots[slot],
            Self::Map { found, .. } => found.entry(slot).or_insert(NOTHING),
        };
        if hash < known.0 {
            *known = (hash, at);
        }
    }

    /// The slots that have any, in the order of where they are from.
    fn by_row(self) -> Vec<(usize, u64, u32)> {
        let list = |(slot, (hash, at)): (usize, (u64, u32))| (hash < NOTHING.0).then_some((slot, hash, at));
        let mut all: Vec<_> = match self {
            Self::Table(slots) => slots.into_iter().enumerate().filter_map(list).collect(),
            Self::Map { found, .. } => found.into_iter().filter_map(list).collect(),
        };
        all.sort_unstable_by_key(|&(slot, _, at)| (at, slot));
        all
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use proptest::{prelude::*, sample::select};

    use super::*;
    use crate::{block::index::TraceIndex, metrics::intervals::Intervals, spans::tree::TraceRows};

    /// Spans of a frame, a trace after the other.
    #[derive(Debug, Clone)]
    struct Spans {
        traces: Vec<TraceRows>,
        groups: Vec<u32>,
        intervals: Vec<u32>,
    }

    const GROUPS: usize = 3;

    fn spans() -> impl Strategy<Value = Spans> {
        // Most spans are in group 0, and few traces in two intervals.
        let span = (select(vec![0_u32, 0, 0, 0, 0, 0, 0, 1, 1, 2]), select(vec![0_u32, 0, 0, 0, 0, 0, 0, 0, 0, 1]));
        let trace = (any::<u8>(), proptest::collection::vec(span, 1..12), 0..4_u32);
        proptest::collection::vec(trace, 1..600).prop_map(|all| {
            let mut spans = Spans { traces: Vec::new(), groups: Vec::new(), intervals: Vec::new() };
            for (id_low, (start, rows, interval)) in (0..).zip(all) {
                let (first, start_unix_nano) = (spans.groups.len() as u32, i64::from(start) << 20 | id_low);
                let trace =
                    TraceRows { id_high: 0, id_low, first, rows: rows.len() as u32, start_unix_nano, duration_nanos: 0, root: None, wire_bytes: 0 };
                spans.traces.push(trace);
                spans.groups.extend(rows.iter().map(|(group, _)| group));
                spans.intervals.extend(rows.iter().map(|(_, later)| interval + later));
            }
            spans
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        #[test]
        fn of_each_slot_the_smallest_hash_wins(spans in spans(), exemplars in select(vec![2, 6]), ceiling in select(vec![u64::MAX, u64::MAX / 3, u64::MAX / 500]), cells: bool, known: bool) {
            let stretches = Stretches::of(&Intervals::of_range(20, 100, 10).unwrap(), exemplars);
            let index = TraceIndex::of(&spans.traces);
            let chosen = Chosen::all_in(spans.intervals.clone());
            let chosen = if known { chosen.with_traces(&FrameTraces::all(&index)) } else { chosen };
            let grid = if cells { Grid::of(&chosen, &spans.groups, GROUPS) } else { None };
            let grouped = Grouped { chosen: &chosen, groups: &spans.groups, places: &[None; GROUPS], grid };
            let found = winners(&stretches, (&grouped, &FrameTraces::all(&index)), None, ceiling);
            let mut expected = BTreeMap::new();
            for trace in &spans.traces {
                for at in trace.first as usize..(trace.first + trace.rows) as usize {
                    let (hash, stretch) = (hash_of_start(trace.start_unix_nano), stretches.of_interval(spans.intervals[at]));
                    let class = (hash & 1) as i32;
                    let own = (hash_in(hash, stretch, class), at);
                    let least = expected.entry((spans.groups[at] as usize, stretch, class)).or_insert(own);
                    *least = own.min(*least);
                }
            }
            expected.retain(|_, (hash, _)| *hash <= ceiling);
            prop_assert!(found.is_sorted_by_key(|winner| winner.at));
            let found: BTreeMap<_, _> = found.iter().map(|winner| ((winner.group, winner.stretch, winner.class), (winner.hash, winner.at))).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
