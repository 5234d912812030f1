//! The document `trace-patch-v0`: spans that changed, came or went.
//!
//! Of a pair are compared: duration (with a tolerance), status and its message, place in the tree, the span's own attributes, and events by
//! their name and order. Resources are not: host and process differ between any two runs.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value as Json};
use skein_engine::{error::Result, stop};
use skein_proto::otlp::trace::v1::span::Event;

use super::{
    DiffFormat, Warning, differs,
    pairs::Pairs,
    tree::{Node, Tree},
};
use crate::llm::flat;

/// Numbers in all paths of a patch together; what is beyond is left out, and `truncated` says so. A deep chain would need a square of its
/// length.
const PATH_NUMBERS_MAX: usize = 1 << 20;

#[derive(Debug, Serialize)]
pub(super) struct Patch<'a> {
    version: &'static str,
    base: TraceMeta,
    compare: TraceMeta,
    pub(super) stats: Stats,
    modified: Vec<ModifiedSpan<'a>>,
    added: Vec<SpanChange<'a>>,
    removed: Vec<SpanChange<'a>>,
    pub(super) warnings: Vec<Warning>,
    /// Spans of the base that changed, also those that are left out of the document.
    #[serde(skip)]
    pub(super) modified_spans: Vec<usize>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct TraceMeta {
    trace_id: String,
    span_count: usize,
}

#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stats {
    #[serde(rename = "spanCountA")]
    span_count_a: usize,
    #[serde(rename = "spanCountB")]
    span_count_b: usize,
    pub(super) matched_spans: usize,
    pub(super) modified_spans: usize,
    pub(super) added_spans: usize,
    pub(super) removed_spans: usize,
    pub(super) field_changes: usize,
    pub(super) attribute_changes: usize,
    pub(super) event_changes: usize,
    truncated: bool,
}

#[derive(Debug, Serialize)]
struct ModifiedSpan<'a> {
    span: SpanRef<'a>,
    changes: Vec<Change<'a>>,
}

#[derive(Debug, Serialize)]
struct SpanRef<'a> {
    path: Vec<usize>,
    service: &'a str,
    name: &'a str,
    kind: &'static str,
}

#[derive(Debug, Serialize)]
struct Change<'a> {
    op: &'static str,
    target: Target<'a>,
    before: Json,
    after: Json,
}

#[derive(Debug, Default, Serialize)]
struct Target<'a> {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

#[derive(Debug, Serialize)]
struct SpanChange<'a> {
    target: SpanTarget,
    span: SpanSnapshot<'a>,
}

/// A removed span by its path in the base, an added one by its parent's path in the other trace and its place there.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct SpanTarget {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    path: Vec<usize>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parent_path: Vec<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
}

#[derive(Debug, Serialize)]
struct SpanSnapshot<'a> {
    #[serde(flatten)]
    span: SpanRef<'a>,
    duration_nanos: u64,
    status: &'static str,
}

/// Room for paths, and whether it was too small.
struct Room {
    numbers_left: usize,
    full: bool,
}

impl Room {
    fn take(&mut self, numbers: usize) -> bool {
        self.full |= numbers > self.numbers_left;
        if !self.full {
            self.numbers_left -= numbers;
        }
        !self.full
    }
}

impl<'a> Patch<'a> {
    /// Errors: `Cancelled`.
    pub(super) fn of(base: &Tree<'a>, compare: &Tree<'a>, pairs: &Pairs) -> Result<Self> {
        let meta = |tree: &Tree<'_>| TraceMeta { trace_id: tree.id.to_string(), span_count: tree.nodes.len() };
        let mut patch = Self {
            version: DiffFormat::Patch.name(),
            base: meta(base),
            compare: meta(compare),
            stats: Stats { span_count_a: base.nodes.len(), span_count_b: compare.nodes.len(), matched_spans: pairs.count(), ..Stats::default() },
            modified: Vec::new(),
            added: Vec::new(),
            removed: Vec::new(),
            warnings: base.warnings.iter().chain(&compare.warnings).cloned().collect(),
            modified_spans: Vec::new(),
        };
        let mut room = Room { numbers_left: PATH_NUMBERS_MAX, full: false };
        patch.add_modified(base, compare, pairs, &mut room)?;
        for (tree, partners, is_added) in [(compare, &pairs.of_compare, true), (base, &pairs.of_base, false)] {
            let unpaired: Vec<usize> = tree.pre_order.iter().copied().filter(|&at| partners[at].is_none()).collect();
            *(if is_added { &mut patch.stats.added_spans } else { &mut patch.stats.removed_spans }) = unpaired.len();
            for at in unpaired {
                stop::check()?;
                if let Some(change) = span_change(tree, at, is_added, &mut room) {
                    (if is_added { &mut patch.added } else { &mut patch.removed }).push(change);
                }
            }
        }
        patch.stats.truncated = room.full;
        if pairs.ambiguous > 0 {
            let message = format!(
                "{} groups of siblings with one service, name and kind differ in number; they were paired by equal attributes, then by start",
                pairs.ambiguous
            );
            patch.warnings.push(Warning { code: "ambiguous_span_match", message });
        }
        Ok(patch)
    }

