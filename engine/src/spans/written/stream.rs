//! A batch as an Arrow IPC stream, for the log: written in parts, so that long buffers are those of its columns instead of copies, and read back.
//!
//! Arrow's own writer copies each buffer, those of dictionaries twice, and has to be given columns that are narrow already; it took an eighth of
//! what a table of many columns costs.

use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow::{
    array::{Array, ArrayRef, AsArray, Int32Array},
    buffer::{Buffer, OffsetBuffer, ScalarBuffer},
    datatypes::{DataType, Field, Float64Type, Int32Type, Int64Type, Schema, UInt32Type},
    ipc::{
        Buffer as BufferPlace, DictionaryBatchBuilder, FieldNode, MessageBuilder, MessageHeader, MetadataVersion, RecordBatchBuilder,
        reader::StreamDecoder,
        writer::{DictionaryTracker, IpcDataGenerator, IpcWriteOptions},
    },
    record_batch::RecordBatch,
};
use bytes::Bytes;
use flatbuffers::FlatBufferBuilder;

use super::keys;
use crate::{
    buffers::Buffers,
    error::{Error, Result},
};

/// The end of a stream.
const END: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

/// What a message begins with, before the length of its head.
const CONTINUES: [u8; 4] = [0xff; 4];

/// Bytes to which heads and buffers are padded: a record of few spans is mostly padding otherwise.
const ALIGNMENT: usize = 8;

/// From this length on a buffer is not copied. A part of a write of its own is not free either, so many short ones would not pay.
const LONG_BYTES: usize = 4 << 10;

/// A batch as a stream, in the order of its bytes.
pub(super) struct Stream {
    parts: Vec<Part>,
}

/// A part of a stream; padding follows.
enum Part {
    Bytes(Vec<u8>),
    Buffer(Buffer),
    /// Numbers that 8 bits hold, and 16; those where there is a null may be any.
    Narrow8(ScalarBuffer<i32>),
    Narrow16(ScalarBuffer<i32>),
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Buffer(buffer) => buffer.len(),
            Self::Narrow8(numbers) => numbers.len(),
            Self::Narrow16(numbers) => numbers.len() * 2,
        }
    }

    fn is_long(&self) -> bool {
        matches!(self, Self::Buffer(buffer) if buffer.len() >= LONG_BYTES)
    }
}

fn padding(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT) - bytes
}

impl Stream {
    /// Columns of the types that a checked table has; keys and small numbers become narrow. Errors: `Internal` for other types.
    pub(super) fn of(batch: &RecordBatch) -> Result<Self> {
        let fields: Vec<Field> = batch
            .schema_ref()
            .fields()
            .iter()
            .zip(batch.columns())
            .map(|(field, array)| field.as_ref().clone().with_data_type(narrow(array)))
            .collect();
        let options = IpcWriteOptions::try_new(ALIGNMENT, false, MetadataVersion::V5)?;
        let head = |schema| IpcDataGenerator {}.schema_to_bytes_with_dictionary_tracker(schema, &mut DictionaryTracker::new(false), &options);
        let mut heads = Heads::default();
        let (mut body, mut dictionaries) = (Body::default(), Vec::new());
        for (array, field) in batch.columns().iter().zip(&fields) {
            body.add(array, field.data_type(), &mut dictionaries)?;
        }
        let mut parts = vec![Part::Bytes(framed(&head(&Schema::new(fields)).ipc_message))];
        // They are numbered in the order in which the schema names them, which is that in which they were found.
        for (id, (rows, body)) in dictionaries.into_iter().enumerate() {
            parts.push(Part::Bytes(heads.message(Some(id as i64), rows, &body)));
            parts.extend(body.parts);
        }
        parts.push(Part::Bytes(heads.message(None, batch.num_rows(), &body)));
        parts.extend(body.parts);
        parts.push(Part::Bytes(END.into()));
        Ok(Self { parts })
    }

    fn copied_bytes(&self) -> usize {
        self.parts.iter().map(|part| padding(part.len()) + if part.is_long() { 0 } else { part.len() }).sum()
    }
}

/// The type in which a column is written: keys in as few bytes as its values need, numbers in one where that is enough.
fn narrow(array: &ArrayRef) -> DataType {
    match array.data_type() {
        DataType::Int32 => {
            let numbers: &Int32Array = array.as_primitive();
            let fits = numbers.null_count() == 0 && numbers.values().iter().all(|&number| i8::try_from(number).is_ok());
            if fits { DataType::Int8 } else { DataType::Int32 }
        }
        DataType::Dictionary(_, values) => DataType::Dictionary(Box::new(keys::key_type(keys::values_in(array))), values.clone()),
        kind => kind.clone(),
    }
}

