//! What coordinators and workers count, and tails of Arrow Flight.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry, core::Collector};
use skein_engine::error::{Error, Result};

/// Counters of a worker's answers about its live spans.
#[derive(Debug, Clone)]
pub struct WorkerMetrics {
    answers: IntCounterVec,
    errors: IntCounterVec,
    bytes: IntCounter,
}

impl WorkerMetrics {
    /// Registers the metrics. Errors: `Internal` when the registry has them already.
    pub fn new(registry: &Registry) -> Result<Self> {
        Self::register(registry).map_err(|e| Error::internal("registering the worker's metrics").with_source(e))
    }

    fn register(registry: &Registry) -> prometheus::Result<Self> {
        let by_action = |name: &str, help: &str| {
            let counter = IntCounterVec::new(Opts::new(name, help), &["action"])?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        let answers = by_action("skein_worker_live_answers_total", "Questions about live spans answered, errors included")?;
        let errors = by_action("skein_worker_live_errors_total", "Questions about live spans answered by an error")?;
        let bytes = IntCounter::new("skein_worker_live_bytes_total", "Bytes of answers about live spans")?;
        registry.register(Box::new(bytes.clone()))?;
        Ok(Self { answers, errors, bytes })
    }

    /// Counts an answer; `action` is one of a fixed list.
    pub(crate) fn answered(&self, action: &'static str, is_error: bool) {
        self.answers.with_label_values(&[action]).inc();
        if is_error {
            self.errors.with_label_values(&[action]).inc();
        }
    }

    /// Counts a message of an answer.
    pub(crate) fn sent(&self, bytes: usize) {
        self.bytes.inc_by(bytes as u64);
    }
}

/// Counters of a coordinator.
#[derive(Debug, Clone)]
pub struct CoordinatorMetrics {
    planned_again: IntCounter,
}

impl CoordinatorMetrics {
    /// Registers the metrics. Errors: `Internal` when the registry has them already.
    pub fn new(registry: &Registry) -> Result<Self> {
        Self::register(registry).map_err(|e| Error::internal("registering the coordinator's metrics").with_source(e))
    }

    fn register(registry: &Registry) -> prometheus::Result<Self> {
        let planned_again =
            IntCounter::new("skein_coordinator_replans_total", "Queries planned again because something listed was gone or away when it was read")?;
        registry.register(Box::new(planned_again.clone()))?;
        Ok(Self { planned_again })
    }

    pub(crate) fn planned_again(&self) {
        self.planned_again.inc();
    }
}

/// Counters of tails.
#[derive(Debug, Clone)]
pub struct TailMetrics {
    /// Tails that are open.
    pub(crate) open: IntGauge,
    /// Passes that looked at something.
    pub(crate) passes: IntCounter,
    /// Spans that passes looked at.
    pub(crate) spans: IntCounter,
    /// Rows that clients have taken.
    pub(crate) rows: IntCounter,
}

impl TailMetrics {
    /// Registers the metrics. Errors: `Internal` when the registry has them already.
    pub fn new(registry: &Registry) -> Result<Self> {
        Self::register(registry).map_err(|e| Error::internal("registering the metrics of tails").with_source(e))
    }

    fn register(registry: &Registry) -> prometheus::Result<Self> {
        fn add<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> prometheus::Result<C> {
            let collector = made?;
            registry.register(Box::new(collector.clone()))?;
            Ok(collector)
        }
        Ok(Self {
            open: add(registry, IntGauge::new("skein_frontend_tails_open", "Tails of Arrow Flight that are open"))?,
            passes: add(registry, IntCounter::new("skein_frontend_tail_passes_total", "Passes of tails over traces that got spans"))?,
            spans: add(registry, IntCounter::new("skein_frontend_tail_spans_total", "Spans that tails looked at"))?,
            rows: add(registry, IntCounter::new("skein_frontend_tail_rows_total", "Rows of tails that clients took"))?,
        })
    }
}
