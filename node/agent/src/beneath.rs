//! Files in directories that a guest, or what broke out of one, may write: whatever link or pipe it
//! laid there, nothing outside is opened and nobody waits.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Which links are followed; none ever leads out of the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// As in volumes, whose files are links to a version.
    Within,
    None,
}

/// Opens what is at `path` below `dir` for reading.
pub fn open(dir: &Path, path: &Path, links: Links) -> io::Result<File> {
    let dir = rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::PATH, Mode::empty())?;
    let mut flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mut resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    if links == Links::None {
        flags |= OFlags::NOFOLLOW;
        resolve |= ResolveFlags::NO_SYMLINKS;
    }
    Ok(rustix::fs::openat2(&dir, path, flags, Mode::empty(), resolve)?.into())
}

/// Opens a regular file.
pub fn file(dir: &Path, path: &Path, links: Links) -> io::Result<File> {
    let file = open(dir, path, links)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "is no regular file")),
    }
}

/// Makes `path` below `dir`; what it makes is for everyone, as an emptyDir is. Passes no link.
pub fn make_dirs(dir: &Path, path: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |at: &OwnedFd, name: &Path| rustix::fs::openat(at, name, flags, Mode::empty());
    let mut at = rustix::fs::openat(CWD, dir, flags, Mode::empty())?;
    for part in path.components() {
        let part: &Path = part.as_ref();
        at = match rustix::fs::mkdirat(&at, part, Mode::empty()) {
            Ok(()) => {
                let made = open(&at, part)?;
                rustix::fs::fchmod(&made, Mode::RWXU | Mode::RWXG | Mode::RWXO)?;
                made
            }
            Err(Errno::EXIST) => open(&at, part)?,
            Err(error) => return Err(error.into()),
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_and_pipes_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let (mine, other) = (dir.path().join("mine"), dir.path().join("other"));
        fs::create_dir_all(mine.join("sub")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("secret"), "x").unwrap();
        fs::write(mine.join("file"), "y").unwrap();
        symlink("file", mine.join("within")).unwrap();
        symlink("../other/secret", mine.join("out")).unwrap();
        symlink(other.join("secret"), mine.join("absolute")).unwrap();
        symlink("../other", mine.join("dir")).unwrap();
        rustix::fs::mknodat(CWD, mine.join("pipe"), rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();

        let can = |path: &str, links| file(&mine, path.as_ref(), links).is_ok();
        assert!(can("file", Links::None) && can("within", Links::Within));
        assert!(!can("within", Links::None));
        for path in ["out", "absolute", "dir/secret", "../other/secret", "pipe", "sub"] {
            assert!(!can(path, Links::Within) && !can(path, Links::None), "{path}");
        }

        make_dirs(&mine, "sub/a/b".as_ref()).unwrap();
        assert!(mine.join("sub/a/b").is_dir());
        for path in ["dir/a", "within/a", "pipe/a"] {
            assert!(make_dirs(&mine, path.as_ref()).is_err(), "{path}");
        }
        assert_eq!(fs::read_dir(&other).unwrap().count(), 1);
    }
}
