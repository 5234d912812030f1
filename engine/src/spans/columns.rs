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
    /// No values of type `kind`; strings coded when `coded`.
    pub fn empty(kind: AttributeType, coded: bool) -> Self {
        match kind {
            AttributeType::String if coded => Self::Coded(Vec::new()),
            AttributeType::String => Self::Text { ends: Vec::new(), bytes: Vec::new() },
            AttributeType::Int => Self::Int(Vec::new()),
            AttributeType::Double => Self::Double(Vec::new()),
            AttributeType::Bool => Self::Bool(Vec::new()),
        }
    }
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
