//! Vectors of TraceQL values as Arrow arrays of the types that SQL has.

use std::{borrow::Cow, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanArray, DictionaryArray, Float64Array, Int32Array, Int64Array, StringArray, StringViewArray,
        StringViewBuilder, new_null_array,
    },
    buffer::{NullBuffer, OffsetBuffer},
    compute::cast,
    datatypes::Int32Type,
};

use super::columns::SqlType;
use crate::{
    error::Result,
    exec::eval::vector::{Vector, kind_of, status_of},
    spans::{
        read::{Texts, Typed},
        value::Value,
    },
    traceql::Static,
};

/// The values of `vector` as `kind`; null where there is none, or one that `kind` cannot hold. Cost: nothing where the form is the
/// stored one, once per distinct value for tables of values, else once per row.
pub fn of_vector(vector: &Vector, kind: SqlType) -> Result<ArrayRef> {
    let array: ArrayRef = match vector {
        Vector::Const(Value::Nil, length) => return Ok(new_null_array(&kind.data_type(), *length)),
        Vector::Const(value, length) => by_key(&Int32Array::from(vec![0; *length]), std::slice::from_ref(value), kind)?,
        Vector::Typed(Typed::Text(texts)) | Vector::Text(texts, _) if is_text(kind) => of_texts(texts),
        Vector::Typed(Typed::Int(values)) if matches!(kind, SqlType::Int | SqlType::Float) => Arc::new(values.clone()),
        Vector::Typed(Typed::Double(values)) if kind == SqlType::Float => Arc::new(values.clone()),
        Vector::Typed(Typed::Bool(values)) if kind == SqlType::Bool => Arc::new(values.clone()),
        Vector::Duration(values) if kind == SqlType::Int => Arc::new(values.clone()),
        Vector::Status(codes) if is_text(kind) => of_codes(codes, 3, |code| Static::Status(status_of(code)))?,
        Vector::Kind(codes) if is_text(kind) => of_codes(codes, 6, |code| Static::Kind(kind_of(code)))?,
        Vector::Indexed(keys, values) => by_key(keys, values, kind)?,
        other => by_value(other, kind),
    };
    if *array.data_type() == kind.data_type() { Ok(array) } else { Ok(cast(&array, &kind.data_type())?) }
}

fn is_text(kind: SqlType) -> bool {
    matches!(kind, SqlType::Dictionary | SqlType::Text)
}

fn of_texts(texts: &Texts) -> ArrayRef {
    match texts {
        Texts::Dictionary(dictionary, _) => Arc::new(dictionary.clone()),
        Texts::Plain(values) => Arc::new(values.clone()),
        Texts::View(values) => Arc::new(values.clone()),
    }
}

/// A dictionary of `values` by `keys`.
pub fn dictionary(keys: Int32Array, values: StringArray) -> Result<ArrayRef> {
    Ok(Arc::new(DictionaryArray::<Int32Type>::try_new(keys, Arc::new(values))?))
}

/// The same values; of a dictionary without the entries that no row has. Cost: once per entry and row of dictionaries.
pub fn only_used(array: &ArrayRef) -> Result<ArrayRef> {
    let Some(dictionary) = array.as_dictionary_opt::<Int32Type>() else { return Ok(array.clone()) };
    let (mut new_keys, mut used) = (vec![-1; dictionary.values().len()], Vec::new());
    let keys = dictionary.keys().iter().map(|key| {
        let new = &mut new_keys[key? as usize];
        if *new < 0 {
            *new = used.len() as i32;
            used.push(key? as u32);
        }
        Some(*new)
    });
    let keys: Int32Array = keys.collect();
    let values = arrow::compute::take(dictionary.values(), &arrow::array::UInt32Array::from(used), None)?;
    Ok(Arc::new(DictionaryArray::try_new(keys, values)?))
}

/// Codes from 0 to `count` as the names of their meaning; other codes mean what 0 means.
fn of_codes(codes: &Int32Array, count: i32, meaning: impl Fn(i32) -> Static) -> Result<ArrayRef> {
    let known =
        Int32Array::new(codes.values().iter().map(|&code| if (0..count).contains(&code) { code } else { 0 }).collect(), codes.nulls().cloned());
    dictionary(known, StringArray::from_iter_values((0..count).map(|code| meaning(code).to_string())))
}

