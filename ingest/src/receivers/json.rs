//! OTLP JSON to OTLP protobuf (opentelemetry-proto, "JSON Protobuf Encoding"; Tempo's decoder where it is more lenient).
//!
//! Field names in lowerCamelCase or snake_case; ids in hex of either case; integers as numbers or decimal text; enums as numbers, known or not, or names; bytes
//! in base64; `null` is an absent field; unknown fields are skipped; of a field that is there twice the last counts.
//!
//! Objects and arrays may be nested 127 deep (the JSON library's bound, which keeps the recursion within a thread's stack), which is 25 levels and more of
//! attribute values. Unknown fields may be nested deeper.

use std::{borrow::Cow, fmt, marker::PhantomData};

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use prost::Message;
use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use skein_proto::otlp::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList, any_value::Value},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status,
        span::{Event, Link, SpanKind},
        status::StatusCode,
    },
};

use crate::error::{Error, Result};

/// Standard alphabet, padded or not.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));
/// URL-safe alphabet, padded or not; proto-JSON readers take both.
const BASE64_URL: GeneralPurpose =
    GeneralPurpose::new(&alphabet::URL_SAFE, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// The protobuf of `body`, an OTLP JSON `ExportTraceServiceRequest`. Ids are taken as they are, of any length.
/// Errors: `Invalid`, with line and column.
/// Cost: builds the whole request as structs; meant for small clients and tests, not for volume.
pub fn to_protobuf(body: &[u8]) -> Result<Bytes> {
    let body = fractions_as_text(body);
    let mut deserializer = serde_json::Deserializer::from_slice(&body);
    let request = Json::<ExportTraceServiceRequest>::deserialize(&mut deserializer).and_then(|request| deserializer.end().map(|()| request.0));
    match request {
        Ok(request) => Ok(request.encode_to_vec().into()),
        Err(error) => Err(Error::invalid("malformed OTLP JSON").with_source(error)),
    }
}

/// `body` with the numbers that have a fraction or exponent, or more digits than a double, put in quotes. The JSON library reads such numbers quickly, and off
/// by a bit in the last place; as text they come to [`Double`] and [`NumberOrText`], which read them exactly. Copies only a body that has any.
fn fractions_as_text(body: &[u8]) -> Cow<'_, [u8]> {
    let mut quoted = Vec::new();
    let mut copied = 0;
    let mut at = 0;
    let mut after_colon = false;
    while let Some(&byte) = body.get(at) {
        let begun = at;
        at += 1;
        match byte {
            b'"' => {
                while let Some(&byte) = body.get(at) {
                    at += if byte == b'\\' { 2 } else { 1 };
                    if byte == b'"' {
                        break;
                    }
                }
            }
            b'-' | b'0'..=b'9' if after_colon => {
                at += body[at..].iter().take_while(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-')).count();
                let number = &body[begun..at];
                let inexact = number.len() > 15 || number.iter().any(|byte| matches!(byte, b'.' | b'e' | b'E'));
                // What is no number is left for the library to refuse.
                if inexact && serde_json::from_slice::<IgnoredAny>(number).is_ok() {
                    quoted.extend([&body[copied..begun], b"\"", number, b"\""].concat());
                    copied = at;
                }
            }
            b' ' | b'\t' | b'\n' | b'\r' => continue,
            _ => {}
        }
        after_colon = byte == b':';
    }
    if copied == 0 {
        return Cow::Borrowed(body);
    }
    quoted.extend(&body[copied..]);
    Cow::Owned(quoted)
}

/// A message read from JSON.
struct Json<T>(T);

/// Reads a message from a JSON object: `"camelCase" "snake_case" => field: how to read it`.
macro_rules! message {
    ($message:ty { $($camel:literal $($snake:literal)? => $field:ident: $how:ty),* $(,)? }) => {
        impl<'de> Deserialize<'de> for Json<$message> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Fields;
                impl<'de> Visitor<'de> for Fields {
                    type Value = Json<$message>;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(concat!("an object (", stringify!($message), ")"))
                    }

                    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
                        let mut message = <$message>::default();
                        while let Some(name) = fields.next_key::<Cow<'de, str>>()? {
                            match &*name {
                                $($camel $(| $snake)? => message.$field = fields.next_value::<$how>()?.0,)*
                                _ => drop(fields.next_value::<IgnoredAny>()?),
                            }
                        }
                        Ok(Json(message))
                    }
                }
                deserializer.deserialize_map(Fields)
            }
        }
    };
}

