//! The spans of a frame into series under way, column by column.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{Array, UInt32Array},
    buffer::BooleanBuffer,
    record_batch::RecordBatch,
};

use hashbrown::HashMap;
use skein_proto::otlp::common::v1::KeyValue;

use super::{
    cells::{BUCKETS, BUCKETS_BYTES, Cells, bucket_of, sparse_bytes},
    codes::Codes,
    compare::{self, Compared, Distinct},
    detail::{Detail, Extrapolation},
    estimate::Weight,
    exemplars::Stretches,
    grid::{CELL_BYTES, CELLS_MAX, Grid},
    intervals::{Intervals, OUTSIDE},
    partial::{Labels, Partial, too_many_series},
    pick::Picker,
    sketch,
    slots::Grouped,
    traces::FrameTraces,
    weighted::{TraceCells, bucket_by},
    weights,
};
use crate::{
    error::Result,
    exec::eval::{ColumnNeeds, Frame, vector::Vector},
    exec::memory::Reservation,
    exec::source::SourceRef,
    plan::matches::key_value,
    spans::{read::Typed, schema::Column, value::Value},
    traceql::{FieldRef, Intrinsic, MetricsFunction, Pipeline},
};

/// Bytes of a chosen row: its place, interval, group, cell, and the code of a value.
const CHOSEN_BYTES: usize = 5 * size_of::<u32>();

/// Bytes of the labels of a group of a frame, roughly.
const GROUP_BYTES: usize = 200;

/// The value that a function takes from each span.
pub fn value_field(function: &MetricsFunction) -> Option<&FieldRef> {
    match function {
        MetricsFunction::OverTime { field, .. } | MetricsFunction::QuantileOverTime { field, .. } => Some(field),
        _ => None,
    }
}

/// The chosen rows of a frame, with the interval of each; rows outside of all intervals are left out.
pub struct Chosen {
    /// Rows, ascending.
    pub rows: Vec<u32>,
    /// The interval of each.
    pub intervals: Vec<u32>,
    length: usize,
    /// The first and the last interval that has a row; None without rows.
    ends: Option<(u32, u32)>,
    /// For each trace of the frame the interval that all of its rows are in, [`OUTSIDE`] where they are in several; None where nobody looked.
    by_trace: Option<Vec<u32>>,
}

/// The chosen rows of a trace.
pub struct ChosenTrace {
    /// The start of the trace in Unix nanoseconds.
    pub start: i64,
    /// Its rows among the chosen.
    pub spans: Range<usize>,
    /// The interval that all of them are in, if that is known.
    pub interval: Option<u32>,
}

/// The intervals of rows, trace by trace.
struct OfTraces {
    rows: Vec<u32>,
    traces: Vec<u32>,
    ends: Option<(u32, u32)>,
    any_outside: bool,
}

impl OfTraces {
    fn with_capacity(rows: usize, traces: usize) -> Self {
        Self { rows: Vec::with_capacity(rows), traces: Vec::with_capacity(traces), ends: None, any_outside: false }
    }

    /// Notes a trace whose rows are those from `first` on, all of them in one interval if that is `alone`.
    fn end_trace(&mut self, first: usize, alone: Option<u32>) {
        self.traces.push(alone.unwrap_or(OUTSIDE));
        let own = if alone.is_some() { &self.rows[first..=first] } else { &self.rows[first..] };
        self.any_outside |= own.contains(&OUTSIDE);
        self.ends = own.iter().filter(|&&at| at != OUTSIDE).fold(self.ends, |ends, &at| Some(with(ends, at)));
    }
}

fn with(ends: Option<(u32, u32)>, at: u32) -> (u32, u32) {
    ends.map_or((at, at), |(first, last)| (first.min(at), last.max(at)))
}

