//! A pod's network namespace: found, made, and looked into.

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::sched::{CloneFlags, setns, unshare};

/// Runs `work` on a thread inside a namespace; with none, where we are.
async fn inside<T: Send + 'static>(
    netns: Option<PathBuf>,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let (send, result) = tokio::sync::oneshot::channel();
    // A thread that ends: none of a pool may stay in there.
    std::thread::Builder::new().name("netns".into()).spawn(move || {
        let enter = || match &netns {
            Some(path) => {
                let file = File::open(path).with_context(|| path.display().to_string())?;
                setns(file, CloneFlags::CLONE_NEWNET).context("entering the network namespace")
            }
            None => Ok(()),
        };
        let _ = send.send(enter().and_then(|()| work()));
    })?;
    result.await.context("the namespace's thread ended")?
}

/// Makes a namespace and pins it at `path`.
pub async fn make(path: &Path) -> anyhow::Result<()> {
    let pin = path.to_owned();
    inside(None, move || {
        unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
        crate::mount::bind_file("/proc/thread-self/ns/net".as_ref(), &pin)
    })
    .await
}

/// The addresses a pod is reached at, the first of each family; its loopback if it has no other.
pub async fn addresses(netns: Option<PathBuf>) -> anyhow::Result<Vec<String>> {
    inside(netns, || {
        let all = nix::ifaddrs::getifaddrs().context("interfaces")?.filter_map(|interface| interface.address);
        let (mut v4, mut v6) = (None, None);
        for address in all {
            match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(address), _) if !address.ip().is_loopback() => v4 = v4.or(Some(IpAddr::V4(address.ip()))),
                (_, Some(address)) if !address.ip().is_loopback() && !address.ip().is_unicast_link_local() => {
                    v6 = v6.or(Some(IpAddr::V6(address.ip())));
                }
                _ => {}
            }
        }
        let mut found: Vec<String> = v4.into_iter().chain(v6).map(|ip| ip.to_string()).collect();
        if found.is_empty() {
            found.push("127.0.0.1".into());
        }
        Ok(found)
    })
    .await
}

/// Lets a host without privileges listen on every port of a pod's own namespace.
pub async fn open_low_ports(netns: PathBuf) -> anyhow::Result<()> {
    let path = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    inside(Some(netns), move || std::fs::write(path, "0").context(path)).await
}
