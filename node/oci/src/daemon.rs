//! A containerd of our own: started, found again, ended.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::client::Containerd;
use crate::cni;
use crate::config::{self, Paths};
use crate::error::{Error, Result};
use crate::installed::Installed;
use crate::pause;
use crate::purge;
use sampan_process::Identity;

/// How long it may take to serve.
const START: Duration = Duration::from_secs(60);
/// Above this the log starts anew when containerd does.
const LOG_BYTES: u64 = 16 << 20;

#[derive(Debug, Clone, Default)]
pub struct DaemonOptions {
    /// The pods' network; `None`: whoever writes into [`Daemon::cni_conf_dir`] makes it.
    pub network: Option<cni::Network>,
    /// `hosts.toml` per registry; `None`: in the daemon's own directory.
    pub registry_config_dir: Option<PathBuf>,
    /// Writes much into its log.
    pub debug: bool,
}

/// A containerd that runs as long as nobody stops it: it and its pods outlive this process.
#[derive(Debug)]
pub struct Daemon {
    client: Containerd,
    identity: Identity,
    paths: Paths,
    handlers: Vec<&'static str>,
}

/// What is kept of a started one.
#[derive(Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    identity: Identity,
    socket: PathBuf,
}

impl Daemon {
    /// Gives the containerd of this directory: the one that runs, if its configuration is still what is
    /// wanted, else a new one, which finds the pods of the one before.
    pub async fn start(dir: &Path, options: &DaemonOptions) -> Result<Daemon> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::Daemon("only root can start one; Wasm pods need none".into()));
        }
        let installed = Installed::find()?;
        let paths = Paths::of(dir)?;
        paths.make()?;
        if let Some(network) = &options.network {
            network.write(&paths.cni_conf(), &paths.cni_state(), &installed)?;
        }
        config::write_crun(&paths, &installed)?;
        let config = config::render(&paths, &installed, options);
        let same = std::fs::read_to_string(paths.config()).is_ok_and(|before| before == config);
        let recorded = recorded(&paths);
        if let Some(identity) = recorded.filter(Identity::is_alive) {
            match adopt(&paths, identity).await {
                Ok(client) if same => return Daemon::ready(client, identity, paths, &installed).await,
                Ok(_) => tracing::info!(pid = identity.pid, "containerd starts again with another configuration"),
                Err(error) => tracing::warn!(pid = identity.pid, %error, "replacing containerd"),
            }
        }
        // Also one that was started and not written down.
        for identity in recorded.into_iter().chain(purge::daemons(&paths)) {
            end(identity).await?;
        }
        write(&paths.config(), config.as_bytes())?;
        let identity = spawn(&paths, &installed)?;
        match serve(&paths, identity).await {
            Ok(client) => Daemon::ready(client, identity, paths, &installed).await,
            Err(error) => {
                end(identity).await?;
                Err(error)
            }
        }
    }

    async fn ready(client: Containerd, identity: Identity, paths: Paths, installed: &Installed) -> Result<Daemon> {
        pause::ensure(&client).await?;
        let handlers = [("runc", &installed.runc), ("crun", &installed.crun)];
        let handlers = handlers.into_iter().filter(|(_, found)| found.is_some()).map(|(name, _)| name).collect();
        Ok(Daemon { client, identity, paths, handlers })
    }

    pub fn client(&self) -> &Containerd {
        &self.client
    }

    pub fn identity(&self) -> Identity {
        self.identity
    }

    pub fn cni_conf_dir(&self) -> PathBuf {
        self.paths.cni_conf()
    }

    /// Names of the runtime handlers; the first is the default.
    pub fn runtime_handlers(&self) -> &[&'static str] {
        &self.handlers
    }

    /// Returns when it has ended, however that came: it can be started again.
    pub async fn ended(&self) {
        self.identity.ended().await;
    }

    /// Ends containerd. Its pods go on, and the next start finds them.
    pub async fn stop(self) -> Result<()> {
        end(self.identity).await?;
        let _ = std::fs::remove_file(self.paths.record());
        Ok(())
    }

    /// The same, of whoever started it.
    pub async fn stop_in(dir: &Path) -> Result<()> {
        let paths = Paths::of(dir)?;
        for identity in recorded(&paths).into_iter().chain(purge::daemons(&paths)) {
            end(identity).await?;
        }
        let _ = std::fs::remove_file(paths.record());
        Ok(())
    }

    /// As [`Daemon::purge`], but the directory stays, and with it the images. Tells how many containers
    /// there were, pods' own included.
    pub fn clean(dir: &Path) -> Result<usize> {
        let paths = Paths::of(dir)?;
        let removed = purge::clean(&paths, recorded(&paths))?;
        let _ = std::fs::remove_file(paths.record());
        Ok(removed)
    }

    /// Ends the containerd of a directory and all its containers, whether it can be driven or not, and
    /// removes everything of it from the machine. Blocks, for seconds where much is left.
    pub fn purge(dir: &Path) -> Result<()> {
        purge::purge(&Paths::of(dir)?, recorded(&Paths::of(dir)?))
    }
}

