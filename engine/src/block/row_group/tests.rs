//! What is decoded here equals what the Parquet library decodes, and damaged pages are refused.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use arrow::{
    array::{Array, BinaryArray, BooleanArray, DictionaryArray, Float64Array, Int32Array, Int64Array, StringArray, StringViewArray},
    datatypes::Int32Type,
};
use bytes::Bytes;
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ArrowReaderOptions},
    basic::{Compression, Encoding, ZstdLevel},
    file::properties::WriterProperties,
    schema::types::ColumnPath,
};
use proptest::{
    prelude::*,
    sample::select,
    test_runner::{TestCaseError, TestRunner},
};

use super::*;
use crate::clock::Stopwatch;

/// Where values are: runs of rows that have one and of rows that lack one.
fn presence(rows: usize) -> impl Strategy<Value = Vec<bool>> {
    let run = (any::<bool>(), select(vec![1_usize, 1, 1, 2, 3, 7, 8, 9, 64, 500]));
    let of_runs = |runs: Vec<(bool, usize)>| runs.into_iter().flat_map(|(is, count)| std::iter::repeat_n(is, count));
    proptest::collection::vec(run, 1..60).prop_map(move |runs| of_runs(runs).cycle().take(rows).collect())
}

fn ranges_of(chosen: &[bool]) -> Vec<Range<usize>> {
    BooleanBuffer::from(chosen).set_slices().map(|(from, to)| from..to).collect()
}

/// Numbers of values by row; few, or many.
fn numbers(rows: usize) -> impl Strategy<Value = Vec<Option<u32>>> {
    let number = prop_oneof![Just(1_u32), Just(2), Just(3), Just(300), Just(70_000)].prop_flat_map(move |distinct| {
        prop_oneof![
            proptest::collection::vec(0..distinct, rows),
            proptest::collection::vec((0..distinct, 1..50_usize), 1..rows.max(2))
                .prop_map(move |runs| { runs.into_iter().flat_map(|(n, count)| std::iter::repeat_n(n, count)).cycle().take(rows).collect() }),
        ]
    });
    (number, presence(rows), any::<bool>())
        .prop_map(|(numbers, present, all)| numbers.into_iter().zip(present).map(|(number, is)| (is || all).then_some(number)).collect())
}

fn text(number: u32) -> String {
    match number % 3 {
        0 => String::new(),
        1 => format!("goose {number}"),
        _ => format!("gäns {number}"),
    }
}

/// The same numbers as an array of each type; without nulls where they are not `nullable`.
fn array(kind: usize, nullable: bool, numbers: &[Option<u32>]) -> (DataType, ArrayRef) {
    let filled: Vec<Option<u32>> = numbers.iter().map(|number| number.or((!nullable).then_some(0))).collect();
    let texts = || filled.iter().map(|number| number.map(text));
    let array: ArrayRef = match kind {
        0 => {
            let all: Vec<String> = texts().map(Option::unwrap_or_default).collect();
            let dictionary: DictionaryArray<Int32Type> = all.iter().map(String::as_str).collect();
            let keys = dictionary.keys().iter().zip(&filled).map(|(key, number)| number.and(key)).collect::<Int32Array>();
            Arc::new(DictionaryArray::new(keys, dictionary.values().clone()))
        }
        1 => Arc::new(filled.iter().map(|number| number.map(|n| i64::from(n) - 5)).collect::<Int64Array>()),
        2 => Arc::new(filled.iter().map(|number| number.map(|n| n as i32 - 5)).collect::<Int32Array>()),
        3 => Arc::new(filled.iter().map(|number| number.map(|n| f64::from(n) / 7.0)).collect::<Float64Array>()),
        4 => Arc::new(filled.iter().map(|number| number.map(|n| n % 2 == 0)).collect::<BooleanArray>()),
        5 => Arc::new(texts().collect::<StringArray>()),
        6 => Arc::new(texts().collect::<StringViewArray>()),
        DELTAS => Arc::new(filled.iter().map(|number| number.map(wide)).collect::<Int64Array>()),
        _ => Arc::new(texts().map(|text| text.map(String::into_bytes)).collect::<BinaryArray>()),
    };
    (array.data_type().clone(), array)
}

