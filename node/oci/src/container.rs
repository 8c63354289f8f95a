//! Containers: made, started, stopped, removed.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::client::{Containerd, LONG, SHORT, call};
use crate::error::Result;
use crate::proto::cri;
use crate::sandbox::{SandboxConfig, gone_is_fine};
use crate::security::{Namespaces, Security};

#[derive(Debug, Clone, Default)]
pub struct ContainerConfig {
    pub name: String,
    /// One more for every container of this name that the pod had before.
    pub attempt: u32,
    /// A reference, or an image's id.
    pub image: String,
    /// Empty: the image's entrypoint.
    pub command: Vec<String>,
    /// Empty: the image's, unless there is a command.
    pub args: Vec<String>,
    /// Empty: the image's.
    pub working_dir: String,
    /// After the image's own.
    pub envs: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Relative to the sandbox's log directory.
    pub log_path: String,
    pub stdin: bool,
    /// Closes stdin when the first who attached goes.
    pub stdin_once: bool,
    pub tty: bool,
    pub resources: Resources,
    /// As the sandbox's; the pid namespace may name a target.
    pub namespaces: Namespaces,
    pub security: Security,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    pub container_path: String,
    pub host_path: String,
    pub readonly: bool,
    pub propagation: Propagation,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    pub container_path: String,
    pub host_path: String,
    /// Some of `rwm`: read, write, make nodes.
    pub permissions: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hugepages {
    /// Such as `2MB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// Zero and empty: no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Microseconds.
    pub cpu_period: i64,
    /// Microseconds in each period.
    pub cpu_quota: i64,
    pub cpu_shares: i64,
    /// Bytes.
    pub memory_limit: i64,
    /// Bytes of memory and swap together.
    pub memory_swap_limit: i64,
    pub oom_score_adj: i64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    pub hugepages: Vec<Hugepages>,
    /// Files of control groups version 2, such as `memory.high`.
    pub unified: BTreeMap<String, String>,
}

impl Resources {
    pub(crate) fn to_proto(&self) -> cri::LinuxContainerResources {
        let hugepages = |h: &Hugepages| cri::HugepageLimit { page_size: h.page_size.clone(), limit: h.limit };
        cri::LinuxContainerResources {
            cpu_period: self.cpu_period,
            cpu_quota: self.cpu_quota,
            cpu_shares: self.cpu_shares,
            memory_limit_in_bytes: self.memory_limit,
            oom_score_adj: self.oom_score_adj,
            cpuset_cpus: self.cpuset_cpus.clone(),
            cpuset_mems: self.cpuset_mems.clone(),
            hugepage_limits: self.hugepages.iter().map(hugepages).collect(),
            unified: self.unified.clone(),
            memory_swap_limit_in_bytes: self.memory_swap_limit,
        }
    }
}

impl Mount {
    fn to_proto(&self) -> cri::Mount {
        let propagation = match self.propagation {
            Propagation::Private => cri::MountPropagation::PropagationPrivate,
            Propagation::HostToContainer => cri::MountPropagation::PropagationHostToContainer,
            Propagation::Bidirectional => cri::MountPropagation::PropagationBidirectional,
        };
        cri::Mount {
            container_path: self.container_path.clone(),
            host_path: self.host_path.clone(),
            readonly: self.readonly,
            propagation: propagation.into(),
        }
    }

    pub(crate) fn from_proto(mount: cri::Mount) -> Mount {
        let propagation = match cri::MountPropagation::try_from(mount.propagation) {
            Ok(cri::MountPropagation::PropagationHostToContainer) => Propagation::HostToContainer,
            Ok(cri::MountPropagation::PropagationBidirectional) => Propagation::Bidirectional,
            _ => Propagation::Private,
        };
        Mount {
            container_path: mount.container_path,
            host_path: mount.host_path,
            readonly: mount.readonly,
            propagation,
        }
    }
}

impl ContainerConfig {
    fn to_proto(&self) -> cri::ContainerConfig {
        let env = |(key, value): &(String, String)| cri::KeyValue { key: key.clone(), value: value.clone() };
        let device = |d: &Device| cri::Device {
            container_path: d.container_path.clone(),
            host_path: d.host_path.clone(),
            permissions: d.permissions.clone(),
        };
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: self.name.clone(), attempt: self.attempt }),
            image: Some(cri::ImageSpec { image: self.image.clone(), ..Default::default() }),
            command: self.command.clone(),
            args: self.args.clone(),
            working_dir: self.working_dir.clone(),
            envs: self.envs.iter().map(env).collect(),
            mounts: self.mounts.iter().map(Mount::to_proto).collect(),
            devices: self.devices.iter().map(device).collect(),
            labels: self.labels.clone(),
            annotations: self.annotations.clone(),
            log_path: self.log_path.clone(),
            stdin: self.stdin,
            stdin_once: self.stdin_once,
            tty: self.tty,
            linux: Some(cri::LinuxContainerConfig {
                resources: Some(self.resources.to_proto()),
                security_context: Some(self.security.of_container(&self.namespaces)),
            }),
        }
    }
}

impl Containerd {
    /// Makes a container of an image that is here already. Gives its id. A second container of the
    /// same name and attempt is refused.
    pub async fn create_container(
        &self,
        sandbox_id: &str,
        config: &ContainerConfig,
        sandbox: &SandboxConfig,
    ) -> Result<String> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(config.to_proto()),
            sandbox_config: Some(sandbox.to_proto()),
        };
        Ok(call("CreateContainer", LONG, self.runtime().create_container(request)).await?.container_id)
    }

    /// One that cannot be started (no such program, say) is an error, and ends as `StartError`.
    pub async fn start_container(&self, id: &str) -> Result<()> {
        let request = cri::StartContainerRequest { container_id: id.to_owned() };
        call("StartContainer", LONG, self.runtime().start_container(request)).await.map(drop)
    }

    /// The image's stop signal, then SIGKILL after the grace (whole seconds; zero: at once). Returns
    /// when it has ended; may be called again, also on one that is gone.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let seconds = grace.as_secs().saturating_add(u64::from(grace.subsec_nanos() > 0));
        let timeout = i64::try_from(seconds).unwrap_or(i64::MAX);
        let request = cri::StopContainerRequest { container_id: id.to_owned(), timeout };
        let limit = LONG.saturating_add(Duration::from_secs(seconds));
        gone_is_fine(call("StopContainer", limit, self.runtime().stop_container(request)).await)
    }

    /// Kills it if it runs. May be called again, also on one that is gone.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        let request = cri::RemoveContainerRequest { container_id: id.to_owned() };
        gone_is_fine(call("RemoveContainer", LONG, self.runtime().remove_container(request)).await)
    }

    /// Changes the limits of one that runs.
    pub async fn update_resources(&self, id: &str, resources: &Resources) -> Result<()> {
        let request = cri::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(resources.to_proto()),
            annotations: BTreeMap::new(),
        };
        call("UpdateContainerResources", SHORT, self.runtime().update_container_resources(request)).await.map(drop)
    }

    /// To be called after the log file was renamed: containerd goes on in a new one.
    pub async fn reopen_log(&self, id: &str) -> Result<()> {
        let request = cri::ReopenContainerLogRequest { container_id: id.to_owned() };
        call("ReopenContainerLog", SHORT, self.runtime().reopen_container_log(request)).await.map(drop)
    }
}
