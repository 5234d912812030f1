//! Traces by id, filtered and compared.

use super::*;

#[tokio::test]
async fn trace_ids_are_read_as_tempo_reads_them() {
    let api = Api::new();
    api.asks("/api/v2/traces/abc", "single-tenant: trace 00000000000000000000000000000abc in any time").await;
    api.asks("/api/v2/traces/0AF7651916cd43dd8448eb211c80319c", &format!("single-tenant: trace {KNOWN_ID} in any time")).await;
    let odd = "0047ac2c027451d89e3f3ba6d2a6b7b";
    api.asks(&format!("/api/v2/traces/{odd}"), &format!("single-tenant: trace 0{odd} in any time")).await;
    for version in ["/api/traces", "/api/v2/traces"] {
        api.check(&format!("{version}/12x"), 400, "trace IDs can only contain hex characters: invalid character 'x' at position 3").await;
        api.check(&format!("{version}/{KNOWN_ID}00"), 400, "trace IDs can't be larger than 128 bits").await;
    }
}

#[tokio::test]
async fn trace_parameters_are_checked() {
    let api = Api::new();
    let uri = |query: &str| format!("/api/v2/traces/{KNOWN_ID}?{query}");
    let asked = |window: &str| format!("single-tenant: trace {KNOWN_ID} in {window}");
    api.asks(&uri("start=10&end=20"), &asked("10-20")).await;
    api.asks(&uri("start=10"), &asked("10-4294967295")).await;
    api.asks(&uri("end=20"), &asked("0-20")).await;
    api.asks(&uri("mode=ingesters&start=x&blockStart=y"), &asked("any time")).await;
    api.asks(&uri("mode=blocks&blockStart=00000000-0000-0000-0000-000000000000"), &asked("any time")).await;
    api.refused(&uri("start=1.5"), 400, "invalid start: ").await;
    api.refused(&uri("end=now"), 400, "invalid end: ").await;
    api.check(&uri("start=20&end=20"), 400, "http parameter start must be before end. received start=20 end=20").await;
    api.check(&uri("mode=fast"), 400, "invalid value for mode fast").await;
    api.refused(&uri("mode=external"), 400, "invalid value for mode external").await;
    api.refused(&uri("blockStart=1"), 400, "invalid value for blockstart: ").await;
    api.refused(&uri("blockEnd=1"), 400, "invalid value for blockEnd: ").await;
}

#[tokio::test]
async fn the_span_filter_of_a_trace_is_checked() {
    let api = Api::new();
    let uri = |query: &str| format!("/api/v2/traces/{KNOWN_ID}?{query}");
    api.refused(&uri("q=%7B%20.a%20%3D%20%7D"), 400, "invalid TraceQL filter: parse error at line 1, col 8").await;
    for not_one_filter in ["%7B%7D%7Ccount()%3E1", "%7B%7D%26%26%7B%7D", "%7B%7D%3E%7B%7D", "%7B%7D%7Crate()", "%7BrootName%3D%22a%22%7D"] {
        api.refused(&uri(&format!("q={not_one_filter}")), 400, "invalid TraceQL filter: ").await;
    }
    api.check(&uri("q=%7B%7D&match_depth=-2"), 400, "invalid value for match_depth: must be >= -1").await;
    api.refused(&uri("q=%7B%7D&match_depth=abc"), 400, "invalid value for match_depth: ").await;
    api.check(&uri("q=%7B%7D&keep_hierarchy=true&ancestor_depth=-2"), 400, "invalid value for ancestor_depth: must be >= -1").await;
    api.refused(&uri("q=%7B%7D&keep_hierarchy=perhaps"), 400, "invalid value for keep_hierarchy: ").await;
}

#[tokio::test]
async fn the_span_filter_of_a_trace_is_asked_with_its_levels() {
    let api = Api::new();
    let check = async |query: &str, filter: &str| {
        api.asks(&format!("/api/v2/traces/{KNOWN_ID}?{query}"), &format!("single-tenant: trace {KNOWN_ID} in {filter}")).await;
    };
    let where_error = "any time where status = error";
    check("q=%7Bstatus=error%7D", &format!("{where_error} below Some(0) above Some(0)")).await;
    check("q=%7Bstatus=error%7D&match_depth=2&ancestor_depth=-2", &format!("{where_error} below Some(2) above Some(0)")).await;
    check("q=%7Bstatus=error%7D&match_depth=-1&keep_hierarchy=true", &format!("{where_error} below None above None")).await;
    check("q=%7Bstatus=error%7D&keep_hierarchy=1&ancestor_depth=3", &format!("{where_error} below Some(0) above Some(3)")).await;
    check("q=%7Bstatus=error%7D&start=10&end=20", "10-20 where status = error below Some(0) above Some(0)").await;
    check("q=%20&match_depth=-2&keep_hierarchy=x", "any time").await;
    check("match_depth=abc", "any time").await;
}

