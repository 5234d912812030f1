//! Blocks: immutable spans of one tenant on object storage. See engine/FORMAT.md.
//!
//! | module | owns |
//! |---|---|
//! | [`writer`] | ordered spans to the objects of a block |
//! | [`index`] | the `index` object: shared tables, trace index, row groups, rare keys |
//! | [`bloom`] | the `bloom-N` objects: which traces a block may hold |
//! | `pages` | pages of a fetched row group, decompressed |
//! | [`decode`] | pages of leaf columns to arrays, in the forms that most have |
//! | `row_group` | the columns of a fetched row group as one batch |
//! | [`put`] | the objects into the store |
//! | [`reader`] | columns of row groups, fetched by range and decoded |

pub mod bloom;
pub mod decode;
pub mod index;
mod pages;
pub mod put;
pub mod reader;
mod row_group;
pub mod writer;
