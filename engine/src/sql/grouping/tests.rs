#![allow(clippy::unwrap_used)]

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanArray, DictionaryArray, Int32Array, Int64Array, StringArray, StringViewArray, TimestampNanosecondArray,
        UInt64Array,
    },
    datatypes::{Int32Type, Int64Type, Schema},
    record_batch::RecordBatch,
    util::display::{ArrayFormatter, FormatOptions},
};
use datafusion::{
    catalog::MemTable,
    common::DataFusionError,
    execution::{SessionStateBuilder, runtime_env::RuntimeEnvBuilder},
    physical_plan::{ExecutionPlan, collect, displayable},
    prelude::{SessionConfig, SessionContext},
};
use futures::TryStreamExt;
use proptest::prelude::*;

use super::{
    GroupByCodes, GroupByCodesExec,
    groups::{Groups, ROWS_MAX},
};

/// A row of the table `t`, whose columns are the fields.
#[derive(Debug, Clone)]
struct Row {
    dictionary: Option<u8>,
    word: Option<u16>,
    text: Option<u8>,
    number: Option<i64>,
    time: Option<i64>,
    flag: Option<bool>,
    value: Option<i64>,
}

/// A text for a number; some are longer than what a view holds in itself, one is empty.
fn text(number: impl Into<u64>) -> String {
    match number.into() {
        0 => String::new(),
        number if number % 3 == 0 => format!("{number} is the number of a text that is long"),
        number => format!("{number}"),
    }
}

/// A dictionary with an entry that is null, one that comes twice, and one that no row has.
fn dictionary(rows: &[Row]) -> DictionaryArray<Int32Type> {
    let entries = (0..6_u8).map(|entry| (entry != 4).then(|| text(entry % 5)));
    let keys: Int32Array = rows.iter().map(|row| row.dictionary.map(i32::from)).collect();
    DictionaryArray::try_new(keys, Arc::new(entries.chain([Some("unused".to_owned())]).collect::<StringArray>())).unwrap()
}

fn batch(rows: &[Row]) -> RecordBatch {
    let columns: [(&str, ArrayRef); 7] = [
        ("dictionary", Arc::new(dictionary(rows))),
        ("word", Arc::new(rows.iter().map(|row| row.word.map(text)).collect::<StringViewArray>())),
        ("text", Arc::new(rows.iter().map(|row| row.text.map(text)).collect::<StringArray>())),
        ("number", Arc::new(rows.iter().map(|row| row.number).collect::<Int64Array>())),
        ("time", Arc::new(rows.iter().map(|row| row.time).collect::<TimestampNanosecondArray>().with_timezone("UTC"))),
        ("flag", Arc::new(rows.iter().map(|row| row.flag).collect::<BooleanArray>())),
        ("value", Arc::new(rows.iter().map(|row| row.value).collect::<Int64Array>())),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
}

fn row() -> impl Strategy<Value = Row> {
    let few = |below: u8| prop::option::weighted(0.9, 0..below);
    let many = prop::option::weighted(0.9, 0..500_u16);
    let number = prop::option::weighted(0.9, prop_oneof![Just(i64::MIN), Just(-1), 0..4_i64]);
    let time = prop::option::weighted(0.9, (0..6_i64).prop_map(|halves| halves * 1_800_000_000_000));
    let fields = (few(6), many, few(9), number, time, any::<Option<bool>>(), prop::option::weighted(0.8, 0..100_i64));
    fields.prop_map(|(dictionary, word, text, number, time, flag, value)| Row { dictionary, word, text, number, time, flag, value })
}

/// A table of `batches` in two partitions, with the rule or without, and memory for `memory` bytes.
fn context(batches: &[RecordBatch], rule: bool, memory: Option<usize>) -> SessionContext {
    let config = SessionConfig::new().with_target_partitions(2).with_batch_size(64);
    let runtime = RuntimeEnvBuilder::new().with_memory_limit(memory.unwrap_or(1 << 30), 1.0).build_arc().unwrap();
    let builder = SessionStateBuilder::new().with_config(config).with_runtime_env(runtime).with_default_features();
    let builder = if rule { builder.with_physical_optimizer_rule(Arc::new(GroupByCodes)) } else { builder };
    let context = SessionContext::new_with_state(builder.build());
    let (one, other) = batches.split_at(batches.len() / 2);
    let schema = batches.first().map_or_else(|| Arc::new(Schema::empty()), RecordBatch::schema);
    context.register_table("t", Arc::new(MemTable::try_new(schema, vec![one.to_vec(), other.to_vec()]).unwrap())).unwrap();
    context
}

/// The plan of `sql` as text, and its rows, sorted.
fn run(context: &SessionContext, sql: &str) -> (String, Vec<String>) {
    let threads = tokio::runtime::Builder::new_current_thread().build().unwrap();
    threads.block_on(async {
        let plan = context.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
        let shown = displayable(&*plan).indent(false).to_string();
        let batches = collect(plan, context.task_ctx()).await.unwrap();
        let mut rows: Vec<String> = batches.iter().flat_map(texts_of).collect();
        rows.sort_unstable();
        (shown, rows)
    })
}

fn texts_of(batch: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::default().with_null("NULL");
    let columns: Vec<_> = batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
    (0..batch.num_rows()).map(|row| columns.iter().map(|column| format!("{}|", column.value(row))).collect()).collect()
}

const KEYS: [&str; 12] = [
    "dictionary",
    "word",
    "text",
    "dictionary, time",
    "dictionary, number",
    "flag, dictionary",
    "word, dictionary",
    "dictionary, word, text",
    "number, flag, text, dictionary",
    "time, word, flag, number",
    "dictionary || 'x'",
    "date_trunc('hour', time), dictionary",
];

const FUNCTIONS: &str = "count(*), count(value), sum(value), min(value), max(word), avg(value), count(*) FILTER (WHERE value > 50), count(DISTINCT \
                         value), percentile_cont(0.5) WITHIN GROUP (ORDER BY value), regr_count(value, number), regr_count(value, number) FILTER (WHERE \
                         flag), array_agg(value ORDER BY value), first_value(text ORDER BY value DESC, text)";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn groups_are_those_of_datafusion(batches in prop::collection::vec(prop::collection::vec(row(), 0..200), 1..6)) {
        let batches: Vec<RecordBatch> = batches.iter().map(|rows| batch(rows)).collect();
        let (ours, theirs) = (context(&batches, true, None), context(&batches, false, None));
        for keys in KEYS {
            let sql = format!("SELECT {keys}, {FUNCTIONS} FROM t GROUP BY {keys}");
            let (plan, found) = run(&ours, &sql);
            prop_assert!(plan.contains("GroupByCodesExec"), "{plan}");
            prop_assert_eq!(found, run(&theirs, &sql).1, "{}", sql);
        }
    }
}

