//! Constant folding, and the arithmetic and comparison of constants that it shares with evaluation.

use std::cmp::Ordering;

use super::{
    ast::{
        Aggregate, ArithOp, CompareOp, FieldExpr, FieldRef, Intrinsic, MetricsExpr, MetricsFunction, Pipeline, Query, QueryBody, SpansetExpr, Stage,
        Static,
    },
    pattern::compile_pattern,
};

/// What a constant operation comes to.
#[derive(Debug, Clone, PartialEq)]
pub enum Computed {
    /// A value.
    Value(Static),
    /// The operands are not numbers.
    NotNumeric,
    /// `/` or `%` of integers by zero.
    ZeroDivisor,
}

/// Computes `lhs op rhs`. Two integers give an integer: `+ - *` wrap, `/` truncates, `%` takes the sign of `lhs`. With a float or a
/// duration (nanoseconds) on either side the result is a float.
pub fn arith(op: ArithOp, lhs: &Static, rhs: &Static) -> Computed {
    if let (Static::Int(a), Static::Int(b)) = (lhs, rhs) {
        return match op {
            ArithOp::Add => Computed::Value(Static::Int(a.wrapping_add(*b))),
            ArithOp::Sub => Computed::Value(Static::Int(a.wrapping_sub(*b))),
            ArithOp::Mul => Computed::Value(Static::Int(a.wrapping_mul(*b))),
            ArithOp::Div | ArithOp::Mod if *b == 0 => Computed::ZeroDivisor,
            ArithOp::Div => Computed::Value(Static::Int(a.wrapping_div(*b))),
            ArithOp::Mod => Computed::Value(Static::Int(a.wrapping_rem(*b))),
            ArithOp::Pow => Computed::Value(Static::Int(int_pow(*a, *b))),
        };
    }
    let (Some(a), Some(b)) = (as_f64(lhs), as_f64(rhs)) else { return Computed::NotNumeric };
    Computed::Value(Static::Float(match op {
        ArithOp::Add => a + b,
        ArithOp::Sub => a - b,
        ArithOp::Mul => a * b,
        ArithOp::Div => a / b,
        ArithOp::Mod => a % b,
        ArithOp::Pow => a.powf(b),
    }))
}

/// `base ^ exponent`, wrapping; a negative exponent truncates towards zero.
pub fn int_pow(base: i64, exponent: i64) -> i64 {
    if exponent < 0 {
        return match base {
            1 => 1,
            -1 if exponent % 2 == 0 => 1,
            -1 => -1,
            _ => 0,
        };
    }
    let (mut result, mut square, mut left) = (1_i64, base, exponent);
    while left > 0 {
        if left & 1 == 1 {
            result = result.wrapping_mul(square);
        }
        square = square.wrapping_mul(square);
        left >>= 1;
    }
    result
}

/// Tells whether `lhs op rhs` holds; `None` when the types do not go together or have no such operator. Integers and durations are compared
/// exactly, with floats as floats, strings by bytes; booleans, statuses and kinds know only `=` and `!=`.
pub fn compare(op: CompareOp, lhs: &Static, rhs: &Static) -> Option<bool> {
    let equality_only = |equal: bool| match op {
        CompareOp::Eq => Some(equal),
        CompareOp::Ne => Some(!equal),
        _ => None,
    };
    let ordered = |ordering: Option<Ordering>| match op {
        CompareOp::Eq => ordering == Some(Ordering::Equal),
        CompareOp::Ne => ordering != Some(Ordering::Equal),
        CompareOp::Lt => ordering == Some(Ordering::Less),
        CompareOp::Le => matches!(ordering, Some(Ordering::Less | Ordering::Equal)),
        CompareOp::Gt => ordering == Some(Ordering::Greater),
        CompareOp::Ge => matches!(ordering, Some(Ordering::Greater | Ordering::Equal)),
    };
    match (lhs, rhs) {
        (Static::Bool(a), Static::Bool(b)) => equality_only(a == b),
        (Static::Status(a), Static::Status(b)) => equality_only(a == b),
        (Static::Kind(a), Static::Kind(b)) => equality_only(a == b),
        (Static::String(a), Static::String(b)) => Some(ordered(Some(a.as_bytes().cmp(b.as_bytes())))),
        (Static::Int(a) | Static::Duration(a), Static::Int(b) | Static::Duration(b)) => Some(ordered(Some(a.cmp(b)))),
        _ => Some(ordered(as_f64(lhs)?.partial_cmp(&as_f64(rhs)?))),
    }
}

fn as_f64(value: &Static) -> Option<f64> {
    match value {
        Static::Int(value) | Static::Duration(value) => Some(*value as f64),
        Static::Float(value) => Some(*value),
        _ => None,
    }
}

/// `-value`, when it is a number.
pub(super) fn negate(value: &Static) -> Option<Static> {
    match value {
        Static::Int(value) => Some(Static::Int(value.wrapping_neg())),
        Static::Duration(value) => Some(Static::Duration(value.wrapping_neg())),
        Static::Float(value) => Some(Static::Float(-value)),
        _ => None,
    }
}

/// Folds every constant sub-expression of `query`. What cannot be computed (wrong types, a zero divisor) stays as it is.
pub(super) fn fold_query(query: Query) -> Query {
    let body = match query.body {
        QueryBody::Search(pipeline) => QueryBody::Search(fold_pipeline(pipeline)),
        QueryBody::Metrics(metrics) => QueryBody::Metrics(fold_metrics(metrics)),
    };
    Query { body, hints: query.hints }
}

