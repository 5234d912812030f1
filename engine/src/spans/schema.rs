//! The span table: which columns a set or a block of spans has, and what each is called. See engine/FORMAT.md, "Columns".

use std::{collections::HashMap, sync::Arc};

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use super::{
    columns::{AttributeColumn, AttributeType, Values},
    set::{Rare, SpanChunk, SpanSet},
};
use crate::error::{Error, Result};

/// A column of the span table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Column {
    TraceIdHigh,
    TraceIdLow,
    SpanId,
    /// Only where the parent is not in the trace; else the parent distance leads to it.
    ParentSpanId,
    TraceStart,
    TraceDuration,
    RootService,
    RootName,
    /// Start minus trace start.
    StartOffset,
    Duration,
    ParentDistance,
    Descendants,
    Name,
    Kind,
    StatusCode,
    StatusMessage,
    TraceState,
    Resource,
    Scope,
    Service,
    Rare(RareField),
    /// Number among the schema's span attributes.
    Attribute(u32),
    /// Whether spans have that attribute, for who does not ask for its values. No column of files.
    Presence(u32),
    /// `KeyValue` fields that have no column.
    Rest,
    Events,
    Links,
}

/// The whole-number columns that most spans lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum RareField {
    Flags,
    DroppedAttributes,
    DroppedEvents,
    DroppedLinks,
    Oddities,
}

/// All rare fields with their names.
pub const RARE: [(RareField, Rare, &str); 5] = [
    (RareField::Flags, Rare::Flags, "flags"),
    (RareField::DroppedAttributes, Rare::DroppedAttributes, "dropped_attributes_count"),
    (RareField::DroppedEvents, Rare::DroppedEvents, "dropped_events_count"),
    (RareField::DroppedLinks, Rare::DroppedLinks, "dropped_links_count"),
    (RareField::Oddities, Rare::Oddities, "oddities"),
];

/// A part of the events column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum EventColumn {
    /// Event time minus span start.
    TimeOffset,
    Name,
    DroppedAttributes,
    /// Number among the schema's event attributes.
    Attribute(u32),
    Rest,
}

/// How an attribute's strings are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextForm {
    /// Few distinct values: `Dictionary(Int32, Utf8)`.
    Dictionary,
    /// Mostly distinct values: `Utf8View`.
    View,
}

/// An attribute with a column of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttributeField {
    /// Key and type.
    pub column: AttributeColumn,
    /// How strings are held; of no meaning for other types.
    pub form: TextForm,
    /// The column's name.
    pub name: String,
    /// Number of the column in the set it was made from.
    pub(super) source: u32,
}

/// The columns of a set or block. Columns without a single value are left out.
#[derive(Debug, Clone, Default)]
pub struct SpanSchema {
    /// Span attributes with columns, by key.
    pub attributes: Vec<AttributeField>,
    /// Event attributes with columns, by key.
    pub event_attributes: Vec<AttributeField>,
    /// Columns that may be left out.
    pub optional: Vec<Column>,
    /// Whether any event has dropped attributes.
    pub event_dropped: bool,
    /// Whether any event has attributes without a column.
    pub event_rest: bool,
    /// Columns of the set that go to the rest instead, by number.
    pub(super) demoted: Vec<u32>,
    /// The same for events.
    pub(super) event_demoted: Vec<u32>,
}

/// Which attributes get columns.
#[derive(Debug, Clone, Copy)]
pub struct ColumnPolicy {
    /// Share of rows, in thousandths, that must have the attribute. A column costs some 2 ns of writing a row whether or not the row
    /// has it, an entry of the rest 1.4 bytes more than a value: they break even near 0.5 % of the rows.
    pub rows_per_mille_min: u32,
    /// Most columns of span attributes (and as many of event attributes). A column costs 143 bytes of footer a row group.
    pub columns_max: usize,
}

impl ColumnPolicy {
    /// For blocks.
    pub const BLOCK: Self = Self { rows_per_mille_min: 5, columns_max: 256 };
    /// For spans in memory, where every attribute stays a column.
    pub const MEMORY: Self = Self { rows_per_mille_min: 0, columns_max: usize::MAX };
}

const FIXED: [Column; 19] = [
    Column::TraceIdHigh,
    Column::TraceIdLow,
    Column::SpanId,
    Column::ParentSpanId,
    Column::TraceStart,
    Column::TraceDuration,
    Column::RootService,
    Column::RootName,
    Column::StartOffset,
    Column::Duration,
    Column::ParentDistance,
    Column::Descendants,
    Column::Name,
    Column::Kind,
    Column::StatusCode,
    Column::Resource,
    Column::Scope,
    Column::Service,
    Column::StatusMessage,
];

