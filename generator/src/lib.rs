//! Metrics from spans: span metrics and the service graph.
//!
//! | module | owns |
//! |---|---|
//! | [`settings`] | the processors' settings, by Tempo's keys and defaults |
//! | [`span_metrics`] | names of the series and labels, and how a span gets its labels |
//! | [`service_graphs`] | names of the series, and the key under which two halves of a call meet |
//!
//! Knows nothing of receivers, blocks and the query API. The processors that run over record batches and the remote write queue
//! come with the metrics generator role.

pub mod service_graphs;
pub mod settings;
pub mod span_metrics;
