//! Tests of the whole front end: text in, printed tree or error out.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // the bounds on parsing are bounds on real time

use std::time::Duration;

use proptest::prelude::*;

use super::{ast::INTRINSICS, fold::fold_query, lexer::parse_duration, parser::STEPS, *};
use crate::{clock::Stopwatch, error::ErrorKind};

/// Parses `query` and compares the printed tree, which must parse to the same tree again. An `expected` that begins with `!` is the
/// beginning of the error instead.
#[track_caller]
fn check(query: &str, expected: &str) {
    match (parse(query), expected.strip_prefix('!')) {
        (Ok(parsed), None) => {
            assert_eq!(parsed.to_string(), expected, "printed form of {query}");
            assert_eq!(parse(expected).unwrap(), parsed, "parsed again: {expected}");
        }
        (Ok(parsed), Some(error)) => panic!("{query} gave {parsed}, expected the error {error}"),
        (Err(error), None) => panic!("{query} failed: {error}"),
        (Err(error), Some(expected)) => {
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().starts_with(expected), "error of {query}:\n{error}\nexpected\n{expected}");
        }
    }
}

#[track_caller]
fn check_same(query: &str) {
    check(query, query);
}

#[track_caller]
fn check_filter(expr: &str, expected: &str) {
    check(&format!("{{ {expr} }}"), &if expected.starts_with('!') { expected.to_owned() } else { format!("{{ {expected} }}") });
}

/// The error must be of the syntax.
#[track_caller]
fn check_syntax_error(query: &str) {
    check(query, "!parse error at line ");
}

/// The error must be of validation, not of the syntax.
#[track_caller]
fn check_refused(query: &str, error: &str) {
    check(query, &format!("!{error}"));
    assert!(!parse(query).unwrap_err().to_string().contains("parse error"), "{query}");
}

#[track_caller]
fn only_expr(query: &str) -> FieldExpr {
    match parse(query).unwrap().body {
        QueryBody::Search(Pipeline { mut stages }) if stages.len() == 1 => match stages.remove(0) {
            Stage::Spansets(SpansetExpr::Filter(expr)) => expr,
            other => panic!("{query}: {other}"),
        },
        _ => panic!("{query}"),
    }
}

// ---- errors

/// Texts recorded from Tempo, which answers the first line. (Its line 0 for an empty attribute name is line 1 here.)
#[test]
fn syntax_errors_begin_as_in_tempo() {
    check("{ foo }", "!parse error at line 1, col 3: unknown identifier: foo\n");
    check("{ span.a = }", "!parse error at line 1, col 12: syntax error: unexpected }\n");
    check("{ .a = \"x\" ", "!parse error at line 1, col 12: syntax error: unexpected $end\n");
    check("{ .a } | count()", "!parse error at line 1, col 17: syntax error: unexpected $end\n");
    check("{ .a } | foo() > 1", "!parse error at line 1, col 10: syntax error: unexpected IDENTIFIER\n");
    check("{ .a } > ", "!parse error at line 1, col 10: syntax error: unexpected $end, expecting { or (\n");
    check("{ .a } | rate() | rate()", "!parse error at line 1, col 19: syntax error: unexpected rate, expecting topk or bottomk\n");
    check("{ .a } | quantile_over_time(duration)", "!parse error at line 1, col 37: syntax error: unexpected ), expecting ,\n");
    check("{ .a } | topk(3)", "!parse error at line 1, col 10: syntax error: unexpected topk\n");
    check("{ kind = banana }", "!parse error at line 1, col 10: unknown identifier: banana\n");
    check("{ .a = 'x' }", "!parse error at line 1, col 8: unknown identifier: 'x'\n");
    check("{ span. = 1 }", "!parse error at line 1, col 8: syntax error: unexpected END_ATTRIBUTE, expecting IDENTIFIER\n");
    check("{. a}", "!parse error at line 1, col 3: syntax error: unexpected END_ATTRIBUTE, expecting IDENTIFIER\n");
    check("", "!parse error at line 1, col 1: syntax error: unexpected $end\n");
}

#[test]
fn validation_errors_are_those_of_tempo() {
    check("{ status = \"error\" }", "!binary operations must operate on the same type: status = `error`");
    check("{ duration > \"5s\" }", "!binary operations must operate on the same type: duration > `5s`");
    check("{ 1 + true = 2 }", "!binary operations must operate on the same type: 1 + true");
    check("{ .a } | avg(name) > 1", "!aggregate field expressions must resolve to a number type: avg(name)");
    check("{ .a } | sum(status) > 1", "!aggregate field expressions must resolve to a number type: sum(status)");
    check("{ name =~ \"(\" }", "!invalid regex: `(`");
    check("{ .a } | by(1)", "!grouping field expressions must reference the span: by(1)");
    check("{ !duration }", "!illegal operation for the given type: !duration");
    check("{ span:parentID = nil && duration > 1m }", "!span:parentID=nil is not valid because intrinsics cannot be nil");
}

#[track_caller]
fn check_error_text(query: &str, expected: &[&str]) {
    assert_eq!(parse(query).unwrap_err().to_string().lines().collect::<Vec<_>>(), expected);
}

#[test]
fn errors_show_the_place_and_advice() {
    check_error_text(
        "{ knd = client }",
        &["parse error at line 1, col 3: unknown identifier: knd", "  { knd = client }", "    ^^^ did you mean kind?"],
    );
    check_error_text(
        "{ true }\n  && { resouce.app = 1 }\n&& { }",
        &["parse error at line 2, col 8: unknown identifier: resouce", "    && { resouce.app = 1 }", "         ^^^^^^^ did you mean resource.app?"],
    );
    check_error_text(
        "{ trace:rootServiceName = \"a\" }",
        &[
            "parse error at line 1, col 9: syntax error: unexpected rootServiceName",
            "  { trace:rootServiceName = \"a\" }",
            "          ^^^^^^^^^^^^^^^ did you mean trace:rootService?",
        ],
    );
    let long = format!("{{ .{} = ä ; .b }}", "x".repeat(300));
    let text = parse(&long).unwrap_err().to_string();
    assert!(text.starts_with("parse error at line 1, col 307: unknown identifier: ä\n  …xxx"), "{text}");
    assert!(text.lines().nth(2).unwrap().starts_with(&format!("{}^", " ".repeat(63))), "{text}");
}

#[track_caller]
fn check_advice(query: &str, advice: &str) {
    let text = parse(query).unwrap_err().to_string();
    assert!(text.ends_with(advice), "{text}");
}

#[test]
fn advice_names_what_was_meant() {
    check_advice("{ Status = error }", "did you mean status?");
    check_advice("{ TRUE }", "did you mean true?");
    check_advice("{ kind = sever }", "did you mean server?");
    check_advice("{ trace.rootNam = \"a\" }", "did you mean trace:rootName?");
    check_advice("{ childCount > 1 }", "did you mean span:childCount?");
    check_advice("{ app.user = 1 }", "an attribute begins with its scope: did you mean .app.user, span.app.user or resource.app.user?");
    check_advice("{ .a = 1 and .b = 2 }", "the operator is &&");
    check_advice("{ .a == 1 }", "equality is written with one =");
    check_advice("{ } | cuont() > 1", "did you mean count?");
    check_advice("!{ .a }", "whole spansets cannot be negated: put ! inside the braces, or use !> or !>>");
}

#[test]
fn identifiers_of_tags() {
    let check = |name: &str, expected: &str| assert_eq!(parse_identifier(name).unwrap().to_string(), expected);
    check("resource.service.name", "resource.service.name");
    check("span.\"attr name\"", "span.\"attr name\"");
    check(".foo", ".foo");
    check("name", "name");
    check("span:name", "name");
    check("span.\"a\\\"{}\"", "span.\"a\\\"{}\"");
    let fails = |name: &str, error: &str| {
        let text = parse_identifier(name).unwrap_err().to_string();
        assert!(text.starts_with(error), "{text}");
    };
    fails("app.user.id", "failed to parse identifier app.user.id: parse error at line 1, col 2: unknown identifier: app\n");
    fails("name = 1", "failed to parse identifier name = 1: parse error at line 1, col 7: syntax error: unexpected =");
    fails("", "failed to parse identifier : parse error at line 1, col 2: syntax error: unexpected }");
    fails(".a } | {", "failed to parse identifier");
}