#[tokio::test]
async fn a_filtered_trace_says_so() {
    let api = Api::new();
    let message = "Trace filtered, only a subset of spans matching the filter is returned";
    let ask = async |query: &str| -> serde_json::Value {
        serde_json::from_slice(&api.ask(&format!("/api/v2/traces/{KNOWN_ID}?q={query}"), &[]).await.body).unwrap()
    };
    let some = ask("%7Bstatus=error%7D").await;
    assert_eq!((&some["status"], &some["message"]), (&"PARTIAL".into(), &message.into()));
    let all = ask("%7B%7D").await;
    assert_eq!((all.get("status"), all.get("message")), (None, None));

    let cut = Api::with(false, FrontendSettings::default(), QueryLimits { max_bytes_per_trace: 100, ..Default::default() });
    let answer = cut.ask(&format!("/api/v2/traces/{KNOWN_ID}?q=%7Bstatus=error%7D"), &[]).await;
    let both = format!("Trace exceeds maximum size of 100 bytes, a partial trace is returned; {message}");
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&answer.body).unwrap()["message"], both);
}

/// The answer to a body sent to the endpoint that compares traces.
async fn diff(api: &Api, body: &str) -> (u16, String) {
    let request = Request::post("/api/v2/traces/diff").body(Body::from(body.to_owned())).unwrap();
    let response = api.router.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    (status, String::from_utf8(to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec()).unwrap())
}

