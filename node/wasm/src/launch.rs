//! Starting, adopting and ending host processes, and the client to drive one.

use std::ffi::OsString;
use std::io::Read as _;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use ipnet::IpNet;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tonic::transport::{Channel, Endpoint};

use crate::cgroup::{self, Cgroup};
use crate::process;
use crate::proto::host_client::HostClient;
use crate::proto::{HostInfo, InfoRequest, PROTOCOL, ShutdownRequest};
use crate::sandbox;
use sampan_process::Identity;

pub(crate) const SOCKET: &str = "host.sock";
pub(crate) const RECORD: &str = "host.json";
/// All that guests' files lie in.
pub(crate) const PODS: &str = "pods";
const LOG: &str = "host.log";
/// How long a new host may take to answer.
const START: Duration = Duration::from_secs(30);

/// Everything a host process is told at its start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostConfig {
    /// The tenant.
    pub namespace: String,
    /// `DATA/node/tenants/NAMESPACE`: made here, and ours: `user` passes through it. The host writes
    /// only below its `pods`, and there only what belongs to `user`.
    pub tenant_dir: PathBuf,
    /// `DATA/node/modules`: read only for the host.
    pub modules_dir: PathBuf,
    /// The tenant's network namespace; `None`: the machine's own network.
    pub netns: Option<PathBuf>,
    /// User and group to become; `None`: stay who we are.
    pub user: Option<(u32, u32)>,
    /// Name of a control group below the hierarchies' roots, such as `sampan-ID/NAMESPACE`.
    pub cgroup: Option<String>,
    pub cgroup_limits: cgroup::Limits,
    /// Asked for names where a container names no server of its own.
    pub nameserver: Option<SocketAddr>,
    /// Pod and Service ranges: what guests reach even where it lies in 127.0.0.0/8.
    pub cluster_ranges: Vec<IpNet>,
    /// Guests may not connect to these, whatever the network would allow.
    pub denied_ranges: Vec<IpNet>,
    /// Where ports below a threshold need privilege that nobody has.
    pub port_shift: Option<PortShift>,
    /// The network is one pod's own, or the machine's for a pod that shares it: guests get it as it
    /// is. 127.0.0.1 is its loopback and 0.0.0.0 all of its addresses.
    #[serde(default)]
    pub own_loopback: bool,
    /// Program and arguments that lead to [`crate::host::main`].
    #[serde(skip)]
    pub command: Vec<OsString>,
}

/// Ports below `below` listen at port + `by`, and are connected to there within the cluster ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortShift {
    pub below: u16,
    pub by: u16,
}

impl HostConfig {
    /// A configuration with neither namespace, user nor control group: an ordinary user's.
    pub fn new(
        namespace: impl Into<String>,
        tenant_dir: impl Into<PathBuf>,
        modules_dir: impl Into<PathBuf>,
    ) -> HostConfig {
        HostConfig {
            namespace: namespace.into(),
            tenant_dir: tenant_dir.into(),
            modules_dir: modules_dir.into(),
            netns: None,
            user: None,
            cgroup: None,
            cgroup_limits: cgroup::Limits::default(),
            nameserver: None,
            cluster_ranges: Vec::new(),
            denied_ranges: link_local(),
            port_shift: None,
            own_loopback: false,
            command: process::own("wasm-host"),
        }
    }
}

/// Where cloud machines keep their credentials.
pub fn link_local() -> Vec<IpNet> {
    ["169.254.0.0/16", "fe80::/10"].iter().filter_map(|r| r.parse().ok()).collect()
}

/// What a host writes beside its socket once it serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    #[serde(flatten)]
    pub identity: Identity,
    pub protocol: u32,
    pub engine: String,
    pub namespace: String,
    pub cgroup: Option<String>,
}

impl Record {
    fn read(tenant_dir: &Path) -> Option<Record> {
        serde_json::from_slice(&std::fs::read(tenant_dir.join(RECORD)).ok()?).ok()
    }
}

/// What the host's first line to its starter says.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Ready {
    Serving(Record),
    Failed(String),
}

/// A running host process.
#[derive(Debug, Clone)]
pub struct Host {
    pub info: HostInfo,
    pub tenant_dir: PathBuf,
    pub identity: Identity,
    cgroup: Option<String>,
    channel: Channel,
}

impl Host {
    pub fn client(&self) -> HostClient<Channel> {
        HostClient::new(self.channel.clone())
    }

    pub fn is_alive(&self) -> bool {
        self.identity.is_alive()
    }