const KINDS: usize = 9;

/// The kind that is written as differences.
const DELTAS: usize = 8;

/// Numbers of all widths, near each other and far.
fn wide(number: u32) -> i64 {
    match number % 3 {
        0 => i64::from(number),
        _ => i64::from(number).wrapping_mul(-0x61c8_8646_80b5_83eb) >> (number / 64 % 64),
    }
}

/// Kind, whether values may be missing, and the numbers of the values.
type Numbers = (usize, bool, Vec<Option<u32>>);

#[derive(Debug, Clone)]
struct File {
    columns: Vec<Numbers>,
    lists: Vec<usize>,
    items: Vec<Numbers>,
    page_rows: usize,
    dictionary_bytes: usize,
    compressed: bool,
    /// Whether texts and byte strings lie behind their lengths, as views always do.
    plain_texts: bool,
}

fn files() -> impl Strategy<Value = File> {
    let rows = prop_oneof![1..20_usize, 1..3000_usize];
    let lists = rows.prop_flat_map(|rows| {
        let lengths = presence(rows).prop_flat_map(|has| has.into_iter().map(|has| if has { 1..4_usize } else { 0..1 }).collect::<Vec<_>>());
        (Just(rows), lengths)
    });
    lists.prop_flat_map(|(rows, lists)| {
        let entries = lists.iter().sum();
        let columns = proptest::collection::vec((0..KINDS, any::<bool>(), numbers(rows)), 1..4);
        let items = proptest::collection::vec((0..KINDS, any::<bool>(), numbers(entries)), 0..4);
        let page_rows = select(vec![1_usize, 7, 100, usize::MAX]);
        let dictionary_bytes = select(vec![1 << 20, 1 << 20, 200]);
        (columns, Just(lists), items, page_rows, dictionary_bytes, any::<(bool, bool)>()).prop_map(
            |(columns, lists, items, page_rows, dictionary_bytes, (compressed, plain_texts))| File {
                columns,
                lists,
                items,
                page_rows,
                dictionary_bytes,
                compressed,
                plain_texts,
            },
        )
    })
}

/// A file, and which of its rows are chosen.
fn files_and_rows() -> impl Strategy<Value = (File, Vec<bool>)> {
    files().prop_flat_map(|file| {
        let rows = presence(file.lists.len());
        (Just(file), rows)
    })
}

impl File {
    /// In the form of blocks.
    fn usual(columns: Vec<Numbers>, items: Vec<Numbers>, lists: Vec<usize>) -> Self {
        Self { columns, lists, items, page_rows: usize::MAX, dictionary_bytes: 1 << 20, compressed: true, plain_texts: false }
    }

    fn batch(&self) -> RecordBatch {
        let of = |prefix: &str, columns: &[Numbers]| -> (Vec<FieldRef>, Vec<ArrayRef>) {
            let column = |(at, (kind, nullable, numbers)): (usize, &Numbers)| {
                let (kind, array) = array(*kind, *nullable, numbers);
                (Arc::new(Field::new(format!("{prefix}{at}"), kind, *nullable)), array)
            };
            columns.iter().enumerate().map(column).unzip()
        };
        let (mut fields, mut arrays) = of("c", &self.columns);
        if !self.items.is_empty() {
            let (parts, values) = of("i", &self.items);
            let item = Arc::new(Field::new("item", DataType::Struct(parts.clone().into()), false));
            let items = StructArray::new(parts.into(), values, None);
            let offsets = OffsetBuffer::from_lengths(self.lists.iter().copied());
            fields.push(Arc::new(Field::new("events", DataType::List(item.clone()), false)));
            arrays.push(Arc::new(ListArray::new(item, offsets, Arc::new(items), None)));
        }
        RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap()
    }

