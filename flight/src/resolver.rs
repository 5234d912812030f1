//! Sources by name in a cluster: blocks from the store, own live spans from the engine, and live spans of other workers from those.
//!
//! A plan puts each scan where its data are. Should one run elsewhere all the same (a plan that nothing divides runs on the coordinator, and
//! the children of a union run on any worker), the spans are fetched: that costs time and loses no row.

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use skein_engine::{
    error::{Error, Result},
    exec::{
        engine::Engine,
        live::RemoteLive,
        memory::Pool,
        source::SourceRef,
        sources::{SourceName, SourceResolver},
        split::join_traces,
        stats::ScanMetrics,
    },
    metrics::cache::PartialCache,
    tenant::TenantId,
};

/// Sources opened at the same time.
const OPENS_AT_ONCE: usize = 8;

/// Opens the sources of plans that name workers.
#[derive(Debug)]
pub struct PeerResolver {
    engine: Arc<dyn SourceResolver>,
    own: Option<Arc<str>>,
    remote: Arc<dyn RemoteLive>,
    pool: Pool,
}

impl PeerResolver {
    /// The resolver of the process that is worker `own`, if it is one, over what its `engine` opens.
    pub fn new(engine: &Engine, own: Option<Arc<str>>, remote: Arc<dyn RemoteLive>) -> Self {
        Self { engine: engine.resolver(), own, remote, pool: engine.pool().clone() }
    }

    /// None for a joined source, which needs the others.
    async fn open(&self, tenant: &TenantId, name: &SourceName) -> Result<Option<SourceRef>> {
        match name {
            SourceName::Joined { .. } => Ok(None),
            SourceName::Live { id, at: Some(at) } if self.own.as_ref() != Some(&at.worker) => {
                let fetched = self.remote.traces(tenant, *id, at, None).await?.into_iter().next();
                fetched.map(Some).ok_or_else(|| Error::internal(format!("worker {}: live block {id} has no spans", at.worker)))
            }
            name => Ok(self.engine.resolve(tenant, std::slice::from_ref(name)).await?.into_iter().next()),
        }
    }
}

#[async_trait]
impl SourceResolver for PeerResolver {
    async fn resolve(&self, tenant: &TenantId, names: &[SourceName]) -> Result<Vec<SourceRef>> {
        let opening: Vec<_> = names.iter().map(|name| self.open(tenant, name).boxed()).collect();
        let opened: Vec<Option<SourceRef>> = stream::iter(opening).buffered(OPENS_AT_ONCE).try_collect().await?;
        let mut sources: Vec<SourceRef> = Vec::with_capacity(names.len());
        for (name, source) in names.iter().zip(opened) {
            match (name, source) {
                (_, Some(source)) => sources.push(source),
                (SourceName::Joined { traces }, None) => {
                    let ids: BTreeSet<u128> = traces.iter().map(|id| u128::from_be_bytes(id.0)).collect();
                    sources.push(join_traces(&ids, &sources, &ScanMetrics::default(), &self.pool).await?);
                }
                (name, None) => return Err(Error::internal(format!("{name:?} was not opened"))),
            }
        }
        Ok(sources)
    }

    fn partial_cache(&self) -> Option<&PartialCache> {
        self.engine.partial_cache()
    }
}
