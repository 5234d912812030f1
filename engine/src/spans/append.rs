//! Record batches back into a builder, column by column: for compaction, and for traces whose spans lie in several places.

use std::collections::HashMap;

use arrow::{
    array::{Array, BinaryArray, Int32Array, Int64Array, ListArray},
    record_batch::RecordBatch,
};

use super::{
    TraceId,
    attributes::AttributeTable,
    builder::{ODD_PARENT_IS_ZERO, ODD_STATUS_IS_EMPTY, SpanBuilder, SpanFields},
    columns::AttributeType,
    otlp::entries,
    read::{Texts, Typed, binary_opt, ints, list_items, list_opt, small_ints, texts},
    schema::{AttributeField, RARE, SpanSchema},
    tables::Shared,
    wire::{Fields, KeyValue},
};
use crate::error::{Error, Result};

/// Rows appended at a time: what the head of a builder takes at most.
pub(super) const SLICE_ROWS: usize = 32_768;

impl SpanBuilder {
    /// Appends the spans of `batch`, which holds all columns of `schema` and whole traces; `resources` and `scopes` are what its ids
    /// mean. Errors: `Data`.
    pub fn append_batch(&mut self, batch: &RecordBatch, schema: &SpanSchema, resources: &Shared, scopes: &Shared) -> Result<()> {
        let resources = translate(resources, small_ints(batch, "resource_id")?, |message, url| self.resource(message, url));
        let scopes = translate(scopes, small_ints(batch, "scope_id")?, |message, url| self.scope(message, url));
        let parents = parents(batch)?;
        let wire_bytes = batch.get_array_memory_size() / batch.num_rows().max(1);
        let mut from = 0;
        while from < batch.num_rows() {
            let rows = SLICE_ROWS.min(batch.num_rows() - from);
            self.make_room(rows, 0);
            let slice = batch.slice(from, rows);
            self.append_slice(&slice, schema, (&resources, &scopes), &parents[from..from + rows], wire_bytes)?;
            self.seal_if_full();
            from += rows;
        }
        Ok(())
    }

    fn append_slice(
        &mut self,
        batch: &RecordBatch,
        schema: &SpanSchema,
        (resources, scopes): (&HashMap<i32, u32>, &HashMap<i32, u32>),
        parents: &[i64],
        wire_bytes: usize,
    ) -> Result<()> {
        let base = self.next_row();
        append_attributes(&mut self.attributes, base, batch, &schema.attributes, "span_attributes_rest")?;
        let (high, low, span_id) = (ints(batch, "trace_id_high")?, ints(batch, "trace_id_low")?, ints(batch, "span_id")?);
        let (trace_start, offset, duration) =
            (ints(batch, "trace_start_unix_nano")?, ints(batch, "start_offset_nanos")?, ints(batch, "duration_nanos")?);
        let (kind, status) = (small_ints(batch, "kind")?, small_ints(batch, "status_code")?);
        let (resource, scope) = (small_ints(batch, "resource_id")?, small_ints(batch, "scope_id")?);
        let (name, message) = (texts(batch, "name")?, texts(batch, "status_message")?);
        let trace_state = batch.column_by_name("trace_state").map(Texts::of).transpose()?;
        let rare = RARE.map(|(_, _, name)| batch.column_by_name(name).map(|_| ints(batch, name)));
        let mut rare_columns = Vec::with_capacity(rare.len());
        for column in rare {
            rare_columns.push(column.transpose()?);
        }
        let rare = |at: usize, row: usize| rare_columns[at].filter(|values| values.is_valid(row)).map_or(0, |values| values.value(row));
        let events = EventAppender::new(batch)?;
        let links = LinkAppender::new(batch)?;
        for (row, parent) in parents.iter().enumerate() {
            let start = trace_start.value(row).wrapping_add(offset.value(row));
            let oddities = rare(4, row);
            let fields = SpanFields {
                trace_id: TraceId::from_halves(high.value(row), low.value(row)).0,
                span_id: span_id.value(row).to_be_bytes(),
                parent_span_id: parent.to_be_bytes(),
                parent_is_zero: oddities & ODD_PARENT_IS_ZERO != 0,
                start_unix_nano: start as u64,
                end_unix_nano: (start as u64).wrapping_add(duration.value(row) as u64),
                name: name.get(row).unwrap_or_default().as_bytes(),
                kind: kind.value(row),
                trace_state: trace_state.as_ref().and_then(|texts| texts.get(row)).unwrap_or_default().as_bytes(),
                flags: rare(0, row) as u32,
                status_code: status.value(row),
                status_message: message.get(row).unwrap_or_default().as_bytes(),
                status_is_empty: oddities & ODD_STATUS_IS_EMPTY != 0,
                dropped_attributes: rare(1, row) as u32,
                dropped_events: rare(2, row) as u32,
                dropped_links: rare(3, row) as u32,
                wire_bytes,
            };
            events.append(self, row, start)?;
            links.append(self, row);
            self.push_fields(shared(resources, resource.value(row))?, shared(scopes, scope.value(row))?, &fields);
        }
        events.append_attributes(self, schema)
    }
}

