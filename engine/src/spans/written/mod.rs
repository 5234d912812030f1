//! Spans as clients write them: a table with the columns that `SELECT * FROM spans` has, in the types that Arrow's tools make.
//!
//! | file | owns |
//! |---|---|
//! | [`columns`] | one column of whatever type as typed values, and what is said of a wrong one |
//! | [`ids`] | ids as text or bytes |
//! | [`values`] | attributes: columns of values, lists among them; values as protobuf |
//! | [`changes`] | rows at which columns change |
//! | [`shared`] | columns of resources and scopes as messages, each once |
//! | [`entries`] | events and links |
//! | [`sparse`] | attributes that few spans have, as values of just these |
//! | [`record`] | the checked table as Arrow IPC streams and back, for the log |
//! | [`stream`] | one such stream, in parts |
//! | [`keys`] | keys of dictionaries in fewer bytes, and in 32 bits again |
//! | [`append`] | the checked table into a builder |
//! | [`outgoing`] | a table as it is best sent, for clients |
//! | [`shortest`] | columns of it in the types that take the fewest bytes |
//!
//! A table is looked at once, in [`SpanTable::try_new`]; what it holds afterwards is typed, compact and right, so that appending it cannot
//! fail and a log that holds it need not be understood in all the forms that clients have.

mod append;
mod changes;
mod columns;
mod entries;
mod ids;
mod keys;
mod outgoing;
mod record;
mod shared;
mod shortest;
mod sparse;
mod stream;
#[cfg(test)]
mod tests;
mod values;

use arrow::{
    array::{ArrayRef, Int64Array},
    buffer::ScalarBuffer,
};

pub use arrow::record_batch::RecordBatch;

pub use self::outgoing::for_the_wire;
use self::{
    columns::{Budget, Given},
    entries::{Events, Links},
    shared::{Coded, Scope},
    sparse::Sparse,
    values::Attribute,
};
use super::read::Texts;
use crate::error::{Error, Result};

/// Most spans of a table: what one head of a builder takes four times over. Bounds what a message of few bytes (dictionaries, nulls) can mean.
pub const ROWS_MAX: usize = 1 << 18;

/// Most events, links, or values of lists in a column of a table; bounds the same.
pub const ENTRIES_MAX: usize = 1 << 20;

/// Most bytes of text that a table means when dictionaries and views are spelled out: four messages of Flight. What describes resources and
/// scopes counts once for each of them where it comes in dictionaries.
pub const TEXT_BYTES_MAX: usize = 64 << 20;

/// Columns that `SELECT *` gives and that follow from others: taken and ignored.
pub const DERIVED: [&str; 8] = [
    "trace_start_time",
    "trace_duration_nanos",
    "root_service_name",
    "root_name",
    "child_count",
    "self_time_nanos",
    "spanset",
    "critical_path_nanos",
];

/// The columns that are taken, for messages.
const KNOWN: &str = "trace_id, span_id, parent_span_id, name, kind, start_time, end_time, duration_nanos, status, status_message, scope_name, \
                     scope_version, trace_state, flags, dropped_attributes_count, dropped_events_count, dropped_links_count, events, links, and \
                     attributes as \"resource.<key>\", \"instrumentation.<key>\", \"span.<key>\"";

/// The names of kinds and of statuses by OTLP's numbers.
const KINDS: [&str; 6] = ["unspecified", "internal", "server", "client", "producer", "consumer"];
const STATUSES: [&str; 3] = ["unset", "ok", "error"];

/// The columns of whole numbers that most spans lack, in the order of [`RARE`](super::schema::RARE).
const COUNTS: [&str; 4] = ["flags", "dropped_attributes_count", "dropped_events_count", "dropped_links_count"];

/// A checked table of spans.
#[derive(Debug, Clone)]
pub struct SpanTable {
    rows: usize,
    trace_id_high: ScalarBuffer<i64>,
    trace_id_low: ScalarBuffer<i64>,
    span_id: ScalarBuffer<i64>,
    /// Zero where there is none.
    parent_span_id: ScalarBuffer<i64>,
    start_unix_nano: ScalarBuffer<i64>,
    duration_nanos: ScalarBuffer<i64>,
    kind: ScalarBuffer<i32>,
    status_code: ScalarBuffer<i32>,
    name: Option<Texts>,
    status_message: Option<Texts>,
    trace_state: Option<Texts>,
    counts: [Option<Int64Array>; COUNTS.len()],
    resource: Coded,
    scope: Coded,
    /// Those that are not in `sparse`. None of them is a list.
    attributes: Vec<Attribute>,
    /// Those that few spans have.
    sparse: Vec<Sparse>,
    /// The lists, as `KeyValue` fields.
    rest: Option<arrow::array::BinaryArray>,
    events: Option<Events>,
    links: Option<Links>,
    /// Bytes of text, dictionaries spelled out.
    text_bytes: usize,
}

