//! `system.queries`: what ran for the tenant in this process, the latest first.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, StringArray},
    datatypes::Field,
};

use super::{count_field, counts, text_field, texts, time_field, times};
use crate::exec::history::EndedQuery;

pub(super) fn fields() -> Vec<Field> {
    let counts =
        ["duration_nanos", "rows", "blocks", "row_groups_read", "row_groups_cached", "row_groups_skipped", "spans_read", "bytes_read", "requests"];
    let mut fields = vec![time_field("time"), text_field("language", false), text_field("text", false), text_field("error", true)];
    fields.extend(counts.map(|name| count_field(name, false)));
    fields
}

pub(super) fn arrays(queries: &[EndedQuery]) -> Vec<ArrayRef> {
    let count = |of: fn(&EndedQuery) -> u64| counts(queries.iter().map(of));
    vec![
        times(queries.iter().map(|query| query.began_unix_nano)),
        texts(queries.iter().map(|query| query.language.as_str().to_owned())),
        texts(queries.iter().map(|query| query.text.clone())),
        Arc::new(StringArray::from_iter(queries.iter().map(|query| query.error.as_deref()))),
        count(|query| query.duration_nanos),
        count(|query| query.rows),
        count(|query| query.stats.blocks),
        count(|query| query.stats.row_groups),
        count(|query| query.stats.row_groups_cached),
        count(|query| query.stats.row_groups_skipped),
        count(|query| query.stats.spans),
        count(|query| query.stats.bytes),
        count(|query| query.stats.reads),
    ]
}
