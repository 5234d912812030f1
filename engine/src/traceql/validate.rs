//! What the grammar takes but TraceQL refuses: types that do not go together, bad patterns, limits. The first fault is reported, in
//! Tempo's words where they are known.

use super::{
    ast::{
        Aggregate, AggregateFilter, AttributeScope, CompareOp, FieldExpr, FieldRef, Intrinsic, MetricsExpr, MetricsFunction, OverTime, Pipeline,
        Query, QueryBody, SecondStage, SpansetExpr, Stage, Static,
    },
    pattern::compile_pattern,
};
use crate::error::{Error, Result};

/// Most attributes a metric can be grouped by (Tempo's limit); functions that add a label of their own have one less.
const GROUPING_MAX: usize = 5;

/// Most values per attribute that `compare()` may keep (Tempo's limit).
const COMPARE_TOP_N_MAX: i64 = 1000;

/// The static type of an expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    /// Known only when a span is seen.
    Attribute,
    Nil,
    Int,
    Float,
    Duration,
    String,
    Bool,
    Status,
    Kind,
}

impl Type {
    fn is_numeric(self) -> bool {
        matches!(self, Self::Int | Self::Float | Self::Duration)
    }

    fn is_unknown(self) -> bool {
        matches!(self, Self::Attribute | Self::Nil)
    }

    fn goes_with(self, other: Self) -> bool {
        self == other || self.is_unknown() || other.is_unknown() || (self.is_numeric() && other.is_numeric())
    }

    fn of_static(value: &Static) -> Self {
        match value {
            Static::Nil => Self::Nil,
            Static::Int(_) => Self::Int,
            Static::Float(_) => Self::Float,
            Static::String(_) => Self::String,
            Static::Bool(_) => Self::Bool,
            Static::Duration(_) => Self::Duration,
            Static::Status(_) => Self::Status,
            Static::Kind(_) => Self::Kind,
        }
    }

    fn of_intrinsic(intrinsic: Intrinsic) -> Self {
        use Intrinsic as I;
        match intrinsic {
            I::Duration | I::TraceDuration | I::EventTimeSinceStart => Self::Duration,
            I::ChildCount | I::NestedSetLeft | I::NestedSetRight | I::NestedSetParent => Self::Int,
            I::Status => Self::Status,
            I::Kind => Self::Kind,
            I::InstrumentationName | I::InstrumentationVersion | I::Parent => Self::Attribute,
            I::Name
            | I::StatusMessage
            | I::SpanId
            | I::ParentId
            | I::TraceId
            | I::RootName
            | I::RootService
            | I::EventName
            | I::LinkTraceId
            | I::LinkSpanId => Self::String,
        }
    }
}

/// Checks all of `query`. Errors: `Invalid`.
pub(super) fn validate_query(query: &Query) -> Result<()> {
    match &query.body {
        QueryBody::Search(pipeline) => check_pipeline(pipeline),
        QueryBody::Metrics(metrics) => check_metrics(metrics, false),
    }
}

fn check_pipeline(pipeline: &Pipeline) -> Result<()> {
    pipeline.stages.iter().try_for_each(|stage| match stage {
        Stage::Spansets(spansets) => check_spansets(spansets),
        Stage::Aggregate(filter) => check_aggregate(filter),
        Stage::By(expr) => {
            type_of(expr)?;
            if !reads_span(expr) {
                return Err(Error::invalid(format!("grouping field expressions must reference the span: {stage}")));
            }
            Ok(())
        }
        Stage::Coalesce => Ok(()),
        Stage::Select(fields) => fields.iter().try_for_each(check_field),
    })
}

fn check_spansets(spansets: &SpansetExpr) -> Result<()> {
    match spansets {
        SpansetExpr::Filter(expr) => validate_filter(expr),
        SpansetExpr::Pipeline(pipeline) => check_pipeline(pipeline),
        SpansetExpr::Binary { lhs, rhs, .. } => {
            check_spansets(lhs)?;
            check_spansets(rhs)
        }
    }
}

