//! What is kept between two calls of a client, under a name that the client brings back.
//!
//! Invariant KE-1: at most `bounds.all` values are kept, at most `bounds.of_tenant` of one tenant, none longer than `bounds.seconds` after it
//! was last used. At a bound the one that was not used for longest makes room: of the same tenant where that is at its bound.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use skein_engine::{
    error::{Error, ErrorKind, Result},
    tenant::TenantId,
};

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// How much is kept, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// What the values are, for errors.
    pub(crate) what: &'static str,
    /// Most values.
    pub(crate) all: usize,
    /// Most values of one tenant.
    pub(crate) of_tenant: usize,
    /// How long a value is kept after its last use.
    pub(crate) seconds: u64,
}

/// Values by handle.
pub(crate) struct Kept<T> {
    bounds: Bounds,
    state: Mutex<State<T>>,
}

struct State<T> {
    values: HashMap<u64, Entry<T>>,
    /// Tells the handles of this process from those of another.
    process: u64,
    given: u64,
}

struct Entry<T> {
    tenant: TenantId,
    used_unix_nano: u64,
    value: Arc<T>,
}

impl<T> Kept<T> {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, state: Mutex::new(State { values: HashMap::new(), process: 0, given: 0 }) }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps `value` and gives its handle.
    pub(crate) fn keep(&self, tenant: &TenantId, value: T, now: u64) -> Vec<u8> {
        let mut state = self.state();
        self.forget_old(&mut state, now);
        let own = state.values.values().filter(|entry| entry.tenant == *tenant).count();
        if own >= self.bounds.of_tenant {
            state.forget_oldest(|entry| entry.tenant == *tenant);
        } else if state.values.len() >= self.bounds.all {
            state.forget_oldest(|_| true);
        }
        if state.process == 0 {
            state.process = now.max(1);
        }
        state.given += 1;
        let number = state.given;
        state.values.insert(number, Entry { tenant: tenant.clone(), used_unix_nano: now, value: Arc::new(value) });
        [state.process.to_be_bytes(), number.to_be_bytes()].concat()
    }

    /// The value of `handle`. Errors: `NotFound` when there is none, which is also the case for one of another tenant.
    pub(crate) fn get(&self, tenant: &TenantId, handle: &[u8], now: u64) -> Result<Arc<T>> {
        let mut state = self.state();
        self.forget_old(&mut state, now);
        let number = state.number_of(handle);
        let entry = number.and_then(|number| state.values.get_mut(&number)).filter(|entry| entry.tenant == *tenant);
        let entry = entry.ok_or_else(|| self.unknown())?;
        entry.used_unix_nano = now;
        Ok(entry.value.clone())
    }

    /// Forgets the value of `handle` and gives it. Errors: as [`Kept::get`].
    pub(crate) fn take(&self, tenant: &TenantId, handle: &[u8], now: u64) -> Result<Arc<T>> {
        let value = self.get(tenant, handle, now)?;
        let mut state = self.state();
        if let Some(number) = state.number_of(handle) {
            state.values.remove(&number);
        }
        Ok(value)
    }

    /// When a value that is used now will be forgotten, in Unix nanoseconds.
    pub(crate) fn until(&self, now: u64) -> u64 {
        now.saturating_add(self.bounds.seconds * NANOS_PER_SECOND)
    }

    fn forget_old(&self, state: &mut State<T>, now: u64) {
        state.values.retain(|_, entry| self.until(entry.used_unix_nano) > now);
    }

    fn unknown(&self) -> Error {
        let Bounds { what, seconds, of_tenant, .. } = self.bounds;
        Error::new(
            ErrorKind::NotFound,
            format!(
                "there is no such {what}: it was closed, not used for {seconds} seconds, or gave way to newer ones (at most {of_tenant} are kept)"
            ),
        )
    }
}

impl<T> State<T> {
    fn number_of(&self, handle: &[u8]) -> Option<u64> {
        let (process, number) = handle.split_at_checked(8)?;
        let number = u64::from_be_bytes(number.try_into().ok()?);
        (process == self.process.to_be_bytes()).then_some(number)
    }

    fn forget_oldest(&mut self, among: impl Fn(&Entry<T>) -> bool) {
        let oldest = self.values.iter().filter(|(_, entry)| among(entry)).min_by_key(|(_, entry)| entry.used_unix_nano);
        if let Some(number) = oldest.map(|(number, _)| *number) {
            self.values.remove(&number);
        }
    }
}

impl<T> fmt::Debug for Kept<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("bounds", &self.bounds).field("values", &self.state().values.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SECOND: u64 = NANOS_PER_SECOND;

    fn kept() -> Kept<u32> {
        Kept::new(Bounds { what: "thing", all: 3, of_tenant: 2, seconds: 10 })
    }

    fn tenant(name: &str) -> TenantId {
        TenantId::parse(name).unwrap()
    }

    #[test]
    fn a_value_is_kept_until_it_is_taken_or_old() {
        let (kept, a) = (kept(), tenant("a"));
        let handle = kept.keep(&a, 7, SECOND);
        assert_eq!(*kept.get(&a, &handle, 10 * SECOND).unwrap(), 7);
        assert_eq!(*kept.get(&a, &handle, 19 * SECOND).unwrap(), 7, "counted from the last use");
        assert!(kept.get(&a, &handle, 29 * SECOND).is_err());
        let handle = kept.keep(&a, 8, 30 * SECOND);
        assert_eq!(*kept.take(&a, &handle, 30 * SECOND).unwrap(), 8);
        assert_eq!(kept.take(&a, &handle, 30 * SECOND).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_handle_is_its_tenants_and_its_process_own() {
        let (kept, other, a) = (kept(), self::kept(), tenant("a"));
        let handle = kept.keep(&a, 7, SECOND);
        other.keep(&a, 9, 2 * SECOND);
        assert!(kept.get(&tenant("b"), &handle, SECOND).is_err());
        assert!(other.get(&a, &handle, 2 * SECOND).is_err());
        for bad in [&[][..], &handle[..15], &[0; 16], &[0xff; 40]] {
            assert!(kept.get(&a, bad, SECOND).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_least_recently_used_makes_room() {
        let (kept, a, b) = (kept(), tenant("a"), tenant("b"));
        let first = kept.keep(&a, 1, SECOND);
        let second = kept.keep(&a, 2, 2 * SECOND);
        kept.get(&a, &first, 3 * SECOND).unwrap();
        let third = kept.keep(&a, 3, 4 * SECOND);
        assert!(kept.get(&a, &second, 4 * SECOND).is_err(), "a has two at most");
        kept.keep(&b, 4, 4 * SECOND);
        kept.keep(&b, 5, 5 * SECOND);
        assert!(kept.get(&a, &first, 5 * SECOND).is_err(), "three at most in all");
        assert!(kept.get(&a, &third, 5 * SECOND).is_ok());
    }
}
