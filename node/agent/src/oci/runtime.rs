//! Containers in containerd behind [`Runtime`].

use std::io::Read as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use async_trait::async_trait;
use jiff::Timestamp;
use sampan_oci::{
    Container, ContainerConfig, ContainerFilter, ContainerState, ContainerStatus, Containerd, ExecStreams,
};
use sampan_streaming::{Streams, Wanted, client};

use super::{Oci, spec};
use crate::beneath::{self, Links};
use crate::pod::paths;
use crate::runtime::{ContainerId, Exit, Ran, RunState, Runtime, StartError, Usage};

/// As much of a termination message as the kubelet takes, and of a log that stands for it.
const MESSAGE: u64 = 4096;
const LOG_MESSAGE: u64 = 2048;
const LOG_LINES: usize = 80;
/// How often a container is looked at that is being started, and how far apart.
const STARTING: u32 = 100;
const STARTING_STEP: Duration = Duration::from_millis(100);

pub(super) fn time(time: Option<SystemTime>) -> Option<Timestamp> {
    time.and_then(|time| Timestamp::try_from(time).ok()).filter(|time| *time > Timestamp::UNIX_EPOCH)
}

/// A start that did not come to its end: who asked for it is gone, or has heard of it and removes the
/// container. It never ran.
fn was_given_up(status: &ContainerStatus) -> bool {
    status.state == ContainerState::Exited && status.reason == "StartError"
}

impl Oci {
    /// Which of our containers this is, by the labels it was given.
    pub(super) fn read_id(container: &Container) -> Option<ContainerId> {
        let label = |name: &str| container.labels.get(name).filter(|value| !value.is_empty()).cloned();
        let (namespace, pod_uid) = (label(spec::POD_NAMESPACE)?, label(spec::POD_UID)?);
        Some(ContainerId {
            tenant: paths::isolated_tenant(&namespace, &pod_uid),
            pod_uid,
            container: label(spec::CONTAINER)?,
            attempt: container.attempt,
        })
    }

    /// Starts a container in its pod's sandbox; asked again for the same id it answers as the first time.
    pub async fn start(
        self: &Arc<Self>,
        id: &ContainerId,
        mut config: ContainerConfig,
    ) -> Result<RunState, StartError> {
        let ground = self.ground(&id.pod_uid).ok_or_else(|| StartError::Create("the pod has no sandbox".to_owned()))?;
        let client = self.client().await.map_err(|error| StartError::Create(format!("{error:#}")))?;
        config.labels.append(&mut self.label());
        let before = self.made_before(&client, id, &ground.sandbox).await;
        if let Some(state) = before.map_err(|error| StartError::Create(format!("{error:#}")))? {
            return Ok(state);
        }
        let created = client.create_container(&ground.sandbox, &config, &ground.config).await;
        let name = created.map_err(|error| StartError::Create(error.to_string()))?;
        self.note(id, &name);
        if let Err(error) = client.start_container(&name).await {
            if error.is_unavailable() {
                // It may have been done: the same run is looked for before it is made again.
                return Err(StartError::Create(error.to_string()));
            }
            let _ = client.remove_container(&name).await;
            self.forget(id);
            return Err(StartError::Run(error.to_string()));
        }
        let status = client.container_status(&name).await.map_err(|error| StartError::Create(error.to_string()))?;
        Ok(self.state(id, &status))
    }

    async fn made_before(
        &self,
        client: &Containerd,
        id: &ContainerId,
        sandbox: &str,
    ) -> anyhow::Result<Option<RunState>> {
        let filter = ContainerFilter { sandbox_id: sandbox.to_owned(), ..ContainerFilter::default() };
        for container in client.list_containers(&filter).await? {
            if container.name != id.container || container.attempt != id.attempt {
                continue;
            }
            self.note(id, &container.id);
            // One that is only made may be about to start: who asked for that may be gone since.
            for _ in 0..STARTING {
                let status = client.container_status(&container.id).await?;
                let ran = matches!(status.state, ContainerState::Running | ContainerState::Exited);
                if ran && !was_given_up(&status) {
                    return Ok(Some(self.state(id, &status)));
                }
                if client.remove_container(&container.id).await.is_ok() {
                    self.forget(id);
                    break;
                }
                tokio::time::sleep(STARTING_STEP).await;
            }
        }
        Ok(None)
    }

    pub(super) fn state(&self, id: &ContainerId, status: &ContainerStatus) -> RunState {
        match status.state {
            ContainerState::Created | ContainerState::Running => {
                RunState::Running { started_at: time(status.started_at).unwrap_or_else(Timestamp::now) }
            }
            ContainerState::Exited => RunState::Exited(self.exit(id, status)),
            ContainerState::Unknown => RunState::Exited(crate::pod::machine::lost(Timestamp::now())),
        }
    }

    fn exit(&self, id: &ContainerId, status: &ContainerStatus) -> Exit {
        let starved = self.known().starved.contains(&status.id);
        let reason = if starved && status.exit_code == 137 { "OOMKilled" } else { status.reason.as_str() };
        let message = Some(status.message.clone()).filter(|message| !message.is_empty());
        Exit {
            code: status.exit_code,
            reason: reason.to_owned(),
            message: message.or_else(|| self.last_words(id, status)),
            started_at: time(status.started_at),
            finished_at: time(status.finished_at).unwrap_or_else(Timestamp::now),
        }
    }

