//! [`GroupByCodesExec`]: an aggregation by the codes of its keys.

use std::{fmt, sync::Arc};

use arrow::{
    array::{ArrayRef, AsArray, BooleanArray},
    datatypes::{DataType, SchemaRef},
    record_batch::RecordBatch,
};
use datafusion::{
    common::{DataFusionError, Result, internal_err},
    execution::{
        TaskContext,
        memory_pool::{MemoryConsumer, MemoryReservation},
    },
    logical_expr::{EmitTo, GroupsAccumulator},
    physical_expr::{GroupsAccumulatorAdapter, PhysicalExpr, aggregate::AggregateFunctionExpr, expressions::Literal},
    physical_expr_common::utils::evaluate_expressions_to_arrays,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, SendableRecordBatchStream,
        aggregates::{AggregateExec, AggregateInputMode, AggregateMode, AggregateOutputMode, aggregate_expressions},
        metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet},
        stream::RecordBatchStreamAdapter,
    },
};
use futures::{TryStreamExt, stream};

use super::{
    super::scan::slices,
    groups::{Groups, ROWS_MAX},
    kinds_of_keys,
    pending::Pending,
};
use crate::plan::node::unary_node;

/// Most groups that a first step keeps. Where keys have so many values, the next step is where they meet again.
const GROUPS_MAX: usize = 1 << 17;

/// Rows after which a first step knows whether its groups seldom repeat.
const ROWS_TRIED: usize = 1 << 14;

/// Does what the [`AggregateExec`] that is its input says, over that one's input. Any other input it passes on.
///
/// **Shape**: as its input: a row a group, keys first, then what the functions have. In a first step a group may come several times, since the
/// next one merges. **Order**: none. **Memory**: all groups, from the pool; a first step gives away what it has where there is no more.
#[derive(Debug)]
pub struct GroupByCodesExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl GroupByCodesExec {
    /// In place of `aggregate`.
    pub fn new(aggregate: Arc<dyn ExecutionPlan>) -> Self {
        Self { properties: aggregate.properties().clone(), input: aggregate, metrics: ExecutionPlanMetricsSet::new() }
    }
}

impl DisplayAs for GroupByCodesExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GroupByCodesExec")
    }
}

impl ExecutionPlan for GroupByCodesExec {
    unary_node!(_node, input => Self::new(input));

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let Some(aggregate) = self.input.downcast_ref::<AggregateExec>() else { return self.input.execute(partition, context) };
        let rows = aggregate.input().execute(partition, context.clone())?;
        let memory = MemoryConsumer::new(format!("GroupByCodesExec[{partition}]")).register(context.memory_pool());
        let grouping = Grouping::new(aggregate, memory)?;
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let batch_size = context.session_config().batch_size().max(1);
        let parts = stream::try_unfold((rows, Some(grouping), metrics), |(mut rows, grouping, metrics)| async move {
            let Some(mut grouping) = grouping else { return Ok(None) };
            let mut parts = Vec::new();
            while let Some(batch) = rows.try_next().await? {
                let _timer = metrics.elapsed_compute().timer();
                parts = grouping.add(&batch)?;
                if !parts.is_empty() {
                    break;
                }
            }
            let left = if parts.is_empty() {
                let _timer = metrics.elapsed_compute().timer();
                parts.push(grouping.take()?);
                None
            } else {
                Some(grouping)
            };
            parts.iter().for_each(|part| metrics.record_output(part.num_rows()));
            Ok::<_, DataFusionError>(Some((parts, (rows, left, metrics))))
        });
        let batches = parts.map_ok(move |parts| {
            let batches = parts.into_iter().flat_map(move |part| slices(Some(part), batch_size));
            stream::iter(batches.map(Ok))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), batches.try_flatten())))
    }
}

/// One function of an aggregation, and what it has of each group.
struct Function {
    arguments: Vec<Arc<dyn PhysicalExpr>>,
    filter: Option<Arc<dyn PhysicalExpr>>,
    /// The values of the arguments for the batch before, where they are the same for all rows: the 1 of `count(*)`.
    constants: Option<Vec<ArrayRef>>,
    groups: Box<dyn GroupsAccumulator>,
    /// Whether it has groups in columns. Else each is an object of its own, and a row is as expensive.
    is_vectorised: bool,
}

impl Function {
    fn new(function: &Arc<AggregateFunctionExpr>, arguments: Vec<Arc<dyn PhysicalExpr>>, filter: Option<Arc<dyn PhysicalExpr>>) -> Result<Self> {
        let is_vectorised = function.groups_accumulator_supported();
        let groups = match is_vectorised {
            true => function.create_groups_accumulator()?,
            false => {
                let function = function.clone();
                Box::new(Pending::new(GroupsAccumulatorAdapter::new(move || function.create_accumulator())))
            }
        };
        Ok(Self { arguments, filter, constants: None, groups, is_vectorised })
    }

    fn arguments(&mut self, batch: &RecordBatch) -> Result<(Vec<ArrayRef>, Option<BooleanArray>)> {
        let filter = self.filter.as_ref().map(|filter| filter.evaluate(batch)?.into_array(batch.num_rows())).transpose()?;
        let filter = filter.map(|filter| filter.as_boolean().clone());
        if let Some(known) = self.constants.as_ref().filter(|known| known.iter().all(|values| values.len() >= batch.num_rows())) {
            return Ok((known.iter().map(|values| values.slice(0, batch.num_rows())).collect(), filter));
        }
        let arguments = evaluate_expressions_to_arrays(&self.arguments, batch)?;
        if self.arguments.iter().all(|argument| argument.is::<Literal>()) {
            self.constants = Some(arguments.clone());
        }
        Ok((arguments, filter))
    }

