//! Poll: reads from the store which blocks there are, and brings the catalog up to date.
//!
//! A tenant costs one listing of its folder and one request for each meta that is not known yet. What cannot be read is counted,
//! logged once and left out; a tenant that cannot be listed keeps the blocks it had.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::ObjectStore;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    BlockMeta, Blocklist, Catalog, CompactedBlock, PollSession, UnfinishedBlock,
    meta::{COMPACTED_META_NAME, META_NAME, read_compacted_meta, read_meta, tenant_path},
};
use crate::{
    clock::Stopwatch,
    error::{Error, ErrorKind, Result},
    spans::BlockId,
    store::StorageSettings,
    tenant::TenantId,
};

/// How often a tenant is listed again because blocks vanished between the listing and the reading of their metas.
const LISTINGS_MAX: usize = 3;

/// What a poll found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct PollReport {
    /// Tenants that were read.
    pub tenants: usize,
    /// Tenants that could not be listed; they keep the blocks they had.
    pub failed_tenants: Vec<TenantId>,
    /// Folders whose meta cannot be read.
    pub unreadable_blocks: usize,
}

/// Reads the store again and again.
#[derive(Debug)]
pub struct Poller {
    store: Arc<dyn ObjectStore>,
    catalog: Arc<Catalog>,
    interval: Duration,
    metas_at_once: usize,
    tenants_at_once: usize,
    /// Metas that could not be read, with the time they were written: not read again until that changes.
    unreadable: Mutex<HashMap<TenantId, HashMap<BlockId, u64>>>,
}

impl Poller {
    /// A poller with the period and bounds of `settings`.
    pub fn new(store: Arc<dyn ObjectStore>, catalog: Arc<Catalog>, settings: &StorageSettings) -> Self {
        Self {
            store,
            catalog,
            interval: settings.poll_interval(),
            metas_at_once: settings.poll_concurrency(),
            tenants_at_once: settings.poll_tenant_concurrency(),
            unreadable: Mutex::default(),
        }
    }

