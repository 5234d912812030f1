//! `compare()`: how often each value of each attribute occurs among the selected spans, and among the others.

use std::collections::BTreeSet;

use arrow::{array::Array, buffer::BooleanBuffer};
use hashbrown::HashMap;

use super::{
    cells::Cells,
    codes::Codes,
    estimate::Weight,
    observe::Chosen,
    partial::{Labels, Partial},
};
use crate::{
    error::Result,
    exec::{
        eval::{ColumnNeeds, Frame, mask::mask, vector::Vector},
        source::{RestScope, SourceRef},
    },
    plan::matches::key_value,
    spans::{
        schema::Column,
        tables::Shared,
        value::{Value, value_of_any},
        wire::{Fields, KeyValue},
    },
    traceql::{AttributeScope, FieldExpr, FieldRef, Intrinsic},
};

/// Most distinct values of an attribute; of one that has more only the totals are told.
pub const VALUES_MAX: usize = 10_000;

/// Names of the two groups of spans, by whether a span is selected.
pub const META_TYPES: [&str; 2] = ["baseline", "selection"];
/// The label that tells them.
pub const META_TYPE: &str = "__meta_type";

/// Intrinsics that are compared: those that say what a span is, not when or which one.
const INTRINSICS: [Intrinsic; 12] = [
    Intrinsic::Name,
    Intrinsic::Kind,
    Intrinsic::Status,
    Intrinsic::StatusMessage,
    Intrinsic::RootName,
    Intrinsic::RootService,
    Intrinsic::ChildCount,
    Intrinsic::InstrumentationName,
    Intrinsic::InstrumentationVersion,
    Intrinsic::EventName,
    Intrinsic::LinkTraceId,
    Intrinsic::LinkSpanId,
];

/// The fields of a source that are compared, but for span attributes that have no column, which [`observe`] reads as they come.
fn fields(source: &SourceRef) -> Vec<FieldRef> {
    let schema = source.schema();
    let span: BTreeSet<_> = schema.attributes.iter().map(|field| field.column.key.to_string()).collect();
    let event: BTreeSet<_> = schema.event_attributes.iter().map(|field| field.column.key.to_string()).collect();
    let rest = |scope| source.rest_keys(scope).iter().map(|key| key.to_string()).collect::<BTreeSet<_>>();
    let scoped = [
        (AttributeScope::Span, span),
        (AttributeScope::Resource, table_keys(source.resources())),
        (AttributeScope::Instrumentation, table_keys(source.scopes())),
        (AttributeScope::Event, &event | &rest(RestScope::Event)),
        (AttributeScope::Link, rest(RestScope::Link)),
    ];
    let attributes = scoped.into_iter().flat_map(|(scope, keys)| keys.into_iter().map(move |key| FieldRef::Attribute { scope, name: key }));
    INTRINSICS.into_iter().map(FieldRef::Intrinsic).chain(attributes).collect()
}

fn table_keys(table: &Shared) -> BTreeSet<String> {
    (0..table.len()).flat_map(|id| table.attributes(id).keys().map(|key| key.to_string())).collect()
}

/// The columns that comparing reads: nearly all.
pub fn needs(selection: &FieldExpr, source: &SourceRef) -> ColumnNeeds {
    let mut needs = ColumnNeeds::default();
    needs.add(Column::TraceStart);
    needs.add(Column::StartOffset);
    fields(source).iter().for_each(|field| needs.add_field(field, source));
    selection.visit_fields(&mut |field| needs.add_field(field, source));
    if source.schema().has(Column::Rest) {
        needs.add(Column::Rest);
    }
    needs
}

/// The distinct values of each attribute so far.
#[derive(Debug, Default)]
pub struct Distinct(HashMap<String, usize>);

impl Distinct {
    fn is_over(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|&count| count > VALUES_MAX)
    }
}

/// Which of the chosen spans are the selection: those that satisfy `selection`, and begin in `window` if there is one (start excluded, end
/// included). Errors: `Data`.
pub fn selected(frame: &Frame, rows: &BooleanBuffer, chosen: &Chosen, selection: &FieldExpr, window: Option<(i64, i64)>) -> Result<Vec<bool>> {
    let selected = mask(selection, frame, rows)?;
    let starts = (frame.ints(Column::TraceStart)?.values(), frame.ints(Column::StartOffset)?.values());
    let is_selected = |row: u32| {
        let start = starts.0[row as usize].wrapping_add(starts.1[row as usize]);
        selected.value(row as usize) && window.is_none_or(|(after, until)| start > after && start <= until)
    };
    Ok(chosen.rows.iter().map(|&row| is_selected(row)).collect())
}

/// Adds the chosen spans of `frame`, of which `selected` tells the group. Each stands for `weight` spans.
/// Errors: `Exhausted` for too many values, `Data`.
pub fn observe((partial, distinct): (&mut Partial, &mut Distinct), frame: &Frame, chosen: &Chosen, selected: &[bool], weight: Weight) -> Result<()> {
    let mut counter = Counter { partial, distinct, chosen, selected, weight };
    for field in fields(frame.source()) {
        counter.count(&field.to_string(), &frame.vector_of_spans(&field)?)?;
    }
    counter.count_rest(frame)
}

