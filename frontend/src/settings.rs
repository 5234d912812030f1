//! Settings of the query frontend: Tempo's `query_frontend` section, and the per-tenant limits that queries obey.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use skein_engine::{
    clock::go_duration,
    error::{Error, Result},
};

/// Least memory of queries: columns of one row group of 65,536 spans for each of two partitions.
const MEMORY_BYTES_MIN: u64 = 16 << 20;

/// The `query_frontend` section.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FrontendSettings {
    /// Requests of one tenant that may wait for a turn; more are answered 429.
    pub max_outstanding_per_tenant: usize,
    /// Queries that run at the same time.
    pub max_concurrent_queries: usize,
    /// Memory that queries may take together; 0 is half of the memory of the machine or container.
    pub max_memory_bytes: u64,
    /// Longest TraceQL text in bytes.
    pub max_query_expression_size_bytes: usize,
    /// Longest time for one request, waiting included; 0 is no limit.
    #[serde(with = "go_duration")]
    pub api_timeout: Duration,
    /// How much of the present is left out of a window that the request does not name. Tempo's default is 30s; here a span is found as soon
    /// as it is acknowledged, and windows that the request names are never cut.
    #[serde(with = "go_duration")]
    pub query_end_cutoff: Duration,
    /// Allows `X-Scope-OrgID: a|b`.
    pub multi_tenant_queries_enabled: bool,
    /// Serves gRPC on the HTTP port too, as Grafana needs for streaming. Tempo's default is false.
    pub stream_over_http_enabled: bool,
    /// Largest message of a gRPC stream; longer answers are cut into several. 0 is no limit.
    pub max_grpc_streaming_packet_size: usize,
    /// How long a query over gRPC runs before parts of its answer are told. What is answered sooner is one message.
    #[serde(with = "go_duration")]
    pub stream_first_after: Duration,
    /// Shortest time between two such parts.
    #[serde(with = "go_duration")]
    pub stream_interval: Duration,
    /// Leaves out of answers what Tempo would have lost or hidden, so that the two can be compared answer by answer.
    pub tempo_parity: bool,
    /// Regular expressions; a request whose URL one of them matches is refused.
    pub url_deny_list: Vec<String>,
    /// Search and attribute names and values.
    pub search: SearchSettings,
    /// TraceQL metrics.
    pub metrics: MetricsSettings,
    /// Tools for language models.
    pub mcp_server: McpSettings,
}

impl Default for FrontendSettings {
    fn default() -> Self {
        Self {
            max_outstanding_per_tenant: 2000,
            max_concurrent_queries: 20,
            max_memory_bytes: 0,
            max_query_expression_size_bytes: 131_072,
            api_timeout: Duration::ZERO,
            query_end_cutoff: Duration::ZERO,
            multi_tenant_queries_enabled: true,
            stream_over_http_enabled: true,
            max_grpc_streaming_packet_size: 1 << 20,
            stream_first_after: Duration::from_millis(50),
            stream_interval: Duration::from_millis(250),
            tempo_parity: false,
            url_deny_list: Vec::new(),
            search: SearchSettings::default(),
            metrics: MetricsSettings::default(),
            mcp_server: McpSettings::default(),
        }
    }
}

impl FrontendSettings {
    /// Checks values that would make every query fail. Errors: `Invalid`, with the key's name.
    pub fn validate(&self) -> Result<()> {
        let search = &self.search;
        if self.max_concurrent_queries == 0 {
            return Err(Error::invalid("query_frontend.max_concurrent_queries must be at least 1"));
        }
        if (1..MEMORY_BYTES_MIN).contains(&self.max_memory_bytes) {
            return Err(Error::invalid(format!(
                "query_frontend.max_memory_bytes must be at least {MEMORY_BYTES_MIN}, which one row group takes, or 0 for half of the memory"
            )));
        }
        if search.default_result_limit == 0 {
            return Err(Error::invalid("query_frontend.search.default_result_limit must be at least 1"));
        }
        if search.max_result_limit > 0 && search.default_result_limit > search.max_result_limit {
            return Err(Error::invalid("query_frontend.search.default_result_limit is above query_frontend.search.max_result_limit"));
        }
        if search.default_spans_per_span_set == 0 {
            return Err(Error::invalid("query_frontend.search.default_spans_per_span_set must be at least 1"));
        }
        if self.metrics.max_exemplars > EXEMPLARS_MAX {
            return Err(Error::invalid(format!("query_frontend.metrics.max_exemplars must be at most {EXEMPLARS_MAX}")));
        }
        Ok(())
    }
}

