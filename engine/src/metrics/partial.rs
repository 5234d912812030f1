//! Series under way: of one partition, of one process, or of all.

use std::{
    hash::BuildHasher,
    sync::{Arc, LazyLock},
};

use arrow::{
    array::{ArrayRef, AsArray, BinaryBuilder, BooleanArray, Float64Builder, UInt8Builder, UInt32Builder, UInt64Builder},
    compute::filter_record_batch,
    datatypes::{DataType, Field, Float64Type, Schema, SchemaRef, UInt8Type, UInt32Type, UInt64Type},
    record_batch::RecordBatch,
};
use hashbrown::{DefaultHashBuilder, HashTable};
use prost::Message;
use skein_proto::otlp::common::v1::{KeyValue, KeyValueList};

use super::cells::{BUCKETS, BUCKETS_BYTES, CellKind, Cells, NumberCell};
use crate::{
    error::{Error, Result},
    exec::memory::Reservation,
};

/// Names and typed values that tell series apart, in the order of the grouping.
pub type Labels = Vec<KeyValue>;

/// Bytes of a row of [`schema`] without its labels.
const ROW_BYTES: usize = 4 + 4 + 1 + 8 + 4 * 8;

/// `error`, which refuses memory for more than `count` series, with what to do about it.
pub fn too_many_series(error: Error, count: usize) -> Error {
    error.context(format!("the query has more than {count} series: group by fewer values, or take a longer step"))
}

/// Series and their cells, and the memory that they take.
#[derive(Debug)]
pub struct Partial {
    kind: CellKind,
    intervals: usize,
    /// Labels as an encoded `KeyValueList`, and cells.
    series: Vec<(Box<[u8]>, Cells)>,
    /// Places of series by their labels.
    places: HashTable<usize>,
    hasher: DefaultHashBuilder,
    memory: Reservation,
}

impl Partial {
    /// No series yet; `memory` is to hold theirs.
    pub fn new(kind: CellKind, intervals: usize, memory: Reservation) -> Self {
        Self { kind, intervals, series: Vec::new(), places: HashTable::new(), hasher: DefaultHashBuilder::default(), memory }
    }

    /// The place of the series with these labels, made if there is none. Errors: `Exhausted` when there is no memory for more.
    pub fn place(&mut self, labels: Labels) -> Result<usize> {
        self.place_of_key(&KeyValueList { values: labels }.encode_to_vec())
    }

    /// The same for labels as an encoded `KeyValueList`. Cost: a look-up, and a copy of them for a new series.
    pub fn place_of_key(&mut self, key: &[u8]) -> Result<usize> {
        let hash = self.hasher.hash_one(key);
        if let Some(&place) = self.places.find(hash, |&place| *self.series[place].0 == *key) {
            return Ok(place);
        }
        let cells = Cells::new(self.kind, self.intervals);
        self.hold(cells.memory_bytes() + key.len() + size_of::<(Box<[u8]>, Cells)>() + size_of::<usize>())?;
        self.series.push((key.into(), cells));
        let (series, hasher) = (&self.series, &self.hasher);
        self.places.insert_unique(hash, series.len() - 1, |&place| hasher.hash_one(&*series[place].0));
        Ok(self.series.len() - 1)
    }

    /// Reserves memory for what cells grow by. Errors: `Exhausted`.
    pub fn hold(&self, bytes: usize) -> Result<()> {
        self.memory.grow(bytes).map_err(|error| too_many_series(error, self.series.len()))
    }

    /// Makes room for that many series.
    fn reserve(&mut self, series: usize) {
        let (known, hasher) = (&self.series, &self.hasher);
        self.places.reserve(series, |&place| hasher.hash_one(&*known[place].0));
        self.series.reserve(series);
    }

