//! Black-box tests of the binary: it is started on a temporary folder and spoken to over its own protocols.
//!
//! | module | proves |
//! |---|---|
//! | `conformance` | the answers recorded from Grafana Tempo, in `golden/conformance` |
//! | `truth` | every figure of the truth files of `data/`, over each transport, live, flushed and restarted |
//! | `stores` | the same over S3 and Azure servers that the tests start |
//! | `durability` | no acknowledged span is lost or doubled by SIGKILL, a torn log or a full disk |
//! | `receive` | good and bad OTLP input, and that what comes back is what was sent |
//! | `api` | the edges of the HTTP API |
//! | `cli` | the command line |
//! | `cluster` | a coordinator and three workers answer as one process does |
//! | `formats` | that other tools open the blocks |
//!
//! What the tests stand on: `harness` (the process and its clients), `otlp` (requests, datasets, comparison), `otlp_json` (an encoder),
//! `sha256`, `tools` (Python and Node programs).
//!
//! | environment variable | effect |
//! |---|---|
//! | `SKEIN_REQUIRE_STORES=1` | a test that needs Python or npm fails instead of being skipped when it cannot have them |
//! | `SKEIN_TEST_SEED` | seed of the kill test and of the property test; each prints the one it took |
//! | `SKEIN_TEST_KEEP=1` | the temporary folders stay |
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, unreachable_pub)]

mod api;
mod cli;
mod cluster;
mod conformance;
mod durability;
mod formats;
mod harness;
mod otlp;
mod otlp_json;
mod receive;
mod sha256;
mod stores;
mod tools;
mod truth;
