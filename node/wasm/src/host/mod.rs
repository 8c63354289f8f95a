//! The host process: it binds its Unix socket and writes its record in the tenant's directory, which
//! is the agent's, is confined from then on, and serves the agent.

mod command;
mod container;
mod exec;
mod proxy;
mod service;
mod state;

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use wasmtime::Engine;

use crate::cgroup::Cgroup;
use crate::engine::{self, Ticker};
use crate::launch::{HostConfig, PODS, RECORD, Ready, Record, SOCKET};
use crate::logs::{self, Sweeper, write_whole};
use crate::net::Rules;
use crate::proto::host_server::{Host as _, HostServer};
use crate::proto::{ContainerStatus, HostInfo, ModuleKind, PROTOCOL, ShutdownRequest};
use crate::sandbox;
use sampan_process::Identity;

use state::Loaded;
pub use state::check;

/// Threads for guests' file operations, over all containers.
const BLOCKING: usize = 32;

/// What all containers of the process share.
pub struct Shared {
    engine: Engine,
    ticker: Ticker,
    /// Where guests run; the protocol has a runtime of its own and answers however busy they are.
    guests: tokio::runtime::Handle,
    rules: Arc<Rules>,
    modules: OwnedFd,
    loaded: Mutex<HashMap<String, Arc<tokio::sync::OnceCell<Loaded>>>>,
    sweeper: Sweeper,
    changes: broadcast::Sender<ContainerStatus>,
}

impl Shared {
    fn tell(&self, status: ContainerStatus) {
        let _ = self.changes.send(status);
    }

    /// Unmaps a module that no container is made of any more.
    fn unload(&self, file: &str, kind: ModuleKind) {
        let mut loaded = self.loaded.lock().unwrap_or_else(|e| e.into_inner());
        loaded.remove(&format!("{}/{file}", kind.as_str_name()));
    }

    /// Maps and links a module once for all of its containers.
    async fn load(&self, file: &str, kind: ModuleKind) -> anyhow::Result<Loaded> {
        let key = format!("{}/{file}", kind.as_str_name());
        let cell = {
            let mut loaded = self.loaded.lock().unwrap_or_else(|e| e.into_inner());
            loaded.entry(key).or_default().clone()
        };
        let map = || async {
            let path = format!("/proc/self/fd/{}/{file}", self.modules.as_raw_fd());
            let engine = self.engine.clone();
            tokio::task::spawn_blocking(move || {
                // SAFETY: only the agent writes the modules' directory, and only what our
                // compiler's process made; this process cannot write it.
                unsafe { Loaded::map(&engine, kind, path.as_ref()) }
            })
            .await?
        };
        cell.get_or_try_init(map).await.cloned().with_context(|| format!("module {file}"))
    }
}

/// The hidden subcommand `wasm-host`: its task on standard input, its first answer on standard
/// output. Call it before any thread is started.
pub fn main(_: Vec<String>) -> anyhow::Result<()> {
    let mut task = Vec::new();
    std::io::stdin().lock().read_to_end(&mut task).context("reading the task")?;
    let config: HostConfig = serde_json::from_slice(&task).context("task")?;

    // SAFETY: the process has one thread, so the child is as whole as the parent.
    match unsafe { nix::unistd::fork() }.context("fork")? {
        // The starter waits for this process; the host itself is nobody's child.
        nix::unistd::ForkResult::Parent { .. } => return Ok(()),
        nix::unistd::ForkResult::Child => {}
    }
    let result = detach().and_then(|out| {
        let starter = Starter(Mutex::new(Some(out)));
        serve(&config, &starter).inspect_err(|error| starter.answer(&Ready::Failed(format!("{error:#}"))))
    });
    if let Err(error) = &result {
        eprintln!("{error:#}");
    }
    std::process::exit(i32::from(result.is_err()))
}

/// Leaves session, terminal and pipes of the starter; gives the pipe for the first answer.
fn detach() -> anyhow::Result<File> {
    nix::unistd::setsid().context("setsid")?;
    let out = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    Ok(out)
}

/// Who started us, until it is answered: it reads to the pipe's end.
struct Starter(Mutex<Option<File>>);

impl Starter {
    fn answer(&self, ready: &Ready) {
        let out = self.0.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(mut out) = out {
            let _ = serde_json::to_vec(ready).map(|line| out.write_all(&line));
        }
    }
}