/// Key of the field metadata that tells attribute columns apart from others: `<type>:<key>`.
const ATTRIBUTE_METADATA: &str = "skein.attribute";

impl SpanSchema {
    /// The columns that `set` needs under `policy`.
    pub fn of(set: &SpanSet, policy: ColumnPolicy) -> Self {
        let mut schema = Self::default();
        let rows = set.len();
        let events: usize = set.chunks.iter().map(|chunk| chunk.events.spans.len()).sum();
        let spans = AttributeCounts::of(set.attributes.len(), set.chunks.iter().map(|chunk| &chunk.attributes.columns));
        (schema.attributes, schema.demoted) = spans.choose(&set.attributes, rows, policy, "span.");
        let event_counts = AttributeCounts::of(set.event_attributes.len(), set.chunks.iter().map(|chunk| &chunk.events.attributes.columns));
        (schema.event_attributes, schema.event_demoted) = event_counts.choose(&set.event_attributes, events, policy, "");
        let any = |test: &dyn Fn(&SpanChunk) -> bool| set.chunks.iter().any(|chunk| test(chunk));
        if any(&|chunk| !chunk.trace_state.rows.is_empty()) {
            schema.optional.push(Column::TraceState);
        }
        for (field, rare, _) in RARE {
            if any(&|chunk| !chunk.rare[rare as usize].rows.is_empty()) {
                schema.optional.push(Column::Rare(field));
            }
        }
        if !schema.demoted.is_empty() || any(&|chunk| !chunk.attributes.rest.rows.is_empty()) {
            schema.optional.push(Column::Rest);
        }
        if events > 0 {
            schema.optional.push(Column::Events);
        }
        if any(&|chunk| !chunk.links.spans.is_empty()) {
            schema.optional.push(Column::Links);
        }
        schema.event_dropped = any(&|chunk| !chunk.events.dropped_attributes.rows.is_empty());
        schema.event_rest = !schema.event_demoted.is_empty() || any(&|chunk| !chunk.events.attributes.rest.rows.is_empty());
        schema
    }

    /// All columns in file order.
    pub fn columns(&self) -> Vec<Column> {
        let attributes = (0..self.attributes.len() as u32).map(Column::Attribute);
        FIXED.into_iter().chain(attributes).chain(self.optional.iter().copied()).collect()
    }

    /// Whether the table has `column`.
    pub fn has(&self, column: Column) -> bool {
        match column {
            Column::Attribute(at) | Column::Presence(at) => (at as usize) < self.attributes.len(),
            column => FIXED.contains(&column) || self.optional.contains(&column),
        }
    }

    /// All parts of the events column in file order.
    pub fn event_columns(&self) -> Vec<EventColumn> {
        let mut columns = vec![EventColumn::TimeOffset, EventColumn::Name];
        if self.event_dropped {
            columns.push(EventColumn::DroppedAttributes);
        }
        columns.extend((0..self.event_attributes.len() as u32).map(EventColumn::Attribute));
        if self.event_rest {
            columns.push(EventColumn::Rest);
        }
        columns
    }

    /// The Arrow field of `column`, with `events` as the parts of the events column.
    pub fn field(&self, column: Column, events: &[EventColumn]) -> Field {
        let dictionary = || DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        let (name, kind, nullable) = match column {
            Column::TraceIdHigh => ("trace_id_high", DataType::Int64, false),
            Column::TraceIdLow => ("trace_id_low", DataType::Int64, false),
            Column::SpanId => ("span_id", DataType::Int64, false),
            Column::ParentSpanId => ("parent_span_id", DataType::Int64, true),
            Column::TraceStart => ("trace_start_unix_nano", DataType::Int64, false),
            Column::TraceDuration => ("trace_duration_nanos", DataType::Int64, false),
            Column::RootService => ("root_service_name", dictionary(), true),
            Column::RootName => ("root_name", dictionary(), true),
            Column::StartOffset => ("start_offset_nanos", DataType::Int64, false),
            Column::Duration => ("duration_nanos", DataType::Int64, false),
            Column::ParentDistance => ("parent_distance", DataType::Int32, false),
            Column::Descendants => ("descendants", DataType::Int32, false),
            Column::Name => ("name", dictionary(), false),
            Column::Kind => ("kind", DataType::Int32, false),
            Column::StatusCode => ("status_code", DataType::Int32, false),
            Column::StatusMessage => ("status_message", DataType::Utf8, true),
            Column::TraceState => ("trace_state", DataType::Utf8, true),
            Column::Resource => ("resource_id", DataType::Int32, false),
            Column::Scope => ("scope_id", DataType::Int32, false),
            Column::Service => ("resource.service.name", dictionary(), true),
            Column::Rare(rare) => (RARE[rare as usize].2, DataType::Int64, true),
            Column::Rest => ("span_attributes_rest", DataType::Binary, true),
            Column::Links => return Field::new("links", link_list(), false),
            Column::Events => return Field::new("events", self.event_list(events), false),
            Column::Attribute(at) => return self.attributes[at as usize].field(),
            // Names of attributes begin with their scope.
            Column::Presence(at) => return Field::new(format!("has {}", self.attributes[at as usize].name), DataType::Boolean, false),
        };
        Field::new(name, kind, nullable)
    }

