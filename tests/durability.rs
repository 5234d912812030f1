//! Acknowledged spans survive: SIGKILL at random points, a damaged end of the log, a full disk.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, StringArray};
use arrow::record_batch::RecordBatch;
use futures::StreamExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::harness::{self, Client, Compression, Findings, PATIENCE, Server, Transport, nothing_is_cut, until, wait};
use crate::otlp::{self, TraceId};

const TENANT: &str = "durable";
const SENDERS: u64 = 5;
/// The one that writes tables over Arrow Flight.
const TABLE_SENDER: u64 = 5;
const KILLS: usize = 50;
/// The spans' time; years ago, as nothing may depend on the clock.
const START: u64 = 1_600_000_000_000_000_000;
const WINDOW: (u64, u64) = (1_599_999_999, 1_600_100_000);

/// What one sender knows of its spans.
#[derive(Default)]
struct Sent {
    acknowledged: HashMap<TraceId, BTreeSet<u64>>,
    /// Neither acknowledged nor refused: the process died first. May be there or not, once.
    unknown: HashMap<TraceId, BTreeSet<u64>>,
}

impl Sent {
    fn absorb(&mut self, other: Sent) {
        for (of, from) in [(&mut self.acknowledged, other.acknowledged), (&mut self.unknown, other.unknown)] {
            for (trace, spans) in from {
                of.entry(trace).or_default().extend(spans);
            }
        }
    }
}

/// Makes spans whose ids occur once, spread over traces that grow over several requests.
struct Source {
    sender: u64,
    round: u64,
    next_span: u64,
    random: StdRng,
}

impl Source {
    fn batch(&mut self) -> Vec<(TraceId, u64)> {
        let count = self.random.random_range(1..=24);
        (0..count)
            .map(|_| {
                self.next_span += 1;
                // Six spans a trace on average; neighbours in time, so that a cut may come between two spans of a trace.
                let trace =
                    u128::from(self.sender) << 96 | u128::from(self.round) << 64 | u128::from(self.next_span / 6 + self.random.random_range(0..2));
                (trace.to_be_bytes(), self.sender << 56 | self.round << 32 | self.next_span)
            })
            .collect()
    }
}

#[test]
fn fifty_kills_lose_and_double_nothing() {
    let seed = harness::seed("fifty_kills_lose_and_double_nothing");
    let mut random = StdRng::seed_from_u64(seed);
    // Everything behind the acknowledgement runs all the time: cutting, blocks, merging.
    let mut server = Server::start(json!({
        "ingester": { "trace_idle_period": "100ms", "flush_check_period": "50ms", "max_block_duration": "300ms", "max_block_bytes": 65_536 },
        "compactor": { "compaction": { "compaction_cycle": "100ms" } },
        "storage": { "trace": { "blocklist_poll": "200ms" } },
    }));
    let mut all = Sent::default();
    let mut findings = Findings::new();
    for round in 1..=KILLS as u64 {
        let flush_after = random.random_bool(0.6).then(|| random.random_range(1..=40));
        let plan =
            KillPlan { after_acknowledged: random.random_range(0..=60), then: Duration::from_micros(random.random_range(0..30_000)), flush_after };
        let sent = load_until_killed(&mut server, round, random.random(), &plan);
        server.restart();
        findings.within(format!("after kill {round}, {plan:?}"));
        check(&mut findings, server.client(), &sent);
        all.absorb(sent);
    }
    findings.within("at the end");
    check(&mut findings, server.client(), &all);
    server.client().flush();
    findings.within("at the end, flushed");
    check(&mut findings, server.client(), &all);
    let acknowledged: usize = all.acknowledged.values().map(BTreeSet::len).sum();
    let unknown: usize = all.unknown.values().map(BTreeSet::len).sum();
    println!("{KILLS} kills, {acknowledged} spans acknowledged, {unknown} cut off by a kill");
    assert!(acknowledged > KILLS * 20, "too little load to show anything");
    check_counts(&mut findings, server.client(), &all);
    findings.finish();
}

/// When to kill: counted in acknowledged requests, and then a moment that falls anywhere into what the process does next.
#[derive(Debug)]
struct KillPlan {
    after_acknowledged: u64,
    then: Duration,
    flush_after: Option<u64>,
}

