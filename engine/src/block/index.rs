//! The `index` object of a block. See engine/FORMAT.md, "index".

use std::{collections::BTreeSet, ops::Range, sync::OnceLock};

use bytes::Bytes;

use crate::{
    error::{Error, Result},
    spans::{
        tables::{Shared, SharedKind},
        tree::TraceRows,
        wire::{read_varint, write_varint},
    },
};

/// First bytes of the object (FORMAT.md, "index").
const MAGIC: &[u8; 4] = b"SKIX";
/// Version written, and the only one read (FORMAT.md, "index").
const VERSION: u32 = 1;
/// Bytes of the fixed header and of each entry of the section table (FORMAT.md, "index").
const HEADER_BYTES: usize = 12;
const ENTRY_BYTES: usize = 32;
/// No section is larger when unpacked; a damaged length must not allocate more.
const SECTION_BYTES_MAX: u64 = 1 << 31;

/// Section numbers (FORMAT.md, "index").
const RESOURCES: u32 = 1;
const SCOPES: u32 = 2;
const TRACES: u32 = 3;
const ROW_GROUPS: u32 = 4;
const SPAN_REST_KEYS: u32 = 5;
const EVENT_REST_KEYS: u32 = 6;
const LINK_KEYS: u32 = 7;
const TRACE_STARTS: u32 = 8;

/// Rows and times of one row group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct RowGroup {
    pub first_row: u32,
    pub rows: u32,
    /// Start of the trace that starts first, and last.
    pub trace_start_min: u64,
    pub trace_start_max: u64,
    /// End of the trace that ends last.
    pub trace_end_max: u64,
}

/// Where the rows of each trace lie, by trace id.
#[derive(Debug, Default)]
pub struct TraceIndex {
    ids: Vec<u128>,
    first: Vec<u32>,
    rows: Vec<u32>,
    /// Starts in Unix nanoseconds in the order of rows; empty where they are not known.
    starts: Vec<i64>,
    /// Made when first asked for.
    by_row: OnceLock<RowOrder>,
}

/// The traces in the order of their rows. Empty for traces that leave out rows or share them.
#[derive(Debug, Default)]
struct RowOrder {
    /// Positions in the lists by id.
    positions: Vec<u32>,
    /// The row after the last of each.
    ends: Vec<u32>,
}

impl TraceIndex {
    /// The index of `traces`, which are in the order of their rows.
    pub fn of(traces: &[TraceRows]) -> Self {
        let mut by_id: Vec<(u128, &TraceRows)> = traces.iter().map(|trace| (u128::from_be_bytes(trace.id().0), trace)).collect();
        by_id.sort_unstable_by_key(|&(id, _)| id);
        Self {
            ids: by_id.iter().map(|&(id, _)| id).collect(),
            first: by_id.iter().map(|(_, trace)| trace.first).collect(),
            rows: by_id.iter().map(|(_, trace)| trace.rows).collect(),
            starts: traces.iter().map(|trace| trace.start_unix_nano).collect(),
            by_row: OnceLock::new(),
        }
    }

    /// The ids, ascending.
    pub fn ids(&self) -> &[u128] {
        &self.ids
    }

    /// The rows of trace `id`.
    pub fn rows_of(&self, id: u128) -> Option<Range<usize>> {
        let at = self.ids.binary_search(&id).ok()?;
        Some(self.range(at))
    }

