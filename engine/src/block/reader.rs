//! Reading blocks: an opened block is its parsed footer and index; columns of row groups are fetched by range and decoded.

use std::{
    collections::HashMap,
    ops::{Range, RangeInclusive},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, Int64Array},
    datatypes::{Field, FieldRef, Schema},
    record_batch::{RecordBatch, RecordBatchOptions},
};
use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::{
    arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions},
    basic::Type as PhysicalType,
    bloom_filter::Sbbf,
    errors::ParquetError,
    file::{
        metadata::ParquetMetaDataReader,
        reader::{ChunkReader, Length},
        statistics::Statistics,
    },
};

use super::{
    index::BlockIndex,
    row_group::{FetchedColumns, known_presence},
    writer::rows_of,
};
use crate::{
    catalog::meta::{BlockMeta, DATA_NAME, INDEX_NAME},
    error::{Error, Result},
    exec::memory::Reservation,
    spans::schema::{Column, EventColumn, SpanSchema},
};

/// Bytes before the footer's length and magic.
const TAIL_BYTES: u64 = 8;

/// What a column takes in a block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ColumnSize {
    /// Compressed.
    pub bytes: u64,
    /// Rows, or entries of events, that have a value.
    pub rows: u64,
}

impl ColumnSize {
    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, rows: self.rows + other.rows }
    }
}

/// A block with its footer and index in memory. Immutable; shared by all queries through a cache.
#[derive(Debug)]
pub struct BlockReader {
    meta: Arc<BlockMeta>,
    store: Arc<dyn ObjectStore>,
    parquet: ArrowReaderMetadata,
    schema: SpanSchema,
    index: BlockIndex,
    /// Leaf columns by path: root name and, in events and links, the part's name.
    leaves: HashMap<(String, String), usize>,
    /// Of a block that lies in memory for one query.
    _memory: Reservation,
}

impl BlockReader {
    /// Opens a block. Cost: two requests, some milliseconds of parsing for a wide footer.
    /// Errors: `Data` when the objects are damaged, else as the store's.
    pub async fn open(store: Arc<dyn ObjectStore>, meta: Arc<BlockMeta>) -> Result<Self> {
        let doing = || format!("opening block {} of tenant {}", meta.id, meta.tenant);
        let footer_start = meta.data_bytes.saturating_sub(u64::from(meta.footer_bytes) + TAIL_BYTES);
        let data_path = meta.object_path(DATA_NAME);
        let index_path = meta.object_path(INDEX_NAME);
        let (footer, index) =
            futures::try_join!(async { store.get_range(&data_path, footer_start..meta.data_bytes.saturating_sub(TAIL_BYTES)).await }, async {
                store.get(&index_path).await?.bytes().await
            })
            .map_err(|e| Error::from(e).context(doing()))?;
        let parse = || -> Result<_> {
            let footer = Arc::new(ParquetMetaDataReader::decode_metadata(&footer)?);
            let parquet = ArrowReaderMetadata::try_new(footer, ArrowReaderOptions::new())?;
            let schema = SpanSchema::from_arrow(parquet.schema())?;
            Ok((parquet, schema, BlockIndex::parse(&index)?))
        };
        let (parquet, schema, index) = parse().map_err(|e| e.context(doing()))?;
        if parquet.metadata().num_row_groups() != index.row_groups.len() {
            return Err(Error::data("footer and index name different row groups").context(doing()));
        }
        let leaves = parquet.parquet_schema().columns().iter().enumerate().map(|(at, leaf)| {
            let parts = leaf.path().parts();
            let part = if parts.len() > 1 { parts[parts.len() - 1].clone() } else { String::new() };
            ((parts[0].clone(), part), at)
        });
        let leaves = leaves.collect();
        Ok(Self { meta, store, parquet, schema, index, leaves, _memory: Reservation::default() })
    }

    /// The same, with the memory that its store takes: that is given back with the block.
    pub fn holding(self, memory: Reservation) -> Self {
        Self { _memory: memory, ..self }
    }

