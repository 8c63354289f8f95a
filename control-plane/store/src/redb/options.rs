use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where the store reads the time from, which it only needs to tell how old history is.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Time since some fixed point; never goes back.
    fn now(&self) -> Duration;
}

/// The machine's monotonic clock.
#[derive(Debug)]
pub struct SystemClock(Instant);

impl Default for SystemClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// How a [`RedbStore`](crate::RedbStore) behaves. The defaults suit a cluster of a few thousand pods.
#[derive(Debug, Clone)]
pub struct Options {
    /// Memory for pages of the file.
    pub cache_bytes: usize,
    /// History older than this is compacted.
    pub keep_history: Duration,
    /// Past this many bytes of history the oldest half is compacted, however young.
    pub keep_bytes: u64,
    /// The largest value accepted.
    pub max_value: usize,
    /// Writes waiting for the disk before callers are made to wait: how many, and how many bytes.
    pub queue: usize,
    pub queue_bytes: usize,
    /// What a watch may have waiting before it is dropped: how many events, and how many bytes.
    pub watch_backlog: usize,
    pub watch_backlog_bytes: usize,
    pub clock: Arc<dyn Clock>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache_bytes: 8 << 20,
            keep_history: Duration::from_secs(300),
            keep_bytes: 64 << 20,
            max_value: 2 << 20,
            queue: 1024,
            queue_bytes: 64 << 20,
            watch_backlog: 16 << 10,
            watch_backlog_bytes: 64 << 20,
            clock: Arc::new(SystemClock::default()),
        }
    }
}
