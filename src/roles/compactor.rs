//! The compactor: merges blocks and lets old ones go.

use std::sync::Arc;

use skein_engine::{
    compact::{CompactionMetrics, Merger, Scheduler},
    error::Result,
};

use super::{Shared, Task, storage::Storage};

/// Starts the loop, on the threads for queries.
pub fn spawn(shared: &Shared, storage: &Storage, merger: Arc<dyn Merger>) -> Result<Task> {
    let scheduler = Scheduler::new(
        storage.store.clone(),
        storage.catalog.clone(),
        storage.poller.clone(),
        merger,
        shared.clock.clone(),
        shared.settings.compactor.compaction.clone(),
        CompactionMetrics::new(&shared.registry)?,
    );
    let scheduler = scheduler.with_tenants(shared.overrides.clone());
    Ok(Task::spawn_watching("compaction", &shared.query, |stop| async move {
        scheduler.run(stop).await;
        Ok(())
    }))
}
