//! The limits in force: the configuration's, and each tenant's own from a file that is read again and again. Asked at the time of use.
//!
//! A file that cannot be read or has a wrong key changes nothing: the limits read last stay, the failure is counted and told once.

use std::{sync::Arc, time::Duration};

use parking_lot::{Mutex, RwLock};
use prometheus::{IntCounter, IntGauge, IntGaugeVec, Opts, Registry, core::Collector};
use skein_engine::{
    compact::{TenantCompaction, TenantCompactions},
    error::{Error, Result},
    tenant::TenantId,
};
use skein_ingest::limits::{IngestionLimits, LimitsSource};
use tokio::sync::watch;

use super::{Shared, Task};
use crate::config::{
    LimitsSection,
    tenants::{TenantFile, TenantLimits, TenantOverrides},
};

/// Starts to read the file again and again.
pub fn spawn(shared: &Shared) -> Task {
    let (overrides, period) = (shared.overrides.clone(), shared.settings.overrides.per_tenant_override_period);
    Task::spawn_watching("limits", &tokio::runtime::Handle::current(), |stop| async move {
        overrides.run(period, stop).await;
        Ok(())
    })
}

/// Most tenants whose limits are shown as metrics.
const TENANTS_SHOWN_MAX: usize = 1000;

/// Everyone's limits.
pub struct Overrides {
    defaults: LimitsSection,
    file: Option<TenantFile>,
    tenants: RwLock<Arc<TenantLimits>>,
    /// What the last reading complained of; told once.
    complaint: Mutex<Option<String>>,
    metrics: Metrics,
}

impl Overrides {
    /// Reads the file, if there is one. Blocks. Errors: `Invalid`, naming the file and every wrong key; `Internal` when `registry` has the
    /// metrics already.
    pub fn open(defaults: LimitsSection, file: Option<TenantFile>, registry: &Registry) -> Result<Self> {
        let metrics = Metrics::new(registry)?;
        metrics.show_defaults(&defaults);
        let overrides = Self { defaults, file, tenants: RwLock::default(), complaint: Mutex::default(), metrics };
        if let Some(file) = &overrides.file {
            overrides.adopt(file.read()?);
        }
        Ok(overrides)
    }

    /// The limits of `tenant` now.
    pub fn limits(&self, tenant: &TenantId) -> LimitsSection {
        self.tenants.read().of(tenant).copied().unwrap_or(self.defaults)
    }

    /// The limits of tenants without an entry.
    pub fn defaults(&self) -> &LimitsSection {
        &self.defaults
    }

    /// The entries of the file.
    pub fn tenants(&self) -> Arc<TenantLimits> {
        self.tenants.read().clone()
    }

    /// Reads the file every `period` until `stop` is true or its sender is gone. Without a file it only waits.
    pub async fn run(self: Arc<Self>, period: Duration, mut stop: watch::Receiver<bool>) {
        while tokio::time::timeout(period, stop.wait_for(|stop| *stop)).await.is_err() {
            let Some(file) = self.file.clone() else { continue };
            match tokio::task::spawn_blocking(move || file.read()).await {
                Ok(read) => self.take(read),
                Err(error) => self.take(Err(Error::internal("reading the limits per tenant").with_source(error))),
            }
        }
    }

    /// Takes over what was read, or keeps what is in force.
    fn take(&self, read: Result<TenantOverrides>) {
        match read {
            Ok(overrides) => self.adopt(overrides),
            Err(error) => {
                self.metrics.last_successful.set(0);
                self.metrics.failures.inc();
                let text = error.to_string();
                let mut complaint = self.complaint.lock();
                if complaint.as_ref() != Some(&text) {
                    tracing::error!(%error, "the limits per tenant cannot be read; those read before stay in force");
                    *complaint = Some(text);
                }
            }
        }
    }

    fn adopt(&self, overrides: TenantOverrides) {
        self.metrics.last_successful.set(1);
        *self.complaint.lock() = None;
        if *self.tenants.read().as_ref() == overrides.limits {
            return;
        }
        overrides.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        tracing::info!(tenants = overrides.limits.len(), "limits per tenant taken over");
        self.metrics.show_tenants(&overrides.limits);
        *self.tenants.write() = Arc::new(overrides.limits);
    }
}

impl LimitsSource for Overrides {
    fn ingestion(&self, tenant: &TenantId) -> IngestionLimits {
        self.limits(tenant).ingestion_limits()
    }
}

impl TenantCompactions for Overrides {
    fn compaction(&self, tenant: &TenantId) -> TenantCompaction {
        self.limits(tenant).compaction()
    }
}

/// What `/metrics` tells of limits, under Tempo's names where it has them.
struct Metrics {
    last_successful: IntGauge,
    failures: IntCounter,
    defaults: IntGaugeVec,
    tenants: IntGaugeVec,
}