message!(ExportTraceServiceRequest { "resourceSpans" "resource_spans" => resource_spans: List<ResourceSpans> });
message!(ResourceSpans {
    "resource" => resource: Maybe<Resource>,
    "scopeSpans" "scope_spans" => scope_spans: List<ScopeSpans>,
    "schemaUrl" "schema_url" => schema_url: Text,
});
message!(Resource {
    "attributes" => attributes: List<KeyValue>,
    "droppedAttributesCount" "dropped_attributes_count" => dropped_attributes_count: Number<u32>,
    "entityRefs" "entity_refs" => entity_refs: List<EntityRef>,
});
message!(EntityRef {
    "schemaUrl" "schema_url" => schema_url: Text,
    "type" => r#type: Text,
    "idKeys" "id_keys" => id_keys: Texts,
    "descriptionKeys" "description_keys" => description_keys: Texts,
});
message!(ScopeSpans {
    "scope" => scope: Maybe<InstrumentationScope>,
    "spans" => spans: List<Span>,
    "schemaUrl" "schema_url" => schema_url: Text,
});
message!(InstrumentationScope {
    "name" => name: Text,
    "version" => version: Text,
    "attributes" => attributes: List<KeyValue>,
    "droppedAttributesCount" "dropped_attributes_count" => dropped_attributes_count: Number<u32>,
});
message!(Span {
    "traceId" "trace_id" => trace_id: Hex,
    "spanId" "span_id" => span_id: Hex,
    "traceState" "trace_state" => trace_state: Text,
    "parentSpanId" "parent_span_id" => parent_span_id: Hex,
    "flags" => flags: Number<u32>,
    "name" => name: Text,
    "kind" => kind: Enum<SpanKind>,
    "startTimeUnixNano" "start_time_unix_nano" => start_time_unix_nano: Number<u64>,
    "endTimeUnixNano" "end_time_unix_nano" => end_time_unix_nano: Number<u64>,
    "attributes" => attributes: List<KeyValue>,
    "droppedAttributesCount" "dropped_attributes_count" => dropped_attributes_count: Number<u32>,
    "events" => events: List<Event>,
    "droppedEventsCount" "dropped_events_count" => dropped_events_count: Number<u32>,
    "links" => links: List<Link>,
    "droppedLinksCount" "dropped_links_count" => dropped_links_count: Number<u32>,
    "status" => status: Maybe<Status>,
});
message!(Event {
    "timeUnixNano" "time_unix_nano" => time_unix_nano: Number<u64>,
    "name" => name: Text,
    "attributes" => attributes: List<KeyValue>,
    "droppedAttributesCount" "dropped_attributes_count" => dropped_attributes_count: Number<u32>,
});
message!(Link {
    "traceId" "trace_id" => trace_id: Hex,
    "spanId" "span_id" => span_id: Hex,
    "traceState" "trace_state" => trace_state: Text,
    "attributes" => attributes: List<KeyValue>,
    "droppedAttributesCount" "dropped_attributes_count" => dropped_attributes_count: Number<u32>,
    "flags" => flags: Number<u32>,
});
message!(Status {
    "message" => message: Text,
    "code" => code: Enum<StatusCode>,
});
message!(KeyValue {
    "key" => key: Text,
    "value" => value: Maybe<AnyValue>,
});
message!(ArrayValue { "values" => values: List<AnyValue> });
message!(KeyValueList { "values" => values: List<KeyValue> });

