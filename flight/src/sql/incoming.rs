//! Messages of Flight as record batches, for what strangers send: bounded, and checked in every part before it is looked at.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use arrow_flight::FlightData;
use bytes::Bytes;
use datafusion::arrow::{
    array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, DictionaryArray, PrimitiveArray, RecordBatchOptions, new_empty_array},
    buffer::{Buffer, NullBuffer},
    compute::concat,
    datatypes::{
        ArrowDictionaryKeyType, ArrowNativeType, DataType, Field, Int8Type, Int16Type, Int32Type, Int64Type, Schema, SchemaRef, UInt8Type,
        UInt16Type, UInt32Type, UInt64Type,
    },
    error::ArrowError,
    ipc::{self, MessageHeader, MetadataVersion, reader::RecordBatchDecoder},
    record_batch::RecordBatch,
};
use futures::{Stream, StreamExt, stream};
use skein_engine::error::{Error, Result};
use tonic::Status;

use super::{MESSAGE_BYTES_MAX, service::unreadable};

/// Most bytes of dictionaries that a call may hold for the batches to come.
const DICTIONARY_BYTES_MAX: usize = 4 * MESSAGE_BYTES_MAX;

/// The batches in `messages`. Errors: `Invalid` for what is no Arrow, or too much of it; then it ends.
pub(super) fn batches(
    messages: impl Stream<Item = std::result::Result<FlightData, Status>> + Send + 'static,
) -> impl Stream<Item = Result<RecordBatch>> + Send + 'static {
    let incoming = Incoming::default();
    stream::try_unfold((messages.boxed(), incoming), |(mut messages, mut incoming)| async move {
        while let Some(message) = messages.next().await {
            let message = message.map_err(|status| unreadable(&status))?;
            // Arrow's reader asserts some of what a message says of itself instead of refusing it.
            let batch = catch_unwind(AssertUnwindSafe(|| incoming.take(message)));
            if let Some(batch) = batch.map_err(|_| Error::invalid("the record batches that were sent contradict their schema"))?? {
                return Ok(Some((batch, (messages, incoming))));
            }
        }
        Ok(None)
    })
}

/// The result of Arrow's readers.
type Read<T> = std::result::Result<T, ArrowError>;

/// What is known of the messages so far.
#[derive(Default)]
struct Incoming {
    bounds: Bounds,
    schema: Option<Known>,
}

/// A schema, and what came after it.
struct Known {
    schema: SchemaRef,
    /// The same with keys for the dictionaries that are columns.
    keyed: SchemaRef,
    /// The values of each dictionary, as the one column of a batch, by id.
    values: HashMap<i64, SchemaRef>,
    dictionaries: HashMap<i64, ArrayRef>,
}

impl Incoming {
    /// The batch of a message that has one. Errors: `Invalid` for what is no Arrow, comes out of order, or is too much.
    fn take(&mut self, message: FlightData) -> Result<Option<RecordBatch>> {
        let header = ipc::root_as_message(&message.data_header).map_err(|error| no_arrow(format!("no message of Arrow: {error}")))?;
        match header.header_type() {
            MessageHeader::NONE => Ok(None),
            MessageHeader::Schema if self.schema.is_some() => Err(no_arrow("a second schema")),
            MessageHeader::Schema => {
                self.schema = Some(Known::of(Schema::try_from(&message).map_err(wrong)?));
                Ok(None)
            }
            MessageHeader::DictionaryBatch => {
                let dictionary = header.header_as_dictionary_batch().ok_or_else(|| no_arrow("a dictionary without a head"))?;
                let known = self.schema.as_mut().ok_or_else(|| no_arrow("a dictionary before the schema"))?;
                self.bounds.add_dictionary(&dictionary, message.data_body.len())?;
                let batch = dictionary.data().ok_or_else(|| no_arrow("a dictionary without values"))?;
                check_body(&batch, &message.data_body)?;
                // A copy: a part of a message would hold all of it, however much else is in there.
                let body = Buffer::from(message.data_body.as_ref());
                known.add_dictionary(&body, batch, header.version(), (dictionary.id(), dictionary.isDelta())).map_err(wrong)?;
                Ok(None)
            }
            MessageHeader::RecordBatch => {
                let batch = header.header_as_record_batch().ok_or_else(|| no_arrow("a batch without a head"))?;
                let known = self.schema.as_ref().ok_or_else(|| no_arrow("a batch before the schema"))?;
                check_body(&batch, &message.data_body)?;
                // Where gRPC has received it nothing is aligned: Arrow copies what has to be, which is neither text nor keys of a byte. These hold
                // the message, until its batch is acknowledged, beside the copies.
                let body = Buffer::from(message.data_body.clone());
                known.batch(&body, batch, header.version()).map_err(wrong).map(Some)
            }
            other => Err(no_arrow(format!("a message of the type {other:?}"))),
        }
    }
}

