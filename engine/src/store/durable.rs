//! A local folder as an object store whose writes are on the disk when they return.
//! A block must outlive the log it came from, so file and folders are synced; `meta.json` in particular is whole or absent.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    ops::Range,
    path::{Path as FilePath, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, RenameOptions, Result, UploadPart, local::LocalFileSystem, path::Path,
};

use crate::error;

/// Age from which an unfinished file of a process that died is removed. No upload takes this long.
const STALE_AFTER: Duration = Duration::from_secs(24 * 3600);

/// A folder. Writes go to a file beside the target (`name#1`, which listings do not show), are synced, then renamed.
#[derive(Debug)]
pub struct DurableLocal {
    inner: LocalFileSystem,
    root: PathBuf,
}

impl DurableLocal {
    /// Opens a folder, making it when it is missing, and removes unfinished files older than a day.
    /// Errors: `Unavailable` when it cannot be made or opened.
    pub fn open(path: impl AsRef<FilePath>) -> error::Result<Self> {
        let path = path.as_ref();
        let failed = |e: io::Error| error::Error::unavailable(format!("opening the block folder '{}'", path.display())).with_source(e);
        fs::create_dir_all(path).map_err(failed)?;
        let root = path.canonicalize().map_err(failed)?;
        remove_stale(&root, STALE_AFTER);
        // Empty folders are left by a plain delete and would be listed as blocks for ever.
        let inner = LocalFileSystem::new_with_prefix(&root)?.with_automatic_cleanup(true);
        Ok(Self { inner, root })
    }

    /// Runs file work on a thread that may block.
    async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T> {
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(source)) => Err(Error::Generic { store: "local folder", source: source.into() }),
            Err(source) => Err(source.into()),
        }
    }

    async fn sync(&self, location: &Path) -> Result<()> {
        let (path, root) = (self.inner.path_to_filesystem(location)?, self.root.clone());
        Self::blocking(move || File::open(&path)?.sync_all().and_then(|()| sync_folders(&path, &root))).await
    }
}

/// Syncs the folders that hold `path`, up to the root: each may be new.
fn sync_folders(path: &FilePath, root: &FilePath) -> io::Result<()> {
    for folder in path.ancestors().skip(1).take_while(|folder| folder.starts_with(root)) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Makes a new file beside `path`, with the folders above it.
fn create_beside(path: &FilePath) -> io::Result<(File, PathBuf)> {
    let mut number = 1u64;
    loop {
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!("#{number}"));
        let beside = PathBuf::from(beside);
        match OpenOptions::new().write(true).create_new(true).open(&beside) {
            Ok(file) => return Ok((file, beside)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(e) if e.kind() == io::ErrorKind::NotFound => fs::create_dir_all(path.parent().ok_or(e)?)?,
            Err(e) => return Err(e),
        }
    }
}

/// Writes and syncs `payload` beside `path`, then renames it into place.
fn write_synced(path: &FilePath, root: &FilePath, payload: &PutPayload) -> io::Result<()> {
    let (mut file, beside) = create_beside(path)?;
    let written = payload.iter().try_for_each(|bytes| file.write_all(bytes)).and_then(|()| file.sync_all());
    drop(file);
    if let Err(e) = written.and_then(|()| fs::rename(&beside, path)) {
        // The first error is the one to tell; what stays behind is removed by a later start.
        let _ = fs::remove_file(&beside);
        return Err(e);
    }
    sync_folders(path, root)
}

/// Whether a file name is that of an unfinished write.
fn is_unfinished(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn remove_stale(folder: &FilePath, stale_after: Duration) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            remove_stale(&entry.path(), stale_after);
        } else if is_unfinished(&entry.file_name().to_string_lossy())
            && meta.modified().is_ok_and(|time| time.elapsed().is_ok_and(|age| age >= stale_after))
            && let Err(error) = fs::remove_file(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "cannot remove an unfinished file");
        }
    }
}

impl fmt::Display for DurableLocal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.root.display())
    }
}