    /// A cursor over the traces in row order, before the first. Cost: sorts the traces once for each index.
    pub fn cursor(&self) -> TraceCursor<'_> {
        TraceCursor { index: self, order: self.row_order(), next: 0 }
    }

    /// Whether the starts of traces are known. Cost: as of [`cursor`](Self::cursor).
    pub fn has_starts(&self) -> bool {
        !self.starts.is_empty() && self.starts.len() == self.row_order().ends.len()
    }

    /// Adds the start of its trace for each of `rows`, which there are, to `out`; starts are known. Cost: a write a row, a look a trace.
    pub fn add_starts(&self, rows: Range<usize>, out: &mut Vec<i64>) {
        let ends = &self.row_order().ends;
        let first = ends.partition_point(|&end| end as usize <= rows.start);
        let before = out.len();
        for (&end, &start) in ends[first..].iter().zip(&self.starts[first..]) {
            let until = (end as usize).min(rows.end);
            out.resize(before + until - rows.start, start);
            if until == rows.end {
                return;
            }
        }
    }

    /// The traces of `rows`, which begin and end with one; None if a row has no trace. Cost: as of [`cursor`](Self::cursor).
    pub fn traces_in(&self, rows: Range<usize>) -> Option<RowTraces<'_>> {
        let RowOrder { positions, ends } = self.row_order();
        let [from, to] = [rows.start, rows.end].map(|row| ends.partition_point(|&end| end as usize <= row));
        let is_whole = to.checked_sub(1).map_or(0, |at| ends[at] as usize) == rows.end;
        is_whole.then(|| RowTraces {
            ids: &self.ids,
            positions: &positions[from..to],
            ends: &ends[from..to],
            starts: self.has_starts().then(|| &self.starts[from..to]),
        })
    }

    /// Bytes in memory.
    pub fn memory_bytes(&self) -> usize {
        self.ids.len() * (size_of::<u128>() + 4 * size_of::<u32>()) + size_of_val(&*self.starts)
    }

    fn row_order(&self) -> &RowOrder {
        self.by_row.get_or_init(|| {
            let mut positions: Vec<u32> = (0..self.ids.len() as u32).collect();
            positions.sort_unstable_by_key(|&at| self.first[at as usize]);
            let ranges = || positions.iter().map(|&at| self.range(at as usize));
            let ends: Vec<u32> = ranges().map(|rows| rows.end as u32).collect();
            let before = std::iter::once(0).chain(ranges().map(|rows| rows.end));
            if ranges().zip(before).all(|(rows, before)| rows.start == before) { RowOrder { positions, ends } } else { RowOrder::default() }
        })
    }

    fn range(&self, at: usize) -> Range<usize> {
        let first = self.first[at] as usize;
        first..first + self.rows[at] as usize
    }
}

/// Some traces in the order of their rows.
#[derive(Debug, Clone, Copy)]
pub struct RowTraces<'a> {
    ids: &'a [u128],
    positions: &'a [u32],
    /// The row after the last of each.
    pub ends: &'a [u32],
    /// Their starts in Unix nanoseconds, if they are known.
    pub starts: Option<&'a [i64]>,
}

impl RowTraces<'_> {
    /// The id of one.
    pub fn id(&self, at: usize) -> u128 {
        self.ids[self.positions[at] as usize]
    }
}

/// Finds the traces of ascending rows.
#[derive(Debug)]
pub struct TraceCursor<'a> {
    index: &'a TraceIndex,
    order: &'a RowOrder,
    next: usize,
}

impl TraceCursor<'_> {
    /// The id and rows of the trace that holds `row`, which is not before the last trace given. Cost: steps of doubling length from there.
    pub fn trace_at(&mut self, row: usize) -> Option<(u128, Range<usize>)> {
        let ends = &self.order.ends;
        let mut step = 1;
        while self.next + step < ends.len() && ends[self.next + step - 1] as usize <= row {
            step *= 2;
        }
        let until = (self.next + step).min(ends.len());
        self.next += ends[self.next..until].partition_point(|&end| end as usize <= row);
        let at = *self.order.positions.get(self.next)? as usize;
        Some((self.index.ids[at], self.index.range(at)))
    }
}

/// A block's index in memory.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct BlockIndex {
    pub resources: Shared,
    pub scopes: Shared,
    pub traces: TraceIndex,
    pub row_groups: Vec<RowGroup>,
    /// Keys that occur in the rest of spans.
    pub span_rest_keys: BTreeSet<Box<str>>,
    /// Keys that occur in the rest of events.
    pub event_rest_keys: BTreeSet<Box<str>>,
    /// Keys of link attributes.
    pub link_keys: BTreeSet<Box<str>>,
}

impl BlockIndex {
    /// Writes the object.
    pub fn write(&self) -> Result<Bytes> {
        let mut traces = Vec::with_capacity(self.traces.ids.len() * 24 + 8);
        traces.extend_from_slice(&(self.traces.ids.len() as u64).to_le_bytes());
        self.traces.ids.iter().for_each(|id| traces.extend_from_slice(&id.to_le_bytes()));
        self.traces.first.iter().for_each(|first| traces.extend_from_slice(&first.to_le_bytes()));
        self.traces.rows.iter().for_each(|rows| traces.extend_from_slice(&rows.to_le_bytes()));
        let mut groups = Vec::new();
        for group in &self.row_groups {
            groups.extend_from_slice(&group.first_row.to_le_bytes());
            groups.extend_from_slice(&group.rows.to_le_bytes());
            groups.extend_from_slice(&group.trace_start_min.to_le_bytes());
            groups.extend_from_slice(&group.trace_start_max.to_le_bytes());
            groups.extend_from_slice(&group.trace_end_max.to_le_bytes());
        }
        let keys = |keys: &BTreeSet<Box<str>>| strings(keys.iter().map(|key| key.as_bytes()));
        write_sections(&[
            (RESOURCES, strings(self.resources.entries().iter().map(|entry| &**entry))),
            (SCOPES, strings(self.scopes.entries().iter().map(|entry| &**entry))),
            (TRACES, traces),
            (ROW_GROUPS, groups),
            (SPAN_REST_KEYS, keys(&self.span_rest_keys)),
            (EVENT_REST_KEYS, keys(&self.event_rest_keys)),
            (LINK_KEYS, keys(&self.link_keys)),
            (TRACE_STARTS, deltas(&self.traces.starts)),
        ])
    }

