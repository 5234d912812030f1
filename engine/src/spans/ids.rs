//! Trace, span and block ids.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use uuid::Uuid;

use crate::error::{Error, Result};

/// A 128-bit trace id, big-endian as on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TraceId(pub [u8; 16]);

impl TraceId {
    /// Puts the two halves together, most significant first.
    pub fn from_halves(high: i64, low: i64) -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&high.to_be_bytes());
        bytes[8..].copy_from_slice(&low.to_be_bytes());
        Self(bytes)
    }

    /// The two halves, most significant first, as the span table stores them.
    pub fn halves(self) -> (i64, i64) {
        let value = u128::from_be_bytes(self.0);
        ((value >> 64) as i64, value as i64)
    }

    /// Reads up to 32 hexadecimal digits, padding on the left. Errors: `Invalid`, with Tempo's words.
    pub fn parse_hex(text: &str) -> Result<Self> {
        if let Some((at, bad)) = text.chars().enumerate().find(|(_, c)| !c.is_ascii_hexdigit()) {
            return Err(Error::invalid(format!("trace IDs can only contain hex characters: invalid character '{bad}' at position {}", at + 1)));
        }
        if text.len() > 32 {
            return Err(Error::invalid("trace IDs can't be larger than 128 bits"));
        }
        let value =
            if text.is_empty() { 0 } else { u128::from_str_radix(text, 16).map_err(|e| Error::invalid("reading the trace ID").with_source(e))? };
        Ok(Self(value.to_be_bytes()))
    }

    /// Lower-case hexadecimal without leading zeros, as Tempo's search shows ids. Empty for the zero id.
    pub fn to_short_hex(self) -> String {
        match u128::from_be_bytes(self.0) {
            0 => String::new(),
            value => format!("{value:x}"),
        }
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A 64-bit span id, big-endian as on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SpanId(pub [u8; 8]);

impl SpanId {
    /// The id as the integer that the span table stores.
    pub fn to_i64(self) -> i64 {
        i64::from_be_bytes(self.0)
    }

    /// The id from the integer that the span table stores.
    pub fn from_i64(value: i64) -> Self {
        Self(value.to_be_bytes())
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The id of a block: the name of its folder below the tenant's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub Uuid);

impl BlockId {
    /// A new random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// The id with this number.
    pub fn from_u128(number: u128) -> Self {
        Self(Uuid::from_u128(number))
    }

    /// Reads the usual hyphenated form. Errors: `Invalid`.
    pub fn parse(text: &str) -> Result<Self> {
        Uuid::parse_str(text).map(Self).map_err(|e| Error::invalid(format!("block ID '{text}'")).with_source(e))
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.hyphenated(), f)
    }
}

impl fmt::Debug for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Ids are text in JSON.
macro_rules! as_text {
    ($id:ty, $parse:expr) => {
        impl Serialize for $id {
            fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                $parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
            }
        }
    };
}

as_text!(TraceId, TraceId::parse_hex);
as_text!(BlockId, BlockId::parse);
