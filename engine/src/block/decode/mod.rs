//! Leaf columns of row groups from their pages to arrays, all rows or some, in the forms that nearly all columns of a block have: codes into
//! a dictionary, bits, texts behind their lengths, and integers as differences.
//!
//! Most attributes are on few spans, so that most of a column is nulls, in long runs. The Parquet library's readers take levels value by
//! value, pad the values, look at every key once more, and skip rows one range after the other; here levels are taken run by run, a bit-packed
//! run of them is Arrow's validity as it lies there, and of values only those are unpacked that are wanted. What is written otherwise
//! (numbers that are random, a dictionary that grew too large) is left to the library.
//!
//! | module | owns |
//! |---|---|
//! | `runs` | the hybrid of repeated and bit-packed runs |
//! | `bits` | which entries have a value, which are kept, and what follows for values |
//! | `levels` | levels to bits, and to where lists end |
//! | `values` | dictionaries, codes and bits, and the arrays that they make |
//! | `deltas` | integers as differences |
//! | `texts` | texts behind their lengths |

mod bits;
mod deltas;
mod levels;
mod runs;
mod texts;
mod values;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::{
    array::ArrayRef,
    buffer::{BooleanBuffer, OffsetBuffer, ScalarBuffer},
    datatypes::DataType,
};
use parquet::{
    basic::Encoding,
    column::page::{Page, PageReader},
    errors::{ParquetError, Result},
};

pub use levels::Shape;

use self::{
    bits::{Bits, pick},
    deltas::integers,
    levels::{Entries, Levels},
    runs::damaged,
    texts::texts,
    values::{PageValues, Wanted, booleans, coded},
};

/// How the values of a column are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Codes,
    Bits,
    Texts,
    Deltas,
}

/// The pages of a leaf column, its levels taken.
pub struct LeafPages {
    kind: DataType,
    form: Form,
    entries: Entries,
    dictionary: Option<PageValues>,
    pages: Vec<PageValues>,
}

impl LeafPages {
    /// Whether pages of type `kind` that are written in `encoding` are of a form that is known here.
    pub fn knows(kind: &DataType, encoding: Encoding) -> bool {
        form_of(kind, encoding).is_some()
    }

    /// Reads the pages of a leaf column of type `kind`: `count` entries and empty lists, of `rows` rows. `lists` if where lists begin is
    /// asked. None if it is of another type, or written in another form, than those that are known here. Cost: some nanoseconds a run of
    /// levels. Errors: for damaged pages, by what is wrong; for values only those that are then decoded.
    pub fn read(pages: &mut dyn PageReader, kind: &DataType, shape: Shape, (rows, count): (usize, usize), lists: bool) -> Result<Option<Self>> {
        // More could have no offsets, and no places.
        i32::try_from(count)?;
        if !shape.listed && count != rows {
            return Err(other_rows());
        }
        let mut levels = Levels::new(shape, rows, lists);
        let (mut form, mut dictionary, mut read, mut left) = (None, None, Vec::new(), count);
        while let Some(page) = pages.get_next_page()? {
            match page {
                Page::DictionaryPage { buf: bytes, num_values, encoding: Encoding::PLAIN | Encoding::PLAIN_DICTIONARY, .. } => {
                    if dictionary.replace(PageValues { bytes, count: num_values as usize }).is_some() {
                        return Err(damaged("a second dictionary"));
                    }
                }
                Page::DataPage { buf, num_values, encoding, def_level_encoding: Encoding::RLE, rep_level_encoding: Encoding::RLE, .. } => {
                    let here = form_of(kind, encoding);
                    if here.is_none() || here != *form.get_or_insert(here) {
                        return Ok(None);
                    }
                    left = left.checked_sub(num_values as usize).ok_or_else(|| damaged("more values than its column"))?;
                    let mut bytes = &buf[..];
                    let count = levels.take(&mut bytes, num_values as usize)?;
                    read.push(PageValues { bytes: buf.slice(buf.len() - bytes.len()..), count });
                }
                _ => return Ok(None),
            }
        }
        let Some(form) = form.flatten() else { return Ok(None) };
        if left > 0 {
            return Err(damaged("fewer values than its column"));
        }
        let entries = levels.finish()?;
        let found = match (&entries.lists, shape.listed) {
            (Some(starts), _) => starts.len() - 1,
            (None, true) => rows,
            (None, false) => entries.count,
        };
        if found != rows {
            return Err(other_rows());
        }
        Ok(Some(Self { kind: kind.clone(), form, entries, dictionary, pages: read }))
    }

