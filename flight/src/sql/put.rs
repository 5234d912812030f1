//! `DoPut`: spans as record batches, and the parameters of prepared statements.

use std::sync::Arc;

use arrow_flight::{
    FlightData, FlightDescriptor, PutResult,
    flight_descriptor::DescriptorType,
    sql::{Any, Command, CommandStatementIngest, DoPutUpdateResult, TableDefinitionOptions, TableExistsOption},
};
use bytes::Bytes;
use datafusion::arrow::record_batch::RecordBatch;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use prost::Message;
use serde::Deserialize;
use skein_engine::{
    error::{Error, Result},
    exec::writer::{SpanWriter, WriteRefusal},
    sql::session::{CATALOG, schema_name},
    tenant::TenantId,
};
use tonic::{Status, Streaming};

use super::{
    Messages,
    incoming::batches,
    service::{Caller, FlightSql, Reply, no_transaction, one, unimplemented, unreadable},
};
use crate::status::refusal_status;

/// The one table that is written.
const TABLE: &str = "spans";

/// What is put.
#[derive(Debug)]
enum Target {
    /// Spans, each batch acknowledged by itself.
    Spans,
    /// Spans, acknowledged together: the way of Flight SQL.
    Ingest,
    /// Parameters of the prepared statement with this handle.
    Parameters(Bytes),
}

impl FlightSql {
    /// Takes spans, and parameters of prepared statements.
    pub(crate) async fn put(&self, caller: &Caller, mut messages: Streaming<FlightData>) -> Reply<Messages<PutResult>> {
        let first = messages.message().await.map_err(|status| unreadable(&status))?;
        let first = first.ok_or_else(|| Error::invalid("DoPut without a message: the first one has the descriptor and the schema"))?;
        let descriptor = first.flight_descriptor.clone().ok_or_else(|| Error::invalid("the first message of DoPut has no descriptor"))?;
        let target = target(&caller.tenant, &descriptor)?;
        let batches = batches(stream::iter([Ok(first)]).chain(messages));
        if let Target::Parameters(handle) = target {
            let result = self.bind_prepared(caller, handle, batches).await?;
            return Ok(one(PutResult { app_metadata: result.encode_to_vec().into() }));
        }
        let writer = self.backend.writer().ok_or_else(|| unimplemented("this process takes no spans: put them to one that runs an ingester"))?;
        let putting = Putting { batches: batches.boxed(), writer, tenant: caller.tenant.clone(), batch: 0, spans: 0 };
        Ok(match target {
            Target::Ingest => stream::once(putting.all()).boxed(),
            _ => putting.each().boxed(),
        })
    }
}

/// What `descriptor` says is put. Errors: `Invalid`.
fn target(tenant: &TenantId, descriptor: &FlightDescriptor) -> Reply<Target> {
    if descriptor.r#type == DescriptorType::Path as i32 {
        return Ok(table(&descriptor.path.iter().map(String::as_str).collect::<Vec<_>>()).map(|()| Target::Spans)?);
    }
    if descriptor.cmd.first() == Some(&b'{') {
        let plain: PlainPut = serde_json::from_slice(&descriptor.cmd)
            .map_err(|error| Error::invalid(format!("{error}; to write spans send {{\"put\": \"{TABLE}\"}}")))?;
        return Ok(table(&[plain.put.as_str()]).map(|()| Target::Spans)?);
    }
    match Any::decode(&*descriptor.cmd).ok().and_then(|any| Command::try_from(any).ok()) {
        Some(Command::CommandPreparedStatementQuery(query)) => Ok(Target::Parameters(query.prepared_statement_handle)),
        Some(Command::CommandStatementIngest(ingest)) => Ok(may_ingest(tenant, &ingest).map(|()| Target::Ingest)?),
        Some(Command::CommandStatementUpdate(_) | Command::CommandPreparedStatementUpdate(_)) => {
            Err(Error::invalid("only statements that read are allowed: send them as queries").into())
        }
        _ => Err(unimplemented(format!("DoPut takes spans, for the path [\"{TABLE}\"], and the parameters of prepared statements"))),
    }
}

/// A plain command that says where batches go.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlainPut {
    put: String,
}

/// Errors: `Invalid` for any path but that of the table.
fn table(path: &[&str]) -> Result<()> {
    match path {
        [TABLE] => Ok(()),
        path => Err(Error::invalid(format!("rows are written to [\"{TABLE}\"], not to {path:?}; events and links are columns of it"))),
    }
}

/// Errors: `Invalid` for what would do anything but append to the tenant's spans.
fn may_ingest(tenant: &TenantId, ingest: &CommandStatementIngest) -> Result<()> {
    table(&[ingest.table.as_str()])?;
    no_transaction(ingest.transaction_id.as_deref())?;
    let own = |name: &Option<String>, own: &str| name.as_deref().is_none_or(|name| name.is_empty() || name == own);
    let schema = schema_name(tenant);
    if !own(&ingest.catalog, CATALOG) || !own(&ingest.schema, &schema) {
        return Err(Error::invalid(format!("spans are written to the catalog {CATALOG} and the schema {schema}, or without naming them")));
    }
    let exists = ingest.table_definition_options.map(|TableDefinitionOptions { if_exists, .. }| if_exists);
    if exists != Some(TableExistsOption::Append as i32) || ingest.temporary {
        return Err(Error::invalid(format!("the table {TABLE} exists, and can only be appended to: ingest with the mode append")));
    }
    Ok(())
}

