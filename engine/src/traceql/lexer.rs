//! From query text to tokens, in one pass. Attribute references are one token each, because their characters follow rules of their own;
//! so are scoped intrinsics.
//!
//! A lexical error becomes a token too, the last one: what stands before it is judged first, as in Tempo.

use std::sync::Arc;

use super::{
    ast::{AttributeScope, FieldRef, INTRINSICS, Intrinsic, Kind, Static, Status},
    diagnostic::{Diagnostic, nearest},
};

/// What a token is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum TokenKind {
    /// An operator or bracket.
    Op(&'static str),
    /// A constant.
    Literal(Static),
    /// The word `nil`.
    Nil,
    /// An attribute or intrinsic.
    Field(FieldRef),
    /// A reserved word of pipelines, metrics and hints, or one that needs a colon scope.
    Keyword(&'static str),
    /// Any other word or character.
    Ident(String),
    /// The text is over.
    End,
    /// The text cannot be read from here on.
    Error {
        /// Tempo's words.
        detail: String,
        /// Advice.
        note: String,
    },
}

/// A token and the bytes it was read from.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) kind: TokenKind,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// Longest first where one begins with another.
const OPERATORS: &[&str] = &[
    "!>>", "!<<", "&>>", "&<<", "!>", "!<", "!~", "!=", "&&", "&>", "&<", "&~", "||", ">>", ">=", "<<", "<=", "=~", "=", "!", "|", ">", "<", "~",
    "+", "-", "*", "/", "%", "^", "{", "}", "(", ")", ",",
];

/// Reserved words that are neither constants nor intrinsics.
const KEYWORDS: &[&str] = &[
    "count",
    "avg",
    "max",
    "min",
    "sum",
    "by",
    "coalesce",
    "select",
    "rate",
    "count_over_time",
    "min_over_time",
    "max_over_time",
    "avg_over_time",
    "sum_over_time",
    "quantile_over_time",
    "histogram_over_time",
    "compare",
    "topk",
    "bottomk",
    "with",
    "id",
    "parentID",
    "childCount",
    "rootService",
    "traceID",
    "spanID",
    "timeSinceStart",
    "version",
];

/// Scopes of attributes, by the word in front of the dot.
const DOT_SCOPES: &[(&str, AttributeScope)] = &[
    ("span", AttributeScope::Span),
    ("resource", AttributeScope::Resource),
    ("event", AttributeScope::Event),
    ("link", AttributeScope::Link),
    ("instrumentation", AttributeScope::Instrumentation),
    ("parent", AttributeScope::Parent),
];

/// Scopes of intrinsics, by the word in front of the colon.
const COLON_SCOPES: &[&str] = &["span", "trace", "event", "link", "instrumentation"];

/// The words that are constants.
pub(super) const CONSTANT_WORDS: &[(&str, Static)] = &[
    ("true", Static::Bool(true)),
    ("false", Static::Bool(false)),
    ("error", Static::Status(Status::Error)),
    ("ok", Static::Status(Status::Ok)),
    ("unset", Static::Status(Status::Unset)),
    ("unspecified", Static::Kind(Kind::Unspecified)),
    ("internal", Static::Kind(Kind::Internal)),
    ("client", Static::Kind(Kind::Client)),
    ("server", Static::Kind(Kind::Server)),
    ("producer", Static::Kind(Kind::Producer)),
    ("consumer", Static::Kind(Kind::Consumer)),
];

/// True for characters that may stand in an attribute name without quotes.
pub(super) fn is_name_char(c: char) -> bool {
    !c.is_whitespace() && !matches!(c, '{' | '}' | '(' | ')' | '=' | '~' | '!' | '<' | '>' | '&' | '|' | '^' | ',')
}

/// Reads all of `source`. The last token is [`TokenKind::End`] or [`TokenKind::Error`], and only the last.
pub(super) fn lex(source: &str) -> Vec<Token> {
    let mut lexer = Lexer { source, at: 0 };
    let mut tokens = Vec::new();
    loop {
        let token = match lexer.token() {
            Ok(token) => token,
            Err(Diagnostic { start, end, detail, note }) => Token { kind: TokenKind::Error { detail, note }, start, end },
        };
        let last = matches!(token.kind, TokenKind::End | TokenKind::Error { .. });
        tokens.push(token);
        if last {
            return tokens;
        }
    }
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
}

type Lexed<T> = std::result::Result<T, Diagnostic>;

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let taken = &rest[..rest.find(|c| !wanted(c)).unwrap_or(rest.len())];
        self.at += taken.len();
        taken
    }

    fn fail<T>(&self, start: usize, detail: impl Into<String>, note: impl Into<String>) -> Lexed<T> {
        Err(Diagnostic { start, end: self.at.max(start), detail: detail.into(), note: note.into() })
    }

    fn skip_blank(&mut self) -> Lexed<()> {
        loop {
            self.take_while(|c| matches!(c, ' ' | '\t' | '\r' | '\n'));
            if self.rest().starts_with("//") {
                self.take_while(|c| c != '\n');
            } else if self.rest().starts_with("/*") {
                match self.rest()[2..].find("*/") {
                    Some(length) => self.at += length + 4,
                    None => {
                        let start = self.at;
                        self.at += 2;
                        return self.fail(start, "comment not terminated", "this comment needs a closing */");
                    }
                }
            } else {
                return Ok(());
            }
        }
    }

    fn token(&mut self) -> Lexed<Token> {
        self.skip_blank()?;
        let start = self.at;
        let kind = self.kind()?;
        Ok(Token { kind, start, end: self.at })
    }

    fn kind(&mut self) -> Lexed<TokenKind> {
        let Some(first) = self.peek() else { return Ok(TokenKind::End) };
        let second = self.rest().chars().nth(1);
        match first {
            '"' => self.quoted_string(),
            '`' => self.raw_string(),
            '\'' => Ok(self.single_quoted()),
            '.' if !second.is_some_and(|c| c.is_ascii_digit()) => {
                self.at += 1;
                Ok(TokenKind::Field(self.attribute(AttributeScope::Any)?))
            }
            '0'..='9' | '.' => self.number(),
            c if c == '_' || c.is_alphabetic() => self.word(),
            c => match OPERATORS.iter().find(|operator| self.rest().starts_with(**operator)) {
                Some(operator) => {
                    self.at += operator.len();
                    Ok(TokenKind::Op(operator))
                }
                None => {
                    self.at += c.len_utf8();
                    Ok(TokenKind::Ident(c.to_string()))
                }
            },
        }
    }

    fn word(&mut self) -> Lexed<TokenKind> {
        let word = self.take_while(|c| c == '_' || c.is_alphanumeric());
        if self.peek() == Some('.')
            && let Some((_, scope)) = DOT_SCOPES.iter().find(|(name, _)| *name == word)
        {
            self.at += 1;
            let (scope, nested) = match scope {
                AttributeScope::Parent if self.rest().starts_with("span.") => (AttributeScope::ParentSpan, "span.".len()),
                AttributeScope::Parent if self.rest().starts_with("resource.") => (AttributeScope::ParentResource, "resource.".len()),
                scope => (*scope, 0),
            };
            self.at += nested;
            return Ok(TokenKind::Field(self.attribute(scope)?));
        }
        if self.peek() == Some(':') && COLON_SCOPES.contains(&word) {
            self.at += 1;
            return self.scoped_intrinsic(word);
        }
        if let Some((intrinsic, ..)) = INTRINSICS.iter().find(|(_, legacy, _)| *legacy == Some(word)) {
            return Ok(TokenKind::Field(FieldRef::Intrinsic(*intrinsic)));
        }
        if let Some((_, constant)) = CONSTANT_WORDS.iter().find(|(name, _)| *name == word) {
            return Ok(TokenKind::Literal(constant.clone()));
        }
        if let Some(keyword) = KEYWORDS.iter().find(|keyword| **keyword == word) {
            return Ok(TokenKind::Keyword(keyword));
        }
        Ok(if word == "nil" { TokenKind::Nil } else { TokenKind::Ident(word.into()) })
    }

    fn scoped_intrinsic(&mut self, scope: &str) -> Lexed<TokenKind> {
        self.skip_blank()?;
        let start = self.at;
        let name = self.take_while(|c| c == '_' || c.is_alphanumeric());
        let of_scope = || {
            INTRINSICS.iter().filter_map(|(intrinsic, _, scoped)| {
                let (its_scope, its_name) = (*scoped)?.split_once(':')?;
                (its_scope == scope).then_some((*intrinsic, its_name))
            })
        };
        if let Some((intrinsic, _)) = of_scope().find(|(_, its_name)| *its_name == name) {
            return Ok(TokenKind::Field(FieldRef::Intrinsic(intrinsic)));
        }
        let unexpected = match (name, self.peek()) {
            ("", None) => "$end".to_owned(),
            ("", Some(c)) => c.to_string(),
            (name, _) if KEYWORDS.contains(&name) || INTRINSICS.iter().any(|(_, legacy, _)| *legacy == Some(name)) => name.to_owned(),
            _ => "IDENTIFIER".to_owned(),
        };
        let note = match nearest(name, of_scope().map(|(_, its_name)| its_name)) {
            Some(near) => format!("did you mean {scope}:{near}?"),
            None => format!("expected one of {}", of_scope().map(|(_, its_name)| format!("{scope}:{its_name}")).collect::<Vec<_>>().join(", ")),
        };
        self.fail(start, format!("syntax error: unexpected {unexpected}"), note)
    }

    /// Reads the name behind a scope's dot.
    fn attribute(&mut self, scope: AttributeScope) -> Lexed<FieldRef> {
        let start = self.at;
        let mut name = String::new();
        loop {
            name.push_str(self.take_while(|c| c != '"' && is_name_char(c)));
            if self.peek() != Some('"') {
                break;
            }
            let quote = self.at;
            self.at += 1;
            loop {
                name.push_str(self.take_while(|c| c != '"' && c != '\\'));
                let escaped = self.rest().chars().nth(1);
                match (self.peek(), escaped) {
                    (Some('"'), _) => break self.at += 1,
                    (Some('\\'), Some(c @ ('"' | '\\'))) => {
                        self.at += 2;
                        name.push(c);
                    }
                    (Some(_), _) => return self.fail(self.at, "invalid escape in attribute name", r#"only \" and \\ are known here"#),
                    (None, _) => return self.fail(quote, "unterminated attribute name", "this quote is never closed"),
                }
            }
        }
        if self.at == start {
            let note = "the name follows the dot without a space, as in span.name; other characters go in quotes, as in span.\"a b\"";
            return self.fail(start, "syntax error: unexpected END_ATTRIBUTE, expecting IDENTIFIER", note);
        }
        Ok(FieldRef::Attribute { scope, name })
    }

    fn quoted_string(&mut self) -> Lexed<TokenKind> {
        let start = self.at;
        self.at += 1;
        let mut bytes = Vec::new();
        loop {
            bytes.extend_from_slice(self.take_while(|c| !matches!(c, '"' | '\\' | '\n')).as_bytes());
            match self.peek() {
                Some('"') => break self.at += 1,
                Some('\\') => self.escape(&mut bytes)?,
                _ => return self.fail(start, "literal not terminated", "this string needs a closing double quote on its line"),
            }
        }
        let text = String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
        Ok(TokenKind::Literal(Static::String(text.into())))
    }

    fn escape(&mut self, bytes: &mut Vec<u8>) -> Lexed<()> {
        let start = self.at;
        let mut chars = self.rest().chars().skip(1);
        let letter = chars.next();
        let (radix, digits, skipped) = match letter {
            Some('x') => (16, 2, 2),
            Some('u') => (16, 4, 2),
            Some('U') => (16, 8, 2),
            Some('0'..='7') => (8, 3, 1),
            Some(simple) => {
                let byte = match simple {
                    'n' => b'\n',
                    't' => b'\t',
                    'r' => b'\r',
                    'a' => 7,
                    'b' => 8,
                    'f' => 12,
                    'v' => 11,
                    '\\' => b'\\',
                    '"' => b'"',
                    _ => {
                        self.at += 1 + simple.len_utf8();
                        return self.fail(start, "invalid char escape", "write \\\\ for a backslash, or use `back quotes`, which know no escapes");
                    }
                };
                bytes.push(byte);
                self.at += 2;
                return Ok(());
            }
            None => return self.fail(start, "literal not terminated", "this string needs a closing double quote"),
        };
        let code = self.rest().get(skipped..skipped + digits).and_then(|text| {
            let plain = text.bytes().all(|byte| byte.is_ascii_hexdigit());
            plain.then(|| u32::from_str_radix(text, radix).ok()).flatten()
        });
        self.at += 2;
        let Some(code) = code else { return self.fail(start, "invalid char escape", format!("{digits} digits of base {radix} are needed here")) };
        self.at = start + skipped + digits;
        if matches!(letter, Some('u' | 'U')) {
            let Some(c) = char::from_u32(code) else { return self.fail(start, "invalid char escape", "not a Unicode character") };
            bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        } else {
            let Ok(byte) = u8::try_from(code) else { return self.fail(start, "invalid char escape", "at most \\377") };
            bytes.push(byte);
        }
        Ok(())
    }

    fn raw_string(&mut self) -> Lexed<TokenKind> {
        let start = self.at;
        self.at += 1;
        let text = self.take_while(|c| c != '`');
        if self.peek().is_none() {
            self.at = start + 1;
            return self.fail(start, "literal not terminated", "this string needs a closing back quote");
        }
        self.at += 1;
        let text: Arc<str> = if text.contains('\r') { text.replace('\r', "").into() } else { text.into() };
        Ok(TokenKind::Literal(Static::String(text)))
    }

    /// `'x'` is no string; it is read whole so that the error shows it whole.
    fn single_quoted(&mut self) -> TokenKind {
        let start = self.at;
        self.at += 1;
        self.take_while(|c| c != '\'' && c != '\n');
        if self.peek() == Some('\'') {
            self.at += 1;
        }
        TokenKind::Ident(self.source[start..self.at].into())
    }

    fn number(&mut self) -> Lexed<TokenKind> {
        let start = self.at;
        let run = self.take_while(|c| c.is_ascii_digit() || matches!(c, '.' | 'n' | 's' | 'u' | 'm' | 'h' | 'µ' | 'd' | 'w' | 'y'));
        if run.contains(|c: char| c.is_alphabetic()) {
            return match parse_duration(run) {
                Some(nanos) => Ok(TokenKind::Literal(Static::Duration(nanos))),
                None => self.fail(
                    start,
                    format!("invalid duration: {run}"),
                    "write 1w2d12h (whole numbers of y w d h m s ms, falling) or 1.5h30m (h m s ms us ns)",
                ),
            };
        }
        self.at = start;
        let digits = self.take_while(|c| c.is_ascii_digit());
        let mut float = false;
        if self.peek() == Some('.') {
            float = true;
            self.at += 1;
            self.take_while(|c| c.is_ascii_digit());
        }
        let exponent = self.rest().strip_prefix(['e', 'E']).map(|rest| rest.strip_prefix(['+', '-']).unwrap_or(rest));
        if let Some(exponent) = exponent
            && exponent.starts_with(|c: char| c.is_ascii_digit())
        {
            float = true;
            self.at = self.source.len() - exponent.len();
            self.take_while(|c| c.is_ascii_digit());
        }
        let text = &self.source[start..self.at];
        if float {
            return match text.parse::<f64>() {
                Ok(value) if value.is_finite() => Ok(TokenKind::Literal(Static::Float(value))),
                _ => self.fail(start, format!("float out of range: {text}"), ""),
            };
        }
        if digits.starts_with('0') && digits.contains(['8', '9']) {
            return self.fail(start, format!("invalid digit in octal literal: {text}"), "write the number without the leading zero");
        }
        match text.parse::<i64>() {
            Ok(value) => Ok(TokenKind::Literal(Static::Int(value))),
            Err(_) => self.fail(start, format!("integer out of range: {text}"), "integers have 64 bits; minInt and maxInt name the ends"),
        }
    }
}

