//! Values of a column: codes into its dictionary, and bits.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, DictionaryArray, GenericByteArray, PrimitiveArray, StringArray},
    buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer},
    datatypes::{ArrowPrimitiveType, BinaryType, ByteArrayType, DataType, Float64Type, Int32Type, Int64Type, Utf8Type},
};
use bytes::Bytes;
use parquet::errors::{ParquetError, Result};

use super::{
    bits::{Bits, spread},
    runs::{Run, Runs, damaged, unpack_all, value_at},
};

/// The values of a page.
pub(super) struct PageValues {
    pub(super) bytes: Bytes,
    pub(super) count: usize,
}

/// The wanted values of a page: their places, and the place of its first value; None for all of them.
pub(super) type Places<'a> = Option<(&'a [u32], u32)>;

/// Which of the values of all pages are wanted, and which entries of the array they are of.
pub(super) struct Wanted {
    /// Places of the values, ascending; None for all.
    pub(super) places: Option<Vec<u32>>,
    /// Entries of the array.
    pub(super) entries: usize,
    /// Which of them have a value; None if all have.
    pub(super) present: Option<Bits>,
}

impl Wanted {
    /// Those of `pages` that have a wanted value.
    pub(super) fn by_page<'a>(&'a self, pages: &'a [PageValues]) -> impl Iterator<Item = (&'a PageValues, Places<'a>)> {
        let mut left = self.places.as_deref();
        let mut first = 0;
        pages.iter().filter_map(move |page| {
            let Some(places) = left else { return (page.count > 0).then_some((page, None)) };
            let end = first + page.count as u32;
            let (here, rest) = places.split_at(places.partition_point(|&place| place < end));
            left = Some(rest);
            let before = std::mem::replace(&mut first, end);
            (!here.is_empty()).then_some((page, Some((here, before))))
        })
    }

    /// Whether any value is wanted.
    pub(super) fn is_empty(&self) -> bool {
        self.places.as_ref().is_some_and(Vec::is_empty)
    }

    pub(super) fn nulls(&self) -> Option<NullBuffer> {
        self.present.clone().map(|present| NullBuffer::new(present.finish())).filter(|nulls| nulls.null_count() > 0)
    }
}

/// A column of type `kind` whose `pages` have codes into `dictionary`. Errors: for damaged pages, a code that the dictionary lacks, text that
/// is no UTF-8, and more bytes than 32-bit offsets reach.
pub(super) fn coded(kind: &DataType, dictionary: Option<&PageValues>, pages: &[PageValues], wanted: &Wanted) -> Result<ArrayRef> {
    let nothing = PageValues { bytes: Bytes::new(), count: 0 };
    let dictionary = dictionary.filter(|_| !wanted.is_empty()).unwrap_or(&nothing);
    let codes = codes(pages, dictionary.count, wanted)?;
    Ok(match kind {
        DataType::Int64 => Arc::new(numbers::<Int64Type, 8>(dictionary, i64::from_le_bytes, &codes, wanted)?),
        DataType::Int32 => Arc::new(numbers::<Int32Type, 4>(dictionary, i32::from_le_bytes, &codes, wanted)?),
        DataType::Float64 => Arc::new(numbers::<Float64Type, 8>(dictionary, f64::from_le_bytes, &codes, wanted)?),
        DataType::Utf8 => Arc::new(written_out::<Utf8Type>(dictionary, &codes, wanted)?),
        DataType::Binary => Arc::new(written_out::<BinaryType>(dictionary, &codes, wanted)?),
        _ => Arc::new(keyed(dictionary, codes, wanted)?),
    })
}

/// The wanted codes.
fn codes(pages: &[PageValues], known: usize, wanted: &Wanted) -> Result<Vec<i32>> {
    let count = wanted.places.as_ref().map_or_else(|| pages.iter().map(|page| page.count).sum(), Vec::len);
    // Packed codes are unpacked by eight.
    let mut codes = Vec::with_capacity(count + 7);
    for (page, places) in wanted.by_page(pages) {
        let (&width, runs) = page.bytes.split_first().ok_or_else(|| damaged("no codes"))?;
        if width > 32 {
            return Err(damaged("codes of more than 32 bits"));
        }
        let runs = Runs::new(runs, u32::from(width), page.count);
        match places {
            None => unpack_all(runs, &mut codes)?,
            Some(places) => some_codes(runs, usize::from(width), places, &mut codes)?,
        }
    }
    if codes.len() != count {
        return Err(damaged("fewer codes than values"));
    }
    let known = i32::try_from(known)?;
    // Without a branch in the loop, which is so done for several codes at once.
    if codes.iter().fold(false, |any, &code| any | (code < 0) | (code >= known)) {
        return Err(damaged("a code that its dictionary lacks"));
    }
    Ok(codes)
}

/// The codes at `places`, which are counted from `first` on.
fn some_codes(runs: Runs, width: usize, (places, first): (&[u32], u32), out: &mut Vec<i32>) -> Result<()> {
    let (mut left, mut start) = (places, first);
    for run in runs {
        let run = run?;
        let end = start + run.count() as u32;
        if left.first().is_some_and(|&place| place >= end) {
            start = end;
            continue;
        }
        let here = left.partition_point(|&place| place < end);
        let (these, rest) = left.split_at(here);
        match run {
            Run::Repeated { value, .. } => out.resize(out.len() + here, value as i32),
            Run::Packed { bytes, .. } => out.extend(these.iter().map(|&place| value_at(bytes, width, (place - start) as usize) as i32)),
        }
        if rest.is_empty() {
            break;
        }
        (left, start) = (rest, end);
    }
    Ok(())
}

