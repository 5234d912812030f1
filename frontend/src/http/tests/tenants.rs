//! Whose data is asked for, and whose limits count.

use super::*;

const TENANT_PATHS: [&str; 9] = [
    "/api/traces/1",
    "/api/v2/traces/1",
    "/api/search",
    "/api/search/tags",
    "/api/v2/search/tags",
    "/api/search/tag/a/values",
    "/api/v2/search/tag/.a/values",
    "/api/metrics/query_range",
    "/api/metrics/query",
];

#[tokio::test]
async fn tenants_are_needed_and_checked_everywhere() {
    let api = Api::multi_tenant();
    for path in TENANT_PATHS {
        api.check(path, 401, "no org id\n").await;
        for (header, status, part) in [
            ("", 401, "no org id\n"),
            ("a||b", 400, "no org id"),
            ("a b", 400, "unsupported character"),
            ("..", 400, "tenant ID is '.' or '..'"),
            (&"x".repeat(151), 400, "tenant ID is too long"),
        ] {
            let answer = api.ask(path, &[("x-scope-orgid", header)]).await;
            assert_eq!(answer.status, status, "{path} {header}");
            assert!(answer.text().contains(part), "{path} {header}: {}", answer.text());
        }
    }
    api.check("/api/echo", 200, "echo\n").await;
    let single = Api::new();
    single.ask("/api/search/tags", &[("x-scope-orgid", "a||b")]).await;
    assert!(single.queries.asked.lock()[0].starts_with("single-tenant: "));
}

#[tokio::test]
async fn several_tenants_are_asked_and_joined() {
    let api = Api::multi_tenant();
    let tenants = [("x-scope-orgid", "b|a|empty:x=y|a")];
    let answer = api.ask(&format!("/api/v2/traces/{KNOWN_ID}"), &tenants).await;
    let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let spans = |resource: usize| json["trace"]["resourceSpans"][resource]["scopeSpans"][0]["spans"].as_array().unwrap().len();
    assert_eq!((spans(0), spans(1)), (2, 1));
    assert_eq!(json["metrics"]["inspectedBytes"], "369");
    let asked: Vec<String> = api.queries.asked.lock().drain(..).map(|asked| asked.split(':').next().unwrap().to_owned()).collect();
    assert_eq!(asked, ["a", "b", "empty"]);

    let answer = api.ask("/api/search?q=%7B%7D", &tenants).await;
    let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((json["traces"].as_array().unwrap().len(), &json["metrics"]["completedJobs"]), (1, &10.into()));
    let answer = api.ask("/api/search/tags", &tenants).await;
    assert!(answer.text().starts_with(r#"{"tagNames":["a","host","service.name","z"],"#));
    let answer = api.ask("/api/search?q=%7B%7D", &[("x-scope-orgid", "a|broken")]).await;
    assert_eq!((answer.status, answer.text()), (500, "internal error"));

    let settings = FrontendSettings { multi_tenant_queries_enabled: false, ..Default::default() };
    let api = Api::with(true, settings, QueryLimits::default());
    assert_eq!(api.ask("/api/search", &[("x-scope-orgid", "a|b")]).await.status, 400);
    assert_eq!(api.ask("/api/search", &[("x-scope-orgid", "a")]).await.status, 200);
}

#[tokio::test]
async fn limits_are_each_tenants_own() {
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let own = |limits: fn(&mut QueryLimits)| {
        let mut changed = QueryLimits::default();
        limits(&mut changed);
        changed
    };
    let short = own(|limits| (limits.max_search_duration, limits.max_metrics_duration) = (Duration::from_secs(3600), Duration::from_secs(60)));
    let long = QueryLimits { max_search_duration: hours(200), ..Default::default() };
    let few_groups = own(|limits| limits.max_condition_groups_per_tag_query = 2);
    let small = own(|limits| limits.max_bytes_per_trace = 50);
    let tenants = [("short", short), ("long", long), ("groups", few_groups), ("small", small)];
    let api = Api::with_own_limits(FrontendSettings::default(), tenants);
    let check = |tenant: &'static str, uri: String, status: u16, part: &'static str| {
        let api = &api;
        async move {
            let answer = api.ask(&uri, &[("x-scope-orgid", tenant)]).await;
            assert_eq!(answer.status, status, "{tenant} {uri}: {}", answer.text());
            assert!(answer.text().contains(part), "{tenant} {uri}: {}", answer.text());
        }
    };
    let search = |length: Duration| format!("/api/search?q=%7B%7D&start=1000&end={}", 1000 + length.as_secs());
    check("short", search(hours(1)), 200, "").await;
    check("short", search(hours(2)), 400, "range specified by start and end exceeds 1h0m0s. received start=1000 end=8200").await;
    check("long", search(hours(200)), 200, "").await;
    check("anyone", search(hours(169)), 400, "range specified by start and end exceeds 168h0m0s").await;
    check("long|anyone", search(hours(169)), 400, "range specified by start and end exceeds 168h0m0s").await;
    check("long|short", "/api/v2/search/tags?start=1000&end=9000".into(), 400, "exceeds 1h0m0s").await;

    let metrics = |tenant, length: u64, part| {
        let uri = format!("/api/metrics/query_range?q=%7B%7D%7Crate()&start={}&end={NOW_SECONDS}&step=60s", NOW_SECONDS - length);
        let api = &api;
        async move {
            let answer = api.ask(&uri, &[("x-scope-orgid", tenant)]).await;
            assert_eq!(answer.text().contains(part), length > 60, "{tenant}: {}", answer.text());
        }
    };
    metrics("short", 61, "metrics query time range exceeds the maximum allowed duration of 1m0s").await;
    metrics("short", 60, "exceeds the maximum allowed duration").await;

    let names = "/api/v2/search/tags?q=%7Bspan.a%3D1%7C%7Cspan.b%3D1%7C%7Cspan.c%3D1%7D";
    check("groups", names.into(), 400, "maximum condition groups reached (limit: 2)").await;
    check("anyone", names.into(), 200, "").await;

    let trace = format!("/api/traces/{KNOWN_ID}");
    check("small", trace.clone(), 422, "trace exceeds max size (max bytes: 50)").await;
    check("anyone", trace, 200, "").await;
    check("", "/status/overrides".into(), 200, "groups\nlong\nshort\nsmall\n").await;
    check("", "/status/overrides/small".into(), 200, "max_bytes_per_trace: 50\n").await;
    check("", "/status/overrides/anyone".into(), 200, "max_bytes_per_trace: 0\n").await;
}
