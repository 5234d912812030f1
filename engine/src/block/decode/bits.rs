//! Bits, a word at a time: which entries have a value, and which are kept.

use arrow::buffer::{BooleanBuffer, Buffer};

use super::runs::word_of;

/// Bits in words, the lowest first. Those beyond the last are zero.
#[derive(Debug, Default, Clone)]
pub(super) struct Bits {
    words: Vec<u64>,
    len: usize,
}

impl Bits {
    /// None, with room for `len`.
    pub(super) fn with_capacity(len: usize) -> Self {
        Self { words: Vec::with_capacity(len.div_ceil(64)), len: 0 }
    }

    /// `len` that are set.
    pub(super) fn all(len: usize) -> Self {
        let mut all = Self::with_capacity(len);
        all.push_run(true, len);
        all
    }

    /// Those of `bits`.
    pub(super) fn of(bits: &BooleanBuffer) -> Self {
        let chunks = bits.bit_chunks();
        let mut words: Vec<u64> = chunks.iter_padded().collect();
        words.truncate(bits.len().div_ceil(64));
        Self { words, len: bits.len() }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn words(&self) -> &[u64] {
        &self.words
    }

    /// Adds the lowest `count` bits of `word`, at most 64; its other bits are zero.
    #[inline]
    pub(super) fn push(&mut self, word: u64, count: usize) {
        let at = self.len % 64;
        match self.words.last_mut() {
            Some(last) if at > 0 => {
                *last |= word << at;
                if at + count > 64 {
                    self.words.push(word >> (64 - at));
                }
            }
            _ if count > 0 => self.words.push(word),
            _ => {}
        }
        self.len += count;
    }

    /// Adds `count` bits that are `bit`.
    #[inline]
    pub(super) fn push_run(&mut self, bit: bool, count: usize) {
        if !bit {
            self.len += count;
            self.words.resize(self.len.div_ceil(64), 0);
            return;
        }
        let first = count.min(64);
        self.push(lowest(first), first);
        let mut left = count - first;
        while left > 0 {
            let some = left.min(64);
            self.push(lowest(some), some);
            left -= some;
        }
    }

    /// Adds the first `count` bits of `bytes`, which has as many, the lowest of each first; tells how many of them are set.
    pub(super) fn push_bytes(&mut self, bytes: &[u8], count: usize) -> usize {
        let (mut set, mut left) = (0, count);
        for chunk in bytes.chunks(8) {
            let some = left.min(chunk.len() * 8);
            let word = word_of(chunk) & lowest(some);
            set += word.count_ones() as usize;
            self.push(word, some);
            left -= some;
        }
        set
    }

    /// How many are set.
    pub(super) fn count_ones(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Calls `visit` with the place of each bit that is set, ascending, until it fails.
    #[inline]
    pub(super) fn try_for_each<E>(&self, mut visit: impl FnMut(usize) -> Result<(), E>) -> Result<(), E> {
        for (at, &word) in self.words.iter().enumerate() {
            let mut left = word;
            while left != 0 {
                visit(at * 64 + left.trailing_zeros() as usize)?;
                left &= left - 1;
            }
        }
        Ok(())
    }

    pub(super) fn finish(self) -> BooleanBuffer {
        BooleanBuffer::new(Buffer::from_vec(self.words), 0, self.len)
    }
}

/// A word whose lowest `count` bits, at most 64, are set.
#[inline]
fn lowest(count: usize) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

/// Of the entries that `keep` keeps: where the values of those that are `present` lie among all values, and which of them have one.
pub(super) fn pick(present: &Bits, keep: &Bits) -> (Vec<u32>, Bits) {
    let (mut places, mut kept) = (Vec::new(), Bits::default());
    let mut before = 0;
    for (&present, &keep) in present.words().iter().zip(keep.words()) {
        let here = keep.count_ones() as usize;
        let both = present & keep;
        match both {
            0 => kept.push_run(false, here),
            _ if both == keep => kept.push(lowest(here), here),
            _ => kept.push(compressed(both, keep), here),
        }
        let mut left = both;
        while left != 0 {
            let below = (left & left.wrapping_neg()) - 1;
            places.push(before + (present & below).count_ones());
            left &= left - 1;
        }
        before += present.count_ones();
    }
    (places, kept)
}

/// The bits of `bits` where `keep` has one, moved together.
fn compressed(bits: u64, keep: u64) -> u64 {
    let (mut left, mut out, mut at) = (keep, 0, 0);
    while left != 0 {
        out |= u64::from(bits & left & left.wrapping_neg() != 0) << at;
        at += 1;
        left &= left - 1;
    }
    out
}

/// `values` at the entries that are `present`, zeros at the others.
pub(super) fn spread<T: Copy + Default>(values: Vec<T>, present: Option<&Bits>) -> Vec<T> {
    let Some(present) = present else { return values };
    let mut all = vec![T::default(); present.len()];
    let mut left = values.iter().copied();
    for (entries, &word) in all.chunks_mut(64).zip(present.words()) {
        if word == u64::MAX {
            entries.iter_mut().zip(left.by_ref()).for_each(|(entry, value)| *entry = value);
            continue;
        }
        let mut bits = word;
        while bits != 0 {
            if let (Some(entry), Some(value)) = (entries.get_mut(bits.trailing_zeros() as usize), left.next()) {
                *entry = value;
            }
            bits &= bits - 1;
        }
    }
    all
}
