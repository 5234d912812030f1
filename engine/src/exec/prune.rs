//! Row groups that cannot match, found without reading them: by the resources of the block, the statistics of its columns, their types, and
//! bloom filters.

use std::{fmt, ops::RangeInclusive};

use serde::{Deserialize, Serialize};

use super::{
    eval::{
        value::compare,
        vector::{kind_of, status_of},
    },
    source::{RestScope, SourceRef},
    stats::{Pruned, ScanMetrics},
};
use crate::{
    error::Result,
    spans::{columns::AttributeType, schema::Column, value::Value},
    traceql::{AttributeScope, CompareOp, FieldExpr, FieldRef, Intrinsic, Static},
};

/// By what row groups are ruled out for a term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// The values of its key in the block's resources.
    Resources,
    /// The columns of its span attribute: their types, statistics and bloom filters.
    Attribute,
    /// The keys of event attributes.
    EventKeys,
    /// The statistics of the column of its intrinsic.
    Intrinsic,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resources => "resources",
            Self::Attribute => "column types, statistics and bloom filters",
            Self::EventKeys => "keys of events",
            Self::Intrinsic => "statistics",
        })
    }
}

/// The comparison of a field with a literal that `term` is, if it is one that something is known about beforehand.
fn known(term: &FieldExpr) -> Option<(Evidence, &FieldRef, CompareOp, &Static)> {
    let FieldExpr::Compare { op, lhs, rhs } = term else { return None };
    let (FieldExpr::Field(field), FieldExpr::Literal(literal)) = (&**lhs, &**rhs) else { return None };
    let evidence = match field {
        FieldRef::Attribute { scope: AttributeScope::Resource, .. } if *op == CompareOp::Eq => Evidence::Resources,
        FieldRef::Attribute { scope: AttributeScope::Event, .. } if *op == CompareOp::Eq => Evidence::EventKeys,
        FieldRef::Attribute { scope: AttributeScope::Span, .. } if *op != CompareOp::Ne => Evidence::Attribute,
        FieldRef::Intrinsic(Intrinsic::Duration | Intrinsic::TraceDuration | Intrinsic::Status | Intrinsic::Kind) if *op != CompareOp::Ne => {
            Evidence::Intrinsic
        }
        _ => return None,
    };
    Some((evidence, field, *op, literal))
}

/// By what row groups can be ruled out for `term`.
pub fn evidence(term: &FieldExpr) -> Option<Evidence> {
    known(term).map(|(evidence, ..)| evidence)
}

/// Why no row of the group can satisfy `term`, None if one may. Cost: for texts a small request where there is a bloom filter.
/// Errors: as the source's.
pub async fn ruled_out(term: &FieldExpr, source: &SourceRef, group: usize, metrics: &ScanMetrics) -> Result<Option<Pruned>> {
    let Some((_, field, op, literal)) = known(term) else { return Ok(None) };
    let cannot = |may: bool, why| Ok((!may).then_some(why));
    match field {
        FieldRef::Attribute { scope: AttributeScope::Resource, name } => cannot(resources_may_match(name, literal, source, group), Pruned::Resources),
        FieldRef::Attribute { scope: AttributeScope::Event, name } => cannot(events_may_have(name, source), Pruned::Columns),
        FieldRef::Attribute { name, .. } if source.schema().has(Column::Rest) && source.rest_may_have(RestScope::Span, name) => Ok(None),
        FieldRef::Attribute { name, .. } => attribute_rules_out(name, op, literal, source, group, metrics).await,
        FieldRef::Intrinsic(intrinsic) => cannot(intrinsic_may_match(*intrinsic, op, literal, source, group), Pruned::Columns),
    }
}

fn resources_may_match(key: &str, literal: &Static, source: &SourceRef, group: usize) -> bool {
    let literal = Value::from(literal);
    let range = source.int_range(group, Column::Resource);
    let values = source.resources().values_of(key);
    let here = |number: i64| range.as_ref().is_none_or(|range| range.contains(&number));
    values.iter().zip(0..).any(|(value, number)| here(number) && compare(CompareOp::Eq, value, &literal))
}

