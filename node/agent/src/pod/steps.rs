//! What follows from what the machine knows: the next steps of a pod's life.

use jiff::Timestamp;

use super::container::{Container, Ended, Role, State};
use super::machine::{Action, CleanUp, Ending, Machine, SHOW_FAILURE, SIDECAR_GRACE, SetUp, restarts};
use super::spec::{self, RestartPolicy};

impl Machine {
    /// Decides what follows from all the facts. Asked twice it says nothing new.
    pub(super) fn step(&mut self, now: Timestamp) {
        if (self.was_terminal || self.failed.is_some()) && !self.containers.iter().any(Container::is_live) {
            return self.step_over();
        }
        if self.ending.is_none() {
            if self.removed || self.was_terminal || spec::is_deleted(&self.pod) {
                self.ending = Some(Ending { since: now, grace: spec::grace_seconds(&self.pod) });
            } else if self.deadline().is_some_and(|deadline| deadline <= now) && !self.is_ended() {
                let message = "Pod was active on the node longer than the specified deadline".to_owned();
                self.warn(None, "DeadlineExceeded", message.clone());
                self.failed = Some(("DeadlineExceeded".to_owned(), message));
                self.ending = Some(Ending { since: now, grace: spec::grace_seconds(&self.pod) });
            }
        } else if (self.removed || spec::is_deleted(&self.pod))
            && let Some(ending) = &mut self.ending
        {
            // Deleted again with less patience.
            ending.grace = ending.grace.min(spec::grace_seconds(&self.pod));
        }
        if self.ending.is_some() {
            return self.step_ending(now);
        }
        match self.set_up {
            SetUp::Wanted => {
                self.set_up = SetUp::InFlight;
                self.out.push(Action::SetUp);
            }
            SetUp::Failed { retry, .. } if retry <= now => {
                // The delay is kept in case it fails again.
                self.out.push(Action::SetUp);
                if let SetUp::Failed { retry, .. } = &mut self.set_up {
                    *retry = Timestamp::MAX;
                }
            }
            _ => {}
        }
        self.step_probes(now);
        if self.set_up == SetUp::Done {
            self.step_containers(now);
        }
    }

    fn step_containers(&mut self, now: Timestamp) {
        let policy = spec::restart_policy(&self.pod);
        let over = |it: &Container| {
            it.role != Role::Main
                || matches!(&it.state, State::Exited { exit, .. } if !restarts(policy, Some(exit.code)))
        };
        let failed = |it: &Container| {
            it.role == Role::Init
                && policy == RestartPolicy::Never
                && matches!(&it.state, State::Exited { exit, .. } if exit.code != 0)
        };
        if self.containers.iter().all(over) || self.containers.iter().any(failed) {
            return self.step_mains_over(now);
        }
        let begun = self.containers.iter().any(|it| it.role == Role::Main && it.attempt.is_some());
        self.step_ephemeral(now);
        for index in 0..self.containers.len() {
            let Some(container) = self.containers.get(index) else { continue };
            match container.role {
                // Main containers were up, so the init containers are done for good.
                Role::Init if begun => {}
                Role::Init if matches!(&container.state, State::Exited { exit, .. } if exit.code == 0) => {}
                Role::Init => return self.start_if_due(now, index),
                Role::Sidecar => {
                    self.start_if_due(now, index);
                    let up = self.containers.get(index).is_some_and(|it| it.is_running() && it.started);
                    if !up && !begun {
                        return;
                    }
                }
                Role::Main if over(container) => {}
                Role::Main => self.start_if_due(now, index),
                Role::Ephemeral => {}
            }
        }
    }

    fn step_ephemeral(&mut self, now: Timestamp) {
        for index in 0..self.containers.len() {
            let new = |it: &Container| it.role == Role::Ephemeral && !matches!(it.state, State::Exited { .. });
            if self.containers.get(index).is_some_and(new) {
                self.start_if_due(now, index);
            }
        }
    }

