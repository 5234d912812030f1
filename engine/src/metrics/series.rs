//! Finished series: cells to values.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use prost::Message;
use skein_proto::{
    otlp::common::v1::{AnyValue, KeyValue, any_value::Value as OtlpValue},
    tempo::{self, Sample, TimeSeries},
};

use super::{
    cells::{BUCKETS, Cells, NumberCell, Sparse, bucket_of, in_order},
    compare::{META_TYPE, META_TYPES, VALUES_MAX, ValueKey, not_compared},
    detail::Detail,
    estimate::{self, Bounds, Estimate, NumberEstimate, Variance, Weight},
    exemplars::{Candidate, Stretches, spread},
    intervals::Intervals,
    observe::value_field,
    partial::{Labels, Partial},
    sketch,
};
use crate::{
    error::{Error, Result},
    plan::matches::key_value,
    spans::{TraceId, value::Value},
    traceql::{FieldRef, Intrinsic, MetricsFunction, OverTime},
};

/// One series: its labels, and a value or NaN (no point) for each interval.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Series {
    pub labels: Labels,
    pub values: Vec<f64>,
    /// Ends of the 95 % intervals of the values, where they were asked for.
    pub bounds: Option<Bounds>,
    /// Spans that stand for the series; the first ones are the best spread.
    pub exemplars: Vec<Exemplar>,
}

/// A span that stands for a series.
#[derive(Debug, Clone, PartialEq)]
pub struct Exemplar {
    /// Its interval.
    pub interval: usize,
    /// Its value; None takes that of the series.
    pub value: Option<f64>,
    /// Its trace.
    pub trace: TraceId,
    /// The labels of the series that it was picked for.
    pub series: Arc<[KeyValue]>,
    /// Its own beside them.
    pub labels: Arc<[KeyValue]>,
    /// Its start.
    pub timestamp_ms: i64,
}

const NANOS: f64 = 1e9;

/// The series of a function, without those that have no point. Ungrouped counts and rates have a series even if nothing was found. Where the
/// answer has the exemplars of all of them `in_turn`, as [`in_turn`] takes them, some may lack the last of theirs.
///
/// Errors: `Internal` for labels that are none.
pub fn finish(function: &MetricsFunction, intervals: &Intervals, detail: &Detail, partial: Partial, in_turn: bool) -> Result<Vec<Series>> {
    // Those with values go to the series of their quantile or bucket, and some to none.
    let in_turn = in_turn && value_field(function).is_none() && !matches!(function, MetricsFunction::Compare { .. });
    let mut of_places = exemplars_by_place(&partial, intervals, detail.exemplars, in_turn)?;
    if let MetricsFunction::Compare { top_n, .. } = function {
        let top_n = usize::try_from(*top_n).unwrap_or(usize::MAX);
        return compared(&partial, of_places, top_n, intervals.count(), detail.exemplars as usize);
    }
    let shape = Shape {
        function,
        intervals: intervals.count(),
        seconds: intervals.step() as f64 / NANOS,
        exact: detail.exact,
        confidence: detail.confidence(),
    };
    let mut all = partial.into_series()?;
    if all.is_empty() && function.by().is_empty() && matches!(function, MetricsFunction::Rate { .. } | MetricsFunction::CountOverTime { .. }) {
        all.push((vec![key_value("__name__", &Value::from(function.name()))], Cells::new(detail.cell_kind(function), intervals.count())));
    }
    let of_cells = |(place, (labels, cells))| {
        let mut series = shape.of_cells(labels, cells);
        shape.attach(&mut series, of_places.remove(&place).unwrap_or_default());
        series
    };
    let mut series: Vec<Series> = all.into_iter().enumerate().flat_map(of_cells).collect();
    series.retain(|series| series.values.iter().any(|value| !value.is_nan()));
    Ok(series)
}

