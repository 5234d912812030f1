//! Time series of the evaluator: labels with typed values, and for each interval a point or none.

use skein_engine::traceql::GoDuration;

use crate::naive::fields::Value;

/// The label of a series that has no other.
pub const NAME: &str = "__name__";

/// A number, and by how much that of an engine may differ from it. Counts, smallest and largest values are exact; sums of floats depend on
/// the order of their terms, and powers on the library that computes them.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    pub value: f64,
    pub slack: f64,
}

/// Names and values, sorted by name. A missing value is kept only where no other label is left.
pub type Labels = Vec<(String, Value)>;

#[derive(Clone, Debug)]
pub struct Series {
    pub labels: Labels,
    pub points: Vec<Option<Point>>,
}

impl Point {
    pub fn exact(value: f64) -> Self {
        Self { value, slack: 0.0 }
    }

    /// A value that came of `terms`, or of one number.
    pub fn summed(value: f64, terms: &[f64]) -> Self {
        Self::with_slack(value, 1e-12 * terms.iter().map(|term| term.abs()).sum::<f64>())
    }

    /// Infinite values are exact.
    pub fn with_slack(value: f64, slack: f64) -> Self {
        Self { value, slack: if value.is_finite() && slack.is_finite() { slack } else { 0.0 } }
    }

    /// The point, unless it is no number: that is a missing point.
    pub fn if_number(self) -> Option<Self> {
        (!self.value.is_nan()).then_some(self)
    }

    pub fn is_about(&self, other: f64) -> bool {
        self.value == other || (self.value - other).abs() <= self.slack
    }
}

impl Series {
    /// The labels but the name of the function.
    pub fn joining_identity(&self) -> String {
        identity(&self.labels.iter().filter(|(name, _)| name != NAME).cloned().collect())
    }

    /// The name of the function, where it is the only label.
    pub fn bare_name(&self) -> Option<&str> {
        match self.labels.as_slice() {
            [(name, Value::Text(function))] if name == NAME => Some(function),
            _ => None,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.points.iter().all(Option::is_none)
    }
}

/// Labels with their types: what series are told apart by.
pub fn identity(labels: &Labels) -> String {
    format!("{labels:?}")
}

/// The labels of a group: those with a value, or the first if none has one.
pub fn labels_of(values: Vec<(String, Value)>) -> Labels {
    let first = values.first().cloned();
    let mut labels: Labels = values.into_iter().filter(|(_, value)| !matches!(value, Value::Nil)).collect();
    if labels.is_empty() {
        labels.extend(first);
    }
    labels.sort_by(|(a, _), (b, _)| a.cmp(b));
    labels
}

/// A value as a label has it: durations, statuses and kinds are text.
pub fn label_value(value: Value) -> Value {
    match value {
        Value::Duration(nanos) => Value::Text(GoDuration(nanos).to_string()),
        Value::Status(status) => Value::Text(status.to_string()),
        Value::Kind(kind) => Value::Text(kind.to_string()),
        other => other,
    }
}
