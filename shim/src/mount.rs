//! Mounts: a container's root, and what is mounted into it. Every path inside a root is resolved
//! there: an image's links lead nowhere else.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::Context as _;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::oci;

/// A mount as containerd's snapshotters describe one.
#[derive(Debug, Clone)]
pub struct Mount {
    pub kind: String,
    pub source: String,
    pub options: Vec<String>,
}

/// As much as the kernel takes as a mount's data.
const PAGE: usize = 4096;

fn parse(options: &[String]) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut data: Vec<&str> = Vec::new();
    for option in options {
        let (flag, set) = match option.as_str() {
            "" | "defaults" => continue,
            "ro" => (MsFlags::MS_RDONLY, true),
            "rw" => (MsFlags::MS_RDONLY, false),
            "bind" => (MsFlags::MS_BIND, true),
            "rbind" => (MsFlags::MS_BIND | MsFlags::MS_REC, true),
            "nosuid" => (MsFlags::MS_NOSUID, true),
            "suid" => (MsFlags::MS_NOSUID, false),
            "nodev" => (MsFlags::MS_NODEV, true),
            "dev" => (MsFlags::MS_NODEV, false),
            "noexec" => (MsFlags::MS_NOEXEC, true),
            "exec" => (MsFlags::MS_NOEXEC, false),
            "noatime" => (MsFlags::MS_NOATIME, true),
            "relatime" => (MsFlags::MS_RELATIME, true),
            "strictatime" => (MsFlags::MS_STRICTATIME, true),
            "sync" => (MsFlags::MS_SYNCHRONOUS, true),
            // What is mounted for a guest is always private.
            "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared" | "unbindable" | "runbindable" => {
                continue;
            }
            "rro" => (MsFlags::MS_RDONLY, true),
            other => {
                data.push(other);
                continue;
            }
        };
        flags.set(flag, set);
    }
    (flags, data.join(","))
}

fn bind(source: &Path, target: &Path, flags: MsFlags) -> anyhow::Result<()> {
    let none: Option<&str> = None;
    let how = MsFlags::MS_BIND | (flags & MsFlags::MS_REC);
    mount(Some(source), target, none, how, none).with_context(|| format!("binding {}", source.display()))?;
    Ok(())
}

/// Unmounting what hangs below must not unmount it elsewhere.
fn make_private(target: &Path) -> anyhow::Result<()> {
    let none: Option<&str> = None;
    mount(none, target, none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("making a mount private")
}

fn restrict(target: &Path, flags: MsFlags) -> anyhow::Result<()> {
    let none: Option<&str> = None;
    let how = (flags - MsFlags::MS_REC) | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
    mount(none, target, none, how, none).context("restricting a mount")
}

/// Mounts a snapshot at `target`.
pub fn root(mounts: &[Mount], target: &Path) -> anyhow::Result<()> {
    for one in mounts {
        let (flags, data) = parse(&one.options);
        let what = || format!("mounting the root file system ({} {})", one.kind, one.source);
        if flags.contains(MsFlags::MS_BIND) || one.kind == "bind" {
            bind(one.source.as_ref(), target, flags).with_context(what)?;
            if flags.contains(MsFlags::MS_RDONLY) {
                restrict(target, flags).with_context(what)?;
            }
        } else if data.len() < PAGE {
            let data = Some(data.as_str());
            mount(Some(one.source.as_str()), target, Some(one.kind.as_str()), flags, data).with_context(what)?;
        } else {
            overlay(&one.options, flags, target).with_context(what)?;
        }
        make_private(target)?;
    }
    Ok(())
}

/// An overlay of more layers than their paths fit in a page: named relative to what they share.
fn overlay(options: &[String], flags: MsFlags, target: &Path) -> anyhow::Result<()> {
    let lower = options.iter().find_map(|option| option.strip_prefix("lowerdir=")).context("no lowerdir")?;
    let layers: Vec<&str> = lower.split(':').collect();
    let first = layers.first().copied().unwrap_or_default();
    let shared = Path::new(first)
        .ancestors()
        .skip(1)
        .find(|dir| layers.iter().all(|layer| Path::new(layer).starts_with(dir)))
        .context("layers share no directory")?
        .to_owned();
    let short: Vec<String> = layers
        .iter()
        .filter_map(|layer| Some(Path::new(layer).strip_prefix(&shared).ok()?.display().to_string()))
        .collect();
    let short = format!("lowerdir={}", short.join(":"));
    let options: Vec<String> = options
        .iter()
        .map(|option| if option.starts_with("lowerdir=") { short.clone() } else { option.clone() })
        .collect();
    let (_, data) = parse(&options);
    anyhow::ensure!(data.len() < PAGE, "the image has too many layers");
    let target = target.to_owned();
    // On a thread of its own: the working directory is then its own too.
    let mounted = std::thread::spawn(move || -> anyhow::Result<()> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
        std::env::set_current_dir(&shared)?;
        Ok(mount(Some("overlay"), &target, Some("overlay"), flags, Some(data.as_str()))?)
    });
    mounted.join().map_err(|_| anyhow::anyhow!("the mounting thread ended"))?
}

/// Mounts what `config.json` asks for into a root, and makes that read-only if it is to be.
pub fn inside(root: &Path, mounts: &[oci::Mount], readonly: bool) -> anyhow::Result<()> {
    let dir = open_root(root)?;
    for one in mounts {
        one_inside(dir.as_fd(), one).with_context(|| format!("mounts: {}", one.destination.display()))?;
    }
    if readonly {
        restrict(root, MsFlags::MS_RDONLY)?;
    }
    Ok(())
}

