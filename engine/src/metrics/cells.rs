//! What is kept of the spans of one series, interval by interval. Adding is exact or nearly so, and its order does not matter.

use std::ops::Range;

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::estimate::{Estimate, NumberEstimate, Sum, Weight};

/// Powers of two that can bound a value: `2^1` to `2^63`; the bucket of `v` is the least power that is not below it.
pub const BUCKETS: usize = 64;

/// What a function needs of the spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CellKind {
    /// Their number.
    Counts,
    /// Their number, where most series have spans in few intervals.
    FewCounts,
    /// Number, sum, least and greatest of their values.
    Numbers,
    /// Numbers by power of two.
    Buckets,
    /// Numbers by bucket of a [`sketch`](super::sketch).
    Sketches,
    /// The number that sampled spans stand for.
    WeightedCounts,
    /// The number that sampled spans stand for, and the sum of their values.
    WeightedNumbers,
    /// The numbers that sampled spans stand for, by power of two or bucket of a sketch.
    WeightedBuckets,
}

/// Number, sum, least and greatest of the values in an interval.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub struct NumberCell {
    pub count: u64,
    pub sum: Sum,
    pub min: f64,
    pub max: f64,
}

impl Default for NumberCell {
    fn default() -> Self {
        Self { count: 0, sum: Sum::default(), min: f64::INFINITY, max: f64::NEG_INFINITY }
    }
}

impl NumberCell {
    /// Adds a value.
    pub fn add(&mut self, value: f64) {
        self.count += 1;
        self.sum.add(value);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    /// Adds what another cell has.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.sum.merge(&other.sum);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// The sum of all values.
    pub fn total(&self) -> f64 {
        self.sum.total()
    }
}

/// Numbers of spans by interval, ascending; the other intervals have none. One costs no allocation.
pub type Few = SmallVec<[(u32, u64); 1]>;

/// Adds `count` spans in interval `at`. Returns the bytes that `few` has grown by. Cost: least where `at` is not before the others.
pub fn add_few(few: &mut Few, at: u32, count: u64) -> usize {
    let held = few_bytes(few);
    let place = match few.last() {
        Some(&(last, _)) if last >= at => few.partition_point(|&(interval, _)| interval < at),
        _ => few.len(),
    };
    match few.get_mut(place) {
        Some((interval, own)) if *interval == at => *own += count,
        _ => few.insert(place, (at, count)),
    }
    few_bytes(few) - held
}

/// Bytes that `few` takes beside itself.
fn few_bytes(few: &Few) -> usize {
    if few.spilled() { few.capacity() * size_of::<(u32, u64)>() } else { 0 }
}

/// Something for each bucket that has spans.
pub type Sparse<T> = HashMap<i32, T>;

/// The buckets of a cell in ascending order.
pub fn in_order<T: Copy>(buckets: &Sparse<T>) -> Vec<(i32, T)> {
    let mut buckets: Vec<_> = buckets.iter().map(|(&bucket, &content)| (bucket, content)).collect();
    buckets.sort_unstable_by_key(|(bucket, _)| *bucket);
    buckets
}

/// The cells of one series, one an interval.
#[derive(Debug, Clone, PartialEq)]
pub enum Cells {
    /// See [`CellKind::Counts`].
    Counts(Vec<u64>),
    /// See [`CellKind::FewCounts`].
    FewCounts(Few),
    /// See [`CellKind::Numbers`].
    Numbers(Vec<NumberCell>),
    /// See [`CellKind::Buckets`]; empty where there is nothing.
    Buckets(Vec<Option<Box<[u64; BUCKETS]>>>),
    /// See [`CellKind::Sketches`].
    Sketches(Vec<Sparse<u64>>),
    /// See [`CellKind::WeightedCounts`].
    WeightedCounts(Vec<Estimate>),
    /// See [`CellKind::WeightedNumbers`].
    WeightedNumbers(Vec<NumberEstimate>),
    /// See [`CellKind::WeightedBuckets`].
    WeightedBuckets(Vec<Sparse<Estimate>>),
}

impl Cells {
    /// Empty cells for `intervals` intervals.
    pub fn new(kind: CellKind, intervals: usize) -> Self {
        match kind {
            CellKind::Counts => Self::Counts(vec![0; intervals]),
            CellKind::FewCounts => Self::FewCounts(Few::new()),
            CellKind::Numbers => Self::Numbers(vec![NumberCell::default(); intervals]),
            CellKind::Buckets => Self::Buckets(vec![None; intervals]),
            CellKind::Sketches => Self::Sketches(vec![Sparse::new(); intervals]),
            CellKind::WeightedCounts => Self::WeightedCounts(vec![Estimate::default(); intervals]),
            CellKind::WeightedNumbers => Self::WeightedNumbers(vec![NumberEstimate::default(); intervals]),
            CellKind::WeightedBuckets => Self::WeightedBuckets(vec![Sparse::new(); intervals]),
        }
    }

