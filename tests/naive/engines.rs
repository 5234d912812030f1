//! The engines that are asked, each with the spans of a world in other places.

use std::sync::Arc;

use object_store::{ObjectStore, memory::InMemory};
use prometheus::Registry;
use skein_engine::{
    block::{put::put_block, writer::write_block},
    catalog::{BlockMeta, Catalog, CatalogMetrics},
    compact::{BlockMerger, Merger},
    exec::{
        engine::{Engine, EngineSettings},
        live::{LiveGeneration, LiveSpans},
    },
    query::QueryService,
    spans::{
        BlockId,
        builder::SpanBuilder,
        gather::OrderedSpans,
        schema::{ColumnPolicy, SpanSchema},
        set::SpanSet,
        tree::order_spans,
    },
    tenant::TenantId,
};

use super::model::{Span, request};
use super::traces::World;

/// Engines that must answer the same, by name.
pub type Engines = Vec<(&'static str, Arc<dyn QueryService>)>;

/// Only frequent attributes have columns: in blocks of this size all would have one.
const FEW_COLUMNS: ColumnPolicy = ColumnPolicy { rows_per_mille_min: 150, columns_max: 4 };

/// Engines over the spans of `world`: all live, all in one block, some live and the others in two blocks with some in several of these places,
/// and the two blocks merged.
pub async fn engines(world: &World) -> Engines {
    let divided = [(spans(world.at(1)), FEW_COLUMNS), (spans(world.at(2)), ColumnPolicy::BLOCK)];
    let (all, live) = (spans(world.all()), spans(world.at(0)));
    vec![
        ("all live", engine(Some(all.clone()), &[], false).await),
        ("one block", engine(None, &[(all.clone(), ColumnPolicy::BLOCK)], false).await),
        ("one block with few columns", engine(None, &[(all, FEW_COLUMNS)], false).await),
        ("two blocks and live", engine(Some(live.clone()), &divided, false).await),
        ("two merged blocks and live", engine(Some(live), &divided, true).await),
    ]
}

async fn engine(live: Option<SpanSet>, blocks: &[(SpanSet, ColumnPolicy)], merged: bool) -> Arc<dyn QueryService> {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let catalog = Arc::new(Catalog::new(CatalogMetrics::new(&Registry::new()).unwrap()));
    let mut metas = Vec::new();
    for (set, policy) in blocks.iter().filter(|(set, _)| !set.is_empty()) {
        metas.push(Arc::new(put(&*store, set.clone(), *policy).await));
    }
    if merged && !metas.is_empty() {
        metas = vec![Arc::new(BlockMerger::new(store.clone()).merge(&TenantId::single(), &metas).await.unwrap())];
    }
    for meta in metas {
        catalog.add_block(BlockMeta::clone(&meta));
    }
    let live = live.filter(|set| !set.is_empty()).map(|set| LiveGeneration { block: BlockId::random(), set });
    Arc::new(Engine::new(store, catalog, Arc::new(Live(live)), EngineSettings { partitions: 2, ..EngineSettings::default() }))
}

async fn put(store: &dyn ObjectStore, set: SpanSet, policy: ColumnPolicy) -> BlockMeta {
    let order = order_spans(&set);
    let schema = SpanSchema::of(&set, policy);
    let objects = write_block(&OrderedSpans::new(set, order, schema)).unwrap();
    put_block(store, &TenantId::single(), BlockId::random(), objects).await.unwrap()
}

/// The spans as a receiver would have them: sent as OTLP, checked and decoded.
fn spans<'a>(spans: impl Iterator<Item = &'a Span>) -> SpanSet {
    let mut builder = SpanBuilder::default();
    for span in spans {
        let bytes = request([span]);
        skein_ingest::decode::check(&bytes).unwrap();
        skein_ingest::decode::decode(&bytes, &mut builder).unwrap();
    }
    builder.snapshot()
}

#[derive(Debug)]
struct Live(Option<LiveGeneration>);

impl LiveSpans for Live {
    fn live(&self, _: &TenantId) -> Vec<LiveGeneration> {
        self.0.iter().cloned().collect()
    }

    fn tenants(&self) -> Vec<TenantId> {
        vec![TenantId::single()]
    }
}
