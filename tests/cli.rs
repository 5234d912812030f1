//! The command line: flags, checks of the settings, and the subcommands against a running process.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use serde_json::{Value, json};

use crate::formats::block_files;
use crate::harness::{self, PATIENCE, Server, nothing_is_cut, standard_settings, terminate, tests_dir, wait};

fn run(arguments: &[&str]) -> Output {
    Command::new(harness::binary()).args(arguments).stdin(Stdio::null()).env("NO_COLOR", "1").output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs to a good end; gives what was printed.
fn succeed(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}\n{}{}", output.status, stdout(&output), stderr(&output));
    stdout(&output)
}

/// Runs to a bad end; gives what was complained.
fn fail(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(!output.status.success(), "{arguments:?} succeeded: {}", stdout(&output));
    stderr(&output)
}

/// A settings file; the folder lives as long as the value.
struct Settings {
    dir: tempfile::TempDir,
}

impl Settings {
    fn write(content: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("skein.yaml"), content).unwrap();
        Self { dir }
    }

    fn standard(overlay: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = standard_settings(dir.path());
        harness::merge(&mut settings, overlay);
        std::fs::write(dir.path().join("skein.yaml"), serde_yaml_ng::to_string(&settings).unwrap()).unwrap();
        Self { dir }
    }

    fn flag(&self) -> String {
        format!("-config.file={}", self.dir.path().join("skein.yaml").display())
    }
}

#[test]
fn the_version_is_printed() {
    let printed = succeed(&["-version"]);
    assert!(printed.contains("skein") && printed.contains(env!("CARGO_PKG_VERSION")), "{printed}");
    assert_eq!(succeed(&["--version"]), printed);
}

#[test]
fn settings_can_be_verified_without_a_start() {
    let good = Settings::standard(json!({}));
    succeed(&[&good.flag(), "-config.verify"]);
    succeed(&[&good.flag(), "-config.verify=true", "-target=all"]);
    assert!(!good.dir.path().join("wal").exists(), "verifying leaves no trace");
    let missing = fail(&["-config.file=/nonexistent/skein.yaml", "-config.verify"]);
    assert!(missing.contains("/nonexistent/skein.yaml"), "{missing}");
}

#[test]
fn an_unknown_key_is_named_with_its_nearest_neighbour() {
    for (overlay, unknown, nearest) in [
        (json!({ "ingester": { "trace_idle_periode": "5s" } }), "trace_idle_periode", "trace_idle_period"),
        (json!({ "storrage": {} }), "storrage", "storage"),
        (json!({ "storage": { "trace": { "wal": { "pth": "x" } } } }), "pth", "path"),
        (json!({ "query_frontend": { "search": { "max_durations": "1h" } } }), "max_durations", "max_duration"),
    ] {
        let settings = Settings::standard(overlay);
        let complaint = fail(&[&settings.flag(), "-config.verify"]);
        let neighbour = complaint.replacen(unknown, "", 1);
        assert!(complaint.contains(unknown) && neighbour.contains(nearest), "{unknown}: {complaint}");
        // The same without the flag: nothing starts on settings that are wrong.
        assert!(fail(&[&settings.flag()]).contains(unknown));
    }
}

#[test]
fn bad_settings_are_refused_with_their_key() {
    for (overlay, part) in [
        (json!({ "ingester": { "trace_idle_period": "soon" } }), "trace_idle_period"),
        (json!({ "storage": { "trace": { "backend": "tape" } } }), "tape"),
        (json!({ "storage": { "trace": { "wal": { "sync": "sometimes" } } } }), "sometimes"),
        (json!({ "target": "everything" }), "everything"),
        (json!({ "server": { "http_listen_port": "high" } }), "http_listen_port"),
    ] {
        let settings = Settings::standard(overlay);
        let complaint = fail(&[&settings.flag(), "-config.verify"]);
        assert!(complaint.contains(part), "{part}: {complaint}");
    }
    let broken = Settings::write("server: [\n");
    assert!(fail(&[&broken.flag(), "-config.verify"]).contains("skein.yaml"));
}

