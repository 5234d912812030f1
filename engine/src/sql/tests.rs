#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use arrow::{datatypes::DataType, util::pretty::pretty_format_batches};
use futures::TryStreamExt;
use object_store::{ObjectStore, memory::InMemory};
use prometheus::Registry;
use prost::Message;
use skein_proto::otlp::{
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value::Value as Otlp},
    resource::v1::Resource,
};

use super::{SqlRows, SqlService};
use crate::{
    block::{put::put_block, writer::write_block},
    catalog::{Catalog, CatalogMetrics},
    error::ErrorKind,
    exec::{
        engine::{Engine, EngineSettings},
        live::{LiveGeneration, LiveSpans},
    },
    query::{QueryService, ScanStats, SearchRequest},
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

fn pair(key: &str, value: Otlp) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..Default::default() }
}

fn text(value: &str) -> Otlp {
    Otlp::StringValue(value.into())
}

/// One span of the test, its attributes beside it.
struct Span {
    trace: u8,
    id: u8,
    parent: u8,
    service: &'static str,
    name: &'static str,
    attributes: Vec<KeyValue>,
    events: Vec<(&'static str, Vec<KeyValue>)>,
}

/// Two traces: shop(1) > cart(2), shop(3) in the first, cart(1) alone in the second.
fn spans() -> Vec<Span> {
    let array = Otlp::ArrayValue(ArrayValue { values: vec![AnyValue { value: Some(text("a")) }, AnyValue { value: Some(text("b")) }] });
    let span = |trace, id, parent, service, name| Span { trace, id, parent, service, name, attributes: Vec::new(), events: Vec::new() };
    vec![
        Span { attributes: vec![pair("code", Otlp::IntValue(200)), pair("mixed", text("x"))], ..span(1, 1, 0, "shop", "GET /") },
        Span {
            attributes: vec![pair("code", Otlp::IntValue(500)), pair("mixed", Otlp::IntValue(5)), pair("list", array)],
            events: vec![("boom", vec![pair("why", text("full"))]), ("again", vec![])],
            ..span(1, 2, 1, "cart", "add")
        },
        Span { attributes: vec![pair("ratio", Otlp::DoubleValue(0.5))], ..span(1, 3, 1, "shop", "render") },
        Span { attributes: vec![pair("code", Otlp::IntValue(404))], ..span(2, 1, 0, "cart", "add") },
    ]
}

fn set_of(spans: &[Span]) -> SpanSet {
    let mut builder = SpanBuilder::default();
    for span in spans {
        let resource =
            Resource { attributes: vec![pair("service.name", text(span.service)), pair("host.id", Otlp::IntValue(7))], ..Default::default() };
        let resource = builder.resource(Some(&resource.encode_to_vec()), b"");
        let scope = InstrumentationScope { name: "lib".into(), version: "1".into(), ..Default::default() };
        let scope = builder.scope(Some(&scope.encode_to_vec()), b"");
        builder.begin_span();
        span.attributes.iter().for_each(|attribute| builder.attribute(&attribute.encode_to_vec()).unwrap());
        let start = u64::from(span.trace) * 1_000_000_000 + u64::from(span.id) * 1_000;
        for (name, attributes) in &span.events {
            builder.begin_event();
            attributes.iter().for_each(|attribute| builder.event_attribute(&attribute.encode_to_vec()).unwrap());
            builder.finish_event(start + 5, name.as_bytes(), 0);
        }
        let (trace_id, parent) = (u128::from(span.trace).to_be_bytes(), u64::from(span.parent).to_be_bytes());
        builder.finish_span(
            resource,
            scope,
            &SpanFields {
                trace_id,
                span_id: u64::from(span.id).to_be_bytes(),
                parent_span_id: parent,
                start_unix_nano: start,
                end_unix_nano: start + u64::from(span.id) * 100,
                name: span.name.as_bytes(),
                kind: 2,
                status_code: if span.name == "add" { 2 } else { 0 },
                ..SpanFields::default()
            },
        );
    }
    builder.snapshot()
}

#[derive(Debug)]
struct Live(Vec<LiveGeneration>);

impl LiveSpans for Live {
    fn live(&self, _: &TenantId) -> Vec<LiveGeneration> {
        self.0.clone()
    }

