//! The object store: where blocks live. [`open`] makes one from settings; [`MeteredStore`] counts what it does and [`DurableLocal`]
//! makes a local folder keep its promises through a power failure.
//! Knows keys and bytes only, nothing of blocks.

mod durable;
#[cfg(test)]
pub(crate) mod faults;
mod metered;
mod settings;

use std::{sync::Arc, time::Duration};

pub use durable::DurableLocal;
pub use metered::{MeteredStore, StoreMetrics};
use object_store::{
    BackoffConfig, Certificate, ClientOptions, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder,
    path::Path,
    prefix::PrefixStore,
};
pub use settings::{AzureSettings, Backend, GcsSettings, LocalSettings, S3EncryptionSettings, S3Settings, Secret, StorageSettings};

use crate::error::{Error, Result};

/// Longest time for one HTTP request with its body. A part of an upload is a few megabytes, so this is a slow link, not a large block.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Bounds of the retries of one operation: number, and time from its first request.
const RETRIES_MAX: usize = 5;
const RETRY_TIMEOUT: Duration = Duration::from_secs(90);
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Opens the store that `settings` describe and counts its work in `metrics`. Sends no request: a wrong bucket or credential shows at
/// the first use. A local folder is made when it is missing. Credentials that the settings leave out come from the environment, as the
/// vendors' tools find them. Errors: `Invalid` for settings that cannot work, `Unavailable` when the local folder cannot be made.
pub fn open(settings: &StorageSettings, metrics: StoreMetrics) -> Result<Arc<dyn ObjectStore>> {
    settings.validate()?;
    Ok(match settings.backend {
        Backend::Local => Arc::new(MeteredStore::local(Arc::new(DurableLocal::open(&settings.local.path)?), metrics)),
        Backend::S3 => prefixed(Arc::new(open_s3(&settings.s3)?), &settings.s3.prefix, metrics)?,
        Backend::Gcs => prefixed(Arc::new(open_gcs(&settings.gcs)?), &settings.gcs.prefix, metrics)?,
        Backend::Azure => prefixed(Arc::new(open_azure(&settings.azure)?), &settings.azure.prefix, metrics)?,
    })
}

fn prefixed(store: Arc<dyn ObjectStore>, prefix: &str, metrics: StoreMetrics) -> Result<Arc<dyn ObjectStore>> {
    let prefix = Path::parse(prefix).map_err(|e| Error::invalid(format!("storage prefix '{prefix}'")).with_source(e))?;
    let store: Arc<dyn ObjectStore> = if prefix.as_ref().is_empty() { store } else { Arc::new(PrefixStore::new(store, prefix)) };
    Ok(Arc::new(MeteredStore::remote(store, metrics)))
}

fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig { init_backoff: BACKOFF_FIRST, max_backoff: BACKOFF_MAX, base: 2. },
        max_retries: RETRIES_MAX,
        retry_timeout: RETRY_TIMEOUT,
    }
}

fn client(allow_http: bool, skip_verify: bool) -> ClientOptions {
    ClientOptions::new()
        .with_timeout(REQUEST_TIMEOUT)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_allow_http(allow_http)
        .with_allow_invalid_certificates(skip_verify)
}

/// An endpoint as a URL: a scheme is put in front when there is none, and slashes at the end are dropped.
fn endpoint_url(endpoint: &str, insecure: bool) -> String {
    let endpoint = endpoint.trim_end_matches('/');
    match endpoint.contains("://") {
        true => endpoint.to_owned(),
        false if insecure => format!("http://{endpoint}"),
        false => format!("https://{endpoint}"),
    }
}

