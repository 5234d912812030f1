//! The memory of all queries of a process: one DataFusion pool, and what holds a part of it.
//!
//! Whatever holds memory in proportion to data has a [`Reservation`]: it grows before memory is taken where the size is known, else right after,
//! by row group, column or batch and never by span, and is given back when it is dropped, however a query ends. A batch that goes from node to
//! node carries its reservation ([`Reservation::attach`]). What caches hold is not in the pool: they have bounds of their own.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use arrow::{
    array::{Array, ArrayData, ArrayRef, make_array},
    buffer::Buffer,
    datatypes::DataType,
    record_batch::{RecordBatch, RecordBatchOptions},
};
use bytes::Bytes;
use datafusion::{
    common::{DataFusionError, Result as DataFusionResult},
    execution::memory_pool::{GreedyMemoryPool, MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation, human_readable_size},
};
use prometheus::{
    IntCounter, IntGauge, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use super::{source::SourceRef, stats::ScanMetrics};
use crate::{
    error::{Error, Result},
    spans::schema::{Column, EventColumn},
};

/// Where reservations are made: that of a process, or DataFusion's own without a limit.
pub type Pool = Arc<dyn MemoryPool>;

/// The pool of a process. First come, first served; what does not fit is refused, never waited for: two queries that wait for each other's
/// memory would wait for ever.
#[derive(Debug)]
pub struct QueryMemory {
    limit: usize,
    inner: GreedyMemoryPool,
    peak: AtomicUsize,
    refused: IntCounter,
}

impl QueryMemory {
    /// A pool of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        let refused = IntCounter::new("skein_engine_memory_refused_total", "Times that queries were refused memory").expect("the name is valid");
        Self { limit, inner: GreedyMemoryPool::new(limit), peak: AtomicUsize::new(0), refused }
    }

    /// The most that was reserved at a time.
    pub fn peak(&self) -> usize {
        self.peak.load(Relaxed)
    }

    fn note_peak(&self) {
        self.peak.fetch_max(self.reserved(), Relaxed);
    }

    /// How often memory was refused.
    pub fn refused(&self) -> u64 {
        self.refused.get()
    }

    /// Shows the pool in `registry`. Errors: `Internal` when it shows one already.
    pub fn register(self: &Arc<Self>, registry: &Registry) -> Result<()> {
        let failed = |e: prometheus::Error| Error::internal("registering the metrics of query memory").with_source(e);
        let reserved = IntGauge::new("skein_engine_memory_reserved_bytes", "Memory that queries have reserved").map_err(failed)?;
        let limit = IntGauge::new("skein_engine_memory_limit_bytes", "Memory that queries may reserve").map_err(failed)?;
        let peak = IntGauge::new("skein_engine_memory_peak_bytes", "The most memory that queries had reserved at a time").map_err(failed)?;
        limit.set(i64::try_from(self.limit).unwrap_or(i64::MAX));
        registry.register(Box::new(limit)).map_err(failed)?;
        registry.register(Box::new(self.refused.clone())).map_err(failed)?;
        registry.register(Box::new(Shown { memory: self.clone(), gauge: reserved, value: |memory| memory.reserved() })).map_err(failed)?;
        registry.register(Box::new(Shown { memory: self.clone(), gauge: peak, value: Self::peak })).map_err(failed)
    }
}

/// Reads the pool when it is asked.
struct Shown {
    memory: Arc<QueryMemory>,
    gauge: IntGauge,
    value: fn(&QueryMemory) -> usize,
}

impl Collector for Shown {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.gauge.set(i64::try_from((self.value)(&self.memory)).unwrap_or(i64::MAX));
        self.gauge.collect()
    }
}

impl std::fmt::Display for QueryMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}(limit: {})", self.name(), human_readable_size(self.limit))
    }
}

impl MemoryPool for QueryMemory {
    fn name(&self) -> &str {
        "query_memory"
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.inner.grow(reservation, additional);
        self.note_peak();
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.inner.shrink(reservation, shrink);
    }