// ---- lexical structure

#[test]
fn white_space_and_comments_separate() {
    check("{\t.a\r\n=1 }", "{ .a = 1 }");
    check("{ .a = 1 // rest\n}", "{ .a = 1 }");
    check("/* x */ { /* { */ .a /* } */ = 1 } // |", "{ .a = 1 }");
    check("{ .path/*x*/ = 1 }", "{ .path/*x*/ = 1 }");
    check_syntax_error("// only a comment");
    check_syntax_error("/* only */");
    check_syntax_error("{ /* open }");
    check_syntax_error(" \n ");
}

#[test]
fn attribute_names() {
    check_same("{ .a }");
    check_same("{ span.a = resource.b }");
    check_same("{ (event.a && link.b) && instrumentation.c }");
    check_filter("span.resource.tier", "span.resource.tier");
    check_filter(".span.tier", ".span.tier");
    check_filter("span.a+span.b > 1", "span.a+span.b > 1");
    check_filter("span.a + span.b > 1", "(span.a + span.b) > 1");
    check_filter("span.x-1 = 2", "span.x-1 = 2");
    check_filter("span.x -1 = 2", "(span.x - 1) = 2");
    check_filter("span.x^2 = 9", "(span.x ^ 2) = 9");
    check_filter("span.\"user agent\"", "span.\"user agent\"");
    check_filter("resource.a\" b c\"d", "resource.\"a b cd\"");
    check_filter(".\"weird=key\"", ".\"weird=key\"");
    check_filter("span.\"\"", "span.\"\"");
    check_filter("span.\"a\\\\b\\\"\"", "span.\"a\\\\b\\\"\"");
    check_syntax_error("{ span.\"a\\n\" }");
    check_syntax_error("{ span.\"a }");
    check_filter("span.3xx", "span.3xx");
    check_filter(".\"3xx\"", ".\"3xx\"");
    check_syntax_error("{ .3xx }");
    check_filter("span.äöü🎉", "span.äöü🎉");
    check_filter("span.a:b;c[0]#d@e.f'g%h*i/j", "span.a:b;c[0]#d@e.f'g%h*i/j");
    check_filter("span.name && .count && resource.by && span.true", "((span.name && .count) && resource.by) && span.true");
    check_filter("..a", "..a");
    check_syntax_error("{ span .a }");
    check_syntax_error("{ span. a }");
    check_syntax_error("{ trace.a }");
    check_syntax_error("{ resource:a }");
}

#[test]
fn intrinsics_have_two_spellings() {
    for (intrinsic, legacy, scoped) in INTRINSICS {
        for spelling in [legacy, scoped].into_iter().flatten() {
            if *intrinsic != Intrinsic::Parent {
                assert_eq!(
                    only_expr(&format!("{{ {spelling} != nil }}")),
                    FieldExpr::Exists(Box::new(FieldExpr::Field(FieldRef::Intrinsic(*intrinsic))))
                );
            }
        }
    }
    check_filter("trace:rootService = span:name", "rootServiceName = name");
    check_filter("span: name = \"a\"", "name = `a`");
    for wrong in
        ["trace:rootServiceName", "trace:name", "span:nestedSetLeft", "span:traceID", "childCount", "id", "rootService", "span :name", "span:"]
    {
        check_syntax_error(&format!("{{ {wrong} != nil }}"));
    }
}

