//! The TraceQL syntax tree, as [`parse`](super::parse) returns it: folded and validated.
//!
//! Every node prints as TraceQL text through `Display` (module `print`), and that text parses back to an equal node. Invariants of a tree
//! that came from the parser:
//! - its depth is at most [`DEPTH_MAX`] in field expressions and as much again between spansets, so recursion over it is safe;
//! - constant sub-expressions are folded to one [`FieldExpr::Literal`]; [`Static::Nil`] never occurs as a literal (see
//!   [`FieldExpr::Exists`] and [`FieldExpr::Missing`]);
//! - operand types agree and every pattern compiles.

use std::sync::Arc;

/// Deepest tree the parser builds. Chains of one associative operator (`&&`, `||`) longer than a few terms are balanced, so that only
/// true nesting counts.
pub const DEPTH_MAX: usize = 128;

/// A whole query.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// What is asked.
    pub body: QueryBody,
    /// The last `with (…)` clause, in order; unknown names are kept and mean nothing.
    pub hints: Vec<Hint>,
}

/// A search for spans or a time series.
#[derive(Debug, Clone, PartialEq)]
pub enum QueryBody {
    /// Spans.
    Search(Pipeline),
    /// Time series.
    Metrics(MetricsExpr),
}

/// One `name=value` of `with (…)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Hint {
    /// The hint's name.
    pub name: String,
    /// Its value; never [`Static::Nil`].
    pub value: Static,
}

/// Stages that map spansets to spansets, first to last; never empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Pipeline {
    /// The stages.
    pub stages: Vec<Stage>,
}

/// One stage of a [`Pipeline`].
#[derive(Debug, Clone, PartialEq)]
pub enum Stage {
    /// `{ … }` and combinations of it.
    Spansets(SpansetExpr),
    /// `count() > 1` and the like: keeps or drops whole spansets.
    Aggregate(AggregateFilter),
    /// `by(expr)`: splits each spanset by value.
    By(FieldExpr),
    /// `coalesce()`: merges the spansets of a trace.
    Coalesce,
    /// `select(a, b)`: asks for more attributes in the output.
    Select(Vec<FieldRef>),
}

/// Spans of one trace, chosen by filters and by their relations.
#[derive(Debug, Clone, PartialEq)]
pub enum SpansetExpr {
    /// `{ expr }`; `{ }` is `Filter(Literal(Bool(true)))`.
    Filter(FieldExpr),
    /// A pipeline in parentheses as an operand, such as `({ .a } | count() > 1)`.
    Pipeline(Box<Pipeline>),
    /// Two operands.
    Binary {
        /// How they are combined.
        op: SpansetOp,
        /// The left operand.
        lhs: Box<SpansetExpr>,
        /// The right operand.
        rhs: Box<SpansetExpr>,
    },
}

/// An operator between spansets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SpansetOp {
    /// `&&`: all spans of both sides, if neither is empty.
    And,
    /// `||`: all spans of both sides.
    Or,
    /// Spans related in the tree of the trace.
    Structural {
        /// What the right span is to the left one.
        relation: Relation,
        /// Which spans are returned.
        form: Form,
    },
}

/// What the right-hand span is to the left-hand span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Relation {
    /// `>>`: the right span lies below the left one, at any depth.
    Descendant,
    /// `>`: the right span is a child of the left one.
    Child,
    /// `<<`: the right span lies above the left one, at any height.
    Ancestor,
    /// `<`: the right span is the parent of the left one.
    Parent,
    /// `~`: both are different children of one parent.
    Sibling,
}

/// Which spans a structural operator returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// `>`: right spans that have a partner.
    Plain,
    /// `!>`: right spans that have none.
    Negated,
    /// `&>`: both partners of every pair.
    Union,
}

/// `aggregate op value`.
#[derive(Debug, Clone, PartialEq)]
pub struct AggregateFilter {
    /// What is computed per spanset.
    pub aggregate: Aggregate,
    /// The comparison.
    pub op: CompareOp,
    /// [`Static::Int`], [`Static::Float`] or [`Static::Duration`].
    pub value: Static,
}

/// A value computed over the spans of a spanset.
#[derive(Debug, Clone, PartialEq)]
pub enum Aggregate {
    /// `count()`: number of spans.
    Count,
    /// `min(expr)`.
    Min(FieldExpr),
    /// `max(expr)`.
    Max(FieldExpr),
    /// `avg(expr)`.
    Avg(FieldExpr),
    /// `sum(expr)`.
    Sum(FieldExpr),
}