    /// What the container wrote for this, or the end of its log where its policy says so.
    fn last_words(&self, id: &ContainerId, status: &ContainerStatus) -> Option<String> {
        let tenant = self.settings.paths.tenant(&id.tenant);
        let read = |path: &std::path::Path, most: u64| -> Option<Vec<u8>> {
            let mut file = beneath::open(&tenant, path, Links::None).ok()?;
            let length = file.metadata().ok()?.len();
            std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(length.saturating_sub(most))).ok()?;
            let mut bytes = Vec::new();
            file.take(most).read_to_end(&mut bytes).ok()?;
            Some(bytes)
        };
        let text = |bytes: Vec<u8>| Some(String::from_utf8_lossy(&bytes).into_owned()).filter(|text| !text.is_empty());
        let words = read(&paths::termination_message(id), MESSAGE).and_then(text);
        let from_log = status.annotations.get(spec::MESSAGE_POLICY).is_some_and(|it| it == "FallbackToLogsOnError");
        if words.is_some() || !from_log || status.exit_code == 0 {
            return words;
        }
        let log = String::from_utf8_lossy(&read(&paths::log(id), LOG_MESSAGE * 4)?).into_owned();
        let lines: Vec<&str> = log.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
        let last = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default().join("\n");
        let cut = last.len().saturating_sub(usize::try_from(LOG_MESSAGE).unwrap_or(usize::MAX));
        let cut = (cut..=last.len()).find(|at| last.is_char_boundary(*at))?;
        last.get(cut..).map(str::to_owned).filter(|text| !text.is_empty())
    }

    /// Bytes that containers which run have written beside their images and volumes.
    pub async fn written(&self) -> Vec<(ContainerId, u64)> {
        let Some(client) = self.running() else { return Vec::new() };
        let Ok(stats) = client.list_stats(None).await else { return Vec::new() };
        let known = self.known();
        stats.into_iter().filter_map(|it| Some((known.names.get(&it.id)?.clone(), it.writable_bytes?))).collect()
    }

    /// What containerd calls a container, as a pod's status has it.
    pub fn name(&self, id: &ContainerId) -> Option<String> {
        self.id(id).map(|name| format!("containerd://{name}"))
    }

    fn streams(wanted: Wanted) -> ExecStreams {
        ExecStreams { tty: wanted.tty, stdin: wanted.stdin, stdout: wanted.stdout, stderr: wanted.has_stderr() }
    }

    async fn found(&self, id: &ContainerId) -> anyhow::Result<(Containerd, String)> {
        let client = self.running().context("containerd is not in use")?;
        Ok((client, self.id(id).context("containerd has no such container")?))
    }
}

#[async_trait]
impl Runtime for Oci {
    async fn stop(&self, id: &ContainerId, grace_seconds: u32) -> anyhow::Result<Exit> {
        let (client, name) = self.found(id).await?;
        client.stop_container(&name, Duration::from_secs(grace_seconds.into())).await?;
        let status = match client.container_status(&name).await {
            Err(error) if error.is_not_found() => return Ok(crate::pod::machine::lost(Timestamp::now())),
            status => status?,
        };
        match self.state(id, &status) {
            RunState::Exited(exit) => Ok(exit),
            RunState::Running { .. } => anyhow::bail!("it still runs"),
        }
    }

    async fn remove(&self, id: &ContainerId) -> anyhow::Result<()> {
        let (client, name) = self.found(id).await?;
        client.remove_container(&name).await?;
        self.forget(id);
        Ok(())
    }

    async fn list(&self) -> anyhow::Result<Vec<(ContainerId, RunState)>> {
        let Some(client) = self.running() else { return Ok(Vec::new()) };
        let filter = ContainerFilter { labels: self.label(), ..ContainerFilter::default() };
        let mut all = Vec::new();
        for container in client.list_containers(&filter).await? {
            let Some(id) = Self::read_id(&container) else { continue };
            if container.state == ContainerState::Created {
                // The next start of it sees what becomes of it.
                continue;
            }
            self.note(&id, &container.id);
            match client.container_status(&container.id).await {
                Ok(status) if was_given_up(&status) => self.forget(&id),
                Ok(status) => {
                    let state = self.state(&id, &status);
                    all.push((id, state));
                }
                Err(error) if error.is_not_found() => self.forget(&id),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(all)
    }

    async fn usage(&self) -> Vec<Usage> {
        let Some(client) = self.running() else { return Vec::new() };
        let Ok(stats) = client.list_stats(None).await else { return Vec::new() };
        let known = self.known();
        let usage = stats.into_iter().filter_map(|stats| {
            Some(Usage {
                id: known.names.get(&stats.id)?.clone(),
                cpu_nanoseconds: stats.cpu_nanoseconds.unwrap_or_default(),
                memory_bytes: stats.memory_working_set.unwrap_or_default(),
            })
        });
        usage.collect()
    }

    async fn exec(&self, id: &ContainerId, command: Vec<String>, wanted: Wanted) -> anyhow::Result<Streams> {
        let (containerd, name) = self.found(id).await?;
        let url = containerd.exec_url(&name, &command, Self::streams(wanted)).await?;
        Ok(client::remote_command(&url, wanted).await?)
    }

    async fn attach(&self, id: &ContainerId, wanted: Wanted) -> anyhow::Result<Streams> {
        let (containerd, name) = self.found(id).await?;
        let url = containerd.attach_url(&name, Self::streams(wanted)).await?;
        Ok(client::remote_command(&url, wanted).await?)
    }

    async fn run(&self, id: &ContainerId, command: &[String], limit: Duration) -> anyhow::Result<Ran> {
        let (containerd, name) = self.found(id).await?;
        let ran = containerd.exec_sync(&name, command, Some(limit)).await?;
        let mut output = ran.stdout;
        output.extend(ran.stderr);
        Ok(Ran { code: ran.exit_code, output: String::from_utf8_lossy(&output).into_owned() })
    }
}
