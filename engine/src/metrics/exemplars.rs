//! Exemplars: a few spans of each series, spread over time and over the range of values.
//!
//! While spans are observed, a series keeps one span for each **slot**: a stretch of time and a class of values. Of the spans that fall in a
//! slot, that of the trace with the smallest hash stays. So the choice is random and yet always the same, and slots of partitions, processes
//! and blocks merge in any order. When there are too many slots, those with large hashes go, for good (**ceiling**): what is left does not
//! depend on the order either.
//!
//! In the end [`spread`] orders the spans of a series so that every beginning of the list is well spread.

use std::{cmp::Reverse, collections::BTreeMap, hash::BuildHasher, sync::Arc};

use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry};
use skein_proto::otlp::common::v1::KeyValue;

use super::intervals::Intervals;
use crate::{error::Result, spans::TraceId};

/// Most slots of one process and query. Answers have a hundred exemplars or so; a slot has some 100 bytes.
pub const SLOTS_MAX: usize = 16_384;

/// Exemplars of a series in one stretch of time, as in Tempo's answers.
const EACH_STRETCH: usize = 2;

/// A stretch of time in a grid of intervals: 2ᵏ intervals that begin at a multiple of their length, so that grids of one step that begin at
/// different times share their stretches.
#[derive(Debug, Clone)]
pub struct Stretches {
    /// Nanoseconds of one.
    length: u64,
    by_interval: Vec<u64>,
    exemplars: usize,
}

impl Stretches {
    /// Some `exemplars / 2` stretches.
    pub fn of(intervals: &Intervals, exemplars: u32) -> Self {
        let most = (exemplars as usize / EACH_STRETCH).max(1);
        let mut doublings = 0;
        while (intervals.count() >> doublings) + 1 > most && intervals.count() >> doublings > 0 {
            doublings += 1;
        }
        Self::new(intervals, intervals.step().saturating_mul(1 << doublings), exemplars as usize)
    }

    fn new(intervals: &Intervals, length: u64, exemplars: usize) -> Self {
        let last_nanosecond = |at: u64| intervals.start() + intervals.step() * (at + 1) - 1;
        let by_interval = (0..intervals.count() as u64).map(|at| last_nanosecond(at) / length).collect();
        Self { length, by_interval, exemplars }
    }

    /// The same stretches in other intervals, which are on the same grid or lie each within one interval of it.
    pub fn in_intervals(&self, intervals: &Intervals) -> Self {
        Self::new(intervals, self.length, self.exemplars)
    }

    /// Length of one in nanoseconds.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Whether they do not depend on where `intervals`, for which they were made, begin: each interval is part of one stretch.
    pub fn on_grid(&self, intervals: &Intervals) -> bool {
        intervals.start().is_multiple_of(intervals.step())
    }

    /// Whether `intervals` begin and end with a stretch.
    pub fn are_whole(&self, intervals: &Intervals) -> bool {
        intervals.start().is_multiple_of(self.length) && intervals.end().is_multiple_of(self.length)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.by_interval.last().zip(self.by_interval.first()).map_or(0, |(last, first)| (last - first) as usize + 1)
    }

    /// How many exemplars a series may have in one of them: more than two where there are fewer intervals than stretches were wanted.
    pub fn exemplars_each(&self) -> usize {
        self.exemplars.div_ceil(self.count().max(1)).max(EACH_STRETCH)
    }

    /// The stretch of interval `at`.
    #[inline]
    pub fn of_interval(&self, at: u32) -> u64 {
        self.by_interval[at as usize]
    }
}

/// The class of a value: its sign and power of two, in a range of a few hundred around that of zero.
#[inline]
pub fn class_of(value: f64) -> i32 {
    const MOST: i32 = 128;
    if value == 0.0 {
        return 0;
    }
    let exponent = (value.to_bits() >> 52 & 0x7ff) as i32 - 1023;
    let size = (exponent + MOST / 2).clamp(1, MOST);
    if value < 0.0 { -size } else { size }
}

/// The hash of a trace by its start in Unix nanoseconds, which scans have at hand, its id not. Traces that start at the same time are told
/// apart by their ids where it matters.
#[inline]
pub fn hash_of_start(start: i64) -> u64 {
    mix(start as u64 ^ 0x9e37_79b9_7f4a_7c15)
}

