//! Files of a volume, changed all at once. A new version is written beside the old one and a
//! single rename makes it the one that is seen: `key` points to `..data/key` and `..data` to the
//! version. All links are relative and stay inside the volume, so they resolve in a sandbox whose
//! root is the volume.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::{Component, Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub content: Vec<u8>,
    pub mode: u32,
    /// Whose it is, if not whose its volume is.
    pub user: Option<u32>,
}

/// Path within the volume to file.
pub type Payload = BTreeMap<String, File>;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Makes `dir` show exactly `payload`. Tells whether anything changed. Files go to their `owner`,
/// so that modes like 0400 mean what they say; directories stay ours: nobody else may change what
/// a volume shows.
pub fn write(dir: &Path, payload: &Payload, owner: Option<(u32, u32)>) -> io::Result<bool> {
    for path in payload.keys() {
        check(path)?;
    }
    fs::create_dir_all(dir)?;
    let current = fs::read_link(dir.join(DATA)).ok();
    if current.is_some() && current_payload(&dir.join(DATA))? == shown(payload) {
        return Ok(false);
    }
    let version = new_version(dir)?;
    for (path, file) in payload {
        let target = dir.join(&version).join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, &file.content)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(file.mode & 0o777))?;
        if owner.is_some() || file.user.is_some() {
            lchown(&target, file.user.or(owner.map(|(user, _)| user)), owner.map(|(_, group)| group))?;
        }
    }
    let new = dir.join(DATA_NEW);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => symlink(&version, &new)?,
    }
    fs::rename(&new, dir.join(DATA))?;
    show(dir, payload)?;
    if let Some(old) = current {
        fs::remove_dir_all(dir.join(old))?;
    }
    Ok(true)
}

fn check(path: &str) -> io::Result<()> {
    let plain = !path.is_empty()
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
        && !path.starts_with("..");
    if plain {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("path \"{path}\" must be relative and not contain '..'"),
        ))
    }
}

fn new_version(dir: &Path) -> io::Result<PathBuf> {
    let now = jiff::Timestamp::now();
    let stamp = jiff::fmt::strtime::format("%Y_%m_%d_%H_%M_%S.%f", now).unwrap_or_else(|_| now.to_string());
    let mut number = 0_u32;
    loop {
        let name = PathBuf::from(format!("..{stamp}.{number}"));
        match fs::create_dir(dir.join(&name)) {
            Ok(()) => {
                fs::set_permissions(dir.join(&name), fs::Permissions::from_mode(0o755))?;
                return Ok(name);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Links for the first part of every path; others that an earlier payload had go.
fn show(dir: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: std::collections::BTreeSet<&str> =
        payload.keys().map(|path| path.split('/').next().unwrap_or(path)).collect();
    for name in &wanted {
        match symlink(Path::new(DATA).join(name), dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(name.as_ref()) && entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// What a reader sees of a payload: content and mode by path. Owners stay what they were.
type Shown = BTreeMap<String, (Vec<u8>, u32)>;

fn shown(payload: &Payload) -> Shown {
    payload.iter().map(|(path, file)| (path.clone(), (file.content.clone(), file.mode & 0o777))).collect()
}

/// What a version holds.
fn current_payload(dir: &Path) -> io::Result<Shown> {
    fn walk(dir: &Path, prefix: &str, out: &mut Shown) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let meta = entry.metadata()?;
            if meta.is_dir() {
                walk(&entry.path(), &format!("{path}/"), out)?;
            } else {
                let content = fs::read(entry.path())?;
                out.insert(path, (content, meta.permissions().mode() & 0o777));
            }
        }
        Ok(())
    }
    let mut out = Shown::new();
    match walk(dir, "", &mut out) {
        // A link whose version is gone: write it anew.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Shown::new()),
        Err(error) => Err(error),
        Ok(()) => Ok(out),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn file(content: &str) -> File {
        File { content: content.as_bytes().to_vec(), mode: 0o644, user: None }
    }

    fn payload(files: &[(&str, &str)]) -> Payload {
        files.iter().map(|(path, content)| ((*path).to_owned(), file(content))).collect()
    }

    /// What a reader of the volume sees.
    fn seen(dir: &Path) -> BTreeMap<String, String> {
        fn walk(dir: &Path, prefix: &str, out: &mut BTreeMap<String, String>) {
            for entry in fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name().to_string_lossy().into_owned();
                if prefix.is_empty() && name.starts_with("..") {
                    continue;
                }
                let path = format!("{prefix}{name}");
                if fs::metadata(entry.path()).unwrap().is_dir() {
                    walk(&entry.path(), &format!("{path}/"), out);
                } else {
                    out.insert(path, fs::read_to_string(entry.path()).unwrap());
                }
            }
        }
        let mut out = BTreeMap::new();
        walk(dir, "", &mut out);
        out
    }

    fn texts(payload: &Payload) -> BTreeMap<String, String> {
        payload.iter().map(|(path, file)| (path.clone(), String::from_utf8(file.content.clone()).unwrap())).collect()
    }

    #[test]
    fn changes_and_removals() {
        let dir = tempfile::tempdir().unwrap();
        let one = payload(&[("a", "1"), ("deep/b", "2"), ("gone", "x")]);
        assert!(write(dir.path(), &one, None).unwrap());
        assert_eq!(seen(dir.path()), texts(&one));
        assert!(!write(dir.path(), &one, None).unwrap());
        let two = payload(&[("a", "changed"), ("deep/c", "3")]);
        assert!(write(dir.path(), &two, None).unwrap());
        assert_eq!(seen(dir.path()), texts(&two));
        let versions =
            fs::read_dir(dir.path()).unwrap().filter(|it| it.as_ref().unwrap().file_type().unwrap().is_dir());
        assert_eq!(versions.count(), 1);
    }

    #[test]
    fn modes() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = payload(&[("a", "1")]);
        files.get_mut("a").unwrap().mode = 0o400;
        write(dir.path(), &files, None).unwrap();
        assert_eq!(fs::metadata(dir.path().join("a")).unwrap().permissions().mode() & 0o777, 0o400);
        files.get_mut("a").unwrap().mode = 0o440;
        assert!(write(dir.path(), &files, None).unwrap());
    }

    #[test]
    fn links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &payload(&[("a", "1"), ("b/c", "2")]), None).unwrap();
        for entry in fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_symlink() {
                let target = fs::read_link(entry.path()).unwrap();
                assert!(target.components().all(|part| matches!(part, Component::Normal(_))), "{target:?}");
            }
        }
    }

    #[test]
    fn ways_out_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../a", "/etc/passwd", "a/../../b", "", "..data"] {
            assert!(write(dir.path(), &payload(&[(path, "x")]), None).is_err(), "{path}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Whatever was there before, the volume shows exactly what was last written.
        #[test]
        fn shows_what_was_written(versions in proptest::collection::vec(
            proptest::collection::btree_map("[a-c]|[de]/[a-c]", "[a-z]{0,4}", 0..5), 1..5)
        ) {
            let dir = tempfile::tempdir().unwrap();
            for version in versions {
                let files: Payload = version.iter().map(|(path, content)| (path.clone(), file(content))).collect();
                write(dir.path(), &files, None).unwrap();
                prop_assert_eq!(seen(dir.path()), version);
            }
        }
    }
}