    /// Reads the object. Errors: `Data` for any damage.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let sections = Sections::parse(bytes)?;
        let keys = |kind| -> Result<BTreeSet<Box<str>>> {
            let strings = parse_strings(&sections.get(kind)?)?;
            Ok(strings.into_iter().map(|key| String::from_utf8_lossy(&key).into_owned().into_boxed_str()).collect())
        };
        Ok(Self {
            resources: Shared::new(SharedKind::Resource, parse_strings(&sections.get(RESOURCES)?)?),
            scopes: Shared::new(SharedKind::Scope, parse_strings(&sections.get(SCOPES)?)?),
            traces: parse_traces(&sections.get(TRACES)?, sections.find(TRACE_STARTS)?.as_deref())?,
            row_groups: parse_row_groups(&sections.get(ROW_GROUPS)?)?,
            span_rest_keys: keys(SPAN_REST_KEYS)?,
            event_rest_keys: keys(EVENT_REST_KEYS)?,
            link_keys: keys(LINK_KEYS)?,
        })
    }
}

fn write_sections(sections: &[(u32, Vec<u8>)]) -> Result<Bytes> {
    let mut out = Vec::new();
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(sections.len() as u32).to_le_bytes());
    let mut body = Vec::new();
    let start = HEADER_BYTES + sections.len() * ENTRY_BYTES;
    for (kind, raw) in sections {
        let packed = zstd::bulk::compress(raw, 1).map_err(|e| Error::internal("packing a section of the index").with_source(e))?;
        out.extend_from_slice(&kind.to_le_bytes());
        out.extend_from_slice(&crc32fast::hash(&packed).to_le_bytes());
        out.extend_from_slice(&((start + body.len()) as u64).to_le_bytes());
        out.extend_from_slice(&(packed.len() as u64).to_le_bytes());
        out.extend_from_slice(&(raw.len() as u64).to_le_bytes());
        body.extend_from_slice(&packed);
    }
    out.extend_from_slice(&body);
    Ok(out.into())
}

/// The section table and the object it belongs to.
struct Sections<'a> {
    bytes: &'a [u8],
    count: usize,
}

fn damaged(what: &str) -> Error {
    Error::data(format!("index: {what}"))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    let part = bytes.get(at..at + 4).ok_or_else(|| damaged("ends early"))?;
    Ok(u32::from_le_bytes(part.try_into().expect("the slice has four bytes")))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    let part = bytes.get(at..at + 8).ok_or_else(|| damaged("ends early"))?;
    Ok(u64::from_le_bytes(part.try_into().expect("the slice has eight bytes")))
}

impl<'a> Sections<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self> {
        if bytes.get(..4) != Some(MAGIC) {
            return Err(damaged("does not begin with SKIX"));
        }
        match u32_at(bytes, 4)? {
            VERSION => Ok(Self { bytes, count: u32_at(bytes, 8)? as usize }),
            version => Err(damaged(&format!("has version {version}, this program reads version {VERSION}"))),
        }
    }

    fn get(&self, kind: u32) -> Result<Vec<u8>> {
        self.find(kind)?.ok_or_else(|| damaged(&format!("section {kind} is missing")))
    }

    /// A section, if there is one.
    fn find(&self, kind: u32) -> Result<Option<Vec<u8>>> {
        for entry in (0..self.count).map(|at| HEADER_BYTES + at * ENTRY_BYTES) {
            if u32_at(self.bytes, entry)? != kind {
                continue;
            }
            let (checksum, start, length) = (u32_at(self.bytes, entry + 4)?, u64_at(self.bytes, entry + 8)?, u64_at(self.bytes, entry + 16)?);
            let raw_length = u64_at(self.bytes, entry + 24)?;
            let end = start.checked_add(length).ok_or_else(|| damaged("a section ends beyond the object"))?;
            let packed = self.bytes.get(start as usize..end as usize).ok_or_else(|| damaged("a section ends beyond the object"))?;
            if crc32fast::hash(packed) != checksum || raw_length > SECTION_BYTES_MAX {
                return Err(damaged(&format!("section {kind} has a wrong checksum")));
            }
            let raw = zstd::bulk::decompress(packed, raw_length as usize);
            return raw.map(Some).map_err(|e| damaged(&format!("section {kind}")).with_source(e));
        }
        Ok(None)
    }
}

