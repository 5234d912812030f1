//! Spanset pipelines over the traces of one row group.
//!
//! Filters are bits over all rows, made once ([`PipelineInputs`]); the rest works trace by trace on ascending row lists, and only on
//! traces that a first-stage filter touched. Rows lie in pre-order, so a subtree is an interval and structural operators are single
//! passes over the lists.

use std::{collections::HashMap, ops::Range};

use arrow::{
    array::{Array, Int64Array},
    buffer::BooleanBuffer,
};

use super::eval::{
    ColumnNeeds, Frame,
    mask::{mask, values},
    value::compare,
};
use crate::{
    error::{Error, Result},
    exec::{
        prune::{prunes_by, ruled_out},
        stats::ScanMetrics,
    },
    spans::{schema::Column, value::Value},
    stop,
    traceql::{Aggregate, AggregateFilter, AttributeScope, FieldExpr, FieldRef, Form, Intrinsic, Pipeline, Relation, SpansetExpr, SpansetOp, Stage},
};

/// Some spans of one trace, with what `by` and aggregates said of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Spanset {
    /// Rows in the frame, ascending.
    pub rows: Vec<u32>,
    /// Grouping values and aggregates, in the order of the stages.
    pub attributes: Vec<(String, Value)>,
}

/// A trace with at least one spanset.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceMatch {
    /// The trace.
    pub id: u128,
    /// Its rows in the frame.
    pub rows: Range<u32>,
    /// Its spansets; none is empty.
    pub spansets: Vec<Spanset>,
}

/// What a pipeline reads of rows beyond its filters.
#[derive(Debug, Default, Clone, Copy)]
struct TreeNeeds {
    descendants: bool,
    parents: bool,
    absent_parents: bool,
}

/// Collects filters, value expressions and tree columns of a pipeline.
#[derive(Default)]
struct Parts<'a> {
    filters: Vec<&'a FieldExpr>,
    values: Vec<&'a FieldExpr>,
    tree: TreeNeeds,
}

impl<'a> Parts<'a> {
    fn pipeline(&mut self, pipeline: &'a Pipeline) {
        for stage in &pipeline.stages {
            match stage {
                Stage::Spansets(expr) => self.spansets(expr),
                Stage::By(expr) => self.values.push(expr),
                Stage::Aggregate(filter) => self.values.extend(argument(&filter.aggregate)),
                Stage::Coalesce | Stage::Select(_) => {}
            }
        }
    }

    fn spansets(&mut self, expr: &'a SpansetExpr) {
        match expr {
            SpansetExpr::Filter(filter) => self.filters.push(filter),
            SpansetExpr::Pipeline(pipeline) => self.pipeline(pipeline),
            SpansetExpr::Binary { op, lhs, rhs } => {
                if let SpansetOp::Structural { relation, .. } = op {
                    let intervals = matches!(relation, Relation::Descendant | Relation::Ancestor);
                    self.tree.descendants |= intervals;
                    self.tree.parents |= !intervals;
                    self.tree.absent_parents |= matches!(relation, Relation::Sibling);
                }
                self.spansets(lhs);
                self.spansets(rhs);
            }
        }
    }
}

fn argument(aggregate: &Aggregate) -> Option<&FieldExpr> {
    match aggregate {
        Aggregate::Count => None,
        Aggregate::Min(expr) | Aggregate::Max(expr) | Aggregate::Avg(expr) | Aggregate::Sum(expr) => Some(expr),
    }
}

/// The first-stage filters, if every result must come from them; None when the pipeline starts with all spans.
fn leading_filters(pipeline: &Pipeline) -> Option<Vec<&FieldExpr>> {
    let mut parts = Parts::default();
    match pipeline.stages.first()? {
        Stage::Spansets(expr) => {
            let mut leading = Some(());
            collect_leading(expr, &mut parts, &mut leading);
            leading.map(|()| parts.filters)
        }
        _ => None,
    }
}

