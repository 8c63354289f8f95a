//! A pod's status in the kubelet's words, and what a new agent learns from an old status.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use sha2::{Digest, Sha256};

use super::container::{Container, Ended, Role, State};
use super::machine::{self, Machine};
use super::resources;
use super::spec::{self, RestartPolicy};
use crate::runtime::{Exit, RunState};

/// Kubernetes' times have whole seconds.
pub fn time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// What the API calls a run: opaque, and the same for the same run.
fn container_id(pod_uid: &str, container: &Container, attempt: u32) -> String {
    if let Some((_, id)) = container.ids.iter().find(|(of, _)| *of == attempt) {
        return id.clone();
    }
    let digest = Sha256::digest(format!("{pod_uid}/{}/{attempt}", container.name));
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("wasm://{hex}")
}

impl Machine {
    /// The status as of `now`. Conditions that did not change keep their time.
    pub fn status(&mut self, now: Timestamp, host: &[IpAddr]) -> core::PodStatus {
        let pod = self.pod.clone();
        let generation = pod.metadata.generation;
        if let (Some((reason, message)), true) = (&self.failed, self.containers.iter().all(|it| it.attempt.is_none())) {
            // One that was taken ends for a reason first.
            let rejected = self.is_ended() && self.ending.is_none();
            return core::PodStatus {
                phase: Some("Failed".to_owned()),
                reason: Some(reason.clone()),
                message: Some(if rejected { format!("Pod was rejected: {message}") } else { message.clone() }),
                qos_class: Some(resources::qos_class(&pod).to_owned()),
                start_time: Some(time(self.start_time)),
                observed_generation: generation,
                ..Default::default()
            };
        }
        let statuses: Vec<(Role, core::ContainerStatus)> = self
            .containers
            .iter()
            .zip(spec::all_containers(&pod))
            .map(|(container, (spec, _))| (container.role, self.container_status(container, &spec, now)))
            .collect();
        let phase = if self.failed.is_some() { "Failed" } else { self.phase() };
        let conditions = self.conditions(phase, &statuses, now);
        self.conditions.clone_from(&conditions);
        let list = |roles: &[Role]| -> Option<Vec<core::ContainerStatus>> {
            let of = statuses.iter().filter(|(role, _)| roles.contains(role)).map(|(_, status)| status.clone());
            Some(of.collect()).filter(|list: &Vec<_>| !list.is_empty())
        };
        core::PodStatus {
            phase: Some(phase.to_owned()),
            reason: self.failed.as_ref().map(|(reason, _)| reason.clone()),
            message: self.failed.as_ref().map(|(_, message)| message.clone()),
            conditions: Some(conditions),
            container_statuses: list(&[Role::Main]),
            init_container_statuses: list(&[Role::Init, Role::Sidecar]),
            ephemeral_container_statuses: list(&[Role::Ephemeral]),
            host_ip: host.first().map(ToString::to_string),
            host_ips: Some(host.iter().map(|ip| core::HostIP { ip: ip.to_string() }).collect()),
            pod_ip: self.addresses.first().map(ToString::to_string),
            pod_ips: (!self.addresses.is_empty())
                .then(|| self.addresses.iter().map(|ip| core::PodIP { ip: ip.to_string() }).collect()),
            start_time: Some(time(self.start_time)),
            qos_class: Some(resources::qos_class(&pod).to_owned()),
            observed_generation: generation,
            ..Default::default()
        }
    }

