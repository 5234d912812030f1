//! Walks over the syntax tree.

use super::ast::{Aggregate, FieldExpr, FieldRef, MetricsExpr, MetricsFunction, Pipeline, Query, QueryBody, SpansetExpr, Stage};

impl FieldExpr {
    /// Calls `visit` for each field the expression reads, from left to right, repeated ones repeatedly.
    pub fn visit_fields<'a>(&'a self, visit: &mut impl FnMut(&'a FieldRef)) {
        match self {
            Self::Literal(_) => {}
            Self::Field(field) => visit(field),
            Self::Not(inner) | Self::Negate(inner) | Self::Exists(inner) | Self::Missing(inner) => inner.visit_fields(visit),
            Self::Match { lhs, .. } => lhs.visit_fields(visit),
            Self::Compare { lhs, rhs, .. } | Self::Arith { lhs, rhs, .. } | Self::And(lhs, rhs) | Self::Or(lhs, rhs) => {
                lhs.visit_fields(visit);
                rhs.visit_fields(visit);
            }
        }
    }
}

impl SpansetExpr {
    /// Calls `visit` for each field read, from left to right.
    pub fn visit_fields<'a>(&'a self, visit: &mut impl FnMut(&'a FieldRef)) {
        match self {
            Self::Filter(expr) => expr.visit_fields(visit),
            Self::Pipeline(pipeline) => pipeline.visit_fields(visit),
            Self::Binary { lhs, rhs, .. } => {
                lhs.visit_fields(visit);
                rhs.visit_fields(visit);
            }
        }
    }
}

impl Pipeline {
    /// Calls `visit` for each field read or selected, from left to right.
    pub fn visit_fields<'a>(&'a self, visit: &mut impl FnMut(&'a FieldRef)) {
        for stage in &self.stages {
            match stage {
                Stage::Spansets(spansets) => spansets.visit_fields(visit),
                Stage::By(expr) => expr.visit_fields(visit),
                Stage::Aggregate(filter) => match &filter.aggregate {
                    Aggregate::Count => {}
                    Aggregate::Min(expr) | Aggregate::Max(expr) | Aggregate::Avg(expr) | Aggregate::Sum(expr) => expr.visit_fields(visit),
                },
                Stage::Coalesce => {}
                Stage::Select(fields) => fields.iter().for_each(&mut *visit),
            }
        }
    }
}

impl MetricsExpr {
    /// Calls `visit` for each field read or grouped by, from left to right.
    pub fn visit_fields<'a>(&'a self, visit: &mut impl FnMut(&'a FieldRef)) {
        match self {
            Self::Scalar(_) => {}
            Self::SecondStages { input, .. } => input.visit_fields(visit),
            Self::Binary { lhs, rhs, .. } => {
                lhs.visit_fields(visit);
                rhs.visit_fields(visit);
            }
            Self::Pipeline { pipeline, function } => {
                pipeline.visit_fields(visit);
                match function {
                    MetricsFunction::OverTime { field, .. } | MetricsFunction::QuantileOverTime { field, .. } => visit(field),
                    MetricsFunction::Compare { selection, .. } => selection.visit_fields(visit),
                    MetricsFunction::Rate { .. } | MetricsFunction::CountOverTime { .. } => {}
                }
                function.by().iter().for_each(&mut *visit);
            }
        }
    }
}

impl Query {
    /// Calls `visit` for each field the query reads, selects or groups by, from left to right, repeated ones repeatedly.
    pub fn visit_fields<'a>(&'a self, visit: &mut impl FnMut(&'a FieldRef)) {
        match &self.body {
            QueryBody::Search(pipeline) => pipeline.visit_fields(visit),
            QueryBody::Metrics(metrics) => metrics.visit_fields(visit),
        }
    }
}