fn collect_leading<'a>(expr: &'a SpansetExpr, parts: &mut Parts<'a>, leading: &mut Option<()>) {
    match expr {
        SpansetExpr::Filter(filter) => parts.filters.push(filter),
        SpansetExpr::Pipeline(pipeline) => match leading_filters(pipeline) {
            Some(filters) => parts.filters.extend(filters),
            None => *leading = None,
        },
        SpansetExpr::Binary { lhs, rhs, .. } => {
            collect_leading(lhs, parts, leading);
            collect_leading(rhs, parts, leading);
        }
    }
}

/// Splits a chain of `&&` into its terms. Terms over events stay together, since they must hold for the same event; so do those over
/// links.
fn conjuncts(expr: &FieldExpr) -> Vec<FieldExpr> {
    fn split<'a>(expr: &'a FieldExpr, out: &mut Vec<&'a FieldExpr>) {
        match expr {
            FieldExpr::And(lhs, rhs) => {
                split(lhs, out);
                split(rhs, out);
            }
            term => out.push(term),
        }
    }
    let mut terms = Vec::new();
    split(expr, &mut terms);
    let (mut plain, mut bound): (Vec<FieldExpr>, Option<FieldExpr>) = (Vec::new(), None);
    for term in terms {
        let mut nested = false;
        term.visit_fields(&mut |field| nested |= super::eval::frame::level_of(field) != super::eval::frame::FieldLevel::Span);
        if nested {
            bound = Some(match bound {
                Some(others) => FieldExpr::And(Box::new(others), Box::new(term.clone())),
                None => term.clone(),
            });
        } else {
            plain.push(term.clone());
        }
    }
    plain.extend(bound);
    plain
}

/// How dear the columns of a term are to read and test; terms are tried cheapest first.
fn cost_of(expr: &FieldExpr) -> u32 {
    let mut cost = 0;
    expr.visit_fields(&mut |field| {
        cost += match field {
            FieldRef::Attribute { scope: AttributeScope::Resource | AttributeScope::Instrumentation, .. } => 1,
            FieldRef::Intrinsic(Intrinsic::Status | Intrinsic::Kind) => 1,
            FieldRef::Intrinsic(Intrinsic::Duration | Intrinsic::Name | Intrinsic::RootName | Intrinsic::RootService) => 2,
            FieldRef::Intrinsic(Intrinsic::TraceDuration | Intrinsic::TraceId) => 2,
            FieldRef::Attribute { scope: AttributeScope::Event | AttributeScope::Link, .. } => 40,
            FieldRef::Intrinsic(Intrinsic::EventName | Intrinsic::EventTimeSinceStart | Intrinsic::LinkTraceId | Intrinsic::LinkSpanId) => 40,
            FieldRef::Intrinsic(_) => 6,
            FieldRef::Attribute { .. } => 4,
        }
    });
    if matches!(expr, FieldExpr::Compare { .. } | FieldExpr::Exists(_) | FieldExpr::Missing(_)) { cost } else { cost * 2 }
}

/// The rows of `frame` among `active` that pass `filter`, none if some term is ruled out beforehand; else loading columns term by term and
/// only while rows are left.
/// Errors: as [`mask`] and the source's.
pub async fn filter_rows(
    filter: &FieldExpr,
    frame: &mut Frame,
    group: usize,
    active: &BooleanBuffer,
    metrics: &ScanMetrics,
) -> Result<BooleanBuffer> {
    let mut terms = conjuncts(filter);
    terms.sort_by_key(cost_of);
    for term in &terms {
        if let Some(why) = ruled_out(term, frame.source(), group, metrics).await? {
            frame.rule_out(why);
            return Ok(BooleanBuffer::new_unset(frame.len()));
        }
    }
    let mut left = active.clone();
    for term in &terms {
        if left.count_set_bits() == 0 {
            break;
        }
        let mut needs = ColumnNeeds::default();
        term.visit_fields(&mut |field| needs.add_field(field, frame.source()));
        frame.load(&needs, metrics).await?;
        left = mask(term, frame, &left)?;
    }
    Ok(left)
}

