//! What a push holds: an OTLP request or a table of spans; and how the log tells them apart (wal/FORMAT.md, "Payloads").

use std::sync::Arc;

use bytes::Bytes;
use skein_engine::spans::{builder::SpanBuilder, written::SpanTable};

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
        /// What the log holds of it.
        record: Bytes,
    },
}

impl Payload {
    /// A table with its record. Errors: `Internal`.
    pub fn of_table(table: SpanTable) -> Result<Self> {
        let mut record = TABLE_MARK.to_vec();
        table.write_record(&mut record)?;
        Ok(Self::Table { table: Arc::new(table), record: record.into() })
    }

    /// Reads the payload of a record of the log. Errors: `Data` for a table that cannot be read; requests are not looked at.
    pub fn of_record(record: Bytes) -> Result<Self> {
        match record.strip_prefix(&TABLE_MARK) {
            Some(_) => {
                let table = Arc::new(SpanTable::read_record(record.slice(TABLE_MARK.len()..))?);
                Ok(Self::Table { table, record })
            }
            None => Ok(Self::Otlp(record)),
        }
    }

    /// What the log holds, and what limits count.
    pub fn bytes(&self) -> &Bytes {
        match self {
            Self::Otlp(request) => request,
            Self::Table { record, .. } => record,
        }
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
            Self::Table { table, record } => {
                builder.append_table(table, record.len());
                Ok(())
            }
        }
    }
}