impl<'de> Deserialize<'de> for Json<AnyValue> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Json<AnyValue>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object (AnyValue)")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
                let mut value = None;
                while let Some(name) = fields.next_key::<Cow<'de, str>>()? {
                    // A null member of a oneof is an unset one.
                    let member = match &*name {
                        "stringValue" | "string_value" => fields.next_value::<Option<String>>()?.map(Value::StringValue),
                        "boolValue" | "bool_value" => fields.next_value::<Option<bool>>()?.map(Value::BoolValue),
                        "intValue" | "int_value" => fields.next_value::<Option<Number<i64>>>()?.map(|number| Value::IntValue(number.0)),
                        "doubleValue" | "double_value" => fields.next_value::<Option<Double>>()?.map(|double| Value::DoubleValue(double.0)),
                        "arrayValue" | "array_value" => fields.next_value::<Option<Json<ArrayValue>>>()?.map(|array| Value::ArrayValue(array.0)),
                        "kvlistValue" | "kvlist_value" => fields.next_value::<Option<Json<KeyValueList>>>()?.map(|list| Value::KvlistValue(list.0)),
                        "bytesValue" | "bytes_value" => fields.next_value::<Option<Base64>>()?.map(|bytes| Value::BytesValue(bytes.0)),
                        _ => {
                            fields.next_value::<IgnoredAny>()?;
                            None
                        }
                    };
                    value = member.or(value);
                }
                Ok(Json(AnyValue { value }))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// A message that may be absent.
struct Maybe<T>(Option<T>);

impl<'de, T> Deserialize<'de> for Maybe<T>
where
    Json<T>: Deserialize<'de>,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::<Json<T>>::deserialize(deserializer).map(|message| Self(message.map(|message| message.0)))
    }
}

/// Repeated messages.
struct List<T>(Vec<T>);

impl<'de, T> Deserialize<'de> for List<T>
where
    Json<T>: Deserialize<'de>,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T>(PhantomData<T>);
        impl<'de, T> Visitor<'de> for Items<T>
        where
            Json<T>: Deserialize<'de>,
        {
            type Value = List<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
                Ok(List(Vec::new()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while let Some(Json(item)) = items.next_element()? {
                    list.push(item);
                }
                Ok(List(list))
            }
        }
        deserializer.deserialize_any(Items(PhantomData))
    }
}

/// A string.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::<String>::deserialize(deserializer).map(|text| Self(text.unwrap_or_default()))
    }
}

/// Repeated strings.
struct Texts(Vec<String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::<Vec<String>>::deserialize(deserializer).map(|texts| Self(texts.unwrap_or_default()))
    }
}

/// An id in hex, of any length.
struct Hex(Vec<u8>);

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Text(text) = Text::deserialize(deserializer)?;
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
        let byte = |pair: &[u8]| match pair {
            &[high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        };
        let bytes = text.as_bytes().chunks(2).map(byte).collect::<Option<_>>();
        bytes.map(Self).ok_or_else(|| de::Error::custom(format_args!("id {text:?} is not hex")))
    }
}

/// Bytes in base64.
struct Base64(Vec<u8>);

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64.decode(&text).or_else(|_| BASE64_URL.decode(&text));
        bytes.map(Self).map_err(|error| de::Error::custom(format_args!("bytesValue is not base64: {error}")))
    }
}

/// An integer: a number, also one written with a fraction or exponent as long as it is whole, or its decimal text.
struct Number<T>(T);

/// What the widest integers of OTLP fit in.
type Wide = i128;

impl<'de, T: TryFrom<Wide>> Deserialize<'de> for Number<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wide = deserializer.deserialize_any(NumberOrText { names: |_| None })?;
        T::try_from(wide).map(Self).map_err(|_| de::Error::custom(format_args!("integer {wide} is out of range")))
    }
}

/// An enum: a number, known or not, or the name of a known one.
struct Enum<T>(i32, PhantomData<T>);

/// An enum whose values have names in JSON.
trait Named {
    fn number(name: &str) -> Option<i32>;
}

impl Named for SpanKind {
    fn number(name: &str) -> Option<i32> {
        Self::from_str_name(name).map(|kind| kind as i32)
    }
}

