//! The `tags` parameter: `key=value key2="a value"`, and the TraceQL search that means the same.

use skein_engine::error::{Error, Result};

/// Reads logfmt pairs in their order. A key without `=` has an empty value. Errors: `Invalid`, with the position counted from 1.
pub(crate) fn parse_tags(text: &str) -> Result<Vec<(String, String)>> {
    let bytes = text.as_bytes();
    let bad = |what: &str, at: usize| Error::invalid(format!("invalid tags: {what} at pos {}", at + 1));
    let mut tags: Vec<(String, String)> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] <= b' ' {
            at += 1;
            continue;
        }
        let key_end = at + bytes[at..].iter().take_while(|&&byte| byte > b' ' && byte != b'=' && byte != b'"').count();
        let key = &text[at..key_end];
        if bytes.get(key_end) == Some(&b'"') {
            return Err(bad("unexpected '\"'", key_end));
        }
        if key.is_empty() {
            return Err(bad("unexpected '='", at));
        }
        at = key_end;
        let mut value = String::new();
        if bytes.get(at) == Some(&b'=') {
            at += 1;
            if bytes.get(at) == Some(&b'"') {
                let opened = at;
                at += 1;
                loop {
                    let rest = &text[at..];
                    let Some(c) = rest.chars().next() else { return Err(bad("unterminated quoted value", opened)) };
                    at += c.len_utf8();
                    match c {
                        '"' => break,
                        '\\' => {
                            let (escaped, length) = unescape(&text[at..]).ok_or_else(|| bad("invalid quoted value", opened))?;
                            value.push(escaped);
                            at += length;
                        }
                        c => value.push(c),
                    }
                }
                if bytes.get(at).is_some_and(|&byte| byte > b' ') {
                    return Err(bad("unexpected character after a quoted value", at));
                }
            } else {
                let end = at + bytes[at..].iter().take_while(|&&byte| byte > b' ').count();
                value.push_str(&text[at..end]);
                if let Some(inside) = value.find(['=', '"']) {
                    return Err(bad(&format!("unexpected '{}'", &value[inside..=inside]), at + inside));
                }
                at = end;
            }
        }
        if tags.iter().any(|(known, _)| known == key) {
            return Err(Error::invalid(format!("invalid tags: tag {key} has been set twice")));
        }
        tags.push((key.to_owned(), value));
    }
    Ok(tags)
}

/// The character that an escape stands for, and how many bytes of `text`, which follows the backslash, it takes.
fn unescape(text: &str) -> Option<(char, usize)> {
    let c = text.chars().next()?;
    let plain = match c {
        '"' | '\\' | '/' | '\'' => c,
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'u' => {
            let code = u32::from_str_radix(text.get(1..5)?, 16).ok()?;
            return Some((char::from_u32(code)?, 5));
        }
        _ => return None,
    };
    Some((plain, c.len_utf8()))
}

/// The TraceQL that finds the traces in which every tag holds somewhere and whose duration lies between the bounds, both included. A bound of 0
/// is none.
pub(crate) fn to_traceql<'a>(tags: impl IntoIterator<Item = (&'a str, &'a str)>, min_ms: u32, max_ms: u32) -> String {
    let mut parts: Vec<String> = tags.into_iter().map(|(key, value)| condition(key, value)).collect();
    if min_ms > 0 {
        parts.push(format!("{{ traceDuration >= {min_ms}ms }}"));
    }
    if max_ms > 0 {
        parts.push(format!("{{ traceDuration <= {max_ms}ms }}"));
    }
    if parts.is_empty() { "{ }".into() } else { parts.join(" && ") }
}

fn condition(key: &str, value: &str) -> String {
    let contains = |field: &str| format!("{{ {field} =~ {} }}", quoted(&format!("(?s).*{}.*", regex::escape(value))));
    match key {
        "root.name" => contains("rootName"),
        "root.service.name" => contains("rootServiceName"),
        "service.name" => contains("resource.service.name"),
        "name" => contains("name"),
        "status.code" => format!("{{ status = {} }}", if matches!(value, "ok" | "error") { value } else { "unset" }),
        _ => {
            let key = quoted(key);
            let mut values = vec![quoted(value)];
            // Attributes such as http.status_code are integers, but a tag is always text.
            if value.parse::<i64>().is_ok_and(|number| number.to_string() == value) {
                values.push(value.to_owned());
            }
            let either: Vec<String> =
                values.iter().flat_map(|value| [format!("span.{key} = {value}"), format!("resource.{key} = {value}")]).collect();
            format!("{{ {} }}", either.join(" || "))
        }
    }
}

/// `text` as a TraceQL string, or as the quoted part of an attribute name.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pairs_are_read() {
        let check = |text: &str, expected: &[(&str, &str)]| {
            let expected: Vec<(String, String)> = expected.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
            assert_eq!(parse_tags(text).unwrap(), expected, "{text}");
        };
        check("", &[]);
        check("a=b", &[("a", "b")]);
        check("  a=b   c=d ", &[("a", "b"), ("c", "d")]);
        check(r#"a="b c" d="x\"y\\z\u00e9""#, &[("a", "b c"), ("d", "x\"y\\zé")]);
        check("flag a=", &[("flag", ""), ("a", "")]);
        check("é=ü", &[("é", "ü")]);
    }

    #[test]
    fn mistakes_are_named_with_their_position() {
        let check = |text: &str, expected: &str| assert_eq!(parse_tags(text).unwrap_err().message(), expected, "{text}");
        check("=b", "invalid tags: unexpected '=' at pos 1");
        check("a=b=c", "invalid tags: unexpected '=' at pos 4");
        check("a=\"b", "invalid tags: unterminated quoted value at pos 3");
        check("a\"b=c", "invalid tags: unexpected '\"' at pos 2");
        check("a=\"\\x\"", "invalid tags: invalid quoted value at pos 3");
        check("a=1 a=2", "invalid tags: tag a has been set twice");
    }

    #[test]
    fn tags_become_spansets_that_the_trace_must_have() {
        let check = |tags: &[(&str, &str)], min, max, expected: &str| assert_eq!(to_traceql(tags.iter().copied(), min, max), expected);
        check(&[], 0, 0, "{ }");
        check(&[], 100, 200, "{ traceDuration >= 100ms } && { traceDuration <= 200ms }");
        check(&[("service.name", "a.b")], 0, 0, r#"{ resource.service.name =~ "(?s).*a\\.b.*" }"#);
        check(&[("name", "GET"), ("status.code", "what")], 0, 0, r#"{ name =~ "(?s).*GET.*" } && { status = unset }"#);
        check(&[("k\"", "v")], 0, 0, r#"{ span."k\"" = "v" || resource."k\"" = "v" }"#);
        check(&[("c", "200")], 0, 0, r#"{ span."c" = "200" || resource."c" = "200" || span."c" = 200 || resource."c" = 200 }"#);
        check(&[("c", "007")], 0, 0, r#"{ span."c" = "007" || resource."c" = "007" }"#);
    }
}
