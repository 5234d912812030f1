//! Steps on finished series: `topk` and `bottomk`, comparisons with a number, and arithmetic between series.

use std::{cmp::Ordering, collections::HashMap};

use prost::Message;
use skein_proto::otlp::common::v1::{AnyValue, KeyValue, KeyValueList, any_value::Value as OtlpValue};

use super::series::{Series, in_turn, label_text, label_type};
use crate::{
    exec::eval::value::compare_floats,
    plan::matches::key_value,
    spans::value::Value,
    traceql::{ArithOp, CompareOp, SecondStage, Static},
};

/// Applies one step.
pub fn apply(stage: &SecondStage, series: Vec<Series>) -> Vec<Series> {
    let series = match stage {
        SecondStage::TopK(k) => best(series, *k, true),
        SecondStage::BottomK(k) => best(series, *k, false),
        SecondStage::Filter { op, value } => filter(series, *op, threshold(value)),
    };
    with_points(series)
}

/// The series that have points, with the exemplars whose points are still there.
fn with_points(mut series: Vec<Series>) -> Vec<Series> {
    series.retain(|series| series.values.iter().any(|value| !value.is_nan()));
    for Series { values, exemplars, .. } in &mut series {
        exemplars.retain(|exemplar| !values[exemplar.interval].is_nan());
    }
    series
}

/// A threshold in the unit of values: durations in seconds.
fn threshold(value: &Static) -> f64 {
    match value {
        Static::Int(value) => *value as f64,
        Static::Float(value) => *value,
        Static::Duration(nanos) => *nanos as f64 / 1e9,
        _ => f64::NAN,
    }
}

fn filter(mut series: Vec<Series>, op: CompareOp, threshold: f64) -> Vec<Series> {
    for series in &mut series {
        for value in &mut series.values {
            if !compare_floats(op, *value, threshold) {
                *value = f64::NAN;
            }
        }
        series.exemplars.retain(|exemplar| exemplar.value.is_none_or(|value| compare_floats(op, value, threshold)));
    }
    series
}

/// Keeps at each time the points of the `k` series with the largest values, or the smallest; ties by labels.
fn best(mut series: Vec<Series>, k: i64, largest: bool) -> Vec<Series> {
    let k = usize::try_from(k).unwrap_or(0);
    if series.len() <= k {
        return series;
    }
    let order = |a: Ordering| if largest { a } else { a.reverse() };
    let intervals = series.first().map_or(0, |series| series.values.len());
    for at in 0..intervals {
        let mut present: Vec<usize> = (0..series.len()).filter(|&number| !series[number].values[at].is_nan()).collect();
        present.sort_by(|&a, &b| {
            let (a, b) = (&series[a], &series[b]);
            // Present values are numbers, and both zeros are one.
            let by_value = b.values[at].partial_cmp(&a.values[at]).unwrap_or(Ordering::Equal);
            order(by_value.then_with(|| tie(&a.labels, &b.labels)))
        });
        present.into_iter().skip(k).for_each(|number| series[number].values[at] = f64::NAN);
    }
    series
}

/// Which of two label sets `topk` prefers at equal values: smaller texts, larger whole numbers, and these before texts. Different sets are never
/// equal.
fn tie(a: &[KeyValue], b: &[KeyValue]) -> Ordering {
    let pair = |(a, b): (&KeyValue, &KeyValue)| a.key.cmp(&b.key).then_with(|| tie_values(a.value.as_ref(), b.value.as_ref()));
    a.iter().zip(b).map(pair).find(|order| order.is_ne()).unwrap_or_else(|| a.len().cmp(&b.len()))
}

fn tie_values(a: Option<&AnyValue>, b: Option<&AnyValue>) -> Ordering {
    match (a.and_then(|a| a.value.as_ref()), b.and_then(|b| b.value.as_ref())) {
        (Some(OtlpValue::IntValue(a)), Some(OtlpValue::IntValue(b))) => b.cmp(a),
        // By their texts they would be in a circle with texts: 2, 1, "15", 2.
        (Some(OtlpValue::IntValue(_)), _) => Ordering::Less,
        (_, Some(OtlpValue::IntValue(_))) => Ordering::Greater,
        _ => label_text(a).cmp(&label_text(b)).then_with(|| label_type(a).cmp(&label_type(b))),
    }
}