/// The hash of a trace in a slot: each slot prefers other traces.
#[inline]
pub fn hash_in(trace: u64, stretch: u64, class: i32) -> u64 {
    trace ^ mix(stretch.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ class as u64)
}

/// The finalizer of splitmix64.
#[inline]
fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// A slot of a series: its place in the partial series, stretch of time, and class of values.
pub type Slot = (u32, u64, i32);

/// A span that may become an exemplar.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Of its trace in its slot.
    pub hash: u64,
    /// Its interval.
    pub interval: u32,
    /// Its trace.
    pub trace: TraceId,
    /// Its start in Unix nanoseconds.
    pub start_unix_nano: u64,
    /// The value that the function takes of it, in the unit of the field; NaN when it takes none.
    pub value: f64,
    /// What it is told by beside the labels of its series.
    pub labels: Arc<[KeyValue]>,
}

/// A slot as one number, in the same order.
type Key = u128;

/// Bytes that a slot with a span takes, without the labels.
pub const SLOT_BYTES: usize = size_of::<(Key, Candidate)>() + size_of::<u32>() + 1;

fn key_of((place, stretch, class): Slot) -> Key {
    Key::from(place) << 96 | Key::from(stretch) << 32 | Key::from(class as u32 ^ 1 << 31)
}

fn slot_of(key: Key) -> Slot {
    ((key >> 96) as u32, (key >> 32) as u64, (key as u32 ^ 1 << 31) as i32)
}

/// The spans in the slots of all series.
#[derive(Debug, Clone)]
pub struct Exemplars {
    slots: Vec<(Key, Candidate)>,
    /// Places in `slots` by key, of the first `indexed` ones.
    places: HashTable<u32>,
    indexed: usize,
    hasher: DefaultHashBuilder,
    ceiling: u64,
    slots_max: usize,
}

impl Default for Exemplars {
    fn default() -> Self {
        let (places, hasher) = (HashTable::new(), DefaultHashBuilder::default());
        Self { slots: Vec::new(), places, indexed: 0, hasher, ceiling: u64::MAX, slots_max: SLOTS_MAX }
    }
}

impl Exemplars {
    /// Hashes above it need not be offered.
    #[inline]
    pub fn ceiling(&self) -> u64 {
        self.ceiling
    }

    /// Makes room for `count` more slots, as far as there may be so many.
    pub fn reserve(&mut self, count: usize) {
        self.slots.reserve(count.min(self.slots_max.saturating_sub(self.slots.len())));
    }

    /// Takes the span with this hash that `candidate` makes, which is asked only where the hash may stay; it is told whether the slot has none.
    /// Between equal hashes the least trace stays, and of one trace the first that is offered. Cost: one look-up. Errors: those of `candidate`.
    pub fn offer(&mut self, slot: Slot, hash: u64, candidate: impl FnOnce(bool) -> Result<Candidate>) -> Result<()> {
        if hash > self.ceiling {
            return Ok(());
        }
        self.index();
        let Self { slots, places, indexed, hasher, .. } = self;
        let key = key_of(slot);
        match places.entry(hasher.hash_one(key), |&at| slots[at as usize].0 == key, |&at| hasher.hash_one(slots[at as usize].0)) {
            Entry::Vacant(free) => {
                let candidate = candidate(true)?;
                debug_assert_eq!(candidate.hash, hash);
                free.insert(slots.len() as u32);
                slots.push((key, candidate));
                *indexed = slots.len();
            }
            Entry::Occupied(taken) => {
                let known = &mut slots[*taken.get() as usize].1;
                if hash > known.hash {
                    return Ok(());
                }
                let candidate = candidate(false)?;
                if (candidate.hash, candidate.trace) < (known.hash, known.trace) {
                    *known = candidate;
                }
            }
        }
        if self.slots.len() > self.slots_max {
            self.lower_ceiling();
        }
        Ok(())
    }

