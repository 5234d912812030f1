//! The distributor: receivers, limits, and the way to the ingester.

use std::sync::Arc;

use skein_engine::{error::Result, exec::writer::SpanWriter};
use skein_ingest::{
    distributor::{Distributor, DistributorSettings, monotonic_clock},
    metrics::Metrics,
    receivers::{
        server::{OtlpServer, OtlpSettings},
        tables::TableReceiver,
    },
    sink::TraceSink,
};

use super::Shared;

/// Binds the receivers in front of `sink`, and makes the one that the frontend passes tables to. Nothing is taken before they are served.
pub async fn open(
    shared: &Shared,
    mut otlp: OtlpSettings,
    sink: Arc<dyn TraceSink>,
    metrics: Arc<Metrics>,
) -> Result<(OtlpServer, Arc<dyn SpanWriter>)> {
    let settings = &shared.settings;
    otlp.stop_timeout = settings.server.graceful_shutdown_timeout;
    let behaviour = DistributorSettings {
        retry_after_on_resource_exhausted: settings.distributor.retry_after_on_resource_exhausted,
        ..DistributorSettings::default()
    };
    let distributor = Arc::new(Distributor::new(sink, shared.overrides.clone(), metrics, behaviour, monotonic_clock()));
    let tables = Arc::new(TableReceiver::new(distributor.clone()));
    Ok((OtlpServer::bind(otlp, distributor).await?, tables))
}