impl Known {
    fn of(schema: Schema) -> Self {
        let keyed = |field: &Arc<Field>| match field.data_type() {
            DataType::Dictionary(key, _) => Arc::new(Field::new(field.name(), key.as_ref().clone(), true)),
            _ => field.clone(),
        };
        let keyed = Schema::new(schema.fields().iter().map(keyed).collect::<Vec<_>>());
        let mut values = HashMap::new();
        for field in schema.flattened_fields() {
            if let (Some(id), DataType::Dictionary(_, kind)) = (id_of(field), field.data_type()) {
                values.entry(id).or_insert_with(|| Arc::new(Schema::new(vec![Field::new("values", kind.as_ref().clone(), true)])));
            }
        }
        Self { schema: Arc::new(schema), keyed: Arc::new(keyed), values, dictionaries: HashMap::new() }
    }

    /// Keeps a dictionary for the batches to come, in place of the last with its id or, as a delta, behind it.
    fn add_dictionary(&mut self, body: &Buffer, batch: ipc::RecordBatch<'_>, version: MetadataVersion, (id, is_delta): (i64, bool)) -> Read<()> {
        let unknown = |what: &str| ArrowError::InvalidArgumentError(format!("{what} {id}"));
        let schema = self.values.get(&id).ok_or_else(|| unknown("the schema has no dictionary"))?.clone();
        let read = RecordBatchDecoder::try_new(body, batch, schema, &self.dictionaries, &version)?.read_record_batch()?;
        let mut values = read.column(0).clone();
        if is_delta {
            let before = self.dictionaries.get(&id).ok_or_else(|| unknown("there is nothing to add to in dictionary"))?;
            values = concat(&[before, &values])?;
        }
        self.dictionaries.insert(id, values);
        Ok(())
    }

    /// Reads a batch. Dictionaries are read as their keys, which lie in messages just so, and checked against their values here: Arrow looks at
    /// each key by itself, which takes a tenth of what a table of many columns costs.
    fn batch(&self, body: &Buffer, batch: ipc::RecordBatch<'_>, version: MetadataVersion) -> Read<RecordBatch> {
        let keyed = RecordBatchDecoder::try_new(body, batch, self.keyed.clone(), &self.dictionaries, &version)?.read_record_batch()?;
        let options = RecordBatchOptions::new().with_row_count(Some(keyed.num_rows()));
        let columns = self.schema.fields().iter().zip(keyed.columns());
        let columns = columns.map(|(field, column)| self.column(field, column)).collect::<Read<_>>()?;
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)
    }

    /// The column of `field`, whose dictionary `read` has the keys of.
    fn column(&self, field: &Field, read: &ArrayRef) -> Read<ArrayRef> {
        let DataType::Dictionary(key, values) = field.data_type() else { return Ok(read.clone()) };
        let values = match id_of(field).and_then(|id| self.dictionaries.get(&id)).cloned() {
            Some(values) => values,
            // It need not be sent where no row shows a value.
            None if read.null_count() == read.len() => new_empty_array(values),
            None => return Err(ArrowError::InvalidArgumentError(format!("the dictionary of column \"{}\" was not sent", field.name()))),
        };
        let count = values.len();
        let column = match **key {
            DataType::Int8 => with_values::<Int8Type>(read, values),
            DataType::Int16 => with_values::<Int16Type>(read, values),
            DataType::Int32 => with_values::<Int32Type>(read, values),
            DataType::Int64 => with_values::<Int64Type>(read, values),
            DataType::UInt8 => with_values::<UInt8Type>(read, values),
            DataType::UInt16 => with_values::<UInt16Type>(read, values),
            DataType::UInt32 => with_values::<UInt32Type>(read, values),
            DataType::UInt64 => with_values::<UInt64Type>(read, values),
            _ => None,
        };
        let wrong = || format!("column \"{}\" has keys that are none of its dictionary, which has {count} values", field.name());
        column.ok_or_else(|| ArrowError::InvalidArgumentError(wrong()))
    }
}

