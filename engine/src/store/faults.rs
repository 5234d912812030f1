//! A store that stops working after so many changes, for tests of what a crash leaves behind.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result, path::Path,
};

/// What becomes of the change at which the store fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LastChange {
    /// It does not happen.
    Lost,
    /// It happens, but the caller gets an error: the answer was lost.
    Unanswered,
}

/// Lets a number of changes (puts and deletes) pass, fails at the next, and then fails everything, reads too.
#[derive(Debug)]
pub(crate) struct FailingStore {
    inner: Arc<dyn ObjectStore>,
    changes_left: Arc<AtomicI64>,
    last: LastChange,
}

impl FailingStore {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, changes: i64, last: LastChange) -> Self {
        Self { inner, changes_left: Arc::new(AtomicI64::new(changes)), last }
    }

    /// Whether the store has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.changes_left.load(Ordering::SeqCst) < 0
    }

    /// Makes the store work again, for `changes` changes.
    pub(crate) fn repair(&self, changes: i64) {
        self.changes_left.store(changes, Ordering::SeqCst);
    }

    fn read(&self) -> Result<()> {
        if self.has_failed() { Err(failure()) } else { Ok(()) }
    }
}

fn failure() -> Error {
    Error::Generic { store: "failing", source: "injected failure".into() }
}

/// How a change goes: None works, `Some(true)` happens and fails, `Some(false)` only fails.
fn change(changes_left: &AtomicI64, last: LastChange) -> Option<bool> {
    match changes_left.fetch_sub(1, Ordering::SeqCst) {
        1.. => None,
        0 => Some(last == LastChange::Unanswered),
        _ => {
            changes_left.store(-1, Ordering::SeqCst);
            Some(false)
        }
    }
}

impl fmt::Display for FailingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failing")
    }
}

#[async_trait]
impl ObjectStore for FailingStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        match change(&self.changes_left, self.last) {
            None => self.inner.put_opts(location, payload, opts).await,
            Some(happens) => {
                if happens {
                    self.inner.put_opts(location, payload, opts).await?;
                }
                Err(failure())
            }
        }
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.read()?;
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.read()?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, left, last) = (self.inner.clone(), self.changes_left.clone(), self.last);
        locations
            .and_then(move |path| {
                let (inner, fate) = (inner.clone(), change(&left, last));
                async move {
                    if fate != Some(false) {
                        inner.delete_stream(futures::stream::once(std::future::ready(Ok(path.clone()))).boxed()).try_collect::<Vec<_>>().await?;
                    }
                    if fate.is_none() { Ok(path) } else { Err(failure()) }
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.read() {
            Ok(()) => self.inner.list(prefix),
            Err(error) => futures::stream::once(async { Err(error) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.read()?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        match change(&self.changes_left, self.last) {
            None => self.inner.copy_opts(from, to, options).await,
            Some(_) => Err(failure()),
        }
    }
}
