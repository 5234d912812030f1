//! Any bytes are refused or decoded; what the check accepts, decoding accepts, span by span.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skein_engine::{exec::source::MemorySource, spans::builder::SpanBuilder};
use skein_ingest::decode::{check, decode};

fuzz_target!(|request: &[u8]| {
    let mut builder = SpanBuilder::default();
    let decoded = decode(request, &mut builder);
    if let Ok(summary) = check(request) {
        assert_eq!(decoded, Ok(()));
        assert_eq!(builder.len() as u64, summary.spans);
        MemorySource::new(builder.snapshot());
    }
});
