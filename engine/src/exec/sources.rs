//! The sources of one query: which there are, how a plan names them, and how another process finds them again.

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use arrow::{array::BooleanBufferBuilder, buffer::BooleanBuffer};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use super::{
    eval::{ColumnNeeds, Frame},
    source::SourceRef,
    stats::ScanMetrics,
};
use crate::{
    block::index::RowGroup,
    error::Result,
    metrics::cache::PartialCache,
    query::Window,
    spans::{BlockId, TraceId, schema::Column},
    tenant::TenantId,
};

/// How a plan names a source.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceName {
    /// A block.
    Block {
        /// Its id.
        id: BlockId,
    },
    /// Live spans that will become block `id`.
    Live {
        /// The id of the block to be.
        id: BlockId,
        /// In a cluster, where they are. None: in the process that made the plan, as they are when it runs.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<LiveAt>,
    },
    /// The whole of those traces whose spans lie in several of the other sources. The others leave them out.
    Joined {
        /// The traces.
        traces: Vec<TraceId>,
    },
}

/// Where live spans are, and which of them were listed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LiveAt {
    /// The worker that has them.
    pub worker: Arc<str>,
    /// Their version when they were listed: a plan leaves traces out by their ids, so it holds for this version only.
    pub version: u64,
}

/// Opens sources by name.
#[async_trait]
pub trait SourceResolver: std::fmt::Debug + Send + Sync {
    /// Opens `names` in order. A live source without a version that has become a block since is that block. Errors: `NotFound`, `Data`,
    /// `Unavailable`, the last also for live spans of which the listed version is gone: a new plan may succeed.
    async fn resolve(&self, tenant: &TenantId, names: &[SourceName]) -> Result<Vec<SourceRef>>;

    /// Partial series of the blocks that it opens; None where none are kept.
    fn partial_cache(&self) -> Option<&PartialCache> {
        None
    }
}

/// The sources of one query, opened or still to be opened.
#[derive(Debug)]
pub struct SourceSet {
    tenant: TenantId,
    names: Vec<SourceName>,
    left_out: Arc<[TraceId]>,
    /// The traces that lie in several of them, brought together, where these are read apart from the others.
    apart: Option<Arc<SourceSet>>,
    joined_only: bool,
    resolver: Arc<dyn SourceResolver>,
    opened: OnceCell<Vec<SourceRef>>,
    excluded: Vec<OnceLock<Vec<Range<usize>>>>,
    /// What opening them has read.
    pub metrics: Arc<ScanMetrics>,
}

impl SourceSet {
    /// Sources to be opened when the plan runs.
    pub fn new(tenant: TenantId, names: Vec<SourceName>, resolver: Arc<dyn SourceResolver>) -> Self {
        let excluded = names.iter().map(|_| OnceLock::new()).collect();
        Self {
            tenant,
            names,
            left_out: Arc::default(),
            apart: None,
            joined_only: false,
            resolver,
            opened: OnceCell::new(),
            excluded,
            metrics: Arc::default(),
        }
    }

    /// Sources that are open.
    pub fn opened(tenant: TenantId, sources: Vec<(SourceName, SourceRef)>, resolver: Arc<dyn SourceResolver>) -> Self {
        let (names, sources) = sources.into_iter().unzip();
        Self { opened: OnceCell::new_with(Some(sources)), ..Self::new(tenant, names, resolver) }
    }

    /// The same sources without `traces`, which another process has whole.
    pub fn leaving_out(self, traces: Arc<[TraceId]>) -> Self {
        Self { left_out: traces, ..self }
    }

    /// The same and, to be read apart, `joined`: a set of the same sources with the traces that lie in several, of which these alone are read.
    pub fn with_joined(self, joined: Option<Self>) -> Self {
        Self { apart: joined.map(|joined| Arc::new(joined.joined_only(true))), ..self }
    }

    /// Whether only joined traces are read.
    pub fn is_joined_only(&self) -> bool {
        self.joined_only
    }

    /// The same, of which only joined traces are read, or all.
    pub fn joined_only(self, joined_only: bool) -> Self {
        Self { joined_only, ..self }
    }

    /// The set in which the joined traces are, if they are read apart.
    pub fn apart(&self) -> Option<&Arc<Self>> {
        self.apart.as_ref()
    }

    /// These sources and the joined traces as one set, opened in this process. Errors: as [`SourceResolver::resolve`].
    pub async fn together(self: &Arc<Self>) -> Result<Arc<Self>> {
        let Some(apart) = &self.apart else { return Ok(self.clone()) };
        let all = apart.names.iter().cloned().zip(apart.sources().await?.iter().cloned());
        Ok(Arc::new(Self::opened(self.tenant.clone(), all.collect(), self.resolver.clone())))
    }

    /// The traces that another process has whole.
    pub fn left_out(&self) -> &Arc<[TraceId]> {
        &self.left_out
    }

    /// Who opens them.
    pub fn resolver(&self) -> &Arc<dyn SourceResolver> {
        &self.resolver
    }

    /// Whose spans.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// The names, in order.
    pub fn names(&self) -> &[SourceName] {
        &self.names
    }

