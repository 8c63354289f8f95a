//! The one mechanism that drives every controller: a queue of keys and the loop that works it off.
//!
//! A key is worked on by one worker at a time; asked for again meanwhile, it comes again once,
//! afterwards. What fails comes back later, and later still each time. All waiting is tokio's, so a
//! simulation with paused time runs through hours at once.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sampan_client::{Change, Informer, Object};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::Error;

/// The wait after the first failure; it doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_millis(5);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// A key rests so many times as long as it was worked on: one with a thousand pods that change one by one
/// is looked at now and then, and not all the time.
const SHARE: u32 = 3;
const LONGEST_REST: Duration = Duration::from_millis(200);

/// What a queue can hold.
pub trait Key: Clone + Eq + Hash + Debug + Send + Sync + 'static {}

impl<T: Clone + Eq + Hash + Debug + Send + Sync + 'static> Key for T {}

/// Keys to be worked on.
pub struct Queue<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

struct Shared<K> {
    state: Mutex<State<K>>,
    changed: Notify,
}

struct State<K> {
    ready: VecDeque<K>,
    /// Asked for and not begun yet, whether in `ready` or because it is being worked on.
    dirty: HashSet<K>,
    /// Since when.
    processing: HashMap<K, Instant>,
    /// The number keeps keys of one instant in order.
    later: BTreeMap<(Instant, u64), K>,
    due: HashMap<K, (Instant, u64)>,
    number: u64,
    failures: HashMap<K, u32>,
    /// The least time between two runs of one key, and when those that ran may come again.
    pace: Duration,
    rest: HashMap<K, Instant>,
}

impl<K: Key> Queue<K> {
    pub fn new() -> Self {
        Self::paced(Duration::ZERO)
    }

    /// A queue that lets `pace` pass between two runs of one key, so that a burst of changes costs
    /// one run and not one each. The first change is not held up.
    pub fn paced(pace: Duration) -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            processing: HashMap::new(),
            later: BTreeMap::new(),
            due: HashMap::new(),
            number: 0,
            failures: HashMap::new(),
            pace,
            rest: HashMap::new(),
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() }) }
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `key` worked on as soon as there is a worker.
    pub fn add(&self, key: K) {
        self.lock().add(key);
        self.shared.changed.notify_one();
    }

    /// Has `key` worked on after `wait`, or earlier if something else asks for that.
    pub fn add_after(&self, key: K, wait: Duration) {
        self.lock().add_at(key, Instant::now() + wait);
        self.shared.changed.notify_one();
    }

    /// Has `key` worked on again after a failure.
    pub fn retry(&self, key: K) {
        let mut state = self.lock();
        let failures = state.failures.entry(key.clone()).or_default();
        let wait = FIRST_RETRY
            .checked_mul(1_u32.checked_shl((*failures).min(30)).unwrap_or(u32::MAX))
            .unwrap_or(LONGEST_RETRY)
            .min(LONGEST_RETRY);
        *failures = failures.saturating_add(1);
        state.add_at(key, Instant::now() + wait);
        drop(state);
        self.shared.changed.notify_one();
    }

    /// How often `key` failed since it last succeeded.
    pub fn failures(&self, key: &K) -> u32 {
        self.lock().failures.get(key).copied().unwrap_or_default()
    }

    /// Ends the count of failures.
    pub fn forget(&self, key: &K) {
        self.lock().failures.remove(key);
    }

    /// The next key; [`Self::done`] has to be called with it.
    pub async fn next(&self) -> K {
        loop {
            let wake = {
                let mut state = self.lock();
                let now = Instant::now();
                state.promote(now);
                if let Some(key) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.processing.insert(key.clone(), now);
                    return key;
                }
                state.later.first_key_value().map(|((at, _), _)| *at)
            };
            let changed = self.shared.changed.notified();
            match wake {
                None => changed.await,
                Some(at) => {
                    tokio::select! {
                    biased;
                        () = changed => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
            }
        }
    }

    /// The worker is done with `key`.
    pub fn done(&self, key: &K) {
        let mut state = self.lock();
        let now = Instant::now();
        let took = state.processing.remove(key).map_or(Duration::ZERO, |since| now - since);
        let rest = state.pace.max((took * SHARE).min(LONGEST_REST));
        if !rest.is_zero() {
            state.rest.retain(|_, until| *until > now);
            state.rest.insert(key.clone(), now + rest);
        }
        if state.dirty.remove(key) {
            state.add(key.clone());
        }
        drop(state);
        self.shared.changed.notify_one();
    }
}

