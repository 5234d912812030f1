//! What the queue, time limits and sizes do to answers, over HTTP and gRPC.

use super::*;

#[tokio::test]
async fn long_answers_are_compressed_on_request() {
    let api = Api::new();
    let uri = format!("/api/v2/traces/{KNOWN_ID}");
    let plain = api.ask(&uri, &[]).await;
    let packed = api.ask(&uri, &[("accept-encoding", "gzip")]).await;
    assert!(plain.body.len() < 1024 && packed.encoding.is_none());

    let plain = api.ask("/api/v2/search/tags", &[]).await;
    assert!(plain.body.len() < 1024);
    let tenants = ("x-scope-orgid", "a|b");
    let api = Api::multi_tenant();
    let plain = api.ask(&uri, &[tenants]).await;
    assert!(plain.body.len() > 1024 && plain.encoding.is_none(), "{}", plain.body.len());
    let packed = api.ask(&uri, &[tenants, ("accept-encoding", "deflate, gzip")]).await;
    assert_eq!((packed.encoding.as_deref(), packed.content_type.as_str()), (Some("gzip"), "application/json"));
    let mut unpacked = Vec::new();
    GzDecoder::new(packed.body.as_slice()).read_to_end(&mut unpacked).unwrap();
    assert_eq!(unpacked, plain.body);
}

#[tokio::test]
async fn a_full_queue_is_429_and_a_client_that_leaves_stops_the_query() {
    let settings = FrontendSettings { max_concurrent_queries: 1, max_outstanding_per_tenant: 0, ..Default::default() };
    let api = Api::with(true, settings, QueryLimits::default());
    let router = api.router.clone();
    let request = Request::get("/api/search").header("x-scope-orgid", "slow").body(Body::empty()).unwrap();
    let slow = tokio::spawn(router.oneshot(request));
    api.queries.started.notified().await;
    for path in [&format!("/api/traces/{KNOWN_ID}"), "/api/search"] {
        let answer = api.ask(path, &[("x-scope-orgid", "a")]).await;
        assert_eq!((answer.status, answer.text()), (429, "job queue full"));
    }
    assert!(api.metrics().contains(r#"tempo_query_frontend_discarded_requests_total{user="a"} 2"#));

    slow.abort();
    api.queries.dropped.notified().await;
    assert!(slow.await.is_err());
    assert_eq!(api.ask("/api/search", &[("x-scope-orgid", "a")]).await.status, 200);
    assert!(api.metrics().contains(r#"tempo_request_duration_seconds_count{method="GET",route="api_search",status_code="499",ws="false"} 1"#));
}

#[tokio::test]
async fn a_request_ends_at_the_configured_time() {
    let settings = FrontendSettings { api_timeout: Duration::from_millis(1), ..Default::default() };
    let api = Api::with(true, settings, QueryLimits::default());
    let answer = api.ask("/api/search", &[("x-scope-orgid", "slow")]).await;
    assert_eq!((answer.status, answer.text()), (503, "unable to process request in the configured timeout"));
}

/// A client of the gRPC API, which is served for as long as the runtime lives.
async fn grpc_client(api: &Api) -> tempo::streaming_querier_client::StreamingQuerierClient<tonic::transport::Channel> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (router, grpc, options) = (api.router.clone(), grpc::routes(api.frontend.clone()), ServeOptions::of(&api.frontend));
    tokio::spawn(serve(listener, router, Some(grpc), options, std::future::pending()));
    let channel = tonic::transport::Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    tempo::streaming_querier_client::StreamingQuerierClient::new(channel)
}

fn as_tenant<T>(tenant: &str, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("x-scope-orgid", tenant.parse().unwrap());
    request
}

#[tokio::test]
async fn bounds_have_their_grpc_codes() {
    let settings =
        FrontendSettings { max_concurrent_queries: 1, max_outstanding_per_tenant: 0, max_query_expression_size_bytes: 10, ..Default::default() };
    let long = QueryLimits { max_search_duration: Duration::from_secs(60), ..Default::default() };
    let api = Api::with_own_limits(settings, [("a", long)]);
    let mut client = grpc_client(&api).await;
    let search = |query: &str, limit, spss, end| tempo::SearchRequest {
        query: query.into(),
        limit,
        spans_per_span_set: spss,
        start: 1000,
        end,
        ..Default::default()
    };
    let mut refused = async |message: tempo::SearchRequest| {
        let status = client.search(as_tenant("a", message)).await.unwrap_err();
        (status.code(), status.message().to_owned())
    };
    let invalid = |text: &str| (tonic::Code::InvalidArgument, text.to_owned());
    assert_eq!(refused(search("{}", 0, 0, 1061)).await, invalid("range specified by start and end exceeds 1m0s. received start=1000 end=1061"));
    assert_eq!(refused(search("{}", 262_145, 0, 1060)).await, invalid("limit 262145 exceeds max limit 262144"));
    assert_eq!(refused(search("{}", 0, 101, 1060)).await, invalid("spans per span set exceeds 100. received 101"));
    assert_eq!(refused(search("{ .a = 1 } ", 0, 0, 1060)).await, invalid("TraceQL expression exceeds the configured maximum size of 10 bytes"));
    let slow = tokio::spawn({
        let mut client = grpc_client(&api).await;
        let message = search("{}", 0, 0, 1060);
        async move { client.search(as_tenant("slow", message)).await.is_ok() }
    });
    api.queries.started.notified().await;
    assert_eq!(refused(search("{}", 0, 0, 1060)).await, (tonic::Code::ResourceExhausted, "job queue full".to_owned()));
    assert!(api.metrics().contains("skein_frontend_queries_running 1\n"));
    slow.abort();
    api.queries.dropped.notified().await;

    let settings = FrontendSettings { api_timeout: Duration::from_millis(1), ..Default::default() };
    let api = Api::with(true, settings, QueryLimits::default());
    let late = grpc_client(&api).await.search(as_tenant("slow", search("{}", 0, 0, 1060))).await.unwrap_err();
    let text = "unable to process request in the configured timeout";
    assert_eq!((late.code(), late.message()), (tonic::Code::DeadlineExceeded, text));
    assert!(api.metrics().contains("skein_frontend_queries_running 0\n"), "the query ended with the request");
}
