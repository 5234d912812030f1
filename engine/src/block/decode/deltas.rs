//! Numbers that are written as differences, these bit-packed in blocks of parts.

use arrow::{
    array::{Int64Array, PrimitiveArray},
    datatypes::Int64Type,
};
use parquet::errors::Result;

use super::{
    bits::spread,
    runs::{damaged, mask, varint, word_of},
    values::{PageValues, Wanted},
};

/// Numbers that one block of them has at most.
const BLOCK_MAX: u64 = 1 << 16;

/// A column of 64-bit integers whose `pages` have differences. Cost: one to two nanoseconds a number, wanted or not, of pages that have a
/// wanted one. Errors: for damaged pages.
pub(super) fn integers(pages: &[PageValues], wanted: &Wanted) -> Result<Int64Array> {
    let count = wanted.places.as_ref().map_or_else(|| pages.iter().map(|page| page.count).sum(), Vec::len);
    // Packed differences are unpacked by eight.
    let mut found = Vec::with_capacity(count + 7);
    let mut all = Vec::new();
    for (page, places) in wanted.by_page(pages) {
        match places {
            None => add_numbers(&mut &page.bytes[..], page.count, u64::BITS, &mut found)?,
            Some((places, first)) => {
                all.clear();
                add_numbers(&mut &page.bytes[..], page.count, u64::BITS, &mut all)?;
                found.extend(places.iter().map(|&place| all[(place - first) as usize]));
            }
        }
    }
    Ok(PrimitiveArray::<Int64Type>::try_new(spread(found, wanted.present.as_ref()).into(), wanted.nulls())?)
}

/// Takes `count` numbers off the front of `page` and adds them to `out`; they are right in their lowest `bits` bits, which differences have
/// at most. Errors: for damaged ones.
pub(super) fn add_numbers(page: &mut &[u8], count: usize, bits: u32, out: &mut Vec<i64>) -> Result<()> {
    let short = || damaged("numbers that end too early");
    let number = |page: &mut &[u8]| varint(page, short);
    let signed = |number: u64| (number >> 1) as i64 ^ -((number & 1) as i64);
    let (block, parts, total) = (number(page)?, number(page)?, number(page)?);
    if !(1..=BLOCK_MAX).contains(&block) || !(1..=block).contains(&parts) || block % (parts * 8) > 0 || total != count as u64 {
        return Err(damaged("numbers in a form that is not read"));
    }
    let of_part = (block / parts) as usize;
    let mut last = signed(number(page)?);
    let mut left = count;
    if left > 0 {
        out.push(last);
        left -= 1;
    }
    while left > 0 {
        let least = signed(number(page)?);
        let (widths, rest) = page.split_at_checked(parts as usize).ok_or_else(short)?;
        *page = rest;
        for &width in widths {
            // Parts after the last number are not written.
            if left == 0 {
                break;
            }
            if u32::from(width) > bits {
                return Err(damaged("differences of more bits than its numbers"));
            }
            let (packed, rest) = page.split_at_checked(of_part / 8 * usize::from(width)).ok_or_else(short)?;
            *page = rest;
            let here = of_part.min(left);
            add_differences(packed, u32::from(width), here, (last, least), out);
            last = out.last().copied().unwrap_or(last);
            left -= here;
        }
    }
    Ok(())
}

/// Adds `count` numbers that follow `last`, each `least` and a difference of `width` bits, at most 64, in `packed` larger than the one before.
fn add_differences(packed: &[u8], width: u32, count: usize, (last, least): (i64, i64), out: &mut Vec<i64>) {
    macro_rules! by_width {
        ($($known:literal)*) => {
            match width {
                $($known => add_known::<$known>(packed, count, (last, least), out),)*
                _ => out.extend((1..=count as i64).map(|at| last.wrapping_add(least.wrapping_mul(at)))),
            }
        };
    }
    by_width!(
        1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49
        50 51 52 53 54 55 56 57 58 59 60 61 62 63 64
    );
}

/// The same for a width that the compiler knows: eight differences take `WIDTH` bytes.
fn add_known<const WIDTH: usize>(packed: &[u8], count: usize, (mut last, least): (i64, i64), out: &mut Vec<i64>) {
    let known = out.len();
    out.resize(known + count.next_multiple_of(8), 0);
    for (eight, numbers) in out[known..].as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let bytes = &packed[eight * WIDTH..];
        for (at, number) in numbers.iter_mut().enumerate() {
            last = last.wrapping_add(least).wrapping_add(difference::<WIDTH>(bytes, at));
            *number = last;
        }
    }
    out.truncate(known + count);
}

/// Difference `at` of those that `bytes` begin with.
#[inline]
fn difference<const WIDTH: usize>(bytes: &[u8], at: usize) -> i64 {
    let (byte, shift) = (at * WIDTH / 8, at * WIDTH % 8);
    let low = word_of(&bytes[byte..]) >> shift;
    // A word has what begins in its first byte, up to 57 bits.
    let high = if WIDTH + shift > 64 { u64::from(bytes[byte + 8]) << (64 - shift) } else { 0 };
    ((low | high) & if WIDTH == 64 { u64::MAX } else { mask(WIDTH) }) as i64
}
