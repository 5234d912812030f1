//! Asking for rows as a client does, to measure what that costs.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use arrow_flight::{FlightData, Ticket, decode::FlightRecordBatchStream, error::FlightError, flight_service_client::FlightServiceClient};
use futures::{StreamExt, TryStreamExt};
use skein_engine::error::{Error, Result};
use tonic::{Request, transport::Endpoint};

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
    let endpoint = Endpoint::from_shared(format!("http://{}", ask.address));
    let endpoint = endpoint.map_err(|error| Error::invalid(format!("'{}' is no address", ask.address)).with_source(error))?;
    let channel = endpoint.connect().await.map_err(|error| Error::unavailable(format!("connecting to {}", ask.address)).with_source(error))?;
    let mut client = FlightServiceClient::new(channel).max_decoding_message_size(usize::MAX);
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
    }
    exported.bytes = counted.load(Relaxed);
    Ok(exported)
}

fn of_flight(error: FlightError) -> Error {
    match error {
        FlightError::Tonic(status) => from_status(&status),
        error => Error::data("reading record batches").with_source(error),
    }
}
