//! The data dir: made private, locked while in use, and marked with the version of its format.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::fs::FlockOperation;

/// Of everything below the data dir but the store, which carries its own.
const FORMAT: &str = "sampan data format 1";

/// A data dir that this process alone uses.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Opens or makes it. Another process' hold, another format or a place that cannot be written
    /// are errors that name the dir.
    pub fn open(path: &Path) -> Result<Self> {
        let show = path.display();
        // Nothing is written into a dir that is somebody else's, not even the lock.
        look(path)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("the data dir {show} cannot be made"))?;
        let path = path.canonicalize().with_context(|| format!("the data dir {show}"))?;
        let lock = open_private(&path.join("lock"))
            .with_context(|| format!("the data dir {show} cannot be written; give another with --data-dir"))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let holder = fs::read_to_string(path.join("lock")).unwrap_or_default();
                bail!(
                    "the data dir {show} is in use by another sampan (process {}); stop it, or give another dir with --data-dir",
                    holder.trim()
                );
            }
            Err(error) => return Err(error).with_context(|| format!("the data dir {show} cannot be locked")),
        }
        lock.set_len(0)?;
        writeln!(&lock, "{}", std::process::id())?;
        check_format(&path)?;
        Ok(Self { path, _lock: lock })
    }

    /// The dir of one part: `server` or `node`.
    pub fn part(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.path.join("kubeconfig")
    }
}

fn open_private(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)
}

/// Refuses a dir with another mark, and one with content but no mark: it is not ours.
fn look(path: &Path) -> Result<bool> {
    let file = path.join("format");
    let show = path.display();
    match fs::read_to_string(&file) {
        Ok(text) if text.trim() == FORMAT => Ok(true),
        // Made this moment by another process, or by one that lost power.
        Ok(text) if text.is_empty() => Ok(false),
        Ok(text) => bail!(
            "the data dir {show} has {:?}, this program knows {FORMAT:?}: use the program that wrote it, or another dir",
            text.trim()
        ),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if let Some(name) = foreign_content(path)? {
                bail!("{show} holds {name:?} and is no data dir of sampan; give an empty or new one with --data-dir");
            }
            Ok(false)
        }
        Err(error) => Err(error).with_context(|| file.display().to_string()),
    }
}

/// Marks a new dir, once it is locked.
fn check_format(path: &Path) -> Result<()> {
    if !look(path)? {
        let mut new = open_private(&path.join("format"))?;
        writeln!(new, "{FORMAT}")?;
        new.sync_all()?;
    }
    Ok(())
}

fn foreign_content(path: &Path) -> Result<Option<String>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("the data dir {}", path.display())),
    };
    for entry in entries {
        let name = entry?.file_name();
        if name != "lock" {
            return Ok(Some(name.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_user_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDir::open(dir.path()).unwrap();
        let error = DataDir::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("in use") && error.contains(&std::process::id().to_string()), "{error}");
        drop(held);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn another_format_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("format"), "sampan data format 999\n").unwrap();
        let error = DataDir::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("999"), "{error}");
        assert_eq!(fs::read_to_string(dir.path().join("format")).unwrap(), "sampan data format 999\n");
        assert!(!dir.path().join("lock").exists());
    }

    #[test]
    fn a_mark_that_was_never_written_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("format"), "").unwrap();
        drop(DataDir::open(dir.path()).unwrap());
        assert_eq!(fs::read_to_string(dir.path().join("format")).unwrap().trim(), FORMAT);
    }

    #[test]
    fn somebody_elses_dir_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "x").unwrap();
        let error = DataDir::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("thesis.txt"), "{error}");
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["thesis.txt"], "nothing of ours is left there");
    }
}
