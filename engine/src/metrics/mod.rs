//! TraceQL metrics: spans to time series.
//!
//! | module | owns |
//! |---|---|
//! | `intervals` | the grid of a query's intervals |
//! | `traces` | the traces of a frame |
//! | `codes` | the distinct values of a field in a frame, and which rows have them |
//! | `cells` | what is kept of the spans of one series |
//! | `estimate` | weights of sampled spans, variances and 95 % intervals |
//! | `weights` | the weights that spans tell |
//! | `sketch` | quantiles with a relative error |
//! | `exemplars` | spans that stand for their series |
//! | `detail` | what hints ask to be kept beyond the function's own cells |
//! | `partial` | series under way: observed and merged |
//! | `batch` | the same as record batches |
//! | `cache`, `packed` | partial series of row groups, kept for the next query; batches in few bytes |
//! | `grid` | the spans of a frame by group and interval |
//! | `observe` | the spans of a frame into series under way |
//! | `weighted` | the same for sampled spans, trace by trace |
//! | `slots`, `pick` | the spans of a frame that may become exemplars: which, and what they are told by |
//! | `compare` | the same for `compare()` |
//! | `series` | finished series: values, quantiles, labels, order |
//! | `evaluate` | a whole query from its operands |
//! | `stages` | `topk`, filters and arithmetic on finished series |
//! | `told` | samples that are told while the query runs |
//!
//! Everything before `series` is a sum of parts that can be added in any order, so that partitions, processes and blocks merge exactly.

pub mod batch;
pub mod cache;
pub mod cells;
pub mod codes;
pub mod compare;
pub mod detail;
pub mod estimate;
pub mod evaluate;
pub mod exemplars;
pub mod grid;
pub mod intervals;
pub mod observe;
pub mod packed;
pub mod partial;
pub mod pick;
pub mod series;
pub mod sketch;
pub mod slots;
pub mod stages;
pub mod told;
pub mod traces;
pub mod weighted;
pub mod weights;

#[cfg(test)]
mod tests;
