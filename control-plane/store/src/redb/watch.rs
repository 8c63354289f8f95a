//! Watches: history from the log, then what the writer publishes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures::stream::{self, StreamExt};
use tokio::sync::mpsc;

use super::read::{self, Stretch};
use super::{Options, Shared};
use crate::{Error, Event, Events, Result, Revision};

/// Where the writer hands every committed batch, and watches wait for them.
#[derive(Debug)]
pub(super) struct Hub {
    state: Mutex<HubState>,
    limit: Limit,
}

#[derive(Debug, Clone, Copy)]
struct Limit {
    events: usize,
    bytes: usize,
}

#[derive(Debug)]
struct HubState {
    /// The last revision handed out.
    published: Revision,
    /// By prefix, so that a batch is filtered once for all who share one.
    feeds: BTreeMap<Arc<str>, Vec<Feed>>,
    closed: Option<Error>,
}

#[derive(Debug)]
struct Feed {
    batches: mpsc::UnboundedSender<Arc<[Event]>>,
    waiting: Arc<Waiting>,
}

/// What a reader has not taken yet.
#[derive(Debug, Default)]
struct Waiting {
    events: AtomicUsize,
    bytes: AtomicUsize,
    /// Set when the feed is ended: how many events the reader was behind.
    lagged: AtomicUsize,
}

/// The reader's end of a feed.
#[derive(Debug)]
struct Subscription {
    batches: mpsc::UnboundedReceiver<Arc<[Event]>>,
    waiting: Arc<Waiting>,
}

fn cost(events: &[Event]) -> usize {
    let values = |event: &Event| event.value.len() + event.previous.as_ref().map_or(0, |p| p.len());
    events.iter().map(|event| size_of::<Event>() + values(event)).sum()
}

impl Hub {
    pub(super) fn new(options: &Options, published: Revision) -> Self {
        let limit = Limit { events: options.watch_backlog, bytes: options.watch_backlog_bytes };
        let state = HubState { published, feeds: BTreeMap::new(), closed: None };
        Self { state: Mutex::new(state), limit }
    }

    fn lock(&self) -> MutexGuard<'_, HubState> {
        // Every change to the state is complete before anything in here could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands out a commit's events; `revision` is that of the last.
    pub(super) fn publish(&self, events: Vec<Event>, revision: Revision) {
        let batch: Arc<[Event]> = events.into();
        let mut state = self.lock();
        state.published = revision;
        state.feeds.retain(|prefix, feeds| {
            let covered = batch.iter().filter(|event| event.key.starts_with(&**prefix)).count();
            if covered == 0 {
                feeds.retain(|feed| !feed.batches.is_closed());
                return !feeds.is_empty();
            }
            let batch = if covered == batch.len() {
                Arc::clone(&batch)
            } else {
                batch.iter().filter(|event| event.key.starts_with(&**prefix)).cloned().collect()
            };
            let cost = cost(&batch);
            feeds.retain(|feed| feed.offer(&batch, cost, self.limit));
            !feeds.is_empty()
        });
    }

    /// Joins the feed of `prefix` if at most `gap` revisions were published after `position`. Also
    /// says what was published by then: later events come through the subscription.
    fn subscribe(&self, prefix: &str, position: Revision, gap: u64) -> Result<Option<(Subscription, Revision)>> {
        let mut state = self.lock();
        if let Some(error) = &state.closed {
            return Err(error.clone());
        }
        if state.published.saturating_sub(position) > gap {
            return Ok(None);
        }
        let (sender, batches) = mpsc::unbounded_channel();
        let waiting = Arc::new(Waiting::default());
        let feed = Feed { batches: sender, waiting: Arc::clone(&waiting) };
        state.feeds.entry(prefix.into()).or_default().push(feed);
        Ok(Some((Subscription { batches, waiting }, state.published)))
    }

    /// Ends every watch, now and later.
    pub(super) fn close(&self, error: Error) {
        let mut state = self.lock();
        state.closed.get_or_insert(error);
        state.feeds.clear();
    }

    fn ended(&self) -> Error {
        self.lock().closed.clone().unwrap_or(Error::Closed)
    }

    pub(super) fn watchers(&self) -> usize {
        self.lock().feeds.values().flatten().filter(|feed| !feed.batches.is_closed()).count()
    }
}

impl Feed {
    /// False when the feed has come to its end.
    fn offer(&self, batch: &Arc<[Event]>, cost: usize, limit: Limit) -> bool {
        let events = self.waiting.events.load(Ordering::Acquire);
        let bytes = self.waiting.bytes.load(Ordering::Acquire);
        // A reader that has nothing waiting takes any batch, however large.
        if events > 0 && (events + batch.len() > limit.events || bytes + cost > limit.bytes) {
            self.waiting.lagged.store(events + batch.len(), Ordering::Release);
            return false;
        }
        self.waiting.events.fetch_add(batch.len(), Ordering::AcqRel);
        self.waiting.bytes.fetch_add(cost, Ordering::AcqRel);
        self.batches.send(Arc::clone(batch)).is_ok()
    }
}