impl Metrics {
    fn new(registry: &Registry) -> Result<Self> {
        let reload = Opts::new("tempo_runtime_config_last_reload_successful", "1 if the limits per tenant were read the last time");
        let failures = Opts::new("skein_overrides_reload_failures_total", "Times that the limits per tenant could not be read");
        let defaults = Opts::new("tempo_limits_defaults", "Limits of tenants without their own");
        let tenants = Opts::new("tempo_limits_overrides", "Limits of tenants that have their own");
        let last_successful = add(registry, IntGaugeVec::new(reload, &["config"]))?.with_label_values(&["overrides"]);
        last_successful.set(1);
        Ok(Self {
            last_successful,
            failures: add(registry, IntCounter::with_opts(failures))?,
            defaults: add(registry, IntGaugeVec::new(defaults, &["limit_name"]))?,
            tenants: add(registry, IntGaugeVec::new(tenants, &["limit_name", "user"]))?,
        })
    }

    fn show_defaults(&self, limits: &LimitsSection) {
        for (name, value) in shown(limits) {
            self.defaults.with_label_values(&[name]).set(value);
        }
    }

    fn show_tenants(&self, tenants: &TenantLimits) {
        self.tenants.reset();
        for (tenant, limits) in tenants.iter().take(TENANTS_SHOWN_MAX) {
            for (name, value) in shown(limits) {
                self.tenants.with_label_values(&[name, tenant.as_str()]).set(value);
            }
        }
    }
}

/// The limits that metrics show, by Tempo's names.
fn shown(limits: &LimitsSection) -> [(&'static str, i64); 5] {
    let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    [
        ("ingestion_rate_limit_bytes", gauge(limits.ingestion.rate_limit_bytes)),
        ("ingestion_burst_size_bytes", gauge(limits.ingestion.burst_size_bytes)),
        ("max_bytes_per_trace", gauge(limits.global.max_bytes_per_trace as u64)),
        ("block_retention", gauge(limits.compaction.block_retention.as_secs())),
        ("max_bytes_per_tag_values_query", gauge(limits.read.max_bytes_per_tag_values_query as u64)),
    ]
}

fn add<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> Result<C> {
    let failed = |error: prometheus::Error| Error::internal("registering a metric of limits").with_source(error);
    let collector = made.map_err(failed)?;
    registry.register(Box::new(collector.clone())).map_err(failed)?;
    Ok(collector)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use std::path::Path;

    use super::*;

    fn tenant(id: &str) -> TenantId {
        TenantId::parse(id).unwrap()
    }

    fn write(path: &Path, trace_bytes: &str) {
        std::fs::write(path, format!("overrides: {{a: {{global: {{max_bytes_per_trace: {trace_bytes}}}}}}}")).unwrap();
    }

    fn opened(path: &Path) -> Result<(Arc<Overrides>, Registry)> {
        let registry = Registry::new();
        let file = TenantFile { path: path.to_owned(), expand_env: false };
        Ok((Arc::new(Overrides::open(LimitsSection::default(), Some(file), &registry)?), registry))
    }

    fn metrics(registry: &Registry) -> String {
        prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    #[test]
    fn a_broken_file_fails_the_start_and_later_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("overrides.yaml");
        write(&path, "many");
        assert!(opened(&path).is_err());
        write(&path, "1");
        let (overrides, registry) = opened(&path).unwrap();
        let reload = || overrides.take(overrides.file.as_ref().unwrap().read());
        let trace_bytes = |id| overrides.limits(&tenant(id)).global.max_bytes_per_trace;
        assert_eq!((trace_bytes("a"), trace_bytes("b")), (1, 0));
        write(&path, "2");
        reload();
        assert_eq!(trace_bytes("a"), 2);
        assert!(metrics(&registry).contains(r#"tempo_limits_overrides{limit_name="max_bytes_per_trace",user="a"} 2"#));

        write(&path, "many");
        reload();
        std::fs::remove_file(&path).unwrap();
        reload();
        assert_eq!(trace_bytes("a"), 2);
        let text = metrics(&registry);
        assert!(text.contains(r#"tempo_runtime_config_last_reload_successful{config="overrides"} 0"#), "{text}");
        assert!(text.contains("skein_overrides_reload_failures_total 2"), "{text}");

        std::fs::write(&path, "overrides: {}").unwrap();
        reload();
        assert_eq!(trace_bytes("a"), 0);
        let text = metrics(&registry);
        assert!(text.contains(r#"tempo_runtime_config_last_reload_successful{config="overrides"} 1"#) && !text.contains(r#"user="a""#), "{text}");
    }

    #[test]
    fn ingestion_takes_the_limits_of_the_tenant() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("overrides.yaml");
        std::fs::write(&path, "overrides: {a: {ingestion_rate_limit_bytes: 5, ingestion_burst_size_bytes: 6}}").unwrap();
        let (overrides, _) = opened(&path).unwrap();
        let of = |id| overrides.ingestion(&tenant(id));
        assert_eq!((of("a").rate_limit_bytes, of("a").burst_size_bytes), (5, 6));
        assert_eq!(of("b").rate_limit_bytes, u64::MAX);
    }

    #[tokio::test]
    async fn the_file_is_read_every_period_until_the_stop() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("overrides.yaml");
        write(&path, "1");
        let (overrides, _) = opened(&path).unwrap();
        let (stop, stopped) = watch::channel(false);
        let running = tokio::spawn(overrides.clone().run(Duration::from_millis(1), stopped));
        write(&path, "2");
        let read = async {
            while overrides.limits(&tenant("a")).global.max_bytes_per_trace != 2 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), read).await.unwrap();
        stop.send_replace(true);
        running.await.unwrap();
    }
}
