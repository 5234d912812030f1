//! Codes of texts.

use std::{hash::BuildHasher, hint::black_box, sync::Arc};

use arrow::{
    array::{Array, ArrayAccessor, ArrayBuilder, ArrayRef, AsArray, DictionaryArray, Int32Array, StringArray, StringViewArray, StringViewBuilder},
    buffer::NullBuffer,
    compute::cast,
    datatypes::{DataType, Int32Type},
};
use datafusion::common::{Result, resources_err};
use hashbrown::DefaultHashBuilder;

/// In place of the code of a dictionary's entry that no row had yet.
const UNKNOWN: u32 = u32::MAX;

/// Slots of a table with any.
const SLOTS_MIN: usize = 1 << 10;

/// How many times its size a table becomes at least.
const GROWTH: usize = 4;

/// Texts, and the code of each by its hash: its row in `texts`.
pub(super) struct Texts {
    kind: DataType,
    texts: StringViewBuilder,
    /// Half of a text's hash above the number of the text, counted from 1; 0 where there is none. It is at the first free place from the one that
    /// the hash says. A power of two of them, a quarter free at least.
    slots: Vec<u64>,
    hasher: DefaultHashBuilder,
    /// The code of null, which no slot knows.
    null: Option<u32>,
    /// The hashes of a batch, and what is at their places.
    hashes: Vec<u32>,
    found: Vec<u64>,
    /// The dictionary of the last rows: all slices of a row group have the same.
    dictionary: Option<ArrayRef>,
    /// The codes of its entries.
    of_keys: Vec<u32>,
}

impl Texts {
    /// Of arrays of the type `kind`, one of those that are texts.
    pub(super) fn new(kind: DataType) -> Self {
        let (texts, slots, hasher) = (StringViewBuilder::new(), Vec::new(), DefaultHashBuilder::default());
        Self { kind, texts, slots, hasher, null: None, hashes: Vec::new(), found: Vec::new(), dictionary: None, of_keys: Vec::new() }
    }

    pub(super) fn count(&self) -> usize {
        self.texts.len()
    }

    pub(super) fn size(&self) -> usize {
        let numbers = self.of_keys.capacity() + self.hashes.capacity();
        self.texts.allocated_size() + 8 * (self.slots.capacity() + self.found.capacity()) + 4 * numbers
    }

    pub(super) fn of_rows(&mut self, values: &ArrayRef, found: &mut Vec<u32>) {
        match &self.kind {
            DataType::Utf8 => self.of_texts(values.as_string::<i32>(), found),
            DataType::Utf8View => self.of_texts(values.as_string_view(), found),
            _ => self.of_dictionary(values.as_dictionary(), found),
        }
    }

    fn of_dictionary(&mut self, values: &DictionaryArray<Int32Type>, found: &mut Vec<u32>) {
        if !self.dictionary.as_ref().is_some_and(|known| Arc::ptr_eq(known, values.values())) {
            self.dictionary = Some(values.values().clone());
            self.of_keys.clear();
            self.of_keys.resize(values.values().len(), UNKNOWN);
        }
        let entries = values.values().as_string::<i32>();
        let null_code = if values.keys().null_count() > 0 { self.code_of_null() } else { UNKNOWN };
        let mut code_of = |key: i32| match self.of_keys[key as usize] {
            UNKNOWN => self.first_of_key(entries, key as usize),
            code => code,
        };
        match values.keys().nulls() {
            None => found.extend(values.keys().values().iter().map(|&key| code_of(key))),
            Some(nulls) => {
                let keys = values.keys().values().iter().enumerate();
                found.extend(keys.map(|(row, &key)| if nulls.is_valid(row) { code_of(key) } else { null_code }));
            }
        }
    }

    #[cold]
    fn first_of_key(&mut self, entries: &StringArray, key: usize) -> u32 {
        let code = match entries.is_null(key) {
            true => self.code_of_null(),
            false => {
                self.reserve(1);
                let hash = self.hash(entries.value(key));
                self.code(entries.value(key), hash)
            }
        };
        self.of_keys[key] = code;
        code
    }

