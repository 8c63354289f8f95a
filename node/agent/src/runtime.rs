//! What the agent asks of whatever runs containers. The pod state machine knows only this; the
//! Wasm host and containerd stand behind it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use sampan_streaming::{Streams, Wanted};
use tokio::sync::mpsc;

use crate::oci::Oci;
use crate::wasm::Wasm;

/// One run of one container: attempt 0 is the first start, each restart counts on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerId {
    /// Whose host process runs it: a namespace, or `NAMESPACE.UID` for a pod with one of its own.
    pub tenant: String,
    pub pod_uid: String,
    pub container: String,
    pub attempt: u32,
}

impl ContainerId {
    /// The runtime's own id, unique within a tenant.
    pub fn id(&self) -> String {
        format!("{}/{}/{}", self.pod_uid, self.container, self.attempt)
    }

    /// Reads what [`Self::id`] wrote.
    pub fn parse(tenant: &str, id: &str) -> Option<Self> {
        let mut parts = id.split('/');
        let (pod_uid, container, attempt) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || pod_uid.is_empty() || container.is_empty() {
            return None;
        }
        Some(Self {
            tenant: tenant.to_owned(),
            pod_uid: pod_uid.to_owned(),
            container: container.to_owned(),
            attempt: attempt.parse().ok()?,
        })
    }
}

/// How a container is doing, as its runtime tells it.
#[derive(Clone, Debug, PartialEq)]
pub enum RunState {
    Running { started_at: Timestamp },
    Exited(Exit),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    pub code: i32,
    /// The kubelet's words: Completed, Error, OOMKilled, ContainerCannotRun.
    pub reason: String,
    pub message: Option<String>,
    pub started_at: Option<Timestamp>,
    pub finished_at: Timestamp,
}

/// A directory of the node inside a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Below the tenant's directory.
    pub source: PathBuf,
    /// Absolute, in the container.
    pub target: String,
    pub read_only: bool,
}

/// Everything the Wasm host needs to start a container; nothing is left to be looked up.
#[derive(Clone, Debug)]
pub struct StartSpec {
    pub id: ContainerId,
    pub pod_name: String,
    /// The pod's own network; `None`: its tenant's.
    pub netns: Option<PathBuf>,
    /// Hash of the module's bytes.
    pub module: String,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub working_dir: Option<String>,
    pub mounts: Vec<Mount>,
    pub addresses: Vec<IpAddr>,
    pub http_port: u16,
    /// 0: no limit.
    pub memory_bytes: u64,
    /// Thousandths of a core; 0: no limit.
    pub cpu_millicores: u32,
    /// Below the tenant's directory, as the two after it.
    pub log_path: PathBuf,
    pub exit_path: PathBuf,
    pub termination_message_path: Option<PathBuf>,
    pub hostname: String,
    pub dns: Dns,
    pub host_aliases: Vec<(IpAddr, Vec<String>)>,
    /// Its input comes from who attaches; once: and ends with the first of them.
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
}

/// How a container resolves names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Empty: the cluster's.
    pub nameservers: Vec<String>,
    pub search: Vec<String>,
    /// A name with fewer dots is tried with the search domains first; 0: as usual.
    pub ndots: u32,
}

/// Why a container did not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartError {
    /// Trying again may help: the host is not up, a port is still taken.
    Run(String),
    /// The request itself cannot be met.
    Create(String),
}

/// Something changed without being asked.
#[derive(Clone, Debug)]
pub enum RuntimeEvent {
    Changed(ContainerId, RunState),
    /// What the containers of a pod shared is gone.
    SandboxLost {
        pod_uid: String,
    },
    /// The process that ran these is gone; what has no exit record ended without a word.
    HostLost {
        tenant: String,
    },
}

/// Use of one container, for statistics.
#[derive(Clone, Debug)]
pub struct Usage {
    pub id: ContainerId,
    pub cpu_nanoseconds: u64,
    pub memory_bytes: u64,
}

/// What a program gave that was run in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ran {
    pub code: i32,
    pub output: String,
}

/// What runs containers, once it has started them by what each needs to know. Calls about one
/// container come one after another.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Ends a container within the grace and tells how it ended.
    async fn stop(&self, id: &ContainerId, grace_seconds: u32) -> anyhow::Result<Exit>;
    /// Forgets a container that has ended.
    async fn remove(&self, id: &ContainerId) -> anyhow::Result<()>;
    /// Everything that runs or ended and was not removed, also from before this agent started.
    async fn list(&self) -> anyhow::Result<Vec<(ContainerId, RunState)>>;
    async fn usage(&self) -> Vec<Usage>;
    /// Runs a command in a running container.
    async fn exec(&self, _: &ContainerId, _: Vec<String>, _: Wanted) -> anyhow::Result<Streams> {
        anyhow::bail!("this container's runtime cannot run commands in it")
    }
    /// The further output of a running container, and its input if it has one.
    async fn attach(&self, _: &ContainerId, _: Wanted) -> anyhow::Result<Streams> {
        anyhow::bail!("this container's runtime cannot be attached to")
    }
    /// Runs a program to its end, for probes and hooks; an error if it takes longer.
    async fn run(&self, _: &ContainerId, _: &[String], _: Duration) -> anyhow::Result<Ran> {
        anyhow::bail!("a WebAssembly container has no other program to run")
    }
}

/// The node's runtimes.
pub struct Runtimes {
    pub wasm: Wasm,
    pub oci: Arc<Oci>,
}

impl Runtimes {
    /// The one that has a container.
    pub fn of(&self, id: &ContainerId) -> &dyn Runtime {
        if self.oci.has(id) { self.oci.as_ref() } else { &self.wasm }
    }

    /// Everything that runs or ended and was not removed, of both.
    pub async fn list(&self) -> anyhow::Result<Vec<(ContainerId, RunState)>> {
        let mut all = self.wasm.list().await?;
        all.extend(self.oci.list().await?);
        Ok(all)
    }

    pub async fn usage(&self) -> Vec<Usage> {
        let mut all = self.wasm.usage().await;
        all.extend(self.oci.usage().await);
        all
    }
}

/// Where a runtime tells its events.
pub type RuntimeEvents = mpsc::UnboundedReceiver<RuntimeEvent>;