/// New numbers of the entries of `table` that `used` names, by old number.
fn translate(table: &Shared, used: &Int32Array, mut intern: impl FnMut(Option<&[u8]>, &[u8]) -> u32) -> HashMap<i32, u32> {
    let mut numbers = HashMap::new();
    for &id in used.values() {
        if !numbers.contains_key(&id) && (id as usize) < table.len() {
            numbers.insert(id, intern(table.message(id as usize), table.schema_url(id as usize)));
        }
    }
    numbers
}

fn shared(table: &HashMap<i32, u32>, id: i32) -> Result<u32> {
    table.get(&id).copied().ok_or_else(|| Error::data(format!("shared entry {id} is missing")))
}

/// The parent span id of every row, zero where there is none.
fn parents(batch: &RecordBatch) -> Result<Vec<i64>> {
    let (distance, absent, span_id) = (small_ints(batch, "parent_distance")?, ints(batch, "parent_span_id")?, ints(batch, "span_id")?);
    (0..batch.num_rows())
        .map(|row| match usize::try_from(distance.value(row)) {
            Ok(distance) if distance > 0 => {
                row.checked_sub(distance).map(|parent| span_id.value(parent)).ok_or_else(|| Error::data("a parent lies before its trace"))
            }
            _ => Ok(if absent.is_valid(row) { absent.value(row) } else { 0 }),
        })
        .collect()
}

/// Appends the attribute columns and the rest of `batch`, whose row `i` becomes row `base + i`.
fn append_attributes(table: &mut AttributeTable, base: u32, batch: &RecordBatch, fields: &[AttributeField], rest: &str) -> Result<()> {
    let mut columns: HashMap<&str, Vec<(AttributeType, Typed)>> = HashMap::new();
    let mut refused: Vec<(&AttributeField, Typed)> = Vec::new();
    for field in fields {
        let Some(array) = batch.column_by_name(&field.name) else { continue };
        if array.null_count() == array.len() {
            continue;
        }
        let typed = Typed::of(array)?;
        if append_column(table, base, field, &typed, array.len()) {
            columns.entry(&field.column.key).or_default().push((field.column.kind, typed));
        } else {
            refused.push((field, typed));
        }
    }
    let rest = binary_opt(batch, rest)?;
    for row in 0..batch.num_rows() {
        for (field, typed) in refused.iter().filter(|(_, typed)| typed.is_valid(row)) {
            table.push_rest_fields(base + row as u32, &key_value_field(&field.column.key, typed, row));
        }
        if let Some(rest) = rest.filter(|rest| rest.is_valid(row)) {
            append_rest(table, base, row, rest.value(row), &columns)?;
        }
    }
    Ok(())
}

/// False when the table has no room for another key.
fn append_column(table: &mut AttributeTable, base: u32, field: &AttributeField, typed: &Typed, rows: usize) -> bool {
    let Some(mut column) = table.column(&field.column.key, field.column.kind) else { return false };
    column.extend(|at| base + at as u32, typed, 0..rows);
    true
}

/// Rare attributes may have become frequent: they get columns again unless the row's key has its first value in a column already.
fn append_rest(table: &mut AttributeTable, base: u32, row: usize, rest: &[u8], columns: &HashMap<&str, Vec<(AttributeType, Typed)>>) -> Result<()> {
    let damaged = |e| Error::data("reading rare attributes").with_source(e);
    table.begin_row();
    let mut fields = Fields::new(rest);
    while let Some((_, field)) = fields.next_field().map_err(damaged)? {
        let message = field.bytes().map_err(damaged)?;
        let pair = KeyValue::parse(message).map_err(damaged)?;
        let of_key = std::str::from_utf8(pair.key).ok().and_then(|key| columns.get(key));
        if of_key.is_some_and(|columns| columns.iter().any(|(_, typed)| typed.is_valid(row))) {
            let mut kept = Vec::with_capacity(message.len() + 4);
            super::wire::write_bytes_field(&mut kept, 1, message);
            table.push_rest_fields(base + row as u32, &kept);
        } else {
            table.push(base + row as u32, message).map_err(damaged)?;
        }
    }
    Ok(())
}

