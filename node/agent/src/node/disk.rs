//! Room on the node's disk.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::facts;

/// How long a disk counts as full after it was: what filled it may come back. The kubelet's.
const TRANSITION: Duration = Duration::from_secs(300);

/// In bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    pub total: u64,
    pub free: u64,
}

impl Disk {
    /// What is to stay free: a tenth, as the kubelet has it; but of a large disk less is room enough for
    /// a long time.
    pub fn threshold(&self) -> u64 {
        const ENOUGH: u64 = 1 << 30;
        (self.total / 10).min(ENOUGH)
    }

    pub fn is_full(&self) -> bool {
        self.free < self.threshold()
    }
}

/// Whether the disk of a directory is too full for more pods.
pub struct Pressure {
    dir: PathBuf,
    last_full: Mutex<Option<Instant>>,
    pressed: watch::Sender<bool>,
}

impl Pressure {
    pub fn of(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), last_full: Mutex::default(), pressed: watch::Sender::new(false) }
    }

    /// Looks: the disk, if it is full now.
    pub fn look(&self) -> Option<Disk> {
        let disk = facts::disk(&self.dir).map(|(total, free)| Disk { total, free }).filter(Disk::is_full);
        self.note(disk.is_some(), Instant::now());
        disk
    }

    fn note(&self, full: bool, now: Instant) {
        let mut last = self.last_full.lock().unwrap_or_else(PoisonError::into_inner);
        if full {
            *last = Some(now);
        }
        let pressed = last.is_some_and(|last| now.duration_since(last) < TRANSITION);
        self.pressed.send_if_modified(|known| std::mem::replace(known, pressed) != pressed);
    }

    /// As of the last look.
    pub fn is_felt(&self) -> bool {
        *self.pressed.borrow()
    }

    pub fn changes(&self) -> watch::Receiver<bool> {
        self.pressed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_disk_is_not_full_at_nine_tenths() {
        let is_full = |total: u64, free: u64| Disk { total, free }.is_full();
        assert!(!is_full(250 << 30, 20 << 30));
        assert!(is_full(250 << 30, 1 << 29));
        assert!(is_full(4 << 30, 1 << 28));
        assert!(!is_full(4 << 30, 1 << 29));
    }

    #[test]
    fn pressure_is_felt_for_a_while_and_told_once() {
        let pressure = Pressure::of(Path::new("/"));
        let begin = Instant::now();
        let mut changes = pressure.changes();
        let mut felt = |full: bool, seconds: u64| {
            pressure.note(full, begin + Duration::from_secs(seconds));
            let told = changes.has_changed().unwrap_or_default();
            changes.mark_unchanged();
            (pressure.is_felt(), told)
        };
        assert_eq!(felt(false, 0), (false, false));
        assert_eq!(felt(true, 1), (true, true));
        assert_eq!(felt(false, 2), (true, false));
        assert_eq!(felt(true, 100), (true, false));
        assert_eq!(felt(false, 399), (true, false));
        assert_eq!(felt(false, 400), (false, true));
        assert_eq!(felt(false, 401), (false, false));
    }
}
