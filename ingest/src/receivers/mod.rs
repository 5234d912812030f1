//! Receivers: from a client's bytes to [`Distributor::push`], and from its result to the client's answer.
//!
//! | module | owns |
//! |---|---|
//! | [`server`] | both listeners, bound and stopped together |
//! | [`otlp_grpc`] | `TraceService/Export` |
//! | [`otlp_http`] | `POST /v1/traces` |
//! | [`json`] | OTLP JSON to OTLP protobuf |
//! | [`encoding`] | `Content-Encoding`, within a size limit |
//! | [`tenant`] | whose request it is |
//! | [`tables`] | tables of spans, which come over Arrow Flight |
//! | [`count`] | spans in a request, without decoding it |
//! | [`status`] | error to gRPC code, HTTP status and `google.rpc.Status` |

pub mod count;
pub mod encoding;
pub mod json;
pub mod otlp_grpc;
pub mod otlp_http;
pub mod server;
pub mod status;
pub mod tables;
pub mod tenant;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    distributor::{Distributor, Source},
    error::{Error, Result},
    payload::Payload,
};

/// What both OTLP transports share: the way of an uncompressed request to the distributor.
pub struct OtlpReceiver {
    distributor: Arc<Distributor>,
    multitenancy_enabled: bool,
}

/// A refused request: why, and when to try again.
#[derive(Debug)]
pub struct Refusal {
    /// Why.
    pub error: Error,
    /// Goes to the client as `google.rpc.RetryInfo`.
    pub retry_after: Option<Duration>,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { error, retry_after: None }
    }
}

impl OtlpReceiver {
    /// A receiver in front of `distributor`. Without multi-tenancy every request is of the tenant `single-tenant`.
    pub fn new(distributor: Arc<Distributor>, multitenancy_enabled: bool) -> Self {
        Self { distributor, multitenancy_enabled }
    }

    /// Hands on an uncompressed protobuf `ExportTraceServiceRequest`; `org_ids` are the values of `X-Scope-OrgID`. A request without spans succeeds whatever
    /// its tenant.
    async fn receive<'a>(&self, source: Source, org_ids: impl Iterator<Item = &'a [u8]>, request: Bytes) -> Result<(), Refusal> {
        let spans = count::spans(&request)?;
        if spans == 0 {
            return Ok(());
        }
        let tenant = tenant::select(self.multitenancy_enabled, org_ids)?;
        match self.distributor.push(source, &tenant, Payload::Otlp(request), spans).await {
            Ok(_) => Ok(()),
            Err(error) => Err(Refusal { retry_after: self.distributor.retry_after(&tenant, &error), error }),
        }
    }
}
