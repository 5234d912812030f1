//! Partial series as record batches: their schema, what writes them, and what reads them.

use std::{
    ops::Range,
    sync::{Arc, LazyLock},
};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, BooleanArray, Decimal128Array, DictionaryArray, FixedSizeBinaryArray, Float64Array,
        Int32Array, ListArray, PrimitiveArray, UInt32Array, UInt64Array,
    },
    buffer::{BooleanBuffer, NullBuffer, OffsetBuffer},
    compute::filter_record_batch,
    datatypes::{ArrowPrimitiveType, DataType, Decimal128Type, Field, Float64Type, Int32Type, Schema, SchemaRef, UInt32Type, UInt64Type},
    record_batch::RecordBatch,
};
use prost::Message;
use skein_proto::otlp::common::v1::{KeyValue, KeyValueList};

use super::{
    cells::{Cells, NumberCell, cells_of, few_of, in_order},
    estimate::{Sum, Weight},
    exemplars::{Candidate, Slot},
};
use crate::{
    error::{Error, Result},
    spans::TraceId,
};

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let number = |name| Field::new(name, DataType::Float64, false);
    let weight = DataType::Decimal128(38, 0);
    let sums = DataType::List(Arc::new(Field::new_list_field(DataType::Float64, true)));
    Arc::new(Schema::new(vec![
        Field::new_dictionary("labels", DataType::Int32, DataType::Binary, false),
        Field::new("interval", DataType::UInt32, false),
        Field::new("bucket", DataType::Int32, false),
        Field::new("count", DataType::UInt64, false),
        number("sum"),
        number("sum_lost"),
        number("min"),
        number("max"),
        Field::new("weight", weight, true),
        Field::new("estimate", sums, true),
        Field::new("exemplar_trace", DataType::FixedSizeBinary(16), true),
        Field::new("exemplar_stretch", DataType::UInt64, true),
        Field::new("exemplar_hash", DataType::UInt64, true),
        Field::new("exemplar_start_unix_nano", DataType::UInt64, true),
        Field::new("exemplar_value", DataType::Float64, true),
        Field::new("exemplar_labels", DataType::Binary, true),
    ]))
});

/// Columns by place.
const INTERVAL: usize = 1;
const NUMBERS: Range<usize> = 4..8;
const WEIGHT: usize = 8;
const SUMS: usize = 9;
const EXEMPLAR: Range<usize> = 10..16;

/// Bytes of a row without its labels and its exemplar.
pub const ROW_BYTES: usize = 4 + 4 + 4 + 8 + 4 * 8 + 16 + 4 + 14 * 8;

/// The schema of partial series: `labels` is an OTLP `KeyValueList`, and the labels of a batch are distinct; `sum_lost` is what rounding lost of `sum`; `weight` is a [`Weight`] and
/// `estimate` the sums beside it, for weighted cells. A row that has an `exemplar_trace` is an exemplar of the series, in the class `bucket`
/// and its own `interval`, and says nothing of its cells.
pub fn schema() -> SchemaRef {
    SCHEMA.clone()
}

/// Rows of [`nothing`], more than the series of a row group mostly have.
const ROWS_OF_NOTHING: usize = 1 << 12;

static NOTHING: LazyLock<RecordBatch> = LazyLock::new(|| {
    let mut rows = Rows::with_capacity(ROWS_OF_NOTHING);
    (0..ROWS_OF_NOTHING).for_each(|_| rows.push(0, 0, 0, 0));
    rows.finish(BinaryArray::from_iter_values([b""])).expect("rows of nothing are rows")
});

/// Rows that say nothing, in whose columns is what rows have there that have no use for them.
pub fn nothing() -> &'static RecordBatch {
    &NOTHING
}

/// A batch of partial series in other intervals: `offset` is added to the number of each, and what is then not below `count` is left out.
/// Errors: `Internal` when it is not one of [`schema`].
pub fn moved(batch: &RecordBatch, offset: i64, count: usize) -> Result<RecordBatch> {
    let not_partial = || Error::internal("a batch is not one of partial series");
    let at = batch.schema_ref().index_of("interval").map_err(|_| not_partial())?;
    let place = |interval: u32| offset + i64::from(interval);
    let intervals = batch.column(at).as_primitive_opt::<UInt32Type>().ok_or_else(not_partial)?;
    let is_kept = |&interval: &u32| usize::try_from(place(interval)).is_ok_and(|place| place < count);
    let batch = match intervals.values().iter().all(is_kept) {
        true => batch.clone(),
        false => filter_record_batch(batch, &BooleanArray::from(intervals.values().iter().map(is_kept).collect::<Vec<_>>()))?,
    };
    let mut columns = batch.columns().to_vec();
    columns[at] = Arc::new(columns[at].as_primitive::<UInt32Type>().unary::<_, UInt32Type>(|interval| place(interval) as u32));
    Ok(RecordBatch::try_new(batch.schema(), columns)?)
}

