//! Configuration: Tempo's YAML and flags, to settings.
//!
//! | module | owns |
//! |---|---|
//! | [`schema`] | the keys: which are read, which are accepted without effect |
//! | [`walk`] | the check of a configuration against them |
//! | [`receivers`] | `distributor.receivers` |
//! | [`tenants`] | the file of limits per tenant |
//! | [`flags`] | the command line |
//! | [`envsubst`] | `${…}` in the file |
//!
//! Order: defaults, then the file, then flags. Without a file everything lies below `./skein-data`.
//! Invariant CF-1: every key that the schema says is read is a field of [`Settings`], and the other way round (a test compares them).

pub mod envsubst;
pub mod flags;
pub mod receivers;
pub mod schema;
pub mod tenants;
pub mod walk;

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize, Serializer};
use serde_yaml_ng::{Mapping, Value};
use skein_engine::{
    clock::go_duration,
    compact::{CompactionSettings, TenantCompaction},
    error::{Error, Result},
    sql::SqlLimits,
    store::StorageSettings,
};
use skein_frontend::settings::{FrontendSettings, QueryLimits};
use skein_ingest::{limits::IngestionLimits, receivers::server::OtlpSettings, wal::SyncMode};

use flags::Flags;
use tenants::TenantFile;

/// Everything that can be set. Names are Tempo's.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The roles to run.
    pub target: String,
    /// Take the tenant from `X-Scope-OrgID`.
    pub multitenancy_enabled: bool,
    /// The older name of `multitenancy_enabled`; either switches it on.
    pub auth_enabled: bool,
    /// Put in front of the paths below `/api`.
    pub http_api_prefix: String,
    /// How long to go on serving after SIGTERM while `/ready` says no.
    #[serde(with = "go_duration")]
    pub shutdown_delay: Duration,
    /// Serve the gRPC query API on the HTTP port too. On by default here, as Grafana needs it to stream.
    pub stream_over_http_enabled: bool,
    /// `server`.
    pub server: ServerSettings,
    /// `distributor`.
    pub distributor: DistributorSection,
    /// `ingester`.
    pub ingester: IngesterSection,
    /// `query_frontend`.
    pub query_frontend: FrontendSettings,
    /// `compactor`.
    pub compactor: CompactorSection,
    /// `storage`.
    pub storage: StorageSection,
    /// `overrides`.
    pub overrides: OverridesSection,
}

impl Default for Settings {
    fn default() -> Self {
        let mut query_frontend = FrontendSettings::default();
        // Tempo's 168h would hide old recordings. Blocks are skipped by their time, so that a window over all time costs little.
        query_frontend.search.max_duration = Duration::ZERO;
        Self {
            target: "all".into(),
            multitenancy_enabled: false,
            auth_enabled: false,
            http_api_prefix: String::new(),
            shutdown_delay: Duration::ZERO,
            stream_over_http_enabled: true,
            server: ServerSettings::default(),
            distributor: DistributorSection::default(),
            ingester: IngesterSection::default(),
            query_frontend,
            compactor: CompactorSection::default(),
            storage: StorageSection::default(),
            overrides: OverridesSection::default(),
        }
    }
}

/// `server`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ServerSettings {
    /// Empty is every interface.
    pub http_listen_address: String,
    /// 0 takes a free one.
    pub http_listen_port: u16,
    /// Empty is every interface.
    pub grpc_listen_address: String,
    /// 0 takes a free one.
    pub grpc_listen_port: u16,
    /// How long requests under way may take once the process is told to stop.
    #[serde(with = "go_duration")]
    pub graceful_shutdown_timeout: Duration,
    pub grpc_server_max_recv_msg_size: usize,
    pub grpc_server_max_send_msg_size: usize,
    pub grpc_server_max_concurrent_streams: u32,
    /// `debug`, `info`, `warn` or `error`.
    pub log_level: String,
    /// `logfmt` or `json`; both log text here.
    pub log_format: String,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            http_listen_address: String::new(),
            http_listen_port: 3200,
            grpc_listen_address: String::new(),
            grpc_listen_port: 9095,
            graceful_shutdown_timeout: Duration::from_secs(30),
            grpc_server_max_recv_msg_size: 16 << 20,
            grpc_server_max_send_msg_size: 16 << 20,
            grpc_server_max_concurrent_streams: 100,
            log_level: "info".into(),
            log_format: "logfmt".into(),
        }
    }
}

