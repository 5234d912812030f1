//! `DoExchange`: the matches of a TraceQL search as they arrive, until the client leaves.
//!
//! The descriptor is `{"tail": "{ … }", "columns": […], "lookback": "5m"}`; what the client sends after it has no data. A pass begins when the client has
//! taken what the one before it found, and a while after that: who takes messages slowly holds its tail back, and nothing waits for it but a
//! batch. Dropping the stream ends the pass under way.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arrow_flight::{FlightData, FlightDescriptor};
use datafusion::arrow::{
    ipc::{MessageHeader, root_as_message},
    record_batch::RecordBatch,
};
use futures::{StreamExt, stream};
use serde::Deserialize;
use serde_json::Value;
use skein_engine::{
    clock::parse_duration,
    error::{Error, ErrorKind, Result},
    query::Window,
    sql::{Tail, TailRequest},
    tenant::TenantId,
};
use tokio::{
    sync::watch,
    time::{Interval, MissedTickBehavior, interval},
};
use tonic::Streaming;

use super::{
    FlightBackend, Messages,
    encode::Encoding,
    service::{Caller, FlightSql, unreadable},
};
use crate::metrics::TailMetrics;

/// Time from the end of a pass to the next one, unless that is behind already.
const PAUSE: Duration = Duration::from_millis(500);

/// Most tails that are open, of one tenant and in all: each holds what it has told.
const TAILS_OF_TENANT: usize = 16;
const TAILS_MAX: usize = 256;

const FORM: &str =
    "a tail is asked for with {\"tail\": \"{ status = error }\", \"columns\": [\"name\", …], \"lookback\": \"5m\"}, the last two if wanted";

/// What the descriptor says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TailAsk {
    tail: String,
    columns: Option<Vec<String>>,
    lookback: Option<Value>,
}

/// The tail that `descriptor` asks for, at the time `now` in Unix nanoseconds. Errors: `Invalid`.
fn request_of(descriptor: &FlightDescriptor, now: u64) -> Result<TailRequest> {
    let ask: TailAsk = serde_json::from_slice(&descriptor.cmd).map_err(|error| Error::invalid(format!("{error}; {FORM}")))?;
    let window = ask.lookback.as_ref().map(|lookback| window(lookback, now)).transpose()?;
    Ok(TailRequest { query: ask.tail, columns: ask.columns, window })
}

/// The whole seconds from `lookback` before `now`.
fn window(lookback: &Value, now: u64) -> Result<Window> {
    let back = match lookback {
        Value::Number(seconds) => seconds.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        Value::String(text) => parse_duration(text),
        _ => None,
    };
    let back =
        back.ok_or_else(|| Error::invalid(format!("lookback is a number of seconds or a duration in quotes such as \"5m\", not {lookback}")))?;
    let now = Duration::from_nanos(now);
    let seconds = |time: u64| u32::try_from(time).unwrap_or(u32::MAX);
    Ok(Window { start_seconds: seconds(now.saturating_sub(back).as_secs()), end_seconds: seconds(now.as_secs() + 1) })
}

/// Errors: `Invalid` when there is more in `message` than a descriptor or a schema, which some clients send with it.
fn check_without_data(message: &FlightData) -> Result<()> {
    let is_schema = root_as_message(&message.data_header).is_ok_and(|header| header.header_type() == MessageHeader::Schema);
    if message.data_body.is_empty() && (message.data_header.is_empty() || is_schema) {
        return Ok(());
    }
    Err(Error::invalid("a tail takes no data: send the descriptor, then read; spans are written with DoPut"))
}

/// The tails that are open in this process.
#[derive(Debug)]
pub(crate) struct Tails {
    open: Mutex<HashMap<TenantId, usize>>,
    closing: watch::Sender<bool>,
    metrics: TailMetrics,
}

impl Tails {
    pub(crate) fn new(metrics: TailMetrics) -> Self {
        Self { open: Mutex::default(), closing: watch::Sender::new(false), metrics }
    }

