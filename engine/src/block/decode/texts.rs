//! Texts and byte strings that lie one after another behind their lengths.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, StringViewArray, make_view},
    buffer::Buffer,
    datatypes::{BinaryType, DataType, Utf8Type},
};
use bytes::Bytes;
use parquet::errors::Result;

use super::{
    bits::spread,
    deltas::add_numbers,
    runs::damaged,
    values::{PageValues, Places, Wanted, concatenated},
};

/// The texts of a page: text `i` lies from `ends[i]` to `ends[i + 1]`.
struct PageTexts {
    ends: Vec<u32>,
    bytes: Bytes,
}

impl PageTexts {
    fn read(page: &PageValues) -> Result<Self> {
        let mut left = &page.bytes[..];
        let ends = lengths(&mut left, page.count)?;
        let bytes = page.bytes.slice(page.bytes.len() - left.len()..);
        match ends.last() {
            Some(&end) if end as usize <= bytes.len() => Ok(Self { ends, bytes }),
            _ => Err(damaged("texts that end after it")),
        }
    }

    fn text(&self, at: usize) -> &[u8] {
        &self.bytes[self.ends[at] as usize..self.ends[at + 1] as usize]
    }

    /// Errors: if a text is no UTF-8. Cost: that of looking at all of them as one.
    fn check(&self) -> Result<()> {
        let all = str::from_utf8(&self.bytes[..self.ends[self.ends.len() - 1] as usize])?;
        match self.ends.iter().all(|&end| all.is_char_boundary(end as usize)) {
            true => Ok(()),
            false => Err(damaged("a text that begins within a character")),
        }
    }
}

/// A column of type `kind` whose `pages` have lengths and then the bytes. Errors: for damaged pages, text that is no UTF-8, and more bytes than
/// 32-bit offsets reach.
pub(super) fn texts(kind: &DataType, pages: &[PageValues], wanted: &Wanted) -> Result<ArrayRef> {
    let found = wanted.by_page(pages).map(|(page, places)| Ok((PageTexts::read(page)?, places))).collect::<Result<Vec<_>>>()?;
    if *kind == DataType::Utf8View {
        return Ok(Arc::new(views(&found, wanted)?));
    }
    let values = found.iter().flat_map(|(page, places)| {
        let count = places.map_or(page.ends.len() - 1, |(places, _)| places.len());
        (0..count).map(move |at| page.text(places.map_or(at, |(places, first)| (places[at] - first) as usize)))
    });
    Ok(match kind {
        DataType::Utf8 => Arc::new(concatenated::<Utf8Type>(values, wanted)?),
        _ => Arc::new(concatenated::<BinaryType>(values, wanted)?),
    })
}

/// Views of the wanted texts of `pages`: into these where all are wanted, else into copies, so that a page is not held for some of its texts.
fn views(pages: &[(PageTexts, Places)], wanted: &Wanted) -> Result<StringViewArray> {
    let (mut buffers, mut views) = (Vec::with_capacity(pages.len()), Vec::new());
    for (number, (page, places)) in (0..).zip(pages) {
        let Some((places, first)) = places else {
            page.check()?;
            views.extend((0..page.ends.len() - 1).map(|at| make_view(page.text(at), number, page.ends[at])));
            buffers.push(Buffer::from(page.bytes.clone()));
            continue;
        };
        let mut kept = Vec::new();
        for &place in *places {
            let text = page.text((place - first) as usize);
            str::from_utf8(text)?;
            views.push(make_view(text, number, kept.len() as u32));
            kept.extend_from_slice(text);
        }
        buffers.push(Buffer::from_vec(kept));
    }
    let views = spread::<u128>(views, wanted.present.as_ref());
    // SAFETY: each view must be of UTF-8 that lies in the buffer that it names, where it says. `make_view` was given the very bytes at that
    // place, which `check` or `from_utf8` has looked at, and `spread` adds none but zeros, the view of the empty text. Measured: `try_new`,
    // which looks at each text by itself, takes 4 % of a `compare()` of all attributes.
    #[allow(unsafe_code)]
    Ok(unsafe { StringViewArray::new_unchecked(views.into(), buffers, wanted.nulls()) })
}

/// Takes `count` lengths off the front of `page`, which are 32-bit integers. Each is told as the sum of all up to it, behind a zero. Errors:
/// for damaged ones, among them a length below zero.
fn lengths(page: &mut &[u8], count: usize) -> Result<Vec<u32>> {
    let mut lengths = Vec::with_capacity(count);
    add_numbers(page, count, u32::BITS, &mut lengths)?;
    let (mut sum, mut ends) = (0_u32, Vec::with_capacity(count + 1));
    ends.push(0);
    for length in lengths {
        let length = u32::try_from(length as i32).map_err(|_| damaged("a length below zero"))?;
        sum = sum.checked_add(length).filter(|&sum| i32::try_from(sum).is_ok()).ok_or_else(|| damaged("too much text"))?;
        ends.push(sum);
    }
    Ok(ends)
}
