//! Blocks: immutable spans of one tenant on object storage. See engine/FORMAT.md.
//!
//! | module | owns |
//! |---|---|
//! | [`writer`] | ordered spans to the objects of a block |
//! | [`index`] | the `index` object: shared tables, trace index, row groups, rare keys |
//! | [`bloom`] | the `bloom-N` objects: which traces a block may hold |
//! | `pages` | pages of a fetched row group, decompressed |
//! | [`put`] | the objects into the store |
//! | [`reader`] | columns of row groups, fetched by range and decoded |

pub mod bloom;
pub mod index;
mod pages;
pub mod put;
pub mod reader;
pub mod writer;