    pub(crate) fn close(&self) {
        self.closing.send_replace(true);
    }

    /// A place for one tail more. Errors: `Exhausted`.
    fn enter(self: &Arc<Self>, tenant: &TenantId) -> Result<Place> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.values().sum::<usize>() >= TAILS_MAX {
            return Err(Error::exhausted(format!("{TAILS_MAX} tails are open in this process, which is the limit: try again when some have ended")));
        }
        let own = open.entry(tenant.clone()).or_default();
        if *own >= TAILS_OF_TENANT {
            return Err(Error::exhausted(format!("{TAILS_OF_TENANT} tails of the tenant are open, which is the limit: end one of them first")));
        }
        *own += 1;
        self.metrics.open.inc();
        Ok(Place { tails: self.clone(), tenant: tenant.clone() })
    }
}

/// The place of an open tail, given back when it is dropped.
struct Place {
    tails: Arc<Tails>,
    tenant: TenantId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.tails.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = open.get_mut(&self.tenant) {
            *own -= 1;
            if *own == 0 {
                open.remove(&self.tenant);
            }
        }
        self.tails.metrics.open.dec();
    }
}

impl FlightSql {
    /// Begins a tail; its schema is sent when what arrives is looked at. Errors: `Invalid`, `Exhausted`; else as the backend's.
    pub(crate) async fn tail(&self, caller: &Caller, mut messages: Streaming<FlightData>, encoding: Encoding) -> Result<Messages<FlightData>> {
        let first = messages.message().await.map_err(|status| unreadable(&status))?;
        let first = first.ok_or_else(|| Error::invalid(format!("DoExchange without a message: {FORM}")))?;
        check_without_data(&first)?;
        let descriptor = first.flight_descriptor.ok_or_else(|| Error::invalid(format!("the first message has no descriptor: {FORM}")))?;
        let request = request_of(&descriptor, self.backend.now_unix_nano())?;
        let place = self.state.tails.enter(&caller.tenant)?;
        let closing = self.state.tails.closing.subscribe();
        let tail = self.backend.tail(&caller.tenant, request).await?;
        let schema = tail.schema();
        let mut pause = interval(PAUSE);
        pause.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let open = OpenTail { tail: Some(tail), messages, hears: true, pause, closing, backend: self.backend.clone(), place };
        let batches = stream::unfold(open, |mut open| async move { Some((open.next().await.transpose()?, open)) });
        Ok(encoding.messages(&schema, batches.boxed()))
    }
}

/// A tail and its client.
struct OpenTail {
    /// None when it has ended.
    tail: Option<Tail>,
    messages: Streaming<FlightData>,
    /// Whether the client may send something yet.
    hears: bool,
    pause: Interval,
    closing: watch::Receiver<bool>,
    backend: Arc<dyn FlightBackend>,
    place: Place,
}

