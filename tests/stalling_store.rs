//! A read-only server of the S3 protocol over a folder of blocks, which leaves reads of spans unanswered when it is told to. So a test can hold a
//! query in the middle, for as long as it likes, see whether anybody still waits for it, and let it go on.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::{Method, Response, StatusCode, header};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::harness::wait;

const BUCKET: &str = "traces";

/// The running server.
pub struct StallingStore {
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// Which reads of spans are left unanswered.
#[derive(Clone, PartialEq, Eq)]
enum Stalls {
    None,
    All,
    /// Those whose key contains this.
    Of(String),
}

impl Stalls {
    fn covers(&self, key: &str) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Of(part) => key.contains(part),
        }
    }
}

struct Shared {
    folder: PathBuf,
    stalls: watch::Sender<Stalls>,
    waiting: AtomicUsize,
    reads: AtomicUsize,
}

impl StallingStore {
    /// Serves `folder`; everything is answered at first.
    pub fn start(folder: &Path) -> Self {
        let shared = Arc::new(Shared {
            folder: folder.to_owned(),
            stalls: watch::Sender::new(Stalls::None),
            waiting: AtomicUsize::new(0),
            reads: AtomicUsize::new(0),
        });
        let router = axum::Router::new().fallback(answer).with_state(shared.clone());
        let address = wait(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
            address
        });
        Self { address, shared }
    }

    /// Settings of a process that keeps its blocks here.
    pub fn settings(&self) -> Value {
        let s3 = json!({
            "bucket": BUCKET, "endpoint": self.address.to_string(), "access_key": "test", "secret_key": "test",
            "insecure": true, "forcepathstyle": true, "region": "us-east-1",
        });
        json!({ "storage": { "trace": { "backend": "s3", "s3": s3, "local": null } } })
    }

    /// From now on reads of spans are left unanswered, or answered again, those that wait too.
    pub fn stall(&self, stalls: bool) {
        self.shared.stalls.send_replace(if stalls { Stalls::All } else { Stalls::None });
    }

    /// From now on reads of spans of one block are left unanswered.
    pub fn stall_block(&self, block: &str) {
        self.shared.stalls.send_replace(Stalls::Of(block.to_owned()));
    }

    /// Reads that wait for an answer. Who closes the connection waits no more.
    pub fn waiting(&self) -> usize {
        self.shared.waiting.load(SeqCst)
    }

    /// Reads of spans so far.
    pub fn reads(&self) -> usize {
        self.shared.reads.load(SeqCst)
    }
}

struct Waiting(Arc<Shared>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, SeqCst);
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let key = request.uri().path().trim_start_matches('/').strip_prefix(BUCKET).unwrap_or_default().trim_start_matches('/').to_owned();
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return respond(StatusCode::FORBIDDEN, Vec::new());
    }
    if key.is_empty() {
        let Query(params) = Query::<HashMap<String, String>>::try_from_uri(request.uri()).unwrap();
        let of = |name: &str| params.get(name).map(String::as_str).unwrap_or_default();
        return respond(StatusCode::OK, list(&shared.folder, of("prefix"), of("delimiter")).into_bytes());
    }
    if key.ends_with("data.parquet") {
        shared.reads.fetch_add(1, SeqCst);
        let mut stalls = shared.stalls.subscribe();
        if stalls.borrow_and_update().covers(&key) {
            shared.waiting.fetch_add(1, SeqCst);
            let _waiting = Waiting(shared.clone());
            let _ = stalls.wait_for(|stalls| !stalls.covers(&key)).await;
        }
    }
    let Ok(bytes) = std::fs::read(shared.folder.join(&key)) else { return respond(StatusCode::NOT_FOUND, Vec::new()) };
    let range = request.headers().get(header::RANGE).map(|range| range.to_str().unwrap().to_owned());
    match range {
        None => respond(StatusCode::OK, bytes),
        Some(range) => {
            let (first, last) = range_of(&range, bytes.len());
            let mut response = respond(StatusCode::PARTIAL_CONTENT, bytes[first..=last].to_vec());
            response.headers_mut().insert(header::CONTENT_RANGE, format!("bytes {first}-{last}/{}", bytes.len()).parse().unwrap());
            response
        }
    }
}

fn respond(status: StatusCode, body: Vec<u8>) -> Response<Body> {
    let headers = [(header::ETAG, "\"1\""), (header::LAST_MODIFIED, "Thu, 01 Jan 2026 00:00:00 GMT")];
    let response = Response::builder().status(status);
    headers.into_iter().fold(response, |response, (name, value)| response.header(name, value)).body(body.into()).unwrap()
}

/// First and last byte of `bytes=a-b`, `bytes=a-` or `bytes=-n`.
fn range_of(range: &str, size: usize) -> (usize, usize) {
    let (first, last) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')).expect("a range of bytes");
    match (first.parse::<usize>().ok(), last.parse::<usize>().ok()) {
        (Some(first), last) => (first, last.unwrap_or(size - 1).min(size - 1)),
        (None, last) => (size - last.expect("a length"), size - 1),
    }
}

/// The answer to `ListObjectsV2`, everything on one page.
fn list(folder: &Path, prefix: &str, delimiter: &str) -> String {
    let mut keys = Vec::new();
    collect(folder, folder, &mut keys);
    let (mut objects, mut prefixes) = (String::new(), BTreeSet::new());
    for (key, size) in keys.into_iter().filter(|(key, _)| key.starts_with(prefix)) {
        match key[prefix.len()..].find(delimiter).filter(|_| !delimiter.is_empty()) {
            Some(at) => drop(prefixes.insert(key[..prefix.len() + at + delimiter.len()].to_owned())),
            None => {
                objects += &format!(
                    "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>\"1\"</ETag><Size>{size}</Size></Contents>"
                );
            }
        }
    }
    let prefixes: String = prefixes.iter().map(|prefix| format!("<CommonPrefixes><Prefix>{prefix}</Prefix></CommonPrefixes>")).collect();
    format!("<ListBucketResult><Name>{BUCKET}</Name><IsTruncated>false</IsTruncated>{objects}{prefixes}</ListBucketResult>")
}

fn collect(root: &Path, folder: &Path, keys: &mut Vec<(String, u64)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, keys);
        } else {
            keys.push((path.strip_prefix(root).unwrap().to_str().unwrap().to_owned(), path.metadata().unwrap().len()));
        }
    }
}
