//! Errors of a worker in a plan. datafusion-distributed carries the text of an error of ours and nothing else, so the worker writes the
//! kind into the text, and the side that asked reads it and puts the worker's name in front.

use std::{fmt, sync::Arc};

use datafusion::{
    common::{DataFusionError, Result, internal_datafusion_err, tree_node::TreeNodeRecursion},
    execution::TaskContext,
    physical_expr::PhysicalExpr,
    physical_plan::{
        ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions, SendableRecordBatchStream,
        metrics::MetricsSet, stream::RecordBatchStreamAdapter,
    },
};
use datafusion_distributed::{WorkerPlanRewriteEvent, WorkerPlanRewriteEventResponse};
use futures::TryStreamExt;
use skein_engine::error::{Error, ErrorKind};

use crate::status::{kind_of_name, name_of_kind};

/// What stands in front of the kind. No message of ours contains it otherwise.
const MARK: &str = "skein-error/";

/// Writes the kind of `error` into its text.
fn to_coordinator(error: DataFusionError) -> DataFusionError {
    let error = Error::from(error);
    let text = format!("{MARK}{}/{error}", name_of_kind(error.kind()));
    Error::new(error.kind(), text).into()
}

/// The error of `worker` as one of the engine: of the kind that the worker wrote, `Unavailable` when the connection failed.
pub(crate) fn from_peer(worker: &str, error: &DataFusionError) -> DataFusionError {
    let (kind, message) = classify(error);
    Error::new(kind, message).context(format_args!("worker {worker}")).into()
}

fn classify(error: &DataFusionError) -> (ErrorKind, String) {
    match error {
        DataFusionError::Context(_, inner) => classify(inner),
        DataFusionError::Shared(inner) => classify(inner),
        DataFusionError::Collection(errors) if !errors.is_empty() => classify(&errors[0]),
        DataFusionError::External(inner) => {
            if let Some(status) = inner.downcast_ref::<tonic::Status>() {
                return (ErrorKind::Unavailable, status.message().to_owned());
            }
            if let Some(own) = inner.downcast_ref::<Error>() {
                return (own.kind(), own.to_string());
            }
            let text = inner.to_string();
            marked(&text).unwrap_or((ErrorKind::Internal, text))
        }
        DataFusionError::ResourcesExhausted(message) => (ErrorKind::Exhausted, message.clone()),
        other => (ErrorKind::Internal, other.to_string()),
    }
}

fn marked(text: &str) -> Option<(ErrorKind, String)> {
    let (_, marked) = text.split_once(MARK)?;
    let (kind, message) = marked.split_once('/')?;
    Some((kind_of_name(kind)?, message.to_owned()))
}

/// Wraps the plan that a worker is about to run, so that its errors keep their kind. A handler for datafusion-distributed.
pub fn keep_kinds(event: WorkerPlanRewriteEvent) -> Result<WorkerPlanRewriteEventResponse> {
    Ok(WorkerPlanRewriteEventResponse::new(Arc::new(MarkedErrorsExec(event.plan))))
}

/// A node that shows itself as the node it wraps, and marks the errors of its stream.
#[derive(Debug)]
struct MarkedErrorsExec(Arc<dyn ExecutionPlan>);

impl DisplayAs for MarkedErrorsExec {
    fn fmt_as(&self, format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt_as(format, f)
    }
}

impl ExecutionPlan for MarkedErrorsExec {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.0.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        self.0.children()
    }

    fn apply_expressions(&self, visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>) -> Result<TreeNodeRecursion> {
        self.0.apply_expressions(visit)
    }

    fn replace_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>, options: ReplaceChildrenOptions) -> Result<Arc<dyn ExecutionPlan>> {
        if children.len() != self.0.children().len() {
            return Err(internal_datafusion_err!("{} has {} inputs, not {}", self.name(), self.0.children().len(), children.len()));
        }
        Ok(Arc::new(Self(self.0.clone().replace_children(children, options)?)))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let stream = self.0.execute(partition, context).map_err(to_coordinator)?;
        Ok(Box::pin(RecordBatchStreamAdapter::new(stream.schema(), stream.map_err(to_coordinator))))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        self.0.metrics()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of an error once datafusion-distributed has carried it.
    fn carried(error: DataFusionError) -> DataFusionError {
        match error {
            DataFusionError::External(inner) => DataFusionError::External(inner.to_string().into()),
            other => other,
        }
    }

    #[test]
    fn kinds_and_workers_survive_two_hops() {
        for kind in [ErrorKind::Unavailable, ErrorKind::Data, ErrorKind::Exhausted, ErrorKind::Invalid] {
            let first = from_peer("http://a:1", &carried(to_coordinator(Error::new(kind, "block b").into())));
            let error = Error::from(from_peer("http://c:1", &carried(to_coordinator(first))));
            assert_eq!((error.kind(), error.message()), (kind, "worker http://c:1: worker http://a:1: block b"));
        }
    }

    #[test]
    fn lost_connections_are_unavailable_and_strangers_internal() {
        let check = |error: DataFusionError, kind| {
            let shared = DataFusionError::Shared(Arc::new(error));
            let error = Error::from(from_peer("w", &DataFusionError::Context("doing".into(), Box::new(shared))));
            assert_eq!(error.kind(), kind);
            assert!(error.message().starts_with("worker w: "), "{error}");
        };
        check(DataFusionError::External(Box::new(tonic::Status::unknown("reset"))), ErrorKind::Unavailable);
        check(DataFusionError::External("skein-error/WORSE/x".into()), ErrorKind::Internal);
        check(DataFusionError::Execution("x".into()), ErrorKind::Internal);
        check(DataFusionError::ResourcesExhausted("x".into()), ErrorKind::Exhausted);
    }
}
