//! Names and values of attributes.

use super::*;

#[tokio::test]
async fn names_come_by_scope_and_flat() {
    let api = Api::new();
    let intrinsics = crate::asks::INTRINSICS.map(|name| format!("\"{name}\"")).join(",");
    let metrics = r#""metrics":{"inspectedBytes":"7","backendBytes":"7"}"#;
    let resource = r#"{"name":"resource","tags":["host","service.name"]}"#;
    let intrinsic = format!(r#"{{"name":"intrinsic","tags":[{intrinsics}]}}"#);
    let span = r#"{"name":"span","tags":["a","host","z"]}"#;
    for all in ["", "?scope=none", "?limit=five"] {
        api.check(&format!("/api/v2/search/tags{all}"), 200, &format!(r#"{{"scopes":[{resource},{span},{intrinsic}],{metrics}}}"#)).await;
    }
    api.check("/api/v2/search/tags?scope=span", 200, &format!(r#"{{"scopes":[{span}],{metrics}}}"#)).await;
    api.check("/api/v2/search/tags?scope=span&limit=1&maxStaleValues=3", 200, &format!(r#"{{"scopes":[{{"name":"span","tags":["a"]}}],{metrics}}}"#))
        .await;
    api.check("/api/v2/search/tags?scope=intrinsic&limit=1", 200, &format!(r#"{{"scopes":[{intrinsic}],"metrics":{{}}}}"#)).await;
    api.check("/api/v2/search/tags?scope=trace", 200, r#"{"scopes":[],"metrics":{}}"#).await;
    api.check("/api/v2/search/tags?scope=attribute", 400, "invalid scope: attribute").await;

    api.check("/api/search/tags", 200, &format!(r#"{{"tagNames":["a","host","service.name","z"],{metrics}}}"#)).await;
    api.check("/api/search/tags?limit=2", 200, &format!(r#"{{"tagNames":["a","host"],{metrics}}}"#)).await;
    api.check("/api/search/tags?scope=intrinsic", 200, &format!(r#"{{"tagNames":[{intrinsics}],"metrics":{{}}}}"#)).await;
    api.check("/api/search/tags?scope=x", 400, "invalid scope: x").await;
}

#[tokio::test]
async fn names_are_asked_with_filter_and_window() {
    let api = Api::new();
    let asked = |rest: &str| format!("single-tenant: names {rest}");
    api.asks("/api/v2/search/tags?q=%7B%7D", &asked(&format!("None Some(\"{{}}\") in {DEFAULT_WINDOW}"))).await;
    api.asks("/api/search/tags?q=%7B%7D", &asked(&format!("None None in {DEFAULT_WINDOW}"))).await;
    api.asks("/api/v2/search/tags?scope=event&start=10&end=20", &asked("Some(Event) None in 10-20")).await;
    api.asks("/api/v2/search/tags?start=1699990000.5&end=2023-11-14T22:13:20Z", &asked("None None in 1699990000-1700000000")).await;
    api.asks("/api/v2/search/tags?start=1699990000000000000&end=1700000000", &asked("None None in 1699990000-1700000000")).await;
    api.refused("/api/v2/search/tags?start=10", 400, "http parameter start must be before end. received start=10 end=0").await;
    api.refused("/api/v2/search/tags?end=10", 400, "must provide both or neither").await;
    api.refused("/api/v2/search/tags?start=x&end=10", 400, "could not parse 'start' parameter: ").await;
    api.refused("/api/search/tags?start=1&end=1000000", 400, "range specified by start and end exceeds 168h0m0s").await;
    let groups = |count: usize| {
        let conditions = vec!["span.a=1"; count].join("||").replace('=', "%3D").replace('|', "%7C");
        format!("/api/v2/search/tags?q=%7B{conditions}%7D")
    };
    assert_eq!(api.ask(&groups(100), &[]).await.status, 200);
    let text = "maximum condition groups reached (limit: 100). Reduce the number of OR conditions in the query";
    api.check(&groups(101), 400, text).await;
}

#[tokio::test]
async fn names_and_values_are_cut_at_their_bytes() {
    let limits = QueryLimits { max_bytes_per_tag_values_query: 5, ..Default::default() };
    let api = Api::with(false, FrontendSettings::default(), limits);
    let metrics = r#""metrics":{"inspectedBytes":"7","backendBytes":"7"}"#;
    api.check("/api/v2/search/tags?scope=resource", 200, &format!(r#"{{"scopes":[{{"name":"resource","tags":["host"]}}],{metrics}}}"#)).await;
    let limits = QueryLimits { max_bytes_per_tag_values_query: 2, ..Default::default() };
    let api = Api::with(false, FrontendSettings::default(), limits);
    api.check("/api/search/tag/x/values", 200, r#"{"tagValues":["1","a"],"metrics":{}}"#).await;
}

#[tokio::test]
async fn values_come_typed_and_flat() {
    let api = Api::new();
    let typed = r#"[{"type":"int","value":"1"},{"type":"string","value":"a"},{"type":"string","value":"b\u003c"}]"#;
    api.check("/api/v2/search/tag/span.x/values", 200, &format!(r#"{{"tagValues":{typed},"metrics":{{}}}}"#)).await;
    api.check("/api/v2/search/tag/span.x/values?limit=1", 200, r#"{"tagValues":[{"type":"int","value":"1"}],"metrics":{}}"#).await;
    api.check("/api/search/tag/x/values", 200, r#"{"tagValues":["1","a","b\u003c"],"metrics":{}}"#).await;
    api.check("/api/search/tag/x/values?limit=2", 200, r#"{"tagValues":["1","a"],"metrics":{}}"#).await;
    api.check("/api/search/tag/status.code/values", 200, r#"{"tagValues":["error","ok","unset"],"metrics":{}}"#).await;
    api.check("/api/search/tag/error/values", 200, r#"{"tagValues":["true"],"metrics":{}}"#).await;
    let answer = api.ask("/api/v2/search/tag/span.x/values", &[("accept", "application/vnd.grafana.llm")]).await;
    assert_eq!(answer.text(), r#"{"metrics":{},"tagValues":{"int":["1"],"string":["a","b<"]}}"#);
    let empty = Api::multi_tenant().ask("/api/v2/search/tag/.foo/values", &[("x-scope-orgid", "empty")]).await;
    assert_eq!(empty.text(), r#"{"tagValues":[],"metrics":{}}"#);
}

#[tokio::test]
async fn tags_in_the_path_are_decoded_once() {
    let api = Api::new();
    let check = async |path: &str, tag: &str| {
        api.asks(&format!("/api/v2/search/tag/{path}/values?start=10&end=20"), &format!("single-tenant: values {tag} None in 10-20")).await;
    };
    check("resource.service.name", "resource.service.name").await;
    check("span:name", "span:name").await;
    check("span.%22a%20b%22", "span.\"a b\"").await;
    check("span.%22a%2520b%22", "span.\"a%20b\"").await;
    check("span.%22a%2Fb%22", "span.\"a/b\"").await;
    check("span.a/values", "span.a/values").await;
    api.asks("/api/search/tag/a%20b/values?q=x", &format!("single-tenant: values .\"a b\" None in {DEFAULT_WINDOW}")).await;
    api.asks("/api/search/tag/service.name/values", &format!("single-tenant: values .\"service.name\" None in {DEFAULT_WINDOW}")).await;
    api.asks("/api/search/tag/name/values", &format!("single-tenant: values name None in {DEFAULT_WINDOW}")).await;
    api.asks("/api/v2/search/tag/.a/values?q=%7B%7D", &format!("single-tenant: values .a Some(\"{{}}\") in {DEFAULT_WINDOW}")).await;
}

#[tokio::test]
async fn wrong_value_requests_are_named() {
    let api = Api::new();
    api.refused(
        "/api/v2/search/tag/app.user.id/values",
        400,
        "please provide a valid tagName: failed to parse identifier app.user.id: parse error at line 1, col 2: unknown identifier: app",
    )
    .await;
    api.check("/api/v2/search/tag//values", 400, "please provide a non-empty tagName").await;
    api.check("/api/search/tag//values", 400, "please provide a non-empty tagName").await;
    api.refused("/api/v2/search/tag/.a/values?limit=x", 400, "invalid limit: ").await;
    api.refused("/api/search/tag/a/values?maxStaleValues=-1", 400, "invalid maxStaleValues: ").await;
    api.check("/api/v2/search/tag/.a/value", 404, "404 page not found\n").await;
}