impl SpanTable {
    /// Checks `batch`: a row a span, columns by name. Dictionaries are cut to what the rows use, derived columns dropped.
    /// Errors: `Invalid`, which names column and row (counted from 0) and what is expected.
    /// Cost: a pass over each column, of attributes that few rows have over just these; one over each distinct value; nothing is allocated for a row.
    pub fn try_new(batch: &RecordBatch) -> Result<Self> {
        let rows = batch.num_rows();
        if rows > ROWS_MAX {
            return Err(Error::invalid(format!("{rows} spans in one batch, at most {ROWS_MAX} are taken: send smaller batches")));
        }
        let mut budget = Budget::new(TEXT_BYTES_MAX);
        let parts = Parts::of(batch)?;
        let (trace_id_high, trace_id_low) = ids::trace_ids(&parts.required("trace_id")?)?;
        let span_id = ids::span_ids(&parts.required("span_id")?)?;
        let start = columns::times(&parts.required("start_time")?)?;
        let duration = duration_of(&parts, &start)?;
        let (dense, sparse) = sparse::split("span", &parts.span, &mut budget)?;
        let (attributes, lists): (Vec<_>, Vec<_>) = dense.into_iter().partition(|attribute| !attribute.is_list());
        let resource = shared::resources(&shared_attributes("resource", &parts.resource, &mut budget)?, rows, &mut budget)?;
        let scope = Scope {
            name: parts.text("scope_name", &mut budget)?,
            version: parts.text("scope_version", &mut budget)?,
            attributes: shared_attributes("instrumentation", &parts.instrumentation, &mut budget)?,
        };
        let mut counts = [const { None }; COUNTS.len()];
        for (count, name) in counts.iter_mut().zip(COUNTS) {
            *count = parts.find(name).map(|given| columns::counts(&given)).transpose()?.flatten();
        }
        let name = parts.text("name", &mut budget)?;
        let status_message = parts.text("status_message", &mut budget)?;
        let trace_state = parts.text("trace_state", &mut budget)?;
        Ok(Self {
            rows,
            trace_id_high,
            trace_id_low,
            parent_span_id: match parts.find("parent_span_id") {
                Some(given) => ids::parent_ids(&given)?,
                None => vec![0; rows].into(),
            },
            span_id,
            kind: parts.codes("kind", &KINDS, rows)?,
            status_code: parts.codes("status", &STATUSES, rows)?,
            name,
            status_message,
            trace_state,
            counts,
            scope: shared::scopes(&scope, rows, &mut budget)?,
            resource,
            rest: values::rest_of(&lists, rows, &mut budget)?,
            attributes,
            sparse,
            events: parts.find("events").map(|given| Events::of(&given, &start, &mut budget)).transpose()?.flatten(),
            links: parts.find("links").map(|given| Links::of(&given, &mut budget)).transpose()?.flatten(),
            start_unix_nano: start,
            duration_nanos: duration,
            text_bytes: budget.spent(),
        })
    }

    /// Spans.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Runs of spans with the same trace id: the number of traces if each trace's spans lie together, more if not.
    pub fn trace_runs(&self) -> u64 {
        let same = |row: usize| self.trace_id_low[row] == self.trace_id_low[row - 1] && self.trace_id_high[row] == self.trace_id_high[row - 1];
        (0..self.rows).filter(|&row| row == 0 || !same(row)).count() as u64
    }
}

/// The columns of a batch by what they are.
struct Parts<'a> {
    named: Vec<(&'a str, &'a ArrayRef)>,
    resource: Vec<(&'a str, &'a ArrayRef)>,
    instrumentation: Vec<(&'a str, &'a ArrayRef)>,
    span: Vec<(&'a str, &'a ArrayRef)>,
}

