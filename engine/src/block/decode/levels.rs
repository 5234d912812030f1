//! Levels of a page: which of its entries have a value, and where lists end.

use parquet::errors::{ParquetError, Result};

use super::{
    bits::Bits,
    runs::{Run, Runs, damaged, unpack, unpack_all},
};

/// What the entries of a column are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Whether an entry may lack a value.
    pub nullable: bool,
    /// Whether a row has a list of entries, which may be empty, instead of one.
    pub listed: bool,
}

/// The levels of a column so far.
pub(super) struct Levels {
    shape: Shape,
    /// Whether each entry has a value, if the shape lets one lack it.
    present: Bits,
    entries: usize,
    values: usize,
    /// Where each list begins, if somebody asks.
    starts: Option<Vec<i32>>,
}

/// The levels of a column.
pub(super) struct Entries {
    pub(super) count: usize,
    /// Which have a value; None if all have.
    pub(super) present: Option<Bits>,
    /// Where each list begins, and the last one ends, if that was asked.
    pub(super) lists: Option<Vec<i32>>,
}

impl Levels {
    /// Of about `rows` rows; `lists` if where lists begin is asked.
    pub(super) fn new(shape: Shape, rows: usize, lists: bool) -> Self {
        let present = Bits::with_capacity(if shape.nullable && !shape.listed { rows } else { 0 });
        Self { shape, present, entries: 0, values: 0, starts: (lists && shape.listed).then(|| Vec::with_capacity(rows + 1)) }
    }

    /// Takes the levels of `count` entries, and of lists without an entry, off `page`; tells how many values follow. Errors: for damaged
    /// ones.
    pub(super) fn take(&mut self, page: &mut &[u8], count: usize) -> Result<usize> {
        let values = match (self.shape.listed, self.shape.nullable) {
            (false, false) => {
                self.entries += count;
                count
            }
            (false, true) => self.take_rows(part(page)?, count)?,
            (true, _) => {
                let (repeats, defined) = (part(page)?, part(page)?);
                if self.starts.is_some() {
                    self.note_lists(repeats, defined, count)?;
                }
                self.take_items(defined, count)?
            }
        };
        self.values += values;
        Ok(values)
    }

    /// A level a row, 1 for a value. Packed ones are the bits of Arrow's validity as they are.
    fn take_rows(&mut self, levels: &[u8], count: usize) -> Result<usize> {
        let mut values = 0;
        for run in Runs::new(levels, 1, count) {
            match run? {
                Run::Repeated { value: value @ 0..=1, count } => {
                    self.present.push_run(value == 1, count);
                    values += value as usize * count;
                }
                Run::Repeated { .. } => return Err(too_high()),
                Run::Packed { bytes, count } => values += self.present.push_bytes(bytes, count),
            }
        }
        self.entries += count;
        Ok(values)
    }

    /// A level an entry, 0 for a list without one.
    fn take_items(&mut self, levels: &[u8], count: usize) -> Result<usize> {
        let (mut values, mut unpacked) = (0, Vec::new());
        for run in Runs::new(levels, self.width(), count) {
            match run? {
                Run::Repeated { value, count } => values += self.add_items(value, count)?,
                Run::Packed { bytes, count } => {
                    unpacked.clear();
                    unpack(bytes, self.width(), count, &mut unpacked);
                    for same in unpacked.chunk_by(|a, b| a == b) {
                        values += self.add_items(same[0] as u32, same.len())?;
                    }
                }
            }
        }
        Ok(values)
    }

    fn add_items(&mut self, level: u32, count: usize) -> Result<usize> {
        let has_value = match (level, self.shape.nullable) {
            (0, _) => return Ok(0),
            (1, false) => true,
            (1 | 2, true) => {
                self.present.push_run(level == 2, count);
                level == 2
            }
            _ => return Err(too_high()),
        };
        self.entries += count;
        Ok(if has_value { count } else { 0 })
    }

    /// Bits of a level that says what an entry has.
    fn width(&self) -> u32 {
        1 + u32::from(self.shape.nullable && self.shape.listed)
    }

    fn note_lists(&mut self, repeats: &[u8], defined: &[u8], count: usize) -> Result<()> {
        let expand = |levels, width| -> Result<Vec<i32>> {
            let mut all = Vec::with_capacity(count.next_multiple_of(8));
            unpack_all(Runs::new(levels, width, count), &mut all)?;
            Ok(all)
        };
        let (repeats, defined) = (expand(repeats, 1)?, expand(defined, self.width())?);
        let mut entries = i32::try_from(self.entries)?;
        let starts = self.starts.get_or_insert_default();
        for (goes_on, defined) in repeats.into_iter().zip(defined) {
            match (goes_on, defined) {
                (0, _) => starts.push(entries),
                (1, 1..) if !starts.is_empty() => {}
                _ => return Err(damaged("a list that goes on before it began")),
            }
            entries = entries.checked_add(i32::from(defined > 0)).ok_or_else(|| damaged("too many entries"))?;
        }
        Ok(())
    }

    /// What was taken. Errors: for more entries than 32-bit offsets reach, and if other values were counted than there are entries that have
    /// one: what unpacks values relies on it.
    pub(super) fn finish(self) -> Result<Entries> {
        let lists = match self.starts {
            Some(mut starts) => {
                starts.push(i32::try_from(self.entries)?);
                Some(starts)
            }
            None => None,
        };
        if self.values != if self.shape.nullable { self.present.count_ones() } else { self.entries } {
            return Err(damaged("levels that do not fit its values"));
        }
        let present = (self.values < self.entries).then_some(self.present);
        Ok(Entries { count: self.entries, present, lists })
    }
}

/// Takes a part that begins with its length off `page`.
fn part<'a>(page: &mut &'a [u8]) -> Result<&'a [u8]> {
    let (length, rest) = page.split_first_chunk().ok_or_else(|| damaged("no levels"))?;
    let (found, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(|| damaged("levels that end after it"))?;
    *page = rest;
    Ok(found)
}

fn too_high() -> ParquetError {
    damaged("a level that is too high")
}
