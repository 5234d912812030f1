//! Which attributes a search shows on its spans.
//!
//! A field that is only compared with literals is shown on spans where one of these comparisons holds, with `nil` where `= nil` holds;
//! one that is read in any other way wherever it exists. Durations, ids and what is said of the trace have places of their own.

use arrow::buffer::BooleanBuffer;

use super::eval::{
    Frame,
    frame::{FieldLevel, level_of},
    mask::{bound_truth, mask},
};
use crate::{
    error::Result,
    spans::value::Value,
    traceql::{Aggregate, FieldExpr, FieldRef, Intrinsic, Pipeline, SpansetExpr, Stage},
};

/// One field to show.
#[derive(Debug, Clone, PartialEq)]
pub struct ShownField {
    /// The field.
    pub field: FieldRef,
    /// Shown wherever it exists.
    always: bool,
    /// Comparisons of the field with literals.
    terms: Vec<FieldExpr>,
}

/// The fields that a search with `pipeline` shows, in order of first mention.
pub fn shown_fields(pipeline: &Pipeline) -> Vec<ShownField> {
    let mut shown = Shown::default();
    shown.pipeline(pipeline);
    shown.fields
}

#[derive(Default)]
struct Shown {
    fields: Vec<ShownField>,
}

impl Shown {
    fn pipeline(&mut self, pipeline: &Pipeline) {
        for stage in &pipeline.stages {
            match stage {
                Stage::Spansets(expr) => self.spansets(expr),
                Stage::By(expr) => self.expr(expr),
                Stage::Aggregate(filter) => match &filter.aggregate {
                    Aggregate::Count => {}
                    Aggregate::Min(expr) | Aggregate::Max(expr) | Aggregate::Avg(expr) | Aggregate::Sum(expr) => self.always(expr),
                },
                Stage::Select(fields) => fields.iter().for_each(|field| self.entry(field, |shown| shown.always = true)),
                Stage::Coalesce => {}
            }
        }
    }

    fn spansets(&mut self, expr: &SpansetExpr) {
        match expr {
            SpansetExpr::Filter(filter) => self.expr(filter),
            SpansetExpr::Pipeline(pipeline) => self.pipeline(pipeline),
            SpansetExpr::Binary { lhs, rhs, .. } => {
                self.spansets(lhs);
                self.spansets(rhs);
            }
        }
    }

    fn expr(&mut self, expr: &FieldExpr) {
        match expr {
            FieldExpr::And(lhs, rhs) | FieldExpr::Or(lhs, rhs) => {
                self.expr(lhs);
                self.expr(rhs);
            }
            FieldExpr::Compare { lhs, rhs, .. } => match (&**lhs, &**rhs) {
                (FieldExpr::Field(field), FieldExpr::Literal(_)) | (FieldExpr::Literal(_), FieldExpr::Field(field)) => self.term(field, expr),
                _ => {
                    self.always(lhs);
                    self.always(rhs);
                }
            },
            FieldExpr::Match { lhs: inner, .. } | FieldExpr::Exists(inner) | FieldExpr::Missing(inner) => match &**inner {
                FieldExpr::Field(field) => self.term(field, expr),
                inner => self.always(inner),
            },
            FieldExpr::Literal(_) => {}
            FieldExpr::Field(_) | FieldExpr::Not(_) | FieldExpr::Negate(_) | FieldExpr::Arith { .. } => self.always(expr),
        }
    }

    fn always(&mut self, expr: &FieldExpr) {
        expr.visit_fields(&mut |field| self.entry(field, |shown| shown.always = true));
    }

    fn term(&mut self, field: &FieldRef, term: &FieldExpr) {
        self.entry(field, |shown| shown.terms.push(term.clone()));
    }

    fn entry(&mut self, field: &FieldRef, change: impl FnOnce(&mut ShownField)) {
        if has_own_place(field) {
            return;
        }
        let at = self.fields.iter().position(|shown| shown.field == *field).unwrap_or_else(|| {
            self.fields.push(ShownField { field: field.clone(), always: false, terms: Vec::new() });
            self.fields.len() - 1
        });
        change(&mut self.fields[at]);
    }
}

fn has_own_place(field: &FieldRef) -> bool {
    matches!(
        field,
        FieldRef::Intrinsic(
            Intrinsic::Duration
                | Intrinsic::TraceDuration
                | Intrinsic::RootName
                | Intrinsic::RootService
                | Intrinsic::TraceId
                | Intrinsic::SpanId
                | Intrinsic::Parent
        )
    )
}

/// The event or link a shown value comes from; the greatest is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Chosen {
    has_value: bool,
    entry: u32,
}

impl ShownField {
    /// What is shown of the field on each of `rows`: None for nothing. Errors: as [`mask`].
    pub fn values(&self, frame: &Frame, rows: &[u32]) -> Result<Vec<Option<Value>>> {
        let mut bits = vec![false; frame.len()];
        rows.iter().for_each(|&row| bits[row as usize] = true);
        let wanted: BooleanBuffer = bits.into();
        let mut shown: Vec<Option<Value>> = vec![None; frame.len()];
        let mut from: Vec<Chosen> = vec![Chosen::default(); frame.len()];
        for term in &self.terms {
            self.term_values(term, frame, &wanted, (&mut shown, &mut from))?;
        }
        if self.always {
            let vector = frame.vector_of_spans(&self.field)?;
            for &row in rows {
                let value = vector.get(row as usize);
                if value != Value::Nil {
                    shown[row as usize] = Some(value);
                }
            }
        }
        Ok(rows.iter().map(|&row| shown[row as usize].clone()).collect())
    }

    /// Of several events or links that fit, by one term or several, the last is shown that has a value.
    fn term_values(
        &self,
        term: &FieldExpr,
        frame: &Frame,
        wanted: &BooleanBuffer,
        (shown, from): (&mut [Option<Value>], &mut [Chosen]),
    ) -> Result<()> {
        let missing = matches!(term, FieldExpr::Missing(_));
        let vector = frame.vector(&self.field)?;
        let level = level_of(&self.field);
        if level == FieldLevel::Span {
            for row in mask(term, frame, wanted)?.set_indices() {
                shown[row] = Some(if missing { Value::Nil } else { vector.get(row) });
            }
            return Ok(());
        }
        let bindings = frame.bindings(wanted, level == FieldLevel::Event, level == FieldLevel::Link)?;
        let chosen = if level == FieldLevel::Event { &bindings.events } else { &bindings.links };
        for at in bound_truth(term, frame, &bindings)?.set_indices() {
            let (row, entry) = (bindings.spans.value(at) as usize, chosen.value(at));
            let candidate = Chosen { has_value: !missing, entry };
            if shown[row].is_none() || candidate > from[row] {
                shown[row] = Some(if missing { Value::Nil } else { vector.get(entry as usize) });
                from[row] = candidate;
            }
        }
        Ok(())
    }
}
