//! Answers as Tempo gives them where Tempo's are poorer than what was sent: for comparing the two side by side, answer by answer.
//!
//! What differs is in docs/differences.md, "Results". Nothing else is changed: where Tempo's answer is wrong, Skein's stays right.

use std::sync::Arc;

use async_trait::async_trait;
use skein_engine::{
    error::Result,
    parts::Parts,
    query::{
        MetricsRequest, MetricsResult, QueryService, SearchRequest, SearchResult, TagNames, TagNamesRequest, TagScope, TagValues, TagValuesRequest,
        TraceRequest, TraceResult, Window,
    },
    tenant::TenantId,
};
use skein_proto::tempo::TagValue;

/// Span attributes that Tempo keeps in columns of their own and leaves out of the names of stored blocks, with the only type that such a
/// column takes.
const UNLISTED: [(&str, &str); 8] = [
    ("http.method", "string"),
    ("http.request.method", "string"),
    ("http.response.status_code", "int"),
    ("http.status_code", "int"),
    ("http.url", "string"),
    ("server.address", "string"),
    ("server.port", "int"),
    ("url.path", "string"),
];

/// The names of statuses and kinds, each at the number that Tempo answers for it.
const STATUSES: [&str; 3] = ["error", "ok", "unset"];
const KINDS: [&str; 6] = ["unspecified", "internal", "client", "server", "producer", "consumer"];

/// A service whose answers are cut down to Tempo's: no flags of spans and links, no names of attributes that Tempo keeps in columns of their
/// own, and numbers for statuses and kinds when their values are asked for without a filter. Names and values are told at the end: which of
/// them stay is not known before.
pub(crate) struct TempoParity(pub(crate) Arc<dyn QueryService>);

impl TempoParity {
    /// The numbers of those of `names` that some span in the window has. Cost: a search for one trace for each name.
    async fn numbers(&self, tenant: &TenantId, field: &str, names: &[&str], window: Option<Window>) -> Result<TagValues> {
        let mut found = TagValues::default();
        for (number, name) in names.iter().enumerate() {
            let request = SearchRequest { query: format!("{{ {field} = {name} }}"), limit: 1, spans_per_spanset: 1, window };
            let result = self.0.search(tenant, request).await?;
            found.stats = found.stats.plus(&result.stats);
            if !result.traces.is_empty() {
                found.values.push(TagValue { r#type: "int".to_owned(), value: number.to_string() });
            }
        }
        Ok(found)
    }

    /// Whether span attribute `key` has values of another type than `kind`. Cost: as its values.
    async fn has_other_types(&self, tenant: &TenantId, key: &str, kind: &str, window: Option<Window>) -> Result<bool> {
        let request = TagValuesRequest { tag: format!("span.{key}"), filter: None, window };
        Ok(self.0.tag_values(tenant, request).await?.values.iter().any(|value| value.r#type != kind))
    }
}

#[async_trait]
impl QueryService for TempoParity {
    async fn trace_by_id(&self, tenant: &TenantId, request: TraceRequest) -> Result<TraceResult> {
        let mut result = self.0.trace_by_id(tenant, request).await?;
        let spans = result.resource_spans.iter_mut().flat_map(|resource| &mut resource.scope_spans).flat_map(|scope| &mut scope.spans);
        for span in spans {
            span.flags = 0;
            span.links.iter_mut().for_each(|link| link.flags = 0);
        }
        Ok(result)
    }

    async fn search(&self, tenant: &TenantId, request: SearchRequest) -> Result<SearchResult> {
        self.0.search(tenant, request).await
    }

    async fn explain_search(&self, tenant: &TenantId, request: SearchRequest, analyze: bool) -> Result<String> {
        self.0.explain_search(tenant, request, analyze).await
    }

    async fn metrics(&self, tenant: &TenantId, request: MetricsRequest) -> Result<MetricsResult> {
        self.0.metrics(tenant, request).await
    }

    async fn tag_names(&self, tenant: &TenantId, request: TagNamesRequest) -> Result<TagNames> {
        let window = request.window;
        let mut names = self.0.tag_names(tenant, request).await?;
        for (_, names) in names.scopes.iter_mut().filter(|(scope, _)| *scope == TagScope::Span) {
            for (key, kind) in UNLISTED {
                if names.iter().any(|name| name == key) && !self.has_other_types(tenant, key, kind, window).await? {
                    names.retain(|name| name != key);
                }
            }
        }
        names.scopes.retain(|(_, names)| !names.is_empty());
        Ok(names)
    }

    async fn tag_values(&self, tenant: &TenantId, request: TagValuesRequest) -> Result<TagValues> {
        match request.tag.as_str() {
            field @ ("status" | "span:status") if request.filter.is_none() => self.numbers(tenant, field, &STATUSES, request.window).await,
            field @ ("kind" | "span:kind") if request.filter.is_none() => self.numbers(tenant, field, &KINDS, request.window).await,
            _ => self.0.tag_values(tenant, request).await,
        }
    }

    async fn search_in_parts(&self, tenant: &TenantId, request: SearchRequest, parts: Parts<SearchResult>) -> Result<SearchResult> {
        self.0.search_in_parts(tenant, request, parts).await
    }

    async fn metrics_in_parts(&self, tenant: &TenantId, request: MetricsRequest, parts: Parts<MetricsResult>) -> Result<MetricsResult> {
        self.0.metrics_in_parts(tenant, request, parts).await
    }
}
