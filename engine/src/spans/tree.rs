//! The order of spans in a block, and their trees.
//!
//! Rows lie by trace, the trace that starts last first, equal starts by trace id; inside a trace parents before children, children by
//! start. Copies of a span (same trace, span id and content) are dropped here. The order depends on the spans alone, not on how they came:
//! spans of equal start and id are ordered by their content.

use std::cmp::Ordering;

use super::{TraceId, content::SpanContent, set::SpanSet};

/// Marks, as a parent distance, the first row of a trace.
pub const FIRST_OF_TRACE: i32 = -1;
/// Marks, as a parent distance, a further row without a parent in the trace.
pub const TOP: i32 = 0;

/// A row of a [`SpanSet`]: chunk and row in it.
pub type RowRef = (u32, u32);

/// The rows of a set in block order, with their trees. All vectors but `traces` have one entry a row.
#[derive(Debug, Default)]
pub struct SpanOrder {
    /// Where row `i` lies in the set.
    pub rows: Vec<RowRef>,
    /// How many rows before it the parent lies; [`FIRST_OF_TRACE`] or [`TOP`] where it has none.
    pub parent_distance: Vec<i32>,
    /// How many spans lie below it.
    pub descendants: Vec<i32>,
    /// The traces in row order.
    pub traces: Vec<TraceRows>,
    /// Copies that were left out.
    pub duplicates: usize,
}

/// One trace of a [`SpanOrder`].
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct TraceRows {
    pub id_high: i64,
    pub id_low: i64,
    /// Position of its first row.
    pub first: u32,
    pub rows: u32,
    /// First start of its spans.
    pub start_unix_nano: i64,
    /// Last end minus first start.
    pub duration_nanos: i64,
    /// Position of its root: the earliest span without a parent id.
    pub root: Option<u32>,
    /// Bytes its spans had on the wire.
    pub wire_bytes: u64,
}

impl TraceRows {
    /// Its id.
    pub fn id(&self) -> TraceId {
        TraceId::from_halves(self.id_high, self.id_low)
    }
}

/// What ordering needs of one span.
#[derive(Clone, Copy)]
struct Node {
    row: RowRef,
    span_id: i64,
    parent_span_id: i64,
    start: u64,
    kind: i32,
}

/// Puts the rows of `set` in block order. Cost: some 200 ns a span, one temporary of 40 bytes a span.
pub fn order_spans(set: &SpanSet) -> SpanOrder {
    let mut nodes = nodes_by_trace(set);
    let mut spans_of: Vec<(TraceRows, &mut [Node])> = Vec::with_capacity(set.traces);
    for nodes in nodes.chunk_by_mut(|a, b| trace_of(set, a.row) == trace_of(set, b.row)) {
        spans_of.push((summarise(set, nodes), nodes));
    }
    spans_of.sort_unstable_by(|(a, _), (b, _)| newest_first(a, b));
    let mut order = SpanOrder::default();
    order.rows.reserve(set.len());
    order.parent_distance.reserve(set.len());
    order.descendants.reserve(set.len());
    let mut scratch = Scratch::default();
    for (trace, nodes) in spans_of {
        append_trace(set, &mut order, trace, nodes, &mut scratch);
    }
    order
}

/// The order of traces: by start, newest first, then by id.
pub fn newest_first(a: &TraceRows, b: &TraceRows) -> Ordering {
    let id = |trace: &TraceRows| (trace.id_high as u64, trace.id_low as u64);
    (b.start_unix_nano as u64).cmp(&(a.start_unix_nano as u64)).then_with(|| id(a).cmp(&id(b)))
}

fn trace_of(set: &SpanSet, (chunk, row): RowRef) -> u32 {
    set.chunks[chunk as usize].trace[row as usize]
}

