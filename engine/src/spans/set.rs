//! Sets of spans in memory: immutable chunks of columns with common dictionaries. Live spans, the spans of traces that lie in
//! several places, and the input of every block writer have this form.

use std::{collections::HashSet, ops::Range, sync::Arc};

use arrow::array::StringArray;

use super::{
    TraceId,
    attributes::AttributeChunk,
    columns::{AttributeColumn, BytesColumn, SparseColumn, Values},
    tables::Shared,
};

/// The whole-number fields that most spans lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Rare {
    Flags,
    DroppedAttributes,
    DroppedEvents,
    DroppedLinks,
    Oddities,
}

/// The number of [`Rare`] fields.
pub const RARE_FIELDS: usize = 5;

/// Non-zero values of a [`Rare`] field. Rows ascend.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct RareColumn {
    pub rows: Vec<u32>,
    pub values: Vec<i64>,
}

/// Some tens of thousands of spans in the order in which they came, as columns.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct SpanChunk {
    /// Number of the span's trace in its set.
    pub trace: Vec<u32>,
    pub trace_id_high: Vec<i64>,
    pub trace_id_low: Vec<i64>,
    pub span_id: Vec<i64>,
    /// Zero where there is none.
    pub parent_span_id: Vec<i64>,
    /// Bits of the unsigned number on the wire.
    pub start_unix_nano: Vec<i64>,
    /// End minus start, wrapping: negative when the span ends before it starts.
    pub duration_nanos: Vec<i64>,
    pub kind: Vec<i32>,
    pub status_code: Vec<i32>,
    /// Number of the name in the set's names.
    pub name: Vec<u32>,
    pub resource: Vec<u32>,
    pub scope: Vec<u32>,
    /// Size on the wire, a measure for the size of the row.
    pub wire_bytes: Vec<u32>,
    pub status_message: BytesColumn,
    pub trace_state: BytesColumn,
    pub rare: [RareColumn; RARE_FIELDS],
    pub attributes: AttributeChunk,
    pub events: EventChunk,
    pub links: LinkChunk,
}

impl SpanChunk {
    /// Spans in the chunk.
    pub fn len(&self) -> usize {
        self.span_id.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.span_id.is_empty()
    }

    /// The id of a span's trace.
    pub fn trace_id(&self, row: usize) -> u128 {
        u128::from_be_bytes(TraceId::from_halves(self.trace_id_high[row], self.trace_id_low[row]).0)
    }
}

/// The events of a chunk's spans, in span order.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct EventChunk {
    /// The span's row; ascends.
    pub spans: Vec<u32>,
    pub time_unix_nano: Vec<i64>,
    /// Number of the name in the set's event names.
    pub name: Vec<u32>,
    pub dropped_attributes: RareColumn,
    /// Rows are events.
    pub attributes: AttributeChunk,
}

/// The links of a chunk's spans, in span order.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct LinkChunk {
    /// The span's row; ascends.
    pub spans: Vec<u32>,
    pub trace_id_high: Vec<i64>,
    pub trace_id_low: Vec<i64>,
    pub span_id: Vec<i64>,
    /// End of each link's part of `other`.
    pub other_ends: Vec<u32>,
    /// The other fields of the `Link` messages as on the wire.
    pub other: Vec<u8>,
}

/// An immutable set of spans of one tenant.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct SpanSet {
    pub chunks: Vec<Arc<SpanChunk>>,
    /// Key, type and coded strings of each attribute column.
    pub attributes: Vec<(AttributeColumn, Arc<StringArray>)>,
    pub event_attributes: Vec<(AttributeColumn, Arc<StringArray>)>,
    pub names: Arc<StringArray>,
    pub event_names: Arc<StringArray>,
    pub resources: Arc<Shared>,
    pub scopes: Arc<Shared>,
    /// The traces are numbered below this. As many are distinct, unless the set is a part of another.
    pub traces: usize,
    /// Grows with every span, so that equal versions of one builder are equal sets.
    pub version: u64,
}

