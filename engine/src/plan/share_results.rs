//! `ShareResultsExec`: the results of all shares, for the nodes that would read them in one process.

use std::{fmt, sync::Arc};

use datafusion::{
    common::Result as DataFusionResult,
    execution::TaskContext,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties, SendableRecordBatchStream,
        execution_plan::EmissionType, stream::RecordBatchStreamAdapter,
    },
};
use futures::StreamExt;
use parking_lot::Mutex;

use super::{
    node::unary_node,
    properties,
    share::{self, ShareReport},
};
use crate::{error::Result, parts::reaching, query::ScanStats};

/// Takes the rows that say what was read off the results of each share, and keeps the last for [`reports_of`].
///
/// **Shape**: the partitions of its input, which has the schema of [`share::schema`], without these rows: the rows and the schema of the shares'
/// plans. Parts stay parts ([`reached`](crate::parts::reached)). A plan with this node is run once, or what it reports is that of the last run.
#[derive(Debug)]
pub struct ShareResultsExec {
    input: Arc<dyn ExecutionPlan>,
    /// By partition. The same for a copy of the node over another input: datafusion-distributed runs a copy of the plan.
    reports: Arc<Mutex<Vec<Option<ShareReport>>>>,
    properties: Arc<PlanProperties>,
}

impl ShareResultsExec {
    /// The results of `input`, of which each partition is a [`ShareExec`](share::ShareExec)'s. Errors: `Internal` for another input.
    pub fn new(input: Arc<dyn ExecutionPlan>) -> Result<Self> {
        let partitions = input.output_partitioning().partition_count();
        Self::reporting(input, Arc::new(Mutex::new(vec![None; partitions])))
    }

    fn reporting(input: Arc<dyn ExecutionPlan>, reports: Arc<Mutex<Vec<Option<ShareReport>>>>) -> Result<Self> {
        let (schema, partitions) = (share::schema_of_results(&input.schema())?, input.output_partitioning().partition_count());
        Ok(Self { input, reports, properties: properties(schema, partitions, EmissionType::Incremental) })
    }
}

/// What each share below `plan` read, in the order of its [`ShareResultsExec`]'s partitions; None for those that have said nothing yet.
pub fn reports_of(plan: &Arc<dyn ExecutionPlan>) -> Vec<Option<ShareReport>> {
    match plan.downcast_ref::<ShareResultsExec>() {
        Some(results) => results.reports.lock().clone(),
        None => plan.children().into_iter().flat_map(reports_of).collect(),
    }
}

/// What the shares below `plan` have said that they read, in all.
pub fn read_by_shares(plan: &Arc<dyn ExecutionPlan>) -> ScanStats {
    reports_of(plan).iter().flatten().fold(ScanStats::default(), |sum, report| sum.plus(&report.read))
}

impl DisplayAs for ShareResultsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShareResultsExec")
    }
}

impl ExecutionPlan for ShareResultsExec {
    unary_node!(node, input => Self::reporting(input, node.reports.clone())?);

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> DataFusionResult<SendableRecordBatchStream> {
        let (input, reports) = (self.input.execute(partition, context)?, self.reports.clone());
        let results = input.map(move |batch| {
            let (results, report) = share::from_batch(&batch?)?;
            let Some(report) = report else { return Ok(results) };
            let reached = report.reached;
            if let Some(place) = reports.lock().get_mut(partition) {
                *place = Some(report);
            }
            match reached {
                Some(reached) => Ok(reaching(results, reached)?),
                None => Ok(results),
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), results)))
    }
}
