#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use datafusion::{
    physical_plan::{displayable, empty::EmptyExec},
    prelude::SessionContext,
};
use datafusion_proto::{physical_plan::AsExecutionPlan, protobuf::PhysicalPlanNode};
use object_store::{ObjectStore, memory::InMemory};
use prometheus::Registry;
use prost::Message;
use skein_engine::{
    block::{put::put_block, writer::write_block},
    catalog::{Catalog, CatalogMetrics},
    exec::{
        engine::{Engine, EngineSettings},
        live::{LiveGeneration, LiveSpans},
        memory::Reservation,
        sources::LiveAt,
    },
    lower::{lower_metrics, lower_search},
    metrics::{cells::Cells, detail::Extrapolation, partial::Partial},
    plan::{matches, share_results::reports_of, trace_details::search_results},
    query::SearchRequest,
    spans::{
        BlockId,
        builder::{SpanBuilder, SpanFields},
        gather::OrderedSpans,
        schema::{ColumnPolicy, SpanSchema},
        set::SpanSet,
        tree::order_spans,
    },
    tenant::TenantId,
};

use super::*;

/// Traces 1 to 40, a root and two children each; every fourth trace has its last child in the other set.
fn spans(even: bool) -> SpanSet {
    let mut builder = SpanBuilder::default();
    let resource = builder.resource(None, b"");
    let scope = builder.scope(None, b"");
    for trace in 1..=40u64 {
        for span in 1..=3u64 {
            let here = if trace % 4 == 0 && span == 3 { trace % 2 == 1 } else { trace % 2 == 0 };
            if here != even {
                continue;
            }
            let parent = if span == 1 { 0 } else { 1 };
            builder.begin_span();
            builder.finish_span(
                resource,
                scope,
                &SpanFields {
                    trace_id: u128::from(trace).to_be_bytes(),
                    span_id: span.to_be_bytes(),
                    parent_span_id: u64::to_be_bytes(parent),
                    start_unix_nano: trace * 1_000_000_000 + span,
                    end_unix_nano: trace * 1_000_000_000 + span * 1000,
                    name: if span == 3 { b"leaf" } else { b"other" },
                    ..SpanFields::default()
                },
            );
        }
    }
    builder.snapshot()
}

#[derive(Debug)]
struct Live(BlockId, SpanSet);

impl LiveSpans for Live {
    fn live(&self, _: &TenantId) -> Vec<LiveGeneration> {
        vec![LiveGeneration { block: self.0, set: self.1.clone() }]
    }

    fn tenants(&self) -> Vec<TenantId> {
        vec![TenantId::single()]
    }
}

async fn engine() -> Engine {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let catalog = Arc::new(Catalog::new(CatalogMetrics::new(&Registry::new()).unwrap()));
    let set = spans(true);
    let order = order_spans(&set);
    let schema = SpanSchema::of(&set, ColumnPolicy::BLOCK);
    let objects = write_block(&OrderedSpans::new(set, order, schema)).unwrap();
    catalog.add_block(put_block(&*store, &TenantId::single(), BlockId::random(), objects).await.unwrap());
    Engine::new(store, catalog, Arc::new(Live(BlockId::random(), spans(false))), EngineSettings { partitions: 2, ..EngineSettings::default() })
}

async fn results(engine: &Engine, plan: &Arc<dyn ExecutionPlan>) -> Vec<skein_proto::tempo::TraceSearchMetadata> {
    let batches = engine.execute(plan).await.unwrap();
    batches.iter().flat_map(|batch| search_results(batch).unwrap()).collect()
}

#[tokio::test]
async fn a_plan_answers_the_same_after_the_wire() {
    let engine = engine().await;
    for (query, traces) in [
        ("{ }", 40),
        ("{ name = `leaf` }", 40),
        ("{ name = `other` } > { name = `leaf` } | count() = 1", 40),
        ("{ nestedSetParent < 0 } && { name = `nothing` }", 0),
        ("{ } | by(name) | count() > 1 | select(span:parentID)", 40),
        ("{ nestedSetParent > 0 && duration > 1us && (event:name = `x` || name = `leaf`) && status = unset }", 40),
        ("{ name = `leaf` && name = `other` }", 0),
    ] {
        let request = SearchRequest { query: query.into(), limit: 100, spans_per_spanset: 3, window: None };
        let plan = engine.plan_search(&TenantId::single(), &request).await.unwrap().plan;
        let codec = PlanCodec::new(engine.resolver());
        let bytes = PhysicalPlanNode::try_from_physical_plan(plan.clone(), &codec).unwrap().encode_to_vec();
        let context = SessionContext::new().task_ctx();
        let decoded = PhysicalPlanNode::decode(&*bytes).unwrap().try_into_physical_plan(&context, &codec).unwrap();
        let text = |plan: &Arc<dyn ExecutionPlan>| displayable(plan.as_ref()).indent(true).to_string();
        assert_eq!(text(&decoded), text(&plan));
        let (here, there) = (results(&engine, &plan).await, results(&engine, &decoded).await);
        assert_eq!(here, there, "{query}");
        assert_eq!(here.len(), traces, "{query}");
        assert!(here.is_sorted_by_key(|trace| std::cmp::Reverse(trace.start_time_unix_nano)), "{query}");
    }
}