/// Checks `expr` as the content of braces. Errors: `Invalid`.
pub(super) fn validate_filter(expr: &FieldExpr) -> Result<()> {
    match type_of(expr)? {
        Type::Bool | Type::Attribute => Ok(()),
        _ => Err(Error::invalid(format!("span filter field expressions must resolve to a boolean: {{ {expr} }}"))),
    }
}

fn check_aggregate(filter: &AggregateFilter) -> Result<()> {
    let aggregate = &filter.aggregate;
    let expr = match aggregate {
        Aggregate::Count => return Ok(()),
        Aggregate::Min(expr) | Aggregate::Max(expr) | Aggregate::Avg(expr) | Aggregate::Sum(expr) => expr,
    };
    let found = type_of(expr)?;
    if found != Type::Attribute && !found.is_numeric() {
        return Err(Error::invalid(format!("aggregate field expressions must resolve to a number type: {aggregate}")));
    }
    if !reads_span(expr) {
        return Err(Error::invalid(format!("aggregate field expressions must reference the span: {aggregate}")));
    }
    Ok(())
}

/// The type of `expr`, once all below it is in order.
fn type_of(expr: &FieldExpr) -> Result<Type> {
    let illegal = || Err(Error::invalid(format!("illegal operation for the given type: {expr}")));
    match expr {
        FieldExpr::Literal(value) => Ok(Type::of_static(value)),
        FieldExpr::Field(field) => {
            check_field(field)?;
            Ok(match field {
                FieldRef::Intrinsic(intrinsic) => Type::of_intrinsic(*intrinsic),
                FieldRef::Attribute { .. } => Type::Attribute,
            })
        }
        FieldExpr::Not(inner) => match type_of(inner)? {
            Type::Bool | Type::Attribute => Ok(Type::Bool),
            _ => illegal(),
        },
        FieldExpr::Negate(inner) => match type_of(inner)? {
            found if found.is_numeric() || found == Type::Attribute => Ok(found),
            _ => illegal(),
        },
        FieldExpr::Exists(inner) => type_of(inner).map(|_| Type::Bool),
        FieldExpr::Missing(inner) => {
            type_of(inner)?;
            match &**inner {
                FieldExpr::Field(FieldRef::Intrinsic(intrinsic)) => {
                    Err(Error::invalid(format!("{intrinsic}=nil is not valid because intrinsics cannot be nil")))
                }
                FieldExpr::Field(field @ FieldRef::Attribute { scope: AttributeScope::Resource, name }) if name == "service.name" => {
                    Err(Error::invalid(format!("{field}=nil is not valid because {field} cannot be nil")))
                }
                _ => Ok(Type::Bool),
            }
        }
        FieldExpr::Compare { op, lhs, rhs } => {
            let ordering = !matches!(op, CompareOp::Eq | CompareOp::Ne);
            operand_types(expr, lhs, rhs, |operand| !ordering || operand.is_numeric() || operand == Type::String)?;
            Ok(Type::Bool)
        }
        FieldExpr::And(lhs, rhs) | FieldExpr::Or(lhs, rhs) => {
            operand_types(expr, lhs, rhs, |operand| operand == Type::Bool)?;
            Ok(Type::Bool)
        }
        FieldExpr::Arith { lhs, rhs, .. } => {
            let (lhs, rhs) = operand_types(expr, lhs, rhs, Type::is_numeric)?;
            Ok(match (lhs, rhs) {
                (Type::Attribute, other) => other,
                (Type::Int, Type::Float | Type::Duration) => Type::Float,
                (other, _) => other,
            })
        }
        FieldExpr::Match { lhs, pattern, .. } => {
            if !type_of(lhs)?.goes_with(Type::String) {
                return Err(Error::invalid(format!("binary operations must operate on the same type: {expr}")));
            }
            compile_pattern(pattern).map(|_| Type::Bool)
        }
    }
}

