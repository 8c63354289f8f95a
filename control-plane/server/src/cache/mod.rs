//! The watch cache: every object once, decoded no more than selectors need, with the recent events
//! of each kind. Reads never touch the store; one task follows the store's watch.
//!
//! Invariants: events of a kind are applied in the order of revisions; whoever reads a kind at
//! revision R sees every write of it up to R; a write answers only after [`Cache::wait`] says that
//! its revision is in.

mod object;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use futures::StreamExt;
use sampan_api::Kind;
use sampan_store::{Change, Range, Revision, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use object::{Malformed, Object, encode, event_type, set_version};

/// Events a kind remembers at least, and the bytes past which it forgets all but those.
const HISTORY_EVENTS: usize = 256;
const HISTORY_BYTES: usize = 8 << 20;
const HISTORY_MOST: usize = 16 << 10;
/// Objects read from the store at once when it starts.
const PAGE: usize = 500;

/// A write, as watchers see it.
#[derive(Debug)]
pub struct Event {
    pub revision: Revision,
    pub change: Change,
    pub object: Arc<Object>,
    pub previous: Option<Arc<Object>>,
}

/// The revision asked for is older than what a kind remembers.
#[derive(Debug, PartialEq, Eq)]
pub struct TooOld {
    pub requested: Revision,
    pub oldest: Revision,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Box<str>, Arc<Object>>,
    history: VecDeque<Arc<Event>>,
    /// Number of the first event in `history`, counted from the start of the process.
    first: u64,
    /// Every event above this revision is in `history`.
    floor: Revision,
    last: Revision,
    bytes: usize,
}

/// The objects of one kind.
pub struct KindCache {
    pub kind: &'static Kind,
    prefix: String,
    state: RwLock<State>,
    global: watch::Receiver<Revision>,
    changed: watch::Sender<Revision>,
}

/// What a list shows.
pub struct Snapshot {
    pub objects: Vec<Arc<Object>>,
    pub revision: Revision,
    pub watcher: Watcher,
}

/// A reader of a kind's events, at its own pace.
pub struct Watcher {
    kind: Arc<KindCache>,
    cursor: u64,
    changed: watch::Receiver<Revision>,
}

/// The reader was so slow that events it had not seen are gone.
#[derive(Debug)]
pub struct Lagged;

pub struct Cache {
    kinds: Vec<Arc<KindCache>>,
    by_prefix: HashMap<String, Arc<KindCache>>,
    revision: watch::Sender<Revision>,
    failed: watch::Sender<bool>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] sampan_store::Error),
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// `/registry/apps/deployments/`; the core group is spelled out.
pub fn prefix(kind: &Kind) -> String {
    let group = if kind.group.is_empty() { "core" } else { kind.group };
    format!("/registry/{group}/{}/", kind.plural)
}

/// The part of a key behind the prefix.
pub fn suffix(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}

impl Cache {
    /// Reads all objects of the kinds that are stored and follows the store from there until
    /// `shutdown`.
    pub async fn start(
        store: Arc<dyn Store>,
        kinds: impl IntoIterator<Item = &'static Kind>,
        shutdown: CancellationToken,
    ) -> Result<Arc<Self>, Error> {
        let at = store.revision().await?;
        let revision = watch::Sender::new(at);
        let kinds: Vec<Arc<KindCache>> = kinds
            .into_iter()
            .filter(|kind| kind.stored_as.is_none())
            .map(|kind| {
                Arc::new(KindCache {
                    kind,
                    prefix: prefix(kind),
                    state: RwLock::new(State { floor: at, last: at, ..State::default() }),
                    global: revision.subscribe(),
                    changed: watch::Sender::new(at),
                })
            })
            .collect();
        for kind in &kinds {
            let mut range = Range::prefix(kind.prefix.clone());
            loop {
                let page = store.list(range.clone(), Some(at), PAGE).await?;
                let mut state = kind.state.write().unwrap_or_else(PoisonError::into_inner);
                for entry in &page.entries {
                    let Some(suffix) = entry.key.strip_prefix(kind.prefix.as_str()) else {
                        continue;
                    };
                    let change = if entry.created == entry.revision { Change::Created } else { Change::Updated };
                    let object =
                        Object::new(kind.kind, &entry.key, &entry.value, change, entry.created, entry.revision)?;
                    state.objects.insert(suffix.into(), Arc::new(object));
                }
                match page.entries.last() {
                    Some(last) if page.remaining > 0 => range = range.after(last.key.as_ref()),
                    _ => break,
                }
            }
        }
        let by_prefix = kinds.iter().map(|kind| (kind.prefix.clone(), kind.clone())).collect();
        let cache = Arc::new(Self { kinds, by_prefix, revision, failed: watch::Sender::new(false) });
        let events = store.watch("/registry/", at)?;
        tokio::spawn(cache.clone().follow(store, events, shutdown));
        Ok(cache)
    }

