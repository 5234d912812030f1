//! The loop that merges blocks and lets old ones go.
//!
//! One merge is these steps; a crash between any two leaves every span in exactly one live block:
//!
//! | step | after a crash here |
//! |---|---|
//! | 1. the [`Merger`] writes the output's objects | a folder without a meta; retention removes it a day later |
//! | 2. `meta.json` of the output, which names the inputs | the output is live, the inputs are superseded |
//! | 3. the catalog takes the output in and the inputs out, at once | the same |
//! | 4. each input: `meta.compacted.json`, then `meta.json` goes | the same; the next start marks the rest |
//!
//! When step 2 fails, nobody knows whether the meta was written. Then the tenant is left alone until a listing has shown it: a second
//! merge of the same inputs could make two live blocks of one span.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use object_store::ObjectStore;
use tokio::sync::watch;

use super::{CompactionMetrics, CompactionSettings, Job, TenantCompaction, TenantCompactions, retention, select};
use crate::{
    catalog::{
        BlockMeta, Catalog, WalRange,
        meta::{mark_compacted, write_meta},
        poll::Poller,
    },
    clock::{Clock, Stopwatch, nanos},
    error::{Error, ErrorKind, Result},
    spans::BlockId,
    tenant::TenantId,
};

/// Waiting time after the first failed merge of a block; doubles with each further one.
const BACKOFF_FIRST: Duration = Duration::from_secs(60);
const BACKOFF_MAX: Duration = Duration::from_secs(3_600);

/// Merges the spans of blocks.
#[async_trait]
pub trait Merger: Send + Sync + 'static {
    /// Writes a block with the spans of all `inputs`, each once: every object except `meta.json`, durable on return. Returns its meta,
    /// in which the scheduler sets `replaces`, `wal`, `compaction_level`, `created_unix_nano` and `replication_factor` itself.
    /// Dropping the future stops the work. What a failed or stopped merge wrote is removed by retention.
    async fn merge(&self, tenant: &TenantId, inputs: &[Arc<BlockMeta>]) -> Result<BlockMeta>;
}

/// What one pass over all tenants did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct CycleReport {
    /// Merges done.
    pub merged: usize,
    /// Merges that failed.
    pub failed: usize,
    /// What retention did.
    pub retention: retention::RetentionReport,
}

/// A block that could not be merged.
#[derive(Debug, Clone, Copy)]
struct Backoff {
    failures: u32,
    until_unix_nano: u64,
}

/// Runs compaction and retention for all tenants, one merge at a time.
pub struct Scheduler {
    store: Arc<dyn ObjectStore>,
    catalog: Arc<Catalog>,
    poller: Arc<Poller>,
    merger: Arc<dyn Merger>,
    clock: Arc<dyn Clock>,
    settings: CompactionSettings,
    tenants: Arc<dyn TenantCompactions>,
    metrics: CompactionMetrics,
    /// Blocks that wait after a failure; only live ones.
    backoff: HashMap<TenantId, HashMap<BlockId, Backoff>>,
    /// Tenants with a meta of which nobody knows whether it was written.
    unsettled: HashSet<TenantId>,
}

