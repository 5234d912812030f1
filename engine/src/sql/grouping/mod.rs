//! Groups by texts: `GROUP BY "resource.service.name"` and the like.
//!
//! Where a key is a dictionary, DataFusion writes the keys of each row out as bytes and hashes them. Here a text of a dictionary is looked up
//! once, and the group of a row is found by the codes of its keys.

mod codes;
mod exec;
mod groups;
mod pending;
#[cfg(test)]
mod tests;
mod texts;

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::{
    common::{
        Result,
        config::ConfigOptions,
        tree_node::{Transformed, TransformedResult, TreeNode},
    },
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::{
        ExecutionPlan, InputOrderMode,
        aggregates::{AggregateExec, AggregateOutputMode},
    },
};

pub use exec::GroupByCodesExec;
use groups::{KEYS_ALWAYS, KEYS_MAX};

/// Puts a [`GroupByCodesExec`] over each step of an aggregation whose keys have codes, a text among them.
/// ```text
/// AggregateExec: mode=FinalPartitioned                 GroupByCodesExec
///   RepartitionExec: Hash                                AggregateExec: mode=FinalPartitioned
///     AggregateExec: mode=Partial              →           RepartitionExec: Hash
///       SqlScanExec                                          GroupByCodesExec
///                                                              AggregateExec: mode=Partial
///                                                                SqlScanExec
/// ```
#[derive(Debug)]
pub(super) struct GroupByCodes;

impl PhysicalOptimizerRule for GroupByCodes {
    fn name(&self) -> &str {
        "group_by_codes"
    }

    fn schema_check(&self) -> bool {
        true
    }

    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let over = |plan: Arc<dyn ExecutionPlan>| {
            let fits = plan.downcast_ref::<AggregateExec>().map(has_codes).transpose()?.unwrap_or(false);
            Ok(if fits { Transformed::yes(Arc::new(GroupByCodesExec::new(plan)) as Arc<dyn ExecutionPlan>) } else { Transformed::no(plan) })
        };
        plan.transform_up(over).data()
    }
}

/// Whether [`GroupByCodesExec`] can do what `aggregate` does. One with a limit may stop early, and one over sorted keys need not keep all groups:
/// these know better.
fn has_codes(aggregate: &AggregateExec) -> Result<bool> {
    let keys = aggregate.group_expr();
    let keys_max = match aggregate.mode().output_mode() {
        AggregateOutputMode::Partial => KEYS_MAX,
        AggregateOutputMode::Final => KEYS_ALWAYS,
    };
    let is_plain = keys.is_single()
        && (1..=keys_max).contains(&keys.expr().len())
        && aggregate.limit_options().is_none()
        && *aggregate.input_order_mode() == InputOrderMode::Linear;
    if !is_plain {
        return Ok(false);
    }
    let kinds = kinds_of_keys(aggregate)?;
    Ok(kinds.iter().all(codes::have_codes) && kinds.iter().any(codes::are_texts))
}

fn kinds_of_keys(aggregate: &AggregateExec) -> Result<Vec<DataType>> {
    let schema = aggregate.input().schema();
    aggregate.group_expr().input_exprs().iter().map(|key| key.data_type(&schema)).collect()
}