#[async_trait]
impl ObjectStore for DurableLocal {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        if opts.mode != PutMode::Overwrite || !opts.attributes.is_empty() {
            let result = self.inner.put_opts(location, payload, opts).await?;
            self.sync(location).await?;
            return Ok(result);
        }
        let (path, root) = (self.inner.path_to_filesystem(location)?, self.root.clone());
        Self::blocking(move || write_synced(&path, &root, &payload)).await?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(location, opts).await?;
        Ok(Box::new(DurableUpload { inner, path: self.inner.path_to_filesystem(location)?, root: self.root.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await?;
        self.sync(to).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await?;
        self.sync(to).await
    }
}

#[derive(Debug)]
struct DurableUpload {
    inner: Box<dyn MultipartUpload>,
    path: PathBuf,
    root: PathBuf,
}

#[async_trait]
impl MultipartUpload for DurableUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let result = self.inner.complete().await?;
        let (path, root) = (self.path.clone(), self.root.clone());
        DurableLocal::blocking(move || File::open(&path)?.sync_all().and_then(|()| sync_folders(&path, &root))).await?;
        Ok(result)
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures::TryStreamExt;
    use object_store::ObjectStoreExt;

    use super::*;

    fn names(folder: &FilePath) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn writes_replace_and_leave_nothing_beside() {
        let folder = tempfile::tempdir().unwrap();
        let store = DurableLocal::open(folder.path()).unwrap();
        let path = Path::from("t/b/meta.json");
        for text in ["first", "second"] {
            store.put(&path, text.into()).await.unwrap();
            assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), text);
        }
        let mut upload = store.put_multipart(&Path::from("t/b/data.parquet")).await.unwrap();
        upload.put_part(PutPayload::from_static(b"ab")).await.unwrap();
        upload.put_part(PutPayload::from_static(b"c")).await.unwrap();
        upload.complete().await.unwrap();
        assert_eq!(fs::read(folder.path().join("t/b/data.parquet")).unwrap(), b"abc");
        assert_eq!(names(&folder.path().join("t/b")), ["data.parquet", "meta.json"]);
    }

    #[tokio::test]
    async fn a_create_does_not_replace() {
        let folder = tempfile::tempdir().unwrap();
        let store = DurableLocal::open(folder.path()).unwrap();
        let path = Path::from("x");
        store.put_opts(&path, "first".into(), PutMode::Create.into()).await.unwrap();
        let error = store.put_opts(&path, "second".into(), PutMode::Create.into()).await.unwrap_err();
        assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "first");
    }

    #[tokio::test]
    async fn a_failed_write_leaves_the_old_object() {
        let folder = tempfile::tempdir().unwrap();
        let store = DurableLocal::open(folder.path()).unwrap();
        // A folder in the place of the target: the rename fails.
        fs::create_dir_all(folder.path().join("t/x/inside")).unwrap();
        store.put(&Path::from("t/x"), "text".into()).await.unwrap_err();
        assert_eq!(names(&folder.path().join("t")), ["x"]);
    }

    #[tokio::test]
    async fn unfinished_files_are_not_listed_and_removed_when_stale() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("t")).unwrap();
        for name in ["x", "x#1", "y#2", "z#a"] {
            fs::write(folder.path().join("t").join(name), "text").unwrap();
        }
        let store = DurableLocal::open(folder.path()).unwrap();
        let listed: Vec<_> = store.list(None).map_ok(|meta| meta.location.to_string()).try_collect().await.unwrap();
        assert!(listed.iter().all(|path| !path.ends_with("#1") && !path.ends_with("#2")), "{listed:?}");
        assert_eq!(names(&folder.path().join("t")).len(), 4, "they are young: another process may be writing them");
        remove_stale(folder.path(), Duration::ZERO);
        assert_eq!(names(&folder.path().join("t")), ["x", "z#a"]);
    }

    #[tokio::test]
    async fn deleting_the_last_object_removes_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let store = DurableLocal::open(folder.path()).unwrap();
        store.put(&Path::from("t/b/x"), "text".into()).await.unwrap();
        store.delete(&Path::from("t/b/x")).await.unwrap();
        assert!(names(folder.path()).is_empty());
    }
}
