//! A session of one SQL statement: the tables and functions of a tenant over one snapshot of its spans.

use std::{fmt, ops::ControlFlow, sync::Arc};

use arrow::{
    datatypes::{Schema, SchemaRef},
    record_batch::RecordBatch,
};
use datafusion::{
    catalog::{
        CatalogProvider, MemoryCatalogProvider, MemorySchemaProvider, SchemaProvider, information_schema::INFORMATION_SCHEMA, view::ViewTable,
    },
    common::{DataFusionError, ParamValues, Result as DataFusionResult},
    datasource::provider_as_source,
    execution::{SessionStateBuilder, TaskContext, context::SQLOptions, runtime_env::RuntimeEnv},
    functions_aggregate::expr_fn::{count, max, min, sum},
    logical_expr::{LogicalPlan, LogicalPlanBuilder, col, lit},
    physical_plan::{ExecutionPlan, ExecutionPlanProperties, execute_stream},
    prelude::{SessionConfig, SessionContext},
    sql::{
        parser::Statement,
        sqlparser::ast::{self, visit_expressions_mut},
    },
};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use tokio::runtime::Handle;

use super::{
    columns::{self, SqlColumn, rare_name},
    distinct_counts::DistinctCounts,
    error::sql_error,
    functions,
    grouping::GroupByCodes,
    harmless::{self, FunctionMemory},
    limits::{Given, SqlLimits},
    parts::parts_of,
    running,
    scan::SpanRows,
    system,
    table::SpanTable,
    utc,
};
use crate::{
    error::{Error, Result},
    exec::{
        engine::add_blocks,
        eval::frame::FieldLevel,
        history::{Language, QueryLog, RunningQuery},
        source::SourceRef,
        sources::SourceSet,
        stats::stats_of_plan,
    },
    query::ScanStats,
    tenant::TenantId,
};

/// The name of the catalog that holds the tenant's tables.
pub const CATALOG: &str = "skein";

/// The name of the schema that holds the tables of `tenant`: its own, unless a schema that all tenants have is called so; then `tenant_` stands
/// before it. Without a schema's name its tables are found in either case.
pub fn schema_name(tenant: &TenantId) -> String {
    match tenant.as_str() {
        taken @ (system::SCHEMA | INFORMATION_SCHEMA) => format!("tenant_{taken}"),
        free => free.to_owned(),
    }
}

/// Longest text of a statement, in bytes; that of TraceQL by default.
pub const TEXT_BYTES_MAX: usize = 128 << 10;

/// A statement that was read, checked and planned against a snapshot of the tenant's spans. A clone reads the same snapshot.
#[derive(Clone)]
pub struct SqlStatement {
    context: SessionContext,
    tenant: TenantId,
    parts: SessionParts,
    language: Language,
    text: String,
    plan: LogicalPlan,
    threads: Option<Handle>,
    limits: SqlLimits,
    memory: FunctionMemory,
    part: Option<usize>,
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

/// Adds to a session what runs its plans on several processes.
#[derive(Clone)]
pub struct Distribution(pub Arc<dyn Fn(SessionStateBuilder) -> SessionStateBuilder + Send + Sync>);

impl fmt::Debug for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Distribution")
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
    /// How plans are distributed; None: they run here.
    pub distribution: Option<Distribution>,
    /// Where it is noted what ran.
    pub log: Arc<QueryLog>,
}

impl SqlStatement {
    /// Reads, checks and plans `text` for `tenant`. Errors: `Invalid` for anything but one statement that reads, and for what cannot be
    /// planned.
    pub async fn prepare(tenant: &TenantId, parts: SessionParts, text: &str) -> Result<Self> {
        let running = parts.log.begin(tenant, Language::Sql, text);
        let statement = Self::planned(tenant, parts, text).await;
        match &statement {
            Ok(_) => running.forget(),
            Err(error) => running.end(Some(error)),
        }
        statement
    }