/// The best spread exemplars of each place; of those that are taken `in_turn` as many of each as have to be there. Errors: `Internal` for labels
/// that are none.
fn exemplars_by_place(partial: &Partial, intervals: &Intervals, most: u32, in_turn: bool) -> Result<HashMap<usize, Vec<Exemplar>>> {
    let most = most as usize;
    if most == 0 {
        return Ok(HashMap::new());
    }
    let mut places: Vec<(usize, usize)> = Vec::new();
    let mut candidates: Vec<(u64, i32, &Candidate)> = Vec::new();
    for ((place, stretch, class), candidate) in partial.exemplars().in_order() {
        if places.last().is_none_or(|&(last, _)| last != place as usize) {
            places.push((place as usize, candidates.len()));
        }
        candidates.push((stretch, class, candidate));
    }
    let end = |at: usize| places.get(at + 1).map_or(candidates.len(), |&(_, from)| from);
    let each = Stretches::of(intervals, most as u32).exemplars_each();
    let spread_of = |(at, &(_, from)): (usize, &(usize, usize)), depth| spread(&candidates[from..end(at)], depth, each);
    // A shorter list is the beginning of a longer one. All series have their first taken before one has its second.
    let mut depth = if in_turn { most.div_ceil(places.len().max(1)) } else { most };
    let lists = loop {
        let lists: Vec<Vec<&Candidate>> = places.iter().enumerate().map(|place| spread_of(place, depth)).collect();
        if depth >= most || lists.iter().map(Vec::len).sum::<usize>() >= most {
            break lists;
        }
        depth *= 4;
    };
    let exemplars = |(&(place, _), list): (&(usize, usize), Vec<&Candidate>)| {
        let labels: Arc<[KeyValue]> = partial.labels(place)?.into();
        Ok((place, list.into_iter().map(|candidate| exemplar(candidate, &labels)).collect()))
    };
    places.iter().zip(lists).map(exemplars).collect()
}

fn exemplar(candidate: &Candidate, series: &Arc<[KeyValue]>) -> Exemplar {
    Exemplar {
        interval: candidate.interval as usize,
        value: (!candidate.value.is_nan()).then_some(candidate.value),
        trace: candidate.trace,
        series: series.clone(),
        labels: candidate.labels.clone(),
        timestamp_ms: (candidate.start_unix_nano / 1_000_000) as i64,
    }
}

/// What the values of a function's series look like.
struct Shape<'a> {
    function: &'a MetricsFunction,
    /// How many intervals there are, and their length.
    intervals: usize,
    seconds: f64,
    /// Whether buckets are those of sketches.
    exact: bool,
    confidence: bool,
}

