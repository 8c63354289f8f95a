//! The Wasm host behind [`Runtime`]: a host process per tenant, found again after a restart, and
//! one watch of each.

mod streams;

use std::collections::HashMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use ipnet::IpNet;
use jiff::Timestamp;
use sampan_network::Network;
use sampan_streaming::{Streams, Wanted};
use sampan_wasm::launch::{self, HostConfig, PortShift};
use sampan_wasm::proto::{self, ContainerSpec, ModuleKind};
use sampan_wasm::{Cache, Host};
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::beneath::{self, Links};
use crate::image::Compiler;
use crate::pod::mounts;
use crate::pod::paths::{self, Paths};
use crate::runtime::{ContainerId, Exit, RunState, Runtime, RuntimeEvent, StartError, StartSpec, Usage};

/// What host processes are made from.
pub struct Settings {
    pub paths: Paths,
    pub cache: Cache,
    pub cluster_id: String,
    pub node_name: String,
    /// Pod and Service addresses.
    pub cluster_ranges: Vec<IpNet>,
    /// User and control group of their own: as root.
    pub privileged: bool,
    pub version: String,
}

pub struct WasmRuntime {
    settings: Settings,
    network: Network,
    slots: Mutex<HashMap<String, Arc<Slot>>>,
    events: mpsc::UnboundedSender<RuntimeEvent>,
}

/// A tenant's host; the lock is held while one is being started.
#[derive(Default)]
struct Slot(tokio::sync::Mutex<Option<Host>>);

/// What a host writes when a container has ended.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExitRecord {
    id: String,
    started_at_ms: i64,
    finished_at_ms: i64,
    exit_code: i32,
    reason: String,
    message: String,
}

/// The reason for a container that never ran.
const CANNOT_RUN: &str = "ContainerCannotRun";
/// More than any record has: its message is a few KiB at most.
const RECORD_BYTES: u64 = 64 << 10;
const RELEASE_GRACE: Duration = Duration::from_secs(2);

impl WasmRuntime {
    /// What happens by itself is told to `events`.
    pub fn new(settings: Settings, network: Network, events: mpsc::UnboundedSender<RuntimeEvent>) -> Arc<Self> {
        Arc::new(Self { settings, network, slots: Mutex::default(), events })
    }

    /// The user of a tenant's host processes: the same after a restart, without a record, and
    /// another for every node and cluster that may be on this machine.
    pub fn user(cluster_id: &str, node_name: &str, tenant: &str) -> (u32, u32) {
        use sha2::{Digest, Sha256};
        let hash = Sha256::digest(format!("{cluster_id}/{node_name}/{tenant}"));
        let low = hash.iter().take(3).fold(0_u32, |id, byte| id << 8 | u32::from(*byte));
        let id = 0x7000_0000 | low;
        (id, id)
    }

    fn slot(&self, tenant: &str) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(tenant.to_owned()).or_default().clone()
    }

    /// The running host of a tenant, if it has one.
    async fn running(&self, tenant: &str) -> Option<Host> {
        let slot = self.slots.lock().unwrap_or_else(PoisonError::into_inner).get(tenant).cloned()?;
        let host = slot.0.lock().await;
        host.as_ref().filter(|host| host.is_alive()).cloned()
    }

    /// The host of a tenant, started if need be, in a network namespace that is not the tenant's.
    async fn host(self: &Arc<Self>, tenant: &str, netns: Option<&Path>) -> anyhow::Result<Host> {
        let slot = self.slot(tenant);
        let mut host = slot.0.lock().await;
        if let Some(host) = host.as_ref().filter(|host| host.is_alive()) {
            return Ok(host.clone());
        }
        let started = launch::ensure(&self.config(tenant, netns).await?).await?;
        *host = Some(started.clone());
        self.watch(tenant, started.clone());
        Ok(started)
    }

    async fn config(&self, tenant: &str, netns: Option<&Path>) -> anyhow::Result<HostConfig> {
        let settings = &self.settings;
        let mut config = HostConfig::new(tenant, settings.paths.tenant(tenant), settings.paths.modules());
        config.nameserver = Some(self.network.nameserver());
        config.cluster_ranges.clone_from(&settings.cluster_ranges);
        if let Some(netns) = netns {
            config.netns = Some(netns.to_owned());
            config.own_loopback = true;
        } else {
            let network = self.network.tenant(paths::namespace_of(tenant)).await?;
            config.netns = network.netns;
            config.port_shift = (network.port_shift.below > 0)
                .then_some(PortShift { below: network.port_shift.below, by: network.port_shift.by });
        }
        if settings.privileged {
            config.user = Some(Self::user(&settings.cluster_id, &settings.node_name, tenant));
            config.cgroup = Some(format!("sampan-{}/{}_{tenant}", settings.cluster_id, settings.node_name));
        }
        Ok(config)
    }

    /// Hands on what a host tells, until it is gone.
    fn watch(self: &Arc<Self>, tenant: &str, host: Host) {
        let this = self.clone();
        let tenant = tenant.to_owned();
        tokio::spawn(async move {
            while host.is_alive() {
                match host.client().watch(proto::Empty {}).await {
                    Ok(answer) => {
                        let mut stream = answer.into_inner();
                        while let Ok(Some(status)) = stream.message().await {
                            if let Some(id) = ContainerId::parse(&tenant, &status.id) {
                                let _ = this.events.send(RuntimeEvent::Changed(id, state(&status)));
                            }
                        }
                    }
                    Err(error) => tracing::debug!(tenant, %error, "host does not let itself be watched"),
                }
                // The connection ends a moment before the process does.
                host.identity.gone(Duration::from_millis(200)).await;
            }
            for (id, state) in records(&this.settings.paths, &tenant) {
                let _ = this.events.send(RuntimeEvent::Changed(id, state));
            }
            let _ = this.events.send(RuntimeEvent::HostLost { tenant });
        });
    }

    async fn module(&self, hex: &str) -> Result<sampan_wasm::Module, String> {
        if let Some(module) = self.settings.cache.get(hex) {
            return Ok(module);
        }
        let blob = self.settings.paths.images().join("blobs/sha256").join(hex);
        self.settings.cache.ensure(hex, &blob).await.map_err(|error| error.to_string())
    }
}