    fn tenants(&self) -> Vec<TenantId> {
        vec![TenantId::single()]
    }
}

/// An engine with the first `stored` spans in a block and the others live.
async fn engine(stored: usize) -> Engine {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let catalog = Arc::new(Catalog::new(CatalogMetrics::new(&Registry::new()).unwrap()));
    let all = spans();
    let (block, live) = all.split_at(stored);
    if !block.is_empty() {
        let set = set_of(block);
        let order = order_spans(&set);
        let schema = SpanSchema::of(&set, ColumnPolicy::BLOCK);
        let objects = write_block(&OrderedSpans::new(set, order, schema)).unwrap();
        catalog.add_block(put_block(&*store, &TenantId::single(), BlockId::random(), objects).await.unwrap());
    }
    let live = (!live.is_empty()).then(|| LiveGeneration { block: BlockId::random(), set: set_of(live) }).into_iter().collect();
    Engine::new(store, catalog, Arc::new(Live(live)), EngineSettings { partitions: 2, ..EngineSettings::default() })
}

async fn rows(engine: &Engine, query: &str) -> crate::error::Result<Vec<String>> {
    let statement = engine.prepare(&TenantId::single(), query).await?;
    let batches: Vec<_> = statement.run(None).await?.batches.try_collect().await?;
    let table = pretty_format_batches(&batches).unwrap().to_string();
    let cells = |line: &str| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>().join(" ");
    Ok(table.lines().filter(|line| line.starts_with('|')).skip(1).map(cells).collect())
}

/// Runs `query` with all spans live, all stored, and one trace in both places.
async fn check(query: &str, expected: &[&str]) {
    for stored in [0, 2, 4] {
        assert_eq!(rows(&engine(stored).await, query).await.unwrap(), expected, "{query} with {stored} spans stored");
    }
}

async fn refused(query: &str) -> String {
    let error = rows(&engine(2).await, query).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{query}: {error}");
    error.to_string()
}

#[tokio::test]
async fn spans_have_ids_times_and_parents() {
    check(
        "SELECT trace_id, span_id, parent_span_id, name, kind, status, duration_nanos FROM spans ORDER BY trace_id, span_id",
        &[
            "00000000000000000000000000000001 0000000000000001  GET / server unset 100",
            "00000000000000000000000000000001 0000000000000002 0000000000000001 add server error 200",
            "00000000000000000000000000000001 0000000000000003 0000000000000001 render server unset 300",
            "00000000000000000000000000000002 0000000000000001  add server error 100",
        ],
    )
    .await;
    check(
        "SELECT start_time, end_time - start_time, root_name, root_service_name, trace_duration_nanos, child_count \
         FROM spans WHERE name = 'render'",
        &["1970-01-01T00:00:01.000003Z PT0.0000003S GET / shop 2300 0"],
    )
    .await;
}

#[tokio::test]
async fn attributes_are_columns_with_their_types() {
    check("SELECT sum(\"span.code\") FROM spans WHERE \"span.code\" >= 404", &["904"]).await;
    check("SELECT \"resource.service.name\" AS service, count(*), max(\"span.ratio\") FROM spans GROUP BY 1 ORDER BY 1", &["cart 2 ", "shop 2 0.5"])
        .await;
    check("SELECT \"span.mixed\" FROM spans WHERE \"span.mixed\" IS NOT NULL ORDER BY 1", &["5", "x"]).await;
    check("SELECT DISTINCT \"resource.host.id\" + 1, scope_name, scope_version FROM spans", &["8 lib 1"]).await;
    check("SELECT attr('list'), attr('code') FROM spans WHERE attr('list') IS NOT NULL", &["[a, b] 500"]).await;
    check("SELECT count(*) FROM spans WHERE attr('service.name') = 'cart'", &["2"]).await;
}

#[tokio::test]
async fn filters_prune_and_change_nothing() {
    for (filter, count) in [
        ("name = 'add'", "2"),
        ("name <> 'add'", "2"),
        ("status = 'error' AND \"resource.service.name\" = 'cart'", "2"),
        ("status <> 'error'", "2"),
        ("kind IN ('server', 'client')", "4"),
        ("duration_nanos BETWEEN 150 AND 250", "1"),
        ("trace_id = '00000000000000000000000000000002'", "1"),
        ("trace_id IN ('00000000000000000000000000000002', 'nonsense')", "1"),
        ("trace_id = 'nonsense'", "0"),
        ("\"span.code\" = 500 OR \"span.code\" = 404", "2"),
        ("NOT (\"span.code\" = 500)", "2"),
        ("start_time < '1970-01-01T00:00:01.000002Z'", "1"),
        ("start_time >= to_timestamp(2)", "1"),
        ("name LIKE 'a%' AND \"span.code\" IS NOT NULL", "2"),
        ("\"span.mixed\" = '5'", "1"),
        ("\"span.mixed\" IN ('5', 'x')", "2"),
        ("\"span.mixed\" <> '5'", "1"),
    ] {
        check(&format!("SELECT count(*) FROM spans WHERE {filter}"), &[count]).await;
    }
}

#[tokio::test]
async fn events_are_a_table() {
    check(
        "SELECT span_id, event_name, since_start_nanos, \"event.why\", \"resource.service.name\" FROM events ORDER BY event_name",
        &["0000000000000002 again 5  cart", "0000000000000002 boom 5 full cart"],
    )
    .await;
    check("SELECT count(*) FROM links", &["0"]).await;
}

#[tokio::test]
async fn traceql_is_a_table() {
    check(
        "SELECT trace_id, span_id, spanset FROM traceql('{ resource.service.name = \"shop\" } > { status = error }')",
        &["00000000000000000000000000000001 0000000000000002 0"],
    )
    .await;
    check("SELECT spanset, count(*) FROM traceql('{ } | by(resource.service.name)') WHERE trace_id LIKE '%1' GROUP BY 1 ORDER BY 1", &["0 2", "1 1"])
        .await;
    check("SELECT count(*) FROM traceql('{ } >> { status = error }', 0, 2)", &["1"]).await;
    check("SELECT s.name FROM trace('1') s JOIN trace('1') p ON s.parent_span_id = p.span_id ORDER BY 1", &["add", "render"]).await;
}

/// In trace 1 shop(1) runs from 1000 ns to 1100 ns after the second, its children only after that.
#[tokio::test]
async fn functions_take_whole_traces() {
    check(
        "SELECT span_id, self_time_nanos, critical_path_nanos FROM critical_path() WHERE duration_nanos >= 100 ORDER BY trace_id, span_id",
        &["0000000000000001 100 100", "0000000000000002 200 0", "0000000000000003 300 0", "0000000000000001 100 100"],
    )
    .await;
    check("SELECT span_id FROM critical_path('{ name = \"render\" }') ORDER BY 1", &["0000000000000001", "0000000000000002", "0000000000000003"])
        .await;
    check("SELECT span_id FROM critical_path('{ name = \"render\" }') WHERE name = 'add'", &["0000000000000002"]).await;
    check("SELECT count(*) FROM critical_path('{ status = error }', 2, 3)", &["1"]).await;
    check("SELECT count(*), sum(self_time_nanos) FROM critical_path('1')", &["3 600"]).await;
    check(
        "SELECT ordinal, depth, path, service, name FROM span_tree('1') ORDER BY ordinal",
        &["0 0 GET / shop GET /", "1 1 GET /;add cart add", "2 1 GET /;render shop render"],
    )
    .await;
    check("SELECT * FROM service_graph()", &["shop cart  1 1 200 200 200"]).await;
    check("SELECT calls FROM service_graph('{ name = \"render\" }') WHERE client = 'shop'", &["1"]).await;
    check("SELECT count(*) FROM service_graph(NULL, 2, 3)", &["0"]).await;
}

#[tokio::test]
async fn traces_and_services_are_tables() {
    check(
        "SELECT * FROM traces ORDER BY trace_id",
        &[
            "00000000000000000000000000000001 shop GET / 1970-01-01T00:00:01.000001Z 2300 3 1 [cart, shop]",
            "00000000000000000000000000000002 cart add 1970-01-01T00:00:02.000001Z 100 1 1 [cart]",
        ],
    )
    .await;
    check("SELECT count(*) FROM traces", &["2"]).await;
    check("SELECT span_count FROM traces WHERE duration_nanos > 100 AND root_name = 'GET /'", &["3"]).await;
    check("SELECT count(*) FROM traces WHERE start_time < '1970-01-01T00:00:01.5Z'", &["1"]).await;
    check("SELECT span_count FROM traces WHERE trace_id = '00000000000000000000000000000002'", &["1"]).await;
    check(
        "SELECT * FROM services ORDER BY service",
        &[
            "cart 2 2 2 1970-01-01T00:00:01.000002Z 1970-01-01T00:00:02.000001100Z",
            "shop 2 0 1 1970-01-01T00:00:01.000001Z 1970-01-01T00:00:01.000003300Z",
        ],
    )
    .await;
}

#[tokio::test]
async fn metrics_are_a_table_with_a_column_for_each_label() {
    let by_service = "traceql_metrics('{ } | count_over_time() by (resource.service.name, span.code)'";
    check(
        &format!("SELECT \"resource.service.name\", \"span.code\", value FROM {by_service}) ORDER BY 1, 2"),
        &["cart 404 1.0", "cart 500 1.0", "shop 200 1.0", "shop  1.0"],
    )
    .await;
    check(
        &format!("SELECT time, sum(value) FROM {by_service}, 0, 2, INTERVAL '1 second') GROUP BY 1 ORDER BY 1"),
        &["1970-01-01T00:00:01Z 0.0", "1970-01-01T00:00:02Z 3.0"],
    )
    .await;
    check(
        &format!("SELECT time, sum(value) FROM {by_service}, 1, 3, '2s') GROUP BY 1 ORDER BY 1"),
        &["1970-01-01T00:00:02Z 3.0", "1970-01-01T00:00:04Z 1.0"],
    )
    .await;
    check("SELECT p, value BETWEEN 497.5 AND 502.5 FROM traceql_metrics('{ } | quantile_over_time(span.code, 1) with (exact=true)')", &["1.0 true"])
        .await;
    check("SELECT bucket, value FROM traceql_metrics('{ } | histogram_over_time(span.code)') ORDER BY 1", &["256.0 1.0", "512.0 2.0"]).await;
    check(
        "SELECT value FROM traceql_metrics('{ } | compare({ status = error })') \
         WHERE meta_type = 'selection' AND attribute = 'resource.service.name' AND attribute_value = 'cart'",
        &["2.0"],
    )
    .await;
    check("SELECT a.value / b.value FROM traceql_metrics('{ status = error } | rate()') a, traceql_metrics('{ } | rate()') b", &["0.5"]).await;
    assert!(refused("SELECT * FROM traceql_metrics('{ }')").await.contains("metrics"));
    assert!(refused("SELECT * FROM traceql_metrics('{ } | rate()', 1, 2, 'soon')").await.contains("'1m'"));
}

#[tokio::test]
async fn blocks_and_their_columns_are_tables() {
    let engine = engine(2).await;
    let one = |query: &'static str| {
        let engine = &engine;
        async move { rows(engine, query).await.unwrap() }
    };
    assert_eq!(
        one("SELECT traces, spans, row_groups, compaction_level, start_time FROM system.blocks").await,
        ["1 2 1 0 1970-01-01T00:00:01.000001Z"]
    );
    assert_eq!(one("SELECT count(*) FROM system.blocks WHERE bytes > 0").await, ["1"]);
    // One of the two stored spans has an array, which never has a column; the third and fourth span are live.
    assert_eq!(
        one("SELECT scope, key, type, blocks, rows, distinct_values FROM system.columns WHERE key NOT LIKE 'host%' ORDER BY 1, 2, 3").await,
        [
            "event why string 1 1 ",
            "resource service.name string 1  2",
            "span code int 1 2 ",
            "span list any 1  ",
            "span mixed int 1 1 ",
            "span mixed string 1 1 ",
            "span ratio float 0  ",
        ]
    );
    assert_eq!(one("SELECT count(*) FROM system.columns WHERE compressed_bytes > 0").await, ["4"]);
}