    /// Takes the span of a slot that has none. Cost: no look-up.
    pub fn add(&mut self, slot: Slot, candidate: Candidate) {
        if candidate.hash > self.ceiling {
            return;
        }
        self.slots.push((key_of(slot), candidate));
        if self.slots.len() > self.slots_max {
            self.lower_ceiling();
        }
    }

    /// Makes sure that the places of all slots are known.
    fn index(&mut self) {
        let Self { slots, places, indexed, hasher, .. } = self;
        if *indexed == slots.len() {
            return;
        }
        let hash_at = |&at: &u32| hasher.hash_one(slots[at as usize].0);
        places.reserve(slots.len() - *indexed, hash_at);
        for at in *indexed as u32..slots.len() as u32 {
            places.insert_unique(hash_at(&at), at, hash_at);
        }
        *indexed = slots.len();
    }

    /// Lets the spans with large hashes go, until there are no more than there may be.
    #[cold]
    fn lower_ceiling(&mut self) {
        while self.slots.len() > self.slots_max {
            self.ceiling /= 2;
            let ceiling = self.ceiling;
            self.slots.retain(|(_, candidate)| candidate.hash <= ceiling);
        }
        self.places.clear();
        self.indexed = 0;
    }

    /// The same where the series have other places; of slots that fall together one span stays, in the order of the places they had.
    pub fn moved(self, place: impl Fn(u32) -> u32) -> Result<Self> {
        let Self { mut slots, ceiling, slots_max, .. } = self;
        let mut moved = Self { ceiling, slots_max, ..Self::default() };
        moved.reserve(slots.len());
        slots.sort_unstable_by_key(|(key, _)| *key);
        for (key, candidate) in slots {
            let (from, stretch, class) = slot_of(key);
            moved.offer((place(from), stretch, class), candidate.hash, |_| Ok(candidate))?;
        }
        Ok(moved)
    }

    /// All slots that have a span, in whatever order.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, &Candidate)> {
        self.slots.iter().map(|(key, candidate)| (slot_of(*key), candidate))
    }

    /// The same in order.
    pub fn in_order(&self) -> impl Iterator<Item = (Slot, &Candidate)> {
        let mut all: Vec<(Key, &Candidate)> = self.slots.iter().map(|(key, candidate)| (*key, candidate)).collect();
        all.sort_unstable_by_key(|(key, _)| *key);
        all.into_iter().map(|(key, candidate)| (slot_of(key), candidate))
    }
}

/// At most `most` of the spans of one series, ordered so that every beginning of the list is spread over time and classes of values, at most
/// `each` in a stretch and one of a trace. `candidates` come with stretch and class, in this order.
pub fn spread<'a>(candidates: &[(u64, i32, &'a Candidate)], most: usize, each: usize) -> Vec<&'a Candidate> {
    let stretches: Vec<_> = candidates.chunk_by(|a, b| a.0 == b.0).collect();
    let (mut chosen, mut of_class): (Vec<&Candidate>, BTreeMap<i32, usize>) = (Vec::new(), BTreeMap::new());
    let mut traces: Vec<u128> = Vec::new();
    let number_of = |trace: TraceId| u128::from_ne_bytes(trace.0);
    for round in 0..each {
        // Each round took one of a stretch, or found none that is free.
        for at in halving(stretches.len()).filter(|&at| stretches[at].len() > round) {
            let mut free = stretches[at].iter().filter(|(.., candidate)| !traces.contains(&number_of(candidate.trace)));
            // The class that was shown least, of these the one that is farthest from all that were shown, of these the largest.
            let rank = |class: &i32| (of_class.get(class).copied().unwrap_or(0), Reverse(distance(&of_class, *class)), Reverse(*class));
            let best = match (free.next(), free.next()) {
                (Some(first), Some(second)) => [first, second].into_iter().chain(free).min_by_key(|(_, class, _)| rank(class)),
                (only, _) => only,
            };
            if let Some((_, class, candidate)) = best {
                *of_class.entry(*class).or_default() += 1;
                chosen.push(candidate);
                traces.push(number_of(candidate.trace));
            }
            if chosen.len() >= most {
                return chosen;
            }
        }
    }
    chosen
}