/// The results of `plan` as the share of `worker`.
fn shared(plan: Arc<dyn ExecutionPlan>, worker: &str) -> Arc<dyn ExecutionPlan> {
    let share = ShareExec::new(plan, worker.into()).unwrap();
    Arc::new(ShareResultsExec::new(Arc::new(share)).unwrap())
}

/// The bytes of `plan` and the plan that they become.
fn round_trip(plan: &Arc<dyn ExecutionPlan>, codec: &PlanCodec) -> (Vec<u8>, Arc<dyn ExecutionPlan>) {
    let bytes = PhysicalPlanNode::try_from_physical_plan(plan.clone(), codec).unwrap().encode_to_vec();
    let decoded = PhysicalPlanNode::decode(&*bytes).unwrap().try_into_physical_plan(&SessionContext::new().task_ctx(), codec).unwrap();
    (bytes, decoded)
}

fn sampled() -> Detail {
    Detail { exemplars: 7, exact: true, extrapolation: Some(Extrapolation { attribute: Some("rate".into()), confidence: true }) }
}

#[tokio::test]
async fn metrics_plans_are_the_same_after_the_wire() {
    let engine = engine().await;
    let codec = PlanCodec::new(engine.resolver());
    let sources = Arc::new(SourceSet::new(TenantId::single(), vec![SourceName::Block { id: BlockId::random() }], engine.resolver()));
    let intervals = Intervals::of_range(1_000_000_000, 9_000_000_000, 1_000_000_000).unwrap();
    for query in [
        "{ } | rate()",
        "{ name = `leaf` } >> { status = error } | avg_over_time(span.size) by (resource.service.name, .b)",
        "{ } | quantile_over_time(duration, .5, .99) by (name)",
        "{ } | histogram_over_time(duration)",
        "{ } | compare({ status = error && name = `x` }, 7, 1, 2)",
    ] {
        let (pipeline, function) = operand(query).unwrap();
        for detail in [Detail::default(), sampled()] {
            let plan = lower_metrics(&pipeline, &function, sources.clone(), intervals, &detail, 3).unwrap();
            let text = |plan: &Arc<dyn ExecutionPlan>| displayable(plan.as_ref()).indent(true).to_string();
            let decoded = round_trip(&plan, &codec).1;
            assert_eq!(text(&decoded), text(&plan));
            let detail_of = |plan: &Arc<dyn ExecutionPlan>| plan.children()[0].downcast_ref::<MetricsScanExec>().unwrap().detail().clone();
            assert_eq!(detail_of(&decoded), detail.for_function(&function));
            let of_cluster: Arc<dyn ExecutionPlan> =
                Arc::new(MetricsMergeExec::new(shared(plan, "http://a:1"), detail.cell_kind(&function), intervals.count()));
            let (bytes, decoded) = round_trip(&of_cluster, &codec);
            assert_eq!(text(&decoded), text(&of_cluster));
            assert_eq!(round_trip(&decoded, &codec).0, bytes);
            assert_eq!(sources_of(&decoded).unwrap().names(), sources.names());
        }
    }
}

/// The order and the evidence are those of the plan, not of what the decoding process would decide.
#[test]
fn what_the_optimiser_decided_is_carried_and_not_decided_again() {
    let codec = PlanCodec::new(Arc::new(Nothing));
    let sources = Arc::new(SourceSet::new(TenantId::single(), Vec::new(), codec.resolver.clone()));
    let term = |expr, prunes_by| FilterTerm { expr: filter(expr).unwrap(), prunes_by };
    let dearest_first = || FilterTerms { terms: vec![term("event.a = 1 && event.b = 2", None), term("status = error", Some(Evidence::Intrinsic))] };
    let written = pipeline("{ status = error && event.a = 1 && event.b = 2 }").unwrap();
    let planned = SpansetPipeline::planned(written.clone(), vec![dearest_first()], true).unwrap();
    let limits = ScanLimits { traces: 3, ..ScanLimits::NONE };
    let scan: Arc<dyn ExecutionPlan> = Arc::new(SpansetScanExec::new(sources.clone(), planned.clone(), limits, 2));
    let intervals = Intervals::of_instant(1, 2).unwrap();
    let function = operand("{ } | rate()").unwrap().1;
    let metrics: Arc<dyn ExecutionPlan> = Arc::new(MetricsScanExec::new(sources, planned.clone(), function, intervals, Detail::default(), 2));

    let decoded = round_trip(&scan, &codec).1;
    let decoded = decoded.downcast_ref::<SpansetScanExec>().unwrap();
    assert_eq!((decoded.pipeline(), decoded.limits()), (&planned, limits));
    assert_eq!(round_trip(&metrics, &codec).1.downcast_ref::<MetricsScanExec>().unwrap().pipeline(), &planned);

    assert!(SpansetPipeline::planned(written.clone(), Vec::new(), false).is_err(), "a filter is missing");
    assert!(SpansetPipeline::planned(written, vec![dearest_first(), dearest_first()], false).is_err(), "there is one too many");
    let two = pipeline("{ status = error } | { event.a = 1 }").unwrap();
    assert!(SpansetPipeline::planned(two, vec![dearest_first(), dearest_first()], true).is_err(), "stages need traces");
}

