//! Expressions to values, row by row: for what has no faster form.

use super::{mask::Env, value::compare};
use crate::{
    error::{Error, Result},
    spans::value::Value,
    traceql::{self, Computed, FieldExpr, Static},
};

/// The value of `expr` in `row`. Arithmetic on what is no number, and on what is missing, gives false, as TraceQL has it.
/// Errors: `Invalid` for integer division by zero, and for `!` and `-` of a value that has no such operation.
pub fn evaluate(expr: &FieldExpr, env: &dyn Env, row: usize) -> Result<Value> {
    match expr {
        FieldExpr::Literal(value) => Ok(value.into()),
        FieldExpr::Field(field) => Ok(env.vector(field)?.get(row)),
        FieldExpr::And(lhs, rhs) => Ok(Value::Bool(is_true(lhs, env, row)? && is_true(rhs, env, row)?)),
        FieldExpr::Or(lhs, rhs) => Ok(Value::Bool(is_true(lhs, env, row)? || is_true(rhs, env, row)?)),
        FieldExpr::Not(inner) => match evaluate(inner, env, row)? {
            Value::Bool(value) => Ok(Value::Bool(!value)),
            Value::Nil => Ok(Value::Nil),
            other => Err(Error::invalid(format!("expected a boolean, but got {other}: ! of {inner}"))),
        },
        FieldExpr::Negate(inner) => match evaluate(inner, env, row)? {
            Value::Int(value) => Ok(Value::Int(value.wrapping_neg())),
            Value::Float(value) => Ok(Value::Float(-value)),
            Value::Duration(value) => Ok(Value::Duration(value.wrapping_neg())),
            Value::Nil => Ok(Value::Nil),
            other => Err(Error::invalid(format!("expected a number, but got {other}: - of {inner}"))),
        },
        FieldExpr::Exists(inner) => Ok(Value::Bool(evaluate(inner, env, row)? != Value::Nil)),
        FieldExpr::Missing(inner) => Ok(Value::Bool(env.is_bound(inner, row) && evaluate(inner, env, row)? == Value::Nil)),
        FieldExpr::Compare { op, lhs, rhs } => Ok(Value::Bool(compare(*op, &evaluate(lhs, env, row)?, &evaluate(rhs, env, row)?))),
        FieldExpr::Match { negated, lhs, pattern } => Ok(Value::Bool(env.matcher(pattern)?.matches(&evaluate(lhs, env, row)?, *negated))),
        FieldExpr::Arith { op, lhs, rhs } => {
            let (a, b) = (evaluate(lhs, env, row)?, evaluate(rhs, env, row)?);
            let (Some(a), Some(b)) = (number(&a), number(&b)) else { return Ok(Value::Bool(false)) };
            match traceql::arith(*op, &a, &b) {
                Computed::Value(value) => Ok((&value).into()),
                Computed::NotNumeric => Ok(Value::Bool(false)),
                Computed::ZeroDivisor => Err(Error::invalid(format!("division by zero in {expr}"))),
            }
        }
    }
}

fn is_true(expr: &FieldExpr, env: &dyn Env, row: usize) -> Result<bool> {
    Ok(evaluate(expr, env, row)? == Value::Bool(true))
}

fn number(value: &Value) -> Option<Static> {
    match value {
        Value::Int(value) => Some(Static::Int(*value)),
        Value::Float(value) => Some(Static::Float(*value)),
        Value::Duration(value) => Some(Static::Duration(*value)),
        _ => None,
    }
}
