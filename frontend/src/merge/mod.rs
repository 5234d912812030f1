//! Answers of several tenants (later: of several workers) made one.

pub(crate) mod search;
pub(crate) mod stats;
pub(crate) mod tags;
pub(crate) mod trace;