impl ServerSettings {
    /// `host:port` of the HTTP server.
    pub fn http_endpoint(&self) -> String {
        endpoint(&self.http_listen_address, self.http_listen_port)
    }

    /// `host:port` of the gRPC server.
    pub fn grpc_endpoint(&self) -> String {
        endpoint(&self.grpc_listen_address, self.grpc_listen_port)
    }
}

fn endpoint(address: &str, port: u16) -> String {
    match address {
        "" => format!("0.0.0.0:{port}"),
        // An IPv6 address needs brackets before a port.
        v6 if v6.contains(':') && !v6.starts_with('[') => format!("[{v6}]:{port}"),
        host => format!("{host}:{port}"),
    }
}

/// `distributor`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistributorSection {
    /// Read by [`receivers`].
    pub receivers: Value,
    /// What a refused client is told to wait.
    #[serde(with = "go_duration")]
    pub retry_after_on_resource_exhausted: Duration,
}

impl Default for DistributorSection {
    fn default() -> Self {
        Self { receivers: Value::Null, retry_after_on_resource_exhausted: Duration::from_secs(5) }
    }
}

/// `ingester`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IngesterSection {
    /// A trace without a new span for this long may be cut.
    #[serde(with = "go_duration")]
    pub trace_idle_period: Duration,
    /// A trace this old may be cut even if spans still come.
    #[serde(with = "go_duration")]
    pub trace_live_period: Duration,
    /// Live spans become a block at this age.
    #[serde(with = "go_duration")]
    pub max_block_duration: Duration,
    /// Live spans become a block at this size.
    pub max_block_bytes: u64,
    /// How long a flushed block is also kept close.
    #[serde(with = "go_duration")]
    pub complete_block_timeout: Duration,
    /// How often to look for what is to be cut.
    #[serde(with = "go_duration")]
    pub flush_check_period: Duration,
    /// Write blocks on shutdown instead of leaving live spans to the log.
    pub flush_all_on_shutdown: bool,
}

impl Default for IngesterSection {
    /// Tempo 2.10's.
    fn default() -> Self {
        Self {
            trace_idle_period: Duration::from_secs(5),
            trace_live_period: Duration::from_secs(30),
            max_block_duration: Duration::from_secs(30 * 60),
            max_block_bytes: 500 << 20,
            complete_block_timeout: Duration::from_secs(15 * 60),
            flush_check_period: Duration::from_secs(10),
            flush_all_on_shutdown: false,
        }
    }
}

/// `compactor`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CompactorSection {
    /// `compaction`.
    pub compaction: CompactionSettings,
}

/// `storage`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageSection {
    /// `trace`.
    pub trace: TraceStorageSection,
}

/// `storage.trace`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TraceStorageSection {
    /// `wal`.
    pub wal: WalSection,
    /// Everything else: where blocks are kept.
    #[serde(flatten)]
    pub store: StorageSettings,
}

/// `storage.trace.wal`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WalSection {
    /// The folder; made when it is missing.
    pub path: PathBuf,
    /// When acknowledged spans are on the disk: `always`, `batch` or `never`.
    #[serde(serialize_with = "sync_name")]
    pub sync: SyncMode,
}

impl Default for WalSection {
    fn default() -> Self {
        Self { path: "skein-data/wal".into(), sync: SyncMode::Always }
    }
}

