//! Filters over the rows of a frame, as a plan says: term by term, and only while rows are left.

use std::fmt;

use arrow::buffer::BooleanBuffer;

use crate::{
    error::Result,
    exec::{
        eval::{ColumnNeeds, Frame, mask::mask},
        prune::{Evidence, ruled_out},
        stats::ScanMetrics,
    },
    traceql::FieldExpr,
};

/// A filter as it is evaluated: a span passes if all terms hold. They are tried in this order.
#[derive(Debug, Clone, PartialEq)]
pub struct FilterTerms {
    /// The terms; never empty.
    pub terms: Vec<FilterTerm>,
}

/// One term of a filter.
#[derive(Debug, Clone, PartialEq)]
pub struct FilterTerm {
    /// The condition. Where it reads events, one event must fulfil all of it; so with links.
    pub expr: FieldExpr,
    /// By what row groups are ruled out before anything is read; None looks at none.
    pub prunes_by: Option<Evidence>,
}

impl From<FieldExpr> for FilterTerm {
    fn from(expr: FieldExpr) -> Self {
        Self { expr, prunes_by: None }
    }
}

impl FilterTerms {
    /// The filter as it is written: one term that rules nothing out.
    pub fn as_written(filter: FieldExpr) -> Self {
        Self { terms: vec![filter.into()] }
    }
}

impl fmt::Display for FilterTerms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, term) in self.terms.iter().enumerate() {
            let then = if at > 0 { ", then " } else { "" };
            write!(f, "{then}{}", term.expr)?;
            if let Some(by) = term.prunes_by {
                write!(f, " (prunes by {by})")?;
            }
        }
        Ok(())
    }
}

/// The rows of `frame` among `active` that pass `filter`, none if some term is ruled out beforehand; else loading columns term by term and
/// only while rows are left.
/// Errors: as [`mask`] and the source's.
pub async fn filter_rows(
    filter: &FilterTerms,
    frame: &mut Frame,
    group: usize,
    active: &BooleanBuffer,
    metrics: &ScanMetrics,
) -> Result<BooleanBuffer> {
    for term in filter.terms.iter().filter(|term| term.prunes_by.is_some()) {
        if let Some(why) = ruled_out(&term.expr, frame.source(), group, metrics).await? {
            frame.rule_out(why);
            return Ok(BooleanBuffer::new_unset(frame.len()));
        }
    }
    let mut left = active.clone();
    for FilterTerm { expr, .. } in &filter.terms {
        if left.count_set_bits() == 0 {
            break;
        }
        let mut needs = ColumnNeeds::default();
        expr.visit_fields(&mut |field| needs.add_field(field, frame.source()));
        frame.load(&needs, metrics).await?;
        left = mask(expr, frame, &left)?;
    }
    Ok(left)
}
