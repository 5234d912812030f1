//! A metrics query as text.

use rand::Rng;
use skein_engine::traceql::{ArithOp, MetricsExpr, MetricsFunction, SecondStage, Static};

use crate::naive::text::Writer;
use crate::naive::traces::once_in;

/// Binding strengths, weakest first: `+ -`; `* /`.
const ADD: u8 = 0;
const MULTIPLY: u8 = 1;

/// The text of `query`; `spelling` chooses among those that mean the same.
pub fn text(query: &MetricsExpr, spelling: u64) -> String {
    let mut writer = Writer::new(spelling);
    writer.metrics(query, ADD);
    if once_in(&mut writer.random, 10) {
        writer.write(" with (exemplars=false, whatever=1.5)");
    }
    writer.out
}

impl Writer {
    /// What stands at the end of a query, where no parentheses are needed.
    fn metrics(&mut self, query: &MetricsExpr, strength: u8) {
        match query {
            MetricsExpr::Pipeline { pipeline, function } => {
                self.pipeline(pipeline);
                self.space();
                self.write("|");
                self.space();
                self.function(function);
            }
            MetricsExpr::SecondStages { input, stages } => {
                self.metrics(input, ADD);
                for stage in stages {
                    self.space();
                    self.second_stage(stage);
                }
            }
            MetricsExpr::Scalar(value) => self.scalar(value),
            MetricsExpr::Binary { op, lhs, rhs } => {
                let own = if matches!(op, ArithOp::Mul | ArithOp::Div) { MULTIPLY } else { ADD };
                let parentheses = own < strength || once_in(&mut self.random, 10);
                self.write(if parentheses { "(" } else { "" });
                self.operand(lhs, own);
                self.space();
                self.write(op.as_str());
                self.space();
                self.operand(rhs, own + 1);
                self.write(if parentheses { ")" } else { "" });
            }
        }
    }

    /// A side of an operator: series stand in parentheses.
    fn operand(&mut self, query: &MetricsExpr, strength: u8) {
        match query {
            MetricsExpr::Pipeline { .. } | MetricsExpr::SecondStages { .. } => {
                let twice = once_in(&mut self.random, 10);
                self.write(if twice { "((" } else { "(" });
                self.metrics(query, ADD);
                self.write(if twice { "))" } else { ")" });
            }
            MetricsExpr::Scalar(_) | MetricsExpr::Binary { .. } => self.metrics(query, strength),
        }
    }

    fn function(&mut self, function: &MetricsFunction) {
        self.write(function.name());
        self.write("(");
        match function {
            MetricsFunction::Rate { .. } | MetricsFunction::CountOverTime { .. } => {}
            MetricsFunction::OverTime { field, .. } => self.field(field),
            MetricsFunction::QuantileOverTime { field, quantiles, .. } => {
                self.field(field);
                for quantile in quantiles {
                    self.write(", ");
                    self.quantile(*quantile);
                }
            }
            MetricsFunction::Compare { selection, top_n, window } => {
                self.filter(selection, false);
                if *top_n != 10 || window.is_some() || self.random.random() {
                    self.write(&format!(", {top_n}"));
                }
                if let Some((start, end)) = window {
                    self.write(&format!(", {start},{end}"));
                }
            }
        }
        self.write(")");
        if !function.by().is_empty() {
            let space = if self.random.random() { " by (" } else { " by(" };
            self.write(space);
            self.fields(function.by());
            self.write(")");
        }
    }

    fn quantile(&mut self, quantile: f64) {
        let text = if quantile.fract() == 0.0 && self.random.random() { format!("{quantile}") } else { format!("{quantile:?}") };
        let without_zero = self.random.random() && text.starts_with("0.");
        self.write(if without_zero { &text[1..] } else { &text });
    }

    fn second_stage(&mut self, stage: &SecondStage) {
        match stage {
            SecondStage::TopK(limit) => self.write(&format!("| topk({limit})")),
            SecondStage::BottomK(limit) => self.write(&format!("| bottomk({limit})")),
            SecondStage::Filter { op, value } => {
                self.write(op.as_str());
                self.space();
                match value {
                    Static::Int(value @ 1..=3) if once_in(&mut self.random, 4) => self.write(&format!("{} + 1", value - 1)),
                    value => self.scalar(value),
                }
            }
        }
    }
}
