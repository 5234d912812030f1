//! What can be asked of the stored and live spans of a tenant: the contract between the engine and the API in front of it.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use skein_proto::{otlp::trace::v1::ResourceSpans, tempo};

use crate::{
    error::Result, exec::memory::Reservation, metrics::intervals::Intervals, parts::Parts, spans::TraceId, tenant::TenantId, traceql::FieldExpr,
};

/// A search or tag window in Unix seconds. A trace is in when it overlaps the window, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First second.
    pub start_seconds: u32,
    /// Last second.
    pub end_seconds: u32,
}

/// What a query read; the figures that the API shows as `metrics`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanStats {
    /// Traces looked at.
    pub traces: u64,
    /// Spans looked at (rows of the row groups that were read).
    pub spans: u64,
    /// Compressed bytes read from blocks.
    pub bytes: u64,
    /// Requests to the object store.
    pub reads: u64,
    /// Blocks in the window.
    pub blocks: u64,
    /// Bytes of these blocks.
    pub block_bytes: u64,
    /// Row groups read.
    pub row_groups: u64,
    /// Row groups of which the result was known from an earlier query.
    #[serde(default)]
    pub row_groups_cached: u64,
    /// Row groups skipped by statistics, filters or the limit.
    pub row_groups_skipped: u64,
}

impl ScanStats {
    /// Both together.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            traces: self.traces + other.traces,
            spans: self.spans + other.spans,
            bytes: self.bytes + other.bytes,
            reads: self.reads + other.reads,
            blocks: self.blocks + other.blocks,
            block_bytes: self.block_bytes + other.block_bytes,
            row_groups: self.row_groups + other.row_groups,
            row_groups_cached: self.row_groups_cached + other.row_groups_cached,
            row_groups_skipped: self.row_groups_skipped + other.row_groups_skipped,
        }
    }

    /// Both together, where both read the same blocks: these count once.
    pub fn plus_of_same_blocks(&self, other: &Self) -> Self {
        Self { blocks: self.blocks.max(other.blocks), block_bytes: self.block_bytes.max(other.block_bytes), ..self.plus(other) }
    }
}

/// A TraceQL search.
#[derive(Debug, Clone)]
pub struct SearchRequest {
    /// The query text.
    pub query: String,
    /// Most traces to return.
    pub limit: usize,
    /// Most spans to return in each spanset.
    pub spans_per_spanset: usize,
    /// None searches everything.
    pub window: Option<Window>,
}

/// The answer to a search: the newest matching traces, newest first, ties by trace id.
#[derive(Debug, Default)]
pub struct SearchResult {
    /// At most `limit` traces.
    pub traces: Vec<tempo::TraceSearchMetadata>,
    /// What it cost.
    pub stats: ScanStats,
    /// The memory that the results take, to be kept as long as they are.
    pub memory: Reservation,
}

/// A TraceQL metrics query.
#[derive(Debug, Clone)]
pub struct MetricsRequest {
    /// The query text.
    pub query: String,
    /// The grid of its samples.
    pub intervals: Intervals,
    /// Most series to return; 0 is no limit.
    pub max_series: usize,
    /// Most exemplars to return, whatever the query's hints say of them.
    pub exemplars: u32,
    /// The attribute of spans or resources that tells sampling probabilities, for `with(extrapolate=true)`.
    pub sampling_attribute: Option<String>,
}

impl MetricsRequest {
    /// A request for all series, without exemplars.
    pub fn new(query: impl Into<String>, intervals: Intervals) -> Self {
        Self { query: query.into(), intervals, max_series: 0, exemplars: 0, sampling_attribute: None }
    }
}

/// The answer to a metrics query: series ordered by the number of labels, their names and values.
#[derive(Debug, Default)]
pub struct MetricsResult {
    /// At most `max_series`.
    pub series: Vec<tempo::TimeSeries>,
    /// Whether there are more.
    pub truncated: bool,
    /// What it cost.
    pub stats: ScanStats,
}

/// A request for one trace.
#[derive(Debug, Clone)]
pub struct TraceRequest {
    /// Which trace.
    pub id: TraceId,
    /// Only limits which blocks are looked at; None looks at all.
    pub window: Option<Window>,
    /// None gives all spans.
    pub filter: Option<TraceFilter>,
}

impl TraceRequest {
    /// A whole trace, wherever its spans lie.
    pub fn whole(id: TraceId) -> Self {
        Self { id, window: None, filter: None }
    }
}

/// Which spans of a trace are wanted: those that match, and some above and below them.
#[derive(Debug, Clone)]
pub struct TraceFilter {
    /// What matches; of [`parse_span_filter`](crate::traceql::parse_span_filter).
    pub matches: FieldExpr,
    /// Levels of descendants that come with each match; None is all.
    pub levels_below: Option<u32>,
    /// Levels of ancestors that come with each match; None is all.
    pub levels_above: Option<u32>,
}