/// The filters of `pipeline` as they are evaluated: the terms of each `&&` in the order in which their columns are read, and what can rule
/// a row group out before.
pub fn evaluation_order(pipeline: &Pipeline) -> Vec<String> {
    let mut parts = Parts::default();
    parts.pipeline(pipeline);
    let describe = |term: &FieldExpr| match prunes_by(term) {
        Some(by) => format!("{term} (prunes by {by})"),
        None => term.to_string(),
    };
    let filter = |filter: &FieldExpr| {
        let mut terms = conjuncts(filter);
        terms.sort_by_key(cost_of);
        terms.iter().map(describe).collect::<Vec<_>>().join(", then ")
    };
    parts.filters.into_iter().map(filter).collect()
}

/// A pipeline, ready to run on frames.
#[derive(Debug, Clone)]
pub struct SpansetPipeline {
    pipeline: Pipeline,
}

/// Bytes a row that a pipeline with so many `filters` and `values` takes while it runs: a list of rows for each filter, values, and a place in
/// the table of parents.
fn working_bytes(filters: usize, values: usize, tree: TreeNeeds) -> usize {
    const PARENT_BYTES: usize = 48;
    let parents = if tree.absent_parents { PARENT_BYTES } else { 0 };
    filters * size_of::<u32>() + values.min(1) * size_of::<Value>() + parents
}

/// Bytes of a group of `by` without its row list and the text of its value: its entries in the table and in the list.
const GROUP_BYTES: usize = 256;
/// Groups made between two reservations.
const GROUPS_AT_ONCE: usize = 1024;

/// A filter's place in its pipeline, which does not move while it runs.
fn key_of(filter: &FieldExpr) -> usize {
    std::ptr::from_ref(filter) as usize
}

/// What a pipeline needs of a frame: bits of each filter, values of each grouping and aggregate, the tree.
struct PipelineInputs<'a> {
    frame: &'a Frame,
    masks: HashMap<usize, BooleanBuffer>,
    distance: &'a [i32],
    descendants: &'a [i32],
    absent_parents: Option<&'a Int64Array>,
}

impl SpansetPipeline {
    /// Takes over a validated pipeline.
    pub fn new(pipeline: Pipeline) -> Self {
        Self { pipeline }
    }

    /// The spansets of the first `limit` traces in `frame` that have any, restricted to the spans in `active`. Loads what it needs.
    /// Errors: `Invalid` for run-time type errors, else as the source's.
    pub async fn run(&self, frame: &mut Frame, group: usize, active: &BooleanBuffer, limit: usize, metrics: &ScanMetrics) -> Result<Vec<TraceMatch>> {
        let mut parts = Parts::default();
        parts.pipeline(&self.pipeline);
        let mut masks = HashMap::new();
        let mut touched: Option<BooleanBuffer> = None;
        if let Some(filters) = leading_filters(&self.pipeline) {
            for filter in filters {
                let bits = filter_rows(filter, frame, group, active, metrics).await?;
                touched = Some(match touched {
                    Some(touched) => &touched | &bits,
                    None => bits.clone(),
                });
                masks.insert(key_of(filter), bits);
            }
        }
        let touched = touched.unwrap_or_else(|| active.clone());
        if touched.count_set_bits() == 0 {
            return Ok(Vec::new());
        }
        for filter in parts.filters {
            if let std::collections::hash_map::Entry::Vacant(entry) = masks.entry(key_of(filter)) {
                entry.insert(filter_rows(filter, frame, group, active, metrics).await?);
            }
        }
        let tree = parts.tree;
        let working_bytes = working_bytes(masks.len(), parts.values.len(), tree);
        let mut needs = ColumnNeeds::default();
        if tree.descendants {
            needs.add(Column::Descendants);
        }
        if tree.parents {
            needs.add(Column::ParentDistance);
        }
        if tree.absent_parents {
            needs.add(Column::ParentSpanId);
        }
        for value in parts.values {
            value.visit_fields(&mut |field| needs.add_field(field, frame.source()));
        }
        frame.load(&needs, metrics).await?;
        frame.hold(frame.len() * working_bytes)?;
        let inputs = PipelineInputs {
            frame,
            masks,
            distance: if tree.parents { frame.small_ints(Column::ParentDistance)?.values() } else { &[] },
            descendants: if tree.descendants { frame.small_ints(Column::Descendants)?.values() } else { &[] },
            absent_parents: if tree.absent_parents { Some(frame.ints(Column::ParentSpanId)?) } else { None },
        };
        self.run_traces(&inputs, group, &touched, active, limit)
    }

