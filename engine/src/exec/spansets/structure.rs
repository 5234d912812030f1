//! Relations between the spans of a trace.
//!
//! Rows lie in pre-order, so what is below a span is an interval of rows, and each relation is one pass over two ascending lists.

use std::collections::HashMap;

use arrow::array::{Array, Int64Array};

use crate::{
    error::Result,
    exec::eval::{ColumnNeeds, Frame},
    spans::schema::Column,
    traceql::{Form, Relation},
};

/// What of the tree some relations read.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct TreeNeeds {
    descendants: bool,
    parents: bool,
    absent_parents: bool,
}

impl TreeNeeds {
    pub(super) fn add(&mut self, relation: Relation) {
        let intervals = matches!(relation, Relation::Descendant | Relation::Ancestor);
        self.descendants |= intervals;
        self.parents |= !intervals;
        self.absent_parents |= matches!(relation, Relation::Sibling);
    }

    /// Bytes a row that relations take while they run: a place in the table of parents.
    pub(super) fn working_bytes(&self) -> usize {
        const PARENT_BYTES: usize = 48;
        if self.absent_parents { PARENT_BYTES } else { 0 }
    }

    pub(super) fn columns(&self) -> ColumnNeeds {
        let mut needs = ColumnNeeds::default();
        let columns = [(self.descendants, Column::Descendants), (self.parents, Column::ParentDistance), (self.absent_parents, Column::ParentSpanId)];
        columns.into_iter().filter(|(needed, _)| *needed).for_each(|(_, column)| needs.add(column));
        needs
    }
}

/// The trees of a frame's traces; what was not asked for is empty.
pub(super) struct Tree<'a> {
    distance: &'a [i32],
    descendants: &'a [i32],
    absent_parents: Option<&'a Int64Array>,
}

impl<'a> Tree<'a> {
    /// What `needs` of `frame`, whose columns are loaded. Errors: `Internal` when they are not.
    pub(super) fn of(frame: &'a Frame, needs: TreeNeeds) -> Result<Self> {
        Ok(Self {
            distance: if needs.parents { frame.small_ints(Column::ParentDistance)?.values() } else { &[] },
            descendants: if needs.descendants { frame.small_ints(Column::Descendants)?.values() } else { &[] },
            absent_parents: if needs.absent_parents { Some(frame.ints(Column::ParentSpanId)?) } else { None },
        })
    }

    fn parent(&self, row: u32) -> Option<u32> {
        let distance = self.distance[row as usize];
        (distance > 0).then(|| row - distance as u32)
    }

    /// What siblings have in common: their parent's row, or the absent parent's id, or having none.
    fn parent_key(&self, row: u32) -> (Option<u32>, Option<i64>) {
        match (self.parent(row), self.absent_parents) {
            (Some(parent), _) => (Some(parent), None),
            (None, Some(absent)) if absent.is_valid(row as usize) => (None, Some(absent.value(row as usize))),
            (None, _) => (None, None),
        }
    }

    /// Those of `left` and `right` (both ascending) that the operator returns.
    pub(super) fn structural(&self, relation: Relation, form: Form, left: &[u32], right: &[u32]) -> Vec<u32> {
        let related = self.related(relation, left, right);
        match form {
            Form::Plain => right.iter().zip(&related).filter(|&(_, &hit)| hit).map(|(&row, _)| row).collect(),
            Form::Negated => right.iter().zip(&related).filter(|&(_, &hit)| !hit).map(|(&row, _)| row).collect(),
            Form::Union => {
                let back = self.related(inverse(relation), right, left);
                let hits =
                    |rows: &[u32], hits: &[bool]| -> Vec<u32> { rows.iter().zip(hits).filter(|&(_, &hit)| hit).map(|(&row, _)| row).collect() };
                union(&hits(left, &back), &hits(right, &related))
            }
        }
    }

    /// For each of `right`: whether some of `left` is related to it.
    fn related(&self, relation: Relation, left: &[u32], right: &[u32]) -> Vec<bool> {
        match relation {
            Relation::Descendant => {
                let (mut at, mut until) = (0, 0);
                let below = |&row: &u32| {
                    while at < left.len() && left[at] < row {
                        until = until.max(left[at] + self.descendants[left[at] as usize] as u32 + 1);
                        at += 1;
                    }
                    row < until
                };
                right.iter().map(below).collect()
            }
            Relation::Child => right.iter().map(|&row| self.parent(row).is_some_and(|parent| left.binary_search(&parent).is_ok())).collect(),
            Relation::Ancestor => {
                let above = |&row: &u32| {
                    let next = left.partition_point(|&other| other <= row);
                    left.get(next).is_some_and(|&other| other <= row + self.descendants[row as usize] as u32)
                };
                right.iter().map(above).collect()
            }
            Relation::Parent => {
                let mut parents: Vec<u32> = left.iter().filter_map(|&row| self.parent(row)).collect();
                parents.sort_unstable();
                right.iter().map(|row| parents.binary_search(row).is_ok()).collect()
            }
            Relation::Sibling => {
                let mut by_parent: HashMap<(Option<u32>, Option<i64>), (u32, u32)> = HashMap::new();
                for &row in left {
                    let entry = by_parent.entry(self.parent_key(row)).or_insert((0, row));
                    *entry = (entry.0 + 1, row);
                }
                let sibling = |&row: &u32| by_parent.get(&self.parent_key(row)).is_some_and(|&(count, only)| count > 1 || only != row);
                right.iter().map(sibling).collect()
            }
        }
    }
}

fn inverse(relation: Relation) -> Relation {
    match relation {
        Relation::Descendant => Relation::Ancestor,
        Relation::Ancestor => Relation::Descendant,
        Relation::Child => Relation::Parent,
        Relation::Parent => Relation::Child,
        Relation::Sibling => Relation::Sibling,
    }
}

/// Merges two ascending lists.
pub(super) fn union(a: &[u32], b: &[u32]) -> Vec<u32> {
    let mut out = Vec::with_capacity(a.len() + b.len());
    let (mut i, mut j) = (0, 0);
    while i < a.len() && j < b.len() {
        out.push(a[i].min(b[j]));
        i += usize::from(a[i] == out[out.len() - 1]);
        j += usize::from(b[j] == out[out.len() - 1]);
    }
    out.extend_from_slice(&a[i..]);
    out.extend_from_slice(&b[j..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_merge_without_repeats() {
        assert_eq!(union(&[1, 3, 5], &[2, 3, 6]), [1, 2, 3, 5, 6]);
        assert_eq!(union(&[], &[2]), [2]);
    }
}
