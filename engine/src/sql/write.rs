//! Rows as bytes: JSON, lines of JSON, CSV, an Arrow IPC stream, Parquet.

use std::{
    collections::HashSet,
    io::{self, Write},
    mem::take,
    sync::Arc,
};

use arrow::{
    csv,
    datatypes::{DataType, Schema, SchemaRef},
    error::ArrowError,
    ipc::writer::StreamWriter,
    json::{
        self,
        writer::{JsonArray, LineDelimited, WriterBuilder},
    },
    record_batch::RecordBatch,
};
use bytes::Bytes;
use parking_lot::Mutex;
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};

use super::distinct::DistinctDictionaries;
use crate::error::{Error, Result};

/// Rows of a row group of Parquet; what is written of one is held in memory until it is complete.
const PARQUET_GROUP_ROWS: usize = 65_536;
/// Bytes of a row group of Parquet.
const PARQUET_GROUP_BYTES: usize = 32 << 20;

/// A form of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowFormat {
    /// One array of objects, a row each, with a null where a row has no value. 64-bit numbers are numbers, times are RFC 3339 in
    /// nanoseconds, bytes are hexadecimal.
    Json,
    /// The same objects, a line each.
    JsonLines,
    /// RFC 4180 with a heading. Nulls are empty.
    Csv,
    /// An Arrow IPC stream. Dictionaries stay dictionaries, and hold each value once.
    Arrow,
    /// A Parquet file, compressed with zstd.
    Parquet,
}

/// Writes rows piece by piece. What [`finish`](Self::finish) gives makes the answer whole: without it no reader of JSON, Arrow or Parquet takes
/// the pieces for complete.
pub struct RowWriter {
    form: Form,
    written: Written,
}

enum Form {
    Json(json::Writer<Written, JsonArray>),
    JsonLines(json::Writer<Written, LineDelimited>),
    Csv { heading: bool, schema: SchemaRef },
    Arrow(Box<(StreamWriter<Written>, DistinctDictionaries)>),
    Parquet(Box<ArrowWriter<Written>>),
}

impl RowWriter {
    /// A writer of rows of `schema`. Errors: `Invalid` for columns that the form cannot tell, with what to do.
    pub fn new(format: RowFormat, schema: &SchemaRef) -> Result<Self> {
        let written = Written::default();
        let objects = || WriterBuilder::new().with_explicit_nulls(true);
        let form = match format {
            RowFormat::Json => {
                check_names(schema)?;
                Form::Json(objects().build(written.clone()))
            }
            RowFormat::JsonLines => {
                check_names(schema)?;
                Form::JsonLines(objects().build(written.clone()))
            }
            RowFormat::Csv => {
                check_plain(schema)?;
                Form::Csv { heading: true, schema: schema.clone() }
            }
            RowFormat::Arrow => Form::Arrow(Box::new((StreamWriter::try_new(written.clone(), schema)?, DistinctDictionaries::default()))),
            RowFormat::Parquet => {
                check_names(schema)?;
                let properties = WriterProperties::builder()
                    .set_compression(Compression::ZSTD(ZstdLevel::default()))
                    .set_max_row_group_row_count(Some(PARQUET_GROUP_ROWS))
                    .set_max_row_group_bytes(Some(PARQUET_GROUP_BYTES))
                    .build();
                let writer = ArrowWriter::try_new(written.clone(), schema.clone(), Some(properties));
                Form::Parquet(Box::new(writer.map_err(|error| unwritable(error.into()))?))
            }
        };
        Ok(Self { form, written })
    }

    /// The bytes of further rows; may be none yet. Errors: `Invalid` for values that the form cannot tell.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<Bytes> {
        match &mut self.form {
            Form::Json(writer) => writer.write(batch),
            Form::JsonLines(writer) => writer.write(batch),
            Form::Csv { heading, .. } => csv::WriterBuilder::new().with_header(take(heading)).build(self.written.clone()).write(batch),
            Form::Arrow(writing) => writing.1.of(batch.clone()).and_then(|batch| writing.0.write(&batch)),
            Form::Parquet(writer) => writer.write(batch).map_err(ArrowError::from),
        }
        .map_err(unwritable)?;
        Ok(self.written.take())
    }

    /// The last bytes. Errors: `Invalid`, as [`write`](Self::write).
    pub fn finish(self) -> Result<Bytes> {
        match self.form {
            Form::Json(mut writer) => writer.finish(),
            Form::JsonLines(mut writer) => writer.finish(),
            // Without rows there was no heading yet.
            Form::Csv { heading: true, schema } => {
                csv::WriterBuilder::new().with_header(true).build(self.written.clone()).write(&RecordBatch::new_empty(schema))
            }
            Form::Csv { .. } => Ok(()),
            Form::Arrow(mut writing) => writing.0.finish(),
            Form::Parquet(writer) => writer.close().map(drop).map_err(ArrowError::from),
        }
        .map_err(unwritable)?;
        Ok(self.written.take())
    }
}

fn unwritable(error: ArrowError) -> Error {
    match error {
        ArrowError::ExternalError(source) => Error::internal("writing rows").with_source(source),
        error => Error::invalid(format!("a column cannot be written in this form, cast it to text or ask for another form: {error}")),
    }
}

/// Errors: `Invalid` where two columns have one name: readers would take the last for both.
fn check_names(schema: &Schema) -> Result<()> {
    let mut seen = HashSet::new();
    match schema.fields().iter().find(|field| !seen.insert(field.name())) {
        Some(field) => Err(Error::invalid(format!("two columns are named {}: give one of them another name with AS", field.name()))),
        None => Ok(()),
    }
}