    /// Polls once in each period until `stop` is true or its sender is gone. The first poll comes after the first period: at the start
    /// [`Self::poll_once`] must have succeeded before a query is answered.
    pub async fn run(&self, mut stop: watch::Receiver<bool>) {
        while tokio::time::timeout(self.interval, stop.wait_for(|stop| *stop)).await.is_err() {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                result = self.poll_once() => match result {
                    Ok(report) if report.failed_tenants.is_empty() => {}
                    Ok(report) => tracing::warn!(tenants = ?report.failed_tenants, "tenants could not be polled and keep the blocks they had"),
                    Err(error) => tracing::warn!(%error, "blocklist poll failed"),
                },
            }
        }
    }

    /// Reads all tenants. Errors: when the tenants cannot be listed; then nothing changes.
    pub async fn poll_once(&self) -> Result<PollReport> {
        let watch = Stopwatch::start();
        let session = self.catalog.begin_poll().await;
        let listed = self.store.list_with_delimiter(None).await.map_err(|e| {
            self.catalog.metrics.add_poll_error(None);
            Error::from(e).context("listing tenants")
        })?;
        // Folders that are no tenants hold no blocks either, so that they need not be told apart.
        let mut tenants: Vec<_> = listed.common_prefixes.iter().filter_map(|path| TenantId::parse(path.filename()?).ok()).collect();
        tenants.extend(self.catalog.tenants());
        tenants.sort();
        tenants.dedup();

        let session = &session;
        let results: Vec<_> = futures::stream::iter(tenants)
            .map(|tenant| async move { (self.read_tenant(session, &tenant).await, tenant) }.boxed())
            .buffer_unordered(self.tenants_at_once)
            .collect()
            .await;
        let mut report = PollReport::default();
        for (result, tenant) in results {
            match result {
                Ok(unreadable) => {
                    report.tenants += 1;
                    report.unreadable_blocks += unreadable;
                }
                Err(error) => {
                    tracing::warn!(%tenant, %error, "cannot poll the tenant's blocks");
                    report.failed_tenants.push(tenant);
                }
            }
        }
        report.failed_tenants.sort();
        self.catalog.metrics.observe_poll(watch.seconds());
        Ok(report)
    }

    /// Reads one tenant. Errors: when it cannot be listed or a meta cannot be fetched; then nothing changes.
    pub async fn poll_tenant(&self, tenant: &TenantId) -> Result<()> {
        let session = self.catalog.begin_poll().await;
        self.read_tenant(&session, tenant).await.map(|_| ())
    }

    /// Returns the number of unreadable blocks.
    async fn read_tenant(&self, session: &PollSession<'_>, tenant: &TenantId) -> Result<usize> {
        let mut listings = 0;
        let found = loop {
            listings += 1;
            match self.list_tenant(tenant).await {
                Err(error) if error.kind() == ErrorKind::NotFound && listings < LISTINGS_MAX => {}
                result => break result,
            }
        };
        match found {
            Ok((blocklist, unreadable)) => {
                session.apply(tenant, blocklist);
                Ok(unreadable)
            }
            Err(error) => {
                self.catalog.metrics.add_poll_error(Some(tenant));
                Err(error)
            }
        }
    }

    /// Lists a tenant's folder and reads what is new. Errors: `NotFound` when a block vanished after it was listed.
    async fn list_tenant(&self, tenant: &TenantId) -> Result<(Blocklist, usize)> {
        let folders = list_folders(&*self.store, tenant).await?;
        let before = self.catalog.snapshot(tenant);
        let known: HashMap<BlockId, &Arc<BlockMeta>> = before.blocklist.known().map(|block| (block.id, block)).collect();
        let known_unreadable = self.unreadable.lock().get(tenant).cloned().unwrap_or_default();

        let is_new = |id: &BlockId, folder: &Folder| {
            folder.has_meta() && !known.contains_key(id) && known_unreadable.get(id) != Some(&folder.meta_unix_nano())
        };
        let new: Vec<(BlockId, bool)> =
            folders.iter().filter(|(id, folder)| is_new(id, folder)).map(|(&id, folder)| (id, folder.live_unix_nano.is_some())).collect();
        let read: HashMap<BlockId, Result<Arc<BlockMeta>>> = futures::stream::iter(new)
            .map(|(id, is_live)| {
                async move {
                    let meta = match is_live {
                        true => read_meta(&*self.store, tenant, id).await,
                        false => read_compacted_meta(&*self.store, tenant, id).await,
                    };
                    match meta {
                        Err(error) if error.kind() != ErrorKind::Data => Err(error),
                        meta_or_damage => Ok((id, meta_or_damage.map(Arc::new))),
                    }
                }
                .boxed()
            })
            .buffer_unordered(self.metas_at_once)
            .try_collect()
            .await?;

        let (mut live, mut superseded, mut compacted, mut unfinished) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut unreadable = HashMap::new();
        for (id, folder) in &folders {
            if !folder.has_meta() {
                unfinished.push(UnfinishedBlock { id: *id, modified_unix_nano: folder.modified_unix_nano });
                continue;
            }
            let meta = match (known.get(id), read.get(id)) {
                (Some(&meta), _) | (None, Some(Ok(meta))) => meta.clone(),
                (None, failed) => {
                    if let Some(Err(error)) = failed {
                        tracing::error!(%tenant, block = %id, %error, "a block is left out because its meta cannot be read");
                        self.catalog.metrics.add_poll_error(Some(tenant));
                    }
                    unreadable.insert(*id, folder.meta_unix_nano());
                    continue;
                }
            };
            match (folder.live_unix_nano, folder.compacted_unix_nano) {
                (_, None) => live.push(meta),
                (Some(_), Some(_)) => superseded.push(meta),
                (None, Some(listed_unix_nano)) => {
                    let known = before.blocklist.compacted().iter().find(|block| block.meta.id == *id);
                    let compacted_unix_nano = known.map_or(listed_unix_nano, |block| block.compacted_unix_nano);
                    compacted.push(CompactedBlock { meta, compacted_unix_nano });
                }
            }
        }
        let unreadable_blocks = unreadable.len();
        self.catalog.metrics.set_unreadable(tenant, unreadable_blocks);
        let mut known_unreadable = self.unreadable.lock();
        match unreadable_blocks {
            0 => known_unreadable.remove(tenant),
            _ => known_unreadable.insert(tenant.clone(), unreadable),
        };
        Ok((Blocklist::new(live, superseded, compacted, unfinished), unreadable_blocks))
    }
}

