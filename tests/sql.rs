//! SQL over HTTP: forms of answers, what ends an answer early, tenants, and statements that mean harm.

use std::io::Read;

use arrow::ipc::reader::StreamReader;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};
use skein_proto::otlp::common::v1::any_value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Compression, Findings, PATIENCE, Reply, Server, Transport, until, wait};
use crate::otlp::{self, attribute, text};

const TENANT: &str = "shop";
const START: u64 = 1_700_000_000_000_000_001;

/// A statement as text, answered in a form.
fn ask_as(server: &Server, tenant: &str, statement: &str, accept: &str) -> Reply {
    let headers = [("X-Scope-OrgID", tenant), ("Content-Type", "application/sql"), ("Accept", accept)];
    wait(server.client().request("POST", "/api/sql", &[], &headers, statement.as_bytes().to_vec()))
}

/// The rows of a statement.
fn rows(server: &Server, statement: &str) -> Value {
    let reply = ask_as(server, TENANT, statement, "application/json");
    assert_eq!(reply.status, 200, "{statement}: {}", reply.text());
    reply.json()
}

fn refused(server: &Server, tenant: &str, statement: &str, status: u16, part: &str) {
    let reply = ask_as(server, tenant, statement, "application/json");
    assert!(reply.status == status && reply.text().contains(part), "{statement}: {} {}, expected {status} {part}", reply.status, reply.text());
}

/// `count` spans of two services, a trace for every ten.
fn load(server: &Server, tenant: &str, count: u64) {
    let span = |at: u64| {
        let parent = if at.is_multiple_of(10) { 0 } else { at - at % 10 + 1 };
        let mut span =
            otlp::span(u128::from(at / 10 + 1).to_be_bytes(), at + 1, parent, ["GET /", "query"][(at % 2) as usize], START + at, 1_000 * (at + 1));
        span.attributes = vec![attribute("n", any_value::Value::IntValue(at as i64)), attribute("note", text("a, \"note\""))];
        span
    };
    for (at, service) in ["frontend", "stock"].into_iter().enumerate() {
        let spans = (0..count).filter(|span| span % 2 == at as u64).map(span).collect();
        wait(server.client().send(Transport::HttpProtobuf, Compression::None, tenant, &otlp::request(service, spans))).unwrap();
    }
}

#[test]
fn rows_come_in_the_form_that_is_asked_for() {
    let server = Server::start(json!({}));
    load(&server, TENANT, 4);
    let statement = r#"SELECT name, "span.n" AS n, start_time, "span.note" AS note FROM spans WHERE "span.n" < 2 ORDER BY n"#;
    let first = r#"{"name":"GET /","n":0,"start_time":"2023-11-14T22:13:20.000000001Z","note":"a, \"note\""}"#;
    let second = r#"{"name":"query","n":1,"start_time":"2023-11-14T22:13:20.000000002Z","note":"a, \"note\""}"#;
    let check = |accept: &str, content_type: &str, expected: String| {
        let reply = ask_as(&server, TENANT, statement, accept);
        assert_eq!((reply.status, reply.header("content-type"), reply.text()), (200, content_type, expected));
    };
    check("*/*", "application/json", format!("[{first},{second}]"));
    check("application/x-ndjson", "application/x-ndjson", format!("{first}\n{second}\n"));
    let csv = "name,n,start_time,note\nGET /,0,2023-11-14T22:13:20.000000001Z,\"a, \"\"note\"\"\"\nquery,1,2023-11-14T22:13:20.000000002Z,\"a, \"\"note\"\"\"\n";
    check("text/csv", "text/csv", csv.to_owned());

    let stream = ask_as(&server, TENANT, statement, "application/vnd.apache.arrow.stream");
    let batches: Vec<_> = StreamReader::try_new(&stream.body[..], None).unwrap().map(|batch| batch.unwrap()).collect();
    assert_eq!(batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 2);
    assert!(batches[0].column(0).data_type().to_string().starts_with("Dictionary"), "dictionaries stay");
    let file = ask_as(&server, TENANT, statement, "application/vnd.apache.parquet");
    let read = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(file.body.to_vec())).unwrap().build().unwrap();
    assert_eq!(read.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 2);
    assert_eq!(ask_as(&server, TENANT, statement, "text/html").status, 406);
}