impl Shape<'_> {
    fn of_cells(&self, labels: Labels, cells: Cells) -> Vec<Series> {
        match cells {
            Cells::Counts(counts) => one(labels, counts.into_iter().map(|count| self.count(count as f64)), None),
            Cells::FewCounts(counts) => {
                let values = CountsOf::Spans(&counts).values(self.intervals);
                one(labels, values.into_iter().map(|count| self.count(count)), None)
            }
            Cells::WeightedCounts(cells) => {
                let (totals, bounds) = self.totals(&cells);
                one(labels, totals.into_iter(), bounds)
            }
            Cells::Numbers(cells) => one(labels, cells.iter().map(|cell| number(self.over_time(), cell) / self.scale()), None),
            Cells::WeightedNumbers(cells) => self.estimated_numbers(labels, &cells),
            Cells::Buckets(cells) if self.quantiles().is_empty() => {
                let count = |bucket: usize| cells.iter().map(move |buckets| buckets.as_deref().map_or(0, |buckets| buckets[bucket]) as f64);
                let filled = (0..BUCKETS).filter(|&at| count(at).any(|count| count > 0.0));
                filled.map(|at| Series { labels: self.bucket_labels(&labels, at as i32), values: count(at).collect(), ..Series::default() }).collect()
            }
            Cells::Buckets(cells) => self.quantile_series(&labels, |q| {
                cells.iter().map(|buckets| buckets.as_deref().map_or(0.0, |buckets| quantile_of(q, present(buckets), total(buckets)))).collect()
            }),
            Cells::Sketches(cells) => {
                let weighted: Vec<Vec<(i32, Weight)>> = cells.iter().map(|cell| weights_of(cell, |&count| Weight::ONE.times(count))).collect();
                self.quantile_series(&labels, |q| weighted.iter().map(|buckets| sketch::quantile_of(q, buckets)).collect())
            }
            Cells::WeightedBuckets(cells) if self.quantiles().is_empty() => self.estimated_buckets(&labels, &cells),
            Cells::WeightedBuckets(cells) => {
                let weighted: Vec<Vec<(i32, Weight)>> = cells.iter().map(|cell| weights_of(cell, |estimate| estimate.weight)).collect();
                self.quantile_series(&labels, |q| {
                    let quantile = |buckets: &Vec<(i32, Weight)>| match self.exact {
                        true => sketch::quantile_of(q, buckets),
                        false => {
                            let total = buckets.iter().map(|(_, weight)| weight.as_f64()).sum();
                            quantile_of(q, buckets.iter().map(|(bucket, weight)| (*bucket, weight.as_f64())), total)
                        }
                    };
                    weighted.iter().map(quantile).collect()
                })
            }
        }
    }

    fn over_time(&self) -> OverTime {
        match self.function {
            MetricsFunction::OverTime { function, .. } => *function,
            _ => OverTime::Histogram,
        }
    }

    fn quantiles(&self) -> &[f64] {
        match self.function {
            MetricsFunction::QuantileOverTime { quantiles, .. } => quantiles,
            _ => &[],
        }
    }

    /// What a number of spans in an interval is shown as.
    fn count(&self, count: f64) -> f64 {
        if matches!(self.function, MetricsFunction::Rate { .. }) { count / self.seconds } else { count }
    }

    /// Only `duration` itself is shown in seconds by functions that take single values.
    fn scale(&self) -> f64 {
        match value_field(self.function) {
            Some(FieldRef::Intrinsic(Intrinsic::Duration)) => NANOS,
            _ => 1.0,
        }
    }

    /// Durations are counted by nanoseconds and shown in seconds.
    fn bucket_scale(&self) -> f64 {
        match value_field(self.function) {
            Some(FieldRef::Intrinsic(Intrinsic::Duration | Intrinsic::TraceDuration | Intrinsic::EventTimeSinceStart)) => NANOS,
            _ => 1.0,
        }
    }

    fn bucket_labels(&self, labels: &[KeyValue], bucket: i32) -> Labels {
        with_label(without_name(labels), "__bucket", 2f64.powi(bucket) / self.bucket_scale())
    }

    fn quantile_series(&self, labels: &[KeyValue], values: impl Fn(f64) -> Vec<f64>) -> Vec<Series> {
        let series = |&q: &f64| {
            let values = values(q).into_iter().map(|value| value / self.bucket_scale()).collect();
            Series { labels: with_label(without_name(labels), "p", q), values, ..Series::default() }
        };
        self.quantiles().iter().map(series).collect()
    }

    /// Estimated numbers of spans as they are shown, with their intervals.
    fn totals(&self, cells: &[Estimate]) -> (Vec<f64>, Option<Bounds>) {
        let totals: Vec<f64> = cells.iter().map(|cell| cell.weight.as_f64()).collect();
        let bounds = self.confidence.then(|| {
            let variances: Vec<Variance> = cells.iter().map(|cell| cell.variance).collect();
            estimate::intervals_of_totals(&totals, &variances).map(|ends| ends.into_iter().map(|end| self.count(end)).collect())
        });
        (totals.into_iter().map(|total| self.count(total)).collect(), bounds)
    }

    fn estimated_numbers(&self, labels: Labels, cells: &[NumberEstimate]) -> Vec<Series> {
        let scale = self.scale();
        let is_sum = self.over_time() == OverTime::Sum;
        let value = |cell: &NumberEstimate| match cell.spans.weight.as_f64() {
            0.0 => f64::NAN,
            _ if is_sum => cell.sum.total() / scale,
            spans => cell.sum.total() / spans / scale,
        };
        let bounds = self.confidence.then(|| {
            let ends = match (is_sum, cells.iter().any(|cell| cell.negative.total() < 0.0)) {
                (false, _) => estimate::intervals_of_means(cells),
                (true, true) => estimate::intervals_of_sums(cells),
                (true, false) => {
                    let totals: Vec<f64> = cells.iter().map(|cell| cell.sum.total()).collect();
                    let variances: Vec<Variance> = cells.iter().map(|cell| cell.sum_variance).collect();
                    estimate::intervals_of_totals(&totals, &variances)
                }
            };
            ends.map(|ends| ends.into_iter().map(|end| end / scale).collect())
        });
        one(labels, cells.iter().map(value), bounds)
    }

    fn estimated_buckets(&self, labels: &[KeyValue], cells: &[Sparse<Estimate>]) -> Vec<Series> {
        let filled: BTreeSet<i32> = cells.iter().flat_map(|cell| cell.keys().copied()).collect();
        let series = |bucket: i32| {
            let own: Vec<Estimate> = cells.iter().map(|cell| cell.get(&bucket).copied().unwrap_or_default()).collect();
            let (values, bounds) = self.totals(&own);
            Series { labels: self.bucket_labels(labels, bucket), values, bounds, exemplars: Vec::new() }
        };
        filled.into_iter().map(series).collect()
    }

    /// Gives exemplars to the series of one place that they belong to: to their bucket, to the nearest quantile, or to the only one.
    fn attach(&self, series: &mut [Series], exemplars: Vec<Exemplar>) {
        let is_histogram = self.over_time() == OverTime::Histogram && self.quantiles().is_empty() && value_field(self.function).is_some();
        for mut exemplar in exemplars {
            let raw = exemplar.value.unwrap_or_default();
            let scale = if is_histogram || !self.quantiles().is_empty() { self.bucket_scale() } else { self.scale() };
            exemplar.value = exemplar.value.map(|value| value / scale);
            let own = match &mut *series {
                all if is_histogram => {
                    let bound = bucket_of(raw as i64).map(|bucket| Value::Float(2f64.powi(bucket as i32) / scale).to_otlp());
                    all.iter_mut().find(|series| series.labels.last().and_then(|label| label.value.as_ref()) == bound.as_ref())
                }
                all => {
                    let distance = |series: &Series| (series.values[exemplar.interval] - exemplar.value.unwrap_or_default()).abs();
                    all.iter_mut().min_by(|a, b| distance(a).total_cmp(&distance(b)))
                }
            };
            if let Some(series) = own {
                series.exemplars.push(exemplar);
            }
        }
    }
}

