//! Errors with a place in the query: Tempo's one-line text first, then the source line, a marker under the offending token, and advice.

use crate::error::Error;

/// Characters of the source line shown on each side of the offending token.
const EXCERPT_CHARS: usize = 60;

/// What is wrong with `source[start..end]`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Diagnostic {
    /// Byte offset of the offending token.
    pub(super) start: usize,
    /// Byte offset behind it.
    pub(super) end: usize,
    /// Tempo's words.
    pub(super) detail: String,
    /// What was expected, or what the author may have meant; empty when there is nothing to say.
    pub(super) note: String,
}

impl Diagnostic {
    /// Renders the error for the client. Lines and columns count from 1, columns in characters, at the token's beginning.
    pub(super) fn render(&self, source: &str) -> Error {
        let before = &source[..self.start];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = before.matches('\n').count() + 1;
        let column = source[line_start..self.start].chars().count() + 1;
        let line_end = source[self.start..].find('\n').map_or(source.len(), |at| self.start + at);

        let shown_start =
            source[line_start..self.start].char_indices().rev().take(EXCERPT_CHARS).last().map_or(self.start, |(at, _)| line_start + at);
        let shown_end = source[self.start..line_end].char_indices().nth(EXCERPT_CHARS).map_or(line_end, |(at, _)| self.start + at);
        let opening = if shown_start > line_start { "…" } else { "" };
        let closing = if shown_end < line_end { "…" } else { "" };
        let excerpt: String = source[shown_start..shown_end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let indent = opening.chars().count() + source[shown_start..self.start].chars().count();
        let width = source[self.start..self.end.clamp(self.start, shown_end)].chars().count().max(1);

        let mut message = format!("parse error at line {line}, col {column}: {}\n  {opening}{}{closing}\n  ", self.detail, excerpt.trim_end());
        message.extend(std::iter::repeat_n(' ', indent));
        message.extend(std::iter::repeat_n('^', width));
        if !self.note.is_empty() {
            message.push(' ');
            message.push_str(&self.note);
        }
        Error::invalid(message)
    }
}

/// The candidate most like `word`, if one is near enough to be what was meant.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let chars = word.chars().count();
    if chars > 40 {
        return None;
    }
    let allowed = (chars / 3).max(1);
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        let distance = strsim::damerau_levenshtein(&word, &candidate.to_lowercase());
        if distance <= allowed && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}
