//! Live spans across processes: what an engine tells others of its own, and what it finds out about theirs before it makes a plan.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use futures::future::{join_all, try_join_all};

use super::{Core, Engine, Joined, OPENS_AT_ONCE, SPAN_BYTES, SourceKey, live_trace, widened};
use crate::{
    block::{
        reader::BlockReader,
        writer::{BlockObjects, ROW_GROUP_ROWS, write_block},
    },
    catalog::{
        Blocklist, Change,
        meta::{BlockMeta, read_compacted_meta, read_meta},
    },
    error::{Error, ErrorKind, Result},
    exec::{
        live::{ListedGeneration, LiveGeneration, LiveListing, LiveTrace, RemoteLive},
        source::{MemorySource, SourceRef, SpanSource},
        split::{append_traces, join_traces},
        stats::ScanMetrics,
        trace::trace_in,
    },
    parts::Parts,
    query::{ScanStats, TagNames, TagNamesRequest, TagScope, TagValues, TagValuesRequest, TraceRequest, TraceResult, Window},
    spans::{
        BlockId, TraceId,
        builder::SpanBuilder,
        gather::OrderedSpans,
        schema::{ColumnPolicy, SpanSchema},
        set::SpanSet,
        tree::order_spans,
    },
    tenant::TenantId,
};

/// How many of its newest blocks a process names beside its live spans. Far more than are written between two polls of a catalog.
const RECENT_BLOCKS: usize = 256;

/// What is live in this process.
#[derive(Debug, Default)]
pub struct LocalListing {
    /// Block to be, version, and the spans in order; none is empty. Each can be asked for again by its version for as long as the cache of
    /// ordered spans holds it.
    pub generations: Vec<(BlockId, u64, Arc<MemorySource>)>,
    /// The newest blocks, read after the live spans: what was live before is among them.
    pub recent_blocks: Vec<BlockId>,
}

/// All sources of a query over blocks and the live spans of other processes.
#[derive(Debug)]
pub struct Survey {
    /// Live spans of other processes.
    pub live: Vec<ListedGeneration>,
    /// Blocks that are live nowhere, opened.
    pub blocks: Vec<Arc<BlockReader>>,
    /// Traces that lie in several of these, ascending.
    pub split: Arc<[TraceId]>,
    /// The whole of the split traces; None when there are none.
    pub joined: Option<Arc<MemorySource>>,
    /// What bringing them together has read here.
    pub read: ScanStats,
}

impl Survey {
    /// Row groups of all sources; those of live spans are estimated by their number.
    pub fn row_groups(&self) -> u64 {
        let blocks = self.blocks.iter().map(|block| block.index().row_groups.len() as u64);
        let live = self.live.iter().map(|generation| generation.spans.div_ceil(ROW_GROUP_ROWS as u64));
        let joined = self.joined.iter().map(|joined| SpanSource::row_groups(&**joined).len() as u64);
        blocks.chain(live).chain(joined).sum()
    }
}

impl Engine {
    /// What is live here. Cost: orders what is new since the last listing, some 200 ns a span.
    pub fn list_live(&self, tenant: &TenantId) -> LocalListing {
        let live = self.core.live.live(tenant);
        let ordered = |generation: &LiveGeneration| (generation.block, generation.set.version, self.core.order(tenant, generation));
        let generations = live.iter().filter(|generation| !generation.set.is_empty()).map(ordered).collect();
        LocalListing { generations, recent_blocks: self.recent_blocks(tenant) }
    }

    /// Ids of the newest blocks.
    fn recent_blocks(&self, tenant: &TenantId) -> Vec<BlockId> {
        let blocks = self.core.catalog.snapshot(tenant);
        let mut newest: Vec<&Arc<BlockMeta>> = blocks.blocklist.live().iter().collect();
        newest.sort_by_key(|meta| (Reverse(meta.created_unix_nano), meta.id));
        newest.into_iter().take(RECENT_BLOCKS).map(|meta| meta.id).collect()
    }