impl Chosen {
    /// The rows set in `rows` that begin in one of `intervals`. `traces` are those of the frame. Errors: `Data`.
    pub fn of(frame: &Frame, traces: &FrameTraces<'_>, rows: &BooleanBuffer, intervals: &Intervals) -> Result<Self> {
        let offsets = frame.ints(Column::StartOffset)?.values();
        let (length, count) = (rows.len(), rows.count_set_bits());
        let (mut finder, mut found) = (intervals.finder(), OfTraces::with_capacity(count, traces.count()));
        let rows: Vec<u32> = if count == length {
            for (start, rows) in traces.iter() {
                let (first, alone) = (found.rows.len(), finder.add_all(start as u64, &offsets[rows], &mut found.rows));
                found.end_trace(first, alone);
            }
            (0..length as u32).collect()
        } else {
            let rows: Vec<u32> = rows.set_indices().map(|row| row as u32).collect();
            let mut left = &rows[..];
            for (start, of_trace) in traces.iter() {
                let (here, rest) = left.split_at(left.iter().take_while(|&&row| (row as usize) < of_trace.end).count());
                left = rest;
                let time = |row: u32| (start as u64).wrapping_add(offsets[row as usize] as u64);
                let first = found.rows.len();
                found.rows.extend(here.iter().map(|&row| finder.find(time(row)).unwrap_or(OUTSIDE)));
                let is_alone = |at: &u32| *at != OUTSIDE && found.rows[first..].iter().all(|other| other == at);
                let alone = found.rows.get(first).copied().filter(is_alone);
                found.end_trace(first, alone);
            }
            rows
        };
        let OfTraces { rows: found, traces, ends, any_outside } = found;
        let mut chosen = Self { rows, intervals: found, length, ends, by_trace: Some(traces) };
        if any_outside {
            chosen.by_trace = None;
            let mut inside = chosen.intervals.iter().map(|&at| at != OUTSIDE);
            chosen.rows.retain(|_| inside.next().unwrap_or(false));
            chosen.intervals.retain(|&at| at != OUTSIDE);
        }
        Ok(chosen)
    }

    /// Rows of a frame of `length` rows, which are in these intervals.
    fn new(rows: Vec<u32>, intervals: Vec<u32>, length: usize) -> Self {
        let ends = intervals.iter().fold(None, |ends, &at| Some(with(ends, at)));
        Self { rows, intervals, length, ends, by_trace: None }
    }

    /// All rows of a frame, which are in these intervals.
    #[cfg(test)]
    pub fn all_in(intervals: Vec<u32>) -> Self {
        let length = intervals.len();
        Self::new((0..length as u32).collect(), intervals, length)
    }

    /// The same where it is known which traces, of a frame whose rows are all chosen, are in one interval.
    #[cfg(test)]
    pub fn with_traces(self, traces: &FrameTraces<'_>) -> Self {
        let interval = |rows: Range<usize>| {
            let first = self.intervals[rows.start];
            if self.intervals[rows].iter().all(|&at| at == first) { first } else { OUTSIDE }
        };
        let by_trace = traces.iter().map(|(_, rows)| interval(rows)).collect();
        Self { by_trace: Some(by_trace), ..self }
    }

    /// The first interval that has a row, and how many there are from it to the last that has one.
    pub fn range(&self) -> (u32, usize) {
        self.ends.map_or((0, 0), |(first, last)| (first, (last - first) as usize + 1))
    }

    /// The same in a frame that has no other rows.
    pub fn alone(&self) -> Self {
        let length = self.rows.len();
        Self { rows: (0..length as u32).collect(), intervals: self.intervals.clone(), length, ends: self.ends, by_trace: None }
    }

    /// A bit for each row of the frame, set for the chosen ones.
    pub fn bits(&self) -> BooleanBuffer {
        let mut bits = vec![false; self.length];
        self.rows.iter().for_each(|&row| bits[row as usize] = true);
        bits.into()
    }

    /// Those for which `keep` says so, with what `beside` has of them.
    fn having<T: Copy>(&self, keep: impl Fn(usize) -> bool, beside: &[T]) -> (Self, Vec<T>) {
        let kept: Vec<usize> = (0..self.rows.len()).filter(|&at| keep(at)).collect();
        let rows = kept.iter().map(|&at| self.rows[at]).collect();
        let intervals = kept.iter().map(|&at| self.intervals[at]).collect();
        (Self::new(rows, intervals, self.length), kept.iter().map(|&at| beside[at]).collect())
    }

