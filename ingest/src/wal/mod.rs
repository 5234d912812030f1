//! The write-ahead log: one per process, shared by all tenants. A request is acknowledged after its record is here and synced.
//! Filled by the ingester, read back once at start. Knows nothing of spans. The bytes are described in `FORMAT.md`, beside this file.
//!
//! One thread writes. It takes all records that wait, writes them with vectored writes, syncs once and then answers them all: a slow disk makes
//! batches larger, not requests rarer.
//!
//! Invariant WAL-1: a record whose append was acknowledged is yielded by a replay after any crash (under [`SyncMode::Always`], also of the machine).
//! Invariant WAL-2: a record whose append was refused is cut from the file; only if the disk refuses that as well may a replay yield it.
//! Invariant WAL-3: a segment is never appended to by another process than the one that made it, and the current one is never removed.
//! Lock order: `active` before `queue`.

mod file;
mod format;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    fmt,
    fs::File,
    io::{self, BufReader, IoSlice},
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use serde::Deserialize;
use skein_engine::{clock::Stopwatch, tenant::TenantId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use self::format::{Record, SEGMENT_HEADER_BYTES, segment_header};
pub use self::{
    file::{Disk, SegmentFile, SegmentStore},
    format::{Damage, ReplayReport, scan},
};
use crate::{
    error::{Error, Result},
    metrics::WalMetrics,
};

/// When appended records are synced to the disk (`wal.sync`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncMode {
    /// Before they are acknowledged. Survives a crash of the machine.
    #[default]
    Always,
    /// Every [`WalSettings::sync_interval`]. Survives a crash of the process; one of the machine may lose an interval.
    Batch,
    /// When the kernel likes. Survives a crash of the process.
    Never,
}

/// How the log works.
#[derive(Debug, Clone)]
pub struct WalSettings {
    /// The log's own folder; made if absent.
    pub dir: PathBuf,
    /// When to sync.
    pub sync: SyncMode,
    /// Between syncs under [`SyncMode::Batch`].
    pub sync_interval: Duration,
    /// A segment that has reached this many bytes is closed before the next batch.
    pub segment_bytes_max: u64,
    /// Records that may wait for the writer; more wait outside.
    pub queue_records_max: usize,
    /// Payload bytes that may wait for the writer, and so the largest batch. One larger record is let in alone.
    pub queue_bytes_max: usize,
}

impl WalSettings {
    /// The defaults, in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            sync: SyncMode::default(),
            sync_interval: Duration::from_millis(100),
            segment_bytes_max: 128 << 20,
            queue_records_max: 4096,
            queue_bytes_max: 64 << 20,
        }
    }
}

/// Number of a segment. Later segments have larger numbers, and none is used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(u64);

impl SegmentId {
    /// The segment with this number.
    pub fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }

    fn file_name(self) -> String {
        format!("{:020}.wal", self.0)
    }

    fn of_file_name(name: &str) -> Option<Self> {
        let digits = name.strip_suffix(".wal")?;
        let plain = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| digits.parse().ok().map(Self)).flatten()
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The log. Share it in an `Arc`; dropping it drains the queue and stops the writer.
#[derive(Debug)]
pub struct Wal {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Held for the lock on it.
    _lock: File,
}

struct Shared {
    settings: WalSettings,
    metrics: WalMetrics,
    store: Arc<dyn SegmentStore>,
    active: Mutex<Active>,
    queue: Mutex<Queue>,
    arrived: Condvar,
    slots: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// The segment that takes the next batch.
struct Active {
    id: SegmentId,
    /// What the next segment will be called.
    next: SegmentId,
    /// `None` after the segment was given up.
    file: Option<Box<dyn SegmentFile>>,
    /// Up to the end of the last acknowledged batch.
    good_bytes: u64,
    /// Written and not yet synced.
    dirty: bool,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Append>,
    closed: bool,
}

struct Append {
    record: Record,
    done: oneshot::Sender<Result<SegmentId>>,
    _permits: [OwnedSemaphorePermit; 2],
}

impl Wal {
    /// Opens the log in `settings.dir`: locks it, lists the segments of earlier runs, oldest first, and begins a new one. The old ones are never written
    /// again; replay them and remove them.
    /// Errors: `Unavailable` when the folder cannot be made, listed or written, or another process has it.
    pub fn open(settings: WalSettings, metrics: WalMetrics) -> Result<(Self, Vec<SegmentId>)> {
        Self::open_on(Arc::new(Disk), settings, metrics)
    }

