//! Filters of SQL as bounds of a scan: a time window, trace ids, and a TraceQL filter. Each lets through at least the rows that SQL keeps;
//! DataFusion tests the filters again, but for those that let through no others.

use std::sync::Arc;

use datafusion::{
    common::ScalarValue,
    logical_expr::{BinaryExpr, Expr, Operator, expr::InList},
};

use super::columns::{Content, SqlColumn, SqlType};
use crate::{
    query::Window,
    spans::TraceId,
    traceql::{AttributeScope, CompareOp, FieldExpr, FieldRef, Intrinsic, Kind, Static, Status},
};

/// What a scan need not look at.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ScanBounds {
    /// Earliest and latest start of a span or trace, in Unix nanoseconds, where there are such.
    pub times: (Option<i64>, Option<i64>),
    /// The only traces wanted.
    pub traces: Option<Vec<TraceId>>,
    /// What spans must match.
    pub filter: Option<FieldExpr>,
}

impl ScanBounds {
    /// The bounds that `filters`, all of which must hold, put on a table with `columns`.
    pub fn of(filters: &[Expr], columns: &[SqlColumn]) -> Self {
        let mut bounds = Self::default();
        filters.iter().for_each(|filter| bounds.add(filter, columns));
        bounds
    }

    /// Whether `filter` bounds a scan of `columns` at all.
    pub fn uses(filter: &Expr, columns: &[SqlColumn]) -> bool {
        Self::of(std::slice::from_ref(filter), columns) != Self::default()
    }

    /// Whether a scan of all spans with the bounds of `filter` gives the rows that SQL keeps, and no others. Whether an attribute is there is the
    /// same to both, where any value of it can be told.
    pub fn replace(filter: &Expr, columns: &[SqlColumn]) -> bool {
        let Expr::IsNotNull(expr) = filter else { return false };
        let column = if matches!(**expr, Expr::Column(_)) { column_of(expr, columns) } else { None };
        let tells_all = |column: &SqlColumn| matches!(column.kind, SqlType::Dictionary | SqlType::Text);
        column.is_some_and(tells_all) && term_of(filter, columns).is_some()
    }

    /// The window of row groups in which the spans lie: whole seconds, rounded outwards. None: no bound.
    pub fn window(&self) -> Option<Window> {
        let seconds = |nanos: i64| u32::try_from(nanos.div_euclid(1_000_000_000)).ok();
        if self.times == (None, None) {
            return None;
        }
        let start = self.times.0.map_or(Some(0), |nanos| seconds(nanos.max(0)));
        let end = self.times.1.map_or(Some(u32::MAX), |nanos| Some(seconds(nanos.max(0))?.saturating_add(1)));
        Some(Window { start_seconds: start?, end_seconds: end? })
    }

    fn add(&mut self, filter: &Expr, columns: &[SqlColumn]) {
        if let Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) = filter {
            self.add(left, columns);
            return self.add(right, columns);
        }
        if let Expr::Between(between) = filter
            && !between.negated
        {
            let part = |op, bound: &Expr| Expr::BinaryExpr(BinaryExpr::new(between.expr.clone(), op, Box::new(bound.clone())));
            self.add(&part(Operator::GtEq, &between.low), columns);
            return self.add(&part(Operator::LtEq, &between.high), columns);
        }
        self.add_time(filter, columns);
        self.add_traces(filter, columns);
        if let Some(term) = term_of(filter, columns) {
            self.filter = Some(match self.filter.take() {
                Some(others) => FieldExpr::And(Box::new(others), Box::new(term)),
                None => term,
            });
        }
    }

    fn add_time(&mut self, filter: &Expr, columns: &[SqlColumn]) {
        let Some((column, op, literal)) = comparison(filter, columns) else { return };
        let Some(nanos) = nanos_of(literal) else { return };
        let least = |known: Option<i64>| Some(known.map_or(nanos, |known| known.max(nanos)));
        let most = |known: Option<i64>| Some(known.map_or(nanos, |known| known.min(nanos)));
        // The start of a trace lies in the trace as any other does, so the same row groups are left.
        if !matches!(column.content, Content::StartTime | Content::TraceStartTime) {
            return;
        }
        match op {
            CompareOp::Gt | CompareOp::Ge => self.times.0 = least(self.times.0),
            CompareOp::Lt | CompareOp::Le => self.times.1 = most(self.times.1),
            CompareOp::Eq => self.times = (least(self.times.0), most(self.times.1)),
            CompareOp::Ne => {}
        }
    }

    fn add_traces(&mut self, filter: &Expr, columns: &[SqlColumn]) {
        let ids = match filter {
            Expr::InList(InList { expr, list, negated: false }) if is_trace_id(expr, columns) => list.iter().map(trace_id_of).collect(),
            _ => match comparison(filter, columns) {
                Some((SqlColumn { content: Content::TraceId, .. }, CompareOp::Eq, literal)) => Some(vec![literal_trace_id(literal)]),
                _ => None,
            },
        };
        if let Some(ids) = ids {
            let ids: Vec<TraceId> = ids.into_iter().flatten().collect();
            self.traces = Some(match self.traces.take() {
                Some(known) => known.into_iter().filter(|id| ids.contains(id)).collect(),
                None => ids,
            });
        }
    }
}

