//! A checked table into a builder, column by column.

use std::ops::Range;

use arrow::array::{Array, BinaryArray};

use super::{
    SpanTable,
    entries::{Events, Links},
    sparse::Sparse,
    values::{Attribute, Encoder, Values},
};
use crate::spans::{
    TraceId,
    append::SLICE_ROWS,
    attributes::AttributeTable,
    builder::SpanBuilder,
    columns::{AttributeType, BytesColumn},
    pool::Pool,
    read::{Texts, Typed},
};

impl SpanBuilder {
    /// Appends the spans of `table`, whose record has `record_bytes` bytes. Cost: copies of columns, a look-up for each distinct value and for
    /// each trace; nothing is allocated for a span.
    pub fn append_table(&mut self, table: &SpanTable, record_bytes: usize) {
        let resources: Vec<u32> = table.resource.messages.iter().map(|message| self.resource(message, b"")).collect();
        let scopes: Vec<u32> = table.scope.messages.iter().map(|message| self.scope(message, b"")).collect();
        let names = interned(&mut self.names, table.name.as_ref(), table.rows);
        let event_names = table.events.as_ref().map(|events| interned(&mut self.event_names, events.name.as_ref(), events.time_unix_nano.len()));
        for from in (0..table.rows).step_by(SLICE_ROWS) {
            let rows = from..(from + SLICE_ROWS).min(table.rows);
            self.make_room(rows.len(), table.text_bytes);
            let base = self.next_row();
            append_attributes(&mut self.attributes, base, rows.clone(), (&table.attributes, &table.sparse), table.rest.as_ref());
            if let (Some(events), Some(names)) = (&table.events, &event_names) {
                self.append_events(base, rows.clone(), events, names);
            }
            if let Some(links) = &table.links {
                self.append_links(base, rows.clone(), links);
            }
            let share = |row: usize| (record_bytes as u128 * row as u128 / table.rows as u128) as usize;
            let bytes = share(rows.end) - share(rows.start);
            self.append_fixed(table, rows.clone(), (&resources, &scopes, &names), bytes);
            self.head_bytes += bytes.max(table.text_bytes);
            self.seal_if_full();
        }
    }

    /// The columns that every span has; they make the rows.
    fn append_fixed(&mut self, table: &SpanTable, rows: Range<usize>, (resources, scopes, names): (&[u32], &[u32], &[u32]), bytes: usize) {
        let base = self.next_row();
        for row in rows.clone() {
            self.head.trace.push(self.traces.number(TraceId::from_halves(table.trace_id_high[row], table.trace_id_low[row])));
        }
        let head = &mut self.head;
        for (to, from) in [
            (&mut head.trace_id_high, &table.trace_id_high),
            (&mut head.trace_id_low, &table.trace_id_low),
            (&mut head.span_id, &table.span_id),
            (&mut head.parent_span_id, &table.parent_span_id),
            (&mut head.start_unix_nano, &table.start_unix_nano),
            (&mut head.duration_nanos, &table.duration_nanos),
        ] {
            to.extend_from_slice(&from[rows.clone()]);
        }
        head.kind.extend_from_slice(&table.kind[rows.clone()]);
        head.status_code.extend_from_slice(&table.status_code[rows.clone()]);
        head.name.extend_from_slice(&names[rows.clone()]);
        head.resource.extend(table.resource.codes[rows.clone()].iter().map(|&code| resources[code as usize]));
        head.scope.extend(table.scope.codes[rows.clone()].iter().map(|&code| scopes[code as usize]));
        head.wire_bytes.extend(std::iter::repeat_n(u32::try_from(bytes / rows.len().max(1)).unwrap_or(u32::MAX), rows.len()));
        append_texts(&mut head.status_message, base, rows.clone(), table.status_message.as_ref());
        append_texts(&mut head.trace_state, base, rows.clone(), table.trace_state.as_ref());
        for (rare, counts) in head.rare.iter_mut().zip(&table.counts) {
            let Some(counts) = counts else { continue };
            rows.clone().filter(|&row| counts.is_valid(row)).for_each(|row| rare.push_nonzero(base + (row - rows.start) as u32, counts.value(row)));
        }
        self.spans += rows.len();
        self.version += rows.len() as u64;
        self.wire_bytes += bytes as u64;
    }

    fn append_events(&mut self, base: u32, rows: Range<usize>, events: &Events, names: &[u32]) {
        let first_event = self.next_event_row();
        let entries = events.offsets[rows.start] as usize..events.offsets[rows.end] as usize;
        append_attributes(&mut self.event_attributes, first_event, entries.clone(), (&events.attributes, &[]), events.rest.as_ref());
        let head = &mut self.head.events;
        for (at, row) in rows.enumerate() {
            head.spans.extend(std::iter::repeat_n(base + at as u32, (events.offsets[row + 1] - events.offsets[row]) as usize));
        }
        head.time_unix_nano.extend_from_slice(&events.time_unix_nano[entries.clone()]);
        head.name.extend_from_slice(&names[entries.clone()]);
        if let Some(dropped) = &events.dropped_attributes {
            for at in entries.clone().filter(|&at| dropped.is_valid(at)) {
                head.dropped_attributes.push_nonzero(first_event + (at - entries.start) as u32, dropped.value(at));
            }
        }
    }

