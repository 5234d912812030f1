//! Partial series of row groups of finished blocks, kept for the next query of the same shape.
//!
//! A block never changes, so what a pipeline and a function make of one of its row groups is the same each time. It is kept on the grid of
//! the query (length and phase of the intervals) over **all** times of the row group, and moved to the window of each query that uses it: a
//! window that has moved on finds everything but what is new. Where one interval holds the whole row group, the grid does not matter at all. Where
//! what lies outside of the window must not be looked at, a row group that the window cuts is kept for windows that cut it in the same place.
//!
//! Invariant PC-1: an entry depends on nothing but its key. Whatever else changes what an observer makes of a row group goes into the
//! `shape`. What [`Partial::to_batch`] writes is what is kept, so that all that partials carry is cached with them.
//!
//! [`Partial::to_batch`]: super::partial::Partial::to_batch

use std::{ops::RangeInclusive, sync::Arc};

use arrow::record_batch::RecordBatch;
use moka::{notification::RemovalCause, sync::Cache};
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::{
    batch,
    intervals::{IntervalFinder, Intervals},
    packed::PackedBatch,
};
use crate::{
    block::index::RowGroup,
    error::{Error, Result},
    spans::BlockId,
};

/// Most intervals that a row group is kept in: rows of a day by 5 s. The series under way have a cell for each.
const INTERVALS_MAX: u64 = 1 << 14;
/// No entry may take more than this part of the cache.
const ENTRY_PART: u64 = 16;
/// What the cache itself needs for an entry, by the fields of its lists and tables.
const ENTRY_OVERHEAD_BYTES: usize = 256;

/// What makes a partial series of a row group what it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    block: BlockId,
    group: u32,
    shape: Arc<str>,
    grid: Grid,
    /// Rows that are left out, since their traces are read elsewhere.
    excluded: Box<[(u32, u32)]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Grid {
    /// One interval that holds all spans of the row group.
    Whole,
    /// Intervals of `step` nanoseconds that begin `phase` after a multiple of it.
    Steps { step: u64, phase: u64 },
    /// Those of a window that the row group reaches out of, where what is outside must not be looked at.
    Window(Intervals),
}

#[derive(Debug, Clone)]
enum Entry {
    Kept(Arc<PackedBatch>),
    /// It does not fit: not to be tried again.
    TooLarge,
}

/// The cache. Bounded by bytes; the least used entries go first.
#[derive(Debug)]
pub struct PartialCache {
    entries: Cache<Key, Entry>,
    bytes_max: u64,
    metrics: CacheMetrics,
}

/// What the cache counts.
#[derive(Debug, Clone)]
struct CacheMetrics {
    requests: IntCounterVec,
    bytes: IntGauge,
    evictions: IntCounter,
}

/// One row group of a query, and where its partial series are kept.
#[derive(Debug)]
pub struct Slot {
    key: Key,
    own: Intervals,
    /// The first interval of `own` in the intervals of the query.
    offset: i64,
    intervals: Intervals,
}

/// What the cache knows of a row group.
#[derive(Debug)]
pub enum Found {
    /// Its partial series, in the intervals of the query.
    Series(RecordBatch),
    /// Nothing yet: to be made in the intervals of [`Slot::own`], and put.
    Nothing,
    /// It does not fit into the cache: to be made in the intervals of the query.
    TooLarge,
}

/// A row group of a block as a query sees it.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Part<'a> {
    pub block: BlockId,
    pub group: usize,
    pub rows: &'a RowGroup,
    /// Rows of the row group that the query leaves out, ascending, counted from its first.
    pub excluded: Vec<(u32, u32)>,
}

impl PartialCache {
    /// An empty cache of at most `bytes_max`; 0 keeps nothing.
    pub fn new(bytes_max: u64) -> Self {
        let metrics = CacheMetrics::new();
        let counted = metrics.clone();
        let entries = Cache::builder()
            .weigher(weight)
            .max_capacity(bytes_max)
            .eviction_listener(move |key: Arc<Key>, entry, cause| {
                counted.bytes.sub(i64::from(weight(&key, &entry)));
                if cause == RemovalCause::Size {
                    counted.evictions.inc();
                }
            })
            .build();
        Self { entries, bytes_max, metrics }
    }