impl Named for StatusCode {
    fn number(name: &str) -> Option<i32> {
        Self::from_str_name(name).map(|code| code as i32)
    }
}

impl<'de, T: Named> Deserialize<'de> for Enum<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wide = deserializer.deserialize_any(NumberOrText { names: T::number })?;
        i32::try_from(wide).map(|number| Self(number, PhantomData)).map_err(|_| de::Error::custom(format_args!("enum value {wide} is out of range")))
    }
}

/// Reads an integer, its text, or one of the names.
struct NumberOrText {
    names: fn(&str) -> Option<i32>,
}

impl Visitor<'_> for NumberOrText {
    type Value = Wide;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an integer, as a number or as text")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Wide, E> {
        Ok(0)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Wide, E> {
        Ok(number.into())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Wide, E> {
        Ok(number.into())
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Wide, E> {
        // Up to 2^64 in size, where the cast is exact.
        if number.fract() == 0.0 && number.abs() <= u64::MAX as f64 {
            Ok(number as Wide)
        } else {
            Err(E::invalid_value(de::Unexpected::Float(number), &self))
        }
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Wide, E> {
        match (self.names)(text).map(Wide::from).or_else(|| text.parse().ok()) {
            Some(number) => Ok(number),
            None => text.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self)).and_then(|number| self.visit_f64(number)),
        }
    }
}

/// A double: a number, its text, or `NaN`, `Infinity`, `-Infinity`.
struct Double(f64);

