//! `SqlMetricsExec`: the samples of a TraceQL metrics query as rows.

use std::{fmt, sync::Arc};

use arrow::{
    array::{ArrayRef, Float64Array, Float64Builder, StringViewBuilder, TimestampNanosecondArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::Result as DataFusionResult,
    execution::TaskContext,
    logical_expr::{Expr, TableType},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, SendableRecordBatchStream, execution_plan::EmissionType,
        stream::RecordBatchStreamAdapter,
    },
};
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use skein_proto::otlp::common::v1::{KeyValue, any_value::Value as OtlpValue};

use super::columns::SqlType;
use crate::{
    clock::Stopwatch,
    error::Result,
    exec::{
        memory::{Pool, Reservation},
        metrics::{FoundSeries, metrics_over},
        sources::SourceSet,
        stats::ScanMetrics,
    },
    metrics::{
        compare::META_TYPE,
        evaluate,
        intervals::Intervals,
        series::{BOUND, Series, label_text},
    },
    plan::{
        node::{counted_node, leaf_node},
        properties,
    },
    query::MetricsRequest,
    traceql::{MetricsExpr, MetricsFunction, OverTime},
};

/// The label of the upper ends of a histogram's buckets.
const BUCKET: &str = "__bucket";
/// The label of quantiles.
const QUANTILE: &str = "p";

/// A column of samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetricsColumn {
    /// The end of the sample's interval.
    Time,
    /// A label of the grouping, as text.
    Label(String),
    /// Which quantile it is.
    Quantile,
    /// The upper end of its bucket.
    Bucket,
    /// `baseline`, `selection`, and both with `_total`.
    MetaType,
    /// Which attribute `compare()` tells of.
    Attribute,
    /// And which value; null in totals.
    AttributeValue,
    /// `lower` and `upper` at the ends of a 95 % interval, else null.
    Bound,
    /// The sample.
    Value,
}

impl MetricsColumn {
    /// The columns of `query`, which are known before it runs.
    pub fn of(query: &MetricsExpr, has_bounds: bool) -> Vec<Self> {
        let any = |test: fn(&MetricsFunction) -> bool| evaluate::functions(query).any(test);
        let mut columns = vec![Self::Time];
        columns.extend(evaluate::grouping(query).into_iter().map(|field| Self::Label(field.to_string())));
        if any(|function| matches!(function, MetricsFunction::QuantileOverTime { .. })) {
            columns.push(Self::Quantile);
        }
        if any(|function| matches!(function, MetricsFunction::OverTime { function: OverTime::Histogram, .. })) {
            columns.push(Self::Bucket);
        }
        if any(|function| matches!(function, MetricsFunction::Compare { .. })) {
            columns.extend([Self::MetaType, Self::Attribute, Self::AttributeValue]);
        }
        if has_bounds {
            columns.push(Self::Bound);
        }
        columns.push(Self::Value);
        columns
    }

    fn field(&self) -> Field {
        let text = |name: &str| Field::new(name, SqlType::Text.data_type(), true);
        match self {
            Self::Time => Field::new("time", SqlType::Time.data_type(), false),
            Self::Label(name) => text(name),
            Self::Quantile => Field::new("p", DataType::Float64, true),
            Self::Bucket => Field::new("bucket", DataType::Float64, true),
            Self::MetaType => text("meta_type"),
            Self::Attribute => text("attribute"),
            Self::AttributeValue => text("attribute_value"),
            Self::Bound => text("bound"),
            Self::Value => Field::new("value", DataType::Float64, false),
        }
    }

    fn values(&self, samples: &[Sample<'_>], intervals: &Intervals) -> ArrayRef {
        match self {
            Self::Time => {
                let time = |sample: &Sample<'_>| (intervals.start() + intervals.step() * (sample.interval as u64 + 1)) as i64;
                Arc::new(TimestampNanosecondArray::from_iter_values(samples.iter().map(time)).with_timezone(super::columns::UTC))
            }
            Self::Value => Arc::new(Float64Array::from_iter_values(samples.iter().map(|sample| sample.value))),
            Self::Quantile | Self::Bucket => {
                let label = if *self == Self::Quantile { QUANTILE } else { BUCKET };
                let mut numbers = Float64Builder::with_capacity(samples.len());
                samples.iter().for_each(|sample| numbers.append_option(sample.series.number(label)));
                Arc::new(numbers.finish())
            }
            text => {
                let mut texts = StringViewBuilder::with_capacity(samples.len());
                samples.iter().for_each(|sample| texts.append_option(text.text(sample.series)));
                Arc::new(texts.finish())
            }
        }
    }

    fn text(&self, series: &Series) -> Option<String> {
        match self {
            Self::Label(name) => series.text(name),
            Self::MetaType => series.text(META_TYPE),
            Self::Bound => series.text(BOUND),
            Self::Attribute => series.compared().map(|label| label.key.clone()),
            Self::AttributeValue if series.text(META_TYPE)?.ends_with("_total") => None,
            Self::AttributeValue => series.compared().map(|label| label_text(label.value.as_ref())),
            Self::Time | Self::Quantile | Self::Bucket | Self::Value => None,
        }
    }
}

/// Labels as columns have them.
trait Labelled {
    fn label(&self, key: &str) -> Option<&KeyValue>;
    /// The label of `compare()` that names an attribute.
    fn compared(&self) -> Option<&KeyValue>;

