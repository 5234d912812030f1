//! The engine: span schema, TraceQL, plans, blocks, catalog and compaction. Knows no HTTP and no network: other processes only by
//! a trait.

pub mod block;
pub mod buffers;
pub mod catalog;
pub mod clock;
pub mod compact;
pub mod error;
pub mod exec;
pub mod lower;
pub mod metrics;
pub mod optimize;
pub mod parts;
pub mod plan;
pub mod query;
pub mod spans;
pub mod sql;
pub mod stop;
pub mod store;
pub mod tenant;
pub mod traceql;
