//! Attribute tables: finds for each key and type its column, guesses the next key from the last, and sends rare shapes to the rest.

use std::{hash::BuildHasher, mem, ops::Range, sync::Arc};

use arrow::array::{Array, ArrowPrimitiveType, Int32Array, PrimitiveArray, StringArray};
use foldhash::fast::FixedState;
use hashbrown::HashTable;

use super::{
    builder::CHUNK_TEXT_BYTES,
    columns::{ATTRIBUTE_TYPES, AttributeColumn, AttributeType, BytesColumn, SparseColumn, Values, take_leaving_room},
    pool::Pool,
    read::{Texts, Typed},
    wire::{AnyValue, KeyValue, WireError, write_bytes_field},
};

/// Most keys that get columns in one generation; the keys beyond go to the rest, where they stay readable and filterable.
/// A column costs some 200 bytes when empty, so this bounds a hostile million of keys to a few hundred KiB.
const KEYS_MAX: usize = 2048;

/// After this many strings a column whose distinct values exceed half of them stops interning.
const CARDINALITY_PROBE: usize = 1024;

const NONE: u32 = u32::MAX;

/// One key: its columns by type, the row that had it last, and the key that followed it last.
#[derive(Debug)]
struct Key {
    name: Arc<str>,
    columns: [u32; ATTRIBUTE_TYPES],
    last_row: u32,
    follower: u32,
}

/// A column while it grows.
#[derive(Debug)]
struct Growing {
    column: AttributeColumn,
    pool: Pool,
    pooled_before: usize,
    rows: Vec<u32>,
    values: Values,
}

/// The attributes of spans (or of events): columns by key and type, and the rest.
#[derive(Debug)]
pub struct AttributeTable {
    keys: Vec<Key>,
    by_name: HashTable<u32>,
    hasher: FixedState,
    columns: Vec<Growing>,
    rest: BytesColumn,
    expected: u32,
    previous: u32,
    first_key: u32,
}

/// What a chunk holds of an [`AttributeTable`].
#[derive(Debug, Default)]
pub struct AttributeChunk {
    /// The columns that have a value in the chunk.
    pub columns: Vec<SparseColumn>,
    /// Everything else: `KeyValue` messages as fields with number 1, one after another.
    pub rest: BytesColumn,
}

impl Default for AttributeTable {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            by_name: HashTable::new(),
            hasher: FixedState::default(),
            columns: Vec::new(),
            rest: BytesColumn::default(),
            expected: NONE,
            previous: NONE,
            first_key: NONE,
        }
    }
}

impl AttributeTable {
    /// To be called before the attributes of each row: the guess starts again with the row's usual first key.
    #[inline]
    pub fn begin_row(&mut self) {
        self.expected = self.first_key;
        self.previous = NONE;
    }

    /// Takes one `KeyValue` message for `row`, the newest row. A key's second value in a row, and values that are not a string, a
    /// number or a boolean, go to the rest as they are; so a value in a column is always the first. Errors: every [`WireError`] but
    /// `Nesting`.
    #[inline]
    pub fn push(&mut self, row: u32, message: &[u8]) -> Result<(), WireError> {
        let pair = KeyValue::parse(message)?;
        let value = match pair.value {
            Some(value) => AnyValue::parse(value)?,
            None => AnyValue::Empty,
        };
        let kind = match value {
            AnyValue::String(text) if std::str::from_utf8(text).is_ok() => AttributeType::String,
            AnyValue::Int(_) => AttributeType::Int,
            AnyValue::Double(_) => AttributeType::Double,
            AnyValue::Bool(_) => AttributeType::Bool,
            _ => {
                if let Some(at) = self.find_key(pair.key) {
                    self.keys[at as usize].last_row = row;
                }
                self.push_rest(row, message);
                return Ok(());
            }
        };
        let Some(column) = self.column_for(row, pair.key, kind) else {
            self.push_rest(row, message);
            return Ok(());
        };
        let column = &mut self.columns[column as usize];
        match value {
            AnyValue::String(text) => column.push_text(row, text),
            AnyValue::Int(value) => column.push_int(row, value),
            AnyValue::Double(value) => column.push_double(row, value),
            AnyValue::Bool(value) => column.push_bool(row, value),
            _ => unreachable!("only the four column types get here"),
        }
        Ok(())
    }

