//! The hybrid of runs by hand, and what is refused by name. That columns are right is tested where row groups are put together.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::runs::{Run, Runs, unpack, value_at};

#[test]
fn runs_are_taken_one_by_one() {
    // Four times 5; eight packed values of three bits, 0 to 7, of which the last two are beyond the end.
    let bytes = [4 << 1, 5, 1 << 1 | 1, 0b1000_1000, 0b1100_0110, 0b1111_1010];
    let runs: Vec<_> = Runs::new(&bytes, 3, 10).collect::<Result<_, _>>().unwrap();
    assert_eq!(runs, [Run::Repeated { value: 5, count: 4 }, Run::Packed { bytes: &bytes[3..6], count: 6 }]);
    let mut values = Vec::new();
    unpack(&bytes[3..], 3, 6, &mut values);
    assert_eq!(values, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn damaged_runs_are_refused() {
    let error = |bytes: &[u8], width, left| Runs::new(bytes, width, left).find_map(Result::err).unwrap().to_string();
    assert!(error(&[], 3, 1).contains("fewer values than it says"));
    assert!(error(&[0], 3, 1).contains("a run without values"));
    assert!(error(&[2], 3, 1).contains("a run without its value"));
    assert!(error(&[3, 0, 0], 3, 8).contains("a run that ends too early"));
    assert!(error(&[0xff; 12], 3, 8).contains("a number that is too large"));
    assert_eq!(Runs::new(&[], 3, 0).count(), 0, "nothing is asked for");
}

proptest! {
    #[test]
    fn what_is_packed_is_unpacked(width in 0_u32..=32, values in proptest::collection::vec(any::<u32>(), 0..70)) {
        let values: Vec<u32> = values.into_iter().map(|value| (u64::from(value) & ((1 << width) - 1)) as u32).collect();
        let mut packed = vec![0_u8; (values.len() * width as usize).div_ceil(8)];
        for bit in 0..values.len() * width as usize {
            let (value, at) = (values[bit / width as usize], bit % width as usize);
            packed[bit / 8] |= ((value >> at & 1) as u8) << (bit % 8);
        }
        let mut found = vec![7];
        unpack(&packed, width, values.len(), &mut found);
        for (at, &value) in values.iter().enumerate() {
            prop_assert_eq!(value_at(&packed, width as usize, at), value);
        }
        prop_assert_eq!(found[1..].iter().map(|&value| value as u32).collect::<Vec<_>>(), values);
    }
}
