//! [`Store`] on one redb file.
//!
//! Writes go to one thread (`writer`), which commits everything that is waiting with one fsync.
//! Reads (`read`) and the history part of watches (`watch`) are short read transactions.

mod compact;
mod errors;
mod open;
mod options;
mod patience;
mod read;
mod tables;
mod watch;
mod writer;

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redb::{Database, StorageBackend};
use tokio::sync::{Semaphore, oneshot};

use self::errors::{Faulty, io_error};
use self::tables::{MAX_KEY, State};
use self::writer::{Op, Request, Write, Writer};
use crate::{Entry, Error, Events, Page, Range, Result, Revision, Store};

pub use options::{Clock, Options, SystemClock};

/// The embedded store. Dropping it, or [`RedbStore::close`], writes out what was asked for before
/// and closes the file.
pub struct RedbStore {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// Figures for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    pub revision: Revision,
    /// History before this is gone.
    pub compacted: Revision,
    /// Bytes logged since then.
    pub history_bytes: u64,
    /// Since the store was opened.
    pub writes: u64,
    pub commits: u64,
    pub watchers: usize,
}

/// How long closing waits for reads; after that the last of them closes the file.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// What the writer, the reads and the watches share.
pub(crate) struct Shared {
    path: String,
    options: Options,
    /// None once closed.
    db: RwLock<Option<Arc<Database>>>,
    hub: watch::Hub,
    /// The highest revision that a commit has tried to reach; readers may see it.
    attempted: AtomicU64,
    compacted: AtomicU64,
    history: AtomicU64,
    writes: AtomicU64,
    commits: AtomicU64,
    /// Why the store stopped working.
    failure: OnceLock<Error>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("path", &self.path).finish_non_exhaustive()
    }
}

