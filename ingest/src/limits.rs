//! What a tenant may send: the limits' values, where they come from, and the token bucket that enforces the byte rate.
//! Knows no request and no clock: the bucket is told the time.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use skein_engine::tenant::TenantId;

/// Tempo 3.x defaults of `ingestion.rate_limit_bytes` and `ingestion.burst_size_bytes`.
const RATE_LIMIT_BYTES_DEFAULT: u64 = 30_000_000;

/// Buckets kept before full ones are forgotten: a full bucket says nothing that a new one does not.
const BUCKETS_MAX: usize = 4096;

/// A tenant's limits on ingestion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IngestionLimits {
    /// Sustained rate, bytes of uncompressed protobuf per second. Zero allows nothing once the burst is spent.
    pub rate_limit_bytes: u64,
    /// Bytes that may come at once. A request larger than this is always refused.
    pub burst_size_bytes: u64,
    /// Whether refusals may carry `RetryInfo` (it must be switched on for the process too).
    pub retry_info_enabled: bool,
}

impl Default for IngestionLimits {
    fn default() -> Self {
        Self { rate_limit_bytes: RATE_LIMIT_BYTES_DEFAULT, burst_size_bytes: RATE_LIMIT_BYTES_DEFAULT, retry_info_enabled: true }
    }
}

/// Knows every tenant's limits. Asked at the time of use, so an implementation may reload.
pub trait LimitsSource: Send + Sync + 'static {
    /// The limits of `tenant` now.
    fn ingestion(&self, tenant: &TenantId) -> IngestionLimits;
}

/// The same limits for everyone.
impl LimitsSource for IngestionLimits {
    fn ingestion(&self, _tenant: &TenantId) -> IngestionLimits {
        *self
    }
}

/// Token buckets, one a tenant. Times are monotonic, since any fixed origin.
#[derive(Debug, Default)]
pub struct RateLimiter {
    buckets: Mutex<HashMap<TenantId, Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Duration,
}

impl Bucket {
    fn refill(&mut self, limits: &IngestionLimits, now: Duration) {
        let elapsed = now.saturating_sub(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * limits.rate_limit_bytes as f64).min(limits.burst_size_bytes as f64);
        self.at = self.at.max(now);
    }
}

impl RateLimiter {
    /// Takes `bytes` from the tenant's bucket at time `now`, or takes nothing and returns false. A new bucket is full.
    pub fn allow(&self, tenant: &TenantId, limits: &IngestionLimits, bytes: u64, now: Duration) -> bool {
        let mut buckets = self.buckets.lock();
        if buckets.len() >= BUCKETS_MAX && !buckets.contains_key(tenant) {
            // Judged by this tenant's limits; one wrongly forgotten starts with a full burst.
            buckets.retain(|_, bucket| {
                bucket.refill(limits, now);
                bucket.tokens < limits.burst_size_bytes as f64
            });
            if buckets.len() >= BUCKETS_MAX {
                buckets.clear();
            }
        }
        let bucket = buckets.entry(tenant.clone()).or_insert_with(|| Bucket { tokens: limits.burst_size_bytes as f64, at: now });
        bucket.refill(limits, now);
        let allowed = bytes as f64 <= bucket.tokens;
        if allowed {
            bucket.tokens -= bytes as f64;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LIMITS: IngestionLimits = IngestionLimits { rate_limit_bytes: 100, burst_size_bytes: 200, retry_info_enabled: true };

    /// Sends `(at milliseconds, bytes)` as one tenant and lists what was allowed.
    fn allowed(limits: IngestionLimits, requests: &[(u64, u64)]) -> Vec<bool> {
        let limiter = RateLimiter::default();
        requests.iter().map(|&(at, bytes)| limiter.allow(&TenantId::single(), &limits, bytes, Duration::from_millis(at))).collect()
    }

    #[test]
    fn burst_is_spent_and_refilled_at_the_rate() {
        assert_eq!(allowed(LIMITS, &[(0, 200), (0, 1), (500, 50), (500, 1), (1500, 101), (1500, 100)]), [true, false, true, false, false, true]);
    }

    #[test]
    fn request_above_the_burst_is_never_allowed() {
        assert_eq!(allowed(LIMITS, &[(0, 201), (1_000_000, 201), (1_000_000, 200)]), [false, false, true]);
    }

    #[test]
    fn zero_rate_ends_with_the_burst() {
        let limits = IngestionLimits { rate_limit_bytes: 0, ..LIMITS };
        assert_eq!(allowed(limits, &[(0, 200), (1_000_000, 1)]), [true, false]);
    }

    #[test]
    fn clock_that_steps_back_grants_nothing() {
        assert_eq!(allowed(LIMITS, &[(10_000, 200), (0, 1), (10_000, 1)]), [true, false, false]);
    }

    #[test]
    fn tenants_do_not_share_a_bucket() {
        let limiter = RateLimiter::default();
        let [a, b] = ["a", "b"].map(|id| TenantId::parse(id).unwrap());
        assert!(limiter.allow(&a, &LIMITS, 200, Duration::ZERO));
        assert!(!limiter.allow(&a, &LIMITS, 1, Duration::ZERO));
        assert!(limiter.allow(&b, &LIMITS, 200, Duration::ZERO));
    }

    #[test]
    fn buckets_stay_bounded() {
        let limiter = RateLimiter::default();
        for n in 0..BUCKETS_MAX + 10 {
            limiter.allow(&TenantId::parse(&format!("t{n}")).unwrap(), &LIMITS, 1, Duration::ZERO);
        }
        assert!(limiter.buckets.lock().len() <= BUCKETS_MAX);
    }
}