/// Reads `1w2d12h` (whole numbers of falling units) or Go's `1.5h30m`, in nanoseconds.
pub(super) fn parse_duration(text: &str) -> Option<i64> {
    parse_falling_duration(text).or_else(|| parse_go_duration(text))
}

fn parse_falling_duration(mut text: &str) -> Option<i64> {
    const MILLI: i64 = 1_000_000;
    const HOUR: i64 = 3_600_000 * MILLI;
    const UNITS: [(&str, i64); 7] =
        [("y", 365 * 24 * HOUR), ("w", 7 * 24 * HOUR), ("d", 24 * HOUR), ("h", HOUR), ("m", 60_000 * MILLI), ("s", 1000 * MILLI), ("ms", MILLI)];
    let mut total = 0_i64;
    let mut larger = 0;
    while !text.is_empty() {
        let (digits, unit, rest) = split_number(text, |c| c.is_ascii_digit())?;
        let index = larger + UNITS[larger..].iter().position(|(name, _)| *name == unit)?;
        total = total.checked_add(digits.parse::<i64>().ok()?.checked_mul(UNITS[index].1)?)?;
        larger = index + 1;
        text = rest;
    }
    Some(total)
}

fn parse_go_duration(mut text: &str) -> Option<i64> {
    const UNITS: [(&str, i128); 7] =
        [("ns", 1), ("us", 1000), ("µs", 1000), ("ms", 1_000_000), ("s", 1_000_000_000), ("m", 60_000_000_000), ("h", 3_600_000_000_000)];
    let mut total = 0_i64;
    while !text.is_empty() {
        let (number, unit, rest) = split_number(text, |c| c.is_ascii_digit() || c == '.')?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0 || fraction.contains('.') {
            return None;
        }
        let scale = UNITS.iter().find(|(name, _)| *name == unit)?.1;
        let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let fraction = &fraction[..fraction.len().min(18)];
        let parts = if fraction.is_empty() { 0 } else { fraction.parse::<i128>().ok()? * scale / 10_i128.pow(fraction.len() as u32) };
        total = total.checked_add(i64::try_from(i128::from(whole) * scale + parts).ok()?)?;
        text = rest;
    }
    Some(total)
}

