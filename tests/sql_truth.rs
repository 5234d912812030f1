//! The figures of the truth files, asked in SQL, and `traceql()` held against the search API on every recorded search.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::conformance::entries;
use crate::harness::{Client, Findings, Server, Transport, nothing_is_cut, tests_dir, wait};
use crate::otlp::DATASETS;

/// Columns counted in one statement.
const COLUMNS_AT_ONCE: usize = 20;

fn rows(client: &Client, tenant: &str, statement: &str) -> Result<Vec<Value>, String> {
    let headers = [("X-Scope-OrgID", tenant), ("Content-Type", "application/sql")];
    let reply = wait(client.request("POST", "/api/sql", &[], &headers, statement.as_bytes().to_vec()));
    match reply.status {
        200 => Ok(reply.json().as_array().unwrap().clone()),
        status => Err(format!("{status} {}", reply.text())),
    }
}

/// One dataset and what is found wrong with it.
struct Asked<'a> {
    client: &'a Client,
    tenant: &'a str,
    figures: Value,
    findings: &'a mut Findings,
}

impl Asked<'_> {
    fn rows(&mut self, statement: &str) -> Vec<Value> {
        rows(self.client, self.tenant, statement).unwrap_or_else(|why| {
            self.findings.holds(statement, false, || why);
            Vec::new()
        })
    }

    /// The only row of a statement.
    fn check_row(&mut self, statement: &str, expected: Value) {
        let found = self.rows(statement);
        self.findings.equal(statement, vec![expected], found);
    }

    /// Rows of a name and a count.
    fn check_counts(&mut self, statement: &str, expected: BTreeMap<String, u64>) {
        let found = self.rows(statement);
        let found: BTreeMap<String, u64> =
            found.iter().map(|row| (row["name"].as_str().unwrap_or("null").to_owned(), row["n"].as_u64().unwrap_or(0))).collect();
        self.findings.equal(statement, expected, found);
    }

    fn counts_of(&self, key: &str) -> BTreeMap<String, u64> {
        self.figures[key].as_object().unwrap().iter().map(|(name, count)| (name.clone(), count.as_u64().unwrap())).collect()
    }

    fn check_totals(&mut self) {
        let figures = self.figures.clone();
        let totals = json!({
            "spans": figures["spans"], "traces": figures["traces"], "ids": figures["distinct_span_ids"], "errors": figures["error_spans"],
            "roots": figures["root_spans"], "first": figures["first_start_ns"], "last": figures["last_end_ns"],
        });
        self.check_row(
            "SELECT count(*) AS spans, count(DISTINCT trace_id) AS traces, count(DISTINCT trace_id || span_id) AS ids, \
             count(*) FILTER (WHERE status = 'error') AS errors, count(*) FILTER (WHERE parent_span_id IS NULL) AS roots, \
             CAST(min(start_time) AS BIGINT) AS first, CAST(max(end_time) AS BIGINT) AS last FROM spans",
            totals,
        );
        let of_traces = json!({ "spans": figures["spans"], "errors": figures["traces_with_error"] });
        self.check_row(
            "WITH t AS (SELECT trace_id, count(*) AS n, bool_or(status = 'error') AS bad FROM spans GROUP BY 1) \
             SELECT sum(n) AS spans, count(*) FILTER (WHERE bad) AS errors FROM t",
            of_traces,
        );
        self.check_row(
            "SELECT count(*) AS n, count(DISTINCT span_id) AS spans FROM events",
            json!({ "n": figures["events"], "spans": figures["spans_with_events"] }),
        );
        self.check_row("SELECT count(*) AS n FROM links", json!({ "n": figures["links"] }));
    }

    fn check_groups(&mut self) {
        for (statement, key) in [
            (r#"SELECT "resource.service.name" AS name, count(*) AS n FROM spans GROUP BY 1"#, "spans_per_service"),
            ("SELECT status AS name, count(*) AS n FROM spans GROUP BY 1", "spans_per_status"),
            ("SELECT kind AS name, count(*) AS n FROM spans GROUP BY 1", "spans_per_kind"),
            ("SELECT event_name AS name, count(*) AS n FROM events GROUP BY 1", "event_names"),
        ] {
            let expected = self.counts_of(key);
            self.check_counts(statement, expected);
        }
        for (service, expected) in self.figures["duration_ns_per_service"].as_object().cloned().unwrap() {
            let wanted = ["count", "sum", "min", "max"].map(|key| (key.to_owned(), expected[key].clone()));
            self.check_row(
                &format!(
                    r#"SELECT count(*) AS count, sum(duration_nanos) AS sum, min(duration_nanos) AS min, max(duration_nanos) AS max FROM spans WHERE "resource.service.name" = '{}'"#,
                    service.replace('\'', "''")
                ),
                Value::Object(wanted.into_iter().collect()),
            );
        }
        for item in self.figures["operations_top20"].as_array().cloned().unwrap() {
            let quoted = |key: &str| item[key].as_str().unwrap().replace('\'', "''");
            self.check_row(
                &format!(
                    r#"SELECT count(*) AS n FROM spans WHERE name = '{}' AND "resource.service.name" = '{}'"#,
                    quoted("name"),
                    quoted("service")
                ),
                json!({ "n": item["spans"] }),
            );
        }
    }

    /// Joins, windows and common table expressions.
    fn check_structure(&mut self) {
        let figures = self.figures.clone();
        let slowest: BTreeSet<(String, u64)> = figures["slowest_traces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|trace| (trace["traceID"].as_str().unwrap().to_owned(), trace["duration_ns"].as_u64().unwrap()))
            .collect();
        let found = self.rows(
            "SELECT trace_id, d FROM (SELECT trace_id, d, row_number() OVER (ORDER BY d DESC) AS place FROM \
             (SELECT trace_id, max(trace_duration_nanos) AS d FROM spans GROUP BY 1)) WHERE place <= 100",
        );
        let found: BTreeSet<(String, u64)> =
            found.iter().map(|row| (row["trace_id"].as_str().unwrap().to_owned(), row["d"].as_u64().unwrap())).collect();
        self.findings.holds("the slowest traces", slowest.is_subset(&found), || format!("expected {slowest:?}, found {found:?}"));
        self.check_row(
            "SELECT count(*) AS n FROM spans c LEFT JOIN spans p ON c.trace_id = p.trace_id AND c.parent_span_id = p.span_id \
             WHERE c.parent_span_id IS NOT NULL AND p.span_id IS NULL",
            json!({ "n": figures["spans_with_absent_parent"] }),
        );
        self.check_row(
            r#"WITH calls AS (SELECT p."resource.service.name" AS a, c."resource.service.name" AS b FROM spans c
               JOIN spans p ON c.trace_id = p.trace_id AND c.parent_span_id = p.span_id)
               SELECT count(*) AS n FROM calls WHERE a = b"#,
            json!({ "n": figures["calls_within_a_service"] }),
        );
    }

    /// How many spans have each attribute, and how many values it has.
    fn check_attributes(&mut self) {
        let columns: BTreeSet<String> = self
            .rows("SELECT column_name AS name FROM information_schema.columns WHERE table_name = 'spans'")
            .iter()
            .map(|row| row["name"].as_str().unwrap().to_owned())
            .collect();
        for scope in ["span", "resource"] {
            let Some(keys) = self.figures[format!("{scope}_attributes")].as_object().cloned() else { continue };
            let plain = |figures: &Value| figures["types"].as_object().is_some_and(|types| types.len() == 1 && !types.contains_key("array"));
            let known: Vec<_> = keys.iter().filter(|(key, figures)| columns.contains(&format!("{scope}.{key}")) && plain(figures)).collect();
            // The other half are on few spans or of several types.
            self.findings.holds("columns", known.len() * 5 >= keys.len() * 2, || {
                format!("{} of {} {scope} attributes have a column", known.len(), keys.len())
            });
            for some in known.chunks(COLUMNS_AT_ONCE) {
                let counted = some.iter().enumerate().map(|(at, (key, _))| {
                    let column = format!("\"{scope}.{}\"", key.replace('"', "\"\""));
                    format!("count({column}) AS n{at}, count(DISTINCT {column}) AS d{at}")
                });
                let statement = format!("SELECT {} FROM spans", counted.collect::<Vec<_>>().join(", "));
                let wanted = some
                    .iter()
                    .enumerate()
                    .flat_map(|(at, (_, figures))| [(format!("n{at}"), figures["spans"].clone()), (format!("d{at}"), figures["distinct"].clone())]);
                self.check_row(&statement, Value::Object(wanted.collect()));
            }
        }
    }

    fn check_searches(&mut self) {
        for query in self.figures["queries"].as_array().cloned().unwrap() {
            let q = query["q"].as_str().unwrap().replace('\'', "''");
            let counted = self.rows(&format!("SELECT count(*) AS spans, count(DISTINCT trace_id) AS traces FROM traceql('{q}')"));
            for key in ["spans", "traces"] {
                // Whole numbers and doubles of the same value are equal.
                let expected = query["or_with_doubles"][key].as_u64().or_else(|| query[key].as_u64());
                if expected.is_some() {
                    self.findings.equal(&format!("{q}, {key}"), expected, counted.first().and_then(|row| row[key].as_u64()));
                }
            }
        }
    }
}

