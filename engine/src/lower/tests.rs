#![allow(clippy::unwrap_used)]

use async_trait::async_trait;
use datafusion::physical_plan::displayable;

use super::*;
use crate::{
    exec::{
        source::SourceRef,
        sources::{SourceName, SourceResolver},
    },
    spans::BlockId,
    tenant::TenantId,
    traceql,
};

#[derive(Debug)]
struct Nothing;

#[async_trait]
impl SourceResolver for Nothing {
    async fn resolve(&self, _: &TenantId, _: &[SourceName]) -> Result<Vec<SourceRef>> {
        Ok(Vec::new())
    }
}

fn sources() -> Arc<SourceSet> {
    Arc::new(SourceSet::new(TenantId::single(), vec![SourceName::Block { id: BlockId::random() }], Arc::new(Nothing)))
}

fn shown(plan: &Arc<dyn ExecutionPlan>) -> Vec<String> {
    displayable(plan.as_ref()).indent(true).to_string().lines().map(str::to_owned).collect()
}

#[test]
fn a_search_is_a_scan_its_newest_traces_and_their_details() {
    let query = "{ span.a = 1 && resource.service.name = `x` } >> { status = error } | count() > 2 | select(span.b)";
    let request = SearchRequest { query: query.into(), limit: 20, spans_per_spanset: 3, window: None };
    let plan = lower_search(traceql::parse(query).unwrap(), sources(), &request, 2).unwrap().plan;
    assert_eq!(
        shown(&plan),
        [
            "TraceDetailsExec: shown=[span.a, resource.service.name, status, span.b]",
            "  NewestTracesExec: limit=20, first row group alone",
            "    SpansetScanExec: query=[{ (span.a = 1) && (resource.service.name = `x`) } >> { status = error } | count() > 2], \
             sources=[blocks=1, live=0, traces in several=0], partitions=2, window=all, traces_per_row_group=20, spans_per_spanset=3, \
             filters=[resource.service.name = `x` (prunes by resources), then span.a = 1 (prunes by column types, statistics and bloom filters); \
             status = error (prunes by statistics)]",
        ]
    );
}

#[test]
fn an_operand_of_a_metrics_query_is_a_scan_and_a_merge() {
    let QueryBody::Metrics(MetricsExpr::Pipeline { pipeline, function }) = traceql::parse("{ duration > 1s } | rate()").unwrap().body else {
        panic!("it is one operand")
    };
    let intervals = Intervals::of_range(60_000_000_000, 120_000_000_000, 60_000_000_000).unwrap();
    assert_eq!(
        shown(&lower_metrics(&pipeline, &function, sources(), intervals, &Detail::default(), 2).unwrap()),
        [
            "MetricsMergeExec: cells=Counts",
            "  MetricsScanExec: query=[{ duration > 1s } | rate()], intervals=2 of 60000000000 ns, \
             sources=[blocks=1, live=0, traces in several=0], partitions=2, without traces, filters=[duration > 1s (prunes by statistics)]",
        ]
    );
}

#[test]
fn of_a_metrics_query_the_spans_are_searched_and_arithmetic_is_refused() {
    let request = SearchRequest { query: String::new(), limit: 1, spans_per_spanset: 1, window: None };
    let lower = |query: &str| lower_search(traceql::parse(query).unwrap(), sources(), &request, 1);
    assert!(shown(&lower("{ name = `x` } | rate()").unwrap().plan)[2].contains("query=[{ name = `x` }]"));
    let refused = lower("({ } | rate()) / ({ } | rate())").unwrap_err();
    assert_eq!(refused.to_string(), "invalid TraceQL query: math expressions not supported in search");
}
