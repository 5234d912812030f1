//! The value of an expression on one span, and whether a filter takes the span.

use std::cmp::Ordering;

use skein_engine::traceql::{
    ArithOp, AttributeScope as Scope, CompareOp, FieldExpr, FieldRef, GoDuration, Intrinsic, Kind, Static, Status, compile_pattern,
};

use super::model::{Attributes, Event, Link, Value as Sent};
use super::structure::{Trace, service};

/// A value during evaluation.
#[derive(Clone, Debug)]
pub enum Value {
    Nil,
    Int(i64),
    Float(f64),
    Text(String),
    Bool(bool),
    Duration(i64),
    Status(Status),
    Kind(Kind),
    Array(Vec<Value>),
}

/// Why a query fails on data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure;

/// One span of a trace, with one of its events and one of its links, or none.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub trace: &'a Trace<'a>,
    pub at: usize,
    pub event: Option<&'a Event>,
    pub link: Option<&'a Link>,
}

/// Whether `filter` takes the span: it does if it is true with some event or none, and some link or none.
pub fn takes(filter: &FieldExpr, trace: &Trace<'_>, at: usize) -> Result<bool, Failure> {
    let mut failed = false;
    for place in places(trace, at, filter) {
        match evaluate(filter, &place) {
            Ok(value) if is_true(&value) => return Ok(true),
            Ok(_) => {}
            Err(Failure) => failed = true,
        }
    }
    if failed { Err(Failure) } else { Ok(false) }
}

/// The value of `expr` on the span, outside of filters. With several events or links, the last that gives a value counts; of an expression
/// that is no plain field, false only where none gives anything else.
pub fn value(expr: &FieldExpr, trace: &Trace<'_>, at: usize) -> Result<Value, Failure> {
    let mut found = Value::Nil;
    for place in places(trace, at, expr) {
        let value = evaluate(expr, &place)?;
        let is_better = match value {
            Value::Nil => false,
            Value::Bool(false) => matches!(expr, FieldExpr::Field(_)) || matches!(found, Value::Nil),
            _ => true,
        };
        if is_better {
            found = value;
        }
    }
    Ok(found)
}

/// Every choice of an event or none with a link or none, as far as `expr` looks at them.
pub fn places<'a>(trace: &'a Trace<'a>, at: usize, expr: &FieldExpr) -> Vec<Place<'a>> {
    let span = trace.nodes[at].span;
    let (mut events, mut links) = (vec![None], vec![None]);
    if reads(expr, reads_event) {
        events.extend(span.events.iter().map(Some));
    }
    if reads(expr, reads_link) {
        links.extend(span.links.iter().map(Some));
    }
    events.iter().flat_map(|event| links.iter().map(|link| Place { trace, at, event: *event, link: *link })).collect()
}

fn reads(expr: &FieldExpr, what: fn(&FieldRef) -> bool) -> bool {
    let mut found = false;
    expr.visit_fields(&mut |field| found |= what(field));
    found
}

pub fn reads_event(field: &FieldRef) -> bool {
    matches!(field, FieldRef::Attribute { scope: Scope::Event, .. } | FieldRef::Intrinsic(Intrinsic::EventName | Intrinsic::EventTimeSinceStart))
}

pub fn reads_link(field: &FieldRef) -> bool {
    matches!(field, FieldRef::Attribute { scope: Scope::Link, .. } | FieldRef::Intrinsic(Intrinsic::LinkTraceId | Intrinsic::LinkSpanId))
}

/// Whether a value counts as true: only the boolean does.
pub fn is_true(value: &Value) -> bool {
    matches!(value, Value::Bool(true))
}

