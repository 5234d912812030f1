//! `/api/sql`: a SQL statement over the spans of a tenant, answered while it runs.

use std::sync::Arc;

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    response::Response,
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use hyper::body::Frame;
use serde::Deserialize;
use serde_json::{Value, json};
use skein_engine::{
    error::{Error, Result},
    query::ScanStats,
    sql::{
        SqlCost, SqlRows, parameters,
        write::{RowFormat, RowWriter},
    },
};

use super::{HttpError, frames::Frames, params::Params};
use crate::{Frontend, queue::Turn, tenancy::Tenants};

/// What a trailer of the answer tells of the rows: what was read for them, as JSON.
const COST_TRAILER: &str = "skein-query-cost";

/// Turns of a connection that send what was given to it.
const FLUSH_TURNS: usize = 4;

/// Types of answers, the first is that of requests without `Accept`.
const FORMATS: [(&str, RowFormat); 6] = [
    ("application/json", RowFormat::Json),
    ("application/x-ndjson", RowFormat::JsonLines),
    ("application/jsonl", RowFormat::JsonLines),
    ("text/csv", RowFormat::Csv),
    ("application/vnd.apache.arrow.stream", RowFormat::Arrow),
    ("application/vnd.apache.parquet", RowFormat::Parquet),
];

/// A statement before its checks.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct SqlAsk {
    query: String,
    #[serde(default)]
    parameters: Value,
}

pub(super) async fn sql(
    State(frontend): State<Arc<Frontend>>,
    Extension(tenants): Extension<Tenants>,
    (method, params, headers): (Method, Params, HeaderMap),
    body: Bytes,
) -> Result<Response, HttpError> {
    let ask = if method == Method::POST { posted(&headers, &body)? } else { in_url(&params)? };
    let (content_type, format) = format_of(&headers)?;
    let (rows, turn) = frontend.sql(&tenants, &ask.query, &ask.parameters).await?;
    let writing = Writing { writer: RowWriter::new(format, &rows.schema)?, rows, _turn: turn };
    // Whatever goes wrong before the first rows has a status of its own.
    let (first, rest) = piece(writing).await?;
    Ok(answer(content_type, format, first, rest))
}

impl Frontend {
    /// Waits for a turn and begins a statement. Errors: `Invalid` for several tenants, and as the statement.
    async fn sql(&self, tenants: &Tenants, query: &str, given: &Value) -> Result<(SqlRows, Turn)> {
        let [tenant] = tenants.ids() else {
            return Err(Error::invalid(format!("SQL is asked of one tenant at a time, not of {}", tenants.name())));
        };
        let given = parameters::from_json(given)?;
        let turn = self.queue.admit(&tenants.name()).await?;
        let statement = self.sql.prepare(tenant, query).await?;
        Ok((statement.run(given).await?, turn))
    }
}

/// The statement in a URL: `query` and, as JSON, `parameters`.
fn in_url(params: &Params) -> Result<SqlAsk> {
    let parameters = params.get("parameters").map(serde_json::from_str).transpose();
    let parameters = parameters.map_err(|error| Error::invalid("parameters is no JSON").with_source(error))?.unwrap_or_default();
    checked(SqlAsk { query: params.get("query").unwrap_or_default().to_owned(), parameters })
}

/// The statement in a body: as text, as JSON with `query` and `parameters`, or as the field `query` of a form.
fn posted(headers: &HeaderMap, body: &[u8]) -> Result<SqlAsk, HttpError> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let text = || std::str::from_utf8(body).map_err(|error| Error::invalid("the statement is no UTF-8").with_source(error));
    let ask = match content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "application/json" => serde_json::from_slice(body).map_err(|error| {
            Error::invalid(r#"the body is not {"query": "SELECT …", "parameters": […]}; a plain statement has the content type application/sql"#)
                .with_source(error)
        })?,
        // What curl says of any body.
        "application/x-www-form-urlencoded" if body.starts_with(b"query=") => in_url(&form(text()?))?,
        "" | "text/plain" | "application/sql" | "application/x-www-form-urlencoded" => SqlAsk { query: text()?.to_owned(), ..SqlAsk::default() },
        other => {
            let known = "application/sql and text/plain for a statement, application/json for one with parameters";
            return Err(HttpError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, format!("content type {other} is not known: there are {known}")));
        }
    };
    Ok(checked(ask)?)
}