fn fold_metrics(metrics: MetricsExpr) -> MetricsExpr {
    match metrics {
        MetricsExpr::Pipeline { pipeline, function } => {
            let function = match function {
                MetricsFunction::Compare { selection, top_n, window } => MetricsFunction::Compare { selection: fold(selection), top_n, window },
                other => other,
            };
            MetricsExpr::Pipeline { pipeline: fold_pipeline(pipeline), function }
        }
        MetricsExpr::Binary { op, lhs, rhs } => MetricsExpr::Binary { op, lhs: Box::new(fold_metrics(*lhs)), rhs: Box::new(fold_metrics(*rhs)) },
        MetricsExpr::SecondStages { input, stages } => MetricsExpr::SecondStages { input: Box::new(fold_metrics(*input)), stages },
        scalar @ MetricsExpr::Scalar(_) => scalar,
    }
}

fn fold_pipeline(pipeline: Pipeline) -> Pipeline {
    let fold_stage = |stage| match stage {
        Stage::Spansets(spansets) => Stage::Spansets(fold_spansets(spansets)),
        Stage::By(expr) => Stage::By(fold(expr)),
        Stage::Aggregate(mut filter) => {
            filter.aggregate = match filter.aggregate {
                Aggregate::Count => Aggregate::Count,
                Aggregate::Min(expr) => Aggregate::Min(fold(expr)),
                Aggregate::Max(expr) => Aggregate::Max(fold(expr)),
                Aggregate::Avg(expr) => Aggregate::Avg(fold(expr)),
                Aggregate::Sum(expr) => Aggregate::Sum(fold(expr)),
            };
            Stage::Aggregate(filter)
        }
        stage @ (Stage::Coalesce | Stage::Select(_)) => stage,
    };
    Pipeline { stages: pipeline.stages.into_iter().map(fold_stage).collect() }
}

fn fold_spansets(spansets: SpansetExpr) -> SpansetExpr {
    match spansets {
        SpansetExpr::Filter(expr) => SpansetExpr::Filter(fold(expr)),
        SpansetExpr::Pipeline(pipeline) => SpansetExpr::Pipeline(Box::new(fold_pipeline(*pipeline))),
        SpansetExpr::Binary { op, lhs, rhs } => SpansetExpr::Binary { op, lhs: Box::new(fold_spansets(*lhs)), rhs: Box::new(fold_spansets(*rhs)) },
    }
}

/// Folds the constant sub-expressions of `expr`, and takes the leading zeros from strings compared with `trace:id`.
pub(super) fn fold(expr: FieldExpr) -> FieldExpr {
    use FieldExpr as E;
    let fold_box = |expr: Box<FieldExpr>| Box::new(fold(*expr));
    match expr {
        leaf @ (E::Literal(_) | E::Field(_)) => leaf,
        E::Not(inner) => match fold(*inner) {
            E::Literal(Static::Bool(value)) => E::Literal(Static::Bool(!value)),
            inner => E::Not(Box::new(inner)),
        },
        E::Negate(inner) => {
            let inner = fold(*inner);
            match &inner {
                E::Literal(value) => negate(value).map(E::Literal),
                _ => None,
            }
            .unwrap_or_else(|| E::Negate(Box::new(inner)))
        }
        E::Exists(inner) => match fold(*inner) {
            E::Literal(_) => E::Literal(Static::Bool(true)),
            inner => E::Exists(Box::new(inner)),
        },
        E::Missing(inner) => match fold(*inner) {
            E::Literal(_) => E::Literal(Static::Bool(false)),
            inner => E::Missing(Box::new(inner)),
        },
        E::Compare { op, lhs, rhs } => {
            let (mut lhs, mut rhs) = (fold_box(lhs), fold_box(rhs));
            if let (E::Literal(a), E::Literal(b)) = (&*lhs, &*rhs)
                && let Some(value) = compare(op, a, b)
            {
                return E::Literal(Static::Bool(value));
            }
            trim_trace_id(&lhs, &mut rhs);
            trim_trace_id(&rhs, &mut lhs);
            E::Compare { op, lhs, rhs }
        }
        E::Match { negated, lhs, pattern } => {
            let lhs = fold_box(lhs);
            if let E::Literal(Static::String(text)) = &*lhs
                && let Ok(regex) = compile_pattern(&pattern)
            {
                return E::Literal(Static::Bool(regex.is_match(text) != negated));
            }
            E::Match { negated, lhs, pattern }
        }
        E::Arith { op, lhs, rhs } => {
            let (lhs, rhs) = (fold_box(lhs), fold_box(rhs));
            if let (E::Literal(a), E::Literal(b)) = (&*lhs, &*rhs)
                && let Computed::Value(value) = arith(op, a, b)
            {
                return E::Literal(value);
            }
            E::Arith { op, lhs, rhs }
        }
        E::And(lhs, rhs) => {
            let (lhs, rhs) = (fold_box(lhs), fold_box(rhs));
            match (&*lhs, &*rhs) {
                (E::Literal(Static::Bool(a)), E::Literal(Static::Bool(b))) => E::Literal(Static::Bool(*a && *b)),
                _ => E::And(lhs, rhs),
            }
        }
        E::Or(lhs, rhs) => {
            let (lhs, rhs) = (fold_box(lhs), fold_box(rhs));
            match (&*lhs, &*rhs) {
                (E::Literal(Static::Bool(a)), E::Literal(Static::Bool(b))) => E::Literal(Static::Bool(*a || *b)),
                _ => E::Or(lhs, rhs),
            }
        }
    }
}

fn trim_trace_id(field: &FieldExpr, operand: &mut FieldExpr) {
    if let FieldExpr::Field(FieldRef::Intrinsic(Intrinsic::TraceId)) = field
        && let FieldExpr::Literal(Static::String(text)) = operand
        && text.starts_with('0')
    {
        *text = text.trim_start_matches('0').into();
    }
}
