//! Admission: how many queries run, how many wait, and who is turned away.
//! Invariant: at most `max_concurrent_queries` permits exist, and at most `max_outstanding_per_tenant` requests of a tenant wait for one.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use skein_engine::{
    clock::Stopwatch,
    error::{Error, Result},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{metrics::Metrics, settings::FrontendSettings};

/// The waiting room of all queries. Turns are given in order of arrival.
#[derive(Debug)]
pub(crate) struct Queue {
    running: Arc<Semaphore>,
    waiting_max: usize,
    waiting: Mutex<HashMap<String, usize>>,
    metrics: Arc<Metrics>,
}

impl Queue {
    pub(crate) fn new(settings: &FrontendSettings, metrics: Arc<Metrics>) -> Self {
        Self {
            running: Arc::new(Semaphore::new(settings.max_concurrent_queries)),
            waiting_max: settings.max_outstanding_per_tenant,
            waiting: Mutex::default(),
            metrics,
        }
    }

    /// Waits for a turn; the turn ends when the permit is dropped. Errors: `Exhausted` when too many requests of `tenant` wait.
    pub(crate) async fn admit(&self, tenant: &str) -> Result<OwnedSemaphorePermit> {
        if let Ok(permit) = self.running.clone().try_acquire_owned() {
            self.metrics.queue_seconds.observe(0.0);
            return Ok(permit);
        }
        let place = self.wait(tenant)?;
        let watch = Stopwatch::start();
        let permit = self.running.clone().acquire_owned().await.map_err(|_| Error::unavailable("shutting down"))?;
        self.metrics.queue_seconds.observe(watch.seconds());
        drop(place);
        Ok(permit)
    }

    fn wait<'a>(&'a self, tenant: &'a str) -> Result<Place<'a>> {
        let label = self.metrics.tenant_label(tenant);
        let mut waiting = self.waiting.lock();
        let count = waiting.get(tenant).copied().unwrap_or(0);
        if count >= self.waiting_max {
            self.metrics.discarded.with_label_values(&[label]).inc();
            return Err(Error::exhausted("job queue full"));
        }
        waiting.insert(tenant.to_owned(), count + 1);
        self.metrics.queue_length.with_label_values(&[label]).inc();
        Ok(Place { queue: self, tenant, label })
    }
}

/// A place in the queue, left when dropped: with a turn, or because the client has left.
struct Place<'a> {
    queue: &'a Queue,
    tenant: &'a str,
    label: &'a str,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.queue.waiting.lock();
        match waiting.get_mut(self.tenant) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                waiting.remove(self.tenant);
            }
        }
        self.queue.metrics.queue_length.with_label_values(&[self.label]).dec();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures::FutureExt;
    use skein_engine::error::ErrorKind;

    use super::*;

    fn queue(running: usize, waiting: usize) -> Queue {
        let settings = FrontendSettings { max_concurrent_queries: running, max_outstanding_per_tenant: waiting, ..Default::default() };
        Queue::new(&settings, Arc::new(Metrics::new(&prometheus::Registry::new()).unwrap()))
    }

    #[test]
    fn a_full_queue_turns_one_tenant_away_and_not_the_other() {
        let queue = queue(1, 1);
        let running = queue.admit("a").now_or_never().unwrap().unwrap();
        let mut second = Box::pin(queue.admit("a"));
        assert!(second.as_mut().now_or_never().is_none());
        let refused = queue.admit("a").now_or_never().unwrap().unwrap_err();
        assert_eq!((refused.kind(), refused.message()), (ErrorKind::Exhausted, "job queue full"));
        let mut other = Box::pin(queue.admit("b"));
        assert!(other.as_mut().now_or_never().is_none());

        drop(running);
        let second = second.now_or_never().unwrap().unwrap();
        drop(second);
        assert!(other.now_or_never().unwrap().is_ok());
        assert!(queue.waiting.lock().is_empty());
    }

    #[test]
    fn who_leaves_the_queue_frees_the_place() {
        let queue = queue(1, 1);
        let _running = queue.admit("a").now_or_never().unwrap().unwrap();
        let mut leaving = Box::pin(queue.admit("a"));
        assert!(leaving.as_mut().now_or_never().is_none());
        assert_eq!(queue.metrics.queue_length.with_label_values(&["a"]).get(), 1);
        drop(leaving);
        assert_eq!(queue.metrics.queue_length.with_label_values(&["a"]).get(), 0);
        assert!(queue.admit("a").now_or_never().is_none());
    }
}
