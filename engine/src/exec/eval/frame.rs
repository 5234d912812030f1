//! Frames: the loaded columns of spans, mostly of whole traces, and the fields of TraceQL in them.

use std::{cell::RefCell, collections::HashMap, ops::Range, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, BinaryArray, Int32Array, Int64Array, ListArray, StringArray, UInt32Array},
    buffer::BooleanBuffer,
    compute::take,
    datatypes::{Int32Type, Int64Type},
    record_batch::RecordBatch,
};
use serde::{Deserialize, Serialize};

use super::{value::Matcher, vector::Vector};
use crate::{
    error::{Error, Result},
    exec::{
        memory::{Pool, Reservation, array_bytes},
        source::{RestScope, SourceRef},
        stats::{Pruned, ScanMetrics},
    },
    spans::{
        SpanId, TraceId,
        otlp::entries,
        read::{Texts, Typed, list_items},
        schema::{Column, EventColumn},
        value::{Value, value_of_any},
        wire::{Fields, KeyValue},
    },
    traceql::{AttributeScope, FieldRef, Intrinsic},
};

/// Columns that an expression reads from one source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ColumnNeeds {
    /// Columns of spans.
    pub columns: Vec<Column>,
    /// Parts of the events column.
    pub events: Vec<EventColumn>,
}

impl ColumnNeeds {
    /// Adds a column.
    pub fn add(&mut self, column: Column) {
        if !self.columns.contains(&column) {
            self.columns.push(column);
        }
    }

    /// Adds a part of the events column.
    pub fn add_event(&mut self, part: EventColumn) {
        if !self.events.contains(&part) {
            self.events.push(part);
        }
    }

    /// Adds what `field` reads from `source`.
    pub fn add_field(&mut self, field: &FieldRef, source: &SourceRef) {
        match field {
            FieldRef::Attribute { scope, name } => self.add_attribute(*scope, name, source),
            FieldRef::Intrinsic(intrinsic) => self.add_intrinsic(*intrinsic, source),
        }
    }

    fn add_attribute(&mut self, scope: AttributeScope, key: &str, source: &SourceRef) {
        let (schema, scope) = (source.schema(), scope.of_own_span());
        if matches!(scope, AttributeScope::Any | AttributeScope::Span) {
            schema.attribute_columns(key).for_each(|(at, _)| self.add(Column::Attribute(at)));
            if schema.has(Column::Rest) && source.rest_may_have(RestScope::Span, key) {
                self.add(Column::Rest);
            }
        }
        match scope {
            AttributeScope::Any | AttributeScope::Resource => self.add(resource_column(key, source)),
            AttributeScope::Instrumentation => self.add(Column::Scope),
            AttributeScope::Event => {
                schema.event_attribute_columns(key).for_each(|(at, _)| self.add_event(EventColumn::Attribute(at)));
                if schema.event_rest && source.rest_may_have(RestScope::Event, key) {
                    self.add_event(EventColumn::Rest);
                }
                // Which events there are has to be known even if none has the key: each of them lacks it.
                if self.events.is_empty() && schema.has(Column::Events) {
                    self.add_event(EventColumn::TimeOffset);
                }
            }
            AttributeScope::Link => self.add(Column::Links),
            _ => {}
        }
    }

    fn add_intrinsic(&mut self, intrinsic: Intrinsic, source: &SourceRef) {
        let columns: &[Column] = match intrinsic {
            Intrinsic::Name => &[Column::Name],
            Intrinsic::Duration => &[Column::Duration],
            Intrinsic::Status => &[Column::StatusCode],
            Intrinsic::StatusMessage => &[Column::StatusMessage],
            Intrinsic::Kind => &[Column::Kind],
            Intrinsic::SpanId => &[Column::SpanId],
            Intrinsic::ParentId => &[Column::SpanId, Column::ParentSpanId, Column::ParentDistance],
            Intrinsic::ChildCount => &[Column::ParentDistance],
            Intrinsic::TraceId => &[Column::TraceIdHigh, Column::TraceIdLow],
            Intrinsic::TraceDuration => &[Column::TraceDuration],
            Intrinsic::RootName => &[Column::RootName],
            Intrinsic::RootService => &[Column::RootService],
            Intrinsic::LinkTraceId | Intrinsic::LinkSpanId => &[Column::Links],
            Intrinsic::InstrumentationName | Intrinsic::InstrumentationVersion => &[Column::Scope],
            Intrinsic::NestedSetLeft | Intrinsic::NestedSetRight | Intrinsic::NestedSetParent => {
                &[Column::ParentDistance, Column::Descendants, Column::ParentSpanId]
            }
            Intrinsic::EventName | Intrinsic::EventTimeSinceStart | Intrinsic::Parent => &[],
        };
        columns.iter().for_each(|&column| self.add(column));
        if source.schema().has(Column::Events) {
            match intrinsic {
                Intrinsic::EventName => self.add_event(EventColumn::Name),
                Intrinsic::EventTimeSinceStart => self.add_event(EventColumn::TimeOffset),
                _ => {}
            }
        }
    }
}

