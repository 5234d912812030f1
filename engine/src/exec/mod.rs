//! Execution: sources, evaluation of TraceQL over columns, and the engine that answers queries.

pub mod changes;
pub mod engine;
pub mod eval;
pub mod history;
pub mod live;
pub mod memory;
pub mod metrics;
pub mod prune;
pub mod shares;
pub mod shown;
pub mod source;
pub mod sources;
pub mod spansets;
pub mod split;
pub mod stats;
pub mod tags;
pub mod trace;
pub mod writer;
