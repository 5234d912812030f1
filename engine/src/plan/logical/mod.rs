//! Our logical plan nodes, one a file: what a query asks for, before and after the optimiser's rules ([`optimize`](crate::optimize)).
//! [`lower`](crate::lower) makes them from a checked query, [`planner`](super::planner) makes physical nodes of them. They are ordinary
//! DataFusion extension nodes, so they may stand under nodes of other makers, as a table function of SQL needs.
//!
//! All nodes up to [`NewestTraces`] pass on spansets, a row each (the schema of [`matches`](super::matches)). As written and as optimised:
//! ```text
//! TraceDetails                 TraceDetails
//!   NewestTraces                 NewestTraces
//!     SpansetStages                SpansetScan
//!       Traces
//!
//! MetricsMerge                 MetricsMerge
//!   MetricsObservation           MetricsScan
//!     SpansetStages
//!       Traces
//! ```

use std::{
    cmp::Ordering,
    fmt::Debug,
    hash::{Hash, Hasher},
    ops::Deref,
    sync::{Arc, LazyLock},
};

use arrow::datatypes::SchemaRef;
use datafusion::{
    common::{DFSchema, DFSchemaRef},
    logical_expr::{EmptyRelation, Extension, LogicalPlan, UserDefinedLogicalNode},
};

mod metrics_merge;
mod metrics_observation;
mod metrics_scan;
mod newest_traces;
mod spanset_scan;
mod spanset_stages;
mod trace_details;
mod traces;

pub use self::{
    metrics_merge::MetricsMerge, metrics_observation::MetricsObservation, metrics_scan::MetricsScan, newest_traces::NewestTraces,
    spanset_scan::SpansetScan, spanset_stages::SpansetStages, trace_details::TraceDetails, traces::Traces,
};
use super::matches;
use crate::{exec::sources::SourceSet, metrics::batch};

/// A part of a node that is equal to another if both print the same for debugging: floats keep syntax trees from being [`Eq`] and [`Hash`],
/// which logical nodes must be. Right for types whose [`Debug`] is derived, since that shows every field.
#[derive(Debug, Clone)]
pub struct Comparable<T>(pub T);

impl<T: Debug> Comparable<T> {
    fn text(&self) -> String {
        format!("{:?}", self.0)
    }
}

impl<T> Deref for Comparable<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Debug> PartialEq for Comparable<T> {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl<T: Debug> Eq for Comparable<T> {}

impl<T: Debug> Hash for Comparable<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text().hash(state);
    }
}

impl<T: Debug> PartialOrd for Comparable<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.text().cmp(&other.text()))
    }
}

/// The sources of a node. Two are equal only if they are the same set: equal names may have been opened at different times.
#[derive(Debug, Clone)]
pub struct Sources(pub Arc<SourceSet>);

impl PartialEq for Sources {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Sources {}

impl Hash for Sources {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

impl PartialOrd for Sources {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}

/// A plan whose head is `node`.
pub fn plan(node: impl UserDefinedLogicalNode + 'static) -> LogicalPlan {
    LogicalPlan::Extension(Extension { node: Arc::new(node) })
}

/// The node at the head of `plan` if it is an `N`.
pub fn head<N: 'static>(plan: &LogicalPlan) -> Option<&N> {
    match plan {
        LogicalPlan::Extension(Extension { node }) => node.as_any().downcast_ref(),
        _ => None,
    }
}

/// A plan without rows in the place of one with `schema`.
pub fn nothing(schema: &DFSchemaRef) -> LogicalPlan {
    LogicalPlan::EmptyRelation(EmptyRelation { produce_one_row: false, schema: schema.clone() })
}

/// Whether `plan` has no rows, whatever is stored.
pub fn is_nothing(plan: &LogicalPlan) -> bool {
    matches!(plan, LogicalPlan::EmptyRelation(EmptyRelation { produce_one_row: false, .. }))
}

fn of_arrow(schema: SchemaRef) -> DFSchemaRef {
    Arc::new(DFSchema::try_from(schema).expect("the columns of our nodes have different names"))
}

/// A row for each spanset.
static SPANSETS: LazyLock<DFSchemaRef> = LazyLock::new(|| of_arrow(matches::schema()));
/// A row for each trace that a search found.
static RESULTS: LazyLock<DFSchemaRef> = LazyLock::new(|| of_arrow(super::trace_details::schema()));
/// Partial series.
static SERIES: LazyLock<DFSchemaRef> = LazyLock::new(|| of_arrow(batch::schema()));

/// The methods of [`UserDefinedLogicalNodeCore`](datafusion::logical_expr::UserDefinedLogicalNodeCore) that all nodes share.
macro_rules! logical_node {
    ($schema:ident) => {
        fn name(&self) -> &str {
            Self::NAME
        }

        fn schema(&self) -> &::datafusion::common::DFSchemaRef {
            &$crate::plan::logical::$schema
        }

        fn expressions(&self) -> Vec<::datafusion::logical_expr::Expr> {
            Vec::new()
        }
    };
}

/// The methods of a node without input.
macro_rules! logical_leaf {
    ($schema:ident) => {
        $crate::plan::logical::logical_node!($schema);

        fn inputs(&self) -> Vec<&::datafusion::logical_expr::LogicalPlan> {
            Vec::new()
        }

        fn with_exprs_and_inputs(
            &self,
            _: Vec<::datafusion::logical_expr::Expr>,
            _: Vec<::datafusion::logical_expr::LogicalPlan>,
        ) -> ::datafusion::common::Result<Self> {
            Ok(self.clone())
        }
    };
}

/// The same of a node with the field `input`.
macro_rules! logical_unary {
    ($schema:ident) => {
        $crate::plan::logical::logical_node!($schema);

        fn inputs(&self) -> Vec<&::datafusion::logical_expr::LogicalPlan> {
            vec![&self.input]
        }

        fn with_exprs_and_inputs(
            &self,
            _: Vec<::datafusion::logical_expr::Expr>,
            inputs: Vec<::datafusion::logical_expr::LogicalPlan>,
        ) -> ::datafusion::common::Result<Self> {
            let [input] = <[_; 1]>::try_from(inputs)
                .map_err(|inputs| ::datafusion::common::internal_datafusion_err!("{} has one input, not {}", Self::NAME, inputs.len()))?;
            Ok(Self { input, ..self.clone() })
        }
    };
}

use {logical_leaf, logical_node, logical_unary};