    /// The traces of the chosen rows. `traces` are those of the frame. Cost: a look at each row, of all rows at each trace.
    pub fn traces<'a>(&'a self, traces: &'a FrameTraces<'_>) -> impl Iterator<Item = ChosenTrace> + 'a {
        let mut from = 0;
        let of_trace = move |(at, (start, rows)): (usize, (i64, Range<usize>))| {
            let count = if self.is_all() { rows.len() } else { self.rows[from..].iter().take_while(|&&row| (row as usize) < rows.end).count() };
            from += count;
            let interval = self.by_trace.as_ref().map(|by_trace| by_trace[at]).filter(|&interval| interval != OUTSIDE);
            (count > 0).then_some(ChosenTrace { start, spans: from - count..from, interval })
        };
        traces.iter().enumerate().filter_map(of_trace)
    }

    /// Whether all rows of the frame are chosen.
    fn is_all(&self) -> bool {
        self.rows.len() == self.length
    }

    /// The codes of `vector` in the chosen rows. Cost: where few rows are chosen, of these only.
    pub fn codes(&self, vector: &Vector) -> Result<Codes> {
        const FEW: usize = 4;
        if self.is_all() {
            return Ok(Codes::of(vector));
        }
        if self.rows.len() * FEW < self.length {
            return Ok(Codes::of(&vector.take(&UInt32Array::from(self.rows.clone()))?));
        }
        let Codes { rows, values } = Codes::of(vector);
        Ok(Codes { rows: self.rows.iter().map(|&row| rows[row as usize]).collect(), values })
    }
}

/// How partial series of a row group serve other queries.
#[derive(Debug, Clone)]
pub struct Reuse {
    /// What they depend on beside the row group, the pipeline and the intervals.
    pub shape: Arc<str>,
    /// Whether they depend on where the window cuts the row group too: what lies outside must not be looked at.
    pub by_window: bool,
}

/// Adds the chosen spans of frames to series.
#[derive(Debug)]
pub struct Observer {
    function: MetricsFunction,
    intervals: Intervals,
    detail: Detail,
    picker: Option<Picker>,
    partial: Partial,
    distinct: Distinct,
}

impl Observer {
    /// Nothing observed yet of the spans that `pipeline` leaves; `memory` is to hold the series.
    pub fn new(pipeline: &Pipeline, function: MetricsFunction, intervals: Intervals, detail: &Detail, memory: Reservation) -> Self {
        let partial = Partial::new(detail.cell_kind(&function), intervals.count(), memory);
        let detail = detail.for_function(&function);
        let picker = (detail.exemplars > 0).then(|| Picker::new(pipeline, &function, &intervals, &detail));
        Self { function, intervals, detail, picker, partial, distinct: Distinct::default() }
    }

    /// Nothing observed yet of the same spans in other intervals; `memory` is to hold the series. Exemplars come from the same stretches of time.
    pub fn in_intervals(&self, intervals: Intervals, memory: Reservation) -> Self {
        let partial = Partial::new(self.detail.cell_kind(&self.function), intervals.count(), memory);
        let picker = self.picker.as_ref().map(|picker| picker.in_intervals(&intervals));
        Self { function: self.function.clone(), intervals, detail: self.detail.clone(), picker, partial, distinct: Distinct::default() }
    }

    /// What of these spans other queries may take over; None for nothing.
    pub fn reuse(&self) -> Option<Reuse> {
        let stretches = self.picker.as_ref().map(Picker::stretches);
        if stretches.is_some_and(|stretches| !stretches.on_grid(&self.intervals)) {
            return None;
        }
        // Values of an attribute are told apart while they are few: outside of the window they must not count. Nor must a span outside of it
        // be the exemplar of a stretch that begins or ends inside.
        let counts_outside = matches!(self.function, MetricsFunction::Compare { .. });
        let by_window = counts_outside || stretches.is_some_and(|stretches| !stretches.are_whole(&self.intervals));
        let stretch = stretches.map_or(0, Stretches::length);
        Some(Reuse { shape: format!("{} | {:?} | {stretch}", self.function, self.detail).into(), by_window })
    }

    /// Whether there are no series since they were last taken.
    pub fn is_empty(&self) -> bool {
        self.partial.is_empty()
    }

    /// What was observed since it was last taken. Errors: `Internal`.
    pub fn take_partial(&mut self) -> Result<Partial> {
        if matches!(self.function, MetricsFunction::Compare { .. }) {
            compare::join_values((&mut self.partial, &self.distinct))?;
        }
        Ok(self.partial.take())
    }