    fn add(&mut self, batch: &RecordBatch, input: AggregateInputMode, groups: &[usize], count: usize) -> Result<()> {
        let (arguments, filter) = self.arguments(batch)?;
        match input {
            AggregateInputMode::Raw => self.groups.update_batch(&arguments, groups, filter.as_ref(), count),
            AggregateInputMode::Partial => self.groups.merge_batch(&arguments, groups, count),
        }
    }

    fn take(&mut self, output: AggregateOutputMode) -> Result<Vec<ArrayRef>> {
        match output {
            AggregateOutputMode::Partial => self.groups.state(EmitTo::All),
            AggregateOutputMode::Final => Ok(vec![self.groups.evaluate(EmitTo::All)?]),
        }
    }

    /// The states of groups of one row each.
    fn of_each_row(&mut self, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
        let (arguments, filter) = self.arguments(batch)?;
        self.groups.convert_to_state(&arguments, filter.as_ref())
    }
}

/// An aggregation under way.
struct Grouping {
    schema: SchemaRef,
    mode: AggregateMode,
    keys: Vec<Arc<dyn PhysicalExpr>>,
    kinds: Vec<DataType>,
    groups: Groups,
    functions: Vec<Function>,
    /// The groups of a batch's rows.
    found: Vec<usize>,
    /// Rows so far.
    rows: usize,
    /// Whether rows leave as they come, since they are almost as many as the groups.
    by_row: bool,
    memory: MemoryReservation,
}

impl Grouping {
    fn new(aggregate: &AggregateExec, memory: MemoryReservation) -> Result<Self> {
        let (mode, keys) = (*aggregate.mode(), aggregate.group_expr().input_exprs());
        let kinds = kinds_of_keys(aggregate)?;
        let arguments = aggregate_expressions(aggregate.aggr_expr(), &mode, keys.len())?;
        let functions = aggregate.aggr_expr().iter().zip(arguments).zip(aggregate.filter_expr());
        let functions = functions.map(|((function, arguments), filter)| {
            let filter = filter.clone().filter(|_| mode.input_mode() == AggregateInputMode::Raw);
            Function::new(function, arguments, filter)
        });
        let (groups, functions) = (Groups::new(&kinds), functions.collect::<Result<_>>()?);
        let (schema, found) = (aggregate.schema(), Vec::new());
        Ok(Self { schema, mode, keys, kinds, groups, functions, found, rows: 0, by_row: false, memory })
    }

    /// Adds the rows of `batch`. The groups that there is no room for any more.
    fn add(&mut self, batch: &RecordBatch) -> Result<Vec<RecordBatch>> {
        let mut parts = Vec::new();
        for rows in slices(Some(batch.clone()), ROWS_MAX) {
            let keys = evaluate_expressions_to_arrays(&self.keys, &rows)?;
            if self.by_row {
                parts.push(self.of_each_row(&rows, keys)?);
                continue;
            }
            if !self.groups.of_rows(&keys, &mut self.found) {
                parts.push(self.take()?);
                if !self.groups.of_rows(&keys, &mut self.found) {
                    return internal_err!("{} rows have more codes than there can be", rows.num_rows());
                }
            }
            for function in &mut self.functions {
                function.add(&rows, self.mode.input_mode(), &self.found, self.groups.len())?;
            }
            self.rows += rows.num_rows();
            if !self.has_room()? {
                parts.push(self.take()?);
            }
        }
        Ok(parts)
    }

    /// Whether the groups can stay; else they must be taken. Errors: `ResourcesExhausted` where they cannot be either, since they would have to
    /// come once.
    fn has_room(&mut self) -> Result<bool> {
        let memory = self.memory.try_resize(self.size());
        if self.mode.output_mode() == AggregateOutputMode::Final {
            return memory.map(|()| true);
        }
        let seldom_repeat = self.mode.input_mode() == AggregateInputMode::Raw && self.rows >= ROWS_TRIED && self.groups.len() > self.rows / 2;
        self.by_row = seldom_repeat && self.functions.iter().all(|function| function.is_vectorised);
        match memory {
            Ok(()) => Ok(self.groups.len() < GROUPS_MAX && !self.by_row),
            Err(DataFusionError::ResourcesExhausted(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn of_each_row(&mut self, rows: &RecordBatch, keys: Vec<ArrayRef>) -> Result<RecordBatch> {
        let mut columns = keys;
        for function in &mut self.functions {
            columns.extend(function.of_each_row(rows)?);
        }
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }

    /// The groups so far, which it forgets.
    fn take(&mut self) -> Result<RecordBatch> {
        if self.groups.len() == 0 {
            // Functions that are no columns do not even know how many columns they would have.
            return Ok(RecordBatch::new_empty(self.schema.clone()));
        }
        let groups = std::mem::replace(&mut self.groups, Groups::new(&self.kinds));
        let mut columns = groups.values()?;
        for function in &mut self.functions {
            columns.extend(function.take(self.mode.output_mode())?);
        }
        self.memory.try_resize(self.size())?;
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }

    fn size(&self) -> usize {
        self.groups.size() + 8 * self.found.capacity() + self.functions.iter().map(|function| function.groups.size()).sum::<usize>()
    }
}