#[test]
fn parameters_and_urls() {
    let server = Server::start(json!({}));
    load(&server, TENANT, 4);
    let post = |body: Value| {
        let headers = [("X-Scope-OrgID", TENANT), ("Content-Type", "application/json")];
        wait(server.client().request("POST", "/api/sql", &[], &headers, body.to_string().into_bytes()))
    };
    let expected = json!([{ "n": 3 }]);
    assert_eq!(
        post(json!({ "query": r#"SELECT "span.n" AS n FROM spans WHERE "span.n" > $1 AND name = $2"#, "parameters": [1, "query"] })).json(),
        expected
    );
    assert_eq!(post(json!({ "query": r#"SELECT "span.n" AS n FROM spans WHERE "span.n" = $n"#, "parameters": { "n": 3 } })).json(), expected);
    let missing = post(json!({ "query": "SELECT $1 + $2", "parameters": [1] }));
    assert!(missing.status == 400 && missing.text().contains("$2"), "{}", missing.text());
    refused(&server, TENANT, "SELECT $1", 400, "no value is given for the parameters $1");
    let reply = wait(server.client().get(
        TENANT,
        "/api/sql",
        &[("query", "SELECT count(*) AS n FROM spans WHERE name = $1"), ("parameters", r#"["query"]"#)],
    ));
    assert_eq!(reply.json(), json!([{ "n": 2 }]));
    assert_eq!(wait(server.client().get(TENANT, "/api/sql", &[])).text(), "no statement: POST it as text/plain, or give it in the parameter query");
}

#[test]
fn a_tenant_sees_its_own_spans_only() {
    let server = Server::start(json!({}));
    load(&server, TENANT, 4);
    load(&server, "other", 8);
    assert_eq!(rows(&server, "SELECT count(*) AS n FROM spans"), json!([{ "n": 4 }]));
    refused(&server, TENANT, "SELECT * FROM other.spans", 400, "not found");
    refused(&server, TENANT, "SELECT * FROM skein.other.spans", 400, "not found");
    let names = rows(&server, "SELECT DISTINCT table_schema AS name FROM information_schema.tables ORDER BY 1");
    assert_eq!(names, json!([{ "name": "information_schema" }, { "name": TENANT }, { "name": "system" }]));
    refused(&server, "shop|other", "SELECT 1", 400, "one tenant at a time, not of other|shop");
    let nobody = wait(server.client().request("POST", "/api/sql", &[], &[("Content-Type", "application/sql")], b"SELECT 1".to_vec()));
    assert_eq!(nobody.status, 401);
}

#[test]
fn tenants_with_the_names_of_schemas_have_their_tables() {
    let server = Server::start(json!({}));
    for (tenant, schema, own) in [("system", "tenant_system", 4), ("information_schema", "tenant_information_schema", 5)] {
        load(&server, tenant, own);
        let count = |statement: &str| {
            let reply = ask_as(&server, tenant, statement, "application/json");
            assert_eq!(reply.status, 200, "{tenant}: {statement}: {}", reply.text());
            reply.json()[0]["n"].as_u64().unwrap()
        };
        assert_eq!(count("SELECT count(*) AS n FROM spans"), own);
        assert_eq!(count(&format!("SELECT count(*) AS n FROM {schema}.spans s JOIN skein.{schema}.spans o ON s.span_id = o.span_id")), own);
        assert_eq!(count("SELECT count(*) AS n FROM traceql('{ }')"), own);
        assert!(count("SELECT count(*) AS n FROM system.functions") > 0);
        assert_eq!(count("SELECT count(*) AS n FROM information_schema.tables WHERE table_name = 'spans'"), 1);
        refused(&server, tenant, "SELECT * FROM system.spans", 400, "not found");
        refused(&server, tenant, "SELECT * FROM information_schema.spans", 400, "not found");
    }
}

/// What a client sees of an answer: whether it was whole, and what came of it.
fn raw(server: &Server, accept: &str, statement: &str) -> String {
    wait(async {
        let mut connection = tokio::net::TcpStream::connect(server.client().addresses.http).await.unwrap();
        let request = format!(
            "POST /api/sql HTTP/1.1\r\nHost: x\r\nX-Scope-OrgID: {TENANT}\r\nContent-Type: application/sql\r\nAccept: {accept}\r\nTE: trailers\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n{statement}",
            statement.len()
        );
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(PATIENCE, connection.read_to_end(&mut answer)).await.unwrap().unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    })
}

#[test]
fn an_answer_that_breaks_off_is_not_taken_for_whole() {
    let server = Server::start(json!({ "overrides": { "defaults": { "read": { "max_sql_rows": 20_000 } } } }));
    load(&server, TENANT, 4);
    let many = "SELECT value FROM generate_series(1, 30000)";
    for accept in ["application/json", "application/x-ndjson", "text/csv", "application/vnd.apache.arrow.stream"] {
        let whole = raw(&server, accept, "SELECT value FROM generate_series(1, 10000)");
        assert!(whole.starts_with("HTTP/1.1 200"), "{accept}");
        assert!(whole.contains("\r\n0\r\nskein-query-cost: {"), "{accept}: the last chunk, then what was read");
        let broken = raw(&server, accept, many);
        assert!(broken.starts_with("HTTP/1.1 200") && !broken.contains("\r\n0\r\n"), "{accept}: no last chunk");
        let says = broken.contains("error: the answer has more than 20000 rows (read.max_sql_rows)");
        assert_eq!(says, !accept.contains("arrow"), "{accept}");
    }
    refused(&server, TENANT, "SELECT value FROM generate_series(1, 30000) ORDER BY CAST(value || 'x' AS BIGINT)", 400, "Cannot cast string");
}

/// Answers are compressed while they are made, each piece so that it can be read at once.
#[test]
fn answers_are_compressed_for_clients_that_ask_for_it() {
    let server = Server::start(json!({ "overrides": { "defaults": { "read": { "max_sql_rows": 20_000 } } } }));
    load(&server, TENANT, 4);
    let ask = |statement: &str, accept: &str| {
        let headers = [("X-Scope-OrgID", TENANT), ("Accept", accept), ("Accept-Encoding", "gzip")];
        wait(server.client().request("POST", "/api/sql", &[], &headers, statement.as_bytes().to_vec()))
    };
    let unpacked = |packed: &[u8]| {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(packed).read_to_end(&mut plain).unwrap();
        plain
    };
    let many = "SELECT value FROM generate_series(1, 10000)";
    for accept in ["application/json", "text/csv", "application/vnd.apache.arrow.stream"] {
        let (plain, packed) = (ask_as(&server, TENANT, many, accept), ask(many, accept));
        assert_eq!((plain.header("content-encoding"), packed.header("content-encoding"), packed.header("vary")), ("", "gzip", "Accept-Encoding"));
        assert_eq!(unpacked(&packed.body), plain.body, "{accept}");
        assert!(packed.body.len() < plain.body.len(), "{accept}: {} of {} bytes", packed.body.len(), plain.body.len());
    }
    assert_eq!(ask(many, "application/vnd.apache.parquet").header("content-encoding"), "", "is compressed in itself");
    let refused = ask("SELECT nam FROM spans", "application/json");
    assert!(refused.status == 400 && refused.header("content-encoding").is_empty() && refused.text().contains("nam"), "{}", refused.text());

    // The rows that cannot all be sent end where they end, unpacked or not.
    let (head, body) = raw_gzip(&server, "SELECT value FROM generate_series(1, 30000)");
    assert!(head.contains("content-encoding: gzip"), "{head}");
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut plain).unwrap_err();
    let plain = String::from_utf8_lossy(&plain);
    let last = plain.lines().last().unwrap();
    assert!(last.starts_with("error: the answer has more than 20000 rows (read.max_sql_rows)"), "{last}");
}

/// The head of an answer that breaks off, and its chunks put together.
fn raw_gzip(server: &Server, statement: &str) -> (String, Vec<u8>) {
    let answer = wait(async {
        let mut connection = tokio::net::TcpStream::connect(server.client().addresses.http).await.unwrap();
        let request = format!(
            "POST /api/sql HTTP/1.1\r\nHost: x\r\nX-Scope-OrgID: {TENANT}\r\nAccept-Encoding: gzip\r\nConnection: close\r\nContent-Length: {}\r\n\r\n\
             {statement}",
            statement.len()
        );
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(PATIENCE, connection.read_to_end(&mut answer)).await.unwrap().unwrap();
        answer
    });
    let find = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).position(|window| window == part);
    let head = find(&answer, b"\r\n\r\n").unwrap();
    let (mut chunks, mut body) = (&answer[head + 4..], Vec::new());
    while let Some(line) = find(chunks, b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&chunks[..line]).unwrap(), 16).unwrap();
        assert!(length > 0, "no last chunk");
        body.extend_from_slice(&chunks[line + 2..][..length]);
        chunks = &chunks[line + 2 + length + 2..];
    }
    (String::from_utf8_lossy(&answer[..head]).into_owned(), body)
}

#[test]
fn limits_are_those_of_the_tenant_and_name_their_key() {
    let read = json!({ "max_sql_bytes": 50_000, "max_sql_duration": "2s", "max_sql_memory_bytes": 20_000_000 });
    let server = Server::start(json!({ "overrides": { "defaults": { "read": read } } }));
    load(&server, TENANT, 4);
    refused(&server, TENANT, "SELECT * FROM generate_series(1, 20000) ORDER BY value * 7 % 13, value", 429, "read.max_sql_bytes");
    refused(
        &server,
        TENANT,
        "SELECT sum(a.value * b.value % 7) FROM generate_series(1, 10000) a, generate_series(1, 1000000000) b",
        429,
        "read.max_sql_duration",
    );
    let groups = "SELECT count(*) FROM (SELECT value % 5000000 AS g, count(*) FROM generate_series(1, 10000000) GROUP BY 1)";
    refused(&server, TENANT, groups, 429, "read.max_sql_memory_bytes");
    refused(
        &server,
        TENANT,
        "SELECT max(r) FROM (SELECT row_number() OVER (ORDER BY value * 7 % 1000003) AS r FROM generate_series(1, 10000000))",
        429,
        "read.max_sql_memory_bytes",
    );
    assert_eq!(rows(&server, "SELECT count(*) AS n FROM spans"), json!([{ "n": 4 }]));
}

#[test]
fn a_client_that_leaves_ends_its_statement() {
    let server = Server::start(json!({}));
    load(&server, TENANT, 4);
    let running = || server.client().metric("skein_frontend_queries_running").unwrap_or(0.0);
    for statement in [
        "SELECT sum(a.value * b.value % 7) FROM generate_series(1, 10000000) a, generate_series(1, 10000000) b",
        "SELECT value FROM generate_series(1, 1000000000000)",
    ] {
        let mut connection = wait(tokio::net::TcpStream::connect(server.client().addresses.http)).unwrap();
        let request =
            format!("POST /api/sql HTTP/1.1\r\nHost: x\r\nX-Scope-OrgID: {TENANT}\r\nContent-Length: {}\r\n\r\n{statement}", statement.len());
        wait(connection.write_all(request.as_bytes())).unwrap();
        until("the statement runs", PATIENCE, || running() == 1.0);
        drop(connection);
        until("the statement has ended", PATIENCE, || running() == 0.0);
    }
    // Nothing computes any more: what it used is less than what one of the statements would.
    let ticks = || server.processor_ticks().unwrap_or(0);
    let mut before = ticks();
    until("the process is idle", PATIENCE, || {
        let now = ticks();
        std::mem::replace(&mut before, now) == now
    });
}

/// What a statement may get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// 400 with this in it.
    Refused(&'static str),
    /// 200 with a whole answer of less than a megabyte.
    Answered,
    /// The same, or 429 with the limit that was reached.
    Bounded,
}

#[test]
fn statements_that_mean_harm_are_refused_or_bounded() {
    let read = json!({ "max_sql_rows": 100_000, "max_sql_bytes": 50_000_000, "max_sql_duration": "5s", "max_sql_memory_bytes": 200_000_000 });
    let server = Server::start(json!({
        "overrides": { "defaults": { "read": read } },
        "query_frontend": { "max_memory_bytes": 300_000_000 },
    }));
    load(&server, TENANT, 1_000);
    load(&server, "other", 10);
    let mut findings = Findings::new();
    let statements = hostile();
    assert!(statements.len() >= 100, "{}", statements.len());
    for (statement, verdict) in &statements {
        let shown: String = statement.chars().take(120).collect();
        findings.within(shown.clone());
        let headers = [("X-Scope-OrgID", TENANT), ("Content-Type", "application/sql")];
        let asked = server.client().try_request(server.client().addresses.http, "POST", "/api/sql", &[], &headers, statement.clone().into_bytes());
        let found = match wait(asked) {
            Ok(reply) => (reply.status, reply.text()),
            // The limit came after the first rows.
            Err(error) if error.is_body() || error.is_decode() => (429, "read.max_sql_ (broken off)".to_owned()),
            Err(error) => (0, error.to_string()),
        };
        let limited = found.0 == 429 && (found.1.contains("read.max_sql_") || found.1.contains("query_frontend.max_memory_bytes"));
        let answered = found.0 == 200 && found.1.len() < 1_000_000;
        let holds = match verdict {
            Verdict::Refused(part) => found.0 == 400 && found.1.to_lowercase().contains(&part.to_lowercase()),
            Verdict::Answered => answered,
            Verdict::Bounded => limited || answered,
        };
        let told: String = found.1.chars().take(300).collect();
        findings.holds("verdict", holds, || format!("{verdict:?}, found {} {told}", found.0));
        let secret = ["root:x:", "PATH=", "/usr/", "skein-test"].iter().find(|secret| found.1.contains(**secret) && !statement.contains(**secret));
        findings.equal("tells of the host", None, secret);
    }
    findings.within("the process");
    findings.equal("still answers", json!([{ "n": 1_000 }]), rows(&server, "SELECT count(*) AS n FROM spans"));
    let peak = server.peak_bytes().expect("the system tells the peak");
    // Memory of statements and of all queries are 300 MB at most; the rest is the process, caches, and batches being written.
    findings.holds("memory", peak < 1_500_000_000, || format!("{peak} bytes"));
    findings.finish();
}

/// Statements with what they may get.
fn hostile() -> Vec<(String, Verdict)> {
    use Verdict::*;
    let reads = Refused("only statements that read");
    let absent = Refused("not found");
    let mut all: Vec<(String, Verdict)> = Vec::new();
    let mut add = |verdict: Verdict, statements: &[&str]| all.extend(statements.iter().map(|statement| ((*statement).to_owned(), verdict)));
    // Files, processes, other stores.
    add(
        absent,
        &[
            "SELECT * FROM '/etc/passwd'",
            "SELECT * FROM 'file:///etc/passwd'",
            "SELECT * FROM \"/etc/passwd\"",
            "SELECT * FROM 's3://bucket/key.parquet'",
            "SELECT * FROM 'http://169.254.169.254/latest/meta-data'",
            "SELECT * FROM '../blocks'",
            "SELECT * FROM '*.csv'",
            "SELECT * FROM read_csv('/etc/passwd')",
            "SELECT * FROM read_parquet('/tmp/x')",
            "SELECT * FROM read_json('/proc/self/environ')",
            "SELECT * FROM glob('/*')",
            "SELECT * FROM parquet_metadata('/x')",
            "SELECT * FROM other.spans",
            "SELECT * FROM skein.other.spans",
            "SELECT * FROM datafusion.public.spans",
            "SELECT * FROM \"other\".\"spans\"",
            "SELECT * FROM skein.\"other\".events",
            "SELECT * FROM pg_catalog.pg_tables",
            "SELECT s.* FROM spans s JOIN other.spans o ON s.trace_id = o.trace_id",
            "SELECT (SELECT count(*) FROM other.spans)",
            "DESCRIBE other.spans",
            "SHOW COLUMNS FROM other.spans",
        ],
    );
    add(
        Refused("function"),
        &[
            "SELECT version()",
            "SELECT pg_read_file('/etc/passwd')",
            "SELECT getenv('PATH')",
            "SELECT current_setting('x')",
            "SELECT load_extension('x')",
            "SELECT system('id')",
            "SELECT pg_sleep(1000)",
            "SELECT input_file_name() FROM spans",
            "SELECT array_repeat('x', 1000000000)",
            "SELECT range(1, 1000000000000)",
            "SELECT generate_series(1, 1000000000000)",
            "SELECT array_resize([1], 1000000000, 1)",
        ],
    );
    // Anything that writes or changes.
    add(
        reads,
        &[
            "CREATE TABLE x AS SELECT 1",
            "CREATE VIEW x AS SELECT * FROM spans",
            "DROP TABLE spans",
            "DROP SCHEMA other CASCADE",
            "CREATE SCHEMA mine",
            "CREATE DATABASE mine",
            "INSERT INTO spans SELECT * FROM spans",
            "DELETE FROM spans",
            "UPDATE spans SET name = 'x'",
            "TRUNCATE TABLE spans",
            "COPY spans TO '/tmp/skein-test.parquet'",
            "COPY (SELECT 1) TO '/tmp/skein-test.csv' STORED AS CSV",
            "EXPLAIN COPY spans TO '/tmp/skein-test.parquet'",
            "EXPLAIN ANALYZE COPY spans TO '/tmp/skein-test.parquet'",
            "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
            "SET datafusion.execution.batch_size = 1",
            "SET TIME ZONE 'UTC'",
            "RESET datafusion.execution.batch_size",
            "BEGIN",
            "COMMIT",
            "PREPARE p AS SELECT 1",
            "EXECUTE p",
            "DEALLOCATE p",
            "CREATE FUNCTION f(DOUBLE) RETURNS DOUBLE RETURN $1",
            "DROP FUNCTION f",
        ],
    );
    add(
        Refused(""),
        &[
            "",
            ";",
            "SELECT 1; SELECT 2",
            "SELECT 1; DROP TABLE spans",
            "ATTACH 'x' AS y",
            "INSTALL httpfs",
            "PRAGMA x",
            "VACUUM",
            "GRANT ALL ON spans TO x",
            "LOAD 'x'",
            "USE other",
            "CALL x()",
            "SELECT '",
            "SELECT /*",
            "SELECT \u{0}",
            "LOCK TABLE spans",
        ],
    );
    add(
        Refused("settings cannot be read"),
        &[
            "SHOW ALL",
            "SHOW datafusion.execution.target_partitions",
            "SELECT * FROM information_schema.df_settings",
            "EXPLAIN SELECT * FROM information_schema.df_settings",
        ],
    );
    // Much of little.
    add(
        Refused("at most 65536"),
        &[
            "SELECT repeat('x', 2000000000)",
            "SELECT repeat(repeat('x', 60000), 60000)",
            "SELECT lpad('x', 2000000000)",
            "SELECT rpad('x', 2000000000, 'y') FROM spans",
            "SELECT replace(repeat('x', 60000), 'x', repeat('y', 60000))",
            "SELECT regexp_replace(repeat('x', 60000), 'x', repeat('y', 60000), 'g')",
            "SELECT concat(a, a, a, a) FROM (SELECT repeat(name, 8000) AS a FROM spans)",
            "SELECT encode(repeat('x', 60000), 'hex')",
        ],
    );
    add(
        Refused(""),
        &[
            "SELECT levenshtein(repeat('x', 60000), repeat('y', 60000)) FROM spans",
            "SELECT repeat('x', 65000), repeat('y', 65000), repeat('z', 65000) FROM spans",
        ],
    );
    add(
        Bounded,
        &[
            "SELECT * FROM generate_series(1, 1000000000000)",
            "SELECT count(*) FROM generate_series(1, 1000000000000)",
            "SELECT sum(value) FROM range(0, 9223372036854775807)",
            "SELECT * FROM generate_series(1, 1000000000000) ORDER BY value DESC",
            "SELECT DISTINCT value FROM generate_series(1, 1000000000000)",
            "SELECT value, count(*) FROM generate_series(1, 1000000000000) GROUP BY 1",
            "SELECT string_agg(CAST(value AS VARCHAR), ',') FROM generate_series(1, 1000000000000)",
            "SELECT array_agg(value) FROM generate_series(1, 1000000000000)",
            "SELECT median(value) FROM generate_series(1, 1000000000000)",
            "SELECT row_number() OVER (ORDER BY value) FROM generate_series(1, 1000000000000)",
            "SELECT a.trace_id AS t, b.name AS n, c.kind AS k, d.status AS s FROM spans a, spans b, spans c, spans d",
            "SELECT count(*) FROM spans a, spans b, spans c, spans d",
            "SELECT count(*) FROM spans a JOIN spans b ON a.duration_nanos > b.duration_nanos JOIN spans c ON b.duration_nanos <> c.duration_nanos JOIN spans d ON true",
            "SELECT a.name AS x, b.name AS y, c.name AS z FROM spans a FULL JOIN spans b ON a.name < b.name FULL JOIN spans c ON true",
            "SELECT rpad(a.name, 16000) FROM spans a, spans b",
            "SELECT rpad(a.name, 16000), rpad(a.name, 16001), rpad(a.name, 16002), rpad(a.name, 16003), rpad(a.name, 16004) FROM spans a, spans b",
            "WITH RECURSIVE n AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM n) SELECT * FROM n",
            "WITH RECURSIVE n AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n",
            "WITH RECURSIVE n AS (SELECT name AS x FROM spans UNION ALL SELECT rpad(x, 16000) FROM n) SELECT count(*) FROM n",
            "SELECT count(*) FROM traceql('{} >> {}') a, traceql('{} >> {}') b, traceql('{}') c",
        ],
    );
    add(Answered, &["EXPLAIN SELECT * FROM spans", "EXPLAIN ANALYZE SELECT count(*) FROM spans", "SHOW TABLES", "SELECT now()", "SELECT 1 / 0.0"]);
    add(Refused("parse"), &["SELECT * FROM traceql('{ nope')", "SELECT * FROM traceql('')"]);
    add(Refused("divide by zero"), &["SELECT 1 / 0"]);
    add(
        Refused("not support"),
        &[
            "WITH RECURSIVE n AS (SELECT 1 AS x UNION ALL SELECT a.x FROM n a, n b) SELECT count(*) FROM n",
            "SELECT (SELECT count(*) FROM spans b WHERE b.duration_nanos > a.duration_nanos) FROM spans a, spans c, spans d",
        ],
    );
    // Texts whose plans are large or deep.
    let doubled = |levels: usize| {
        let ctes: String = (1..=levels).map(|at| format!(", c{at} AS (SELECT a.x FROM c{} a, c{} b)", at - 1, at - 1)).collect();
        format!("WITH c0 AS (SELECT 1 AS x){ctes} SELECT count(*) FROM c{levels}")
    };
    all.push((doubled(60), Refused("more than 128 tables")));
    all.push((vec!["SELECT name FROM spans"; 500].join(" UNION ALL "), Refused("more than 128 tables")));
    all.push((format!("SELECT {}1{}", "(".repeat(10_000), ")".repeat(10_000)), Refused("")));
    all.push((format!("SELECT -{}1", " - ".repeat(10_000)), Refused("")));
    all.push((format!("SELECT {}", vec!["1"; 20_000].join(" + ")), Refused("at most 4000")));
    all.push((format!("SELECT count(*) FROM spans WHERE {}", vec!["name = 'x'"; 5_000].join(" OR ")), Refused("at most 4000")));
    all.push((format!("SELECT count(*) FROM spans WHERE name IN ({})", vec!["'x'"; 20_000].join(",")), Bounded));
    all.push((format!("SELECT {} FROM spans", vec!["name || 'x'"; 5_000].join(" || ")), Refused("at most 4000")));
    all.push((format!("SELECT {}", vec!["1 AS a"; 2_000].join(", ")), Refused("")));
    all.push((format!("SELECT '{}'", "x".repeat(200_000)), Refused("at most 131072 are read")));
    all.push((format!("SELECT count(*) FROM spans WHERE name LIKE '{}'", "%a".repeat(10_000)), Bounded));
    all.push((format!("SELECT count(*) FROM spans WHERE name ~ '{}'", "(a*)*".repeat(1_000)), Bounded));
    all.push(("SELECT regexp_like(name, '(a{1000}){1000}{1000}') FROM spans".to_owned(), Refused("")));
    all.push((format!("SELECT {}x{} FROM (SELECT 1 AS x)", "CASE WHEN true THEN ".repeat(500), " END".repeat(500)), Refused("")));
    all
}