    /// Adds partial series of the same `compare()` in the same intervals. Errors: `Exhausted` for too many series, `Internal` for another batch.
    pub fn merge_compared(&mut self, series: &RecordBatch) -> Result<()> {
        compare::merge((&mut self.partial, &mut self.distinct), series)
    }

    /// The columns that observing reads: start times, the grouping, values, and what weights and exemplars are told by. Of spans that are
    /// compared only what chooses them.
    pub fn needs(&self, source: &SourceRef) -> ColumnNeeds {
        let mut needs = match &self.function {
            MetricsFunction::Compare { selection, .. } => compare::needs(selection, source),
            _ => ColumnNeeds::default(),
        };
        FrameTraces::add_needs(&mut needs, source);
        needs.add(Column::StartOffset);
        self.function.by().iter().chain(value_field(&self.function)).for_each(|field| needs.add_field(field, source));
        if let Some(extrapolation) = &self.detail.extrapolation {
            weights::add_needs(&mut needs, extrapolation, source);
        }
        if let Some(picker) = &self.picker {
            picker.add_needs(&mut needs, source);
        }
        needs
    }

    /// The spans of `frame`, a whole row group, in `rows` that are to be compared, if that is what is asked; what [`Observer::needs`] names is
    /// loaded. They are then loaded themselves, and [`compare`](Self::compare)d instead of [`observe`](Self::observe)d. Errors: `Data`,
    /// `Exhausted`.
    pub fn compared(&self, frame: &Frame, rows: &BooleanBuffer) -> Result<Option<Compared>> {
        match &self.function {
            MetricsFunction::Compare { selection, window, .. } => {
                let chosen = Chosen::of(frame, &FrameTraces::of(frame)?, rows, &self.intervals)?;
                Compared::of((frame, rows, chosen), (selection, *window), &self.distinct).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Adds the spans of `frame`, a whole row group, in `rows`; what [`Observer::needs`] names is loaded. Errors: `Exhausted` for too many
    /// series, `Data`.
    pub fn observe(&mut self, frame: &Frame, rows: &BooleanBuffer) -> Result<()> {
        debug_assert!(!matches!(self.function, MetricsFunction::Compare { .. }), "spans that are to be compared");
        let traces = FrameTraces::of(frame)?;
        let chosen = Chosen::of(frame, &traces, rows, &self.intervals)?;
        if chosen.rows.is_empty() {
            return Ok(());
        }
        frame.hold(chosen.rows.len() * CHOSEN_BYTES)?;
        let groups = self.groups(frame, &chosen)?;
        let count = groups.labels.len();
        let table = (count * self.intervals.count()).min(CELLS_MAX) * CELL_BYTES;
        frame.hold(count * GROUP_BYTES + table).map_err(|error| too_many_series(error, count))?;
        let numbers = match value_field(&self.function) {
            Some(field) => Some(Numbers::of(frame.vector_of_spans(field)?)),
            None => None,
        };
        let grid = if numbers.is_none() { Grid::of(&chosen, &groups.rows, count) } else { None };
        let places = match (&self.detail.extrapolation, &numbers) {
            (Some(extrapolation), numbers) => self.add_weighted((frame, &traces), &chosen, &groups, numbers.as_ref(), &extrapolation.clone())?,
            (None, None) => self.count(&chosen, &groups, grid.as_ref())?,
            (None, Some(numbers)) => self.add_values(&chosen, &groups, numbers)?,
        };
        match &self.picker {
            Some(picker) => {
                let grouped = Grouped { chosen: &chosen, groups: &groups.rows, places: &places, grid };
                picker.pick(&mut self.partial, (frame, &traces), &grouped, numbers.as_ref())
            }
            None => Ok(()),
        }
    }

    /// Adds spans of `frame` that are compared and loaded; of sampled ones those of each weight in turn, mostly one. Errors: as
    /// [`observe`](Self::observe).
    pub fn compare(&mut self, frame: &Frame, compared: &Compared) -> Result<()> {
        if compared.chosen.rows.is_empty() {
            return Ok(());
        }
        let (spans, chosen) = compared.spans(frame);
        spans.hold(spans.len() * compare::SLOT_BYTES)?;
        match &self.detail.extrapolation {
            None => compare::observe((&mut self.partial, &mut self.distinct), spans, chosen, &compared.selected, Weight::ONE)?,
            Some(extrapolation) => {
                let weights = weights::weights_of(frame, &compared.chosen.rows, extrapolation)?;
                let mut distinct = weights.clone();
                distinct.sort_unstable();
                distinct.dedup();
                for weight in distinct {
                    let (chosen, selected) = chosen.having(|at| weights[at] == weight, &compared.selected);
                    compare::observe((&mut self.partial, &mut self.distinct), spans, &chosen, &selected, weight)?;
                }
            }
        }
        match &self.picker {
            Some(picker) => picker.pick_compared(&mut self.partial, frame, compared),
            None => Ok(()),
        }
    }

    /// The group of each chosen row.
    fn groups(&self, frame: &Frame, chosen: &Chosen) -> Result<Groups> {
        let by = self.function.by();
        let Some((first, others)) = by.split_first() else {
            let name = vec![key_value("__name__", &Value::from(self.function.name()))];
            return Ok(Groups { rows: vec![0; chosen.rows.len()], labels: vec![name] });
        };
        let codes = |field: &FieldRef| -> Result<Codes> {
            let Codes { rows, values } = chosen.codes(&grouping_vector(frame, field)?)?;
            // Arrays count as missing; groups of the same labels have one series.
            Ok(Codes { rows, values: values.into_iter().map(|value| if matches!(value, Value::Array(_)) { Value::Nil } else { value }).collect() })
        };
        let Codes { mut rows, values } = codes(first)?;
        let mut groups: Vec<Vec<Value>> = values.into_iter().map(|value| vec![value]).collect();
        for field in others {
            let next = codes(field)?;
            let mut known: HashMap<(u32, u32), u32> = HashMap::new();
            let mut combined: Vec<Vec<Value>> = Vec::new();
            let (mut last, mut last_code) = ((u32::MAX, u32::MAX), 0);
            for (row, &code) in rows.iter_mut().zip(&next.rows) {
                if last != (*row, code) {
                    last = (*row, code);
                    last_code = *known.entry(last).or_insert_with(|| {
                        let mut values = groups[last.0 as usize].clone();
                        values.push(next.values[code as usize].clone());
                        combined.push(values);
                        combined.len() as u32 - 1
                    });
                }
                *row = last_code;
            }
            groups = combined;
        }
        Ok(Groups { rows, labels: groups.iter().map(|values| labels_of(by, values)).collect() })
    }

    /// Counts spans, by the cells of `grid` if there is one.
    fn count(&mut self, chosen: &Chosen, groups: &Groups, grid: Option<&Grid>) -> Result<Places> {
        let mut places = vec![None; groups.labels.len()];
        let Some(grid) = grid else {
            for (&group, &at) in groups.rows.iter().zip(&chosen.intervals) {
                let place = self.place(&mut places, groups, group)?;
                if let Cells::Counts(cells) = self.partial.cells(place) {
                    cells[at as usize] += 1;
                }
            }
            return Ok(places);
        };
        for (group, counts) in grid.counts().chunks_exact(grid.width()).enumerate() {
            if counts.iter().any(|&count| count > 0) {
                let place = self.place(&mut places, groups, group as u32)?;
                if let Cells::Counts(cells) = self.partial.cells(place) {
                    cells[grid.first()..].iter_mut().zip(counts).for_each(|(cell, count)| *cell += count);
                }
            }
        }
        Ok(places)
    }

    fn add_values(&mut self, chosen: &Chosen, groups: &Groups, numbers: &Numbers) -> Result<Places> {
        let mut places = vec![None; groups.labels.len()];
        let mut grown = 0;
        for ((&group, &at), &row) in groups.rows.iter().zip(&chosen.intervals).zip(&chosen.rows) {
            let Some(number) = numbers.get(row as usize) else { continue };
            let place = self.place(&mut places, groups, group)?;
            match (self.partial.cells(place), number) {
                (Cells::Numbers(cells), number) => cells[at as usize].add(number.as_f64()),
                (Cells::Buckets(cells), Number::Int(value)) => {
                    if let Some(bucket) = bucket_of(value) {
                        let cell = cells[at as usize].get_or_insert_with(|| {
                            grown += BUCKETS_BYTES;
                            Box::new([0; BUCKETS])
                        });
                        cell[bucket] += 1;
                    }
                }
                (Cells::Sketches(cells), number) => {
                    if let Some(bucket) = sketch::key_of(number.as_f64()) {
                        let count = cells[at as usize].entry(bucket).or_default();
                        grown += if *count == 0 { sparse_bytes::<u64>() } else { 0 };
                        *count += 1;
                    }
                }
                _ => {}
            }
        }
        self.partial.hold(grown)?;
        Ok(places)
    }

    fn add_weighted(
        &mut self,
        (frame, traces): (&Frame, &FrameTraces<'_>),
        chosen: &Chosen,
        groups: &Groups,
        numbers: Option<&Numbers>,
        extrapolation: &Extrapolation,
    ) -> Result<Places> {
        let mut places = vec![None; groups.labels.len()];
        let weights = weights::weights_of(frame, &chosen.rows, extrapolation)?;
        let by_bucket = bucket_by(&self.detail, &self.function);
        let mut trace = TraceCells::default();
        for ChosenTrace { spans, .. } in chosen.traces(traces) {
            for (at, &weight) in spans.clone().zip(&weights[spans]) {
                let number = match numbers.map(|numbers| numbers.get(chosen.rows[at] as usize)) {
                    None => Number::Int(0),
                    Some(Some(number)) => number,
                    Some(None) => continue,
                };
                if let Some(bucket) = by_bucket.map_or(Some(0), |bucket_of| bucket_of(number)) {
                    let place = self.place(&mut places, groups, groups.rows[at])?;
                    trace.add((place, chosen.intervals[at], bucket), weight, number.as_f64());
                }
            }
            trace.flush(&mut self.partial)?;
        }
        Ok(places)
    }

    /// The series of a group of this frame.
    fn place(&mut self, places: &mut [Option<usize>], groups: &Groups, group: u32) -> Result<usize> {
        if let Some(place) = places[group as usize] {
            return Ok(place);
        }
        let place = self.partial.place(groups.labels[group as usize].clone())?;
        places[group as usize] = Some(place);
        Ok(place)
    }
}

/// The place of each group's series, for groups that have any spans.
type Places = Vec<Option<usize>>;

/// A group for each chosen row, and the labels of each group.
struct Groups {
    rows: Vec<u32>,
    labels: Vec<Labels>,
}

/// The vector that `by (field)` groups by: a span without events or links has an empty name or id of one.
fn grouping_vector(frame: &Frame, field: &FieldRef) -> Result<Vector> {
    let vector = frame.vector_of_spans(field)?;
    Ok(match field {
        FieldRef::Intrinsic(Intrinsic::EventName | Intrinsic::LinkTraceId | Intrinsic::LinkSpanId) => {
            Vector::First(vec![vector, Vector::Const(Value::from(""), frame.len())])
        }
        _ => vector,
    })
}

/// The labels of a group: missing values are left out; when all are missing the first stays, without a value.
fn labels_of(by: &[FieldRef], values: &[Value]) -> Labels {
    let present = by.iter().zip(values).filter(|(_, value)| **value != Value::Nil);
    let present: Labels = present.map(|(field, value)| key_value(&field.to_string(), value)).collect();
    if present.is_empty() { vec![KeyValue { key: by[0].to_string(), ..KeyValue::default() }] } else { present }
}

/// A number taken from a span.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub enum Number {
    Int(i64),
    Float(f64),
}

impl Number {
    /// The nearest double.
    #[inline]
    pub fn as_f64(self) -> f64 {
        match self {
            Self::Int(value) => value as f64,
            Self::Float(value) => value,
        }
    }
}

/// The numbers of a field; everything else is missing.
#[derive(Debug)]
pub struct Numbers(Vector);

impl Numbers {
    /// Those of `vector`.
    pub fn of(vector: Vector) -> Self {
        Self(vector)
    }

    /// The number of `row`, None where there is none.
    #[inline]
    pub fn get(&self, row: usize) -> Option<Number> {
        match &self.0 {
            Vector::Duration(values) | Vector::Typed(Typed::Int(values)) => values.is_valid(row).then(|| Number::Int(values.value(row))),
            Vector::Typed(Typed::Double(values)) => values.is_valid(row).then(|| Number::Float(values.value(row))),
            other => match other.get(row) {
                Value::Int(value) | Value::Duration(value) => Some(Number::Int(value)),
                Value::Float(value) => Some(Number::Float(value)),
                _ => None,
            },
        }
    }
}