fn one(labels: Labels, values: impl Iterator<Item = f64>, bounds: Option<Bounds>) -> Vec<Series> {
    vec![Series { labels, values: values.collect(), bounds, exemplars: Vec::new() }]
}

fn weights_of<T: Copy>(cell: &Sparse<T>, weight: impl Fn(&T) -> Weight) -> Vec<(i32, Weight)> {
    in_order(cell).into_iter().map(|(bucket, content)| (bucket, weight(&content))).collect()
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

/// The buckets that have spans, by exponent.
fn present(buckets: &[u64; BUCKETS]) -> impl Iterator<Item = (i32, f64)> {
    buckets.iter().enumerate().filter(|(_, count)| **count > 0).map(|(exponent, &count)| (exponent as i32, count as f64))
}

fn total(buckets: &[u64; BUCKETS]) -> f64 {
    buckets.iter().sum::<u64>() as f64
}

/// The quantile `q` of `total` values of which only the buckets are known, ascending by exponent: between the bounds of two present buckets,
/// evenly on a logarithmic scale.
pub fn quantile_of(q: f64, buckets: impl Iterator<Item = (i32, f64)>, total: f64) -> f64 {
    let needed = (q * total).ceil().max(1.0);
    let (mut below, mut last) = (0.0, None);
    for (exponent, count) in buckets {
        // Sums of weights are rounded: a rank may lie a hair above the last of them.
        if below + count < needed && below + count < total {
            below += count;
            last = Some(exponent);
            continue;
        }
        if below + count <= needed {
            return 2f64.powi(exponent);
        }
        let part = (needed - below) / count;
        let low = last.map_or(f64::from(exponent) - 1.0, f64::from);
        return 2f64.powf(low + (f64::from(exponent) - low) * part);
    }
    0.0
}

/// How many spans one value has in each interval.
#[derive(Debug, Clone, Copy)]
enum CountsOf<'a> {
    Spans(&'a [(u32, u64)]),
    Weighted(&'a [Estimate]),
}

impl<'a> CountsOf<'a> {
    fn of(cells: &'a Cells) -> Option<Self> {
        match cells {
            Cells::FewCounts(counts) => Some(Self::Spans(counts)),
            Cells::WeightedCounts(estimates) => Some(Self::Weighted(estimates)),
            _ => None,
        }
    }

    /// Intervals and how many spans are in each; those left out have none.
    fn by_interval(self) -> impl Iterator<Item = (usize, Weight)> {
        let (spans, weighted) = match self {
            Self::Spans(counts) => (counts, [].as_slice()),
            Self::Weighted(estimates) => ([].as_slice(), estimates),
        };
        let spans = spans.iter().map(|&(at, count)| (at as usize, Weight::ONE.times(count)));
        spans.chain(weighted.iter().map(|estimate| estimate.weight).enumerate())
    }

    /// How many spans are in each of `intervals` intervals.
    fn values(self, intervals: usize) -> Vec<f64> {
        let mut values = vec![0.0; intervals];
        self.by_interval().for_each(|(at, spans)| values[at] = spans.as_f64());
        values
    }

    fn all(self) -> Weight {
        let mut all = Weight::default();
        self.by_interval().for_each(|(_, spans)| all += spans);
        all
    }
}

/// A value of an attribute in one of the groups.
#[derive(Debug, Clone, Copy)]
struct Compared<'a> {
    /// How many spans have it.
    spans: Weight,
    /// An `AnyValue` message; empty where values are not told apart.
    value: &'a [u8],
    counts: CountsOf<'a>,
}

impl<'a> Compared<'a> {
    /// The most frequent values come first, of these in the order of their texts.
    fn rank(&self) -> (Reverse<Weight>, String, &'a [u8]) {
        (Reverse(self.spans), label_text(AnyValue::decode(self.value).ok().as_ref()), self.value)
    }
}

/// An attribute in one of the groups.
struct Attribute<'a> {
    totals: Vec<Weight>,
    values: Vec<Compared<'a>>,
    exemplars: Vec<(Compared<'a>, Vec<Exemplar>)>,
}

impl Attribute<'_> {
    fn new(intervals: usize) -> Self {
        Self { totals: vec![Weight::default(); intervals], values: Vec::new(), exemplars: Vec::new() }
    }
}

