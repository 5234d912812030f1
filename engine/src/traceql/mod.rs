//! TraceQL: from query text to a validated syntax tree.
//!
//! | module | part |
//! |---|---|
//! | `lexer` | text to tokens |
//! | `parser` | tokens to tree |
//! | `fold` | constant folding; constant arithmetic and comparison, shared with evaluation |
//! | `validate` | types, patterns, limits |
//! | [`ast`] | the tree |
//! | `visit`, `print` | walks over it; its canonical text |
//! | `pattern` | regular expressions |
//! | `lenient` | filters of the tag endpoints |
//! | `span_filter` | one filter over the spans of one trace |
//! | `diagnostic` | errors with a place |
//!
//! The whole language is parsed, metrics included. Invariant TQ-1: parsing is linear in the length of the query, and neither it nor
//! recursion over its result can overflow the stack ([`ast::DEPTH_MAX`]). Knows nothing of spans, schemas or plans.

pub mod ast;
mod diagnostic;
mod fold;
mod lenient;
mod lexer;
mod parser;
mod pattern;
mod print;
mod span_filter;
mod validate;
mod visit;

#[cfg(test)]
mod tests;

pub use ast::{
    Aggregate, AggregateFilter, ArithOp, AttributeScope, CompareOp, FieldExpr, FieldRef, Form, Hint, Intrinsic, Kind, MetricsExpr, MetricsFunction,
    OverTime, Pipeline, Query, QueryBody, Relation, SecondStage, SpansetExpr, SpansetOp, Stage, Static, Status,
};
pub use fold::{Computed, arith, compare, int_pow};
pub use lenient::{condition_groups, tag_filter};
pub use pattern::compile_pattern;
pub use print::GoDuration;
pub use span_filter::parse_span_filter;

use crate::error::Result;

/// Parses, folds and validates a query.
/// Errors: `Invalid`. A syntax error begins `parse error at line L, col C: ` in Tempo's words; the lines after it show the place and what
/// was expected. What the grammar takes and validation refuses has one line with the printed sub-expression.
pub fn parse(query: &str) -> Result<Query> {
    let query = fold::fold_query(parser::parse_query(query)?);
    validate::validate_query(&query)?;
    Ok(query)
}

/// Parses the name of one attribute or intrinsic: `span.http.url`, `span."a b"`, `.foo`, `name`, `span:name`.
/// Errors: `Invalid`, beginning `failed to parse identifier NAME: parse error at …`.
pub fn parse_identifier(name: &str) -> Result<FieldRef> {
    parser::parse_field_ref(name)
}
