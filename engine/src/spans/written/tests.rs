#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use arrow::{
    array::{
        Array, ArrayRef, BinaryArray, BooleanArray, DictionaryArray, FixedSizeBinaryArray, Float64Array, Int32Array, Int64Array, ListArray,
        NullArray, StringArray, StringViewArray, StructArray, TimestampMillisecondArray, TimestampNanosecondArray, UInt8Array, UInt64Array,
    },
    buffer::{NullBuffer, OffsetBuffer},
    compute::{cast, take},
    datatypes::{DataType, Field, Fields, Float32Type, Int8Type, Int32Type, Schema, TimeUnit, UInt32Type},
    ipc::{
        MetadataVersion,
        writer::{IpcWriteOptions, StreamWriter},
    },
};
use prost::Message;
use skein_proto::otlp::{
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, Span, Status, span},
};

use super::{values::Values, *};
use crate::{
    buffers::Buffers,
    clock::Stopwatch,
    error::ErrorKind,
    exec::{
        source::{MemorySource, SourceRef},
        stats::ScanMetrics,
    },
    spans::{builder::SpanBuilder, otlp::TraceAssembler, read::Typed},
};

/// A small generator of repeatable numbers (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    fn text(&mut self) -> String {
        match self.below(6) {
            0 => "häßlich".into(),
            1 => "x".repeat(self.below(40) as usize + 1),
            other => format!("text-{other}-{}", self.below(3)),
        }
    }

    /// The value of key number `key`, whose type follows from it.
    fn value(&mut self, key: u64) -> Value {
        match key % 5 {
            0 => Value::StringValue(self.text()),
            1 => Value::IntValue(self.below(5) as i64 - 2),
            2 => Value::DoubleValue(self.below(5) as f64 / 2.0),
            3 => Value::BoolValue(self.one_in(2)),
            _ => {
                let string = self.text();
                let values = (0..self.below(4)).map(|at| AnyValue { value: Some(Value::StringValue(format!("{string}{at}"))) }).collect();
                Value::ArrayValue(ArrayValue { values })
            }
        }
    }

    fn pairs(&mut self, most: u64) -> Vec<KeyValue> {
        let pair = |key: u64, random: &mut Self| KeyValue {
            key: format!("key.{key}"),
            value: Some(AnyValue { value: Some(random.value(key)) }),
            ..KeyValue::default()
        };
        let keys: Vec<u64> = (0..most).filter(|_| !self.one_in(3)).collect();
        keys.into_iter().map(|key| pair(key, self)).collect()
    }

    fn count(&mut self) -> u32 {
        if self.one_in(4) { self.next() as u32 } else { 0 }
    }
}

/// A span with its surroundings.
#[derive(Clone)]
struct Whole {
    resource: Vec<KeyValue>,
    scope: InstrumentationScope,
    span: Span,
}

/// Times are whole milliseconds, so that every form can hold them.
const START: u64 = 1_700_000_000_000_000_000;

fn random_span(random: &mut Random, number: u64) -> Whole {
    let start = START + random.below(1000) * 1_000_000;
    let event = |random: &mut Random| span::Event {
        time_unix_nano: start + random.below(50) * 1_000_000,
        name: random.text(),
        attributes: random.pairs(7),
        dropped_attributes_count: random.count(),
    };
    let link = |random: &mut Random| span::Link {
        trace_id: random.next().to_be_bytes().repeat(2),
        span_id: random.next().to_be_bytes().to_vec(),
        trace_state: if random.one_in(2) { String::new() } else { random.text() },
        attributes: random.pairs(6),
        dropped_attributes_count: random.count(),
        flags: random.count(),
    };
    let status = Status { code: random.below(3) as i32, message: if random.one_in(2) { String::new() } else { random.text() } };
    let scope = InstrumentationScope {
        name: if random.one_in(3) { String::new() } else { random.text() },
        version: if random.one_in(2) { String::new() } else { "1".into() },
        attributes: if random.one_in(2) { random.pairs(3) } else { Vec::new() },
        ..InstrumentationScope::default()
    };
    let span = Span {
        trace_id: (random.below(6) + 1).to_be_bytes().repeat(2),
        span_id: (number + 1).to_be_bytes().to_vec(),
        parent_span_id: if random.one_in(3) { Vec::new() } else { (random.below(number + 1) + 1).to_be_bytes().to_vec() },
        name: random.text(),
        kind: random.below(6) as i32,
        start_time_unix_nano: start,
        end_time_unix_nano: start + random.below(100) * 1_000_000,
        status: Some(status).filter(|status| *status != Status::default()),
        trace_state: if random.one_in(3) { "a=b".into() } else { String::new() },
        flags: random.count(),
        dropped_attributes_count: random.count(),
        dropped_events_count: random.count(),
        dropped_links_count: random.count(),
        attributes: random.pairs(9),
        events: (0..random.below(3)).map(|_| event(random)).collect(),
        links: (0..random.below(3)).map(|_| link(random)).collect(),
    };
    Whole { resource: if random.one_in(6) { Vec::new() } else { random.pairs(5) }, scope, span }
}

