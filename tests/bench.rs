//! `skein bench sql`: what a server and DuckDB answer over the same blocks.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::harness::{binary, tests_dir};
use crate::tools::{or_skip, python};

fn bench(arguments: &[&str]) -> Output {
    Command::new(binary()).arg("bench").args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn report(arguments: &[&str]) -> Value {
    let output = bench(arguments);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{arguments:?}: {}\n{told}{}", output.status, String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&told).unwrap()
}

fn ingested(dataset: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let file = tests_dir().join(format!("data/{dataset}.otlp.zst"));
    let told = report(&["ingest", file.to_str().unwrap(), "--dir", dir.path().to_str().unwrap(), "--json"]);
    assert_eq!(told["spans"], told["spans_in_blocks"]);
    dir
}

fn costs_are_told(costs: &Value) {
    for key in ["wall_ms_first", "wall_ms_median", "wall_ms_best"] {
        assert!(costs[key].as_f64().is_some_and(|ms| ms > 0.0), "{key}: {costs}");
    }
    for key in ["cpu_ms_first", "cpu_ms_mean"] {
        assert!(costs[key].as_f64().is_some_and(|ms| ms >= 0.0), "{key}: {costs}");
    }
}

#[test]
fn duckdb_answers_the_same_over_the_same_blocks() {
    let Some(python) = or_skip("duckdb_answers_the_same_over_the_same_blocks", python()) else { return };
    let dir = ingested("onlineboutique");
    let data = dir.path().to_str().unwrap();
    let told = report(&["sql", "--data", data, "--duckdb", python.to_str().unwrap(), "--runs", "2", "--json"]);
    assert_eq!(told["duckdb_version"], "2.0.0");
    let statements = told["statements"].as_array().unwrap();
    assert_eq!(statements.len(), 4);
    for statement in statements {
        assert_eq!(statement["agrees"], true, "{statement}");
        assert!(statement["rows"].as_u64().unwrap() > 0 && statement["difference_max"].is_number(), "{statement}");
        assert!(statement["sql"].is_string() && statement["duckdb_sql"].is_string());
        assert!(statement["times_wall"].as_f64().unwrap() > 0.0 && statement["times_cpu"].is_number());
        costs_are_told(&statement["skein"]);
        costs_are_told(&statement["duckdb"]);
    }
    assert!(statements[0]["name"] == "spans by service" && statements[0]["difference_max"] == 0.0, "{}", statements[0]);

    // Without DuckDB the same figures of ours; a table for reading.
    let alone = report(&["sql", "--data", data, "--runs", "1", "--json"]);
    assert!(alone["duckdb_version"].is_null() && alone["statements"].as_array().unwrap().len() == 4);
    costs_are_told(&alone["statements"][3]["skein"]);
    let table = bench(&["sql", "--data", data, "--runs", "1"]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains("median ms") && table.contains("top ten URLs") && table.lines().count() == 5, "{table}");
}

#[test]
fn what_is_no_duckdb_is_told() {
    let dir = ingested("nodedb");
    let refused = bench(&["sql", "--data", dir.path().to_str().unwrap(), "--duckdb", "/nonexistent/python", "--runs", "1"]);
    let complaint = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && complaint.contains("/nonexistent/python"), "{complaint}");
}
