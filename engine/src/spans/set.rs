//! Sets of spans in memory: immutable chunks of columns with common dictionaries. Live spans, the spans of traces that lie in
//! several places, and the input of every block writer have this form.

use std::{
    hash::{BuildHasher, Hash, Hasher, RandomState},
    sync::Arc,
};

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
    /// Distinct traces.
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
        let rows = |chunk: &SpanChunk| -> Vec<u32> {
            let own = |&row: &usize| chunk.trace_id_low[row] == low && chunk.trace_id_high[row] == high;
            (0..chunk.len()).filter(own).map(|row| row as u32).collect()
        };
        let chunks: Vec<_> = self.chunks.iter().map(|chunk| (chunk, rows(chunk))).filter(|(_, rows)| !rows.is_empty()).collect();
        if chunks.is_empty() {
            return None;
        }
        let chunks = chunks.into_iter().map(|(chunk, rows)| Arc::new(chunk.only_rows(&rows))).collect();
        Some(Self { chunks, traces: 1, ..self.clone() })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.chunks.iter().all(|chunk| chunk.is_empty())
    }
}

impl SpanSet {
    /// Whether two rows hold the same span: equal in every field, attributes in any order. Cost: a binary search for each column.
    pub fn rows_equal(&self, a: (u32, u32), b: (u32, u32)) -> bool {
        let (x, y) = (&*self.chunks[a.0 as usize], &*self.chunks[b.0 as usize]);
        let (i, j) = (a.1 as usize, b.1 as usize);
        x.span_id[i] == y.span_id[j]
            && x.parent_span_id[i] == y.parent_span_id[j]
            && x.start_unix_nano[i] == y.start_unix_nano[j]
            && x.duration_nanos[i] == y.duration_nanos[j]
            && x.kind[i] == y.kind[j]
            && x.status_code[i] == y.status_code[j]
            && x.name[i] == y.name[j]
            && x.resource[i] == y.resource[j]
            && x.scope[i] == y.scope[j]
            && bytes_at(&x.status_message, a.1) == bytes_at(&y.status_message, b.1)
            && bytes_at(&x.trace_state, a.1) == bytes_at(&y.trace_state, b.1)
            && x.rare.iter().zip(&y.rare).all(|(x, y)| rare_at(x, a.1) == rare_at(y, b.1))
            && attributes_equal(&self.attributes, (&x.attributes, a.1), (&y.attributes, b.1))
            && self.events_equal((x, a.1), (y, b.1))
            && links_equal((&x.links, a.1), (&y.links, b.1))
    }

    /// A hash of a row by what [`Self::rows_equal`] compares, equal for rows that are equal. Cost: as a comparison.
    pub fn row_hash(&self, (chunk, row): (u32, u32), hasher: &RandomState) -> u64 {
        let (spans, at, hash) = (&*self.chunks[chunk as usize], row as usize, &mut hasher.build_hasher());
        (spans.span_id[at], spans.parent_span_id[at], spans.start_unix_nano[at], spans.duration_nanos[at]).hash(hash);
        (spans.kind[at], spans.status_code[at], spans.name[at], spans.resource[at], spans.scope[at]).hash(hash);
        (bytes_at(&spans.status_message, row), bytes_at(&spans.trace_state, row)).hash(hash);
        spans.rare.iter().for_each(|rare| rare_at(rare, row).hash(hash));
        hash_attributes(&self.attributes, &spans.attributes, row, hash);
        for event in entries_of(&spans.events.spans, row) {
            (spans.events.time_unix_nano[event], spans.events.name[event]).hash(hash);
            hash_attributes(&self.event_attributes, &spans.events.attributes, event as u32, hash);
        }
        for link in entries_of(&spans.links.spans, row) {
            (spans.links.trace_id_high[link], spans.links.trace_id_low[link], spans.links.span_id[link]).hash(hash);
        }
        hash.finish()
    }

