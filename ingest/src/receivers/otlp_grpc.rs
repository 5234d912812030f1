//! OTLP over gRPC: `opentelemetry.proto.collector.trace.v1.TraceService/Export`. The message's bytes go on as they came; no struct is built from them.

use std::{
    convert::Infallible,
    future::ready,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf, BufMut, Bytes};
use futures::future::BoxFuture;
use tonic::{
    Request, Response, Status,
    body::Body,
    codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::{Service, StdError, http},
    server::{Grpc, NamedService, UnaryService},
};

use super::{OtlpReceiver, status, tenant::ORG_ID};
use crate::distributor::Source;

/// The one method.
const EXPORT_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// An `ExportTraceServiceResponse` with an empty `partial_success`, as Tempo sends it.
pub(super) const SUCCESS: &[u8] = &[0x0A, 0];

const SOURCE: Source = Source { receiver: "otlp/otlp_receiver", transport: "grpc" };

/// `TraceService`, as a tower service for [`tonic::transport::Server`].
#[derive(Clone)]
pub struct OtlpGrpc {
    receiver: Arc<OtlpReceiver>,
    message_bytes_max: usize,
}

impl OtlpGrpc {
    /// A service that takes messages of up to `message_bytes_max` bytes, uncompressed.
    pub fn new(receiver: Arc<OtlpReceiver>, message_bytes_max: usize) -> Self {
        Self { receiver, message_bytes_max }
    }
}

impl NamedService for OtlpGrpc {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

impl<B> Service<http::Request<B>> for OtlpGrpc
where
    B: tonic::codegen::Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if request.uri().path() != EXPORT_PATH {
            let status = Status::unimplemented(format!("unknown method {}", request.uri().path()));
            return Box::pin(ready(Ok(status.into_http())));
        }
        let (export, message_bytes_max) = (Export(self.receiver.clone()), self.message_bytes_max);
        Box::pin(async move {
            let mut grpc = Grpc::new(RawCodec)
                .accept_compressed(CompressionEncoding::Gzip)
                .accept_compressed(CompressionEncoding::Zstd)
                .max_decoding_message_size(message_bytes_max);
            let response = grpc.unary(export, request).await;
            Ok(too_large_is_exhausted(response, message_bytes_max))
        })
    }
}

/// The library calls a message above the limit OutOfRange, upon which OTLP clients would retry it for ever; gRPC elsewhere says ResourceExhausted.
fn too_large_is_exhausted(response: http::Response<Body>, message_bytes_max: usize) -> http::Response<Body> {
    let out_of_range = response.headers().get("grpc-status").is_some_and(|code| code == "11");
    if out_of_range {
        Status::resource_exhausted(format!("grpc: received message larger than max ({message_bytes_max} bytes)")).into_http()
    } else {
        response
    }
}

struct Export(Arc<OtlpReceiver>);

impl UnaryService<Bytes> for Export {
    type Response = Bytes;
    type Future = BoxFuture<'static, Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let receiver = self.0.clone();
        Box::pin(async move {
            let (metadata, _, message) = request.into_parts();
            let org_ids = metadata.get_all(ORG_ID);
            let received = receiver.receive(SOURCE, org_ids.iter().map(|id| id.as_encoded_bytes()), message).await;
            received.map(|()| Response::new(Bytes::from_static(SUCCESS))).map_err(|refusal| status::grpc(&refusal))
        })
    }
}

/// Passes messages through. Decoding takes over the frame's buffer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RawCodec;

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
    type Error = Status;

    fn encode(&mut self, item: Bytes, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        target.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(source.copy_to_bytes(source.remaining())))
    }
}
