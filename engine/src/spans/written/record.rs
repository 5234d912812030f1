//! A checked table as Arrow IPC streams of one batch each, and back. The columns are described in ingest/src/wal/FORMAT.md, "Tables".

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, ListArray, StructArray},
    buffer::{Buffer, OffsetBuffer, ScalarBuffer},
    datatypes::{DataType, Field, Fields, Int32Type, Schema},
    record_batch::{RecordBatch, RecordBatchOptions},
};
use bytes::Bytes;

use super::{
    COUNTS, SpanTable,
    columns::Budget,
    entries::{Events, Links},
    shared::Coded,
    sparse::Sparse,
    stream::{self, Stream},
    values::{Attribute, Values, array_of, array_of_texts},
};
use crate::{
    buffers::Buffers,
    error::{Error, Result},
    spans::{
        read::{Texts, Typed, binary_opt, column, ints, list_items, list_opt, small_ints},
        wire::{self, KeyValue, WireError},
    },
};

/// What the names of columns of attributes begin with.
const SPAN: &str = "span";

impl SpanTable {
    /// The table as IPC streams that need nothing else to be read, behind `mark`, as parts that follow each other: the columns' own buffers, and what
    /// lies between them in one of `buffers`. Errors: `Internal`. Cost: a copy of what is short or becomes narrow.
    pub fn record(&self, mark: &[u8], buffers: &Buffers) -> Result<Vec<Bytes>> {
        let mut streams = vec![Stream::of(&self.batch()?)?];
        for sparse in &self.sparse {
            streams.push(Stream::of(&sparse.batch(SPAN)?)?);
        }
        Ok(stream::write(mark, &streams, buffers))
    }

    /// Reads what [`SpanTable::record`] wrote, without the mark. Errors: `Data` for anything else.
    pub fn read_record(record: Bytes) -> Result<Self> {
        let mut rest = Buffer::from(record);
        // Text was bounded when the table was made; what is spent here is only counted.
        let mut budget = Budget::new(usize::MAX);
        let mut table = Self::of_batch(&stream::read(&mut rest)?, &mut budget)?;
        while !rest.is_empty() {
            let sparse = Sparse::of_batch(&stream::read(&mut rest)?, SPAN, table.rows, &mut budget)?;
            table.sparse.push(sparse);
        }
        table.text_bytes = budget.spent();
        Ok(table)
    }

    /// All but sparse attributes.
    pub(super) fn batch(&self) -> Result<RecordBatch> {
        let mut columns = Columns::default();
        for (name, values) in [
            ("trace_id_high", &self.trace_id_high),
            ("trace_id_low", &self.trace_id_low),
            ("span_id", &self.span_id),
            ("parent_span_id", &self.parent_span_id),
            ("start_unix_nano", &self.start_unix_nano),
            ("duration_nanos", &self.duration_nanos),
        ] {
            columns.add(name, numbers(values));
        }
        for (name, values) in [("kind", &self.kind), ("status_code", &self.status_code)] {
            columns.add(name, Arc::new(arrow::array::Int32Array::new(values.clone(), None)));
        }
        columns.add("resource", self.resource.array()?);
        columns.add("scope", self.scope.array()?);
        for (name, texts) in [("name", &self.name), ("status_message", &self.status_message), ("trace_state", &self.trace_state)] {
            columns.add_some(name, texts.as_ref().map(array_of_texts));
        }
        for (name, counts) in COUNTS.into_iter().zip(&self.counts) {
            columns.add_some(name, counts.clone().map(|counts| Arc::new(counts) as ArrayRef));
        }
        columns.add_attributes(SPAN, &self.attributes);
        columns.add_some("span_attributes_rest", self.rest.clone().map(|rest| Arc::new(rest) as ArrayRef));
        columns.add_some("events", self.events.as_ref().map(Events::array).transpose()?);
        columns.add_some("links", self.links.as_ref().map(Links::array).transpose()?);
        columns.batch(self.rows)
    }

