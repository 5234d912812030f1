//! The canonical text of every node: what labels, `by(…)` keys and error messages show. It parses back to an equal node.
//!
//! Operands other than constants and fields stand in parentheses. Strings print in back quotes where they can. A float always shows that
//! it is one (`2.0`).

use std::fmt::{self, Display, Formatter, Write as _};

use super::{
    ast::{
        Aggregate, AggregateFilter, ArithOp, FieldExpr, FieldRef, Hint, Intrinsic, Kind, MetricsExpr, MetricsFunction, Pipeline, Query, QueryBody,
        SecondStage, SpansetExpr, Stage, Static, Status,
    },
    lexer::is_name_char,
};

/// `items` with commas between.
fn list<T: Display>(f: &mut Formatter<'_>, items: &[T]) -> fmt::Result {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            f.write_str(", ")?;
        }
        write!(f, "{item}")?;
    }
    Ok(())
}

impl Display for Query {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.body {
            QueryBody::Search(pipeline) => write!(f, "{pipeline}")?,
            QueryBody::Metrics(metrics) => write!(f, "{metrics}")?,
        }
        if !self.hints.is_empty() {
            f.write_str(" with (")?;
            list(f, &self.hints)?;
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl Display for Hint {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)
    }
}

impl Display for Pipeline {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (index, stage) in self.stages.iter().enumerate() {
            if index > 0 {
                f.write_str(" | ")?;
            }
            write!(f, "{stage}")?;
        }
        Ok(())
    }
}

impl Display for Stage {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spansets(spansets) => write!(f, "{spansets}"),
            Self::Aggregate(filter) => write!(f, "{filter}"),
            Self::By(expr) => write!(f, "by({expr})"),
            Self::Coalesce => f.write_str("coalesce()"),
            Self::Select(fields) => {
                f.write_str("select(")?;
                list(f, fields)?;
                f.write_str(")")
            }
        }
    }
}

/// True when a pipeline in parentheses is part of `spansets`: then every operand needs parentheses.
fn holds_pipeline(spansets: &SpansetExpr) -> bool {
    match spansets {
        SpansetExpr::Filter(_) => false,
        SpansetExpr::Pipeline(_) => true,
        SpansetExpr::Binary { lhs, rhs, .. } => holds_pipeline(lhs) || holds_pipeline(rhs),
    }
}

impl Display for SpansetExpr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filter(expr) => write!(f, "{{ {expr} }}"),
            Self::Pipeline(pipeline) => write!(f, "({pipeline})"),
            Self::Binary { op, lhs, rhs } => {
                let all_in_parentheses = holds_pipeline(self);
                let operand = |f: &mut Formatter<'_>, operand: &SpansetExpr| match operand {
                    Self::Pipeline(_) => write!(f, "{operand}"),
                    Self::Filter(_) if !all_in_parentheses => write!(f, "{operand}"),
                    _ => write!(f, "({operand})"),
                };
                operand(f, lhs)?;
                write!(f, " {} ", op.as_str())?;
                operand(f, rhs)
            }
        }
    }
}

impl Display for AggregateFilter {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.aggregate, self.op.as_str(), ScalarText(&self.value))
    }
}

impl Display for Aggregate {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count => f.write_str("count()"),
            Self::Min(expr) => write!(f, "min({expr})"),
            Self::Max(expr) => write!(f, "max({expr})"),
            Self::Avg(expr) => write!(f, "avg({expr})"),
            Self::Sum(expr) => write!(f, "sum({expr})"),
        }
    }
}

/// An operand: in parentheses unless it cannot be torn apart.
struct Operand<'a>(&'a FieldExpr);

impl Display for Operand<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            leaf @ (FieldExpr::Literal(_) | FieldExpr::Field(_)) => write!(f, "{leaf}"),
            inner => write!(f, "({inner})"),
        }
    }
}

/// True for a constant that prints with a minus sign, which binds weaker than `* / % ^` on its right.
fn prints_minus(expr: &FieldExpr) -> bool {
    match expr {
        FieldExpr::Literal(Static::Int(value)) => *value < 0 && *value != i64::MIN,
        FieldExpr::Literal(Static::Duration(value)) => *value < 0,
        FieldExpr::Literal(Static::Float(value)) => value.is_finite() && value.is_sign_negative(),
        _ => false,
    }
}

impl Display for FieldExpr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(value) => write!(f, "{value}"),
            Self::Field(field) => write!(f, "{field}"),
            Self::Not(inner) => write!(f, "!{}", Operand(inner)),
            Self::Negate(inner) => write!(f, "-{}", Operand(inner)),
            Self::Exists(inner) => write!(f, "{} != nil", Operand(inner)),
            Self::Missing(inner) => write!(f, "{} = nil", Operand(inner)),
            Self::Compare { op, lhs, rhs } => write!(f, "{} {} {}", Operand(lhs), op.as_str(), Operand(rhs)),
            Self::Match { negated, lhs, pattern } => {
                write!(f, "{} {} ", Operand(lhs), if *negated { "!~" } else { "=~" })?;
                write_string(f, pattern)
            }
            Self::Arith { op, lhs, rhs } => {
                if !matches!(op, ArithOp::Add | ArithOp::Sub) && prints_minus(lhs) {
                    write!(f, "({lhs})")?;
                } else {
                    write!(f, "{}", Operand(lhs))?;
                }
                write!(f, " {} {}", op.as_str(), Operand(rhs))
            }
            Self::And(lhs, rhs) => write!(f, "{} && {}", Operand(lhs), Operand(rhs)),
            Self::Or(lhs, rhs) => write!(f, "{} || {}", Operand(lhs), Operand(rhs)),
        }
    }
}

