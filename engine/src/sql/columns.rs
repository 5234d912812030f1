//! The columns of the SQL tables over spans: which there are, and their values in a frame.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use arrow::{
    array::{Array, ArrayRef, Int32Array, Int64Array, TimestampNanosecondArray, UInt32Array},
    buffer::NullBuffer,
    compute::take,
    datatypes::{DataType, Field, TimeUnit},
};
use serde::{Deserialize, Serialize};

use super::{
    arrays::{self, hex_array},
    calls::{CALLS, Calls},
    groups::{self, Groups},
    tree::{self, TIMED_TREE, TimedTree},
};
use crate::{
    error::{Error, Result},
    exec::{
        eval::{
            ColumnNeeds, Frame,
            frame::FieldLevel,
            vector::{Vector, status_of},
        },
        source::SourceRef,
    },
    spans::{
        columns::AttributeType,
        schema::{AttributeField, Column, EventColumn, TextForm},
        tables::Shared,
        value::Value,
    },
    traceql::{AttributeScope, FieldRef, Intrinsic, Status},
};

/// The type of a column in SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SqlType {
    /// Strings with few distinct values: `Dictionary(Int32, Utf8)`.
    Dictionary,
    /// Strings with many distinct values, and values of mixed types as text: `Utf8View`.
    Text,
    /// Strings of one length that all differ: `Utf8`, which is made and sent without looking at each.
    Hex,
    /// `Int64`.
    Int,
    /// `Float64`.
    Float,
    /// `Boolean`.
    Bool,
    /// `Timestamp(Nanosecond, "UTC")`.
    Time,
    /// `List(Utf8)`; of no field of TraceQL.
    TextList,
}

/// The time zone of all times.
pub const UTC: &str = "UTC";

impl SqlType {
    /// The Arrow type.
    pub fn data_type(self) -> DataType {
        match self {
            Self::Dictionary => DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)),
            Self::Text => DataType::Utf8View,
            Self::Hex => DataType::Utf8,
            Self::Int => DataType::Int64,
            Self::Float => DataType::Float64,
            Self::Bool => DataType::Boolean,
            Self::Time => DataType::Timestamp(TimeUnit::Nanosecond, Some(UTC.into())),
            Self::TextList => DataType::List(Arc::new(Field::new("item", DataType::Utf8, false))),
        }
    }

    fn of(value: &Value) -> Self {
        match value {
            Value::Bool(_) => Self::Bool,
            Value::Int(_) => Self::Int,
            Value::Float(_) => Self::Float,
            Value::String(_) => Self::Dictionary,
            _ => Self::Text,
        }
    }

    /// The type that holds values of both: numbers become doubles, anything else that differs becomes text.
    fn with(self, other: Self) -> Self {
        match (self, other) {
            (one, other) if one == other => one,
            (Self::Int | Self::Float, Self::Int | Self::Float) => Self::Float,
            _ => Self::Text,
        }
    }
}

/// Where the values of a column come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Content {
    /// A field of TraceQL; its text, where it travels.
    Field(#[serde(with = "field_text")] FieldRef),
    /// 32 hexadecimal digits.
    TraceId,
    /// 16 hexadecimal digits.
    SpanId,
    /// 16 hexadecimal digits, null for a span without parent.
    ParentSpanId,
    StartTime,
    EndTime,
    TraceStartTime,
    /// Dropped attributes and the like: a column that most spans lack, zero where it is missing.
    Count(Column),
    EventTime,
    LinkTraceId,
    LinkSpanId,
    /// The number of the spanset in its trace.
    Spanset,
    /// Nanoseconds in which no child runs.
    SelfTime,
    /// Nanoseconds on the critical path of its root.
    CriticalPath,
    /// How many spans are above it.
    Depth,
    /// Its place in the trace, from 0, parents before children, children by start.
    Ordinal,
    /// The names from the root down to it.
    Path,
    /// The `service.name` of the resource, where it is text.
    Service,
    /// Of a call, see [`Calls`].
    CallClient,
    CallConnection,
    CallFailed,
    /// Of the groups that rows stand for, see [`Groups`].
    GroupSpans,
    GroupErrors,
    GroupStart,
    GroupEnd,
    GroupServices,
}