/// What arithmetic works on.
#[derive(Debug, Clone)]
pub enum Operand {
    /// Series.
    Series(Vec<Series>),
    /// The same number everywhere.
    Scalar(f64),
}

/// Point by point. Series are joined by equal labels but for `__name__`; a single one without other labels goes with every series of the
/// other side. Missing on one side is missing; so is what is divided by zero. Exemplars are those of both sides, or of the one that has labels.
pub fn arithmetic(op: ArithOp, lhs: Operand, rhs: Operand) -> Operand {
    let series = match (lhs, rhs) {
        (Operand::Scalar(a), Operand::Scalar(b)) => return Operand::Scalar(calculate(op, a, b)),
        (Operand::Series(series), Operand::Scalar(b)) => with_scalar(series, |a| calculate(op, a, b)),
        (Operand::Scalar(a), Operand::Series(series)) => with_scalar(series, |b| calculate(op, a, b)),
        (Operand::Series(lhs), Operand::Series(rhs)) => join(op, lhs, rhs),
    };
    Operand::Series(with_points(series))
}

fn with_scalar(mut series: Vec<Series>, calculate: impl Fn(f64) -> f64) -> Vec<Series> {
    for series in &mut series {
        series.values.iter_mut().for_each(|value| *value = calculate(*value));
        series.exemplars.iter_mut().flat_map(|exemplar| &mut exemplar.value).for_each(|value| *value = calculate(*value));
        for (lower, upper) in series.bounds.iter_mut().flat_map(|[lower, upper]| lower.iter_mut().zip(upper)) {
            // What falls with its operand exchanges the ends.
            let ends = (calculate(*lower), calculate(*upper));
            (*lower, *upper) = (ends.0.min(ends.1), ends.0.max(ends.1));
        }
    }
    series
}

fn calculate(op: ArithOp, a: f64, b: f64) -> f64 {
    match op {
        ArithOp::Add => a + b,
        ArithOp::Sub => a - b,
        ArithOp::Mul => a * b,
        ArithOp::Div if b == 0.0 => f64::NAN,
        ArithOp::Div => a / b,
        ArithOp::Mod => a % b,
        ArithOp::Pow => a.powf(b),
    }
}

fn join(op: ArithOp, lhs: Vec<Series>, rhs: Vec<Series>) -> Vec<Series> {
    match (broadcast(&lhs), broadcast(&rhs)) {
        (false, true) => lhs.into_iter().map(|a| Series { values: points(op, &a.values, &rhs[0].values), ..a }).collect(),
        (true, false) => rhs.into_iter().map(|b| Series { values: points(op, &lhs[0].values, &b.values), ..b }).collect(),
        _ => {
            let by_labels: HashMap<Vec<u8>, &Series> = rhs.iter().map(|series| (join_key(&series.labels), series)).collect();
            lhs.into_iter()
                .filter_map(|a| {
                    let b = by_labels.get(&join_key(&a.labels))?;
                    let (values, labels) = (points(op, &a.values, &b.values), joined_labels(op, &a.labels, &b.labels));
                    let exemplars = in_turn(vec![a.exemplars, b.exemplars.clone()], usize::MAX);
                    Some(Series { labels, values, bounds: None, exemplars: exemplars.into_iter().map(|(_, exemplar)| exemplar).collect() })
                })
                .collect()
        }
    }
}

/// Whether this is one series without labels of its own.
fn broadcast(series: &[Series]) -> bool {
    matches!(series, [only] if only.labels.iter().all(|label| label.key == "__name__"))
}

fn points(op: ArithOp, a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(&a, &b)| calculate(op, a, b)).collect()
}

fn join_key(labels: &[KeyValue]) -> Vec<u8> {
    let mut values: Vec<KeyValue> = labels.iter().filter(|label| label.key != "__name__").cloned().collect();
    values.sort_by(|a, b| a.key.cmp(&b.key));
    KeyValueList { values }.encode_to_vec()
}

