//! Sets to record batches: the rows of a [`SpanSet`] in block order, as the columns of the span table.

use std::{collections::BTreeSet, ops::Range, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, BinaryBuilder, BooleanArray, BooleanBufferBuilder, DictionaryArray, Float64Array, Int32Array, Int64Array, ListArray,
        StringArray, StringBuilder, StringViewBuilder, StructArray,
    },
    buffer::{NullBuffer, OffsetBuffer, ScalarBuffer},
    compute::is_not_null,
    datatypes::{Field, Int32Type, Schema},
    record_batch::RecordBatch,
};

use super::{
    columns::{AttributeColumn, AttributeType, BytesColumn, SparseColumn, Values},
    schema::{AttributeField, Column, EventColumn, RARE, SpanSchema, TextForm, link_fields},
    set::{RareColumn, SpanChunk, SpanSet},
    tree::{SpanOrder, TraceRows, positions},
    value::Value,
    wire::{Fields, KeyValue, write_bytes_field, write_varint},
};
use crate::{error::Result, exec::source::RestScope};

const ABSENT: u32 = u32::MAX;

/// A set with its order, ready to be read range by range.
#[derive(Debug)]
pub struct OrderedSpans {
    /// The spans.
    pub set: SpanSet,
    /// Their order.
    pub order: SpanOrder,
    /// Their columns.
    pub schema: SpanSchema,
    positions: Vec<Vec<u32>>,
    services: Services,
}

/// The distinct service names of a set, and the one of each resource.
#[derive(Debug)]
struct Services {
    names: Arc<StringArray>,
    of_resource: Vec<Option<i32>>,
}

impl Services {
    fn of(set: &SpanSet) -> Self {
        let mut names: Vec<Arc<str>> = Vec::new();
        let mut by_name = std::collections::HashMap::new();
        let of_resource = set.resources.values_of("service.name").into_iter().map(|value| match value {
            Value::String(name) => Some(*by_name.entry(name.clone()).or_insert_with(|| {
                names.push(name);
                names.len() as i32 - 1
            })),
            _ => None,
        });
        let of_resource = of_resource.collect();
        Self { names: Arc::new(StringArray::from_iter_values(names.iter())), of_resource }
    }
}

impl OrderedSpans {
    /// Takes a set, its order, and the columns to show it in.
    pub fn new(set: SpanSet, order: SpanOrder, schema: SpanSchema) -> Self {
        let positions = positions(&set, &order);
        let services = Services::of(&set);
        Self { set, order, schema, positions, services }
    }

    /// Rows in all.
    pub fn len(&self) -> usize {
        self.order.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.order.rows.is_empty()
    }

    /// How many distinct strings the set holds of a coded attribute.
    pub fn pooled_strings(&self, field: &AttributeField) -> usize {
        self.set.attributes[field.source as usize].1.len()
    }