/// What a field is a field of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FieldLevel {
    /// The span, its resource, scope or trace.
    Span,
    /// An event of the span.
    Event,
    /// A link of the span.
    Link,
}

/// Where the values of `field` lie.
pub fn level_of(field: &FieldRef) -> FieldLevel {
    match field {
        FieldRef::Attribute { scope: AttributeScope::Event, .. } => FieldLevel::Event,
        FieldRef::Intrinsic(Intrinsic::EventName | Intrinsic::EventTimeSinceStart) => FieldLevel::Event,
        FieldRef::Attribute { scope: AttributeScope::Link, .. } => FieldLevel::Link,
        FieldRef::Intrinsic(Intrinsic::LinkTraceId | Intrinsic::LinkSpanId) => FieldLevel::Link,
        _ => FieldLevel::Span,
    }
}

/// The column that tells resource attribute `key`: the services' own, which is smaller than that of resources and has the names as they are,
/// if all names of services are texts.
fn resource_column(key: &str, source: &SourceRef) -> Column {
    if key == "service.name" && source.resources().only_texts(key) { Column::Service } else { Column::Resource }
}

/// Bytes a row that evaluating takes beside columns and vectors: bits of filters, and lists of rows under way.
const WORKING_BYTES: usize = 8;

/// Bytes of an id as text with its place, the largest of what [`made_as_array`] tells of.
const MADE_BYTES: usize = 36;

/// Whether the vector of `field` is no column, but an array made of columns.
fn made_as_array(field: &FieldRef) -> bool {
    use Intrinsic::{ChildCount, LinkSpanId, LinkTraceId, NestedSetLeft, NestedSetParent, NestedSetRight, ParentId, SpanId, TraceId};
    let made = [SpanId, ParentId, TraceId, LinkTraceId, LinkSpanId, ChildCount, NestedSetLeft, NestedSetRight, NestedSetParent];
    matches!(field, FieldRef::Intrinsic(intrinsic) if made.contains(intrinsic))
}

/// Columns of spans from one row group, of whole traces but for [`Frame::of_rows`]. Vectors are made once for each field. All of it is reserved in a pool.
#[derive(Debug)]
pub struct Frame {
    source: SourceRef,
    group: usize,
    selection: Option<Vec<Range<usize>>>,
    rows: usize,
    columns: HashMap<Column, ArrayRef>,
    events: HashMap<EventColumn, ArrayRef>,
    event_list: Option<ListArray>,
    vectors: RefCell<HashMap<FieldRef, Vector>>,
    /// A field that depends on rows that are not in the frame.
    taken_over: Option<(FieldRef, Vector)>,
    ruled_out: Option<Pruned>,
    matchers: RefCell<HashMap<String, Arc<Matcher>>>,
    memory: Reservation,
}

impl Frame {
    /// A frame of row group `group`, or of those of its rows in `selection`; nothing is loaded yet. Its memory is that of `pool`.
    pub fn new(source: SourceRef, group: usize, selection: Option<Vec<Range<usize>>>, pool: &Pool) -> Self {
        let rows = match &selection {
            Some(ranges) => ranges.iter().map(ExactSizeIterator::len).sum(),
            None => source.row_groups()[group].rows as usize,
        };
        Self::unloaded(source, group, selection, rows, Reservation::new("columns of a row group", pool))
    }

    fn unloaded(source: SourceRef, group: usize, selection: Option<Vec<Range<usize>>>, rows: usize, memory: Reservation) -> Self {
        let (columns, events) = (HashMap::new(), HashMap::new());
        let (vectors, matchers) = (RefCell::default(), RefCell::default());
        Self { source, group, selection, rows, columns, events, event_list: None, vectors, taken_over: None, matchers, ruled_out: None, memory }
    }

