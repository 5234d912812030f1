//! Admission: how many queries run, how many wait, whose turn is next, and who is turned away.
//!
//! Tenants with waiting queries take turns; within a tenant the first to come is the first to run. So a tenant that asks a thousand questions
//! holds up another's one by one question for each query that ends.
//!
//! Invariant QU-1: at most `max_concurrent_queries` turns exist, at most `max_outstanding_per_tenant` queries of a tenant wait for one, and at
//! most [`WAITING_MAX`] in all.
//! Invariant QU-2: queries wait only while all turns are taken. A turn that ends is handed to the next who waits.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use parking_lot::Mutex;
use skein_engine::{
    clock::Stopwatch,
    error::{Error, Result},
};
use tokio::sync::oneshot;

use crate::{metrics::Metrics, settings::FrontendSettings};

/// Most queries of all tenants that wait: anybody may invent tenants.
const WAITING_MAX: usize = 100_000;

/// The waiting room of all queries.
#[derive(Debug)]
pub(crate) struct Queue {
    running_max: usize,
    waiting_max: usize,
    state: Mutex<State>,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct State {
    running: usize,
    /// Who waits, by tenant and then by arrival. No list is empty.
    waiting: HashMap<String, VecDeque<Waiting>>,
    /// The tenants of `waiting`, the next to have a turn first.
    turns: VecDeque<String>,
    waiting_count: usize,
    places_given: u64,
}

/// A query that waits: its number, and where it hears that it has a turn.
#[derive(Debug)]
struct Waiting {
    place: u64,
    granted: oneshot::Sender<()>,
}

impl State {
    /// The next to have a turn.
    fn next(&mut self) -> Option<Waiting> {
        let tenant = self.turns.pop_front()?;
        let own = self.waiting.get_mut(&tenant)?;
        let next = own.pop_front();
        self.waiting_count -= usize::from(next.is_some());
        if own.is_empty() {
            self.waiting.remove(&tenant);
        } else {
            self.turns.push_back(tenant);
        }
        next
    }

    fn wait(&mut self, tenant: &str) -> (u64, oneshot::Receiver<()>) {
        let (granted, hears) = oneshot::channel();
        self.places_given += 1;
        self.waiting_count += 1;
        let place = self.places_given;
        match self.waiting.get_mut(tenant) {
            Some(own) => own.push_back(Waiting { place, granted }),
            None => {
                self.turns.push_back(tenant.to_owned());
                self.waiting.insert(tenant.to_owned(), VecDeque::from([Waiting { place, granted }]));
            }
        }
        (place, hears)
    }

    /// Forgets a query that waits, if it still does.
    fn leave(&mut self, tenant: &str, place: u64) {
        let Some(own) = self.waiting.get_mut(tenant) else { return };
        let Ok(at) = own.binary_search_by_key(&place, |waiting| waiting.place) else { return };
        own.remove(at);
        self.waiting_count -= 1;
        if own.is_empty() {
            self.waiting.remove(tenant);
            self.turns.retain(|other| other != tenant);
        }
    }
}

impl Queue {
    pub(crate) fn new(settings: &FrontendSettings, metrics: Arc<Metrics>) -> Self {
        Self { running_max: settings.max_concurrent_queries, waiting_max: settings.max_outstanding_per_tenant, state: Mutex::default(), metrics }
    }

    /// Waits for a turn, which ends when it is dropped. Errors: `Exhausted` when too many queries of `tenant` wait.
    pub(crate) async fn admit(self: &Arc<Self>, tenant: &str) -> Result<Turn> {
        let Some(mut place) = self.enter(tenant)? else {
            self.metrics.queue_seconds.observe(0.0);
            return Ok(Turn::begin(self.clone()));
        };
        let watch = Stopwatch::start();
        let granted = (&mut place.hears).await;
        self.metrics.queue_seconds.observe(watch.seconds());
        place.has_turn = granted.is_ok();
        drop(place);
        // The sender is dropped unsent only together with the queue.
        granted.map(|()| Turn::begin(self.clone())).map_err(|_| Error::unavailable("shutting down"))
    }

    /// Takes a turn (None) or else a place to wait.
    fn enter<'a>(&'a self, tenant: &'a str) -> Result<Option<Place<'a>>> {
        let mut state = self.state.lock();
        if state.running < self.running_max {
            state.running += 1;
            return Ok(None);
        }
        let label = self.metrics.tenant_label(tenant);
        let own = state.waiting.get(tenant).map_or(0, VecDeque::len);
        if own >= self.waiting_max || state.waiting_count >= WAITING_MAX {
            self.metrics.discarded.with_label_values(&[label]).inc();
            return Err(Error::exhausted("job queue full"));
        }
        let (number, hears) = state.wait(tenant);
        self.metrics.queue_length.with_label_values(&[label]).inc();
        Ok(Some(Place { queue: self, tenant, label, number, hears, has_turn: false }))
    }