fn load_until_killed(server: &mut Server, round: u64, seed: u64, plan: &KillPlan) -> Sent {
    let client = server.client().clone();
    let (acknowledged, killed) = (&AtomicU64::new(0), &AtomicBool::new(false));
    std::thread::scope(|scope| {
        let senders: Vec<_> = (1..=SENDERS)
            .map(|sender| {
                let client = client.clone();
                scope.spawn(move || {
                    let mut source = Source { sender, round, next_span: 0, random: StdRng::seed_from_u64(seed ^ sender) };
                    let mut sent = Sent::default();
                    while !killed.load(Ordering::Relaxed) {
                        send_one(&client, &mut source, &mut sent, acknowledged);
                    }
                    sent
                })
            })
            .collect();
        if let Some(after) = plan.flush_after {
            let client = client.clone();
            scope.spawn(move || {
                while acknowledged.load(Ordering::Relaxed) < after && !killed.load(Ordering::Relaxed) {
                    std::thread::park_timeout(Duration::from_micros(200));
                }
                // The kill may well come before the answer.
                let _ = wait(client.try_request(client.addresses.http, "POST", "/flush", &[], &[], Vec::new()));
            });
        }
        let deadline = Instant::now() + PATIENCE;
        while acknowledged.load(Ordering::Relaxed) < plan.after_acknowledged && Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_micros(200));
        }
        std::thread::sleep(plan.then);
        server.kill();
        killed.store(true, Ordering::Relaxed);
        let mut all = Sent::default();
        for sender in senders {
            all.absorb(sender.join().unwrap());
        }
        assert!(Instant::now() < deadline, "the load came to a halt before the kill");
        all
    })
}

fn send_one(client: &Client, source: &mut Source, sent: &mut Sent, acknowledged: &AtomicU64) {
    let batch = source.batch();
    let written = if source.sender == TABLE_SENDER { put_table(client, source, &batch) } else { send_request(client, source, &batch) };
    let into = match written {
        true => {
            acknowledged.fetch_add(1, Ordering::Relaxed);
            &mut sent.acknowledged
        }
        // Nothing is sent twice, so that nothing may be there twice.
        false => &mut sent.unknown,
    };
    for (trace, id) in batch {
        into.entry(trace).or_default().insert(id);
    }
}

fn start_of(source: &Source, id: u64) -> u64 {
    START + source.round * 1_000_000_000 + (id & 0xFFFF_FFFF) * 1000
}

/// Writes the batch over Arrow Flight; whether it was acknowledged.
fn put_table(client: &Client, source: &Source, batch: &[(TraceId, u64)]) -> bool {
    let text = |of: &dyn Fn(&(TraceId, u64)) -> String| -> ArrayRef { Arc::new(batch.iter().map(|span| Some(of(span))).collect::<StringArray>()) };
    let number = |of: &dyn Fn(u64) -> i64| -> ArrayRef { Arc::new(batch.iter().map(|(_, id)| Some(of(*id))).collect::<Int64Array>()) };
    let columns = [
        ("trace_id", text(&|(trace, _)| otlp::hex(trace))),
        ("span_id", text(&|(_, id)| otlp::hex(&id.to_be_bytes()))),
        ("name", text(&|_| "work".to_owned())),
        ("start_time", number(&|id| start_of(source, id) as i64)),
        ("duration_nanos", number(&|_| 5000)),
        ("resource.service.name", text(&|_| format!("sender-{}", source.sender))),
        ("span.sender", number(&|_| source.sender as i64)),
    ];
    let spans = RecordBatch::try_from_iter(columns).unwrap();
    let written = wait(skein_flight::sql::export::put(&client.addresses.grpc.to_string(), Some(TENANT), vec![spans]));
    written.is_ok_and(|(spans, _)| spans == batch.len() as u64)
}

/// Sends the batch over OTLP; whether it was acknowledged.
fn send_request(client: &Client, source: &Source, batch: &[(TraceId, u64)]) -> bool {
    let spans = batch.iter().map(|(trace, id)| {
        let mut span = otlp::span(*trace, *id, 0, "work", start_of(source, *id), 5000);
        span.attributes.push(otlp::attribute("sender", skein_proto::otlp::common::v1::any_value::Value::IntValue(source.sender as i64)));
        span
    });
    let request = otlp::request(&format!("sender-{}", source.sender), spans.collect());
    let transport = if source.sender == 1 { Transport::Grpc } else { Transport::HttpProtobuf };
    wait(client.send(transport, Compression::None, TENANT, &request)).is_ok()
}

