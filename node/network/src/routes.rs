//! Guards, so that no packet for a Service or a pod leaves the machine by the default route, and
//! the ways to the pods of other nodes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::netlink::{Found, Netlink, Route, Way};
use crate::records::Records;

/// Metrics tell the routes of clusters and nodes on one machine apart: a nibble of ones, 14 bits
/// of the cluster, 14 of the node. They are the last to be considered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Metric(u32);

impl Metric {
    pub(crate) fn new(cluster_id: &str, node_name: &str) -> Self {
        let bits = |text: &str| {
            let [first, second, ..] = <[u8; 32]>::from(Sha256::digest(text));
            u32::from(u16::from_be_bytes([first, second])) >> 2
        };
        Self(0xf000_0000 | bits(cluster_id) << 14 | bits(node_name))
    }

    fn same_cluster(self, metric: u32) -> bool {
        self.0 >> 14 == metric >> 14
    }
}

pub(crate) struct Ranges {
    pub(crate) cluster: Ipv4Net,
    pub(crate) service: Ipv4Net,
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// The first route of the machine that the cluster's ranges would hide or be hidden by.
fn conflict(ranges: &Ranges, metric: Metric, routes: &[Found]) -> Option<Error> {
    for (what, range) in [("the cluster range", ranges.cluster), ("the Service range", ranges.service)] {
        // What lies in a range that this cluster holds already was made for its pods, by CNI's plugins.
        let held =
            routes.iter().any(|route| route.ours && route.destination == range && metric.same_cluster(route.metric));
        for route in routes {
            let other = route.destination;
            let how = if route.ours {
                // A tenant's or another node's route is in the range of its cluster's guard.
                if route.metric == 0 || metric.same_cluster(route.metric) || !overlap(range, other) {
                    continue;
                }
                "for another cluster".to_owned()
            } else if range.contains(&other) && !held {
                // A wider route of the machine is only narrowed, and that is what a range means.
                if route.local { "as its own address".to_owned() } else { "elsewhere".to_owned() }
            } else {
                continue;
            };
            return Some(Error::RangeInUse { what, range, other, how });
        }
    }
    None
}

/// Guards first, before anything can be sent.
pub(crate) async fn guard(netlink: &Netlink, records: &mut Records, ranges: &Ranges, metric: Metric) -> Result<()> {
    if overlap(ranges.cluster, ranges.service) {
        return Err(Error::RangesOverlap { cluster: ranges.cluster, service: ranges.service });
    }
    if let Some(error) = conflict(ranges, metric, &netlink.routes().await?) {
        return Err(error);
    }
    let guards = [
        Route { destination: ranges.service, way: Way::Local, metric: metric.0 },
        Route { destination: ranges.cluster, way: Way::Unreachable, metric: metric.0 },
    ];
    for route in &guards {
        records.add_route(route)?;
        netlink.add_route(route).await?;
    }
    Ok(())
}

/// Where another node's pods are.
pub(crate) fn way_to(node: &Node) -> Option<(Ipv4Net, Ipv4Addr)> {
    let range = node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()?;
    let address = internal_addresses(node).find_map(|address| match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    })?;
    Some((range, address))
}

pub(crate) fn internal_addresses(node: &Node) -> impl Iterator<Item = IpAddr> {
    node.status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten())
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok())
}

/// The routes that should be there for the other nodes; one whose address is the machine's own
/// has its pods right here.
pub(crate) fn wanted(
    nodes: impl Iterator<Item = (Ipv4Net, Ipv4Addr)>,
    own: &[Ipv4Addr],
    cluster: Ipv4Net,
    metric: Metric,
) -> BTreeMap<Ipv4Net, Route> {
    nodes
        .filter(|(range, address)| cluster.contains(range) && !own.contains(address) && !address.is_loopback())
        .map(|(destination, address)| {
            // Two nodes of this cluster on one machine each keep a route of their own.
            (destination, Route { destination, way: Way::Gateway(address), metric: metric.0 })
        })
        .collect()
}

