//! Borrowed views over protobuf bytes: the only protobuf reader on the write path, and the one that reads kept OTLP bytes back.
//! Knows wire types, not messages. Nothing is allocated.

use std::fmt;

/// A byte string that is not protobuf, or not the message it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WireError {
    /// The bytes end inside a field.
    Truncated,
    /// A varint is longer than ten bytes.
    Varint,
    /// A field number of zero, or a wire type that proto3 does not have.
    Tag,
    /// A known field has another wire type than it should.
    Type,
    /// Messages are nested deeper than [`NESTING_MAX`].
    Nesting,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "the message ends inside a field",
            Self::Varint => "a varint is longer than ten bytes",
            Self::Tag => "a field has number zero or an unknown wire type",
            Self::Type => "a known field has the wrong wire type",
            Self::Nesting => "values are nested too deeply",
        })
    }
}

impl std::error::Error for WireError {}

/// How deep values may be nested; prost refuses messages deeper than 100 levels in all.
pub const NESTING_MAX: usize = 90;

/// One field's content.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Field<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64(u64),
    /// Wire type 2.
    Bytes(&'a [u8]),
    /// Wire type 5.
    Fixed32(u32),
}

impl<'a> Field<'a> {
    /// The bytes of a length-delimited field. Errors: `Type`.
    #[inline]
    pub fn bytes(self) -> Result<&'a [u8], WireError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(WireError::Type),
        }
    }

    /// The value of a varint field. Errors: `Type`.
    #[inline]
    pub fn varint(self) -> Result<u64, WireError> {
        match self {
            Self::Varint(value) => Ok(value),
            _ => Err(WireError::Type),
        }
    }

    /// The value of a fixed64 field. Errors: `Type`.
    #[inline]
    pub fn fixed64(self) -> Result<u64, WireError> {
        match self {
            Self::Fixed64(value) => Ok(value),
            _ => Err(WireError::Type),
        }
    }

    /// The value of a fixed32 field. Errors: `Type`.
    #[inline]
    pub fn fixed32(self) -> Result<u32, WireError> {
        match self {
            Self::Fixed32(value) => Ok(value),
            _ => Err(WireError::Type),
        }
    }
}

/// Walks the fields of one message.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Walks `message`.
    #[inline]
    pub fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, WireError> {
        let (value, length) = read_varint(self.rest)?;
        self.rest = &self.rest[length..];
        Ok(value)
    }

    #[inline]
    fn take(&mut self, length: usize) -> Result<&'a [u8], WireError> {
        let (head, rest) = self.rest.split_at_checked(length).ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    /// The next field's number and content; None at the end. Errors: every [`WireError`] but `Type` and `Nesting`.
    #[inline]
    pub fn next_field(&mut self) -> Result<Option<(u32, Field<'a>)>, WireError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| WireError::Tag)?;
        if number == 0 {
            return Err(WireError::Tag);
        }
        let field = match tag & 7 {
            0 => Field::Varint(self.varint()?),
            1 => Field::Fixed64(u64::from_le_bytes(array(self.take(8)?))),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| WireError::Truncated)?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Fixed32(u32::from_le_bytes(array(self.take(4)?))),
            _ => return Err(WireError::Tag),
        };
        Ok(Some((number, field)))
    }
}

#[inline]
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(bytes);
    out
}

/// Reads a varint at the start of `bytes`: its value and its length. Errors: `Truncated`, `Varint`.
#[inline]
pub fn read_varint(bytes: &[u8]) -> Result<(u64, usize), WireError> {
    match bytes.first() {
        Some(&byte) if byte < 0x80 => Ok((u64::from(byte), 1)),
        _ => read_long_varint(bytes),
    }
}

fn read_long_varint(bytes: &[u8]) -> Result<(u64, usize), WireError> {
    let mut value = 0;
    for (at, &byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte < 0x80 {
            return Ok((value, at + 1));
        }
    }
    Err(if bytes.len() < 10 { WireError::Truncated } else { WireError::Varint })
}

/// Appends `value` as a varint.
pub fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends `body` as the length-delimited field `number`.
pub fn write_bytes_field(out: &mut Vec<u8>, number: u32, body: &[u8]) {
    write_varint(out, u64::from(number) << 3 | 2);
    write_varint(out, body.len() as u64);
    out.extend_from_slice(body);
}

/// Bytes of a length-delimited field whose number is below 16.
pub fn bytes_field_length(body: usize) -> usize {
    let bits = usize::BITS - (body | 1).leading_zeros();
    1 + bits.div_ceil(7) as usize + body
}

