//! Comparison and arithmetic of single values. TraceQL, "Evaluation of a filter on one span".

use std::cmp::Ordering;

use regex::Regex;

use crate::{
    error::Result,
    spans::value::Value,
    traceql::{CompareOp, compile_pattern},
};

/// Whether `lhs op rhs` holds. Values of types that do not go together, and missing ones, never compare. An array matches with any
/// element, under `!=` with all.
pub fn compare(op: CompareOp, lhs: &Value, rhs: &Value) -> bool {
    match (lhs, rhs) {
        (Value::Nil, _) | (_, Value::Nil) | (Value::Array(_), Value::Array(_)) => false,
        (Value::Array(values), scalar) => any_or_all(op, values, |value| compare(op, value, scalar)),
        (scalar, Value::Array(values)) => any_or_all(op, values, |value| compare(op, scalar, value)),
        (Value::String(a), Value::String(b)) => holds(op, a.as_bytes().cmp(b.as_bytes())),
        (Value::Int(a) | Value::Duration(a), Value::Int(b) | Value::Duration(b)) => holds(op, a.cmp(b)),
        (Value::Bool(a), Value::Bool(b)) => equal_only(op, a == b),
        (Value::Status(a), Value::Status(b)) => equal_only(op, a == b),
        (Value::Kind(a), Value::Kind(b)) => equal_only(op, a == b),
        (a, b) => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => compare_floats(op, a, b),
            _ => false,
        },
    }
}

fn any_or_all(op: CompareOp, values: &[Value], test: impl Fn(&Value) -> bool) -> bool {
    if op == CompareOp::Ne { values.iter().all(test) } else { values.iter().any(test) }
}

fn equal_only(op: CompareOp, equal: bool) -> bool {
    match op {
        CompareOp::Eq => equal,
        CompareOp::Ne => !equal,
        _ => false,
    }
}

/// Whether an ordering satisfies an operator.
#[inline]
pub fn holds(op: CompareOp, ordering: Ordering) -> bool {
    match op {
        CompareOp::Eq => ordering.is_eq(),
        CompareOp::Ne => ordering.is_ne(),
        CompareOp::Lt => ordering.is_lt(),
        CompareOp::Le => ordering.is_le(),
        CompareOp::Gt => ordering.is_gt(),
        CompareOp::Ge => ordering.is_ge(),
    }
}

/// Whether `a op b` holds; with NaN only `!=` does.
#[inline]
pub fn compare_floats(op: CompareOp, a: f64, b: f64) -> bool {
    match op {
        CompareOp::Eq => a == b,
        CompareOp::Ne => a != b,
        CompareOp::Lt => a < b,
        CompareOp::Le => a <= b,
        CompareOp::Gt => a > b,
        CompareOp::Ge => a >= b,
    }
}

/// A pattern of `=~`, with the plain shapes taken out of the regular expression: they need no automaton.
#[derive(Debug, Clone)]
pub enum Matcher {
    /// No special characters: equality.
    Exact(String),
    /// `text.*`
    Prefix(String),
    /// `.*text`
    Suffix(String),
    /// `.*text.*`
    Contains(Box<memchr::memmem::Finder<'static>>),
    /// `.*`
    Anything,
    /// Anything else.
    Regex(Regex),
}

impl Matcher {
    /// Compiles `pattern`, which matches whole values and whose `.` matches line ends too. Errors: `Invalid`.
    pub fn new(pattern: &str) -> Result<Self> {
        let regex = compile_pattern(pattern)?;
        let (head, core) = pattern.strip_prefix(".*").map_or((false, pattern), |core| (true, core));
        let (tail, core) = core.strip_suffix(".*").map_or((false, core), |core| (true, core));
        if regex::escape(core) != core {
            return Ok(Self::Regex(regex));
        }
        let core = core.to_owned();
        Ok(match (head, tail) {
            (false, false) => Self::Exact(core),
            (false, true) => Self::Prefix(core),
            (true, false) if core.is_empty() => Self::Anything,
            (true, false) => Self::Suffix(core),
            (true, true) if core.is_empty() => Self::Anything,
            (true, true) => Self::Contains(Box::new(memchr::memmem::Finder::new(core.as_bytes()).into_owned())),
        })
    }

    /// Whether `text` matches.
    #[inline]
    pub fn is_match(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == exact,
            Self::Prefix(prefix) => text.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => text.ends_with(suffix.as_str()),
            Self::Contains(finder) => finder.find(text.as_bytes()).is_some(),
            Self::Anything => true,
            Self::Regex(regex) => regex.is_match(text),
        }
    }

    /// Whether `value` satisfies `=~`, or `!~` when `negated`. Only strings and arrays of strings can; an array with any element,
    /// negated with all.
    pub fn matches(&self, value: &Value, negated: bool) -> bool {
        match value {
            Value::String(text) => self.is_match(text) != negated,
            Value::Array(values) if negated => values.iter().all(|value| self.matches(value, true)),
            Value::Array(values) => values.iter().any(|value| self.matches(value, false)),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn plain_patterns_equal_their_regular_expressions() {
        let texts = ["", "a", "ab", "xab", "abx", "xabx", "a\nb", "\n"];
        for pattern in ["ab", "ab.*", ".*ab", ".*ab.*", ".*", ".*.*", "", "a.b", "(?i)AB", "a|b"] {
            let matcher = Matcher::new(pattern).unwrap();
            let regex = compile_pattern(pattern).unwrap();
            for text in texts {
                assert_eq!(matcher.is_match(text), regex.is_match(text), "{pattern:?} on {text:?}");
            }
        }
    }

    #[test]
    fn numbers_compare_across_types_and_nothing_else_does() {
        let check = |a: Value, op, b: Value, expected| assert_eq!(compare(op, &a, &b), expected, "{a:?} {op:?} {b:?}");
        use CompareOp::*;
        check(Value::Int(2), Eq, Value::Float(2.0), true);
        check(Value::Duration(1500), Gt, Value::Float(1.5), true);
        check(Value::Int(80), Eq, Value::from("80"), false);
        check(Value::Int(80), Ne, Value::from("80"), false);
        check(Value::Nil, Ne, Value::Int(1), false);
        check(Value::Float(f64::NAN), Ne, Value::Float(f64::NAN), true);
        check(Value::Array([Value::from("a"), Value::from("b")].into()), Ne, Value::from("a"), false);
        check(Value::Array([Value::from("a"), Value::from("b")].into()), Eq, Value::from("a"), true);
        check(Value::Array([].into()), Ne, Value::from("a"), true);
    }
}