impl Subscription {
    async fn next(&mut self) -> Option<Arc<[Event]>> {
        // Memory is what the limit is for: a reader that was dropped gets the error at once.
        if self.waiting.lagged.load(Ordering::Acquire) > 0 {
            return None;
        }
        let batch = self.batches.recv().await?;
        self.waiting.events.fetch_sub(batch.len(), Ordering::AcqRel);
        self.waiting.bytes.fetch_sub(cost(&batch), Ordering::AcqRel);
        Some(batch)
    }

    fn error(&self, hub: impl FnOnce() -> Error) -> Error {
        match self.waiting.lagged.load(Ordering::Acquire) {
            0 => hub(),
            behind => Error::Lagged { behind },
        }
    }
}

/// With no more than this missing, a watch joins the feed first and reads the gap from the log
/// then; before, it would only collect a backlog.
const GAP: u64 = 1024;

enum Phase {
    /// Reading the log, with no subscription yet.
    History,
    /// Subscribed; the log is still needed up to a revision.
    Joining(Subscription, Revision),
    Live(Subscription),
    Ended,
}

struct Watch {
    /// Weak: a watch that nobody reads does not keep the file open.
    shared: Weak<Shared>,
    prefix: Arc<str>,
    /// Everything up to here has been yielded or is not covered.
    position: Revision,
    phase: Phase,
}

pub(super) fn watch(shared: &Arc<Shared>, prefix: &str, from: Revision) -> Result<Events> {
    let current = shared.attempted.load(Ordering::Acquire);
    if from > current {
        return Err(Error::Future { requested: from, current });
    }
    let oldest = shared.compacted.load(Ordering::Acquire);
    if from < oldest {
        return Err(Error::Compacted { requested: from, oldest });
    }
    let phase = match shared.hub.subscribe(prefix, from, 0)? {
        Some((subscription, _)) => Phase::Live(subscription),
        None => Phase::History,
    };
    let shared = Arc::downgrade(shared);
    let watch = Watch { shared, prefix: prefix.into(), position: from, phase };
    let stream = stream::unfold(watch, |mut watch| async move {
        if matches!(watch.phase, Phase::Ended) {
            return None;
        }
        let item = watch.next().await;
        if item.is_err() {
            watch.phase = Phase::Ended;
        }
        Some((item, watch))
    });
    Ok(stream.boxed())
}

impl Watch {
    async fn next(&mut self) -> Result<Arc<[Event]>> {
        loop {
            match std::mem::replace(&mut self.phase, Phase::Ended) {
                Phase::Ended => return Err(Error::Closed),
                Phase::History => {
                    let shared = self.shared.upgrade().ok_or(Error::Closed)?;
                    self.phase = match shared.hub.subscribe(&self.prefix, self.position, GAP)? {
                        Some((subscription, until)) => Phase::Joining(subscription, until),
                        None => Phase::History,
                    };
                    if matches!(self.phase, Phase::History) {
                        let events = self.read(shared, Revision::MAX).await?;
                        if !events.is_empty() {
                            return Ok(events);
                        }
                    }
                }
                Phase::Joining(subscription, until) => {
                    if self.position >= until {
                        self.phase = Phase::Live(subscription);
                        continue;
                    }
                    self.phase = Phase::Joining(subscription, until);
                    let shared = self.shared.upgrade().ok_or(Error::Closed)?;
                    let events = self.read(shared, until).await?;
                    if !events.is_empty() {
                        return Ok(events);
                    }
                }
                Phase::Live(mut subscription) => {
                    let Some(batch) = subscription.next().await else {
                        return Err(subscription
                            .error(|| self.shared.upgrade().map_or(Error::Closed, |shared| shared.hub.ended())));
                    };
                    self.phase = Phase::Live(subscription);
                    // A snapshot can be newer than what had been published when the watch began.
                    let seen = batch.partition_point(|event| event.revision <= self.position);
                    let Some(fresh) = batch.get(seen..).filter(|fresh| !fresh.is_empty()) else {
                        continue;
                    };
                    self.position = fresh.last().map_or(self.position, |event| event.revision);
                    return Ok(if seen == 0 { batch } else { fresh.into() });
                }
            }
        }
    }

    /// The next stretch of the log, up to `until`.
    async fn read(&mut self, shared: Arc<Shared>, until: Revision) -> Result<Arc<[Event]>> {
        let (prefix, from) = (Arc::clone(&self.prefix), self.position);
        let Stretch { events, position } = shared.blocking(move |db| read::history(db, &prefix, from, until)).await?;
        self.position = position;
        Ok(events.into())
    }
}
