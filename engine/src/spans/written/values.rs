//! Attributes: a column of values for each key, and values as OTLP's protobuf.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Int32Array, StringArray},
    buffer::{NullBuffer, OffsetBuffer},
    compute::cast,
    datatypes::{DataType, Field, Float64Type},
};

use super::{
    ENTRIES_MAX,
    columns::{Budget, Given, ints, texts, texts_as_sent, unpacked},
};
use crate::{
    error::Result,
    spans::{
        read::{Texts, Typed},
        wire::{bytes_field_length, write_bytes_field, write_varint},
    },
};

const EXPECTED: &str = "text, numbers, booleans or lists of these";

/// An attribute of spans, resources, scopes, events or links: null where one lacks it.
#[derive(Debug, Clone)]
pub(super) struct Attribute {
    pub(super) key: String,
    pub(super) values: Values,
}

/// The values of an attribute.
#[derive(Debug, Clone)]
pub(super) enum Values {
    /// One each.
    Each(Typed),
    /// A list each.
    Lists(Lists),
}

/// Lists of values of one type.
#[derive(Debug, Clone)]
pub(super) struct Lists {
    offsets: OffsetBuffer<i32>,
    nulls: Option<NullBuffer>,
    /// None: all items are null.
    items: Option<Typed>,
}

impl Attribute {
    /// The attribute `key`; None when no row has it. Errors: `Invalid` for a type that is none of attributes, and for numbers beyond 64 bits.
    pub(super) fn of(key: &str, given: &Given<'_>, budget: &mut Budget) -> Result<Option<Self>> {
        Self::with(key, given, budget, texts)
    }

    /// The same of what many rows share: dictionaries stay as they are. Their text is counted where it is written out, once.
    pub(super) fn shared(key: &str, given: &Given<'_>, budget: &mut Budget) -> Result<Option<Self>> {
        Self::with(key, given, budget, texts_as_sent)
    }

    fn with(key: &str, given: &Given<'_>, budget: &mut Budget, texts: ReadTexts) -> Result<Option<Self>> {
        if given.array.logical_null_count() == given.len() {
            return Ok(None);
        }
        let values = match given.array.data_type() {
            DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(_, _) => Some(Values::Lists(Lists::of(given, budget)?)),
            _ => scalars(given, budget, texts)?.map(Values::Each),
        };
        Ok(values.map(|values| Self { key: key.to_owned(), values }))
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.values, Values::Lists(_))
    }

    pub(super) fn is_valid(&self, row: usize) -> bool {
        self.values.is_valid(row)
    }
}

impl Values {
    pub(super) fn nulls(&self) -> Option<&NullBuffer> {
        match self {
            Self::Each(values) => values.nulls(),
            Self::Lists(lists) => lists.nulls.as_ref(),
        }
    }

    fn is_valid(&self, row: usize) -> bool {
        self.nulls().is_none_or(|nulls| nulls.is_valid(row))
    }
}

