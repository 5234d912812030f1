//! The name of a log. Blocks say by it which log segments they cover, so it must not outlive the segments: it lies beside them.

use std::{fs::File, io::Write, path::Path};

use skein_engine::{
    error::{Error, Result},
    spans::BlockId,
};

/// Name of the file in the log's folder.
const FILE_NAME: &str = "id";

/// Reads the name of the log in `dir`, or gives it one: a random UUID, durable on return. Blocks.
/// Errors: `Unavailable` when the file cannot be read or written; `Data` when it holds something else.
pub fn log_id(dir: &Path) -> Result<String> {
    let path = dir.join(FILE_NAME);
    let failed = |error: std::io::Error| Error::unavailable(format!("naming the log: {}", path.display())).with_source(error);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(BlockId::parse(text.trim()).map_err(|e| Error::data(format!("{} is no log id", path.display())).with_source(e))?.to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let id = BlockId::random().to_string();
            std::fs::create_dir_all(dir).map_err(failed)?;
            let unfinished = dir.join("id.new");
            let mut file = File::create(&unfinished).map_err(failed)?;
            file.write_all(id.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
            std::fs::rename(&unfinished, &path).map_err(failed)?;
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
            Ok(id)
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_log_keeps_its_name_and_another_has_another() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = log_id(a.path()).unwrap();
        assert_eq!(log_id(a.path()).unwrap(), first);
        assert_ne!(log_id(&b.path().join("new")).unwrap(), first);
        std::fs::write(a.path().join(FILE_NAME), "").unwrap();
        assert!(log_id(a.path()).is_err());
    }
}
