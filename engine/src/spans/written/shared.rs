//! Resources and scopes: the columns that describe them as messages, each distinct one once.
//!
//! Spans of one resource mostly lie together, so runs of rows are found first, a column at a time; only the first row of a run is numbered.

use std::{hash::BuildHasher, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, BinaryArray, DictionaryArray, Int32Array},
    buffer::{NullBuffer, OffsetBuffer, ScalarBuffer},
    datatypes::Int32Type,
};
use foldhash::fast::FixedState;
use hashbrown::HashTable;

use super::{
    changes::Changes,
    columns::Budget,
    values::{Attribute, Codes, Encoder, Values},
};
use crate::{
    error::Result,
    spans::{
        read::{Texts, Typed},
        wire::write_bytes_field,
    },
};

/// Messages and which of them each row has.
#[derive(Debug, Clone)]
pub(super) struct Coded {
    pub(super) codes: ScalarBuffer<i32>,
    /// `Resource` or `InstrumentationScope` messages, null for none.
    pub(super) messages: BinaryArray,
}

impl Coded {
    /// As a dictionary.
    pub(super) fn array(&self) -> Result<ArrayRef> {
        let keys = Int32Array::new(self.codes.clone(), None);
        Ok(Arc::new(DictionaryArray::<Int32Type>::try_new(keys, Arc::new(self.messages.clone()))?))
    }
}

/// What a scope is made of.
pub(super) struct Scope {
    pub(super) name: Option<Texts>,
    pub(super) version: Option<Texts>,
    pub(super) attributes: Vec<Attribute>,
}

/// The resource of every row: a `Resource` with its attributes in field 1; none where all are null.
pub(super) fn resources(attributes: &[Attribute], rows: usize, budget: &mut Budget) -> Result<Coded> {
    let groups = Groups::of(rows, &attributes.iter().map(|attribute| &attribute.values).collect::<Vec<_>>());
    let (mut encoder, mut pairs) = (Encoder::default(), Pairs::of(attributes, 1, rows));
    groups.messages(budget, |row, out| pairs.iter_mut().for_each(|pairs| pairs.append(out, &mut encoder, row)))
}

/// The scope of every row: an `InstrumentationScope` with name, version and attributes in fields 1 to 3.
pub(super) fn scopes(scope: &Scope, rows: usize, budget: &mut Budget) -> Result<Coded> {
    let texts = [(1, &scope.name), (2, &scope.version)];
    let named: Vec<Values> = texts.iter().filter_map(|(_, texts)| texts.as_ref()).map(|texts| Values::Each(Typed::Text(texts.clone()))).collect();
    let groups = Groups::of(rows, &named.iter().chain(scope.attributes.iter().map(|attribute| &attribute.values)).collect::<Vec<_>>());
    let (mut encoder, mut pairs) = (Encoder::default(), Pairs::of(&scope.attributes, 3, rows));
    groups.messages(budget, |row, out| {
        for (number, texts) in &texts {
            let text = texts.as_ref().and_then(|texts| texts.get(row)).unwrap_or_default();
            if !text.is_empty() {
                write_bytes_field(out, *number, text.as_bytes());
            }
        }
        pairs.iter_mut().for_each(|pairs| pairs.append(out, &mut encoder, row));
    })
}

/// An attribute as a field of messages. A text of a dictionary is written once, and copied into each message that has it.
struct Pairs<'a> {
    attribute: &'a Attribute,
    number: u32,
    written: Vec<u8>,
    /// Where in `written` each value of the dictionary is; from 0 to 0 it is not there yet. Empty for what is no dictionary, or one that was sent
    /// for many batches.
    of_keys: Vec<(u32, u32)>,
}

impl<'a> Pairs<'a> {
    /// Those of each of `attributes`, of `rows` rows.
    fn of(attributes: &'a [Attribute], number: u32, rows: usize) -> Vec<Self> {
        let values = |attribute: &Attribute| match &attribute.values {
            Values::Each(Typed::Text(Texts::Dictionary(_, values))) if values.len() <= rows => values.len(),
            _ => 0,
        };
        let pairs = |attribute| Self { attribute, number, written: Vec::new(), of_keys: vec![(0, 0); values(attribute)] };
        attributes.iter().map(pairs).collect()
    }

