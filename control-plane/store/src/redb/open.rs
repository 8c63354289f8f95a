//! Opening a file: lock it, look it over without changing a byte of it, then open it for writing.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use redb::backends::FileBackend;
use redb::{BackendError, Builder, Database, ReadableDatabase, StorageBackend, TableError};
use tracing::info;

use super::errors::{Fault, Faulty, io_error, open_error};
use super::patience::Patient;
use super::tables::{FORMAT, INDEX, LOG, META, META_FORMAT, State};
use crate::{Error, Result};

/// Opens `path`, or makes it. A file that is damaged or of another format is left as it is.
pub(super) fn open_file(path: &Path, cache_bytes: usize) -> Result<(Database, State)> {
    let name = path.display().to_string();
    let failed = |error: io::Error| io_error(&name, &error);
    let open = || OpenOptions::new().read(true).write(true).open(path);
    let file = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create(path, &name)?;
            open()
        }
        opened => opened,
    };
    let file = file.map_err(failed)?;
    if file.metadata().map_err(failed)?.len() > 0 {
        inspect(&file, &name)?;
    }
    let backend = FileBackend::new(file).map_err(|e| open_error(&name, e))?;
    open_backend(Patient::new(backend), cache_bytes, &name)
}

/// Makes an empty store beside `path` and gives it its name once it is whole, so that a power loss
/// leaves either no store or one that opens.
fn create(path: &Path, name: &str) -> Result<()> {
    let failed = |error: io::Error| io_error(name, &error);
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}.new", std::process::id()));
    let new = Path::new(&new);
    let made = (|| {
        // The file holds Secrets: nobody else may read it.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(new)
            .map_err(failed)?;
        let backend = FileBackend::new(file).map_err(|e| open_error(name, e))?;
        drop(open_backend(backend, 1 << 20, name)?);
        File::open(new).and_then(|file| file.sync_all()).map_err(failed)?;
        match std::fs::hard_link(new, path) {
            Ok(()) => Ok(()),
            // Another process was faster; opening will say that it has the file.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            // A file system without links.
            Err(_) => std::fs::rename(new, path).map_err(failed),
        }
    })();
    let _ = std::fs::remove_file(new);
    made?;
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
}

pub(super) fn open_backend(backend: impl StorageBackend, cache_bytes: usize, name: &str) -> Result<(Database, State)> {
    guarded(name, || {
        let mut builder = Builder::new();
        builder.set_cache_size(cache_bytes);
        let db = builder.create_with_backend(backend).map_err(|e| open_error(name, e))?;
        let state = match check(&db, name)? {
            Some(state) => state,
            None => initialise(&db).map_err(|fault| fault.at(name))?,
        };
        Ok((db, state))
    })
}

/// Reads an existing file whole, through an overlay that keeps every write to itself.
fn inspect(file: &File, name: &str) -> Result<()> {
    let started = std::time::Instant::now();
    let file = file.try_clone().map_err(|e| io_error(name, &e))?;
    let file = FileBackend::new(file).map_err(|e| open_error(name, e))?;
    let overlay = Overlay::new(file).map_err(|e| io_error(name, &e))?;
    let repaired = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&repaired);
    guarded(name, move || {
        let mut builder = Builder::new();
        builder.set_cache_size(8 << 20);
        // Called where the file was not closed in order; every checksum is verified then.
        builder.set_repair_callback(move |_| seen.store(true, Ordering::Relaxed));
        let mut db = builder.create_with_backend(overlay).map_err(|e| open_error(name, e))?;
        if !repaired.load(Ordering::Relaxed) {
            let sound = db.check_integrity().map_err(|e| open_error(name, e))?;
            if !sound {
                let reason = "the checksums of its pages do not match".to_owned();
                return Err(Error::Corrupt { path: name.to_owned(), reason });
            }
        } else {
            info!(path = name, elapsed = ?started.elapsed(), "store was not closed in order; recovering");
        }
        check(&db, name)?;
        Ok(())
    })
}