/// The most frequent values of each attribute in both groups, and the totals of each attribute; only these of an attribute of too many values.
/// Exemplars, which are those of names, go to the totals.
fn compared(
    partial: &Partial,
    mut exemplars: HashMap<usize, Vec<Exemplar>>,
    top_n: usize,
    intervals: usize,
    exemplars_max: usize,
) -> Result<Vec<Series>> {
    let mut attributes: BTreeMap<(bool, &str), Attribute<'_>> = BTreeMap::new();
    let mut series: HashMap<&str, usize> = HashMap::new();
    for (place, (key, cells)) in partial.encoded_series().iter().enumerate() {
        let Some(counts) = CountsOf::of(cells) else { continue };
        let ValueKey { selected, name, value } = ValueKey::parse(key).ok_or_else(not_compared)?;
        // Values that were not told apart are too many.
        *series.entry(name).or_default() += if value.is_some() { 1 } else { VALUES_MAX + 1 };
        let attribute = attributes.entry((selected, name)).or_insert_with(|| Attribute::new(intervals));
        counts.by_interval().for_each(|(at, spans)| attribute.totals[at] += spans);
        let compared = Compared { spans: counts.all(), value: value.unwrap_or_default(), counts };
        attribute.exemplars.extend(exemplars.remove(&place).map(|exemplars| (compared, exemplars)));
        attribute.values.extend(value.map(|_| compared));
    }
    let mut out = Vec::new();
    for ((selected, name), Attribute { totals, mut values, mut exemplars }) in attributes {
        if series.get(name).is_some_and(|&count| count > VALUES_MAX) {
            values.clear();
        }
        keep_most_frequent(&mut values, top_n);
        let meta = META_TYPES[usize::from(selected)];
        for Compared { value, counts, .. } in values {
            let value = AnyValue::decode(value).map_err(|e| Error::internal("reading a label").with_source(e))?;
            let label = KeyValue { key: name.to_owned(), value: Some(value), ..KeyValue::default() };
            let labels = vec![key_value(META_TYPE, &Value::from(meta)), label];
            out.push(Series { labels, values: counts.values(intervals), ..Series::default() });
        }
        exemplars.sort_by_cached_key(|(compared, _)| compared.rank());
        let exemplars = in_turn(exemplars.into_iter().map(|(_, exemplars)| exemplars).collect(), exemplars_max);
        let exemplars = exemplars.into_iter().map(|(_, exemplar)| exemplar).collect();
        let labels = vec![key_value(META_TYPE, &Value::from(&*format!("{meta}_total"))), key_value(name, &Value::Nil)];
        out.push(Series { labels, values: totals.into_iter().map(Weight::as_f64).collect(), bounds: None, exemplars });
    }
    Ok(out)
}