#[test]
fn the_first_row_group_alone_is_carried() {
    let codec = PlanCodec::new(Arc::new(Nothing));
    for alone in [false, true] {
        let nothing: Arc<dyn ExecutionPlan> = Arc::new(EmptyExec::new(matches::schema()));
        let plan: Arc<dyn ExecutionPlan> = Arc::new(NewestTracesExec::new(nothing, 7).with_first_row_group_alone(alone));
        let decoded = round_trip(&plan, &codec).1;
        let newest = decoded.downcast_ref::<NewestTracesExec>().unwrap();
        assert_eq!((newest.limit(), newest.first_row_group_alone()), (7, alone));
    }
}

#[tokio::test]
async fn every_node_of_a_cluster_search_is_the_same_after_the_wire() {
    let engine = engine().await;
    let codec = PlanCodec::new(engine.resolver());
    let tenant = TenantId::single();
    let at = LiveAt { worker: "http://a:1".into(), version: u64::MAX };
    let names = vec![SourceName::Live { id: BlockId::random(), at: Some(at) }, SourceName::Block { id: BlockId::random() }];
    let left_out: Arc<[TraceId]> = [TraceId([7; 16])].into();
    let sources = Arc::new(SourceSet::new(tenant, names, engine.resolver()).leaving_out(left_out));
    let request = SearchRequest { query: "{ name = `leaf` }".into(), limit: 7, spans_per_spanset: 2, window: None };
    let search = lower_search(traceql::parse(&request.query).unwrap(), sources.clone(), &request, 3).unwrap().plan;
    let plan: Arc<dyn ExecutionPlan> = Arc::new(NewestResultsExec::new(shared(search, "http://a:1"), 7));

    let (bytes, decoded) = round_trip(&plan, &codec);
    let text = |plan: &Arc<dyn ExecutionPlan>| displayable(plan.as_ref()).indent(true).to_string();
    assert_eq!(text(&decoded), text(&plan));
    let after = sources_of(&decoded).unwrap();
    assert_eq!((after.tenant(), after.names(), after.left_out()), (sources.tenant(), sources.names(), sources.left_out()));
    assert_eq!(round_trip(&decoded, &codec).0, bytes);
    let details = decoded.children()[0].children()[0].children()[0];
    let scan = details.children()[0].children()[0];
    assert!(Arc::ptr_eq(sources_of(details).unwrap(), sources_of(scan).unwrap()), "one set of sources for scan and details");
}

#[tokio::test]
async fn a_share_leaves_traces_out_and_says_what_it_read() {
    let engine = engine().await;
    let request = SearchRequest { query: "{ }".into(), limit: 100, spans_per_spanset: 3, window: None };
    let found = engine.plan_search(&TenantId::single(), &request).await.unwrap().sources;
    let left_out: Arc<[TraceId]> = (1..=30u128).chain([32, 36, 40]).map(|number| TraceId(number.to_be_bytes())).collect();
    let names: Vec<SourceName> = found.names().iter().filter(|name| !matches!(name, SourceName::Joined { .. })).cloned().collect();
    let sources = Arc::new(SourceSet::new(TenantId::single(), names, engine.resolver()).leaving_out(left_out));
    let search = lower_search(traceql::parse("{ }").unwrap(), sources, &request, 2).unwrap().plan;
    let plan: Arc<dyn ExecutionPlan> = Arc::new(NewestResultsExec::new(shared(search, "w"), 4));
    let plan = round_trip(&plan, &PlanCodec::new(engine.resolver())).1;
    assert_eq!(reports_of(&plan), [None], "nothing has run");
    let ids: Vec<String> = results(&engine, &plan).await.into_iter().map(|trace| trace.trace_id).collect();
    assert_eq!(ids, [39, 38, 37, 35].map(|id| format!("{id:x}")));
    let report = reports_of(&plan).remove(0).unwrap();
    assert_eq!((report.read.blocks, report.read.spans), (1, 120));
    assert_eq!(report.nodes.len(), 3, "details, newest traces, scan");
    assert!(report.nodes[2].contains("spans_scanned=120"), "{report:?}");
}

