//! Ingest: spans in, durable, queryable, flushed.
//!
//! | module | owns |
//! |---|---|
//! | [`receivers`] | OTLP over gRPC and HTTP: bytes, tenant and answers, no span is decoded; and tables of spans |
//! | [`distributor`] | rate limit, back-pressure and counters in front of the ingester |
//! | [`payload`] | what a push holds, and how the log tells an OTLP request from a table |
//! | [`sink`] | the contract between the two: [`sink::TraceSink`] |
//! | [`decode`] | OTLP protobuf to columns |
//! | [`ingester`], [`live`] | requests into the log and into live spans |
//! | [`flush`], [`replay`], [`segments`], [`identity`] | live spans into blocks; the log back into live spans; which log segments are still needed |
//! | [`wal`] | the write-ahead log: durable before acknowledged |
//! | [`limits`] | what a tenant may send |
//! | [`metrics`] | this role's own metrics, under Tempo's names |
//!
//! Invariant IN-1: no request is acknowledged before [`sink::TraceSink::push`] returned, and that returns only after the write-ahead log has it.

pub mod decode;
pub mod distributor;
pub mod error;
pub mod flush;
pub mod identity;
pub mod ingester;
pub mod ingester_metrics;
pub mod limits;
pub mod live;
pub mod metrics;
pub mod payload;
pub mod receivers;
pub mod replay;
pub mod segments;
pub mod sink;
pub mod wal;
