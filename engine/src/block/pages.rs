//! The pages of a fetched row group, decompressed.
//!
//! The Parquet library makes a compressor and a decompressor for each column that it reads. That asks the CPU what it can do, which takes some
//! ten microseconds in a virtual machine: as long as reading a column of few values. So its page reader is told that nothing is compressed,
//! and what it gives is decompressed here, with one decompressor a thread.

use std::{cell::RefCell, iter, sync::Arc};

use bytes::Bytes;
use parquet::{
    arrow::arrow_reader::RowGroups,
    basic::Compression,
    column::page::{Page, PageIterator, PageMetadata, PageReader},
    errors::{ParquetError, Result},
    file::{
        metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData},
        reader::ChunkReader,
        serialized_reader::SerializedPageReader,
    },
};
use zstd::zstd_safe::{self, DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

/// Bytes of the length that levels begin with.
const LENGTH_BYTES: usize = 4;

/// The logarithm of the largest window of a page that is decompressed in part; those of blocks have half of that.
const WINDOW_LOG_MAX: u32 = 20;

thread_local! {
    static DECOMPRESSOR: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
}

/// What is wanted of the pages of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    All,
    /// What data pages begin with, at least the levels; nothing of a dictionary.
    Levels,
}

/// One row group of a file, of which `input` has the columns that are asked for.
pub(super) struct FetchedRowGroup<'a, R> {
    pub(super) metadata: &'a ParquetMetaData,
    pub(super) group: usize,
    pub(super) input: Arc<R>,
}

impl<R: ChunkReader + 'static> FetchedRowGroup<'_, R> {
    /// The pages of a column, or parts of them.
    pub(super) fn pages(&self, column: usize, part: Part) -> Result<Box<dyn PageReader>> {
        let chunk = self.metadata.row_group(self.group).column(column);
        let (input, rows) = (self.input.clone(), self.num_rows());
        Ok(match chunk.compression() {
            Compression::ZSTD(_) => {
                let pages = SerializedPageReader::new(input, &as_it_is(chunk)?, rows, None)?;
                let levels = [chunk.column_descr().max_rep_level(), chunk.column_descr().max_def_level()];
                let kinds = levels.into_iter().filter(|&level| level > 0).count();
                Box::new(ZstdPages { pages, part, kinds, bytes_left: usize::try_from(chunk.uncompressed_size())? })
            }
            _ => Box::new(SerializedPageReader::new(input, chunk, rows, None)?),
        })
    }
}

impl<R: ChunkReader + 'static> RowGroups for FetchedRowGroup<'_, R> {
    fn num_rows(&self) -> usize {
        usize::try_from(self.metadata.row_group(self.group).num_rows()).unwrap_or(0)
    }

    fn column_chunks(&self, column: usize) -> Result<Box<dyn PageIterator>> {
        Ok(Box::new(OneChunk(iter::once(Ok(self.pages(column, Part::All)?)))))
    }

    fn row_groups(&self) -> Box<dyn Iterator<Item = &RowGroupMetaData> + '_> {
        Box::new(iter::once(self.metadata.row_group(self.group)))
    }

    fn metadata(&self) -> &ParquetMetaData {
        self.metadata
    }
}

/// What a page reader needs of `chunk`, as if it were not compressed.
fn as_it_is(chunk: &ColumnChunkMetaData) -> Result<ColumnChunkMetaData> {
    ColumnChunkMetaData::builder(chunk.column_descr_ptr())
        .set_compression(Compression::UNCOMPRESSED)
        .set_num_values(chunk.num_values())
        .set_total_compressed_size(chunk.compressed_size())
        .set_total_uncompressed_size(chunk.compressed_size())
        .set_data_page_offset(chunk.data_page_offset())
        .set_dictionary_page_offset(chunk.dictionary_page_offset())
        .build()
}

/// The pages of one column.
struct OneChunk(iter::Once<Result<Box<dyn PageReader>>>);

