//! Tails over Arrow Flight: matches as they arrive, in pyarrow.

use crate::harness::{Server, nothing_is_cut};
use crate::tools::{or_skip, python, run_python};

/// What clients that do not read may add to the process: the spans themselves, what one of them has in one pass, and a few messages of the others.
/// All that they would have been sent is twice that.
const GROWTH_MAX: u64 = 384 << 20;

fn run(server: &Server, part: &str) -> Option<String> {
    let python = or_skip(part, python())?;
    let addresses = server.client().addresses;
    let [grpc, http, otlp] = [addresses.grpc, addresses.http, addresses.otlp_http].map(|address| address.to_string());
    Some(run_python(&python, include_str!("tail.py"), &[&grpc, &http, &otlp, part]).trim().to_owned())
}

#[test]
fn matches_are_told_as_they_arrive_until_either_side_leaves() {
    let server = Server::start(nothing_is_cut());
    let Some(told) = run(&server, "follow") else { return };
    assert_eq!(told, "all right");
}

#[test]
fn slow_clients_hold_their_tails_back_and_miss_nothing() {
    let server = Server::start(nothing_is_cut());
    let before = server.peak_bytes().unwrap();
    let Some(told) = run(&server, "slow") else { return };
    assert_eq!(told, "all right");
    let grown = server.peak_bytes().unwrap() - before;
    assert!(grown < GROWTH_MAX, "the process grew by {grown} bytes");
}
