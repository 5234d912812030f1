//! Codes of the values of a key.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayData, ArrayRef, AsArray, BooleanArray, make_array},
    buffer::{Buffer, NullBuffer},
    datatypes::DataType,
};
use datafusion::common::Result;
use hashbrown::HashMap;

use super::texts::Texts;

/// Whether values of a type can have codes.
pub(super) fn have_codes(kind: &DataType) -> bool {
    are_texts(kind) || matches!(kind, DataType::Boolean | DataType::Int64 | DataType::UInt64 | DataType::Timestamp(..))
}

/// Whether values of a type are texts that can have codes.
pub(super) fn are_texts(kind: &DataType) -> bool {
    match kind {
        DataType::Dictionary(key, value) => **key == DataType::Int32 && **value == DataType::Utf8,
        kind => matches!(kind, DataType::Utf8 | DataType::Utf8View),
    }
}

/// The codes of one key's values: numbers from 0 in the order in which the values come, null like any other.
pub(super) enum Codes {
    Texts(Box<Texts>),
    Numbers(Numbers),
}

impl Codes {
    /// Codes of values of the type `kind`, one of those that [`have_codes`].
    pub(super) fn new(kind: &DataType) -> Self {
        match kind {
            kind if are_texts(kind) => Self::Texts(Box::new(Texts::new(kind.clone()))),
            kind => Self::Numbers(Numbers { kind: kind.clone(), values: Vec::new(), codes: HashMap::new(), null: None }),
        }
    }

    /// Adds the code of every row to `found`. Cost: a hash per text, number that differs from the last, and entry of a dictionary that a row has;
    /// else a look into an array.
    pub(super) fn of_rows(&mut self, values: &ArrayRef, found: &mut Vec<u32>) {
        match self {
            Self::Texts(texts) => texts.of_rows(values, found),
            Self::Numbers(numbers) => numbers.of_rows(values, found),
        }
    }

    /// How many codes there are.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.count(),
            Self::Numbers(numbers) => numbers.values.len(),
        }
    }

    /// All values, by their codes. Errors: `ResourcesExhausted` for more than 2 GiB of texts, unless they are views.
    pub(super) fn all(self) -> Result<ArrayRef> {
        match self {
            Self::Texts(texts) => texts.all(),
            Self::Numbers(numbers) => numbers.all(),
        }
    }

    /// Bytes in memory.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.size(),
            Self::Numbers(Numbers { values, codes, .. }) => 8 * values.capacity() + codes.allocation_size(),
        }
    }
}

/// Numbers of 64 bits, as their bits; and of one.
pub(super) struct Numbers {
    kind: DataType,
    values: Vec<u64>,
    codes: HashMap<u64, u32>,
    null: Option<u32>,
}

impl Numbers {
    fn of_rows(&mut self, array: &ArrayRef, found: &mut Vec<u32>) {
        match array.as_boolean_opt() {
            Some(flags) => self.of_values(flags.values().iter().map(u64::from), array.nulls(), found),
            None => self.of_values(array.to_data().buffer::<u64>(0)[..array.len()].iter().copied(), array.nulls(), found),
        }
    }

    fn of_values(&mut self, values: impl Iterator<Item = u64>, nulls: Option<&NullBuffer>, found: &mut Vec<u32>) {
        // Neighbours are often equal: the hours of spans in a block.
        let mut last = None;
        found.extend(values.enumerate().map(|(row, value)| {
            let value = nulls.is_none_or(|nulls| nulls.is_valid(row)).then_some(value);
            let code = match last {
                Some((known, code)) if known == value => code,
                _ => self.code(value),
            };
            last = Some((value, code));
            code
        }));
    }

    fn code(&mut self, value: Option<u64>) -> u32 {
        let Self { values, codes, null, .. } = self;
        let add = || {
            values.push(value.unwrap_or_default());
            values.len() as u32 - 1
        };
        match value {
            Some(value) => *codes.entry(value).or_insert_with(add),
            None => *null.get_or_insert_with(add),
        }
    }

    fn all(self) -> Result<ArrayRef> {
        let nulls = self.null.map(|null| (0..self.values.len() as u32).map(|code| code != null).collect::<NullBuffer>());
        if self.kind == DataType::Boolean {
            return Ok(Arc::new(BooleanArray::new(self.values.iter().map(|&value| value == 1).collect(), nulls)));
        }
        let data = ArrayData::builder(self.kind).len(self.values.len()).add_buffer(Buffer::from_vec(self.values)).nulls(nulls);
        Ok(make_array(data.build()?))
    }
}
