//! What there is: catalogs, schemas, tables, types, and what the server can do.
//!
//! Tables are read from `information_schema`, so that whatever SQL knows is listed, and nothing else. Their columns are those of
//! `SELECT * FROM` them.

use std::sync::{Arc, LazyLock};

use arrow_flight::{
    FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, Ticket,
    error::FlightError,
    sql::{
        Command, CommandGetDbSchemas, CommandGetTables, Nullable, Searchable, SqlInfo, SqlNullOrdering, SqlSupportedCaseSensitivity, XdbcDataType,
        metadata::{SqlInfoData, SqlInfoDataBuilder, XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder},
    },
};
use datafusion::{
    arrow::{
        array::{AsArray, StringViewArray},
        compute::cast,
        datatypes::{DataType, Field, Schema, SchemaRef},
        record_batch::RecordBatch,
    },
    common::ParamValues,
};
use futures::TryStreamExt;
use prost::Message;
use skein_engine::{
    error::{Error, Result},
    sql::{
        SqlStatement,
        session::{CATALOG, schema_name},
    },
};

use super::{
    Messages,
    asks::{self, Ask, Statement, identifier},
    encode::{self, Encoding, wire_schema},
    service::{Caller, FlightSql, Reply, all, internal, unimplemented},
};

/// The tables that a client may list, in order; settings are named there and cannot be read.
const TABLES: &str = "SELECT table_catalog, table_schema, table_name, table_type FROM information_schema.tables \
                      WHERE table_name <> 'df_settings' ORDER BY 1, 2, 3";

/// Where a table is, and what it is.
struct Table {
    catalog: String,
    schema: String,
    name: String,
    kind: String,
}

impl FlightSql {
    /// How the answer to a metadata command can be had: by the same command as a ticket. Errors: `Unimplemented` for an unknown command.
    pub(crate) fn metadata_info(&self, command: &Command, descriptor: FlightDescriptor) -> Reply<FlightInfo> {
        let schema = schema_of_command(command)?;
        let ticket = Ticket::new(command.clone().into_any().encode_to_vec());
        let info = FlightInfo::new().try_with_schema(&schema).map_err(internal("encoding a schema"))?;
        Ok(info.with_descriptor(descriptor).with_endpoint(FlightEndpoint::new().with_ticket(ticket)).with_total_records(-1).with_total_bytes(-1))
    }

    /// The answer to a metadata command. Errors: `Unimplemented` for an unknown command.
    pub(crate) async fn metadata_rows(&self, caller: &Caller, command: Command, encoding: Encoding) -> Reply<Messages<FlightData>> {
        check_size(&command)?;
        let batch = match command {
            Command::CommandGetCatalogs(command) => {
                let mut catalogs = command.into_builder();
                catalogs.append(CATALOG);
                catalogs.build().map_err(unbuilt)?
            }
            Command::CommandGetDbSchemas(command) => self.schemas(caller, command).await?,
            Command::CommandGetTables(command) => self.tables(caller, command).await?,
            Command::CommandGetTableTypes(command) => {
                let mut types = command.into_builder();
                self.listed(caller).await?.iter().for_each(|table| types.append(&table.kind));
                types.build().map_err(unbuilt)?
            }
            Command::CommandGetSqlInfo(command) => {
                let info = if self.backend.writer().is_some() { &SQL_INFO } else { &SQL_INFO_READ_ONLY };
                command.into_builder(info).build().map_err(unbuilt)?
            }
            Command::CommandGetXdbcTypeInfo(command) => command.into_builder(&XDBC_TYPES).build().map_err(unbuilt)?,
            command => RecordBatch::new_empty(schema_of_command(&command)?),
        };
        Ok(encode::one(encoding, batch))
    }