/// Text in one of the forms that text has.
fn text_column(random: &mut Random, values: Vec<Option<String>>) -> ArrayRef {
    let plain: ArrayRef = Arc::new(StringArray::from_iter(values.iter()));
    let dictionary = |keys: DataType, of: DataType| cast(&cast(&plain, &of).unwrap(), &DataType::Dictionary(Box::new(keys), Box::new(of))).unwrap();
    match random.below(7) {
        0 => plain,
        1 => cast(&plain, &DataType::LargeUtf8).unwrap(),
        2 => cast(&plain, &DataType::Utf8View).unwrap(),
        3 => dictionary(DataType::Int32, DataType::Utf8),
        4 => dictionary(DataType::UInt16, DataType::Utf8),
        5 => dictionary(DataType::Int64, DataType::LargeUtf8),
        _ => {
            // Values that nobody uses, one of them null.
            let known: StringArray = [Some("unused"), None].into_iter().chain(values.iter().map(Option::as_deref)).collect();
            let keys = Int32Array::from_iter(values.iter().enumerate().map(|(at, value)| match value {
                Some(_) => Some(at as i32 + 2),
                None if at % 2 == 0 => Some(1),
                None => None,
            }));
            Arc::new(DictionaryArray::<Int32Type>::try_new(keys, Arc::new(known)).unwrap())
        }
    }
}

/// Ids in one of the forms that ids have; empty is none.
fn id_column(random: &mut Random, ids: &[&[u8]]) -> ArrayRef {
    let some = |id: &&[u8]| (!id.is_empty()).then(|| id.to_vec());
    let digits = |id: &[u8], upper: bool| id.iter().map(|byte| if upper { format!("{byte:02X}") } else { format!("{byte:02x}") }).collect::<String>();
    let upper = random.one_in(2);
    match random.below(4) {
        0 => Arc::new(BinaryArray::from_iter(ids.iter().map(some))),
        1 if !ids.is_empty() => {
            let size = ids.iter().map(|id| id.len()).max().unwrap().max(8) as i32;
            Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(ids.iter().map(some), size).unwrap())
        }
        _ => text_column(random, ids.iter().map(|id| some(id).map(|id| digits(&id, upper))).collect()),
    }
}

fn int_column(random: &mut Random, values: Vec<Option<i64>>) -> ArrayRef {
    let plain: ArrayRef = Arc::new(Int64Array::from(values.clone()));
    let small = values.iter().flatten().all(|value| (-100..100).contains(value));
    let positive = values.iter().flatten().all(|value| *value >= 0);
    match random.below(4) {
        0 if small => cast(&plain, &DataType::Int8).unwrap(),
        1 if positive => cast(&plain, &DataType::UInt64).unwrap(),
        2 if small && positive => cast(&plain, &DataType::UInt16).unwrap(),
        3 => cast(&plain, &DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Int64))).unwrap(),
        _ => plain,
    }
}

fn time_column(random: &mut Random, nanos: Vec<u64>) -> ArrayRef {
    let plain: ArrayRef = Arc::new(TimestampNanosecondArray::from_iter_values(nanos.iter().map(|nanos| *nanos as i64)).with_timezone("+00:00"));
    match random.below(5) {
        0 => cast(&plain, &DataType::Int64).unwrap(),
        1 => cast(&plain, &DataType::Timestamp(TimeUnit::Millisecond, Some("+02:00".into()))).unwrap(),
        2 => Arc::new(TimestampNanosecondArray::from_iter_values(nanos.iter().map(|nanos| *nanos as i64))),
        3 => Arc::new(UInt64Array::from_iter_values(nanos)),
        _ => plain,
    }
}

/// A column for each key in `rows`.
fn attribute_columns(random: &mut Random, scope: &str, rows: &[&[KeyValue]]) -> Vec<(String, ArrayRef)> {
    let mut keys: Vec<&str> = rows.iter().flat_map(|pairs| pairs.iter().map(|pair| pair.key.as_str())).collect();
    keys.sort_unstable();
    keys.dedup();
    let mut columns = Vec::new();
    for key in keys {
        let value = |pairs: &&[KeyValue]| pairs.iter().find(|pair| pair.key == key).and_then(|pair| pair.value.clone()?.value);
        let values: Vec<Option<Value>> = rows.iter().map(value).collect();
        columns.push((format!("{scope}.{key}"), attribute_column(random, values)));
    }
    columns
}

fn attribute_column(random: &mut Random, values: Vec<Option<Value>>) -> ArrayRef {
    fn each<T>(values: Vec<Option<Value>>, of: impl Fn(Value) -> T) -> Vec<Option<T>> {
        values.into_iter().map(|value| value.map(&of)).collect()
    }
    match values.iter().flatten().next().unwrap() {
        Value::StringValue(_) => text_column(random, each(values, |value| if let Value::StringValue(text) = value { text } else { panic!() })),
        Value::IntValue(_) => int_column(random, each(values, |value| if let Value::IntValue(value) = value { value } else { panic!() })),
        Value::BoolValue(_) => Arc::new(BooleanArray::from(each(values, |value| value == Value::BoolValue(true)))),
        Value::DoubleValue(_) => {
            let plain: ArrayRef =
                Arc::new(Float64Array::from(each(values, |value| if let Value::DoubleValue(value) = value { value } else { panic!() })));
            if random.one_in(2) { cast(&plain, &DataType::Float32).unwrap() } else { plain }
        }
        _ => list_column(random, each(values, |value| if let Value::ArrayValue(array) = value { array.values } else { panic!() })),
    }
}

fn list_column(random: &mut Random, lists: Vec<Option<Vec<AnyValue>>>) -> ArrayRef {
    let texts = lists.iter().flatten().flatten().map(|any| match &any.value {
        Some(Value::StringValue(text)) => Some(text.clone()),
        _ => panic!("lists of the test have text"),
    });
    let items = text_column(random, texts.collect());
    let lengths = OffsetBuffer::<i32>::from_lengths(lists.iter().map(|list| list.as_ref().map_or(0, Vec::len)));
    let nulls = NullBuffer::from_iter(lists.iter().map(Option::is_some));
    let list: ArrayRef = Arc::new(ListArray::new(Arc::new(Field::new_list_field(items.data_type().clone(), true)), lengths, items, Some(nulls)));
    match random.one_in(2) {
        true => list,
        false => {
            let DataType::List(item) = list.data_type().clone() else { panic!() };
            cast(&list, &DataType::LargeList(item)).unwrap()
        }
    }
}