#[test]
fn strings() {
    check_filter(r#".a = "\n\t\r\\\"\a\b\f\v""#, ".a = \"\\n\t\\r\\\\\\\"\u{7}\u{8}\u{c}\u{b}\"");
    check_filter(r#".a = "\x41\101\u00e4\U0001F389\xc3\xa4""#, ".a = `AAä🎉ä`");
    check_filter(".a = `\\d+\n\"`", ".a = `\\d+\n\"`");
    check_filter(".a = `a\rb`", ".a = `ab`");
    check_filter(".a = \"`\"", ".a = \"`\"");
    for wrong in [r#""\q""#, r#""\'""#, "\"a\nb\"", "\"a", "`a", r#""\xZ1""#, r#""\ud800""#, r#""\400""#, r#""\u12""#, "'a'", "\"\\"] {
        check_syntax_error(&format!("{{ .a = {wrong} }}"));
    }
}

#[test]
fn numbers() {
    check_filter(".a = 010", ".a = 10");
    check_filter(".a = 9223372036854775807", ".a = 9223372036854775807");
    check_filter(".a = maxInt", ".a = 9223372036854775807");
    check_filter(".a = minInt", ".a = minInt");
    check_filter(".a = -minInt", ".a = minInt");
    check_filter(".a = -1", ".a = -1");
    check_filter(".a = 1.", ".a = 1.0");
    check_filter(".a = .5", ".a = 0.5");
    check_filter(".a = 2.5e-3", ".a = 0.0025");
    check_filter(".a = 1e3", ".a = 1000.0");
    check_filter(".a = 1E+9", ".a = 1e+09");
    check_filter(".a = 1234567.5", ".a = 1.2345675e+06");
    check_filter(".a = 0.00001", ".a = 1e-05");
    check_filter(".a = -0.0", ".a = -0.0");
    for wrong in ["08", "0x1F", "1_000", "9223372036854775808", "1e999", "NaN", "+1", "1.2.3", "1e", "1e3s"] {
        check_syntax_error(&format!("{{ .a = {wrong} }}"));
    }
}

#[test]
fn durations() {
    let check = |text: &str, expected: &str| check_filter(&format!("duration = {text}"), &format!("duration = {expected}"));
    check("1w2d", "216h0m0s");
    check("1d12h", "36h0m0s");
    check("2h45m", "2h45m0s");
    check("1y", "8760h0m0s");
    check("1s500ms", "1.5s");
    check("90m", "1h30m0s");
    check("1.5h", "1h30m0s");
    check("30m1h", "1h30m0s");
    check("1ms250us", "1.25ms");
    check("100µs", "100µs");
    check("1ns", "1ns");
    check("0s", "0s");
    check(".5s", "500ms");
    check("-2s", "-2s");
    check("1.5m", "1m30s");
    check("1.000000001s", "1.000000001s");
    for wrong in ["1.5d", "1d12.5h", "2h 45m", "1e3s", "5S", "5M", "1s250", "100μs", "1d1d", "1h1d", "300000y", "1mss"] {
        check_syntax_error(&format!("{{ duration = {wrong} }}"));
    }
    assert_eq!(parse_duration("9223372036854775807ns"), Some(i64::MAX));
    assert_eq!(parse_duration("9223372036854775808ns"), None);
    assert_eq!(parse_duration(""), Some(0));
}

#[test]
fn constants_and_nil() {
    check_filter("status = error || status = ok || status = unset", "((status = error) || (status = ok)) || (status = unset)");
    for kind in ["unspecified", "internal", "server", "client", "producer", "consumer"] {
        check_filter(&format!("kind != {kind}"), &format!("kind != {kind}"));
    }
    check_filter(".a = true", ".a = true");
    check_filter(".a = nil", ".a = nil");
    check_filter("nil = .a", ".a = nil");
    check_filter("nil != .a", ".a != nil");
    check_filter("nil = nil", "false");
    check_filter("nil != nil", "false");
    check_filter("1 = nil", "false");
    check_filter("\"x\" != nil", "true");
    check_filter("(.a + 1) != nil", "(.a + 1) != nil");
    check_filter(".a = .b = nil", "(.a = .b) = nil");
    for wrong in [".a > nil", "nil", "nil + 1 = 2", ".a =~ nil", "nil > .a", "!nil", "-nil"] {
        check_syntax_error(&format!("{{ {wrong} }}"));
    }
}

#[test]
fn what_is_not_in_the_language_is_a_syntax_error() {
    for query in [
        "{ .a == 1 }",
        "{ .a <> 1 }",
        "{ .a & .b }",
        "{ .a ; }",
        "{ .a ? 1 }",
        "{ .a in 1 }",
        "{ .a not in 1 }",
        "{ .a and .b }",
        "{ .a or .b }",
        "{ not .a }",
        "{ exists .a }",
        "{ .a = [1] }",
        "{ .a = +1 }",
        "{ .a !> 1 }",
        "{ ~.a }",
        "{ } | RATE()",
        "{ Status = error }",
        "{ TRUE }",
        "{ .a ",
        ".a }",
        "{ .a }}",
        "{{ .a }}",
        "{ .a } { .b }",
        "{ () }",
        "{ (.a }",
        "{ .a) }",
        "{ .a = }",
        "{ = 1 }",
        "name = \"a\"",
        "{ .a =! = 1 }",
    ] {
        check_syntax_error(query);
    }
}

// ---- field expressions

#[test]
fn precedence() {
    check_filter(".a || .b && .c", "(.a || .b) && .c");
    check_filter(".a && .b || .c", "(.a && .b) || .c");
    check_filter(".a && .b = 1", ".a && (.b = 1)");
    check_filter(".a = 1 = true", "(.a = 1) = true");
    check_filter(".a = .b + 1", ".a = (.b + 1)");
    check_filter("-.a * 2 < 0", "(-(.a * 2)) < 0");
    check_filter("-.a + 2 > 0", "((-.a) + 2) > 0");
    check_filter("!.a = .b", "(!.a) = .b");
    assert_eq!(only_expr("{ !.a * .b }").to_string(), "!(.a * .b)");
    check_filter("!.a + .b = 1", "!illegal operation for the given types: (!.a) + .b");
    check_filter(".a - .b - .c > 0", "((.a - .b) - .c) > 0");
    check_filter(".a / .b * .c % .d > 0", "(((.a / .b) * .c) % .d) > 0");
    check_filter(".a + .b * .c > 0", "(.a + (.b * .c)) > 0");
    check_filter(".a * .b ^ .c > 0", "(.a * (.b ^ .c)) > 0");
    check_filter(".a ^ .b ^ .c > 0", "(.a ^ (.b ^ .c)) > 0");
    check_filter("-.a ^ 2 < 0", "(-(.a ^ 2)) < 0");
    check_filter(".a ^ -.b * .c > 0", "(.a ^ (-(.b * .c))) > 0");
    check_filter("2 * -.a + 1 > 0", "((2 * (-.a)) + 1) > 0");
    check_filter("- - .a > 0", "(-(-.a)) > 0");
    assert_eq!(only_expr("{ !!.a }").to_string(), "!(!.a)");
    check_filter("(.a || .b) && (.c || .d)", "(.a || .b) && (.c || .d)");
    check_filter(".a =~ \"x\" && .b !~ `y`", "(.a =~ `x`) && (.b !~ `y`)");
    check_filter(".a =~ \"x\" = false", "(.a =~ `x`) = false");
    check_filter(".a && .b + 1 = 2", ".a && ((.b + 1) = 2)");
}

#[test]
fn all_comparisons_and_arithmetic() {
    for op in ["=", "!=", "<", "<=", ">", ">="] {
        check_same(&format!("{{ .a {op} 1 }}"));
        check_same(&format!("{{ 1 {op} .a }}"));
    }
    for op in ["+", "-", "*", "/", "%", "^"] {
        check_same(&format!("{{ (.a {op} 1) = .b }}"));
        check_same(&format!("{{ ((-1) {op} .a) = .b }}").replace("(-1) +", "-1 +").replace("(-1) -", "-1 -"));
    }
}

#[test]
fn constants_fold() {
    check_filter("2 + 2 = 4", "true");
    check_filter("1 = 2", "false");
    check_filter("1 = 1.0", "true");
    check_filter(".a = 1 + 2 * 3 - 4", ".a = 3");
    check_filter(".a = 7 / 2", ".a = 3");
    check_filter(".a = -7 % 3", ".a = -1");
    check_filter(".a = 2 ^ 10", ".a = 1024");
    check_filter(".a = 2 ^ -1", ".a = 0");
    check_filter(".a = 1 / 0", ".a = (1 / 0)");
    check_filter(".a = 1.0 / 0", ".a = (1.0 / 0)");
    check_filter(".a = maxInt + 1", ".a = minInt");
    check_filter("1s + 500ms = 1500ms", "true");
    check_filter("duration > 1s + 500ms", "duration > 1.5e+09");
    check_filter("!true", "false");
    check_filter("true && false || true", "true");
    check_filter("\"abc\" =~ \"a.c\"", "true");
    check_filter("\"abc\" !~ \"b\"", "true");
    check_filter("\"a\" < \"b\"", "true");
    check_filter("error = ok", "false");
    check_filter(".a && 1 = 1", ".a && true");
    check("{}", "{ true }");
    check("{ }", "{ true }");
    check("{ false }", "{ false }");
}

#[test]
fn trace_ids_lose_leading_zeros() {
    check_filter("trace:id = \"00ab\"", "trace:id = `ab`");
    check_filter("\"00ab\" != trace:id", "`ab` != trace:id");
    check_filter("trace:id = \"0000\"", "trace:id = ``");
    check_filter("trace:id =~ \"00.*\"", "trace:id =~ `00.*`");
    check_filter("span:id = \"00ab\"", "span:id = `00ab`");
    check_filter("link:traceID = \"00ab\"", "link:traceID = `00ab`");
}

#[test]
fn fields_know_their_key() {
    assert_eq!(parse_identifier("span.http.url").unwrap().attribute_key(), "http.url");
    assert_eq!(parse_identifier("trace:rootService").unwrap().attribute_key(), "rootServiceName");
    let query = parse("{ .a = 1 } >> { name = rootName } | by(span.b) | select(kind, resource.c) | avg(duration) > 1s").unwrap();
    let mut fields = Vec::new();
    query.visit_fields(&mut |field| fields.push(field.to_string()));
    assert_eq!(fields, [".a", "name", "rootName", "span.b", "kind", "resource.c", "duration"]);
    let query = parse("({ .a } | max_over_time(span.b) by (name)) / ({ } | compare({ .c }))");
    assert!(query.is_err());
    let query = parse("({ .a } | max_over_time(span.b) by (name)) / ({ .c } | rate())").unwrap();
    let mut fields = Vec::new();
    query.visit_fields(&mut |field| fields.push(field.to_string()));
    assert_eq!(fields, [".a", "span.b", "name", ".c"]);
}

// ---- validation: specification section 3.2

#[test]
fn operands_must_have_one_type() {
    for filter in
        ["duration = \"2s\"", "kind = \"client\"", "status = 1", "name > 7", "name =~ 4", "duration =~ \"5\"", "true && 1", "1 = \"a\"", "ok = 1"]
    {
        let error = parse(&format!("{{ {filter} }}")).unwrap_err().to_string();
        let expected = if filter == "name =~ 4" { "pattern must be" } else { "binary operations must operate on the same type: " };
        assert!(error.starts_with(expected), "{filter}: {error}");
    }
}

#[test]
fn operators_must_fit_the_type() {
    check_refused("{ name + \"x\" = \"y\" }", "illegal operation for the given types: name + `x`");
    check_refused("{ status > ok }", "illegal operation for the given types: status > ok");
    check_refused("{ true < false }", "illegal operation for the given types: true < false");
    check_refused("{ .lo < 5 < .hi }", "illegal operation for the given types: (.lo < 5) < .hi");
    check_refused("{ .a && 1 }", "illegal operation for the given types: .a && 1");
    check_refused("{ !7 }", "illegal operation for the given type: !7");
    check_refused("{ -\"a\" = 1 }", "illegal operation for the given type: -`a`");
    check_refused("{ -true }", "illegal operation for the given type: -true");
}

#[test]
fn filters_must_be_boolean() {
    for filter in ["5", "\"a\"", ".a + 1", "duration", "name", "-.a + 1", "ok"] {
        check_refused(&format!("{{ {filter} }}"), "span filter field expressions must resolve to a boolean: {");
    }
    check_same("{ .a }");
    check_same("{ .a + .b }");
    check_same("{ instrumentation:name }");
}

#[test]
fn patterns_must_be_valid_literals() {
    check_refused("{ .a =~ .b }", "pattern must be a literal string: .a =~ .b");
    check_refused("{ .a !~ 4 }", "pattern must be a literal string: .a !~ 4");
    check_refused("{ \"x\" =~ .a }", "pattern must be a literal string");
    check_refused("{ .a =~ \"(\" }", "invalid regex: `(`");
    check_refused("{ .a =~ `(?=x)` }", "invalid regex: `(?=x)`");
    check_same("{ .a =~ `(?i)x|y` }");
    let many = vec![".a =~ `x`"; 257].join(" || ");
    check_refused(&format!("{{ {many} }}"), "more than 256 regular expressions");
}

#[test]
fn some_fields_are_never_nil() {
    check_refused("{ name = nil }", "name=nil is not valid because intrinsics cannot be nil");
    check_refused("{ resource.service.name = nil }", "resource.service.name=nil is not valid because");
    check_same("{ name != nil }");
    check_same("{ .service.name = nil }");
    check_same("{ resource.env = nil }");
}

#[test]
fn parent_is_refused() {
    for query in [
        "{ parent = 1 }",
        "{ parent.a = 1 }",
        "{ parent.span.a = 1 }",
        "{ parent.resource.a }",
        "{ parent != nil }",
        "{ } | by(parent.a)",
        "{ } | select(parent.a)",
        "{ } | max(parent.a) > 1",
        "{ } | max_over_time(parent.a)",
        "{ } | rate() by (parent)",
    ] {
        check_refused(query, "parent not yet supported");
    }
    check_same("{ true } | rate() by (parent.h, parent.span.h, parent.resource.h, parent.\"span.h\")");
}

#[test]
fn accepted_though_surprising() {
    for filter in ["duration > 1", "traceDuration = 1.5", "instrumentation:version > 3", ".a = ok", "event:timeSinceStart < 0s", "name > `m`"] {
        check_filter(filter, filter);
    }
}

#[test]
fn aggregates_are_checked() {
    check_refused("{ } | max(name) > 1", "aggregate field expressions must resolve to a number type: max(name)");
    check_refused("{ } | sum(3) > 1", "aggregate field expressions must reference the span: sum(3)");
    check_refused("{ } | by(3)", "grouping field expressions must reference the span: by(3)");
    check_refused("{ } | 3 < count()", "scalar filter lhs of type (3) not yet supported");
    check_refused("{ } | max(.a) > min(.a)", "scalar filter rhs of type (min(.a)) not yet supported");
    check_refused("{ } | count() + 1 > 2", "scalar filter lhs of type ((count()) + (1)) not yet supported");
    check_refused("{ } | 1 + count() > 2", "scalar filter lhs");
    check_refused("{ } | count() ^ 2 > 2", "scalar filter lhs");
    check_refused("{ } | 2 % count() > 2", "scalar filter lhs");
    check_syntax_error("({ } | count()) > 1");
}

#[test]
fn metrics_are_checked() {
    check_same("{ true } | rate() by (.a, .b, .c, .d, .e)");
    check_refused("{ } | rate() by (.a, .b, .c, .d, .e, .f)", "metrics group by 6 values not yet supported");
    check_refused("{ } | max_over_time(.x) by (.a, .b, .c, .d, .e, .f)", "metrics group by 6 values not yet supported");
    for function in ["avg_over_time(.x)", "histogram_over_time(.x)", "quantile_over_time(.x, 0.5)"] {
        check_same(&format!("{{ true }} | {function} by (.a, .b, .c, .d)"));
        check_refused(&format!("{{ }} | {function} by (.a, .b, .c, .d, .e)"), "metrics group by 5 values not yet supported");
    }
    check_refused("{ } | quantile_over_time(duration, 1.2)", "quantile must be between 0 and 1: 1.2");
    check_syntax_error("{ } | quantile_over_time(duration, -0.1)");
    for arguments in ["0", "1001", "10, 0, 5", "10, 5, 5", "10, 6, 5"] {
        check_refused(&format!("{{ }} | compare({{ }}, {arguments})"), "compare()");
    }
    check_syntax_error("{ } | compare({ }, 10, 5)");
    check_refused("{ } | compare({ 1 })", "span filter field expressions");
    check_refused("{ } | compare({ }) | topk(2)", "compare() cannot be combined");
    check_refused("{ } | compare({ }) > 2", "compare() cannot be combined");
    check_refused("({ } | compare({ })) * 2", "compare() cannot be combined");
    check_syntax_error("{ } | compare({ }) by (.a)");
    check_refused("{ } | rate() | topk(0)", "the limit must be greater than 0: | topk(0)");
    check_syntax_error("{ } | rate() | topk(-1)");
    check_syntax_error("{ } | topk(2)");
}

// ---- spansets and pipelines

#[test]
fn spanset_operators() {
    for op in [">>", ">", "<<", "<", "~", "!>>", "!>", "!<<", "!<", "!~", "&>>", "&>", "&<<", "&<", "&~", "&&", "||"] {
        check_same(&format!("{{ .a }} {op} {{ .b }}"));
        check(&format!("{{.a}}{op}{{.b}}"), &format!("{{ .a }} {op} {{ .b }}"));
    }
    check("{ .a } || { .b } && { .c }", "({ .a } || { .b }) && { .c }");
    check("{ .a } && { .b } >> { .c }", "{ .a } && ({ .b } >> { .c })");
    check("{ .a } > { .b } >> { .c }", "({ .a } > { .b }) >> { .c }");
    check("{ .a } > ({ .b } >> { .c })", "{ .a } > ({ .b } >> { .c })");
    check("(({ .a }))", "{ .a }");
    check("({ .a } && { .b }) | count() > 1", "{ .a } && { .b } | count() > 1");
    check("{ .a } && { .b } | count() > 1", "{ .a } && { .b } | count() > 1");
    for wrong in [
        "!{ .a }",
        "{ .a } = { .b }",
        "{ .a } + { .b }",
        "{ .a } && 1",
        "{ .a } && count() > 1",
        "{ .a } >>",
        ">> { .a }",
        "({ .a }",
        "()",
        "{ .a } )",
    ] {
        check_syntax_error(wrong);
    }
}

#[test]
fn parenthesised_pipelines() {
    check_same("({ .a } | count() > 2) >> ({ .b })");
    check_same("({ .a }) && ({ .b } | count() > 1)");
    check("(({ .a })) && ({ .b } | count() > 1)", "({ .a }) && ({ .b } | count() > 1)");
    check_same("({ .a } && { .b }) || ({ .c } | by(.d))");
    check("({ .a }) && ({ .b }) && ({ .c } | count() > 1)", "({ .a } && { .b }) && ({ .c } | count() > 1)");
    check_same("(({ .a } | count() > 2) && ({ .b })) || ({ .c } | select(.d))");
    check_same("(count() > 1) && (by(.a))");
    check_same("({ .a } | count() > 2)");
    for wrong in [
        "({ .a } | count() > 1) && { .b }",
        "{ .a } && ({ .b } | count() > 1)",
        "({ .a } | count() > 2) >> { .b }",
        "{ .a } && { .b } && ({ .c } | by(.d))",
        "(({ .a } | count() > 2) && ({ .b })) | count() > 1",
        "({ .a } | count() > 1) | rate()",
        "({ .a } | count() > 1) && ({ .b }) | rate()",
        "{ .a } | ({ .b } | count() > 1)",
        "{ .a } | ({ .b } | count() > 1) && ({ .c })",
        "({ .a } | rate()) && ({ .b })",
    ] {
        check_syntax_error(wrong);
    }
}

#[test]
fn pipeline_stages() {
    check_same("{ .a } | { .b } | by(.c) | coalesce() | select(.d, span.e, name) | count() > 1 | avg(duration) >= 1s");
    check_same("by(.a)");
    check_same("select(.a)");
    check_same("count() > 10");
    check_same("by(duration > 1s) | count() > 1");
    check("({ .a }) | { .b } && { .c }", "{ .a } | { .b } && { .c }");
    for aggregate in ["count()", "min(.a)", "max(duration)", "avg(.a + .b)", "sum(span.c)"] {
        for op in ["=", "!=", "<", "<=", ">", ">="] {
            check_same(&format!("{{ .a }} | {aggregate} {op} 3"));
        }
    }
    check("{ } | (count()) > 1", "{ true } | count() > 1");
    check("{ } | count() > (1)", "{ true } | count() > 1");
    check("{ } | count() > 1 + 2 * 3", "{ true } | count() > 7");
    check("{ } | count() > -(1 + 2) - 1", "{ true } | count() > -4");
    check("{ } | count() > -9223372036854775807 - 1", "{ true } | count() > (-9223372036854775807 - 1)");
    check("{ } | avg(duration) > -1.5s", "{ true } | avg(duration) > -1.5s");
    check("{ } | avg(.a) > 1.0 / 0", "{ true } | avg(.a) > (1.0 / 0)");
    check("{ } | avg(duration) > 1s + 1s", "!parse error at line 1, col 26: duration cannot be used in scalar arithmetic");
    check("{ } | avg(duration) > 1s + 500ms", "!parse error");
    for wrong in [
        "coalesce()",
        "rate()",
        "{ } | coalesce(.a)",
        "{ } | by(.a, .b)",
        "{ } | by()",
        "{ } | by(count())",
        "{ } | count(.x) > 1",
        "{ } | avg() > 1",
        "{ } | select()",
        "{ } | select(.a + 1)",
        "{ } | select(1)",
        "{ } | count() =~ 1",
        "{ } | count() > 1 && count() > 2",
        "{ } | count() > 5 % 2",
        "{ } | count() > 2 ^ 2",
        "{ } | count() > minInt",
        "{ } | count() > \"a\"",
        "{ } | count() > ok",
        "{ } | count() > 1 / 0",
        "{ } | 1 > 2",
        "{ } |",
        "{ } | count()",
        "{ } | 1",
        "| { }",
        "{ } || | { }",
        "{ } | .a",
        "1 + 1",
        "{ } | count() > { .a }",
        "{ } | -count() > 1",
    ] {
        check_syntax_error(wrong);
    }
}

// ---- metrics and hints

#[test]
fn metrics_functions() {
    check_same("{ true } | rate()");
    check_same("{ true } | count_over_time() by (.a, name)");
    for function in ["min", "max", "sum", "avg", "histogram"] {
        check_same(&format!("{{ .a }} | {function}_over_time(duration) by (resource.service.name)"));
        check_syntax_error(&format!("{{ .a }} | {function}_over_time()"));
        check_syntax_error(&format!("{{ .a }} | {function}_over_time(1)"));
    }
    check("{ } | quantile_over_time(duration, .5, .9, 1) by(name)", "{ true } | quantile_over_time(duration, 0.5, 0.9, 1.0) by (name)");
    check("{ } | compare({ .a })", "{ true } | compare({ .a }, 10)");
    check("{ } | compare({ }, 20, 100, 200)", "{ true } | compare({ true }, 20, 100, 200)");
    check("({ .a }) | rate()", "{ .a } | rate()");
    check_same("{ .a } && { .b } | by(.c) | count() > 1 | rate()");
    for wrong in [
        "{ } | rate() | { .a }",
        "{ } | rate() | rate()",
        "{ } | rate(.a)",
        "{ } | rate() by ()",
        "{ } | rate() by (.a + 1)",
        "{ } | rate() by .a",
        "{ } | rate() | count() > 1",
        "{ } | compare(.a)",
        "{ } | compare({ }, 1.5)",
    ] {
        check_syntax_error(wrong);
    }
}

#[test]
fn metrics_second_stages() {
    check_same("{ true } | rate() by (name) > 0.5 | topk(3) <= 9 | bottomk(1)");
    check("{ } | rate() > 1 + 2 * -3", "{ true } | rate() > -5");
    check("{ } | max_over_time(duration) > 2500ms", "{ true } | max_over_time(duration) > 2.5s");
    for op in ["=", "!=", "<", "<=", ">", ">="] {
        check_same(&format!("{{ true }} | rate() {op} 1"));
    }
    for wrong in [
        "{ } | rate() | topk()",
        "{ } | rate() | topk(1.5)",
        "{ } | rate() | topk(2) by (name)",
        "{ } | rate() | > 5",
        "{ } | rate() > \"a\"",
        "{ } | rate() > count()",
        "{ } | rate() =~ 5",
    ] {
        check_syntax_error(wrong);
    }
}

#[test]
fn metrics_math() {
    check_same("({ .a } | rate()) / ({ true } | rate())");
    check("(({ .a } | rate()))", "{ .a } | rate()");
    check_same("(({ .a } | rate()) + ({ .b } | rate())) * ({ .c } | rate())");
    check("({ .a } | rate()) + ({ .b } | rate()) * ({ .c } | rate())", "({ .a } | rate()) + (({ .b } | rate()) * ({ .c } | rate()))");
    check("({ .a } | rate()) - ({ .b } | rate()) - 1", "(({ .a } | rate()) - ({ .b } | rate())) - 1");
    check("100 * ({ .a } | rate()) / ({ .b } | rate())", "(100 * ({ .a } | rate())) / ({ .b } | rate())");
    check("1/2 * ({ .a } | rate())", "0 * ({ .a } | rate())");
    check("({ .a } | rate()) * 1/2", "(({ .a } | rate()) * 1) / 2");
    check("-2 * ({ .a } | rate())", "-2 * ({ .a } | rate())");
    check("(1 + 2) * ({ .a } | rate())", "3 * ({ .a } | rate())");
    check("1.0/0 * ({ .a } | rate())", "(1.0 / 0) * ({ .a } | rate())");
    check_same("100 - ({ .a } | rate())");
    check("(({ .a } | rate()) + ({ .b } | rate())) | topk(2)", "({ .a } | rate()) + ({ .b } | rate()) | topk(2)");
    check_same("({ .a } | rate()) / ({ .b } | rate()) > 0.1 | topk(3)");
    check_same("({ .a } | rate() by (name) | topk(5)) * 60");
    check("({ .a } | rate() > 1) | topk(5)", "{ .a } | rate() > 1 | topk(5)");
    for wrong in [
        "(({ .a } | rate()) > 5) * 2",
        "((({ .a } | rate()) + 1) | topk(2)) * 2",
        "{ .a } | rate() * 2",
        "{ .a } | rate() + { .b } | rate()",
        "({ .a } | rate()) % 2",
        "({ .a } | rate()) ^ 2",
        "-({ .a } | rate())",
        "({ .a } | rate()) && ({ .b } | rate())",
        "1s * ({ .a } | rate())",
        "({ .a } | rate()) * 1s",
        "1/0 * ({ .a } | rate())",
        "2 > ({ .a } | rate())",
        "({ .a } | rate()) > ({ .b } | rate())",
        "({ .a } | rate()) + { .b }",
        "({ .a } | rate()) + count()",
        "({ .a } | rate() with (a=1)) * 2",
        "({ .a } | rate()) | { .b }",
        "({ .a } | rate()) | rate()",
    ] {
        check_syntax_error(wrong);
    }
}

#[test]
fn hints() {
    check("{ } with (most_recent=true)", "{ true } with (most_recent=true)");
    check("{ } | rate() with(sample=0.1) with (exemplars=5)", "{ true } | rate() with (exemplars=5)");
    check(
        "{ } with (a = 1, b=\"x\", c=1s, d=ok, e=client, f=minInt, g=maxInt, h=.5)",
        "{ true } with (a=1, b=`x`, c=1s, d=ok, e=client, f=minInt, g=9223372036854775807, h=0.5)",
    );
    check("{ } with (anything=1)", "{ true } with (anything=1)");
    check_same("({ .a } | rate()) + 1 with (a=1)");
    for wrong in [
        "{ } with",
        "{ } with ()",
        "{ } with (name=\"x\")",
        "{ } with (id=1)",
        "{ } with (a=nil)",
        "{ } with (a=-1)",
        "{ } with (a)",
        "{ } with (a=b)",
        "{ } with (;=1)",
        "with (a=1)",
        "{ } with (a=1) | rate()",
    ] {
        check_syntax_error(wrong);
    }
}

// ---- lenient filters

#[test]
fn lenient_filters_keep_what_is_usable() {
    let check = |text: &str, expected: &str| {
        let printed = tag_filter(text).map_or("-".to_owned(), |expr| expr.to_string());
        assert_eq!(printed, expected, "{text}");
    };
    check("", "-");
    check("{}", "-");
    check("{ }", "-");
    check("{", "-");
    check("{ true }", "-");
    check("{ span.a = 1 }", "span.a = 1");
    check("{ span.a = 1 && resource.b = \"x\" }", "(span.a = 1) && (resource.b = `x`)");
    check("{ span.a = 1 || resource.b = \"x\" }", "(span.a = 1) || (resource.b = `x`)");
    check("{ span.x = && resource.y=\"z\" }", "resource.y = `z`");
    check("{ resource.y=\"z\" && span.x = }", "resource.y = `z`");
    check("{ resource.y=\"z\" && span.x =", "resource.y = `z`");
    check("{ resource.y=\"z\" && name = }", "resource.y = `z`");
    check("{ resource.y=\"z\" && span.x =~ }", "resource.y = `z`");
    check("{ resource.y=\"z\" && ", "resource.y = `z`");
    check("{ resource.y=\"z\" && span.", "resource.y = `z`");
    check("{ resource.y=\"z\" && span.x = \"un", "resource.y = `z`");
    check("{ (resource.y=\"z\" && (span.x = ", "resource.y = `z`");
    check("{ (resource.y=\"z\" || span.x = 1) && (span.z + 1) > ", "(resource.y = `z`) || (span.x = 1)");
    check("{ span.x = 1 || span.y = }", "-");
    check("{ .a = 1 }", "-");
    check("{ .a = 1 && span.b = 2 }", "span.b = 2");
    check("{ .a = 1 || span.b = 2 }", "-");
    check("{ span.a = 1 } && { span.b = 2 }", "span.a = 1");
    check("({ span.a = 1 }) || { span.b = 2 }", "span.a = 1");
    check("{ span.a = 1 } | count() > ", "span.a = 1");
    check("{ span.a = 1 | count() > 2", "span.a = 1");
    check("{ status = error && kind = server }", "(status = error) && (kind = server)");
    check("{ status = \"error\" }", "-");
    check("{ span.a =~ \"(\" }", "-");
    check("{ foo = 1 && span.a = 1 }", "-");
    check("{ span.a = 1 ))", "-");
    check("span.a = 1", "-");
    check("}}}", "-");
    assert_eq!(condition_groups(&tag_filter("{ (span.a || span.b) && (span.c || span.d) && span.e }").unwrap()), 4);
}

// ---- bounds

#[track_caller]
fn check_linear(query: &str) {
    let before = STEPS.get();
    let _ = parse(query);
    let _ = tag_filter(query);
    let _ = parse_identifier(query);
    // A lenient filter may be parsed twice, and its repaired text once more.
    let steps = STEPS.get() - before;
    assert!(steps <= 5 * (query.len() + 10), "{} bytes took {steps} steps", query.len());
}

#[test]
fn nesting_is_bounded() {
    for unit in [
        "(",
        "!",
        "-",
        "{ (",
        "({",
        "- (",
        "1 ^ ",
        "nil = ",
        ".a + ",
        ".a = ",
        "!(",
        "{ } > ",
        "{ } && ",
        "({ }) && ({ } | count() > 1) || ",
        "1 - ",
        "({ } | rate()) + ",
    ] {
        for (before, after) in [("", ""), ("{ ", ".a }"), ("{ } | ", "{ }"), ("{ } | count() > ", "1")] {
            let query = format!("{before}{}{after}", unit.repeat(100_000 / unit.len()));
            check_linear(&query);
        }
    }
    let deep = |levels: usize| format!("{{ {}.a{} }}", "(".repeat(levels), ")".repeat(levels));
    check(&deep(128), "{ .a }");
    check(&deep(129), "!parse error at line 1, col 132: expression nested deeper than 128 levels");
    let sum = |terms: usize| format!("{{ {} = 1 }}", vec![".a"; terms].join(" + "));
    assert!(parse(&sum(127)).is_ok());
    check(&sum(200), "!parse error");
    let chain = |terms: usize| vec!["{ .a }"; terms].join(" > ");
    assert!(parse(&chain(128)).is_ok());
    check(&chain(129), "!parse error");
}

#[test]
fn long_chains_of_and_and_or_are_fine() {
    for op in ["&&", "||"] {
        let terms: Vec<String> = (0..5000).map(|id| format!("trace:id = \"{id:x}\"")).collect();
        let query = format!("{{ {} }}", terms.join(&format!(" {op} ")));
        let parsed = parse(&query).unwrap();
        assert_eq!(parse(&parsed.to_string()).unwrap(), parsed);
        let mut fields = 0;
        parsed.visit_fields(&mut |_| fields += 1);
        assert_eq!(fields, 5000);
        assert!(parse(&vec!["{ .a }"; 5000].join(op)).is_ok());
    }
    check("{ 1 = 2 || .a || .b }", "{ (false || .a) || .b }");
}

#[test]
fn the_largest_query_parses_in_linear_time() {
    check_linear(&format!("{{ .a = \"{}\" }}", "x".repeat(130_000)));
    check_linear(&format!("{{ .{} }}", "x".repeat(130_000)));
    check_linear(&format!("{{ .a }} {}", "| { .a } ".repeat(14_000)));
    check_linear(&"/**/".repeat(32_000));
    check_linear(&format!("{{ {} }}", "\"a\"".repeat(40_000)));
    check_linear(&format!("{{ }} | select({}", ".a,".repeat(40_000)));
    check_linear(&format!("{{ }} | rate() {}", "> 1 ".repeat(30_000)));
    check_linear(&"9".repeat(130_000));
    check_linear(&"1s".repeat(65_000));
    check_linear(&format!("{{ .a =~ \"{}\" }}", "(a{900}){900}|".repeat(10_000)));
}

/// A corpus that touches every construct.
const CORPUS: &[&str] = &[
    "{ }",
    "{ .a = 1 }",
    "{ span.\"user agent\" =~ `(?i)moz.*` && resource.service.name != \"x\\n\" }",
    "{ .a || .b && !.c }",
    "{ -.a * 2 < 0 && .b ^ 2 > 1.5e-3 }",
    "{ span.a + span.b % 3 - 1 / .c >= 9223372036854775807 }",
    "{ duration > 1d12h || traceDuration <= 1.5s }",
    "{ status = error && kind = server && statusMessage != \"\" }",
    "{ .a = nil && nil != .b }",
    "{ trace:id = \"00ab\" && span:id = \"0011223344556677\" && span:parentID != \"\" }",
    "{ event:name = \"exception\" && event:timeSinceStart > 2ms && event.k = 1 }",
    "{ link:traceID = \"a\" || link:spanID = \"b\" || link.c }",
    "{ instrumentation:name = \"x\" && instrumentation:version =~ \"1.*\" && instrumentation.z = true }",
    "{ nestedSetParent < 0 && nestedSetLeft > 1 && nestedSetRight < 9 && span:childCount > 2 }",
    "{ rootName = \"a\" && rootServiceName = trace:rootService && trace:rootName = name }",
    "{ name =~ \"a|b\" && name !~ \"c\" }",
    "{ parent.span.a = 1 && parent.resource.b = parent.c }",
    "{ .a } && { .b } || { .c }",
    "{ .a } >> { .b } > { .c }",
    "{ .a } << { .b } < { .c } ~ { .d }",
    "{ .a } !>> { .b } !> { .c } !<< { .d } !< { .e } !~ { .f }",
    "{ .a } &>> { .b } &> { .c } &<< { .d } &< { .e } &~ { .f }",
    "({ .a } && { .b }) | { .c }",
    "({ .a } | count() > 2) && ({ .b } | max(duration) > 1s)",
    "({ .a }) || ({ .b } | by(.c)) >> ({ .d } | select(.e))",
    "{ .a } | by(resource.service.name) | count() > 5 | coalesce()",
    "{ .a } | avg(duration) > 100ms | min(span.x) = 1 | sum(.y) < 3.5 | max(.z) != -2",
    "{ .a } | select(.b, span.c, name, trace:rootService)",
    "by(duration > 1s) | count() >= 1 + 2 * 3",
    "count() > 10",
    "select(name)",
    "{ } | 3 < count() + 1",
    "{ } | rate()",
    "{ } | count_over_time() by (name, span.b)",
    "{ } | min_over_time(duration) by (.a)",
    "{ } | max_over_time(span.x) > 2500ms",
    "{ } | sum_over_time(.x) | topk(5)",
    "{ } | avg_over_time(.x) by (kind) | bottomk(2) <= 9",
    "{ } | histogram_over_time(duration) by (status)",
    "{ } | quantile_over_time(duration, .5, 0.99, 1) by (name)",
    "{ } | compare({ status = error }, 10, 1, 2)",
    "({ status = error } | rate() by (name)) / ({ } | rate() by (name)) > 0.1",
    "100 * ({ .a } | rate()) - -2.5 + (1 + 2)",
    "(({ .a } | rate()) + ({ .b } | rate() | topk(3))) | topk(2)",
    "{ } with (most_recent=true)",
    "{ } | rate() with (sample=0.1, exemplars=5) with (a=\"b\")",
    "{ /* c */ .a // d\n }",
    "{ \"\\x41\\101\\u00e4\" = `raw` }",
    "{ .a = minInt && .b = maxInt && .c = -minInt }",
    "{ 2 + 2 = 4 && (1 = nil) = false }",
    "{ .ä🎉 = 'x' }",
    "{ span.list[0] = 1 && span.p/2 = 2 && span.k^2 > 4 }",
    "{ .lo < 5 < .hi }",
    "{ .a =~ `[[:alpha:]]+\\d{2,3}\\Q.\\E` }",
    "{ span. = 1 }",
    "{ foo }",
    "{ .a = \"unterminated }",
    "{ .a in [1, 2] }",
    "{ ((((((((.a)))))))) }",
    "{ !!!!!!!!.a = ------1 }",
    "{ .a > 1 && .a < 5 } || { name = \"GET /api\" && span.http.status_code >= 500 }",
    "",
];

/// Fragments that mutation inserts.
const FRAGMENTS: &[&str] = &[
    "{",
    "}",
    "(",
    ")",
    "|",
    "&&",
    "||",
    "!",
    "-",
    "=",
    "=~",
    "!~",
    ">>",
    "&>",
    "\"",
    "`",
    "'",
    "\\",
    "//",
    "/*",
    "*/",
    " ",
    "\n",
    ".",
    "span.",
    "parent.",
    ":",
    "nil",
    "1s",
    "1.5",
    "08",
    "µ",
    "ä",
    "\u{0}",
    "🎉",
    "rate()",
    "by(",
    "with (",
    "count()",
    "topk(1)",
    "^",
    ",",
    "minInt",
    "name",
    "true",
    "9999999999999999999",
];

/// A small seeded generator (xorshift), so that a failure repeats.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }

    fn pick<'a>(&mut self, items: &[&'a str]) -> &'a str {
        items[self.below(items.len())]
    }

    fn boundary(&mut self, text: &str) -> usize {
        let mut at = self.below(text.len() + 1);
        while !text.is_char_boundary(at) {
            at += 1;
        }
        at
    }

    fn mutate(&mut self, text: &mut String) {
        let (a, b) = (self.boundary(text), self.boundary(text));
        let (start, end) = (a.min(b), a.max(b));
        match self.below(6) {
            0 => text.insert_str(start, self.pick(FRAGMENTS)),
            1 => text.replace_range(start..end, ""),
            2 => {
                let copy = text[start..end].to_owned();
                text.insert_str(end, &copy);
            }
            3 => {
                let other = self.pick(CORPUS);
                text.insert_str(start, other);
            }
            4 => text.truncate(end),
            _ => {
                let c = char::from_u32(self.below(0x180) as u32).unwrap_or('x');
                text.insert(start, c);
            }
        }
    }
}

