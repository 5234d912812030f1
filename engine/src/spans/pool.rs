//! Pools: each distinct byte string once, known by a dense number in order of first sight.

use std::sync::Arc;

use arrow::{
    array::StringArray,
    buffer::{Buffer, OffsetBuffer, ScalarBuffer},
};
use foldhash::fast::FixedState;
use hashbrown::HashTable;
use std::hash::BuildHasher;

/// A set of byte strings with dense numbers. Grows only; a string's number never changes.
#[derive(Debug)]
pub struct Pool {
    table: HashTable<u32>,
    hasher: FixedState,
    offsets: Vec<i32>,
    bytes: Vec<u8>,
    last: u32,
    snapshot: Option<Arc<StringArray>>,
}

impl Default for Pool {
    fn default() -> Self {
        Self { table: HashTable::new(), hasher: FixedState::default(), offsets: vec![0], bytes: Vec::new(), last: 0, snapshot: None }
    }
}

impl Pool {
    /// How many distinct strings it holds.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all strings together.
    pub fn bytes_len(&self) -> usize {
        self.bytes.len()
    }

    /// The string with number `id`.
    #[inline]
    pub fn get(&self, id: u32) -> &[u8] {
        let at = id as usize;
        &self.bytes[self.offsets[at] as usize..self.offsets[at + 1] as usize]
    }

    /// The number of `value`, new if it was not seen before. The string taken last is tried first, without hashing.
    #[inline]
    pub fn intern(&mut self, value: &[u8]) -> u32 {
        if !self.is_empty() && self.get(self.last) == value {
            return self.last;
        }
        self.last = self.intern_hashed(value);
        self.last
    }

    fn intern_hashed(&mut self, value: &[u8]) -> u32 {
        let hash = self.hasher.hash_one(value);
        let (offsets, bytes) = (&self.offsets, &self.bytes);
        let text = |id: u32| &bytes[offsets[id as usize] as usize..offsets[id as usize + 1] as usize];
        if let Some(&id) = self.table.find(hash, |&id| text(id) == value) {
            return id;
        }
        let id = self.len() as u32;
        self.bytes.extend_from_slice(value);
        self.offsets.push(i32::try_from(self.bytes.len()).expect("a generation is cut long before a pool holds 2 GiB"));
        let (hasher, offsets, bytes) = (&self.hasher, &self.offsets, &self.bytes);
        self.table.insert_unique(hash, id, |&id| hasher.hash_one(&bytes[offsets[id as usize] as usize..offsets[id as usize + 1] as usize]));
        self.snapshot = None;
        id
    }

    /// All strings so far as an Arrow array, which must be UTF-8. Copies the pool when it has grown since the last call.
    pub fn strings(&mut self) -> Arc<StringArray> {
        if let Some(snapshot) = &self.snapshot {
            return snapshot.clone();
        }
        let offsets = OffsetBuffer::new(ScalarBuffer::from(self.offsets.clone()));
        let snapshot = Arc::new(StringArray::new(offsets, Buffer::from_slice_ref(&self.bytes), None));
        self.snapshot = Some(snapshot.clone());
        snapshot
    }
}

/// Drops what is not UTF-8 by the usual replacement character; the good case costs a check and no copy.
#[inline]
pub fn utf8(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_stable() {
        let mut pool = Pool::default();
        let ids: Vec<u32> = ["a", "", "a", "b", "", "a"].iter().map(|s| pool.intern(s.as_bytes())).collect();
        assert_eq!(ids, [0, 1, 0, 2, 1, 0]);
        assert_eq!(pool.strings().iter().flatten().collect::<Vec<_>>(), ["a", "", "b"]);
        pool.intern(b"c");
        assert_eq!(pool.strings().iter().count(), 4);
    }
}