fn form(text: &str) -> Params {
    let uri = Uri::builder().path_and_query(format!("/?{text}")).build();
    uri.map(|uri| Params::of(&uri)).unwrap_or_default()
}

fn checked(ask: SqlAsk) -> Result<SqlAsk> {
    if ask.query.trim().is_empty() {
        return Err(Error::invalid("no statement: POST it as text/plain, or give it in the parameter query"));
    }
    Ok(ask)
}

/// The first type of `Accept` that is known, in the order that it names them.
fn format_of(headers: &HeaderMap) -> Result<(&'static str, RowFormat), HttpError> {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let mut names = accepted.map(|name| name.split(';').next().unwrap_or_default().trim()).filter(|name| !name.is_empty()).peekable();
    if names.peek().is_none() {
        return Ok(FORMATS[0]);
    }
    let known = |name: &str| {
        let same = |(known, _): &&(&str, RowFormat)| name == "*/*" || known.eq_ignore_ascii_case(name);
        FORMATS.iter().find(same).copied()
    };
    names.find_map(known).ok_or_else(|| {
        let all = FORMATS.map(|(name, _)| name).join(", ");
        HttpError::new(StatusCode::NOT_ACCEPTABLE, format!("none of the types in Accept is known: there are {all}"))
    })
}

/// An answer under way: its rows, and its turn until they are written.
struct Writing {
    writer: RowWriter,
    rows: SqlRows,
    _turn: Turn,
}

/// What comes after a piece.
enum Rest {
    More(Box<Writing>),
    /// It was the last one; this was read for all of them.
    End(SqlCost),
}

/// The next bytes. Errors: those of the rows.
async fn piece(mut writing: Writing) -> Result<(Bytes, Rest)> {
    loop {
        let Some(batch) = writing.rows.batches.next().await else {
            let last = elsewhere(move || writing.writer.finish()).await?;
            return Ok((last, Rest::End(writing.rows.cost)));
        };
        let batch = batch?;
        let (bytes, writer) = elsewhere(move || Ok((writing.writer.write(&batch)?, writing.writer))).await?;
        writing.writer = writer;
        if !bytes.is_empty() {
            return Ok((bytes, Rest::More(Box::new(writing))));
        }
    }
}

/// Writing takes milliseconds, kept from the network's threads.
async fn elsewhere<T: Send + 'static>(write: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(write).await.map_err(|error| Error::internal("writing rows").with_source(error))?
}

fn answer(content_type: &'static str, format: RowFormat, first: Bytes, rest: Rest) -> Response {
    let mut response = Response::new(Body::new(Frames(frames(format, first, rest).boxed())));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::TRAILER, HeaderValue::from_static(COST_TRAILER));
    response
}

/// The answer piece by piece: the next one is made when the client takes it. An error ends the body before its end, so that no client takes it
/// for whole.
fn frames(format: RowFormat, first: Bytes, rest: Rest) -> impl Stream<Item = Result<Frame<Bytes>>> {
    let others = stream::unfold(Some(rest), move |rest| async move {
        Some(match rest? {
            Rest::More(writing) => match piece(*writing).await {
                Ok((bytes, rest)) => (vec![Ok(Frame::data(bytes))], Some(rest)),
                Err(error) => (broken_off(format, error), None),
            },
            Rest::End(cost) => (cost_frame(cost).await, None),
        })
    });
    stream::iter([Ok(Frame::data(first))]).chain(others.flat_map(stream::iter).then(flushed))
}

/// Lets the connection send what it has before it hears of an error, which closes it.
async fn flushed(frame: Result<Frame<Bytes>>) -> Result<Frame<Bytes>> {
    if frame.is_err() {
        for _ in 0..FLUSH_TURNS {
            tokio::task::yield_now().await;
        }
    }
    frame
}

