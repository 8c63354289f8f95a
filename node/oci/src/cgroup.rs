//! The control groups of pods: containerd makes a pod's without limits, and nobody removes it.

mod limits;

pub use limits::{Limits, set};

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use sampan_process::Identity;

const ROOT: &str = "/sys/fs/cgroup";
/// The kernel takes a moment to see that a group is empty.
const RETRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(20);

/// This group in every hierarchy: one of version 2, or many of version 1.
fn directories(root: &Path, name: &str) -> io::Result<Vec<PathBuf>> {
    let name = parts(name)?.join("/");
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root.join(name)]);
    }
    Ok(hierarchies(root)?.into_iter().map(|dir| dir.join(&name)).collect())
}

/// The names from the root down.
fn parts(name: &str) -> io::Result<Vec<&str>> {
    let parts: Vec<_> = name.trim_start_matches('/').split('/').collect();
    let plain = |part: &&str| !part.is_empty() && *part != "." && *part != ".." && !part.contains('\0');
    if parts.iter().all(plain) {
        return Ok(parts);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "not the name of a control group"))
}

/// Of version 1.
fn hierarchies(root: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(root)?.flatten().map(|entry| entry.path());
    // Names such as `cpu` may be links to `cpu,cpuacct`.
    Ok(entries.filter(|dir| dir.join("cgroup.procs").exists() && !dir.is_symlink()).collect())
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir())).map(|entry| entry.path()).collect()
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for child in children(dir) {
        remove_tree(&child)?;
    }
    match std::fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn try_remove(name: &str) -> Result<()> {
    for dir in directories(Path::new(ROOT), name).map_err(Error::io(name))? {
        remove_tree(&dir).map_err(Error::io(&dir))?;
    }
    Ok(())
}

/// Removes the group and those below it, in every hierarchy; their processes must have ended. One that
/// is missing is fine.
pub async fn remove(name: &str) -> Result<()> {
    for _ in 0..RETRIES {
        if try_remove(name).is_ok() {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
    try_remove(name)
}

/// Kills what is in it first, and blocks.
pub fn purge(name: &str) -> Result<()> {
    for _ in 0..RETRIES {
        for dir in directories(Path::new(ROOT), name).map_err(Error::io(name))? {
            kill_tree(&dir);
        }
        if try_remove(name).is_ok() {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    }
    try_remove(name)
}

/// Purges the groups right below one whose names begin so, and that one too if it is empty then. Tells
/// how many names there were.
pub fn purge_below(parent: &str, prefix: &str) -> Result<usize> {
    let dirs = directories(Path::new(ROOT), parent).map_err(Error::io(parent))?;
    let below = dirs.iter().flat_map(|dir| children(dir));
    let names: std::collections::BTreeSet<String> = below
        .filter_map(|child| Some(child.file_name()?.to_str()?.to_owned()))
        .filter(|name| name.starts_with(prefix))
        .collect();
    for name in &names {
        purge(&format!("{parent}/{name}"))?;
    }
    for dir in dirs {
        // Another node's groups may be there.
        let _ = std::fs::remove_dir(dir);
    }
    Ok(names.len())
}

fn kill_tree(dir: &Path) {
    for child in children(dir) {
        kill_tree(&child);
    }
    let processes = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for identity in processes.lines().filter_map(|pid| Identity::of(pid.parse().ok()?)) {
        identity.signal(rustix::process::Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_stay_below_the_root() {
        for bad in ["", "/", "a//b", "../x", "/a/..", "./a"] {
            assert!(directories(Path::new("/nowhere"), bad).is_err_and(|e| e.kind() == io::ErrorKind::InvalidInput));
        }
    }

    #[test]
    fn trees_go_whole_and_twice() {
        let root = tempfile::tempdir().unwrap();
        for controller in ["cpu", "memory"] {
            std::fs::create_dir_all(root.path().join(controller).join("pod/container")).unwrap();
            std::fs::write(root.path().join(controller).join("cgroup.procs"), "").unwrap();
        }
        let dirs = directories(root.path(), "/pod").unwrap();
        assert_eq!(dirs.len(), 2);
        for dir in dirs {
            remove_tree(&dir).unwrap();
            remove_tree(&dir).unwrap();
            assert!(!dir.exists());
        }
    }
}
