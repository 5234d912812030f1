//! The groups of rows by the codes of their keys.

use arrow::{
    array::{ArrayRef, UInt32Array},
    compute::take,
    datatypes::DataType,
};
use datafusion::common::Result;
use hashbrown::HashMap;

use super::codes::Codes;

/// Most keys of a group whose codes fit into 64 bits, whatever their values are.
pub(super) const KEYS_ALWAYS: usize = 2;

/// Most keys of a group, and most rows of a batch, so that the codes of one batch fit.
pub(super) const KEYS_MAX: usize = 4;
pub(super) const ROWS_MAX: usize = (1 << 16) - 1;

/// Most bits of codes by which groups are looked up in an array. With more it is by their hash.
const BITS_OF_ARRAY_MAX: u32 = 16;

/// In place of a group that no row had yet.
const NO_GROUP: u32 = u32::MAX;

/// The groups so far, numbered from 0 in the order in which they came.
///
/// With one key a group's number is the code of its value. With several it is found by the codes of the values, side by side in 64 bits. With five
/// services and three kinds there are three bits for the one and two for the other:
/// ```text
/// code of kind << 3 | code of service → number
/// ```
pub(super) struct Groups {
    keys: Vec<Codes>,
    /// Bits of each key.
    widths: Vec<u32>,
    /// The codes of each group; none with one key.
    groups: Vec<u64>,
    numbers: Numbers,
    /// The codes of each row of a batch; and of one key, before they are put side by side.
    rows: Vec<u64>,
    codes: Vec<u32>,
}

/// The numbers of groups by their codes.
enum Numbers {
    Array(Vec<u32>),
    Hash(HashMap<u64, u32>),
}

impl Groups {
    /// No groups, by keys of the types `kinds`.
    pub(super) fn new(kinds: &[DataType]) -> Self {
        let keys: Vec<Codes> = kinds.iter().map(Codes::new).collect();
        let widths: Vec<u32> = keys.iter().map(width).collect();
        Self { numbers: Numbers::new(&[], &widths), keys, widths, groups: Vec::new(), rows: Vec::new(), codes: Vec::new() }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        match &*self.keys {
            [codes] => codes.count(),
            _ => self.groups.len(),
        }
    }

    /// Puts the group of each row into `found`. False where the codes of all batches together do not fit: then no group was added, and with no
    /// groups before it is possible. `keys` have at most [`ROWS_MAX`] rows.
    pub(super) fn of_rows(&mut self, keys: &[ArrayRef], found: &mut Vec<usize>) -> bool {
        found.clear();
        if let ([codes], [key]) = (&mut *self.keys, keys) {
            self.codes.clear();
            codes.of_rows(key, &mut self.codes);
            found.extend(self.codes.iter().map(|&code| code as usize));
            return true;
        }
        let Some(widths) = self.put_side_by_side(keys) else { return false };
        if widths != self.widths {
            self.widen(widths);
        }
        let Self { groups, numbers, rows, .. } = self;
        match numbers {
            Numbers::Array(numbers) => found.extend(rows.iter().map(|&codes| {
                let number = &mut numbers[codes as usize];
                if *number == NO_GROUP {
                    *number = add(groups, codes);
                }
                *number as usize
            })),
            Numbers::Hash(numbers) => {
                found.extend(rows.iter().map(|&codes| *numbers.entry(codes).or_insert_with(|| add(groups, codes)) as usize));
            }
        }
        true
    }

    /// Fills `rows`, and says how wide codes have become; None where there is no room for all.
    fn put_side_by_side(&mut self, keys: &[ArrayRef]) -> Option<Vec<u32>> {
        let Self { keys: codes, rows, codes: of_key, .. } = self;
        rows.clear();
        rows.resize(keys.first()?.len(), 0);
        let (mut widths, mut shift) = (Vec::with_capacity(codes.len()), 0);
        for (codes, key) in codes.iter_mut().zip(keys) {
            if shift >= u64::BITS {
                return None;
            }
            of_key.clear();
            codes.of_rows(key, of_key);
            rows.iter_mut().zip(&*of_key).for_each(|(row, &code)| *row |= u64::from(code) << shift);
            widths.push(width(codes));
            shift += width(codes);
        }
        (shift <= u64::BITS).then_some(widths)
    }

    fn widen(&mut self, widths: Vec<u32>) {
        for codes in &mut self.groups {
            let (mut from, mut to, mut widened) = (0, 0, 0);
            for (old, new) in self.widths.iter().zip(&widths) {
                widened |= (*codes >> from & ((1 << old) - 1)) << to;
                (from, to) = (from + old, to + new);
            }
            *codes = widened;
        }
        self.numbers = Numbers::new(&self.groups, &widths);
        self.widths = widths;
    }

    /// The values of each key, a row a group. Errors: `ResourcesExhausted` for more than 2 GiB of texts, unless they are views; Arrow's where
    /// groups by several keys repeat them until there are as many.
    pub(super) fn values(self) -> Result<Vec<ArrayRef>> {
        if self.keys.len() == 1 {
            return self.keys.into_iter().map(Codes::all).collect();
        }
        let mut shift = 0;
        let of_key = self.keys.into_iter().zip(self.widths).map(|(key, width)| {
            let codes = self.groups.iter().map(|codes| (codes >> shift & ((1 << width) - 1)) as u32);
            let codes = UInt32Array::from_iter_values(codes);
            shift += width;
            Ok(take(&key.all()?, &codes, None)?)
        });
        of_key.collect()
    }

    /// Bytes in memory.
    pub(super) fn size(&self) -> usize {
        let numbers = match &self.numbers {
            Numbers::Array(numbers) => 4 * numbers.capacity(),
            Numbers::Hash(numbers) => numbers.allocation_size(),
        };
        self.keys.iter().map(Codes::size).sum::<usize>() + 8 * (self.groups.capacity() + self.rows.capacity()) + 4 * self.codes.capacity() + numbers
    }
}

impl Numbers {
    /// The numbers of `groups`, whose keys have codes of `widths` bits.
    fn new(groups: &[u64], widths: &[u32]) -> Self {
        let numbered = groups.iter().copied().zip(0..);
        let bits: u32 = widths.iter().sum();
        if bits > BITS_OF_ARRAY_MAX {
            return Self::Hash(numbered.collect());
        }
        let mut numbers = vec![NO_GROUP; 1 << bits];
        numbered.for_each(|(codes, number)| numbers[codes as usize] = number);
        Self::Array(numbers)
    }
}

fn width(codes: &Codes) -> u32 {
    let largest = codes.count().saturating_sub(1) as u32;
    (u32::BITS - largest.leading_zeros()).max(1)
}

/// The number of a group that is added.
fn add(groups: &mut Vec<u64>, codes: u64) -> u32 {
    groups.push(codes);
    groups.len() as u32 - 1
}