impl Scheduler {
    /// A scheduler over the blocks of `catalog`, which `poller` fills from `store`.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        catalog: Arc<Catalog>,
        poller: Arc<Poller>,
        merger: Arc<dyn Merger>,
        clock: Arc<dyn Clock>,
        settings: CompactionSettings,
        metrics: CompactionMetrics,
    ) -> Self {
        let (backoff, unsettled) = (HashMap::new(), HashSet::new());
        let tenants = Arc::new(TenantCompaction::default());
        Self { store, catalog, poller, merger, clock, settings, tenants, metrics, backoff, unsettled }
    }

    /// The same for tenants that have settings of their own.
    pub fn with_tenants(mut self, tenants: Arc<dyn TenantCompactions>) -> Self {
        self.tenants = tenants;
        self
    }

    /// Passes over all tenants, waits `compaction_cycle`, and so on until `stop` is true or its sender is gone. A merge under way is
    /// dropped then; the steps after it are not.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            let report = self.run_cycle(&stop).await;
            if report != CycleReport::default() {
                tracing::info!(?report, "compaction pass");
            }
            if tokio::time::timeout(self.settings.compaction_cycle, stop.wait_for(|stop| *stop)).await.is_ok() {
                return;
            }
        }
    }

    /// One pass over all tenants: finishes markings that were cut short, merges, and lets old blocks go.
    pub async fn run_cycle(&mut self, stop: &watch::Receiver<bool>) -> CycleReport {
        let mut report = CycleReport::default();
        let tenants = self.catalog.tenants();
        self.metrics.keep_tenants(&tenants);
        self.backoff.retain(|tenant, _| tenants.contains(tenant));
        for tenant in tenants {
            if is_stopped(stop) {
                break;
            }
            if self.unsettled.contains(&tenant) {
                match self.poller.poll_tenant(&tenant).await {
                    Ok(()) => self.unsettled.remove(&tenant),
                    Err(error) => {
                        tracing::warn!(%tenant, %error, "compaction waits until the tenant's blocks can be listed");
                        continue;
                    }
                };
            }
            self.mark_superseded(&tenant).await;
            let own = self.tenants.compaction(&tenant);
            let settings = self.settings.of_tenant(&own);
            if !own.compaction_disabled {
                self.merge_tenant(&tenant, &settings, stop, &mut report).await;
            }
            if self.unsettled.contains(&tenant) {
                continue;
            }
            let now = self.clock.now_unix_nano();
            let done = retention::apply(&*self.store, &self.catalog, &tenant, now, &settings, &self.metrics).await;
            report.retention.marked += done.marked;
            report.retention.deleted += done.deleted;
            report.retention.failed += done.failed;
        }
        report
    }

    /// What this scheduler counts.
    pub fn metrics(&self) -> &CompactionMetrics {
        &self.metrics
    }

    /// Merges until nothing is left to do, the tenant's time is over or the store is away.
    async fn merge_tenant(&mut self, tenant: &TenantId, settings: &CompactionSettings, stop: &watch::Receiver<bool>, report: &mut CycleReport) {
        let watch = Stopwatch::start();
        loop {
            let jobs = self.jobs(tenant, settings);
            self.metrics.set_outstanding(tenant, jobs.iter().map(|job| job.inputs.len()).sum());
            let Some(job) = jobs.into_iter().next().filter(|_| !is_stopped(stop) && watch.elapsed() < settings.max_time_per_tenant) else {
                return;
            };
            let Some(result) = self.run_job(tenant, &job, stop).await else { return };
            match result {
                Ok(()) => report.merged += 1,
                Err(error) => {
                    report.failed += 1;
                    self.metrics.add_error();
                    self.back_off(tenant, &job);
                    let blocks: Vec<_> = job.inputs.iter().map(|block| block.id).collect();
                    tracing::error!(%tenant, ?blocks, %error, "merging blocks failed");
                    if error.kind() == ErrorKind::Unavailable || self.unsettled.contains(tenant) {
                        return;
                    }
                }
            }
        }
    }

    /// The merges to do, without the blocks that wait after a failure.
    fn jobs(&mut self, tenant: &TenantId, settings: &CompactionSettings) -> Vec<Job> {
        let snapshot = self.catalog.snapshot(tenant);
        let (live, now) = (snapshot.blocklist.live(), self.clock.now_unix_nano());
        let Some(backoff) = self.backoff.get_mut(tenant) else { return select(live, now, settings) };
        let ids: HashSet<BlockId> = live.iter().map(|block| block.id).collect();
        backoff.retain(|id, _| ids.contains(id));
        let waits = |id: &BlockId| backoff.get(id).is_some_and(|backoff| backoff.until_unix_nano > now);
        let ready: Vec<_> = live.iter().filter(|block| !waits(&block.id)).cloned().collect();
        select(&ready, now, settings)
    }

    fn back_off(&mut self, tenant: &TenantId, job: &Job) {
        let now = self.clock.now_unix_nano();
        let waiting = self.backoff.entry(tenant.clone()).or_default();
        for block in &job.inputs {
            let failures = waiting.get(&block.id).map_or(0, |backoff| backoff.failures);
            let wait = BACKOFF_FIRST.saturating_mul(1 << failures.min(16)).min(BACKOFF_MAX);
            waiting.insert(block.id, Backoff { failures: failures + 1, until_unix_nano: now.saturating_add(nanos(wait)) });
        }
    }

    /// Does one merge. None when it was stopped.
    async fn run_job(&mut self, tenant: &TenantId, job: &Job, stop: &watch::Receiver<bool>) -> Option<Result<()>> {
        let mut stop = stop.clone();
        let merged = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return None,
            merged = self.merger.merge(tenant, &job.inputs) => merged,
        };
        Some(match merged.and_then(|output| complete_meta(tenant, output, &job.inputs)) {
            Ok(output) => self.commit(tenant, output, job).await,
            Err(error) => Err(error),
        })
    }

    /// Steps 2 to 4.
    async fn commit(&mut self, tenant: &TenantId, output: BlockMeta, job: &Job) -> Result<()> {
        if let Err(error) = write_meta(&*self.store, &output).await {
            self.unsettled.insert(tenant.clone());
            return Err(error);
        }
        self.metrics.add_merge(&job.inputs, &output);
        self.catalog.add_block(output);
        self.mark_superseded(tenant).await;
        Ok(())
    }

    /// Marks the blocks that others replace. A failure is no harm: the next pass tries again.
    async fn mark_superseded(&self, tenant: &TenantId) {
        let snapshot = self.catalog.snapshot(tenant);
        for block in snapshot.blocklist.superseded() {
            match mark_compacted(&*self.store, block).await {
                Ok(()) => self.catalog.mark_compacted(tenant, block.id, self.clock.now_unix_nano()),
                Err(error) => {
                    tracing::warn!(%tenant, block = %block.id, %error, "a replaced block could not be marked");
                    return;
                }
            }
        }
    }
}

fn is_stopped(stop: &watch::Receiver<bool>) -> bool {
    *stop.borrow() || stop.has_changed().is_err()
}

/// Fills in what follows from the inputs. Errors: `Internal` for an output that cannot be.
fn complete_meta(tenant: &TenantId, mut output: BlockMeta, inputs: &[Arc<BlockMeta>]) -> Result<BlockMeta> {
    let max = |value: fn(&BlockMeta) -> u64| inputs.iter().map(|input| value(input)).max().unwrap_or_default();
    output.compaction_level = max(|input| u64::from(input.compaction_level)) as u32 + 1;
    output.created_unix_nano = max(|input| input.created_unix_nano);
    output.replication_factor = max(|input| u64::from(input.replication_factor)) as u32;
    output.replaces = inputs.iter().map(|input| input.id).collect();
    output.wal = WalRange::merge(inputs.iter().flat_map(|input| input.wal.iter().cloned()).collect());
    let input_spans: u64 = inputs.iter().map(|input| input.total_spans).sum();
    if output.tenant != *tenant {
        return Err(Error::internal(format!("a merge for tenant {tenant} made a block of tenant {}", output.tenant)));
    }
    if output.total_spans > input_spans || (output.total_spans == 0 && input_spans > 0) {
        return Err(Error::internal(format!("a merge of {input_spans} spans made a block of {}", output.total_spans)));
    }
    Ok(output)
}

#[cfg(test)]
mod tests;