    /// [`Wal::open`] with writes going through `store`.
    pub fn open_on(store: Arc<dyn SegmentStore>, settings: WalSettings, metrics: WalMetrics) -> Result<(Self, Vec<SegmentId>)> {
        let dir = &settings.dir;
        let doing = |what: &str, error: io::Error| unavailable(format!("{what} {}", dir.display()), error);
        std::fs::create_dir_all(dir).map_err(|error| doing("making folder", error))?;
        let lock = File::create(dir.join("lock")).map_err(|error| doing("locking", error))?;
        lock.try_lock().map_err(|error| doing("locking (another process has it?)", error.into()))?;
        let mut old = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(|error| doing("listing", error))? {
            let name = entry.map_err(|error| doing("listing", error))?.file_name();
            old.extend(name.to_str().and_then(SegmentId::of_file_name));
        }
        old.sort_unstable();
        metrics.segments.set(old.len() as i64);
        let last = old.last().map_or(0, |id| id.0);
        let shared = Arc::new(Shared {
            active: Mutex::new(Active { id: SegmentId(last), next: SegmentId(last + 1), file: None, good_bytes: 0, dirty: false }),
            queue: Mutex::default(),
            arrived: Condvar::new(),
            slots: Arc::new(Semaphore::new(settings.queue_records_max.clamp(1, Semaphore::MAX_PERMITS))),
            bytes: Arc::new(Semaphore::new(settings.queue_bytes_max.clamp(1, Semaphore::MAX_PERMITS))),
            settings,
            metrics,
            store,
        });
        shared.begin_segment(&mut shared.active.lock())?;
        let writer = std::thread::Builder::new()
            .name("wal-writer".into())
            .spawn({
                let stop = StopAtExit(shared.clone());
                move || stop.0.write_batches()
            })
            .map_err(|error| unavailable("starting the log writer".into(), error))?;
        Ok((Self { shared, writer: Mutex::new(Some(writer)), _lock: lock }, old))
    }

    /// Yields the good records of `segment` in the order they were appended; stops at damage, which it reports, counts and logs.
    /// Errors: only what `visit` returns, which ends the replay.
    pub fn replay(&self, segment: SegmentId, visit: impl FnMut(&TenantId, Bytes) -> Result<()>) -> Result<ReplayReport> {
        let path = self.shared.path(segment);
        let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let report = match opened {
            Ok((file_bytes, file)) => scan(BufReader::with_capacity(1 << 18, file), file_bytes, visit)?,
            Err(error) => ReplayReport { damage: Some(Damage::Unreadable(error.kind())), ..ReplayReport::default() },
        };
        let metrics = &self.shared.metrics;
        metrics.replayed_records.inc_by(report.records);
        if let Some(damage) = &report.damage {
            metrics.truncated_records.inc();
            metrics.truncated_bytes.inc_by(report.lost_bytes);
            let (records, good_bytes, lost_bytes) = (report.records, report.good_bytes, report.lost_bytes);
            tracing::warn!(path = %path.display(), %damage, records, good_bytes, lost_bytes, "write-ahead log segment is damaged, read up to the damage");
        }
        Ok(report)
    }

    /// Appends `payload`, whose parts follow each other, and returns, after it is as durable as [`SyncMode`] promises, the segment that holds it.
    /// Waits while the queue is full. Copies nothing. Once this has been polled to the queue, dropping it does not take the record back.
    /// Errors: `Unavailable` when the disk is full or failing or the log is closed; `Invalid` when the payload is larger than a record may be.
    pub async fn append(&self, tenant: &TenantId, payload: Vec<Bytes>) -> Result<SegmentId> {
        let shared = &self.shared;
        let record = Record::new(tenant.clone(), payload)?;
        let bytes = record.payload_bytes.min(shared.settings.queue_bytes_max).max(1) as u32;
        let permits =
            [shared.slots.clone().acquire_owned().await.map_err(closed)?, shared.bytes.clone().acquire_many_owned(bytes).await.map_err(closed)?];
        let (done, answer) = oneshot::channel();
        {
            let mut queue = shared.queue.lock();
            if queue.closed {
                return Err(closed(()));
            }
            queue.waiting.push_back(Append { record, done, _permits: permits });
        }
        shared.metrics.queue_records.inc();
        shared.arrived.notify_one();
        answer.await.map_err(closed)?
    }