fn open_s3(settings: &S3Settings) -> Result<object_store::aws::AmazonS3> {
    let fixed_credentials = !settings.access_key.is_empty();
    let mut builder = if fixed_credentials { AmazonS3Builder::new() } else { AmazonS3Builder::from_env() };
    if fixed_credentials {
        builder = builder.with_access_key_id(&settings.access_key).with_secret_access_key(settings.secret_key.expose());
        if !settings.session_token.is_empty() {
            builder = builder.with_token(settings.session_token.expose());
        }
    }
    let target = s3_target(settings);
    let mut options = client(target.allow_http, settings.tls_insecure_skip_verify);
    if !settings.tls_ca_path.is_empty() {
        let doing = || format!("reading storage.trace.s3.tls_ca_path '{}'", settings.tls_ca_path);
        let pem = std::fs::read(&settings.tls_ca_path).map_err(|e| Error::invalid(doing()).with_source(e))?;
        for certificate in Certificate::from_pem_bundle(&pem).map_err(|e| Error::invalid(doing()).with_source(e))? {
            options = options.with_root_certificate(certificate);
        }
    }
    if let Some(region) = target.region {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = target.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    match settings.sse.kind.as_str() {
        "" => {}
        "SSE-S3" => builder = builder.with_config(encryption_key("aws_server_side_encryption")?, "AES256"),
        "SSE-KMS" => builder = builder.with_sse_kms_encryption(&settings.sse.kms_key_id),
        "SSE-C" => builder = builder.with_ssec_encryption(settings.sse.encryption_key.expose()),
        other => return Err(Error::invalid(format!("storage.trace.s3.sse.type '{other}' is none of SSE-S3, SSE-KMS, SSE-C"))),
    }
    builder
        .with_bucket_name(&settings.bucket)
        .with_virtual_hosted_style_request(target.virtual_hosted)
        .with_client_options(options)
        .with_retry(retry())
        .build()
        .map_err(|e| Error::invalid("opening the S3 bucket").with_source(e))
}

fn encryption_key(name: &str) -> Result<AmazonS3ConfigKey> {
    name.parse().map_err(|e: object_store::Error| Error::internal("S3 encryption key").with_source(e))
}

/// How to reach a bucket.
#[derive(Debug, PartialEq, Eq)]
struct S3Target {
    /// None leaves it to the region. With the bucket's name in it when `virtual_hosted`.
    endpoint: Option<String>,
    region: Option<String>,
    virtual_hosted: bool,
    allow_http: bool,
}

/// Amazon's own endpoints are asked with the bucket in the host name, all others (MinIO, moto, Ceph) with the bucket in the path.
/// A bucket with dots in its name does not match the certificate, so over TLS it goes into the path too.
fn s3_target(settings: &S3Settings) -> S3Target {
    let amazon = settings.endpoint.is_empty() || settings.endpoint.trim_end_matches('/').contains(".amazonaws.com");
    let virtual_hosted = match settings.bucket_lookup_type {
        1 => true,
        2 => false,
        _ => amazon && !settings.forcepathstyle && (settings.insecure || !settings.bucket.contains('.')),
    };
    let region = match (settings.region.is_empty(), amazon) {
        (false, _) => Some(settings.region.clone()),
        (true, true) => region_of_endpoint(&settings.endpoint),
        (true, false) => Some("us-east-1".to_owned()),
    };
    let url = (!settings.endpoint.is_empty()).then(|| endpoint_url(&settings.endpoint, settings.insecure));
    let allow_http = settings.insecure || url.as_ref().is_some_and(|url| url.starts_with("http://"));
    let endpoint = url.map(|url| match url.split_once("://") {
        Some((scheme, host)) if virtual_hosted => format!("{scheme}://{}.{host}", settings.bucket),
        _ => url,
    });
    S3Target { endpoint, region, virtual_hosted, allow_http }
}

/// `eu-west-1` of `s3.eu-west-1.amazonaws.com` and `s3.dualstack.eu-west-1.amazonaws.com`.
fn region_of_endpoint(endpoint: &str) -> Option<String> {
    let host = endpoint.split_once("://").map_or(endpoint, |(_, host)| host);
    let (names, _) = host.split_once(".amazonaws.com")?;
    let region = names.strip_prefix("s3.dualstack.").or_else(|| names.strip_prefix("s3.")).or_else(|| names.strip_prefix("s3-"))?;
    (!region.is_empty() && !region.contains('.')).then(|| region.to_owned())
}

fn open_gcs(settings: &GcsSettings) -> Result<object_store::gcp::GoogleCloudStorage> {
    let mut builder =
        if settings.insecure { GoogleCloudStorageBuilder::new().with_skip_signature(true) } else { GoogleCloudStorageBuilder::from_env() };
    let mut allow_http = settings.insecure;
    if let Some(url) = gcs_base_url(settings) {
        allow_http |= url.starts_with("http://");
        builder = builder.with_base_url(&url);
    }
    builder
        .with_bucket_name(&settings.bucket_name)
        .with_client_options(client(allow_http, settings.insecure))
        .with_retry(retry())
        .build()
        .map_err(|e| Error::invalid("opening the GCS bucket").with_source(e))
}

/// Tempo's endpoint names the root of the JSON API; object keys are asked for below the host itself.
fn gcs_base_url(settings: &GcsSettings) -> Option<String> {
    if settings.endpoint.is_empty() {
        return None;
    }
    let url = endpoint_url(&settings.endpoint, false);
    Some(url.strip_suffix("/storage/v1").unwrap_or(&url).to_owned())
}

fn open_azure(settings: &AzureSettings) -> Result<object_store::azure::MicrosoftAzure> {
    let mut builder = if settings.storage_account_key.is_empty() { MicrosoftAzureBuilder::from_env() } else { MicrosoftAzureBuilder::new() };
    if !settings.storage_account_key.is_empty() {
        builder = builder.with_access_key(settings.storage_account_key.expose());
    }
    if settings.use_managed_identity && !settings.user_assigned_id.is_empty() {
        builder = builder.with_client_id(&settings.user_assigned_id);
    }
    let url = azure_url(settings);
    builder
        .with_account(&settings.storage_account_name)
        .with_container_name(&settings.container_name)
        .with_client_options(client(url.starts_with("http://"), false))
        .with_endpoint(url)
        .with_retry(retry())
        .build()
        .map_err(|e| Error::invalid("opening the Azure container").with_source(e))
}

/// The account is part of the host name (`account.blob.core.windows.net`), except where the suffix is an emulator: an address, a plain
/// host name or anything with a port or scheme. There the account is the first part of the path, and plain HTTP is spoken unless the
/// suffix says otherwise.
fn azure_url(settings: &AzureSettings) -> String {
    let (account, suffix) = (&settings.storage_account_name, settings.endpoint_suffix.trim_matches('/'));
    let host = suffix.split(':').next().unwrap_or_default();
    let emulator = suffix.contains(':') || !host.contains('.') || host.parse::<std::net::Ipv4Addr>().is_ok();
    match (emulator, suffix.contains("://")) {
        (true, true) => format!("{suffix}/{account}"),
        (true, false) => format!("http://{suffix}/{account}"),
        (false, _) => format!("https://{account}.{}", suffix.trim_start_matches('.')),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use object_store::{ObjectStoreExt, PutPayload};

    use super::*;

    fn metrics() -> StoreMetrics {
        StoreMetrics::new(&prometheus::Registry::new()).unwrap()
    }

    #[test]
    fn s3_endpoints_are_understood() {
        let check = |change: fn(&mut S3Settings), endpoint: Option<&str>, region: Option<&str>, virtual_hosted, allow_http| {
            let mut settings = S3Settings { bucket: "traces".into(), ..Default::default() };
            change(&mut settings);
            let expected = S3Target { endpoint: endpoint.map(Into::into), region: region.map(Into::into), virtual_hosted, allow_http };
            assert_eq!(s3_target(&settings), expected);
        };
        check(|_| {}, None, None, true, false);
        check(
            |s| s.endpoint = "s3.dualstack.us-east-2.amazonaws.com".into(),
            Some("https://traces.s3.dualstack.us-east-2.amazonaws.com"),
            Some("us-east-2"),
            true,
            false,
        );
        check(
            |s| (s.endpoint, s.forcepathstyle) = ("s3.eu-west-1.amazonaws.com".into(), true),
            Some("https://s3.eu-west-1.amazonaws.com"),
            Some("eu-west-1"),
            false,
            false,
        );
        check(|s| (s.endpoint, s.insecure) = ("minio:9000".into(), true), Some("http://minio:9000"), Some("us-east-1"), false, true);
        check(|s| s.endpoint = "http://127.0.0.1:5000/".into(), Some("http://127.0.0.1:5000"), Some("us-east-1"), false, true);
        check(
            |s| (s.endpoint, s.bucket, s.region) = ("s3.amazonaws.com".into(), "a.b".into(), "eu-north-1".into()),
            Some("https://s3.amazonaws.com"),
            Some("eu-north-1"),
            false,
            false,
        );
        check(
            |s| (s.endpoint, s.bucket_lookup_type) = ("objects.example.com".into(), 1),
            Some("https://traces.objects.example.com"),
            Some("us-east-1"),
            true,
            false,
        );
    }

    #[test]
    fn azure_suffixes_are_understood() {
        let check = |suffix: &str, expected: &str| {
            let settings = AzureSettings { storage_account_name: "acc".into(), endpoint_suffix: suffix.into(), ..Default::default() };
            assert_eq!(azure_url(&settings), expected);
        };
        assert_eq!(azure_url(&AzureSettings { storage_account_name: "acc".into(), ..Default::default() }), "https://acc.blob.core.windows.net");
        check(".blob.core.chinacloudapi.cn", "https://acc.blob.core.chinacloudapi.cn");
        check("127.0.0.1:10000", "http://127.0.0.1:10000/acc");
        check("azurite:10000/", "http://azurite:10000/acc");
        check("https://azurite.test:10000", "https://azurite.test:10000/acc");
        check("azurite", "http://azurite/acc");
    }

    #[test]
    fn gcs_endpoints_are_understood() {
        let check = |endpoint: &str, expected: Option<&str>| {
            let settings = GcsSettings { endpoint: endpoint.into(), ..Default::default() };
            assert_eq!(gcs_base_url(&settings).as_deref(), expected);
        };
        check("", None);
        check("https://gcs:4443/storage/v1/", Some("https://gcs:4443"));
        check("gcs.example.com", Some("https://gcs.example.com"));
        check("http://127.0.0.1:4443", Some("http://127.0.0.1:4443"));
    }

    #[test]
    fn every_backend_opens_without_a_request() {
        let mut settings = StorageSettings { backend: Backend::S3, ..Default::default() };
        settings.s3.bucket = "traces".into();
        settings.s3.endpoint = "127.0.0.1:1".into();
        settings.s3.insecure = true;
        settings.s3.access_key = "key".into();
        settings.s3.secret_key = Secret::new("secret");
        settings.s3.prefix = "a/b".into();
        for kind in ["", "SSE-S3", "SSE-KMS"] {
            settings.s3.sse.kind = kind.into();
            open(&settings, metrics()).unwrap();
        }
        settings.s3.sse.kind = "rot13".into();
        assert!(open(&settings, metrics()).unwrap_err().message().contains("storage.trace.s3.sse.type"));

        settings.backend = Backend::Gcs;
        settings.gcs.bucket_name = "traces".into();
        settings.gcs.insecure = true;
        open(&settings, metrics()).unwrap();

        settings.backend = Backend::Azure;
        settings.azure.container_name = "traces".into();
        settings.azure.storage_account_name = "acc".into();
        settings.azure.storage_account_key = Secret::new("c2VjcmV0");
        open(&settings, metrics()).unwrap();
    }

    #[tokio::test]
    async fn a_local_folder_is_made_and_keeps_odd_tenant_names() {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = StorageSettings::default();
        settings.local.path = folder.path().join("not/yet/there").to_string_lossy().into_owned();
        let store = open(&settings, metrics()).unwrap();
        let path = Path::parse("a*b!'(c)/x").unwrap();
        store.put(&path, PutPayload::from_static(b"1")).await.unwrap();
        assert!(folder.path().join("not/yet/there/a*b!'(c)/x").is_file());
        assert_eq!(store.list_with_delimiter(None).await.unwrap().common_prefixes, [Path::parse("a*b!'(c)").unwrap()]);
    }
}
