//! What random metrics queries have found.
