//! TraceQL metrics over a cluster: each worker adds up its share, and the sum is what one process says.

use datafusion::arrow::datatypes::UInt64Type;
use skein_engine::{plan::share_results::reports_of, query::ScanStats};

use super::*;

fn whole() -> Intervals {
    Intervals::of_instant(999 * SECOND, 3000 * SECOND).unwrap()
}

fn counting(query: &str) -> MetricsRequest {
    MetricsRequest { query: query.into(), intervals: whole(), max_series: 0, exemplars: 100, sampling_attribute: None }
}

async fn ask(queries: &dyn QueryService, query: &str) -> Result<MetricsResult> {
    queries.metrics(&TenantId::single(), counting(query)).await
}

/// All samples of the answer, added up.
pub(super) async fn total(queries: &dyn QueryService, query: &str) -> u64 {
    let result = ask(queries, query).await.unwrap_or_else(|error| panic!("{query}: {error}"));
    result.series.iter().flat_map(|series| &series.samples).map(|sample| sample.value as u64).sum()
}

/// The plans of the operands of `query`.
async fn planned(cluster: &TestCluster, query: &str) -> Vec<Arc<dyn ExecutionPlan>> {
    let plan = cluster.coordinator.plan_metrics(&TenantId::single(), &counting(query)).await.unwrap();
    plan.operands.into_iter().map(|operand| operand.plan.unwrap()).collect()
}

/// The spans that a plan counts.
async fn counted(cluster: &TestCluster, plan: &Arc<dyn ExecutionPlan>) -> Result<u64> {
    let batches = cluster.coordinator.run(plan).await?;
    let count = |batch: &RecordBatch| batch.column_by_name("count").unwrap().as_primitive::<UInt64Type>().values().iter().sum::<u64>();
    Ok(batches.iter().map(count).sum())
}

/// A cluster of three workers without live spans over blocks of whole traces, from which workers read through `worker_store`.
async fn over_blocks(store: Arc<dyn ObjectStore>, worker_store: Arc<dyn ObjectStore>, live: Vec<Vec<SpanSet>>) -> TestCluster {
    let whole_blocks = (0..6u64).map(|block| set_of(all_spans().filter(|&(trace, _)| trace % 6 == block))).collect();
    TestCluster::over(store, worker_store, settings(), live, whole_blocks).await
}

fn in_memory() -> Arc<dyn ObjectStore> {
    Arc::new(InMemory::new())
}

#[tokio::test]
async fn the_figures_of_a_metrics_query_are_those_of_one_process() {
    for query in [
        "{ } | rate()",
        "{ span.http.status_code >= 500 } | count_over_time() by (name)",
        "{ name = `work` } > { name = `leaf` } | avg_over_time(duration)",
        "({ status = error } | rate()) / ({ } | rate())",
    ] {
        // Engines that know nothing yet, so that bringing split traces together is among what is read.
        let (cluster, one) = (TestCluster::start(live(), blocks()).await, one_process(live(), blocks()).await);
        let (ours, expected) = (ask(&*cluster, query).await.unwrap().stats, ask(&one, query).await.unwrap().stats);
        assert_eq!(ours, expected, "{query}");
        assert_eq!(ours.blocks, 2, "{query}");
    }
}

#[tokio::test]
async fn each_worker_reads_its_share_where_it_is() {
    let live = (0..3u64).map(|worker| vec![set_of((1..=SPANS).map(|span| (TRACES + 1 + worker, span)))]).collect();
    let store = in_memory();
    let cluster = over_blocks(store.clone(), store, live).await;
    let all = (TRACES + 3) * SPANS;
    let plan = &planned(&cluster, "{ } | count_over_time() by (name)").await[0];
    let reads = || cluster.nodes.iter().map(|node| node.reads.requests("GET")).collect::<Vec<_>>();
    let (before, of_coordinator) = (reads(), cluster.reads.requests("GET"));
    assert_eq!(counted(&cluster, plan).await.unwrap(), all);
    let reports: Vec<ScanStats> = reports_of(plan).into_iter().map(|report| report.unwrap().read).collect();
    assert_eq!(reports.iter().map(|read| read.blocks).collect::<Vec<_>>(), [2, 2, 2], "blocks of one size are dealt out evenly");
    assert_eq!(reports.iter().map(|read| read.spans).collect::<Vec<_>>(), [all / 3; 3]);
    assert!(before.iter().zip(reads()).all(|(before, after)| after > *before), "each worker reads blocks");
    assert_eq!(cluster.reads.requests("GET"), of_coordinator, "and the coordinator none");
    assert_eq!(cluster.nodes.iter().map(Node::fetches).sum::<u64>(), 0, "live spans are counted where they are");

    let shown = displayable(plan.as_ref()).indent(false).to_string();
    assert!(shown.contains("MetricsMergeExec") && shown.contains("NetworkCoalesceExec: output_partitions=3"), "one partial a worker\n{shown}");
}

