//! Record batches that stay in memory for long: a column of one value is kept once, repeated byte strings are kept once each.

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
    /// One row for all.
    One(ArrayRef),
    /// As a dictionary of its distinct values.
    Distinct(ArrayRef),
    /// As it is.
    All(ArrayRef),
}

impl PackedBatch {
    /// Packs `batch`. Cost: a copy, and a look-up for each byte string. Errors: `Internal`.
    pub fn of(batch: &RecordBatch) -> Result<Self> {
        let columns = batch.columns().iter().map(PackedColumn::of).collect::<Result<_>>()?;
        Ok(Self { schema: batch.schema(), columns, rows: batch.num_rows() })
    }

    /// The batch as it was. Errors: `Internal`.
    pub fn unpack(&self) -> Result<RecordBatch> {
        let columns = self.columns.iter().zip(self.schema.fields()).map(|(column, field)| column.unpack(self.rows, field.data_type()));
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows));
        Ok(RecordBatch::try_new_with_options(self.schema.clone(), columns.collect::<Result<_>>()?, &options)?)
    }

    /// Bytes in memory, without the schema, which is shared.
    pub fn memory_bytes(&self) -> usize {
        let column = |column: &PackedColumn| match column {
            PackedColumn::One(array) | PackedColumn::Distinct(array) | PackedColumn::All(array) => array.get_array_memory_size(),
        };
        size_of::<Self>() + self.columns.iter().map(|one| size_of::<PackedColumn>() + column(one)).sum::<usize>()
    }
}

impl PackedColumn {
    fn of(array: &ArrayRef) -> Result<Self> {
        let rows = array.len();
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

    fn unpack(&self, rows: usize, data_type: &DataType) -> Result<ArrayRef> {
        Ok(match self {
            Self::One(array) => take(array, &UInt32Array::from(vec![0; rows]), None)?,
            Self::Distinct(array) => cast(array, data_type)?,
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

    #[test]
    fn a_batch_comes_back_as_it_was() {
        for batch in [
            batch(&["a", "a", "b", "a"], &[1, 2, 1, 4], &[f64::INFINITY; 4]),
            batch(&["a", "a"], &[7, 7], &[0.0, -0.5]),
            batch(&["a"], &[7], &[1.5]),
            batch(&[], &[], &[]),
        ] {
            assert_eq!(PackedBatch::of(&batch).unwrap().unpack().unwrap(), batch);
        }
    }

    #[test]
    fn repeated_values_take_no_room() {
        let (label, rows) = ("x".repeat(100), 1000);
        let (labels, numbers): (Vec<&str>, Vec<u32>) = (0..rows).map(|row| (if row % 2 == 0 { "y" } else { &*label }, row as u32)).unzip();
        let batch = batch(&labels, &numbers, &vec![2.5; rows]);
        let bytes = PackedBatch::of(&batch).unwrap().memory_bytes();
        // A key and an interval for each row, and some hundred bytes for each array.
        assert!((8 * rows..8 * rows + 2000).contains(&bytes), "{bytes}");
    }
}
