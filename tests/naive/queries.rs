//! Random queries, every construct among them. Literals come from the pools of the traces, so that queries often match, and types fit, so
//! that no query is refused.

use rand::{Rng, rngs::StdRng};
use skein_engine::traceql::{
    Aggregate, AggregateFilter, ArithOp, AttributeScope as Scope, CompareOp, FieldExpr as E, FieldRef, Form, Intrinsic as I, Kind, Pipeline,
    Relation, SpansetExpr, SpansetOp, Stage, Static, Status,
};

use super::traces::{DOUBLES, DURATIONS, INTS, KEYS, NAMES, SERVICES, TEXTS, World, once_in, one};

const PATTERNS: [&str; 12] = ["a.*", ".*", "", "a|b", "[ab]+", "(?i)get", "GET /?", "\\d+", ".+b.*", "shop|cart", "nil", "0.*1"];
pub const COMPARISONS: [CompareOp; 6] = [CompareOp::Eq, CompareOp::Ne, CompareOp::Lt, CompareOp::Le, CompareOp::Gt, CompareOp::Ge];
const ARITHMETIC: [ArithOp; 6] = [ArithOp::Add, ArithOp::Sub, ArithOp::Mul, ArithOp::Div, ArithOp::Mod, ArithOp::Pow];
pub const SCOPES: [Scope; 6] = [Scope::Any, Scope::Span, Scope::Resource, Scope::Event, Scope::Link, Scope::Instrumentation];

/// Intrinsics that are numbers.
pub const NUMBERS: [I; 7] =
    [I::Duration, I::TraceDuration, I::ChildCount, I::NestedSetLeft, I::NestedSetRight, I::NestedSetParent, I::EventTimeSinceStart];
/// Intrinsics that are text.
pub const STRINGS: [I; 12] = [
    I::Name,
    I::StatusMessage,
    I::SpanId,
    I::ParentId,
    I::TraceId,
    I::RootName,
    I::RootService,
    I::EventName,
    I::LinkTraceId,
    I::LinkSpanId,
    I::InstrumentationName,
    I::InstrumentationVersion,
];

/// Makes queries about the traces of a world.
pub struct Queries<'a> {
    pub random: &'a mut StdRng,
    pub world: &'a World,
}

