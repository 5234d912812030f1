//! The columns of a fetched row group as one batch: each decoded here where its form is known, else by the Parquet library.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use arrow::{
    array::{ArrayRef, AsArray, BooleanArray, BooleanBufferBuilder, ListArray, StructArray},
    buffer::{BooleanBuffer, OffsetBuffer},
    compute::filter,
    datatypes::{DataType, Field, FieldRef, Fields, Schema},
    record_batch::RecordBatch,
};
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReader, RowSelection},
        parquet_to_arrow_field_levels,
    },
    file::{metadata::ColumnChunkMetaData, reader::ChunkReader},
    schema::types::SchemaDescriptor,
};

use super::{
    decode::{LeafPages, Shape, presence},
    pages::{FetchedRowGroup, Part},
};
use crate::error::{Error, Result};

/// Bytes of pages from which on it pays to look at their levels first: some blocks of the compression.
const LONG_BYTES: i64 = 256 << 10;

/// A fetched row group.
pub(super) struct FetchedColumns<'a, R> {
    parquet: &'a ArrowReaderMetadata,
    row_group: FetchedRowGroup<'a, R>,
    rows: usize,
    long_bytes: i64,
}

/// A root column under way: its leaves by number as far as they are decoded. If these are in lists, where those of all rows begin, and which
/// of their entries are kept.
#[derive(Default)]
struct Root {
    leaves: BTreeMap<usize, ArrayRef>,
    lists: Option<OffsetBuffer<i32>>,
    kept_entries: Option<BooleanBuffer>,
    /// The column as it is in the batch, without a leaf that was decoded here; with one, where those of the rows that are kept begin.
    by_library: Option<ArrayRef>,
}

impl Root {
    /// Notes where the lists of all rows begin, if `pages` were asked for it.
    fn note_lists(&mut self, pages: &LeafPages, keep: Option<&BooleanBuffer>) {
        if let Some(lists) = pages.lists() {
            self.kept_entries = keep.map(|keep| kept_entries(&lists, keep));
            self.lists = Some(lists);
        }
    }

    /// The entries of its leaves that are kept where `keep` keeps rows.
    fn kept<'a>(&'a self, keep: Option<&'a BooleanBuffer>) -> Option<&'a BooleanBuffer> {
        if self.lists.is_some() { self.kept_entries.as_ref() } else { keep }
    }
}

