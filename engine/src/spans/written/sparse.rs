//! Attributes that few spans of a table have: in the log without the spans that lack them. A client that writes all its spans as one table has a
//! column for each attribute that any of them has, and most of these are mostly null.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, UInt32Array},
    buffer::NullBuffer,
    compute::{FilterBuilder, take},
    datatypes::{Field, Schema, UInt32Type},
    record_batch::RecordBatch,
};

use super::{
    columns::Budget,
    record::attributes_of,
    values::{Attribute, Values, array_of},
};
use crate::{
    error::{Error, Result},
    spans::read::{Typed, column},
};

/// A table of its own costs some hundred bytes: what must be saved, at the four bytes that a null takes at least.
const NULLS_MIN: usize = 256;

/// The column of the rows that a table of sparse attributes is of.
const ROW: &str = "row";

/// Columns by name.
type Named = Vec<(String, ArrayRef)>;

/// The columns of `attributes`, which are named `scope.key`: those that most of `rows` rows have, and for the others tables of just the rows that
/// have them. Attributes of the same rows share a table. Cost: a look at the nulls of each column, a copy of what is there of sparse ones.
/// Errors: `Internal`.
pub(super) fn split(scope: &str, attributes: &[Attribute], rows: usize) -> Result<(Named, Vec<RecordBatch>)> {
    let (mut dense, mut sparse): (Named, Vec<(NullBuffer, Named)>) = (Vec::new(), Vec::new());
    for attribute in attributes {
        // Lists are in the rest.
        let Values::Each(values) = &attribute.values else { continue };
        let column = (format!("{scope}.{}", attribute.key), array_of(values));
        match column.1.nulls().filter(|nulls| nulls.null_count() >= NULLS_MIN && nulls.null_count() * 2 > rows) {
            None => dense.push(column),
            Some(nulls) => match sparse.iter_mut().find(|(known, _)| known == nulls) {
                Some((_, columns)) => columns.push(column),
                None => sparse.push((nulls.clone(), vec![column])),
            },
        }
    }
    let tables = sparse.into_iter().map(|(there, columns)| rows_of(&there, columns)).collect::<Result<_>>()?;
    Ok((dense, tables))
}

/// The rows that are `there`, and what `columns` have in them.
fn rows_of(there: &NullBuffer, columns: Named) -> Result<RecordBatch> {
    let wanted = FilterBuilder::new(&BooleanArray::new(there.inner().clone(), None)).optimize().build();
    let rows: ArrayRef = Arc::new(there.valid_indices().map(|row| row as u32).collect::<UInt32Array>());
    let (mut fields, mut arrays) = (vec![Field::new(ROW, rows.data_type().clone(), false)], vec![rows]);
    for (name, array) in columns {
        fields.push(Field::new(name, array.data_type().clone(), true));
        arrays.push(wanted.filter(&array)?);
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)
}

/// The attributes in a table of sparse ones, as columns of `rows` rows. Errors: `Data` for rows that are not ascending, or that there are not.
pub(super) fn spread(table: &RecordBatch, scope: &str, rows: usize, budget: &mut Budget) -> Result<Vec<Attribute>> {
    let there = column(table, ROW)?.as_primitive_opt::<UInt32Type>().filter(|there| there.null_count() == 0);
    let there = there.ok_or_else(|| Error::data("a table of sparse attributes does not name its rows"))?.values();
    if !there.is_sorted_by(|a, b| a < b) || there.last().is_some_and(|&last| last as usize >= rows) {
        return Err(Error::data(format!("a table of sparse attributes has rows that are none of the {rows} of its spans")));
    }
    let mut places: Vec<Option<u32>> = vec![None; rows];
    there.iter().zip(0..).for_each(|(&row, at)| places[row as usize] = Some(at));
    let places = UInt32Array::from(places);
    let mut attributes = attributes_of(table, &format!("{scope}."), budget)?;
    for attribute in &mut attributes {
        if let Values::Each(values) = &mut attribute.values {
            *values = Typed::of(&take(&array_of(values), &places, None)?)?;
        }
    }
    Ok(attributes)
}
