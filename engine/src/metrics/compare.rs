//! `compare()`: how often each value of each attribute occurs among the selected spans, and among the others.

use std::{
    collections::BTreeSet,
    hash::{Hash, Hasher},
    sync::LazyLock,
};

use arrow::{
    array::{Array, Int32Array, Int64Array, StringViewArray},
    buffer::BooleanBuffer,
    record_batch::RecordBatch,
};
use hashbrown::HashMap;
use prost::Message;
use skein_proto::otlp::common::v1::KeyValueList;

use super::{
    cells::{Cells, add_few},
    estimate::Weight,
    observe::Chosen,
    partial::Partial,
};
use crate::{
    error::{Error, Result},
    exec::{
        eval::{
            ColumnNeeds, Frame,
            mask::mask,
            vector::{Vector, kind_of, status_of},
        },
        source::{RestScope, SourceRef},
        stats::ScanMetrics,
    },
    plan::matches::key_value,
    spans::{
        read::{Texts, Typed},
        schema::Column,
        tables::Shared,
        value::{Value, value_of_any},
        wire::{Fields, KeyValue, write_bytes_field},
    },
    traceql::{AttributeScope, FieldExpr, FieldRef, Intrinsic},
};

/// Most distinct values of an attribute; of one that has more only the totals are told.
pub const VALUES_MAX: usize = 10_000;

/// Names of the two groups of spans, by whether a span is selected.
pub const META_TYPES: [&str; 2] = ["baseline", "selection"];
/// The label that tells them.
pub const META_TYPE: &str = "__meta_type";

/// Intrinsics that are compared: those that say what a span is, not when or which one. Those of events and links are among
/// [`nested_fields`].
const INTRINSICS: [Intrinsic; 9] = [
    Intrinsic::Name,
    Intrinsic::Kind,
    Intrinsic::Status,
    Intrinsic::StatusMessage,
    Intrinsic::RootName,
    Intrinsic::RootService,
    Intrinsic::ChildCount,
    Intrinsic::InstrumentationName,
    Intrinsic::InstrumentationVersion,
];

/// Counted from the parents of all spans of a trace.
const CHILD_COUNT: FieldRef = FieldRef::Intrinsic(Intrinsic::ChildCount);

/// Where fewer than one of so many spans is chosen, the others' values are not read. Finding one costs as much as some that lie together.
const ALONE_PER_ROW: usize = 2;

/// Counters of spans by code and slot are kept in one table up to this size, and up to so many for each span.
const TABLE_MAX: usize = 1 << 20;
const TABLE_PER_ROW_MAX: usize = 8;
/// Bytes of a row's slot, of the code of its value, and of whether it is chosen.
pub const SLOT_BYTES: usize = 2 * size_of::<u32>() + 1;
/// Bytes of a chosen span: its place and interval, twice, and whether it is selected.
const COMPARED_BYTES: usize = 4 * size_of::<u32>() + 1;
/// Integers that differ by less than this are their own codes.
const CODES_OF_INTS_MAX: u64 = 1 << 12;

/// A span attribute with columns, one for each of its types, and whether it may be among the rest too.
struct SpanAttribute {
    field: FieldRef,
    columns: Vec<u32>,
    in_rest: bool,
}

impl SpanAttribute {
    /// Its column, if it is nowhere else.
    fn only_column(&self) -> Option<u32> {
        match *self.columns {
            [column] if !self.in_rest => Some(column),
            _ => None,
        }
    }
}

fn span_attributes(source: &SourceRef) -> Vec<SpanAttribute> {
    let schema = source.schema();
    let by_key = (0..schema.attributes.len()).collect::<Vec<_>>();
    let key = |at: usize| &*schema.attributes[at].column.key;
    let attribute = |columns: &[usize]| SpanAttribute {
        field: FieldRef::Attribute { scope: AttributeScope::Span, name: key(columns[0]).to_string() },
        columns: columns.iter().map(|&at| at as u32).collect(),
        in_rest: schema.has(Column::Rest) && source.rest_may_have(RestScope::Span, key(columns[0])),
    };
    by_key.chunk_by(|&a, &b| key(a) == key(b)).map(attribute).collect()
}

