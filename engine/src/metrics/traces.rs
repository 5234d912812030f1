//! The traces of a frame, whose starts need not be read where the index has them.

use std::{borrow::Cow, ops::Range};

use crate::{
    block::index::RowTraces,
    error::{Error, Result},
    exec::{
        eval::{ColumnNeeds, Frame},
        source::SourceRef,
    },
    spans::{TraceId, schema::Column},
};

/// The traces of a frame that holds a whole row group, in the order of their rows.
#[derive(Debug)]
pub struct FrameTraces<'a> {
    first_row: usize,
    traces: RowTraces<'a>,
    starts: Cow<'a, [i64]>,
}

impl<'a> FrameTraces<'a> {
    /// Adds the columns that [`FrameTraces::of`] reads.
    pub fn add_needs(needs: &mut ColumnNeeds, source: &SourceRef) {
        if !source.traces().has_starts() {
            needs.add(Column::TraceStart);
        }
    }

    /// Those of `frame`. Cost: nothing where the index has starts, else a look at each. Errors: `Data`; `Internal` where a column is not loaded.
    pub fn of(frame: &'a Frame) -> Result<Self> {
        let first_row = frame.first_row();
        let traces = frame.source().traces().traces_in(first_row..first_row + frame.len());
        let traces = traces.ok_or_else(|| Error::data("the index names no trace for a row"))?;
        let starts = match traces.starts {
            Some(starts) => Cow::Borrowed(starts),
            None => {
                let starts = frame.ints(Column::TraceStart)?.values();
                Cow::Owned(traces.ends.iter().map(|&end| starts[end as usize - first_row - 1]).collect())
            }
        };
        Ok(Self { first_row, traces, starts })
    }

    /// Those of a frame that holds all rows of `index`, which has starts.
    #[cfg(test)]
    pub fn all(index: &'a crate::block::index::TraceIndex) -> Self {
        let rows = index.ids().iter().filter_map(|&id| index.rows_of(id)).map(|rows| rows.end).max();
        let traces = index.traces_in(0..rows.unwrap_or(0)).expect("rows have traces");
        Self { first_row: 0, traces, starts: Cow::Borrowed(traces.starts.expect("traces have starts")) }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.starts.len()
    }

    /// The start of each in Unix nanoseconds, and its rows in the frame.
    pub fn iter(&self) -> impl Iterator<Item = (i64, Range<usize>)> {
        let mut from = 0;
        self.starts.iter().zip(self.traces.ends).map(move |(&start, &end)| {
            let end = end as usize - self.first_row;
            (start, std::mem::replace(&mut from, end)..end)
        })
    }

    /// The id of the trace of a row, and its start in Unix nanoseconds.
    pub fn of_row(&self, row: usize) -> (TraceId, i64) {
        let at = self.traces.ends.partition_point(|&end| end as usize <= self.first_row + row);
        (TraceId(self.traces.id(at).to_be_bytes()), self.starts[at])
    }
}
