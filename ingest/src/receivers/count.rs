//! Counts the spans of a request by walking the lengths on the wire. Reads some bytes a span and allocates nothing.

use crate::error::{Error, Result};

/// Field numbers on the way from a request to a span: `ExportTraceServiceRequest.resource_spans`, `ResourceSpans.scope_spans`, `ScopeSpans.spans`.
const PATH: [u64; 3] = [1, 2, 2];

/// Spans in `request`, a protobuf `ExportTraceServiceRequest`. Does not look into spans.
/// Errors: `Invalid` where the outer messages are not protobuf.
pub fn spans(request: &[u8]) -> Result<u64> {
    count(request, &PATH)
}

fn count(mut message: &[u8], path: &[u64]) -> Result<u64> {
    let Some((&wanted, inner)) = path.split_first() else { return Ok(1) };
    let mut spans = 0;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let field = key >> 3;
        match key & 7 {
            0 => drop(varint(&mut message)?),
            1 => drop(take(&mut message, 8)?),
            2 => {
                let length = varint(&mut message)?;
                let value = take(&mut message, length)?;
                if field == wanted {
                    spans += count(value, inner)?;
                }
            }
            5 => drop(take(&mut message, 4)?),
            wire_type => return Err(malformed(format!("wire type {wire_type} of field {field}"))),
        }
        if field == 0 {
            return Err(malformed("field number 0".into()));
        }
    }
    Ok(spans)
}

fn take<'a>(message: &mut &'a [u8], length: u64) -> Result<&'a [u8]> {
    let split = usize::try_from(length).ok().and_then(|length| message.split_at_checked(length));
    let (value, rest) = split.ok_or_else(|| malformed(format!("field of {length} bytes where {} are left", message.len())))?;
    *message = rest;
    Ok(value)
}

fn varint(message: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for (index, &byte) in message.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7F) << (7 * index);
        if byte < 0x80 {
            *message = &message[index + 1..];
            return Ok(value);
        }
    }
    Err(malformed("number cut short or too long".into()))
}

fn malformed(what: String) -> Error {
    Error::invalid(format!("malformed ExportTraceServiceRequest: {what}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use prost::Message;

    use super::*;
    use crate::receivers::tests::otlp::{ExportTraceServiceRequest, ResourceSpans, ScopeSpans, Span};

    #[test]
    fn counts_across_resources_and_scopes_and_passes_other_fields() {
        let scope =
            |spans| ScopeSpans { schema_url: "s".into(), spans: vec![Span { name: "n".into(), ..Span::default() }; spans], ..ScopeSpans::default() };
        let resource = |spans: &[usize]| ResourceSpans {
            resource: Some(Default::default()),
            schema_url: "u".into(),
            scope_spans: spans.iter().copied().map(scope).collect(),
        };
        let request = ExportTraceServiceRequest { resource_spans: vec![resource(&[1, 2]), resource(&[]), resource(&[0, 4])] };
        assert_eq!(spans(&request.encode_to_vec()).unwrap(), 7);
        assert_eq!(spans(&[]).unwrap(), 0);
    }

    #[test]
    fn empty_spans_count() {
        assert_eq!(spans(&[0x0A, 4, 0x12, 2, 0x12, 0]).unwrap(), 1);
    }

    #[test]
    fn malformed_bytes_are_invalid() {
        for bytes in [&[0x0A][..], &[0x0A, 5, 0], &[0x0B], &[0x02, 0], &[0xFF; 11], &[0x0A, 3, 0x12, 5, 0], &[0x0D, 1], &[0x09, 1]] {
            assert_eq!(spans(bytes).unwrap_err().kind(), crate::error::ErrorKind::Invalid, "{bytes:?}");
        }
    }
}