    fn bytes(&self) -> Bytes {
        let batch = self.batch();
        let compression = if self.compressed { Compression::ZSTD(ZstdLevel::try_new(1).unwrap()) } else { Compression::UNCOMPRESSED };
        let mut properties = WriterProperties::builder()
            .set_compression(compression)
            .set_data_page_row_count_limit(self.page_rows)
            .set_write_batch_size(self.page_rows.min(64))
            .set_dictionary_page_size_limit(self.dictionary_bytes);
        let flat = self.columns.iter().enumerate().map(|(at, (kind, ..))| (*kind, ColumnPath::from(format!("c{at}"))));
        let listed = self.items.iter().enumerate().map(|(at, (kind, ..))| {
            let path = ["events", "list", "item", &format!("i{at}")].map(str::to_owned);
            (*kind, ColumnPath::new(path.to_vec()))
        });
        for (kind, path) in flat.chain(listed) {
            if kind == DELTAS {
                properties =
                    properties.set_column_dictionary_enabled(path.clone(), false).set_column_encoding(path.clone(), Encoding::DELTA_BINARY_PACKED);
            }
            if kind == 6 || (self.plain_texts && matches!(kind, 5 | 7)) {
                properties =
                    properties.set_column_dictionary_enabled(path.clone(), false).set_column_encoding(path, Encoding::DELTA_LENGTH_BYTE_ARRAY);
            }
        }
        let mut out = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut out, batch.schema(), Some(properties.build())).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        out.into()
    }
}

fn agrees(file: &File, chosen: &[Range<usize>]) -> Result<(), TestCaseError> {
    let bytes = file.bytes();
    let parquet = ArrowReaderMetadata::load(&bytes, ArrowReaderOptions::new()).unwrap();
    let leaves: Vec<usize> = (0..parquet.parquet_schema().num_columns()).collect();
    let mut columns = FetchedColumns::new(&parquet, 0, file.lists.len(), bytes);
    for leaves in [&leaves[..], &leaves[1..], &leaves[..1]] {
        let (ours, library) = (columns.decode(leaves, None).unwrap(), columns.by_library(leaves, None).unwrap());
        prop_assert_eq!(ours.schema(), library.schema());
        prop_assert_eq!(ours.num_rows(), library.num_rows());
        for (ours, library) in ours.columns().iter().zip(library.columns()) {
            prop_assert_eq!(ours, library);
            ours.to_data().validate_full().unwrap();
        }
    }
    let library = columns.by_library(&leaves, Some(chosen)).unwrap();
    for long_bytes in [i64::MAX, 0] {
        columns.long_bytes = long_bytes;
        let ours = columns.decode(&leaves, Some(chosen)).unwrap();
        prop_assert_eq!(ours.schema(), library.schema());
        for (ours, library) in ours.columns().iter().zip(library.columns()) {
            prop_assert_eq!(ours, library);
            ours.to_data().validate_full().unwrap();
        }
    }
    // Events come last.
    for (leaf, library) in library.columns().iter().enumerate().take(file.columns.len()) {
        let have = columns.presence(leaf, Some(chosen)).unwrap();
        prop_assert_eq!(have, arrow::compute::is_not_null(library).unwrap());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn columns_are_what_the_library_reads((file, chosen) in files_and_rows()) {
        agrees(&file, &ranges_of(&chosen))?;
    }
}

/// What lies in damaged pages is an array of the right length, or an error.
fn does_no_harm(mut file: File, chosen: &[bool], places: &[(prop::sample::Index, u8)]) -> Result<(), TestCaseError> {
    file.compressed = false;
    let mut bytes = file.bytes().to_vec();
    let parquet = ArrowReaderMetadata::load(&Bytes::from(bytes.clone()), ArrowReaderOptions::new()).unwrap();
    let chunks = parquet.metadata().row_group(0).columns();
    for (place, byte) in places {
        let (start, length) = place.get(chunks).byte_range();
        bytes[start as usize + place.index(length as usize)] = *byte;
    }
    let columns = FetchedColumns { long_bytes: 0, ..FetchedColumns::new(&parquet, 0, file.lists.len(), Bytes::from(bytes)) };
    let chosen_rows = ranges_of(chosen);
    for leaf in 0..chunks.len() {
        if let Ok(have) = columns.presence(leaf, None) {
            prop_assert_eq!(have.len(), file.lists.len());
        }
        // The library need not bear what is damaged.
        let ours = matches!(columns.read_leaf(leaf, true, Part::All), Ok(Some(_)));
        if let Some(Ok(found)) = ours.then(|| columns.decode(&[leaf], Some(&chosen_rows))) {
            prop_assert_eq!(found.num_rows(), chosen.iter().filter(|chosen| **chosen).count());
            found.column(0).to_data().validate_full().unwrap();
        }
    }
    for leaf in 0..chunks.len() {
        for keep in [None, Some(BooleanBuffer::from(chosen))] {
            let Ok(Some(found)) = columns.read_leaf(leaf, true, Part::All) else { continue };
            let (lists, keep) = (found.lists(), keep.as_ref());
            let kept = lists.as_ref().zip(keep).map(|(lists, keep)| kept_entries(lists, keep));
            if let Ok(values) = found.decode(kept.as_ref().or(keep)) {
                let lists = lists.map(|lists| kept_lists(lists, keep));
                prop_assert_eq!(
                    lists.as_ref().map_or(values.len(), |lists| lists.len() - 1),
                    keep.map_or(file.lists.len(), BooleanBuffer::count_set_bits)
                );
                prop_assert_eq!(lists.and_then(|lists| lists.last().copied()).map_or(values.len(), |end| end as usize), values.len());
                values.to_data().validate_full().unwrap();
            }
        }
    }
    Ok(())
}

/// `SKEIN_FUZZ_SECONDS` makes it run that long.
#[test]
fn damaged_pages_do_no_harm() {
    let at_least = std::env::var("SKEIN_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).map_or(Duration::ZERO, Duration::from_secs);
    let places = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4);
    let damaged = (files_and_rows(), places);
    let started = Stopwatch::start();
    loop {
        let config = ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() };
        TestRunner::new(config).run(&damaged, |((file, chosen), places)| does_no_harm(file, &chosen, &places)).unwrap();
        if started.elapsed() >= at_least {
            break;
        }
    }
}

