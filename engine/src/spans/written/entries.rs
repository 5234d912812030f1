//! Events and links: lists of structs with the names that the tables `events` and `links` have.

use arrow::{
    array::{Array, ArrayRef, AsArray, BinaryArray, Int64Array, StructArray},
    buffer::{NullBuffer, OffsetBuffer, ScalarBuffer},
};

use super::{
    columns::{Budget, Given, counts, texts, times, whole_numbers},
    ids,
    values::{Attribute, Encoder, lists, rest_of},
};
use crate::{
    error::{Error, Result},
    spans::{read::Texts, wire::write_bytes_field},
};

/// The events of a table's spans.
#[derive(Debug, Clone)]
pub(super) struct Events {
    /// Of each span.
    pub(super) offsets: OffsetBuffer<i32>,
    pub(super) time_unix_nano: ScalarBuffer<i64>,
    pub(super) name: Option<Texts>,
    pub(super) dropped_attributes: Option<Int64Array>,
    /// None of them is a list.
    pub(super) attributes: Vec<Attribute>,
    /// The lists.
    pub(super) rest: Option<BinaryArray>,
}

/// The links of a table's spans.
#[derive(Debug, Clone)]
pub(super) struct Links {
    /// Of each span.
    pub(super) offsets: OffsetBuffer<i32>,
    pub(super) trace_id_high: ScalarBuffer<i64>,
    pub(super) trace_id_low: ScalarBuffer<i64>,
    pub(super) span_id: ScalarBuffer<i64>,
    /// The other fields of the `Link` messages.
    pub(super) other: BinaryArray,
}

impl Events {
    /// The events in a column; None when there are none. `start` is that of each span. Errors: `Invalid`.
    pub(super) fn of(given: &Given<'_>, start: &[i64], budget: &mut Budget) -> Result<Option<Self>> {
        const NAMES: [&str; 4] = ["time", "since_start_nanos", "event_name", "dropped_attributes_count"];
        let Some(entries) = Entries::of("events", given, "a list of structs with time or since_start_nanos, event_name and \"event.<key>\"")? else {
            return Ok(None);
        };
        let (fields, keyed) = entries.fields(&NAMES, "event")?;
        let attributes = entries.attributes("event", &keyed, budget)?;
        let (attributes, listed): (Vec<_>, Vec<_>) = attributes.into_iter().partition(|attribute| !attribute.is_list());
        let [time, since_start, name, dropped] = fields;
        Ok(Some(Self {
            time_unix_nano: entries.event_times(time, since_start, start)?,
            name: name.map(|array| texts(&entries.part("event_name", array), budget)).transpose()?.flatten(),
            dropped_attributes: dropped.map(|array| counts(&entries.part("dropped_attributes_count", array))).transpose()?.flatten(),
            attributes,
            rest: rest_of(&listed, entries.structs.len(), budget)?,
            offsets: entries.offsets,
        }))
    }
}

impl Links {
    /// The links in a column; None when there are none. Errors: `Invalid`.
    pub(super) fn of(given: &Given<'_>, budget: &mut Budget) -> Result<Option<Self>> {
        const NAMES: [&str; 5] = ["linked_trace_id", "linked_span_id", "trace_state", "flags", "dropped_attributes_count"];
        let Some(entries) = Entries::of("links", given, "a list of structs with linked_trace_id, linked_span_id and \"link.<key>\"")? else {
            return Ok(None);
        };
        let ([trace_id, span_id, trace_state, flags, dropped], keyed) = entries.fields(&NAMES, "link")?;
        let needed = |name: &str, array: Option<&ArrayRef>| {
            array.cloned().ok_or_else(|| Error::invalid(format!("column \"links\": there is no field \"{name}\", which every link has")))
        };
        let (trace_id, span_id) = (needed(NAMES[0], trace_id)?, needed(NAMES[1], span_id)?);
        let (trace_id_high, trace_id_low) = ids::trace_ids(&entries.part(NAMES[0], &trace_id))?;
        let span_id = ids::span_ids(&entries.part(NAMES[1], &span_id))?;
        let other = OtherFields {
            trace_state: trace_state.map(|array| texts(&entries.part(NAMES[2], array), budget)).transpose()?.flatten(),
            flags: flags.map(|array| counts(&entries.part(NAMES[3], array))).transpose()?.flatten(),
            dropped_attributes: dropped.map(|array| counts(&entries.part(NAMES[4], array))).transpose()?.flatten(),
            attributes: entries.attributes("link", &keyed, budget)?,
        };
        let other = other.encoded(entries.structs.len(), budget)?;
        Ok(Some(Self { offsets: entries.offsets, trace_id_high, trace_id_low, span_id, other }))
    }
}

/// What a link has besides ids.
struct OtherFields {
    trace_state: Option<Texts>,
    flags: Option<Int64Array>,
    dropped_attributes: Option<Int64Array>,
    attributes: Vec<Attribute>,
}