    /// Shows hits, misses, bytes and evictions in `registry`. Errors: `Internal` when it has them already.
    pub fn register(&self, registry: &Registry) -> Result<()> {
        let CacheMetrics { requests, bytes, evictions } = self.metrics.clone();
        let registered = registry
            .register(Box::new(requests))
            .and_then(|()| registry.register(Box::new(bytes)))
            .and_then(|()| registry.register(Box::new(evictions)));
        registered.map_err(|e| Error::internal("registering the metrics of the cache of partial series").with_source(e))
    }

    /// Where the partial series of `part` in `intervals` are kept, for queries of this `shape`. Where the window cuts the row group and is that
    /// of an instant query, or `by_window` is set, they serve windows that cut it in the same place. None where they cannot be reused: the
    /// cache is off, nothing is within the window, or there would be too many intervals.
    pub fn slot(&self, part: Part<'_>, shape: &Arc<str>, intervals: &Intervals, by_window: bool) -> Option<Slot> {
        if self.bytes_max == 0 {
            return None;
        }
        // A trace ends no earlier than any of its spans begins.
        let (grid, own, offset) = place(part.rows.trace_start_min..=part.rows.trace_end_max, intervals, by_window)?;
        let (shape, excluded) = (shape.clone(), part.excluded.into());
        Some(Slot { key: Key { block: part.block, group: part.group as u32, shape, grid, excluded }, own, offset, intervals: *intervals })
    }

    /// What is known of `slot`. Errors: `Internal`.
    pub fn get(&self, slot: &Slot) -> Result<Found> {
        let entry = self.entries.get(&slot.key);
        let result = if matches!(entry, Some(Entry::Kept(_))) { "hit" } else { "miss" };
        self.metrics.requests.with_label_values(&[result]).inc();
        Ok(match entry {
            Some(Entry::Kept(packed)) => Found::Series(slot.to_query(&packed.unpack(batch::nothing())?)?),
            Some(Entry::TooLarge) => Found::TooLarge,
            None => Found::Nothing,
        })
    }

    /// Keeps `series`, which are in the intervals of [`Slot::own`], if they are not too large, and gives them in those of the query.
    /// Errors: `Internal`.
    pub fn put(&self, slot: Slot, series: &RecordBatch) -> Result<RecordBatch> {
        let in_query = slot.to_query(series)?;
        let packed = Entry::Kept(Arc::new(PackedBatch::of(series, batch::nothing())?));
        let fits = u64::from(weight(&slot.key, &packed)) <= self.bytes_max / ENTRY_PART;
        self.insert(slot.key, if fits { packed } else { Entry::TooLarge });
        Ok(in_query)
    }

    /// Remembers that the partial series of `slot` are too large to be made in other intervals than the query's.
    pub fn put_too_large(&self, slot: Slot) {
        self.insert(slot.key, Entry::TooLarge);
    }

    fn insert(&self, key: Key, entry: Entry) {
        self.metrics.bytes.add(i64::from(weight(&key, &entry)));
        self.entries.insert(key, entry);
    }

    /// Waits until what is under way in the cache is done: its bound holds, its counters are right.
    #[cfg(test)]
    fn settle(&self) {
        self.entries.run_pending_tasks();
    }
}

impl CacheMetrics {
    fn new() -> Self {
        const NAMES: &str = "the names of these metrics are valid";
        let requests =
            Opts::new("skein_engine_partial_cache_requests_total", "Row groups of metrics queries looked for in the cache of partial series");
        let evictions = "Row groups that made room for others in the cache of partial series";
        Self {
            requests: IntCounterVec::new(requests, &["result"]).expect(NAMES),
            bytes: IntGauge::new("skein_engine_partial_cache_bytes", "Bytes in the cache of partial series").expect(NAMES),
            evictions: IntCounter::new("skein_engine_partial_cache_evictions_total", evictions).expect(NAMES),
        }
    }
}

