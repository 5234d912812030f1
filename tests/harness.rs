//! The process under test: started on a temporary folder, asked over HTTP and OTLP, killed when dropped.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use prost::Message;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use skein_proto::otlp::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use skein_proto::otlp::trace::v1::ResourceSpans;
use tonic::codec::CompressionEncoding;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;

use crate::otlp::{self, TraceId};
use crate::otlp_json;

/// The longest that anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The binary under test.
pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_skein"))
}

/// The folder that holds this file.
pub fn tests_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap())
}

/// Runs a future to its end; tests are plain functions.
pub fn wait<F: Future>(future: F) -> F::Output {
    runtime().block_on(future)
}

/// Runs a future beside the test.
pub fn spawn<F: Future<Output: Send> + Send + 'static>(future: F) -> tokio::task::JoinHandle<F::Output> {
    runtime().spawn(future)
}

/// Asks `condition` until it holds. The pause between two questions keeps the machine free, it does not decide the outcome.
pub fn until(what: &str, patience: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {patience:?} for {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// The seed of a test: `SKEIN_TEST_SEED` or a new one, printed so that a failure can be repeated.
pub fn seed(test: &str) -> u64 {
    let seed = std::env::var("SKEIN_TEST_SEED").map(|text| text.parse().expect("SKEIN_TEST_SEED is a number")).unwrap_or_else(|_| rand::random());
    println!("{test}: SKEIN_TEST_SEED={seed}");
    seed
}

/// Differences found by one test, told all at once.
#[derive(Default)]
pub struct Findings {
    context: String,
    checks: usize,
    differences: Vec<String>,
}

impl Findings {
    pub fn new() -> Self {
        Self::default()
    }

    /// What the checks that follow are about.
    pub fn within(&mut self, context: impl Into<String>) {
        self.context = context.into();
    }

    pub fn equal<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, expected: T, found: T) {
        let detail = (expected != found).then(|| format!("expected {expected:?}, found {found:?}"));
        self.record(what, detail);
    }

    pub fn holds(&mut self, what: &str, holds: bool, detail: impl FnOnce() -> String) {
        self.record(what, (!holds).then(detail));
    }

    fn record(&mut self, what: &str, difference: Option<String>) {
        self.checks += 1;
        if let Some(detail) = difference {
            let detail: String = detail.chars().take(600).collect();
            self.differences.push(format!("{}: {what}: {detail}", self.context));
        }
    }

    /// Panics with every difference; a test that checked nothing fails as well.
    pub fn finish(self) {
        assert!(self.checks > 0, "nothing was checked");
        let shown: Vec<_> = self.differences.iter().take(80).map(String::as_str).collect();
        assert!(self.differences.is_empty(), "{} of {} checks differ\n{}", self.differences.len(), self.checks, shown.join("\n"));
        println!("{}: {} checks", self.context, self.checks);
    }
}

/// Where the process listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub otlp_grpc: SocketAddr,
    pub otlp_http: SocketAddr,
}

/// An HTTP answer, read to its end.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {} {}", self.status, self.text()))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or("")
    }
}

/// The ways into OTLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Grpc,
    HttpProtobuf,
    HttpJson,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    pub const ALL: [Self; 3] = [Self::None, Self::Gzip, Self::Zstd];

    fn encode(self, body: Vec<u8>) -> Vec<u8> {
        match self {
            Self::None => body,
            Self::Gzip => gzip(&body),
            Self::Zstd => zstd::encode_all(body.as_slice(), 1).unwrap(),
        }
    }

    fn header(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
        }
    }
}

