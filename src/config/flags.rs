//! Flags in Tempo's form: `-name=value`, `-name value`, `--name`, and a bare `-name` for those that are true or false.
//!
//! Every key of the configuration has a flag: its path with `-` for `_` (`-server.http-listen-port`, `-storage.trace.wal.path`).
//! The flags that are named otherwise are in [`RENAMED`].

use serde_yaml_ng::Value;

use super::{
    schema::{Kind, Node, ROOT},
    walk,
};

/// What the command line asks for.
#[derive(Debug, Default, PartialEq)]
pub struct Flags {
    /// `-config.file`.
    pub config_file: Option<String>,
    /// `-config.expand-env`.
    pub expand_env: bool,
    /// `-config.verify`.
    pub verify: bool,
    /// `-version`.
    pub version: bool,
    /// `-help`.
    pub help: bool,
    /// Keys set by flags, in order.
    pub keys: Vec<(Vec<&'static str>, Value)>,
    /// Flags of Tempo without meaning here.
    pub warnings: Vec<String>,
}

/// Flags whose name is not the path of their key.
const RENAMED: &[(&str, &[&str])] = &[
    ("multitenancy.enabled", &["multitenancy_enabled"]),
    ("auth.enabled", &["auth_enabled"]),
    ("log.level", &["server", "log_level"]),
    ("log.format", &["server", "log_format"]),
    ("mcp-server.enabled", &["query_frontend", "mcp_server", "enabled"]),
];

/// Tempo's flags that are accepted without effect, and whether they are switches.
const IGNORED: &[(&str, bool)] = &[
    ("mem-ballast-size-mbs", false),
    ("mutex-profile-fraction", false),
    ("block-profile-threshold", false),
    ("enable-go-runtime-metrics", true),
    ("memberlist.host-port", false),
    ("memberlist.join", false),
    ("memberlist.bind-port", false),
    ("memberlist.bind-addr", false),
    ("memberlist.nodename", false),
    ("memberlist.advertise-addr", false),
    ("memberlist.advertise-port", false),
    ("memberlist.cluster-label", false),
    ("querier.frontend-address", false),
    ("ingester.lifecycler.ID", false),
    ("ingester.lifecycler.availability-zone", false),
    ("ingester.availability-zone", false),
    ("metrics-generator.ring.instance-id", false),
    ("backend-worker.backend-scheduler-addr", false),
    ("usage-report.reporting-enabled", true),
    ("reporting.enabled", true),
    ("distributor.log-received-spans.enabled", true),
    ("distributor.log-received-spans.include-attributes", true),
    ("distributor.log-received-spans.filter-by-status-error", true),
    ("distributor.log-discarded-spans.enabled", true),
    ("distributor.log-discarded-spans.include-attributes", true),
    ("distributor.log-discarded-spans.filter-by-status-error", true),
];

/// Reads the arguments after the program's name. Errors: the first argument that is wrong, and the flag it may have meant.
pub fn parse(args: &[String]) -> Result<Flags, String> {
    let mut flags = Flags::default();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).filter(|flag| !flag.is_empty()) else {
            return Err(format!("unexpected argument '{arg}'; flags begin with -, and `skein help` lists the subcommands"));
        };
        let (name, inline) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
        let target = target(name).ok_or_else(|| match walk::closest(name, all_names().iter().map(String::as_str)) {
            Some(near) => format!("unknown flag -{name}, did you mean -{near}?"),
            None => format!("unknown flag -{name}"),
        })?;
        let is_switch = matches!(target, Target::Switch(_) | Target::Ignored(true) | Target::Key(_, Kind::Bool));
        let value = match inline {
            Some(value) => value,
            None if is_switch => "true",
            None => rest.next().ok_or_else(|| format!("flag -{name} needs a value"))?,
        };
        let wrong = |expected: &str| format!("flag -{name}: expected {expected}, found '{value}'");
        match target {
            Target::ConfigFile => flags.config_file = Some(value.to_owned()),
            Target::Switch(switch) => *switch(&mut flags) = truth(value).ok_or_else(|| wrong("true or false"))?,
            Target::Ignored(_) => flags.warnings.push(format!("flag -{name}: has no effect here")),
            Target::Key(path, kind) => {
                let value = match kind {
                    Kind::Bool => Value::Bool(truth(value).ok_or_else(|| wrong("true or false"))?),
                    Kind::Integer => Value::from(value.parse::<u64>().map_err(|_| wrong("a whole number"))?),
                    _ => Value::from(value),
                };
                flags.keys.push((path, value));
            }
        }
    }
    Ok(flags)
}

