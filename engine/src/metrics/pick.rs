//! The spans of a frame that may become exemplars: for each slot the one whose trace has the smallest hash.

use hashbrown::HashMap;

use super::{
    compare::{Compared, META_TYPE, META_TYPES},
    detail::Detail,
    exemplars::{Candidate, Stretches, class_of, hash_in, hash_of_start},
    intervals::Intervals,
    observe::{Chosen, Number, Numbers, value_field},
    partial::{Labels, Partial},
    weighted::{BucketOf, bucket_by},
};
use crate::{
    error::Result,
    exec::{
        eval::{ColumnNeeds, Frame},
        shown::shown_fields,
        source::SourceRef,
    },
    plan::matches::key_value,
    spans::{TraceId, schema::Column, value::Value},
    traceql::{FieldRef, Intrinsic, MetricsFunction, Pipeline},
};

/// Slots of a frame are kept in one table up to this size.
const TABLE_MAX: usize = 1 << 16;

/// Picks spans for one query.
#[derive(Debug)]
pub struct Picker {
    stretches: Stretches,
    /// What exemplars are told by, beside what their series is told by.
    fields: Vec<FieldRef>,
    /// The bucket of a value, for functions that count by buckets: what has none does not count.
    bucket_of: Option<BucketOf>,
}

impl Picker {
    /// A picker of the spans that `pipeline` leaves, for `detail.exemplars` exemplars.
    pub fn new(pipeline: &Pipeline, function: &MetricsFunction, intervals: &Intervals, detail: &Detail) -> Self {
        let told = |field: &FieldRef| function.by().contains(field) || value_field(function) == Some(field);
        let fields = shown_fields(pipeline).into_iter().map(|shown| shown.field).filter(|field| !told(field)).collect();
        Self { stretches: Stretches::of(intervals, detail.exemplars), fields, bucket_of: bucket_by(detail, function) }
    }

    /// The same for spans in other intervals.
    pub fn in_intervals(&self, intervals: &Intervals) -> Self {
        Self { stretches: self.stretches.in_intervals(intervals), fields: self.fields.clone(), bucket_of: self.bucket_of }
    }

    /// The stretches of time that spans are picked from.
    pub fn stretches(&self) -> &Stretches {
        &self.stretches
    }

    /// Adds the columns that [`Picker::pick`] reads beside those of the function.
    pub fn add_needs(&self, needs: &mut ColumnNeeds, source: &SourceRef) {
        self.fields.iter().for_each(|field| needs.add_field(field, source));
    }

    /// Offers the best of the chosen spans to `partial`. `groups` tells the group of each, `places` the place of each group's series, if it
    /// has one; `values` are those that the function takes. Cost: some 3 ns a span.
    pub fn pick(
        &self,
        partial: &mut Partial,
        frame: &Frame,
        chosen: &Chosen,
        (groups, places): (&[u32], &[Option<usize>]),
        values: Option<&Numbers>,
    ) -> Result<()> {
        let classes = values.map(|values| Classes::of(chosen, values, self.bucket_of));
        let (least, count) = classes.as_ref().map_or((0, 2), |classes| (classes.least, classes.count));
        // The rows of a frame are close in time: few of the query's stretches have any.
        let (interval, width) = chosen.range();
        let first = self.stretches.of_interval(interval);
        let stretches = (self.stretches.of_interval(interval + width.saturating_sub(1) as u32) - first) as usize + 1;
        // What makes each slot of a series prefer other traces.
        let salts: Vec<u64> = (0..stretches * count).map(|at| hash_in(0, first + (at / count) as u64, least + (at % count) as i32)).collect();
        let ceiling = partial.exemplars().ceiling();
        let slots = chosen.by_run(frame, |interval, trace| ((self.stretches.of_interval(interval) - first) as usize * count, trace))?;
        let mut winners = Winners::new(places.len() * salts.len());
        winners.hear(slots.zip(groups).enumerate().filter_map(|(at, ((slot, trace), &group))| {
            let slot = match &classes {
                None => slot + (trace & 1) as usize,
                Some(classes) => slot + (classes.rows[at]? - least) as usize,
            };
            let hash = trace ^ salts[slot];
            (hash <= ceiling).then_some((group as usize * salts.len() + slot, hash, at as u32))
        }));
        let mut cursor = frame.source().traces().cursor();
        for (index, hash, at) in winners.by_row() {
            let (group, slot) = (index / salts.len(), index % salts.len());
            let Some(place) = places[group] else { continue };
            let slot = (place as u32, first + (slot / count) as u64, least + (slot % count) as i32);
            if partial.exemplars().may_want(slot, hash) {
                let trace = cursor.trace_at(frame.first_row() + chosen.rows[at as usize] as usize).map_or(0, |(id, _)| id);
                let candidate = self.candidate((frame, chosen), at as usize, (hash, TraceId(trace.to_be_bytes())), values)?;
                partial.offer(slot, candidate)?;
            }
        }
        Ok(())
    }

