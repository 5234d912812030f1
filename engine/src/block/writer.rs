//! Ordered spans to the objects of a block. Column by column, so that one column of one row group is unpacked at a time.

use std::{collections::BTreeSet, ops::Range, sync::Arc};

use arrow::array::{Array, AsArray};
use bytes::Bytes;
use parquet::{
    arrow::{
        ArrowSchemaConverter, add_encoded_arrow_schema_to_metadata,
        arrow_writer::{ArrowRowGroupWriterFactory, compute_leaves},
    },
    basic::{Compression, Encoding, ZstdLevel},
    file::{
        properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder},
        writer::SerializedFileWriter,
    },
    schema::types::ColumnPath,
};

use super::{
    bloom,
    index::{BlockIndex, RowGroup, TraceIndex},
};
use crate::{
    error::{Error, Result},
    spans::{
        TraceId,
        columns::AttributeType,
        gather::{OrderedSpans, note_keys},
        read::list_items,
        schema::{AttributeField, Column, TextForm},
        tables::{Shared, SharedKind},
        tree::TraceRows,
    },
};

/// Rows of a row group, up to the end of a trace. Twice as many save 1 % of bytes and double what a look-up of one trace unpacks.
pub const ROW_GROUP_ROWS: usize = 65_536;

/// Bytes of spans on the wire after which a row group ends as well: columns of huge values must fit 32-bit offsets.
const ROW_GROUP_WIRE_BYTES: u64 = 512 << 20;

/// A page may be as large as its column in the row group: nothing prunes by page, and larger pages pack 6 % better.
const PAGE_BYTES: usize = 1 << 20;

/// String columns with more distinct values than this get bloom filters: in a full block some 1,000 in each row group, below which the
/// dictionary is as cheap to read.
const BLOOM_DISTINCT_MIN: usize = 4000;

/// False positives of these filters. Twice as many as usual save a tenth of a byte a span and cost one row group in fifty.
const BLOOM_FALSE_POSITIVES: f64 = 0.02;

/// The objects of a block, but for `meta.json`.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct BlockObjects {
    pub data: Bytes,
    pub index: Bytes,
    pub blooms: Vec<Bytes>,
    pub spans: usize,
    pub traces: usize,
    pub row_groups: usize,
    pub footer_bytes: usize,
    pub start_unix_nano: u64,
    pub end_unix_nano: u64,
}

/// Writes `spans`, which must not be empty. Cost: some 0.5 to 1.3 µs a span; memory for the packed block and one row group's columns.
/// Errors: `Internal`.
pub fn write_block(spans: &OrderedSpans) -> Result<BlockObjects> {
    let groups = row_groups(&spans.order.traces);
    let schema = spans.schema.arrow();
    let mut properties = properties(spans, groups.iter().map(|group| group.rows as usize).max().unwrap_or(1));
    add_encoded_arrow_schema_to_metadata(&schema, &mut properties);
    let properties = Arc::new(properties);
    let parquet_schema = ArrowSchemaConverter::new().convert(&schema)?;
    let mut file = SerializedFileWriter::new(Vec::new(), parquet_schema.root_schema_ptr(), properties)?;
    let factory = ArrowRowGroupWriterFactory::new(&file, schema.clone());
    let mut keys = RestKeys::default();
    for (number, group) in groups.iter().enumerate() {
        let range = rows_of(group);
        let mut writers = factory.create_column_writers(number)?.into_iter();
        let mut out = file.next_row_group()?;
        for (column, field) in spans.schema.columns().into_iter().zip(schema.fields()) {
            let array = spans.column(range.clone(), column, &spans.schema.event_columns())?;
            keys.note(column, &array)?;
            for leaf in compute_leaves(field, &array)? {
                let mut writer = writers.next().ok_or_else(|| Error::internal("a leaf column has no writer"))?;
                writer.write(&leaf)?;
                writer.close()?.append_to_row_group(&mut out)?;
            }
        }
        out.close()?;
    }
    let data = file.into_inner()?;
    let footer_bytes = data.len().checked_sub(8).and_then(|at| data.get(at..at + 4)).map_or(0, |n| u32::from_le_bytes([n[0], n[1], n[2], n[3]]));
    finish(spans, groups, keys, data.into(), footer_bytes as usize)
}

