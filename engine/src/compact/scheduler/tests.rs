#![allow(clippy::unwrap_used)]
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use futures::TryStreamExt;
use object_store::{ObjectStoreExt, memory::InMemory};
use parking_lot::Mutex;

use super::*;
use crate::{
    catalog::{
        CatalogMetrics,
        meta::{
            DATA_NAME,
            tests::{SECOND, block, id, tenant},
        },
    },
    clock::{SystemClock, TestClock},
    store::{
        StorageSettings,
        faults::{FailingStore, LastChange},
    },
};

/// Writes the union of the inputs' spans. A data object is a JSON list of span numbers.
struct ListMerger {
    store: Arc<dyn ObjectStore>,
    calls: AtomicUsize,
    /// Inputs that cannot be merged.
    damaged: Mutex<HashSet<BlockId>>,
    hangs: bool,
}

#[async_trait]
impl Merger for ListMerger {
    async fn merge(&self, tenant: &TenantId, inputs: &[Arc<BlockMeta>]) -> Result<BlockMeta> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.hangs {
            std::future::pending::<()>().await;
        }
        if inputs.iter().any(|input| self.damaged.lock().contains(&input.id)) {
            return Err(Error::data("damaged"));
        }
        let mut spans = Vec::new();
        for input in inputs {
            spans.extend(read_spans(&*self.store, input).await?);
        }
        spans.sort();
        spans.dedup();
        let mut output = block(0, 0, 0);
        output.id = BlockId::random();
        output.tenant = tenant.clone();
        output.min_start_unix_nano = inputs.iter().map(|input| input.min_start_unix_nano).min().unwrap();
        output.max_end_unix_nano = inputs.iter().map(|input| input.max_end_unix_nano).max().unwrap();
        output.total_spans = spans.len() as u64;
        self.store.put(&output.object_path(DATA_NAME), serde_json::to_vec(&spans).unwrap().into()).await?;
        Ok(output)
    }
}

async fn read_spans(store: &dyn ObjectStore, block: &BlockMeta) -> Result<Vec<u32>> {
    let bytes = store.get(&block.object_path(DATA_NAME)).await?.bytes().await?;
    Ok(serde_json::from_slice(&bytes).unwrap())
}

async fn write_block(store: &dyn ObjectStore, mut meta: BlockMeta, spans: &[u32]) -> BlockMeta {
    meta.total_spans = spans.len() as u64;
    store.put(&meta.object_path(DATA_NAME), serde_json::to_vec(spans).unwrap().into()).await.unwrap();
    write_meta(store, &meta).await.unwrap();
    meta
}

/// A process: what lives between two crashes.
struct Process {
    scheduler: Scheduler,
    catalog: Arc<Catalog>,
    poller: Arc<Poller>,
    merger: Arc<ListMerger>,
    stop: watch::Sender<bool>,
}

impl Process {
    fn new(store: Arc<dyn ObjectStore>, clock: Arc<dyn Clock>, hangs: bool) -> Self {
        let registry = prometheus::Registry::new();
        let catalog = Arc::new(Catalog::new(CatalogMetrics::new(&registry).unwrap()));
        let poller = Arc::new(Poller::new(store.clone(), catalog.clone(), &StorageSettings::default()));
        let merger = Arc::new(ListMerger { store: store.clone(), calls: AtomicUsize::new(0), damaged: Mutex::default(), hangs });
        let metrics = CompactionMetrics::new(&registry).unwrap();
        let settings = CompactionSettings::default();
        let scheduler = Scheduler::new(store, catalog.clone(), poller.clone(), merger.clone(), clock, settings, metrics);
        Self { scheduler, catalog, poller, merger, stop: watch::channel(false).0 }
    }

    async fn start(store: Arc<dyn ObjectStore>, clock: Arc<dyn Clock>) -> Self {
        let process = Self::new(store, clock, false);
        process.poller.poll_once().await.unwrap();
        process
    }

    async fn cycle(&mut self) -> CycleReport {
        let stop = self.stop.subscribe();
        self.scheduler.run_cycle(&stop).await
    }

