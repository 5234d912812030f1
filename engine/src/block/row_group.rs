//! The columns of a fetched row group as one batch: each decoded here where its form is known, else by the Parquet library.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use arrow::{
    array::{ArrayRef, AsArray, BooleanBufferBuilder, ListArray, StructArray},
    buffer::{BooleanBuffer, OffsetBuffer},
    datatypes::{DataType, Field, FieldRef, Fields, Schema},
    record_batch::RecordBatch,
};
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReader, RowGroups, RowSelection},
        parquet_to_arrow_field_levels,
    },
    file::reader::ChunkReader,
    schema::types::SchemaDescriptor,
};

use super::{
    decode::{LeafPages, Shape},
    pages::FetchedRowGroup,
};
use crate::error::{Error, Result};

/// A fetched row group.
pub(super) struct FetchedColumns<'a, R> {
    parquet: &'a ArrowReaderMetadata,
    row_group: FetchedRowGroup<'a, R>,
    rows: usize,
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
    /// Adds a leaf: of the rows that `keep` keeps, if it says.
    fn add(&mut self, leaf: usize, pages: LeafPages, keep: Option<&BooleanBuffer>) -> Result<()> {
        if let Some(lists) = pages.lists() {
            self.kept_entries = keep.map(|keep| kept_entries(&lists, keep));
            self.lists = Some(lists);
        }
        let keep = if self.lists.is_some() { self.kept_entries.as_ref() } else { keep };
        self.leaves.insert(leaf, pages.decode(keep)?);
        Ok(())
    }
}

impl<'a, R: ChunkReader + 'static> FetchedColumns<'a, R> {
    /// The columns of row group `group`, of `rows` rows.
    pub(super) fn new(parquet: &'a ArrowReaderMetadata, group: usize, rows: usize, input: R) -> Self {
        Self { parquet, row_group: FetchedRowGroup { metadata: parquet.metadata(), group, input: Arc::new(input) }, rows }
    }

    /// Decodes `leaves`: all rows, or those `chosen`, which ascend and do not overlap. Errors: `Data`.
    pub(super) fn decode(&self, leaves: &[usize], chosen: Option<&[Range<usize>]>) -> Result<RecordBatch> {
        if leaves.is_empty() {
            return self.by_library(leaves, chosen);
        }
        let keep = chosen.map(|chosen| bits_of(chosen, self.rows));
        let (mut roots, mut others) = (BTreeMap::<usize, Root>::new(), Vec::new());
        for &leaf in leaves {
            let root = roots.entry(self.schema().get_column_root_idx(leaf)).or_default();
            match self.read_leaf(leaf, root.lists.is_none())? {
                Some(pages) => root.add(leaf, pages, keep.as_ref())?,
                None => others.push(leaf),
            }
        }
        if !others.is_empty() {
            self.add_others(&mut roots, &others, &self.by_library(&others, chosen)?)?;
        }
        let columns = roots.into_iter().map(|(at, root)| self.column(at, root, keep.as_ref())).collect::<Result<Vec<_>>>()?;
        let (fields, arrays): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
        Ok(RecordBatch::try_new(Arc::new(Schema::new_with_metadata(fields, self.parquet.schema().metadata().clone())), arrays)?)
    }

    fn schema(&self) -> &SchemaDescriptor {
        self.row_group.metadata.file_metadata().schema_descr()
    }

    /// None if it is not written in a form that is known here.
    fn read_leaf(&self, leaf: usize, lists: bool) -> Result<Option<LeafPages>> {
        let described = self.schema().column(leaf);
        let field = self.field(leaf)?;
        let shape = Shape { nullable: field.is_nullable(), listed: described.max_rep_level() > 0 };
        if (described.max_rep_level(), described.max_def_level()) != (i16::from(shape.listed), i16::from(shape.listed) + i16::from(shape.nullable)) {
            return Ok(None);
        }
        let chunk = self.row_group.metadata.row_group(self.row_group.group).column(leaf);
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
        match self.row_group.column_chunks(leaf)?.next() {
            Some(pages) => Ok(LeafPages::read(&mut *pages?, field.data_type(), shape, (self.rows, count), lists)?),
            None => Ok(None),
        }
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

/// A bit for each of `rows` rows, set for those in `ranges`.
fn bits_of(ranges: &[Range<usize>], rows: usize) -> BooleanBuffer {
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
    let mut entries = BooleanBufferBuilder::new(lists.last().map_or(0, |&end| end as usize));
    for (keep, length) in keep.iter().zip(lists.lengths()) {
        entries.append_n(length, keep);
    }
    entries.finish()
}

/// Where the lists begin and end that `keep` keeps, all without it.
fn kept_lists(lists: OffsetBuffer<i32>, keep: Option<&BooleanBuffer>) -> OffsetBuffer<i32> {
    match keep {
        None => lists,
        Some(keep) => OffsetBuffer::from_lengths(keep.iter().zip(lists.lengths()).filter(|(keep, _)| *keep).map(|(_, length)| length)),
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
