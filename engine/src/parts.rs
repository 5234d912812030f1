//! Answers that come in parts, for clients that show what is found while a query still runs.
//!
//! A plan is the same with and without parts: [`Pace`] goes with its run, in the task context, and tells the nodes how often they may hand on
//! what is certain before they have read everything. Without a pace nobody is told how far they are.
//!
//! **Invariant PA-1: a part says only what the whole answer says too, and says it once.** Clients cannot take back what they have shown: Grafana
//! keeps the first it hears of a trace for good. The one exception is a limit on series, names or values: it may cut from the whole answer
//! what a part has shown.

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use arrow::record_batch::RecordBatch;
use datafusion::execution::TaskContext;
use futures::{FutureExt, Stream, future::BoxFuture, stream::Peekable};

use crate::{
    clock::Stopwatch,
    error::{Error, Result},
};

/// How often parts of an answer may be told, counted from when the query began.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    began: Stopwatch,
    first_after: Duration,
    interval: Duration,
}

impl Pace {
    /// From now on: nothing before `first_after`, then parts at growing distances, up to one an `interval`.
    pub fn start(first_after: Duration, interval: Duration) -> Self {
        Self { began: Stopwatch::start(), first_after, interval }
    }

    /// When the first part is due, and how long after it the next.
    pub fn durations(&self) -> (Duration, Duration) {
        (self.first_after, self.interval)
    }

    /// A beat of its own for one who tells parts.
    pub fn beat(&self) -> Beat {
        Beat { pace: *self, due: self.first_after, empty_due: self.first_after }
    }

    /// The beat of a node that runs in `context`; None when its run has no pace.
    pub(crate) fn of(context: &TaskContext) -> Option<Beat> {
        context.session_config().get_extension::<Self>().map(|pace| pace.beat())
    }

    /// `context` with this pace for the nodes that run in it.
    pub fn within(self, context: &TaskContext) -> Arc<TaskContext> {
        let config = context.session_config().clone().with_extension(Arc::new(self));
        Arc::new(TaskContext::default().with_session_config(config).with_runtime(context.runtime_env()))
    }
}

/// When the next part is due. An empty one, which says only how far the query is, never delays one with something in it.
#[derive(Debug)]
pub struct Beat {
    pace: Pace,
    due: Duration,
    empty_due: Duration,
}

impl Beat {
    /// Whether a part is due. If so, the next one is due half as long after it as the query has run, or an interval. Cost: reading a clock.
    pub fn is_due(&mut self) -> bool {
        self.is_due_if(true)
    }

    /// The same for a part that is perhaps empty.
    pub fn is_due_if(&mut self, has_something: bool) -> bool {
        let elapsed = self.pace.began.elapsed();
        let is_due = elapsed >= if has_something { self.due } else { self.empty_due };
        if is_due {
            let distance = self.pace.first_after.max(elapsed / 2).min(self.pace.interval);
            self.empty_due = elapsed.saturating_add(distance);
            if has_something {
                self.due = self.empty_due;
            }
        }
        is_due
    }
}

/// What became certain since the last part.
#[derive(Debug, Clone, Default)]
pub struct Part<T> {
    /// What was found, in the form of the whole answer. Its statistics are of everything read so far.
    pub found: T,
    /// Row groups that the whole query looks at or leaves out. On a cluster, where not all are known, an estimate.
    pub row_groups: u64,
}

/// Who is told the parts of an answer. Clones tell the same listener.
pub struct Parts<T> {
    pace: Pace,
    tell: Arc<dyn Fn(Part<T>) -> BoxFuture<'static, ()> + Send + Sync>,
}

impl<T> Parts<T> {
    /// Parts at `pace` for `tell`. Its future ends when there is room for another part: until then the query waits.
    pub fn new(pace: Pace, tell: impl Fn(Part<T>) -> BoxFuture<'static, ()> + Send + Sync + 'static) -> Self {
        Self { pace, tell: Arc::new(tell) }
    }

    /// The pace.
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// Tells a part.
    pub fn tell(&self, part: Part<T>) -> BoxFuture<'static, ()> {
        (self.tell)(part)
    }
}

impl<T> Clone for Parts<T> {
    fn clone(&self) -> Self {
        Self { pace: self.pace, tell: self.tell.clone() }
    }
}

impl<T> fmt::Debug for Parts<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("pace", &self.pace).finish_non_exhaustive()
    }
}

/// Whether nothing comes after the batch that was taken last: then it is told with the whole answer.
pub fn is_last<S: Stream>(batches: Pin<&mut Peekable<S>>) -> bool {
    matches!(batches.peek().now_or_never(), Some(None))
}

const REACHED: &str = "reached";

/// How far a node is with a part: of traces, the latest start that may still come; of series, the first interval that is complete. None for what
/// is no part.
pub fn reached(batch: &RecordBatch) -> Option<u64> {
    mark(batch, REACHED)
}

/// `batch` as a part, with how far the node is. Errors: `Internal`.
pub(crate) fn reaching(batch: RecordBatch, reached: u64) -> Result<RecordBatch> {
    marked(batch, REACHED, reached)
}

/// `batch` with a number that the node above it reads, in the metadata of its schema; for nodes of one process. Errors: `Internal`.
pub(crate) fn marked(batch: RecordBatch, name: &str, number: u64) -> Result<RecordBatch> {
    let mut schema = batch.schema_ref().as_ref().clone();
    schema.metadata.insert(name.to_owned(), number.to_string());
    batch.with_schema(Arc::new(schema)).map_err(|e| Error::internal("marking a batch").with_source(e))
}

/// The number of that name that goes with `batch`.
pub(crate) fn mark(batch: &RecordBatch, name: &str) -> Option<u64> {
    batch.schema_ref().metadata().get(name)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use arrow::datatypes::Schema;

    use super::*;

    #[test]
    fn a_beat_keeps_the_pace() {
        let mut never = Pace::start(Duration::MAX, Duration::ZERO).beat();
        assert!(!never.is_due());
        let mut once = Pace { began: Stopwatch::start(), first_after: Duration::from_secs(3600), interval: Duration::from_secs(3600) }.beat();
        (once.due, once.empty_due) = (Duration::ZERO, Duration::ZERO);
        assert!(once.is_due_if(false) && !once.is_due_if(false), "an empty one");
        assert!(once.is_due() && !once.is_due());
        let mut always = Pace::start(Duration::ZERO, Duration::ZERO).beat();
        assert!(always.is_due() && always.is_due());
    }

    #[test]
    fn a_pace_goes_with_the_context() {
        let context = TaskContext::default();
        assert!(Pace::of(&context).is_none());
        assert!(Pace::of(&Pace::start(Duration::ZERO, Duration::ZERO).within(&context)).is_some());
    }

    #[test]
    fn a_mark_goes_with_its_batch() {
        let batch = RecordBatch::new_empty(Arc::new(Schema::empty()));
        assert_eq!(mark(&batch, "a"), None);
        let batch = marked(marked(batch, "a", 1).unwrap(), "b", 2).unwrap();
        assert_eq!((mark(&batch, "a"), mark(&batch, "b")), (Some(1), Some(2)));
    }
}
