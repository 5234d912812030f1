//! The service as the Flight SQL client of the Rust crate sees it, over a server that has no spans.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use arrow_flight::{
    Action, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightInfo,
    error::FlightError,
    sql::{
        CommandGetCrossReference, CommandGetDbSchemas, CommandGetPrimaryKeys, CommandGetTables, CommandGetXdbcTypeInfo, SqlInfo,
        client::FlightSqlServiceClient,
    },
};
use async_trait::async_trait;
use datafusion::{
    arrow::{
        array::{ArrayRef, Int64Array, RecordBatch, StringArray},
        datatypes::{DataType, Schema},
        util::pretty::pretty_format_batches,
    },
    common::ParamValues,
};
use futures::TryStreamExt;
use object_store::memory::InMemory;
use prometheus::Registry;
use prost::Message;
use skein_engine::{
    catalog::{Catalog, CatalogMetrics},
    error::{Error, ErrorKind, Result},
    exec::{
        engine::{Engine, EngineSettings},
        live::{LiveGeneration, LiveSpans},
        writer::SpanWriter,
    },
    sql::{SqlRows, SqlService, SqlStatement, Tail, TailPass, TailRequest},
    tenant::TenantId,
};
use tonic::transport::{Channel, Endpoint, Server, server::TcpIncoming};

use super::{Call, FlightBackend, FlightState, server};

#[derive(Debug)]
struct NoSpans;

impl LiveSpans for NoSpans {
    fn live(&self, _: &TenantId) -> Vec<LiveGeneration> {
        Vec::new()
    }

    fn tenants(&self) -> Vec<TenantId> {
        Vec::new()
    }
}

struct Backend(Engine);

struct Uncounted;

impl Call for Uncounted {
    fn ended(self: Box<Self>, _: bool) {}
}

#[async_trait]
impl FlightBackend for Backend {
    fn tenant(&self, header: Option<&str>) -> Result<TenantId> {
        TenantId::parse(header.ok_or_else(|| Error::new(ErrorKind::Denied, "no org id"))?)
    }

    async fn prepare(&self, tenant: &TenantId, text: &str) -> Result<SqlStatement> {
        self.0.prepare(tenant, text).await
    }

    async fn run(&self, _: &TenantId, statement: SqlStatement, parameters: Option<ParamValues>) -> Result<SqlRows> {
        statement.run(parameters).await
    }

    async fn tail(&self, tenant: &TenantId, request: TailRequest) -> Result<Tail> {
        self.0.tail(tenant, request).await
    }

    async fn tail_pass(&self, tail: Tail) -> Result<(Tail, TailPass)> {
        self.0.tail_pass(tail).await
    }

    async fn flush(&self, _: TenantId) -> Result<()> {
        Ok(())
    }

    fn writer(&self) -> Option<Arc<dyn SpanWriter>> {
        None
    }

    fn call(&self, _: &'static str) -> Box<dyn Call> {
        Box::new(Uncounted)
    }

    fn now_unix_nano(&self) -> u64 {
        1_700_000_000_000_000_000
    }
}

async fn connect() -> FlightSqlServiceClient<Channel> {
    let catalog = Arc::new(Catalog::new(CatalogMetrics::new(&Registry::new()).unwrap()));
    let engine = Engine::new(Arc::new(InMemory::new()), catalog, Arc::new(NoSpans), EngineSettings { partitions: 2, ..EngineSettings::default() });
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = incoming.local_addr().unwrap();
    let service = server(Arc::new(Backend(engine)), Arc::new(FlightState::new(&Registry::new()).unwrap()));
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
    FlightSqlServiceClient::new(Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap())
}

async fn client() -> FlightSqlServiceClient<Channel> {
    let mut client = connect().await;
    client.set_header("x-scope-orgid", "shop");
    client
}

async fn rows(client: &mut FlightSqlServiceClient<Channel>, info: FlightInfo) -> Vec<RecordBatch> {
    let mut batches = Vec::new();
    for endpoint in info.endpoint {
        batches.extend(client.do_get(endpoint.ticket.unwrap()).await.unwrap().try_collect::<Vec<_>>().await.unwrap());
    }
    batches
}

/// The cells of each row, without the frame.
fn cells(batches: &[RecordBatch]) -> Vec<String> {
    let table = pretty_format_batches(batches).unwrap().to_string();
    let cells = |line: &str| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>().join(" ");
    table.lines().filter(|line| line.starts_with('|')).skip(1).map(cells).collect()
}