/// How text is read.
type ReadTexts = fn(&Given<'_>, &mut Budget) -> Result<Option<Texts>>;

/// Values of one of the four types; None when the type is that of nulls. Errors: `Invalid`.
fn scalars(given: &Given<'_>, budget: &mut Budget, texts: ReadTexts) -> Result<Option<Typed>> {
    let array = unpacked(given.array)?;
    let given = given.with(&array);
    match array.data_type() {
        DataType::Null => Ok(None),
        DataType::Boolean => Ok(Some(Typed::Bool(array.as_boolean().clone()))),
        DataType::Float16 | DataType::Float32 | DataType::Float64 => {
            Ok(Some(Typed::Double(cast(&array, &DataType::Float64)?.as_primitive::<Float64Type>().clone())))
        }
        kind if kind.is_integer() => Ok(ints(&given)?.map(Typed::Int)),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(_, _) => Ok(texts(&given, budget)?.map(Typed::Text)),
        _ => Err(given.wrong_type(EXPECTED)),
    }
}

/// A column of lists with 32-bit offsets that begin at 0, and the entries that they cover. Errors: `Invalid` for other types and for too many.
pub(super) fn lists(given: &Given<'_>, expected: &str) -> Result<(OffsetBuffer<i32>, Option<NullBuffer>, ArrayRef)> {
    let item = match given.array.data_type() {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => item.data_type().clone(),
        _ => return Err(given.wrong_type(expected)),
    };
    let entries = match given.array.data_type() {
        DataType::LargeList(_) => given.array.as_list::<i64>().value_offsets().windows(2).map(|ends| (ends[1] - ends[0]) as usize).sum(),
        DataType::FixedSizeList(_, width) => given.len().saturating_mul(*width as usize),
        _ => given.array.as_list::<i32>().value_offsets().windows(2).map(|ends| (ends[1] - ends[0]) as usize).sum(),
    };
    if entries > ENTRIES_MAX {
        return Err(given.wrong(given.len().saturating_sub(1), &format!("at most {ENTRIES_MAX} entries in all rows of a batch"), entries));
    }
    let array = cast(given.array, &DataType::List(Field::new_list_field(item, true).into()))?;
    let list = array.as_list::<i32>();
    let (first, last) = (list.value_offsets()[0], list.value_offsets()[list.len()]);
    // A null may cover entries, which nobody meant.
    let covers = |nulls: &NullBuffer| (0..list.len()).any(|row| nulls.is_null(row) && list.value_length(row) > 0);
    if list.nulls().is_some_and(covers) {
        let valid: Vec<usize> = (0..list.len()).map(|row| if list.is_valid(row) { list.value_length(row) as usize } else { 0 }).collect();
        let kept = (0..list.len()).flat_map(|row| std::iter::repeat_n(list.is_valid(row), list.value_length(row) as usize));
        let kept = arrow::array::BooleanArray::from(kept.collect::<Vec<_>>());
        let entries = arrow::compute::filter(&list.values().slice(first as usize, (last - first) as usize), &kept)?;
        return Ok((OffsetBuffer::from_lengths(valid), list.nulls().cloned(), entries));
    }
    let offsets = OffsetBuffer::new(list.value_offsets().iter().map(|offset| offset - first).collect());
    Ok((offsets, list.nulls().cloned(), list.values().slice(first as usize, (last - first) as usize)))
}

impl Lists {
    fn of(given: &Given<'_>, budget: &mut Budget) -> Result<Self> {
        let (offsets, nulls, entries) = lists(given, EXPECTED)?;
        let items = scalars(&given.with(&entries), budget, texts).map_err(|error| match entries.data_type() {
            DataType::Null => error,
            _ => error.context("in lists"),
        })?;
        Ok(Self { offsets, nulls, items })
    }

    /// Whether two rows that have lists have the same.
    pub(super) fn is_same(&self, a: usize, b: usize) -> bool {
        let entries = |row: usize| self.offsets[row] as usize..self.offsets[row + 1] as usize;
        let (a, b) = (entries(a), entries(b));
        a.len() == b.len() && self.items.as_ref().is_none_or(|items| a.zip(b).all(|(a, b)| is_same(items, a, b)))
    }
}

/// Writes attributes as protobuf; its buffers are used again and again.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    item: Vec<u8>,
    list: Vec<u8>,
    value: Vec<u8>,
}

impl Encoder {
    /// Appends the attribute of `row`, which has it, as a `KeyValue` in field `number`.
    pub(super) fn pair(&mut self, out: &mut Vec<u8>, number: u32, attribute: &Attribute, row: usize) {
        self.value.clear();
        match &attribute.values {
            Values::Each(values) => write_any(&mut self.value, values, row),
            Values::Lists(lists) => self.list(lists, row),
        }
        let length = bytes_field_length(attribute.key.len()) + bytes_field_length(self.value.len());
        write_varint(out, u64::from(number) << 3 | 2);
        write_varint(out, length as u64);
        write_bytes_field(out, 1, attribute.key.as_bytes());
        write_bytes_field(out, 2, &self.value);
    }

    /// Writes an `AnyValue` that is an array. A null in it is a value without content.
    fn list(&mut self, lists: &Lists, row: usize) {
        self.list.clear();
        for at in lists.offsets[row] as usize..lists.offsets[row + 1] as usize {
            self.item.clear();
            if let Some(items) = lists.items.as_ref().filter(|items| items.is_valid(at)) {
                write_any(&mut self.item, items, at);
            }
            write_bytes_field(&mut self.list, 1, &self.item);
        }
        write_bytes_field(&mut self.value, 5, &self.list);
    }
}

/// Appends the value of `row`, which has one, as the content of an `AnyValue`.
fn write_any(out: &mut Vec<u8>, values: &Typed, row: usize) {
    match values {
        Typed::Text(texts) => write_bytes_field(out, 1, texts.get(row).unwrap_or_default().as_bytes()),
        Typed::Bool(values) => out.extend_from_slice(&[2 << 3, u8::from(values.value(row))]),
        Typed::Int(values) => {
            out.push(3 << 3);
            write_varint(out, values.value(row) as u64);
        }
        Typed::Double(values) => {
            out.push(4 << 3 | 1);
            out.extend_from_slice(&values.value(row).to_bits().to_le_bytes());
        }
    }
}