/// An expression over one span.
#[derive(Debug, Clone, PartialEq)]
pub enum FieldExpr {
    /// A constant; never [`Static::Nil`].
    Literal(Static),
    /// The value of an attribute or intrinsic. Alone as a filter it is true only for the boolean `true`.
    Field(FieldRef),
    /// `!expr`.
    Not(Box<FieldExpr>),
    /// `-expr`.
    Negate(Box<FieldExpr>),
    /// `expr != nil`.
    Exists(Box<FieldExpr>),
    /// `expr = nil`.
    Missing(Box<FieldExpr>),
    /// A comparison.
    Compare {
        /// The operator.
        op: CompareOp,
        /// The left operand.
        lhs: Box<FieldExpr>,
        /// The right operand. A string compared with `trace:id` has lost its leading zeros.
        rhs: Box<FieldExpr>,
    },
    /// `lhs =~ "pattern"`, or `!~` when `negated`; see [`compile_pattern`](super::compile_pattern).
    Match {
        /// True for `!~`.
        negated: bool,
        /// The value looked at.
        lhs: Box<FieldExpr>,
        /// The pattern as written, without anchors.
        pattern: String,
    },
    /// Arithmetic.
    Arith {
        /// The operator.
        op: ArithOp,
        /// The left operand.
        lhs: Box<FieldExpr>,
        /// The right operand.
        rhs: Box<FieldExpr>,
    },
    /// `lhs && rhs`.
    And(Box<FieldExpr>, Box<FieldExpr>),
    /// `lhs || rhs`.
    Or(Box<FieldExpr>, Box<FieldExpr>),
}

/// A comparison operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum CompareOp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// An arithmetic operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum ArithOp {
    Add,
    Sub,
    Mul,
    Div,
    Mod,
    Pow,
}

/// The name of something that a span has.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum FieldRef {
    /// `span.http.url`, `.foo`.
    Attribute {
        /// Where to look.
        scope: AttributeScope,
        /// The key, unquoted; may be empty.
        name: String,
    },
    /// `name`, `span:name`.
    Intrinsic(Intrinsic),
}

/// Where an attribute is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttributeScope {
    /// `.foo`: the span, then its resource.
    Any,
    /// `span.foo`.
    Span,
    /// `resource.foo`.
    Resource,
    /// `event.foo`.
    Event,
    /// `link.foo`.
    Link,
    /// `instrumentation.foo`.
    Instrumentation,
    /// `parent.foo`. Filters with it are refused; only `by (…)` of a metric takes the three `parent` scopes, where they read the span
    /// itself.
    Parent,
    /// `parent.span.foo`.
    ParentSpan,
    /// `parent.resource.foo`.
    ParentResource,
}

/// What every span or trace has. Scoped and legacy spelling give the same value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Intrinsic {
    /// `span:name`, `name`: string.
    Name,
    /// `span:duration`, `duration`: end minus start, a duration.
    Duration,
    /// `span:status`, `status`.
    Status,
    /// `span:statusMessage`, `statusMessage`: string, empty when absent.
    StatusMessage,
    /// `span:kind`, `kind`.
    Kind,
    /// `span:id`: 16 lower-case hex digits.
    SpanId,
    /// `span:parentID`: the same form; zeros for a root.
    ParentId,
    /// `span:childCount`: direct children, an integer.
    ChildCount,
    /// `trace:id`: lower-case hex without leading zeros.
    TraceId,
    /// `trace:duration`, `traceDuration`: last end minus first start of the trace, a duration.
    TraceDuration,
    /// `trace:rootName`, `rootName`: string, empty without a root.
    RootName,
    /// `trace:rootService`, `rootServiceName`: string, empty without a root.
    RootService,
    /// `event:name`: string.
    EventName,
    /// `event:timeSinceStart`: event time minus span start, a duration, perhaps negative.
    EventTimeSinceStart,
    /// `link:traceID`: lower-case hex without leading zeros.
    LinkTraceId,
    /// `link:spanID`: 16 lower-case hex digits.
    LinkSpanId,
    /// `instrumentation:name`: string, empty when absent; its static type is unknown.
    InstrumentationName,
    /// `instrumentation:version`: as the name.
    InstrumentationVersion,
    /// `nestedSetLeft`: integer.
    NestedSetLeft,
    /// `nestedSetRight`: integer.
    NestedSetRight,
    /// `nestedSetParent`: integer, -1 for a root.
    NestedSetParent,
    /// `parent`: parses, is refused.
    Parent,
}

/// A constant.
#[derive(Debug, Clone, PartialEq)]
pub enum Static {
    /// No value; the evaluator's result for what a span lacks, never a literal.
    Nil,
    /// A 64-bit integer.
    Int(i64),
    /// A float; folding can make it infinite or NaN.
    Float(f64),
    /// Text.
    String(Arc<str>),
    /// A boolean.
    Bool(bool),
    /// Nanoseconds.
    Duration(i64),
    /// A span status.
    Status(Status),
    /// A span kind.
    Kind(Kind),
}

