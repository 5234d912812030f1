//! Settings of the store, by Tempo's names below `storage.trace`. Only the keys that mean something here.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    clock::go_duration,
    error::{Error, Result},
};

/// A value that is never shown: it prints and serialises as asterisks.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Takes over a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself, for the place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn shown(&self) -> &'static str {
        if self.0.is_empty() { "" } else { "********" }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shown())
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.shown())
    }
}

/// The kind of store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// A folder of this machine; for a single process.
    #[default]
    Local,
    /// Amazon S3 and everything that speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
}

/// `storage.trace`: where blocks are kept, and how the blocklist follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageSettings {
    /// Which of the sections below is used.
    pub backend: Backend,
    /// `local`.
    pub local: LocalSettings,
    /// `s3`.
    pub s3: S3Settings,
    /// `gcs`.
    pub gcs: GcsSettings,
    /// `azure`.
    pub azure: AzureSettings,
    /// How often the store is listed for blocks that others wrote. 0 is the default.
    #[serde(with = "go_duration")]
    pub blocklist_poll: Duration,
    /// Metas read at the same time per tenant. 0 is the default.
    pub blocklist_poll_concurrency: usize,
    /// Tenants listed at the same time. 0 is 1.
    pub blocklist_poll_tenant_concurrency: usize,
}

const BLOCKLIST_POLL: Duration = Duration::from_secs(300);
const BLOCKLIST_POLL_CONCURRENCY: usize = 50;

impl Default for StorageSettings {
    fn default() -> Self {
        Self {
            backend: Backend::Local,
            local: LocalSettings::default(),
            s3: S3Settings::default(),
            gcs: GcsSettings::default(),
            azure: AzureSettings::default(),
            blocklist_poll: BLOCKLIST_POLL,
            blocklist_poll_concurrency: BLOCKLIST_POLL_CONCURRENCY,
            blocklist_poll_tenant_concurrency: 0,
        }
    }
}

impl StorageSettings {
    /// The poll period, with the default in place of 0.
    pub fn poll_interval(&self) -> Duration {
        if self.blocklist_poll.is_zero() { BLOCKLIST_POLL } else { self.blocklist_poll }
    }

    /// Metas read at the same time per tenant; at least one.
    pub fn poll_concurrency(&self) -> usize {
        if self.blocklist_poll_concurrency == 0 { BLOCKLIST_POLL_CONCURRENCY } else { self.blocklist_poll_concurrency }
    }

    /// Tenants listed at the same time; at least one.
    pub fn poll_tenant_concurrency(&self) -> usize {
        self.blocklist_poll_tenant_concurrency.max(1)
    }

    /// Checks what the chosen backend needs. Errors: `Invalid`, naming the key.
    pub fn validate(&self) -> Result<()> {
        let needed: &[(&str, &str)] = match self.backend {
            Backend::Local => &[("local.path", &self.local.path)],
            Backend::S3 => &[("s3.bucket", &self.s3.bucket)],
            Backend::Gcs => &[("gcs.bucket_name", &self.gcs.bucket_name)],
            Backend::Azure => {
                &[("azure.container_name", &self.azure.container_name), ("azure.storage_account_name", &self.azure.storage_account_name)]
            }
        };
        match needed.iter().find(|(_, value)| value.is_empty()) {
            Some((key, _)) => Err(Error::invalid(format!("storage.trace.{key} must be set for this backend"))),
            None if self.backend == Backend::Azure && self.azure.use_federated_token && !self.azure.storage_account_key.is_empty() => {
                Err(Error::invalid("storage.trace.azure.use_federated_token and storage.trace.azure.storage_account_key exclude each other"))
            }
            None if self.backend == Backend::S3 && self.s3.access_key.is_empty() != self.s3.secret_key.is_empty() => {
                Err(Error::invalid("storage.trace.s3.access_key and storage.trace.s3.secret_key must be set together"))
            }
            None => Ok(()),
        }
    }
}

/// `storage.trace.local`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LocalSettings {
    /// The folder; made when it is missing.
    pub path: String,
}

impl Default for LocalSettings {
    fn default() -> Self {
        Self { path: "skein-data/blocks".into() }
    }
}

