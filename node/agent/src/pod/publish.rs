//! When a pod's status is written: at once where others wait for it, else together with what comes
//! a moment later; one write at a time.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;

use super::work::agrees;

/// How long a status that tells of nothing new to others may wait for one that does.
const SETTLE: SignedDuration = SignedDuration::from_secs(1);
const RETRY: SignedDuration = SignedDuration::from_secs(1);

#[derive(Default)]
pub(super) struct Publishing {
    told: Option<core::PodStatus>,
    writing: bool,
    /// A status differs from what was told since then.
    flush_at: Option<Timestamp>,
    /// The last write was refused, or did not arrive: however urgent, the next waits until then.
    retry_at: Option<Timestamp>,
    /// The version that our last write made.
    version: u64,
}

impl Publishing {
    /// What was last written, or is being.
    pub(super) fn told(&self) -> Option<&core::PodStatus> {
        self.told.as_ref()
    }

    /// Takes the status as it is now; gives it back when it is to be written.
    pub(super) fn offer(&mut self, now: Timestamp, status: core::PodStatus, at_once: bool) -> Option<core::PodStatus> {
        if self.writing || self.retry_at.is_some_and(|at| at > now) {
            return None;
        }
        if self.told.as_ref() == Some(&status) {
            self.flush_at = None;
            return None;
        }
        if !at_once && self.flush_at.is_none_or(|at| at > now) {
            self.flush_at = self.flush_at.or(now.checked_add(SETTLE).ok());
            return None;
        }
        self.flush_at = None;
        self.retry_at = None;
        self.writing = true;
        self.told = Some(status.clone());
        Some(status)
    }

    /// Nobody is told anything any more: nothing is due.
    pub(super) fn fall_silent(&mut self) {
        self.flush_at = None;
    }

    /// A write ended, with the version that it made.
    pub(super) fn written(&mut self, now: Timestamp, result: Result<Option<u64>, ()>) {
        self.writing = false;
        match result {
            Ok(version) => self.version = version.unwrap_or(self.version),
            Err(()) => {
                self.told = None;
                self.flush_at = now.checked_add(RETRY).ok();
                self.retry_at = self.flush_at;
            }
        }
    }

    /// The API shows this at a version: if somebody else wrote our part, it is said again.
    pub(super) fn seen(&mut self, version: u64, status: Option<&core::PodStatus>) {
        let differs = self.told.as_ref().is_some_and(|told| !agrees(told, status));
        if !self.writing && version > self.version && differs {
            self.told = None;
        }
    }

    /// Whether the last word has been said.
    pub(super) fn is_settled(&self) -> bool {
        !self.writing && self.flush_at.is_none()
    }

    /// When [`Self::offer`] is wanted.
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.flush_at.filter(|_| !self.writing)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_millisecond(milliseconds).unwrap()
    }

    fn status(phase: &str) -> core::PodStatus {
        core::PodStatus { phase: Some(phase.to_owned()), ..Default::default() }
    }

    #[test]
    fn small_news_waits_for_more() {
        let mut publishing = Publishing::default();
        assert_eq!(publishing.offer(at(0), status("a"), false), None);
        assert_eq!(publishing.due(), Some(at(1000)));
        assert_eq!(publishing.offer(at(50), status("b"), false), None);
        assert_eq!(publishing.due(), Some(at(1000)));
        assert_eq!(publishing.offer(at(1000), status("c"), false), Some(status("c")));
        // One at a time.
        assert_eq!(publishing.offer(at(1001), status("d"), true), None);
        assert_eq!(publishing.due(), None);
        publishing.written(at(1010), Ok(Some(7)));
        assert_eq!(publishing.offer(at(1010), status("c"), true), None);
        assert!(publishing.is_settled());
        assert_eq!(publishing.offer(at(1011), status("d"), true), Some(status("d")));
    }

    #[test]
    fn a_failed_write_is_tried_again() {
        let mut publishing = Publishing::default();
        publishing.offer(at(0), status("a"), true).unwrap();
        publishing.written(at(5), Err(()));
        assert_eq!(publishing.due(), Some(at(1005)));
        assert!(!publishing.is_settled());
        // Not even what is urgent: a status that is refused would be written without rest.
        assert_eq!(publishing.offer(at(6), status("b"), true), None);
        assert_eq!(publishing.due(), Some(at(1005)));
        assert_eq!(publishing.offer(at(1005), status("a"), false), Some(status("a")));
    }

    /// A pod forced out of the API while a status waited: what is due for ever would be a loop.
    #[test]
    fn nothing_is_due_in_silence() {
        let mut publishing = Publishing::default();
        publishing.offer(at(0), status("a"), false);
        publishing.fall_silent();
        assert_eq!(publishing.due(), None);
        assert!(publishing.is_settled());
    }

    #[test]
    fn what_others_overwrote_is_said_again() {
        let mut publishing = Publishing::default();
        publishing.offer(at(0), status("Running"), true).unwrap();
        publishing.written(at(1), Ok(Some(5)));
        publishing.seen(5, Some(&status("Pending")));
        assert!(publishing.told().is_some(), "an echo from before our write");
        publishing.seen(6, Some(&status("Pending")));
        assert!(publishing.told().is_none());
    }
}
