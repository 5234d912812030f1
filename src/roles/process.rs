//! The process as its operator drives it: readiness, signals, `/flush`, `/shutdown`, status pages.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use prometheus::{IntGaugeVec, Opts, Registry};
use serde::Serialize;
use serde_yaml_ng::{Mapping, Value};
use skein_engine::{
    error::{Error, Result},
    tenant::TenantId,
};
use skein_frontend::{
    operations::{ConfigMode, Operations},
    settings::QueryLimits,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::{Shared, ingester::Lifecycle};
use crate::config::{LimitsSection, Settings};

/// How far the process is; the numbers are those of [`Process::state`].
const STARTING: u8 = 0;
const RUNNING: u8 = 1;
const STOPPING: u8 = 2;

/// The services that a process of target `all` runs.
const SERVICES: [&str; 6] = ["compactor", "distributor", "ingester", "querier", "query-frontend", "store"];

/// Asks the process to stop. Clones ask the same process.
#[derive(Clone)]
pub struct StopHandle(watch::Sender<Option<Stop>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// As the settings say.
    Plain,
    /// With every live span written to a block.
    Flushed,
}

/// The other end of a [`StopHandle`].
pub struct StopAsked(watch::Receiver<Option<Stop>>);

impl StopHandle {
    /// A handle and what it speaks to.
    pub fn new() -> (Self, StopAsked) {
        let (sender, receiver) = watch::channel(None);
        (Self(sender), StopAsked(receiver))
    }

    /// Stops as the settings say. The first to ask decides how.
    pub fn stop(&self) {
        self.ask(Stop::Plain);
    }

    /// Stops after everything live is in a block.
    pub fn flush_and_stop(&self) {
        self.ask(Stop::Flushed);
    }

    fn ask(&self, how: Stop) {
        self.0.send_if_modified(|asked| {
            let is_first = asked.is_none();
            asked.get_or_insert(how);
            is_first
        });
    }
}

impl StopAsked {
    /// Waits for the first to ask; whether everything is to be flushed.
    pub async fn wait(mut self) -> bool {
        // All handles are gone: nobody can ask any more.
        self.0.wait_for(Option::is_some).await.is_ok_and(|asked| *asked == Some(Stop::Flushed))
    }
}

/// Stops on SIGTERM and SIGINT. Errors: `Internal` when the handlers cannot be set.
pub fn stop_on_signals(stop: StopHandle) -> Result<()> {
    let failed = |error: std::io::Error| Error::internal("setting signal handlers").with_source(error);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.stop();
    });
    Ok(())
}

/// Waits; returns at once for zero.
#[allow(clippy::disallowed_methods, reason = "shutdown_delay is real time by definition")]
pub async fn pause(duration: Duration) {
    if !duration.is_zero() {
        tokio::time::sleep(duration).await;
    }
}

/// The metrics of the process itself. Errors: `Internal` when the registry has them already.
pub fn register_metrics(registry: &Registry) -> Result<()> {
    let failed = |error: prometheus::Error| Error::internal("registering the process's metrics").with_source(error);
    let targets = IntGaugeVec::new(Opts::new("skein_process_target", "The target that runs; always 1"), &["target"]).map_err(failed)?;
    targets.with_label_values(&["all"]).set(1);
    registry.register(Box::new(targets)).map_err(failed)
}

/// The running process.
pub struct Process {
    shared: Arc<Shared>,
    ingester: Arc<dyn Lifecycle>,
    stop: StopHandle,
    state: AtomicU8,
}

impl Process {
    /// A process that starts.
    pub fn new(shared: Arc<Shared>, ingester: Arc<dyn Lifecycle>, stop: StopHandle) -> Self {
        tracing::info!(version = env!("CARGO_PKG_VERSION"), now_unix_nano = shared.clock.now_unix_nano(), "starting");
        Self { shared, ingester, stop, state: AtomicU8::new(STARTING) }
    }

    /// From now on `/ready` says yes.
    pub fn set_running(&self) {
        self.state.store(RUNNING, Ordering::Release);
    }

    /// From now on `/ready` says no.
    pub fn set_stopping(&self) {
        self.state.store(STOPPING, Ordering::Release);
    }

    fn state(&self) -> u8 {
        self.state.load(Ordering::Acquire)
    }
}

