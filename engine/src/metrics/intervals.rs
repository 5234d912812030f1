//! The grid of a metrics query. Intervals are open at their left end, closed at the right one, and named by it.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    query::Window,
};

/// Most intervals of a query.
const INTERVALS_MAX: u64 = 1 << 20;

/// Intervals of one length, one after another. Times are Unix nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Intervals {
    start: u64,
    step: u64,
    count: u32,
}

impl Intervals {
    /// The intervals of a range query: `start` is floored to a multiple of `step` and moved a step back, `end` is raised to a multiple, so
    /// that the first sample stands at the floored start. Errors: `Invalid` for an empty range, no step, or too many intervals.
    pub fn of_range(start: u64, end: u64, step: u64) -> Result<Self> {
        if step == 0 || start >= end {
            return Err(Error::invalid("a metrics query needs a step, and an end after its start"));
        }
        let first = (start - start % step).saturating_sub(step);
        let last = end.div_ceil(step).saturating_mul(step);
        Self::new(first, step, (last - first) / step)
    }

    /// The one interval of an instant query, not aligned. Errors: `Invalid` for an empty range.
    pub fn of_instant(start: u64, end: u64) -> Result<Self> {
        if start >= end {
            return Err(Error::invalid("end must be greater than start"));
        }
        Self::new(start, end - start, 1)
    }

    fn new(start: u64, step: u64, count: u64) -> Result<Self> {
        match u32::try_from(count) {
            Ok(intervals) if count <= INTERVALS_MAX => Ok(Self { start, step, count: intervals }),
            _ => Err(Error::invalid(format!("a metrics query of {count} intervals: take a longer step"))),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count as usize
    }

    /// Length of one in nanoseconds.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Start of the first; not part of it.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// End of the last; part of it.
    pub fn end(&self) -> u64 {
        self.start + self.step * u64::from(self.count)
    }

    /// The right end of interval `at` in Unix milliseconds, as samples are stamped.
    pub fn timestamp_ms(&self, at: usize) -> i64 {
        ((self.start + self.step * (at as u64 + 1)) / 1_000_000) as i64
    }

    /// The intervals of the same length and phase that hold all of `times`, and the place of their first one among these, before or after them
    /// as it may be. None when they are more than `count_max`, or would have to begin before 1970.
    pub fn covering(&self, times: RangeInclusive<u64>, count_max: u64) -> Option<(Self, i64)> {
        let phase = self.start % self.step;
        let start = phase + times.start().checked_sub(phase + 1)? / self.step * self.step;
        let count = times.end().checked_sub(start)?.div_ceil(self.step);
        if count > count_max.min(INTERVALS_MAX) {
            return None;
        }
        let offset = (i128::from(start) - i128::from(self.start)) / i128::from(self.step);
        Some((Self::new(start, self.step, count).ok()?, i64::try_from(offset).ok()?))
    }

    /// A window in seconds that holds them all.
    pub fn window(&self) -> Window {
        let seconds = |nanos: u64| u32::try_from(nanos).unwrap_or(u32::MAX);
        Window { start_seconds: seconds(self.start / 1_000_000_000), end_seconds: seconds(self.end().div_ceil(1_000_000_000)) }
    }

    /// The first interval that holds no time up to and including `time`; their number when there is none.
    pub fn first_after(&self, time: u64) -> usize {
        usize::try_from(time.saturating_sub(self.start).div_ceil(self.step)).unwrap_or(usize::MAX).min(self.count())
    }

    /// A finder of intervals for times that mostly ascend.
    pub fn finder(&self) -> IntervalFinder {
        IntervalFinder { intervals: *self, at: 0, after: 0, until: 0 }
    }
}

/// Stands for the interval of times that are in none.
pub const OUTSIDE: u32 = u32::MAX;

/// Finds the interval of a time; remembers the last one, since the spans of a trace mostly share it.
#[derive(Debug)]
pub struct IntervalFinder {
    intervals: Intervals,
    at: u32,
    after: u64,
    until: u64,
}

impl IntervalFinder {
    /// The interval that holds `time`, None outside of all.
    #[inline]
    pub fn find(&mut self, time: u64) -> Option<u32> {
        if time > self.after && time <= self.until {
            return Some(self.at);
        }
        let Intervals { start, step, count } = self.intervals;
        if time <= start {
            return None;
        }
        let at = (time - start - 1) / step;
        if at >= u64::from(count) {
            return None;
        }
        (self.at, self.after) = (at as u32, start + at * step);
        self.until = self.after + step;
        Some(self.at)
    }