    /// The rows of all spansets of all traces in `frame`, restricted to the spans in `active`. A pipeline that is one filter needs no
    /// traces. Loads what it needs. Errors: as [`SpansetPipeline::run`].
    pub async fn rows(&self, frame: &mut Frame, group: usize, active: &BooleanBuffer, metrics: &ScanMetrics) -> Result<BooleanBuffer> {
        let mut stages = self.pipeline.stages.iter().filter(|stage| !matches!(stage, Stage::Select(_)));
        if let (Some(Stage::Spansets(SpansetExpr::Filter(filter))), None) = (stages.next(), stages.next()) {
            return filter_rows(filter, frame, group, active, metrics).await;
        }
        let mut bits = vec![false; frame.len()];
        for found in self.run(frame, group, active, usize::MAX, metrics).await? {
            found.spansets.iter().flat_map(|spanset| &spanset.rows).for_each(|&row| bits[row as usize] = true);
        }
        Ok(bits.into())
    }

    fn run_traces(
        &self,
        inputs: &PipelineInputs<'_>,
        group: usize,
        touched: &BooleanBuffer,
        active: &BooleanBuffer,
        limit: usize,
    ) -> Result<Vec<TraceMatch>> {
        let source = inputs.frame.source();
        let base = source.row_groups()[group].first_row as usize;
        let mut traces = source.traces().cursor();
        let mut matches = Vec::new();
        let mut done_to = 0;
        for row in touched.set_indices() {
            if row < done_to {
                continue;
            }
            if matches.len() == limit {
                break;
            }
            stop::check()?;
            let (id, rows) = traces.trace_at(base + row).ok_or_else(|| Error::data("the index names no trace for a row"))?;
            if rows.start < base || rows.end - base > touched.len() {
                return Err(Error::data("a trace reaches beyond its row group"));
            }
            done_to = rows.end - base;
            let trace = (rows.start - base) as u32..done_to as u32;
            let all = Spanset { rows: trace.clone().filter(|&row| active.value(row as usize)).collect(), attributes: Vec::new() };
            let spansets = run_stages(&self.pipeline, inputs, vec![all])?;
            if !spansets.is_empty() {
                matches.push(TraceMatch { id, rows: trace, spansets });
            }
        }
        Ok(matches)
    }
}

fn run_stages(pipeline: &Pipeline, inputs: &PipelineInputs<'_>, mut spansets: Vec<Spanset>) -> Result<Vec<Spanset>> {
    for stage in &pipeline.stages {
        let mut next = Vec::new();
        match stage {
            Stage::Spansets(expr) => {
                for spanset in spansets {
                    next.extend(select_spansets(expr, inputs, spanset)?);
                }
            }
            Stage::Aggregate(filter) => {
                for spanset in spansets {
                    next.extend(apply_aggregate(filter, inputs, spanset)?);
                }
            }
            Stage::By(expr) => {
                for spanset in spansets {
                    next.extend(group_by(expr, inputs, spanset)?);
                }
            }
            Stage::Coalesce => next.extend(coalesce(spansets)),
            Stage::Select(_) => next = spansets,
        }
        spansets = next;
        if spansets.is_empty() {
            break;
        }
    }
    Ok(spansets)
}

fn coalesce(spansets: Vec<Spanset>) -> Option<Spanset> {
    let rows = spansets.into_iter().map(|spanset| spanset.rows).reduce(|a, b| union(&a, &b))?;
    Some(Spanset { rows, attributes: Vec::new() })
}

