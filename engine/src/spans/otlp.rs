//! Record batches back to OTLP: rows of the span table as `ResourceSpans`.

use arrow::{
    array::{Array, ListArray},
    record_batch::RecordBatch,
};
use prost::Message;
use skein_proto::otlp::{
    common::v1::{AnyValue, KeyValue, any_value},
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span},
};

use super::{
    builder::{ODD_PARENT_IS_ZERO, ODD_STATUS_IS_EMPTY},
    read::{Texts, Typed, binary_opt, ints, list_items, list_opt, small_ints, texts},
    schema::{AttributeField, RARE, SpanSchema},
    tables::Shared,
    wire::Fields,
};
use crate::{
    error::{Error, Result},
    stop,
};

/// Puts spans together by resource and scope, in order of first sight.
#[derive(Debug, Default)]
pub struct TraceAssembler {
    resource_spans: Vec<ResourceSpans>,
    by_shared: std::collections::HashMap<(Vec<u8>, Vec<u8>), (usize, usize)>,
    by_resource: std::collections::HashMap<Vec<u8>, usize>,
}

impl TraceAssembler {
    /// Adds `rows` of `batch`, which holds all columns of `schema` and whole traces. Errors: `Data`.
    pub fn add(
        &mut self,
        batch: &RecordBatch,
        rows: impl Iterator<Item = usize>,
        schema: &SpanSchema,
        resources: &Shared,
        scopes: &Shared,
    ) -> Result<()> {
        let reader = SpanReader::new(batch, schema)?;
        let (resource_ids, scope_ids) = (small_ints(batch, "resource_id")?, small_ints(batch, "scope_id")?);
        for row in rows {
            if row % stop::ROWS_BETWEEN_CHECKS == 0 {
                stop::check()?;
            }
            let span = reader.span(row)?;
            let (resource, scope) = (resource_ids.value(row) as usize, scope_ids.value(row) as usize);
            self.scope_spans(resources, resource, scopes, scope)?.spans.push(span);
        }
        Ok(())
    }

    fn scope_spans(&mut self, resources: &Shared, resource: usize, scopes: &Shared, scope: usize) -> Result<&mut ScopeSpans> {
        let entry = |table: &Shared, id: usize| table.entries().get(id).cloned().ok_or_else(|| Error::data(format!("shared entry {id} is missing")));
        let (resource_key, scope_key) = (entry(resources, resource)?.into_vec(), entry(scopes, scope)?.into_vec());
        let all = &mut self.resource_spans;
        let at = *self.by_resource.entry(resource_key.clone()).or_insert_with(|| {
            let schema_url = String::from_utf8_lossy(resources.schema_url(resource)).into_owned();
            all.push(ResourceSpans { resource: resources.resource(resource), scope_spans: Vec::new(), schema_url });
            all.len() - 1
        });
        let (at, within) = *self.by_shared.entry((resource_key, scope_key)).or_insert_with(|| {
            let schema_url = String::from_utf8_lossy(scopes.schema_url(scope)).into_owned();
            let list = &mut all[at].scope_spans;
            list.push(ScopeSpans { scope: scopes.scope(scope), spans: Vec::new(), schema_url });
            (at, list.len() - 1)
        });
        Ok(&mut self.resource_spans[at].scope_spans[within])
    }

    /// What was added, in no more memory than it needs.
    pub fn finish(mut self) -> Vec<ResourceSpans> {
        self.resource_spans.iter_mut().flat_map(|resource| &mut resource.scope_spans).for_each(|scope| scope.spans.shrink_to_fit());
        self.resource_spans
    }
}