fn status_of(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[tokio::test]
async fn a_statement_is_planned_and_then_fetched() {
    let mut client = client().await;
    let info = client.execute("SELECT * FROM (VALUES (1, 'a'), (2, 'b')) AS t (n, s) ORDER BY n DESC".into(), None).await.unwrap();
    assert!(info.ordered && info.endpoint.len() == 1);
    assert!(info.endpoint[0].expiration_time.unwrap().seconds > 1_700_000_000);
    let announced = info.clone().try_decode_schema().unwrap();
    let batches = rows(&mut client, info).await;
    assert_eq!(cells(&batches), ["2 b", "1 a"]);
    assert_eq!(batches[0].schema().fields(), announced.fields());
    let spans = client.execute("SELECT * FROM spans".into(), None).await.unwrap().try_decode_schema().unwrap();
    assert_eq!(spans.field_with_name("span_id").unwrap().data_type(), &DataType::Utf8);
    assert!(spans.fields().iter().all(|field| *field.data_type() != DataType::Utf8View), "views are sent as strings");
    let refused = status_of(client.execute("SELECT nam FROM spans".into(), None).await.unwrap_err());
    assert!(refused.contains("name"), "{refused}");
    assert!(status_of(client.execute("SELECT 1".into(), Some(vec![1].into())).await.unwrap_err()).contains("no transactions"));
    assert!(client.execute_update("DELETE FROM spans".into(), None).await.is_err());
    assert!(client.begin_transaction().await.is_err());
}

#[tokio::test]
async fn a_prepared_statement_is_bound_executed_and_closed() {
    let mut client = client().await;
    let mut statement = client.prepare("SELECT s FROM (VALUES (1, 'a'), (2, 'b')) AS t (n, s) WHERE n = $1 AND s <> $2".into(), None).await.unwrap();
    let parameters: Vec<String> = statement.parameter_schema().unwrap().fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(parameters, ["$1", "$2"]);
    assert_eq!(statement.dataset_schema().unwrap().fields().len(), 1);
    for (number, expected) in [(1, "a"), (2, "b")] {
        let columns: [(&str, ArrayRef); 2] = [("a", Arc::new(Int64Array::from(vec![number]))), ("b", Arc::new(StringArray::from(vec!["c"])))];
        statement.set_parameters(RecordBatch::try_from_iter(columns).unwrap()).unwrap();
        let info = statement.execute().await.unwrap();
        assert_eq!(cells(&rows(&mut client, info).await), [expected]);
    }
    let two_rows = RecordBatch::try_from_iter([("a", Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef)]).unwrap();
    statement.set_parameters(two_rows).unwrap();
    let refused = status_of(statement.execute().await.unwrap_err());
    assert!(refused.contains("one row"), "{refused}");
    statement.close().await.unwrap();
}

#[tokio::test]
async fn metadata_is_told() {
    let mut client = client().await;
    let info = client.get_catalogs().await.unwrap();
    assert_eq!(cells(&rows(&mut client, info).await), ["skein"]);
    let info = client.get_db_schemas(CommandGetDbSchemas { catalog: None, db_schema_filter_pattern: Some("sh%".into()) }).await.unwrap();
    assert_eq!(cells(&rows(&mut client, info).await), ["skein shop"]);
    let ask = CommandGetTables { table_name_filter_pattern: Some("span_".into()), include_schema: true, ..CommandGetTables::default() };
    let info = client.get_tables(ask).await.unwrap();
    let tables = rows(&mut client, info).await;
    let shown: Vec<RecordBatch> = tables.iter().map(|batch| batch.project(&[0, 1, 2, 3]).unwrap()).collect();
    assert_eq!(cells(&shown), ["skein shop spans BASE TABLE"]);
    let info = client.get_table_types().await.unwrap();
    assert!(cells(&rows(&mut client, info).await).contains(&"BASE TABLE".to_owned()));
    let info = client.get_sql_info(vec![SqlInfo::FlightSqlServerName, SqlInfo::FlightSqlServerReadOnly]).await.unwrap();
    assert_eq!(cells(&rows(&mut client, info).await), ["0 {string_value=skein}", "3 {bool_value=true}"]);
    let info = client.get_xdbc_type_info(CommandGetXdbcTypeInfo { data_type: None }).await.unwrap();
    assert!(cells(&rows(&mut client, info).await).iter().any(|row| row.starts_with("bigint")));
    let info = client.get_primary_keys(CommandGetPrimaryKeys { table: "spans".into(), ..CommandGetPrimaryKeys::default() }).await.unwrap();
    assert_eq!(info.clone().try_decode_schema().unwrap().fields().len(), 6);
    assert!(cells(&rows(&mut client, info).await).is_empty());
    let info = client.get_cross_reference(CommandGetCrossReference::default()).await.unwrap();
    assert_eq!(info.clone().try_decode_schema().map(|schema: Schema| schema.fields().len()).unwrap(), 13);
    assert!(cells(&rows(&mut client, info).await).is_empty());
}

#[tokio::test]
async fn a_handshake_gives_a_token_for_the_tenant() {
    let mut client = connect().await;
    assert!(client.get_catalogs().await.is_err(), "nobody asks");
    client.handshake("shop", "anything").await.unwrap();
    let info = client.get_db_schemas(CommandGetDbSchemas { catalog: None, db_schema_filter_pattern: Some("sh%".into()) }).await.unwrap();
    assert_eq!(cells(&rows(&mut client, info).await), ["skein shop"]);
    client.set_token("skein-2f2f".into());
    assert!(client.get_catalogs().await.is_err(), "a token for a tenant that cannot be");
}

#[tokio::test]
async fn a_cancelled_stream_ends_with_a_status() {
    let mut client = client().await;
    let sql = "SELECT value FROM generate_series(1, 1000000000000)";
    let info = client.execute(sql.into(), None).await.unwrap();
    let mut stream = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    assert!(stream.try_next().await.unwrap().is_some());
    let request = CancelFlightInfoRequest { info: Some(info.clone()) };
    let told: Vec<_> = client.do_action(Action::new("CancelFlightInfo", request.encode_to_vec())).await.unwrap().try_collect().await.unwrap();
    assert_eq!(CancelFlightInfoResult::decode(&*told[0].body).unwrap().status(), CancelStatus::Cancelled);
    let error = loop {
        match stream.try_next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a cancelled stream must not look whole"),
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, FlightError::Tonic(status) if status.code() == tonic::Code::Cancelled), "{error}");
    assert!(client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.is_err(), "the ticket is gone");
}