fn struct_list(random: &mut Random, lengths: Vec<usize>, columns: Vec<(String, ArrayRef)>) -> ArrayRef {
    let fields: Fields = columns.iter().map(|(name, array)| Field::new(name, array.data_type().clone(), true)).collect();
    let entries = lengths.iter().sum();
    let structs = StructArray::try_new_with_length(fields.clone(), columns.into_iter().map(|(_, array)| array).collect(), None, entries).unwrap();
    // Null and empty are the same.
    let nulls = NullBuffer::from_iter(lengths.iter().map(|length| *length > 0 || random.one_in(2)));
    let item = Arc::new(Field::new_list_field(DataType::Struct(fields), true));
    Arc::new(ListArray::new(item, OffsetBuffer::from_lengths(lengths), Arc::new(structs), Some(nulls)))
}

/// The spans as a table whose columns have whatever form; the order of columns and rows too.
fn table_of(random: &mut Random, spans: &[Whole]) -> RecordBatch {
    let each = |of: &dyn Fn(&Span) -> i64| spans.iter().map(|whole| Some(of(&whole.span))).collect::<Vec<_>>();
    let status = |span: &Span| span.status.clone().unwrap_or_default();
    let mut columns: Vec<(String, ArrayRef)> = Vec::new();
    let mut add = |name: &str, array: ArrayRef| columns.push((name.to_owned(), array));
    let ids = |of: &dyn Fn(&Whole) -> &[u8]| -> Vec<Vec<u8>> { spans.iter().map(|whole| of(whole).to_vec()).collect() };
    for (name, ids) in [
        ("trace_id", ids(&|whole| &whole.span.trace_id)),
        ("span_id", ids(&|whole| &whole.span.span_id)),
        ("parent_span_id", ids(&|whole| &whole.span.parent_span_id)),
    ] {
        add(name, id_column(random, &ids.iter().map(Vec::as_slice).collect::<Vec<_>>()));
    }
    let texts = |of: &dyn Fn(&Whole) -> String| spans.iter().map(|whole| Some(of(whole))).collect::<Vec<_>>();
    add("name", text_column(random, texts(&|whole| whole.span.name.clone())));
    if random.one_in(2) {
        add("kind", text_column(random, texts(&|whole| KINDS[whole.span.kind as usize].to_owned())));
        add("status", text_column(random, texts(&|whole| STATUSES[status(&whole.span).code as usize].to_owned())));
    } else {
        add("kind", int_column(random, each(&|span| span.kind.into())));
        add("status", int_column(random, each(&|span| status(span).code.into())));
    }
    let empty_is_null = |text: String| Some(text).filter(|text| !text.is_empty());
    add("status_message", text_column(random, spans.iter().map(|whole| empty_is_null(status(&whole.span).message)).collect()));
    add("trace_state", text_column(random, spans.iter().map(|whole| empty_is_null(whole.span.trace_state.clone())).collect()));
    add("scope_name", text_column(random, texts(&|whole| whole.scope.name.clone())));
    add("scope_version", text_column(random, spans.iter().map(|whole| empty_is_null(whole.scope.version.clone())).collect()));
    let which = random.below(3);
    add("start_time", time_column(random, spans.iter().map(|whole| whole.span.start_time_unix_nano).collect()));
    if which != 0 {
        add("end_time", time_column(random, spans.iter().map(|whole| whole.span.end_time_unix_nano).collect()));
    }
    if which != 1 {
        add("duration_nanos", int_column(random, each(&|span| (span.end_time_unix_nano - span.start_time_unix_nano) as i64)));
    }
    add("flags", int_column(random, each(&|span| span.flags.into())));
    add("dropped_attributes_count", int_column(random, each(&|span| span.dropped_attributes_count.into())));
    add("dropped_events_count", int_column(random, each(&|span| span.dropped_events_count.into())));
    add("dropped_links_count", int_column(random, each(&|span| span.dropped_links_count.into())));
    add("child_count", Arc::new(NullArray::new(spans.len())));
    add("root_name", text_column(random, texts(&|_| "whatever".into())));
    columns.extend(attribute_columns(random, "span", &spans.iter().map(|whole| &whole.span.attributes[..]).collect::<Vec<_>>()));
    columns.extend(attribute_columns(random, "resource", &spans.iter().map(|whole| &whole.resource[..]).collect::<Vec<_>>()));
    columns.extend(attribute_columns(random, "instrumentation", &spans.iter().map(|whole| &whole.scope.attributes[..]).collect::<Vec<_>>()));
    columns.push(("events".into(), event_column(random, spans)));
    columns.push(("links".into(), link_column(random, spans)));
    for at in (1..columns.len()).rev() {
        columns.swap(at, random.below(at as u64 + 1) as usize);
    }
    batch_of(columns)
}

fn batch_of(columns: Vec<(String, ArrayRef)>) -> RecordBatch {
    let fields: Vec<Field> = columns.iter().map(|(name, array)| Field::new(name, array.data_type().clone(), true)).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.into_iter().map(|(_, array)| array).collect()).unwrap()
}