    /// Ends every container within the grace, then the process, then its control group.
    pub async fn stop(&self, grace: Duration) -> anyhow::Result<()> {
        let grace_seconds = u32::try_from(grace.as_secs()).unwrap_or(u32::MAX);
        let request = ShutdownRequest { grace_seconds };
        let mut client = self.client();
        let answer = client.shutdown(request);
        let asked = tokio::time::timeout(grace + Duration::from_secs(2), answer).await;
        if !matches!(asked, Ok(Ok(_))) || !self.identity.gone(Duration::from_secs(2)).await {
            self.identity.signal(Signal::KILL);
            anyhow::ensure!(
                self.identity.gone(Duration::from_secs(5)).await,
                "host process {} does not end",
                self.identity.pid
            );
        }
        clean(&self.tenant_dir, self.cgroup.as_deref()).await;
        Ok(())
    }
}

/// Gives the tenant's host: the one that runs, if it can be driven and is what the configuration
/// wants, else a new one.
pub async fn ensure(config: &HostConfig) -> anyhow::Result<Host> {
    match adopt(&config.tenant_dir).await {
        Adoption::Adopted(host) => return Ok(*host),
        Adoption::None => {}
        Adoption::Refused { identity, reason } => {
            tracing::warn!(namespace = config.namespace, pid = identity.pid, reason, "replacing host");
            end(identity).await;
        }
    }
    start(config).await
}

/// What adopting found in a tenant's directory.
pub enum Adoption {
    /// No process: never started, or gone.
    None,
    Adopted(Box<Host>),
    /// A process is there that cannot be driven.
    Refused {
        identity: Identity,
        reason: String,
    },
}

/// Looks for a running host: record, pid with its start time, socket, the peer's credentials and
/// the protocol's version all have to agree.
pub async fn adopt(tenant_dir: &Path) -> Adoption {
    let Some(record) = Record::read(tenant_dir) else {
        return Adoption::None;
    };
    let identity = record.identity;
    if !identity.is_alive() {
        return Adoption::None;
    }
    let refused = |reason: String| Adoption::Refused { identity, reason };
    if record.protocol != PROTOCOL {
        return refused(format!("speaks protocol {}, not {PROTOCOL}", record.protocol));
    }
    match tokio::time::timeout(START, connect(tenant_dir, &record)).await {
        Ok(Ok(host)) => Adoption::Adopted(Box::new(host)),
        Ok(Err(error)) => refused(format!("{error:#}")),
        Err(_) => refused("does not answer".into()),
    }
}

/// Every host that runs below a directory of tenants, and the processes that cannot be driven.
pub async fn adopt_all(tenants_dir: &Path) -> (Vec<Host>, Vec<(PathBuf, Identity, String)>) {
    let (mut hosts, mut refused) = (Vec::new(), Vec::new());
    let Ok(entries) = std::fs::read_dir(tenants_dir) else {
        return (hosts, refused);
    };
    for entry in entries.flatten() {
        match adopt(&entry.path()).await {
            Adoption::Adopted(host) => hosts.push(*host),
            Adoption::Refused { identity, reason } => refused.push((entry.path(), identity, reason)),
            Adoption::None => {}
        }
    }
    (hosts, refused)
}

/// Host processes recorded below a directory of tenants that are still alive, whether they can be
/// driven or not: what cleaning up after a killed cluster has to end.
pub fn list(tenants_dir: &Path) -> Vec<(PathBuf, Record)> {
    let entries = std::fs::read_dir(tenants_dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.path(), Record::read(&entry.path())?)))
        .filter(|(_, record)| record.identity.is_alive())
        .collect()
}

/// Ends a host without asking it, with its control group and its files beside the pods'.
pub async fn kill(tenant_dir: &Path, record: &Record) {
    end(record.identity).await;
    clean(tenant_dir, record.cgroup.as_deref()).await;
}

async fn end(identity: Identity) {
    identity.signal(Signal::TERM);
    if !identity.gone(Duration::from_secs(2)).await {
        identity.signal(Signal::KILL);
        identity.gone(Duration::from_secs(5)).await;
    }
}