impl fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbStore").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl Shared {
    fn db(&self) -> Result<Arc<Database>> {
        if let Some(failure) = self.failure.get() {
            return Err(failure.clone());
        }
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        db.clone().ok_or(Error::Closed)
    }

    /// Closes the file once the reads under way, which are short, are through.
    fn close(&self) {
        let db = self.db.write().unwrap_or_else(PoisonError::into_inner).take();
        let Some(db) = db else { return };
        for _ in 0..CLOSE_PATIENCE.as_millis() {
            if Arc::strong_count(&db) == 1 {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn ended(&self) -> Error {
        self.failure.get().cloned().unwrap_or(Error::Closed)
    }

    fn note(&self, state: &State, writes: usize) {
        self.compacted.store(state.compacted, Ordering::Release);
        self.history.store(state.history, Ordering::Relaxed);
        self.writes.fetch_add(writes as u64, Ordering::Relaxed);
        self.commits.fetch_add(1, Ordering::Relaxed);
    }

    /// Runs a read where it may block.
    async fn blocking<T: Send + 'static>(
        self: Arc<Self>,
        read: impl FnOnce(&Database) -> Faulty<T> + Send + 'static,
    ) -> Result<T> {
        tokio::task::spawn_blocking(move || {
            let db = self.db()?;
            read(&db).map_err(|fault| fault.at(&self.path))
        })
        .await
        // The runtime is going away.
        .unwrap_or(Err(Error::Closed))
    }
}

impl RedbStore {
    /// Opens the store in file `path`, or makes it. The directory must exist.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Self> {
        let path = path.as_ref();
        let (db, state) = open::open_file(path, options.cache_bytes)?;
        Self::start(path.display().to_string(), db, state, options)
    }

    /// Opens the store in anything that redb can write to.
    pub fn open_backend(backend: impl StorageBackend, options: Options) -> Result<Self> {
        let path = "(backend)".to_owned();
        let (db, state) = open::open_backend(backend, options.cache_bytes, &path)?;
        Self::start(path, db, state, options)
    }

    /// A store that is gone with the process, for tests.
    pub fn in_memory(options: Options) -> Result<Self> {
        Self::open_backend(redb::backends::InMemoryBackend::new(), options)
    }

    fn start(path: String, db: Database, state: State, options: Options) -> Result<Self> {
        let room = Arc::new(Semaphore::new(options.queue_bytes.min(Semaphore::MAX_PERMITS)));
        let shared = Arc::new(Shared {
            hub: watch::Hub::new(&options, state.revision),
            db: RwLock::new(Some(Arc::new(db))),
            attempted: state.revision.into(),
            compacted: state.compacted.into(),
            history: state.history.into(),
            writes: 0.into(),
            commits: 0.into(),
            failure: OnceLock::new(),
            path,
            options,
        });
        let (requests, queue) = mpsc::channel();
        let writer = Writer::new(Arc::clone(&shared), queue, state);
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run())
            .map_err(|error| io_error(&shared.path, &error))?;
        Ok(Self { shared, requests, room, writer: Mutex::new(Some(writer)) })
    }

    pub fn stats(&self) -> Stats {
        let shared = &self.shared;
        Stats {
            revision: shared.attempted.load(Ordering::Acquire),
            compacted: shared.compacted.load(Ordering::Acquire),
            history_bytes: shared.history.load(Ordering::Relaxed),
            writes: shared.writes.load(Ordering::Relaxed),
            commits: shared.commits.load(Ordering::Relaxed),
            watchers: shared.hub.watchers(),
        }
    }

    /// Writes out what was asked for before and closes the file. Everything asked later gets
    /// [`Error::Closed`]. Blocks for the length of a commit.
    pub fn close(&self) {
        self.room.close();
        let _ = self.requests.send(Request::Stop);
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer
            && writer.join().is_err()
        {
            tracing::error!(path = self.shared.path, "the store's writer panicked");
        }
    }

    async fn write(&self, key: &str, op: Op) -> Result<Revision> {
        let invalid = |reason| Err(Error::InvalidKey { key: key.to_owned(), reason });
        if key.is_empty() {
            return invalid("it is empty");
        }
        if key.len() > MAX_KEY {
            return invalid("it is longer than 4096 bytes");
        }
        let options = &self.shared.options;
        let size = match &op {
            Op::Create(value) | Op::Update(value, _) => value.len(),
            Op::Delete(_) => 0,
        };
        if size > options.max_value {
            let (key, limit) = (key.to_owned(), options.max_value);
            return Err(Error::TooLarge { key, size, limit });
        }
        // One semaphore bounds both: a small write takes its share of the count.
        let share = options.queue_bytes / options.queue.max(1);
        let cost = size.max(share).clamp(1, options.queue_bytes.max(1));
        let cost = u32::try_from(cost).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(cost).await;
        let room = room.map_err(|_| self.shared.ended())?;
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Request::Write(Write { key: key.into(), op, reply, room }))
            .map_err(|_| self.shared.ended())?;
        answer.await.unwrap_or_else(|_| Err(self.shared.ended()))
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        self.close();
    }
}

#[async_trait]
impl Store for RedbStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        // A few microseconds, or one page from the disk: cheaper than changing threads.
        let db = self.shared.db()?;
        read::get(&db, key).map_err(|fault| fault.at(&self.shared.path))
    }

    async fn list(&self, range: Range, at: Option<Revision>, limit: usize) -> Result<Page> {
        let shared = Arc::clone(&self.shared);
        shared.blocking(move |db| read::list(db, &range, at, limit)).await
    }

    async fn create(&self, key: &str, value: Bytes) -> Result<Revision> {
        self.write(key, Op::Create(value)).await
    }

    async fn update(&self, key: &str, value: Bytes, expected: Revision) -> Result<Revision> {
        self.write(key, Op::Update(value, expected)).await
    }

    async fn delete(&self, key: &str, expected: Revision) -> Result<Revision> {
        self.write(key, Op::Delete(expected)).await
    }

    fn watch(&self, prefix: &str, from: Revision) -> Result<Events> {
        watch::watch(&self.shared, prefix, from)
    }

    async fn revision(&self) -> Result<Revision> {
        let db = self.shared.db()?;
        read::revision(&db).map_err(|fault| fault.at(&self.shared.path))
    }

    async fn compact(&self, before: Revision) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Compact { before, reply }).map_err(|_| self.shared.ended())?;
        answer.await.unwrap_or_else(|_| Err(self.shared.ended()))
    }
}