#[test]
fn mutated_queries_never_panic() {
    let mut random = Random(0x5eed_7ace_0001);
    let started = Stopwatch::start();
    let at_least = std::env::var("SKEIN_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).map_or(Duration::ZERO, Duration::from_secs);
    let (mut parsed, mut round) = (0, 0);
    while round < 100_000 || started.elapsed() < at_least {
        round += 1;
        let mut query = random.pick(CORPUS).to_owned();
        for _ in 0..=random.below(3) {
            random.mutate(&mut query);
        }
        if let Ok(tree) = parse(&query) {
            parsed += 1;
            let printed = tree.to_string();
            let again = parse(&printed).unwrap_or_else(|error| panic!("round {round}: {query:?} printed {printed}: {error}"));
            assert_eq!(again.to_string(), printed, "round {round}: {query:?}");
        }
        let _ = tag_filter(&query);
        let _ = parse_identifier(&query);
    }
    assert!(parsed > 5_000, "only {parsed} mutants parse: the mutation is too wild to test anything");
}

// ---- parse ∘ print

fn any_name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z][a-z.]{0,6}".prop_map(String::from),
        "span\\.[a-z]{1,3}",
        "[0-9]{1,3}",
        proptest::collection::vec(any::<char>(), 0..6).prop_map(|chars| chars.into_iter().collect::<String>()),
        proptest::collection::vec(proptest::sample::select(vec!['"', '\\', ' ', '{', '}', '=', '.', 'a', '/', '*', '-', '^', ',', '`']), 0..6)
            .prop_map(|chars| chars.into_iter().collect::<String>()),
    ]
}

