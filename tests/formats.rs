//! Blocks as files of the wider world: other programs open `data.parquet` and count in it.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::{Server, Transport, nothing_is_cut, tests_dir};
use crate::tools;

/// Prints `{service: spans}` over all files, once by each reader.
const COUNT: &str = r#"
import collections, json, sys, duckdb, pyarrow.parquet as parquet
counts = collections.Counter()
for path in sys.argv[1:]:
    column = parquet.read_table(path, columns=["resource.service.name"]).column(0)
    counts.update(str(value) for value in column.to_pylist())
print(json.dumps(counts))
rows = duckdb.connect().execute('select "resource.service.name", count(*) from read_parquet(?) group by 1', [sys.argv[1:]]).fetchall()
print(json.dumps(dict(rows)))
"#;

#[test]
fn pyarrow_and_duckdb_count_by_service() {
    let Some(python) = tools::or_skip("pyarrow_and_duckdb_count_by_service", tools::python()) else { return };
    let server = Server::start(nothing_is_cut());
    server.client().load(Transport::HttpProtobuf, "shellci");
    server.client().flush();
    let files = block_files(&server.blocks(), "data.parquet");
    assert!(!files.is_empty(), "no block in {}", server.blocks().display());
    let paths: Vec<&str> = files.iter().map(|path| path.to_str().unwrap()).collect();
    let printed = tools::run_python(&python, COUNT, &paths);
    let truth: Value = serde_json::from_slice(&std::fs::read(tests_dir().join("data/shellci.truth.json")).unwrap()).unwrap();
    let counts: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(counts.len(), 2);
    for (reader, counted) in ["pyarrow", "duckdb"].iter().zip(counts) {
        assert_eq!(counted, truth["spans_per_service"], "{reader}");
    }
}

#[test]
fn a_block_is_a_folder_with_its_objects() {
    let server = Server::start(nothing_is_cut());
    server.client().load(Transport::HttpProtobuf, "nodedb");
    server.client().flush();
    let metas = block_files(&server.blocks(), "meta.json");
    assert!(!metas.is_empty());
    for path in metas {
        let meta: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let block = path.parent().unwrap();
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!((meta["tenantID"].as_str(), meta["blockID"].as_str()), (Some("nodedb"), Some(name(block).as_str())));
        assert_eq!(name(block.parent().unwrap()), "nodedb");
        for object in ["data.parquet", "bloom-0", "index"] {
            assert!(block.join(object).is_file(), "{object} is missing in {}", block.display());
        }
    }
}

/// All files of this name below a folder.
pub fn block_files(folder: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|found| found == name) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}