fn event_column(random: &mut Random, spans: &[Whole]) -> ArrayRef {
    let events: Vec<(&Span, &span::Event)> = spans.iter().flat_map(|whole| whole.span.events.iter().map(|event| (&whole.span, event))).collect();
    let mut columns = attribute_columns(random, "event", &events.iter().map(|(_, event)| &event.attributes[..]).collect::<Vec<_>>());
    if random.one_in(2) {
        columns.push(("time".into(), time_column(random, events.iter().map(|(_, event)| event.time_unix_nano).collect())));
    } else {
        let since = events.iter().map(|(span, event)| Some((event.time_unix_nano - span.start_time_unix_nano) as i64));
        columns.push(("since_start_nanos".into(), int_column(random, since.collect())));
    }
    columns.push(("event_name".into(), text_column(random, events.iter().map(|(_, event)| Some(event.name.clone())).collect())));
    let dropped = events.iter().map(|(_, event)| Some(event.dropped_attributes_count.into())).collect();
    columns.push(("dropped_attributes_count".into(), int_column(random, dropped)));
    struct_list(random, spans.iter().map(|whole| whole.span.events.len()).collect(), columns)
}

fn link_column(random: &mut Random, spans: &[Whole]) -> ArrayRef {
    let links: Vec<&span::Link> = spans.iter().flat_map(|whole| &whole.span.links).collect();
    let mut columns = attribute_columns(random, "link", &links.iter().map(|link| &link.attributes[..]).collect::<Vec<_>>());
    columns.push(("linked_trace_id".into(), id_column(random, &links.iter().map(|link| &link.trace_id[..]).collect::<Vec<_>>())));
    columns.push(("linked_span_id".into(), id_column(random, &links.iter().map(|link| &link.span_id[..]).collect::<Vec<_>>())));
    columns.push(("trace_state".into(), text_column(random, links.iter().map(|link| Some(link.trace_state.clone())).collect())));
    columns.push(("flags".into(), int_column(random, links.iter().map(|link| Some(link.flags.into())).collect())));
    let dropped = links.iter().map(|link| Some(link.dropped_attributes_count.into())).collect();
    columns.push(("dropped_attributes_count".into(), int_column(random, dropped)));
    struct_list(random, spans.iter().map(|whole| whole.span.links.len()).collect(), columns)
}

/// A span with its surroundings as text; attributes in no order.
fn shown(resource: &[KeyValue], scope: &InstrumentationScope, span: &Span) -> String {
    let sorted = |pairs: &[KeyValue]| {
        let mut pairs: Vec<String> = pairs.iter().map(|pair| format!("{}={:?}", pair.key, pair.value)).collect();
        pairs.sort();
        pairs
    };
    let events: Vec<_> = span.events.iter().map(|e| (e.time_unix_nano, &e.name, sorted(&e.attributes), e.dropped_attributes_count)).collect();
    let links: Vec<_> =
        span.links.iter().map(|l| (&l.trace_id, &l.span_id, &l.trace_state, sorted(&l.attributes), l.dropped_attributes_count, l.flags)).collect();
    let bare = Span { attributes: Vec::new(), events: Vec::new(), links: Vec::new(), ..span.clone() };
    let scope = (&scope.name, &scope.version, sorted(&scope.attributes));
    format!("{bare:?} {:?} {events:?} {links:?} {scope:?} {:?}", sorted(&span.attributes), sorted(resource))
}

fn expected(spans: &[Whole]) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    spans.iter().for_each(|whole| *all.entry(shown(&whole.resource, &whole.scope, &whole.span)).or_default() += 1);
    all
}

/// The spans in a builder, as answers to queries have them.
async fn read_back(builder: &mut SpanBuilder) -> BTreeMap<String, usize> {
    let source: SourceRef = Arc::new(MemorySource::new(builder.snapshot()));
    let (columns, events) = (source.schema().columns(), source.schema().event_columns());
    let mut assembler = TraceAssembler::default();
    for group in 0..source.row_groups().len() {
        let batch = source.read(group, &columns, &events, None, &ScanMetrics::default()).await.unwrap();
        assembler.add(&batch, 0..batch.num_rows(), source.schema(), source.resources(), source.scopes()).unwrap();
    }
    let mut all = BTreeMap::new();
    for ResourceSpans { resource, scope_spans, .. } in assembler.finish() {
        let resource = resource.map(|Resource { attributes, .. }| attributes).unwrap_or_default();
        for scope in scope_spans {
            let about = scope.scope.unwrap_or_default();
            scope.spans.iter().for_each(|span| *all.entry(shown(&resource, &about, span)).or_default() += 1);
        }
    }
    all
}

fn record_of(table: &SpanTable) -> Vec<u8> {
    table.record(b"", &Buffers::default()).unwrap().concat()
}

fn recorded(table: &SpanTable) -> (SpanTable, usize) {
    let record = record_of(table);
    let bytes = record.len();
    (SpanTable::read_record(record.into()).unwrap(), bytes)
}

#[tokio::test]
async fn spans_in_columns_of_any_form_are_those_spans() {
    let mut random = Random(0x7ab1e);
    for case in 0..300 {
        let mut builder = SpanBuilder::default();
        let mut all = Vec::new();
        let mut bytes = 0;
        for _ in 0..1 + random.below(3) {
            let spans: Vec<Whole> = (0..random.below(40)).map(|at| random_span(&mut random, all.len() as u64 + at)).collect();
            let mut batch = table_of(&mut random, &spans);
            if !spans.is_empty() && random.one_in(3) {
                // A slice of a longer table.
                let longer = [&[spans[0].clone()][..], &spans, &[spans[0].clone()]].concat();
                batch = table_of(&mut random, &longer).slice(1, spans.len());
            }
            let table = SpanTable::try_new(&batch).unwrap_or_else(|error| panic!("case {case}: {error}"));
            let (again, record_bytes) = recorded(&table);
            assert!(table.text_bytes >= again.text_bytes, "case {case}");
            builder.append_table(if random.one_in(2) { &table } else { &again }, record_bytes);
            bytes += if spans.is_empty() { 0 } else { record_bytes as u64 };
            all.extend(spans);
            if random.one_in(3) {
                drop(builder.snapshot());
            }
        }
        assert_eq!((builder.len(), builder.wire_bytes()), (all.len(), bytes), "case {case}");
        if !all.is_empty() {
            assert_eq!(read_back(&mut builder).await, expected(&all), "case {case}");
        }
    }
}

