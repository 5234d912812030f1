//! Regular expressions: TraceQL's RE2 syntax on the `regex` crate.
//!
//! The two syntaxes agree nearly everywhere. Where they differ the pattern is rewritten: `\d \w \s \b` mean ASCII in RE2; `\Q…\E` quotes;
//! `{` that begins no repetition, `[`, `&&`, `--` and `~~` inside a class, and `\<` `\>` are plain characters.

use regex::{Regex, RegexBuilder};

use crate::error::{Error, Result};

/// Most bytes a compiled pattern may take whatever its length: enough for `.{1000}`, and small enough for all patterns of a query together.
const COMPILED_BYTES_MAX: usize = 1 << 20;

/// Bytes more for each byte of the pattern, so that an alternation of thousands of words fits.
const COMPILED_BYTES_PER_BYTE: usize = 256;

/// Compiles `pattern` as TraceQL means it: it must match the whole text, and `.` matches a newline too.
/// Errors: `Invalid` for a pattern that is malformed, too large, or uses what only RE2 has (`\C`).
pub fn compile_pattern(pattern: &str) -> Result<Regex> {
    let invalid = |reason: &str| Error::invalid(format!("invalid regex: `{pattern}`: {reason}"));
    let translated = translate(pattern).map_err(invalid)?;
    let bytes_max = COMPILED_BYTES_MAX + COMPILED_BYTES_PER_BYTE * pattern.len();
    RegexBuilder::new(&format!("^(?s:{translated})$")).size_limit(bytes_max).build().map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => invalid("it is too large when compiled"),
        regex::Error::Syntax(text) => invalid(text.lines().last().unwrap_or(&text).trim_start_matches("error: ")),
        error => invalid(&error.to_string()),
    })
}

/// Rewrites RE2 syntax where the `regex` crate reads it differently.
fn translate(pattern: &str) -> Result<String, &'static str> {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        let tail = &rest[c.len_utf8()..];
        rest = match c {
            '\\' => {
                if let Some(quoted) = tail.strip_prefix('Q') {
                    let (literal, after) = quoted.split_once("\\E").unwrap_or((quoted, ""));
                    out.push_str(&regex::escape(literal));
                    after
                } else {
                    translate_escape(tail, false, &mut out)?
                }
            }
            '[' => translate_class(tail, &mut out)?,
            '{' => {
                out.push_str(if is_repetition(tail) { "{" } else { "\\{" });
                tail
            }
            c => {
                out.push(c);
                tail
            }
        };
    }
    Ok(out)
}

/// Writes the escape whose backslash was just read; returns what follows it.
fn translate_escape<'a>(tail: &'a str, in_class: bool, out: &mut String) -> Result<&'a str, &'static str> {
    let Some(letter) = tail.chars().next() else { return Err("trailing backslash at the end") };
    match letter {
        'C' => return Err("\\C (any byte) is not supported"),
        'd' => out.push_str("[0-9]"),
        'D' => out.push_str("[^0-9]"),
        'w' => out.push_str("[0-9A-Za-z_]"),
        'W' => out.push_str("[^0-9A-Za-z_]"),
        's' => out.push_str("[\\t\\n\\f\\r ]"),
        'S' => out.push_str("[^\\t\\n\\f\\r ]"),
        'b' if !in_class => out.push_str("(?-u:\\b)"),
        '<' | '>' => out.push(letter),
        _ => {
            out.push('\\');
            out.push(letter);
        }
    }
    Ok(&tail[letter.len_utf8()..])
}

/// Writes the class whose `[` was just read; returns what follows its `]`. An unclosed class is left for the compiler to refuse.
fn translate_class<'a>(tail: &'a str, out: &mut String) -> Result<&'a str, &'static str> {
    out.push('[');
    let mut rest = tail;
    if let Some(after) = rest.strip_prefix('^') {
        out.push('^');
        rest = after;
    }
    let mut first = true;
    let mut after_dash = false;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        let dash = c == '-' && !first && !after_dash;
        rest = match c {
            ']' if !first => {
                out.push(']');
                return Ok(after);
            }
            '\\' => translate_escape(after, true, out)?,
            '[' if after.starts_with(':') && after.contains(":]") => {
                let end = after.find(":]").map_or(0, |at| at + 2);
                out.push('[');
                out.push_str(&after[..end]);
                &after[end..]
            }
            '-' if dash => {
                out.push('-');
                after
            }
            '[' | ']' | '&' | '~' | '-' => {
                out.push('\\');
                out.push(c);
                after
            }
            c => {
                out.push(c);
                after
            }
        };
        first = false;
        after_dash = dash;
    }
    Ok(rest)
}