/// The name of events, and what there is of links.
fn nested_fields(source: &SourceRef) -> Vec<FieldRef> {
    let link = |key: Box<str>| FieldRef::Attribute { scope: AttributeScope::Link, name: key.to_string() };
    let intrinsics = [Intrinsic::EventName, Intrinsic::LinkTraceId, Intrinsic::LinkSpanId];
    intrinsics.into_iter().map(FieldRef::Intrinsic).chain(source.rest_keys(RestScope::Link).into_iter().map(link)).collect()
}

/// The attributes of events.
fn event_attributes(source: &SourceRef) -> Vec<FieldRef> {
    let mut keys: BTreeSet<String> = source.schema().event_attributes.iter().map(|field| field.column.key.to_string()).collect();
    keys.extend(source.rest_keys(RestScope::Event).iter().map(|key| key.to_string()));
    keys.into_iter().map(|name| FieldRef::Attribute { scope: AttributeScope::Event, name }).collect()
}

/// The columns that comparing reads of all spans of a row group: what tells the chosen ones and the selection, and what depends on the other
/// spans of a trace.
pub fn needs(selection: &FieldExpr, source: &SourceRef) -> ColumnNeeds {
    let mut needs = ColumnNeeds::default();
    [Column::TraceStart, Column::StartOffset].into_iter().for_each(|column| needs.add(column));
    needs.add_field(&CHILD_COUNT, source);
    selection.visit_fields(&mut |field| needs.add_field(field, source));
    needs
}

/// The columns that comparing reads of the chosen spans of `frame`: nearly all, but for [`needs_of_events`], and the values of attributes that
/// have too many in `distinct` where they are not loaded.
fn needs_of_spans(frame: &Frame, distinct: &Distinct) -> ColumnNeeds {
    let (source, mut needs) = (frame.source(), ColumnNeeds::default());
    [Column::Resource, Column::Scope].into_iter().for_each(|column| needs.add(column));
    for attribute in span_attributes(source) {
        let is_unread = |column: &u32| !frame.has(Column::Attribute(*column)) && distinct.has_too_many(&attribute.field.to_string());
        match attribute.only_column().filter(is_unread) {
            Some(column) => needs.add(Column::Presence(column)),
            None => attribute.columns.iter().for_each(|&column| needs.add(Column::Attribute(column))),
        }
    }
    let own = INTRINSICS.into_iter().map(FieldRef::Intrinsic).filter(|field| *field != CHILD_COUNT);
    own.chain(nested_fields(source)).for_each(|field| needs.add_field(&field, source));
    if source.schema().has(Column::Rest) {
        needs.add(Column::Rest);
    }
    needs
}

/// Attributes of events, which can be long, if one of `rows` has an event.
fn needs_of_events(frame: &Frame, rows: &BooleanBuffer) -> Option<ColumnNeeds> {
    frame.has_events(rows).then(|| {
        let mut needs = ColumnNeeds::default();
        event_attributes(frame.source()).iter().for_each(|field| needs.add_field(field, frame.source()));
        needs
    })
}

/// The spans of a row group that are compared.
pub struct Compared {
    /// Among all rows of the row group.
    pub chosen: Chosen,
    /// Which of them are the selection.
    pub selected: Vec<bool>,
    /// A frame of them alone, and they in it; None where they are many.
    alone: Option<(Frame, Chosen)>,
    needs: ColumnNeeds,
}

impl Compared {
    /// Those of `chosen`, in a frame for which what [`needs`] names is loaded. The selection are the ones among `rows` that satisfy
    /// `selection`, and begin in `window` if there is one (start excluded, end included). Errors: `Data`, `Exhausted`.
    pub fn of(
        (frame, rows, chosen): (&Frame, &BooleanBuffer, Chosen),
        (selection, window): (&FieldExpr, Option<(i64, i64)>),
        distinct: &Distinct,
    ) -> Result<Self> {
        if chosen.rows.is_empty() {
            return Ok(Self { chosen, selected: Vec::new(), alone: None, needs: ColumnNeeds::default() });
        }
        let needs = needs_of_spans(frame, distinct);
        frame.hold(chosen.rows.len() * COMPARED_BYTES)?;
        let selected = selected(frame, rows, &chosen, selection, window)?;
        // Of spans in memory all are looked at first, whichever are wanted.
        let few = chosen.rows.len() * ALONE_PER_ROW < frame.len() && frame.source().data_bytes() > 0;
        let alone = match few {
            true => Some((frame.of_rows(&chosen.rows, &CHILD_COUNT, &needs.columns)?, chosen.alone())),
            false => None,
        };
        Ok(Self { chosen, selected, alone, needs })
    }

