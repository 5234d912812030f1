//! Parameters of a statement as JSON.

use datafusion::common::{ParamValues, ScalarValue};
use serde_json::Value;

use crate::error::{Error, Result};

/// A list for `$1`, `$2` …, or an object for `$name` …. Null gives none. Errors: `Invalid` for anything else, and for values that are
/// lists or objects.
pub fn from_json(parameters: &Value) -> Result<Option<ParamValues>> {
    match parameters {
        Value::Null => Ok(None),
        Value::Array(values) => {
            let values = values.iter().enumerate().map(|(at, value)| scalar(&format!("${}", at + 1), value)).collect::<Result<Vec<_>>>()?;
            Ok(Some(ParamValues::from(values)))
        }
        Value::Object(values) => {
            let named = |(name, value): (&String, &Value)| Ok((name.trim_start_matches('$').to_owned(), scalar(name, value)?));
            Ok(Some(ParamValues::from(values.iter().map(named).collect::<Result<Vec<_>>>()?)))
        }
        other => Err(Error::invalid(format!("parameters are a list of values for $1, $2 … or an object with values for $name …, not {other}"))),
    }
}

fn scalar(name: &str, value: &Value) -> Result<ScalarValue> {
    Ok(match value {
        Value::Null => ScalarValue::Null,
        Value::Bool(value) => (*value).into(),
        Value::String(text) => text.as_str().into(),
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(value), ..) => value.into(),
            (_, Some(value), _) => value.into(),
            (.., Some(value)) => value.into(),
            _ => return Err(Error::invalid(format!("parameter {name} is a number out of range: {number}"))),
        },
        Value::Array(_) | Value::Object(_) => {
            return Err(Error::invalid(format!("parameter {name} is a list or an object: give null, a boolean, a number or text")));
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_and_objects_of_plain_values_are_parameters() {
        let list = from_json(&json!([null, true, 5, 1.5, "x"])).unwrap().unwrap();
        let value = |id: &str| list.get_placeholders_with_values(id).unwrap().value;
        assert_eq!(value("$1"), ScalarValue::Null);
        assert_eq!(value("$2"), ScalarValue::Boolean(Some(true)));
        assert_eq!(value("$3"), ScalarValue::Int64(Some(5)));
        assert_eq!(value("$4"), ScalarValue::Float64(Some(1.5)));
        assert_eq!(value("$5"), ScalarValue::from("x"));
        let map = from_json(&json!({"a": 1, "$b": 2})).unwrap().unwrap();
        assert_eq!(map.get_placeholders_with_values("$b").unwrap().value, ScalarValue::Int64(Some(2)));
        assert!(from_json(&Value::Null).unwrap().is_none());
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        let check = |parameters: Value, expected: &str| {
            let error = from_json(&parameters).unwrap_err();
            assert!(error.message().contains(expected), "{error}");
        };
        check(json!("x"), "a list of values");
        check(json!([1, [2]]), "parameter $2");
        check(json!({"who": {}}), "parameter who");
    }
}
