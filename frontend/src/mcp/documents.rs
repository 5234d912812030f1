//! The documentation that models read. Written for this engine: a test parses every example.

/// The type of all documents.
pub(super) const MARKDOWN: &str = "text/markdown";

/// One text.
#[derive(Debug)]
pub(super) struct Document {
    /// Where it is found as a resource.
    pub(super) uri: &'static str,
    /// The documentation tool that reads it, and its name there.
    pub(super) tool: Option<(&'static str, &'static str)>,
    pub(super) title: &'static str,
    pub(super) description: &'static str,
    pub(super) text: &'static str,
}

pub(super) const TRACEQL_TOOL: &str = "docs-traceql";
pub(super) const CONFIG_TOOL: &str = "docs-config";

/// All documents.
pub(super) const DOCUMENTS: [Document; 7] = [
    Document {
        uri: "docs://traceql/query",
        tool: None,
        title: "Asking questions with TraceQL",
        description: "Which kind of query answers which question, and with which tool",
        text: include_str!("documents/query.md"),
    },
    Document {
        uri: "docs://traceql/basic",
        tool: Some((TRACEQL_TOOL, "basic")),
        title: "TraceQL: conditions on spans",
        description: "Fields, operators, types; begin here",
        text: include_str!("documents/basic.md"),
    },
    Document {
        uri: "docs://traceql/aggregates",
        tool: Some((TRACEQL_TOOL, "aggregates")),
        title: "TraceQL: conditions on groups of spans",
        description: "count, avg, min, max, sum, by, coalesce",
        text: include_str!("documents/aggregates.md"),
    },
    Document {
        uri: "docs://traceql/structural",
        tool: Some((TRACEQL_TOOL, "structural")),
        title: "TraceQL: where spans stand in their trace",
        description: "Parents, children, ancestors, descendants, siblings, and combinations of filters",
        text: include_str!("documents/structural.md"),
    },
    Document {
        uri: "docs://traceql/metrics",
        tool: Some((TRACEQL_TOOL, "metrics")),
        title: "TraceQL: numbers from spans",
        description: "Rates, counts, quantiles, histograms, groups, comparison, arithmetic",
        text: include_str!("documents/metrics.md"),
    },
    Document {
        uri: "docs://config/overview",
        tool: Some((CONFIG_TOOL, "config-overview")),
        title: "Configuration: what to look at first",
        description: "The settings that matter, and a small production file",
        text: include_str!("documents/config-overview.md"),
    },
    Document {
        uri: "docs://config/reference",
        tool: Some((CONFIG_TOOL, "config-reference")),
        title: "Configuration: all keys",
        description: "Every key with its default, limits per tenant, what bounds a query",
        text: include_str!("../../../docs/configuration.md"),
    },
];

/// The names that a documentation tool knows.
pub(super) fn names_of(tool: &str) -> impl Iterator<Item = &'static str> {
    DOCUMENTS.iter().filter_map(|document| document.tool).filter(move |(of, _)| *of == tool).map(|(_, name)| name)
}

/// The text that a documentation tool has under `name`.
pub(super) fn text_of(tool: &str, name: &str) -> Option<&'static str> {
    DOCUMENTS.iter().find(|document| document.tool == Some((tool, name))).map(|document| document.text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skein_engine::traceql::{self, QueryBody};

    use super::*;

    /// The lines of the fenced blocks of `language`.
    fn examples<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
        let fence = format!("```{language}\n");
        text.split(fence.as_str()).skip(1).flat_map(|rest| rest.split("```").next().unwrap().lines()).collect()
    }

    #[test]
    fn every_example_parses() {
        let mut parsed = 0;
        for document in &DOCUMENTS {
            for example in examples(document.text, "traceql") {
                traceql::parse(example).unwrap_or_else(|error| panic!("{}: {example}: {error}", document.uri));
                parsed += 1;
            }
        }
        assert!(parsed > 40, "{parsed}");
    }

    #[test]
    fn metrics_are_only_where_they_are_explained() {
        for document in DOCUMENTS.iter().filter(|document| document.uri != "docs://traceql/query") {
            for example in examples(document.text, "traceql") {
                let is_metrics = matches!(traceql::parse(example).unwrap().body, QueryBody::Metrics(_));
                assert_eq!(is_metrics, document.uri == "docs://traceql/metrics", "{example}");
            }
        }
    }

    #[test]
    fn inline_examples_parse_too() {
        for document in &DOCUMENTS[..5] {
            let inline = document.text.split('`').skip(1).step_by(2).filter(|code| code.starts_with('{') && !code.contains('…'));
            for example in inline.filter(|code| !["{ A } \\|\\| { B }"].contains(code)) {
                let example = example.replace("{ A", "{ span.a").replace("B }", "span.b }").replace("&& B", "&& span.b");
                traceql::parse(&example).unwrap_or_else(|error| panic!("{}: {example}: {error}", document.uri));
            }
        }
    }
}