fn recorded(paths: &Paths) -> Option<Identity> {
    let record: Record = serde_json::from_slice(&std::fs::read(paths.record()).ok()?).ok()?;
    (record.socket == paths.socket()).then_some(record.identity)
}

/// The process of the record has to be the one that answers.
async fn adopt(paths: &Paths, identity: Identity) -> Result<Containerd> {
    let socket = paths.socket();
    let stream = tokio::net::UnixStream::connect(&socket).await.map_err(Error::io(&socket))?;
    let peer = stream.peer_cred().map_err(Error::io(&socket))?.pid();
    if peer != Some(identity.pid) {
        let reason = format!("process {peer:?} listens where {} should", identity.pid);
        return Err(Error::Unsuitable { socket, reason });
    }
    Containerd::connect(&socket).await
}

/// In a session of its own, with nothing inherited but the log.
fn spawn(paths: &Paths, installed: &Installed) -> Result<Identity> {
    let path = paths.log();
    if path.metadata().is_ok_and(|m| m.len() > LOG_BYTES) {
        std::fs::rename(&path, path.with_extension("log.1")).map_err(Error::io(&path))?;
    }
    let log = std::fs::File::options().create(true).append(true).open(&path).map_err(Error::io(&path))?;
    let copy: OwnedFd = log.try_clone().map_err(Error::io(&path))?.into();
    let mut command = tokio::process::Command::new(&installed.containerd);
    command
        .arg("--config")
        .arg(paths.config())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(copy);
    let places = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let path = std::env::var("PATH").map_or(places.to_owned(), |path| format!("{path}:{places}"));
    command.env("PATH", path);
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    // Nothing but a system call between fork and exec.
    unsafe {
        command.pre_exec(|| Ok(rustix::process::setsid().map(drop)?));
    }
    let mut child = command.spawn().map_err(Error::io(&installed.containerd))?;
    let identity = child.id().and_then(|pid| Identity::of(i32::try_from(pid).ok()?));
    let identity = identity.ok_or_else(|| Error::Daemon(format!("ended at its start; {}", tail(paths))))?;
    let record = Record { identity, socket: paths.socket() };
    let record = serde_json::to_vec(&record).map_err(|e| Error::Daemon(e.to_string()))?;
    write(&paths.record(), &record)?;
    // Reaps it, should it end before us.
    tokio::spawn(async move { child.wait().await });
    Ok(identity)
}

/// Nothing tells when a socket begins to answer: asks until it does.
async fn serve(paths: &Paths, identity: Identity) -> Result<Containerd> {
    let connected = async {
        loop {
            match Containerd::connect(&paths.socket()).await {
                Ok(client) => return client,
                Err(error) => tracing::trace!(%error, "containerd is not up yet"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = identity.ended() => Err(Error::Daemon(format!("ended at its start; {}", tail(paths)))),
        client = tokio::time::timeout(START, connected) => match client {
            Ok(client) => Ok(client),
            Err(_) => {
                let why = Containerd::connect(&paths.socket()).await.err().map(|e| e.to_string()).unwrap_or_default();
                Err(Error::Daemon(format!("does not serve after {} s: {why}; {}", START.as_secs(), tail(paths))))
            }
        },
    }
}

async fn end(identity: Identity) -> Result<()> {
    identity.signal(Signal::TERM);
    if !identity.gone(Duration::from_secs(10)).await {
        identity.signal(Signal::KILL);
        if !identity.gone(Duration::from_secs(10)).await {
            return Err(Error::Daemon(format!("process {} does not end", identity.pid)));
        }
    }
    Ok(())
}

/// Whole or not at all.
fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    let new = file.with_extension("new");
    std::fs::write(&new, bytes).map_err(Error::io(&new))?;
    std::fs::rename(&new, file).map_err(Error::io(file))
}

/// Where the log is, and its last words.
fn tail(paths: &Paths) -> String {
    let log = std::fs::read(paths.log()).unwrap_or_default();
    let last = String::from_utf8_lossy(log.get(log.len().saturating_sub(2000)..).unwrap_or_default()).into_owned();
    let mut lines: Vec<_> = last.lines().rev().take(3).collect();
    lines.reverse();
    format!("see {}: {}", paths.log().display(), lines.join(" | "))
}