#[test]
fn only_keys_with_codes_are_grouped_by_them() {
    let row = Row { dictionary: Some(1), word: Some(1), text: Some(1), number: Some(1), time: Some(1), flag: Some(true), value: Some(1) };
    let rows = batch(&[row]);
    let context = context(&[rows.clone(), rows], true, None);
    let steps = |sql: &str| run(&context, sql).0.matches("GroupByCodesExec").count();
    let check = |sql: &str, expected: usize| assert_eq!(steps(sql), expected, "{sql}");
    check("SELECT word, count(*) FROM t GROUP BY 1", 2);
    check("SELECT word, flag, count(*) FROM t GROUP BY 1, 2", 2);
    // All that is left after the first step must fit.
    check("SELECT word, flag, number, count(*) FROM t GROUP BY 1, 2, 3", 1);
    check("SELECT number, count(*) FROM t GROUP BY 1", 0);
    check("SELECT word, number * 0.5, count(*) FROM t GROUP BY 1, 2", 0);
    check("SELECT word, flag, count(*) FROM t GROUP BY CUBE (word, flag)", 0);
    check("SELECT count(*) FROM t", 0);
    check("SELECT DISTINCT word FROM t LIMIT 3", 0);
}

/// Rows with `texts` texts in turn, as a view.
fn rows_of(count: usize, texts: usize) -> Vec<Row> {
    let row = |at: usize| Row { dictionary: None, word: Some((at % texts) as u16), text: None, number: None, time: None, flag: None, value: Some(1) };
    (0..count).map(row).collect()
}

#[test]
fn rows_leave_as_they_come_where_groups_seldom_repeat() {
    const SQL: &str = "SELECT word, count(*) FILTER (WHERE value = 1) AS spans, sum(value) FROM t GROUP BY 1";
    let check = |texts: usize, repeats: bool| {
        let batches: Vec<_> = rows_of(120_000, texts).chunks(2_000).map(batch).collect();
        let context = context(&batches, true, None);
        let threads = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let shown = threads.block_on(async {
            let plan = context.sql(SQL).await.unwrap().create_physical_plan().await.unwrap();
            collect(plan.clone(), context.task_ctx()).await.unwrap();
            datafusion::physical_plan::display::DisplayableExecutionPlan::with_metrics(&*plan).indent(false).to_string()
        });
        let first = shown.lines().rfind(|line| line.contains("GroupByCodesExec")).unwrap().to_owned();
        assert_eq!(first.contains(&format!("output_rows={}", texts * 2)), repeats, "{first}");
        let (_, found) = run(&context, SQL);
        assert_eq!(found.len(), texts);
        let each = 120_000 / texts;
        assert!(found.iter().all(|row| row.ends_with(&format!("|{each}|{each}|"))), "{:?}", found.first());
    };
    check(100, true);
    check(60_000, false);
}