impl<K: Key> State<K> {
    fn add(&mut self, key: K) {
        if self.dirty.contains(&key) {
            return;
        }
        if !self.processing.contains_key(&key) {
            if let Some(until) = self.rest.get(&key).copied()
                && until > Instant::now()
            {
                self.add_at(key, until);
                return;
            }
            if let Some(slot) = self.due.remove(&key) {
                self.later.remove(&slot);
            }
            self.ready.push_back(key.clone());
        }
        self.dirty.insert(key);
    }

    fn add_at(&mut self, key: K, at: Instant) {
        if let Some(slot) = self.due.get(&key).copied() {
            if slot.0 <= at {
                return;
            }
            self.later.remove(&slot);
        }
        self.number += 1;
        let slot = (at, self.number);
        self.later.insert(slot, key.clone());
        self.due.insert(key, slot);
    }

    /// Makes ready what is due.
    fn promote(&mut self, now: Instant) {
        while let Some(entry) = self.later.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let key = entry.remove();
            self.due.remove(&key);
            self.rest.remove(&key);
            self.add(key);
        }
    }
}

/// One controller: what it does for a key. It is asked whenever something about the key changed,
/// looks at the whole, and does what is to be done.
pub trait Controller: Send + Sync + 'static {
    const NAME: &'static str;
    type Key: Key;

    /// `Some`: to be asked again after that long, whatever happens.
    fn reconcile(&self, key: &Self::Key) -> impl Future<Output = Result<Option<Duration>, Error>> + Send;
}

/// Works off `queue` until `shutdown`, with so many keys at once.
pub async fn work<C: Controller>(
    controller: Arc<C>,
    queue: Queue<C::Key>,
    concurrency: usize,
    shutdown: CancellationToken,
) {
    let mut running = JoinSet::new();
    loop {
        while running.len() >= concurrency {
            tokio::select! {
                    biased;
                () = shutdown.cancelled() => return,
                ended = running.join_next() => report::<C>(ended),
            }
        }
        let key = tokio::select! {
                    biased;
            () = shutdown.cancelled() => return,
            ended = running.join_next(), if !running.is_empty() => {
                report::<C>(ended);
                continue;
            }
            key = queue.next() => key,
        };
        // Dropped whatever the run comes to, so that no key stays locked.
        let turn = Turn { queue: queue.clone(), key };
        let controller = controller.clone();
        running.spawn(async move {
            let (queue, key) = (&turn.queue, &turn.key);
            match controller.reconcile(key).await {
                Ok(again) => {
                    queue.forget(key);
                    if let Some(wait) = again {
                        queue.add_after(key.clone(), wait);
                    }
                }
                Err(error) => {
                    let failures = queue.failures(key);
                    if error.is_passing() && failures < 8 {
                        tracing::debug!(controller = C::NAME, ?key, %error, "again later");
                    } else {
                        tracing::warn!(controller = C::NAME, ?key, failures, %error, "failed; again later");
                    }
                    queue.retry(key.clone());
                }
            }
        });
    }
}

fn report<C: Controller>(ended: Option<Result<(), tokio::task::JoinError>>) {
    if let Some(Err(error)) = ended
        && error.is_panic()
    {
        tracing::error!(controller = C::NAME, %error, "a run ended in a panic");
    }
}

struct Turn<K: Key> {
    queue: Queue<K>,
    key: K,
}

impl<K: Key> Drop for Turn<K> {
    fn drop(&mut self) {
        self.queue.done(&self.key);
    }
}

