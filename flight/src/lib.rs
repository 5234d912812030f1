//! Arrow on the network: plans as bytes, and how the engine's errors travel over gRPC.
//!
//! | module | owns |
//! |---|---|
//! | [`codec`] | the engine's plan nodes as bytes |
//! | [`status`] | error kinds to gRPC status |

pub mod codec;
pub mod status;
