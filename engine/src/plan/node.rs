//! What all nodes say alike, so that a node's file has only what is its own. Each macro stands for methods of
//! [`ExecutionPlan`](datafusion::physical_plan::ExecutionPlan) of a type with a field `properties`.

/// The methods that all nodes share.
macro_rules! node_methods {
    () => {
        fn name(&self) -> &str {
            Self::static_name()
        }

        fn properties(&self) -> &::std::sync::Arc<::datafusion::physical_plan::PlanProperties> {
            &self.properties
        }

        fn apply_expressions(
            &self,
            _: &mut dyn FnMut(
                &::std::sync::Arc<dyn ::datafusion::physical_expr::PhysicalExpr>,
            ) -> ::datafusion::common::Result<::datafusion::common::tree_node::TreeNodeRecursion>,
        ) -> ::datafusion::common::Result<::datafusion::common::tree_node::TreeNodeRecursion> {
            Ok(::datafusion::common::tree_node::TreeNodeRecursion::Continue)
        }

        fn with_new_children(
            self: ::std::sync::Arc<Self>,
            children: Vec<::std::sync::Arc<dyn ::datafusion::physical_plan::ExecutionPlan>>,
        ) -> ::datafusion::common::Result<::std::sync::Arc<dyn ::datafusion::physical_plan::ExecutionPlan>> {
            use ::datafusion::physical_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
            self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
        }
    };
}

/// The methods of a node without input.
macro_rules! leaf_node {
    () => {
        $crate::plan::node::node_methods!();

        fn children(&self) -> Vec<&::std::sync::Arc<dyn ::datafusion::physical_plan::ExecutionPlan>> {
            Vec::new()
        }

        fn replace_children(
            self: ::std::sync::Arc<Self>,
            _: Vec<::std::sync::Arc<dyn ::datafusion::physical_plan::ExecutionPlan>>,
            _: ::datafusion::physical_plan::ReplaceChildrenOptions,
        ) -> ::datafusion::common::Result<::std::sync::Arc<dyn ::datafusion::physical_plan::ExecutionPlan>> {
            Ok(self)
        }
    };
}

/// The methods of a node with the field `input`, which it reads as it is partitioned: `unary_node!(node, input => …)` makes the same node
/// over another input.
macro_rules! unary_node {
    ($node:ident, $input:ident => $make:expr) => {
        $crate::plan::node::node_methods!();

        fn children(&self) -> Vec<&::std::sync::Arc<dyn ::datafusion::physical_plan::ExecutionPlan>> {
            vec![&self.input]
        }

        fn benefits_from_input_partitioning(&self) -> Vec<bool> {
            vec![false]
        }

        fn replace_children(
            self: ::std::sync::Arc<Self>,
            children: Vec<::std::sync::Arc<dyn ::datafusion::physical_plan::ExecutionPlan>>,
            _: ::datafusion::physical_plan::ReplaceChildrenOptions,
        ) -> ::datafusion::common::Result<::std::sync::Arc<dyn ::datafusion::physical_plan::ExecutionPlan>> {
            let $node = &*self;
            let [$input] = <[_; 1]>::try_from(children)
                .map_err(|children| ::datafusion::common::internal_datafusion_err!("{} has one input, not {}", self.name(), children.len()))?;
            Ok(::std::sync::Arc::new($make))
        }
    };
}

/// The counts of a node with a field `metrics`, as DataFusion shows them.
macro_rules! counted_node {
    () => {
        fn metrics(&self) -> Option<::datafusion::physical_plan::metrics::MetricsSet> {
            Some(self.metrics.to_set())
        }
    };
}

pub(crate) use {counted_node, leaf_node, node_methods, unary_node};
