//! A field of all rows at once.

use std::sync::Arc;

use arrow::{
    array::{Array, AsArray, Int32Array, Int64Array, UInt32Array},
    buffer::BooleanBuffer,
    compute::take,
};

use super::value::{Matcher, compare, compare_floats, holds};
use crate::{
    error::Result,
    spans::{
        read::{Texts, Typed},
        value::Value,
    },
    traceql::{CompareOp, Kind, Status},
};

/// Values of one field in row order, in the form in which they are stored.
#[derive(Debug, Clone)]
pub enum Vector {
    /// The same in every row.
    Const(Value, usize),
    /// An attribute column; null is missing.
    Typed(Typed),
    /// Strings; null is the empty string, not missing.
    Text(Texts, usize),
    /// Durations in nanoseconds.
    Duration(Int64Array),
    /// OTLP status codes.
    Status(Int32Array),
    /// OTLP span kinds.
    Kind(Int32Array),
    /// Positions in a table of values; null is missing.
    Indexed(Int32Array, Arc<[Value]>),
    /// In each row the first that is not missing.
    First(Vec<Vector>),
    /// Value by value.
    Values(Arc<[Value]>),
}

impl Vector {
    /// Bytes that were taken to make the vector: columns and tables are there already.
    pub fn made_bytes(&self) -> usize {
        match self {
            Self::Values(values) => values.iter().map(|value| size_of::<Value>() + value.text_bytes()).sum(),
            Self::First(vectors) => vectors.iter().map(Self::made_bytes).sum(),
            _ => 0,
        }
    }
}

/// The status of an OTLP status code.
pub fn status_of(code: i32) -> Status {
    match code {
        1 => Status::Ok,
        2 => Status::Error,
        _ => Status::Unset,
    }
}

/// The kind of an OTLP span kind.
pub fn kind_of(kind: i32) -> Kind {
    match kind {
        1 => Kind::Internal,
        2 => Kind::Server,
        3 => Kind::Client,
        4 => Kind::Producer,
        5 => Kind::Consumer,
        _ => Kind::Unspecified,
    }
}

fn validity(array: &dyn Array) -> BooleanBuffer {
    match array.nulls() {
        Some(nulls) => nulls.inner().clone(),
        None => BooleanBuffer::new_set(array.len()),
    }
}

/// Bits of `test`, unset where `array` is null.
fn bits(array: &dyn Array, test: impl FnMut(usize) -> bool) -> BooleanBuffer {
    let bits = BooleanBuffer::collect_bool(array.len(), test);
    match array.nulls() {
        Some(nulls) => &bits & nulls.inner(),
        None => bits,
    }
}

/// Bits by key of a table that says for each value whether it passes.
fn by_key(keys: &Int32Array, passes: &[bool]) -> BooleanBuffer {
    match passes.iter().filter(|&&pass| pass).count() {
        0 => BooleanBuffer::new_unset(keys.len()),
        1 => {
            let wanted = passes.iter().position(|&pass| pass).unwrap_or_default() as i32;
            let keys_slice = keys.values();
            bits(keys, |row| keys_slice[row] == wanted)
        }
        _ => {
            let keys_slice = keys.values();
            bits(keys, |row| passes.get(keys_slice[row] as usize).copied().unwrap_or(false))
        }
    }
}

