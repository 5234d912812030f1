//! `tempopb.StreamingQuerier` (query-api 7) over the same questions as HTTP, and Arrow Flight beside it.
//!
//! A query that takes longer sends what it is certain of, and then the whole answer. When the client does not take messages, one part waits for it
//! and the next for its place, and behind that the query. A client that leaves drops all of it.

mod flight;

use std::{sync::Arc, time::Duration, vec};

use axum::Router;
use futures::{
    FutureExt, StreamExt,
    stream::{self, BoxStream},
};
use skein_engine::{
    error::{Error, Result},
    query::{ScanStats, TagValues},
};
use skein_flight::status::client_status;
use skein_proto::tempo::{
    QueryInstantRequest, QueryInstantResponse, QueryRangeRequest, QueryRangeResponse, SearchRequest, SearchResponse, SearchTagValuesRequest,
    SearchTagValuesResponse, SearchTagValuesV2Response, SearchTagsRequest, SearchTagsResponse, SearchTagsV2Response,
    streaming_querier_server::{StreamingQuerier, StreamingQuerierServer},
};
use tokio::{sync::mpsc, task::JoinSet};
use tonic::{Request, Response, Status, metadata::MetadataMap, server::NamedService};

use crate::{
    Frontend, TENANT_HEADER,
    asks::{NamesAsk, SearchAsk, Times, ValuesAsk},
    listening::Progress,
    merge,
    metrics_asks::MetricsAsk,
    packets::{Packets, packets},
    tenancy::Tenants,
};

/// Longest message in either direction: query-api 1.1.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// The gRPC services of the frontend: the streaming querier, Arrow Flight, and the standard health service, which says `SERVING`.
pub fn routes(frontend: Arc<Frontend>) -> Router {
    let (health, health_service) = tonic_health::server::health_reporter();
    let flight = skein_flight::sql::server(Arc::new(flight::Backend(frontend.clone())), frontend.flight.clone());
    let querier =
        StreamingQuerierServer::new(Querier(frontend)).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX);
    // Nobody else holds the reporter's lock yet, so this is done at once.
    let _ = health.set_serving::<StreamingQuerierServer<Querier>>().now_or_never();
    Router::new()
        .route_service(&path_of(&querier), querier)
        .route_service(&path_of(&flight), flight)
        .route_service(&path_of(&health_service), health_service)
        .fallback(async || Status::unimplemented("unknown service").into_http::<axum::body::Body>())
}

fn path_of<S: NamedService>(_: &S) -> String {
    format!("/{}/{{*method}}", S::NAME)
}

/// The service over a [`Frontend`].
struct Querier(Arc<Frontend>);

/// The messages of an answer.
type Messages<T> = BoxStream<'static, Result<T, Status>>;
type Answer<T> = Result<Response<Messages<T>>, Status>;

impl Querier {
    /// Finds the tenants, asks, counts, and maps the error. `ask` is given where parts of the answer go, and gives the whole.
    async fn answer<T, F>(
        &self,
        method: &'static str,
        metadata: &MetadataMap,
        ask: impl FnOnce(Arc<Frontend>, Tenants, mpsc::Sender<T>) -> F,
    ) -> Answer<T>
    where
        T: Packets,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (client, parts) = mpsc::channel(1);
        let asked = self.tenants(metadata).map(|tenants| ask(self.0.clone(), tenants, client));
        let frontend = self.0.clone();
        let packet_bytes = frontend.settings.max_grpc_streaming_packet_size;
        let work = async move {
            let timer = frontend.metrics.request("gRPC", &format!("/tempopb.StreamingQuerier/{method}"));
            let answer = within(frontend.settings.api_timeout, async { asked?.await }).await;
            timer.answered(if answer.is_ok() { "success" } else { "error" }, None, None);
            answer
        };
        let mut messages = Speaking::start(work, parts, packet_bytes).messages();
        // An error that comes before everything else is the answer, without a stream.
        let first = messages.next().await.transpose()?;
        Ok(Response::new(stream::iter(first.map(Ok)).chain(messages).boxed()))
    }

    fn tenants(&self, metadata: &MetadataMap) -> Result<Tenants> {
        let mut values = metadata.get_all(TENANT_HEADER).iter().map(|value| String::from_utf8_lossy(value.as_encoded_bytes()).into_owned());
        let header = values.next();
        // Tempo takes the key only when it occurs once.
        self.0.tenants(header.filter(|_| values.next().is_none()).as_deref())
    }
}

