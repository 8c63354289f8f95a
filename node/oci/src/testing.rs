//! For tests, ours and other crates': local images, and a containerd that leaves nothing behind.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use ipnet::{IpNet, Ipv4Net};

use crate::cgroup;
use crate::cni::Network;
use crate::daemon::{Daemon, DaemonOptions};
use crate::error::{Error, Result};
use crate::installed::{Installed, program};
use crate::layout::{Layer, Layout};
use sampan_process::Identity;

pub const BUSYBOX: &str = "localhost/test/busybox:1";
/// Of the directories of tests; the pid follows.
const PREFIX: &str = "sampan-oci-test-";

/// Why OCI containers cannot be tried here, for a test to print and stop; `None`: they can.
pub fn unavailable() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".into());
    }
    if program("busybox").is_none() {
        return Some("not installed: busybox (static)".into());
    }
    Installed::find().err().map(|error| error.to_string())
}

/// busybox with its usual names, a user, and `/tmp`.
pub fn busybox() -> std::io::Result<Layout> {
    let busybox = program("busybox").ok_or_else(|| std::io::Error::other("busybox is not installed"))?;
    let list = std::process::Command::new(&busybox).arg("--list").output()?.stdout;
    let mut layer = Layer::new();
    for (dir, mode) in
        [("bin", 0o755), ("dev", 0o755), ("etc", 0o755), ("proc", 0o755), ("sys", 0o755), ("tmp", 0o1777)]
    {
        layer.directory(dir, mode)?;
    }
    layer.file("bin/busybox", 0o755, &std::fs::read(busybox)?)?;
    for name in String::from_utf8_lossy(&list).lines().filter(|name| *name != "busybox") {
        layer.symlink(&format!("bin/{name}"), "busybox")?;
    }
    layer.file("etc/passwd", 0o644, b"root:x:0:0::/:/bin/sh\nguest:x:1000:1000::/:/bin/sh\n")?;
    layer.file("etc/group", 0o644, b"root:x:0:\nguest:x:1000:\nextra:x:2000:guest\n")?;
    Ok(Layout::new().layer(layer)?.cmd(&["/bin/sh"]).env(&["PATH=/bin"]))
}

/// An archive in a directory.
pub fn save(layout: &Layout, file: &Path) -> std::io::Result<()> {
    layout.write(std::io::BufWriter::new(File::create(file)?))
}

/// A containerd with a range and control groups of its own. Dropping it takes everything away, also
/// while a test fails.
pub struct Node {
    pub daemon: Daemon,
    /// Its data dir; logs may go here.
    pub dir: PathBuf,
    pub options: DaemonOptions,
    pub range: Ipv4Net,
    cleanup: Cleanup,
    // After the cleanup: until then its addresses are in use.
    _range: File,
}

/// Exists before anything that it takes away.
struct Cleanup {
    base: PathBuf,
    dir: PathBuf,
    cgroup: String,
}

impl Cleanup {
    fn of(base: PathBuf, name: &str) -> Cleanup {
        Cleanup { dir: base.join("containerd"), cgroup: format!("sampan-test-{name}"), base }
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        // Not only told: what stays behind disturbs what runs next.
        let purged = Daemon::purge(&self.dir).and_then(|()| cgroup::purge(&self.cgroup));
        let removed = std::fs::remove_dir_all(&self.base).map_err(Error::io(&self.base));
        if let Err(error) = purged.and(removed) {
            eprintln!("cleaning up: {error}");
        }
    }
}

/// Takes away what tests left that were killed: no guard of theirs ran.
fn sweep() {
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let file_name = entry.file_name();
        let Some(name) = file_name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        let pid = name.split('-').next().and_then(|pid| pid.parse().ok());
        if pid.is_some_and(|pid| Identity::of(pid).is_none()) {
            drop(Cleanup::of(entry.path(), name));
        }
    }
}

impl Node {
    /// Starts one, with [`BUSYBOX`] in it.
    pub async fn start() -> Result<Node> {
        Node::start_with(|_| {}).await
    }

    /// The same with another network.
    pub async fn start_with(change: impl FnOnce(&mut Network)) -> Result<Node> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let name = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let base = std::env::temp_dir().join(format!("{PREFIX}{name}"));
        let (range, lock) = range()?;
        let cleanup = Cleanup::of(base, &name);
        let dir = cleanup.dir.clone();
        std::fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
        let mut network = Network::new(format!("test-{name}"), [IpNet::V4(range)]);
        change(&mut network);
        let options = DaemonOptions { network: Some(network), ..Default::default() };
        let daemon = Daemon::start(&dir, &options).await?;
        let node = Node { daemon, dir, options, range, cleanup, _range: lock };
        let archive = node.base().join("busybox.tar");
        busybox().and_then(|layout| save(&layout, &archive)).map_err(Error::io(&archive))?;
        node.daemon.client().import(&archive, BUSYBOX).await?;
        Ok(node)
    }

    /// Starts its containerd again after it was stopped or killed.
    pub async fn restart(&mut self) -> Result<()> {
        self.daemon = Daemon::start(&self.dir, &self.options).await?;
        Ok(())
    }

    /// A directory beside containerd's own.
    pub fn base(&self) -> &Path {
        &self.cleanup.base
    }

    /// A control group for a pod.
    pub fn cgroup(&self, pod: &str) -> String {
        format!("/{}/{pod}", self.cleanup.cgroup)
    }
}

/// A range that no other test has, as long as the file is held.
fn range() -> Result<(Ipv4Net, File)> {
    let dir = Path::new("/run/lock/sampan-test-ranges");
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let (first, count) = (std::process::id(), 32 << 8);
    for number in (0..count).map(|n| (first + n) % count) {
        let path = dir.join(number.to_string());
        let file = File::create(&path).map_err(Error::io(&path))?;
        if file.try_lock().is_ok() {
            // 10.192.0.0/11: away from what clusters take by themselves.
            let [_, _, high, low] = number.to_be_bytes();
            let address = std::net::Ipv4Addr::new(10, 192 | high, low, 0);
            return Ok((Ipv4Net::new_assert(address, 24), file));
        }
    }
    Err(Error::Daemon("no range is free for a test".into()))
}