impl<'de> Deserialize<'de> for Double {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrName;
        impl Visitor<'_> for NumberOrName {
            type Value = Double;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, as a number or as text")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Double, E> {
                Ok(Double(number as f64))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Double, E> {
                Ok(Double(number as f64))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Double, E> {
                Ok(Double(number))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Double, E> {
                text.parse().map(Double).map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(NumberOrName)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::{collection::vec, option, prelude::*};
    use serde_json::{Value as JsonValue, json};

    use super::*;

    fn read(json: &JsonValue) -> Result<ExportTraceServiceRequest> {
        to_protobuf(json.to_string().as_bytes()).map(|bytes| ExportTraceServiceRequest::decode(bytes).unwrap())
    }

    fn of_span(span: JsonValue) -> JsonValue {
        json!({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]})
    }

    fn span(json: JsonValue) -> Span {
        read(&of_span(json)).unwrap().resource_spans.remove(0).scope_spans.remove(0).spans.remove(0)
    }

    fn value(json: JsonValue) -> Option<Value> {
        span(json!({"attributes": [{"key": "k", "value": json}]})).attributes.remove(0).value.unwrap().value
    }

    fn check_refused(json: JsonValue, message: &str) {
        let error = read(&of_span(json)).unwrap_err();
        assert_eq!(error.kind(), crate::error::ErrorKind::Invalid);
        assert!(error.to_string().contains(message), "{error}");
    }

    #[test]
    fn both_spellings_of_names_are_read() {
        let expected = Span {
            trace_id: vec![0xAB; 16],
            span_id: vec![1; 8],
            parent_span_id: vec![2; 8],
            trace_state: "a=b".into(),
            start_time_unix_nano: 5,
            dropped_events_count: 7,
            ..Span::default()
        };
        let camel = json!({"traceId": "ab".repeat(16), "spanId": "01".repeat(8), "parentSpanId": "02".repeat(8), "traceState": "a=b",
            "startTimeUnixNano": "5", "droppedEventsCount": 7});
        let snake = json!({"trace_id": "AB".repeat(16), "span_id": "01".repeat(8), "parent_span_id": "02".repeat(8), "trace_state": "a=b",
            "start_time_unix_nano": 5, "dropped_events_count": "7"});
        assert_eq!(span(camel), expected);
        assert_eq!(span(snake), expected);
    }

    #[test]
    fn enums_are_numbers_or_names_and_unknown_numbers_stay() {
        for (json, kind) in [(json!(2), 2), (json!("SPAN_KIND_SERVER"), 2), (json!(77), 77), (json!(-1), -1), (json!(null), 0)] {
            assert_eq!(span(json!({"kind": json})).kind, kind);
        }
        for (json, code) in [(json!(2), 2), (json!("STATUS_CODE_ERROR"), 2), (json!(99), 99)] {
            assert_eq!(span(json!({"status": {"code": json}})).status.unwrap().code, code);
        }
        check_refused(json!({"kind": "SPAN_KIND_NONE"}), "SPAN_KIND_NONE");
    }

    #[test]
    fn integers_are_exact_at_their_ends() {
        assert_eq!(span(json!({"startTimeUnixNano": u64::MAX})).start_time_unix_nano, u64::MAX);
        assert_eq!(span(json!({"startTimeUnixNano": u64::MAX.to_string()})).start_time_unix_nano, u64::MAX);
        assert_eq!(value(json!({"intValue": i64::MIN})), Some(Value::IntValue(i64::MIN)));
        assert_eq!(value(json!({"intValue": i64::MIN.to_string()})), Some(Value::IntValue(i64::MIN)));
        assert_eq!(value(json!({"intValue": 3.0})), Some(Value::IntValue(3)));
        check_refused(json!({"startTimeUnixNano": -1}), "out of range");
        check_refused(json!({"startTimeUnixNano": "18446744073709551616"}), "out of range");
        check_refused(json!({"flags": 4294967296_u64}), "out of range");
        check_refused(json!({"flags": 1.5}), "1.5");
        check_refused(json!({"flags": "x"}), "x");
    }

    #[test]
    fn doubles_are_exact_to_the_last_bit_and_everything_else_is_left_alone() {
        for number in
            ["-2.5394762365713337e252", "5e-324", "1.7976931348623157E+308", "0.1", "-0.0", "9007199254740993", "123456789012345678901234567890"]
        {
            let body = format!(r#"{{"resourceSpans":[{{"resource":{{"attributes":[{{"value":{{"doubleValue" : {number}}}}}]}}}}]}}"#);
            let request = ExportTraceServiceRequest::decode(to_protobuf(body.as_bytes()).unwrap()).unwrap();
            let value = request.resource_spans[0].resource.as_ref().unwrap().attributes[0].value.clone().unwrap().value;
            assert!(
                matches!(value, Some(Value::DoubleValue(double)) if double.to_bits() == number.parse::<f64>().unwrap().to_bits()),
                "{number}: {value:?}"
            );
        }
        let unquoted = br#"{"a":":1.5 \\","b":12,"c":[1.5],"d":01.5,"e":1.e5,"f":-"#;
        assert_eq!(fractions_as_text(unquoted), &unquoted[..]);
        assert_eq!(fractions_as_text(br#"{"a":1.5,"b": -2e3}"#), &br#"{"a":"1.5","b": "-2e3"}"#[..]);
        assert_eq!(fractions_as_text(br#"{"unterminated\"#), &br#"{"unterminated\"#[..]);
    }

    #[test]
    fn every_value_type_is_read() {
        assert_eq!(value(json!({"stringValue": ""})), Some(Value::StringValue(String::new())));
        assert_eq!(value(json!({"boolValue": false})), Some(Value::BoolValue(false)));
        assert_eq!(value(json!({"doubleValue": 1})), Some(Value::DoubleValue(1.0)));
        assert_eq!(value(json!({"doubleValue": "-Infinity"})), Some(Value::DoubleValue(f64::NEG_INFINITY)));
        assert!(matches!(value(json!({"doubleValue": "NaN"})), Some(Value::DoubleValue(nan)) if nan.is_nan()));
        for bytes in ["+/8=", "+/8", "-_8=", "-_8"] {
            assert_eq!(value(json!({"bytesValue": bytes})), Some(Value::BytesValue(vec![0xFB, 0xFF])));
        }
        assert_eq!(value(json!({"arrayValue": {}})), Some(Value::ArrayValue(ArrayValue::default())));
        assert_eq!(value(json!({"kvlistValue": {"values": []}})), Some(Value::KvlistValue(KeyValueList::default())));
        assert_eq!(value(json!({})), None);
        assert_eq!(value(json!({"stringValue": null})), None);
        check_refused(json!({"attributes": [{"value": {"bytesValue": "*"}}]}), "base64");
    }

    #[test]
    fn null_and_unknown_fields_are_absent() {
        let nulls = json!({"traceId": null, "name": null, "attributes": null, "events": null, "status": null, "flags": null,
            "unknown": {"deep": [[[{"a": "]}"}]]]}, "startTimeUnixNano": null});
        assert_eq!(span(nulls), Span::default());
        assert_eq!(read(&json!({"resourceSpans": null})).unwrap(), ExportTraceServiceRequest::default());
        assert_eq!(read(&json!({})).unwrap(), ExportTraceServiceRequest::default());
    }

    #[test]
    fn ids_that_are_not_hex_are_refused_and_any_length_is_kept() {
        check_refused(json!({"traceId": "0g"}), "not hex");
        check_refused(json!({"traceId": "abc"}), "not hex");
        assert_eq!(span(json!({"traceId": "0aF0"})).trace_id, [0x0A, 0xF0]);
    }

    #[test]
    fn malformed_bodies_name_the_place() {
        for body in ["", "{", "[]", "null", "{} x", r#"{"resourceSpans": {}}"#, r#"{"resourceSpans": [1]}"#, "{\"resourceSpans\":[],\"x\":\"\u{1}\"}"]
        {
            let error = to_protobuf(body.as_bytes()).unwrap_err();
            assert!(error.to_string().starts_with("malformed OTLP JSON"), "{body}: {error}");
            assert!(error.to_string().contains("line 1 column"), "{body}: {error}");
        }
        assert!(to_protobuf(b"{\"\xFF\": 1}").is_err());
    }

    fn nested(depth: usize, open: &str, close: &str) -> Vec<u8> {
        let value = open.repeat(depth) + r#"{"intValue":1}"# + &close.repeat(depth);
        format!(r#"{{"resourceSpans":[{{"resource":{{"attributes":[{{"key":"k","value":{value}}}]}}}}]}}"#).into_bytes()
    }

    #[test]
    fn values_nested_deep_are_read_and_bottomless_ones_refused() {
        for (open, close) in [(r#"{"arrayValue":{"values":["#, "]}}"), (r#"{"kvlistValue":{"values":[{"key":"","value":"#, "}]}}")] {
            assert!(to_protobuf(&nested(25, open, close)).unwrap().len() > 25 * 4);
            let error = to_protobuf(&nested(100_000, open, close)).unwrap_err();
            assert!(error.to_string().contains("recursion limit exceeded at line 1 column"), "{error}");
        }
        let unknown = format!(r#"{{"unknown":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(to_protobuf(unknown.as_bytes()).unwrap(), Bytes::new());
    }

    // --- Any request, through an encoder written from the OTLP JSON rules, comes back equal ---

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn encode_value(value: &AnyValue) -> JsonValue {
        match &value.value {
            None => json!({}),
            Some(Value::StringValue(text)) => json!({"stringValue": text}),
            Some(Value::BoolValue(flag)) => json!({"boolValue": flag}),
            Some(Value::IntValue(number)) => json!({"intValue": number.to_string()}),
            Some(Value::DoubleValue(number)) if number.is_infinite() => json!({"doubleValue": if *number > 0.0 { "Infinity" } else { "-Infinity" }}),
            Some(Value::DoubleValue(number)) => json!({"doubleValue": number}),
            Some(Value::BytesValue(bytes)) => json!({"bytesValue": base64::engine::general_purpose::STANDARD.encode(bytes)}),
            Some(Value::ArrayValue(array)) => json!({"arrayValue": {"values": array.values.iter().map(encode_value).collect::<Vec<_>>()}}),
            Some(Value::KvlistValue(list)) => json!({"kvlistValue": {"values": encode_attributes(&list.values)}}),
            Some(Value::StringValueStrindex(_)) => unreachable!("not in traces"),
        }
    }

    fn encode_attributes(attributes: &[KeyValue]) -> JsonValue {
        let attribute = |KeyValue { key, value, .. }: &KeyValue| match value {
            Some(value) => json!({"key": key, "value": encode_value(value)}),
            None => json!({"key": key}),
        };
        attributes.iter().map(attribute).collect()
    }

    fn encode_span(span: &Span) -> JsonValue {
        let event = |event: &Event| {
            json!({"timeUnixNano": event.time_unix_nano.to_string(), "name": event.name, "attributes": encode_attributes(&event.attributes),
                "droppedAttributesCount": event.dropped_attributes_count})
        };
        let link = |link: &Link| {
            json!({"traceId": hex(&link.trace_id), "spanId": hex(&link.span_id), "traceState": link.trace_state,
                "attributes": encode_attributes(&link.attributes), "droppedAttributesCount": link.dropped_attributes_count, "flags": link.flags})
        };
        json!({"traceId": hex(&span.trace_id), "spanId": hex(&span.span_id), "traceState": span.trace_state, "parentSpanId": hex(&span.parent_span_id),
            "flags": span.flags, "name": span.name, "kind": span.kind, "startTimeUnixNano": span.start_time_unix_nano.to_string(),
            "endTimeUnixNano": span.end_time_unix_nano.to_string(), "attributes": encode_attributes(&span.attributes),
            "droppedAttributesCount": span.dropped_attributes_count, "events": span.events.iter().map(event).collect::<Vec<_>>(),
            "droppedEventsCount": span.dropped_events_count, "links": span.links.iter().map(link).collect::<Vec<_>>(),
            "droppedLinksCount": span.dropped_links_count,
            "status": span.status.as_ref().map(|status| json!({"message": status.message, "code": status.code}))})
    }

    fn encode(request: &ExportTraceServiceRequest) -> JsonValue {
        let scope_spans = |scope: &ScopeSpans| {
            json!({"scope": scope.scope.as_ref().map(|scope| json!({"name": scope.name, "version": scope.version,
                    "attributes": encode_attributes(&scope.attributes), "droppedAttributesCount": scope.dropped_attributes_count})),
                "spans": scope.spans.iter().map(encode_span).collect::<Vec<_>>(), "schemaUrl": scope.schema_url})
        };
        let entity = |entity: &EntityRef| {
            json!({"schemaUrl": entity.schema_url, "type": entity.r#type,
                "idKeys": entity.id_keys, "descriptionKeys": entity.description_keys})
        };
        let resource_spans = |resource: &ResourceSpans| {
            json!({"resource": resource.resource.as_ref().map(|resource| json!({"attributes": encode_attributes(&resource.attributes),
                    "droppedAttributesCount": resource.dropped_attributes_count,
                    "entityRefs": resource.entity_refs.iter().map(entity).collect::<Vec<_>>()})),
                "scopeSpans": resource.scope_spans.iter().map(scope_spans).collect::<Vec<_>>(), "schemaUrl": resource.schema_url})
        };
        json!({"resourceSpans": request.resource_spans.iter().map(resource_spans).collect::<Vec<_>>()})
    }

    fn any_value() -> impl Strategy<Value = AnyValue> {
        let leaf = prop_oneof![
            Just(None),
            any::<String>().prop_map(|text| Some(Value::StringValue(text))),
            any::<bool>().prop_map(|flag| Some(Value::BoolValue(flag))),
            any::<i64>().prop_map(|number| Some(Value::IntValue(number))),
            any::<f64>().prop_filter("NaN differs from itself", |number| !number.is_nan()).prop_map(|number| Some(Value::DoubleValue(number))),
            vec(any::<u8>(), 0..20).prop_map(|bytes| Some(Value::BytesValue(bytes))),
        ];
        leaf.prop_map(|value| AnyValue { value }).prop_recursive(4, 16, 4, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..4).prop_map(|values| AnyValue { value: Some(Value::ArrayValue(ArrayValue { values })) }),
                vec((any::<String>(), option::of(inner)), 0..4).prop_map(|pairs| {
                    let values = pairs.into_iter().map(|(key, value)| KeyValue { key, value, ..KeyValue::default() }).collect();
                    AnyValue { value: Some(Value::KvlistValue(KeyValueList { values })) }
                }),
            ]
        })
    }

    fn attributes() -> impl Strategy<Value = Vec<KeyValue>> {
        vec((any::<String>(), option::of(any_value())).prop_map(|(key, value)| KeyValue { key, value, ..KeyValue::default() }), 0..4)
    }

    fn any_span() -> impl Strategy<Value = Span> {
        let event = (any::<(u64, String, u32)>(), attributes()).prop_map(|((time_unix_nano, name, dropped), attributes)| Event {
            time_unix_nano,
            name,
            attributes,
            dropped_attributes_count: dropped,
        });
        let link = (any::<([u8; 16], [u8; 8], String, u32, u32)>(), attributes()).prop_map(|((trace, span, state, dropped, flags), attributes)| {
            Link { trace_id: trace.to_vec(), span_id: span.to_vec(), trace_state: state, attributes, dropped_attributes_count: dropped, flags }
        });
        let ids = (vec(any::<u8>(), 0..20), vec(any::<u8>(), 0..10), vec(any::<u8>(), 0..10));
        let status = option::of(any::<(String, i32)>().prop_map(|(message, code)| Status { message, code }));
        let plain = any::<(String, String, u32, i32, u64, u64, [u32; 3])>();
        (ids, plain, attributes(), vec(event, 0..3), vec(link, 0..3), status).prop_map(|(ids, plain, attributes, events, links, status)| {
            let (trace_state, name, flags, kind, start_time_unix_nano, end_time_unix_nano, dropped) = plain;
            Span {
                trace_id: ids.0,
                span_id: ids.1,
                parent_span_id: ids.2,
                trace_state,
                flags,
                name,
                kind,
                start_time_unix_nano,
                end_time_unix_nano,
                attributes,
                dropped_attributes_count: dropped[0],
                events,
                dropped_events_count: dropped[1],
                links,
                dropped_links_count: dropped[2],
                status,
            }
        })
    }

    fn any_request() -> impl Strategy<Value = ExportTraceServiceRequest> {
        let scope = (any::<(String, String, u32)>(), attributes()).prop_map(|((name, version, dropped), attributes)| InstrumentationScope {
            name,
            version,
            attributes,
            dropped_attributes_count: dropped,
        });
        let scope_spans = (option::of(scope), vec(any_span(), 0..3), any::<String>());
        let scope_spans = scope_spans.prop_map(|(scope, spans, schema_url)| ScopeSpans { scope, spans, schema_url });
        let entity = any::<(String, String, Vec<String>, Vec<String>)>().prop_map(|(schema_url, kind, id_keys, description_keys)| EntityRef {
            schema_url,
            r#type: kind,
            id_keys: id_keys.into_iter().take(3).collect(),
            description_keys: description_keys.into_iter().take(3).collect(),
        });
        let resource = (attributes(), any::<u32>(), vec(entity, 0..2));
        let resource =
            resource.prop_map(|(attributes, dropped, entity_refs)| Resource { attributes, dropped_attributes_count: dropped, entity_refs });
        let resource_spans = (option::of(resource), vec(scope_spans, 0..3), any::<String>());
        let resource_spans = resource_spans.prop_map(|(resource, scope_spans, schema_url)| ResourceSpans { resource, scope_spans, schema_url });
        vec(resource_spans, 0..3).prop_map(|resource_spans| ExportTraceServiceRequest { resource_spans })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_request_comes_back_equal(request in any_request()) {
            prop_assert_eq!(read(&encode(&request)).unwrap(), request);
        }

        #[test]
        fn any_bytes_do_not_panic(bytes in vec(any::<u8>(), 0..200)) {
            drop(to_protobuf(&bytes));
        }
    }
}
