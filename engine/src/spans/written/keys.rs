//! Keys of dictionaries and small numbers in fewer bytes: most dictionaries of a table have few values.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, DictionaryArray, Int32Array},
    compute::cast,
    datatypes::{ArrowDictionaryKeyType, DataType, Field, Int8Type, Int16Type, Int32Type, Schema},
    record_batch::{RecordBatch, RecordBatchOptions},
};

use crate::error::Result;

/// The batch with keys of 8 or 16 bits instead of 32, and numbers of 8, where these are enough. Cost: a pass over such columns.
/// Errors: `Internal`.
pub(super) fn narrowed(batch: &RecordBatch) -> Result<RecordBatch> {
    with_columns(batch, |array| match array.data_type() {
        DataType::Int32 => {
            let numbers: &Int32Array = array.as_primitive();
            let fits = numbers.null_count() == 0 && numbers.values().iter().all(|&number| i8::try_from(number).is_ok());
            Ok(if fits { Arc::new(numbers.unary::<_, Int8Type>(|number| number as i8)) } else { array.clone() })
        }
        _ => with_keys_for(values_in(array), array),
    })
}

/// How many values the dictionary of a column has; 0 without one.
pub(super) fn values_in(array: &ArrayRef) -> usize {
    array.as_any_dictionary_opt().map_or(0, |dictionary| dictionary.values().len())
}

/// A dictionary with 32-bit keys by the narrowest that reach `values` values; other columns as they are. Errors: `Internal`.
pub(super) fn with_keys_for(values: usize, array: &ArrayRef) -> Result<ArrayRef> {
    let Some(dictionary) = array.as_dictionary_opt::<Int32Type>() else { return Ok(array.clone()) };
    match values {
        0..=0x80 => by_keys::<Int8Type>(dictionary, |key| key as i8),
        0x81..=0x8000 => by_keys::<Int16Type>(dictionary, |key| key as i16),
        _ => Ok(array.clone()),
    }
}

/// The batch that was [`narrowed`]. Errors: `Internal`.
pub(super) fn widened(batch: &RecordBatch) -> Result<RecordBatch> {
    let is_narrow = |kind: &DataType| matches!(kind, DataType::Int8 | DataType::Int16);
    with_columns(batch, |array| match array.data_type() {
        DataType::Dictionary(key, values) if is_narrow(key) => Ok(cast(array, &DataType::Dictionary(Box::new(DataType::Int32), values.clone()))?),
        kind if is_narrow(kind) => Ok(cast(array, &DataType::Int32)?),
        _ => Ok(array.clone()),
    })
}

/// The same dictionary by other keys; a key where there is a null may be any.
fn by_keys<K: ArrowDictionaryKeyType>(dictionary: &DictionaryArray<Int32Type>, key: impl Fn(i32) -> K::Native) -> Result<ArrayRef> {
    Ok(Arc::new(DictionaryArray::<K>::try_new(dictionary.keys().unary(key), dictionary.values().clone())?))
}

fn with_columns(batch: &RecordBatch, column: impl Fn(&ArrayRef) -> Result<ArrayRef>) -> Result<RecordBatch> {
    let columns = batch.columns().iter().map(column).collect::<Result<Vec<_>>>()?;
    let typed = |(field, column): (&Arc<Field>, &ArrayRef)| field.as_ref().clone().with_data_type(column.data_type().clone());
    let fields: Vec<Field> = batch.schema_ref().fields().iter().zip(&columns).map(typed).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use arrow::array::{Int64Array, StringArray};

    use super::*;

    fn dictionary(distinct: usize) -> ArrayRef {
        let values = StringArray::from_iter_values((0..distinct).map(|number| number.to_string()));
        let mut keys: Vec<Option<i32>> = (0..40_000).map(|row| (row % 7 > 0).then_some(row % distinct as i32)).collect();
        keys[1..=distinct].iter_mut().zip(0..).for_each(|(key, number)| *key = Some(number));
        Arc::new(DictionaryArray::<Int32Type>::try_new(Int32Array::from(keys), Arc::new(values)).unwrap())
    }

    #[test]
    fn columns_come_back_from_fewer_bytes() {
        let numbers = |most: i32| -> ArrayRef { Arc::new(Int32Array::from_iter_values((0..40_000).map(|row| row % (most + 1)))) };
        let other: ArrayRef = Arc::new(Int64Array::from(vec![1; 40_000]));
        let any_key = Int32Array::new(vec![0, 1, 1_000_000, 0].into(), Some(vec![true, true, false, true].into()));
        let any_key: ArrayRef = Arc::new(DictionaryArray::<Int32Type>::try_new(any_key, Arc::new(StringArray::from(vec!["a", "b"]))).unwrap());
        for (column, expected) in [
            (dictionary(128), DataType::Int8),
            (dictionary(129), DataType::Int16),
            (dictionary(0x8000), DataType::Int16),
            (dictionary(0x8001), DataType::Int32),
            (numbers(127), DataType::Int8),
            (numbers(128), DataType::Int32),
            (any_key.slice(1, 3), DataType::Int8),
            (Arc::new(Int32Array::from(vec![-128, 127])), DataType::Int8),
            (Arc::new(Int32Array::from(vec![-129])), DataType::Int32),
            (Arc::new(Int32Array::from(vec![Some(1), None])), DataType::Int32),
            (other, DataType::Int64),
        ] {
            let batch = RecordBatch::try_from_iter([("column", column)]).unwrap();
            let narrow = narrowed(&batch).unwrap();
            let kind = match narrow.column(0).data_type() {
                DataType::Dictionary(key, _) => (**key).clone(),
                kind => kind.clone(),
            };
            assert_eq!(kind, expected);
            assert_eq!(widened(&narrow).unwrap(), batch);
        }
    }
}
