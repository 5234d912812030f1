//! From tokens to the syntax tree: recursive descent, with precedence climbing for operators. Linear in the length of the query.
//!
//! A parenthesis in a pipeline can open spansets, a whole pipeline, a scalar, or a metrics query; which one is known only inside. So one
//! expression parser reads all four (`Item`) and each operator checks what it is given.
//!
//! Two bounds make recursion safe: at most [`DEPTH_MAX`] open parentheses and prefix operators, and trees at most [`DEPTH_MAX`] deep.

use super::{
    ast::{
        Aggregate, AggregateFilter, ArithOp, CompareOp, DEPTH_MAX, FieldExpr, FieldRef, Form, Hint, MetricsExpr, MetricsFunction, OverTime, Pipeline,
        Query, QueryBody, Relation, SecondStage, SpansetExpr, SpansetOp, Stage, Static,
    },
    diagnostic::{Diagnostic, nearest},
    fold::{Computed, arith, negate},
    lexer::{Token, TokenKind, field_words, lex, scope_words, stage_words},
};
use crate::error::{Error, Result};

/// Boxed, because every level of recursion holds several results.
type Parsed<T> = std::result::Result<T, Box<Diagnostic>>;

/// Binding strength of operators, weakest first. `!` binds stronger than `+` and weaker than `*`; unary minus binds as `+`.
const LEVEL_COMPARE: u8 = 2;
const LEVEL_ADD: u8 = 3;
const LEVEL_NOT: u8 = 4;
const LEVEL_MULTIPLY: u8 = 5;
const LEVEL_POWER: u8 = 6;

/// Chains of `&&` or `||` up to this many terms keep their shape, longer ones are balanced.
const CHAIN_TERMS_MAX: usize = 16;

/// Most patterns in one query: each costs time and memory to compile.
const PATTERNS_MAX: usize = 256;

/// Values `compare()` keeps when the query does not say.
const COMPARE_TOP_N: i64 = 10;

/// Parses `source` without folding or validation.
/// Errors: `Invalid`, also for what the grammar takes and validation refuses but the tree cannot express.
pub(super) fn parse_query(source: &str) -> Result<Query> {
    let mut parser = Parser::new(source, lex(source));
    let query = parser.query().map_err(|diagnostic| diagnostic.render(source))?;
    parser.finish(query)
}

/// Parses the tokens of one field expression that stretches to the end.
pub(super) fn parse_field_expr(source: &str, tokens: Vec<Token>) -> Result<FieldExpr> {
    let mut parser = Parser::new(source, tokens);
    let expr = parser.field_expr().and_then(|expr| parser.expect_end().map(|()| expr.node));
    let expr = expr.map_err(|diagnostic| diagnostic.render(source))?;
    parser.finish(expr)
}

/// Parses the name of one attribute or intrinsic. The text is read as if it stood in braces, which shows in the columns of errors.
pub(super) fn parse_field_ref(text: &str) -> Result<FieldRef> {
    let source = format!("{{{text}}}");
    let mut parser = Parser::new(&source, lex(&source));
    let field = (|| {
        parser.expect("{")?;
        let field = parser.field_ref()?;
        parser.expect("}")?;
        parser.expect_end()?;
        Ok(field)
    })();
    field.map_err(|diagnostic: Box<Diagnostic>| diagnostic.render(&source).context(format!("failed to parse identifier {text}")))
}

/// A node and the depth of the tree below it.
#[derive(Debug)]
struct Deep<T> {
    node: T,
    depth: usize,
}

impl<T> Deep<T> {
    fn leaf(node: T) -> Self {
        Self { node, depth: 1 }
    }

    fn map<U>(self, wrap: impl FnOnce(Box<T>) -> U) -> Deep<U> {
        Deep { node: wrap(Box::new(self.node)), depth: self.depth + 1 }
    }

    fn join<U>(self, other: Self, combine: impl FnOnce(Box<T>, Box<T>) -> U) -> Deep<U> {
        Deep { node: combine(Box::new(self.node), Box::new(other.node)), depth: self.depth.max(other.depth) + 1 }
    }
}

/// What stands between the operators of a pipeline.
#[derive(Debug)]
enum Item {
    Spansets(Spansets),
    Filter(AggregateFilter),
    Scalar(Deep<Scalar>),
    Metrics(Deep<MetricsExpr>),
    /// Only from inside parentheses or for the whole query.
    Pipeline(Pipeline, usize),
}

/// Spansets and what their operands allow.
#[derive(Debug)]
struct Spansets {
    expr: Deep<SpansetExpr>,
    /// A pipeline in parentheses is part of it: it ends the query.
    holds_pipeline: bool,
    /// Every operand stands in parentheses: it may be combined with one that holds a pipeline.
    wrapped: bool,
}

/// One side of an aggregate filter, or a number of metrics math. Constants are folded at once.
#[derive(Debug)]
enum Scalar {
    Constant(Static),
    Aggregate(Aggregate),
    Binary(ArithOp, Box<Scalar>, Box<Scalar>),
}

impl std::fmt::Display for Scalar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Constant(value) => write!(f, "{value}"),
            Self::Aggregate(aggregate) => write!(f, "{aggregate}"),
            Self::Binary(op, lhs, rhs) => write!(f, "({lhs}) {} ({rhs})", op.as_str()),
        }
    }
}

#[cfg(test)]
thread_local! {
    /// Steps over tokens on this thread: tests see that they grow with the text and not faster.
    pub(super) static STEPS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

struct Parser<'a> {
    source: &'a str,
    tokens: Vec<Token>,
    at: usize,
    nesting: usize,
    patterns: usize,
    /// The first thing that validation would refuse but the tree cannot express; syntax errors come first.
    refused: Option<String>,
}

