//! `TextGroups`: see [`TextGroups`].

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::{
    common::{Column, Result, tree_node::Transformed},
    logical_expr::{Aggregate, Expr, ExprSchemable, LogicalPlan, Projection, cast},
    optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule},
};

/// Rows are grouped by text instead of by dictionaries: DataFusion has fast tables of groups for views of text, which it takes from a dictionary
/// without copying its values, while keys that are dictionaries are written out as rows, each value anew, to be compared.
/// ```text
///                                              Projection: CAST(CAST(name AS Utf8View) AS Dictionary) AS name, count(*)
/// Aggregate: [name], [count(*)]       →          Aggregate: [CAST(name AS Utf8View)], [count(*)]
/// ```
/// Grouping sets stay as they are.
#[derive(Debug)]
pub(super) struct TextGroups;

impl OptimizerRule for TextGroups {
    fn name(&self) -> &str {
        "text_groups"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn supports_rewrite(&self) -> bool {
        true
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        match plan {
            LogicalPlan::Aggregate(aggregate) if is_by_dictionary(&aggregate)? => grouped_by_text(aggregate).map(Transformed::yes),
            other => Ok(Transformed::no(other)),
        }
    }
}

fn is_text_dictionary(kind: &DataType) -> bool {
    matches!(kind, DataType::Dictionary(_, values) if **values == DataType::Utf8)
}

fn is_by_dictionary(aggregate: &Aggregate) -> Result<bool> {
    if aggregate.group_expr.iter().any(|key| matches!(key, Expr::GroupingSet(_))) {
        return Ok(false);
    }
    let schema = aggregate.input.schema();
    aggregate.group_expr.iter().try_fold(false, |found, key| Ok(found || is_text_dictionary(&key.get_type(schema)?)))
}

fn grouped_by_text(aggregate: Aggregate) -> Result<LogicalPlan> {
    let Aggregate { input, group_expr, aggr_expr, schema, .. } = aggregate;
    let as_text = |key: Expr| match is_text_dictionary(&key.get_type(input.schema())?) {
        true => Ok(cast(key.unalias(), DataType::Utf8View)),
        false => Ok(key),
    };
    let keys = group_expr.into_iter().map(as_text).collect::<Result<Vec<_>>>()?;
    let by_text = Aggregate::try_new(input.clone(), keys, aggr_expr)?;
    let wanted = schema.iter().zip(by_text.schema.iter()).map(|((qualifier, field), (found_qualifier, found))| {
        let value = Expr::Column(Column::new(found_qualifier.cloned(), found.name()));
        match field.data_type() == found.data_type() {
            true => value,
            false => cast(value, field.data_type().clone()).alias_qualified(qualifier.cloned(), field.name()),
        }
    });
    let wanted = wanted.collect();
    Ok(LogicalPlan::Projection(Projection::try_new(wanted, Arc::new(LogicalPlan::Aggregate(by_text)))?))
}
