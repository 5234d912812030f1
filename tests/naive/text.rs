//! A query tree as text: with no more parentheses than the precedence of the operators asks for, and any of the spellings there are.

use rand::{Rng, SeedableRng, rngs::StdRng};
use skein_engine::traceql::{
    Aggregate, ArithOp, AttributeScope as Scope, FieldExpr as E, FieldRef, Intrinsic, Pipeline, SpansetExpr, SpansetOp, Stage, Static,
    ast::INTRINSICS,
};

use super::traces::once_in;

/// Binding strengths, weakest first: `&&` and `||`; comparisons; `+ -` and the minus sign; `!`; `* / %`; `^`; what cannot be torn apart.
const LOGIC: u8 = 1;
const COMPARE: u8 = 2;
const ADD: u8 = 3;
const NOT: u8 = 4;
const MULTIPLY: u8 = 5;
const POWER: u8 = 6;
const WHOLE: u8 = 7;

/// The text of `query`; `spelling` chooses among those that mean the same.
pub fn text(query: &Pipeline, spelling: u64) -> String {
    let mut writer = Writer::new(spelling);
    writer.pipeline(query);
    if once_in(&mut writer.random, 10) {
        writer.out.push_str(" with (most_recent=true, whatever=1.5)");
    }
    writer.out
}

/// Text under way.
pub struct Writer {
    /// Chooses among spellings.
    pub random: StdRng,
    pub out: String,
}

impl Writer {
    pub fn new(spelling: u64) -> Self {
        Self { random: StdRng::seed_from_u64(spelling), out: String::new() }
    }

    pub fn write(&mut self, text: &str) {
        self.out.push_str(text);
    }

    /// White space, now and then more of it than needed.
    pub fn space(&mut self) {
        let space = match self.random.random_range(0..40) {
            0 => "\n\t ",
            1 => " /* a comment */ ",
            2 => " // to the end\n",
            _ => " ",
        };
        self.write(space);
    }

    pub fn pipeline(&mut self, pipeline: &Pipeline) {
        for (at, stage) in pipeline.stages.iter().enumerate() {
            if at > 0 {
                self.space();
                self.write("|");
                self.space();
            }
            self.stage(stage);
        }
    }

    fn stage(&mut self, stage: &Stage) {
        match stage {
            Stage::Spansets(spansets) => self.spansets(spansets, LOGIC, holds_pipeline(spansets)),
            Stage::By(expr) => self.call("by", Some(expr)),
            Stage::Coalesce => self.call("coalesce", None),
            Stage::Aggregate(filter) => {
                match &filter.aggregate {
                    Aggregate::Count => self.call("count", None),
                    Aggregate::Min(expr) => self.call("min", Some(expr)),
                    Aggregate::Max(expr) => self.call("max", Some(expr)),
                    Aggregate::Avg(expr) => self.call("avg", Some(expr)),
                    Aggregate::Sum(expr) => self.call("sum", Some(expr)),
                }
                self.space();
                self.write(filter.op.as_str());
                self.space();
                self.scalar(&filter.value);
            }
            Stage::Select(fields) => {
                self.write("select(");
                self.fields(fields);
                self.write(")");
            }
        }
    }

    fn call(&mut self, function: &str, argument: Option<&E>) {
        self.write(function);
        self.write("(");
        if let Some(expr) = argument {
            self.expr(expr, LOGIC);
        }
        self.write(")");
    }

    /// `wrapped`: a pipeline is among the operands, so that each stands in parentheses.
    fn spansets(&mut self, spansets: &SpansetExpr, strength: u8, wrapped: bool) {
        match spansets {
            SpansetExpr::Filter(filter) => self.filter(filter, wrapped),
            SpansetExpr::Pipeline(pipeline) => {
                self.write("(");
                self.pipeline(pipeline);
                self.write(")");
            }
            SpansetExpr::Binary { op, lhs, rhs } => {
                let own = if matches!(op, SpansetOp::Structural { .. }) { COMPARE } else { LOGIC };
                let parentheses = own < strength || once_in(&mut self.random, 10);
                self.write(if parentheses { "(" } else { "" });
                self.spansets(lhs, own, wrapped);
                self.space();
                self.write(op.as_str());
                self.space();
                self.spansets(rhs, own + 1, wrapped);
                self.write(if parentheses { ")" } else { "" });
            }
        }
    }