impl Queries<'_> {
    /// A search: a pipeline, or operators between pipelines in parentheses.
    pub fn query(&mut self) -> Pipeline {
        if once_in(self.random, 8) {
            let expr = self.operators_between_pipelines(2);
            return Pipeline { stages: vec![Stage::Spansets(expr)] };
        }
        self.pipeline()
    }

    /// Stages one after another.
    pub fn pipeline(&mut self) -> Pipeline {
        let first = if once_in(self.random, 8) { self.later_stage() } else { Stage::Spansets(self.spansets(2)) };
        let mut stages = vec![if matches!(first, Stage::Coalesce) { Stage::Spansets(self.spansets(1)) } else { first }];
        while stages.len() < 5 && self.random.random_bool(0.4) {
            stages.push(self.later_stage());
        }
        Pipeline { stages }
    }

    fn later_stage(&mut self) -> Stage {
        match self.random.random_range(0..10) {
            0..=1 => Stage::Spansets(self.spansets(1)),
            2..=4 => Stage::Aggregate(self.aggregate()),
            5..=6 => Stage::By(self.grouping()),
            7 => Stage::Coalesce,
            _ => Stage::Select((0..self.random.random_range(1..=3)).map(|_| self.any_field()).collect()),
        }
    }

    fn spansets(&mut self, depth: u32) -> SpansetExpr {
        if depth == 0 || self.random.random_bool(0.5) {
            return SpansetExpr::Filter(match self.random.random_range(0..150) {
                0 => self.long_chain(),
                1..=25 => E::Literal(Static::Bool(true)),
                _ => self.condition(2),
            });
        }
        let op = self.spanset_op();
        SpansetExpr::Binary { op, lhs: Box::new(self.spansets(depth - 1)), rhs: Box::new(self.spansets(depth - 1)) }
    }

    fn operators_between_pipelines(&mut self, depth: u32) -> SpansetExpr {
        let op = self.spanset_op();
        let mut side = || match depth > 1 && once_in(self.random, 4) {
            true => self.operators_between_pipelines(depth - 1),
            false => SpansetExpr::Pipeline(Box::new(self.pipeline())),
        };
        let (lhs, rhs) = (Box::new(side()), Box::new(side()));
        SpansetExpr::Binary { op, lhs, rhs }
    }

    fn spanset_op(&mut self) -> SpansetOp {
        match self.random.random_range(0..10) {
            0..=1 => SpansetOp::And,
            2..=3 => SpansetOp::Or,
            _ => SpansetOp::Structural {
                relation: one(self.random, &[Relation::Descendant, Relation::Child, Relation::Ancestor, Relation::Parent, Relation::Sibling]),
                form: one(self.random, &[Form::Plain, Form::Negated, Form::Union]),
            },
        }
    }

    fn aggregate(&mut self) -> AggregateFilter {
        let aggregate = match self.random.random_range(0..6) {
            0..=1 => Aggregate::Count,
            2 => Aggregate::Min(self.aggregated()),
            3 => Aggregate::Max(self.aggregated()),
            4 => Aggregate::Avg(self.aggregated()),
            _ => Aggregate::Sum(self.aggregated()),
        };
        let value = match aggregate {
            Aggregate::Count => Static::Int(self.random.random_range(0..4)),
            _ => self.number(),
        };
        // No word for the least integer here.
        let value = if value == Static::Int(i64::MIN) { Static::Int(0) } else { value };
        AggregateFilter { aggregate, op: one(self.random, &COMPARISONS), value }
    }

    fn aggregated(&mut self) -> E {
        match self.random.random_range(0..5) {
            0 => E::Field(FieldRef::Intrinsic(I::Duration)),
            1..=2 => self.numeric(2),
            _ => self.numeric(0),
        }
        .reading(|| E::Field(FieldRef::Intrinsic(I::Duration)))
    }

    fn grouping(&mut self) -> E {
        match self.random.random_range(0..8) {
            0 => self.condition(1),
            1 => self.numeric(1),
            _ => E::Field(self.any_field()),
        }
        .reading(|| E::Field(FieldRef::Intrinsic(I::Name)))
    }

    // ---- conditions

    /// The content of a filter.
    pub fn condition(&mut self, depth: u32) -> E {
        if depth == 0 || self.random.random_bool(0.4) {
            return self.simple_condition();
        }
        let below = depth - 1;
        match self.random.random_range(0..20) {
            0..=6 => E::And(Box::new(self.condition(below)), Box::new(self.condition(below))),
            7..=12 => E::Or(Box::new(self.condition(below)), Box::new(self.condition(below))),
            13..=14 => E::Not(Box::new(self.condition(below))),
            15 => self.compare_numbers(below),
            16 => self.event_conditions(),
            17 => {
                let (op, value) = (one(self.random, &COMPARISONS[..2]), Static::Bool(self.random.random()));
                E::Compare { op, lhs: Box::new(self.condition(below)), rhs: Box::new(E::Literal(value)) }
            }
            18 => {
                let (lhs, rhs) = (self.any_attribute(), self.any_attribute());
                E::Compare { op: one(self.random, &COMPARISONS), lhs: Box::new(E::Field(lhs)), rhs: Box::new(E::Field(rhs)) }
            }
            _ => {
                let inner = Box::new(self.numeric(1));
                if self.random.random() || matches!(*inner, E::Field(_) | E::Literal(_)) { E::Exists(inner) } else { E::Missing(inner) }
            }
        }
    }

    /// More terms than the parser leaves in their shape.
    fn long_chain(&mut self) -> E {
        let join = if self.random.random() { E::And } else { E::Or };
        let first = self.simple_condition();
        (0..self.random.random_range(16..24)).fold(first, |chain, _| join(Box::new(chain), Box::new(self.simple_condition())))
    }

    /// A test of one field, mostly against a literal.
    fn simple_condition(&mut self) -> E {
        match self.random.random_range(0..20) {
            0..=3 => self.compare_numbers(0),
            4..=8 => self.compare_text(),
            9 => self.compare_word(),
            10..=13 => self.compare_attribute(),
            14 => E::Exists(Box::new(E::Field(self.any_field()))),
            15 => E::Missing(Box::new(E::Field(self.can_be_missing()))),
            16 => E::Field(FieldRef::Attribute { scope: one(self.random, &SCOPES), name: "flag".to_owned() }),
            17 => E::Field(self.any_attribute()),
            18 => E::Literal(Static::Bool(self.random.random_bool(0.7))),
            _ => self.matching(),
        }
    }

    /// Several tests of one event or link.
    fn event_conditions(&mut self) -> E {
        let (scope, name) = if self.random.random() { (Scope::Event, I::EventName) } else { (Scope::Link, I::LinkSpanId) };
        let attribute = FieldRef::Attribute { scope, name: one(self.random, &KEYS).to_owned() };
        let text = self.text(name);
        let on_name = E::Compare {
            op: one(self.random, &COMPARISONS[..2]),
            lhs: Box::new(E::Field(FieldRef::Intrinsic(name))),
            rhs: Box::new(E::Literal(text)),
        };
        let on_attribute = match self.random.random_range(0..4) {
            0 => E::Exists(Box::new(E::Field(attribute))),
            1 => E::Missing(Box::new(E::Field(attribute))),
            _ => self.compare_with_literal(attribute),
        };
        E::And(Box::new(on_name), Box::new(on_attribute))
    }

    fn compare_numbers(&mut self, depth: u32) -> E {
        let (mut lhs, mut rhs) = (self.numeric(depth), if depth == 0 { E::Literal(self.number()) } else { self.numeric(depth) });
        if once_in(self.random, 4) {
            std::mem::swap(&mut lhs, &mut rhs);
        }
        E::Compare { op: one(self.random, &COMPARISONS), lhs: Box::new(lhs), rhs: Box::new(rhs) }
    }

    fn compare_text(&mut self) -> E {
        let intrinsic = one(self.random, &STRINGS);
        let field = Box::new(E::Field(FieldRef::Intrinsic(intrinsic)));
        let op = if once_in(self.random, 4) { one(self.random, &COMPARISONS) } else { one(self.random, &COMPARISONS[..2]) };
        match self.random.random_range(0..10) {
            0 => E::Match { negated: self.random.random(), lhs: field, pattern: one(self.random, &PATTERNS).to_owned() },
            1 => {
                let other =
                    if self.random.random() { E::Field(FieldRef::Intrinsic(one(self.random, &STRINGS))) } else { E::Field(self.any_attribute()) };
                E::Compare { op, lhs: field, rhs: Box::new(other) }
            }
            2 => E::Compare { op, lhs: Box::new(E::Literal(self.text(intrinsic))), rhs: field },
            _ => E::Compare { op, lhs: field, rhs: Box::new(E::Literal(self.text(intrinsic))) },
        }
    }

    /// A test of status or kind.
    fn compare_word(&mut self) -> E {
        let (field, value) = if self.random.random() { (I::Status, self.status()) } else { (I::Kind, self.kind()) };
        let op = one(self.random, &COMPARISONS[..2]);
        E::Compare { op, lhs: Box::new(E::Field(FieldRef::Intrinsic(field))), rhs: Box::new(E::Literal(value)) }
    }

    fn compare_attribute(&mut self) -> E {
        let field = self.any_attribute();
        self.compare_with_literal(field)
    }

    fn compare_with_literal(&mut self, field: FieldRef) -> E {
        let value = match field.attribute_key() {
            "flag" => Static::Bool(self.random.random()),
            "n" | "http.status_code" | "f" => self.number(),
            "s" => Static::String(one(self.random, &TEXTS).into()),
            "service.name" => Static::String(one(self.random, &SERVICES).into()),
            _ => self.literal(),
        };
        let any = matches!(value, Static::String(_) | Static::Int(_) | Static::Float(_) | Static::Duration(_));
        let op = one(self.random, &COMPARISONS[..if any { 6 } else { 2 }]);
        let (field, value) = (Box::new(E::Field(field)), Box::new(E::Literal(value)));
        if once_in(self.random, 6) { E::Compare { op, lhs: value, rhs: field } } else { E::Compare { op, lhs: field, rhs: value } }
    }

    fn matching(&mut self) -> E {
        E::Match { negated: self.random.random(), lhs: Box::new(E::Field(self.any_attribute())), pattern: one(self.random, &PATTERNS).to_owned() }
    }

    // ---- numbers

    fn numeric(&mut self, depth: u32) -> E {
        if depth == 0 || self.random.random_bool(0.3) {
            return E::Field(match self.random.random_range(0..5) {
                0 => FieldRef::Intrinsic(I::Duration),
                1 => FieldRef::Intrinsic(one(self.random, &NUMBERS)),
                2 => self.any_attribute(),
                _ => FieldRef::Attribute { scope: one(self.random, &SCOPES), name: one(self.random, &["n", "f"]).to_owned() },
            });
        }
        match self.random.random_range(0..10) {
            0 => E::Literal(self.number()),
            1 => E::Negate(Box::new(self.negatable())),
            _ => {
                let op = one(self.random, &ARITHMETIC);
                let lhs = self.numeric(depth - 1);
                // Zero divisors fail: seldom.
                let rhs = match self.random.random_bool(if matches!(op, ArithOp::Div | ArithOp::Mod) { 0.9 } else { 0.5 }) {
                    true => E::Literal(self.small_number()),
                    false => self.numeric(depth - 1),
                };
                if once_in(self.random, 4) && !matches!(op, ArithOp::Div | ArithOp::Mod) {
                    E::Arith { op, lhs: Box::new(rhs), rhs: Box::new(lhs) }
                } else {
                    E::Arith { op, lhs: Box::new(lhs), rhs: Box::new(rhs) }
                }
            }
        }
    }

    /// What is a number or missing nearly always: the negative of all else fails.
    fn negatable(&mut self) -> E {
        E::Field(if self.random.random() {
            FieldRef::Intrinsic(one(self.random, &NUMBERS))
        } else {
            FieldRef::Attribute { scope: one(self.random, &SCOPES), name: one(self.random, &["n", "f"]).to_owned() }
        })
    }

    // ---- fields

    /// Anything that a span has.
    pub fn any_field(&mut self) -> FieldRef {
        match self.random.random_range(0..10) {
            0..=5 => self.any_attribute(),
            6 => FieldRef::Intrinsic(one(self.random, &NUMBERS)),
            7 => FieldRef::Intrinsic(one(self.random, &[I::Status, I::Kind])),
            _ => FieldRef::Intrinsic(one(self.random, &STRINGS)),
        }
    }

    fn any_attribute(&mut self) -> FieldRef {
        let name = if once_in(self.random, 10) { "service.name" } else { one(self.random, &KEYS) };
        FieldRef::Attribute { scope: one(self.random, &SCOPES), name: name.to_owned() }
    }

    /// An attribute that may be asked for with `= nil`.
    fn can_be_missing(&mut self) -> FieldRef {
        match self.any_attribute() {
            FieldRef::Attribute { scope: Scope::Resource, name } if name == "service.name" => FieldRef::Attribute { scope: Scope::Any, name },
            other => other,
        }
    }

    // ---- literals

    fn literal(&mut self) -> Static {
        match self.random.random_range(0..16) {
            0..=6 => Static::String(one(self.random, &TEXTS).into()),
            7..=12 => self.number(),
            13 => self.status(),
            14 => self.kind(),
            _ => Static::Bool(self.random.random()),
        }
    }

    /// A number that spans have.
    pub fn number(&mut self) -> Static {
        match self.random.random_range(0..8) {
            0..=3 => Static::Int(one(self.random, &INTS)),
            4..=5 => Static::Float(one(self.random, &DOUBLES[..7])),
            6 => Static::Duration(-(one(self.random, &DURATIONS) as i64)),
            _ => Static::Duration(one(self.random, &DURATIONS) as i64),
        }
    }

    fn small_number(&mut self) -> Static {
        match self.random.random_range(0..5) {
            0 => Static::Float(0.5),
            1 => Static::Duration(1_000_000),
            _ => Static::Int(self.random.random_range(1..=3)),
        }
    }

    fn status(&mut self) -> Static {
        Static::Status(one(self.random, &[Status::Error, Status::Ok, Status::Unset]))
    }

    fn kind(&mut self) -> Static {
        Static::Kind(one(self.random, &[Kind::Unspecified, Kind::Internal, Kind::Client, Kind::Server, Kind::Producer, Kind::Consumer]))
    }

    /// A text that the intrinsic may have.
    fn text(&mut self, intrinsic: I) -> Static {
        let (span, _) = &self.world.spans[self.random.random_range(0..self.world.spans.len())];
        let text = match intrinsic {
            I::Name | I::RootName => one(self.random, &NAMES).to_owned(),
            I::RootService => one(self.random, &SERVICES).to_owned(),
            I::SpanId => format!("{:016x}", span.id),
            I::ParentId => format!("{:016x}", span.parent.unwrap_or(0)),
            I::TraceId if self.random.random() => format!("{:x}", span.trace),
            I::TraceId => format!("{:032x}", span.trace),
            I::LinkTraceId => span.links.first().map_or("abc".to_owned(), |link| format!("{:x}", link.trace)),
            I::LinkSpanId => format!("{:016x}", self.random.random_range(0..3)),
            I::EventName => one(self.random, &["exception", "log", "a", ""]).to_owned(),
            I::InstrumentationName => one(self.random, &["", "lib", "a"]).to_owned(),
            I::InstrumentationVersion => one(self.random, &["", "1.0", "2"]).to_owned(),
            _ => one(self.random, &TEXTS).to_owned(),
        };
        Static::String(text.into())
    }
}

