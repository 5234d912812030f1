//! Filters of the tag endpoints, which arrive while somebody types: what can be used of them is used, the rest is ignored.

use super::{
    ast::{AttributeScope, FieldExpr, FieldRef, Static},
    fold::fold,
    lexer::{Token, TokenKind, lex},
    parser::parse_field_expr,
    validate::validate_filter,
};

/// The usable part of the first `{ … }` in `text`; `None` when nothing restricts the spans.
///
/// Repaired: a comparison without its value and an operator without its operand count as true; missing closing brackets are added.
/// Ignored: what follows the first filter, and conditions on attributes without a scope. Any other fault makes the whole filter unusable.
pub fn tag_filter(text: &str) -> Option<FieldExpr> {
    let mut tokens = lex(text);
    let open = tokens.iter().position(|token| token.kind != TokenKind::Op("("))?;
    if tokens[open].kind != TokenKind::Op("{") {
        return None;
    }
    tokens.drain(..=open);
    let close = tokens.iter().position(|token| matches!(token.kind, TokenKind::Op("}" | "|") | TokenKind::End | TokenKind::Error { .. }))?;
    tokens.truncate(close);
    let expr = fold(parse_field_expr(text, repair(tokens, text.len())).ok()?);
    validate_filter(&expr).ok()?;
    let usable = keep_scoped(expr);
    (usable != FieldExpr::Literal(Static::Bool(true))).then_some(usable)
}

/// The number of groups of `&&` conditions that `||` splits `expr` into; saturates.
pub fn condition_groups(expr: &FieldExpr) -> usize {
    match expr {
        FieldExpr::And(lhs, rhs) => condition_groups(lhs).saturating_mul(condition_groups(rhs)),
        FieldExpr::Or(lhs, rhs) => condition_groups(lhs).saturating_add(condition_groups(rhs)),
        _ => 1,
    }
}

/// Puts `true` where a condition is unfinished and closes open parentheses.
fn repair(tokens: Vec<Token>, end: usize) -> Vec<Token> {
    let at_end = |kind| Token { kind, start: end, end };
    let always = || at_end(TokenKind::Literal(Static::Bool(true)));
    let mut repaired: Vec<Token> = Vec::with_capacity(tokens.len() + 2);
    let mut condition_start = 0;
    let mut outer_starts = Vec::new();
    for token in tokens.into_iter().chain([at_end(TokenKind::End)]) {
        if matches!(token.kind, TokenKind::Op("&&" | "||" | ")") | TokenKind::End) {
            let unfinished = match repaired[condition_start..].last().map(|last| &last.kind) {
                None | Some(TokenKind::Op("=" | "!=" | "<" | "<=" | ">" | ">=" | "=~" | "!~" | "!")) => true,
                Some(_) => false,
            };
            if unfinished {
                repaired.truncate(condition_start);
                repaired.push(always());
            }
        }
        match token.kind {
            TokenKind::Op("(") => {
                repaired.push(token);
                outer_starts.push(std::mem::replace(&mut condition_start, repaired.len()));
            }
            TokenKind::Op(")") => {
                repaired.push(token);
                condition_start = outer_starts.pop().unwrap_or(condition_start);
            }
            TokenKind::End => {
                repaired.extend(outer_starts.iter().map(|_| at_end(TokenKind::Op(")"))));
                repaired.push(token);
                break;
            }
            TokenKind::Op("&&" | "||") => {
                repaired.push(token);
                condition_start = repaired.len();
            }
            _ => repaired.push(token),
        }
    }
    repaired
}

/// `expr` with every condition that reads an attribute without a scope taken for true.
fn keep_scoped(expr: FieldExpr) -> FieldExpr {
    let always = FieldExpr::Literal(Static::Bool(true));
    match expr {
        FieldExpr::And(lhs, rhs) => match (keep_scoped(*lhs), keep_scoped(*rhs)) {
            (lhs, rhs) if rhs == always => lhs,
            (lhs, rhs) if lhs == always => rhs,
            (lhs, rhs) => FieldExpr::And(Box::new(lhs), Box::new(rhs)),
        },
        FieldExpr::Or(lhs, rhs) => match (keep_scoped(*lhs), keep_scoped(*rhs)) {
            (lhs, rhs) if lhs == always || rhs == always => always,
            (lhs, rhs) => FieldExpr::Or(Box::new(lhs), Box::new(rhs)),
        },
        condition => {
            let mut unscoped = false;
            condition.visit_fields(&mut |field| unscoped |= matches!(field, FieldRef::Attribute { scope: AttributeScope::Any, .. }));
            if unscoped { always } else { condition }
        }
    }
}
