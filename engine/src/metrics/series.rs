//! Finished series: cells to values.

use std::collections::{BTreeMap, HashMap};

use prost::Message;
use skein_proto::{
    otlp::common::v1::{AnyValue, KeyValue, any_value::Value as OtlpValue},
    tempo::{Sample, TimeSeries},
};

use super::{
    cells::{BUCKETS, Cells, NumberCell},
    compare::{META_TYPE, META_TYPES, VALUES_MAX},
    intervals::Intervals,
    observe::value_field,
    partial::{Labels, Partial},
};
use crate::{
    plan::matches::key_value,
    spans::value::Value,
    traceql::{FieldRef, Intrinsic, MetricsFunction, OverTime},
};

/// One series: its labels, and a value or NaN (no point) for each interval.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Series {
    pub labels: Labels,
    pub values: Vec<f64>,
}

const NANOS: f64 = 1e9;

/// The series of a function, without those that have no point. Ungrouped counts and rates have a series even if nothing was found.
pub fn finish(function: &MetricsFunction, intervals: &Intervals, partial: Partial) -> Vec<Series> {
    let seconds = intervals.step() as f64 / NANOS;
    let mut all = partial.into_series();
    if all.is_empty() && function.by().is_empty() && matches!(function, MetricsFunction::Rate { .. } | MetricsFunction::CountOverTime { .. }) {
        all.push((vec![key_value("__name__", &Value::from(function.name()))], Cells::Counts(vec![0; intervals.count()])));
    }
    let mut series = match function {
        MetricsFunction::Compare { top_n, .. } => compared(all, usize::try_from(*top_n).unwrap_or(usize::MAX), intervals.count()),
        _ => all.into_iter().flat_map(|(labels, cells)| of_cells(function, labels, cells, seconds)).collect(),
    };
    series.retain(|series| series.values.iter().any(|value| !value.is_nan()));
    series
}

fn of_cells(function: &MetricsFunction, labels: Labels, cells: Cells, seconds: f64) -> Vec<Series> {
    match (function, cells) {
        (MetricsFunction::Rate { .. }, Cells::Counts(counts)) => one(labels, counts.into_iter().map(|count| count as f64 / seconds)),
        (_, Cells::Counts(counts)) => one(labels, counts.into_iter().map(|count| count as f64)),
        (MetricsFunction::OverTime { function, field, .. }, Cells::Numbers(cells)) => {
            let scale = if *field == FieldRef::Intrinsic(Intrinsic::Duration) { NANOS } else { 1.0 };
            one(labels, cells.iter().map(|cell| number(*function, cell) / scale))
        }
        (MetricsFunction::QuantileOverTime { quantiles, .. }, Cells::Buckets(cells)) => {
            let scale = bucket_scale(function);
            let quantile = |q: f64| {
                let values = cells.iter().map(|buckets| buckets.as_deref().map_or(0.0, |buckets| quantile_of(q, buckets)) / scale).collect();
                Series { labels: with_label(without_name(&labels), "p", q), values }
            };
            quantiles.iter().map(|&q| quantile(q)).collect()
        }
        (_, Cells::Buckets(cells)) => {
            let scale = bucket_scale(function);
            let count = |bucket: usize| cells.iter().map(move |buckets| buckets.as_deref().map_or(0, |buckets| buckets[bucket]) as f64);
            let bucket = |bucket: usize| Series {
                labels: with_label(without_name(&labels), "__bucket", 2f64.powi(bucket as i32) / scale),
                values: count(bucket).collect(),
            };
            (0..BUCKETS).filter(|&at| count(at).any(|count| count > 0.0)).map(bucket).collect()
        }
        (_, Cells::Numbers(_)) => Vec::new(),
    }
}

fn one(labels: Labels, values: impl Iterator<Item = f64>) -> Vec<Series> {
    vec![Series { labels, values: values.collect() }]
}