    /// All spans that a query would see, with repetitions.
    async fn visible(&self, store: &dyn ObjectStore) -> Vec<u32> {
        let mut spans = Vec::new();
        for block in self.catalog.snapshot(&tenant()).blocklist.live() {
            spans.extend(read_spans(store, block).await.unwrap());
        }
        spans.sort();
        spans
    }

    fn live(&self) -> Vec<BlockId> {
        self.catalog.snapshot(&tenant()).blocklist.live().iter().map(|block| block.id).collect()
    }
}

/// Five blocks of ten spans in one recent window: a merge of four, and then none, because the levels differ, and later the sizes.
async fn five_blocks(store: &dyn ObjectStore, now: u64) {
    let now_seconds = now / SECOND;
    for number in 0..5 {
        let spans: Vec<u32> = (number * 10..number * 10 + 10).collect();
        let mut meta = block(u128::from(number) + 1, now_seconds - 60, now_seconds);
        meta.data_bytes = if number == 4 { 10_000 } else { 100 };
        write_block(store, meta, &spans).await;
    }
}

fn now() -> u64 {
    SystemClock.now_unix_nano()
}

#[tokio::test]
async fn a_tenant_may_have_no_merges_and_another_retention() {
    let store = Arc::new(InMemory::new());
    let clock = Arc::new(TestClock::new(now()));
    five_blocks(&*store, now()).await;
    let mut process = Process::start(store.clone(), clock.clone()).await;
    let own = TenantCompaction { compaction_disabled: true, block_retention: Duration::from_secs(3_600), ..Default::default() };
    process.scheduler = process.scheduler.with_tenants(Arc::new(own));
    assert_eq!(process.cycle().await, CycleReport::default());
    clock.advance(Duration::from_secs(7_200));
    let report = process.cycle().await;
    assert_eq!((report.merged, report.retention.marked), (0, 5));
}

#[test]
fn what_a_tenant_leaves_out_is_everyones() {
    let settings = CompactionSettings::default();
    assert_eq!(settings.of_tenant(&TenantCompaction::default()), settings);
    let window = Duration::from_secs(60);
    let own = settings.of_tenant(&TenantCompaction { compaction_window: window, ..Default::default() });
    assert_eq!((own.compaction_window, own.block_retention), (window, settings.block_retention));
}

#[tokio::test]
async fn blocks_are_merged_and_inputs_marked() {
    let store = Arc::new(InMemory::new());
    let clock = Arc::new(TestClock::new(now()));
    five_blocks(&*store, now()).await;
    let mut process = Process::start(store.clone(), clock).await;
    assert_eq!(process.cycle().await, CycleReport { merged: 1, ..Default::default() });
    let snapshot = process.catalog.snapshot(&tenant());
    let output = snapshot.blocklist.live().iter().find(|block| block.compaction_level == 1).unwrap();
    assert_eq!(output.replaces, [id(1), id(2), id(3), id(4)]);
    assert_eq!((snapshot.blocklist.live().len(), snapshot.blocklist.superseded().len(), snapshot.blocklist.compacted().len()), (2, 0, 4));
    assert_eq!(process.visible(&*store).await, (0..50).collect::<Vec<_>>());
    assert_eq!(process.cycle().await, CycleReport::default());
}