/// Span status, in TraceQL's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Status {
    Error,
    Ok,
    Unset,
}

/// Span kind, in TraceQL's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Kind {
    Unspecified,
    Internal,
    Client,
    Server,
    Producer,
    Consumer,
}

/// An expression whose value is a set of time series.
#[derive(Debug, Clone, PartialEq)]
pub enum MetricsExpr {
    /// `pipeline | function`.
    Pipeline {
        /// Which spans count.
        pipeline: Pipeline,
        /// What is computed of them.
        function: MetricsFunction,
    },
    /// A number as an operand of [`MetricsExpr::Binary`]: [`Static::Int`] or [`Static::Float`].
    Scalar(Static),
    /// Arithmetic point by point over equal label sets; at most one side is a scalar.
    Binary {
        /// One of `+ - * /`.
        op: ArithOp,
        /// The left operand.
        lhs: Box<MetricsExpr>,
        /// The right operand.
        rhs: Box<MetricsExpr>,
    },
    /// Steps applied to finished series, first to last.
    SecondStages {
        /// What they are applied to; never itself `SecondStages`.
        input: Box<MetricsExpr>,
        /// The steps; never empty.
        stages: Vec<SecondStage>,
    },
}

/// A function from spans to time series.
#[derive(Debug, Clone, PartialEq)]
pub enum MetricsFunction {
    /// `rate()`: spans per second.
    Rate {
        /// The grouping, perhaps empty.
        by: Vec<FieldRef>,
    },
    /// `count_over_time()`.
    CountOverTime {
        /// The grouping, perhaps empty.
        by: Vec<FieldRef>,
    },
    /// `min_over_time(field)` and its kind.
    OverTime {
        /// Which one.
        function: OverTime,
        /// The value taken from each span.
        field: FieldRef,
        /// The grouping, perhaps empty.
        by: Vec<FieldRef>,
    },
    /// `quantile_over_time(field, .5, .9)`.
    QuantileOverTime {
        /// The value taken from each span.
        field: FieldRef,
        /// Each in 0 to 1; never empty.
        quantiles: Vec<f64>,
        /// The grouping, perhaps empty.
        by: Vec<FieldRef>,
    },
    /// `compare({ … }, top_n, start, end)`.
    Compare {
        /// The filter that makes a span part of the selection.
        selection: FieldExpr,
        /// Values kept per attribute, 1 to 1000; 10 when not written.
        top_n: i64,
        /// The selection's window in Unix nanoseconds: start excluded, end included.
        window: Option<(i64, i64)>,
    },
}

/// Functions of one field over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum OverTime {
    Min,
    Max,
    Sum,
    Avg,
    Histogram,
}

/// A step over finished series.
#[derive(Debug, Clone, PartialEq)]
pub enum SecondStage {
    /// `| topk(n)`, n > 0.
    TopK(i64),
    /// `| bottomk(n)`, n > 0.
    BottomK(i64),
    /// `> 0.5`: keeps the points that satisfy it. The value is an int, a float, or a duration (compared in seconds).
    Filter {
        /// The comparison.
        op: CompareOp,
        /// The threshold.
        value: Static,
    },
}

impl Stage {
    /// `{ }`.
    pub const ALL_SPANS: Self = Self::Spansets(SpansetExpr::Filter(FieldExpr::Literal(Static::Bool(true))));
}

impl FieldRef {
    /// The key under which a search shows the value on a span: the bare attribute name, or the intrinsic's name.
    pub fn attribute_key(&self) -> &str {
        match self {
            Self::Attribute { name, .. } => name,
            Self::Intrinsic(intrinsic) => intrinsic.as_str(),
        }
    }
}

impl CompareOp {
    /// The operator as written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Eq => "=",
            Self::Ne => "!=",
            Self::Lt => "<",
            Self::Le => "<=",
            Self::Gt => ">",
            Self::Ge => ">=",
        }
    }

    /// The operator that means the same with the operands exchanged.
    pub fn mirrored(self) -> Self {
        match self {
            Self::Lt => Self::Gt,
            Self::Le => Self::Ge,
            Self::Gt => Self::Lt,
            Self::Ge => Self::Le,
            same => same,
        }
    }
}

impl ArithOp {
    /// The operator as written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Sub => "-",
            Self::Mul => "*",
            Self::Div => "/",
            Self::Mod => "%",
            Self::Pow => "^",
        }
    }
}

