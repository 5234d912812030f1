//! SQL over the spans of a tenant: tables, functions, and one session a statement.
//!
//! | file | owns |
//! |---|---|
//! | `columns` | the columns of spans, events and links, and their values in a frame |
//! | `arrays` | TraceQL values as Arrow arrays |
//! | `tree`, `groups`, `calls` | what columns say of whole traces: self time and critical path, traces and services as rows, calls between services |
//! | `table`, `scan` | the tables as DataFusion asks for them, and the leaf that reads them |
//! | `metrics_scan` | the samples of a TraceQL metrics query as rows |
//! | `pushdown` | SQL filters as windows, trace ids and TraceQL filters |
//! | `functions` | table functions, and `attr()` |
//! | `system` | the tables of the schema `system` |
//! | `session` | a statement from its text to its rows |
//! | `grouping` | groups by texts: the rule, the node that does it, and the codes of values |
//! | `distinct_counts` | the rule by which texts are not counted in a table for each group |
//! | `utc` | truncated times where the time zone is UTC |
//! | `parts` | rows that can be read over several streams |
//! | `running` | a statement on the threads for queries |
//! | `tail` | the matches of a search as they arrive, pass by pass |
//! | `parameters`, `write` | parameters as JSON; rows as JSON, CSV, Arrow and Parquet |
//! | `distinct` | dictionaries without repeated values, for rows that leave as Arrow |
//! | `limits`, `harmless` | what a statement may take; what is kept from it |
//! | `error` | whose fault an error is |
//!
//! All tables of a statement are over one snapshot of the sources, in which every trace is whole and in one place (invariant EX-1), so
//! joins between them are consistent and rows of one trace lie together.

pub mod arrays;
pub mod calls;
pub mod columns;
pub mod distinct;
mod distinct_counts;
pub mod error;
pub mod functions;
pub mod grouping;
pub mod groups;
mod harmless;
mod limits;
pub mod metrics_scan;
pub mod parameters;
mod parts;
pub mod pushdown;
mod running;
pub mod scan;
pub mod session;
pub mod system;
pub mod table;
mod tail;
#[cfg(test)]
mod tests;
pub mod tree;
mod utc;
pub mod write;

use async_trait::async_trait;

pub use self::limits::SqlLimits;
pub use self::session::{SqlCost, SqlRows, SqlStatement};
pub use self::tail::{Tail, TailPass, TailRequest};
use crate::{error::Result, tenant::TenantId};

/// Statements over the spans of a tenant.
#[async_trait]
pub trait SqlService: Send + Sync + 'static {
    /// Reads, checks and plans a statement against what is stored and live now. Errors: `Invalid` for anything but one statement that
    /// reads, and for what cannot be planned; else as of opening blocks.
    async fn prepare(&self, tenant: &TenantId, text: &str) -> Result<SqlStatement>;

    /// Begins to follow the matches of a search: what arrives after this has returned will be told. Errors: `Invalid` for a query that is
    /// none or one of metrics, for columns that there cannot be, and where live spans are spread over processes; else as of opening blocks.
    async fn tail(&self, tenant: &TenantId, request: TailRequest) -> Result<Tail>;

    /// One pass of a tail, within the tenant's limits. A tail whose pass fails, or is dropped, is lost. Errors: as [`Tail::pass`].
    async fn tail_pass(&self, tail: Tail) -> Result<(Tail, TailPass)>;
}
