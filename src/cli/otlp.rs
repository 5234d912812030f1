//! Files of spans, and how they are sent.
//!
//! `.otlp.zst`: one zstd stream of messages, each a big-endian `u32` length and an `ExportTraceServiceRequest` in protobuf.
//! `.json`, `.jsonl`: one `ExportTraceServiceRequest` in OTLP's JSON per line, or one over the whole file.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes};
use clap::ValueEnum;
use prost::Message;
use rand::Rng;
use skein_engine::error::{Error, ErrorKind, Result};
use skein_proto::otlp::{collector::trace::v1::ExportTraceServiceRequest, trace::v1::ResourceSpans};
use tonic::{
    codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Channel,
};

/// Largest message of a file; more is taken for damage.
const MESSAGE_BYTES_MAX: usize = 512 << 20;

/// Attempts for one request, the first included.
const ATTEMPTS_MAX: u32 = 8;
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// One request of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// Protobuf.
    Protobuf(Bytes),
    /// OTLP JSON.
    Json(Bytes),
}

impl Payload {
    /// Uncompressed size.
    pub fn len(&self) -> usize {
        match self {
            Self::Protobuf(bytes) | Self::Json(bytes) => bytes.len(),
        }
    }

    /// Spans in it. Walks protobuf without decoding it.
    pub fn span_count(&self) -> u64 {
        match self {
            Self::Protobuf(bytes) => span_count(bytes),
            Self::Json(bytes) => {
                let count = |value: &serde_json::Value| -> u64 {
                    let list = |value: &serde_json::Value, names: [&str; 2]| -> Vec<serde_json::Value> {
                        names.iter().find_map(|name| value.get(name)?.as_array().cloned()).unwrap_or_default()
                    };
                    let resources = list(value, ["resourceSpans", "resource_spans"]);
                    let scopes = resources.iter().flat_map(|resource| list(resource, ["scopeSpans", "scope_spans"]));
                    scopes.map(|scope| scope.get("spans").and_then(|spans| spans.as_array()).map_or(0, Vec::len) as u64).sum()
                };
                serde_json::from_slice(bytes).map(|value| count(&value)).unwrap_or(0)
            }
        }
    }

    /// The request, decoded. Errors: `Invalid`.
    pub fn decode(&self) -> Result<ExportTraceServiceRequest> {
        let wrong = |error: Box<dyn std::error::Error + Send + Sync>| Error::invalid("decoding an OTLP request").with_source(error);
        match self {
            Self::Protobuf(bytes) => ExportTraceServiceRequest::decode(bytes.clone()).map_err(|error| wrong(error.into())),
            Self::Json(bytes) => serde_json::from_slice(bytes).map_err(|error| wrong(error.into())),
        }
    }
}

/// Counts fields 1.2.2 of the message: resource spans, scope spans, spans.
fn span_count(message: &[u8]) -> u64 {
    fn below(message: &[u8], path: &[u64]) -> u64 {
        let Some((wanted, deeper)) = path.split_first() else { return 1 };
        let mut rest = message;
        let mut count = 0;
        while rest.has_remaining() {
            let Ok(tag) = prost::encoding::decode_varint(&mut rest) else { break };
            let skipped = match tag & 7 {
                0 => prost::encoding::decode_varint(&mut rest).map(|_| 0).ok(),
                1 => Some(8),
                5 => Some(4),
                2 => match prost::encoding::decode_varint(&mut rest) {
                    Ok(length) if length as usize <= rest.len() => {
                        if tag >> 3 == *wanted {
                            count += below(&rest[..length as usize], deeper);
                        }
                        Some(length as usize)
                    }
                    _ => None,
                },
                _ => None,
            };
            match skipped {
                Some(bytes) if bytes <= rest.len() => rest.advance(bytes),
                _ => break,
            }
        }
        count
    }
    below(message, &[1, 2, 2])
}

/// Requests, read as they are needed.
pub type Payloads = Box<dyn Iterator<Item = Result<Payload>> + Send>;

struct Counting {
    file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counting {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let bytes = self.file.read(into)?;
        self.read.fetch_add(bytes as u64, Relaxed);
        Ok(bytes)
    }
}

