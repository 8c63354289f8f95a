//! The ways to the pods of other nodes: a route where a node is on a segment of ours, a tunnel where a
//! router lies between, and none, so that its range stays unreachable, where nothing leads to it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;

use crate::error::Result;
use crate::netlink::{Netlink, Route, Tunnel, Way, WayOut};
use crate::overlay::{self, Overlay};
use crate::records::Records;
use crate::routes::Metric;

/// Another node, as far as its pods' addresses go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Peer {
    name: String,
    range: Ipv4Net,
    address: Ipv4Addr,
}

impl Peer {
    /// `None` for a node that has no range or no address yet.
    pub(crate) fn of(node: &Node) -> Option<Self> {
        let range = node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()?;
        let address = internal_addresses(node).next()?;
        Some(Self { name: node.name_any(), range, address })
    }

    pub(crate) fn range(&self) -> Ipv4Net {
        self.range
    }
}

pub(crate) fn internal_addresses(node: &Node) -> impl Iterator<Item = Ipv4Addr> {
    node.status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten())
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| match address.address.parse() {
            Ok(IpAddr::V4(address)) => Some(address),
            _ => None,
        })
}

/// What makes the ways of this node.
#[derive(Clone, Debug)]
pub(crate) struct Ways {
    pub(crate) cluster_id: String,
    pub(crate) cluster: Ipv4Net,
    pub(crate) metric: Metric,
    pub(crate) overlay: Overlay,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    routes: BTreeMap<Ipv4Net, Route>,
    tunnels: BTreeMap<Ipv4Net, Tunnel>,
    /// The least of what fits through on the way to a tunnel's end.
    mtu: u32,
}

impl Ways {
    /// Makes the ways what they should be. Tells the ranges that have none now, and why.
    pub(crate) async fn sync(
        &self,
        netlink: &Netlink,
        records: &mut Records,
        peers: &[Peer],
    ) -> Result<BTreeMap<Ipv4Net, String>> {
        let own = netlink.addresses().await?;
        let mut out = Vec::new();
        let mut failed = BTreeMap::new();
        for peer in peers.iter().filter(|peer| self.is_elsewhere(peer, &own)) {
            match netlink.way_out(peer.address).await? {
                Some(way) => out.push((peer, way)),
                None => drop(failed.insert(peer.range, format!("nothing leads to its address {}", peer.address))),
            }
        }
        let wanted = self.wanted(&out);
        // First what is to go: a range may have been moved from one kind of way to the other.
        self.overlay.remove_others(netlink, records, &wanted.tunnels).await?;
        let routes = records.routes().iter().filter(|route| matches!(route.way, Way::Gateway(_)));
        let others: Vec<_> =
            routes.filter(|route| wanted.routes.get(&route.destination) != Some(route)).cloned().collect();
        for route in others {
            netlink.delete_route(&route).await?;
            records.remove_route(&route)?;
        }
        for route in wanted.routes.values() {
            records.add_route(route)?;
            if let Err(error) = netlink.add_route(route).await {
                records.remove_route(route)?;
                failed.insert(route.destination, error.to_string());
            }
        }
        self.overlay.make(netlink, records, &wanted.tunnels, wanted.mtu, &mut failed).await?;
        Ok(failed)
    }

    /// A node at an address of this machine has its pods right here.
    fn is_elsewhere(&self, peer: &Peer, own: &[Ipv4Addr]) -> bool {
        self.cluster.contains(&peer.range) && !own.contains(&peer.address) && !peer.address.is_loopback()
    }

    fn wanted(&self, peers: &[(&Peer, WayOut)]) -> Wanted {
        let mut wanted = Wanted { mtu: u32::MAX, ..Wanted::default() };
        for (peer, out) in peers {
            let destination = peer.range;
            if out.on_segment {
                // Two nodes of this cluster on one machine each keep a route of their own.
                let route = Route { destination, way: Way::Gateway(peer.address), metric: self.metric.value() };
                wanted.routes.insert(destination, route);
            } else {
                wanted.tunnels.insert(destination, overlay::tunnel(&self.cluster_id, &peer.name, peer.address));
                wanted.mtu = wanted.mtu.min(out.mtu);
            }
        }
        wanted
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_what_is_elsewhere_has_a_way() {
        let metric = Metric::new("0a0b0c0d", "one");
        let overlay = Overlay::new("0a0b0c0d", "one", "10.244.0.0/24".parse().unwrap(), metric.value());
        let cluster = "10.244.0.0/16".parse().unwrap();
        let ways = Ways { cluster_id: "0a0b0c0d".to_owned(), cluster, metric, overlay };
        let peer = |range: &str, address: [u8; 4]| Peer {
            name: "other".to_owned(),
            range: range.parse().unwrap(),
            address: address.into(),
        };
        let own = [Ipv4Addr::new(192, 0, 2, 1)];
        for here in [
            peer("10.244.1.0/24", [192, 0, 2, 1]),
            peer("10.244.3.0/24", [127, 0, 0, 1]),
            peer("0.0.0.0/0", [192, 0, 2, 3]),
        ] {
            assert!(!ways.is_elsewhere(&here, &own), "{here:?}");
        }
        let (near, far, farther) = (
            peer("10.244.2.0/24", [192, 0, 2, 2]),
            peer("10.244.4.0/24", [198, 51, 100, 2]),
            peer("10.244.5.0/24", [203, 0, 113, 2]),
        );
        let wanted = ways.wanted(&[
            (&near, WayOut { on_segment: true, mtu: 1280 }),
            (&far, WayOut { on_segment: false, mtu: 9000 }),
            (&farther, WayOut { on_segment: false, mtu: 1500 }),
        ]);
        assert_eq!(wanted.routes.keys().collect::<Vec<_>>(), [&near.range]);
        assert_eq!(wanted.tunnels.keys().collect::<Vec<_>>(), [&far.range, &farther.range]);
        assert_eq!(wanted.mtu, 1500);
    }
}