/// Applies a stage of filters to one spanset. A plain filter keeps the spanset's attributes; so does a combination.
fn select_spansets(expr: &SpansetExpr, inputs: &PipelineInputs<'_>, input: Spanset) -> Result<Vec<Spanset>> {
    if let SpansetExpr::Pipeline(pipeline) = expr {
        return run_stages(pipeline, inputs, vec![input]);
    }
    let rows = select_rows(expr, inputs, &input)?;
    Ok(if rows.is_empty() { Vec::new() } else { vec![Spanset { rows, attributes: input.attributes }] })
}

fn select_rows(expr: &SpansetExpr, inputs: &PipelineInputs<'_>, input: &Spanset) -> Result<Vec<u32>> {
    stop::check()?;
    match expr {
        SpansetExpr::Filter(filter) => {
            let bits = inputs.masks.get(&key_of(filter)).ok_or_else(|| Error::internal("a filter was not evaluated"))?;
            Ok(input.rows.iter().copied().filter(|&row| bits.value(row as usize)).collect())
        }
        SpansetExpr::Pipeline(pipeline) => {
            let out = run_stages(pipeline, inputs, vec![input.clone()])?;
            Ok(coalesce(out).map(|spanset| spanset.rows).unwrap_or_default())
        }
        SpansetExpr::Binary { op, lhs, rhs } => {
            let (left, right) = (operand(lhs, *op, inputs, input)?, operand(rhs, *op, inputs, input)?);
            Ok(match op {
                SpansetOp::And if left.is_empty() || right.is_empty() => Vec::new(),
                SpansetOp::And | SpansetOp::Or => union(&left, &right),
                SpansetOp::Structural { relation, form } => inputs.structural(*relation, *form, &left, &right),
            })
        }
    }
}

/// An operand of a structural operator must be one spanset.
fn operand(expr: &SpansetExpr, op: SpansetOp, inputs: &PipelineInputs<'_>, input: &Spanset) -> Result<Vec<u32>> {
    if let (SpansetExpr::Pipeline(pipeline), SpansetOp::Structural { .. }) = (expr, op) {
        let mut out = run_stages(pipeline, inputs, vec![input.clone()])?;
        return match out.len() {
            0 => Ok(Vec::new()),
            1 => Ok(out.swap_remove(0).rows),
            _ => Err(Error::invalid(format!(
                "a structural operator needs one spanset on each side, but ({pipeline}) gives several: end it with coalesce()"
            ))),
        };
    }
    select_rows(expr, inputs, input)
}

/// Merges two ascending lists.
fn union(a: &[u32], b: &[u32]) -> Vec<u32> {
    let mut out = Vec::with_capacity(a.len() + b.len());
    let (mut i, mut j) = (0, 0);
    while i < a.len() && j < b.len() {
        out.push(a[i].min(b[j]));
        i += usize::from(a[i] == out[out.len() - 1]);
        j += usize::from(b[j] == out[out.len() - 1]);
    }
    out.extend_from_slice(&a[i..]);
    out.extend_from_slice(&b[j..]);
    out
}