#[test]
fn the_environment_is_expanded_on_request() {
    let settings = Settings::write("ingester:\n  trace_idle_period: ${SKEIN_TEST_IDLE}\n  flush_check_period: ${SKEIN_TEST_UNSET:-7s}\n");
    let verify = |idle: &str| {
        let mut command = Command::new(harness::binary());
        command.args([settings.flag().as_str(), "-config.expand-env=true", "-config.verify"]).env("SKEIN_TEST_IDLE", idle);
        command.output().unwrap()
    };
    let output = verify("3s");
    assert!(output.status.success(), "{}", stderr(&output));
    let output = verify("soon");
    assert!(!output.status.success() && stderr(&output).contains("soon"), "{}", stderr(&output));
}

#[test]
fn unknown_flags_and_subcommands_are_refused() {
    assert!(fail(&["-target.of.what=1"]).contains("target.of.what"));
    assert!(!fail(&["quary", "{}"]).is_empty());
}

fn dataset(name: &str) -> PathBuf {
    tests_dir().join(format!("data/{name}.otlp.zst"))
}

#[test]
fn load_query_trace_and_inspect_work_together() {
    let server = Server::start({
        let mut settings = nothing_is_cut();
        harness::merge(&mut settings, json!({ "multitenancy_enabled": false }));
        settings
    });
    let client = server.client();
    let (endpoint, url) = (format!("http://{}", client.addresses.otlp_http), format!("http://{}", client.addresses.http));
    let (nodedb, genai) = (dataset("nodedb"), dataset("genai"));
    succeed(&["load", nodedb.to_str().unwrap(), genai.to_str().unwrap(), "--endpoint", &endpoint]);
    assert_eq!(client.metric("tempo_distributor_spans_received_total"), Some(339.0), "292 and 47 spans");

    let q = r#"{ resource.service.name = "@preflight/service" && name = "pg-pool.connect" }"#;
    let table = succeed(&["query", q, "--url", &url]);
    assert!(table.contains("pg-pool.connect"), "{table}");
    let as_json: Value = serde_json::from_str(&succeed(&["query", q, "--url", &url, "--format", "json", "--limit", "1000"])).unwrap();
    assert!(as_json.to_string().contains("b49cb28160e2d67825ef19e3e24d1b4e"), "{as_json}");
    let arrow = run(&["query", q, "--url", &url, "--format", "arrow"]);
    assert!(arrow.status.success(), "{}", stderr(&arrow));
    // Arrow's streaming format starts with a continuation, its file format with a magic.
    assert!(arrow.stdout.starts_with(&[0xFF; 4]) || arrow.stdout.starts_with(b"ARROW1"), "{:?}", &arrow.stdout[..arrow.stdout.len().min(16)]);
    let complaint = fail(&["query", "{ foo }", "--url", &url]);
    assert!(complaint.contains("unknown identifier: foo"), "{complaint}");

    let waterfall = succeed(&["trace", "b49cb28160e2d67825ef19e3e24d1b4e", "--url", &url]);
    assert_eq!(waterfall.matches("@preflight/service ·").count(), 25, "a line for each span: {waterfall}");
    assert!(!fail(&["trace", "ffffffffffffffffffffffffffffffff", "--url", &url]).is_empty());

    client.flush();
    let files = block_files(&server.blocks(), "data.parquet");
    let block = files[0].parent().unwrap();
    let inspected = succeed(&["inspect", block.to_str().unwrap()]);
    assert!(inspected.contains("resource.service.name") && inspected.contains('%'), "{inspected}");
    assert!(!fail(&["inspect", "/nonexistent/block"]).is_empty());

    let plan = succeed(&["query", q, "--url", &url, "--explain"]);
    for part in
        ["TraceDetails: ", "SpansetScan: ", "TraceDetailsExec", "NewestTracesExec: limit=20", "SpansetScanExec", "blocks=1", "prunes by resources"]
    {
        assert!(plan.contains(part), "{part} is not in {plan}");
    }
    assert!(!plan.contains("row_groups_read"), "{plan}");
    let ran = succeed(&["query", q, "--url", &url, "--explain=analyze"]);
    assert!(ran.contains("row_groups_read=1") && ran.contains("spans_scanned=339") && ran.contains("bytes_read="), "{ran}");
    let never = succeed(&["query", r#"{ name = "a" && name = "b" }"#, "--url", &url, "--explain"]);
    assert!(never.contains("EmptyRelation") && !never.contains("Scan"), "{never}");
    let pruned = succeed(&["query", r#"{ resource.service.name = "nobody" }"#, "--url", &url, "--explain=analyze"]);
    assert!(pruned.contains("row_groups_pruned_resources=1") && !pruned.contains("bytes_read="), "{pruned}");
}

#[test]
fn load_says_what_went_wrong() {
    let endpoint = {
        // Bound and given up again: nobody listens there.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    assert!(!fail(&["load", dataset("nodedb").to_str().unwrap(), "--endpoint", &endpoint]).is_empty());
    let dir = tempfile::tempdir().unwrap();
    let torn = dir.path().join("torn.otlp.zst");
    let whole = std::fs::read(dataset("nodedb")).unwrap();
    std::fs::write(&torn, &whole[..whole.len() / 2]).unwrap();
    let server = Server::start(json!({ "multitenancy_enabled": false }));
    let endpoint = format!("http://{}", server.client().addresses.otlp_http);
    let complaint = fail(&["load", torn.to_str().unwrap(), "--endpoint", &endpoint]);
    assert!(complaint.contains("torn.otlp.zst"), "{complaint}");
}

#[test]
fn load_reads_otlp_json() {
    let server = Server::start(json!({ "multitenancy_enabled": false }));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("one.json");
    let request = crate::otlp::request("by-file", vec![crate::otlp::span([9; 16], 1, 0, "from a file", 1_700_000_000_000_000_000, 10)]);
    std::fs::write(&file, crate::otlp_json::encode(&request)).unwrap();
    succeed(&["load", file.to_str().unwrap(), "--endpoint", &format!("http://{}", server.client().addresses.otlp_http)]);
    let found = wait(server.client().trace("single-tenant", [9; 16])).unwrap();
    crate::otlp::assert_same("from a file", &request.resource_spans, &found);
}

/// The ports that the demonstration takes.
const DEMO_PORTS: [u16; 3] = [3200, 4317, 4318];

#[test]
fn the_demonstration_answers_questions_and_stays_up() {
    for port in DEMO_PORTS {
        if let Err(error) = TcpListener::bind(("127.0.0.1", port)) {
            eprintln!("skipped: the_demonstration_answers_questions_and_stays_up: port {port} is taken: {error}");
            return;
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(harness::binary())
        .arg("demo")
        .current_dir(dir.path())
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| watch_demo(&mut child)));
    if let Err(problem) = outcome {
        let _ = child.kill();
        let _ = child.wait();
        std::panic::resume_unwind(problem);
    }
}

fn watch_demo(child: &mut std::process::Child) {
    let (lines, received) = mpsc::channel();
    let pipe = child.stdout.take().unwrap();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let _ = lines.send(line);
        }
    });
    let (deadline, mut printed) = (Instant::now() + PATIENCE, String::new());
    // It has said all when three questions and the address are there.
    while printed.matches('{').count() < 3 || !printed.contains("http://") {
        let line = received
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            .unwrap_or_else(|problem| panic!("{problem}, printed:\n{printed}"));
        printed.push_str(&line);
        printed.push('\n');
    }
    let answer = reqwest_get(3200, "/api/echo");
    assert_eq!(answer, (200, "echo\n".to_owned()));
    let (status, found) = reqwest_get(3200, "/api/search?q=%7B%7D&limit=5&start=1000000000&end=2000000000");
    let found: Value = serde_json::from_str(&found).unwrap();
    assert!(status == 200 && !found["traces"].as_array().unwrap().is_empty(), "{found}");
    assert!(child.try_wait().unwrap().is_none(), "it stays up");
    terminate(child);
    harness::until("the end of the demonstration", PATIENCE, || child.try_wait().unwrap().is_some());
    assert!(child.wait().unwrap().success());
}

fn reqwest_get(port: u16, path: &str) -> (u16, String) {
    wait(async {
        let response = reqwest::Client::builder().no_proxy().build().unwrap().get(format!("http://127.0.0.1:{port}{path}")).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    })
}

#[test]
fn listeners_are_told_before_ready() {
    let server = Server::start(json!({}));
    let lines = server.stdout();
    assert_eq!(lines.iter().filter(|line| line.contains(" listening on 127.0.0.1:")).count(), 4, "{lines:?}");
    assert_eq!(lines.last().map(String::as_str), Some("skein: ready"));
}