impl SpanSet {
    /// Spans in all chunks.
    pub fn len(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.len()).sum()
    }

    /// The spans of one trace as a set of their own, None if there are none. Cost: a pass over the trace ids of all spans.
    pub fn only_trace(&self, id: TraceId) -> Option<Self> {
        let (high, low) = id.halves();
        self.only(|chunk, row| chunk.trace_id_low[row] == low && chunk.trace_id_high[row] == high)
    }

    /// The spans of the traces `ids` as a set of their own, None if there are none. Cost: a pass over the trace ids of all spans, some
    /// nanoseconds each, and a copy of the spans that are wanted unless they are a whole chunk.
    pub fn only_traces(&self, ids: &HashSet<u128>) -> Option<Self> {
        // Most spans are of other traces: a table that the fast cache holds says so for nearly all of them.
        let mut maybe = vec![false; 1 << 16];
        ids.iter().for_each(|&id| maybe[id as u16 as usize] = true);
        self.only(|chunk, row| maybe[chunk.trace_id_low[row] as u16 as usize] && ids.contains(&chunk.trace_id(row)))
    }

    fn only(&self, is_wanted: impl Fn(&SpanChunk, usize) -> bool) -> Option<Self> {
        let mut chunks = Vec::new();
        for chunk in &self.chunks {
            let rows: Vec<u32> = (0..chunk.len()).filter(|&row| is_wanted(chunk, row)).map(|row| row as u32).collect();
            match rows.len() {
                0 => {}
                all if all == chunk.len() => chunks.push(chunk.clone()),
                _ => chunks.push(Arc::new(chunk.only_rows(&rows))),
            }
        }
        (!chunks.is_empty()).then(|| Self { chunks, ..self.clone() })
    }

    /// The traces of the spans `rows`, counted in the order in which they came, a few of them several times.
    pub fn traces_of(&self, rows: Range<usize>) -> Vec<u128> {
        let (mut ids, mut first) = (Vec::new(), 0);
        for chunk in &self.chunks {
            let own = rows.start.max(first)..rows.end.min(first + chunk.len());
            ids.extend(own.map(|row| chunk.trace_id(row - first)));
            first += chunk.len();
        }
        ids.dedup();
        ids
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.chunks.iter().all(|chunk| chunk.is_empty())
    }
}

/// The entries of a child column that belong to `row`; `rows` ascend.
pub(super) fn entries_of(rows: &[u32], row: u32) -> Range<usize> {
    rows.partition_point(|&other| other < row)..rows.partition_point(|&other| other <= row)
}

impl SpanChunk {
    /// A chunk of the given rows, ascending.
    fn only_rows(&self, rows: &[u32]) -> Self {
        fn pick<T: Copy>(values: &[T], rows: &[u32]) -> Vec<T> {
            rows.iter().map(|&row| values[row as usize]).collect()
        }
        let rare = |at: usize| self.rare[at].only_rows(rows);
        Self {
            trace: pick(&self.trace, rows),
            trace_id_high: pick(&self.trace_id_high, rows),
            trace_id_low: pick(&self.trace_id_low, rows),
            span_id: pick(&self.span_id, rows),
            parent_span_id: pick(&self.parent_span_id, rows),
            start_unix_nano: pick(&self.start_unix_nano, rows),
            duration_nanos: pick(&self.duration_nanos, rows),
            kind: pick(&self.kind, rows),
            status_code: pick(&self.status_code, rows),
            name: pick(&self.name, rows),
            resource: pick(&self.resource, rows),
            scope: pick(&self.scope, rows),
            wire_bytes: pick(&self.wire_bytes, rows),
            status_message: self.status_message.only_rows(rows),
            trace_state: self.trace_state.only_rows(rows),
            rare: std::array::from_fn(rare),
            attributes: self.attributes.only_rows(rows),
            events: self.events.only_spans(rows),
            links: self.links.only_spans(rows),
        }
    }
}