fn time(milliseconds: i64) -> Option<Timestamp> {
    (milliseconds > 0).then(|| Timestamp::from_millisecond(milliseconds).ok()).flatten()
}

fn state(status: &proto::ContainerStatus) -> RunState {
    if status.state == proto::State::Exited as i32 {
        RunState::Exited(exit(status))
    } else {
        RunState::Running { started_at: time(status.started_at_ms).unwrap_or_else(Timestamp::now) }
    }
}

fn exit(status: &proto::ContainerStatus) -> Exit {
    Exit {
        code: status.exit_code,
        reason: status.reason.clone(),
        message: Some(status.message.clone()).filter(|message| !message.is_empty()),
        started_at: time(status.started_at_ms),
        finished_at: time(status.finished_at_ms).unwrap_or_else(Timestamp::now),
    }
}

/// The exit records that a tenant's hosts have left.
fn records(paths: &Paths, tenant: &str) -> Vec<(ContainerId, RunState)> {
    let read = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for pod in read(paths.pods(tenant)) {
        let containers = pod.path().join(paths::CONTAINERS);
        for container in read(containers.clone()) {
            for file in read(container.path()) {
                let path = Path::new(&container.file_name()).join(file.file_name());
                if path.extension().is_some_and(|extension| extension == "exit")
                    && let Some((id, exit)) = record(&containers, &path)
                    && let Some(id) = ContainerId::parse(tenant, &id)
                {
                    found.push((id, RunState::Exited(exit)));
                }
            }
        }
    }
    found
}

/// Reads an exit record: the container's id and its end.
fn record(dir: &Path, path: &Path) -> Option<(String, Exit)> {
    let mut bytes = Vec::new();
    beneath::file(dir, path, Links::None).ok()?.take(RECORD_BYTES).read_to_end(&mut bytes).ok()?;
    let record: ExitRecord = serde_json::from_slice(&bytes).ok()?;
    let exit = Exit {
        code: record.exit_code,
        reason: record.reason,
        message: Some(record.message).filter(|message| !message.is_empty()),
        started_at: time(record.started_at_ms),
        finished_at: time(record.finished_at_ms).unwrap_or_else(Timestamp::now),
    };
    Some((record.id, exit))
}

