//! Our nodes inside plans of other makers.
#![allow(clippy::unwrap_used)]

use arrow::{array::AsArray, datatypes::Int64Type};
use datafusion::{
    execution::context::QueryPlanner,
    functions_aggregate::count::count_all,
    logical_expr::{col, lit},
    physical_plan::{displayable, execute_stream},
    prelude::{DataFrame, SessionConfig, SessionContext},
};
use futures::TryStreamExt;

use super::*;
use crate::{
    error::Result as EngineResult,
    exec::{
        source::{MemorySource, SourceRef},
        sources::{SourceName, SourceResolver, SourceSet},
    },
    lower::logical_search,
    optimize,
    plan::logical,
    query::SearchRequest,
    spans::{
        BlockId,
        builder::{SpanBuilder, SpanFields},
    },
    tenant::TenantId,
    traceql::{self, QueryBody},
};

#[derive(Debug)]
struct Nothing;

#[async_trait]
impl SourceResolver for Nothing {
    async fn resolve(&self, _: &TenantId, _: &[SourceName]) -> EngineResult<Vec<SourceRef>> {
        Ok(Vec::new())
    }
}

/// Traces 1 to 40, one a second; a root and, in every second one, two children named `leaf`.
fn sources() -> Arc<SourceSet> {
    let mut builder = SpanBuilder::default();
    let (resource, scope) = (builder.resource(None, b""), builder.scope(None, b""));
    for trace in 1..=40u64 {
        for span in 1..=if trace % 2 == 0 { 3u64 } else { 1 } {
            builder.begin_span();
            builder.finish_span(
                resource,
                scope,
                &SpanFields {
                    trace_id: u128::from(trace).to_be_bytes(),
                    span_id: span.to_be_bytes(),
                    parent_span_id: u64::from(span > 1).to_be_bytes(),
                    start_unix_nano: trace * 1_000_000_000,
                    end_unix_nano: trace * 1_000_000_000 + 1000,
                    name: if span > 1 { b"leaf" } else { b"root" },
                    ..SpanFields::default()
                },
            );
        }
    }
    let source: SourceRef = Arc::new(MemorySource::new(builder.snapshot()));
    let name = SourceName::Live { id: BlockId::from_u128(1), at: None };
    Arc::new(SourceSet::opened(TenantId::single(), vec![(name, source)], Arc::new(Nothing)))
}

/// DataFusion's planner with ours.
#[derive(Debug)]
struct Both;

#[async_trait]
impl QueryPlanner for Both {
    async fn create_physical_plan(&self, plan: &LogicalPlan, session: &dyn Session) -> Result<Arc<dyn ExecutionPlan>> {
        let planner = DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(NodePlanner::default())]);
        planner.create_physical_plan(plan, session).await
    }
}

/// A session with all of DataFusion's rules and ours.
fn session(rules: Vec<Arc<dyn datafusion::optimizer::OptimizerRule + Send + Sync>>) -> SessionState {
    let builder = SessionStateBuilder::new().with_config(SessionConfig::new().with_target_partitions(4)).with_default_features();
    rules.into_iter().fold(builder, |builder, rule| builder.with_optimizer_rule(rule)).with_query_planner(Arc::new(Both)).build()
}

/// The plan of a search up to its newest traces, and with the details.
fn search(query: &str, limit: usize) -> (LogicalPlan, LogicalPlan) {
    let QueryBody::Search(pipeline) = traceql::parse(query).unwrap().body else { panic!("{query} is no search") };
    let request = SearchRequest { query: query.into(), limit, spans_per_spanset: 3, window: None };
    let details = logical_search(&pipeline, &sources(), &request);
    (logical::head::<TraceDetails>(&details).unwrap().input.clone(), details)
}