impl OtherFields {
    /// As fields 3 to 6 of `Link` messages.
    fn encoded(&self, links: usize, budget: &mut Budget) -> Result<BinaryArray> {
        let (mut encoder, mut bytes, mut ends) = (Encoder::default(), Vec::new(), vec![0_i32]);
        let number =
            |counts: &Option<Int64Array>, at: usize| counts.as_ref().filter(|counts| counts.is_valid(at)).map_or(0, |counts| counts.value(at));
        for at in 0..links {
            let before = bytes.len();
            let trace_state = self.trace_state.as_ref().and_then(|texts| texts.get(at)).unwrap_or_default();
            if !trace_state.is_empty() {
                write_bytes_field(&mut bytes, 3, trace_state.as_bytes());
            }
            let there = self.attributes.iter().filter(|attribute| attribute.is_valid(at));
            there.for_each(|attribute| encoder.pair(&mut bytes, 4, attribute, at));
            if let dropped @ 1.. = number(&self.dropped_attributes, at) {
                bytes.push(5 << 3);
                crate::spans::wire::write_varint(&mut bytes, dropped as u64);
            }
            if let flags @ 1.. = number(&self.flags, at) {
                bytes.push(6 << 3 | 5);
                bytes.extend_from_slice(&(flags as u32).to_le_bytes());
            }
            budget.take(bytes.len() - before)?;
            // The budget is far below 2 GiB.
            ends.push(bytes.len() as i32);
        }
        Ok(BinaryArray::new(OffsetBuffer::new(ends.into()), bytes.into(), None))
    }
}

/// A column of lists of structs, taken apart.
struct Entries {
    list: &'static str,
    offsets: OffsetBuffer<i32>,
    structs: StructArray,
}

/// Fields by key.
type Keyed<'a> = Vec<(&'a str, &'a ArrayRef)>;

impl Entries {
    fn of(list: &'static str, given: &Given<'_>, expected: &str) -> Result<Option<Self>> {
        if given.array.logical_null_count() == given.len() {
            return Ok(None);
        }
        let (offsets, _, entries) = lists(given, expected)?;
        let structs = entries.as_struct_opt().ok_or_else(|| given.wrong_type(expected))?.clone();
        let entries = Self { list, offsets, structs };
        if let Some(at) = entries.structs.nulls().and_then(|nulls: &NullBuffer| nulls.iter().position(|valid| !valid)) {
            let all: ArrayRef = std::sync::Arc::new(entries.structs.clone());
            return Err(entries.part("", &all).wrong(at, "a struct", "null"));
        }
        Ok((!entries.structs.is_empty()).then_some(entries))
    }

    fn part<'a>(&'a self, name: &'a str, array: &'a ArrayRef) -> Given<'a> {
        Given::part(self.list, &self.offsets, name, array)
    }

    /// The fields of these names, and those of attributes by key. Errors: `Invalid` for any other, and for a name that occurs twice.
    fn fields<const N: usize>(&self, names: &[&'static str; N], scope: &str) -> Result<([Option<&ArrayRef>; N], Keyed<'_>)> {
        let (mut named, mut keyed): ([Option<&ArrayRef>; N], Keyed<'_>) = ([None; N], Vec::new());
        for (field, array) in self.structs.fields().iter().zip(self.structs.columns()) {
            let name = field.name().as_str();
            let twice = if let Some(place) = names.iter().position(|known| *known == name) {
                named[place].replace(array).is_some()
            } else if let Some(key) = name.strip_prefix(scope).and_then(|rest| rest.strip_prefix('.')) {
                let twice = keyed.iter().any(|(known, _)| *known == key);
                keyed.push((key, array));
                twice
            } else {
                let known = names.join(", ");
                return Err(Error::invalid(format!("column \"{}\": unknown field \"{name}\"; there are {known}, and \"{scope}.<key>\"", self.list)));
            };
            if twice {
                return Err(Error::invalid(format!("column \"{}\": two fields have the name \"{name}\"", self.list)));
            }
        }
        Ok((named, keyed))
    }

    fn attributes(&self, scope: &str, keyed: &Keyed<'_>, budget: &mut Budget) -> Result<Vec<Attribute>> {
        let mut found = Vec::with_capacity(keyed.len());
        for (key, array) in keyed {
            let name = format!("{scope}.{key}");
            found.extend(Attribute::of(key, &self.part(&name, array), budget)?);
        }
        Ok(found)
    }

    /// The time of every event: as given, or the start of its span and the distance to it, which must not contradict each other.
    fn event_times(&self, time: Option<&ArrayRef>, since_start: Option<&ArrayRef>, start: &[i64]) -> Result<ScalarBuffer<i64>> {
        let time = time.map(|array| times(&self.part("time", array))).transpose()?;
        let Some(since_start) = since_start else {
            return time.ok_or_else(|| Error::invalid("column \"events\": there is neither a field \"time\" nor \"since_start_nanos\""));
        };
        let given = self.part("since_start_nanos", since_start);
        let distances = whole_numbers(&given)?;
        let starts = (0..start.len()).flat_map(|row| std::iter::repeat_n(start[row], (self.offsets[row + 1] - self.offsets[row]) as usize));
        let mut computed = Vec::with_capacity(distances.len());
        for (at, (start, distance)) in starts.zip(distances.iter()).enumerate() {
            let Some(nanos) = start.checked_add(*distance).filter(|nanos| *nanos >= 0) else {
                return Err(given.wrong(at, "a distance with which the event lies between 1970 and 2262", distance));
            };
            if let Some(time) = time.as_ref().map(|times| times[at]).filter(|time| *time != nanos) {
                let expected = format!("time - start_time, which is {}", time - start);
                return Err(given.wrong(at, &expected, format!("{distance}; leave one of the two fields out")));
            }
            computed.push(nanos);
        }
        Ok(computed.into())
    }
}
