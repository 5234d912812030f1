//! The methods of the protocol.

use std::sync::Arc;

use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse, PollInfo, PutResult,
    SchemaResult, Ticket, flight_service_server::FlightService, sql::Command,
};
use datafusion::arrow::error::ArrowError;
use futures::{StreamExt, stream};
use skein_engine::{
    error::{Error, ErrorKind, Result},
    tenant::TenantId,
};
use tonic::{Code, Request, Response, Status, Streaming, metadata::MetadataMap};

use super::{
    Call, FlightBackend, FlightState, MESSAGE_BYTES_MAX, Messages,
    asks::{self, Ask},
    auth,
    encode::{Encoding, schema_bytes},
};
use crate::status::{client_status, from_status};

type Answer<T> = std::result::Result<Response<T>, Status>;

/// The service over the process around it.
pub struct FlightSql {
    pub(crate) backend: Arc<dyn FlightBackend>,
    pub(crate) state: Arc<FlightState>,
}

/// Why a call is not answered.
#[derive(Debug)]
pub(crate) enum Refused {
    /// Asking the engine failed.
    Error(Error),
    /// There is no such thing here; which says what there is instead.
    Unimplemented(String),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl Refused {
    fn status(self) -> Status {
        match self {
            Self::Error(error) => client_status(&error),
            Self::Unimplemented(what) => Status::unimplemented(what),
        }
    }
}

/// An answer or why there is none.
pub(crate) type Reply<T> = std::result::Result<T, Refused>;

/// Who calls.
pub(crate) struct Caller {
    pub(crate) tenant: TenantId,
}

impl FlightSql {
    /// The service with what is kept between calls.
    pub fn new(backend: Arc<dyn FlightBackend>, state: Arc<FlightState>) -> Self {
        Self { backend, state }
    }

    /// Who calls. Errors: `Denied`, `Invalid`.
    pub(crate) fn caller(&self, metadata: &MetadataMap) -> Result<Caller> {
        Ok(Caller { tenant: auth::tenant_of(&*self.backend, metadata)? })
    }

    /// Counts a call that has one answer.
    async fn counted<T>(&self, method: &'static str, answer: impl Future<Output = Reply<T>>) -> Answer<T> {
        let call = self.backend.call(method);
        let answer = answer.await;
        call.ended(answer.is_ok());
        answer.map(Response::new).map_err(Refused::status)
    }

    /// Counts a call whose answer is a stream: it ends with that.
    async fn counted_stream<T: Send + 'static>(&self, method: &'static str, answer: impl Future<Output = Reply<Messages<T>>>) -> Answer<Messages<T>> {
        let call = self.backend.call(method);
        match answer.await {
            Ok(messages) => Ok(Response::new(until_ended(messages, call))),
            Err(refused) => {
                call.ended(false);
                Err(refused.status())
            }
        }
    }

    async fn info(&self, caller: &Caller, descriptor: FlightDescriptor) -> Reply<FlightInfo> {
        match asks::of_descriptor(&descriptor)? {
            Ask::Statement(statement) => Ok(self.info_of(caller, descriptor, statement).await?),
            Ask::Command(Command::CommandStatementQuery(query)) => {
                no_transaction(query.transaction_id.as_deref())?;
                Ok(self.info_of(caller, descriptor, asks::Statement::plain(query.query)).await?)
            }
            Ask::Command(Command::CommandPreparedStatementQuery(query)) => {
                let statement = self.prepared(caller, &query.prepared_statement_handle)?;
                Ok(self.info_of(caller, descriptor, statement).await?)
            }
            Ask::Command(command) => self.metadata_info(&command, descriptor),
        }
    }

    async fn rows(&self, caller: &Caller, ticket: &Ticket, encoding: Encoding) -> Reply<Messages<FlightData>> {
        match asks::of_bytes(&ticket.ticket)? {
            Ask::Statement(statement) => Ok(self.rows_of_statement(caller, statement, encoding).await?),
            Ask::Command(Command::TicketStatementQuery(ticket)) => Ok(self.rows_of_ticket(caller, &ticket, encoding).await?),
            Ask::Command(Command::CommandPreparedStatementQuery(query)) => {
                let statement = self.prepared(caller, &query.prepared_statement_handle)?;
                Ok(self.rows_of_statement(caller, statement, encoding).await?)
            }
            Ask::Command(command) => self.metadata_rows(caller, command, encoding).await,
        }
    }
}

/// Why a message of a client could not be read. What the gRPC library calls `INTERNAL` is a message that is no protobuf, `OUT_OF_RANGE` one that
/// is too long.
pub(crate) fn unreadable(status: &Status) -> Error {
    match from_status(status) {
        _ if status.code() == Code::OutOfRange => {
            let (most, text) = (MESSAGE_BYTES_MAX >> 20, status.message());
            Error::invalid(format!("a message is longer than {most} MiB: send smaller batches ({text})"))
        }
        error if error.kind() == ErrorKind::Internal => Error::invalid(format!("reading the messages that were sent: {}", error.message())),
        error => error,
    }
}