#[tokio::test]
async fn what_ran_is_a_table() {
    let engine = engine(4).await;
    rows(&engine, "SELECT name FROM spans WHERE status = 'error'").await.unwrap();
    rows(&engine, "SELECT nonsense FROM spans").await.unwrap_err();
    let request = SearchRequest { query: "{ status = error }".into(), limit: 20, spans_per_spanset: 3, window: None };
    engine.search(&TenantId::single(), request).await.unwrap();
    let ran = rows(&engine, "SELECT language, text, rows, spans_read, error IS NULL FROM system.queries ORDER BY time").await.unwrap();
    assert_eq!(
        ran,
        [
            "sql SELECT name FROM spans WHERE status = 'error' 2 4 true",
            "sql SELECT nonsense FROM spans 0 0 false",
            "traceql { status = error } 2 4 true"
        ]
    );
    let statement = engine.prepare(&TenantId::parse("other").unwrap(), "SELECT count(*) FROM system.queries").await.unwrap();
    let batches: Vec<_> = statement.run(None).await.unwrap().batches.try_collect().await.unwrap();
    assert!(pretty_format_batches(&batches).unwrap().to_string().contains("| 0        |"), "another tenant's queries are not shown");
}

#[tokio::test]
async fn functions_are_described() {
    let unlisted = "SELECT routine_name FROM information_schema.routines WHERE function_type = 'TABLE' AND routine_name NOT IN ('generate_series', 'range') \
         EXCEPT SELECT name FROM system.functions";
    check(unlisted, &[]).await;
    check("SELECT count(*) FROM system.functions WHERE length(description) < 10 OR length(example) < 10", &["0"]).await;
    check("SELECT description IS NOT NULL FROM information_schema.routines WHERE routine_name = 'attr'", &["true"]).await;
    // A bar ends a cell of the tables that rows are read from.
    for example in rows(&engine(2).await, "SELECT replace(example, '|', '¦') FROM system.functions").await.unwrap() {
        let example = example.replace('¦', "|");
        rows(&engine(2).await, &example).await.unwrap_or_else(|error| panic!("{example}: {error}"));
    }
    assert!(refused("SELECT attr(name) FROM spans").await.contains("attr"));
    assert!(refused("SELECT * FROM trace('')").await.contains("1 to 32 hexadecimal digits"));
    assert!(!rows(&engine(2).await, "EXPLAIN SELECT attr('http.status_code') FROM spans").await.unwrap().is_empty());
}