/// Values by their place in a table: each entry is converted once.
fn by_key(keys: &Int32Array, table: &[Value], kind: SqlType) -> Result<ArrayRef> {
    if !is_text(kind) {
        let place = |key: Option<i32>| key.and_then(|key| usize::try_from(key).ok()).filter(|&key| key < table.len());
        let entries = by_value(&Vector::Values(table.into()), kind);
        let places = arrow::array::UInt32Array::from_iter(keys.iter().map(|key| place(key).map(|key| key as u32)));
        return Ok(arrow::compute::take(&entries, &places, None)?);
    }
    let (texts, codes) = distinct_texts(table);
    let found: Vec<i32> = keys.values().iter().map(|&key| codes.get(key as usize).copied().unwrap_or(NO_TEXT)).collect();
    let missing = found.contains(&NO_TEXT).then(|| found.iter().map(|&code| code != NO_TEXT).collect::<NullBuffer>());
    let nulls = NullBuffer::union(keys.nulls(), missing.as_ref());
    dictionary(Int32Array::new(found.into(), nulls), texts)
}

/// The place of what is no text.
const NO_TEXT: i32 = -1;

/// The texts of `table`, each once, and for each entry the place of its text.
fn distinct_texts(table: &[Value]) -> (StringArray, Vec<i32>) {
    let mut texts: Vec<Cow<'_, str>> = Vec::new();
    let mut known: hashbrown::HashMap<Cow<'_, str>, i32> = hashbrown::HashMap::new();
    let mut places = Vec::with_capacity(table.len());
    for value in table {
        let text = match value {
            Value::Nil => {
                places.push(NO_TEXT);
                continue;
            }
            Value::String(text) => Cow::Borrowed(&**text),
            other => Cow::Owned(other.to_string()),
        };
        places.push(*known.entry(text).or_insert_with_key(|text| {
            texts.push(text.clone());
            texts.len() as i32 - 1
        }));
    }
    (StringArray::from_iter_values(texts), places)
}

fn by_value(vector: &Vector, kind: SqlType) -> ArrayRef {
    let values = (0..vector.len()).map(|row| vector.get(row));
    match kind {
        SqlType::Int | SqlType::Time => Arc::new(Int64Array::from_iter(values.map(|value| match value {
            Value::Int(value) | Value::Duration(value) => Some(value),
            _ => None,
        }))),
        SqlType::Float => Arc::new(Float64Array::from_iter(values.map(|value| value.as_f64()))),
        SqlType::Bool => Arc::new(BooleanArray::from_iter(values.map(|value| match value {
            Value::Bool(value) => Some(value),
            _ => None,
        }))),
        SqlType::Dictionary | SqlType::Text | SqlType::Hex => {
            let mut texts = StringViewBuilder::with_capacity(vector.len());
            values.for_each(|value| texts.append_option(text_of(&value)));
            Arc::new(texts.finish())
        }
        SqlType::TextList => new_null_array(&kind.data_type(), vector.len()),
    }
}

/// A value as SQL shows it in a column of text.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::Nil => None,
        value => Some(value.to_string()),
    }
}

/// The two digits of each byte.
const HEX: [[u8; 2]; 256] = {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut table = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = [DIGITS[byte >> 4], DIGITS[byte & 15]];
        byte += 1;
    }
    table
};

/// Ids of `N` bytes as `2 * N` hexadecimal digits each; rows that are not in `valid` are null. Cost: two copies for each byte, one allocation
/// for all rows. Errors: `Internal` for more than 2 GiB of digits.
pub fn hex_array<const N: usize>(ids: impl ExactSizeIterator<Item = [u8; N]>, valid: Option<NullBuffer>) -> Result<StringArray> {
    let rows = ids.len();
    let mut digits = Vec::with_capacity(rows * N * 2);
    for id in ids {
        id.iter().for_each(|&byte| digits.extend_from_slice(&HEX[usize::from(byte)]));
    }
    let offsets = OffsetBuffer::from_repeated_length(N * 2, rows);
    Ok(StringArray::try_new(offsets, digits.into(), valid)?)
}

/// The strings of `array`, in whatever form; for tests and renderers.
pub fn strings(array: &ArrayRef) -> Result<StringViewArray> {
    Ok(cast(array, &SqlType::Text.data_type())?.as_string_view().clone())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_table_of_values_becomes_a_dictionary_of_its_texts() {
        let table = [Value::from("a"), Value::Int(5), Value::Nil, Value::from("a"), Value::from("5")];
        let check = |keys: &[Option<i32>], expected: &[Option<&str>]| {
            let found = of_vector(&Vector::Indexed(Int32Array::from(keys.to_vec()), table.to_vec().into()), SqlType::Dictionary).unwrap();
            assert_eq!(strings(&found).unwrap().iter().collect::<Vec<_>>(), expected);
            let values = found.as_dictionary::<Int32Type>().values().as_string::<i32>();
            assert_eq!(values, &StringArray::from(vec!["a", "5"]), "each text once");
        };
        check(&[Some(0), Some(3), Some(1), Some(4)], &[Some("a"), Some("a"), Some("5"), Some("5")]);
        check(&[Some(2), None, Some(1)], &[None, None, Some("5")]);
        check(&[Some(7), Some(-1), Some(0)], &[None, None, Some("a")]);
        check(&[], &[]);
    }
}