fn sync_name<S: Serializer>(sync: &SyncMode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match sync {
        SyncMode::Always => "always",
        SyncMode::Batch => "batch",
        SyncMode::Never => "never",
    })
}

/// `overrides`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OverridesSection {
    /// `defaults`: the limits of every tenant that the file does not name.
    pub defaults: LimitsSection,
    /// The file of limits per tenant; empty is none.
    pub per_tenant_override_config: String,
    /// How often the file is read again.
    #[serde(with = "go_duration")]
    pub per_tenant_override_period: Duration,
}

impl Default for OverridesSection {
    fn default() -> Self {
        Self { defaults: LimitsSection::default(), per_tenant_override_config: String::new(), per_tenant_override_period: Duration::from_secs(10) }
    }
}

/// The limits of a tenant: `overrides.defaults`, or an entry of the file of limits per tenant. An entry replaces the defaults as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct LimitsSection {
    pub ingestion: IngestionSection,
    pub read: ReadSection,
    pub global: GlobalSection,
    pub compaction: TenantCompactionSection,
}

/// `overrides.defaults.ingestion`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IngestionSection {
    /// Uncompressed protobuf bytes per second; 0 is no limit, and the default here.
    pub rate_limit_bytes: u64,
    /// Bytes that may come at once; 0 is no limit, and the default here.
    pub burst_size_bytes: u64,
    /// Whether refusals say when to return.
    pub retry_info_enabled: bool,
}

impl Default for IngestionSection {
    fn default() -> Self {
        Self { rate_limit_bytes: 0, burst_size_bytes: 0, retry_info_enabled: true }
    }
}

/// `overrides.defaults.read`; 0 is no limit of its own.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReadSection {
    /// Longest search window; 0 is `query_frontend.search.max_duration`.
    #[serde(with = "go_duration")]
    pub max_search_duration: Duration,
    /// Longest metrics window; 0 is `query_frontend.metrics.max_duration`.
    #[serde(with = "go_duration")]
    pub max_metrics_duration: Duration,
    /// Bytes of names or values in an answer.
    pub max_bytes_per_tag_values_query: usize,
    /// Groups of conditions, joined by `||`, in a filter of names or values.
    pub max_condition_groups_per_tag_query: usize,
    /// Ids in search answers have 32 digits.
    pub left_pad_trace_ids: bool,
    /// Rows of the answer to a SQL statement.
    pub max_sql_rows: u64,
    /// Bytes of the values of that answer.
    pub max_sql_bytes: u64,
    /// Longest time of a SQL statement.
    #[serde(with = "go_duration")]
    pub max_sql_duration: Duration,
    /// Memory that one SQL statement may take, of `query_frontend.max_memory_bytes`.
    pub max_sql_memory_bytes: usize,
}

impl Default for ReadSection {
    fn default() -> Self {
        let limits = QueryLimits::default();
        Self {
            max_search_duration: limits.max_search_duration,
            max_metrics_duration: limits.max_metrics_duration,
            max_bytes_per_tag_values_query: limits.max_bytes_per_tag_values_query,
            max_condition_groups_per_tag_query: limits.max_condition_groups_per_tag_query,
            left_pad_trace_ids: limits.left_pad_trace_ids,
            max_sql_rows: 100_000_000,
            max_sql_bytes: 32 << 30,
            max_sql_duration: Duration::from_secs(300),
            max_sql_memory_bytes: 1 << 30,
        }
    }
}

/// `overrides.defaults.global`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GlobalSection {
    /// Largest trace that is returned, in protobuf bytes; 0 is no limit, and the default here. Nothing is refused for it at writing.
    pub max_bytes_per_trace: usize,
}

