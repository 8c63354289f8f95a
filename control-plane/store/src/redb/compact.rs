//! Which history to forget, and forgetting it a chunk at a time.

use std::collections::VecDeque;
use std::time::Duration;

use redb::{ReadableTable, Table};

use super::Options;
use super::errors::Faulty;
use super::read::decode;
use super::tables::State;
use crate::{Change, Revision};

/// When which revision was reached: what tells the age and size of history.
#[derive(Debug)]
pub(super) struct History {
    marks: VecDeque<Mark>,
    /// Bytes logged since the store was opened.
    written: u64,
    /// How long history is kept, and how much of it.
    keep: Duration,
    keep_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    at: Duration,
    revision: Revision,
    written: u64,
}

/// History is cut into about this many pieces.
const PIECES: u32 = 32;

impl History {
    /// History found in the file counts as written now: how old it is nobody knows.
    pub(super) fn new(options: &Options, now: Duration, revision: Revision) -> Self {
        Self {
            marks: VecDeque::from([Mark { at: now, revision, written: 0 }]),
            written: 0,
            keep: options.keep_history,
            keep_bytes: options.keep_bytes,
        }
    }

    /// How long until it is worth looking again.
    pub(super) fn tick(&self) -> Duration {
        (self.keep / PIECES).max(Duration::from_millis(10))
    }

    /// Notes that the store is at `revision` now, having logged `bytes` more.
    pub(super) fn note(&mut self, now: Duration, revision: Revision, bytes: u64) {
        self.written += bytes;
        let due = self.marks.back().is_none_or(|last| {
            revision > last.revision
                && (now >= last.at + self.tick() || self.written - last.written >= self.keep_bytes / u64::from(PIECES))
        });
        if due {
            self.marks.push_back(Mark { at: now, revision, written: self.written });
        }
    }

    /// The revision before which history may go now, if it has come to that.
    pub(super) fn forget(&mut self, now: Duration, state: &State) -> Option<Revision> {
        let too_large = state.history > self.keep_bytes;
        let mut target = None;
        while let Some(mark) = self.marks.front() {
            let old = now >= mark.at + self.keep;
            let large = too_large && self.written - mark.written > self.keep_bytes / 2;
            // A store opened with too much history: what it found is over the limit by itself.
            let found = too_large && mark.written == 0;
            if !(old || large || found) {
                break;
            }
            target = Some(mark.revision);
            self.marks.pop_front();
        }
        target
    }
}

/// Drops up to `limit` revisions of history, towards `target`: of every key only what it stood at
/// by then stays. The new state says how far it got.
pub(super) fn chunk(
    log: &mut Table<'_, u64, &'static [u8]>,
    state: State,
    target: Revision,
    limit: usize,
) -> Faulty<State> {
    let mut superseded = Vec::new();
    let mut next = state;
    if target <= state.compacted {
        return Ok(state);
    }
    // Up to the target even where the log has nothing there: revision 1 is of no write.
    next.compacted = target;
    for (seen, item) in log.range(state.compacted + 1..=target)?.enumerate() {
        let (revision, bytes) = item?;
        let revision = revision.value();
        let record = decode(revision, bytes.value())?;
        if record.previous != 0 {
            superseded.push(record.previous);
        }
        if record.change == Change::Deleted {
            superseded.push(revision);
        }
        next.history = next.history.saturating_sub(bytes.value().len() as u64);
        if seen + 1 == limit {
            next.compacted = revision;
            break;
        }
    }
    for revision in superseded {
        log.remove(revision)?;
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn history(keep_bytes: u64) -> History {
        let keep_history = Duration::from_secs(320);
        History::new(&Options { keep_history, keep_bytes, ..Options::default() }, Duration::ZERO, 1)
    }

    fn state(revision: Revision, history: u64) -> State {
        State { revision, compacted: 0, history }
    }

    #[test]
    fn history_goes_once_it_is_old_enough() {
        let mut history = history(1 << 30);
        let at = Duration::from_secs;
        for second in 1..=400 {
            history.note(at(second), 1 + second, 10);
            let forgotten = history.forget(at(second), &state(1 + second, 10 * second));
            if second < 320 {
                assert_eq!(forgotten, None, "{second}");
            }
            if let Some(revision) = forgotten {
                // Written at second revision - 1.
                assert!(second - (revision - 1) >= 320, "{second} {revision}");
                assert!(second - (revision - 1) < 340, "{second} {revision}");
            }
        }
    }

    #[test]
    fn the_oldest_half_goes_when_history_is_too_large() {
        let mut history = history(1000);
        let mut current = state(1, 0);
        let mut largest = 0;
        for _ in 0..1000 {
            current.revision += 1;
            current.history += 10;
            history.note(Duration::ZERO, current.revision, 10);
            if let Some(target) = history.forget(Duration::ZERO, &current) {
                current.history = (current.revision - target) * 10;
                assert!((500..=550).contains(&current.history), "{}", current.history);
            }
            largest = largest.max(current.history);
        }
        assert!(largest <= 1010, "{largest}");
    }

    #[test]
    fn a_store_opened_with_too_much_history_drops_it() {
        let mut history = history(1000);
        assert_eq!(history.forget(Duration::ZERO, &state(1, 1001)), Some(1));
    }
}
