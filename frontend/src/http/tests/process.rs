//! The process behind the API: its settings, status pages, metrics and ports.

use super::*;

#[tokio::test]
async fn urls_can_be_denied() {
    let settings = FrontendSettings { url_deny_list: vec![r"limit=\d{6}".into()], ..Default::default() };
    let api = Api::with(false, settings, QueryLimits::default());
    api.refused("/api/search?limit=123456", 400, "Invalid request /api/search?limit=123456. This query has been identified").await;
    assert_eq!(api.ask("/api/search?limit=12345", &[]).await.status, 200);
}

#[tokio::test]
async fn wrong_settings_are_refused_with_their_key() {
    let check = |settings: FrontendSettings, part: &str| {
        let error = settings.validate().unwrap_err();
        assert!(error.kind() == ErrorKind::Invalid && error.message().contains(part), "{error}");
    };
    check(FrontendSettings { max_concurrent_queries: 0, ..Default::default() }, "query_frontend.max_concurrent_queries");
    let mut settings = FrontendSettings::default();
    settings.search.default_result_limit = 0;
    check(settings, "query_frontend.search.default_result_limit");
    let mut settings = FrontendSettings::default();
    settings.metrics.max_exemplars = 10_001;
    check(settings, "query_frontend.metrics.max_exemplars must be at most 10000");
    let json = r#"{"search":{"max_duration":"0s","default_result_limit":5},"query_end_cutoff":"30s"}"#;
    let settings: FrontendSettings = serde_json::from_str(json).unwrap();
    assert_eq!((settings.search.default_result_limit, settings.search.max_result_limit), (5, 262_144));
    assert!(serde_json::from_str::<FrontendSettings>(r#"{"serach":{}}"#).is_err());
}

#[tokio::test]
async fn the_process_is_driven_over_http() {
    let api = Api::new();
    api.check("/api/echo", 200, "echo\n").await;
    api.check("/ready", 200, "ready\n").await;
    api.check("/flush", 204, "").await;
    api.check("/flush?tenant=a", 204, "").await;
    api.refused("/flush?tenant=unknown", 404, "tenant unknown").await;
    api.refused("/flush?tenant=a%20b", 400, "unsupported character").await;
    assert_eq!(*api.operations.flushed.lock(), [None, Some(TenantId::parse("a").unwrap())]);
    for path in ["/shutdown", "/ingester/shutdown"] {
        *api.operations.stopping.lock() = false;
        api.check(path, 200, "shutdown job acknowledged").await;
        api.check("/ready", 503, "Application is stopping").await;
    }
}

#[tokio::test]
async fn status_pages_answer() {
    let api = Api::new();
    let build = r#"{"version":"3.1.0","revision":"","branch":"","buildUser":"","buildDate":"","goVersion":""}"#;
    api.check("/api/status/buildinfo", 200, build).await;
    api.check("/status/usage-stats", 200, "usage-stats is not enabled").await;
    api.check("/status/config", 200, "GET /status/config\nmode: Effective\n").await;
    api.check("/status/config?mode=diff", 200, "GET /status/config\nmode: Diff\n").await;
    api.check("/status/config?mode=defaults", 200, "GET /status/config\nmode: Defaults\n").await;
    api.refused("/status/config?mode=all", 500, "mode").await;
    api.check("/status/runtime_config?mode=diff", 200, "GET /status/runtime_config\ndiff: true\n").await;
    api.check("/status/services", 200, &format!("GET /status/services\n{:<24} Running\n", "ingester")).await;
    api.check("/status/nothing", 404, "404 page not found\n").await;
    let all = api.ask("/status", &[]).await;
    assert!(all.content_type.starts_with("text/plain"));
    for section in ["version", "services", "endpoints", "runtime_config", "config"] {
        assert!(all.text().contains(&format!("GET /status/{section}\n")), "{section}");
        assert_eq!(api.ask(&format!("/status/{section}"), &[]).await.status, 200);
    }
    api.refused("/status/overrides/a", 200, "max_bytes_per_trace: 0\n").await;
    let pages = ["/distributor/ring", "/ingester/ring", "/live-store/ring", "/partition-ring", "/memberlist", "/metrics-generator/ring"];
    for page in pages {
        api.refused(page, 200, "one in-memory instance").await;
    }
    assert_eq!(api.ask("/status/backendscheduler", &[]).await.status, 200);
    assert_eq!(api.ask("/ingester/ring", &[("accept", "application/json")]).await.content_type, "application/json");
}

#[tokio::test]
async fn unknown_paths_and_later_features_are_404() {
    let api = Api::new();
    for path in ["/", "/api/mcp", "/api/nothing", "/api/metrics/summary"] {
        api.check(path, 404, "404 page not found\n").await;
    }
}

#[tokio::test]
async fn the_prefix_goes_before_the_api_only() {
    let api = Api::at("/tempo", false, FrontendSettings::default(), QueryLimits::default());
    api.check("/tempo/api/echo", 200, "echo\n").await;
    api.check("/tempo/api/search/tag/error/values", 200, r#"{"tagValues":["true"],"metrics":{}}"#).await;
    api.check("/tempo/status/usage-stats", 200, "usage-stats is not enabled").await;
    api.check("/ready", 200, "ready\n").await;
    assert_eq!(api.ask("/api/echo", &[]).await.status, 404);
}

#[tokio::test]
async fn requests_are_counted_by_route() {
    let api = Api::new();
    api.ask("/api/traces/1", &[]).await;
    api.ask("/api/v2/search/tag/.a/values", &[]).await;
    api.ask("/nothing", &[]).await;
    let metrics = api.ask("/metrics", &[]).await;
    for (route, status) in [("api_traces_traceid", 404), ("api_v2_search_tag_tagname_values", 200), ("notfound", 404)] {
        let line = format!(r#"tempo_request_duration_seconds_count{{method="GET",route="{route}",status_code="{status}",ws="false"}} 1"#);
        assert!(metrics.text().contains(&line), "{line}");
    }
    assert!(metrics.text().contains(r#"tempo_build_info{branch="","#));
    assert!(metrics.text().contains(r#"tempo_inflight_requests{method="GET",route="metrics"} 1"#));
}

#[tokio::test]
async fn one_port_speaks_http_and_grpc_and_stops_gracefully() {
    use tempo::streaming_querier_client::StreamingQuerierClient;
    let api = Api::multi_tenant();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = Arc::new(Notify::new());
    let stopped = stop.clone();
    let grpc = Some(grpc::routes(api.frontend.clone()));
    let options = ServeOptions::of(&api.frontend);
    let router = api.router.clone();
    let server = tokio::spawn(async move { serve(listener, router, grpc, options, async move { stopped.notified().await }).await });

    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"GET /api/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\necho\n"), "{answer}");

    let channel = tonic::transport::Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut client = StreamingQuerierClient::new(channel.clone());
    let with_tenant = |tenant: &str, message| {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("x-scope-orgid", tenant.parse().unwrap());
        request
    };
    let search = |query: &str| tempo::SearchRequest { query: query.into(), start: 10, end: 20, ..Default::default() };
    let mut stream = client.search(with_tenant("a|b", search("{}"))).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().traces[0].trace_id, "abc");
    assert!(stream.message().await.unwrap().is_none());
    assert_eq!(api.queries.asked.lock()[0], "a: search {} limit 20 spss 3 in 10-20");

    let wrong = client.search(with_tenant("a", search("{resource.service.name=article}"))).await.unwrap_err();
    assert_eq!(wrong.code(), tonic::Code::InvalidArgument);
    assert!(wrong.message().starts_with("invalid TraceQL query: "), "{}", wrong.message());
    let long = client.search(with_tenant("a", search(&"x".repeat(131_073)))).await.unwrap_err();
    assert_eq!(long.message(), "TraceQL expression exceeds the configured maximum size of 131072 bytes");
    let missing = client.search(search("{}")).await.unwrap_err();
    assert_eq!((missing.code(), missing.message()), (tonic::Code::Unauthenticated, "no org id"));
    let broken = client.search(with_tenant("broken", search("{}"))).await.unwrap_err();
    assert_eq!((broken.code(), broken.message()), (tonic::Code::Internal, "internal error"));

    let mut request = tonic::Request::new(tempo::SearchTagsRequest { scope: "span".into(), max_tags_per_scope: 2, ..Default::default() });
    request.metadata_mut().insert("x-scope-orgid", "a".parse().unwrap());
    let names = client.search_tags_v2(request).await.unwrap().into_inner().message().await.unwrap().unwrap();
    assert_eq!(names.scopes, [tempo::SearchTagsV2Scope { name: "span".into(), tags: vec!["a".into(), "host".into()] }]);
    let mut request = tonic::Request::new(tempo::SearchTagValuesRequest { tag_name: "app.user.id".into(), ..Default::default() });
    request.metadata_mut().insert("x-scope-orgid", "a".parse().unwrap());
    let refused = client.search_tag_values_v2(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    let mut request = tonic::Request::new(tempo::QueryRangeRequest {
        query: "{}|rate()".into(),
        start: 1_000_000_000_000,
        end: 1_060_000_000_000,
        step: 60_000_000_000,
        exemplars: 9,
        ..Default::default()
    });
    request.metadata_mut().insert("x-scope-orgid", "a".parse().unwrap());
    let metrics = client.metrics_query_range(request).await.unwrap().into_inner().message().await.unwrap().unwrap();
    assert_eq!(
        metrics.series[0].samples,
        [tempo::Sample { value: 0.0, timestamp_ms: 960_000 }, tempo::Sample { value: 1.5, timestamp_ms: 1_020_000 }]
    );
    assert!(api.queries.asked.lock().iter().any(|asked| asked.contains("exemplars 9 by None")));
    let refused = client.metrics_query_instant(tempo::QueryInstantRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);

    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    for service in ["", "tempopb.StreamingQuerier"] {
        let status = health.check(tonic_health::pb::HealthCheckRequest { service: service.into() }).await.unwrap().into_inner().status;
        assert_eq!(status, 1, "{service}");
    }
    let line = r#"tempo_request_duration_seconds_count{method="gRPC",route="/tempopb.StreamingQuerier/Search",status_code="success",ws="false"} 1"#;
    assert!(api.metrics().contains(line));

    let slow = tokio::spawn(async move { client.search(with_tenant("slow", search("{}"))).await.is_err() });
    api.queries.started.notified().await;
    slow.abort();
    api.queries.dropped.notified().await;

    drop(health);
    stop.notify_one();
    tokio::time::timeout(Duration::from_secs(10), server).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
    assert!(api.metrics().contains(r#"tempo_tcp_connections{protocol="http"} 0"#));
}
