//! Arrow on the network, and how the engine's errors travel over gRPC.

pub mod status;