impl Vector {
    /// Rows.
    pub fn len(&self) -> usize {
        match self {
            Self::Const(_, length) | Self::Text(_, length) => *length,
            Self::Typed(Typed::Text(texts)) => texts_len(texts),
            Self::Typed(Typed::Int(values)) => values.len(),
            Self::Typed(Typed::Double(values)) => values.len(),
            Self::Typed(Typed::Bool(values)) => values.len(),
            Self::Duration(values) => values.len(),
            Self::Status(values) | Self::Kind(values) | Self::Indexed(values, _) => values.len(),
            Self::First(vectors) => vectors.first().map_or(0, Self::len),
            Self::Values(values) => values.len(),
        }
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of `row`.
    pub fn get(&self, row: usize) -> Value {
        match self {
            Self::Const(value, _) => value.clone(),
            Self::Typed(Typed::Text(texts)) => texts.get(row).map_or(Value::Nil, Value::from),
            Self::Typed(Typed::Int(values)) => {
                if values.is_valid(row) {
                    Value::Int(values.value(row))
                } else {
                    Value::Nil
                }
            }
            Self::Typed(Typed::Double(values)) => {
                if values.is_valid(row) {
                    Value::Float(values.value(row))
                } else {
                    Value::Nil
                }
            }
            Self::Typed(Typed::Bool(values)) => {
                if values.is_valid(row) {
                    Value::Bool(values.value(row))
                } else {
                    Value::Nil
                }
            }
            Self::Text(texts, _) => Value::from(texts.get(row).unwrap_or_default()),
            Self::Duration(values) => {
                if values.is_valid(row) {
                    Value::Duration(values.value(row))
                } else {
                    Value::Nil
                }
            }
            Self::Status(values) => {
                if values.is_valid(row) {
                    Value::Status(status_of(values.value(row)))
                } else {
                    Value::Nil
                }
            }
            Self::Kind(values) => {
                if values.is_valid(row) {
                    Value::Kind(kind_of(values.value(row)))
                } else {
                    Value::Nil
                }
            }
            Self::Indexed(keys, values) => {
                if keys.is_valid(row) {
                    values.get(keys.value(row) as usize).cloned().unwrap_or(Value::Nil)
                } else {
                    Value::Nil
                }
            }
            Self::First(vectors) => vectors.iter().map(|vector| vector.get(row)).find(|value| *value != Value::Nil).unwrap_or(Value::Nil),
            Self::Values(values) => values[row].clone(),
        }
    }

    /// Which rows are not missing.
    pub fn exists(&self) -> BooleanBuffer {
        match self {
            Self::Const(Value::Nil, length) => BooleanBuffer::new_unset(*length),
            Self::Const(_, length) | Self::Text(_, length) => BooleanBuffer::new_set(*length),
            Self::Typed(Typed::Text(Texts::Dictionary(dictionary, _))) => validity(dictionary.keys()),
            Self::Typed(Typed::Text(Texts::Plain(values))) => validity(values),
            Self::Typed(Typed::Text(Texts::View(values))) => validity(values),
            Self::Typed(Typed::Int(values)) => validity(values),
            Self::Typed(Typed::Double(values)) => validity(values),
            Self::Typed(Typed::Bool(values)) => validity(values),
            Self::Duration(values) => validity(values),
            Self::Status(values) | Self::Kind(values) => validity(values),
            Self::Indexed(keys, values) => by_key(keys, &values.iter().map(|value| *value != Value::Nil).collect::<Vec<_>>()),
            Self::First(vectors) => vectors.iter().map(Self::exists).reduce(|a, b| &a | &b).unwrap_or_else(|| BooleanBuffer::new_unset(0)),
            Self::Values(values) => BooleanBuffer::collect_bool(values.len(), |row| values[row] != Value::Nil),
        }
    }

    /// Which rows satisfy `op literal`.
    pub fn compare(&self, op: CompareOp, literal: &Value) -> BooleanBuffer {
        match (self, literal) {
            (Self::First(vectors), _) => combine_first(vectors, self.len(), |vector| vector.compare(op, literal)),
            (Self::Typed(Typed::Text(texts)), Value::String(text)) => compare_texts(texts, op, text),
            (Self::Text(texts, length), Value::String(text)) => {
                let bits = compare_texts(texts, op, text);
                if holds(op, "".cmp(text)) { &bits | &!&exists_texts(texts, *length) } else { bits }
            }
            (Self::Typed(Typed::Int(values)) | Self::Duration(values), Value::Int(literal) | Value::Duration(literal)) => {
                compare_ints(values, op, *literal)
            }
            (Self::Typed(Typed::Int(values)) | Self::Duration(values), Value::Float(literal)) => {
                let slice = values.values();
                bits(values, |row| compare_floats(op, slice[row] as f64, *literal))
            }
            (Self::Typed(Typed::Double(values)), literal) => match literal.as_f64() {
                Some(literal) => {
                    let slice = values.values();
                    bits(values, |row| compare_floats(op, slice[row], literal))
                }
                None => BooleanBuffer::new_unset(values.len()),
            },
            _ => self.test(|value| compare(op, value, literal)),
        }
    }

    /// Which rows satisfy `=~`, or `!~` when `negated`.
    pub fn matches(&self, matcher: &Matcher, negated: bool) -> BooleanBuffer {
        match self {
            Self::First(vectors) => combine_first(vectors, self.len(), |vector| vector.matches(matcher, negated)),
            Self::Typed(Typed::Text(texts)) => test_texts(texts, |text| matcher.is_match(text) != negated),
            Self::Text(texts, length) => {
                let bits = test_texts(texts, |text| matcher.is_match(text) != negated);
                if matcher.is_match("") != negated { &bits | &!&exists_texts(texts, *length) } else { bits }
            }
            _ => self.test(|value| matcher.matches(value, negated)),
        }
    }

    /// Which rows are the boolean true.
    pub fn is_true(&self) -> BooleanBuffer {
        match self {
            Self::Typed(Typed::Bool(values)) => &validity(values) & values.values(),
            _ => self.test(|value| *value == Value::Bool(true)),
        }
    }

    /// Which rows pass a test that `Nil` never passes: once per distinct value where the form allows.
    fn test(&self, test: impl Fn(&Value) -> bool + Copy) -> BooleanBuffer {
        match self {
            Self::Const(value, length) => {
                if test(value) {
                    BooleanBuffer::new_set(*length)
                } else {
                    BooleanBuffer::new_unset(*length)
                }
            }
            Self::Indexed(keys, values) => by_key(keys, &values.iter().map(test).collect::<Vec<_>>()),
            Self::Status(codes) => {
                let slice = codes.values();
                let passes = [0, 1, 2].map(|code| test(&Value::Status(status_of(code))));
                bits(codes, |row| passes[if matches!(slice[row], 1 | 2) { slice[row] as usize } else { 0 }])
            }
            Self::Kind(codes) => {
                let slice = codes.values();
                let passes = [0, 1, 2, 3, 4, 5].map(|code| test(&Value::Kind(kind_of(code))));
                bits(codes, |row| passes[if (0..6).contains(&slice[row]) { slice[row] as usize } else { 0 }])
            }
            Self::First(vectors) => combine_first(vectors, self.len(), |vector| vector.test(test)),
            _ => BooleanBuffer::collect_bool(self.len(), |row| test(&self.get(row))),
        }
    }

    /// The rows at `indices`; a null index is missing.
    pub fn take(&self, indices: &UInt32Array) -> Result<Self> {
        let ints = |values: &Int64Array| -> Result<Int64Array> { Ok(take(values, indices, None)?.as_primitive().clone()) };
        let small = |values: &Int32Array| -> Result<Int32Array> { Ok(take(values, indices, None)?.as_primitive().clone()) };
        Ok(match self {
            Self::Const(value, _) if indices.null_count() == 0 => Self::Const(value.clone(), indices.len()),
            Self::Typed(Typed::Text(texts)) => Self::Typed(Typed::Text(take_texts(texts, indices)?)),
            Self::Typed(Typed::Int(values)) => Self::Typed(Typed::Int(ints(values)?)),
            Self::Typed(Typed::Double(values)) => Self::Typed(Typed::Double(take(values, indices, None)?.as_primitive().clone())),
            Self::Typed(Typed::Bool(values)) => Self::Typed(Typed::Bool(take(values, indices, None)?.as_boolean().clone())),
            Self::Text(texts, _) if indices.null_count() == 0 => Self::Text(take_texts(texts, indices)?, indices.len()),
            Self::Duration(values) => Self::Duration(ints(values)?),
            Self::Status(values) => Self::Status(small(values)?),
            Self::Kind(values) => Self::Kind(small(values)?),
            Self::Indexed(keys, values) => Self::Indexed(small(keys)?, values.clone()),
            Self::First(vectors) => Self::First(vectors.iter().map(|vector| vector.take(indices)).collect::<Result<_>>()?),
            _ => Self::Values(indices.iter().map(|row| row.map_or(Value::Nil, |row| self.get(row as usize))).collect()),
        })
    }
}

/// In each row the result for the first vector that has a value there.
fn combine_first(vectors: &[Vector], length: usize, result: impl Fn(&Vector) -> BooleanBuffer) -> BooleanBuffer {
    let mut out = BooleanBuffer::new_unset(length);
    let mut open: Option<BooleanBuffer> = None;
    for vector in vectors {
        let hit = result(vector);
        out = &out
            | &match &open {
                Some(open) => &hit & open,
                None => hit,
            };
        let missing = !&vector.exists();
        open = Some(match open {
            Some(open) => &open & &missing,
            None => missing,
        });
    }
    out
}

fn texts_len(texts: &Texts) -> usize {
    match texts {
        Texts::Dictionary(dictionary, _) => dictionary.len(),
        Texts::Plain(values) => values.len(),
        Texts::View(values) => values.len(),
    }
}

fn exists_texts(texts: &Texts, length: usize) -> BooleanBuffer {
    debug_assert_eq!(texts_len(texts), length);
    Vector::Typed(Typed::Text(texts.clone())).exists()
}

fn take_texts(texts: &Texts, indices: &UInt32Array) -> Result<Texts> {
    Ok(match texts {
        Texts::Dictionary(dictionary, values) => Texts::Dictionary(take(dictionary, indices, None)?.as_dictionary().clone(), values.clone()),
        Texts::Plain(values) => Texts::Plain(take(values, indices, None)?.as_string().clone()),
        Texts::View(values) => Texts::View(take(values, indices, None)?.as_string_view().clone()),
    })
}

fn test_texts(texts: &Texts, test: impl Fn(&str) -> bool) -> BooleanBuffer {
    match texts {
        Texts::Dictionary(dictionary, values) if values.len() <= dictionary.len() => {
            by_key(dictionary.keys(), &values.iter().map(|value| test(value.unwrap_or_default())).collect::<Vec<_>>())
        }
        Texts::Dictionary(dictionary, values) => {
            bits(dictionary.keys(), |row| dictionary.is_valid(row) && test(values.value(dictionary.keys().value(row) as usize)))
        }
        Texts::Plain(values) => bits(values, |row| test(values.value(row))),
        Texts::View(values) => bits(values, |row| test(values.value(row))),
    }
}

fn compare_texts(texts: &Texts, op: CompareOp, literal: &str) -> BooleanBuffer {
    match op {
        CompareOp::Eq => test_texts(texts, |text| text == literal),
        CompareOp::Ne => test_texts(texts, |text| text != literal),
        _ => test_texts(texts, |text| holds(op, text.as_bytes().cmp(literal.as_bytes()))),
    }
}

fn compare_ints(values: &Int64Array, op: CompareOp, literal: i64) -> BooleanBuffer {
    let slice = values.values();
    match op {
        CompareOp::Eq => bits(values, |row| slice[row] == literal),
        CompareOp::Ne => bits(values, |row| slice[row] != literal),
        CompareOp::Lt => bits(values, |row| slice[row] < literal),
        CompareOp::Le => bits(values, |row| slice[row] <= literal),
        CompareOp::Gt => bits(values, |row| slice[row] > literal),
        CompareOp::Ge => bits(values, |row| slice[row] >= literal),
    }
}
