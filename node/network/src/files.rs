//! Small JSON files, replaced whole.

use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Every file carries the format it is in under this key.
const VERSION: &str = "version";

/// The file's content, if there is one and it is of format `version`.
pub(crate) fn read<T: DeserializeOwned>(path: &Path, version: u64) -> Result<Option<T>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::file("read", path)(error)),
    };
    let corrupt = |why: String| Error::Corrupt { path: path.to_owned(), why };
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|error| corrupt(error.to_string()))?;
    match value.get(VERSION).and_then(serde_json::Value::as_u64) {
        Some(found) if found == version => {}
        Some(found) => {
            return Err(Error::Version { path: path.to_owned(), found, known: version });
        }
        None => return Err(corrupt("it has no version".to_owned())),
    }
    serde_json::from_value(value).map(Some).map_err(|error| corrupt(error.to_string()))
}

/// Replaces the file: a reader sees the old content or the new.
pub(crate) fn write<T: Serialize>(path: &Path, content: &T) -> Result<()> {
    let text = serde_json::to_vec(content).map_err(|error| Error::file("write", path)(error.into()))?;
    let beside = path.with_extension("new");
    fs::write(&beside, text).map_err(Error::file("write", &beside))?;
    fs::rename(&beside, path).map_err(Error::file("replace", path))
}

/// Removes the file if it is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", path)(error)),
        _ => Ok(()),
    }
}