    /// How many series there are.
    pub fn len(&self) -> usize {
        self.series.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    /// The cells of a series.
    pub fn cells(&mut self, place: usize) -> &mut Cells {
        &mut self.series[place].1
    }

    /// All series. Errors: `Internal` for labels that are none.
    pub fn into_series(self) -> Result<Vec<(Labels, Cells)>> {
        let labels = |key: &[u8]| KeyValueList::decode(key).map_err(|e| Error::internal("reading labels").with_source(e));
        self.series.into_iter().map(|(key, cells)| Ok((labels(&key)?.values, cells))).collect()
    }

    /// All series, with their labels as encoded `KeyValueList`s.
    pub fn encoded_series(&self) -> &[(Box<[u8]>, Cells)] {
        &self.series
    }

    /// Adds the series of a batch. Errors: `Internal` when it is not one of [`schema`], `Exhausted`.
    pub fn merge_batch(&mut self, batch: &RecordBatch) -> Result<()> {
        self.merge_batch_by(batch, Self::place_of_key)
    }

    /// The same where `place_of` says which series the rows of some labels are added to. Errors: also its own.
    pub fn merge_batch_by(&mut self, batch: &RecordBatch, mut place_of: impl FnMut(&mut Self, &[u8]) -> Result<usize>) -> Result<()> {
        if batch.schema_ref().fields() != SCHEMA.fields() {
            return Err(Error::internal("a batch is not one of partial series"));
        }
        let labels = batch.column(0).as_binary::<i32>();
        let (intervals, buckets) = (batch.column(1).as_primitive::<UInt32Type>(), batch.column(2).as_primitive::<UInt8Type>());
        let counts = batch.column(3).as_primitive::<UInt64Type>();
        if self.is_empty() {
            self.reserve((1..batch.num_rows()).filter(|&row| labels.value(row) != labels.value(row - 1)).count() + 1);
        }
        let number = |column: usize, row: usize| batch.column(column).as_primitive::<Float64Type>().value(row);
        let (mut last, mut new_buckets): (Option<(&[u8], usize)>, usize) = (None, 0);
        for row in 0..batch.num_rows() {
            let key = labels.value(row);
            let place = match last {
                Some((known, place)) if known == key => place,
                _ => place_of(self, key)?,
            };
            last = Some((key, place));
            let (at, bucket) = (intervals.value(row) as usize, buckets.value(row) as usize);
            if at >= self.intervals || bucket >= BUCKETS {
                return Err(Error::internal("a partial series has an interval or bucket that does not exist"));
            }
            match self.cells(place) {
                Cells::Counts(cells) => cells[at] += counts.value(row),
                Cells::Numbers(cells) => {
                    let [sum, lost, min, max] = [4, 5, 6, 7].map(|column| number(column, row));
                    cells[at].merge(&NumberCell { count: counts.value(row), sum, lost, min, max });
                }
                Cells::Buckets(cells) => {
                    new_buckets += usize::from(cells[at].is_none());
                    cells[at].get_or_insert_with(|| Box::new([0; BUCKETS]))[bucket] += counts.value(row);
                }
            }
        }
        self.hold(new_buckets * BUCKETS_BYTES)
    }

    /// The series as a batch of [`schema`], a row for each interval (and bucket) that has spans. The batch carries its memory.
    /// Errors: `Internal`, `Exhausted`.
    pub fn to_batch(&self) -> Result<RecordBatch> {
        let held = self.memory.another();
        for (key, cells) in &self.series {
            held.grow(cells.filled() * (ROW_BYTES + key.len())).map_err(|error| error.context("handing on the series of the query"))?;
        }
        held.attach(self.rows()?)
    }

    fn rows(&self) -> Result<RecordBatch> {
        let mut rows = Rows::default();
        for (key, cells) in &self.series {
            match cells {
                Cells::Counts(cells) => {
                    for (at, &count) in cells.iter().enumerate().filter(|(_, count)| **count > 0) {
                        rows.push(key, at, 0, &NumberCell { count, ..NumberCell::default() });
                    }
                }
                Cells::Numbers(cells) => {
                    cells.iter().enumerate().filter(|(_, cell)| cell.count > 0).for_each(|(at, cell)| rows.push(key, at, 0, cell));
                }
                Cells::Buckets(cells) => {
                    let filled = cells.iter().enumerate().filter_map(|(at, buckets)| Some((at, buckets.as_ref()?)));
                    for (at, buckets) in filled {
                        for (bucket, &count) in buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
                            rows.push(key, at, bucket, &NumberCell { count, ..NumberCell::default() });
                        }
                    }
                }
            }
        }
        rows.finish()
    }
}

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let number = |name| Field::new(name, DataType::Float64, false);
    Arc::new(Schema::new(vec![
        Field::new("labels", DataType::Binary, false),
        Field::new("interval", DataType::UInt32, false),
        Field::new("bucket", DataType::UInt8, false),
        Field::new("count", DataType::UInt64, false),
        number("sum"),
        number("sum_lost"),
        number("min"),
        number("max"),
    ]))
});