/// The types of both operands, once they go together and each is `allowed` (or unknown).
fn operand_types(whole: &FieldExpr, lhs: &FieldExpr, rhs: &FieldExpr, allowed: impl Fn(Type) -> bool) -> Result<(Type, Type)> {
    let (lhs, rhs) = (type_of(lhs)?, type_of(rhs)?);
    if !lhs.goes_with(rhs) {
        return Err(Error::invalid(format!("binary operations must operate on the same type: {whole}")));
    }
    if ![lhs, rhs].into_iter().all(|operand| operand.is_unknown() || allowed(operand)) {
        return Err(Error::invalid(format!("illegal operation for the given types: {whole}")));
    }
    Ok((lhs, rhs))
}

fn check_metrics(metrics: &MetricsExpr, combined: bool) -> Result<()> {
    match metrics {
        MetricsExpr::Scalar(_) => Ok(()),
        MetricsExpr::Binary { lhs, rhs, .. } => {
            check_metrics(lhs, true)?;
            check_metrics(rhs, true)
        }
        MetricsExpr::SecondStages { input, stages } => {
            check_metrics(input, true)?;
            stages.iter().try_for_each(|stage| match stage {
                SecondStage::TopK(limit) | SecondStage::BottomK(limit) if *limit <= 0 => {
                    Err(Error::invalid(format!("the limit must be greater than 0: {stage}")))
                }
                _ => Ok(()),
            })
        }
        MetricsExpr::Pipeline { pipeline, function } => {
            check_pipeline(pipeline)?;
            if combined && matches!(function, MetricsFunction::Compare { .. }) {
                return Err(Error::invalid(format!("compare() cannot be combined with other stages or in math: {function}")));
            }
            check_metrics_function(function)
        }
    }
}

fn check_metrics_function(function: &MetricsFunction) -> Result<()> {
    let grouping_max = match function {
        MetricsFunction::QuantileOverTime { .. } | MetricsFunction::OverTime { function: OverTime::Avg | OverTime::Histogram, .. } => {
            GROUPING_MAX - 1
        }
        _ => GROUPING_MAX,
    };
    if function.by().len() > grouping_max {
        return Err(Error::invalid(format!(
            "metrics group by {} values not yet supported: {} takes at most {grouping_max}",
            function.by().len(),
            function.name()
        )));
    }
    if function.by().contains(&FieldRef::Intrinsic(Intrinsic::Parent)) {
        return Err(Error::invalid("parent not yet supported"));
    }
    match function {
        MetricsFunction::Rate { .. } | MetricsFunction::CountOverTime { .. } => Ok(()),
        MetricsFunction::OverTime { field, .. } => check_field(field),
        MetricsFunction::QuantileOverTime { field, quantiles, .. } => {
            check_field(field)?;
            match quantiles.iter().find(|quantile| !(0.0..=1.0).contains(*quantile)) {
                Some(quantile) => Err(Error::invalid(format!("quantile must be between 0 and 1: {quantile}"))),
                None => Ok(()),
            }
        }
        MetricsFunction::Compare { selection, top_n, window } => {
            validate_filter(selection)?;
            if !(1..=COMPARE_TOP_N_MAX).contains(top_n) {
                return Err(Error::invalid(format!("compare() top number of values must be between 1 and {COMPARE_TOP_N_MAX}: {top_n}")));
            }
            match *window {
                Some((start, end)) if start <= 0 || end <= 0 => {
                    Err(Error::invalid(format!("compare() start and end must be greater than 0: {start}, {end}")))
                }
                Some((start, end)) if end <= start => Err(Error::invalid(format!("compare() end must be greater than start: {start}, {end}"))),
                _ => Ok(()),
            }
        }
    }
}

/// Refuses what reads another span than the one looked at.
fn check_field(field: &FieldRef) -> Result<()> {
    match field {
        FieldRef::Intrinsic(Intrinsic::Parent) => Err(Error::invalid("parent not yet supported")),
        FieldRef::Attribute { scope: AttributeScope::Parent | AttributeScope::ParentSpan | AttributeScope::ParentResource, .. } => {
            Err(Error::invalid(format!("parent not yet supported: {field}")))
        }
        _ => Ok(()),
    }
}

fn reads_span(expr: &FieldExpr) -> bool {
    let mut reads = false;
    expr.visit_fields(&mut |_| reads = true);
    reads
}