/// `overrides.defaults.compaction`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TenantCompactionSection {
    /// 0 is `compactor.compaction.block_retention`.
    #[serde(with = "go_duration")]
    pub block_retention: Duration,
    /// 0 is `compactor.compaction.compaction_window`.
    #[serde(with = "go_duration")]
    pub compaction_window: Duration,
    /// Blocks are not merged; old ones are deleted all the same.
    pub compaction_disabled: bool,
}

impl LimitsSection {
    /// How blocks are merged and how long they are kept.
    pub fn compaction(&self) -> TenantCompaction {
        let TenantCompactionSection { block_retention, compaction_window, compaction_disabled } = self.compaction;
        TenantCompaction { block_retention, compaction_window, compaction_disabled }
    }

    /// Limits of writing; what is 0 here is unlimited.
    pub fn ingestion_limits(&self) -> IngestionLimits {
        let unlimited = |bytes| if bytes == 0 { u64::MAX } else { bytes };
        IngestionLimits {
            rate_limit_bytes: unlimited(self.ingestion.rate_limit_bytes),
            burst_size_bytes: unlimited(self.ingestion.burst_size_bytes),
            retry_info_enabled: self.ingestion.retry_info_enabled,
        }
    }

    /// Limits of SQL statements.
    pub fn sql_limits(&self) -> SqlLimits {
        SqlLimits {
            rows: self.read.max_sql_rows,
            bytes: self.read.max_sql_bytes,
            duration: self.read.max_sql_duration,
            memory_bytes: self.read.max_sql_memory_bytes,
        }
    }

    /// Limits of reading.
    pub fn query_limits(&self) -> QueryLimits {
        QueryLimits {
            max_bytes_per_trace: self.global.max_bytes_per_trace,
            max_bytes_per_tag_values_query: self.read.max_bytes_per_tag_values_query,
            max_condition_groups_per_tag_query: self.read.max_condition_groups_per_tag_query,
            max_search_duration: self.read.max_search_duration,
            max_metrics_duration: self.read.max_metrics_duration,
            left_pad_trace_ids: self.read.left_pad_trace_ids,
        }
    }
}

/// Checked settings.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// What `distributor.receivers` says.
    pub otlp: OtlpSettings,
    /// The file of limits per tenant, if there is one.
    pub tenant_file: Option<TenantFile>,
    /// Things to know, one a line.
    pub warnings: Vec<String>,
}

/// Loads the settings that `flags` ask for, and checks the file of limits per tenant. Errors: `Invalid`, every wrong key on a line.
pub fn load(flags: &Flags) -> Result<Loaded> {
    let text = match &flags.config_file {
        Some(path) => {
            std::fs::read_to_string(path).map_err(|error| Error::invalid(format!("reading the configuration file {path}")).with_source(error))?
        }
        None => String::new(),
    };
    let text = if flags.expand_env {
        envsubst::expand(&text, |name| std::env::var(name).ok())
            .map_err(|error| Error::invalid(format!("expanding the configuration file: {error}")))?
    } else {
        text
    };
    let mut loaded = read(&text, flags).map_err(|error| match &flags.config_file {
        Some(path) => error.context(path),
        None => error,
    })?;
    if let Some(file) = &loaded.tenant_file {
        loaded.warnings.extend(file.read()?.warnings);
    }
    Ok(loaded)
}