pub fn gzip(body: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

/// Why a request was not acknowledged.
#[derive(Debug)]
pub struct Refused {
    /// The sender may send the same again later (OTLP's list of codes).
    pub retryable: bool,
    pub reason: String,
}

/// `tempopb.TraceByIDResponse`, the part the tests read.
#[derive(Clone, PartialEq, Message)]
pub struct TraceByIdResponse {
    #[prost(message, optional, tag = "1")]
    pub trace: Option<Trace>,
    #[prost(int32, tag = "3")]
    pub status: i32,
    #[prost(string, tag = "4")]
    pub message: String,
}

/// `tempopb.Trace`.
#[derive(Clone, PartialEq, Message)]
pub struct Trace {
    #[prost(message, repeated, tag = "1")]
    pub resource_spans: Vec<ResourceSpans>,
}

/// A client of one running process.
#[derive(Clone)]
pub struct Client {
    pub addresses: Addresses,
    http: reqwest::Client,
    otlp: Channel,
}

impl Client {
    fn new(addresses: Addresses) -> Self {
        let _inside = runtime().enter();
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        let otlp = Channel::from_shared(format!("http://{}", addresses.otlp_grpc)).unwrap().connect_lazy();
        Self { addresses, http, otlp }
    }

    /// A request to the query port with any method and headers.
    pub async fn request(&self, method: &str, path: &str, params: &[(&str, &str)], headers: &[(&str, &str)], body: Vec<u8>) -> Reply {
        self.try_request(self.addresses.http, method, path, params, headers, body)
            .await
            .unwrap_or_else(|error| panic!("{method} {path} {params:?}: {error}"))
    }

    pub async fn try_request(
        &self,
        to: SocketAddr,
        method: &str,
        path: &str,
        params: &[(&str, &str)],
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Reply, reqwest::Error> {
        let mut request = self.http.request(method.parse().unwrap(), format!("http://{to}{path}")).body(body);
        if !params.is_empty() {
            request = request.query(params);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await?;
        Ok(Reply { status: response.status().as_u16(), headers: response.headers().clone(), body: response.bytes().await? })
    }

    pub async fn get(&self, tenant: &str, path: &str, params: &[(&str, &str)]) -> Reply {
        self.request("GET", path, params, &[("X-Scope-OrgID", tenant)], Vec::new()).await
    }

    /// A search over all time given in seconds; every match is counted, `spss` spans a spanset are shown.
    pub async fn search(&self, tenant: &str, q: &str, seconds: (u64, u64), spss: u32) -> Reply {
        let (start, end, spss) = (seconds.0.to_string(), seconds.1.to_string(), spss.to_string());
        self.get(tenant, "/api/search", &[("q", q), ("start", &start), ("end", &end), ("limit", "20000"), ("spss", &spss)]).await
    }

    /// One trace in protobuf; `None` when it is unknown.
    pub async fn trace(&self, tenant: &str, id: TraceId) -> Option<Vec<ResourceSpans>> {
        let headers = [("X-Scope-OrgID", tenant), ("Accept", "application/protobuf")];
        let path = format!("/api/v2/traces/{}", otlp::hex(&id));
        let reply = self.request("GET", &path, &[], &headers, Vec::new()).await;
        assert_eq!((reply.status, reply.header("content-type")), (200, "application/protobuf"), "{path}: {}", reply.text());
        let response = TraceByIdResponse::decode(reply.body).unwrap();
        assert_eq!((response.status, response.message.as_str()), (0, ""), "{path} is partial");
        let spans = response.trace.expect("a trace is always present").resource_spans;
        (!spans.is_empty()).then_some(spans)
    }

    /// Cuts and flushes everything; answered when the blocks are durable and queryable.
    pub fn flush(&self) {
        let reply = wait(self.request("POST", "/flush", &[], &[], Vec::new()));
        assert_eq!(reply.status, 204, "/flush: {}", reply.text());
    }

    /// Posts a body to the OTLP HTTP receiver.
    pub async fn post(&self, headers: &[(&str, &str)], body: Vec<u8>) -> Result<Reply, reqwest::Error> {
        self.try_request(self.addresses.otlp_http, "POST", "/v1/traces", &[], headers, body).await
    }

    /// Sends one request; `Ok` is the acknowledgement.
    pub async fn send(
        &self,
        transport: Transport,
        compression: Compression,
        tenant: &str,
        request: &ExportTraceServiceRequest,
    ) -> Result<(), Refused> {
        match transport {
            Transport::Grpc => self.export(compression, tenant, request.clone()).await.map_err(|status| Refused {
                retryable: matches!(
                    status.code(),
                    tonic::Code::Cancelled
                        | tonic::Code::DeadlineExceeded
                        | tonic::Code::ResourceExhausted
                        | tonic::Code::Aborted
                        | tonic::Code::OutOfRange
                        | tonic::Code::Unavailable
                        | tonic::Code::DataLoss
                ),
                reason: format!("{status:?}"),
            }),
            Transport::HttpProtobuf | Transport::HttpJson => {
                let (content_type, body) = match transport {
                    Transport::HttpJson => ("application/json", otlp_json::encode(request).into_bytes()),
                    _ => ("application/x-protobuf", request.encode_to_vec()),
                };
                let mut headers = vec![("X-Scope-OrgID", tenant), ("Content-Type", content_type)];
                headers.extend(compression.header().map(|encoding| ("Content-Encoding", encoding)));
                match self.post(&headers, compression.encode(body)).await {
                    Ok(reply) if reply.status == 200 => {
                        assert_eq!(reply.header("content-type"), content_type);
                        Ok(())
                    }
                    Ok(reply) => {
                        let retryable = matches!(reply.status, 429 | 502 | 503 | 504);
                        Err(Refused { retryable, reason: format!("{} {}", reply.status, reply.text()) })
                    }
                    Err(error) => Err(Refused { retryable: true, reason: format!("{error:?}") }),
                }
            }
        }
    }

    /// One unary call of OTLP's trace service.
    pub async fn export(&self, compression: Compression, tenant: &str, request: ExportTraceServiceRequest) -> Result<(), tonic::Status> {
        let mut client = tonic::client::Grpc::new(self.otlp.clone());
        client = match compression {
            Compression::None => client,
            Compression::Gzip => client.send_compressed(CompressionEncoding::Gzip),
            Compression::Zstd => client.send_compressed(CompressionEncoding::Zstd),
        };
        client.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let mut request = tonic::Request::new(request);
        if !tenant.is_empty() {
            request.metadata_mut().insert("x-scope-orgid", tenant.parse().unwrap());
        }
        let path = PathAndQuery::from_static("/opentelemetry.proto.collector.trace.v1.TraceService/Export");
        let codec = tonic_prost::ProstCodec::<ExportTraceServiceRequest, ExportTraceServiceResponse>::default();
        let response = client.unary(request, path, codec).await?.into_inner();
        let rejected = response.partial_success.map_or(0, |partial| partial.rejected_spans);
        assert_eq!(rejected, 0, "a request is accepted or refused as a whole");
        Ok(())
    }

    /// Sends a whole dataset under the tenant of its name, four requests at a time, compressions taking turns.
    pub fn load(&self, transport: Transport, dataset: &str) {
        let turns = Compression::ALL.into_iter().cycle();
        let sends = otlp::Messages::open(dataset).zip(turns).map(|(message, compression)| async move {
            let request = ExportTraceServiceRequest::decode(message).unwrap();
            let sent = self.send(transport, compression, dataset, &request).await;
            sent.unwrap_or_else(|refused| panic!("{dataset} over {transport:?}, {compression:?}: {refused:?}"));
        });
        let count = wait(futures::stream::iter(sends).buffer_unordered(4).count());
        println!("{dataset}: {count} requests over {transport:?}");
    }

    /// The sum of all samples of the metric with this name, and `None` when it does not exist.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metrics_where(|found| found == name)
    }

    /// The sum of all samples of the metrics whose name passes.
    pub fn metrics_where(&self, passes: impl Fn(&str) -> bool) -> Option<f64> {
        let reply = wait(self.get("", "/metrics", &[]));
        assert_eq!(reply.status, 200);
        let text = reply.text();
        let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            passes(series.split('{').next()?).then(|| value.parse::<f64>().unwrap())
        });
        samples.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }
}

