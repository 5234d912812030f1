//! Questions as HTTP and gRPC both ask them: checks, defaults, the queue, one query for each tenant, the joined answer.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use skein_engine::{
    error::{Error, ErrorKind, Result},
    parts::Pace,
    query::{ScanStats, SearchRequest, TagNames, TagNamesRequest, TagScope, TagValues, TagValuesRequest, TraceRequest, TraceResult, Window},
    tenant::TenantId,
    traceql,
};
use skein_proto::tempo;
use tokio::sync::mpsc;

use crate::{
    Frontend,
    listening::{Found, Listening, Progress},
    logfmt, merge,
    queue::Turn,
    settings::QueryLimits,
    tenancy::Tenants,
    window::search_window,
};

/// Tenants of one request that are asked at the same time.
const TENANTS_AT_ONCE: usize = 8;

/// Names of TraceQL intrinsics, as the tag endpoints list them: query-api 5.2.
pub(crate) const INTRINSICS: [&str; 25] = [
    "duration",
    "event:name",
    "event:timeSinceStart",
    "instrumentation:name",
    "instrumentation:version",
    "kind",
    "link:spanID",
    "link:traceID",
    "name",
    "rootName",
    "rootServiceName",
    "span:duration",
    "span:id",
    "span:kind",
    "span:name",
    "span:parentID",
    "span:status",
    "span:statusMessage",
    "status",
    "statusMessage",
    "trace:duration",
    "trace:id",
    "trace:rootName",
    "trace:rootService",
    "traceDuration",
];

/// A search before its checks. Zeros are values that were not given.
#[derive(Debug, Default)]
pub(crate) struct SearchAsk {
    pub(crate) query: String,
    pub(crate) tags: Vec<(String, String)>,
    pub(crate) min_duration_ms: u32,
    pub(crate) max_duration_ms: u32,
    pub(crate) limit: u32,
    pub(crate) spans_per_span_set: u32,
    pub(crate) times: Times,
}

/// A window before its checks, in Unix seconds; 0 is not given.
#[derive(Debug, Default)]
pub(crate) struct Times {
    pub(crate) start: u32,
    pub(crate) end: u32,
    pub(crate) since: Option<String>,
}

/// A request for attribute names before its checks.
#[derive(Debug, Default)]
pub(crate) struct NamesAsk {
    pub(crate) scope: String,
    pub(crate) filter: Option<String>,
    pub(crate) times: Times,
    /// 0 is no limit.
    pub(crate) limit: u32,
}

/// A request for attribute values before its checks.
#[derive(Debug, Default)]
pub(crate) struct ValuesAsk {
    pub(crate) tag: String,
    pub(crate) filter: Option<String>,
    pub(crate) times: Times,
    /// 0 is no limit.
    pub(crate) limit: u32,
}

impl Frontend {
    /// The tenants that a header names; None is no header. Errors: `Denied` when one is needed and missing; `Invalid`.
    pub(crate) fn tenants(&self, header: Option<&str>) -> Result<Tenants> {
        if !self.multitenancy_enabled {
            return Ok(Tenants::single());
        }
        match header {
            None | Some("") => Err(Error::new(ErrorKind::Denied, "no org id")),
            Some(header) => Tenants::parse(header, self.settings.multi_tenant_queries_enabled),
        }
    }

    /// Errors: `Invalid` when a TraceQL text is longer than is allowed.
    pub(crate) fn check_query_size(&self, query: &str) -> Result<()> {
        let bytes_max = self.settings.max_query_expression_size_bytes;
        if bytes_max > 0 && query.len() > bytes_max {
            return Err(Error::invalid(format!("TraceQL expression exceeds the configured maximum size of {bytes_max} bytes")));
        }
        Ok(())
    }

    /// Checks the lenient filter of a request for names or values. Errors: `Invalid` when it is too long or has too many `||`.
    fn check_filter(&self, tenants: &Tenants, filter: Option<&str>) -> Result<()> {
        let Some(filter) = filter else { return Ok(()) };
        self.check_query_size(filter)?;
        let groups_max = self.strictest(tenants, |limits| limits.max_condition_groups_per_tag_query);
        if groups_max > 0 && traceql::tag_filter(filter).is_some_and(|filter| traceql::condition_groups(&filter) > groups_max) {
            return Err(Error::invalid(format!(
                "maximum condition groups reached (limit: {groups_max}). Reduce the number of OR conditions in the query"
            )));
        }
        Ok(())
    }