/// Reads settings from the text of a file and from flags.
fn read(text: &str, flags: &Flags) -> Result<Loaded> {
    let mut config: Value = serde_yaml_ng::from_str(text).map_err(|error| Error::invalid("reading the configuration").with_source(error))?;
    if config.is_null() {
        config = Value::Mapping(Mapping::new());
    }
    let mut findings = walk::check(&mut config, text);
    for (path, value) in &flags.keys {
        walk::set(&mut config, path, value.clone());
    }
    move_backend_worker(&mut config);
    findings.warnings.extend(flags.warnings.iter().cloned());
    // Flags are checked when they are read, except for words.
    let mut unchecked = config.clone();
    if !flags.keys.is_empty() {
        findings.errors.extend(walk::check(&mut unchecked, "").errors);
    }
    if !findings.errors.is_empty() {
        return Err(invalid(&findings.errors));
    }
    let wrong = |error: serde_yaml_ng::Error| Error::invalid("configuration").with_source(error);
    let mut layered = serde_yaml_ng::to_value(Settings::default()).map_err(wrong)?;
    lay_over(&mut layered, config);
    let mut settings: Settings = serde_yaml_ng::from_value(layered).map_err(wrong)?;
    settings.multitenancy_enabled |= settings.auth_enabled;
    settings.query_frontend.stream_over_http_enabled = settings.stream_over_http_enabled;
    let mut otlp = receivers::read(&settings.distributor.receivers, text, &mut findings);
    otlp.multitenancy_enabled = settings.multitenancy_enabled;
    validate(&mut settings, &mut findings);
    if !findings.errors.is_empty() {
        return Err(invalid(&findings.errors));
    }
    let path = &settings.overrides.per_tenant_override_config;
    let tenant_file = (!path.is_empty()).then(|| TenantFile { path: path.into(), expand_env: flags.expand_env });
    Ok(Loaded { settings, otlp, tenant_file, warnings: findings.warnings })
}

/// Puts the keys of `upper` over those of `lower`, section by section.
fn lay_over(lower: &mut Value, upper: Value) {
    match (lower, upper) {
        (Value::Mapping(lower), Value::Mapping(upper)) => {
            for (key, value) in upper {
                lay_over(lower.entry(key).or_insert(Value::Null), value);
            }
        }
        (lower, upper) => *lower = upper,
    }
}

fn invalid(errors: &[String]) -> Error {
    Error::invalid(format!("configuration: {}", errors.join("\nconfiguration: ")))
}

/// Puts what Tempo 3 keeps in `backend_worker` to where Tempo 2 kept it.
fn move_backend_worker(config: &mut Value) {
    let Some(worker) = config.as_mapping_mut().and_then(|map| map.remove("backend_worker")) else { return };
    if let Some(Value::Mapping(keys)) = worker.get("compaction") {
        for (key, value) in keys {
            walk::set(config, &["compactor", "compaction", key.as_str().unwrap_or_default()], value.clone());
        }
    }
}

