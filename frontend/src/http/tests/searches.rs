//! Searches.

use super::*;

#[tokio::test]
async fn a_search_has_its_defaults() {
    let api = Api::new();
    let asked = |rest: &str| format!("single-tenant: search {rest}");
    api.asks("/api/search?q=%7B%7D", &asked(&format!("{{}} limit 20 spss 3 in {DEFAULT_WINDOW}"))).await;
    api.asks("/api/search", &asked(&format!("{{ }} limit 20 spss 1 in {DEFAULT_WINDOW}"))).await;
    api.asks("/api/search?q=%7B%7D&limit=5&spss=0&start=10&end=20", &asked("{} limit 5 spss 3 in 10-20")).await;
    api.asks("/api/search?q=%7B%7D&spss=100&since=1m", &asked("{} limit 20 spss 100 in 1699999940-1700000000")).await;
    api.asks(
        "/api/search?tags=service.name%3Dshop%20a%3D1&minDuration=100ms&maxDuration=1.5s&start=10&end=20",
        &asked(concat!(
            r#"{ resource.service.name =~ "(?s).*shop.*" } && { span."a" = "1" || resource."a" = "1" || span."a" = 1 || resource."a" = 1 } && "#,
            "{ traceDuration >= 100ms } && { traceDuration <= 1500ms } limit 20 spss 1 in 10-20"
        )),
    )
    .await;
}

#[tokio::test]
async fn wrong_search_parameters_are_named() {
    let api = Api::new();
    let check = async |query: &str, expected: &str| api.check(&format!("/api/search?{query}"), 400, expected).await;
    check("limit=0", "invalid limit: must be a positive number").await;
    check("limit=262145", "limit 262145 exceeds max limit 262144").await;
    check("spss=101", "spans per span set exceeds 100. received 101").await;
    check("start=20&end=10", "http parameter start must be before end. received start=20 end=10").await;
    check("start=20&end=20", "http parameter start must be before end. received start=20 end=20").await;
    check("start=20", "http parameter start must be before end. received start=20 end=0").await;
    check("end=20", "error parsing date range: only one of start and end provided: must provide both or neither").await;
    check("start=1&end=604802", "range specified by start and end exceeds 168h0m0s. received start=1 end=604802").await;
    check("q=%7B%7D&tags=a%3Db", "invalid request: can't specify tags and q in the same query").await;
    check("tags=a%3D1%20a%3D2", "invalid tags: tag a has been set twice").await;
    check("tags=%3D1", "invalid tags: unexpected '=' at pos 1").await;
    check("minDuration=2s&maxDuration=1s", "invalid maxDuration: must be greater than minDuration").await;
    for (query, part) in [
        ("limit=-5", "invalid limit: "),
        ("limit=five", "invalid limit: "),
        ("limit=4294967298", "invalid limit: "),
        ("spss=-2", "invalid spss: "),
        ("spss=four", "invalid spss: "),
        ("spss=4294967296", "invalid spss: "),
        ("start=1.5&end=2", "invalid start: "),
        ("start=1&end=2023-11-14T22:13:20Z", "invalid end: "),
        ("start=1700000000000000000&end=2", "invalid start: "),
        ("since=soon", "error parsing date range: could not parse 'since' parameter: "),
        ("minDuration=1d", "invalid minDuration: "),
        ("maxDuration=x", "invalid maxDuration: "),
        ("q=%7B%20foo%20%7D", "invalid TraceQL query: parse error at line 1, col 3: unknown identifier: foo"),
        ("q=%7B%20span.a%20%3D%20%7D", "invalid TraceQL query: parse error at line 1, col 12: "),
        ("q=%7Bresource.service.name%3Darticle%7D", "invalid TraceQL query: parse error at line 1, "),
    ] {
        api.refused(&format!("/api/search?{query}"), 400, part).await;
    }
    assert!(api.queries.asked.lock().is_empty());
}

#[tokio::test]
async fn the_size_of_a_query_is_checked_before_it_is_parsed() {
    let settings = FrontendSettings { max_query_expression_size_bytes: 1000, ..Default::default() };
    let api = Api::with(false, settings, QueryLimits::default());
    let text = "TraceQL expression exceeds the configured maximum size of 1000 bytes";
    let long = "x".repeat(1001);
    for path in ["search?q=", "v2/traces/1?q=", "metrics/query_range?query=", "v2/search/tags?q=", "v2/search/tag/.a/values?q="] {
        api.check(&format!("/api/{path}{long}"), 400, text).await;
    }
}

#[tokio::test]
async fn limits_can_be_switched_off() {
    let mut settings = FrontendSettings::default();
    settings.search.max_duration = Duration::ZERO;
    settings.search.max_spans_per_span_set = 0;
    settings.search.max_result_limit = 0;
    let api = Api::with(false, settings, QueryLimits::default());
    api.asks(
        "/api/search?q=%7B%7D&spss=5000&limit=1000000&start=1&end=1700000000",
        "single-tenant: search {} limit 1000000 spss 5000 in 1-1700000000",
    )
    .await;
}

#[tokio::test]
async fn a_search_answer_has_these_bytes() {
    let api = Api::new();
    let metrics = concat!(
        r#""metrics":{"inspectedTraces":3,"inspectedBytes":"10","totalBlocks":1,"completedJobs":5,"totalJobs":5,"totalBlockBytes":"1000","#,
        r#""inspectedSpans":"9","backendReads":"2","backendBytes":"10","additionalMetrics":{"rowGroupsInspected":"1","rowGroupsSkipped":"4"}}"#,
    );
    let set = r#"{"spans":[{"spanID":"00000000000000aa","startTimeUnixNano":"5","durationNanos":"7"}],"matched":1}"#;
    let trace = r#""traceID":"abc","rootServiceName":"\u003croot span not yet received\u003e","startTimeUnixNano":"5","durationMs":1"#;
    let expected = format!(r#"{{"traces":[{{{trace},"spanSet":{set},"spanSets":[{set}],"serviceStats":{{"shop":{{"spanCount":2}}}}}}],{metrics}}}"#);
    api.check("/api/search?q=%7B%7D", 200, &expected).await;
    api.check("/api/search", 200, &format!(r#"{{"traces":[{{{trace}}}],{metrics}}}"#)).await;

    let answer = api.ask("/api/search?q=%7B%7D", &[("accept", "application/vnd.grafana.llm")]).await;
    assert_eq!(answer.content_type, "application/json");
    let answer = api.ask("/api/search?q=%7B%7D", &[("accept", "application/protobuf")]).await;
    assert_eq!(tempo::SearchResponse::decode(answer.body.as_slice()).unwrap().traces[0].trace_id, "abc");

    let padded = Api::with(false, FrontendSettings::default(), QueryLimits { left_pad_trace_ids: true, ..Default::default() });
    let answer = padded.ask("/api/search", &[]).await;
    assert!(answer.text().contains(&format!(r#""traceID":"{:0>32}""#, "abc")));

    let empty = Api::multi_tenant().ask("/api/search?q=%7B%7D", &[("x-scope-orgid", "empty")]).await;
    assert_eq!(empty.text(), r#"{"traces":[],"metrics":{"completedJobs":1,"totalJobs":1}}"#);
}
