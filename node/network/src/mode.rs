use std::fs;

use caps_bits::{NET_ADMIN, SYS_ADMIN};
use nix::sched::{CloneFlags, unshare};

use crate::error::{Error, Result};
use crate::namespace;
use crate::netlink::Netlink;

/// How much of the machine's network this process may shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Mode {
    /// Network namespaces, routes and nftables.
    Privileged,
    /// Everything in 127.0.0.0/8.
    Unprivileged,
}

mod caps_bits {
    pub(super) const NET_ADMIN: u32 = 12;
    pub(super) const SYS_ADMIN: u32 = 21;
}

/// What this process can do: tries it, in a network namespace that ends with the question.
pub fn detect_mode() -> Mode {
    match try_privileged() {
        Ok(()) => Mode::Privileged,
        Err(reason) => {
            tracing::debug!(%reason, "no privileged network");
            Mode::Unprivileged
        }
    }
}

fn try_privileged() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("not root".to_owned());
    }
    let status = fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let effective = effective_capabilities(&status).ok_or("no CapEff in /proc/self/status")?;
    for (bit, name) in [(NET_ADMIN, "CAP_NET_ADMIN"), (SYS_ADMIN, "CAP_SYS_ADMIN")] {
        if effective & (1 << bit) == 0 {
            return Err(format!("{name} is missing"));
        }
    }
    // A container may have the capability and still not the devices or a writable /proc/sys.
    std::thread::spawn(try_namespace)
        .join()
        .map_err(|_| "the attempt ended early".to_owned())?
        .map_err(|error| error.to_string())
}

fn try_namespace() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| Error::system("make a network namespace")(errno.into()))?;
    namespace::set("net/ipv4/ip_unprivileged_port_start", "0")?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::system("start a runtime"))?;
    runtime.block_on(async {
        let netlink = Netlink::here()?;
        netlink.up("lo").await?;
        netlink.add_veth("try0", [2, 0, 0, 0, 0, 1], "try1", [2, 0, 0, 0, 0, 2], None).await
    })
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_capabilities() {
        assert_eq!(effective_capabilities("Name:\tx\nCapEff:\t000000ffffffffff\n"), Some(0xff_ffff_ffff));
        assert_eq!(effective_capabilities("CapEff:\tno\n"), None);
        assert_eq!(effective_capabilities(""), None);
    }
}
