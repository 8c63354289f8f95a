//! Files that are locked, unwritable, of another version or damaged: each is named, with what is
//! wrong, and stays as it was.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use redb::{Database, TableDefinition};
use sampan_store::{Error, Options, Range, RedbStore, Store};
use tempfile::TempDir;

fn open(path: &Path) -> Result<RedbStore, Error> {
    RedbStore::open(path, Options::default())
}

/// A directory with a store of 200 keys in it, closed.
async fn filled() -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("store.redb");
    let store = open(&path).unwrap();
    let writes = (0..200u8).map(|index| {
        let (store, key) = (&store, format!("/pods/{index:03}"));
        async move { store.create(&key, Bytes::from(vec![index; 2000])).await.unwrap() }
    });
    futures::future::join_all(writes).await;
    (dir, path)
}

/// Opening `path` must fail, say `what`, name the file, and leave every byte of it.
fn refused(path: &Path, what: impl Fn(&Error) -> bool) -> String {
    let before = fs::read(path).unwrap();
    let error = open(path).unwrap_err();
    assert!(what(&error), "{error:?}");
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    assert!(fs::read(path).unwrap() == before, "the file was changed");
    error.to_string()
}

fn corrupt(error: &Error) -> bool {
    matches!(error, Error::Corrupt { .. })
}

#[tokio::test]
async fn what_was_written_is_there_after_opening_again() {
    let (_dir, path) = filled().await;
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing left beside it");
    let store = open(&path).unwrap();
    assert_eq!(store.revision().await, Ok(201));
    let page = store.list(Range::prefix("/pods/"), None, 0).await.unwrap();
    assert_eq!(page.entries.len(), 200);
    for (index, entry) in page.entries.iter().enumerate() {
        assert!(entry.value.len() == 2000 && entry.value.iter().all(|b| *b == index as u8));
    }
    // Revisions go on where they were, and the history is still there.
    assert_eq!(store.delete("/pods/007", page.entries[7].revision).await, Ok(202));
    let past = store.list(Range::prefix("/pods/"), Some(101), 0).await.unwrap();
    assert_eq!(past.entries.len(), 100);
}

#[tokio::test]
async fn a_file_in_use_is_locked() {
    let (_dir, path) = filled().await;
    let store = open(&path).unwrap();
    let error = open(&path).unwrap_err();
    assert_eq!(error, Error::Locked { path: path.display().to_string() });
    assert!(error.to_string().contains("in use by another process"), "{error}");
    store.create("/more", Bytes::new()).await.unwrap();
    drop(store);
    assert_eq!(open(&path).unwrap().revision().await, Ok(202));
}

#[tokio::test]
async fn places_that_cannot_be_written_say_so() {
    let dir = TempDir::new().unwrap();
    let missing = dir.path().join("none/store.redb");
    let error = open(&missing).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
    assert!(error.to_string().contains("No such file or directory"), "{error}");
    assert!(matches!(open(dir.path()), Err(Error::Io { .. })), "a directory");
    // Where even root may not write.
    let error = open(Path::new("/proc/self/store.redb")).unwrap_err();
    assert!(matches!(error, Error::Io { .. } | Error::ReadOnly { .. }), "{error:?}");

    let (_dir, path) = filled().await;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    match open(&path) {
        Err(error) => {
            assert!(matches!(error, Error::ReadOnly { .. }), "{error:?}");
            assert!(error.to_string().contains("this user may write"), "{error}");
        }
        // Root may.
        Ok(store) => assert_eq!(store.revision().await, Ok(201)),
    }
}

#[tokio::test]
async fn another_format_version_is_refused() {
    const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
    let (_dir, path) = filled().await;
    let db = Database::open(&path).unwrap();
    let txn = db.begin_write().unwrap();
    txn.open_table(META).unwrap().insert("format", 7).unwrap();
    txn.commit().unwrap();
    drop(db);
    let text = refused(&path, |error| matches!(error, Error::Version { supported: 1, .. }));
    assert!(text.contains("written in format 7") && text.contains("reads format 1"), "{text}");
}

#[tokio::test]
async fn a_file_of_another_program_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("store.redb");
    fs::write(&path, "apiVersion: v1\n".repeat(1000)).unwrap();
    refused(&path, corrupt);
    fs::write(&path, "short").unwrap();
    refused(&path, corrupt);

    const OTHER: TableDefinition<&str, &str> = TableDefinition::new("settings");
    let path = dir.path().join("other.redb");
    let db = Database::create(&path).unwrap();
    let txn = db.begin_write().unwrap();
    txn.open_table(OTHER).unwrap().insert("colour", "blue").unwrap();
    txn.commit().unwrap();
    drop(db);
    assert!(refused(&path, corrupt).contains("another program"));
}

#[tokio::test]
async fn a_damaged_file_is_refused_whole() {
    let (dir, path) = filled().await;
    let good = fs::read(&path).unwrap();
    let damaged = dir.path().join("damaged.redb");
    // The end is missing.
    for keep in [good.len() / 2, 5000, 100] {
        fs::write(&damaged, &good[..keep]).unwrap();
        refused(&damaged, corrupt);
    }
    // Bytes changed inside a value, and the first of the file.
    let value = good.windows(500).position(|w| w.iter().all(|b| *b == 77)).unwrap();
    for at in [value + 100, 0] {
        let mut bad = good.clone();
        bad[at..at + 16].iter_mut().for_each(|byte| *byte ^= 0x5a);
        fs::write(&damaged, &bad).unwrap();
        let text = refused(&damaged, corrupt);
        assert!(text.contains("nothing was changed"), "{text}");
    }
    assert_eq!(open(&path).unwrap().revision().await, Ok(201));
}

/// Whatever byte is flipped: the store opens with all it had, or is refused. It never opens with
/// less, and never panics.
#[tokio::test]
async fn no_flipped_byte_goes_unnoticed() {
    let (dir, path) = filled().await;
    let good = fs::read(&path).unwrap();
    let whole = open(&path).unwrap().list(Range::default(), None, 0).await.unwrap();
    let damaged = dir.path().join("damaged.redb");
    let mut refusals = 0;
    let pages = good.len() / 4096;
    // The whole header, then somewhere in every other page that holds anything.
    let header = (0..320).step_by(4);
    let rest = (1..pages).map(|page| page * 4096 + (page * 37) % 900);
    for at in header.chain(rest.filter(|at| good[*at] != 0).take(60)) {
        let mut bad = good.clone();
        bad[at] ^= 0x41;
        fs::write(&damaged, &bad).unwrap();
        match open(&damaged) {
            Err(Error::Corrupt { .. } | Error::Version { .. }) => refusals += 1,
            Err(error) => panic!("byte {at}: {error:?}"),
            Ok(store) => {
                let page = store.list(Range::default(), None, 0).await.unwrap();
                assert_eq!(page, whole, "byte {at}");
            }
        }
    }
    assert!(refusals > 20, "{refusals}");
}
