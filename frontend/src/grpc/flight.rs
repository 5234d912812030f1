//! Arrow Flight and Flight SQL over the same queue, limits and counts as every query.

use std::sync::Arc;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use skein_engine::{
    error::{Error, Result},
    exec::writer::SpanWriter,
    sql::{SqlRows, SqlStatement, Tail, TailPass, TailRequest},
    tenant::TenantId,
};
use skein_flight::sql::{Call, FlightBackend, ParamValues};
use tokio::time::{Instant, timeout_at};

use crate::{Frontend, metrics::RequestTimer};

/// Where calls of Flight are counted.
const SERVICE: &str = "/arrow.flight.protocol.FlightService/";

/// The frontend as Flight sees it.
pub(super) struct Backend(pub(super) Arc<Frontend>);

#[async_trait]
impl FlightBackend for Backend {
    fn tenant(&self, header: Option<&str>) -> Result<TenantId> {
        let tenants = self.0.tenants(header)?;
        match tenants.ids() {
            [tenant] => Ok(tenant.clone()),
            _ => Err(Error::invalid(format!("SQL is asked of, and spans are written to, one tenant at a time, not {}", tenants.name()))),
        }
    }

    async fn prepare(&self, tenant: &TenantId, text: &str) -> Result<SqlStatement> {
        let work = async {
            let _turn = self.0.queue.admit(tenant.as_str()).await?;
            self.0.sql.prepare(tenant, text).await
        };
        before(self.deadline(), work).await
    }

    async fn run(&self, tenant: &TenantId, statement: SqlStatement, parameters: Option<ParamValues>) -> Result<SqlRows> {
        let deadline = self.deadline();
        let begin = async {
            let turn = self.0.queue.admit(tenant.as_str()).await?;
            Ok((turn, statement.run(parameters).await?))
        };
        let (turn, rows) = before(deadline, begin).await?;
        let SqlRows { schema, batches, cost } = rows;
        let batches = stream::unfold(Some((batches, turn)), move |running| async move {
            let (mut batches, turn) = running?;
            match before(deadline, async { batches.next().await.transpose() }).await.transpose()? {
                Ok(batch) => Some((Ok(batch), Some((batches, turn)))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(SqlRows { schema, batches: batches.boxed(), cost })
    }

    async fn tail(&self, tenant: &TenantId, request: TailRequest) -> Result<Tail> {
        let work = async {
            let _turn = self.0.queue.admit(tenant.as_str()).await?;
            self.0.sql.tail(tenant, request).await
        };
        before(self.deadline(), work).await
    }

    async fn tail_pass(&self, tail: Tail) -> Result<(Tail, TailPass)> {
        let work = async {
            let _turn = self.0.queue.admit(tail.tenant().as_str()).await?;
            self.0.sql.tail_pass(tail).await
        };
        before(self.deadline(), work).await
    }

    async fn flush(&self, tenant: TenantId) -> Result<()> {
        self.0.operations.flush(Some(tenant)).await
    }

    fn writer(&self) -> Option<Arc<dyn SpanWriter>> {
        self.0.writer.clone()
    }

    fn call(&self, method: &'static str) -> Box<dyn Call> {
        Box::new(Counted(self.0.metrics.request("gRPC", &format!("{SERVICE}{method}"))))
    }

    fn now_unix_nano(&self) -> u64 {
        self.0.clock.now_unix_nano()
    }
}

impl Backend {
    /// When what begins now has to have ended; None is no limit.
    #[allow(clippy::disallowed_methods, reason = "tokio's own clock, which its time limits go by")]
    fn deadline(&self) -> Option<Instant> {
        let limit = self.0.settings.api_timeout;
        (!limit.is_zero()).then(|| Instant::now() + limit)
    }
}

/// What `work` gives, unless the deadline comes first. Errors: `Unavailable` then.
async fn before<T>(deadline: Option<Instant>, work: impl Future<Output = Result<T>>) -> Result<T> {
    match deadline {
        None => work.await,
        Some(deadline) => timeout_at(deadline, work)
            .await
            .unwrap_or_else(|_| Err(Error::unavailable("the query took longer than query_frontend.api_timeout: ask for less, or a shorter time"))),
    }
}

/// A call that is counted until it ends.
struct Counted(RequestTimer);

impl Call for Counted {
    fn ended(self: Box<Self>, ok: bool) {
        self.0.answered(if ok { "success" } else { "error" }, None, None);
    }
}
