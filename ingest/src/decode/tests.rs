#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use object_store::memory::InMemory;
use prost::Message;
use skein_engine::{
    block::{put::put_block, reader::BlockReader, writer::write_block},
    clock::Stopwatch,
    exec::{
        memory::Reservation,
        source::{MemorySource, SourceRef},
        split::append_traces,
        stats::ScanMetrics,
    },
    spans::{
        BlockId,
        builder::SpanBuilder,
        gather::OrderedSpans,
        otlp::TraceAssembler,
        schema::{ColumnPolicy, SpanSchema},
        set::SpanSet,
        tree::order_spans,
    },
    tenant::TenantId,
};
use skein_proto::otlp::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span},
};

use super::*;
use crate::{payload::Payload, wal::scan};

/// A small generator of repeatable numbers (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    fn list<T>(&mut self, most: u64, mut item: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| item(self)).collect()
    }

    fn text(&mut self) -> String {
        match self.below(8) {
            0 => String::new(),
            1 => "x".repeat(self.below(3000) as usize),
            2 => format!("v{}", self.next()),
            3 => "é€𝄞\u{0}\n\"".into(),
            _ => format!("value-{}", self.below(5)),
        }
    }

    fn number(&mut self) -> u64 {
        match self.below(6) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << 63,
            3 => self.next(),
            _ => self.below(1000),
        }
    }

    fn value(&mut self, depth: u32) -> Option<AnyValue> {
        let value = match self.below(if depth > 3 { 7 } else { 10 }) {
            0 | 1 => Some(Value::StringValue(self.text())),
            2 => Some(Value::BoolValue(self.one_in(2))),
            3 => Some(Value::IntValue(self.number() as i64)),
            4 => Some(Value::DoubleValue(f64::from_bits(self.number()))),
            5 => Some(Value::BytesValue(self.list(9, |r| r.next() as u8))),
            6 => None,
            7 => Some(Value::ArrayValue(ArrayValue { values: self.list(3, |r| AnyValue { value: r.value(depth + 1).and_then(|v| v.value) }) })),
            8 => Some(Value::KvlistValue(KeyValueList { values: self.list(3, |r| r.pair(depth + 1)) })),
            _ => return None,
        };
        Some(AnyValue { value })
    }

    fn pair(&mut self, depth: u32) -> KeyValue {
        let key = if self.one_in(20) { self.text() } else { format!("key.{}", self.below(12)) };
        KeyValue { key, value: self.value(depth), ..Default::default() }
    }

    fn pairs(&mut self, most: u64) -> Vec<KeyValue> {
        self.list(most, |r| r.pair(0))
    }

    fn span(&mut self) -> Span {
        let start = self.number();
        Span {
            trace_id: u128::from(self.below(4)).to_be_bytes().to_vec(),
            span_id: self.below(9).to_be_bytes().to_vec(),
            trace_state: self.text(),
            parent_span_id: if self.one_in(3) { Vec::new() } else { self.below(9).to_be_bytes().to_vec() },
            flags: self.number() as u32,
            name: self.text(),
            kind: self.below(9) as i32 - 2,
            start_time_unix_nano: start,
            end_time_unix_nano: if self.one_in(2) { start.wrapping_add(self.below(100)) } else { self.number() },
            attributes: self.pairs(8),
            dropped_attributes_count: self.number() as u32,
            events: self.list(3, |r| span::Event {
                time_unix_nano: r.number(),
                name: r.text(),
                attributes: r.pairs(4),
                dropped_attributes_count: r.number() as u32,
            }),
            dropped_events_count: self.number() as u32,
            links: self.list(2, |r| span::Link {
                trace_id: r.list(16, |r| r.next() as u8),
                span_id: if r.one_in(2) { vec![7; 8] } else { r.list(9, |r| r.next() as u8) },
                trace_state: r.text(),
                attributes: r.pairs(3),
                dropped_attributes_count: r.number() as u32,
                flags: r.number() as u32,
            }),
            dropped_links_count: self.number() as u32,
            status: if self.one_in(3) { None } else { Some(Status { message: self.text(), code: self.below(5) as i32 - 1 }) },
        }
    }

    fn request(&mut self) -> ExportTraceServiceRequest {
        let scope_spans = |r: &mut Self| ScopeSpans {
            scope: (!r.one_in(3)).then(|| InstrumentationScope {
                name: r.text(),
                version: r.text(),
                attributes: r.pairs(3),
                dropped_attributes_count: r.number() as u32,
            }),
            spans: r.list(6, Self::span),
            schema_url: r.text(),
        };
        let resource_spans = |r: &mut Self| ResourceSpans {
            resource: (!r.one_in(3)).then(|| Resource { attributes: r.pairs(4), dropped_attributes_count: r.number() as u32, ..Default::default() }),
            scope_spans: r.list(3, scope_spans),
            schema_url: r.text(),
        };
        ExportTraceServiceRequest { resource_spans: self.list(3, resource_spans) }
    }
}