#[tokio::test]
async fn long_tables_are_appended_in_slices() {
    let mut random = Random(0x51ce5);
    let spans: Vec<Whole> = (0..70_000)
        .map(|number| match number % 1000 {
            0 => random_span(&mut random, number),
            _ => {
                let name = format!("op-{}", number % 3000);
                let span = Span {
                    trace_id: (number / 10 + 1).to_be_bytes().repeat(2),
                    span_id: (number + 1).to_be_bytes().to_vec(),
                    name,
                    start_time_unix_nano: START,
                    end_time_unix_nano: START,
                    ..Span::default()
                };
                Whole { resource: Vec::new(), scope: InstrumentationScope::default(), span }
            }
        })
        .collect();
    let table = SpanTable::try_new(&table_of(&mut random, &spans)).unwrap();
    let few = table.sparse.iter().all(|sparse| sparse.rows.len() <= 70 && !sparse.attributes.is_empty());
    assert!(table.attributes.is_empty() && !table.sparse.is_empty() && few, "one span in a thousand has attributes");
    let (again, _) = recorded(&table);
    let keys = |table: &SpanTable| table.sparse.iter().flat_map(|sparse| sparse.attributes.iter().map(|each| each.key.clone())).collect::<Vec<_>>();
    assert_eq!((again.attributes.len(), keys(&again)), (0, keys(&table)));
    let mut older = Vec::new();
    let streams = [table.batch().unwrap()].into_iter().chain(table.sparse.iter().map(|sparse| sparse.batch("span").unwrap()));
    for stream in streams {
        // Arrow's writer keeps the types as they are, as it was done before keys were narrow.
        let options = IpcWriteOptions::try_new(8, false, MetadataVersion::V5).unwrap();
        let mut writer = StreamWriter::try_new_with_options(&mut older, stream.schema_ref(), options).unwrap();
        writer.write(&stream).unwrap();
        writer.finish().unwrap();
    }
    let older = SpanTable::read_record(older.into()).unwrap();
    for table in [table, again, older] {
        let mut builder = SpanBuilder::default();
        builder.append_table(&table, 1 << 20);
        assert_eq!(builder.wire_bytes(), 1 << 20);
        assert_eq!(read_back(&mut builder).await, expected(&spans));
    }
}

/// Text that no two spans share is not interned for long, and then copied in runs.
#[tokio::test]
async fn texts_of_one_span_each_are_kept() {
    let pair = |text: String| KeyValue { key: "text".into(), value: Some(AnyValue { value: Some(Value::StringValue(text)) }), ..KeyValue::default() };
    let whole = |number: u64| {
        let text = || (!number.is_multiple_of(7)).then(|| pair(format!("{}-{number}", "x".repeat(number as usize % 40))));
        let event = |at: u64| span::Event {
            time_unix_nano: START + at * 1_000_000_000,
            name: "log".into(),
            attributes: text().into_iter().collect(),
            ..span::Event::default()
        };
        let span = Span {
            trace_id: (number / 5 + 1).to_be_bytes().repeat(2),
            span_id: (number + 1).to_be_bytes().to_vec(),
            start_time_unix_nano: START,
            end_time_unix_nano: START,
            attributes: text().into_iter().collect(),
            events: (0..number % 3).map(event).collect(),
            ..Span::default()
        };
        Whole { resource: Vec::new(), scope: InstrumentationScope::default(), span }
    };
    let (mut random, mut builder, mut all, mut plain) = (Random(0x7e87), SpanBuilder::default(), Vec::new(), [0, 0]);
    for from in (0..24_000).step_by(1_000) {
        let spans: Vec<Whole> = (from..from + 1_000).map(whole).collect();
        let longer = [&[whole(30_000), whole(30_001)][..], &spans, &[whole(30_000)]].concat();
        let table = SpanTable::try_new(&table_of(&mut random, &longer).slice(2, spans.len())).unwrap();
        let is_plain = |attribute: &Attribute| matches!(attribute.values, Values::Each(Typed::Text(Texts::Plain(_))));
        let of_events = table.events.as_ref().map(|events| &events.attributes);
        plain[0] += table.attributes.iter().filter(|attribute| is_plain(attribute)).count();
        plain[1] += of_events.into_iter().flatten().filter(|attribute| is_plain(attribute)).count();
        builder.append_table(&table, 1);
        all.extend(spans);
    }
    assert!(plain.iter().all(|&plain| plain > 3), "{plain:?} of 24 tables have plain text in spans and events");
    assert_eq!(read_back(&mut builder).await, expected(&all));
}

