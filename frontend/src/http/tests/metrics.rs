//! Metrics queries.

use super::*;

#[tokio::test]
async fn metrics_queries_are_checked_in_order_and_laid_out() {
    let api = Api::new();
    let check = async |query: &str, status: u16, expected: &str| {
        api.refused(&format!("/api/metrics/query_range?{query}"), status, expected).await;
    };
    let rate = "q=%7B%7D%7Crate()";
    // The window is widened to whole steps, and by one step to the left.
    let asked = "single-tenant: metrics {}|rate() max 0 exemplars 100 by None from 999936000000 by 36000000 count 10002";
    api.asks(&format!("/api/metrics/query_range?{rate}&start=1000&end=1360&step=36ms"), asked).await;
    let asked = "single-tenant: metrics {}|rate() max 7 exemplars 100 by None from 1699999999500000000 by 500000000 count 3";
    api.asks("/api/metrics/query_range?query=%7B%7D%7Crate()&start=2023-11-14T22:13:20Z&end=1700000000.6&step=0.5&maxSeries=7", asked).await;
    api.check(
        &format!("/api/metrics/query_range?{rate}&start=1000&end=1060&step=60s"),
        200,
        r#"{"series":[{"labels":[{"key":"__name__","value":{"stringValue":"rate"}}],"samples":[{"timestampMs":"960000"},{"timestampMs":"1020000","value":1.5}]}],"metrics":{"completedJobs":1,"totalJobs":1}}"#,
    )
    .await;
    check(&format!("{rate}&start=x"), 400, "rpc error: code = Code(400) desc = could not parse 'start' parameter: ").await;
    check(&format!("{rate}&start=1741398200&end=1741397000"), 400, "end must be greater than start").await;
    check(&format!("{rate}&start=1&end=90000"), 400, "metrics query time range exceeds the maximum allowed duration of 24h0m0s").await;
    check(&format!("{rate}&start=1000&end=1360&step=35ms"), 400, "step of 35ms is too small, minimum step for given range is 36ms").await;
    check(&format!("{rate}&step=0"), 400, "step of 0s is too small, ").await;
    check(&format!("{rate}&step=0s"), 400, "step of 0s is too small, ").await;
    check(&format!("{rate}&step=-5s"), 400, "cannot parse \"-5s\": step must be positive").await;
    check(&format!("{rate}&step=often"), 400, "cannot parse \"often\" to a valid duration").await;
    check("q=%7B%20%7D", 400, "not a metrics query").await;
    check("q=%7B.%20a%7D", 400, "unexpected END_ATTRIBUTE, expecting IDENTIFIER").await;
    let text = api.ask("/api/metrics/query_range?q=%7B", &[]).await;
    assert!(text.text().starts_with("parse error at line 1"), "{}", text.text());
    let text = api.ask("/api/metrics/query?q=%7B", &[]).await;
    assert!(text.text().starts_with("compiling query: parse error at line 1"), "{}", text.text());
    api.check("/api/metrics/query?q=%7B%20%7D", 400, "not a metrics query").await;
    api.queries.asked.lock().clear();
    let asked = "single-tenant: metrics {}|rate() max 0 exemplars 0 by None from 1000000000000 by 360000000000 count 1";
    api.asks(&format!("/api/metrics/query?{rate}&start=1000&end=1360"), asked).await;

    for accept in ["application/protobuf", "application/vnd.grafana.llm"] {
        let answer = api.ask(&format!("/api/metrics/query?{rate}"), &[("accept", accept)]).await;
        assert_eq!((answer.status, answer.content_type.as_str(), answer.body[0]), (200, "application/json", b'{'), "{accept}");
    }

    let settings = FrontendSettings { query_end_cutoff: Duration::from_secs(30), ..Default::default() };
    let api = Api::with(false, settings, QueryLimits::default());
    let recent = format!("/api/metrics/query_range?{rate}&start={}&end={}", NOW_SECONDS - 20, NOW_SECONDS);
    api.check(&recent, 400, "query window falls entirely within query_end_cutoff").await;
}

#[tokio::test]
async fn exemplars_and_sampling_are_asked_for_as_documented() {
    let mut settings = FrontendSettings::default();
    settings.metrics.max_exemplars = 50;
    settings.metrics.sampling_attribute = "sampling.rate".into();
    let api = Api::with(false, settings, QueryLimits::default());
    let check = async |query: &str, hint: &str, parameter: &str, expected: u32| {
        api.queries.asked.lock().clear();
        let uri = format!("/api/metrics/query_range?q=%7B%7D%7Crate(){hint}&start=1000&end=1060&step=60s{parameter}");
        let asked =
            format!("single-tenant: metrics {query} max 0 exemplars {expected} by Some(\"sampling.rate\") from 900000000000 by 60000000000 count 3");
        api.asks(&uri, &asked).await;
    };
    for (parameter, expected) in
        [("", 50), ("&exemplars=0", 50), ("&exemplars=x", 50), ("&exemplars=-1", 50), ("&exemplars=7", 7), ("&exemplars=900", 50)]
    {
        check("{}|rate()", "", parameter, expected).await;
    }
    check("{}|rate()with(exemplars=false)", "with(exemplars%3Dfalse)", "&exemplars=7", 0).await;
    check("{}|rate()with(exemplars=3)", "with(exemplars%3D3)", "&exemplars=7", 3).await;
    check("{}|rate()with(exemplars=`3`)", "with(exemplars%3D%603%60)", "&exemplars=7", 7).await;
}