/// Of whether there are values only the levels are unpacked, and read.
#[test]
fn presence_is_told_by_the_levels_alone() {
    const ROWS: usize = 100_000;
    let numbers: Vec<Option<u32>> = (0..ROWS as u32).map(|n| (n.is_multiple_of(3) || n > 9_000).then_some(n)).collect();
    let bytes = File::usual(vec![(6, true, numbers.clone()), (0, true, numbers.clone())], Vec::new(), vec![0; ROWS]).bytes();
    let parquet = ArrowReaderMetadata::load(&bytes, ArrowReaderOptions::new()).unwrap();
    // The second half of the texts is damaged: it begins behind the block of the compression that has the levels.
    let mut damaged = bytes.to_vec();
    let (start, length) = parquet.metadata().row_group(0).column(0).byte_range();
    damaged[(start + length / 2) as usize..(start + length) as usize].fill(0xff);
    let columns = FetchedColumns::new(&parquet, 0, ROWS, Bytes::from(damaged));
    assert!(columns.decode(&[0], None).is_err());
    for leaf in 0..2 {
        let expected = BooleanArray::from_iter(numbers.iter().map(|number| Some(number.is_some())));
        assert_eq!(columns.presence(leaf, None).unwrap(), expected, "leaf {leaf}");
    }
}

/// The share of columns that the library decodes must not grow unseen.
#[test]
fn all_types_are_decoded_here() {
    let numbers: Vec<Option<u32>> = (0..1000).map(|n| (n % 3 > 0).then_some(n % 50)).collect();
    let columns = (0..KINDS).map(|kind| (kind, true, numbers.clone())).collect::<Vec<_>>();
    let bytes = File::usual(columns.clone(), columns, vec![1; 1000]).bytes();
    let parquet = ArrowReaderMetadata::load(&bytes, ArrowReaderOptions::new()).unwrap();
    let decoder = FetchedColumns::new(&parquet, 0, 1000, bytes);
    for kind in 0..KINDS {
        for leaf in [kind, KINDS + kind] {
            assert!(decoder.read_leaf(leaf, true, Part::All).unwrap().is_some(), "leaf {leaf}");
        }
    }
}