fn any_scope() -> impl Strategy<Value = AttributeScope> {
    use AttributeScope::*;
    proptest::sample::select(vec![Any, Span, Resource, Event, Link, Instrumentation, Parent, ParentSpan, ParentResource])
}

fn any_field() -> impl Strategy<Value = FieldRef> {
    prop_oneof![
        2 => (any_scope(), any_name()).prop_map(|(scope, name)| FieldRef::Attribute { scope, name }),
        1 => (0..INTRINSICS.len()).prop_map(|index| FieldRef::Intrinsic(INTRINSICS[index].0)),
    ]
}

fn any_number() -> impl Strategy<Value = Static> {
    prop_oneof![
        any::<i64>().prop_map(Static::Int),
        (-9_i64..9).prop_map(Static::Int),
        Just(Static::Int(i64::MIN)),
        any::<f64>().prop_filter("a literal is finite", |value| value.is_finite()).prop_map(Static::Float),
        (-40_i32..40).prop_map(|value| Static::Float(f64::from(value) / 4.0)),
    ]
}

fn any_duration() -> impl Strategy<Value = Static> {
    prop_oneof![(-i64::MAX..=i64::MAX), (-5_000_000_i64..5_000_000)].prop_map(Static::Duration)
}

fn any_static() -> impl Strategy<Value = Static> {
    use super::ast::{Kind::*, Status::*};
    prop_oneof![
        any_number(),
        any_duration(),
        any::<String>().prop_map(|text| Static::String(text.into())),
        "[`\"a\\\\\r\n]{0,5}".prop_map(|text| Static::String(text.into())),
        any::<bool>().prop_map(Static::Bool),
        proptest::sample::select(vec![Error, Ok, Unset]).prop_map(Static::Status),
        proptest::sample::select(vec![Unspecified, Internal, Client, Server, Producer, Consumer]).prop_map(Static::Kind),
    ]
}