/// The statements of `docs/sql.md` are read, planned and run.
#[tokio::test]
async fn the_examples_of_the_documentation_run() {
    let documentation = include_str!("../../../docs/sql.md");
    let examples: Vec<&str> = documentation.split("```sql").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(examples.len() >= 5);
    for example in examples {
        rows(&engine(2).await, example).await.unwrap_or_else(|error| panic!("{example}: {error}"));
    }
}

/// Blocks of one trace each, a second apart, and what a statement reads of them.
async fn read_of(query: &str) -> (usize, ScanStats) {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let catalog = Arc::new(Catalog::new(CatalogMetrics::new(&Registry::new()).unwrap()));
    for trace in 1..=8 {
        let span = Span { trace, id: 1, parent: 0, service: "shop", name: "GET /", attributes: Vec::new(), events: Vec::new() };
        let set = set_of(&[span]);
        let (order, schema) = (order_spans(&set), SpanSchema::of(&set, ColumnPolicy::BLOCK));
        let objects = write_block(&OrderedSpans::new(set, order, schema)).unwrap();
        catalog.add_block(put_block(&*store, &TenantId::single(), BlockId::random(), objects).await.unwrap());
    }
    let engine = Engine::new(store, catalog, Arc::new(Live(Vec::new())), EngineSettings { partitions: 1, ..EngineSettings::default() });
    let run = engine.prepare(&TenantId::single(), query).await.unwrap().run(None).await.unwrap();
    let batches: Vec<_> = run.batches.try_collect().await.unwrap();
    (batches.iter().map(|batch| batch.num_rows()).sum(), run.cost.stats().await.unwrap())
}

