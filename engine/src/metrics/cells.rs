//! What is kept of the spans of one series, interval by interval. Adding is exact or nearly so, and its order does not matter.

use serde::{Deserialize, Serialize};

/// Powers of two that can bound a value: `2^1` to `2^63`; the bucket of `v` is the least power that is not below it.
pub const BUCKETS: usize = 64;

/// Bytes of the buckets of an interval.
pub const BUCKETS_BYTES: usize = BUCKETS * size_of::<u64>();

/// What a function needs of the spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CellKind {
    /// Their number.
    Counts,
    /// Number, sum, least and greatest of their values.
    Numbers,
    /// Numbers by power of two.
    Buckets,
}

/// Number, sum, least and greatest of the values in an interval. The sum carries what rounding lost.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub struct NumberCell {
    pub count: u64,
    pub sum: f64,
    pub lost: f64,
    pub min: f64,
    pub max: f64,
}

impl Default for NumberCell {
    fn default() -> Self {
        Self { count: 0, sum: 0.0, lost: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY }
    }
}

impl NumberCell {
    /// Adds a value.
    pub fn add(&mut self, value: f64) {
        self.count += 1;
        self.add_to_sum(value);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    /// Neumaier's summation.
    fn add_to_sum(&mut self, value: f64) {
        let sum = self.sum + value;
        if sum.is_finite() {
            self.lost += if self.sum.abs() >= value.abs() { (self.sum - sum) + value } else { (value - sum) + self.sum };
        }
        self.sum = sum;
    }

    /// Adds what another cell has.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.add_to_sum(other.sum);
        self.lost += other.lost;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// The sum of all values.
    pub fn total(&self) -> f64 {
        self.sum + self.lost
    }
}

/// The cells of one series, one an interval.
#[derive(Debug, Clone, PartialEq)]
pub enum Cells {
    /// See [`CellKind::Counts`].
    Counts(Vec<u64>),
    /// See [`CellKind::Numbers`].
    Numbers(Vec<NumberCell>),
    /// See [`CellKind::Buckets`]; empty where there is nothing.
    Buckets(Vec<Option<Box<[u64; BUCKETS]>>>),
}

impl Cells {
    /// Empty cells for `intervals` intervals.
    pub fn new(kind: CellKind, intervals: usize) -> Self {
        match kind {
            CellKind::Counts => Self::Counts(vec![0; intervals]),
            CellKind::Numbers => Self::Numbers(vec![NumberCell::default(); intervals]),
            CellKind::Buckets => Self::Buckets(vec![None; intervals]),
        }
    }

    /// Adds what other cells of the same kind and length have.
    pub fn merge(&mut self, other: &Self) {
        match (self, other) {
            (Self::Counts(own), Self::Counts(other)) => own.iter_mut().zip(other).for_each(|(own, other)| *own += other),
            (Self::Numbers(own), Self::Numbers(other)) => own.iter_mut().zip(other).for_each(|(own, other)| own.merge(other)),
            (Self::Buckets(own), Self::Buckets(other)) => {
                for (own, other) in own.iter_mut().zip(other) {
                    if let Some(other) = other {
                        let own = own.get_or_insert_with(|| Box::new([0; BUCKETS]));
                        own.iter_mut().zip(other.iter()).for_each(|(own, other)| *own += other);
                    }
                }
            }
            _ => debug_assert!(false, "cells of different kinds"),
        }
    }

    /// How many counts or numbers are not empty.
    pub fn filled(&self) -> usize {
        match self {
            Self::Counts(cells) => cells.iter().filter(|count| **count > 0).count(),
            Self::Numbers(cells) => cells.iter().filter(|cell| cell.count > 0).count(),
            Self::Buckets(cells) => cells.iter().flatten().flat_map(|buckets| buckets.iter()).filter(|count| **count > 0).count(),
        }
    }

    /// Bytes in memory, roughly.
    pub fn memory_bytes(&self) -> usize {
        match self {
            Self::Counts(cells) => cells.len() * 8,
            Self::Numbers(cells) => cells.len() * size_of::<NumberCell>(),
            Self::Buckets(cells) => cells.len() * 8 + cells.iter().flatten().count() * BUCKETS_BYTES,
        }
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
