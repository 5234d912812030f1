//! Random metrics queries: every function, grouping, step over finished series and operator, and queries that the language refuses.

use rand::{Rng, rngs::StdRng};
use skein_engine::traceql::{
    Aggregate, AggregateFilter, ArithOp, AttributeScope as Scope, FieldExpr as E, FieldRef, Intrinsic as I, MetricsExpr, MetricsFunction, OverTime,
    Pipeline, SecondStage, SpansetExpr, SpansetOp, Stage, Static,
};

use crate::naive::queries::{COMPARISONS, NUMBERS, Queries, SCOPES};
use crate::naive::traces::{BASE_SECONDS, World, once_in, one};

const QUANTILES: [f64; 8] = [0.0, 0.1, 0.25, 0.5, 0.9, 0.95, 0.99, 1.0];
const OVER_TIME: [OverTime; 5] = [OverTime::Min, OverTime::Max, OverTime::Sum, OverTime::Avg, OverTime::Histogram];
const OPERATORS: [ArithOp; 4] = [ArithOp::Add, ArithOp::Sub, ArithOp::Mul, ArithOp::Div];
const PARENTS: [Scope; 3] = [Scope::Parent, Scope::ParentSpan, Scope::ParentResource];

/// Makes metrics queries about the traces of a world.
pub struct MetricsQueries<'a> {
    pub random: &'a mut StdRng,
    pub world: &'a World,
}