    fn of_batch(batch: &RecordBatch, budget: &mut Budget) -> Result<Self> {
        let number = |name: &str| -> Result<ScalarBuffer<i64>> { whole(ints(batch, name)?, name).map(|values| values.values().clone()) };
        let code = |name: &str| -> Result<ScalarBuffer<i32>> { whole(small_ints(batch, name)?, name).map(|values| values.values().clone()) };
        let mut counts = [const { None }; COUNTS.len()];
        for (count, name) in counts.iter_mut().zip(COUNTS) {
            *count = batch.column_by_name(name).map(|_| ints(batch, name).cloned()).transpose()?;
        }
        Ok(Self {
            rows: batch.num_rows(),
            trace_id_high: number("trace_id_high")?,
            trace_id_low: number("trace_id_low")?,
            span_id: number("span_id")?,
            parent_span_id: number("parent_span_id")?,
            start_unix_nano: number("start_unix_nano")?,
            duration_nanos: number("duration_nanos")?,
            kind: code("kind")?,
            status_code: code("status_code")?,
            name: texts_opt(batch, "name", budget)?,
            status_message: texts_opt(batch, "status_message", budget)?,
            trace_state: texts_opt(batch, "trace_state", budget)?,
            counts,
            resource: Coded::of(column(batch, "resource")?)?,
            scope: Coded::of(column(batch, "scope")?)?,
            attributes: attributes_of(batch, &format!("{SPAN}."), budget)?,
            sparse: Vec::new(),
            rest: rest_of(batch, "span_attributes_rest")?,
            events: list_opt(batch, "events")?.map(|list| Events::of_list(list, budget)).transpose()?,
            links: list_opt(batch, "links")?.map(Links::of_list).transpose()?,
            text_bytes: 0,
        })
    }
}

/// Columns with their fields.
#[derive(Default)]
pub(super) struct Columns {
    fields: Vec<Field>,
    arrays: Vec<ArrayRef>,
}

impl Columns {
    pub(super) fn add(&mut self, name: impl Into<String>, array: ArrayRef) {
        self.fields.push(Field::new(name, array.data_type().clone(), true));
        self.arrays.push(array);
    }

    fn add_some(&mut self, name: &str, array: Option<ArrayRef>) {
        if let Some(array) = array {
            self.add(name, array);
        }
    }

    pub(super) fn add_attributes(&mut self, scope: &str, attributes: &[Attribute]) {
        for attribute in attributes {
            // Lists are in the rest.
            if let Values::Each(values) = &attribute.values {
                self.add(format!("{scope}.{}", attribute.key), array_of(values));
            }
        }
    }

    pub(super) fn batch(self, rows: usize) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(self.fields)), self.arrays, &options)?)
    }

    /// As the structs of lists.
    fn list(self, offsets: &OffsetBuffer<i32>, entries: usize) -> Result<ArrayRef> {
        let fields = Fields::from(self.fields);
        let structs = StructArray::try_new_with_length(fields.clone(), self.arrays, None, entries)?;
        let item = Arc::new(Field::new("item", DataType::Struct(fields), false));
        Ok(Arc::new(ListArray::try_new(item, offsets.clone(), Arc::new(structs), None)?))
    }
}

fn numbers(values: &ScalarBuffer<i64>) -> ArrayRef {
    Arc::new(Int64Array::new(values.clone(), None))
}

impl Events {
    fn array(&self) -> Result<ArrayRef> {
        let mut columns = Columns::default();
        columns.add("time_unix_nano", numbers(&self.time_unix_nano));
        columns.add_some("name", self.name.as_ref().map(array_of_texts));
        columns.add_some("dropped_attributes_count", self.dropped_attributes.clone().map(|counts| Arc::new(counts) as ArrayRef));
        columns.add_attributes("event", &self.attributes);
        columns.add_some("attributes_rest", self.rest.clone().map(|rest| Arc::new(rest) as ArrayRef));
        columns.list(&self.offsets, self.time_unix_nano.len())
    }

    fn of_list(list: &ListArray, budget: &mut Budget) -> Result<Self> {
        let (offsets, entries) = taken_apart(list)?;
        let dropped = entries.column_by_name("dropped_attributes_count").map(|_| ints(&entries, "dropped_attributes_count").cloned());
        Ok(Self {
            offsets,
            time_unix_nano: whole(ints(&entries, "time_unix_nano")?, "time_unix_nano")?.values().clone(),
            name: texts_opt(&entries, "name", budget)?,
            dropped_attributes: dropped.transpose()?,
            attributes: attributes_of(&entries, "event.", budget)?,
            rest: rest_of(&entries, "attributes_rest")?,
        })
    }
}