    /// Appends `KeyValue` fields that are already in the form of the rest.
    pub fn push_rest_fields(&mut self, row: u32, fields: &[u8]) {
        self.rest.append(row, |out| out.extend_from_slice(fields));
    }

    fn push_rest(&mut self, row: u32, message: &[u8]) {
        self.rest.append(row, |out| write_bytes_field(out, 1, message));
    }

    #[inline]
    fn column_for(&mut self, row: u32, name: &[u8], kind: AttributeType) -> Option<u32> {
        let at = match self.keys.get(self.expected as usize) {
            Some(key) if key.name.as_bytes() == name => self.expected,
            _ => self.find_key(name)?,
        };
        self.note_order(at);
        let key = &mut self.keys[at as usize];
        self.expected = key.follower;
        if key.last_row == row {
            return None;
        }
        key.last_row = row;
        match key.columns[kind as usize] {
            NONE => self.add_column(at, kind),
            column => Some(column),
        }
    }

    #[inline]
    fn note_order(&mut self, at: u32) {
        match self.keys.get_mut(self.previous as usize) {
            Some(previous) => previous.follower = at,
            None => self.first_key = at,
        }
        self.previous = at;
    }

    fn find_key(&mut self, name: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one(name);
        let keys = &self.keys;
        if let Some(&at) = self.by_name.find(hash, |&at| keys[at as usize].name.as_bytes() == name) {
            return Some(at);
        }
        let name = std::str::from_utf8(name).ok()?;
        if self.keys.len() >= KEYS_MAX {
            return None;
        }
        let at = self.keys.len() as u32;
        self.keys.push(Key { name: name.into(), columns: [NONE; ATTRIBUTE_TYPES], last_row: NONE, follower: NONE });
        let (hasher, keys) = (&self.hasher, &self.keys);
        self.by_name.insert_unique(hash, at, |&at| hasher.hash_one(keys[at as usize].name.as_bytes()));
        Some(at)
    }

    fn add_column(&mut self, at: u32, kind: AttributeType) -> Option<u32> {
        let id = self.columns.len() as u32;
        let key = &mut self.keys[at as usize];
        key.columns[kind as usize] = id;
        let column = AttributeColumn { key: key.name.clone(), kind };
        self.columns.push(Growing { column, pool: Pool::default(), pooled_before: 0, rows: Vec::new(), values: Values::empty(kind) });
        Some(id)
    }

    /// The column of `key` and `kind`, made if need be; None when there are too many keys. For rows that come from columns.
    pub fn column(&mut self, key: &str, kind: AttributeType) -> Option<ColumnAppender<'_>> {
        let at = self.find_key(key.as_bytes())?;
        let id = match self.keys[at as usize].columns[kind as usize] {
            NONE => self.add_column(at, kind)?,
            id => id,
        };
        Some(ColumnAppender { growing: &mut self.columns[id as usize] })
    }

    /// Takes what has grown since the last call out as a chunk.
    pub fn seal(&mut self) -> AttributeChunk {
        let mut columns = Vec::new();
        for (id, growing) in self.columns.iter_mut().enumerate() {
            growing.pooled_before = growing.pool.len();
            let (rows, values) = (take_leaving_room(&mut growing.rows), growing.values.take_leaving_room());
            if !rows.is_empty() {
                columns.push(SparseColumn { id: id as u32, rows, values });
            }
        }
        for key in &mut self.keys {
            key.last_row = NONE;
        }
        AttributeChunk { columns, rest: mem::take(&mut self.rest) }
    }

    /// Key, type and pooled strings of every column so far, by column number.
    pub fn dictionary(&mut self) -> Vec<(AttributeColumn, Arc<StringArray>)> {
        self.columns.iter_mut().map(|growing| (growing.column.clone(), growing.pool.strings())).collect()
    }
}

