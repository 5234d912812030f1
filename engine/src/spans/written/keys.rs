//! Keys of dictionaries in fewer bytes, as most dictionaries of a table have few values; and these, and small numbers, in 32 bits again.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, DictionaryArray},
    compute::cast,
    datatypes::{ArrowDictionaryKeyType, DataType, Field, Int8Type, Int16Type, Int32Type, Schema},
    record_batch::{RecordBatch, RecordBatchOptions},
};

use crate::error::Result;

/// How many values the dictionary of a column has; 0 without one.
pub(super) fn values_in(array: &ArrayRef) -> usize {
    array.as_any_dictionary_opt().map_or(0, |dictionary| dictionary.values().len())
}

/// A dictionary with 32-bit keys by the narrowest that reach `values` values; other columns as they are. Errors: `Internal`.
pub(super) fn with_keys_for(values: usize, array: &ArrayRef) -> Result<ArrayRef> {
    let Some(dictionary) = array.as_dictionary_opt::<Int32Type>() else { return Ok(array.clone()) };
    match key_type(values) {
        DataType::Int8 => by_keys::<Int8Type>(dictionary, |key| key as i8),
        DataType::Int16 => by_keys::<Int16Type>(dictionary, |key| key as i16),
        _ => Ok(array.clone()),
    }
}

/// The narrowest type of keys that reach `values` values.
pub(super) fn key_type(values: usize) -> DataType {
    match values {
        0..=0x80 => DataType::Int8,
        0x81..=0x8000 => DataType::Int16,
        _ => DataType::Int32,
    }
}

/// The batch with keys of 32 bits, and numbers of as many instead of 8 or 16. Errors: `Internal`.
pub(super) fn widened(batch: &RecordBatch) -> Result<RecordBatch> {
    let is_narrow = |kind: &DataType| matches!(kind, DataType::Int8 | DataType::Int16);
    let wide = |array: &ArrayRef| match array.data_type() {
        DataType::Dictionary(key, values) if is_narrow(key) => Ok(cast(array, &DataType::Dictionary(Box::new(DataType::Int32), values.clone()))?),
        kind if is_narrow(kind) => Ok(cast(array, &DataType::Int32)?),
        _ => Ok(array.clone()),
    };
    let columns = batch.columns().iter().map(wide).collect::<Result<Vec<_>>>()?;
    let typed = |(field, column): (&Arc<Field>, &ArrayRef)| field.as_ref().clone().with_data_type(column.data_type().clone());
    let fields: Vec<Field> = batch.schema_ref().fields().iter().zip(&columns).map(typed).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?)
}

/// The same dictionary by other keys; a key where there is a null may be any.
fn by_keys<K: ArrowDictionaryKeyType>(dictionary: &DictionaryArray<Int32Type>, key: impl Fn(i32) -> K::Native) -> Result<ArrayRef> {
    Ok(Arc::new(DictionaryArray::<K>::try_new(dictionary.keys().unary(key), dictionary.values().clone())?))
}