    /// Hands a turn on, or takes it back when nobody waits.
    fn end_turn(&self) {
        loop {
            let next = {
                let mut state = self.state.lock();
                let next = state.next();
                state.running -= usize::from(next.is_none());
                next
            };
            // Who has left in the meantime does not hear it; then the next is told.
            if next.is_none_or(|next| next.granted.send(()).is_ok()) {
                return;
            }
        }
    }
}

/// A query's right to run.
#[derive(Debug)]
pub(crate) struct Turn(Arc<Queue>);

impl Turn {
    fn begin(queue: Arc<Queue>) -> Self {
        queue.metrics.queries_running.inc();
        Self(queue)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.metrics.queries_running.dec();
        self.0.end_turn();
    }
}

/// A place in the queue, left when dropped: with a turn, or because the client has gone.
struct Place<'a> {
    queue: &'a Queue,
    tenant: &'a str,
    label: &'a str,
    number: u64,
    hears: oneshot::Receiver<()>,
    has_turn: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.queue.metrics.queue_length.with_label_values(&[self.label]).dec();
        if self.has_turn {
            return;
        }
        self.queue.state.lock().leave(self.tenant, self.number);
        // A turn that was given and not yet heard of goes to the next.
        self.hears.close();
        if self.hears.try_recv().is_ok() {
            self.queue.end_turn();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::pin::Pin;

    use futures::FutureExt;
    use skein_engine::error::ErrorKind;

    use super::*;

    fn queue(running: usize, waiting: usize) -> Arc<Queue> {
        let settings = FrontendSettings { max_concurrent_queries: running, max_outstanding_per_tenant: waiting, ..Default::default() };
        Arc::new(Queue::new(&settings, Arc::new(Metrics::new(&prometheus::Registry::new()).unwrap())))
    }

    type Asking<'a> = Pin<Box<dyn Future<Output = Result<Turn>> + 'a>>;

    /// A query that has found all turns taken.
    fn waiting<'a>(queue: &'a Arc<Queue>, tenant: &'a str) -> Asking<'a> {
        let mut asking: Asking<'a> = Box::pin(queue.admit(tenant));
        assert!(asking.as_mut().now_or_never().is_none());
        asking
    }

    fn assert_idle(queue: &Queue) {
        let state = queue.state.lock();
        assert_eq!((state.running, state.waiting_count, state.waiting.len(), state.turns.len()), (0, 0, 0, 0));
        assert_eq!(queue.metrics.queries_running.get(), 0);
    }

    #[test]
    fn a_full_queue_turns_one_tenant_away_and_not_the_other() {
        let queue = queue(1, 1);
        let running = queue.admit("a").now_or_never().unwrap().unwrap();
        let second = waiting(&queue, "a");
        let refused = queue.admit("a").now_or_never().unwrap().unwrap_err();
        assert_eq!((refused.kind(), refused.message()), (ErrorKind::Exhausted, "job queue full"));
        let other = waiting(&queue, "b");

        drop(running);
        drop(second.now_or_never().unwrap().unwrap());
        drop(other.now_or_never().unwrap().unwrap());
        assert_idle(&queue);
    }

    #[test]
    fn tenants_take_turns_and_the_first_of_a_tenant_comes_first() {
        let queue = queue(2, 10);
        let mut running: Vec<Turn> = (0..2).map(|_| queue.admit("loud").now_or_never().unwrap().unwrap()).collect();
        let asked = ["loud", "loud", "loud", "loud", "b", "c", "b"];
        let mut asking: Vec<Option<Asking<'_>>> = asked.iter().map(|tenant| Some(waiting(&queue, tenant))).collect();
        let mut order = Vec::new();
        while order.len() < asked.len() {
            drop(running.remove(0));
            for (at, slot) in asking.iter_mut().enumerate() {
                if let Some(turn) = slot.as_mut().and_then(|asking| asking.as_mut().now_or_never()) {
                    running.push(turn.unwrap());
                    order.push((asked[at], at));
                    *slot = None;
                }
            }
            assert_eq!((running.len(), queue.metrics.queries_running.get()), (2, 2), "no turn is lost or doubled");
        }
        assert_eq!(order, [("loud", 0), ("b", 4), ("c", 5), ("loud", 1), ("b", 6), ("loud", 2), ("loud", 3)]);
        running.clear();
        assert_idle(&queue);
    }

    #[test]
    fn who_leaves_the_queue_frees_the_place() {
        let queue = queue(1, 1);
        let running = queue.admit("a").now_or_never().unwrap().unwrap();
        let leaving = waiting(&queue, "a");
        assert_eq!(queue.metrics.queue_length.with_label_values(&["a"]).get(), 1);
        drop(leaving);
        assert_eq!(queue.metrics.queue_length.with_label_values(&["a"]).get(), 0);
        drop(waiting(&queue, "a"));
        drop(running);
        assert_idle(&queue);
    }

    #[test]
    fn a_turn_that_nobody_heard_of_goes_to_the_next() {
        let queue = queue(1, 5);
        let running = queue.admit("a").now_or_never().unwrap().unwrap();
        let (left, stays) = (waiting(&queue, "a"), waiting(&queue, "b"));
        drop(running);
        drop(left);
        drop(stays.now_or_never().unwrap().unwrap());
        assert_idle(&queue);
    }
}
