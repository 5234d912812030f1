//! The front of the write path: rate limit, back-pressure, counters, then the ingester.
//! Called by every receiver with an uncompressed request or a checked table; decodes no span.
//!
//! Differs from Tempo on purpose: attributes are never cut. Tempo's `max_attribute_bytes` shortens long values in silence; here what is acknowledged is kept as
//! it was sent.

use std::{sync::Arc, time::Duration};

use skein_engine::{clock::Stopwatch, tenant::TenantId};
use tokio::sync::Semaphore;

use crate::{
    error::{Error, ErrorKind, Result},
    limits::{IngestionLimits, LimitsSource, RateLimiter},
    metrics::Metrics,
    payload::Payload,
    sink::{PushSummary, TraceSink},
};

/// Time since any fixed origin; never goes back.
pub type MonotonicClock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// The process's own clock.
pub fn monotonic_clock() -> MonotonicClock {
    let origin = Stopwatch::start();
    Arc::new(move || origin.elapsed())
}

/// How the distributor behaves, for all tenants.
#[derive(Debug, Clone)]
pub struct DistributorSettings {
    /// Request bytes that may be between their receiver and their acknowledgement. One larger request is let in alone.
    pub inflight_bytes_max: usize,
    /// How long a request waits for room before it is refused.
    pub inflight_wait: Duration,
    /// `retry_after_on_resource_exhausted`: what `RetryInfo` says; zero sends none. Default 5 s, as Tempo 3.x: without it OTLP clients drop what was refused.
    pub retry_after_on_resource_exhausted: Duration,
}

impl Default for DistributorSettings {
    fn default() -> Self {
        Self { inflight_bytes_max: 256 << 20, inflight_wait: Duration::from_secs(2), retry_after_on_resource_exhausted: Duration::from_secs(5) }
    }
}

/// Which receiver a request came through: labels of `tempo_receiver_…`.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// Such as `otlp/otlp_receiver`.
    pub receiver: &'static str,
    /// Such as `grpc`.
    pub transport: &'static str,
}

/// Checks requests and hands them to the sink.
pub struct Distributor {
    sink: Arc<dyn TraceSink>,
    limits: Arc<dyn LimitsSource>,
    limiter: RateLimiter,
    metrics: Arc<Metrics>,
    settings: DistributorSettings,
    room: Arc<Semaphore>,
    clock: MonotonicClock,
}

impl Distributor {
    /// A distributor in front of `sink`.
    pub fn new(
        sink: Arc<dyn TraceSink>,
        limits: Arc<dyn LimitsSource>,
        metrics: Arc<Metrics>,
        settings: DistributorSettings,
        clock: MonotonicClock,
    ) -> Self {
        let room = Arc::new(Semaphore::new(settings.inflight_bytes_max.clamp(1, u32::MAX as usize)));
        Self { sink, limits, limiter: RateLimiter::default(), metrics, settings, room, clock }
    }

    /// Hands on `payload` of `spans` spans, and returns after it is durable and visible. One without spans is answered at once. Once the sink has it,
    /// dropping this does not stop it.
    /// Errors: `Exhausted` for the rate limit and back-pressure, and the sink's.
    pub async fn push(&self, source: Source, tenant: &TenantId, payload: Payload, spans: u64) -> Result<PushSummary> {
        let began = (self.clock)();
        let pushed = self.checked_push(tenant, payload, spans).await;
        self.metrics.push_duration_seconds.observe((self.clock)().saturating_sub(began).as_secs_f64());
        match &pushed {
            Ok(_) => self.metrics.accepted_spans(source.receiver, source.transport).inc_by(spans),
            Err(_) => self.metrics.refused_spans(source.receiver, source.transport).inc_by(spans),
        }
        pushed
    }

    /// Counts spans that a receiver refused before they got here, for `reason`.
    pub fn refuse(&self, source: Source, tenant: &TenantId, reason: &str, spans: u64) {
        self.metrics.discarded_spans(reason, tenant).inc_by(spans);
        self.metrics.refused_spans(source.receiver, source.transport).inc_by(spans);
    }

    /// What a client whose request ended in `error` should be told to wait. `None`: nothing.
    pub fn retry_after(&self, tenant: &TenantId, error: &Error) -> Option<Duration> {
        let after = self.settings.retry_after_on_resource_exhausted;
        (error.kind() == ErrorKind::Exhausted && !after.is_zero() && self.limits.ingestion(tenant).retry_info_enabled).then_some(after)
    }

