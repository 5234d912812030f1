//! The stages of the write path on recorded traces: check, decode, order, write. Throughput is spans a second on one core.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{hint::black_box, io::Read, path::Path};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use skein_engine::{
    block::writer::write_block,
    spans::{
        builder::SpanBuilder,
        gather::OrderedSpans,
        schema::{ColumnPolicy, SpanSchema},
        set::SpanSet,
        tree::order_spans,
    },
};
use skein_ingest::decode::{check, decode};

/// Spans taken of a recording: one row group.
const SPANS: u64 = 131_072;

fn requests(name: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data").join(format!("{name}.otlp.zst"));
    let mut bytes = Vec::new();
    zstd::Decoder::new(std::fs::File::open(path).unwrap()).unwrap().read_to_end(&mut bytes).unwrap();
    let (mut requests, mut rest, mut spans) = (Vec::new(), &bytes[..], 0);
    while rest.len() > 4 && spans < SPANS {
        let length = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
        requests.push(rest[4..4 + length].to_vec());
        spans += check(&rest[4..4 + length]).unwrap().spans;
        rest = &rest[4 + length..];
    }
    requests
}

fn decoded(requests: &[Vec<u8>]) -> SpanSet {
    let mut builder = SpanBuilder::default();
    requests.iter().for_each(|request| decode(request, &mut builder).unwrap());
    builder.snapshot()
}

fn ordered(set: SpanSet) -> OrderedSpans {
    let order = order_spans(&set);
    let schema = SpanSchema::of(&set, ColumnPolicy::BLOCK);
    OrderedSpans::new(set, order, schema)
}

fn stages(c: &mut Criterion) {
    for name in ["onlineboutique", "trainticket", "deathstar", "shellci"] {
        let requests = requests(name);
        let set = decoded(&requests);
        let mut group = c.benchmark_group(name);
        group.sample_size(10).throughput(Throughput::Elements(set.len() as u64));
        group.bench_function("check", |b| b.iter(|| requests.iter().map(|request| check(black_box(request)).unwrap().spans).sum::<u64>()));
        group.bench_function("decode", |b| b.iter(|| decoded(black_box(&requests))));
        group.bench_function("order", |b| b.iter(|| order_spans(black_box(&set))));
        group.bench_function("write", |b| {
            b.iter_batched(|| ordered(set.clone()), |spans| write_block(&spans).unwrap(), BatchSize::LargeInput);
        });
        group.finish();
    }
}

criterion_group!(benches, stages);
criterion_main!(benches);