    /// Adds what other cells of the same kind and length have.
    pub fn merge(&mut self, other: &Self) {
        match (self, other) {
            (Self::Counts(own), Self::Counts(other)) => own.iter_mut().zip(other).for_each(|(own, other)| *own += other),
            (Self::FewCounts(own), Self::FewCounts(other)) => {
                for &(at, count) in other {
                    add_few(own, at, count);
                }
            }
            (Self::Numbers(own), Self::Numbers(other)) => own.iter_mut().zip(other).for_each(|(own, other)| own.merge(other)),
            (Self::Buckets(own), Self::Buckets(other)) => {
                for (own, other) in own.iter_mut().zip(other) {
                    if let Some(other) = other {
                        let own = own.get_or_insert_with(|| Box::new([0; BUCKETS]));
                        own.iter_mut().zip(other.iter()).for_each(|(own, other)| *own += other);
                    }
                }
            }
            (Self::Sketches(own), Self::Sketches(other)) => merge_sparse(own, other, |own, other| *own += other),
            (Self::WeightedCounts(own), Self::WeightedCounts(other)) => own.iter_mut().zip(other).for_each(|(own, other)| own.merge(other)),
            (Self::WeightedNumbers(own), Self::WeightedNumbers(other)) => own.iter_mut().zip(other).for_each(|(own, other)| own.merge(other)),
            (Self::WeightedBuckets(own), Self::WeightedBuckets(other)) => merge_sparse(own, other, Estimate::merge),
            _ => debug_assert!(false, "cells of different kinds"),
        }
    }

    /// How many counts or numbers of `intervals` are not empty.
    pub fn filled(&self, intervals: &Range<usize>) -> usize {
        match self {
            Self::Counts(cells) => cells_of(cells, intervals).filter(|(_, count)| **count > 0).count(),
            Self::FewCounts(cells) => few_of(cells, intervals).count(),
            Self::Numbers(cells) => cells_of(cells, intervals).filter(|(_, cell)| cell.count > 0).count(),
            Self::Buckets(cells) => {
                let filled = cells_of(cells, intervals).filter_map(|(_, buckets)| buckets.as_ref());
                filled.flat_map(|buckets| buckets.iter()).filter(|count| **count > 0).count()
            }
            Self::Sketches(cells) => cells_of(cells, intervals).map(|(_, cell)| cell.len()).sum(),
            Self::WeightedCounts(cells) => cells_of(cells, intervals).filter(|(_, cell)| cell.weight > Weight::default()).count(),
            Self::WeightedNumbers(cells) => cells_of(cells, intervals).filter(|(_, cell)| cell.spans.weight > Weight::default()).count(),
            Self::WeightedBuckets(cells) => cells_of(cells, intervals).map(|(_, cell)| cell.len()).sum(),
        }
    }