impl<'a, R: ChunkReader + 'static> FetchedColumns<'a, R> {
    /// The columns of row group `group`, of `rows` rows.
    pub(super) fn new(parquet: &'a ArrowReaderMetadata, group: usize, rows: usize, input: R) -> Self {
        Self { parquet, row_group: FetchedRowGroup { metadata: parquet.metadata(), group, input: Arc::new(input) }, rows, long_bytes: LONG_BYTES }
    }

    /// Decodes `leaves`: all rows, or those `chosen`, which ascend and do not overlap. Errors: `Data`.
    pub(super) fn decode(&self, leaves: &[usize], chosen: Option<&[Range<usize>]>) -> Result<RecordBatch> {
        if leaves.is_empty() {
            return self.by_library(leaves, chosen);
        }
        let keep = chosen.map(|chosen| bits_of(chosen.iter().cloned(), self.rows));
        let (mut roots, mut others) = (BTreeMap::<usize, Root>::new(), Vec::new());
        for &leaf in leaves {
            let root = roots.entry(self.schema().get_column_root_idx(leaf)).or_default();
            let found = match keep.as_ref().filter(|_| self.chunk(leaf).uncompressed_size() >= self.long_bytes) {
                Some(keep) => self.read_long_leaf(leaf, root, keep)?,
                None => self.read_leaf(leaf, root.lists.is_none(), Part::All)?,
            };
            let Some(pages) = found else {
                others.push(leaf);
                continue;
            };
            root.note_lists(&pages, keep.as_ref());
            root.leaves.insert(leaf, pages.decode(root.kept(keep.as_ref()))?);
        }
        if !others.is_empty() {
            self.add_others(&mut roots, &others, &self.by_library(&others, chosen)?)?;
        }
        let columns = roots.into_iter().map(|(at, root)| self.column(at, root, keep.as_ref())).collect::<Result<Vec<_>>>()?;
        let (fields, arrays): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
        Ok(RecordBatch::try_new(Arc::new(Schema::new_with_metadata(fields, self.parquet.schema().metadata().clone())), arrays)?)
    }

    /// As [`read_leaf`](Self::read_leaf), where values of some rows are wanted. If none of these has one, most of the pages is not unpacked.
    fn read_long_leaf(&self, leaf: usize, root: &mut Root, keep: &BooleanBuffer) -> Result<Option<LeafPages>> {
        let Some(levels) = self.read_leaf(leaf, root.lists.is_none(), Part::Levels)? else { return Ok(None) };
        root.note_lists(&levels, Some(keep));
        if levels.any(root.kept(Some(keep))) { self.read_leaf(leaf, false, Part::All) } else { Ok(Some(levels)) }
    }

    /// Which rows have a value of `leaf`, a column of its own; of all rows, or of those `chosen`. Cost: the levels of its pages, of which what
    /// [`known_presence`] knows need not be fetched. Errors: `Data`.
    pub(super) fn presence(&self, leaf: usize, chosen: Option<&[Range<usize>]>) -> Result<BooleanArray> {
        let described = self.schema().column(leaf);
        let all = match known_presence(self.chunk(leaf), self.rows) {
            Some(true) => BooleanBuffer::new_set(self.rows),
            Some(false) => BooleanBuffer::new_unset(self.rows),
            None if (described.max_rep_level(), described.max_def_level()) == (0, 1) => {
                presence(&mut *self.row_group.pages(leaf, Part::Levels)?, self.rows)?
            }
            None => return Err(Error::data(format!("{} is not a column that rows may lack", described.path()))),
        };
        Ok(match chosen {
            None => all.into(),
            Some(chosen) => filter(&BooleanArray::from(all), &bits_of(chosen.iter().cloned(), self.rows).into())?.as_boolean().clone(),
        })
    }

    fn chunk(&self, leaf: usize) -> &ColumnChunkMetaData {
        self.row_group.metadata.row_group(self.row_group.group).column(leaf)
    }

    fn schema(&self) -> &SchemaDescriptor {
        self.row_group.metadata.file_metadata().schema_descr()
    }

    /// None if it is not written in a form that is known here.
    fn read_leaf(&self, leaf: usize, lists: bool, part: Part) -> Result<Option<LeafPages>> {
        let described = self.schema().column(leaf);
        let field = self.field(leaf)?;
        let shape = Shape { nullable: field.is_nullable(), listed: described.max_rep_level() > 0 };
        if (described.max_rep_level(), described.max_def_level()) != (i16::from(shape.listed), i16::from(shape.listed) + i16::from(shape.nullable)) {
            return Ok(None);
        }
        let chunk = self.chunk(leaf);
        let known = |encoding| LeafPages::knows(field.data_type(), encoding);
        // The first names those of data pages, the second all, that of a dictionary among them.
        let may_be_known = match chunk.page_encoding_stats_mask() {
            Some(pages) => pages.encodings().all(known),
            None => chunk.encodings().any(known),
        };
        if !may_be_known {
            return Ok(None);
        }
        let count = usize::try_from(chunk.num_values()).map_err(|_| Error::data("a column has fewer than no values"))?;
        let mut pages = self.row_group.pages(leaf, part)?;
        Ok(LeafPages::read(&mut *pages, field.data_type(), shape, (self.rows, count), lists)?)
    }

    /// The field of a leaf: a root's own, or that of a part of its lists.
    fn field(&self, leaf: usize) -> Result<&FieldRef> {
        let root = &self.parquet.schema().fields()[self.schema().get_column_root_idx(leaf)];
        let described = self.schema().column(leaf);
        match parts(root) {
            None => Ok(root),
            Some(parts) => {
                let part = parts.iter().find(|part| part.name() == described.name());
                part.ok_or_else(|| Error::data(format!("the Arrow schema has no {}", described.path())))
            }
        }
    }

    /// Adds the leaves that the library has decoded to `batch`.
    fn add_others(&self, roots: &mut BTreeMap<usize, Root>, others: &[usize], batch: &RecordBatch) -> Result<()> {
        for &leaf in others {
            let at = self.schema().get_column_root_idx(leaf);
            let name = self.parquet.schema().field(at).name();
            let missing = || Error::data(format!("column {} was not decoded", self.schema().column(leaf).path()));
            let column = batch.column_by_name(name).ok_or_else(missing)?;
            let root = roots.entry(at).or_default();
            root.by_library = Some(column.clone());
            if root.lists.is_some() {
                let items = column.as_list_opt::<i32>().and_then(|list| list.values().as_struct_opt()).ok_or_else(missing)?;
                root.leaves.insert(leaf, items.column_by_name(self.schema().column(leaf).name()).ok_or_else(missing)?.clone());
            }
        }
        Ok(())
    }

    /// Root column `at` as it is in a batch.
    fn column(&self, at: usize, root: Root, keep: Option<&BooleanBuffer>) -> Result<(FieldRef, ArrayRef)> {
        let field = &self.parquet.schema().fields()[at];
        let (Some(lists), DataType::List(item)) = (root.lists, field.data_type()) else {
            let array = root.by_library.or_else(|| root.leaves.into_values().next()).ok_or_else(|| Error::internal("a column without a leaf"))?;
            return Ok((Arc::new(field.as_ref().clone().with_data_type(array.data_type().clone())), array));
        };
        // Of a leaf that has entries where another has none `try_new` says so.
        let lists =
            root.by_library.as_ref().and_then(|list| Some(list.as_list_opt::<i32>()?.offsets().clone())).unwrap_or_else(|| kept_lists(lists, keep));
        let fields = root.leaves.keys().map(|&leaf| self.field(leaf).cloned()).collect::<Result<Fields>>()?;
        let items = StructArray::try_new(fields.clone(), root.leaves.into_values().collect(), None)?;
        let item = Arc::new(item.as_ref().clone().with_data_type(DataType::Struct(fields)));
        let array = ListArray::try_new(item.clone(), lists, Arc::new(items), None)?;
        Ok((Arc::new(field.as_ref().clone().with_data_type(DataType::List(item))), Arc::new(array)))
    }

    fn by_library(&self, leaves: &[usize], chosen: Option<&[Range<usize>]>) -> Result<RecordBatch> {
        let mask = ProjectionMask::leaves(self.schema(), leaves.iter().copied());
        let levels = parquet_to_arrow_field_levels(self.schema(), mask, Some(self.parquet.schema().fields()))?;
        let selection = chosen.map(|rows| RowSelection::from_consecutive_ranges(rows.iter().cloned(), self.rows));
        let mut reader = ParquetRecordBatchReader::try_new_with_row_groups(&levels, &self.row_group, self.rows.max(1), selection)?;
        let schema = arrow::record_batch::RecordBatchReader::schema(&reader);
        match reader.next().transpose()? {
            None => Ok(RecordBatch::new_empty(schema)),
            Some(batch) => match reader.next().transpose()? {
                None => Ok(batch),
                Some(_) => Err(Error::data("a row group has more rows than its index says")),
            },
        }
    }
}

