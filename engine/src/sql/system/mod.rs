//! The schema `system`: what is stored of the tenant, what ran for it, and which functions there are.

mod blocks;
mod columns;
mod functions;
mod queries;

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Int64Array, StringArray, TimestampNanosecondArray},
    datatypes::{Field, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use async_trait::async_trait;
use datafusion::{
    catalog::{MemorySchemaProvider, SchemaProvider, Session, TableProvider},
    common::Result as DataFusionResult,
    datasource::memory::MemorySourceConfig,
    logical_expr::{Expr, TableType},
    physical_plan::ExecutionPlan,
};

pub(crate) use self::functions::described;
use super::columns::{SqlType, UTC};
use crate::{
    error::Result,
    exec::{history::QueryLog, sources::SourceSet},
    tenant::TenantId,
};

/// The name of the schema.
pub const SCHEMA: &str = "system";

/// A table of the schema.
#[derive(Debug, Clone)]
enum Content {
    Blocks(Arc<SourceSet>),
    Columns(Arc<SourceSet>),
    Queries(Arc<QueryLog>, TenantId),
    Functions,
}

impl Content {
    fn fields(&self) -> Vec<Field> {
        match self {
            Self::Blocks(_) => blocks::fields(),
            Self::Columns(_) => columns::fields(),
            Self::Queries(..) => queries::fields(),
            Self::Functions => functions::fields(),
        }
    }

    async fn arrays(&self) -> Result<Vec<ArrayRef>> {
        Ok(match self {
            Self::Blocks(sources) => blocks::arrays(sources.sources().await?),
            Self::Columns(sources) => columns::arrays(sources.sources().await?),
            Self::Queries(log, tenant) => queries::arrays(&log.latest(tenant)),
            Self::Functions => functions::arrays(),
        })
    }
}

/// A table whose few rows are made when it is scanned.
#[derive(Debug)]
struct SystemTable {
    content: Content,
    schema: SchemaRef,
}

/// Adds the tables of `tenant` to `schema`. Errors: DataFusion's.
pub(crate) fn add_tables(schema: &MemorySchemaProvider, tenant: &TenantId, sources: &Arc<SourceSet>, log: &Arc<QueryLog>) -> DataFusionResult<()> {
    let tables = [
        ("blocks", Content::Blocks(sources.clone())),
        ("columns", Content::Columns(sources.clone())),
        ("queries", Content::Queries(log.clone(), tenant.clone())),
        ("functions", Content::Functions),
    ];
    for (name, content) in tables {
        let table = SystemTable { schema: Arc::new(Schema::new(content.fields())), content };
        schema.register_table(name.to_owned(), Arc::new(table))?;
    }
    Ok(())
}

#[async_trait]
impl TableProvider for SystemTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(&self, _: &dyn Session, projection: Option<&Vec<usize>>, _: &[Expr], _: Option<usize>) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let rows = RecordBatch::try_new(self.schema.clone(), self.content.arrays().await?)?;
        Ok(MemorySourceConfig::try_new_exec(&[vec![rows]], self.schema.clone(), projection.cloned())?)
    }
}

fn text_field(name: &str, nullable: bool) -> Field {
    Field::new(name, arrow::datatypes::DataType::Utf8, nullable)
}

fn count_field(name: &str, nullable: bool) -> Field {
    Field::new(name, SqlType::Int.data_type(), nullable)
}

fn time_field(name: &str) -> Field {
    Field::new(name, SqlType::Time.data_type(), false)
}

fn texts(values: impl Iterator<Item = String>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn counts(values: impl Iterator<Item = u64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values.map(|count| i64::try_from(count).unwrap_or(i64::MAX))))
}

fn optional_counts(values: impl Iterator<Item = Option<u64>>) -> ArrayRef {
    Arc::new(Int64Array::from_iter(values.map(|count| count.map(|count| i64::try_from(count).unwrap_or(i64::MAX)))))
}

fn times(nanos: impl Iterator<Item = u64>) -> ArrayRef {
    Arc::new(TimestampNanosecondArray::from_iter_values(nanos.map(|nanos| nanos as i64)).with_timezone(UTC))
}