pub fn evaluate(expr: &FieldExpr, place: &Place<'_>) -> Result<Value, Failure> {
    Ok(match expr {
        FieldExpr::Literal(literal) => of_literal(literal),
        FieldExpr::Field(field) => read(field, place),
        FieldExpr::Not(inner) => match evaluate(inner, place)? {
            Value::Nil => Value::Nil,
            Value::Bool(value) => Value::Bool(!value),
            _ => return Err(Failure),
        },
        FieldExpr::Negate(inner) => match evaluate(inner, place)? {
            Value::Nil => Value::Nil,
            Value::Int(value) => Value::Int(value.wrapping_neg()),
            Value::Float(value) => Value::Float(-value),
            Value::Duration(value) => Value::Duration(value.wrapping_neg()),
            _ => return Err(Failure),
        },
        FieldExpr::Exists(inner) => Value::Bool(!matches!(evaluate(inner, place)?, Value::Nil)),
        FieldExpr::Missing(inner) => {
            let nowhere_to_miss = (reads(inner, reads_event) && place.event.is_none()) || (reads(inner, reads_link) && place.link.is_none());
            Value::Bool(!nowhere_to_miss && matches!(evaluate(inner, place)?, Value::Nil))
        }
        FieldExpr::Compare { op, lhs, rhs } => {
            let (left, right) = (evaluate(lhs, place)?, evaluate(rhs, place)?);
            Value::Bool(compare(*op, &without_zeros(lhs, rhs, left), &without_zeros(rhs, lhs, right)))
        }
        FieldExpr::Match { negated, lhs, pattern } => Value::Bool(matches_pattern(*negated, &evaluate(lhs, place)?, pattern)),
        FieldExpr::Arith { op, lhs, rhs } => arithmetic(*op, &evaluate(lhs, place)?, &evaluate(rhs, place)?)?,
        FieldExpr::And(lhs, rhs) => match (evaluate(lhs, place), evaluate(rhs, place)) {
            (Ok(lhs), Ok(rhs)) => Value::Bool(is_true(&lhs) && is_true(&rhs)),
            // One side alone may decide, whichever is looked at first.
            (Ok(one), Err(Failure)) | (Err(Failure), Ok(one)) if !is_true(&one) => Value::Bool(false),
            _ => return Err(Failure),
        },
        FieldExpr::Or(lhs, rhs) => match (evaluate(lhs, place), evaluate(rhs, place)) {
            (Ok(lhs), Ok(rhs)) => Value::Bool(is_true(&lhs) || is_true(&rhs)),
            (Ok(one), Err(Failure)) | (Err(Failure), Ok(one)) if is_true(&one) => Value::Bool(true),
            _ => return Err(Failure),
        },
    })
}

/// Whether some part of `expr` fails on the span, even where the whole does not need that part.
pub fn some_part_fails(expr: &FieldExpr, trace: &Trace<'_>, at: usize) -> bool {
    let fails = |part: &FieldExpr| some_part_fails(part, trace, at);
    let parts_fail = match expr {
        FieldExpr::Literal(_) | FieldExpr::Field(_) => false,
        FieldExpr::Not(inner) | FieldExpr::Negate(inner) | FieldExpr::Exists(inner) | FieldExpr::Missing(inner) => fails(inner),
        FieldExpr::Match { lhs, .. } => fails(lhs),
        FieldExpr::Compare { lhs, rhs, .. } | FieldExpr::Arith { lhs, rhs, .. } | FieldExpr::And(lhs, rhs) | FieldExpr::Or(lhs, rhs) => {
            fails(lhs) || fails(rhs)
        }
    };
    parts_fail || places(trace, at, expr).iter().any(|place| evaluate(expr, place).is_err())
}

/// Text that is compared with the trace id has lost its leading zeros, as the id has.
fn without_zeros(expr: &FieldExpr, other: &FieldExpr, value: Value) -> Value {
    match (expr, other, value) {
        (FieldExpr::Literal(_), FieldExpr::Field(FieldRef::Intrinsic(Intrinsic::TraceId)), Value::Text(text)) => {
            Value::Text(text.trim_start_matches('0').to_owned())
        }
        (_, _, value) => value,
    }
}