/// More keys than get a column, each on one span.
#[tokio::test]
async fn keys_beyond_those_that_get_columns_are_kept() {
    let pair =
        |key: u64| KeyValue { key: format!("key-{key}"), value: Some(AnyValue { value: Some(Value::IntValue(key as i64)) }), ..KeyValue::default() };
    let span = |number: u64| Span {
        trace_id: (number + 1).to_be_bytes().repeat(2),
        span_id: (number + 1).to_be_bytes().to_vec(),
        name: "op".into(),
        start_time_unix_nano: START,
        end_time_unix_nano: START,
        attributes: (0..4).map(|at| pair(number * 4 + at)).collect(),
        ..Span::default()
    };
    let whole = |number: u64| Whole { resource: Vec::new(), scope: InstrumentationScope::default(), span: span(number) };
    let spans: Vec<Whole> = (0..600).map(whole).collect();
    let table = SpanTable::try_new(&table_of(&mut Random(0x6e75), &spans)).unwrap();
    assert_eq!(table.sparse.iter().map(|sparse| sparse.attributes.len()).sum::<usize>(), 2400);
    let mut builder = SpanBuilder::default();
    builder.append_table(&table, 1 << 20);
    assert_eq!(read_back(&mut builder).await, expected(&spans));
}

/// `rows` spans with nothing but what is needed, and another column.
fn many(rows: usize, name: &str, array: ArrayRef) -> RecordBatch {
    let repeated = |array: &ArrayRef| arrow::compute::take(array, &Int32Array::from(vec![0; rows]), None).unwrap();
    let columns = three(vec![]).columns().iter().map(repeated).collect::<Vec<_>>();
    let names = ["trace_id", "span_id", "start_time", "duration_nanos"].map(str::to_owned);
    batch_of(names.into_iter().zip(columns).chain([(name.to_owned(), array)]).collect())
}

/// Three spans with nothing but what is needed, and `columns` instead of or beside it; None takes a column away.
fn three(columns: Vec<(&str, Option<ArrayRef>)>) -> RecordBatch {
    let mut all: Vec<(String, ArrayRef)> = vec![
        ("trace_id".into(), Arc::new(StringArray::from(vec!["0af7651916cd43dd8448eb211c80319c"; 3]))),
        ("span_id".into(), Arc::new(StringArray::from(vec!["00000000000000a1", "00000000000000a2", "00000000000000a3"]))),
        ("start_time".into(), Arc::new(TimestampNanosecondArray::from(vec![START as i64; 3]))),
        ("duration_nanos".into(), Arc::new(Int64Array::from(vec![10, 20, 30]))),
    ];
    for (name, array) in columns {
        let place = all.iter().position(|(known, _)| known == name);
        match (place, array) {
            (Some(place), Some(array)) => all[place].1 = array,
            (Some(place), None) => drop(all.remove(place)),
            (None, Some(array)) => all.push((name.to_owned(), array)),
            (None, None) => {}
        }
    }
    batch_of(all)
}

fn texts(values: [Option<&str>; 3]) -> ArrayRef {
    Arc::new(StringArray::from_iter(values))
}

fn check_refused(batch: &RecordBatch, expected: &[&str]) {
    let error = SpanTable::try_new(batch).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    for text in expected {
        assert!(error.to_string().contains(text), "'{error}' lacks '{text}'");
    }
}

#[test]
fn wrong_columns_are_refused_by_name_row_and_what_is_expected() {
    let check = |name: &str, array: Option<ArrayRef>, expected: &[&str]| check_refused(&three(vec![(name, array)]), expected);
    SpanTable::try_new(&three(vec![])).unwrap();
    for name in ["trace_id", "span_id", "start_time"] {
        check(name, None, &[&format!("no column \"{name}\"")]);
    }
    check("duration_nanos", None, &["neither \"end_time\" nor \"duration_nanos\""]);
    check(
        "span.nmae.x",
        Some(Arc::new(TimestampMillisecondArray::from(vec![1; 3]))),
        &["column \"span.nmae.x\"", "text, numbers, booleans", "Timestamp"],
    );
    check("nmae", Some(texts([None; 3])), &["unknown column \"nmae\"", "status_message"]);
    check("event.x", Some(texts([None; 3])), &["unknown column \"event.x\""]);
    let digits = "0af7651916cd43dd8448eb211c80319c";
    check("trace_id", Some(texts([Some(digits), None, Some(digits)])), &["column \"trace_id\", row 1", "32 hexadecimal digits", "null"]);
    check("trace_id", Some(texts([Some(digits), Some(digits), Some("0af7")])), &["row 2", "32 hexadecimal digits", "\"0af7\""]);
    check("span_id", Some(texts([Some("00000000000000a1"), Some("g0000000000000a1"), None])), &["column \"span_id\", row 2", "null"]);
    check("span_id", Some(texts([Some("00000000000000a1"), Some("g0000000000000a1"), Some("")])), &["row 1", "16 hexadecimal", "g000"]);
    check("span_id", Some(Arc::new(Int64Array::from(vec![1; 3]))), &["column \"span_id\"", "16 hexadecimal digits or 8 bytes", "Int64"]);
    check("span_id", Some(Arc::new(BinaryArray::from_vec(vec![&[1; 8], &[1; 7], &[1; 8]]))), &["row 1", "7 bytes"]);
    check("trace_id", Some(Arc::new(FixedSizeBinaryArray::try_from_iter([[1_u8; 8]; 3].iter()).unwrap())), &["row 0", "8 bytes"]);
    check("parent_span_id", Some(texts([None, Some("1"), Some("")])), &["column \"parent_span_id\", row 1", "\"1\""]);
    let dictionary: DictionaryArray<Int8Type> = vec![Some("bad"), None, Some("bad")].into_iter().collect();
    check("parent_span_id", Some(Arc::new(dictionary)), &["row 0", "\"bad\""]);
    check("start_time", Some(Arc::new(TimestampNanosecondArray::from(vec![1, -1, 1]))), &["column \"start_time\", row 1", "1970", "-1"]);
    check("start_time", Some(Arc::new(TimestampMillisecondArray::from(vec![1, 1, i64::MAX / 1000]))), &["row 2", "2262"]);
    check("start_time", Some(Arc::new(UInt64Array::from(vec![u64::MAX; 3]))), &["row 0"]);
    check("start_time", Some(Arc::new(Int64Array::from(vec![Some(1), None, Some(1)]))), &["row 1", "null"]);
    check("start_time", Some(texts([Some("2020"); 3])), &["timestamps or whole numbers", "Utf8"]);
    check("duration_nanos", Some(Arc::new(Int64Array::from(vec![0, i64::MAX, 0]))), &["column \"duration_nanos\", row 1", "2262"]);
    check("duration_nanos", Some(Arc::new(Float64Array::from(vec![1.0; 3]))), &["whole numbers", "Float64"]);
    let ends = [10, 20, 31].map(|nanos| START as i64 + nanos);
    check("end_time", Some(Arc::new(Int64Array::from(ends.to_vec()))), &["column \"end_time\", row 2", "start_time + duration_nanos", "leave one"]);
    check("kind", Some(texts([Some("server"), None, Some("Server")])), &["column \"kind\", row 2", "server, client", "\"Server\""]);
    check("kind", Some(Arc::new(UInt8Array::from(vec![0, 6, 1]))), &["column \"kind\", row 1", "got 6"]);
    check("status", Some(Arc::new(BooleanArray::from(vec![true; 3]))), &["column \"status\"", "unset, ok, error", "Boolean"]);
    check("name", Some(Arc::new(Int64Array::from(vec![1; 3]))), &["column \"name\": expected text, got the type Int64"]);
    check("flags", Some(Arc::new(Int64Array::from(vec![1, 1 << 32, 0]))), &["column \"flags\", row 1", "4294967295", "4294967296"]);
    check("dropped_links_count", Some(Arc::new(Int64Array::from(vec![1, 0, -1]))), &["column \"dropped_links_count\", row 2"]);
    check("span.big", Some(Arc::new(UInt64Array::from(vec![Some(1), None, Some(u64::MAX)]))), &["column \"span.big\", row 2", "9223372036854775807"]);
    let nested = ListArray::from_iter_primitive::<Float32Type, _, _>([Some(vec![Some(1.0)]), None, None]);
    let lists = ListArray::new(
        Arc::new(Field::new_list_field(nested.data_type().clone(), true)),
        OffsetBuffer::from_lengths([1, 1, 1]),
        Arc::new(nested),
        None,
    );
    check("resource.deep", Some(Arc::new(lists)), &["in lists", "column \"resource.deep\""]);
    let twice = batch_of([three(vec![]).column(1).clone(), three(vec![]).column(1).clone()].map(|array| ("span_id".to_owned(), array)).to_vec());
    check_refused(&twice, &["two columns have the name \"span_id\""]);
}