fn check(findings: &mut Findings, client: &Client, phase: &str) {
    for tenant in DATASETS {
        findings.within(format!("{tenant}, {phase}"));
        let text = std::fs::read(tests_dir().join(format!("data/{tenant}.truth.json"))).unwrap();
        let mut asked = Asked { client, tenant, figures: serde_json::from_slice(&text).unwrap(), findings };
        asked.check_totals();
        asked.check_groups();
        asked.check_structure();
        asked.check_attributes();
        asked.check_searches();
    }
}

#[test]
fn the_figures_of_the_truth_files_live_and_flushed() {
    let server = Server::start(nothing_is_cut());
    DATASETS.iter().for_each(|dataset| server.client().load(Transport::HttpProtobuf, dataset));
    let mut findings = Findings::new();
    check(&mut findings, server.client(), "live");
    server.client().flush();
    check(&mut findings, server.client(), "flushed");
    findings.finish();
}

/// Per trace the ids of the spans in its spansets, each as often as it is in one.
type Matched = BTreeMap<String, Vec<String>>;

#[test]
fn traceql_in_sql_finds_what_the_search_api_finds() {
    let entries: Vec<Value> = entries().into_iter().filter(|entry| entry["kind"] == "search" && entry["q"].is_string()).collect();
    assert!(entries.len() > 50, "{} searches are recorded", entries.len());
    let server = Server::start(nothing_is_cut());
    let datasets: BTreeSet<&str> = entries.iter().map(|entry| entry["dataset"].as_str().unwrap()).collect();
    datasets.iter().for_each(|dataset| server.client().load(Transport::HttpProtobuf, dataset));
    server.client().flush();
    let mut findings = Findings::new();
    let mut found_any = 0;
    for entry in &entries {
        let (tenant, q) = (entry["dataset"].as_str().unwrap(), entry["q"].as_str().unwrap());
        findings.within(format!("{} {q}", entry["id"]));
        let time = |key: &str| {
            let value = &entry["params"][key];
            value.as_u64().or(value.as_str().and_then(|text| text.parse().ok()))
        };
        let (Some(start), Some(end)) = (time("start"), time("end")) else { continue };
        let (first, last) = (start.to_string(), end.to_string());
        let params = [("q", q), ("start", first.as_str()), ("end", last.as_str()), ("limit", "1000000"), ("spss", "1000000")];
        let reply = wait(server.client().get(tenant, "/api/search", &params));
        let statement = format!("SELECT trace_id, span_id FROM traceql('{}', {start}, {end})", q.replace('\'', "''"));
        let answer = rows(server.client(), tenant, &statement);
        if reply.status != 200 {
            findings.holds("refused by both", answer.is_err(), || format!("search says {} {}", reply.status, reply.text()));
            continue;
        }
        let searched = matched_by_search(&reply.json());
        found_any += usize::from(!searched.is_empty());
        match answer {
            Ok(rows) => findings.holds("the same spans", matched_by_sql(&rows) == searched, || {
                format!("search found {} traces, SQL {} rows", searched.len(), rows.len())
            }),
            Err(why) => findings.holds("an answer", false, || why),
        }
    }
    assert!(found_any > 30, "{found_any} searches find something");
    findings.finish();
}

fn matched_by_search(answer: &Value) -> Matched {
    fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
        value[key].as_array().map(Vec::as_slice).unwrap_or_default()
    }
    let of_trace = |trace: &Value| {
        let spans = list(trace, "spanSets").iter().flat_map(|set| list(set, "spans")).map(|span| span["spanID"].as_str().unwrap().to_owned());
        let mut spans: Vec<String> = spans.collect();
        spans.sort_unstable();
        (format!("{:0>32}", trace["traceID"].as_str().unwrap()), spans)
    };
    list(answer, "traces").iter().map(of_trace).collect()
}

fn matched_by_sql(rows: &[Value]) -> Matched {
    let mut matched = Matched::new();
    for row in rows {
        matched.entry(row["trace_id"].as_str().unwrap().to_owned()).or_default().push(row["span_id"].as_str().unwrap().to_owned());
    }
    matched.values_mut().for_each(|spans| spans.sort_unstable());
    matched
}
