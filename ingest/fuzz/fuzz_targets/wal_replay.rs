//! Any byte string as a log segment: no panic, no allocation beyond the file, and the report adds up. `cargo fuzz run wal_replay` in `ingest/`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut records = 0;
    let report = skein_ingest::wal::scan(bytes, bytes.len() as u64, |_, payload| {
        assert!(payload.len() < bytes.len());
        records += 1;
        Ok(())
    });
    let report = report.expect("the visitor never fails");
    assert_eq!(report.records, records);
    assert_eq!(report.good_bytes + report.lost_bytes, bytes.len() as u64);
});