/// Reads every trace: acknowledged spans once, others at most once, nothing else.
fn check(findings: &mut Findings, client: &Client, sent: &Sent) {
    let traces: BTreeSet<&TraceId> = sent.acknowledged.keys().chain(sent.unknown.keys()).collect();
    let fetches = traces.into_iter().map(|trace| async move { (*trace, client.trace(TENANT, *trace).await.unwrap_or_default()) });
    let none = BTreeSet::new();
    let (mut lost, mut doubled, mut foreign) = (Vec::new(), Vec::new(), Vec::new());
    for (trace, returned) in wait(futures::stream::iter(fetches).buffer_unordered(4).collect::<Vec<_>>()) {
        let mut times = BTreeMap::<u64, usize>::new();
        for span in returned.iter().flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans) {
            *times.entry(u64::from_be_bytes(span.span_id.as_slice().try_into().unwrap())).or_default() += 1;
        }
        let acknowledged = sent.acknowledged.get(&trace).unwrap_or(&none);
        let unknown = sent.unknown.get(&trace).unwrap_or(&none);
        lost.extend(acknowledged.iter().filter(|id| !times.contains_key(id)).map(|id| (otlp::hex(&trace), *id)));
        doubled.extend(times.iter().filter(|(_, times)| **times > 1).map(|(id, times)| (otlp::hex(&trace), *id, *times)));
        foreign.extend(times.keys().filter(|id| !acknowledged.contains(id) && !unknown.contains(id)).map(|id| (otlp::hex(&trace), *id)));
    }
    findings.holds("lost", lost.is_empty(), || format!("{} spans: {lost:?}", lost.len()));
    findings.holds("doubled", doubled.is_empty(), || format!("{} spans: {doubled:?}", doubled.len()));
    findings.holds("foreign", foreign.is_empty(), || format!("{} spans: {foreign:?}", foreign.len()));
}

/// A search counts each span once, too.
fn check_counts(findings: &mut Findings, client: &Client, sent: &Sent) {
    for sender in 1..=SENDERS {
        let q = format!("{{ resource.service.name = \"sender-{sender}\" }}");
        let answer = wait(client.search(TENANT, &q, WINDOW, 1)).json();
        let of_sender = |spans: &HashMap<TraceId, BTreeSet<u64>>| -> u64 {
            spans.iter().filter(|(trace, _)| u64::from(trace[3]) == sender).map(|(_, ids)| ids.len() as u64).sum()
        };
        let found: u64 = answer["traces"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|trace| trace["spanSets"].as_array().unwrap())
            .map(|set| set["matched"].as_u64().unwrap())
            .sum();
        let (least, most) = (of_sender(&sent.acknowledged), of_sender(&sent.acknowledged) + of_sender(&sent.unknown));
        findings.holds(&q, (least..=most).contains(&found), || format!("{found} spans found, {least} acknowledged, {most} sent"));
    }
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    CutBytes(u64),
    FlipLast,
    AppendGarbage,
}

#[test]
fn a_damaged_end_of_the_log_is_cut_and_reported() {
    for damage in [Damage::CutBytes(1), Damage::CutBytes(40), Damage::FlipLast, Damage::AppendGarbage] {
        let mut server = Server::start(nothing_is_cut());
        let ids: Vec<TraceId> = (1..=6_u128).map(|n| (n << 32).to_be_bytes()).collect();
        for id in &ids {
            send_trace(server.client(), *id).unwrap();
        }
        server.kill();
        damage_newest(&server.wal(), damage);
        server.restart();
        let found: Vec<bool> = ids.iter().map(|id| wait(server.client().trace(TENANT, *id)).is_some()).collect();
        // Only the record at the very end can have been hit.
        let expected_last = matches!(damage, Damage::AppendGarbage);
        assert_eq!(found, [true, true, true, true, true, expected_last], "{damage:?}");
        let reported = server.client().metrics_where(|name| {
            let of_the_log = name.contains("wal") || name.contains("replay");
            of_the_log && ["corrupt", "torn", "truncat", "damage", "error", "discard"].iter().any(|word| name.contains(word))
        });
        assert!(reported.is_some_and(|count| count >= 1.0), "{damage:?} is not reported in /metrics: {reported:?}");
        // The log is sound again: what is sent now outlives the next kill.
        let later: TraceId = (7_u128 << 32).to_be_bytes();
        send_trace(server.client(), later).unwrap();
        server.kill();
        server.restart();
        for id in ids[..5].iter().chain([&later]) {
            assert!(wait(server.client().trace(TENANT, *id)).is_some(), "{damage:?}: {} is lost after a second kill", otlp::hex(id));
        }
    }
}

fn send_trace(client: &Client, id: TraceId) -> Result<(), harness::Refused> {
    let spans = (1..=8).map(|n| otlp::span(id, n, n - 1, "step", START + n * 1000, 500)).collect();
    wait(client.send(Transport::HttpProtobuf, Compression::None, TENANT, &otlp::request("sender-9", spans)))
}

