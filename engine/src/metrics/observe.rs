//! The spans of a frame into series under way, column by column.

use arrow::{
    array::{Array, UInt32Array},
    buffer::BooleanBuffer,
    record_batch::RecordBatch,
};

use hashbrown::HashMap;
use skein_proto::otlp::common::v1::KeyValue;

use super::{
    cells::{BUCKETS, BUCKETS_BYTES, CellKind, Cells, bucket_of},
    codes::Codes,
    compare::{self, Distinct},
    intervals::Intervals,
    partial::{Labels, Partial, too_many_series},
};
use crate::{
    error::Result,
    exec::eval::{ColumnNeeds, Frame, vector::Vector},
    exec::memory::Reservation,
    exec::source::SourceRef,
    plan::matches::key_value,
    spans::{read::Typed, schema::Column, value::Value},
    traceql::{FieldRef, Intrinsic, MetricsFunction, OverTime},
};

/// Counters of rows by group and interval are kept in one table up to this size.
const TABLE_MAX: usize = 1 << 20;

/// Bytes of a chosen row: its place, interval, group, and the code of a value.
pub(super) const CHOSEN_BYTES: usize = 4 * size_of::<u32>();

/// Bytes of the labels of a group of a frame, roughly.
const GROUP_BYTES: usize = 200;

/// What a function keeps of the spans.
pub fn cell_kind(function: &MetricsFunction) -> CellKind {
    match function {
        MetricsFunction::Rate { .. } | MetricsFunction::CountOverTime { .. } | MetricsFunction::Compare { .. } => CellKind::Counts,
        MetricsFunction::OverTime { function: OverTime::Histogram, .. } | MetricsFunction::QuantileOverTime { .. } => CellKind::Buckets,
        MetricsFunction::OverTime { .. } => CellKind::Numbers,
    }
}

/// The value that a function takes from each span.
pub fn value_field(function: &MetricsFunction) -> Option<&FieldRef> {
    match function {
        MetricsFunction::OverTime { field, .. } | MetricsFunction::QuantileOverTime { field, .. } => Some(field),
        _ => None,
    }
}

/// The columns that observing reads: start times, the grouping, and values.
pub fn needs(function: &MetricsFunction, source: &SourceRef) -> ColumnNeeds {
    let mut needs = ColumnNeeds::default();
    needs.add(Column::TraceStart);
    needs.add(Column::StartOffset);
    function.by().iter().chain(value_field(function)).for_each(|field| needs.add_field(field, source));
    needs
}

/// Stands for the interval of rows that are in none.
const OUTSIDE: u32 = u32::MAX;

/// The chosen rows of a frame, with the interval of each; rows outside of all intervals are left out.
pub struct Chosen {
    /// Rows, ascending.
    pub rows: Vec<u32>,
    /// The interval of each.
    pub intervals: Vec<u32>,
    length: usize,
}

impl Chosen {
    /// The rows set in `rows` that begin in one of `intervals`. Errors: `Data`.
    pub fn of(frame: &Frame, rows: &BooleanBuffer, intervals: &Intervals) -> Result<Self> {
        let (starts, offsets) = (frame.ints(Column::TraceStart)?.values(), frame.ints(Column::StartOffset)?.values());
        let (length, count) = (rows.len(), rows.count_set_bits());
        let mut finder = intervals.finder();
        let mut find = |start: i64, offset: i64| finder.find((start as u64).wrapping_add(offset as u64)).unwrap_or(OUTSIDE);
        let mut chosen = if count == length {
            let intervals = starts.iter().zip(offsets).map(|(&start, &offset)| find(start, offset)).collect();
            Self { rows: (0..length as u32).collect(), intervals, length }
        } else {
            let rows: Vec<u32> = rows.set_indices().map(|row| row as u32).collect();
            Self { intervals: rows.iter().map(|&row| find(starts[row as usize], offsets[row as usize])).collect(), rows, length }
        };
        if chosen.intervals.contains(&OUTSIDE) {
            let mut inside = chosen.intervals.iter().map(|&at| at != OUTSIDE);
            chosen.rows.retain(|_| inside.next().unwrap_or(false));
            chosen.intervals.retain(|&at| at != OUTSIDE);
        }
        Ok(chosen)
    }

    /// The first interval that has a row, and how many there are from it to the last that has one.
    pub fn range(&self) -> (u32, usize) {
        let least = self.intervals.iter().copied().min().unwrap_or(0);
        (least, self.intervals.iter().copied().max().map_or(0, |most| (most - least) as usize + 1))
    }

    /// The codes of `vector` in the chosen rows. Cost: where few rows are chosen, of these only.
    pub fn codes(&self, vector: &Vector) -> Result<Codes> {
        const FEW: usize = 4;
        if self.rows.len() == self.length {
            return Ok(Codes::of(vector));
        }
        if self.rows.len() * FEW < self.length {
            return Ok(Codes::of(&vector.take(&UInt32Array::from(self.rows.clone()))?));
        }
        let Codes { rows, values } = Codes::of(vector);
        Ok(Codes { rows: self.rows.iter().map(|&row| rows[row as usize]).collect(), values })
    }
}

/// Adds the chosen spans of frames to series.
#[derive(Debug)]
pub struct Observer {
    function: MetricsFunction,
    intervals: Intervals,
    partial: Partial,
    distinct: Distinct,
}