    /// Bytes in memory, roughly.
    pub fn memory_bytes(&self) -> usize {
        match self {
            Self::Counts(cells) => cells.len() * 8,
            Self::FewCounts(cells) => few_bytes(cells),
            Self::Numbers(cells) => size_of_val(&**cells),
            Self::Buckets(cells) => cells.len() * 8 + cells.iter().flatten().count() * BUCKETS_BYTES,
            Self::Sketches(cells) => size_of_val(&**cells) + cells.iter().map(|cell| cell.len() * sparse_bytes::<u64>()).sum::<usize>(),
            Self::WeightedCounts(cells) => size_of_val(&**cells),
            Self::WeightedNumbers(cells) => size_of_val(&**cells),
            Self::WeightedBuckets(cells) => size_of_val(&**cells) + cells.iter().map(|cell| cell.len() * sparse_bytes::<Estimate>()).sum::<usize>(),
        }
    }
}

/// The cells of `intervals`, which there are, each with its interval.
pub fn cells_of<'a, T>(cells: &'a [T], intervals: &Range<usize>) -> impl Iterator<Item = (usize, &'a T)> + use<'a, T> {
    intervals.clone().zip(&cells[intervals.clone()])
}

/// The counts of `intervals`, each with its interval.
pub fn few_of(few: &Few, intervals: &Range<usize>) -> impl Iterator<Item = (usize, u64)> {
    let counts = few.iter().map(|&(at, count)| (at as usize, count));
    counts.filter(move |(at, _)| intervals.contains(at))
}

/// Bytes of one cell's table of buckets.
pub const BUCKETS_BYTES: usize = BUCKETS * size_of::<u64>();

/// Bytes of an entry of [`Sparse`], roughly: tables are filled to two thirds.
pub const fn sparse_bytes<T>() -> usize {
    (size_of::<(i32, T)>() + 1) * 3 / 2
}

fn merge_sparse<T: Default>(own: &mut [Sparse<T>], other: &[Sparse<T>], merge: impl Fn(&mut T, &T)) {
    for (own, other) in own.iter_mut().zip(other) {
        other.iter().for_each(|(&bucket, content)| merge(own.entry(bucket).or_default(), content));
    }
}

/// The exponent of the least power of two that is not below `value`; None below 2.
#[inline]
pub fn bucket_of(value: i64) -> Option<usize> {
    (value >= 2).then(|| (64 - (value as u64 - 1).leading_zeros()) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_bounded_by_powers_of_two() {
        assert_eq!([i64::MIN, 0, 1].map(bucket_of), [None; 3]);
        assert_eq!([2, 3, 4, 5, 1 << 31, (1 << 31) + 1, i64::MAX].map(bucket_of), [1, 2, 2, 3, 31, 32, 63].map(Some));
    }

    #[test]
    fn few_counts_are_counts() {
        let (mut few, mut all, mut bytes) = (Few::new(), [0; 5], 0);
        for (at, count) in [(3, 2), (1, 1), (4, 5), (3, 1), (0, 7), (1, 1)] {
            bytes += add_few(&mut few, at, count);
            all[at as usize] += count;
        }
        assert_eq!(few.as_slice(), [(0, 7), (1, 2), (3, 3), (4, 5)]);
        assert!(few.iter().all(|&(at, count)| all[at as usize] == count) && all[2] == 0);
        assert_eq!(bytes, Cells::FewCounts(few).memory_bytes());
    }

    #[test]
    fn sums_do_not_depend_on_their_order() {
        let values = [1e16, 1.0, -1e16, 3.5, 1e-3, 7e15];
        let mut all = NumberCell::default();
        values.iter().for_each(|&value| all.add(value));
        let mut parts = [NumberCell::default(); 2];
        values.iter().rev().enumerate().for_each(|(at, &value)| parts[at % 2].add(value));
        let [mut merged, other] = parts;
        merged.merge(&other);
        assert_eq!((merged.total(), merged.count, merged.min, merged.max), (all.total(), 6, -1e16, 1e16));
        assert_eq!(all.total(), 7e15 + 4.501);
    }
}
