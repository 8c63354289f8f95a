//! A disk that is full for a moment: what filled it may be taken away, and an error would end the
//! store for good. Writes wait; reads go on.

use std::io::{self, ErrorKind};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redb::{BackendError, StorageBackend};
use tracing::{info, warn};

/// A node has removed images, measured its pods and evicted several of them by then; and somebody who is
/// told may have come.
const PATIENCE: Duration = Duration::from_secs(600);
const STEP: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct Patient<B> {
    backend: B,
    patience: Duration,
    waited: AtomicBool,
}

impl<B> Patient<B> {
    pub fn new(backend: B) -> Self {
        Self { backend, patience: PATIENCE, waited: AtomicBool::new(false) }
    }

    /// Tries until there is room, or for as long as it has patience.
    fn with_room(&self, act: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let full = |error: &io::Error| matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
        let begun = Instant::now();
        loop {
            match act() {
                Err(error) if full(&error) && begun.elapsed() < self.patience => {
                    if !self.waited.swap(true, Ordering::Relaxed) {
                        warn!(%error, patience = ?self.patience, "the store waits for room on its disk");
                    }
                    std::thread::sleep(STEP);
                }
                done => {
                    if done.is_ok() && self.waited.swap(false, Ordering::Relaxed) {
                        info!(waited = ?begun.elapsed(), "the store has room again");
                    }
                    return done;
                }
            }
        }
    }
}

impl<B: StorageBackend> StorageBackend for Patient<B> {
    fn len(&self) -> io::Result<u64> {
        self.backend.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.backend.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with_room(|| self.backend.set_len(len))
    }

    // What a sync that failed has lost nobody knows: that one is never tried again.
    fn sync_data(&self) -> io::Result<()> {
        self.backend.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with_room(|| self.backend.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.backend.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Mutex;
    use std::sync::atomic::AtomicU32;

    use redb::backends::InMemoryBackend;

    use super::*;

    /// Full for so many calls.
    #[derive(Debug)]
    struct Full {
        memory: InMemoryBackend,
        left: AtomicU32,
        kind: Mutex<ErrorKind>,
    }

    impl Full {
        fn refuse(&self) -> io::Result<()> {
            let kind = *self.kind.lock().unwrap();
            let left = self.left.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            left.map_or(Ok(()), |_| Err(kind.into()))
        }
    }

    impl StorageBackend for Full {
        fn len(&self) -> io::Result<u64> {
            self.memory.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.memory.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.refuse().and_then(|()| self.memory.set_len(len))
        }

        fn sync_data(&self) -> io::Result<()> {
            self.refuse()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.refuse().and_then(|()| self.memory.write(offset, data))
        }
    }

    fn full(times: u32, kind: ErrorKind, patience: Duration) -> Patient<Full> {
        let backend = Full { memory: InMemoryBackend::new(), left: times.into(), kind: Mutex::new(kind) };
        Patient { patience, ..Patient::new(backend) }
    }

    #[test]
    fn room_is_waited_for() {
        let patient = full(3, ErrorKind::StorageFull, PATIENCE);
        patient.set_len(8).unwrap();
        patient.write(0, b"whole").unwrap();
        let mut read = [0; 5];
        patient.read(0, &mut read).unwrap();
        assert_eq!(&read, b"whole");
    }

    #[test]
    fn not_for_ever_and_for_nothing_else() {
        let refused = |patient: &Patient<Full>| patient.set_len(8).unwrap_err().kind();
        assert_eq!(refused(&full(u32::MAX, ErrorKind::StorageFull, Duration::ZERO)), ErrorKind::StorageFull);
        assert_eq!(refused(&full(1, ErrorKind::PermissionDenied, PATIENCE)), ErrorKind::PermissionDenied);
        assert!(full(1, ErrorKind::StorageFull, PATIENCE).sync_data().is_err(), "a sync is not tried again");
    }
}
