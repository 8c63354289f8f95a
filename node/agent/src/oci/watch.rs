//! Ends of containers, as containerd tells them, and their logs, which grow until somebody turns them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use sampan_oci::{ContainerFilter, ContainerState, Containerd, Event};

use super::Oci;
use crate::pod::paths;
use crate::runtime::{ContainerId, RunState, Runtime as _, RuntimeEvent};

/// containerd tells of an end a moment before its CRI knows of it.
const SETTLE: [u64; 8] = [0, 5, 10, 20, 50, 100, 300, 1000];
/// The word that memory was short may come after the end.
const STARVED: Duration = Duration::from_millis(100);
/// How often sizes are looked at, how much a log holds, and how many files are kept: the kubelet's.
const LOOK: Duration = Duration::from_secs(10);
const LOG_BYTES: u64 = 10 << 20;
const LOG_FILES: u32 = 5;

impl Oci {
    /// Hands on what happens until the agent ends.
    pub(super) async fn watch(self: Arc<Self>, client: Containerd) {
        let mut events = client.events();
        let mut looking = tokio::time::interval(LOOK);
        looking.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                () = self.stop.cancelled() => return,
                _ = looking.tick() => {
                    // What an event has not told, or told before it was so.
                    self.resync().await;
                    self.turn_logs(&client).await;
                    continue;
                }
                event = events.next() => event,
            };
            match event {
                Some(Event::Resync) => self.resync().await,
                Some(Event::Oom { id }) => {
                    let mut known = self.known();
                    if known.names.contains_key(&id) {
                        known.starved.insert(id);
                    }
                }
                Some(Event::Exit { id, exec_id: None, exit_code, .. }) => {
                    let pod =
                        self.grounds().iter().find(|(_, ground)| ground.sandbox == id).map(|(uid, _)| uid.clone());
                    if let Some(pod_uid) = pod {
                        let _ = self.events.send(RuntimeEvent::SandboxLost { pod_uid });
                        continue;
                    }
                    let Some(container) = self.known().names.get(&id).cloned() else { continue };
                    let (this, client) = (self.clone(), client.clone());
                    tokio::spawn(async move { this.ended(&client, container, &id, exit_code).await });
                }
                Some(Event::Exit { .. }) => {}
                None => return,
            }
        }
    }

    fn tell(&self, id: ContainerId, state: RunState) {
        let _ = self.events.send(RuntimeEvent::Changed(id, state));
    }

    /// Something may have been missed: everything is told again, and what is no longer there is lost.
    async fn resync(&self) {
        let before: Vec<ContainerId> = self.known().ids.keys().cloned().collect();
        match self.list().await {
            Ok(all) => {
                let listed: HashSet<&ContainerId> = all.iter().map(|(id, _)| id).collect();
                for id in before.iter().filter(|id| !listed.contains(id)) {
                    if self.is_gone(id).await {
                        self.forget(id);
                        self.tell(id.clone(), RunState::Exited(crate::pod::machine::lost(Timestamp::now())));
                    }
                }
                all.into_iter().for_each(|(id, state)| self.tell(id, state));
            }
            Err(error) => tracing::warn!(error = format!("{error:#}"), "containers are not known"),
        }
    }

    async fn is_gone(&self, id: &ContainerId) -> bool {
        let (Some(client), Some(name)) = (self.running(), self.id(id)) else { return false };
        client.container_status(&name).await.is_err_and(|error| error.is_not_found())
    }

    async fn ended(&self, client: &Containerd, container: ContainerId, id: &str, code: u32) {
        if code == 137 && !self.known().starved.contains(id) {
            tokio::time::sleep(STARVED).await;
        }
        for wait in SETTLE {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            match client.container_status(id).await {
                Ok(status) if status.state == ContainerState::Exited => {
                    let state = self.state(&container, &status);
                    return self.tell(container, state);
                }
                Ok(_) => {}
                // Removed by then: who did that knows how it ended.
                Err(error) if error.is_not_found() => return,
                Err(error) => tracing::debug!(id, %error, "status of a container that ended"),
            }
        }
    }

    /// `LOG` becomes `LOG.1`, and so on; the oldest goes, and containerd begins a new one.
    async fn turn_logs(&self, client: &Containerd) {
        let running: Vec<(ContainerId, String)> =
            self.known().ids.iter().map(|(id, name)| (id.clone(), name.clone())).collect();
        if running.is_empty() {
            return;
        }
        let running_only =
            ContainerFilter { state: Some(ContainerState::Running), labels: self.label(), ..Default::default() };
        for (id, name) in running {
            let log = self.settings.paths.tenant(&id.tenant).join(paths::log(&id));
            if !tokio::fs::metadata(&log).await.is_ok_and(|metadata| metadata.len() > LOG_BYTES) {
                continue;
            }
            let alive = client.list_containers(&ContainerFilter { id: name.clone(), ..running_only.clone() }).await;
            if !alive.is_ok_and(|alive| !alive.is_empty()) {
                continue;
            }
            let numbered = |number: u32| {
                let mut path = log.clone().into_os_string();
                path.push(format!(".{number}"));
                path
            };
            for number in (1..LOG_FILES - 1).rev() {
                let _ = tokio::fs::rename(numbered(number), numbered(number + 1)).await;
            }
            if let Err(error) = tokio::fs::rename(&log, numbered(1)).await {
                tracing::warn!(log = %log.display(), %error, "log not turned");
            } else if let Err(error) = client.reopen_log(&name).await {
                tracing::warn!(log = %log.display(), %error, "containerd writes on into the old log");
                let _ = tokio::fs::rename(numbered(1), &log).await;
            }
        }
    }
}
