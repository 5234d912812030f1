//! A trace as a tree: copies dropped, parents found, cycles cut, spans in pre-order and numbered.

use std::collections::BTreeMap;

use super::fields::{Value, of_key};
use super::model::{Content, Span};

/// One span of a [`Trace`].
#[derive(Debug)]
pub struct Node<'a> {
    pub span: &'a Span,
    /// Position of its parent in the trace.
    pub parent: Option<usize>,
    /// Positions of its children.
    pub children: Vec<usize>,
    pub nested_left: i64,
    pub nested_right: i64,
}

/// The spans of one trace in pre-order.
#[derive(Debug)]
pub struct Trace<'a> {
    pub id: u128,
    pub nodes: Vec<Node<'a>>,
}

/// What spans are ordered by: the start, then the id, then the content, so that no two spans are equal.
type Earliness = (u64, u64, Content);

fn earliness(span: &Span) -> Earliness {
    (span.start, span.id, span.content())
}

/// The traces of `spans`, newest first, ties by id.
pub fn traces<'a>(spans: impl Iterator<Item = &'a Span>) -> Vec<Trace<'a>> {
    let mut by_id = BTreeMap::<u128, BTreeMap<Earliness, &Span>>::new();
    for span in spans {
        by_id.entry(span.trace).or_default().insert(earliness(span), span);
    }
    let mut traces: Vec<Trace<'_>> = by_id.into_iter().map(|(id, spans)| Trace::new(id, spans.into_values().collect())).collect();
    traces.sort_by_key(|trace| (std::cmp::Reverse(trace.start()), trace.id));
    traces
}

impl<'a> Trace<'a> {
    /// `spans` are in order of time and hold no copies.
    fn new(id: u128, spans: Vec<&'a Span>) -> Self {
        let mut parents: Vec<Option<usize>> = (0..spans.len()).map(|at| parent_of(at, &spans)).collect();
        for at in 0..spans.len() {
            if is_earliest_of_cycle(at, &parents) {
                parents[at] = None;
            }
        }
        let mut trace = Self { id, nodes: Vec::new() };
        let mut counter = 0;
        for top in (0..spans.len()).filter(|at| parents[*at].is_none()) {
            trace.append(top, None, &spans, &parents, &mut counter);
        }
        trace
    }

    /// Appends a span and what is below it, and numbers them.
    fn append(&mut self, at: usize, parent: Option<usize>, spans: &[&'a Span], parents: &[Option<usize>], counter: &mut i64) {
        let position = self.nodes.len();
        *counter += 1;
        self.nodes.push(Node { span: spans[at], parent, children: Vec::new(), nested_left: *counter, nested_right: 0 });
        if let Some(parent) = parent {
            self.nodes[parent].children.push(position);
        }
        for child in (0..spans.len()).filter(|child| parents[*child] == Some(at)) {
            self.append(child, Some(position), spans, parents, counter);
        }
        *counter += 1;
        self.nodes[position].nested_right = *counter;
    }

    pub fn start(&self) -> u64 {
        self.nodes.iter().map(|node| node.span.start).min().expect("a trace has spans")
    }

    /// The last end; a span that ends before it starts ends with its start here.
    pub fn end(&self) -> u64 {
        self.nodes.iter().map(|node| node.span.end.max(node.span.start)).max().expect("a trace has spans")
    }

    pub fn duration(&self) -> i64 {
        (self.end() - self.start()) as i64
    }

    /// The earliest span without a parent id.
    pub fn root(&self) -> Option<&'a Span> {
        self.nodes.iter().map(|node| node.span).filter(|span| is_root(span)).min_by_key(|span| earliness(span))
    }

    /// The parent's left number; -1 for a root, 0 for another span without a parent in the trace.
    pub fn nested_parent(&self, at: usize) -> i64 {
        match self.nodes[at].parent {
            Some(parent) => self.nodes[parent].nested_left,
            None if is_root(self.nodes[at].span) => -1,
            None => 0,
        }
    }

    pub fn is_parent(&self, parent: usize, child: usize) -> bool {
        self.nodes[child].parent == Some(parent)
    }

    pub fn is_ancestor(&self, ancestor: usize, descendant: usize) -> bool {
        match self.nodes[descendant].parent {
            Some(parent) => parent == ancestor || self.is_ancestor(ancestor, parent),
            None => false,
        }
    }

    /// Different children of one parent; roots are siblings of roots, and orphans of orphans with the same missing parent.
    pub fn are_siblings(&self, a: usize, b: usize) -> bool {
        let parent_id = |at: usize| self.nodes[at].span.parent.filter(|id| *id != 0);
        a != b
            && match (self.nodes[a].parent, self.nodes[b].parent) {
                (None, None) => parent_id(a) == parent_id(b),
                (a, b) => a == b,
            }
    }
}

/// Whether a span has no parent id.
pub fn is_root(span: &Span) -> bool {
    span.parent.is_none_or(|id| id == 0)
}

/// The other span whose id is the parent id. Of several, a server's parent is a client, that of all others a server, else the earliest.
fn parent_of(child: usize, spans: &[&Span]) -> Option<usize> {
    const SERVER: i32 = 2;
    const CLIENT: i32 = 3;
    let id = spans[child].parent.filter(|id| *id != 0)?;
    let candidates: Vec<usize> = (0..spans.len()).filter(|at| *at != child && spans[*at].id == id).collect();
    let preferred = if spans[child].kind == SERVER { CLIENT } else { SERVER };
    let fits = candidates.iter().find(|at| spans[**at].kind == preferred);
    fits.or(candidates.first()).copied()
}

/// Whether one comes back to `at` by going up, and no span on the way is earlier.
fn is_earliest_of_cycle(at: usize, parents: &[Option<usize>]) -> bool {
    let mut above = parents[at];
    for _ in 0..parents.len() {
        match above {
            Some(position) if position == at => return true,
            Some(position) if position < at => return false,
            Some(position) => above = parents[position],
            None => return false,
        }
    }
    false
}

/// The service of a span: the `service.name` of its resource, if it is text.
pub fn service(span: &Span) -> String {
    match of_key(span.resource.as_ref(), "service.name") {
        Value::Text(text) => text,
        _ => String::new(),
    }
}
