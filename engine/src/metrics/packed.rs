//! Record batches that stay in memory for long: what all such batches have in common is not kept, a column of one value is kept once, repeated
//! byte strings are kept once each.

use arrow::{
    array::{Array, ArrayRef, UInt32Array},
    compute::{cast, take},
    datatypes::{DataType, SchemaRef},
    record_batch::{RecordBatch, RecordBatchOptions},
};

use crate::error::Result;

/// A batch in few bytes.
#[derive(Debug)]
pub struct PackedBatch {
    schema: SchemaRef,
    columns: Vec<PackedColumn>,
    rows: usize,
}

#[derive(Debug)]
enum PackedColumn {
    /// The first rows of the column of the common batch.
    Common,
    /// One row for all.
    One(ArrayRef),
    /// As a dictionary of its distinct values.
    Distinct(ArrayRef),
    /// As it is.
    All(ArrayRef),
}

impl PackedBatch {
    /// Packs `batch`; of `common`, a batch of the same schema, nothing is kept. Cost: a copy, and a look-up for each byte string.
    /// Errors: `Internal`.
    pub fn of(batch: &RecordBatch, common: &RecordBatch) -> Result<Self> {
        let columns = batch.columns().iter().zip(common.columns()).map(|(column, common)| PackedColumn::of(column, common));
        Ok(Self { schema: batch.schema(), columns: columns.collect::<Result<_>>()?, rows: batch.num_rows() })
    }

    /// The batch as it was; `common` is as it was then. Errors: `Internal`.
    pub fn unpack(&self, common: &RecordBatch) -> Result<RecordBatch> {
        let columns = self.columns.iter().zip(common.columns()).map(|(column, common)| column.unpack(self.rows, common));
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows));
        Ok(RecordBatch::try_new_with_options(self.schema.clone(), columns.collect::<Result<_>>()?, &options)?)
    }

    /// Bytes in memory, without the schema, which is shared.
    pub fn memory_bytes(&self) -> usize {
        let column = |column: &PackedColumn| match column {
            PackedColumn::Common => 0,
            PackedColumn::One(array) | PackedColumn::Distinct(array) | PackedColumn::All(array) => array.get_array_memory_size(),
        };
        size_of::<Self>() + self.columns.iter().map(|one| size_of::<PackedColumn>() + column(one)).sum::<usize>()
    }
}

impl PackedColumn {
    fn of(array: &ArrayRef, common: &ArrayRef) -> Result<Self> {
        let rows = array.len();
        if rows <= common.len() && *array == common.slice(0, rows) {
            return Ok(Self::Common);
        }
        // Each row equals the next: all are one.
        if rows > 0 && array.slice(1, rows - 1) == array.slice(0, rows - 1) {
            return Ok(Self::One(shrunk(take(array, &UInt32Array::from(vec![0]), None)?)));
        }
        if *array.data_type() == DataType::Binary {
            let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Binary));
            return Ok(Self::Distinct(shrunk(cast(array, &dictionary)?)));
        }
        // A copy, since what batches are built in has room to spare.
        Ok(Self::All(shrunk(take(array, &UInt32Array::from_iter_values(0..rows as u32), None)?)))
    }

    fn unpack(&self, rows: usize, common: &ArrayRef) -> Result<ArrayRef> {
        Ok(match self {
            Self::Common => common.slice(0, rows),
            Self::One(array) => take(array, &UInt32Array::from(vec![0; rows]), None)?,
            Self::Distinct(array) => cast(array, common.data_type())?,
            Self::All(array) => array.clone(),
        })
    }
}

/// A new array in buffers of just its length.
fn shrunk(mut array: ArrayRef) -> ArrayRef {
    array.shrink_to_fit();
    array
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use arrow::{
        array::{BinaryArray, Float64Array},
        datatypes::{Field, Schema},
    };

    use super::*;

    fn batch(labels: &[&str], numbers: &[u32], sums: &[f64]) -> RecordBatch {
        let field = |name, data_type| Field::new(name, data_type, false);
        let fields = vec![field("labels", DataType::Binary), field("interval", DataType::UInt32), field("sum", DataType::Float64)];
        let labels = BinaryArray::from_iter_values(labels);
        let columns: Vec<ArrayRef> =
            vec![Arc::new(labels), Arc::new(UInt32Array::from(numbers.to_vec())), Arc::new(Float64Array::from(sums.to_vec()))];
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
    }

    fn nothing(rows: usize) -> RecordBatch {
        batch(&vec![""; rows], &vec![7; rows], &vec![f64::INFINITY; rows])
    }

    #[test]
    fn a_batch_comes_back_as_it_was() {
        for batch in [
            batch(&["a", "a", "b", "a"], &[1, 2, 1, 4], &[f64::INFINITY; 4]),
            batch(&["a", "a"], &[7, 7], &[0.0, -0.5]),
            batch(&["a"], &[7], &[1.5]),
            batch(&[], &[], &[]),
        ] {
            for common in [&nothing(0), &nothing(2), &nothing(100), &batch] {
                assert_eq!(PackedBatch::of(&batch, common).unwrap().unpack(common).unwrap(), batch);
            }
        }
    }

    #[test]
    fn repeated_values_take_no_room() {
        let (label, rows) = ("x".repeat(100), 1000);
        let (labels, numbers): (Vec<&str>, Vec<u32>) = (0..rows).map(|row| (if row % 2 == 0 { "y" } else { &*label }, row as u32)).unzip();
        let batch = batch(&labels, &numbers, &vec![2.5; rows]);
        let bytes = |common: &RecordBatch| PackedBatch::of(&batch, common).unwrap().memory_bytes();
        // A key and an interval for each row, and some hundred bytes for each array.
        assert!((8 * rows..8 * rows + 2000).contains(&bytes(&nothing(0))), "{}", bytes(&nothing(0)));
        assert!(bytes(&batch) < 200, "what is common has no place of its own: {}", bytes(&batch));
    }
}
