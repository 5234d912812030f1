//! What one statement may take: rows, bytes, time and memory; and what it runs in, which has no files.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use arrow::{
    array::{Array, ArrayData},
    datatypes::DataType,
    record_batch::RecordBatch,
};
use datafusion::{
    common::{DataFusionError, Result as DataFusionResult},
    execution::{
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        memory_pool::{MemoryLimit, MemoryPool, MemoryReservation, human_readable_size},
        object_store::{DefaultObjectStoreRegistry, ObjectStoreRegistry, ObjectStoreUrl},
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
    },
};

use tokio::time::timeout;

use super::error::sql_error;
use crate::{
    error::{Error, Result},
    exec::memory::Pool,
};

/// Bounds of one statement; 0 is none. Errors name the keys of the settings that these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SqlLimits {
    /// `max_sql_rows`: rows of the answer.
    pub rows: u64,
    /// `max_sql_bytes`: bytes of the values of the answer, whatever form it is sent in. Those of a dictionary count with each batch.
    pub bytes: u64,
    /// `max_sql_duration`: from the start to the last row, waiting for the client included.
    pub duration: Duration,
    /// `max_sql_memory_bytes`: memory of operators, out of that of all queries.
    pub memory_bytes: usize,
}

impl SqlLimits {
    /// What a statement runs in: `runtime` without any store of files and without spilling to the disk, with memory up to the limit.
    /// Errors: `Internal`.
    pub(super) fn runtime(&self, runtime: &RuntimeEnv) -> Result<Arc<RuntimeEnv>> {
        let inner = runtime.memory_pool.clone();
        let pool: Pool = match self.memory_bytes {
            0 => inner,
            limit => Arc::new(StatementMemory { inner, limit, taken: AtomicUsize::new(0) }),
        };
        let stores = DefaultObjectStoreRegistry::new();
        stores.deregister_store(ObjectStoreUrl::local_filesystem().as_ref()).map_err(sql_error)?;
        RuntimeEnvBuilder::new()
            .with_memory_pool(pool)
            .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled))
            .with_object_store_registry(Arc::new(stores))
            .build_arc()
            .map_err(sql_error)
    }

    /// Waits for `work` as long as there is time. Errors: those of `work`; `Exhausted`.
    pub async fn within_time<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        if self.duration.is_zero() {
            return work.await;
        }
        timeout(self.duration, work).await.unwrap_or_else(|_| Err(self.out_of_time()))
    }

    pub(super) fn out_of_time(&self) -> Error {
        Error::exhausted(format!(
            "the statement took longer than {:?} (read.max_sql_duration): ask for less (a shorter time range, a stricter filter), or raise the limit",
            self.duration
        ))
    }
}

/// What an answer has given so far.
#[derive(Debug, Default)]
pub(super) struct Given {
    rows: u64,
    bytes: u64,
}

impl Given {
    /// Counts `batch`. Errors: `Exhausted` when there are more rows or bytes than `limits` allow.
    pub(super) fn count(&mut self, batch: &RecordBatch, limits: &SqlLimits) -> Result<()> {
        self.rows += batch.num_rows() as u64;
        self.bytes += batch.columns().iter().map(|column| value_bytes(&column.to_data())).sum::<u64>();
        let over = |what: &str, key: &str, limit: u64| {
            Err(Error::exhausted(format!("the answer has more than {limit} {what} (read.{key}): ask for less, add a LIMIT, or raise the limit")))
        };
        match () {
            () if limits.rows > 0 && self.rows > limits.rows => over("rows", "max_sql_rows", limits.rows),
            () if limits.bytes > 0 && self.bytes > limits.bytes => over("bytes", "max_sql_bytes", limits.bytes),
            () => Ok(()),
        }
    }
}

/// Bytes of the values of an array that may be a part of a larger one.
fn value_bytes(data: &ArrayData) -> u64 {
    let views = match data.data_type() {
        // The length of a view is in its lowest four bytes.
        DataType::Utf8View | DataType::BinaryView => {
            data.buffers()[0].typed_data::<u128>()[data.offset()..][..data.len()].iter().map(|view| u64::from(*view as u32)).sum()
        }
        _ => 0,
    };
    data.get_slice_memory_size().map_or(0, |bytes| bytes as u64) + views
}

/// The memory of one statement, out of that of all queries.
#[derive(Debug)]
struct StatementMemory {
    inner: Pool,
    limit: usize,
    taken: AtomicUsize,
}