    /// The strictest of the tenants' values of a limit; 0 is no limit.
    pub(crate) fn strictest<T: Ord + Default>(&self, tenants: &Tenants, limit: impl Fn(QueryLimits) -> T) -> T {
        let zero = T::default();
        tenants.ids().iter().map(|tenant| limit(self.operations.limits(tenant))).filter(|value| *value != zero).min().unwrap_or_default()
    }

    fn window(&self, tenants: &Tenants, times: &Times) -> Result<Window> {
        let duration_max = self.strictest(tenants, |limits| own_or(limits.max_search_duration, self.settings.search.max_duration));
        search_window(times.start, times.end, times.since.as_deref(), self.clock.now_unix_nano(), &self.settings, duration_max)
    }

    /// Waits for a turn, then asks for each tenant and gives the answers in the order of the tenants.
    pub(crate) async fn for_each_tenant<T, F: Future<Output = Result<T>>>(&self, tenants: &Tenants, ask: impl Fn(TenantId) -> F) -> Result<Vec<T>> {
        let (answers, _turn) = self.for_each_tenant_keeping_turn(tenants, ask).await?;
        Ok(answers)
    }

    /// The same for answers that are large until they are written: the turn goes on until it is dropped.
    async fn for_each_tenant_keeping_turn<T, F: Future<Output = Result<T>>>(
        &self,
        tenants: &Tenants,
        ask: impl Fn(TenantId) -> F,
    ) -> Result<(Vec<T>, Turn)> {
        let turn = self.queue.admit(&tenants.name()).await?;
        let answers = stream::iter(tenants.ids().iter().cloned().map(ask)).buffered(TENANTS_AT_ONCE).try_collect().await?;
        Ok((answers, turn))
    }