fn number(function: OverTime, cell: &NumberCell) -> f64 {
    match function {
        _ if cell.count == 0 => f64::NAN,
        // All that was there is not a number.
        OverTime::Min | OverTime::Max if cell.min > cell.max => f64::NAN,
        OverTime::Min => cell.min,
        OverTime::Max => cell.max,
        OverTime::Sum => cell.total(),
        OverTime::Avg | OverTime::Histogram => cell.total() / cell.count as f64,
    }
}

/// Durations are counted by nanoseconds and shown in seconds.
fn bucket_scale(function: &MetricsFunction) -> f64 {
    match value_field(function) {
        Some(FieldRef::Intrinsic(Intrinsic::Duration | Intrinsic::TraceDuration | Intrinsic::EventTimeSinceStart)) => NANOS,
        _ => 1.0,
    }
}

/// The labels beside those of buckets and quantiles: no name, nothing that is missing.
fn without_name(labels: &[KeyValue]) -> Labels {
    labels.iter().filter(|label| label.key != "__name__" && label.value.is_some()).cloned().collect()
}

/// Labels as the API has them. One that stands alone is shown even if it is missing; until then it is another than the text `nil`.
fn shown(mut labels: Labels) -> Labels {
    for label in labels.iter_mut().filter(|label| label.value.is_none()) {
        label.value = Some(Value::Nil.to_otlp());
    }
    labels
}

fn with_label(mut labels: Labels, key: &str, value: f64) -> Labels {
    labels.push(key_value(key, &Value::Float(value)));
    labels
}

/// The quantile `q` of values of which only the buckets are known: between the bounds of two present buckets, evenly on a logarithmic scale.
pub fn quantile_of(q: f64, buckets: &[u64; BUCKETS]) -> f64 {
    let total: u64 = buckets.iter().sum();
    if total == 0 {
        return 0.0;
    }
    let needed = ((q * total as f64).ceil() as u64).max(1);
    let (mut below, mut last) = (0, None);
    for (exponent, &count) in buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
        if below + count < needed {
            below += count;
            last = Some(exponent);
            continue;
        }
        if below + count == needed {
            return 2f64.powi(exponent as i32);
        }
        let part = (needed - below) as f64 / count as f64;
        let low = last.map_or(exponent as f64 - 1.0, |last| last as f64);
        return 2f64.powf(low + (exponent as f64 - low) * part);
    }
    0.0
}

/// The most frequent values of each attribute in both groups, and the totals of each attribute; only these of an attribute of too many values.
fn compared(all: Vec<(Labels, Cells)>, top_n: usize, intervals: usize) -> Vec<Series> {
    let mut attributes: BTreeMap<(String, String), Vec<Series>> = BTreeMap::new();
    let mut values: HashMap<String, usize> = HashMap::new();
    for (labels, cells) in all {
        let Cells::Counts(counts) = cells else { continue };
        let meta = labels.first().map(|label| label_text(label.value.as_ref())).unwrap_or_default();
        let Some(label) = labels.last() else { continue };
        // Values that were not told apart are too many.
        *values.entry(label.key.clone()).or_default() += if label.value.is_some() { 1 } else { VALUES_MAX + 1 };
        let values = counts.into_iter().map(|count| count as f64).collect();
        attributes.entry((meta, label.key.clone())).or_default().push(Series { labels, values });
    }
    let mut out = Vec::new();
    for ((meta, attribute), mut series) in attributes {
        let mut totals = vec![0.0; intervals];
        series.iter().for_each(|series| totals.iter_mut().zip(&series.values).for_each(|(total, value)| *total += value));
        if values.get(&attribute).is_some_and(|&count| count > VALUES_MAX) {
            series.clear();
        }
        let sum = |series: &Series| series.values.iter().sum::<f64>();
        series.sort_by(|a, b| sum(b).total_cmp(&sum(a)).then_with(|| order_key(&a.labels).cmp(&order_key(&b.labels))));
        series.truncate(top_n);
        out.extend(series);
        debug_assert!(META_TYPES.contains(&meta.as_str()));
        let labels = vec![key_value(META_TYPE, &Value::from(&*format!("{meta}_total"))), key_value(&attribute, &Value::Nil)];
        out.push(Series { labels, values: totals });
    }
    out
}

