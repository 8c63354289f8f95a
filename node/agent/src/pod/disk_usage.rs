//! How much of a disk a directory takes, whoever writes in it meanwhile.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// Longer paths are gone in several steps: a system call takes 4096 bytes.
const PATH: usize = 2048;

/// What one walk may take, as who fills a directory decides how long and how large it would become.
#[derive(Clone, Copy, Debug)]
struct Budget {
    time: Duration,
    entries: usize,
    /// Bytes of the names of directories, which are remembered.
    names: usize,
}

const BUDGET: Budget = Budget { time: Duration::from_secs(10), entries: 2 << 20, names: 16 << 20 };

/// Bytes that a directory or file takes, as `du -x` counts them: blocks rather than lengths, each file
/// once, no links followed, nothing of what is mounted in it. Ends early above `enough`. What is not
/// there takes nothing; what is too much to be looked at takes at least what was seen of it.
pub fn of(path: &Path, enough: u64) -> io::Result<u64> {
    walk(path, enough, BUDGET)
}

fn walk(path: &Path, enough: u64, budget: Budget) -> io::Result<u64> {
    let until = Instant::now() + budget.time;
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
        Ok(root) => root,
        Err(error) => return none(error),
    };
    let mut seen = HashSet::new();
    let mut dirs = Dirs::default();
    let (mut entries, mut names) = (0, 0);
    let mut next = 0_usize;
    let mut whole = true;
    // The shallow ones first. The first is the root itself, which has no number.
    'dirs: loop {
        let number = next.checked_sub(1);
        let dir = match dirs.enter(&root, number) {
            Ok(dir) => Some(dir),
            // Removed meanwhile, or become a link or a mount, or not for us.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::ACCESS) => None,
            Err(error) => return Err(error.into()),
        };
        for entry in dir.as_ref().map(Dir::read_from).transpose()?.into_iter().flatten() {
            entries += 1;
            if entries > budget.entries || Instant::now() > until {
                whole = false;
                break 'dirs;
            }
            let Some(dir) = &dir else { break };
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
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
                names += name.count_bytes() + Dirs::EACH;
                if names > budget.names {
                    whole = false;
                } else {
                    dirs.0.push((number, name.to_owned()));
                }
            }
        }
        if next == dirs.0.len() {
            break;
        }
        next += 1;
    }
    if !whole {
        tracing::debug!(path = %path.display(), entries, bytes, "too much to be measured as a whole");
    }
    Ok(bytes)
}

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Directories that were found: the parent's number, which is none for the root, and the name. Neither
/// whole paths nor open files are held: how many there are is not ours to choose.
#[derive(Default)]
struct Dirs(Vec<(Option<usize>, CString)>);

impl Dirs {
    /// Bytes that one takes beside its name.
    const EACH: usize = 48;

    fn enter(&self, root: &OwnedFd, number: Option<usize>) -> Result<OwnedFd, Errno> {
        let mut way: Vec<&CStr> = Vec::new();
        let mut at = number;
        while let Some((parent, name)) = at.and_then(|number| self.0.get(number)) {
            way.push(name);
            at = *parent;
        }
        let mut path: Vec<u8> = b".".to_vec();
        let mut from: Option<OwnedFd> = None;
        for name in way.into_iter().rev() {
            if path.len() > PATH {
                from = Some(open_below(from.as_ref().unwrap_or(root), &path)?);
                path.truncate(1);
            }
            path.push(b'/');
            path.extend_from_slice(name.to_bytes());
        }
        open_below(from.as_ref().unwrap_or(root), &path)
    }
}

fn open_below(from: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
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

    #[test]
    fn a_walk_ends_however_much_there_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), vec![1; 1 << 20]).unwrap();
        let top = of(dir.path(), ALL).unwrap();
        for number in 0..100 {
            let sub = dir.path().join(format!("{number:0>200}/sub"));
            fs::create_dir_all(&sub).unwrap();
            fs::write(sub.join("file"), vec![1; 64 << 10]).unwrap();
        }
        let (all, files) = (of(dir.path(), ALL).unwrap(), (100 * 64) << 10);
        assert!(all >= top + files);
        // What is seen of it counts, and no more: all of it is below the first directories.
        let seen = |budget| walk(dir.path(), ALL, budget).unwrap();
        assert!((top..top + files).contains(&seen(Budget { entries: 110, ..BUDGET })));
        let few = seen(Budget { names: 10 * (200 + Dirs::EACH), ..BUDGET });
        assert!((top..all).contains(&few), "{few} of {all}");
        let none = seen(Budget { time: Duration::ZERO, ..BUDGET });
        assert!(none > 0 && none < top);
    }
}