    /// Loads what is compared; into `frame` if they have none alone. Errors: as of reading.
    pub async fn load(&mut self, frame: &mut Frame, metrics: &ScanMetrics) -> Result<()> {
        if self.chosen.rows.is_empty() {
            return Ok(());
        }
        let (frame, chosen) = match &mut self.alone {
            Some((frame, chosen)) => (frame, &*chosen),
            None => (frame, &self.chosen),
        };
        frame.load(&self.needs, metrics).await?;
        match needs_of_events(frame, &chosen.bits()) {
            Some(further) => frame.load(&further, metrics).await,
            None => Ok(()),
        }
    }

    /// The frame that what is compared is loaded into, and the compared spans in it, as many as `chosen`.
    pub fn spans<'a>(&'a self, frame: &'a Frame) -> (&'a Frame, &'a Chosen) {
        self.alone.as_ref().map_or((frame, &self.chosen), |(frame, chosen)| (frame, chosen))
    }
}

/// What an encoded `KeyValueList` says that is the labels of one value of an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ValueKey<'a> {
    pub selected: bool,
    pub name: &'a str,
    /// An `AnyValue` message; None where values are not told apart.
    pub value: Option<&'a [u8]>,
}

impl<'a> ValueKey<'a> {
    /// Reads labels: the group, then the attribute. None for other ones.
    pub fn parse(labels: &'a [u8]) -> Option<Self> {
        let mut fields = Fields::new(labels);
        let mut next = || KeyValue::parse(fields.next_field().ok()??.1.bytes().ok()?).ok();
        let (meta, label) = (next()?, next()?);
        let group = META_TYPES.iter().position(|name| meta.value.is_some_and(|value| value.ends_with(name.as_bytes())))?;
        Some(Self { selected: group == 1, name: std::str::from_utf8(label.key).ok()?, value: label.value })
    }
}

/// The attributes so far.
#[derive(Debug, Default)]
pub struct Distinct {
    attributes: Vec<Attribute>,
    numbers: HashMap<Box<str>, usize>,
    /// Labels under way: a `KeyValue` message, and the `KeyValueList` that it ends.
    label: Vec<u8>,
    key: Vec<u8>,
}

/// An attribute and how many series it has.
#[derive(Debug)]
struct Attribute {
    /// Its name as a field of a `KeyValue` message.
    name: Vec<u8>,
    series: usize,
}

impl Distinct {
    /// The number of the attribute `name`.
    fn number(&mut self, name: &str) -> usize {
        *self.numbers.entry_ref(name).or_insert_with(|| {
            let mut field = Vec::new();
            write_bytes_field(&mut field, 1, name.as_bytes());
            self.attributes.push(Attribute { name: field, series: 0 });
            self.attributes.len() - 1
        })
    }

    /// Whether the values of the attribute `name` are not told apart any more.
    fn has_too_many(&self, name: &str) -> bool {
        self.numbers.get(name).is_some_and(|&attribute| self.is_over(attribute))
    }

    fn is_over(&self, attribute: usize) -> bool {
        self.attributes[attribute].series > VALUES_MAX
    }

    /// The series of a value; of one value too many, that of the attribute. Errors: as [`Partial::place`].
    fn place(&mut self, partial: &mut Partial, attribute: usize, selected: bool, value: &[u8]) -> Result<usize> {
        let value = (!self.is_over(attribute)).then_some(value);
        let known = partial.len();
        self.write_key(attribute, selected, value);
        let place = partial.place_of_key(&self.key)?;
        self.attributes[attribute].series += partial.len() - known;
        Ok(place)
    }

    /// Writes the labels of a value in one of the groups, or of all values that are not told apart, to `key`.
    fn write_key(&mut self, attribute: usize, selected: bool, value: Option<&[u8]>) {
        self.label.clone_from(&self.attributes[attribute].name);
        if let Some(value) = value {
            write_bytes_field(&mut self.label, 2, value);
        }
        self.key.clone_from(&GROUPS[usize::from(selected)]);
        write_bytes_field(&mut self.key, 1, &self.label);
    }

