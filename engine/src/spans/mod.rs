//! The span table: ids, columns, and how a span becomes a row and a span again.
//!
//! | module | owns |
//! |---|---|
//! | [`wire`] | borrowed views over protobuf bytes |
//! | [`builder`] | spans to columns; the live form |
//! | [`attributes`], [`columns`], [`pool`], [`tables`] | what the builder is made of |
//! | [`set`] | immutable chunks with common dictionaries |
//! | [`content`] | what two spans are compared by |
//! | [`tree`] | block order, trees, duplicates |
//! | [`schema`], [`gather`] | the columns of the span table, and a set as record batches |
//! | [`append`] | record batches back into a builder |
//! | [`written`] | tables of spans as clients write them, into a builder |
//! | [`otlp`] | record batches back to OTLP |
//! | [`value`] | values as TraceQL sees them |

pub mod append;
pub mod attributes;
pub mod builder;
pub mod columns;
pub mod content;
pub mod gather;
mod ids;
pub mod otlp;
pub mod pool;
pub mod read;
pub mod schema;
pub mod set;
pub mod tables;
pub mod tree;
pub mod value;
pub mod weight;
pub mod wire;
pub mod written;

pub use ids::{BlockId, SpanId, TraceId};