    fn text(&self, key: &str) -> Option<String> {
        self.label(key).and_then(|label| label.value.as_ref()).map(|value| label_text(Some(value)))
    }

    fn number(&self, key: &str) -> Option<f64> {
        match self.label(key)?.value.as_ref()?.value.as_ref()? {
            OtlpValue::DoubleValue(value) => Some(*value),
            _ => None,
        }
    }
}

impl Labelled for Series {
    fn label(&self, key: &str) -> Option<&KeyValue> {
        self.labels.iter().find(|label| label.key == key)
    }

    fn compared(&self) -> Option<&KeyValue> {
        self.labels.iter().find(|label| label.key != META_TYPE)
    }
}

/// A point of a series.
#[derive(Debug, Clone, Copy)]
struct Sample<'a> {
    series: &'a Series,
    interval: usize,
    value: f64,
}

/// What is asked, in plain data.
#[derive(Debug, Clone)]
pub struct SqlMetrics {
    /// Where spans are.
    pub sources: Arc<SourceSet>,
    /// The query and the grid of its samples.
    pub request: MetricsRequest,
    /// The columns.
    pub columns: Vec<MetricsColumn>,
    /// Partitions of the scans.
    pub partitions: usize,
}

impl SqlMetrics {
    fn schema(&self) -> SchemaRef {
        Arc::new(Schema::new(self.columns.iter().map(MetricsColumn::field).collect::<Vec<_>>()))
    }

    /// All samples in one batch. It is computed when asked for.
    async fn run(&self, schema: SchemaRef, context: Arc<TaskContext>, metrics: &ScanMetrics, pool: &Pool) -> Result<RecordBatch> {
        let watch = Stopwatch::start();
        let FoundSeries { series, stats, .. } = metrics_over(self.sources.together().await?, &self.request, None, self.partitions, &context).await?;
        metrics.add(&stats);
        let points =
            series.iter().flat_map(|series| series.values.iter().enumerate().map(move |(interval, &value)| Sample { series, interval, value }));
        let samples: Vec<Sample<'_>> = points.filter(|sample| !sample.value.is_nan()).collect();
        let arrays = self.columns.iter().map(|column| column.values(&samples, &self.request.intervals)).collect();
        let batch = RecordBatch::try_new(schema, arrays)?;
        metrics.output(batch.num_rows());
        metrics.busy(watch.elapsed());
        Reservation::new("samples of a metrics query", pool).attach(batch)
    }
}

/// The samples of a query as a table.
#[async_trait]
impl TableProvider for SqlMetrics {
    fn schema(&self) -> SchemaRef {
        Self::schema(self)
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    async fn scan(&self, _: &dyn Session, projection: Option<&Vec<usize>>, _: &[Expr], _: Option<usize>) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let mut asked = self.clone();
        if let Some(wanted) = projection {
            asked.columns = wanted.iter().map(|&at| self.columns[at].clone()).collect();
        }
        Ok(Arc::new(SqlMetricsExec::new(asked)))
    }
}

/// Runs a [`SqlMetrics`].
///
/// **Shape**: one partition; a row for each point of each series, series in the order of the API, points by time.
#[derive(Debug)]
pub struct SqlMetricsExec {
    asked: Arc<SqlMetrics>,
    schema: SchemaRef,
    metrics: Arc<ScanMetrics>,
    properties: Arc<PlanProperties>,
}

impl SqlMetricsExec {
    /// The node.
    pub fn new(asked: SqlMetrics) -> Self {
        let schema = asked.schema();
        let properties = properties(schema.clone(), 1, EmissionType::Final);
        Self { asked: Arc::new(asked), schema, metrics: Arc::default(), properties }
    }

    /// What is asked.
    pub fn asked(&self) -> &SqlMetrics {
        &self.asked
    }
}

impl DisplayAs for SqlMetricsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let request = &self.asked.request;
        let (start, end, step) = (request.intervals.start(), request.intervals.end(), request.intervals.step());
        write!(f, "SqlMetricsExec: query=[{}], start={start}, end={end}, step={step}, sources=[{}]", request.query, self.asked.sources)
    }
}

impl ExecutionPlan for SqlMetricsExec {
    leaf_node!();
    counted_node!();

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> DataFusionResult<SendableRecordBatchStream> {
        let (asked, schema, metrics) = (self.asked.clone(), self.schema.clone(), self.metrics.clone());
        let (pool, batch_size) = (context.memory_pool().clone(), context.session_config().batch_size().max(1));
        let batches = stream::once(async move { asked.run(schema, context, &metrics, &pool).await })
            .map_ok(move |batch| stream::iter(super::scan::slices(Some(batch), batch_size).map(Ok::<_, crate::error::Error>)))
            .try_flatten()
            .map(|batch: Result<RecordBatch>| Ok(batch?));
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), batches)))
    }
}