fn strings<'a>(strings: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    for string in strings {
        write_varint(&mut out, string.len() as u64);
        out.extend_from_slice(string);
    }
    out
}

/// Each number as a zigzag varint of its difference to the one before it.
fn deltas(numbers: &[i64]) -> Vec<u8> {
    let (mut out, mut last) = (Vec::with_capacity(numbers.len() * 5), 0i64);
    for &number in numbers {
        let delta = number.wrapping_sub(last);
        write_varint(&mut out, (delta << 1 ^ delta >> 63) as u64);
        last = number;
    }
    out
}

/// What [`deltas`] wrote of `count` numbers.
fn parse_deltas(mut bytes: &[u8], count: usize) -> Result<Vec<i64>> {
    let (mut numbers, mut last) = (Vec::with_capacity(count), 0i64);
    while !bytes.is_empty() {
        let (zigzag, used) = read_varint(bytes).map_err(|e| damaged("a number").with_source(e))?;
        last = last.wrapping_add((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64));
        numbers.push(last);
        bytes = &bytes[used..];
    }
    if numbers.len() == count { Ok(numbers) } else { Err(damaged("there are not as many starts as traces")) }
}

fn parse_strings(mut bytes: &[u8]) -> Result<Vec<Box<[u8]>>> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let (length, used) = read_varint(bytes).map_err(|e| damaged("a string").with_source(e))?;
        let end = usize::try_from(length).ok().and_then(|length| used.checked_add(length)).ok_or_else(|| damaged("a string is too long"))?;
        out.push(bytes.get(used..end).ok_or_else(|| damaged("a string ends beyond its section"))?.into());
        bytes = &bytes[end..];
    }
    Ok(out)
}

fn parse_traces(bytes: &[u8], starts: Option<&[u8]>) -> Result<TraceIndex> {
    let count = u64_at(bytes, 0)? as usize;
    if bytes.len() != count.checked_mul(24).and_then(|length| length.checked_add(8)).unwrap_or(0) {
        return Err(damaged("the trace section has a wrong length"));
    }
    let (ids, rest) = bytes[8..].split_at(count * 16);
    let (first, rows) = rest.split_at(count * 4);
    let numbers = |bytes: &[u8]| bytes.chunks_exact(4).map(|part| u32::from_le_bytes(part.try_into().expect("four bytes"))).collect();
    Ok(TraceIndex {
        ids: ids.chunks_exact(16).map(|part| u128::from_le_bytes(part.try_into().expect("sixteen bytes"))).collect(),
        first: numbers(first),
        rows: numbers(rows),
        starts: starts.map_or(Ok(Vec::new()), |starts| parse_deltas(starts, count))?,
        by_row: OnceLock::new(),
    })
}