/// Rows under way: those of cells, which are of one kind, then those of exemplars. What the kind has no use for is only made up in the end.
#[derive(Default)]
pub struct Rows<'a> {
    series: Vec<i32>,
    intervals: Vec<u32>,
    buckets: Vec<i32>,
    counts: Vec<u64>,
    numbers: [Vec<f64>; 4],
    weights: Vec<i128>,
    sums: Vec<f64>,
    /// How many sums each row has.
    sums_each: usize,
    exemplars: Vec<(u64, &'a Candidate)>,
}

impl<'a> Rows<'a> {
    /// No rows yet, with room for `rows`.
    pub fn with_capacity(rows: usize) -> Self {
        let (series, intervals) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
        Self { series, intervals, buckets: Vec::with_capacity(rows), counts: Vec::with_capacity(rows), ..Self::default() }
    }

    /// Adds those of `intervals` of a series.
    pub fn push_cells(&mut self, series: i32, cells: &Cells, intervals: &Range<usize>) {
        match cells {
            Cells::Counts(cells) => {
                cells_of(cells, intervals).filter(|(_, count)| **count > 0).for_each(|(at, &count)| self.push(series, at, 0, count));
            }
            Cells::FewCounts(cells) => few_of(cells, intervals).for_each(|(at, count)| self.push(series, at, 0, count)),
            Cells::Numbers(cells) => {
                for (at, cell) in cells_of(cells, intervals).filter(|(_, cell)| cell.count > 0) {
                    self.push(series, at, 0, cell.count);
                    self.numbers.iter_mut().zip(numbers_of(cell)).for_each(|(column, number)| column.push(number));
                }
            }
            Cells::Buckets(cells) => {
                for (at, buckets) in cells_of(cells, intervals).filter_map(|(at, buckets)| Some((at, buckets.as_ref()?))) {
                    for (bucket, &count) in buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
                        self.push(series, at, bucket as i32, count);
                    }
                }
            }
            Cells::Sketches(cells) => {
                for (at, cell) in cells_of(cells, intervals) {
                    in_order(cell).into_iter().for_each(|(bucket, count)| self.push(series, at, bucket, count));
                }
            }
            Cells::WeightedCounts(cells) => {
                for (at, cell) in cells_of(cells, intervals).filter(|(_, cell)| cell.weight > Weight::default()) {
                    self.push_estimate(series, at, 0, cell.weight, &cell.sums());
                }
            }
            Cells::WeightedNumbers(cells) => {
                for (at, cell) in cells_of(cells, intervals).filter(|(_, cell)| cell.spans.weight > Weight::default()) {
                    self.push_estimate(series, at, 0, cell.spans.weight, &cell.sums());
                }
            }
            Cells::WeightedBuckets(cells) => {
                for (at, cell) in cells_of(cells, intervals) {
                    in_order(cell).into_iter().for_each(|(bucket, cell)| self.push_estimate(series, at, bucket, cell.weight, &cell.sums()));
                }
            }
        }
    }

    fn push(&mut self, series: i32, interval: usize, bucket: i32, count: u64) {
        self.series.push(series);
        self.intervals.push(interval as u32);
        self.buckets.push(bucket);
        self.counts.push(count);
    }

    fn push_estimate(&mut self, series: i32, interval: usize, bucket: i32, weight: Weight, sums: &[Sum]) {
        self.push(series, interval, bucket, 0);
        self.weights.push(weight.0 as i128);
        self.sums.extend(sums.iter().flat_map(|sum| [sum.sum, sum.lost]));
        self.sums_each = 2 * sums.len();
    }

    /// Adds an exemplar.
    pub fn push_exemplar(&mut self, (series, stretch, class): Slot, candidate: &'a Candidate) {
        self.push(series as i32, candidate.interval as usize, class, 0);
        self.exemplars.push((stretch, candidate));
    }

    /// The batch of series with these labels. Errors: `Internal`.
    pub fn finish(self, labels: BinaryArray) -> Result<RecordBatch> {
        let rows = self.series.len();
        let labels = DictionaryArray::try_new(Int32Array::from(self.series), Arc::new(labels))?;
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(labels),
            Arc::new(UInt32Array::from(self.intervals)),
            Arc::new(Int32Array::from(self.buckets)),
            Arc::new(UInt64Array::from(self.counts)),
        ];
        for (mut column, nothing) in self.numbers.into_iter().zip(numbers_of(&NumberCell::default())) {
            column.resize(rows, nothing);
            columns.push(Arc::new(Float64Array::from(column)));
        }
        columns.extend(estimate_columns(rows, self.weights, (self.sums, self.sums_each))?);
        columns.extend(exemplar_columns(rows, &self.exemplars)?);
        Ok(RecordBatch::try_new(schema(), columns)?)
    }
}