    /// The labels of all values of an attribute in one of the groups.
    fn key_of_all(&self, attribute: usize, selected: bool) -> Box<[u8]> {
        let mut key = GROUPS[usize::from(selected)].clone();
        write_bytes_field(&mut key, 1, &self.attributes[attribute].name);
        key.into()
    }
}

/// The labels of the two groups as the first field of a `KeyValueList` message.
static GROUPS: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let label = |name| KeyValueList { values: vec![key_value(META_TYPE, &Value::from(name))] };
    META_TYPES.map(|name| label(name).encode_to_vec())
});

/// Adds series that [`observe`] made. Errors: `Exhausted` for too many values, `Internal` for another batch.
pub fn merge((partial, distinct): (&mut Partial, &mut Distinct), series: &RecordBatch) -> Result<()> {
    partial.merge_batch_by(series, |partial, key| {
        let labels = ValueKey::parse(key).ok_or_else(not_compared)?;
        let attribute = distinct.number(labels.name);
        if labels.value.is_none() {
            distinct.attributes[attribute].series = VALUES_MAX + 1;
        }
        if distinct.is_over(attribute) {
            distinct.write_key(attribute, labels.selected, None);
            return partial.place_of_key(&distinct.key);
        }
        let known = partial.len();
        let place = partial.place_of_key(key)?;
        distinct.attributes[attribute].series += partial.len() - known;
        Ok(place)
    })
}

/// Adds up the values of the attributes that have too many: nobody is told them. Errors: `Internal` for series that [`observe`] did not make.
pub fn join_values((partial, distinct): (&mut Partial, &Distinct)) -> Result<()> {
    if (0..distinct.attributes.len()).all(|attribute| !distinct.is_over(attribute)) {
        return Ok(());
    }
    let sum_of = |key: &[u8]| {
        let labels = ValueKey::parse(key).ok_or_else(not_compared)?;
        let attribute = distinct.numbers.get(labels.name).copied().filter(|&attribute| distinct.is_over(attribute));
        Ok(attribute.map(|attribute| 2 * attribute + usize::from(labels.selected)))
    };
    partial.join(sum_of, |sum| distinct.key_of_all(sum / 2, sum % 2 == 1))
}

/// Of series that [`observe`] did not make.
pub fn not_compared() -> Error {
    Error::internal("a partial series is not one of compare()")
}

/// Which of the chosen spans are the selection: those that satisfy `selection`, and begin in `window` if there is one (start excluded, end
/// included). Errors: `Data`.
fn selected(frame: &Frame, rows: &BooleanBuffer, chosen: &Chosen, selection: &FieldExpr, window: Option<(i64, i64)>) -> Result<Vec<bool>> {
    let selected = mask(selection, frame, rows)?;
    let starts = (frame.ints(Column::TraceStart)?.values(), frame.ints(Column::StartOffset)?.values());
    let is_selected = |row: u32| {
        let start = starts.0[row as usize].wrapping_add(starts.1[row as usize]);
        selected.value(row as usize) && window.is_none_or(|(after, until)| start > after && start <= until)
    };
    Ok(chosen.rows.iter().map(|&row| is_selected(row)).collect())
}

/// Adds the chosen spans of `frame`, of which `selected` tells the group. Each stands for `weight` spans. [`SLOT_BYTES`] are held for each row
/// of the frame. Errors: `Exhausted` for too many values, `Data`.
pub fn observe((partial, distinct): (&mut Partial, &mut Distinct), frame: &Frame, chosen: &Chosen, selected: &[bool], weight: Weight) -> Result<()> {
    let mut counter = Counter::new((partial, distinct), frame, chosen, selected, weight);
    counter.count_intrinsics()?;
    counter.count_span_attributes()?;
    counter.count_shared(Column::Resource, AttributeScope::Resource, frame.source().resources())?;
    counter.count_shared(Column::Scope, AttributeScope::Instrumentation, frame.source().scopes())?;
    counter.count_nested()?;
    counter.count_rest()
}