fn two_ids(base: &str, compare: &str, more: &str) -> String {
    format!(r#"{{"base":{{"traceId":"{base}"{more}}},"compare":{{"traceId":"{compare}"}}}}"#)
}

#[tokio::test]
async fn wrong_comparisons_are_named() {
    let api = Api::new();
    let check = async |body: &str, status: u16, expected: &str| {
        let (found, text) = diff(&api, body).await;
        assert_eq!(found, status, "{body}: {text}");
        assert!(text.starts_with(expected), "{body}: {text}");
    };
    check("no JSON", 400, "invalid trace diff request body: ").await;
    check("{}", 400, "base.traceId is required").await;
    check(r#"{"base":{"traceId":"1"}}"#, 400, "compare.traceId is required").await;
    check(&two_ids("1x", "1", ""), 400, "invalid base.traceId: trace IDs can only contain hex characters").await;
    check(&two_ids("1", "1", r#","start":20,"end":10"#), 400, "base.start must be before base.end. received start=20 end=10").await;
    check(r#"{"base":{"traceId":"1"},"compare":{"traceId":"2"},"format":"html"}"#, 400, r#"invalid format "html": must be one of trace-patch-v0, "#)
        .await;
    assert!(api.queries.asked.lock().is_empty());
    check(&two_ids(KNOWN_ID, "1", ""), 404, "Not Found").await;
    api.check("/api/v2/traces/diff", 405, "Method Not Allowed").await;
    check(&" ".repeat(3 << 20), 413, "").await;

    let limited = |max_bytes_per_trace| Api::with(false, FrontendSettings::default(), QueryLimits { max_bytes_per_trace, ..Default::default() });
    let (status, text) = diff(&limited(180), &two_ids(KNOWN_ID, OTHER_ID, "")).await;
    assert_eq!((status, text.contains("partial traces cannot be diffed")), (422, true), "{text}");
    let (status, text) = diff(&limited(400), &two_ids(KNOWN_ID, OTHER_ID, "")).await;
    assert_eq!((status, text.contains("max bytes: 400")), (429, true), "{text}");
}

#[tokio::test]
async fn two_traces_are_compared_in_one_turn() {
    // With one turn in all, a second one would never come.
    let settings = FrontendSettings { max_concurrent_queries: 1, ..Default::default() };
    let api = Api::with(false, settings, QueryLimits::default());
    let (status, text) = diff(&api, &two_ids(KNOWN_ID, OTHER_ID, r#","start":5"#)).await;
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &document["version"]), (200, &"trace-patch-v0".into()));
    assert_eq!((&document["base"]["traceId"], &document["stats"]["spanCountB"]), (&KNOWN_ID.into(), &2.into()));
    assert_eq!(document["added"][0]["span"]["name"], "resourceSpans2");
    let asked = [format!("single-tenant: trace {KNOWN_ID} in 5-4294967295"), format!("single-tenant: trace {OTHER_ID} in any time")];
    assert_eq!(*api.queries.asked.lock(), asked);
}

#[tokio::test]
async fn a_trace_comes_in_every_form() {
    let api = Api::new();
    let spans = concat!(
        r#"[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}},{"key":"host","value":{"stringValue":"h"}}]},"#,
        r#""scopeSpans":[{"scope":{"name":"lib"},"spans":["#,
        r#"{"traceId":"CvdlGRbNQ92ESOshHIAxnA==","spanId":"AQEBAQEBAQE=","name":"resourceSpans","kind":"SPAN_KIND_SERVER","#,
        r#""startTimeUnixNano":"1000000000","endTimeUnixNano":"2500000000","#,
        r#""attributes":[{"key":"http.method","value":{"stringValue":"GET"}}]},"#,
        r#"{"traceId":"CvdlGRbNQ92ESOshHIAxnA==","spanId":"AgICAgICAgI=","name":"child","kind":"SPAN_KIND_SERVER","#,
        r#""startTimeUnixNano":"1000000000","endTimeUnixNano":"2500000000","#,
        r#""attributes":[{"key":"http.method","value":{"stringValue":"GET"}}]}]}]}]"#,
    );
    let (v1, v2) = (format!("/api/traces/{KNOWN_ID}"), format!("/api/v2/traces/{KNOWN_ID}"));
    api.check(&v1, 200, &format!(r#"{{"batches":{spans}}}"#)).await;
    api.check(&v2, 200, &format!(r#"{{"trace":{{"resourceSpans":{spans}}},"metrics":{{"inspectedBytes":"123","backendBytes":"123"}}}}"#)).await;

    let single = TenantId::single();
    let answer = api.ask(&v1, &[("accept", "application/protobuf")]).await;
    assert_eq!(answer.content_type, "application/protobuf");
    assert_eq!(tempo::Trace::decode(answer.body.as_slice()).unwrap().resource_spans, trace_of(&single));
    let answer = api.ask(&v2, &[("accept", "application/protobuf")]).await;
    let answer = tempo::TraceByIdResponse::decode(answer.body.as_slice()).unwrap();
    assert_eq!(answer.trace.unwrap().resource_spans, trace_of(&single));

    let answer = api.ask(&v2, &[("accept", "application/vnd.grafana.llm")]).await;
    assert_eq!(answer.content_type, "application/vnd.grafana.llm+json");
    let llm: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let span = |id: &str, name: &str| {
        serde_json::json!({
            "spanId": id, "name": name, "kind": "SPAN_KIND_SERVER", "startTimeUnixNano": "1000000000", "endTimeUnixNano": "2500000000",
            "durationMs": 1500.0, "attributes": { "http.method": "GET" }, "status": { "code": "STATUS_CODE_UNSET", "message": "" },
        })
    };
    let spans = [span("0101010101010101", "resourceSpans"), span("0202020202020202", "child")];
    let scopes = serde_json::json!([{ "name": "lib", "version": "", "spans": spans }]);
    let expected = serde_json::json!({
        "trace": { "traceId": KNOWN_ID, "services": [{ "serviceName": "shop", "resource": { "host": "h" }, "scopes": scopes }] },
        "metrics": { "inspectedBytes": 123, "backendBytes": 123 },
        "status": "COMPLETE",
    });
    assert_eq!(llm, expected);
}

#[tokio::test]
async fn an_unknown_trace_is_404_in_v1_and_empty_in_v2() {
    let api = Api::new();
    api.check("/api/traces/1", 404, "").await;
    api.check("/api/v2/traces/1", 200, r#"{"trace":{},"metrics":{"inspectedBytes":"123","backendBytes":"123"}}"#).await;
    let answer = api.ask("/api/v2/traces/1", &[("accept", "application/protobuf")]).await;
    assert!(tempo::TraceByIdResponse::decode(answer.body.as_slice()).unwrap().trace.is_some());
    assert_eq!(api.ask("/api/v2/traces/1", &[("accept", "application/vnd.grafana.llm")]).await.text(), "{}");
}

#[tokio::test]
async fn a_trace_above_its_size_is_422_in_v1_and_partial_in_v2() {
    let limits = QueryLimits { max_bytes_per_trace: 180, ..Default::default() };
    let api = Api::with(false, FrontendSettings::default(), limits);
    api.check(&format!("/api/traces/{KNOWN_ID}"), 422, "trace exceeds max size (max bytes: 180)").await;
    let answer = api.ask(&format!("/api/v2/traces/{KNOWN_ID}"), &[]).await;
    let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((answer.status, &json["status"]), (200, &"PARTIAL".into()));
    assert_eq!(json["message"], "Trace exceeds maximum size of 180 bytes, a partial trace is returned");
    assert_eq!(json["trace"]["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().len(), 1);
}
