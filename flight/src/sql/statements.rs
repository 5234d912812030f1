//! Statements between `GetFlightInfo` and `DoGet`.
//!
//! `GetFlightInfo` plans a statement, over the spans that are there at that moment, and keeps it under the handle of its ticket. All tickets
//! of an answer are over the same snapshot, however late they are brought. A ticket may be brought more than once.

use std::sync::{Mutex, PoisonError};

use arrow_flight::{
    FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, Ticket,
    sql::{Any, ProstMessageExt, TicketStatementQuery},
};
use datafusion::common::ParamValues;
use futures::{
    StreamExt,
    future::{AbortHandle, Abortable},
    stream,
};
use prost::Message;
use skein_engine::{
    error::{Error, ErrorKind, Result},
    sql::SqlStatement,
    tenant::TenantId,
};
use tonic::Status;

use super::{
    Messages,
    asks::Statement,
    encode::{Encoding, wire_schema},
    kept::Bounds,
    service::{Caller, FlightSql, internal},
};

/// Bounds of the statements that wait for their tickets. Each holds on to the live spans of its moment.
pub(crate) const WAITING: Bounds = Bounds { what: "ticket", all: 256, of_tenant: 64, seconds: 300 };

/// Streams of one statement that can be cancelled; those beyond end when their client leaves.
const STREAMS_MAX: usize = 64;

/// A statement that waits for its tickets.
pub(crate) struct WaitingStatement {
    statement: SqlStatement,
    parameters: Option<ParamValues>,
    /// How many tickets there are.
    parts: usize,
    /// What ends its streams.
    streams: Mutex<Vec<AbortHandle>>,
}

impl WaitingStatement {
    /// Ends the streams under way. Clients hear `CANCELLED`.
    pub(crate) fn cancel(&self) {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(AbortHandle::abort);
    }

    /// `messages`, until the statement is cancelled.
    fn cancellable(&self, messages: Messages<FlightData>) -> Messages<FlightData> {
        let (handle, registration) = AbortHandle::new_pair();
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if streams.len() >= STREAMS_MAX {
            streams.remove(0);
        }
        streams.push(handle.clone());
        let cancelled = stream::once(async move { handle.is_aborted().then(|| Err(Status::cancelled("the query was cancelled"))) });
        Abortable::new(messages, registration).chain(cancelled.filter_map(|end| async { end })).boxed()
    }
}

impl FlightSql {
    /// Plans `statement` and tells how its rows can be had. Errors: as the backend's.
    pub(crate) async fn info_of(&self, caller: &Caller, descriptor: FlightDescriptor, statement: Statement) -> Result<FlightInfo> {
        let Statement { text, parameters } = statement;
        let statement = self.backend.prepare(&caller.tenant, &text).await?;
        let schema = wire_schema(&statement.schema());
        let parts = statement.parts(parameters.clone()).await?;
        let waiting = WaitingStatement { statement, parameters, parts, streams: Mutex::default() };
        let now = self.backend.now_unix_nano();
        let handle = self.state.waiting.keep(&caller.tenant, waiting, now);
        let until = self.state.waiting.until(now);
        let endpoints = (0..parts).map(|part| FlightEndpoint::new().with_ticket(ticket(&handle, part)).with_expiration_time(timestamp(until)));
        let info = FlightInfo::new().try_with_schema(&schema).map_err(internal("encoding a schema"))?;
        let info = info.with_descriptor(descriptor).with_endpoints(endpoints.collect());
        // One stream has the order that the statement asks for; several are only made where it asks for none.
        Ok(info.with_ordered(parts == 1).with_total_records(-1).with_total_bytes(-1))
    }

    /// The rows of the statement that waits for `ticket`. Errors: `NotFound` for a ticket that has expired or is another's; else as running.
    pub(crate) async fn rows_of_ticket(&self, caller: &Caller, ticket: &TicketStatementQuery, encoding: Encoding) -> Result<Messages<FlightData>> {
        let (handle, part) = handle_of(ticket);
        let waiting = self.state.waiting.get(&caller.tenant, handle, self.backend.now_unix_nano())?;
        let statement = match part {
            0 if waiting.parts == 1 => waiting.statement.clone(),
            part if part < waiting.parts => waiting.statement.clone().part(part),
            _ => return Err(Error::new(ErrorKind::NotFound, "there is no such ticket: the answer has fewer parts")),
        };
        let messages = self.rows_of(&caller.tenant, statement, waiting.parameters.clone(), encoding).await?;
        Ok(waiting.cancellable(messages))
    }

    /// The rows of a statement that nobody waited for. Errors: as planning and running.
    pub(crate) async fn rows_of_statement(&self, caller: &Caller, statement: Statement, encoding: Encoding) -> Result<Messages<FlightData>> {
        let planned = self.backend.prepare(&caller.tenant, &statement.text).await?;
        self.rows_of(&caller.tenant, planned, statement.parameters, encoding).await
    }

    async fn rows_of(
        &self,
        tenant: &TenantId,
        statement: SqlStatement,
        parameters: Option<ParamValues>,
        encoding: Encoding,
    ) -> Result<Messages<FlightData>> {
        let rows = self.backend.run(tenant, statement, parameters).await?;
        Ok(encoding.messages(&rows.schema, rows.batches))
    }

    /// Forgets the statement of a ticket and ends its streams. Errors: `NotFound`, `Invalid`.
    pub(crate) fn cancel(&self, caller: &Caller, info: &FlightInfo) -> Result<()> {
        let tickets = info.endpoint.iter().filter_map(|endpoint| endpoint.ticket.as_ref());
        let handles = tickets.filter_map(|ticket| Any::decode(&*ticket.ticket).ok()?.unpack::<TicketStatementQuery>().ok()?);
        let handles: std::collections::BTreeSet<Vec<u8>> = handles.map(|ticket| handle_of(&ticket).0.to_vec()).collect();
        if handles.is_empty() {
            return Err(Error::invalid("the FlightInfo has no ticket of a statement: cancel what GetFlightInfo gave"));
        }
        for handle in handles {
            self.state.waiting.take(&caller.tenant, &handle, self.backend.now_unix_nano())?.cancel();
        }
        Ok(())
    }
}

/// The ticket for one part: the handle and then the number of the part.
fn ticket(handle: &[u8], part: usize) -> Ticket {
    let statement_handle = [handle, &(part as u32).to_be_bytes()].concat().into();
    Ticket::new(TicketStatementQuery { statement_handle }.as_any().encode_to_vec())
}

/// The handle and the part in a ticket. A ticket that is not ours gives a handle that is not known.
fn handle_of(ticket: &TicketStatementQuery) -> (&[u8], usize) {
    let bytes = &*ticket.statement_handle;
    let (handle, part) = bytes.split_at(bytes.len().saturating_sub(4));
    (handle, part.try_into().map_or(0, |part| u32::from_be_bytes(part) as usize))
}

fn timestamp(unix_nano: u64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: (unix_nano / 1_000_000_000) as i64, nanos: (unix_nano % 1_000_000_000) as i32 }
}