    /// The fields of the structs in the events column.
    pub fn event_fields(&self, events: &[EventColumn]) -> Fields {
        events
            .iter()
            .map(|part| match *part {
                EventColumn::TimeOffset => Field::new("time_offset_nanos", DataType::Int64, false),
                EventColumn::Name => Field::new("name", DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)), false),
                EventColumn::DroppedAttributes => Field::new("dropped_attributes_count", DataType::Int64, true),
                EventColumn::Attribute(at) => self.event_attributes[at as usize].field(),
                EventColumn::Rest => Field::new("attributes_rest", DataType::Binary, true),
            })
            .collect()
    }

    fn event_list(&self, events: &[EventColumn]) -> DataType {
        DataType::List(Arc::new(Field::new("item", DataType::Struct(self.event_fields(events)), false)))
    }

    /// The Arrow schema of all columns.
    pub fn arrow(&self) -> SchemaRef {
        let events = self.event_columns();
        Arc::new(Schema::new(self.columns().into_iter().map(|column| self.field(column, &events)).collect::<Vec<_>>()))
    }

    /// Reads the columns back from a block's Arrow schema. Errors: `Data` when a column that every block has is missing.
    pub fn from_arrow(arrow: &Schema) -> Result<Self> {
        let mut schema = Self::default();
        for field in arrow.fields() {
            if let Some(attribute) = AttributeField::from_field(field, schema.attributes.len()) {
                schema.attributes.push(attribute);
            } else if let Some(&(rare, _, _)) = RARE.iter().find(|(_, _, name)| name == field.name()) {
                schema.optional.push(Column::Rare(rare));
            } else {
                schema.note_optional(field);
            }
        }
        let missing = |column: &Column| arrow.field_with_name(schema.field(*column, &[]).name()).is_err();
        match FIXED.iter().find(|column| missing(column)) {
            Some(column) => Err(Error::data(format!("column {} is missing", schema.field(*column, &[]).name()))),
            None => Ok(schema),
        }
    }

    fn note_optional(&mut self, field: &Field) {
        match (field.name().as_str(), field.data_type()) {
            ("trace_state", _) => self.optional.push(Column::TraceState),
            ("span_attributes_rest", _) => self.optional.push(Column::Rest),
            ("links", _) => self.optional.push(Column::Links),
            ("events", DataType::List(item)) => {
                self.optional.push(Column::Events);
                if let DataType::Struct(fields) = item.data_type() {
                    self.note_event_fields(fields);
                }
            }
            _ => {}
        }
    }

    fn note_event_fields(&mut self, fields: &Fields) {
        for field in fields {
            if let Some(attribute) = AttributeField::from_field(field, self.event_attributes.len()) {
                self.event_attributes.push(attribute);
            }
            match field.name().as_str() {
                "dropped_attributes_count" => self.event_dropped = true,
                "attributes_rest" => self.event_rest = true,
                _ => {}
            }
        }
    }

    /// Numbers of the columns that hold `key`, one for each type.
    pub fn attribute_columns<'a>(&'a self, key: &'a str) -> impl Iterator<Item = (u32, AttributeType)> + 'a {
        columns_of(&self.attributes, key)
    }

    /// The same for events.
    pub fn event_attribute_columns<'a>(&'a self, key: &'a str) -> impl Iterator<Item = (u32, AttributeType)> + 'a {
        columns_of(&self.event_attributes, key)
    }
}

fn columns_of<'a>(fields: &'a [AttributeField], key: &'a str) -> impl Iterator<Item = (u32, AttributeType)> + 'a {
    let from = fields.partition_point(|field| *field.column.key < *key);
    fields[from..]
        .iter()
        .enumerate()
        .take_while(move |(_, field)| *field.column.key == *key)
        .map(move |(at, field)| ((from + at) as u32, field.column.kind))
}