/// Splits `12.5ms…` into number, unit and what follows; neither may be empty.
fn split_number(text: &str, of_number: impl Fn(char) -> bool) -> Option<(&str, &str, &str)> {
    let (number, rest) = text.split_at(text.find(|c| !of_number(c))?);
    let (unit, rest) = rest.split_at(rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len()));
    (!number.is_empty() && !unit.is_empty()).then_some((number, unit, rest))
}

impl Token {
    /// The token's name in Tempo's messages.
    pub(super) fn name(&self) -> String {
        match &self.kind {
            TokenKind::Op(text) | TokenKind::Keyword(text) => (*text).into(),
            TokenKind::Literal(Static::String(_)) => "STRING".into(),
            TokenKind::Literal(Static::Int(_)) => "INTEGER".into(),
            TokenKind::Literal(Static::Float(_)) => "FLOAT".into(),
            TokenKind::Literal(Static::Duration(_)) => "DURATION".into(),
            TokenKind::Literal(word) => word.to_string(),
            TokenKind::Nil => "nil".into(),
            TokenKind::Field(FieldRef::Attribute { scope, .. }) => scope.prefix().into(),
            TokenKind::Field(FieldRef::Intrinsic(intrinsic)) => intrinsic.as_str().into(),
            TokenKind::Ident(_) => "IDENTIFIER".into(),
            TokenKind::End | TokenKind::Error { .. } => "$end".into(),
        }
    }
}

/// Words that stand where a field or constant is expected, for suggestions.
pub(super) fn field_words() -> impl Iterator<Item = &'static str> {
    let intrinsics = INTRINSICS.iter().filter(|(intrinsic, ..)| *intrinsic != Intrinsic::Parent);
    intrinsics
        .flat_map(|(_, legacy, scoped)| [*legacy, *scoped])
        .flatten()
        .chain(CONSTANT_WORDS.iter().map(|(word, _)| *word))
        .chain(["nil", "minInt", "maxInt"])
}

/// Words that stand in front of an attribute's dot, for suggestions.
pub(super) fn scope_words() -> impl Iterator<Item = &'static str> {
    DOT_SCOPES.iter().map(|(word, _)| *word).filter(|word| *word != "parent")
}

/// The reserved words of pipelines, metrics and hints, for suggestions.
pub(super) fn stage_words() -> impl Iterator<Item = &'static str> {
    KEYWORDS[..20].iter().copied()
}