/// `messages`, and then the end of `call`.
fn until_ended<T: Send + 'static>(messages: Messages<T>, call: Box<dyn Call>) -> Messages<T> {
    stream::unfold((messages, Some(call), true), |(mut messages, mut call, ok)| async move {
        match messages.next().await {
            Some(message) => {
                let ok = ok && message.is_ok();
                Some((message, (messages, call, ok)))
            }
            None => {
                if let Some(call) = call.take() {
                    call.ended(ok);
                }
                None
            }
        }
    })
    .boxed()
}

/// Something that this server does not do.
pub(crate) fn unimplemented(what: impl Into<String>) -> Refused {
    Refused::Unimplemented(what.into())
}

/// What turns an error of Arrow into an `Internal` one, which happened when `doing`.
pub(crate) fn internal(doing: &'static str) -> impl Fn(ArrowError) -> Error {
    move |error| Error::internal(doing).with_source(error)
}

/// Errors: `Invalid` for a statement in a transaction.
pub(crate) fn no_transaction(transaction: Option<&[u8]>) -> Result<()> {
    match transaction {
        None | Some([]) => Ok(()),
        Some(_) => Err(Error::invalid("there are no transactions: send the statement without one")),
    }
}

#[tonic::async_trait]
impl FlightService for FlightSql {
    type HandshakeStream = Messages<HandshakeResponse>;
    type ListFlightsStream = Messages<FlightInfo>;
    type DoGetStream = Messages<FlightData>;
    type DoPutStream = Messages<PutResult>;
    type DoActionStream = Messages<arrow_flight::Result>;
    type ListActionsStream = Messages<ActionType>;
    type DoExchangeStream = Messages<FlightData>;

    async fn handshake(&self, request: Request<Streaming<HandshakeRequest>>) -> Answer<Self::HandshakeStream> {
        let answer = self.counted("Handshake", async { Ok(auth::token_of(&self.caller(request.metadata())?.tenant)) }).await?;
        let token = answer.into_inner();
        let header = auth::bearer(&token);
        let message = HandshakeResponse { protocol_version: 0, payload: token.into() };
        let mut response = Response::new(stream::iter([Ok(message)]).boxed());
        if let Some(header) = header {
            response.metadata_mut().insert("authorization", header);
        }
        Ok(response)
    }

    async fn list_flights(&self, request: Request<Criteria>) -> Answer<Self::ListFlightsStream> {
        self.counted_stream("ListFlights", async { Ok(self.flights(&self.caller(request.metadata())?).await?) }).await
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Answer<FlightInfo> {
        let (metadata, _, descriptor) = request.into_parts();
        self.counted("GetFlightInfo", async { self.info(&self.caller(&metadata)?, descriptor).await }).await
    }

    async fn poll_flight_info(&self, request: Request<FlightDescriptor>) -> Answer<PollInfo> {
        let (metadata, _, descriptor) = request.into_parts();
        // Whatever is asked for can be had at once.
        let whole = async { Ok(PollInfo { info: Some(self.info(&self.caller(&metadata)?, descriptor).await?), ..PollInfo::default() }) };
        self.counted("PollFlightInfo", whole).await
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Answer<SchemaResult> {
        let (metadata, _, descriptor) = request.into_parts();
        let schema = async { Ok(SchemaResult { schema: schema_bytes(&*self.schema_of(&self.caller(&metadata)?, &descriptor).await?)? }) };
        self.counted("GetSchema", schema).await
    }

    async fn do_get(&self, request: Request<Ticket>) -> Answer<Self::DoGetStream> {
        let (metadata, _, ticket) = request.into_parts();
        let rows = async { self.rows(&self.caller(&metadata)?, &ticket, Encoding::of(&metadata)?).await };
        self.counted_stream("DoGet", rows).await
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Answer<Self::DoPutStream> {
        let (metadata, _, messages) = request.into_parts();
        self.counted_stream("DoPut", async { self.put(&self.caller(&metadata)?, messages).await }).await
    }

    async fn do_exchange(&self, request: Request<Streaming<FlightData>>) -> Answer<Self::DoExchangeStream> {
        let (metadata, _, messages) = request.into_parts();
        let tail = async { Ok(self.tail(&self.caller(&metadata)?, messages, Encoding::of(&metadata)?).await?) };
        self.counted_stream("DoExchange", tail).await
    }

    async fn do_action(&self, request: Request<Action>) -> Answer<Self::DoActionStream> {
        let (metadata, _, action) = request.into_parts();
        self.counted_stream("DoAction", async { self.act(&self.caller(&metadata)?, action).await }).await
    }

    async fn list_actions(&self, _: Request<Empty>) -> Answer<Self::ListActionsStream> {
        self.counted_stream("ListActions", async { Ok(super::actions::list()) }).await
    }
}

/// A stream of one message.
pub(crate) fn one<T: Send + 'static>(message: T) -> Messages<T> {
    stream::iter([Ok(message)]).boxed()
}

/// The messages of `answers`.
pub(crate) fn all<T: Send + 'static>(answers: impl IntoIterator<Item = T, IntoIter: Send + 'static>) -> Messages<T> {
    stream::iter(answers.into_iter().map(Ok)).boxed()
}
