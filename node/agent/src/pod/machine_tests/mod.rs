//! Whole lives of pods, with a clock that the test winds and a runtime that does as it is told.
#![allow(clippy::unwrap_used)]

mod adopting;
mod ephemeral;
mod lives;
mod probing;

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::machine::{Action, Evicted, Input, Machine, SetUpError, StartFailure, Started};
use super::probes::ProbeKind;
use super::status::time;
use crate::runtime::{Exit, RunState};

const BEGIN: i64 = 1_700_000_000;

/// A machine with everything around it simulated.
struct World {
    machine: Machine,
    now: Timestamp,
    /// What a start comes to, by container; started if not named.
    failures: Vec<(String, StartFailure)>,
    set_up: Result<(), SetUpError>,
    /// Probes answer this.
    healthy: bool,
    /// Stops are answered at once with this code.
    stop_code: Option<i32>,
    events: Vec<(String, String)>,
    starts: Vec<(String, u32, i64)>,
    stops: Vec<(String, u32, u32)>,
    probes: Vec<(ProbeKind, i64)>,
    deleted: bool,
    forgotten: bool,
}

fn pod(spec: Value) -> core::Pod {
    serde_json::from_value(json!({
        "metadata": { "name": "web", "namespace": "shop", "uid": "u1", "generation": 1 },
        "spec": spec,
    }))
    .unwrap()
}

fn one(policy: &str) -> core::Pod {
    pod(json!({ "restartPolicy": policy, "containers": [{ "name": "app", "image": "localhost/app:v1" }] }))
}

fn probed(probes: Value) -> core::Pod {
    let mut container = json!({ "name": "app" });
    for (name, probe) in probes.as_object().unwrap() {
        container[name] = probe.clone();
    }
    pod(json!({ "containers": [container] }))
}

impl World {
    fn new(pod: core::Pod) -> Self {
        Self::adopting(pod, Vec::new())
    }

    fn adopting(pod: core::Pod, known: Vec<(String, u32, RunState)>) -> Self {
        let now = Timestamp::from_second(BEGIN).unwrap();
        Self {
            machine: Machine::new(Arc::new(pod), now, known),
            now,
            failures: Vec::new(),
            set_up: Ok(()),
            healthy: true,
            stop_code: Some(137),
            events: Vec::new(),
            starts: Vec::new(),
            stops: Vec::new(),
            probes: Vec::new(),
            deleted: false,
            forgotten: false,
        }
    }

    fn second(&self) -> i64 {
        self.now.as_second() - BEGIN
    }

    fn begin(mut self) -> Self {
        self.input(Input::Timer);
        self
    }

    fn input(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            for action in self.machine.handle(self.now, input) {
                inputs.extend(self.act(action));
            }
        }
    }

    fn name(&self, index: usize) -> String {
        self.machine.containers()[index].name.clone()
    }

    fn act(&mut self, action: Action) -> Option<Input> {
        match action {
            Action::SetUp => Some(Input::SetUp(self.set_up.clone().map(|()| vec!["10.0.0.7".parse().unwrap()]))),
            Action::Start { index, attempt } => {
                let name = self.name(index);
                self.starts.push((name.clone(), attempt, self.second()));
                let failure = self.failures.iter().find(|(of, _)| *of == name).map(|(_, failure)| failure.clone());
                let started = Started {
                    image: "localhost/app:v1".into(),
                    image_id: "localhost/app@sha256:0".into(),
                    id: None,
                    size: 1,
                    took: None,
                    state: RunState::Running { started_at: self.now },
                };
                Some(Input::Started { index, attempt, result: failure.map_or(Ok(started), Err) })
            }
            Action::Stop { index, attempt, grace } => {
                let container = self.name(index);
                self.stops.push((container.clone(), attempt, grace));
                let state = RunState::Exited(self.exit(self.stop_code?));
                Some(Input::Changed { container, attempt, state })
            }
            Action::Probe { index, attempt, kind } => {
                self.probes.push((kind, self.second()));
                let result = if self.healthy { Ok(()) } else { Err("HTTP probe failed with statuscode: 500".into()) };
                Some(Input::Probed { index, attempt, kind, result })
            }
            Action::Event { reason, message, .. } => {
                self.events.push((reason.to_owned(), message));
                None
            }
            Action::CleanUp => Some(Input::CleanedUp),
            Action::Delete => {
                self.deleted = true;
                None
            }
            Action::Forget => {
                self.forgotten = true;
                None
            }
            Action::Remove { .. } => None,
        }
    }

    fn exit(&self, code: i32) -> Exit {
        Exit {
            code,
            reason: if code == 0 { "Completed" } else { "Error" }.into(),
            message: None,
            started_at: Some(self.now),
            finished_at: self.now,
        }
    }

    fn ends(&mut self, container: &str, code: i32) {
        let attempt = self.machine.containers().iter().find(|it| it.name == container).unwrap().attempt.unwrap();
        let state = RunState::Exited(self.exit(code));
        self.input(Input::Changed { container: container.into(), attempt, state });
    }

    /// Winds the clock, stopping at each timer.
    fn wait(&mut self, seconds: i64) {
        let until = self.now + SignedDuration::from_secs(seconds);
        let mut woken = 0;
        while let Some(at) = self.machine.next_timer()
            && at <= until
        {
            assert!(at > self.now, "a timer in the past would spin");
            woken += 1;
            assert!(woken < 10_000, "too many timers");
            self.now = at;
            self.input(Input::Timer);
        }
        self.now = until;
    }

    fn status(&mut self) -> core::PodStatus {
        self.machine.status(self.now, &["192.0.2.1".parse().unwrap()])
    }

    fn phase(&mut self) -> String {
        self.status().phase.unwrap()
    }

    fn condition(&mut self, kind: &str) -> (String, String, String) {
        let conditions = self.status().conditions.unwrap();
        let found = conditions.into_iter().find(|it| it.type_ == kind).unwrap();
        (found.status, found.reason.unwrap_or_default(), found.message.unwrap_or_default())
    }

    fn container(&mut self, name: &str) -> core::ContainerStatus {
        let status = self.status();
        let all = status.init_container_statuses.into_iter().chain(status.container_statuses).flatten();
        all.into_iter().find(|it| it.name == name).unwrap()
    }

    fn waiting(&mut self, name: &str) -> (String, String) {
        let waiting = self.container(name).state.unwrap().waiting.unwrap();
        (waiting.reason.unwrap(), waiting.message.unwrap_or_default())
    }

    fn delete(&mut self, grace: i64) {
        let mut pod = core::Pod::clone(self.machine.pod());
        pod.metadata.deletion_timestamp = Some(time(self.now));
        pod.metadata.deletion_grace_period_seconds = Some(grace);
        self.input(Input::Spec(Arc::new(pod)));
    }

    fn reasons(&self) -> Vec<&str> {
        self.events.iter().map(|(reason, _)| reason.as_str()).collect()
    }
}
