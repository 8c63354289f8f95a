//! What a pod needs next. Facts come in, actions go out; nothing here waits, reads a clock or
//! touches the disk, so a whole life runs in a test in microseconds.

use std::net::IpAddr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use sampan_client::EventKind;

use super::container::{Container, State};
use super::probes::{ProbeKind, Verdict};
use super::spec::{self, PodRef, RestartPolicy};
use crate::runtime::{Exit, RunState};

/// A fact the machine is told.
#[derive(Debug)]
pub enum Input {
    /// A newer version of the pod.
    Spec(PodRef),
    /// The pod is gone from the API.
    Removed(PodRef),
    /// The node does not take it.
    Rejected {
        reason: String,
        message: String,
    },
    /// It takes too much of the node's disk.
    Evicted(Evicted),
    SetUp(Result<Vec<IpAddr>, SetUpError>),
    /// What its containers shared has ended: it is to be set up anew.
    GroundLost,
    Started {
        index: usize,
        attempt: u32,
        result: Result<Started, StartFailure>,
    },
    Changed {
        container: String,
        attempt: u32,
        state: RunState,
    },
    /// Nothing is known of this run any more.
    Lost {
        container: String,
        attempt: u32,
    },
    Probed {
        index: usize,
        attempt: u32,
        kind: ProbeKind,
        result: Result<(), String>,
    },
    /// Something a start or the set-up waited for may be there now: try at once.
    Retry,
    CleanedUp,
    Timer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evicted {
    pub message: String,
    /// For the node's sake, not for a limit of its own.
    pub by_node: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetUpError {
    /// The event's reason: FailedMount, FailedCreatePodSandBox.
    pub reason: &'static str,
    pub message: String,
}

#[derive(Clone, Debug)]
pub struct Started {
    pub image: String,
    pub image_id: String,
    /// What the runtime calls it, with the runtime's name, where that is not ours to choose.
    pub id: Option<String>,
    /// Bytes of the image.
    pub size: u64,
    /// How long it was pulled, and that with the wait for others; `None`: it was here.
    pub took: Option<(Duration, Duration)>,
    pub state: RunState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartFailure {
    ImageAbsent {
        image: String,
        message: String,
    },
    ImageNever {
        image: String,
    },
    ImageName {
        message: String,
    },
    Config(String),
    Create(String),
    /// It was made, and ended before it ran.
    Run(String),
    PostStart(String),
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    SetUp,
    Start {
        index: usize,
        attempt: u32,
    },
    Stop {
        index: usize,
        attempt: u32,
        grace: u32,
    },
    /// An ended run that nothing refers to any more.
    Remove {
        container: String,
        attempt: u32,
    },
    Probe {
        index: usize,
        attempt: u32,
        kind: ProbeKind,
    },
    Event {
        index: Option<usize>,
        kind: EventKind,
        reason: &'static str,
        message: String,
    },
    /// Gives back addresses and volumes.
    CleanUp,
    /// Removes the API's object, after the last status.
    Delete,
    /// Nothing is left to do: files go, and the worker.
    Forget,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum SetUp {
    Wanted,
    InFlight,
    Failed { retry: Timestamp, delay: SignedDuration },
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CleanUp {
    Wanted,
    InFlight,
    Done,
}

/// Why a pod ends before its containers do.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ending {
    pub(super) since: Timestamp,
    pub(super) grace: u32,
}

#[derive(Debug)]
pub struct Machine {
    pub(super) pod: PodRef,
    pub(super) containers: Vec<Container>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) start_time: Timestamp,
    /// `reason` and `message` of the whole pod, with phase Failed.
    pub(super) failed: Option<(String, String)>,
    /// Why the node ends it for others' sake.
    pub(super) disrupted: Option<String>,
    pub(super) conditions: Vec<core::PodCondition>,
    pub(super) ending: Option<Ending>,
    pub(super) set_up: SetUp,
    pub(super) clean_up: CleanUp,
    pub(super) removed: bool,
    /// The last word was said: no actions follow.
    pub(super) finished: bool,
    pub(super) delete_asked: bool,
    /// Phase was final when this agent first saw the pod.
    pub(super) was_terminal: bool,
    /// When it was last handed a fact.
    seen: Timestamp,
    pub(super) out: Vec<Action>,
}

const SET_UP_RETRY: SignedDuration = SignedDuration::from_millis(500);
const SET_UP_RETRY_MAX: SignedDuration = SignedDuration::from_secs(122);
/// How long the cause of a failed start is shown before its back-off is.
pub(super) const SHOW_FAILURE: SignedDuration = SignedDuration::from_secs(2);
/// What the kubelet gives a pod that it evicts.
const EVICTION_GRACE: u32 = 1;
const CONFIG_RETRY: SignedDuration = SignedDuration::from_secs(10);
/// What sidecars get at least, after the containers they serve.
pub(super) const SIDECAR_GRACE: u32 = 2;

impl Machine {
    /// A pod as first seen. `known` is what the runtime has of it from before.
    pub fn new(pod: PodRef, now: Timestamp, known: Vec<(String, u32, RunState)>) -> Self {
        let containers = super::status::restore(&pod, known, now);
        let status = pod.status.as_ref();
        let start_time = status.and_then(|status| status.start_time.as_ref()).map_or(now, |time| time.0);
        let was_terminal = spec::is_terminal(&pod);
        Self {
            containers,
            addresses: status
                .and_then(|status| status.pod_ips.as_ref())
                .into_iter()
                .flatten()
                .filter_map(|ip| ip.ip.parse().ok())
                .collect(),
            start_time,
            failed: None,
            disrupted: None,
            conditions: status.and_then(|status| status.conditions.clone()).unwrap_or_default(),
            ending: None,
            set_up: SetUp::Wanted,
            clean_up: CleanUp::Wanted,
            removed: false,
            finished: false,
            delete_asked: false,
            was_terminal,
            seen: now,
            out: Vec::new(),
            pod,
        }
    }

    pub fn pod(&self) -> &PodRef {
        &self.pod
    }

    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    pub fn containers(&self) -> &[Container] {
        &self.containers
    }

    /// Whether its resources count against the node.
    pub fn is_active(&self) -> bool {
        !self.was_terminal && self.failed.is_none() && self.clean_up != CleanUp::Done
    }

    /// Whether the API is to be told of its status.
    pub fn tells_status(&self) -> bool {
        !self.removed && !self.was_terminal
    }

    pub(super) fn is_set_up(&self) -> bool {
        self.set_up == SetUp::Done && self.clean_up == CleanUp::Wanted
    }

    /// Whether what its volumes show is to be kept up to date.
    pub(super) fn keeps_volumes(&self) -> bool {
        self.is_set_up() && self.is_active() && self.ending.is_none()
    }

    /// Whether it would give back anything that it does not give back anyway: one that is being deleted
    /// can be hurried.
    pub(super) fn can_be_evicted(&self) -> bool {
        let ends = self.ending.is_some() && !self.removed && !spec::is_deleted(&self.pod);
        !ends && !self.is_ended() && self.failed.is_none()
    }

    /// Whether nothing is to be started any more.
    pub fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    pub(super) fn is_ended(&self) -> bool {
        self.clean_up == CleanUp::Done || self.was_terminal
    }

    /// Takes a fact and says what is to be done.
    pub fn handle(&mut self, now: Timestamp, input: Input) -> Vec<Action> {
        self.seen = now;
        self.take(now, input);
        if !self.finished {
            self.step(now);
        }
        std::mem::take(&mut self.out)
    }

    /// When [`Input::Timer`] is wanted.
    pub fn next_timer(&self) -> Option<Timestamp> {
        if self.finished {
            return None;
        }
        let mut due: Vec<Timestamp> = Vec::new();
        if self.ending.is_none() && !self.is_ended() {
            if let SetUp::Failed { retry, .. } = self.set_up {
                due.push(retry);
            }
            due.extend(self.deadline());
        }
        for container in &self.containers {
            match &container.state {
                State::Running { stopping: None, .. } => {
                    due.extend(container.probes.iter().filter_map(super::probes::Probing::due));
                }
                State::Blocked { retry, since, reason, .. } if self.ending.is_none() => {
                    due.push(*retry);
                    if *reason == "ErrImagePull" {
                        due.push(since.saturating_add(SHOW_FAILURE).unwrap_or(*retry));
                    }
                }
                State::Exited { exit, .. } if self.ending.is_none() && !self.is_ended() => {
                    // The turn of a container that waits for another comes with an input.
                    due.extend(container.backoff.blocked_until(exit.finished_at, exit.finished_at).map(|it| it.0));
                }
                _ => {}
            }
        }
        // What was due and not done waits for an input, not for time.
        due.into_iter().filter(|due| *due > self.seen && *due < Timestamp::MAX).min()
    }

    pub(super) fn deadline(&self) -> Option<Timestamp> {
        let seconds = self.pod.spec.as_ref()?.active_deadline_seconds?;
        self.start_time.checked_add(SignedDuration::from_secs(seconds)).ok()
    }

    fn take(&mut self, now: Timestamp, input: Input) {
        match input {
            Input::Spec(pod) => self.take_spec(pod),
            Input::Removed(pod) => {
                self.pod = pod;
                self.removed = true;
            }
            Input::Rejected { reason, message } => {
                self.failed = Some((reason, message));
                self.clean_up = CleanUp::Done;
            }
            Input::Evicted(evicted) => self.take_evicted(now, evicted),
            Input::SetUp(result) => self.take_set_up(now, result),
            Input::GroundLost => {
                if self.set_up == SetUp::Done {
                    self.set_up = SetUp::Wanted;
                }
            }
            Input::Started { index, attempt, result } => self.take_started(now, index, attempt, result),
            Input::Changed { container, attempt, state } => self.take_changed(now, &container, attempt, state),
            Input::Lost { container, attempt } => {
                let exit = lost(now);
                self.take_changed(now, &container, attempt, RunState::Exited(exit));
            }
            Input::Probed { index, attempt, kind, result } => {
                self.take_probed(now, index, attempt, kind, result);
            }
            Input::Retry => {
                if let SetUp::Failed { retry, .. } = &mut self.set_up
                    && *retry != Timestamp::MAX
                {
                    *retry = now;
                }
                for container in &mut self.containers {
                    if let State::Blocked { retry, .. } = &mut container.state {
                        *retry = now;
                    }
                }
            }
            Input::CleanedUp => self.clean_up = CleanUp::Done,
            Input::Timer => {}
        }
    }

    fn take_spec(&mut self, pod: PodRef) {
        let old = std::mem::replace(&mut self.pod, pod.clone());
        let images = spec::all_containers(&old).zip(spec::all_containers(&pod));
        let changed: Vec<usize> = images
            .enumerate()
            .filter(|(_, ((old, _), (new, _)))| old.name == new.name && old.image != new.image)
            .map(|(index, _)| index)
            .collect();
        // Ephemeral containers come one by one and stay.
        let added = spec::all_containers(&pod).skip(self.containers.len());
        self.containers.extend(added.map(|(spec, role)| Container::new(&spec, role)));
        for index in changed {
            if let Some(container) = self.containers.get(index) {
                let message = format!("Container {} definition changed, will be restarted", container.name);
                self.stop(index, spec::grace_seconds(&pod), Some(message));
            }
        }
    }

    fn take_evicted(&mut self, now: Timestamp, evicted: Evicted) {
        if !self.can_be_evicted() {
            return;
        }
        self.warn(None, "Evicted", evicted.message.clone());
        let grace = EVICTION_GRACE.min(self.ending.as_ref().map_or(u32::MAX, |ending| ending.grace));
        self.ending = Some(Ending { since: now, grace });
        self.disrupted = evicted.by_node.then(|| evicted.message.clone());
        self.failed = Some(("Evicted".to_owned(), evicted.message));
    }

    fn take_set_up(&mut self, now: Timestamp, result: Result<Vec<IpAddr>, SetUpError>) {
        match result {
            Ok(addresses) => {
                self.addresses = addresses;
                self.set_up = SetUp::Done;
            }
            Err(error) => {
                let delay = match self.set_up {
                    SetUp::Failed { delay, .. } => (delay + delay).min(SET_UP_RETRY_MAX),
                    _ => SET_UP_RETRY,
                };
                self.set_up = SetUp::Failed { retry: now.saturating_add(delay).unwrap_or(now), delay };
                self.warn(None, error.reason, error.message);
            }
        }
    }

    fn take_started(&mut self, now: Timestamp, index: usize, attempt: u32, result: Result<Started, StartFailure>) {
        let pod = self.pod.clone();
        let Some(spec) = spec::container(&pod, index) else { return };
        let Some(container) = self.containers.get_mut(index) else { return };
        if !matches!(container.state, State::Starting { attempt: of } if of == attempt) {
            return;
        }
        match result {
            Ok(started) => {
                container.image_id = started.image_id;
                container.ids.truncate(1);
                container.ids.splice(0..0, started.id.map(|id| (attempt, id)));
                container.attempt = Some(attempt);
                match started.state {
                    RunState::Running { started_at } => {
                        container.run(&spec, attempt, started_at, now);
                        if let Some(exit) = container.early.take() {
                            container.end(attempt, exit);
                        }
                    }
                    RunState::Exited(exit) => container.end(attempt, exit),
                }
                self.tell(Some(index), "Pulled", pulled(&started.image, started.size, started.took));
                self.tell(Some(index), "Created", "Container created");
                self.tell(Some(index), "Started", "Container started");
                self.remove_old(index, attempt);
            }
            Err(StartFailure::Run(message)) => {
                container.attempt = Some(attempt);
                container.end(attempt, start_error(&message, now));
                self.warn(Some(index), "Failed", format!("Error: {message}"));
                self.remove_old(index, attempt);
            }
            Err(StartFailure::PostStart(message)) => {
                container.attempt = Some(attempt);
                container.end(attempt, start_error(&message, now));
                self.warn(Some(index), "FailedPostStartHook", message);
                self.remove_old(index, attempt);
            }
            Err(failure) => self.block(now, index, failure),
        }
    }

    /// A start came to nothing: says so, and when it is tried again.
    fn block(&mut self, now: Timestamp, index: usize, failure: StartFailure) {
        let mut absent = None;
        let (reason, message) = match failure {
            StartFailure::ImageAbsent { image, message } => {
                self.warn(Some(index), "Failed", format!("Failed to pull image \"{image}\": {message}"));
                absent = Some(image);
                ("ErrImagePull", message)
            }
            StartFailure::ImageNever { image } => {
                let message = format!("Container image \"{image}\" is not present with pull policy of Never");
                self.warn(Some(index), "ErrImageNeverPull", message.clone());
                ("ErrImageNeverPull", message)
            }
            StartFailure::ImageName { message } => {
                self.warn(Some(index), "InspectFailed", message.clone());
                ("InvalidImageName", message)
            }
            StartFailure::Config(message) => ("CreateContainerConfigError", message),
            StartFailure::Create(message) | StartFailure::Run(message) | StartFailure::PostStart(message) => {
                ("CreateContainerError", message)
            }
        };
        let told = match reason {
            "CreateContainerConfigError" | "CreateContainerError" => message.clone(),
            _ => reason.to_owned(),
        };
        self.warn(Some(index), "Failed", format!("Error: {told}"));
        let Some(container) = self.containers.get_mut(index) else { return };
        container.start_backoff.next(now, now);
        let retry = match container.start_backoff.blocked_until(now, now) {
            Some((until, _)) if reason != "CreateContainerConfigError" => until,
            _ => now.saturating_add(CONFIG_RETRY).unwrap_or(now),
        };
        container.state = State::Blocked { reason, message, image: absent, since: now, retry };
    }

    fn take_changed(&mut self, now: Timestamp, name: &str, attempt: u32, state: RunState) {
        let pod = self.pod.clone();
        let Some(index) = self.containers.iter().position(|container| container.name == name) else { return };
        let (Some(spec), Some(container)) = (spec::container(&pod, index), self.containers.get_mut(index)) else {
            return;
        };
        let current = match container.state {
            State::Running { attempt: of, .. } => of == attempt,
            _ => false,
        };
        match state {
            RunState::Exited(exit) if current => container.end(attempt, exit),
            // It ended before the answer to its start came.
            RunState::Exited(exit) if container.state == (State::Starting { attempt }) => {
                container.early = Some(exit);
            }
            RunState::Exited(_) => {}
            RunState::Running { started_at } => {
                // Found again after a host was thought lost.
                if matches!(&container.state, State::Exited { attempt: of, exit } if *of == attempt && exit.reason == LOST)
                {
                    container.run(&spec, attempt, started_at, now);
                }
            }
        }
    }

    fn take_probed(&mut self, now: Timestamp, index: usize, attempt: u32, kind: ProbeKind, result: Result<(), String>) {
        let pod = self.pod.clone();
        let (Some(spec), Some(container)) = (spec::container(&pod, index), self.containers.get_mut(index)) else {
            return;
        };
        if !matches!(container.state, State::Running { attempt: of, .. } if of == attempt) {
            return;
        }
        let Some(probing) = container.probes.iter_mut().find(|probing| probing.kind == kind) else { return };
        let (verdict, tell) = probing.answer(now, result.is_ok());
        match (kind, verdict) {
            (_, Verdict::Undecided) | (ProbeKind::Liveness, Verdict::Passed) => {}
            (ProbeKind::Readiness, Verdict::Passed) => container.ready = true,
            (ProbeKind::Readiness, Verdict::Failed) => container.ready = false,
            (ProbeKind::Startup, Verdict::Passed) => {
                container.started = true;
                container.ready = spec.readiness_probe.is_none();
                container.probe_started(&spec, now);
            }
            (ProbeKind::Startup | ProbeKind::Liveness, Verdict::Failed) => {
                let grace = super::probes::of(&spec, kind)
                    .and_then(|probe| probe.termination_grace_period_seconds)
                    .and_then(|grace| u32::try_from(grace).ok())
                    .unwrap_or_else(|| spec::grace_seconds(&pod));
                let words = if kind == ProbeKind::Startup { "startup" } else { "liveness" };
                let message = format!("Container {} failed {words} probe, will be restarted", spec.name);
                if let Err(problem) = &result {
                    self.unhealthy(index, kind, problem);
                }
                self.stop(index, grace, Some(message));
                return;
            }
        }
        if let (true, Err(problem)) = (tell, &result) {
            self.unhealthy(index, kind, problem);
        }
    }

    fn unhealthy(&mut self, index: usize, kind: ProbeKind, problem: &str) {
        self.warn(Some(index), "Unhealthy", format!("{} probe failed: {problem}", kind.title()));
    }

    /// Runs older than the one before this are of no use to anybody.
    fn remove_old(&mut self, index: usize, attempt: u32) {
        if let (Some(old), Some(container)) = (attempt.checked_sub(2), self.containers.get(index)) {
            self.out.push(Action::Remove { container: container.name.clone(), attempt: old });
        }
    }

    pub(super) fn tell(&mut self, index: Option<usize>, reason: &'static str, message: impl Into<String>) {
        self.out.push(Action::Event { index, kind: EventKind::Normal, reason, message: message.into() });
    }

    pub(super) fn warn(&mut self, index: Option<usize>, reason: &'static str, message: impl Into<String>) {
        self.out.push(Action::Event { index, kind: EventKind::Warning, reason, message: message.into() });
    }
}

/// How an image came, in the kubelet's words.
pub(super) fn pulled(image: &str, size: u64, took: Option<(Duration, Duration)>) -> String {
    let Some((took, waited)) = took else {
        return format!("Container image \"{image}\" already present on machine and can be accessed by the pod");
    };
    let [took, waited] = [took, waited].map(|it| Duration::from_millis(u64::try_from(it.as_millis()).unwrap_or(0)));
    format!(
        "Successfully pulled image \"{image}\" in {took:?} ({waited:?} including waiting). Image size: {size} bytes."
    )
}

/// The reason of a run that nobody saw end.
const LOST: &str = "ContainerStatusUnknown";

/// How a run ended that left no record.
pub fn lost(now: Timestamp) -> Exit {
    Exit {
        code: 137,
        reason: LOST.to_owned(),
        message: Some("The container could not be located when the pod was terminated".to_owned()),
        started_at: None,
        finished_at: now,
    }
}

fn start_error(message: &str, now: Timestamp) -> Exit {
    Exit {
        code: 128,
        reason: "StartError".to_owned(),
        message: Some(message.to_owned()),
        started_at: None,
        finished_at: now,
    }
}

/// Whether a main container that ended with `code` is started again.
pub fn restarts(policy: RestartPolicy, code: Option<i32>) -> bool {
    match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => code.is_some_and(|code| code != 0),
        RestartPolicy::Never => false,
    }
}