    /// Rows `range` of `columns` as a batch in the form of a block's row group; `events` are the parts of the events column, if asked
    /// for. The range starts and ends at trace boundaries.
    pub fn batch(&self, range: Range<usize>, columns: &[Column], events: &[EventColumn]) -> Result<RecordBatch> {
        let mut fields: Vec<Field> = Vec::with_capacity(columns.len());
        let mut arrays = Vec::with_capacity(columns.len());
        for &column in columns {
            fields.push(self.schema.field(column, events));
            arrays.push(self.column(range.clone(), column, events)?);
        }
        let options = arrow::record_batch::RecordBatchOptions::new().with_row_count(Some(range.len()));
        Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options)?)
    }

    /// Keys of the attributes that have no column. Cost: a walk over all of them.
    pub fn rest_keys(&self, scope: RestScope) -> BTreeSet<Box<str>> {
        let mut keys = BTreeSet::new();
        for chunk in &self.set.chunks {
            match scope {
                RestScope::Span => note_keys(&mut keys, &chunk.attributes.rest.bytes, 1),
                RestScope::Event => note_keys(&mut keys, &chunk.events.attributes.rest.bytes, 1),
                RestScope::Link => note_keys(&mut keys, &chunk.links.other, 4),
            }
        }
        keys
    }

    /// One column of rows `range`.
    pub fn column(&self, range: Range<usize>, column: Column, events: &[EventColumn]) -> Result<ArrayRef> {
        Ok(match column {
            Column::TraceIdHigh => self.per_trace(range, |trace| trace.id_high),
            Column::TraceIdLow => self.per_trace(range, |trace| trace.id_low),
            Column::TraceStart => self.per_trace(range, |trace| trace.start_unix_nano),
            Column::TraceDuration => self.per_trace(range, |trace| trace.duration_nanos),
            Column::SpanId => self.per_row_i64(range, |chunk, row| chunk.span_id[row]),
            Column::Duration => self.per_row_i64(range, |chunk, row| chunk.duration_nanos[row]),
            Column::Kind => self.per_row_i32(range, |chunk, row| chunk.kind[row]),
            Column::StatusCode => self.per_row_i32(range, |chunk, row| chunk.status_code[row]),
            Column::Resource => self.per_row_i32(range, |chunk, row| chunk.resource[row] as i32),
            Column::Scope => self.per_row_i32(range, |chunk, row| chunk.scope[row] as i32),
            Column::StartOffset => self.start_offsets(range),
            Column::ParentSpanId => self.absent_parents(range),
            Column::ParentDistance => Arc::new(Int32Array::from(self.order.parent_distance[range].to_vec())),
            Column::Descendants => Arc::new(Int32Array::from(self.order.descendants[range].to_vec())),
            Column::Name => {
                let keys = self.row_refs(range).map(|(chunk, row)| chunk.name[row] as i32).collect();
                dictionary(keys, None, &self.set.names)
            }
            Column::Service => {
                let service = |(chunk, row): (&SpanChunk, usize)| self.services.of_resource[chunk.resource[row] as usize];
                dictionary_of_options(self.row_refs(range).map(service), &self.services.names)
            }
            Column::RootService => self.root_services(range),
            Column::RootName => self.root_names(range),
            Column::StatusMessage => self.texts(range, |chunk| &chunk.status_message),
            Column::TraceState => self.texts(range, |chunk| &chunk.trace_state),
            Column::Rare(field) => {
                let rare = RARE[field as usize].1;
                self.rare(range, |chunk| &chunk.rare[rare as usize])
            }
            Column::Attribute(at) => {
                let field = &self.schema.attributes[at as usize];
                let chunks = self.set.chunks.iter().map(|chunk| find_column(&chunk.attributes.columns, field.source)).collect();
                self.attribute(&Rows { range, positions: &self.positions }, field, chunks, &self.set.attributes)
            }
            Column::Presence(at) => Arc::new(is_not_null(&self.column(range, Column::Attribute(at), events)?)?),
            Column::Rest => {
                let rest: Vec<_> = self.set.chunks.iter().map(|chunk| &chunk.attributes.rest).collect();
                let columns: Vec<_> = self.set.chunks.iter().map(|chunk| &chunk.attributes.columns).collect();
                rest_column(&Rows { range, positions: &self.positions }, &rest, &columns, &self.schema.demoted, &self.set.attributes)
            }
            Column::Events => self.events(range, events)?,
            Column::Links => self.links(range)?,
        })
    }

    fn row_refs(&self, range: Range<usize>) -> impl Iterator<Item = (&SpanChunk, usize)> {
        self.order.rows[range].iter().map(|&(chunk, row)| (&*self.set.chunks[chunk as usize], row as usize))
    }

    /// The traces of rows `range`.
    pub fn traces_in(&self, range: Range<usize>) -> &[TraceRows] {
        let traces = &self.order.traces;
        let from = traces.partition_point(|trace| (trace.first as usize) < range.start);
        let to = traces.partition_point(|trace| (trace.first as usize) < range.end);
        &traces[from..to]
    }

    fn per_trace(&self, range: Range<usize>, value: impl Fn(&TraceRows) -> i64) -> ArrayRef {
        let mut out = Vec::with_capacity(range.len());
        for trace in self.traces_in(range) {
            out.resize(out.len() + trace.rows as usize, value(trace));
        }
        Arc::new(Int64Array::from(out))
    }

    fn per_row_i64(&self, range: Range<usize>, value: impl Fn(&SpanChunk, usize) -> i64) -> ArrayRef {
        Arc::new(self.row_refs(range).map(|(chunk, row)| value(chunk, row)).collect::<Int64Array>())
    }

    fn per_row_i32(&self, range: Range<usize>, value: impl Fn(&SpanChunk, usize) -> i32) -> ArrayRef {
        Arc::new(Int32Array::from(self.row_refs(range).map(|(chunk, row)| value(chunk, row)).collect::<Vec<_>>()))
    }

    fn start_offsets(&self, range: Range<usize>) -> ArrayRef {
        let mut out = Vec::with_capacity(range.len());
        for trace in self.traces_in(range) {
            let rows = trace.first as usize..(trace.first + trace.rows) as usize;
            out.extend(self.row_refs(rows).map(|(chunk, row)| chunk.start_unix_nano[row].wrapping_sub(trace.start_unix_nano)));
        }
        Arc::new(Int64Array::from(out))
    }

    fn absent_parents(&self, range: Range<usize>) -> ArrayRef {
        let distances = &self.order.parent_distance[range.clone()];
        let parents = self.row_refs(range).zip(distances).map(|((chunk, row), &distance)| {
            let parent = chunk.parent_span_id[row];
            (distance <= 0 && parent != 0).then_some(parent)
        });
        Arc::new(parents.collect::<Int64Array>())
    }

    fn root_services(&self, range: Range<usize>) -> ArrayRef {
        let roots = self.traces_in(range).iter().map(|trace| {
            let service = trace.root.and_then(|at| {
                let (chunk, row) = self.order.rows[at as usize];
                self.services.of_resource[self.set.chunks[chunk as usize].resource[row as usize] as usize]
            });
            (service, trace.rows)
        });
        dictionary_of_options(roots.flat_map(|(service, rows)| std::iter::repeat_n(service, rows as usize)), &self.services.names)
    }

    fn root_names(&self, range: Range<usize>) -> ArrayRef {
        let roots = self.traces_in(range).iter().map(|trace| {
            let name = trace.root.map(|at| {
                let (chunk, row) = self.order.rows[at as usize];
                self.set.chunks[chunk as usize].name[row as usize] as i32
            });
            (name, trace.rows)
        });
        dictionary_of_options(roots.flat_map(|(name, rows)| std::iter::repeat_n(name, rows as usize)), &self.set.names)
    }

    /// Where in the range each value of a sparse column lands, for all chunks: `(position in range, chunk, value number)`.
    fn scattered<'a>(&'a self, range: Range<usize>, rows: impl Fn(&'a SpanChunk) -> &'a [u32]) -> Vec<(u32, u32)> {
        let mut slots = vec![(ABSENT, 0); range.len()];
        for (number, chunk) in self.set.chunks.iter().enumerate() {
            for (at, &row) in rows(chunk).iter().enumerate() {
                let position = self.positions[number][row as usize] as usize;
                if range.contains(&position) {
                    slots[position - range.start] = (number as u32, at as u32);
                }
            }
        }
        slots
    }

    fn texts<'a>(&'a self, range: Range<usize>, column: impl Fn(&'a SpanChunk) -> &'a BytesColumn) -> ArrayRef {
        let mut builder = StringBuilder::new();
        for (chunk, at) in self.scattered(range, |chunk| &column(chunk).rows) {
            builder.append_option((chunk != ABSENT).then(|| text(column(&self.set.chunks[chunk as usize]).get(at as usize))));
        }
        Arc::new(builder.finish())
    }

    fn rare<'a>(&'a self, range: Range<usize>, column: impl Fn(&'a SpanChunk) -> &'a RareColumn) -> ArrayRef {
        let slots = self.scattered(range, |chunk| &column(chunk).rows);
        let value = |(chunk, at): (u32, u32)| (chunk != ABSENT).then(|| column(&self.set.chunks[chunk as usize]).values[at as usize]);
        Arc::new(slots.into_iter().map(value).collect::<Int64Array>())
    }

    fn attribute(
        &self,
        rows: &Rows<'_>,
        field: &AttributeField,
        chunks: Vec<Option<&SparseColumn>>,
        dictionaries: &[(AttributeColumn, Arc<StringArray>)],
    ) -> ArrayRef {
        match (field.column.kind, field.form) {
            (AttributeType::String, TextForm::Dictionary) => coded_column(rows, &chunks, &dictionaries[field.source as usize].1),
            (AttributeType::String, TextForm::View) => text_column(rows, &chunks, &dictionaries[field.source as usize].1),
            (AttributeType::Int, _) => {
                let (values, nulls) = scatter(rows, &chunks, 0i64, |values, at| if let Values::Int(values) = values { values[at] } else { 0 });
                Arc::new(Int64Array::new(values.into(), nulls))
            }
            (AttributeType::Double, _) => {
                let (values, nulls) = scatter(rows, &chunks, 0f64, |values, at| if let Values::Double(values) = values { values[at] } else { 0.0 });
                Arc::new(Float64Array::new(values.into(), nulls))
            }
            (AttributeType::Bool, _) => {
                let (values, nulls) = scatter(rows, &chunks, false, |values, at| matches!(values, Values::Bool(values) if values[at]));
                Arc::new(BooleanArray::new(values.into(), nulls))
            }
        }
    }

    fn events(&self, range: Range<usize>, parts: &[EventColumn]) -> Result<ArrayRef> {
        let chunks = &self.set.chunks;
        let starts: Vec<Vec<u32>> = chunks.iter().map(|chunk| starts_of(&chunk.events.spans, chunk.len())).collect();
        let mut positions: Vec<Vec<u32>> = chunks.iter().map(|chunk| vec![ABSENT; chunk.events.spans.len()]).collect();
        let mut offsets = vec![0i32];
        let mut refs: Vec<(u32, u32)> = Vec::new();
        for &(chunk, row) in &self.order.rows[range] {
            let starts = &starts[chunk as usize];
            for event in starts[row as usize]..starts[row as usize + 1] {
                positions[chunk as usize][event as usize] = refs.len() as u32;
                refs.push((chunk, event));
            }
            offsets.push(refs.len() as i32);
        }
        let rows = Rows { range: 0..refs.len(), positions: &positions };
        let arrays = parts.iter().map(|&part| self.event_part(&rows, &refs, part)).collect();
        list_of_structs(self.schema.event_fields(parts), offsets, arrays, refs.len())
    }

    fn event_part(&self, rows: &Rows<'_>, refs: &[(u32, u32)], part: EventColumn) -> ArrayRef {
        let chunks = &self.set.chunks;
        let events = |chunk: u32| &chunks[chunk as usize].events;
        match part {
            EventColumn::TimeOffset => {
                let offset = |&(chunk, event): &(u32, u32)| {
                    let span = events(chunk).spans[event as usize] as usize;
                    events(chunk).time_unix_nano[event as usize].wrapping_sub(chunks[chunk as usize].start_unix_nano[span])
                };
                Arc::new(refs.iter().map(offset).collect::<Int64Array>())
            }
            EventColumn::Name => {
                dictionary(refs.iter().map(|&(chunk, event)| events(chunk).name[event as usize] as i32).collect(), None, &self.set.event_names)
            }
            EventColumn::DroppedAttributes => {
                let mut out = vec![None; refs.len()];
                for (chunk, positions) in chunks.iter().zip(rows.positions) {
                    let dropped = &chunk.events.dropped_attributes;
                    for (&event, &value) in dropped.rows.iter().zip(&dropped.values) {
                        if let Some(slot) = out.get_mut(positions[event as usize] as usize) {
                            *slot = Some(value);
                        }
                    }
                }
                Arc::new(Int64Array::from(out))
            }
            EventColumn::Attribute(at) => {
                let field = &self.schema.event_attributes[at as usize];
                let columns = chunks.iter().map(|chunk| find_column(&chunk.events.attributes.columns, field.source)).collect();
                self.attribute(rows, field, columns, &self.set.event_attributes)
            }
            EventColumn::Rest => {
                let rest: Vec<_> = chunks.iter().map(|chunk| &chunk.events.attributes.rest).collect();
                let columns: Vec<_> = chunks.iter().map(|chunk| &chunk.events.attributes.columns).collect();
                rest_column(rows, &rest, &columns, &self.schema.event_demoted, &self.set.event_attributes)
            }
        }
    }

    fn links(&self, range: Range<usize>) -> Result<ArrayRef> {
        let chunks = &self.set.chunks;
        let starts: Vec<Vec<u32>> = chunks.iter().map(|chunk| starts_of(&chunk.links.spans, chunk.len())).collect();
        let mut offsets = vec![0i32];
        let (mut high, mut low, mut span_id, mut other) = (Vec::new(), Vec::new(), Vec::new(), BinaryBuilder::new());
        for &(chunk, row) in &self.order.rows[range] {
            let links = &chunks[chunk as usize].links;
            let starts = &starts[chunk as usize];
            for link in starts[row as usize] as usize..starts[row as usize + 1] as usize {
                high.push(links.trace_id_high[link]);
                low.push(links.trace_id_low[link]);
                span_id.push(links.span_id[link]);
                let from = if link == 0 { 0 } else { links.other_ends[link - 1] as usize };
                other.append_value(&links.other[from..links.other_ends[link] as usize]);
            }
            offsets.push(high.len() as i32);
        }
        let rows = high.len();
        let arrays: Vec<ArrayRef> =
            vec![Arc::new(Int64Array::from(high)), Arc::new(Int64Array::from(low)), Arc::new(Int64Array::from(span_id)), Arc::new(other.finish())];
        list_of_structs(link_fields(), offsets, arrays, rows)
    }
}