impl<'a> Parser<'a> {
    fn new(source: &'a str, tokens: Vec<Token>) -> Self {
        Self { source, tokens, at: 0, nesting: 0, patterns: 0, refused: None }
    }

    fn finish<T>(self, value: T) -> Result<T> {
        match self.refused {
            Some(text) => Err(Error::invalid(text)),
            None => Ok(value),
        }
    }

    // ---- tokens

    fn peek(&self) -> &Token {
        &self.tokens[self.at]
    }

    fn peek_op(&self) -> &'static str {
        match self.peek().kind {
            TokenKind::Op(op) => op,
            _ => "",
        }
    }

    fn peek_keyword(&self) -> &'static str {
        match self.peek().kind {
            TokenKind::Keyword(word) => word,
            _ => "",
        }
    }

    /// Steps over the current token. The last one, which is the end or an error, stays.
    fn advance(&mut self) {
        #[cfg(test)]
        STEPS.set(STEPS.get() + 1);
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
    }

    fn take_op(&mut self, op: &str) -> bool {
        let found = self.peek_op() == op;
        if found {
            self.advance();
        }
        found
    }

    /// The error for the current token: `suffix` is Tempo's list of what is possible (or empty), `note` is advice.
    fn unexpected<T>(&self, suffix: &str, note: impl Into<String>) -> Parsed<T> {
        self.unexpected_at(self.at, suffix, note)
    }

    fn unexpected_at<T>(&self, at: usize, suffix: &str, note: impl Into<String>) -> Parsed<T> {
        let token = &self.tokens[at];
        let (start, end) = (token.start, token.end);
        if let TokenKind::Error { detail, note } = &token.kind {
            return Err(Box::new(Diagnostic { start, end, detail: detail.clone(), note: note.clone() }));
        }
        Err(Box::new(Diagnostic { start, end, detail: format!("syntax error: unexpected {}{suffix}", token.name()), note: note.into() }))
    }

    /// Takes `op`, the only token that is possible here.
    fn expect(&mut self, op: &str) -> Parsed<()> {
        if self.take_op(op) { Ok(()) } else { self.unexpected(&format!(", expecting {op}"), "") }
    }

    /// Takes `op` behind an expression that could also go on.
    fn expect_behind_expr(&mut self, op: &str) -> Parsed<()> {
        if self.take_op(op) {
            return Ok(());
        }
        let note = match (&self.peek().kind, self.peek_op()) {
            (TokenKind::Ident(word), _) => match word.to_lowercase().as_str() {
                "and" => "the operator is &&".to_owned(),
                "or" => "the operator is ||".to_owned(),
                "in" => "there is no list operator: join comparisons with ||".to_owned(),
                "&" => "the operator is &&".to_owned(),
                _ => format!("expected an operator or {op}"),
            },
            (_, ",") => format!("one expression is possible here, then {op}"),
            (_, "~") => "the operators for patterns are =~ and !~".to_owned(),
            (_, "|") => "the operator is ||".to_owned(),
            (TokenKind::End, _) => format!("expected a closing {op}"),
            _ => format!("expected an operator or {op}"),
        };
        self.unexpected("", note)
    }

    fn expect_end(&self) -> Parsed<()> {
        if self.peek().kind == TokenKind::End { Ok(()) } else { self.unexpected("", "the query should end here") }
    }

    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        self.nesting += 1;
        if self.nesting > DEPTH_MAX {
            return self.too_deep();
        }
        let parsed = parse(self);
        self.nesting -= 1;
        parsed
    }

    fn too_deep<T>(&self) -> Parsed<T> {
        let token = self.peek();
        let detail = format!("expression nested deeper than {DEPTH_MAX} levels");
        Err(Box::new(Diagnostic {
            start: token.start,
            end: token.end,
            detail,
            note: "split the query, or use fewer parentheses and operators".into(),
        }))
    }

    fn check_depth<T>(&self, deep: Deep<T>) -> Parsed<Deep<T>> {
        if deep.depth > DEPTH_MAX { self.too_deep() } else { Ok(deep) }
    }

    fn refuse(&mut self, text: String) {
        self.refused.get_or_insert(text);
    }

    /// Joins the terms of a chain of one associative operator, from the left when it is short, else as a balanced tree.
    fn join_chain<T>(&self, mut terms: Vec<Deep<T>>, join: impl Fn(Box<T>, Box<T>) -> T) -> Parsed<Deep<T>> {
        let balanced = terms.len() > CHAIN_TERMS_MAX;
        while terms.len() > 1 {
            let mut joined = Vec::with_capacity(terms.len().div_ceil(2));
            let mut rest = terms.into_iter();
            while let Some(lhs) = rest.next() {
                let Some(rhs) = rest.next() else {
                    joined.push(lhs);
                    break;
                };
                joined.push(self.check_depth(lhs.join(rhs, &join))?);
                if !balanced {
                    joined.extend(rest.by_ref());
                }
            }
            terms = joined;
        }
        match terms.pop() {
            Some(term) => Ok(term),
            None => self.unexpected("", ""),
        }
    }

    // ---- field expressions

    fn field_expr(&mut self) -> Parsed<Deep<FieldExpr>> {
        let mut expr = self.field_operators(LEVEL_COMPARE)?;
        loop {
            let op = self.peek_op();
            if !matches!(op, "&&" | "||") {
                return Ok(expr);
            }
            let mut terms = vec![expr];
            while self.take_op(op) {
                terms.push(self.field_operators(LEVEL_COMPARE)?);
            }
            expr = self.join_chain(terms, if op == "&&" { FieldExpr::And } else { FieldExpr::Or })?;
        }
    }

    fn field_operators(&mut self, level_min: u8) -> Parsed<Deep<FieldExpr>> {
        let mut lhs = self.field_operand()?;
        loop {
            let op = self.peek_op();
            let level = match op {
                "=~" | "!~" => LEVEL_COMPARE,
                op if compare_op(op).is_some() => LEVEL_COMPARE,
                op if arith_op(op).is_some() => arith_level(op),
                _ => return Ok(lhs),
            };
            if level < level_min {
                return Ok(lhs);
            }
            self.advance();
            if matches!(op, "=" | "!=") && self.peek().kind == TokenKind::Nil {
                self.advance();
                lhs = self.check_depth(lhs.map(if op == "=" { FieldExpr::Missing } else { FieldExpr::Exists }))?;
                continue;
            }
            let rhs_at = self.at;
            let rhs = match op {
                "^" => self.deeper(|parser| parser.field_operators(level))?,
                _ => self.field_operators(level + 1)?,
            };
            let joined = match (op, compare_op(op), arith_op(op)) {
                ("=~" | "!~", ..) => self.pattern_match(op == "!~", lhs, rhs),
                (_, Some(op), _) => lhs.join(rhs, |lhs, rhs| FieldExpr::Compare { op, lhs, rhs }),
                (_, _, Some(op)) => lhs.join(rhs, |lhs, rhs| FieldExpr::Arith { op, lhs, rhs }),
                _ => return self.unexpected_at(rhs_at, "", ""),
            };
            lhs = self.check_depth(joined)?;
        }
    }

    fn pattern_match(&mut self, negated: bool, lhs: Deep<FieldExpr>, rhs: Deep<FieldExpr>) -> Deep<FieldExpr> {
        self.patterns += 1;
        if self.patterns > PATTERNS_MAX {
            self.refuse(format!("more than {PATTERNS_MAX} regular expressions in one query: join them with |"));
        }
        let pattern = match rhs.node {
            FieldExpr::Literal(Static::String(pattern)) => pattern.to_string(),
            other => {
                let op = if negated { "!~" } else { "=~" };
                self.refuse(format!("pattern must be a literal string: {} {op} {other}", lhs.node));
                String::new()
            }
        };
        lhs.map(|lhs| FieldExpr::Match { negated, lhs, pattern })
    }

    fn field_operand(&mut self) -> Parsed<Deep<FieldExpr>> {
        match &self.peek().kind {
            TokenKind::Op("(") => {
                self.advance();
                let inner = self.deeper(Self::field_expr)?;
                self.expect_behind_expr(")")?;
                Ok(inner)
            }
            TokenKind::Op("-") => {
                self.advance();
                let operand = self.deeper(|parser| parser.field_operators(LEVEL_ADD + 1))?;
                self.check_depth(operand.map(FieldExpr::Negate))
            }
            TokenKind::Op("!") => {
                self.advance();
                let operand = self.deeper(|parser| parser.field_operators(LEVEL_NOT + 1))?;
                self.check_depth(operand.map(FieldExpr::Not))
            }
            TokenKind::Nil => self.nil_first(),
            TokenKind::Literal(value) => {
                let literal = FieldExpr::Literal(value.clone());
                self.advance();
                Ok(Deep::leaf(literal))
            }
            TokenKind::Field(field) => {
                let field = FieldExpr::Field(field.clone());
                self.advance();
                Ok(Deep::leaf(field))
            }
            TokenKind::Ident(word) => {
                let value = match word.as_str() {
                    "minInt" => i64::MIN,
                    "maxInt" => i64::MAX,
                    _ => return self.unknown_identifier(),
                };
                self.advance();
                Ok(Deep::leaf(FieldExpr::Literal(Static::Int(value))))
            }
            TokenKind::Keyword(word) => {
                let note = match field_words().find(|known| known.split_once(':').is_some_and(|(_, name)| name == *word)) {
                    Some(known) => format!("did you mean {known}?"),
                    None => format!("a reserved word; as an attribute it is .{word} or span.{word}"),
                };
                self.unexpected("", note)
            }
            TokenKind::Op("=") => self.unexpected("", "equality is written with one ="),
            _ => self.unexpected("", "expected a value: an attribute such as span.name, an intrinsic such as duration, or a constant"),
        }
    }

    /// `nil = expr` and `nil != expr`.
    fn nil_first(&mut self) -> Parsed<Deep<FieldExpr>> {
        self.advance();
        let op = self.peek_op();
        if !matches!(op, "=" | "!=") {
            return self.unexpected(", expecting = or !=", "nil can only be compared with = and !=");
        }
        self.advance();
        if self.peek().kind == TokenKind::Nil {
            self.advance();
            return Ok(Deep::leaf(FieldExpr::Literal(Static::Bool(false))));
        }
        let operand = self.deeper(|parser| parser.field_operators(LEVEL_COMPARE + 1))?;
        self.check_depth(operand.map(if op == "=" { FieldExpr::Missing } else { FieldExpr::Exists }))
    }

    fn field_ref(&mut self) -> Parsed<FieldRef> {
        match &self.peek().kind {
            TokenKind::Field(field) => {
                let field = field.clone();
                self.advance();
                Ok(field)
            }
            TokenKind::Ident(_) => self.unknown_identifier(),
            _ => self.unexpected("", "expected an attribute such as span.name, or an intrinsic such as duration"),
        }
    }

    /// The error for a word that is not known where a field or constant is expected.
    fn unknown_identifier<T>(&self) -> Parsed<T> {
        let Token { kind: TokenKind::Ident(word), start, end } = self.peek() else { return self.unexpected("", "") };
        let behind = &self.source[*end..];
        let is_word = word.starts_with(|c: char| c == '_' || c.is_alphabetic());
        let name = behind.strip_prefix('.').map(|name| name.split(|c: char| !super::lexer::is_name_char(c)).next().unwrap_or(name));
        let note = match (word.as_str(), name) {
            (quoted, _) if quoted.starts_with('\'') => "strings are written in \"double\" or `back` quotes".to_owned(),
            ("not" | "NOT", _) => "the operator is !".to_owned(),
            ("null" | "NULL" | "None", _) => "did you mean nil?".to_owned(),
            ("trace", Some(name)) => match nearest(name, ["id", "duration", "rootName", "rootService"]) {
                Some(near) => format!("did you mean trace:{near}?"),
                None => format!("attributes have no trace scope: did you mean span.{name} or resource.{name}?"),
            },
            (word, Some(name)) => match nearest(word, scope_words()) {
                Some(scope) => format!("did you mean {scope}.{name}?"),
                None => format!("an attribute begins with its scope: did you mean .{word}.{name}, span.{word}.{name} or resource.{word}.{name}?"),
            },
            (word, None) if is_word => match nearest(word, field_words()) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("did you mean .{word}, span.{word}, resource.{word} or the string \"{word}\"?"),
            },
            _ => "expected a value: an attribute such as span.name, an intrinsic such as duration, or a constant".to_owned(),
        };
        Err(Box::new(Diagnostic { start: *start, end: *end, detail: format!("unknown identifier: {word}"), note }))
    }

    // ---- queries

    fn query(&mut self) -> Parsed<Query> {
        let body = match self.sequence(false)? {
            Item::Metrics(metrics) => QueryBody::Metrics(metrics.node),
            Item::Pipeline(pipeline, _) => QueryBody::Search(pipeline),
            Item::Spansets(spansets) => QueryBody::Search(Pipeline { stages: vec![Stage::Spansets(spansets.expr.node)] }),
            Item::Filter(filter) => QueryBody::Search(Pipeline { stages: vec![Stage::Aggregate(filter)] }),
            Item::Scalar(_) => return self.unexpected("", "expected a comparison such as > 1"),
        };
        let mut hints = Vec::new();
        while self.peek_keyword() == "with" {
            hints = self.hints()?;
        }
        match &self.peek().kind {
            TokenKind::End => Ok(Query { body, hints }),
            TokenKind::Ident(_) | TokenKind::Op(_) => self.unexpected("", "expected | and a stage, an operator between spansets, or the end"),
            _ => self.unexpected("", "expected | and a stage, or the end of the query"),
        }
    }

    fn hints(&mut self) -> Parsed<Vec<Hint>> {
        self.advance();
        self.expect("(")?;
        let mut hints = Vec::new();
        loop {
            let name = match &self.peek().kind {
                TokenKind::Ident(name) if name.starts_with(|c: char| c == '_' || c.is_alphabetic()) => name.clone(),
                _ => return self.unexpected(", expecting IDENTIFIER", "a hint's name is a word that is not reserved, such as most_recent"),
            };
            self.advance();
            self.expect("=")?;
            let value = match &self.peek().kind {
                TokenKind::Literal(value) => value.clone(),
                TokenKind::Ident(word) if word == "minInt" => Static::Int(i64::MIN),
                TokenKind::Ident(word) if word == "maxInt" => Static::Int(i64::MAX),
                TokenKind::Ident(_) => return self.unknown_identifier(),
                _ => return self.unexpected("", "expected a constant"),
            };
            self.advance();
            hints.push(Hint { name, value });
            if !self.take_op(",") {
                self.expect(")")?;
                return Ok(hints);
            }
        }
    }

    /// A pipeline, a metrics query, or whatever else stands in parentheses. The whole query when not `in_parentheses`: only then may
    /// second stages follow an expression of metrics.
    fn sequence(&mut self, in_parentheses: bool) -> Parsed<Item> {
        let mut depth = 1;
        let first = match self.stage()? {
            Some(stage) => stage,
            None => match self.spanset_expr()? {
                Item::Metrics(metrics) if in_parentheses => return Ok(Item::Metrics(metrics)),
                Item::Metrics(metrics) => return self.second_stages(metrics).map(Item::Metrics),
                Item::Scalar(scalar) if in_parentheses && self.peek_op() == ")" => return Ok(Item::Scalar(scalar)),
                Item::Scalar(scalar) => {
                    let note = match scalar.node {
                        Scalar::Constant(_) => "expected an operator and an aggregate such as count(), or a metrics query in parentheses",
                        _ => "expected a comparison such as > 1",
                    };
                    return self.unexpected("", note);
                }
                Item::Spansets(spansets) if self.peek_op() != "|" || spansets.holds_pipeline => return Ok(Item::Spansets(spansets)),
                Item::Spansets(spansets) => {
                    depth = depth.max(spansets.expr.depth);
                    Stage::Spansets(spansets.expr.node)
                }
                Item::Filter(filter) => Stage::Aggregate(filter),
                Item::Pipeline(pipeline, depth) => return Ok(Item::Pipeline(pipeline, depth)),
            },
        };
        let mut stages = vec![first];
        while self.take_op("|") {
            if let Some(stage) = self.stage()? {
                stages.push(stage);
                continue;
            }
            if self.peek_keyword() == "coalesce" {
                self.advance();
                self.expect("(")?;
                self.expect(")")?;
                stages.push(Stage::Coalesce);
                continue;
            }
            if let Some(function) = self.metrics_function()? {
                let pipeline = Pipeline { stages };
                return self.second_stages(Deep { node: MetricsExpr::Pipeline { pipeline, function }, depth }).map(Item::Metrics);
            }
            let start = self.at;
            match self.spanset_expr()? {
                Item::Spansets(spansets) if !spansets.holds_pipeline => {
                    depth = depth.max(spansets.expr.depth);
                    stages.push(Stage::Spansets(spansets.expr.node));
                }
                Item::Filter(filter) => stages.push(Stage::Aggregate(filter)),
                Item::Scalar(_) => return self.unexpected("", "expected a comparison such as > 1"),
                Item::Spansets(_) | Item::Metrics(_) | Item::Pipeline(..) => {
                    return self.unexpected_at(start, "", "a pipeline in parentheses can only be combined with others, not piped into");
                }
            }
        }
        Ok(Item::Pipeline(Pipeline { stages }, depth))
    }

    /// `by(…)` or `select(…)`, if one stands here.
    fn stage(&mut self) -> Parsed<Option<Stage>> {
        match self.peek_keyword() {
            "by" => {
                self.advance();
                self.expect("(")?;
                let expr = self.field_expr()?.node;
                self.expect_behind_expr(")")?;
                Ok(Some(Stage::By(expr)))
            }
            "select" => {
                self.advance();
                Ok(Some(Stage::Select(self.field_list()?)))
            }
            _ => Ok(None),
        }
    }

    /// `(a, b)`.
    fn field_list(&mut self) -> Parsed<Vec<FieldRef>> {
        self.expect("(")?;
        let mut fields = vec![self.field_ref()?];
        while self.take_op(",") {
            fields.push(self.field_ref()?);
        }
        if self.take_op(")") { Ok(fields) } else { self.unexpected(", expecting ) or ,", "only attributes and intrinsics are possible here") }
    }

    // ---- spansets, scalars and metrics between the pipes

    fn spanset_expr(&mut self) -> Parsed<Item> {
        let mut item = self.item_operators(LEVEL_COMPARE)?;
        loop {
            let op = self.peek_op();
            let spansets = match (op, item) {
                ("&&" | "||", Item::Spansets(spansets)) => spansets,
                (_, other) => return Ok(other),
            };
            let (mut holds_pipeline, mut wrapped) = (spansets.holds_pipeline, spansets.wrapped);
            let mut terms = vec![spansets.expr];
            while self.peek_op() == op {
                self.advance();
                let start = self.at;
                let rhs = self.spansets_operand(LEVEL_COMPARE)?;
                (holds_pipeline, wrapped) = self.check_mixture((holds_pipeline, wrapped), (rhs.holds_pipeline, rhs.wrapped), start)?;
                terms.push(rhs.expr);
            }
            let op = if op == "&&" { SpansetOp::And } else { SpansetOp::Or };
            let expr = self.join_chain(terms, |lhs, rhs| SpansetExpr::Binary { op, lhs, rhs })?;
            item = Item::Spansets(Spansets { expr, holds_pipeline, wrapped });
        }
    }

    /// A pipeline may be combined only with operands in parentheses. Takes and gives (holds a pipeline, all in parentheses).
    fn check_mixture(&self, lhs: (bool, bool), rhs: (bool, bool), rhs_at: usize) -> Parsed<(bool, bool)> {
        let (holds_pipeline, wrapped) = (lhs.0 || rhs.0, lhs.1 && rhs.1);
        if holds_pipeline && !wrapped {
            let note = "beside a pipeline in parentheses every operand needs parentheses, as in ({ .a } | count() > 1) && ({ .b })";
            return self.unexpected_at(rhs_at, ", expecting (", note);
        }
        Ok((holds_pipeline, wrapped))
    }

    /// The operand behind an operator between spansets.
    fn spansets_operand(&mut self, level_min: u8) -> Parsed<Spansets> {
        let start = self.at;
        if !matches!(self.peek_op(), "{" | "(") {
            return self.unexpected(", expecting { or (", "");
        }
        match self.item_operators(level_min)? {
            Item::Spansets(spansets) => Ok(spansets),
            _ => self.unexpected_at(start, "", "spansets can only be combined with spansets, such as { .a }"),
        }
    }

    fn item_operators(&mut self, level_min: u8) -> Parsed<Item> {
        let mut lhs = self.item_operand()?;
        loop {
            let op = self.peek_op();
            let level = match &lhs {
                Item::Spansets(_) if structural_op(op).is_some() => LEVEL_COMPARE,
                Item::Scalar(_) if compare_op(op).is_some() => LEVEL_COMPARE,
                Item::Scalar(_) | Item::Metrics(_) if arith_op(op).is_some() => arith_level(op),
                _ => return Ok(lhs),
            };
            if level < level_min {
                return Ok(lhs);
            }
            lhs = match lhs {
                Item::Spansets(lhs) => self.structural_operator(lhs)?,
                Item::Scalar(lhs) => self.scalar_operator(lhs, level)?,
                Item::Metrics(lhs) => self.metrics_operator(lhs, level)?,
                other => return Ok(other),
            };
        }
    }

    fn structural_operator(&mut self, lhs: Spansets) -> Parsed<Item> {
        let Some((relation, form)) = structural_op(self.peek_op()) else { return Ok(Item::Spansets(lhs)) };
        self.advance();
        let start = self.at;
        let rhs = self.spansets_operand(LEVEL_COMPARE + 1)?;
        let (holds_pipeline, wrapped) = self.check_mixture((lhs.holds_pipeline, lhs.wrapped), (rhs.holds_pipeline, rhs.wrapped), start)?;
        let op = SpansetOp::Structural { relation, form };
        let expr = self.check_depth(lhs.expr.join(rhs.expr, |lhs, rhs| SpansetExpr::Binary { op, lhs, rhs }))?;
        Ok(Item::Spansets(Spansets { expr, holds_pipeline, wrapped }))
    }

    fn scalar_operator(&mut self, lhs: Deep<Scalar>, level: u8) -> Parsed<Item> {
        let (op, op_at) = (self.peek_op(), self.at);
        self.advance();
        let start = self.at;
        match (self.item_right_side(op, level)?, compare_op(op), arith_op(op)) {
            (Item::Scalar(rhs), Some(op), _) => self.scalar_filter(op_at, op, lhs.node, rhs.node).map(Item::Filter),
            (_, Some(_), _) => self.unexpected_at(start, "", "expected a number, a duration or an aggregate"),
            (Item::Scalar(rhs), _, Some(op)) => self.scalar_arith(op_at, op, lhs, rhs).map(Item::Scalar),
            (Item::Metrics(rhs), _, Some(op)) => {
                let lhs = self.metrics_scalar(op_at, lhs.node)?;
                self.metrics_arith(op_at, op, lhs, rhs).map(Item::Metrics)
            }
            _ => self.unexpected_at(start, "", "expected a number, an aggregate, or a metrics query in parentheses"),
        }
    }

    fn metrics_operator(&mut self, lhs: Deep<MetricsExpr>, level: u8) -> Parsed<Item> {
        let (op, op_at) = (self.peek_op(), self.at);
        self.advance();
        let start = self.at;
        match (self.item_right_side(op, level)?, arith_op(op)) {
            (Item::Metrics(rhs), Some(op)) => self.metrics_arith(op_at, op, lhs, rhs).map(Item::Metrics),
            (Item::Scalar(rhs), Some(op)) => {
                let rhs = self.metrics_scalar(op_at, rhs.node)?;
                self.metrics_arith(op_at, op, lhs, rhs).map(Item::Metrics)
            }
            _ => self.unexpected_at(start, "", "expected a number or a metrics query in parentheses"),
        }
    }

    fn item_right_side(&mut self, op: &str, level: u8) -> Parsed<Item> {
        match op {
            "^" => self.deeper(|parser| parser.item_operators(level)),
            _ => self.item_operators(level + 1),
        }
    }

    fn item_operand(&mut self) -> Parsed<Item> {
        match &self.peek().kind {
            TokenKind::Op("{") => {
                let expr = self.braces()?;
                let expr = Deep { node: SpansetExpr::Filter(expr), depth: 1 };
                Ok(Item::Spansets(Spansets { expr, holds_pipeline: false, wrapped: false }))
            }
            TokenKind::Op("(") => self.parenthesis(),
            TokenKind::Op("-") => {
                let op_at = self.at;
                self.advance();
                let operand = self.deeper(Self::item_operand)?;
                match operand {
                    Item::Scalar(Deep { node: Scalar::Constant(value), depth }) if negate(&value).is_some() => {
                        let value = negate(&value).unwrap_or(value);
                        Ok(Item::Scalar(Deep { node: Scalar::Constant(value), depth }))
                    }
                    _ => self.unexpected_at(op_at, "", "only numbers and durations can be negated here"),
                }
            }
            TokenKind::Literal(value @ (Static::Int(_) | Static::Float(_) | Static::Duration(_))) => {
                let scalar = Scalar::Constant(value.clone());
                self.advance();
                Ok(Item::Scalar(Deep::leaf(scalar)))
            }
            TokenKind::Keyword("count" | "min" | "max" | "avg" | "sum") => {
                let aggregate = self.aggregate()?;
                Ok(Item::Scalar(Deep::leaf(Scalar::Aggregate(aggregate))))
            }
            _ => self.no_operand(),
        }
    }

    /// `( … )` with spansets, a pipeline, a scalar or metrics in it.
    fn parenthesis(&mut self) -> Parsed<Item> {
        self.advance();
        let inner = self.deeper(|parser| parser.sequence(true))?;
        self.expect_behind_sequence(&inner)?;
        let wrap = |stages, depth| {
            let expr = Deep { node: SpansetExpr::Pipeline(Box::new(Pipeline { stages })), depth: depth + 1 };
            Item::Spansets(Spansets { expr, holds_pipeline: true, wrapped: true })
        };
        Ok(match inner {
            Item::Spansets(spansets) => Item::Spansets(Spansets { wrapped: true, ..spansets }),
            Item::Pipeline(pipeline, depth) => wrap(pipeline.stages, depth),
            Item::Filter(filter) => wrap(vec![Stage::Aggregate(filter)], 1),
            other => other,
        })
    }

    /// The error for what cannot begin an operand.
    #[cold]
    fn no_operand(&self) -> Parsed<Item> {
        match &self.peek().kind {
            TokenKind::Keyword("coalesce") => self.unexpected("", "coalesce() needs a stage before it: { } | coalesce()"),
            TokenKind::Keyword(word @ ("topk" | "bottomk")) => {
                self.unexpected("", format!("{word} needs a metrics function before it: {{ }} | rate() | {word}(5)"))
            }
            TokenKind::Keyword(word) if self.at == 0 && stage_words().any(|known| known == *word) => {
                self.unexpected("", format!("a query begins with spansets: {{ }} | {word}"))
            }
            TokenKind::Ident(word) => {
                let note = match nearest(word, stage_words().filter(|word| *word != "with")) {
                    Some(near) => format!("did you mean {near}?"),
                    None if self.at == 0 => "a filter stands in braces, as in { span.name = \"a\" }".to_owned(),
                    None => "expected { … }, by, coalesce, select, an aggregate such as count, or a metrics function such as rate".to_owned(),
                };
                self.unexpected("", note)
            }
            TokenKind::Field(_) if self.at == 0 => self.unexpected("", "a filter stands in braces, as in { span.name = \"a\" }"),
            TokenKind::Op("!") => self.unexpected("", "whole spansets cannot be negated: put ! inside the braces, or use !> or !>>"),
            _ => self.unexpected("", "expected a filter in braces, such as { status = error }, or a stage such as count() > 1"),
        }
    }

    /// Takes the `)` behind what a parenthesis holds.
    fn expect_behind_sequence(&mut self, inner: &Item) -> Parsed<()> {
        if self.take_op(")") {
            return Ok(());
        }
        let note = match inner {
            Item::Spansets(spansets) if spansets.holds_pipeline => "an expression over pipelines in parentheses ends the query",
            Item::Metrics(_) => "expected an operator such as / or a closing )",
            _ => "expected an operator, | or a closing )",
        };
        self.unexpected("", note)
    }

    /// `{ expr }` or `{ }`.
    fn braces(&mut self) -> Parsed<FieldExpr> {
        self.expect("{")?;
        if self.take_op("}") {
            return Ok(FieldExpr::Literal(Static::Bool(true)));
        }
        let expr = self.field_expr()?.node;
        self.expect_behind_expr("}")?;
        Ok(expr)
    }

    fn aggregate(&mut self) -> Parsed<Aggregate> {
        let word = self.peek_keyword();
        self.advance();
        self.expect("(")?;
        if word == "count" {
            if self.peek_op() != ")" {
                return self.unexpected(", expecting )", "count() counts spans and takes no argument");
            }
            self.advance();
            return Ok(Aggregate::Count);
        }
        let expr = self.field_expr()?.node;
        self.expect_behind_expr(")")?;
        Ok(match word {
            "min" => Aggregate::Min(expr),
            "max" => Aggregate::Max(expr),
            "avg" => Aggregate::Avg(expr),
            _ => Aggregate::Sum(expr),
        })
    }

    fn scalar_filter(&mut self, op_at: usize, op: CompareOp, lhs: Scalar, rhs: Scalar) -> Parsed<AggregateFilter> {
        let placeholder = |op| AggregateFilter { aggregate: Aggregate::Count, op, value: Static::Int(0) };
        match (lhs, rhs) {
            (Scalar::Aggregate(aggregate), Scalar::Constant(value)) => Ok(AggregateFilter { aggregate, op, value }),
            (Scalar::Constant(_), Scalar::Constant(_)) => self.unexpected_at(op_at, "", "one side must be an aggregate such as count()"),
            (Scalar::Aggregate(aggregate), rhs) => {
                self.refuse(format!("scalar filter rhs of type ({rhs}) not yet supported: {aggregate} {} {rhs}", op.as_str()));
                Ok(placeholder(op))
            }
            (lhs, rhs) => {
                self.refuse(format!("scalar filter lhs of type ({lhs}) not yet supported: {lhs} {} {rhs}", op.as_str()));
                Ok(placeholder(op))
            }
        }
    }

    fn scalar_arith(&mut self, op_at: usize, op: ArithOp, lhs: Deep<Scalar>, rhs: Deep<Scalar>) -> Parsed<Deep<Scalar>> {
        let (Scalar::Constant(a), Scalar::Constant(b)) = (&lhs.node, &rhs.node) else {
            return self.check_depth(lhs.join(rhs, |lhs, rhs| Scalar::Binary(op, lhs, rhs)));
        };
        if matches!(op, ArithOp::Mod | ArithOp::Pow) {
            return self.unexpected_at(op_at, "", "constants outside of braces know only + - * /");
        }
        if matches!(a, Static::Duration(_)) || matches!(b, Static::Duration(_)) {
            return self.failure_at(op_at, "duration cannot be used in scalar arithmetic", "write the sum: 1500ms, not 1s + 500ms");
        }
        match arith(op, a, b) {
            Computed::Value(value) => Ok(Deep::leaf(Scalar::Constant(value))),
            Computed::ZeroDivisor => self.failure_at(op_at, "division by zero", "integers cannot be divided by 0"),
            Computed::NotNumeric => self.unexpected_at(op_at, "", "expected numbers"),
        }
    }

    fn failure_at<T>(&self, at: usize, detail: &str, note: &str) -> Parsed<T> {
        let token = &self.tokens[at];
        Err(Box::new(Diagnostic { start: token.start, end: token.end, detail: detail.into(), note: note.into() }))
    }

    fn metrics_scalar(&self, op_at: usize, scalar: Scalar) -> Parsed<Deep<MetricsExpr>> {
        match scalar {
            Scalar::Constant(value @ (Static::Int(_) | Static::Float(_))) => Ok(Deep::leaf(MetricsExpr::Scalar(value))),
            Scalar::Constant(_) => self.failure_at(op_at, "duration cannot be used in scalar arithmetic", "use a number of seconds"),
            _ => self.unexpected_at(op_at, "", "aggregates cannot be combined with metrics"),
        }
    }

    fn metrics_arith(&self, op_at: usize, op: ArithOp, lhs: Deep<MetricsExpr>, rhs: Deep<MetricsExpr>) -> Parsed<Deep<MetricsExpr>> {
        if matches!(op, ArithOp::Mod | ArithOp::Pow) {
            return self.unexpected_at(op_at, "", "metrics know only + - * /");
        }
        self.check_depth(lhs.join(rhs, |lhs, rhs| MetricsExpr::Binary { op, lhs, rhs }))
    }

    // ---- metrics

    /// A metrics function, if one stands here.
    fn metrics_function(&mut self) -> Parsed<Option<MetricsFunction>> {
        let over_time = match self.peek_keyword() {
            "min_over_time" => Some(OverTime::Min),
            "max_over_time" => Some(OverTime::Max),
            "sum_over_time" => Some(OverTime::Sum),
            "avg_over_time" => Some(OverTime::Avg),
            "histogram_over_time" => Some(OverTime::Histogram),
            _ => None,
        };
        if let Some(function) = over_time {
            self.advance();
            self.expect("(")?;
            let field = self.field_ref()?;
            self.expect(")")?;
            return Ok(Some(MetricsFunction::OverTime { function, field, by: self.grouping()? }));
        }
        match self.peek_keyword() {
            word @ ("rate" | "count_over_time") => {
                self.advance();
                self.expect("(")?;
                self.expect(")")?;
                let by = self.grouping()?;
                Ok(Some(if word == "rate" { MetricsFunction::Rate { by } } else { MetricsFunction::CountOverTime { by } }))
            }
            "quantile_over_time" => {
                self.advance();
                self.expect("(")?;
                let field = self.field_ref()?;
                self.expect(",")?;
                let mut quantiles = vec![self.quantile()?];
                while self.take_op(",") {
                    quantiles.push(self.quantile()?);
                }
                if !self.take_op(")") {
                    return self.unexpected(", expecting ) or ,", "");
                }
                Ok(Some(MetricsFunction::QuantileOverTime { field, quantiles, by: self.grouping()? }))
            }
            "compare" => self.compare().map(Some),
            _ => Ok(None),
        }
    }

    fn grouping(&mut self) -> Parsed<Vec<FieldRef>> {
        if self.peek_keyword() != "by" {
            return Ok(Vec::new());
        }
        self.advance();
        self.field_list()
    }

    fn quantile(&mut self) -> Parsed<f64> {
        let value = match self.peek().kind {
            TokenKind::Literal(Static::Int(value)) => value as f64,
            TokenKind::Literal(Static::Float(value)) => value,
            _ => return self.unexpected(", expecting INTEGER or FLOAT", "expected a quantile between 0 and 1"),
        };
        self.advance();
        Ok(value)
    }

    fn compare(&mut self) -> Parsed<MetricsFunction> {
        self.advance();
        self.expect("(")?;
        let selection = self.braces()?;
        let (mut top_n, mut window) = (COMPARE_TOP_N, None);
        if self.take_op(",") {
            top_n = self.integer()?;
            if self.take_op(",") {
                let start = self.integer()?;
                self.expect(",")?;
                window = Some((start, self.integer()?));
            }
        }
        if !self.take_op(")") {
            return self.unexpected("", "expected , and a number, or )");
        }
        Ok(MetricsFunction::Compare { selection, top_n, window })
    }

    fn integer(&mut self) -> Parsed<i64> {
        let TokenKind::Literal(Static::Int(value)) = self.peek().kind else { return self.unexpected(", expecting INTEGER", "") };
        self.advance();
        Ok(value)
    }

    /// `| topk(…)` and comparisons behind `input`, as many as follow.
    fn second_stages(&mut self, input: Deep<MetricsExpr>) -> Parsed<Deep<MetricsExpr>> {
        let mut added = Vec::new();
        loop {
            if self.take_op("|") {
                let word = self.peek_keyword();
                if !matches!(word, "topk" | "bottomk") {
                    return self
                        .unexpected(", expecting topk or bottomk", "after a metrics function only topk, bottomk and comparisons are possible");
                }
                self.advance();
                self.expect("(")?;
                let limit = self.integer()?;
                self.expect(")")?;
                added.push(if word == "topk" { SecondStage::TopK(limit) } else { SecondStage::BottomK(limit) });
            } else if let Some(op) = compare_op(self.peek_op()) {
                self.advance();
                let start = self.at;
                let Item::Scalar(Deep { node: Scalar::Constant(value), .. }) = self.item_operators(LEVEL_COMPARE + 1)? else {
                    return self.unexpected_at(start, "", "series can only be compared with a constant");
                };
                added.push(SecondStage::Filter { op, value });
            } else {
                break;
            }
        }
        if added.is_empty() {
            return Ok(input);
        }
        Ok(match input {
            Deep { node: MetricsExpr::SecondStages { input, mut stages }, depth } => {
                stages.append(&mut added);
                Deep { node: MetricsExpr::SecondStages { input, stages }, depth }
            }
            input => input.map(|input| MetricsExpr::SecondStages { input, stages: added }),
        })
    }
}