/// All rows grouped by trace (a counting sort), in the order in which they came within each.
fn nodes_by_trace(set: &SpanSet) -> Vec<Node> {
    let mut next = vec![0u32; set.traces + 1];
    for chunk in &set.chunks {
        for &trace in &chunk.trace {
            next[trace as usize + 1] += 1;
        }
    }
    for at in 1..next.len() {
        next[at] += next[at - 1];
    }
    let blank = Node { row: (0, 0), span_id: 0, parent_span_id: 0, start: 0, kind: 0 };
    let mut nodes = vec![blank; set.len()];
    for (number, chunk) in set.chunks.iter().enumerate() {
        for row in 0..chunk.len() {
            let at = &mut next[chunk.trace[row] as usize];
            nodes[*at as usize] = Node {
                row: (number as u32, row as u32),
                span_id: chunk.span_id[row],
                parent_span_id: chunk.parent_span_id[row],
                start: chunk.start_unix_nano[row] as u64,
                kind: chunk.kind[row],
            };
            *at += 1;
        }
    }
    nodes
}

fn summarise(set: &SpanSet, nodes: &[Node]) -> TraceRows {
    let (mut start, mut end, mut wire_bytes) = (u64::MAX, 0, 0);
    for node in nodes {
        let (chunk, row) = (&set.chunks[node.row.0 as usize], node.row.1 as usize);
        start = start.min(node.start);
        end = end.max(node.start).max(node.start.wrapping_add(chunk.duration_nanos[row] as u64));
        wire_bytes += u64::from(chunk.wire_bytes[row]);
    }
    let (chunk, row) = (&set.chunks[nodes[0].row.0 as usize], nodes[0].row.1 as usize);
    TraceRows {
        id_high: chunk.trace_id_high[row],
        id_low: chunk.trace_id_low[row],
        first: 0,
        rows: 0,
        start_unix_nano: start as i64,
        duration_nanos: end.wrapping_sub(start) as i64,
        root: None,
        wire_bytes,
    }
}

const NO_PARENT: u32 = u32::MAX;

/// Buffers kept from trace to trace.
#[derive(Default)]
struct Scratch {
    by_id: Vec<(i64, Role, u32)>,
    parents: Vec<u32>,
    first_child: Vec<u32>,
    next_sibling: Vec<u32>,
    position: Vec<u32>,
    stack: Vec<u32>,
}

fn append_trace(set: &SpanSet, order: &mut SpanOrder, mut trace: TraceRows, nodes: &mut [Node], scratch: &mut Scratch) {
    nodes.sort_by_key(|node| (node.start, node.span_id as u64));
    let kept = settle_twins(set, nodes);
    order.duplicates += nodes.len() - kept;
    let nodes = &nodes[..kept];
    link_parents(nodes, scratch);
    trace.first = order.rows.len() as u32;
    trace.rows = kept as u32;
    emit_pre_order(order, nodes, scratch);
    trace.root = nodes.iter().position(|node| node.parent_span_id == 0).map(|at| scratch.position[at]);
    order.parent_distance[trace.first as usize] = FIRST_OF_TRACE;
    order.traces.push(trace);
}

/// Orders spans of equal start and id by content, leaves copies out, and returns how many spans are left, at the front. Nodes are sorted by
/// start and span id.
fn settle_twins(set: &SpanSet, nodes: &mut [Node]) -> usize {
    let (mut kept, mut from) = (0, 0);
    while from < nodes.len() {
        let same_key = |other: &&Node| other.start == nodes[from].start && other.span_id == nodes[from].span_id;
        let until = from + nodes[from..].iter().take_while(same_key).count();
        if until - from == 1 {
            nodes[kept] = nodes[from];
            kept += 1;
        } else {
            let mut twins: Vec<(SpanContent, Node)> = nodes[from..until].iter().map(|node| (set.content(node.row), *node)).collect();
            twins.sort_by(|(a, _), (b, _)| a.cmp(b));
            twins.dedup_by(|(a, _), (b, _)| a == b);
            for (_, node) in twins {
                nodes[kept] = node;
                kept += 1;
            }
        }
        from = until;
    }
    kept
}

/// Fills `scratch.parents`: the parent's index of every node. Of two spans with one id (a Zipkin client and server) a server's parent
/// is the client, anything else's the server. A cycle is cut at its earliest span.
fn link_parents(nodes: &[Node], scratch: &mut Scratch) {
    let by_id = &mut scratch.by_id;
    by_id.clear();
    by_id.extend(nodes.iter().enumerate().map(|(at, node)| (node.span_id, role_of(node.kind), at as u32)));
    by_id.sort_unstable();
    scratch.parents.clear();
    for (at, node) in nodes.iter().enumerate() {
        let parent = if node.parent_span_id == 0 { NO_PARENT } else { find_parent(nodes, by_id, at) };
        scratch.parents.push(parent);
    }
    cut_cycles(&mut scratch.parents);
}

