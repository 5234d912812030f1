//! Any pages are decoded or refused, and what is decoded is a valid array.
#![no_main]

use std::collections::VecDeque;

use arrow::{array::Array, buffer::BooleanBuffer, datatypes::DataType};
use libfuzzer_sys::fuzz_target;
use parquet::{
    basic::Encoding,
    column::page::{Page, PageMetadata, PageReader},
    errors::Result,
};
use skein_engine::block::decode::{LeafPages, Shape, presence};

/// Pages that lie in memory.
struct Pages(VecDeque<Page>);

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.pop_front().map(Ok)
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        Ok(self.0.pop_front())
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        Ok(None)
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.0.pop_front();
        Ok(())
    }
}

/// A page of `count` values, by its first byte a dictionary, codes, bits or texts.
fn page(bytes: &[u8], count: u32) -> Page {
    let (&form, buf) = bytes.split_first().unwrap_or((&0, &[]));
    let buf = buf.to_vec().into();
    match form % 4 {
        0 => Page::DictionaryPage { buf, num_values: count, encoding: Encoding::PLAIN, is_sorted: false },
        form @ 1.. => Page::DataPage {
            buf,
            num_values: count,
            encoding: [Encoding::RLE_DICTIONARY, Encoding::PLAIN, Encoding::DELTA_LENGTH_BYTE_ARRAY][usize::from(form - 1)],
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        },
    }
}

/// The type, its shape and whether lists are asked; rows; entries that are kept; pages with how many values they say they have.
type Input = ((u8, [bool; 3]), u16, Option<Vec<bool>>, Vec<(u16, Vec<u8>)>);

fuzz_target!(|input: Input| {
    let ((kind, [nullable, listed, lists]), rows, keep, pages) = input;
    let kinds = [
        DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)),
        DataType::Int64,
        DataType::Int32,
        DataType::Float64,
        DataType::Boolean,
        DataType::Utf8,
        DataType::Utf8View,
        DataType::Binary,
    ];
    let kind = &kinds[usize::from(kind) % kinds.len()];
    let mut pages = Pages(pages.iter().map(|(count, bytes)| page(bytes, u32::from(*count))).collect());
    let mut again = Pages(pages.0.clone());
    if let Ok(found) = presence(&mut again, usize::from(rows)) {
        assert_eq!(found.len(), usize::from(rows));
    }
    let entries = pages.0.iter().filter(|page| matches!(page, Page::DataPage { .. })).map(|page| page.num_values() as usize).sum();
    let Ok(Some(leaf)) = LeafPages::read(&mut pages, kind, Shape { nullable, listed }, (usize::from(rows), entries), lists) else { return };
    let ends = leaf.lists();
    let keep = keep.map(BooleanBuffer::from);
    let Ok(found) = leaf.decode(keep.as_ref()) else { return };
    assert_eq!(found.data_type(), kind);
    found.to_data().validate_full().expect("what is decoded is valid");
    if let Some(keep) = keep {
        assert_eq!(found.len(), keep.count_set_bits());
    } else if let Some(ends) = ends {
        assert_eq!(ends.len(), usize::from(rows) + 1);
        assert_eq!(ends.last().copied(), i32::try_from(found.len()).ok());
    }
});