/// The rows wanted, and where each row of each chunk stands.
struct Rows<'a> {
    range: Range<usize>,
    positions: &'a [Vec<u32>],
}

impl Rows<'_> {
    /// Calls `take(position in range, value number)` for every value of `column` that is wanted.
    #[inline]
    fn for_each(&self, chunk: usize, rows: &[u32], mut take: impl FnMut(usize, usize)) {
        let positions = &self.positions[chunk];
        for (at, &row) in rows.iter().enumerate() {
            let position = (positions[row as usize] as usize).wrapping_sub(self.range.start);
            if position < self.range.len() {
                take(position, at);
            }
        }
    }
}

fn find_column(columns: &[SparseColumn], id: u32) -> Option<&SparseColumn> {
    columns.binary_search_by_key(&id, |column| column.id).ok().map(|at| &columns[at])
}

fn scatter<T: Copy>(
    rows: &Rows<'_>,
    chunks: &[Option<&SparseColumn>],
    blank: T,
    value: impl Fn(&Values, usize) -> T,
) -> (Vec<T>, Option<NullBuffer>) {
    let mut values = vec![blank; rows.range.len()];
    let mut valid = all_unset(rows.range.len());
    for (chunk, column) in chunks.iter().enumerate() {
        if let Some(column) = column {
            rows.for_each(chunk, &column.rows, |position, at| {
                values[position] = value(&column.values, at);
                valid.set_bit(position, true);
            });
        }
    }
    (values, Some(NullBuffer::new(valid.finish())))
}

