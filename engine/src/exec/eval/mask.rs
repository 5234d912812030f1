//! Expressions to bits, one a row.

use std::{cell::RefCell, collections::HashMap, sync::Arc};

use arrow::{
    array::Array,
    buffer::{BooleanBuffer, MutableBuffer},
};

use super::{
    frame::{Bindings, FieldLevel, Frame, level_of},
    scalar::evaluate,
    value::Matcher,
    vector::Vector,
};
use crate::{
    error::{Error, Result},
    spans::{SpanId, TraceId, schema::Column, value::Value},
    stop,
    traceql::{CompareOp, FieldExpr, FieldRef, Intrinsic, Static},
};

/// Rows with fields.
pub trait Env {
    /// Rows.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The values of a field. Errors: `Internal` when it is not loaded, `Data`.
    fn vector(&self, field: &FieldRef) -> Result<Vector>;
    /// The frame itself when rows are spans.
    fn frame(&self) -> Option<&Frame>;
    /// False when `expr` reads an event or link and `row` has chosen none.
    fn is_bound(&self, expr: &FieldExpr, row: usize) -> bool;
    /// A compiled pattern. Errors: `Invalid`.
    fn matcher(&self, pattern: &str) -> Result<Arc<Matcher>>;
}

impl Env for Frame {
    fn len(&self) -> usize {
        Frame::len(self)
    }

    fn vector(&self, field: &FieldRef) -> Result<Vector> {
        Frame::vector(self, field)
    }

    fn frame(&self) -> Option<&Frame> {
        Some(self)
    }

    fn is_bound(&self, _expr: &FieldExpr, _row: usize) -> bool {
        true
    }

    fn matcher(&self, pattern: &str) -> Result<Arc<Matcher>> {
        Frame::matcher(self, pattern)
    }
}

/// Spans with chosen events and links.
struct BoundEnv<'a> {
    frame: &'a Frame,
    bindings: &'a Bindings,
    vectors: RefCell<HashMap<FieldRef, Vector>>,
}

impl Env for BoundEnv<'_> {
    fn len(&self) -> usize {
        self.bindings.spans.len()
    }

    fn vector(&self, field: &FieldRef) -> Result<Vector> {
        if let Some(vector) = self.vectors.borrow().get(field) {
            return Ok(vector.clone());
        }
        let vector = self.frame.vector(field)?.take(self.chosen(level_of(field)))?;
        self.vectors.borrow_mut().insert(field.clone(), vector.clone());
        Ok(vector)
    }

    fn frame(&self) -> Option<&Frame> {
        None
    }

    fn is_bound(&self, expr: &FieldExpr, row: usize) -> bool {
        let mut bound = true;
        expr.visit_fields(&mut |field| bound &= self.chosen(level_of(field)).is_valid(row));
        bound
    }

    fn matcher(&self, pattern: &str) -> Result<Arc<Matcher>> {
        self.frame.matcher(pattern)
    }
}

impl BoundEnv<'_> {
    fn chosen(&self, level: FieldLevel) -> &arrow::array::UInt32Array {
        match level {
            FieldLevel::Span => &self.bindings.spans,
            FieldLevel::Event => &self.bindings.events,
            FieldLevel::Link => &self.bindings.links,
        }
    }
}

/// Which levels an expression reads.
fn levels(expr: &FieldExpr) -> (bool, bool) {
    let (mut events, mut links) = (false, false);
    expr.visit_fields(&mut |field| match level_of(field) {
        FieldLevel::Event => events = true,
        FieldLevel::Link => links = true,
        FieldLevel::Span => {}
    });
    (events, links)
}

