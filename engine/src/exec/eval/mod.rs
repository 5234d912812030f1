//! TraceQL expressions over columns.
//!
//! A [`Frame`] holds the loaded columns of one row group (or of a few chosen rows); [`mask`] turns an expression into one bit a row.
//! Comparisons with literals run once per dictionary value or in one loop over a column; everything else falls back to [`scalar`], the
//! same rules value by value. What a span lacks is `Nil`: any comparison with it is false, `!` of a missing field stays missing.
//!
//! | module | owns |
//! |---|---|
//! | [`value`] | comparison and arithmetic of single values |
//! | [`vector`] | a field of all rows at once, in the form its columns have |
//! | [`frame`] | from fields to columns and vectors; events and links bound to their spans |
//! | [`mask`] | expressions to bits |
//! | [`scalar`] | expressions to values, row by row |

pub mod frame;
pub mod mask;
pub mod scalar;
pub mod value;
pub mod vector;

pub use frame::{ColumnNeeds, Frame};
pub use mask::mask;
