//! Attribute names and values joined, and cut to the size that a tenant is allowed.

use std::collections::{BTreeMap, BTreeSet};

use skein_engine::query::{TagNames, TagScope, TagValues};
use skein_proto::tempo::TagValue;

/// Joins names by scope, sorted, each once.
pub(crate) fn names(results: Vec<TagNames>) -> TagNames {
    let mut merged = TagNames::default();
    let mut scopes: BTreeMap<TagScope, BTreeSet<String>> = BTreeMap::new();
    for result in results {
        merged.stats = merged.stats.plus(&result.stats);
        for (scope, names) in result.scopes {
            scopes.entry(scope).or_default().extend(names);
        }
    }
    merged.scopes = scopes.into_iter().filter(|(_, names)| !names.is_empty()).map(|(scope, names)| (scope, names.into_iter().collect())).collect();
    merged
}

/// Joins values, sorted by type and value, each once. One source keeps its own order.
pub(crate) fn values(mut results: Vec<TagValues>) -> TagValues {
    if results.len() == 1 {
        return results.remove(0);
    }
    let mut merged = TagValues::default();
    let mut values: BTreeMap<(String, String), TagValue> = BTreeMap::new();
    for result in results {
        merged.stats = merged.stats.plus(&result.stats);
        values.extend(result.values.into_iter().map(|value| ((value.r#type.clone(), value.value.clone()), value)));
    }
    merged.values = values.into_values().collect();
    merged
}

/// Keeps the first `count_max` items whose sizes together stay within what is left of `bytes_left`; 0 is no limit on the count.
pub(crate) fn cut<T>(items: &mut Vec<T>, count_max: usize, bytes_left: &mut usize, size: impl Fn(&T) -> usize) {
    if count_max > 0 {
        items.truncate(count_max);
    }
    let fitting = items
        .iter()
        .take_while(|item| {
            let bytes = size(item);
            let fits = bytes <= *bytes_left;
            *bytes_left = if fits { *bytes_left - bytes } else { 0 };
            fits
        })
        .count();
    items.truncate(fitting);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_joined_by_scope() {
        let result = |scopes: &[(TagScope, &[&str])]| TagNames {
            scopes: scopes.iter().map(|(scope, names)| (*scope, names.iter().map(|name| name.to_string()).collect())).collect(),
            ..Default::default()
        };
        let merged = names(vec![
            result(&[(TagScope::Span, &["b", "c"])]),
            result(&[(TagScope::Resource, &["r"]), (TagScope::Span, &["a", "c"]), (TagScope::Link, &[])]),
        ]);
        assert_eq!(merged.scopes, result(&[(TagScope::Resource, &["r"]), (TagScope::Span, &["a", "b", "c"])]).scopes);
    }

    #[test]
    fn values_of_different_types_stay_apart() {
        let result = |values: &[(&str, &str)]| TagValues {
            values: values.iter().map(|(kind, value)| TagValue { r#type: kind.to_string(), value: value.to_string() }).collect(),
            ..Default::default()
        };
        let merged = values(vec![result(&[("string", "1"), ("string", "b")]), result(&[("string", "b"), ("int", "1")])]);
        assert_eq!(merged.values, result(&[("int", "1"), ("string", "1"), ("string", "b")]).values);
    }

    #[test]
    fn lists_are_cut_by_count_and_bytes() {
        let check = |count_max, bytes, expected: &[&str]| {
            let mut items = vec!["aa", "bbb", "c", "d"];
            let mut left = bytes;
            cut(&mut items, count_max, &mut left, |item| item.len());
            assert_eq!(items, expected);
        };
        check(0, 100, &["aa", "bbb", "c", "d"]);
        check(2, 100, &["aa", "bbb"]);
        check(0, 4, &["aa"]);
        check(0, 6, &["aa", "bbb", "c"]);
    }
}
