//! Series under way: of one partition, of one process, or of all.

use std::{hash::BuildHasher, ops::Range, sync::Arc};

use arrow::{
    array::{Array, BinaryArray},
    record_batch::RecordBatch,
};
use hashbrown::{DefaultHashBuilder, HashTable};
use prost::Message;
use skein_proto::otlp::common::v1::{KeyValue, KeyValueList};

use super::{
    batch::{Columns, ROW_BYTES, Rows},
    cells::{BUCKETS, BUCKETS_BYTES, CellKind, Cells, add_few, sparse_bytes},
    estimate::{Estimate, NumberEstimate},
    exemplars::{Candidate, Exemplars, SLOT_BYTES, Slot},
};
use crate::{
    error::{Error, Result},
    exec::memory::Reservation,
};

/// Names and typed values that tell series apart, in the order of the grouping.
pub type Labels = Vec<KeyValue>;

/// Bytes that are reserved for exemplars at once, beyond those of the first.
const SPARE_BYTES: usize = 8 << 10;

/// Bytes of the labels of an exemplar, roughly.
fn candidate_bytes(candidate: &Candidate) -> usize {
    candidate.labels.iter().map(|label| size_of::<KeyValue>() + label.encoded_len()).sum()
}

fn labels_of(key: &[u8]) -> Result<Labels> {
    Ok(KeyValueList::decode(key).map_err(|e| Error::internal("reading labels").with_source(e))?.values)
}

/// Reads labels of exemplars, mostly the same ones again.
struct LabelsRead {
    last: Vec<u8>,
    labels: Arc<[KeyValue]>,
}

impl LabelsRead {
    /// Nothing read yet. The default of an empty list is one for the whole process: threads would contend for its count.
    fn new() -> Self {
        Self { last: Vec::new(), labels: Arc::from(Vec::new()) }
    }

    /// The labels of an encoded `KeyValueList`. Errors: `Internal` for another message.
    fn of(&mut self, key: &[u8]) -> Result<Arc<[KeyValue]>> {
        // Without a comparison of nothing with nothing: vectors masked at an address that is none take 100 ns.
        let is_last = self.last.len() == key.len() && (key.is_empty() || *self.last == *key);
        if !is_last {
            (self.last, self.labels) = (key.to_vec(), labels_of(key)?.into());
        }
        Ok(self.labels.clone())
    }
}

/// Reserves memory beside that of `count` series. Errors: `Exhausted`.
fn hold(memory: &Reservation, bytes: usize, count: usize) -> Result<()> {
    memory.grow(bytes).map_err(|error| too_many_series(error, count))
}

/// Reserves memory for an exemplar more, out of what was reserved to `spare`. Errors: `Exhausted`.
fn hold_candidate((memory, spare): (&Reservation, &mut usize), candidate: &Candidate, series: usize) -> Result<()> {
    let bytes = SLOT_BYTES + candidate_bytes(candidate);
    if *spare < bytes {
        hold(memory, bytes + SPARE_BYTES, series)?;
        *spare += bytes + SPARE_BYTES;
    }
    *spare -= bytes;
    Ok(())
}

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
    /// Places of series by their labels, of the first `indexed` ones.
    places: HashTable<usize>,
    indexed: usize,
    hasher: DefaultHashBuilder,
    memory: Reservation,
    /// Bytes that are reserved for exemplars to come.
    spare: usize,
    exemplars: Exemplars,
}

impl Partial {
    /// No series yet; `memory` is to hold theirs.
    pub fn new(kind: CellKind, intervals: usize, memory: Reservation) -> Self {
        let (places, hasher) = (HashTable::new(), DefaultHashBuilder::default());
        Self { kind, intervals, series: Vec::new(), places, indexed: 0, hasher, memory, spare: 0, exemplars: Exemplars::default() }
    }

    /// The place of the series with these labels, made if there is none. Errors: `Exhausted` when there is no memory for more.
    pub fn place(&mut self, labels: Labels) -> Result<usize> {
        self.place_of_key(&KeyValueList { values: labels }.encode_to_vec())
    }

