//! `skein bench sql`: what statements over all spans cost, and what DuckDB takes for the same questions over the same Parquet blocks.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};
use skein_engine::{
    clock::Stopwatch,
    error::{Error, Result},
    tenant::TenantId,
};

use super::{
    super::{
        child::{self, Server},
        http::Api,
        table::{self, Align},
    },
    blocks_that_count,
};

/// The script that asks DuckDB; what goes in and comes out is said there.
const SCRIPT: &str = include_str!("sql.py");

/// Threads of DuckDB. The server takes as many as there are CPUs.
const THREADS: usize = 2;

/// Attributes that tell routes: the first that the data has is asked for. And those that tell URLs: the one on most spans.
const ROUTES: [&str; 5] = ["http.route", "url.template", "http.target", "url.path", "rpc.method"];
const URLS: [&str; 4] = ["http.url", "url.full", "http.target", "url.path"];

/// Arguments of `skein bench sql`.
#[derive(Args)]
pub(super) struct Arguments {
    /// Start a server on this folder (with `blocks` and `wal`, as `bench ingest --dir` leaves it) and ask it.
    #[arg(long)]
    data: PathBuf,
    /// A Python interpreter with the package `duckdb`: the same is asked of DuckDB, and the answers are compared.
    #[arg(long)]
    duckdb: Option<PathBuf>,
    /// Times that each is asked after a first.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Columns of answers that are figures; all others tell the rows apart.
const FIGURES: [&str; 3] = ["value", "low", "high"];

/// A question in both dialects. Its answer has a column `value`.
struct Question {
    name: &'static str,
    ours: String,
    duckdb: String,
    agreement: Agreement,
}

/// When two answers with the same rows are the same.
enum Agreement {
    /// Their values are no further from each other than this part of the larger.
    Within(f64),
    /// Their values are estimates, and lie between `low` and `high` of this statement of DuckDB's.
    Between(String),
}

/// Rows and costs of one statement, its first run first.
#[derive(Debug, Default, Deserialize)]
struct Answer {
    rows: Vec<Value>,
    wall_ms: Vec<f64>,
    cpu_ms: Vec<f64>,
}

/// What the script prints.
#[derive(Debug, Deserialize)]
struct DuckDb {
    version: String,
    answers: Vec<Answer>,
}

/// Runs the measurement. It fails where the answers differ.
pub(super) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let runs = arguments.runs.max(1);
    let server = Server::start(&arguments.data, "")?;
    let api = Api::new(&server.http, None)?;
    api.post("/flush").await?;
    let questions = questions(&frequent_attributes(&api).await?);
    let mut ours = Vec::new();
    for question in &questions {
        ours.push(measure(&api, server.pid(), &question.ours, runs).await?);
    }
    api.get("/shutdown", &[], "*/*").await?;
    server.wait()?;
    // Only now: the server may have merged blocks.
    let theirs = arguments.duckdb.as_deref().map(|python| ask_duckdb(python, &arguments.data, &questions, runs)).transpose()?;
    let report = report(&questions, &ours, theirs.as_ref());
    match arguments.json {
        true => println!("{report}"),
        false => print!("{}", render(&report)),
    }
    let all = report["statements"].as_array().map_or(&[][..], Vec::as_slice);
    let agree = all.iter().all(|statement| statement["agrees"] != Value::Bool(false));
    Ok(if agree { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The keys of span attributes that are text and nothing else, and have a column in each block; those on most spans first.
async fn frequent_attributes(api: &Api) -> Result<Vec<String>> {
    let sql = "SELECT key AS key FROM system.columns WHERE scope = 'span' GROUP BY key HAVING count(*) = 1 AND min(type) = 'string' \
               AND min(blocks) = (SELECT count(*) FROM system.blocks) ORDER BY max(rows) DESC, key";
    let rows = rows(api, sql).await?;
    Ok(rows.iter().filter_map(|row| row["key"].as_str().map(str::to_owned)).collect())
}

impl Question {
    fn bounds(&self) -> Option<&str> {
        match &self.agreement {
            Agreement::Between(sql) => Some(sql),
            Agreement::Within(_) => None,
        }
    }
}

fn questions(keys: &[String]) -> Vec<Question> {
    let column = |key: Option<&str>| key.map_or("name".to_owned(), |key| format!("\"span.{key}\""));
    let route = column(ROUTES.into_iter().find(|route| keys.iter().any(|key| key == route)));
    let url = column(keys.iter().map(String::as_str).find(|key| URLS.contains(key)));
    let same = |name, sql: String| Question { name, ours: sql.clone(), duckdb: sql, agreement: Agreement::Within(0.0) };
    let by_route = |values: &str| {
        format!("SELECT {route} AS route, date_trunc('hour', start_time) AS hour, {values} FROM spans WHERE {route} IS NOT NULL GROUP BY 1, 2")
    };
    vec![
        same("spans by service", "SELECT \"resource.service.name\" AS service, count(*) AS value FROM spans GROUP BY 1".to_owned()),
        // Both keep digests, which are exact in rank to a part of a per cent and in value as the data is.
        Question {
            name: "p99 by route and hour, estimated",
            ours: by_route("approx_percentile_cont(0.99) WITHIN GROUP (ORDER BY duration_nanos) AS value"),
            duckdb: by_route("approx_quantile(duration_nanos, 0.99) AS value"),
            agreement: Agreement::Between(by_route("quantile_disc(duration_nanos, 0.98) AS low, max(duration_nanos) AS high")),
        },
        Question {
            name: "p99 by route and hour, exact",
            ours: by_route("percentile_cont(0.99) WITHIN GROUP (ORDER BY duration_nanos) AS value"),
            duckdb: by_route("quantile_cont(duration_nanos, 0.99) AS value"),
            // DataFusion interpolates in millionths of the distance between two neighbours, which may be many times the smaller.
            agreement: Agreement::Within(1e-4),
        },
        same(
            "top ten URLs",
            format!("SELECT {url} AS url, count(*) AS value FROM spans WHERE {url} IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 10"),
        ),
    ]
}

async fn rows(api: &Api, sql: &str) -> Result<Vec<Value>> {
    let body = api.post_json("/api/sql", &json!({ "query": sql }), "application/json").await?.whole().await?;
    serde_json::from_slice(&body).map_err(|error| Error::data("reading the server's answer").with_source(error))
}

/// Asks the server once and `runs` times more, over HTTP with rows as JSON.
async fn measure(api: &Api, pid: u32, sql: &str, runs: usize) -> Result<Answer> {
    let mut answer = Answer::default();
    for _ in 0..=runs {
        let (before, watch) = (child::cpu_micros(pid)?, Stopwatch::start());
        answer.rows = rows(api, sql).await?;
        answer.wall_ms.push(watch.seconds() * 1e3);
        answer.cpu_ms.push((child::cpu_micros(pid)? - before) as f64 / 1e3);
    }
    Ok(answer)
}

fn ask_duckdb(python: &Path, data: &Path, questions: &[Question], runs: usize) -> Result<DuckDb> {
    let blocks = blocks_that_count(&data.join("blocks").join(TenantId::single().as_str()))?;
    let files: Vec<PathBuf> = blocks.iter().map(|block| block.folder.join("data.parquet")).collect();
    let timed = questions.iter().map(|question| json!({ "sql": question.duckdb, "runs": runs }));
    let bounds = questions.iter().filter_map(Question::bounds).map(|sql| json!({ "sql": sql, "runs": 0 }));
    let statements: Vec<Value> = timed.chain(bounds).collect();
    let ask = json!({ "files": files, "threads": THREADS, "statements": statements });
    let doing = |error: std::io::Error| Error::unavailable(format!("running {}", python.display())).with_source(error);
    let mut child = Command::new(python).args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(doing)?;
    let mut stdin = child.stdin.take().expect("stdin was asked for");
    // Where the script has ended already, its own complaint says more.
    let written = stdin.write_all(ask.to_string().as_bytes());
    drop(stdin);
    let output = child.wait_with_output().map_err(doing)?;
    if !output.status.success() {
        return Err(Error::unavailable(format!("asking DuckDB with {} failed (is the package duckdb there?)", python.display())));
    }
    written.map_err(doing)?;
    serde_json::from_slice(&output.stdout).map_err(|error| Error::data("reading DuckDB's answers").with_source(error))
}

fn report(questions: &[Question], ours: &[Answer], theirs: Option<&DuckDb>) -> Value {
    // Behind the answers come the bounds.
    let mut bounds = theirs.iter().flat_map(|theirs| theirs.answers.iter().skip(questions.len()));
    let statements = questions.iter().zip(ours).enumerate().map(|(at, (question, own))| {
        let mut statement = json!({ "name": question.name, "sql": question.ours, "rows": own.rows.len() });
        statement["skein"] = own.costs();
        let Some(other) = theirs.and_then(|theirs| theirs.answers.get(at)) else { return statement };
        let difference = difference(&own.rows, &other.rows);
        let agrees = match question.agreement {
            Agreement::Within(tolerance) => difference.is_some_and(|difference| difference <= tolerance),
            Agreement::Between(_) => {
                let bounds = bounds.next().map_or(&[][..], |bounds| &bounds.rows);
                difference.is_some() && are_between(&own.rows, bounds) && are_between(&other.rows, bounds)
            }
        };
        statement["duckdb"] = other.costs();
        statement["duckdb_sql"] = question.duckdb.clone().into();
        statement["difference_max"] = difference.into();
        statement["agrees"] = agrees.into();
        for (figure, key) in [("times_wall", "wall_ms_median"), ("times_cpu", "cpu_ms_mean")] {
            let number = |side: &str| statement[side][key].as_f64().unwrap_or_default();
            let ratio = number("duckdb") / number("skein").max(0.01);
            statement[figure] = ratio.into();
        }
        statement
    });
    let statements: Vec<Value> = statements.collect();
    json!({ "statements": statements, "duckdb_version": theirs.map(|theirs| &theirs.version) })
}

impl Answer {
    /// The first run beside the others.
    fn costs(&self) -> Value {
        let mut others = self.wall_ms.get(1..).unwrap_or_default().to_vec();
        others.sort_by(f64::total_cmp);
        let cpu = self.cpu_ms.get(1..).unwrap_or_default();
        json!({
            "wall_ms_first": self.wall_ms.first(),
            "wall_ms_median": others.get(others.len() / 2),
            "wall_ms_best": others.first(),
            "cpu_ms_first": self.cpu_ms.first(),
            "cpu_ms_mean": cpu.iter().sum::<f64>() / cpu.len().max(1) as f64,
        })
    }
}

/// How far the values of two answers are from each other at most, as a part of the larger; None where their rows differ in anything else.
fn difference(ours: &[Value], theirs: &[Value]) -> Option<f64> {
    let (ours, theirs) = (by_key(ours, "value")?, by_key(theirs, "value")?);
    if !ours.keys().eq(theirs.keys()) {
        return None;
    }
    let apart = |(one, other): (&f64, &f64)| (one - other).abs() / one.abs().max(other.abs()).max(f64::MIN_POSITIVE);
    Some(ours.values().zip(theirs.values()).map(apart).fold(0.0, f64::max))
}

/// Whether each value lies between the `low` and `high` of its row.
fn are_between(rows: &[Value], bounds: &[Value]) -> bool {
    let (Some(values), Some(low), Some(high)) = (by_key(rows, "value"), by_key(bounds, "low"), by_key(bounds, "high")) else { return false };
    values.iter().all(|(key, value)| low.get(key).is_some_and(|low| low <= value) && high.get(key).is_some_and(|high| value <= high))
}

/// The figures in `column` by what tells the rows apart; None where two rows have the same of that, or a figure is no number.
fn by_key(rows: &[Value], column: &str) -> Option<BTreeMap<String, f64>> {
    let mut values = BTreeMap::new();
    for row in rows {
        let row = row.as_object()?;
        let value = row.get(column)?.as_f64()?;
        let key: BTreeMap<&String, &Value> = row.iter().filter(|(name, _)| !FIGURES.contains(&name.as_str())).collect();
        if values.insert(json!(key).to_string(), value).is_some() {
            return None;
        }
    }
    Some(values)
}

fn render(report: &Value) -> String {
    let number = |value: &Value| value.as_f64().map_or("-".to_owned(), |number| format!("{number:.1}"));
    let compared = !report["duckdb_version"].is_null();
    let sides: &[&str] = if compared { &["skein", "duckdb"] } else { &["skein"] };
    let mut heading = vec![("rows", Align::Right)];
    for side in sides {
        let names = if *side == "skein" { ["first ms", "median ms", "best ms", "CPU ms"] } else { ["DuckDB first", "median", "best", "CPU ms"] };
        heading.extend(names.map(|name| (name, Align::Right)));
    }
    if compared {
        heading.extend([("times", Align::Right), ("answers", Align::Left)]);
    }
    heading.push(("statement", Align::Left));
    let row = |statement: &Value| {
        let mut row = vec![statement["rows"].to_string()];
        for side in sides {
            row.extend(["wall_ms_first", "wall_ms_median", "wall_ms_best", "cpu_ms_mean"].map(|key| number(&statement[side][key])));
        }
        if compared {
            row.extend([number(&statement["times_wall"]), if statement["agrees"] == true { "agree" } else { "DIFFER" }.to_owned()]);
        }
        row.push(statement["name"].as_str().unwrap_or_default().to_owned());
        row
    };
    let rows: Vec<Vec<String>> = report["statements"].as_array().into_iter().flatten().map(row).collect();
    table::render(&heading, &rows, table::width())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn answers_are_compared_by_what_tells_their_rows_apart() {
        let rows = |rows: &[(&str, f64)]| rows.iter().map(|(key, value)| json!({ "value": value, "key": key })).collect::<Vec<_>>();
        let check = |ours: &[(&str, f64)], theirs: &[(&str, f64)], expected: Option<f64>| {
            assert_eq!(difference(&rows(ours), &rows(theirs)), expected);
        };
        check(&[("a", 1.0), ("b", 2.0)], &[("b", 2.0), ("a", 1.0)], Some(0.0));
        check(&[("a", 100.0), ("b", 4.0)], &[("a", 75.0), ("b", 4.0)], Some(0.25));
        check(&[("a", 0.0)], &[("a", 0.0)], Some(0.0));
        check(&[("a", 1.0)], &[("b", 1.0)], None);
        check(&[("a", 1.0)], &[("a", 1.0), ("b", 1.0)], None);
        check(&[("a", 1.0), ("a", 1.0)], &[("a", 1.0), ("a", 1.0)], None);
    }

    #[test]
    fn estimates_agree_where_they_are_near_in_rank() {
        let check = |value: f64, low: f64, high: f64, expected: bool| {
            let (values, bounds) = ([json!({ "key": "a", "value": value })], [json!({ "key": "a", "low": low, "high": high })]);
            assert_eq!(are_between(&values, &bounds), expected, "{low} {value} {high}");
        };
        check(2.0, 1.0, 2.0, true);
        check(0.9, 1.0, 2.0, false);
        check(2.1, 1.0, 2.0, false);
        assert!(!are_between(&[json!({ "key": "b", "value": 1.0 })], &[json!({ "key": "a", "low": 0.0, "high": 2.0 })]));
    }

    #[test]
    fn attributes_are_those_that_the_data_has() {
        let asked = |keys: &[&str]| questions(&keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>());
        let has = |questions: &[Question], text: &str| questions.iter().filter(|question| question.ours.contains(text)).count();
        let known = asked(&["rpc.method", "url.full", "http.route", "url.path"]);
        assert_eq!((has(&known, "\"span.http.route\" AS route"), has(&known, "\"span.url.full\" AS url")), (2, 1));
        let unknown = asked(&["db.system"]);
        assert_eq!((has(&unknown, "name AS route"), has(&unknown, "name AS url")), (2, 1));
    }

    #[test]
    fn the_first_run_is_told_apart() {
        let answer = Answer { rows: Vec::new(), wall_ms: vec![90.0, 3.0, 1.0, 2.0], cpu_ms: vec![50.0, 2.0, 2.0, 5.0] };
        let expected = json!({ "wall_ms_first": 90.0, "wall_ms_median": 2.0, "wall_ms_best": 1.0, "cpu_ms_first": 50.0, "cpu_ms_mean": 3.0 });
        assert_eq!(answer.costs(), expected);
    }
}