    fn add_modified(&mut self, base: &Tree<'a>, compare: &Tree<'a>, pairs: &Pairs, room: &mut Room) -> Result<()> {
        for &a in &base.pre_order {
            stop::check()?;
            let Some(b) = pairs.of_base[a] else { continue };
            let (before, after) = (&base.nodes[a], &compare.nodes[b]);
            let mut fields = field_changes(before, after);
            let path = depth(base, a);
            let moved = pairs.moved(base, compare, a, b);
            if moved && room.take(path + depth(compare, b)) {
                fields.push(field("path", base.path(a).into(), compare.path(b).into()));
            }
            let attributes = attribute_changes(before, after);
            let events = event_changes(before, after);
            let stats = &mut self.stats;
            stats.field_changes += fields.len();
            stats.attribute_changes += attributes.len();
            stats.event_changes += events.len();
            let changes: Vec<Change<'a>> = fields.into_iter().chain(attributes).chain(events).collect();
            if changes.is_empty() && !moved {
                continue;
            }
            stats.modified_spans += 1;
            self.modified_spans.push(a);
            if room.take(path) {
                self.modified.push(ModifiedSpan { span: span_ref(base, a), changes });
            }
        }
        Ok(())
    }
}

fn depth(tree: &Tree<'_>, at: usize) -> usize {
    std::iter::successors(Some(at), |&at| tree.nodes[at].parent).take(PATH_NUMBERS_MAX + 1).count()
}

fn span_ref<'a>(tree: &Tree<'a>, at: usize) -> SpanRef<'a> {
    let node = &tree.nodes[at];
    SpanRef { path: tree.path(at), service: node.service, name: &node.span.name, kind: node.kind() }
}

fn span_change<'a>(tree: &Tree<'a>, at: usize, is_added: bool, room: &mut Room) -> Option<SpanChange<'a>> {
    if room.full || !room.take(2 * depth(tree, at)) {
        return None;
    }
    let node = &tree.nodes[at];
    let parent_path = || node.parent.map_or_else(Vec::new, |parent| tree.path(parent));
    let target = if is_added {
        SpanTarget { r#type: "span", parent_path: parent_path(), index: Some(node.index), ..SpanTarget::default() }
    } else {
        SpanTarget { r#type: "span", path: tree.path(at), ..SpanTarget::default() }
    };
    let span = SpanSnapshot { span: span_ref(tree, at), duration_nanos: node.duration_nanos(), status: node.status() };
    Some(SpanChange { target, span })
}

fn field(name: &'static str, before: Json, after: Json) -> Change<'static> {
    Change { op: "modify", target: Target { r#type: "field", name: Some(name), ..Target::default() }, before, after }
}

fn field_changes(before: &Node<'_>, after: &Node<'_>) -> Vec<Change<'static>> {
    let mut changes = Vec::new();
    let (nanos_before, nanos_after) = (before.duration_nanos(), after.duration_nanos());
    if differs(nanos_before, nanos_after) {
        changes.push(field("duration_nanos", nanos_before.into(), nanos_after.into()));
    }
    if before.status() != after.status() {
        changes.push(field("status", before.status().into(), after.status().into()));
    }
    if before.status_message() != after.status_message() {
        changes.push(field("status_message", before.status_message().into(), after.status_message().into()));
    }
    changes
}

fn op(before: Option<&Json>, after: Option<&Json>) -> &'static str {
    match (before, after) {
        (None, _) => "add",
        (_, None) => "remove",
        _ => "modify",
    }
}

fn attribute_changes(before: &Node<'_>, after: &Node<'_>) -> Vec<Change<'static>> {
    let (before, after) = (flat(&before.span.attributes), flat(&after.span.attributes));
    let keys: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let changed = keys.into_iter().map(|key| (key, before.get(key), after.get(key))).filter(|(_, before, after)| before != after);
    changed
        .map(|(key, before, after)| Change {
            op: op(before, after),
            target: Target { r#type: "attribute", scope: Some("span"), key: Some(key.clone()), ..Target::default() },
            before: before.cloned().unwrap_or_default(),
            after: after.cloned().unwrap_or_default(),
        })
        .collect()
}

/// Attributes of events of one name, before and after.
type Sides = (Vec<Map<String, Json>>, Vec<Map<String, Json>>);

/// Events by name, in their order: the first of a name is compared with the first, and so on.
fn event_changes<'a>(before: &Node<'a>, after: &Node<'a>) -> Vec<Change<'a>> {
    let mut by_name: BTreeMap<&'a str, Sides> = BTreeMap::new();
    let attributes = |event: &Event| flat(&event.attributes);
    before.span.events.iter().for_each(|event| by_name.entry(&event.name).or_default().0.push(attributes(event)));
    after.span.events.iter().for_each(|event| by_name.entry(&event.name).or_default().1.push(attributes(event)));
    let mut changes = Vec::new();
    for (name, (before, after)) in by_name {
        let (mut before, mut after) = (before.into_iter(), after.into_iter());
        loop {
            let (before, after) = (before.next().map(Json::from), after.next().map(Json::from));
            if before.is_none() && after.is_none() {
                break;
            }
            if before != after {
                let target = Target { r#type: "event", name: Some(name), ..Target::default() };
                let op = op(before.as_ref(), after.as_ref());
                changes.push(Change { op, target, before: before.unwrap_or_default(), after: after.unwrap_or_default() });
            }
        }
    }
    changes
}