struct Process {
    child: Child,
    stderr: PathBuf,
    stdout: Arc<Mutex<Vec<String>>>,
}

/// A process under test with its folder, which outlives restarts.
pub struct Server {
    dir: Arc<tempfile::TempDir>,
    settings: Value,
    starts: usize,
    process: Option<Process>,
    client: Option<Client>,
}

impl Server {
    /// Starts on a new folder with the standard settings, changed by `overlay` (an object of Tempo's keys).
    pub fn start(overlay: Value) -> Self {
        let mut builder = tempfile::Builder::new();
        builder.prefix("skein-test-").disable_cleanup(std::env::var_os("SKEIN_TEST_KEEP").is_some());
        Self::start_in(Arc::new(builder.tempdir().unwrap()), overlay)
    }

    /// The same on a given folder.
    pub fn start_in(dir: Arc<tempfile::TempDir>, overlay: Value) -> Self {
        let mut settings = standard_settings(dir.path());
        merge(&mut settings, overlay);
        let mut server = Self { dir, settings, starts: 0, process: None, client: None };
        server.restart();
        server
    }

    pub fn client(&self) -> &Client {
        self.client.as_ref().expect("the process runs")
    }

    /// The folder of finished blocks of the local store.
    pub fn blocks(&self) -> PathBuf {
        self.dir.path().join("blocks")
    }

