//! OCI containers: the node's containerd, started when the first pod needs it and found again
//! after a restart, and the sandboxes of pods in it.

pub mod images;
mod runtime;
mod sandbox;
pub mod spec;
mod views;
mod watch;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use sampan_oci::{Containerd, Daemon, DaemonOptions, Installed, cni};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::pod::paths::{self, Paths};
use crate::runtime::{ContainerId, RuntimeEvent};
pub use sandbox::Ground;

/// Which containerd a node has.
#[derive(Clone, Debug)]
pub enum Which {
    /// One that somebody else runs, by its socket. Its network configuration is its own.
    Given(PathBuf),
    /// One of our own, in this directory, with these handlers.
    Own { dir: PathBuf, handlers: Vec<String> },
    /// None, and why.
    None(String),
}

impl Which {
    /// What this machine can have.
    pub fn find(given: Option<&Path>, dir: &Path, privileged: bool) -> Self {
        match given {
            Some(socket) => Self::Given(socket.to_owned()),
            None if !privileged => Self::None("a node has to be root for them".to_owned()),
            None => match Installed::find() {
                Ok(installed) => {
                    let found = [("runc", installed.runc.is_some()), ("crun", installed.crun.is_some())];
                    let handlers = found.into_iter().filter(|(_, here)| *here).map(|(name, _)| name.to_owned());
                    Self::Own { dir: dir.to_owned(), handlers: handlers.collect() }
                }
                Err(error) => Self::None(error.to_string()),
            },
        }
    }

    /// Whether somebody else runs it, and may have things of his own in it.
    pub fn is_given(&self) -> bool {
        matches!(self, Self::Given(_))
    }

    /// Whether Linux containers run here; if not, why.
    pub fn available(&self) -> Result<(), &str> {
        match self {
            Self::None(why) => Err(why),
            _ => Ok(()),
        }
    }

    /// Names of the handlers that RuntimeClasses may ask for, as far as they are known: of somebody
    /// else's containerd only it can tell.
    pub fn handlers(&self) -> &[String] {
        match self {
            Self::Own { handlers, .. } => handlers,
            _ => &[],
        }
    }

    pub fn has_handler(&self, name: &str) -> bool {
        matches!(self, Self::Given(_)) || self.handlers().iter().any(|known| known == name)
    }

    /// Whether an earlier agent may have left containers.
    fn has_history(&self) -> bool {
        match self {
            Self::Given(_) => true,
            Self::Own { dir, .. } => dir.exists(),
            Self::None(_) => false,
        }
    }
}

pub struct Settings {
    pub paths: Paths,
    pub cluster_id: String,
    pub node_name: String,
    /// Where pods get their addresses, from a containerd of our own.
    pub network: cni::Network,
}

/// containerd's names of what is ours.
#[derive(Default)]
struct Known {
    ids: HashMap<ContainerId, String>,
    names: HashMap<String, ContainerId>,
    /// Killed by the kernel for want of memory, and not yet seen to have ended.
    starved: HashSet<String>,
}

/// The node's containerd.
pub struct Oci {
    pub which: Which,
    settings: Settings,
    /// Held while one is being started.
    starting: tokio::sync::Mutex<()>,
    connected: Mutex<Option<Containerd>>,
    /// Pods that had sandboxes when containerd was first asked.
    found: Mutex<HashSet<String>>,
    known: Mutex<Known>,
    /// By pod.
    grounds: Mutex<HashMap<String, Ground>>,
    events: mpsc::UnboundedSender<RuntimeEvent>,
    stop: CancellationToken,
}

/// Below the node's directory.
pub const DIR: &str = "containerd";
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