    /// The same for labels as an encoded `KeyValueList`. Cost: a look-up, and a copy of them for a new series.
    pub fn place_of_key(&mut self, key: &[u8]) -> Result<usize> {
        self.index();
        let hash = self.hasher.hash_one(key);
        if let Some(place) = self.known(hash, key) {
            return Ok(place);
        }
        let place = self.push(key)?;
        let (series, hasher) = (&self.series, &self.hasher);
        self.places.insert_unique(hash, place, |&place| hasher.hash_one(&*series[place].0));
        self.indexed = series.len();
        Ok(place)
    }

    /// Makes room for `count` more series. Cost: a look at all there are, where they have to move.
    pub fn reserve(&mut self, count: usize) {
        self.index();
        let (series, hasher) = (&self.series, &self.hasher);
        self.places.reserve(count, |&place| hasher.hash_one(&*series[place].0));
        self.series.reserve(count);
    }

    /// Adds a series that is not there yet, and leaves its place to [`Partial::index`].
    fn push(&mut self, key: &[u8]) -> Result<usize> {
        let cells = Cells::new(self.kind, self.intervals);
        self.hold(cells.memory_bytes() + key.len() + size_of::<(Box<[u8]>, Cells)>() + size_of::<usize>())?;
        self.series.push((key.into(), cells));
        Ok(self.series.len() - 1)
    }

    /// Makes sure that the places of all series are known.
    fn index(&mut self) {
        if self.indexed == self.series.len() {
            return;
        }
        let (series, hasher) = (&self.series, &self.hasher);
        let hash_at = |&place: &usize| hasher.hash_one(&*series[place].0);
        self.places.reserve(series.len() - self.indexed, hash_at);
        for place in self.indexed..series.len() {
            self.places.insert_unique(hash_at(&place), place, hash_at);
        }
        self.indexed = series.len();
    }

    /// What was added since it was last taken.
    pub fn take(&mut self) -> Self {
        let empty = Self::new(self.kind, self.intervals, self.memory.another());
        std::mem::replace(self, empty)
    }

    /// Adds up series: those for whose labels `sum_of` gives the same number, a small one, become one with the labels that `key_of` gives for that.
    /// The others stay. What they took in memory stays reserved. Cost: a look at each. Errors: those of `sum_of`; there are no series then.
    pub fn join(&mut self, mut sum_of: impl FnMut(&[u8]) -> Result<Option<usize>>, mut key_of: impl FnMut(usize) -> Box<[u8]>) -> Result<()> {
        let exemplars = std::mem::take(&mut self.exemplars);
        let all = std::mem::take(&mut self.series);
        self.places.clear();
        self.indexed = 0;
        let (mut sums, mut places): (Vec<Option<usize>>, _) = (Vec::new(), Vec::with_capacity(all.len()));
        let mut joined = Vec::new();
        for (key, cells) in all {
            let Some(sum) = sum_of(&key)? else {
                places.push(joined.len());
                joined.push((key, cells));
                continue;
            };
            sums.resize(sums.len().max(sum + 1), None);
            let place = *sums[sum].get_or_insert(joined.len());
            places.push(place);
            match joined.get_mut(place) {
                Some((_, own)) => own.merge(&cells),
                None => joined.push((key_of(sum), cells)),
            }
        }
        self.series = joined;
        self.exemplars = exemplars.moved(|place| places[place as usize] as u32)?;
        Ok(())
    }

    /// How many cells a series has.
    pub fn intervals(&self) -> usize {
        self.intervals
    }

    /// The place of the series with these labels, if there is one.
    pub fn find(&mut self, labels: Labels) -> Option<usize> {
        self.index();
        let key = KeyValueList { values: labels }.encode_to_vec();
        self.known(self.hasher.hash_one(&*key), &key)
    }

    fn known(&self, hash: u64, key: &[u8]) -> Option<usize> {
        self.places.find(hash, |&place| *self.series[place].0 == *key).copied()
    }