/// `storage.trace.s3`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct S3Settings {
    /// The bucket.
    pub bucket: String,
    /// Put in front of every key.
    pub prefix: String,
    /// Host, host and port, or URL. Empty is Amazon's for the region.
    pub endpoint: String,
    /// Empty is taken from the endpoint or the environment, else us-east-1.
    pub region: String,
    /// Empty takes credentials from the environment, a web identity or the instance.
    pub access_key: String,
    /// Belongs to `access_key`.
    pub secret_key: Secret,
    /// For temporary credentials.
    pub session_token: Secret,
    /// Speaks plain HTTP to an endpoint without a scheme.
    pub insecure: bool,
    /// Puts the bucket into the path even for Amazon's endpoints.
    pub forcepathstyle: bool,
    /// 0 decides by endpoint, 1 puts the bucket into the host name, 2 into the path.
    pub bucket_lookup_type: u8,
    /// Trusts any certificate.
    pub tls_insecure_skip_verify: bool,
    /// A file of certificates (PEM) to trust besides the system's.
    pub tls_ca_path: String,
    /// Encryption by the server.
    pub sse: S3EncryptionSettings,
}

/// `storage.trace.s3.sse`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct S3EncryptionSettings {
    /// Empty, `SSE-S3`, `SSE-KMS` or `SSE-C`.
    #[serde(rename = "type")]
    pub kind: String,
    /// For SSE-KMS.
    pub kms_key_id: String,
    /// For SSE-C: base64.
    pub encryption_key: Secret,
}

/// `storage.trace.gcs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GcsSettings {
    /// The bucket.
    pub bucket_name: String,
    /// Put in front of every key.
    pub prefix: String,
    /// Empty is Google's.
    pub endpoint: String,
    /// Sends no credentials, allows plain HTTP and trusts any certificate: for emulators.
    pub insecure: bool,
}

/// `storage.trace.azure`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AzureSettings {
    /// The account.
    pub storage_account_name: String,
    /// Empty takes credentials from the environment, a federated token or a managed identity.
    pub storage_account_key: Secret,
    /// The container.
    pub container_name: String,
    /// Put in front of every key.
    pub prefix: String,
    /// What follows the account in the host name, or the address of an emulator.
    pub endpoint_suffix: String,
    /// Asks the instance for credentials.
    pub use_managed_identity: bool,
    /// Requires a federated token; the environment names it (`AZURE_FEDERATED_TOKEN_FILE`), and without this key too it is used when
    /// it is there.
    pub use_federated_token: bool,
    /// The managed identity to use where an instance has several.
    pub user_assigned_id: String,
}

impl Default for AzureSettings {
    fn default() -> Self {
        Self {
            storage_account_name: String::new(),
            storage_account_key: Secret::default(),
            container_name: String::new(),
            prefix: String::new(),
            endpoint_suffix: "blob.core.windows.net".into(),
            use_managed_identity: false,
            use_federated_token: false,
            user_assigned_id: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tempos_keys_are_read_and_others_refused() {
        let settings: StorageSettings = serde_json::from_str(
            r#"{"backend": "s3", "blocklist_poll": "90s", "s3": {"bucket": "b", "access_key": "k", "secret_key": "s", "sse": {"type": "SSE-S3"}}}"#,
        )
        .unwrap();
        assert_eq!((settings.backend, settings.poll_interval()), (Backend::S3, Duration::from_secs(90)));
        assert_eq!((settings.s3.secret_key.expose(), settings.s3.sse.kind.as_str()), ("s", "SSE-S3"));
        settings.validate().unwrap();
        assert!(serde_json::from_str::<StorageSettings>(r#"{"s3": {"buckett": "b"}}"#).unwrap_err().to_string().contains("buckett"));
    }

    #[test]
    fn missing_keys_are_named() {
        let check = |json: &str, key: &str| {
            let error = serde_json::from_str::<StorageSettings>(json).unwrap().validate().unwrap_err();
            assert!(error.message().contains(key), "{error}");
        };
        check(r#"{"local": {"path": ""}}"#, "storage.trace.local.path");
        check(r#"{"backend": "s3"}"#, "storage.trace.s3.bucket");
        check(r#"{"backend": "s3", "s3": {"bucket": "b", "access_key": "k"}}"#, "storage.trace.s3.secret_key");
        check(r#"{"backend": "gcs"}"#, "storage.trace.gcs.bucket_name");
        check(r#"{"backend": "azure", "azure": {"container_name": "c"}}"#, "storage.trace.azure.storage_account_name");
    }

    #[test]
    fn secrets_are_never_shown() {
        let mut settings = StorageSettings::default();
        settings.s3.secret_key = Secret::new("hunter2");
        settings.azure.storage_account_key = Secret::new("hunter2");
        assert!(!format!("{settings:?}").contains("hunter2"));
        assert!(!serde_json::to_string(&settings).unwrap().contains("hunter2"));
    }
}
