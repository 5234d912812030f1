//! Asking for rows, and writing spans, as a client does, to measure what that costs.

use std::{
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use arrow_flight::{
    FlightData, FlightDescriptor, Ticket,
    decode::FlightRecordBatchStream,
    encode::{DictionaryHandling, FlightDataEncoderBuilder},
    error::FlightError,
    flight_service_client::FlightServiceClient,
};
use datafusion::arrow::record_batch::RecordBatch;
use futures::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use skein_engine::error::{Error, Result};
use tonic::{
    Request,
    transport::{Channel, Endpoint},
};

use super::encode::COMPRESSION_KEY;
use crate::status::from_status;

/// Rows that were received.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exported {
    /// How many.
    pub rows: u64,
    /// Record batches.
    pub batches: u64,
    /// Bytes of the messages, dictionaries included.
    pub bytes: u64,
}

/// What to ask, and of whom.
#[derive(Debug, Clone, Copy)]
pub struct Export<'a> {
    /// `host:port` of the gRPC port.
    pub address: &'a str,
    /// Sent as `X-Scope-OrgID`.
    pub tenant: Option<&'a str>,
    /// `lz4` or `zstd`.
    pub compression: Option<&'a str>,
    /// The statement.
    pub sql: &'a str,
}

/// Receives all rows of a statement over one stream, decodes them and lets them go. Errors: the server's; `Unavailable` when it is away.
pub async fn export(ask: Export<'_>) -> Result<Exported> {
    receive(ask, |_| {}).await
}

/// The same, and each batch is handed to `take`.
pub async fn receive(ask: Export<'_>, mut take: impl FnMut(RecordBatch)) -> Result<Exported> {
    let mut client = connect(ask.address).await?;
    let mut request = Request::new(Ticket::new(serde_json::json!({ "sql": ask.sql }).to_string()));
    for (key, value) in [("x-scope-orgid", ask.tenant), (COMPRESSION_KEY, ask.compression)] {
        if let Some(value) = value {
            request.metadata_mut().insert(key, value.parse().map_err(|_| Error::invalid(format!("'{value}' cannot be sent as {key}")))?);
        }
    }
    let messages = client.do_get(request).await.map_err(|status| from_status(&status))?.into_inner();
    let mut exported = Exported::default();
    let counted = Arc::new(AtomicU64::new(0));
    let counting = counted.clone();
    let messages = messages.map_err(FlightError::from).inspect_ok(move |message: &FlightData| {
        let bytes = message.data_header.len() + message.data_body.len();
        counting.fetch_add(bytes as u64, Relaxed);
    });
    let mut batches = FlightRecordBatchStream::new_from_flight_data(messages.boxed());
    while let Some(batch) = batches.try_next().await.map_err(of_flight)? {
        exported.rows += batch.num_rows() as u64;
        exported.batches += 1;
        take(batch);
    }
    exported.bytes = counted.load(Relaxed);
    Ok(exported)
}

async fn connect(address: &str) -> Result<FlightServiceClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"));
    let endpoint = endpoint.map_err(|error| Error::invalid(format!("'{address}' is no address")).with_source(error))?;
    let channel = endpoint.connect().await.map_err(|error| Error::unavailable(format!("connecting to {address}")).with_source(error))?;
    Ok(FlightServiceClient::new(channel).max_decoding_message_size(usize::MAX))
}

/// What the server says of a batch that is written.
#[derive(Debug, Deserialize)]
struct Acknowledged {
    spans: u64,
}

/// Writes `batches`, which have one schema, in one call. Returns how many spans are acknowledged and the bytes of the messages, dictionaries
/// included. Errors: the server's; `Unavailable` when it is away.
pub async fn put(address: &str, tenant: Option<&str>, batches: Vec<RecordBatch>) -> Result<(u64, u64)> {
    let Some(schema) = batches.first().map(RecordBatch::schema) else { return Ok((0, 0)) };
    let encoder = FlightDataEncoderBuilder::new()
        .with_schema(schema)
        .with_dictionary_handling(DictionaryHandling::Resend)
        .with_max_flight_data_size(usize::MAX)
        .with_flight_descriptor(Some(FlightDescriptor::new_path(vec!["spans".to_owned()])))
        .build(stream::iter(batches.into_iter().map(Ok)));
    let counted = Arc::new(AtomicU64::new(0));
    let counting = counted.clone();
    // What cannot be encoded ends the stream, and the spans that are missing tell.
    let messages = encoder.take_while(|message| ready(message.is_ok())).filter_map(|message| ready(message.ok()));
    let messages = messages.inspect(move |message: &FlightData| {
        counting.fetch_add((message.data_header.len() + message.data_body.len()) as u64, Relaxed);
    });
    let mut request = Request::new(messages);
    if let Some(tenant) = tenant {
        request.metadata_mut().insert("x-scope-orgid", tenant.parse().map_err(|_| Error::invalid(format!("'{tenant}' cannot be sent")))?);
    }
    let mut answers = connect(address).await?.do_put(request).await.map_err(|status| from_status(&status))?.into_inner();
    let mut spans = 0;
    while let Some(answer) = answers.message().await.map_err(|status| from_status(&status))? {
        let told: Acknowledged = serde_json::from_slice(&answer.app_metadata).map_err(|error| Error::data("reading an answer").with_source(error))?;
        spans = told.spans;
    }
    Ok((spans, counted.load(Relaxed)))
}

fn of_flight(error: FlightError) -> Error {
    match error {
        FlightError::Tonic(status) => from_status(&status),
        error => Error::data("reading record batches").with_source(error),
    }
}
