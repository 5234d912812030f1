//! The spans of a frame that may become exemplars: for each slot the one whose trace has the smallest hash.

use std::{ops::Range, sync::Arc};

use hashbrown::HashMap;
use skein_proto::otlp::common::v1::KeyValue;

use super::{
    compare::{Compared, META_TYPE, META_TYPES},
    detail::Detail,
    exemplars::{Candidate, Stretches, class_of, hash_in, hash_of_start},
    grid::Grid,
    intervals::Intervals,
    observe::{Chosen, Number, Numbers, value_field},
    partial::Partial,
    traces::FrameTraces,
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
    spans::{schema::Column, value::Value},
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

    /// Offers the best of the chosen spans to `partial`. `traces` are those of the frame; `values` those that the function takes. Cost: of
    /// spans with values some 3 ns each, of others 1 ns where slots have many.
    pub fn pick(
        &self,
        partial: &mut Partial,
        (frame, traces): (&Frame, &FrameTraces<'_>),
        grouped: &Grouped<'_>,
        values: Option<&Numbers>,
    ) -> Result<()> {
        let chosen = grouped.chosen;
        let classes = values.map(|values| Classes::of(chosen, values, self.bucket_of));
        let slots = Slots::of(&self.stretches, chosen, classes.as_ref());
        let mut winners = Winners::new(grouped.places.len() * slots.salts.len());
        let offers = Offers { slots: &slots, grouped, traces: chosen.traces(traces).map(|(start, spans)| (hash_of_start(start), spans)).collect() };
        let ceiling = partial.exemplars().ceiling();
        match &classes {
            Some(classes) => offers.by_class(&mut winners, classes, ceiling),
            None => offers.by_trace(&mut winners, ceiling),
        }
        let mut labels = OwnLabels::of(&self.fields, frame);
        for (index, hash, at) in winners.by_row() {
            let (group, slot) = (index / slots.salts.len(), index % slots.salts.len());
            let Some(place) = grouped.places[group] else { continue };
            let (stretch, class) = slots.meaning(slot);
            let slot = (place as u32, stretch, class);
            if partial.exemplars().may_want(slot, hash) {
                let row = chosen.rows[at as usize] as usize;
                let (trace, start) = traces.of_row(row);
                let candidate = Candidate {
                    hash,
                    interval: chosen.intervals[at as usize],
                    trace,
                    start_unix_nano: (start as u64).wrapping_add(frame.ints(Column::StartOffset)?.value(row) as u64),
                    value: values.and_then(|values| values.get(row)).map_or(f64::NAN, |number| number.as_f64()),
                    labels: labels.of_row(row)?,
                };
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
        let grid = Grid::of(&compared.chosen, &groups, places.len());
        let grouped = Grouped { chosen: &compared.chosen, groups: &groups, places: &places, grid };
        self.pick(partial, (frame, &FrameTraces::of(frame)?), &grouped, None)
    }
}

/// The chosen spans of a frame by group.
pub struct Grouped<'a> {
    /// The spans.
    pub chosen: &'a Chosen,
    /// The group of each.
    pub groups: &'a [u32],
    /// The place of each group's series, if it has one.
    pub places: &'a [Option<usize>],
    /// Their cells, where these are not too many.
    pub grid: Option<Grid>,
}

/// What the spans of a frame are told by beside the labels of their series.
struct OwnLabels<'a> {
    fields: &'a [FieldRef],
    frame: &'a Frame,
    /// Those told last: mostly the next are the same.
    last: (Vec<Value>, Arc<[KeyValue]>),
}

impl<'a> OwnLabels<'a> {
    fn of(fields: &'a [FieldRef], frame: &'a Frame) -> Self {
        Self { fields, frame, last: (Vec::new(), Arc::from([])) }
    }

    fn of_row(&mut self, row: usize) -> Result<Arc<[KeyValue]>> {
        let values = self.fields.iter().map(|field| Ok(self.frame.vector_of_spans(field)?.get(row))).collect::<Result<Vec<_>>>()?;
        if values != self.last.0 {
            let present = self.fields.iter().zip(&values).filter(|(_, value)| **value != Value::Nil);
            let labels = present.map(|(field, value)| key_value(&field.to_string(), value)).collect();
            self.last = (values, labels);
        }
        Ok(self.last.1.clone())
    }
}

/// The slots that the chosen spans of a frame fall in, for each series the same: classes by stretch.
struct Slots {
    /// The first slot of each interval's stretch, from interval `first_interval` on.
    by_interval: Vec<u32>,
    first_interval: u32,
    first_stretch: u64,
    least_class: i32,
    classes: usize,
    /// What makes each slot prefer other traces.
    salts: Vec<u64>,
}

/// Classes of spans without values: two, so that there are two spans of a stretch.
const PARITIES: usize = 2;

impl Slots {
    fn of(stretches: &Stretches, chosen: &Chosen, classes: Option<&Classes>) -> Self {
        let (least_class, classes) = classes.map_or((0, PARITIES), |classes| (classes.least, classes.count));
        // The rows of a frame are close in time: few of the query's stretches have any.
        let (first_interval, width) = chosen.range();
        let last_interval = first_interval + width.saturating_sub(1) as u32;
        let [first_stretch, last_stretch] = [first_interval, last_interval].map(|at| stretches.of_interval(at));
        let slot_of = |at: u32| (stretches.of_interval(at) - first_stretch) as u32 * classes as u32;
        let salt = |at: usize| hash_in(0, first_stretch + (at / classes) as u64, least_class + (at % classes) as i32);
        let salts = (0..((last_stretch - first_stretch) as usize + 1) * classes).map(salt).collect();
        Self { by_interval: (first_interval..=last_interval).map(slot_of).collect(), first_interval, first_stretch, least_class, classes, salts }
    }

    /// The first slot of the stretch of an interval.
    #[inline]
    fn of_interval(&self, at: u32) -> usize {
        self.by_interval[(at - self.first_interval) as usize] as usize
    }

    /// The stretch and class of a slot.
    fn meaning(&self, slot: usize) -> (u64, i32) {
        (self.first_stretch + (slot / self.classes) as u64, self.least_class + (slot % self.classes) as i32)
    }
}

/// The chosen spans of a frame, as they are offered.
struct Offers<'a> {
    slots: &'a Slots,
    grouped: &'a Grouped<'a>,
    /// The hash of each trace, and its spans.
    traces: Vec<(u64, Range<usize>)>,
}

