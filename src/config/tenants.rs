//! The file of limits per tenant (`overrides.per_tenant_override_config`), read at the start and again while the process runs.
//!
//! It holds `overrides: {<tenant>: {…}}`, each entry in the form of `overrides.defaults` or in Tempo's older flat form. An entry replaces the
//! defaults as a whole: a key that it leaves out has the built-in value. The entry `*` is for all tenants that have none.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde_yaml_ng::{Mapping, Value};
use skein_engine::{
    error::{Error, Result},
    tenant::TenantId,
};

use super::{
    LimitsSection, envsubst,
    schema::LIMITS,
    walk::{self, Findings},
};

/// The entry for tenants that have none of their own.
const ANY_TENANT: &str = "*";

/// Largest file that is read; a thousand times the size of a file that somebody wrote.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Where the file lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantFile {
    /// Its path.
    pub path: PathBuf,
    /// Whether `${…}` in it is replaced, as in the main file.
    pub expand_env: bool,
}

/// What the file says.
#[derive(Debug, Default, PartialEq)]
pub struct TenantOverrides {
    /// By tenant id.
    pub limits: TenantLimits,
    /// Things to know, one a line.
    pub warnings: Vec<String>,
}

/// The limits of the tenants that have their own.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct TenantLimits(BTreeMap<TenantId, LimitsSection>);

impl TenantLimits {
    /// The entry of `tenant`, or that for all tenants without one.
    pub fn of(&self, tenant: &TenantId) -> Option<&LimitsSection> {
        self.0.get(tenant).or_else(|| self.0.iter().find(|(id, _)| id.as_str() == ANY_TENANT).map(|(_, limits)| limits))
    }

