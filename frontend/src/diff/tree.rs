//! A trace as a tree: siblings by start and id, every span below exactly one parent or at the top.

use std::collections::HashMap;

use skein_engine::{error::Result, spans::TraceId, stop};
use skein_proto::otlp::{
    common::v1::any_value::Value,
    trace::v1::{ResourceSpans, Span, span::SpanKind, status::StatusCode},
};

use super::{Side, Warning};

/// What a span is, apart from when and how it ran: service, name, kind.
pub(super) type Identity<'a> = (&'a str, &'a str, i32);

#[derive(Debug)]
pub(super) struct Node<'a> {
    pub(super) span: &'a Span,
    pub(super) service: &'a str,
    pub(super) parent: Option<usize>,
    /// In order.
    pub(super) children: Vec<usize>,
    /// The place among its siblings.
    pub(super) index: usize,
}

impl<'a> Node<'a> {
    pub(super) fn identity(&self) -> Identity<'a> {
        (self.service, &self.span.name, self.span.kind)
    }

    pub(super) fn duration_nanos(&self) -> u64 {
        self.span.end_time_unix_nano.saturating_sub(self.span.start_time_unix_nano)
    }

    pub(super) fn kind(&self) -> &'static str {
        SpanKind::try_from(self.span.kind).unwrap_or_default().as_str_name()
    }

    pub(super) fn status(&self) -> &'static str {
        let code = self.span.status.as_ref().map_or(0, |status| status.code);
        StatusCode::try_from(code).unwrap_or_default().as_str_name()
    }

    pub(super) fn status_message(&self) -> &'a str {
        self.span.status.as_ref().map_or("", |status| &status.message)
    }

    pub(super) fn is_error(&self) -> bool {
        self.span.status.as_ref().is_some_and(|status| status.code == StatusCode::Error as i32)
    }
}

/// The spans of a trace. Invariant DI-1: following parents ends at one of `roots`.
#[derive(Debug)]
pub(super) struct Tree<'a> {
    pub(super) id: TraceId,
    /// By start, then id.
    pub(super) nodes: Vec<Node<'a>>,
    /// In order: spans whose parent is not in the trace.
    pub(super) roots: Vec<usize>,
    /// All spans, parents before their children, siblings in order.
    pub(super) pre_order: Vec<usize>,
    pub(super) warnings: Vec<Warning>,
}

impl<'a> Tree<'a> {
    /// Errors: `Cancelled`.
    pub(super) fn of(side: Side<'a>) -> Result<Self> {
        stop::check()?;
        let mut nodes = nodes_of(side.resource_spans);
        nodes.sort_by(|a, b| {
            let key = |node: &Node<'a>| (node.span.start_time_unix_nano, node.span.span_id.as_slice(), node.span.kind);
            key(a).cmp(&key(b)).then_with(|| a.identity().cmp(&b.identity()))
        });
        let mut by_id: HashMap<&[u8], usize> = HashMap::with_capacity(nodes.len());
        let mut repeated = 0;
        for (at, node) in nodes.iter().enumerate() {
            repeated += usize::from(*by_id.entry(&node.span.span_id).or_insert(at) != at);
        }
        let mut parents: Vec<Option<usize>> = nodes
            .iter()
            .map(|node| by_id.get(node.span.parent_span_id.as_slice()).copied().filter(|_| !node.span.parent_span_id.is_empty()))
            .collect();
        break_cycles(&mut parents);

        let mut roots = Vec::new();
        for (at, &parent) in parents.iter().enumerate() {
            nodes[at].parent = parent;
            let siblings = match parent {
                Some(parent) => &mut nodes[parent].children,
                None => &mut roots,
            };
            siblings.push(at);
            nodes[at].index = match parent {
                Some(parent) => nodes[parent].children.len() - 1,
                None => roots.len() - 1,
            };
        }
        let mut tree = Self { id: side.id, nodes, roots, pre_order: Vec::new(), warnings: Vec::new() };
        tree.pre_order = tree.walk();
        tree.warn(repeated);
        Ok(tree)
    }

    fn walk(&self) -> Vec<usize> {
        let mut order = Vec::with_capacity(self.nodes.len());
        let mut left: Vec<usize> = self.roots.iter().rev().copied().collect();
        while let Some(at) = left.pop() {
            order.push(at);
            left.extend(self.nodes[at].children.iter().rev());
        }
        order
    }

    fn warn(&mut self, repeated: usize) {
        let mut warn = |code, count, what: &str| {
            if count > 0 {
                self.warnings.push(Warning { code, message: format!("trace {}: {count} {what}", self.id) });
            }
        };
        warn("duplicate_span_id", repeated, "spans have the id of an earlier one; children belong to the earliest");
        let backwards = self.nodes.iter().filter(|node| node.span.end_time_unix_nano < node.span.start_time_unix_nano).count();
        warn("invalid_duration", backwards, "spans end before they start; their duration counts as 0");
    }

    /// The way from a root to a span: its ancestors' places among their siblings, then its own.
    pub(super) fn path(&self, at: usize) -> Vec<usize> {
        let mut path: Vec<usize> = std::iter::successors(Some(at), |&at| self.nodes[at].parent).map(|at| self.nodes[at].index).collect();
        path.reverse();
        path
    }

    /// First start to last end.
    pub(super) fn duration_nanos(&self) -> u64 {
        let start = self.nodes.iter().map(|node| node.span.start_time_unix_nano).min().unwrap_or(0);
        let end = self.nodes.iter().map(|node| node.span.end_time_unix_nano).max().unwrap_or(0);
        end.saturating_sub(start)
    }

    /// All spans' durations added up.
    pub(super) fn sum_nanos(&self) -> u64 {
        self.nodes.iter().fold(0, |sum, node| sum.saturating_add(node.duration_nanos()))
    }

    pub(super) fn error_count(&self) -> usize {
        self.nodes.iter().filter(|node| node.is_error()).count()
    }
}

fn nodes_of(resource_spans: &[ResourceSpans]) -> Vec<Node<'_>> {
    let mut nodes = Vec::new();
    for resource in resource_spans {
        let attributes = resource.resource.iter().flat_map(|resource| &resource.attributes);
        let service = attributes.filter(|attribute| attribute.key == "service.name").find_map(|attribute| match &attribute.value.as_ref()?.value {
            Some(Value::StringValue(name)) => Some(name.as_str()),
            _ => None,
        });
        let spans = resource.scope_spans.iter().flat_map(|scope| &scope.spans);
        nodes.extend(spans.map(|span| Node { span, service: service.unwrap_or_default(), parent: None, children: Vec::new(), index: 0 }));
    }
    nodes
}

/// Makes a top of one span of each circle of parents.
fn break_cycles(parents: &mut [Option<usize>]) {
    let mut seen_from = vec![usize::MAX; parents.len()];
    for start in 0..parents.len() {
        let mut at = start;
        while seen_from[at] == usize::MAX {
            seen_from[at] = start;
            match parents[at] {
                Some(parent) if seen_from[parent] == start => parents[at] = None,
                Some(parent) => at = parent,
                None => break,
            }
        }
    }
}