#[tokio::test]
async fn times_and_limits_keep_row_groups_from_being_read() {
    for table in ["spans", "traces", "critical_path()", "span_tree()"] {
        let (rows, stats) =
            read_of(&format!("SELECT trace_id FROM {table} WHERE start_time >= to_timestamp(3) AND start_time < to_timestamp(5)")).await;
        assert_eq!((rows, stats.row_groups, stats.row_groups_skipped), (2, 3, 5), "{table}: the window is of whole seconds, both ends included");
        let (rows, stats) = read_of(&format!("SELECT trace_id FROM {table} WHERE trace_id = '00000000000000000000000000000004'")).await;
        assert_eq!((rows, stats.row_groups, stats.row_groups_skipped), (1, 1, 7), "{table}");
        let (rows, stats) = read_of(&format!("SELECT trace_id FROM {table} LIMIT 2")).await;
        assert_eq!(rows, 2);
        assert_eq!(stats.row_groups, 2, "{table}: each row group has a row");
    }
    let (rows, stats) = read_of("SELECT * FROM traceql('{ }', 3, 4)").await;
    assert_eq!((rows, stats.row_groups_skipped), (1, 7), "trace 4 starts a microsecond after the window");
    let (rows, stats) = read_of("SELECT * FROM traceql_metrics('{ } | rate()', 3, 4)").await;
    assert_eq!((rows, stats.row_groups_skipped), (1, 7));
}