/// What follows the head of a message, and what the head says of it.
#[derive(Default)]
struct Body {
    nodes: Vec<FieldNode>,
    places: Vec<BufferPlace>,
    parts: Vec<Part>,
    bytes: usize,
}

/// Dictionaries that were found: how many values, and these.
type Dictionaries = Vec<(usize, Body)>;

impl Body {
    fn push(&mut self, part: Part) {
        let length = part.len();
        self.places.push(BufferPlace::new(self.bytes as i64, length as i64));
        self.bytes += length.next_multiple_of(ALIGNMENT);
        if length > 0 {
            self.parts.push(part);
        }
    }

    /// Adds a column that is written as `kind`, which is its type or a narrower one.
    fn add(&mut self, array: &ArrayRef, kind: &DataType, dictionaries: &mut Dictionaries) -> Result<()> {
        self.nodes.push(FieldNode::new(array.len() as i64, array.null_count() as i64));
        let nulls = array.nulls().filter(|nulls| nulls.null_count() > 0);
        self.push(Part::Buffer(nulls.map_or_else(Buffer::default, |nulls| nulls.inner().sliced())));
        match array.data_type() {
            DataType::Int64 => self.push(Part::Buffer(array.as_primitive::<Int64Type>().values().inner().clone())),
            DataType::Float64 => self.push(Part::Buffer(array.as_primitive::<Float64Type>().values().inner().clone())),
            DataType::UInt32 => self.push(Part::Buffer(array.as_primitive::<UInt32Type>().values().inner().clone())),
            DataType::Int32 => self.push(numbers(array.as_primitive::<Int32Type>().values(), kind)),
            DataType::Boolean => self.push(Part::Buffer(array.as_boolean().values().sliced())),
            DataType::Utf8 => self.add_bytes(array.as_string::<i32>().offsets(), array.as_string::<i32>().values()),
            DataType::Binary => self.add_bytes(array.as_binary::<i32>().offsets(), array.as_binary::<i32>().values()),
            DataType::Dictionary(_, _) => return self.add_dictionary(array, kind, dictionaries),
            DataType::List(item) => {
                let list = array.as_list::<i32>();
                let entries = self.add_offsets(list.offsets());
                return self.add(&list.values().slice(entries.0, entries.1), item.data_type(), dictionaries);
            }
            DataType::Struct(fields) => {
                return array
                    .as_struct()
                    .columns()
                    .iter()
                    .zip(fields)
                    .try_for_each(|(column, field)| self.add(column, field.data_type(), dictionaries));
            }
            kind => return Err(Error::internal(format!("a table of spans has a column of the type {kind}"))),
        }
        Ok(())
    }

    /// Offsets that begin at 0; returns where what they show begins, and how long it is.
    fn add_offsets(&mut self, offsets: &OffsetBuffer<i32>) -> (usize, usize) {
        let (first, last) = (offsets[0], offsets[offsets.len() - 1]);
        self.push(match first {
            0 => Part::Buffer(offsets.inner().inner().clone()),
            _ => Part::Buffer(offsets.iter().map(|offset| offset - first).collect::<ScalarBuffer<i32>>().into_inner()),
        });
        (first as usize, (last - first) as usize)
    }

    fn add_bytes(&mut self, offsets: &OffsetBuffer<i32>, values: &Buffer) {
        let (from, length) = self.add_offsets(offsets);
        self.push(Part::Buffer(values.slice_with_length(from, length)));
    }

    fn add_dictionary(&mut self, array: &ArrayRef, kind: &DataType, dictionaries: &mut Dictionaries) -> Result<()> {
        let (dictionary, DataType::Dictionary(key, _)) = (array.as_dictionary_opt::<Int32Type>(), kind) else {
            return Err(Error::internal(format!("a dictionary of the type {} is to be written as {kind}", array.data_type())));
        };
        let dictionary = dictionary.ok_or_else(|| Error::internal("a dictionary in a table of spans has keys of other than 32 bits"))?;
        self.push(numbers(dictionary.keys().values(), key));
        let mut values = Self::default();
        values.add(dictionary.values(), dictionary.values().data_type(), &mut Vec::new())?;
        dictionaries.push((dictionary.values().len(), values));
        Ok(())
    }
}

fn numbers(values: &ScalarBuffer<i32>, kind: &DataType) -> Part {
    match kind {
        DataType::Int8 => Part::Narrow8(values.clone()),
        DataType::Int16 => Part::Narrow16(values.clone()),
        _ => Part::Buffer(values.inner().clone()),
    }
}