struct Counter<'a> {
    partial: &'a mut Partial,
    distinct: &'a mut Distinct,
    chosen: &'a Chosen,
    /// By chosen row.
    selected: &'a [bool],
    weight: Weight,
}

/// Spans of one value, group and interval.
type Slot = (u32, bool, u32);

impl Counter<'_> {
    /// Counts the values of one attribute. Spans that lack it do not count.
    fn count(&mut self, name: &str, vector: &Vector) -> Result<()> {
        if self.distinct.is_over(name) {
            return self.count_present(name, &vector.exists());
        }
        let codes = self.chosen.codes(vector)?;
        let mut places: HashMap<(u32, bool), usize> = HashMap::new();
        for ((code, selected, at), count) in self.slots(&codes) {
            let value = &codes.values[code as usize];
            if *value == Value::Nil {
                continue;
            }
            let place = match places.get(&(code, selected)) {
                Some(place) => *place,
                None => *places.entry((code, selected)).or_insert(self.place(selected, name, value)?),
            };
            self.add(place, at, count);
        }
        Ok(())
    }

    /// How many chosen spans are in each slot. Neighbours mostly agree: they are added up before they are looked up.
    fn slots(&self, codes: &Codes) -> HashMap<Slot, u64> {
        let mut slots: HashMap<Slot, u64> = HashMap::new();
        let (mut run, mut length): (Slot, u64) = ((u32::MAX, false, 0), 0);
        for ((&code, &selected), &at) in codes.rows.iter().zip(self.selected).zip(&self.chosen.intervals) {
            if (code, selected, at) != run {
                if length > 0 {
                    *slots.entry(run).or_default() += length;
                }
                (run, length) = ((code, selected, at), 0);
            }
            length += 1;
        }
        if length > 0 {
            *slots.entry(run).or_default() += length;
        }
        slots
    }

    /// Counts the spans that have an attribute of too many values.
    fn count_present(&mut self, name: &str, present: &BooleanBuffer) -> Result<()> {
        let places = [self.partial.place(uncounted(false, name))?, self.partial.place(uncounted(true, name))?];
        for at in 0..self.chosen.rows.len() {
            if present.value(self.chosen.rows[at] as usize) {
                self.add(places[usize::from(self.selected[at])], self.chosen.intervals[at], 1);
            }
        }
        Ok(())
    }

    /// Counts the span attributes whose key has no column at all; the others were counted with their columns. Of a key that occurs twice
    /// the first value counts.
    fn count_rest(&mut self, frame: &Frame) -> Result<()> {
        let Some(messages) = frame.rest() else { return Ok(()) };
        let schema = frame.source().schema();
        for (at, &row) in self.chosen.rows.iter().enumerate() {
            if messages.is_null(row as usize) {
                continue;
            }
            let mut fields = Fields::new(messages.value(row as usize));
            let mut counted: Vec<&[u8]> = Vec::new();
            while let Ok(Some((1, field))) = fields.next_field() {
                let Ok(pair) = field.bytes().and_then(KeyValue::parse) else { continue };
                let key = String::from_utf8_lossy(pair.key);
                let value = pair.value.map_or(Value::Nil, value_of_any);
                if value == Value::Nil || counted.contains(&pair.key) || schema.attribute_columns(&key).next().is_some() {
                    continue;
                }
                counted.push(pair.key);
                let name = FieldRef::Attribute { scope: AttributeScope::Span, name: key.as_ref().into() }.to_string();
                let place = self.place(self.selected[at], &name, &value)?;
                self.add(place, self.chosen.intervals[at], 1);
            }
        }
        Ok(())
    }

    /// The series of a value; of one value too many, that of the attribute.
    fn place(&mut self, selected: bool, name: &str, value: &Value) -> Result<usize> {
        if self.distinct.is_over(name) {
            return self.partial.place(uncounted(selected, name));
        }
        let known = self.partial.len();
        let place = self.partial.place(labels(selected, name, value))?;
        if place == known {
            *self.distinct.0.entry(name.to_owned()).or_default() += 1;
        }
        Ok(place)
    }

    fn add(&mut self, place: usize, at: u32, count: u64) {
        match self.partial.cells(place) {
            Cells::Counts(cells) => cells[at as usize] += count,
            Cells::WeightedCounts(cells) => cells[at as usize].weight += self.weight.times(count),
            _ => debug_assert!(false, "cells that are no counts"),
        }
    }
}

fn labels(selected: bool, name: &str, value: &Value) -> Labels {
    vec![key_value(META_TYPE, &Value::from(META_TYPES[usize::from(selected)])), key_value(name, value)]
}

/// The labels of spans whose value is not told apart: the attribute has no value.
fn uncounted(selected: bool, name: &str) -> Labels {
    let mut labels = labels(selected, name, &Value::Nil);
    labels.iter_mut().skip(1).for_each(|label| label.value = None);
    labels
}
