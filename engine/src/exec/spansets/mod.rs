//! Spanset pipelines over the traces of one row group.
//!
//! Filters are bits over all rows, made once; the rest works trace by trace on ascending row lists, and only on traces that a first-stage
//! filter touched.
//!
//! | module | owns |
//! |---|---|
//! | [`filters`] | filters to bits, term by term |
//! | [`pipeline`] | stages over spansets |
//! | `structure` | relations between the spans of a trace |
//! | `aggregates` | `by(…)`, and comparisons of aggregates |

mod aggregates;
pub mod filters;
pub mod pipeline;
mod structure;

pub use filters::{FilterTerm, FilterTerms, filter_rows};
pub use pipeline::{Spanset, SpansetPipeline, TraceMatch};
