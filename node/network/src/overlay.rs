//! The way to the pods of nodes behind a router: their packets go inside of UDP (VXLAN), so that what
//! lies between sees the nodes' addresses only.
//!
//! Nothing is learned and nobody is asked: a node's link address and network identifier follow from
//! its name, so every other knows them. The identifier is the receiver's, so that two nodes on one
//! machine have a device each.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::namespace;
use crate::netlink::{self, Mac, Netlink, Tunnel};
use crate::records::{self, OverlayRecord, Records};

/// What the kernel and flannel use too.
const PORT: u16 = 8472;
/// Two headers of Ethernet, IPv4, UDP and VXLAN, less the outer Ethernet's.
const OVERHEAD: u32 = 50;
/// The least that IPv4 may have.
const LEAST_MTU: u32 = 576;

/// This node's end of all tunnels.
#[derive(Clone, Debug)]
pub(crate) struct Overlay {
    link: String,
    mac: Mac,
    vni: u32,
    /// What the machine itself sends from: answers have to find into the tunnel. The first of the
    /// node's range, which no pod has.
    address: Ipv4Addr,
    metric: u32,
}

/// Where a node listens in the overlay.
fn end(cluster_id: &str, node_name: &str) -> (String, Mac, u32) {
    let digest = Sha256::digest(format!("{cluster_id}/{node_name}/overlay"));
    let [_, first, second, third, ..] = <[u8; 32]>::from(digest);
    // Identifiers begin with 1: some programs take 0 for none.
    let vni = u32::from_be_bytes([0, first, second, third]).max(1);
    (netlink::name('v', cluster_id, &digest), netlink::mac(&digest, 8), vni)
}

/// The tunnel to another node of the cluster.
pub(crate) fn tunnel(cluster_id: &str, node_name: &str, node: Ipv4Addr) -> Tunnel {
    let (_, mac, vni) = end(cluster_id, node_name);
    Tunnel { node, mac, vni }
}

/// The name of a node's device, whether it is there or not.
pub(crate) fn device(cluster_id: &str, node_name: &str) -> String {
    end(cluster_id, node_name).0
}

impl Overlay {
    pub(crate) fn new(cluster_id: &str, node_name: &str, pods: Ipv4Net, metric: u32) -> Self {
        let (link, mac, vni) = end(cluster_id, node_name);
        Self { link, mac, vni, address: pods.network(), metric }
    }

    /// Removes the tunnels that are on record and not wanted, and with the last one the device.
    pub(crate) async fn remove_others(
        &self,
        netlink: &Netlink,
        records: &mut Records,
        wanted: &BTreeMap<Ipv4Net, Tunnel>,
    ) -> Result<()> {
        let Some(mut record) = records.overlay().cloned() else { return Ok(()) };
        if wanted.is_empty() {
            records::remove_link(netlink, &record.link, record.mac).await?;
            return records.set_overlay(None);
        }
        let Some(link) = netlink.link(&record.link).await? else { return Ok(()) };
        let others: Vec<_> =
            record.tunnels.iter().filter(|(range, tunnel)| wanted.get(range) != Some(tunnel)).collect();
        for (range, tunnel) in others {
            netlink.delete_route_through(*range, link.index, self.metric).await?;
            netlink.delete_neighbour(link.index, range.network()).await?;
            netlink.delete_tunnel(link.index, tunnel).await?;
        }
        record.tunnels.retain(|range, tunnel| wanted.get(range) == Some(tunnel));
        records.set_overlay(Some(record))
    }

    /// Makes what is missing. `mtu` is that of the ways to the other nodes. What goes wrong with one of
    /// them leaves the others, and its range unreachable.
    pub(crate) async fn make(
        &self,
        netlink: &Netlink,
        records: &mut Records,
        wanted: &BTreeMap<Ipv4Net, Tunnel>,
        mtu: u32,
        failed: &mut BTreeMap<Ipv4Net, String>,
    ) -> Result<()> {
        if wanted.is_empty() {
            return Ok(());
        }
        let record = OverlayRecord { link: self.link.clone(), mac: self.mac, tunnels: wanted.clone() };
        records.set_overlay(Some(record))?;
        let link = match self.ensure(netlink, mtu.saturating_sub(OVERHEAD).max(LEAST_MTU)).await {
            Ok(link) => link,
            Err(error) => {
                failed.extend(wanted.keys().map(|range| (*range, error.to_string())));
                return Ok(());
            }
        };
        for (range, tunnel) in wanted {
            let made = async {
                netlink.add_tunnel(link, tunnel).await?;
                netlink.add_neighbour(link, range.network(), tunnel.mac).await?;
                // Last: before this the range is unreachable.
                netlink.add_route_through(*range, link, self.address, self.metric).await
            };
            if let Err(error) = made.await {
                failed.insert(*range, error.to_string());
            }
        }
        Ok(())
    }

    /// The device, whole; tells its index.
    async fn ensure(&self, netlink: &Netlink, mtu: u32) -> Result<u32> {
        match netlink.link(&self.link).await? {
            Some(link) if link.mac == self.mac => {
                if link.mtu != mtu {
                    netlink.set_mtu(link.index, mtu).await?;
                }
            }
            _ => netlink.add_vxlan(&self.link, self.mac, self.vni, PORT, mtu).await?,
        }
        namespace::no_ipv6(&self.link);
        for (setting, value) in [
            ("forwarding", "1"),
            // The other node may take the same way for a segment, and then it sends without a tunnel.
            ("rp_filter", "2"),
            ("accept_redirects", "0"),
            ("send_redirects", "0"),
        ] {
            namespace::set(&format!("net/ipv4/conf/{}/{setting}", self.link), value)?;
        }
        let link = netlink.up(&self.link).await?;
        netlink.add_address(link, self.address).await?;
        Ok(link)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_follow_from_names() {
        let (link, mac, vni) = end("0a0b0c0d", "one");
        assert!(link.starts_with("v0a0b0c0d") && link.len() == 15, "{link}");
        assert!((1..1 << 24).contains(&vni));
        assert_eq!(mac[0] & 3, 2);
        let node = Ipv4Addr::new(198, 51, 100, 7);
        assert_eq!(tunnel("0a0b0c0d", "one", node), Tunnel { node, mac, vni });
        assert_ne!(end("0a0b0c0d", "two").1, mac);
        assert_ne!(end("ffffffff", "one").2, vni);
    }
}