#[test]
fn what_is_wrong_where_few_have_a_value_is_told_by_its_row() {
    let numbers = UInt64Array::from_iter((0..2000).map(|row| match row {
        300 | 700 => Some(1),
        1400 => Some(u64::MAX),
        _ => None,
    }));
    check_refused(&many(2000, "span.big", Arc::new(numbers)), &["column \"span.big\", row 1400", "9223372036854775807"]);
}

#[test]
fn wrong_entries_are_refused_by_row_entry_and_field() {
    let list = |lengths: [usize; 3], columns: Vec<(&str, ArrayRef)>| {
        let columns = columns.into_iter().map(|(name, array)| (name.to_owned(), array)).collect();
        struct_list(&mut Random(1), lengths.to_vec(), columns)
    };
    let check = |name: &str, array: ArrayRef, expected: &[&str]| check_refused(&three(vec![(name, Some(array))]), expected);
    let times = |times: [i64; 3]| -> ArrayRef { Arc::new(Int64Array::from(times.to_vec())) };
    check("events", times([1; 3]), &["column \"events\"", "list of structs", "Int64"]);
    check("events", list([0, 2, 1], vec![("time", times([1, -5, 1]))]), &["column \"events\", row 1, entry 1, field \"time\"", "-5"]);
    check("events", list([0, 2, 1], vec![("event_name", texts([None; 3]))]), &["neither a field \"time\" nor \"since_start_nanos\""]);
    check("events", list([1, 1, 1], vec![("time", times([1; 3])), ("nmae", texts([None; 3]))]), &["unknown field \"nmae\"", "event_name"]);
    let both = vec![("time", times([START as i64 + 5; 3])), ("since_start_nanos", times([5, 5, 6]))];
    check("events", list([1, 1, 1], both), &["row 2, entry 0, field \"since_start_nanos\"", "which is 5", "leave one"]);
    let ids = || texts([Some("00000000000000a1"), Some("00000000000000a2"), Some("x")]);
    check("links", list([3, 0, 0], vec![("linked_span_id", ids())]), &["column \"links\"", "no field \"linked_trace_id\""]);
    let trace_ids = || texts([Some("0af7651916cd43dd8448eb211c80319c"); 3]);
    check(
        "links",
        list([3, 0, 0], vec![("linked_trace_id", trace_ids()), ("linked_span_id", ids())]),
        &["row 0, entry 2", "\"linked_span_id\"", "\"x\""],
    );
    check(
        "links",
        list([3, 0, 0], vec![("linked_trace_id", trace_ids()), ("linked_trace_id", trace_ids()), ("linked_span_id", ids())]),
        &["two fields have the name \"linked_trace_id\""],
    );
    let structs = StructArray::new(
        vec![Field::new("time", DataType::Int64, true)].into(),
        vec![times([1; 3])],
        Some(NullBuffer::from(vec![true, false, true])),
    );
    let item = Arc::new(Field::new_list_field(structs.data_type().clone(), true));
    let list = ListArray::new(item, OffsetBuffer::from_lengths([1, 1, 1]), Arc::new(structs), None);
    check("events", Arc::new(list), &["row 1, entry 0", "null"]);
}