    /// All tables as flights. Errors: as running a statement.
    pub(crate) async fn flights(&self, caller: &Caller) -> Result<Messages<FlightInfo>> {
        let mut flights = Vec::new();
        for table in self.listed(caller).await? {
            let schema = wire_schema(&*self.columns_of(caller, &table).await?);
            let is_own = table.catalog == CATALOG && table.schema == schema_name(&caller.tenant);
            let path = if is_own { vec![table.name] } else { vec![table.schema, table.name] };
            let ticket =
                serde_json::json!({ "sql": format!("SELECT * FROM {}", path.iter().map(|name| identifier(name)).collect::<Vec<_>>().join(".")) });
            let info = FlightInfo::new().try_with_schema(&schema).map_err(internal("encoding a schema"))?;
            let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket.to_string()));
            flights.push(info.with_descriptor(FlightDescriptor::new_path(path)).with_endpoint(endpoint).with_total_records(-1).with_total_bytes(-1));
        }
        Ok(all(flights))
    }

    /// The columns of what `descriptor` asks for. Errors: as planning; `Unimplemented` for an unknown command.
    pub(crate) async fn schema_of(&self, caller: &Caller, descriptor: &FlightDescriptor) -> Reply<SchemaRef> {
        let statement = match asks::of_descriptor(descriptor)? {
            Ask::Statement(statement) => statement,
            Ask::Command(Command::CommandStatementQuery(query)) => Statement::plain(query.query),
            Ask::Command(Command::CommandPreparedStatementQuery(query)) => self.prepared(caller, &query.prepared_statement_handle)?,
            Ask::Command(command) => return schema_of_command(&command),
        };
        Ok(self.backend.prepare(&caller.tenant, &statement.text).await?.schema())
    }

    /// The text in the last column of a short answer, a line each row. Errors: as running.
    pub(crate) async fn text_of(&self, caller: &Caller, statement: SqlStatement, parameters: Option<ParamValues>) -> Result<String> {
        let rows = self.backend.run(&caller.tenant, statement, parameters).await?;
        let batches: Vec<RecordBatch> = rows.batches.try_collect().await?;
        let mut lines = Vec::new();
        for batch in &batches {
            let texts = strings(batch, batch.num_columns() - 1)?;
            lines.extend(texts.iter().flatten().map(str::to_owned));
        }
        Ok(lines.join("\n"))
    }

    async fn listed(&self, caller: &Caller) -> Result<Vec<Table>> {
        let statement = self.backend.prepare(&caller.tenant, TABLES).await?;
        let batches: Vec<RecordBatch> = self.backend.run(&caller.tenant, statement, None).await?.batches.try_collect().await?;
        let mut tables = Vec::new();
        for batch in &batches {
            let columns = (0..4).map(|column| strings(batch, column)).collect::<Result<Vec<_>>>()?;
            tables.extend((0..batch.num_rows()).map(|row| {
                let [catalog, schema, name, kind] = [0, 1, 2, 3].map(|column: usize| columns[column].value(row).to_owned());
                Table { catalog, schema, name, kind }
            }));
        }
        Ok(tables)
    }

    async fn columns_of(&self, caller: &Caller, table: &Table) -> Result<SchemaRef> {
        let names = [&table.catalog, &table.schema, &table.name].map(|name| identifier(name)).join(".");
        Ok(self.backend.prepare(&caller.tenant, &format!("SELECT * FROM {names}")).await?.schema())
    }

    async fn schemas(&self, caller: &Caller, command: CommandGetDbSchemas) -> Result<RecordBatch> {
        let mut schemas = command.into_builder();
        let mut listed: Vec<_> = self.listed(caller).await?.into_iter().map(|table| (table.catalog, table.schema)).collect();
        listed.dedup();
        listed.iter().for_each(|(catalog, schema)| schemas.append(catalog, schema));
        schemas.build().map_err(unbuilt)
    }

    async fn tables(&self, caller: &Caller, command: CommandGetTables) -> Result<RecordBatch> {
        let with_columns = command.include_schema;
        let mut tables = command.into_builder();
        for table in self.listed(caller).await? {
            let columns = if with_columns { wire_schema(&*self.columns_of(caller, &table).await?) } else { Arc::new(Schema::empty()) };
            tables.append(&table.catalog, &table.schema, &table.name, &table.kind, &columns).map_err(unbuilt)?;
        }
        tables.build().map_err(unbuilt)
    }
}

/// Longest pattern of a name, and most kinds of information that are asked for: several times what any client has reason to ask.
const ASKED_MAX: usize = 4096;

/// Errors: `Invalid` for a command that asks for more than there can be.
fn check_size(command: &Command) -> Result<()> {
    let size = match command {
        Command::CommandGetDbSchemas(command) => command.db_schema_filter_pattern.as_ref().map_or(0, String::len),
        Command::CommandGetTables(command) => {
            let patterns = [&command.db_schema_filter_pattern, &command.table_name_filter_pattern];
            patterns.into_iter().flatten().map(String::len).max().unwrap_or(0).max(command.table_types.len())
        }
        Command::CommandGetSqlInfo(command) => command.info.len(),
        _ => 0,
    };
    match size > ASKED_MAX {
        true => Err(Error::invalid(format!("a pattern of {size} bytes or {size} things asked for at once: at most {ASKED_MAX} are read"))),
        false => Ok(()),
    }
}

/// Column `column` of `batch` as text. Errors: `Internal` when it cannot be.
fn strings(batch: &RecordBatch, column: usize) -> Result<StringViewArray> {
    Ok(cast(batch.column(column), &DataType::Utf8View)?.as_string_view().clone())
}

fn unbuilt(error: FlightError) -> Error {
    Error::internal("building an answer about metadata").with_source(error)
}

/// The columns of the answer to a metadata command. Errors: `Unimplemented` for an unknown command.
fn schema_of_command(command: &Command) -> Reply<SchemaRef> {
    Ok(match command.clone() {
        Command::CommandGetCatalogs(command) => command.into_builder().schema(),
        Command::CommandGetDbSchemas(command) => command.into_builder().schema(),
        Command::CommandGetTables(command) => command.into_builder().schema(),
        Command::CommandGetTableTypes(command) => command.into_builder().schema(),
        Command::CommandGetSqlInfo(command) => command.into_builder(&SQL_INFO).schema(),
        Command::CommandGetXdbcTypeInfo(command) => command.into_builder(&XDBC_TYPES).schema(),
        Command::CommandGetPrimaryKeys(_) => PRIMARY_KEYS.clone(),
        Command::CommandGetExportedKeys(_) | Command::CommandGetImportedKeys(_) | Command::CommandGetCrossReference(_) => FOREIGN_KEYS.clone(),
        other => {
            let name = other.type_url().rsplit('.').next().unwrap_or_default().to_owned();
            return Err(unimplemented(format!("there is nothing to read for {name}: there are statements in SQL, without transactions")));
        }
    })
}