#[tokio::test]
async fn a_search_stands_under_nodes_of_datafusion() {
    let (newest, _) = search("{ name = `leaf` } | select(.a)", 10);
    let session = session(optimize::rules());
    // Of the newest ten with a leaf (40, 38, … 22), those that start before 30 s.
    let frame = DataFrame::new(session.clone(), newest);
    let frame = frame.filter(col("trace_start_unix_nano").lt(lit(30_000_000_000u64))).unwrap();
    let frame = frame.aggregate(vec![col("matched")], vec![count_all()]).unwrap();
    let plan = frame.create_physical_plan().await.unwrap();
    let batches: Vec<_> = execute_stream(plan.clone(), session.task_ctx()).unwrap().try_collect().await.unwrap();
    let counts: Vec<i64> = batches.iter().flat_map(|batch| batch.column(1).as_primitive::<Int64Type>().values().to_vec()).collect();
    assert_eq!(counts, [4]);

    let shown = displayable(&*plan).indent(false).to_string();
    let ours: Vec<&str> = shown.lines().map(str::trim).skip_while(|line| !line.starts_with("NewestTracesExec")).collect();
    assert_eq!(ours[0], "NewestTracesExec: limit=10, first row group alone", "{shown}");
    let scan = "SpansetScanExec: query=[{ name = `leaf` }], sources=[blocks=0, live=1, traces in several=0], partitions=4";
    assert!(ours[1..] == [scan] || ours[1..] == ["CooperativeExec", scan], "nothing divides or orders what our nodes read:\n{shown}");
}

#[tokio::test]
async fn details_can_be_sorted_and_limited() {
    let (_, details) = search("{ name = `root` }", 40);
    let frame = DataFrame::new(session(optimize::rules()), details);
    let frame = frame.sort(vec![col("trace_start_unix_nano").sort(true, true)]).unwrap().limit(1, Some(2)).unwrap();
    let batches = frame.select_columns(&["trace_start_unix_nano", "root_name"]).unwrap().collect().await.unwrap();
    let rows: Vec<(u64, String)> = batches
        .iter()
        .flat_map(|batch| {
            let (starts, names) = (batch.column(0).as_primitive::<arrow::datatypes::UInt64Type>(), batch.column(1).as_string::<i32>());
            starts.values().iter().zip(names).map(|(start, name)| (start / 1_000_000_000, name.unwrap().to_owned())).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(rows, [(2, "root".to_owned()), (3, "root".to_owned())]);
}

#[tokio::test]
async fn a_search_that_finds_nothing_is_empty_for_datafusion_too() {
    let (newest, _) = search("{ name = `a` && name = `b` }", 10);
    let session = session(optimize::rules());
    let frame = DataFrame::new(session.clone(), newest).filter(col("matched").gt(lit(1u32))).unwrap();
    assert!(frame.clone().collect().await.unwrap().iter().all(|batch| batch.num_rows() == 0));
    assert!(logical::is_nothing(&frame.into_optimized_plan().unwrap()));
}

#[tokio::test]
async fn a_session_without_our_rules_says_what_it_lacks() {
    let (newest, _) = search("{ }", 10);
    let error = DataFrame::new(session(Vec::new()), newest).create_physical_plan().await.unwrap_err();
    assert!(error.to_string().contains("the session lacks our optimiser rules"), "{error}");
}

#[test]
fn nodes_are_equal_when_they_ask_the_same_of_the_same_sources() {
    let QueryBody::Search(pipeline) = traceql::parse("{ .a = 1.5 } | by(.b)").unwrap().body else { panic!("it is a search") };
    let sources = sources();
    let plan = |limit, sources: &Arc<SourceSet>, pipeline| {
        let request = SearchRequest { query: String::new(), limit, spans_per_spanset: 3, window: None };
        optimize::optimize(logical_search(pipeline, sources, &request)).unwrap()
    };
    let first = plan(10, &sources, &pipeline);
    assert_eq!(first, plan(10, &sources, &pipeline));
    assert_ne!(first, plan(11, &sources, &pipeline));
    assert_ne!(first, plan(10, &self::sources(), &pipeline));
    let QueryBody::Search(other) = traceql::parse("{ .a = 1.6 } | by(.b)").unwrap().body else { panic!("it is a search") };
    assert_ne!(first, plan(10, &sources, &other));
}

#[tokio::test]
async fn planning_without_a_session_gives_the_same_nodes() {
    let (_, details) = search("{ name = `leaf` }", 10);
    let ours = physical_plan(&optimize::optimize(details.clone()).unwrap(), 4).unwrap();
    let context = SessionContext::new_with_state(session(optimize::rules()));
    let theirs = DataFrame::new(context.state(), details).create_physical_plan().await.unwrap();
    let nodes = |plan: &Arc<dyn ExecutionPlan>| {
        let shown = displayable(&**plan).indent(true).to_string();
        shown.lines().map(|line| line.trim().to_owned()).filter(|line| line != "CooperativeExec").collect::<Vec<_>>()
    };
    assert_eq!(nodes(&theirs), nodes(&ours));
}
