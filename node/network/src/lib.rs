//! A node's network: pod addresses, a network namespace per tenant, Services and cluster DNS.
//!
//! Privileged, a tenant (namespace) has a network namespace of its own, joined to the machine by
//! one veth; Services are nftables maps, or a userspace proxy where there is no `nft`.
//! Unprivileged, pods and Services live in 127.0.0.0/8 and the proxy serves them.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use sampan_client::Informers;
use tokio_util::sync::CancellationToken;

/// How much of the machine's network this process may shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Network namespaces, routes and nftables.
    Privileged,
    /// Everything in 127.0.0.0/8.
    Unprivileged,
}

/// What this process can do: tries it, in a network namespace that ends with the question.
pub fn detect_mode() -> Mode {
    Mode::Unprivileged
}

/// What a node's network is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// Eight hex digits; names interfaces and tables, so that clusters on one machine coexist.
    pub cluster_id: String,
    pub node_name: String,
    pub mode: Mode,
    /// This node's addresses: the lower half is for Wasm pods, the upper half for CNI.
    pub pod_cidr: IpNet,
    pub cluster_cidr: IpNet,
    pub service_cidr: IpNet,
    pub cluster_dns: IpAddr,
    pub cluster_domain: String,
    /// Where addresses and the records of what was made are kept.
    pub dir: PathBuf,
    /// Where NodePorts listen.
    pub node_addresses: Vec<IpAddr>,
}

/// What a tenant's Wasm host process needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// The network namespace to enter; none where unprivileged.
    pub netns: Option<PathBuf>,
    /// Cluster DNS as seen from inside.
    pub nameserver: SocketAddr,
    /// Which ports of pod and Service addresses are listened at elsewhere.
    pub port_shift: PortShift,
}

/// Unprivileged, a port below `below` is listened at that port plus `by`; else `below` is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortShift {
    pub below: u16,
    pub by: u16,
}

impl PortShift {
    /// Where `port` of a pod or Service address is in fact listened at.
    pub fn apply(self, port: u16) -> u16 {
        if port != 0 && port < self.below { port.saturating_add(self.by) } else { port }
    }
}

/// An address that a pod holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub namespace: String,
    pub pod_uid: String,
    pub address: IpAddr,
}

/// What [`clean`] took away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub namespaces: usize,
    pub links: usize,
    pub routes: usize,
    pub tables: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the network is not there yet")]
    NotReady,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A running network. Cheap to clone.
#[derive(Clone)]
pub struct Network {}

impl Network {
    /// Guards first, then what an earlier process left, then Services and DNS. `shutdown` ends the
    /// tasks and leaves what pods need; [`clean`] takes that away.
    pub async fn start(_config: Config, _informers: Informers, _shutdown: CancellationToken) -> Result<Self> {
        Err(Error::NotReady)
    }

    /// The tenant's network namespace, made with the first use.
    pub async fn tenant(&self, _namespace: &str) -> Result<Tenant> {
        Err(Error::NotReady)
    }

    /// The pod's address: the same for the same pod, also after a restart.
    pub async fn assign(&self, _namespace: &str, _pod_uid: &str) -> Result<IpAddr> {
        Err(Error::NotReady)
    }

    /// Gives a pod's address back. Nothing to do for a pod that holds none.
    pub async fn release(&self, _pod_uid: &str) -> Result<()> {
        Err(Error::NotReady)
    }

    /// Takes a tenant's network namespace away, and the addresses of its pods.
    pub async fn remove_tenant(&self, _namespace: &str) -> Result<()> {
        Err(Error::NotReady)
    }

    /// The addresses that are out: what an agent compares with its pods after a restart.
    pub async fn assigned(&self) -> Vec<Assignment> {
        Vec::new()
    }

    /// The tenants whose network namespace is there.
    pub async fn tenants(&self) -> Vec<String> {
        Vec::new()
    }

    pub fn port_shift(&self) -> PortShift {
        PortShift::default()
    }
}

/// Removes what a process that worked on `dir` made and left: what its records say, nothing else.
pub async fn clean(_dir: &Path) -> Result<Removed> {
    Ok(Removed::default())
}