fn compare_op(op: &str) -> Option<CompareOp> {
    Some(match op {
        "=" => CompareOp::Eq,
        "!=" => CompareOp::Ne,
        "<" => CompareOp::Lt,
        "<=" => CompareOp::Le,
        ">" => CompareOp::Gt,
        ">=" => CompareOp::Ge,
        _ => return None,
    })
}

fn arith_op(op: &str) -> Option<ArithOp> {
    Some(match op {
        "+" => ArithOp::Add,
        "-" => ArithOp::Sub,
        "*" => ArithOp::Mul,
        "/" => ArithOp::Div,
        "%" => ArithOp::Mod,
        "^" => ArithOp::Pow,
        _ => return None,
    })
}

fn arith_level(op: &str) -> u8 {
    match op {
        "+" | "-" => LEVEL_ADD,
        "^" => LEVEL_POWER,
        _ => LEVEL_MULTIPLY,
    }
}

fn structural_op(op: &str) -> Option<(Relation, Form)> {
    let (form, plain) = match op.as_bytes() {
        [b'!', ..] => (Form::Negated, &op[1..]),
        [b'&', ..] => (Form::Union, &op[1..]),
        _ => (Form::Plain, op),
    };
    let relation = match plain {
        ">>" => Relation::Descendant,
        ">" => Relation::Child,
        "<<" => Relation::Ancestor,
        "<" => Relation::Parent,
        "~" => Relation::Sibling,
        _ => return None,
    };
    Some((relation, form))
}