trait Reading {
    fn reading(self, other: impl FnOnce() -> E) -> E;
}

impl Reading for E {
    /// The expression if it reads the span, else `other`: constants are refused in places.
    fn reading(self, other: impl FnOnce() -> E) -> E {
        let mut reads = false;
        self.visit_fields(&mut |_| reads = true);
        if reads { self } else { other() }
    }
}

// ---- what a query consists of

/// All expressions over single spans.
pub fn expressions<'q>(pipeline: &'q Pipeline, found: &mut Vec<&'q E>) {
    for stage in &pipeline.stages {
        match stage {
            Stage::Spansets(spansets) => in_spansets(spansets, found),
            Stage::By(expr) => found.push(expr),
            Stage::Aggregate(filter) => match &filter.aggregate {
                Aggregate::Count => {}
                Aggregate::Min(expr) | Aggregate::Max(expr) | Aggregate::Avg(expr) | Aggregate::Sum(expr) => found.push(expr),
            },
            Stage::Coalesce | Stage::Select(_) => {}
        }
    }
}

fn in_spansets<'q>(spansets: &'q SpansetExpr, found: &mut Vec<&'q E>) {
    match spansets {
        SpansetExpr::Filter(expr) => found.push(expr),
        SpansetExpr::Pipeline(pipeline) => expressions(pipeline, found),
        SpansetExpr::Binary { lhs, rhs, .. } => {
            in_spansets(lhs, found);
            in_spansets(rhs, found);
        }
    }
}

/// Whether a structural operator may get several spansets of one side, which fails.
pub fn relates_groups(pipeline: &Pipeline) -> bool {
    fn in_spansets(spansets: &SpansetExpr, structural: bool) -> bool {
        match spansets {
            SpansetExpr::Filter(_) => false,
            SpansetExpr::Pipeline(pipeline) => {
                (structural && pipeline.stages.iter().any(|stage| matches!(stage, Stage::By(_)))) || relates_groups(pipeline)
            }
            SpansetExpr::Binary { op, lhs, rhs } => {
                let structural = matches!(op, SpansetOp::Structural { .. });
                in_spansets(lhs, structural) || in_spansets(rhs, structural)
            }
        }
    }
    pipeline.stages.iter().any(|stage| matches!(stage, Stage::Spansets(spansets) if in_spansets(spansets, false)))
}
