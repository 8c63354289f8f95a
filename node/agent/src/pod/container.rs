//! One container of a pod, as the state machine knows it.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;

use super::backoff::Backoff;
use super::probes::{self, ProbeKind, Probing};
use crate::runtime::Exit;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before what follows it.
    Init,
    /// An init container with restartPolicy Always: starts in its turn, runs as long as the pod.
    Sidecar,
    Main,
    /// Added to a running pod by hand, for a look at it: never started again, and nothing waits for it.
    Ephemeral,
}

#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Its turn has not come.
    New,
    /// Could not be started; `retry` is when it is tried again.
    Blocked {
        reason: &'static str,
        message: String,
        /// The one that did not come: the container's own, or a volume's.
        image: Option<String>,
        since: Timestamp,
        retry: Timestamp,
    },
    Starting {
        attempt: u32,
    },
    Running {
        attempt: u32,
        started_at: Timestamp,
        stopping: Option<u32>,
    },
    Exited {
        attempt: u32,
        exit: Exit,
    },
}

/// A run that ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    pub attempt: u32,
    pub exit: Exit,
}

#[derive(Clone, Debug)]
pub struct Container {
    pub name: String,
    pub role: Role,
    pub state: State,
    /// The last attempt that was made, if any was.
    pub attempt: Option<u32>,
    /// The run before the one that `state` tells of.
    pub last: Option<Ended>,
    pub image_id: String,
    /// What its runtime calls its latest runs, where that is not ours to choose.
    pub ids: Vec<(u32, String)>,
    pub ready: bool,
    pub started: bool,
    pub probes: Vec<Probing>,
    pub backoff: Backoff,
    /// Of tries that came to no run.
    pub start_backoff: Backoff,
    /// The run being started has ended already: told before the answer to its start came.
    pub early: Option<Exit>,
    /// The exit for which the back-off was told in an event.
    pub told_backoff: Option<u32>,
}

impl Container {
    pub fn new(spec: &core::Container, role: Role) -> Self {
        Self {
            name: spec.name.clone(),
            role,
            state: State::New,
            attempt: None,
            last: None,
            image_id: String::new(),
            ids: Vec::new(),
            ready: false,
            started: false,
            probes: Vec::new(),
            backoff: Backoff::default(),
            start_backoff: Backoff::default(),
            early: None,
            told_backoff: None,
        }
    }

    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// Whether something of it may be alive in the runtime.
    pub fn is_live(&self) -> bool {
        matches!(self.state, State::Running { .. } | State::Starting { .. })
    }

    /// How its last run ended, if it is not running now.
    pub fn exit(&self) -> Option<&Exit> {
        match &self.state {
            State::Exited { exit, .. } => Some(exit),
            State::Blocked { .. } | State::Starting { .. } => self.last.as_ref().map(|ended| &ended.exit),
            State::New | State::Running { .. } => None,
        }
    }

    /// The number for the attempt that comes next.
    pub fn next_attempt(&self) -> u32 {
        self.attempt.map_or(0, |attempt| attempt.saturating_add(1))
    }

    /// Enters `Running` and begins to probe.
    pub fn run(&mut self, spec: &core::Container, attempt: u32, started_at: Timestamp, now: Timestamp) {
        self.state = State::Running { attempt, started_at, stopping: None };
        self.start_backoff.reset();
        self.started = spec.startup_probe.is_none();
        self.ready = self.started && spec.readiness_probe.is_none();
        self.probes.clear();
        if let Some(probe) = &spec.startup_probe {
            self.probes.push(Probing::new(ProbeKind::Startup, probe, now));
        } else {
            self.probe_started(spec, now);
        }
    }

    /// Readiness and liveness count from when the container has started.
    pub fn probe_started(&mut self, spec: &core::Container, now: Timestamp) {
        self.probes.clear();
        for kind in [ProbeKind::Readiness, ProbeKind::Liveness] {
            if let Some(probe) = probes::of(spec, kind) {
                self.probes.push(Probing::new(kind, probe, now));
            }
        }
    }

    /// Enters `Exited`.
    pub fn end(&mut self, attempt: u32, exit: Exit) {
        self.state = State::Exited { attempt, exit };
        self.attempt = Some(attempt);
        self.ready = false;
        self.started = false;
        self.probes.clear();
    }
}
