//! Small JSON files, replaced whole, and files of JSON lines that grow.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Every file carries the format it is in under this key.
const VERSION: &str = "version";

/// The file's content, if there is one and it is of format `version`.
pub(crate) fn read<T: DeserializeOwned>(path: &Path, version: u64) -> Result<Option<T>> {
    let Some(text) = read_text(path)? else { return Ok(None) };
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

pub(crate) fn read_text(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::file("read", path)(error)),
    }
}

/// Replaces the file: a reader sees the old content or the new.
pub(crate) fn write<T: Serialize>(path: &Path, content: &T) -> Result<()> {
    replace(path, &encode(path, content)?)
}

/// As [`write`], one line each.
pub(crate) fn write_lines<T: Serialize>(path: &Path, lines: impl Iterator<Item = T>) -> Result<()> {
    let mut text = Vec::new();
    for line in lines {
        text.extend(encode(path, &line)?);
        text.push(b'\n');
    }
    replace(path, &text)
}

/// One line more for a file that is there: whole, or not at all.
pub(crate) fn append_line<T: Serialize>(path: &Path, line: &T) -> Result<()> {
    let mut text = encode(path, line)?;
    text.push(b'\n');
    let mut file = fs::File::options().append(true).open(path).map_err(Error::file("write", path))?;
    let before = file.metadata().map_err(Error::file("write", path))?.len();
    file.write_all(&text).map_err(|error| {
        let _ = file.set_len(before);
        Error::file("write", path)(error)
    })
}

fn encode<T: Serialize>(path: &Path, content: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(content).map_err(|error| Error::file("write", path)(error.into()))
}

fn replace(path: &Path, text: &[u8]) -> Result<()> {
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