/// The requests of a file, read as they are needed. Errors: `Invalid` for a file that is not one of ours, naming it.
/// `read` counts the bytes of the file that have been read.
pub fn read_file(path: &Path, read: Arc<AtomicU64>) -> Result<Payloads> {
    let doing = format!("reading {}", path.display());
    let file = File::open(path).map_err(|error| Error::invalid(doing.clone()).with_source(error))?;
    let file = Counting { file, read };
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if name.ends_with(".otlp.zst") {
        let payloads = read_stream(file).map_err(|error| error.context(&doing))?;
        return Ok(Box::new(payloads.map(move |payload| payload.map_err(|error| error.context(&doing)))));
    }
    if !name.ends_with(".json") && !name.ends_with(".jsonl") {
        return Err(Error::invalid(format!("{doing}: expected a name that ends in .otlp.zst, .json or .jsonl")));
    }
    let mut lines = BufReader::new(file);
    let mut first = String::new();
    lines.read_line(&mut first).map_err(|error| Error::invalid(doing.clone()).with_source(error))?;
    if serde_json::from_str::<serde_json::Value>(&first).is_ok() {
        let rest = lines.lines().map(move |line| line.map_err(|error| Error::invalid(doing.clone()).with_source(error)));
        let lines = std::iter::once(Ok(first)).chain(rest);
        return Ok(Box::new(lines.filter_map(|line| match line {
            Ok(line) if line.trim().is_empty() => None,
            line => Some(line.map(|line| Payload::Json(line.into()))),
        })));
    }
    // Spread over several lines: one request.
    let mut whole = first.into_bytes();
    lines.read_to_end(&mut whole).map_err(|error| Error::invalid(doing).with_source(error))?;
    Ok(Box::new(std::iter::once(Ok(Payload::Json(whole.into())))))
}

/// The requests of a `.otlp.zst` stream.
pub fn read_stream(compressed: impl Read + Send + 'static) -> Result<Payloads> {
    let mut stream = zstd::Decoder::new(compressed).map_err(|error| Error::invalid("opening the zstd stream").with_source(error))?;
    let mut failed = false;
    Ok(Box::new(std::iter::from_fn(move || {
        if failed {
            return None;
        }
        let message = next_message(&mut stream).transpose();
        failed = matches!(message, Some(Err(_)));
        message.map(|message| message.map(Payload::Protobuf))
    })))
}

fn next_message(stream: &mut impl Read) -> Result<Option<Bytes>> {
    let wrong = |error: std::io::Error| Error::invalid("reading a message of the stream").with_source(error);
    let mut length = [0; 4];
    let read = stream.read(&mut length).map_err(wrong)?;
    if read == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[read..]).map_err(wrong)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MESSAGE_BYTES_MAX {
        return Err(Error::invalid(format!("a message of {length} bytes is taken for damage, the largest is {MESSAGE_BYTES_MAX}")));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).map_err(wrong)?;
    Ok(Some(message.into()))
}

/// The latest end of the spans in `requests`, Unix nanoseconds.
pub fn last_end(requests: &[ResourceSpans]) -> u64 {
    let spans = requests.iter().flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans);
    spans.map(|span| span.end_time_unix_nano.max(span.start_time_unix_nano)).max().unwrap_or(0)
}

/// Moves every time of a request by `nanos`. A zero time stays zero: it means that none is known.
pub fn shift(requests: &mut [ResourceSpans], nanos: i64) {
    let moved = |time: &mut u64| {
        if *time != 0 {
            *time = time.saturating_add_signed(nanos);
        }
    };
    for span in requests.iter_mut().flat_map(|resource| &mut resource.scope_spans).flat_map(|scope| &mut scope.spans) {
        moved(&mut span.start_time_unix_nano);
        moved(&mut span.end_time_unix_nano);
        span.events.iter_mut().for_each(|event| moved(&mut event.time_unix_nano));
    }
}

/// Compression of requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    /// As they are.
    #[default]
    None,
    /// gzip.
    Gzip,
    /// zstd, level 1.
    Zstd,
}

/// The wire of OTLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// POST to `/v1/traces`.
    Http,
    /// The trace service.
    Grpc,
}

/// Sends requests to one OTLP endpoint. Cheap to clone; each clone shares the connections.
#[derive(Clone)]
pub struct Sender {
    wire: Wire,
    tenant: Option<String>,
    compression: Compression,
}

#[derive(Clone)]
enum Wire {
    Http { client: reqwest::Client, url: String },
    Grpc { channel: Channel },
}

/// A request that was answered.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sent {
    /// Attempts that were refused before.
    pub retries: u64,
}

