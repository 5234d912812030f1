//! The distinct values of a field in a frame as small numbers, so that rows are grouped by numbers and not by values.

use arrow::array::{Array, Int32Array, StringArray};
use hashbrown::HashMap;

use crate::{
    exec::eval::vector::{Vector, kind_of, status_of},
    spans::{
        read::{Texts, Typed},
        value::Value,
    },
};

/// A number for each row, and what the numbers mean.
#[derive(Debug, Clone)]
pub struct Codes {
    /// By row: a position in `values`.
    pub rows: Vec<u32>,
    /// The distinct values; some may be in no row. `Nil` is one of them where rows lack the field.
    pub values: Vec<Value>,
}

/// The distinct values so far.
#[derive(Default)]
struct Table {
    values: Vec<Value>,
    places: HashMap<Key, u32>,
}

/// What makes two values the same group: type and content, doubles by their bits.
#[derive(PartialEq, Eq, Hash)]
enum Key {
    Nil,
    Bool(bool),
    Int(i64),
    Float(u64),
    Text(std::sync::Arc<str>),
    Other(String),
}

impl Table {
    /// The number of `value`.
    fn code(&mut self, value: Value) -> u32 {
        let key = match &value {
            Value::Nil => Key::Nil,
            Value::Bool(value) => Key::Bool(*value),
            Value::Int(value) => Key::Int(*value),
            Value::Float(value) => Key::Float(value.to_bits()),
            Value::String(text) => Key::Text(text.clone()),
            other => Key::Other(format!("{other:?}")),
        };
        *self.places.entry(key).or_insert_with(|| {
            self.values.push(value);
            self.values.len() as u32 - 1
        })
    }
}

impl Codes {
    /// The codes of `vector`. Cost: once per distinct value where the vector has a table of them, else a look-up a row.
    pub fn of(vector: &Vector) -> Self {
        let mut table = Table::default();
        let rows = match vector {
            Vector::Const(value, length) => vec![table.code(value.clone()); *length],
            Vector::Indexed(keys, values) => {
                by_key(keys, &mut table, |table, key| table.code(values.get(key as usize).cloned().unwrap_or(Value::Nil)), Value::Nil)
            }
            Vector::Status(codes) => by_key(codes, &mut table, |table, code| table.code(Value::Status(status_of(code))), Value::Nil),
            Vector::Kind(codes) => by_key(codes, &mut table, |table, code| table.code(Value::Kind(kind_of(code))), Value::Nil),
            Vector::Typed(Typed::Text(Texts::Dictionary(dictionary, values))) => by_text(dictionary.keys(), values, &mut table, Value::Nil),
            Vector::Text(Texts::Dictionary(dictionary, values), _) => by_text(dictionary.keys(), values, &mut table, Value::from("")),
            Vector::First(vectors) => first_of(vectors, &mut table),
            other => (0..other.len()).map(|row| table.code(other.get(row))).collect(),
        };
        Self { rows, values: table.values }
    }
}

/// Codes by key into `texts`. Where these are few all are looked up before, also those that no row has. `null` is what a null means.
fn by_text(keys: &Int32Array, texts: &StringArray, table: &mut Table, null: Value) -> Vec<u32> {
    const FEW: usize = 64;
    if keys.null_count() > 0 || texts.len() * FEW > keys.len() {
        return by_key(keys, table, |table, key| table.code(Value::from(texts.value(key as usize))), null);
    }
    let codes: Vec<u32> = (0..texts.len()).map(|key| table.code(Value::from(texts.value(key)))).collect();
    keys.values().iter().map(|&key| codes[key as usize]).collect()
}

/// Stands for keys that were not looked up yet.
const UNKNOWN: u32 = u32::MAX;

