//! The containers of one pod and the host processes that run them. Knows nothing of how containerd
//! asks.

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use nix::libc;
use prost_types::Timestamp;
use sampan_wasm::launch::{self, Host, HostConfig};
use sampan_wasm::proto::{self, ContainerSpec, ContainerStatus, Empty, RemoveRequest, State, StopRequest, Variable};

use crate::container::{Container, Exit, Guest, OOM_KILLED, Phase};
use crate::events::Events;
use crate::module::Modules;
use crate::mount::{self, Mount};
use crate::oci::{Network, Spec, User};
use crate::proto::events::{TaskCreate, TaskDelete, TaskIo};
use crate::stdio::Stdio;
use crate::{names, netns};

const CANNOT_RUN: &str = "ContainerCannotRun";
/// As a process that could not be started.
const START_FAILED: u32 = 128;
const KILLED: u32 = 137;

/// Why a call failed, in kinds that callers tell apart.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("container {0:?} is not here")]
    NoContainer(String),
    #[error("container {0:?} has ended")]
    Ended(String),
    #[error("container {0:?} is here already")]
    Exists(String),
    #[error("{0}")]
    Precondition(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

/// What a container is created from.
pub struct Create {
    pub id: String,
    pub bundle: String,
    pub rootfs: Vec<Mount>,
    pub stdio: Stdio,
}

/// What a container uses. Bytes; 0: no limit.
#[derive(Debug, Default, Clone, Copy)]
pub struct Usage {
    pub cpu_nanoseconds: u64,
    pub memory_bytes: u64,
    pub memory_limit: u64,
}

pub struct Pod {
    name: String,
    dir: PathBuf,
    modules: Modules,
    pub events: Events,
    /// The first container's say: the sandbox's, or that of a container by itself.
    ground: tokio::sync::OnceCell<Ground>,
    /// One for each user that containers run as.
    hosts: tokio::sync::Mutex<HashMap<User, Host>>,
    containers: Mutex<HashMap<String, Arc<Container>>>,
}

struct Ground {
    /// `None`: the machine's.
    netns: Option<PathBuf>,
    cgroup: Option<String>,
    hostname: String,
}

impl Pod {
    pub fn new(name: String, dir: PathBuf, modules: Modules, events: Events) -> Pod {
        let (hosts, containers) = Default::default();
        Pod { name, dir, modules, events, ground: tokio::sync::OnceCell::new(), hosts, containers }
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Arc<Container>>> {
        self.containers.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn find(&self, id: &str) -> Result<Arc<Container>, Error> {
        self.containers().get(id).cloned().ok_or_else(|| Error::NoContainer(id.into()))
    }

    async fn ground(&self, spec: &Spec) -> anyhow::Result<&Ground> {
        let found = || async {
            let netns = match spec.network() {
                Network::Machine => None,
                Network::At(path) => Some(path),
                Network::New => {
                    let pin = self.dir.join("netns");
                    netns::make(&pin).await?;
                    Some(pin)
                }
            };
            Ok::<_, anyhow::Error>(Ground { netns, cgroup: spec.cgroup(), hostname: spec.hostname.clone() })
        };
        self.ground.get_or_try_init(found).await
    }

    /// Prepares a container and answers its process id.
    pub async fn create(self: &Arc<Self>, create: Create) -> Result<u32, Error> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if create.id.is_empty() || create.id.starts_with('.') || !create.id.bytes().all(plain) {
            return Err(Error::Invalid(format!("id: {:?} is no container's name", create.id)));
        }
        if self.containers().contains_key(&create.id) {
            return Err(Error::Exists(create.id));
        }
        let spec = Spec::read(create.bundle.as_ref())?;
        let ground = self.ground(&spec).await?;
        let container = if spec.is_sandbox() {
            // Nothing runs in it: the namespaces of a pod are held by others.
            Container::new(&create.id, &create.bundle, create.stdio.clone(), std::process::id(), None, Vec::new())
        } else {
            let user = spec.process.user;
            let host = self.host(user, ground).await?;
            if let Some(netns) = ground.netns.clone().filter(|_| spec.may_bind_low_ports()) {
                netns::open_low_ports(netns).await?;
            }
            let dir = self.user_dir(user).join("pods").join(&create.id);
            match self.guest(&create, &spec, user, dir.clone()).await {
                Ok((guest, held)) => {
                    let pid = u32::try_from(host.identity.pid).unwrap_or_default();
                    Container::new(&create.id, &create.bundle, create.stdio.clone(), pid, Some(guest), held)
                }
                Err(error) => {
                    remove_tree(dir).await.unwrap_or_else(|error| tracing::error!("{error:#}"));
                    return Err(error);
                }
            }
        };
        let pid = container.pid;
        let io = TaskIo {
            stdin: create.stdio.stdin,
            stdout: create.stdio.stdout,
            stderr: create.stdio.stderr,
            terminal: create.stdio.terminal,
        };
        let event = TaskCreate { container_id: create.id.clone(), bundle: create.bundle, io: Some(io), pid };
        self.containers().insert(create.id, Arc::new(container));
        self.events.publish("/tasks/create", "TaskCreate", &event);
        Ok(pid)
    }

    fn user_dir(&self, user: User) -> PathBuf {
        self.dir.join(format!("user-{}-{}", user.uid, user.gid))
    }

    async fn guest(
        &self,
        create: &Create,
        spec: &Spec,
        user: User,
        dir: PathBuf,
    ) -> Result<(Guest, Vec<std::fs::File>), Error> {
        let http_port = spec.http_port().map_err(Error::Invalid)?;
        let root = dir.join("root");
        std::fs::create_dir_all(&root).with_context(|| root.display().to_string())?;
        let files = tokio::task::spawn_blocking({
            let (mut mounts, root) = (create.rootfs.clone(), root.clone());
            let (inside, readonly) = (spec.mounts.clone(), spec.root.readonly);
            if mounts.is_empty() {
                let source = std::path::Path::new(&create.bundle).join(&spec.root.path).display().to_string();
                mounts.push(Mount { kind: "bind".into(), source, options: vec!["rbind".into()] });
            }
            move || -> anyhow::Result<(String, String)> {
                mount::root(&mounts, &root)?;
                mount::inside(&root, &inside, readonly)?;
                let directory = mount::open_root(&root)?;
                let read = |path: &str| {
                    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
                    let file = mount::open(directory.as_fd(), path.as_ref(), flags).map(std::fs::File::from);
                    let text =
                        file.ok().and_then(|file| std::io::read_to_string(std::io::Read::take(file, 1 << 20)).ok());
                    text.unwrap_or_default()
                };
                Ok((read("/etc/resolv.conf"), read("/etc/hosts")))
            }
        });
        let (resolv, hosts) = files.await.context("mounting")??;
        let module = self.modules.of(&root, spec).await?;
        let streams = create.stdio.place(&dir, user).await?;
        let below = |name: &str| match name.is_empty() {
            true => String::new(),
            false => format!("pods/{}/{name}", create.id),
        };
        let variable = |entry: &String| {
            let (name, value) = entry.split_once('=')?;
            Some(Variable { name: name.into(), value: value.into() })
        };
        let mut guest = ContainerSpec {
            id: create.id.clone(),
            pod_uid: create.id.clone(),
            pod_name: self.name.clone(),
            container: create.id.clone(),
            module: module.file,
            kind: module.kind as i32,
            args: spec.process.args.clone(),
            env: spec.process.env.iter().filter_map(variable).collect(),
            working_dir: spec.process.cwd.clone(),
            mounts: vec![proto::Mount { source: below("root"), target: "/".into(), read_only: false }],
            http_port: http_port.into(),
            memory_bytes: spec.memory_limit(),
            cpu_millicores: spec.cpu_limit(),
            stdout_path: below(&streams.stdout),
            stderr_path: below(&streams.stderr),
            ..ContainerSpec::default()
        };
        names::apply(&mut guest, &resolv, &hosts);
        Ok((Guest { user, spec: guest, dir }, streams.held))
    }

    /// The host process of a user's containers, started when the first of them comes.
    async fn host(self: &Arc<Self>, user: User, ground: &Ground) -> anyhow::Result<Host> {
        let mut hosts = self.hosts.lock().await;
        if let Some(host) = hosts.get(&user).filter(|host| host.is_alive()) {
            return Ok(host.clone());
        }
        let mut config = HostConfig::new(&self.name, self.user_dir(user), self.modules.dir());
        config.netns.clone_from(&ground.netns);
        config.user = Some((user.uid, user.gid));
        // A group has one host's processes: it goes with that host.
        config.cgroup = ground.cgroup.clone().map(|path| match hosts.is_empty() {
            true => path,
            false => format!("{path}-{}-{}", user.uid, user.gid),
        });
        config.own_loopback = true;
        // What a pod may reach is for its own network to say.
        config.denied_ranges = Vec::new();
        let host = launch::ensure(&config).await.context("the Wasm host process")?;
        let confined = host.info.isolation.iter().any(|wall| wall == "landlock");
        if user.uid == 0 && !confined {
            host.stop(Duration::ZERO).await?;
            anyhow::bail!(
                "process.user: this machine's kernel has no Landlock, so a Wasm guest may not run as user 0; \
                 set runAsUser"
            );
        }
        tracing::info!(pid = host.identity.pid, isolation = ?host.info.isolation, "host");
        hosts.insert(user, host.clone());
        tokio::spawn(watch(self.clone(), user, host.clone()));
        Ok(host)
    }

    async fn running_host(&self, user: User) -> Option<Host> {
        self.hosts.lock().await.get(&user).cloned()
    }

    pub async fn start(self: &Arc<Self>, id: &str) -> Result<u32, Error> {
        let container = self.find(id)?;
        if container.phase() != Phase::Created {
            return Err(Error::Precondition(format!("container {id:?} was started before")));
        }
        if let Some(guest) = &container.guest
            && let Err(error) = self.run(guest).await
        {
            container.abandoned(Exit::now(START_FAILED), &self.events);
            return Err(error.into());
        }
        container.started(&self.events);
        Ok(container.pid)
    }

    async fn run(self: &Arc<Self>, guest: &Guest) -> anyhow::Result<()> {
        let ground = self.ground.get().context("no container was created")?;
        let mut spec = guest.spec.clone();
        spec.hostname.clone_from(&ground.hostname);
        spec.addresses = netns::addresses(ground.netns.clone()).await?;
        let host = self.host(guest.user, ground).await?;
        let status = host.client().start(spec).await;
        let status = status.map_err(|status| anyhow::anyhow!("{}", status.message()))?.into_inner();
        anyhow::ensure!(status.reason != CANNOT_RUN, "{}", status.message);
        Ok(())
    }

    /// Signals a container. A guest has no handlers: a signal that would end a process asks it to
    /// end (a proxy drains, a command ends at once), SIGKILL ends it.
    pub async fn kill(&self, id: &str, signal: u32) -> Result<(), Error> {
        let container = self.find(id)?;
        if container.phase() == Phase::Stopped {
            return Err(Error::Ended(id.into()));
        }
        let number = i32::try_from(signal).unwrap_or(-1);
        if !(0..=64).contains(&number) {
            return Err(Error::Invalid(format!("signal: {signal} is none")));
        }
        let harmless = [0, libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH];
        if harmless.contains(&number) {
            return Ok(());
        }
        let guest = match &container.guest {
            Some(guest) if container.phase() == Phase::Running => guest,
            _ => {
                container.abandoned(Exit::now(128 + signal), &self.events);
                return Ok(());
            }
        };
        if let Some(host) = self.running_host(guest.user).await {
            let grace_seconds = if number == libc::SIGKILL { 0 } else { u32::MAX };
            let request = StopRequest { id: id.into(), grace_seconds };
            // The end is told by the host's watch.
            tokio::spawn(async move { host.client().stop(request).await });
        }
        Ok(())
    }

    pub async fn delete(&self, id: &str) -> Result<(u32, Exit), Error> {
        let container = self.find(id)?;
        if container.phase() == Phase::Running {
            return Err(Error::Precondition(format!("container {id:?} runs: it has to be killed first")));
        }
        if let Some(guest) = &container.guest {
            if let Some(host) = self.running_host(guest.user).await.filter(Host::is_alive) {
                let removed = host.client().remove(RemoveRequest { id: id.into() }).await;
                removed.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
            }
            remove_tree(guest.dir.clone()).await?;
        }
        let exit = container.exit().unwrap_or_else(|| Exit::now(KILLED));
        self.containers().remove(id);
        let event = TaskDelete {
            container_id: id.into(),
            pid: container.pid,
            exit_status: exit.code,
            exited_at: Some(Timestamp::from(exit.at)),
        };
        self.events.publish("/tasks/delete", "TaskDelete", &event);
        Ok((container.pid, exit))
    }

    pub async fn usage(&self, id: &str) -> Result<Usage, Error> {
        let container = self.find(id)?;
        let Some(guest) = &container.guest else { return Ok(Usage::default()) };
        let mut usage = Usage { memory_limit: guest.spec.memory_bytes, ..Usage::default() };
        if let Some(host) = self.running_host(guest.user).await
            && let Ok(stats) = host.client().stats(Empty {}).await
            && let Some(stats) = stats.into_inner().items.into_iter().find(|stats| stats.id == id)
        {
            usage.cpu_nanoseconds = stats.cpu_nanoseconds;
            usage.memory_bytes = stats.memory_bytes;
        }
        Ok(usage)
    }

    fn ended(&self, status: &ContainerStatus) {
        let Ok(container) = self.find(&status.id) else { return };
        let since = Duration::from_millis(u64::try_from(status.finished_at_ms).unwrap_or_default());
        let exit = Exit {
            code: u32::try_from(status.exit_code).unwrap_or(255),
            at: SystemTime::UNIX_EPOCH + since,
            out_of_memory: status.reason == OOM_KILLED,
        };
        tracing::info!(id = status.id, code = exit.code, reason = status.reason, message = status.message, "ended");
        container.ended(exit, &self.events);
    }

    pub fn is_empty(&self) -> bool {
        self.containers().is_empty()
    }

    /// Ends the hosts and leaves nothing behind.
    pub async fn end(&self) {
        let mut hosts = self.hosts.lock().await;
        for (_, host) in hosts.drain() {
            if let Err(error) = host.stop(Duration::ZERO).await {
                tracing::error!("{error:#}");
            }
        }
        remove_tree(self.dir.clone()).await.unwrap_or_else(|error| tracing::error!("{error:#}"));
    }
}

async fn remove_tree(dir: PathBuf) -> anyhow::Result<()> {
    tokio::task::spawn_blocking(move || mount::remove_tree(&dir)).await?
}

/// Hears of containers' ends, and of their host's.
async fn watch(pod: Arc<Pod>, user: User, host: Host) {
    loop {
        if let Ok(changes) = host.client().watch(Empty {}).await {
            let mut changes = changes.into_inner();
            while let Ok(Some(status)) = changes.message().await {
                if status.state() == State::Exited {
                    pod.ended(&status);
                }
            }
        }
        if host.identity.gone(Duration::from_millis(200)).await {
            break;
        }
    }
    let all: Vec<_> = pod.containers().values().cloned().collect();
    for container in all {
        let its = container.guest.as_ref().is_some_and(|guest| guest.user == user);
        if its && container.phase() == Phase::Running {
            tracing::warn!(id = container.id, "the host process is gone");
            container.ended(Exit::now(KILLED), &pod.events);
        }
    }
}
