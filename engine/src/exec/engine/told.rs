//! What is told of names and values while they are looked for.

use std::collections::BTreeSet;

use futures::future::BoxFuture;

use super::{cost_of_tags, row_groups_of};
use crate::{
    exec::{
        source::SourceRef,
        stats::ScanMetrics,
        tags::{FoundValues, NamesByScope},
    },
    parts::{Beat, Part, Parts},
    query::{TagNames, TagScope, TagValues},
};

/// A teller as [`tags`](crate::exec::tags) calls it; None tells nothing.
pub(super) fn telling<F, T: Tells<F> + Send>(teller: &mut Option<T>) -> impl FnMut(&F) -> Option<BoxFuture<'static, ()>> + Send {
    move |found| teller.as_mut().and_then(|teller| teller.part(found))
}

/// Tells what was found since it was last asked, when that is due.
pub(super) trait Tells<F> {
    /// A part, being told.
    fn part(&mut self, found: &F) -> Option<BoxFuture<'static, ()>>;
}

/// The parts of a request for names.
pub(super) struct ToldNames<'a> {
    parts: &'a Parts<TagNames>,
    beat: Beat,
    scope: Option<TagScope>,
    sources: &'a [SourceRef],
    metrics: &'a ScanMetrics,
    told: NamesByScope,
}

impl<'a> ToldNames<'a> {
    pub(super) fn new(parts: &'a Parts<TagNames>, scope: Option<TagScope>, sources: &'a [SourceRef], metrics: &'a ScanMetrics) -> Self {
        Self { parts, beat: parts.pace().beat(), scope, sources, metrics, told: NamesByScope::new() }
    }
}

impl Tells<NamesByScope> for ToldNames<'_> {
    fn part(&mut self, found: &NamesByScope) -> Option<BoxFuture<'static, ()>> {
        if !self.beat.is_due() {
            return None;
        }
        let mut scopes = Vec::new();
        for (&scope, names) in found.iter().filter(|(scope, _)| self.scope.is_none_or(|only| only == **scope)) {
            let told = self.told.entry(scope).or_default();
            let new: Vec<String> = names.difference(told).cloned().collect();
            told.extend(new.iter().cloned());
            if !new.is_empty() {
                scopes.push((scope, new));
            }
        }
        let found = TagNames { scopes, stats: cost_of_tags(self.sources, self.metrics) };
        Some(self.parts.tell(Part { found, row_groups: row_groups_of(self.sources) }))
    }
}

/// The parts of a request for values.
pub(super) struct ToldValues<'a> {
    parts: &'a Parts<TagValues>,
    beat: Beat,
    sources: &'a [SourceRef],
    metrics: &'a ScanMetrics,
    told: BTreeSet<(&'static str, String)>,
}

impl<'a> ToldValues<'a> {
    pub(super) fn new(parts: &'a Parts<TagValues>, sources: &'a [SourceRef], metrics: &'a ScanMetrics) -> Self {
        Self { parts, beat: parts.pace().beat(), sources, metrics, told: BTreeSet::new() }
    }
}

impl Tells<FoundValues> for ToldValues<'_> {
    fn part(&mut self, found: &FoundValues) -> Option<BoxFuture<'static, ()>> {
        if !self.beat.is_due() {
            return None;
        }
        let found = TagValues { values: found.take_new(&mut self.told), stats: cost_of_tags(self.sources, self.metrics) };
        Some(self.parts.tell(Part { found, row_groups: row_groups_of(self.sources) }))
    }
}
