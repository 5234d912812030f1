//! Compression of answers for clients that ask for it: as a whole, or piece by piece while they are made.

use std::{
    future::poll_fn,
    io::{self, Write},
    mem::take,
    pin::Pin,
};

use axum::{
    body::{Body, BodyDataStream, HttpBody},
    extract::Request,
    http::{HeaderMap, HeaderValue, StatusCode, header, response::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures::{Stream, StreamExt, stream};
use hyper::body::Frame;

use super::{HttpError, frames::Frames};

/// Bodies below this size are not compressed (query-api 1.1).
const GZIP_BYTES_MIN: u64 = 1024;

/// Compressed in one go: some ten milliseconds.
const GZIP_PIECE_BYTES: usize = 1 << 20;

/// What is compressed in itself.
const COMPRESSED_TYPES: [&str; 1] = ["application/vnd.apache.parquet"];

/// Compresses long answers for clients that ask for it.
pub(super) async fn whole(request: Request, next: Next) -> Response {
    let wanted = accepts_gzip(request.headers());
    let response = next.run(request).await;
    if wanted && is_worth_it(&response) { compressed(response).await } else { response }
}

/// Compresses answers while they are made, for clients that ask for it. What one piece of the answer becomes is sent before the next is made,
/// and can be unpacked by itself. An answer that breaks off has no end when it is unpacked either.
pub(super) async fn streamed(request: Request, next: Next) -> Response {
    let wanted = accepts_gzip(request.headers());
    let response = next.run(request).await;
    if !wanted || !is_worth_it(&response) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    say_gzip(&mut parts);
    let packing = Packing { body, encoder: Some(encoder()) };
    Response::from_parts(parts, Body::new(Frames(packed_frames(packing).boxed())))
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).any(|coding| {
        let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
        let refused = parameters.trim().strip_prefix("q=").and_then(|q| q.parse::<f32>().ok()) == Some(0.0);
        name.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

fn is_worth_it(response: &Response) -> bool {
    let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_short = response.body().size_hint().upper().is_some_and(|bytes| bytes < GZIP_BYTES_MIN);
    !is_short && !response.headers().contains_key(header::CONTENT_ENCODING) && !COMPRESSED_TYPES.contains(&content_type)
}

fn say_gzip(parts: &mut Parts) {
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
}

fn encoder() -> GzEncoder<Vec<u8>> {
    GzEncoder::new(Vec::new(), Compression::fast())
}

async fn compressed(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    match gzipped(body.into_data_stream()).await {
        Ok(bytes) => {
            say_gzip(&mut parts);
            Response::from_parts(parts, Body::from(bytes))
        }
        _ => HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error").into_response(),
    }
}

/// Compresses piece by piece, so that a client that leaves stops it and what is written piece by piece is never there as a whole.
async fn gzipped(mut body: BodyDataStream) -> io::Result<Vec<u8>> {
    let mut encoder = encoder();
    while let Some(plain) = body.next().await {
        encoder = packed(encoder, plain.map_err(io::Error::other)?).await?;
    }
    encoder.finish()
}

/// Compresses `plain`, away from the network's threads.
async fn packed(mut encoder: GzEncoder<Vec<u8>>, mut plain: Bytes) -> io::Result<GzEncoder<Vec<u8>>> {
    while !plain.is_empty() {
        let piece = plain.split_to(plain.len().min(GZIP_PIECE_BYTES));
        let written = tokio::task::spawn_blocking(move || encoder.write_all(&piece).map(|()| encoder));
        encoder = written.await.map_err(io::Error::other)??;
    }
    Ok(encoder)
}

/// An answer that is compressed while it comes.
struct Packing {
    body: Body,
    /// None once its end was written.
    encoder: Option<GzEncoder<Vec<u8>>>,
}

type Packed = Result<Frame<Bytes>, axum::Error>;

fn packed_frames(packing: Packing) -> impl Stream<Item = Packed> {
    let frames = stream::unfold(Some(packing), |packing| async move { Some(next_frames(packing?).await) });
    frames.flat_map(stream::iter)
}

/// What becomes of the next frame of the body; None after its last.
async fn next_frames(mut packing: Packing) -> (Vec<Packed>, Option<Packing>) {
    let next = poll_fn(|context| Pin::new(&mut packing.body).poll_frame(context)).await;
    let (frames, goes_on) = match next {
        Some(Ok(frame)) => match frame.into_data() {
            Ok(plain) => (packing.pack(plain).await.map(|bytes| vec![Frame::data(bytes)]), true),
            Err(trailers) => (packing.end().map(|end| end.into_iter().chain([trailers]).collect()), true),
        },
        Some(Err(error)) => (Err(error), false),
        None => (packing.end().map(|end| end.into_iter().collect()), false),
    };
    match frames {
        Ok(frames) => (frames.into_iter().map(Ok).collect(), goes_on.then_some(packing)),
        Err(error) => (vec![Err(error)], None),
    }
}

impl Packing {
    /// The bytes of `plain`, from which it can be unpacked whatever follows.
    async fn pack(&mut self, plain: Bytes) -> Result<Bytes, axum::Error> {
        let Some(encoder) = self.encoder.take() else { return Err(axum::Error::new("bytes after the trailers")) };
        let mut encoder = packed(encoder, plain).await.map_err(axum::Error::new)?;
        encoder.flush().map_err(axum::Error::new)?;
        let bytes = take(encoder.get_mut());
        self.encoder = Some(encoder);
        Ok(bytes.into())
    }

    /// The last bytes, the first time.
    fn end(&mut self) -> Result<Option<Frame<Bytes>>, axum::Error> {
        let end = self.encoder.take().map(GzEncoder::finish).transpose().map_err(axum::Error::new)?;
        Ok(end.map(|bytes| Frame::data(bytes.into())))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Read;

    use flate2::read::GzDecoder;
    use futures::future::poll_immediate;
    use skein_engine::error::Error;
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn gzip_is_asked_for_by_name_and_can_be_refused() {
        let check = |value: &str, expected: bool| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, value.parse().unwrap());
            assert_eq!(accepts_gzip(&headers), expected, "{value}");
        };
        check("gzip", true);
        check("deflate, GZIP;q=0.5", true);
        check("gzip;q=0", false);
        check("br", false);
        check("x-gzip-2", false);
    }

    type Given = Result<Frame<Bytes>, Error>;

    /// A packed body whose frames come out of a channel.
    fn packed_body() -> (mpsc::Sender<Given>, stream::BoxStream<'static, Packed>) {
        let (give, taken) = mpsc::channel(4);
        let frames = stream::unfold(taken, |mut taken: mpsc::Receiver<Given>| async move { Some((taken.recv().await?, taken)) });
        let packing = Packing { body: Body::new(Frames(frames.boxed())), encoder: Some(encoder()) };
        (give, packed_frames(packing).boxed())
    }

    /// What can be read of `packed`, and whether it has an end.
    fn unpacked(packed: &[u8]) -> (String, bool) {
        let mut plain = Vec::new();
        let is_whole = GzDecoder::new(packed).read_to_end(&mut plain).is_ok();
        (String::from_utf8(plain).unwrap(), is_whole)
    }

    #[tokio::test]
    async fn a_piece_is_sent_before_the_next_is_made() {
        let (give, mut packed) = packed_body();
        assert!(poll_immediate(packed.next()).await.is_none(), "nothing is there yet");
        let mut sent = Vec::new();
        for (piece, so_far) in [("first ", "first "), ("second", "first second")] {
            give.send(Ok(Frame::data(piece.into()))).await.unwrap();
            sent.extend(packed.next().await.unwrap().unwrap().into_data().unwrap());
            assert_eq!(unpacked(&sent), (so_far.to_owned(), false));
        }
        give.send(Ok(Frame::trailers(HeaderMap::new()))).await.unwrap();
        drop(give);
        sent.extend(packed.next().await.unwrap().unwrap().into_data().unwrap());
        assert_eq!(unpacked(&sent), ("first second".to_owned(), true));
        assert!(packed.next().await.unwrap().unwrap().is_trailers(), "after the last bytes");
        assert!(packed.next().await.is_none());
    }

    #[tokio::test]
    async fn what_breaks_off_has_no_end() {
        let (give, mut packed) = packed_body();
        give.send(Ok(Frame::data("first".into()))).await.unwrap();
        give.send(Err(Error::unavailable("no more"))).await.unwrap();
        let sent = packed.next().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(unpacked(&sent), ("first".to_owned(), false));
        assert!(packed.next().await.unwrap().is_err());
        assert!(packed.next().await.is_none());
    }
}