    /// What hears the parts of an answer from now on: `message` makes messages of them for `client`.
    pub(crate) fn listening<T: Found, M: Send + 'static>(
        &self,
        tenants: &Tenants,
        client: mpsc::Sender<M>,
        message: impl Fn(T, Progress) -> M + Send + Sync + 'static,
    ) -> Listening<T> {
        let pace = Pace::start(self.settings.stream_first_after, self.settings.stream_interval);
        Listening::new(pace, tenants, client, message)
    }

    /// Runs a search by TraceQL or by tags.
    pub(crate) async fn search(&self, tenants: &Tenants, ask: SearchAsk) -> Result<tempo::SearchResponse> {
        self.search_telling(tenants, ask, None).await
    }

    /// The same, with parts of the answer for `client`.
    pub(crate) async fn search_telling(
        &self,
        tenants: &Tenants,
        ask: SearchAsk,
        client: Option<mpsc::Sender<tempo::SearchResponse>>,
    ) -> Result<tempo::SearchResponse> {
        let shown = ShownTraces {
            by_tags: ask.query.is_empty(),
            left_pad: tenants.ids().iter().any(|tenant| self.operations.limits(tenant).left_pad_trace_ids),
        };
        let request = self.search_request(tenants, ask)?;
        let limit = request.limit;
        let part = move |found, progress: Progress| tempo::SearchResponse {
            traces: shown.of(merge::search::merge(vec![found], limit).traces),
            metrics: Some(merge::stats::partial_metrics(&progress)),
        };
        let listening = client.map(|client| self.listening(tenants, client, part));
        let results = self
            .for_each_tenant(tenants, |tenant| {
                let (request, parts) = (request.clone(), listening.as_ref().map(|listening| listening.parts_of(&tenant)));
                async move {
                    match parts {
                        Some(parts) => self.queries.search_in_parts(&tenant, request, parts).await,
                        None => self.queries.search(&tenant, request).await,
                    }
                }
            })
            .await
            .map_err(as_search_error)?;
        let result = merge::search::merge(results, limit);
        Ok(tempo::SearchResponse { traces: shown.of(result.traces), metrics: Some(merge::stats::search_metrics(&result.stats)) })
    }

    /// Shows the plan of a search, for each tenant; with `analyze` after running it.
    pub(crate) async fn explain_search(&self, tenants: &Tenants, ask: SearchAsk, analyze: bool) -> Result<String> {
        let request = self.search_request(tenants, ask)?;
        let explained = self
            .for_each_tenant(tenants, |tenant| {
                let request = request.clone();
                async move { self.queries.explain_search(&tenant, request, analyze).await }
            })
            .await
            .map_err(as_search_error)?;
        Ok(explained.concat())
    }

    /// What a search asks of the engine. Errors: `Invalid` for anything beyond the limits, and for a query that does not parse.
    fn search_request(&self, tenants: &Tenants, ask: SearchAsk) -> Result<SearchRequest> {
        let settings = &self.settings.search;
        self.check_query_size(&ask.query)?;
        if !ask.query.is_empty() && !ask.tags.is_empty() {
            return Err(Error::invalid("invalid request: can't specify tags and q in the same query"));
        }
        let limit = if ask.limit == 0 { settings.default_result_limit } else { ask.limit };
        if settings.max_result_limit > 0 && limit > settings.max_result_limit {
            return Err(Error::invalid(format!("limit {limit} exceeds max limit {}", settings.max_result_limit)));
        }
        let spans_max = settings.max_spans_per_span_set;
        let spans = if ask.spans_per_span_set == 0 { settings.default_spans_per_span_set } else { ask.spans_per_span_set };
        if spans_max > 0 && spans > spans_max {
            return Err(Error::invalid(format!("spans per span set exceeds {spans_max}. received {spans}")));
        }
        let window = self.window(tenants, &ask.times)?;

        let by_tags = ask.query.is_empty();
        let query = if by_tags {
            let tags = ask.tags.iter().map(|(key, value)| (key.as_str(), value.as_str()));
            logfmt::to_traceql(tags, ask.min_duration_ms, ask.max_duration_ms)
        } else {
            traceql::parse(&ask.query).map_err(as_search_error)?;
            ask.query
        };
        Ok(SearchRequest { query, limit: limit as usize, spans_per_spanset: if by_tags { 1 } else { spans as usize }, window: Some(window) })
    }

    /// Finds a trace; empty when no tenant has it. The turn is to be kept until the answer is written, or begins to be sent;
    /// the memory in it until it is sent.
    pub(crate) async fn trace(&self, tenants: &Tenants, request: TraceRequest) -> Result<(TraceResult, Turn)> {
        let ask = |tenant: TenantId| {
            let request = request.clone();
            async move { self.queries.trace_by_id(&tenant, request).await }
        };
        let (results, turn) = self.for_each_tenant_keeping_turn(tenants, ask).await?;
        Ok((merge::trace::merge(results), turn))
    }

    /// Finds two traces in one turn: who holds one turn and waits for another could wait for ever.
    pub(crate) async fn two_traces(&self, tenants: &Tenants, requests: [TraceRequest; 2]) -> Result<([TraceResult; 2], Turn)> {
        let ask = |tenant: TenantId| {
            let [first, second] = requests.clone();
            async move { futures::try_join!(self.queries.trace_by_id(&tenant, first), self.queries.trace_by_id(&tenant, second)) }
        };
        let (results, turn) = self.for_each_tenant_keeping_turn(tenants, ask).await?;
        let (first, second) = results.into_iter().unzip();
        Ok(([merge::trace::merge(first), merge::trace::merge(second)], turn))
    }

    /// Lists attribute names by scope; the intrinsics, when asked for, come last and are not limited.
    pub(crate) async fn tag_names(&self, tenants: &Tenants, ask: NamesAsk) -> Result<tempo::SearchTagsV2Response> {
        self.tag_names_telling(tenants, ask, None).await
    }

    /// The same, with parts of the answer for `client`.
    pub(crate) async fn tag_names_telling(
        &self,
        tenants: &Tenants,
        ask: NamesAsk,
        client: Option<mpsc::Sender<tempo::SearchTagsV2Response>>,
    ) -> Result<tempo::SearchTagsV2Response> {
        self.check_filter(tenants, ask.filter.as_deref())?;
        let (attributes, intrinsics, scope) = match ask.scope.as_str() {
            "" | "none" => (true, true, None),
            "intrinsic" => (false, true, None),
            "trace" => (false, false, None),
            name => match TAG_SCOPES.iter().find(|(_, known)| *known == name) {
                Some((scope, _)) => (true, false, Some(*scope)),
                None => return Err(Error::invalid(format!("invalid scope: {name}"))),
            },
        };
        let window = self.window(tenants, &ask.times)?;
        let mut answer = tempo::SearchTagsV2Response { scopes: Vec::new(), metrics: Some(tempo::MetadataMetrics::default()) };
        if attributes {
            let request = TagNamesRequest { scope, filter: ask.filter, window: Some(window) };
            let (limit, bytes_max) = (ask.limit as usize, self.tag_bytes_max(tenants));
            let part = move |names, progress: Progress| names_message(names, &progress.stats, limit, bytes_max);
            let listening = client.map(|client| self.listening(tenants, client, part));
            let results = self
                .for_each_tenant(tenants, |tenant| {
                    let (request, parts) = (request.clone(), listening.as_ref().map(|listening| listening.parts_of(&tenant)));
                    async move {
                        match parts {
                            Some(parts) => self.queries.tag_names_in_parts(&tenant, request, parts).await,
                            None => self.queries.tag_names(&tenant, request).await,
                        }
                    }
                })
                .await?;
            let names = merge::tags::names(results);
            let stats = names.stats;
            answer = names_message(names, &stats, limit, bytes_max);
        }
        if intrinsics {
            answer.scopes.push(tempo::SearchTagsV2Scope { name: "intrinsic".into(), tags: INTRINSICS.iter().map(|name| name.to_string()).collect() });
        }
        Ok(answer)
    }

    /// Lists attribute names of all scopes together, sorted. Intrinsics only when their scope is asked for.
    pub(crate) async fn flat_tag_names(&self, tenants: &Tenants, ask: NamesAsk) -> Result<tempo::SearchTagsResponse> {
        let limit = ask.limit as usize;
        let intrinsics = ask.scope == "intrinsic";
        let answer = self.tag_names(tenants, NamesAsk { filter: None, limit: 0, ..ask }).await?;
        let mut names: Vec<String> =
            answer.scopes.into_iter().filter(|scope| intrinsics || scope.name != "intrinsic").flat_map(|scope| scope.tags).collect();
        names.sort_unstable();
        names.dedup();
        if limit > 0 {
            names.truncate(limit);
        }
        Ok(tempo::SearchTagsResponse { tag_names: names, metrics: answer.metrics })
    }

    /// Lists the typed values of an attribute or intrinsic, with what it cost.
    pub(crate) async fn tag_values(&self, tenants: &Tenants, ask: ValuesAsk) -> Result<TagValues> {
        self.tag_values_telling(tenants, ask, None).await
    }

    /// The same, with parts of the answer for who is listening.
    pub(crate) async fn tag_values_telling(&self, tenants: &Tenants, ask: ValuesAsk, listening: Option<Listening<TagValues>>) -> Result<TagValues> {
        if ask.tag.is_empty() {
            return Err(Error::invalid("please provide a non-empty tagName"));
        }
        traceql::parse_identifier(&ask.tag).map_err(|e| e.context("please provide a valid tagName"))?;
        self.check_filter(tenants, ask.filter.as_deref())?;
        let window = self.window(tenants, &ask.times)?;
        let request = TagValuesRequest { tag: ask.tag, filter: ask.filter, window: Some(window) };
        let results = self
            .for_each_tenant(tenants, |tenant| {
                let (request, parts) = (request.clone(), listening.as_ref().map(|listening| listening.parts_of(&tenant)));
                async move {
                    match parts {
                        Some(parts) => self.queries.tag_values_in_parts(&tenant, request, parts).await,
                        None => self.queries.tag_values(&tenant, request).await,
                    }
                }
            })
            .await?;
        let mut values = merge::tags::values(results);
        let mut bytes_left = self.tag_bytes_max(tenants);
        merge::tags::cut(&mut values.values, ask.limit as usize, &mut bytes_left, |value| value.value.len());
        Ok(values)
    }

    /// Lists the values of an attribute that is named without its scope, as text, sorted.
    pub(crate) async fn flat_tag_values(&self, tenants: &Tenants, ask: ValuesAsk) -> Result<tempo::SearchTagValuesResponse> {
        self.flat_tag_values_telling(tenants, ask, None).await
    }

    /// The same, with parts of the answer for who is listening.
    pub(crate) async fn flat_tag_values_telling(
        &self,
        tenants: &Tenants,
        ask: ValuesAsk,
        listening: Option<Listening<TagValues>>,
    ) -> Result<tempo::SearchTagValuesResponse> {
        let limit = ask.limit as usize;
        let fixed: &[&str] = match ask.tag.as_str() {
            "status.code" => &["error", "ok", "unset"],
            "error" => &["true"],
            _ => &[],
        };
        let (mut values, metrics) = if fixed.is_empty() {
            let tag = match ask.tag.as_str() {
                "" => String::new(),
                "root.name" => "rootName".into(),
                "root.service.name" => "rootServiceName".into(),
                name if INTRINSICS.contains(&name) => name.into(),
                name => format!(".{}", logfmt::quoted(name)),
            };
            let values = self.tag_values_telling(tenants, ValuesAsk { tag, filter: None, limit: 0, ..ask }, listening).await?;
            let metrics = merge::stats::metadata_metrics(&values.stats);
            (values.values.into_iter().map(|value| value.value).collect(), metrics)
        } else {
            self.window(tenants, &ask.times)?;
            (fixed.iter().map(|value| value.to_string()).collect::<Vec<_>>(), tempo::MetadataMetrics::default())
        };
        values.sort_unstable();
        values.dedup();
        if limit > 0 {
            values.truncate(limit);
        }
        Ok(tempo::SearchTagValuesResponse { tag_values: values, metrics: Some(metrics) })
    }

    fn tag_bytes_max(&self, tenants: &Tenants) -> usize {
        match self.strictest(tenants, |limits| limits.max_bytes_per_tag_values_query) {
            0 => usize::MAX,
            bytes => bytes,
        }
    }
}