fn spec(start: &StartSpec, module: &sampan_wasm::Module) -> ContainerSpec {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    ContainerSpec {
        id: start.id.id(),
        pod_uid: start.id.pod_uid.clone(),
        pod_name: start.pod_name.clone(),
        container: start.id.container.clone(),
        attempt: start.id.attempt,
        module: module.file.clone(),
        kind: module.kind as i32,
        args: start.args.clone(),
        env: start
            .env
            .iter()
            .map(|(name, value)| proto::Variable { name: name.clone(), value: value.clone() })
            .collect(),
        working_dir: start.working_dir.clone().unwrap_or_default(),
        mounts: start
            .mounts
            .iter()
            .map(|mount| proto::Mount {
                source: text(&mount.source),
                target: mount.target.clone(),
                read_only: mount.read_only,
            })
            .collect(),
        addresses: start.addresses.iter().map(ToString::to_string).collect(),
        http_port: u32::from(start.http_port),
        memory_bytes: start.memory_bytes,
        cpu_millicores: start.cpu_millicores,
        log_path: text(&start.log_path),
        exit_path: text(&start.exit_path),
        termination_message_path: start.termination_message_path.as_deref().map(text).unwrap_or_default(),
        hostname: start.hostname.clone(),
        nameservers: start.dns.nameservers.clone(),
        search_domains: start.dns.search.clone(),
        ndots: start.dns.ndots,
        host_aliases: start
            .host_aliases
            .iter()
            .map(|(address, names)| proto::HostAlias { address: address.to_string(), names: names.clone() })
            .collect(),
        stdin: start.stdin,
        stdin_once: start.stdin_once,
        tty: start.tty,
        ..Default::default()
    }
}

/// [`Runtime`] for a shared [`WasmRuntime`]: its tasks hold it too.
pub struct Wasm(pub Arc<WasmRuntime>);

impl Wasm {
    /// Starts a container; asked again for the same id it answers as the first time.
    pub async fn start(&self, start: StartSpec) -> Result<RunState, StartError> {
        let module = self.0.module(&start.module).await.map_err(StartError::Create)?;
        let request = spec(&start, &module);
        // A host that died a moment ago is replaced once.
        for last in [false, true] {
            let host = self.0.host(&start.id.tenant, start.netns.as_deref()).await.map_err(|error| {
                StartError::Create(format!("the Wasm host of namespace \"{}\": {error:#}", start.id.tenant))
            })?;
            match host.client().start(request.clone()).await {
                Ok(answer) => {
                    let status = answer.into_inner();
                    if status.state == proto::State::Exited as i32 && status.reason == CANNOT_RUN {
                        return Err(StartError::Run(status.message));
                    }
                    return Ok(state(&status));
                }
                Err(error) if !last && error.code() == tonic::Code::Unavailable => {
                    host.identity.gone(Duration::from_millis(200)).await;
                }
                Err(error) => return Err(StartError::Create(error.message().to_owned())),
            }
        }
        Err(StartError::Create("the Wasm host does not answer".to_owned()))
    }

    /// Ends what serves a tenant, when its last pod is gone.
    pub async fn release_tenant(&self, tenant: &str) -> anyhow::Result<()> {
        let slot = self.0.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(tenant);
        if let Some(slot) = slot
            && let Some(host) = slot.0.lock().await.take()
        {
            host.stop(RELEASE_GRACE).await?;
        }
        let (dir, pods) = (self.0.settings.paths.tenant(tenant), self.0.settings.paths.pods(tenant));
        let removed = tokio::task::spawn_blocking(move || remove_tenant(&dir, &pods)).await;
        if let Err(error) = removed.map_err(std::io::Error::other).flatten() {
            tracing::warn!(tenant, %error, "files of the host stay");
        }
        Ok(())
    }
}

/// Removes the files of a tenant that has no pods: logs of those that are not gone stay.
fn remove_tenant(dir: &Path, pods: &Path) -> std::io::Result<()> {
    use std::io::ErrorKind::{DirectoryNotEmpty, NotFound};
    // A pod that comes at any moment keeps what is its own.
    let unless_used = |dir: &Path| match std::fs::remove_dir(dir) {
        Err(error) if matches!(error.kind(), DirectoryNotEmpty | NotFound) => Ok(false),
        removed => removed.map(|()| true),
    };
    if !unless_used(pods)? {
        return Ok(());
    }
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if path == pods {
            continue;
        }
        if entry.file_type()?.is_dir() {
            mounts::remove(&path)?;
        } else {
            std::fs::remove_file(&path)?;
        }
    }
    unless_used(dir).map(|_| ())
}

#[async_trait]
impl Runtime for Wasm {
    async fn stop(&self, id: &ContainerId, grace_seconds: u32) -> anyhow::Result<Exit> {
        if let Some(host) = self.0.running(&id.tenant).await {
            match host.client().stop(proto::StopRequest { id: id.id(), grace_seconds }).await {
                Ok(answer) => return Ok(exit(&answer.into_inner())),
                Err(error) if host.is_alive() && error.code() != tonic::Code::NotFound => {
                    anyhow::bail!("{}", error.message());
                }
                Err(_) => {}
            }
        }
        let tenant = self.0.settings.paths.tenant(&id.tenant);
        let record = record(&tenant, &paths::exit(id)).map(|(_, exit)| exit);
        Ok(record.unwrap_or_else(|| crate::pod::machine::lost(Timestamp::now())))
    }