fn events_may_have(key: &str, source: &SourceRef) -> bool {
    let schema = source.schema();
    schema.event_attribute_columns(key).next().is_some() || (schema.event_rest && source.rest_may_have(RestScope::Event, key))
}

async fn attribute_rules_out(
    key: &str,
    op: CompareOp,
    literal: &Static,
    source: &SourceRef,
    group: usize,
    metrics: &ScanMetrics,
) -> Result<Option<Pruned>> {
    let mut why = Pruned::Columns;
    for (at, kind) in source.schema().attribute_columns(key) {
        let column = Column::Attribute(at);
        match (kind, literal) {
            (AttributeType::String, Static::String(text)) if op == CompareOp::Eq => {
                if source.may_contain(group, column, text, metrics).await? {
                    return Ok(None);
                }
                why = Pruned::Bloom;
            }
            (AttributeType::String, literal) if !matches!(literal, Static::String(_)) => {}
            (AttributeType::Int, literal) => match source.int_range(group, column) {
                Some(range) if !range_may_match(&range, op, literal, Value::Int) => {}
                _ => return Ok(None),
            },
            _ => return Ok(None),
        }
    }
    Ok(Some(why))
}

fn intrinsic_may_match(intrinsic: Intrinsic, op: CompareOp, literal: &Static, source: &SourceRef, group: usize) -> bool {
    let (column, value): (Column, fn(i64) -> Value) = match intrinsic {
        Intrinsic::Duration => (Column::Duration, Value::Duration),
        Intrinsic::TraceDuration => (Column::TraceDuration, Value::Duration),
        Intrinsic::Status => (Column::StatusCode, |code| Value::Status(status_of(code as i32))),
        _ => (Column::Kind, |code| Value::Kind(kind_of(code as i32))),
    };
    let Some(range) = source.int_range(group, column) else { return true };
    match literal {
        // Codes have no order of their own, and there are few.
        Static::Status(_) | Static::Kind(_) if range.end() - range.start() < 16 => {
            range.into_iter().any(|code| compare(op, &value(code), &literal.into()))
        }
        Static::Status(_) | Static::Kind(_) => true,
        _ => range_may_match(&range, op, literal, value),
    }
}

/// Whether some number in `range` can satisfy `op literal`.
fn range_may_match(range: &RangeInclusive<i64>, op: CompareOp, literal: &Static, value: impl Fn(i64) -> Value) -> bool {
    let literal = Value::from(literal);
    let (least, most) = (value(*range.start()), value(*range.end()));
    match op {
        CompareOp::Lt | CompareOp::Le => compare(op, &least, &literal),
        CompareOp::Gt | CompareOp::Ge => compare(op, &most, &literal),
        CompareOp::Eq => compare(CompareOp::Le, &least, &literal) && compare(CompareOp::Ge, &most, &literal),
        CompareOp::Ne => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_matches_when_one_of_its_numbers_may() {
        let may = |op, literal: Static| range_may_match(&(10..=20), op, &literal, Value::Int);
        assert!(may(CompareOp::Eq, Static::Int(10)) && may(CompareOp::Eq, Static::Float(20.0)) && may(CompareOp::Eq, Static::Float(15.5)));
        assert!(!may(CompareOp::Eq, Static::Int(9)) && !may(CompareOp::Eq, Static::Float(20.5)));
        assert!(may(CompareOp::Gt, Static::Int(19)) && !may(CompareOp::Gt, Static::Int(20)) && may(CompareOp::Ge, Static::Int(20)));
        assert!(may(CompareOp::Lt, Static::Int(11)) && !may(CompareOp::Lt, Static::Int(10)) && may(CompareOp::Le, Static::Int(10)));
        assert!(may(CompareOp::Ne, Static::Int(15)));
        assert!(!may(CompareOp::Eq, Static::String("15".into())));
    }
}