fn any_compare() -> impl Strategy<Value = CompareOp> {
    use CompareOp::*;
    proptest::sample::select(vec![Eq, Ne, Lt, Le, Gt, Ge])
}

fn any_arith() -> impl Strategy<Value = ArithOp> {
    use ArithOp::*;
    proptest::sample::select(vec![Add, Sub, Mul, Div, Mod, Pow])
}

/// Any expression of the grammar, well typed or not.
fn any_expr() -> impl Strategy<Value = FieldExpr> {
    let leaf = prop_oneof![any_static().prop_map(FieldExpr::Literal), any_field().prop_map(FieldExpr::Field), any_field().prop_map(FieldExpr::Field)];
    leaf.prop_recursive(5, 24, 2, |inner| {
        let one = inner.clone().prop_map(Box::new);
        let two = (inner.clone().prop_map(Box::new), inner.prop_map(Box::new));
        prop_oneof![
            one.clone().prop_map(FieldExpr::Not),
            one.clone().prop_map(FieldExpr::Negate),
            one.clone().prop_map(FieldExpr::Exists),
            one.clone().prop_map(FieldExpr::Missing),
            (any::<bool>(), one, any::<String>()).prop_map(|(negated, lhs, pattern)| FieldExpr::Match { negated, lhs, pattern }),
            (any_compare(), two.clone()).prop_map(|(op, (lhs, rhs))| FieldExpr::Compare { op, lhs, rhs }),
            (any_arith(), two.clone()).prop_map(|(op, (lhs, rhs))| FieldExpr::Arith { op, lhs, rhs }),
            two.clone().prop_map(|(lhs, rhs)| FieldExpr::And(lhs, rhs)),
            two.prop_map(|(lhs, rhs)| FieldExpr::Or(lhs, rhs)),
        ]
    })
}