impl SpansetOp {
    /// The operator as written.
    pub fn as_str(self) -> &'static str {
        use Form::{Negated, Plain, Union};
        use Relation::{Ancestor, Child, Descendant, Parent, Sibling};
        match self {
            Self::And => "&&",
            Self::Or => "||",
            Self::Structural { relation, form } => match (relation, form) {
                (Descendant, Plain) => ">>",
                (Child, Plain) => ">",
                (Ancestor, Plain) => "<<",
                (Parent, Plain) => "<",
                (Sibling, Plain) => "~",
                (Descendant, Negated) => "!>>",
                (Child, Negated) => "!>",
                (Ancestor, Negated) => "!<<",
                (Parent, Negated) => "!<",
                (Sibling, Negated) => "!~",
                (Descendant, Union) => "&>>",
                (Child, Union) => "&>",
                (Ancestor, Union) => "&<<",
                (Parent, Union) => "&<",
                (Sibling, Union) => "&~",
            },
        }
    }
}

impl Status {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Ok => "ok",
            Self::Unset => "unset",
        }
    }
}

impl Kind {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Internal => "internal",
            Self::Client => "client",
            Self::Server => "server",
            Self::Producer => "producer",
            Self::Consumer => "consumer",
        }
    }
}

impl OverTime {
    /// The function's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Min => "min_over_time",
            Self::Max => "max_over_time",
            Self::Sum => "sum_over_time",
            Self::Avg => "avg_over_time",
            Self::Histogram => "histogram_over_time",
        }
    }
}

impl MetricsFunction {
    /// The function's name, which is also the `__name__` of an ungrouped series.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Rate { .. } => "rate",
            Self::CountOverTime { .. } => "count_over_time",
            Self::OverTime { function, .. } => function.as_str(),
            Self::QuantileOverTime { .. } => "quantile_over_time",
            Self::Compare { .. } => "compare",
        }
    }

    /// The grouping, perhaps empty.
    pub fn by(&self) -> &[FieldRef] {
        match self {
            Self::Rate { by } | Self::CountOverTime { by } | Self::OverTime { by, .. } | Self::QuantileOverTime { by, .. } => by,
            Self::Compare { .. } => &[],
        }
    }
}

impl AttributeScope {
    /// Where the grouping of a metric looks: in the span itself, also under the `parent` scopes.
    pub fn of_own_span(self) -> Self {
        match self {
            Self::Parent => Self::Any,
            Self::ParentSpan => Self::Span,
            Self::ParentResource => Self::Resource,
            own => own,
        }
    }

    /// The scope as written in front of a name, with its dot.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Any => ".",
            Self::Span => "span.",
            Self::Resource => "resource.",
            Self::Event => "event.",
            Self::Link => "link.",
            Self::Instrumentation => "instrumentation.",
            Self::Parent => "parent.",
            Self::ParentSpan => "parent.span.",
            Self::ParentResource => "parent.resource.",
        }
    }
}

/// Every intrinsic with its legacy and its scoped spelling.
pub const INTRINSICS: &[(Intrinsic, Option<&str>, Option<&str>)] = &[
    (Intrinsic::Name, Some("name"), Some("span:name")),
    (Intrinsic::Duration, Some("duration"), Some("span:duration")),
    (Intrinsic::Status, Some("status"), Some("span:status")),
    (Intrinsic::StatusMessage, Some("statusMessage"), Some("span:statusMessage")),
    (Intrinsic::Kind, Some("kind"), Some("span:kind")),
    (Intrinsic::SpanId, None, Some("span:id")),
    (Intrinsic::ParentId, None, Some("span:parentID")),
    (Intrinsic::ChildCount, None, Some("span:childCount")),
    (Intrinsic::TraceId, None, Some("trace:id")),
    (Intrinsic::TraceDuration, Some("traceDuration"), Some("trace:duration")),
    (Intrinsic::RootName, Some("rootName"), Some("trace:rootName")),
    (Intrinsic::RootService, Some("rootServiceName"), Some("trace:rootService")),
    (Intrinsic::EventName, None, Some("event:name")),
    (Intrinsic::EventTimeSinceStart, None, Some("event:timeSinceStart")),
    (Intrinsic::LinkTraceId, None, Some("link:traceID")),
    (Intrinsic::LinkSpanId, None, Some("link:spanID")),
    (Intrinsic::InstrumentationName, None, Some("instrumentation:name")),
    (Intrinsic::InstrumentationVersion, None, Some("instrumentation:version")),
    (Intrinsic::NestedSetLeft, Some("nestedSetLeft"), None),
    (Intrinsic::NestedSetRight, Some("nestedSetRight"), None),
    (Intrinsic::NestedSetParent, Some("nestedSetParent"), None),
    (Intrinsic::Parent, Some("parent"), None),
];

impl Intrinsic {
    /// The canonical name: the legacy spelling where there is one, else the scoped spelling. It is the metrics label and the key of `by(…)`.
    pub fn as_str(self) -> &'static str {
        INTRINSICS
            .iter()
            .find(|(intrinsic, ..)| *intrinsic == self)
            .and_then(|(_, legacy, scoped)| legacy.or(*scoped))
            .expect("every intrinsic is listed with a spelling")
    }
}
