//! `tempopb.StreamingQuerier` (query-api 7) over the same questions as HTTP. A query sends one message, which is complete.

use std::sync::Arc;

use axum::Router;
use futures::{FutureExt, future, stream};
use skein_engine::error::{Error, ErrorKind, Result};
use skein_flight::status::to_status;
use skein_proto::tempo::{
    QueryInstantRequest, QueryInstantResponse, QueryRangeRequest, QueryRangeResponse, SearchRequest, SearchResponse, SearchTagValuesRequest,
    SearchTagValuesResponse, SearchTagValuesV2Response, SearchTagsRequest, SearchTagsResponse, SearchTagsV2Response,
    streaming_querier_server::{StreamingQuerier, StreamingQuerierServer},
};
use tonic::{Request, Response, Status, metadata::MetadataMap, server::NamedService};

use crate::{
    Frontend, TENANT_HEADER,
    asks::{NamesAsk, SearchAsk, Times, ValuesAsk},
    merge,
    metrics_asks::MetricsAsk,
    tenancy::Tenants,
};

/// Longest message in either direction: query-api 1.1.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// The gRPC services of the frontend: the streaming querier and the standard health service, which says `SERVING`.
pub fn routes(frontend: Arc<Frontend>) -> Router {
    let (health, health_service) = tonic_health::server::health_reporter();
    let querier =
        StreamingQuerierServer::new(Querier(frontend)).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX);
    // Nobody else holds the reporter's lock yet, so this is done at once.
    let _ = health.set_serving::<StreamingQuerierServer<Querier>>().now_or_never();
    Router::new()
        .route_service(&path_of(&querier), querier)
        .route_service(&path_of(&health_service), health_service)
        .fallback(async || Status::unimplemented("unknown service").into_http::<axum::body::Body>())
}

fn path_of<S: NamedService>(_: &S) -> String {
    format!("/{}/{{*method}}", S::NAME)
}

/// The service over a [`Frontend`].
struct Querier(Arc<Frontend>);

/// One message and then the end.
type Once<T> = stream::Once<future::Ready<Result<T, Status>>>;
type Answer<T> = Result<Response<Once<T>>, Status>;

impl Querier {
    /// Finds the tenants, asks, counts, and maps the error.
    async fn answer<T, F: Future<Output = Result<T>>>(&self, method: &str, metadata: &MetadataMap, ask: impl FnOnce(Tenants) -> F) -> Answer<T> {
        let timer = self.0.metrics.request("gRPC", &format!("/tempopb.StreamingQuerier/{method}"));
        let asked = async { ask(self.tenants(metadata)?).await };
        let limit = self.0.settings.api_timeout;
        let answer = if limit.is_zero() {
            asked.await.map_err(client_status)
        } else {
            match tokio::time::timeout(limit, asked).await {
                Ok(answer) => answer.map_err(client_status),
                Err(_) => Err(Status::deadline_exceeded("unable to process request in the configured timeout")),
            }
        };
        timer.answered(if answer.is_ok() { "success" } else { "error" }, None, None);
        answer.map(|message| Response::new(stream::once(future::ready(Ok(message)))))
    }

    fn tenants(&self, metadata: &MetadataMap) -> Result<Tenants> {
        let mut values = metadata.get_all(TENANT_HEADER).iter().map(|value| String::from_utf8_lossy(value.as_encoded_bytes()).into_owned());
        let header = values.next();
        // Tempo takes the key only when it occurs once.
        self.0.tenants(header.filter(|_| values.next().is_none()).as_deref())
    }
}

/// The status that a client sees: as between our own processes, but without the text of an `Internal` error.
fn client_status(error: Error) -> Status {
    match error.kind() {
        ErrorKind::Internal => {
            tracing::error!(%error, "gRPC request failed");
            Status::internal("internal error")
        }
        ErrorKind::Denied if error.message() == "no org id" => Status::unauthenticated(error.message()),
        _ => to_status(&error),
    }
}

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn times(start: u32, end: u32) -> Times {
    Times { start, end, since: None }
}

