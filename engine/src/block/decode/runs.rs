//! Parquet's hybrid of repeated and bit-packed runs, in which levels and codes into a dictionary are written.

use parquet::errors::{ParquetError, Result};

/// Values one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Run<'a> {
    /// One value again and again.
    Repeated { value: u32, count: usize },
    /// Values of as many bits as the run's width, the lowest bits first.
    Packed { bytes: &'a [u8], count: usize },
}

impl Run<'_> {
    pub(super) fn count(&self) -> usize {
        match *self {
            Self::Repeated { count, .. } | Self::Packed { count, .. } => count,
        }
    }
}

/// The runs of `left` values of `width` bits, at most 32, in `bytes`. Bytes after them are not looked at.
pub(super) struct Runs<'a> {
    bytes: &'a [u8],
    width: u32,
    left: usize,
}

impl<'a> Runs<'a> {
    pub(super) fn new(bytes: &'a [u8], width: u32, left: usize) -> Self {
        Self { bytes, width, left }
    }

    #[inline]
    fn next_run(&mut self) -> Result<Run<'a>> {
        let header = varint(&mut self.bytes, || damaged("fewer values than it says"))?;
        let (number, packed) = (usize::try_from(header >> 1)?, header & 1 == 1);
        if number == 0 {
            return Err(damaged("a run without values"));
        }
        if packed {
            // Eight values take as many bytes as one takes bits. Of the last eight some may be of no meaning, or missing.
            let count = number.saturating_mul(8).min(self.left);
            let needed = count.saturating_mul(self.width as usize).div_ceil(8);
            let written = number.saturating_mul(self.width as usize).min(self.bytes.len());
            let (bytes, rest) = self.bytes.split_at(written);
            let bytes = bytes.get(..needed).ok_or_else(|| damaged("a run that ends too early"))?;
            self.bytes = rest;
            return Ok(Run::Packed { bytes, count });
        }
        let width = self.width.div_ceil(8) as usize;
        let (value, rest) = self.bytes.split_at_checked(width).ok_or_else(|| damaged("a run without its value"))?;
        self.bytes = rest;
        let value = value.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte));
        Ok(Run::Repeated { value, count: number.min(self.left) })
    }
}

impl<'a> Iterator for Runs<'a> {
    type Item = Result<Run<'a>>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let run = self.next_run();
        self.left -= run.as_ref().map_or(self.left, Run::count);
        Some(run)
    }
}

/// A number in base 128, the lowest digits first, off the front of `bytes`. Errors: `short`, and for one of more than 64 bits.
#[inline]
pub(super) fn varint(bytes: &mut &[u8], short: impl Fn() -> ParquetError) -> Result<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or_else(&short)?;
        *bytes = rest;
        if shift == 63 && byte > 1 {
            break;
        }
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(damaged("a number that is too large"))
}

/// Adds the values of all runs to `out`. Errors: for damaged ones.
pub(super) fn unpack_all(runs: Runs, out: &mut Vec<i32>) -> Result<()> {
    let width = runs.width;
    for run in runs {
        match run? {
            Run::Repeated { value, count } => out.resize(out.len() + count, value as i32),
            Run::Packed { bytes, count } => unpack(bytes, width, count, out),
        }
    }
    Ok(())
}

/// Adds `count` values of `width` bits, at most 32, in `packed`, which has all their bits, to `out`.
pub(super) fn unpack(packed: &[u8], width: u32, count: usize, out: &mut Vec<i32>) {
    macro_rules! by_width {
        ($($known:literal)*) => {
            match width {
                $($known => unpack_known::<$known>(packed, count, out),)*
                _ => out.resize(out.len() + count, 0),
            }
        };
    }
    by_width!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32);
}

/// The same for a width that the compiler knows: eight values, which take `WIDTH` bytes, by shifts of fixed lengths.
fn unpack_known<const WIDTH: usize>(packed: &[u8], count: usize, out: &mut Vec<i32>) {
    let known = out.len();
    out.resize(known + count.next_multiple_of(8), 0);
    for (at, values) in out[known..].as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let bytes = &packed[(at * WIDTH).min(packed.len())..];
        if WIDTH <= 8 {
            // One word has them all.
            let word = word_of(bytes);
            *values = std::array::from_fn(|at| (word >> (at * WIDTH) & mask(WIDTH)) as i32);
        } else {
            *values = std::array::from_fn(|at| value_at(bytes, WIDTH, at) as i32);
        }
    }
    out.truncate(known + count);
}

/// Value `at` of `width` bits, at most 32, in `packed`.
#[inline]
pub(super) fn value_at(packed: &[u8], width: usize, at: usize) -> u32 {
    let bit = at * width;
    (word_of(&packed[(bit / 8).min(packed.len())..]) >> (bit % 8) & mask(width)) as u32
}

#[inline]
pub(super) fn mask(width: usize) -> u64 {
    (1 << width) - 1
}

/// The first eight bytes, zeros after the last.
#[inline]
pub(super) fn word_of(bytes: &[u8]) -> u64 {
    match bytes.first_chunk() {
        Some(eight) => u64::from_le_bytes(*eight),
        None => bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)),
    }
}

pub(super) fn damaged(what: &str) -> ParquetError {
    ParquetError::General(format!("a page has {what}"))
}