fn of_literal(literal: &Static) -> Value {
    match literal {
        Static::Nil => Value::Nil,
        Static::Int(value) => Value::Int(*value),
        Static::Float(value) => Value::Float(*value),
        Static::String(text) => Value::Text(text.to_string()),
        Static::Bool(value) => Value::Bool(*value),
        Static::Duration(nanos) => Value::Duration(*nanos),
        Static::Status(status) => Value::Status(*status),
        Static::Kind(kind) => Value::Kind(*kind),
    }
}

// ---- what a span holds

/// The value of a field at a place.
pub fn read(field: &FieldRef, place: &Place<'_>) -> Value {
    match field {
        FieldRef::Attribute { scope, name } => attribute(*scope, name, place),
        FieldRef::Intrinsic(intrinsic) => of_intrinsic(*intrinsic, place),
    }
}

fn attribute(scope: Scope, name: &str, place: &Place<'_>) -> Value {
    let span = place.trace.nodes[place.at].span;
    match scope {
        Scope::Span => of_key(Some(&span.attributes), name),
        Scope::Resource => of_key(span.resource.as_ref(), name),
        Scope::Any => match of_key(Some(&span.attributes), name) {
            Value::Nil => of_key(span.resource.as_ref(), name),
            value => value,
        },
        Scope::Event => of_key(place.event.map(|event| &event.attributes), name),
        Scope::Link => of_key(place.link.map(|link| &link.attributes), name),
        Scope::Instrumentation => of_key(span.scope.as_ref().map(|scope| &scope.attributes), name),
        Scope::Parent | Scope::ParentSpan | Scope::ParentResource => unreachable!("refused in filters"),
    }
}

/// The first value under a key that is visible.
pub fn of_key(attributes: Option<&Attributes>, name: &str) -> Value {
    let of_name = attributes.into_iter().flatten().filter(|(key, _)| key == name);
    of_name.map(|(_, value)| of_sent(value)).find(|value| !matches!(value, Value::Nil)).unwrap_or(Value::Nil)
}

/// Lists of one type are values, those of one element that element; maps, bytes, nested and mixed lists are not visible.
fn of_sent(value: &Sent) -> Value {
    match value {
        Sent::Text(text) => Value::Text(text.clone()),
        Sent::Int(value) => Value::Int(*value),
        Sent::Double(value) => Value::Float(*value),
        Sent::Bool(value) => Value::Bool(*value),
        Sent::Map(_) | Sent::Bytes(_) | Sent::Empty => Value::Nil,
        Sent::Array(sent) => {
            let one_type = sent.windows(2).all(|pair| std::mem::discriminant(&pair[0]) == std::mem::discriminant(&pair[1]));
            let plain = sent.iter().all(|value| matches!(value, Sent::Text(_) | Sent::Int(_) | Sent::Double(_) | Sent::Bool(_)));
            match sent.as_slice() {
                _ if !one_type || !plain => Value::Nil,
                [one] => of_sent(one),
                several => Value::Array(several.iter().map(of_sent).collect()),
            }
        }
    }
}

