//! Counts what is asked of an object store: requests and their time by operation and status, and bytes.

use std::{fmt, ops::Range, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, OBJECT_STORE_COALESCE_DEFAULT, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart, coalesce_ranges, path::Path,
};
use prometheus::{HistogramOpts, HistogramVec, IntCounter, Registry, core::Collector};

use crate::{clock::Stopwatch, error};

/// Status of a request whose caller went away before the answer.
const ABANDONED: &str = "499";

/// What a [`MeteredStore`] counts. Clones count together.
#[derive(Debug, Clone)]
pub struct StoreMetrics {
    request_seconds: HistogramVec,
    read_bytes: IntCounter,
    written_bytes: IntCounter,
}

impl StoreMetrics {
    /// Registers the metrics. Errors: `Internal` when the registry has them already.
    pub fn new(registry: &Registry) -> error::Result<Self> {
        let failed = |e: prometheus::Error| error::Error::internal("registering the store's metrics").with_source(e);
        let buckets = prometheus::exponential_buckets(0.005, 4., 6).map_err(failed)?;
        let opts =
            HistogramOpts::new("tempodb_backend_request_duration_seconds", "Time of requests to the object store, in seconds").buckets(buckets);
        let metrics = Self {
            request_seconds: HistogramVec::new(opts, &["operation", "status_code"]).map_err(failed)?,
            read_bytes: IntCounter::new("skein_store_read_bytes_total", "Bytes read from the object store").map_err(failed)?,
            written_bytes: IntCounter::new("skein_store_written_bytes_total", "Bytes written to the object store").map_err(failed)?,
        };
        registry.register(Box::new(metrics.request_seconds.clone())).map_err(failed)?;
        registry.register(Box::new(metrics.read_bytes.clone())).map_err(failed)?;
        registry.register(Box::new(metrics.written_bytes.clone())).map_err(failed)?;
        Ok(metrics)
    }

    /// Requests of one operation so far: `GET`, `HEAD`, `LIST`, `PUT`, `POST`, `DELETE`, `COPY` or `RENAME`, whatever their status.
    pub fn requests(&self, operation: &str) -> u64 {
        let is_operation =
            |metric: &&prometheus::proto::Metric| metric.get_label().iter().any(|label| label.name() == "operation" && label.value() == operation);
        let families = self.request_seconds.collect();
        families.iter().flat_map(|family| family.get_metric()).filter(is_operation).map(|m| m.get_histogram().get_sample_count()).sum()
    }

    /// Bytes read so far.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.get()
    }

    /// Bytes written so far.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.get()
    }

    fn start(&self, operation: &'static str) -> Request {
        Request { seconds: self.request_seconds.clone(), operation, watch: Stopwatch::start(), answered: false }
    }
}

/// A request under way; counted as abandoned when it is dropped without an answer.
struct Request {
    seconds: HistogramVec,
    operation: &'static str,
    watch: Stopwatch,
    answered: bool,
}

impl Request {
    fn answer<T>(mut self, result: &Result<T>, success: &'static str) {
        self.answered = true;
        self.observe(status_code(result, success));
    }

    fn observe(&self, status: &str) {
        self.seconds.with_label_values(&[self.operation, status]).observe(self.watch.seconds());
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if !self.answered {
            self.observe(ABANDONED);
        }
    }
}