impl PipelineInputs<'_> {
    fn parent(&self, row: u32) -> Option<u32> {
        let distance = self.distance[row as usize];
        (distance > 0).then(|| row - distance as u32)
    }

    /// What siblings have in common: their parent's row, or the absent parent's id, or having none.
    fn parent_key(&self, row: u32) -> (Option<u32>, Option<i64>) {
        match (self.parent(row), self.absent_parents) {
            (Some(parent), _) => (Some(parent), None),
            (None, Some(absent)) if absent.is_valid(row as usize) => (None, Some(absent.value(row as usize))),
            (None, _) => (None, None),
        }
    }

    fn structural(&self, relation: Relation, form: Form, left: &[u32], right: &[u32]) -> Vec<u32> {
        let related = self.related(relation, left, right);
        match form {
            Form::Plain => right.iter().zip(&related).filter(|&(_, &hit)| hit).map(|(&row, _)| row).collect(),
            Form::Negated => right.iter().zip(&related).filter(|&(_, &hit)| !hit).map(|(&row, _)| row).collect(),
            Form::Union => {
                let back = self.related(inverse(relation), right, left);
                let hits =
                    |rows: &[u32], hits: &[bool]| -> Vec<u32> { rows.iter().zip(hits).filter(|&(_, &hit)| hit).map(|(&row, _)| row).collect() };
                union(&hits(left, &back), &hits(right, &related))
            }
        }
    }

    /// For each of `right`: whether some of `left` is related to it.
    fn related(&self, relation: Relation, left: &[u32], right: &[u32]) -> Vec<bool> {
        match relation {
            Relation::Descendant => {
                let (mut at, mut until) = (0, 0);
                let below = |&row: &u32| {
                    while at < left.len() && left[at] < row {
                        until = until.max(left[at] + self.descendants[left[at] as usize] as u32 + 1);
                        at += 1;
                    }
                    row < until
                };
                right.iter().map(below).collect()
            }
            Relation::Child => right.iter().map(|&row| self.parent(row).is_some_and(|parent| left.binary_search(&parent).is_ok())).collect(),
            Relation::Ancestor => {
                let above = |&row: &u32| {
                    let next = left.partition_point(|&other| other <= row);
                    left.get(next).is_some_and(|&other| other <= row + self.descendants[row as usize] as u32)
                };
                right.iter().map(above).collect()
            }
            Relation::Parent => {
                let mut parents: Vec<u32> = left.iter().filter_map(|&row| self.parent(row)).collect();
                parents.sort_unstable();
                right.iter().map(|row| parents.binary_search(row).is_ok()).collect()
            }
            Relation::Sibling => {
                let mut by_parent: HashMap<(Option<u32>, Option<i64>), (u32, u32)> = HashMap::new();
                for &row in left {
                    let entry = by_parent.entry(self.parent_key(row)).or_insert((0, row));
                    *entry = (entry.0 + 1, row);
                }
                let sibling = |&row: &u32| by_parent.get(&self.parent_key(row)).is_some_and(|&(count, only)| count > 1 || only != row);
                right.iter().map(sibling).collect()
            }
        }
    }
}

fn inverse(relation: Relation) -> Relation {
    match relation {
        Relation::Descendant => Relation::Ancestor,
        Relation::Ancestor => Relation::Descendant,
        Relation::Child => Relation::Parent,
        Relation::Parent => Relation::Child,
        Relation::Sibling => Relation::Sibling,
    }
}

fn group_by(expr: &FieldExpr, inputs: &PipelineInputs<'_>, spanset: Spanset) -> Result<Vec<Spanset>> {
    let name = format!("by({expr})");
    let mut groups: Vec<Spanset> = Vec::new();
    let mut by_value: HashMap<String, usize> = HashMap::new();
    let mut held = 0;
    for (&row, value) in spanset.rows.iter().zip(values(expr, inputs.frame, &spanset.rows)?) {
        let at = *by_value.entry(format!("{value:?}")).or_insert_with(|| {
            let mut attributes = spanset.attributes.clone();
            attributes.push((name.clone(), value));
            groups.push(Spanset { rows: Vec::new(), attributes });
            groups.len() - 1
        });
        groups[at].rows.push(row);
        if groups.len() >= held + GROUPS_AT_ONCE {
            held += GROUPS_AT_ONCE;
            inputs.frame.hold(GROUPS_AT_ONCE * (GROUP_BYTES + name.len() * spanset.attributes.len().max(1)))?;
        }
    }
    Ok(groups)
}

fn apply_aggregate(filter: &AggregateFilter, inputs: &PipelineInputs<'_>, mut spanset: Spanset) -> Result<Option<Spanset>> {
    let value = match argument(&filter.aggregate) {
        None => Value::Int(spanset.rows.len() as i64),
        Some(expr) => aggregate(&filter.aggregate, values(expr, inputs.frame, &spanset.rows)?),
    };
    if value.as_f64().is_none() || !compare(filter.op, &value, &(&filter.value).into()) {
        return Ok(None);
    }
    spanset.attributes.push((filter.aggregate.to_string(), value));
    Ok(Some(spanset))
}

