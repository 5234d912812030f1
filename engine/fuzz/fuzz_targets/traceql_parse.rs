//! Any text: parsing never panics, and what parses prints as text that parses to the same print.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skein_engine::traceql;

fuzz_target!(|query: &str| {
    if let Ok(parsed) = traceql::parse(query) {
        let printed = parsed.to_string();
        let again = traceql::parse(&printed).expect("a printed query parses");
        assert_eq!(again.to_string(), printed);
    }
    let _ = traceql::tag_filter(query);
    let _ = traceql::parse_identifier(query);
});