/// What matters of a span's kind when several spans have one id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Client,
    Server,
    Other,
}

fn role_of(kind: i32) -> Role {
    match kind {
        2 => Role::Server,
        3 => Role::Client,
        _ => Role::Other,
    }
}

/// The parent of node `child`. `by_id` is sorted; a look-up stays logarithmic however many spans share an id.
fn find_parent(nodes: &[Node], by_id: &[(i64, Role, u32)], child: usize) -> u32 {
    let id = nodes[child].parent_span_id;
    let from = by_id.partition_point(|&(other, ..)| other < id);
    let candidate = |at: usize| by_id.get(at).filter(|&&(other, ..)| other == id).map(|&(.., node)| node);
    match (candidate(from), candidate(from + 1)) {
        (None, _) => return NO_PARENT,
        (Some(only), None) => return if only as usize == child { NO_PARENT } else { only },
        _ => {}
    }
    let first_of = |role: Role| {
        let from = from + by_id[from..].partition_point(|&(other, its, _)| (other, its) < (id, role));
        let own = by_id[from..].iter().take_while(|&&(other, its, _)| (other, its) == (id, role));
        own.map(|&(.., node)| node).find(|&node| node as usize != child)
    };
    let wanted = if role_of(nodes[child].kind) == Role::Server { Role::Client } else { Role::Server };
    let any = || [Role::Client, Role::Server, Role::Other].into_iter().filter_map(first_of).min();
    first_of(wanted).or_else(any).unwrap_or(NO_PARENT)
}

fn cut_cycles(parents: &mut [u32]) {
    const NEW: u8 = 0;
    const OPEN: u8 = 1;
    const DONE: u8 = 2;
    if parents.iter().enumerate().all(|(at, &parent)| parent == NO_PARENT || (parent as usize) < at) {
        return;
    }
    let mut state = vec![NEW; parents.len()];
    for first in 0..parents.len() {
        let mut at = first;
        let mut path = Vec::new();
        while state[at] == NEW {
            state[at] = OPEN;
            path.push(at);
            match parents[at] {
                NO_PARENT => break,
                parent => at = parent as usize,
            }
        }
        if state[at] == OPEN && parents[at] != NO_PARENT && path.last().is_some_and(|&last| parents[last] as usize == at) {
            let start = path.iter().position(|&member| member == at).unwrap_or(0);
            let earliest = path[start..].iter().copied().min().unwrap_or(at);
            parents[earliest] = NO_PARENT;
        }
        for member in path {
            state[member] = DONE;
        }
    }
}

fn emit_pre_order(order: &mut SpanOrder, nodes: &[Node], scratch: &mut Scratch) {
    let Scratch { parents, first_child, next_sibling, position, stack, .. } = scratch;
    for list in [&mut *first_child, next_sibling, position] {
        list.clear();
        list.resize(nodes.len(), NO_PARENT);
    }
    stack.clear();
    // Children are pushed to the front of the lists from the latest to the earliest, tops the other way round onto the stack.
    for at in (0..nodes.len()).rev() {
        match parents[at] {
            NO_PARENT => stack.push(at as u32),
            parent => {
                next_sibling[at] = first_child[parent as usize];
                first_child[parent as usize] = at as u32;
            }
        }
    }
    let base = order.rows.len() as u32;
    while let Some(at) = stack.pop() {
        let here = order.rows.len() as u32;
        position[at as usize] = here;
        order.rows.push(nodes[at as usize].row);
        order.parent_distance.push(match parents[at as usize] {
            NO_PARENT => TOP,
            parent => (here - position[parent as usize]) as i32,
        });
        order.descendants.push(0);
        let from = stack.len();
        let mut child = first_child[at as usize];
        while child != NO_PARENT {
            stack.push(child);
            child = next_sibling[child as usize];
        }
        stack[from..].reverse();
    }
    for here in (base as usize + 1..order.rows.len()).rev() {
        let distance = order.parent_distance[here];
        if distance > 0 {
            let below = order.descendants[here] + 1;
            order.descendants[here - distance as usize] += below;
        }
    }
}

