//! Filters over the rows of a frame: term by term, cheapest first, and only while rows are left.

use arrow::buffer::BooleanBuffer;

use crate::{
    error::Result,
    exec::{
        eval::{
            ColumnNeeds, Frame,
            frame::{FieldLevel, level_of},
            mask::mask,
        },
        prune::{prunes_by, ruled_out},
        stats::ScanMetrics,
    },
    traceql::{AttributeScope, FieldExpr, FieldRef, Intrinsic, Pipeline},
};

use super::pipeline::Parts;

/// Splits a chain of `&&` into its terms. Terms over events stay together, since they must hold for the same event; so do those over
/// links.
fn conjuncts(expr: &FieldExpr) -> Vec<FieldExpr> {
    fn split<'a>(expr: &'a FieldExpr, out: &mut Vec<&'a FieldExpr>) {
        match expr {
            FieldExpr::And(lhs, rhs) => {
                split(lhs, out);
                split(rhs, out);
            }
            term => out.push(term),
        }
    }
    let mut terms = Vec::new();
    split(expr, &mut terms);
    let (mut plain, mut bound): (Vec<FieldExpr>, Option<FieldExpr>) = (Vec::new(), None);
    for term in terms {
        let mut nested = false;
        term.visit_fields(&mut |field| nested |= level_of(field) != FieldLevel::Span);
        if nested {
            bound = Some(match bound {
                Some(others) => FieldExpr::And(Box::new(others), Box::new(term.clone())),
                None => term.clone(),
            });
        } else {
            plain.push(term.clone());
        }
    }
    plain.extend(bound);
    plain
}

/// How dear the columns of a term are to read and test; terms are tried cheapest first.
fn cost_of(expr: &FieldExpr) -> u32 {
    let mut cost = 0;
    expr.visit_fields(&mut |field| {
        cost += match field {
            FieldRef::Attribute { scope: AttributeScope::Resource | AttributeScope::Instrumentation, .. } => 1,
            FieldRef::Intrinsic(Intrinsic::Status | Intrinsic::Kind) => 1,
            FieldRef::Intrinsic(Intrinsic::Duration | Intrinsic::Name | Intrinsic::RootName | Intrinsic::RootService) => 2,
            FieldRef::Intrinsic(Intrinsic::TraceDuration | Intrinsic::TraceId) => 2,
            FieldRef::Attribute { scope: AttributeScope::Event | AttributeScope::Link, .. } => 40,
            FieldRef::Intrinsic(Intrinsic::EventName | Intrinsic::EventTimeSinceStart | Intrinsic::LinkTraceId | Intrinsic::LinkSpanId) => 40,
            FieldRef::Intrinsic(_) => 6,
            FieldRef::Attribute { .. } => 4,
        }
    });
    if matches!(expr, FieldExpr::Compare { .. } | FieldExpr::Exists(_) | FieldExpr::Missing(_)) { cost } else { cost * 2 }
}

/// The rows of `frame` among `active` that pass `filter`, none if some term is ruled out beforehand; else loading columns term by term and
/// only while rows are left.
/// Errors: as [`mask`] and the source's.
pub async fn filter_rows(
    filter: &FieldExpr,
    frame: &mut Frame,
    group: usize,
    active: &BooleanBuffer,
    metrics: &ScanMetrics,
) -> Result<BooleanBuffer> {
    let mut terms = conjuncts(filter);
    terms.sort_by_key(cost_of);
    for term in &terms {
        if let Some(why) = ruled_out(term, frame.source(), group, metrics).await? {
            frame.rule_out(why);
            return Ok(BooleanBuffer::new_unset(frame.len()));
        }
    }
    let mut left = active.clone();
    for term in &terms {
        if left.count_set_bits() == 0 {
            break;
        }
        let mut needs = ColumnNeeds::default();
        term.visit_fields(&mut |field| needs.add_field(field, frame.source()));
        frame.load(&needs, metrics).await?;
        left = mask(term, frame, &left)?;
    }
    Ok(left)
}

/// The filters of `pipeline` as they are evaluated: the terms of each `&&` in the order in which their columns are read, and what can rule
/// a row group out before.
pub fn evaluation_order(pipeline: &Pipeline) -> Vec<String> {
    let mut parts = Parts::default();
    parts.pipeline(pipeline);
    let describe = |term: &FieldExpr| match prunes_by(term) {
        Some(by) => format!("{term} (prunes by {by})"),
        None => term.to_string(),
    };
    let filter = |filter: &FieldExpr| {
        let mut terms = conjuncts(filter);
        terms.sort_by_key(cost_of);
        terms.iter().map(describe).collect::<Vec<_>>().join(", then ")
    };
    parts.filters.into_iter().map(filter).collect()
}
