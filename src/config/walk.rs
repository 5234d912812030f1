//! Checks a configuration against the tree of known keys: what is unknown or wrong is an error, what has no meaning here a warning, and
//! what is left is only what the settings read.

use serde_yaml_ng::{Mapping, Value};

use super::schema::{Kind, LEGACY_OVERRIDES, Node, ROOT};

/// What a check found. Keys are named by their full path.
#[derive(Debug, Default)]
pub struct Findings {
    /// Reasons not to start.
    pub errors: Vec<String>,
    /// Things to know.
    pub warnings: Vec<String>,
}

/// Goes through `config`, removes the keys without meaning and the empty ones, and reports. `text` is where `config` was read from;
/// lines are named when they can be found there.
pub fn check(config: &mut Value, text: &str) -> Findings {
    let mut findings = Findings::default();
    move_legacy_overrides(config, &mut findings);
    check_below(&ROOT, config, &mut Vec::new(), text, &mut findings);
    findings
}

/// The same for the part of a configuration that stands at `path` and has the shape of `node`.
pub fn check_below(node: &'static Node, value: &mut Value, path: &mut Vec<String>, text: &str, findings: &mut Findings) {
    Walk { text, findings }.node(node, value, path);
}

struct Walk<'a> {
    text: &'a str,
    findings: &'a mut Findings,
}

impl Walk<'_> {
    /// Returns whether the value is to be kept.
    fn node(&mut self, node: &'static Node, value: &mut Value, path: &mut Vec<String>) -> bool {
        if value.is_null() {
            return false;
        }
        match node {
            Node::Key(kind) => {
                if *kind == Kind::Text && (value.is_number() || value.is_bool()) {
                    *value = Value::from(shown(value));
                }
                if let Some(expected) = mismatch(*kind, value) {
                    self.error(path, &format!("expected {expected}, found {}", shown(value)));
                }
                true
            }
            Node::Ignored => {
                self.findings.warnings.push(format!("{}: has no effect here", path.join(".")));
                false
            }
            Node::Refused(instead) => {
                if !is_blank(value) {
                    self.error(path, instead);
                }
                false
            }
            Node::Section(keys) => {
                let Value::Mapping(map) = value else {
                    self.error(path, &format!("expected a section with keys, found {}", shown(value)));
                    return false;
                };
                let said_something = !map.is_empty();
                self.section(keys, map, path);
                // A section that is left empty had only keys without meaning; one that was empty may mean something by being there.
                !(said_something && map.is_empty())
            }
        }
    }

    fn section(&mut self, keys: &'static [(&'static str, Node)], map: &mut Mapping, path: &mut Vec<String>) {
        let mut kept = Mapping::new();
        for (key, mut value) in std::mem::take(map) {
            let name = match &key {
                Value::String(name) => name.clone(),
                other => shown(other),
            };
            path.push(name.clone());
            match keys.iter().find(|(known, _)| *known == name) {
                Some((_, node)) => {
                    if self.node(node, &mut value, path) {
                        kept.insert(key, value);
                    }
                }
                None => {
                    let hint = nearest(&name, keys).map(|near| format!(", did you mean {near}?")).unwrap_or_default();
                    self.error(path, &format!("unknown key{hint}"));
                }
            }
            path.pop();
        }
        *map = kept;
    }

    fn error(&mut self, path: &[String], problem: &str) {
        let line = line_of(self.text, path).map(|line| format!("line {line}: ")).unwrap_or_default();
        self.findings.errors.push(format!("{line}{}: {problem}", path.join(".")));
    }
}

/// What a value should have been, if it is not.
fn mismatch(kind: Kind, value: &Value) -> Option<String> {
    let fits = match kind {
        Kind::Bool => value.is_bool(),
        Kind::Integer => value.is_u64(),
        Kind::Duration => match value {
            Value::String(text) => skein_engine::clock::parse_duration(text).is_some(),
            other => other.is_u64(),
        },
        Kind::Text => value.is_string(),
        Kind::OneOf(words) => value.as_str().is_some_and(|text| words.contains(&text)),
        Kind::Free => true,
    };
    (!fits).then(|| match kind {
        Kind::Bool => "true or false".to_owned(),
        Kind::Integer => "a whole number".to_owned(),
        Kind::Duration => "a duration such as 30s, 5m or 1h30m".to_owned(),
        Kind::Text => "text".to_owned(),
        Kind::OneOf(words) => format!("one of {}", words.join(", ")),
        Kind::Free => "anything".to_owned(),
    })
}

