//! Black-box tests of the binary: it is started on a temporary folder and spoken to over its own protocols.
//!
//! | module | proves |
//! |---|---|
//! | `conformance` | the answers recorded from Grafana Tempo, in `golden/conformance` |
//! | `truth` | every figure of the truth files of `data/`, over each transport, live, flushed and restarted |
//! | `sql` | SQL over HTTP: forms, limits, tenants, statements that mean harm |
//! | `sql_truth` | figures of the truth files in SQL; `traceql()` finds what the search API finds |
//! | `stores` | the same over S3 and Azure servers that the tests start |
//! | `durability` | no acknowledged span is lost or doubled by SIGKILL, a torn log or a full disk |
//! | `receive` | good and bad OTLP input, and that what comes back is what was sent |
//! | `api` | the edges of the HTTP API |
//! | `bounds` | limits of tenants, clients that leave, a large trace |
//! | `streaming` | parts of answers over gRPC, also to a Python client made from the project's own `.proto` |
//! | `cli` | the command line |
//! | `bench` | a server and DuckDB answer the same over the same blocks |
//! | `cluster` | a coordinator and three workers answer as one process does |
//! | `flight` | pyarrow, ADBC, DuckDB and Polars read spans over Arrow Flight; hostile messages are refused |
//! | `tail` | matches as they arrive over Arrow Flight, across flushes, until either side leaves; slow clients |
//! | `formats` | that other tools open the blocks |
//! | `mcp` | an MCP client lists and calls everything; filtered and compared traces |
//! | `notebooks` | the Python package is typed and agrees with the recorded traces, as do the notebooks, run from top to bottom; one command opens them |
//! | `naive` | random searches and metrics queries over random traces, in process: the engine answers what a plain evaluator of the language does |
//!
//! What the tests stand on: `harness` (the process and its clients), `otlp` (requests, datasets, comparison), `otlp_json` (an encoder),
//! `sha256`, `stalling_store` (an object store that does not answer), `tools` (Python and Node programs).
//!
//! | environment variable | effect |
//! |---|---|
//! | `SKEIN_REQUIRE_STORES=1` | a test that needs Python or npm fails instead of being skipped when it cannot have them |
//! | `SKEIN_TEST_SEED` | seed of the kill test and of the property tests; each prints the one it took |
//! | `SKEIN_TEST_TRACE_SPANS` | spans of the large trace, 100,000 if unset |
//! | `SKEIN_RANDOM_QUERIES` | queries that `naive` asks, 2000 if not set |
//! | `SKEIN_RANDOM_METRICS` | metrics queries that `naive` asks, 1000 if not set |
//! | `SKEIN_RANDOM_TOLD` | wrong answers after which `naive` stops, 1 if not set |
//! | `SKEIN_TEST_KEEP=1` | the temporary folders stay |
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, unreachable_pub)]

mod api;
mod bench;
mod bounds;
mod cli;
mod cluster;
mod compare;
mod conformance;
mod durability;
mod flight;
mod formats;
mod harness;
mod mcp;
mod naive;
mod notebooks;
mod otlp;
mod otlp_json;
mod partial_cache;
mod receive;
mod sha256;
mod sql;
mod sql_truth;
mod stalling_store;
mod stores;
mod streaming;
mod tail;
mod tools;
mod truth;