    /// Appends the field of a row that has one. What was written is no longer than all messages together.
    fn append(&mut self, out: &mut Vec<u8>, encoder: &mut Encoder, row: usize) {
        let Self { attribute, number, written, of_keys } = self;
        if !attribute.is_valid(row) {
            return;
        }
        match &attribute.values {
            Values::Each(Typed::Text(Texts::Dictionary(dictionary, _))) if !of_keys.is_empty() => {
                let known = &mut of_keys[dictionary.keys().value(row) as usize];
                if known.1 == 0 {
                    let from = written.len() as u32;
                    encoder.pair(written, *number, attribute, row);
                    *known = (from, written.len() as u32);
                }
                out.extend_from_slice(&written[known.0 as usize..known.1 as usize]);
            }
            _ => encoder.pair(out, *number, attribute, row),
        }
    }
}

/// Most bytes for messages that room is made for before they are there.
const MESSAGES_BYTES: usize = 1 << 20;

/// Rows with equal values in some columns.
struct Groups {
    rows: usize,
    /// First row of each run of rows of one group.
    runs: Vec<usize>,
    /// The group of each run, numbered in order of first sight.
    group_of_run: Vec<u32>,
    groups: usize,
}

impl Groups {
    fn of(rows: usize, columns: &[&Values]) -> Self {
        let mut changes = Changes::new(rows);
        // What all rows have tells none apart.
        let changing: Vec<&Values> = columns.iter().copied().filter(|values| changes.add(values)).collect();
        let runs = changes.runs();
        let mut columns: Vec<Codes<'_>> = changing.into_iter().map(|values| Codes::of(values, &runs)).collect();
        // Many values first: what they tell apart, the others mostly tell apart no further.
        columns.sort_by_key(|codes| std::cmp::Reverse(codes.count()));
        let (mut group_of_run, mut groups) = (vec![0; runs.len()], usize::from(rows > 0));
        for codes in &columns {
            groups = split_by(codes, &runs, &mut group_of_run, groups);
        }
        Self { rows, runs, group_of_run, groups }
    }

    /// The message of each group, which `write` makes of a row of it.
    fn messages(&self, budget: &mut Budget, mut write: impl FnMut(usize, &mut Vec<u8>)) -> Result<Coded> {
        let (mut messages, mut ends, mut valid) = (Vec::new(), vec![0_i32], Vec::with_capacity(self.groups));
        let mut codes = Vec::with_capacity(self.rows);
        for (run, (&row, &group)) in self.runs.iter().zip(&self.group_of_run).enumerate() {
            if group as usize == valid.len() {
                let before = messages.len();
                write(row, &mut messages);
                if group == 0 {
                    // They are of similar length.
                    messages.reserve(messages.len().saturating_mul(self.groups).min(MESSAGES_BYTES));
                }
                budget.take(messages.len() - before)?;
                valid.push(messages.len() > before);
                // The budget is far below 2 GiB.
                ends.push(messages.len() as i32);
            }
            let end = self.runs.get(run + 1).copied().unwrap_or(self.rows);
            codes.resize(end, group as i32);
        }
        debug_assert_eq!(valid.len(), self.groups);
        let nulls = NullBuffer::from(valid);
        let messages = BinaryArray::new(OffsetBuffer::new(ends.into()), messages.into(), Some(nulls).filter(|nulls| nulls.null_count() > 0));
        Ok(Coded { codes: codes.into(), messages })
    }
}

const NONE: u32 = u32::MAX;

/// Splits groups by one more column; `runs` are the rows whose groups are in `numbers`. Returns how many there are.
fn split_by(codes: &Codes<'_>, runs: &[usize], numbers: &mut [u32], count: usize) -> usize {
    let size = codes.count();
    match codes {
        Codes::Keys(keys, _) if keys.null_count() == 0 => split(numbers, count, size, |run| keys.value(runs[run]) as u32 + 1),
        Codes::Keys(keys, _) => split(numbers, count, size, |run| if keys.is_valid(runs[run]) { keys.value(runs[run]) as u32 + 1 } else { 0 }),
        Codes::Bools(values) => {
            split(numbers, count, size, |run| if values.is_valid(runs[run]) { 1 + u32::from(values.value(runs[run])) } else { 0 })
        }
        Codes::Numbers(known, _) => split(numbers, count, size, |run| known[run]),
    }
}