fn shown(value: &Value) -> String {
    match value {
        Value::Mapping(_) => "a map".to_owned(),
        Value::Sequence(_) => "a list".to_owned(),
        Value::String(text) => format!("'{text}'"),
        other => serde_yaml_ng::to_string(other).unwrap_or_default().trim_end().to_owned(),
    }
}

/// Whether a value says nothing: null, false, zero, or empty all the way down.
fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Sequence(items) => items.iter().all(is_blank),
        Value::Mapping(map) => map.values().all(is_blank),
        Value::Tagged(tagged) => is_blank(&tagged.value),
    }
}

/// The sibling that `name` is most likely a slip of, else the path of a key of exactly this name elsewhere.
fn nearest(name: &str, siblings: &'static [(&'static str, Node)]) -> Option<String> {
    let near = closest(name, siblings.iter().map(|(known, _)| *known)).map(str::to_owned);
    near.or_else(|| {
        let mut found = Vec::new();
        paths(&ROOT, &mut Vec::new(), &mut |path, _| {
            if path.last() == Some(&name) {
                found.push(path.join("."));
            }
        });
        found.into_iter().next()
    })
}

/// The one of `names` that `name` is most likely a slip of.
pub fn closest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).max(2);
    let by_distance = names.map(|known| (strsim::osa_distance(name, known), known));
    by_distance.min().filter(|(distance, _)| *distance <= limit).map(|(_, known)| known)
}

/// Calls `visit` with the path and node of everything below `node`.
pub fn paths(node: &'static Node, path: &mut Vec<&'static str>, visit: &mut dyn FnMut(&[&'static str], &'static Node)) {
    if let Node::Section(keys) = node {
        for (name, child) in *keys {
            path.push(name);
            visit(path, child);
            paths(child, path, visit);
            path.pop();
        }
    }
}

/// The line of a key in block style, counted from 1. None when the text is in flow style or the key came from a flag.
fn line_of(text: &str, path: &[String]) -> Option<usize> {
    let mut open: Vec<(usize, &str)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let content = line.trim_start();
        if content.is_empty() || content.starts_with('#') || content.starts_with('-') {
            continue;
        }
        let Some((key, _)) = content.split_once(':') else { continue };
        let indent = line.len() - content.len();
        while open.last().is_some_and(|(depth, _)| *depth >= indent) {
            open.pop();
        }
        open.push((indent, key.trim().trim_matches(['"', '\''])));
        if open.len() == path.len() && open.iter().zip(path).all(|((_, key), wanted)| key == wanted) {
            return Some(index + 1);
        }
    }
    None
}