fn any_spanset_op() -> impl Strategy<Value = SpansetOp> {
    use {Form::*, Relation::*};
    let structural =
        (proptest::sample::select(vec![Descendant, Child, Ancestor, Parent, Sibling]), proptest::sample::select(vec![Plain, Negated, Union]));
    prop_oneof![Just(SpansetOp::And), Just(SpansetOp::Or), structural.prop_map(|(relation, form)| SpansetOp::Structural { relation, form }),]
}

fn any_spansets(leaf: impl Strategy<Value = SpansetExpr> + 'static) -> impl Strategy<Value = SpansetExpr> {
    leaf.prop_recursive(3, 8, 2, |inner| {
        (any_spanset_op(), inner.clone(), inner).prop_map(|(op, lhs, rhs)| SpansetExpr::Binary { op, lhs: Box::new(lhs), rhs: Box::new(rhs) })
    })
}

fn any_aggregate_filter() -> impl Strategy<Value = Stage> {
    let aggregate = prop_oneof![
        Just(Aggregate::Count),
        any_expr().prop_map(Aggregate::Min),
        any_expr().prop_map(Aggregate::Max),
        any_expr().prop_map(Aggregate::Avg),
        any_expr().prop_map(Aggregate::Sum),
    ];
    (aggregate, any_compare(), prop_oneof![any_number(), any_duration()])
        .prop_map(|(aggregate, op, value)| Stage::Aggregate(AggregateFilter { aggregate, op, value }))
}