    /// Reserves memory for what cells grow by. Errors: `Exhausted`.
    pub fn hold(&self, bytes: usize) -> Result<()> {
        hold(&self.memory, bytes, self.series.len())
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

    /// The labels of a series. Errors: `Internal` for labels that are none.
    pub fn labels(&self, place: usize) -> Result<Labels> {
        labels_of(&self.series[place].0)
    }

    /// The spans that may become exemplars.
    pub fn exemplars(&self) -> &Exemplars {
        &self.exemplars
    }

    /// Takes the span with this hash that `candidate` makes, if it may become an exemplar. Errors: `Exhausted`, and those of `candidate`.
    pub fn offer(&mut self, slot: Slot, hash: u64, candidate: impl FnOnce() -> Result<Candidate>) -> Result<()> {
        let Self { exemplars, spare, memory, series, .. } = self;
        exemplars.offer(slot, hash, |is_new| {
            let candidate = candidate()?;
            if is_new {
                hold_candidate((memory, spare), &candidate, series.len())?;
            }
            Ok(candidate)
        })
    }

    /// Takes the span of a slot that has none. Errors: `Exhausted`.
    fn add_exemplar(&mut self, slot: Slot, candidate: Candidate) -> Result<()> {
        hold_candidate((&self.memory, &mut self.spare), &candidate, self.series.len())?;
        self.exemplars.add(slot, candidate);
        Ok(())
    }

    /// All series, by place. Errors: `Internal` for labels that are none.
    pub fn into_series(self) -> Result<Vec<(Labels, Cells)>> {
        self.series.into_iter().map(|(key, cells)| Ok((labels_of(&key)?, cells))).collect()
    }

    /// All series, by place, with their labels as encoded `KeyValueList`s.
    pub fn encoded_series(&self) -> &[(Box<[u8]>, Cells)] {
        &self.series
    }

    /// Adds the series of a batch. Errors: `Internal` when it is not one of [`schema`](super::batch::schema), `Exhausted`.
    pub fn merge_batch(&mut self, batch: &RecordBatch) -> Result<()> {
        match self.is_empty() {
            // The labels of a batch are distinct, and so are its slots: nothing has to be looked up.
            true => self.merge_rows(batch, Self::push, Self::add_exemplar),
            false => self.merge_batch_by(batch, Self::place_of_key),
        }
    }

    /// The same where `place_of` says which series the rows of some labels are added to. It is asked once for each. Errors: also its own.
    pub fn merge_batch_by(&mut self, batch: &RecordBatch, place_of: impl FnMut(&mut Self, &[u8]) -> Result<usize>) -> Result<()> {
        self.merge_rows(batch, place_of, |partial, slot, candidate| partial.offer(slot, candidate.hash, || Ok(candidate)))
    }

    fn merge_rows(
        &mut self,
        batch: &RecordBatch,
        mut place_of: impl FnMut(&mut Self, &[u8]) -> Result<usize>,
        mut take: impl FnMut(&mut Self, Slot, Candidate) -> Result<()>,
    ) -> Result<()> {
        let columns = Columns::of(batch)?;
        let mut places: Vec<Option<usize>> = vec![None; columns.labels.len()];
        let mut labels = LabelsRead::new();
        self.exemplars.reserve(columns.exemplar_count());
        for (row, &series) in columns.series.iter().enumerate() {
            let series = series as usize;
            let place = match places.get(series).ok_or_else(|| Error::internal("a row of partial series has no labels"))? {
                Some(place) => *place,
                None => *places[series].insert(place_of(self, columns.labels.value(series))?),
            };
            if columns.intervals[row] as usize >= self.intervals {
                return Err(Error::internal("a partial series has an interval that does not exist"));
            }
            if !columns.is_exemplar(row) {
                self.merge_cell(&columns, row, place)?;
                continue;
            }
            take(self, columns.slot(row, place), columns.exemplar(row, labels.of(columns.exemplar_labels(row))?)?)?;
        }
        Ok(())
    }

    fn merge_cell(&mut self, columns: &Columns<'_>, row: usize, place: usize) -> Result<()> {
        let (at, bucket, count) = (columns.intervals[row] as usize, columns.bucket(row), columns.count(row));
        let damaged = || Error::internal("a partial series lacks a bucket or a part of an estimate");
        let mut grown = 0;
        match self.cells(place) {
            Cells::Counts(cells) => cells[at] += count,
            Cells::FewCounts(cells) => grown = add_few(cells, at as u32, count),
            Cells::Numbers(cells) => cells[at].merge(&columns.numbers(row)),
            Cells::Buckets(cells) => {
                let cell = cells[at].get_or_insert_with(|| {
                    grown = BUCKETS_BYTES;
                    Box::new([0; BUCKETS])
                });
                *usize::try_from(bucket).ok().and_then(|bucket| cell.get_mut(bucket)).ok_or_else(damaged)? += count;
            }
            Cells::Sketches(cells) => {
                let known = cells[at].len();
                *cells[at].entry(bucket).or_default() += count;
                grown = (cells[at].len() - known) * sparse_bytes::<u64>();
            }
            Cells::WeightedCounts(cells) => {
                let (weight, mut sums) = columns.estimate(row);
                cells[at].merge(&Estimate::read(weight, &mut sums).ok_or_else(damaged)?);
            }
            Cells::WeightedNumbers(cells) => {
                let (weight, mut sums) = columns.estimate(row);
                cells[at].merge(&NumberEstimate::read(weight, &mut sums).ok_or_else(damaged)?);
            }
            Cells::WeightedBuckets(cells) => {
                let (weight, mut sums) = columns.estimate(row);
                let known = cells[at].len();
                cells[at].entry(bucket).or_default().merge(&Estimate::read(weight, &mut sums).ok_or_else(damaged)?);
                grown = (cells[at].len() - known) * sparse_bytes::<Estimate>();
            }
        }
        if grown > 0 { self.hold(grown) } else { Ok(()) }
    }

    /// The series as a batch of [`schema`](super::batch::schema), a row for each interval (and bucket) that has spans, then one for each exemplar,
    /// in whatever order. The batch carries its memory. Errors: `Internal`, `Exhausted`.
    pub fn to_batch(&self) -> Result<RecordBatch> {
        self.to_batch_of(0..self.intervals)
    }

    /// The same of some of the intervals. Cost: that of their rows and of the labels of all series.
    pub fn to_batch_of(&self, intervals: Range<usize>) -> Result<RecordBatch> {
        let held = self.memory.another();
        let label_bytes: usize = self.series.iter().map(|(key, _)| key.len()).sum();
        check_label_bytes(label_bytes)?;
        let rows: usize = self.series.iter().map(|(_, cells)| cells.filled(&intervals)).sum();
        held.grow(label_bytes + rows * ROW_BYTES).map_err(|error| error.context("handing on the series of the query"))?;
        let within = |(_, candidate): &(Slot, &Candidate)| intervals.contains(&(candidate.interval as usize));
        let exemplars: Vec<_> = self.exemplars.iter().filter(within).collect();
        let exemplar_bytes = exemplars.iter().map(|(_, candidate)| 2 * ROW_BYTES + candidate_bytes(candidate)).sum();
        held.grow(exemplar_bytes).map_err(|error| error.context("handing on exemplars"))?;
        held.attach(self.rows(&intervals, &exemplars, rows)?)
    }

    fn rows(&self, intervals: &Range<usize>, exemplars: &[(Slot, &Candidate)], count: usize) -> Result<RecordBatch> {
        let mut rows = Rows::with_capacity(count + exemplars.len());
        for (place, (_, cells)) in self.series.iter().enumerate() {
            rows.push_cells(place as i32, cells, intervals);
        }
        exemplars.iter().for_each(|&(slot, candidate)| rows.push_exemplar(slot, candidate));
        rows.finish(BinaryArray::from_iter_values(self.series.iter().map(|(key, _)| key)))
    }
}

/// Offsets into labels have 32 bits. Errors: `Exhausted` for more.
fn check_label_bytes(bytes: usize) -> Result<()> {
    if i32::try_from(bytes).is_ok() {
        return Ok(());
    }
    Err(Error::exhausted(format!("the series of the query have {bytes} bytes of labels: group by fewer values")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{
        super::{
            batch::moved,
            estimate::{TraceSpans, Weight},
        },
        *,
    };
    use crate::{
        plan::matches::key_value,
        spans::{TraceId, value::Value},
    };

    const KINDS: [CellKind; 8] = [
        CellKind::Counts,
        CellKind::FewCounts,
        CellKind::Numbers,
        CellKind::Buckets,
        CellKind::Sketches,
        CellKind::WeightedCounts,
        CellKind::WeightedNumbers,
        CellKind::WeightedBuckets,
    ];

    fn trace() -> TraceSpans {
        let mut trace = TraceSpans::default();
        [1.5, -2.0].into_iter().for_each(|value| trace.add(Weight::of_number(3.0).unwrap(), value));
        trace
    }

    fn filled(kind: CellKind) -> Partial {
        let mut partial = Partial::new(kind, 3, Reservation::default());
        for (name, at) in [("a", 0), ("b", 2), ("a", 2)] {
            let place = partial.place(vec![key_value("name", &Value::from(name))]).unwrap();
            match partial.cells(place) {
                Cells::Counts(cells) => cells[at] += 5,
                Cells::FewCounts(cells) => {
                    add_few(cells, at as u32, 5);
                }
                Cells::Numbers(cells) => [1.5, -2.0].into_iter().for_each(|value| cells[at].add(value)),
                Cells::Buckets(cells) => cells[at].get_or_insert_with(|| Box::new([0; BUCKETS]))[63] += 7,
                Cells::Sketches(cells) => [-7, 0, i32::MAX].into_iter().for_each(|bucket| *cells[at].entry(bucket).or_default() += 7),
                Cells::WeightedCounts(cells) => cells[at].add(&trace()),
                Cells::WeightedNumbers(cells) => cells[at].add(&trace()),
                Cells::WeightedBuckets(cells) => [-7, 31].into_iter().for_each(|bucket| cells[at].entry(bucket).or_default().add(&trace())),
            }
        }
        let labels = vec![key_value("status", &Value::from("error"))];
        for (place, class, hash, interval) in [(0, -3, 5, 0), (0, 4, 1 << 63, 2), (1, 4, 9, 2)] {
            let trace = TraceId([class as u8; 16]);
            let candidate = Candidate { hash, interval, trace, start_unix_nano: 77, value: f64::from(class), labels: labels.clone().into() };
            partial.offer((place, 1 << 40, class), hash, || Ok(candidate)).unwrap();
        }
        partial
    }

    #[test]
    fn labels_beyond_what_offsets_reach_are_refused() {
        assert!(check_label_bytes(i32::MAX as usize).is_ok());
        assert_eq!(check_label_bytes(i32::MAX as usize + 1).unwrap_err().kind(), crate::error::ErrorKind::Exhausted);
    }

    #[test]
    fn series_survive_the_batch_and_add_up() {
        for kind in KINDS {
            let mut merged = Partial::new(kind, 3, Reservation::default());
            let one = filled(kind);
            merged.merge_batch(&one.to_batch().unwrap()).unwrap();
            let mut in_parts = Partial::new(kind, 3, Reservation::default());
            [2..3, 0..2].into_iter().for_each(|part| in_parts.merge_batch(&one.to_batch_of(part).unwrap()).unwrap());
            assert_eq!(in_parts.encoded_series(), one.encoded_series());
            assert!(in_parts.exemplars().in_order().eq(one.exemplars().in_order()));
            let (exemplars, copied) = (one.exemplars().clone(), merged.exemplars().clone());
            let (one, copy) = (one.into_series().unwrap(), merged.into_series().unwrap());
            assert_eq!(one, copy);
            assert!(exemplars.in_order().eq(copied.in_order()) && exemplars.in_order().count() == 3);
            let mut twice = filled(kind);
            twice.merge_batch(&filled(kind).to_batch().unwrap()).unwrap();
            assert!(twice.exemplars().in_order().eq(exemplars.in_order()), "the same spans win again");
            for ((_, mut expected), (_, found)) in one.into_iter().zip(twice.into_series().unwrap()) {
                expected.merge(&expected.clone());
                assert_eq!(expected, found);
                assert_eq!(expected.memory_bytes(), found.memory_bytes());
            }
        }
        let moved = moved(&filled(CellKind::Counts).to_batch().unwrap(), -1, 2).unwrap();
        let shorter = || Partial::new(CellKind::Counts, 2, Reservation::default());
        let mut found = shorter();
        found.merge_batch(&moved).unwrap();
        let exemplars: Vec<_> = found.exemplars().in_order().map(|(slot, candidate)| (slot, candidate.interval)).collect();
        assert_eq!(exemplars, [((0, 1 << 40, 4), 1), ((1, 1 << 40, 4), 1)], "so do exemplars");
        let counts: Vec<Cells> = found.into_series().unwrap().into_iter().map(|(_, cells)| cells).collect();
        assert_eq!(counts, [Cells::Counts(vec![0, 5]), Cells::Counts(vec![0, 5])], "a and b in the last interval; the first is left out");
        assert!(shorter().merge_batch(&filled(CellKind::Counts).to_batch().unwrap()).is_err(), "an interval too far");
    }

    #[test]
    fn series_that_are_joined_add_up_and_keep_their_exemplars() {
        let key = |name: &str| KeyValueList { values: vec![key_value("name", &Value::from(name))] }.encode_to_vec();
        for kind in KINDS {
            let parts = filled(kind).into_series().unwrap();
            let mut partial = filled(kind);
            // Another one behind those that are joined, whose place changes.
            let last = partial.place(vec![key_value("name", &Value::from("c"))]).unwrap();
            let candidate = Candidate { hash: 1, interval: 0, trace: TraceId([1; 16]), start_unix_nano: 1, value: 0.0, labels: Arc::from([]) };
            partial.offer((last as u32, 0, 0), 1, || Ok(candidate)).unwrap();
            let sum_of = |own: &[u8]| Ok((own == key("a") || own == key("b")).then_some(7));
            partial.join(sum_of, |sum| key(&sum.to_string()).into()).unwrap();
            assert_eq!(partial.find(vec![key_value("name", &Value::from("a"))]), None);
            let sum = partial.find(vec![key_value("name", &Value::from("7"))]).unwrap();
            let other = partial.find(vec![key_value("name", &Value::from("c"))]).unwrap();
            let mut expected = parts[0].1.clone();
            expected.merge(&parts[1].1);
            assert_eq!((partial.len(), partial.cells(sum)), (2, &mut expected));
            let slots: Vec<_> = partial.exemplars().in_order().map(|(slot, candidate)| (slot, candidate.hash)).collect();
            let (sum, other) = (sum as u32, other as u32);
            assert_eq!(slots, [((sum, 1 << 40, -3), 5), ((sum, 1 << 40, 4), 9), ((other, 0, 0), 1)], "of a slot the smallest hash");
        }
        let mut partial = filled(CellKind::Counts);
        assert!(partial.join(|_| Err(Error::internal("no labels")), |_| Box::default()).is_err() && partial.is_empty());
    }

    #[test]
    fn batches_of_other_cells_are_refused() {
        let batch = |kind| filled(kind).to_batch().unwrap();
        for kind in [CellKind::WeightedCounts, CellKind::WeightedNumbers, CellKind::WeightedBuckets] {
            assert!(Partial::new(kind, 3, Reservation::default()).merge_batch(&batch(CellKind::Counts)).is_err(), "{kind:?} needs estimates");
        }
        assert!(
            Partial::new(CellKind::Buckets, 3, Reservation::default()).merge_batch(&batch(CellKind::Sketches)).is_err(),
            "there is no bucket below 0"
        );
    }
}