/// Spans that are looked at for each slot, on average, before the others are.
const SPANS_FIRST: usize = 16;

impl Offers<'_> {
    /// Offers spans that have `classes`.
    fn by_class(&self, winners: &mut Winners, classes: &Classes, ceiling: u64) {
        for (trace, spans) in &self.traces {
            for at in spans.clone() {
                if let Some(class) = classes.class(at) {
                    self.offer(winners, at, *trace, class, ceiling);
                }
            }
        }
    }

    /// Offers spans whose class is that of their trace. Those with larger hashes are not looked at where slots have others, as they mostly have.
    fn by_trace(&self, winners: &mut Winners, ceiling: u64) {
        let (spans, first) = (self.grouped.groups.len(), winners.slots() * SPANS_FIRST);
        let Some(grid) = self.grouped.grid.as_ref().filter(|_| first < spans / 4) else { return self.by_trace_below(winners, ceiling) };
        let bound = u64::MAX / (spans / first) as u64;
        self.by_trace_below(winners, ceiling.min(bound));
        if bound < ceiling {
            self.by_open_cell(winners, grid, ceiling);
        }
    }

    fn by_trace_below(&self, winners: &mut Winners, bound: u64) {
        let intervals = &self.grouped.chosen.intervals;
        for (trace, spans) in &self.traces {
            let class = *trace as usize % PARITIES;
            let below = |slot: usize| trace ^ self.slots.salts[slot] <= bound;
            let first = intervals[spans.start];
            let own = &intervals[spans.clone()];
            // A trace is mostly in one interval. Without a branch in the loop.
            let may_win = match own.iter().fold(0, |differ, at| differ | (at ^ first)) {
                0 => below(self.slots.of_interval(first) + class),
                _ => own.iter().any(|&at| below(self.slots.of_interval(at) + class)),
            };
            if may_win {
                spans.clone().for_each(|at| self.offer(winners, at, *trace, class, bound));
            }
        }
    }

    /// Offers the spans in cells of slots that have none yet.
    fn by_open_cell(&self, winners: &mut Winners, grid: &Grid, ceiling: u64) {
        let of_group = self.slots.salts.len();
        let is_open = |group: usize, slot: u32| (0..PARITIES).any(|class| !winners.has(group * of_group + slot as usize + class));
        let by_interval = &self.slots.by_interval;
        let groups = 0..self.grouped.places.len();
        let open: Vec<bool> = groups.flat_map(|group| by_interval.iter().map(move |&slot| is_open(group, slot))).collect();
        if !open.contains(&true) {
            return;
        }
        let (mut traces, mut trace, mut until) = (self.traces.iter(), 0, 0);
        for at in grid.spans_in(&open) {
            let at = at as usize;
            while until <= at {
                let Some((next, spans)) = traces.next() else { return };
                (trace, until) = (*next, spans.end);
            }
            self.offer(winners, at, trace, trace as usize % PARITIES, ceiling);
        }
    }

    #[inline]
    fn offer(&self, winners: &mut Winners, at: usize, trace: u64, class: usize, bound: u64) {
        let slot = self.slots.of_interval(self.grouped.chosen.intervals[at]) + class;
        let hash = trace ^ self.slots.salts[slot];
        if hash <= bound {
            winners.hear(self.grouped.groups[at] as usize * self.slots.salts.len() + slot, hash, at as u32);
        }
    }
}