    /// The kubelet's reading of a pod's containers.
    fn phase(&self) -> &'static str {
        let policy = spec::restart_policy(&self.pod);
        let over = self.is_ended();
        let mut initializing = false;
        let begun = self.containers.iter().any(|it| it.role == Role::Main && it.attempt.is_some());
        for container in self.containers.iter().filter(|it| matches!(it.role, Role::Init | Role::Sidecar)) {
            match (container.role, container.exit()) {
                (Role::Init, Some(exit)) if exit.code != 0 && policy == RestartPolicy::Never => return "Failed",
                (Role::Init, _) => {
                    initializing |= !matches!(&container.state, State::Exited { exit, .. } if exit.code == 0);
                }
                _ => initializing |= container.attempt.is_none() || (container.is_live() && !container.started),
            }
        }
        if initializing && !begun {
            return if over { "Failed" } else { "Pending" };
        }
        let mains = || self.containers.iter().filter(|it| it.role == Role::Main);
        let running = mains().filter(|it| it.is_running()).count();
        let stopped = mains().filter(|it| it.exit().is_some()).count();
        let waiting = mains().count() - running - stopped;
        let succeeded = mains().filter(|it| matches!(&it.state, State::Exited { exit, .. } if exit.code == 0)).count();
        if waiting > 0 {
            if over { "Failed" } else { "Pending" }
        } else if running > 0 {
            "Running"
        } else if over {
            if stopped == succeeded { "Succeeded" } else { "Failed" }
        } else if policy == RestartPolicy::Always {
            "Running"
        } else if stopped == succeeded {
            "Succeeded"
        } else if policy == RestartPolicy::Never {
            "Failed"
        } else {
            "Running"
        }
    }

    fn container_status(&self, container: &Container, spec: &core::Container, now: Timestamp) -> core::ContainerStatus {
        let pod = &self.pod;
        let uid = spec::uid(pod);
        let policy = spec::restart_policy(pod);
        let terminated = |ended: u32, exit: &Exit| core::ContainerState {
            terminated: Some(core::ContainerStateTerminated {
                container_id: Some(container_id(uid, container, ended)),
                exit_code: exit.code,
                finished_at: Some(time(exit.finished_at)),
                message: exit.message.clone(),
                reason: Some(exit.reason.clone()),
                signal: None,
                started_at: Some(time(exit.started_at.unwrap_or(exit.finished_at))),
            }),
            ..Default::default()
        };
        let waiting = |reason: &str, message: Option<String>| core::ContainerState {
            waiting: Some(core::ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
            ..Default::default()
        };
        let last = container.last.as_ref().map(|last| terminated(last.attempt, &last.exit));
        let has_inits = self.containers.iter().any(|it| matches!(it.role, Role::Init | Role::Sidecar));
        let first = || waiting(if has_inits { "PodInitializing" } else { "ContainerCreating" }, None);
        let (state, last_state) = match &container.state {
            State::New => (first(), last),
            State::Starting { .. } => match last {
                Some(last) => (last, None),
                None => (first(), None),
            },
            State::Blocked { reason, message, .. } => (waiting(reason, Some(message.clone())), last),
            State::Running { started_at, .. } => (
                core::ContainerState {
                    running: Some(core::ContainerStateRunning { started_at: Some(time(*started_at)) }),
                    ..Default::default()
                },
                last,
            ),
            State::Exited { attempt, exit } => {
                let again = match container.role {
                    Role::Main => machine::restarts(policy, Some(exit.code)),
                    Role::Init => exit.code != 0 && policy != RestartPolicy::Never,
                    Role::Sidecar => true,
                    Role::Ephemeral => false,
                };
                let blocked = container.backoff.blocked_until(exit.finished_at, now);
                match blocked {
                    Some((_, delay)) if again && self.ending.is_none() => {
                        let message = format!(
                            "back-off {} restarting failed container={} pod={}",
                            go_duration(delay.as_secs()),
                            container.name,
                            spec::title(pod)
                        );
                        (waiting("CrashLoopBackOff", Some(message)), Some(terminated(*attempt, exit)))
                    }
                    _ => (terminated(*attempt, exit), last),
                }
            }
        };
        let done =
            container.role == Role::Init && matches!(&container.state, State::Exited { exit, .. } if exit.code == 0);
        core::ContainerStatus {
            name: container.name.clone(),
            image: spec.image.clone().unwrap_or_default(),
            image_id: container.image_id.clone(),
            container_id: container.attempt.map(|attempt| container_id(uid, container, attempt)),
            ready: match container.role {
                Role::Init => done,
                Role::Sidecar | Role::Main => container.ready,
                Role::Ephemeral => false,
            },
            started: (container.role != Role::Ephemeral).then_some(container.started),
            restart_count: container.attempt.and_then(|attempt| i32::try_from(attempt).ok()).unwrap_or(0),
            state: Some(state),
            last_state: Some(last_state.unwrap_or_default()),
            resources: container.attempt.and(spec.resources.clone()),
            allocated_resources: container
                .attempt
                .and(spec.resources.as_ref())
                .and_then(|resources| resources.requests.clone()),
            volume_mounts: spec.volume_mounts.as_ref().map(|mounts| {
                mounts
                    .iter()
                    .map(|mount| core::VolumeMountStatus {
                        mount_path: mount.mount_path.clone(),
                        name: mount.name.clone(),
                        read_only: mount.read_only,
                        recursive_read_only: mount
                            .read_only
                            .filter(|read_only| *read_only)
                            .map(|_| "Disabled".to_owned()),
                        ..Default::default()
                    })
                    .collect()
            }),
            ..Default::default()
        }
    }

    fn conditions(
        &self,
        phase: &str,
        statuses: &[(Role, core::ContainerStatus)],
        now: Timestamp,
    ) -> Vec<core::PodCondition> {
        let begun = self.containers.iter().any(|it| it.role == Role::Main && it.attempt.is_some());
        let names = |pick: &dyn Fn(&Container, &core::ContainerStatus) -> bool| -> Vec<&str> {
            self.containers
                .iter()
                .zip(statuses)
                .filter(|(container, (_, status))| pick(container, status))
                .map(|(container, _)| container.name.as_str())
                .collect()
        };
        let incomplete = names(&|container, status| match container.role {
            Role::Main | Role::Ephemeral => false,
            Role::Init => !status.ready,
            Role::Sidecar => status.started != Some(true),
        });
        let unready = names(&|container, status| matches!(container.role, Role::Sidecar | Role::Main) && !status.ready);
        let initialized = if phase == "Succeeded" {
            Wanted::yes().because("PodCompleted", None)
        } else if incomplete.is_empty() || begun {
            Wanted::yes()
        } else {
            let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
            Wanted::no("ContainersNotInitialized", Some(message))
        };
        let containers_ready = match phase {
            "Succeeded" => Wanted::no("PodCompleted", None),
            "Failed" => Wanted::no("PodFailed", None),
            _ if unready.is_empty() => Wanted::yes(),
            _ => {
                let message = format!("containers with unready status: [{}]", unready.join(" "));
                Wanted::no("ContainersNotReady", Some(message))
            }
        };
        let ready = if containers_ready.status { self.gates() } else { containers_ready.clone() };
        let sandbox =
            if self.is_set_up() { Wanted::yes() } else { Wanted { status: false, reason: None, message: None } };
        let disrupted = self.disrupted.clone();
        let disrupted =
            disrupted.map(|message| ("DisruptionTarget", Wanted::yes().because("TerminationByKubelet", Some(message))));
        [
            ("PodReadyToStartContainers", sandbox),
            ("Initialized", initialized),
            ("Ready", ready),
            ("ContainersReady", containers_ready),
            ("PodScheduled", Wanted::yes()),
        ]
        .into_iter()
        .chain(disrupted)
        .map(|(kind, wanted)| self.condition(kind, wanted, now))
        .collect()
    }

    fn gates(&self) -> Wanted {
        let gates = self.pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_deref()).unwrap_or_default();
        let conditions = self.pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let problems: Vec<String> = gates
            .iter()
            .filter_map(|gate| {
                let name = &gate.condition_type;
                match conditions.iter().find(|condition| condition.type_ == *name) {
                    None => Some(format!("corresponding condition of pod readiness gate \"{name}\" does not exist.")),
                    Some(condition) if condition.status != "True" => Some(format!(
                        "the status of pod readiness gate \"{name}\" is not \"True\", but {}",
                        condition.status
                    )),
                    Some(_) => None,
                }
            })
            .collect();
        if problems.is_empty() {
            Wanted::yes()
        } else {
            Wanted::no("ReadinessGatesNotReady", Some(problems.join(", ")))
        }
    }

    fn condition(&self, kind: &str, wanted: Wanted, now: Timestamp) -> core::PodCondition {
        let status = if wanted.status { "True" } else { "False" };
        let since = self
            .conditions
            .iter()
            .find(|known| known.type_ == kind && known.status == status)
            .and_then(|known| known.last_transition_time.clone());
        core::PodCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: wanted.reason.map(str::to_owned),
            message: wanted.message,
            last_transition_time: Some(since.unwrap_or_else(|| time(now))),
            observed_generation: self.pod.metadata.generation,
            ..Default::default()
        }
    }
}

