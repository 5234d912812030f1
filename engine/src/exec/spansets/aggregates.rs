//! `by(…)` and the comparisons of aggregates: spansets split by value, and kept or dropped as a whole.

use std::{cmp::Ordering, collections::HashMap};

use super::pipeline::Spanset;
use crate::{
    error::Result,
    exec::eval::{Frame, mask::values, value::compare},
    spans::value::Value,
    traceql::{Aggregate, AggregateFilter, FieldExpr},
};

/// What `aggregate` reads of each span.
pub(super) fn argument(aggregate: &Aggregate) -> Option<&FieldExpr> {
    match aggregate {
        Aggregate::Count => None,
        Aggregate::Min(expr) | Aggregate::Max(expr) | Aggregate::Avg(expr) | Aggregate::Sum(expr) => Some(expr),
    }
}

/// Bytes of a group of `by` without its row list and the text of its value: its entries in the table and in the list.
const GROUP_BYTES: usize = 256;
/// Groups made between two reservations.
const GROUPS_AT_ONCE: usize = 1024;

/// The spans of `spanset` by the value of `expr`, in order of first occurrence.
pub(super) fn group_by(expr: &FieldExpr, frame: &Frame, spanset: Spanset) -> Result<Vec<Spanset>> {
    let name = format!("by({expr})");
    let mut groups: Vec<Spanset> = Vec::new();
    let mut by_value: HashMap<String, usize> = HashMap::new();
    let mut held = 0;
    for (&row, value) in spanset.rows.iter().zip(values(expr, frame, &spanset.rows)?) {
        let at = *by_value.entry(format!("{value:?}")).or_insert_with(|| {
            let mut attributes = spanset.attributes.clone();
            attributes.push((name.clone(), value));
            groups.push(Spanset { rows: Vec::new(), attributes });
            groups.len() - 1
        });
        groups[at].rows.push(row);
        if groups.len() >= held + GROUPS_AT_ONCE {
            held += GROUPS_AT_ONCE;
            frame.hold(GROUPS_AT_ONCE * (GROUP_BYTES + name.len() * spanset.attributes.len().max(1)))?;
        }
    }
    Ok(groups)
}

/// `spanset` with its aggregate, if that compares as `filter` wants.
pub(super) fn apply_aggregate(filter: &AggregateFilter, frame: &Frame, mut spanset: Spanset) -> Result<Option<Spanset>> {
    let value = match argument(&filter.aggregate) {
        None => Value::Int(spanset.rows.len() as i64),
        Some(expr) => aggregate(&filter.aggregate, values(expr, frame, &spanset.rows)?),
    };
    if value.as_f64().is_none() || !compare(filter.op, &value, &(&filter.value).into()) {
        return Ok(None);
    }
    spanset.attributes.push((filter.aggregate.to_string(), value));
    Ok(Some(spanset))
}

/// Sums and averages add the values of the first value's type, averages over all that are not missing; minimum and maximum compare
/// numbers across types. Nothing to aggregate is `Nil`.
fn aggregate(aggregate: &Aggregate, values: Vec<Value>) -> Value {
    let values: Vec<Value> = values.into_iter().filter(|value| *value != Value::Nil).collect();
    let Some(first) = values.first() else { return Value::Nil };
    match aggregate {
        Aggregate::Min(_) | Aggregate::Max(_) => {
            let wanted = if matches!(aggregate, Aggregate::Max(_)) { Ordering::Greater } else { Ordering::Less };
            values.iter().skip(1).fold(first, |best, value| if order(value, best) == wanted { value } else { best }).clone()
        }
        Aggregate::Avg(_) => average(&values),
        Aggregate::Sum(_) | Aggregate::Count => sum(&values),
    }
}

/// The values that have the type of the first.
fn of_first_type(values: &[Value]) -> impl Iterator<Item = &Value> {
    values.iter().filter(|value| std::mem::discriminant(*value) == std::mem::discriminant(&values[0]))
}

/// The sum of integers or durations, without overflow.
fn whole_sum(values: &[Value]) -> i128 {
    of_first_type(values).map(|value| if let Value::Int(value) | Value::Duration(value) = value { i128::from(*value) } else { 0 }).sum()
}

fn float_sum(values: &[Value]) -> f64 {
    of_first_type(values).filter_map(Value::as_f64).sum()
}

/// Sums of integers and durations wrap, as all their arithmetic does.
fn sum(values: &[Value]) -> Value {
    match &values[0] {
        Value::Int(_) => Value::Int(whole_sum(values) as i64),
        Value::Duration(_) => Value::Duration(whole_sum(values) as i64),
        Value::Float(_) => Value::Float(float_sum(values)),
        other => other.clone(),
    }
}

fn average(values: &[Value]) -> Value {
    let count = values.len();
    match &values[0] {
        Value::Int(_) => Value::Float(whole_sum(values) as f64 / count as f64),
        Value::Duration(_) => Value::Duration((whole_sum(values) / count as i128) as i64),
        Value::Float(_) => Value::Float(float_sum(values) / count as f64),
        other => other.clone(),
    }
}

/// Numbers by size, below everything else; other types by kind.
fn order(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Int(a) | Value::Duration(a), Value::Int(b) | Value::Duration(b)) => a.cmp(b),
        (Value::String(a), Value::String(b)) => a.cmp(b),
        _ => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => a.partial_cmp(&b).unwrap_or(Ordering::Equal),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => Ordering::Equal,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traceql::Static;

    #[test]
    fn sums_take_the_first_type_and_averages_divide_by_all() {
        let values = || vec![Value::Int(1), Value::Nil, Value::Int(2), Value::Float(4.5), Value::from("9")];
        let field = || FieldExpr::Literal(Static::Int(0));
        assert_eq!(aggregate(&Aggregate::Sum(field()), values()), Value::Int(3));
        assert_eq!(aggregate(&Aggregate::Avg(field()), values()), Value::Float(0.75));
        assert_eq!(aggregate(&Aggregate::Min(field()), values()), Value::Int(1));
        assert_eq!(aggregate(&Aggregate::Max(field()), values()), Value::from("9"));
        assert_eq!(aggregate(&Aggregate::Max(field()), vec![Value::Nil]), Value::Nil);
    }
}
