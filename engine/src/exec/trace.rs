//! One trace read from its sources: whole, or what a filter keeps of it.
//!
//! A filter reads only its own columns, of the rows of the trace; the rest is read when some span is kept. Rows lie in pre-order, so levels
//! below and above the matches are counted in one pass each.

use std::ops::Range;

use arrow::buffer::BooleanBuffer;

use super::{
    eval::{ColumnNeeds, Frame},
    memory::{Pool, Reservation},
    source::SourceRef,
    spansets::filter_rows,
    split::join_traces,
    stats::ScanMetrics,
};
use crate::{
    error::Result,
    optimize::filter_terms,
    query::{TraceFilter, TraceRequest, TraceResult},
    spans::{
        otlp::TraceAssembler,
        schema::Column,
        weight::{assembled_bytes, trace_bytes},
    },
};

/// More levels than a trace can have.
const ALL_LEVELS: u32 = u32::MAX - 1;
/// No match in this direction.
const NO_MATCH: u32 = u32::MAX;

/// The trace of `request` out of all `sources` that hold spans of it. Errors: `Invalid` when the filter fails on values of the trace, `Exhausted`, else
/// as the sources'. Cost: one read of a few columns for a filter, one of all columns unless it keeps nothing.
pub async fn trace_in(sources: &[SourceRef], request: &TraceRequest, metrics: &ScanMetrics, pool: &Pool) -> Result<TraceResult> {
    let id = u128::from_be_bytes(request.id.0);
    let whole: SourceRef = match sources {
        [only] => only.clone(),
        several => join_traces(&[id].into(), several, metrics, pool).await?,
    };
    let mut result = TraceResult { memory: Reservation::new("a trace", pool), ..TraceResult::default() };
    if let Some((group, rows)) = place_of(&whole, id) {
        let kept = match &request.filter {
            Some(filter) => kept_rows(&whole, group, &rows, filter, (metrics, pool)).await?,
            None => BooleanBuffer::new_set(rows.len()),
        };
        result.filtered = kept.count_set_bits() < rows.len();
        if kept.count_set_bits() > 0 {
            let (columns, events) = (whole.schema().columns(), whole.schema().event_columns());
            let reading = result.memory.another();
            let batch = reading.read(&whole, group, (&columns, &events), Some(std::slice::from_ref(&rows)), metrics).await?;
            result.memory.grow(assembled_bytes(&batch, whole.schema())?)?;
            let mut assembler = TraceAssembler::default();
            assembler.add(&batch, kept.set_indices(), whole.schema(), whole.resources(), whole.scopes())?;
            result.resource_spans = assembler.finish();
            result.memory.settle(trace_bytes(&result.resource_spans))?;
        }
    }
    result.stats = metrics.snapshot();
    Ok(result)
}

/// The row group that holds a trace, and the trace's rows in it.
fn place_of(source: &SourceRef, id: u128) -> Option<(usize, Range<usize>)> {
    let rows = source.traces().rows_of(id)?;
    source.row_groups().iter().enumerate().find_map(|(group, all)| {
        let first = all.first_row as usize;
        (first..first + all.rows as usize).contains(&rows.start).then(|| (group, rows.start - first..rows.end - first))
    })
}

/// Which of `rows`, the rows of one trace in row group `group`, the filter keeps.
async fn kept_rows(
    source: &SourceRef,
    group: usize,
    rows: &Range<usize>,
    filter: &TraceFilter,
    (metrics, pool): (&ScanMetrics, &Pool),
) -> Result<BooleanBuffer> {
    let mut frame = Frame::new(source.clone(), group, Some(vec![rows.clone()]), pool);
    let matches = filter_rows(&filter_terms(&filter.matches), &mut frame, group, &BooleanBuffer::new_set(rows.len()), metrics).await?;
    let levels = |levels: Option<u32>| levels.unwrap_or(ALL_LEVELS).min(ALL_LEVELS);
    let (below, above) = (levels(filter.levels_below), levels(filter.levels_above));
    if matches.count_set_bits() == 0 || (below, above) == (0, 0) {
        return Ok(matches);
    }
    let mut needs = ColumnNeeds::default();
    needs.add(Column::ParentDistance);
    frame.load(&needs, metrics).await?;
    Ok(with_relatives(&matches, frame.small_ints(Column::ParentDistance)?.values(), below, above))
}

/// `matches` with what lies up to `below` levels below one of them, or `above` levels above. `distance` is the number of rows from a span up
/// to its parent, 0 where that is absent.
fn with_relatives(matches: &BooleanBuffer, distance: &[i32], below: u32, above: u32) -> BooleanBuffer {
    let parent = |row: usize| usize::try_from(distance[row]).ok().filter(|&distance| distance > 0).and_then(|distance| row.checked_sub(distance));
    let own = |row| if matches.value(row) { 0 } else { NO_MATCH };
    let mut down: Vec<u32> = (0..distance.len()).map(own).collect();
    let mut up = down.clone();
    for row in 0..distance.len() {
        if let Some(parent) = parent(row) {
            down[row] = down[row].min(down[parent].saturating_add(1));
        }
    }
    for row in (0..distance.len()).rev() {
        if let Some(parent) = parent(row) {
            up[parent] = up[parent].min(up[row].saturating_add(1));
        }
    }
    down.iter().zip(&up).map(|(&down, &up)| down <= below || up <= above).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree in pre-order:
    /// ```text
    /// 0 ─┬─ 1 ─┬─ 2 ─── 3
    ///    │     └─ 4
    ///    └─ 5 ─── 6
    /// 7 ─── 8        (its parent is absent)
    /// ```
    const DISTANCE: [i32; 9] = [0, 1, 1, 1, 3, 5, 1, 0, 1];

    fn check(matches: &[usize], below: u32, above: u32, expected: &[usize]) {
        let matches: BooleanBuffer = (0..DISTANCE.len()).map(|row| matches.contains(&row)).collect();
        let kept: Vec<usize> = with_relatives(&matches, &DISTANCE, below, above).set_indices().collect();
        assert_eq!(kept, expected, "{matches:?} {below} {above}");
    }

    #[test]
    fn levels_are_counted_from_the_nearest_match() {
        check(&[2], 0, 0, &[2]);
        check(&[1], 1, 0, &[1, 2, 4]);
        check(&[1], 2, 0, &[1, 2, 3, 4]);
        check(&[0], ALL_LEVELS, 0, &[0, 1, 2, 3, 4, 5, 6]);
        check(&[0, 2], 1, 0, &[0, 1, 2, 3, 5]);
        check(&[3], 0, 1, &[2, 3]);
        check(&[3], 0, ALL_LEVELS, &[0, 1, 2, 3]);
        check(&[3, 6], 0, ALL_LEVELS, &[0, 1, 2, 3, 5, 6]);
        check(&[8], 5, 5, &[7, 8]);
    }

    #[test]
    fn siblings_never_come_along() {
        check(&[4], ALL_LEVELS, ALL_LEVELS, &[0, 1, 4]);
        check(&[2], 1, 1, &[1, 2, 3]);
    }

    #[test]
    fn nothing_matched_keeps_nothing() {
        check(&[], ALL_LEVELS, ALL_LEVELS, &[]);
    }
}