/// A batch taken apart once, so that rows can be read one by one.
struct SpanReader<'a> {
    batch: &'a RecordBatch,
    attributes: Attributes<'a>,
    events: Option<(&'a ListArray, RecordBatch)>,
    links: Option<(&'a ListArray, RecordBatch)>,
    event_schema: &'a [AttributeField],
    name: Texts,
}

impl<'a> SpanReader<'a> {
    fn new(batch: &'a RecordBatch, schema: &'a SpanSchema) -> Result<Self> {
        let items =
            |name| -> Result<Option<(&'a ListArray, RecordBatch)>> { list_opt(batch, name)?.map(|list| Ok((list, list_items(list)?))).transpose() };
        Ok(Self {
            batch,
            attributes: Attributes::new(batch, &schema.attributes, "span_attributes_rest")?,
            events: items("events")?,
            links: items("links")?,
            event_schema: &schema.event_attributes,
            name: texts(batch, "name")?,
        })
    }

    fn span(&self, row: usize) -> Result<Span> {
        let batch = self.batch;
        let int = |name| ints(batch, name).map(|values| values.value(row));
        let rare = |at: usize| match batch.column_by_name(RARE[at].2) {
            Some(_) => ints(batch, RARE[at].2).map(|values| if values.is_valid(row) { values.value(row) } else { 0 }),
            None => Ok(0),
        };
        let trace_id = super::TraceId::from_halves(int("trace_id_high")?, int("trace_id_low")?);
        let start = int("trace_start_unix_nano")?.wrapping_add(int("start_offset_nanos")?);
        let oddities = rare(4)?;
        let text = |name| -> Result<String> {
            match batch.column_by_name(name) {
                Some(_) => Ok(texts(batch, name)?.get(row).unwrap_or_default().to_owned()),
                None => Ok(String::new()),
            }
        };
        let (code, message) = (small_ints(batch, "status_code")?.value(row), text("status_message")?);
        let has_status = code != 0 || !message.is_empty() || oddities & ODD_STATUS_IS_EMPTY != 0;
        let start_unix_nano = start as u64;
        Ok(Span {
            trace_id: trace_id.0.to_vec(),
            span_id: int("span_id")?.to_be_bytes().to_vec(),
            trace_state: text("trace_state")?,
            parent_span_id: self.parent(row, oddities)?,
            flags: rare(0)? as u32,
            name: self.name.get(row).unwrap_or_default().to_owned(),
            kind: small_ints(batch, "kind")?.value(row),
            start_time_unix_nano: start_unix_nano,
            end_time_unix_nano: start_unix_nano.wrapping_add(int("duration_nanos")? as u64),
            attributes: self.attributes.row(row)?,
            dropped_attributes_count: rare(1)? as u32,
            events: self.events(row, start_unix_nano)?,
            dropped_events_count: rare(2)? as u32,
            links: self.links(row)?,
            dropped_links_count: rare(3)? as u32,
            status: has_status.then_some(Status { message, code }),
        })
    }

    fn parent(&self, row: usize, oddities: i64) -> Result<Vec<u8>> {
        let distance = small_ints(self.batch, "parent_distance")?.value(row);
        if distance > 0 {
            let parent = row.checked_sub(distance as usize).ok_or_else(|| Error::data("a parent lies before its trace"))?;
            return Ok(ints(self.batch, "span_id")?.value(parent).to_be_bytes().to_vec());
        }
        let absent = ints(self.batch, "parent_span_id")?;
        Ok(if absent.is_valid(row) {
            absent.value(row).to_be_bytes().to_vec()
        } else if oddities & ODD_PARENT_IS_ZERO != 0 {
            vec![0; 8]
        } else {
            Vec::new()
        })
    }

    fn events(&self, row: usize, start_unix_nano: u64) -> Result<Vec<span::Event>> {
        let Some((list, items)) = &self.events else { return Ok(Vec::new()) };
        let range = entries(list, row);
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let attributes = Attributes::new(items, self.event_schema, "attributes_rest")?;
        let (offsets, names) = (ints(items, "time_offset_nanos")?, texts(items, "name")?);
        let dropped = items.column_by_name("dropped_attributes_count").is_some().then(|| ints(items, "dropped_attributes_count")).transpose()?;
        range
            .map(|at| {
                Ok(span::Event {
                    time_unix_nano: start_unix_nano.wrapping_add(offsets.value(at) as u64),
                    name: names.get(at).unwrap_or_default().to_owned(),
                    attributes: attributes.row(at)?,
                    dropped_attributes_count: dropped.filter(|counts| counts.is_valid(at)).map_or(0, |counts| counts.value(at) as u32),
                })
            })
            .collect()
    }

    fn links(&self, row: usize) -> Result<Vec<span::Link>> {
        let Some((list, items)) = &self.links else { return Ok(Vec::new()) };
        let (high, low, ids) = (ints(items, "trace_id_high")?, ints(items, "trace_id_low")?, ints(items, "span_id")?);
        let other = binary_opt(items, "other")?.ok_or_else(|| Error::data("column links.other is missing"))?;
        entries(list, row)
            .map(|at| {
                let other = other.value(at);
                let mut link = span::Link::decode(other).map_err(|e| Error::data("reading a link").with_source(e))?;
                let (has_trace_id, has_span_id) = link_ids_in(other);
                if !has_trace_id {
                    link.trace_id = super::TraceId::from_halves(high.value(at), low.value(at)).0.to_vec();
                }
                if !has_span_id {
                    link.span_id = ids.value(at).to_be_bytes().to_vec();
                }
                Ok(link)
            })
            .collect()
    }
}

/// Whether the kept fields of a link hold the trace id and the span id themselves.
fn link_ids_in(other: &[u8]) -> (bool, bool) {
    let (mut trace, mut span) = (false, false);
    let mut fields = Fields::new(other);
    while let Ok(Some((number, _))) = fields.next_field() {
        trace |= number == 1;
        span |= number == 2;
    }
    (trace, span)
}

/// The entries of a list that belong to `row`.
pub fn entries(list: &ListArray, row: usize) -> std::ops::Range<usize> {
    let offsets = list.value_offsets();
    offsets[row] as usize..offsets[row + 1] as usize
}

/// The attribute columns of a batch and its rest.
struct Attributes<'a> {
    columns: Vec<(&'a AttributeField, Typed)>,
    rest: Option<arrow::array::BinaryArray>,
}

impl<'a> Attributes<'a> {
    fn new(batch: &RecordBatch, fields: &'a [AttributeField], rest: &str) -> Result<Self> {
        let mut columns = Vec::with_capacity(fields.len());
        for field in fields {
            if let Some(array) = batch.column_by_name(&field.name)
                && array.null_count() < array.len()
            {
                columns.push((field, Typed::of(array)?));
            }
        }
        Ok(Self { columns, rest: binary_opt(batch, rest)?.cloned() })
    }

    fn row(&self, row: usize) -> Result<Vec<KeyValue>> {
        let mut out = Vec::new();
        for (field, column) in &self.columns {
            if let Some(value) = value_at(column, row) {
                out.push(KeyValue { key: field.column.key.to_string(), value: Some(AnyValue { value: Some(value) }), ..Default::default() });
            }
        }
        if let Some(rest) = &self.rest
            && rest.is_valid(row)
        {
            let mut fields = Fields::new(rest.value(row));
            while let Some((_, field)) = fields.next_field().map_err(|e| Error::data("reading rare attributes").with_source(e))? {
                let bytes = field.bytes().map_err(|e| Error::data("reading rare attributes").with_source(e))?;
                out.push(decode_key_value(bytes)?);
            }
        }
        Ok(out)
    }
}

/// Decodes a kept `KeyValue`. What is not UTF-8 is shown with replacement characters.
fn decode_key_value(bytes: &[u8]) -> Result<KeyValue> {
    if let Ok(pair) = KeyValue::decode(bytes) {
        return Ok(pair);
    }
    let pair = super::wire::KeyValue::parse(bytes).map_err(|e| Error::data("reading a rare attribute").with_source(e))?;
    let value = pair.value.map(|value| match super::wire::AnyValue::parse(value) {
        Ok(super::wire::AnyValue::String(text)) => {
            AnyValue { value: Some(any_value::Value::StringValue(String::from_utf8_lossy(text).into_owned())) }
        }
        _ => AnyValue::decode(value).unwrap_or_default(),
    });
    Ok(KeyValue { key: String::from_utf8_lossy(pair.key).into_owned(), value, ..Default::default() })
}

fn value_at(column: &Typed, row: usize) -> Option<any_value::Value> {
    match column {
        Typed::Text(values) => values.get(row).map(|text| any_value::Value::StringValue(text.to_owned())),
        Typed::Int(values) => values.is_valid(row).then(|| any_value::Value::IntValue(values.value(row))),
        Typed::Double(values) => values.is_valid(row).then(|| any_value::Value::DoubleValue(values.value(row))),
        Typed::Bool(values) => values.is_valid(row).then(|| any_value::Value::BoolValue(values.value(row))),
    }
}
