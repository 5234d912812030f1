//! Typed access to the columns of a batch in the form of the span table.

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BinaryArray, BooleanArray, DictionaryArray, Float64Array, Int32Array, Int64Array, ListArray, StringArray,
        StringViewArray,
    },
    buffer::NullBuffer,
    datatypes::{Float64Type, Int32Type, Int64Type},
    record_batch::RecordBatch,
};

use crate::error::{Error, Result};

/// Strings in either form.
#[derive(Debug, Clone)]
pub enum Texts {
    /// Keys into values.
    Dictionary(DictionaryArray<Int32Type>, Arc<StringArray>),
    /// One after another.
    Plain(StringArray),
    /// One after another, as views.
    View(StringViewArray),
}

impl Texts {
    /// Reads `array`. Errors: `Data` when it holds no strings.
    pub fn of(array: &ArrayRef) -> Result<Self> {
        if let Some(dictionary) = array.as_dictionary_opt::<Int32Type>() {
            let values = dictionary.values().as_string_opt::<i32>().ok_or_else(|| wrong_type(array))?;
            return Ok(Self::Dictionary(dictionary.clone(), Arc::new(values.clone())));
        }
        if let Some(view) = array.as_string_view_opt() {
            return Ok(Self::View(view.clone()));
        }
        array.as_string_opt::<i32>().cloned().map(Self::Plain).ok_or_else(|| wrong_type(array))
    }

    /// Where there is no string. The values of a dictionary are strings, all of them.
    pub fn nulls(&self) -> Option<&NullBuffer> {
        match self {
            Self::Dictionary(dictionary, _) => dictionary.keys().nulls(),
            Self::Plain(values) => values.nulls(),
            Self::View(values) => values.nulls(),
        }
    }

    /// Whether `row` has a string.
    pub fn is_valid(&self, row: usize) -> bool {
        self.nulls().is_none_or(|nulls| nulls.is_valid(row))
    }

    /// The string of `row`, None where it is null.
    #[inline]
    pub fn get(&self, row: usize) -> Option<&str> {
        match self {
            Self::Dictionary(dictionary, values) => dictionary.is_valid(row).then(|| values.value(dictionary.keys().value(row) as usize)),
            Self::Plain(values) => values.is_valid(row).then(|| values.value(row)),
            Self::View(values) => values.is_valid(row).then(|| values.value(row)),
        }
    }
}

/// One attribute column of any type.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum Typed {
    Text(Texts),
    Int(Int64Array),
    Double(Float64Array),
    Bool(BooleanArray),
}

impl Typed {
    /// Reads `array`. Errors: `Data` for any other type.
    pub fn of(array: &ArrayRef) -> Result<Self> {
        if let Some(values) = array.as_primitive_opt::<Int64Type>() {
            return Ok(Self::Int(values.clone()));
        }
        if let Some(values) = array.as_primitive_opt::<Float64Type>() {
            return Ok(Self::Double(values.clone()));
        }
        if let Some(values) = array.as_boolean_opt() {
            return Ok(Self::Bool(values.clone()));
        }
        Texts::of(array).map(Self::Text)
    }

    /// Where there is no value.
    pub fn nulls(&self) -> Option<&NullBuffer> {
        match self {
            Self::Text(texts) => texts.nulls(),
            Self::Int(values) => values.nulls(),
            Self::Double(values) => values.nulls(),
            Self::Bool(values) => values.nulls(),
        }
    }

    /// Whether `row` has a value.
    pub fn is_valid(&self, row: usize) -> bool {
        self.nulls().is_none_or(|nulls| nulls.is_valid(row))
    }
}

fn wrong_type(array: &ArrayRef) -> Error {
    Error::data(format!("a column has the unexpected type {}", array.data_type()))
}

/// Finds column `name`. Errors: `Data` when it is missing.
pub fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    batch.column_by_name(name).ok_or_else(|| Error::data(format!("column {name} is missing")))
}

/// Column `name` as 64-bit integers. Errors: `Data`.
pub fn ints<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a Int64Array> {
    let array = column(batch, name)?;
    array.as_primitive_opt::<Int64Type>().ok_or_else(|| wrong_type(array))
}

/// Column `name` as 32-bit integers. Errors: `Data`.
pub fn small_ints<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a Int32Array> {
    let array = column(batch, name)?;
    array.as_primitive_opt::<Int32Type>().ok_or_else(|| wrong_type(array))
}

/// Column `name` as strings. Errors: `Data`.
pub fn texts(batch: &RecordBatch, name: &str) -> Result<Texts> {
    Texts::of(column(batch, name)?)
}

/// Column `name` as byte strings, None when the batch has no such column. Errors: `Data` for another type.
pub fn binary_opt<'a>(batch: &'a RecordBatch, name: &str) -> Result<Option<&'a BinaryArray>> {
    batch.column_by_name(name).map(|array| array.as_binary_opt::<i32>().ok_or_else(|| wrong_type(array))).transpose()
}

/// Column `name` as a list, None when the batch has no such column. Errors: `Data` for another type.
pub fn list_opt<'a>(batch: &'a RecordBatch, name: &str) -> Result<Option<&'a ListArray>> {
    batch.column_by_name(name).map(|array| array.as_list_opt::<i32>().ok_or_else(|| wrong_type(array))).transpose()
}

/// The structs of a list as a batch of their own, so that nested columns are read like others. Row `i` of the list owns the entries
/// from its offset `i` to `i + 1`. Errors: `Data` when the items are no structs.
pub fn list_items(list: &ListArray) -> Result<RecordBatch> {
    let structs = list.values().as_struct_opt().ok_or_else(|| wrong_type(list.values()))?;
    Ok(RecordBatch::from(structs))
}