    /// The same for spans of `frame` that were `compared`, by name and whether a span is selected: these series add up to all spans of both
    /// groups.
    pub fn pick_compared(&self, partial: &mut Partial, frame: &Frame, compared: &Compared) -> Result<()> {
        let name = FieldRef::Intrinsic(Intrinsic::Name);
        let (spans, within) = compared.spans(frame);
        let codes = within.codes(&spans.vector_of_spans(&name)?)?;
        let groups: Vec<u32> = codes.rows.iter().zip(&compared.selected).map(|(&code, &selected)| code * 2 + u32::from(selected)).collect();
        let labels = |value: &Value, meta: &str| vec![key_value(META_TYPE, &Value::from(meta)), key_value(&name.to_string(), value)];
        let places: Vec<_> = codes.values.iter().flat_map(|value| META_TYPES.map(|meta| partial.find(labels(value, meta)))).collect();
        self.pick(partial, frame, &compared.chosen, (&groups, &places), None)
    }

    /// The chosen span `at`, which is one of `trace`.
    fn candidate(&self, (frame, chosen): (&Frame, &Chosen), at: usize, (hash, trace): (u64, TraceId), values: Option<&Numbers>) -> Result<Candidate> {
        let row = chosen.rows[at] as usize;
        let mut labels = Labels::new();
        for field in &self.fields {
            let value = frame.vector_of_spans(field)?.get(row);
            if value != Value::Nil {
                labels.push(key_value(&field.to_string(), &value));
            }
        }
        let start = frame.ints(Column::TraceStart)?.value(row) as u64;
        Ok(Candidate {
            hash,
            interval: chosen.intervals[at],
            trace,
            start_unix_nano: start.wrapping_add(frame.ints(Column::StartOffset)?.value(row) as u64),
            value: values.and_then(|values| values.get(row)).map_or(f64::NAN, |number| number.as_f64()),
            labels,
        })
    }
}

impl Chosen {
    /// For each what `of_run` makes of its interval and the hash of its trace. Spans of one trace and interval mostly lie together: it is asked
    /// once for them.
    fn by_run<T: Copy>(&self, frame: &Frame, of_run: impl Fn(u32, u64) -> T) -> Result<impl Iterator<Item = T>> {
        let starts = frame.ints(Column::TraceStart)?.values();
        let mut last = None;
        Ok(self.rows.iter().zip(&self.intervals).map(move |(&row, &interval)| {
            let run = (starts[row as usize], interval);
            match last {
                Some((known, made)) if known == run => made,
                _ => last.insert((run, of_run(interval, hash_of_start(run.0)))).1,
            }
        }))
    }
}

/// The classes of the chosen spans' values; None where a span has no value.
struct Classes {
    rows: Vec<Option<i32>>,
    least: i32,
    count: usize,
}

impl Classes {
    fn of(chosen: &Chosen, values: &Numbers, bucket_of: Option<BucketOf>) -> Self {
        let counts = |number: &Number| bucket_of.is_none_or(|bucket_of| bucket_of(*number).is_some());
        let class = |row: &u32| values.get(*row as usize).filter(counts).map(|number| class_of(number.as_f64()));
        let rows: Vec<Option<i32>> = chosen.rows.iter().map(class).collect();
        let least = rows.iter().flatten().min().copied().unwrap_or(0);
        let greatest = rows.iter().flatten().max().copied().unwrap_or(0);
        Self { rows, least, count: (greatest - least) as usize + 1 }
    }
}

/// The smallest hash of each slot, and where it is from.
enum Winners {
    Table(Vec<(u64, u32)>),
    Map(HashMap<usize, (u64, u32)>),
}

impl Winners {
    fn new(slots: usize) -> Self {
        if slots <= TABLE_MAX { Self::Table(vec![(u64::MAX, 0); slots]) } else { Self::Map(HashMap::new()) }
    }

    /// Takes what is smallest of `offers`: slots, hashes, and where they are from.
    fn hear(&mut self, offers: impl Iterator<Item = (usize, u64, u32)>) {
        let keep = |known: &mut (u64, u32), hash: u64, at: u32| {
            if hash < known.0 {
                *known = (hash, at);
            }
        };
        match self {
            Self::Table(slots) => offers.for_each(|(index, hash, at)| keep(&mut slots[index], hash, at)),
            Self::Map(slots) => offers.for_each(|(index, hash, at)| keep(slots.entry(index).or_insert((u64::MAX, 0)), hash, at)),
        }
    }

    /// The slots that have any, in the order of where they are from.
    fn by_row(self) -> Vec<(usize, u64, u32)> {
        let list = |(index, (hash, at)): (usize, (u64, u32))| (hash < u64::MAX).then_some((index, hash, at));
        let mut all: Vec<_> = match self {
            Self::Table(slots) => slots.into_iter().enumerate().filter_map(list).collect(),
            Self::Map(slots) => slots.into_iter().filter_map(list).collect(),
        };
        all.sort_unstable_by_key(|&(index, _, at)| (at, index));
        all
    }
}