impl Sender {
    /// A sender to `endpoint`: `http://host:port`, `grpc://host:port`, or `host:port` with a protocol. Connects at the first request.
    /// Errors: `Invalid` for an endpoint that is no address.
    pub fn new(endpoint: &str, protocol: Option<Protocol>, tenant: Option<String>, compression: Compression) -> Result<Self> {
        let (scheme, address) = endpoint.split_once("://").unwrap_or(("", endpoint));
        let protocol = match (protocol, scheme) {
            (_, "https") => return Err(Error::invalid(format!("endpoint {endpoint}: TLS is not spoken; use http:// or grpc://"))),
            (Some(protocol), _) => protocol,
            (None, "grpc") => Protocol::Grpc,
            (None, _) => Protocol::Http,
        };
        let wire = match protocol {
            Protocol::Grpc => {
                let channel = Channel::from_shared(format!("http://{address}"))
                    .map_err(|error| Error::invalid(format!("endpoint {endpoint}")).with_source(error))?;
                Wire::Grpc { channel: channel.connect_lazy() }
            }
            Protocol::Http => {
                let address = address.trim_end_matches('/');
                let url = if address.contains('/') { format!("http://{address}") } else { format!("http://{address}/v1/traces") };
                Wire::Http { client: super::http::client()?, url }
            }
        };
        Ok(Self { wire, tenant, compression })
    }

    /// Sends one request; where the endpoint is busy or away, again and again with growing pauses, up to a bound.
    /// Errors: the endpoint's last answer.
    pub async fn send(&self, payload: &Payload) -> Result<Sent> {
        let mut sent = Sent::default();
        let mut backoff = BACKOFF_MIN;
        loop {
            let error = match self.attempt(payload).await {
                Ok(()) => return Ok(sent),
                Err(error) => error,
            };
            sent.retries += 1;
            let passing = matches!(error.kind(), ErrorKind::Exhausted | ErrorKind::Unavailable);
            if !passing || sent.retries >= u64::from(ATTEMPTS_MAX) {
                return Err(error);
            }
            let jitter = rand::rng().random_range(0.5..1.0);
            pause(backoff.mul_f64(jitter)).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn attempt(&self, payload: &Payload) -> Result<()> {
        match &self.wire {
            Wire::Http { client, url } => self.post(client, url, payload).await,
            Wire::Grpc { channel } => self.export(channel.clone(), payload).await,
        }
    }

    async fn post(&self, client: &reqwest::Client, url: &str, payload: &Payload) -> Result<()> {
        let (content_type, body) = match payload {
            Payload::Protobuf(bytes) => ("application/x-protobuf", bytes),
            Payload::Json(bytes) => ("application/json", bytes),
        };
        let mut request = client.post(url).header("Content-Type", content_type);
        let compressed = |bytes: std::io::Result<Vec<u8>>| bytes.map_err(|error| Error::internal("compressing").with_source(error));
        request = match self.compression {
            Compression::None => request.body(body.clone()),
            Compression::Gzip => request.header("Content-Encoding", "gzip").body(compressed(gzip(body))?),
            Compression::Zstd => request.header("Content-Encoding", "zstd").body(compressed(zstd::encode_all(body.as_ref(), 1))?),
        };
        if let Some(tenant) = &self.tenant {
            request = request.header("X-Scope-OrgID", tenant);
        }
        let response = request.send().await.map_err(|error| Error::unavailable(format!("sending to {url}")).with_source(error))?;
        let status = response.status();
        if status.is_success() {
            // Reading to the end lets the connection be used again.
            response.bytes().await.map_err(|error| Error::unavailable(format!("reading the answer of {url}")).with_source(error))?;
            return Ok(());
        }
        let kind = match status.as_u16() {
            429 => ErrorKind::Exhausted,
            502..=504 => ErrorKind::Unavailable,
            _ => ErrorKind::Invalid,
        };
        let text = response.bytes().await.unwrap_or_default();
        Err(Error::new(kind, format!("{url} answered {status}: {}", String::from_utf8_lossy(&text).trim())))
    }

    async fn export(&self, channel: Channel, payload: &Payload) -> Result<()> {
        let bytes = match payload {
            Payload::Protobuf(bytes) => bytes.clone(),
            Payload::Json(_) => payload.decode()?.encode_to_vec().into(),
        };
        let mut client = tonic::client::Grpc::new(channel);
        client = match self.compression {
            Compression::None => client,
            Compression::Gzip => client.send_compressed(CompressionEncoding::Gzip),
            Compression::Zstd => client.send_compressed(CompressionEncoding::Zstd),
        };
        client.ready().await.map_err(|error| Error::unavailable("connecting").with_source(error))?;
        let mut request = tonic::Request::new(bytes);
        if let Some(tenant) = &self.tenant {
            let value = tenant.parse().map_err(|error| Error::invalid(format!("tenant '{tenant}'")).with_source(error))?;
            request.metadata_mut().insert("x-scope-orgid", value);
        }
        let path = PathAndQuery::from_static("/opentelemetry.proto.collector.trace.v1.TraceService/Export");
        client.unary(request, path, RawCodec).await.map(drop).map_err(|status| {
            use tonic::Code::{Aborted, DeadlineExceeded, ResourceExhausted, Unavailable, Unknown};
            let kind = match status.code() {
                ResourceExhausted => ErrorKind::Exhausted,
                // A connection that cannot be made is reported as unknown.
                Unavailable | Aborted | DeadlineExceeded | Unknown => ErrorKind::Unavailable,
                _ => ErrorKind::Invalid,
            };
            Error::new(kind, format!("the endpoint answered {:?}: {}", status.code(), status.message()))
        })
    }
}

/// One gzip member, at the fastest level.
fn gzip(body: &[u8]) -> std::io::Result<Vec<u8>> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::with_capacity(body.len() / 3), flate2::Compression::fast());
    encoder.write_all(body)?;
    encoder.finish()
}