/// Codes by key: each key is looked up once. `null` is what a null means.
fn by_key(keys: &Int32Array, table: &mut Table, mut look_up: impl FnMut(&mut Table, i32) -> u32, null: Value) -> Vec<u32> {
    let mut known = vec![UNKNOWN; known_keys(keys)];
    let mut code_of = |table: &mut Table, key: i32| match known.get_mut(key as usize) {
        Some(code) if *code != UNKNOWN => *code,
        Some(code) => {
            *code = look_up(table, key);
            *code
        }
        None => look_up(table, key),
    };
    if keys.null_count() == 0 {
        return keys.values().iter().map(|&key| code_of(table, key)).collect();
    }
    let mut null_code = None;
    let mut code = |row: usize| match keys.is_null(row) {
        true => *null_code.get_or_insert_with(|| table.code(null.clone())),
        false => code_of(table, keys.value(row)),
    };
    (0..keys.len()).map(&mut code).collect()
}

/// How many keys from 0 are worth to be remembered. Keys of enumerations that nobody defined can be huge.
fn known_keys(keys: &Int32Array) -> usize {
    let most = keys.values().iter().copied().max().unwrap_or(-1);
    usize::try_from(i64::from(most) + 1).unwrap_or(0).min(keys.len().max(1 << 16) + 1)
}

/// In each row the code of the first vector that has a value there.
fn first_of(vectors: &[Vector], table: &mut Table) -> Vec<u32> {
    let nil = table.code(Value::Nil);
    let parts: Vec<(Vec<u32>, Vec<u32>)> = vectors
        .iter()
        .map(|vector| {
            let Codes { rows, values } = Codes::of(vector);
            (rows, values.into_iter().map(|value| table.code(value)).collect())
        })
        .collect();
    let length = parts.first().map_or(0, |(rows, _)| rows.len());
    let code = |row: usize| parts.iter().map(|(rows, meanings)| meanings[rows[row] as usize]).find(|&code| code != nil).unwrap_or(nil);
    (0..length).map(code).collect()
}

#[cfg(test)]
mod tests {

    use std::sync::Arc;

    use super::*;
    use crate::traceql::Kind;

    #[test]
    fn equal_values_of_different_keys_are_one_group() {
        let values: Arc<[Value]> = vec![Value::from("a"), Value::Nil, Value::from("a"), Value::Int(1)].into();
        let codes = Codes::of(&Vector::Indexed(Int32Array::from(vec![Some(2), Some(0), Some(3), None, Some(1)]), values));
        assert_eq!(codes.values, [Value::from("a"), Value::Int(1), Value::Nil]);
        assert_eq!(codes.rows, [0, 0, 1, 2, 2]);
    }

    #[test]
    fn types_stay_apart_and_an_array_is_one_value() {
        let array = Value::Array(vec![Value::Int(1), Value::Int(2)].into());
        let values: Arc<[Value]> = vec![Value::Int(200), Value::from("200"), array.clone(), Value::Float(200.0), Value::Int(200)].into();
        let codes = Codes::of(&Vector::Values(values.clone()));
        assert_eq!(codes.rows, [0, 1, 2, 3, 0]);
        assert_eq!(codes.values[2], array);
        let first = Codes::of(&Vector::First(vec![Vector::Const(Value::Nil, 5), Vector::Values(values)]));
        assert_eq!(first.values[first.rows[0] as usize], Value::Int(200));
        // The first that has the key wins, also with an array.
        let both = Codes::of(&Vector::First(vec![Vector::Const(array.clone(), 1), Vector::Const(Value::Int(1), 1)]));
        assert_eq!(both.values[both.rows[0] as usize], array);
    }

    #[test]
    fn numbers_that_no_enumeration_has_mean_the_unspecified_one() {
        let codes = Codes::of(&Vector::Kind(Int32Array::from(vec![-1, 3, 77, 0])));
        let meanings: Vec<Value> = codes.rows.iter().map(|&code| codes.values[code as usize].clone()).collect();
        let kinds = [Kind::Unspecified, Kind::Client, Kind::Unspecified, Kind::Unspecified];
        assert_eq!(meanings, kinds.map(Value::Kind));
    }
}