    /// Where the lists begin and end that its entries are in, if that was asked.
    pub fn lists(&self) -> Option<OffsetBuffer<i32>> {
        self.entries.lists.clone().map(|starts| OffsetBuffer::new(ScalarBuffer::from(starts)))
    }

    /// Whether one of its entries has a value, or one of those that `keep` keeps. If not, [`decode`](Self::decode) looks at no values.
    pub fn any(&self, keep: Option<&BooleanBuffer>) -> bool {
        match (&self.entries.present, keep) {
            (None, None) => self.entries.count > 0,
            (Some(present), None) => present.count_ones() > 0,
            (None, Some(keep)) => keep.count_set_bits() > 0,
            (Some(present), Some(keep)) => present.words().iter().zip(Bits::of(keep).words()).any(|(present, keep)| present & keep != 0),
        }
    }

    /// The array of all entries, or of those that `keep` keeps, of which there are as many bits as entries. Cost: some nanoseconds a value
    /// that is kept, the dictionary if there is one, and 4 to 16 bytes an entry. Errors: for damaged pages, and those that have more entries
    /// or fewer than `keep`.
    pub fn decode(self, keep: Option<&BooleanBuffer>) -> Result<ArrayRef> {
        let Entries { count, present, .. } = self.entries;
        let wanted = match keep {
            None => Wanted { places: None, entries: count, present },
            Some(keep) if keep.len() != count => return Err(damaged("other entries than the other columns of its lists")),
            Some(keep) => {
                let present = present.unwrap_or_else(|| Bits::all(count));
                let (places, present) = pick(&present, &Bits::of(keep));
                Wanted { places: Some(places), entries: present.len(), present: Some(present) }
            }
        };
        match self.form {
            Form::Codes => coded(&self.kind, self.dictionary.as_ref(), &self.pages, &wanted),
            Form::Bits => Ok(Arc::new(booleans(&self.pages, &wanted)?)),
            Form::Texts => texts(&self.kind, &self.pages, &wanted),
            Form::Deltas => Ok(Arc::new(integers(&self.pages, &wanted)?)),
        }
    }
}

/// Which of `rows` rows have a value of a flat column that they may lack, by the levels of its pages: what follows these is not looked at, and
/// need not be there. Errors: for damaged levels, and pages in which levels do not come first.
pub fn presence(pages: &mut dyn PageReader, rows: usize) -> Result<BooleanBuffer> {
    let (mut levels, mut left) = (Levels::new(Shape { nullable: true, listed: false }, rows, false), rows);
    while let Some(page) = pages.get_next_page()? {
        match page {
            Page::DictionaryPage { .. } => {}
            Page::DataPage { buf, num_values, def_level_encoding: Encoding::RLE, .. } => {
                left = left.checked_sub(num_values as usize).ok_or_else(other_rows)?;
                levels.take(&mut &buf[..], num_values as usize)?;
            }
            _ => return Err(ParquetError::NYI("blocks have no pages of other levels".into())),
        }
    }
    if left > 0 {
        return Err(other_rows());
    }
    Ok(levels.finish()?.present.map_or_else(|| BooleanBuffer::new_set(rows), Bits::finish))
}

fn other_rows() -> ParquetError {
    damaged("other rows than its row group")
}

/// How pages of `encoding` have values of type `kind`; None if that is not known here.
fn form_of(kind: &DataType, encoding: Encoding) -> Option<Form> {
    let is_text = |kind: &DataType| matches!(kind, DataType::Utf8 | DataType::Binary);
    match (encoding, kind) {
        (Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY, DataType::Int64 | DataType::Int32 | DataType::Float64) => Some(Form::Codes),
        (Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY, DataType::Dictionary(key, value)) => {
            ((&**key, &**value) == (&DataType::Int32, &DataType::Utf8)).then_some(Form::Codes)
        }
        (Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY, kind) if is_text(kind) => Some(Form::Codes),
        (Encoding::DELTA_LENGTH_BYTE_ARRAY, kind) if is_text(kind) || *kind == DataType::Utf8View => Some(Form::Texts),
        (Encoding::PLAIN, DataType::Boolean) => Some(Form::Bits),
        (Encoding::DELTA_BINARY_PACKED, DataType::Int64) => Some(Form::Deltas),
        _ => None,
    }
}