/// Every number of changes to the store after which a process can die, until it does all without dying; at each, another process must
/// see every span once, and must come to the same end.
async fn check_crashes(last: LastChange) {
    let expected: Vec<u32> = (0..50).collect();
    let mut crashes = 0;
    for changes in 0.. {
        let store: Arc<InMemory> = Arc::new(InMemory::new());
        let clock = Arc::new(TestClock::new(now()));
        five_blocks(&*store, now()).await;
        let failing = Arc::new(FailingStore::new(store.clone(), changes, last));
        let mut dying = Process::start(failing.clone(), clock.clone()).await;
        for _ in 0..2 {
            dying.cycle().await;
            assert_eq!(dying.visible(&*store).await, expected, "in the process itself, after {changes} changes");
        }
        // Retention, two hours later, when the inputs are past their time.
        clock.advance(Duration::from_secs(2 * 3_600));
        dying.cycle().await;
        assert_eq!(dying.visible(&*store).await, expected, "with retention, after {changes} changes");

        let clock = Arc::new(TestClock::new(now()));
        let mut next = Process::start(store.clone(), clock.clone()).await;
        assert_eq!(next.visible(&*store).await, expected, "after {changes} changes and a restart");
        for _ in 0..3 {
            next.cycle().await;
            next.poller.poll_once().await.unwrap();
            assert_eq!(next.visible(&*store).await, expected, "after {changes} changes, a restart and a pass");
        }
        assert_eq!(next.live().len(), 2, "the merge was finished or done again");
        assert!(next.catalog.snapshot(&tenant()).blocklist.superseded().is_empty());

        // All that is left in the end are the two live blocks.
        clock.advance(Duration::from_secs(25 * 3_600 + 1));
        next.cycle().await;
        next.poller.poll_once().await.unwrap();
        let objects: Vec<_> = store.list(None).try_collect().await.unwrap();
        let of_live: usize = objects.iter().filter(|object| next.live().iter().any(|id| object.location.as_ref().contains(&id.to_string()))).count();
        assert_eq!((objects.len(), of_live), (4, 4), "after {changes} changes: {objects:?}");
        assert_eq!(next.visible(&*store).await, expected);
        if !failing.has_failed() {
            break;
        }
        crashes += 1;
    }
    // Output: data, meta. Four inputs: two changes to mark, two to delete.
    assert_eq!(crashes, 2 + 4 * 2 + 4 * 2);
}

#[tokio::test]
async fn a_crash_before_any_change_keeps_every_span_once() {
    check_crashes(LastChange::Lost).await;
}

#[tokio::test]
async fn a_crash_after_any_change_keeps_every_span_once() {
    check_crashes(LastChange::Unanswered).await;
}

/// The store comes back while the process lives: it must find out whether its meta was written before it merges again.
#[tokio::test]
async fn an_unanswered_meta_is_looked_for_before_the_next_merge() {
    for (last, merges) in [(LastChange::Unanswered, 1), (LastChange::Lost, 2)] {
        let store: Arc<InMemory> = Arc::new(InMemory::new());
        let clock = Arc::new(TestClock::new(now()));
        five_blocks(&*store, now()).await;
        let failing = Arc::new(FailingStore::new(store.clone(), 1, last));
        let mut process = Process::start(failing.clone(), clock.clone()).await;
        assert_eq!(process.cycle().await, CycleReport { failed: 1, ..Default::default() });
        clock.advance(Duration::from_secs(600));
        process.cycle().await;
        assert_eq!(process.merger.calls.load(Ordering::SeqCst), 1, "the store is away, so no merge");
        failing.repair(i64::MAX);
        process.cycle().await;
        assert_eq!(process.merger.calls.load(Ordering::SeqCst), merges);
        assert_eq!((process.live().len(), process.visible(&*store).await), (2, (0..50).collect()));
        assert_eq!(process.scheduler.metrics().errors(), 1);
    }
}