#[derive(Clone)]
struct Wanted {
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Wanted {
    fn yes() -> Self {
        Self { status: true, reason: None, message: None }
    }

    fn no(reason: &'static str, message: Option<String>) -> Self {
        Self { status: false, reason: Some(reason), message }
    }

    fn because(mut self, reason: &'static str, message: Option<String>) -> Self {
        self.reason = Some(reason);
        self.message = message;
        self
    }
}

/// Seconds as Go prints a duration.
fn go_duration(seconds: i64) -> String {
    match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

/// Containers of a pod that an agent before this one may have run: what the runtime has comes
/// first, then what the API was told. A run that was told of and is not there is lost.
pub fn restore(pod: &core::Pod, known: Vec<(String, u32, RunState)>, now: Timestamp) -> Vec<Container> {
    let mut containers = spec::new_containers(pod);
    let mut runs: BTreeMap<String, BTreeMap<u32, RunState>> = BTreeMap::new();
    for (container, attempt, state) in known {
        runs.entry(container).or_default().insert(attempt, state);
    }
    for (container, (spec, _)) in containers.iter_mut().zip(spec::all_containers(pod)) {
        let told = spec::known_status(pod, &container.name);
        if let Some(told) = &told {
            container.image_id.clone_from(&told.image_id);
            let run = u32::try_from(told.restart_count).ok().zip(told.container_id.clone());
            container.ids.extend(run.filter(|(_, id)| !id.starts_with("wasm://")));
            let attempt = u32::try_from(told.restart_count).unwrap_or(0);
            let ended =
                |state: Option<&core::ContainerState>| state.and_then(|state| state.terminated.as_ref()).map(exit_of);
            let state = told.state.as_ref();
            let last = ended(told.last_state.as_ref());
            if let Some(exit) = ended(state) {
                container.end(attempt, exit);
                container.last = last.map(|exit| Ended { attempt: attempt.saturating_sub(1), exit });
            } else if let Some(running) = state.and_then(|state| state.running.as_ref()) {
                let started_at = running.started_at.as_ref().map(|time| time.0);
                container.end(attempt, Exit { started_at, ..machine::lost(now) });
                container.last = last.map(|exit| Ended { attempt: attempt.saturating_sub(1), exit });
            } else if let Some(exit) = last {
                // It waited to be started again.
                container.end(attempt, exit);
            }
        }
        let Some(mut runs) = runs.remove(&container.name) else { continue };
        let Some((attempt, state)) = runs.pop_last() else { continue };
        if container.attempt.is_some_and(|known| known > attempt) {
            continue;
        }
        if let Some((before, RunState::Exited(exit))) = runs.pop_last() {
            container.last = Some(Ended { attempt: before, exit });
        } else if let State::Exited { attempt: before, exit } = &container.state
            && *before < attempt
        {
            container.last = Some(Ended { attempt: *before, exit: exit.clone() });
        }
        container.attempt = Some(attempt);
        match state {
            RunState::Exited(exit) => container.end(attempt, exit),
            RunState::Running { started_at } => {
                container.run(&spec, attempt, started_at, now);
                if let Some(told) = told.filter(|told| told.restart_count == i32::try_from(attempt).unwrap_or(-1)) {
                    container.ready = container.ready || told.ready;
                    if told.started == Some(true) && !container.started {
                        container.started = true;
                        container.probe_started(&spec, now);
                    }
                }
            }
        }
    }
    containers
}

fn exit_of(terminated: &core::ContainerStateTerminated) -> Exit {
    let finished_at = terminated.finished_at.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    Exit {
        code: terminated.exit_code,
        reason: terminated.reason.clone().unwrap_or_default(),
        message: terminated.message.clone(),
        started_at: terminated.started_at.as_ref().map(|time| time.0),
        finished_at,
    }
}