    /// A frame of `rows` of this one, which has all of its row group; they ascend, and are of traces that need not be whole. `field` is taken
    /// over, since it depends on the other spans of a trace, and so are those of `columns` that are loaded. Memory is that of the same pool.
    /// Errors: as [`Frame::vector`].
    pub fn of_rows(&self, rows: &[u32], field: &FieldRef, columns: &[Column]) -> Result<Self> {
        debug_assert!(self.selection.is_none(), "rows of a part of a row group");
        let indices = UInt32Array::from(rows.to_vec());
        let vector = self.vector(field)?.take(&indices)?;
        let selection = rows.chunk_by(|a, b| a + 1 == *b).map(|run| run[0] as usize..run[0] as usize + run.len()).collect();
        let memory = self.memory.another();
        memory.grow(rows.len() * MADE_BYTES)?;
        let frame = Self::unloaded(self.source.clone(), self.group, Some(selection), rows.len(), memory);
        let loaded = columns.iter().filter_map(|column| Some((*column, self.columns.get(column)?)));
        let columns = loaded.map(|(column, array)| Ok((column, take(array, &indices, None)?))).collect::<Result<HashMap<_, _>>>()?;
        frame.hold(rows.len() * WORKING_BYTES + columns.values().map(|array| array_bytes(array)).sum::<usize>())?;
        Ok(Self { taken_over: Some((field.clone(), vector)), columns, ..frame })
    }

