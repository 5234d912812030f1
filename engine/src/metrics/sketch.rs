//! A quantile sketch with a relative error: values are counted by logarithmic buckets (the DDSketch of Masson, Rim and Lee, 2019).
//!
//! Bucket `i` holds the values in `(γ^(i−1), γ^i]` and stands for `2γ^i/(γ+1)`, which differs from each of them by at most [`RELATIVE_ERROR`].
//! Counts are integers, so sketches add up exactly and in any order. Negative values have buckets of their own, and so has zero.

use super::estimate::Weight;

/// How far a quantile may be from the value of that rank, as a part of it.
pub const RELATIVE_ERROR: f64 = 0.005;

/// The ratio of neighbouring bounds.
const GAMMA: f64 = (1.0 + RELATIVE_ERROR) / (1.0 - RELATIVE_ERROR);

/// Added to bucket numbers so that those of positive values are above zero: all doubles have numbers within ±75,000.
const OFFSET: i32 = 100_000;
/// The key of an infinite value.
const INFINITE: i32 = i32::MAX;

/// The bucket of `value`; keys are ordered as the values are. None for NaN.
#[inline]
pub fn key_of(value: f64) -> Option<i32> {
    let key = |size: f64| if size.is_finite() { (size.ln() / GAMMA.ln()).ceil() as i32 + OFFSET } else { INFINITE };
    match value {
        _ if value.is_nan() => None,
        0.0 => Some(0),
        _ if value > 0.0 => Some(key(value)),
        _ => Some(-key(-value)),
    }
}

/// The value that the bucket `key` stands for.
pub fn value_of(key: i32) -> f64 {
    let size = |key: i32| if key == INFINITE { f64::INFINITY } else { GAMMA.powi(key - OFFSET) * 2.0 / (1.0 + GAMMA) };
    match key {
        0 => 0.0,
        _ if key > 0 => size(key),
        _ => -size(-key),
    }
}

/// The value of rank `⌈q·n⌉` (the first for q = 0) of `n` values, by bucket in ascending order; 0 of none.
pub fn quantile_of(q: f64, buckets: &[(i32, Weight)]) -> f64 {
    let total: u128 = buckets.iter().map(|(_, weight)| weight.0).sum();
    // The rank is a number of whole spans where spans weigh 1, so that `0.9·10` is 9 despite its rounding.
    let spans = Weight(total).as_f64();
    let needed = ((q * spans - 1e-9 * spans).ceil().max(1.0) * Weight::ONE.0 as f64) as u128;
    let mut below = 0;
    for (key, weight) in buckets {
        below += weight.0;
        if below >= needed.min(total) {
            return value_of(*key);
        }
    }
    0.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn sketch(values: &[f64]) -> Vec<(i32, Weight)> {
        let mut counts: BTreeMap<i32, u64> = BTreeMap::new();
        values.iter().for_each(|&value| *counts.entry(key_of(value).unwrap()).or_default() += 1);
        counts.into_iter().map(|(key, count)| (key, Weight::ONE.times(count))).collect()
    }

    /// The value of rank `⌈q·n⌉`, from all values sorted.
    fn true_quantile(q: f64, values: &[f64]) -> f64 {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        // Ranks by whole thousandths, as exact as the test's own `q`.
        let rank = ((q * 1000.0).round() as usize * sorted.len()).div_ceil(1000).max(1);
        sorted[rank - 1]
    }

    fn check(q: f64, values: &[f64]) {
        let (found, expected) = (quantile_of(q, &sketch(values)), true_quantile(q, values));
        assert!(
            (found - expected).abs() <= expected.abs() * RELATIVE_ERROR * (1.0 + 1e-9),
            "{q} of {} values: {found}, not {expected}",
            values.len()
        );
    }

    #[test]
    fn quantiles_of_few_values() {
        assert_eq!(quantile_of(0.5, &[]), 0.0);
        check(0.5, &[0.0]);
        check(0.0, &[-7.0, 3.0]);
        check(1.0, &[-7.0, 3.0]);
        check(0.9, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]);
        assert_eq!(quantile_of(1.0, &sketch(&[1.0, f64::INFINITY])), f64::INFINITY);
        assert_eq!(quantile_of(0.0, &sketch(&[1.0, f64::NEG_INFINITY])), f64::NEG_INFINITY);
        assert_eq!(key_of(f64::NAN), None);
    }

    #[test]
    fn weights_move_the_rank() {
        let weighted = |weight| [(key_of(1.0).unwrap(), Weight::ONE.times(weight)), (key_of(100.0).unwrap(), Weight::ONE)];
        assert!((quantile_of(0.5, &weighted(1)) - 1.0).abs() < 0.01);
        assert!((quantile_of(0.9, &weighted(1)) - 100.0).abs() < 1.0);
        assert!((quantile_of(0.9, &weighted(9)) - 1.0).abs() < 0.01, "nine of ten are 1");
        assert!((quantile_of(0.91, &weighted(9)) - 100.0).abs() < 1.0);
    }

    fn any_value() -> impl Strategy<Value = f64> {
        prop_oneof![
            Just(0.0),
            (1i64..10_000_000_000).prop_map(|nanos| nanos as f64),
            (-300.0f64..300.0, any::<bool>()).prop_map(|(exponent, negative)| 10f64.powf(exponent) * if negative { -1.0 } else { 1.0 }),
        ]
    }

    proptest! {
        #[test]
        fn quantiles_are_within_the_error(values in proptest::collection::vec(any_value(), 1..300), q in 0u32..=1000) {
            check(f64::from(q) / 1000.0, &values);
        }

        #[test]
        fn keys_are_in_the_order_of_values(a in any_value(), b in any_value()) {
            prop_assert!(a > b || key_of(a) <= key_of(b));
        }
    }
}