async fn clean(tenant_dir: &Path, cgroup: Option<&str>) {
    let _ = std::fs::remove_file(tenant_dir.join(SOCKET));
    let _ = std::fs::remove_file(tenant_dir.join(RECORD));
    if let Some(group) = cgroup.and_then(|name| Cgroup::named(name).ok()) {
        // The kernel takes a moment to see that the group is empty.
        for _ in 0..50 {
            if group.remove().is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tracing::warn!(?group, "control group stays");
    }
}

/// Starts a host process and waits until it serves.
async fn start(config: &HostConfig) -> anyhow::Result<Host> {
    let dir = config.tenant_dir.as_path();
    make_dir(dir, config.user).with_context(|| dir.display().to_string())?;
    for stale in [SOCKET, RECORD] {
        let _ = std::fs::remove_file(dir.join(stale));
    }
    let mut config = config.clone();
    if let Some(name) = &config.cgroup {
        let made = Cgroup::named(name).and_then(|group| group.create(&config.cgroup_limits));
        // Some machines give root no groups: the host's isolation then lacks it, and says so.
        if let Err(error) = made {
            tracing::warn!(namespace = config.namespace, %error, "no control group");
            config.cgroup = None;
        }
    }
    let log = std::fs::File::options().create(true).append(true).open(dir.join(LOG))?;
    let (program, arguments) = config.command.split_first().context("no command for hosts")?;
    let mut command = std::process::Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::from(log));
    for keep in ["RUST_LOG", "RUST_BACKTRACE"] {
        if let Some(value) = std::env::var_os(keep) {
            command.env(keep, value);
        }
    }
    let task = serde_json::to_vec(&config)?;
    let answer = tokio::task::spawn_blocking(move || -> anyhow::Result<Vec<u8>> {
        let mut child = command.spawn().context("starting the host process")?;
        let mut stdin = child.stdin.take().context("stdin")?;
        let mut stdout = child.stdout.take().context("stdout")?;
        std::io::Write::write_all(&mut stdin, &task).context("telling the host its task")?;
        drop(stdin);
        let mut answer = Vec::new();
        stdout.read_to_end(&mut answer)?;
        // The child forks and ends at once; the host itself is nobody's child.
        child.wait()?;
        Ok(answer)
    });
    let answer = tokio::time::timeout(START, answer).await.context("the host process does not answer")???;
    let record = match serde_json::from_slice(&answer) {
        Ok(Ready::Serving(record)) => record,
        Ok(Ready::Failed(message)) => anyhow::bail!("host process: {message}"),
        Err(_) => anyhow::bail!("host process ended at its start; see {}", dir.join(LOG).display()),
    };
    connect(dir, &record).await
}

/// The tenant's directory stays ours, so that nothing in it is a link that the tenant laid.
fn make_dir(dir: &Path, user: Option<(u32, u32)>) -> std::io::Result<()> {
    std::fs::create_dir_all(dir.join(PODS))?;
    let mode = match user {
        Some((_, group)) => {
            let own = rustix::process::geteuid().as_raw();
            std::os::unix::fs::chown(dir, Some(own), Some(group))?;
            0o710
        }
        None => 0o700,
    };
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode))
}

/// Opens the socket through a descriptor: the path may be longer than a socket's may be.
async fn connect(tenant_dir: &Path, record: &Record) -> anyhow::Result<Host> {
    let dir = Arc::new(sandbox::open_dir(tenant_dir)?);
    let expected = record.identity.pid;
    let channel = Endpoint::from_static("http://host")
        .connect_timeout(Duration::from_secs(5))
        .connect_with_connector(tower::service_fn(move |_| {
            let dir = dir.clone();
            async move { dial(&dir, expected).await.map(hyper_util::rt::TokioIo::new) }
        }))
        .await
        .context("connecting")?;
    let mut client = HostClient::new(channel.clone());
    let info = client.info(InfoRequest {}).await.map_err(|s| anyhow::anyhow!("{}", s.message()))?;
    let info = info.into_inner();
    let identity = Identity { pid: info.pid, start_time: info.start_time };
    anyhow::ensure!(info.protocol == PROTOCOL, "speaks protocol {}, not {PROTOCOL}", info.protocol);
    anyhow::ensure!(identity == record.identity, "another process answers");
    anyhow::ensure!(info.namespace == record.namespace, "serves namespace {}", info.namespace);
    let tenant_dir = tenant_dir.to_owned();
    Ok(Host { info, tenant_dir, identity, cgroup: record.cgroup.clone(), channel })
}

async fn dial(dir: &OwnedFd, expected: i32) -> std::io::Result<tokio::net::UnixStream> {
    let path = format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd());
    let stream = tokio::net::UnixStream::connect(path).await?;
    let peer = stream.peer_cred()?.pid();
    if peer != Some(expected) {
        let message = format!("process {peer:?} listens where {expected} should");
        return Err(std::io::Error::new(std::io::ErrorKind::PermissionDenied, message));
    }
    Ok(stream)
}
