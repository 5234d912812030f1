//! Pipelines over the traces of one row group.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    ops::Range,
};

use arrow::buffer::BooleanBuffer;

use super::{
    aggregates::{apply_aggregate, argument, group_by},
    filters::{FilterTerms, filter_rows},
    structure::{Tree, TreeNeeds, union},
};
use crate::{
    error::{Error, Result},
    exec::{eval::Frame, stats::ScanMetrics},
    spans::value::Value,
    stop,
    traceql::{FieldExpr, Pipeline, SpansetExpr, SpansetOp, Stage},
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
                    self.tree.add(*relation);
                }
                self.spansets(lhs);
                self.spansets(rhs);
            }
        }
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

/// A pipeline and how its filters are evaluated, ready to run on frames. Optimiser rules decide the latter.
#[derive(Debug, Clone, PartialEq)]
pub struct SpansetPipeline {
    pipeline: Pipeline,
    filters: Vec<FilterTerms>,
    by_rows: bool,
}

/// A validated pipeline as it is written: every filter is one term, and row groups are ruled out by none.
impl From<Pipeline> for SpansetPipeline {
    fn from(pipeline: Pipeline) -> Self {
        let mut parts = Parts::default();
        parts.pipeline(&pipeline);
        let filters = parts.filters.into_iter().cloned().map(FilterTerms::as_written).collect();
        Self { pipeline, filters, by_rows: false }
    }
}

/// The pipeline as TraceQL.
impl fmt::Display for SpansetPipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pipeline.fmt(f)
    }
}

fn is_one_filter(pipeline: &Pipeline) -> bool {
    matches!(pipeline.stages.as_slice(), [Stage::Spansets(SpansetExpr::Filter(_))])
}

/// A filter's place in its pipeline, which does not move while it runs.
fn key_of(filter: &FieldExpr) -> usize {
    std::ptr::from_ref(filter) as usize
}

/// Bytes a row that a pipeline with so many `filters` and `values` takes while it runs: a list of rows for each filter, values, and what its
/// relations take.
fn working_bytes(filters: usize, values: usize, tree: TreeNeeds) -> usize {
    filters * size_of::<u32>() + values.min(1) * size_of::<Value>() + tree.working_bytes()
}

/// What a pipeline needs of a frame: bits of each filter, values of each grouping and aggregate, the tree.
struct PipelineInputs<'a> {
    frame: &'a Frame,
    masks: HashMap<usize, BooleanBuffer>,
    tree: Tree<'a>,
}

impl SpansetPipeline {
    /// Evaluates `pipeline` with `filters` for its filters from left to right; `by_rows` says that traces are not needed.
    /// Errors: `Internal` when there are more or fewer filters, or when a pipeline that is more than one filter shall do without traces.
    pub fn planned(pipeline: Pipeline, filters: Vec<FilterTerms>, by_rows: bool) -> Result<Self> {
        let mut parts = Parts::default();
        parts.pipeline(&pipeline);
        if parts.filters.len() != filters.len() || filters.iter().any(|filter| filter.terms.is_empty()) {
            return Err(Error::internal(format!("the filters of a plan are not those of its pipeline {pipeline}")));
        }
        if by_rows && !is_one_filter(&pipeline) {
            return Err(Error::internal(format!("a pipeline needs whole traces: {pipeline}")));
        }
        Ok(Self { pipeline, filters, by_rows })
    }

    /// The pipeline.
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// How its filters are evaluated, from left to right.
    pub fn filters(&self) -> &[FilterTerms] {
        &self.filters
    }

    /// The same pipeline with its filters evaluated in another way.
    pub fn with_filters(self, change: impl FnMut(FilterTerms) -> FilterTerms) -> Self {
        Self { filters: self.filters.into_iter().map(change).collect(), ..self }
    }

    /// Whether [`rows`](Self::rows) does without traces.
    pub fn by_rows(&self) -> bool {
        self.by_rows
    }

    /// The same pipeline without looking at traces if it is one filter, else itself.
    pub fn without_traces(self) -> Self {
        Self { by_rows: is_one_filter(&self.pipeline), ..self }
    }

    /// How filters are evaluated, in words.
    pub fn describe_filters(&self) -> String {
        self.filters.iter().map(FilterTerms::to_string).collect::<Vec<_>>().join("; ")
    }

    /// The spansets of the first `limit` traces in `frame` that have any, restricted to the spans in `active`. Loads what it needs.
    /// Errors: `Invalid` for run-time type errors, else as the source's.
    pub async fn run(&self, frame: &mut Frame, group: usize, active: &BooleanBuffer, limit: usize, metrics: &ScanMetrics) -> Result<Vec<TraceMatch>> {
        let mut parts = Parts::default();
        parts.pipeline(&self.pipeline);
        let filters: Vec<(usize, &FilterTerms)> = parts.filters.iter().map(|filter| key_of(filter)).zip(&self.filters).collect();
        let leading: Option<Vec<usize>> = leading_filters(&self.pipeline).map(|leading| leading.into_iter().map(key_of).collect());
        let mut masks = HashMap::new();
        let mut touched: Option<BooleanBuffer> = None;
        for (key, filter) in filters.iter().filter(|(key, _)| leading.as_ref().is_some_and(|leading| leading.contains(key))) {
            let bits = filter_rows(filter, frame, group, active, metrics).await?;
            touched = Some(match touched {
                Some(touched) => &touched | &bits,
                None => bits.clone(),
            });
            masks.insert(*key, bits);
        }
        let touched = touched.unwrap_or_else(|| active.clone());
        if touched.count_set_bits() == 0 {
            return Ok(Vec::new());
        }
        for (key, filter) in filters {
            if let Entry::Vacant(entry) = masks.entry(key) {
                entry.insert(filter_rows(filter, frame, group, active, metrics).await?);
            }
        }
        let working_bytes = working_bytes(masks.len(), parts.values.len(), parts.tree);
        let mut needs = parts.tree.columns();
        for value in parts.values {
            value.visit_fields(&mut |field| needs.add_field(field, frame.source()));
        }
        frame.load(&needs, metrics).await?;
        frame.hold(frame.len() * working_bytes)?;
        let inputs = PipelineInputs { frame, masks, tree: Tree::of(frame, parts.tree)? };
        self.run_traces(&inputs, group, &touched, active, limit)
    }

    /// The rows of all spansets of all traces in `frame`, restricted to the spans in `active`. Loads what it needs.
    /// Errors: as [`SpansetPipeline::run`].
    pub async fn rows(&self, frame: &mut Frame, group: usize, active: &BooleanBuffer, metrics: &ScanMetrics) -> Result<BooleanBuffer> {
        if let (true, [filter]) = (self.by_rows, self.filters.as_slice()) {
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
                    next.extend(apply_aggregate(filter, inputs.frame, spanset)?);
                }
            }
            Stage::By(expr) => {
                for spanset in spansets {
                    next.extend(group_by(expr, inputs.frame, spanset)?);
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
                SpansetOp::Structural { relation, form } => inputs.tree.structural(*relation, *form, &left, &right),
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
