//! One column in whatever type a client has it, as typed values; and what is said of one that is wrong.

use std::{fmt::Display, sync::Arc};

use arrow::{
    array::{
        AnyDictionaryArray, Array, ArrayRef, ArrowPrimitiveType, AsArray, BooleanArray, DictionaryArray, Int32Array, Int64Array, StringArray,
        UInt64Array,
    },
    buffer::{NullBuffer, OffsetBuffer, ScalarBuffer},
    compute::{CastOptions, cast, cast_with_options, filter, take},
    datatypes::{
        DataType, Int8Type, Int16Type, Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
        TimestampSecondType, UInt8Type, UInt16Type, UInt64Type,
    },
};

use super::{super::read::Texts, TEXT_BYTES_MAX};
use crate::error::{Error, Result};

/// How much text a table may still spell out.
#[derive(Debug)]
pub(super) struct Budget {
    most: usize,
    spent: usize,
}

impl Budget {
    pub(super) fn new(most: usize) -> Self {
        Self { most, spent: 0 }
    }

    /// For text that is counted elsewhere, or is no matter.
    fn endless() -> Self {
        Self::new(usize::MAX)
    }

    pub(super) fn spent(&self) -> usize {
        self.spent
    }

    /// Spends `bytes`. Errors: `Invalid` when there are not as many left.
    pub(super) fn take(&mut self, bytes: usize) -> Result<()> {
        self.spent = self.spent.saturating_add(bytes);
        if self.spent > self.most {
            let most = self.most >> 20;
            return Err(Error::invalid(format!(
                "the text of the batch, dictionaries spelled out, is longer than {most} MiB: send fewer spans in a batch"
            )));
        }
        Ok(())
    }
}

/// A column that a client sent, or a part of its events or links.
#[derive(Debug, Clone, Copy)]
pub(super) struct Given<'a> {
    name: &'a str,
    pub(super) array: &'a ArrayRef,
    /// The list that it is a part of, and where each row's entries lie.
    list: Option<(&'a str, &'a OffsetBuffer<i32>)>,
    /// The row of each entry, where it is not its place.
    rows: Option<&'a [u32]>,
}

impl<'a> Given<'a> {
    pub(super) fn column(name: &'a str, array: &'a ArrayRef) -> Self {
        Self { name, array, list: None, rows: None }
    }

    pub(super) fn part(list: &'a str, offsets: &'a OffsetBuffer<i32>, name: &'a str, array: &'a ArrayRef) -> Self {
        Self { name, array, list: Some((list, offsets)), rows: None }
    }

    /// The same place with other values.
    pub(super) fn with<'b>(self, array: &'b ArrayRef) -> Given<'b>
    where
        'a: 'b,
    {
        Given { array, ..self }
    }

    /// The same where only `rows` are there.
    pub(super) fn in_rows<'b>(self, rows: &'b [u32]) -> Given<'b>
    where
        'a: 'b,
    {
        Given { rows: Some(rows), ..self }
    }

    pub(super) fn len(&self) -> usize {
        self.array.len()
    }

    fn place(&self, at: usize) -> String {
        match self.list {
            None => format!("column \"{}\", row {}", self.name, self.rows.map_or(at, |rows| rows[at] as usize)),
            Some((list, offsets)) => {
                let row = offsets.partition_point(|&offset| offset as usize <= at).saturating_sub(1);
                format!("column \"{list}\", row {row}, entry {}, field \"{}\"", at - offsets[row] as usize, self.name)
            }
        }
    }

    /// What is wrong at `at`. Long values are cut.
    pub(super) fn wrong(&self, at: usize, expected: &str, got: impl Display) -> Error {
        let got = got.to_string();
        let shown: String = got.chars().take(80).collect();
        let more = if shown.len() < got.len() { "…" } else { "" };
        Error::invalid(format!("{}: expected {expected}, got {shown}{more}", self.place(at)))
    }

    /// What is wrong with its type.
    pub(super) fn wrong_type(&self, expected: &str) -> Error {
        let place = match self.list {
            None => format!("column \"{}\"", self.name),
            Some((list, _)) => format!("column \"{list}\", field \"{}\"", self.name),
        };
        Error::invalid(format!("{place}: expected {expected}, got the type {}", self.array.data_type()))
    }

    /// Errors: `Invalid` when an entry is null.
    pub(super) fn whole(&self, expected: &str) -> Result<()> {
        match self.array.logical_nulls().and_then(|nulls| nulls.iter().position(|valid| !valid)) {
            Some(at) => Err(self.wrong(at, expected, "null")),
            None => Ok(()),
        }
    }
}

