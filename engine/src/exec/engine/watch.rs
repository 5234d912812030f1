//! Traces that get spans: found as they arrive, and brought together whole.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use super::{Core, Engine, Joined, SPAN_BYTES, SPLIT_SLACK_SECONDS};
use crate::{
    block::{index::TraceIndex, reader::BlockReader},
    catalog::BlockMeta,
    error::{Error, Result},
    exec::{
        changes::{Backlog, Marks, Portion, Seen, Unread},
        memory::Reservation,
        source::{MemorySource, SourceRef},
        sources::{SourceName, SourceSet, scan_units},
        split::{common, join_traces, split_ids},
        stats::ScanMetrics,
    },
    query::Window,
    spans::{BlockId, TraceId},
    tenant::TenantId,
};

const SLACK_NANOS: u64 = SPLIT_SLACK_SECONDS as u64 * 1_000_000_000;

/// Follows the spans of a tenant: what arrives after it was made, in portions.
#[derive(Debug)]
pub struct Watch {
    core: Arc<Core>,
    tenant: TenantId,
    marks: Marks,
}

/// Traces that got spans.
#[derive(Debug)]
pub struct ChangedTraces {
    /// They alone, whole.
    pub sources: SourceSet,
    /// Their ids.
    pub ids: HashSet<u128>,
    /// Only those that overlap it are wanted.
    pub window: Option<Window>,
    /// There were more when these were looked for.
    pub has_more: bool,
}

impl Engine {
    /// Follows the spans of `tenant` from now on, and before that the traces that overlap `window`. Cost: orders what is live, as a search does.
    /// Errors: as of opening blocks; `Exhausted`.
    pub async fn watch(&self, tenant: &TenantId, window: Option<Window>) -> Result<Watch> {
        let (core, tenant) = (self.core.clone(), tenant.clone());
        let seen = core.look(&tenant);
        let mut marks = Marks::at(&seen, |live| core.order(&tenant, live).trace_index().clone());
        if let Some(window) = window {
            marks.add(core.traces_within(&tenant, &seen, window).await?);
        }
        Ok(Watch { core, tenant, marks })
    }

    /// Everything that is stored and live of `tenant`, as it is: traces that lie in several places are not brought together.
    pub async fn sources_apart(&self, tenant: &TenantId) -> Result<Vec<SourceRef>> {
        self.plain_sources(tenant, None).await
    }
}

impl Watch {
    /// Takes portions of `spans` new spans from now on.
    #[cfg(test)]
    pub(crate) fn in_portions_of(&mut self, spans: usize) {
        self.marks.in_portions_of(spans);
    }

    /// Whose spans.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Whether there may be something new. Cost: a look at numbers.
    pub fn is_behind(&mut self) -> bool {
        // Live spans first, as always.
        let sizes = self.core.live.sizes(&self.tenant);
        self.marks.is_behind(&sizes, self.core.catalog.snapshot(&self.tenant).version)
    }

    /// Traces that got spans since the last call, or some of them when there are many; None when none did. Cost: a pass over the trace ids of
    /// what is live, some nanoseconds a span, then some 200 ns for each span of these traces; those of them that lie in several places, or in
    /// a block, are read and joined. Errors: as the sources'; `Exhausted`; `Unavailable` when a block that was not looked at is gone: then
    /// spans may be missed.
    pub async fn changed(&mut self) -> Result<Option<ChangedTraces>> {
        let seen = self.core.look(&self.tenant);
        for Unread { meta, before } in self.marks.take_up(&seen) {
            let block = self.core.open(&meta.map_err(fell_behind)?).await?;
            self.marks.add(self.core.traces_of_block(&block, before.as_deref())?);
        }
        let portion = self.marks.portion(&seen);
        if portion.ids.is_empty() {
            return Ok(None);
        }
        let sources = self.core.whole_traces(&self.tenant, &portion, &seen).await?;
        Ok(Some(ChangedTraces { sources, ids: portion.ids, window: portion.window, has_more: self.marks.has_more(&seen) }))
    }
}

fn fell_behind(block: BlockId) -> Error {
    Error::unavailable(format!(
        "block {block} was deleted before its spans were looked at: take what is sent faster, and begin again with a lookback"
    ))
}

impl Core {
    /// What is there, live spans before blocks.
    fn look(&self, tenant: &TenantId) -> Seen {
        // What is sealed by now is live or a block in what follows.
        let sealed = self.live.sizes(tenant).into_iter().filter(|size| size.is_sealed).map(|size| size.block).collect();
        let live = self.live.live(tenant).into_iter().filter(|live| !live.set.is_empty()).collect();
        Seen { sealed, live, blocks: self.catalog.snapshot(tenant) }
    }