/// The end of an answer that cannot be completed. Text says why, on a line of its own.
fn broken_off(format: RowFormat, error: Error) -> Vec<Result<Frame<Bytes>>> {
    let shown = HttpError::from(error).body;
    let end = Err(Error::unavailable(format!("the answer was broken off: {shown}")));
    match format {
        RowFormat::Json | RowFormat::JsonLines | RowFormat::Csv => vec![Ok(Frame::data(format!("\nerror: {shown}\n").into())), end],
        RowFormat::Arrow | RowFormat::Parquet => vec![end],
    }
}

/// The trailer with what was read. The rows are complete whether it can be told or not.
async fn cost_frame(cost: SqlCost) -> Vec<Result<Frame<Bytes>>> {
    let Ok(stats) = cost.stats().await else { return Vec::new() };
    let Ok(value) = HeaderValue::try_from(cost_json(&stats).to_string()) else { return Vec::new() };
    vec![Ok(Frame::trailers(HeaderMap::from_iter([(header::HeaderName::from_static(COST_TRAILER), value)])))]
}

fn cost_json(stats: &ScanStats) -> Value {
    json!({
        "inspectedSpans": stats.spans,
        "inspectedBytes": stats.bytes,
        "requests": stats.reads,
        "totalBlocks": stats.blocks,
        "totalBlockBytes": stats.block_bytes,
        "rowGroups": stats.row_groups,
        "rowGroupsSkipped": stats.row_groups_skipped,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn a_statement_comes_as_text_as_json_or_in_a_form() {
        let check = |content_type: &str, body: &str, parameters: Value| {
            let ask = posted(&headers(header::CONTENT_TYPE, content_type), body.as_bytes()).unwrap();
            assert_eq!(ask, SqlAsk { query: "SELECT 1 + 1".into(), parameters }, "{content_type}");
        };
        check("text/plain; charset=utf-8", "SELECT 1 + 1", Value::Null);
        check("application/sql", "SELECT 1 + 1", Value::Null);
        check("application/x-www-form-urlencoded", "SELECT 1 + 1", Value::Null);
        check("application/x-www-form-urlencoded", "query=SELECT%201+%2B%201&parameters=%5B5%5D", json!([5]));
        check("application/json", r#"{"query": "SELECT 1 + 1"}"#, Value::Null);
        check("Application/JSON; charset=utf-8", r#"{"query": "SELECT 1 + 1", "parameters": {"a": 1}}"#, json!({"a": 1}));
    }

    #[test]
    fn a_body_that_is_no_statement_is_refused_with_what_is_one() {
        let check = |content_type: &str, body: &[u8], status: StatusCode, expected: &str| {
            let refused = posted(&headers(header::CONTENT_TYPE, content_type), body).unwrap_err();
            assert!(refused.status == status && refused.body.contains(expected), "{refused:?}");
        };
        check("application/sql", b" \n", StatusCode::BAD_REQUEST, "no statement");
        check("application/sql", b"SELECT \xff", StatusCode::BAD_REQUEST, "no UTF-8");
        check("application/json", b"SELECT 1", StatusCode::BAD_REQUEST, "the content type application/sql");
        check("application/json", br#"{"query": "SELECT 1", "limit": 5}"#, StatusCode::BAD_REQUEST, "unknown field `limit`");
        check("image/png", b"SELECT 1", StatusCode::UNSUPPORTED_MEDIA_TYPE, "application/json for one with parameters");
    }

    #[test]
    fn accept_chooses_the_form() {
        let check = |accept: &str, expected: RowFormat| assert_eq!(format_of(&headers(header::ACCEPT, accept)).unwrap().1, expected, "{accept}");
        check("text/html, text/CSV;q=0.9, application/json", RowFormat::Csv);
        check("application/vnd.apache.arrow.stream", RowFormat::Arrow);
        check("application/vnd.apache.parquet", RowFormat::Parquet);
        check("application/x-ndjson", RowFormat::JsonLines);
        check("*/*", RowFormat::Json);
        assert_eq!(format_of(&HeaderMap::new()).unwrap().1, RowFormat::Json);
        let refused = format_of(&headers(header::ACCEPT, "text/html")).unwrap_err();
        assert!(refused.status == StatusCode::NOT_ACCEPTABLE && refused.body.contains("application/vnd.apache.parquet"), "{refused:?}");
    }
}
