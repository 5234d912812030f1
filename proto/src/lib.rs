//! Wire messages: Tempo's public query API and OTLP. No logic.
//!
//! | module | what | from |
//! |---|---|---|
//! | [`tempo`] | package `tempopb`: messages, client and server of `StreamingQuerier` | `proto/tempo.proto`, generated into `src/gen` and committed |
//! | [`otlp`] | OpenTelemetry's messages | the opentelemetry-proto crate |
//!
//! `proto/opentelemetry` has OpenTelemetry's own files (Apache-2.0), so that a client in any language can be generated from the folder `proto`.
//!
//! Maps are ordered (`BTreeMap`), so that a message has one encoding.

/// Tempo's public messages and the `StreamingQuerier` service (package `tempopb`).
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
#[rustfmt::skip]
#[path = "gen/tempopb.rs"]
pub mod tempo;

/// OpenTelemetry's messages under short paths, such as `otlp::trace::v1::ResourceSpans`.
pub mod otlp {
    /// Requests and answers of the trace export service.
    pub mod collector {
        pub use opentelemetry_proto::tonic::collector::trace;
    }
    pub use opentelemetry_proto::tonic::{common, resource, trace};
}