/// Every span with its surroundings, as text, counted; attributes in no order. A span sent twice with the same content is one.
fn spans_of(resource_spans: &[ResourceSpans]) -> BTreeMap<String, usize> {
    let sorted = |pairs: &[KeyValue]| {
        let mut pairs: Vec<String> = pairs.iter().map(|pair| format!("{:?}", pair.encode_to_vec())).collect();
        pairs.sort();
        pairs
    };
    let mut spans = BTreeMap::new();
    for rs in resource_spans {
        for ss in &rs.scope_spans {
            for span in &ss.spans {
                let attributes = sorted(&span.attributes);
                let events: Vec<_> =
                    span.events.iter().map(|e| (e.time_unix_nano, &e.name, sorted(&e.attributes), e.dropped_attributes_count)).collect();
                let bare = Span { attributes: Vec::new(), events: Vec::new(), ..span.clone() };
                let shared = (&rs.resource, &rs.schema_url, &ss.scope, &ss.schema_url);
                spans.insert(format!("{bare:?} {attributes:?} {events:?} {shared:?}"), 1);
            }
        }
    }
    spans
}

fn source(set: SpanSet) -> SourceRef {
    Arc::new(MemorySource::new(set))
}

async fn block(set: SpanSet) -> SourceRef {
    let order = order_spans(&set);
    let policy = ColumnPolicy { rows_per_mille_min: 200, columns_max: 5 };
    let schema = SpanSchema::of(&set, policy);
    let objects = write_block(&OrderedSpans::new(set, order, schema)).unwrap();
    let store = Arc::new(InMemory::new());
    let meta = put_block(&*store, &TenantId::single(), BlockId::random(), objects).await.unwrap();
    Arc::new(BlockReader::open(store, Arc::new(meta)).await.unwrap())
}

async fn read_all(source: &SourceRef) -> Vec<ResourceSpans> {
    let mut assembler = TraceAssembler::default();
    let (columns, events) = (source.schema().columns(), source.schema().event_columns());
    for group in 0..source.row_groups().len() {
        let batch = source.read(group, &columns, &events, None, &ScanMetrics::default()).await.unwrap();
        assembler.add(&batch, 0..batch.num_rows(), source.schema(), source.resources(), source.scopes()).unwrap();
    }
    assembler.finish()
}

/// Segments of a process that was killed after it had acknowledged 600 spans in one table, as that version of the log wrote them: span number `i`
/// of a hundred traces has `common` (`i % 5`) and `route`, every thirtieth `rare` and `flag`, six have `ratio`.
#[tokio::test]
async fn tables_in_logs_of_every_version_are_read() {
    let mut all = Vec::new();
    for (version, sample) in [(3, &include_bytes!("../wal/samples/v3.wal.zst")[..]), (4, include_bytes!("../wal/samples/v4.wal.zst"))] {
        let bytes = zstd::decode_all(sample).unwrap();
        assert_eq!(bytes[8], version);
        let mut builder = SpanBuilder::default();
        let report = scan(&bytes[..], bytes.len() as u64, |_, payload| Payload::of_record(payload)?.append_to(&mut builder));
        assert!(report.unwrap().damage.is_none() && builder.len() == 600, "version {version}");
        all.push(read_all(&source(builder.snapshot())).await);
    }
    assert_eq!(spans_of(&all[0]), spans_of(&all[1]));
    let spans: Vec<&Span> = all[0].iter().flat_map(|rs| &rs.scope_spans).flat_map(|ss| &ss.spans).collect();
    for span in spans {
        let number = u64::from_be_bytes(span.span_id[..].try_into().unwrap()) - 1;
        let pair = |key: &str, value| KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() };
        let mut expected =
            vec![pair("common", Value::IntValue(number as i64 % 5)), pair("route", Value::StringValue(format!("/route/{}", number % 200)))];
        if number % 30 == 7 {
            expected.push(pair("rare", Value::StringValue(format!("rare-{}", number % 4))));
            expected.push(pair("flag", Value::BoolValue(number % 60 == 7)));
        }
        if number % 100 == 1 {
            expected.push(pair("ratio", Value::DoubleValue(number as f64 / 8.0)));
        }
        let sorted = |mut pairs: Vec<KeyValue>| {
            pairs.sort_by(|a, b| a.key.cmp(&b.key));
            pairs
        };
        assert_eq!(sorted(span.attributes.clone()), sorted(expected), "span {number}");
    }
}