fn finish(spans: &OrderedSpans, groups: Vec<RowGroup>, keys: RestKeys, data: Bytes, footer_bytes: usize) -> Result<BlockObjects> {
    let traces = &spans.order.traces;
    let row_groups = groups.len();
    let start_unix_nano = groups.iter().map(|group| group.trace_start_min).min().unwrap_or(0);
    let end_unix_nano = groups.iter().map(|group| group.trace_end_max).max().unwrap_or(0);
    let index = BlockIndex {
        resources: Shared::new(SharedKind::Resource, spans.set.resources.entries().to_vec()),
        scopes: Shared::new(SharedKind::Scope, spans.set.scopes.entries().to_vec()),
        traces: TraceIndex::of(traces),
        row_groups: groups,
        span_rest_keys: keys.span,
        event_rest_keys: keys.event,
        link_keys: keys.link,
    };
    let ids: Vec<TraceId> = traces.iter().map(TraceRows::id).collect();
    Ok(BlockObjects {
        data,
        index: index.write()?,
        blooms: bloom::write(&ids)?,
        spans: spans.len(),
        traces: traces.len(),
        row_groups,
        footer_bytes,
        start_unix_nano,
        end_unix_nano,
    })
}

/// Cuts row groups of about equal size where traces end.
pub fn row_groups(traces: &[TraceRows]) -> Vec<RowGroup> {
    let rows: usize = traces.iter().map(|trace| trace.rows as usize).sum();
    let count = rows.div_ceil(ROW_GROUP_ROWS + ROW_GROUP_ROWS / 8).max(1);
    let wanted = rows.div_ceil(count);
    let mut groups: Vec<RowGroup> = Vec::new();
    let mut from = 0;
    while from < traces.len() {
        let (mut to, mut rows, mut bytes) = (from, 0, 0);
        while to < traces.len() && rows < wanted && (to == from || bytes + traces[to].wire_bytes < ROW_GROUP_WIRE_BYTES) {
            rows += traces[to].rows as usize;
            bytes += traces[to].wire_bytes;
            to += 1;
        }
        groups.push(row_group(&traces[from..to], rows));
        from = to;
    }
    groups
}

fn row_group(traces: &[TraceRows], rows: usize) -> RowGroup {
    let starts = || traces.iter().map(|trace| trace.start_unix_nano as u64);
    let ends = traces.iter().map(|trace| (trace.start_unix_nano as u64).wrapping_add(trace.duration_nanos as u64));
    RowGroup {
        first_row: traces[0].first,
        rows: rows as u32,
        trace_start_min: starts().min().unwrap_or(0),
        trace_start_max: starts().max().unwrap_or(0),
        trace_end_max: ends.max().unwrap_or(0),
    }
}

fn zstd() -> Compression {
    Compression::ZSTD(ZstdLevel::try_new(1).expect("1 is a zstd level"))
}

