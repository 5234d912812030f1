//! Our plan nodes, one a file: physical ones here, [`logical`] ones in a folder, and the [`planner`] from these to those. Each physical node says all it needs in a form that `skein-flight`'s codec can carry to another process.
//!
//! A search is three nodes:
//! ```text
//! TraceDetailsExec      root names, service counts, spans and attributes of the traces that won
//!   NewestTracesExec    the newest `limit` traces of all partitions
//!     SpansetScanExec   filters and spanset pipeline over row groups, newest first, one partition per CPU
//! ```
//! A metrics query is, for each of its operands:
//! ```text
//! MetricsMergeExec      partial series of all partitions, added up
//!   MetricsScanExec     filters and spanset pipeline over row groups, spans into partial series, one partition per CPU
//! ```
//! On a cluster each worker runs these over its share, and the coordinator over the traces that several hold:
//! ```text
//! NewestResultsExec       the newest `limit` results of all shares; for metrics another MetricsMergeExec
//!   ShareResultsExec      results of all shares; what they read is counted
//!     ShareExec           results of one share, then what it read; one for each worker
//!       TraceDetailsExec  ...; for metrics a MetricsMergeExec, so that each worker sends one partial
//! ```

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::{
    common::DataFusionError,
    physical_expr::EquivalenceProperties,
    physical_plan::{
        ExecutionPlan, Partitioning, PlanProperties,
        coop::CooperativeExec,
        execution_plan::{Boundedness, EmissionType},
    },
};

pub mod logical;
pub mod matches;
pub mod metrics_merge;
pub mod metrics_scan;
pub mod newest_results;
pub mod newest_traces;
pub(crate) mod node;
pub mod planner;
pub mod share;
pub mod share_results;
pub mod spanset_scan;
pub mod trace_details;

use crate::error::{Error, ErrorKind};

/// Properties of a node with `partitions` partitions of no declared order.
pub(crate) fn properties(schema: SchemaRef, partitions: usize, emission: EmissionType) -> Arc<PlanProperties> {
    let partitioning = Partitioning::UnknownPartitioning(partitions);
    Arc::new(PlanProperties::new(EquivalenceProperties::new(schema), partitioning, emission, Boundedness::Bounded))
}

/// The leaf `T` that `plan` is, perhaps inside the node that DataFusion puts around leaves so that they take turns.
fn leaf<T: ExecutionPlan>(plan: &Arc<dyn ExecutionPlan>) -> Option<&T> {
    match plan.downcast_ref::<CooperativeExec>() {
        Some(turns) => leaf(turns.input()),
        None => plan.downcast_ref(),
    }
}

impl From<Error> for DataFusionError {
    fn from(error: Error) -> Self {
        Self::External(Box::new(error))
    }
}

/// The engine's error inside a DataFusion error, or an `Internal` (or `Exhausted`) one around it: no text of a user reaches DataFusion's
/// planner on this path. The only place where a `DataFusionError` is classified.
impl From<DataFusionError> for Error {
    fn from(error: DataFusionError) -> Self {
        match error {
            DataFusionError::External(inner) => match inner.downcast::<Error>() {
                Ok(own) => *own,
                Err(inner) => Self::internal("executing a plan").with_source(inner),
            },
            DataFusionError::Context(_, inner) => Self::from(*inner),
            DataFusionError::Shared(inner) => match inner.as_ref() {
                DataFusionError::External(external) => match external.downcast_ref::<Self>() {
                    Some(own) => Self::new(own.kind(), own.to_string()),
                    None => Self::internal(external.to_string()),
                },
                DataFusionError::ResourcesExhausted(message) => Self::new(ErrorKind::Exhausted, message.clone()),
                other => Self::internal(other.to_string()),
            },
            DataFusionError::ResourcesExhausted(message) => Self::new(ErrorKind::Exhausted, message),
            other => Self::internal("executing a plan").with_source(other),
        }
    }
}