/// Errors: `Invalid` for columns whose values are no single value.
fn check_plain(schema: &Schema) -> Result<()> {
    let is_plain = |kind: &DataType| match kind {
        DataType::Dictionary(_, values) => !values.is_nested(),
        kind => !kind.is_nested(),
    };
    match schema.fields().iter().find(|field| !is_plain(field.data_type())) {
        Some(field) => {
            Err(Error::invalid(format!("column {} has lists, which CSV cannot tell: ask for JSON or Arrow, or make text of it", field.name())))
        }
        None => Ok(()),
    }
}

/// What a writer has written and nobody has taken.
#[derive(Debug, Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    fn take(&self) -> Bytes {
        take(&mut *self.0.lock()).into()
    }
}

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use arrow::{
        array::{ArrayRef, AsArray, DictionaryArray, Float64Array, Int64Array, ListArray, StringArray, TimestampNanosecondArray},
        datatypes::{Field, Int32Type, Int64Type},
        ipc::reader::StreamReader,
    };
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;

    fn batch() -> RecordBatch {
        let names: DictionaryArray<Int32Type> = [Some("a \"b\", c"), None].into_iter().collect();
        let columns: [(&str, ArrayRef); 4] = [
            ("name", Arc::new(names)),
            ("n", Arc::new(Int64Array::from(vec![i64::MAX, -1]))),
            ("at", Arc::new(TimestampNanosecondArray::from(vec![1_500_000_000_000_000_001, 0]).with_timezone("UTC"))),
            ("ratio", Arc::new(Float64Array::from(vec![Some(0.5), None]))),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
    }

    fn written(format: RowFormat, batches: &[RecordBatch]) -> Vec<u8> {
        let mut writer = RowWriter::new(format, &batch().schema()).unwrap();
        let mut bytes = Vec::new();
        batches.iter().for_each(|batch| bytes.extend(writer.write(batch).unwrap()));
        bytes.extend(writer.finish().unwrap());
        bytes
    }

    fn check_text(format: RowFormat, batches: &[RecordBatch], expected: &str) {
        assert_eq!(String::from_utf8(written(format, batches)).unwrap(), expected);
    }

    #[test]
    fn text_has_exact_numbers_and_times() {
        let first = r#"{"name":"a \"b\", c","n":9223372036854775807,"at":"2017-07-14T02:40:00.000000001Z","ratio":0.5}"#;
        let second = r#"{"name":null,"n":-1,"at":"1970-01-01T00:00:00Z","ratio":null}"#;
        let twice = [batch().slice(0, 1), batch().slice(1, 1)];
        check_text(RowFormat::Json, &twice, &format!("[{first},{second}]"));
        check_text(RowFormat::JsonLines, &twice, &format!("{first}\n{second}\n"));
        let csv = "name,n,at,ratio\n\"a \"\"b\"\", c\",9223372036854775807,2017-07-14T02:40:00.000000001Z,0.5\n,-1,1970-01-01T00:00:00Z,\n";
        check_text(RowFormat::Csv, &twice, csv);
    }

    #[test]
    fn no_rows_are_an_answer_too() {
        check_text(RowFormat::Json, &[], "[]");
        check_text(RowFormat::JsonLines, &[], "");
        check_text(RowFormat::Csv, &[], "name,n,at,ratio\n");
    }

    #[test]
    fn arrow_and_parquet_keep_rows_and_types() {
        let batches = [batch(), batch().slice(1, 1)];
        let stream = written(RowFormat::Arrow, &batches);
        let read: Vec<RecordBatch> = StreamReader::try_new(&stream[..], None).unwrap().map(|batch| batch.unwrap()).collect();
        assert_eq!(read, batches);
        let file = written(RowFormat::Parquet, &batches);
        let read: Vec<RecordBatch> =
            ParquetRecordBatchReaderBuilder::try_new(Bytes::from(file)).unwrap().build().unwrap().map(|batch| batch.unwrap()).collect();
        let rows: usize = read.iter().map(RecordBatch::num_rows).sum();
        assert_eq!((rows, read[0].schema()), (3, batch().schema()));
    }

    #[test]
    fn dictionaries_leave_without_repeated_values() {
        let values = Arc::new(StringArray::from(vec!["a", "b", "a"]));
        let names = DictionaryArray::<Int32Type>::try_new(vec![2, 1, 0].into(), values).unwrap();
        let batch = RecordBatch::try_from_iter([("name", Arc::new(names) as ArrayRef)]).unwrap();
        let mut writer = RowWriter::new(RowFormat::Arrow, &batch.schema()).unwrap();
        let stream = [writer.write(&batch).unwrap(), writer.finish().unwrap()].concat();
        let read = StreamReader::try_new(&stream[..], None).unwrap().next().unwrap().unwrap();
        assert_eq!(read.column(0).as_dictionary::<Int32Type>().values().as_string::<i32>(), &StringArray::from(vec!["a", "b"]));
        assert_eq!(read, batch, "the rows are the same");
    }

    #[test]
    fn what_a_form_cannot_tell_is_refused_with_what_to_do() {
        let check = |format, fields: Vec<Field>, expected: &str| {
            let error = RowWriter::new(format, &Arc::new(Schema::new(fields))).err().unwrap();
            assert!(error.message().contains(expected), "{error}");
        };
        let twice = || vec![Field::new("a", DataType::Int64, true), Field::new("a", DataType::Utf8, true)];
        check(RowFormat::Json, twice(), "two columns are named a: give one of them another name with AS");
        check(RowFormat::Parquet, twice(), "two columns are named a");
        let lists = ListArray::from_iter_primitive::<Int64Type, _, _>([Some([Some(1)])]);
        check(RowFormat::Csv, vec![Field::new("l", arrow::array::Array::data_type(&lists).clone(), true)], "column l has lists");
    }
}