#[tonic::async_trait]
impl StreamingQuerier for Querier {
    type SearchStream = Once<SearchResponse>;
    type SearchTagsStream = Once<SearchTagsResponse>;
    type SearchTagsV2Stream = Once<SearchTagsV2Response>;
    type SearchTagValuesStream = Once<SearchTagValuesResponse>;
    type SearchTagValuesV2Stream = Once<SearchTagValuesV2Response>;
    type MetricsQueryRangeStream = Once<QueryRangeResponse>;
    type MetricsQueryInstantStream = Once<QueryInstantResponse>;

    async fn search(&self, request: Request<SearchRequest>) -> Answer<SearchResponse> {
        let (metadata, _, request) = request.into_parts();
        let ask = SearchAsk {
            query: request.query,
            tags: request.tags.into_iter().collect(),
            min_duration_ms: request.min_duration_ms,
            max_duration_ms: request.max_duration_ms,
            limit: request.limit,
            spans_per_span_set: request.spans_per_span_set,
            times: times(request.start, request.end),
        };
        self.answer("Search", &metadata, |tenants| async move { self.0.search(&tenants, ask).await }).await
    }

    async fn search_tags(&self, request: Request<SearchTagsRequest>) -> Answer<SearchTagsResponse> {
        let (metadata, _, request) = request.into_parts();
        self.answer("SearchTags", &metadata, |tenants| async move { self.0.flat_tag_names(&tenants, names_ask(request)).await }).await
    }

    async fn search_tags_v2(&self, request: Request<SearchTagsRequest>) -> Answer<SearchTagsV2Response> {
        let (metadata, _, request) = request.into_parts();
        self.answer("SearchTagsV2", &metadata, |tenants| async move { self.0.tag_names(&tenants, names_ask(request)).await }).await
    }

    async fn search_tag_values(&self, request: Request<SearchTagValuesRequest>) -> Answer<SearchTagValuesResponse> {
        let (metadata, _, request) = request.into_parts();
        self.answer("SearchTagValues", &metadata, |tenants| async move { self.0.flat_tag_values(&tenants, values_ask(request)).await }).await
    }

    async fn search_tag_values_v2(&self, request: Request<SearchTagValuesRequest>) -> Answer<SearchTagValuesV2Response> {
        let (metadata, _, request) = request.into_parts();
        let ask = |tenants: Tenants| async move {
            let values = self.0.tag_values(&tenants, values_ask(request)).await?;
            Ok(SearchTagValuesV2Response { tag_values: values.values, metrics: Some(merge::stats::metadata_metrics(&values.stats)) })
        };
        self.answer("SearchTagValuesV2", &metadata, ask).await
    }

    async fn metrics_query_range(&self, request: Request<QueryRangeRequest>) -> Answer<QueryRangeResponse> {
        let (metadata, _, request) = request.into_parts();
        let QueryRangeRequest { query, start, end, step, max_series, exemplars, .. } = request;
        let ask = MetricsAsk { query, start, end, step: (step > 0).then_some(step), max_series, exemplars };
        self.answer("MetricsQueryRange", &metadata, |tenants| async move { self.0.query_range(&tenants, ask).await }).await
    }

    async fn metrics_query_instant(&self, request: Request<QueryInstantRequest>) -> Answer<QueryInstantResponse> {
        let (metadata, _, request) = request.into_parts();
        let QueryInstantRequest { query, start, end } = request;
        let ask = MetricsAsk { query, start, end, step: None, max_series: 0, exemplars: 0 };
        self.answer("MetricsQueryInstant", &metadata, |tenants| async move { self.0.query_instant(&tenants, ask).await }).await
    }
}

fn names_ask(request: SearchTagsRequest) -> NamesAsk {
    NamesAsk { scope: request.scope, filter: some(request.query), times: times(request.start, request.end), limit: request.max_tags_per_scope }
}

fn values_ask(request: SearchTagValuesRequest) -> ValuesAsk {
    ValuesAsk { tag: request.tag_name, filter: some(request.query), times: times(request.start, request.end), limit: request.max_tag_values }
}