/// Makes the heads of messages, in one buffer.
#[derive(Default)]
struct Heads {
    builder: FlatBufferBuilder<'static>,
}

impl Heads {
    /// That of the dictionary with an id, or of the batch.
    fn message(&mut self, dictionary: Option<i64>, rows: usize, body: &Body) -> Vec<u8> {
        let builder = &mut self.builder;
        builder.reset();
        let (places, nodes) = (builder.create_vector(&body.places), builder.create_vector(&body.nodes));
        let mut batch = RecordBatchBuilder::new(builder);
        batch.add_length(rows as i64);
        batch.add_nodes(nodes);
        batch.add_buffers(places);
        let batch = batch.finish();
        let (kind, header) = match dictionary {
            None => (MessageHeader::RecordBatch, batch.as_union_value()),
            Some(id) => {
                let mut dictionary = DictionaryBatchBuilder::new(builder);
                dictionary.add_id(id);
                dictionary.add_data(batch);
                (MessageHeader::DictionaryBatch, dictionary.finish().as_union_value())
            }
        };
        let mut message = MessageBuilder::new(builder);
        message.add_version(MetadataVersion::V5);
        message.add_header_type(kind);
        message.add_bodyLength(body.bytes as i64);
        message.add_header(header);
        let message = message.finish();
        builder.finish(message, None);
        framed(builder.finished_data())
    }
}

/// The head of a message behind its length.
fn framed(head: &[u8]) -> Vec<u8> {
    let padded = head.len().next_multiple_of(ALIGNMENT);
    let mut framed = Vec::with_capacity(CONTINUES.len() + 4 + padded);
    framed.extend_from_slice(&CONTINUES);
    framed.extend_from_slice(&(padded as u32).to_le_bytes());
    framed.extend_from_slice(head);
    framed.resize(framed.len() + padding(head.len()), 0);
    framed
}

/// Streams behind `mark`, as parts that follow each other; what is copied is in one of `buffers`.
pub(super) fn write(mark: &[u8], streams: &[Stream], buffers: &Buffers) -> Vec<Bytes> {
    let mut copied = buffers.take(mark.len() + streams.iter().map(Stream::copied_bytes).sum::<usize>());
    copied.extend_from_slice(mark);
    let mut long = Vec::new();
    for part in streams.iter().flat_map(|stream| &stream.parts) {
        match part {
            Part::Buffer(buffer) if part.is_long() => long.push((copied.len(), buffer)),
            Part::Buffer(buffer) => copied.extend_from_slice(buffer),
            Part::Bytes(bytes) => copied.extend_from_slice(bytes),
            Part::Narrow8(numbers) => copied.extend(numbers.iter().map(|&number| number as u8)),
            Part::Narrow16(numbers) => {
                let from = copied.len();
                copied.resize(from + part.len(), 0);
                let places = copied[from..].as_chunks_mut().0;
                places.iter_mut().zip(numbers.iter()).for_each(|(place, &number)| *place = (number as u16).to_le_bytes());
            }
        }
        copied.resize(copied.len() + padding(part.len()), 0);
    }
    between(&buffers.lend(copied), &long)
}

/// What was copied, with the long buffers at their places in it.
fn between(copied: &Bytes, long: &[(usize, &Buffer)]) -> Vec<Bytes> {
    let (mut parts, mut from) = (Vec::with_capacity(long.len() * 2 + 1), 0);
    for &(place, buffer) in long {
        if place > from {
            parts.push(copied.slice(from..place));
        }
        parts.push(Bytes::from_owner(Held(buffer.clone())));
        from = place;
    }
    parts.push(copied.slice(from..));
    parts
}