/// How traces are shown in the answer to a search.
#[derive(Debug, Clone, Copy)]
struct ShownTraces {
    by_tags: bool,
    left_pad: bool,
}

impl ShownTraces {
    fn of(self, mut traces: Vec<tempo::TraceSearchMetadata>) -> Vec<tempo::TraceSearchMetadata> {
        for trace in &mut traces {
            if self.by_tags {
                trace.span_set = None;
                trace.span_sets.clear();
                trace.service_stats.clear();
            }
            if self.left_pad {
                trace.trace_id = format!("{:0>32}", trace.trace_id);
            }
        }
        traces
    }
}

/// Names by scope: at most `limit` of each scope, and `bytes_max` in all.
fn names_message(names: TagNames, stats: &ScanStats, limit: usize, mut bytes_max: usize) -> tempo::SearchTagsV2Response {
    let mut answer = tempo::SearchTagsV2Response { scopes: Vec::new(), metrics: Some(merge::stats::metadata_metrics(stats)) };
    for (scope, mut tags) in names.scopes {
        merge::tags::cut(&mut tags, limit, &mut bytes_max, String::len);
        if !tags.is_empty() {
            answer.scopes.push(tempo::SearchTagsV2Scope { name: scope_name(scope).into(), tags });
        }
    }
    answer
}

/// A tenant's own limit; zero is that of the settings.
pub(crate) fn own_or(own: Duration, of_settings: Duration) -> Duration {
    if own.is_zero() { of_settings } else { own }
}

const TAG_SCOPES: [(TagScope, &str); 5] = [
    (TagScope::Resource, "resource"),
    (TagScope::Span, "span"),
    (TagScope::Event, "event"),
    (TagScope::Link, "link"),
    (TagScope::Instrumentation, "instrumentation"),
];

fn scope_name(scope: TagScope) -> &'static str {
    match scope {
        TagScope::Resource => "resource",
        TagScope::Span => "span",
        TagScope::Event => "event",
        TagScope::Link => "link",
        TagScope::Instrumentation => "instrumentation",
    }
}

/// Puts Tempo's prefix of search errors before an `Invalid` error that has none.
fn as_search_error(error: Error) -> Error {
    let prefix = "invalid TraceQL query: ";
    if error.kind() == ErrorKind::Invalid && !error.message().starts_with(prefix) { error.context("invalid TraceQL query") } else { error }
}