/// Counts the chosen spans of one frame, attribute by attribute.
struct Counter<'a> {
    partial: &'a mut Partial,
    distinct: &'a mut Distinct,
    frame: &'a Frame,
    rows: BooleanBuffer,
    /// By row: the group times `width`, and how far its interval lies after `first`. Of no meaning for rows that were not chosen.
    slots: Vec<u32>,
    first: u32,
    /// How many intervals there are from the first to the last.
    width: u32,
    /// Of each span.
    weight: Weight,
    /// An `AnyValue` message.
    value: Vec<u8>,
}

/// Bytes of the longest text that is in its view.
const INLINE_MAX: usize = 12;

/// A text and its view, which tells most texts apart without a look at them.
#[derive(Debug, Clone, Copy)]
struct Viewed<'a> {
    view: u128,
    text: &'a str,
}

impl<'a> Viewed<'a> {
    fn of(texts: &'a StringViewArray, row: usize) -> Self {
        Self { view: texts.views()[row], text: texts.value(row) }
    }

    /// Whether the view holds the whole text.
    fn is_inline(&self) -> bool {
        self.text.len() <= INLINE_MAX
    }
}

impl PartialEq for Viewed<'_> {
    fn eq(&self, other: &Self) -> bool {
        // The lower half is the length and the first four bytes.
        if self.is_inline() { self.view == other.view } else { self.view as u64 == other.view as u64 && self.text == other.text }
    }
}

impl Eq for Viewed<'_> {}

impl Hash for Viewed<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        if self.is_inline() { state.write_u128(self.view) } else { state.write(self.text.as_bytes()) }
    }
}

/// Spans of one value, by the value's code and their slot.
type Tallied = (u32, u32, u64);

impl<'a> Counter<'a> {
    fn new((partial, distinct): (&'a mut Partial, &'a mut Distinct), frame: &'a Frame, chosen: &Chosen, selected: &[bool], weight: Weight) -> Self {
        let (first, width) = chosen.range();
        let mut slots = vec![0; frame.len()];
        for ((&row, &at), &selected) in chosen.rows.iter().zip(&chosen.intervals).zip(selected) {
            slots[row as usize] = u32::from(selected) * width as u32 + at - first;
        }
        Self { partial, distinct, frame, rows: chosen.bits(), slots, first, width: width as u32, weight, value: Vec::new() }
    }

    fn count_intrinsics(&mut self) -> Result<()> {
        for intrinsic in INTRINSICS {
            let field = FieldRef::Intrinsic(intrinsic);
            self.count(&field, &self.frame.vector(&field)?)?;
        }
        Ok(())
    }

    fn count_span_attributes(&mut self) -> Result<()> {
        for attribute in span_attributes(self.frame.source()) {
            match attribute.only_column() {
                Some(column) => match self.frame.presence(column) {
                    Some(present) => self.count_present(&attribute.field, present)?,
                    None => {
                        let array = self.frame.column(Column::Attribute(column))?;
                        if array.null_count() < array.len() {
                            self.count(&attribute.field, &Vector::Typed(Typed::of(array)?))?;
                        }
                    }
                },
                None => self.count(&attribute.field, &self.frame.vector(&attribute.field)?)?,
            }
        }
        Ok(())
    }

    /// Counts the attributes of resources or scopes: spans by entry of their table, then the entries' attributes.
    fn count_shared(&mut self, column: Column, scope: AttributeScope, table: &Shared) -> Result<()> {
        if (0..table.len()).all(|id| table.attributes(id).is_empty()) {
            return Ok(());
        }
        let ids = self.frame.small_ints(column)?;
        let (rows, keys) = (self.valid(ids), ids.values());
        let tallied = self.tally(&rows, table.len(), |row| keys[row] as usize);
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        for of_entry in tallied.chunk_by(|a, b| a.0 == b.0) {
            for (key, value) in table.attributes(of_entry[0].0 as usize) {
                if write_value(&mut self.value, value) {
                    let name = || FieldRef::Attribute { scope, name: key.to_string() }.to_string();
                    let attribute = *numbers.entry(key).or_insert_with(|| self.distinct.number(&name()));
                    self.add_value(attribute, of_entry)?;
                }
            }
        }
        Ok(())
    }