    /// The traces `ids` of version `version` of the live spans that will become `block`, or all of them, as a block; None if there are
    /// none. Cost: some 2 µs a span. Errors: `Unavailable` when this version is gone.
    pub async fn live_traces(&self, tenant: &TenantId, block: BlockId, version: u64, ids: Option<&[u128]>) -> Result<Option<BlockObjects>> {
        let source = self.core.listed(tenant, &self.core.live.live(tenant), block, version)?;
        let Some(ids) = ids else { return self.block_of(source.spans().set.clone()) };
        let (mut builder, memory) = (SpanBuilder::default(), self.hold("live spans for another process"));
        append_traces(ids.iter().copied(), &(source as SourceRef), &mut builder, &ScanMetrics::default(), &memory).await?;
        self.block_of(builder.snapshot())
    }

    /// The live spans of one trace as a block, None if there are none, and the newest blocks, read after the live spans.
    pub async fn live_trace(&self, tenant: &TenantId, id: TraceId) -> Result<(Option<BlockObjects>, Vec<BlockId>)> {
        let live = self.core.live.live(tenant);
        let parts = live.iter().filter_map(|generation| live_trace(&generation.set, id, &self.core.pool).transpose());
        let parts: Vec<SourceRef> = parts.map(|part| part.map(|part| part as SourceRef)).collect::<Result<_>>()?;
        let whole = join_traces(&[u128::from_be_bytes(id.0)].into(), &parts, &ScanMetrics::default(), &self.core.pool).await?;
        Ok((self.block_of(whole.spans().set.clone())?, self.recent_blocks(tenant)))
    }

    /// A set as a block: the form in which spans go to another process. None if it is empty. What is sent carries its memory.
    fn block_of(&self, set: SpanSet) -> Result<Option<BlockObjects>> {
        if set.is_empty() {
            return Ok(None);
        }
        let memory = self.hold("a block for another process");
        memory.grow(set.len() * SPAN_BYTES)?;
        let (order, schema) = (order_spans(&set), SpanSchema::of(&set, ColumnPolicy::BLOCK));
        let mut objects = write_block(&OrderedSpans::new(set, order, schema))?;
        memory.settle(objects.data.len() + objects.index.len())?;
        objects.data = memory.attach_to_bytes(objects.data);
        Ok(Some(objects))
    }

    /// Partitions of a scan.
    pub fn partitions(&self) -> usize {
        self.settings.partitions
    }

    /// Attribute names of the live spans here, and the newest blocks. Errors: `Internal`.
    pub async fn live_tag_names(&self, tenant: &TenantId, request: &TagNamesRequest) -> Result<(TagNames, Vec<BlockId>)> {
        let names = self.names_in(&self.live_sources(tenant), request, &ScanMetrics::default(), None).await?;
        Ok((names, self.recent_blocks(tenant)))
    }

    /// Values of an attribute of the live spans here, and the newest blocks. Errors: as [`tag_values`](crate::query::QueryService).
    pub async fn live_tag_values(&self, tenant: &TenantId, request: &TagValuesRequest) -> Result<(TagValues, Vec<BlockId>)> {
        let values = self.values_in(&self.live_sources(tenant), request, &ScanMetrics::default(), None).await?;
        Ok((values, self.recent_blocks(tenant)))
    }

    fn live_sources(&self, tenant: &TenantId) -> Vec<SourceRef> {
        let live = self.core.live.live(tenant);
        live.iter().filter(|generation| !generation.set.is_empty()).map(|generation| self.core.order(tenant, generation) as SourceRef).collect()
    }

    /// Attribute names in the blocks of this engine and the live spans of others. Parts are told of blocks. Errors: as those of `remote` and of the store.
    pub async fn tag_names_with(
        &self,
        tenant: &TenantId,
        request: &TagNamesRequest,
        remote: &dyn RemoteLive,
        parts: Option<&Parts<TagNames>>,
    ) -> Result<TagNames> {
        let (answers, recent_blocks) = remote.tag_names(tenant, request).await?;
        let blocks = self.block_sources(tenant, request.window, &recent_blocks).await?;
        let mut all = self.names_in(&blocks, request, &ScanMetrics::default(), parts).await?;
        let mut scopes: BTreeMap<TagScope, BTreeSet<String>> = BTreeMap::new();
        for (scope, names) in std::mem::take(&mut all.scopes).into_iter().chain(answers.iter().flat_map(|names| names.scopes.clone())) {
            scopes.entry(scope).or_default().extend(names);
        }
        all.scopes = scopes.into_iter().map(|(scope, names)| (scope, names.into_iter().collect())).collect();
        all.stats = answers.iter().fold(all.stats, |stats, names| stats.plus(&names.stats));
        Ok(all)
    }