/// Appends values to one column, rows ascending.
#[derive(Debug)]
pub struct ColumnAppender<'a> {
    growing: &'a mut Growing,
}

impl ColumnAppender<'_> {
    /// Appends the values of `range`, nulls left out; value `range.start + i` becomes that of row `row(i)`. Cost: one look-up for each distinct
    /// value of a dictionary.
    pub(super) fn extend(&mut self, row: impl Fn(usize) -> u32, values: &Typed, range: Range<usize>) {
        let growing = &mut *self.growing;
        match (values, &mut growing.values) {
            (Typed::Text(Texts::Dictionary(dictionary, values)), _) => growing.extend_dictionary(row, dictionary.keys(), values, range),
            (Typed::Text(Texts::Plain(texts)), Values::Text { ends, bytes }) => extend_text((&mut growing.rows, ends, bytes), row, texts, range),
            (Typed::Text(texts), _) => {
                for (at, place) in range.enumerate() {
                    if let Some(text) = texts.get(place) {
                        growing.push_text(row(at), text.as_bytes());
                    }
                }
            }
            (Typed::Int(values), Values::Int(to)) => extend_numbers((&mut growing.rows, to), row, values, range),
            (Typed::Double(values), Values::Double(to)) => extend_numbers((&mut growing.rows, to), row, values, range),
            (Typed::Bool(values), Values::Bool(to)) => {
                for (at, place) in range.enumerate().filter(|(_, place)| values.is_valid(*place)) {
                    growing.rows.push(row(at));
                    to.push(values.value(place));
                }
            }
            _ => unreachable!("a column holds values of its type"),
        }
    }
}

/// Calls `take` with the new row and the key of each of `range` that has one.
#[inline]
fn for_each_key(row: impl Fn(usize) -> u32, keys: &Int32Array, range: Range<usize>, mut take: impl FnMut(u32, usize)) {
    match keys.nulls() {
        None => keys.values()[range].iter().enumerate().for_each(|(at, &key)| take(row(at), key as usize)),
        Some(nulls) => {
            let nulls = nulls.slice(range.start, range.len());
            nulls.valid_indices().for_each(|at| take(row(at), keys.value(range.start + at) as usize));
        }
    }
}

/// Appends the texts of `range`, nulls left out, with a copy of all that lie together.
fn extend_text(
    (to_rows, ends, bytes): (&mut Vec<u32>, &mut Vec<u32>, &mut Vec<u8>),
    row: impl Fn(usize) -> u32,
    from: &StringArray,
    range: Range<usize>,
) {
    let offsets = from.value_offsets();
    let runs: Vec<(usize, usize)> = match from.nulls() {
        None => vec![(range.start, range.end)],
        Some(nulls) => nulls.slice(range.start, range.len()).valid_slices().map(|(first, last)| (range.start + first, range.start + last)).collect(),
    };
    reserve_text(bytes, (offsets[range.end] - offsets[range.start]) as usize);
    for (first, last) in runs {
        // Where the first one's text begins, in the column and here: both are below 4 GiB, and so is what lies between them, either way around.
        let moved = (bytes.len() as u32).wrapping_sub(offsets[first] as u32);
        bytes.extend_from_slice(&from.value_data()[offsets[first] as usize..offsets[last] as usize]);
        ends.extend(offsets[first + 1..=last].iter().map(|&end| (end as u32).wrapping_add(moved)));
        to_rows.extend((first - range.start..last - range.start).map(&row));
    }
}

/// Text that grows by tables grows fast: at twice its room, as vectors do, all of it would be copied another time.
const GROWTH: usize = 4;