    /// The block's meta.
    pub fn meta(&self) -> &Arc<BlockMeta> {
        &self.meta
    }

    /// The block's columns.
    pub fn schema(&self) -> &SpanSchema {
        &self.schema
    }

    /// The block's index.
    pub fn index(&self) -> &BlockIndex {
        &self.index
    }

    /// Bytes the footer and index take in memory, roughly.
    pub fn memory_bytes(&self) -> usize {
        self.parquet.metadata().memory_size() + self.index.traces.memory_bytes() + self.index.resources.len() * 1024
    }

    /// Reads `columns` (and `events` of the events column) of row group `group`: all its rows or those of `rows`, ascending and without
    /// overlap. Cost: one ranged request, merged by the store where ranges are close; starts of traces are in the index.
    /// Errors: `Data`, else as the store's.
    pub async fn read(&self, group: usize, columns: &[Column], events: &[EventColumn], rows: Option<&[Range<usize>]>) -> Result<(RecordBatch, u64)> {
        let doing = || format!("reading {}", self.meta.object_path(DATA_NAME));
        let (leaves, presences) = (self.leaves_of(&self.in_file(columns), events), self.presences_of(columns));
        let starts = self.starts_of(columns, group, rows);
        let total = self.index.row_groups[group].rows as usize;
        let chunks = self.parquet.metadata().row_group(group).columns();
        let looked_at = presences.iter().map(|(_, leaf)| leaf).filter(|&&leaf| known_presence(&chunks[leaf], total).is_none());
        let ranges: Vec<Range<u64>> = leaves
            .iter()
            .chain(looked_at)
            .map(|&leaf| {
                let (start, length) = chunks[leaf].byte_range();
                start..start + length
            })
            .collect();
        let fetched = self.store.get_ranges(&self.meta.object_path(DATA_NAME), &ranges).await.map_err(|e| Error::from(e).context(doing()))?;
        let bytes = fetched.iter().map(|bytes| bytes.len() as u64).sum();
        let input = FetchedRanges { ranges: ranges.into_iter().zip(fetched).collect(), length: self.meta.data_bytes };
        let columns = FetchedColumns::new(&self.parquet, group, total, input);
        let decoded = || -> Result<RecordBatch> {
            let batch = columns.decode(&leaves, rows)?;
            let presence = |(field, leaf): &(Field, usize)| -> Result<(FieldRef, ArrayRef)> {
                Ok((Arc::new(field.clone()), Arc::new(columns.presence(*leaf, rows)?)))
            };
            with_columns(batch, presences.iter().map(presence).chain(starts.map(Ok)).collect::<Result<_>>()?)
        };
        Ok((decoded().map_err(|e| e.context(doing()))?, bytes))
    }

    /// Those of `columns` that are read from the file.
    fn in_file(&self, columns: &[Column]) -> Vec<Column> {
        let in_index = |column: &Column| *column == Column::TraceStart && self.index.traces.has_starts();
        columns.iter().copied().filter(|column| !in_index(column)).collect()
    }

    /// The column of the starts of traces, if it is one of `columns` and the index has it.
    fn starts_of(&self, columns: &[Column], group: usize, rows: Option<&[Range<usize>]>) -> Option<(FieldRef, ArrayRef)> {
        if !columns.contains(&Column::TraceStart) || !self.index.traces.has_starts() {
            return None;
        }
        let all = rows_of(&self.index.row_groups[group]);
        let whole = 0..all.len();
        let chosen = rows.unwrap_or(std::slice::from_ref(&whole));
        let mut starts = Vec::with_capacity(chosen.iter().map(ExactSizeIterator::len).sum());
        chosen.iter().for_each(|rows| self.index.traces.add_starts(all.start + rows.start..all.start + rows.end, &mut starts));
        Some((Arc::new(self.schema.field(Column::TraceStart, &[])), Arc::new(Int64Array::from(starts))))
    }