/// All 120 spans are in one of two sources; those of 30 traces, which are whole in one of them, are left out.
#[tokio::test]
async fn a_share_of_metrics_leaves_traces_out_and_says_what_it_read() {
    let engine = engine().await;
    let request = SearchRequest { query: "{ }".into(), limit: 100, spans_per_spanset: 3, window: None };
    let found = engine.plan_search(&TenantId::single(), &request).await.unwrap().sources;
    let left_out: Arc<[TraceId]> = (1..=40u128).filter(|trace| trace % 4 != 0).map(|number| TraceId(number.to_be_bytes())).collect();
    let names: Vec<SourceName> = found.names().iter().filter(|name| !matches!(name, SourceName::Joined { .. })).cloned().collect();
    let sources = Arc::new(SourceSet::new(TenantId::single(), names, engine.resolver()).leaving_out(left_out));
    let intervals = Intervals::of_instant(1, 1000 * 1_000_000_000).unwrap();
    let (pipeline, function) = operand("{ } | count_over_time() by (name)").unwrap();
    let share = shared(lower_metrics(&pipeline, &function, sources, intervals, &Detail::default(), 2).unwrap(), "w");
    let plan: Arc<dyn ExecutionPlan> = Arc::new(MetricsMergeExec::new(share, CellKind::Counts, intervals.count()));
    let plan = round_trip(&plan, &PlanCodec::new(engine.resolver())).1;
    let mut partial = Partial::new(CellKind::Counts, intervals.count(), Reservation::default());
    engine.execute(&plan).await.unwrap().iter().for_each(|batch| partial.merge_batch(batch).unwrap());
    let mut counts: Vec<u64> = partial
        .into_series()
        .unwrap()
        .into_iter()
        .map(|(_, cells)| match cells {
            Cells::Counts(counts) => counts[0],
            other => panic!("{other:?}"),
        })
        .collect();
    counts.sort_unstable();
    assert_eq!(counts, [10, 20], "of each fourth trace a leaf and two others");
    let report = reports_of(&plan).remove(0).unwrap();
    assert_eq!((report.read.blocks, report.read.spans), (1, 120));
    assert_eq!(report.nodes.len(), 2, "merge, scan");
}

#[derive(Debug)]
struct Nothing;

#[async_trait::async_trait]
impl SourceResolver for Nothing {
    async fn resolve(&self, _: &TenantId, _: &[SourceName]) -> skein_engine::error::Result<Vec<skein_engine::exec::source::SourceRef>> {
        Ok(Vec::new())
    }
}

#[test]
fn damaged_nodes_are_errors() {
    let codec = PlanCodec::new(Arc::new(Nothing));
    let context = SessionContext::new().task_ctx();
    let converter = datafusion_proto::physical_plan::DefaultPhysicalProtoConverter {};
    for bytes in [
        &b""[..],
        b"{}",
        br#"{"newest_traces":{"limit":1}}"#,
        br#"{"trace_details":{"sources":{"tenant":"t","names":[]},"query":"{ }"}}"#,
        br#"{"share":{"worker":"http://w"}}"#,
        br#"{"newest_results":{"limit":1}}"#,
        br#"{"share_results":{}}"#,
        br#"{"metrics_merge":{"kind":"Counts","intervals":1}}"#,
        br#"{"spanset_scan":{"sources":{"tenant":"..","names":[]},"query":"{ }","window":null,"traces":1,"spans_per_spanset":1,"partitions":1}}"#,
        br#"{"spanset_scan":{"sources":{"tenant":"t","names":[]},"query":"{","window":null,"traces":1,"spans_per_spanset":1,"partitions":1}}"#,
        br#"{"spanset_scan":{"sources":{"tenant":"t","names":[]},"query":"{ }","window":null,"traces":1,"spans_per_spanset":1,"partitions":1,"planned":{"filters":[]}}}"#,
        br#"{"spanset_scan":{"sources":{"tenant":"t","names":[]},"query":"{ }","window":null,"traces":1,"spans_per_spanset":1,"partitions":1,"planned":{"filters":[[{"expr":"true } | { true"}]]}}}"#,
    ] {
        assert!(codec.try_decode(bytes, &[], &context, &converter).is_err(), "{}", String::from_utf8_lossy(bytes));
    }
}