#[test]
fn a_record_is_as_long_as_what_its_rows_hold() {
    let values: StringArray = (0..100_000).map(|number| Some(format!("a long enough value with the number {number}"))).collect();
    let dictionary =
        DictionaryArray::<UInt32Type>::try_new(arrow::array::UInt32Array::from(vec![Some(5), None, Some(77_777)]), Arc::new(values)).unwrap();
    let views: StringViewArray = [Some("x".repeat(1 << 20)), None, Some("y".to_owned())].into_iter().collect();
    let batch = three(vec![("span.a", Some(Arc::new(dictionary))), ("span.b", Some(Arc::new(views)))]);
    let table = SpanTable::try_new(&batch.slice(1, 2)).unwrap();
    let (again, bytes) = recorded(&table);
    assert!(bytes < 10_000, "{bytes} bytes");
    assert_eq!((again.len(), again.trace_runs()), (2, 1));
}

#[test]
fn what_few_bytes_can_mean_is_bounded() {
    let rows = 100_000;
    let long: ArrayRef = Arc::new(StringArray::from(vec!["z".repeat(1 << 10)]));
    let dictionary: ArrayRef = Arc::new(DictionaryArray::<Int8Type>::try_new(vec![0_i8; rows].into(), long.clone()).unwrap());
    let with = |name: &str, array: ArrayRef| many(rows, name, array);
    for name in ["span.a", "status_message", "trace_state", "name"] {
        check_refused(&with(name, dictionary.clone()), &["longer than 64 MiB", "send fewer spans"]);
    }
    // Once for a resource, however many spans it has.
    assert!(SpanTable::try_new(&with("resource.a", dictionary.clone())).is_ok());
    // A dictionary whose values are one text many times over.
    let shown = cast(&long, &DataType::Utf8View).and_then(|view| take(&view, &Int32Array::from(vec![0; rows]), None)).unwrap();
    let shown: ArrayRef = Arc::new(DictionaryArray::<Int8Type>::try_new(vec![0_i8; rows].into(), shown).unwrap());
    for name in ["span.a", "resource.a"] {
        check_refused(&with(name, shown.clone()), &["longer than 64 MiB"]);
    }
    let views: ArrayRef = Arc::new(cast(&dictionary.slice(0, rows), &DataType::Utf8View).unwrap());
    check_refused(&with("span.a", views), &["longer than 64 MiB"]);
    let many = NullArray::new(ROWS_MAX + 1);
    check_refused(&batch_of(vec![("name".into(), Arc::new(many))]), &["send smaller batches"]);
    let empties = NullArray::new(ENTRIES_MAX + 1);
    let lengths = OffsetBuffer::from_lengths([ENTRIES_MAX + 1, 0, 0]);
    let list = ListArray::new(Arc::new(Field::new_list_field(DataType::Null, true)), lengths, Arc::new(empties), None);
    check_refused(&three(vec![("span.a", Some(Arc::new(list)))]), &["at most 1048576 entries"]);
}

#[test]
fn nulls_stand_for_what_is_not_there() {
    let nulls = || -> Option<ArrayRef> { Some(Arc::new(NullArray::new(3))) };
    let optional = ["parent_span_id", "name", "kind", "status", "status_message", "flags", "events", "links", "span.a", "resource.a", "scope_name"];
    SpanTable::try_new(&three(optional.map(|name| (name, nulls())).to_vec())).unwrap();
    check_refused(&three(vec![("span_id", nulls())]), &["column \"span_id\", row 0", "null"]);
    check_refused(&three(vec![("start_time", nulls())]), &["column \"start_time\", row 0", "null"]);
    let empty = three(vec![("parent_span_id", Some(texts([Some(""), None, Some("0000000000000000")])))]);
    assert!(SpanTable::try_new(&empty).unwrap().parent_span_id.iter().all(|id| *id == 0));
}

/// Damaged records are refused or harmless: the checksum of the log vouches for bytes, not for who wrote them. `SKEIN_FUZZ_SECONDS` makes it run
/// that long.
#[test]
fn damaged_records_never_panic() {
    let started = Stopwatch::start();
    let at_least = std::env::var("SKEIN_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).map_or(Duration::ZERO, Duration::from_secs);
    let mut random = Random(0xda3a);
    let (mut record, mut round, mut refused) = (Vec::new(), 0, 0);
    while round < 20_000 || started.elapsed() < at_least {
        if round % 100 == 0 {
            let spans: Vec<Whole> = (0..random.below(8)).map(|at| random_span(&mut random, at)).collect();
            record = record_of(&SpanTable::try_new(&table_of(&mut random, &spans)).unwrap());
        }
        round += 1;
        let mut damaged = record.clone();
        for _ in 0..1 + random.below(4) {
            let at = random.below(damaged.len().max(1) as u64) as usize;
            match random.below(5) {
                _ if damaged.is_empty() => {}
                0 | 1 => damaged[at] = random.next() as u8,
                2 => damaged.truncate(at),
                3 => damaged[at] = 0xff,
                _ => damaged[at] = 0,
            }
        }
        match SpanTable::read_record(damaged.into()) {
            Ok(table) => {
                let mut builder = SpanBuilder::default();
                builder.append_table(&table, record.len());
                let set = builder.snapshot();
                if !set.is_empty() {
                    MemorySource::new(set);
                }
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Data, "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 1000, "{refused} refused");
    let other = Span::default().encode_to_vec();
    assert!(SpanTable::read_record(other.into()).is_err());
}
