//! The write-ahead log: requests of a typical size, from several senders at once, under each sync mode.
//! `cargo bench -p skein-ingest --bench wal`. The figures of `always` are the disk's; those of `never` are ours.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use prometheus::Registry;
use skein_engine::tenant::TenantId;
use skein_ingest::{
    metrics::WalMetrics,
    wal::{SyncMode, Wal, WalSettings, scan},
};

/// About 100 spans.
const PAYLOAD_BYTES: usize = 32 << 10;
const APPENDS: usize = 64;

fn append(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut group = criterion.benchmark_group("wal_append");
    group.throughput(Throughput::Bytes((APPENDS * PAYLOAD_BYTES) as u64)).sample_size(20);
    for sync in [SyncMode::Never, SyncMode::Batch, SyncMode::Always] {
        for senders in [1, 16] {
            let dir = tempfile::tempdir().unwrap();
            let settings = WalSettings { sync, ..WalSettings::new(dir.path()) };
            let wal = Arc::new(Wal::open(settings, WalMetrics::new(&Registry::new()).unwrap()).unwrap().0);
            group.bench_function(BenchmarkId::new(format!("{sync:?}"), senders), |bencher| {
                bencher.iter(|| {
                    let wal = wal.clone();
                    runtime.block_on(async move {
                        let senders: Vec<_> = (0..senders)
                            .map(|_| {
                                let wal = wal.clone();
                                tokio::spawn(async move {
                                    let payload = Bytes::from_static(&[7; PAYLOAD_BYTES]);
                                    for _ in 0..APPENDS / senders {
                                        wal.append(&TenantId::single(), vec![payload.clone()]).await.unwrap();
                                    }
                                })
                            })
                            .collect();
                        for sender in senders {
                            sender.await.unwrap();
                        }
                        let closed = wal.rotate().unwrap();
                        wal.remove(closed).unwrap();
                    });
                });
            });
        }
    }
}

fn replay(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let settings = WalSettings { sync: SyncMode::Never, ..WalSettings::new(dir.path()) };
    let wal = Wal::open(settings, WalMetrics::new(&Registry::new()).unwrap()).unwrap().0;
    let segment = runtime.block_on(async {
        let mut segment = None;
        for _ in 0..APPENDS {
            segment = Some(wal.append(&TenantId::single(), vec![Bytes::from_static(&[7; PAYLOAD_BYTES])]).await.unwrap());
        }
        segment.unwrap()
    });
    let bytes = std::fs::read(dir.path().join(format!("{:020}.wal", segment.get()))).unwrap();
    let mut group = criterion.benchmark_group("wal_replay");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("memory", |bencher| bencher.iter(|| scan(&bytes[..], bytes.len() as u64, |_, _| Ok(())).unwrap()));
}

criterion_group!(benches, append, replay);
criterion_main!(benches);
