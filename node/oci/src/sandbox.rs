//! Sandboxes: what a pod's containers share.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::Deserialize;

use crate::client::{Containerd, LONG, SHORT, call};
use crate::container::Resources;
use crate::error::{Error, Result};
use crate::json;
use crate::proto::cri;
use crate::security::{Namespaces, Security};

#[derive(Debug, Clone, Default)]
pub struct SandboxConfig {
    pub name: String,
    pub uid: String,
    pub namespace: String,
    /// One more for every sandbox that this pod had before.
    pub attempt: u32,
    /// Empty with the node's network.
    pub hostname: String,
    /// Where the containers' logs lie; their `log_path` is relative to it.
    pub log_directory: String,
    /// `None`: as the machine has it.
    pub dns: Option<Dns>,
    pub port_mappings: Vec<PortMapping>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Below the hierarchies' roots, such as `/sampan-1/burstable/podUID`. Nobody removes it but
    /// [`crate::cgroup::remove`].
    pub cgroup_parent: String,
    pub sysctls: BTreeMap<String, String>,
    pub namespaces: Namespaces,
    pub security: Security,
    /// The sum over the containers, and what the pod needs beside them: told to the runtime, enforced by nobody.
    pub resources: Option<Resources>,
    pub overhead: Option<Resources>,
    /// Empty: the default handler.
    pub runtime_handler: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    pub protocol: Protocol,
    pub container_port: u16,
    pub host_port: u16,
    /// `None`: on every address of the machine.
    pub host_ip: Option<IpAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxState {
    Ready,
    NotReady,
}

/// A row of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    pub id: String,
    pub name: String,
    pub uid: String,
    pub namespace: String,
    pub attempt: u32,
    pub state: SandboxState,
    pub created_at: Option<SystemTime>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub runtime_handler: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxStatus {
    pub sandbox: Sandbox,
    /// The first is the primary one; none with the node's network.
    pub ips: Vec<IpAddr>,
    /// The pod's network namespace; `None` with the node's network, and once it is taken down.
    pub netns: Option<PathBuf>,
    /// Of the pause process; `None` when it has ended.
    pub pid: Option<i32>,
}

/// What all has to hold.
#[derive(Debug, Clone, Default)]
pub struct SandboxFilter {
    pub id: String,
    pub state: Option<SandboxState>,
    pub labels: BTreeMap<String, String>,
}

impl PortMapping {
    fn to_proto(&self) -> cri::PortMapping {
        let protocol = match self.protocol {
            Protocol::Tcp => cri::Protocol::Tcp,
            Protocol::Udp => cri::Protocol::Udp,
            Protocol::Sctp => cri::Protocol::Sctp,
        };
        cri::PortMapping {
            protocol: protocol.into(),
            container_port: self.container_port.into(),
            host_port: self.host_port.into(),
            host_ip: self.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        }
    }
}

impl SandboxConfig {
    pub(crate) fn to_proto(&self) -> cri::PodSandboxConfig {
        let dns = |dns: &Dns| cri::DnsConfig {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        };
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: self.name.clone(),
                uid: self.uid.clone(),
                namespace: self.namespace.clone(),
                attempt: self.attempt,
            }),
            hostname: self.hostname.clone(),
            log_directory: self.log_directory.clone(),
            dns_config: self.dns.as_ref().map(dns),
            port_mappings: self.port_mappings.iter().map(PortMapping::to_proto).collect(),
            labels: self.labels.clone(),
            annotations: self.annotations.clone(),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup_parent.clone(),
                security_context: Some(self.security.of_sandbox(&self.namespaces)),
                sysctls: self.sysctls.clone(),
                overhead: self.overhead.as_ref().map(Resources::to_proto),
                resources: self.resources.as_ref().map(Resources::to_proto),
            }),
        }
    }
}

fn state(state: i32) -> SandboxState {
    match cri::PodSandboxState::try_from(state) {
        Ok(cri::PodSandboxState::SandboxReady) => SandboxState::Ready,
        _ => SandboxState::NotReady,
    }
}