fn key_value_field(key: &str, typed: &Typed, row: usize) -> Vec<u8> {
    use prost::Message;
    use skein_proto::otlp::common::v1::{AnyValue, KeyValue, any_value::Value};
    let value = match typed {
        Typed::Text(values) => Value::StringValue(values.get(row).unwrap_or_default().to_owned()),
        Typed::Int(values) => Value::IntValue(values.value(row)),
        Typed::Double(values) => Value::DoubleValue(values.value(row)),
        Typed::Bool(values) => Value::BoolValue(values.value(row)),
    };
    let pair = KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..Default::default() };
    let mut out = Vec::new();
    super::wire::write_bytes_field(&mut out, 1, &pair.encode_to_vec());
    out
}

/// The events of a batch's spans.
struct EventAppender<'a> {
    list: Option<(&'a ListArray, RecordBatch)>,
    first_row: std::cell::Cell<Option<u32>>,
}

impl<'a> EventAppender<'a> {
    fn new(batch: &'a RecordBatch) -> Result<Self> {
        let list = list_opt(batch, "events")?.map(|list| Ok::<_, Error>((list, list_items(list)?))).transpose()?;
        Ok(Self { list, first_row: std::cell::Cell::new(None) })
    }

    fn append(&self, builder: &mut SpanBuilder, row: usize, start: i64) -> Result<()> {
        let Some((list, items)) = &self.list else { return Ok(()) };
        let range = entries(list, row);
        if range.is_empty() {
            return Ok(());
        }
        if self.first_row.get().is_none() {
            self.first_row.set(Some(builder.next_event_row().wrapping_sub(range.start as u32)));
        }
        let (offsets, names) = (ints(items, "time_offset_nanos")?, texts(items, "name")?);
        let dropped = items.column_by_name("dropped_attributes_count").map(|_| ints(items, "dropped_attributes_count")).transpose()?;
        for at in range {
            let dropped = dropped.filter(|counts| counts.is_valid(at)).map_or(0, |counts| counts.value(at) as u32);
            builder.finish_event(start.wrapping_add(offsets.value(at)) as u64, names.get(at).unwrap_or_default().as_bytes(), dropped);
        }
        Ok(())
    }

    /// After the rows, since events of a slice follow one another: their attributes column by column.
    fn append_attributes(&self, builder: &mut SpanBuilder, schema: &SpanSchema) -> Result<()> {
        let (Some((list, items)), Some(base)) = (&self.list, self.first_row.get()) else { return Ok(()) };
        let first = list.value_offsets()[0] as usize;
        let last = list.value_offsets()[list.len()] as usize;
        let own = items.slice(first, last - first);
        append_attributes(&mut builder.event_attributes, base.wrapping_add(first as u32), &own, &schema.event_attributes, "attributes_rest")
    }
}

/// The links of a batch's spans.
struct LinkAppender<'a> {
    links: Option<Links<'a>>,
}

/// The columns of links.
struct Links<'a> {
    list: &'a ListArray,
    trace_id_high: Int64Array,
    trace_id_low: Int64Array,
    span_id: Int64Array,
    other: BinaryArray,
}

impl<'a> LinkAppender<'a> {
    fn new(batch: &'a RecordBatch) -> Result<Self> {
        let Some(list) = list_opt(batch, "links")? else { return Ok(Self { links: None }) };
        let items = list_items(list)?;
        let int = |name| ints(&items, name).cloned();
        let other = binary_opt(&items, "other")?.cloned().ok_or_else(|| Error::data("column links.other is missing"))?;
        let (trace_id_high, trace_id_low, span_id) = (int("trace_id_high")?, int("trace_id_low")?, int("span_id")?);
        Ok(Self { links: Some(Links { list, trace_id_high, trace_id_low, span_id, other }) })
    }

    fn append(&self, builder: &mut SpanBuilder, row: usize) {
        let Some(links) = &self.links else { return };
        for at in entries(links.list, row) {
            let trace_id = TraceId::from_halves(links.trace_id_high.value(at), links.trace_id_low.value(at)).0;
            builder.link(trace_id, links.span_id.value(at).to_be_bytes(), |out| out.extend_from_slice(links.other.value(at)));
        }
    }
}