/// The `query_frontend.search` section.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SearchSettings {
    /// Traces in an answer when the request names no limit.
    pub default_result_limit: u32,
    /// Most traces that a request may ask for; 0 is no limit.
    pub max_result_limit: u32,
    /// Longest window; 0 switches the limit off.
    #[serde(with = "go_duration")]
    pub max_duration: Duration,
    /// Length of the window when the request names none.
    #[serde(with = "go_duration")]
    pub query_backend_after: Duration,
    /// Spans in a spanset when the request names no number.
    pub default_spans_per_span_set: u32,
    /// Most spans per spanset that a request may ask for; 0 is no limit.
    pub max_spans_per_span_set: u32,
}

impl Default for SearchSettings {
    fn default() -> Self {
        Self {
            default_result_limit: 20,
            max_result_limit: 262_144,
            max_duration: Duration::from_secs(168 * 3600),
            query_backend_after: Duration::from_secs(15 * 60),
            default_spans_per_span_set: 3,
            max_spans_per_span_set: 100,
        }
    }
}

/// The `query_frontend.metrics` section.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsSettings {
    /// Longest window; 0 switches the limit off.
    #[serde(with = "go_duration")]
    pub max_duration: Duration,
    /// Most steps in a window; 0 is no limit.
    pub max_intervals: u64,
    /// Most series of an answer; 0 is no limit.
    pub max_response_series: u32,
    /// Memory for the partial series of row groups, which later queries of the same shape take over; 0 keeps none. Not a key of Tempo.
    pub partial_cache_bytes: u64,
    /// Most exemplars of an answer, and how many there are when the request names no number; 0 switches them off.
    pub max_exemplars: u32,
    /// The attribute of spans or resources that tells how they were sampled, for `with(extrapolate=true)`: a probability up to 1, or a
    /// weight from 1 on. A tracestate with `ot=th` goes first. Empty is none.
    pub sampling_attribute: String,
}

/// Most exemplars that can be asked for.
const EXEMPLARS_MAX: u32 = 10_000;

impl Default for MetricsSettings {
    fn default() -> Self {
        Self {
            max_duration: Duration::from_secs(24 * 3600),
            max_intervals: 10_000,
            max_response_series: 0,
            partial_cache_bytes: 128 << 20,
            max_exemplars: 100,
            sampling_attribute: String::new(),
        }
    }
}

/// The `query_frontend.mcp_server` section.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct McpSettings {
    /// Serves `/api/mcp`.
    pub enabled: bool,
}

/// What one tenant's queries may cost; 0 is no limit. Keys of Tempo's overrides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueryLimits {
    /// `max_bytes_per_trace`: size of a trace as protobuf. Tempo's default is 5,000,000; here it is off.
    pub max_bytes_per_trace: usize,
    /// `max_bytes_per_tag_values_query`: bytes of names or values in an answer, cut silently.
    pub max_bytes_per_tag_values_query: usize,
    /// `max_condition_groups_per_tag_query`: groups of conditions, joined by `||`, in a filter of names or values.
    pub max_condition_groups_per_tag_query: usize,
    /// `max_search_duration`: replaces `search.max_duration` when it is not 0.
    pub max_search_duration: Duration,
    /// `max_metrics_duration`: replaces `metrics.max_duration` when it is not 0.
    pub max_metrics_duration: Duration,
    /// `left_pad_trace_ids`: ids in search answers have 32 digits.
    pub left_pad_trace_ids: bool,
}

impl Default for QueryLimits {
    fn default() -> Self {
        Self {
            max_bytes_per_trace: 0,
            max_bytes_per_tag_values_query: 1_000_000,
            max_condition_groups_per_tag_query: 100,
            max_search_duration: Duration::ZERO,
            max_metrics_duration: Duration::ZERO,
            left_pad_trace_ids: false,
        }
    }
}