fn is_trace_id(expr: &Expr, columns: &[SqlColumn]) -> bool {
    column_of(expr, columns).is_some_and(|column| column.content == Content::TraceId)
}

/// The id in a literal, `Some(None)` for one that no trace has; None where it is no literal.
fn trace_id_of(expr: &Expr) -> Option<Option<TraceId>> {
    match without_casts(expr) {
        Expr::Literal(literal, _) => Some(literal_trace_id(literal)),
        _ => None,
    }
}

fn literal_trace_id(literal: &ScalarValue) -> Option<TraceId> {
    let text = text_of(literal)?;
    (text.len() == 32).then(|| TraceId::parse_hex(&text).ok()).flatten()
}

/// A term that holds at least where `filter` does; None where there is none.
fn term_of(filter: &Expr, columns: &[SqlColumn]) -> Option<FieldExpr> {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            Some(FieldExpr::Or(Box::new(term_of(left, columns)?), Box::new(term_of(right, columns)?)))
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => match (term_of(left, columns), term_of(right, columns)) {
            (Some(left), Some(right)) => Some(FieldExpr::And(Box::new(left), Box::new(right))),
            (one, other) => one.or(other),
        },
        Expr::IsNotNull(expr) => match column_of(expr, columns)? {
            SqlColumn { content: Content::Field(field @ FieldRef::Attribute { .. }), .. } => {
                Some(FieldExpr::Exists(Box::new(FieldExpr::Field(field.clone()))))
            }
            _ => None,
        },
        Expr::InList(InList { expr, list, negated: false }) => {
            let column = column_of(expr, columns)?;
            let terms: Option<Vec<FieldExpr>> = list.iter().map(|value| compare_term(column, CompareOp::Eq, literal_of(value)?)).collect();
            terms?.into_iter().reduce(|a, b| FieldExpr::Or(Box::new(a), Box::new(b)))
        }
        _ => {
            let (column, op, literal) = comparison(filter, columns)?;
            compare_term(column, op, literal)
        }
    }
}

fn compare_term(column: &SqlColumn, op: CompareOp, literal: &ScalarValue) -> Option<FieldExpr> {
    let Content::Field(field) = &column.content else { return None };
    let value = match (field, column.kind) {
        (FieldRef::Intrinsic(Intrinsic::Status), _) => Static::Status(status_named(&text_of(literal)?, op)?),
        (FieldRef::Intrinsic(Intrinsic::Kind), _) => Static::Kind(kind_named(&text_of(literal)?, op)?),
        (FieldRef::Intrinsic(Intrinsic::Duration | Intrinsic::TraceDuration), SqlType::Int) => Static::Duration(int_of(literal)?),
        (FieldRef::Intrinsic(Intrinsic::Name), _) => Static::String(text_of(literal)?),
        (FieldRef::Attribute { scope, .. }, SqlType::Dictionary) => Static::String(text_of(literal).filter(|text| {
            let is_text_everywhere = matches!(scope, AttributeScope::Resource | AttributeScope::Instrumentation);
            is_text_everywhere || op == CompareOp::Eq && !may_be_no_text(text)
        })?),
        (FieldRef::Attribute { .. }, SqlType::Int) => Static::Int(int_of(literal)?),
        // Views may hold values of several types as text; doubles order NaN and zeros in another way.
        _ => return None,
    };
    Some(FieldExpr::Compare { op, lhs: Box::new(FieldExpr::Field(field.clone())), rhs: Box::new(FieldExpr::Literal(value)) })
}

/// Whether a value that is no text may be told as `text`. An attribute of spans that is text in all columns may be of another type where it has
/// none; it is told as text then, and TraceQL knows it as what it is.
fn may_be_no_text(text: &str) -> bool {
    text.parse::<f64>().is_ok() || matches!(text, "true" | "false") || text.starts_with('[')
}

/// Names order otherwise than what they mean: only equality carries over.
fn status_named(name: &str, op: CompareOp) -> Option<Status> {
    let known = [Status::Ok, Status::Error, Status::Unset];
    known.into_iter().find(|status| op == CompareOp::Eq && Static::Status(*status).to_string() == name)
}