/// Whether all of `rows` rows have a value of a flat column, or none has one, as far as its statistics say so.
pub(super) fn known_presence(chunk: &ColumnChunkMetaData, rows: usize) -> Option<bool> {
    let is_whole = usize::try_from(chunk.num_values()) == Ok(rows);
    match chunk.statistics()?.null_count_opt().filter(|_| is_whole)? {
        0 => Some(true),
        nulls => (usize::try_from(nulls) == Ok(rows)).then_some(false),
    }
}

/// A bit for each of `rows` rows, set for those in `ranges`.
fn bits_of(ranges: impl IntoIterator<Item = Range<usize>>, rows: usize) -> BooleanBuffer {
    let mut bits = BooleanBufferBuilder::new(rows);
    for range in ranges {
        bits.append_n(range.start.saturating_sub(bits.len()), false);
        bits.append_n(range.len(), true);
    }
    bits.append_n(rows.saturating_sub(bits.len()), false);
    bits.finish()
}

/// The entries of the lists that `keep` keeps.
fn kept_entries(lists: &OffsetBuffer<i32>, keep: &BooleanBuffer) -> BooleanBuffer {
    let length = lists.last().map_or(0, |&end| end as usize);
    bits_of(keep.set_slices().map(|(from, to)| lists[from] as usize..lists[to] as usize), length)
}

/// Where the lists begin and end that `keep` keeps, all without it.
fn kept_lists(lists: OffsetBuffer<i32>, keep: Option<&BooleanBuffer>) -> OffsetBuffer<i32> {
    match keep {
        None => lists,
        Some(keep) => OffsetBuffer::from_lengths(keep.set_indices().map(|row| (lists[row + 1] - lists[row]) as usize)),
    }
}

/// The fields of the structs in a column of lists of them.
fn parts(root: &Field) -> Option<&Fields> {
    match root.data_type() {
        DataType::List(item) => match item.data_type() {
            DataType::Struct(parts) => Some(parts),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests;