fn numbers<T: ArrowPrimitiveType, const N: usize>(
    dictionary: &PageValues,
    read: impl Fn([u8; N]) -> T::Native,
    codes: &[i32],
    wanted: &Wanted,
) -> Result<PrimitiveArray<T>> {
    let (values, _) = dictionary.bytes.as_chunks();
    let values = values.get(..dictionary.count).ok_or_else(|| damaged("a dictionary that ends too early"))?;
    let found = codes.iter().map(|&code| read(values[code as usize])).collect();
    Ok(PrimitiveArray::new(spread::<T::Native>(found, wanted.present.as_ref()).into(), wanted.nulls()))
}

/// A dictionary of texts as an array, and the codes as its keys.
fn keyed(dictionary: &PageValues, codes: Vec<i32>, wanted: &Wanted) -> Result<DictionaryArray<Int32Type>> {
    let (ends, bytes) = byte_strings(dictionary)?;
    let values = StringArray::try_new(OffsetBuffer::new(ScalarBuffer::from(ends)), Buffer::from_vec(bytes), None)?;
    let keys = PrimitiveArray::new(spread(codes, wanted.present.as_ref()).into(), wanted.nulls());
    // SAFETY: each key that is not null must be the number of a value. `codes` has as many as are wanted, and none that is not below the
    // dictionary's count, and `byte_strings` has read that many. `spread` puts one of them wherever there is no null: there are as many such
    // places, for all values since `Levels::finish` compares the two, for some since `pick` adds a place with each. Measured: `try_new`, which looks at
    // every key once more, takes 3 to 7 % of a `compare()` of all attributes.
    #[allow(unsafe_code)]
    Ok(unsafe { DictionaryArray::new_unchecked(keys, Arc::new(values)) })
}

/// Where each byte string of a dictionary ends, behind a zero, and all of them. There each has its length before it.
fn byte_strings(dictionary: &PageValues) -> Result<(Vec<i32>, Vec<u8>)> {
    let short = || damaged("a dictionary that ends too early");
    let (mut page, count) = (&dictionary.bytes[..], dictionary.count);
    if count > page.len() / 4 {
        return Err(short());
    }
    let (mut ends, mut bytes) = (Vec::with_capacity(count + 1), Vec::with_capacity(page.len() - count * 4));
    ends.push(0);
    for _ in 0..count {
        let (length, rest) = page.split_first_chunk().ok_or_else(short)?;
        let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(short)?;
        bytes.extend_from_slice(value);
        ends.push(i32::try_from(bytes.len())?);
        page = rest;
    }
    Ok((ends, bytes))
}

/// The dictionary's values one after another, as the codes say.
fn written_out<T: ByteArrayType<Offset = i32>>(dictionary: &PageValues, codes: &[i32], wanted: &Wanted) -> Result<GenericByteArray<T>> {
    let (ends, bytes) = byte_strings(dictionary)?;
    let value = |code: i32| &bytes[ends[code as usize] as usize..ends[code as usize + 1] as usize];
    concatenated(codes.iter().map(|&code| value(code)), wanted)
}

/// An array of `values`, those of the entries that have one.
pub(super) fn concatenated<'a, T: ByteArrayType<Offset = i32>>(
    mut values: impl Iterator<Item = &'a [u8]>,
    wanted: &Wanted,
) -> Result<GenericByteArray<T>> {
    let (mut all, mut offsets, mut end) = (Vec::new(), Vec::with_capacity(wanted.entries + 1), 0);
    offsets.push(0);
    // A damaged page may ask for more than there is memory: nothing is copied beyond what offsets reach.
    let mut add = |value: &[u8]| -> Result<i32> {
        let end = i32::try_from(all.len() + value.len())?;
        all.extend_from_slice(value);
        Ok(end)
    };
    match &wanted.present {
        None => values.try_for_each(|value| add(value).map(|end| offsets.push(end)))?,
        Some(present) => {
            present.try_for_each(|entry| {
                offsets.resize(entry + 1, end);
                end = add(values.next().ok_or_else(|| damaged("fewer values than it says"))?)?;
                offsets.push(end);
                Ok::<_, ParquetError>(())
            })?;
            offsets.resize(wanted.entries + 1, end);
        }
    }
    all.shrink_to_fit();
    Ok(GenericByteArray::try_new(OffsetBuffer::new(ScalarBuffer::from(offsets)), Buffer::from_vec(all), wanted.nulls())?)
}

/// A column of bits. Errors: for pages with too few of them.
pub(super) fn booleans(pages: &[PageValues], wanted: &Wanted) -> Result<BooleanArray> {
    let mut all = Bits::default();
    for (page, places) in wanted.by_page(pages) {
        if page.count > page.bytes.len() * 8 {
            return Err(damaged("too few bits"));
        }
        match places {
            None => {
                all.push_bytes(&page.bytes, page.count);
            }
            Some((places, first)) => {
                let bit = |place: u32| page.bytes[(place - first) as usize / 8] >> ((place - first) % 8) & 1;
                places.iter().for_each(|&place| all.push(u64::from(bit(place)), 1));
            }
        }
    }
    let values = match &wanted.present {
        None => all,
        Some(present) => {
            let mut left = 0;
            let (words, mut spread_out) = (all.words(), Bits::with_capacity(present.len()));
            for &word in present.words() {
                let (mut bits, mut found) = (word, 0);
                while bits != 0 {
                    let bit = words[left / 64] >> (left % 64) & 1;
                    found |= bit << bits.trailing_zeros();
                    left += 1;
                    bits &= bits - 1;
                }
                spread_out.push(found, 64.min(present.len() - spread_out.len()));
            }
            spread_out
        }
    };
    Ok(BooleanArray::new(values.finish(), wanted.nulls()))
}