impl Iterator for OneChunk {
    type Item = Result<Box<dyn PageReader>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

impl PageIterator for OneChunk {}

/// Pages that are compressed as a whole, as those of version 1 are.
struct ZstdPages<R: ChunkReader> {
    pages: SerializedPageReader<R>,
    part: Part,
    /// How many kinds of levels there are.
    kinds: usize,
    /// What those that are left have at most, by the footer.
    bytes_left: usize,
}

impl<R: ChunkReader> Iterator for ZstdPages<R> {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl<R: ChunkReader> PageReader for ZstdPages<R> {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let Some(mut page) = self.pages.get_next_page()? else { return Ok(None) };
        let (buf, entries) = match &mut page {
            Page::DataPage { buf, num_values, .. } => (buf, Some(*num_values as usize)),
            Page::DictionaryPage { buf, .. } => (buf, None),
            Page::DataPageV2 { .. } => return Err(ParquetError::NYI("blocks have no data pages of version 2".into())),
        };
        let unpacked = match (self.part, entries) {
            (Part::All, _) => decompressed(buf, self.bytes_left)?,
            (Part::Levels, Some(entries)) => levels(buf, (self.kinds, entries), self.bytes_left)?,
            (Part::Levels, None) => Bytes::new(),
        };
        self.bytes_left -= unpacked.len();
        *buf = unpacked;
        Ok(Some(page))
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }
}

/// What `page`, a frame that says its length, was. Errors: for a damaged one, and one of more than `bytes_max` bytes.
fn decompressed(page: &[u8], bytes_max: usize) -> Result<Bytes> {
    beginning(page, usize::MAX, bytes_max)
}

/// The levels of a page that has `kinds` of them for each of `count` entries, and what of the rest is left over. Errors: as [`decompressed`].
fn levels(page: &[u8], (kinds, count): (usize, usize), bytes_max: usize) -> Result<Bytes> {
    // Eight levels of two bits need at most three bytes of a sequence of runs.
    let start = beginning(page, kinds * (LENGTH_BYTES + count / 2 + LENGTH_BYTES), bytes_max);
    // Frames with a larger window than ours are only decompressed as a whole.
    start.ok().filter(|start| has_levels(start, kinds)).map_or_else(|| decompressed(page, bytes_max), Ok)
}

/// Whether `left` has all of its `kinds` of levels, each behind its length.
fn has_levels(mut left: &[u8], kinds: usize) -> bool {
    (0..kinds).all(|_| {
        let Some((length, rest)) = left.split_first_chunk() else { return false };
        let after = rest.get(u32::from_le_bytes(*length) as usize..);
        left = after.unwrap_or_default();
        after.is_some()
    })
}

/// The first `wanted` bytes of what `page` was, or all.
fn beginning(page: &[u8], wanted: usize, bytes_max: usize) -> Result<Bytes> {
    if page.is_empty() {
        return Ok(Bytes::new());
    }
    let length = zstd_safe::get_frame_content_size(page).ok().flatten().and_then(|length| usize::try_from(length).ok());
    let Some(length) = length.filter(|&length| length <= bytes_max) else {
        return Err(ParquetError::General(format!("a page of {} bytes is no frame of at most {bytes_max} bytes", page.len())));
    };
    let wanted = wanted.min(length);
    let mut found = Vec::with_capacity(wanted);
    DECOMPRESSOR
        .with_borrow_mut(|known| {
            let context = match known {
                Some(context) => context,
                None => known.insert(decompressor()?),
            };
            if wanted < length { stream(context, page, &mut found, wanted) } else { context.decompress(&mut found, page).map(drop) }
        })
        .map_err(|code| ParquetError::General(format!("decompressing a page: {}", zstd_safe::get_error_name(code))))?;
    found.truncate(wanted);
    if found.len() == wanted { Ok(found.into()) } else { Err(ParquetError::General("a page is shorter than it says".into())) }
}

/// Keeps some [`WINDOW_LOG_MAX`] bytes between streams.
fn decompressor() -> std::result::Result<DCtx<'static>, usize> {
    let mut context = DCtx::create();
    context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
    Ok(context)
}

/// Adds the beginning of what `page` was to `out`, which has room for `wanted` bytes, until there are as many. Cost: that of the blocks, of 128 KiB,
/// which it lies in.
fn stream(context: &mut DCtx<'static>, page: &[u8], out: &mut Vec<u8>, wanted: usize) -> std::result::Result<(), usize> {
    context.reset(ResetDirective::SessionOnly)?;
    let (mut input, mut output) = (InBuffer::around(page), OutBuffer::around(out));
    // Nothing is left to come when it says so.
    while output.pos() < wanted && input.pos() < page.len() && context.decompress_stream(&mut output, &mut input)? > 0 {}
    context.reset(ResetDirective::SessionOnly).map(drop)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn pages_come_back_whole_or_not_at_all() {
        let text = b"geese in flight ".repeat(100);
        let page = zstd::bulk::compress(&text, 1).unwrap();
        assert_eq!(decompressed(&page, text.len()).unwrap(), text);
        assert_eq!(decompressed(&page, text.len()).unwrap(), text, "the decompressor is used again");
        assert!(decompressed(&page, text.len() - 1).unwrap_err().to_string().contains("at most 1599 bytes"));
        for damaged in [&page[..page.len() - 1], &page[1..], b"no frame"] {
            assert!(decompressed(damaged, 1 << 20).is_err());
        }
        assert_eq!(decompressed(&page, text.len()).unwrap(), text, "also after a damaged page");
        assert!(decompressed(b"", 0).unwrap().is_empty());
    }

    #[test]
    fn levels_come_with_what_they_need_of_a_page() {
        for (count, lengths) in
            [(1_000, vec![3]), (1_000, vec![250]), (1_000, vec![2_000]), (9, vec![400_000]), (0, vec![0]), (1_000, vec![700, 300])]
        {
            let (mut page, kinds) = (Vec::new(), lengths.len());
            for length in &lengths {
                page.extend(u32::to_le_bytes(*length));
                page.extend(vec![7; *length as usize]);
            }
            let needed = page.len();
            page.extend((0..500_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8));
            let packed = zstd::bulk::compress(&page, 1).unwrap();
            let found = levels(&packed, (kinds, count), page.len()).unwrap();
            assert!(page.starts_with(&found) && found.len() >= needed, "{count} levels in {lengths:?} bytes");
            assert!(levels(&packed, (kinds, count), page.len() - 1).is_err());
            assert!(levels(&packed[1..], (kinds, count), page.len()).is_err());
        }
        let short = zstd::bulk::compress(&[7, 0, 0, 0, 1], 1).unwrap();
        assert_eq!(levels(&short, (1, 1_000), 5).unwrap().len(), 5, "what is missing is missed by who reads them");
    }
}