    pub fn wal(&self) -> PathBuf {
        self.dir.path().join("wal")
    }

    /// Changes the settings for the next start.
    pub fn configure(&mut self, overlay: Value) {
        merge(&mut self.settings, overlay);
    }

    /// Starts the process on the same folder; returns when it is ready.
    pub fn restart(&mut self) {
        assert!(self.process.is_none(), "the process still runs");
        self.starts += 1;
        let config = self.dir.path().join("skein.yaml");
        std::fs::write(&config, serde_yaml_ng::to_string(&self.settings).unwrap()).unwrap();
        let stderr = self.dir.path().join(format!("stderr-{}.log", self.starts));
        let mut child = Command::new(binary())
            .arg(format!("-config.file={}", config.display()))
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&stderr).unwrap())
            .spawn()
            .unwrap();
        let (lines, received) = mpsc::channel();
        let stdout = Arc::new(Mutex::new(Vec::new()));
        let pipe = child.stdout.take().unwrap();
        let kept = stdout.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                kept.lock().unwrap().push(line.clone());
                // The receiver goes once the process is ready; reading on keeps the pipe empty.
                let _ = lines.send(line);
            }
        });
        self.process = Some(Process { child, stderr, stdout });
        self.client = Some(Client::new(self.addresses(&received)));
    }

    fn addresses(&mut self, lines: &mpsc::Receiver<String>) -> Addresses {
        let deadline = Instant::now() + PATIENCE;
        let mut found = std::collections::HashMap::new();
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line == "skein: ready" => break,
                Ok(line) => {
                    if let Some((listener, address)) = line.strip_prefix("skein: ").and_then(|rest| rest.split_once(" listening on ")) {
                        found.insert(listener.to_owned(), address.trim().parse::<SocketAddr>().expect("an address"));
                    }
                }
                Err(problem) => panic!("not ready ({problem}), stdout: {:?}\n{}", self.stdout(), self.stderr_tail()),
            }
        }
        let of = |listener: &str| *found.get(listener).unwrap_or_else(|| panic!("no line for the listener `{listener}` in {found:?}"));
        Addresses { http: of("http"), grpc: of("grpc"), otlp_grpc: of("otlp grpc"), otlp_http: of("otlp http") }
    }

    pub fn stdout(&self) -> Vec<String> {
        self.process.as_ref().map(|process| process.stdout.lock().unwrap().clone()).unwrap_or_default()
    }

    fn stderr_tail(&self) -> String {
        let Some(process) = &self.process else { return String::new() };
        let text = String::from_utf8_lossy(&std::fs::read(&process.stderr).unwrap_or_default()).into_owned();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// The most memory that the process has had since its start; None where the system does not tell.
    pub fn peak_bytes(&self) -> Option<u64> {
        let pid = self.process.as_ref().expect("the process runs").child.id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB"))?;
        Some(kibibytes.trim().parse::<u64>().ok()? << 10)
    }

    /// Processor time that the process has used, in hundredths of a second; None where the system does not tell.
    pub fn processor_ticks(&self) -> Option<u64> {
        let pid = self.process.as_ref().expect("the process runs").child.id();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
    }

    /// SIGKILL, at once.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("the process runs");
        process.child.kill().unwrap();
        process.child.wait().unwrap();
        self.client = None;
    }

    /// SIGTERM; the process must end by itself and well.
    pub fn stop(&mut self) {
        let process = self.process.as_ref().expect("the process runs");
        terminate(&process.child);
        let status = self.wait_for_exit();
        assert!(status.success(), "SIGTERM ended in {status}");
    }

    /// Waits until the process has ended by itself.
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        let tail = self.stderr_tail();
        let mut process = self.process.take().expect("the process runs");
        self.client = None;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = process.child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > deadline {
                let _ = process.child.kill();
                let _ = process.child.wait();
                panic!("the process did not end within {PATIENCE:?}\n{tail}");
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- stderr of the process, last start {} ---\n{}\n---", self.starts, self.stderr_tail());
        }
        if let Some(process) = &mut self.process {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}