    fn count_nested(&mut self) -> Result<()> {
        let mut fields = nested_fields(self.frame.source());
        if self.frame.has_events(&self.rows) {
            fields.extend(event_attributes(self.frame.source()));
        }
        for field in fields {
            let values = self.frame.nested_values(&field, &self.rows)?;
            if !values.is_empty() {
                let attribute = self.distinct.number(&field.to_string());
                for (row, value) in values {
                    if write_value(&mut self.value, &value) {
                        self.add_row(attribute, row as usize)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Counts the span attributes whose key has no column at all; the others were counted with their columns. Of a key that occurs twice
    /// the first value counts.
    fn count_rest(&mut self) -> Result<()> {
        let Some(messages) = self.frame.rest() else { return Ok(()) };
        let schema = self.frame.source().schema();
        let mut numbers: HashMap<&[u8], Option<usize>> = HashMap::new();
        let mut counted: Vec<usize> = Vec::new();
        for row in self.valid(messages).set_indices() {
            counted.clear();
            let mut fields = Fields::new(messages.value(row));
            while let Ok(Some((1, field))) = fields.next_field() {
                let Ok(pair) = field.bytes().and_then(KeyValue::parse) else { continue };
                let attribute = *numbers.entry(pair.key).or_insert_with(|| {
                    let key = String::from_utf8_lossy(pair.key);
                    let name = || FieldRef::Attribute { scope: AttributeScope::Span, name: key.as_ref().into() }.to_string();
                    schema.attribute_columns(&key).next().is_none().then(|| self.distinct.number(&name()))
                });
                if let (Some(attribute), Some(value)) = (attribute, pair.value)
                    && !counted.contains(&attribute)
                    && write_value(&mut self.value, &value_of_any(value))
                {
                    counted.push(attribute);
                    self.add_row(attribute, row)?;
                }
            }
        }
        Ok(())
    }

    /// Counts the values of one attribute, a row each. Spans that lack it do not count.
    fn count(&mut self, field: &FieldRef, vector: &Vector) -> Result<()> {
        if matches!(vector, Vector::Const(Value::Nil, _)) {
            return Ok(());
        }
        let attribute = self.distinct.number(&field.to_string());
        if self.distinct.is_over(attribute) {
            return self.add_total(attribute, &vector.exists());
        }
        match vector {
            Vector::Const(value, _) => {
                let tallied = self.tally(&self.rows, 1, |_| 0);
                self.add(attribute, &tallied, |out, _| write_value(out, value))
            }
            Vector::Indexed(keys, values) => self.count_keys(attribute, keys, values.len(), |out, code| write_value(out, &values[code])),
            Vector::Status(codes) => {
                let (rows, slice) = (self.valid(codes), codes.values());
                let tallied = self.tally(&rows, 3, |row| if matches!(slice[row], 0..3) { slice[row] as usize } else { 0 });
                self.add(attribute, &tallied, |out, code| write_value(out, &Value::Status(status_of(code as i32))))
            }
            Vector::Kind(codes) => {
                let (rows, slice) = (self.valid(codes), codes.values());
                let tallied = self.tally(&rows, 6, |row| if matches!(slice[row], 0..6) { slice[row] as usize } else { 0 });
                self.add(attribute, &tallied, |out, code| write_value(out, &Value::Kind(kind_of(code as i32))))
            }
            Vector::Typed(Typed::Text(Texts::Dictionary(dictionary, values))) => {
                self.count_keys(attribute, dictionary.keys(), values.len(), |out, code| write_text(out, values.value(code)))
            }
            // Null is the empty text here, the last code.
            Vector::Text(Texts::Dictionary(dictionary, values), _) => {
                let keys = dictionary.keys();
                let code = |row: usize| if keys.is_valid(row) { keys.value(row) as usize } else { values.len() };
                let tallied = self.tally(&self.rows, values.len() + 1, code);
                self.add(attribute, &tallied, |out, code| write_text(out, if code < values.len() { values.value(code) } else { "" }))
            }
            Vector::Typed(Typed::Text(texts)) => self.count_texts(attribute, &(&self.rows & &vector.exists()), texts),
            Vector::Text(texts, _) => {
                let present = Vector::Typed(Typed::Text(texts.clone())).exists();
                self.count_texts(attribute, &(&self.rows & &present), texts)?;
                self.count_empty(attribute, &(&self.rows & &!&present))
            }
            Vector::Typed(Typed::Int(values)) => self.count_ints(attribute, values),
            Vector::Typed(Typed::Bool(values)) => {
                let tallied = self.tally(&self.valid(values), 2, |row| usize::from(values.value(row)));
                self.add(attribute, &tallied, |out, code| write_value(out, &Value::Bool(code == 1)))
            }
            other => self.add_rows(attribute, &(&self.rows & &other.exists()), |out, row| write_value(out, &other.get(row))),
        }
    }

    /// Counts the spans that have an attribute whose values are not told apart any more.
    fn count_present(&mut self, field: &FieldRef, present: &BooleanBuffer) -> Result<()> {
        let attribute = self.distinct.number(&field.to_string());
        debug_assert!(self.distinct.is_over(attribute), "values that are told apart were not read");
        self.add_total(attribute, present)
    }

    /// Counts by key into a table of values; null is missing.
    fn count_keys(&mut self, attribute: usize, keys: &Int32Array, values: usize, write: impl Fn(&mut Vec<u8>, usize) -> bool) -> Result<()> {
        let slice = keys.values();
        let tallied = self.tally(&self.valid(keys), values, |row| slice[row] as usize);
        self.add(attribute, &tallied, write)
    }

    /// Counts integers: those of a small range by number, others one by one.
    fn count_ints(&mut self, attribute: usize, values: &Int64Array) -> Result<()> {
        let (rows, slice) = (self.valid(values), values.values());
        let (mut least, mut most) = (i64::MAX, i64::MIN);
        rows.set_indices().for_each(|row| (least, most) = (least.min(slice[row]), most.max(slice[row])));
        if least > most {
            return Ok(());
        }
        let range = most.abs_diff(least);
        if range >= CODES_OF_INTS_MAX {
            return self.count_values(attribute, &rows, |row| slice[row], |out, value| write_value(out, &Value::Int(value)));
        }
        let tallied = self.tally(&rows, range as usize + 1, |row| slice[row].abs_diff(least) as usize);
        self.add(attribute, &tallied, |out, code| write_value(out, &Value::Int(least + code as i64)))
    }

    /// Counts texts; `rows` have one.
    fn count_texts(&mut self, attribute: usize, rows: &BooleanBuffer, texts: &Texts) -> Result<()> {
        match texts {
            Texts::View(texts) => self.count_values(attribute, rows, |row| Viewed::of(texts, row), |out, viewed| write_text(out, viewed.text)),
            texts => self.count_values(attribute, rows, |row| texts.get(row).unwrap_or_default(), write_text),
        }
    }

    /// Counts rows whose text is the empty one.
    fn count_empty(&mut self, attribute: usize, rows: &BooleanBuffer) -> Result<()> {
        let tallied = self.tally(rows, 1, |_| 0);
        self.add(attribute, &tallied, |out, _| write_text(out, ""))
    }

    /// Counts values that have no codes yet: they get some first, so that a series is looked up once a value, and where there are too many
    /// values, once at all.
    fn count_values<V: Copy + Eq + Hash>(
        &mut self,
        attribute: usize,
        rows: &BooleanBuffer,
        value: impl Fn(usize) -> V,
        write: impl Fn(&mut Vec<u8>, V) -> bool,
    ) -> Result<()> {
        let (mut codes, mut values) = (HashMap::with_capacity(rows.count_set_bits().min(VALUES_MAX + 1)), Vec::new());
        let mut by_row = vec![0u32; self.frame.len()];
        // Spans of a trace that have the same value often lie together.
        let mut last = None;
        for row in rows.set_indices() {
            let value = value(row);
            by_row[row] = match last {
                Some((same, code)) if same == value => code,
                _ => *codes.entry(value).or_insert_with(|| {
                    values.push(value);
                    values.len() as u32 - 1
                }),
            };
            last = Some((value, by_row[row]));
            if values.len() > VALUES_MAX {
                self.distinct.attributes[attribute].series = VALUES_MAX + 1;
                return self.add_total(attribute, rows);
            }
        }
        self.partial.reserve(values.len());
        let tallied = self.tally(rows, values.len(), |row| by_row[row] as usize);
        self.add(attribute, &tallied, |out, code| write(out, values[code]))
    }

    /// Counts those of the chosen rows that are `present` for an attribute whose values are not told apart.
    fn add_total(&mut self, attribute: usize, present: &BooleanBuffer) -> Result<()> {
        let tallied = self.tally(&(&self.rows & present), 1, |_| 0);
        self.value.clear();
        self.add_value(attribute, &tallied)
    }

    /// The chosen rows in which `array` has a value.
    fn valid(&self, array: &dyn Array) -> BooleanBuffer {
        match array.nulls() {
            Some(nulls) => &self.rows & nulls.inner(),
            None => self.rows.clone(),
        }
    }

    /// How many of `rows` there are by code and slot, ordered by both. Rows with a code that is not below `codes` do not count.
    fn tally(&self, rows: &BooleanBuffer, codes: usize, code: impl Fn(usize) -> usize) -> Vec<Tallied> {
        let width = 2 * self.width as usize;
        let cells = codes.saturating_mul(width);
        let cell = |row: usize| code(row).saturating_mul(width).saturating_add(self.slots[row] as usize);
        let tallied = |cell: usize, count: u64| ((cell / width) as u32, (cell % width) as u32, count);
        if cells <= TABLE_MAX.min(TABLE_PER_ROW_MAX * rows.count_set_bits()) {
            let mut table = vec![0u32; cells];
            rows.set_indices().for_each(|row| {
                if let Some(count) = table.get_mut(cell(row)) {
                    *count += 1;
                }
            });
            return table.iter().enumerate().filter(|(_, count)| **count > 0).map(|(at, &count)| tallied(at, u64::from(count))).collect();
        }
        let mut all: Vec<usize> = rows.set_indices().map(cell).filter(|&cell| cell < cells).collect();
        all.sort_unstable();
        all.chunk_by(|a, b| a == b).map(|same| tallied(same[0], same.len() as u64)).collect()
    }

    /// Adds what was tallied; `write` writes the value of a code, and tells whether it is one.
    fn add(&mut self, attribute: usize, tallied: &[Tallied], write: impl Fn(&mut Vec<u8>, usize) -> bool) -> Result<()> {
        for of_code in tallied.chunk_by(|a, b| a.0 == b.0) {
            if write(&mut self.value, of_code[0].0 as usize) {
                self.add_value(attribute, of_code)?;
            }
        }
        Ok(())
    }

    /// Adds spans that have the value that was written last.
    fn add_value(&mut self, attribute: usize, tallied: &[Tallied]) -> Result<()> {
        for of_group in tallied.chunk_by(|a, b| a.1 / self.width == b.1 / self.width) {
            let place = self.distinct.place(self.partial, attribute, of_group[0].1 >= self.width, &self.value)?;
            let (first, width, weight) = (self.first, self.width, self.weight);
            let at = |slot: u32| (first + slot % width) as usize;
            match self.partial.cells(place) {
                Cells::FewCounts(cells) => {
                    let grown: usize = of_group.iter().map(|&(_, slot, count)| add_few(cells, at(slot) as u32, count)).sum();
                    if grown > 0 {
                        self.partial.hold(grown)?;
                    }
                }
                Cells::WeightedCounts(cells) => of_group.iter().for_each(|&(_, slot, count)| cells[at(slot)].weight += weight.times(count)),
                _ => debug_assert!(false, "cells that are no counts"),
            }
        }
        Ok(())
    }

    /// Adds rows one by one.
    fn add_rows(&mut self, attribute: usize, rows: &BooleanBuffer, write: impl Fn(&mut Vec<u8>, usize) -> bool) -> Result<()> {
        for row in rows.set_indices() {
            if write(&mut self.value, row) {
                self.add_row(attribute, row)?;
            }
        }
        Ok(())
    }

    /// Adds a span that has the value that was written last.
    fn add_row(&mut self, attribute: usize, row: usize) -> Result<()> {
        self.add_value(attribute, &[(0, self.slots[row], 1)])
    }
}

/// Writes `value` as an OTLP `AnyValue` message. False for a missing one, which does not count.
fn write_value(out: &mut Vec<u8>, value: &Value) -> bool {
    match value {
        Value::Nil => false,
        Value::String(text) => write_text(out, text),
        other => {
            *out = other.to_otlp().encode_to_vec();
            true
        }
    }
}

/// The same for a text.
fn write_text(out: &mut Vec<u8>, text: &str) -> bool {
    out.clear();
    write_bytes_field(out, 1, text.as_bytes());
    true
}
