//! A tar whose files are read out of order.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

/// Manifests and configurations are small: more is an attack on our memory.
const MAX_JSON: u64 = 4 << 20;
const MAX_ENTRIES: usize = 100_000;
/// `docker save` links layers that several images share.
const MAX_LINKS: usize = 8;

enum Entry {
    File(Part),
    Link(String),
}

/// A piece of the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub offset: u64,
    pub size: u64,
}

pub(super) struct Archive {
    pub file: Arc<File>,
    entries: BTreeMap<String, Entry>,
}

impl Archive {
    pub fn open(file: File) -> Result<Archive, String> {
        let length = file.metadata().map_err(|e| e.to_string())?.len();
        let mut magic = [0; 4];
        let read = file.read_at(&mut magic, 0).map_err(|e| e.to_string())?;
        let magic = magic.get(..read).unwrap_or_default();
        if magic.starts_with(&[0x1f, 0x8b]) || magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            return Err("the archive is compressed; decompress it first (gunzip, unzstd)".into());
        }
        let broken = |error: io::Error| format!("not a whole tar archive: {error}");
        let mut entries = BTreeMap::new();
        let mut tar = tar::Archive::new(&file);
        for entry in tar.entries_with_seek().map_err(broken)? {
            let entry = entry.map_err(broken)?;
            let path = normal(&String::from_utf8_lossy(&entry.path_bytes()));
            let kind = entry.header().entry_type();
            let entry = if kind.is_file() {
                let part = Part { offset: entry.raw_file_position(), size: entry.size() };
                // Seeking does not notice an end that comes too soon.
                if part.offset.checked_add(part.size).is_none_or(|end| end > length) {
                    return Err(format!("not a whole tar archive: it ends within {path}"));
                }
                Entry::File(part)
            } else if let (true, Some(target)) = (kind.is_symlink() || kind.is_hard_link(), entry.link_name_bytes()) {
                let target = String::from_utf8_lossy(&target).into_owned();
                let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
                Entry::Link(if kind.is_symlink() { normal(&format!("{parent}/{target}")) } else { normal(&target) })
            } else {
                continue;
            };
            entries.insert(path, entry);
            if entries.len() > MAX_ENTRIES {
                return Err(format!("more than {MAX_ENTRIES} files: an image's archive has a few"));
            }
        }
        Ok(Archive { file: Arc::new(file), entries })
    }

    pub fn find(&self, path: &str) -> Option<Part> {
        let mut path = normal(path);
        for _ in 0..MAX_LINKS {
            match self.entries.get(&path)? {
                Entry::File(part) => return Some(*part),
                Entry::Link(target) => path.clone_from(target),
            }
        }
        None
    }

    /// A small file, whole.
    pub fn small(&self, path: &str) -> Result<Option<Vec<u8>>, String> {
        let Some(part) = self.find(path) else { return Ok(None) };
        if part.size > MAX_JSON {
            return Err(format!("{path} has {} bytes; {MAX_JSON} are allowed", part.size));
        }
        let mut bytes = Vec::new();
        self.reader(part).read_to_end(&mut bytes).map_err(|e| format!("{path}: {e}"))?;
        Ok(Some(bytes))
    }

    pub fn reader(&self, part: Part) -> PartReader<'_> {
        PartReader { file: &self.file, part }
    }
}

/// Without `.` and `..`, which could name one file twice.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.join("/")
}

pub(super) struct PartReader<'a> {
    file: &'a File,
    part: Part,
}

impl Read for PartReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.part.size).unwrap_or(usize::MAX).min(buffer.len());
        let Some(buffer) = buffer.get_mut(..wanted).filter(|b| !b.is_empty()) else { return Ok(0) };
        let read = self.file.read_at(buffer, self.part.offset)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.part.offset += read as u64;
        self.part.size -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_one_form() {
        for (path, form) in [("./a//b", "a/b"), ("/a/../b", "b"), ("../../etc", "etc"), ("", "")] {
            assert_eq!(normal(path), form);
        }
    }
}