#[tokio::test]
async fn a_cluster_of_one_worker_and_an_empty_one_count() {
    let count = "{ } | count_over_time()";
    let cluster = TestCluster::start(vec![set_of(all_spans())], Vec::new()).await;
    assert_eq!(total(&*cluster, count).await, TRACES * SPANS);
    let cluster = TestCluster::start(vec![set_of([]), set_of([])], Vec::new()).await;
    let one = one_process(Vec::new(), Vec::new()).await;
    for query in [count, "({ } | rate()) / ({ } | rate())"] {
        assert_eq!(ask(&*cluster, query).await.unwrap().series, ask(&one, query).await.unwrap().series, "{query}");
    }
}

#[tokio::test]
async fn a_wrong_metrics_query_is_the_users_mistake() {
    let cluster = TestCluster::start(live(), blocks()).await;
    for query in ["{ } | rate(", "{ }"] {
        assert_eq!(ask(&*cluster, query).await.unwrap_err().kind(), ErrorKind::Invalid, "{query}");
    }
}

/// The live spans of worker 1 and one more.
fn grow(cluster: &TestCluster) {
    let node = &cluster.nodes[1];
    let mut grown = node.live.live(&TenantId::single());
    grown[0].set = set_of(all_spans().filter(|&(trace, span)| places(trace, span).contains(&Place::Live(1))).chain([(TRACES + 1, 1)]));
    node.live.replace(grown);
}

#[tokio::test]
async fn every_operand_counts_the_same_spans() {
    let cluster = TestCluster::start(live(), blocks()).await;
    let query = "({ } | count_over_time()) / ({ } | count_over_time() by (name))";
    let plans = planned(&cluster, query).await;
    assert_eq!(plans.len(), 2);
    assert_eq!(counted(&cluster, &plans[0]).await.unwrap(), TRACES * SPANS);
    grow(&cluster);
    assert_eq!(counted(&cluster, &plans[1]).await.unwrap(), TRACES * SPANS, "as listed, though there is a newer version");
    assert_eq!(planned(&cluster, "({ } | rate()) / ({ } | rate())").await.len(), 1, "equal operands are computed once");
    assert_eq!(total(&*cluster, "{ } | count_over_time()").await, TRACES * SPANS + 1);
}

#[tokio::test]
async fn a_listed_version_that_is_gone_is_an_error_and_the_query_plans_again() {
    let store = in_memory();
    let nothing_kept = EngineSettings { memory_source_bytes: 0, ..settings() };
    let cluster = TestCluster::over(store.clone(), store, nothing_kept, live().into_iter().map(|set| vec![set]).collect(), blocks()).await;
    let plan = &planned(&cluster, "{ } | rate()").await[0];
    grow(&cluster);
    let error = counted(&cluster, plan).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.message().contains(&*cluster.nodes[1].url) && error.message().contains("is gone"), "{error}");
    assert_eq!(total(&cluster, "{ } | count_over_time()").await, TRACES * SPANS + 1);
}

#[tokio::test]
async fn a_worker_that_dies_in_the_middle_is_named() {
    let (store, waiting) = (in_memory(), Arc::new(AtomicUsize::new(0)));
    let stuck = Arc::new(StuckStore { inner: store.clone(), waiting: waiting.clone() });
    let mut cluster = over_blocks(store, stuck, vec![Vec::new(); 3]).await;
    let asking = tokio::spawn({
        let coordinator = cluster.coordinator.clone();
        async move { coordinator.metrics(&TenantId::single(), counting("{ } | rate() by (name)")).await }
    });
    until("reading on all workers", || waiting.load(SeqCst) >= 3).await;
    cluster.nodes[1].die();
    let error = tokio::time::timeout(SOON, asking).await.expect("a worker that died is given up").unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.message().contains(&*cluster.nodes[1].url), "{error}");
    until("the end of all reads", || waiting.load(SeqCst) == 0).await;
}

#[tokio::test]
async fn dropping_a_metrics_query_stops_the_workers() {
    let (store, waiting) = (in_memory(), Arc::new(AtomicUsize::new(0)));
    let stuck = Arc::new(StuckStore { inner: store.clone(), waiting: waiting.clone() });
    let cluster = over_blocks(store, stuck, vec![Vec::new(); 3]).await;
    let asking = tokio::spawn({
        let coordinator = cluster.coordinator.clone();
        async move { coordinator.metrics(&TenantId::single(), counting("{ } | rate() by (name)")).await.map(|result| result.stats) }
    });
    until("reading on all workers", || waiting.load(SeqCst) >= 3).await;
    asking.abort();
    assert!(asking.await.unwrap_err().is_cancelled());
    until("the end of all reads", || waiting.load(SeqCst) == 0).await;
}