    /// Closes the current segment and begins the next; returns the id of the closed one. Every append acknowledged before is in it or in an earlier one, every
    /// append started after in a later one. While the current segment is empty nothing is done and the id before it is returned, for which the same holds.
    /// Blocks for the batch being written and, under [`SyncMode::Batch`], a sync.
    /// Errors: `Unavailable` when the next segment cannot be made; the current one then stays.
    pub fn rotate(&self) -> Result<SegmentId> {
        let mut active = self.shared.active.lock();
        if active.file.is_some() && active.good_bytes == SEGMENT_HEADER_BYTES as u64 {
            return Ok(SegmentId(active.id.0 - 1));
        }
        let closed = active.id;
        self.shared.begin_segment(&mut active)?;
        Ok(closed)
    }

    /// Removes a closed segment, for good. One that is not there is fine.
    /// Errors: `Internal` for the current segment; `Unavailable` when the file system refuses.
    pub fn remove(&self, segment: SegmentId) -> Result<()> {
        let shared = &self.shared;
        if segment >= shared.active.lock().id {
            return Err(Error::internal(format!("log segment {segment} is in use and cannot be removed")));
        }
        let removed = shared.store.remove(&shared.path(segment)).and_then(|()| shared.store.sync_dir(&shared.settings.dir));
        match removed {
            Ok(()) => shared.metrics.segments.dec(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(unavailable(format!("removing log segment {segment}"), error)),
        }
        Ok(())
    }

    /// Refuses later appends, writes and answers those that wait, and ends the writer. Blocks until that is done; a second call does nothing.
    pub fn close(&self) {
        self.shared.stop_taking();
        if let Some(writer) = self.writer.lock().take()
            && writer.join().is_err()
        {
            tracing::error!("write-ahead log writer panicked");
        }
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.close();
    }
}

/// However the writer ends, nobody waits for it afterwards.
struct StopAtExit(Arc<Shared>);

impl Drop for StopAtExit {
    fn drop(&mut self) {
        self.0.stop_taking();
        self.0.queue.lock().waiting.clear();
    }
}

impl Shared {
    fn stop_taking(&self) {
        self.queue.lock().closed = true;
        self.slots.close();
        self.bytes.close();
        self.arrived.notify_one();
    }

    fn path(&self, segment: SegmentId) -> PathBuf {
        self.settings.dir.join(segment.file_name())
    }

    /// The writer thread.
    fn write_batches(&self) {
        let mut batch = Vec::new();
        let mut synced_at = Stopwatch::start();
        loop {
            let closed = self.wait_for_appends(&mut batch, synced_at);
            if !batch.is_empty() {
                let mut active = self.active.lock();
                let written = self.write_batch(&mut active, &batch);
                drop(active);
                self.answer(&mut batch, written);
            }
            if closed {
                break;
            }
            if self.settings.sync == SyncMode::Batch && synced_at.elapsed() >= self.settings.sync_interval {
                self.sync_dirty(&mut self.active.lock());
                synced_at = Stopwatch::start();
            }
        }
        if self.settings.sync != SyncMode::Never {
            self.sync_dirty(&mut self.active.lock());
        }
    }

    /// Moves all that waits into `batch`, sleeping while there is nothing to do. Returns true when the log is closed and nothing more will come.
    fn wait_for_appends(&self, batch: &mut Vec<Append>, synced_at: Stopwatch) -> bool {
        let mut queue = self.queue.lock();
        while queue.waiting.is_empty() && !queue.closed {
            if self.settings.sync == SyncMode::Batch {
                let rest = self.settings.sync_interval.saturating_sub(synced_at.elapsed());
                if self.arrived.wait_for(&mut queue, rest).timed_out() {
                    break;
                }
            } else {
                self.arrived.wait(&mut queue);
            }
        }
        batch.extend(queue.waiting.drain(..));
        self.metrics.queue_records.sub(batch.len() as i64);
        queue.closed
    }

    fn answer(&self, batch: &mut Vec<Append>, written: Result<SegmentId, String>) {
        let counter = if written.is_ok() { &self.metrics.records } else { &self.metrics.refused_records };
        counter.inc_by(batch.len() as u64);
        for append in batch.drain(..) {
            // A receiver that is gone has cancelled its request.
            drop(append.done.send(written.clone().map_err(Error::unavailable)));
        }
    }