/// The HTTP status that stands for a result; a local store answers in the same terms.
fn status_code<T>(result: &Result<T>, success: &'static str) -> &'static str {
    match result {
        Ok(_) => success,
        Err(Error::NotModified { .. }) => "304",
        Err(Error::InvalidPath { .. }) => "400",
        Err(Error::Unauthenticated { .. }) => "401",
        Err(Error::PermissionDenied { .. }) => "403",
        Err(Error::NotFound { .. }) => "404",
        Err(Error::AlreadyExists { .. }) => "409",
        Err(Error::Precondition { .. }) => "412",
        Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => "501",
        Err(_) => "500",
    }
}

/// Counts every request to the store below it. A listing counts as one request, however many pages it has.
#[derive(Debug)]
pub struct MeteredStore {
    inner: Arc<dyn ObjectStore>,
    metrics: StoreMetrics,
    /// Whether several ranges are one request to the store, or one for each group of near ranges.
    ranges_at_once: bool,
}

impl MeteredStore {
    /// Meters a store on the network. Ranges of one object that are near each other are read with one request, and each request counts.
    pub fn remote(inner: Arc<dyn ObjectStore>, metrics: StoreMetrics) -> Self {
        Self { inner, metrics, ranges_at_once: false }
    }

    /// Meters a store that reads any set of ranges at once and without reading between them, as files do.
    pub fn local(inner: Arc<dyn ObjectStore>, metrics: StoreMetrics) -> Self {
        Self { inner, metrics, ranges_at_once: true }
    }
}

impl fmt::Display for MeteredStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.inner, f)
    }
}