/// Waits without a runtime clock to mock: clients only.
#[allow(clippy::disallowed_methods, reason = "a client's back-off, not on a path that tests have to steer")]
pub async fn pause(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// Bytes as they are, so that a file's requests need not be decoded.
#[derive(Default, Clone, Copy)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = tonic::Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = tonic::Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, tonic::Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skein_proto::otlp::trace::v1::{ScopeSpans, Span, span::Event};

    use super::*;

    fn request(spans: &[(u64, u64)]) -> ExportTraceServiceRequest {
        let spans = spans
            .iter()
            .map(|(start, end)| Span {
                start_time_unix_nano: *start,
                end_time_unix_nano: *end,
                events: vec![Event { time_unix_nano: *start, ..Event::default() }],
                ..Span::default()
            })
            .collect();
        let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }, ScopeSpans::default()];
        ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }] }
    }

    fn stream(messages: &[Vec<u8>]) -> Vec<u8> {
        let mut plain = Vec::new();
        for message in messages {
            plain.extend((message.len() as u32).to_be_bytes());
            plain.extend(message);
        }
        zstd::encode_all(plain.as_slice(), 1).unwrap()
    }

    #[test]
    fn spans_are_counted_without_decoding() {
        let check = |payload: Payload, count| assert_eq!(payload.span_count(), count);
        check(Payload::Protobuf(request(&[(1, 2), (3, 4), (5, 6)]).encode_to_vec().into()), 3);
        check(Payload::Protobuf(Bytes::from_static(&[0xff, 0xff])), 0);
        check(Payload::Json(r#"{"resourceSpans":[{"scopeSpans":[{"spans":[{},{}]},{"spans":[{}]}]}]}"#.into()), 3);
    }

    #[test]
    fn a_stream_is_read_to_its_end_and_a_torn_one_to_the_tear() {
        let messages = [request(&[(1, 2)]).encode_to_vec(), request(&[(3, 4), (5, 6)]).encode_to_vec()];
        let read = |bytes: Vec<u8>| read_stream(std::io::Cursor::new(bytes)).unwrap().collect::<Vec<_>>();
        let whole = read(stream(&messages));
        assert_eq!(whole.iter().map(|payload| payload.as_ref().unwrap().span_count()).collect::<Vec<_>>(), [1, 2]);
        let mut torn = messages.to_vec();
        torn[1].truncate(3);
        let mut bytes = Vec::new();
        bytes.extend((messages[0].len() as u32).to_be_bytes());
        bytes.extend(&messages[0]);
        bytes.extend([0, 0, 0, 99, 1, 2, 3]);
        let torn = read(zstd::encode_all(bytes.as_slice(), 1).unwrap());
        assert_eq!((torn.len(), torn[0].is_ok(), torn[1].is_err()), (2, true, true));
    }

    #[test]
    fn a_shift_moves_every_known_time() {
        let mut request = request(&[(100, 200), (0, 0)]);
        assert_eq!(last_end(&request.resource_spans), 200);
        shift(&mut request.resource_spans, 50);
        let spans = &request.resource_spans[0].scope_spans[0].spans;
        assert_eq!((spans[0].start_time_unix_nano, spans[0].end_time_unix_nano, spans[0].events[0].time_unix_nano), (150, 250, 150));
        assert_eq!((spans[1].start_time_unix_nano, spans[1].end_time_unix_nano), (0, 0));
    }

    #[test]
    fn endpoints_say_their_protocol() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let http = |endpoint: &str, protocol| match Sender::new(endpoint, protocol, None, Compression::None).unwrap().wire {
            Wire::Http { url, .. } => Some(url),
            Wire::Grpc { .. } => None,
        };
        assert_eq!(http("http://a:4318", None).as_deref(), Some("http://a:4318/v1/traces"));
        assert_eq!(http("a:4318/otlp/v1/traces", None).as_deref(), Some("http://a:4318/otlp/v1/traces"));
        assert_eq!(http("grpc://a:4317", None), None);
        assert_eq!(http("a:4317", Some(Protocol::Grpc)), None);
        assert!(Sender::new("https://a", None, None, Compression::None).is_err());
    }
}
