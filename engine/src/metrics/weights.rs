//! How many spans each sampled span stands for, as its tracestate or an attribute says.

use super::{detail::Extrapolation, estimate::Weight};
use crate::{
    error::Result,
    exec::{
        eval::{ColumnNeeds, Frame},
        source::SourceRef,
    },
    spans::{schema::Column, value::Value},
};

/// Hex digits of a rejection threshold; trailing zeros may be left out.
const THRESHOLD_DIGITS: usize = 14;

/// Adds the columns that [`weights_of`] reads.
pub fn add_needs(needs: &mut ColumnNeeds, extrapolation: &Extrapolation, source: &SourceRef) {
    needs.add(Column::TraceState);
    if let Some(field) = extrapolation.field() {
        needs.add_field(&field, source);
    }
}

/// The weights of `rows`: by the tracestate's `ot=th`, else by the attribute, else 1. Errors: `Data`, `Internal` for columns not loaded.
pub fn weights_of(frame: &Frame, rows: &[u32], extrapolation: &Extrapolation) -> Result<Vec<Weight>> {
    let mut weights = vec![None; rows.len()];
    if frame.source().schema().has(Column::TraceState) {
        let states = frame.texts(Column::TraceState)?;
        let mut last = ("", None);
        for (weight, &row) in weights.iter_mut().zip(rows) {
            let state = states.get(row as usize).unwrap_or_default();
            // The spans of a trace mostly share it.
            if state != last.0 {
                last = (state, of_tracestate(state));
            }
            *weight = last.1;
        }
    }
    if let Some(field) = extrapolation.field().filter(|_| weights.iter().any(Option::is_none)) {
        let values = frame.vector_of_spans(&field)?;
        for (weight, &row) in weights.iter_mut().zip(rows).filter(|(weight, _)| weight.is_none()) {
            *weight = of_attribute(&values.get(row as usize));
        }
    }
    Ok(weights.into_iter().map(|weight| weight.unwrap_or(Weight::ONE)).collect())
}

/// The weight that a W3C tracestate tells in OpenTelemetry's member, such as `ot=th:c;rv:12345678901234,other=1`: `th` is the threshold below
/// which randomness is rejected, as up to 14 hex digits of which trailing zeros are left out. None where there is none or it is malformed.
/// Source: OpenTelemetry specification, "TraceState: Probability Sampling".
pub fn of_tracestate(state: &str) -> Option<Weight> {
    let own = state.split(',').find_map(|member| member.trim().strip_prefix("ot="))?;
    let digits = own.split(';').find_map(|pair| pair.strip_prefix("th:"))?;
    if digits.is_empty() || digits.len() > THRESHOLD_DIGITS || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let leading = u64::from_str_radix(digits, 16).ok()?;
    Some(Weight::of_threshold(leading << (4 * (THRESHOLD_DIGITS - digits.len()))))
}

/// A number up to 1 is a probability, from 1 on a weight; it may be written as text.
fn of_attribute(value: &Value) -> Option<Weight> {
    match value {
        Value::Int(number) => Weight::of_number(*number as f64),
        Value::Float(number) => Weight::of_number(*number),
        Value::String(text) => Weight::of_number(text.trim().parse().ok()?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_read_from_any_tracestate() {
        let weight = |state| of_tracestate(state).map(Weight::as_f64);
        for (state, expected) in [
            ("ot=th:0", 1.0),
            ("ot=th:8", 2.0),
            ("ot=th:80000000000000", 2.0),
            ("ot=th:c", 4.0),
            ("ot=rv:ce929d0e0e4736;th:c", 4.0),
            ("vendor=a:b;c, ot=th:c;x:1 ,rojo=00f0", 4.0),
            ("ot=th:F", 16.0),
            ("ot=th:fd70a3d70a3d71", 100.0),
        ] {
            assert!((weight(state).unwrap_or_default() - expected).abs() < 1e-9 * expected, "{state}: {:?}", weight(state));
        }
        for state in ["", "ot=", "ot=th:", "ot=th:g", "ot=th:+8", "ot=th:800000000000000", "ot=p:3;r:4", "th:8", "other=th:8", "xot=th:8", "ot=xth:8"]
        {
            assert_eq!(weight(state), None, "{state}");
        }
    }

    #[test]
    fn attributes_are_probabilities_or_weights() {
        let weight = |value| of_attribute(&value).map(Weight::as_f64);
        let all = [Value::Float(0.25), Value::Int(20), Value::from("0.5"), Value::from(" 8 "), Value::Int(1)];
        assert_eq!(all.map(weight), [4.0, 20.0, 2.0, 8.0, 1.0].map(Some));
        assert_eq!([Value::Int(0), Value::Float(-1.0), Value::from("often"), Value::Bool(true), Value::Nil].map(weight), [None; 5]);
    }
}