/// Encodings by column; engine/FORMAT.md, "Encodings", gives the measurements behind them.
fn properties(spans: &OrderedSpans, group_rows: usize) -> WriterProperties {
    let mut builder = WriterProperties::builder()
        .set_compression(zstd())
        .set_max_row_group_row_count(None)
        .set_data_page_size_limit(PAGE_BYTES)
        .set_data_page_row_count_limit(usize::MAX)
        .set_write_batch_size(8192)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_offset_index_disabled(true)
        .set_created_by("skein".to_owned());
    for name in ["trace_id_high", "trace_id_low", "trace_start_unix_nano", "trace_duration_nanos"] {
        builder = builder.set_column_dictionary_enabled(name.into(), false);
    }
    builder = without_compression(builder, "span_id", Encoding::PLAIN).set_column_statistics_enabled("span_id".into(), EnabledStatistics::None);
    for name in ["start_offset_nanos", "duration_nanos"] {
        builder = without_compression(builder, name, Encoding::DELTA_BINARY_PACKED);
    }
    for name in ["parent_distance", "descendants"] {
        builder = builder.set_column_dictionary_enabled(name.into(), false).set_column_encoding(name.into(), Encoding::BYTE_STREAM_SPLIT);
    }
    for field in &spans.schema.attributes {
        builder = attribute_properties(builder, field, ColumnPath::new(vec![field.name.clone()]), spans, group_rows);
    }
    let event = |name: &str| ColumnPath::new(["events", "list", "item", name].map(str::to_owned).to_vec());
    builder = builder
        .set_column_dictionary_enabled(event("time_offset_nanos"), false)
        .set_column_encoding(event("time_offset_nanos"), Encoding::BYTE_STREAM_SPLIT);
    for field in &spans.schema.event_attributes {
        if field.column.kind == AttributeType::String && field.form == TextForm::View {
            builder = plain_text(builder, event(&field.name));
        }
    }
    for path in [ColumnPath::from("span_attributes_rest"), event("attributes_rest")] {
        builder = plain_text(builder, path.clone()).set_column_statistics_enabled(path, EnabledStatistics::None);
    }
    builder.build()
}

fn without_compression(builder: WriterPropertiesBuilder, name: &str, encoding: Encoding) -> WriterPropertiesBuilder {
    builder
        .set_column_dictionary_enabled(name.into(), false)
        .set_column_encoding(name.into(), encoding)
        .set_column_compression(name.into(), Compression::UNCOMPRESSED)
}

fn plain_text(builder: WriterPropertiesBuilder, path: ColumnPath) -> WriterPropertiesBuilder {
    builder.set_column_dictionary_enabled(path.clone(), false).set_column_encoding(path, Encoding::DELTA_LENGTH_BYTE_ARRAY)
}

fn attribute_properties(
    mut builder: WriterPropertiesBuilder,
    field: &AttributeField,
    path: ColumnPath,
    spans: &OrderedSpans,
    group_rows: usize,
) -> WriterPropertiesBuilder {
    if field.column.kind != AttributeType::String {
        return builder;
    }
    let distinct = match field.form {
        TextForm::View => group_rows,
        TextForm::Dictionary => spans.pooled_strings(field),
    };
    if field.form == TextForm::View {
        builder = plain_text(builder, path.clone());
    }
    if distinct > BLOOM_DISTINCT_MIN {
        builder = builder
            .set_column_bloom_filter_enabled(path.clone(), true)
            .set_column_bloom_filter_fpp(path.clone(), BLOOM_FALSE_POSITIVES)
            .set_column_bloom_filter_max_ndv(path, distinct.min(group_rows) as u64);
    }
    builder
}

/// The keys that have no column.
#[derive(Default)]
struct RestKeys {
    span: BTreeSet<Box<str>>,
    event: BTreeSet<Box<str>>,
    link: BTreeSet<Box<str>>,
}

impl RestKeys {
    fn note(&mut self, column: Column, array: &dyn Array) -> Result<()> {
        match column {
            Column::Rest => note_binary(&mut self.span, array, 1),
            Column::Events => {
                let items = list_items(array.as_list::<i32>())?;
                if let Some(rest) = items.column_by_name("attributes_rest") {
                    note_binary(&mut self.event, rest, 1);
                }
            }
            Column::Links => {
                let items = list_items(array.as_list::<i32>())?;
                if let Some(other) = items.column_by_name("other") {
                    note_binary(&mut self.link, other, 4);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Notes the keys of every value. See [`note_keys`].
fn note_binary(keys: &mut BTreeSet<Box<str>>, array: &dyn Array, number: u32) {
    for value in array.as_binary::<i32>().iter().flatten() {
        note_keys(keys, value, number);
    }
}

/// Rows of `group` in its block.
pub fn rows_of(group: &RowGroup) -> Range<usize> {
    group.first_row as usize..(group.first_row + group.rows) as usize
}
