//! Record batches as Flight messages.
//!
//! Dictionaries stay dictionaries: a dictionary is sent when it differs from the one before, so once for all batches of a row group, and holds each
//! value once. Views of strings are sent as strings, in lists too, which every client reads; a slice of views would also be sent with the text of all rows.

use std::sync::Arc;

use arrow_flight::{
    FlightData, SchemaAsIpc,
    encode::{DictionaryHandling, FlightDataEncoderBuilder},
    error::FlightError,
};
use bytes::Bytes;
use datafusion::arrow::{
    compute::cast,
    datatypes::{DataType, FieldRef, Fields, Schema, SchemaRef},
    error::ArrowError,
    ipc::{CompressionType, writer::IpcWriteOptions},
    record_batch::{RecordBatch, RecordBatchOptions},
};
use futures::{StreamExt, stream, stream::BoxStream};
use skein_engine::{
    error::{Error, Result},
    sql::distinct::DistinctDictionaries,
};
use tonic::metadata::MetadataMap;

use super::Messages;
use crate::status::client_status;

/// The gRPC metadata key that asks for compressed batches.
pub(crate) const COMPRESSION_KEY: &str = "x-skein-compression";

/// About how long a message becomes. Clients often take 4 MiB and no more.
const MESSAGE_BYTES: usize = 2 << 20;

/// How a client wants its batches.
#[derive(Debug, Clone, Default)]
pub(crate) struct Encoding(IpcWriteOptions);

impl Encoding {
    /// The encoding that the metadata of a call asks for. Errors: `Invalid` for a compression that there is not.
    pub(crate) fn of(metadata: &MetadataMap) -> Result<Self> {
        let compression = match metadata.get(COMPRESSION_KEY).map(|value| value.as_bytes()) {
            None | Some(b"" | b"none") => None,
            Some(b"lz4") => Some(CompressionType::LZ4_FRAME),
            Some(b"zstd") => Some(CompressionType::ZSTD),
            Some(_) => return Err(Error::invalid(format!("{COMPRESSION_KEY} is lz4, zstd or none"))),
        };
        Ok(Self(IpcWriteOptions::default().try_with_compression(compression)?))
    }

    /// The messages of `batches`, the schema first.
    pub(crate) fn messages(self, schema: &Schema, batches: BoxStream<'static, Result<RecordBatch>>) -> Messages<FlightData> {
        let schema = wire_schema(schema);
        let sent = schema.clone();
        let mut dictionaries = DistinctDictionaries::default();
        let batches = batches.map(move |batch| {
            let batch = batch.and_then(|batch| as_sent(batch, &sent)).and_then(|batch| Ok(dictionaries.of(batch)?));
            batch.map_err(|error| FlightError::Tonic(Box::new(client_status(&error))))
        });
        let encoder = FlightDataEncoderBuilder::new()
            .with_schema(schema)
            .with_options(self.0)
            .with_dictionary_handling(DictionaryHandling::Resend)
            .with_max_flight_data_size(MESSAGE_BYTES)
            .build(batches);
        encoder
            .map(|message| {
                message.map_err(|error| match error {
                    FlightError::Tonic(status) => *status,
                    error => client_status(&Error::internal("encoding a batch").with_source(error)),
                })
            })
            .boxed()
    }
}

/// The columns as they are sent.
pub(crate) fn wire_schema(schema: &Schema) -> SchemaRef {
    Arc::new(Schema::new_with_metadata(schema.fields().iter().map(sent_field).collect::<Fields>(), schema.metadata().clone()))
}

fn sent_field(field: &FieldRef) -> FieldRef {
    match sent_type(field.data_type()) {
        Some(kind) => Arc::new(field.as_ref().clone().with_data_type(kind)),
        None => field.clone(),
    }
}