    pub fn filter(&mut self, filter: &E, wrapped: bool) {
        self.write(if wrapped { "(" } else { "" });
        if matches!(filter, E::Literal(Static::Bool(true))) && self.random.random() {
            self.write("{}");
        } else {
            self.write("{");
            self.space();
            self.expr(filter, LOGIC);
            self.space();
            self.write("}");
        }
        self.write(if wrapped { ")" } else { "" });
    }

    fn expr(&mut self, expr: &E, strength: u8) {
        let own = binding(expr);
        let parentheses = own < strength || (own < WHOLE && once_in(&mut self.random, 12));
        self.write(if parentheses { "(" } else { "" });
        match expr {
            E::Literal(value) => self.literal(value),
            E::Field(field) => self.field(field),
            E::Not(inner) => {
                self.write("!");
                self.expr(inner, NOT);
            }
            E::Negate(inner) => {
                self.write("-");
                self.expr(inner, NOT);
            }
            E::Exists(inner) => self.nil("!=", inner),
            E::Missing(inner) => self.nil("=", inner),
            E::Compare { op, lhs, rhs } => self.binary(op.as_str(), (lhs, COMPARE), (rhs, ADD)),
            E::Match { negated, lhs, pattern } => {
                self.expr(lhs, ADD);
                self.space();
                self.write(if *negated { "!~" } else { "=~" });
                self.space();
                self.string(pattern);
            }
            E::Arith { op, lhs, rhs } => match op {
                ArithOp::Add | ArithOp::Sub => self.binary(op.as_str(), (lhs, ADD), (rhs, NOT)),
                ArithOp::Mul | ArithOp::Div | ArithOp::Mod => self.binary(op.as_str(), (lhs, MULTIPLY), (rhs, POWER)),
                ArithOp::Pow => self.binary(op.as_str(), (lhs, WHOLE), (rhs, POWER)),
            },
            E::And(lhs, rhs) => self.binary("&&", (lhs, LOGIC), (rhs, COMPARE)),
            E::Or(lhs, rhs) => self.binary("||", (lhs, LOGIC), (rhs, COMPARE)),
        }
        self.write(if parentheses { ")" } else { "" });
    }

    fn binary(&mut self, op: &str, (lhs, left): (&E, u8), (rhs, right): (&E, u8)) {
        self.expr(lhs, left);
        self.space();
        self.write(op);
        self.space();
        self.expr(rhs, right);
    }

    fn nil(&mut self, op: &str, operand: &E) {
        let first = once_in(&mut self.random, 6);
        if first {
            self.write("nil ");
            self.write(op);
            self.space();
        }
        self.expr(operand, ADD);
        if !first {
            self.space();
            self.write(op);
            self.write(" nil");
        }
    }

    // ---- names

    /// Several with commas between.
    pub fn fields(&mut self, fields: &[FieldRef]) {
        for (at, field) in fields.iter().enumerate() {
            self.write(if at > 0 { ", " } else { "" });
            self.field(field);
        }
    }