impl Links {
    fn array(&self) -> Result<ArrayRef> {
        let mut columns = Columns::default();
        columns.add("trace_id_high", numbers(&self.trace_id_high));
        columns.add("trace_id_low", numbers(&self.trace_id_low));
        columns.add("span_id", numbers(&self.span_id));
        columns.add("other", Arc::new(self.other.clone()));
        columns.list(&self.offsets, self.span_id.len())
    }

    fn of_list(list: &ListArray) -> Result<Self> {
        let (offsets, entries) = taken_apart(list)?;
        let number = |name: &str| -> Result<ScalarBuffer<i64>> { whole(ints(&entries, name)?, name).map(|values| values.values().clone()) };
        let other = binary_opt(&entries, "other")?.ok_or_else(|| Error::data("column links.other is missing"))?;
        let other = whole(other, "other")?.clone();
        for bytes in other.iter().flatten() {
            check_pairs(bytes, 4).map_err(|error| Error::data("reading links").with_source(error))?;
        }
        Ok(Self { offsets, trace_id_high: number("trace_id_high")?, trace_id_low: number("trace_id_low")?, span_id: number("span_id")?, other })
    }
}

impl Coded {
    fn of(array: &ArrayRef) -> Result<Self> {
        let wrong = || Error::data("resources or scopes are no dictionary of messages");
        let dictionary = array.as_dictionary_opt::<Int32Type>().ok_or_else(wrong)?;
        let messages = dictionary.values().as_binary_opt::<i32>().ok_or_else(wrong)?.clone();
        Ok(Self { codes: whole(dictionary.keys(), "resource or scope")?.values().clone(), messages })
    }
}

/// The array, if none of its values is null.
fn whole<'a, A: Array>(array: &'a A, name: &str) -> Result<&'a A> {
    match array.null_count() {
        0 => Ok(array),
        _ => Err(Error::data(format!("column {name} has nulls"))),
    }
}

/// A list's offsets and its entries, as they are written: from 0, none null.
fn taken_apart(list: &ListArray) -> Result<(OffsetBuffer<i32>, RecordBatch)> {
    let (first, last) = (list.value_offsets()[0], list.value_offsets()[list.len()]);
    let nulls = list.null_count() > 0 || list.values().null_count() > 0;
    if first != 0 || last as usize != list.values().len() || nulls {
        return Err(Error::data("a list of events or links has nulls, or entries that belong to no span"));
    }
    Ok((list.offsets().clone(), list_items(list)?))
}

fn texts_opt(batch: &RecordBatch, name: &str, budget: &mut Budget) -> Result<Option<Texts>> {
    let Some(array) = batch.column_by_name(name) else { return Ok(None) };
    let texts = Texts::of(array)?;
    budget.take((0..array.len()).map(|row| texts.get(row).map_or(0, str::len)).sum())?;
    Ok(Some(texts))
}

pub(super) fn attributes_of(batch: &RecordBatch, prefix: &str, budget: &mut Budget) -> Result<Vec<Attribute>> {
    let mut attributes = Vec::new();
    for (field, array) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let Some(key) = field.name().strip_prefix(prefix) else { continue };
        let values = Typed::of(array)?;
        if let Typed::Text(texts) = &values {
            budget.take((0..array.len()).map(|row| texts.get(row).map_or(0, str::len)).sum())?;
        }
        attributes.push(Attribute { key: key.to_owned(), values: Values::Each(values) });
    }
    Ok(attributes)
}

/// Attributes without a column, which later readers rely on.
fn rest_of(batch: &RecordBatch, name: &str) -> Result<Option<arrow::array::BinaryArray>> {
    let Some(rest) = binary_opt(batch, name)? else { return Ok(None) };
    for bytes in rest.iter().flatten() {
        check_pairs(bytes, 1).map_err(|error| Error::data(format!("reading {name}")).with_source(error))?;
    }
    Ok(Some(rest.clone()))
}

/// Errors: what is wrong with the `KeyValue`s in field `number`, or with another field.
fn check_pairs(bytes: &[u8], number: u32) -> Result<(), WireError> {
    let mut fields = wire::Fields::new(bytes);
    while let Some((at, field)) = fields.next_field()? {
        if at != number && number == 1 {
            return Err(WireError::Tag);
        }
        if at == number
            && let Some(value) = KeyValue::parse(field.bytes()?)?.value
        {
            wire::check_any_value(value, 0)?;
        }
    }
    Ok(())
}
