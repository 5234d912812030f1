//! The plan of a cluster's query as text: what runs on the coordinator, then what each worker runs.

use std::{iter, sync::Arc};

use datafusion::{
    common::tree_node::{TreeNode, TreeNodeRecursion},
    physical_plan::{ExecutionPlan, display::DisplayableExecutionPlan, displayable},
};
use datafusion_distributed::DistributedLeafExec;
use skein_engine::{
    error::Result,
    plan::{
        share::ShareReport,
        share_results::{read_by_shares, reports_of},
    },
};

/// `plan`, a node a line, then each worker's share. If the plan `has_run`, each node has its counts, those of workers as their shares
/// reported them, and the last line says what all of them read. Errors: `Internal`.
pub(crate) fn explained(plan: &Arc<dyn ExecutionPlan>, has_run: bool) -> Result<String> {
    let here = if has_run { DisplayableExecutionPlan::with_metrics(&**plan) } else { displayable(&**plan) };
    let mut text = here.indent(true).to_string();
    let mut reports = reports_of(plan).into_iter();
    plan.apply(|node| {
        // The workers' shares are the first partitions of the results, in the order of their tasks.
        let shares = node.downcast_ref::<DistributedLeafExec>().map_or(&[][..], |leaf| leaf.variants());
        for share in shares {
            text.push('\n');
            text.push_str(&share_text(share, reports.next().flatten()));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    if has_run {
        text.push_str(&format!("\n{:?}\n", read_by_shares(plan)));
    }
    Ok(text)
}

/// A share, and below it the nodes that it reports on.
fn share_text(share: &Arc<dyn ExecutionPlan>, report: Option<ShareReport>) -> String {
    let counts = report.map(|report| report.nodes).unwrap_or_default();
    let counts = iter::once(None).chain(counts.into_iter().map(Some)).chain(iter::repeat(None));
    let text = displayable(&**share).indent(true).to_string();
    let lines = text.lines().zip(counts).map(|(line, counts)| match counts {
        Some(counts) => format!("{line}, metrics=[{counts}]\n"),
        None => format!("{line}\n"),
    });
    lines.collect()
}
