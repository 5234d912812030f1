//! Values as TraceQL sees them.

use std::{fmt, sync::Arc};

use skein_proto::otlp::common::v1::{AnyValue as OtlpValue, ArrayValue, any_value};

use super::{
    pool::utf8,
    wire::{AnyValue, Fields},
};
use crate::traceql::{Kind, Static, Status};

/// One value of one span. Numbers of different types compare by size; see [`compare`](crate::exec).
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    /// Missing.
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    String(Arc<str>),
    /// Nanoseconds.
    Duration(i64),
    Status(Status),
    Kind(Kind),
    /// Values of one scalar type; never exactly one, which reads as the value itself.
    Array(Arc<[Value]>),
}

impl Value {
    /// Bytes beside the value itself, if it is the only one that has its text.
    pub fn text_bytes(&self) -> usize {
        match self {
            Self::String(text) => text.len() + 16,
            Self::Array(values) => values.iter().map(|value| size_of::<Self>() + value.text_bytes()).sum(),
            _ => 0,
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.into())
    }
}

impl From<&Static> for Value {
    fn from(value: &Static) -> Self {
        match value {
            Static::Nil => Self::Nil,
            Static::Int(value) => Self::Int(*value),
            Static::Float(value) => Self::Float(*value),
            Static::String(value) => Self::String(value.clone()),
            Static::Bool(value) => Self::Bool(*value),
            Static::Duration(value) => Self::Duration(*value),
            Static::Status(value) => Self::Status(*value),
            Static::Kind(value) => Self::Kind(*value),
        }
    }
}

impl Value {
    /// The value as a double, if it is a number or a duration (in nanoseconds).
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Int(value) | Self::Duration(value) => Some(*value as f64),
            Self::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// The value in OTLP form as search shows it: durations, status and kind as text; `Nil` as the text `nil`.
    pub fn to_otlp(&self) -> OtlpValue {
        use any_value::Value as V;
        let value = match self {
            Self::Bool(value) => V::BoolValue(*value),
            Self::Int(value) => V::IntValue(*value),
            Self::Float(value) => V::DoubleValue(*value),
            Self::Array(values) => V::ArrayValue(ArrayValue { values: values.iter().map(Self::to_otlp).collect() }),
            text => V::StringValue(text.to_string()),
        };
        OtlpValue { value: Some(value) }
    }

    /// The type's name in the tag value API.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Nil | Self::String(_) | Self::Array(_) => "string",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Duration(_) => "duration",
            Self::Status(_) | Self::Kind(_) => "keyword",
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nil => f.write_str("nil"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Int(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value}"),
            Self::String(value) => f.write_str(value),
            Self::Duration(value) => write!(f, "{}", Static::Duration(*value)),
            Self::Status(value) => write!(f, "{}", Static::Status(*value)),
            Self::Kind(value) => write!(f, "{}", Static::Kind(*value)),
            Self::Array(values) => {
                f.write_str("[")?;
                for (at, value) in values.iter().enumerate() {
                    write!(f, "{}{value}", if at == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
        }
    }
}

/// Reads an OTLP `AnyValue` message. Bytes, lists of pairs, nested and mixed arrays, and what cannot be read are `Nil`.
pub fn value_of_any(message: &[u8]) -> Value {
    match AnyValue::parse(message) {
        Ok(AnyValue::Array(values)) => array_value(values),
        Ok(value) => scalar_value(value),
        Err(_) => Value::Nil,
    }
}

fn scalar_value(value: AnyValue<'_>) -> Value {
    match value {
        AnyValue::String(text) => Value::String(utf8(text).into()),
        AnyValue::Bool(value) => Value::Bool(value),
        AnyValue::Int(value) => Value::Int(value),
        AnyValue::Double(value) => Value::Float(value),
        _ => Value::Nil,
    }
}

fn array_value(message: &[u8]) -> Value {
    let mut values: Vec<Value> = Vec::new();
    let mut fields = Fields::new(message);
    while let Ok(Some((number, field))) = fields.next_field() {
        if number != 1 {
            continue;
        }
        let value = field.bytes().ok().and_then(|bytes| AnyValue::parse(bytes).ok()).map_or(Value::Nil, scalar_value);
        let mixed = values.first().is_some_and(|first| std::mem::discriminant(first) != std::mem::discriminant(&value));
        if value == Value::Nil || mixed {
            return Value::Nil;
        }
        values.push(value);
    }
    match values.len() {
        1 => values.swap_remove(0),
        _ => Value::Array(values.into()),
    }
}