    async fn planned(tenant: &TenantId, parts: SessionParts, text: &str) -> Result<Self> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(Error::invalid(format!("the statement has {} bytes, at most {TEXT_BYTES_MAX} are read", text.len())));
        }
        harmless::check_text(text)?;
        let memory = FunctionMemory::default();
        let context = empty_context(tenant, &parts, &memory);
        let state = context.state();
        let dialect = state.config_options().sql_parser.dialect;
        let mut statement = state.sql_to_statement(text, &dialect).map_err(sql_error)?;
        harmless::check_statement(&statement)?;
        let rare = name_rare_attributes(&mut statement);
        add_tables(&context, tenant, &parts, rare).await?;
        let reads = harmless::reads(&statement);
        let plan = context.state().statement_to_plan(statement).await.map_err(|error| if reads { sql_error(error) } else { read_only(&error) })?;
        let reading = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        reading.verify_plan(&plan).map_err(|error| read_only(&error))?;
        let (tenant, text) = (tenant.clone(), text.to_owned());
        Ok(Self { context, tenant, parts, language: Language::Sql, text, plan, threads: None, limits: SqlLimits::default(), memory, part: None })
    }

    /// The rows of `table`, which the TraceQL search `query` found, as a statement. Errors: `Internal`.
    pub(super) fn of_search(tenant: &TenantId, parts: SessionParts, query: &str, table: SpanTable) -> Result<Self> {
        let memory = FunctionMemory::default();
        let context = empty_context(tenant, &parts, &memory);
        let plan = LogicalPlanBuilder::scan("traceql", provider_as_source(Arc::new(table)), None).and_then(LogicalPlanBuilder::build);
        let plan = plan.map_err(|error| Error::internal("planning a search").with_source(error))?;
        let (tenant, text) = (tenant.clone(), query.to_owned());
        Ok(Self { context, tenant, parts, language: Language::Traceql, text, plan, threads: None, limits: SqlLimits::default(), memory, part: None })
    }

    /// The same, which will run on `threads`, whoever reads its rows.
    pub fn on(self, threads: Handle) -> Self {
        Self { threads: Some(threads), ..self }
    }

    /// The same, which may take as much as `limits` say.
    pub fn within(self, limits: SqlLimits) -> Self {
        Self { limits, ..self }
    }

    /// The same, of whose rows only one of [`SqlStatement::parts`] will be told, counted from 0.
    pub fn part(self, part: usize) -> Self {
        Self { part: Some(part), ..self }
    }

    /// Into how many parts its rows fall that can be read each on its own, in any order; together they are all rows. Errors: `Invalid` for
    /// parameters that are missing or of a wrong type.
    pub async fn parts(&self, parameters: Option<ParamValues>) -> Result<usize> {
        let spans = self.parts.sources.sources().await?.iter().flat_map(|source| source.row_groups()).map(|group| u64::from(group.rows)).sum();
        if self.limits.rows > 0 && spans > self.limits.rows {
            // Streams are counted each on its own: an answer that may have too many rows comes as one.
            return Ok(1);
        }
        Ok(parts_of(&self.clone().physical(parameters).await?, spans))
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
            Some(threads) => running::run_on(&threads, self.limits, self.noting(parameters)).await,
            None => self.noting(parameters).await,
        }
    }

    async fn noting(self, parameters: Option<ParamValues>) -> Result<SqlRows> {
        let running = self.parts.log.begin(&self.tenant, self.language, &self.text);
        match self.started(parameters).await {
            Ok(SqlRows { schema, batches, cost }) => {
                let batches = noted(batches, NotedRows { running: Some(running), cost: cost.clone(), rows: 0 });
                Ok(SqlRows { schema, batches, cost })
            }
            Err(error) => {
                running.end(Some(&error));
                Err(error)
            }
        }
    }

    async fn started(self, parameters: Option<ParamValues>) -> Result<SqlRows> {
        let Self { part, limits, parts: SessionParts { sources, .. }, memory, .. } = self.clone();
        let state = self.context.state();
        let plan = self.physical(parameters).await?;
        let runtime = limits.runtime(state.runtime_env())?;
        // Where a clone of the statement runs already, its pool counts the functions of both.
        let _ = memory.set(runtime.memory_pool.clone());
        let task = Arc::new(TaskContext::from(&state).with_runtime(runtime));
        let stream = match part {
            Some(part) if part >= plan.output_partitioning().partition_count() => {
                return Err(Error::invalid(format!("the rows have no part {part}")));
            }
            Some(part) => plan.execute(part, task),
            None => execute_stream(plan.clone(), task),
        };
        let stream = stream.map_err(sql_error)?;
        let schema = stream.schema();
        let mut given = Given::default();
        let counted = move |batch: DataFusionResult<RecordBatch>| {
            let batch = batch.map_err(sql_error)?;
            given.count(&batch, &limits)?;
            Ok(batch)
        };
        let batches = stream.map(counted).boxed();
        Ok(SqlRows { schema, batches, cost: SqlCost { plan, sources } })
    }

    async fn physical(self, parameters: Option<ParamValues>) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = match parameters {
            Some(values) => self.plan.with_param_values(values).map_err(sql_error)?,
            None => self.plan,
        };
        check_given(&plan)?;
        let state = self.context.state();
        let plan = state.optimize(&plan).map_err(sql_error)?;
        harmless::check_constants(&plan)?;
        state.query_planner().create_physical_plan(&plan, &state).await.map_err(sql_error)
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