#[async_trait]
impl ObjectStore for MeteredStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let bytes = payload.content_length() as u64;
        let request = self.metrics.start("PUT");
        let result = self.inner.put_opts(location, payload, opts).await;
        request.answer(&result, "200");
        if result.is_ok() {
            self.metrics.written_bytes.inc_by(bytes);
        }
        result
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let request = self.metrics.start("POST");
        let result = self.inner.put_multipart_opts(location, opts).await;
        request.answer(&result, "200");
        Ok(Box::new(MeteredUpload { inner: result?, metrics: self.metrics.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let head = options.head;
        let success = if options.range.is_some() { "206" } else { "200" };
        let request = self.metrics.start(if head { "HEAD" } else { "GET" });
        let result = self.inner.get_opts(location, options).await;
        request.answer(&result, success);
        let mut result = result?;
        if !head {
            let read_bytes = self.metrics.read_bytes.clone();
            result.payload = match result.payload {
                GetResultPayload::Stream(stream) => {
                    GetResultPayload::Stream(stream.inspect_ok(move |bytes| read_bytes.inc_by(bytes.len() as u64)).boxed())
                }
                file => {
                    read_bytes.inc_by(result.range.end - result.range.start);
                    file
                }
            };
        }
        Ok(result)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        if !self.ranges_at_once {
            return coalesce_ranges(ranges, |range| self.get_range(location, range), OBJECT_STORE_COALESCE_DEFAULT).await;
        }
        let request = self.metrics.start("GET");
        let result = self.inner.get_ranges(location, ranges).await;
        request.answer(&result, "206");
        let result = result?;
        self.metrics.read_bytes.inc_by(result.iter().map(|bytes| bytes.len() as u64).sum());
        Ok(result)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let metrics = self.metrics.clone();
        self.inner.delete_stream(locations).inspect(move |result| metrics.start("DELETE").answer(result, "204")).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        metered_list(self.inner.list(prefix), self.metrics.start("LIST"))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        metered_list(self.inner.list_with_offset(prefix, offset), self.metrics.start("LIST"))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let request = self.metrics.start("LIST");
        let result = self.inner.list_with_delimiter(prefix).await;
        request.answer(&result, "200");
        result
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let request = self.metrics.start("COPY");
        let result = self.inner.copy_opts(from, to, options).await;
        request.answer(&result, "200");
        result
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        let request = self.metrics.start("RENAME");
        let result = self.inner.rename_opts(from, to, options).await;
        request.answer(&result, "200");
        result
    }
}

/// Answers `request` at the end of the listing or at its first error.
fn metered_list(stream: BoxStream<'static, Result<ObjectMeta>>, request: Request) -> BoxStream<'static, Result<ObjectMeta>> {
    futures::stream::unfold((stream, Some(request)), |(mut stream, mut request)| async move {
        let item = stream.next().await;
        match (&item, request.take()) {
            (Some(Ok(_)), pending) => request = pending,
            (Some(failed), Some(pending)) => pending.answer(failed, "200"),
            (None, Some(pending)) => pending.answer(&Ok(()), "200"),
            (_, None) => {}
        }
        item.map(|item| (item, (stream, request)))
    })
    .boxed()
}

#[derive(Debug)]
struct MeteredUpload {
    inner: Box<dyn MultipartUpload>,
    metrics: StoreMetrics,
}

#[async_trait]
impl MultipartUpload for MeteredUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (bytes, metrics) = (data.content_length() as u64, self.metrics.clone());
        let part = self.inner.put_part(data);
        Box::pin(async move {
            let request = metrics.start("PUT");
            let result = part.await;
            request.answer(&result, "200");
            if result.is_ok() {
                metrics.written_bytes.inc_by(bytes);
            }
            result
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let request = self.metrics.start("POST");
        let result = self.inner.complete().await;
        request.answer(&result, "200");
        result
    }

    async fn abort(&mut self) -> Result<()> {
        let request = self.metrics.start("DELETE");
        let result = self.inner.abort().await;
        request.answer(&result, "204");
        result
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use object_store::memory::InMemory;

    use super::*;

    fn metered() -> (MeteredStore, StoreMetrics, Registry) {
        let registry = Registry::new();
        let metrics = StoreMetrics::new(&registry).unwrap();
        (MeteredStore::remote(Arc::new(InMemory::new()), metrics.clone()), metrics, registry)
    }

    #[tokio::test]
    async fn requests_and_bytes_are_counted() {
        let (store, metrics, registry) = metered();
        let path = Path::from("t/x");
        store.put(&path, PutPayload::from_static(b"0123456789")).await.unwrap();
        store.get_range(&path, 2..5).await.unwrap();
        store.get(&path).await.unwrap().bytes().await.unwrap();
        store.head(&path).await.unwrap();
        store.get(&Path::from("t/y")).await.unwrap_err();
        assert_eq!(store.list(None).try_collect::<Vec<_>>().await.unwrap().len(), 1);
        store.delete(&path).await.unwrap();

        let counts = ["PUT", "GET", "HEAD", "LIST", "DELETE"].map(|operation| metrics.requests(operation));
        assert_eq!(counts, [1, 3, 1, 1, 1]);
        assert_eq!((metrics.read_bytes(), metrics.written_bytes()), (13, 10));
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        assert!(text.contains(r#"tempodb_backend_request_duration_seconds_count{operation="GET",status_code="404"} 1"#), "{text}");
        assert!(text.contains(r#"tempodb_backend_request_duration_seconds_count{operation="GET",status_code="206"} 1"#), "{text}");
    }

    #[tokio::test]
    async fn each_group_of_near_ranges_is_one_request() {
        let (store, metrics, _) = metered();
        let path = Path::from("x");
        let far = 3 * OBJECT_STORE_COALESCE_DEFAULT;
        store.put(&path, vec![7u8; far as usize].into()).await.unwrap();
        store.get_ranges(&path, &[0..10, 20..30, far - 10..far]).await.unwrap();
        assert_eq!((metrics.requests("GET"), metrics.read_bytes()), (2, 40));
    }

    #[tokio::test]
    async fn an_upload_counts_its_parts() {
        let (store, metrics, _) = metered();
        let path = Path::from("x");
        let mut upload = store.put_multipart(&path).await.unwrap();
        upload.put_part(PutPayload::from_static(b"abc")).await.unwrap();
        upload.put_part(PutPayload::from_static(b"de")).await.unwrap();
        upload.complete().await.unwrap();
        assert_eq!((metrics.requests("PUT"), metrics.requests("POST"), metrics.written_bytes()), (2, 2, 5));
    }

    #[tokio::test]
    async fn an_abandoned_listing_is_told_apart() {
        let (store, metrics, registry) = metered();
        store.put(&Path::from("x"), PutPayload::from_static(b"a")).await.unwrap();
        drop(store.list(None));
        assert_eq!(metrics.requests("LIST"), 1);
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        assert!(text.contains(r#"{operation="LIST",status_code="499"} 1"#), "{text}");
    }
}