/// An OTLP `AnyValue` as it lies on the wire.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AnyValue<'a> {
    /// No value at all, or a member this version does not know.
    Empty,
    /// Field 1, not yet checked for UTF-8.
    String(&'a [u8]),
    /// Field 2.
    Bool(bool),
    /// Field 3.
    Int(i64),
    /// Field 4.
    Double(f64),
    /// Field 5: an `ArrayValue` message.
    Array(&'a [u8]),
    /// Field 6: a `KeyValueList` message.
    KeyValueList(&'a [u8]),
    /// Field 7.
    Bytes(&'a [u8]),
}

impl<'a> AnyValue<'a> {
    /// Reads an `AnyValue` message without looking inside arrays and lists; of several members the last counts.
    /// Errors: every [`WireError`] but `Nesting`.
    #[inline]
    pub fn parse(message: &'a [u8]) -> Result<Self, WireError> {
        let mut value = Self::Empty;
        let mut fields = Fields::new(message);
        while let Some((number, field)) = fields.next_field()? {
            value = match number {
                1 => Self::String(field.bytes()?),
                2 => Self::Bool(field.varint()? != 0),
                3 => Self::Int(field.varint()? as i64),
                4 => Self::Double(f64::from_bits(field.fixed64()?)),
                5 => Self::Array(field.bytes()?),
                6 => Self::KeyValueList(field.bytes()?),
                7 => Self::Bytes(field.bytes()?),
                _ => value,
            };
        }
        Ok(value)
    }
}

/// Checks an `AnyValue` message down to its leaves. Errors: every [`WireError`].
pub fn check_any_value(message: &[u8], depth: usize) -> Result<(), WireError> {
    if depth >= NESTING_MAX {
        return Err(WireError::Nesting);
    }
    match AnyValue::parse(message)? {
        AnyValue::Array(values) => {
            let mut fields = Fields::new(values);
            while let Some((number, field)) = fields.next_field()? {
                if number == 1 {
                    check_any_value(field.bytes()?, depth + 2)?;
                }
            }
            Ok(())
        }
        AnyValue::KeyValueList(values) => {
            let mut fields = Fields::new(values);
            while let Some((number, field)) = fields.next_field()? {
                if number == 1
                    && let Some(value) = KeyValue::parse(field.bytes()?)?.value
                {
                    check_any_value(value, depth + 3)?;
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// An OTLP `KeyValue` as it lies on the wire.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KeyValue<'a> {
    /// Field 1, not yet checked for UTF-8.
    pub key: &'a [u8],
    /// Field 2: an `AnyValue` message; None when the field is missing.
    pub value: Option<&'a [u8]>,
}

impl<'a> KeyValue<'a> {
    /// Reads a `KeyValue` message. Errors: every [`WireError`] but `Nesting`.
    #[inline]
    pub fn parse(message: &'a [u8]) -> Result<Self, WireError> {
        let (mut key, mut value) = (&[][..], None);
        let mut fields = Fields::new(message);
        while let Some((number, field)) = fields.next_field()? {
            match number {
                1 => key = field.bytes()?,
                2 => value = Some(field.bytes()?),
                _ => {}
            }
        }
        Ok(Self { key, value })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn varints_of_every_length_come_back() {
        for shift in 0..64 {
            for value in [1u64 << shift, (1u64 << shift) - 1, u64::MAX >> shift] {
                let mut bytes = Vec::new();
                write_varint(&mut bytes, value);
                assert_eq!(read_varint(&bytes), Ok((value, bytes.len())));
                assert_eq!(read_varint(&bytes[..bytes.len() - 1]), Err(WireError::Truncated));
            }
        }
    }

    #[test]
    fn fields_are_as_long_as_is_said() {
        for length in [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152] {
            let mut bytes = Vec::new();
            write_bytes_field(&mut bytes, 15, &vec![0; length]);
            assert_eq!(bytes.len(), bytes_field_length(length));
        }
    }

    #[test]
    fn damaged_messages_are_named() {
        let check = |bytes: &[u8], expected| assert_eq!(Fields::new(bytes).next_field(), Err(expected), "{bytes:?}");
        check(&[0x0a, 5, 1], WireError::Truncated);
        check(&[0x09, 1, 2], WireError::Truncated);
        check(&[0x0d, 1], WireError::Truncated);
        check(&[0x02, 0], WireError::Tag);
        check(&[0x0b], WireError::Tag);
        check(&[0xff; 11], WireError::Varint);
    }

    #[test]
    fn deep_values_are_refused() {
        let mut message = vec![0x0a, 1, b'x'];
        for _ in 0..200 {
            let mut list = Vec::new();
            write_bytes_field(&mut list, 1, &message);
            message = Vec::new();
            write_bytes_field(&mut message, 5, &list);
        }
        assert_eq!(check_any_value(&message, 0), Err(WireError::Nesting));
    }
}
