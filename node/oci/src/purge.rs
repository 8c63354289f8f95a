//! Taking away what a containerd of ours has made, without its help.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::UnmountFlags;
use rustix::process::Signal;

use crate::config::Paths;
use crate::error::{Error, Result};
use crate::ports;
use sampan_process::Identity;

/// How long killed processes may take to end.
const END: Duration = Duration::from_secs(10);

/// containerd processes with our configuration, recorded or not.
pub(crate) fn daemons(paths: &Paths) -> Vec<Identity> {
    with_argument(&paths.config())
}

/// Ends everything and takes away what lies outside the directory, which keeps the images. Tells how
/// many containers there were, pods' own included.
pub(crate) fn clean(paths: &Paths, recorded: Option<Identity>) -> Result<usize> {
    // First what would start anything again, last what others are children of.
    kill(recorded.into_iter().chain(daemons(paths)).collect())?;
    let bundles = bundles(paths);
    let containers: BTreeSet<_> =
        bundles.iter().filter_map(|dir| Some(dir.file_name()?.to_str()?.to_owned())).collect();
    kill(in_containers(&containers))?;
    kill(with_argument(&paths.socket()))?;
    for bundle in &bundles {
        let address = std::fs::read_to_string(bundle.join("address")).unwrap_or_default();
        if let Some(socket) = address.strip_prefix("unix://").filter(|s| s.starts_with("/run/containerd/s/")) {
            let _ = std::fs::remove_file(socket);
        }
    }
    unmount_below(&paths.dir)?;
    remove(&paths.run)?;
    ports::take_back(paths)?;
    Ok(bundles.len())
}

pub(crate) fn purge(paths: &Paths, recorded: Option<Identity>) -> Result<()> {
    clean(paths, recorded)?;
    remove(&paths.dir)
}

fn remove(dir: &Path) -> Result<()> {
    unmount_below(dir)?;
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(dir)(error)),
        _ => Ok(()),
    }
}

/// A directory for each container that was started.
fn bundles(paths: &Paths) -> Vec<PathBuf> {
    let tasks = paths.state().join("io.containerd.runtime.v2.task").join(crate::client::NAMESPACE);
    std::fs::read_dir(tasks).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// containerd and its shims, by an argument that only ours have.
fn with_argument(path: &Path) -> Vec<Identity> {
    let wanted = path.as_os_str().as_encoded_bytes();
    let ours = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut arguments = line.split(|&byte| byte == 0);
        let program = arguments.next().unwrap_or_default();
        let name = program.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        name.starts_with(b"containerd") && arguments.any(|argument| argument == wanted)
    };
    processes().filter(ours).filter_map(Identity::of).collect()
}

/// By control group: a container's ends with its id, which no other's does.
fn in_containers(ids: &BTreeSet<String>) -> Vec<Identity> {
    let inside = |pid: &i32| {
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        groups.lines().flat_map(|line| line.split('/')).any(|part| ids.contains(part))
    };
    processes().filter(inside).filter_map(Identity::of).collect()
}

fn kill(processes: Vec<Identity>) -> Result<()> {
    for identity in &processes {
        identity.signal(Signal::KILL);
    }
    match processes.iter().find(|identity| !identity.gone_blocking(END)) {
        Some(identity) => Err(Error::Daemon(format!("process {} does not end", identity.pid))),
        None => Ok(()),
    }
}

/// Whether something is mounted at a directory or below it.
pub fn is_mounted_below(dir: &Path) -> Result<bool> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").map_err(Error::io("/proc/self/mountinfo"))?;
    let mut points = table.lines().filter_map(|line| Some(unescape(line.split(' ').nth(4)?)));
    Ok(points.any(|point| point.starts_with(dir)))
}

/// Deepest first: later lines of the table lie on earlier ones.
pub fn unmount_below(dir: &Path) -> Result<()> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").map_err(Error::io("/proc/self/mountinfo"))?;
    let points = table.lines().rev().filter_map(|line| Some(unescape(line.split(' ').nth(4)?)));
    for point in points.filter(|point| point.starts_with(dir)) {
        match rustix::mount::unmount(&point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // Gone with one above it.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(Error::io(&point)(error.into())),
        }
    }
    Ok(())
}

/// The table writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut path = text.to_owned();
    for (escape, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        path = path.replace(escape, plain);
    }
    path.into()
}
