//! When a container is probed and what the answers mean. No I/O: [`super::prober`] asks.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;

/// The three probes of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProbeKind {
    Startup,
    Readiness,
    Liveness,
}

impl ProbeKind {
    /// As the kubelet's events name it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// A guest needs a moment to listen. In this first while a failure is neither counted nor told,
/// and the probe is asked again soon, so that readiness does not wait for a whole period.
const EAGER: SignedDuration = SignedDuration::from_secs(1);
const FIRST_RETRY: SignedDuration = SignedDuration::from_millis(10);

/// What an answer led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not enough of them yet.
    Undecided,
    Passed,
    Failed,
}

/// One probe of one run of a container.
#[derive(Clone, Debug)]
pub struct Probing {
    pub kind: ProbeKind,
    next: Timestamp,
    first: Timestamp,
    retry: SignedDuration,
    in_flight: bool,
    passed: u32,
    failed: u32,
    period: SignedDuration,
    success_threshold: u32,
    failure_threshold: u32,
}

fn positive(value: Option<i32>, default: u32) -> u32 {
    value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
}

impl Probing {
    /// Begins to probe at `from`, after the initial delay of `probe`.
    pub fn new(kind: ProbeKind, probe: &core::Probe, from: Timestamp) -> Self {
        let delay = SignedDuration::from_secs(i64::from(probe.initial_delay_seconds.unwrap_or(0).max(0)));
        let first = from.saturating_add(delay).unwrap_or(from);
        Self {
            kind,
            next: first,
            first,
            retry: FIRST_RETRY,
            in_flight: false,
            passed: 0,
            failed: 0,
            period: SignedDuration::from_secs(i64::from(positive(probe.period_seconds, 10))),
            success_threshold: positive(probe.success_threshold, 1),
            failure_threshold: positive(probe.failure_threshold, 3),
        }
    }

    /// When it is to be asked next; `None` while an answer is out.
    pub fn due(&self) -> Option<Timestamp> {
        (!self.in_flight).then_some(self.next)
    }

    /// Whether to ask now; notes that it is being asked.
    pub fn ask(&mut self, now: Timestamp) -> bool {
        let due = !self.in_flight && self.next <= now;
        if due {
            self.in_flight = true;
        }
        due
    }

    /// Takes an answer. The second value says whether a failure is worth an event.
    pub fn answer(&mut self, now: Timestamp, success: bool) -> (Verdict, bool) {
        self.in_flight = false;
        let eager = self.kind != ProbeKind::Liveness
            && self.passed == 0
            && self.failed == 0
            && self.success_threshold == 1
            && now.duration_since(self.first) < EAGER;
        if !success && eager {
            self.next = now.saturating_add(self.retry).unwrap_or(now);
            self.retry = (self.retry + self.retry).min(EAGER);
            return (Verdict::Undecided, false);
        }
        self.next = now.saturating_add(self.period).unwrap_or(Timestamp::MAX);
        if success {
            self.failed = 0;
            self.passed = self.passed.saturating_add(1);
            let verdict = if self.passed >= self.success_threshold { Verdict::Passed } else { Verdict::Undecided };
            (verdict, false)
        } else {
            self.passed = 0;
            self.failed = self.failed.saturating_add(1);
            let verdict = if self.failed >= self.failure_threshold { Verdict::Failed } else { Verdict::Undecided };
            (verdict, true)
        }
    }
}

/// The probe of a kind in a container's spec.
pub fn of(container: &core::Container, kind: ProbeKind) -> Option<&core::Probe> {
    match kind {
        ProbeKind::Startup => container.startup_probe.as_ref(),
        ProbeKind::Readiness => container.readiness_probe.as_ref(),
        ProbeKind::Liveness => container.liveness_probe.as_ref(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(milli: i64) -> Timestamp {
        Timestamp::from_millisecond(1_700_000_000_000 + milli).unwrap()
    }

    #[test]
    fn kubernetes_defaults() {
        let mut probing = Probing::new(ProbeKind::Liveness, &core::Probe::default(), at(0));
        let mut now = 0;
        for expected in [Verdict::Undecided, Verdict::Undecided, Verdict::Failed] {
            assert_eq!(probing.due(), Some(at(now)));
            assert!(probing.ask(at(now)));
            assert!(!probing.ask(at(now)));
            assert_eq!(probing.answer(at(now), false), (expected, true));
            now += 10_000;
        }
    }

    #[test]
    fn eager_at_first_then_by_the_period() {
        let probe = core::Probe { period_seconds: Some(5), failure_threshold: Some(1), ..Default::default() };
        let mut probing = Probing::new(ProbeKind::Readiness, &probe, at(0));
        assert!(probing.ask(at(0)));
        assert_eq!(probing.answer(at(1), false), (Verdict::Undecided, false));
        assert_eq!(probing.due(), Some(at(11)));
        assert!(probing.ask(at(11)));
        assert_eq!(probing.answer(at(11), true), (Verdict::Passed, false));
        assert_eq!(probing.due(), Some(at(5011)));
        assert!(probing.ask(at(5011)));
        assert_eq!(probing.answer(at(5011), false), (Verdict::Failed, true));
    }

    #[test]
    fn success_threshold() {
        let probe = core::Probe { success_threshold: Some(2), ..Default::default() };
        let mut probing = Probing::new(ProbeKind::Readiness, &probe, at(0));
        assert_eq!(probing.answer(at(0), true).0, Verdict::Undecided);
        assert_eq!(probing.answer(at(0), false).0, Verdict::Undecided);
        assert_eq!(probing.answer(at(0), true).0, Verdict::Undecided);
        assert_eq!(probing.answer(at(0), true).0, Verdict::Passed);
    }
}