    /// The sources, in order. Errors: as [`SourceResolver::resolve`].
    pub async fn sources(&self) -> Result<&[SourceRef]> {
        Ok(self.opened.get_or_try_init(|| self.resolver.resolve(&self.tenant, &self.names)).await?)
    }

    /// The rows that source number `at`, opened as `source`, leaves out because the joined source, here or in another process, has their
    /// traces; ascending. Found once
    /// for each query.
    pub fn excluded_rows(&self, at: usize, source: &SourceRef) -> &[Range<usize>] {
        if matches!(self.names[at], SourceName::Joined { .. }) {
            return &[];
        }
        self.excluded[at].get_or_init(|| {
            if self.joined_only {
                let rows: usize = source.row_groups().iter().map(|group| group.rows as usize).sum();
                return std::iter::once(0..rows).collect();
            }
            let joined = self.names.iter().filter_map(|name| match name {
                SourceName::Joined { traces } => Some(traces),
                _ => None,
            });
            let traces = joined.flatten().chain(&*self.left_out);
            let mut rows: Vec<_> = traces.filter_map(|id| source.traces().rows_of(u128::from_be_bytes(id.0))).collect();
            rows.sort_unstable_by_key(|range| range.start);
            rows
        })
    }
}

/// How many there are of each kind.
impl std::fmt::Display for SourceSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let count = |kind: fn(&SourceName) -> bool| self.names.iter().filter(|name| kind(name)).count();
        let joined = self.names.iter().map(|name| if let SourceName::Joined { traces } = name { traces.len() } else { 0 }).sum::<usize>();
        let (blocks, live) = (count(|name| matches!(name, SourceName::Block { .. })), count(|name| matches!(name, SourceName::Live { .. })));
        write!(f, "blocks={blocks}, live={live}, traces in several={joined}")
    }
}

/// A row group of one of the sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ScanUnit {
    pub source: usize,
    pub group: usize,
    /// Start of its newest trace.
    pub newest: u64,
}

/// The row groups that overlap `window`, newest first, and how many do not.
pub fn scan_units(sources: &[SourceRef], window: Option<Window>) -> (Vec<ScanUnit>, u64) {
    let (mut units, mut outside) = (Vec::new(), 0);
    for (source, spans) in sources.iter().enumerate() {
        for (group, rows) in spans.row_groups().iter().enumerate() {
            if window.is_none_or(|window| rows.trace_start_min <= window.end_nanos() && rows.trace_end_max >= window.start_nanos()) {
                units.push(ScanUnit { source, group, newest: rows.trace_start_max });
            } else {
                outside += 1;
            }
        }
    }
    units.sort_by_key(|unit| (std::cmp::Reverse(unit.newest), unit.source, unit.group));
    (units, outside)
}

impl Window {
    /// First nanosecond.
    pub fn start_nanos(&self) -> u64 {
        u64::from(self.start_seconds) * 1_000_000_000
    }

    /// Last nanosecond at which a trace may start.
    pub fn end_nanos(&self) -> u64 {
        u64::from(self.end_seconds) * 1_000_000_000
    }
}

/// Those of `ranges` of rows of a source, ascending, that lie in the row group `rows`: a trace never lies in two.
pub fn of_row_group<'a>(ranges: &'a [Range<usize>], rows: &RowGroup) -> &'a [Range<usize>] {
    let (first, end) = (rows.first_row as usize, (rows.first_row + rows.rows) as usize);
    &ranges[ranges.partition_point(|range| range.end <= first)..ranges.partition_point(|range| range.start < end)]
}

/// The rows of `frame` whose trace overlaps `window`, without the rows `excluded` of the source (ascending). Reads trace times only where
/// the row group reaches beyond the window. Errors: as the source's.
pub async fn active_rows(
    frame: &mut Frame,
    group: usize,
    window: Option<Window>,
    excluded: &[Range<usize>],
    metrics: &ScanMetrics,
) -> Result<BooleanBuffer> {
    let rows = frame.source().row_groups()[group];
    let mut active = BooleanBuffer::new_set(frame.len());
    if let Some(window) = window
        && (rows.trace_start_min < window.start_nanos() || rows.trace_start_max > window.end_nanos())
    {
        let needs = ColumnNeeds { columns: vec![Column::TraceStart, Column::TraceDuration], events: Vec::new() };
        frame.load(&needs, metrics).await?;
        let (starts, durations) = (frame.ints(Column::TraceStart)?.values(), frame.ints(Column::TraceDuration)?.values());
        active = BooleanBuffer::collect_bool(frame.len(), |row| {
            let start = starts[row] as u64;
            start <= window.end_nanos() && start.saturating_add(durations[row].max(0) as u64) >= window.start_nanos()
        });
    }
    let own = of_row_group(excluded, &rows);
    if !own.is_empty() {
        let first = rows.first_row as usize;
        let mut kept = BooleanBufferBuilder::new(frame.len());
        for range in own {
            kept.append_n(range.start - first - kept.len(), true);
            kept.append_n(range.len(), false);
        }
        kept.append_n(frame.len() - kept.len(), true);
        active = &active & &kept.finish();
    }
    Ok(active)
}
