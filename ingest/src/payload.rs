//! What a push holds: an OTLP request or a table of spans; and how the log tells them apart (wal/FORMAT.md, "Payloads").

use std::sync::Arc;

use bytes::Bytes;
use skein_engine::{
    buffers::Buffers,
    spans::{builder::SpanBuilder, written::SpanTable},
};

use crate::{
    decode::{DecodeError, check, decode},
    error::{Error, Result},
    sink::PushSummary,
};

/// FORMAT.md, "Payloads": how a table begins. No OTLP request begins with a zero byte: it would be a field of number 0.
const TABLE_MARK: [u8; 8] = *b"\0SPANS\0\x01";

/// Spans on their way into the log and the live spans.
#[derive(Debug, Clone)]
pub enum Payload {
    /// An uncompressed protobuf `ExportTraceServiceRequest`, as it came.
    Otlp(Bytes),
    /// A checked table.
    Table {
        /// The spans.
        table: Arc<SpanTable>,
        /// What the log holds of it, in parts.
        record: Vec<Bytes>,
    },
}

impl Payload {
    /// A table with its record, of which what is no column's own buffer is in one of `buffers`. Errors: `Internal`.
    pub fn of_table(table: SpanTable, buffers: &Buffers) -> Result<Self> {
        let record = table.record(&TABLE_MARK, buffers)?;
        Ok(Self::Table { table: Arc::new(table), record })
    }

    /// Reads the payload of a record of the log. Errors: `Data` for a table that cannot be read; requests are not looked at.
    pub fn of_record(record: Bytes) -> Result<Self> {
        match record.strip_prefix(&TABLE_MARK) {
            Some(_) => {
                let table = Arc::new(SpanTable::read_record(record.slice(TABLE_MARK.len()..))?);
                Ok(Self::Table { table, record: vec![record] })
            }
            None => Ok(Self::Otlp(record)),
        }
    }

    /// What the log holds, in parts that follow each other.
    pub fn parts(&self) -> &[Bytes] {
        match self {
            Self::Otlp(request) => std::slice::from_ref(request),
            Self::Table { record, .. } => record,
        }
    }

    /// Bytes in the log, which are what limits count.
    pub fn bytes(&self) -> usize {
        self.parts().iter().map(Bytes::len).sum()
    }

    /// What it holds. Errors: what is wrong with a request; tables were checked when they were made.
    pub(crate) fn checked(&self) -> Result<PushSummary, DecodeError> {
        Ok(match self {
            Self::Otlp(request) => {
                let summary = check(request)?;
                PushSummary { spans: summary.spans, traces: summary.trace_runs }
            }
            Self::Table { table, .. } => PushSummary { spans: table.len() as u64, traces: table.trace_runs() },
        })
    }

    /// Appends the spans of a checked payload. Errors: `Internal` when a request does not pass the check it passed before.
    pub(crate) fn append_to(&self, builder: &mut SpanBuilder) -> Result<()> {
        match self {
            Self::Otlp(request) => decode(request, builder).map_err(|error| Error::internal("decoding a checked request").with_source(error)),
            Self::Table { table, .. } => {
                builder.append_table(table, self.bytes());
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
    use skein_engine::error::ErrorKind;

    use super::*;

    /// Two spans of one trace.
    fn table() -> SpanTable {
        let texts = |values: [&str; 2]| -> ArrayRef { Arc::new(StringArray::from(values.to_vec())) };
        let numbers = |values: [i64; 2]| -> ArrayRef { Arc::new(Int64Array::from(values.to_vec())) };
        let batch = RecordBatch::try_from_iter([
            ("trace_id", texts(["0af7651916cd43dd8448eb211c80319c"; 2])),
            ("span_id", texts(["b7ad6b7169203331", "b7ad6b7169203332"])),
            ("name", texts(["GET /", "SELECT"])),
            ("start_time", numbers([1_700_000_000_000_000_000; 2])),
            ("duration_nanos", numbers([5, 7])),
        ]);
        SpanTable::try_new(&batch.unwrap()).unwrap()
    }

    fn spans_in(payload: &Payload) -> (usize, u64) {
        let mut builder = SpanBuilder::default();
        payload.append_to(&mut builder).unwrap();
        (builder.len(), builder.wire_bytes())
    }

    #[test]
    fn a_table_comes_back_from_its_record() {
        let payload = Payload::of_table(table(), &Buffers::default()).unwrap();
        let record = Bytes::from(payload.parts().concat());
        assert_eq!((record[0], record.len()), (0, payload.bytes()));
        assert!(check(&record).is_err(), "no request");
        let again = Payload::of_record(record).unwrap();
        assert!(matches!(again, Payload::Table { .. }));
        for payload in [payload, again] {
            assert_eq!(payload.checked(), Ok(PushSummary { spans: 2, traces: 1 }));
            assert_eq!(spans_in(&payload), (2, payload.bytes() as u64));
        }
    }

    #[test]
    fn whatever_does_not_begin_with_the_mark_is_a_request() {
        for request in [&b""[..], &[0x0A, 0], &TABLE_MARK[..7]] {
            assert!(matches!(Payload::of_record(Bytes::copy_from_slice(request)), Ok(Payload::Otlp(_))));
        }
    }

    #[test]
    fn a_table_that_cannot_be_read_is_damage() {
        let whole = Bytes::from(Payload::of_table(table(), &Buffers::default()).unwrap().parts().concat());
        for length in [TABLE_MARK.len(), TABLE_MARK.len() + 1, whole.len() / 2] {
            assert_eq!(Payload::of_record(whole.slice(..length)).map(|_| ()).unwrap_err().kind(), ErrorKind::Data, "{length} bytes");
        }
    }
}
