//! The three ways containerd calls the shim: to start it, to serve, and to clean up after it.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use anyhow::Context as _;
use nix::libc;
use prost::Message as _;
use sampan_process::Identity;
use sampan_wasm::launch;
use tokio_util::sync::CancellationToken;

use crate::events::Events;
use crate::flags::Flags;
use crate::module::Modules;
use crate::oci::Spec;
use crate::pod::Pod;
use crate::proto::task::DeleteResponse;
use crate::task::Task;
use crate::{mount, settings, ttrpc};

const SOCKET: &str = "shim.sock";
/// Who serves: process id and start time.
const RECORD: &str = "shim.json";
/// containerd looks here for a shim's address when it starts again.
const ADDRESS: &str = "address";

/// `start`: gives the address of the pod's shim, which is started if it is not there yet.
pub fn start(flags: &Flags) -> anyhow::Result<String> {
    let bundle = std::env::current_dir().context("the bundle")?;
    let spec = Spec::read(&bundle)?;
    let group = spec.group(&flags.id);
    let dir = settings::pod_dir(flags, group);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).with_context(|| dir.display().to_string())?;
    let socket = dir.join(SOCKET);
    let address = format!("unix://{}", socket.display());
    let listener = match UnixListener::bind(&socket) {
        Ok(listener) => Some(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => match UnixStream::connect(&socket) {
            Ok(_) => None,
            // Its shim is gone.
            Err(_) => {
                std::fs::remove_file(&socket)?;
                Some(UnixListener::bind(&socket)?)
            }
        },
        Err(error) => return Err(error).with_context(|| socket.display().to_string()),
    };
    std::fs::write(bundle.join(ADDRESS), &address).context(ADDRESS)?;
    if let Some(listener) = listener {
        let mut command = std::process::Command::new("/proc/self/exe");
        command
            .args(["-namespace", &flags.namespace, "-id", group, "-address", &flags.address])
            .args(flags.debug.then_some("-debug"))
            .arg("serve")
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        command.spawn().context("starting the shim")?;
    }
    Ok(address)
}

/// `serve`: answers containerd on the socket that is our standard input.
pub fn serve(flags: &Flags) -> anyhow::Result<()> {
    log(flags.debug);
    answer(flags).inspect_err(|error| tracing::error!("{error:#}"))
}

fn answer(flags: &Flags) -> anyhow::Result<()> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let socket = std::io::stdin().as_fd().try_clone_to_owned().context("the socket")?;
    let socket = UnixListener::from(socket);
    socket.set_nonblocking(true)?;
    nix::unistd::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    let dir = settings::pod_dir(flags, &flags.id);
    let record = serde_json::to_vec(&Identity::own().context("/proc/self/stat")?)?;
    std::fs::write(dir.join(RECORD), record).context(RECORD)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let events = Events::start(&flags.namespace, std::env::var_os("TTRPC_ADDRESS").map(PathBuf::from));
        let modules = Modules::open(&settings::cache_dir())?;
        let name = format!("{}/{}", flags.namespace, flags.id);
        let pod = Pod::new(name, dir, modules, events.clone());
        let shutdown = CancellationToken::new();
        let task = Arc::new(Task { pod: Arc::new(pod), shutdown: shutdown.clone() });
        let listener = tokio::net::UnixListener::from_std(socket)?;
        tokio::select! {
            () = ttrpc::serve(listener, task) => {}
            () = shutdown.cancelled() => {}
        }
        events.flush().await;
        Ok(())
    })
}

/// `delete`: containerd's connection to a container's shim has ended. If the shim has ended too,
/// nothing of its pod may stay; one that serves other containers of the pod goes on.
pub fn delete(flags: &Flags) -> anyhow::Result<Vec<u8>> {
    let bundle = match flags.bundle.is_empty() {
        true => std::env::current_dir().context("the bundle")?,
        false => PathBuf::from(&flags.bundle),
    };
    let spec = Spec::read(&bundle).ok();
    let group = spec.as_ref().map_or(flags.id.as_str(), |spec| spec.group(&flags.id));
    let dir = settings::pod_dir(flags, group);
    let shim = std::fs::read(dir.join(RECORD)).ok();
    let shim: Option<Identity> = shim.and_then(|record| serde_json::from_slice(&record).ok());
    let pid = shim.map_or(0, |shim| u32::try_from(shim.pid).unwrap_or_default());
    if !shim.is_some_and(|shim| shim.is_alive()) && dir.exists() {
        clean(&dir)?;
    }
    let exited_at = Some(prost_types::Timestamp::from(std::time::SystemTime::now()));
    Ok(DeleteResponse { pid, exit_status: 137, exited_at }.encode_to_vec())
}

fn clean(dir: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        for (tenant, record) in launch::list(dir) {
            launch::kill(&tenant, &record).await;
        }
    });
    mount::remove_tree(dir)
}

/// Log lines go to containerd's, by the FIFO it made. A full one loses lines and stops nobody.
fn log(debug: bool) {
    let filter = if debug { "debug" } else { "info" };
    let fifo = std::fs::File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("log");
    if let Ok(fifo) = fifo {
        let writer = std::sync::Mutex::new(fifo);
        let filter = tracing_subscriber::EnvFilter::new(format!("warn,containerd_shim_sampan_v1={filter}"));
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(writer).init();
    }
}