#[test]
fn objects_get_all_rows_however_many_there_are() {
    const SQL: &str = "SELECT word, regr_count(value, 1) FILTER (WHERE value = 1), regr_count(value, 1) FROM t GROUP BY 1";
    // Values come by twos, texts by threes.
    let mut rows = rows_of(600_000, 3);
    rows.iter_mut().enumerate().for_each(|(at, row)| row.value = Some((at % 2) as i64));
    for rows_a_batch in [7_000, 40_000] {
        let batches: Vec<_> = rows.chunks(rows_a_batch).map(batch).collect();
        let (plan, found) = run(&context(&batches, true, None), SQL);
        assert!(plan.contains("GroupByCodesExec"), "{plan}");
        assert_eq!(found, ["1|100000|200000|", "2|100000|200000|", "|100000|200000|"], "{rows_a_batch} rows a batch");
    }
}

/// The lowest node by codes: the first step.
fn first_step(plan: &Arc<dyn ExecutionPlan>) -> Option<Arc<dyn ExecutionPlan>> {
    let below = plan.children().into_iter().find_map(first_step);
    below.or_else(|| plan.is::<GroupByCodesExec>().then(|| plan.clone()))
}

#[test]
fn a_first_step_without_memory_gives_away_what_it_has() {
    const TEXTS: usize = 2_000;
    let batches: Vec<_> = rows_of(40_000, TEXTS).chunks(500).map(batch).collect();
    let threads = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let groups_and_rows = |memory| {
        let context = context(&batches, true, Some(memory));
        threads.block_on(async {
            let plan = context.sql("SELECT word, count(*) FROM t GROUP BY 1").await?.create_physical_plan().await?;
            let parts: Vec<_> = first_step(&plan).unwrap().execute(0, context.task_ctx())?.try_collect().await?;
            let counts = |part: &RecordBatch| part.column(1).as_primitive::<Int64Type>().values().iter().sum::<i64>();
            Ok::<_, DataFusionError>((parts.iter().map(RecordBatch::num_rows).sum::<usize>(), parts.iter().map(counts).sum::<i64>()))
        })
    };
    assert_eq!(groups_and_rows(1 << 24).unwrap(), (TEXTS, 20_000));
    let (groups, rows) = groups_and_rows(100_000).unwrap();
    assert_eq!(rows, 20_000);
    assert!(groups > TEXTS, "{groups} groups with little memory");
    // The last step cannot give away what may come again.
    let little = context(&batches, true, Some(100_000));
    let error = threads.block_on(async { little.sql("SELECT word, count(*) FROM t GROUP BY 1").await.unwrap().collect().await }).unwrap_err();
    assert!(error.to_string().contains("GroupByCodesExec"), "{error}");
}

#[test]
fn codes_that_do_not_fit_leave_the_groups_as_they_were() {
    let numbers = |from: u64| Arc::new(UInt64Array::from_iter_values(from..from + ROWS_MAX as u64)) as ArrayRef;
    let kinds = vec![numbers(0).data_type().clone(); 4];
    let (mut groups, mut found) = (Groups::new(&kinds), Vec::new());
    let rows = |from| vec![numbers(from); 4];
    // Sixteen bits for each of four keys.
    assert!(groups.of_rows(&rows(0), &mut found));
    assert_eq!(found, (0..ROWS_MAX).collect::<Vec<_>>());
    assert!(!groups.of_rows(&rows(1 << 20), &mut found));
    assert_eq!(groups.len(), ROWS_MAX);
    let values = groups.values().unwrap();
    assert_eq!(values, rows(0));
    let mut groups = Groups::new(&kinds);
    assert!(groups.of_rows(&rows(1 << 20), &mut found));
}

#[test]
fn groups_are_found_again_when_codes_become_wider() {
    let (mut groups, mut found) =
        (Groups::new(&[Int64Array::from(vec![0]).data_type().clone(), StringViewArray::from(vec![""]).data_type().clone()]), Vec::new());
    let mut known: HashMap<(i64, String), usize> = HashMap::new();
    for round in 1..40_i64 {
        let rows: Vec<(i64, String)> = (0..300).map(|row| (row * row % (round * 7), text((row % (round * 11)) as u64))).collect();
        let numbers: ArrayRef = Arc::new(rows.iter().map(|row| Some(row.0)).collect::<Int64Array>());
        let texts: ArrayRef = Arc::new(rows.iter().map(|row| Some(row.1.as_str())).collect::<StringViewArray>());
        assert!(groups.of_rows(&[numbers, texts], &mut found));
        for (row, group) in rows.iter().zip(&found) {
            let next = known.len();
            assert_eq!(known.entry(row.clone()).or_insert(next), group, "{row:?} in round {round}");
        }
    }
    assert_eq!(groups.len(), known.len());
    let values = groups.values().unwrap();
    for ((number, text), group) in known {
        assert_eq!(values[0].as_primitive::<Int64Type>().value(group), number);
        assert_eq!(values[1].as_string_view().value(group), text);
    }
}