/// What the listing shows of a block's folder.
#[derive(Debug, Default)]
struct Folder {
    /// When `meta.json` was written, if it is there.
    live_unix_nano: Option<u64>,
    /// When `meta.compacted.json` was written, if it is there.
    compacted_unix_nano: Option<u64>,
    /// When the newest object was written.
    modified_unix_nano: u64,
}

impl Folder {
    fn has_meta(&self) -> bool {
        self.live_unix_nano.is_some() || self.compacted_unix_nano.is_some()
    }

    /// When the meta that is read was written.
    fn meta_unix_nano(&self) -> u64 {
        self.live_unix_nano.or(self.compacted_unix_nano).unwrap_or_default()
    }
}

/// Lists the block folders of a tenant; everything that is not `<blockID>/<name>` is passed over.
async fn list_folders(store: &dyn ObjectStore, tenant: &TenantId) -> Result<BTreeMap<BlockId, Folder>> {
    let prefix = tenant_path(tenant);
    let mut folders: BTreeMap<BlockId, Folder> = BTreeMap::new();
    let mut objects = store.list(Some(&prefix));
    while let Some(object) = objects.try_next().await.map_err(|e| Error::from(e).context(format!("listing blocks of tenant {tenant}")))? {
        let Some(mut parts) = object.location.prefix_match(&prefix) else { continue };
        let (Some(folder), Some(name), None) = (parts.next(), parts.next(), parts.next()) else { continue };
        let Some(id) = BlockId::parse(folder.as_ref()).ok().filter(|id| id.to_string() == folder.as_ref()) else { continue };
        let written = object.last_modified.timestamp_nanos_opt().and_then(|nanos| u64::try_from(nanos).ok()).unwrap_or_default();
        let folder = folders.entry(id).or_default();
        folder.modified_unix_nano = folder.modified_unix_nano.max(written);
        match name.as_ref() {
            META_NAME => folder.live_unix_nano = Some(written),
            COMPACTED_META_NAME => folder.compacted_unix_nano = Some(written),
            _ => {}
        }
    }
    Ok(folders)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use object_store::{ObjectStoreExt, memory::InMemory, path::Path};

    use super::*;
    use crate::{
        catalog::{
            CatalogMetrics,
            meta::{
                DATA_NAME, mark_compacted, object_path,
                tests::{block, id, tenant},
                write_meta,
            },
        },
        store::{
            DurableLocal, MeteredStore, StoreMetrics,
            faults::{FailingStore, LastChange},
        },
    };

    fn poller(store: Arc<dyn ObjectStore>) -> Poller {
        let catalog = Catalog::new(CatalogMetrics::new(&prometheus::Registry::new()).unwrap());
        Poller::new(store, Arc::new(catalog), &StorageSettings::default())
    }

    fn live(poller: &Poller) -> Vec<BlockId> {
        let mut ids: Vec<_> = poller.catalog.snapshot(&tenant()).blocklist.live().iter().map(|block| block.id).collect();
        ids.sort();
        ids
    }

    async fn check_all_states(store: Arc<dyn ObjectStore>) {
        write_meta(&*store, &block(1, 0, 10)).await.unwrap();
        // Unfinished: data, no meta.
        store.put(&object_path(&tenant(), id(2), DATA_NAME), "x".into()).await.unwrap();
        write_meta(&*store, &block(3, 0, 10)).await.unwrap();
        mark_compacted(&*store, &block(3, 0, 10)).await.unwrap();
        // Marking was cut short: both metas.
        write_meta(&*store, &block(4, 0, 10)).await.unwrap();
        mark_compacted(&*store, &block(4, 0, 10)).await.unwrap();
        write_meta(&*store, &block(4, 0, 10)).await.unwrap();
        // Replaced, not marked at all.
        write_meta(&*store, &block(5, 0, 10)).await.unwrap();
        let mut merged = block(6, 0, 10);
        merged.replaces = vec![id(5)];
        write_meta(&*store, &merged).await.unwrap();
        // Damaged.
        store.put(&object_path(&tenant(), id(7), META_NAME), "{".into()).await.unwrap();
        // Not blocks.
        for path in ["tempo_cluster_seed.json", "acme/index.json.gz", "acme/not-a-block/meta.json", "overrides/acme/overrides.json"] {
            store.put(&Path::from(path), "{}".into()).await.unwrap();
        }

        let poller = poller(store);
        let report = poller.poll_once().await.unwrap();
        assert_eq!(report, PollReport { tenants: 2, failed_tenants: vec![], unreadable_blocks: 1 });
        assert_eq!(live(&poller), [id(1), id(6)]);
        let list = &poller.catalog.snapshot(&tenant()).blocklist;
        assert_eq!(list.unfinished().iter().map(|block| block.id).collect::<Vec<_>>(), [id(2)]);
        assert_eq!(list.compacted().iter().map(|block| block.meta.id).collect::<Vec<_>>(), [id(3)]);
        assert_eq!(list.superseded().iter().map(|block| block.id).collect::<Vec<_>>(), [id(4), id(5)]);
        assert_eq!(poller.catalog.tenants(), [tenant()]);
        assert_eq!(poller.catalog.metrics.poll_errors(&tenant()), 1);
    }

    #[tokio::test]
    async fn every_state_of_a_folder_is_recognised() {
        check_all_states(Arc::new(InMemory::new())).await;
        let folder = tempfile::tempdir().unwrap();
        check_all_states(Arc::new(DurableLocal::open(folder.path()).unwrap())).await;
    }

    #[tokio::test]
    async fn a_second_poll_reads_only_new_metas() {
        let metrics = StoreMetrics::new(&prometheus::Registry::new()).unwrap();
        let store: Arc<dyn ObjectStore> = Arc::new(MeteredStore::remote(Arc::new(InMemory::new()), metrics.clone()));
        for number in 1..=3 {
            write_meta(&*store, &block(number, 0, 10)).await.unwrap();
        }
        store.put(&object_path(&tenant(), id(9), META_NAME), "{".into()).await.unwrap();
        let poller = poller(store.clone());
        poller.poll_once().await.unwrap();
        let version = poller.catalog.snapshot(&tenant()).version;
        assert_eq!((metrics.requests("GET"), metrics.requests("LIST")), (4, 2));

        poller.poll_once().await.unwrap();
        assert_eq!((metrics.requests("GET"), metrics.requests("LIST")), (4, 4));
        assert_eq!(poller.catalog.snapshot(&tenant()).version, version, "nothing new, so the same list");
        assert_eq!(poller.catalog.metrics.poll_errors(&tenant()), 1, "a damaged meta is reported once");

        write_meta(&*store, &block(4, 0, 10)).await.unwrap();
        mark_compacted(&*store, &block(1, 0, 10)).await.unwrap();
        store.delete(&object_path(&tenant(), id(2), META_NAME)).await.unwrap();
        poller.poll_once().await.unwrap();
        assert_eq!((metrics.requests("GET"), live(&poller)), (5, vec![id(3), id(4)]));
    }

    #[tokio::test]
    async fn a_failed_poll_changes_nothing() {
        let store = Arc::new(FailingStore::new(Arc::new(InMemory::new()), i64::MAX, LastChange::Lost));
        write_meta(&*store, &block(1, 0, 10)).await.unwrap();
        let poller = poller(store.clone());
        poller.poll_once().await.unwrap();
        store.repair(-1);
        poller.poll_once().await.unwrap_err();
        poller.poll_tenant(&tenant()).await.unwrap_err();
        assert_eq!(live(&poller), [id(1)]);
        assert_eq!(poller.catalog.metrics.poll_errors(&tenant()), 1);
    }

    #[tokio::test]
    async fn a_tenant_whose_blocks_are_gone_is_forgotten() {
        let store = Arc::new(InMemory::new());
        write_meta(&*store, &block(1, 0, 10)).await.unwrap();
        let poller = poller(store.clone());
        poller.poll_once().await.unwrap();
        store.delete(&object_path(&tenant(), id(1), META_NAME)).await.unwrap();
        poller.poll_once().await.unwrap();
        assert!(poller.catalog.tenants().is_empty());
    }

    #[tokio::test]
    async fn the_loop_polls_in_each_period_and_stops() {
        let store = Arc::new(InMemory::new());
        let mut poller = poller(store.clone());
        poller.interval = Duration::from_millis(1);
        let poller = Arc::new(poller);
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn({
            let poller = poller.clone();
            async move { poller.run(stopped).await }
        });
        write_meta(&*store, &block(1, 0, 10)).await.unwrap();
        let seen = async {
            while live(&poller).is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), seen).await.expect("the block is seen");
        stop.send(true).unwrap();
        tokio::time::timeout(Duration::from_secs(10), task).await.expect("it stops").unwrap();
    }
}