impl Slot {
    /// The intervals in which the partial series have to be made: all times of the row group, or those of them that are in the window.
    pub fn own(&self) -> &Intervals {
        &self.own
    }

    fn to_query(&self, series: &RecordBatch) -> Result<RecordBatch> {
        batch::moved(series, self.offset, self.intervals.count())
    }
}

fn weight(key: &Key, entry: &Entry) -> u32 {
    let own = match entry {
        Entry::Kept(packed) => packed.memory_bytes(),
        Entry::TooLarge => 0,
    };
    u32::try_from(own + key.shape.len() + key.excluded.len() * 8 + size_of::<Key>() + ENTRY_OVERHEAD_BYTES).unwrap_or(u32::MAX)
}

/// The grid on which spans that begin in `times` are kept, its intervals, and where the first of these is in `intervals`.
fn place(times: RangeInclusive<u64>, intervals: &Intervals, by_window: bool) -> Option<(Grid, Intervals, i64)> {
    let mut finder: IntervalFinder = intervals.finder();
    let (first, last) = (finder.find(*times.start()), finder.find(*times.end()));
    if let (Some(first), true) = (first, first == last) {
        let own = Intervals::of_instant(times.start() - 1, *times.end()).ok()?;
        return Some((Grid::Whole, own, i64::from(first)));
    }
    let inside = first.is_some() && last.is_some();
    if !inside && (by_window || intervals.count() == 1) {
        let within = *times.start().max(&(intervals.start() + 1))..=*times.end().min(&intervals.end());
        let (own, offset) = intervals.covering(within, INTERVALS_MAX).filter(|(own, _)| own.count() > 0)?;
        return Some((Grid::Window(own), own, offset));
    }
    let (own, offset) = intervals.covering(times, INTERVALS_MAX)?;
    Some((Grid::Steps { step: intervals.step(), phase: intervals.start() % intervals.step() }, own, offset))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{
        exec::memory::Reservation,
        metrics::{
            cells::{CellKind, Cells},
            partial::Partial,
        },
        plan::matches::key_value,
        spans::value::Value,
    };

    const ROWS: RowGroup = RowGroup { first_row: 0, rows: 10, trace_start_min: 105, trace_start_max: 120, trace_end_max: 128 };

    fn part(group: usize) -> Part<'static> {
        Part { block: BlockId(uuid::Uuid::nil()), group, rows: &ROWS, excluded: Vec::new() }
    }

    /// `series` series with a span in each of `intervals`.
    fn batch(series: usize, intervals: usize) -> RecordBatch {
        let mut partial = Partial::new(CellKind::Counts, intervals, Reservation::default());
        for number in 0..series {
            let place = partial.place(vec![key_value("n", &Value::Int(number as i64))]).unwrap();
            if let Cells::Counts(cells) = partial.cells(place) {
                cells.fill(1);
            }
        }
        partial.to_batch().unwrap()
    }

    fn slot(cache: &PartialCache, group: usize, intervals: Intervals) -> Option<Slot> {
        cache.slot(part(group), &"{ } | rate()".into(), &intervals, false)
    }

    /// Steps of ten; three of them hold all times of the row group.
    fn steps(start: u64, end: u64) -> Intervals {
        Intervals::of_range(start, end, 10).unwrap()
    }

    #[test]
    fn a_row_group_is_kept_over_all_its_times_and_cut_by_the_window() {
        let cache = PartialCache::new(1 << 20);
        let first = slot(&cache, 0, steps(110, 120)).unwrap();
        assert_eq!((first.own().start(), first.own().count()), (100, 3));
        assert!(matches!(cache.get(&first).unwrap(), Found::Nothing));
        // Samples at 110 and 120, out of 110, 120 and 130.
        assert_eq!(cache.put(first, &batch(1, 3)).unwrap().num_rows(), 2);
        for (window, rows) in [(steps(110, 120), 2), (steps(0, 200), 3), (steps(130, 200), 1), (steps(140, 200), 0)] {
            let Found::Series(series) = cache.get(&slot(&cache, 0, window).unwrap()).unwrap() else { panic!("nothing for {window:?}") };
            assert_eq!(series.num_rows(), rows, "{window:?}");
        }
        for other in [Intervals::of_range(0, 200, 20).unwrap(), Intervals::of_instant(0, 200).unwrap()] {
            assert!(matches!(cache.get(&slot(&cache, 0, other).unwrap()).unwrap(), Found::Nothing), "{other:?}");
        }
    }

    #[test]
    fn one_interval_serves_every_grid() {
        let cache = PartialCache::new(1 << 20);
        let instant = slot(&cache, 0, Intervals::of_instant(104, 128).unwrap()).unwrap();
        assert_eq!(instant.own().count(), 1);
        cache.put(instant, &batch(1, 1)).unwrap();
        for window in [Intervals::of_instant(0, 4000).unwrap(), Intervals::of_range(100, 300, 50).unwrap()] {
            assert!(matches!(cache.get(&slot(&cache, 0, window).unwrap()).unwrap(), Found::Series(series) if series.num_rows() == 1), "{window:?}");
        }
        let cut = Intervals::of_instant(105, 4000).unwrap();
        let own = slot(&cache, 0, cut).unwrap();
        assert!(matches!(cache.get(&own).unwrap(), Found::Nothing), "its window cuts the row group");
        assert_eq!(*own.own(), cut);
    }

    #[test]
    fn some_are_kept_only_from_within_the_window() {
        let cache = PartialCache::new(1 << 20);
        let slot = |intervals| cache.slot(part(0), &"compare".into(), &intervals, true);
        let found = |intervals| matches!(cache.get(&slot(intervals).unwrap()).unwrap(), Found::Series(_));
        // The row group has times from 105 to 128.
        for (window, own) in [(steps(110, 130), (100, 3)), (steps(120, 200), (110, 2)), (steps(0, 120), (100, 2))] {
            assert!(!found(window), "cut elsewhere: {window:?}");
            let slot = slot(window).unwrap();
            assert_eq!((slot.own().start(), slot.own().count()), own);
            cache.put(slot, &batch(1, own.1)).unwrap();
        }
        assert!([(110, 200), (0, 130), (120, 300), (100, 120)].iter().all(|&(start, end)| found(steps(start, end))), "cut in the same places");
        assert!(slot(steps(150, 200)).is_none(), "nothing of it is within");
        // Intervals do not hold their start.
        for outside in [(128, 4000), (10, 104)] {
            assert!(slot(Intervals::of_instant(outside.0, outside.1).unwrap()).is_none(), "{outside:?}");
        }
        for touching in [(127, 4000), (10, 105)] {
            assert_eq!(slot(Intervals::of_instant(touching.0, touching.1).unwrap()).unwrap().own().count(), 1, "{touching:?}");
        }
    }

    #[test]
    fn the_bound_holds_and_is_counted() {
        let cache = PartialCache::new(200_000);
        for group in 0..300 {
            cache.put(slot(&cache, group, steps(0, 200)).unwrap(), &batch(5, 3)).unwrap();
            cache.settle();
        }
        let bytes = cache.metrics.bytes.get();
        assert!((100_000..=200_000).contains(&bytes), "{bytes}");
        assert_eq!(bytes as u64, cache.entries.weighted_size());
        assert_eq!(cache.metrics.evictions.get() + cache.entries.entry_count(), 300);
    }

    #[test]
    fn what_does_not_fit_is_not_tried_again() {
        let cache = PartialCache::new(40_000);
        let large = || slot(&cache, 0, steps(0, 200)).unwrap();
        assert_eq!(cache.put(large(), &batch(200, 3)).unwrap().num_rows(), 600);
        assert!(matches!(cache.get(&large()).unwrap(), Found::TooLarge));
        assert!(slot(&PartialCache::new(0), 0, steps(0, 200)).is_none(), "a cache of no bytes is off");
    }
}
