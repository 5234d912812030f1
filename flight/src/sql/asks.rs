//! Descriptors and tickets as what they ask for.
//!
//! Beside the commands of Flight SQL there are plain ones for clients that know only Flight, in JSON: `{"sql": …, "parameters": …}`,
//! `{"traceql": …, "start": …, "end": …, "limit": …}`, `{"trace": "id"}` and `{"metrics": …, "start": …, "end": …, "step": …}`. A path names
//! a table. All of them become statements.

use arrow_flight::{
    FlightDescriptor,
    flight_descriptor::DescriptorType,
    sql::{Any, Command},
};
use datafusion::common::ParamValues;
use prost::Message;
use serde::Deserialize;
use serde_json::Value;
use skein_engine::{
    error::{Error, Result},
    sql::parameters,
};

/// What a descriptor or a ticket asks for.
#[derive(Debug)]
pub(crate) enum Ask {
    /// The rows of a statement.
    Statement(Statement),
    /// A command of Flight SQL.
    Command(Command),
}

/// A statement with its parameters.
#[derive(Debug)]
pub(crate) struct Statement {
    pub(crate) text: String,
    pub(crate) parameters: Option<ParamValues>,
}

impl Statement {
    pub(crate) fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), parameters: None }
    }
}

/// What `descriptor` asks for. Errors: `Invalid`.
pub(crate) fn of_descriptor(descriptor: &FlightDescriptor) -> Result<Ask> {
    if descriptor.r#type == DescriptorType::Path as i32 {
        return of_path(&descriptor.path).map(Ask::Statement);
    }
    of_bytes(&descriptor.cmd)
}

/// The whole table that `path` names: a table, or a schema and a table. Errors: `Invalid`.
fn of_path(path: &[String]) -> Result<Statement> {
    if path.is_empty() || path.len() > 3 || path.iter().any(String::is_empty) {
        return Err(Error::invalid("a path is the name of a table, such as [\"spans\"]; ListFlights names them"));
    }
    let names: Vec<String> = path.iter().map(|name| identifier(name)).collect();
    Ok(Statement::plain(format!("SELECT * FROM {}", names.join("."))))
}

/// What the bytes of a command or ticket ask for. Errors: `Invalid`.
pub(crate) fn of_bytes(bytes: &[u8]) -> Result<Ask> {
    if bytes.first() == Some(&b'{') {
        let ask: PlainAsk = serde_json::from_slice(bytes).map_err(|error| Error::invalid(format!("{error}; {PLAIN_FORMS}")))?;
        return ask.statement().map(Ask::Statement);
    }
    let message = Any::decode(bytes).ok().filter(|any| !any.type_url.is_empty());
    let message = message.ok_or_else(|| Error::invalid(format!("neither a command of Flight SQL nor JSON; {PLAIN_FORMS}")))?;
    Command::try_from(message).map(Ask::Command).map_err(|error| Error::invalid("reading a command of Flight SQL").with_source(error))
}

const PLAIN_FORMS: &str = "in JSON ask {\"sql\": \"…\"}, {\"traceql\": \"…\"}, {\"trace\": \"id\"} or {\"metrics\": \"…\"}";

/// A plain command or ticket.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlainAsk {
    sql: Option<String>,
    traceql: Option<String>,
    trace: Option<String>,
    metrics: Option<String>,
    #[serde(default)]
    parameters: Value,
    start: Option<Value>,
    end: Option<Value>,
    step: Option<Value>,
    limit: Option<u64>,
}

impl PlainAsk {
    fn statement(self) -> Result<Statement> {
        let Self { sql, traceql, trace, metrics, parameters, start, end, step, limit } = self;
        let bounds = match (start, end) {
            (None, None) => String::new(),
            (Some(start), Some(end)) => format!(", {}, {}", time(&start)?, time(&end)?),
            _ => return Err(Error::invalid("give both start and end, or neither")),
        };
        let limited = limit.map_or(String::new(), |limit| format!(" LIMIT {limit}"));
        if sql.is_none() && !parameters.is_null() {
            return Err(Error::invalid("parameters go with sql only"));
        }
        match (sql, traceql, trace, metrics) {
            (Some(text), None, None, None) if bounds.is_empty() && limit.is_none() && step.is_none() => {
                Ok(Statement { text, parameters: parameters::from_json(&parameters)? })
            }
            (Some(_), None, None, None) => Err(Error::invalid("start, end, step and limit do not go with sql: write them into the statement")),
            (None, Some(query), None, None) if step.is_none() => {
                Ok(Statement::plain(format!("SELECT * FROM traceql({}{bounds}){limited}", literal(&query))))
            }
            (None, None, Some(id), None) if bounds.is_empty() && step.is_none() => {
                Ok(Statement::plain(format!("SELECT * FROM trace({}){limited}", literal(&id))))
            }
            (None, None, None, Some(query)) => {
                let step = match step {
                    Some(step) if !bounds.is_empty() => format!(", {}", duration(&step)?),
                    Some(_) => return Err(Error::invalid("step needs start and end")),
                    None => String::new(),
                };
                Ok(Statement::plain(format!("SELECT * FROM traceql_metrics({}{bounds}{step}){limited}", literal(&query))))
            }
            _ => Err(Error::invalid(PLAIN_FORMS)),
        }
    }
}

