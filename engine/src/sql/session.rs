//! A session of one SQL statement: the tables and functions of a tenant over one snapshot of its spans.

use std::{ops::ControlFlow, sync::Arc};

use arrow::{
    datatypes::{Schema, SchemaRef},
    record_batch::RecordBatch,
};
use datafusion::{
    catalog::{CatalogProvider, MemoryCatalogProvider, MemorySchemaProvider, SchemaProvider, view::ViewTable},
    common::{DataFusionError, ParamValues, Result as DataFusionResult},
    datasource::provider_as_source,
    execution::{SessionStateBuilder, TaskContext, context::SQLOptions, runtime_env::RuntimeEnv},
    functions_aggregate::expr_fn::{count, max, min, sum},
    logical_expr::{LogicalPlan, LogicalPlanBuilder, col, lit},
    physical_plan::{ExecutionPlan, execute_stream},
    prelude::{SessionConfig, SessionContext},
    sql::{
        parser::Statement,
        sqlparser::ast::{self, visit_expressions_mut},
    },
};
use futures::{StreamExt, stream::BoxStream};
use tokio::runtime::Handle;

use super::{
    columns::{self, SqlColumn, rare_name},
    error::sql_error,
    functions,
    harmless::{self, FunctionMemory},
    limits::{Given, SqlLimits},
    running,
    scan::SpanRows,
    table::SpanTable,
};
use crate::{
    error::{Error, Result},
    exec::{engine::add_blocks, eval::frame::FieldLevel, sources::SourceSet, stats::stats_of_plan},
    query::ScanStats,
    tenant::TenantId,
};

/// The name of the catalog that holds the tenant's tables.
pub const CATALOG: &str = "skein";

/// Longest text of a statement, in bytes; that of TraceQL by default.
const TEXT_BYTES_MAX: usize = 128 << 10;

/// A statement that was read, checked and planned against a snapshot of the tenant's spans.
pub struct SqlStatement {
    context: SessionContext,
    sources: Arc<SourceSet>,
    plan: LogicalPlan,
    threads: Option<Handle>,
    limits: SqlLimits,
    memory: FunctionMemory,
}

/// The rows of a statement under way.
pub struct SqlRows {
    /// The columns.
    pub schema: SchemaRef,
    /// The batches. Dropping them stops the work. Errors: `Invalid` for values that an expression cannot take, `Exhausted`, else as the
    /// sources'.
    pub batches: BoxStream<'static, Result<RecordBatch>>,
    /// What runs, for its statistics.
    pub cost: SqlCost,
}

/// What a statement has read so far.
#[derive(Debug, Clone)]
pub struct SqlCost {
    plan: Arc<dyn ExecutionPlan>,
    sources: Arc<SourceSet>,
}

impl SqlCost {
    /// The figures so far.
    pub async fn stats(&self) -> Result<ScanStats> {
        let mut stats = self.sources.metrics.snapshot().plus(&stats_of_plan(&self.plan));
        add_blocks(&mut stats, self.sources.sources().await?);
        Ok(stats)
    }
}

/// What a session is made of.
#[derive(Debug, Clone)]
pub struct SessionParts {
    /// Where spans are.
    pub sources: Arc<SourceSet>,
    /// Memory and its bound.
    pub runtime: Arc<RuntimeEnv>,
    /// Partitions of a scan.
    pub partitions: usize,
}

impl SqlStatement {
    /// Reads, checks and plans `text` for `tenant`. Errors: `Invalid` for anything but one statement that reads, and for what cannot be
    /// planned.
    pub async fn prepare(tenant: &TenantId, parts: SessionParts, text: &str) -> Result<Self> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(Error::invalid(format!("the statement has {} bytes, at most {TEXT_BYTES_MAX} are read", text.len())));
        }
        let memory = FunctionMemory::default();
        let context = empty_context(tenant, &parts, &memory);
        let state = context.state();
        let dialect = state.config_options().sql_parser.dialect;
        let mut statement = state.sql_to_statement(text, &dialect).map_err(sql_error)?;
        harmless::check_statement(&statement)?;
        let rare = name_rare_attributes(&mut statement);
        add_tables(&context, tenant, &parts, rare).await?;
        let plan = context.state().statement_to_plan(statement).await.map_err(sql_error)?;
        let reading = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        reading.verify_plan(&plan).map_err(|error| read_only(&error))?;
        Ok(Self { context, sources: parts.sources, plan, threads: None, limits: SqlLimits::default(), memory })
    }

    /// The same, which will run on `threads`, whoever reads its rows.
    pub fn on(self, threads: Handle) -> Self {
        Self { threads: Some(threads), ..self }
    }

    /// The same, which may take as much as `limits` say.
    pub fn within(self, limits: SqlLimits) -> Self {
        Self { limits, ..self }
    }

    /// The columns of its rows.
    pub fn schema(&self) -> SchemaRef {
        Arc::new(Schema::clone(self.plan.schema().as_arrow()))
    }

    /// The types of its parameters, by name. Errors: `Invalid` where one is used as several types.
    pub fn parameters(&self) -> Result<Vec<(String, Option<arrow::datatypes::DataType>)>> {
        let mut all: Vec<_> = self.plan.get_parameter_types().map_err(sql_error)?.into_iter().collect();
        all.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(all)
    }

    /// Runs it. Errors: `Invalid` for parameters that are missing or of a wrong type.
    pub async fn run(mut self, parameters: Option<ParamValues>) -> Result<SqlRows> {
        match self.threads.take() {
            Some(threads) => running::run_on(&threads, self.limits, self.run_here(parameters)).await,
            None => self.run_here(parameters).await,
        }
    }

    async fn run_here(self, parameters: Option<ParamValues>) -> Result<SqlRows> {
        let plan = match parameters {
            Some(values) => self.plan.with_param_values(values).map_err(sql_error)?,
            None => self.plan,
        };
        check_given(&plan)?;
        let state = self.context.state();
        let plan = state.optimize(&plan).map_err(sql_error)?;
        harmless::check_constants(&plan)?;
        let plan = state.query_planner().create_physical_plan(&plan, &state).await.map_err(sql_error)?;
        let runtime = self.limits.runtime(state.runtime_env())?;
        // A statement runs once.
        let _ = self.memory.set(runtime.memory_pool.clone());
        let stream = execute_stream(plan.clone(), Arc::new(TaskContext::from(&state).with_runtime(runtime))).map_err(sql_error)?;
        let schema = stream.schema();
        let (limits, mut given) = (self.limits, Given::default());
        let counted = move |batch: DataFusionResult<RecordBatch>| {
            let batch = batch.map_err(sql_error)?;
            given.count(&batch, &limits)?;
            Ok(batch)
        };
        let batches = stream.map(counted).boxed();
        Ok(SqlRows { schema, batches, cost: SqlCost { plan, sources: self.sources } })
    }
}