/// Damages the file of the log that was written last, where its content ends (it may be longer than what was written to it).
fn damage_newest(wal: &Path, damage: Damage) {
    let mut files = Vec::new();
    let mut folders = vec![wal.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                folders.push(entry.path());
            } else if metadata.len() > 0 {
                files.push((metadata.modified().unwrap(), entry.path()));
            }
        }
    }
    let path: PathBuf = files.into_iter().max().expect("a file in the log").1;
    let content = std::fs::read(&path).unwrap();
    let written = content.iter().rposition(|byte| *byte != 0).expect("a log that is not empty") as u64 + 1;
    // A few zeros may be the end of the last record; many are room that was reserved.
    let end = if content.len() as u64 - written < 64 { content.len() as u64 } else { written };
    let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    match damage {
        Damage::CutBytes(bytes) => file.set_len(end.saturating_sub(bytes)).unwrap(),
        Damage::FlipLast => {
            file.seek(SeekFrom::Start(end - 1)).unwrap();
            file.write_all(&[content[end as usize - 1] ^ 0x5A]).unwrap();
        }
        Damage::AppendGarbage => {
            file.seek(SeekFrom::Start(end)).unwrap();
            file.write_all(&(1..=100).collect::<Vec<u8>>()).unwrap();
        }
    }
    file.sync_all().unwrap();
}

/// A small file system in memory; gone when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf, bytes: u64) -> Result<Self, String> {
        std::fs::create_dir_all(&at).unwrap();
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(&at).output();
        match done {
            Ok(output) if output.status.success() => Ok(Self(at)),
            Ok(output) => Err(format!("a file system cannot be mounted: {}", String::from_utf8_lossy(&output.stderr).trim())),
            Err(error) => Err(format!("no mount command: {error}")),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_refuses_and_recovers() {
    const DISK: u64 = 8 << 20;
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let disk = match SmallDisk::mount(dir.path().join("small"), DISK) {
        Ok(disk) => disk,
        Err(reason) => {
            let _ = writeln!(std::io::stderr().lock(), "skipped: a_full_disk_refuses_and_recovers: {reason}");
            return;
        }
    };
    let mut settings = nothing_is_cut();
    harness::merge(&mut settings, json!({ "storage": { "trace": { "wal": { "path": disk.0.join("wal") } } } }));
    let mut server = Server::start_in(dir, settings);
    // Most of the disk is taken by somebody else.
    let filler = disk.0.join("filler");
    std::fs::write(&filler, vec![0xA5; (DISK - (2 << 20)) as usize]).unwrap();

    let mut acknowledged = Vec::new();
    let mut refused = None;
    for n in 1..=2000_u128 {
        let id = (n << 40).to_be_bytes();
        match send_bulk(server.client(), id) {
            Ok(()) => acknowledged.push(id),
            Err(problem) => {
                refused = Some(problem);
                break;
            }
        }
    }
    let refused = refused.expect("32 MB do not fit into 2 MB");
    assert!(refused.retryable, "the sender would give up: {refused:?}");
    assert!(!acknowledged.is_empty(), "nothing fitted: {refused:?}");
    // Still refused, still alive, and what was acknowledged is served.
    assert!(send_bulk(server.client(), [0xEE; 16]).is_err_and(|problem| problem.retryable));
    all_served(server.client(), &acknowledged, "while the disk is full");

    std::fs::remove_file(&filler).unwrap();
    let late: TraceId = [0xDD; 16];
    until("service to resume after room was made", PATIENCE, || send_bulk(server.client(), late).is_ok());
    acknowledged.push(late);
    all_served(server.client(), &acknowledged, "after room was made");
    server.kill();
    server.restart();
    all_served(server.client(), &acknowledged, "after a kill");
    drop(server);
    drop(disk);
}

/// 16 KB that do not compress.
fn send_bulk(client: &Client, id: TraceId) -> Result<(), harness::Refused> {
    let mut random = StdRng::seed_from_u64(u64::from_be_bytes(id[..8].try_into().unwrap()) ^ 1);
    let noise: Vec<u8> = (0..16 << 10).map(|_| random.random()).collect();
    let mut span = otlp::span(id, 1, 0, "bulk", START, 1000);
    span.attributes.push(otlp::attribute("noise", skein_proto::otlp::common::v1::any_value::Value::BytesValue(noise)));
    wait(client.send(Transport::HttpProtobuf, Compression::None, TENANT, &otlp::request("bulk", vec![span])))
}

fn all_served(client: &Client, ids: &[TraceId], when: &str) {
    for id in ids {
        let spans: usize = wait(client.trace(TENANT, *id))
            .unwrap_or_default()
            .iter()
            .flat_map(|resource| &resource.scope_spans)
            .map(|scope| scope.spans.len())
            .sum();
        assert_eq!(spans, 1, "{when}: trace {}", otlp::hex(id));
    }
}