/// The flat keys of Tempo's older form that a section of limits had.
#[derive(Debug, Default)]
pub struct FlatLimits {
    /// Flat name, place in the scoped form, value.
    pub moved: Vec<(&'static str, &'static [&'static str], Value)>,
    /// Names without meaning here.
    pub ignored: Vec<String>,
}

/// Takes the flat keys out of `section`.
pub fn take_flat_limits(section: &mut Mapping) -> FlatLimits {
    let mut flat = FlatLimits::default();
    for &(name, place) in LEGACY_OVERRIDES {
        flat.moved.extend(section.remove(name).map(|value| (name, place, value)));
    }
    let of_generator = |key: &Value| key.as_str().filter(|key| key.starts_with("metrics_generator_")).map(str::to_owned);
    flat.ignored = section.keys().filter_map(of_generator).collect();
    for name in &flat.ignored {
        section.remove(name.as_str());
    }
    flat
}

/// Moves the flat keys directly below `overrides` to their places in `overrides.defaults`.
fn move_legacy_overrides(config: &mut Value, findings: &mut Findings) {
    let Some(Value::Mapping(overrides)) = config.get_mut("overrides") else { return };
    let flat = take_flat_limits(overrides);
    for (name, place, value) in flat.moved {
        let new = format!("overrides.defaults.{}", place.join("."));
        findings.warnings.push(format!("overrides.{name}: the older form of {new}"));
        let mut defaults = overrides.remove("defaults").unwrap_or(Value::Null);
        set(&mut defaults, place, value);
        overrides.insert("defaults".into(), defaults);
    }
    findings.warnings.extend(flat.ignored.iter().map(|name| format!("overrides.{name}: has no effect here")));
}

/// Puts `value` at `path`, making the sections on the way and replacing what is not one.
pub fn set(config: &mut Value, path: &[&str], value: Value) {
    let mut place = config;
    for name in path {
        if !place.is_mapping() {
            *place = Value::Mapping(Mapping::new());
        }
        let Value::Mapping(map) = place else { unreachable!("made a map just above") };
        place = map.entry((*name).into()).or_insert(Value::Null);
    }
    *place = value;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn errors(text: &str) -> Vec<String> {
        check(&mut serde_yaml_ng::from_str(text).unwrap(), text).errors
    }

    #[test]
    fn an_unknown_key_is_named_with_line_path_and_neighbour() {
        let check = |text: &str, expected: &str| assert_eq!(errors(text), [expected], "{text}");
        check(
            "server:\n  http_listen_port: 3200\n\ningester:\n  # a comment: here\n  max_blok_bytes: 1\n",
            "line 6: ingester.max_blok_bytes: unknown key, did you mean max_block_bytes?",
        );
        check("severs: {}\n", "line 1: severs: unknown key, did you mean server?");
        check("max_block_bytes: 1\n", "line 1: max_block_bytes: unknown key, did you mean ingester.max_block_bytes?");
        check("storage: {trace: {qqqqqqqqqq: 1}}", "storage.trace.qqqqqqqqqq: unknown key");
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_named() {
        let check = |text: &str, expected: &str| assert_eq!(errors(text), [expected], "{text}");
        check(
            "ingester:\n  max_block_duration: soon",
            "line 2: ingester.max_block_duration: expected a duration such as 30s, 5m or 1h30m, found 'soon'",
        );
        check("server: {http_listen_port: -1}", "server.http_listen_port: expected a whole number, found -1");
        check("storage: {trace: {wal: {sync: often}}}", "storage.trace.wal.sync: expected one of always, batch, never, found 'often'");
        check("server: 3200", "line 1: server: expected a section with keys, found 3200");
    }

    #[test]
    fn keys_without_meaning_are_warned_of_once_and_removed() {
        let text = "memberlist: {join_members: [a, b], bind_port: 1}\nquerier: {}\nserver: {http_listen_port: 1}\ndistributor:\n";
        let mut config = serde_yaml_ng::from_str(text).unwrap();
        let findings = check(&mut config, text);
        assert_eq!(findings.errors, [""; 0]);
        assert_eq!(findings.warnings, ["memberlist: has no effect here", "querier: has no effect here"]);
        assert_eq!(config, serde_yaml_ng::from_str::<Value>("server: {http_listen_port: 1}").unwrap());
    }

    #[test]
    fn what_must_not_be_overlooked_is_refused_unless_it_is_empty() {
        assert_eq!(errors("server: {http_tls_config: {cert_file: '', key_file: ''}, http_path_prefix: ''}"), [""; 0]);
        assert_eq!(errors("server: {http_tls_config: {cert_file: a.pem}}").len(), 1);
    }

    #[test]
    fn flat_overrides_move_to_their_place() {
        let text = "overrides: {ingestion_rate_limit_bytes: 5, max_bytes_per_trace: 1, metrics_generator_processors: [a]}";
        let mut config = serde_yaml_ng::from_str(text).unwrap();
        let findings = check(&mut config, text);
        assert_eq!(findings.errors, [""; 0]);
        assert_eq!(findings.warnings.len(), 3, "{:?}", findings.warnings);
        assert_eq!(config["overrides"]["defaults"]["ingestion"]["rate_limit_bytes"], Value::from(5));
    }
}
