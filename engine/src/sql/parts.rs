//! Answers that can be read in parts, each over a stream of its own.

use std::sync::Arc;

use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};

use super::scan::SqlScanExec;

/// Spans from which on several streams are worth it: below, the second one would take longer to open than to read.
const SPANS_MIN: u64 = 1 << 18;

/// Into how many parts the rows of `plan` over `spans` spans fall: its partitions where each is made of one partition of a scan, so that parts
/// repeat no work of each other and may come in any order; else 1.
pub(super) fn parts_of(plan: &Arc<dyn ExecutionPlan>, spans: u64) -> usize {
    let partitions = plan.output_partitioning().partition_count();
    if spans < SPANS_MIN || !is_scan_by_partition(plan, partitions) {
        return 1;
    }
    partitions
}

/// Whether partition `n` of `plan` needs partition `n` of a scan and nothing else.
fn is_scan_by_partition(plan: &Arc<dyn ExecutionPlan>, partitions: usize) -> bool {
    if plan.output_partitioning().partition_count() != partitions || plan.output_ordering().is_some() {
        return false;
    }
    match plan.children().as_slice() {
        [] => plan.downcast_ref::<SqlScanExec>().is_some(),
        [below] => {
            matches!(plan.name(), "FilterExec" | "ProjectionExec" | "CoalesceBatchesExec" | "CooperativeExec")
                && is_scan_by_partition(below, partitions)
        }
        _ => false,
    }
}