/// Asks a process to end (SIGTERM).
pub fn terminate(child: &Child) {
    let done = Command::new("kill").arg("-TERM").arg(child.id().to_string()).status().unwrap();
    assert!(done.success(), "kill -TERM {}", child.id());
}

/// Settings under which nothing is refused for its age, size or rate, and every answer is complete.
pub fn standard_settings(dir: &Path) -> Value {
    json!({
        "target": "all",
        "multitenancy_enabled": true,
        "server": {
            "http_listen_address": "127.0.0.1", "http_listen_port": 0,
            "grpc_listen_address": "127.0.0.1", "grpc_listen_port": 0,
            "log_level": "info",
        },
        "distributor": { "receivers": { "otlp": { "protocols": { "grpc": { "endpoint": "127.0.0.1:0" }, "http": { "endpoint": "127.0.0.1:0" } } } } },
        "ingester": { "max_block_duration": "30m", "max_block_bytes": 524288000, "trace_idle_period": "5s", "flush_check_period": "10s" },
        "storage": { "trace": {
            "backend": "local",
            "local": { "path": dir.join("blocks") },
            "wal": { "path": dir.join("wal"), "sync": "always" },
        } },
        "query_frontend": { "search": { "max_duration": "0s", "max_spans_per_span_set": 0, "max_result_limit": 0 } },
        "overrides": { "defaults": { "ingestion": { "rate_limit_bytes": 0, "burst_size_bytes": 0 } } },
    })
}

/// Settings that leave everything live until it is flushed.
pub fn nothing_is_cut() -> Value {
    json!({ "ingester": { "max_block_duration": "24h", "max_block_bytes": 8_589_934_592_u64, "trace_idle_period": "24h", "flush_check_period": "1h" } })
}

/// Puts `overlay` over `base`, object by object; `null` removes a key.
pub fn merge(base: &mut Value, overlay: Value) {
    match (base, overlay) {
        (Value::Object(base), Value::Object(overlay)) => {
            for (key, value) in overlay {
                if value.is_null() {
                    base.remove(&key);
                } else {
                    merge(base.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (base, overlay) => *base = overlay,
    }
}
