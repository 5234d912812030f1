//! Environment variables in configuration files (`-config.expand-env`): the `${…}` forms that Tempo expands, before YAML is read.
//!
//! | form | becomes |
//! |---|---|
//! | `${V}` | the value, nothing when unset |
//! | `${V:-d}`, `${V=d}`, `${V:=d}` | the value, `d` when it is empty or unset |
//! | `${#V}` | its length in characters |
//! | `${V^}`, `${V^^}`, `${V,}`, `${V,,}` | first or all characters in upper or lower case |
//! | `${V:n}`, `${V:n:m}` | from character `n` on, at most `m` of them |
//! | `${V#p}`, `${V##p}`, `${V%p}`, `${V%%p}` | without the text `p` at the start or the end |
//! | `${V/a/b}`, `${V//a/b}`, `${V/#a/b}`, `${V/%a/b}` | first, every, leading, trailing `a` replaced by `b` |
//! | `$${…}` | `${…}` itself |
//!
//! `$V` without braces stays as it is. Patterns are plain text, not globs.

/// Replaces every form in `text`; `variable` looks a name up. Errors: the text of a form that is not closed or not known.
pub fn expand(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    expand_with(text, &variable)
}

fn expand_with(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if let Some(before) = rest[..at].strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let inner_bytes = closing_brace(&rest[at + 2..]).ok_or_else(|| {
            let shown: String = rest[at..].chars().take_while(|c| *c != '\n').collect();
            format!("variable expression is not closed: {shown}")
        })?;
        let inner = &rest[at + 2..at + 2 + inner_bytes];
        out.push_str(&evaluate(inner, variable)?);
        rest = &rest[at + 2 + inner_bytes + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Bytes before the brace that closes an expression, counting the ones that open inside it.
fn closing_brace(text: &str) -> Option<usize> {
    let mut depth = 0;
    let bytes = text.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'{' if at > 0 && bytes[at - 1] == b'$' => depth += 1,
            b'}' if depth == 0 => return Some(at),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn evaluate(inner: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let unknown = || format!("variable expression is not known: ${{{inner}}}");
    if let Some(name) = inner.strip_prefix('#') {
        return Ok(value_of(name, variable).ok_or_else(unknown)?.chars().count().to_string());
    }
    let name_bytes = inner.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inner.len());
    let (name, operation) = inner.split_at(name_bytes);
    let value = value_of(name, variable).ok_or_else(unknown)?;
    let argument = |skip: usize| expand_with(&operation[skip..], variable);
    Ok(match operation {
        "" => value,
        "^^" => value.to_uppercase(),
        ",," => value.to_lowercase(),
        "^" => first_changed(&value, |c| c.to_uppercase().collect()),
        "," => first_changed(&value, |c| c.to_lowercase().collect()),
        _ if operation.starts_with(":-") || operation.starts_with(":=") => or_default(value, argument(2)?),
        _ if operation.starts_with('=') => or_default(value, argument(1)?),
        _ if operation.starts_with("##") => without_prefix(value, &argument(2)?),
        _ if operation.starts_with('#') => without_prefix(value, &argument(1)?),
        _ if operation.starts_with("%%") => without_suffix(value, &argument(2)?),
        _ if operation.starts_with('%') => without_suffix(value, &argument(1)?),
        _ if operation.starts_with('/') => replaced(&value, &argument(1)?).ok_or_else(unknown)?,
        _ if operation.starts_with(':') => slice(&value, &argument(1)?).ok_or_else(unknown)?,
        _ => return Err(unknown()),
    })
}

fn value_of(name: &str, variable: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let valid = !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    valid.then(|| variable(name).unwrap_or_default())
}

fn or_default(value: String, default: String) -> String {
    if value.is_empty() { default } else { value }
}

fn first_changed(value: &str, change: impl Fn(char) -> String) -> String {
    let mut chars = value.chars();
    chars.next().map(|first| change(first) + chars.as_str()).unwrap_or_default()
}

fn without_prefix(value: String, prefix: &str) -> String {
    value.strip_prefix(prefix).map(str::to_owned).unwrap_or(value)
}

fn without_suffix(value: String, suffix: &str) -> String {
    value.strip_suffix(suffix).map(str::to_owned).unwrap_or(value)
}

fn replaced(value: &str, argument: &str) -> Option<String> {
    let (mode, argument) = match argument.chars().next()? {
        mode @ ('/' | '#' | '%') => (mode, &argument[1..]),
        _ => (' ', argument),
    };
    let (from, to) = argument.split_once('/').unwrap_or((argument, ""));
    if from.is_empty() {
        return None;
    }
    Some(match mode {
        '/' => value.replace(from, to),
        '#' => value.strip_prefix(from).map_or_else(|| value.to_owned(), |rest| format!("{to}{rest}")),
        '%' => value.strip_suffix(from).map_or_else(|| value.to_owned(), |rest| format!("{rest}{to}")),
        _ => value.replacen(from, to, 1),
    })
}

fn slice(value: &str, argument: &str) -> Option<String> {
    let (start, length) = argument.split_once(':').map_or((argument, None), |(start, length)| (start, Some(length)));
    let start: usize = start.trim().parse().ok()?;
    let length: usize = length.map_or(Some(usize::MAX), |length| length.trim().parse().ok())?;
    Some(value.chars().skip(start).take(length).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let variable = |name: &str| match name {
            "HOST" => Some("tempo.example".to_owned()),
            "EMPTY" => Some(String::new()),
            "PATH_" => Some("a/b/a".to_owned()),
            _ => None,
        };
        assert_eq!(expand(text, variable).as_deref(), Ok(expected), "{text}");
    }

    #[test]
    fn values_and_defaults() {
        check("a: ${HOST}:1", "a: tempo.example:1");
        check("${MISSING}|${EMPTY}|", "||");
        check("${MISSING:-x y}${EMPTY:-e}${HOST:-no}", "x yetempo.example");
        check("${MISSING=a}${MISSING:=b}", "ab");
        check("${MISSING:-${HOST}}", "tempo.example");
        check("$HOST stays, $$ too", "$HOST stays, $$ too");
        check("$${HOST}", "${HOST}");
    }

    #[test]
    fn forms_that_change_the_value() {
        check("${#HOST} ${HOST^} ${HOST^^} ${HOST,,}", "13 Tempo.example TEMPO.EXAMPLE tempo.example");
        check("${HOST:6} ${HOST:0:5} ${HOST:99}", "example tempo ");
        check("${HOST#tempo.} ${HOST%%.example} ${HOST#x}", "example tempo tempo.example");
        check("${PATH_/a/x} ${PATH_//a/x} ${PATH_/#a/x} ${PATH_/%a/x}", "x/b/a x/b/x x/b/a a/b/x");
    }

    #[test]
    fn what_is_not_a_form_is_an_error() {
        for bad in ["${", "a ${HOST", "${}", "${1A}", "${HOST!}", "${HOST:x}"] {
            assert!(expand(bad, |_| None).is_err(), "{bad}");
        }
    }
}