/// For each of `wanted` that is in `rows` (both ascending): its position in each, `wanted` first.
fn positions_in<'a>(rows: &'a [u32], wanted: &'a [u32]) -> impl Iterator<Item = (u32, usize)> + 'a {
    wanted.iter().enumerate().filter_map(|(new, row)| rows.binary_search(row).ok().map(|at| (new as u32, at)))
}

impl RareColumn {
    fn only_rows(&self, wanted: &[u32]) -> Self {
        let (rows, values) = positions_in(&self.rows, wanted).map(|(new, at)| (new, self.values[at])).unzip();
        Self { rows, values }
    }
}

impl BytesColumn {
    fn only_rows(&self, wanted: &[u32]) -> Self {
        let mut out = Self::default();
        positions_in(&self.rows, wanted).for_each(|(new, at)| out.append(new, |bytes| bytes.extend_from_slice(self.get(at))));
        out
    }
}

impl AttributeChunk {
    fn only_rows(&self, wanted: &[u32]) -> Self {
        let columns = self.columns.iter().map(|column| column.only_rows(wanted)).filter(|column| !column.rows.is_empty());
        Self { columns: columns.collect(), rest: self.rest.only_rows(wanted) }
    }
}

impl SparseColumn {
    fn only_rows(&self, wanted: &[u32]) -> Self {
        let (rows, at): (Vec<u32>, Vec<usize>) = positions_in(&self.rows, wanted).unzip();
        let values = match &self.values {
            Values::Coded(codes) => Values::Coded(at.iter().map(|&at| codes[at]).collect()),
            Values::Int(values) => Values::Int(at.iter().map(|&at| values[at]).collect()),
            Values::Double(values) => Values::Double(at.iter().map(|&at| values[at]).collect()),
            Values::Bool(values) => Values::Bool(at.iter().map(|&at| values[at]).collect()),
            Values::Text { ends, bytes } => {
                let mut text = Vec::new();
                let ends = at.iter().map(|&at| {
                    text.extend_from_slice(&bytes[if at == 0 { 0 } else { ends[at - 1] as usize }..ends[at] as usize]);
                    text.len() as u32
                });
                Values::Text { ends: ends.collect(), bytes: text }
            }
        };
        Self { id: self.id, rows, values }
    }
}

/// The entries whose span is in `wanted`, with the span's new row.
fn entries_in<'a>(spans: &'a [u32], wanted: &'a [u32]) -> impl Iterator<Item = (u32, usize)> + 'a {
    wanted.iter().enumerate().flat_map(|(new, &row)| entries_of(spans, row).map(move |at| (new as u32, at)))
}

impl EventChunk {
    fn only_spans(&self, wanted: &[u32]) -> Self {
        let (spans, at): (Vec<u32>, Vec<usize>) = entries_in(&self.spans, wanted).unzip();
        let rows: Vec<u32> = at.iter().map(|&at| at as u32).collect();
        Self {
            spans,
            time_unix_nano: at.iter().map(|&at| self.time_unix_nano[at]).collect(),
            name: at.iter().map(|&at| self.name[at]).collect(),
            dropped_attributes: self.dropped_attributes.only_rows(&rows),
            attributes: self.attributes.only_rows(&rows),
        }
    }
}

impl LinkChunk {
    fn only_spans(&self, wanted: &[u32]) -> Self {
        let mut out = Self::default();
        for (span, at) in entries_in(&self.spans, wanted) {
            out.spans.push(span);
            out.trace_id_high.push(self.trace_id_high[at]);
            out.trace_id_low.push(self.trace_id_low[at]);
            out.span_id.push(self.span_id[at]);
            let start = if at == 0 { 0 } else { self.other_ends[at - 1] as usize };
            out.other.extend_from_slice(&self.other[start..self.other_ends[at] as usize]);
            out.other_ends.push(out.other.len() as u32);
        }
        out
    }
}