fn joined_labels(op: ArithOp, a: &[KeyValue], b: &[KeyValue]) -> Vec<KeyValue> {
    let name = |labels: &[KeyValue]| labels.iter().find(|label| label.key == "__name__").map(|label| label_text(label.value.as_ref()));
    let others = a.iter().filter(|label| label.key != "__name__").cloned();
    match (name(a), name(b)) {
        (Some(a), Some(b)) => std::iter::once(key_value("__name__", &Value::from(&*format!("({a} {} {b})", op.as_str())))).chain(others).collect(),
        _ => a.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(label: &str, values: &[f64]) -> Series {
        Series { labels: vec![key_value("name", &Value::from(label))], values: values.to_vec(), ..Series::default() }
    }

    fn named(name: &str, values: &[f64]) -> Series {
        Series { labels: vec![key_value("__name__", &Value::from(name))], values: values.to_vec(), ..Series::default() }
    }

    fn shown(series: &[Series]) -> Vec<String> {
        series.iter().map(|series| format!("{}={:?}", label_text(series.labels[0].value.as_ref()), series.values)).collect()
    }

    #[test]
    fn the_best_are_chosen_at_each_time() {
        let all = || vec![series("a", &[1.0, 5.0]), series("b", &[2.0, 5.0]), series("c", &[3.0, f64::NAN])];
        assert_eq!(shown(&apply(&SecondStage::TopK(1), all())), ["a=[NaN, 5.0]", "c=[3.0, NaN]"]);
        assert_eq!(shown(&apply(&SecondStage::BottomK(1), all())), ["a=[1.0, NaN]", "b=[NaN, 5.0]"]);
        assert_eq!(apply(&SecondStage::TopK(3), all()).len(), 3);
    }

    #[test]
    fn labels_of_several_types_are_in_one_order() {
        let values = (0..12).flat_map(|number: i64| [Value::Int(number), Value::from(&*number.to_string()), Value::Float(number as f64), Value::Nil]);
        let all: Vec<Series> =
            values.map(|value| Series { labels: vec![key_value("name", &value)], values: vec![1.0], ..Series::default() }).collect();
        let before = |a: &Series, b: &Series| tie(&a.labels, &b.labels).is_lt();
        for (a, b) in all.iter().flat_map(|a| all.iter().map(move |b| (a, b))).filter(|(a, b)| before(a, b)) {
            assert!(!before(b, a) && all.iter().all(|c| !before(b, c) || before(a, c)), "{:?} and {:?}", a.labels, b.labels);
        }
        assert_eq!(shown(&apply(&SecondStage::TopK(2), all)), ["10=[1.0]", "11=[1.0]"], "the largest whole numbers");
    }

    #[test]
    fn points_that_fail_go() {
        let filter = SecondStage::Filter { op: CompareOp::Gt, value: Static::Duration(1_500_000_000) };
        assert_eq!(shown(&apply(&filter, vec![series("a", &[1.0, 2.0]), series("b", &[0.0, 1.5])])), ["a=[NaN, 2.0]"]);
    }

    #[test]
    fn series_are_joined_by_labels_or_broadcast() {
        let divide = |lhs, rhs| match arithmetic(ArithOp::Div, Operand::Series(lhs), Operand::Series(rhs)) {
            Operand::Series(series) => shown(&series),
            Operand::Scalar(_) => Vec::new(),
        };
        assert_eq!(divide(vec![named("rate", &[1.0, 2.0])], vec![named("rate", &[2.0, 0.0])]), ["(rate / rate)=[0.5, NaN]"]);
        assert_eq!(divide(vec![series("a", &[4.0]), series("b", &[1.0])], vec![series("a", &[2.0])]), ["a=[2.0]"]);
        assert_eq!(divide(vec![series("a", &[4.0]), series("b", &[1.0])], vec![named("rate", &[2.0])]), ["a=[2.0]", "b=[0.5]"]);
        assert_eq!(divide(vec![series("a", &[4.0])], vec![named("rate", &[0.0])]), Vec::<String>::new());
    }
}