fn serve(config: &HostConfig, starter: &Starter) -> anyhow::Result<()> {
    let tenant = sandbox::open_dir(&config.tenant_dir)?;
    let modules = sandbox::open_dir(&config.modules_dir)?;
    let agent = rustix::process::geteuid();
    let mut isolation = Vec::new();
    if let Some(name) = &config.cgroup {
        Cgroup::named(name)?.join(std::process::id()).context("control group")?;
        isolation.push("cgroup");
    }
    if let Some(path) = &config.netns {
        let netns = File::open(path).with_context(|| path.display().to_string())?;
        sandbox::enter_network(netns.as_fd())?;
        isolation.push("netns");
    }
    rustix::process::fchdir(&tenant).context("tenant's directory")?;
    sandbox::raise_descriptors();
    sandbox::limit(rustix::process::Resource::Core, 0);
    // Before confinement: both look at /proc, which is out of reach then.
    let identity = Identity::own().context("/proc/self/stat")?;
    let engine = engine::runner()?;
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let record = Record {
        identity,
        protocol: PROTOCOL,
        engine: engine::hash(&engine),
        namespace: config.namespace.clone(),
        cgroup: config.cgroup.clone(),
    };
    // As the agent's files, which whatever breaks out of a guest cannot replace.
    // The mask rather than a chmod after: nobody else connects in between.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    let listener = std::os::unix::net::UnixListener::bind(SOCKET).context(SOCKET)?;
    listener.set_nonblocking(true).context(SOCKET)?;
    write_whole(RECORD.as_ref(), &serde_json::to_vec(&record)?).context(RECORD)?;
    let pods = sandbox::open_dir(PODS.as_ref())?;

    sandbox::drop_privileges(config.user)?;
    isolation.push("non-dumpable");
    if config.user.is_some() {
        isolation.push("user");
    }
    let paths =
        [sandbox::Path { dir: pods.as_fd(), write: true }, sandbox::Path { dir: modules.as_fd(), write: false }];
    if sandbox::landlock(&paths)? {
        isolation.push("landlock");
    }
    sandbox::seccomp(true)?;
    isolation.push("seccomp");

    let guests = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .max_blocking_threads(BLOCKING)
        .thread_name("guests")
        .enable_all()
        .build()?;
    let control = tokio::runtime::Builder::new_current_thread().max_blocking_threads(4).enable_all().build()?;
    let info = HostInfo {
        protocol: PROTOCOL,
        version: env!("CARGO_PKG_VERSION").into(),
        namespace: config.namespace.clone(),
        pid: identity.pid,
        engine: record.engine.clone(),
        start_time: identity.start_time,
        isolation: isolation.into_iter().map(Into::into).collect(),
    };
    let shared = Arc::new(Shared {
        ticker: Ticker::start(&engine)?,
        engine,
        guests: guests.handle().clone(),
        rules: Arc::new(Rules {
            cluster: config.cluster_ranges.clone(),
            denied: config.denied_ranges.clone(),
            shift: config.port_shift,
            nameserver: config.nameserver,
            own_loopback: config.own_loopback,
        }),
        modules,
        loaded: Mutex::default(),
        sweeper: Sweeper::default(),
        changes: broadcast::Sender::new(1024),
    });
    let own = rustix::process::geteuid();
    let ready = Ready::Serving(record);
    control.block_on(run(shared, info, listener, || starter.answer(&ready), [agent.as_raw(), own.as_raw(), 0]))?;
    // Socket and record are whoever's started us; a record without a process is nobody's.
    guests.shutdown_background();
    Ok(())
}

async fn run(
    shared: Arc<Shared>,
    info: HostInfo,
    listener: std::os::unix::net::UnixListener,
    ready: impl FnOnce(),
    users: [u32; 3],
) -> anyhow::Result<()> {
    use tokio_stream::StreamExt as _;
    let shutdown = CancellationToken::new();
    let sweeper = shared.sweeper.clone();
    let listener = tokio::net::UnixListener::from_std(listener).context(SOCKET)?;
    let service = Arc::new(service::Service::new(shared, info, shutdown.clone()));

    let connections = tokio_stream::wrappers::UnixListenerStream::new(listener).filter(move |stream| {
        let peer = stream.as_ref().ok().and_then(|stream| stream.peer_cred().ok());
        peer.is_some_and(|peer| users.contains(&peer.uid()))
    });
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let on_terminate = service.clone();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        terminate.recv().await;
        let _ = on_terminate.shutdown(tonic::Request::new(ShutdownRequest { grace_seconds: 1 })).await;
        stop.cancel();
    });
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(logs::LINGER).await;
            sweeper.sweep();
        }
    });
    ready();
    let server = tonic::transport::Server::builder()
        .add_service(HostServer::from_arc(service))
        .serve_with_incoming_shutdown(connections, shutdown.cancelled());
    tokio::pin!(server);
    tokio::select! {
        result = &mut server => result.context("serving"),
        // Watchers hold their connection open: they do not hold up the end.
        () = async { shutdown.cancelled().await; tokio::time::sleep(Duration::from_millis(200)).await } => Ok(()),
    }
}