fn all_unset(length: usize) -> BooleanBufferBuilder {
    let mut bits = BooleanBufferBuilder::new(length);
    bits.append_n(length, false);
    bits
}

fn coded_column(rows: &Rows<'_>, chunks: &[Option<&SparseColumn>], strings: &Arc<StringArray>) -> ArrayRef {
    let (keys, nulls) = scatter(rows, chunks, 0i32, |values, at| if let Values::Coded(codes) = values { codes[at] as i32 } else { 0 });
    dictionary(keys, nulls, strings)
}

fn text_column(rows: &Rows<'_>, chunks: &[Option<&SparseColumn>], strings: &StringArray) -> ArrayRef {
    let mut slots = vec![(ABSENT, 0u32); rows.range.len()];
    for (chunk, column) in chunks.iter().enumerate() {
        if let Some(column) = column {
            rows.for_each(chunk, &column.rows, |position, at| slots[position] = (chunk as u32, at as u32));
        }
    }
    let mut builder = StringViewBuilder::with_capacity(slots.len());
    for (chunk, at) in slots {
        match chunks.get(chunk as usize).copied().flatten() {
            Some(column) => builder.append_value(text_of(column, at as usize, strings)),
            None => builder.append_null(),
        }
    }
    Arc::new(builder.finish())
}