    /// The traces that may overlap `window`: all in row groups that do.
    async fn traces_within(&self, tenant: &TenantId, seen: &Seen, window: Window) -> Result<Backlog> {
        let mut sources: Vec<SourceRef> = seen.live.iter().map(|live| self.order(tenant, live) as SourceRef).collect();
        let is_live = |meta: &Arc<BlockMeta>| seen.live.iter().any(|live| live.block == meta.id);
        let metas: Vec<_> = seen.blocks.blocklist.overlapping(Some(window)).filter(|meta| !is_live(meta)).cloned().collect();
        sources.extend(self.open_all(&metas).await?.into_iter().map(|block| block as SourceRef));
        let mut traces = Vec::new();
        for unit in scan_units(&sources, Some(window)).0 {
            let source = &sources[unit.source];
            let rows = source.row_groups()[unit.group];
            let (mut row, end) = (rows.first_row as usize, (rows.first_row + rows.rows) as usize);
            let mut cursor = source.traces().cursor();
            while let Some((id, range)) = cursor.trace_at(row).filter(|_| row < end) {
                traces.push((id, range.len()));
                row = range.end;
            }
        }
        Backlog::new(traces, (window.start_nanos(), window.end_nanos()), Some(window), &self.pool)
    }

    /// The traces of `block` that have more spans in it than `before`.
    fn traces_of_block(&self, block: &BlockReader, before: Option<&TraceIndex>) -> Result<Backlog> {
        let index = &block.index().traces;
        let spans = |index: &TraceIndex, id| index.rows_of(id).map_or(0, |rows| rows.len());
        let of = |&id: &u128| (id, spans(index, id));
        let has_more = |(id, now): &(u128, usize)| before.is_none_or(|before| spans(before, *id) < *now);
        let times = (block.meta().min_start_unix_nano, block.meta().max_end_unix_nano);
        Backlog::new(index.ids().iter().map(of).filter(has_more).collect(), times, None, &self.pool)
    }

    /// The traces of `portion`, whole: those of which all spans are live in one generation as they are, the others joined.
    async fn whole_traces(self: &Arc<Self>, tenant: &TenantId, portion: &Portion, seen: &Seen) -> Result<SourceSet> {
        let mut sources: Vec<(SourceName, SourceRef)> = Vec::new();
        for live in &seen.live {
            if let Some(set) = live.set.only_traces(&portion.ids) {
                let memory = Reservation::new("traces that got spans", &self.pool);
                memory.grow(set.len() * SPAN_BYTES)?;
                sources.push((SourceName::Live { id: live.block, at: None }, Arc::new(MemorySource::new(set).holding(memory))));
            }
        }
        let metrics = ScanMetrics::default();
        let joined = self.joined_of(portion, seen, &sources, &metrics).await?;
        if let Some(source) = &joined.1 {
            let traces = joined.0.iter().map(|id| TraceId(id.to_be_bytes())).collect();
            sources.push((SourceName::Joined { traces }, source.clone()));
        }
        let set = SourceSet::opened(tenant.clone(), sources, self.clone());
        set.metrics.add(&metrics.snapshot());
        Ok(set)
    }

    /// The traces of `portion` that lie in several of the live `sources`, or in blocks.
    async fn joined_of(&self, portion: &Portion, seen: &Seen, live: &[(SourceName, SourceRef)], metrics: &ScanMetrics) -> Result<Joined> {
        let mut sources: Vec<SourceRef> = live.iter().map(|(_, source)| source.clone()).collect();
        let lists: Vec<&[u128]> = sources.iter().map(|source| source.traces().ids()).collect();
        let mut ids = split_ids(&lists);
        let mut wanted: Vec<u128> = portion.ids.iter().copied().collect();
        wanted.sort_unstable();
        for block in self.open_all(&blocks_beside(portion, seen, &sources)).await? {
            let mut own = BTreeSet::new();
            common(&wanted, block.index().traces.ids(), &mut own);
            if !own.is_empty() {
                ids.append(&mut own);
                sources.push(block);
            }
        }
        let source = if ids.is_empty() { None } else { Some(join_traces(&ids, &sources, metrics, &self.pool).await?) };
        Ok(Arc::new((ids, source)))
    }
}

/// The blocks that may hold spans of the traces of `portion`: those within an hour of the spans that are known of.
fn blocks_beside(portion: &Portion, seen: &Seen, live: &[SourceRef]) -> Vec<Arc<BlockMeta>> {
    let groups = live.iter().flat_map(|source| source.row_groups());
    let times: Vec<(u64, u64)> = groups.map(|group| (group.trace_start_min, group.trace_end_max)).chain(portion.times).collect();
    let is_near = |meta: &Arc<BlockMeta>| {
        let (from, until) = (meta.min_start_unix_nano.saturating_sub(SLACK_NANOS), meta.max_end_unix_nano.saturating_add(SLACK_NANOS));
        times.iter().any(|&(start, end)| start <= until && end >= from)
    };
    let is_live = |meta: &Arc<BlockMeta>| seen.live.iter().any(|live| live.block == meta.id);
    seen.blocks.blocklist.live().iter().filter(|meta| !is_live(meta) && is_near(meta)).cloned().collect()
}
