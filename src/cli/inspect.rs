//! `skein inspect`: what the columns of a block cost, from its Parquet footer.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use parquet::file::{metadata::ParquetMetaData, reader::FileReader, serialized_reader::SerializedFileReader};
use skein_engine::{
    catalog::meta::{DATA_NAME, META_NAME},
    error::{Error, Result},
};

use super::table::{self, Align};

/// Arguments of `skein inspect`.
#[derive(Args)]
pub struct Arguments {
    /// The folder of a block, or its data.parquet.
    block: PathBuf,
}

/// Reads the footer and prints the table.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let (folder, data) = match arguments.block.is_dir() {
        true => (Some(arguments.block.as_path()), arguments.block.join(DATA_NAME)),
        false => (arguments.block.parent(), arguments.block.clone()),
    };
    let doing = format!("reading the footer of {}", data.display());
    let file = File::open(&data).map_err(|error| Error::not_found(doing.clone()).with_source(error))?;
    let reader = SerializedFileReader::new(file).map_err(|error| Error::from(error).context(doing))?;
    print!("{}", render(reader.metadata(), table::width()));
    if let Some(folder) = folder.filter(|folder| folder.join(META_NAME).exists()) {
        print!("{}", objects(folder)?);
    }
    Ok(ExitCode::SUCCESS)
}

struct Column {
    name: String,
    kind: String,
    encodings: BTreeSet<String>,
    compression: String,
    values: u64,
    compressed: u64,
    uncompressed: u64,
    row_groups: usize,
    bloom: u64,
}

/// A row per column, largest first, and the sums.
fn render(metadata: &ParquetMetaData, width: usize) -> String {
    let mut order: Vec<String> = Vec::new();
    let mut columns: HashMap<String, Column> = HashMap::new();
    for group in metadata.row_groups() {
        for chunk in group.columns() {
            let name = chunk.column_path().string();
            let column = columns.entry(name.clone()).or_insert_with(|| {
                order.push(name.clone());
                Column {
                    name,
                    kind: chunk.column_type().to_string().to_lowercase(),
                    encodings: BTreeSet::new(),
                    compression: format!("{:?}", chunk.compression()).split('(').next().unwrap_or_default().to_lowercase(),
                    values: 0,
                    compressed: 0,
                    uncompressed: 0,
                    row_groups: 0,
                    bloom: 0,
                }
            });
            column.encodings.extend(chunk.encodings().map(|encoding| format!("{encoding:?}").to_lowercase()));
            column.values += chunk.num_values().max(0) as u64;
            column.compressed += chunk.compressed_size().max(0) as u64;
            column.uncompressed += chunk.uncompressed_size().max(0) as u64;
            column.row_groups += 1;
            column.bloom += chunk.bloom_filter_length().unwrap_or(0).max(0) as u64;
        }
    }
    let rows_total: u64 = metadata.row_groups().iter().map(|group| group.num_rows().max(0) as u64).sum();
    let compressed: u64 = columns.values().map(|column| column.compressed).sum();
    let uncompressed: u64 = columns.values().map(|column| column.uncompressed).sum();
    let bloom: u64 = columns.values().map(|column| column.bloom).sum();
    let mut columns: Vec<Column> = order.into_iter().filter_map(|name| columns.remove(&name)).collect();
    columns.sort_by_key(|column| std::cmp::Reverse(column.compressed));
    let heading = [
        ("bytes", Align::Right),
        ("share", Align::Right),
        ("per span", Align::Right),
        ("plain", Align::Right),
        ("values", Align::Right),
        ("groups", Align::Right),
        ("type", Align::Left),
        ("codec", Align::Left),
        ("column", Align::Left),
        ("encodings", Align::Left),
    ];
    let per_span = |bytes: u64| format!("{:.2}", bytes as f64 / rows_total.max(1) as f64);
    let rows: Vec<Vec<String>> = columns
        .iter()
        .map(|column| {
            // Levels are run-length encoded in every column: that says nothing.
            let encodings: Vec<&str> = column.encodings.iter().map(String::as_str).filter(|name| *name != "rle").collect();
            vec![
                table::grouped(column.compressed),
                format!("{:.1}%", 100.0 * column.compressed as f64 / compressed.max(1) as f64),
                per_span(column.compressed),
                table::grouped(column.uncompressed),
                table::grouped(column.values),
                column.row_groups.to_string(),
                column.kind.clone(),
                column.compression.clone(),
                column.name.clone(),
                encodings.join(" "),
            ]
        })
        .collect();
    let mut out = table::render(&heading, &rows, width);
    out.push_str(&format!(
        "\n{} rows in {} row groups, {} columns; {} of data ({} uncompressed), {} B a span; {} of bloom filters\n",
        table::grouped(rows_total),
        metadata.num_row_groups(),
        columns.len(),
        table::bytes(compressed),
        table::bytes(uncompressed),
        per_span(compressed),
        table::bytes(bloom),
    ));
    out
}

/// The objects of the block with their sizes.
fn objects(folder: &Path) -> Result<String> {
    let doing = || format!("listing {}", folder.display());
    let entries = std::fs::read_dir(folder).map_err(|error| Error::not_found(doing()).with_source(error))?;
    let mut objects: Vec<(String, u64)> =
        entries.flatten().filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.metadata().ok()?.len()))).collect();
    objects.sort();
    let total: u64 = objects.iter().map(|(_, bytes)| bytes).sum();
    let mut shown: Vec<String> = objects.iter().map(|(name, bytes)| format!("{name} {}", table::bytes(*bytes))).collect();
    shown.push(format!("together {}", table::bytes(total)));
    Ok(format!("{}\n", shown.join(", ")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use arrow::{
        array::{ArrayRef, Int64Array, StringArray},
        record_batch::RecordBatch,
    };
    use parquet::arrow::ArrowWriter;

    use super::*;

    #[test]
    fn columns_are_listed_largest_first_with_their_share() {
        let big: ArrayRef = Arc::new(StringArray::from_iter_values((0..1000).map(|i| format!("value number {i} of many"))));
        let small: ArrayRef = Arc::new(Int64Array::from_iter_values((0..1000).map(|i| i % 3)));
        let batch = RecordBatch::try_from_iter([("small", small), ("big", big)]).unwrap();
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.flush().unwrap();
        writer.write(&batch).unwrap();
        let reader = SerializedFileReader::new(bytes::Bytes::from(writer.into_inner().unwrap())).unwrap();
        let text = render(reader.metadata(), 200);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!((lines[1][8], lines[1][5], lines[1][4]), ("big", "2", "2,000"), "{text}");
        assert_eq!((lines[2][8], lines[2][6]), ("small", "int64"), "{text}");
        assert!(text.contains("2,000 rows in 2 row groups, 2 columns"), "{text}");
    }
}