/// Makes the routes to other nodes what they should be. One that the kernel refuses is left out:
/// told, and the answer is false.
pub(crate) async fn sync(netlink: &Netlink, records: &mut Records, wanted: &BTreeMap<Ipv4Net, Route>) -> Result<bool> {
    let there: Vec<Route> =
        records.routes().iter().filter(|route| matches!(route.way, Way::Gateway(_))).cloned().collect();
    for route in there.iter().filter(|route| wanted.get(&route.destination) != Some(route)) {
        netlink.delete_route(route).await?;
        records.remove_route(route)?;
    }
    let mut all = true;
    for route in wanted.values() {
        records.add_route(route)?;
        if let Err(error) = netlink.add_route(route).await {
            tracing::warn!(%error, destination = %route.destination, "no way to the pods of another node: are the nodes on one segment?");
            records.remove_route(route)?;
            all = false;
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn found(destination: &str, metric: u32, ours: bool, local: bool) -> Found {
        Found { destination: net(destination), metric, ours, local }
    }

    #[test]
    fn metrics_tell_clusters_and_nodes_apart() {
        let a = Metric::new("0a0b0c0d", "one");
        let b = Metric::new("0a0b0c0d", "two");
        let c = Metric::new("ffffffff", "one");
        assert_ne!(a, b);
        assert!(a.same_cluster(b.0));
        assert!(!a.same_cluster(c.0));
        assert!(a.0 >= 0xf000_0000);
    }

    #[test]
    fn says_which_route_is_in_the_way() {
        let ranges = Ranges { cluster: net("10.244.0.0/16"), service: net("10.96.0.0/16") };
        let own = Metric::new("0a0b0c0d", "one");
        let peer = Metric::new("0a0b0c0d", "two").0;
        let other = Metric::new("ffffffff", "one").0;
        let clash = |routes: &[Found]| conflict(&ranges, own, routes).map(|error| error.to_string());

        assert_eq!(clash(&[]), None);
        assert_eq!(clash(&[found("10.0.0.0/8", 0, false, false), found("10.1.0.0/16", 0, false, false)]), None);
        assert_eq!(clash(&[found("10.96.0.0/16", peer, true, true), found("10.244.0.9/32", 0, true, false)]), None);
        assert_eq!(clash(&[found("10.112.0.0/16", other, true, true)]), None);
        assert!(clash(&[found("10.96.0.0/20", other, true, true)]).unwrap().contains("another cluster"));
        assert!(clash(&[found("10.244.7.0/24", 0, false, false)]).unwrap().contains("10.244.7.0/24"));
        assert!(clash(&[found("10.96.3.4/32", 0, false, true)]).unwrap().contains("own address"));
        let pod = found("10.244.4.2/32", 0, false, false);
        assert_eq!(clash(&[pod.clone(), found("10.244.0.0/16", peer, true, false)]), None);
        assert!(clash(&[pod, found("10.244.0.0/16", other, true, false)]).is_some());
    }

    #[test]
    fn routes_only_to_other_machines() {
        let metric = Metric::new("0a0b0c0d", "one");
        let nodes = [
            (net("10.244.1.0/24"), Ipv4Addr::new(192, 0, 2, 1)),
            (net("10.244.2.0/24"), Ipv4Addr::new(192, 0, 2, 2)),
            (net("10.244.3.0/24"), Ipv4Addr::LOCALHOST),
            (net("0.0.0.0/0"), Ipv4Addr::new(192, 0, 2, 3)),
        ];
        let wanted = wanted(nodes.into_iter(), &[Ipv4Addr::new(192, 0, 2, 1)], net("10.244.0.0/16"), metric);
        assert_eq!(wanted.keys().copied().collect::<Vec<_>>(), [net("10.244.2.0/24")]);
    }
}