/// The spans of `frame` among `active` for which `expr` is true. An expression over events or links is true for a span if some choice of
/// one event or none and one link or none makes all of it true. Errors: `Invalid` for run-time type errors, `Data`.
pub fn mask(expr: &FieldExpr, frame: &Frame, active: &BooleanBuffer) -> Result<BooleanBuffer> {
    let (events, links) = levels(expr);
    if !events && !links {
        return truth(expr, frame, active);
    }
    let bindings = frame.bindings(active, events, links)?;
    let bits = bound_truth(expr, frame, &bindings)?;
    let mut out = vec![false; frame.len()];
    for at in bits.set_indices() {
        out[bindings.spans.value(at) as usize] = true;
    }
    Ok(out.into())
}

/// Which of `bindings` make `expr` true. Errors: as [`mask`].
pub fn bound_truth(expr: &FieldExpr, frame: &Frame, bindings: &Bindings) -> Result<BooleanBuffer> {
    let env = BoundEnv { frame, bindings, vectors: RefCell::default() };
    truth(expr, &env, &BooleanBuffer::new_set(env.len()))
}

/// The value of `expr` for each of `rows`, which ascend. Of the events or links of a span the last counts that gives a value; an expression
/// that is no plain field takes false only where none gives another value. Errors: as [`mask`].
pub fn values(expr: &FieldExpr, frame: &Frame, rows: &[u32]) -> Result<Vec<Value>> {
    if let FieldExpr::Field(field) = expr {
        let vector = frame.vector_of_spans(field)?;
        return Ok(rows.iter().map(|&row| vector.get(row as usize)).collect());
    }
    let (events, links) = levels(expr);
    if !events && !links {
        return rows.iter().map(|&row| evaluate(expr, frame, row as usize)).collect();
    }
    let mut wanted = vec![false; frame.len()];
    rows.iter().for_each(|&row| wanted[row as usize] = true);
    let bindings = frame.bindings(&wanted.into(), events, links)?;
    let env = BoundEnv { frame, bindings: &bindings, vectors: RefCell::default() };
    let mut out = vec![Value::Nil; rows.len()];
    let mut at = 0;
    for binding in 0..env.len() {
        while rows[at] != bindings.spans.value(binding) {
            at += 1;
        }
        match evaluate(expr, &env, binding)? {
            Value::Nil => {}
            Value::Bool(false) if out[at] != Value::Nil => {}
            value => out[at] = value,
        }
    }
    Ok(out)
}

/// The rows of `env` among `active` for which `expr` is true.
fn truth(expr: &FieldExpr, env: &dyn Env, active: &BooleanBuffer) -> Result<BooleanBuffer> {
    stop::check()?;
    let bits = match expr {
        FieldExpr::Literal(Static::Bool(true)) => return Ok(active.clone()),
        FieldExpr::Literal(_) => BooleanBuffer::new_unset(env.len()),
        FieldExpr::Field(field) => env.vector(field)?.is_true(),
        FieldExpr::And(lhs, rhs) => {
            let left = truth(lhs, env, active)?;
            return if left.count_set_bits() == 0 { Ok(left) } else { truth(rhs, env, &left) };
        }
        FieldExpr::Or(lhs, rhs) => {
            let left = truth(lhs, env, active)?;
            let open = active & &!&left;
            return if open.count_set_bits() == 0 { Ok(left) } else { Ok(&left | &truth(rhs, env, &open)?) };
        }
        FieldExpr::Not(inner) => return not(inner, env, active),
        FieldExpr::Exists(inner) => match &**inner {
            FieldExpr::Field(field) => env.vector(field)?.exists(),
            _ => by_row(expr, env, active)?,
        },
        FieldExpr::Missing(inner) => match &**inner {
            FieldExpr::Field(field) if env.frame().is_some() => !&env.vector(field)?.exists(),
            _ => by_row(expr, env, active)?,
        },
        FieldExpr::Match { negated, lhs, pattern } => match &**lhs {
            FieldExpr::Field(field) => env.vector(field)?.matches(env.matcher(pattern)?.as_ref(), *negated),
            _ => by_row(expr, env, active)?,
        },
        FieldExpr::Compare { op, lhs, rhs } => match (&**lhs, &**rhs) {
            (FieldExpr::Field(field), FieldExpr::Literal(value)) => compare_field(env, field, *op, &value.into())?,
            (FieldExpr::Literal(value), FieldExpr::Field(field)) => compare_field(env, field, mirrored(*op), &value.into())?,
            _ => by_row(expr, env, active)?,
        },
        FieldExpr::Negate(_) | FieldExpr::Arith { .. } => by_row(expr, env, active)?,
    };
    Ok(&bits & active)
}