/// The schema of partial series: `labels` is an OTLP `KeyValueList`; `sum_lost` is what rounding lost of `sum`.
pub fn schema() -> SchemaRef {
    SCHEMA.clone()
}

/// A batch of partial series in other intervals: `offset` is added to the number of each, and what is then not below `count` is left out.
/// Errors: `Internal` when it is not one of [`schema`].
pub fn moved(batch: &RecordBatch, offset: i64, count: usize) -> Result<RecordBatch> {
    let not_partial = || Error::internal("a batch is not one of partial series");
    let at = batch.schema_ref().index_of("interval").map_err(|_| not_partial())?;
    let place = |interval: u32| offset + i64::from(interval);
    let intervals = batch.column(at).as_primitive_opt::<UInt32Type>().ok_or_else(not_partial)?;
    let kept = intervals.values().iter().map(|&interval| usize::try_from(place(interval)).is_ok_and(|place| place < count));
    let batch = filter_record_batch(batch, &BooleanArray::from_iter(kept.map(Some)))?;
    let mut columns = batch.columns().to_vec();
    columns[at] = Arc::new(columns[at].as_primitive::<UInt32Type>().unary::<_, UInt32Type>(|interval| place(interval) as u32));
    Ok(RecordBatch::try_new(batch.schema(), columns)?)
}

#[derive(Default)]
struct Rows {
    labels: BinaryBuilder,
    intervals: UInt32Builder,
    buckets: UInt8Builder,
    counts: UInt64Builder,
    numbers: [Float64Builder; 4],
}

impl Rows {
    fn push(&mut self, labels: &[u8], interval: usize, bucket: usize, cell: &NumberCell) {
        self.labels.append_value(labels);
        self.intervals.append_value(interval as u32);
        self.buckets.append_value(bucket as u8);
        self.counts.append_value(cell.count);
        for (column, value) in self.numbers.iter_mut().zip([cell.sum, cell.lost, cell.min, cell.max]) {
            column.append_value(value);
        }
    }

    fn finish(mut self) -> Result<RecordBatch> {
        let mut columns: Vec<ArrayRef> =
            vec![Arc::new(self.labels.finish()), Arc::new(self.intervals.finish()), Arc::new(self.buckets.finish()), Arc::new(self.counts.finish())];
        columns.extend(self.numbers.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef));
        Ok(RecordBatch::try_new(schema(), columns)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{plan::matches::key_value, spans::value::Value};

    fn filled(kind: CellKind) -> Partial {
        let mut partial = Partial::new(kind, 3, Reservation::default());
        for (name, at) in [("a", 0), ("b", 2), ("a", 2)] {
            let place = partial.place(vec![key_value("name", &Value::from(name))]).unwrap();
            match partial.cells(place) {
                Cells::Counts(cells) => cells[at] += 5,
                Cells::Numbers(cells) => [1.5, -2.0].into_iter().for_each(|value| cells[at].add(value)),
                Cells::Buckets(cells) => cells[at].get_or_insert_with(|| Box::new([0; BUCKETS]))[63] += 7,
            }
        }
        partial
    }

    #[test]
    fn series_survive_the_batch_and_add_up() {
        for kind in [CellKind::Counts, CellKind::Numbers, CellKind::Buckets] {
            let one = filled(kind);
            let mut merged = Partial::new(kind, 3, Reservation::default());
            merged.merge_batch(&one.to_batch().unwrap()).unwrap();
            let (one, copy) = (one.into_series().unwrap(), merged.into_series().unwrap());
            assert_eq!(one, copy);
            let mut twice = filled(kind);
            twice.merge_batch(&filled(kind).to_batch().unwrap()).unwrap();
            for ((_, mut expected), (_, found)) in one.into_iter().zip(twice.into_series().unwrap()) {
                expected.merge(&expected.clone());
                assert_eq!(expected, found);
            }
        }
        let moved = moved(&filled(CellKind::Counts).to_batch().unwrap(), -1, 2).unwrap();
        let shorter = || Partial::new(CellKind::Counts, 2, Reservation::default());
        let mut found = shorter();
        found.merge_batch(&moved).unwrap();
        let counts: Vec<Cells> = found.into_series().unwrap().into_iter().map(|(_, cells)| cells).collect();
        assert_eq!(counts, [Cells::Counts(vec![0, 5]), Cells::Counts(vec![0, 5])], "a and b in the last interval; the first is left out");
        assert!(shorter().merge_batch(&filled(CellKind::Counts).to_batch().unwrap()).is_err(), "an interval too far");
    }
}