impl OpenTail {
    /// The next rows; None at the end, which is there when the client has said that it sends nothing more, and it has everything.
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        while let Some(mut tail) = self.tail.take() {
            if self.hears {
                self.rest().await?;
            }
            if !tail.is_behind() {
                if self.hears {
                    self.tail = Some(tail);
                    continue;
                }
                return Ok(None);
            }
            let (tail, pass) = self.backend.tail_pass(tail).await?;
            // What came before the client's last word is told; what comes after it might never end.
            self.tail = (self.hears || pass.is_behind).then_some(tail);
            let metrics = &self.place.tails.metrics;
            metrics.passes.inc_by(u64::from(pass.spans > 0));
            metrics.spans.inc_by(pass.spans);
            self.pause.reset();
            if pass.is_behind {
                self.pause.reset_immediately();
            }
            if let Some(rows) = pass.rows {
                metrics.rows.inc_by(rows.num_rows() as u64);
                return Ok(Some(rows));
            }
        }
        Ok(None)
    }

    /// Waits until the next pass is due, or the client says that it sends nothing more. Errors: `Invalid` when it sends data, `Cancelled` when it
    /// has left, `Unavailable` when the process is stopping.
    async fn rest(&mut self) -> Result<()> {
        loop {
            let message = tokio::select! {
                biased;
                _ = self.closing.wait_for(|closing| *closing) => return Err(Error::unavailable("the server is shutting down: begin the tail again")),
                message = self.messages.message() => message,
                _ = self.pause.tick() => return Ok(()),
            };
            match message {
                Ok(Some(message)) => check_without_data(&message)?,
                Ok(None) => {
                    self.hears = false;
                    return Ok(());
                }
                Err(status) => return Err(Error::new(ErrorKind::Cancelled, "the client left").with_source(status)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use prometheus::Registry;

    use super::*;

    const NOW: u64 = 1_700_000_000_500_000_000;

    fn check(text: &str, expected: Result<(&str, Option<usize>, Option<u32>), &str>) {
        let request = request_of(&FlightDescriptor::new_cmd(text.to_owned()), NOW);
        match (request, expected) {
            (Ok(found), Ok((query, columns, start))) => {
                assert_eq!(found.query, query);
                assert_eq!(found.columns.map(|columns| columns.len()), columns, "{text}");
                assert_eq!(found.window, start.map(|start_seconds| Window { start_seconds, end_seconds: 1_700_000_001 }), "{text}");
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{text}: {error} lacks {part}"),
            (found, _) => panic!("{text}: {found:?}"),
        }
    }

    #[test]
    fn descriptors_are_read() {
        check(r#"{"tail": "{ }"}"#, Ok(("{ }", None, None)));
        check(r#"{"tail": "{ }", "columns": ["name"], "lookback": "5m"}"#, Ok(("{ }", Some(1), Some(1_699_999_700))));
        check(r#"{"tail": "{ }", "lookback": 1.5}"#, Ok(("{ }", None, Some(1_699_999_999))));
        check(r#"{"tail": "{ }", "lookback": 1e12}"#, Ok(("{ }", None, Some(0))));
        for bad in
            ["", "{", "{}", "[]", r#"{"tail": 1}"#, r#"{"tail": "{ }", "column": []}"#, r#"{"traceql": "{ }"}"#, r#"{"tail": "", "columns": "name"}"#]
        {
            check(bad, Err("a tail is asked for with"));
        }
        for bad in [r#"{"tail": "", "lookback": "x"}"#, r#"{"tail": "", "lookback": -1}"#, r#"{"tail": "", "lookback": []}"#] {
            check(bad, Err("lookback is a number of seconds"));
        }
    }

    #[test]
    fn tails_are_bounded_for_a_tenant_and_in_all() {
        let metrics = TailMetrics::new(&Registry::new()).unwrap();
        let tails = Arc::new(Tails::new(metrics.clone()));
        let tenant = |number: usize| TenantId::parse(&format!("tenant-{number}")).unwrap();
        let of_tenant = |number| (0..TAILS_OF_TENANT).map(|_| tails.enter(&tenant(number)).unwrap()).collect::<Vec<_>>();
        let mut all = of_tenant(0);
        let refused = tails.enter(&tenant(0)).err().unwrap();
        assert!(refused.kind() == ErrorKind::Exhausted && refused.to_string().contains("16 tails of the tenant"), "{refused}");
        (1..TAILS_MAX / TAILS_OF_TENANT).for_each(|number| all.extend(of_tenant(number)));
        assert!(tails.enter(&tenant(99)).err().unwrap().to_string().contains("256 tails"));
        assert_eq!(metrics.open.get(), 256);
        all.pop();
        assert!(tails.enter(&tenant(99)).is_ok());
        all.clear();
        assert_eq!(metrics.open.get(), 0);
        assert!(tails.open.lock().unwrap().is_empty());
    }
}