#[tokio::test]
async fn what_was_sent_comes_back_from_memory_and_blocks_and_merged_blocks() {
    let mut random = Random(0x5eed);
    for case in 0..400 {
        let requests: Vec<ExportTraceServiceRequest> = (0..1 + random.below(3)).map(|_| random.request()).collect();
        let sent: Vec<ResourceSpans> = requests.iter().flat_map(|request| request.resource_spans.clone()).collect();
        let mut builder = SpanBuilder::default();
        let mut merged = SpanBuilder::default();
        for request in &requests {
            let bytes = request.encode_to_vec();
            let summary = check(&bytes).unwrap();
            assert_eq!(summary.spans as usize, request.resource_spans.iter().flat_map(|rs| &rs.scope_spans).map(|ss| ss.spans.len()).sum::<usize>());
            decode(&bytes, &mut builder).unwrap();
            let mut alone = SpanBuilder::default();
            decode(&bytes, &mut alone).unwrap();
            if !alone.is_empty() {
                let alone = block(alone.snapshot()).await;
                append_traces(alone.traces().ids().iter().copied(), &alone, &mut merged, &ScanMetrics::default(), &Reservation::default())
                    .await
                    .unwrap();
            }
            if random.one_in(2) {
                drop(builder.snapshot());
            }
        }
        if builder.is_empty() {
            continue;
        }
        let expected = spans_of(&sent);
        let check = |place: &str, got: Vec<ResourceSpans>| assert_eq!(spans_of(&got), expected, "case {case}, {place}");
        check("memory", read_all(&source(builder.snapshot())).await);
        check("block", read_all(&block(builder.snapshot()).await).await);
        check("merged blocks", read_all(&source(merged.snapshot())).await);
        check("block of merged blocks", read_all(&block(merged.snapshot()).await).await);
    }
}

#[tokio::test]
async fn copies_are_dropped_and_other_content_is_kept() {
    let span = |name: &str| Span { trace_id: vec![1; 16], span_id: vec![2; 8], name: name.into(), ..Default::default() };
    let request = |spans| ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans { scope_spans: vec![ScopeSpans { spans, ..Default::default() }], ..Default::default() }],
    };
    let mut builder = SpanBuilder::default();
    decode(&request(vec![span("a"), span("b"), span("a")]).encode_to_vec(), &mut builder).unwrap();
    decode(&request(vec![span("a")]).encode_to_vec(), &mut builder).unwrap();
    let source = source(builder.snapshot());
    assert_eq!(source.row_groups()[0].rows, 2);
}

#[test]
fn ids_of_other_lengths_are_refused_with_their_length() {
    let span = |trace_id: usize, span_id: usize, parent: usize| {
        let span = Span { trace_id: vec![1; trace_id], span_id: vec![1; span_id], parent_span_id: vec![1; parent], ..Default::default() };
        let scope_spans = vec![ScopeSpans { spans: vec![span], ..Default::default() }];
        ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { scope_spans, ..Default::default() }] }.encode_to_vec()
    };
    assert_eq!(check(&span(16, 8, 0)).unwrap().spans, 1);
    assert_eq!(check(&span(15, 8, 0)), Err(DecodeError::TraceId { bits: 120 }));
    assert_eq!(check(&span(0, 8, 0)), Err(DecodeError::TraceId { bits: 0 }));
    assert_eq!(check(&span(16, 9, 0)), Err(DecodeError::SpanId { bits: 72 }));
    assert_eq!(check(&span(16, 8, 7)), Err(DecodeError::SpanId { bits: 56 }));
}

/// Damaged requests are refused or harmless, and what the check accepts, decoding accepts. `SKEIN_FUZZ_SECONDS` makes it run that long.
#[test]
fn damaged_requests_never_panic_and_check_and_decode_agree() {
    let started = Stopwatch::start();
    let at_least = std::env::var("SKEIN_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).map_or(Duration::ZERO, Duration::from_secs);
    let mut random = Random(0xf022);
    let mut bytes = Vec::new();
    let mut round = 0;
    while round < 20_000 || started.elapsed() < at_least {
        round += 1;
        if round % 50 == 1 {
            bytes = random.request().encode_to_vec();
        }
        let mut damaged = bytes.clone();
        for _ in 0..1 + random.below(4) {
            if damaged.is_empty() {
                break;
            }
            let at = random.below(damaged.len() as u64) as usize;
            match random.below(4) {
                0 => damaged[at] = random.next() as u8,
                1 => damaged.truncate(at),
                2 => drop(damaged.remove(at)),
                _ => damaged.insert(at, random.next() as u8),
            }
        }
        let mut builder = SpanBuilder::default();
        let decoded = decode(&damaged, &mut builder);
        if let Ok(summary) = check(&damaged) {
            assert_eq!(decoded, Ok(()), "round {round}");
            assert_eq!(builder.len() as u64, summary.spans, "round {round}");
            let set = builder.snapshot();
            if !set.is_empty() {
                MemorySource::new(set);
            }
        }
    }
}
