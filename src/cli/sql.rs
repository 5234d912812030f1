//! `skein sql`: a SQL statement over spans, as a table, JSON, CSV, Arrow or Parquet.

use std::{io::Write, path::PathBuf, process::ExitCode};

use arrow::{
    datatypes::DataType,
    error::ArrowError,
    ipc::reader::StreamReader,
    record_batch::RecordBatch,
    util::display::{ArrayFormatter, FormatOptions},
};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use skein_engine::error::{Error, Result};

use super::{
    http::Api,
    table::{self, Align},
};

/// Arguments of `skein sql`.
#[derive(Args)]
pub struct Arguments {
    /// The statement, such as 'SELECT name, count(*) FROM spans GROUP BY name'; - reads it from standard input.
    statement: String,
    /// The server.
    #[arg(long, default_value = "http://127.0.0.1:3200")]
    url: String,
    /// Sent as X-Scope-OrgID.
    #[arg(long)]
    tenant: Option<String>,
    /// A value for $1, and so on: a number, true, false, null, or text.
    #[arg(short, long = "parameter", allow_hyphen_values = true)]
    parameters: Vec<String>,
    /// How to show the rows.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Write to a file instead of the terminal.
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// How rows are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For reading.
    #[default]
    Table,
    /// An array of objects.
    Json,
    /// An object a line.
    Jsonl,
    /// With a heading.
    Csv,
    /// An Arrow IPC stream.
    Arrow,
    /// A Parquet file.
    Parquet,
}

impl Format {
    fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Jsonl => "application/x-ndjson",
            Self::Csv => "text/csv",
            Self::Table | Self::Arrow => "application/vnd.apache.arrow.stream",
            Self::Parquet => "application/vnd.apache.parquet",
        }
    }
}

/// Runs the statement and shows its rows.
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let api = Api::new(&arguments.url, arguments.tenant)?;
    let statement = match arguments.statement.as_str() {
        "-" => std::io::read_to_string(std::io::stdin()).map_err(|error| Error::unavailable("reading the statement").with_source(error))?,
        statement => statement.to_owned(),
    };
    let parameters: Vec<Value> = arguments.parameters.iter().map(|text| parameter(text)).collect();
    let mut body = json!({ "query": statement });
    if !parameters.is_empty() {
        body["parameters"] = parameters.into();
    }
    let mut answer = api.post_json("/api/sql", &body, arguments.format.content_type()).await?;
    let mut out = Output::open(arguments.output)?;
    if arguments.format == Format::Table {
        let mut stream = Vec::new();
        while let Some(piece) = answer.next().await? {
            stream.extend_from_slice(&piece);
        }
        out.write(render(&stream, table::width())?.into())?;
        return Ok(ExitCode::SUCCESS);
    }
    while let Some(piece) = answer.next().await? {
        if !out.write(piece)? {
            return Ok(ExitCode::SUCCESS);
        }
    }
    if arguments.format == Format::Json {
        out.write(Bytes::from_static(b"\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What reads as a plain JSON value is one; anything else is text.
fn parameter(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_))) => value,
        _ => text.into(),
    }
}

/// A file, or the terminal.
struct Output {
    target: Box<dyn Write>,
    name: String,
}

impl Output {
    fn open(path: Option<PathBuf>) -> Result<Self> {
        let Some(path) = path else { return Ok(Self { target: Box::new(std::io::stdout()), name: "standard output".to_owned() }) };
        let name = path.display().to_string();
        let file = std::fs::File::create(path).map_err(|error| Error::unavailable(format!("writing to {name}")).with_source(error))?;
        Ok(Self { target: Box::new(file), name })
    }

    /// False when whoever reads has seen enough.
    fn write(&mut self, bytes: Bytes) -> Result<bool> {
        match self.target.write_all(&bytes).and_then(|()| self.target.flush()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(Error::unavailable(format!("writing to {}", self.name)).with_source(error)),
        }
    }
}

/// The rows of an Arrow stream as a table, and how many there are.
fn render(stream: &[u8], width: usize) -> Result<String> {
    let failed = |error: ArrowError| Error::data("reading the server's answer").with_source(error);
    let reader = StreamReader::try_new(stream, None).map_err(failed)?;
    let schema = reader.schema();
    let mut rows = Vec::new();
    for batch in reader {
        add_rows(&batch.map_err(failed)?, &mut rows).map_err(failed)?;
    }
    let heading: Vec<(&str, Align)> = schema.fields().iter().map(|field| (field.name().as_str(), align(field.data_type()))).collect();
    let mut out = table::render(&heading, &rows, width);
    let plural = if rows.len() == 1 { "" } else { "s" };
    out.push_str(&format!("{} row{plural}\n", table::grouped(rows.len() as u64)));
    Ok(out)
}

fn align(kind: &DataType) -> Align {
    if kind.is_numeric() { Align::Right } else { Align::Left }
}

fn add_rows(batch: &RecordBatch, rows: &mut Vec<Vec<String>>) -> Result<(), ArrowError> {
    let options = FormatOptions::default();
    let columns: Vec<ArrayFormatter> = batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options)).collect::<Result<_, _>>()?;
    for row in 0..batch.num_rows() {
        rows.push(columns.iter().map(|column| column.value(row).try_to_string()).collect::<Result<_, _>>()?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use arrow::{
        array::{ArrayRef, DictionaryArray, Int64Array, TimestampNanosecondArray},
        datatypes::Int32Type,
        ipc::writer::StreamWriter,
    };

    use super::*;

    #[test]
    fn parameters_are_plain_json_or_text() {
        let check = |text: &str, expected: Value| assert_eq!(parameter(text), expected, "{text}");
        check("5", json!(5));
        check("-1.5", json!(-1.5));
        check("null", Value::Null);
        check("\"5\"", json!("5"));
        check("checkout", json!("checkout"));
        check("[1]", json!("[1]"));
    }

    #[test]
    fn rows_are_a_table() {
        let names: DictionaryArray<Int32Type> = [Some("GET /"), None].into_iter().collect();
        let times = TimestampNanosecondArray::from(vec![1_700_000_000_000_000_001, 0]).with_timezone("UTC");
        let columns: [(&str, ArrayRef); 3] = [("name", Arc::new(names)), ("n", Arc::new(Int64Array::from(vec![5, 1234]))), ("at", Arc::new(times))];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let mut stream = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
        stream.write(&batch).unwrap();
        let shown = render(&stream.into_inner().unwrap(), 100).unwrap();
        let expected = ["name      n  at", "GET /     5  2023-11-14T22:13:20.000000001Z", "       1234  1970-01-01T00:00:00Z", "2 rows", ""];
        assert_eq!(shown.split('\n').collect::<Vec<_>>(), expected);
    }
}