    /// A pattern, compiled once for the frame. Errors: `Invalid`.
    pub fn matcher(&self, pattern: &str) -> Result<Arc<Matcher>> {
        if let Some(matcher) = self.matchers.borrow().get(pattern) {
            return Ok(matcher.clone());
        }
        let matcher = Arc::new(Matcher::new(pattern)?);
        self.matchers.borrow_mut().insert(pattern.to_owned(), matcher.clone());
        Ok(matcher)
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Where the rows come from.
    pub fn source(&self) -> &SourceRef {
        &self.source
    }

    /// The first row of the row group, among all rows of the source.
    pub fn first_row(&self) -> usize {
        self.source.row_groups()[self.group].first_row as usize
    }

    /// Reserves memory for what is made of the frame, until the frame is dropped. Errors: `Exhausted`.
    pub fn hold(&self, bytes: usize) -> Result<()> {
        self.memory.grow(bytes)
    }

    /// Loads what of `needs` is not loaded yet, in one request. Errors: as the source's, `Exhausted`.
    pub async fn load(&mut self, needs: &ColumnNeeds, metrics: &ScanMetrics) -> Result<()> {
        let mut columns: Vec<Column> = needs.columns.iter().copied().filter(|column| !self.columns.contains_key(column)).collect();
        columns.retain(|&column| self.source.schema().has(column));
        let events: Vec<EventColumn> = needs.events.iter().copied().filter(|part| !self.events.contains_key(part)).collect();
        if !events.is_empty() {
            columns.push(Column::Events);
        }
        if columns.is_empty() {
            return Ok(());
        }
        if self.columns.is_empty() && self.events.is_empty() {
            self.hold(self.rows * WORKING_BYTES)?;
        }
        let batch = self.memory.read(&self.source, self.group, (&columns, &events), self.selection.as_deref(), metrics).await?;
        if batch.num_rows() != self.rows {
            return Err(Error::data(format!("a row group has {} rows where its index says {}", batch.num_rows(), self.rows)));
        }
        for column in columns {
            let name = self.source.schema().field(column, &events).name().clone();
            let array = batch.column_by_name(&name).ok_or_else(|| Error::data(format!("column {name} was not read")))?;
            if column == Column::Events { self.keep_events(array, &events)? } else { drop(self.columns.insert(column, array.clone())) }
        }
        self.vectors.borrow_mut().clear();
        Ok(())
    }

    fn keep_events(&mut self, array: &ArrayRef, parts: &[EventColumn]) -> Result<()> {
        let list = array.as_list_opt::<i32>().ok_or_else(|| Error::data("events are not a list"))?;
        let items = list_items(list)?;
        for (&part, field) in parts.iter().zip(self.source.schema().event_fields(parts).iter()) {
            let values = items.column_by_name(field.name()).ok_or_else(|| Error::data("a part of the events was not read"))?;
            self.events.insert(part, values.clone());
        }
        self.event_list = Some(list.clone());
        Ok(())
    }

    /// Notes why the row group cannot match.
    pub fn rule_out(&mut self, why: Pruned) {
        self.ruled_out.get_or_insert(why);
    }

    /// Why nothing of the row group was read; None if something was.
    pub fn pruned(&self) -> Option<Pruned> {
        (self.columns.is_empty() && self.events.is_empty()).then(|| self.ruled_out.unwrap_or(Pruned::Columns))
    }

    /// Whether a column is loaded.
    pub fn has(&self, column: Column) -> bool {
        self.columns.contains_key(&column)
    }

    /// A loaded column. Errors: `Internal` when it is not loaded.
    pub fn column(&self, column: Column) -> Result<&ArrayRef> {
        self.columns.get(&column).ok_or_else(|| Error::internal(format!("column {column:?} is not loaded")))
    }

    /// Which rows have span attribute `at`, where that is loaded instead of its values.
    pub fn presence(&self, at: u32) -> Option<&BooleanBuffer> {
        Some(self.columns.get(&Column::Presence(at))?.as_boolean_opt()?.values())
    }

    /// A loaded column of 64-bit integers. Errors: `Internal`, `Data`.
    pub fn ints(&self, column: Column) -> Result<&Int64Array> {
        self.column(column)?.as_primitive_opt::<Int64Type>().ok_or_else(|| Error::data(format!("column {column:?} has a wrong type")))
    }

    /// A loaded column of 32-bit integers. Errors: `Internal`, `Data`.
    pub fn small_ints(&self, column: Column) -> Result<&Int32Array> {
        self.column(column)?.as_primitive_opt::<Int32Type>().ok_or_else(|| Error::data(format!("column {column:?} has a wrong type")))
    }

    /// A loaded column of strings. Errors: `Internal`, `Data`.
    pub fn texts(&self, column: Column) -> Result<Texts> {
        Texts::of(self.column(column)?)
    }

    /// All values of `field`: a row each, for fields of events and links an entry each. Errors: `Internal` when its columns are not
    /// loaded, `Data`, `Exhausted`.
    pub fn vector(&self, field: &FieldRef) -> Result<Vector> {
        if let Some((_, vector)) = self.taken_over.as_ref().filter(|(taken_over, _)| taken_over == field) {
            return Ok(vector.clone());
        }
        if let Some(vector) = self.vectors.borrow().get(field) {
            return Ok(vector.clone());
        }
        let vector = match field {
            FieldRef::Attribute { scope, name } => self.attribute(*scope, name)?,
            FieldRef::Intrinsic(intrinsic) => self.intrinsic(*intrinsic)?,
        };
        self.hold(if made_as_array(field) { self.rows * MADE_BYTES } else { vector.made_bytes() })?;
        self.vectors.borrow_mut().insert(field.clone(), vector.clone());
        Ok(vector)
    }

    /// Values of `field`, one a row. Of the events or links of a span the last that has a value counts.
    pub fn vector_of_spans(&self, field: &FieldRef) -> Result<Vector> {
        if level_of(field) == FieldLevel::Span {
            return self.vector(field);
        }
        let found = self.nested_values(field, &BooleanBuffer::new_set(self.rows))?;
        if found.is_empty() {
            return Ok(Vector::Const(Value::Nil, self.rows));
        }
        let mut values = vec![Value::Nil; self.rows];
        found.into_iter().for_each(|(row, value)| values[row as usize] = value);
        Ok(Vector::Values(values.into()))
    }

    /// Whether a row of `rows` has an event, as far as events are loaded.
    pub fn has_events(&self, rows: &BooleanBuffer) -> bool {
        self.event_list.as_ref().is_some_and(|list| rows.set_indices().any(|row| !entries(list, row).is_empty()))
    }

    /// The rows of `rows` that have a value of `field`, which is one of events or links, with it: of several the last. Rows ascend. Errors:
    /// as [`Frame::vector`].
    pub fn nested_values(&self, field: &FieldRef, rows: &BooleanBuffer) -> Result<Vec<(u32, Value)>> {
        let vector = self.vector(field)?;
        let list = match level_of(field) {
            FieldLevel::Span => return Err(Error::internal(format!("{field} is not a field of events or links"))),
            FieldLevel::Event => self.event_list.clone(),
            FieldLevel::Link => self.links()?.map(|(list, _)| list),
        };
        let Some(list) = list.filter(|list| !list.values().is_empty() && !matches!(vector, Vector::Const(Value::Nil, _))) else {
            return Ok(Vec::new());
        };
        let last = |row: usize| entries(&list, row).rev().map(|at| vector.get(at)).find(|value| *value != Value::Nil);
        Ok(rows.set_indices().filter_map(|row| Some((row as u32, last(row)?))).collect())
    }

    fn attribute(&self, scope: AttributeScope, key: &str) -> Result<Vector> {
        match scope {
            AttributeScope::Span | AttributeScope::ParentSpan => self.span_attribute(key),
            AttributeScope::Resource | AttributeScope::ParentResource => self.resource_attribute(key),
            AttributeScope::Any | AttributeScope::Parent => Ok(first_of(vec![self.span_attribute(key)?, self.resource_attribute(key)?], self.rows)),
            AttributeScope::Instrumentation => self.indexed(Column::Scope, self.source.scopes().values_of(key)),
            AttributeScope::Event => self.event_attribute(key),
            AttributeScope::Link => self.link_attribute(key),
        }
    }

    fn span_attribute(&self, key: &str) -> Result<Vector> {
        let mut vectors = Vec::new();
        for (at, _) in self.source.schema().attribute_columns(key) {
            vectors.push(Vector::Typed(Typed::of(self.column(Column::Attribute(at))?)?));
        }
        if self.source.rest_may_have(RestScope::Span, key)
            && let Some(rest) = self.columns.get(&Column::Rest)
        {
            vectors.extend(rest_values(rest, key, 1));
        }
        Ok(first_of(vectors, self.rows))
    }

    fn resource_attribute(&self, key: &str) -> Result<Vector> {
        match resource_column(key, &self.source) {
            Column::Service => Ok(Vector::Typed(Typed::Text(self.texts(Column::Service)?))),
            column => self.indexed(column, self.source.resources().values_of(key)),
        }
    }

    fn indexed(&self, keys: Column, values: Vec<Value>) -> Result<Vector> {
        if values.iter().all(|value| *value == Value::Nil) {
            return Ok(Vector::Const(Value::Nil, self.rows));
        }
        Ok(Vector::Indexed(self.small_ints(keys)?.clone(), values.into()))
    }

    /// The span attributes without a column, as `KeyValue` messages in field 1; None when they are not loaded.
    pub fn rest(&self) -> Option<&BinaryArray> {
        self.columns.get(&Column::Rest)?.as_binary_opt()
    }

    fn event_attribute(&self, key: &str) -> Result<Vector> {
        let mut vectors = Vec::new();
        for (at, _) in self.source.schema().event_attribute_columns(key) {
            vectors.push(Vector::Typed(Typed::of(self.event_part(EventColumn::Attribute(at))?)?));
        }
        if let Some(rest) = self.events.get(&EventColumn::Rest) {
            vectors.extend(rest_values(rest, key, 1));
        }
        Ok(first_of(vectors, self.event_count()))
    }

    fn event_part(&self, part: EventColumn) -> Result<&ArrayRef> {
        self.events.get(&part).ok_or_else(|| Error::internal(format!("event part {part:?} is not loaded")))
    }

    fn event_count(&self) -> usize {
        self.event_list.as_ref().map_or(0, |list| list.values().len())
    }

    fn links(&self) -> Result<Option<(ListArray, RecordBatch)>> {
        let Some(array) = self.columns.get(&Column::Links) else { return Ok(None) };
        let list = array.as_list_opt::<i32>().ok_or_else(|| Error::data("links are not a list"))?;
        Ok(Some((list.clone(), list_items(list)?)))
    }

    fn link_attribute(&self, key: &str) -> Result<Vector> {
        let Some((_, items)) = self.links()? else { return Ok(Vector::Const(Value::Nil, 0)) };
        let other = items.column_by_name("other").ok_or_else(|| Error::data("links lack their other fields"))?;
        Ok(first_of(rest_values(other, key, 4).into_iter().collect(), items.num_rows()))
    }

    fn intrinsic(&self, intrinsic: Intrinsic) -> Result<Vector> {
        Ok(match intrinsic {
            Intrinsic::Name => Vector::Text(self.texts(Column::Name)?, self.rows),
            Intrinsic::StatusMessage => Vector::Text(self.texts(Column::StatusMessage)?, self.rows),
            Intrinsic::RootName => Vector::Text(self.texts(Column::RootName)?, self.rows),
            Intrinsic::RootService => Vector::Text(self.texts(Column::RootService)?, self.rows),
            Intrinsic::Duration => Vector::Duration(self.ints(Column::Duration)?.clone()),
            Intrinsic::TraceDuration => Vector::Duration(self.ints(Column::TraceDuration)?.clone()),
            Intrinsic::Status => Vector::Status(self.small_ints(Column::StatusCode)?.clone()),
            Intrinsic::Kind => Vector::Kind(self.small_ints(Column::Kind)?.clone()),
            Intrinsic::SpanId => texts_of(self.ints(Column::SpanId)?.values().iter().map(|&id| SpanId::from_i64(id).to_string())),
            Intrinsic::ParentId => texts_of(self.parent_ids()?.into_iter().map(|id| SpanId::from_i64(id).to_string())),
            Intrinsic::TraceId => {
                let (high, low) = (self.ints(Column::TraceIdHigh)?, self.ints(Column::TraceIdLow)?);
                texts_of(high.values().iter().zip(low.values()).map(|(&high, &low)| TraceId::from_halves(high, low).to_short_hex()))
            }
            Intrinsic::ChildCount => self.child_counts()?,
            Intrinsic::NestedSetLeft | Intrinsic::NestedSetRight | Intrinsic::NestedSetParent => self.nested_set(intrinsic)?,
            Intrinsic::InstrumentationName => self.indexed(Column::Scope, self.source.scopes().scope_names())?,
            Intrinsic::InstrumentationVersion => self.indexed(Column::Scope, self.source.scopes().scope_versions())?,
            Intrinsic::EventName => match self.events.get(&EventColumn::Name) {
                Some(names) => Vector::Text(Texts::of(names)?, names.len()),
                None => Vector::Const(Value::Nil, 0),
            },
            Intrinsic::EventTimeSinceStart => match self.events.get(&EventColumn::TimeOffset) {
                Some(offsets) => Vector::Duration(offsets.as_primitive::<Int64Type>().clone()),
                None => Vector::Const(Value::Nil, 0),
            },
            Intrinsic::LinkTraceId | Intrinsic::LinkSpanId => self.link_ids(intrinsic)?,
            Intrinsic::Parent => Vector::Const(Value::Nil, self.rows),
        })
    }

    /// What looks at other spans of a trace needs all of them. Errors: `Internal`.
    fn check_whole(&self) -> Result<()> {
        match self.taken_over {
            None => Ok(()),
            Some(_) => Err(Error::internal("a field of whole traces was asked of some of their spans")),
        }
    }

    /// The id of each span's parent as it was sent, 0 for none. Errors: as [`Frame::column`].
    pub fn parent_ids(&self) -> Result<Vec<i64>> {
        self.check_whole()?;
        let (ids, absent, distance) = (self.ints(Column::SpanId)?, self.ints(Column::ParentSpanId)?, self.small_ints(Column::ParentDistance)?);
        let parent = |row: usize| match distance.value(row) {
            distance if distance > 0 => ids.value(row - distance as usize),
            _ if absent.is_valid(row) => absent.value(row),
            _ => 0,
        };
        Ok((0..self.rows).map(parent).collect())
    }

    fn child_counts(&self) -> Result<Vector> {
        self.check_whole()?;
        let mut counts = vec![0i64; self.rows];
        for (row, &distance) in self.small_ints(Column::ParentDistance)?.values().iter().enumerate() {
            if distance > 0 {
                counts[row - distance as usize] += 1;
            }
        }
        Ok(Vector::Typed(Typed::Int(counts.into())))
    }

    /// Nested-set numbers from pre-order: in a trace, the row at position `p` and depth `d` has left `2p + 1 - d`. Tops are roots
    /// (parent -1) and spans whose parent is absent (parent 0).
    fn nested_set(&self, intrinsic: Intrinsic) -> Result<Vector> {
        self.check_whole()?;
        let (distance, below) = (self.small_ints(Column::ParentDistance)?.values(), self.small_ints(Column::Descendants)?.values());
        let absent = self.ints(Column::ParentSpanId)?;
        let (mut left, mut depth, mut out) = (vec![0i64; self.rows], vec![0i64; self.rows], vec![0i64; self.rows]);
        let mut first = 0;
        for row in 0..self.rows {
            if distance[row] < 0 {
                first = row;
            }
            let parent = (distance[row] > 0).then(|| row - distance[row] as usize);
            depth[row] = parent.map_or(0, |parent| depth[parent] + 1);
            left[row] = 2 * (row - first) as i64 + 1 - depth[row];
            out[row] = match intrinsic {
                Intrinsic::NestedSetLeft => left[row],
                Intrinsic::NestedSetRight => left[row] + 2 * i64::from(below[row]) + 1,
                _ => parent.map_or(if absent.is_valid(row) { 0 } else { -1 }, |parent| left[parent]),
            };
        }
        Ok(Vector::Typed(Typed::Int(out.into())))
    }

    fn link_ids(&self, intrinsic: Intrinsic) -> Result<Vector> {
        let Some((_, items)) = self.links()? else { return Ok(Vector::Const(Value::Nil, 0)) };
        let ints = |name| crate::spans::read::ints(&items, name);
        if intrinsic == Intrinsic::LinkSpanId {
            return Ok(texts_of(ints("span_id")?.values().iter().map(|&id| SpanId::from_i64(id).to_string())));
        }
        let (high, low) = (ints("trace_id_high")?, ints("trace_id_low")?);
        Ok(texts_of(high.values().iter().zip(low.values()).map(|(&high, &low)| TraceId::from_halves(high, low).to_short_hex())))
    }

    /// Every way to choose one event or none, and one link or none, for the spans in `active`; events and links are chosen from only
    /// if asked for. Rows ascend.
    pub fn bindings(&self, active: &BooleanBuffer, events: bool, links: bool) -> Result<Bindings> {
        let link_list = if links { self.links()?.map(|(list, _)| list) } else { None };
        let event_list = if events { self.event_list.as_ref() } else { None };
        let (mut spans, mut chosen_events, mut chosen_links) = (Vec::new(), Vec::new(), Vec::new());
        for row in active.set_indices() {
            let choices = |range: Range<usize>| range.map(|at| Some(at as u32)).chain([None]);
            for event in choices(entries_of(event_list, row)) {
                for link in choices(entries_of(link_list.as_ref(), row)) {
                    spans.push(row as u32);
                    chosen_events.push(event);
                    chosen_links.push(link);
                }
            }
        }
        Ok(Bindings { spans: spans.into(), events: chosen_events.into(), links: chosen_links.into() })
    }
}

/// Spans, each with one of its events or none and one of its links or none.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Bindings {
    pub spans: UInt32Array,
    pub events: UInt32Array,
    pub links: UInt32Array,
}