/// What is sent instead of `kind`, of lists and structures that have it too; None for itself.
fn sent_type(kind: &DataType) -> Option<DataType> {
    let changed = |kind: DataType, fields: &[&FieldRef]| fields.iter().any(|field| sent_type(field.data_type()).is_some()).then_some(kind);
    match kind {
        DataType::Utf8View => Some(DataType::Utf8),
        DataType::BinaryView => Some(DataType::Binary),
        DataType::List(item) => changed(DataType::List(sent_field(item)), &[item]),
        DataType::LargeList(item) => changed(DataType::LargeList(sent_field(item)), &[item]),
        DataType::FixedSizeList(item, length) => changed(DataType::FixedSizeList(sent_field(item), *length), &[item]),
        DataType::Struct(fields) => changed(DataType::Struct(fields.iter().map(sent_field).collect()), &fields.iter().collect::<Vec<_>>()),
        _ => None,
    }
}

/// `batch` with the columns that are sent.
fn as_sent(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = batch.columns().iter().zip(schema.fields()).map(|(column, field)| match column.data_type() == field.data_type() {
        true => Ok(column.clone()),
        false => cast(column, field.data_type()),
    });
    let columns = columns.collect::<std::result::Result<Vec<_>, ArrowError>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
}

/// The messages of one batch that is there already.
pub(crate) fn one(encoding: Encoding, batch: RecordBatch) -> Messages<FlightData> {
    encoding.messages(&batch.schema(), stream::iter([Ok(batch)]).boxed())
}

/// `schema`, as it is sent, as the message of an IPC stream. Errors: `Internal`.
pub(crate) fn schema_bytes(schema: &Schema) -> Result<Bytes> {
    let schema = &*wire_schema(schema);
    let message: arrow_flight::IpcMessage = SchemaAsIpc::new(schema, &IpcWriteOptions::default())
        .try_into()
        .map_err(|error: ArrowError| Error::internal("encoding a schema").with_source(error))?;
    Ok(message.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use arrow_flight::decode::FlightRecordBatchStream;
    use datafusion::arrow::{
        array::{Array, ArrayRef, ListArray, StringArray, StringViewArray, StructArray},
        buffer::OffsetBuffer,
        datatypes::Field,
    };
    use futures::TryStreamExt;

    use super::*;

    /// A list a row, of one structure that has a text.
    fn lists(texts: ArrayRef) -> ArrayRef {
        let part = Arc::new(Field::new("message", texts.data_type().clone(), true));
        let offsets = OffsetBuffer::from_lengths(std::iter::repeat_n(1, texts.len()));
        let structures = StructArray::new(vec![part].into(), vec![texts], None);
        let item = Arc::new(Field::new_list_field(structures.data_type().clone(), true));
        Arc::new(ListArray::new(item, offsets, Arc::new(structures), None))
    }

    #[tokio::test]
    async fn a_few_of_many_texts_go_alone_in_lists_too() {
        let texts: Vec<String> = (0..20_000).map(|number| format!("{number} is the number of a text that is long")).collect();
        let views: ArrayRef = Arc::new(texts.iter().map(|text| Some(text.as_str())).collect::<StringViewArray>());
        let batch = RecordBatch::try_from_iter_with_nullable([("text", views.clone(), true), ("events", lists(views), true)]).unwrap();
        let few = batch.slice(5_000, 3);
        let messages: Vec<FlightData> = one(Encoding::default(), few).try_collect().await.unwrap();
        let bytes: usize = messages.iter().map(|message| message.data_body.len()).sum();
        assert!(bytes < 2_000, "{bytes} bytes for six texts");
        let received = FlightRecordBatchStream::new_from_flight_data(stream::iter(messages.into_iter().map(Ok)));
        let received: Vec<RecordBatch> = received.try_collect().await.unwrap();
        let expected: ArrayRef = Arc::new(texts[5_000..5_003].iter().map(|text| Some(text.as_str())).collect::<StringArray>());
        assert_eq!(received.len(), 1);
        assert_eq!(received[0].column(0), &expected);
        assert_eq!(received[0].column(1), &lists(expected));
    }
}
