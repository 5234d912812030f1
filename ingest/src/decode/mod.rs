//! OTLP protobuf to columns, in one pass over the wire format and without an object for each span.
//!
//! [`check`] walks a request and stores nothing: a request is checked, logged, and only then decoded, so that what is decoded cannot
//! fail and nothing has to be taken back. [`decode`] walks it again and fills a [`SpanBuilder`].

mod walk;

pub use walk::{DecodeError, RequestSummary, check, decode};

#[cfg(test)]
mod tests;
