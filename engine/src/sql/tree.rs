//! Trees of traces in a frame, as SQL asks of them: self times, critical paths, and where a span stands.
//!
//! Rows of a trace lie in pre-order, children by start, so each of these is a pass over the rows. Definitions are in `docs/sql.md`. Ends
//! before starts count as the start, and what of a child lies outside of its parent counts for nothing.

use std::{cmp::Reverse, sync::Arc};

use arrow::array::{ArrayRef, StringViewBuilder, UInt32Array};

use crate::{
    error::Result,
    exec::eval::Frame,
    spans::{read::Texts, schema::Column},
};

/// The columns that trees with times are made of.
pub const TIMED_TREE: [Column; 4] = [Column::ParentDistance, Column::Descendants, Column::StartOffset, Column::Duration];

/// What is between two names of a path; flame graph tools read it so.
const PATH_SEPARATOR: char = ';';

/// Bytes a row of the results and of what is kept while they are made.
const WORKING_BYTES: usize = 24;

/// A part of a trace's time, in nanoseconds since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Interval {
    start: u64,
    end: u64,
}

impl Interval {
    const EMPTY: Self = Self { start: 0, end: 0 };

    fn within(self, other: Self) -> Self {
        Self { start: self.start.max(other.start), end: self.end.min(other.end) }
    }

    fn is_empty(self) -> bool {
        self.start >= self.end
    }

    fn nanos(self) -> i64 {
        i64::try_from(self.end.saturating_sub(self.start)).unwrap_or(i64::MAX)
    }
}

/// The trees of all traces of a frame, with the times of their spans.
#[derive(Debug)]
pub struct TimedTree<'a> {
    distance: &'a [i32],
    descendants: &'a [i32],
    offsets: &'a [i64],
    durations: &'a [i64],
}

impl<'a> TimedTree<'a> {
    /// The trees of `frame`, which has loaded [`TIMED_TREE`]. Errors: `Internal` when it has not, `Exhausted`.
    pub fn of(frame: &'a Frame) -> Result<Self> {
        frame.hold(frame.len() * WORKING_BYTES)?;
        Ok(Self {
            distance: frame.small_ints(Column::ParentDistance)?.values(),
            descendants: frame.small_ints(Column::Descendants)?.values(),
            offsets: frame.ints(Column::StartOffset)?.values(),
            durations: frame.ints(Column::Duration)?.values(),
        })
    }

    fn interval(&self, row: usize) -> Interval {
        let start = self.offsets[row] as u64;
        Interval { start, end: start.saturating_add(self.durations[row].max(0) as u64) }
    }

    /// The direct children of `row`, by start.
    fn children(&self, row: usize) -> impl Iterator<Item = usize> + '_ {
        let below = row + 1..(row + 1 + self.descendants[row] as usize).min(self.distance.len());
        let first = Some(below.start).filter(|first| below.contains(first));
        std::iter::successors(first, move |&child| Some(child + 1 + self.descendants[child] as usize).filter(|next| below.contains(next)))
    }

    /// Of each span the nanoseconds in which none of its children runs.
    pub fn self_nanos(&self) -> Vec<i64> {
        (0..self.distance.len()).map(|row| self.self_nanos_of(row)).collect()
    }

    fn self_nanos_of(&self, row: usize) -> i64 {
        let own = self.interval(row);
        let (mut covered_until, mut alone) = (own.start, 0);
        for part in self.children(row).map(|child| self.interval(child).within(own)).filter(|part| !part.is_empty()) {
            alone += Interval { start: covered_until, end: part.start }.nanos();
            covered_until = covered_until.max(part.end);
        }
        alone + Interval { start: covered_until, end: own.end }.nanos()
    }

    /// Of each span the nanoseconds that it lies on the critical path of its root. Cost: each child is sorted once among its siblings.
    pub fn critical_path_nanos(&self) -> Vec<i64> {
        let rows = self.distance.len();
        // The part of the path that is of a span and what is below it. Parents come first, so one pass hands all parts down.
        let mut parts = vec![Interval::EMPTY; rows];
        let mut nanos = vec![0; rows];
        let mut latest_first: Vec<(Interval, usize)> = Vec::new();
        for row in 0..rows {
            if self.distance[row] <= 0 {
                parts[row] = self.interval(row);
            }
            let own = parts[row];
            if own.is_empty() {
                continue;
            }
            latest_first.clear();
            let children = self.children(row).map(|child| (self.interval(child).within(own), child));
            latest_first.extend(children.filter(|(part, _)| !part.is_empty()));
            latest_first.sort_unstable_by_key(|&(part, child)| (Reverse(part.end), part.start, child));
            let (mut point, mut handed_down) = (own.end, 0);
            for &(part, child) in &latest_first {
                if part.end <= point {
                    parts[child] = part;
                    handed_down += part.nanos();
                    point = part.start;
                }
            }
            nanos[row] = own.nanos() - handed_down;
        }
        nanos
    }
}

/// How many spans each span is below its root. `distance` is [`Column::ParentDistance`].
pub fn depths(distance: &[i32]) -> Vec<i64> {
    let mut depths: Vec<i64> = Vec::with_capacity(distance.len());
    for (row, &distance) in distance.iter().enumerate() {
        depths.push(if distance > 0 { depths[row - distance as usize] + 1 } else { 0 });
    }
    depths
}

/// The names from the root to each of `rows`, with a `;` between two; one within a name becomes a comma. Errors: `Exhausted`: a deep trace
/// has long paths.
pub fn paths(frame: &Frame, distance: &[i32], names: &Texts, rows: &UInt32Array) -> Result<ArrayRef> {
    let parent = |row: usize| (distance[row] > 0).then(|| row - distance[row] as usize);
    let mut lengths: Vec<usize> = Vec::with_capacity(distance.len());
    for row in 0..distance.len() {
        let own = names.get(row).map_or(0, str::len);
        lengths.push(parent(row).map_or(own, |parent| lengths[parent] + PATH_SEPARATOR.len_utf8() + own));
    }
    frame.hold(rows.values().iter().map(|&row| lengths[row as usize] + size_of::<u128>()).sum())?;
    let mut paths = StringViewBuilder::with_capacity(rows.len());
    let (mut path, mut way) = (String::new(), Vec::new());
    for &row in rows.values() {
        way.clear();
        way.extend(std::iter::successors(Some(row as usize), |&row| parent(row)));
        path.clear();
        for (depth, &row) in way.iter().rev().enumerate() {
            if depth > 0 {
                path.push(PATH_SEPARATOR);
            }
            path.extend(names.get(row).unwrap_or_default().chars().map(|c| if c == PATH_SEPARATOR { ',' } else { c }));
        }
        paths.append_value(&path);
    }
    Ok(Arc::new(paths.finish()))
}
