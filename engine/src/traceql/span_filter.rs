//! One `{ … }` as a filter of the spans of a single trace.

use super::{
    ast::{FieldExpr, FieldRef, Intrinsic, QueryBody, SpansetExpr, Stage},
    parse,
};
use crate::error::{Error, Result};

/// Parses a query that is one `{ … }` and asks only what spans of one trace can differ in.
/// Errors: `Invalid` as those of [`parse`], and for pipelines, combinations of filters, metrics, and fields that are the same for all spans
/// of a trace.
pub fn parse_span_filter(text: &str) -> Result<FieldExpr> {
    let only_one =
        || Error::invalid("the filter must be one spanset filter such as { status = error }, without pipes, operators between filters, or metrics");
    let QueryBody::Search(pipeline) = parse(text)?.body else { return Err(only_one()) };
    let Ok([Stage::Spansets(SpansetExpr::Filter(filter))]) = <[Stage; 1]>::try_from(pipeline.stages) else { return Err(only_one()) };
    let mut of_trace = None;
    filter.visit_fields(&mut |field| {
        if let FieldRef::Intrinsic(Intrinsic::TraceId | Intrinsic::TraceDuration | Intrinsic::RootName | Intrinsic::RootService) = field {
            of_trace.get_or_insert(field);
        }
    });
    match of_trace {
        Some(field) => Err(Error::invalid(format!("{field} is the same for all spans of a trace and cannot filter them"))),
        None => Ok(filter),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_filter_over_spans_is_taken_and_all_else_refused() {
        let taken = |text: &str| assert!(parse_span_filter(text).is_ok(), "{text}");
        taken("{}");
        taken("{ status = error && resource.service.name = `shop` || nestedSetParent < 0 }");
        taken("{ event:name = `exception` && link.a = 1 }");
        let refused = |text: &str, expected: &str| {
            let error = parse_span_filter(text).unwrap_err();
            assert!(error.message().contains(expected), "{text}: {error}");
        };
        let only_one = "must be one spanset filter";
        refused("{ .a = }", "parse error at line 1, col 8");
        refused("{ .a } | count() > 1", only_one);
        refused("{ .a } | select(.b)", only_one);
        refused("{ .a } && { .b }", only_one);
        refused("{ .a } >> { .b }", only_one);
        refused("{ .a } | rate()", only_one);
        let same = "is the same for all spans";
        for field in
            ["trace:id = `1`", "trace:duration > 1s", "rootName = `a`", "rootServiceName = `a`", "trace:rootName = `a`", "traceDuration > 1s"]
        {
            refused(&format!("{{ status = error && {field} }}"), same);
        }
    }
}