mod field_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::traceql::{FieldRef, parse_identifier};

    pub(super) fn serialize<S: Serializer>(field: &FieldRef, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(field)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<FieldRef, D::Error> {
        parse_identifier(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// A column of a table over spans, events or links.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SqlColumn {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: SqlType,
    /// Its values.
    pub content: Content,
    /// Whether rows may lack it.
    pub nullable: bool,
}

impl SqlColumn {
    fn new(name: impl Into<String>, kind: SqlType, content: Content, nullable: bool) -> Self {
        Self { name: name.into(), kind, content, nullable }
    }

    /// The attribute `key` of `scope`, named after both.
    pub(super) fn attribute(scope: AttributeScope, key: &str, kind: SqlType) -> Self {
        let field = FieldRef::Attribute { scope, name: key.to_owned() };
        Self::new(format!("{}.{key}", scope_name(scope)), kind, Content::Field(field), true)
    }

    /// The text of an attribute of a span or, failing that, of its resource, whatever its type; `attr('key')` in SQL.
    pub fn rare(key: &str) -> Self {
        let field = FieldRef::Attribute { scope: AttributeScope::Any, name: key.to_owned() };
        Self::new(rare_name(key), SqlType::Text, Content::Field(field), true)
    }

    /// The number of the spanset that a span is in.
    pub fn spanset() -> Self {
        Self::new("spanset", SqlType::Int, Content::Spanset, false)
    }

    /// The nanoseconds that a span lies on the critical path of its root.
    pub fn critical_path() -> Self {
        Self::new("critical_path_nanos", SqlType::Int, Content::CriticalPath, false)
    }

    /// The column in Arrow.
    pub fn field(&self) -> Field {
        Field::new(&self.name, self.kind.data_type(), self.nullable)
    }

    /// What of `source` it is made of.
    pub fn add_needs(&self, needs: &mut ColumnNeeds, source: &SourceRef) {
        let columns: &[Column] = match &self.content {
            Content::Field(field) => return needs.add_field(field, source),
            Content::TraceId | Content::Spanset => &[],
            Content::SpanId => &[Column::SpanId],
            Content::ParentSpanId => &[Column::SpanId, Column::ParentSpanId, Column::ParentDistance],
            Content::StartTime => &[Column::TraceStart, Column::StartOffset],
            Content::EndTime => &[Column::TraceStart, Column::StartOffset, Column::Duration],
            Content::TraceStartTime => &[Column::TraceStart],
            Content::Count(column) => std::slice::from_ref(column),
            Content::EventTime => {
                needs.add_event(EventColumn::TimeOffset);
                &[Column::TraceStart, Column::StartOffset]
            }
            Content::LinkTraceId | Content::LinkSpanId => &[Column::Links],
            Content::SelfTime | Content::CriticalPath => &TIMED_TREE,
            Content::Ordinal | Content::GroupSpans => &[],
            Content::Depth => &[Column::ParentDistance],
            Content::Path => &[Column::ParentDistance, Column::Name],
            Content::Service | Content::GroupServices => &[Column::Service],
            Content::CallClient => &CALLS,
            Content::CallConnection => &[Column::ParentDistance, Column::Service, Column::Kind],
            Content::CallFailed => &[Column::ParentDistance, Column::Service, Column::StatusCode],
            Content::GroupErrors => &[Column::StatusCode],
            Content::GroupStart => &[Column::TraceStart, Column::StartOffset],
            Content::GroupEnd => &[Column::TraceStart, Column::StartOffset, Column::Duration],
        };
        columns.iter().filter(|&&column| source.schema().has(column)).for_each(|&column| needs.add(column));
    }
}

/// Which rows of a frame a batch has.
#[derive(Debug)]
pub struct Selection {
    /// What a row is.
    pub level: FieldLevel,
    /// The span of each row; None: all spans of the frame, one a row.
    pub spans: Option<UInt32Array>,
    /// The event or link of each row, where rows are such.
    pub entries: Option<UInt32Array>,
    /// The number of the spanset of each row.
    pub spansets: Option<Int64Array>,
    /// What rows stand for, where they stand for groups.
    pub groups: Option<Groups>,
}

impl Selection {
    /// One span a row: `spans`, or all.
    pub fn of(spans: Option<UInt32Array>) -> Self {
        Self { level: FieldLevel::Span, spans, entries: None, spansets: None, groups: None }
    }

    /// How many rows it has in a frame of `spans` spans.
    pub fn len(&self, spans: usize) -> usize {
        self.spans.as_ref().map_or(spans, Array::len)
    }

    /// The span of each row in a frame of `spans` spans.
    fn rows(&self, spans: usize) -> UInt32Array {
        self.spans.clone().unwrap_or_else(|| UInt32Array::from_iter_values(0..spans as u32))
    }

    fn groups(&self) -> Result<&Groups> {
        self.groups.as_ref().ok_or_else(|| Error::internal("a scan without groups was asked for what they add up to"))
    }

    fn of_spans(&self, array: ArrayRef) -> Result<ArrayRef> {
        Ok(match &self.spans {
            Some(rows) => take(&array, rows, None)?,
            None => array,
        })
    }

    fn of_entries(&self, array: ArrayRef) -> Result<ArrayRef> {
        Ok(match &self.entries {
            Some(rows) => take(&array, rows, None)?,
            None => array,
        })
    }
}

impl SqlColumn {
    /// The column's values in the rows `selection` of row group `group`, whose columns are loaded. Errors: `Internal`, `Data`.
    pub fn values(&self, frame: &Frame, group: usize, selection: &Selection) -> Result<ArrayRef> {
        let array: ArrayRef = match &self.content {
            Content::Field(field) => return self.field_values(field, frame, selection),
            Content::Spanset => return selection.spansets.clone().map(|numbers| Arc::new(numbers) as ArrayRef).ok_or_else(no_spansets),
            Content::EventTime => return event_times(frame, selection),
            Content::LinkTraceId | Content::LinkSpanId => return link_ids(&self.content, frame, selection),
            Content::TraceId => trace_ids(frame, group)?,
            Content::SpanId => Arc::new(hex_array(frame.ints(Column::SpanId)?.values().iter().map(|id| id.to_be_bytes()), None)?),
            Content::ParentSpanId => parent_ids(frame)?,
            Content::StartTime => times(starts(frame)?),
            Content::EndTime => {
                let durations = frame.ints(Column::Duration)?.values();
                times(starts(frame)?.into_iter().zip(durations).map(|(start, duration)| start.wrapping_add(*duration)).collect())
            }
            Content::TraceStartTime => times(frame.ints(Column::TraceStart)?.values().to_vec()),
            Content::Count(column) => counts(frame, *column)?,
            Content::Service => arrays::of_vector(&Vector::Text(frame.texts(Column::Service)?, frame.len()), self.kind)?,
            Content::SelfTime => ints(TimedTree::of(frame)?.self_nanos()),
            Content::CriticalPath => ints(TimedTree::of(frame)?.critical_path_nanos()),
            Content::Depth => ints(tree::depths(frame.small_ints(Column::ParentDistance)?.values())),
            Content::Ordinal => ints(groups::traces(frame, group)?.into_iter().flat_map(|(_, rows)| 0..rows.len() as i64).collect()),
            Content::Path => {
                let distance = frame.small_ints(Column::ParentDistance)?.values();
                return tree::paths(frame, distance, &frame.texts(Column::Name)?, &selection.rows(frame.len()));
            }
            Content::CallClient => Calls::of(frame)?.clients()?,
            Content::CallConnection => Calls::of(frame)?.connections()?,
            Content::CallFailed => Arc::new(Calls::of(frame)?.failures()?),
            Content::GroupServices => return selection.groups()?.service_lists(frame, &selection.rows(frame.len())),
            Content::GroupSpans | Content::GroupErrors | Content::GroupStart | Content::GroupEnd => self.totals(frame, selection.groups()?)?,
        };
        selection.of_spans(array)
    }

    /// What the spans of each group add up to, in the row that stands for it.
    fn totals(&self, frame: &Frame, groups: &Groups) -> Result<ArrayRef> {
        Ok(match &self.content {
            Content::GroupErrors => {
                let codes = frame.small_ints(Column::StatusCode)?.values();
                ints(groups.fold(0, |errors, row| errors + i64::from(status_of(codes[row]) == Status::Error)))
            }
            Content::GroupStart => {
                let starts = starts(frame)?;
                times(groups.fold(i64::MAX, |first, row| first.min(starts[row])))
            }
            Content::GroupEnd => {
                let (starts, durations) = (starts(frame)?, frame.ints(Column::Duration)?.values());
                times(groups.fold(i64::MIN, |last, row| last.max(starts[row].wrapping_add(durations[row].max(0)))))
            }
            _ => ints(groups.fold(0, |spans, _| spans + 1)),
        })
    }

    fn field_values(&self, field: &FieldRef, frame: &Frame, selection: &Selection) -> Result<ArrayRef> {
        let level = crate::exec::eval::frame::level_of(field);
        let vector = frame.vector(field)?;
        let array = arrays::of_vector(&vector, self.kind)?;
        if level == FieldLevel::Span { selection.of_spans(array) } else { selection.of_entries(array) }
    }
}

fn no_spansets() -> Error {
    Error::internal("a scan without spansets was asked for their numbers")
}

fn ints(values: Vec<i64>) -> ArrayRef {
    Arc::new(Int64Array::from(values))
}

fn times(nanos: Vec<i64>) -> ArrayRef {
    Arc::new(TimestampNanosecondArray::from(nanos).with_timezone(UTC))
}

fn starts(frame: &Frame) -> Result<Vec<i64>> {
    let (traces, offsets) = (frame.ints(Column::TraceStart)?.values(), frame.ints(Column::StartOffset)?.values());
    Ok(traces.iter().zip(offsets).map(|(trace, offset)| trace.wrapping_add(*offset)).collect())
}

fn parent_ids(frame: &Frame) -> Result<ArrayRef> {
    let ids = frame.parent_ids()?;
    let valid = NullBuffer::new(ids.iter().map(|&id| id != 0).collect());
    Ok(Arc::new(hex_array(ids.into_iter().map(i64::to_be_bytes), Some(valid))?))
}

fn counts(frame: &Frame, column: Column) -> Result<ArrayRef> {
    if !frame.source().schema().has(column) {
        return Ok(Arc::new(Int64Array::from(vec![0; frame.len()])));
    }
    let counts = frame.ints(column)?;
    Ok(Arc::new(Int64Array::from_iter_values(counts.iter().map(Option::unwrap_or_default))))
}

/// Trace ids as a dictionary: the rows of a trace lie together, so each id is written once. The index knows them, no column is read.
fn trace_ids(frame: &Frame, group: usize) -> Result<ArrayRef> {
    let traces = groups::traces(frame, group)?;
    let keys = traces.iter().enumerate().flat_map(|(key, (_, rows))| std::iter::repeat_n(key as i32, rows.len()));
    let ids = traces.iter().map(|(id, _)| id.to_be_bytes());
    arrays::dictionary(Int32Array::from_iter_values(keys), hex_array(ids, None)?)
}

fn event_times(frame: &Frame, selection: &Selection) -> Result<ArrayRef> {
    let offsets = arrays::of_vector(&frame.vector(&FieldRef::Intrinsic(Intrinsic::EventTimeSinceStart))?, SqlType::Int)?;
    let offsets = selection.of_entries(offsets)?;
    let starts = selection.of_spans(Arc::new(Int64Array::from(starts(frame)?)))?;
    let ints = |array: &ArrayRef| arrow::array::AsArray::as_primitive::<arrow::datatypes::Int64Type>(array).clone();
    let (offsets, starts) = (ints(&offsets), ints(&starts));
    Ok(times(starts.values().iter().zip(offsets.values()).map(|(start, offset)| start.wrapping_add(*offset)).collect()))
}

fn link_ids(content: &Content, frame: &Frame, selection: &Selection) -> Result<ArrayRef> {
    let (intrinsic, width) = match content {
        Content::LinkTraceId => (Intrinsic::LinkTraceId, 32),
        _ => (Intrinsic::LinkSpanId, 16),
    };
    let vector = frame.vector(&FieldRef::Intrinsic(intrinsic))?;
    let padded = (0..vector.len()).map(|at| match vector.get(at) {
        Value::String(text) => Some(format!("{text:0>width$}")),
        _ => None,
    });
    selection.of_entries(Arc::new(arrow::array::StringViewArray::from_iter(padded)))
}

/// How a scope is written before a key.
fn scope_name(scope: AttributeScope) -> &'static str {
    match scope {
        AttributeScope::Resource => "resource",
        AttributeScope::Event => "event",
        AttributeScope::Link => "link",
        AttributeScope::Instrumentation => "instrumentation",
        _ => "span",
    }
}

/// The name under which [`SqlColumn::rare`] is found.
pub fn rare_name(key: &str) -> String {
    format!("attr({key})")
}

/// The columns that every table of spans has, in order.
static SPAN_COLUMNS: LazyLock<Vec<SqlColumn>> = LazyLock::new(|| {
    use SqlType::{Dictionary, Hex, Int, Text, Time};
    let intrinsic = |intrinsic| Content::Field(FieldRef::Intrinsic(intrinsic));
    let column = SqlColumn::new;
    vec![
        column("trace_id", Dictionary, Content::TraceId, false),
        column("span_id", Hex, Content::SpanId, false),
        column("parent_span_id", Hex, Content::ParentSpanId, true),
        column("name", Dictionary, intrinsic(Intrinsic::Name), false),
        column("kind", Dictionary, intrinsic(Intrinsic::Kind), false),
        column("start_time", Time, Content::StartTime, false),
        column("end_time", Time, Content::EndTime, false),
        column("duration_nanos", Int, intrinsic(Intrinsic::Duration), false),
        column("status", Dictionary, intrinsic(Intrinsic::Status), false),
        column("status_message", Text, intrinsic(Intrinsic::StatusMessage), true),
        column("scope_name", Dictionary, intrinsic(Intrinsic::InstrumentationName), true),
        column("scope_version", Dictionary, intrinsic(Intrinsic::InstrumentationVersion), true),
        column("trace_start_time", Time, Content::TraceStartTime, false),
        column("trace_duration_nanos", Int, intrinsic(Intrinsic::TraceDuration), false),
        column("root_service_name", Dictionary, intrinsic(Intrinsic::RootService), true),
        column("root_name", Dictionary, intrinsic(Intrinsic::RootName), true),
        column("child_count", Int, intrinsic(Intrinsic::ChildCount), false),
        column("self_time_nanos", Int, Content::SelfTime, false),
    ]
});

/// The columns of `traces`, a row a trace.
pub fn trace_columns() -> Vec<SqlColumn> {
    let column = SqlColumn::new;
    let intrinsic = |intrinsic| Content::Field(FieldRef::Intrinsic(intrinsic));
    vec![
        column("trace_id", SqlType::Dictionary, Content::TraceId, false),
        column("root_service_name", SqlType::Dictionary, intrinsic(Intrinsic::RootService), true),
        column("root_name", SqlType::Dictionary, intrinsic(Intrinsic::RootName), true),
        column("start_time", SqlType::Time, Content::TraceStartTime, false),
        column("duration_nanos", SqlType::Int, intrinsic(Intrinsic::TraceDuration), false),
        column("span_count", SqlType::Int, Content::GroupSpans, false),
        column("error_count", SqlType::Int, Content::GroupErrors, false),
        column("services", SqlType::TextList, Content::GroupServices, false),
    ]
}

/// What `services` adds up: a row for each service of a trace.
pub fn service_columns() -> Vec<SqlColumn> {
    let column = SqlColumn::new;
    vec![
        column("service", SqlType::Dictionary, Content::Service, true),
        column("spans", SqlType::Int, Content::GroupSpans, false),
        column("errors", SqlType::Int, Content::GroupErrors, false),
        column("first_seen", SqlType::Time, Content::GroupStart, false),
        column("last_seen", SqlType::Time, Content::GroupEnd, false),
    ]
}

/// What `service_graph()` adds up: a row for each call of a service by another.
pub fn call_columns() -> Vec<SqlColumn> {
    let column = SqlColumn::new;
    let duration = Content::Field(FieldRef::Intrinsic(Intrinsic::Duration));
    vec![
        column("client", SqlType::Dictionary, Content::CallClient, false),
        column("server", SqlType::Dictionary, Content::Service, false),
        column("connection_type", SqlType::Dictionary, Content::CallConnection, false),
        column("failed", SqlType::Bool, Content::CallFailed, false),
        column("duration_nanos", SqlType::Int, duration, false),
    ]
}

/// The columns of `span_tree()`: what tells where a span stands and how long it takes.
pub fn tree_columns() -> Vec<SqlColumn> {
    let column = SqlColumn::new;
    let own = |name: &str| SPAN_COLUMNS.iter().find(|column| column.name == name).cloned();
    let mut columns: Vec<SqlColumn> = ["trace_id", "span_id", "parent_span_id"].into_iter().filter_map(own).collect();
    columns.push(column("ordinal", SqlType::Int, Content::Ordinal, false));
    columns.push(column("depth", SqlType::Int, Content::Depth, false));
    columns.push(column("path", SqlType::Text, Content::Path, false));
    columns.push(column("service", SqlType::Dictionary, Content::Service, true));
    columns.extend(["name", "kind", "status", "start_time", "duration_nanos", "self_time_nanos"].into_iter().filter_map(own));
    columns.push(SqlColumn::critical_path());
    columns
}

/// The attribute that every table of spans has a column for, whether or not any span has it.
const SERVICE_NAME: &str = "service.name";

/// Types by key, and whether strings are held as views.
type Types = BTreeMap<String, SqlType>;

fn note(types: &mut Types, key: &str, kind: SqlType) {
    types.entry(key.to_owned()).and_modify(|known| *known = known.with(kind)).or_insert(kind);
}

fn type_of_field(field: &AttributeField) -> SqlType {
    match (field.column.kind, field.form) {
        (AttributeType::String, TextForm::Dictionary) => SqlType::Dictionary,
        (AttributeType::String, TextForm::View) => SqlType::Text,
        (AttributeType::Int, _) => SqlType::Int,
        (AttributeType::Double, _) => SqlType::Float,
        (AttributeType::Bool, _) => SqlType::Bool,
    }
}

fn note_table(types: &mut Types, table: &Shared) {
    table.examples().iter().for_each(|(key, value)| note(types, key, SqlType::of(value)));
}

/// The columns of `spans` over `sources`: the fixed ones, then resource and scope attributes, then span attributes that have a column in
/// some source, each by key. Cost: once per attribute and source; nothing is read.
pub fn span_columns(sources: &[SourceRef]) -> Vec<SqlColumn> {
    let (mut span, mut resource, mut scope) = (Types::new(), Types::new(), Types::new());
    resource.insert(SERVICE_NAME.to_owned(), SqlType::Dictionary);
    for source in sources {
        source.schema().attributes.iter().for_each(|field| note(&mut span, &field.column.key, type_of_field(field)));
        note_table(&mut resource, source.resources());
        note_table(&mut scope, source.scopes());
    }
    let attributes = |scope, types: Types| types.into_iter().map(move |(key, kind)| SqlColumn::attribute(scope, &key, kind));
    let mut columns = SPAN_COLUMNS.clone();
    columns.extend(attributes(AttributeScope::Resource, resource));
    columns.extend(attributes(AttributeScope::Instrumentation, scope));
    columns.extend(attributes(AttributeScope::Span, span));
    columns
}

/// The columns of `events`: the span that has it, then the event, its attributes by key.
pub fn event_columns(sources: &[SourceRef]) -> Vec<SqlColumn> {
    let mut types = Types::new();
    for source in sources {
        source.schema().event_attributes.iter().for_each(|field| note(&mut types, &field.column.key, type_of_field(field)));
        source.rest_keys(crate::exec::source::RestScope::Event).iter().for_each(|key| note(&mut types, key, SqlType::Text));
    }
    let mut columns = owner_columns();
    columns.push(SqlColumn::new("time", SqlType::Time, Content::EventTime, false));
    columns.push(SqlColumn::new("event_name", SqlType::Dictionary, Content::Field(FieldRef::Intrinsic(Intrinsic::EventName)), false));
    let since_start = Content::Field(FieldRef::Intrinsic(Intrinsic::EventTimeSinceStart));
    columns.push(SqlColumn::new("since_start_nanos", SqlType::Int, since_start, false));
    columns.extend(types.into_iter().map(|(key, kind)| SqlColumn::attribute(AttributeScope::Event, &key, kind)));
    columns
}

/// The columns of `links`: the span that has it, then where it leads, its attributes by key as text.
pub fn link_columns(sources: &[SourceRef]) -> Vec<SqlColumn> {
    let mut columns = owner_columns();
    columns.push(SqlColumn::new("linked_trace_id", SqlType::Text, Content::LinkTraceId, false));
    columns.push(SqlColumn::new("linked_span_id", SqlType::Text, Content::LinkSpanId, false));
    let keys: std::collections::BTreeSet<Box<str>> =
        sources.iter().flat_map(|source| source.rest_keys(crate::exec::source::RestScope::Link)).collect();
    columns.extend(keys.iter().map(|key| SqlColumn::attribute(AttributeScope::Link, key, SqlType::Text)));
    columns
}

/// What events and links say of their span.
fn owner_columns() -> Vec<SqlColumn> {
    let wanted = ["trace_id", "span_id", "name", "start_time"];
    let mut columns: Vec<SqlColumn> = SPAN_COLUMNS.iter().filter(|column| wanted.contains(&column.name.as_str())).cloned().collect();
    columns.push(SqlColumn::attribute(AttributeScope::Resource, SERVICE_NAME, SqlType::Dictionary));
    columns
}
