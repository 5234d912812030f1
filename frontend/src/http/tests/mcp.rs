//! The tools of language models.

use super::*;

fn with_mcp(settings: FrontendSettings) -> FrontendSettings {
    FrontendSettings { mcp_server: McpSettings { enabled: true }, ..settings }
}

/// A request that calls a tool, as the tenant.
fn calling(path: &str, tenant: &str, tool: &str, arguments: serde_json::Value) -> Request<Body> {
    let params = serde_json::json!({ "name": tool, "arguments": arguments });
    let message = serde_json::json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params });
    let request = Request::post(path).header("content-type", "application/json").header("x-scope-orgid", tenant).header("host", "skein.example");
    request.body(Body::from(message.to_string())).unwrap()
}

/// Whether a tool failed, and its text.
async fn called(api: &Api, path: &str, tenant: &str, tool: &str, arguments: serde_json::Value) -> (bool, String) {
    let response = api.router.clone().oneshot(calling(path, tenant, tool, arguments)).await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    let body: serde_json::Value = serde_json::from_slice(&to_bytes(response.into_body(), usize::MAX).await.unwrap()).unwrap();
    let result = &body["result"];
    (result["isError"] == true, result["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{body}")).to_owned())
}

#[tokio::test]
async fn tools_ask_as_the_caller_and_answer_for_language_models() {
    let api = Api::with(true, with_mcp(FrontendSettings::default()), QueryLimits::default());
    let (failed, text) = called(&api, "/api/mcp", "a|b", "get-trace", serde_json::json!({ "trace_id": KNOWN_ID })).await;
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((failed, &answer["trace"]["traceId"], &answer["status"]), (false, &KNOWN_ID.into(), &"COMPLETE".into()));
    assert_eq!(*api.queries.asked.lock(), ["a", "b"].map(|tenant| format!("{tenant}: trace {KNOWN_ID} in any time")));
    let (failed, text) = called(&api, "/api/mcp", "a", "get-attribute-values", serde_json::json!({ "name": "span.x" })).await;
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((failed, &answer["tagValues"]), (false, &serde_json::json!({ "int": ["1"], "string": ["a", "b<"] })));

    // The texts of HTTP's errors, and none of an error of ours.
    let query = serde_json::json!({ "query": "{}" });
    let (failed, text) = called(&api, "/api/mcp", "broken", "traceql-search", query.clone()).await;
    assert_eq!((failed, text.as_str()), (true, "tool failed with http status code 500 and reason internal error"));
    let (failed, text) = called(&api, "/api/mcp", "a", "get-trace", serde_json::json!({ "trace_id": "1" })).await;
    assert_eq!((failed, text.contains("no such trace")), (true, true));
    assert!(api.metrics().contains(r#"tempo_query_frontend_mcp_calls_total{tool="get-trace"} 2"#));

    let prefixed = Api::at("/tempo", false, with_mcp(FrontendSettings::default()), QueryLimits::default());
    assert!(!called(&prefixed, "/tempo/api/mcp", "", "traceql-search", query).await.0);
    prefixed.check("/api/mcp", 404, "404 page not found\n").await;
}

#[tokio::test]
async fn tools_obey_limits_and_stop_when_the_client_leaves() {
    let settings = FrontendSettings {
        max_concurrent_queries: 1,
        max_outstanding_per_tenant: 0,
        max_query_expression_size_bytes: 30,
        url_deny_list: vec!["needle".into()],
        ..Default::default()
    };
    let api = Api::with(true, with_mcp(settings), QueryLimits::default());
    let slow = tokio::spawn(api.router.clone().oneshot(calling("/api/mcp", "slow", "traceql-search", serde_json::json!({ "query": "{}" }))));
    api.queries.started.notified().await;
    let check = async |query: &str, expected: &str| {
        let (failed, text) = called(&api, "/api/mcp", "a", "traceql-search", serde_json::json!({ "query": query })).await;
        assert_eq!((failed, text.contains(expected)), (true, true), "{text}");
    };
    check("{}", "tool failed with http status code 429 and reason job queue full").await;
    check("{ .a = 1 && .b = 2 && .c = 3 && .d = 4 }", "code 400 and reason TraceQL expression exceeds the configured maximum size").await;
    check("{ .needle = 1 }", "code 400 and reason Invalid request /api/search?q=").await;
    slow.abort();
    api.queries.dropped.notified().await;

    let timed = Api::with(true, with_mcp(FrontendSettings { api_timeout: Duration::from_millis(1), ..Default::default() }), QueryLimits::default());
    let (failed, text) = called(&timed, "/api/mcp", "slow", "traceql-search", serde_json::json!({ "query": "{}" })).await;
    assert_eq!((failed, text.contains("code 503 and reason unable to process request in the configured timeout")), (true, true), "{text}");
}