/// Calls `handle` with all that is there and with each change, until `shutdown`.
pub fn feed<K: Object>(
    informer: &Informer<K>,
    shutdown: &CancellationToken,
    mut handle: impl FnMut(Change<K>) + Send + 'static,
) {
    let mut changes = informer.subscribe();
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                    biased;
                () = shutdown.cancelled() => return,
                change = changes.recv() => match change {
                    Some(change) => handle(change),
                    None => return,
                },
            }
        }
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_once() {
        let queue = Queue::new();
        queue.add("a");
        queue.add("b");
        queue.add("a");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.next().await, "b");
        let waited = tokio::time::timeout(Duration::from_secs(1), queue.next()).await;
        assert!(waited.is_err(), "a is being worked on");
        queue.done(&"a");
        assert_eq!(queue.next().await, "a");
        queue.done(&"a");
        queue.done(&"b");
        assert!(tokio::time::timeout(Duration::from_secs(1), queue.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_earlier_time_counts() {
        let queue = Queue::new();
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(10));
        queue.add_after("a", Duration::from_secs(5));
        queue.add_after("a", Duration::from_secs(7));
        assert_eq!(queue.next().await, "a");
        assert_eq!(start.elapsed().as_secs(), 5);
        queue.done(&"a");
        assert!(tokio::time::timeout(Duration::from_secs(60), queue.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_wait_longer_each_time() {
        let queue = Queue::new();
        let mut waits = Vec::new();
        for _ in 0..20 {
            let start = Instant::now();
            queue.retry("a");
            queue.next().await;
            queue.done(&"a");
            waits.push(start.elapsed());
        }
        assert_eq!(waits.first().copied(), Some(FIRST_RETRY));
        assert!(waits.is_sorted());
        assert_eq!(waits.last().copied(), Some(LONGEST_RETRY));
        queue.forget(&"a");
        assert_eq!(queue.failures(&"a"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_paced_key_rests_between_two_runs() {
        let queue = Queue::paced(Duration::from_millis(100));
        let start = Instant::now();
        queue.add("a");
        queue.next().await;
        assert!(start.elapsed().is_zero());
        queue.add("a");
        queue.done(&"a");
        queue.add("a");
        queue.next().await;
        assert_eq!(start.elapsed().as_millis(), 100);
        queue.done(&"a");
        queue.add("b");
        queue.next().await;
        assert_eq!(start.elapsed().as_millis(), 100, "another key need not wait");
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_takes_long_rests_long() {
        let queue = Queue::new();
        let start = Instant::now();
        for (takes, begins) in [(10, 0), (1000, 40), (0, 1240)] {
            queue.add("a");
            queue.next().await;
            assert_eq!(start.elapsed().as_millis(), begins);
            tokio::time::sleep(Duration::from_millis(takes)).await;
            queue.done(&"a");
        }
    }

    struct Counting {
        runs: AtomicUsize,
        queue: Queue<u32>,
    }

    impl Controller for Counting {
        const NAME: &'static str = "counting";
        type Key = u32;

        async fn reconcile(&self, key: &u32) -> Result<Option<Duration>, Error> {
            let run = self.runs.fetch_add(1, Ordering::Relaxed);
            assert!(*key != 2 || run > 5, "panics once");
            if *key == 1 && run < 3 {
                self.queue.add(1);
                return Err(Error::Invalid("not yet".to_owned()));
            }
            Ok(None)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_does_not_lock_its_key() {
        let queue = Queue::new();
        let controller = Arc::new(Counting { runs: AtomicUsize::new(0), queue: queue.clone() });
        let shutdown = CancellationToken::new();
        let loops = tokio::spawn(work(controller.clone(), queue.clone(), 2, shutdown.clone()));
        queue.add(2);
        tokio::time::sleep(Duration::from_secs(1)).await;
        queue.add(1);
        tokio::time::sleep(Duration::from_secs(1)).await;
        for _ in 0..6 {
            queue.add(2);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!(controller.runs.load(Ordering::Relaxed) >= 8);
        shutdown.cancel();
        loops.await.unwrap();
    }
}
