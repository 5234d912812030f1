//! Statements on the threads for queries, with their rows handed to whoever asked.

use futures::{StreamExt, stream};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use super::session::{SqlCost, SqlRows};
use crate::{
    error::{Error, Result},
    stop::{Stop, StopOnDrop},
};

/// Batches that are ready and not yet taken.
const BATCHES_AHEAD: usize = 1;

/// A statement under way in a task of its own; dropping it ends the task.
struct Running {
    batches: mpsc::Receiver<Result<arrow::record_batch::RecordBatch>>,
    task: JoinSet<()>,
    _waiting: StopOnDrop,
}

/// Runs what gives `rows` on `threads`, and its rows too: at most [`BATCHES_AHEAD`] wait for the reader, then the work waits. Dropping the
/// rows ends it. Errors: those of `rows`; `Internal` when it panicked.
pub(super) async fn run_on(threads: &Handle, rows: impl Future<Output = Result<SqlRows>> + Send + 'static) -> Result<SqlRows> {
    let stop = Stop::default();
    let waiting = stop.on_drop();
    let (head, heard) = oneshot::channel();
    let (batches, taken) = mpsc::channel(BATCHES_AHEAD);
    let mut task = JoinSet::new();
    task.spawn_on(stop.scope(hand_on(rows, head, batches)), threads);
    match heard.await {
        Ok(Ok((schema, cost))) => {
            let running = Running { batches: taken, task, _waiting: waiting };
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
    match running.batches.recv().await {
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