    /// Adds the interval of each of the times `offsets` after `start` to `out`, or [`OUTSIDE`]. Returns the one in which all are, if there is one.
    /// Cost: least where there is.
    pub fn add_all(&mut self, start: u64, offsets: &[i64], out: &mut Vec<u32>) -> Option<u32> {
        let time = |offset: i64| start.wrapping_add(offset as u64);
        let alone = self.find(time(*offsets.first()?)).filter(|_| {
            let (first, length) = (self.after + 1, self.until - self.after);
            // Without a branch in the loop: mostly all are.
            !offsets.iter().fold(false, |any, &offset| any | (time(offset).wrapping_sub(first) >= length))
        });
        match alone {
            Some(at) => out.resize(out.len() + offsets.len(), at),
            None => out.extend(offsets.iter().map(|&offset| self.find(time(offset)).unwrap_or(OUTSIDE))),
        }
        alone
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn ranges_are_aligned_as_documented() {
        // From 0.3 s to 9.7 s by 2 s: samples at 0, 2, 4, 6, 8, 10 s.
        let intervals = Intervals::of_range(20_300_000_000, 29_700_000_000, 2_000_000_000).unwrap();
        let stamps: Vec<i64> = (0..intervals.count()).map(|at| intervals.timestamp_ms(at)).collect();
        assert_eq!(stamps, [20_000, 22_000, 24_000, 26_000, 28_000, 30_000]);
        let aligned = Intervals::of_range(120_000_000_000, 240_000_000_000, 60_000_000_000).unwrap();
        assert_eq!(aligned.count(), 3);
        assert!(Intervals::of_range(5, 5, 1).is_err() && Intervals::of_range(5, 6, 0).is_err() && Intervals::of_range(0, u64::MAX / 2, 1).is_err());
    }

    #[test]
    fn other_times_lie_on_the_same_grid() {
        let intervals = Intervals::of_instant(103, 113).unwrap();
        for times in [104..=113u64, 113..=114, 94..=133, 104..=104, 4..=5000] {
            let (own, offset) = intervals.covering(times.clone(), 1000).unwrap();
            assert_eq!(own.start() as i64, 103 + 10 * offset);
            assert!(own.start() < *times.start() && own.start() + 10 >= *times.start(), "{own:?} {times:?}");
            assert!(own.end() >= *times.end() && own.end() - 10 < *times.end(), "{own:?} {times:?}");
        }
        assert_eq!(intervals.covering(3..=3, 9).map(|(own, offset)| (own.start(), own.count(), offset)), None, "it would begin before 1970");
        assert!(intervals.covering(104..=203, 10).is_some() && intervals.covering(104..=204, 10).is_none());
    }

    #[test]
    fn intervals_are_closed_at_the_right() {
        let intervals = Intervals::of_instant(10, 40).unwrap();
        let mut finder = intervals.finder();
        assert_eq!([10, 11, 40, 41, 11].map(|time| finder.find(time)), [None, Some(0), Some(0), None, Some(0)]);
        let intervals = Intervals::of_range(100, 130, 10).unwrap();
        let mut finder = intervals.finder();
        for time in [91u64, 100, 101, 110, 111, 130, 91] {
            assert_eq!(finder.find(time), Some(((time - 90).div_ceil(10) - 1) as u32), "{time}");
        }
        assert_eq!([90, 131].map(|time| finder.find(time)), [None, None]);
        assert_eq!([0, 90, 91, 100, 101, 130, u64::MAX].map(|time| intervals.first_after(time)), [0, 0, 1, 1, 2, 4, 4]);
    }

    #[test]
    fn all_times_are_found_as_each_one_is() {
        let intervals = Intervals::of_range(20, 60, 10).unwrap();
        let mut finder = intervals.finder();
        let offsets = [0, 3, -3, 9, 10, 11, 40, i64::MAX, i64::MIN];
        for (start, length) in (0..80_u64).chain([u64::MAX - 2]).flat_map(|start| (0..=offsets.len()).map(move |length| (start, length))) {
            let mut found = vec![7];
            let alone = finder.add_all(start, &offsets[..length], &mut found);
            let one = |&offset: &i64| intervals.finder().find(start.wrapping_add(offset as u64)).unwrap_or(OUTSIDE);
            assert_eq!(found[1..], offsets[..length].iter().map(one).collect::<Vec<_>>(), "{length} times after {start}");
            let is_alone = length > 0 && found[1] != OUTSIDE && found[1..].iter().all(|&at| at == found[1]);
            assert_eq!(alone, is_alone.then(|| found[1]), "{length} times after {start}");
        }
    }
}