    async fn remove(&self, id: &ContainerId) -> anyhow::Result<()> {
        if let Some(host) = self.0.running(&id.tenant).await {
            host.client()
                .remove(proto::RemoveRequest { id: id.id() })
                .await
                .map_err(|error| anyhow::anyhow!("{}", error.message()))?;
        }
        Ok(())
    }

    async fn list(&self) -> anyhow::Result<Vec<(ContainerId, RunState)>> {
        let paths = &self.0.settings.paths;
        let (hosts, refused) = launch::adopt_all(&paths.tenants()).await;
        for (dir, identity, reason) in refused {
            tracing::warn!(dir = %dir.display(), pid = identity.pid, reason, "ending a host that cannot be driven");
            for (found, record) in launch::list(&paths.tenants()) {
                if found == dir {
                    launch::kill(&dir, &record).await;
                }
            }
        }
        let mut all: HashMap<ContainerId, RunState> = HashMap::new();
        for tenant in std::fs::read_dir(paths.tenants()).into_iter().flatten().flatten() {
            all.extend(records(paths, &tenant.file_name().to_string_lossy()));
        }
        for host in hosts {
            let tenant = host.info.namespace.clone();
            let listed = host.client().list(proto::Empty {}).await;
            let listed = listed.map_err(|error| anyhow::anyhow!("{tenant}: {}", error.message()))?.into_inner();
            for status in &listed.items {
                if let Some(id) = ContainerId::parse(&tenant, &status.id) {
                    all.insert(id, state(status));
                }
            }
            let slot = self.0.slot(&tenant);
            let mut slot = slot.0.lock().await;
            if slot.as_ref().is_none_or(|known| known.identity != host.identity) {
                *slot = Some(host.clone());
                self.0.watch(&tenant, host);
            }
        }
        Ok(all.into_iter().collect())
    }

    async fn usage(&self) -> Vec<Usage> {
        let tenants: Vec<String> =
            self.0.slots.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
        let mut all = Vec::new();
        for tenant in tenants {
            let Some(host) = self.0.running(&tenant).await else { continue };
            let Ok(answer) = host.client().stats(proto::Empty {}).await else { continue };
            all.extend(answer.into_inner().items.into_iter().filter_map(|stats| {
                Some(Usage {
                    id: ContainerId::parse(&tenant, &stats.id)?,
                    cpu_nanoseconds: stats.cpu_nanoseconds,
                    memory_bytes: stats.memory_bytes,
                })
            }));
        }
        all
    }

    async fn exec(&self, id: &ContainerId, command: Vec<String>, wanted: Wanted) -> anyhow::Result<Streams> {
        let host = self.0.running(&id.tenant).await.context("the Wasm host of the container is gone")?;
        streams::exec(&host, id, command, wanted).await
    }

    async fn attach(&self, id: &ContainerId, wanted: Wanted) -> anyhow::Result<Streams> {
        let host = self.0.running(&id.tenant).await.context("the Wasm host of the container is gone")?;
        streams::attach(&host, id, wanted).await
    }
}

/// The compiler of the image store: a process of its own, and the node's cache.
pub struct WasmCompiler(pub Cache);

#[async_trait]
impl Compiler for WasmCompiler {
    async fn compile(&self, digest: &str, file: &Path) -> Result<String, String> {
        let module = self.0.ensure(digest, file).await.map_err(|error| error.to_string())?;
        Ok(match module.kind {
            ModuleKind::Proxy => "proxy",
            ModuleKind::Command => "command",
            _ => "core",
        }
        .to_owned())
    }

    fn forget(&self, digest: &str) {
        self.0.remove(digest);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_tenant_goes_with_its_last_pod() {
        let dir = tempfile::tempdir().unwrap();
        let (tenant, pods) = (dir.path().join("shop"), dir.path().join("shop/pods"));
        remove_tenant(&tenant, &pods).unwrap();
        std::fs::create_dir_all(pods.join("a")).unwrap();
        std::fs::create_dir(tenant.join("run")).unwrap();
        std::fs::write(tenant.join("run/file"), "").unwrap();
        std::fs::write(tenant.join("record"), "").unwrap();
        remove_tenant(&tenant, &pods).unwrap();
        assert!(pods.join("a").exists() && tenant.join("record").exists());
        std::fs::remove_dir(pods.join("a")).unwrap();
        remove_tenant(&tenant, &pods).unwrap();
        assert!(!tenant.exists());
    }
}