enum Target {
    ConfigFile,
    Switch(fn(&mut Flags) -> &mut bool),
    Ignored(bool),
    Key(Vec<&'static str>, Kind),
}

fn target(name: &str) -> Option<Target> {
    match name {
        "config.file" => return Some(Target::ConfigFile),
        "config.expand-env" => return Some(Target::Switch(|flags| &mut flags.expand_env)),
        "config.verify" => return Some(Target::Switch(|flags| &mut flags.verify)),
        "version" | "v" => return Some(Target::Switch(|flags| &mut flags.version)),
        "help" | "h" => return Some(Target::Switch(|flags| &mut flags.help)),
        _ => {}
    }
    let ignored = IGNORED.iter().find(|(known, _)| *known == name).map(|(_, switch)| Target::Ignored(*switch));
    ignored.or_else(|| keys().into_iter().find(|(flag, ..)| flag == name).map(|(_, path, kind)| Target::Key(path, kind)))
}

/// The flag, path and kind of every key that a flag can set.
fn keys() -> Vec<(String, Vec<&'static str>, Kind)> {
    let mut keys = Vec::new();
    walk::paths(&ROOT, &mut Vec::new(), &mut |path, node| {
        if let Node::Key(kind) = node
            && *kind != Kind::Free
        {
            let renamed = RENAMED.iter().find(|(_, renamed)| *renamed == path).map(|(flag, _)| (*flag).to_owned());
            keys.push((renamed.unwrap_or_else(|| path.join(".").replace('_', "-")), path.to_vec(), *kind));
        }
    });
    keys
}

fn all_names() -> Vec<String> {
    let own = ["config.file", "config.expand-env", "config.verify", "version", "help"].map(str::to_owned);
    let ignored = IGNORED.iter().map(|(name, _)| (*name).to_owned());
    own.into_iter().chain(ignored).chain(keys().into_iter().map(|(flag, ..)| flag)).collect()
}

/// The text of `-help`: every flag, sorted.
pub fn help() -> String {
    let mut lines: Vec<String> = keys()
        .into_iter()
        .map(|(flag, _, kind)| match kind {
            Kind::Bool => format!("  -{flag}"),
            Kind::Integer => format!("  -{flag} <number>"),
            Kind::Duration => format!("  -{flag} <duration>"),
            Kind::OneOf(words) => format!("  -{flag} <{}>", words.join("|")),
            Kind::Text | Kind::Free => format!("  -{flag} <text>"),
        })
        .collect();
    lines.extend(["  -config.file <path>", "  -config.expand-env", "  -config.verify", "  -version"].map(str::to_owned));
    lines.sort();
    lines.join("\n")
}

fn truth(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parsed(line: &str) -> Result<Flags, String> {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn every_form_of_a_flag_means_the_same() {
        let port = |line: &str| parsed(line).unwrap().keys;
        let expected = vec![(vec!["server", "http_listen_port"], Value::from(3300))];
        for line in ["-server.http-listen-port=3300", "-server.http-listen-port 3300", "--server.http-listen-port=3300"] {
            assert_eq!(port(line), expected, "{line}");
        }
    }

    #[test]
    fn tempos_common_flags_are_known() {
        let flags = parsed(
            "-target=all -config.file /etc/tempo.yaml -config.expand-env=true -multitenancy.enabled -log.level=warn -http-api-prefix=/t \
             -shutdown-delay=5s -storage.trace.backend=local -storage.trace.local.path=/b -storage.trace.wal.path=/w -mem-ballast-size-mbs=1024",
        )
        .unwrap();
        assert_eq!(flags.config_file.as_deref(), Some("/etc/tempo.yaml"));
        assert!(flags.expand_env && !flags.verify);
        let set = |path: &[&str]| flags.keys.iter().find(|(key, _)| key == path).map(|(_, value)| value.clone());
        assert_eq!(set(&["multitenancy_enabled"]), Some(Value::from(true)));
        assert_eq!(set(&["server", "log_level"]), Some(Value::from("warn")));
        assert_eq!(set(&["storage", "trace", "wal", "path"]), Some(Value::from("/w")));
        assert_eq!(flags.warnings, ["flag -mem-ballast-size-mbs: has no effect here"]);
    }

    #[test]
    fn wrong_flags_are_explained() {
        let check = |line: &str, expected: &str| assert_eq!(parsed(line).unwrap_err(), expected, "{line}");
        check("-server.http-listen-prt=1", "unknown flag -server.http-listen-prt, did you mean -server.http-listen-port?");
        check("-server.http-listen-port=x", "flag -server.http-listen-port: expected a whole number, found 'x'");
        check("-target", "flag -target needs a value");
        check("-config.verify=maybe", "flag -config.verify: expected true or false, found 'maybe'");
        assert!(parsed("server").unwrap_err().starts_with("unexpected argument 'server'"));
    }
}
