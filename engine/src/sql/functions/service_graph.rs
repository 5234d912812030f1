//! `service_graph([query or id [, start, end]])`: which service calls which, how often, with what errors and latencies.

use std::sync::Arc;

use datafusion::{
    arrow::datatypes::DataType,
    catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider, view::ViewTable},
    common::Result,
    datasource::provider_as_source,
    functions_aggregate::expr_fn::{count, percentile_cont, sum},
    logical_expr::{Expr, LogicalPlanBuilder, SortExpr, cast, col, lit, when},
};

use super::traces::TracesFunction;
use crate::exec::sources::SourceSet;

/// The columns of latencies with their quantiles, which are exact, interpolated between neighbours.
const QUANTILES: [(&str, f64); 3] = [("p50_nanos", 0.5), ("p95_nanos", 0.95), ("p99_nanos", 0.99)];

/// The function over the sources of one statement.
#[derive(Debug)]
pub(crate) struct ServiceGraphFunction {
    calls: TracesFunction,
}

impl ServiceGraphFunction {
    /// The function over `sources`.
    pub(crate) fn new(sources: Arc<SourceSet>) -> Self {
        Self { calls: TracesFunction::calls(sources) }
    }
}

impl TableFunctionImpl for ServiceGraphFunction {
    /// ```text
    /// Projection       whole nanoseconds
    ///   Aggregate      by client, server and connection
    ///     TableScan    a row a call
    /// ```
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let calls = provider_as_source(Arc::new(self.calls.table(&args)?));
        let edge = [col("client"), col("server"), col("connection_type")];
        let failed = when(col("failed"), lit(1_i64)).otherwise(lit(0_i64))?;
        let quantile = |(name, q): (&str, f64)| {
            let nanos = cast(col("duration_nanos"), DataType::Float64);
            percentile_cont(SortExpr::new(nanos, true, false), lit(q)).alias(name)
        };
        let mut totals = vec![count(lit(1_i64)).alias("calls"), sum(failed).alias("errors")];
        totals.extend(QUANTILES.map(quantile));
        let whole = |(name, _): (&str, f64)| cast(datafusion::functions::expr_fn::round(vec![col(name)]), DataType::Int64).alias(name);
        let mut columns: Vec<Expr> = edge.iter().cloned().chain([col("calls"), col("errors")]).collect();
        columns.extend(QUANTILES.map(whole));
        let plan = LogicalPlanBuilder::scan("calls", calls, None)?.aggregate(edge, totals)?.project(columns)?.build()?;
        Ok(Arc::new(ViewTable::new(plan, None)))
    }
}
