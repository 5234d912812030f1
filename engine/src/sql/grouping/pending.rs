//! Functions that have no groups in columns, given the rows of several batches at once.

use std::mem::take;

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray},
    compute::concat,
};
use datafusion::{
    common::Result,
    logical_expr::{EmitTo, GroupsAccumulator},
    physical_expr::GroupsAccumulatorAdapter,
};

/// Rows and bytes from which on what waits is handed on. DataFusion keeps four bytes a group and row of the largest portion, and counts them nowhere.
const WAITING_ROWS: usize = 1 << 16;
const WAITING_BYTES: usize = 4 << 20;

/// A function of which each group is an object of its own, which takes some microseconds whenever it is given rows, however few: a digest is
/// merged with them. So rows wait until there are many. **Memory**: that of the objects, and of what waits; twice that when it is handed on.
pub(super) struct Pending {
    groups: GroupsAccumulatorAdapter,
    waiting: Vec<Rows>,
    rows: usize,
    bytes: usize,
    /// How many groups there are.
    count: usize,
}

/// The arguments for some rows, the group of each, and which of them count.
struct Rows {
    values: Vec<ArrayRef>,
    groups: Vec<usize>,
    filter: Option<BooleanArray>,
}

impl Rows {
    fn bytes(&self) -> usize {
        let values = self.values.iter().map(|values| values.get_array_memory_size()).sum::<usize>();
        values + (size_of::<usize>() + 1) * self.groups.len()
    }

    /// All rows of `parts`, which are of one function.
    fn concatenated(mut parts: Vec<Self>) -> Result<Option<Self>> {
        let Some(first) = parts.first() else { return Ok(None) };
        if parts.len() == 1 {
            return Ok(parts.pop());
        }
        let column = |at: usize| concat(&parts.iter().map(|part| &*part.values[at]).collect::<Vec<_>>());
        let values = (0..first.values.len()).map(column).collect::<std::result::Result<_, _>>()?;
        let filters: Vec<&dyn Array> = parts.iter().filter_map(|part| part.filter.as_ref().map(|filter| filter as &dyn Array)).collect();
        let filter = if filters.is_empty() { None } else { Some(concat(&filters)?.as_boolean().clone()) };
        Ok(Some(Self { values, groups: parts.iter().flat_map(|part| part.groups.iter().copied()).collect(), filter }))
    }
}

impl Pending {
    pub(super) fn new(groups: GroupsAccumulatorAdapter) -> Self {
        Self { groups, waiting: Vec::new(), rows: 0, bytes: 0, count: 0 }
    }

    /// Hands on all that waits.
    fn flush(&mut self) -> Result<()> {
        (self.rows, self.bytes) = (0, 0);
        match Rows::concatenated(take(&mut self.waiting))? {
            Some(rows) => self.groups.update_batch(&rows.values, &rows.groups, rows.filter.as_ref(), self.count),
            None => Ok(()),
        }
    }
}

impl GroupsAccumulator for Pending {
    fn update_batch(&mut self, values: &[ArrayRef], groups: &[usize], filter: Option<&BooleanArray>, count: usize) -> Result<()> {
        let rows = Rows { values: values.to_vec(), groups: groups.to_vec(), filter: filter.cloned() };
        let (more_rows, more_bytes) = (groups.len(), rows.bytes());
        if self.rows + more_rows > WAITING_ROWS || self.bytes + more_bytes > WAITING_BYTES {
            self.flush()?;
        }
        (self.rows, self.bytes) = (self.rows + more_rows, self.bytes + more_bytes);
        self.waiting.push(rows);
        self.count = count;
        Ok(())
    }

    fn merge_batch(&mut self, values: &[ArrayRef], groups: &[usize], count: usize) -> Result<()> {
        self.flush()?;
        self.count = count;
        self.groups.merge_batch(values, groups, count)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        self.flush()?;
        self.groups.evaluate(emit_to)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        self.flush()?;
        self.groups.state(emit_to)
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        self.groups.convert_to_state(values, filter)
    }

    fn size(&self) -> usize {
        self.groups.size() + self.bytes
    }
}