    /// Values of an attribute in the blocks of this engine and the live spans of others. Parts are told of blocks. Errors: as those of
    /// `remote` and of the store, `Invalid` when the tag is no identifier.
    pub async fn tag_values_with(
        &self,
        tenant: &TenantId,
        request: &TagValuesRequest,
        remote: &dyn RemoteLive,
        parts: Option<&Parts<TagValues>>,
    ) -> Result<TagValues> {
        let (answers, recent_blocks) = remote.tag_values(tenant, request).await?;
        let blocks = self.block_sources(tenant, request.window, &recent_blocks).await?;
        let mut all = self.values_in(&blocks, request, &ScanMetrics::default(), parts).await?;
        for answer in answers {
            all.stats = all.stats.plus(&answer.stats);
            all.values.extend(answer.values);
        }
        all.values.sort_by(|a, b| (&a.r#type, &a.value).cmp(&(&b.r#type, &b.value)));
        all.values.dedup();
        Ok(all)
    }

    async fn block_sources(&self, tenant: &TenantId, window: Option<Window>, recent: &[BlockId]) -> Result<Vec<SourceRef>> {
        let metas: Vec<_> = self.core.blocklist_with(tenant, recent).await?.overlapping(window).cloned().collect();
        Ok(self.core.open_all(&metas).await?.into_iter().map(|block| block as SourceRef).collect())
    }

    /// The sources of a query over the blocks of this engine and the live spans of others. Asks for live spans first and looks at the
    /// blocklist second, so nothing is missed; leaves out blocks that are still live; brings split traces together.
    /// Errors: as those of `remote` and of the store.
    pub async fn survey(&self, tenant: &TenantId, window: Option<Window>, remote: &dyn RemoteLive) -> Result<Survey> {
        let LiveListing { generations: live, recent_blocks } = remote.list(tenant).await?;
        let blocklist = self.core.blocklist_with(tenant, &recent_blocks).await?;
        let is_live = |id: BlockId| live.iter().any(|generation| generation.block == id);
        let metas: Vec<_> = blocklist.overlapping(widened(window)).filter(|meta| !is_live(meta.id)).cloned().collect();
        let blocks = self.core.open_all(&metas).await?;
        let metrics = ScanMetrics::default();
        let joined = self.core.joined_remote(tenant, &live, &blocks, remote, &metrics).await?;
        let split = joined.0.iter().map(|id| TraceId(id.to_be_bytes())).collect();
        Ok(Survey { live, blocks, split, joined: joined.1.clone(), read: metrics.snapshot() })
    }

    /// One trace from the blocks of this engine and the live spans of others. Errors: as those of `remote` and of the store.
    pub async fn trace_with(&self, tenant: &TenantId, request: &TraceRequest, remote: &dyn RemoteLive) -> Result<TraceResult> {
        let metrics = ScanMetrics::default();
        let number = u128::from_be_bytes(request.id.0);
        let LiveTrace { mut sources, recent_blocks } = remote.trace(tenant, request.id).await?;
        let blocklist = self.core.blocklist_with(tenant, &recent_blocks).await?;
        let metas: Vec<_> = blocklist.overlapping(request.window).cloned().collect();
        for meta in self.core.candidates(&metas, request.id, &metrics).await? {
            let block = self.core.open(&meta).await?;
            if block.index().traces.rows_of(number).is_some() {
                sources.push(block);
            }
        }
        trace_in(&sources, request, &metrics, &self.core.pool).await
    }
}

impl Core {
    /// The ordered spans of a listed version, which may no longer be the newest. Errors: `Unavailable` when it is gone.
    pub(super) fn listed(&self, tenant: &TenantId, live: &[LiveGeneration], block: BlockId, version: u64) -> Result<Arc<MemorySource>> {
        if let Some(source) = self.ordered.get(&(tenant.clone(), block, version)) {
            return Ok(source);
        }
        let same = live.iter().find(|generation| generation.block == block && generation.set.version == version);
        let gone = || Error::unavailable(format!("version {version} of the live spans of block {block} is gone"));
        same.map(|generation| self.order(tenant, generation)).ok_or_else(gone)
    }

    /// The blocks of the catalog and those of `recent` that it does not have yet. Cost: a request for each of these.
    /// Errors: as the store's.
    async fn blocklist_with(&self, tenant: &TenantId, recent: &[BlockId]) -> Result<Blocklist> {
        let mut blocklist = self.catalog.snapshot(tenant).blocklist.clone();
        let known: HashSet<BlockId> = blocklist.known().flat_map(|meta| meta.replaces.iter().copied().chain([meta.id])).collect();
        let mut missing: Vec<BlockId> = recent.iter().copied().filter(|id| !known.contains(id)).collect();
        missing.sort_unstable();
        missing.dedup();
        for some in missing.chunks(OPENS_AT_ONCE) {
            let reading: Vec<_> = some.iter().map(|id| self.meta_in_store(tenant, *id)).collect();
            for meta in join_all(reading).await {
                match meta {
                    Ok(meta) => blocklist = blocklist.with(&Change::Added(meta)),
                    // Replaced and deleted since: its spans are in a block that the catalog or another of these has.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(blocklist)
    }

    /// The meta of a block that the catalog does not have yet, whether it is live or replaced by now.
    /// Errors: `NotFound`, else as the store's.
    pub(super) async fn meta_in_store(&self, tenant: &TenantId, id: BlockId) -> Result<Arc<BlockMeta>> {
        if let Some(block) = self.blocks.get(&id) {
            return Ok(block.meta().clone());
        }
        match read_meta(&*self.store, tenant, id).await {
            Err(error) if error.kind() == ErrorKind::NotFound => read_compacted_meta(&*self.store, tenant, id).await.map(Arc::new),
            meta => meta.map(Arc::new),
        }
    }

    async fn joined_remote(
        &self,
        tenant: &TenantId,
        live: &[ListedGeneration],
        blocks: &[Arc<BlockReader>],
        remote: &dyn RemoteLive,
        metrics: &ScanMetrics,
    ) -> Result<Joined> {
        let key = SourceKey {
            tenant: tenant.clone(),
            blocks: blocks.iter().map(|block| block.meta().id).collect(),
            live: live.iter().map(|generation| (generation.block, generation.at.version)).collect(),
        };
        if let Some(joined) = self.joined.get(&key) {
            return Ok(joined);
        }
        let lists = live.iter().map(|generation| generation.trace_ids.as_slice());
        let lists: Vec<&[u128]> = lists.chain(blocks.iter().map(|block| block.index().traces.ids())).collect();
        let split = self.split(&key, live.len(), &lists);
        let source = if split.is_empty() {
            None
        } else {
            let mut parts = Vec::new();
            for generation in live {
                let ids: Vec<u128> = split.iter().copied().filter(|id| generation.trace_ids.binary_search(id).is_ok()).collect();
                if !ids.is_empty() {
                    parts.push(async move { remote.traces(tenant, generation.block, &generation.at, Some(&ids)).await });
                }
            }
            // These came as blocks in memory: nothing was read from the store, so nothing is counted.
            let fetched: Vec<SourceRef> = try_join_all(parts).await?.into_iter().flatten().collect();
            let mut sources: Vec<SourceRef> = Vec::with_capacity(blocks.len() + 1);
            if !fetched.is_empty() {
                sources.push(join_traces(&split, &fetched, &ScanMetrics::default(), &self.pool).await?);
            }
            sources.extend(blocks.iter().map(|block| block.clone() as SourceRef));
            Some(join_traces(&split, &sources, metrics, &self.pool).await?)
        };
        Ok(self.keep_joined(key, split, source))
    }
}