/// Splits groups by one more code, of `size`: `numbers` become those of the pairs of number and code, in order of first sight.
/// Returns how many there are.
fn split(numbers: &mut [u32], count: usize, size: usize, code_of: impl Fn(usize) -> u32) -> usize {
    match is_one_each(numbers, count, &code_of) {
        true => count,
        false => fold(numbers, count, size, code_of),
    }
}

/// Whether each group has one code.
fn is_one_each(numbers: &[u32], count: usize, code_of: impl Fn(usize) -> u32) -> bool {
    let mut known = vec![NONE; count];
    numbers.iter().enumerate().all(|(run, &number)| {
        let (known, code) = (&mut known[number as usize], code_of(run));
        if *known == NONE {
            *known = code;
        }
        *known == code
    })
}

/// [`split`] where some group has several codes. Cost: a look-up in a table of all pairs, or of those that there are, a run.
fn fold(numbers: &mut [u32], count: usize, size: usize, code_of: impl Fn(usize) -> u32) -> usize {
    let mut next = 0;
    let fresh = |next: &mut u32| {
        *next += 1;
        *next - 1
    };
    let places = count.saturating_mul(size);
    if places <= 4 * numbers.len() + 1024 {
        let mut known = vec![NONE; places];
        for (run, number) in numbers.iter_mut().enumerate() {
            let place = &mut known[*number as usize * size + code_of(run) as usize];
            if *place == NONE {
                *place = fresh(&mut next);
            }
            *number = *place;
        }
    } else {
        let hasher = FixedState::default();
        let mut known: HashTable<(u64, u32)> = HashTable::new();
        for (run, number) in numbers.iter_mut().enumerate() {
            let pair = u64::from(*number) << 32 | u64::from(code_of(run));
            let entry = known.entry(hasher.hash_one(pair), |(known, _)| *known == pair, |(known, _)| hasher.hash_one(known));
            *number = entry.or_insert_with(|| (pair, fresh(&mut next))).get().1;
        }
    }
    next as usize
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use arrow::array::StringArray;

    use super::*;

    /// A column of these codes, 0 being null.
    fn column(codes: &[u32], pad: usize) -> Values {
        let keys: Int32Array = codes.iter().map(|&code| code.checked_sub(1).map(|key| key as i32)).collect();
        let values = Arc::new(StringArray::from_iter_values((0..codes.iter().max().map_or(0, |&most| most as usize) + pad).map(|_| "")));
        Values::Each(Typed::Text(Texts::Dictionary(DictionaryArray::try_new(keys, values.clone()).unwrap(), values)))
    }

    /// The group of every row, both ways, against comparing rows.
    fn check(columns: &[&[u32]]) {
        let rows = columns[0].len();
        let of = |pad: usize| {
            let values: Vec<Values> = columns.iter().map(|codes| column(codes, pad)).collect();
            let groups = Groups::of(rows, &values.iter().collect::<Vec<_>>());
            let run_of = |row: usize| groups.runs.partition_point(|&first| first <= row) - 1;
            (0..rows).map(|row| groups.group_of_run[run_of(row)]).collect::<Vec<_>>()
        };
        let mut seen: Vec<Vec<u32>> = Vec::new();
        let mut expected = Vec::new();
        for row in 0..rows {
            let values: Vec<u32> = columns.iter().map(|codes| codes[row]).collect();
            let at = seen.iter().position(|known| *known == values).unwrap_or_else(|| {
                seen.push(values);
                seen.len() - 1
            });
            expected.push(at as u32);
        }
        assert_eq!(of(0), expected, "with a table");
        assert_eq!(of(1 << 20), expected, "with hashes");
    }

    #[test]
    fn rows_with_equal_values_are_one_group() {
        check(&[&[0, 0, 1, 1, 0], &[2, 2, 2, 0, 2]]);
        check(&[&[5; 7], &[0; 7]]);
        check(&[&[1, 0, 1, 0], &[0, 1, 0, 1], &[3, 3, 3, 2]]);
    }
}
