//! Two traces compared span by span: query-api 3.7.
//!
//! | module | owns |
//! |---|---|
//! | `tree` | a trace as a tree with a stable order |
//! | `pairs` | which span of one trace is which of the other |
//! | `patch` | what differs: the document `trace-patch-v0` |
//! | `summary` | what it amounts to: the documents `trace-summary-v0-native` and `-composed` |
//!
//! Knows nothing of requests: two traces in, a document out. Cost: linear in spans and attributes, but for sorting.

mod pairs;
mod patch;
mod summary;
#[cfg(test)]
mod tests;
mod tree;

use pairs::Pairs;
use patch::Patch;
use serde::Serialize;
use skein_engine::{
    error::{Error, Result},
    spans::TraceId,
};
use skein_proto::otlp::trace::v1::ResourceSpans;
use summary::Summary;
use tree::Tree;

/// A patch above this size is left out of the composed document: query-api 3.7.
const COMPOSED_PATCH_BYTES_MAX: usize = 64 << 10;

/// Durations that differ by no more than this and a tenth of the longer one count as equal: two runs never take the same time.
const DURATION_TOLERANCE_NANOS: u64 = 1_000_000;
const DURATION_TOLERANCE_PART: u64 = 10;

/// The documents that a comparison can be written as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum DiffFormat {
    #[default]
    Patch,
    Native,
    Composed,
}

impl DiffFormat {
    const ALL: [(&'static str, Self); 3] =
        [("trace-patch-v0", Self::Patch), ("trace-summary-v0-native", Self::Native), ("trace-summary-v0-composed", Self::Composed)];

    /// The name in requests, and `version` in documents.
    pub(crate) fn name(self) -> &'static str {
        Self::ALL[self as usize].0
    }

    /// The format of a name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(known, _)| *known == name).map(|(_, format)| format)
    }

    /// All names, for messages.
    pub(crate) fn names() -> String {
        Self::ALL.map(|(name, _)| name).join(", ")
    }
}

/// One of the two traces.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Side<'a> {
    pub(crate) id: TraceId,
    pub(crate) resource_spans: &'a [ResourceSpans],
}

/// Something that the reader of a document should know.
#[derive(Debug, Clone, Serialize)]
struct Warning {
    code: &'static str,
    message: String,
}

/// Compares two traces and writes the document of `format`. Errors: `Cancelled` when nobody waits any more.
pub(crate) fn document(base: Side<'_>, compare: Side<'_>, format: DiffFormat) -> Result<String> {
    let (base, compare) = (Tree::of(base)?, Tree::of(compare)?);
    let pairs = Pairs::of(&base, &compare)?;
    let patch = Patch::of(&base, &compare, &pairs)?;
    match format {
        DiffFormat::Patch => json(&patch),
        DiffFormat::Native => json(&Summary::of(&base, &compare, &pairs, &patch)),
        DiffFormat::Composed => {
            let summary = json(&Summary::of(&base, &compare, &pairs, &patch))?;
            let patch = json(&patch)?;
            let last = if patch.len() <= COMPOSED_PATCH_BYTES_MAX {
                format!(r#""patch":{patch}"#)
            } else {
                format!(r#""patchOmitted":{{"bytes":{},"reason":"over_budget"}}"#, patch.len())
            };
            Ok(format!(r#"{{"version":"{}","summary":{summary},{last}}}"#, format.name()))
        }
    }
}

fn json(document: &impl Serialize) -> Result<String> {
    serde_json::to_string(document).map_err(|e| Error::internal("writing a comparison").with_source(e))
}

/// Whether two durations differ by more than runs do.
fn differs(a: u64, b: u64) -> bool {
    a.abs_diff(b) > DURATION_TOLERANCE_NANOS.saturating_add(a.max(b) / DURATION_TOLERANCE_PART)
}