/// A time as SQL's functions take it: Unix seconds or text that reads as a timestamp.
fn time(value: &Value) -> Result<String> {
    match value {
        Value::Number(seconds) if seconds.as_i64().is_some_and(|seconds| seconds >= 0) => Ok(seconds.to_string()),
        Value::String(text) => Ok(literal(text)),
        other => Err(Error::invalid(format!("start and end are Unix seconds or RFC 3339 in quotes, not {other}"))),
    }
}

fn duration(value: &Value) -> Result<String> {
    match value {
        Value::Number(seconds) if seconds.as_i64().is_some_and(|seconds| seconds > 0) => Ok(seconds.to_string()),
        Value::String(text) => Ok(literal(text)),
        other => Err(Error::invalid(format!("step is a number of seconds or a duration in quotes such as \"1m\", not {other}"))),
    }
}

/// `text` as SQL writes it.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A name as SQL writes it.
pub(crate) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn text_of(bytes: &str) -> String {
        match of_bytes(bytes.as_bytes()).unwrap() {
            Ask::Statement(statement) => statement.text,
            Ask::Command(command) => panic!("{command:?}"),
        }
    }

    #[test]
    fn plain_asks_become_statements() {
        let check = |ask: &str, expected: &str| assert_eq!(text_of(ask), expected, "{ask}");
        check(r#"{"sql": "SELECT 1"}"#, "SELECT 1");
        check(r#"{"traceql": "{ name = 'a' }"}"#, "SELECT * FROM traceql('{ name = ''a'' }')");
        check(
            r#"{"traceql": "{ }", "start": 1, "end": "2020-01-01T00:00:00Z", "limit": 3}"#,
            "SELECT * FROM traceql('{ }', 1, '2020-01-01T00:00:00Z') LIMIT 3",
        );
        check(r#"{"trace": "ab"}"#, "SELECT * FROM trace('ab')");
        check(r#"{"metrics": "{ } | rate()", "start": 1, "end": 2, "step": "1m"}"#, "SELECT * FROM traceql_metrics('{ } | rate()', 1, 2, '1m')");
    }

    #[test]
    fn quotes_do_not_end_a_literal() {
        assert_eq!(text_of(r#"{"trace": "a') UNION SELECT '1"}"#), "SELECT * FROM trace('a'') UNION SELECT ''1')");
        let path = FlightDescriptor::new_path(vec!["a\" UNION \"b".into()]);
        match of_descriptor(&path).unwrap() {
            Ask::Statement(statement) => assert_eq!(statement.text, "SELECT * FROM \"a\"\" UNION \"\"b\""),
            Ask::Command(command) => panic!("{command:?}"),
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for bad in [
            "",
            "{",
            "{}",
            "[]",
            "\u{0}\u{1}",
            r#"{"sql": 1}"#,
            r#"{"sql": "a", "trace": "b"}"#,
            r#"{"sql": "a", "limit": 1}"#,
            r#"{"traceql": "a", "start": 1}"#,
            r#"{"traceql": "a", "start": -1, "end": 2}"#,
            r#"{"traceql": "a", "step": 1}"#,
            r#"{"trace": "a", "parameters": []}"#,
            r#"{"metrics": "a", "step": 1}"#,
            r#"{"sql": "a", "parameters": [[1]]}"#,
            r#"{"sql": "a", "more": 1}"#,
            r#"{"traceql": "a", "limit": -1}"#,
        ] {
            assert!(of_bytes(bad.as_bytes()).is_err(), "{bad}");
        }
        for bad in [vec![], vec![String::new()], vec!["a".into(); 4]] {
            assert!(of_descriptor(&FlightDescriptor::new_path(bad)).is_err());
        }
    }
}
