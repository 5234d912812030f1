//! The errors of this crate are the engine's: one type from the log's disk to the receiver's answer, decided by [`ErrorKind`]. What a kind means to an
//! OTLP client is in [`crate::receivers::status`].

pub use skein_engine::error::{Error, ErrorKind, Result};