/// The entries of a row, none without a list.
fn entries_of(list: Option<&ListArray>, row: usize) -> Range<usize> {
    list.map_or(0..0, |list| entries(list, row))
}

fn first_of(mut vectors: Vec<Vector>, length: usize) -> Vector {
    vectors.retain(|vector| !matches!(vector, Vector::Const(Value::Nil, _)));
    match vectors.len() {
        0 => Vector::Const(Value::Nil, length),
        1 => vectors.swap_remove(0),
        _ => Vector::First(vectors),
    }
}

fn texts_of(texts: impl Iterator<Item = String>) -> Vector {
    Vector::Typed(Typed::Text(Texts::Plain(StringArray::from_iter_values(texts))))
}

/// The values of `key` among the `KeyValue`s in field `number` of each message; None when no row has it.
fn rest_values(array: &ArrayRef, key: &str, number: u32) -> Option<Vector> {
    let messages: &BinaryArray = array.as_binary_opt()?;
    let mut values: Vec<Value> = Vec::new();
    for row in 0..messages.len() {
        if messages.is_valid(row)
            && let Some(value) = find_key(messages.value(row), key, number)
        {
            values.resize(messages.len(), Value::Nil);
            values[row] = value;
        }
    }
    (!values.is_empty()).then(|| Vector::Values(Arc::from(values)))
}

/// The first value of `key` that TraceQL sees.
fn find_key(message: &[u8], key: &str, number: u32) -> Option<Value> {
    let mut fields = Fields::new(message);
    while let Ok(Some((at, field))) = fields.next_field() {
        if at == number
            && let Ok(pair) = field.bytes().and_then(KeyValue::parse)
            && pair.key == key.as_bytes()
            && let Some(value) = pair.value.map(value_of_any).filter(|value| *value != Value::Nil)
        {
            return Some(value);
        }
    }
    None
}
