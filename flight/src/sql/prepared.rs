//! Prepared statements: created, bound, executed, closed. Each execution plans the text anew, over the spans of its moment.

use std::sync::{Mutex, PoisonError};

use arrow_flight::sql::{ActionCreatePreparedStatementResult, DoPutPreparedStatementResult};
use bytes::Bytes;
use datafusion::{
    arrow::{
        datatypes::{DataType, Field, Schema},
        record_batch::RecordBatch,
    },
    common::{ParamValues, ScalarValue},
};
use futures::{Stream, TryStreamExt};
use skein_engine::error::{Error, Result};

use super::{
    asks::Statement,
    encode::schema_bytes,
    kept::Bounds,
    service::{Caller, FlightSql},
};

/// Bounds of prepared statements.
pub(crate) const PREPARED: Bounds = Bounds { what: "prepared statement", all: 4096, of_tenant: 512, seconds: 3600 };

/// A prepared statement.
#[derive(Debug)]
pub(crate) struct PreparedStatement {
    text: String,
    /// The names of its parameters, without `$`, in order.
    parameters: Vec<String>,
    bound: Mutex<Option<ParamValues>>,
}

impl PreparedStatement {
    /// The statement with the values that are bound to it.
    pub(crate) fn statement(&self) -> Statement {
        let parameters = self.bound.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Statement { text: self.text.clone(), parameters }
    }

    /// Takes the values of the one row of `batch`: by place where parameters are `$1, $2, …`, else by name. Errors: `Invalid`.
    fn bind(&self, batch: &RecordBatch) -> Result<()> {
        if batch.num_rows() != 1 {
            return Err(Error::invalid(format!("{} rows of parameters: bind one row for each execution", batch.num_rows())));
        }
        if batch.num_columns() != self.parameters.len() {
            let (expected, given) = (self.parameters.len(), batch.num_columns());
            return Err(Error::invalid(format!("the statement takes {expected} parameters, {given} were bound")));
        }
        let values = batch.columns().iter().map(|column| Ok(ScalarValue::try_from_array(column, 0)?));
        let by_place = self.parameters.iter().enumerate().all(|(at, name)| name.parse() == Ok(at + 1));
        let values = if by_place {
            ParamValues::List(values.map(|value: Result<ScalarValue>| Ok(value?.into())).collect::<Result<_>>()?)
        } else {
            let schema = batch.schema();
            let names = schema.fields().iter().map(|field| field.name().trim_start_matches(['$', ':']).to_owned());
            ParamValues::Map(names.zip(values).map(|(name, value)| Ok((name, value?.into()))).collect::<Result<_>>()?)
        };
        *self.bound.lock().unwrap_or_else(PoisonError::into_inner) = Some(values);
        Ok(())
    }
}

impl FlightSql {
    /// Plans `text` to see that it can be run, and keeps it. Errors: as planning.
    pub(crate) async fn create_prepared(&self, caller: &Caller, text: String) -> Result<ActionCreatePreparedStatementResult> {
        let planned = self.backend.prepare(&caller.tenant, &text).await?;
        let mut parameters = planned.parameters()?;
        parameters.sort_by_key(|(name, _)| (name.trim_start_matches('$').parse().unwrap_or(u64::MAX), name.clone()));
        let field = |(name, kind): &(String, Option<DataType>)| Field::new(name, kind.clone().unwrap_or(DataType::Null), true);
        let parameter_schema = Schema::new(parameters.iter().map(field).collect::<Vec<_>>());
        let names = parameters.into_iter().map(|(name, _)| name.trim_start_matches('$').to_owned()).collect();
        let prepared = PreparedStatement { text, parameters: names, bound: Mutex::default() };
        let handle = self.state.prepared.keep(&caller.tenant, prepared, self.backend.now_unix_nano());
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: handle.into(),
            dataset_schema: schema_bytes(&planned.schema())?,
            parameter_schema: schema_bytes(&parameter_schema)?,
        })
    }

    /// The statement of `handle` with what is bound to it. Errors: `NotFound`.
    pub(crate) fn prepared(&self, caller: &Caller, handle: &[u8]) -> Result<Statement> {
        Ok(self.state.prepared.get(&caller.tenant, handle, self.backend.now_unix_nano())?.statement())
    }

    /// Forgets the statement of `handle`. Errors: `NotFound`.
    pub(crate) fn close_prepared(&self, caller: &Caller, handle: &[u8]) -> Result<()> {
        self.state.prepared.take(&caller.tenant, handle, self.backend.now_unix_nano()).map(drop)
    }

    /// Binds the row of parameters in `batches`. Errors: `NotFound`; `Invalid` for anything but one row; those of `batches`.
    pub(crate) async fn bind_prepared(
        &self,
        caller: &Caller,
        handle: Bytes,
        batches: impl Stream<Item = Result<RecordBatch>> + Send + 'static,
    ) -> Result<DoPutPreparedStatementResult> {
        let prepared = self.state.prepared.get(&caller.tenant, &handle, self.backend.now_unix_nano())?;
        let (mut batches, mut bound) = (std::pin::pin!(batches), false);
        while let Some(batch) = batches.try_next().await? {
            if batch.num_rows() == 0 {
                continue;
            }
            if bound {
                return Err(Error::invalid("several batches of parameters: bind one row for each execution"));
            }
            prepared.bind(&batch)?;
            bound = true;
        }
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(handle) })
    }
}
