//! How much of a disk a directory takes, whoever writes in it meanwhile.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// Longer paths are begun anew from a directory on the way: a system call takes 4096 bytes.
const PATH: usize = 2048;

/// Bytes that a directory or file takes, as `du -x` counts them: blocks rather than lengths, each file
/// once, no links followed, nothing of what is mounted in it. Ends early above `enough`. What is not
/// there takes nothing.
pub fn of(path: &Path, enough: u64) -> io::Result<u64> {
    let none = |error: Errno| if error == Errno::NOENT { Ok(0) } else { Err(error.into()) };
    let top = match rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(top) => top,
        Err(error) => return none(error),
    };
    let mut bytes = taken(&top);
    if FileType::from_raw_mode(top.st_mode) != FileType::Directory {
        return Ok(bytes);
    }
    let root = match rustix::fs::open(path, DIR, Mode::empty()) {
        Ok(root) => Rc::new(root),
        Err(error) => return none(error),
    };
    let mut seen = HashSet::new();
    let mut open: Vec<(Rc<OwnedFd>, PathBuf)> = vec![(root, PathBuf::new())];
    while let Some((from, below)) = open.pop() {
        let dir = match enter(&from, &below) {
            Ok(dir) => Rc::new(dir),
            // Removed meanwhile, or become a link or a mount.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => continue,
            Err(error) => return Err(error.into()),
        };
        let (from, below) = if below.as_os_str().len() > PATH { (dir.clone(), PathBuf::new()) } else { (from, below) };
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if stat.st_dev == top.st_dev => stat,
                Ok(_) | Err(Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if is_dir || stat.st_nlink == 1 || seen.insert(stat.st_ino) {
                bytes += taken(&stat);
            }
            if bytes > enough {
                return Ok(bytes);
            }
            if is_dir {
                let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(name.to_bytes());
                open.push((from.clone(), below.join(name)));
            }
        }
    }
    Ok(bytes)
}

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn enter(from: &OwnedFd, below: &Path) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let path = if below.as_os_str().is_empty() { Path::new(".") } else { below };
    rustix::fs::openat2(from, path, DIR, Mode::empty(), resolve)
}

fn taken(stat: &Stat) -> u64 {
    // Blocks are of 512 bytes, whatever the file system's are.
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    const ALL: u64 = u64::MAX;

    #[test]
    fn files_count_once_and_links_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let (mine, other) = (dir.path().join("mine"), dir.path().join("other"));
        fs::create_dir_all(mine.join("sub")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("large"), vec![1; 8 << 20]).unwrap();
        let empty = of(&mine, ALL).unwrap();
        fs::write(mine.join("sub/file"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(mine.join("sub/file"), mine.join("again")).unwrap();
        symlink(other.join("large"), mine.join("link")).unwrap();
        symlink(&other, mine.join("dir")).unwrap();
        // A file that has a length and no blocks.
        fs::File::create(mine.join("sparse")).unwrap().set_len(1 << 30).unwrap();
        let used = of(&mine, ALL).unwrap() - empty;
        assert!(((1 << 20)..(1 << 20) + (64 << 10)).contains(&used), "{used}");
        assert!(of(&mine, 1000).unwrap() > 1000);
        assert_eq!(of(&dir.path().join("none"), ALL).unwrap(), 0);
        let file = other.join("large");
        assert_eq!(of(&file, ALL).unwrap(), fs::metadata(&file).unwrap().blocks() * 512);
    }

    #[test]
    fn nothing_hides_in_the_depth() {
        let dir = tempfile::tempdir().unwrap();
        // Deeper than a path can say: made step by step.
        let name = "d".repeat(200);
        let mut at = rustix::fs::open(dir.path(), DIR, Mode::empty()).unwrap();
        for _ in 0..60 {
            rustix::fs::mkdirat(&at, name.as_str(), Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, name.as_str(), DIR, Mode::empty()).unwrap();
        }
        let flags = OFlags::WRONLY | OFlags::CREATE;
        let file = rustix::fs::openat(&at, "file", flags, Mode::RWXU).unwrap();
        std::io::Write::write_all(&mut fs::File::from(file), &vec![1; 3 << 20]).unwrap();
        assert!(of(dir.path(), ALL).unwrap() > 3 << 20);
    }
}
