//! Consistent hashing: which instances hold a trace. Knows no spans and no network.
//!
//! | module | owns |
//! |---|---|
//! | [`token`] | the hash of a trace and the tokens of an instance |
//! | [`instance`] | one member of the ring, its state and its health |
//! | [`replication`] | the ring itself: token to replica set, and how many answers are enough |
//!
//! Invariants: RG-1 tokens are sorted and unique; RG-2 a replica set never names an instance twice, nor two instances of a zone when
//! zone awareness is on.

pub mod instance;
pub mod replication;
pub mod token;

pub use instance::{Instance, InstanceState};
pub use replication::{Operation, ReplicaSet, Ring, RingSettings};
pub use token::Token;

/// Result of a ring call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the ring has no answer. Both are temporary: instances come back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No instance has joined.
    #[error("empty ring")]
    Empty,
    /// Fewer healthy instances than the operation needs.
    #[error("at least {needed} live replicas required, could only find {healthy}")]
    TooFewReplicas {
        /// Instances that have to answer.
        needed: usize,
        /// Instances that can.
        healthy: usize,
    },
}
