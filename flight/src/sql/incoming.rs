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
    buffer::Buffer,
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
use skein_engine::{
    buffers::Buffers,
    error::{Error, Result},
};
use tonic::Status;

use super::{MESSAGE_BYTES_MAX, service::unreadable};

/// Most bytes of dictionaries that a call may hold for the batches to come.
const DICTIONARY_BYTES_MAX: usize = 4 * MESSAGE_BYTES_MAX;

/// From this size on the body of a batch has a buffer that is used again.
const BODY_BYTES_MIN: usize = 128 << 10;

/// The batches in `messages`; `bodies` has buffers for theirs. Errors: `Invalid` for what is no Arrow, or too much of it; then it ends.
pub(super) fn batches(
    messages: impl Stream<Item = std::result::Result<FlightData, Status>> + Send + 'static,
    bodies: Buffers,
) -> impl Stream<Item = Result<RecordBatch>> + Send + 'static {
    let incoming = Incoming { bodies, bounds: Bounds::default(), schema: None };
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

/// What is known of the messages so far.
struct Incoming {
    bodies: Buffers,
    bounds: Bounds,
    schema: Option<Known>,
}

/// What is read, or why it cannot be.
type Read<T> = std::result::Result<T, ArrowError>;

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
    /// The batch of a message that has one.
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
                let body = Buffer::from(message.data_body.clone());
                known.add_dictionary(&body, batch, header.version(), (dictionary.id(), dictionary.isDelta())).map_err(wrong)?;
                Ok(None)
            }
            MessageHeader::RecordBatch => {
                let batch = header.header_as_record_batch().ok_or_else(|| no_arrow("a batch without a head"))?;
                let known = self.schema.as_ref().ok_or_else(|| no_arrow("a batch before the schema"))?;
                check_body(&batch, &message.data_body)?;
                // Arrow would copy the body of a batch, which is not aligned where gRPC has received it, each time into fresh memory.
                let body = match message.data_body.len() {
                    BODY_BYTES_MIN.. => Buffer::from(self.bodies.lend_aligned(&message.data_body)),
                    _ => Buffer::from(message.data_body.as_ref()),
                };
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
        match **key {
            DataType::Int8 => with_values::<Int8Type>(read, values),
            DataType::Int16 => with_values::<Int16Type>(read, values),
            DataType::Int32 => with_values::<Int32Type>(read, values),
            DataType::Int64 => with_values::<Int64Type>(read, values),
            DataType::UInt8 => with_values::<UInt8Type>(read, values),
            DataType::UInt16 => with_values::<UInt16Type>(read, values),
            DataType::UInt32 => with_values::<UInt32Type>(read, values),
            DataType::UInt64 => with_values::<UInt64Type>(read, values),
            _ => Err(ArrowError::SchemaError(format!("the keys of column \"{}\" are no whole numbers", field.name()))),
        }
    }
}

/// The number of the dictionary that a field has.
fn id_of(field: &Field) -> Option<i64> {
    // Nothing else tells.
    #[allow(deprecated)]
    field.dict_id()
}

/// The dictionary of these keys. Errors: for keys of no value.
fn with_values<K: ArrowDictionaryKeyType>(keys: &ArrayRef, values: ArrayRef) -> Read<ArrayRef> {
    let keys = keys.as_primitive::<K>();
    if !are_keys_of(keys, values.len()) {
        // Says which of them is wrong.
        return Ok(Arc::new(DictionaryArray::<K>::try_new(keys.clone(), values)?));
    }
    // SAFETY: each key that is not null must be the number of a value, which has just been seen.
    // Measured: `try_new` takes 11 % of what a table of 161 columns costs.
    #[allow(unsafe_code)]
    let dictionary = unsafe { DictionaryArray::<K>::new_unchecked(keys.clone(), values) };
    Ok(Arc::new(dictionary))
}

/// Whether each key that is not null is from 0 to below `values`. Below a null there may be any.
fn are_keys_of<K: ArrowPrimitiveType>(keys: &PrimitiveArray<K>, values: usize) -> bool {
    match keys.nulls() {
        Some(nulls) if nulls.null_count() == nulls.len() => true,
        Some(nulls) if !are_all_below(keys.values(), values) => {
            nulls.valid_slices().all(|(from, to)| are_all_below(&keys.values()[from..to], values))
        }
        _ => are_all_below(keys.values(), values),
    }
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
    use datafusion::arrow::{
        array::StringArray,
        ipc::writer::{DictionaryHandling, DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions},
    };

    use super::*;

    fn incoming() -> Incoming {
        Incoming { bodies: Buffers::default(), bounds: Bounds::default(), schema: None }
    }

    /// The schema, the dictionary and the keys of columns; of each of them the dictionary may grow.
    fn messages(columns: &[ArrayRef]) -> Vec<FlightData> {
        let options = IpcWriteOptions::default().with_dictionary_handling(DictionaryHandling::Delta);
        let (generator, mut tracker) = (IpcDataGenerator::default(), DictionaryTracker::new(false));
        let batches: Vec<RecordBatch> = columns.iter().map(|column| RecordBatch::try_from_iter([("column", column.clone())]).unwrap()).collect();
        let schema = generator.schema_to_bytes_with_dictionary_tracker(batches[0].schema_ref(), &mut tracker, &options);
        let mut messages = vec![FlightData::from(schema)];
        for batch in batches {
            let (dictionaries, batch) = generator.encode(&batch, &mut tracker, &options, &mut IpcWriteContext::default()).unwrap();
            messages.extend(dictionaries.into_iter().chain([batch]).map(FlightData::from));
        }
        messages
    }

    fn column<K: ArrowDictionaryKeyType>(keys: PrimitiveArray<K>, values: &[&str]) -> ArrayRef {
        Arc::new(DictionaryArray::try_new(keys, Arc::new(StringArray::from(values.to_vec()))).unwrap())
    }

    /// What the last of `messages` is; all before have no batch.
    fn read(messages: &[FlightData]) -> Result<Option<RecordBatch>> {
        let (mut incoming, (last, before)) = (incoming(), messages.split_last().unwrap());
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
        let told = format!("{:?}", read(&many).unwrap_err());
        assert!(told.contains("out of bounds"), "{told}");
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
            let told = read(&sent).map(|batch| assert_eq!(batch.unwrap().num_rows(), 2)).map_err(|error| format!("{error:?}"));
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
            let told = format!("{:?}", read(&messages).unwrap_err());
            assert!(told.contains(expected), "{told} lacks {expected}");
        };
        refused(&[1], "a dictionary before the schema");
        refused(&[2], "a batch before the schema");
        refused(&[0, 0], "a second schema");
        let told = format!("{:?}", read(&[FlightData::new().with_data_header(vec![1, 2, 3])]).unwrap_err());
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
}
