//! Where the values of columns change from one row to the next.

use arrow::buffer::NullBuffer;

use super::values::{Values, is_same};
use crate::spans::read::{Texts, Typed};

/// The rows at which any of some columns changes.
pub(super) struct Changes {
    /// Whether a value is not that of the row before.
    values: Vec<bool>,
    /// A bit for each row: whether a value is there and was not, or the other way around. By itself, so that a column costs a step for 64 rows.
    nulls: Vec<u64>,
}

impl Changes {
    /// None yet, in `rows` rows.
    pub(super) fn new(rows: usize) -> Self {
        Self { values: vec![false; rows], nulls: vec![0; rows.div_ceil(64)] }
    }

    /// Adds those of a column; whether there may be any. Where it has nulls, what lies under them may count as changes, which cost a look more.
    /// Cost: a comparison a row.
    pub(super) fn add(&mut self, column: &Values) -> bool {
        let (rows, fresh) = (self.values.len(), self.values.get_mut(1..).unwrap_or_default());
        let changes = match column {
            Values::Each(Typed::Text(Texts::Dictionary(dictionary, _))) => mark(fresh, differences(dictionary.keys().values())),
            Values::Each(Typed::Int(values)) => mark(fresh, differences(values.values())),
            Values::Each(values) => mark(fresh, (1..rows).map(|row| !is_same(values, row - 1, row))),
            Values::Lists(lists) => mark(fresh, (1..rows).map(|row| !lists.is_same(row - 1, row))),
        };
        changes | column.nulls().is_some_and(|nulls| self.add_nulls(nulls))
    }

    fn add_nulls(&mut self, nulls: &NullBuffer) -> bool {
        let (mut changes, mut before) = (0, None);
        let rest = nulls.len() % 64;
        let last = if rest == 0 { u64::MAX } else { (1 << rest) - 1 };
        let words = self.nulls.len();
        for (at, (known, valid)) in self.nulls.iter_mut().zip(nulls.inner().bit_chunks().iter_padded()).enumerate() {
            let changed = (valid ^ (valid << 1 | before.unwrap_or(valid & 1))) & if at + 1 == words { last } else { u64::MAX };
            *known |= changed;
            changes |= changed;
            before = Some(valid >> 63);
        }
        changes != 0
    }

    /// The first rows of runs in which nothing changes.
    pub(super) fn runs(&self) -> Vec<usize> {
        let begins = |row: usize| self.values[row] || self.nulls[row / 64] >> (row % 64) & 1 == 1;
        (0..self.values.len()).filter(|&row| row == 0 || begins(row)).collect()
    }
}

/// Whether each but the first is not the one before.
fn differences<T: PartialEq>(values: &[T]) -> impl Iterator<Item = bool> {
    values.iter().zip(values.get(1..).unwrap_or_default()).map(|(before, value)| before != value)
}

/// Marks what changed, and whether anything did. Without a branch for each, so that many are marked at once.
fn mark(marks: &mut [bool], changed: impl Iterator<Item = bool>) -> bool {
    let mut any = false;
    for (mark, changed) in marks.iter_mut().zip(changed) {
        *mark |= changed;
        any |= changed;
    }
    any
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, BooleanArray, Int64Array};

    use super::*;

    /// What [`Changes`] says of these columns, against looking at each row.
    fn check(columns: &[Vec<Option<i64>>]) {
        let rows = columns[0].len();
        let mut changes = Changes::new(rows);
        for column in columns {
            let differs = column.windows(2).any(|pair| pair[0] != pair[1]);
            assert_eq!(changes.add(&Values::Each(Typed::Int(Int64Array::from(column.clone())))), differs, "{column:?}");
        }
        let expected: Vec<usize> = (0..rows).filter(|&row| row == 0 || columns.iter().any(|column| column[row] != column[row - 1])).collect();
        assert_eq!(changes.runs(), expected, "{columns:?}");
    }

    #[test]
    fn runs_end_where_a_value_or_a_null_does() {
        for rows in [1, 2, 63, 64, 65, 127, 128, 129, 300] {
            let valid_but = |at: &[usize]| (0..rows).map(|row| (!at.contains(&row)).then_some(0)).collect::<Vec<_>>();
            check(&[vec![Some(0); rows]]);
            check(&[vec![None; rows]]);
            for at in [0, 1, 62, 63, 64, 65, rows - 1] {
                check(&[valid_but(&[at])]);
                check(&[(0..rows as i64).map(|row| Some(row / 50)).collect(), valid_but(&[at, at + 1])]);
            }
        }
    }

    #[test]
    fn columns_that_show_a_part_of_others_are_read_from_there() {
        let whole = BooleanArray::from((0..200).map(|row| (row % 70 > 3).then_some(row % 50 > 9)).collect::<Vec<_>>());
        let part = whole.slice(37, 131);
        let mut changes = Changes::new(part.len());
        assert!(changes.add(&Values::Each(Typed::Bool(part.clone()))));
        let value = |row: usize| part.is_valid(row).then(|| part.value(row));
        let expected: Vec<usize> = (0..part.len()).filter(|&row| row == 0 || value(row) != value(row - 1)).collect();
        assert_eq!(changes.runs(), expected);
    }

    #[test]
    fn no_rows_have_no_runs() {
        let mut changes = Changes::new(0);
        assert!(!changes.add(&Values::Each(Typed::Int(Int64Array::from(vec![None::<i64>; 0])))));
        assert_eq!(changes.runs(), Vec::<usize>::new());
    }
}