    /// Writes and, under [`SyncMode::Always`], syncs a batch. On an error none of it is left (WAL-2).
    fn write_batch(&self, active: &mut Active, batch: &[Append]) -> Result<SegmentId, String> {
        if active.file.is_none() || active.good_bytes >= self.settings.segment_bytes_max.max(SEGMENT_HEADER_BYTES as u64 + 1) {
            self.begin_segment(active).map_err(|error| error.to_string())?;
        }
        let file = active.file.as_mut().ok_or("write-ahead log: no segment")?;
        let mut slices = Vec::with_capacity(batch.iter().map(|append| 2 + append.record.payload.len()).sum());
        let mut bytes = 0;
        for Append { record, .. } in batch {
            slices.extend([&record.head, record.tenant.as_str().as_bytes()].map(IoSlice::new));
            slices.extend(record.payload.iter().map(|part| IoSlice::new(part)));
            bytes += record.bytes();
        }
        if let Err(error) = file.write_all(&mut slices) {
            self.metrics.write_failures.inc();
            // Later batches must not follow half a record.
            if let Err(error) = file.truncate(active.good_bytes) {
                self.give_up(active, "cutting a failed write", &error);
            }
            return Err(describe("writing", &error));
        }
        self.metrics.batches.inc();
        self.metrics.appended_bytes.inc_by(bytes);
        active.dirty = true;
        if self.settings.sync == SyncMode::Always
            && let Err(error) = self.sync(active)
        {
            return Err(describe("syncing", &error));
        }
        active.good_bytes += bytes;
        Ok(active.id)
    }

    /// Syncs the current segment. A segment whose sync failed is cut to its last good record as far as that works, and given up.
    fn sync(&self, active: &mut Active) -> io::Result<()> {
        let Some(file) = active.file.as_mut() else { return Ok(()) };
        let began = Stopwatch::start();
        let synced = file.sync_data();
        self.metrics.syncs.inc();
        self.metrics.sync_duration_seconds.observe(began.seconds());
        match &synced {
            Ok(()) => active.dirty = false,
            Err(error) => {
                self.metrics.sync_failures.inc();
                if let Err(error) = file.truncate(active.good_bytes) {
                    tracing::warn!(segment = active.id.0, %error, "cutting an unsynced log segment");
                }
                self.give_up(active, "syncing", error);
            }
        }
        synced
    }

    fn sync_dirty(&self, active: &mut Active) {
        if active.dirty {
            // Logged where it happened; the records were acknowledged before, as the mode says.
            drop(self.sync(active));
        }
    }

    fn give_up(&self, active: &mut Active, doing: &str, error: &io::Error) {
        tracing::error!(segment = active.id.0, doing, %error, "write-ahead log segment failed, going on in a new one");
        active.file = None;
        active.dirty = false;
    }

    /// Closes the current segment, if there is one, and makes the next. On an error the current one stays.
    fn begin_segment(&self, active: &mut Active) -> Result<()> {
        let id = active.next;
        let path = self.path(id);
        let file = self.store.create(&path).and_then(|mut file| {
            file.write_all(&mut [IoSlice::new(&segment_header())])?;
            file.sync_data()?;
            self.store.sync_dir(&self.settings.dir)?;
            Ok(file)
        });
        let file = file.map_err(|error| {
            self.metrics.write_failures.inc();
            match self.store.remove(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "removing an unfinished log segment");
                    active.next = SegmentId(id.0 + 1);
                }
                _ => {}
            }
            Error::unavailable(describe(&format!("making segment {id}"), &error))
        })?;
        if self.settings.sync != SyncMode::Never {
            self.sync_dirty(active);
        }
        *active = Active { id, next: SegmentId(id.0 + 1), file: Some(file), good_bytes: SEGMENT_HEADER_BYTES as u64, dirty: false };
        self.metrics.segments.inc();
        Ok(())
    }
}

/// What a client is told. "no space left" is the text for a full disk and a full quota.
fn describe(doing: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => format!("write-ahead log: no space left on device ({doing})"),
        _ => format!("write-ahead log: {doing}: {error}"),
    }
}

fn unavailable(doing: String, error: io::Error) -> Error {
    Error::unavailable(format!("write-ahead log: {doing}")).with_source(error)
}

fn closed<E>(_: E) -> Error {
    Error::unavailable("write-ahead log is closed")
}
