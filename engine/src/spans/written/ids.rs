//! Ids as hexadecimal digits or as bytes, of the lengths that OTLP has.

use std::{borrow::Cow, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BinaryArray, BinaryViewArray, FixedSizeBinaryArray, LargeBinaryArray, LargeStringArray, StringArray,
        StringViewArray,
    },
    buffer::ScalarBuffer,
    datatypes::DataType,
};

use super::columns::{Given, keys_of};
use crate::{error::Result, spans::TraceId};

/// The value of each hexadecimal digit; 255 for what is none.
const DIGITS: [u8; 256] = {
    let mut table = [255; 256];
    let mut value = 0;
    while value < 16 {
        table[b"0123456789abcdef"[value] as usize] = value as u8;
        table[b"0123456789ABCDEF"[value] as usize] = value as u8;
        value += 1;
    }
    table
};

/// Both halves of the id of every row. Errors: `Invalid`.
pub(super) fn trace_ids(given: &Given<'_>) -> Result<(ScalarBuffer<i64>, ScalarBuffer<i64>)> {
    let ids = ids::<16>(given, false)?;
    let half = |of: fn((i64, i64)) -> i64| ids.iter().map(|&id| of(TraceId(id).halves())).collect();
    Ok((half(|(high, _)| high), half(|(_, low)| low)))
}

/// The id of every row. Errors: `Invalid`.
pub(super) fn span_ids(given: &Given<'_>) -> Result<ScalarBuffer<i64>> {
    Ok(numbers(&ids(given, false)?))
}

/// The id of every row, 0 where it is null or empty. Errors: `Invalid`.
pub(super) fn parent_ids(given: &Given<'_>) -> Result<ScalarBuffer<i64>> {
    Ok(numbers(&ids(given, true)?))
}

fn numbers(ids: &[[u8; 8]]) -> ScalarBuffer<i64> {
    ids.iter().map(|&id| i64::from_be_bytes(id)).collect()
}

/// Text of ids as bytes; None for what is no text, or no id in a row that has one.
pub(super) fn as_bytes<const N: usize>(array: &ArrayRef) -> Option<ArrayRef> {
    let texts = array.as_string_opt::<i32>()?;
    let mut bytes = Vec::with_capacity(texts.len() * N);
    for text in texts {
        bytes.extend(text.map_or(Some([0; N]), |text| of_hex::<N>(text.as_bytes()))?);
    }
    Some(Arc::new(FixedSizeBinaryArray::try_new(N as i32, bytes.into(), texts.nulls().cloned()).ok()?))
}

fn expected<const N: usize>() -> String {
    format!("{} hexadecimal digits or {N} bytes", N * 2)
}

/// The ids of all rows. `optional` is whether null, or nothing at all, stands for none.
fn ids<'a, const N: usize>(given: &Given<'a>, optional: bool) -> Result<Cow<'a, [[u8; N]]>> {
    if *given.array.data_type() == DataType::Null && optional {
        return Ok(vec![[0; N]; given.len()].into());
    }
    if !optional {
        given.whole(&expected::<N>())?;
    }
    if let Some(bytes) = given.array.as_fixed_size_binary_opt().filter(|bytes| bytes.value_length() as usize == N) {
        return Ok(fixed(bytes));
    }
    let Some(dictionary) = given.array.as_any_dictionary_opt() else {
        let values = Bytes::of(given.array).ok_or_else(|| given.wrong_type(&expected::<N>()))?;
        return (0..given.len())
            .map(|row| values.id(row, optional).ok_or_else(|| wrong::<N>(given, row, &values, row)))
            .collect::<Result<_>>()
            .map(Cow::Owned);
    };
    let keys = keys_of(dictionary)?;
    let values = Bytes::of(dictionary.values()).ok_or_else(|| given.wrong_type(&expected::<N>()))?;
    // A dictionary may have been sent for many batches.
    let known: Option<Vec<Option<[u8; N]>>> = (values.len() <= given.len()).then(|| (0..values.len()).map(|key| values.id(key, optional)).collect());
    let all: Option<Vec<[u8; N]>> = known.as_ref().filter(|_| keys.null_count() == 0).and_then(|known| known.iter().copied().collect());
    if let Some(all) = all {
        return Ok(keys.values().iter().map(|&key| all[key as usize]).collect());
    }
    let id = |row: usize| {
        if keys.is_null(row) {
            return Ok([0; N]);
        }
        let key = keys.value(row) as usize;
        let id = known.as_ref().map_or_else(|| values.id(key, optional), |known| known[key]);
        id.ok_or_else(|| wrong::<N>(given, row, &values, key))
    };
    (0..given.len()).map(id).collect::<Result<_>>().map(Cow::Owned)
}

