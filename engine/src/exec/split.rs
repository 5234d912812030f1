//! Traces whose spans lie in several sources: found by their ids, brought together in memory, and left out elsewhere, so that every source
//! holds whole traces and each trace lies in one.

use std::{collections::BTreeSet, ops::Range, sync::Arc};

use super::{
    memory::{Pool, Reservation},
    source::{MemorySource, SourceRef},
    stats::ScanMetrics,
};
use crate::{error::Result, spans::builder::SpanBuilder, stop};

/// The ids that occur in more than one of `lists`, each ascending. Cost: merging them two by two.
pub fn split_ids(lists: &[&[u128]]) -> BTreeSet<u128> {
    let mut split = BTreeSet::new();
    for (at, list) in lists.iter().enumerate() {
        for other in &lists[at + 1..] {
            common(list, other, &mut split);
        }
    }
    split
}

/// Adds the ids in both ascending lists. The shorter one leads; the longer one is searched from where the last search ended.
pub fn common(a: &[u128], b: &[u128], out: &mut BTreeSet<u128>) {
    let (short, mut long) = if a.len() < b.len() { (a, b) } else { (b, a) };
    for &id in short {
        let mut step = 1;
        while step < long.len() && long[step] < id {
            step *= 2;
        }
        let from = long[..(step + 1).min(long.len())].partition_point(|&other| other < id);
        long = &long[from..];
        match long.first() {
            None => return,
            Some(&other) if other == id => drop(out.insert(id)),
            Some(_) => {}
        }
    }
}

/// Bytes a span that its order takes.
const ORDER_BYTES: usize = 32;

/// Brings the spans of `ids` from all `sources` together, in memory of `pool`. Cost: reads all columns of the row groups that hold them, only
/// their rows. Errors: as the sources', `Exhausted`.
pub async fn join_traces(ids: &BTreeSet<u128>, sources: &[SourceRef], metrics: &ScanMetrics, pool: &Pool) -> Result<Arc<MemorySource>> {
    let memory = Reservation::new("traces that lie in several places", pool);
    let mut builder = SpanBuilder::default();
    for source in sources {
        append_traces(ids.iter().copied(), source, &mut builder, metrics, &memory).await?;
    }
    memory.grow(builder.len() * ORDER_BYTES)?;
    Ok(Arc::new(MemorySource::new(builder.snapshot()).holding(memory)))
}

/// Appends the spans that `source` has of `ids` to `builder`, for which `memory` grows by what they take as columns.
/// Errors: as the source's, `Exhausted`.
pub async fn append_traces(
    ids: impl Iterator<Item = u128>,
    source: &SourceRef,
    builder: &mut SpanBuilder,
    metrics: &ScanMetrics,
    memory: &Reservation,
) -> Result<()> {
    let mut ranges: Vec<Range<usize>> = ids.filter_map(|id| source.traces().rows_of(id)).collect();
    ranges.sort_by_key(|range| range.start);
    let (columns, events) = (source.schema().columns(), source.schema().event_columns());
    for (group, rows) in source.row_groups().iter().enumerate() {
        let all = rows.first_row as usize..(rows.first_row + rows.rows) as usize;
        let own: Vec<Range<usize>> =
            ranges.iter().filter(|range| all.contains(&range.start)).map(|range| range.start - all.start..range.end - all.start).collect();
        if !own.is_empty() {
            stop::check()?;
            let reading = memory.another();
            let batch = reading.read(source, group, (&columns, &events), Some(&own), metrics).await?;
            memory.grow(reading.bytes())?;
            builder.append_batch(&batch, source.schema(), source.resources(), source.scopes())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_ids_are_found_whatever_the_lengths() {
        let evens: Vec<u128> = (0..1000).map(|n| n * 2).collect();
        let threes: Vec<u128> = (0..10).map(|n| n * 3).collect();
        let expected: BTreeSet<u128> = [0, 6, 12, 18, 24].into();
        assert_eq!(split_ids(&[&evens, &threes]), expected);
        assert_eq!(split_ids(&[&threes, &[], &evens]), expected);
        assert_eq!(split_ids(&[&evens]), BTreeSet::new());
        assert_eq!(split_ids(&[&[1998], &evens]), [1998].into());
    }
}