fn parse_row_groups(bytes: &[u8]) -> Result<Vec<RowGroup>> {
    const BYTES: usize = 32;
    if !bytes.len().is_multiple_of(BYTES) {
        return Err(damaged("the row group section has a wrong length"));
    }
    (0..bytes.len())
        .step_by(BYTES)
        .map(|at| {
            Ok(RowGroup {
                first_row: u32_at(bytes, at)?,
                rows: u32_at(bytes, at + 4)?,
                trace_start_min: u64_at(bytes, at + 8)?,
                trace_start_max: u64_at(bytes, at + 16)?,
                trace_end_max: u64_at(bytes, at + 24)?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// A trace of ten rows, which starts the earlier the later they are.
    fn trace(id_high: i64, id_low: i64, first: u32) -> TraceRows {
        let start_unix_nano = 1_000_000 - i64::from(first) * 7;
        TraceRows { id_high, id_low, first, rows: 10, start_unix_nano, duration_nanos: 0, root: None, wire_bytes: 0 }
    }

    fn sample() -> BlockIndex {
        let traces: Vec<_> = [3, 1, 2].into_iter().enumerate().map(|(at, n)| trace(n << 6, 0, at as u32 * 10)).collect();
        BlockIndex {
            resources: Shared::new(SharedKind::Resource, vec![b"\x0a\x00".to_vec().into(), Box::default()]),
            scopes: Shared::new(SharedKind::Scope, vec![]),
            traces: TraceIndex::of(&traces),
            row_groups: vec![RowGroup { first_row: 0, rows: 30, trace_start_min: 5, trace_start_max: 9, trace_end_max: u64::MAX }],
            span_rest_keys: ["b", "a"].map(Box::from).into(),
            event_rest_keys: BTreeSet::new(),
            link_keys: ["é"].map(Box::from).into(),
        }
    }

    #[test]
    fn what_is_written_comes_back() {
        let written = sample();
        let read = BlockIndex::parse(&written.write().unwrap()).unwrap();
        assert_eq!(read.resources.entries(), written.resources.entries());
        assert_eq!(read.traces.ids(), [1u128 << 70, 2 << 70, 3 << 70]);
        assert_eq!(read.traces.rows_of(3 << 70), Some(0..10));
        assert_eq!(read.traces.rows_of(4 << 70), None);
        assert_eq!(read.row_groups, written.row_groups);
        assert_eq!(read.span_rest_keys, written.span_rest_keys);
        assert_eq!(read.link_keys, written.link_keys);
    }

    #[test]
    fn the_cursor_finds_the_trace_of_every_row() {
        let ids = [7u64, 3, 9, 1, 5];
        let traces: Vec<_> = ids.iter().enumerate().map(|(at, &id)| trace(0, id as i64, at as u32 * 10)).collect();
        let index = TraceIndex::of(&traces);
        for step in 1..60 {
            let mut cursor = index.cursor();
            for row in (0..50).step_by(step) {
                let first = row / 10 * 10;
                assert_eq!(cursor.trace_at(row), Some((u128::from(ids[row / 10]), first..first + 10)), "row {row}, step {step}");
            }
            assert_eq!(cursor.trace_at(50), None);
        }
        assert_eq!(TraceIndex::default().cursor().trace_at(0), None);
    }

    #[test]
    fn starts_come_back_row_by_row() {
        let written = sample();
        let index = BlockIndex::parse(&written.write().unwrap()).unwrap().traces;
        let expected: Vec<i64> = (0..30).map(|row| 1_000_000 - row / 10 * 70).collect();
        for (from, to) in (0..30).flat_map(|from| (from..=30).map(move |to| (from, to))) {
            let mut found = vec![5];
            index.add_starts(from..to, &mut found);
            assert_eq!((found[0], &found[1..]), (5, &expected[from..to]), "{from} to {to}");
        }
        for numbers in [vec![], vec![i64::MIN, i64::MAX, 0, -1, i64::MIN]] {
            assert_eq!(parse_deltas(&deltas(&numbers), numbers.len()).unwrap(), numbers);
            assert!(parse_deltas(&deltas(&numbers), numbers.len() + 1).is_err());
        }
    }

    #[test]
    fn traces_of_some_rows_are_whole_ones() {
        let index = sample().traces;
        let found = index.traces_in(10..30).unwrap();
        let ids: Vec<u128> = (0..2).map(|at| found.id(at) >> 70).collect();
        assert_eq!((found.ends, found.starts, &*ids), (&[20, 30][..], Some(&[999_930, 999_860][..]), &[1, 2][..]));
        assert!(index.traces_in(10..10).unwrap().ends.is_empty() && TraceIndex::default().traces_in(0..0).is_some());
        assert!(index.traces_in(10..29).is_none() && index.traces_in(20..31).is_none());
    }

    #[test]
    fn traces_that_do_not_share_out_the_rows_are_found_by_none() {
        for firsts in [[0, 11], [0, 9], [1, 11]] {
            let index = TraceIndex::of(&firsts.map(|first| trace(0, first.into(), first)));
            assert!(index.cursor().trace_at(5).is_none() && index.traces_in(0..10).is_none() && !index.has_starts());
        }
        let index = TraceIndex { starts: Vec::new(), ..TraceIndex::of(&[trace(0, 1, 0)]) };
        assert!(index.cursor().trace_at(5).is_some() && !index.has_starts(), "an index that was written without starts");
    }

    #[test]
    fn every_truncation_and_every_flipped_byte_is_noticed_or_harmless() {
        let bytes = sample().write().unwrap();
        for length in 0..bytes.len() {
            assert!(BlockIndex::parse(&bytes[..length]).is_err(), "cut to {length}");
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 0x55;
            drop(BlockIndex::parse(&damaged));
        }
    }
}