    fn events_equal(&self, (x, i): (&SpanChunk, u32), (y, j): (&SpanChunk, u32)) -> bool {
        let (xs, ys) = (entries_of(&x.events.spans, i), entries_of(&y.events.spans, j));
        xs.len() == ys.len()
            && xs.zip(ys).all(|(m, n)| {
                x.events.time_unix_nano[m] == y.events.time_unix_nano[n]
                    && x.events.name[m] == y.events.name[n]
                    && rare_at(&x.events.dropped_attributes, m as u32) == rare_at(&y.events.dropped_attributes, n as u32)
                    && attributes_equal(&self.event_attributes, (&x.events.attributes, m as u32), (&y.events.attributes, n as u32))
            })
    }
}

fn entries_of(rows: &[u32], row: u32) -> std::ops::Range<usize> {
    rows.partition_point(|&other| other < row)..rows.partition_point(|&other| other <= row)
}

fn bytes_at(column: &BytesColumn, row: u32) -> Option<&[u8]> {
    column.rows.binary_search(&row).ok().map(|at| column.get(at))
}

fn rare_at(column: &RareColumn, row: u32) -> Option<i64> {
    column.rows.binary_search(&row).ok().map(|at| column.values[at])
}

fn attributes_equal(columns: &[(AttributeColumn, Arc<StringArray>)], (x, i): (&AttributeChunk, u32), (y, j): (&AttributeChunk, u32)) -> bool {
    let value = |chunk: &AttributeChunk, id: u32, row: u32| {
        let column = &chunk.columns[chunk.columns.binary_search_by_key(&id, |column| column.id).ok()?];
        Some(scalar_at(column, column.rows.binary_search(&row).ok()?, &columns[id as usize].1))
    };
    bytes_at(&x.rest, i) == bytes_at(&y.rest, j) && (0..columns.len() as u32).all(|id| value(x, id, i) == value(y, id, j))
}

/// Columns of a chunk ascend by their number, so that equal attributes are hashed in the same order.
fn hash_attributes(columns: &[(AttributeColumn, Arc<StringArray>)], chunk: &AttributeChunk, row: u32, hash: &mut impl Hasher) {
    bytes_at(&chunk.rest, row).hash(hash);
    for column in &chunk.columns {
        if let Ok(at) = column.rows.binary_search(&row) {
            (column.id, scalar_at(column, at, &columns[column.id as usize].1)).hash(hash);
        }
    }
}

/// A value in a form that can be compared bit by bit.
fn scalar_at(column: &SparseColumn, at: usize, strings: &StringArray) -> (u64, Vec<u8>) {
    match &column.values {
        Values::Coded(codes) => (0, strings.value(codes[at] as usize).as_bytes().to_vec()),
        Values::Text { ends, bytes } => (0, bytes[if at == 0 { 0 } else { ends[at - 1] as usize }..ends[at] as usize].to_vec()),
        Values::Int(values) => (values[at] as u64, Vec::new()),
        Values::Double(values) => (values[at].to_bits(), Vec::new()),
        Values::Bool(values) => (u64::from(values[at]), Vec::new()),
    }
}

fn links_equal((x, i): (&LinkChunk, u32), (y, j): (&LinkChunk, u32)) -> bool {
    let (xs, ys) = (entries_of(&x.spans, i), entries_of(&y.spans, j));
    let other = |links: &LinkChunk, at: usize| {
        links.other[if at == 0 { 0 } else { links.other_ends[at - 1] as usize }..links.other_ends[at] as usize].to_vec()
    };
    xs.len() == ys.len()
        && xs.zip(ys).all(|(m, n)| {
            (x.trace_id_high[m], x.trace_id_low[m], x.span_id[m]) == (y.trace_id_high[n], y.trace_id_low[n], y.span_id[n])
                && other(x, m) == other(y, n)
        })
}

impl SpanChunk {
    /// A chunk of the given rows, ascending, all of one trace, which becomes trace 0.
    fn only_rows(&self, rows: &[u32]) -> Self {
        fn pick<T: Copy>(values: &[T], rows: &[u32]) -> Vec<T> {
            rows.iter().map(|&row| values[row as usize]).collect()
        }
        let rare = |at: usize| self.rare[at].only_rows(rows);
        Self {
            trace: vec![0; rows.len()],
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