/// Errors: `Invalid` when a parameter has no value.
fn check_given(plan: &LogicalPlan) -> Result<()> {
    let mut missing: Vec<String> = plan.get_parameter_names().map_err(sql_error)?.into_iter().collect();
    missing.sort_unstable();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::invalid(format!("no value is given for the parameters {}", missing.join(", "))))
}

fn read_only(error: &DataFusionError) -> Error {
    Error::invalid(format!("only statements that read are allowed (SELECT, EXPLAIN, SHOW): {}", error.strip_backtrace()))
}

fn empty_context(tenant: &TenantId, parts: &SessionParts, memory: &FunctionMemory) -> SessionContext {
    let config = SessionConfig::new()
        .with_target_partitions(parts.partitions)
        .with_information_schema(true)
        .with_create_default_catalog_and_schema(false)
        .with_default_catalog_and_schema(CATALOG, tenant.as_str());
    let builder = SessionStateBuilder::new().with_config(config).with_runtime_env(parts.runtime.clone()).with_default_features();
    SessionContext::new_with_state(harmless::make_harmless(builder, memory).build())
}

async fn add_tables(context: &SessionContext, tenant: &TenantId, parts: &SessionParts, rare: Vec<String>) -> Result<()> {
    let sources = parts.sources.sources().await?;
    let mut spans = columns::span_columns(sources);
    spans.extend(rare.iter().map(|key| SqlColumn::rare(key)));
    let table = |level, columns| Arc::new(SpanTable::new(parts.sources.clone(), level, columns));
    let schema = Arc::new(MemorySchemaProvider::new());
    let add = |name: &str, table| schema.register_table(name.to_owned(), table).map(drop).map_err(sql_error);
    add("spans", table(FieldLevel::Span, spans.clone()))?;
    add("events", table(FieldLevel::Event, columns::event_columns(sources)))?;
    add("links", table(FieldLevel::Link, columns::link_columns(sources)))?;
    let traces = SpanTable::new(parts.sources.clone(), FieldLevel::Span, columns::trace_columns()).rows(SpanRows::Traces);
    add("traces", Arc::new(traces))?;
    schema.register_table("services".to_owned(), Arc::new(services(&parts.sources).map_err(sql_error)?)).map_err(sql_error)?;
    let catalog = Arc::new(MemoryCatalogProvider::new());
    catalog.register_schema(tenant.as_str(), schema).map_err(sql_error)?;
    context.register_catalog(CATALOG, catalog);
    functions::register(context, &parts.sources, &spans);
    Ok(())
}

/// `services`: what the services of all traces add up to. A service has a row in each trace, so traces are counted as rows.
fn services(sources: &Arc<SourceSet>) -> datafusion::common::Result<ViewTable> {
    let parts = SpanTable::new(sources.clone(), FieldLevel::Span, columns::service_columns()).rows(SpanRows::Services);
    let totals = [
        sum(col("spans")).alias("spans"),
        sum(col("errors")).alias("errors"),
        count(lit(1_i64)).alias("traces"),
        min(col("first_seen")).alias("first_seen"),
        max(col("last_seen")).alias("last_seen"),
    ];
    let plan = LogicalPlanBuilder::scan("services_of_traces", provider_as_source(Arc::new(parts)), None)?.aggregate([col("service")], totals)?;
    Ok(ViewTable::new(plan.build()?, None))
}

/// Turns each `attr('key')` into a column of that name, and gives the keys: the scan then reads them, and filters on them are pushed down
/// like others.
fn name_rare_attributes(statement: &mut Statement) -> Vec<String> {
    let mut keys = Vec::new();
    if let Statement::Statement(statement) = statement {
        let _ = visit_expressions_mut(&mut **statement, |expr: &mut ast::Expr| {
            if let Some(key) = rare_key(expr) {
                *expr = ast::Expr::Identifier(ast::Ident::with_quote('"', rare_name(&key)));
                if !keys.contains(&key) {
                    keys.push(key);
                }
            }
            ControlFlow::<()>::Continue(())
        });
    }
    keys
}

fn rare_key(expr: &ast::Expr) -> Option<String> {
    let ast::Expr::Function(function) = expr else { return None };
    if !function.name.to_string().eq_ignore_ascii_case("attr") {
        return None;
    }
    let ast::FunctionArguments::List(arguments) = &function.args else { return None };
    match arguments.args.as_slice() {
        [ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(ast::Expr::Value(value)))] => value.value.clone().into_string(),
        _ => None,
    }
}
