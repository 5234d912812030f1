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
use zstd::{bulk::Decompressor, zstd_safe};

thread_local! {
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// One row group of a file, of which `input` has the columns that are asked for.
pub(super) struct FetchedRowGroup<'a, R> {
    pub(super) metadata: &'a ParquetMetaData,
    pub(super) group: usize,
    pub(super) input: Arc<R>,
}

impl<R: ChunkReader + 'static> RowGroups for FetchedRowGroup<'_, R> {
    fn num_rows(&self) -> usize {
        usize::try_from(self.metadata.row_group(self.group).num_rows()).unwrap_or(0)
    }

    fn column_chunks(&self, column: usize) -> Result<Box<dyn PageIterator>> {
        let chunk = self.metadata.row_group(self.group).column(column);
        let (input, rows) = (self.input.clone(), self.num_rows());
        let pages: Box<dyn PageReader> = match chunk.compression() {
            Compression::ZSTD(_) => {
                let bytes_left = usize::try_from(chunk.uncompressed_size())?;
                Box::new(ZstdPages { pages: SerializedPageReader::new(input, &as_it_is(chunk)?, rows, None)?, bytes_left })
            }
            _ => Box::new(SerializedPageReader::new(input, chunk, rows, None)?),
        };
        Ok(Box::new(OneChunk(iter::once(Ok(pages)))))
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
        match &mut page {
            Page::DataPage { buf, .. } | Page::DictionaryPage { buf, .. } => {
                *buf = decompressed(buf, self.bytes_left)?;
                self.bytes_left -= buf.len();
            }
            Page::DataPageV2 { .. } => return Err(ParquetError::NYI("blocks have no data pages of version 2".into())),
        }
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
    if page.is_empty() {
        return Ok(Bytes::new());
    }
    let length = zstd_safe::get_frame_content_size(page).ok().flatten().and_then(|length| usize::try_from(length).ok());
    let Some(length) = length.filter(|&length| length <= bytes_max) else {
        return Err(ParquetError::General(format!("a page of {} bytes is no frame of at most {bytes_max} bytes", page.len())));
    };
    DECOMPRESSOR.with_borrow_mut(|known| {
        let decompressor = match known {
            Some(decompressor) => decompressor,
            None => known.insert(Decompressor::new()?),
        };
        let found = decompressor.decompress(page, length)?;
        if found.len() == length { Ok(found.into()) } else { Err(ParquetError::General("a page is shorter than it says".into())) }
    })
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
}
