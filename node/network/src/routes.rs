//! Guards, so that no packet for a Service or a pod leaves the machine by the default route.

use ipnet::Ipv4Net;
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

    pub(crate) fn value(self) -> u32 {
        self.0
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
}
