//! The object store, the list of blocks, and the loop that keeps it up to date.

use std::sync::Arc;

use object_store::ObjectStore;
use skein_engine::{
    catalog::{Catalog, CatalogMetrics, poll::Poller},
    error::Result,
    store::{self, StoreMetrics},
};

use super::{Shared, Task};

/// What the roles share of the storage.
pub struct Storage {
    /// Where blocks live.
    pub store: Arc<dyn ObjectStore>,
    /// Which there are.
    pub catalog: Arc<Catalog>,
    /// Finds those of others.
    pub poller: Arc<Poller>,
}

/// Opens the store and lists it once. Errors: `Unavailable` when the store does not answer: a process that knows no blocks would
/// answer wrongly.
pub async fn open(shared: &Shared) -> Result<Storage> {
    let settings = &shared.settings.storage.trace.store;
    let store = store::open(settings, StoreMetrics::new(&shared.registry)?)?;
    let catalog = Arc::new(Catalog::new(CatalogMetrics::new(&shared.registry)?));
    let poller = Arc::new(Poller::new(store.clone(), catalog.clone(), settings));
    let report = poller.poll_once().await?;
    tracing::info!(tenants = report.tenants, unreadable_blocks = report.unreadable_blocks, "storage opened");
    Ok(Storage { store, catalog, poller })
}

impl Storage {
    /// Starts to poll.
    pub fn spawn_polling(&self) -> Task {
        let poller = self.poller.clone();
        Task::spawn_watching("polling", &tokio::runtime::Handle::current(), |stop| async move {
            poller.run(stop).await;
            Ok(())
        })
    }
}