#[tokio::test]
async fn only_reading_is_allowed_and_mistakes_are_named() {
    for query in ["DROP TABLE spans", "CREATE TABLE t AS SELECT 1", "INSERT INTO spans SELECT * FROM spans", "SET a = 1", "COPY spans TO '/tmp/x'"] {
        refused(query).await;
    }
    assert!(refused("SELECT nam FROM spans").await.contains("name"));
    let mistake = refused("SELECT * FROM traceql('{ status = }')").await;
    assert!(mistake.contains("line 1") && mistake.contains('^'), "{mistake}");
    assert!(refused("SELECT * FROM traceql(name)").await.contains("constant"));
    refused("SELECT * FROM '/etc/passwd'").await;
    refused("SELECT 1; SELECT 2").await;
    refused("SELECT 1 / 0").await;
}

/// The logical and the physical plan of a statement.
async fn plan(query: &str) -> String {
    rows(&engine(4).await, &format!("EXPLAIN {query}")).await.unwrap().join("\n")
}

#[tokio::test]
async fn scans_decide_themselves_whether_a_text_is_there() {
    let engine = engine(1).await;
    let columns =
        rows(&engine, "SELECT column_name FROM information_schema.columns WHERE table_name = 'spans' AND column_name LIKE '%.%'").await.unwrap();
    assert!(columns.contains(&"span.mixed".to_owned()), "{columns:?}");
    for column in columns {
        let kept = rows(&engine, &format!("SELECT count(*) FROM spans WHERE \"{column}\" IS NOT NULL")).await.unwrap();
        assert_eq!(kept, rows(&engine, &format!("SELECT count(\"{column}\") FROM spans")).await.unwrap(), "{column}");
    }
    let is_filtered = async |query: &str| plan(query).await.contains("FilterExec");
    assert!(!is_filtered("SELECT name FROM spans WHERE \"span.mixed\" IS NOT NULL").await);
    assert!(is_filtered("SELECT name FROM spans WHERE \"span.code\" IS NOT NULL").await, "a number may be a text in another block");
    // These have other rows than the spans that match.
    assert!(is_filtered("SELECT name FROM traceql('{ }') WHERE \"span.mixed\" IS NOT NULL").await);
    assert!(is_filtered("SELECT event_name FROM events WHERE \"event.why\" IS NOT NULL").await);
}

#[tokio::test]
async fn groups_of_dictionaries_are_dictionaries() {
    let by_two = "SELECT name, \"resource.service.name\" AS service, count(*) AS n, sum(duration_nanos) AS nanos FROM spans GROUP BY 1, 2";
    check(&format!("{by_two} ORDER BY 1, 2"), &["GET / shop 1 100", "add cart 2 300", "render shop 1 300"]).await;
    check("SELECT name FROM spans GROUP BY name HAVING count(*) > 1 AND name <> 'x'", &["add"]).await;
    check("SELECT DISTINCT name, status FROM spans ORDER BY 1", &["GET / unset", "add error", "render unset"]).await;
    check("SELECT \"span.mixed\" AS m, count(*) FROM spans GROUP BY m ORDER BY m NULLS FIRST", &[" 2", "5 1", "x 1"]).await;
    let sets = "SELECT name, status, count(*) FROM spans GROUP BY GROUPING SETS ((name), (status)) ORDER BY 1 NULLS LAST, 2";
    check(sets, &["GET /  1", "add  2", "render  1", " error 2", " unset 2"]).await;
    check("SELECT a.name, count(*) FROM spans a JOIN spans b ON a.name = b.name GROUP BY a.name ORDER BY 1", &["GET / 1", "add 4", "render 1"]).await;
    let engine = engine(4).await;
    let statement = engine.prepare(&TenantId::single(), by_two).await.unwrap();
    let SqlRows { schema, batches, .. } = statement.run(None).await.unwrap();
    let batches: Vec<_> = batches.try_collect().await.unwrap();
    assert!(batches.iter().all(|batch| batch.schema() == schema));
    assert!(matches!(schema.field(0).data_type(), DataType::Dictionary(..)) && matches!(schema.field(1).data_type(), DataType::Dictionary(..)));
}