    pub fn field(&mut self, field: &FieldRef) {
        match field {
            FieldRef::Intrinsic(intrinsic) => self.intrinsic(*intrinsic),
            FieldRef::Attribute { scope, name } => {
                self.write(scope.prefix());
                let plain = is_plain(*scope, name);
                if plain && !once_in(&mut self.random, 8) {
                    self.write(name);
                } else {
                    let quoted = format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""));
                    self.write(&quoted);
                }
            }
        }
    }

    fn intrinsic(&mut self, intrinsic: Intrinsic) {
        let (_, legacy, scoped) = INTRINSICS.iter().find(|(other, ..)| *other == intrinsic).expect("all are listed");
        let spelling = match (legacy, scoped) {
            (Some(legacy), Some(scoped)) => {
                if self.random.random() {
                    legacy
                } else {
                    scoped
                }
            }
            (Some(only), None) | (None, Some(only)) => only,
            (None, None) => unreachable!("each has a spelling"),
        };
        self.write(spelling);
    }

    // ---- literals

    fn literal(&mut self, literal: &Static) {
        let text = match literal {
            Static::Nil => unreachable!("nil is part of an operator"),
            Static::Int(i64::MIN) => "minInt".to_owned(),
            Static::Int(i64::MAX) if self.random.random() => "maxInt".to_owned(),
            Static::Int(value) => value.to_string(),
            Static::Float(value) => format!("{value:?}"),
            Static::String(text) => return self.string(text),
            Static::Bool(value) => value.to_string(),
            Static::Duration(nanos) => duration(*nanos),
            Static::Status(status) => status.as_str().to_owned(),
            Static::Kind(kind) => kind.as_str().to_owned(),
        };
        self.write(&text);
    }

    /// A constant where `maxInt` is not known.
    pub fn scalar(&mut self, value: &Static) {
        match value {
            Static::Int(value) => self.write(&value.to_string()),
            value => self.literal(value),
        }
    }

    fn string(&mut self, text: &str) {
        if !text.contains(['`', '\r']) && self.random.random() {
            self.write("`");
            self.write(text);
            self.write("`");
            return;
        }
        self.write("\"");
        for c in text.chars() {
            match c {
                '"' | '\\' => self.write(&format!("\\{c}")),
                '\n' => self.write("\\n"),
                c if !c.is_ascii() && self.random.random() => self.write(&format!("\\u{:04x}", c as u32)),
                c => self.write(&c.to_string()),
            }
        }
        self.write("\"");
    }
}

fn holds_pipeline(spansets: &SpansetExpr) -> bool {
    match spansets {
        SpansetExpr::Filter(_) => false,
        SpansetExpr::Pipeline(_) => true,
        SpansetExpr::Binary { lhs, rhs, .. } => holds_pipeline(lhs) || holds_pipeline(rhs),
    }
}

fn binding(expr: &E) -> u8 {
    match expr {
        E::And(..) | E::Or(..) => LOGIC,
        E::Compare { .. } | E::Match { .. } | E::Exists(_) | E::Missing(_) => COMPARE,
        E::Arith { op: ArithOp::Add | ArithOp::Sub, .. } | E::Negate(_) => ADD,
        E::Not(_) => NOT,
        E::Arith { op: ArithOp::Mul | ArithOp::Div | ArithOp::Mod, .. } => MULTIPLY,
        E::Arith { op: ArithOp::Pow, .. } => POWER,
        E::Literal(Static::Int(value)) if *value < 0 && *value != i64::MIN => ADD,
        E::Literal(Static::Duration(nanos)) if *nanos < 0 => ADD,
        E::Literal(Static::Float(value)) if value.is_sign_negative() => ADD,
        E::Literal(_) | E::Field(_) => WHOLE,
    }
}

/// Whether a name needs no quotes.
fn is_plain(scope: Scope, name: &str) -> bool {
    let special = |c: char| c.is_whitespace() || "{}()=~!<>&|^,\"\\".contains(c);
    let reads_as_number = scope == Scope::Any && name.starts_with(|c: char| c.is_ascii_digit());
    !name.is_empty() && !reads_as_number && !name.contains(special)
}

/// Nanoseconds in the largest unit without a fraction.
fn duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    let units = [("h", 3_600_000_000_000), ("m", 60_000_000_000), ("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)];
    match units.into_iter().find(|(_, size)| nanos >= *size && nanos.is_multiple_of(*size)) {
        Some((unit, size)) => format!("{sign}{}{unit}", nanos / size),
        None => format!("{sign}{nanos}ns"),
    }
}
