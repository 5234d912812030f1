//! `system.functions`: the functions that are ours. DataFusion's are in `information_schema.routines`.

use arrow::{array::ArrayRef, datatypes::Field};

use super::{text_field, texts};

/// What is to be known of a function.
#[derive(Debug)]
pub(crate) struct Described {
    pub(crate) name: &'static str,
    kind: &'static str,
    pub(crate) arguments: &'static str,
    pub(crate) description: &'static str,
    pub(crate) example: &'static str,
}

const FUNCTIONS: [Described; 7] = [
    Described {
        name: "attr",
        kind: "scalar",
        arguments: "key",
        description: "The attribute of the span, or else of its resource, as text, whether or not it has a column; null where there is none.",
        example: "SELECT attr('http.route'), count(*) FROM spans GROUP BY 1",
    },
    Described {
        name: "critical_path",
        kind: "table",
        arguments: "[query or trace id [, start, end]]",
        description: "All spans of all traces, of those in which a TraceQL query finds something, or of one, with critical_path_nanos: \
            the time that a span lies on the critical path of its trace.",
        example: "SELECT \"resource.service.name\", name, sum(critical_path_nanos) AS nanos FROM critical_path('{ status = error }') GROUP BY 1, 2 ORDER BY 3 DESC",
    },
    Described {
        name: "service_graph",
        kind: "table",
        arguments: "[query or trace id [, start, end]]",
        description: "Which service calls which, with calls, errors and quantiles of the time that calls take.",
        example: "SELECT client, server, calls, errors, p99_nanos FROM service_graph() ORDER BY calls DESC",
    },
    Described {
        name: "span_tree",
        kind: "table",
        arguments: "[query or trace id [, start, end]]",
        description: "Spans with their place in the trace (ordinal, depth, path), self time and time on the critical path.",
        example: "SELECT concat(repeat('  ', depth), name) AS span, duration_nanos FROM span_tree('0123456789abcdef0123456789abcdef') ORDER BY ordinal",
    },
    Described {
        name: "trace",
        kind: "table",
        arguments: "trace id",
        description: "The spans of one trace.",
        example: "SELECT name, duration_nanos FROM trace('0123456789abcdef0123456789abcdef')",
    },
    Described {
        name: "traceql",
        kind: "table",
        arguments: "query [, start, end]",
        description: "The spans of the spansets that a TraceQL search finds, with the number of the spanset in its trace.",
        example: "SELECT name, count(*) FROM traceql('{ kind = server } >> { status = error }') GROUP BY 1",
    },
    Described {
        name: "traceql_metrics",
        kind: "table",
        arguments: "query [, start, end [, step]]",
        description: "The samples of a TraceQL metrics query, a column for each label; without a step one sample for the whole window.",
        example: "SELECT \"resource.service.name\", value FROM traceql_metrics('{ status = error } | count_over_time() by (resource.service.name)')",
    },
];

/// What is to be known of the function `name`.
pub(crate) fn described(name: &str) -> Option<&'static Described> {
    FUNCTIONS.iter().find(|function| function.name == name)
}

pub(super) fn fields() -> Vec<Field> {
    ["name", "kind", "arguments", "description", "example"].map(|name| text_field(name, false)).into()
}

pub(super) fn arrays() -> Vec<ArrayRef> {
    let column = |of: fn(&Described) -> &'static str| texts(FUNCTIONS.iter().map(|function| of(function).to_owned()));
    vec![
        column(|function| function.name),
        column(|function| function.kind),
        column(|function| function.arguments),
        column(|function| function.description),
        column(|function| function.example),
    ]
}