    /// The columns of whether spans have an attribute, each with its leaf.
    fn presences_of(&self, columns: &[Column]) -> Vec<(Field, usize)> {
        let leaf = |at: u32| self.leaves.get(&(self.schema.field(Column::Attribute(at), &[]).name().clone(), String::new()));
        let presence = |&column: &Column| match column {
            Column::Presence(at) => Some((self.schema.field(column, &[]), *leaf(at)?)),
            _ => None,
        };
        columns.iter().filter_map(presence).collect()
    }

    /// Bytes that [`read`](Self::read) will take, by the footer: the columns as they come from the store, their rows as columns in memory, and
    /// what is only needed to make these.
    pub fn read_bytes(&self, group: usize, columns: &[Column], events: &[EventColumn], rows: Option<&[Range<usize>]>) -> usize {
        let all = self.index.row_groups[group].rows.max(1) as usize;
        let chosen = rows.map_or(all, |rows| rows.iter().map(ExactSizeIterator::len).sum());
        let chunks = self.parquet.metadata().row_group(group).columns();
        let stored = |leaf: usize| usize::try_from(chunks[leaf].uncompressed_size()).unwrap_or(0);
        let bytes = |leaf: usize| {
            let chunk = &chunks[leaf];
            let [fetched, values] = [chunk.compressed_size(), chunk.num_values()].map(|n| usize::try_from(n).unwrap_or(0));
            let width = match chunk.column_type() {
                PhysicalType::BOOLEAN => 1,
                PhysicalType::INT64 | PhysicalType::DOUBLE => 8,
                PhysicalType::FIXED_LEN_BYTE_ARRAY => usize::try_from(chunk.column_descr().type_length()).unwrap_or(0),
                // A key into a dictionary, or an offset.
                _ => 4,
            };
            // Files repeat a value at no cost, memory does not.
            fetched + stored(leaf).max(values * width) * chosen / all
        };
        let (in_file, presences) = (self.in_file(columns), self.presences_of(columns));
        let leaves = self.leaves_of(&in_file, events);
        let starts = if in_file.len() < columns.len() { chosen * size_of::<i64>() } else { 0 };
        let bits = presences.iter().map(|(_, leaf)| usize::try_from(chunks[*leaf].compressed_size()).unwrap_or(0) + all / 8);
        // One leaf after the other is unpacked whole, of a presence at most.
        let unpacked = leaves.iter().filter(|_| rows.is_some()).chain(presences.iter().map(|(_, leaf)| leaf)).map(|&leaf| stored(leaf)).max();
        leaves.iter().map(|&leaf| bytes(leaf)).chain(bits).sum::<usize>() + starts + unpacked.unwrap_or(0)
    }

    fn leaves_of(&self, columns: &[Column], events: &[EventColumn]) -> Vec<usize> {
        let mut leaves = Vec::new();
        for &column in columns {
            let field = self.schema.field(column, events);
            match column {
                Column::Events => {
                    let parts = self.schema.event_fields(events);
                    leaves.extend(parts.iter().filter_map(|part| self.leaves.get(&("events".to_owned(), part.name().clone()))));
                }
                Column::Links => leaves.extend(
                    ["trace_id_high", "trace_id_low", "span_id", "other"]
                        .iter()
                        .filter_map(|part| self.leaves.get(&("links".to_owned(), (*part).to_owned()))),
                ),
                Column::Presence(_) => {}
                _ => leaves.extend(self.leaves.get(&(field.name().clone(), String::new()))),
            }
        }
        leaves.sort_unstable();
        leaves.dedup();
        leaves
    }

    /// What a column takes in all row groups, by the footer; of the events column the parts `events`.
    pub fn column_size(&self, column: Column, events: &[EventColumn]) -> ColumnSize {
        let leaves = self.leaves_of(&[column], events);
        let chunks = self.parquet.metadata().row_groups().iter().flat_map(|group| leaves.iter().map(|&leaf| group.column(leaf)));
        chunks.fold(ColumnSize::default(), |sum, chunk| {
            let nulls = chunk.statistics().and_then(Statistics::null_count_opt).unwrap_or_default();
            let rows = u64::try_from(chunk.num_values()).unwrap_or_default().saturating_sub(nulls);
            sum.plus(ColumnSize { bytes: u64::try_from(chunk.compressed_size()).unwrap_or_default(), rows })
        })
    }