fn numbers_of(cell: &NumberCell) -> [f64; 4] {
    [cell.sum.sum, cell.sum.lost, cell.min, cell.max]
}

/// The columns of estimates in a batch of `rows` rows, of which the first ones have `weights` and `each` of `sums`.
fn estimate_columns(rows: usize, mut weights: Vec<i128>, (sums, each): (Vec<f64>, usize)) -> Result<[ArrayRef; 2]> {
    let estimated = weights.len();
    let nulls = NullBuffer::new(BooleanBuffer::collect_bool(rows, |row| row < estimated));
    weights.resize(rows, 0);
    let weights = Decimal128Array::try_new(weights.into(), Some(nulls.clone()))?.with_precision_and_scale(38, 0)?;
    let offsets = OffsetBuffer::from_lengths((0..rows).map(|row| if row < estimated { each } else { 0 }));
    let item = Arc::new(Field::new_list_field(DataType::Float64, true));
    let sums = ListArray::try_new(item, offsets, Arc::new(Float64Array::from(sums)), Some(nulls))?;
    Ok([Arc::new(weights), Arc::new(sums)])
}

/// The columns of exemplars in a batch of `rows` rows, of which the last ones are `exemplars`, with their stretches.
fn exemplar_columns(rows: usize, exemplars: &[(u64, &Candidate)]) -> Result<[ArrayRef; 6]> {
    let before = rows - exemplars.len();
    let nulls = NullBuffer::new(BooleanBuffer::collect_bool(rows, |row| row >= before));
    let number = |of: &dyn Fn(&(u64, &Candidate)) -> u64| {
        let numbers: Vec<u64> = std::iter::repeat_n(0, before).chain(exemplars.iter().map(of)).collect();
        UInt64Array::try_new(numbers.into(), Some(nulls.clone())).map(|column| Arc::new(column) as ArrayRef)
    };
    let values: Vec<f64> = std::iter::repeat_n(0.0, before).chain(exemplars.iter().map(|(_, candidate)| candidate.value)).collect();
    let mut traces = vec![0; before * size_of::<TraceId>()];
    traces.extend(exemplars.iter().flat_map(|(_, candidate)| candidate.trace.0));
    let mut labels = BinaryBuilder::new();
    labels.append_nulls(before);
    // Most are told by the same.
    let mut last: (&[KeyValue], Vec<u8>) = Default::default();
    for (_, candidate) in exemplars {
        if *candidate.labels != *last.0 {
            last = (&candidate.labels, KeyValueList { values: candidate.labels.to_vec() }.encode_to_vec());
        }
        labels.append_value(&last.1);
    }
    Ok([
        Arc::new(FixedSizeBinaryArray::try_new(size_of::<TraceId>() as i32, traces.into(), Some(nulls.clone()))?),
        number(&|(stretch, _)| *stretch)?,
        number(&|(_, candidate)| candidate.hash)?,
        number(&|(_, candidate)| candidate.start_unix_nano)?,
        Arc::new(Float64Array::try_new(values.into(), Some(nulls.clone()))?),
        Arc::new(labels.finish()),
    ])
}