impl std::fmt::Display for StatementMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}(limit: {}) of {}", self.name(), human_readable_size(self.limit), self.inner)
    }
}

impl MemoryPool for StatementMemory {
    fn name(&self) -> &str {
        "statement_memory"
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.taken.fetch_add(additional, Relaxed);
        self.inner.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.taken.fetch_sub(shrink, Relaxed);
        self.inner.shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> DataFusionResult<()> {
        let fits = |taken: usize| taken.checked_add(additional).filter(|&all| all <= self.limit);
        if let Err(taken) = self.taken.fetch_update(Relaxed, Relaxed, fits) {
            return Err(DataFusionError::ResourcesExhausted(format!(
                "the statement needs too much memory: {} needs {} more, and {} of {} (read.max_sql_memory_bytes) are taken: ask for less (a shorter \
                 time range, a stricter filter, fewer groups, no sorting of all rows), or raise the limit",
                reservation.consumer().name(),
                human_readable_size(additional),
                human_readable_size(taken),
                human_readable_size(self.limit),
            )));
        }
        let refused = self.inner.try_grow(reservation, additional);
        if refused.is_err() {
            self.taken.fetch_sub(additional, Relaxed);
        }
        refused
    }

    fn reserved(&self) -> usize {
        self.taken.load(Relaxed)
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.limit)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use arrow::array::{ArrayRef, Int64Array, StringViewArray};

    use super::*;
    use crate::{
        error::ErrorKind,
        exec::memory::{QueryMemory, Reservation},
    };

    #[test]
    fn a_statement_takes_no_more_than_its_own_of_the_memory_of_all() {
        let all = Arc::new(QueryMemory::new(100));
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(all.clone()).build().unwrap();
        let of = |memory_bytes| SqlLimits { memory_bytes, ..SqlLimits::default() }.runtime(&runtime).unwrap().memory_pool.clone();
        let (one, other) = (of(60), of(60));
        let (first, second, others) = (Reservation::new("a", &one), Reservation::new("b", &one), Reservation::new("c", &other));
        first.grow(40).unwrap();
        let refused = second.grow(30).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Exhausted);
        assert!(refused.to_string().contains("b needs 30.0 B more, and 40.0 B of 60.0 B (read.max_sql_memory_bytes)"), "{refused}");
        others.grow(50).unwrap();
        assert!(second.grow(20).unwrap_err().to_string().contains("query_frontend.max_memory_bytes"), "the memory of all counts too");
        drop(others);
        second.grow(20).unwrap();
        assert_eq!((all.reserved(), one.reserved()), (60, 60));
        drop((first, second));
        assert_eq!((all.reserved(), one.reserved()), (0, 0));
    }

    #[test]
    fn there_are_no_files() {
        let runtime = SqlLimits::default().runtime(&RuntimeEnv::default()).unwrap();
        assert!(runtime.object_store(ObjectStoreUrl::local_filesystem()).is_err());
        assert!(runtime.disk_manager.create_tmp_file("a test").is_err());
    }

    #[test]
    fn rows_and_bytes_are_those_of_the_values() {
        let long = "x".repeat(100);
        let columns: [(&str, ArrayRef); 2] =
            [("n", Arc::new(Int64Array::from(vec![1; 10]))), ("t", Arc::new(StringViewArray::from(vec![long.as_str(); 10])))];
        let batch = RecordBatch::try_from_iter(columns).unwrap().slice(2, 5);
        // Numbers of 8 bytes, views of 16 and their text.
        let bytes = 5 * (8 + 16 + 100);
        let check = |rows, bytes, expected: Option<&str>| {
            let limits = SqlLimits { rows, bytes, ..SqlLimits::default() };
            let found = Given::default().count(&batch, &limits);
            assert_eq!(found.as_ref().err().map(Error::kind), expected.map(|_| ErrorKind::Exhausted));
            assert!(expected.is_none_or(|part| found.unwrap_err().message().contains(part)));
        };
        check(0, 0, None);
        check(5, bytes, None);
        check(4, bytes, Some("more than 4 rows (read.max_sql_rows)"));
        check(5, bytes - 1, Some("bytes (read.max_sql_bytes)"));
        let limits = SqlLimits { rows: 9, ..SqlLimits::default() };
        let mut given = Given::default();
        given.count(&batch, &limits).unwrap();
        assert!(given.count(&batch, &limits).is_err(), "batches are added up");
    }
}
