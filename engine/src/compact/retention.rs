//! Retention: blocks leave the live ones at a certain age, and their objects leave the store a while later.
//!
//! Age counts from when a block's spans were first written to a block, not from when they ended: old traces sent today are kept as long
//! as new ones, and a span from the future does not keep its block for ever.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt};
use object_store::ObjectStore;

use super::{CompactionMetrics, CompactionSettings};
use crate::{
    catalog::{
        BlockMeta, Blocklist, Catalog,
        meta::{delete_block, delete_unfinished, mark_compacted},
    },
    clock::{Stopwatch, nanos},
    error::Result,
    spans::BlockId,
    tenant::TenantId,
};

/// Age of its newest object at which a folder without a meta is taken for the leavings of a writer that died. No block takes as long to
/// write.
const UNFINISHED_AFTER: Duration = Duration::from_secs(24 * 3_600);

/// The live blocks that are past `block_retention`.
pub fn expired(list: &Blocklist, now_unix_nano: u64, settings: &CompactionSettings) -> Vec<Arc<BlockMeta>> {
    if settings.block_retention.is_zero() {
        return Vec::new();
    }
    let is_expired = |block: &&Arc<BlockMeta>| is_past(block.created_unix_nano, settings.block_retention, now_unix_nano);
    list.live().iter().filter(is_expired).cloned().collect()
}

/// The compacted blocks whose objects can go: marked for `compacted_block_retention`, and nothing that they replaced can come back.
pub fn deletable(list: &Blocklist, now_unix_nano: u64, settings: &CompactionSettings) -> Vec<BlockId> {
    let unmarked: HashSet<BlockId> = list.superseded().iter().map(|block| block.id).collect();
    list.compacted()
        .iter()
        .filter(|block| is_past(block.compacted_unix_nano, settings.compacted_block_retention, now_unix_nano))
        .filter(|block| !block.meta.replaces.iter().any(|replaced| unmarked.contains(replaced)))
        .map(|block| block.meta.id)
        .collect()
}

/// The folders without a meta that no writer is at work on.
pub fn abandoned(list: &Blocklist, now_unix_nano: u64) -> Vec<BlockId> {
    list.unfinished().iter().filter(|block| is_past(block.modified_unix_nano, UNFINISHED_AFTER, now_unix_nano)).map(|block| block.id).collect()
}

fn is_past(since_unix_nano: u64, age: Duration, now_unix_nano: u64) -> bool {
    since_unix_nano.saturating_add(nanos(age)) < now_unix_nano
}

/// What one tenant's retention did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct RetentionReport {
    /// Blocks marked because of their age.
    pub marked: usize,
    /// Blocks and abandoned folders deleted.
    pub deleted: usize,
    /// Blocks with which neither worked; the next pass tries again.
    pub failed: usize,
}

enum Step {
    Mark(Arc<BlockMeta>),
    Delete(BlockId),
    DeleteUnfinished(BlockId),
}

enum Done {
    Marked,
    Deleted,
    Nothing,
}

/// Changes the store first, then the catalog.
async fn take_step(store: &dyn ObjectStore, catalog: &Catalog, tenant: &TenantId, now_unix_nano: u64, step: Step) -> Result<Done> {
    match step {
        Step::Mark(block) => {
            mark_compacted(store, &block).await?;
            catalog.mark_compacted(tenant, block.id, now_unix_nano);
            Ok(Done::Marked)
        }
        Step::Delete(block) => {
            delete_block(store, tenant, block).await?;
            catalog.remove(tenant, block);
            Ok(Done::Deleted)
        }
        Step::DeleteUnfinished(block) => {
            if !delete_unfinished(store, tenant, block).await? {
                return Ok(Done::Nothing);
            }
            catalog.remove(tenant, block);
            Ok(Done::Deleted)
        }
    }
}