    async fn checked_push(&self, tenant: &TenantId, payload: Payload, spans: u64) -> Result<PushSummary> {
        let bytes = payload.bytes() as u64;
        self.metrics.ingress_bytes(tenant).inc_by(bytes);
        if spans == 0 {
            return Ok(PushSummary::default());
        }
        let limits = self.limits.ingestion(tenant);
        if !self.limiter.allow(tenant, &limits, bytes, (self.clock)()) {
            self.metrics.discarded_spans("rate_limited", tenant).inc_by(spans);
            return Err(rate_limited(tenant, &limits, bytes));
        }
        self.metrics.spans_received(tenant).inc_by(spans);
        self.metrics.bytes_received(tenant).inc_by(bytes);

        let permits = payload.bytes().clamp(1, self.settings.inflight_bytes_max.clamp(1, u32::MAX as usize)) as u32;
        let room = tokio::time::timeout(self.settings.inflight_wait, self.room.clone().acquire_many_owned(permits)).await;
        let Ok(Ok(room)) = room else {
            self.metrics.discarded_spans("too_many_inflight_bytes", tenant).inc_by(spans);
            let limit = self.settings.inflight_bytes_max;
            return Err(Error::exhausted(format!("too many bytes in flight (limit {limit}) while adding {bytes} bytes for user {tenant}")));
        };

        // A task of its own: between the log and the live spans a request must not be dropped because its client left.
        let pushing = tokio::spawn({
            let (sink, tenant, metrics) = (self.sink.clone(), tenant.clone(), self.metrics.clone());
            async move {
                metrics.inflight_bytes.add(bytes as i64);
                let pushed = sink.push(&tenant, payload).await;
                metrics.inflight_bytes.sub(bytes as i64);
                drop(room);
                pushed
            }
        });
        let summary = pushing.await.map_err(|error| Error::internal("pushing a request").with_source(error))??;
        self.metrics.traces_per_batch.observe(summary.traces as f64);
        Ok(summary)
    }
}