    /// With many texts each slot and each text is far away in memory. So they are read in loops that wait for none of them, and compared when they
    /// are near.
    fn of_texts<'a>(&mut self, values: impl ArrayAccessor<Item = &'a str>, codes: &mut Vec<u32>) {
        let nulls = values.nulls().filter(|nulls| nulls.null_count() > 0);
        let is_null = |row| nulls.is_some_and(|nulls: &NullBuffer| nulls.is_null(row));
        self.reserve(values.len());
        let null_code = if nulls.is_some() { self.code_of_null() } else { UNKNOWN };
        let mut hashes = std::mem::take(&mut self.hashes);
        hashes.clear();
        hashes.extend((0..values.len()).map(|row| if is_null(row) { 0 } else { self.hash(values.value(row)) }));
        let mut found = std::mem::take(&mut self.found);
        found.clear();
        found.extend(hashes.iter().map(|&hash| self.slots[self.place(hash)]));
        let first_byte = |slot: u64| if slot == 0 { 0 } else { self.text(code_of(slot)).first().copied().unwrap_or_default() };
        black_box(found.iter().fold(0, |bytes, &slot| bytes ^ first_byte(slot)));
        codes.extend(hashes.iter().zip(&found).enumerate().map(|(row, (&hash, &slot))| match () {
            () if is_null(row) => null_code,
            () if slot != 0 && hash_of(slot) == hash && self.text(code_of(slot)) == values.value(row).as_bytes() => code_of(slot),
            () => self.code(values.value(row), hash),
        }));
        (self.hashes, self.found) = (hashes, found);
    }

    fn hash(&self, text: &str) -> u32 {
        (self.hasher.hash_one(text.as_bytes()) >> 32) as u32
    }

    /// The place of the slot where a hash is looked for first.
    fn place(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.slots.len() as u64) >> 32) as usize
    }

    /// The code of `text`, which is added where it is new. There must be room.
    fn code(&mut self, text: &str, hash: u32) -> u32 {
        let mut place = self.place(hash);
        loop {
            match self.slots[place] {
                0 => break,
                slot if hash_of(slot) == hash && self.text(code_of(slot)) == text.as_bytes() => return code_of(slot),
                _ => place = (place + 1) & (self.slots.len() - 1),
            }
        }
        let code = self.next_code();
        self.texts.append_value(text);
        self.slots[place] = u64::from(hash) << 32 | (u64::from(code) + 1);
        code
    }

    fn code_of_null(&mut self) -> u32 {
        if let Some(code) = self.null {
            return code;
        }
        let code = self.next_code();
        self.texts.append_null();
        self.null = Some(code);
        code
    }

    fn next_code(&self) -> u32 {
        self.count() as u32
    }

    /// Makes room for `count` texts more.
    fn reserve(&mut self, count: usize) {
        let wanted = ((self.count() + count) * 4 / 3 + 1).next_power_of_two().max(SLOTS_MIN);
        if wanted <= self.slots.len() {
            return;
        }
        let wanted = wanted.max(GROWTH * self.slots.len());
        let old = std::mem::replace(&mut self.slots, vec![0; wanted]);
        for slot in old.into_iter().filter(|&slot| slot != 0) {
            let mut place = self.place(hash_of(slot));
            while self.slots[place] != 0 {
                place = (place + 1) & (wanted - 1);
            }
            self.slots[place] = slot;
        }
    }

    fn text(&self, code: u32) -> &[u8] {
        self.texts.get_value(code as usize)
    }

    /// All texts, by their codes.
    pub(super) fn all(mut self) -> Result<ArrayRef> {
        let null = self.null;
        let texts = self.texts.finish();
        Ok(match &self.kind {
            DataType::Utf8View => Arc::new(texts),
            DataType::Utf8 => cast_texts(&texts)?,
            _ => {
                let keys = (0..texts.len() as u32).map(|code| (Some(code) != null).then_some(code as i32));
                Arc::new(DictionaryArray::try_new(keys.collect::<Int32Array>(), cast_texts(&texts)?)?)
            }
        })
    }
}

/// As texts behind 32-bit offsets. Errors: `ResourcesExhausted` for more than 2 GiB.
fn cast_texts(texts: &StringViewArray) -> Result<ArrayRef> {
    let bytes = texts.lengths().map(u64::from).sum::<u64>();
    if bytes > i32::MAX as u64 {
        return resources_err!("the texts of all groups have {bytes} bytes, at most 2 GiB are possible");
    }
    Ok(cast(texts, &DataType::Utf8)?)
}

fn hash_of(slot: u64) -> u32 {
    (slot >> 32) as u32
}

fn code_of(slot: u64) -> u32 {
    slot as u32 - 1
}
