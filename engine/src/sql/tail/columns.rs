//! The columns of a tail.

use std::collections::HashSet;

use super::super::columns::{SqlColumn, SqlType, span_columns};
use crate::{
    error::{Error, Result},
    traceql::AttributeScope,
};

/// Most columns.
const COLUMNS_MAX: usize = 1_000;

/// How attributes begin, and their scopes.
const SCOPES: [(&str, AttributeScope); 3] =
    [("resource.", AttributeScope::Resource), ("span.", AttributeScope::Span), ("instrumentation.", AttributeScope::Instrumentation)];

/// The columns `names`, of those that are `known` and `spanset`; without names the fixed ones of `spans`, `resource.service.name` and `spanset`.
/// An attribute that is not known is text: spans that have it may come. Errors: `Invalid`.
pub(super) fn named(names: Option<&[String]>, mut known: Vec<SqlColumn>) -> Result<Vec<SqlColumn>> {
    known.push(SqlColumn::spanset());
    let Some(names) = names else { return Ok(known) };
    if names.is_empty() || names.len() > COLUMNS_MAX {
        return Err(Error::invalid(format!("columns names {} columns: name 1 to {COLUMNS_MAX}, or leave it out", names.len())));
    }
    if let Some(twice) = first_repeated(names) {
        return Err(Error::invalid(format!("columns names {twice:?} twice")));
    }
    names
        .iter()
        .map(|name| known.iter().find(|column| column.name == *name).cloned().or_else(|| unknown_attribute(name)).ok_or_else(|| refused(name)))
        .collect()
}

fn first_repeated(names: &[String]) -> Option<&String> {
    let mut seen = HashSet::new();
    names.iter().find(|name| !seen.insert(*name))
}

fn unknown_attribute(name: &str) -> Option<SqlColumn> {
    let (prefix, scope) = SCOPES.iter().find(|(prefix, _)| name.starts_with(prefix))?;
    let key = &name[prefix.len()..];
    (!key.is_empty()).then(|| SqlColumn::attribute(*scope, key, SqlType::Text))
}

fn refused(name: &str) -> Error {
    let fixed: Vec<String> = span_columns(&[]).into_iter().map(|column| column.name).filter(|name| !name.contains('.')).collect();
    let name: String = name.chars().take(200).collect();
    Error::invalid(format!(
        "there is no column {name:?}: there are {}, spanset, and attributes with their scope, such as \"resource.service.name\" and \"span.http.route\"",
        fixed.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(names: &[&str], expected: Result<&[(&str, SqlType)], &str>) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        match (named(Some(&names), span_columns(&[])), expected) {
            (Ok(found), Ok(expected)) => {
                let found: Vec<_> = found.iter().map(|column| (column.name.as_str(), column.kind)).collect();
                assert_eq!(found, expected);
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error} lacks {part}"),
            (found, expected) => panic!("{found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn columns_are_those_named_and_unknown_attributes_are_text() {
        check(&["name", "trace_id", "spanset"], Ok(&[("name", SqlType::Dictionary), ("trace_id", SqlType::Dictionary), ("spanset", SqlType::Int)]));
        check(&["resource.service.name", "span.a.b"], Ok(&[("resource.service.name", SqlType::Dictionary), ("span.a.b", SqlType::Text)]));
        check(&["nam"], Err("there is no column \"nam\": there are trace_id, span_id,"));
        check(&["span."], Err("there is no column \"span.\""));
        check(&["event.x"], Err("attributes with their scope"));
        check(&["name", "name"], Err("\"name\" twice"));
        check(&[], Err("names 0 columns"));
        assert_eq!(named(None, span_columns(&[])).unwrap().last().unwrap().name, "spanset");
    }
}
