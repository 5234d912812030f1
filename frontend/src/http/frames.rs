//! Streams of frames as bodies.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::HttpBody;
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use hyper::body::Frame;

/// Frames as a body. Those without bytes are left out: HTTP/1.1 would take them for the end.
pub(super) struct Frames<E>(pub(super) BoxStream<'static, Result<Frame<Bytes>, E>>);

impl<E> HttpBody for Frames<E> {
    type Data = Bytes;
    type Error = E;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, E>>> {
        loop {
            match ready!(self.0.poll_next_unpin(context)) {
                Some(Ok(frame)) if frame.data_ref().is_some_and(Bytes::is_empty) => {}
                next => return Poll::Ready(next),
            }
        }
    }
}
