//! Stopping work that nobody waits for any more.
//!
//! A future that is dropped stops where it awaits. Code that computes for long between two awaits cannot be dropped there; it asks [`check`],
//! some thousand rows apart, whether it is still wanted. Who starts the work makes a [`Stop`], runs the work in its [`scope`](Stop::scope), and
//! keeps the [`StopOnDrop`] of it; tasks that the work starts inherit it ([`inherited`]). Work outside of any scope is never stopped.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use datafusion::{execution::SendableRecordBatchStream, physical_plan::stream::RecordBatchStreamAdapter};
use futures::{StreamExt, stream};

use crate::error::{Error, ErrorKind, Result};

/// Rows of a loop between two checks: some tens of microseconds to a millisecond.
pub const ROWS_BETWEEN_CHECKS: usize = 4096;

tokio::task_local! {
    static CURRENT: Stop;
}

/// Whether a piece of work is to stop. Clones are about the same work.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// The stop of the scope that this code runs in.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Self::clone).ok()
    }

    /// Runs `work` so that [`check`] in it asks this.
    pub fn scope<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, work)
    }

    /// The same for work that does not wait.
    pub fn sync_scope<T>(self, work: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self, work)
    }

    /// Stops the work when it is dropped.
    pub fn on_drop(&self) -> StopOnDrop {
        StopOnDrop(self.clone())
    }
}

/// Kept by who waits for the work.
#[derive(Debug)]
#[must_use = "dropping this stops the work"]
pub struct StopOnDrop(Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Relaxed);
    }
}

/// Whether nobody waits any more for what runs here. Cost: a few nanoseconds.
pub fn is_stopped() -> bool {
    CURRENT.try_with(|stop| stop.0.load(Relaxed)).unwrap_or(false)
}

/// Goes on only while somebody waits. Errors: `Cancelled` when not.
pub fn check() -> Result<()> {
    if is_stopped() { Err(Error::new(ErrorKind::Cancelled, "nobody waits for the answer")) } else { Ok(()) }
}

/// `stream` in the scope that this is called in, for one that another task will poll.
pub fn inherited(stream: SendableRecordBatchStream) -> SendableRecordBatchStream {
    let Some(stop) = Stop::current() else { return stream };
    let (schema, mut inner) = (stream.schema(), stream);
    let polled = stream::poll_fn(move |context| stop.clone().sync_scope(|| inner.poll_next_unpin(context)));
    Box::pin(RecordBatchStreamAdapter::new(schema, polled))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use arrow::{datatypes::Schema, record_batch::RecordBatch};
    use futures::FutureExt;

    use super::*;

    #[test]
    fn work_stops_when_who_waits_has_gone() {
        assert!(check().is_ok() && Stop::current().is_none());
        let stop = Stop::default();
        let waits = stop.on_drop();
        let mut steps = 0;
        let work = stop.clone().scope(async {
            while check().is_ok() {
                steps += 1;
                futures::pending!();
            }
        });
        let mut work = Box::pin(work);
        assert!(work.as_mut().now_or_never().is_none());
        assert!(work.as_mut().now_or_never().is_none());
        drop(waits);
        assert!(work.as_mut().now_or_never().is_some());
        drop(work);
        assert_eq!(steps, 2);
        assert!(!is_stopped(), "other work goes on");
        assert_eq!(stop.sync_scope(|| check().unwrap_err().kind()), ErrorKind::Cancelled);
    }

    #[test]
    fn a_stream_carries_its_stop_to_another_task() {
        let stop = Stop::default();
        let waits = stop.on_drop();
        let schema = Arc::new(Schema::empty());
        let batches = stream::repeat_with({
            let schema = schema.clone();
            move || check().map(|()| RecordBatch::new_empty(schema.clone())).map_err(Into::into)
        });
        let mut stream = stop.sync_scope(|| inherited(Box::pin(RecordBatchStreamAdapter::new(schema, batches))));
        assert!(stream.next().now_or_never().unwrap().unwrap().is_ok());
        drop(waits);
        assert!(stream.next().now_or_never().unwrap().unwrap().is_err());
    }
}