impl Observer {
    /// Nothing observed yet; `memory` is to hold the series.
    pub fn new(function: MetricsFunction, intervals: Intervals, memory: Reservation) -> Self {
        let partial = Partial::new(cell_kind(&function), intervals.count(), memory);
        Self { function, intervals, partial, distinct: Distinct::default() }
    }

    /// What was observed.
    pub fn into_partial(self) -> Partial {
        self.partial
    }

    /// Adds partial series of the same function and intervals. Errors: `Exhausted` for too many series, `Internal` for another batch.
    pub fn merge(&mut self, series: &RecordBatch) -> Result<()> {
        match self.function {
            MetricsFunction::Compare { .. } => compare::merge((&mut self.partial, &mut self.distinct), series),
            _ => self.partial.merge_batch(series),
        }
    }

    /// Adds the spans of `frame` in `rows`; what [`needs`] names is loaded. Errors: `Exhausted` for too many series, `Data`.
    pub fn observe(&mut self, frame: &Frame, rows: &BooleanBuffer) -> Result<()> {
        let chosen = Chosen::of(frame, rows, &self.intervals)?;
        if chosen.rows.is_empty() {
            return Ok(());
        }
        frame.hold(chosen.rows.len() * CHOSEN_BYTES)?;
        if let MetricsFunction::Compare { selection, window, .. } = &self.function {
            let selected = compare::selected(frame, rows, &chosen, selection, *window)?;
            return compare::observe((&mut self.partial, &mut self.distinct), frame, &chosen, &selected);
        }
        let groups = self.groups(frame, &chosen)?;
        let count = groups.labels.len();
        let table = (count * self.intervals.count()).min(TABLE_MAX) * size_of::<u64>();
        frame.hold(count * GROUP_BYTES + table).map_err(|error| too_many_series(error, count))?;
        match value_field(&self.function) {
            None => self.count(&chosen, groups),
            Some(field) => {
                let numbers = Numbers::of(frame.vector_of_spans(field)?);
                self.add_values(&chosen, groups, &numbers)
            }
        }
    }

    /// The group of each chosen row.
    fn groups(&self, frame: &Frame, chosen: &Chosen) -> Result<Groups> {
        let by = self.function.by();
        let Some((first, others)) = by.split_first() else {
            let name = vec![key_value("__name__", &Value::from(self.function.name()))];
            return Ok(Groups { rows: vec![0; chosen.rows.len()], labels: vec![name] });
        };
        let codes = |field: &FieldRef| chosen.codes(&grouping_vector(frame, field)?);
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

    fn count(&mut self, chosen: &Chosen, groups: Groups) -> Result<()> {
        let mut places = vec![None; groups.labels.len()];
        // The rows of a frame are close in time: few of the query's intervals have any.
        let (first, width) = chosen.range();
        if groups.labels.len() * width > TABLE_MAX {
            for (&group, &at) in groups.rows.iter().zip(&chosen.intervals) {
                let place = self.place(&mut places, &groups, group)?;
                if let Cells::Counts(cells) = self.partial.cells(place) {
                    cells[at as usize] += 1;
                }
            }
            return Ok(());
        }
        let mut table = vec![0u64; groups.labels.len() * width];
        for (&group, &at) in groups.rows.iter().zip(&chosen.intervals) {
            table[group as usize * width + (at - first) as usize] += 1;
        }
        for (group, counts) in table.chunks_exact(width).enumerate() {
            if counts.iter().any(|&count| count > 0) {
                let place = self.place(&mut places, &groups, group as u32)?;
                if let Cells::Counts(cells) = self.partial.cells(place) {
                    cells[first as usize..].iter_mut().zip(counts).for_each(|(cell, count)| *cell += count);
                }
            }
        }
        Ok(())
    }

    fn add_values(&mut self, chosen: &Chosen, groups: Groups, numbers: &Numbers) -> Result<()> {
        let (mut places, mut new_buckets) = (vec![None; groups.labels.len()], 0);
        for ((&group, &at), &row) in groups.rows.iter().zip(&chosen.intervals).zip(&chosen.rows) {
            let Some(number) = numbers.get(row as usize) else { continue };
            let place = self.place(&mut places, &groups, group)?;
            match (self.partial.cells(place), number) {
                (Cells::Numbers(cells), number) => cells[at as usize].add(number.as_f64()),
                (Cells::Buckets(cells), Number::Int(value)) => {
                    if let Some(bucket) = bucket_of(value) {
                        new_buckets += usize::from(cells[at as usize].is_none());
                        cells[at as usize].get_or_insert_with(|| Box::new([0; BUCKETS]))[bucket] += 1;
                    }
                }
                _ => {}
            }
        }
        self.partial.hold(new_buckets * BUCKETS_BYTES)
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
enum Number {
    Int(i64),
    Float(f64),
}

impl Number {
    fn as_f64(self) -> f64 {
        match self {
            Self::Int(value) => value as f64,
            Self::Float(value) => value,
        }
    }
}

/// The numbers of a field; everything else is missing.
struct Numbers(Vector);

impl Numbers {
    fn of(vector: Vector) -> Self {
        Self(vector)
    }

    #[inline]
    fn get(&self, row: usize) -> Option<Number> {
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