    /// Of DataFusion's kind for this, so that its nodes that can spill do.
    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> DataFusionResult<()> {
        self.inner.try_grow(reservation, additional).map_err(|_| {
            self.refused.inc();
            DataFusionError::ResourcesExhausted(format!(
                "the memory of queries is full: {} needs {} more, and {} of {} (query_frontend.max_memory_bytes) are taken: ask for less (a \
                 shorter time range, a stricter filter, fewer groups), try again when other queries have ended, or raise the limit",
                reservation.consumer().name(),
                human_readable_size(additional),
                human_readable_size(self.reserved()),
                human_readable_size(self.limit),
            ))
        })?;
        self.note_peak();
        Ok(())
    }

    fn reserved(&self) -> usize {
        self.inner.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.limit)
    }
}

/// What one holder has of a pool; given back when it is dropped. The default belongs to no pool and accounts nothing.
#[derive(Debug, Default)]
pub struct Reservation(Option<MemoryReservation>);

impl Reservation {
    /// Nothing of `pool` yet; refusals name the holder, `what`.
    pub fn new(what: &str, pool: &Pool) -> Self {
        Self(Some(MemoryConsumer::new(what).register(pool)))
    }

    /// Another one, empty, of the same holder.
    pub fn another(&self) -> Self {
        Self(self.0.as_ref().map(MemoryReservation::new_empty))
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, MemoryReservation::size)
    }

    /// Takes more. Errors: `Exhausted` when the pool has not as much left; then nothing changes.
    pub fn grow(&self, bytes: usize) -> Result<()> {
        match &self.0 {
            Some(memory) => Ok(memory.try_grow(bytes)?),
            None => Ok(()),
        }
    }

    /// Takes more or gives back, so that it holds `bytes`. Errors: as [`grow`](Self::grow).
    pub fn settle(&self, bytes: usize) -> Result<()> {
        match &self.0 {
            Some(memory) => Ok(memory.try_resize(bytes)?),
            None => Ok(()),
        }
    }

    /// Holds what `other` has too.
    pub fn absorb(&mut self, other: Self) {
        match &self.0 {
            // For a moment both have it. That cannot be refused: it is held already.
            Some(memory) => memory.grow(other.bytes()),
            None => *self = other,
        }
    }

    /// Reads columns of a row group, as [`SpanSource::read`](super::source::SpanSource::read) does, and holds the batch: what reading it will
    /// take is reserved before, then corrected. Errors: as the source's, and `Exhausted`.
    pub async fn read(
        &self,
        source: &SourceRef,
        group: usize,
        (columns, events): (&[Column], &[EventColumn]),
        rows: Option<&[Range<usize>]>,
        metrics: &ScanMetrics,
    ) -> Result<RecordBatch> {
        let before = self.bytes();
        self.grow(source.read_bytes(group, columns, events, rows))?;
        let batch = source.read(group, columns, events, rows, metrics).await?;
        self.settle(before + batch_bytes(&batch, source.data_bytes() > 0))?;
        Ok(batch)
    }

    /// `bytes`, which this belongs to from now on, until the last piece of them is gone.
    pub fn attach_to_bytes(self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(HeldBytes { bytes, _memory: self })
    }

    /// `array`, which this belongs to from now on, as [`attach`](Self::attach) does it for a batch. Cost: text is checked once more.
    /// Errors: as [`attach`](Self::attach).
    pub fn attach_to_array(self, array: ArrayRef) -> Result<ArrayRef> {
        self.settle(array_bytes(&array))?;
        let data = array.to_data();
        let mut buffers = data.buffers().to_vec();
        match buffers.first_mut() {
            Some(first) if !first.is_empty() => *first = Buffer::from(Bytes::from_owner(HeldBuffer { buffer: first.clone(), _memory: self })),
            _ => return Ok(array),
        }
        Ok(make_array(data.into_builder().buffers(buffers).build()?))
    }

    /// `batch`, which this belongs to from now on: it is given back with the last reference to the batch's data, wherever it went.
    /// Errors: `Exhausted` when the batch is larger than what is held, and that is refused; `Internal`.
    pub fn attach(self, batch: RecordBatch) -> Result<RecordBatch> {
        let has_data = |data: &ArrayData| data.data_type().is_primitive() && data.buffers().first().is_some_and(|buffer| !buffer.is_empty());
        self.settle(batch_bytes(&batch, true))?;
        let (schema, mut columns, rows) = batch.into_parts();
        if let Some(column) = columns.iter_mut().find(|column| has_data(&column.to_data())) {
            let data = column.to_data();
            let mut buffers = data.buffers().to_vec();
            buffers[0] = Buffer::from(Bytes::from_owner(HeldBuffer { buffer: buffers[0].clone(), _memory: self }));
            *column = make_array(data.into_builder().buffers(buffers).build()?);
        }
        Ok(RecordBatch::try_new_with_options(schema, columns, &RecordBatchOptions::new().with_row_count(Some(rows)))?)
    }
}