#[tokio::test]
async fn times_are_truncated() {
    let truncated = |unit: &str| format!("SELECT DISTINCT date_trunc('{unit}', start_time) FROM spans ORDER BY 1");
    check(&truncated("second"), &["1970-01-01T00:00:01Z", "1970-01-01T00:00:02Z"]).await;
    for unit in ["minute", "hour", "day", "month", "year"] {
        check(&truncated(unit), &["1970-01-01T00:00:00Z"]).await;
    }
    check(&truncated("week"), &["1969-12-29T00:00:00Z"]).await;
    check("SELECT arrow_typeof(date_trunc('hour', start_time)) FROM spans LIMIT 1", &["Timestamp(ns, \"UTC\")"]).await;
    check(
        "SELECT date_trunc('day', CAST('2026-03-04T05:06:07Z' AS TIMESTAMP)), date_trunc('day', max(start_time)) FROM spans",
        &["2026-03-04T00:00:00 1970-01-01T00:00:00Z"],
    )
    .await;
    check("SELECT count(*) FROM spans WHERE date_trunc('second', start_time) = '1970-01-01T00:00:01Z'", &["3"]).await;
    assert!(refused("SELECT date_trunc('fortnight', start_time) FROM spans").await.contains("fortnight"));
}

#[tokio::test]
async fn distinct_texts_are_counted_without_a_table_for_each_group() {
    let counted = "SELECT trace_id, count(DISTINCT name) AS names, count(*) AS n, count(\"span.code\") AS codes, sum(duration_nanos) AS nanos, \
                   count(DISTINCT name) + 1 AS more FROM spans GROUP BY 1";
    let expected = ["00000000000000000000000000000001 3 3 2 600 4", "00000000000000000000000000000002 1 1 1 100 2"];
    check(&format!("{counted} ORDER BY 1"), &expected).await;
    let by_status =
        "SELECT status, count(DISTINCT \"resource.service.name\") AS services, count(\"span.ratio\") AS ratios FROM spans GROUP BY 1 ORDER BY 1";
    check(by_status, &["error 1 0", "unset 1 1"]).await;
    // Nulls are no texts, and no groups are no counts.
    check("SELECT status, count(DISTINCT \"span.mixed\"), count(*) FROM spans GROUP BY 1 ORDER BY 1", &["error 1 2", "unset 1 2"]).await;
    check("SELECT status, count(DISTINCT name), count(*) FROM spans WHERE name = 'x' GROUP BY 1", &[]).await;
    check("SELECT count(DISTINCT name), count(*) FROM spans WHERE name = 'x'", &["0 0"]).await;
    check("SELECT count(DISTINCT name), count(*), avg(duration_nanos) FROM spans GROUP BY kind", &["3 4 175.0"]).await;
    check("SELECT kind, count(DISTINCT name), count(DISTINCT trace_id), count(*) FROM spans GROUP BY 1", &["server 3 2 4"]).await;
    check("SELECT kind, count(DISTINCT name), count(*) FILTER (WHERE status = 'error') FROM spans GROUP BY 1", &["server 3 2"]).await;
    let planned = plan(counted).await;
    assert!(planned.contains("count(alias1)"), "counted as groups: {planned}");
}

#[tokio::test]
async fn statements_take_parameters() {
    let engine = engine(2).await;
    let statement = engine.prepare(&TenantId::single(), "SELECT count(*) FROM spans WHERE name = $1").await.unwrap();
    assert_eq!(statement.parameters().unwrap().len(), 1);
    let values = datafusion::common::ParamValues::List(vec![datafusion::common::ScalarValue::from("add").into()]);
    let batches: Vec<_> = statement.run(Some(values)).await.unwrap().batches.try_collect().await.unwrap();
    assert!(pretty_format_batches(&batches).unwrap().to_string().contains("| 2        |"));
}

#[test]
fn every_column_of_spans_can_be_written_back_or_follows_from_others() {
    use super::columns::{SqlColumn, span_columns};
    use crate::spans::written::{DERIVED, is_written};
    for column in span_columns(&[]).into_iter().chain([SqlColumn::spanset(), SqlColumn::critical_path()]) {
        assert_ne!(is_written(&column.name), DERIVED.contains(&column.name.as_str()), "{}", column.name);
    }
}
