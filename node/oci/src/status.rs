//! How containers are.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::Deserialize;

use crate::client::{Containerd, SHORT, call};
use crate::container::Mount;
use crate::error::{Error, Result};
use crate::json;
use crate::proto::cri;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerState {
    Created,
    Running,
    Exited,
    /// containerd lost sight of it: to be removed.
    Unknown,
}

/// A row of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    pub id: String,
    pub sandbox_id: String,
    pub name: String,
    pub attempt: u32,
    pub state: ContainerState,
    pub created_at: Option<SystemTime>,
    pub image: String,
    pub image_ref: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerStatus {
    pub id: String,
    pub name: String,
    pub attempt: u32,
    pub state: ContainerState,
    pub created_at: Option<SystemTime>,
    pub started_at: Option<SystemTime>,
    /// The kernel's word; may lie a little before `started_at`, which containerd writes once it has started it.
    pub finished_at: Option<SystemTime>,
    /// 128 and the signal's number when a signal ended it. Only of one that exited.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`. containerd hears of an OOM beside the exit:
    /// `Error` may become `OOMKilled` a moment later, and [`crate::Event::Oom`] says so as well. One that
    /// comes before the start is done it does not hear of: that is `Error` with code 137.
    pub reason: String,
    pub message: String,
    /// As asked for.
    pub image: String,
    /// With the digest, where one is known.
    pub image_ref: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub mounts: Vec<Mount>,
    pub log_path: PathBuf,
    /// On the machine; `None` unless it runs.
    pub pid: Option<i32>,
}

/// What all has to hold.
#[derive(Debug, Clone, Default)]
pub struct ContainerFilter {
    pub id: String,
    pub sandbox_id: String,
    pub state: Option<ContainerState>,
    pub labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    pid: i32,
}

fn state(state: i32) -> ContainerState {
    match cri::ContainerState::try_from(state) {
        Ok(cri::ContainerState::ContainerCreated) => ContainerState::Created,
        Ok(cri::ContainerState::ContainerRunning) => ContainerState::Running,
        Ok(cri::ContainerState::ContainerExited) => ContainerState::Exited,
        Ok(cri::ContainerState::ContainerUnknown) | Err(_) => ContainerState::Unknown,
    }
}

fn row(c: cri::Container) -> Container {
    let metadata = c.metadata.unwrap_or_default();
    Container {
        id: c.id,
        sandbox_id: c.pod_sandbox_id,
        name: metadata.name,
        attempt: metadata.attempt,
        state: state(c.state),
        created_at: json::time(c.created_at),
        image: c.image.unwrap_or_default().image,
        image_ref: c.image_ref,
        labels: c.labels,
        annotations: c.annotations,
    }
}

impl Containerd {
    pub async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        let name = "ContainerStatus";
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let answer = call(name, SHORT, self.runtime().container_status(request)).await?;
        let status = answer.status.ok_or(Error::Answer { call: name, missing: "status" })?;
        let info: Option<Info> = json::info(&answer.info);
        let metadata = status.metadata.unwrap_or_default();
        let state = state(status.state);
        let running = state == ContainerState::Running;
        Ok(ContainerStatus {
            id: status.id,
            name: metadata.name,
            attempt: metadata.attempt,
            state,
            created_at: json::time(status.created_at),
            started_at: json::time(status.started_at),
            finished_at: json::time(status.finished_at),
            exit_code: status.exit_code,
            reason: status.reason,
            message: status.message,
            image: status.image.unwrap_or_default().image,
            image_ref: status.image_ref,
            labels: status.labels,
            annotations: status.annotations,
            mounts: status.mounts.into_iter().map(Mount::from_proto).collect(),
            log_path: status.log_path.into(),
            pid: info.map(|i| i.pid).filter(|&pid| pid > 0 && running),
        })
    }

    pub async fn list_containers(&self, filter: &ContainerFilter) -> Result<Vec<Container>> {
        let state = filter.state.map(|state| {
            let state = match state {
                ContainerState::Created => cri::ContainerState::ContainerCreated,
                ContainerState::Running => cri::ContainerState::ContainerRunning,
                ContainerState::Exited => cri::ContainerState::ContainerExited,
                ContainerState::Unknown => cri::ContainerState::ContainerUnknown,
            };
            cri::ContainerStateValue { state: state.into() }
        });
        let filter = cri::ContainerFilter {
            id: filter.id.clone(),
            state,
            pod_sandbox_id: filter.sandbox_id.clone(),
            label_selector: filter.labels.clone(),
        };
        let request = cri::ListContainersRequest { filter: Some(filter) };
        let answer = call("ListContainers", SHORT, self.runtime().list_containers(request)).await?;
        Ok(answer.containers.into_iter().map(row).collect())
    }
}