/// The first of each list, then the second of each, and so on up to `most`, with the number of their list.
pub fn in_turn<T>(lists: Vec<Vec<T>>, most: usize) -> Vec<(usize, T)> {
    let mut lists: Vec<_> = lists.into_iter().map(Vec::into_iter).enumerate().collect();
    let mut out = Vec::new();
    while !lists.is_empty() && out.len() < most {
        lists.retain_mut(|(number, list)| match list.next() {
            Some(item) if out.len() < most => {
                out.push((*number, item));
                true
            }
            _ => false,
        });
    }
    out
}

/// Keeps the `top_n` values that most spans have, the most frequent first, ties by text. Texts are only looked at where they may matter.
fn keep_most_frequent(values: &mut Vec<Compared<'_>>, top_n: usize) {
    if values.len() > top_n && top_n > 0 {
        let (_, &mut Compared { spans: least, .. }, _) = values.select_nth_unstable_by(top_n - 1, |a, b| b.spans.cmp(&a.spans));
        values.retain(|compared| compared.spans >= least);
    }
    values.sort_by_cached_key(Compared::rank);
    values.truncate(top_n);
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

/// Orders series by the number of labels, then their names and values, then the types of these.
pub fn sort(series: &mut [Series]) {
    series.sort_by_cached_key(|series| order_key(&series.labels));
}

/// The label that tells the ends of the 95 % intervals of a series.
pub const BOUND: &str = "__bound";

/// The series beside `series` that are the ends of its intervals, where it has a value.
pub fn of_bounds(series: &Series) -> Vec<Series> {
    let of_end = |(ends, end): (&Vec<f64>, &str)| {
        let values = series.values.iter().zip(ends).map(|(value, &end)| if value.is_nan() { f64::NAN } else { end }).collect();
        let mut labels = series.labels.clone();
        labels.push(key_value(BOUND, &Value::from(end)));
        Series { labels, values, ..Series::default() }
    };
    series.bounds.iter().flat_map(|bounds| bounds.iter().zip(["lower", "upper"])).map(of_end).collect()
}

/// A series in the form of the API: points that are not there are left out.
pub fn to_proto(series: Series, intervals: &Intervals) -> TimeSeries {
    let mut exemplars: Vec<tempo::Exemplar> = series.exemplars.into_iter().filter_map(|exemplar| shown_exemplar(exemplar, &series.values)).collect();
    exemplars.sort_by_key(|exemplar| exemplar.timestamp_ms);
    let points = series.values.into_iter().enumerate().filter(|(_, value)| !value.is_nan());
    let samples = points.map(|(at, value)| Sample { value, timestamp_ms: intervals.timestamp_ms(at) }).collect();
    TimeSeries { labels: shown(series.labels), samples, exemplars }
}

fn shown_exemplar(exemplar: Exemplar, values: &[f64]) -> Option<tempo::Exemplar> {
    let value = exemplar.value.unwrap_or(*values.get(exemplar.interval)?);
    let mut labels = vec![key_value("trace:id", &Value::from(&*exemplar.trace.to_short_hex()))];
    labels.extend(exemplar.series.iter().filter(|label| !label.key.starts_with("__") && label.value.is_some()).cloned());
    labels.extend(exemplar.labels.iter().cloned());
    Some(tempo::Exemplar { labels, value, timestamp_ms: exemplar.timestamp_ms })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{exec::memory::Reservation, metrics::cells::CellKind};

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
    fn exemplars_that_are_taken_in_turn_are_those_of_whole_lists() {
        let intervals = Intervals::of_range(10, 600, 10).unwrap();
        let stretches = Stretches::of(&intervals, 100);
        // Many series with few spans, few with many, and both together; some traces are in several slots of a series.
        for (series, spans) in [(1, 40), (3, 9), (60, 1), (200, 3), (90, 70)] {
            let mut partial = Partial::new(CellKind::Counts, intervals.count(), Reservation::default());
            for number in 0..series {
                let place = partial.place(vec![key_value("n", &Value::Int(number))]).unwrap() as u32;
                for span in 0..1 + (number * 7919) % spans {
                    let (interval, hash) = ((span * 31 % 59) as u32, (span * 977 % 1009) as u64);
                    let slot = (place, stretches.of_interval(interval), (hash & 1) as i32);
                    let trace = TraceId(u128::from(hash % 23).to_be_bytes());
                    let candidate = Candidate { hash, interval, trace, start_unix_nano: span as u64, value: f64::NAN, labels: Arc::from([]) };
                    partial.offer(slot, hash, || Ok(candidate)).unwrap();
                }
            }
            for most in [1, 2, 100, 10_000] {
                let taken = |turns: bool| {
                    let lists: BTreeMap<_, _> = exemplars_by_place(&partial, &intervals, most, turns).unwrap().into_iter().collect();
                    in_turn(lists.into_values().collect(), most as usize)
                };
                assert_eq!(taken(true), taken(false), "{most} of {series} series with up to {spans} spans");
            }
        }
    }

    #[test]
    fn the_order_of_series_tells_all_of_them_apart() {
        let series = |value: Option<&Value>| Series {
            labels: vec![KeyValue { key: "a".to_owned(), value: value.map(Value::to_otlp), ..KeyValue::default() }],
            values: vec![1.0],
            ..Series::default()
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
        let quantile = |q, buckets: &[u64; BUCKETS]| quantile_of(q, present(buckets), total(buckets));
        let gap = buckets(&[(27, 1), (32, 2), (33, 1)]);
        assert_eq!(quantile(0.5, &gap), 2f64.powf(29.5));
        assert_eq!(quantile(0.0, &gap), 2f64.powi(27));
        assert_eq!(quantile(1.0, &gap), 2f64.powi(33));
        assert_eq!(quantile(0.5, &buckets(&[(31, 4)])), 2f64.powf(30.5));
        assert_eq!(quantile(0.9, &buckets(&[])), 0.0);
    }
}