/// The classes of the chosen spans' values.
struct Classes {
    rows: Vec<i16>,
    least: i32,
    count: usize,
}

/// Stands for the class of a span that has no value.
const NO_CLASS: i16 = i16::MAX;

impl Classes {
    fn of(chosen: &Chosen, values: &Numbers, bucket_of: Option<BucketOf>) -> Self {
        let counts = |number: &Number| bucket_of.is_none_or(|bucket_of| bucket_of(*number).is_some());
        let class = |row: &u32| values.get(*row as usize).filter(counts).map_or(NO_CLASS, |number| class_of(number.as_f64()) as i16);
        let rows: Vec<i16> = chosen.rows.iter().map(class).collect();
        let present = || rows.iter().copied().filter(|&class| class != NO_CLASS);
        let (least, greatest) = (present().min().unwrap_or(0), present().max().unwrap_or(0));
        Self { rows, least: least.into(), count: (greatest - least) as usize + 1 }
    }

    /// That of a span, counted from the least.
    #[inline]
    fn class(&self, at: usize) -> Option<usize> {
        let class = self.rows[at];
        (class != NO_CLASS).then(|| (i32::from(class) - self.least) as usize)
    }
}

/// The smallest hash of each slot of each group, and where it is from.
enum Winners {
    Table(Vec<(u64, u32)>),
    Map { slots: usize, heard: HashMap<usize, (u64, u32)> },
}

/// What is in a slot of a table that has no span.
const NOTHING: (u64, u32) = (u64::MAX, 0);

impl Winners {
    fn new(slots: usize) -> Self {
        if slots <= TABLE_MAX { Self::Table(vec![NOTHING; slots]) } else { Self::Map { slots, heard: HashMap::new() } }
    }

    /// How many slots there are.
    fn slots(&self) -> usize {
        match self {
            Self::Table(slots) => slots.len(),
            Self::Map { slots, .. } => *slots,
        }
    }

    fn has(&self, slot: usize) -> bool {
        match self {
            Self::Table(slots) => slots[slot].0 < NOTHING.0,
            Self::Map { heard, .. } => heard.contains_key(&slot),
        }
    }

    /// Takes a span's hash, if it is the smallest of its slot.
    #[inline]
    fn hear(&mut self, slot: usize, hash: u64, at: u32) {
        let known = match self {
            Self::Table(slots) => &mut slots[slot],
            Self::Map { heard, .. } => heard.entry(slot).or_insert(NOTHING),
        };
        if hash < known.0 {
            *known = (hash, at);
        }
    }

    /// The slots that have any, in the order of where they are from.
    fn by_row(self) -> Vec<(usize, u64, u32)> {
        let list = |(slot, (hash, at)): (usize, (u64, u32))| (hash < NOTHING.0).then_some((slot, hash, at));
        let mut all: Vec<_> = match self {
            Self::Table(slots) => slots.into_iter().enumerate().filter_map(list).collect(),
            Self::Map { heard, .. } => heard.into_iter().filter_map(list).collect(),
        };
        all.sort_unstable_by_key(|&(slot, _, at)| (at, slot));
        all
    }
}