    fn append_links(&mut self, base: u32, rows: Range<usize>, links: &Links) {
        let head = &mut self.head.links;
        let entries = links.offsets[rows.start] as usize..links.offsets[rows.end] as usize;
        for (at, row) in rows.enumerate() {
            head.spans.extend(std::iter::repeat_n(base + at as u32, (links.offsets[row + 1] - links.offsets[row]) as usize));
        }
        head.trace_id_high.extend_from_slice(&links.trace_id_high[entries.clone()]);
        head.trace_id_low.extend_from_slice(&links.trace_id_low[entries.clone()]);
        head.span_id.extend_from_slice(&links.span_id[entries.clone()]);
        for at in entries {
            head.other.extend_from_slice(links.other.value(at));
            head.other_ends.push(head.other.len() as u32);
        }
    }
}

/// The number of each row's text in `pool`; that of the empty text where there is none.
fn interned(pool: &mut Pool, texts: Option<&Texts>, rows: usize) -> Vec<u32> {
    match texts {
        None => vec![pool.intern(b""); rows],
        Some(Texts::Dictionary(dictionary, values)) => {
            let known: Vec<u32> = values.iter().map(|text| pool.intern(text.unwrap_or_default().as_bytes())).collect();
            let keys = dictionary.keys();
            match keys.nulls() {
                None => keys.values().iter().map(|&key| known[key as usize]).collect(),
                Some(_) => keys.iter().map(|key| key.map_or_else(|| pool.intern(b""), |key| known[key as usize])).collect(),
            }
        }
        Some(texts) => (0..rows).map(|row| pool.intern(texts.get(row).unwrap_or_default().as_bytes())).collect(),
    }
}

fn append_texts(column: &mut BytesColumn, base: u32, rows: Range<usize>, texts: Option<&Texts>) {
    let Some(texts) = texts else { return };
    for (at, row) in rows.enumerate() {
        if let Some(text) = texts.get(row).filter(|text| !text.is_empty()) {
            column.append(base + at as u32, |out| out.extend_from_slice(text.as_bytes()));
        }
    }
}

/// Appends attributes and the rest; row `rows.start + i` becomes row `base + i`.
fn append_attributes(
    table: &mut AttributeTable,
    base: u32,
    rows: Range<usize>,
    (dense, sparse): (&[Attribute], &[Sparse]),
    rest: Option<&BinaryArray>,
) {
    let mut refused = Vec::new();
    for attribute in dense {
        let Values::Each(values) = &attribute.values else { continue };
        match table.column(&attribute.key, type_of(values)) {
            Some(mut column) => column.extend(|at| base + at as u32, values, rows.clone()),
            None => refused.push(Refused { attribute, rows: None, next: 0 }),
        }
    }
    for Sparse { rows: there, attributes } in sparse {
        let place = |row: usize| there.partition_point(|&there| (there as usize) < row);
        let range = place(rows.start)..place(rows.end);
        let new_row = |at: usize| base + (there[range.start + at] - rows.start as u32);
        if range.is_empty() {
            continue;
        }
        for attribute in attributes {
            let Values::Each(values) = &attribute.values else { continue };
            match table.column(&attribute.key, type_of(values)) {
                Some(mut column) => column.extend(new_row, values, range.clone()),
                None => refused.push(Refused { attribute, rows: Some(there), next: range.start }),
            }
        }
    }
    if refused.is_empty() && rest.is_none() {
        return;
    }
    let (mut encoder, mut fields) = (Encoder::default(), Vec::new());
    for (at, row) in rows.enumerate() {
        fields.clear();
        refused.iter_mut().for_each(|refused| refused.write(&mut encoder, &mut fields, row));
        if let Some(rest) = rest.filter(|rest| rest.is_valid(row)) {
            fields.extend_from_slice(rest.value(row));
        }
        if !fields.is_empty() {
            table.push_rest_fields(base + at as u32, &fields);
        }
    }
}

/// An attribute that gets no column.
struct Refused<'a> {
    attribute: &'a Attribute,
    /// The rows that its values are of; None for all.
    rows: Option<&'a [u32]>,
    /// The first of these that was not asked for yet.
    next: usize,
}

impl Refused<'_> {
    /// Writes the value of `row`, if it has one. To be called for each row in turn.
    fn write(&mut self, encoder: &mut Encoder, out: &mut Vec<u8>, row: usize) {
        let place = match self.rows {
            None => row,
            Some(rows) if rows.get(self.next) == Some(&(row as u32)) => {
                self.next += 1;
                self.next - 1
            }
            Some(_) => return,
        };
        if self.attribute.is_valid(place) {
            encoder.pair(out, 1, self.attribute, place);
        }
    }
}

fn type_of(values: &Typed) -> AttributeType {
    match values {
        Typed::Text(_) => AttributeType::String,
        Typed::Int(_) => AttributeType::Int,
        Typed::Double(_) => AttributeType::Double,
        Typed::Bool(_) => AttributeType::Bool,
    }
}
