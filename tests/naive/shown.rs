//! Which attributes a search shows on the spans it found: those that the query looks at.

use skein_engine::traceql::{Aggregate, CompareOp, FieldExpr, FieldRef, Intrinsic, Pipeline, SpansetExpr, Stage};

use super::fields::{Place, Value, compare, evaluate, matches_pattern, places, read, reads_event, reads_link};
use super::structure::Trace;

/// One look of the query at a field.
pub struct Look<'q> {
    pub field: &'q FieldRef,
    how: How<'q>,
}

/// When the look shows the field.
enum How<'q> {
    /// Wherever it has a value.
    AsItIs,
    /// Where it is in this relation to a constant.
    Compared(CompareOp, &'q FieldExpr),
    /// Where it matches.
    Matched(bool, &'q str),
    /// Where it is missing, as `nil`.
    Missing,
}

/// All looks of a query.
pub fn looks(pipeline: &Pipeline) -> Vec<Look<'_>> {
    let mut looks = Vec::new();
    in_pipeline(pipeline, &mut looks);
    looks
}

fn in_pipeline<'q>(pipeline: &'q Pipeline, looks: &mut Vec<Look<'q>>) {
    for stage in &pipeline.stages {
        match stage {
            Stage::Spansets(spansets) => in_spansets(spansets, looks),
            Stage::By(expr) => in_expr(expr, false, looks),
            Stage::Select(fields) => looks.extend(fields.iter().map(|field| Look { field, how: How::AsItIs })),
            Stage::Coalesce => {}
            Stage::Aggregate(filter) => match &filter.aggregate {
                Aggregate::Count => {}
                Aggregate::Min(expr) | Aggregate::Max(expr) | Aggregate::Avg(expr) | Aggregate::Sum(expr) => in_expr(expr, false, looks),
            },
        }
    }
}

fn in_spansets<'q>(spansets: &'q SpansetExpr, looks: &mut Vec<Look<'q>>) {
    match spansets {
        SpansetExpr::Filter(expr) => in_expr(expr, false, looks),
        SpansetExpr::Pipeline(pipeline) => in_pipeline(pipeline, looks),
        SpansetExpr::Binary { lhs, rhs, .. } => {
            in_spansets(lhs, looks);
            in_spansets(rhs, looks);
        }
    }
}

/// A comparison within another operator than `&&` and `||` is a look at the field as it is.
fn in_expr<'q>(expr: &'q FieldExpr, within: bool, looks: &mut Vec<Look<'q>>) {
    let comparison = |field: &'q FieldExpr, how: How<'q>, looks: &mut Vec<Look<'q>>| match field {
        FieldExpr::Field(field) => looks.push(Look { field, how: if within { How::AsItIs } else { how } }),
        other => in_expr(other, true, looks),
    };
    match expr {
        FieldExpr::Literal(_) => {}
        FieldExpr::Field(field) => looks.push(Look { field, how: How::AsItIs }),
        FieldExpr::Not(inner) | FieldExpr::Negate(inner) => in_expr(inner, true, looks),
        FieldExpr::Exists(inner) => comparison(inner, How::AsItIs, looks),
        FieldExpr::Missing(inner) => comparison(inner, How::Missing, looks),
        FieldExpr::Compare { op, lhs, rhs } if is_constant(rhs) => comparison(lhs, How::Compared(*op, rhs), looks),
        FieldExpr::Compare { op, lhs, rhs } if is_constant(lhs) => comparison(rhs, How::Compared(op.mirrored(), lhs), looks),
        FieldExpr::Match { negated, lhs, pattern } => comparison(lhs, How::Matched(*negated, pattern), looks),
        FieldExpr::Compare { lhs, rhs, .. } | FieldExpr::Arith { lhs, rhs, .. } => {
            in_expr(lhs, true, looks);
            in_expr(rhs, true, looks);
        }
        FieldExpr::And(lhs, rhs) | FieldExpr::Or(lhs, rhs) => {
            in_expr(lhs, within, looks);
            in_expr(rhs, within, looks);
        }
    }
}

fn is_constant(expr: &FieldExpr) -> bool {
    let mut constant = true;
    expr.visit_fields(&mut |_| constant = false);
    constant
}

/// What is shown of `field` on the span: of several events or links that fit, the last that has a value.
pub fn shown(field: &FieldRef, looks: &[Look<'_>], trace: &Trace<'_>, at: usize) -> Option<Value> {
    let looks: Vec<&Look<'_>> = looks.iter().filter(|look| look.field == field).collect();
    let field_expr = FieldExpr::Field(field.clone());
    let all = places(trace, at, &field_expr);
    let fitting = all.iter().filter(|place| looks.iter().any(|look| fits(look, place)));
    let values: Vec<Value> = fitting.map(|place| read(field, place)).collect();
    values.iter().rfind(|value| !matches!(value, Value::Nil)).or(values.last()).cloned()
}

fn fits(look: &Look<'_>, place: &Place<'_>) -> bool {
    let value = read(look.field, place);
    let nowhere = (reads_event(look.field) && place.event.is_none()) || (reads_link(look.field) && place.link.is_none());
    match look.how {
        How::AsItIs => !matches!(value, Value::Nil),
        How::Compared(op, constant) => evaluate(constant, place).is_ok_and(|constant| compare(op, &value, &constant)),
        How::Matched(negated, pattern) => matches_pattern(negated, &value, pattern),
        How::Missing => !nowhere && matches!(value, Value::Nil),
    }
}

/// Whether a field is never listed among a span's attributes: it has a place of its own in the answer.
pub fn has_a_place_of_its_own(field: &FieldRef) -> bool {
    use Intrinsic as I;
    matches!(field, FieldRef::Intrinsic(I::Name | I::Duration | I::TraceId | I::SpanId | I::TraceDuration | I::RootName | I::RootService))
}