/// How far `class` is from the nearest key.
fn distance(shown: &BTreeMap<i32, usize>, class: i32) -> i32 {
    let below = shown.range(..=class).next_back().map(|(near, _)| class - near);
    let above = shown.range(class..).next().map(|(near, _)| near - class);
    below.into_iter().chain(above).min().unwrap_or(i32::MAX)
}

/// The numbers below `count`, each about in the middle of the widest gap between those before it.
fn halving(count: usize) -> impl Iterator<Item = usize> {
    let digits = count.next_power_of_two().trailing_zeros();
    let reversed = move |number: usize| if digits == 0 { 0 } else { number.reverse_bits() >> (usize::BITS - digits) };
    (0..1usize << digits).map(reversed).filter(move |&number| number < count)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn candidate(trace: u8, hash: u64, value: f64) -> Candidate {
        Candidate { hash, interval: 0, trace: TraceId([trace; 16]), start_unix_nano: 5, value, labels: Arc::from([]) }
    }

    fn offer(exemplars: &mut Exemplars, slot: Slot, candidate: &Candidate) {
        exemplars.offer(slot, candidate.hash, |_| Ok(candidate.clone())).unwrap();
    }

    #[test]
    fn stretches_are_as_many_as_the_exemplars_need_and_do_not_move_with_the_grid() {
        let intervals = |start: u64| Intervals::of_range(start, start + 100, 1).unwrap();
        let distinct = |exemplars| {
            let stretches = Stretches::of(&intervals(1000), exemplars);
            let mut all: Vec<u64> = (0..101).map(|at| stretches.of_interval(at)).collect();
            all.dedup();
            all.len()
        };
        assert_eq!(distinct(1000), 101);
        assert!(distinct(1) <= 2 && distinct(2) <= 2, "one of 128 intervals, which may begin amid the grid");
        // Stretches of 4: the 101 intervals end at 1000 to 1100.
        assert_eq!(distinct(60), 26);
        let each = |exemplars| Stretches::of(&intervals(1000), exemplars).exemplars_each();
        assert_eq!((each(60), each(1), each(1010)), (3, 2, 10));
        let (early, late) = (Stretches::of(&intervals(1000), 60), Stretches::of(&intervals(1010), 60));
        (0..90).for_each(|at| assert_eq!(early.of_interval(at + 10), late.of_interval(at)));
        // Each stretch ends with a multiple of 4; the first interval of a range from 1003 begins at 1002.
        let part = early.in_intervals(&Intervals::of_range(1003, 1036, 1).unwrap());
        (0..30).for_each(|at| assert_eq!(early.of_interval(at + 3), part.of_interval(at)));
        let whole = |start: u64, end: u64| early.are_whole(&Intervals::of_range(start, end, 1).unwrap());
        assert!(whole(1001, 1036) && whole(1005, 1008) && !whole(1003, 1036) && !whole(1001, 1035));
    }

    #[test]
    fn classes_are_signs_and_powers_of_two() {
        assert_eq!(class_of(0.0), 0);
        assert_eq!(class_of(4.0), class_of(7.9));
        assert_eq!(class_of(8.0), class_of(4.0) + 1);
        assert_eq!(class_of(-4.0), -class_of(4.0));
        assert_eq!((class_of(1e-300), class_of(1e300), class_of(f64::NEG_INFINITY)), (1, 128, -128));
    }

    #[test]
    fn keys_are_in_the_order_of_slots() {
        let mut slots: Vec<Slot> = Vec::new();
        for place in [0, 1, u32::MAX] {
            for stretch in [0, 7, u64::MAX] {
                slots.extend([i32::MIN, -1, 0, 1, i32::MAX].map(|class| (place, stretch, class)));
            }
        }
        let keys: Vec<Key> = slots.iter().map(|slot| key_of(*slot)).collect();
        assert!(keys.is_sorted() && slots.is_sorted());
        assert_eq!(keys.into_iter().map(slot_of).collect::<Vec<_>>(), slots);
    }

    #[test]
    fn the_smallest_hash_stays_whatever_the_order() {
        let offers: Vec<(Slot, Candidate)> = (0..3000u64)
            .map(|number| (((number % 7) as u32, number % 50, (number % 3) as i32), candidate(number as u8, mix(number), number as f64)))
            .collect();
        for slots_max in [SLOTS_MAX, 100] {
            let empty = || Exemplars { slots_max, ..Exemplars::default() };
            let mut all = empty();
            offers.iter().for_each(|(slot, candidate)| offer(&mut all, *slot, candidate));
            let mut parts = [empty(), empty(), empty()];
            offers.iter().rev().enumerate().for_each(|(at, (slot, candidate))| offer(&mut parts[at * at % 3], *slot, candidate));
            let mut merged = empty();
            parts[0].in_order().for_each(|(slot, candidate)| merged.add(slot, candidate.clone()));
            for part in &parts[1..] {
                part.in_order().for_each(|(slot, candidate)| offer(&mut merged, slot, candidate));
            }
            assert!(all.in_order().eq(merged.in_order()));
            let count = all.in_order().count();
            assert!(count <= slots_max && count > slots_max.min(1050) / 3);
            for (slot, kept) in all.in_order() {
                let least = offers.iter().filter(|(own, _)| *own == slot).map(|(_, candidate)| candidate.hash).min();
                assert_eq!(Some(kept.hash), least);
            }
        }
    }

    #[test]
    fn of_equal_hashes_the_least_trace_stays_and_of_a_trace_the_first() {
        for offers in [[(1, 1.0), (1, 2.0), (3, 3.0)], [(3, 3.0), (1, 1.0), (1, 2.0)], [(1, 1.0), (3, 3.0), (1, 2.0)]] {
            let mut exemplars = Exemplars::default();
            offers.into_iter().for_each(|(trace, value)| offer(&mut exemplars, (0, 0, 0), &candidate(trace, 9, value)));
            assert_eq!(exemplars.in_order().map(|(_, kept)| kept.value).collect::<Vec<_>>(), [1.0]);
        }
    }

    #[test]
    fn where_series_fall_together_the_first_place_decides_between_equals() {
        let mut exemplars = Exemplars::default();
        (0..50).rev().for_each(|place| offer(&mut exemplars, (place, 3, 0), &candidate(1, 9, f64::from(place))));
        let moved = exemplars.moved(|_| 4).unwrap();
        assert!(moved.in_order().eq([((4, 3, 0), &candidate(1, 9, 0.0))]), "the last that came");
    }

    #[test]
    fn choices_are_spread_over_time_and_values() {
        assert_eq!(halving(5).collect::<Vec<_>>(), [0, 4, 2, 1, 3]);
        assert_eq!((halving(1).collect::<Vec<_>>(), halving(0).count()), (vec![0], 0));
        // Eight stretches with values of classes 1 (nearly all) and 5 (some), a trace each.
        let all: Vec<Candidate> = (0..16).map(|number| candidate(number, 0, 0.0)).collect();
        let slots: Vec<(u64, i32, &Candidate)> =
            (0..16).map(|number| (number as u64 / 2, if number % 2 == 0 { 1 } else { 5 }, &all[number])).collect();
        let traces = |chosen: Vec<&Candidate>| chosen.iter().map(|candidate| candidate.trace.0[0]).collect::<Vec<_>>();
        assert_eq!(traces(spread(&slots, 4, 2)), [1, 8, 5, 12], "stretches 0, 4, 2, 6; classes 5, 1, 5, 1");
        assert_eq!(spread(&slots, 100, 2).len(), 16);
        let crowded: Vec<(u64, i32, &Candidate)> = (0..16).map(|number| (0, number as i32, &all[number])).collect();
        assert_eq!(traces(spread(&crowded, 100, 2)), [15, 0], "two in a stretch, as far apart as can be");
        let values: Vec<(u64, i32, &Candidate)> =
            (0..16).flat_map(|number| [(number as u64, number as i32, &all[number]), (number as u64, 15, &all[15])]).collect();
        assert_eq!(traces(spread(&values, 3, 2)), [15, 8, 4], "the largest, then what is farthest in stretches 8 and 4");
        let same: Vec<(u64, i32, &Candidate)> = (0..8).map(|stretch| (stretch, 0, &all[3])).collect();
        assert_eq!(traces(spread(&same, 100, 2)), [3], "one of a trace");
    }
}
