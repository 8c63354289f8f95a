//! Back-off as the kubelet keeps it: the first restart is at once, then 10 s doubling to 5 min,
//! forgotten after ten quiet minutes.

use jiff::{SignedDuration, Timestamp};

const INITIAL: SignedDuration = SignedDuration::from_secs(10);
const MAXIMUM: SignedDuration = SignedDuration::from_secs(300);

/// The back-off of one thing that is tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    entry: Option<(SignedDuration, Timestamp)>,
}

impl Backoff {
    /// How long to wait after the failure at `since` is counted from there: `None` when the next
    /// try may be made now.
    pub fn blocked_until(&self, since: Timestamp, now: Timestamp) -> Option<(Timestamp, SignedDuration)> {
        let (delay, updated) = self.entry?;
        if expired(since, updated) {
            return None;
        }
        let until = since.saturating_add(delay).unwrap_or(Timestamp::MAX);
        (now < until).then_some((until, delay))
    }

    /// Notes that the next try is made now, after a failure at `since`.
    pub fn next(&mut self, since: Timestamp, now: Timestamp) {
        let delay = match self.entry {
            Some((delay, updated)) if !expired(since, updated) => {
                delay.checked_mul(2).map_or(MAXIMUM, |doubled| doubled.min(MAXIMUM))
            }
            _ => INITIAL,
        };
        self.entry = Some((delay, now));
    }

    pub fn reset(&mut self) {
        self.entry = None;
    }
}

fn expired(since: Timestamp, updated: Timestamp) -> bool {
    since.duration_since(updated) > SignedDuration::from_secs(2 * MAXIMUM.as_secs())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    #[test]
    fn doubles_to_five_minutes() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.blocked_until(at(0), at(0)), None);
        let mut now = 0;
        let mut seen = Vec::new();
        for _ in 0..8 {
            backoff.next(at(now), at(now));
            // Ends again at once.
            let (until, delay) = backoff.blocked_until(at(now), at(now)).unwrap();
            seen.push(delay.as_secs());
            now = until.as_second() - 1_700_000_000;
            assert_eq!(backoff.blocked_until(at(now - delay.as_secs()), at(now)), None);
        }
        assert_eq!(seen, [10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn forgets_after_ten_quiet_minutes() {
        let mut backoff = Backoff::default();
        backoff.next(at(0), at(0));
        backoff.next(at(10), at(20));
        // Ran for eleven minutes.
        assert_eq!(backoff.blocked_until(at(700), at(700)), None);
        backoff.next(at(700), at(700));
        assert_eq!(backoff.blocked_until(at(701), at(701)).unwrap().1.as_secs(), 10);
    }
}
