//! Arrow Flight and Flight SQL for strangers: SQL and TraceQL in, record batches out; and spans in, as record batches.
//!
//! | file | owns |
//! |---|---|
//! | `service` | the methods of the protocol: who is asked for what |
//! | `asks` | descriptors and tickets, Flight SQL's and plain ones in JSON, as statements |
//! | `statements` | `GetFlightInfo` and `DoGet`: statements that wait for their ticket, run, or are cancelled |
//! | `prepared` | prepared statements and their parameters |
//! | `incoming` | messages as batches: bounded and checked |
//! | `put` | `DoPut`: spans as record batches, and whose parameters they are otherwise |
//! | `tail` | `DoExchange`: matches of a search as they arrive |
//! | `metadata` | catalogs, schemas, tables, what the server can do |
//! | `actions` | `DoAction` |
//! | `auth` | which tenant asks: headers, handshake |
//! | [`export`] | a client that reads and writes, for measuring |
//! | `encode` | batches as messages: dictionaries, compression |
//! | `kept` | what is kept between two calls of a client: bounded, and forgotten after a while |
//!
//! A query is a statement whatever its form, so that all of them go through the same queue, limits and counts ([`FlightBackend`]). Data
//! leaves when the client takes it: behind the stream waits a batch and then the query. Knows nothing of HTTP and of the queue.

mod actions;
mod asks;
mod auth;
mod encode;
pub mod export;
mod incoming;
mod kept;
mod metadata;
mod prepared;
mod put;
mod service;
mod statements;
mod tail;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow_flight::flight_service_server::FlightServiceServer;
use async_trait::async_trait;
pub use datafusion::common::ParamValues;
use futures::stream::BoxStream;
use prometheus::Registry;
use skein_engine::{
    error::Result,
    exec::writer::SpanWriter,
    sql::{SqlRows, SqlStatement, Tail, TailPass, TailRequest},
    tenant::TenantId,
};
use tonic::Status;

pub use self::service::FlightSql;
use self::{kept::Kept, prepared::PreparedStatement, statements::WaitingStatement, tail::Tails};

use crate::metrics::TailMetrics;

/// Messages on their way to a client.
pub type Messages<T> = BoxStream<'static, Result<T, Status>>;

/// Longest message that is read.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// What the service needs of the process around it.
#[async_trait]
pub trait FlightBackend: Send + Sync + 'static {
    /// The tenant that `X-Scope-OrgID` names; None is no header. Errors: `Denied` when one is needed and missing; `Invalid`.
    fn tenant(&self, header: Option<&str>) -> Result<TenantId>;

    /// Reads, checks and plans a statement, when it is its turn. Errors: as [`SqlService::prepare`](skein_engine::sql::SqlService::prepare),
    /// and `Exhausted` when too many wait.
    async fn prepare(&self, tenant: &TenantId, text: &str) -> Result<SqlStatement>;

    /// Runs a statement when it is its turn, within the tenant's limits. The turn ends with the rows. Errors: `Exhausted` when too many wait;
    /// else as [`SqlStatement::run`].
    async fn run(&self, tenant: &TenantId, statement: SqlStatement, parameters: Option<ParamValues>) -> Result<SqlRows>;

    /// Begins a tail when it is its turn. Errors: as [`SqlService::tail`](skein_engine::sql::SqlService::tail), and `Exhausted` when too many wait.
    async fn tail(&self, tenant: &TenantId, request: TailRequest) -> Result<Tail>;

    /// One pass of a tail, when it is its turn. Errors: as [`SqlService::tail_pass`](skein_engine::sql::SqlService::tail_pass), and `Exhausted`
    /// when too many wait.
    async fn tail_pass(&self, tail: Tail) -> Result<(Tail, TailPass)>;

    /// Writes what is live of `tenant` to blocks. Errors: `NotFound` for a tenant that nothing is known of.
    async fn flush(&self, tenant: TenantId) -> Result<()>;

    /// Takes spans; None in a process that takes none.
    fn writer(&self) -> Option<Arc<dyn SpanWriter>>;

    /// Counts a call of `method` from now until the result is dropped or told how the call ended.
    fn call(&self, method: &'static str) -> Box<dyn Call>;

    /// Nanoseconds since the Unix epoch.
    fn now_unix_nano(&self) -> u64;
}

/// A call under way. Dropped without an end, the client has left.
pub trait Call: Send {
    /// The call has ended.
    fn ended(self: Box<Self>, ok: bool);
}

/// What is kept between calls; one for all ports and connections of a process.
#[derive(Debug)]
pub struct FlightState {
    waiting: Kept<WaitingStatement>,
    prepared: Kept<PreparedStatement>,
    tails: Arc<Tails>,
}

impl FlightState {
    /// Nothing yet. Errors: `Internal` when the registry has the metrics already.
    pub fn new(registry: &Registry) -> Result<Self> {
        Ok(Self {
            waiting: Kept::new(statements::WAITING),
            prepared: Kept::new(prepared::PREPARED),
            tails: Arc::new(Tails::new(TailMetrics::new(registry)?)),
        })
    }

    /// Ends what would never end by itself, and lets none of it begin: the process is stopping.
    pub fn close(&self) {
        self.tails.close();
    }
}

/// The service as tonic serves it.
pub fn server(backend: Arc<dyn FlightBackend>, state: Arc<FlightState>) -> FlightServiceServer<FlightSql> {
    // What leaves is cut by `encode`; a dictionary cannot be, so there is no bound on the way out.
    FlightServiceServer::new(FlightSql::new(backend, state)).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(usize::MAX)
}