    async fn follow(
        self: Arc<Self>,
        store: Arc<dyn Store>,
        mut events: sampan_store::Events,
        shutdown: CancellationToken,
    ) {
        loop {
            let batch = tokio::select! {
                () = shutdown.cancelled() => break,
                batch = events.next() => batch,
            };
            match batch {
                Some(Ok(batch)) => self.apply(&batch),
                Some(Err(sampan_store::Error::Lagged { behind })) => {
                    // The history still has them: nothing is lost.
                    tracing::warn!(behind, "the watch cache fell behind the store");
                    match store.watch("/registry/", self.revision()) {
                        Ok(again) => events = again,
                        Err(error) => {
                            tracing::error!(%error, "the watch cache cannot follow the store");
                            break;
                        }
                    }
                }
                Some(Err(error)) => {
                    tracing::error!(%error, "the watch cache cannot follow the store");
                    break;
                }
                None => break,
            }
        }
        self.failed.send_replace(true);
    }

    fn apply(&self, batch: &[sampan_store::Event]) {
        let mut touched: Vec<&Arc<KindCache>> = Vec::new();
        let mut last = self.revision();
        for event in batch {
            last = event.revision;
            let Some(kind) = self.of_key(&event.key) else {
                continue;
            };
            if kind.apply(event) && !touched.iter().any(|known| Arc::ptr_eq(known, kind)) {
                touched.push(kind);
            }
        }
        self.revision.send_replace(last);
        for kind in touched {
            kind.changed.send_replace(last);
        }
    }

    fn of_key(&self, key: &str) -> Option<&Arc<KindCache>> {
        let end = key.match_indices('/').nth(3).map(|(at, _)| at + 1)?;
        self.by_prefix.get(key.get(..end)?)
    }

    /// The cache of a kind, or of the one that its objects are stored as.
    pub fn of(&self, kind: &Kind) -> Option<&Arc<KindCache>> {
        match kind.stored_as {
            Some(stored) => self.by_prefix.get(&prefix((stored.kind)())),
            None => self.by_prefix.get(&prefix(kind)),
        }
    }

    pub fn kinds(&self) -> &[Arc<KindCache>] {
        &self.kinds
    }

    /// The last revision that every kind has seen.
    pub fn revision(&self) -> Revision {
        *self.revision.borrow()
    }

    /// Whether the cache no longer follows the store.
    pub fn has_failed(&self) -> bool {
        *self.failed.borrow()
    }

    /// Waits until `revision` is in; false when it did not come in time.
    pub async fn wait(&self, revision: Revision, patience: Duration) -> bool {
        let mut seen = self.revision.subscribe();
        if *seen.borrow() >= revision {
            return true;
        }
        matches!(tokio::time::timeout(patience, seen.wait_for(|now| *now >= revision)).await, Ok(Ok(_)))
    }
}

