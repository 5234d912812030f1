//! Traces, and services within traces, as rows: what their spans add up to.
//!
//! A group is stood for by its first row in the frame. A trace never lies in two row groups, so no group does.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{ArrayRef, AsArray, Int32Array, ListBuilder, StringBuilder, UInt32Array},
    datatypes::{DataType, Field, Int32Type},
};

use crate::{
    error::{Error, Result},
    exec::eval::Frame,
    spans::{read::Texts, schema::Column},
};

/// The rows of each trace in row group `group`, all of whose rows are in `frame`. No column is read. Errors: `Data`.
pub fn traces(frame: &Frame, group: usize) -> Result<Vec<(u128, Range<usize>)>> {
    let source = frame.source();
    let first = source.row_groups()[group].first_row as usize;
    let mut cursor = source.traces().cursor();
    let (mut traces, mut row) = (Vec::new(), 0);
    while row < frame.len() {
        let (id, rows) = cursor.trace_at(first + row).ok_or_else(|| Error::data("the index names no trace for a row"))?;
        let end = rows.end.saturating_sub(first).min(frame.len());
        if end <= row {
            return Err(Error::data("the index has traces that overlap"));
        }
        traces.push((id, row..end));
        row = end;
    }
    Ok(traces)
}

/// Of each row the first one of its group.
#[derive(Debug)]
pub struct Groups(Vec<u32>);

impl Groups {
    /// A group for each trace.
    pub fn of_traces(frame: &Frame, group: usize) -> Result<Self> {
        frame.hold(frame.len() * size_of::<u32>())?;
        Ok(Self(traces(frame, group)?.into_iter().flat_map(|(_, rows)| std::iter::repeat_n(rows.start as u32, rows.len())).collect()))
    }

    /// A group for each service of a trace, and one for those spans of it that have none. [`Column::Service`] is loaded.
    pub fn of_services(frame: &Frame, group: usize) -> Result<Self> {
        frame.hold(frame.len() * size_of::<u32>())?;
        let services = ServiceCodes::of(frame)?;
        let mut first_of_code: Vec<Option<u32>> = vec![None; services.names.len() + 1];
        let mut firsts = Vec::with_capacity(frame.len());
        for (_, rows) in traces(frame, group)? {
            for row in rows.clone() {
                let code = services.code(row).map_or(services.names.len(), |code| code as usize);
                let first = first_of_code[code].filter(|&first| first as usize >= rows.start).unwrap_or(row as u32);
                first_of_code[code] = Some(first);
                firsts.push(first);
            }
        }
        Ok(Self(firsts))
    }

    /// Whether `row` stands for its group.
    pub fn is_first(&self, row: usize) -> bool {
        self.0[row] as usize == row
    }

    /// For each row that stands for a group, how `add` has combined the rows of it, from `start`; other rows keep `start`.
    pub fn fold(&self, start: i64, add: impl Fn(i64, usize) -> i64) -> Vec<i64> {
        let mut totals = vec![start; self.0.len()];
        for (row, &first) in self.0.iter().enumerate() {
            totals[first as usize] = add(totals[first as usize], row);
        }
        totals
    }

    /// The rows of the trace that `first` begins.
    fn rows_from(&self, first: u32) -> impl Iterator<Item = usize> + '_ {
        (first as usize..self.0.len()).take_while(move |&row| self.0[row] == first)
    }

    /// The distinct services of the traces that `firsts` begin, sorted. The groups are traces; [`Column::Service`] is loaded.
    pub fn service_lists(&self, frame: &Frame, firsts: &UInt32Array) -> Result<ArrayRef> {
        let services = ServiceCodes::of(frame)?;
        let item = Arc::new(Field::new("item", DataType::Utf8, false));
        let mut lists = ListBuilder::new(StringBuilder::new()).with_field(item);
        for &first in firsts.values() {
            let mut codes: Vec<u32> = self.rows_from(first).filter_map(|row| services.code(row)).collect();
            codes.sort_unstable();
            codes.dedup();
            codes.iter().for_each(|&code| lists.values().append_value(&services.names[code as usize]));
            lists.append(true);
        }
        Ok(Arc::new(lists.finish()))
    }
}

/// The services of a frame's spans as numbers, in the order of their names: equal names have one number, whatever dictionaries say.
#[derive(Debug)]
pub struct ServiceCodes {
    keys: Int32Array,
    of_key: Vec<u32>,
    /// The names by number.
    pub names: Vec<String>,
}

impl ServiceCodes {
    /// The services of `frame`, which has loaded [`Column::Service`]. Errors: `Internal`, `Data`.
    pub fn of(frame: &Frame) -> Result<Self> {
        let Texts::Dictionary(_, values) = frame.texts(Column::Service)? else { return Err(Error::data("services are not a dictionary")) };
        let keys = frame.column(Column::Service)?.as_dictionary::<Int32Type>().keys().clone();
        let mut names: Vec<String> = values.iter().flatten().map(str::to_owned).collect();
        names.sort_unstable();
        names.dedup();
        let number = |name: Option<&str>| names.partition_point(|known| Some(known.as_str()) < name) as u32;
        Ok(Self { keys, of_key: values.iter().map(number).collect(), names })
    }

    /// The number of the service of `row`.
    pub fn code(&self, row: usize) -> Option<u32> {
        use arrow::array::Array;
        self.keys.is_valid(row).then(|| self.of_key[self.keys.value(row) as usize])
    }
}
