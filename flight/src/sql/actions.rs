//! `DoAction`: prepared statements, cancelling, and two of our own, `flush` and `explain`.

use arrow_flight::{
    Action, ActionType, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightInfo,
    sql::{
        ActionCancelQueryRequest, ActionCancelQueryResult, ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, Any,
        ProstMessageExt,
    },
};
use futures::StreamExt;
use prost::Message;
use skein_engine::error::{Error, Result};

use super::{
    Messages,
    asks::{self, Ask, Statement},
    service::{Caller, FlightSql, Reply, all, no_transaction, one, unimplemented},
};

const CREATE_PREPARED: &str = "CreatePreparedStatement";
const CLOSE_PREPARED: &str = "ClosePreparedStatement";
const CANCEL_QUERY: &str = "CancelQuery";
const CANCEL_FLIGHT_INFO: &str = "CancelFlightInfo";
const FLUSH: &str = "flush";
const EXPLAIN: &str = "explain";

/// `CANCEL_RESULT_CANCELLED` of FlightSql.proto.
const CANCELLED: i32 = 1;

/// The actions with what they do.
const ACTIONS: [(&str, &str); 6] = [
    (CREATE_PREPARED, "ActionCreatePreparedStatementRequest: checks a statement and keeps it; gives ActionCreatePreparedStatementResult"),
    (CLOSE_PREPARED, "ActionClosePreparedStatementRequest: forgets a prepared statement"),
    (CANCEL_QUERY, "ActionCancelQueryRequest: ends the streams of a query and forgets its tickets; gives ActionCancelQueryResult"),
    (CANCEL_FLIGHT_INFO, "CancelFlightInfoRequest: ends the streams of a query and forgets its tickets; gives CancelFlightInfoResult"),
    (FLUSH, "No body: writes the live spans of the tenant to blocks; ends when they are durable"),
    (EXPLAIN, "A statement, or a query in JSON as in tickets: gives its plan as text"),
];

/// The answer to `ListActions`.
pub(crate) fn list() -> Messages<ActionType> {
    all(ACTIONS.map(|(name, description)| ActionType { r#type: name.into(), description: description.into() }))
}

impl FlightSql {
    /// Does `action`. Errors: `Invalid`, `NotFound`; `Unimplemented` for an unknown one.
    pub(crate) async fn act(&self, caller: &Caller, action: Action) -> Reply<Messages<arrow_flight::Result>> {
        let body = match action.r#type.as_str() {
            CREATE_PREPARED => {
                let request: ActionCreatePreparedStatementRequest = unpack(&action)?;
                no_transaction(request.transaction_id.as_deref())?;
                self.create_prepared(caller, request.query).await?.as_any().encode_to_vec()
            }
            CLOSE_PREPARED => {
                let request: ActionClosePreparedStatementRequest = unpack(&action)?;
                self.close_prepared(caller, &request.prepared_statement_handle)?;
                return Ok(futures::stream::empty().boxed());
            }
            CANCEL_QUERY => {
                let request: ActionCancelQueryRequest = unpack(&action)?;
                let info =
                    FlightInfo::decode(&*request.info).map_err(|error| Error::invalid("the query to cancel is no FlightInfo").with_source(error))?;
                self.cancel(caller, &info)?;
                ActionCancelQueryResult { result: CANCELLED }.as_any().encode_to_vec()
            }
            CANCEL_FLIGHT_INFO => {
                let request = CancelFlightInfoRequest::decode(&*action.body)
                    .map_err(|error| Error::invalid("reading a CancelFlightInfoRequest").with_source(error))?;
                self.cancel(caller, &request.info.unwrap_or_default())?;
                CancelFlightInfoResult { status: CancelStatus::Cancelled as i32 }.encode_to_vec()
            }
            FLUSH => {
                self.backend.flush(caller.tenant.clone()).await?;
                return Ok(futures::stream::empty().boxed());
            }
            EXPLAIN => self.explain(caller, &action.body).await?.into_bytes(),
            other => return Err(unimplemented(format!("there is no action '{other}'; ListActions names them"))),
        };
        Ok(one(arrow_flight::Result { body: body.into() }))
    }

    /// The plan of the query in `body` as text. Errors: as planning and running.
    async fn explain(&self, caller: &Caller, body: &[u8]) -> Result<String> {
        let statement = match std::str::from_utf8(body) {
            Ok(text) if !text.starts_with('{') && text.chars().all(|c| !c.is_control() || c.is_whitespace()) => Statement::plain(text),
            _ => match asks::of_bytes(body)? {
                Ask::Statement(statement) => statement,
                Ask::Command(_) => return Err(Error::invalid("explain takes a statement as text, or a query in JSON")),
            },
        };
        let planned = self.backend.prepare(&caller.tenant, &format!("EXPLAIN {}", statement.text)).await?;
        self.text_of(caller, planned, statement.parameters).await
    }
}

/// The request in the body of `action`. Errors: `Invalid`.
fn unpack<M: ProstMessageExt>(action: &Action) -> Result<M> {
    let unreadable = || Error::invalid(format!("the body of {} is no {}", action.r#type, M::type_url()));
    Any::decode(&*action.body).ok().and_then(|any| any.unpack().ok()?).ok_or_else(unreadable)
}