impl Oci {
    /// Events go where those of the node's other runtime go. What this starts to watch ends with `stop`.
    pub fn new(
        which: Which,
        settings: Settings,
        events: mpsc::UnboundedSender<RuntimeEvent>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            which,
            settings,
            starting: tokio::sync::Mutex::default(),
            connected: Mutex::default(),
            found: Mutex::default(),
            known: Mutex::default(),
            grounds: Mutex::default(),
            events,
            stop,
        })
    }

    /// Whether Linux containers run here; if not, why.
    pub fn available(&self) -> Result<(), &str> {
        self.which.available()
    }

    /// Finds again what an earlier agent left. Where that were pods, they are waited for: they run, and
    /// without containerd nobody can tell.
    pub async fn resume(self: &Arc<Self>) {
        let mut wait = RETRY;
        while self.which.has_history()
            && let Err(error) = self.client().await
        {
            tracing::error!(error = format!("{error:#}"), "containerd is not there");
            let tenants = std::fs::read_dir(self.settings.paths.tenants()).into_iter().flatten().flatten();
            let mut names = tenants.map(|tenant| tenant.file_name().to_string_lossy().into_owned());
            if !names.any(|name| paths::is_isolated(&name)) {
                return;
            }
            tokio::time::sleep(wait).await;
            wait = (wait + wait).min(RETRY_MAX);
        }
    }

    fn node(&self) -> String {
        format!("{}.{}", self.settings.cluster_id, self.settings.node_name)
    }

    /// What everything of this node is labelled with: a containerd may be shared.
    fn label(&self) -> BTreeMap<String, String> {
        BTreeMap::from([(spec::NODE.to_owned(), self.node())])
    }

    /// containerd, if it is in use.
    pub fn running(&self) -> Option<Containerd> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// containerd, started if need be.
    pub async fn client(self: &Arc<Self>) -> anyhow::Result<Containerd> {
        let _starting = self.starting.lock().await;
        if let Some(client) = self.running() {
            return Ok(client);
        }
        let client = match &self.which {
            Which::None(why) => anyhow::bail!("this node has no containerd: {why}"),
            Which::Given(socket) => given(socket).await?,
            Which::Own { dir, .. } => {
                let options =
                    DaemonOptions { network: Some(self.settings.network.clone()), ..DaemonOptions::default() };
                let daemon = Daemon::start(dir, &options).await.context("containerd")?;
                let client = daemon.client().clone();
                tokio::spawn(keep(dir.clone(), options, daemon, self.stop.clone()));
                client
            }
        };
        let version = client.version();
        tracing::info!(socket = %client.socket().display(), version = version.version, "containerd is in use");
        let found = self.sandboxes_of(&client).await?.into_keys().collect();
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
        *self.connected.lock().unwrap_or_else(PoisonError::into_inner) = Some(client.clone());
        tokio::spawn(self.clone().watch(client.clone()));
        Ok(client)
    }

    /// Ends a containerd of our own, after its pods. One that is somebody else's goes on.
    pub async fn end(&self) -> anyhow::Result<()> {
        let connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(_), Which::Own { dir, .. }) = (connected, &self.which) {
            self.stop.cancel();
            Daemon::stop_in(dir).await?;
        }
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grounds(&self) -> MutexGuard<'_, HashMap<String, Ground>> {
        self.grounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a pod stands, if that is a sandbox of containerd's.
    pub fn ground(&self, pod_uid: &str) -> Option<Ground> {
        self.grounds().get(pod_uid).cloned()
    }

    /// Whether a pod has a sandbox, perhaps of an earlier agent's.
    pub fn has_sandbox(&self, pod_uid: &str) -> bool {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner).contains(pod_uid);
        found || self.grounds().contains_key(pod_uid)
    }

    /// Whether a container is containerd's.
    pub fn has(&self, id: &ContainerId) -> bool {
        self.known().ids.contains_key(id)
    }

    fn id(&self, id: &ContainerId) -> Option<String> {
        self.known().ids.get(id).cloned()
    }

    /// containerd's id of a container's latest run.
    pub fn latest(&self, pod_uid: &str, container: &str) -> Option<String> {
        let known = self.known();
        let runs = known.ids.iter().filter(|(id, _)| id.pod_uid == pod_uid && id.container == container);
        runs.max_by_key(|(id, _)| id.attempt).map(|(_, name)| name.clone())
    }

    fn note(&self, id: &ContainerId, name: &str) {
        let mut known = self.known();
        known.ids.insert(id.clone(), name.to_owned());
        known.names.insert(name.to_owned(), id.clone());
    }

    fn forget(&self, id: &ContainerId) {
        let mut known = self.known();
        if let Some(name) = known.ids.remove(id) {
            known.names.remove(&name);
            known.starved.remove(&name);
        }
    }
}

/// Whether an error means that containerd is away, and says nothing of what was asked.
pub fn is_unavailable(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<sampan_oci::Error>().is_some_and(sampan_oci::Error::is_unavailable))
}

/// Somebody else's containerd, with what it needs to run a pod.
async fn given(socket: &Path) -> anyhow::Result<Containerd> {
    let client = Containerd::connect(socket).await?;
    let settings = client.settings().await?;
    if let Some(error) = settings.cni_error {
        tracing::warn!(error, "containerd has no network for pods");
    }
    if let Some(pause) = settings.sandbox_image
        && client.image_status(&pause).await?.is_none()
    {
        client.import_pause_image(&pause).await?;
    }
    Ok(client)
}

/// Starts a containerd of ours again when it has ended: its pods go on in between.
async fn keep(dir: PathBuf, options: DaemonOptions, mut daemon: Daemon, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = daemon.ended() => tracing::warn!("containerd has ended; starting it again"),
        }
        let mut wait = RETRY;
        daemon = loop {
            match Daemon::start(&dir, &options).await {
                Ok(daemon) => break daemon,
                Err(error) => tracing::error!(%error, "containerd does not start; trying again"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => wait = (wait + wait).min(RETRY_MAX),
            }
        };
    }
}