    /// From the smallest to the largest number in integer column `column` of row group `group`, by its statistics.
    pub fn int_range(&self, group: usize, column: Column) -> Option<RangeInclusive<i64>> {
        let name = self.schema.field(column, &[]).name().clone();
        let leaf = *self.leaves.get(&(name, String::new()))?;
        match self.parquet.metadata().row_group(group).columns()[leaf].statistics()? {
            Statistics::Int32(numbers) => Some(i64::from(*numbers.min_opt()?)..=i64::from(*numbers.max_opt()?)),
            Statistics::Int64(numbers) => Some(*numbers.min_opt()?..=*numbers.max_opt()?),
            _ => None,
        }
    }

    /// Whether row group `group` may hold string `text` in attribute column `column`, by its bloom filter, if it has one; else by its
    /// statistics; and the bytes read. Cost: one small request when there is a filter.
    /// Errors: as the store's.
    pub async fn may_contain(&self, group: usize, column: Column, text: &str) -> Result<(bool, u64)> {
        let name = self.schema.field(column, &[]).name().clone();
        let Some(&leaf) = self.leaves.get(&(name, String::new())) else { return Ok((false, 0)) };
        let chunk = &self.parquet.metadata().row_group(group).columns()[leaf];
        if let Some(statistics) = chunk.statistics()
            && statistics.null_count_opt().is_some_and(|nulls| nulls == chunk.num_values() as u64)
        {
            return Ok((false, 0));
        }
        let (Some(offset), Some(length)) = (chunk.bloom_filter_offset(), chunk.bloom_filter_length()) else { return Ok((true, 0)) };
        let range = offset as u64..offset as u64 + length as u64;
        let bytes = self.store.get_range(&self.meta.object_path(DATA_NAME), range).await?;
        Ok((Sbbf::from_bytes(&bytes).map_or(true, |filter| filter.check(text)), bytes.len() as u64))
    }
}

/// `batch` with further columns of as many rows.
fn with_columns(batch: RecordBatch, columns: Vec<(FieldRef, ArrayRef)>) -> Result<RecordBatch> {
    if columns.is_empty() {
        return Ok(batch);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let (schema, mut arrays, _) = batch.into_parts();
    let (further, further_arrays): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
    let fields: Vec<FieldRef> = schema.fields().iter().cloned().chain(further).collect();
    arrays.extend(further_arrays);
    let schema = Schema::new_with_metadata(fields, schema.metadata().clone());
    Ok(RecordBatch::try_new_with_options(Arc::new(schema), arrays, &options)?)
}

/// The fetched parts of a file, to be read where they lie in it.
struct FetchedRanges {
    ranges: Vec<(Range<u64>, Bytes)>,
    length: u64,
}

impl Length for FetchedRanges {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for FetchedRanges {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        let (range, bytes) = self.find(start)?;
        Ok(bytes::Buf::reader(bytes.slice((start - range.start) as usize..)))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let (range, bytes) = self.find(start)?;
        let from = (start - range.start) as usize;
        match from.checked_add(length).filter(|&end| end <= bytes.len()) {
            Some(end) => Ok(bytes.slice(from..end)),
            None => Err(ParquetError::EOF(format!("bytes {start}+{length} end beyond their column"))),
        }
    }
}

impl FetchedRanges {
    fn find(&self, start: u64) -> Result<&(Range<u64>, Bytes), ParquetError> {
        let found = self.ranges.iter().find(|(range, _)| range.contains(&start));
        found.ok_or_else(|| ParquetError::General(format!("byte {start} was not fetched")))
    }
}