fn of_intrinsic(intrinsic: Intrinsic, place: &Place<'_>) -> Value {
    let node = &place.trace.nodes[place.at];
    let span = node.span;
    let text = |text: &str| Value::Text(text.to_owned());
    match intrinsic {
        Intrinsic::Name => text(&span.name),
        Intrinsic::Duration => Value::Duration(span.end.wrapping_sub(span.start) as i64),
        Intrinsic::Status => Value::Status(match span.status {
            Some((1, _)) => Status::Ok,
            Some((2, _)) => Status::Error,
            _ => Status::Unset,
        }),
        Intrinsic::StatusMessage => text(span.status.as_ref().map_or("", |(_, message)| message)),
        Intrinsic::Kind => Value::Kind(match span.kind {
            1 => Kind::Internal,
            2 => Kind::Server,
            3 => Kind::Client,
            4 => Kind::Producer,
            5 => Kind::Consumer,
            _ => Kind::Unspecified,
        }),
        Intrinsic::SpanId => Value::Text(format!("{:016x}", span.id)),
        Intrinsic::ParentId => Value::Text(format!("{:016x}", span.parent.unwrap_or(0))),
        Intrinsic::ChildCount => Value::Int(node.children.len() as i64),
        Intrinsic::TraceId => Value::Text(short_hex(span.trace)),
        Intrinsic::TraceDuration => Value::Duration(place.trace.duration()),
        Intrinsic::RootName => text(place.trace.root().map_or("", |root| &root.name)),
        Intrinsic::RootService => Value::Text(place.trace.root().map(service).unwrap_or_default()),
        Intrinsic::EventName => place.event.map_or(Value::Nil, |event| text(&event.name)),
        Intrinsic::EventTimeSinceStart => place.event.map_or(Value::Nil, |event| Value::Duration(event.time.wrapping_sub(span.start) as i64)),
        Intrinsic::LinkTraceId => place.link.map_or(Value::Nil, |link| Value::Text(short_hex(link.trace))),
        Intrinsic::LinkSpanId => place.link.map_or(Value::Nil, |link| Value::Text(format!("{:016x}", link.span))),
        Intrinsic::InstrumentationName => text(span.scope.as_ref().map_or("", |scope| &scope.name)),
        Intrinsic::InstrumentationVersion => text(span.scope.as_ref().map_or("", |scope| &scope.version)),
        Intrinsic::NestedSetLeft => Value::Int(node.nested_left),
        Intrinsic::NestedSetRight => Value::Int(node.nested_right),
        Intrinsic::NestedSetParent => Value::Int(place.trace.nested_parent(place.at)),
        Intrinsic::Parent => unreachable!("refused in filters"),
    }
}

/// A trace id in hex without leading zeros; nothing for zero.
pub fn short_hex(id: u128) -> String {
    if id == 0 { String::new() } else { format!("{id:x}") }
}

// ---- operators

/// Whether `lhs op rhs` holds; values that do not go together are never in any relation. Of an array, any element has to be in it, for `!=`
/// every element.
pub fn compare(op: CompareOp, lhs: &Value, rhs: &Value) -> bool {
    match (lhs, rhs) {
        (Value::Nil, _) | (_, Value::Nil) | (Value::Array(_), Value::Array(_)) => false,
        (Value::Array(elements), _) if op == CompareOp::Ne => elements.iter().all(|element| compare(op, element, rhs)),
        (Value::Array(elements), _) => elements.iter().any(|element| compare(op, element, rhs)),
        (_, Value::Array(_)) => compare(op.mirrored(), rhs, lhs),
        _ => compare_scalars(op, lhs, rhs),
    }
}

fn compare_scalars(op: CompareOp, lhs: &Value, rhs: &Value) -> bool {
    let equality = |equal: bool| match op {
        CompareOp::Eq => equal,
        CompareOp::Ne => !equal,
        _ => false,
    };
    match (lhs, rhs) {
        (Value::Bool(a), Value::Bool(b)) => equality(a == b),
        (Value::Status(a), Value::Status(b)) => equality(a == b),
        (Value::Kind(a), Value::Kind(b)) => equality(a == b),
        (Value::Text(a), Value::Text(b)) => holds(op, Some(a.as_bytes().cmp(b.as_bytes()))),
        _ => match (number(lhs), number(rhs)) {
            (Some(a), Some(b)) => holds(op, compare_numbers(lhs, rhs).or_else(|| a.partial_cmp(&b))),
            _ => false,
        },
    }
}

/// Integers and durations compare exactly.
fn compare_numbers(lhs: &Value, rhs: &Value) -> Option<Ordering> {
    match (lhs, rhs) {
        (Value::Int(a) | Value::Duration(a), Value::Int(b) | Value::Duration(b)) => Some(a.cmp(b)),
        _ => None,
    }
}

