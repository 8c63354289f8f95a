//! The node: beside a control plane in one process, or alone against one elsewhere.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;
use jiff::Timestamp;
use kube::Client;
use sampan_agent::{Certificate, CertificateRequest, Joined};
use sampan_network::Mode;
use sampan_server::Identity;
use sampan_wasm::launch;
use tokio_util::sync::CancellationToken;

use super::control_plane::{ControlPlane, node_ready};
use crate::config::Config;
use crate::data_dir::DataDir;

/// Where a node's API listens, as every kubelet's does.
const PORT: u16 = 10250;

/// What an agent is made of but for how it reaches the cluster.
async fn agent_config(
    config: &Config,
    data_dir: &DataDir,
    ca_pem: String,
    certificate: Certificate,
    end_pods: bool,
) -> Result<sampan_agent::Config> {
    let mode = tokio::task::spawn_blocking(sampan_network::detect_mode).await?;
    let addresses = addresses(config);
    Ok(sampan_agent::Config {
        node_name: config.node_name.clone(),
        dir: data_dir.part("node")?,
        max_pods: config.max_pods,
        containerd: config.containerd.clone(),
        image_gc: config.image_gc,
        mode,
        listen: SocketAddr::new(listen_address(mode), PORT),
        addresses,
        ca_pem,
        certificate,
        end_pods,
        version: sampan_server::version(),
    })
}

/// Everybody of the cluster may ask a node's API, with a certificate; an ordinary user's stays local.
fn listen_address(mode: Mode) -> IpAddr {
    match mode {
        Mode::Privileged => Ipv4Addr::UNSPECIFIED.into(),
        Mode::Unprivileged => Ipv4Addr::LOCALHOST.into(),
    }
}

/// How others reach this machine.
fn addresses(config: &Config) -> Vec<IpAddr> {
    let local = IpAddr::from(Ipv4Addr::LOCALHOST);
    if let Some(address) = config.node_ip {
        vec![address.into()]
    } else if rustix::process::geteuid().is_root() {
        vec![sampan_server::outgoing_address().filter(IpAddr::is_ipv4).unwrap_or(local)]
    } else {
        vec![local]
    }
}

/// The node of `sampan up`: its pods end with it.
pub async fn beside(
    control_plane: &ControlPlane,
    config: &Config,
    data_dir: &DataDir,
) -> Result<(sampan_agent::Config, Client)> {
    let server = control_plane.server();
    let request = CertificateRequest::new(&config.node_name, &addresses(config))?;
    let certificate = Certificate { cert_pem: server.node_certificate(&request.csr_pem)?, key_pem: request.key_pem };
    let agent = agent_config(config, data_dir, server.ca_pem().to_owned(), certificate, true).await?;
    Ok((agent, control_plane.client(Identity::node(&config.node_name))))
}

/// A node of its own: its pods go on while it is replaced.
pub async fn join(
    server: &str,
    token: Option<&str>,
    config: &Config,
    data_dir: &DataDir,
) -> Result<(sampan_agent::Config, Client)> {
    let dir = data_dir.part("identity")?;
    let joined: Joined = sampan_agent::join(server, token, &dir, &config.node_name, &addresses(config)).await?;
    let client = joined.client()?;
    let agent = agent_config(config, data_dir, joined.ca_pem, joined.certificate, false).await?;
    Ok((agent, client))
}

/// Waits for the node; answers with what users need to know.
pub async fn ready(client: Client, name: String, server: String) -> Result<String> {
    node_ready(client, &name, Timestamp::now()).await?;
    Ok(format!("node {name} of {server}"))
}

/// Runs the agent until it is told to stop.
pub async fn run((config, client): (sampan_agent::Config, Client), stop: CancellationToken) -> Result<()> {
    sampan_agent::run(config, client, stop).await
}

/// What the node made on this machine and [`clean`] took away.
pub struct Removed {
    hosts: usize,
    /// Their control groups, which an ordinary user has none of.
    groups: usize,
    containers: usize,
    network: sampan_network::Removed,
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = [
            (self.hosts, "host process", "es"),
            (self.network.namespaces, "network namespace", "s"),
            (self.network.links, "interface", "s"),
            (self.network.routes, "route", "s"),
            (self.network.tables, "table", "s"),
        ];
        let rare = [(self.groups, "control group", "s"), (self.containers, "container", "s")];
        let rare = rare.into_iter().filter(|(count, ..)| *count > 0);
        for (index, (count, what, plural)) in counted.into_iter().chain(rare).enumerate() {
            let (comma, plural) = (if index > 0 { ", " } else { "" }, if count == 1 { "" } else { plural });
            write!(f, "{comma}{count} {what}{plural}")?;
        }
        Ok(())
    }
}

/// Ends the host processes of a data dir's tenants and takes its network away, as its records say.
pub async fn clean(data_dir: &DataDir) -> Result<Removed> {
    let dir = data_dir.part("node")?;
    let hosts = launch::list(&dir.join("tenants"));
    for (tenant, record) in &hosts {
        launch::kill(tenant, record).await;
    }
    // Their groups went with them.
    let groups = hosts.iter().filter(|(_, record)| record.cgroup.is_some()).count();
    let node = dir.clone();
    let left = tokio::task::spawn_blocking(move || sampan_agent::leftovers::clean(&node)).await??;
    let network = sampan_network::clean(&dir.join("network")).await?;
    Ok(Removed { hosts: hosts.len(), groups: groups + left.groups, containers: left.containers, network })
}

#[cfg(test)]
mod tests {
    use super::Removed;

    #[test]
    fn one_and_many() {
        let network = sampan_network::Removed { namespaces: 1, links: 2, routes: 0, tables: 1 };
        let removed = Removed { hosts: 2, groups: 1, containers: 0, network: network.clone() };
        assert_eq!(
            removed.to_string(),
            "2 host processes, 1 network namespace, 2 interfaces, 0 routes, 1 table, 1 control group"
        );
        let removed = Removed { hosts: 1, groups: 0, containers: 3, network };
        assert_eq!(
            removed.to_string(),
            "1 host process, 1 network namespace, 2 interfaces, 0 routes, 1 table, 3 containers"
        );
    }
}