    /// Starts or restarts a container unless it runs or its back-off says to wait.
    fn start_if_due(&mut self, now: Timestamp, index: usize) {
        let title = spec::title(&self.pod);
        let Some(container) = self.containers.get_mut(index) else { return };
        let attempt = container.next_attempt();
        match container.state.clone() {
            State::Starting { .. } | State::Running { .. } => return,
            State::New => {}
            State::Blocked { retry, since, reason, message, image } => {
                if retry > now {
                    let shown = since.saturating_add(SHOW_FAILURE).unwrap_or(retry);
                    if reason == "ErrImagePull" && shown <= now {
                        let told = format!("Back-off pulling image \"{}\"", image.clone().unwrap_or_default());
                        container.state = State::Blocked {
                            reason: "ImagePullBackOff",
                            message: format!("{told}: ErrImagePull: {message}"),
                            image,
                            since,
                            retry,
                        };
                        self.tell(Some(index), "BackOff", told);
                        self.warn(Some(index), "Failed", "Error: ImagePullBackOff");
                    }
                    return;
                }
            }
            State::Exited { attempt: ended, exit } => {
                if container.backoff.blocked_until(exit.finished_at, now).is_some() {
                    if container.told_backoff != Some(ended) {
                        container.told_backoff = Some(ended);
                        let name = container.name.clone();
                        self.warn(
                            Some(index),
                            "BackOff",
                            format!("Back-off restarting failed container {name} in pod {title}"),
                        );
                    }
                    return;
                }
                container.backoff.next(exit.finished_at, now);
                container.last = Some(Ended { attempt: ended, exit });
            }
        }
        container.state = State::Starting { attempt };
        container.early = None;
        self.out.push(Action::Start { index, attempt });
    }

    /// The containers that matter have ended: what serves them ends, then the pod.
    fn step_mains_over(&mut self, now: Timestamp) {
        let grace = spec::grace_seconds(&self.pod);
        let matters = |it: &Container| it.role != Role::Ephemeral && it.is_live();
        if self.stop_sidecars(grace) || self.containers.iter().any(matters) {
            return;
        }
        self.ending = Some(Ending { since: now, grace });
        self.step_ending(now);
    }

    fn step_ending(&mut self, now: Timestamp) {
        let Some(ending) = self.ending.clone() else { return };
        let mut mains_alive = false;
        for index in 0..self.containers.len() {
            let Some(container) = self.containers.get(index) else { continue };
            if container.role != Role::Sidecar && container.is_live() {
                mains_alive = true;
                self.stop(index, ending.grace, None);
            }
        }
        if mains_alive {
            return;
        }
        let elapsed = u32::try_from(now.duration_since(ending.since).as_secs().max(0)).unwrap_or(u32::MAX);
        let left = ending.grace.saturating_sub(elapsed).max(SIDECAR_GRACE.min(ending.grace));
        if self.stop_sidecars(left) || self.containers.iter().any(Container::is_live) {
            return;
        }
        self.step_over();
    }

    /// Stops the last sidecar that lives; they go one by one, last started first.
    fn stop_sidecars(&mut self, grace: u32) -> bool {
        let last = self.containers.iter().rposition(|it| it.role == Role::Sidecar && it.is_live());
        if let Some(index) = last {
            self.stop(index, grace, None);
        }
        last.is_some()
    }

    pub(super) fn stop(&mut self, index: usize, grace: u32, message: Option<String>) {
        let Some(container) = self.containers.get_mut(index) else { return };
        // One that is still being started is stopped when the answer is there.
        let State::Running { attempt, stopping, .. } = &mut container.state else { return };
        let attempt = *attempt;
        let first = match stopping {
            Some(asked) if *asked <= grace => return,
            Some(_) => false,
            None => true,
        };
        *stopping = Some(grace);
        if first {
            let message = message.unwrap_or_else(|| format!("Stopping container {}", container.name));
            self.tell(Some(index), "Killing", message);
        }
        self.out.push(Action::Stop { index, attempt, grace });
    }

    /// Nothing runs and nothing will: resources go back, then the API's object where it is asked.
    fn step_over(&mut self) {
        match self.clean_up {
            // A set-up that is under way would take again what is given back.
            CleanUp::Wanted if matches!(self.set_up, SetUp::InFlight) => return,
            CleanUp::Wanted if matches!(self.set_up, SetUp::Failed { retry, .. } if retry == Timestamp::MAX) => return,
            CleanUp::Wanted => {
                self.clean_up = CleanUp::InFlight;
                self.out.push(Action::CleanUp);
                return;
            }
            CleanUp::InFlight => return,
            CleanUp::Done => {}
        }
        if self.removed {
            self.finished = true;
            self.out.push(Action::Forget);
        } else if spec::is_deleted(&self.pod) && !self.delete_asked {
            self.delete_asked = true;
            self.out.push(Action::Delete);
        }
    }

    fn step_probes(&mut self, now: Timestamp) {
        for (index, container) in self.containers.iter_mut().enumerate() {
            if let State::Running { attempt, stopping: None, .. } = container.state {
                for probing in &mut container.probes {
                    if probing.ask(now) {
                        self.out.push(Action::Probe { index, attempt, kind: probing.kind });
                    }
                }
            }
        }
    }
}