/// `None` is a comparison with NaN.
fn holds(op: CompareOp, ordering: Option<Ordering>) -> bool {
    match op {
        CompareOp::Eq => ordering == Some(Ordering::Equal),
        CompareOp::Ne => ordering != Some(Ordering::Equal),
        CompareOp::Lt => ordering == Some(Ordering::Less),
        CompareOp::Le => matches!(ordering, Some(Ordering::Less | Ordering::Equal)),
        CompareOp::Gt => ordering == Some(Ordering::Greater),
        CompareOp::Ge => matches!(ordering, Some(Ordering::Greater | Ordering::Equal)),
    }
}

/// An integer, a float, or a duration in nanoseconds, as a float.
pub fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Int(value) | Value::Duration(value) => Some(*value as f64),
        Value::Float(value) => Some(*value),
        _ => None,
    }
}

/// Whether text is, or is not, matched as a whole; what is no text neither is nor is not.
pub fn matches_pattern(negated: bool, value: &Value, pattern: &str) -> bool {
    let regex = compile_pattern(pattern).expect("generated patterns are valid");
    let matches = |value: &Value| match value {
        Value::Text(text) => regex.is_match(text) != negated,
        _ => false,
    };
    match value {
        Value::Array(elements) if negated => elements.iter().all(matches),
        Value::Array(elements) => elements.iter().any(matches),
        value => matches(value),
    }
}

/// Integers stay integers, all else becomes a float; what is no number makes it false.
fn arithmetic(op: ArithOp, lhs: &Value, rhs: &Value) -> Result<Value, Failure> {
    if let (Value::Int(a), Value::Int(b)) = (lhs, rhs) {
        return integers(op, *a, *b).map(Value::Int);
    }
    let (Some(a), Some(b)) = (number(lhs), number(rhs)) else { return Ok(Value::Bool(false)) };
    Ok(Value::Float(match op {
        ArithOp::Add => a + b,
        ArithOp::Sub => a - b,
        ArithOp::Mul => a * b,
        ArithOp::Div => a / b,
        ArithOp::Mod => a % b,
        ArithOp::Pow => a.powf(b),
    }))
}

fn integers(op: ArithOp, a: i64, b: i64) -> Result<i64, Failure> {
    Ok(match op {
        ArithOp::Add => a.wrapping_add(b),
        ArithOp::Sub => a.wrapping_sub(b),
        ArithOp::Mul => a.wrapping_mul(b),
        ArithOp::Div | ArithOp::Mod if b == 0 => return Err(Failure),
        ArithOp::Div => a.wrapping_div(b),
        ArithOp::Mod => a.wrapping_rem(b),
        ArithOp::Pow => power(a, b),
    })
}

/// The power modulo 2^64; of a negative exponent what is left of one divided by it.
fn power(base: i64, exponent: i64) -> i64 {
    match (base, exponent) {
        (_, 0) | (1, _) => 1,
        (-1, exponent) => {
            if exponent % 2 == 0 {
                1
            } else {
                -1
            }
        }
        (_, ..0) => 0,
        (base, exponent) => {
            let half = power(base, exponent / 2);
            let square = half.wrapping_mul(half);
            if exponent % 2 == 0 { square } else { square.wrapping_mul(base) }
        }
    }
}

// ---- as shown

impl Value {
    /// The value as it stands in an answer, with its type there.
    pub fn shown(&self) -> String {
        match self {
            Self::Nil => "text nil".to_owned(),
            Self::Int(value) => format!("int {value}"),
            Self::Float(value) => format!("double {value:?}"),
            Self::Text(text) => format!("text {text}"),
            Self::Bool(value) => format!("bool {value}"),
            Self::Duration(nanos) => format!("text {}", GoDuration(*nanos)),
            Self::Status(status) => format!("text {status}"),
            Self::Kind(kind) => format!("text {kind}"),
            Self::Array(values) => format!("[{}]", values.iter().map(Self::shown).collect::<Vec<_>>().join(", ")),
        }
    }

    /// Type and value: what groups are told apart by.
    pub fn identity(&self) -> String {
        format!("{self:?}")
    }
}
