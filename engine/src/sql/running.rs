//! Statements on the threads for queries, with their rows handed to whoever asked.

use futures::{StreamExt, stream};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};

use super::{
    limits::SqlLimits,
    session::{SqlCost, SqlRows},
};
use crate::{
    clock::Stopwatch,
    error::{Error, Result},
    stop::{Stop, StopOnDrop},
};

/// Batches that are ready and not yet taken.
const BATCHES_AHEAD: usize = 1;

/// The time of a statement.
struct Time {
    limits: SqlLimits,
    watch: Stopwatch,
}

impl Time {
    /// Waits for `work` as long as there is time. Errors: `Exhausted`.
    async fn bound<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        if self.limits.duration.is_zero() {
            return Ok(work.await);
        }
        let left = self.limits.duration.saturating_sub(self.watch.elapsed());
        timeout(left, work).await.map_err(|_| self.limits.out_of_time())
    }
}

/// A statement under way in a task of its own; dropping it ends the task.
struct Running {
    batches: mpsc::Receiver<Result<arrow::record_batch::RecordBatch>>,
    task: JoinSet<()>,
    time: Time,
    _waiting: StopOnDrop,
}

/// Runs what gives `rows` on `threads`, and its rows too: at most [`BATCHES_AHEAD`] wait for the reader, then the work waits. Dropping the
/// rows ends it, and so does the end of its time. Errors: those of `rows`; `Exhausted`; `Internal` when it panicked.
pub(super) async fn run_on(threads: &Handle, limits: SqlLimits, rows: impl Future<Output = Result<SqlRows>> + Send + 'static) -> Result<SqlRows> {
    let time = Time { limits, watch: Stopwatch::start() };
    let stop = Stop::default();
    let waiting = stop.on_drop();
    let (head, heard) = oneshot::channel();
    let (batches, taken) = mpsc::channel(BATCHES_AHEAD);
    let mut task = JoinSet::new();
    task.spawn_on(stop.scope(hand_on(rows, head, batches)), threads);
    match time.bound(heard).await? {
        Ok(Ok((schema, cost))) => {
            let running = Running { batches: taken, task, time, _waiting: waiting };
            let batches = stream::unfold(Some(running), |running| async move { next(running?).await }).boxed();
            Ok(SqlRows { schema, batches, cost })
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(panicked(&mut task).await.unwrap_or_else(|| Error::internal("a statement vanished"))),
    }
}

type Head = (arrow::datatypes::SchemaRef, SqlCost);

async fn hand_on(
    rows: impl Future<Output = Result<SqlRows>>,
    head: oneshot::Sender<Result<Head>>,
    taker: mpsc::Sender<Result<arrow::record_batch::RecordBatch>>,
) {
    let SqlRows { schema, mut batches, cost } = match rows.await {
        Ok(rows) => rows,
        Err(error) => {
            // Nobody hears it when the client has left.
            let _ = head.send(Err(error));
            return;
        }
    };
    if head.send(Ok((schema, cost))).is_err() {
        return;
    }
    while let Some(batch) = batches.next().await {
        let is_last = batch.is_err();
        if taker.send(batch).await.is_err() || is_last {
            return;
        }
    }
}

async fn next(mut running: Running) -> Option<(Result<arrow::record_batch::RecordBatch>, Option<Running>)> {
    let received = match running.time.bound(running.batches.recv()).await {
        Ok(received) => received,
        Err(error) => return Some((Err(error), None)),
    };
    match received {
        Some(Ok(batch)) => Some((Ok(batch), Some(running))),
        Some(Err(error)) => Some((Err(error), None)),
        // The end, unless the task ended before its rows did.
        None => panicked(&mut running.task).await.map(|error| (Err(error), None)),
    }
}

async fn panicked(task: &mut JoinSet<()>) -> Option<Error> {
    let ended = task.join_next().await?;
    ended.err().map(|error| Error::internal("running a statement").with_source(error))
}
