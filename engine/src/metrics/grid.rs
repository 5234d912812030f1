//! The chosen spans of a frame by group and interval.

use super::observe::Chosen;

/// Most cells. Spans in more are added one by one.
pub const CELLS_MAX: usize = 1 << 18;

/// Counters of a cell. Neighbours are mostly in the same one, and a counter waits for itself.
const LANES: usize = 4;

/// Bytes that counting takes for each cell.
pub const CELL_BYTES: usize = LANES * size_of::<u32>() + size_of::<u64>() + size_of::<bool>();

/// A cell for each chosen span.
#[derive(Debug)]
pub struct Grid {
    cells: Vec<u32>,
    first: u32,
    width: usize,
    counts: Vec<u64>,
}

impl Grid {
    /// The cells of `chosen`, of which `rows` tells the group, one of `groups`. None where they would be too many. Cost: one to two
    /// nanoseconds a span.
    pub fn of(chosen: &Chosen, rows: &[u32], groups: usize) -> Option<Self> {
        // The rows of a frame are close in time: few of the query's intervals have any.
        let (first, width) = chosen.range();
        let count = groups.checked_mul(width).filter(|&count| count <= CELLS_MAX)?;
        let cell = |(&group, &at): (&u32, &u32)| group * width as u32 + (at - first);
        let cells: Vec<u32> = rows.iter().zip(&chosen.intervals).map(cell).collect();
        let counts = counts(&cells, count);
        Some(Self { cells, first, width, counts })
    }

    /// The first interval of each group that has a cell.
    pub fn first(&self) -> usize {
        self.first as usize
    }

    /// Intervals that have a cell: those of group 0 come first, then those of group 1.
    pub fn width(&self) -> usize {
        self.width
    }

    /// How many spans are in each cell.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// The spans in cells that are `wanted`, ascending. Cost: least where there are none; else a look at each span up to the last of them.
    pub fn spans_in(&self, wanted: &[bool]) -> Vec<u32> {
        let count: u64 = self.counts.iter().zip(wanted).filter(|(_, wanted)| **wanted).map(|(count, _)| count).sum();
        // One more, for what is written ahead.
        let (mut spans, mut found) = (vec![0; count as usize + 1], 0);
        for (chunk, cells) in self.cells.chunks(CHUNK).enumerate() {
            if found == count as usize {
                break;
            }
            // Without a branch: nobody can guess it.
            for (at, &cell) in cells.iter().enumerate() {
                spans[found] = (chunk * CHUNK + at) as u32;
                found += usize::from(wanted[cell as usize]);
            }
        }
        spans.truncate(found);
        spans
    }
}

/// Spans that are looked at before it is asked whether that is all.
const CHUNK: usize = 1024;

/// How many of `cells` are each of `count` ones.
fn counts(cells: &[u32], count: usize) -> Vec<u64> {
    let mut counters = vec![[0_u32; LANES]; count];
    let (fours, rest) = cells.as_chunks::<LANES>();
    fours.iter().for_each(|cells| cells.iter().enumerate().for_each(|(lane, &cell)| counters[cell as usize][lane] += 1));
    rest.iter().for_each(|&cell| counters[cell as usize][0] += 1);
    counters.iter().map(|lanes| lanes.iter().copied().map(u64::from).sum()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn spans_are_counted_and_found(spans in proptest::collection::vec((0..5_u32, 7..12_u32), 0..2500), wanted in proptest::collection::vec(any::<bool>(), 25)) {
            let (groups, intervals): (Vec<u32>, Vec<u32>) = spans.iter().copied().unzip();
            let grid = Grid::of(&Chosen::all_in(intervals), &groups, 5).unwrap();
            let cell = |group: u32, at: u32| group as usize * grid.width() + at as usize - grid.first();
            let counts = grid.counts();
            prop_assert_eq!(counts.len(), 5 * grid.width());
            for (group, at) in (0..5).flat_map(|group| (grid.first()..grid.first() + grid.width()).map(move |at| (group, at as u32))) {
                let expected = spans.iter().filter(|span| **span == (group, at)).count();
                prop_assert_eq!(counts[cell(group, at)], expected as u64);
            }
            let expected: Vec<u32> = (0..spans.len() as u32).filter(|&at| wanted[cell(groups[at as usize], spans[at as usize].1)]).collect();
            prop_assert_eq!(grid.spans_in(&wanted), expected);
        }
    }

    #[test]
    fn too_many_cells_are_none() {
        let chosen = Chosen::all_in(vec![0, 9]);
        assert!(Grid::of(&chosen, &[0, 1], CELLS_MAX / 10).is_some() && Grid::of(&chosen, &[0, 1], CELLS_MAX / 10 + 1).is_none());
        assert!(Grid::of(&chosen, &[0, 1], usize::MAX).is_none());
    }
}