#[async_trait]
impl Operations for Process {
    async fn flush(&self, tenant: Option<TenantId>) -> Result<()> {
        self.ingester.flush(tenant).await
    }

    fn shutdown(&self) {
        self.stop.flush_and_stop();
    }

    fn readiness(&self) -> Result<(), String> {
        match self.state() {
            RUNNING => Ok(()),
            STOPPING => Err("Application is stopping".into()),
            _ => Err(format!("Some services are not Running:\nStarting: {}\n", SERVICES.len())),
        }
    }

    fn config_yaml(&self, mode: ConfigMode) -> String {
        match mode {
            ConfigMode::Effective => yaml(&self.shared.settings),
            ConfigMode::Defaults => yaml(&Settings::default()),
            ConfigMode::Diff => yaml_diff(&self.shared.settings, &Settings::default()),
        }
    }

    fn runtime_config_yaml(&self, diff: bool) -> String {
        let tenants = self.shared.overrides.tenants();
        let entries = tenants.iter().map(|(tenant, limits)| (tenant.to_string(), *limits)).collect();
        let config = RuntimeConfig { defaults: *self.shared.overrides.defaults(), overrides: entries };
        if diff { yaml_diff(&config, &RuntimeConfig::default()) } else { yaml(&config) }
    }

    fn services(&self) -> Vec<(String, String)> {
        let state = match self.state() {
            RUNNING => "Running",
            STOPPING => "Stopping",
            _ => "Starting",
        };
        SERVICES.iter().map(|service| ((*service).to_owned(), state.to_owned())).collect()
    }

    fn tenants_with_overrides(&self) -> Vec<TenantId> {
        self.shared.overrides.tenants().iter().map(|(tenant, _)| tenant.clone()).collect()
    }

    fn limits(&self, tenant: &TenantId) -> QueryLimits {
        self.shared.overrides.limits(tenant).query_limits()
    }

    fn limits_yaml(&self, tenant: &TenantId) -> String {
        yaml(&self.shared.overrides.limits(tenant))
    }
}

/// What `/status/runtime_config` shows.
#[derive(Default, Serialize)]
struct RuntimeConfig {
    /// Limits of tenants without an entry.
    defaults: LimitsSection,
    /// Entries of the file of limits per tenant.
    overrides: BTreeMap<String, LimitsSection>,
}

fn yaml(value: &impl Serialize) -> String {
    serde_yaml_ng::to_string(value).unwrap_or_else(|error| format!("# {error}\n"))
}

/// The keys of `value` that differ from those of `default`.
fn yaml_diff(value: &impl Serialize, default: &impl Serialize) -> String {
    let both = (serde_yaml_ng::to_value(value), serde_yaml_ng::to_value(default));
    match both {
        (Ok(value), Ok(default)) => yaml(&difference(value, &default).unwrap_or(Value::Mapping(Mapping::new()))),
        (Err(error), _) | (_, Err(error)) => format!("# {error}\n"),
    }
}

fn difference(value: Value, default: &Value) -> Option<Value> {
    match (value, default) {
        (value, default) if value == *default => None,
        (Value::Mapping(map), Value::Mapping(defaults)) => {
            let changed = map.into_iter().filter_map(|(key, value)| {
                let changed = match defaults.get(&key) {
                    Some(default) => difference(value, default),
                    None => Some(value),
                };
                Some((key, changed?))
            });
            Some(Value::Mapping(changed.collect()))
        }
        (value, _) => Some(value),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_diff_shows_only_what_was_set() {
        let mut settings = Settings::default();
        assert_eq!(yaml_diff(&settings, &Settings::default()), "{}\n");
        settings.server.http_listen_port = 1;
        settings.storage.trace.wal.path = "/w".into();
        assert_eq!(yaml_diff(&settings, &Settings::default()), "server:\n  http_listen_port: 1\nstorage:\n  trace:\n    wal:\n      path: /w\n");
    }

    #[tokio::test]
    async fn the_first_to_ask_decides_how_to_stop() {
        let (handle, asked) = StopHandle::new();
        handle.clone().flush_and_stop();
        handle.stop();
        assert!(asked.wait().await);
        let (handle, asked) = StopHandle::new();
        handle.stop();
        assert!(!asked.wait().await);
    }
}
