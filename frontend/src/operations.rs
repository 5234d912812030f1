//! What the HTTP API asks of the process around it.

use async_trait::async_trait;
use skein_engine::{error::Result, tenant::TenantId};

use crate::settings::QueryLimits;

/// Which settings a status page shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigMode {
    /// All that is in force.
    Effective,
    /// What differs from the defaults.
    Diff,
    /// The defaults.
    Defaults,
}

/// The process as its operator sees it; implemented by the binary.
#[async_trait]
pub trait Operations: Send + Sync + 'static {
    /// Cuts and writes what is in memory, of one tenant or of all. Errors: `NotFound` for a tenant that nothing is known of.
    async fn flush(&self, tenant: Option<TenantId>) -> Result<()>;

    /// Begins to flush and stop; returns at once.
    fn shutdown(&self);

    /// Ok when requests can be served, else why not, as `/ready` shows it.
    fn readiness(&self) -> Result<(), String>;

    /// The configuration as YAML.
    fn config_yaml(&self, mode: ConfigMode) -> String;

    /// The overrides as YAML; `diff` leaves out what is default.
    fn runtime_config_yaml(&self, diff: bool) -> String;

    /// The parts of the process with their states, such as `("ingester", "Running")`.
    fn services(&self) -> Vec<(String, String)>;

    /// Tenants that have overrides of their own.
    fn tenants_with_overrides(&self) -> Vec<TenantId> {
        Vec::new()
    }

    /// Limits on the queries of `tenant`, read at the time of use.
    fn limits(&self, tenant: &TenantId) -> QueryLimits {
        let _ = tenant;
        QueryLimits::default()
    }

    /// All limits of `tenant` as YAML, those on writing too.
    fn limits_yaml(&self, tenant: &TenantId) -> String;
}

/// What `/api/status/buildinfo` and `tempo_build_info` tell. Grafana reads `version` as a semantic version and switches its features by it.
#[derive(Debug, Clone, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct BuildInfo {
    pub version: String,
    pub revision: String,
    pub branch: String,
    pub build_user: String,
    pub build_date: String,
    pub go_version: String,
}