/// The number of the dictionary that a field has.
fn id_of(field: &Field) -> Option<i64> {
    // Nothing else tells.
    #[allow(deprecated)]
    field.dict_id()
}

/// The dictionary of these keys; None where one is the key of no value.
fn with_values<K: ArrowDictionaryKeyType>(keys: &ArrayRef, values: ArrayRef) -> Option<ArrayRef> {
    let keys = keys.as_primitive::<K>();
    if !are_keys_of(keys, values.len()) {
        return None;
    }
    // SAFETY: each key that is not null must be the number of a value, which has just been seen.
    // Measured: `try_new` takes 11 % of what a table of 161 columns costs.
    #[allow(unsafe_code)]
    let dictionary = unsafe { DictionaryArray::<K>::new_unchecked(keys.clone(), values) };
    Some(Arc::new(dictionary))
}

/// Whether each key that is not null is from 0 to below `values`. Below a null there may be any.
fn are_keys_of<K: ArrowPrimitiveType>(keys: &PrimitiveArray<K>, values: usize) -> bool {
    let of_valid = |nulls: &NullBuffer| nulls.valid_slices().all(|(from, to)| are_all_below(&keys.values()[from..to], values));
    are_all_below(keys.values(), values) || keys.nulls().is_some_and(of_valid)
}

/// Whether each number is from 0 to below `end`. Without a branch for each, so that many are compared at once.
fn are_all_below<N: ArrowNativeType>(numbers: &[N], end: usize) -> bool {
    let zero = N::default();
    match N::from_usize(end) {
        Some(end) => numbers.iter().fold(true, |all, number| all & (*number >= zero) & (*number < end)),
        // There are more values than numbers of this type.
        None => numbers.iter().fold(true, |all, number| all & (*number >= zero)),
    }
}

/// What a call may send, beside the length of each message.
#[derive(Debug, Default)]
struct Bounds {
    /// Bytes of the dictionaries that are kept for the batches to come, by id.
    dictionaries: HashMap<i64, usize>,
}

impl Bounds {
    /// Counts a dictionary of `bytes`. Errors: `Invalid` when all are too large together.
    fn add_dictionary(&mut self, dictionary: &ipc::DictionaryBatch<'_>, bytes: usize) -> Result<()> {
        let held = self.dictionaries.entry(dictionary.id()).or_default();
        // What a delta has is added to what is there.
        *held = bytes + if dictionary.isDelta() { *held } else { 0 };
        if self.dictionaries.values().sum::<usize>() > DICTIONARY_BYTES_MAX {
            let most = DICTIONARY_BYTES_MAX >> 20;
            return Err(Error::invalid(format!("the dictionaries of all columns together have more than {most} MiB: send plain values")));
        }
        Ok(())
    }
}

/// Errors: `Invalid` for compressed batches, of which a few bytes can mean as many as one likes, and for buffers that are not in the body.
fn check_body(batch: &ipc::RecordBatch<'_>, body: &Bytes) -> Result<()> {
    if batch.compression().is_some() {
        return Err(Error::invalid("batches are taken uncompressed: send them without IPC compression"));
    }
    let within = |buffer: &ipc::Buffer| {
        let end = buffer.offset().checked_add(buffer.length());
        buffer.offset() >= 0 && buffer.length() >= 0 && end.is_some_and(|end| end as u64 <= body.len() as u64)
    };
    match batch.buffers().is_none_or(|buffers| buffers.iter().all(within)) {
        true => Ok(()),
        false => Err(Error::invalid("a buffer of a batch lies outside of its message")),
    }
}

/// What a client sent is no Arrow.
fn wrong(error: ArrowError) -> Error {
    Error::invalid("reading the record batches that were sent").with_source(error)
}