/// `a op b` as `b op' a`.
fn mirrored(op: CompareOp) -> CompareOp {
    match op {
        CompareOp::Lt => CompareOp::Gt,
        CompareOp::Le => CompareOp::Ge,
        CompareOp::Gt => CompareOp::Lt,
        CompareOp::Ge => CompareOp::Le,
        same => same,
    }
}

/// Negates what is always a boolean; a field keeps its missing values, and is an error where it is no boolean.
fn not(inner: &FieldExpr, env: &dyn Env, active: &BooleanBuffer) -> Result<BooleanBuffer> {
    match inner {
        FieldExpr::Field(field) => {
            let vector = env.vector(field)?;
            let (exists, yes) = (vector.exists(), vector.is_true());
            let others = &(&exists & active) & &!&yes;
            for row in others.set_indices() {
                if vector.get(row) != Value::Bool(false) {
                    return Err(Error::invalid(format!("expected a boolean, but got {}: ! of {inner}", vector.get(row))));
                }
            }
            Ok(others)
        }
        FieldExpr::Not(_) | FieldExpr::Negate(_) | FieldExpr::Arith { .. } => by_row(&FieldExpr::Not(Box::new(inner.clone())), env, active),
        _ => Ok(active & &!&truth(inner, env, active)?),
    }
}

fn by_row(expr: &FieldExpr, env: &dyn Env, active: &BooleanBuffer) -> Result<BooleanBuffer> {
    let mut out = MutableBuffer::new_null(env.len());
    for (count, row) in active.set_indices().enumerate() {
        if count % stop::ROWS_BETWEEN_CHECKS == 0 {
            stop::check()?;
        }
        if evaluate(expr, env, row)? == Value::Bool(true) {
            arrow::util::bit_util::set_bit(out.as_slice_mut(), row);
        }
    }
    Ok(BooleanBuffer::new(out.into(), 0, env.len()))
}

fn compare_field(env: &dyn Env, field: &FieldRef, op: CompareOp, literal: &Value) -> Result<BooleanBuffer> {
    if let (FieldRef::Intrinsic(intrinsic), CompareOp::Eq, Value::String(text), Some(frame)) = (field, op, literal, env.frame())
        && let Some(bits) = compare_id(frame, *intrinsic, text)?
    {
        return Ok(bits);
    }
    Ok(env.vector(field)?.compare(op, literal))
}

/// Equality with an id, without writing every id out as text.
fn compare_id(frame: &Frame, intrinsic: Intrinsic, text: &str) -> Result<Option<BooleanBuffer>> {
    let none = BooleanBuffer::new_unset(frame.len());
    match intrinsic {
        Intrinsic::SpanId => {
            let Some(id) = u64::from_str_radix(text, 16).ok().filter(|&id| SpanId(id.to_be_bytes()).to_string() == text) else {
                return Ok(Some(none));
            };
            let ids = frame.ints(Column::SpanId)?.values();
            Ok(Some(BooleanBuffer::collect_bool(frame.len(), |row| ids[row] as u64 == id)))
        }
        Intrinsic::TraceId => {
            let Some((high, low)) = TraceId::parse_hex(text).ok().filter(|id| id.to_short_hex() == text).map(TraceId::halves) else {
                return Ok(Some(none));
            };
            let (highs, lows) = (frame.ints(Column::TraceIdHigh)?.values(), frame.ints(Column::TraceIdLow)?.values());
            Ok(Some(BooleanBuffer::collect_bool(frame.len(), |row| lows[row] == low && highs[row] == high)))
        }
        _ => Ok(None),
    }
}