/// Whether `kind` holds text.
fn is_text(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// Dictionaries of anything but text as plain values.
pub(super) fn unpacked(array: &ArrayRef) -> Result<ArrayRef> {
    match array.data_type() {
        DataType::Dictionary(_, values) if !is_text(values) => {
            let dictionary = array.as_any_dictionary();
            Ok(take(dictionary.values(), dictionary.keys(), None)?)
        }
        _ => Ok(array.clone()),
    }
}

/// A column of text; None when it is of the type of nulls. Errors: `Invalid` for another type.
pub(super) fn texts(given: &Given<'_>, budget: &mut Budget) -> Result<Option<Texts>> {
    match given.array.data_type() {
        DataType::Null => Ok(None),
        DataType::Dictionary(_, values) if is_text(values) => compact(given.array, budget).map(Some),
        kind if is_text(kind) => plain(given.array, budget).map(|values| Some(Texts::Plain(values))),
        _ => Err(given.wrong_type("text")),
    }
}

/// The same, where dictionaries may hold what no row uses: their text is not counted.
pub(super) fn texts_as_sent(given: &Given<'_>, budget: &mut Budget) -> Result<Option<Texts>> {
    let Some(dictionary) = given.array.as_any_dictionary_opt().filter(|dictionary| is_text(dictionary.values().data_type())) else {
        return texts(given, budget);
    };
    match dictionary.values().null_count() {
        0 => Ok(Some(dictionary_of(keys_of(dictionary)?, values_of(dictionary)?))),
        _ => compact(given.array, &mut Budget::endless()).map(Some),
    }
}

/// The values of a dictionary of text. Errors: `Invalid` where views show more than a batch may have.
fn values_of(dictionary: &dyn AnyDictionaryArray) -> Result<StringArray> {
    plain(dictionary.values(), &mut Budget::new(TEXT_BYTES_MAX))
}

/// The keys of a dictionary in 32 bits. A key where there is a null may be any. Errors: `Internal` for keys that do not fit.
pub(super) fn keys_of(dictionary: &dyn AnyDictionaryArray) -> Result<Int32Array> {
    let keys = dictionary.keys();
    Ok(match keys.data_type() {
        DataType::Int32 => keys.as_primitive::<Int32Type>().clone(),
        // A cast to more bits that asks of no value whether it fits.
        DataType::Int8 => keys.as_primitive::<Int8Type>().unary(i32::from),
        DataType::Int16 => keys.as_primitive::<Int16Type>().unary(i32::from),
        DataType::UInt8 => keys.as_primitive::<UInt8Type>().unary(i32::from),
        DataType::UInt16 => keys.as_primitive::<UInt16Type>().unary(i32::from),
        _ => cast_with_options(keys, &DataType::Int32, &CastOptions { safe: false, ..CastOptions::default() })?.as_primitive::<Int32Type>().clone(),
    })
}

/// The values that a dictionary of text has in `rows`, each of which has one; None for another column, for keys that may not fit into
/// 32 bits with a sign, and where one has none. As a filter gives them, without a look at the other rows and at nulls.
pub(super) fn dictionary_at(array: &ArrayRef, rows: &[u32]) -> Option<ArrayRef> {
    fn at<K: ArrowPrimitiveType<Native: Into<i32>>>(keys: &dyn Array, rows: &[u32]) -> Int32Array {
        let keys = keys.as_primitive::<K>().values();
        rows.iter().map(|&row| keys[row as usize].into()).collect::<Vec<i32>>().into()
    }
    let dictionary = array.as_any_dictionary_opt().filter(|dictionary| is_text(dictionary.values().data_type()))?;
    let keys = match dictionary.keys().data_type() {
        DataType::Int8 => at::<Int8Type>(dictionary.keys(), rows),
        DataType::Int16 => at::<Int16Type>(dictionary.keys(), rows),
        DataType::Int32 => at::<Int32Type>(dictionary.keys(), rows),
        DataType::UInt8 => at::<UInt8Type>(dictionary.keys(), rows),
        DataType::UInt16 => at::<UInt16Type>(dictionary.keys(), rows),
        _ => return None,
    };
    // A key that is none of a value lies under a null, which no row was to have.
    Some(Arc::new(DictionaryArray::<Int32Type>::try_new(keys, dictionary.values().clone()).ok()?))
}

/// Text one after another, in a form that holds nothing but its rows.
fn plain(array: &ArrayRef, budget: &mut Budget) -> Result<StringArray> {
    budget.take(match array.data_type() {
        // Several rows may show the same text.
        DataType::Utf8View => array.as_string_view().iter().flatten().map(str::len).sum(),
        DataType::LargeUtf8 => length_of(array.as_string::<i64>().value_offsets()),
        _ => length_of(array.as_string::<i32>().value_offsets()),
    })?;
    Ok(cast(array, &DataType::Utf8)?.as_string::<i32>().clone())
}

fn length_of<T: Copy + TryInto<usize>>(offsets: &[T]) -> usize {
    let at = |offset: Option<&T>| offset.and_then(|&offset| offset.try_into().ok()).unwrap_or(0);
    at(offsets.last()).saturating_sub(at(offsets.first()))
}

/// A dictionary of text with the values that its rows use and no others.
fn compact(array: &ArrayRef, budget: &mut Budget) -> Result<Texts> {
    let dictionary = array.as_any_dictionary();
    let keys = keys_of(dictionary)?;
    // What counts is what the rows show of it.
    let values = values_of(dictionary)?;
    let used = used_values(&keys, &values, budget)?;
    match used.iter().all(|used| *used) {
        true => Ok(dictionary_of(keys, values)),
        false => without_unused(&keys, dictionary.logical_nulls(), &values, used),
    }
}

/// Which of `values` some row has; nulls are none.
fn used_values(keys: &Int32Array, values: &StringArray, budget: &mut Budget) -> Result<Vec<bool>> {
    let (mut used, mut bytes, offsets) = (vec![false; values.len()], 0, values.value_offsets());
    let mut note = |key: usize| {
        used[key] = true;
        bytes += (offsets[key + 1] - offsets[key]) as usize;
    };
    match keys.nulls() {
        None => keys.values().iter().for_each(|&key| note(key as usize)),
        Some(nulls) => nulls.valid_indices().for_each(|row| note(keys.value(row) as usize)),
    }
    budget.take(bytes)?;
    if let Some(nulls) = values.nulls() {
        used.iter_mut().zip(nulls).for_each(|(used, valid)| *used &= valid);
    }
    Ok(used)
}

/// The dictionary without the values that are not used; `nulls` are the rows that show none.
fn without_unused(keys: &Int32Array, nulls: Option<NullBuffer>, values: &StringArray, used: Vec<bool>) -> Result<Texts> {
    let mut next = 0;
    let numbered = |used: &bool| {
        next += i32::from(*used);
        next - i32::from(*used)
    };
    let places: Vec<i32> = used.iter().map(numbered).collect();
    let place = |row: usize| places[keys.value(row) as usize];
    let fresh = match &nulls {
        None => (0..keys.len()).map(place).collect(),
        Some(nulls) => {
            let mut fresh = vec![0; keys.len()];
            nulls.valid_indices().for_each(|row| fresh[row] = place(row));
            fresh
        }
    };
    let values = filter(values, &BooleanArray::from(used))?.as_string::<i32>().clone();
    Ok(dictionary_of(Int32Array::new(fresh.into(), nulls.filter(|nulls| nulls.null_count() > 0)), values))
}

/// A dictionary of keys that are known to be those of `values`.
fn dictionary_of(keys: Int32Array, values: StringArray) -> Texts {
    let values = Arc::new(values);
    // SAFETY: each key that is not null must be the number of a value. They are those of a dictionary that was checked when it was made, over as many
    // values: `keys_of` and `plain` change their type, not how many there are; or `without_unused` has just numbered what is left of these.
    // Measured: `try_new`, which looks at every key once more, takes 6 % of checking a table.
    #[allow(unsafe_code)]
    let dictionary = unsafe { DictionaryArray::new_unchecked(keys, values.clone()) };
    Texts::Dictionary(dictionary, values)
}

/// A column of whole numbers of any width; None when it is of the type of nulls. Errors: `Invalid` for another type, and for numbers above
/// those that 64 bits with a sign hold.
pub(super) fn ints(given: &Given<'_>) -> Result<Option<Int64Array>> {
    let array = unpacked(given.array)?;
    match array.data_type() {
        DataType::Null => Ok(None),
        DataType::UInt64 => signed(given, array.as_primitive::<UInt64Type>()).map(Some),
        kind if kind.is_integer() => Ok(Some(cast(&array, &DataType::Int64)?.as_primitive::<Int64Type>().clone())),
        _ => Err(given.wrong_type("whole numbers")),
    }
}

pub(super) fn signed(given: &Given<'_>, values: &UInt64Array) -> Result<Int64Array> {
    match (0..values.len()).find(|&at| values.is_valid(at) && values.value(at) > i64::MAX as u64) {
        Some(at) => Err(given.wrong(at, &format!("a number up to {}", i64::MAX), values.value(at))),
        None => Ok(Int64Array::new(values.values().iter().map(|&value| value as i64).collect(), values.nulls().cloned())),
    }
}

/// A column of whole numbers in which each row has one. Errors: `Invalid`.
pub(super) fn whole_numbers(given: &Given<'_>) -> Result<ScalarBuffer<i64>> {
    given.whole("a whole number")?;
    Ok(ints(given)?.map_or_else(|| Vec::new().into(), |values| values.values().clone()))
}

/// A column of numbers of 32 bits without sign, of which most are missing or zero; None when all are. Errors: `Invalid`.
pub(super) fn counts(given: &Given<'_>) -> Result<Option<Int64Array>> {
    let Some(values) = ints(given)? else { return Ok(None) };
    match (0..values.len()).find(|&at| values.is_valid(at) && u32::try_from(values.value(at)).is_err()) {
        Some(at) => Err(given.wrong(at, &format!("a number from 0 to {}", u32::MAX), values.value(at))),
        None => Ok(Some(values).filter(|values| values.iter().any(|value| value.is_some_and(|value| value != 0)))),
    }
}

/// A column of times as nanoseconds since 1970, each there and not before. Errors: `Invalid`.
pub(super) fn times(given: &Given<'_>) -> Result<ScalarBuffer<i64>> {
    const EXPECTED: &str = "a time from 1970 to 2262, as a timestamp or in nanoseconds since 1970";
    given.whole(EXPECTED)?;
    let array = unpacked(given.array)?;
    let (values, scale) = match array.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => (array.as_primitive::<TimestampSecondType>().values().clone(), 1_000_000_000),
        DataType::Timestamp(TimeUnit::Millisecond, _) => (array.as_primitive::<TimestampMillisecondType>().values().clone(), 1_000_000),
        DataType::Timestamp(TimeUnit::Microsecond, _) => (array.as_primitive::<TimestampMicrosecondType>().values().clone(), 1000),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => (array.as_primitive::<TimestampNanosecondType>().values().clone(), 1),
        kind if kind.is_integer() => (whole_numbers(given)?, 1),
        _ => return Err(given.wrong_type("timestamps or whole numbers")),
    };
    let nanos = |value: i64| value.checked_mul(scale).filter(|nanos| *nanos >= 0);
    if let Some((at, value)) = values.iter().enumerate().find(|(_, value)| nanos(**value).is_none()) {
        return Err(given.wrong(at, EXPECTED, value));
    }
    Ok(if scale == 1 { values } else { values.iter().map(|value| value * scale).collect() })
}

