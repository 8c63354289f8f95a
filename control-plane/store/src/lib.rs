//! The revisioned key-value store under the API server.
//!
//! One global revision counts every successful write. A key has a value, the revision that created
//! it and the revision that wrote it last; writes carry the revision they expect, and a watch hands
//! out every write after a revision, in order, exactly once. [`Store`] is what the server knows;
//! [`RedbStore`] keeps it in one file. The crate knows neither HTTP nor kinds.

mod redb;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub use crate::redb::{Clock, Options, RedbStore, Stats, SystemClock};
/// What redb writes to: implement it to put the store somewhere else than in a file.
pub use ::redb::StorageBackend;

/// The store's one clock: rises by one with every successful write. An empty store is at 1.
pub type Revision = u64;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A key with its value as of some revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: Arc<str>,
    pub value: Bytes,
    /// The revision that created the key.
    pub created: Revision,
    /// The revision that wrote this value.
    pub revision: Revision,
}

/// What part of the key space a list covers: keys that begin with `prefix` and, where `after` is
/// given, sort after it (a byte-wise order; the key a page ended with continues the list).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Range {
    pub prefix: String,
    pub after: Option<String>,
}

impl Range {
    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), after: None }
    }

    /// The same range without the keys up to and including `key`.
    pub fn after(mut self, key: impl Into<String>) -> Self {
        self.after = Some(key.into());
        self
    }
}

/// One page of a list, in key order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub entries: Vec<Entry>,
    /// The revision the page shows: the one asked for, or that of the snapshot read.
    pub revision: Revision,
    /// How many entries of the range follow the last of this page.
    pub remaining: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    Created,
    Updated,
    Deleted,
}

/// One write, as a watch tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub revision: Revision,
    pub change: Change,
    pub key: Arc<str>,
    /// The value written; for `Deleted` the last value.
    pub value: Bytes,
    pub created: Revision,
    /// The value before an update or a deletion.
    pub previous: Option<Bytes>,
}

/// What a watch yields: the events of one commit that its prefix covers, never an empty batch. An
/// error is the last item.
pub type Events = BoxStream<'static, Result<Arc<[Event]>>>;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("key {key:?} does not exist")]
    NotFound { key: String },
    #[error("key {key:?} already exists")]
    AlreadyExists { key: String },
    /// The key's revision is `current`, not the one expected.
    #[error("key {key:?} is at revision {current}, not at the one expected")]
    Conflict { key: String, current: Revision },
    #[error("revision {requested} has been compacted away; the oldest one kept is {oldest}")]
    Compacted { requested: Revision, oldest: Revision },
    #[error("revision {requested} is in the future; the store is at {current}")]
    Future { requested: Revision, current: Revision },
    /// The reader of a watch let this many events pile up: list again and watch from there.
    #[error("the watch fell {behind} events behind and was dropped")]
    Lagged { behind: usize },
    #[error("the value of {key:?} has {size} bytes; at most {limit} are allowed")]
    TooLarge { key: String, size: usize, limit: usize },
    #[error("key {key:?} is not valid: {reason}")]
    InvalidKey { key: String, reason: &'static str },
    #[error("the store is closed")]
    Closed,
    #[error("store {path}: cannot be written: {reason}; it needs a directory and file that this user may write")]
    ReadOnly { path: String, reason: String },
    #[error("store {path}: in use by another process; stop that one or choose another data directory")]
    Locked { path: String },
    #[error(
        "store {path}: written in format {found}, and this version reads format {supported}; use the version that wrote it, or another data directory"
    )]
    Version { path: String, found: String, supported: u64 },
    #[error(
        "store {path}: damaged or not a store: {reason}; nothing was changed; restore the file from a backup, or move it away to start empty"
    )]
    Corrupt { path: String, reason: String },
    /// Reading or writing failed. After a failed write the store accepts nothing more.
    #[error("store {path}: {reason}")]
    Io { path: String, reason: String },
}

/// A revisioned key-value store. Keys are opaque paths (`/registry/pods/default/web-1`).
///
/// Invariants, held for every implementation by `tests/store/suite.rs`:
/// - a write is acknowledged once it is durable, and after watches have been handed it;
/// - revisions rise by one per write, in the order of the watch;
/// - a read sees every write acknowledged before it began.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    async fn get(&self, key: &str) -> Result<Option<Entry>>;

    /// Up to `limit` entries (0: all) as of revision `at` (none: now).
    async fn list(&self, range: Range, at: Option<Revision>, limit: usize) -> Result<Page>;

    /// Writes a key that must not exist; else [`Error::AlreadyExists`].
    async fn create(&self, key: &str, value: Bytes) -> Result<Revision>;

    /// Replaces a value that must be at `expected`; else [`Error::Conflict`] or [`Error::NotFound`].
    async fn update(&self, key: &str, value: Bytes, expected: Revision) -> Result<Revision>;

    /// Removes a key that must be at `expected`; else as `update`.
    async fn delete(&self, key: &str, expected: Revision) -> Result<Revision>;

    /// Every event under `prefix` with a revision above `from`: first from history, then live, with
    /// no gap and no duplicate. A reader that falls too far behind gets [`Error::Lagged`].
    fn watch(&self, prefix: &str, from: Revision) -> Result<Events>;

    /// The revision of the last write.
    async fn revision(&self) -> Result<Revision>;

    /// Forgets the history before `before`: lists at, and watches from, `before` and later still
    /// answer, earlier ones get [`Error::Compacted`]. Current values are never lost.
    async fn compact(&self, before: Revision) -> Result<()>;
}