/// Spans being put. One batch is under way; the next is read after it is acknowledged.
struct Putting {
    batches: stream::BoxStream<'static, Result<RecordBatch>>,
    writer: Arc<dyn SpanWriter>,
    tenant: TenantId,
    /// Batches that were acknowledged, and their spans.
    batch: u64,
    spans: u64,
}

impl Putting {
    /// Writes the next batch; None after the last. Errors: as a status that says which batch was refused and what was acknowledged before.
    async fn next(&mut self) -> std::result::Result<Option<()>, Status> {
        let written = async {
            match self.batches.try_next().await? {
                None => Ok(None),
                Some(batch) => self.writer.write(&self.tenant, batch).await.map(Some),
            }
        };
        match written.await {
            Ok(Some(spans)) => {
                self.batch += 1;
                self.spans += spans;
                Ok(Some(()))
            }
            Ok(None) => Ok(None),
            Err(WriteRefusal { error, retry_after }) => Err(refusal_status(&error, retry_after, |text| {
                let (batch, spans) = (self.batch, self.spans);
                format!("batch {batch}: {text} ({spans} spans of the batches before it are written; batches and rows count from 0)")
            })),
        }
    }

    /// An answer for each batch: how many spans are written so far.
    fn each(self) -> impl Stream<Item = std::result::Result<PutResult, Status>> + Send {
        stream::try_unfold(self, |mut putting| async move {
            let answer = |putting: &Self| PutResult { app_metadata: serde_json::json!({ "spans": putting.spans }).to_string().into() };
            Ok(putting.next().await?.map(|()| (answer(&putting), putting)))
        })
    }

    /// One answer for all.
    async fn all(mut self) -> std::result::Result<PutResult, Status> {
        while self.next().await?.is_some() {}
        let result = DoPutUpdateResult { record_count: i64::try_from(self.spans).unwrap_or(i64::MAX) };
        Ok(PutResult { app_metadata: result.encode_to_vec().into() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::sql::service::Refused;

    fn ingest() -> CommandStatementIngest {
        let append = TableDefinitionOptions { if_exists: TableExistsOption::Append as i32, ..TableDefinitionOptions::default() };
        CommandStatementIngest { table: TABLE.into(), table_definition_options: Some(append), ..CommandStatementIngest::default() }
    }

    #[test]
    fn only_appending_to_the_own_spans_is_ingested() {
        let tenant = TenantId::parse("shop").unwrap();
        let may = |change: &dyn Fn(&mut CommandStatementIngest)| {
            let mut ingest = ingest();
            change(&mut ingest);
            may_ingest(&tenant, &ingest).map_err(|error| error.to_string())
        };
        assert_eq!(may(&|_| {}), Ok(()));
        assert_eq!(may(&|ingest| (ingest.catalog, ingest.schema) = (Some("skein".into()), Some("shop".into()))), Ok(()));
        let refused = |change: &dyn Fn(&mut CommandStatementIngest), expected: &str| {
            let told = may(change).unwrap_err();
            assert!(told.contains(expected), "{told} lacks {expected}");
        };
        refused(&|ingest| ingest.schema = Some("other".into()), "the schema shop");
        refused(&|ingest| ingest.catalog = Some("other".into()), "the catalog skein");
        refused(&|ingest| ingest.table = "traces".into(), "[\"spans\"]");
        refused(&|ingest| ingest.table_definition_options = None, "the mode append");
        refused(&|ingest| ingest.table_definition_options.as_mut().unwrap().if_exists = TableExistsOption::Replace as i32, "the mode append");
        refused(&|ingest| ingest.temporary = true, "the mode append");
        refused(&|ingest| ingest.transaction_id = Some("t".into()), "no transactions");

        let system = TenantId::parse("system").unwrap();
        assert!(may_ingest(&system, &CommandStatementIngest { schema: Some("tenant_system".into()), ..ingest() }).is_ok());
        assert!(may_ingest(&system, &CommandStatementIngest { schema: Some("system".into()), ..ingest() }).is_err());
    }

    #[test]
    fn descriptors_name_the_table() {
        let tenant = TenantId::single();
        let is_spans = |descriptor: FlightDescriptor| matches!(target(&tenant, &descriptor), Ok(Target::Spans));
        assert!(is_spans(FlightDescriptor::new_path(vec!["spans".into()])));
        assert!(is_spans(FlightDescriptor::new_cmd(r#"{"put": "spans"}"#)));
        for bad in [
            FlightDescriptor::new_path(vec![]),
            FlightDescriptor::new_path(vec!["events".into()]),
            FlightDescriptor::new_path(vec!["other".into(), "spans".into()]),
            FlightDescriptor::new_cmd(r#"{"put": "traces"}"#),
            FlightDescriptor::new_cmd(r#"{"put": "spans", "more": 1}"#),
            FlightDescriptor::new_cmd("{"),
        ] {
            assert!(matches!(target(&tenant, &bad), Err(Refused::Error(_))), "{bad:?}");
        }
        assert!(matches!(target(&tenant, &FlightDescriptor::new_cmd("")), Err(Refused::Unimplemented(_))));
    }
}