/// The text of a label's value, as labels are ordered by.
pub fn label_text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(OtlpValue::StringValue(text)) => text.clone(),
        Some(OtlpValue::IntValue(value)) => value.to_string(),
        Some(OtlpValue::DoubleValue(value)) => value.to_string(),
        Some(OtlpValue::BoolValue(value)) => value.to_string(),
        Some(_) => String::new(),
        None => "nil".to_owned(),
    }
}

/// What tells apart label values of the same text, such as 1 and "1".
pub fn label_type(value: Option<&AnyValue>) -> Vec<u8> {
    value.map(AnyValue::encode_to_vec).unwrap_or_default()
}

/// Labels sorted by name, with their values as text, and what tells them apart where the texts are equal.
fn order_key(labels: &[KeyValue]) -> (usize, Vec<(String, String, Vec<u8>)>) {
    let of_label = |label: &KeyValue| (label.key.clone(), label_text(label.value.as_ref()), label_type(label.value.as_ref()));
    let mut pairs: Vec<_> = labels.iter().map(of_label).collect();
    pairs.sort();
    (labels.len(), pairs)
}

/// Orders series by the number of labels, then their names and values.
pub fn sort(series: &mut [Series]) {
    series.sort_by_cached_key(|series| order_key(&series.labels));
}

/// A series in the form of the API: points that are not there are left out.
pub fn to_proto(series: Series, intervals: &Intervals) -> TimeSeries {
    let points = series.values.into_iter().enumerate().filter(|(_, value)| !value.is_nan());
    let samples = points.map(|(at, value)| Sample { value, timestamp_ms: intervals.timestamp_ms(at) }).collect();
    TimeSeries { labels: shown(series.labels), samples, exemplars: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets(filled: &[(usize, u64)]) -> [u64; BUCKETS] {
        let mut buckets = [0; BUCKETS];
        filled.iter().for_each(|&(at, count)| buckets[at] = count);
        buckets
    }

    #[test]
    fn what_is_not_a_number_has_no_least_and_no_greatest() {
        let mut cell = NumberCell::default();
        cell.add(f64::NAN);
        assert!([OverTime::Min, OverTime::Max, OverTime::Sum, OverTime::Avg].into_iter().all(|function| number(function, &cell).is_nan()));
        cell.add(2.0);
        assert_eq!([number(OverTime::Min, &cell), number(OverTime::Max, &cell)], [2.0, 2.0]);
    }

    #[test]
    fn the_order_of_series_tells_all_of_them_apart() {
        let series = |value: Option<&Value>| Series {
            labels: vec![KeyValue { key: "a".to_owned(), value: value.map(Value::to_otlp), ..KeyValue::default() }],
            values: vec![1.0],
        };
        let all = [series(Some(&Value::Int(1))), series(Some(&Value::from("1"))), series(None), series(Some(&Value::from("nil")))];
        let mut sorted = all.clone();
        sort(&mut sorted);
        let mut reversed = all;
        reversed.reverse();
        sort(&mut reversed);
        assert_eq!(sorted, reversed);
    }

    #[test]
    fn quantiles_are_read_off_the_buckets() {
        // 0.1 s, then 3, 4 and 5 s: the gap between the buckets is bridged.
        let gap = buckets(&[(27, 1), (32, 2), (33, 1)]);
        assert_eq!(quantile_of(0.5, &gap), 2f64.powf(29.5));
        assert_eq!(quantile_of(0.0, &gap), 2f64.powi(27));
        assert_eq!(quantile_of(1.0, &gap), 2f64.powi(33));
        assert_eq!(quantile_of(0.5, &buckets(&[(31, 4)])), 2f64.powf(30.5));
        assert_eq!(quantile_of(0.9, &buckets(&[])), 0.0);
    }
}