/// The columns of a batch.
pub struct Columns<'a> {
    /// The series of each row: a place in `labels`.
    pub series: &'a [i32],
    /// The labels of each series.
    pub labels: &'a BinaryArray,
    /// The interval of each row.
    pub intervals: &'a [u32],
    buckets: &'a [i32],
    counts: &'a [u64],
    numbers: [&'a [f64]; 4],
    weights: &'a Decimal128Array,
    sums: (&'a [i32], &'a [f64]),
    traces: &'a FixedSizeBinaryArray,
    exemplars: [&'a [u64]; 3],
    values: &'a [f64],
    exemplar_labels: &'a BinaryArray,
}

impl<'a> Columns<'a> {
    /// Those of `batch`. Errors: `Internal` when it is not one of [`schema`].
    pub fn of(batch: &'a RecordBatch) -> Result<Self> {
        let wrong = || Error::internal("a batch is not one of partial series");
        if batch.schema_ref().fields() != SCHEMA.fields() {
            return Err(wrong());
        }
        let labels = batch.column(0).as_dictionary::<Int32Type>();
        let (trace, sums) = (EXEMPLAR.start, batch.column(SUMS).as_list::<i32>());
        Ok(Self {
            series: labels.keys().values(),
            labels: labels.values().as_binary_opt::<i32>().ok_or_else(wrong)?,
            intervals: numbers_in::<UInt32Type>(batch, INTERVAL),
            buckets: numbers_in::<Int32Type>(batch, 2),
            counts: numbers_in::<UInt64Type>(batch, 3),
            numbers: [0, 1, 2, 3].map(|at| numbers_in::<Float64Type>(batch, NUMBERS.start + at)),
            weights: batch.column(WEIGHT).as_primitive::<Decimal128Type>(),
            sums: (sums.value_offsets(), sums.values().as_primitive::<Float64Type>().values()),
            traces: batch.column(trace).as_fixed_size_binary(),
            exemplars: [1, 2, 3].map(|at| numbers_in::<UInt64Type>(batch, trace + at)),
            values: numbers_in::<Float64Type>(batch, trace + 4),
            exemplar_labels: batch.column(trace + 5).as_binary::<i32>(),
        })
    }

    /// The bucket of a row's cell, or the class of its exemplar.
    pub fn bucket(&self, row: usize) -> i32 {
        self.buckets[row]
    }

    /// The spans in a row's cell.
    pub fn count(&self, row: usize) -> u64 {
        self.counts[row]
    }

    /// The numbers in a row's cell.
    pub fn numbers(&self, row: usize) -> NumberCell {
        let [sum, lost, min, max] = self.numbers.map(|column| column[row]);
        NumberCell { count: self.counts[row], sum: Sum { sum, lost }, min, max }
    }

    /// The estimate in a row's cell: a weight, and sums.
    pub fn estimate(&self, row: usize) -> (Weight, &'a [f64]) {
        let (offsets, sums) = self.sums;
        (Weight(self.weights.value(row).unsigned_abs()), &sums[offsets[row] as usize..offsets[row + 1] as usize])
    }

    /// How many rows are exemplars.
    pub fn exemplar_count(&self) -> usize {
        self.traces.len() - self.traces.null_count()
    }

    /// Whether a row is an exemplar.
    pub fn is_exemplar(&self, row: usize) -> bool {
        self.traces.is_valid(row)
    }

    /// The slot of a row's exemplar in the series at `place`.
    pub fn slot(&self, row: usize, place: usize) -> Slot {
        (place as u32, self.exemplars[0][row], self.buckets[row])
    }

    /// The labels of a row's exemplar, encoded.
    pub fn exemplar_labels(&self, row: usize) -> &'a [u8] {
        self.exemplar_labels.value(row)
    }

    /// A row's exemplar. Errors: `Internal`.
    pub fn exemplar(&self, row: usize, labels: Arc<[KeyValue]>) -> Result<Candidate> {
        let trace = self.traces.value(row).try_into().map_err(|e| Error::internal("reading a trace id").with_source(e))?;
        let [_, hash, start_unix_nano] = self.exemplars.map(|column| column[row]);
        Ok(Candidate { hash, interval: self.intervals[row], trace: TraceId(trace), start_unix_nano, value: self.values[row], labels })
    }
}

fn numbers_in<T: ArrowPrimitiveType>(batch: &RecordBatch, column: usize) -> &[T::Native] {
    let column: &PrimitiveArray<T> = batch.column(column).as_primitive();
    column.values()
}