/// Rules between keys, and the combinations that Tempo warns of too.
fn validate(settings: &mut Settings, findings: &mut walk::Findings) {
    match settings.target.as_str() {
        // Single-process targets of Tempo that mean the same here.
        "all" | "scalable-single-binary" | "all-3.0" => {}
        "distributor"
        | "ingester"
        | "querier"
        | "query-frontend"
        | "compactor"
        | "metrics-generator"
        | "metrics-generator-no-local-blocks"
        | "block-builder"
        | "backend-scheduler"
        | "backend-worker"
        | "live-store" => {
            findings.errors.push(format!(
                "target: '{}' does not run alone yet; the only target of this version is all, distributed roles come later",
                settings.target
            ));
        }
        other => findings.errors.push(format!("target: unknown target '{other}'; the target of this version is all")),
    }
    if !settings.http_api_prefix.is_empty() {
        let trimmed = settings.http_api_prefix.trim_matches('/');
        settings.http_api_prefix = if trimmed.is_empty() { String::new() } else { format!("/{trimmed}") };
    }
    let parts = [settings.storage.trace.store.validate(), settings.query_frontend.validate(), settings.compactor.compaction.validate()];
    findings.errors.extend(parts.into_iter().filter_map(|part| part.err()).map(|error| error.message().to_owned()));
    let positive = [
        ("ingester.max_block_duration", settings.ingester.max_block_duration.is_zero()),
        ("ingester.flush_check_period", settings.ingester.flush_check_period.is_zero()),
        ("ingester.max_block_bytes", settings.ingester.max_block_bytes == 0),
        ("storage.trace.wal.path", settings.storage.trace.wal.path.as_os_str().is_empty()),
        ("overrides.per_tenant_override_period", settings.overrides.per_tenant_override_period.is_zero()),
    ];
    findings.errors.extend(positive.iter().filter(|(_, empty)| *empty).map(|(key, _)| format!("{key}: must not be zero or empty")));
    let poll = settings.storage.trace.store.poll_interval();
    let retention = settings.compactor.compaction.block_retention;
    if settings.ingester.complete_block_timeout < poll {
        findings.warnings.push("ingester.complete_block_timeout: shorter than storage.trace.blocklist_poll".to_owned());
    }
    if !retention.is_zero() && retention < poll {
        findings.warnings.push("compactor.compaction.block_retention: shorter than storage.trace.blocklist_poll".to_owned());
    }
    if settings.auth_enabled {
        findings.warnings.push("auth_enabled: the older name of multitenancy_enabled".to_owned());
    }
    if settings.query_frontend.mcp_server.enabled {
        findings.warnings.push("query_frontend.mcp_server.enabled: whoever reaches the port can have a language model read the traces".to_owned());
    }
    if settings.server.log_format != "logfmt" {
        findings.warnings.push("server.log_format: only text is logged".to_owned());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    fn loaded(text: &str, flags: &str) -> Result<Loaded> {
        let args: Vec<String> = flags.split_whitespace().map(str::to_owned).collect();
        read(text, &flags::parse(&args).unwrap())
    }

    #[test]
    fn without_a_file_everything_lies_below_the_working_folder() {
        let Loaded { settings, warnings, .. } = loaded("", "").unwrap();
        assert_eq!(serde_yaml_ng::to_value(&settings).unwrap(), serde_yaml_ng::to_value(Settings::default()).unwrap());
        assert_eq!(settings.query_frontend.search.max_duration, Duration::ZERO);
        assert_eq!(warnings, [""; 0]);
        assert_eq!(settings.storage.trace.store.local.path, "skein-data/blocks");
        assert_eq!(settings.storage.trace.wal.path.to_str(), Some("skein-data/wal"));
        assert_eq!((settings.server.http_endpoint(), settings.server.grpc_endpoint()), ("0.0.0.0:3200".into(), "0.0.0.0:9095".into()));
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let text = "server: {http_listen_port: 1, grpc_listen_port: 2}\nstorage: {trace: {wal: {path: /w, sync: batch}, backend: local}}";
        let settings = loaded(text, "-server.http-listen-port=3 -storage.trace.local.path=/b").unwrap().settings;
        assert_eq!((settings.server.http_listen_port, settings.server.grpc_listen_port), (3, 2));
        assert_eq!(settings.storage.trace.wal, WalSection { path: "/w".into(), sync: SyncMode::Batch });
        assert_eq!(settings.storage.trace.store.local.path, "/b");
        assert_eq!(settings.ingester, IngesterSection::default());
    }

    #[test]
    fn a_tempo_configuration_is_read() {
        let Loaded { settings, otlp, warnings, .. } = loaded(
            "
stream_over_http_enabled: true
server:
  http_listen_port: 3200
  log_level: warn
distributor:
  receivers:
    otlp:
      protocols:
        grpc:
          endpoint: 'tempo:4317'
ingester:
  max_block_duration: 5m
compactor:
  compaction:
    block_retention: 720h
    compacted_block_retention: 10m
storage:
  trace:
    backend: s3
    blocklist_poll: 1m
    s3: {bucket: tempo, endpoint: minio:9000, access_key: tempo, secret_key: supersecret, insecure: true, tags: {a: b}}
    wal:
      path: /var/tempo/wal
metrics_generator:
  storage: {path: /var/tempo/generator/wal}
memberlist: {join_members: [tempo]}
overrides:
  defaults:
    ingestion: {rate_limit_bytes: 1000, burst_size_bytes: 2000}
    metrics_generator: {processors: [service-graphs]}
",
            "",
        )
        .unwrap();
        assert_eq!(settings.compactor.compaction.block_retention, Duration::from_secs(720 * 3_600));
        assert_eq!(settings.overrides.defaults.ingestion.burst_size_bytes, 2_000);
        assert_eq!(settings.storage.trace.store.s3.secret_key.expose(), "supersecret");
        assert_eq!((otlp.grpc_endpoint.as_deref(), otlp.http_endpoint), (Some("tempo:4317"), None));
        let keys: Vec<&str> = warnings.iter().map(|warning| warning.split(": ").next().unwrap()).collect();
        assert_eq!(keys, ["storage.trace.s3.tags", "metrics_generator.storage", "memberlist", "overrides.defaults.metrics_generator"]);
        let shown = serde_yaml_ng::to_string(&settings).unwrap();
        assert!(!shown.contains("supersecret") && shown.contains("bucket: tempo"), "{shown}");
    }

    #[test]
    fn the_mcp_server_is_off_until_asked_for() {
        assert!(!loaded("", "").unwrap().settings.query_frontend.mcp_server.enabled);
        for (text, flags) in [("", "-mcp-server.enabled"), ("query_frontend: {mcp_server: {enabled: true}}", "")] {
            let loaded = loaded(text, flags).unwrap();
            assert!(loaded.settings.query_frontend.mcp_server.enabled);
            assert!(loaded.warnings[0].starts_with("query_frontend.mcp_server.enabled: "), "{:?}", loaded.warnings);
        }
    }

    #[test]
    fn what_cannot_work_is_refused_by_key() {
        let check = |text: &str, flags: &str, expected: &str| {
            let message = loaded(text, flags).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        check("", "-target=querier", "target: 'querier' does not run alone yet; the only target of this version is all");
        check("", "-target=al", "unknown target 'al'");
        check("storage: {trace: {backend: s3}}", "", "storage.trace.s3.bucket");
        check("ingester: {max_block_bytes: 0}", "", "ingester.max_block_bytes");
        check("", "-log.level=loud", "server.log_level: expected one of debug, info, warn, error, found 'loud'");
        check("a: [", "", "reading the configuration");
        check("server: {http_listen_port: 70000}", "", "70000");
    }

    #[test]
    fn tempo_3_keeps_compaction_elsewhere() {
        let text = "backend_worker: {compaction: {block_retention: 24h}}\ncompactor: {compaction: {compaction_window: 2h, block_retention: 1h}}";
        let compaction = loaded(text, "").unwrap().settings.compactor.compaction;
        assert_eq!(compaction.block_retention, Duration::from_secs(86_400));
        assert_eq!(compaction.compaction_window, Duration::from_secs(7_200));
    }

    /// CF-1. `backend_worker` is moved before settings are read, `receivers` has any shape.
    #[test]
    fn the_schema_and_the_settings_name_the_same_keys() {
        let mut in_schema = BTreeSet::new();
        walk::paths(&schema::ROOT, &mut Vec::new(), &mut |path, node| {
            if matches!(node, schema::Node::Key(_)) && path[0] != "backend_worker" {
                in_schema.insert(path.join("."));
            }
        });
        fn leaves(value: &Value, path: &str, found: &mut BTreeSet<String>) {
            match value {
                Value::Mapping(map) => {
                    for (key, value) in map {
                        leaves(value, &format!("{path}.{}", key.as_str().unwrap()), found);
                    }
                }
                _ => drop(found.insert(path[1..].to_owned())),
            }
        }
        let mut in_settings = BTreeSet::new();
        leaves(&serde_yaml_ng::to_value(Settings::default()).unwrap(), "", &mut in_settings);
        // Set from the key of the same name at the top.
        assert!(in_settings.remove("query_frontend.stream_over_http_enabled"));
        assert_eq!(in_schema, in_settings);
    }
}