fn text_of<'a>(column: &'a SparseColumn, at: usize, strings: &'a StringArray) -> &'a str {
    match &column.values {
        Values::Coded(codes) => strings.value(codes[at] as usize),
        Values::Text { ends, bytes } => {
            let start = if at == 0 { 0 } else { ends[at - 1] as usize };
            text(&bytes[start..ends[at] as usize])
        }
        _ => "",
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// The rest of each row: the values of demoted columns, each the first of its key, then what came as rest.
fn rest_column(
    rows: &Rows<'_>,
    rest: &[&BytesColumn],
    columns: &[&Vec<SparseColumn>],
    demoted: &[u32],
    dictionaries: &[(AttributeColumn, Arc<StringArray>)],
) -> ArrayRef {
    const AS_REST: u32 = u32::MAX;
    let mut pieces: Vec<(u32, u32, u32, u32)> = Vec::new();
    for (chunk, rest) in rest.iter().enumerate() {
        rows.for_each(chunk, &rest.rows, |position, at| pieces.push((position as u32, AS_REST, chunk as u32, at as u32)));
    }
    for (chunk, columns) in columns.iter().enumerate() {
        for &id in demoted {
            if let Some(column) = find_column(columns, id) {
                rows.for_each(chunk, &column.rows, |position, at| pieces.push((position as u32, id, chunk as u32, at as u32)));
            }
        }
    }
    pieces.sort_unstable_by_key(|&(position, id, ..)| (position, id));
    let mut builder = BinaryBuilder::new();
    let mut scratch = Vec::new();
    let mut pieces = pieces.into_iter().peekable();
    for position in 0..rows.range.len() as u32 {
        scratch.clear();
        while let Some((_, id, chunk, at)) = pieces.next_if(|piece| piece.0 == position) {
            match find_column(columns[chunk as usize], id) {
                Some(column) if id != AS_REST => {
                    let (attribute, strings) = &dictionaries[id as usize];
                    write_key_value(&mut scratch, &attribute.key, column, at as usize, strings);
                }
                _ => scratch.extend_from_slice(rest[chunk as usize].get(at as usize)),
            }
        }
        if scratch.is_empty() { builder.append_null() } else { builder.append_value(&scratch) }
    }
    Arc::new(builder.finish())
}

/// Writes value `at` of `column` as a `KeyValue` in field 1.
fn write_key_value(out: &mut Vec<u8>, key: &str, column: &SparseColumn, at: usize, strings: &StringArray) {
    let mut pair = Vec::new();
    write_bytes_field(&mut pair, 1, key.as_bytes());
    write_bytes_field(&mut pair, 2, &any_value(column, at, strings));
    write_bytes_field(out, 1, &pair);
}

/// Value `at` of `column` as an `AnyValue` message.
pub(super) fn any_value(column: &SparseColumn, at: usize, strings: &StringArray) -> Vec<u8> {
    let mut value = Vec::new();
    match &column.values {
        Values::Int(values) => {
            value.push(3 << 3);
            write_varint(&mut value, values[at] as u64);
        }
        Values::Double(values) => {
            value.push(4 << 3 | 1);
            value.extend_from_slice(&values[at].to_bits().to_le_bytes());
        }
        Values::Bool(values) => value.extend_from_slice(&[2 << 3, u8::from(values[at])]),
        Values::Coded(_) | Values::Text { .. } => write_bytes_field(&mut value, 1, text_of(column, at, strings).as_bytes()),
    }
    value
}

/// Notes the keys of the `KeyValue`s in field `number` of the messages in `bytes`.
pub fn note_keys(keys: &mut BTreeSet<Box<str>>, bytes: &[u8], number: u32) {
    let mut fields = Fields::new(bytes);
    while let Ok(Some((at, field))) = fields.next_field() {
        if at == number
            && let Ok(pair) = field.bytes().and_then(KeyValue::parse)
        {
            let key = String::from_utf8_lossy(pair.key);
            if !keys.contains(&*key) {
                keys.insert(key.into());
            }
        }
    }
}

fn dictionary(keys: Vec<i32>, nulls: Option<NullBuffer>, values: &Arc<StringArray>) -> ArrayRef {
    let keys = Int32Array::new(keys.into(), nulls);
    Arc::new(DictionaryArray::<Int32Type>::new(keys, values.clone()))
}

fn dictionary_of_options(keys: impl Iterator<Item = Option<i32>>, values: &Arc<StringArray>) -> ArrayRef {
    Arc::new(DictionaryArray::<Int32Type>::new(keys.collect::<Int32Array>(), values.clone()))
}

/// Start of each row's entries in a list whose entries name their row, ascending; one more for the end.
fn starts_of(rows_of_entries: &[u32], rows: usize) -> Vec<u32> {
    let mut starts = vec![0; rows + 1];
    for &row in rows_of_entries {
        starts[row as usize + 1] += 1;
    }
    for row in 0..rows {
        starts[row + 1] += starts[row];
    }
    starts
}

fn list_of_structs(fields: arrow::datatypes::Fields, offsets: Vec<i32>, arrays: Vec<ArrayRef>, rows: usize) -> Result<ArrayRef> {
    let item = Arc::new(Field::new("item", arrow::datatypes::DataType::Struct(fields.clone()), false));
    let structs = StructArray::try_new_with_length(fields, arrays, None, rows)?;
    Ok(Arc::new(ListArray::try_new(item, OffsetBuffer::new(ScalarBuffer::from(offsets)), Arc::new(structs), None)?))
}