    /// The entries by tenant, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&TenantId, &LimitsSection)> {
        self.0.iter()
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl TenantFile {
    /// Reads the file. Blocks. Errors: `Invalid`, naming the file and every wrong key on a line.
    pub fn read(&self) -> Result<TenantOverrides> {
        let named = |error: Error| error.context(self.path.display());
        let text = self.text().map_err(named)?;
        parse(&text).map_err(named)
    }

    fn text(&self) -> Result<String> {
        let failed = |error: std::io::Error| Error::invalid("reading the limits per tenant").with_source(error);
        let bytes = std::fs::metadata(&self.path).map_err(failed)?.len();
        if bytes > FILE_BYTES_MAX {
            return Err(Error::invalid(format!("{bytes} bytes of limits per tenant, more than {FILE_BYTES_MAX}")));
        }
        let text = std::fs::read_to_string(&self.path).map_err(failed)?;
        if !self.expand_env {
            return Ok(text);
        }
        envsubst::expand(&text, |name| std::env::var(name).ok()).map_err(|error| Error::invalid(format!("expanding variables: {error}")))
    }
}

fn parse(text: &str) -> Result<TenantOverrides> {
    let wrong = |error: serde_yaml_ng::Error| Error::invalid("reading the limits per tenant").with_source(error);
    let mut findings = Findings::default();
    let mut ignored = BTreeSet::new();
    let mut tenants = BTreeMap::new();
    for (key, mut entry) in entries(serde_yaml_ng::from_str(text).map_err(wrong)?, &mut findings) {
        let name = key.as_str().map_or_else(|| serde_yaml_ng::to_string(&key).unwrap_or_default().trim_end().to_owned(), str::to_owned);
        let path = &mut vec!["overrides".to_owned(), name.clone()];
        if let Value::Mapping(section) = &mut entry {
            nest_flat(section, &mut ignored);
        }
        let mut own = Findings::default();
        walk::check_below(&LIMITS, &mut entry, path, text, &mut own);
        findings.errors.append(&mut own.errors);
        // Told once, not for each of a thousand tenants.
        ignored.extend(own.warnings.iter().map(|warning| warning.replacen(&format!("overrides.{name}."), "", 1)));
        match TenantId::parse(&name) {
            Ok(tenant) => drop(tenants.insert(tenant, entry)),
            Err(error) => findings.errors.push(format!("overrides.{name}: {error}")),
        }
    }
    if !findings.errors.is_empty() {
        return Err(Error::invalid(findings.errors.join("\n")));
    }
    let limits = tenants
        .into_iter()
        .map(|(tenant, entry)| Ok((tenant, if entry.is_null() { LimitsSection::default() } else { serde_yaml_ng::from_value(entry)? })));
    let limits = TenantLimits(limits.collect::<Result<_, _>>().map_err(wrong)?);
    Ok(TenantOverrides { limits, warnings: ignored.into_iter().map(|warning| format!("limits per tenant: {warning}")).collect() })
}

/// The tenants' entries of the file.
fn entries(file: Value, findings: &mut Findings) -> Mapping {
    let mut sections = match file {
        Value::Null => return Mapping::new(),
        Value::Mapping(sections) => sections,
        _ => {
            findings.errors.push("expected overrides: {<tenant>: {…}}".to_owned());
            return Mapping::new();
        }
    };
    let tenants = sections.remove("overrides").unwrap_or(Value::Null);
    findings.errors.extend(sections.keys().map(|key| format!("{}: unknown key, expected overrides", key.as_str().unwrap_or("?"))));
    match tenants {
        Value::Null => Mapping::new(),
        Value::Mapping(tenants) => tenants,
        _ => {
            findings.errors.push("overrides: expected a section with tenants".to_owned());
            Mapping::new()
        }
    }
}

/// Moves flat keys of an entry to their places.
fn nest_flat(section: &mut Mapping, warnings: &mut BTreeSet<String>) {
    let flat = walk::take_flat_limits(section);
    let mut scoped = Value::Mapping(std::mem::take(section));
    for (name, place, value) in flat.moved {
        warnings.insert(format!("{name}: the older form of {}", place.join(".")));
        walk::set(&mut scoped, place, value);
    }
    warnings.extend(flat.ignored.iter().map(|name| format!("{name}: has no effect here")));
    if let Value::Mapping(scoped) = scoped {
        *section = scoped;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    fn of(overrides: &TenantOverrides, tenant: &str) -> Option<LimitsSection> {
        overrides.limits.of(&TenantId::parse(tenant).unwrap()).copied()
    }

    #[test]
    fn entries_are_read_in_both_forms() {
        let file = parse(
            "
overrides:
  new:
    ingestion: {rate_limit_bytes: 10, burst_size_bytes: 20}
    read: {max_search_duration: 24h, max_condition_groups_per_tag_query: 7}
    global: {max_bytes_per_trace: 30}
    forwarders: [a]
  'old':
    ingestion_rate_limit_bytes: 10
    max_search_duration: 24h
    metrics_generator_processors: [service-graphs]
    block_retention: 48h
  other:
    forwarders: [b]
  7:
",
        )
        .unwrap();
        let new = of(&file, "new").unwrap();
        assert_eq!((new.ingestion.rate_limit_bytes, new.ingestion.burst_size_bytes, new.global.max_bytes_per_trace), (10, 20, 30));
        assert_eq!((new.read.max_search_duration, new.read.max_condition_groups_per_tag_query), (Duration::from_secs(86_400), 7));
        let old = of(&file, "old").unwrap();
        assert_eq!((old.ingestion.rate_limit_bytes, old.read.max_search_duration), (10, Duration::from_secs(86_400)));
        assert_eq!(old.compaction().block_retention, Duration::from_secs(48 * 3_600));
        assert_eq!(of(&file, "7"), Some(LimitsSection::default()));
        assert_eq!(of(&file, "stranger"), None);
        assert_eq!(
            file.warnings,
            [
                "limits per tenant: block_retention: the older form of compaction.block_retention",
                "limits per tenant: forwarders: has no effect here",
                "limits per tenant: ingestion_rate_limit_bytes: the older form of ingestion.rate_limit_bytes",
                "limits per tenant: max_search_duration: the older form of read.max_search_duration",
                "limits per tenant: metrics_generator_processors: has no effect here",
            ]
        );
    }

    #[test]
    fn the_star_is_for_all_who_have_no_entry() {
        let file = parse("overrides: {'*': {global: {max_bytes_per_trace: 5}}, own: {read: {left_pad_trace_ids: true}}}").unwrap();
        assert_eq!(of(&file, "anybody").unwrap().global.max_bytes_per_trace, 5);
        let own = of(&file, "own").unwrap();
        assert_eq!((own.global.max_bytes_per_trace, own.read.left_pad_trace_ids), (0, true), "entries are not laid over each other");
    }

    #[test]
    fn an_empty_file_has_no_entries() {
        for text in ["", "overrides:", "overrides: {}", "{}"] {
            assert_eq!(parse(text).unwrap(), TenantOverrides::default(), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let check = |text: &str, expected: &str| assert_eq!(parse(text).unwrap_err().message(), expected, "{text}");
        check(
            "overrides:\n  a:\n    read:\n      max_serch_duration: 1h\n",
            "line 4: overrides.a.read.max_serch_duration: unknown key, did you mean max_search_duration?",
        );
        check(
            "overrides:\n  a:\n    read:\n      max_search_duration: long\n",
            "line 4: overrides.a.read.max_search_duration: expected a duration such as 30s, 5m or 1h30m, found 'long'",
        );
        check("overrides: {'a b': {}}", "overrides.a b: tenant ID 'a b' contains unsupported character ' '");
        check("overides: {}", "overides: unknown key, expected overrides");
        check("overrides: [a]", "overrides: expected a section with tenants");
        check("[a]", "expected overrides: {<tenant>: {…}}");
        assert!(parse("overrides: {").is_err() && parse("overrides: {a: {}, a: {}}").is_err());
    }

    #[test]
    fn a_missing_file_is_named() {
        let file = TenantFile { path: "/nonexistent/overrides.yaml".into(), expand_env: false };
        assert!(file.read().unwrap_err().message().starts_with("/nonexistent/overrides.yaml: reading the limits per tenant"));
    }
}
