//! `DistinctCounts`: see [`DistinctCounts`].

use std::{collections::HashSet, sync::Arc};

use arrow::datatypes::DataType;
use datafusion::{
    common::{Column, DFSchema, Result, tree_node::Transformed},
    functions::expr_fn::coalesce,
    functions_aggregate::expr_fn::sum,
    logical_expr::{
        Aggregate, Expr, ExprSchemable, LogicalPlan, Projection,
        expr::{AggregateFunction, AggregateFunctionParams},
        lit, when,
    },
    optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule},
};

/// Counts beside a count of distinct texts become sums: DataFusion then groups twice, by the text too and without it (its rule
/// `single_distinct_aggregation_to_group_by` knows sums, minima and maxima, and no counts). Else each group would hold a table of texts of its own,
/// which takes some ten kilobytes even if it has one text.
/// ```text
/// Aggregate: [trace_id],                               Projection: trace_id, coalesce(sum(1), 0) AS count(*), count(DISTINCT name)
///   [count(*), count(DISTINCT name)]        →            Aggregate: [trace_id], [sum(1), count(DISTINCT name)]
/// ```
/// Without groups there is one such table and nothing to gain.
#[derive(Debug)]
pub(super) struct DistinctCounts;

impl OptimizerRule for DistinctCounts {
    fn name(&self) -> &str {
        "distinct_counts"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn supports_rewrite(&self) -> bool {
        true
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        match plan {
            LogicalPlan::Aggregate(aggregate) if is_worth_it(&aggregate)? => with_sums(aggregate).map(Transformed::yes),
            other => Ok(Transformed::no(other)),
        }
    }
}

/// What an aggregate is to the rule.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Part<'a> {
    DistinctTexts(&'a Expr),
    Count(&'a Expr),
    /// Adds up from what it gives for parts of a group.
    AddsUp,
    Other,
}

fn part<'a>(aggregate: &'a Expr, schema: &DFSchema) -> Result<Part<'a>> {
    let Expr::AggregateFunction(AggregateFunction { func, params }) = aggregate else { return Ok(Part::Other) };
    let AggregateFunctionParams { args, distinct, filter: None, order_by, .. } = params else { return Ok(Part::Other) };
    let [value] = args.as_slice() else { return Ok(Part::Other) };
    Ok(match (func.name(), distinct) {
        _ if !order_by.is_empty() => Part::Other,
        ("count", true) if is_text(&value.get_type(schema)?) => Part::DistinctTexts(value),
        ("count", false) => Part::Count(value),
        ("sum" | "min" | "max", false) => Part::AddsUp,
        _ => Part::Other,
    })
}

fn is_text(kind: &DataType) -> bool {
    match kind {
        DataType::Dictionary(_, values) => is_text(values),
        kind => matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View),
    }
}

fn is_worth_it(aggregate: &Aggregate) -> Result<bool> {
    if aggregate.group_expr.is_empty() || aggregate.group_expr.iter().any(|key| matches!(key, Expr::GroupingSet(_))) {
        return Ok(false);
    }
    let parts = aggregate.aggr_expr.iter().map(|expr| part(expr, aggregate.input.schema())).collect::<Result<HashSet<_>>>()?;
    let texts = parts.iter().filter(|part| matches!(part, Part::DistinctTexts(_))).count();
    let counts = parts.iter().filter(|part| matches!(part, Part::Count(_))).count();
    Ok(texts == 1 && counts > 0 && !parts.contains(&Part::Other))
}

fn with_sums(aggregate: Aggregate) -> Result<LogicalPlan> {
    let Aggregate { input, group_expr, aggr_expr, schema, .. } = aggregate;
    let is_count = aggr_expr.iter().map(|expr| Ok(matches!(part(expr, input.schema())?, Part::Count(_)))).collect::<Result<Vec<_>>>()?;
    let sums = aggr_expr.into_iter().map(|expr| match part(&expr, input.schema())? {
        Part::Count(value) => Ok(sum(presence(value, input.schema())?)),
        _ => Ok(expr),
    });
    let sums = sums.collect::<Result<Vec<_>>>()?;
    let keys = group_expr.len();
    let summed = LogicalPlan::Aggregate(Aggregate::try_new(input, group_expr, sums)?);
    let found = summed.schema().clone();
    let wanted = schema.iter().zip(found.iter()).enumerate().map(|(at, ((qualifier, field), (found_qualifier, found)))| {
        let value = Expr::Column(Column::new(found_qualifier.cloned(), found.name()));
        match at >= keys && is_count[at - keys] {
            true => coalesce(vec![value, lit(0_i64)]).alias_qualified(qualifier.cloned(), field.name()),
            false => value,
        }
    });
    Ok(LogicalPlan::Projection(Projection::try_new(wanted.collect(), Arc::new(summed))?))
}

/// 1 where there is a value, else 0.
fn presence(value: &Expr, schema: &DFSchema) -> Result<Expr> {
    match value.nullable(schema)? {
        true => when(value.clone().is_not_null(), lit(1_i64)).otherwise(lit(0_i64)),
        false => Ok(lit(1_i64)),
    }
}
