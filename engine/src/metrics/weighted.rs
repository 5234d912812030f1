//! Sampled spans into series: what each trace has in a cell is added up first, since traces are what was sampled.

use hashbrown::HashMap;

use super::{
    cells::{CellKind, Cells, Sparse, bucket_of, sparse_bytes},
    detail::Detail,
    estimate::{Estimate, TraceSpans, Weight},
    observe::Number,
    partial::Partial,
    sketch,
};
use crate::{error::Result, traceql::MetricsFunction};

/// A cell that a trace has spans in: place of the series, interval, and bucket.
type CellOf = (usize, u32, i32);

/// What the trace under way has in each cell.
#[derive(Debug, Default)]
pub struct TraceCells {
    cells: HashMap<CellOf, TraceSpans>,
}

/// The bucket of a value; None for a value that does not count.
pub type BucketOf = fn(Number) -> Option<i32>;

/// How `function` puts values in buckets; None for functions that do not.
pub fn bucket_by(detail: &Detail, function: &MetricsFunction) -> Option<BucketOf> {
    match detail.cell_kind(function) {
        CellKind::Buckets | CellKind::Sketches | CellKind::WeightedBuckets => Some(match detail.for_function(function).exact {
            true => |number| sketch::key_of(number.as_f64()),
            false => |number| match number {
                Number::Int(value) => bucket_of(value).map(|bucket| bucket as i32),
                Number::Float(_) => None,
            },
        }),
        CellKind::Counts | CellKind::FewCounts | CellKind::Numbers | CellKind::WeightedCounts | CellKind::WeightedNumbers => None,
    }
}

impl TraceCells {
    /// Adds a span.
    pub fn add(&mut self, cell: CellOf, weight: Weight, value: f64) {
        self.cells.entry(cell).or_default().add(weight, value);
    }

    /// Ends the trace: its cells go to their series. Errors: `Exhausted` when series take too much memory.
    pub fn flush(&mut self, partial: &mut Partial) -> Result<()> {
        let mut grown = 0;
        for ((place, at, bucket), spans) in self.cells.drain() {
            match partial.cells(place) {
                Cells::WeightedCounts(cells) => cells[at as usize].add(&spans),
                Cells::WeightedNumbers(cells) => cells[at as usize].add(&spans),
                Cells::WeightedBuckets(cells) => grown += add_bucket(&mut cells[at as usize], bucket, &spans),
                _ => debug_assert!(false, "cells without weights"),
            }
        }
        partial.hold(grown)
    }
}

/// Adds to a bucket and says how many bytes that took.
fn add_bucket(cell: &mut Sparse<Estimate>, bucket: i32, spans: &TraceSpans) -> usize {
    let known = cell.len();
    cell.entry(bucket).or_default().add(spans);
    (cell.len() - known) * sparse_bytes::<Estimate>()
}