fn one_inside(root: BorrowedFd<'_>, one: &oci::Mount) -> anyhow::Result<()> {
    let (flags, data) = parse(&one.options);
    let binds = flags.contains(MsFlags::MS_BIND) || one.kind == "bind";
    let kernel = ["/dev", "/proc", "/sys"].iter().any(|dir| one.destination.starts_with(dir));
    // Guests have no kernel to look into. What Kubernetes binds there is a file like others.
    if !binds && (kernel || one.kind != "tmpfs") {
        return Ok(());
    }
    let source = PathBuf::from(&one.source);
    let is_dir = !binds || std::fs::metadata(&source).with_context(|| one.source.clone())?.is_dir();
    let target = |is_dir| -> anyhow::Result<(OwnedFd, PathBuf)> {
        let fd = place(root, &one.destination, is_dir)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        Ok((fd, path))
    };
    let (_held, at) = target(is_dir)?;
    if !binds {
        mount(Some("tmpfs"), &at, Some("tmpfs"), flags, Some(data.as_str()))?;
        return Ok(());
    }
    bind(&source, &at, flags)?;
    // What was bound now lies over the place.
    let (_held, at) = target(is_dir)?;
    make_private(&at)?;
    if !(flags - MsFlags::MS_BIND - MsFlags::MS_REC).is_empty() {
        restrict(&at, flags)?;
    }
    Ok(())
}

/// Opens a path as if `root` were `/`.
pub fn open(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Opens the root itself, to hold while paths in it are looked up.
pub fn open_root(root: &Path) -> anyhow::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(root, flags, Mode::empty()).with_context(|| root.display().to_string())
}

/// Gives the place for a mount, making what is missing on the way.
fn place(root: BorrowedFd<'_>, path: &Path, is_dir: bool) -> anyhow::Result<OwnedFd> {
    let names: Vec<&OsStr> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(Ok(name)),
            Component::RootDir | Component::CurDir => None,
            _ => Some(Err(anyhow::anyhow!("{}: a path without '..' is needed", path.display()))),
        })
        .collect::<anyhow::Result<_>>()?;
    let mut here = PathBuf::from("/");
    let mut last = open(root, &here, OFlags::PATH)?;
    for (index, name) in names.iter().enumerate() {
        here.push(name);
        last = match open(root, &here, OFlags::PATH) {
            Ok(found) => found,
            Err(Errno::NOENT) => {
                let whole = index + 1 == names.len();
                if whole && !is_dir {
                    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                    rustix::fs::openat(&last, *name, flags, Mode::from_raw_mode(0o644)).map(drop)
                } else {
                    rustix::fs::mkdirat(&last, *name, Mode::from_raw_mode(0o755))
                }
                .with_context(|| here.display().to_string())?;
                open(root, &here, OFlags::PATH).with_context(|| here.display().to_string())?
            }
            Err(error) => return Err(error).with_context(|| here.display().to_string()),
        };
    }
    Ok(last)
}

/// Binds a file or FIFO of somebody else's at a path of ours.
pub fn bind_file(source: &Path, target: &Path) -> anyhow::Result<()> {
    std::fs::File::create(target).with_context(|| target.display().to_string())?;
    bind(source, target, MsFlags::empty())?;
    make_private(target)
}

/// Unmounts everything at and below a directory, the newest first, and then removes it. Nothing is
/// removed while something is mounted there: it would be somebody's files.
pub fn remove_tree(dir: &Path) -> anyhow::Result<()> {
    for _ in 0..8 {
        let mounted = below(dir)?;
        if mounted.is_empty() {
            return match std::fs::remove_dir_all(dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(error).with_context(|| dir.display().to_string())
                }
                _ => Ok(()),
            };
        }
        for point in mounted.iter().rev() {
            // One that went with its parent is no failure; what is left is seen above.
            let _ = umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        }
    }
    anyhow::bail!("{}: something stays mounted: {:?}", dir.display(), below(dir)?)
}

fn below(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let dir = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let table = std::fs::read("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    let points = table.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    Ok(points.map(unescape).filter(|point| point.starts_with(&dir)).collect())
}

/// Spaces and the like are written as `\040`.
fn unescape(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsStr::from_bytes(&bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn options_are_flags_or_data() {
        let options = ["rbind", "rprivate", "ro", "nosuid", "size=64k"].map(String::from);
        let (flags, data) = parse(&options);
        assert_eq!(flags, MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID);
        assert_eq!(data, "size=64k");
        assert_eq!(unescape(b"/a\\040b\\134"), PathBuf::from("/a b\\"));
    }

    #[test]
    fn places_are_made_in_the_root_whatever_its_links_say() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("out")).unwrap();
        std::os::unix::fs::symlink("/inner", dir.path().join("in")).unwrap();
        std::fs::create_dir(dir.path().join("inner")).unwrap();
        let root = open_root(dir.path()).unwrap();
        place(root.as_fd(), "/in/a/b".as_ref(), true).unwrap();
        place(root.as_fd(), "/etc/hosts".as_ref(), false).unwrap();
        assert!(dir.path().join("inner/a/b").is_dir() && dir.path().join("etc/hosts").is_file());
        assert!(place(root.as_fd(), "/out/x".as_ref(), true).is_err());
        assert!(place(root.as_fd(), "/../x".as_ref(), true).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