/// Tempo's two texts (distributor, rate limit). The limits are this process's own; the global one is 0 while the strategy is local.
fn rate_limited(tenant: &TenantId, limits: &IngestionLimits, bytes: u64) -> Error {
    let IngestionLimits { rate_limit_bytes: rate, burst_size_bytes: burst, .. } = limits;
    Error::exhausted(if bytes > *rate && bytes > *burst {
        format!(
            "RATE_LIMITED: batch size ({bytes} bytes) exceeds ingestion limit (local: {rate} bytes/s, global: 0 bytes/s, burst: {burst} bytes) \
             while adding {bytes} bytes for user {tenant}. consider reducing batch size or increasing rate limit."
        )
    } else {
        format!(
            "RATE_LIMITED: ingestion rate limit (local: {rate} bytes/s, global: 0 bytes/s, burst: {burst} bytes) exceeded \
             while adding {bytes} bytes for user {tenant}. consider increasing the limit or reducing ingestion rate."
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    use async_trait::async_trait;
    use bytes::Bytes;
    use prometheus::Registry;

    use super::*;

    const SOURCE: Source = Source { receiver: "otlp/otlp_receiver", transport: "grpc" };

    /// Keeps requests once its gate is open.
    struct Gate {
        open: Semaphore,
        kept: AtomicU64,
    }

    #[async_trait]
    impl TraceSink for Gate {
        async fn push(&self, _tenant: &TenantId, _payload: Payload) -> Result<PushSummary> {
            drop(self.open.acquire().await.unwrap());
            self.kept.fetch_add(1, SeqCst);
            Ok(PushSummary { spans: 1, traces: 1 })
        }
    }

    struct Fixture {
        distributor: Arc<Distributor>,
        sink: Arc<Gate>,
        metrics: Arc<Metrics>,
        millis: Arc<AtomicU64>,
    }

    fn fixture(limits: IngestionLimits, inflight_bytes_max: usize) -> Fixture {
        let sink = Arc::new(Gate { open: Semaphore::new(0), kept: AtomicU64::new(0) });
        let metrics = Arc::new(Metrics::new(&Registry::new()).unwrap());
        let millis = Arc::<AtomicU64>::default();
        let settings = DistributorSettings { inflight_bytes_max, inflight_wait: Duration::from_millis(20), ..DistributorSettings::default() };
        let clock: MonotonicClock = {
            let millis = millis.clone();
            Arc::new(move || Duration::from_millis(millis.load(SeqCst)))
        };
        let distributor = Arc::new(Distributor::new(sink.clone(), Arc::new(limits), metrics.clone(), settings, clock));
        Fixture { distributor, sink, metrics, millis }
    }

    impl Fixture {
        async fn push(&self, bytes: usize, spans: u64) -> Result<PushSummary> {
            self.distributor.push(SOURCE, &TenantId::single(), Payload::Otlp(Bytes::from(vec![0; bytes])), spans).await
        }
    }

    #[tokio::test]
    async fn accepted_request_is_counted_everywhere() {
        let fixture = fixture(IngestionLimits::default(), 100);
        fixture.sink.open.add_permits(1);
        assert_eq!(fixture.push(10, 3).await.unwrap(), PushSummary { spans: 1, traces: 1 });
        let (metrics, tenant) = (&fixture.metrics, TenantId::single());
        assert_eq!(metrics.ingress_bytes(&tenant).get(), 10);
        assert_eq!(metrics.bytes_received(&tenant).get(), 10);
        assert_eq!(metrics.spans_received(&tenant).get(), 3);
        assert_eq!(metrics.accepted_spans(SOURCE.receiver, SOURCE.transport).get(), 3);
        assert_eq!(metrics.refused_spans(SOURCE.receiver, SOURCE.transport).get(), 0);
        assert_eq!(metrics.push_duration_seconds.get_sample_count(), 1);
        assert_eq!(metrics.traces_per_batch.get_sample_count(), 1);
        assert_eq!(metrics.inflight_bytes.get(), 0);
    }

    #[tokio::test]
    async fn request_without_spans_does_not_reach_the_sink() {
        let fixture = fixture(IngestionLimits { rate_limit_bytes: 0, burst_size_bytes: 0, retry_info_enabled: true }, 100);
        assert_eq!(fixture.push(10, 0).await.unwrap(), PushSummary::default());
        assert_eq!(fixture.sink.kept.load(SeqCst), 0);
        assert_eq!(fixture.metrics.ingress_bytes(&TenantId::single()).get(), 10);
    }

    #[tokio::test]
    async fn rate_limit_refuses_and_recovers_with_tempo_s_words() {
        let fixture = fixture(IngestionLimits { rate_limit_bytes: 10, burst_size_bytes: 20, retry_info_enabled: true }, 100);
        fixture.sink.open.add_permits(2);
        fixture.push(20, 1).await.unwrap();
        let error = fixture.push(5, 7).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exhausted);
        assert_eq!(
            error.message(),
            "RATE_LIMITED: ingestion rate limit (local: 10 bytes/s, global: 0 bytes/s, burst: 20 bytes) exceeded while adding 5 bytes for user \
             single-tenant. consider increasing the limit or reducing ingestion rate."
        );
        assert_eq!(fixture.metrics.discarded_spans("rate_limited", &TenantId::single()).get(), 7);
        assert_eq!(fixture.metrics.spans_received(&TenantId::single()).get(), 1, "counted after the limit");
        assert_eq!(
            fixture.push(21, 1).await.unwrap_err().message(),
            "RATE_LIMITED: batch size (21 bytes) exceeds ingestion limit (local: 10 bytes/s, global: 0 bytes/s, burst: 20 bytes) while adding 21 bytes \
             for user single-tenant. consider reducing batch size or increasing rate limit."
        );
        fixture.millis.store(500, SeqCst);
        fixture.push(5, 1).await.unwrap();
    }

    #[tokio::test]
    async fn bytes_in_flight_are_bounded() {
        let fixture = fixture(IngestionLimits::default(), 100);
        let first = tokio::spawn({
            let distributor = fixture.distributor.clone();
            async move { distributor.push(SOURCE, &TenantId::single(), Payload::Otlp(Bytes::from(vec![0; 1000])), 1).await }
        });
        while fixture.metrics.inflight_bytes.get() == 0 {
            tokio::task::yield_now().await;
        }
        let error = fixture.push(1, 2).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exhausted);
        assert!(error.message().contains("limit 100"), "{error}");
        assert_eq!(fixture.metrics.refused_spans(SOURCE.receiver, SOURCE.transport).get(), 2);
        fixture.sink.open.add_permits(1);
        first.await.unwrap().unwrap();
        fixture.push(1, 1).await.unwrap();
    }

    #[tokio::test]
    async fn request_goes_on_when_its_client_leaves() {
        let fixture = fixture(IngestionLimits::default(), 100);
        let client = tokio::spawn({
            let distributor = fixture.distributor.clone();
            async move { distributor.push(SOURCE, &TenantId::single(), Payload::Otlp(Bytes::from(vec![0; 10])), 1).await }
        });
        while fixture.metrics.inflight_bytes.get() == 0 {
            tokio::task::yield_now().await;
        }
        client.abort();
        assert!(client.await.unwrap_err().is_cancelled());
        fixture.sink.open.add_permits(1);
        while fixture.metrics.inflight_bytes.get() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(fixture.sink.kept.load(SeqCst), 1);
    }

    #[test]
    fn retry_is_promised_only_where_it_is_switched_on() {
        let retry_after = |enabled, error: Error| {
            let limits = IngestionLimits { retry_info_enabled: enabled, ..IngestionLimits::default() };
            fixture(limits, 1).distributor.retry_after(&TenantId::single(), &error)
        };
        assert_eq!(retry_after(true, Error::exhausted("")), Some(Duration::from_secs(5)));
        assert_eq!(retry_after(false, Error::exhausted("")), None);
        assert_eq!(retry_after(true, Error::unavailable("")), None);
    }
}