impl MetricsQueries<'_> {
    /// A query that the language has.
    pub fn query(&mut self) -> MetricsExpr {
        match self.random.random_range(0..10) {
            0 => MetricsExpr::Pipeline { pipeline: self.pipeline(), function: self.compare() },
            1..=2 => {
                let query = self.arithmetic(2);
                if once_in(self.random, 3) { self.with_second_stages(query) } else { query }
            }
            _ => self.operand(),
        }
    }

    /// A query that the language refuses, for one reason.
    pub fn refused(&mut self) -> MetricsExpr {
        let (pipeline, field, by) = (self.pipeline(), self.measured(), self.grouping());
        let function = match self.random.random_range(0..8) {
            0 => MetricsFunction::CountOverTime { by: (0..6).map(|_| self.grouped_by()).collect() },
            1 => {
                let function = one(self.random, &[OverTime::Avg, OverTime::Histogram]);
                MetricsFunction::OverTime { function, field, by: (0..5).map(|_| self.grouped_by()).collect() }
            }
            2 => MetricsFunction::QuantileOverTime { field, quantiles: vec![0.5, one(self.random, &[1.5, 100.0])], by },
            3 => {
                let count = AggregateFilter { aggregate: Aggregate::Count, op: COMPARISONS[0], value: Static::Int(1) };
                let counted = Pipeline { stages: [pipeline.stages, vec![Stage::Aggregate(count)]].concat() };
                let side = |pipeline: Pipeline| Box::new(SpansetExpr::Pipeline(Box::new(pipeline)));
                let between = SpansetExpr::Binary { op: SpansetOp::And, lhs: side(counted), rhs: side(self.pipeline()) };
                let pipeline = Pipeline { stages: vec![Stage::Spansets(between)] };
                return MetricsExpr::Pipeline { pipeline, function: MetricsFunction::Rate { by } };
            }
            4 => {
                let (limit, function) = (one(self.random, &[0, -1]), self.function());
                let stage = if self.random.random() { SecondStage::TopK(limit) } else { SecondStage::BottomK(limit) };
                let input = Box::new(MetricsExpr::Pipeline { pipeline, function });
                return MetricsExpr::SecondStages { input, stages: vec![stage] };
            }
            5 => MetricsFunction::Compare { selection: E::Literal(Static::Bool(true)), top_n: one(self.random, &[0, 1001]), window: None },
            6 => MetricsFunction::Compare {
                selection: E::Literal(Static::Bool(true)),
                top_n: 10,
                window: Some(one(self.random, &[(5, 5), (9, 4), (0, 7)])),
            },
            _ => {
                let compared = MetricsExpr::Pipeline { pipeline: pipeline.clone(), function: self.compare() };
                let other = self.operand();
                return match self.random.random() {
                    true => MetricsExpr::SecondStages { input: Box::new(compared), stages: vec![self.second_stage()] },
                    false => MetricsExpr::Binary { op: one(self.random, &OPERATORS), lhs: Box::new(compared), rhs: Box::new(other) },
                };
            }
        };
        MetricsExpr::Pipeline { pipeline, function }
    }

    fn queries(&mut self) -> Queries<'_> {
        Queries { random: self.random, world: self.world }
    }

    /// A function over a pipeline, perhaps with more steps.
    fn operand(&mut self) -> MetricsExpr {
        let operand = MetricsExpr::Pipeline { pipeline: self.pipeline(), function: self.function() };
        if once_in(self.random, 3) { self.with_second_stages(operand) } else { operand }
    }

    fn with_second_stages(&mut self, input: MetricsExpr) -> MetricsExpr {
        let stages = (0..if once_in(self.random, 3) { 2 } else { 1 }).map(|_| self.second_stage()).collect();
        MetricsExpr::SecondStages { input: Box::new(input), stages }
    }

    fn arithmetic(&mut self, depth: u32) -> MetricsExpr {
        let op = one(self.random, &OPERATORS);
        let mut side = || match depth > 1 && once_in(self.random, 4) {
            true => self.arithmetic(depth - 1),
            false => self.operand(),
        };
        let (lhs, rhs) = (side(), side());
        // Sides with groups in common, not only by chance.
        let rhs = match self.random.random_range(0..4) {
            0 | 1 => self.with_other_spans(&lhs),
            _ => rhs,
        };
        let scalar = MetricsExpr::Scalar(self.scalar());
        let (lhs, rhs) = match self.random.random_range(0..6) {
            0 => (scalar, rhs),
            1 => (lhs, scalar),
            _ => (lhs, rhs),
        };
        MetricsExpr::Binary { op, lhs: Box::new(lhs), rhs: Box::new(rhs) }
    }

    /// The same functions of other spans.
    fn with_other_spans(&mut self, query: &MetricsExpr) -> MetricsExpr {
        match query {
            MetricsExpr::Pipeline { function, .. } => MetricsExpr::Pipeline { pipeline: self.pipeline(), function: function.clone() },
            MetricsExpr::SecondStages { input, .. } => self.with_other_spans(input),
            MetricsExpr::Binary { lhs, rhs, .. } if matches!(**lhs, MetricsExpr::Scalar(_)) => self.with_other_spans(rhs),
            MetricsExpr::Binary { lhs, .. } => self.with_other_spans(lhs),
            MetricsExpr::Scalar(_) => unreachable!("scalars have series beside them"),
        }
    }

    fn pipeline(&mut self) -> Pipeline {
        let filter = match self.random.random_range(0..10) {
            0..=3 => E::Literal(Static::Bool(true)),
            4..=6 => self.queries().condition(1),
            _ => return self.queries().pipeline(),
        };
        Pipeline { stages: vec![Stage::Spansets(SpansetExpr::Filter(filter))] }
    }

    // ---- functions

    fn function(&mut self) -> MetricsFunction {
        let by = self.grouping();
        match self.random.random_range(0..9) {
            0..=1 => MetricsFunction::Rate { by },
            2..=3 => MetricsFunction::CountOverTime { by },
            4..=7 => {
                let function = one(self.random, &OVER_TIME);
                let most = if matches!(function, OverTime::Avg | OverTime::Histogram) { 4 } else { 5 };
                MetricsFunction::OverTime { function, field: self.measured(), by: by.into_iter().take(most).collect() }
            }
            _ => {
                let mut quantiles: Vec<f64> = (0..self.random.random_range(1..=3)).map(|_| one(self.random, &QUANTILES)).collect();
                quantiles.sort_by(f64::total_cmp);
                quantiles.dedup();
                MetricsFunction::QuantileOverTime { field: self.measured(), quantiles, by: by.into_iter().take(4).collect() }
            }
        }
    }

    fn compare(&mut self) -> MetricsFunction {
        let selection = self.queries().condition(1);
        let top_n = one(self.random, &[1, 2, 3, 10, 10, 1000]);
        let base = BASE_SECONDS as i64 * 1_000_000_000;
        let window = once_in(self.random, 3).then(|| {
            let start = base + self.random.random_range(-3_000_000..5_000_000) / 1_000_000 * 1_000_000;
            (start, start + one(self.random, &[1, 1_000_000, 3_000_000, 1_000_000_000]))
        });
        MetricsFunction::Compare { selection, top_n, window }
    }

    fn grouping(&mut self) -> Vec<FieldRef> {
        let count = match self.random.random_range(0..12) {
            0..=3 => 0,
            4..=8 => 1,
            9..=10 => 2,
            _ => self.random.random_range(3..=5),
        };
        let mut by: Vec<FieldRef> = Vec::new();
        for _ in 0..count {
            let field = self.grouped_by();
            if !by.contains(&field) {
                by.push(field);
            }
        }
        by
    }

    fn grouped_by(&mut self) -> FieldRef {
        match self.random.random_range(0..8) {
            0..=1 => FieldRef::Intrinsic(one(self.random, &[I::Name, I::Status, I::Kind, I::RootName, I::RootService])),
            2 => FieldRef::Attribute { scope: Scope::Resource, name: "service.name".to_owned() },
            3..=4 => FieldRef::Attribute { scope: one(self.random, &SCOPES), name: one(self.random, &["a", "b", "s", "n", "flag"]).to_owned() },
            5 if once_in(self.random, 2) => FieldRef::Attribute { scope: one(self.random, &PARENTS), name: one(self.random, &["a", "s"]).to_owned() },
            _ => self.queries().any_field(),
        }
    }

    /// What numbers are taken of.
    fn measured(&mut self) -> FieldRef {
        match self.random.random_range(0..10) {
            0..=3 => FieldRef::Intrinsic(I::Duration),
            4..=6 => FieldRef::Attribute { scope: one(self.random, &SCOPES), name: one(self.random, &["n", "n", "f", "a", "b"]).to_owned() },
            7..=8 => FieldRef::Intrinsic(one(self.random, &NUMBERS)),
            _ => self.queries().any_field(),
        }
    }

    // ---- steps over finished series

    fn second_stage(&mut self) -> SecondStage {
        match self.random.random_range(0..4) {
            0 => SecondStage::TopK(self.random.random_range(1..=4)),
            1 => SecondStage::BottomK(self.random.random_range(1..=4)),
            _ => SecondStage::Filter { op: one(self.random, &COMPARISONS), value: self.threshold() },
        }
    }

    fn threshold(&mut self) -> Static {
        match self.random.random_range(0..6) {
            0..=1 => Static::Int(self.random.random_range(-1..=3)),
            2 => Static::Float(one(self.random, &[0.5, 0.001, -1.5, 2.0, 1000.0])),
            3 => Static::Duration(one(self.random, &[1, 1_500_000, 5_000_000, 1_000_000_000, -1_000_000])),
            // No word for the least integer here.
            _ => match self.queries().number() {
                Static::Int(i64::MIN) => Static::Int(0),
                number => number,
            },
        }
    }

    fn scalar(&mut self) -> Static {
        match self.random.random() {
            true => Static::Int(one(self.random, &[0, 1, 2, -3, 100])),
            false => Static::Float(one(self.random, &[0.0, 0.5, -1.5, 1e6])),
        }
    }
}