fn no_arrow(what: impl Into<String>) -> Error {
    wrong(ArrowError::IpcError(what.into()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use arrow_flight::{decode::FlightRecordBatchStream, error::FlightError};
    use datafusion::arrow::{
        array::{ListArray, StringArray, StructArray},
        buffer::OffsetBuffer,
        ipc::writer::{DictionaryHandling, DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions},
    };

    use futures::{FutureExt, TryStreamExt};

    use skein_engine::{clock::Stopwatch, error::ErrorKind};

    use super::*;

    /// The schema, then the dictionary and the keys of each of `columns`, which are one column of several batches; dictionaries grow.
    fn messages(columns: &[ArrayRef]) -> Vec<FlightData> {
        let batches: Vec<RecordBatch> = columns.iter().map(|column| RecordBatch::try_from_iter([("column", column.clone())]).unwrap()).collect();
        encoded(&batches, DictionaryHandling::Delta)
    }

    fn encoded(batches: &[RecordBatch], handling: DictionaryHandling) -> Vec<FlightData> {
        encoded_with(batches, IpcWriteOptions::default().with_dictionary_handling(handling))
    }

    fn encoded_with(batches: &[RecordBatch], options: IpcWriteOptions) -> Vec<FlightData> {
        let (generator, mut tracker) = (IpcDataGenerator::default(), DictionaryTracker::new(false));
        let schema = generator.schema_to_bytes_with_dictionary_tracker(batches[0].schema_ref(), &mut tracker, &options);
        let mut messages = vec![FlightData::from(schema)];
        for batch in batches {
            let (dictionaries, batch) = generator.encode(batch, &mut tracker, &options, &mut IpcWriteContext::default()).unwrap();
            messages.extend(dictionaries.into_iter().chain([batch]).map(FlightData::from));
        }
        messages
    }

    fn column<K: ArrowDictionaryKeyType>(keys: PrimitiveArray<K>, values: &[&str]) -> ArrayRef {
        Arc::new(DictionaryArray::try_new(keys, Arc::new(StringArray::from(values.to_vec()))).unwrap())
    }

    /// What the last of `messages` is; all before have no batch.
    fn read(messages: &[FlightData]) -> Result<Option<RecordBatch>> {
        let (mut incoming, (last, before)) = (Incoming::default(), messages.split_last().unwrap());
        before.iter().for_each(|message| assert_eq!(incoming.take(message.clone()).unwrap(), None));
        incoming.take(last.clone())
    }

    fn check<K: ArrowDictionaryKeyType>(key: impl Fn(u8) -> K::Native) {
        let keys = || [0, 1, 2, 1].map(&key).to_vec();
        let all = column::<K>(PrimitiveArray::new(keys().into(), None), &["a", "b", "c"]);
        // Below a null lies the key of no value.
        let some = column::<K>(PrimitiveArray::new(keys().into(), Some(vec![true, true, false, true].into())), &["a", "b"]);
        for column in [all.clone(), some, all.slice(1, 2), all.slice(0, 0)] {
            let batch = read(&messages(std::slice::from_ref(&column))).unwrap().unwrap();
            assert_eq!(batch.column(0), &column);
        }
        let (few, mut many) = (messages(&[column::<K>(PrimitiveArray::new(vec![key(0)].into(), None), &["a"])]), messages(&[all]));
        many[1] = few[1].clone();
        let told = read(&many).unwrap_err().to_string();
        assert!(told.contains("column \"column\" has keys that are none of its dictionary, which has 1 values"), "{told}");
    }

    #[test]
    fn keys_are_those_of_values() {
        check::<Int8Type>(|key| key as i8);
        check::<Int16Type>(i16::from);
        check::<Int32Type>(i32::from);
        check::<Int64Type>(i64::from);
        check::<UInt8Type>(|key| key);
        check::<UInt16Type>(u16::from);
        check::<UInt32Type>(u32::from);
        check::<UInt64Type>(u64::from);

        let names: Vec<String> = (0..200).map(|name| name.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut sent = messages(&[column::<Int8Type>(PrimitiveArray::new(vec![0, 127, 1, 0, 0, 0, 0, 0].into(), None), &names)]);
        assert!(read(&sent).unwrap().is_some(), "more values than keys");
        sent[2].data_body = vec![0xff; sent[2].data_body.len()].into();
        assert!(read(&sent).is_err(), "keys below zero");
    }

    #[test]
    fn a_dictionary_that_is_needed_must_be_sent() {
        let keys = |valid: bool| column::<Int16Type>(PrimitiveArray::new(vec![0; 2].into(), Some(vec![valid, false].into())), &["a"]);
        for (valid, expected) in [(false, None), (true, Some("dictionary of column \"column\" was not sent"))] {
            let mut sent = messages(&[keys(valid)]);
            sent.remove(1);
            let told = read(&sent).map(|batch| assert_eq!(batch.unwrap().num_rows(), 2)).map_err(|error| error.to_string());
            match expected {
                None => told.unwrap(),
                Some(expected) => assert!(told.as_ref().is_err_and(|told| told.contains(expected)), "{told:?}"),
            }
        }
    }

    #[test]
    fn messages_come_in_order() {
        let sent = messages(&[column::<Int8Type>(PrimitiveArray::new(vec![0].into(), None), &["a"])]);
        let refused = |messages: &[usize], expected: &str| {
            let messages: Vec<FlightData> = messages.iter().map(|&at| sent[at].clone()).collect();
            let told = read(&messages).unwrap_err().to_string();
            assert!(told.contains(expected), "{told} lacks {expected}");
        };
        refused(&[1], "a dictionary before the schema");
        refused(&[2], "a batch before the schema");
        refused(&[0, 0], "a second schema");
        let told = read(&[FlightData::new().with_data_header(vec![1, 2, 3])]).unwrap_err().to_string();
        assert!(told.contains("no message of Arrow"), "{told}");
    }

    #[test]
    fn dictionaries_are_counted_as_long_as_they_are_held() {
        let growing = [&["a"][..], &["a", "b"]].map(|values| column::<Int32Type>(PrimitiveArray::new(vec![0].into(), None), values));
        let sent = messages(&growing);
        let mut bounds = Bounds::default();
        let mut add = |message: &FlightData| {
            let header = ipc::root_as_message(&message.data_header).unwrap();
            bounds.add_dictionary(&header.header_as_dictionary_batch().unwrap(), 30 << 20)
        };
        for _ in 0..5 {
            add(&sent[1]).unwrap();
        }
        add(&sent[3]).unwrap();
        let refused = add(&sent[3]).unwrap_err().to_string();
        assert!(refused.contains("more than 64 MiB"), "{refused}");
    }

    #[test]
    fn a_body_has_its_buffers_and_is_plain() {
        let column: ArrayRef = Arc::new(StringArray::from(vec!["abc"; 100]));
        let mut sent = messages(&[column]);
        sent[1].data_body = sent[1].data_body.slice(..16);
        assert!(read(&sent).unwrap_err().to_string().contains("outside of its message"));
        let compressed = IpcWriteOptions::default().try_with_compression(Some(ipc::CompressionType::LZ4_FRAME)).unwrap();
        let sent = encoded_with(&many(700), compressed);
        assert!(ours(&sent).unwrap_err().to_string().contains("uncompressed"));
    }

    /// Two batches with dictionaries in columns, in lists and in structs; those of the second begin as those of the first.
    fn many(rows: i32) -> [RecordBatch; 2] {
        let numbers = |most: i32| (0..rows).map(move |row| if row % 5 == 0 { None } else { Some(row % most) });
        let batch = |values: i32| {
            let names: Vec<String> = (0..values).map(|name| format!("name-{name}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let keys: ArrayRef = column::<Int32Type>(numbers(values).collect(), &names);
            let entries =
                StructArray::try_from(vec![("name", keys.clone()), ("number", Arc::new(numbers(3).collect::<PrimitiveArray<Int32Type>>()))]);
            let entries = entries.unwrap();
            let item = Arc::new(Field::new_list_field(entries.data_type().clone(), true));
            let lists = ListArray::new(item, OffsetBuffer::from_lengths(vec![1; rows as usize]), Arc::new(entries.clone()), None);
            RecordBatch::try_from_iter([
                ("int8", column::<Int8Type>(numbers(values).map(|key| key.map(|key| key as i8)).collect(), &names)),
                ("int32", keys),
                ("plain", Arc::new(StringArray::from_iter(numbers(values).map(|key| key.map(|key| names[key as usize])))) as ArrayRef),
                ("lists", Arc::new(lists)),
                ("structs", Arc::new(entries)),
            ])
            .unwrap()
        };
        [batch(9), batch(18)]
    }

    fn is_delta(message: &FlightData) -> bool {
        let header = ipc::root_as_message(&message.data_header).unwrap();
        header.header_as_dictionary_batch().is_some_and(|dictionary| dictionary.isDelta())
    }

    fn ours(messages: &[FlightData]) -> Result<Vec<RecordBatch>> {
        let messages: Vec<_> = messages.iter().cloned().map(Ok).collect();
        batches(stream::iter(messages)).try_collect().now_or_never().unwrap()
    }

    /// As Arrow reads them, which may refuse; None where it panics.
    fn theirs(messages: &[FlightData]) -> Option<std::result::Result<Vec<RecordBatch>, FlightError>> {
        let messages: Vec<_> = messages.iter().cloned().map(Ok).collect();
        let read = || FlightRecordBatchStream::new_from_flight_data(stream::iter(messages)).try_collect().now_or_never().unwrap();
        catch_unwind(AssertUnwindSafe(read)).ok()
    }

    /// The same messages whose bodies begin `from` bytes behind where an allocation does, as gRPC has them.
    fn displaced(messages: &[FlightData], from: usize) -> Vec<FlightData> {
        let place = |body: &Bytes| Bytes::from([&vec![0; from][..], body].concat()).slice(from..);
        messages.iter().map(|message| FlightData { data_body: place(&message.data_body), ..message.clone() }).collect()
    }

    #[test]
    fn what_was_sent_is_read() {
        for rows in [0, 1, 700, 40_000] {
            let sent = many(rows);
            for (handling, deltas) in [(DictionaryHandling::Resend, 0), (DictionaryHandling::Delta, 4)] {
                let messages = encoded(&sent, handling);
                assert_eq!(messages.iter().filter(|message| is_delta(message)).count(), deltas);
                for from in [0, 1, 2, 4, 7] {
                    assert_eq!(ours(&displaced(&messages, from)).unwrap(), sent, "{rows} rows, {from} bytes from where they were");
                }
            }
        }
        let nothing = RecordBatchOptions::new().with_row_count(Some(3));
        let nothing = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &nothing).unwrap();
        assert_eq!(ours(&encoded(std::slice::from_ref(&nothing), DictionaryHandling::Resend)).unwrap(), [nothing]);
    }

    /// Damaged messages are refused, or read as Arrow reads them with all its checks. `SKEIN_FUZZ_SECONDS` makes it run that long.
    #[test]
    fn damaged_messages_are_read_as_arrow_does_or_refused() {
        let started = Stopwatch::start();
        let at_least = std::env::var("SKEIN_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(0.0);
        let mut state = 0x5eed_u64;
        let mut below = |bound: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % bound as u64) as usize
        };
        let whole = encoded(&many(20), DictionaryHandling::Delta);
        let (mut round, mut refused, mut read, mut more) = (0, 0, 0, 0);
        while round < 5000 || started.seconds() < at_least {
            round += 1;
            let mut damaged = whole.clone();
            for _ in 0..1 + below(3) {
                let at = below(damaged.len());
                let message = &mut damaged[at];
                let part = if below(2) == 0 { &mut message.data_header } else { &mut message.data_body };
                let mut bytes = part.to_vec();
                if !bytes.is_empty() {
                    let at = below(bytes.len());
                    bytes[at] = [0, 0xff, 0x7f, below(256) as u8][below(4)];
                }
                *part = bytes.into();
            }
            match ours(&damaged) {
                Ok(batches) => {
                    read += 1;
                    batches.iter().flat_map(RecordBatch::columns).for_each(|column| column.to_data().validate_full().unwrap());
                    // Where Arrow reads dictionaries by itself it refuses, or panics at, some of what are harmless keys here.
                    match theirs(&damaged) {
                        Some(Ok(theirs)) => assert!(theirs == batches, "round {round}: {batches:?}"),
                        _ => more += 1,
                    }
                }
                Err(error) => {
                    refused += 1;
                    assert_eq!(error.kind(), ErrorKind::Invalid, "round {round}: {error}");
                    let told = error.to_string();
                    let only_here = ["outside of its message", "uncompressed", "without values"].iter().any(|only| told.contains(only));
                    assert!(only_here || !matches!(theirs(&damaged), Some(Ok(_))), "round {round}: {told}");
                }
            }
        }
        assert!(refused > 500 && read > 500 && more < read / 50, "{refused} refused, {read} read, {more} of them only here");
    }
}