fn link_list() -> DataType {
    DataType::List(Arc::new(Field::new("item", DataType::Struct(link_fields()), false)))
}

/// The fields of the structs in the links column.
pub fn link_fields() -> Fields {
    vec![
        Field::new("trace_id_high", DataType::Int64, false),
        Field::new("trace_id_low", DataType::Int64, false),
        Field::new("span_id", DataType::Int64, false),
        Field::new("other", DataType::Binary, false),
    ]
    .into()
}

impl AttributeField {
    /// The column's Arrow type.
    pub fn data_type(&self) -> DataType {
        match (self.column.kind, self.form) {
            (AttributeType::String, TextForm::Dictionary) => DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)),
            (AttributeType::String, TextForm::View) => DataType::Utf8View,
            (AttributeType::Int, _) => DataType::Int64,
            (AttributeType::Double, _) => DataType::Float64,
            (AttributeType::Bool, _) => DataType::Boolean,
        }
    }

    fn field(&self) -> Field {
        let metadata = HashMap::from([(ATTRIBUTE_METADATA.to_owned(), format!("{}:{}", type_name(self.column.kind), self.column.key))]);
        Field::new(&self.name, self.data_type(), true).with_metadata(metadata)
    }

    fn from_field(field: &Field, source: usize) -> Option<Self> {
        let (kind, key) = field.metadata().get(ATTRIBUTE_METADATA)?.split_once(':')?;
        let kind = TYPES.into_iter().find(|&candidate| type_name(candidate) == kind)?;
        let form = if *field.data_type() == DataType::Utf8View { TextForm::View } else { TextForm::Dictionary };
        Some(Self { column: AttributeColumn { key: key.into(), kind }, form, name: field.name().clone(), source: source as u32 })
    }
}

const TYPES: [AttributeType; 4] = [AttributeType::String, AttributeType::Int, AttributeType::Double, AttributeType::Bool];

/// The type's name in files.
pub fn type_name(kind: AttributeType) -> &'static str {
    match kind {
        AttributeType::String => "string",
        AttributeType::Int => "int",
        AttributeType::Double => "double",
        AttributeType::Bool => "bool",
    }
}

/// How often each column of a set occurs.
struct AttributeCounts {
    values: Vec<usize>,
    coded: Vec<bool>,
}

impl AttributeCounts {
    fn of<'a>(columns: usize, chunks: impl Iterator<Item = &'a Vec<super::columns::SparseColumn>>) -> Self {
        let mut counts = Self { values: vec![0; columns], coded: vec![true; columns] };
        for column in chunks.flatten() {
            counts.values[column.id as usize] += column.rows.len();
            counts.coded[column.id as usize] &= !matches!(column.values, Values::Text { .. });
        }
        counts
    }

    /// The columns that are kept, by key, the more frequent type of a key first; and those that are not.
    fn choose<T>(&self, columns: &[(AttributeColumn, T)], rows: usize, policy: ColumnPolicy, prefix: &str) -> (Vec<AttributeField>, Vec<u32>) {
        let enough = |id: usize| self.values[id] > 0 && self.values[id] * 1000 >= rows * policy.rows_per_mille_min as usize;
        let mut kept: Vec<usize> = (0..columns.len()).filter(|&id| enough(id)).collect();
        kept.sort_by_key(|&id| std::cmp::Reverse(self.values[id]));
        kept.truncate(policy.columns_max);
        let demoted = (0..columns.len()).filter(|id| self.values[*id] > 0 && !kept.contains(id)).map(|id| id as u32).collect();
        kept.sort_by(|&a, &b| columns[a].0.key.cmp(&columns[b].0.key).then(self.values[b].cmp(&self.values[a])));
        let mut fields: Vec<AttributeField> = Vec::with_capacity(kept.len());
        let mut names = std::collections::HashSet::new();
        for id in kept {
            let column = columns[id].0.clone();
            let form = if self.coded[id] { TextForm::Dictionary } else { TextForm::View };
            let mut name = format!("{prefix}{}", column.key);
            let taken = |name: &str, names: &std::collections::HashSet<String>| {
                names.contains(name) || matches!(name, "time_offset_nanos" | "name" | "dropped_attributes_count" | "attributes_rest")
            };
            if taken(&name, &names) {
                name = format!("{name}#{}", type_name(column.kind));
            }
            while taken(&name, &names) {
                name.push('#');
            }
            names.insert(name.clone());
            fields.push(AttributeField { column, form, name, source: id as u32 });
        }
        (fields, demoted)
    }
}