impl KindCache {
    pub fn key(&self, namespace: &str, name: &str) -> String {
        format!("{}{}", self.prefix, suffix(namespace, name))
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// False: the event was seen before, or cannot be shown.
    fn apply(&self, event: &sampan_store::Event) -> bool {
        let Some(suffix) = event.key.strip_prefix(self.prefix.as_str()) else {
            return false;
        };
        // Decoded outside the lock.
        let object = Object::new(self.kind, &event.key, &event.value, event.change, event.created, event.revision);
        let object = match object {
            Ok(object) => Arc::new(object),
            Err(error) => {
                tracing::error!(%error, "object left out of the cache");
                return false;
            }
        };
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if event.revision <= state.last {
            return false;
        }
        let previous = match event.change {
            Change::Deleted => state.objects.remove(suffix),
            Change::Created | Change::Updated => state.objects.insert(suffix.into(), object.clone()),
        };
        state.last = event.revision;
        state.bytes += object.size();
        state.history.push_back(Arc::new(Event { revision: event.revision, change: event.change, object, previous }));
        while state.history.len() > HISTORY_MOST
            || (state.bytes > HISTORY_BYTES && state.history.len() > HISTORY_EVENTS)
        {
            let Some(oldest) = state.history.pop_front() else {
                break;
            };
            state.bytes = state.bytes.saturating_sub(oldest.object.size());
            state.floor = oldest.revision;
            state.first += 1;
        }
        true
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Object>> {
        let state = self.read();
        if namespace.is_empty() {
            state.objects.get(name).cloned()
        } else {
            state.objects.get(suffix(namespace, name).as_str()).cloned()
        }
    }

    pub fn len(&self) -> usize {
        self.read().objects.len()
    }

    /// Objects of a namespace (all where empty) that `select` takes, in the order of their keys, from
    /// a key behind `after`.
    pub fn list(
        self: &Arc<Self>,
        namespace: &str,
        after: Option<&str>,
        limit: usize,
        select: impl Fn(&Object) -> bool,
    ) -> (Snapshot, Remaining) {
        let within = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
        // Told before the lock is taken: whatever it counts is in the state below.
        let global = *self.global.borrow();
        let state = self.read();
        let from = match after {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(within.as_str()),
        };
        let mut objects = Vec::new();
        let mut remaining = Remaining::default();
        let mut range =
            state.objects.range::<str, _>((from, Bound::Unbounded)).take_while(|(key, _)| key.starts_with(&within));
        for (key, object) in range.by_ref() {
            if !select(object) {
                continue;
            }
            if limit > 0 && objects.len() == limit {
                // One more that matches: the page is not the last.
                remaining.more = true;
                remaining.count = 1 + range.count();
                break;
            }
            remaining.last = Some(key.clone());
            objects.push(object.clone());
        }
        let snapshot = Snapshot {
            objects,
            revision: global.max(state.last),
            watcher: Watcher {
                kind: self.clone(),
                cursor: state.first + state.history.len() as u64,
                changed: self.changed.subscribe(),
            },
        };
        (snapshot, remaining)
    }

    /// Whether an object of a namespace is one that is looked for.
    pub fn any(&self, namespace: &str, mut wanted: impl FnMut(&Object) -> bool) -> bool {
        let within = format!("{namespace}/");
        let state = self.read();
        let of_namespace = state.objects.range::<str, _>((Bound::Included(within.as_str()), Bound::Unbounded));
        of_namespace.take_while(|(key, _)| key.starts_with(&within)).any(|(_, object)| wanted(object))
    }

    /// The events after a revision.
    pub fn watch(self: &Arc<Self>, from: Revision) -> Result<Watcher, TooOld> {
        let changed = self.changed.subscribe();
        let state = self.read();
        if from < state.floor {
            return Err(TooOld { requested: from, oldest: state.floor });
        }
        let seen = state.history.partition_point(|event| event.revision <= from);
        Ok(Watcher { kind: self.clone(), cursor: state.first + seen as u64, changed })
    }

    /// Whether nothing of this kind has changed since a revision.
    pub fn unchanged_since(&self, revision: Revision) -> bool {
        self.read().last <= revision
    }
}

/// What a limited list left out.
#[derive(Default)]
pub struct Remaining {
    pub more: bool,
    pub count: usize,
    /// Key of the last object taken.
    pub last: Option<Box<str>>,
}

impl Watcher {
    /// What happened since the last call, at most a few at once, and the revision up to which that
    /// is all. Never waits.
    pub fn poll(&mut self, most: usize) -> Result<(Vec<Arc<Event>>, Revision), Lagged> {
        let global = *self.kind.global.borrow();
        let state = self.kind.read();
        let skip = self.cursor.checked_sub(state.first).ok_or(Lagged)?;
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let events: Vec<_> = state.history.iter().skip(skip).take(most).cloned().collect();
        self.cursor += events.len() as u64;
        let all = skip + events.len() >= state.history.len();
        let upto = match events.last() {
            Some(last) if !all => last.revision,
            _ => global.max(state.last),
        };
        Ok((events, upto))
    }

    /// Waits for the next change. False: there will be none.
    pub async fn changed(&mut self) -> bool {
        self.changed.changed().await.is_ok()
    }
}
