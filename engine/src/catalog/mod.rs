//! Catalog: which blocks every tenant has.
//!
//! | module | |
//! |---|---|
//! | [`meta`] | `meta.json`, and the states of a block's folder |
//! | [`blocklist`] | the blocks of one tenant |
//! | [`poll`] | reads the store and brings the catalog up to date |
//! | `metrics` | what it counts |
//!
//! Readers take an immutable [`TenantBlocks`] and keep it as long as they like: the objects of a block that leaves the list stay in the
//! store for `compacted_block_retention`. Writers change the list right after they changed the store. A poll reads the store without
//! stopping them, so changes made meanwhile are logged and put on top of what it found.

pub mod blocklist;
pub mod meta;
mod metrics;
pub mod poll;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

pub use blocklist::{Blocklist, Change, CompactedBlock, UnfinishedBlock};
pub use meta::{BlockMeta, WalRange};
pub use metrics::CatalogMetrics;
use parking_lot::RwLock;

use crate::{spans::BlockId, tenant::TenantId};

/// The blocks of one tenant at one moment.
#[derive(Debug, Default)]
pub struct TenantBlocks {
    /// Grows with every change of any tenant's blocks; the same version is the same list. 0 is the empty list of an unknown tenant.
    pub version: u64,
    /// The blocks.
    pub blocklist: Blocklist,
}

/// The blocks of all tenants.
#[derive(Debug)]
pub struct Catalog {
    state: RwLock<State>,
    versions: AtomicU64,
    /// One poll at a time. Taken before `state`.
    polling: tokio::sync::Mutex<()>,
    metrics: CatalogMetrics,
}

#[derive(Debug, Default)]
struct State {
    tenants: HashMap<TenantId, Arc<TenantBlocks>>,
    /// Changes since the poll under way began; None between polls.
    log: Option<Vec<(TenantId, Change)>>,
}

impl Catalog {
    /// An empty catalog.
    pub fn new(metrics: CatalogMetrics) -> Self {
        Self { state: RwLock::default(), versions: AtomicU64::new(0), polling: tokio::sync::Mutex::default(), metrics }
    }

    /// The blocks of a tenant now; an empty list for a tenant without blocks.
    pub fn snapshot(&self, tenant: &TenantId) -> Arc<TenantBlocks> {
        self.state.read().tenants.get(tenant).cloned().unwrap_or_default()
    }

    /// The tenants that have blocks, sorted.
    pub fn tenants(&self) -> Vec<TenantId> {
        let mut tenants: Vec<_> = self.state.read().tenants.keys().cloned().collect();
        tenants.sort();
        tenants
    }

    /// Takes up a block whose `meta.json` has been written. The blocks that it replaces leave the live ones in the same moment.
    pub fn add_block(&self, meta: BlockMeta) {
        let tenant = meta.tenant.clone();
        self.change(&tenant, Change::Added(Arc::new(meta)));
    }

    /// Takes up that a block has been marked compacted in the store.
    pub fn mark_compacted(&self, tenant: &TenantId, block: BlockId, compacted_unix_nano: u64) {
        self.change(tenant, Change::Compacted(block, compacted_unix_nano));
    }

    /// Forgets a block whose objects have been deleted.
    pub fn remove(&self, tenant: &TenantId, block: BlockId) {
        self.change(tenant, Change::Removed(block));
    }

    fn change(&self, tenant: &TenantId, change: Change) {
        let mut state = self.state.write();
        let before = state.tenants.get(tenant).cloned().unwrap_or_default();
        self.replace(&mut state, tenant, &before, before.blocklist.with(&change));
        if let Some(log) = &mut state.log {
            log.push((tenant.clone(), change));
        }
    }

    /// Puts a list in place, unless it is the one that is there.
    fn replace(&self, state: &mut State, tenant: &TenantId, before: &TenantBlocks, blocklist: Blocklist) {
        if blocklist == before.blocklist {
            return;
        }
        self.metrics.set_blocks(tenant, &blocklist);
        if blocklist.is_empty() {
            state.tenants.remove(tenant);
        } else {
            let version = self.versions.fetch_add(1, Ordering::Relaxed) + 1;
            state.tenants.insert(tenant.clone(), Arc::new(TenantBlocks { version, blocklist }));
        }
    }

    /// Begins a poll: waits for the one under way, then logs changes until the session ends.
    async fn begin_poll(&self) -> PollSession<'_> {
        let turn = self.polling.lock().await;
        self.state.write().log = Some(Vec::new());
        PollSession { catalog: self, _turn: turn }
    }
}

/// The right to replace lists by what the store has. Everything that is read from the store must be read after it began.
struct PollSession<'a> {
    catalog: &'a Catalog,
    _turn: tokio::sync::MutexGuard<'a, ()>,
}

impl PollSession<'_> {
    /// Puts what the store has in place, with the changes made since the session began on top.
    fn apply(&self, tenant: &TenantId, found: Blocklist) {
        let mut state = self.catalog.state.write();
        let changes = state.log.iter().flatten().filter(|(changed, _)| changed == tenant);
        let list = changes.fold(found, |list, (_, change)| list.with(change));
        let before = state.tenants.get(tenant).cloned().unwrap_or_default();
        self.catalog.replace(&mut state, tenant, &before, list);
    }
}

impl Drop for PollSession<'_> {
    fn drop(&mut self) {
        self.catalog.state.write().log = None;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::catalog::meta::tests::{block, id, tenant};

    pub(crate) fn catalog() -> Catalog {
        Catalog::new(CatalogMetrics::new(&prometheus::Registry::new()).unwrap())
    }

    fn live(catalog: &Catalog) -> Vec<BlockId> {
        catalog.snapshot(&tenant()).blocklist.live().iter().map(|block| block.id).collect()
    }

    #[test]
    fn a_snapshot_does_not_change_under_its_reader() {
        let catalog = catalog();
        catalog.add_block(block(1, 0, 10));
        let before = catalog.snapshot(&tenant());
        let mut merged = block(2, 0, 10);
        merged.replaces = vec![id(1)];
        catalog.add_block(merged);
        let after = catalog.snapshot(&tenant());
        assert_eq!((before.blocklist.live()[0].id, after.blocklist.live()[0].id), (id(1), id(2)));
        assert!(after.version > before.version);
        catalog.mark_compacted(&tenant(), id(77), 5);
        assert_eq!(catalog.snapshot(&tenant()).version, after.version, "nothing changed");
    }

    #[test]
    fn a_tenant_without_blocks_is_forgotten() {
        let catalog = catalog();
        assert_eq!(catalog.snapshot(&tenant()).version, 0);
        catalog.add_block(block(1, 0, 10));
        assert_eq!(catalog.tenants(), [tenant()]);
        catalog.remove(&tenant(), id(1));
        assert!(catalog.tenants().is_empty());
    }

    #[tokio::test]
    async fn changes_during_a_poll_survive_it() {
        let catalog = catalog();
        catalog.add_block(block(1, 0, 10));
        catalog.add_block(block(2, 0, 10));
        let session = catalog.begin_poll().await;
        let found = catalog.snapshot(&tenant()).blocklist.clone();
        catalog.add_block(block(3, 0, 30));
        catalog.mark_compacted(&tenant(), id(1), 5);
        session.apply(&tenant(), found);
        drop(session);
        assert_eq!(live(&catalog), [id(3), id(2)]);

        let session = catalog.begin_poll().await;
        session.apply(&tenant(), Blocklist::default());
        drop(session);
        assert!(live(&catalog).is_empty(), "changes before a poll are not put on top of it");
    }
}