fn row(s: cri::PodSandbox) -> Sandbox {
    let metadata = s.metadata.unwrap_or_default();
    Sandbox {
        id: s.id,
        name: metadata.name,
        uid: metadata.uid,
        namespace: metadata.namespace,
        attempt: metadata.attempt,
        state: state(s.state),
        created_at: json::time(s.created_at),
        labels: s.labels,
        annotations: s.annotations,
        runtime_handler: s.runtime_handler,
    }
}

/// What we read of the verbose answer.
#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    pid: i32,
    #[serde(rename = "runtimeSpec")]
    spec: Option<Spec>,
}

#[derive(Deserialize)]
struct Spec {
    linux: Option<Linux>,
}

#[derive(Deserialize)]
struct Linux {
    #[serde(default)]
    namespaces: Vec<Namespace>,
}

#[derive(Deserialize)]
struct Namespace {
    r#type: String,
    #[serde(default)]
    path: PathBuf,
}

impl Containerd {
    /// Makes the pod's namespaces and network, and starts its pause process. Gives the sandbox's id.
    pub async fn run_sandbox(&self, config: &SandboxConfig) -> Result<String> {
        let runtime_handler = config.runtime_handler.clone();
        let request = cri::RunPodSandboxRequest { config: Some(config.to_proto()), runtime_handler };
        Ok(call("RunPodSandbox", LONG, self.runtime().run_pod_sandbox(request)).await?.pod_sandbox_id)
    }

    /// Kills what still runs in it and takes its network down. May be called again, also on one that is gone.
    pub async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone_is_fine(call("StopPodSandbox", LONG, self.runtime().stop_pod_sandbox(request)).await)
    }

    /// Removes it with its containers. May be called again, also on one that is gone.
    pub async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone_is_fine(call("RemovePodSandbox", LONG, self.runtime().remove_pod_sandbox(request)).await)
    }

    pub async fn sandbox_status(&self, id: &str) -> Result<SandboxStatus> {
        let name = "PodSandboxStatus";
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        let answer = call(name, SHORT, self.runtime().pod_sandbox_status(request)).await?;
        let status = answer.status.ok_or(Error::Answer { call: name, missing: "status" })?;
        let info: Option<Info> = json::info(&answer.info);
        let pid = info.as_ref().map(|i| i.pid).filter(|&pid| pid > 0);
        let namespaces = info.and_then(|i| i.spec?.linux).map(|l| l.namespaces).unwrap_or_default();
        let netns = namespaces.into_iter().find(|n| n.r#type == "network").map(|n| n.path);
        let network = status.network.unwrap_or_default();
        let addresses = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
        let sandbox = cri::PodSandbox {
            id: status.id,
            metadata: status.metadata,
            state: status.state,
            created_at: status.created_at,
            labels: status.labels,
            annotations: status.annotations,
            runtime_handler: status.runtime_handler,
        };
        Ok(SandboxStatus {
            sandbox: row(sandbox),
            ips: addresses.filter_map(|ip| ip.parse().ok()).collect(),
            // The specification is as at the start: a sandbox that was stopped has lost its namespace.
            netns: netns.filter(|path| !path.as_os_str().is_empty() && path.exists()),
            pid,
        })
    }

    pub async fn list_sandboxes(&self, filter: &SandboxFilter) -> Result<Vec<Sandbox>> {
        let state = filter.state.map(|state| {
            let state = match state {
                SandboxState::Ready => cri::PodSandboxState::SandboxReady,
                SandboxState::NotReady => cri::PodSandboxState::SandboxNotready,
            };
            cri::PodSandboxStateValue { state: state.into() }
        });
        let filter = cri::PodSandboxFilter { id: filter.id.clone(), state, label_selector: filter.labels.clone() };
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        let answer = call("ListPodSandbox", SHORT, self.runtime().list_pod_sandbox(request)).await?;
        Ok(answer.items.into_iter().map(row).collect())
    }
}

/// To stop or remove what is gone is done already.
pub(crate) fn gone_is_fine<T>(result: Result<T>) -> Result<()> {
    match result {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}