/// The columns of `CommandGetPrimaryKeys` in FlightSql.proto; no table has keys.
static PRIMARY_KEYS: LazyLock<SchemaRef> = LazyLock::new(|| {
    let text = |name, nullable| Field::new(name, DataType::Utf8, nullable);
    Arc::new(Schema::new(vec![
        text("catalog_name", true),
        text("db_schema_name", true),
        text("table_name", false),
        text("column_name", false),
        Field::new("key_sequence", DataType::Int32, false),
        text("key_name", true),
    ]))
});

/// The columns of `CommandGetExportedKeys`, `CommandGetImportedKeys` and `CommandGetCrossReference` in FlightSql.proto.
static FOREIGN_KEYS: LazyLock<SchemaRef> = LazyLock::new(|| {
    let text = |name, nullable| Field::new(name, DataType::Utf8, nullable);
    Arc::new(Schema::new(vec![
        text("pk_catalog_name", true),
        text("pk_db_schema_name", true),
        text("pk_table_name", false),
        text("pk_column_name", false),
        text("fk_catalog_name", true),
        text("fk_db_schema_name", true),
        text("fk_table_name", false),
        text("fk_column_name", false),
        Field::new("key_sequence", DataType::Int32, false),
        text("fk_key_name", true),
        text("pk_key_name", true),
        Field::new("update_rule", DataType::UInt8, false),
        Field::new("delete_rule", DataType::UInt8, false),
    ]))
});

/// What a server can do that takes spans.
static SQL_INFO: LazyLock<SqlInfoData> = LazyLock::new(|| sql_info(true));

/// What a server can do that takes none.
static SQL_INFO_READ_ONLY: LazyLock<SqlInfoData> = LazyLock::new(|| sql_info(false));

fn sql_info(writes: bool) -> SqlInfoData {
    let mut info = SqlInfoDataBuilder::new();
    info.append(SqlInfo::FlightSqlServerName, "skein");
    info.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    info.append(SqlInfo::FlightSqlServerArrowVersion, "1.3");
    info.append(SqlInfo::FlightSqlServerReadOnly, !writes);
    info.append(SqlInfo::FlightSqlServerSql, true);
    info.append(SqlInfo::FlightSqlServerSubstrait, false);
    info.append(SqlInfo::FlightSqlServerTransaction, 0_i32);
    info.append(SqlInfo::FlightSqlServerCancel, true);
    info.append(SqlInfo::FlightSqlServerBulkIngestion, writes);
    info.append(SqlInfo::SqlDdlCatalog, false);
    info.append(SqlInfo::SqlDdlSchema, false);
    info.append(SqlInfo::SqlDdlTable, false);
    info.append(SqlInfo::SqlIdentifierCase, SqlSupportedCaseSensitivity::SqlCaseSensitivityLowercase as i32);
    info.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    info.append(SqlInfo::SqlQuotedIdentifierCase, SqlSupportedCaseSensitivity::SqlCaseSensitivityCaseInsensitive as i32);
    info.append(SqlInfo::SqlAllTablesAreSelectable, true);
    info.append(SqlInfo::SqlNullOrdering, SqlNullOrdering::SqlNullsSortedHigh as i32);
    info.append(SqlInfo::SqlMaxStatementLength, skein_engine::sql::session::TEXT_BYTES_MAX as i64);
    info.build().expect("a name occurs once")
}

/// The types that columns have.
static XDBC_TYPES: LazyLock<XdbcTypeInfoData> = LazyLock::new(|| {
    let text = (Some("'"), Some(2_147_483_647));
    let types = [
        ("varchar", XdbcDataType::XdbcVarchar, text, true),
        ("bigint", XdbcDataType::XdbcBigint, (None, Some(19)), false),
        ("double", XdbcDataType::XdbcDouble, (None, Some(53)), false),
        ("boolean", XdbcDataType::XdbcBit, (None, Some(1)), false),
        ("timestamp", XdbcDataType::XdbcTimestamp, (Some("'"), Some(29)), false),
    ];
    let mut all = XdbcTypeInfoDataBuilder::new();
    for (name, data_type, (quote, column_size), case_sensitive) in types {
        all.append(XdbcTypeInfo {
            type_name: name.into(),
            data_type,
            column_size,
            literal_prefix: quote.map(Into::into),
            literal_suffix: quote.map(Into::into),
            nullable: Nullable::NullabilityNullable,
            case_sensitive,
            searchable: Searchable::Full,
            sql_data_type: data_type,
            ..XdbcTypeInfo::default()
        });
    }
    all.build().expect("the columns have one length")
});