/// Bytes that carry their reservation.
struct HeldBytes {
    bytes: Bytes,
    _memory: Reservation,
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A buffer and the reservation of the batch that it is of.
struct HeldBuffer {
    buffer: Buffer,
    _memory: Reservation,
}

impl AsRef<[u8]> for HeldBuffer {
    fn as_ref(&self) -> &[u8] {
        self.buffer.as_slice()
    }
}

/// Bytes that a batch holds; those of dictionaries only if they are `own`, not shared with the spans that they were taken from.
pub fn batch_bytes(batch: &RecordBatch, own: bool) -> usize {
    batch.columns().iter().map(|column| data_bytes(&column.to_data(), own)).sum()
}

/// Bytes that an array holds.
pub fn array_bytes(array: &dyn Array) -> usize {
    data_bytes(&array.to_data(), true)
}

fn data_bytes(data: &ArrayData, own: bool) -> usize {
    let buffers: usize = data.buffers().iter().map(Buffer::capacity).sum();
    let nulls = data.nulls().map_or(0, |nulls| nulls.buffer().capacity());
    let shared = !own && matches!(data.data_type(), DataType::Dictionary(..));
    let children = if shared { 0 } else { data.child_data().iter().map(|child| data_bytes(child, own)).sum() };
    buffers + nulls + children
}

/// Bytes that a value of a column takes at least, before any text.
pub(super) fn least_width(data_type: &DataType) -> usize {
    match data_type {
        DataType::Boolean => 1,
        DataType::Dictionary(key, _) => least_width(key),
        DataType::Utf8View | DataType::BinaryView => 16,
        DataType::Struct(fields) => fields.iter().map(|field| least_width(field.data_type())).sum(),
        DataType::FixedSizeBinary(width) => *width as usize,
        other => other.primitive_width().unwrap_or(4),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use arrow::{
        array::{BinaryArray, DictionaryArray, Int64Array, StringArray, UInt64Array},
        datatypes::{Field, Int32Type, Schema},
    };

    use super::*;
    use crate::error::ErrorKind;

    fn pool(limit: usize) -> (Arc<QueryMemory>, Pool) {
        let memory = Arc::new(QueryMemory::new(limit));
        (memory.clone(), memory)
    }

    #[test]
    fn a_refusal_says_who_wanted_how_much_and_what_to_do() {
        let (memory, pool) = pool(3 << 20);
        let registry = Registry::new();
        memory.register(&registry).unwrap();
        let (first, second) = (Reservation::new("the first", &pool), Reservation::new("the second", &pool));
        first.grow(2 << 20).unwrap();
        let refused = second.grow(2 << 20).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Exhausted);
        let message = refused.to_string();
        for part in ["the second needs 2.0 MB more", "2.0 MB of 3.0 MB", "query_frontend.max_memory_bytes", "ask for less"] {
            assert!(message.contains(part), "{message} lacks {part}");
        }
        let shown = || -> Vec<f64> {
            let value = |family: &MetricFamily| {
                let metric = &family.get_metric()[0];
                metric.get_gauge().get_value() + metric.get_counter().get_value()
            };
            registry.gather().iter().map(value).collect()
        };
        // In the order of their names: limit, peak, refused, reserved.
        let (limit, taken) = ((3 << 20) as f64, (2 << 20) as f64);
        assert_eq!((memory.refused(), second.bytes(), shown()), (1, 0, vec![limit, taken, 1.0, taken]));
        drop(first);
        second.grow(3 << 20).unwrap();
        second.settle(5).unwrap();
        assert_eq!(memory.reserved(), 5);
        drop(second);
        assert_eq!((memory.reserved(), shown()), (0, vec![limit, limit, 1.0, 0.0]));
    }

    #[test]
    fn reservations_are_added_up_and_given_back_once() {
        let (memory, pool) = pool(100);
        let mut all = Reservation::default();
        all.grow(1000).unwrap();
        let part = |bytes| {
            let part = Reservation::new("a part", &pool);
            part.grow(bytes).unwrap();
            part
        };
        all.absorb(part(40));
        all.absorb(part(60));
        all.absorb(Reservation::default());
        assert_eq!((all.bytes(), memory.reserved()), (100, 100));
        assert!(all.another().grow(1).is_err());
        drop(all);
        assert_eq!(memory.reserved(), 0);
    }

    #[test]
    fn a_batch_carries_its_reservation_to_the_last_reference() {
        let (memory, pool) = pool(1 << 20);
        let fields = vec![Field::new("text", DataType::Binary, false), Field::new("number", DataType::UInt64, false)];
        let batch = |rows: u64| {
            let texts = BinaryArray::from_iter_values((0..rows).map(|n| n.to_string()));
            RecordBatch::try_new(Arc::new(Schema::new(fields.clone())), vec![Arc::new(texts), Arc::new(UInt64Array::from_iter_values(0..rows))])
                .unwrap()
        };
        let held = Reservation::new("a batch", &pool).attach(batch(1000).slice(10, 500)).unwrap();
        assert_eq!(held, batch(1000).slice(10, 500), "the rows are the same");
        assert!(memory.reserved() >= 8000);
        let number = held.slice(3, 2).column(1).clone();
        drop(held);
        assert!(memory.reserved() >= 8000);
        drop(number);
        assert_eq!(memory.reserved(), 0);
        let bytes = Reservation::new("bytes", &pool);
        bytes.grow(7).unwrap();
        let piece = bytes.attach_to_bytes(Bytes::from_static(b"payload")).slice(2..4);
        assert_eq!((&*piece, memory.reserved()), (&b"yl"[..], 7));
        drop(piece);
        assert_eq!(memory.reserved(), 0);
        let texts = || Arc::new(StringArray::from(vec!["a text", "another"])) as ArrayRef;
        let held = Reservation::new("texts", &pool).attach_to_array(texts()).unwrap();
        assert!(memory.reserved() > 0 && held == texts());
        drop(held);
        assert_eq!(memory.reserved(), 0);
        let empty = Reservation::new("a batch", &pool).attach(batch(0)).unwrap();
        assert_eq!((empty.num_rows(), memory.reserved()), (0, 0));
        let refused = Reservation::new("a batch", &pool).attach(batch(1 << 20)).unwrap_err();
        assert_eq!((refused.kind(), memory.reserved()), (ErrorKind::Exhausted, 0));
    }

    #[test]
    fn dictionaries_count_where_they_are_own() {
        let keys = Int64Array::from_iter_values(0..100);
        let names: DictionaryArray<Int32Type> = std::iter::repeat_n("a name that is long enough to be seen", 100).collect();
        let batch = RecordBatch::try_from_iter([("keys", Arc::new(keys) as _), ("names", Arc::new(names) as _)]).unwrap();
        let (shared, own) = (batch_bytes(&batch, false), batch_bytes(&batch, true));
        assert!((1200..2000).contains(&shared) && own > shared, "{shared} {own}");
        assert!(array_bytes(&StringArray::from(vec!["x".repeat(1000)])) >= 1000);
        assert_eq!(least_width(&DataType::Struct(fields_of_two().into())), 12);
    }

    fn fields_of_two() -> Vec<Field> {
        let text = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        vec![Field::new("a", text, true), Field::new("b", DataType::Int64, true)]
    }
}
