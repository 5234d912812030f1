//! Sparse columns: what a chunk of spans (or events) holds of one attribute, as (row, value) pairs.

use std::sync::Arc;

use super::pool::Pool;

/// The type of an attribute column. A key with values of two types has two columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum AttributeType {
    String,
    Int,
    Double,
    Bool,
}

/// The number of [`AttributeType`]s.
pub const ATTRIBUTE_TYPES: usize = 4;

/// Values of one type in row order.
#[derive(Debug)]
pub enum Values {
    /// Numbers of strings in the column's pool.
    Coded(Vec<u32>),
    /// Strings one after another; value `i` ends at `ends[i]`.
    Text {
        /// End of each value in `bytes`.
        ends: Vec<u32>,
        /// The strings.
        bytes: Vec<u8>,
    },
    /// Integers.
    Int(Vec<i64>),
    /// Doubles.
    Double(Vec<f64>),
    /// Booleans.
    Bool(Vec<bool>),
}

impl Values {
    /// No values of type `kind`; strings are coded.
    pub fn empty(kind: AttributeType) -> Self {
        match kind {
            AttributeType::String => Self::Coded(Vec::new()),
            AttributeType::Int => Self::Int(Vec::new()),
            AttributeType::Double => Self::Double(Vec::new()),
            AttributeType::Bool => Self::Bool(Vec::new()),
        }
    }

    /// Takes the values. What is left has room for as many.
    pub(super) fn take_leaving_room(&mut self) -> Self {
        match self {
            Self::Coded(values) => Self::Coded(take_leaving_room(values)),
            Self::Text { ends, bytes } => Self::Text { ends: take_leaving_room(ends), bytes: take_leaving_room(bytes) },
            Self::Int(values) => Self::Int(take_leaving_room(values)),
            Self::Double(values) => Self::Double(take_leaving_room(values)),
            Self::Bool(values) => Self::Bool(take_leaving_room(values)),
        }
    }
}

/// Takes the values and leaves room for as many and an eighth more: the chunks of a stream of spans are alike, and what grows from nothing is
/// copied again and again. What is taken has at most twice the room that it needs, as if it had grown.
pub(super) fn take_leaving_room<T>(values: &mut Vec<T>) -> Vec<T> {
    let room = Vec::with_capacity(values.len() + values.len() / 8);
    let mut taken = std::mem::replace(values, room);
    if taken.capacity() > 2 * taken.len() {
        taken.shrink_to_fit();
    }
    taken
}

/// Byte strings of some rows, one after another. Rows ascend.
#[derive(Debug, Default)]
pub struct BytesColumn {
    /// The rows that have a value.
    pub rows: Vec<u32>,
    /// End of each value in `bytes`.
    pub ends: Vec<u32>,
    /// The values.
    pub bytes: Vec<u8>,
}

impl BytesColumn {
    /// Appends `value` to what `row`, the newest row, has already.
    pub fn append(&mut self, row: u32, value: impl FnOnce(&mut Vec<u8>)) {
        value(&mut self.bytes);
        let end = self.bytes.len() as u32;
        if self.rows.last() == Some(&row) {
            if let Some(last) = self.ends.last_mut() {
                *last = end;
            }
        } else {
            self.rows.push(row);
            self.ends.push(end);
        }
    }

    /// Value `at`, counted among the rows that have one.
    pub fn get(&self, at: usize) -> &[u8] {
        let start = if at == 0 { 0 } else { self.ends[at - 1] as usize };
        &self.bytes[start..self.ends[at] as usize]
    }
}

/// One attribute of a chunk: a key, a type, and the rows that have it, ascending.
#[derive(Debug)]
pub struct SparseColumn {
    /// Number of the column in its table; the same in every chunk of a generation.
    pub id: u32,
    /// The rows that have a value.
    pub rows: Vec<u32>,
    /// Their values.
    pub values: Values,
}

impl SparseColumn {
    /// The string at `at`, counted among the rows that have one; `pool` is the column's.
    pub fn text<'a>(&'a self, at: usize, pool: &'a Pool) -> &'a [u8] {
        match &self.values {
            Values::Coded(codes) => pool.get(codes[at]),
            Values::Text { ends, bytes } => {
                let start = if at == 0 { 0 } else { ends[at - 1] as usize };
                &bytes[start..ends[at] as usize]
            }
            _ => &[],
        }
    }
}

/// A key and a type.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttributeColumn {
    /// The attribute's key.
    pub key: Arc<str>,
    /// The type of its values.
    pub kind: AttributeType,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_leaves_room_for_as_many() {
        let mut values: Vec<u64> = (0..100).collect();
        let taken = take_leaving_room(&mut values);
        assert_eq!((taken, values.len()), ((0..100).collect(), 0));
        assert!(values.capacity() >= 100);
        values.push(1);
        let taken = take_leaving_room(&mut values);
        assert_eq!((&*taken, values.len()), (&[1][..], 0));
        assert!(taken.capacity() < 100 && values.capacity() < 100, "one value needs no room for a hundred");
        assert_eq!(take_leaving_room(&mut Vec::<u64>::new()).capacity(), 0);
    }
}
