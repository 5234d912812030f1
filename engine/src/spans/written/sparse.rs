//! Attributes that few spans of a table have, as values of just these spans: a client that writes all its spans as one table has a column for
//! each attribute that any of them has, and most of these are mostly null. Checked, logged and appended in this form.

use std::{
    hash::{BuildHasher, Hasher},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, UInt32Array},
    buffer::{NullBuffer, ScalarBuffer},
    compute::{FilterBuilder, FilterPredicate},
    datatypes::{DataType, UInt32Type},
    record_batch::RecordBatch,
};
use hashbrown::{DefaultHashBuilder, HashTable};

use super::{
    columns::{self, Budget, Given},
    record::{Columns, attributes_of},
    values::Attribute,
};
use crate::{
    error::{Error, Result},
    spans::read::column,
};

/// Nulls that are worth it: a group costs some hundred bytes in the log, where a null takes one at least, and a microsecond or so. Tests have
/// short tables.
const NULLS_MIN: usize = if cfg!(test) { 4 } else { 512 };

/// The column of the rows that a table of sparse attributes is of.
const ROW: &str = "row";

/// Attributes that the same few spans have.
#[derive(Debug, Clone)]
pub(super) struct Sparse {
    /// Rows of these spans, ascending.
    pub(super) rows: ScalarBuffer<u32>,
    /// Their values, one for each of `rows`. None is a list.
    pub(super) attributes: Vec<Attribute>,
}

/// The attributes of a scope, those left out that no row has: those that most rows have, lists among them, and the others by the rows that
/// have them. Cost: a look at the nulls of each column, and at the values that are there. Errors: as of [`Attribute::of`].
pub(super) fn split(scope: &str, columns: &[(&str, &ArrayRef)], budget: &mut Budget) -> Result<(Vec<Attribute>, Vec<Sparse>)> {
    let (mut dense, mut groups) = (Vec::new(), Groups::default());
    for (key, array) in columns {
        let name = format!("{scope}.{key}");
        let given = Given::column(&name, array);
        let Some(nulls) = nulls_of_sparse(array) else {
            dense.extend(Attribute::of(key, &given, budget)?);
            continue;
        };
        let Group { wanted, found, .. } = groups.with(nulls);
        let there = match columns::dictionary_at(array, &found.rows) {
            Some(there) => there,
            None => wanted.filter(array)?,
        };
        found.attributes.extend(Attribute::of(key, &given.with(&there).in_rows(&found.rows), budget)?);
    }
    Ok((dense, groups.all.into_iter().map(|group| group.found).collect()))
}

/// The nulls of a column that few rows have, and some have; None for others and for lists.
fn nulls_of_sparse(array: &ArrayRef) -> Option<NullBuffer> {
    if matches!(array.data_type(), DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(_, _)) {
        return None;
    }
    let is_sparse = |nulls: &NullBuffer| (NULLS_MIN..array.len()).contains(&nulls.null_count()) && nulls.null_count() * 2 > array.len();
    array.logical_nulls().filter(is_sparse)
}

/// Columns with the same nulls.
struct Group {
    nulls: NullBuffer,
    wanted: FilterPredicate,
    found: Sparse,
}

/// Columns by their nulls.
#[derive(Default)]
struct Groups {
    all: Vec<Group>,
    /// Places in `all`.
    by_nulls: HashTable<usize>,
    hasher: DefaultHashBuilder,
}

impl Groups {
    /// The columns with these nulls.
    fn with(&mut self, nulls: NullBuffer) -> &mut Group {
        let Self { all, by_nulls, hasher } = self;
        let hash_of = |nulls: &NullBuffer| {
            let mut hash = hasher.build_hasher();
            nulls.inner().bit_chunks().iter_padded().for_each(|word| hash.write_u64(word));
            hash.finish()
        };
        let entry = by_nulls.entry(hash_of(&nulls), |&at| all[at].nulls == nulls, |&at| hash_of(&all[at].nulls));
        let at = *entry.or_insert_with(|| all.len()).get();
        if at == all.len() {
            all.push(Group::of(nulls));
        }
        &mut all[at]
    }
}

impl Group {
    fn of(nulls: NullBuffer) -> Self {
        // Not optimised for many uses: the places of its rows would be kept until the last column is read, in eight bytes each.
        let wanted = FilterBuilder::new(&BooleanArray::new(nulls.inner().clone(), None)).build();
        let mut rows = Vec::with_capacity(nulls.len() - nulls.null_count());
        rows.extend(nulls.valid_indices().map(|row| row as u32));
        let rows = rows.into();
        Self { nulls, wanted, found: Sparse { rows, attributes: Vec::new() } }
    }
}

impl Sparse {
    /// As a table with the column [`ROW`] and columns `scope.key`. Errors: `Internal`.
    pub(super) fn batch(&self, scope: &str) -> Result<RecordBatch> {
        let mut columns = Columns::default();
        columns.add(ROW, Arc::new(UInt32Array::new(self.rows.clone(), None)));
        columns.add_attributes(scope, &self.attributes);
        columns.batch(self.rows.len())
    }

    /// What [`Sparse::batch`] made, of a table of `rows` rows. Errors: `Data` for rows that are not ascending, or that there are not.
    pub(super) fn of_batch(batch: &RecordBatch, scope: &str, rows: usize, budget: &mut Budget) -> Result<Self> {
        let there = column(batch, ROW)?.as_primitive_opt::<UInt32Type>().filter(|there| there.null_count() == 0);
        let there = there.ok_or_else(|| Error::data("a table of sparse attributes does not name its rows"))?.values();
        if !there.is_sorted_by(|a, b| a < b) || there.last().is_some_and(|&last| last as usize >= rows) {
            return Err(Error::data(format!("a table of sparse attributes has rows that are none of the {rows} of its spans")));
        }
        Ok(Self { rows: there.clone(), attributes: attributes_of(batch, &format!("{scope}."), budget)? })
    }
}