/// The answer to `asked`, or `DEADLINE_EXCEEDED` when it takes longer than `limit`; zero is no limit.
async fn within<T>(limit: Duration, asked: impl Future<Output = Result<T>>) -> Result<T, Status> {
    if limit.is_zero() {
        return asked.await.map_err(|error| client_status(&error));
    }
    match tokio::time::timeout(limit, asked).await {
        Ok(answer) => answer.map_err(|error| client_status(&error)),
        Err(_) => Err(Status::deadline_exceeded("unable to process request in the configured timeout")),
    }
}

/// Parts, and the task that ends with the whole. Dropping it ends it.
type Running<T> = (mpsc::Receiver<T>, JoinSet<Result<T, Status>>);

/// An answer being told.
struct Speaking<T> {
    /// Packets that are next.
    ready: vec::IntoIter<T>,
    /// None after the whole.
    running: Option<Running<T>>,
    packet_bytes: usize,
}

impl<T: Packets> Speaking<T> {
    /// Starts `work` in a task of its own, so that its time limit holds for a client that takes no messages too.
    fn start(work: impl Future<Output = Result<T, Status>> + Send + 'static, parts: mpsc::Receiver<T>, packet_bytes: usize) -> Self {
        let mut task = JoinSet::new();
        task.spawn(work);
        Self { ready: Vec::new().into_iter(), running: Some((parts, task)), packet_bytes }
    }

    fn messages(self) -> Messages<T> {
        stream::unfold(self, |mut speaking| async move { speaking.next().await.map(|message| (message, speaking)) }).boxed()
    }

    async fn next(&mut self) -> Option<Result<T, Status>> {
        loop {
            if let Some(packet) = self.ready.next() {
                return Some(Ok(packet));
            }
            let (parts, task) = self.running.as_mut()?;
            tokio::select! {
                biased;
                Some(part) = parts.recv() => self.ready = packets(part, self.packet_bytes).into_iter(),
                // A part that came with the end is in it.
                whole = task.join_next() => {
                    self.running = None;
                    match whole {
                        Some(Ok(Ok(whole))) => self.ready = packets(whole, self.packet_bytes).into_iter(),
                        Some(Ok(Err(status))) => return Some(Err(status)),
                        Some(Err(error)) => return Some(Err(client_status(&Error::internal("answering a gRPC request").with_source(error)))),
                        None => return None,
                    }
                }
            }
        }
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
    type SearchStream = Messages<SearchResponse>;
    type SearchTagsStream = Messages<SearchTagsResponse>;
    type SearchTagsV2Stream = Messages<SearchTagsV2Response>;
    type SearchTagValuesStream = Messages<SearchTagValuesResponse>;
    type SearchTagValuesV2Stream = Messages<SearchTagValuesV2Response>;
    type MetricsQueryRangeStream = Messages<QueryRangeResponse>;
    type MetricsQueryInstantStream = Messages<QueryInstantResponse>;

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
        let asking = |frontend: Arc<Frontend>, tenants: Tenants, client| async move { frontend.search_telling(&tenants, ask, Some(client)).await };
        self.answer("Search", &metadata, asking).await
    }

    /// Reads no spans: there is nothing to tell before the end.
    async fn search_tags(&self, request: Request<SearchTagsRequest>) -> Answer<SearchTagsResponse> {
        let (metadata, _, request) = request.into_parts();
        let asking = |frontend: Arc<Frontend>, tenants: Tenants, _| async move { frontend.flat_tag_names(&tenants, names_ask(request)).await };
        self.answer("SearchTags", &metadata, asking).await
    }