/// The lists of every row as `KeyValue`s in fields of number 1, which is how attributes without a column are kept; None when there are none.
pub(super) fn rest_of(attributes: &[Attribute], rows: usize, budget: &mut Budget) -> Result<Option<BinaryArray>> {
    if attributes.is_empty() {
        return Ok(None);
    }
    let (mut encoder, mut bytes, mut ends, mut valid) = (Encoder::default(), Vec::new(), vec![0_i32], Vec::with_capacity(rows));
    for row in 0..rows {
        let before = bytes.len();
        attributes.iter().filter(|attribute| attribute.is_valid(row)).for_each(|attribute| encoder.pair(&mut bytes, 1, attribute, row));
        budget.take(bytes.len() - before)?;
        valid.push(bytes.len() > before);
        // The budget is far below 2 GiB.
        ends.push(bytes.len() as i32);
    }
    Ok(Some(BinaryArray::new(OffsetBuffer::new(ends.into()), bytes.into(), Some(NullBuffer::from(valid)))))
}

/// Whether two rows have the same value, or both none.
pub(super) fn is_same(values: &Typed, a: usize, b: usize) -> bool {
    let valid = values.is_valid(a);
    let is_equal = || match values {
        Typed::Text(texts) => texts.get(a) == texts.get(b),
        Typed::Int(values) => values.value(a) == values.value(b),
        Typed::Double(values) => values.value(a).to_bits() == values.value(b).to_bits(),
        Typed::Bool(values) => values.value(a) == values.value(b),
    };
    valid == values.is_valid(b) && (!valid || is_equal())
}

/// The values of some rows as numbers: 0 where there is none, else from 1.
pub(super) enum Codes<'a> {
    /// Of the values of a dictionary, of which there are so many.
    Keys(&'a Int32Array, usize),
    Bools(&'a BooleanArray),
    /// Of the distinct values, one after another for the rows that were asked for; and how many numbers there are.
    Numbers(Vec<u32>, usize),
}

impl<'a> Codes<'a> {
    pub(super) fn of(attribute: &'a Values, rows: &[usize]) -> Self {
        match attribute {
            Values::Each(Typed::Text(Texts::Dictionary(dictionary, values))) => Self::Keys(dictionary.keys(), values.len()),
            Values::Each(Typed::Bool(values)) => Self::Bools(values),
            Values::Each(values) => interned(rows, |row, out| {
                let valid = values.is_valid(row);
                if valid {
                    write_any(out, values, row);
                }
                valid
            }),
            Values::Lists(lists) => {
                let mut encoder = Encoder::default();
                interned(rows, |row, out| {
                    let valid = attribute.is_valid(row);
                    if valid {
                        encoder.value.clear();
                        encoder.list(lists, row);
                        out.extend_from_slice(&encoder.value);
                    }
                    valid
                })
            }
        }
    }

    /// How many numbers there are.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Keys(_, values) => values + 1,
            Self::Bools(_) => 3,
            Self::Numbers(_, count) => *count,
        }
    }
}

/// Numbers of the byte strings of `rows`, which `write` gives unless there is none.
fn interned(rows: &[usize], mut write: impl FnMut(usize, &mut Vec<u8>) -> bool) -> Codes<'static> {
    let (mut pool, mut bytes) = (crate::spans::pool::Pool::default(), Vec::new());
    let mut code = |&row: &usize| {
        bytes.clear();
        if write(row, &mut bytes) { pool.intern(&bytes) + 1 } else { 0 }
    };
    let codes = rows.iter().map(&mut code).collect();
    Codes::Numbers(codes, pool.len() + 1)
}

/// A typed column in Arrow.
pub(super) fn array_of(values: &Typed) -> ArrayRef {
    match values {
        Typed::Text(texts) => array_of_texts(texts),
        Typed::Int(values) => Arc::new(values.clone()),
        Typed::Double(values) => Arc::new(values.clone()),
        Typed::Bool(values) => Arc::new(values.clone()),
    }
}

/// A column of text in Arrow.
pub(super) fn array_of_texts(texts: &Texts) -> ArrayRef {
    match texts {
        Texts::Dictionary(dictionary, _) => Arc::new(dictionary.clone()),
        Texts::Plain(values) => Arc::new(values.clone()),
        Texts::View(values) => Arc::new(StringArray::from_iter(values.iter())),
    }
}