/// True when `tail`, which follows a `{`, completes a repetition such as `{2}`, `{2,}` or `{2,3}`.
fn is_repetition(tail: &str) -> bool {
    let Some((inside, _)) = tail.split_once('}') else { return false };
    let (low, high) = inside.split_once(',').unwrap_or((inside, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    !low.is_empty() && digits(low) && digits(high)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::compile_pattern;

    #[track_caller]
    fn check(pattern: &str, matching: &[&str], other: &[&str]) {
        let regex = compile_pattern(pattern).unwrap();
        for text in matching {
            assert!(regex.is_match(text), "{pattern} should match {text:?}");
        }
        for text in other {
            assert!(!regex.is_match(text), "{pattern} should not match {text:?}");
        }
    }

    #[test]
    fn patterns_are_anchored_and_dot_takes_newlines() {
        check("get", &["get"], &["get-user", "forget", "get\n"]);
        check("a|b", &["a", "b"], &["ab", "xa", "bx"]);
        check("a.b", &["a\nb", "a-b"], &["ab"]);
        check("(?i)get", &["GeT"], &["Ge"]);
        check("", &[""], &["a"]);
    }

    #[test]
    fn perl_classes_are_ascii() {
        check(r"\d+", &["12"], &["١٢"]);
        check(r"\w+", &["az_9"], &["é"]);
        check(r"[\d.]+", &["1.2"], &["1,2"]);
        check(r"[^\s]+", &["ab"], &["a b"]);
        check(r"[\D]", &["a", "é"], &["1"]);
        check(r".*\bfoo\b.*", &["a foo b", "éfoo"], &["afoo"]);
    }

    #[test]
    fn quoting_is_translated() {
        check(r"\Qa.b*\E+", &["a.b*", "a.b**"], &["axb"]);
        check(r"x\Q(", &["x("], &["x"]);
    }

    #[test]
    fn braces_without_a_repetition_are_plain() {
        check(r#".*{"id".*"#, &[r#"x{"id":1}"#], &["id"]);
        check("a{2}", &["aa"], &["a", "a{2}"]);
        check("a{2,}b{1,2}", &["aaabb"], &["ab"]);
        check("a{,2}", &["a{,2}"], &["aa"]);
    }

    #[test]
    fn class_characters_special_only_here_are_plain() {
        check("[a&&b]", &["a", "b", "&"], &["c"]);
        check("[[a]", &["[", "a"], &["b"]);
        check("[a~~b]", &["~"], &["c"]);
        check("[+--]", &["+", ",", "-"], &["."]);
        check("[]a]", &["]", "a"], &["b"]);
        check("[[:alpha:]_]+", &["ab_"], &["1"]);
        check(r"\<b\>", &["<b>"], &["b"]);
        check("[a-c-]", &["b", "-"], &["d"]);
    }

    #[test]
    fn long_lists_of_words_fit() {
        let words: Vec<String> = (0..6000).map(|number| format!("service-{number:x}-name")).collect();
        for flags in ["", "(?i)"] {
            check(&format!("{flags}{}", words.join("|")), &["service-0-name", "service-176f-name"], &["service-1770-name"]);
        }
        check(".{1000}", &["ä".repeat(1000).as_str()], &["ä"]);
    }

    #[test]
    fn bad_patterns_are_refused() {
        for pattern in ["(", "a)", "[a", "*", "\\", r"\C", "(?=a)", r"(a)\1", "(?:(?:a{1000}){1000}){1000}", "a{2,1}"] {
            let error = compile_pattern(pattern).unwrap_err().to_string();
            assert!(error.starts_with(&format!("invalid regex: `{pattern}`")), "{error}");
        }
    }
}