impl<'a> Parts<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self> {
        let mut parts = Self { named: Vec::new(), resource: Vec::new(), instrumentation: Vec::new(), span: Vec::new() };
        let mut seen = std::collections::HashSet::new();
        for (field, array) in batch.schema_ref().fields().iter().zip(batch.columns()) {
            let name = field.name().as_str();
            if !seen.insert(name) {
                return Err(Error::invalid(format!("two columns have the name \"{name}\": a span has one value for each")));
            }
            match name.split_once('.') {
                Some(("resource", key)) => parts.resource.push((key, array)),
                Some(("instrumentation", key)) => parts.instrumentation.push((key, array)),
                Some(("span", key)) => parts.span.push((key, array)),
                _ if NAMED.contains(&name) => parts.named.push((name, array)),
                _ if DERIVED.contains(&name) => {}
                _ => return Err(Error::invalid(format!("unknown column \"{name}\"; there are {KNOWN}"))),
            }
        }
        Ok(parts)
    }

    fn find(&self, name: &'static str) -> Option<Given<'_>> {
        self.named.iter().find(|(known, _)| *known == name).map(|(known, array)| Given::column(known, array))
    }

    fn required(&self, name: &'static str) -> Result<Given<'_>> {
        self.find(name).ok_or_else(|| Error::invalid(format!("there is no column \"{name}\", which every span has")))
    }

    fn text(&self, name: &'static str, budget: &mut Budget) -> Result<Option<Texts>> {
        Ok(self.find(name).map(|given| columns::texts(&given, budget)).transpose()?.flatten())
    }

    fn codes(&self, name: &'static str, names: &[&str], rows: usize) -> Result<ScalarBuffer<i32>> {
        match self.find(name) {
            Some(given) => columns::codes(&given, names),
            None => Ok(vec![0; rows].into()),
        }
    }
}

/// The columns that are taken by name.
const NAMED: [&str; 19] = [
    "trace_id",
    "span_id",
    "parent_span_id",
    "name",
    "kind",
    "start_time",
    "end_time",
    "duration_nanos",
    "status",
    "status_message",
    "scope_name",
    "scope_version",
    "trace_state",
    "flags",
    "dropped_attributes_count",
    "dropped_events_count",
    "dropped_links_count",
    "events",
    "links",
];

/// Whether a column of that name is taken, rather than ignored or refused.
pub fn is_written(name: &str) -> bool {
    NAMED.contains(&name) || ["resource.", "instrumentation.", "span."].iter().any(|scope| name.starts_with(scope))
}

/// The attributes that many rows share, of resources or scopes; those left out that no row has.
fn shared_attributes(scope: &str, columns: &[(&str, &ArrayRef)], budget: &mut Budget) -> Result<Vec<Attribute>> {
    let mut found = Vec::with_capacity(columns.len());
    for (key, array) in columns {
        let name = format!("{scope}.{key}");
        found.extend(Attribute::shared(key, &Given::column(&name, array), budget)?);
    }
    Ok(found)
}

/// The duration of every span: as given, or the end minus the start, which must not contradict each other.
fn duration_of(parts: &Parts<'_>, start: &[i64]) -> Result<ScalarBuffer<i64>> {
    let given = parts.find("duration_nanos");
    let end = parts.find("end_time").map(|given| Ok::<_, Error>((columns::times(&given)?, given))).transpose()?;
    let duration = given.map(|given| Ok::<_, Error>((columns::whole_numbers(&given)?, given))).transpose()?;
    match (end, duration) {
        (None, None) => Err(Error::invalid("there is neither \"end_time\" nor \"duration_nanos\": one of them says when spans end")),
        (Some((end, _)), None) => Ok(end.iter().zip(start).map(|(end, start)| end - start).collect()),
        (end, Some((duration, given))) => {
            for (row, (duration, start)) in duration.iter().zip(start).enumerate() {
                let ends = start.checked_add(*duration).filter(|end| *end >= 0);
                let Some(ends) = ends else {
                    return Err(given.wrong(row, "a duration with which the span ends between 1970 and 2262", duration));
                };
                if let Some((end, given)) = &end
                    && end[row] != ends
                {
                    let expected = format!("start_time + duration_nanos, which is {ends}");
                    return Err(given.wrong(row, &expected, format!("{}; leave one of the two columns out", end[row])));
                }
            }
            Ok(duration)
        }
    }
}