/// Sums and averages add the values of the first value's type, averages over all that are not missing; minimum and maximum compare
/// numbers across types. Nothing to aggregate is `Nil`.
fn aggregate(aggregate: &Aggregate, values: Vec<Value>) -> Value {
    let values: Vec<Value> = values.into_iter().filter(|value| *value != Value::Nil).collect();
    let Some(first) = values.first() else { return Value::Nil };
    match aggregate {
        Aggregate::Min(_) | Aggregate::Max(_) => {
            let wanted = if matches!(aggregate, Aggregate::Max(_)) { std::cmp::Ordering::Greater } else { std::cmp::Ordering::Less };
            values.iter().skip(1).fold(first, |best, value| if order(value, best) == wanted { value } else { best }).clone()
        }
        Aggregate::Avg(_) => average(&values),
        Aggregate::Sum(_) | Aggregate::Count => sum(&values),
    }
}

/// The values that have the type of the first.
fn of_first_type(values: &[Value]) -> impl Iterator<Item = &Value> {
    values.iter().filter(|value| std::mem::discriminant(*value) == std::mem::discriminant(&values[0]))
}

/// The sum of integers or durations, without overflow.
fn whole_sum(values: &[Value]) -> i128 {
    of_first_type(values).map(|value| if let Value::Int(value) | Value::Duration(value) = value { i128::from(*value) } else { 0 }).sum()
}

fn float_sum(values: &[Value]) -> f64 {
    of_first_type(values).filter_map(Value::as_f64).sum()
}

/// Sums of integers and durations wrap, as all their arithmetic does.
fn sum(values: &[Value]) -> Value {
    match &values[0] {
        Value::Int(_) => Value::Int(whole_sum(values) as i64),
        Value::Duration(_) => Value::Duration(whole_sum(values) as i64),
        Value::Float(_) => Value::Float(float_sum(values)),
        other => other.clone(),
    }
}

fn average(values: &[Value]) -> Value {
    let count = values.len();
    match &values[0] {
        Value::Int(_) => Value::Float(whole_sum(values) as f64 / count as f64),
        Value::Duration(_) => Value::Duration((whole_sum(values) / count as i128) as i64),
        Value::Float(_) => Value::Float(float_sum(values) / count as f64),
        other => other.clone(),
    }
}

/// Numbers by size, below everything else; other types by kind.
fn order(a: &Value, b: &Value) -> std::cmp::Ordering {
    use std::cmp::Ordering;
    match (a, b) {
        (Value::Int(a) | Value::Duration(a), Value::Int(b) | Value::Duration(b)) => a.cmp(b),
        (Value::String(a), Value::String(b)) => a.cmp(b),
        _ => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => a.partial_cmp(&b).unwrap_or(Ordering::Equal),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => Ordering::Equal,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traceql::Static;

    #[test]
    fn lists_merge_without_repeats() {
        assert_eq!(union(&[1, 3, 5], &[2, 3, 6]), [1, 2, 3, 5, 6]);
        assert_eq!(union(&[], &[2]), [2]);
    }

    #[test]
    fn sums_take_the_first_type_and_averages_divide_by_all() {
        let values = || vec![Value::Int(1), Value::Nil, Value::Int(2), Value::Float(4.5), Value::from("9")];
        let field = || FieldExpr::Literal(Static::Int(0));
        assert_eq!(aggregate(&Aggregate::Sum(field()), values()), Value::Int(3));
        assert_eq!(aggregate(&Aggregate::Avg(field()), values()), Value::Float(0.75));
        assert_eq!(aggregate(&Aggregate::Min(field()), values()), Value::Int(1));
        assert_eq!(aggregate(&Aggregate::Max(field()), values()), Value::from("9"));
        assert_eq!(aggregate(&Aggregate::Max(field()), vec![Value::Nil]), Value::Nil);
    }
}
