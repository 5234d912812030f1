//! Finished series: cells to values.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
};

use prost::Message;
use skein_proto::{
    otlp::common::v1::{AnyValue, KeyValue, any_value::Value as OtlpValue},
    tempo::{Sample, TimeSeries},
};

use super::{
    cells::{BUCKETS, Cells, NumberCell},
    compare::{META_TYPE, META_TYPES, VALUES_MAX, ValueKey},
    intervals::Intervals,
    observe::value_field,
    partial::{Labels, Partial},
};
use crate::{
    error::{Error, Result},
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
///
/// Errors: `Internal` for labels that are none.
pub fn finish(function: &MetricsFunction, intervals: &Intervals, partial: Partial) -> Result<Vec<Series>> {
    if let MetricsFunction::Compare { top_n, .. } = function {
        return compared(&partial, usize::try_from(*top_n).unwrap_or(usize::MAX), intervals.count());
    }
    let seconds = intervals.step() as f64 / NANOS;
    let mut all = partial.into_series()?;
    if all.is_empty() && function.by().is_empty() && matches!(function, MetricsFunction::Rate { .. } | MetricsFunction::CountOverTime { .. }) {
        all.push((vec![key_value("__name__", &Value::from(function.name()))], Cells::Counts(vec![0; intervals.count()])));
    }
    let mut series: Vec<Series> = all.into_iter().flat_map(|(labels, cells)| of_cells(function, labels, cells, seconds)).collect();
    series.retain(|series| series.values.iter().any(|value| !value.is_nan()));
    Ok(series)
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
    vec![Series { labels: shown(labels), values: values.collect() }]
}

fn number(function: OverTime, cell: &NumberCell) -> f64 {
    match function {
        _ if cell.count == 0 => f64::NAN,
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

/// A label that stands alone is shown even if it is missing.
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

/// A value of an attribute in one of the groups: how many spans have it, its `AnyValue` message, and when they begin.
type Compared<'a> = (u64, &'a [u8], &'a [u64]);

/// The most frequent values of each attribute in both groups, and the totals of each attribute; only these of an attribute of too many values.
fn compared(partial: &Partial, top_n: usize, intervals: usize) -> Result<Vec<Series>> {
    let mut attributes: BTreeMap<(bool, &str), (Vec<u64>, Vec<Compared<'_>>)> = BTreeMap::new();
    let mut series: HashMap<&str, usize> = HashMap::new();
    for (key, cells) in partial.encoded_series() {
        let Cells::Counts(counts) = cells else { continue };
        let ValueKey { selected, name, value } = ValueKey::parse(key).ok_or_else(|| Error::internal("a partial series is not one of compare()"))?;
        // Values that were not told apart are too many.
        *series.entry(name).or_default() += if value.is_some() { 1 } else { VALUES_MAX + 1 };
        let (totals, values) = attributes.entry((selected, name)).or_insert_with(|| (vec![0; intervals], Vec::new()));
        totals.iter_mut().zip(counts).for_each(|(total, count)| *total += count);
        values.extend(value.map(|value| (counts.iter().sum(), value, &**counts)));
    }
    let mut out = Vec::new();
    for ((selected, name), (totals, mut values)) in attributes {
        if series.get(name).is_some_and(|&count| count > VALUES_MAX) {
            values.clear();
        }
        keep_most_frequent(&mut values, top_n);
        let meta = META_TYPES[usize::from(selected)];
        let shown = |counts: &[u64]| counts.iter().map(|&count| count as f64).collect();
        for (_, value, counts) in values {
            let value = AnyValue::decode(value).map_err(|e| Error::internal("reading a label").with_source(e))?;
            let label = KeyValue { key: name.to_owned(), value: Some(value), ..KeyValue::default() };
            out.push(Series { labels: vec![key_value(META_TYPE, &Value::from(meta)), label], values: shown(counts) });
        }
        let labels = vec![key_value(META_TYPE, &Value::from(&*format!("{meta}_total"))), key_value(name, &Value::Nil)];
        out.push(Series { labels, values: shown(&totals) });
    }
    Ok(out)
}

/// Keeps the `top_n` values that most spans have, the most frequent first, ties by text. Texts are only looked at where they may matter.
fn keep_most_frequent(values: &mut Vec<Compared<'_>>, top_n: usize) {
    if values.len() > top_n && top_n > 0 {
        let (_, &mut (least, ..), _) = values.select_nth_unstable_by(top_n - 1, |a, b| b.0.cmp(&a.0));
        values.retain(|&(sum, ..)| sum >= least);
    }
    let text = |value: &[u8]| label_text(AnyValue::decode(value).ok().as_ref());
    values.sort_by_cached_key(|&(sum, value, _)| (Reverse(sum), text(value), value));
    values.truncate(top_n);
}

/// The text of a label's value, as labels are ordered by.
pub fn label_text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(OtlpValue::StringValue(text)) => text.clone(),
        Some(OtlpValue::IntValue(value)) => value.to_string(),
        Some(OtlpValue::DoubleValue(value)) => value.to_string(),
        Some(OtlpValue::BoolValue(value)) => value.to_string(),
        _ => String::new(),
    }
}

/// Labels sorted by name, with their values as text.
fn order_key(labels: &[KeyValue]) -> (usize, Vec<(String, String)>) {
    let mut pairs: Vec<_> = labels.iter().map(|label| (label.key.clone(), label_text(label.value.as_ref()))).collect();
    pairs.sort();
    (labels.len(), pairs)
}

/// Types of values, so that equal texts have an order too.
fn type_rank(value: Option<&AnyValue>) -> u8 {
    match value.and_then(|value| value.value.as_ref()) {
        Some(OtlpValue::StringValue(_)) => 0,
        Some(OtlpValue::IntValue(_)) => 1,
        Some(OtlpValue::DoubleValue(_)) => 2,
        Some(OtlpValue::BoolValue(_)) => 3,
        _ => 4,
    }
}

/// Orders series by the number of labels, then their names and values, then the types of these.
pub fn sort(series: &mut [Series]) {
    let types = |labels: &[KeyValue]| labels.iter().map(|label| type_rank(label.value.as_ref())).collect::<Vec<_>>();
    series.sort_by_cached_key(|series| (order_key(&series.labels), types(&series.labels)));
}

/// A series in the form of the API: points that are not there are left out.
pub fn to_proto(series: Series, intervals: &Intervals) -> TimeSeries {
    let points = series.values.into_iter().enumerate().filter(|(_, value)| !value.is_nan());
    let samples = points.map(|(at, value)| Sample { value, timestamp_ms: intervals.timestamp_ms(at) }).collect();
    TimeSeries { labels: series.labels, samples, exemplars: Vec::new() }
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