/// A column of names or of their numbers, as numbers; null is 0. Errors: `Invalid`.
pub(super) fn codes(given: &Given<'_>, names: &[&str]) -> Result<ScalarBuffer<i32>> {
    const UNKNOWN: i32 = -1;
    let expected = || format!("one of {} or its number in OTLP", names.join(", "));
    let wrong = |at: usize, got: &dyn Display| given.wrong(at, &expected(), got);
    let code_of = |text: &str| names.iter().position(|name| *name == text).map(|code| code as i32);
    let is_text = matches!(given.array.data_type(), DataType::Dictionary(_, values) if is_text(values)) || is_text(given.array.data_type());
    if !is_text {
        let Some(values) = ints(given).map_err(|_| given.wrong_type(&expected()))? else { return Ok(vec![0; given.len()].into()) };
        let code = |at: usize| match values.is_valid(at).then(|| values.value(at)) {
            None => Ok(0),
            Some(code) if (0..names.len() as i64).contains(&code) => Ok(code as i32),
            Some(code) => Err(wrong(at, &code)),
        };
        return (0..values.len()).map(code).collect();
    }
    // Names are short and few: what they would take spelled out is no matter here, nor are those that no row has.
    match texts_as_sent(given, &mut Budget::endless())? {
        Some(Texts::Dictionary(dictionary, values)) => {
            let known: Vec<i32> = values.iter().map(|text| code_of(text.unwrap_or_default()).unwrap_or(UNKNOWN)).collect();
            let keys = dictionary.keys();
            let codes: Vec<i32> = match keys.nulls() {
                None => keys.values().iter().map(|&key| known[key as usize]).collect(),
                Some(nulls) => keys.values().iter().zip(nulls).map(|(&key, valid)| if valid { known[key as usize] } else { 0 }).collect(),
            };
            match codes.iter().position(|&code| code == UNKNOWN) {
                Some(at) => Err(wrong(at, &format!("\"{}\"", values.value(keys.value(at) as usize)))),
                None => Ok(codes.into()),
            }
        }
        Some(texts) => {
            let code = |at: usize| texts.get(at).map_or(Ok(0), |text| code_of(text).ok_or_else(|| wrong(at, &format!("\"{text}\""))));
            (0..given.len()).map(code).collect()
        }
        None => Ok(vec![0; given.len()].into()),
    }
}
