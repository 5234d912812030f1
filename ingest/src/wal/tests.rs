#![allow(clippy::unwrap_used)]
use std::{
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

use prometheus::Registry;
use tempfile::TempDir;

use super::*;
use crate::error::ErrorKind;

/// The disk, with things going wrong on demand.
#[derive(Default)]
struct Faults {
    /// Bytes that still fit.
    room: Mutex<Option<usize>>,
    create_fails: AtomicBool,
    sync_fails: AtomicBool,
    truncate_fails: AtomicBool,
    /// While true, syncs wait.
    sync_blocks: AtomicBool,
    syncs: AtomicUsize,
    dir_syncs: AtomicUsize,
}

struct FaultyStore(Arc<Faults>);
struct FaultyFile(Box<dyn SegmentFile>, Arc<Faults>);

fn fail_if(flag: &AtomicBool) -> io::Result<()> {
    if flag.load(SeqCst) { Err(io::Error::other("injected")) } else { Ok(()) }
}

impl SegmentStore for FaultyStore {
    fn create(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        fail_if(&self.0.create_fails)?;
        Ok(Box::new(FaultyFile(Disk.create(path)?, self.0.clone())))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        Disk.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.dir_syncs.fetch_add(1, SeqCst);
        Disk.sync_dir(dir)
    }
}

impl SegmentFile for FaultyFile {
    fn write_all(&mut self, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut room = self.1.room.lock();
        let Some(left) = room.as_mut() else { return self.0.write_all(slices) };
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        let fits = bytes.len().min(*left);
        *left -= fits;
        self.0.write_all(&mut [IoSlice::new(&bytes[..fits])])?;
        if fits < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.1.syncs.fetch_add(1, SeqCst);
        while self.1.sync_blocks.load(SeqCst) {
            std::thread::yield_now();
        }
        fail_if(&self.1.sync_fails)?;
        self.0.sync_data()
    }

    fn truncate(&mut self, bytes: u64) -> io::Result<()> {
        fail_if(&self.1.truncate_fails)?;
        self.0.truncate(bytes)
    }
}

struct Fixture {
    wal: Arc<Wal>,
    old: Vec<SegmentId>,
    faults: Arc<Faults>,
    metrics: WalMetrics,
}

fn open_with(settings: WalSettings) -> Fixture {
    let faults = Arc::<Faults>::default();
    let metrics = WalMetrics::new(&Registry::new()).unwrap();
    let (wal, old) = Wal::open_on(Arc::new(FaultyStore(faults.clone())), settings, metrics.clone()).unwrap();
    Fixture { wal: Arc::new(wal), old, faults, metrics }
}

fn open(dir: &TempDir) -> Fixture {
    open_with(WalSettings::new(dir.path()))
}

fn tenant(id: &str) -> TenantId {
    TenantId::parse(id).unwrap()
}

async fn append(wal: &Wal, text: &str) -> Result<SegmentId> {
    wal.append(&tenant("t"), vec![Bytes::copy_from_slice(text.as_bytes())]).await
}

/// What one segment yields, as `tenant:payload`.
fn read(wal: &Wal, segment: SegmentId) -> (Vec<String>, ReplayReport) {
    let mut records = Vec::new();
    let report = wal
        .replay(segment, |tenant, payload| {
            records.push(format!("{tenant}:{}", String::from_utf8_lossy(&payload)));
            Ok(())
        })
        .unwrap();
    assert_eq!(records.len() as u64, report.records);
    (records, report)
}

/// What a new process finds, over all segments.
fn restart(dir: &TempDir) -> Vec<String> {
    let fixture = open(dir);
    fixture.old.iter().flat_map(|&segment| read(&fixture.wal, segment).0).collect()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = Stopwatch::start();
    while !condition() {
        assert!(waited.elapsed() < Duration::from_secs(20), "waited in vain for {what}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn acknowledged_records_come_back_in_order_and_by_tenant() {
    let dir = TempDir::new().unwrap();
    let first = open(&dir);
    assert_eq!(first.old, []);
    for (id, payload) in [("a", &["1"][..]), ("b", &[]), ("a", &["", "par", "", "ts", ""])] {
        let payload = payload.iter().map(|part| Bytes::from_static(part.as_bytes())).collect();
        assert_eq!(first.wal.append(&tenant(id), payload).await.unwrap(), SegmentId(1));
    }
    drop(first);
    let second = open(&dir);
    assert_eq!(second.old, [SegmentId(1)]);
    let (records, report) = read(&second.wal, SegmentId(1));
    assert_eq!(records, ["a:1", "b:", "a:parts"]);
    assert_eq!(report, ReplayReport { records: 3, good_bytes: 16 + 3 * 10 + 6, lost_bytes: 0, damage: None });
    assert_eq!(second.metrics.replayed_records.get(), 3);
    assert_eq!(append(&second.wal, "new").await.unwrap(), SegmentId(2));
    drop(second);
    assert_eq!(restart(&dir), ["a:1", "b:", "a:parts", "t:new"]);
}

#[tokio::test]
async fn layout_is_the_one_written_down() {
    let dir = TempDir::new().unwrap();
    append(&open(&dir).wal, "xyz").await.unwrap();
    let bytes = std::fs::read(dir.path().join("00000000000000000001.wal")).unwrap();
    let mut expected = b"SKEINWAL\x04\0\0\0".to_vec();
    expected.extend(crc32fast::hash(&expected).to_le_bytes());
    expected.extend([5, 0, 0, 0]);
    expected.extend(crc32fast::hash(b"\x05\0\0\0\x01txyz").to_le_bytes());
    expected.extend(b"\x01txyz");
    assert_eq!(bytes, expected);
}

#[tokio::test]
async fn visitor_error_ends_the_replay() {
    let dir = TempDir::new().unwrap();
    let fixture = open(&dir);
    append(&fixture.wal, "1").await.unwrap();
    append(&fixture.wal, "2").await.unwrap();
    let mut seen = 0;
    let error = fixture.wal.replay(SegmentId(1), |_, _| {
        seen += 1;
        Err(Error::invalid("enough"))
    });
    assert_eq!((error.unwrap_err().message(), seen), ("enough", 1));
}

#[test]
fn second_process_is_kept_out() {
    let dir = TempDir::new().unwrap();
    let _first = open(&dir);
    let error = Wal::open(WalSettings::new(dir.path()), WalMetrics::new(&Registry::new()).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[test]
fn foreign_files_are_ignored() {
    let dir = TempDir::new().unwrap();
    for name in ["1.wal", "0000000000000000000x.wal", "00000000000000000007.tmp", "99999999999999999999.wal"] {
        std::fs::write(dir.path().join(name), "x").unwrap();
    }
    assert_eq!(open(&dir).old, []);
}

// --- Damage, one test a kind ---

/// Two records, then `damage` done to the file's bytes; expects the kind of damage and the number of records before it.
fn check_damage(damage: impl FnOnce(&mut Vec<u8>), expected: impl Into<Option<Damage>>, records: u64) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("00000000000000000001.wal");
    let mut bytes = sample_segment();
    damage(&mut bytes);
    std::fs::write(path, &bytes).unwrap();
    let fixture = open(&dir);
    let report = read(&fixture.wal, SegmentId(1)).1;
    let expected = expected.into();
    let damaged = u64::from(expected.is_some());
    assert_eq!((report.damage, report.records), (expected, records));
    assert_eq!(report.good_bytes + report.lost_bytes, bytes.len() as u64);
    assert_eq!(fixture.metrics.truncated_records.get(), damaged);
    assert_eq!(fixture.metrics.truncated_bytes.get(), report.lost_bytes);
}

/// `t:first` in bytes 16 to 30, `t:second` in 31 to 46.
fn sample_segment() -> Vec<u8> {
    segment_of(&[("t", b"first"), ("t", b"second")])
}

fn segment_of(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = segment_header().to_vec();
    for (id, payload) in records {
        let record = Record::new(tenant(id), vec![Bytes::copy_from_slice(payload)]).unwrap();
        bytes.extend(record.head);
        bytes.extend(record.tenant.as_str().bytes());
        bytes.extend(record.payload.concat());
    }
    bytes
}

/// Gives the record at `at` the checksum of what it says now.
fn reseal(bytes: &mut [u8], at: usize) {
    let length = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let mut sealed = bytes[at..at + 4].to_vec();
    sealed.extend(&bytes[at + 8..at + 8 + length]);
    let checksum = crc32fast::hash(&sealed).to_le_bytes();
    bytes[at + 4..at + 8].copy_from_slice(&checksum);
}

#[test]
fn undamaged_segment_is_whole() {
    check_damage(|_| {}, None, 2);
}

#[test]
fn empty_file_has_no_records_and_no_damage() {
    check_damage(Vec::clear, None, 0);
}

#[test]
fn header_without_records_is_whole() {
    check_damage(|bytes| bytes.truncate(16), None, 0);
}

#[test]
fn truncated_segment_header() {
    check_damage(|bytes| bytes.truncate(15), Damage::ShortSegmentHeader, 0);
}

#[test]
fn wrong_magic() {
    check_damage(|bytes| bytes[0] = b'X', Damage::WrongMagic, 0);
}

#[test]
fn unknown_version() {
    let damage = |bytes: &mut Vec<u8>| {
        bytes[8] = 9;
        let checksum = crc32fast::hash(&bytes[..12]).to_le_bytes();
        bytes[12..16].copy_from_slice(&checksum);
    };
    check_damage(damage, Damage::UnknownVersion(9), 0);
}

#[test]
fn older_versions_are_read() {
    for version in [1, 2, 3] {
        let older = |bytes: &mut Vec<u8>| {
            assert_eq!(bytes[8], 4);
            bytes[8] = version;
            let checksum = crc32fast::hash(&bytes[..12]).to_le_bytes();
            bytes[12..16].copy_from_slice(&checksum);
        };
        check_damage(older, None, 2);
    }
}

#[test]
fn wrong_segment_header_checksum() {
    check_damage(|bytes| bytes[12] ^= 1, Damage::WrongHeaderChecksum, 0);
}

#[test]
fn truncated_record_header() {
    check_damage(|bytes| bytes.truncate(31 + 7), Damage::ShortRecordHeader, 1);
}

#[test]
fn truncated_tenant() {
    check_damage(|bytes| bytes.truncate(31 + 9), Damage::ShortBody, 1);
}

#[test]
fn truncated_payload() {
    check_damage(|bytes| bytes.truncate(46), Damage::ShortBody, 1);
}

#[test]
fn wrong_payload_checksum() {
    check_damage(|bytes| bytes[46] ^= 0x80, Damage::WrongChecksum, 1);
}

#[test]
fn wrong_length_within_the_file_is_caught_by_the_checksum() {
    check_damage(|bytes| bytes[16] -= 1, Damage::WrongChecksum, 0);
}

#[test]
fn zero_filled_tail() {
    check_damage(|bytes| bytes.extend([0; 4096]), Damage::WrongLength(0), 2);
}

#[test]
fn garbage_tail() {
    check_damage(|bytes| bytes.extend([0xFF; 100]), Damage::WrongLength(u32::MAX), 2);
}

#[test]
fn length_beyond_the_file_allocates_nothing() {
    check_damage(|bytes| bytes.extend([0, 0, 0, 0x40, 1, 2, 3, 4, 5]), Damage::ShortBody, 2);
}

#[test]
fn tenant_longer_than_the_body() {
    let damage = |bytes: &mut Vec<u8>| {
        bytes[31 + 8] = 200;
        reseal(bytes, 31);
    };
    check_damage(damage, Damage::WrongTenant, 1);
}

#[test]
fn tenant_that_is_no_tenant_id() {
    let damage = |bytes: &mut Vec<u8>| {
        bytes[31 + 9] = b'/';
        reseal(bytes, 31);
    };
    check_damage(damage, Damage::WrongTenant, 1);
}

#[test]
fn missing_segment_is_reported_not_an_error() {
    let dir = TempDir::new().unwrap();
    let report = read(&open(&dir).wal, SegmentId(77)).1;
    assert_eq!(report.damage, Some(Damage::Unreadable(io::ErrorKind::NotFound)));
}

// --- Failing disks ---

#[tokio::test]
async fn full_disk_refuses_keeps_the_good_part_and_resumes() {
    let dir = TempDir::new().unwrap();
    let fixture = open(&dir);
    append(&fixture.wal, "before").await.unwrap();
    *fixture.faults.room.lock() = Some(12);
    let error = append(&fixture.wal, "too much for twelve bytes").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("write-ahead log: no space left"), "{error}");
    assert_eq!(std::fs::metadata(dir.path().join("00000000000000000001.wal")).unwrap().len(), 16 + 10 + 6, "half a record is left");
    assert_eq!(fixture.metrics.write_failures.get(), 1);
    assert_eq!(fixture.metrics.refused_records.get(), 1);
    *fixture.faults.room.lock() = None;
    assert_eq!(append(&fixture.wal, "after").await.unwrap(), SegmentId(1));
    drop(fixture);
    assert_eq!(restart(&dir), ["t:before", "t:after"]);
}

#[tokio::test]
async fn full_disk_at_a_new_segment_leaves_no_file_and_resumes() {
    let dir = TempDir::new().unwrap();
    let fixture = open_with(WalSettings { segment_bytes_max: 1, ..WalSettings::new(dir.path()) });
    append(&fixture.wal, "1").await.unwrap();
    *fixture.faults.room.lock() = Some(5);
    assert_eq!(append(&fixture.wal, "2").await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(fixture.wal.rotate().unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(!dir.path().join("00000000000000000002.wal").exists());
    *fixture.faults.room.lock() = None;
    assert_eq!(append(&fixture.wal, "3").await.unwrap(), SegmentId(2));
    drop(fixture);
    assert_eq!(restart(&dir), ["t:1", "t:3"]);
}

#[tokio::test]
async fn segment_that_cannot_be_cut_is_given_up() {
    let dir = TempDir::new().unwrap();
    let fixture = open(&dir);
    append(&fixture.wal, "1").await.unwrap();
    fixture.faults.truncate_fails.store(true, SeqCst);
    *fixture.faults.room.lock() = Some(12);
    append(&fixture.wal, "half a record stays behind").await.unwrap_err();
    *fixture.faults.room.lock() = None;
    assert_eq!(append(&fixture.wal, "3").await.unwrap(), SegmentId(2));
    drop(fixture);
    assert_eq!(restart(&dir), ["t:1", "t:3"]);
}

#[tokio::test]
async fn failed_sync_refuses_the_batch_and_moves_to_a_new_segment() {
    let dir = TempDir::new().unwrap();
    let fixture = open(&dir);
    append(&fixture.wal, "1").await.unwrap();
    fixture.faults.sync_fails.store(true, SeqCst);
    assert_eq!(append(&fixture.wal, "2").await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(fixture.metrics.sync_failures.get(), 1);
    assert_eq!(append(&fixture.wal, "3").await.unwrap_err().kind(), ErrorKind::Unavailable, "a segment whose header is not synced takes nothing");
    fixture.faults.sync_fails.store(false, SeqCst);
    assert_eq!(append(&fixture.wal, "4").await.unwrap(), SegmentId(2));
    drop(fixture);
    assert_eq!(restart(&dir), ["t:1", "t:4"]);
}

#[tokio::test]
async fn segment_given_up_can_be_rotated_away_and_removed() {
    let dir = TempDir::new().unwrap();
    let fixture = open(&dir);
    append(&fixture.wal, "1").await.unwrap();
    fixture.faults.sync_fails.store(true, SeqCst);
    append(&fixture.wal, "2").await.unwrap_err();
    fixture.faults.sync_fails.store(false, SeqCst);
    assert_eq!(fixture.wal.rotate().unwrap(), SegmentId(1));
    fixture.wal.remove(SegmentId(1)).unwrap();
    assert_eq!(append(&fixture.wal, "3").await.unwrap(), SegmentId(2));
}

#[test]
fn start_on_a_full_disk_is_unavailable() {
    let dir = TempDir::new().unwrap();
    let faults = Arc::new(Faults { room: Mutex::new(Some(3)), ..Faults::default() });
    let opened = Wal::open_on(Arc::new(FaultyStore(faults)), WalSettings::new(dir.path()), WalMetrics::new(&Registry::new()).unwrap());
    assert_eq!(opened.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(open(&dir).old, [], "the unfinished segment is gone");
}

#[tokio::test]
async fn failing_creation_is_retried() {
    let dir = TempDir::new().unwrap();
    let fixture = open_with(WalSettings { segment_bytes_max: 1, ..WalSettings::new(dir.path()) });
    append(&fixture.wal, "1").await.unwrap();
    fixture.faults.create_fails.store(true, SeqCst);
    append(&fixture.wal, "2").await.unwrap_err();
    fixture.faults.create_fails.store(false, SeqCst);
    assert_eq!(append(&fixture.wal, "3").await.unwrap(), SegmentId(2));
}

// --- Group commit, modes, bounds ---

#[tokio::test]
async fn appends_that_wait_share_one_sync() {
    const WAITING: usize = 50;
    let dir = TempDir::new().unwrap();
    let fixture = open(&dir);
    fixture.faults.sync_blocks.store(true, SeqCst);
    let appends: Vec<_> = (0..=WAITING)
        .map(|n| {
            let wal = fixture.wal.clone();
            tokio::spawn(async move { append(&wal, &n.to_string()).await })
        })
        .collect();
    // One batch is in its sync, the rest waits for the writer.
    let syncs_before = fixture.faults.syncs.load(SeqCst);
    until("all appends", || {
        let in_sync = fixture.metrics.batches.get() > 0;
        in_sync && fixture.wal.shared.settings.queue_records_max - fixture.wal.shared.slots.available_permits() == WAITING + 1
    })
    .await;
    assert!(appends.iter().all(|append| !append.is_finished()), "acknowledged before the sync");
    fixture.faults.sync_blocks.store(false, SeqCst);
    for append in appends {
        append.await.unwrap().unwrap();
    }
    let batches = fixture.metrics.batches.get();
    assert!((1..=2).contains(&batches), "{batches} batches");
    assert_eq!(fixture.metrics.syncs.get(), batches);
    assert!(fixture.faults.syncs.load(SeqCst) - syncs_before <= 2);
    assert_eq!(fixture.metrics.records.get(), WAITING as u64 + 1);
}

#[tokio::test]
async fn concurrent_appends_keep_every_record_and_each_sender_s_order() {
    let dir = TempDir::new().unwrap();
    let fixture = open_with(WalSettings { segment_bytes_max: 500, ..WalSettings::new(dir.path()) });
    let senders: Vec<_> = (0..8)
        .map(|sender| {
            let wal = fixture.wal.clone();
            tokio::spawn(async move {
                for n in 0..100 {
                    wal.append(&tenant(&format!("s{sender}")), vec![Bytes::from(format!("{n:03}"))]).await.unwrap();
                }
            })
        })
        .collect();
    for sender in senders {
        sender.await.unwrap();
    }
    drop(fixture);
    let found = restart(&dir);
    for sender in 0..8 {
        let own: Vec<_> = found.iter().filter(|record| record.starts_with(&format!("s{sender}:"))).cloned().collect();
        assert_eq!(own, (0..100).map(|n| format!("s{sender}:{n:03}")).collect::<Vec<_>>());
    }
    assert_eq!(found.len(), 800);
}

#[tokio::test]
async fn never_does_not_sync_records() {
    let dir = TempDir::new().unwrap();
    let fixture = open_with(WalSettings { sync: SyncMode::Never, ..WalSettings::new(dir.path()) });
    append(&fixture.wal, "1").await.unwrap();
    fixture.wal.close();
    assert_eq!(fixture.metrics.syncs.get(), 0);
    drop(fixture);
    assert_eq!(restart(&dir), ["t:1"]);
}

#[tokio::test]
async fn batch_acknowledges_first_and_syncs_within_the_interval() {
    let dir = TempDir::new().unwrap();
    let fixture = open_with(WalSettings { sync: SyncMode::Batch, sync_interval: Duration::from_millis(5), ..WalSettings::new(dir.path()) });
    fixture.faults.sync_blocks.store(true, SeqCst);
    append(&fixture.wal, "1").await.unwrap();
    fixture.faults.sync_blocks.store(false, SeqCst);
    until("the sync", || fixture.metrics.syncs.get() == 1).await;
}

#[tokio::test]
async fn batch_syncs_at_close_and_at_rotation() {
    let dir = TempDir::new().unwrap();
    let fixture = open_with(WalSettings { sync: SyncMode::Batch, sync_interval: Duration::from_secs(3600), ..WalSettings::new(dir.path()) });
    append(&fixture.wal, "1").await.unwrap();
    assert_eq!(fixture.metrics.syncs.get(), 0);
    fixture.wal.rotate().unwrap();
    assert_eq!(fixture.metrics.syncs.get(), 1);
    append(&fixture.wal, "2").await.unwrap();
    fixture.wal.close();
    assert_eq!(fixture.metrics.syncs.get(), 2);
}

#[tokio::test]
async fn rotation_closes_a_segment_once() {
    let dir = TempDir::new().unwrap();
    let fixture = open(&dir);
    assert_eq!(fixture.wal.rotate().unwrap(), SegmentId(0), "the first segment is empty");
    assert_eq!(append(&fixture.wal, "1").await.unwrap(), SegmentId(1));
    assert_eq!(fixture.wal.rotate().unwrap(), SegmentId(1));
    assert_eq!(fixture.wal.rotate().unwrap(), SegmentId(1), "nothing came since");
    assert_eq!(append(&fixture.wal, "2").await.unwrap(), SegmentId(2));
    assert_eq!(fixture.wal.remove(SegmentId(2)).unwrap_err().kind(), ErrorKind::Internal, "in use");
    assert_eq!(fixture.metrics.segments.get(), 2);
    let dir_syncs = fixture.faults.dir_syncs.load(SeqCst);
    fixture.wal.remove(SegmentId(1)).unwrap();
    assert_eq!(fixture.faults.dir_syncs.load(SeqCst), dir_syncs + 1, "a removal is durable");
    fixture.wal.remove(SegmentId(1)).unwrap();
    assert_eq!(fixture.metrics.segments.get(), 1);
    drop(fixture);
    assert_eq!(restart(&dir), ["t:2"]);
}

#[tokio::test]
async fn ids_are_not_used_again_after_everything_was_removed() {
    let dir = TempDir::new().unwrap();
    let fixture = open(&dir);
    append(&fixture.wal, "1").await.unwrap();
    let closed = fixture.wal.rotate().unwrap();
    fixture.wal.remove(closed).unwrap();
    drop(fixture);
    assert_eq!(append(&open(&dir).wal, "2").await.unwrap(), SegmentId(3));
}

#[tokio::test]
async fn full_queue_makes_appends_wait() {
    let dir = TempDir::new().unwrap();
    let fixture = open_with(WalSettings { queue_records_max: 2, ..WalSettings::new(dir.path()) });
    fixture.faults.sync_blocks.store(true, SeqCst);
    let appends: Vec<_> = (0..5)
        .map(|n| {
            let wal = fixture.wal.clone();
            tokio::spawn(async move { append(&wal, &n.to_string()).await })
        })
        .collect();
    until("the queue to fill", || fixture.wal.shared.slots.available_permits() == 0).await;
    assert!(fixture.metrics.queue_records.get() <= 2);
    fixture.faults.sync_blocks.store(false, SeqCst);
    for append in appends {
        append.await.unwrap().unwrap();
    }
    assert_eq!(fixture.metrics.records.get(), 5);
    assert_eq!(fixture.metrics.queue_records.get(), 0);
}

#[tokio::test]
async fn record_larger_than_the_queue_is_let_in_alone() {
    let dir = TempDir::new().unwrap();
    let fixture = open_with(WalSettings { queue_bytes_max: 4, ..WalSettings::new(dir.path()) });
    append(&fixture.wal, "more than four bytes").await.unwrap();
    append(&fixture.wal, "and again").await.unwrap();
}

#[tokio::test]
async fn closed_log_has_written_what_waited_and_takes_nothing() {
    let dir = TempDir::new().unwrap();
    let fixture = open(&dir);
    append(&fixture.wal, "1").await.unwrap();
    fixture.wal.close();
    fixture.wal.close();
    assert_eq!(append(&fixture.wal, "2").await.unwrap_err().kind(), ErrorKind::Unavailable);
    drop(fixture);
    assert_eq!(restart(&dir), ["t:1"]);
}

#[tokio::test]
async fn cancelled_append_disturbs_no_other() {
    let dir = TempDir::new().unwrap();
    let fixture = open(&dir);
    fixture.faults.sync_blocks.store(true, SeqCst);
    let cancelled = tokio::spawn({
        let wal = fixture.wal.clone();
        async move { append(&wal, "left").await }
    });
    until("the batch", || fixture.metrics.batches.get() == 1).await;
    cancelled.abort();
    assert!(cancelled.await.unwrap_err().is_cancelled());
    fixture.faults.sync_blocks.store(false, SeqCst);
    append(&fixture.wal, "stayed").await.unwrap();
    drop(fixture);
    assert_eq!(restart(&dir), ["t:left", "t:stayed"]);
}

// --- Any bytes ---

/// SplitMix64: enough to choose damage, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// The format once more, written for reading.
fn naive_records(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut records = Vec::new();
    let is_known = |version: &[u8]| [[1, 0, 0, 0], [2, 0, 0, 0], [3, 0, 0, 0], [4, 0, 0, 0]].iter().any(|known| version == known);
    if bytes.len() < 16 || bytes[..8] != *b"SKEINWAL" || !is_known(&bytes[8..12]) || bytes[12..16] != crc32fast::hash(&bytes[..12]).to_le_bytes() {
        return records;
    }
    let mut rest = &bytes[16..];
    while rest.len() >= 8 {
        let length = u32::from_le_bytes(rest[..4].try_into().unwrap()) as usize;
        if length < 2 || length > rest.len() - 8 {
            break;
        }
        let body = &rest[8..8 + length];
        let tenant_end = 1 + body[0] as usize;
        if crc32fast::hash(&[&rest[..4], body].concat()).to_le_bytes() != rest[4..8] || tenant_end > length {
            break;
        }
        let Ok(Ok(tenant)) = std::str::from_utf8(&body[1..tenant_end]).map(TenantId::parse) else { break };
        records.push((tenant.to_string(), body[tenant_end..].to_vec()));
        rest = &rest[8 + length..];
    }
    records
}

fn random_segment(random: &mut Random) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = segment_of(&[]);
    let mut starts = Vec::new();
    for _ in 0..random.below(6) {
        starts.push(bytes.len());
        let payload: Vec<u8> = (0..random.below(40)).map(|_| random.next() as u8).collect();
        let record = segment_of(&[(["a", "tenant-1", "x.y_z"][random.below(3)], &payload)]);
        bytes.extend(&record[16..]);
    }
    (bytes, starts)
}

fn damage(random: &mut Random, bytes: &mut Vec<u8>, starts: &[usize]) {
    let at = random.below(bytes.len());
    match random.below(7) {
        0 => bytes.truncate(at),
        1 => bytes[at..].fill(0),
        2 => bytes[at] ^= 1 << random.below(8),
        3 => bytes.extend((0..random.below(50)).map(|_| random.next() as u8).collect::<Vec<_>>()),
        4 => bytes.extend(vec![0; random.below(50)]),
        5 => drop(bytes.drain(at..(at + random.below(9)).min(bytes.len()))),
        _ => {
            // A body that is wrong and says that it is right.
            if let Some(&start) = starts.get(random.below(starts.len())) {
                bytes[start + 8 + random.below(2)] = random.next() as u8;
                reseal(bytes, start);
            }
        }
    }
}

/// `SKEIN_FUZZ_SECONDS` makes it run that long, `SKEIN_FUZZ_SEED` repeats a run.
#[test]
fn any_bytes_yield_only_what_a_checksum_vouches_for() {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seed = number("SKEIN_FUZZ_SEED").unwrap_or(2);
    let (fuzzed, seconds) = (Stopwatch::start(), number("SKEIN_FUZZ_SECONDS"));
    println!("SKEIN_FUZZ_SEED={seed}");
    let mut random = Random(seed);
    let mut rounds = 0u64;
    let mut yielded = 0;
    while seconds.map_or(rounds < 5_000, |seconds| fuzzed.elapsed() < Duration::from_secs(seconds)) {
        let (mut bytes, starts) = random_segment(&mut random);
        if random.below(8) > 0 {
            damage(&mut random, &mut bytes, &starts);
        }
        let mut records = Vec::new();
        let report = scan(&bytes[..], bytes.len() as u64, |tenant, payload| {
            records.push((tenant.to_string(), payload.to_vec()));
            Ok(())
        });
        let report = report.unwrap();
        assert_eq!(records, naive_records(&bytes), "round {rounds}: {bytes:?}");
        assert_eq!(report.good_bytes + report.lost_bytes, bytes.len() as u64, "round {rounds}");
        assert_eq!(report.damage.is_none(), report.lost_bytes == 0, "round {rounds}: {report:?}");
        yielded += records.len();
        rounds += 1;
    }
    assert!(yielded > 0);
}