/// A column's buffer that is a part of a record.
struct Held(Buffer);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// The batch of the stream that `bytes` begin with, which become what follows it. Errors: `Data` for anything else.
pub(super) fn read(bytes: &mut Buffer) -> Result<RecordBatch> {
    let damaged = |error: arrow::error::ArrowError| Error::data("reading a table of spans").with_source(error);
    let mut decoder = StreamDecoder::new();
    // Arrow's reader asserts some of what a stream says of itself instead of refusing it.
    let batch = catch_unwind(AssertUnwindSafe(|| decoder.decode(bytes)));
    let batch = batch.map_err(|_| Error::data("reading a table of spans: it contradicts its schema"))?.map_err(damaged)?;
    let batch = batch.ok_or_else(|| Error::data("reading a table of spans: there is no batch"))?;
    if !bytes.starts_with(&END) {
        return Err(Error::data("reading a table of spans: a stream does not end after its batch"));
    }
    bytes.advance(END.len());
    keys::widened(&batch).map_err(|error| Error::data("reading a table of spans").with_source(error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use arrow::{
        array::{BinaryArray, BooleanArray, DictionaryArray, Float64Array, Int64Array, ListArray, StringArray, StructArray, UInt32Array},
        compute::cast,
    };

    use super::*;

    fn written(batch: &RecordBatch, mark: &[u8]) -> Vec<Bytes> {
        write(mark, &[Stream::of(batch).unwrap()], &Buffers::default())
    }

    /// What Arrow's reader and ours make of a batch that was written.
    fn both_read(batch: &RecordBatch) -> (RecordBatch, RecordBatch) {
        let bytes = written(batch, b"").concat();
        let narrow = arrow::ipc::reader::StreamReader::try_new(&bytes[..], None).unwrap().next().unwrap().unwrap();
        let mut rest = Buffer::from([&bytes[..], b"more"].concat());
        let wide = read(&mut rest).unwrap();
        assert_eq!(&rest[..], b"more");
        (narrow, wide)
    }

    fn dictionary(distinct: usize) -> ArrayRef {
        let values = StringArray::from_iter_values((0..distinct).map(|number| number.to_string()));
        let mut keys: Vec<Option<i32>> = (0..40_000).map(|row| (row % 7 > 0).then_some(row % distinct as i32)).collect();
        keys[1..=distinct].iter_mut().zip(0..).for_each(|(key, number)| *key = Some(number));
        Arc::new(DictionaryArray::<Int32Type>::try_new(Int32Array::from(keys), Arc::new(values)).unwrap())
    }

    #[test]
    fn columns_come_back_from_fewer_bytes() {
        let numbers = |most: i32| -> ArrayRef { Arc::new(Int32Array::from_iter_values((0..40_000).map(|row| row % (most + 1)))) };
        let other: ArrayRef = Arc::new(Int64Array::from(vec![1; 40_000]));
        let any_key = Int32Array::new(vec![0, 1, 1_000_000, 0].into(), Some(vec![true, true, false, true].into()));
        let any_key: ArrayRef = Arc::new(DictionaryArray::<Int32Type>::try_new(any_key, Arc::new(StringArray::from(vec!["a", "b"]))).unwrap());
        for (column, expected) in [
            (dictionary(128), DataType::Int8),
            (dictionary(129), DataType::Int16),
            (dictionary(0x8000), DataType::Int16),
            (dictionary(0x8001), DataType::Int32),
            (numbers(127), DataType::Int8),
            (numbers(128), DataType::Int32),
            (any_key.slice(1, 3), DataType::Int8),
            (Arc::new(Int32Array::from(vec![-128, 127])), DataType::Int8),
            (Arc::new(Int32Array::from(vec![-129])), DataType::Int32),
            (Arc::new(Int32Array::from(vec![Some(1), None])), DataType::Int32),
            (other, DataType::Int64),
        ] {
            let batch = RecordBatch::try_from_iter([("column", column)]).unwrap();
            let (narrow, wide) = both_read(&batch);
            let kind = match narrow.column(0).data_type() {
                DataType::Dictionary(key, _) => (**key).clone(),
                kind => kind.clone(),
            };
            assert_eq!(kind, expected);
            assert_eq!(wide, batch);
        }
    }

    /// A batch of `rows` rows with a column of each type, dictionaries and nulls at each depth.
    fn all_types(rows: usize) -> RecordBatch {
        let there = |row: usize| row % 5 != 1;
        let texts = |rows: usize| (0..rows).map(|row| there(row).then(|| format!("text {row}"))).collect::<Vec<_>>();
        let repeated = |rows: usize| -> ArrayRef {
            Arc::new((0..rows).map(|row| there(row).then_some(["a", "b", "c"][row % 3])).collect::<DictionaryArray<Int32Type>>())
        };
        let messages = BinaryArray::from_iter_values((0..rows.max(1)).map(|row| vec![row as u8; row % 9]));
        let keys = Int32Array::from_iter_values((0..rows).map(|row| (row * 7 % rows) as i32));
        let with_nulls = BinaryArray::from_iter((0..rows).map(|row| there(row).then(|| vec![row as u8; row % 9])));
        // Values of which one is null, and which are a part of others.
        let of_nulls = Int32Array::from_iter_values((0..rows).map(|row| (row % 2) as i32));
        let of_nulls = DictionaryArray::<Int32Type>::try_new(of_nulls, Arc::new(BinaryArray::from(vec![Some(&b"x"[..]), None]))).unwrap();
        let part = StringArray::from(vec!["other", "of a part", "of more", "other"]).slice(1, 2);
        let of_part = |rows: usize| -> ArrayRef {
            let keys = Int32Array::from_iter_values((0..rows).map(|row| (row % 3 / 2) as i32));
            Arc::new(DictionaryArray::<Int32Type>::try_new(keys, Arc::new(part.clone())).unwrap())
        };
        let offsets = OffsetBuffer::from_lengths((0..rows).map(|row| row % 3));
        let entries = offsets[rows] as usize;
        let columns: [(&str, ArrayRef); 3] =
            [("name", repeated(entries)), ("text", Arc::new(StringArray::from(texts(entries)))), ("part", of_part(entries))];
        let columns = columns.into_iter().map(|(name, array)| (Arc::new(Field::new(name, array.data_type().clone(), true)), array));
        let structs = StructArray::from(columns.collect::<Vec<_>>());
        let item = Arc::new(Field::new("item", structs.data_type().clone(), false));
        RecordBatch::try_from_iter_with_nullable([
            ("ints", Arc::new(Int64Array::from_iter((0..rows as i64).map(|row| (row % 3 > 0).then_some(row)))) as ArrayRef, true),
            ("doubles", Arc::new(Float64Array::from_iter_values((0..rows).map(|row| row as f64))), true),
            ("bools", Arc::new((0..rows).map(|row| there(row).then_some(row % 2 > 0)).collect::<BooleanArray>()), true),
            ("rows", Arc::new(UInt32Array::from_iter_values(0..rows as u32)), true),
            ("codes", Arc::new(Int32Array::from_iter_values((0..rows as i32).map(|row| row % 4))), true),
            ("texts", Arc::new(StringArray::from(texts(rows))), true),
            ("lists", Arc::new(ListArray::try_new(item, offsets, Arc::new(structs), None).unwrap()), true),
            ("repeated", repeated(rows), true),
            ("of nulls", Arc::new(of_nulls), true),
            ("of a part", of_part(rows), true),
            ("messages", Arc::new(DictionaryArray::<Int32Type>::try_new(keys, Arc::new(messages.clone())).unwrap()), true),
            ("bytes", Arc::new(messages.slice(0, rows)), true),
            ("bytes and nulls", Arc::new(with_nulls), true),
        ])
        .unwrap()
    }

    #[test]
    fn columns_of_every_type_come_back_from_slices_too() {
        for rows in [1, 2, 7, 64, 1000] {
            let whole = all_types(rows);
            for (from, length) in [(0, rows), (0, 0), (rows / 2, rows - rows / 2), (1, rows - 1), (rows / 3, rows / 3)] {
                let batch = whole.slice(from, length);
                let (narrow, wide) = both_read(&batch);
                assert_eq!(wide, batch, "{from} and {length} more");
                for (narrow, column) in narrow.columns().iter().zip(batch.columns()) {
                    assert_eq!(&cast(narrow, column.data_type()).unwrap(), column, "as Arrow reads it");
                }
            }
        }
    }

    fn buffers_of(data: &arrow::array::ArrayData) -> Vec<Buffer> {
        data.buffers().iter().cloned().chain(data.child_data().iter().flat_map(buffers_of)).collect()
    }

    #[test]
    fn long_buffers_are_those_of_the_columns() {
        let batch = all_types(4000);
        let parts = written(&batch, b"mark");
        assert!(parts[0].starts_with(b"mark"));
        let all: Vec<Buffer> = batch.columns().iter().flat_map(|column| buffers_of(&column.to_data())).collect();
        let (theirs, copied): (Vec<&Bytes>, Vec<&Bytes>) = parts.iter().partition(|part| all.iter().any(|buffer| part.as_ptr() == buffer.as_ptr()));
        // What is not theirs are narrow keys, bits, and heads.
        let [theirs, copied] = [theirs, copied].map(|parts| parts.iter().map(|part| part.len()).sum::<usize>());
        assert!(theirs > 300_000 && copied < 60_000, "{theirs} bytes are theirs, {copied} copies");
        let short = written(&all_types(3), b"");
        assert_eq!(short.len(), 1, "what is short is in one part");
    }

    #[test]
    fn other_types_are_an_error() {
        let times: ArrayRef = Arc::new(arrow::array::TimestampSecondArray::from(vec![1]));
        let small: ArrayRef = Arc::new(DictionaryArray::<arrow::datatypes::Int8Type>::from_iter(["a"]));
        for array in [times, small] {
            let error = Stream::of(&RecordBatch::try_from_iter([("column", array)]).unwrap()).map(|_| ()).unwrap_err();
            assert_eq!(error.kind(), crate::error::ErrorKind::Internal, "{error}");
        }
    }
}