/// The ids of an array of `N` bytes each, zeros where it is null.
fn fixed<const N: usize>(bytes: &FixedSizeBinaryArray) -> Cow<'_, [[u8; N]]> {
    let ids = &bytes.value_data().as_chunks().0[..bytes.len()];
    match bytes.nulls() {
        None => ids.into(),
        Some(nulls) => ids.iter().zip(nulls).map(|(&id, valid)| if valid { id } else { [0; N] }).collect(),
    }
}

fn wrong<const N: usize>(given: &Given<'_>, row: usize, values: &Bytes<'_>, at: usize) -> crate::error::Error {
    let bytes = values.get(at);
    let got = match values.is_text() {
        true => format!("\"{}\"", String::from_utf8_lossy(bytes)),
        false => format!("{} bytes", bytes.len()),
    };
    given.wrong(row, &expected::<N>(), got)
}

/// Text or byte strings.
enum Bytes<'a> {
    Text(&'a StringArray),
    LargeText(&'a LargeStringArray),
    TextView(&'a StringViewArray),
    Binary(&'a BinaryArray),
    LargeBinary(&'a LargeBinaryArray),
    BinaryView(&'a BinaryViewArray),
    Fixed(&'a FixedSizeBinaryArray),
}

impl<'a> Bytes<'a> {
    fn of(array: &'a ArrayRef) -> Option<Self> {
        Some(match array.data_type() {
            DataType::Utf8 => Self::Text(array.as_string()),
            DataType::LargeUtf8 => Self::LargeText(array.as_string()),
            DataType::Utf8View => Self::TextView(array.as_string_view()),
            DataType::Binary => Self::Binary(array.as_binary()),
            DataType::LargeBinary => Self::LargeBinary(array.as_binary()),
            DataType::BinaryView => Self::BinaryView(array.as_binary_view()),
            DataType::FixedSizeBinary(_) => Self::Fixed(array.as_fixed_size_binary()),
            _ => return None,
        })
    }

    fn len(&self) -> usize {
        self.array().len()
    }

    fn is_text(&self) -> bool {
        matches!(self, Self::Text(_) | Self::LargeText(_) | Self::TextView(_))
    }

    fn array(&self) -> &dyn Array {
        match self {
            Self::Text(array) => array,
            Self::LargeText(array) => array,
            Self::TextView(array) => array,
            Self::Binary(array) => array,
            Self::LargeBinary(array) => array,
            Self::BinaryView(array) => array,
            Self::Fixed(array) => array,
        }
    }

    #[inline]
    fn get(&self, at: usize) -> &'a [u8] {
        match *self {
            Self::Text(array) => array.value(at).as_bytes(),
            Self::LargeText(array) => array.value(at).as_bytes(),
            Self::TextView(array) => array.value(at).as_bytes(),
            Self::Binary(array) => array.value(at),
            Self::LargeBinary(array) => array.value(at),
            Self::BinaryView(array) => array.value(at),
            Self::Fixed(array) => array.value(at),
        }
    }

    /// The id at `at`; None where there is none and one is needed, and for what is none.
    #[inline]
    fn id<const N: usize>(&self, at: usize, optional: bool) -> Option<[u8; N]> {
        if self.array().is_null(at) {
            return optional.then_some([0; N]);
        }
        let bytes = self.get(at);
        if bytes.is_empty() && optional {
            return Some([0; N]);
        }
        if self.is_text() { of_hex(bytes) } else { bytes.try_into().ok() }
    }
}

/// Reads exactly `2 * N` hexadecimal digits.
#[inline]
fn of_hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    if digits.len() != N * 2 {
        return None;
    }
    let (mut id, mut wrong) = ([0; N], 0);
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        let (high, low) = (DIGITS[usize::from(pair[0])], DIGITS[usize::from(pair[1])]);
        wrong |= (high | low) & 0xf0;
        *byte = high << 4 | low & 15;
    }
    (wrong == 0).then_some(id)
}
