//! The engines that are asked, each with the spans of a world in other places.

use std::{sync::Arc, time::Duration};

use object_store::{
    ObjectStore,
    memory::InMemory,
    throttle::{ThrottleConfig, ThrottledStore},
};
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
use super::traces::{PLACES, World};
use crate::cluster::TestCluster;

/// Engines that must answer the same, by name.
pub type Engines = Vec<(&'static str, Arc<dyn QueryService>)>;

/// Only frequent attributes have columns: in blocks of this size all would have one.
const FEW_COLUMNS: ColumnPolicy = ColumnPolicy { rows_per_mille_min: 150, columns_max: 4 };

/// Engines over the spans of `world`: all live in one or several generations, all in one block, some live and the others in two blocks with some
/// in several of these places, the two blocks merged, and a cluster of three workers with live spans each.
pub async fn engines(world: &World) -> Engines {
    let local = local_engines(world).await;
    let mut engines: Engines = local.into_iter().map(|(name, engine)| (name, engine as Arc<dyn QueryService>)).collect();
    let mut live: Vec<SpanSet> = (0..PLACES).map(|place| spans(world.at(place))).collect();
    engines.push(("three workers", TestCluster::start(live.clone(), Vec::new()).await));
    let block = live.pop().into_iter().filter(|set| !set.is_empty()).collect();
    engines.push(("three workers and a block", TestCluster::start(live, block).await));
    engines
}

/// Those of them that are one process.
pub async fn local_engines(world: &World) -> Vec<(&'static str, Arc<Engine>)> {
    let divided = [(spans(world.at(1)), FEW_COLUMNS), (spans(world.at(2)), ColumnPolicy::BLOCK)];
    let (all, live) = (spans(world.all()), spans(world.at(0)));
    let generations: Vec<SpanSet> = (0..PLACES).map(|place| spans(world.at(place))).collect();
    vec![
        ("all live", engine_of(std::slice::from_ref(&all), &[], false).await),
        ("three live generations", engine_of(&generations, &[], false).await),
        ("one block", engine_of(&[], &[(all.clone(), ColumnPolicy::BLOCK)], false).await),
        ("one block with few columns", engine_of(&[], &[(all, FEW_COLUMNS)], false).await),
        ("two blocks and live", engine_of(std::slice::from_ref(&live), &divided, false).await),
        ("two merged blocks and live", engine_of(&[live], &divided, true).await),
    ]
}

/// Some spans live and the others in two blocks of a store that takes its time: what is live has been read long before the blocks are.
pub async fn slow_engine(world: &World) -> Arc<Engine> {
    let slowly = ThrottleConfig { wait_get_per_call: Duration::from_millis(2), ..ThrottleConfig::default() };
    let blocks = [1, 2].map(|place| (spans(world.at(place)), ColumnPolicy::BLOCK));
    engine_over(Arc::new(ThrottledStore::new(InMemory::new(), slowly)), &[spans(world.at(0))], &blocks, false).await
}

/// An engine with `live` generations and `blocks`, these perhaps merged into one.
pub async fn engine_of(live: &[SpanSet], blocks: &[(SpanSet, ColumnPolicy)], merged: bool) -> Arc<Engine> {
    engine_over(Arc::new(InMemory::new()), live, blocks, merged).await
}

async fn engine_over(store: Arc<dyn ObjectStore>, live: &[SpanSet], blocks: &[(SpanSet, ColumnPolicy)], merged: bool) -> Arc<Engine> {
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
    let generation = |set: &SpanSet| LiveGeneration { block: BlockId::random(), set: set.clone() };
    let live = live.iter().filter(|set| !set.is_empty()).map(generation).collect();
    Arc::new(Engine::new(store, catalog, Arc::new(Live(live)), EngineSettings { partitions: 2, ..EngineSettings::default() }))
}

async fn put(store: &dyn ObjectStore, set: SpanSet, policy: ColumnPolicy) -> BlockMeta {
    let order = order_spans(&set);
    let schema = SpanSchema::of(&set, policy);
    let objects = write_block(&OrderedSpans::new(set, order, schema)).unwrap();
    put_block(store, &TenantId::single(), BlockId::random(), objects).await.unwrap()
}

/// Spans between two looks at what is live, each of which ends a chunk.
const CHUNK_SPANS: usize = 5;

/// The spans as a receiver would have them: sent as OTLP, checked and decoded.
fn spans<'a>(spans: impl Iterator<Item = &'a Span>) -> SpanSet {
    let mut builder = SpanBuilder::default();
    for (number, span) in spans.enumerate() {
        if number % CHUNK_SPANS == 0 {
            builder.snapshot();
        }
        let bytes = request([span]);
        skein_ingest::decode::check(&bytes).unwrap();
        skein_ingest::decode::decode(&bytes, &mut builder).unwrap();
    }
    builder.snapshot()
}

#[derive(Debug)]
struct Live(Vec<LiveGeneration>);

impl LiveSpans for Live {
    fn live(&self, _: &TenantId) -> Vec<LiveGeneration> {
        self.0.clone()
    }

    fn tenants(&self) -> Vec<TenantId> {
        vec![TenantId::single()]
    }
}