/// Rows of a statement that the log of queries is told of, also when they are not read to their end.
struct NotedRows {
    running: Option<RunningQuery>,
    cost: SqlCost,
    rows: u64,
}

impl NotedRows {
    async fn end(&mut self, error: Option<&Error>) {
        if let (Ok(stats), Some(mut running)) = (self.cost.stats().await, self.running.take()) {
            running.so_far(self.rows, stats);
            running.end(error);
        }
    }
}

fn noted(batches: BoxStream<'static, Result<RecordBatch>>, noted: NotedRows) -> BoxStream<'static, Result<RecordBatch>> {
    let next = |(mut batches, mut noted): (BoxStream<'static, Result<RecordBatch>>, NotedRows)| async move {
        let batch = batches.next().await;
        match &batch {
            Some(Ok(batch)) => noted.rows += batch.num_rows() as u64,
            Some(Err(error)) => noted.end(Some(error)).await,
            None => noted.end(None).await,
        }
        batch.map(|batch| (batch, (batches, noted)))
    };
    stream::unfold((batches, noted), next).boxed()
}

fn read_only(error: &DataFusionError) -> Error {
    Error::invalid(format!("only statements that read are allowed (SELECT, EXPLAIN, SHOW): {}", error.strip_backtrace()))
}

fn empty_context(tenant: &TenantId, parts: &SessionParts, memory: &FunctionMemory) -> SessionContext {
    let config = SessionConfig::new()
        .with_target_partitions(parts.partitions)
        .with_information_schema(true)
        .with_create_default_catalog_and_schema(false)
        .with_default_catalog_and_schema(CATALOG, schema_name(tenant));
    let builder = SessionStateBuilder::new().with_config(config).with_runtime_env(parts.runtime.clone()).with_default_features();
    let builder = builder.with_optimizer_rule(Arc::new(DistinctCounts)).with_physical_optimizer_rule(Arc::new(GroupByCodes));
    let builder = harmless::make_harmless(utc::truncate_fast(builder), memory);
    let builder = match &parts.distribution {
        Some(Distribution(distributed)) => distributed(builder),
        None => builder,
    };
    SessionContext::new_with_state(builder.build())
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
    let own = Arc::new(MemorySchemaProvider::new());
    system::add_tables(&own, tenant, &parts.sources, &parts.log).map_err(sql_error)?;
    catalog.register_schema(system::SCHEMA, own).map_err(sql_error)?;
    catalog.register_schema(&schema_name(tenant), schema).map_err(sql_error)?;
    context.register_catalog(CATALOG, catalog);
    functions::register(context, parts, times_of(sources), &spans);
    Ok(())
}

/// From the first start to the last end of all traces.
fn times_of(sources: &[SourceRef]) -> Option<(u64, u64)> {
    let groups = || sources.iter().flat_map(|source| source.row_groups());
    Some((groups().map(|group| group.trace_start_min).min()?, groups().map(|group| group.trace_end_max).max()?))
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
    if let Statement::Explain(explained) = statement {
        return name_rare_attributes(&mut explained.statement);
    }
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