fn kind_named(name: &str, op: CompareOp) -> Option<Kind> {
    let known = [Kind::Unspecified, Kind::Internal, Kind::Server, Kind::Client, Kind::Producer, Kind::Consumer];
    known.into_iter().find(|kind| op == CompareOp::Eq && Static::Kind(*kind).to_string() == name)
}

/// A comparison of a column with a literal, the column on the left.
fn comparison<'a>(filter: &'a Expr, columns: &'a [SqlColumn]) -> Option<(&'a SqlColumn, CompareOp, &'a ScalarValue)> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = filter else { return None };
    let op = match op {
        Operator::Eq => CompareOp::Eq,
        Operator::NotEq => CompareOp::Ne,
        Operator::Lt => CompareOp::Lt,
        Operator::LtEq => CompareOp::Le,
        Operator::Gt => CompareOp::Gt,
        Operator::GtEq => CompareOp::Ge,
        _ => return None,
    };
    if let (Some(column), Some(literal)) = (column_of(left, columns), literal_of(right)) {
        return Some((column, op, literal));
    }
    let turned = match op {
        CompareOp::Lt => CompareOp::Gt,
        CompareOp::Le => CompareOp::Ge,
        CompareOp::Gt => CompareOp::Lt,
        CompareOp::Ge => CompareOp::Le,
        same => same,
    };
    Some((column_of(right, columns)?, turned, literal_of(left)?))
}

/// The column that `expr` is, casts of strings from one form to another aside.
fn column_of<'a>(expr: &Expr, columns: &'a [SqlColumn]) -> Option<&'a SqlColumn> {
    let (inner, cast) = match expr {
        Expr::Cast(cast) => (&*cast.expr, true),
        other => (other, false),
    };
    let Expr::Column(column) = inner else { return None };
    let found = columns.iter().find(|known| known.name == column.name)?;
    (!cast || matches!(found.kind, SqlType::Dictionary | SqlType::Text)).then_some(found)
}

fn without_casts(expr: &Expr) -> &Expr {
    match expr {
        Expr::Cast(cast) => without_casts(&cast.expr),
        other => other,
    }
}

fn literal_of(expr: &Expr) -> Option<&ScalarValue> {
    match expr {
        Expr::Literal(literal, _) => Some(literal),
        _ => None,
    }
}

fn text_of(literal: &ScalarValue) -> Option<Arc<str>> {
    match literal {
        ScalarValue::Utf8(Some(text)) | ScalarValue::LargeUtf8(Some(text)) | ScalarValue::Utf8View(Some(text)) => Some(text.as_str().into()),
        ScalarValue::Dictionary(_, value) => text_of(value),
        _ => None,
    }
}

fn int_of(literal: &ScalarValue) -> Option<i64> {
    match literal {
        ScalarValue::Int64(value) => *value,
        ScalarValue::Int32(value) => value.map(i64::from),
        _ => None,
    }
}

/// Nanoseconds since 1970 of a literal time.
fn nanos_of(literal: &ScalarValue) -> Option<i64> {
    match literal {
        ScalarValue::TimestampNanosecond(value, _) => *value,
        ScalarValue::TimestampMicrosecond(value, _) => value.and_then(|value| value.checked_mul(1_000)),
        ScalarValue::TimestampMillisecond(value, _) => value.and_then(|value| value.checked_mul(1_000_000)),
        ScalarValue::TimestampSecond(value, _) => value.and_then(|value| value.checked_mul(1_000_000_000)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use datafusion::{common::Column, logical_expr::lit};

    use super::*;

    #[test]
    fn texts_bound_a_scan_where_nothing_else_is_told_as_they_are() {
        let columns = |scope| [SqlColumn::attribute(scope, "key", SqlType::Dictionary)];
        let (span, resource) = (columns(AttributeScope::Span), columns(AttributeScope::Resource));
        let bounds = |columns: &[SqlColumn], compare: fn(Expr, Expr) -> Expr, text: &str| {
            let column = Expr::Column(Column::from_name(columns[0].name.as_str()));
            ScanBounds::of(&[compare(column, lit(text))], columns).filter.map(|filter| filter.to_string())
        };
        assert_eq!(bounds(&span, Expr::eq, "x").as_deref(), Some("span.key = `x`"));
        for text in ["5", "-0.5", "1e9", "NaN", "true", "false", "[a, b]"] {
            assert_eq!(bounds(&span, Expr::eq, text), None, "{text}");
            assert!(bounds(&resource, Expr::eq, text).is_some(), "{text}");
        }
        for compare in [Expr::not_eq, Expr::lt, Expr::gt_eq] {
            assert_eq!(bounds(&span, compare, "x"), None);
            assert!(bounds(&resource, compare, "x").is_some());
        }
    }
}