/// The file's state, if its format is ours; none for a file nothing was written to.
fn check(db: &Database, name: &str) -> Result<Option<State>> {
    let at = |fault: Fault| fault.at(name);
    let txn = db.begin_read().map_err(|e| at(e.into()))?;
    let meta = match txn.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => {
            let mut tables = txn.list_tables().map_err(|e| at(e.into()))?;
            return match tables.next() {
                None => Ok(None),
                Some(_) => Err(not_ours(name, "it is a redb file of another program")),
            };
        }
        Err(TableError::TableTypeMismatch { .. }) => {
            return Err(not_ours(name, "it is a redb file of another program"));
        }
        Err(error) => return Err(at(error.into())),
    };
    let format = meta.get(META_FORMAT).map_err(|e| at(e.into()))?.map(|v| v.value());
    match format {
        Some(FORMAT) => {}
        Some(found) => {
            let (path, found) = (name.to_owned(), found.to_string());
            return Err(Error::Version { path, found, supported: FORMAT });
        }
        None => return Err(not_ours(name, "it names no format version")),
    }
    let state = State::read(&meta).map_err(|e| at(e.into()))?;
    let Some(state) = state else {
        return Err(not_ours(name, "its revision is missing"));
    };
    let last = |fault: Faulty<Option<u64>>| fault.map_err(|fault| fault.at(name));
    let newest = last((|| {
        use redb::ReadableTable;
        txn.open_table(INDEX)?;
        Ok(txn.open_table(LOG)?.last()?.map(|(revision, _)| revision.value()))
    })())?;
    if newest.is_some_and(|newest| newest > state.revision) || state.compacted > state.revision {
        return Err(not_ours(name, "its log and its revision do not agree"));
    }
    Ok(Some(state))
}

fn not_ours(name: &str, reason: &str) -> Error {
    Error::Corrupt { path: name.to_owned(), reason: reason.to_owned() }
}

fn initialise(db: &Database) -> Faulty<State> {
    let txn = db.begin_write()?;
    {
        txn.open_table(LOG)?;
        txn.open_table(INDEX)?;
        let mut meta = txn.open_table(META)?;
        meta.insert(META_FORMAT, FORMAT)?;
        State::EMPTY.write(&mut meta, None)?;
    }
    txn.commit()?;
    Ok(State::EMPTY)
}

/// Some damage makes redb panic rather than return: that is an answer about the file too.
fn guarded<T>(name: &str, open: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|_| Err(not_ours(name, "reading it ended in a contradiction")))
}

const PAGE: u64 = 4096;

/// A file as a backend that reads through and writes to memory.
#[derive(Debug)]
struct Overlay {
    base: FileBackend,
    changed: Mutex<Changed>,
}

#[derive(Debug)]
struct Changed {
    len: u64,
    /// Length of what is still the file's own.
    base_len: u64,
    pages: HashMap<u64, Box<[u8]>>,
}

impl Overlay {
    fn new(base: FileBackend) -> io::Result<Self> {
        let len = base.len()?;
        let changed = Changed { len, base_len: len, pages: HashMap::new() };
        Ok(Self { base, changed: Mutex::new(changed) })
    }

    fn page(&self, changed: &Changed, index: u64) -> io::Result<Box<[u8]>> {
        let mut page = vec![0; PAGE as usize].into_boxed_slice();
        let start = index * PAGE;
        let own = changed.base_len.saturating_sub(start).min(PAGE) as usize;
        if let Some(part) = page.get_mut(..own).filter(|part| !part.is_empty()) {
            self.base.read(start, part)?;
        }
        Ok(page)
    }

    /// Calls `each` with every page the range touches: its index, the part within the page and
    /// the part within the buffer.
    fn parts(
        offset: u64,
        len: usize,
        mut each: impl FnMut(u64, std::ops::Range<usize>, std::ops::Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let count = (PAGE as usize - within).min(len - done);
            each(at / PAGE, within..within + count, done..done + count)?;
            done += count;
        }
        Ok(())
    }
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.changed.lock().unwrap_or_else(PoisonError::into_inner).len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        if offset.saturating_add(out.len() as u64) > changed.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Self::parts(offset, out.len(), |index, within, part| {
            let Some(out) = out.get_mut(part) else {
                return Ok(());
            };
            match changed.pages.get(&index).and_then(|page| page.get(within.clone())) {
                Some(page) => out.copy_from_slice(page),
                None => {
                    let start = index * PAGE + within.start as u64;
                    let own = (changed.base_len.saturating_sub(start) as usize).min(out.len());
                    let (own, grown) = out.split_at_mut(own);
                    if !own.is_empty() {
                        self.base.read(start, own)?;
                    }
                    grown.fill(0);
                }
            }
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        if len < changed.len {
            changed.base_len = changed.base_len.min(len);
            changed.pages.retain(|index, _| index * PAGE < len);
            if let Some(page) = changed.pages.get_mut(&(len / PAGE)) {
                page.iter_mut().skip((len % PAGE) as usize).for_each(|byte| *byte = 0);
            }
        }
        changed.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        if offset.saturating_add(data.len() as u64) > changed.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Self::parts(offset, data.len(), |index, within, part| {
            if !changed.pages.contains_key(&index) {
                let page = self.page(&changed, index)?;
                changed.pages.insert(index, page);
            }
            let page = changed.pages.get_mut(&index).and_then(|page| page.get_mut(within));
            if let (Some(page), Some(data)) = (page, data.get(part)) {
                page.copy_from_slice(data);
            }
            Ok(())
        })
    }

    fn close(&self) -> io::Result<()> {
        self.base.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.base.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.base.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.base.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.base.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.base.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.base.query_lock_range(start, end)
    }
}
