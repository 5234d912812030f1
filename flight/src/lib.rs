//! Arrow on the network: plans as bytes, processes that work together on one query, and how the engine's errors travel over gRPC.
//!
//! datafusion-distributed cuts a plan into stages, starts their tasks on workers and streams batches back. Ours is what it cannot know:
//! which worker has which spans.
//!
//! | module | owns |
//! |---|---|
//! | [`coordinator`] | queries over the blocks of the store and the live spans of all workers |
//! | [`worker`] | a process that runs shares of queries and answers for its live spans, on one port |
//! | [`spread`] | which task reads which sources, and where it runs: handlers for datafusion-distributed |
//! | `explain` | the plan of a query and its shares as text |
//! | [`codec`] | the engine's plan nodes as bytes |
//! | [`resolver`] | sources by name in a cluster |
//! | [`ticket`] | what processes ask each other about live spans; the messages |
//! | [`live_service`], [`live_client`] | answering and asking |
//! | [`metrics`] | what they count |
//! | [`peers`] | connections to workers |
//! | [`peer_errors`] | errors of a worker in a plan: their kind, and which worker |
//! | [`sql`] | Flight SQL and plain Flight for strangers |
//! | [`status`] | error kinds to gRPC status |

pub mod codec;
pub mod coordinator;
mod explain;
pub mod live_client;
pub mod live_service;
pub mod metrics;
pub mod peer_errors;
pub mod peers;
pub mod resolver;
pub mod spread;
pub mod sql;
pub mod status;
pub mod ticket;
pub mod worker;
