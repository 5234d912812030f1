//! The spans of a frame that may become exemplars, with what they are told by.

use std::sync::Arc;

use skein_proto::otlp::common::v1::KeyValue;

use super::{
    compare::{Compared, META_TYPE, META_TYPES},
    detail::Detail,
    exemplars::{Candidate, Stretches},
    grid::Grid,
    intervals::Intervals,
    observe::{Numbers, value_field},
    partial::Partial,
    slots::{self, Grouped, Winner},
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
        let winners =
            slots::winners(&self.stretches, (grouped, traces), values.map(|values| (values, self.bucket_of)), partial.exemplars().ceiling());
        let mut spans = Spans { grouped, frame, traces, values, labels: OwnLabels::of(&self.fields, frame) };
        for Winner { group, stretch, class, hash, at } in winners {
            let Some(place) = grouped.places[group] else { continue };
            let slot = (place as u32, stretch, class);
            partial.offer(slot, hash, || spans.candidate(at, hash))?;
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

/// The chosen spans of a frame as candidates.
struct Spans<'a> {
    grouped: &'a Grouped<'a>,
    frame: &'a Frame,
    traces: &'a FrameTraces<'a>,
    values: Option<&'a Numbers>,
    labels: OwnLabels<'a>,
}

impl Spans<'_> {
    fn candidate(&mut self, at: usize, hash: u64) -> Result<Candidate> {
        let row = self.grouped.chosen.rows[at] as usize;
        let (trace, start) = self.traces.of_row(row);
        let value = self.values.and_then(|values| values.get(row));
        Ok(Candidate {
            hash,
            interval: self.grouped.chosen.intervals[at],
            trace,
            start_unix_nano: (start as u64).wrapping_add(self.frame.ints(Column::StartOffset)?.value(row) as u64),
            value: value.map_or(f64::NAN, |number| number.as_f64()),
            labels: self.labels.of_row(row)?,
        })
    }
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