/// What is known of one trace.
#[derive(Debug, Default)]
pub struct TraceResult {
    /// Spans by resource and scope, ordered by start; empty when the trace is unknown or the filter kept nothing.
    pub resource_spans: Vec<ResourceSpans>,
    /// Whether the filter left spans out.
    pub filtered: bool,
    /// What it cost.
    pub stats: ScanStats,
    /// The memory that the spans take, to be kept as long as they are.
    pub memory: Reservation,
}

/// Where an attribute lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum TagScope {
    Resource,
    Span,
    Event,
    Link,
    Instrumentation,
}

/// A request for attribute names.
#[derive(Debug, Clone, Default)]
pub struct TagNamesRequest {
    /// None lists all scopes.
    pub scope: Option<TagScope>,
    /// A lenient TraceQL filter; what cannot be used of it is ignored.
    pub filter: Option<String>,
    /// None looks at everything.
    pub window: Option<Window>,
}

/// Attribute names by scope, sorted.
#[derive(Debug, Default)]
pub struct TagNames {
    /// Scopes without names are left out.
    pub scopes: Vec<(TagScope, Vec<String>)>,
    /// What it cost.
    pub stats: ScanStats,
}

/// A request for the values of one attribute or intrinsic.
#[derive(Debug, Clone)]
pub struct TagValuesRequest {
    /// A TraceQL identifier such as `resource.service.name`, `.foo` or `name`.
    pub tag: String,
    /// A lenient TraceQL filter; what cannot be used of it is ignored.
    pub filter: Option<String>,
    /// None looks at everything.
    pub window: Option<Window>,
}

/// The distinct values of one attribute, sorted by type and value.
#[derive(Debug, Default)]
pub struct TagValues {
    /// `type` is `string`, `int`, `float`, `bool`, `duration` or `keyword`.
    pub values: Vec<tempo::TagValue>,
    /// What it cost.
    pub stats: ScanStats,
}

/// The questions that the query API asks. Dropping a returned future stops the work. A query that needs more memory than is left ends with
/// `Exhausted`, which says what to do.
#[async_trait]
pub trait QueryService: Send + Sync + 'static {
    /// Finds one trace. An unknown id is an empty result, not an error. Errors: `Invalid` when the filter fails on values of this trace.
    async fn trace_by_id(&self, tenant: &TenantId, request: TraceRequest) -> Result<TraceResult>;

    /// Runs a TraceQL search. Errors: `Invalid` for a query that does not parse or validate; its message begins as Tempo's does.
    async fn search(&self, tenant: &TenantId, request: SearchRequest) -> Result<SearchResult>;

    /// The plan of a search as text, a node a line; with `analyze` it is run first, and each physical node has what it read and gave. In one
    /// process the logical plan comes first, as the optimiser left it, then an empty line and the physical one. Errors: as
    /// [`QueryService::search`].
    async fn explain_search(&self, tenant: &TenantId, request: SearchRequest, analyze: bool) -> Result<String>;

    /// Runs a TraceQL metrics query. Errors: `Invalid` for a query that does not parse or validate, or is no metrics query; `Exhausted` for
    /// more series than fit in memory.
    async fn metrics(&self, tenant: &TenantId, request: MetricsRequest) -> Result<MetricsResult>;

    /// Lists attribute names. Intrinsics are not included: they are the same for every tenant.
    async fn tag_names(&self, tenant: &TenantId, request: TagNamesRequest) -> Result<TagNames>;

    /// Lists the values of one attribute. Errors: `Invalid` when `tag` is not a TraceQL identifier.
    async fn tag_values(&self, tenant: &TenantId, request: TagValuesRequest) -> Result<TagValues>;

    /// [`QueryService::search`], which also tells `parts`: the traces that became certain, newest first. Here and below, who has no parts to tell
    /// answers at the end.
    async fn search_in_parts(&self, tenant: &TenantId, request: SearchRequest, _parts: Parts<SearchResult>) -> Result<SearchResult> {
        self.search(tenant, request).await
    }

    /// [`QueryService::metrics`], which also tells `parts`: series with the samples of the intervals that became complete, later ones first,
    /// without exemplars.
    async fn metrics_in_parts(&self, tenant: &TenantId, request: MetricsRequest, _parts: Parts<MetricsResult>) -> Result<MetricsResult> {
        self.metrics(tenant, request).await
    }

    /// [`QueryService::tag_names`], which also tells `parts`: names found since the last one.
    async fn tag_names_in_parts(&self, tenant: &TenantId, request: TagNamesRequest, _parts: Parts<TagNames>) -> Result<TagNames> {
        self.tag_names(tenant, request).await
    }

    /// [`QueryService::tag_values`], which also tells `parts`: values found since the last one.
    async fn tag_values_in_parts(&self, tenant: &TenantId, request: TagValuesRequest, _parts: Parts<TagValues>) -> Result<TagValues> {
        self.tag_values(tenant, request).await
    }
}