    async fn search_tags_v2(&self, request: Request<SearchTagsRequest>) -> Answer<SearchTagsV2Response> {
        let (metadata, _, request) = request.into_parts();
        let asking = |frontend: Arc<Frontend>, tenants: Tenants, client| async move {
            frontend.tag_names_telling(&tenants, names_ask(request), Some(client)).await
        };
        self.answer("SearchTagsV2", &metadata, asking).await
    }

    async fn search_tag_values(&self, request: Request<SearchTagValuesRequest>) -> Answer<SearchTagValuesResponse> {
        let (metadata, _, request) = request.into_parts();
        let part = |found: TagValues, progress: Progress| {
            let mut tag_values: Vec<String> = found.values.into_iter().map(|value| value.value).collect();
            tag_values.sort_unstable();
            tag_values.dedup();
            SearchTagValuesResponse { tag_values, metrics: Some(merge::stats::metadata_metrics(&progress.stats)) }
        };
        let asking = move |frontend: Arc<Frontend>, tenants: Tenants, client| async move {
            let listening = frontend.listening(&tenants, client, part);
            frontend.flat_tag_values_telling(&tenants, values_ask(request), Some(listening)).await
        };
        self.answer("SearchTagValues", &metadata, asking).await
    }

    async fn search_tag_values_v2(&self, request: Request<SearchTagValuesRequest>) -> Answer<SearchTagValuesV2Response> {
        let (metadata, _, request) = request.into_parts();
        let message = |found: TagValues, stats: ScanStats| SearchTagValuesV2Response {
            tag_values: found.values,
            metrics: Some(merge::stats::metadata_metrics(&stats)),
        };
        let asking = move |frontend: Arc<Frontend>, tenants: Tenants, client| async move {
            let listening = frontend.listening(&tenants, client, move |found, progress: Progress| message(found, progress.stats));
            let values = frontend.tag_values_telling(&tenants, values_ask(request), Some(listening)).await?;
            let stats = values.stats;
            Ok(message(values, stats))
        };
        self.answer("SearchTagValuesV2", &metadata, asking).await
    }

    async fn metrics_query_range(&self, request: Request<QueryRangeRequest>) -> Answer<QueryRangeResponse> {
        let (metadata, _, request) = request.into_parts();
        let QueryRangeRequest { query, start, end, step, max_series, exemplars, .. } = request;
        let ask = MetricsAsk { query, start, end, step: (step > 0).then_some(step), max_series, exemplars };
        let asking =
            |frontend: Arc<Frontend>, tenants: Tenants, client| async move { frontend.query_range_telling(&tenants, ask, Some(client)).await };
        self.answer("MetricsQueryRange", &metadata, asking).await
    }

    async fn metrics_query_instant(&self, request: Request<QueryInstantRequest>) -> Answer<QueryInstantResponse> {
        let (metadata, _, request) = request.into_parts();
        let QueryInstantRequest { query, start, end } = request;
        let ask = MetricsAsk { query, start, end, step: None, max_series: 0, exemplars: 0 };
        let asking =
            |frontend: Arc<Frontend>, tenants: Tenants, client| async move { frontend.query_instant_telling(&tenants, ask, Some(client)).await };
        self.answer("MetricsQueryInstant", &metadata, asking).await
    }
}

fn names_ask(request: SearchTagsRequest) -> NamesAsk {
    NamesAsk { scope: request.scope, filter: some(request.query), times: times(request.start, request.end), limit: request.max_tags_per_scope }
}

fn values_ask(request: SearchTagValuesRequest) -> ValuesAsk {
    ValuesAsk { tag: request.tag_name, filter: some(request.query), times: times(request.start, request.end), limit: request.max_tag_values }
}

#[cfg(test)]
mod tests;
