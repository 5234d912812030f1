//! SQL over a cluster: scans are divided between the workers, and the rows are those of one process.

use datafusion::arrow::util::pretty::pretty_format_batches;
use futures::TryStreamExt;
use skein_engine::sql::{SqlService, TailRequest};

use super::*;

const STATEMENTS: [&str; 15] = [
    "SELECT count(*) FROM spans",
    "SELECT trace_id, span_id, parent_span_id, name, kind, status, start_time, duration_nanos, child_count FROM spans",
    "SELECT name, status, count(*), sum(duration_nanos), min(start_time), max(end_time) FROM spans GROUP BY 1, 2",
    r#"SELECT "span.http.status_code" AS code, count(DISTINCT trace_id) FROM spans WHERE "span.http.status_code" >= 500 GROUP BY 1"#,
    "SELECT name, attr('http.status_code') FROM spans WHERE status = 'error'",
    "SELECT trace_id, span_count, error_count, services FROM traces",
    "SELECT * FROM services",
    "SELECT trace_id, span_id, spanset FROM traceql('{ name = `work` } > { name = `leaf` }')",
    r#"SELECT "resource.service.name", sum(self_time_nanos), sum(critical_path_nanos) FROM critical_path() GROUP BY 1"#,
    "SELECT trace_id, ordinal, depth, path, self_time_nanos FROM span_tree()",
    "SELECT count(*), sum(calls), sum(errors), max(p99_nanos) FROM service_graph()",
    "SELECT name, sum(value) FROM traceql_metrics('{ } | count_over_time() by (name)') GROUP BY 1",
    "SELECT a.name, b.name, count(*) FROM spans a JOIN spans b ON a.trace_id = b.trace_id AND a.span_id = b.parent_span_id GROUP BY 1, 2",
    "WITH slow AS (SELECT trace_id, max(duration_nanos) AS most FROM spans GROUP BY 1) SELECT most, count(*) FROM slow GROUP BY 1",
    "SELECT trace_id, span_id, row_number() OVER (PARTITION BY trace_id ORDER BY start_time, span_id) FROM spans",
];

/// The rows of a statement, as text, sorted; a header first.
async fn rows(sql: &dyn SqlService, statement: &str) -> Vec<String> {
    let run = async { sql.prepare(&TenantId::single(), statement).await?.run(None).await?.batches.try_collect::<Vec<_>>().await };
    let batches = run.await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    let table = pretty_format_batches(&batches).unwrap().to_string();
    let mut lines: Vec<String> = table.lines().filter(|line| !line.starts_with('+')).map(|line| line.replace(' ', "")).collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn rows_of_sql_are_those_of_one_process() {
    let (cluster, one) = (TestCluster::start(live(), blocks()).await, one_process(live(), blocks()).await);
    for statement in STATEMENTS {
        let (ours, expected) = (rows(&*cluster.coordinator, statement).await, rows(&one, statement).await);
        assert!(expected.len() > 1, "{statement}: no rows");
        assert_eq!(ours, expected, "{statement}");
    }
}

#[tokio::test]
async fn each_worker_scans_its_share() {
    let cluster = TestCluster::start(live(), blocks()).await;
    let reads = || cluster.nodes.iter().map(|node| node.reads.requests("GET")).collect::<Vec<_>>();
    let before = reads();
    assert_eq!(
        rows(&*cluster.coordinator, "SELECT count(*) FROM spans WHERE duration_nanos >= 0").await,
        [format!("|{}|", TRACES * SPANS), "|count(*)|".into()]
    );
    let readers = before.iter().zip(reads()).filter(|(before, after)| after > before).count();
    assert_eq!(readers, 2, "each of two blocks is read by another worker");
}

#[tokio::test]
async fn there_are_no_tails_and_the_refusal_says_what_there_is_instead() {
    let cluster = TestCluster::start(live(), blocks()).await;
    let request = TailRequest { query: "{ }".into(), columns: None, window: None };
    let error = cluster.coordinator.tail(&TenantId::single(), request).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("DoGet"), "{error}");
}