/// Position in `order` of each row of each chunk; `u32::MAX` for copies that were left out.
pub fn positions(set: &SpanSet, order: &SpanOrder) -> Vec<Vec<u32>> {
    let mut positions: Vec<Vec<u32>> = set.chunks.iter().map(|chunk| vec![u32::MAX; chunk.len()]).collect();
    for (at, &(chunk, row)) in order.rows.iter().enumerate() {
        positions[chunk as usize][row as usize] = at as u32;
    }
    positions
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use prost::Message;
    use skein_proto::otlp::common::v1::{AnyValue, KeyValue, any_value::Value};

    use super::*;
    use crate::spans::builder::{SpanBuilder, SpanFields};

    const SERVER: i32 = 2;
    const CLIENT: i32 = 3;

    /// Spans of one trace: id, parent, kind, and a number as attribute.
    fn ordered(spans: impl IntoIterator<Item = (u64, u64, i32, i64)>) -> (SpanSet, SpanOrder) {
        let mut builder = SpanBuilder::default();
        let (resource, scope) = (builder.resource(None, b""), builder.scope(None, b""));
        for (id, parent, kind, number) in spans {
            let value = Some(AnyValue { value: Some(Value::IntValue(number)) });
            builder.begin_span();
            builder.attribute(&KeyValue { key: "number".into(), value, ..Default::default() }.encode_to_vec()).unwrap();
            let (span_id, parent_span_id) = (id.to_be_bytes(), parent.to_be_bytes());
            builder.finish_span(resource, scope, &SpanFields { trace_id: [1; 16], span_id, parent_span_id, kind, ..Default::default() });
        }
        let set = builder.snapshot();
        let order = order_spans(&set);
        (set, order)
    }

    /// Each row as its number and that of its parent, 0 if it has none. Rows came in the order of their numbers, from 1.
    fn tree(spans: &[(u64, u64, i32)]) -> Vec<(u32, u32)> {
        let (_, order) = ordered(spans.iter().zip(1..).map(|(&(id, parent, kind), number)| (id, parent, kind, number)));
        let number = |at: usize| order.rows[at].1 + 1;
        let parent = |at: usize| if order.parent_distance[at] > 0 { number(at - order.parent_distance[at] as usize) } else { 0 };
        (0..order.rows.len()).map(|at| (number(at), parent(at))).collect()
    }

    #[test]
    fn of_two_spans_with_one_id_the_role_decides() {
        // A client and a server share id 2; the server lies below the client, the server's child below the server.
        assert_eq!(tree(&[(1, 0, 1), (2, 1, CLIENT), (2, 2, SERVER), (3, 2, 1)]), [(1, 0), (2, 1), (3, 2), (4, 3)]);
        assert_eq!(tree(&[(2, 2, SERVER), (2, 1, CLIENT), (1, 0, 1)]), [(3, 0), (2, 3), (1, 2)]);
        // Without a suitable role the first that came.
        assert_eq!(tree(&[(2, 0, 1), (2, 0, 4), (3, 2, 1)]), [(1, 0), (3, 1), (2, 0)]);
        assert_eq!(tree(&[(2, 2, 1)]), [(1, 0)], "nothing is its own parent");
    }

    /// In quadratic time this would not end.
    #[test]
    fn a_hundred_thousand_spans_with_one_id_are_ordered() {
        const SPANS: i64 = 100_000;
        let twice = (0..SPANS).chain(0..SPANS).map(|number| (7, 0, SERVER, number));
        let (_, order) = ordered(twice);
        assert_eq!((order.rows.len(), order.duplicates), (SPANS as usize, SPANS as usize));
        let with_children = (0..SPANS).map(|number| (7, 0, 1, number)).chain((0..SPANS).map(|number| (number as u64 + 8, 7, 1, number)));
        let (_, order) = ordered(with_children);
        assert_eq!((order.rows.len(), order.duplicates), (2 * SPANS as usize, 0));
        assert_eq!(order.descendants.iter().max(), Some(&(SPANS as i32)), "all children lie below the first of their parents");
    }
}