impl Display for FieldRef {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (scope, name) = match self {
            Self::Intrinsic(intrinsic) => return write!(f, "{intrinsic}"),
            Self::Attribute { scope, name } => (scope, name.as_str()),
        };
        f.write_str(scope.prefix())?;
        let reads_differently = match scope.prefix() {
            "." => name.starts_with(|c: char| c.is_ascii_digit()),
            "parent." => name.starts_with("span.") || name.starts_with("resource."),
            _ => false,
        };
        if !name.is_empty() && !reads_differently && name.chars().all(|c| is_name_char(c) && c != '"') {
            return f.write_str(name);
        }
        f.write_char('"')?;
        for c in name.chars() {
            if matches!(c, '"' | '\\') {
                f.write_char('\\')?;
            }
            f.write_char(c)?;
        }
        f.write_char('"')
    }
}

impl Display for Intrinsic {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Display for Status {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Display for Kind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Display for Static {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nil => f.write_str("nil"),
            Self::Int(i64::MIN) => f.write_str("minInt"),
            Self::Int(value) => write!(f, "{value}"),
            Self::Float(value) => write_float(f, *value),
            Self::String(text) => write_string(f, text),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Duration(nanos) => write!(f, "{}", GoDuration(*nanos)),
            Self::Status(status) => write!(f, "{status}"),
            Self::Kind(kind) => write!(f, "{kind}"),
        }
    }
}

/// A constant where only scalars are allowed, which do not know `minInt`.
struct ScalarText<'a>(&'a Static);

impl Display for ScalarText<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Static::Int(i64::MIN) => write!(f, "({} - 1)", i64::MIN + 1),
            value => write!(f, "{value}"),
        }
    }
}

fn write_string(f: &mut Formatter<'_>, text: &str) -> fmt::Result {
    if !text.contains(['`', '\r']) {
        return write!(f, "`{text}`");
    }
    f.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            c => f.write_char(c)?,
        }
    }
    f.write_char('"')
}

/// Go's shortest `%g`, kept apart from an integer by `.0`. What no literal can say is written as the division that gives it.
fn write_float(f: &mut Formatter<'_>, value: f64) -> fmt::Result {
    if value.is_nan() {
        return f.write_str("(0.0 / 0)");
    }
    if value.is_infinite() {
        return f.write_str(if value > 0.0 { "(1.0 / 0)" } else { "(-1.0 / 0)" });
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value != 0.0 && !(-4..6).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return write!(f, "{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = value.to_string();
    f.write_str(&plain)?;
    if plain.contains('.') { Ok(()) } else { f.write_str(".0") }
}

/// Nanoseconds as Go prints a duration: `1h30m0s`, `1.5s`, `100ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GoDuration(
    /// Nanoseconds.
    pub i64,
);

impl Display for GoDuration {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        if self.0 < 0 {
            f.write_char('-')?;
        }
        let decimal = |f: &mut Formatter<'_>, value: u64, scale: u64, unit: &str| {
            write!(f, "{}", value / scale)?;
            let fraction = value % scale;
            if fraction > 0 {
                let width = scale.ilog10() as usize;
                let digits = format!("{fraction:0width$}");
                write!(f, ".{}", digits.trim_end_matches('0'))?;
            }
            f.write_str(unit)
        };
        match nanos {
            0 => f.write_str("0s"),
            1..1_000 => write!(f, "{nanos}ns"),
            1_000..1_000_000 => decimal(f, nanos, 1_000, "µs"),
            1_000_000..1_000_000_000 => decimal(f, nanos, 1_000_000, "ms"),
            _ => {
                let minutes = nanos / 60_000_000_000;
                if minutes >= 60 {
                    write!(f, "{}h", minutes / 60)?;
                }
                if minutes > 0 {
                    write!(f, "{}m", minutes % 60)?;
                }
                decimal(f, nanos % 60_000_000_000, 1_000_000_000, "s")
            }
        }
    }
}

impl Display for MetricsExpr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let operand = |f: &mut Formatter<'_>, operand: &MetricsExpr| match operand {
            Self::Scalar(value) => write!(f, "{}", ScalarText(value)),
            series => write!(f, "({series})"),
        };
        match self {
            Self::Pipeline { pipeline, function } => write!(f, "{pipeline} | {function}"),
            Self::Scalar(value) => write!(f, "{}", ScalarText(value)),
            Self::Binary { op, lhs, rhs } => {
                operand(f, lhs)?;
                write!(f, " {} ", op.as_str())?;
                operand(f, rhs)
            }
            Self::SecondStages { input, stages } => {
                write!(f, "{input}")?;
                stages.iter().try_for_each(|stage| write!(f, " {stage}"))
            }
        }
    }
}

impl Display for MetricsFunction {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.name())?;
        match self {
            Self::Rate { .. } | Self::CountOverTime { .. } => {}
            Self::OverTime { field, .. } => write!(f, "{field}")?,
            Self::QuantileOverTime { field, quantiles, .. } => {
                write!(f, "{field}, ")?;
                list(f, &quantiles.iter().map(|quantile| Static::Float(*quantile)).collect::<Vec<_>>())?;
            }
            Self::Compare { selection, top_n, window } => {
                write!(f, "{{ {selection} }}, {top_n}")?;
                if let Some((start, end)) = window {
                    write!(f, ", {start}, {end}")?;
                }
            }
        }
        f.write_str(")")?;
        if !self.by().is_empty() {
            f.write_str(" by (")?;
            list(f, self.by())?;
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl Display for SecondStage {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::TopK(limit) => write!(f, "| topk({limit})"),
            Self::BottomK(limit) => write!(f, "| bottomk({limit})"),
            Self::Filter { op, value } => write!(f, "{} {}", op.as_str(), ScalarText(value)),
        }
    }
}