fn any_pipeline() -> impl Strategy<Value = Pipeline> {
    let first = prop_oneof![
        3 => any_spansets(any_expr().prop_map(SpansetExpr::Filter)).prop_map(Stage::Spansets),
        1 => any_expr().prop_map(Stage::By),
        1 => proptest::collection::vec(any_field(), 1..3).prop_map(Stage::Select),
        1 => any_aggregate_filter(),
    ]
    .boxed();
    let stage = prop_oneof![4 => first.clone(), 1 => Just(Stage::Coalesce)];
    (first, proptest::collection::vec(stage, 0..3)).prop_map(|(first, rest)| Pipeline { stages: std::iter::once(first).chain(rest).collect() })
}

/// A pipeline that does not read as plain spansets when it stands in parentheses.
fn any_operand_pipeline() -> impl Strategy<Value = SpansetExpr> {
    any_pipeline().prop_map(|mut pipeline| {
        if matches!(pipeline.stages[..], [Stage::Spansets(_)]) {
            pipeline.stages.push(Stage::Coalesce);
        }
        SpansetExpr::Pipeline(Box::new(pipeline))
    })
}

fn any_function() -> impl Strategy<Value = MetricsFunction> {
    use OverTime::*;
    let by = || proptest::collection::vec(any_field(), 0..3);
    prop_oneof![
        by().prop_map(|by| MetricsFunction::Rate { by }),
        by().prop_map(|by| MetricsFunction::CountOverTime { by }),
        (proptest::sample::select(vec![Min, Max, Sum, Avg, Histogram]), any_field(), by())
            .prop_map(|(function, field, by)| MetricsFunction::OverTime { function, field, by }),
        (any_field(), proptest::collection::vec(0.0..=1.0, 1..3), by()).prop_map(|(field, quantiles, by)| MetricsFunction::QuantileOverTime {
            field,
            quantiles,
            by
        }),
        (any_expr(), 1_i64..1000, proptest::option::of((1_i64..9, 10_i64..20))).prop_map(|(selection, top_n, window)| MetricsFunction::Compare {
            selection,
            top_n,
            window
        }),
    ]
}

fn any_second_stages() -> impl Strategy<Value = Vec<SecondStage>> {
    let stage = prop_oneof![
        (1_i64..9).prop_map(SecondStage::TopK),
        (1_i64..9).prop_map(SecondStage::BottomK),
        (any_compare(), prop_oneof![any_number(), any_duration()]).prop_map(|(op, value)| SecondStage::Filter { op, value }),
    ];
    proptest::collection::vec(stage, 1..4)
}

fn any_metrics() -> impl Strategy<Value = MetricsExpr> {
    let bare = (any_pipeline(), any_function()).prop_map(|(pipeline, function)| MetricsExpr::Pipeline { pipeline, function });
    let leaf = (bare, proptest::option::of(any_second_stages())).prop_map(|(input, stages)| match stages {
        Some(stages) => MetricsExpr::SecondStages { input: Box::new(input), stages },
        None => input,
    });
    let arith = || proptest::sample::select(vec![ArithOp::Add, ArithOp::Sub, ArithOp::Mul, ArithOp::Div]);
    let binary = leaf.prop_recursive(3, 6, 2, move |inner| {
        let scalar = any_number().prop_map(MetricsExpr::Scalar).boxed();
        prop_oneof![
            (arith(), inner.clone(), inner.clone()).prop_map(|(op, lhs, rhs)| MetricsExpr::Binary { op, lhs: Box::new(lhs), rhs: Box::new(rhs) }),
            (arith(), inner.clone(), scalar.clone()).prop_map(|(op, lhs, rhs)| MetricsExpr::Binary { op, lhs: Box::new(lhs), rhs: Box::new(rhs) }),
            (arith(), scalar, inner).prop_map(|(op, lhs, rhs)| MetricsExpr::Binary { op, lhs: Box::new(lhs), rhs: Box::new(rhs) }),
        ]
    });
    (binary, proptest::option::of(any_second_stages())).prop_map(|(input, stages)| match (input, stages) {
        (binary @ MetricsExpr::Binary { .. }, Some(stages)) => MetricsExpr::SecondStages { input: Box::new(binary), stages },
        (other, _) => other,
    })
}

fn any_query() -> impl Strategy<Value = Query> {
    let operand = prop_oneof![any_expr().prop_map(SpansetExpr::Filter), any_operand_pipeline()];
    let body = prop_oneof![
        2 => any_pipeline().prop_map(QueryBody::Search),
        1 => any_spansets(operand).prop_map(|spansets| QueryBody::Search(Pipeline { stages: vec![Stage::Spansets(spansets)] })),
        1 => any_metrics().prop_map(QueryBody::Metrics),
    ];
    let hint_value = any_static().prop_filter("no minus sign in hints", |value| !value.to_string().starts_with('-'));
    let hints = proptest::collection::vec(("h_[a-z]{1,4}", hint_value).prop_map(|(name, value)| Hint { name, value }), 0..3);
    (body, hints).prop_map(|(body, hints)| fold_query(Query { body, hints }))
}

/// Equal, with NaN equal to NaN.
fn same(a: &Query, b: &Query) -> bool {
    format!("{a:?}") == format!("{b:?}")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_printed_tree_parses_to_itself(query in any_query()) {
        let printed = query.to_string();
        let parsed = parser::parse_query(&printed).map_err(|error| TestCaseError::fail(format!("{printed}\n{error}")))?;
        let parsed = fold_query(parsed);
        prop_assert!(same(&parsed, &query), "{printed}\n{parsed:?}\n{query:?}");
    }
}
