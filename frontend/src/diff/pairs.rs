//! Which span of one trace is which of the other.
//!
//! From the tops down: among the children of two spans that are a pair, those of the same service, name and kind are paired, first such with
//! equal attributes, then in order. What is left is paired across the trees where it is unambiguous: a span that has got a new parent takes
//! its children along.

use std::collections::HashMap;

use skein_engine::{error::Result, stop};

use super::tree::{Identity, Tree};
use crate::llm::flat;

/// Pairs of spans.
#[derive(Debug)]
pub(super) struct Pairs {
    /// For each span of the base its partner.
    pub(super) of_base: Vec<Option<usize>>,
    /// For each span of the other trace its partner.
    pub(super) of_compare: Vec<Option<usize>>,
    /// Groups of siblings that cannot be told apart and are not equally many on both sides.
    pub(super) ambiguous: usize,
}

/// Spans of one identity on both sides, in order.
type Group = (Vec<usize>, Vec<usize>);

impl Pairs {
    /// Errors: `Cancelled`.
    pub(super) fn of(base: &Tree<'_>, compare: &Tree<'_>) -> Result<Self> {
        let mut pairs = Self { of_base: vec![None; base.nodes.len()], of_compare: vec![None; compare.nodes.len()], ambiguous: 0 };
        pairs.pair_down(base, compare, &base.roots, &compare.roots)?;
        for (of_base, of_compare) in groups(base, compare, &base.pre_order, &compare.pre_order) {
            let left = |spans: Vec<usize>, partners: &[Option<usize>]| spans.into_iter().filter(|&at| partners[at].is_none()).collect::<Vec<_>>();
            let (of_base, of_compare) = (left(of_base, &pairs.of_base), left(of_compare, &pairs.of_compare));
            if of_base.len() == of_compare.len() {
                for (&a, &b) in of_base.iter().zip(&of_compare) {
                    // A pair above may have brought one of them along.
                    if pairs.of_base[a].is_none() && pairs.of_compare[b].is_none() {
                        pairs.pair(a, b);
                        pairs.pair_down(base, compare, &base.nodes[a].children, &compare.nodes[b].children)?;
                    }
                }
            }
        }
        Ok(pairs)
    }

    /// The number of pairs.
    pub(super) fn count(&self) -> usize {
        self.of_base.iter().flatten().count()
    }

    /// Whether a pair hangs from spans that are no pair.
    pub(super) fn moved(&self, base: &Tree<'_>, compare: &Tree<'_>, a: usize, b: usize) -> bool {
        match (base.nodes[a].parent, compare.nodes[b].parent) {
            (Some(above_a), Some(above_b)) => self.of_base[above_a] != Some(above_b),
            (None, None) => false,
            _ => true,
        }
    }

    fn pair(&mut self, a: usize, b: usize) {
        self.of_base[a] = Some(b);
        self.of_compare[b] = Some(a);
    }

    /// Pairs two lists of siblings, then the children of each pair.
    fn pair_down<'t>(&mut self, base: &'t Tree<'_>, compare: &'t Tree<'_>, of_base: &'t [usize], of_compare: &'t [usize]) -> Result<()> {
        let mut lists = vec![(of_base, of_compare)];
        while let Some((of_base, of_compare)) = lists.pop() {
            stop::check()?;
            for group in groups(base, compare, of_base, of_compare) {
                for (a, b) in self.pair_group(base, compare, group) {
                    self.pair(a, b);
                    lists.push((&base.nodes[a].children, &compare.nodes[b].children));
                }
            }
        }
        Ok(())
    }

    fn pair_group(&mut self, base: &Tree<'_>, compare: &Tree<'_>, (mut of_base, mut of_compare): Group) -> Vec<(usize, usize)> {
        of_base.retain(|&at| self.of_base[at].is_none());
        of_compare.retain(|&at| self.of_compare[at].is_none());
        let mut found = Vec::new();
        if of_base.len() > 1 || of_compare.len() > 1 {
            let text = |tree: &Tree<'_>, at: usize| serde_json::Value::from(flat(&tree.nodes[at].span.attributes)).to_string();
            let mut equal: HashMap<String, Vec<usize>> = HashMap::new();
            for &b in of_compare.iter().rev() {
                equal.entry(text(compare, b)).or_default().push(b);
            }
            of_base.retain(|&a| match equal.get_mut(&text(base, a)).and_then(Vec::pop) {
                Some(b) => {
                    found.push((a, b));
                    false
                }
                None => true,
            });
            let taken: std::collections::HashSet<usize> = found.iter().map(|&(_, b)| b).collect();
            of_compare.retain(|b| !taken.contains(b));
        }
        self.ambiguous += usize::from(of_base.len() != of_compare.len() && !of_base.is_empty() && !of_compare.is_empty());
        found.extend(of_base.into_iter().zip(of_compare));
        found
    }
}

/// Spans by what they are, groups in order of first sight; only groups that both sides have.
fn groups(base: &Tree<'_>, compare: &Tree<'_>, of_base: &[usize], of_compare: &[usize]) -> Vec<Group> {
    let mut by_identity: HashMap<Identity<'_>, usize> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for &at in of_base {
        let group = *by_identity.entry(base.nodes[at].identity()).or_insert_with(|| {
            groups.push(Group::default());
            groups.len() - 1
        });
        groups[group].0.push(at);
    }
    for &at in of_compare {
        if let Some(&group) = by_identity.get(&compare.nodes[at].identity()) {
            groups[group].1.push(at);
        }
    }
    groups.retain(|(_, of_compare)| !of_compare.is_empty());
    groups
}