/// Marks and deletes what is due for one tenant. Two requests per marked block; a listing and a request per object for each deleted one.
pub async fn apply(
    store: &dyn ObjectStore,
    catalog: &Catalog,
    tenant: &TenantId,
    now_unix_nano: u64,
    settings: &CompactionSettings,
    metrics: &CompactionMetrics,
) -> RetentionReport {
    let snapshot = catalog.snapshot(tenant);
    let list = &snapshot.blocklist;
    let steps: Vec<Step> = expired(list, now_unix_nano, settings)
        .into_iter()
        .map(Step::Mark)
        .chain(deletable(list, now_unix_nano, settings).into_iter().map(Step::Delete))
        .chain(abandoned(list, now_unix_nano).into_iter().map(Step::DeleteUnfinished))
        .collect();
    let mut report = RetentionReport::default();
    if steps.is_empty() {
        return report;
    }

    let watch = Stopwatch::start();
    let mut results = futures::stream::iter(steps)
        .map(|step| take_step(store, catalog, tenant, now_unix_nano, step).boxed())
        .buffer_unordered(settings.retention_concurrency.max(1));
    while let Some(result) = results.next().await {
        match result {
            Ok(Done::Marked) => {
                metrics.marked.inc();
                report.marked += 1;
            }
            Ok(Done::Deleted) => {
                metrics.deleted.inc();
                report.deleted += 1;
            }
            Ok(Done::Nothing) => {}
            Err(error) => {
                metrics.retention_errors.inc();
                report.failed += 1;
                tracing::warn!(%tenant, %error, "retention could not mark or delete a block");
            }
        }
    }
    metrics.retention_seconds.observe(watch.seconds());
    report
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use object_store::{ObjectStoreExt, memory::InMemory};

    use super::*;
    use crate::{
        catalog::{
            CatalogMetrics, CompactedBlock, UnfinishedBlock,
            meta::{
                DATA_NAME, META_NAME, object_path,
                tests::{SECOND, block, id, tenant},
                write_meta,
            },
            poll::Poller,
        },
        store::StorageSettings,
    };

    const DAY: u64 = 24 * 3_600;
    const NOW: u64 = 19_000 * DAY;

    fn created(number: u128, days_ago: u64) -> BlockMeta {
        let mut meta = block(number, 0, 10);
        meta.created_unix_nano = (NOW - days_ago * DAY) * SECOND;
        meta
    }

    fn list(live: Vec<BlockMeta>) -> Blocklist {
        Blocklist::new(live.into_iter().map(Arc::new).collect(), vec![], vec![], vec![])
    }

    #[test]
    fn age_counts_from_the_writing() {
        let settings = CompactionSettings::default();
        let mut from_the_future = created(3, 20);
        from_the_future.max_end_unix_nano = u64::MAX;
        let list = list(vec![created(1, 13), created(2, 15), from_the_future]);
        let mut ids: Vec<_> = expired(&list, NOW * SECOND, &settings).iter().map(|block| block.id).collect();
        ids.sort();
        assert_eq!(ids, [id(2), id(3)], "block 1 ended in 1970 but was written 13 days ago");
        assert!(expired(&list, NOW * SECOND, &CompactionSettings { block_retention: Duration::ZERO, ..settings }).is_empty());
    }

    #[test]
    fn a_block_outlives_what_it_replaced() {
        let mut successor = created(9, 20);
        successor.replaces = vec![id(1)];
        let compacted =
            |meta: BlockMeta, hours_ago: u64| CompactedBlock { meta: Arc::new(meta), compacted_unix_nano: (NOW - hours_ago * 3_600) * SECOND };
        let blocks = vec![compacted(successor, 5), compacted(created(8, 20), 2), compacted(created(7, 20), 0)];
        let check = |live: Vec<Arc<BlockMeta>>, expected: &[u128]| {
            let list = Blocklist::new(live, vec![], blocks.clone(), vec![]);
            let expected: Vec<_> = expected.iter().map(|&number| id(number)).collect();
            assert_eq!(deletable(&list, NOW * SECOND, &CompactionSettings::default()), expected);
        };
        check(vec![], &[8, 9]);
        check(vec![Arc::new(created(1, 20))], &[8]);
    }

    #[test]
    fn only_old_leavings_are_abandoned() {
        let unfinished = |number, hours_ago: u64| UnfinishedBlock { id: id(number), modified_unix_nano: (NOW - hours_ago * 3_600) * SECOND };
        let list = Blocklist::new(vec![], vec![], vec![], vec![unfinished(1, 23), unfinished(2, 25)]);
        assert_eq!(abandoned(&list, NOW * SECOND), [id(2)]);
    }

    #[tokio::test]
    async fn blocks_are_marked_then_deleted_and_leavings_removed() {
        let store = Arc::new(InMemory::new());
        let registry = prometheus::Registry::new();
        let (metrics, settings) = (CompactionMetrics::new(&registry).unwrap(), CompactionSettings::default());
        let catalog = Arc::new(Catalog::new(CatalogMetrics::new(&registry).unwrap()));
        for (number, days_ago) in [(1, 1), (2, 15)] {
            store.put(&object_path(&tenant(), id(number), DATA_NAME), "x".into()).await.unwrap();
            write_meta(&*store, &created(number, days_ago)).await.unwrap();
        }
        for number in [3, 4] {
            store.put(&object_path(&tenant(), id(number), DATA_NAME), "x".into()).await.unwrap();
        }
        let poller = Poller::new(store.clone(), catalog.clone(), &StorageSettings::default());
        poller.poll_once().await.unwrap();
        // Block 4 is finished between the poll and the pass.
        store.put(&object_path(&tenant(), id(4), META_NAME), "{}".into()).await.unwrap();

        // The store dates objects itself, so that the unfinished blocks are 25 hours old only from a later time on.
        let now = store.head(&object_path(&tenant(), id(3), DATA_NAME)).await.unwrap().last_modified.timestamp_nanos_opt().unwrap() as u64;
        let pass = async |now: u64| apply(&*store, &catalog, &tenant(), now, &settings, &metrics).await;
        assert_eq!(pass(NOW * SECOND).await, RetentionReport { marked: 1, deleted: 0, failed: 0 });
        assert_eq!(pass(NOW * SECOND).await, RetentionReport::default());
        assert_eq!(pass((NOW + 3_601) * SECOND).await, RetentionReport { marked: 0, deleted: 1, failed: 0 });
        let keep = CompactionSettings { block_retention: Duration::ZERO, ..settings.clone() };
        let late = apply(&*store, &catalog, &tenant(), now + 25 * 3_600 * SECOND, &keep, &metrics).await;
        assert_eq!(late, RetentionReport { marked: 0, deleted: 1, failed: 0 });
        let left: Vec<_> = store.list(None).map(|object| object.unwrap().location.to_string()).collect().await;
        assert_eq!(left.len(), 4, "data and meta of blocks 1 and 4: {left:?}");
        assert_eq!((metrics.marked.get(), metrics.deleted.get()), (1, 2));
    }
}