/// A block of a chain of merges must not come back when only its successors were marked.
#[tokio::test]
async fn a_chain_of_merges_cut_short_shows_only_its_end() {
    let store = Arc::new(InMemory::new());
    let start = now();
    let seconds = start / SECOND;
    let replacing = |number: u128, level: u32, replaced: &[u128]| {
        let mut meta = block(number, seconds - 60, seconds);
        (meta.compaction_level, meta.replaces) = (level, replaced.iter().map(|&number| id(number)).collect());
        meta
    };
    write_block(&*store, replacing(1, 0, &[]), &[1]).await;
    write_block(&*store, replacing(2, 0, &[]), &[2]).await;
    let middle = write_block(&*store, replacing(3, 1, &[1, 2]), &[1, 2]).await;
    write_block(&*store, replacing(4, 2, &[3]), &[1, 2]).await;
    mark_compacted(&*store, &middle).await.unwrap();

    // Blocks 1 and 2 cannot be marked; then the middle must not be deleted, however late it is.
    let clock = Arc::new(TestClock::new(start + 2 * 3_600 * SECOND));
    let failing = Arc::new(FailingStore::new(store.clone(), 0, LastChange::Lost));
    let mut process = Process::start(failing.clone(), clock.clone()).await;
    process.cycle().await;
    let mut process = Process::start(store.clone(), clock.clone()).await;
    assert_eq!((process.live(), process.visible(&*store).await), (vec![id(4)], vec![1, 2]));
    assert_eq!(process.catalog.snapshot(&tenant()).blocklist.superseded().len(), 2);

    process.cycle().await;
    clock.advance(Duration::from_secs(3_601));
    process.cycle().await;
    process.poller.poll_once().await.unwrap();
    assert_eq!((process.live(), process.visible(&*store).await), (vec![id(4)], vec![1, 2]));
    assert_eq!(store.list(None).try_collect::<Vec<_>>().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_damaged_block_does_not_stop_the_others() {
    let store = Arc::new(InMemory::new());
    let clock = Arc::new(TestClock::new(now()));
    five_blocks(&*store, now()).await;
    for number in 6..=8 {
        let seconds = now() / SECOND;
        write_block(&*store, block(number, seconds - 60, seconds), &[100 + number as u32]).await;
    }
    let mut process = Process::start(store.clone(), clock.clone()).await;
    process.merger.damaged.lock().insert(id(1));
    let report = process.cycle().await;
    assert_eq!((report.merged, report.failed), (1, 1), "the four with the damaged one fail, the other four are merged");
    assert_eq!(process.cycle().await, CycleReport::default(), "they wait");
    clock.advance(Duration::from_secs(61));
    process.cycle().await;
    process.cycle().await;
    assert_eq!(process.merger.calls.load(Ordering::SeqCst), 3, "once more after the waiting time");
    clock.advance(Duration::from_secs(61));
    process.cycle().await;
    assert_eq!(process.merger.calls.load(Ordering::SeqCst), 3, "the waiting time doubles");

    process.merger.damaged.lock().clear();
    clock.advance(Duration::from_secs(61));
    process.cycle().await;
    assert_eq!(process.visible(&*store).await, (0..50).chain(106..109).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_stop_drops_the_merge_under_way() {
    let store = Arc::new(InMemory::new());
    five_blocks(&*store, now()).await;
    let process = Process::new(store.clone(), Arc::new(SystemClock), true);
    process.poller.poll_once().await.unwrap();
    let Process { scheduler, merger, stop, .. } = process;
    let task = tokio::spawn(scheduler.run(stop.subscribe()));
    while merger.calls.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    stop.send(true).unwrap();
    tokio::time::timeout(Duration::from_secs(10), task).await.expect("it stops").unwrap();
    assert_eq!(Arc::strong_count(&merger), 1, "nothing runs on");
}

#[test]
fn impossible_outputs_are_refused() {
    let inputs = [Arc::new(block(1, 0, 10)), Arc::new(block(2, 0, 10))];
    static NEXT: AtomicU32 = AtomicU32::new(10);
    let check = |change: fn(&mut BlockMeta), good: bool| {
        let mut output = block(u128::from(NEXT.fetch_add(1, Ordering::SeqCst)), 0, 10);
        change(&mut output);
        let result = complete_meta(&tenant(), output, &inputs);
        assert_eq!(result.as_ref().err().map(Error::kind), (!good).then_some(ErrorKind::Internal), "{result:?}");
    };
    check(|output| output.total_spans = 6, true);
    check(|output| output.total_spans = 7, false);
    check(|output| output.total_spans = 0, false);
    check(|output| output.tenant = TenantId::single(), false);
}

#[test]
fn an_output_inherits_from_its_inputs() {
    let (mut first, mut second) = (block(1, 0, 10), block(2, 0, 20));
    (first.compaction_level, first.replication_factor, first.created_unix_nano) = (2, 1, 7);
    let range = |first, last| WalRange { ingester: "a".into(), first, last };
    (first.wal, second.wal) = (vec![range(1, 2)], vec![range(3, 4)]);
    second.created_unix_nano = 9;
    let output = complete_meta(&tenant(), block(3, 0, 20), &[Arc::new(first), Arc::new(second)]).unwrap();
    assert_eq!((output.compaction_level, output.replication_factor, output.created_unix_nano), (3, 1, 9));
    assert_eq!((output.replaces, output.wal), (vec![id(1), id(2)], vec![range(1, 4)]));
}