/// Makes room for `more` bytes. **Memory**: up to four times the text until the chunk is sealed, of which fresh pages that are not used take none.
fn reserve_text(bytes: &mut Vec<u8>, more: usize) {
    if bytes.capacity() - bytes.len() < more {
        let wanted = (bytes.capacity() * GROWTH).min(CHUNK_TEXT_BYTES).max(bytes.len() + more);
        bytes.reserve_exact(wanted - bytes.len());
    }
}

/// Appends the numbers of `range`, nulls left out.
fn extend_numbers<T: ArrowPrimitiveType>(
    (to_rows, to): (&mut Vec<u32>, &mut Vec<T::Native>),
    row: impl Fn(usize) -> u32,
    from: &PrimitiveArray<T>,
    range: Range<usize>,
) {
    match from.nulls() {
        None => {
            to_rows.extend((0..range.len()).map(row));
            to.extend_from_slice(&from.values()[range]);
        }
        Some(nulls) => {
            let nulls = nulls.slice(range.start, range.len());
            for at in nulls.valid_indices() {
                to_rows.push(row(at));
                to.push(from.value(range.start + at));
            }
        }
    }
}

impl Growing {
    #[inline]
    fn push_text(&mut self, row: u32, text: &[u8]) {
        self.rows.push(row);
        match &mut self.values {
            Values::Coded(codes) => {
                codes.push(self.pool.intern(text));
                if codes.len() == CARDINALITY_PROBE && self.pool.len() - self.pooled_before > CARDINALITY_PROBE / 2 {
                    self.stop_interning();
                }
            }
            Values::Text { ends, bytes } => {
                bytes.extend_from_slice(text);
                ends.push(bytes.len() as u32);
            }
            _ => unreachable!("a string column holds strings"),
        }
    }

    #[inline]
    fn push_int(&mut self, row: u32, value: i64) {
        if let Values::Int(values) = &mut self.values {
            self.rows.push(row);
            values.push(value);
        }
    }

    #[inline]
    fn push_double(&mut self, row: u32, value: f64) {
        if let Values::Double(values) = &mut self.values {
            self.rows.push(row);
            values.push(value);
        }
    }

    #[inline]
    fn push_bool(&mut self, row: u32, value: bool) {
        if let Values::Bool(values) = &mut self.values {
            self.rows.push(row);
            values.push(value);
        }
    }

    /// Appends strings by their keys; each distinct one is looked up once.
    fn extend_dictionary(&mut self, row: impl Fn(usize) -> u32, keys: &Int32Array, values: &StringArray, range: Range<usize>) {
        let Values::Coded(codes) = &mut self.values else {
            return for_each_key(row, keys, range, |row, key| self.push_text(row, values.value(key).as_bytes()));
        };
        let (before, mut known) = (codes.len(), vec![NONE; values.len()]);
        let mut code_of = |key: usize| {
            if known[key] == NONE {
                known[key] = self.pool.intern(values.value(key).as_bytes());
            }
            known[key]
        };
        match keys.nulls() {
            // At once: room is made for all together.
            None => {
                self.rows.extend((0..range.len()).map(row));
                codes.extend(keys.values()[range].iter().map(|&key| code_of(key as usize)));
            }
            Some(_) => for_each_key(row, keys, range, |row, key| {
                self.rows.push(row);
                codes.push(code_of(key));
            }),
        }
        let probed = before < CARDINALITY_PROBE && codes.len() >= CARDINALITY_PROBE;
        if probed && self.pool.len() - self.pooled_before > codes.len() / 2 {
            self.stop_interning();
        }
    }

    /// Turns the strings of this chunk, most of them distinct, into plain text, and stays with it. Sealed chunks keep their codes.
    fn stop_interning(&mut self) {
        let Values::Coded(codes) = &self.values else { return };
        let (mut ends, mut bytes) = (Vec::with_capacity(codes.len() * 2), Vec::new());
        for &code in codes {
            bytes.extend_from_slice(self.pool.get(code));
            ends.push(bytes.len() as u32);
        }
        self.values = Values::Text { ends, bytes };
    }
}
